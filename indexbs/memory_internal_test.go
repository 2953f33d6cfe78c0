package indexbs

import (
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
	"github.com/dagstore/dagstore/shard"
)

// TestCacheAgainstModel: after any uses, with any bound, the cache holds what a list of
// the least recently used does, and its counters and the numbers of places agree with
// what it holds. Proves I5 (accessors in the cache), I15.
func TestCacheAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			var a accessorCache
			a.init(t.Context(), nil, rapid.SampledFrom([]int{0, 1, 2, 5, 12}).Draw(rt, "max"), time.Minute)
			a.places.init(64)
			var model []shard.Key // least recently used first
			used := map[shard.Key]time.Time{}
			for range rapid.IntRange(1, 100).Draw(rt, "steps") {
				key := shard.KeyFromString(fmt.Sprint(rapid.IntRange(0, 15).Draw(rt, "key")))
				<-time.After(time.Duration(rapid.IntRange(1, 5).Draw(rt, "s")) * time.Second)
				synctest.Wait()
				for len(model) > 0 && time.Since(used[model[0]]) >= time.Minute {
					model = model[1:]
				}
				i := slices.Index(model, key)
				e := a.hit(key)
				if (e != nil) != (i >= 0) {
					rt.Fatalf("%s is in the cache: %v; want %v", key, e != nil, i >= 0)
				}
				if i >= 0 {
					model = slices.Delete(model, i, i+1)
					e.refs.Add(-1)
					if rapid.IntRange(0, 2).Draw(rt, "drop") == 0 {
						e.refs.Add(1) // the test's, so that it is not closed
						a.drop(e)
						continue
					}
				} else {
					e := &entry{key: key, at: -1}
					e.refs.Store(2) // of which one is the test's
					a.mu.Lock()
					out := a.insertLocked(e)
					a.mu.Unlock()
					if (out != nil) != (a.max > 0 && len(model) == a.max) || out != nil && out.key != model[0] {
						rt.Fatalf("%v makes room; the order is %v", out, model)
					}
					if out != nil {
						model = model[1:]
					}
				}
				model, used[key] = append(model, key), time.Now()
				checkCache(rt, &a, model)
			}
			a.mu.Lock()
			a.mu.timer.Stop()
			a.mu.unwatch()
			a.mu.Unlock()
		})
	})
}

