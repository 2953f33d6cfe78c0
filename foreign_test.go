package dagstore_test

import (
	"context"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/testdata"
)

// rudeMount is a mount whose code misbehaves as conduct says. Its revived forms
// share conduct, which the template carries.
type rudeMount struct{ *conduct }

type conduct struct {
	stream bool
	fetch  func(n int32, r *rudeReader) (mount.Reader, error) // of the nth fetch
	close  func() error

	fetched, open, closed atomic.Int32 // fetches, readers that are open, mounts closed
}

func (m *rudeMount) Info() mount.Info {
	return mount.Info{AccessSequential: true, AccessSeek: !m.stream, AccessRandom: !m.stream}
}

func (m *rudeMount) Fetch(ctx context.Context) (mount.Reader, error) {
	r, err := (&mount.BytesMount{Bytes: testdata.CarV1}).Fetch(ctx)
	if err != nil {
		return nil, err
	}
	m.open.Add(1)
	return m.fetch(m.fetched.Add(1), &rudeReader{Reader: r, of: m.conduct})
}

func (m *rudeMount) Stat(context.Context) (mount.Stat, error) {
	return mount.Stat{Exists: true, Size: int64(len(testdata.CarV1)), Ready: true}, nil
}

func (m *rudeMount) Close() error {
	m.closed.Add(1)
	if m.close != nil {
		return m.close()
	}
	return nil
}

func (m *rudeMount) Serialize() *url.URL        { return &url.URL{Host: "rude"} }
func (m *rudeMount) Deserialize(*url.URL) error { return nil }

type rudeReader struct {
	mount.Reader
	of     *conduct
	read   func([]byte) (int, error)
	readAt func([]byte, int64) (int, error)
	close  func() error
}

func (r *rudeReader) Read(p []byte) (int, error) {
	if r.read != nil {
		return r.read(p)
	}
	return r.Reader.Read(p)
}

func (r *rudeReader) ReadAt(p []byte, off int64) (int, error) {
	if r.readAt != nil {
		return r.readAt(p, off)
	}
	return r.Reader.ReadAt(p, off)
}

func (r *rudeReader) Close() error {
	r.of.open.Add(-1)
	if r.close != nil {
		return r.close()
	}
	return r.Reader.Close()
}

// startRude starts a store that knows the mount.
func startRude(t *testing.T, c *conduct, cfg dagstore.Config) *dagstore.DAGStore {
	t.Helper()
	if c.fetch == nil {
		c.fetch = func(_ int32, r *rudeReader) (mount.Reader, error) { return r, nil }
	}
	cfg.MountRegistry = registry(t, nil)
	if err := cfg.MountRegistry.Register("rude", &rudeMount{c}); err != nil {
		t.Fatal(err)
	}
	return start(t, cfg)
}

// othersWork: the fault of one shard changed nothing of another.
func othersWork(t *testing.T, d *dagstore.DAGStore) {
	t.Helper()
	register(t, d, key("other"), carV1())
	works(t, d, key("other"))
}

// TestReaderCloseMisbehaves: a reader whose Close panics or does not return, called
// when its shard is closed for being idle, holds up no other shard and ends nothing.
func TestReaderCloseMisbehaves(t *testing.T) {
	for name, do := range map[string]func(until chan struct{}){
		"panics": func(chan struct{}) { panic("close") },
		"hangs":  func(until chan struct{}) { <-until },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				until := make(chan struct{})
				c := &conduct{fetch: func(n int32, r *rudeReader) (mount.Reader, error) {
					if n > 1 { // not the one that the index is made from
						r.close = func() error { do(until); return nil }
					}
					return r, nil
				}}
				d := startRude(t, c, dagstore.Config{})
				register(t, d, key("rude"), &rudeMount{c})
				works(t, d, key("rude"))
				pass(time.Minute)
				othersWork(t, d)
				close(until)
			})
		})
	}
}

// TestNoReader: a mount that returns neither a reader nor an error, also when nobody
// waits for it any more, fails its shard only.
func TestNoReader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, stream := range []bool{false, true} {
			until := make(chan struct{})
			c := &conduct{stream: stream, fetch: func(n int32, _ *rudeReader) (mount.Reader, error) {
				if n == 1 {
					<-until
				}
				return nil, nil
			}}
			d := startRude(t, c, dagstore.Config{})
			if err := d.RegisterShard(background, key("rude"), &rudeMount{c}, nil, dagstore.RegisterOpts{}); err != nil {
				t.Fatal(err)
			}
			settle()
			destroyed := make(chan dagstore.ShardResult, 1)
			if err := d.DestroyShard(background, key("rude"), destroyed, dagstore.DestroyOpts{}); err != nil {
				t.Fatal(err)
			}
			settle()
			close(until)
			if res := <-destroyed; res.Error != nil {
				t.Error(res.Error)
			}
			_, err := d.RegisterShardSync(background, key("rude"), &rudeMount{c}, dagstore.RegisterOpts{})
			wantErr(t, "register", err, dagstore.ErrShardInitializationFailed)
			othersWork(t, d)
		}
	})
}

