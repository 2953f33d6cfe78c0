package indexbs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"
	"pgregory.net/rapid"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// told is what ViewMany told of each index.
type told struct {
	data []byte
	err  error
	n    int
}

func viewAll(ctx context.Context, bs *indexbs.IndexBackedBlockstore, cids []cid.Cid) ([]told, error) {
	out := make([]told, len(cids))
	inside := false
	err := bs.ViewMany(ctx, cids, func(i int, data []byte, err error) error {
		if inside {
			return errors.New("two calls at a time")
		}
		inside = true
		out[i] = told{bytes.Clone(data), err, out[i].n + 1}
		inside = false
		return nil
	})
	return out, err
}

// TestManyAgainstMap: of any blocks, in any order and repeated, over shards of which some
// fail as a whole and others have bad blocks, ViewMany says once of each index what the
// map of intact copies says, GetMany and Get the same, and in the end nothing is open.
// Proves F21, F15, I13, I5 (accessors of batches).
func TestManyAgainstMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const blocks, shards = 12, 4
		all := make([]cid.Cid, blocks)
		data := make([][]byte, blocks)
		for i := range all {
			data[i] = bytes.Repeat([]byte{byte(i + 1)}, 10*(i+1))
			all[i] = cidOf(data[i])
		}
		cars := map[string][]byte{}
		holds := make([][]int, shards)
		for s := range shards {
			holds[s] = rapid.SliceOfDistinct(rapid.IntRange(0, blocks-1), rapid.ID).Draw(rt, "holds")
			var cs []cid.Cid
			var ds [][]byte
			for _, i := range holds[s] {
				cs, ds = append(cs, all[i]), append(ds, data[i])
			}
			cars[fmt.Sprint(s)] = carOfMany(cs, ds)
		}
		f := newFakeStore(t, cars)
		intact, somewhere := map[int]bool{}, map[int]bool{}
		for s := range shards {
			sh := f.shard(fmt.Sprint(s))
			down := rapid.IntRange(0, 3).Draw(rt, "down")
			switch down {
			case 0:
				sh.fail = errors.New("down")
			case 1:
				sh.refuse = dagstore.ErrShardUnknown
			}
			for _, i := range holds[s] {
				bad := rapid.IntRange(0, 3).Draw(rt, "bad") == 0
				if bad {
					sh.corrupt(t, all[i], data[i])
				}
				intact[i] = intact[i] || !bad && down > 1
				somewhere[i] = somewhere[i] || down != 1
			}
		}
		o := indexbs.Options{MaxOpen: rapid.IntRange(1, shards).Draw(rt, "open"), FailedFor: -1}
		if rapid.Bool().Draw(rt, "remembers") {
			o.FailedFor = time.Hour
		}
		bs, err := indexbs.New(t.Context(), f, o)
		if err != nil {
			rt.Fatal(err)
		}
		check := func(i int, got []byte, err error) {
			switch {
			case intact[i] && (err != nil || !bytes.Equal(got, data[i])):
				rt.Errorf("block %d: %d bytes, %v", i, len(got), err)
			case !intact[i] && somewhere[i] && (err == nil || isNotFound(err)):
				rt.Errorf("block %d, which cannot be read: %v", i, err)
			case !somewhere[i] && !isNotFound(err):
				rt.Errorf("block %d, which is nowhere: %v", i, err)
			}
		}
		for range 3 {
			want := rapid.SliceOfN(rapid.IntRange(0, blocks-1), 0, 20).Draw(rt, "want")
			cids := make([]cid.Cid, len(want))
			for k, i := range want {
				cids[k] = all[i]
			}
			out, err := viewAll(t.Context(), bs, cids)
			if err != nil {
				rt.Fatal(err)
			}
			got, gotErr := bs.GetMany(t.Context(), cids)
			missing := false
			for k, i := range want {
				if out[k].n != 1 {
					rt.Errorf("index %d was told %d times", k, out[k].n)
				}
				check(i, out[k].data, out[k].err)
				missing = missing || got[k] == nil
				if (got[k] == nil) == intact[i] || got[k] != nil && (!bytes.Equal(got[k].RawData(), data[i]) || got[k].Cid() != all[i]) {
					rt.Errorf("GetMany: block %d is %v", i, got[k])
				}
				blk, err := bs.Get(t.Context(), cids[k])
				if err == nil {
					check(i, blk.RawData(), nil)
				} else {
					check(i, nil, err)
				}
			}
			if (gotErr != nil) != missing {
				rt.Errorf("GetMany: %v", gotErr)
			}
		}
		bs.Close()
		// One that made room for another is closed beside the reader.
		eventually(t, "all accessors are closed", func() bool {
			for _, s := range f.shards {
				if s.open() != 0 {
					return false
				}
			}
			return true
		})
	})
}

