package indexbs_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	ipld "github.com/ipfs/go-ipld-format"
	ipldprime "github.com/ipld/go-ipld-prime"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// everyRead asks for a block in every way there is, and returns the errors by name.
func everyRead(ctx context.Context, bs *indexbs.IndexBackedBlockstore, c cid.Cid) map[string]error {
	errs := map[string]error{}
	_, errs["Get"] = bs.Get(ctx, c)
	_, errs["GetSize"] = bs.GetSize(ctx, c)
	errs["View"] = bs.View(ctx, c, func([]byte) error { return nil })
	_, errs["GetMany"] = bs.GetMany(ctx, []cid.Cid{c})
	errs["ViewMany"] = errors.New("not told")
	if err := bs.ViewMany(ctx, []cid.Cid{c}, func(_ int, _ []byte, err error) error { errs["ViewMany"] = err; return nil }); err != nil {
		errs["ViewMany"] = err
	}
	ls := bs.LinkSystem()
	_, errs["LinkSystem"] = ls.LoadRaw(ipldprime.LinkContext{Ctx: ctx}, cidlink.Link{Cid: c})
	return errs
}

// isNotFoundOfAny says that an error would be taken for "there is no such block".
func isNotFoundOfAny(err error) bool {
	return ipld.IsNotFound(err) || errors.Is(err, indexbs.ErrBlockNotFound) || errors.Is(err, ds.ErrNotFound) || errors.Is(err, dagstore.ErrShardUnknown)
}

// TestAway: whatever keeps the shards of a block from serving it now, every way of
// reading says that it is away, and why, and never that there is none. What is wrong
// with the bytes themselves is told as that. Proves A2.
func TestAway(t *testing.T) {
	since := time.Unix(1_700_000_000, 0)
	block, _ := sharedBlock(t)
	known := &dagstore.UnavailableError{
		Shards: []shard.Key{shard.KeyFromString("a")}, Reason: fs.ErrNotExist, Since: since, RetryAfter: 700 * time.Millisecond,
	}
	for name, c := range map[string]struct {
		set        func(*fakeShard)
		reason     error
		retryAfter time.Duration
		since      time.Time
	}{
		"the store says so":                {func(s *fakeShard) { s.fail = fmt.Errorf("acquire: %w", known) }, fs.ErrNotExist, 700 * time.Millisecond, since},
		"the store says so at once":        {func(s *fakeShard) { s.refuse = known }, fs.ErrNotExist, 700 * time.Millisecond, since},
		"nobody can say how long":          {func(s *fakeShard) { s.fail = &dagstore.UnavailableError{Reason: mount.ErrSourceChanged, Since: since} }, mount.ErrSourceChanged, 0, since},
		"the source does not exist":        {func(s *fakeShard) { s.fail = fs.ErrNotExist }, fs.ErrNotExist, 3 * time.Second, time.Time{}},
		"an error like a missing block's":  {func(s *fakeShard) { s.fail = ipld.ErrNotFound{} }, nil, 3 * time.Second, time.Time{}},
		"an origin that does not answer":   {func(s *fakeShard) { s.fail = &mount.HTTPError{} }, nil, 3 * time.Second, time.Time{}},
		"a disk that gives an I/O error":   {func(s *fakeShard) { s.readErr = syscall.EIO }, syscall.EIO, time.Second, time.Time{}},
		"a file handle that went stale":    {func(s *fakeShard) { s.readErr = fs.ErrInvalid }, fs.ErrInvalid, time.Second, time.Time{}},
		"a mount that is done with itself": {func(s *fakeShard) { s.fail = errors.New("boom") }, nil, 3 * time.Second, time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
			c.set(f.shard("a"))
			bs := newWith(t, f, indexbs.Options{})
			for range 2 { // the second time of what is remembered
				for how, err := range everyRead(t.Context(), bs, block) {
					var away *dagstore.UnavailableError
					if how == "GetSize" && f.shard("a").readErr != nil && err == nil {
						continue // which reads the index only
					}
					if !errors.As(err, &away) || !errors.Is(err, dagstore.ErrUnavailable) || isNotFoundOfAny(err) {
						t.Errorf("%s: %v", how, err)
						continue
					}
					if c.reason != nil && !errors.Is(err, c.reason) {
						t.Errorf("%s does not say why: %v", how, err)
					}
					if string(away.Multihash) != string(block.Hash()) || len(away.Shards) != 1 || away.Shards[0] != shard.KeyFromString("a") ||
						away.RetryAfter != c.retryAfter || away.Since.IsZero() || !c.since.IsZero() && !away.Since.Equal(c.since) {
						t.Errorf("%s: %+v", how, away)
					}
				}
			}
			if has, err := bs.Has(t.Context(), block); err != nil || !has {
				t.Errorf("Has: %v, %v", has, err) // the index has it
			}
			if n := bs.Stats().Unavailable; n == 0 {
				t.Error("no read is counted as one of what is away")
			}
		})
	}
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared})
	c, data := sharedBlock(t)
	f.shard("a").corrupt(t, c, data)
	f.shard("b").fail = known
	bs := newWith(t, f, indexbs.Options{})
	for how, err := range everyRead(t.Context(), bs, c) { // b may have good bytes
		if how != "GetSize" && (!errors.Is(err, dagstore.ErrUnavailable) || !errors.Is(err, dagstore.ErrBlockCorrupt)) {
			t.Errorf("%s of a block that is rotten in a, and b is away: %v", how, err)
		}
	}
	f.shard("b").fail = nil
	for how, err := range everyRead(t.Context(), bs, c) { // a fallback serves
		if err != nil {
			t.Errorf("%s, and b is back: %v", how, err)
		}
	}
}

