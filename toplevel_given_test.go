package dagstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	"github.com/ipfs/go-datastore/query"
	dssync "github.com/ipfs/go-datastore/sync"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// daemonStore is what a daemon of the predecessor's configures, in its directories.
type daemonStore struct {
	meta    ds.Datastore
	indices string
	copies  string
}

func newDaemonStore(t *testing.T) *daemonStore {
	return &daemonStore{meta: mapDatastore(), indices: t.TempDir(), copies: t.TempDir()}
}

func (s *daemonStore) start(t *testing.T, top index.Inverted) *dagstore.DAGStore {
	t.Helper()
	repo, err := index.NewFSRepo(s.indices)
	if err != nil {
		t.Fatal(err)
	}
	return start(t, dagstore.Config{TransientsDir: s.copies, Datastore: s.meta, IndexRepo: repo, TopLevelIndex: top, IdleHandles: -1})
}

// untouchable is a datastore that nobody may use.
type untouchable struct {
	ds.Batching
	t *testing.T
}

func (u untouchable) fail() error {
	u.t.Error("the datastore of NewInverted is used")
	return errors.New("not to be used")
}

func (u untouchable) Get(context.Context, ds.Key) ([]byte, error)  { return nil, u.fail() }
func (u untouchable) Has(context.Context, ds.Key) (bool, error)    { return false, u.fail() }
func (u untouchable) Put(context.Context, ds.Key, []byte) error    { return u.fail() }
func (u untouchable) Delete(context.Context, ds.Key) error         { return u.fail() }
func (u untouchable) Batch(context.Context) (ds.Batch, error)      { return nil, u.fail() }
func (u untouchable) Sync(context.Context, ds.Key) error           { return u.fail() }
func (u untouchable) GetSize(context.Context, ds.Key) (int, error) { return 0, u.fail() }
func (u untouchable) Query(context.Context, query.Query) (query.Results, error) {
	return nil, u.fail()
}

