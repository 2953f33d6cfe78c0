package indexbs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"
	"golang.org/x/sync/errgroup"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

var (
	first   indexbs.ShardSelectorF = func(_ cid.Cid, shards []shard.Key) (shard.Key, error) { return shards[0], nil }
	missing                        = cid.NewCidV1(cid.Raw, must(mh.Sum([]byte("nowhere"), mh.SHA2_256, -1)))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// openStore opens a store in a new directory and registers files of CARs by name.
func openStore(t testing.TB, cars map[string][]byte) (*dagstore.DAGStore, map[string]string) {
	t.Helper()
	dir := t.TempDir()
	d, err := dagstore.Open(t.Context(), filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	paths := map[string]string{}
	for name, data := range cars {
		paths[name] = filepath.Join(dir, name+".car")
		if err := os.WriteFile(paths[name], data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.RegisterShardSync(t.Context(), shard.KeyFromString(name), &mount.FileMount{Path: paths[name]}, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
	}
	return d, paths
}

func over(d *dagstore.DAGStore) indexbs.IdxBstoreDagstore {
	return &indexbs.IdxBstoreDagstoreFromDagstore{Interface: d}
}

// checkBlock reads a block in every way.
func checkBlock(ctx context.Context, bs *indexbs.IndexBackedBlockstore, c cid.Cid, want []byte) error {
	if has, err := bs.Has(ctx, c); err != nil || !has {
		return fmt.Errorf("Has(%s) = %v, %v", c, has, err)
	}
	if n, err := bs.GetSize(ctx, c); err != nil || n != len(want) {
		return fmt.Errorf("GetSize(%s) = %d, %v; want %d", c, n, err, len(want))
	}
	blk, err := bs.Get(ctx, c)
	if err != nil || !bytes.Equal(blk.RawData(), want) || blk.Cid() != c {
		return fmt.Errorf("Get(%s) = %v, %v", c, blk, err)
	}
	calls := 0
	if err := bs.View(ctx, c, func(p []byte) error {
		if calls++; !bytes.Equal(p, want) {
			return fmt.Errorf("%d bytes, want %d", len(p), len(want))
		}
		return nil
	}); err != nil || calls != 1 {
		return fmt.Errorf("View(%s) called %d times: %v", c, calls, err)
	}
	return nil
}

// checkAbsent asks for a block that is not there in every way.
func checkAbsent(t *testing.T, bs *indexbs.IndexBackedBlockstore, c cid.Cid, wantAlso ...error) {
	t.Helper()
	if has, err := bs.Has(t.Context(), c); has || err != nil {
		t.Errorf("Has(%s) = %v, %v", c, has, err)
	}
	blk, getErr := bs.Get(t.Context(), c)
	size, sizeErr := bs.GetSize(t.Context(), c)
	viewErr := bs.View(t.Context(), c, func([]byte) error { t.Error("View called back"); return nil })
	if blk != nil || size != 0 {
		t.Errorf("got block %v, size %d with an error", blk, size)
	}
	for _, err := range []error{getErr, sizeErr, viewErr} {
		for _, want := range append(wantAlso, ipld.ErrNotFound{}, indexbs.ErrBlockNotFound) {
			if !errors.Is(err, want) {
				t.Errorf("error %q is not %q", err, want)
			}
		}
		var nf ipld.ErrNotFound
		if !errors.As(err, &nf) || nf.Cid != c {
			t.Errorf("error %q names %s, want %s", err, nf.Cid, c)
		}
		var old interface{ NotFound() bool }
		if !errors.As(err, &old) || !old.NotFound() {
			t.Errorf("error %q has no NotFound()", err)
		}
	}
}

// TestOverStore reads every block of two shards through one blockstore, from many
// goroutines and with a cache for one of them; what is nowhere is ipld.ErrNotFound.
// Proves F24.
func TestOverStore(t *testing.T) {
	d, _ := openStore(t, map[string][]byte{"v1": testdata.CarV1, "shared": testdata.CarShared})
	bs := newBlockstore(t, over(d), first, 1, time.Minute)
	var g errgroup.Group
	for _, data := range [][]byte{testdata.CarV1, testdata.CarShared} {
		all := sampleBlocks(t, data)
		for range 4 {
			g.Go(func() error {
				for c, want := range all {
					if err := checkBlock(t.Context(), bs, c, want); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	checkAbsent(t, bs, missing)
	checkAbsent(t, bs, cid.Undef)

	// After Close the shards are no longer in use.
	if err := bs.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"v1", "shared"} {
		if _, err := d.DestroyShardSync(t.Context(), shard.KeyFromString(name), dagstore.DestroyOpts{}); err != nil {
			t.Error(err)
		}
	}
}

// TestStoreClosed: when the store is closed first, reads say so.
func TestStoreClosed(t *testing.T) {
	d, _ := openStore(t, map[string][]byte{"v1": testdata.CarV1})
	bs := newBlockstore(t, over(d), first, 1, 0)
	if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	checkFails(t, bs, testdata.RootCID, dagstore.ErrClosed)
}

// TestOtherCodec: blocks are found by multihash, and come back under the CID that
// was asked for.
func TestOtherCodec(t *testing.T) {
	bs := newBlockstore(t, newFakeStore(t, map[string][]byte{"a": testdata.CarV1}), first, 1, 0)
	for c, want := range sampleBlocks(t, testdata.CarV1) {
		if err := checkBlock(t.Context(), bs, cid.NewCidV1(cid.DagCBOR, c.Hash()), want); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSelectorDeclines: what the selector does not take is not found; another error
// of the selector comes back, and Has never swallows one. Proves F24.
func TestSelectorDeclines(t *testing.T) {
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
	none := func(cid.Cid, []shard.Key) (shard.Key, error) {
		return shard.Key{}, fmt.Errorf("not today: %w", indexbs.ErrNoShardSelected)
	}
	checkAbsent(t, newBlockstore(t, f, none, 1, 0), testdata.RootCID, indexbs.ErrNoShardSelected)

	broken := errors.New("broken selector")
	bs := newBlockstore(t, f, func(cid.Cid, []shard.Key) (shard.Key, error) { return shard.Key{}, broken }, 1, 0)
	checkFails(t, bs, testdata.RootCID, broken)
	if n := f.count(); n != 0 {
		t.Errorf("%d shards were acquired", n)
	}
}

// checkFails asks for a block that cannot be had in every way but the last.
func checkFails(t *testing.T, bs *indexbs.IndexBackedBlockstore, c cid.Cid, want error) {
	t.Helper()
	has, hasErr := bs.Has(t.Context(), c)
	blk, getErr := bs.Get(t.Context(), c)
	size, sizeErr := bs.GetSize(t.Context(), c)
	viewErr := bs.View(t.Context(), c, func([]byte) error { t.Error("View called back"); return nil })
	if has || blk != nil || size != 0 {
		t.Errorf("got has %v, block %v, size %d with an error", has, blk, size)
	}
	for _, err := range []error{hasErr, getErr, sizeErr, viewErr} {
		if !errors.Is(err, want) {
			t.Errorf("error %v is not %q", err, want)
		}
		if isNotFound(err) {
			t.Errorf("%q passes for not found", err)
		}
	}
}

func isNotFound(err error) bool {
	return ipld.IsNotFound(err) || errors.Is(err, indexbs.ErrBlockNotFound)
}

// TestLookupFails: an error of the index is an error, of Has too, unless it says not
// found. Proves F24.
func TestLookupFails(t *testing.T) {
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
	bs := newBlockstore(t, f, first, 1, 0)
	f.lookup = errors.New("index on fire")
	checkFails(t, bs, testdata.RootCID, f.lookup)
	for _, err := range []error{ds.ErrNotFound, ipld.ErrNotFound{}, dagstore.ErrShardUnknown} {
		f.lookup = fmt.Errorf("looking: %w", err)
		checkAbsent(t, bs, testdata.RootCID)
	}
}

// TestNextShard: when the chosen shard cannot be acquired or read, the selector is
// asked again without it. The failure of all names each. Proves F21.
func TestNextShard(t *testing.T) {
	c, data := sharedBlock(t)
	refused := errors.New("refused")
	for name, breaks := range map[string]func(s *fakeShard){
		"refused":           func(s *fakeShard) { s.refuse = refused },
		"failed":            func(s *fakeShard) { s.fail = fmt.Errorf("errored: %w", refused) },
		"failed, not found": func(s *fakeShard) { s.fail = fmt.Errorf("%w: source: %w", refused, ipld.ErrNotFound{}) },
		"unreadable":        func(s *fakeShard) { s.readErr = fmt.Errorf("%w: source: %w", refused, ipld.ErrNotFound{}) },
		"corrupt":           func(s *fakeShard) { s.corrupt(t, c, data) },
		"destroyed":         func(s *fakeShard) { s.refuse = dagstore.ErrShardUnknown },
		"truncated":         func(s *fakeShard) { s.car = s.car[:200] },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared})
			breaks(f.shard("a"))
			var offered [][]shard.Key
			bs := newBlockstore(t, f, func(_ cid.Cid, shards []shard.Key) (shard.Key, error) {
				offered = append(offered, slices.Clone(shards))
				return shards[0], nil
			}, 10, 0)
			blk, err := bs.Get(t.Context(), c)
			if err != nil || !bytes.Equal(blk.RawData(), data) {
				t.Fatalf("Get = %v, %v", blk, err)
			}
			if len(offered) != 2 || !slices.Equal(offered[0], f.order) || !slices.Equal(offered[1], f.order[1:]) {
				t.Errorf("the selector was offered %v", offered)
			}

			// The other one too.
			f = newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared})
			breaks(f.shard("a"))
			breaks(f.shard("b"))
			_, err = newBlockstore(t, f, first, 10, 0).Get(t.Context(), c)
			t.Log(err)
			if err == nil || isNotFound(err) != (name == "destroyed") {
				t.Errorf("with both broken: %v", err)
			}
		})
	}
}

// TestDeclinesAfterFailure: when the selector takes no other shard, the error is the
// failure and not "not found".
func TestDeclinesAfterFailure(t *testing.T) {
	c, data := sharedBlock(t)
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared})
	f.shard("a").corrupt(t, c, data)
	bs := newBlockstore(t, f, func(_ cid.Cid, shards []shard.Key) (shard.Key, error) {
		if shards[0].String() == "a" {
			return shards[0], nil
		}
		return shard.Key{}, indexbs.ErrNoShardSelected
	}, 10, 0)
	_, err := bs.Get(t.Context(), c)
	if !errors.Is(err, dagstore.ErrBlockCorrupt) || !errors.Is(err, indexbs.ErrNoShardSelected) || isNotFound(err) {
		t.Errorf("Get: %v", err)
	}
	var at *dagstore.BlockError
	if !errors.As(err, &at) || at.Shard.String() != "a" || at.Offset <= 0 {
		t.Errorf("the error names neither shard nor place: %#v", at)
	}
}

// TestUnofferedChoice: a selector may choose a shard that it was not offered, but
// not for ever.
func TestUnofferedChoice(t *testing.T) {
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarV2})
	f.shard("b").holds = nil
	for _, want := range []string{"b", "nosuch"} {
		bs := newBlockstore(t, f, func(cid.Cid, []shard.Key) (shard.Key, error) { return shard.KeyFromString(want), nil }, 10, 0)
		_, err := bs.Get(t.Context(), testdata.RootCID)
		if (err == nil) != (want == "b") {
			t.Errorf("choice %q: %v", want, err)
		}
	}
}

