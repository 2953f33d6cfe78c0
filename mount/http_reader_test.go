package mount_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/mount/mounttest"
)

// TestHTTPTrailer: a stream that ends well as far as the protocol knows is an error if a
// trailer says so, and is not asked for again; other trailers change nothing.
// Proves S4.
func TestHTTPTrailer(t *testing.T) {
	content := mounttest.Content(1000)
	for name, tc := range map[string]struct {
		trailer, value string
		bad            bool
	}{
		"gateway":       {"X-Stream-Error", "ipld: could not find a block", true},
		"any error":     {"X-Backend-Error", "disk on fire", true},
		"exception":     {"X-Exception-Message", "NullPointer", true},
		"incomplete":    {"X-Incomplete", "true", true},
		"status":        {"X-Final-Status", "502", true},
		"grpc":          {"Grpc-Status", "13", true},
		"grpc well":     {"Grpc-Status", "0", false},
		"status well":   {"X-Final-Status", "200", false},
		"no error":      {"X-Error", "none", false},
		"empty":         {"X-Stream-Error", "", false},
		"digest":        {"X-Checksum", "sha256:00", false},
		"error's count": {"X-Error-Count", "0", false},
	} {
		for _, way := range []struct {
			name    string
			declare bool
			h2      bool
			rng     bool
		}{{name: "declared", declare: true}, {name: "undeclared"}, {name: "HTTP/2", declare: true, h2: true}, {name: "ranges", declare: true, rng: true}} {
			t.Run(name+", "+way.name, func(t *testing.T) {
				var requests atomic.Int32
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					requests.Add(1)
					if way.declare {
						w.Header().Set("Trailer", tc.trailer)
					}
					if from := r.Header.Get("Range"); way.rng && from != "" {
						to := 999
						if from == "bytes=0-0" {
							to = 0
						}
						w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/1000", to))
						w.WriteHeader(http.StatusPartialContent)
						w.(http.Flusher).Flush()
						w.Write(content[:to+1])
					} else {
						w.WriteHeader(200)
						w.(http.Flusher).Flush()
						w.Write(content)
					}
					w.(http.Flusher).Flush()
					if way.declare {
						w.Header().Set(tc.trailer, tc.value)
					} else {
						w.Header().Set(http.TrailerPrefix+tc.trailer, tc.value)
					}
				})
				s := httptest.NewUnstartedServer(h)
				o := &mount.HTTPOptions{BackOff: time.Microsecond}
				if way.h2 {
					s.EnableHTTP2 = true
					s.StartTLS()
					o.TLS = s.Client().Transport.(*http.Transport).TLSClientConfig
				} else {
					s.Start()
				}
				t.Cleanup(func() { o.CloseIdleConnections(); s.Close() })
				m := &mount.HTTPMount{URL: s.URL, Options: o}
				got, err := get(t.Context(), m)
				if !tc.bad {
					if err != nil || !bytes.Equal(got, content) {
						t.Errorf("%d bytes, %v", len(got), err)
					}
					return
				}
				if err == nil || !strings.Contains(err.Error(), tc.value) || mount.IsContent(err) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if n := requests.Load(); n > 2 {
					t.Errorf("%d requests for what the server says it cannot give", n)
				}
				if err := upgrade(t, m).Ensure(t.Context()); err == nil || !strings.Contains(err.Error(), tc.value) {
					t.Errorf("a copy was made of it: %v", err)
				}
			})
		}
	}
}

// listen serves raw TCP: each connection gets the next of the answers, the last one for
// ever, after its request has been read.
func listen(t testing.TB, answers ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			answerRaw(c, answers[min(i, len(answers)-1)])
		}
	}()
	return "http://" + l.Addr().String()
}

func answerRaw(c net.Conn, answer string) {
	defer c.Close()
	buf, head := make([]byte, 4096), ""
	for !strings.Contains(head, "\r\n\r\n") {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		head += string(buf[:n])
	}
	io.WriteString(c, answer)
}