// TestNewInvertedAsksForTheStores: index.NewInverted in a configuration stands for the
// store's own top-level index, on disk beside the shard indices: whatever becomes of its
// datastore, and however slow that is, every block is found, at once and after starts,
// which read no shard index for it. Who holds it sees what the store knows.
// Proves A8, A9, F19.
func TestNewInvertedAsksForTheStores(t *testing.T) {
	s := newDaemonStore(t)
	top := index.NewInverted(untouchable{mapBatching(), t})
	d := s.start(t, top)
	held := registerSome(t, d, 3)
	if !findsAll(t, d, held) {
		t.Error("blocks are missing")
	}
	destroy(t, d, key("shard 0"))
	h := held[key("shard 1")][0].Hash()
	for what, x := range map[string]index.Inverted{"the store's field": d.TopLevelIndex, "what NewInverted returned": top} {
		if keys, err := x.GetShardsForMultihash(background, h); err != nil || !slices.Equal(keys, []shard.Key{key("shard 1")}) {
			t.Errorf("%s: %v, %v", what, keys, err)
		}
		if keys, err := x.GetShardsForMultihash(background, held[key("shard 0")][0].Hash()); !errors.Is(err, ds.ErrNotFound) {
			t.Errorf("%s, of a shard that was destroyed: %v, %v", what, keys, err)
		}
		_, more := makeCAR([]byte(what))
		if err := x.AddMultihashesForShard(background, mhsOf{more[0].Hash()}, key("shard 2")); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if keys, err := x.GetShardsForMultihash(background, more[0].Hash()); err != nil || !slices.Equal(keys, []shard.Key{key("shard 2")}) {
			t.Errorf("%s, of what was added to it: %v, %v", what, keys, err)
		}
	}
	delete(held, key("shard 0"))
	if _, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil {
		t.Fatal(err)
	}
	closeStore(t, d)
	if _, err := top.GetShardsForMultihash(background, h); !errors.Is(err, dagstore.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}

	hidden := make(map[string]string)
	for _, name := range names(t, s.indices) {
		if filepath.Ext(name) == ".idx" {
			hidden[filepath.Join(s.indices, name)] = filepath.Join(t.TempDir(), "hidden")
		}
	}
	for from, to := range hidden {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	d = s.start(t, index.NewInverted(untouchable{mapBatching(), t}))
	if !findsAll(t, d, held) {
		t.Error("after a start blocks are missing")
	}
	if keys, err := d.ShardsContainingMultihash(background, h); err != nil || len(keys) != 1 {
		t.Errorf("lookup: %v, %v", keys, err)
	}
	closeStore(t, d)
	for to, from := range hidden {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(s.indices, "toplevel")); err != nil {
		t.Fatal(err)
	}
	if d = s.start(t, index.NewInverted(untouchable{mapBatching(), t})); !findsAll(t, d, held) {
		t.Error("after the loss of the top-level index blocks are missing")
	}
}

// mhsOf iterates over one multihash.
type mhsOf struct{ h mh.Multihash }

func (m mhsOf) ForEach(visit func(mh.Multihash) error) error { return visit(m.h) }

// TestAdoptedIsFound: what was adopted of the predecessor's, with whichever top-level
// index it is configured, is found, though its entries there are of a scheme that nobody
// reads or are not there at all; after the next start too. Proves A8, F19 (adoption).
func TestAdoptedIsFound(t *testing.T) {
	for what, top := range map[string]func(ds.Batching) index.Inverted{
		"none":              func(ds.Batching) index.Inverted { return nil },
		"NewInverted":       func(d ds.Batching) index.Inverted { return index.NewInverted(d) },
		"one's own":         func(d ds.Batching) index.Inverted { return ownInverted{index.NewInverted(d)} },
		"one that is empty": func(ds.Batching) index.Inverted { return index.NewMemoryInverted() },
	} {
		t.Run(what, func(t *testing.T) {
			s, inverted := newDaemonStore(t), mapBatching()
			old := namespace.Wrap(s.meta, dagstore.StoreNamespace)
			const url = "fs://sample-wrapped-v2.car?path=files/sample-wrapped-v2.car"
			want := []shard.Key{key("a"), key("b")}
			for _, k := range want {
				b, err := json.Marshal(dagstore.PersistedShard{Key: k.String(), URL: url, State: dagstore.ShardStateAvailable})
				if err == nil {
					err = old.Put(background, ds.NewKey(k.String()), b)
				}
				if err != nil {
					t.Fatal(err)
				}
				writeFile(t, filepath.Join(s.indices, k.String()+".full.idx"), goCarIndex(t, testdata.CarV2))
			}
			entry := ds.RawKey("/inverted/index/" + string(testdata.RootCID.Hash()[2:10]))
			if err := inverted.Put(background, entry, []byte(`["a","b"]`)); err != nil {
				t.Fatal(err)
			}
			for round := range 3 {
				d := s.start(t, top(inverted))
				all := multihashes(t, d, key("a"))
				for _, h := range all {
					if keys, err := d.ShardsContainingMultihash(background, h); err != nil || !slices.Equal(keys, want) {
						t.Fatalf("round %d: %s is in %v, %v", round, h, keys, err)
					}
				}
				closeStore(t, d)
			}
			if b, err := inverted.Get(background, entry); err != nil || string(b) != `["a","b"]` {
				t.Errorf("the predecessor's entry: %s, %v", b, err)
			}
		})
	}
}

// ownInverted is an index of somebody's own that is kept in a datastore.
type ownInverted struct{ *index.DSInverted }

// TestGivenIndexIsHeldToTheCatalogue: an index of somebody's own that has lost what it
// held, all of it or what a crash kept it from being told, is filled again by the next
// start. Until that is done, lookups wait, and say so. Proves A3, A8, F19.
func TestGivenIndexIsHeldToTheCatalogue(t *testing.T) {
	s := newDaemonStore(t)
	d := s.start(t, newLosingInverted())
	held := registerSome(t, d, 4)
	closeStore(t, d)

	t.Run("lost", func(t *testing.T) {
		top := newLosingInverted()
		top.hold()
		d := s.start(t, top)
		h := held[key("shard 1")][0].Hash()
		_, _, err := d.FindShards(background, h, dagstore.Latest().Wait(50*time.Millisecond))
		if !errors.Is(err, dagstore.ErrNotFresh) {
			t.Errorf("while the index is being filled: %v", err)
		}
		if h := d.Health(); h.State == dagstore.HealthReady {
			t.Errorf("then the health is %s", h)
		}
		close(top.held)
		if !findsAll(t, d, held) {
			t.Error("blocks are missing after the index was filled")
		}
		closeStore(t, d)
	})
	t.Run("filled in part", func(t *testing.T) {
		for _, after := range []int64{1, 69, 70, 71, 200} { // of 4 × 70
			top := newLosingInverted()
			top.left.Store(after)
			d := s.start(t, top)
			if _, _, err := d.FindShards(background, held[key("shard 1")][0].Hash(), dagstore.Latest().Wait(50*time.Millisecond)); !errors.Is(err, dagstore.ErrNotFresh) {
				t.Errorf("while the index cannot be filled: %v", err)
			}
			closeStore(t, d)
			top.left.Store(1 << 40)
			d = s.start(t, top)
			if !findsAll(t, d, held) {
				t.Errorf("after %d entries and another start blocks are missing", after)
			}
			closeStore(t, d)
		}
	})
	t.Run("whole", func(t *testing.T) {
		top := newLosingInverted()
		d := s.start(t, top)
		if !findsAll(t, d, held) {
			t.Error("blocks are missing")
		}
		closeStore(t, d)
		top.left.Store(0) // nothing can be added, nor has to be
		if d = s.start(t, top); !findsAll(t, d, held) {
			t.Error("blocks are missing after a start that found them all")
		}
		closeStore(t, d)
	})
}

// losingInverted is an index of somebody's own that takes only so many entries, one by
// one, and cannot remove any.
type losingInverted struct {
	left atomic.Int64
	held chan struct{} // adds wait until it is closed
	mu   sync.Mutex
	all  map[string][]shard.Key
}

func newLosingInverted() *losingInverted {
	v := &losingInverted{all: make(map[string][]shard.Key), held: make(chan struct{})}
	close(v.held)
	v.left.Store(1 << 40)
	return v
}

func (v *losingInverted) hold() { v.held = make(chan struct{}) }

func (v *losingInverted) AddMultihashesForShard(ctx context.Context, it index.MultihashIterator, k shard.Key) error {
	select {
	case <-v.held:
	case <-ctx.Done():
		return ctx.Err()
	}
	return it.ForEach(func(h mh.Multihash) error {
		if v.left.Add(-1) < 0 {
			return errors.New("the disk is full")
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		if keys := v.all[string(h)]; !slices.Contains(keys, k) {
			v.all[string(h)] = append(slices.Clone(keys), k)
		}
		return nil
	})
}

func (v *losingInverted) GetShardsForMultihash(_ context.Context, h mh.Multihash) ([]shard.Key, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if keys := v.all[string(h)]; len(keys) > 0 {
		return keys, nil
	}
	return nil, ds.ErrNotFound
}

// TestRemovalHoldsUpNobody: while the entries of a shard that was destroyed are removed,
// however long that takes, the blocks of others are found, shards are registered,
// recovered and destroyed, and the destroyed one is hidden. Proves A9, A8.
func TestRemovalHoldsUpNobody(t *testing.T) {
	top := &slowInverted{MemInverted: index.NewMemoryInverted(), held: key("shard 0"), removing: true,
		entered: make(chan struct{}), proceed: make(chan struct{})}
	s := newDaemonStore(t)
	d := s.start(t, top)
	held := registerSome(t, d, 3)
	out := make(chan dagstore.ShardResult, 1)
	destroyAsync(t, d, key("shard 0"), out)
	<-top.entered
	gone := held[key("shard 0")]
	delete(held, key("shard 0"))
	if !findsAll(t, d, held) {
		t.Error("blocks of others are not found")
	}
	for _, c := range gone {
		if keys, err := d.ShardsContainingMultihash(background, c.Hash()); !errors.Is(err, ds.ErrNotFound) {
			t.Fatalf("a block of the shard that was destroyed: %v, %v", keys, err)
		}
	}
	car, cids := makeCAR(randomBlocks(77, 70, 50)...)
	register(t, d, key("new"), &mount.BytesMount{Bytes: car})
	held[key("new")] = cids
	destroy(t, d, key("shard 1"))
	delete(held, key("shard 1"))
	if err := d.RebuildView(background, dagstore.TopLevelView); err != nil {
		t.Error(err)
	}
	if !findsAll(t, d, held) {
		t.Error("after all that blocks are not found")
	}
	if f, err := d.Freshness(dagstore.TopLevelView); err != nil || f.Lag != 0 || f.Err != nil {
		t.Errorf("the view: %s, %v", f, err)
	}
	close(top.proceed)
	if res := <-out; res.Error != nil {
		t.Error(res.Error)
	}
}

// scannedStore counts the scans of a datastore.
type scannedStore struct {
	ds.Batching
	scans atomic.Int64
}

func (s *scannedStore) Query(ctx context.Context, q query.Query) (query.Results, error) {
	s.scans.Add(1)
	return s.Batching.Query(ctx, q)
}

// TestRemovalCostsWhatTheShardHolds: a shard is removed from an index of somebody's own
// by its own index, and nothing is looked for. Proves A9.
func TestRemovalCostsWhatTheShardHolds(t *testing.T) {
	store := &scannedStore{Batching: mapBatching()}
	own := ownInverted{index.NewInverted(store)}
	d := newDaemonStore(t).start(t, own)
	held := registerSome(t, d, 3)
	destroy(t, d, key("shard 1"))
	for _, c := range held[key("shard 1")] {
		if keys, err := own.GetShardsForMultihash(background, c.Hash()); !errors.Is(err, ds.ErrNotFound) {
			t.Fatalf("an entry stays: %v, %v", keys, err)
		}
	}
	delete(held, key("shard 1"))
	if !findsAll(t, d, held) {
		t.Error("blocks of others are gone")
	}
	if n := store.scans.Load(); n != 0 {
		t.Errorf("%d scans of all entries", n)
	}
}

// TestGivenIndexKeepsWhatIsGone: an index of somebody's own that cannot remove names
// shards for blocks that they held in a former life, or before they were recovered. They
// are not found there. Proves F10, I8 (an index that cannot remove).
func TestGivenIndexKeepsWhatIsGone(t *testing.T) {
	s := newDaemonStore(t)
	d := s.start(t, newLosingInverted())
	first, firstCids := makeCAR(randomBlocks(1, 20, 50)...)
	second, secondCids := makeCAR(randomBlocks(2, 20, 50)...)
	k := key("k")
	register(t, d, k, &mount.BytesMount{Bytes: first})
	destroy(t, d, k)
	path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), second)
	register(t, d, k, &mount.FileMount{Path: path})
	only := func(what string, in, notIn []mh.Multihash) {
		t.Helper()
		for _, h := range in {
			if keys, err := d.ShardsContainingMultihash(background, h); err != nil || !slices.Equal(keys, []shard.Key{k}) {
				t.Fatalf("%s: a block it holds: %v, %v", what, keys, err)
			}
		}
		for _, h := range notIn {
			if keys, err := d.ShardsContainingMultihash(background, h); !errors.Is(err, ds.ErrNotFound) {
				t.Fatalf("%s: a block it does not hold: %v, %v", what, keys, err)
			}
		}
	}
	var inFirst, inSecond []mh.Multihash
	for i := range firstCids {
		inFirst, inSecond = append(inFirst, firstCids[i].Hash()), append(inSecond, secondCids[i].Hash())
	}
	only("the next life", inSecond, inFirst)

	k = key("recovered")
	destroy(t, d, key("k"))
	register(t, d, k, &mount.FileMount{Path: path})
	only("another shard", inSecond, inFirst)
	third, thirdCids := makeCAR(randomBlocks(3, 25, 50)...)
	writeFile(t, path, third)
	for _, name := range names(t, s.indices) { // so that it is indexed again
		if filepath.Ext(name) == ".idx" {
			if err := os.Remove(filepath.Join(s.indices, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if acc, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{}); err == nil {
		closeAll(t, acc)
	} else if _, err := d.RecoverShardSync(background, k, dagstore.RecoverOpts{}); err != nil {
		t.Fatal(err)
	}
	var inThird []mh.Multihash
	for _, c := range thirdCids {
		inThird = append(inThird, c.Hash())
	}
	only("the next content", inThird, slices.Concat(inFirst, inSecond))
}

func mapBatching() ds.Batching { return dssync.MutexWrap(ds.NewMapDatastore()) }