// TestOpenShardsFirst: among the shards of a block the selector is offered those that
// are open before the others, and may decline them.
func TestOpenShardsFirst(t *testing.T) {
	c, data := sharedBlock(t)
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared})
	var only string
	bs := newBlockstore(t, f, func(_ cid.Cid, shards []shard.Key) (shard.Key, error) {
		for _, k := range shards {
			if only == "" || k.String() == only {
				return k, nil
			}
		}
		return shard.Key{}, indexbs.ErrNoShardSelected
	}, 10, 0)
	for i, step := range []struct {
		c    cid.Cid
		only string
		a, b int32 // opened so far
	}{
		{testdata.SharedRootCID, "", 0, 1}, // b alone has it
		{c, "", 0, 1},                      // b is open: affinity
		{c, "a", 1, 1},                     // b declined
		{c, "b", 1, 1},
	} {
		only = step.only
		if _, err := bs.Get(t.Context(), step.c); err != nil {
			t.Fatal(i, err)
		}
		if a, b := f.shard("a").opened.Load(), f.shard("b").opened.Load(); a != step.a || b != step.b {
			t.Fatalf("step %d: opened %d, %d; want %d, %d", i, a, b, step.a, step.b)
		}
	}
	if err := checkBlock(t.Context(), bs, c, data); err != nil {
		t.Error(err)
	}
}

