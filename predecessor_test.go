package dagstore_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// What the predecessor's tests of its store say, where no other test says it in as many
// words. compat_test.go has the list.

// registered registers a shard in the predecessor's way and waits for the answer.
func registered(t *testing.T, d *dagstore.DAGStore, k shard.Key, m mount.Mount, opts dagstore.RegisterOpts) dagstore.ShardResult {
	t.Helper()
	out := make(chan dagstore.ShardResult, 1)
	if err := d.RegisterShard(background, k, m, out, opts); err != nil {
		t.Fatal(err)
	}
	return <-out
}

// TestPredecessorRegister: a shard that was registered is available, its index is in the
// repository, can be iterated, and is in the top-level index under its key alone; whatever
// the form of the CAR, from the caller's copy if the source is nothing, and without a
// channel.
func TestPredecessorRegister(t *testing.T) {
	own := writeFile(t, filepath.Join(t.TempDir(), "own.car"), testdata.CarV2)
	for name, tc := range map[string]struct {
		m    mount.Mount
		opts dagstore.RegisterOpts
	}{
		"CARv1": {carV1(), dagstore.RegisterOpts{}},
		"CARv2": {carV2(), dagstore.RegisterOpts{}},
		"the caller's copy, of a source that has no path": {&mount.FSMount{FS: testdata.FS}, dagstore.RegisterOpts{ExistingTransient: own}},
	} {
		for _, told := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				idx := index.NewMemoryRepo()
				d := start(t, dagstore.Config{IndexRepo: idx})
				k := key("foo")
				if told {
					if res := registered(t, d, k, tc.m, tc.opts); res.Error != nil || res.Key != k || res.Accessor != nil {
						t.Fatalf("%+v", res)
					}
				} else if err := d.RegisterShard(background, k, tc.m, nil, tc.opts); err != nil {
					t.Fatal(err)
				} else {
					acc := acquire(t, d, k) // waits for it
					if acc.Shard() != k {
						t.Errorf("an accessor of %s", acc.Shard())
					}
					closeAll(t, acc)
				}
				if all := d.AllShardsInfo(); len(all) != 1 || all[k].Error != nil || told && all[k].ShardState != dagstore.ShardStateAvailable {
					t.Errorf("%v", all)
				}
				if st, err := idx.StatFullIndex(k); err != nil || !st.Exists {
					t.Errorf("index: %+v, %v", st, err)
				}
				it, err := d.GetIterableIndex(k)
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				err = it.ForEach(func(h multihash.Multihash, _ uint64) error {
					n++
					keys, err := d.ShardsContainingMultihash(background, h)
					if err == nil && !slices.Equal(keys, []shard.Key{k}) {
						err = errors.New("found elsewhere")
					}
					return err
				})
				if err != nil || n == 0 {
					t.Errorf("%d entries, %v", n, err)
				}
			})
		}
	}
}

// TestPredecessorDestroy: of two shards the one that is in use is not destroyed and the
// other is; of a hundred shards those that were destroyed do not come back with a restart.
func TestPredecessorDestroy(t *testing.T) {
	cfg := dagstore.Config{TransientsDir: t.TempDir(), Datastore: mapDatastore(), IndexRepo: index.NewMemoryRepo()}
	d := start(t, cfg)
	for i := range 100 {
		register(t, d, key("shard-%d", i), &mount.Counting{Mount: carV2()})
	}
	acc := acquire(t, d, key("shard-0"))
	out := make(chan dagstore.ShardResult, 1)
	for i := range 21 {
		if err := d.DestroyShard(background, key("shard-%d", i), out, dagstore.DestroyOpts{}); err != nil {
			t.Fatal(err)
		}
		if res := <-out; (i == 0) != errors.Is(res.Error, dagstore.ErrShardInUse) || i > 0 && res.Error != nil {
			t.Errorf("shard-%d: %v", i, res.Error)
		}
	}
	readAll(t, acc)
	closeAll(t, acc)
	for range 2 {
		all := d.AllShardsInfo()
		if _, ok := all[key("shard-0")]; !ok || len(all) != 80 {
			t.Errorf("%d shards, want 80, with shard-0: %t", len(all), ok)
		}
		closeStore(t, d)
		d = start(t, cfg)
	}
}

