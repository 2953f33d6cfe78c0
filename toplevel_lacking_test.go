package dagstore_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/index/toplevel"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// unreadableRepo is a repository on a disk whose indices cannot be opened for a while.
type unreadableRepo struct {
	*index.FSIndexRepo
	broken atomic.Bool
	opened atomic.Int64
}

func (r *unreadableRepo) OpenIndex(k shard.Key, gen uint64) (*index.ShardIndex, error) {
	r.opened.Add(1)
	if r.broken.Load() {
		return nil, &os.PathError{Op: "open", Path: k.String(), Err: syscall.EMFILE}
	}
	return r.FSIndexRepo.OpenIndex(k, gen)
}

// openFlaky opens a store in dir whose shard indices can, or cannot, be opened.
func openFlaky(t *testing.T, dir string, broken bool) (*dagstore.DAGStore, *unreadableRepo) {
	t.Helper()
	fs, err := index.NewFSRepo(filepath.Join(dir, "index"))
	if err != nil {
		t.Fatal(err)
	}
	r := &unreadableRepo{FSIndexRepo: fs}
	r.broken.Store(broken)
	return open(t, dir, dagstore.WithConfig(func(c *dagstore.Config) { c.IndexRepo = r })), r
}

// killed returns a copy of a store's directory as a SIGKILL would leave it now. The store
// may merge runs meanwhile: then it is copied again.
func killed(t *testing.T, dir string) string {
	t.Helper()
	files := func() (all []string) {
		err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				var st os.FileInfo
				if st, err = e.Info(); err == nil {
					all = append(all, fmt.Sprint(name, st.Size(), st.ModTime()))
				}
			}
			return err
		})
		if err != nil {
			return nil
		}
		return all
	}
	for {
		to := filepath.Join(t.TempDir(), "store")
		before := files()
		err := os.CopyFS(to, os.DirFS(dir))
		switch {
		case err == nil && before != nil && slices.Equal(before, files()):
			return to
		case err != nil && !errors.Is(err, os.ErrNotExist):
			t.Fatal(err)
		}
	}
}

// findsAll says whether lookups find each block in the shard that holds it.
func findsAll(t *testing.T, d *dagstore.DAGStore, held map[shard.Key][]cid.Cid) bool {
	t.Helper()
	for k, cids := range held {
		for _, c := range cids {
			keys, _, err := d.FindShards(background, c.Hash(), dagstore.Latest())
			if err != nil || !slices.Equal(keys, []shard.Key{k}) {
				return false
			}
		}
	}
	return true
}

func registerSome(t *testing.T, d *dagstore.DAGStore, n int) map[shard.Key][]cid.Cid {
	t.Helper()
	held := make(map[shard.Key][]cid.Cid)
	for i := range n {
		car, cids := makeCAR(randomBlocks(uint64(i+1), 70, 50)...)
		k := key("shard %d", i)
		register(t, d, k, &mount.BytesMount{Bytes: car})
		held[k] = cids
	}
	return held
}