// TestAfterRecovery: an accessor that fails leaves the cache, and the read is tried
// once more with a new one, since the shard may have been recovered meanwhile.
func TestAfterRecovery(t *testing.T) {
	c, data := sharedBlock(t)
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
	s := f.shard("a")
	healthy := s.car
	s.corrupt(t, c, data)
	bs := newBlockstore(t, f, first, 10, 0)
	if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
		t.Fatal(err) // another block of the shard
	}
	if _, err := bs.Get(t.Context(), c); !errors.Is(err, dagstore.ErrBlockCorrupt) {
		t.Fatalf("corrupt: %v", err)
	}
	if s.open() != 0 || s.opened.Load() != 2 {
		t.Fatalf("%d accessors open, %d opened; want 0, 2", s.open(), s.opened.Load())
	}
	if _, err := bs.Get(t.Context(), c); err == nil || s.opened.Load() != 3 {
		t.Fatalf("a new accessor that fails was tried again: %d opened, want 3", s.opened.Load())
	}
	if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
		t.Fatal(err)
	}
	s.car = healthy
	if err := checkBlock(t.Context(), bs, c, data); err != nil {
		t.Error(err)
	}
}

// TestCorruptFile: a file that is damaged after it was indexed is not served; another
// shard with the block is. Proves F21.
func TestCorruptFile(t *testing.T) {
	c, data := sharedBlock(t)
	d, paths := openStore(t, map[string][]byte{"v1": testdata.CarV1, "shared": testdata.CarShared})
	bs := newBlockstore(t, over(d), first, 10, time.Minute)
	file := slices.Clone(testdata.CarV1)
	at := bytes.Index(file, data)
	file[at+7] ^= 0x10
	w, err := os.OpenFile(paths["v1"], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(file[at:at+8], int64(at)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := checkBlock(t.Context(), bs, c, data); err != nil {
		t.Fatal(err)
	}
	keys := must(d.ShardsContainingMultihash(t.Context(), c.Hash()))
	if len(keys) != 2 {
		t.Errorf("shards of the block: %v", keys)
	}
	// No other shard holds the root. That one is in the cache is no reason not to destroy it.
	if _, err := d.DestroyShardSync(t.Context(), shard.KeyFromString("shared"), dagstore.DestroyOpts{}); err != nil {
		t.Errorf("destroy of a shard in the cache: %v", err)
	}
	if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
		t.Errorf("an intact block of the damaged file: %v", err)
	}
}

// TestView: an error of the callback comes back as it is and sets off no second try.
func TestView(t *testing.T) {
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarV2})
	bs := newBlockstore(t, f, first, 10, 0)
	for _, mine := range []error{errors.New("mine"), ipld.ErrNotFound{Cid: missing}, fs.ErrClosed} {
		calls := 0
		err := bs.View(t.Context(), testdata.RootCID, func([]byte) error { calls++; return mine })
		if err != mine || calls != 1 {
			t.Errorf("View = %v after %d calls, want %v after 1", err, calls, mine)
		}
	}
	if f.count() != 1 {
		t.Errorf("%d acquires", f.count())
	}
	func() {
		defer func() { recover() }()
		_ = bs.View(t.Context(), testdata.RootCID, func([]byte) error { panic("mine") })
	}()
	bs.Close()
	if n := f.shard("a").open(); n != 0 {
		t.Errorf("%d accessors open after a panic and Close", n)
	}
}

