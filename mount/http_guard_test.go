package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// pieces is a connection that delivers bytes in pieces of random length.
type pieces struct {
	net.Conn
	rng  *rand.Rand
	data []byte
}

func (c *pieces) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.data[:1+c.rng.IntN(len(c.data))])
	c.data = c.data[n:]
	return n, nil
}

// TestGuardedConn: of whatever comes in whichever pieces, exactly the answer is handed
// out, and what follows it is an error.
func TestGuardedConn(t *testing.T) {
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\n\r\n\n",
		chunked + "5\r\nhello\r\n0\r\n\r\n",
		chunked + "5;name=0\r\nhello\r\n1a\r\n" + strings.Repeat("\r\n", 13) + "\r\n00\r\nA: b\r\nX-Stream-Error: 0\r\n\r\n",
		chunked + "A\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
		chunked + "0\n\n",
	} {
		for _, extra := range []string{"", "HTTP/1.1 200 OK\r\n", "\x1b]evil"} {
			for seed := range uint64(50) {
				c := &guardedConn{Conn: &pieces{rng: rand.New(rand.NewPCG(seed, 1)), data: []byte(answer + extra)}}
				c.expect()
				var got bytes.Buffer
				_, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{c}, make([]byte, 1+seed))
				if got.String() != answer || errors.Is(err, errUnsolicited) != (extra != "") {
					t.Fatalf("of %q and %q: %q, %v", answer, extra, got.String(), err)
				}
			}
		}
	}
	// What is not understood, or ends with the connection, goes through as it is.
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", "HTTP/1.0 200 OK\r\n\r\nhello", "junk\r\n\r\nmore", "HTTP/1.1 what\r\n\r\nmore",
		"HTTP/1.1 200 OK\r\nContent-Len", "HT", "", "HTTP/1.1 101 Switching Protocols\r\n\r\nanything", "\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxGuardedHead) + "\r\n\r\nrest", chunked + strings.Repeat("f", 40) + "\r\n\r\n0\r\n\r\n",
	} {
		for seed := range uint64(20) {
			c := &guardedConn{Conn: &pieces{rng: rand.New(rand.NewPCG(seed, 2)), data: []byte(answer)}}
			c.expect()
			if got, err := io.ReadAll(c); string(got) != answer || err != nil {
				t.Fatalf("of %.100q: %.100q, %v", answer, got, err)
			}
		}
	}
}

// TestNothingUnsolicited: what a server says without being asked is neither content nor in
// the standard logger, and connections are used again where servers are decent. Proves S10.
func TestNothingUnsolicited(t *testing.T) {
	var mu sync.Mutex
	var logged bytes.Buffer
	defer log.SetOutput(log.Writer())
	log.SetOutput(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return logged.Write(p)
	}))
	const head = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/3\r\nContent-Length: 1\r\n\r\na"
	const evil = "evil \x1b[31m"
	for name, tc := range map[string]struct {
		first  string // said before the request
		answer string
		later  string // said a moment after the answer
	}{
		"with the answer": {answer: head + evil},
		"later":           {answer: head, later: evil},
		"chunked":         {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + evil},
		"no body":         {answer: "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" + evil},
		"before":          {first: evil, answer: head},
		"a second answer": {answer: head + head},
	} {
		for _, secure := range []bool{false, true} {
			closed := make(chan struct{}, 1000)
			s := httptest.NewUnstartedServer(http.NotFoundHandler())
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := w.(http.Hijacker).Hijack()
				if err != nil {
					panic(err)
				}
				defer conn.Close()
				io.WriteString(conn, tc.answer)
				if tc.later != "" {
					io.WriteString(conn, tc.later)
				}
				io.Copy(io.Discard, conn) // until the client ends it
				closed <- struct{}{}
			})
			if tc.first != "" {
				s.Listener = &talking{s.Listener, tc.first}
			}
			o := &HTTPOptions{Retries: -1, IdleTimeout: 500 * time.Millisecond}
			if secure {
				s.StartTLS()
				o.TLS = s.Client().Transport.(*http.Transport).TLSClientConfig
			} else {
				s.Start()
			}
			m := &HTTPMount{URL: s.URL, Options: o}
			r, err := m.Fetch(t.Context())
			if err == nil {
				io.ReadAll(io.LimitReader(r, 3))
				r.Close()
			}
			if tc.first == "" {
				<-closed // the client was told too much and hung up
			}
			o.CloseIdleConnections()
			s.Close()
			mu.Lock()
			if logged.Len() > 0 {
				t.Errorf("%s, TLS %v: logged %q (%v)", name, secure, logged.String(), err)
			}
			logged.Reset()
			mu.Unlock()
		}
	}
	for name, chunked := range map[string]bool{"length": false, "chunked": true} {
		var conns sync.Map
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conns.Store(r.RemoteAddr, true)
			if chunked {
				w.(http.Flusher).Flush()
			}
			fmt.Fprint(w, strings.Repeat("x", 5000))
		}))
		s.StartTLS()
		o := &HTTPOptions{TLS: s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()}
		o.TLS.NextProtos = []string{"http/1.1"}
		for range 5 {
			r, err := (&HTTPMount{URL: s.URL, Options: o}).Fetch(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); len(got) != 5000 || err != nil {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			r.Close()
		}
		n := 0
		conns.Range(func(any, any) bool { n++; return true })
		if n != 1 {
			t.Errorf("%s: %d connections for five requests", name, n)
		}
		o.CloseIdleConnections()
		s.Close()
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// talking is a listener whose connections begin to talk.
type talking struct {
	net.Listener
	first string
}

func (l *talking) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		io.WriteString(c, l.first)
	}
	return c, err
}