// TestManyEnds: an error of fn ends the call and comes back as it is; a panic goes
// through; and each time all accessors are given back, those that were opened ahead too.
// Proves F15.
func TestManyEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cars, cids := manyShards(10, 2)
		f := newFakeStore(t, cars)
		mine := fmt.Errorf("mine: %w", ipld.ErrNotFound{})
		for stop := range len(cids) {
			bs := newWith(t, f, indexbs.Options{})
			calls := 0
			err := bs.ViewMany(t.Context(), cids, func(int, []byte, error) error {
				if calls++; calls == stop+1 {
					return mine
				}
				return nil
			})
			if err != mine || calls != stop+1 {
				t.Errorf("%v after %d calls, want %v after %d", err, calls, mine, stop+1)
			}
			calls = 0
			func() {
				defer func() {
					if recover() == nil {
						t.Error("the panic is gone")
					}
				}()
				_ = bs.ViewMany(t.Context(), cids, func(int, []byte, error) error {
					if calls++; calls == stop+1 {
						panic("mine")
					}
					return nil
				})
			}()
			bs.Close()
			synctest.Wait()
			for _, s := range f.shards {
				if s.open() != 0 {
					t.Fatalf("%d accessors of %s are open", s.open(), s.key)
				}
			}
		}
	})
}

// manyShards are CARs of some blocks each, and all the blocks, shard by shard.
func manyShards(shards, blocks int) (map[string][]byte, []cid.Cid) {
	cars := map[string][]byte{}
	var all []cid.Cid
	for s := range shards {
		cids, data := make([]cid.Cid, blocks), make([][]byte, blocks)
		for i := range blocks {
			data[i] = blockOf(uint64(s*blocks+i+1), 100)
			cids[i] = cidOf(data[i])
		}
		cars[fmt.Sprintf("%02d", s)] = carOfMany(cids, data)
		all = append(all, cids...)
	}
	return cars, all
}

// TestManyCancelled: when the context ends, every block that was not served is told of
// with its error, once; accessors that are being opened are given up, and those that come
// all the same are closed. Proves F15, F14.
func TestManyCancelled(t *testing.T) {
	for name, heeds := range map[string]bool{"the store heeds the context": true, "it answers late": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cars, cids := manyShards(8, 2)
				f := newFakeStore(t, cars)
				gate := make(chan struct{})
				for k, s := range f.shards {
					if k.String() > "01" {
						s.gate, s.heeds = gate, heeds
					}
				}
				bs := newWith(t, f, indexbs.Options{})
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				out, err := viewAll(ctx, bs, cids)
				if err != nil {
					t.Error(err)
				}
				for i, x := range out {
					if x.n != 1 || (i < 4) != (x.err == nil) || i >= 4 && x.err != context.DeadlineExceeded {
						t.Errorf("block %d was told %d times: %v", i, x.n, x.err)
					}
				}
				if _, err := bs.GetMany(t.Context(), cids[:4]); err != nil {
					t.Error(err)
				}
				out, _ = viewAll(ctx, bs, cids) // of which some are hot
				for i, x := range out {
					if x.n != 1 || x.err != context.DeadlineExceeded {
						t.Errorf("afterwards block %d was told %d times: %v", i, x.n, x.err)
					}
				}
				got, err := bs.GetMany(ctx, cids)
				if !errors.Is(err, context.DeadlineExceeded) || len(err.Error()) > 200 || slices.ContainsFunc(got, func(b blocks.Block) bool { return b != nil }) {
					t.Errorf("GetMany after the end: %v, %v", got, err)
				}
				close(gate)
				synctest.Wait()
				bs.Close()
				synctest.Wait()
				for _, s := range f.shards {
					if s.open() != 0 {
						t.Errorf("%d accessors of %s are open", s.open(), s.key)
					}
				}
				if n := f.count(); n > 2+1+4 {
					t.Errorf("%d acquires; a cancelled batch goes on to no other shard", n)
				}
			})
		})
	}
}