// TestHTTPCutStreams: however a body can be cut, it is not taken for whole, nor is a copy
// made of it. Proves S4, R7.
func TestHTTPCutStreams(t *testing.T) {
	for name, tc := range map[string]struct {
		answer string
		size   int64
	}{
		"HTTP/1.0, no length":            {answer: "HTTP/1.0 200 OK\r\n\r\nabc"},
		"HTTP/1.0, chunked":              {answer: "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"},
		"HTTP/1.0, size known":           {answer: "HTTP/1.0 200 OK\r\n\r\nabc", size: 6},
		"HTTP/1.0, length short":         {answer: "HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nabc"},
		"HTTP/1.1, close":                {answer: "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"},
		"chunked, nothing after a chunk": {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"},
		"chunked, within a chunk":        {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabc"},
		"chunked, no end of the last":    {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"},
		"chunked, within the trailer":    {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Stream-Error\r\n\r\n3\r\nabc\r\n0\r\nX-Stream-Err"},
		"length short":                   {answer: "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc"},
		"nothing":                        {answer: "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"},
		"range, chunked":                 {answer: "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-5/6\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			o := &mount.HTTPOptions{BackOff: time.Microsecond, Retries: 2}
			t.Cleanup(o.CloseIdleConnections)
			m := &mount.HTTPMount{URL: listen(t, tc.answer), Size: tc.size, Options: o}
			if got, err := get(t.Context(), m); err == nil {
				t.Errorf("read %q without an error", got)
			}
			u := newUpgrader(t, fsio.NewSim(1), m, nil)
			if err := u.Ensure(t.Context()); err == nil || u.Present() || mount.IsContent(err) {
				t.Errorf("a copy was made of it, or it is told to be what the source is: %v", err)
			}
		})
	}
	t.Run("HTTP/2 reset", func(t *testing.T) {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte("abc"))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler) // RST_STREAM
		}))
		s.EnableHTTP2 = true
		s.StartTLS()
		o := &mount.HTTPOptions{BackOff: time.Microsecond, Retries: 1, TLS: s.Client().Transport.(*http.Transport).TLSClientConfig}
		t.Cleanup(func() { o.CloseIdleConnections(); s.Close() })
		if got, err := get(t.Context(), &mount.HTTPMount{URL: s.URL, Options: o}); err == nil {
			t.Errorf("read %q without an error", got)
		}
	})
}

// abort breaks the connection after so many bytes of the body.
func abort(w http.ResponseWriter, body []byte) {
	w.WriteHeader(200)
	w.Write(body)
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// TestHTTPWholeAgain: a stream without ranges that breaks off is begun again, as often as
// Retries says, and goes on where it broke if it is the same; one request more for each
// break. Proves S4, F1.
func TestHTTPWholeAgain(t *testing.T) {
	content := mounttest.Content(100_000)
	other := bytes.Clone(content)
	other[10]++
	for name, tc := range map[string]struct {
		breaks  int
		retries int
		size    bool   // Content-Length is sent
		now     []byte // what is served after the breaks
		want    error
		fail    bool
	}{
		"three times, chunked":  {breaks: 3, now: content},
		"three times, length":   {breaks: 3, now: content, size: true},
		"as often as allowed":   {breaks: 4, now: content},
		"once too often":        {breaks: 5, now: content, fail: true},
		"never tried again":     {breaks: 1, retries: -1, now: content, fail: true},
		"changed":               {breaks: 1, now: other, want: mount.ErrSourceChanged, fail: true},
		"shorter":               {breaks: 1, now: content[:1000], want: mount.ErrSourceChanged, fail: true},
		"shorter, length":       {breaks: 1, now: content[:1000], want: mount.ErrSourceChanged, fail: true, size: true},
		"longer, length":        {breaks: 1, now: append(bytes.Clone(content), 'x'), want: mount.ErrSourceChanged, fail: true, size: true},
		"longer, not yet known": {breaks: 1, now: append(bytes.Clone(content), 'x')}, // all that was read is of it
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int32
			url, o := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				k := int(n.Add(1))
				body := tc.now
				if k <= tc.breaks {
					body = content
				}
				if tc.size {
					w.Header().Set("Content-Length", fmt.Sprint(len(body)))
				}
				if k <= tc.breaks {
					abort(w, body[:50_000+k])
				}
				w.WriteHeader(200)
				w.(http.Flusher).Flush()
				w.Write(body)
			}))
			o.Retries = tc.retries
			m := &mount.HTTPMount{URL: url, Options: o}
			got, err := get(t.Context(), m)
			if tc.fail {
				if err == nil || tc.want != nil && !errors.Is(err, tc.want) || mount.IsContent(err) != (tc.want != nil) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				return
			}
			if err != nil || !bytes.Equal(got, tc.now) || int(n.Load()) != tc.breaks+1 {
				t.Errorf("%d bytes, %v, %d requests", len(got), err, n.Load())
			}
			n.Store(0)
			u := newUpgrader(t, fsio.NewSim(1), m, nil)
			if err := u.Ensure(t.Context()); err != nil || int(n.Load()) != tc.breaks+1 {
				t.Errorf("copy: %v, %d requests", err, n.Load())
			}
			wantCopy(t, u, tc.now)
		})
	}
}