// TestAwayIsNotRemembered: what the store says is away is asked for again each time, so
// it is served as soon as the store serves it, however long failures are remembered.
// Proves A4 (the blockstore over all shards).
func TestAwayIsNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
		bs := newWith(t, f, indexbs.Options{FailedFor: time.Hour})
		f.shard("a").fail = &dagstore.UnavailableError{Shards: []shard.Key{shard.KeyFromString("a")}, Reason: fs.ErrNotExist, RetryAfter: time.Second}
		for range 3 {
			if _, err := bs.Get(t.Context(), testdata.RootCID); !errors.Is(err, dagstore.ErrUnavailable) {
				t.Fatal(err)
			}
		}
		f.shard("a").fail = nil
		for how, err := range everyRead(t.Context(), bs, testdata.RootCID) {
			if err != nil {
				t.Errorf("%s: %v", how, err)
			}
		}
	})
}

// TestLookupsThatCannotTell: a lookup that says that the block is away, or that it lacks
// what it would have to know, is passed on by everything, Has and Explain too, and is not
// remembered as an absence. Proves A1, A3.
func TestLookupsThatCannotTell(t *testing.T) {
	for name, lookup := range map[string]error{
		"away":       &dagstore.UnavailableError{Multihash: testdata.RootCID.Hash(), Reason: ds.ErrNotFound},
		"not fresh":  fmt.Errorf("find: %w", &projection.NotFreshError{View: "top-level index"}),
		"incoherent": fmt.Errorf("%w: %w", dagstore.ErrUnavailable, ds.ErrNotFound),
	} {
		t.Run(name, func(t *testing.T) {
			s := &findingStore{fakeStore: newFakeStore(t, map[string][]byte{"a": testdata.CarV1}), pos: dagstore.Position{Seq: 7}}
			bs := newWith(t, s, indexbs.Options{NotFoundFor: time.Hour})
			s.lookup = lookup
			all := everyRead(t.Context(), bs, testdata.RootCID)
			var has bool
			has, all["Has"] = bs.Has(t.Context(), testdata.RootCID)
			_, _, all["Explain"] = bs.Explain(t.Context(), testdata.RootCID)
			for how, err := range all {
				unknown := errors.Is(err, dagstore.ErrUnavailable) || errors.Is(err, dagstore.ErrNotFresh)
				if !unknown || how != "Has" && ipld.IsNotFound(err) || errors.Is(err, indexbs.ErrBlockNotFound) || has {
					t.Errorf("%s: %v", how, err)
				}
			}
			s.lookup = nil
			if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
				t.Errorf("remembered: %v", err)
			}
		})
	}
}

