package mount_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/dagstore/dagstore/mount"
)

// roundTrip represents m, parses the text and revives it.
func roundTrip(t testing.TB, reg *mount.Registry, m mount.Mount) mount.Mount {
	t.Helper()
	u, err := reg.Represent(m)
	if err != nil {
		t.Fatalf("Represent(%+v): %v", m, err)
	}
	parsed, err := url.Parse(u.String())
	if err != nil {
		t.Fatalf("%+v has a URL that does not parse: %v", m, err)
	}
	back, err := reg.Instantiate(parsed)
	if err != nil {
		t.Fatalf("Instantiate(%q): %v", u, err)
	}
	return back
}

var awkwardPaths = []string{
	"a", "a.car", "/a", "/data/a.car", "dir/a.car", "../a", "../../x/../a", "./a", "/../a", "//server/share", "/", ".",
	"a b", "/a b", "%", "%41", "/%2F", "a?b", "/a?b=c", "a#b", "/a#b", "a:b", "fs:a", "file:///x", "http://h/p",
	"-a", "--flag", "*", "~", "~user/x", "a&b;c,d=e+f@g$h!i'j(k)l", "ä/日本語.car", "/ä", "a\tb\nc", "\x01", "\xff\xfe", "a\\b",
	`C:\data\a b.car`, `C:/data/a.car`, `c:relative`, `\\server\share\a.car`, "localhost/a", "localhost", "irrecoverable",
	"[::1]", "user:pass@host", "a//b", "a/", "/a/", " a ", strings.Repeat("x", 4000), "bytes:AAAA", `"quoted"`, "<>|^`{}",
}

// TestURLRoundTrip: every path and every content comes back byte for byte. Proves
// F5.
func TestURLRoundTrip(t *testing.T) {
	fsys := fstest.MapFS{}
	reg := registry(t, map[string]mount.Mount{
		"file": &mount.FileMount{Roots: []string{"/"}}, "fs": &mount.FSMount{FS: fsys}, "bytes": new(mount.BytesMount),
		"counting": new(mount.Counting), "http": new(mount.HTTPMount), "https": new(mount.HTTPMount),
	})
	var mounts []mount.Mount
	for _, path := range awkwardPaths {
		mounts = append(mounts, &mount.FileMount{Path: path, Roots: []string{"/"}}, &mount.FSMount{FS: fsys, Path: path})
	}
	for _, content := range [][]byte{{}, {0}, []byte("CAR"), {0xff, 0xfe, 0xfd, 0x3e, 0x3f}, bytes.Repeat([]byte("x?>"), 50_000)} {
		mounts = append(mounts, &mount.BytesMount{Bytes: content})
	}
	for _, u := range []string{
		"http://h/", "https://h/a%20b%2Fc.car?x=1&y=%20&x=2&flag", "http://[::1]:8080/p", "https://h:8443", "http://h/a;b?q=a%2Bb+c",
	} {
		mounts = append(mounts, &mount.HTTPMount{URL: u})
	}
	for _, m := range mounts {
		back := roundTrip(t, reg, m)
		if !reflect.DeepEqual(back, m) {
			t.Errorf("%+v came back as %+v", m, back)
		}
		if c, ok := roundTrip(t, reg, &mount.Counting{Mount: m}).(*mount.Counting); !ok || !reflect.DeepEqual(c.Mount, m) {
			t.Errorf("counted %+v came back as %+v", m, c.Mount)
		}
	}
}

