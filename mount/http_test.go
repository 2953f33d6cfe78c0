package mount_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/mount/mounttest"
)

// get fetches m and reads all of it, in the way asked for.
func get(ctx context.Context, m mount.Mount) ([]byte, error) {
	r, err := m.Fetch(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// raw answers with these bytes and closes the connection.
func raw(answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		buf.WriteString(answer)
		buf.Flush()
		conn.Close()
	}
}

// afterProbe answers probes as a decent server does, and the rest with h.
func afterProbe(content []byte, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") == "bytes=0-0" {
			serveRanges(content).ServeHTTP(w, r)
			return
		}
		h(w, r)
	}
}

// part is a 206 with these headers and body.
func part(contentRange, etag string, body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Range", contentRange)
		w.Header().Set("ETag", etag)
		w.WriteHeader(http.StatusPartialContent)
		w.Write(body)
	}
}

// TestHTTPHostile: whatever a server does wrong is an error, for a stream and at an
// offset, and never taken for content. Proves S4, R9 (no wrong bytes).
func TestHTTPHostile(t *testing.T) {
	content := mounttest.Content(1000)
	other := bytes.Repeat([]byte{'x'}, 1000)
	const etag = `"1000"`
	for name, tc := range map[string]struct {
		h    http.HandlerFunc
		want error
		size int64 // HTTPMount.Size
	}{
		"gzip unasked, whole": {h: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(other)
		}},
		"gzip unasked, part": {h: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			serveRanges(content).ServeHTTP(w, r)
		}},
		"gzip second": {h: func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Encoding"] = []string{"identity", "gzip"}
			w.Write(other)
		}},
		"two ranges": {h: func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Range"] = []string{"bytes 0-0/1000", "bytes 1-1/1000"}
			w.WriteHeader(http.StatusPartialContent)
			w.Write(other[:1])
		}},
		"gzip later": {h: afterProbe(content, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			part("bytes 0-999/1000", etag, other)(w, r)
		})},
		"other range":          {h: part("bytes 1-1/1000", etag, other[:1])},
		"other range later":    {h: afterProbe(content, part("bytes 1-999/1000", etag, other[:999]))},
		"longer range":         {h: part("bytes 0-1/1000", etag, other[:2])},
		"no Content-Range":     {h: part("", etag, other[:1])},
		"unit":                 {h: part("items 0-0/1000", etag, other[:1])},
		"sign":                 {h: part("bytes +0-0/1000", etag, other[:1])},
		"overflow":             {h: part("bytes 0-0/99999999999999999999", etag, other[:1])},
		"range beyond total":   {h: part("bytes 0-0/0", etag, other[:1])},
		"length contradicts":   {h: part("bytes 0-0/1000", etag, other[:7])},
		"whole, short":         {h: raw("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nxxx")},
		"whole, close, short":  {h: raw("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nxxx"), want: mount.ErrSizeMismatch, size: 1000},
		"whole, close, long":   {h: raw("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + string(other) + "x"), want: mount.ErrSizeMismatch, size: 1000},
		"whole, close, unsure": {h: raw("HTTP/1.0 200 OK\r\n\r\nxxx")},
		"chunked, torn":        {h: raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxxx\r\n")},
		"chunked, short":       {h: raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxxx\r\n0\r\n\r\n"), want: mount.ErrSizeMismatch, size: 1000},
		"not the size":         {h: serveRanges(content).ServeHTTP, want: mount.ErrSourceChanged, size: 999},
		"not the size, whole":  {h: serveWhole(content).ServeHTTP, want: mount.ErrSourceChanged, size: 1001},
		"endless": {h: func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(other); err != nil {
					return
				}
			}
		}, want: mount.ErrSizeMismatch},
		"too big, told":       {h: part("bytes 0-0/100000", etag, other[:1])},
		"huge, told":          {h: part("bytes 0-0/9223372036854775807", etag, other[:1])},
		"longer than told":    {h: afterProbe(content, part("bytes 0-999/1000", etag, append(bytes.Clone(other), "xxxxxxx"...)))},
		"grows":               {h: afterProbe(content, part("bytes 0-1000/1001", etag, append(bytes.Clone(other), 'x'))), want: mount.ErrSourceChanged},
		"short part":          {h: afterProbe(content, raw("HTTP/1.1 206 Partial Content\r\nETag: \"1000\"\r\nContent-Range: bytes 0-999/1000\r\nContent-Length: 1000\r\n\r\n"))},
		"short part, close":   {h: afterProbe(content, raw("HTTP/1.1 206 Partial Content\r\nETag: \"1000\"\r\nContent-Range: bytes 0-999/1000\r\nConnection: close\r\n\r\n")), want: io.ErrUnexpectedEOF},
		"ETag changes":        {h: afterProbe(content, part("bytes 0-999/1000", `"2"`, other)), want: mount.ErrSourceChanged},
		"ETag becomes weak":   {h: afterProbe(content, part("bytes 0-999/1000", `W/"1000"`, other)), want: mount.ErrSourceChanged},
		"ETag vanishes":       {h: afterProbe(content, part("bytes 0-999/1000", "", other)), want: mount.ErrSourceChanged},
		"size changes":        {h: afterProbe(content, part("bytes 0-999/1001", etag, other))},
		"total vanishes":      {h: afterProbe(content, part("bytes 0-999/*", etag, other)), want: mount.ErrSourceChanged},
		"precondition failed": {h: afterProbe(content, status(http.StatusPreconditionFailed)), want: mount.ErrSourceChanged},
		"shrinks":             {h: afterProbe(content, status(http.StatusRequestedRangeNotSatisfiable)), want: mount.ErrSourceChanged},
		"vanishes":            {h: afterProbe(content, status(http.StatusGone)), want: mount.ErrNotFound},
		"forgets ranges":      {h: afterProbe(content, serveWhole(other[:500]).ServeHTTP), want: mount.ErrSourceChanged},
		"refuses what exists": {h: part("bytes */1000", etag, nil)},
		"not HTTP":            {h: raw("\x00\x01\x02\x03")},
		"huge header":         {h: raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n")},
		"forbidden":           {h: status(http.StatusForbidden)},
		"broken for good":     {h: status(http.StatusInternalServerError)},
		"redirect to itself":  {h: redirect("")},
		"redirect to file":    {h: redirect("file:///etc/passwd")},
		"redirect to nothing": {h: status(http.StatusFound)},
		"redirect to bad URL": {h: redirect("http://[::1/%zz")},
		"not modified":        {h: status(http.StatusNotModified)},
		"no content":          {h: status(http.StatusNoContent)},
	} {
		t.Run(name, func(t *testing.T) {
			url, o := serve(t, tc.h)
			o.MaxSize, o.Retries, o.IdleTimeout = 50_000, 2, 10*time.Second
			m := &mount.HTTPMount{URL: url + "/", Size: tc.size, Options: o}
			got, err := get(t.Context(), m)
			if err == nil {
				t.Fatalf("read %d bytes without an error", len(got))
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("got %v; want %v", err, tc.want)
			}
			if r, err := m.Fetch(t.Context()); err == nil {
				defer r.Close()
				if n, err := r.ReadAt(make([]byte, 1000), 0); err == nil {
					t.Errorf("ReadAt read %d bytes without an error", n)
				}
			}
		})
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func redirect(to string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusFound)
	}
}

// TestHTTPAccepts: unusual but correct servers are read.
func TestHTTPAccepts(t *testing.T) {
	content := mounttest.Content(1000)
	body := string(content)
	for name, tc := range map[string]struct {
		h    http.HandlerFunc
		size int64
	}{
		"chunked, unknown size":  {h: raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + body + "\r\n0\r\n\r\n")},
		"close-delimited, known": {h: raw("HTTP/1.1 200 OK\r\n\r\n" + body), size: 1000},
		"identity coding": {h: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "Identity")
			serveRanges(content).ServeHTTP(w, r)
		}},
		"whole for a range from 0": {h: afterProbe(content, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"1000"`)
			serveWhole(content).ServeHTTP(w, r)
		})},
		"no validator": {h: func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		}},
		"total unknown, then whole": {h: func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				part("bytes 0-0/*", `"e"`, content[:1])(w, r)
				return
			}
			serveWhole(content).ServeHTTP(w, r)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			url, o := serve(t, tc.h)
			got, err := get(t.Context(), &mount.HTTPMount{URL: url, Size: tc.size, Options: o})
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
		})
	}
	t.Run("empty by 416", func(t *testing.T) {
		url, o := serve(t, func416(0))
		m := &mount.HTTPMount{URL: url, Options: o}
		st, err := m.Stat(t.Context())
		if got, gerr := get(t.Context(), m); gerr != nil || len(got) != 0 || err != nil || !st.Exists || st.Size != 0 {
			t.Errorf("%d bytes, %v; Stat %+v, %v", len(got), gerr, st, err)
		}
	})
}

func func416(total int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", total))
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
	}
}

// TestHTTPConditions: every request after the probe is bound to what the probe found,
// by the strongest condition there is. Proves S4.
func TestHTTPConditions(t *testing.T) {
	content := mounttest.Content(1000)
	modified := time.Unix(1e9, 0).UTC()
	for etag, want := range map[string]http.Header{
		`"strong"`: {"If-Match": {`"strong"`}},
		`W/"weak"`: {"If-Unmodified-Since": {modified.Format(http.TimeFormat)}},
		"":         {"If-Unmodified-Since": {modified.Format(http.TimeFormat)}},
	} {
		var later []http.Header
		url, o := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "bytes=0-0" {
				later = append(later, r.Header.Clone())
			}
			if r.Header.Get("Accept-Encoding") != "identity" {
				t.Errorf("Accept-Encoding %q", r.Header.Get("Accept-Encoding"))
			}
			if etag != "" {
				w.Header().Set("ETag", etag)
			}
			http.ServeContent(w, r, "", modified, bytes.NewReader(content))
		}))
		r, err := (&mount.HTTPMount{URL: url, Options: o}).Fetch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.ReadAt(make([]byte, 10), 500)
		io.ReadAll(r)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if len(later) != 2 {
			t.Fatalf("%d requests after the probe, want 2", len(later))
		}
		for i, rng := range []string{"bytes=500-509", "bytes=0-"} {
			if got := later[i].Get("Range"); got != rng {
				t.Errorf("Range %q, want %q", got, rng)
			}
			for _, name := range []string{"If-Match", "If-Unmodified-Since"} {
				if !slices.Equal(later[i][name], want[name]) {
					t.Errorf("ETag %s: %s is %q, want %q", etag, name, later[i][name], want[name])
				}
			}
		}
	}
}

// TestUpgraderOfChangingOrigin: an origin that changes while it is copied, for good or
// for one request, leaves no copy, and the next fetch copies what is there then. Proves
// S4, F1, F30 (the source side).
func TestUpgraderOfChangingOrigin(t *testing.T) {
	contents := [][]byte{mounttest.Content(300_000), bytes.Repeat([]byte("new"), 100_000)}
	var requests, version atomic.Int32
	url, o := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 3 { // Stat and the probe of Fetch came before
			version.Store(1)
		}
		v := version.Load()
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, v))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(contents[v]))
	}))
	u := upgrade(t, &mount.HTTPMount{URL: url, Options: o})
	if err := u.Ensure(t.Context()); !errors.Is(err, mount.ErrSourceChanged) || u.Present() {
		t.Fatalf("got %v, present %v", err, u.Present())
	}
	if got, err := get(t.Context(), u); err != nil || !bytes.Equal(got, contents[1]) {
		t.Errorf("the next fetch reads %d bytes, %v", len(got), err)
	}
}

// TestHTTPResume: a stream that breaks every few hundred bytes is resumed where it
// broke, by requests bound to the same representation, for Read and for ReadAt.
// Proves S4.
func TestHTTPResume(t *testing.T) {
	content := mounttest.Content(5000)
	var requests atomic.Int32
	url, o := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := requests.Add(1)
		if n > 1 && r.Header.Get("If-Match") != `"5000"` {
			t.Errorf("request %d is not bound to the representation", n)
		}
		if n%3 == 0 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		serveRanges(content).ServeHTTP(&breakingWriter{ResponseWriter: w, left: 700}, r)
	}))
	r, err := (&mount.HTTPMount{URL: url, Options: o}).Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		t.Errorf("Read: %d bytes, %v", len(got), err)
	}
	p := make([]byte, 4000)
	if n, err := r.ReadAt(p, 900); err != nil || !bytes.Equal(p, content[900:4900]) {
		t.Errorf("ReadAt: %d bytes, %v", n, err)
	}
}

// breakingWriter breaks the connection after some bytes.
type breakingWriter struct {
	http.ResponseWriter
	left int
}

func (w *breakingWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		w.ResponseWriter.Write(p[:w.left])
		w.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	w.left -= len(p)
	return w.ResponseWriter.Write(p)
}

// TestHTTPRedirectSecrets: what is meant for the origin goes nowhere else; what is
// not secret goes along. Proves S4, S6.
func TestHTTPRedirectSecrets(t *testing.T) {
	content := mounttest.Content(100)
	var elsewhere, here atomic.Int32
	target, o2 := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		elsewhere.Add(1)
		for name, values := range r.Header {
			for _, v := range values {
				if strings.Contains(v, "s3cret") {
					t.Errorf("the other origin was sent %s: %s", name, v)
				}
			}
		}
		if r.Header.Get("Referer") != "" || r.Header.Get("Authorization") != "" || r.Header.Get("Range") == "" {
			t.Errorf("the other origin was sent %v", r.Header)
		}
		serveRanges(content).ServeHTTP(w, r)
	}))
	o2.CloseIdleConnections()
	origin, o := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		here.Add(1)
		if _, password, _ := r.BasicAuth(); password != "s3cret" || r.Header.Get("X-Token") != "s3cret" || r.Header.Get("Referer") != "" {
			t.Errorf("the origin was sent %v", r.Header)
		}
		if r.URL.Path == "/start" {
			http.Redirect(w, r, "/second", http.StatusTemporaryRedirect)
			return
		}
		http.Redirect(w, r, strings.Replace(target, "http://", "http://user:s3cret@", 1)+"/third", http.StatusFound)
	}))
	o.Header = http.Header{"x-token": {"s3cret"}}
	o.Resolve = func(_ context.Context, u *url.URL) (*url.URL, error) {
		u.User, u.RawQuery = url.UserPassword("me", "s3cret"), "sig=s3cret"
		return u, nil
	}
	got, err := get(t.Context(), &mount.HTTPMount{URL: origin + "/start", Options: o})
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if here.Load() != 4 || elsewhere.Load() != 2 {
		t.Errorf("%d and %d requests, want 4 and 2", here.Load(), elsewhere.Load())
	}
}

// TestHTTPNoDowngrade: https never leads to http. Proves S4.
func TestHTTPNoDowngrade(t *testing.T) {
	plain, _ := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the http target was asked") }))
	s := httptest.NewUnstartedServer(redirect(plain))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of the refused handshake
	s.StartTLS()
	defer s.Close()
	o := &mount.HTTPOptions{TLS: s.Client().Transport.(*http.Transport).TLSClientConfig}
	defer o.CloseIdleConnections()
	if _, err := get(t.Context(), &mount.HTTPMount{URL: s.URL, Options: o}); err == nil || !strings.Contains(err.Error(), "https to http") {
		t.Errorf("got %v", err)
	}
	// A server that cannot prove its name is not asked again and again.
	o2 := &mount.HTTPOptions{BackOff: time.Hour}
	if _, err := get(t.Context(), &mount.HTTPMount{URL: s.URL, Options: o2}); err == nil {
		t.Error("an unverified certificate is accepted")
	}
	// Redirects up to the limit are followed, one more is not.
	for hops, ok := range map[int]bool{3: true, 4: false} {
		var url string
		var opts *mount.HTTPOptions
		n := 0
		url, opts = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n++; n <= hops {
				http.Redirect(w, r, "/again", http.StatusFound)
				return
			}
			serveWhole([]byte("x")).ServeHTTP(w, r)
		}))
		if _, err := get(t.Context(), &mount.HTTPMount{URL: url, Options: opts}); (err == nil) != ok {
			t.Errorf("%d redirects: %v", hops, err)
		}
	}
}

// TestHTTPKeepsSecrets: no error of any kind repeats a secret, and no URL that would
// be stored holds one. Proves S6 (here).
func TestHTTPKeepsSecrets(t *testing.T) {
	secret := "s3cret"
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	check := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: no error", what)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error repeats the secret: %v", what, err)
		}
	}
	query := "/p?sig=" + secret + "&x=" + secret
	for name, h := range map[string]http.Handler{
		"403": status(403), "500": status(500), "404": status(404), "412": status(412), "503": status(503),
		"bad redirect": redirect("http://h:bad" + query), "ftp redirect": redirect("ftp://h" + query), "loop": redirect(query),
		"range": part("bytes 9-9/10", "", []byte("x")), "raw": raw("junk"), "short": raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
		"unreachable redirect": redirect(dead.URL + query),
	} {
		url, o := serve(t, h)
		o.Retries, o.Header = 1, http.Header{"Authorization": {secret}}
		_, err := get(t.Context(), &mount.HTTPMount{URL: url + query, Options: o})
		check(name, err)
	}
	for _, u := range []string{
		dead.URL + query, "http://user:" + secret + "@h" + query, "http://h:bad" + query, "://" + query, "http://" + secret + "%zz/",
		"gopher://h" + query, "http:///" + query, "http://h\x7f" + query,
	} {
		m := &mount.HTTPMount{URL: u, Options: &mount.HTTPOptions{Retries: -1}}
		_, err := get(t.Context(), m)
		check(u, err)
		_, err = m.Stat(t.Context())
		check(u, err)
		if s := m.Serialize().String(); strings.Contains(s, "sig=") || strings.Contains(s, secret+"@") {
			t.Errorf("%q would be stored as %q", u, s)
		}
	}
	o := &mount.HTTPOptions{Retries: -1, Resolve: func(context.Context, *url.URL) (*url.URL, error) {
		_, err := url.Parse("http://%zz" + secret)
		return nil, err
	}}
	_, err := get(t.Context(), &mount.HTTPMount{URL: "http://h", Options: o})
	check("Resolve", err)
	o = &mount.HTTPOptions{Retries: -1, Header: http.Header{"X": {secret + "\n"}}}
	_, err = get(t.Context(), &mount.HTTPMount{URL: dead.URL, Options: o})
	check("header", err)

	o = &mount.HTTPOptions{Retries: -1, Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		return nil, fmt.Errorf("sign: %w", &url.Error{Op: "Get", URL: r.URL.String(), Err: io.ErrUnexpectedEOF})
	})}
	_, err = get(t.Context(), &mount.HTTPMount{URL: "http://h" + query, Options: o})
	check("transport", err)

	reg := registry(t, map[string]mount.Mount{"https": &mount.HTTPMount{Options: &mount.HTTPOptions{Header: http.Header{"Authorization": {secret}}}}})
	u, err := reg.Represent(&mount.HTTPMount{URL: "https://h/a?b=1&X-Amz-Signature=s3cret&c=%20&x-amz-CREDENTIAL=s3cret&tok%65n=s3cret&d#s3cret"})
	if err != nil || u.String() != "https://h/a?b=1&c=%20&d" {
		t.Errorf("represented as %q, %v", u, err)
	}
	var m mount.HTTPMount
	check("Deserialize", m.Deserialize(&url.URL{Scheme: "http", Host: "h", User: url.UserPassword("u", secret)}))
}

// TestHTTPStat: what a source is, told from the status. Proves S4 (no HEAD).
func TestHTTPStat(t *testing.T) {
	after := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(code)
		}
	}
	for name, tc := range map[string]struct {
		h    http.HandlerFunc
		want mount.Stat
		fail bool
	}{
		"ranges":       {h: serveRanges(make([]byte, 77)).ServeHTTP, want: mount.Stat{Exists: true, Size: 77, Ready: true}},
		"whole":        {h: serveWhole(make([]byte, 77)).ServeHTTP, want: mount.Stat{Exists: true, Size: 77, Ready: true}},
		"size unknown": {h: raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), want: mount.Stat{Exists: true, Ready: true}},
		"not found":    {h: status(404)},
		"gone":         {h: status(410)},
		"accepted":     {h: status(202), want: mount.Stat{Exists: true}},
		"come again":   {h: after(503), want: mount.Stat{Exists: true}},
		"overloaded":   {h: status(503), fail: true},
		"forbidden":    {h: status(403), fail: true},
		"HEAD refused": {h: func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet {
				t.Errorf("asked with %s", r.Method)
			}
			serveRanges([]byte("x")).ServeHTTP(w, r)
		}, want: mount.Stat{Exists: true, Size: 1, Ready: true}},
	} {
		t.Run(name, func(t *testing.T) {
			url, o := serve(t, tc.h)
			o.Retries = 1
			st, err := (&mount.HTTPMount{URL: url, Options: o}).Stat(t.Context())
			if (err != nil) != tc.fail || st != tc.want {
				t.Errorf("got %+v, %v", st, err)
			}
		})
	}
}

// roundTripper answers in memory, so that time can be synthetic.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answerWith makes a response.
func answerWith(code int, header http.Header, body io.ReadCloser) *http.Response {
	if header == nil {
		header = http.Header{}
	}
	if body == nil {
		body = http.NoBody
	}
	return &http.Response{StatusCode: code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: header, Body: body, ContentLength: -1, TransferEncoding: []string{"chunked"}}
}

// TestHTTPRetryTiming: pauses grow, are jittered and bounded; Retry-After is honoured
// within limits and reported beyond them; the context ends a pause. Proves S4.
func TestHTTPRetryTiming(t *testing.T) {
	type attempt struct {
		code  int
		after string
	}
	second := time.Second
	for name, tc := range map[string]struct {
		attempts []attempt
		min, max time.Duration
		tries    int
		fail     bool
		opts     *mount.HTTPOptions
	}{
		"429 twice":        {attempts: []attempt{{429, "7"}, {429, "3"}}, min: 10 * second, max: 10 * second, tries: 3},
		"date":             {attempts: []attempt{{503, "date"}}, min: 20 * second, max: 20 * second, tries: 2},
		"date in the past": {attempts: []attempt{{503, "Fri, 01 Jan 1999 00:00:00 GMT"}}, min: second, max: second, tries: 2},
		"zero":             {attempts: []attempt{{429, "0"}}, min: second, max: second, tries: 2},
		"junk":             {attempts: []attempt{{503, "soon"}}, min: 100 * time.Millisecond, max: 200 * time.Millisecond, tries: 2},
		"growing":          {attempts: []attempt{{500, ""}, {502, ""}, {504, ""}, {408, ""}}, min: 1500 * time.Millisecond, max: 3 * second, tries: 5},
		"bounded":          {attempts: []attempt{{500, ""}, {500, ""}, {500, ""}, {500, ""}, {500, ""}}, min: 1500 * time.Millisecond, max: 3 * second, tries: 5, fail: true},
		"bounded pause":    {attempts: slices.Repeat([]attempt{{500, ""}}, 20), opts: &mount.HTTPOptions{Retries: 20, MaxBackOff: second}, min: 9 * second, max: 20 * second, tries: 21},
		"never":            {attempts: []attempt{{500, ""}}, opts: &mount.HTTPOptions{Retries: -1}, tries: 1, fail: true},
		"too long":         {attempts: []attempt{{429, "61"}}, tries: 1, fail: true},
		"absurd":           {attempts: []attempt{{429, "9223372036854775807"}}, tries: 1, fail: true},
		"not ready":        {attempts: []attempt{{202, "5"}}, min: 5 * second, max: 5 * second, tries: 2},
		"refused":          {attempts: []attempt{{403, "5"}}, tries: 1, fail: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				o := tc.opts
				if o == nil {
					o = new(mount.HTTPOptions)
				}
				o.Transport = roundTripper(func(*http.Request) (*http.Response, error) {
					tries++
					if tries > len(tc.attempts) {
						return answerWith(200, nil, io.NopCloser(strings.NewReader("x"))), nil
					}
					a := tc.attempts[tries-1]
					if a.after == "date" {
						a.after = time.Now().Add(20 * second).UTC().Format(http.TimeFormat)
					}
					return answerWith(a.code, http.Header{"Retry-After": {a.after}}, nil), nil
				})
				start := time.Now()
				_, err := get(t.Context(), &mount.HTTPMount{URL: "http://h", Options: o})
				if took := time.Since(start); took < tc.min || took > tc.max {
					t.Errorf("took %v, want %v to %v", took, tc.min, tc.max)
				}
				if (err != nil) != tc.fail || tries != tc.tries {
					t.Errorf("%d attempts, %v; want %d", tries, err, tc.tries)
				}
				var he *mount.HTTPError
				if tc.fail && !errors.As(err, &he) {
					t.Errorf("%T is not an HTTPError", err)
				}
				if name == "too long" && he.RetryAfter != 61*second {
					t.Errorf("the error says %v", he.RetryAfter)
				}
			})
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			o := &mount.HTTPOptions{Transport: roundTripper(func(*http.Request) (*http.Response, error) {
				return answerWith(503, http.Header{"Retry-After": {"50"}}, nil), nil
			})}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			if _, err := get(ctx, &mount.HTTPMount{URL: "http://h", Options: o}); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		})
	})
}

// stalledBody delivers some bytes and then nothing until ctx ends.
type stalledBody struct {
	ctx  context.Context
	data io.Reader
}

func (b *stalledBody) Read(p []byte) (int, error) {
	if n, err := b.data.Read(p); err == nil {
		return n, nil
	}
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

func (b *stalledBody) Close() error { return nil }

// TestHTTPStall: a server that goes silent, before the header or within the body, is
// given up after the timeout; Close and the context end the wait at once. Proves S4.
func TestHTTPStall(t *testing.T) {
	silent := roundTripper(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	stalls := roundTripper(func(r *http.Request) (*http.Response, error) {
		return answerWith(200, nil, &stalledBody{r.Context(), strings.NewReader("abc")}), nil
	})
	t.Run("header", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			o := &mount.HTTPOptions{Transport: silent, Retries: -1, HeaderTimeout: 5 * time.Second}
			_, err := get(t.Context(), &mount.HTTPMount{URL: "http://h", Options: o})
			if !errors.Is(err, mount.ErrStalled) || time.Since(start) != 5*time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		})
	})
	t.Run("body", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			o := &mount.HTTPOptions{Transport: stalls, Retries: -1, IdleTimeout: 7 * time.Second}
			got, err := get(t.Context(), &mount.HTTPMount{URL: "http://h", Options: o})
			if !errors.Is(err, mount.ErrStalled) || string(got) != "abc" || time.Since(start) != 7*time.Second {
				t.Errorf("%q, %v after %v", got, err, time.Since(start))
			}
		})
	})
	for name, end := range map[string]func(mount.Reader, context.CancelFunc){
		"closed":    func(r mount.Reader, _ context.CancelFunc) { r.Close() },
		"cancelled": func(_ mount.Reader, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				r, err := (&mount.HTTPMount{URL: "http://h", Options: &mount.HTTPOptions{Transport: stalls}}).Fetch(ctx)
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan error)
				go func() {
					_, err := io.ReadAll(r)
					done <- err
				}()
				synctest.Wait()
				start := time.Now()
				end(r, cancel)
				if err := <-done; !errors.Is(err, mount.ErrClosed) && !errors.Is(err, context.Canceled) || time.Since(start) != 0 {
					t.Errorf("%v after %v", err, time.Since(start))
				}
				r.Close()
			})
		})
	}
}

// TestHTTPResolve: expiring URLs are asked for again, and a refusal asks at once for
// a fresh one; the stored URL is not changed by it.
func TestHTTPResolve(t *testing.T) {
	content := mounttest.Content(100)
	var mu sync.Mutex
	valid := 0
	url1, o := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		ok := r.URL.Query().Get("token") == fmt.Sprint(valid)
		mu.Unlock()
		if !ok || r.URL.Path != "/a" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		serveRanges(content).ServeHTTP(w, r)
	}))
	asked := 0
	o.Resolve = func(_ context.Context, u *url.URL) (*url.URL, error) {
		mu.Lock()
		defer mu.Unlock()
		if asked++; asked%2 == 0 {
			valid++ // this one expires before it is used
			u.RawQuery = fmt.Sprintf("token=%d", valid-1)
			return u, nil
		}
		u.RawQuery = fmt.Sprintf("token=%d", valid)
		return u, nil
	}
	m := &mount.HTTPMount{URL: url1 + "/a", Options: o}
	got, err := get(t.Context(), m)
	if err != nil || !bytes.Equal(got, content) || asked != 3 {
		t.Errorf("%d bytes, %v, asked %d times; want 3", len(got), err, asked)
	}
	if m.URL != url1+"/a" {
		t.Errorf("the stored URL became %q", m.URL)
	}
	o.Resolve = func(context.Context, *url.URL) (*url.URL, error) { return &url.URL{Scheme: "ftp", Host: "h"}, nil }
	if _, err := get(t.Context(), m); err == nil {
		t.Error("a URL that is not HTTP is accepted from Resolve")
	}
}

// TestPublicOnly covers the forms that S5 names. Proves S5.
func TestPublicOnly(t *testing.T) {
	for _, text := range []string{
		"127.0.0.1", "127.255.255.254", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1",
		"100.127.255.255", "198.18.0.1", "198.19.255.255", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1",
		"::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b:1::1",
		"2002:7f00:1::", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "2001::1", "2001:db8::1", "100::1",
	} {
		if err := mount.PublicOnly(netip.MustParseAddr(text)); !errors.Is(err, mount.ErrAddressRefused) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "198.20.0.1", "2606:4700::1111", "2001:4860:4860::8888", "2a00:1450::1"} {
		if err := mount.PublicOnly(netip.MustParseAddr(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := mount.PublicOnly(netip.Addr{}); err == nil {
		t.Error("the zero address is admitted")
	}
}

// TestHTTPPolicy: the policy sees the address that is dialled, after resolution and
// redirects, its refusal is final, and no proxy dials instead. Proves S4, S5.
func TestHTTPPolicy(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	url, _ := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the server was reached") }))
	_, port, _ := strings.Cut(strings.TrimPrefix(url, "http://"), ":")
	for _, host := range []string{"127.0.0.1", "localhost", "0x7f.1", "127.1"} {
		o := &mount.HTTPOptions{Policy: mount.PublicOnly, BackOff: time.Hour, Retries: 1}
		if host == "0x7f.1" || host == "127.1" {
			o.Retries = -1 // resolvers differ about these; none may reach the server
		}
		_, err := get(t.Context(), &mount.HTTPMount{URL: "http://" + host + ":" + port, Options: o})
		if err == nil || o.Retries == 1 && !errors.Is(err, mount.ErrAddressRefused) {
			t.Errorf("%s: %v; want ErrAddressRefused at once", host, err)
		}
	}
	seen := 0
	o := &mount.HTTPOptions{Policy: func(a netip.Addr) error { seen++; return nil }}
	ok, _ := serve(t, serveWhole([]byte("x")))
	if _, err := get(t.Context(), &mount.HTTPMount{URL: ok, Options: o}); err != nil || seen == 0 {
		t.Errorf("admitted address: %v, judged %d times", err, seen)
	}
	o.CloseIdleConnections()
	both := &mount.HTTPOptions{Policy: mount.PublicOnly, Transport: http.DefaultTransport}
	if _, err := get(t.Context(), &mount.HTTPMount{URL: ok, Options: both}); err == nil {
		t.Error("a policy that a foreign transport would ignore is accepted")
	}
}