// TestManyStopsWhileOthersAreOpened: an error of fn does not wait for shards that are being
// opened ahead.
func TestManyStopsWhileOthersAreOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cars, cids := manyShards(4, 1)
		f := newFakeStore(t, cars)
		for k, s := range f.shards {
			if k.String() > "00" {
				s.gate, s.heeds = make(chan struct{}), true
			}
		}
		bs := newWith(t, f, indexbs.Options{})
		mine := errors.New("mine")
		if err := bs.ViewMany(t.Context(), cids, func(int, []byte, error) error { return mine }); err != mine {
			t.Errorf("ViewMany: %v", err)
		}
		synctest.Wait()
		for k, s := range f.shards {
			if n := s.cancelled.Load(); (n == 1) != (k.String() > "00") {
				t.Errorf("%d acquires of %s were cancelled", n, k)
			}
		}
	})
}

// TestManyAfterRecovery: an accessor that fails leaves the cache, and the blocks that it
// did not serve are read once more from a new one, since the shard may have been
// recovered meanwhile.
func TestManyAfterRecovery(t *testing.T) {
	c, data := sharedBlock(t)
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
	s := f.shard("a")
	healthy := s.car
	s.corrupt(t, c, data)
	bs := newWith(t, f, indexbs.Options{FailedFor: -1})
	cids := []cid.Cid{testdata.RootCID, c}
	for i, opened := range []int32{1, 2, 3} {
		out, _ := viewAll(t.Context(), bs, cids)
		if out[0].err != nil || !errors.Is(out[1].err, dagstore.ErrBlockCorrupt) {
			t.Errorf("%v, %v", out[0].err, out[1].err)
		}
		if s.open() != 0 || s.opened.Load() != opened {
			t.Errorf("%d: %d accessors are open, %d were opened; want 0, %d", i, s.open(), s.opened.Load(), opened)
		}
	}
	if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
		t.Fatal(err)
	}
	s.car = healthy
	if got, err := bs.GetMany(t.Context(), cids); err != nil || got[1] == nil {
		t.Errorf("after it was mended: %v", err)
	}
}

// TestManyClosed: when the blockstore is closed, blocks that wait are told so.
func TestManyClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cars, cids := manyShards(3, 1)
		f := newFakeStore(t, cars)
		for _, s := range f.shards {
			f.gateNext(s)
		}
		bs := newWith(t, f, indexbs.Options{})
		got := make(chan []told)
		go func() {
			out, _ := viewAll(t.Context(), bs, cids)
			got <- out
		}()
		synctest.Wait()
		bs.Close()
		for i, x := range <-got {
			if x.n != 1 || !errors.Is(x.err, dagstore.ErrClosed) {
				t.Errorf("block %d was told %d times: %v", i, x.n, x.err)
			}
		}
		for _, s := range f.shards {
			close(s.gate)
		}
		synctest.Wait()
		for _, s := range f.shards {
			if s.open() != 0 {
				t.Errorf("%s is open", s.key)
			}
		}
	})
}