// checkCache holds a cache to its invariants and to a list of its keys.
func checkCache(t *rapid.T, a *accessorCache, keys []shard.Key) {
	if a.len() != len(keys) {
		t.Fatalf("%d in the cache, want %v", a.len(), keys)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	numbers := map[uint16]bool{}
	for i, e := range a.mu.byUse {
		if e.at != i || e.stamp > e.used.Load() || i > 0 && a.mu.byUse[(i-1)/2].stamp > e.stamp {
			t.Fatalf("the heap is broken at %d", i)
		}
		if !a.isOpen(e.key) || !slices.Contains(keys, e.key) {
			t.Fatalf("%s is not in its stripe, or not in %v", e.key, keys)
		}
		if e.number == 0 || numbers[e.number] || a.places.open[e.number].Load() != e {
			t.Fatalf("%s has number %d", e.key, e.number)
		}
		numbers[e.number] = true
	}
	for _, n := range a.places.free {
		if a.places.open[n].Load() != nil {
			t.Fatalf("number %d is free and in use", n)
		}
	}
	if n := len(a.places.free) + len(numbers); n != maxPlaces-1 {
		t.Fatalf("%d numbers", n)
	}
}

// TestMemoriesAreBounded: what is remembered has a bound, whatever fails and whatever is
// asked for, and what is over goes first. Proves I15.
func TestMemoriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := failures{keep: time.Minute}
		err := errors.New("failed")
		f.add(shard.KeyFromString("old"), "", err, whole)
		<-time.After(59 * time.Second)
		for i := range maxFailures - 1 {
			f.add(shard.KeyFromString(fmt.Sprint(i)), fmt.Sprint(i), err, ofBlock)
		}
		<-time.After(time.Second)
		f.add(shard.KeyFromString("new"), "m", err, ofBlock)
		if _, why := f.of(shard.KeyFromString("old"), ""); why != nil {
			t.Error("a failure is remembered for too long")
		}
		for _, i := range []int{0, maxFailures - 2} {
			if last, why := f.of(shard.KeyFromString(fmt.Sprint(i)), fmt.Sprint(i)); last.err == nil || why == nil {
				t.Errorf("failure %d made room although one was over", i)
			}
		}
		for i := range 3 * maxFailures {
			f.add(shard.KeyFromString(fmt.Sprint("more ", i)), fmt.Sprint(i), err, scope(i%2))
		}
		if n, m := len(f.mu.shards), len(f.mu.blocks); n > maxFailures || m > maxFailures {
			t.Errorf("%d shards and %d blocks are remembered", n, m)
		}
		<-time.After(time.Minute)
		if f.of(shard.KeyFromString("new"), "m"); f.any() || f.mu.shards != nil || f.mu.blocks != nil {
			t.Error("after all is over something is remembered")
		}

		var a absences
		a.init(time.Minute)
		pos := dagstore.Position{Seq: 1}
		for i := range 2 * maxAbsences {
			sum, _ := mh.Sum([]byte(fmt.Sprint(i)), mh.SHA2_256, -1)
			c := cid.NewCidV1(cid.Raw, sum)
			a.add(&notFoundError{ErrNotFound: ipld.ErrNotFound{Cid: c}, asOf: dagstore.Freshness{View: "v", Applied: pos}})
			if e := a.of(c, pos); e == nil || e.Cid != c {
				t.Fatal("not remembered")
			}
		}
		for i := range 1000 {
			sum, _ := mh.Sum([]byte(fmt.Sprint("never ", i)), mh.SHA2_256, -1)
			if a.of(cid.NewCidV1(cid.Raw, sum), pos) != nil {
				t.Fatal("a block that nobody asked for is remembered not to be there")
			}
		}
		if len(a.slots) != maxAbsences {
			t.Errorf("%d slots", len(a.slots))
		}
	})
}

// TestPlaces: a bucket holds as many blocks as it has slots, a block is in one of them,
// and what takes a slot from another is remembered itself; entries without a number are
// not noted. Proves I15.
func TestPlaces(t *testing.T) {
	var p places
	p.init(8)
	if len(p.buckets) != 1 {
		t.Fatalf("%d buckets for 8 blocks", len(p.buckets))
	}
	a, b, none := new(entry), new(entry), new(entry)
	for _, e := range []*entry{a, b} {
		e.refs.Store(1)
		p.addLocked(e)
	}
	none.refs.Store(1)
	look := func(i int, want *entry) {
		t.Helper()
		e := p.of(fmt.Sprint(i))
		if e != want {
			t.Errorf("block %d is in %p, want %p", i, e, want)
		}
		if e != nil {
			e.refs.Add(-1)
		}
	}
	for i := range 8 {
		look(i, nil)
		p.note(fmt.Sprint(i), a)
	}
	for i := range 8 {
		look(i, a)
		p.note(fmt.Sprint(i), b)
	}
	for i := range 8 {
		look(i, b)
	}
	for i := 8; i < 100; i++ {
		p.note(fmt.Sprint(i), a)
		look(i, a)
		p.note(fmt.Sprint(i), none)
		look(i, a)
	}
	p.removeLocked(a)
	look(99, nil)
	if a.refs.Load() != 1 || b.refs.Load() != 1 {
		t.Error("references are left")
	}
}