// TestIdentity: identity CIDs are answered from themselves.
func TestIdentity(t *testing.T) {
	f := newFakeStore(t, nil)
	f.lookup = errors.New("asked the index")
	bs := newBlockstore(t, f, first, 1, 0)
	for _, data := range [][]byte{{}, []byte("inline")} {
		c := cid.NewCidV1(cid.Raw, must(mh.Sum(data, mh.IDENTITY, -1)))
		if err := checkBlock(t.Context(), bs, c, data); err != nil {
			t.Error(err)
		}
	}
}

// TestStress has readers, evictions, expiry and cancelled reads race over more shards
// than the cache holds; nothing is open in the end. Proves F14, F15.
func TestStress(t *testing.T) {
	cars := map[string][]byte{}
	for i := range 6 {
		cars[fmt.Sprint("v1-", i)] = testdata.CarV1
		cars[fmt.Sprint("shared-", i)] = testdata.CarShared
	}
	f := newFakeStore(t, cars)
	c, data := sharedBlock(t)
	f.shard("v1-3").corrupt(t, c, data)
	var mu sync.Mutex
	turn := 0
	bs := newBlockstore(t, f, func(_ cid.Cid, shards []shard.Key) (shard.Key, error) {
		mu.Lock()
		defer mu.Unlock()
		turn++
		if turn%11 == 0 && len(shards) < len(cars) {
			return shard.Key{}, indexbs.ErrNoShardSelected // of those that are open
		}
		return shards[turn%len(shards)], nil
	}, 3, time.Millisecond)
	var g errgroup.Group
	for w := range 8 {
		g.Go(func() error {
			for i := range 300 {
				ctx, cancel := context.WithCancel(t.Context())
				if (i+w)%5 == 0 {
					go cancel()
				}
				blk, err := bs.Get(ctx, c)
				cancel()
				switch {
				case err == nil && !bytes.Equal(blk.RawData(), data):
					return errors.New("wrong bytes")
				case err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, indexbs.ErrNoShardSelected):
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	bs.Close()
	eventually(t, "all accessors are closed", func() bool {
		for _, s := range f.shards {
			if s.open() != 0 {
				return false
			}
		}
		return true
	})
}