// TestOldURLs: what the predecessor wrote is still read, also the texts that url.Parse
// refuses. Proves F5 (adoption).
func TestOldURLs(t *testing.T) {
	fsys := fstest.MapFS{}
	reg := registry(t, map[string]mount.Mount{
		"file": new(mount.FileMount), "fs": &mount.FSMount{FS: fsys}, "bytes": new(mount.BytesMount),
	})
	for text, want := range map[string]mount.Mount{
		(&url.URL{Scheme: "file", Host: "/data/a b.car"}).String(): &mount.FileMount{Path: "/data/a b.car"},
		(&url.URL{Scheme: "file", Host: "a%b?c#d"}).String():       &mount.FileMount{Path: "a%b?c#d"},
		"file://relative.car":         &mount.FileMount{Path: "relative.car"},
		"file://dir/relative.car":     &mount.FileMount{Path: "dir/relative.car"},
		"file://localhost/abs.car":    &mount.FileMount{Path: "/abs.car"},
		"file:///abs.car":             &mount.FileMount{Path: "/abs.car"},
		"FILE:///abs.car":             &mount.FileMount{Path: "/abs.car"},
		"fs://a.car?path=dir%2Fa.car": &mount.FSMount{FS: fsys, Path: "dir/a.car"},
		"fs:///dir/a.car":             &mount.FSMount{FS: fsys, Path: "dir/a.car"},
		"bytes://AAECAw==":            &mount.BytesMount{Bytes: []byte{0, 1, 2, 3}},
		"bytes://%2F%2F%2F%2F":        &mount.BytesMount{Bytes: []byte{0xff, 0xff, 0xff}},
		"bytes:////4=":                nil, // neither form
		"fs://irrecoverable":          nil,
		"file:":                       nil,
	} {
		u, err := mount.ParseURL(text)
		if err != nil {
			t.Errorf("ParseURL(%q): %v", text, err)
			continue
		}
		m, err := reg.Instantiate(u)
		if want == nil {
			if err == nil && !reflect.DeepEqual(m, &mount.BytesMount{Bytes: []byte{}}) {
				t.Errorf("%q gives %+v", text, m)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(m, want) {
			t.Errorf("%q gives %+v, %v; want %+v", text, m, err, want)
		}
	}
	// The URL as an object, as it stands in memory before it is text.
	var m mount.FileMount
	if err := m.Deserialize(&url.URL{Host: "/data/a b.car"}); err != nil || m.Path != "/data/a b.car" {
		t.Errorf("host form gives %q, %v", m.Path, err)
	}
}

// TestParseURLKeepsSecrets: an error does not repeat the text. Proves S6 (here).
func TestParseURLKeepsSecrets(t *testing.T) {
	for _, text := range []string{"http://user:s3cret@h:port/", "https://h/%zz?sig=s3cret", "%s3cret://x", "a://s3cret%"} {
		if _, err := mount.ParseURL(text); err == nil {
			t.Errorf("%q parses", text)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
}

func FuzzURLRoundTrip(f *testing.F) {
	for _, p := range awkwardPaths {
		f.Add(p)
	}
	fsys := fstest.MapFS{}
	reg := registry(f, map[string]mount.Mount{
		"file": new(mount.FileMount), "fs": &mount.FSMount{FS: fsys}, "bytes": new(mount.BytesMount), "counting": new(mount.Counting),
	})
	f.Fuzz(func(t *testing.T, s string) {
		for _, m := range []mount.Mount{
			&mount.FileMount{Path: s}, &mount.FSMount{FS: fsys, Path: s}, &mount.BytesMount{Bytes: []byte(s)},
		} {
			if _, isBytes := m.(*mount.BytesMount); s == "" && !isBytes {
				continue
			}
			if back := roundTrip(t, reg, m); !reflect.DeepEqual(back, m) {
				t.Errorf("%+v came back as %+v", m, back)
			}
			if back := roundTrip(t, reg, &mount.Counting{Mount: m}); !reflect.DeepEqual(back.(*mount.Counting).Mount, m) {
				t.Errorf("counted %+v came back as %+v", m, back)
			}
		}
		// And any text is parsed or refused, never worse.
		if u, err := mount.ParseURL(s); err == nil {
			reg.Instantiate(u)
		}
	})
}

// envMount carries an environment in exported and unexported fields and wraps
// another mount, as third-party mounts do.
type envMount struct {
	mount.Mount
	API    string
	secret string
	path   string
}

func (m *envMount) Serialize() *url.URL { return &url.URL{Host: m.path} }
func (m *envMount) Deserialize(u *url.URL) error {
	m.path = u.Host
	return m.Mount.Deserialize(&url.URL{Path: "/" + u.Host})
}

// TestRegistryRefuses: what could not be revived is refused at once, with the error
// that says so. Proves F13.
func TestRegistryRefuses(t *testing.T) {
	reg := registry(t, map[string]mount.Mount{"file": new(mount.FileMount), "http": new(mount.HTTPMount), "counting": &mount.Counting{Mount: new(mount.FSMount)}})
	for _, m := range []mount.Mount{&mount.BytesMount{}, nil, &envMount{}, upgrade(t, &mount.BytesMount{})} {
		if u, err := reg.Represent(m); !errors.Is(err, mount.ErrUnrecognizedType) {
			t.Errorf("Represent(%T) = %v, %v; want ErrUnrecognizedType", m, u, err)
		}
	}
	for _, u := range []*url.URL{{}, {Scheme: "nope", Host: "x"}} {
		if _, err := reg.Instantiate(u); !errors.Is(err, mount.ErrUnrecognizedScheme) {
			t.Errorf("Instantiate(%q): %v; want ErrUnrecognizedScheme", u, err)
		}
	}
	if _, err := reg.Instantiate(nil); err == nil {
		t.Error("Instantiate(nil) succeeds")
	}
	// Another scheme of the same type would be another source.
	for _, u := range []string{"https://h/", "://", ""} {
		if got, err := reg.Represent(&mount.HTTPMount{URL: u}); err == nil {
			t.Errorf("%q is represented as %q although only http is registered", u, got)
		}
	}
	for scheme, m := range map[string]mount.Mount{
		"": new(mount.FileMount), "1a": new(mount.FileMount), "a b": new(mount.FileMount), "a/": new(mount.FileMount), "ä": new(mount.FileMount),
		"FILE": new(mount.FileMount), "nil": nil, "nilptr": (*mount.FileMount)(nil), "value": valueMount{}, "car": new(mount.HTTPMount),
	} {
		if err := reg.Register(scheme, m); err == nil {
			t.Errorf("Register(%q, %T) succeeds", scheme, m)
		}
	}
	if got := reg.Schemes(); !cmp.Equal(got, []string{"counting", "file", "http"}) {
		t.Errorf("Schemes() = %v", got)
	}
}

// valueMount implements Mount by value.
type valueMount struct{ mount.Mount }

// TestRegistryTemplates: revived mounts have the template's environment, share
// nothing that changes, and may be made concurrently.
func TestRegistryTemplates(t *testing.T) {
	template := &envMount{Mount: &mount.FileMount{Roots: []string{"/r"}}, API: "api", secret: "s"}
	reg := registry(t, map[string]mount.Mount{"env": template})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			name := string(rune('a' + i))
			m, err := reg.Instantiate(&url.URL{Scheme: "env", Host: name})
			if err != nil {
				t.Error(err)
				return
			}
			want := &envMount{Mount: &mount.FileMount{Path: "/" + name, Roots: []string{"/r"}}, API: "api", secret: "s", path: name}
			if !reflect.DeepEqual(m, want) {
				t.Errorf("got %+v, want %+v", m, want)
			}
		})
	}
	wg.Wait()
	if template.path != "" || template.Mount.(*mount.FileMount).Path != "" {
		t.Errorf("the template was changed: %+v", template)
	}
	up := upgrade(t, upgrade(t, &envMount{Mount: new(mount.FileMount), path: "x"}))
	if u, err := reg.Represent(up); err != nil || u.String() != "env://x" {
		t.Errorf("an upgrader is represented as %v, %v", u, err)
	}
}

// TestCounting: as clients of the predecessor register and use it.
func TestCounting(t *testing.T) {
	fsys := fstest.MapFS{"a": {Data: []byte("x")}}
	for name, template := range map[string]mount.Mount{
		"bare": new(mount.Counting), "withInner": &mount.Counting{Mount: &mount.FSMount{FS: fsys}},
	} {
		reg := registry(t, map[string]mount.Mount{"counting": template})
		if name == "bare" {
			reg.Register("fs", &mount.FSMount{FS: fsys})
		}
		c := &mount.Counting{Mount: &mount.FSMount{FS: fsys, Path: "a"}}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { c.Fetch(t.Context()) })
		}
		wg.Wait()
		back := roundTrip(t, reg, c).(*mount.Counting)
		if c.Count() != 8 || back.Count() != 0 {
			t.Errorf("%s: counts %d and %d, want 8 and 0", name, c.Count(), back.Count())
		}
		if !reflect.DeepEqual(back.Mount, c.Mount) {
			t.Errorf("%s: inner mount came back as %+v", name, back.Mount)
		}
	}
	reg := registry(t, map[string]mount.Mount{"counting": new(mount.Counting)})
	if _, err := reg.Instantiate(&url.URL{Scheme: "counting", Opaque: "a"}); err == nil {
		t.Error("a Counting without an inner mount is revived")
	}
}