// TestHTTPStallAgain: a stream that stalls is begun again too.
func TestHTTPStallAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		o := &mount.HTTPOptions{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if tries++; tries == 1 {
				return answerWith(200, nil, &stalledBody{r.Context(), strings.NewReader("abc")}), nil
			}
			return answerWith(200, nil, io.NopCloser(strings.NewReader("abcdef"))), nil
		})}
		if got, err := get(t.Context(), &mount.HTTPMount{URL: "http://h", Options: o}); err != nil || string(got) != "abcdef" || tries != 2 {
			t.Errorf("%q, %v, %d requests", got, err, tries)
		}
	})
}

// TestHTTPRequests: a copy takes as few requests as it can: one of a server that knows no
// ranges, also when Stat asked before, and one of a server that does, besides Stat's.
func TestHTTPRequests(t *testing.T) {
	content := mounttest.Content(100_000)
	for name, tc := range map[string]struct {
		h           http.Handler
		alone, stat int32
	}{
		"no ranges, length":  {serveWhole(content), 1, 1},
		"no ranges, chunked": {http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); w.Write(content) }), 1, 1},
		"ranges":             {serveRanges(content), 1, 2},
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int32
			url, o := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n.Add(1)
				tc.h.ServeHTTP(w, r)
			}))
			for _, counted := range []bool{false, true} {
				m := mount.Mount(&mount.HTTPMount{URL: url, Options: o})
				if counted {
					m = &mount.Counting{Mount: m}
				}
				n.Store(0)
				u := newUpgrader(t, fsio.NewSim(1), m, nil)
				if err := u.Ensure(t.Context()); err != nil || n.Load() != tc.alone {
					t.Errorf("%v, %d requests, want %d", err, n.Load(), tc.alone)
				}
				wantCopy(t, u, content)
				n.Store(0)
				if c, ok := m.(*mount.Counting); ok && c.Count() != 1 {
					t.Errorf("counted %d fetches", c.Count())
				}
				if err := u.Discard(); err != nil {
					t.Fatal(err)
				}
				if st, err := m.Stat(t.Context()); err != nil || !st.Ready {
					t.Fatal(st, err)
				}
				if err := u.Ensure(t.Context()); err != nil || n.Load() != tc.stat {
					t.Errorf("after Stat: %v, %d requests, want %d", err, n.Load(), tc.stat)
				}
				wantCopy(t, u, content)
			}
			m := &mount.HTTPMount{URL: url, Options: o}
			n.Store(0)
			if _, err := m.Stat(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, err := get(t.Context(), m); err != nil || !bytes.Equal(got, content) || n.Load() > 3 {
				t.Errorf("Stat and Fetch: %d bytes, %v, %d requests", len(got), err, n.Load())
			}
		})
	}
}

// TestHTTPParked: what Stat keeps is let go of after some seconds, by Close, by the next
// Stat and with the idle connections, and ends with the context of the Fetch that took it.
func TestHTTPParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Int32
		tries := 0
		o := &mount.HTTPOptions{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			open.Add(1)
			tries++
			return answerWith(200, nil, &closing{&stalledBody{r.Context(), strings.NewReader("abc")}, &open}), nil
		})}
		m := &mount.HTTPMount{URL: "http://h", Options: o}
		stat := func() {
			t.Helper()
			if st, err := m.Stat(t.Context()); err != nil || !st.Ready {
				t.Fatal(st, err)
			}
			if open.Load() != 1 {
				t.Fatalf("%d bodies are open", open.Load())
			}
		}
		stat()
		stat()
		time.Sleep(6 * time.Second) // synthetic
		synctest.Wait()
		if open.Load() != 0 {
			t.Errorf("%d bodies are kept", open.Load())
		}
		for _, end := range []func(){func() { m.Close() }, o.CloseIdleConnections} {
			stat()
			if end(); open.Load() != 0 {
				t.Errorf("%d bodies are kept", open.Load())
			}
		}
		stat()
		asked := tries
		if r, err := m.Fetch(t.Context()); err != nil || tries != asked {
			t.Errorf("%v, %d requests", err, tries-asked)
		} else {
			var b [3]byte
			n, err := io.ReadFull(r, b[:])
			r.Close()
			if string(b[:n]) != "abc" || err != nil || open.Load() != 0 {
				t.Errorf("%q, %v, %d open", b[:n], err, open.Load())
			}
		}
	})
}