// TestDestroyedUnderTraffic: a shard that 16 goroutines read without a pause can be
// destroyed by a plain DestroyShard. Until then its blocks are served or away, then not
// found, and blocks that another shard holds are served all the time. Proves A10.
func TestDestroyedUnderTraffic(t *testing.T) {
	shared, _ := sharedBlock(t)
	d, paths := openStore(t, map[string][]byte{"v1": testdata.CarV1, "shared": testdata.CarShared})
	bs := must(indexbs.Of(d))
	defer bs.Close()
	a := shard.KeyFromString("v1")
	for round := range 5 {
		var gone, stop atomic.Bool
		var served atomic.Int64
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				for !stop.Load() {
					after := gone.Load()
					c := testdata.RootCID
					if i%2 == 0 {
						c = shared
					}
					var err error
					switch i % 6 {
					case 0, 1:
						_, err = bs.Get(t.Context(), c)
					case 2, 3:
						err = bs.View(t.Context(), c, func([]byte) error { return nil })
					default:
						_, err = bs.GetMany(t.Context(), []cid.Cid{c, shared})
					}
					switch {
					case err == nil:
						if served.Add(1); after && c != shared {
							t.Error("a block of the destroyed shard was served")
						}
					case c == shared:
						t.Errorf("a block of the other shard: %v", err)
					case !errors.Is(err, dagstore.ErrUnavailable) && !ipld.IsNotFound(err):
						t.Error(err)
					case after && !ipld.IsNotFound(err):
						t.Errorf("after the destruction: %v", err)
					}
				}
			})
		}
		eventually(t, "there is traffic", func() bool { return served.Load() > 1000 })
		if _, err := d.DestroyShardSync(t.Context(), a, dagstore.DestroyOpts{}); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		gone.Store(true)
		now := served.Load()
		eventually(t, "there is traffic afterwards", func() bool { return served.Load() > now+1000 })
		stop.Store(true)
		wg.Wait()
		if _, err := d.RegisterShardSync(t.Context(), a, &mount.FileMount{Path: paths["v1"]}, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := bs.Stats().LetGo; n == 0 {
		t.Error("nothing was let go of")
	}
}

// TestEvict: an evicted shard is closed, after its last use if it is in use, and opened
// again by the next read; one that is on its way is for those who wait only. Proves A10.
func TestEvict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
		a := f.shard("a")
		bs := newWith(t, f, indexbs.Options{})
		bs.Evict(a.key) // nothing to let go of
		get := func() error { _, err := bs.Get(t.Context(), testdata.RootCID); return err }
		if err := get(); err != nil || a.open() != 1 {
			t.Fatalf("%v, %d open", err, a.open())
		}
		if bs.Evict(a.key); a.open() != 0 || bs.Stats().OpenNow != 0 {
			t.Errorf("%d open", a.open())
		}
		err := bs.View(t.Context(), testdata.RootCID, func([]byte) error {
			if bs.Evict(a.key); a.open() != 1 {
				t.Error("closed while it was read")
			}
			return nil
		})
		if err != nil || a.open() != 0 {
			t.Errorf("%v, %d open", err, a.open())
		}
		gate := f.gateNext(a)
		got := make(chan error)
		for range 2 {
			go func() { got <- get() }()
		}
		synctest.Wait()
		bs.Evict(a.key)
		close(gate)
		for range 2 {
			if err := <-got; err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if a.open() != 0 {
			t.Error("what arrived after Evict was kept")
		}
		if n := bs.Stats().LetGo; n != 2 {
			t.Errorf("let go of %d", n)
		}
	})
}