// TestManyGroups: a batch acquires each shard once, prefers the one that holds most of
// the blocks, and opens some at a time.
func TestManyGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cars, cids := manyShards(20, 5)
		var everything [][]byte
		for i := range cids {
			everything = append(everything, blockOf(uint64(i+1), 100))
		}
		cars["zz, all of them"] = carOfMany(cids, everything)
		f := newFakeStore(t, cars)
		bs := newWith(t, f, indexbs.Options{})
		if out, err := bs.GetMany(t.Context(), cids); err != nil || len(out) != len(cids) {
			t.Fatal(err)
		}
		if n := f.count(); n != 1 {
			t.Errorf("%d shards were acquired, want the one that holds all", n)
		}

		delete(f.shards, shard.KeyFromString("zz, all of them"))
		f.order = f.order[:len(f.order)-1]
		clear(f.found)
		gate := make(chan struct{})
		for _, s := range f.shards {
			s.gate = gate
		}
		bs = newWith(t, f, indexbs.Options{FailedFor: -1})
		before := f.count()
		done := make(chan error)
		go func() {
			_, err := bs.GetMany(t.Context(), cids)
			done <- err
		}()
		synctest.Wait()
		if n := f.count() - before; n != 5 {
			t.Errorf("%d shards are being opened, want the first and 4 ahead", n)
		}
		close(gate)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := f.count() - before; n != 20 {
			t.Errorf("%d acquires for 20 shards", n)
		}
		if got := bs.Stats(); got.Opens != 20 || got.OpenNow != 20 {
			t.Errorf("stats: %+v", got)
		}
	})
}

// TestManyMixed: identity CIDs, undefined ones, those of no shard and repeated ones, and
// a lookup that fails.
func TestManyMixed(t *testing.T) {
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
	bs := newWith(t, f, indexbs.Options{HotBlocks: -1})
	inline := cid.NewCidV1(cid.Raw, must(mh.Sum([]byte("inline"), mh.IDENTITY, -1)))
	cids := []cid.Cid{inline, cid.Undef, missing, testdata.RootCID, inline, testdata.RootCID}
	out, err := viewAll(t.Context(), bs, cids)
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range out {
		if x.n != 1 {
			t.Errorf("%d was told %d times", i, x.n)
		}
		switch i {
		case 0, 4:
			if string(x.data) != "inline" || x.err != nil {
				t.Errorf("identity: %q, %v", x.data, x.err)
			}
		case 1, 2:
			var nf ipld.ErrNotFound
			if !errors.As(x.err, &nf) || nf.Cid != cids[i] {
				t.Errorf("%d: %v", i, x.err)
			}
		default:
			if len(x.data) == 0 || x.err != nil {
				t.Errorf("%d: %v", i, x.err)
			}
		}
	}
	if out, err := viewAll(t.Context(), bs, nil); err != nil || len(out) != 0 {
		t.Error(err)
	}
	f.lookup = errors.New("index on fire")
	out, _ = viewAll(t.Context(), bs, cids[2:4])
	for _, x := range out {
		if !errors.Is(x.err, f.lookup) || isNotFound(x.err) {
			t.Errorf("a lookup that fails: %v", x.err)
		}
	}
}

