package mount_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/goleak"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/mount/mounttest"
	"github.com/dagstore/dagstore/throttle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// registry returns one with these templates.
func registry(t testing.TB, templates map[string]mount.Mount) *mount.Registry {
	t.Helper()
	r := mount.NewRegistry()
	for scheme, m := range templates {
		if err := r.Register(scheme, m); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// TestBuiltinsConform runs the suite on every built-in mount and on upgraders of
// them. Proves F5, F14 (readers).
func TestBuiltinsConform(t *testing.T) {
	for name, cfg := range builtins() {
		t.Run(name, func(t *testing.T) { mounttest.Run(t, cfg) })
	}
}

func builtins() map[string]mounttest.Config {
	return map[string]mounttest.Config{
		"file": {
			New: func(t testing.TB, content []byte) (mount.Mount, *mount.Registry) {
				return &mount.FileMount{Path: writeFile(t, "a b%.car", content)}, registry(t, map[string]mount.Mount{"file": new(mount.FileMount)})
			},
			Missing: func(t testing.TB) mount.Mount {
				return &mount.FileMount{Path: filepath.Join(t.TempDir(), "missing")}
			},
		},
		"fileInRoot": {
			New: func(t testing.TB, content []byte) (mount.Mount, *mount.Registry) {
				path := writeFile(t, "a", content)
				roots := []string{filepath.Dir(path)}
				return &mount.FileMount{Path: path, Roots: roots}, registry(t, map[string]mount.Mount{"file": &mount.FileMount{Roots: roots}})
			},
			Missing: func(t testing.TB) mount.Mount {
				dir := t.TempDir()
				return &mount.FileMount{Path: filepath.Join(dir, "missing"), Roots: []string{dir}}
			},
		},
		"fsSeekable": fsConfig(func(f fs.FS) fs.FS { return f }),
		"fsStream":   fsConfig(func(f fs.FS) fs.FS { return streamFS{f} }),
		"bytes": {
			New: func(t testing.TB, content []byte) (mount.Mount, *mount.Registry) {
				return &mount.BytesMount{Bytes: content}, registry(t, map[string]mount.Mount{"bytes": new(mount.BytesMount)})
			},
		},
		"counting": {
			New: func(t testing.TB, content []byte) (mount.Mount, *mount.Registry) {
				return &mount.Counting{Mount: &mount.BytesMount{Bytes: content}},
					registry(t, map[string]mount.Mount{"counting": new(mount.Counting), "bytes": new(mount.BytesMount)})
			},
		},
		"httpRanges": httpConfig(serveRanges),
		"httpStream": httpConfig(serveWhole),
		"upgradedFS": {
			New: func(t testing.TB, content []byte) (mount.Mount, *mount.Registry) {
				m, reg := fsConfig(func(f fs.FS) fs.FS { return streamFS{f} }).New(t, content)
				return upgrade(t, m), reg
			},
			Missing: func(t testing.TB) mount.Mount {
				return upgrade(t, &mount.FSMount{FS: fstest.MapFS{}, Path: "missing"})
			},
		},
		"upgradedHTTP": {
			New: func(t testing.TB, content []byte) (mount.Mount, *mount.Registry) {
				m, reg := httpConfig(serveRanges).New(t, content)
				return upgrade(t, m), reg
			},
		},
		"upgradedSim": {
			New: func(t testing.TB, content []byte) (mount.Mount, *mount.Registry) {
				m, reg := fsConfig(func(f fs.FS) fs.FS { return streamFS{f} }).New(t, content)
				u, err := mount.NewUpgrader(m, mount.UpgradeOptions{FS: fsio.NewSim(1), Dir: "/copies", Name: mount.CopyName(1, "k")})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { u.Close() })
				return u, reg
			},
		},
		"upgradedFile": {
			New: func(t testing.TB, content []byte) (mount.Mount, *mount.Registry) {
				path := writeFile(t, "a", content)
				return upgrade(t, &mount.FileMount{Path: path}), registry(t, map[string]mount.Mount{"file": new(mount.FileMount)})
			},
		},
	}
}

func writeFile(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func upgrade(t testing.TB, m mount.Mount) *mount.Upgrader {
	t.Helper()
	u, err := mount.Upgrade(m, throttle.Noop(), t.TempDir(), "../any key", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u
}

func fsConfig(wrap func(fs.FS) fs.FS) mounttest.Config {
	return mounttest.Config{
		New: func(t testing.TB, content []byte) (mount.Mount, *mount.Registry) {
			path := "dir/a b?#%.car"
			fsys := wrap(fstest.MapFS{path: {Data: content}})
			return &mount.FSMount{FS: fsys, Path: path}, registry(t, map[string]mount.Mount{"fs": &mount.FSMount{FS: fsys}})
		},
		Missing: func(testing.TB) mount.Mount { return &mount.FSMount{FS: wrap(fstest.MapFS{}), Path: "missing"} },
	}
}

// streamFS hides everything that its files can do beyond fs.File.
type streamFS struct{ fs.FS }

func (s streamFS) Open(name string) (fs.File, error) {
	f, err := s.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return struct{ fs.File }{f}, nil
}

// serveRanges is what a decent server does; serveWhole knows no ranges.
func serveRanges(content []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, len(content)))
		http.ServeContent(w, r, "a.car", time.Unix(1e9, 0), bytes.NewReader(content))
	})
}

func serveWhole(content []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		w.Write(content)
	})
}

// serve starts a server that ends with the test, and returns its URL and options
// without pauses whose connections end with it.
func serve(t testing.TB, h http.Handler) (string, *mount.HTTPOptions) {
	t.Helper()
	s := httptest.NewServer(h)
	o := &mount.HTTPOptions{BackOff: time.Microsecond}
	t.Cleanup(func() { o.CloseIdleConnections(); s.Close() })
	return s.URL, o
}

func httpConfig(handler func([]byte) http.Handler) mounttest.Config {
	return mounttest.Config{
		New: func(t testing.TB, content []byte) (mount.Mount, *mount.Registry) {
			url, o := serve(t, handler(content))
			return &mount.HTTPMount{URL: url + "/dir/a%20b.car?version=2&empty=", Options: o},
				registry(t, map[string]mount.Mount{"http": &mount.HTTPMount{Options: o}})
		},
		Missing: func(t testing.TB) mount.Mount {
			url, o := serve(t, http.NotFoundHandler())
			return &mount.HTTPMount{URL: url, Options: o}
		},
	}
}
