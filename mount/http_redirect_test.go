package mount

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// serveAt serves h at an address of this machine's loopback network.
func serveAt(t *testing.T, ip string, h http.HandlerFunc) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatalf("no address %s here: %v", ip, err)
	}
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return "http://" + l.Addr().String()
}

// TestRedirectsToPrivate: an origin with a public address cannot send us to one that is
// not, at whichever hop, by whichever name, over no connection that is there already; one
// that is private may. Here 127.0.0.2 plays the public one. Proves S4, S5.
func TestRedirectsToPrivate(t *testing.T) {
	if isPublicWas := isPublic; true {
		isPublic = func(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.2") }
		defer func() { isPublic = isPublicWas }()
	}
	var reached atomic.Int32
	private := serveAt(t, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		io.WriteString(w, "secret")
	})
	var to string
	public := serveAt(t, "127.0.0.2", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good":
			io.WriteString(w, "secret")
		case "/twice":
			http.Redirect(w, r, "/", http.StatusFound)
		case "/well":
			http.Redirect(w, r, "/good", http.StatusFound)
		default:
			http.Redirect(w, r, to, http.StatusFound)
		}
	})
	privateToo := serveAt(t, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/by-public") {
			http.Redirect(w, r, public, http.StatusFound)
			return
		}
		http.Redirect(w, r, private, http.StatusFound)
	})
	port := private[strings.LastIndex(private, ":"):]
	o := &HTTPOptions{Retries: -1}
	fetch := func(o *HTTPOptions, at string) error {
		r, err := (&HTTPMount{URL: at, Options: o}).Fetch(t.Context())
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.ReadAll(r)
		return err
	}
	// A connection to the private one is open already.
	if err := fetch(o, private); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{
		private, "http://localhost" + port, "http://127.0.0.1" + port + "/x", "http://0.0.0.0" + port, "http://[::1]" + port,
		"http://[::ffff:127.0.0.1]" + port, "http://169.254.169.254/latest/meta-data", "http://10.0.0.1/", "http://[fe80::1]/", "http://LOCALHOST." + port,
	} {
		to = target
		for _, path := range []string{public, public + "/twice", privateToo + "/by-public"} {
			reached.Store(0)
			err := fetch(o, path)
			if !errors.Is(err, ErrAddressRefused) || reached.Load() != 0 {
				t.Errorf("%s to %s: %v, reached %d times", path, target, err, reached.Load())
			}
			if IsContent(err) {
				t.Errorf("that is not what the source is: %v", err)
			}
		}
		if at, _ := url.Parse(target); !strings.Contains(target, port) {
			continue
		} else if err := fetch(&HTTPOptions{Retries: -1, PrivateRedirects: true}, public); errors.Is(err, ErrAddressRefused) {
			t.Errorf("allowed, to %s: %v", at, err)
		}
	}
	to = private
	anywhere := &HTTPOptions{Retries: -1, PrivateRedirects: true}
	for at, o := range map[string]*HTTPOptions{public: anywhere, privateToo: o, public + "/well": o, public + "/good": o} {
		if err := fetch(o, at); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
	// What a name resolves to is judged when it is dialled; a proxy dials for itself.
	for direct, refused := range map[bool]bool{true: true, false: false} {
		req, err := http.NewRequestWithContext(context.WithValue(t.Context(), directKey{}, direct), "GET", private, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := o.redirectTransport().RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		if errors.Is(err, ErrAddressRefused) != refused {
			t.Errorf("direct %v: %v", direct, err)
		}
		o.CloseIdleConnections()
	}
	if rt, err := o.transportFor(&journey{public: true}, &http.Request{URL: &url.URL{Scheme: "http", Host: "h"}}); rt != o.redirectTransport() || err != nil {
		t.Errorf("a public origin's redirect is followed with %v, %v", rt, err)
	}
	// A Transport of others is judged by what it tells, or else by the digits.
	tr := &http.Transport{}
	for _, rt := range []http.RoundTripper{tr, untold{tr}} {
		if err := fetch(&HTTPOptions{Retries: -1, Transport: rt}, public); !errors.Is(err, ErrAddressRefused) {
			t.Errorf("with %T: %v", rt, err)
		}
		if err := fetch(&HTTPOptions{Retries: -1, Transport: rt}, privateToo); err != nil {
			t.Errorf("with %T: %v", rt, err)
		}
	}
	tr.CloseIdleConnections()
	anywhere.CloseIdleConnections()
	o.CloseIdleConnections()
}

// untold hides from who makes a request who answers it.
type untold struct{ rt http.RoundTripper }

func (u untold) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(context.Background())
	context.AfterFunc(r.Context(), cancel)
	return u.rt.RoundTrip(r.WithContext(ctx))
}

// TestProxiedIsPublic: who is asked through a proxy is taken for public, unless its URL
// has a private address.
func TestProxiedIsPublic(t *testing.T) {
	for at, public := range map[string]bool{
		"http://h/": true, "http://8.8.8.8/": true, "http://10.1.2.3/": false, "http://localhost:80/": false, "http://[::1]/": false,
	} {
		u, err := url.Parse(at)
		if err != nil {
			t.Fatal(err)
		}
		var j journey
		if j.passed(hop{remote: netip.MustParseAddr("10.0.0.9")}, u); j.public != public {
			t.Errorf("%s by a proxy at 10.0.0.9: public %v", at, j.public)
		}
		j = journey{}
		if j.passed(hop{direct: true, remote: netip.MustParseAddr("10.0.0.9")}, u); j.public {
			t.Errorf("%s at 10.0.0.9 is public", at)
		}
	}
}