// TestIndexUnreadableForAMoment: shard indices that cannot be read when their entries are
// wanted, while the top-level index is made anew or by a start after a SIGKILL, are
// missing from it as long as that lasts, which the view says, and no longer: neither in
// the process nor in those that follow it. Proves F19, A3, A8.
func TestIndexUnreadableForAMoment(t *testing.T) {
	type made struct {
		dir  string
		held map[shard.Key][]cid.Cid
	}
	lacking := func(t *testing.T, d *dagstore.DAGStore) {
		t.Helper()
		f, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest())
		if err != nil || !errors.Is(f.Err, syscall.EMFILE) {
			t.Errorf("while indices cannot be read the view says %v, %v", f.Err, err)
		}
	}
	for name, breakIt := range map[string]func(*testing.T) made{
		"rebuild, close": func(t *testing.T) made {
			dir := t.TempDir()
			d, r := openFlaky(t, dir, false)
			held := registerSome(t, d, 3)
			r.broken.Store(true)
			if err := d.RebuildView(background, dagstore.TopLevelView); err != nil {
				t.Fatal(err)
			}
			lacking(t, d)
			closeStore(t, d)
			return made{dir, held}
		},
		"kill, start, close": func(t *testing.T) made {
			dir := t.TempDir()
			d, _ := openFlaky(t, dir, false)
			held := registerSome(t, d, 3)
			dir = killed(t, dir)
			d, _ = openFlaky(t, dir, true)
			lacking(t, d)
			closeStore(t, d)
			return made{dir, held}
		},
		"kill, start, kill, start, close": func(t *testing.T) made {
			dir := t.TempDir()
			d, _ := openFlaky(t, dir, false)
			held := registerSome(t, d, 3)
			dir = killed(t, dir)
			d, _ = openFlaky(t, dir, true)
			lacking(t, d)
			// What comes now is in the index, and its runs are made durable.
			car, cids := makeCAR(randomBlocks(9, 70, 50)...)
			register(t, d, key("another"), &mount.BytesMount{Bytes: car})
			held[key("another")] = cids
			dir = killed(t, dir)
			d, _ = openFlaky(t, dir, true)
			lacking(t, d)
			closeStore(t, d)
			return made{dir, held}
		},
		"rebuild, merges, kill": func(t *testing.T) made {
			dir := t.TempDir()
			d, r := openFlaky(t, dir, false)
			held := registerSome(t, d, 3)
			closeStore(t, d)
			d = open(t, dir, dagstore.WithConfig(func(c *dagstore.Config) {
				r = &unreadableRepo{FSIndexRepo: r.FSIndexRepo}
				c.IndexRepo, c.TopLevel = r, toplevel.Options{Memory: 1000, FanIn: 2}
			}))
			r.broken.Store(true)
			if err := d.RebuildView(background, dagstore.TopLevelView); err != nil {
				t.Fatal(err)
			}
			for i := range 5 {
				car, cids := makeCAR(randomBlocks(uint64(20+i), 70, 50)...)
				k := key("later %d", i)
				register(t, d, k, &mount.BytesMount{Bytes: car})
				held[k] = cids
			}
			lacking(t, d)
			return made{killed(t, dir), held}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := breakIt(t)
			for range 2 {
				d, _ := openFlaky(t, m.dir, false)
				if !findsAll(t, d, m.held) {
					t.Error("blocks are missing from the top-level index after a start that could read all indices")
				}
				if f, err := d.Freshness(dagstore.TopLevelView); err != nil || f.Err != nil {
					t.Errorf("then the view says: %v, %v", f.Err, err)
				}
				closeStore(t, d)
			}
		})
	}
	t.Run("in the process", func(t *testing.T) {
		d, r := openFlaky(t, t.TempDir(), false)
		held := registerSome(t, d, 3)
		r.broken.Store(true)
		if err := d.RebuildView(background, dagstore.TopLevelView); err != nil {
			t.Fatal(err)
		}
		lacking(t, d)
		destroy(t, d, key("shard 0")) // what is gone is not missed
		delete(held, key("shard 0"))
		r.broken.Store(false)
		for !findsAll(t, d, held) {
			runtime.Gosched() // it is tried again by itself
		}
		if f, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil || f.Err != nil {
			t.Errorf("then the view says: %v, %v", f.Err, err)
		}
	})
}

// TestMarkStandsStill: while one shard is lacking, the mark of the top-level index does not
// move. Starts apply the events behind it again, and read no index of a shard whose
// entries are there.
func TestMarkStandsStill(t *testing.T) {
	dir := t.TempDir()
	d, _ := openFlaky(t, dir, false)
	held := registerSome(t, d, 1)
	if _, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil {
		t.Fatal(err)
	}
	closeStore(t, d) // which makes the mark durable
	d, _ = openFlaky(t, dir, false)
	car, cids := makeCAR(randomBlocks(49, 70, 50)...)
	register(t, d, key("lost"), &mount.BytesMount{Bytes: car})
	held[key("lost")] = cids
	dir = killed(t, dir) // with its entries in memory only
	d, _ = openFlaky(t, dir, true)
	for i := range 20 {
		car, cids := makeCAR(randomBlocks(uint64(50+i), 70, 50)...)
		k := key("later %d", i)
		register(t, d, k, &mount.BytesMount{Bytes: car})
		held[k] = cids
	}
	closeStore(t, d)
	d, r := openFlaky(t, dir, true)
	if _, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil {
		t.Fatal(err)
	}
	if n := r.opened.Load(); n == 0 || n > 10 {
		t.Errorf("a start tried to open %d indices; one shard is lacking", n)
	}
	closeStore(t, d)
	d, r = openFlaky(t, dir, false)
	if !findsAll(t, d, held) {
		t.Error("blocks are missing")
	}
	if n := r.opened.Load(); n == 0 || n > 10 {
		t.Errorf("a start opened %d indices; one shard was lacking", n)
	}
	closeStore(t, d)
	d, r = openFlaky(t, dir, false)
	if !findsAll(t, d, held) || r.opened.Load() > 0 {
		t.Errorf("the next start opened %d indices", r.opened.Load())
	}
}