// TestPlacesWhileEntriesGo: an entry that is closed is never handed out, however its
// leaving the cache and a hint at it cross. Proves F15.
func TestPlacesWhileEntriesGo(t *testing.T) {
	var p places
	p.init(8)
	var mu sync.Mutex // accessorCache.mu
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for i := range 8 {
					if e := p.of(fmt.Sprint(i)); e != nil {
						p.note(fmt.Sprint(i), e)
						if e.hits.Load() > 0 {
							t.Error("a closed entry was handed out")
						}
						if e.refs.Add(-1) == 0 {
							e.hits.Add(1) // closed
						}
					}
				}
			}
		})
	}
	for i := range 20000 {
		e := new(entry)
		e.refs.Store(1)
		mu.Lock()
		p.addLocked(e)
		mu.Unlock()
		p.note(fmt.Sprint(i%8), e)
		mu.Lock()
		p.removeLocked(e)
		mu.Unlock()
		if e.refs.Add(-1) == 0 {
			e.hits.Add(1)
		}
		if e.retain() && e.hits.Load() > 0 {
			t.Fatal("a closed entry was retained")
		}
	}
	close(stop)
	wg.Wait()
}

// manyShard is a blockstore with a batch verb of its own.
type manyShard struct {
	dagstore.ReadBlockstore
	asked [][]cid.Cid
	tell  func(cids []cid.Cid, fn func(int, []byte, error) error) error
}

func (m *manyShard) ViewMany(_ context.Context, cids []cid.Cid, fn func(int, []byte, error) error) error {
	m.asked = append(m.asked, cids)
	return m.tell(cids, fn)
}

func (m *manyShard) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	return nil, fmt.Errorf("%s was read by itself", c)
}

// TestManyOfAShard: a shard's own batch verb reads the blocks of its group, in whatever
// order it likes; what it does not tell of is not taken for served.
func TestManyOfAShard(t *testing.T) {
	cids := make([]cid.Cid, 4)
	for i := range cids {
		sum, _ := mh.Sum([]byte{byte(i)}, mh.SHA2_256, -1)
		cids[i] = cid.NewCidV1(cid.Raw, sum)
	}
	broken := errors.New("broken")
	var ended error // what fn said
	m := &manyShard{tell: func(cids []cid.Cid, fn func(int, []byte, error) error) error {
		for _, k := range []int{2, 0} {
			if ended = fn(k, cids[k].Bytes(), nil); ended != nil {
				return ended
			}
		}
		if err := fn(1, nil, ipld.ErrNotFound{Cid: cids[1]}); err != nil {
			return err
		}
		return broken // and says nothing of 3
	}}
	got := map[int]string{}
	b := &batch{ctx: t.Context(), bs: new(IndexBackedBlockstore), cids: cids, blocks: make([]wanted, len(cids)), fn: func(i int, data []byte, err error) error {
		got[i] = string(data)
		return err
	}}
	e := &entry{bs: m}
	e.refs.Store(3)
	g := &group{indices: []int{3, 2, 1, 0}}
	errs := b.view(e, g)
	if len(m.asked) != 1 || !slices.Equal(m.asked[0], []cid.Cid{cids[3], cids[2], cids[1], cids[0]}) {
		t.Errorf("asked for %v", m.asked)
	}
	if len(got) != 2 || got[1] != string(cids[1].Bytes()) || got[3] != string(cids[3].Bytes()) {
		t.Errorf("told of %v", got)
	}
	if !slices.Equal(g.indices, []int{2, 0}) || len(errs) != 2 || !ipld.IsNotFound(errs[0]) || !errors.Is(errs[1], broken) {
		t.Errorf("left are %v: %v", g.indices, errs)
	}
	if e.refs.Load() != 2 {
		t.Errorf("%d references", e.refs.Load())
	}
	mine := errors.New("mine")
	b.fn = func(int, []byte, error) error { return mine }
	if b.view(e, &group{indices: []int{0, 1, 2, 3}}); b.stop != mine || ended != mine {
		t.Errorf("stopped by %v; the shard was told %v", b.stop, ended)
	}
}