// TestShortOfDescriptors: an acquire for which there are no descriptors gives up what is
// idle, and is tried again. Proves A5.
func TestShortOfDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared})
		s := &shortStore{fakeStore: f, room: 1}
		bs := newWith(t, s, indexbs.Options{})
		for range 3 {
			for _, c := range []cid.Cid{testdata.RootCID, testdata.SharedRootCID} {
				if _, err := bs.Get(t.Context(), c); err != nil {
					t.Error(err)
				}
			}
		}
		if n := bs.Stats().Shortages; n == 0 {
			t.Error("there was never a shortage")
		}
		// A batch does not wait for one shard while it holds another that it opened ahead.
		for range 50 {
			bs.Evict(f.shard("a").key)
			bs.Evict(f.shard("b").key)
			if _, err := bs.GetMany(t.Context(), []cid.Cid{testdata.RootCID, testdata.SharedRootCID}); err != nil {
				t.Fatal(err)
			}
		}
		s.room = 0
		bs.Evict(f.shard("a").key)
		bs.Evict(f.shard("b").key)
		if _, err := bs.Get(t.Context(), testdata.RootCID); !errors.Is(err, dagstore.ErrUnavailable) || !errors.Is(err, syscall.EMFILE) {
			t.Errorf("a shortage that lasts: %v", err)
		}
	})
}

// shortStore can have so many shards open.
type shortStore struct {
	*fakeStore
	room int32
}

func (s *shortStore) AcquireShard(ctx context.Context, key shard.Key, out chan dagstore.ShardResult, o dagstore.AcquireOpts) error {
	open := int32(0)
	for _, x := range s.shards {
		open += x.open()
	}
	if open >= s.room {
		return &fs.PathError{Op: "open", Path: "a.car", Err: syscall.EMFILE}
	}
	return s.fakeStore.AcquireShard(ctx, key, out, o)
}

// fewStore is a [indexbs.FewFinder].
type fewStore struct {
	*findingStore
	asked []int // how many were asked for
}

func (s *fewStore) AppendSomeShardsOfCid(ctx context.Context, dst []shard.Key, c cid.Cid, fresh dagstore.Consistency, most int) ([]shard.Key, dagstore.Position, error) {
	s.asked = append(s.asked, most)
	dst, pos, err := s.findingStore.AppendShardsOfCid(ctx, dst, c, fresh)
	if most > 0 && len(dst) > most {
		dst = dst[:most]
	}
	return dst, pos, err
}

func (s *fewStore) AppendShardsOfCid(ctx context.Context, dst []shard.Key, c cid.Cid, fresh dagstore.Consistency) ([]shard.Key, dagstore.Position, error) {
	return s.AppendSomeShardsOfCid(ctx, dst, c, fresh, 0)
}

// TestPopularBlocks: of a block in very many shards a few are looked up, and all of them
// only if those do not serve it; Has needs one. Proves A1 (a lookup that stopped early is
// not taken for all).
func TestPopularBlocks(t *testing.T) {
	cars := map[string][]byte{}
	for i := range 40 {
		cars[fmt.Sprintf("s%02d", i)] = testdata.CarV1
	}
	s := &fewStore{findingStore: &findingStore{fakeStore: newFakeStore(t, cars), pos: dagstore.Position{Seq: 7}}}
	read := map[string]func(*indexbs.IndexBackedBlockstore) error{
		"Get": func(bs *indexbs.IndexBackedBlockstore) error {
			_, err := bs.Get(t.Context(), testdata.RootCID)
			return err
		},
		"GetMany": func(bs *indexbs.IndexBackedBlockstore) error {
			_, err := bs.GetMany(t.Context(), []cid.Cid{testdata.RootCID})
			return err
		},
	}
	asked := func(want ...int) {
		t.Helper()
		if fmt.Sprint(s.asked) != fmt.Sprint(want) {
			t.Errorf("asked for %v shards, want %v", s.asked, want)
		}
		s.asked = nil
	}
	for name, get := range read {
		t.Run(name, func(t *testing.T) {
			for _, x := range s.shards {
				x.fail = nil
			}
			if err := get(newWith(t, s, indexbs.Options{})); err != nil {
				t.Error(err)
			}
			asked(8)
			for i := range 39 {
				s.shard(fmt.Sprintf("s%02d", i)).fail = errors.New("away")
			}
			bs := newWith(t, s, indexbs.Options{})
			if err := get(bs); err != nil {
				t.Errorf("the last of the shards serves: %v", err)
			}
			asked(8, 0)
			s.shard("s39").fail = errors.New("away")
			var away *dagstore.UnavailableError
			if err := get(newWith(t, s, indexbs.Options{})); !errors.As(err, &away) || len(away.Shards) != 16 {
				t.Errorf("none serves: %v", err)
			}
			asked(8, 0)
			for i := range 40 { // they all end between the lookup and the read
				s.shard(fmt.Sprintf("s%02d", i)).fail = dagstore.ErrShardUnknown
			}
			if err := get(newWith(t, s, indexbs.Options{})); !ipld.IsNotFound(err) {
				t.Errorf("all are gone: %v", err)
			}
			asked(8, 0)
		})
	}
	if has, err := newWith(t, s, indexbs.Options{}).Has(t.Context(), testdata.RootCID); err != nil || !has {
		t.Error(has, err)
	}
	asked(1)
	for _, x := range s.shards {
		x.fail = nil
	}
	// A selector is offered all.
	offered := 0
	bs := newWith(t, s, indexbs.Options{Policy: indexbs.ShardSelectorF(func(_ cid.Cid, shards []shard.Key) (shard.Key, error) {
		offered = len(shards)
		return shards[0], nil
	})})
	if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil || offered != 40 {
		t.Errorf("%d offered to a selector: %v", offered, err)
	}
	asked(0)
}