type closing struct {
	io.ReadCloser
	open *atomic.Int32
}

func (c *closing) Close() error {
	if c.open != nil {
		c.open.Add(-1)
		c.open = nil
	}
	return c.ReadCloser.Close()
}

// dripping delivers a byte each interval, for ever.
type dripping struct {
	every time.Duration
	done  <-chan struct{}
}

func (d *dripping) Read(p []byte) (int, error) {
	select {
	case <-time.After(d.every):
		p[0] = 'x'
		return 1, nil
	case <-d.done:
		return 0, io.ErrUnexpectedEOF
	}
}
func (d *dripping) Close() error { return nil }

// TestHTTPDrips: an origin that drips is given up after about a minute, whether it does so
// in one body or in many, and one that delivers slowly but well is not.
func TestHTTPDrips(t *testing.T) {
	const size = 1 << 30
	ranged := func(r *http.Request, body func(from int64) io.ReadCloser) *http.Response {
		var from, to int64
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n < 2 {
			to = size - 1
		}
		resp := answerWith(206, http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", from, to, size)}, "Etag": {`"e"`}}, body(from))
		resp.ContentLength = to - from + 1
		return resp
	}
	oneByte := func(int64) io.ReadCloser { return io.NopCloser(io.MultiReader(strings.NewReader("x"), errReader{})) }
	for name, tc := range map[string]struct {
		opts     func(*mount.HTTPOptions)
		answer   func(r *http.Request) *http.Response
		want     error
		min, max time.Duration
		requests int
	}{
		"stream": {answer: func(r *http.Request) *http.Response {
			return answerWith(200, nil, &dripping{200 * time.Millisecond, r.Context().Done()})
		}, want: mount.ErrTooSlow, min: time.Minute, max: 62 * time.Second, requests: 1},
		"range": {answer: func(r *http.Request) *http.Response {
			return ranged(r, func(int64) io.ReadCloser { return &dripping{200 * time.Millisecond, r.Context().Done()} })
		}, want: mount.ErrTooSlow, min: time.Minute, max: 62 * time.Second, requests: 2},
		"just below the idle timeout": {answer: func(r *http.Request) *http.Response {
			return answerWith(200, nil, &dripping{29 * time.Second, r.Context().Done()})
		}, want: mount.ErrTooSlow, min: time.Minute, max: 90 * time.Second, requests: 1},
		"another rate": {opts: func(o *mount.HTTPOptions) { o.MinRate, o.RateWindow = 10, 5*time.Second }, answer: func(r *http.Request) *http.Response {
			return answerWith(200, nil, &dripping{200 * time.Millisecond, r.Context().Done()})
		}, want: mount.ErrTooSlow, min: 5 * time.Second, max: 6 * time.Second, requests: 1},
		"a byte for each request": {answer: func(r *http.Request) *http.Response { return ranged(r, oneByte) },
			want: errBroken, max: time.Minute, requests: 20},
		"a byte for each request, many tries": {opts: func(o *mount.HTTPOptions) {
			o.Retries, o.BackOff, o.MaxBackOff = 1e9, 10*time.Millisecond, 10*time.Millisecond
		},
			answer: func(r *http.Request) *http.Response { return ranged(r, oneByte) },
			want:   mount.ErrTooSlow, min: time.Minute, max: 62 * time.Second, requests: 13_000},
	} {
		for _, way := range []string{"Read", "ReadAt", "copy"} {
			t.Run(name+", "+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					requests := 0
					o := new(mount.HTTPOptions)
					if tc.opts != nil {
						tc.opts(o)
					}
					o.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
						requests++
						return tc.answer(r), nil
					})
					m := &mount.HTTPMount{URL: "http://h", Options: o}
					start := time.Now()
					var err error
					switch way {
					case "Read":
						_, err = get(t.Context(), m)
					case "copy":
						err = newUpgrader(t, fsio.NewSim(1), m, nil).Ensure(t.Context())
					case "ReadAt":
						r, ferr := m.Fetch(t.Context())
						if ferr != nil {
							t.Fatal(ferr)
						}
						defer r.Close()
						if _, err = r.ReadAt(make([]byte, 1<<20), 5); errors.Is(err, mount.ErrRandomAccessUnsupported) {
							return
						}
					}
					if took := time.Since(start); !errors.Is(err, tc.want) || took < tc.min || took > tc.max || requests > tc.requests {
						t.Errorf("%v after %s and %d requests", err, took, requests)
					}
				})
			})
		}
	}
	t.Run("slow but well", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			o := &mount.HTTPOptions{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				return answerWith(200, nil, io.NopCloser(readFunc(func(p []byte) (int, error) {
					if n++; n > 300 {
						return 0, io.EOF
					}
					time.Sleep(time.Second) // synthetic
					return min(len(p), 1100), nil
				}))), nil
			})}
			// Its user takes a day between two reads.
			r, err := (&mount.HTTPMount{URL: "http://h", Options: o}).Fetch(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var total int
			for err == nil {
				var k int
				k, err = r.Read(make([]byte, 4096))
				total += k
				time.Sleep(24 * time.Hour) // synthetic
			}
			if err != io.EOF || total != 300*1100 {
				t.Errorf("%d bytes, %v", total, err)
			}
		})
	})
}

