package dagstore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// once: each of these is said at most once in the text of an error.
func once(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return
	}
	for _, said := range []string{
		"read-only", "initialization failed", "could not be", "failed to acquire shard", "errored state", "a follower changes nothing", "no such file", "thekey",
	} {
		if n := strings.Count(err.Error(), said); n > 1 {
			t.Errorf("%q is said %d times: %v", said, n, err)
		}
	}
}

// TestErrorTexts: an error says each thing once, and that an initialisation failed only
// where one did; what clients compare it with is what it was.
func TestErrorTexts(t *testing.T) {
	dir := t.TempDir()
	d := open(t, filepath.Join(dir, "store"), dagstore.WithConfig(func(c *dagstore.Config) { c.IdleHandles = -1 }))
	k := key("thekey")
	file := writeFile(t, filepath.Join(dir, "x.car"), testdata.CarV1)
	register(t, d, k, &mount.FileMount{Path: file})
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	_, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{})
	once(t, err)
	if err != nil && strings.Contains(err.Error(), "initializ") {
		t.Errorf("an initialised shard: %v", err)
	}
	writeFile(t, file, testdata.Junk)
	comesBack(t, "the shard", func() error {
		acc, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{})
		if err == nil {
			once(t, acc.View(background, testdata.RootCID, func([]byte) error { return nil }))
			closeAll(t, acc)
		}
		return err
	})
	_, err = d.RegisterShardSync(background, key("thekey2"), junk(), dagstore.RegisterOpts{})
	once(t, err)
	wantErr(t, "junk", err, dagstore.ErrShardInitializationFailed)
	wantErr(t, "junk", err, index.ErrMalformed)
	if !strings.HasPrefix(err.Error(), "thekey2: shard initialization failed: ") {
		t.Errorf("junk: %v", err)
	}
	_, err = d.AcquireShardSync(background, key("thekey2"), dagstore.AcquireOpts{})
	once(t, err)
	wantErr(t, "what is errored", err, dagstore.ErrShardInitializationFailed)
	if !strings.HasPrefix(err.Error(), "thekey2: shard is in errored state: ") {
		t.Errorf("what is errored: %v", err)
	}
	_, err = d.RecoverShardSync(background, key("thekey2"), dagstore.RecoverOpts{})
	once(t, err)
	wantErr(t, "a recovery", err, dagstore.ErrShardInitializationFailed)
	if !strings.HasPrefix(err.Error(), "thekey2: shard could not be recovered: ") {
		t.Errorf("a recovery: %v", err)
	}
	_, err = d.Initialize(background, key("thekey2"))
	once(t, err)

	registerLazily(t, d, key("thekey3"), carV1())
	f := follow(t, filepath.Join(dir, "store"))
	follows(t, f, d.Position())
	_, err = f.AcquireShardSync(background, key("thekey3"), dagstore.AcquireOpts{})
	once(t, err)
	once(t, f.DestroyShard(background, key("thekey3"), nil, dagstore.DestroyOpts{}))

	j := newTestJournal()
	ro := start(t, dagstore.Config{Journal: j})
	j.failWith(func([]shard.Event) error { return errors.New("gone: no such file") })
	_, err = ro.RegisterShardSync(background, k, carV1(), dagstore.RegisterOpts{})
	once(t, err)
}

// TestLongUnknownKey: a key that is none is not spelled out, however long it is.
func TestLongUnknownKey(t *testing.T) {
	d := start(t, dagstore.Config{})
	long := shard.KeyFromString(strings.Repeat("k", 1<<20))
	for what, f := range map[string]func() error{
		"acquire": func() error {
			_, err := d.AcquireShardSync(context.Background(), long, dagstore.AcquireOpts{})
			return err
		},
		"destroy": func() error { _, err := d.DestroyShardSync(background, long, dagstore.DestroyOpts{}); return err },
		"explain": func() error { _, err := d.Explain(long); return err },
		"info":    func() error { _, err := d.GetShardInfo(long); return err },
		"history": func() error { _, err := d.History(background, long); return err },
		"init":    func() error { _, err := d.Initialize(background, long); return err },
	} {
		if err := f(); !errors.Is(err, dagstore.ErrShardUnknown) || len(err.Error()) > 200 {
			t.Errorf("%s: an error of %d bytes: %.100v", what, len(err.Error()), err)
		}
	}
}
