package mount_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/dagstore/dagstore/mount"
)

// TestErrorKinds: an error says what the source is, that this machine is short of
// something, or neither; however it is wrapped, and what it is joined with.
func TestErrorKinds(t *testing.T) {
	type kind struct{ content, shortage bool }
	passing, content, shortage := kind{}, kind{content: true}, kind{shortage: true}
	path := func(err error) error { return &fs.PathError{Op: "open", Path: "a", Err: err} }
	socket := func(err error) error {
		return &url.Error{Op: "Get", URL: "http://h", Err: &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", err)}}
	}
	for _, tc := range []struct {
		err  error
		want kind
	}{
		{nil, passing},
		{errors.New("of a mount of others"), passing},
		{path(syscall.ENOENT), passing},
		{path(syscall.ESTALE), passing},
		{path(syscall.EACCES), passing},
		{path(syscall.EIO), passing},
		{path(syscall.ENOTDIR), passing},
		{socket(syscall.ECONNREFUSED), passing},
		{&net.DNSError{Err: "no such host", Name: "h", IsNotFound: true}, passing},
		{context.DeadlineExceeded, passing},
		{context.Canceled, passing},
		{io.ErrUnexpectedEOF, passing},
		{mount.ErrStalled, passing},
		{mount.ErrNotFound, passing},
		{mount.ErrClosed, passing},
		{mount.ErrDiscarded, passing},
		{mount.ErrUnrecognizedScheme, passing},
		{mount.ErrAddressRefused, passing},
		{fmt.Errorf("%w: it ended after 3 of 4 bytes: %w", mount.ErrSizeMismatch, io.ErrUnexpectedEOF), passing},
		{&mount.HTTPError{Code: 404, Err: mount.ErrNotFound}, passing},
		{&mount.HTTPError{Code: 401}, passing},
		{&mount.HTTPError{Code: 503}, passing},

		{mount.ErrSourceChanged, content},
		{&mount.HTTPError{Code: 412, Err: mount.ErrSourceChanged}, content},
		{mount.ErrSizeMismatch, content},
		{mount.ErrTooLarge, content},
		{mount.ErrNotRegular, content},
		{mount.ErrOutsideRoots, content},
		{mount.ErrMalformedURL, content},

		{syscall.EMFILE, shortage},
		{path(syscall.ENFILE), shortage},
		{path(syscall.ENOSPC), shortage},
		{path(syscall.EDQUOT), shortage},
		{&os.LinkError{Op: "rename", Err: syscall.ENOSPC}, shortage},
		{os.NewSyscallError("mmap", syscall.ENOMEM), shortage},
		{socket(syscall.EMFILE), shortage},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "dial udp 127.0.0.53:53: socket: too many open files"}}, shortage},

		{errors.Join(path(syscall.ENOENT), mount.ErrSourceChanged), content},
		{errors.Join(mount.ErrSourceChanged, context.Canceled), content},
		{errors.Join(path(syscall.EIO), fmt.Errorf("b: %w", path(syscall.EMFILE))), shortage},
		{errors.Join(mount.ErrNotRegular, syscall.EMFILE), kind{true, true}},
	} {
		for _, err := range []error{tc.err, wrap(tc.err), errors.Join(tc.err, errors.New("and another"))} {
			if got := (kind{mount.IsContent(err), mount.IsShortage(err)}); got != tc.want {
				t.Errorf("%#v (%v): content and shortage are %v, want %v", err, err, got, tc.want)
			}
		}
	}
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("failed to fetch from mount: %w", fmt.Errorf("once more: %w", err))
}