// TestFileStatErrors: errors other than not-exist are returned. Proves F6.
func TestFileStatErrors(t *testing.T) {
	file := writeFile(t, "a", []byte("x"))
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file + "/below", loop, "a\x00b", strings.Repeat("x", 5000), t.TempDir()} {
		m := &mount.FileMount{Path: path}
		if st, err := m.Stat(t.Context()); err == nil {
			t.Errorf("Stat(%.40q) = %+v without an error", path, st)
		}
		if r, err := m.Fetch(t.Context()); err == nil {
			r.Close()
			t.Errorf("Fetch(%.40q) succeeds", path)
		}
	}
	bad := &mount.FSMount{FS: errFS{}, Path: "a"}
	if _, err := bad.Stat(t.Context()); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("fs: %v", err)
	}
	if _, err := new(mount.FSMount).Fetch(t.Context()); err == nil {
		t.Error("an FSMount without a file system is fetched")
	}
	if _, err := new(mount.FSMount).Stat(t.Context()); err == nil {
		t.Error("an FSMount without a file system is described")
	}
	if _, err := (&mount.FSMount{FS: fstest.MapFS{"d/a": {}}, Path: "d"}).Fetch(t.Context()); !errors.Is(err, mount.ErrNotRegular) {
		t.Errorf("a directory of an fs.FS: %v", err)
	}
}

