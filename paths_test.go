package dagstore_test

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/mount"
)

// wrapped is a mount of a daemon's own around a file, embedded as a value.
type wrapped struct{ mount.FileMount }

// wrapping is one around any mount, in a field.
type wrapping struct {
	mount.Mount
	Inner mount.Mount
}

func (w *wrapping) Serialize() *url.URL { return w.Inner.Serialize() }
func (w *wrapping) Deserialize(u *url.URL) error {
	w.Inner = new(mount.FileMount)
	w.Mount = w.Inner
	return w.Inner.Deserialize(u)
}

// TestRelativePaths: what is registered by a relative path, directly or in a wrapper, is
// the same file when the process is in another directory, at once and after a restart; a
// relative directory of the store's too, and a relative path of the caller's copy.
// Proves F5.
func TestRelativePaths(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	car := hostile.V1(hostile.Raw([]byte("a")))
	for _, name := range []string{"x.car", "odd ?%#.car"} {
		writeFile(t, filepath.Join(here, name), car)
	}
	t.Chdir(here)
	if err := os.MkdirAll("deep/er", 0o700); err != nil {
		t.Fatal(err)
	}
	opts := []dagstore.Option{
		dagstore.WithMount("wrapped", new(wrapped)), dagstore.WithMount("wrapping", new(wrapping)), dagstore.WithMount("counting", new(mount.Counting)),
		dagstore.WithConfig(func(c *dagstore.Config) { c.IdleHandles = -1 }), dagstore.WithMount("gate", new(streamed)),
	}
	d := open(t, "store", opts...)
	inner := &mount.FileMount{Path: "x.car"}
	mounts := map[string]mount.Mount{
		"plain": &mount.FileMount{Path: "x.car"}, "odd": &mount.FileMount{Path: "odd ?%#.car"}, "up": &mount.FileMount{Path: "deep/er/../../x.car"},
		"dot": &mount.FileMount{Path: "./x.car"}, "embedded": &wrapped{mount.FileMount{Path: "x.car"}}, "counted": &mount.Counting{Mount: &mount.FileMount{Path: "x.car"}},
		"field": &wrapping{Mount: inner, Inner: inner}, "absolute": &mount.FileMount{Path: filepath.Join(here, "x.car")}, "lazy": &mount.FileMount{Path: "x.car"},
	}
	for name, m := range mounts {
		if _, err := d.RegisterShardSync(background, key("%s", name), m, dagstore.RegisterOpts{LazyInitialization: name == "lazy"}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if _, err := d.RegisterShardSync(background, key("copy"), &streamed{mount.BytesMount{Bytes: car}}, dagstore.RegisterOpts{ExistingTransient: "x.car"}); err != nil {
		t.Fatal(err)
	}
	mounts["copy"] = nil
	check := func(when string) {
		t.Helper()
		for name := range mounts {
			acc := acquire(t, d, key("%s", name))
			if b, err := acc.ShardBlockstore().Get(t.Context(), rawOf("a")); err != nil || string(b.RawData()) != "a" {
				t.Errorf("%s, %s: %v", when, name, err)
			}
			acc.Close()
		}
	}
	check("here")
	t.Chdir(there)
	check("there")
	registerLazily(t, d, key("late"), &mount.FileMount{Path: filepath.Join(here, "x.car")})
	closeStore(t, d)
	d = open(t, filepath.Join(here, "store"), opts...)
	check("there, after a restart")
	page, err := d.ListShards(dagstore.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range page.Shards {
		if u := s.URL; s.Key != key("copy") && !strings.Contains(u, ":///") {
			t.Errorf("%s is kept as %s", s.Key, u)
		}
	}
	if names, err := os.ReadDir(there); err != nil || len(names) > 0 {
		t.Errorf("in the other directory there is %v, %v", names, err)
	}
	if m := mounts["plain"].(*mount.FileMount); m.Path != "x.car" {
		t.Errorf("the caller's mount has another path: %q", m.Path)
	}
}

// streamed can only be read from the front.
type streamed struct{ mount.BytesMount }

func (*streamed) Info() mount.Info { return mount.Info{AccessSequential: true} }

// TestRelativePathWithoutADirectory: a relative path in a directory that is gone is
// refused. Proves F5.
func TestRelativePathWithoutADirectory(t *testing.T) {
	d := open(t, t.TempDir())
	gone := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(gone, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(gone)
	t.Setenv("PWD", "")
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	if err := d.RegisterShard(background, key("a"), &mount.FileMount{Path: "x.car"}, nil, dagstore.RegisterOpts{LazyInitialization: true}); err == nil {
		t.Error("registered")
	}
	if _, err := d.GetShardInfo(key("a")); err != dagstore.ErrShardUnknown {
		t.Error(err)
	}
}

// TestPredecessorsRelativeURL: a relative path in a URL, as the predecessor wrote them,
// is taken from the working directory, as it was there. Proves F5 (adoption).
func TestPredecessorsRelativeURL(t *testing.T) {
	here := t.TempDir()
	writeFile(t, filepath.Join(here, "x.car"), []byte("x"))
	t.Chdir(here)
	reg := dagstore.DefaultRegistry()
	for _, text := range []string{"file://x.car", "file:x.car"} {
		u, err := mount.ParseURL(text)
		if err != nil {
			t.Fatal(err)
		}
		m, err := reg.Instantiate(u)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := m.Stat(t.Context()); err != nil || !st.Exists {
			t.Errorf("%s: %+v, %v", text, st, err)
		}
	}
}

// panics is a mount whose methods do.
type panics struct{ mount.Mount }

// TestNilMounts: a nil mount, a nil pointer in the interface, and a wrapper around one are
// an error of the call, the same one, and no panic, wherever a mount is given. Proves R20.
func TestNilMounts(t *testing.T) {
	d := open(t, t.TempDir(), dagstore.WithMount("counting", new(mount.Counting)), dagstore.WithMount("panics", &panics{new(mount.FileMount)}))
	reg := dagstore.DefaultRegistry()
	want := d.RegisterShard(background, key("a"), nil, nil, dagstore.RegisterOpts{})
	if !errors.Is(want, mount.ErrNoMount) {
		t.Fatal(want)
	}
	for name, m := range map[string]mount.Mount{
		"nil": nil, "file": (*mount.FileMount)(nil), "fs": (*mount.FSMount)(nil), "bytes": (*mount.BytesMount)(nil), "http": (*mount.HTTPMount)(nil),
		"counting": (*mount.Counting)(nil), "upgrader": (*mount.Upgrader)(nil), "its own": (*wrapping)(nil),
	} {
		if err := d.RegisterShard(background, key("a"), m, nil, dagstore.RegisterOpts{}); err == nil || err.Error() != want.Error() {
			t.Errorf("register %s: %v, want %v", name, err, want)
		}
		if _, err := d.RegisterShardSync(background, key("a"), m, dagstore.RegisterOpts{LazyInitialization: true}); !errors.Is(err, mount.ErrNoMount) {
			t.Errorf("register %s: %v", name, err)
		}
		if _, err := reg.Represent(m); !errors.Is(err, mount.ErrNoMount) || !errors.Is(err, mount.ErrUnrecognizedType) {
			t.Errorf("represent %s: %v", name, err)
		}
		if err := reg.Register("x", m); err == nil {
			t.Errorf("%s is a template", name)
		}
		if _, err := mount.NewUpgrader(m, mount.UpgradeOptions{Dir: t.TempDir(), Name: mount.CopyName(1, "a")}); !errors.Is(err, mount.ErrNoMount) {
			t.Errorf("upgrade %s: %v", name, err)
		}
		if _, err := mount.Upgrade(m, nil, t.TempDir(), "a", ""); !errors.Is(err, mount.ErrNoMount) {
			t.Errorf("upgrade %s, as the predecessor did: %v", name, err)
		}
		if err := d.RegisterShard(background, key("a"), &mount.Counting{Mount: m}, nil, dagstore.RegisterOpts{}); !errors.Is(err, mount.ErrNoMount) {
			t.Errorf("counting %s: %v", name, err)
		}
		if err := d.RegisterShard(background, key("a"), &panics{m}, nil, dagstore.RegisterOpts{}); err == nil {
			t.Errorf("around %s: no error", name)
		}
	}
	register(t, d, key("a"), &mount.BytesMount{Bytes: hostile.V1(hostile.Raw([]byte("a")))}) // nothing is left
}