// TestManySelector: a selector decides about each block of a batch as it does about one.
// Proves F24.
func TestManySelector(t *testing.T) {
	c, data := sharedBlock(t)
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared})
	f.shard("a").corrupt(t, c, data)
	onlyA := func(_ cid.Cid, shards []shard.Key) (shard.Key, error) {
		if shards[0].String() == "a" {
			return shards[0], nil
		}
		return shard.Key{}, indexbs.ErrNoShardSelected
	}
	bs := newBlockstore(t, f, onlyA, 10, 0)
	out, _ := viewAll(t.Context(), bs, []cid.Cid{testdata.RootCID, testdata.SharedRootCID, c})
	if out[0].err != nil {
		t.Error(out[0].err)
	}
	if !isNotFound(out[1].err) || !errors.Is(out[1].err, indexbs.ErrNoShardSelected) {
		t.Errorf("declined: %v", out[1].err)
	}
	if isNotFound(out[2].err) || !errors.Is(out[2].err, dagstore.ErrBlockCorrupt) || !errors.Is(out[2].err, indexbs.ErrNoShardSelected) {
		t.Errorf("declined after a failure: %v", out[2].err)
	}
	broken := errors.New("broken selector")
	bs = newBlockstore(t, f, func(cid.Cid, []shard.Key) (shard.Key, error) { return shard.Key{}, broken }, 10, 0)
	out, _ = viewAll(t.Context(), bs, []cid.Cid{c})
	if !errors.Is(out[0].err, broken) {
		t.Errorf("broken: %v", out[0].err)
	}
}

// TestManyOverStore reads all blocks of two shards from many goroutines, with room for
// one accessor, while readers of single blocks come and go. Proves F14, F15.
func TestManyOverStore(t *testing.T) {
	d, _ := openStore(t, map[string][]byte{"v1": testdata.CarV1, "shared": testdata.CarShared})
	bs := newWith(t, over(d), indexbs.Options{MaxOpen: 1})
	want := sampleBlocks(t, testdata.CarV1)
	for c, data := range sampleBlocks(t, testdata.CarShared) {
		want[c] = data
	}
	var cids []cid.Cid
	for c := range want {
		cids = append(cids, c)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for range 10 {
				out, err := bs.GetMany(t.Context(), cids)
				if err != nil {
					t.Error(err)
					return
				}
				for i, blk := range out {
					if !bytes.Equal(blk.RawData(), want[cids[i]]) {
						t.Errorf("%s: wrong bytes", cids[i])
					}
				}
				ctx, cancel := context.WithCancel(t.Context())
				go cancel()
				if _, err := bs.Get(ctx, cids[w]); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	bs.Close()
	for _, name := range []string{"v1", "shared"} {
		eventually(t, name+" is no longer in use", func() bool {
			return must(d.GetShardInfo(shard.KeyFromString(name))).ShardState == dagstore.ShardStateAvailable
		})
	}
}

// TestStressNew has single reads, batches, evictions, expiry, failures and cancelled
// reads race over more shards than are kept open, with blocks that are remembered where
// they were; nothing is open in the end. Proves F14, F15, I13.
func TestStressNew(t *testing.T) {
	cars, cids := manyShards(8, 4)
	extra, _ := manyShards(8, 4) // every block in two shards
	for name, car := range extra {
		if name < "04" {
			cars["copy of "+name] = car
		}
	}
	f := newFakeStore(t, cars)
	f.shard("02").corrupt(t, cids[8], blockOf(9, 100))
	f.shard("03").fail = errors.New("failed")
	bs := newWith(t, f, indexbs.Options{MaxOpen: 3, IdleFor: time.Millisecond, FailedFor: time.Millisecond, HotBlocks: 8})
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := range 200 {
				ctx, cancel := context.WithCancel(t.Context())
				if (i+w)%5 == 0 {
					go cancel()
				}
				k := (i*7 + w) % len(cids)
				if i%4 == 0 {
					out, err := viewAll(ctx, bs, cids[k:])
					for n, x := range out {
						if x.n != 1 || x.err == nil && !bytes.Equal(x.data, blockOf(uint64(k+n+1), 100)) || x.err != nil && !errors.Is(x.err, context.Canceled) {
							t.Errorf("block %d of a batch: %d times, %v", k+n, x.n, x.err)
						}
					}
					if err != nil {
						t.Error(err)
					}
				} else if blk, err := bs.Get(ctx, cids[k]); err == nil && !bytes.Equal(blk.RawData(), blockOf(uint64(k+1), 100)) || err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("block %d: %v", k, err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
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