type errFS struct{}

func (errFS) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
}

// TestFileConfined: with roots, nothing outside them is read, whatever the path or
// the links say. Proves S7.
func TestFileConfined(t *testing.T) {
	base := t.TempDir()
	root, outside := filepath.Join(base, "root"), filepath.Join(base, "root-not")
	for _, d := range []string{root + "/sub", outside} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for path, content := range map[string]string{root + "/in": "in", root + "/sub/in": "in", outside + "/secret": "secret"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		root + "/in-link": "sub/in", root + "/out-link": outside + "/secret", root + "/out-dir": "../root-not", root + "/sub/up": "../in",
	} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	for path, ok := range map[string]bool{
		"/in": true, "/sub/in": true, "/sub/../in": true, "/in-link": true, "/sub/up": true, "//in": true, "/../root/in": true,
		"/out-link": false, "/out-dir/secret": false, "/../root-not/secret": false, "-not/secret": false, "/sub/../../root-not/secret": false,
	} {
		m := &mount.FileMount{Path: root + path, Roots: []string{base + "/other", root}}
		r, err := m.Fetch(context.Background())
		_, serr := m.Stat(t.Context())
		if !ok {
			if !errors.Is(err, mount.ErrOutsideRoots) || !errors.Is(serr, mount.ErrOutsideRoots) {
				t.Errorf("%s: Fetch %v, Stat %v; want ErrOutsideRoots", path, err, serr)
			}
			continue
		}
		if err != nil || serr != nil {
			t.Errorf("%s: Fetch %v, Stat %v", path, err, serr)
			continue
		}
		if got, _ := io.ReadAll(r); string(got) != "in" {
			t.Errorf("%s: read %q", path, got)
		}
		r.Close()
	}
}