// TestUndefinedCID: it is in no shard. Proves A1.
func TestUndefinedCID(t *testing.T) {
	d, _ := openStore(t, map[string][]byte{"v1": testdata.CarV1})
	bs := must(indexbs.Of(d))
	defer bs.Close()
	for how, err := range everyRead(t.Context(), bs, cid.Undef) {
		if how != "LinkSystem" && !ipld.IsNotFound(err) {
			t.Errorf("%s: %v", how, err)
		}
	}
	if has, err := bs.Has(t.Context(), cid.Undef); has || err != nil {
		t.Error(has, err)
	}
}

// TestOf: a store, and options or none.
func TestOf(t *testing.T) {
	d, _ := openStore(t, map[string][]byte{"v1": testdata.CarV1})
	for _, o := range [][]indexbs.Options{nil, {{MaxOpen: 3}}} {
		bs, err := indexbs.Of(d, o...)
		if err != nil {
			t.Fatal(err)
		}
		var blk blocks.Block
		if blk, err = bs.Get(t.Context(), testdata.RootCID); err != nil || blk.Cid() != testdata.RootCID {
			t.Error(blk, err)
		}
		if err := bs.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := indexbs.Of(nil); err == nil {
		t.Error("no store")
	}
	if _, err := indexbs.Of(d, indexbs.Options{}, indexbs.Options{}); err == nil {
		t.Error("two sets of options")
	}
}

// TestGCNamesTheBlockstore: the copy of a shard that was read once stays while its accessor
// is kept for later, and GC says that it does; asked to, it has it let go.
func TestGCNamesTheBlockstore(t *testing.T) {
	d := must(dagstore.Open(t.Context(), t.TempDir(), dagstore.WithMount("fs", &mount.FSMount{FS: testdata.FS})))
	defer d.Close()
	a := shard.KeyFromString("a")
	if _, err := d.RegisterShardSync(t.Context(), a, &mount.FSMount{FS: testdata.FS, Path: testdata.FSPathCarV1}, dagstore.RegisterOpts{}); err != nil {
		t.Fatal(err)
	}
	bs := must(indexbs.Of(d))
	defer bs.Close()
	if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
		t.Fatal(err)
	}
	res := must(d.GC(t.Context()))
	if !strings.Contains(res.InUse[a], "1 of the index-backed blockstore") || res.Reclaimed != 0 {
		t.Errorf("%+v", res)
	}
	res = must(d.GCWith(t.Context(), dagstore.GCOptions{AskHolders: true}))
	if len(res.InUse) != 0 || res.Reclaimed != uint64(len(testdata.CarV1)) || bs.Stats().OpenNow != 0 {
		t.Errorf("with holders asked: %+v, %d open", res, bs.Stats().OpenNow)
	}
	if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
		t.Errorf("and it is fetched again: %v", err)
	}
}