// TestStreamClosePanics: the Close that wakes a cancelled transfer panics.
func TestStreamClosePanics(t *testing.T) {
	bubble(t, func(t *testing.T) {
		woken := make(chan struct{})
		c := &conduct{stream: true, fetch: func(_ int32, r *rudeReader) (mount.Reader, error) {
			r.read = func([]byte) (int, error) { <-woken; return 0, io.EOF }
			r.close = func() error { close(woken); panic("close") }
			return r, nil
		}}
		d := startRude(t, c, dagstore.Config{})
		if err := d.RegisterShard(background, key("rude"), &rudeMount{c}, nil, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		destroy(t, d, key("rude"))
		othersWork(t, d)
	})
}

// TestReadPanicsOnOpen: a reader that panics when it is opened is closed.
// Proves F14.
func TestReadPanicsOnOpen(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := &conduct{fetch: func(n int32, r *rudeReader) (mount.Reader, error) {
			if n > 1 {
				r.readAt = func([]byte, int64) (int, error) { panic("read") }
			}
			return r, nil
		}}
		d := startRude(t, c, dagstore.Config{})
		register(t, d, key("rude"), &rudeMount{c})
		if _, err := d.AcquireShardSync(background, key("rude"), dagstore.AcquireOpts{}); err == nil {
			t.Error("acquired a shard that panics")
		}
		settle()
		if n := c.open.Load(); n != 0 {
			t.Errorf("%d readers are open", n)
		}
	})
}

// TestRevivedMountsClose: a mount that the store made from its URL is closed when
// its shard is at rest, destroyed, or the store closes, even if that panics; one
// that the daemon made never is.
func TestRevivedMountsClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := &conduct{close: func() error { panic("close") }}
		state := mapDatastore()
		repo := index.NewMemoryRepo()
		d := startRude(t, c, dagstore.Config{Datastore: state, IndexRepo: repo})
		register(t, d, key("rude"), &rudeMount{c})
		closeStore(t, d)
		if n := c.closed.Load(); n != 0 {
			t.Errorf("the daemon's mount was closed %d times", n)
		}
		d = startRude(t, c, dagstore.Config{Datastore: state, IndexRepo: repo})
		closedNow := func(what string, want int32) {
			t.Helper()
			settle()
			if n := c.closed.Swap(0); n != want {
				t.Errorf("%s: %d mounts were closed, want %d", what, n, want)
			}
		}
		works(t, d, key("rude"))
		pass(time.Minute)
		closedNow("at rest", 1)
		destroy(t, d, key("rude"))
		closedNow("destroyed", 1)
		register(t, d, key("rude"), &rudeMount{c})
		closeStore(t, d)
		d = startRude(t, c, dagstore.Config{Datastore: state, IndexRepo: repo})
		works(t, d, key("rude"))
		closeStore(t, d)
		closedNow("the store closed", 1)
	})
}

// TestNilContext: a context that is nil is none.
func TestNilContext(t *testing.T) {
	d := start(t, dagstore.Config{})
	var none context.Context
	out := make(chan dagstore.ShardResult, 1)
	if err := d.RegisterShard(none, key("a"), carV1(), out, dagstore.RegisterOpts{}); err != nil {
		t.Fatal(err)
	}
	if res := <-out; res.Error != nil {
		t.Error(res.Error)
	}
	acc, err := d.AcquireShardSync(none, key("a"), dagstore.AcquireOpts{})
	if err != nil {
		t.Fatal(err)
	}
	closeAll(t, acc)
}

// TestPlantedDirectories: a link in place of one of the store's directories is
// refused, and what it points to stays as it is. Proves S8, I14.
func TestPlantedDirectories(t *testing.T) {
	for _, sub := range []string{"journal", "index", "copies"} {
		dir, elsewhere := t.TempDir(), t.TempDir()
		if err := os.Symlink(elsewhere, filepath.Join(dir, sub)); err != nil {
			t.Fatal(err)
		}
		d, err := dagstore.Open(background, dir, dagstore.WithLogger(quiet))
		if err == nil {
			closeStore(t, d)
			t.Errorf("%s: a link was followed", sub)
		}
		if left := names(t, elsewhere); len(left) > 0 {
			t.Errorf("%s: %v was made outside the store", sub, left)
		}
	}
}