// acquireMany acquires a shard n times at once, and reads by each accessor while it is
// held.
func acquireMany(t *testing.T, d *dagstore.DAGStore, k shard.Key, n int) []*dagstore.ShardAccessor {
	t.Helper()
	accs := make([]*dagstore.ShardAccessor, n)
	var all sync.WaitGroup
	for i := range accs {
		all.Go(func() {
			out := make(chan dagstore.ShardResult, 1)
			err := d.AcquireShard(background, k, out, dagstore.AcquireOpts{})
			if err != nil {
				t.Error(err)
				return
			}
			res := <-out
			if accs[i] = res.Accessor; res.Error != nil {
				t.Error(res.Error)
				return
			}
			bs, err := res.Accessor.Blockstore()
			if err == nil {
				_, err = bs.Get(background, testdata.RootCID)
			}
			if err != nil {
				t.Error(err)
			}
			if i, err := d.GetShardInfo(k); err != nil || i.ShardState != dagstore.ShardStateServing {
				t.Errorf("%v, %v, while it is read", i, err)
			}
		})
	}
	all.Wait()
	return accs
}

// TestPredecessorAcquires: any number of acquires at once are served, and the shard is
// available when the last accessor is closed, by whoever.
func TestPredecessorAcquires(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{})
		k := key("foo")
		register(t, d, k, carV2())
		for n := 1; n <= 256; n *= 2 {
			accs := acquireMany(t, d, k, n)
			wantState(t, d, k, dagstore.ShardStateServing)
			var all sync.WaitGroup
			for _, a := range accs {
				all.Go(func() { closeAll(t, a) })
			}
			all.Wait()
			settle()
			if i, err := d.GetShardInfo(k); err != nil || i.ShardState != dagstore.ShardStateAvailable || i.Error != nil {
				t.Errorf("after %d: %v, %v", n, i, err)
			}
		}
	})
}

// TestPredecessorRestart: a store that is closed with accessors open has all shards
// available when it starts again, with their indices; nothing is fetched again; a key that
// is taken stays so.
func TestPredecessorRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newRepoWorld(t, nil)
		w.base = mapDatastore()
		d := w.start()
		for i := range 100 {
			register(t, d, key("shard-%d", i), w.remote())
		}
		for i := range 20 {
			acquireMany(t, d, key("shard-%d", i), 4) // and leaves them open
		}
		d = w.restart()
		all := d.AllShardsInfo()
		if len(all) != 100 {
			t.Errorf("%d shards, want 100", len(all))
		}
		for k, i := range all {
			if i.ShardState != dagstore.ShardStateAvailable || i.Error != nil {
				t.Errorf("%s: %v, %v", k, i, i.Error)
			}
			if n := len(multihashes(t, d, k)); n == 0 {
				t.Errorf("%s: its index is empty", k)
			}
			accs := acquireMany(t, d, k, 3)
			err := d.RegisterShard(background, k, w.remote(), nil, dagstore.RegisterOpts{})
			wantErr(t, "register again", err, dagstore.ErrShardExists)
			closeAll(t, accs...)
		}
		w.wantFiles(100, 100)
		if n := w.fetched.Load(); n != 0 {
			t.Errorf("%d were fetched again", n)
		}
	})
}

// TestPredecessorCancelledAcquires: an acquire whose context is over, before it begins or
// while it waits, gives nobody an accessor, and those after it are served.
func TestPredecessorCancelledAcquires(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		k := key("foo")
		registerLazily(t, d, k, &gateMount{carV2(), g})
		before, cancel := context.WithCancel(background)
		cancel()
		meanwhile, cancel := context.WithCancel(background)
		out := make(chan dagstore.ShardResult, 2)
		if err := d.AcquireShard(before, k, out, dagstore.AcquireOpts{}); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if err := d.AcquireShard(meanwhile, k, out, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		cancel()
		settle()
		g.letIn(1)
		settle()
		for range len(out) {
			if res := <-out; !errors.Is(res.Error, context.Canceled) || res.Accessor != nil {
				t.Errorf("%+v", res)
			}
		}
		if i, err := d.GetShardInfo(k); err != nil || i.ShardState != dagstore.ShardStateAvailable {
			t.Errorf("%v, %v: somebody has an accessor", i, err)
		}
		works(t, d, k)
	})
}