// TestErrorKindsOfMounts: what the mounts themselves return, of real files and servers,
// is of the right kind.
func TestErrorKindsOfMounts(t *testing.T) {
	dir := t.TempDir()
	file := writeFile(t, "a", []byte("x"))
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	server := func(h http.HandlerFunc) mount.Mount {
		at, o := serve(t, h)
		o.Retries, o.MaxSize = -1, 50
		return &mount.HTTPMount{URL: at, Options: o}
	}
	once := &mount.HTTPOptions{Retries: -1}
	t.Cleanup(once.CloseIdleConnections)
	for name, tc := range map[string]struct {
		m       mount.Mount
		content bool
	}{
		"missing file":  {&mount.FileMount{Path: filepath.Join(dir, "missing")}, false},
		"below a file":  {&mount.FileMount{Path: file + "/below"}, false},
		"directory":     {&mount.FileMount{Path: dir}, true},
		"outside roots": {&mount.FileMount{Path: file, Roots: []string{dir}}, true},
		"refused":       {&mount.HTTPMount{URL: dead.URL, Options: once}, false},
		"not HTTP":      {&mount.HTTPMount{URL: "gopher://h/", Options: once}, true},
		"no host":       {&mount.HTTPMount{URL: "http:///x", Options: once}, true},
		"unparsable":    {&mount.HTTPMount{URL: "http://h:port/", Options: once}, true},
		"user":          {&mount.HTTPMount{URL: "http://me:pw@h/", Options: once}, true},
		"401":           {server(status(401)), false},
		"403":           {server(status(403)), false},
		"404":           {server(status(404)), false},
		"410":           {server(status(410)), false},
		"429":           {server(status(429)), false},
		"500":           {server(status(500)), false},
		"breaks off":    {server(raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nxxx")), false},
		"nonsense":      {server(raw("nonsense")), false},
		"bad redirect":  {server(redirect("file:///etc/passwd")), false},
		"too large":     {server(serveRanges(make([]byte, 51)).ServeHTTP), true},
		"too long": {server(func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			w.Write(make([]byte, 51))
		}), true},
	} {
		_, err := get(t.Context(), tc.m)
		if err == nil || mount.IsContent(err) != tc.content || mount.IsShortage(err) {
			t.Errorf("%s: %v; content %v, shortage %v; want content %v", name, err, mount.IsContent(err), mount.IsShortage(err), tc.content)
		}
	}
	if _, err := mount.ParseURL("http://h:port/"); !mount.IsContent(err) {
		t.Errorf("a text that is no URL: %v", err)
	}
	for _, u := range []*url.URL{{Scheme: "ftp", Host: "h"}, {Scheme: "http"}, {Scheme: "http", Host: "h", User: url.User("u")}} {
		if err := new(mount.HTTPMount).Deserialize(u); !mount.IsContent(err) {
			t.Errorf("Deserialize %v: %v", u, err)
		}
	}
	for _, err := range []error{new(mount.FileMount).Deserialize(new(url.URL)), new(mount.FSMount).Deserialize(new(url.URL)), new(mount.BytesMount).Deserialize(&url.URL{Opaque: "%"})} {
		if !mount.IsContent(err) {
			t.Errorf("a URL without a path: %v", err)
		}
	}
	// What Resolve returns is environment.
	for name, u := range map[string]*url.URL{"nothing": nil, "ftp": {Scheme: "ftp", Host: "h"}} {
		o := &mount.HTTPOptions{Retries: -1, Resolve: func(context.Context, *url.URL) (*url.URL, error) { return u, nil }}
		if _, err := get(t.Context(), &mount.HTTPMount{URL: "http://h/", Options: o}); err == nil || mount.IsContent(err) {
			t.Errorf("Resolve returned %s: %v", name, err)
		}
	}
}

// TestRetryAfter: what an origin said is told, bounded.
func TestRetryAfter(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want time.Duration
	}{
		{nil, 0},
		{io.EOF, 0},
		{&mount.HTTPError{Code: 503}, 0},
		{wrap(&mount.HTTPError{Code: 429, RetryAfter: 7 * time.Second}), 7 * time.Second},
		{errors.Join(io.EOF, &mount.HTTPError{RetryAfter: time.Second}, wrap(&mount.HTTPError{RetryAfter: time.Minute})), time.Minute},
		{&mount.HTTPError{Code: 503, RetryAfter: 365 * 24 * time.Hour}, time.Hour},
		{(*mount.HTTPError)(nil), 0},
	} {
		if he, ok := tc.err.(*mount.HTTPError); ok && he == nil {
			tc.err = nil // a typed nil below is what wrapping would meet
		}
		if got, ok := mount.RetryAfter(tc.err); got != tc.want || ok != (tc.want > 0) {
			t.Errorf("%v: %s, %v; want %s", tc.err, got, ok, tc.want)
		}
	}
	for _, header := range []string{"5", "99999999999", "Fri, 31 Dec 2199 23:59:59 GMT"} {
		at, o := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", header)
			w.WriteHeader(http.StatusTooManyRequests)
		}))
		o.Retries = -1
		_, err := get(t.Context(), &mount.HTTPMount{URL: at, Options: o})
		if got, ok := mount.RetryAfter(wrap(err)); !ok || got < 5*time.Second || got > time.Hour {
			t.Errorf("Retry-After %q: %s, %v (%v)", header, got, ok, err)
		}
	}
}