var errBroken = errors.New("connection reset")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

// TestHTTPErrorsAreShort: what an origin sends decides neither the length of an error nor
// what it does to a terminal. Proves S10.
func TestHTTPErrorsAreShort(t *testing.T) {
	long := strings.Repeat("\x1b[31m\u202eevil ", 4000)
	for name, answer := range map[string]string{
		"status line":      "HTTP/1.1 " + long + "\r\n\r\n",
		"no HTTP":          long + "\r\n\r\n",
		"content length":   "HTTP/1.1 200 OK\r\nContent-Length: " + long + "\r\n\r\n",
		"header line":      "HTTP/1.1 200 OK\r\n" + long + "\r\n\r\n",
		"header name":      "HTTP/1.1 200 OK\r\nX " + long + ": a\r\n\r\n",
		"transfer coding":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + long + "\r\n\r\n",
		"content coding":   "HTTP/1.1 200 OK\r\nContent-Encoding: " + long + "\r\nContent-Length: 1\r\n\r\nx",
		"content range":    "HTTP/1.1 206 OK\r\nContent-Range: " + long + "\r\nContent-Length: 1\r\n\r\nx",
		"chunk":            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + long + "\r\n",
		"trailer":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Stream-Error: " + strings.ReplaceAll(long, "\x1b", "") + "\r\n\r\n",
		"trailer's name":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Error-" + strings.Repeat("a", 3500) + ": e\r\n\r\n",
		"location":         "HTTP/1.1 302 Found\r\nLocation: " + long + "\r\nContent-Length: 0\r\n\r\n",
		"retry after":      "HTTP/1.1 503 No\r\nRetry-After: " + long + "\r\nContent-Length: 0\r\n\r\n",
		"ETag, and others": "HTTP/1.1 206 Partial Content\r\nETag: " + strings.Repeat("a", 30_000) + "\r\nContent-Range: bytes 0-5/6\r\nContent-Length: 6\r\n\r\nabc",
	} {
		o := &mount.HTTPOptions{BackOff: time.Microsecond, Retries: 1}
		m := &mount.HTTPMount{URL: listen(t, answer, strings.ReplaceAll(answer, "aaaa", "bbbb")), Options: o}
		u := newUpgrader(t, fsio.NewSim(1), m, nil)
		_, err := get(t.Context(), m)
		for _, err := range []error{err, u.Ensure(t.Context())} {
			if err == nil {
				t.Errorf("%s: no error", name)
			} else if text := err.Error(); len(text) > 1200 || strings.ContainsAny(text, "\x1b\u202e\r\n") {
				t.Errorf("%s: %d bytes: %.300q", name, len(text), text)
			}
		}
		o.CloseIdleConnections()
	}
}
