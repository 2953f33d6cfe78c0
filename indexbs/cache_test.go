package indexbs_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// TestOneAcquire: readers that come while a shard is being acquired share the
// acquire, and the first one's context does not govern the others. Proves F23.
func TestOneAcquire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
		s := f.shard("a")
		s.gate, s.heeds = make(chan struct{}), true
		bs := newBlockstore(t, f, first, 1, 0)
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error)
		go func() {
			_, err := bs.Get(ctx, testdata.RootCID)
			gone <- err
		}()
		synctest.Wait()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("the cancelled reader got %v", err)
		}
		close(s.gate)
		wg.Wait()
		if f.count() != 1 || s.opened.Load() != 1 || s.open() != 1 {
			t.Errorf("%d acquires, %d opened, %d open; want 1 of each", f.count(), s.opened.Load(), s.open())
		}
	})
}

// TestCancelledRead: when the last reader leaves, its acquire is cancelled; an
// accessor that comes all the same is closed, and holds up neither the next reader
// nor the store. Proves F15.
func TestCancelledRead(t *testing.T) {
	for name, heeds := range map[string]bool{"the store heeds the context": true, "it answers late": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
				s := f.shard("a")
				s.gate, s.heeds = make(chan struct{}), heeds
				bs := newBlockstore(t, f, first, 10, 0)
				for range 5 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					if _, err := bs.Get(ctx, testdata.RootCID); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("Get = %v", err)
					}
					cancel()
				}
				if f.count() != 5 {
					t.Errorf("%d acquires, want one per abandoned read", f.count())
				}
				synctest.Wait()
				if n := s.cancelled.Load(); heeds && n != 5 {
					t.Errorf("%d acquires were cancelled, want 5", n)
				}
				got := make(chan error)
				go func() {
					_, err := bs.Get(t.Context(), testdata.RootCID)
					got <- err
				}()
				synctest.Wait()
				close(s.gate)
				if err := <-got; err != nil {
					t.Errorf("after the cancelled reads: %v", err)
				}
				synctest.Wait()
				if s.open() != 1 {
					t.Errorf("%d accessors are open, want the cached one", s.open())
				}
				if !heeds && s.opened.Load() != 6 {
					t.Errorf("%d accessors came, want 6", s.opened.Load())
				}
			})
		})
	}
}

// TestLateAccessor: an accessor that comes when its readers have gone is closed, and
// does not come between later readers and the acquire that they share. Proves F15.
func TestLateAccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
		s := f.shard("a")
		bs := newBlockstore(t, f, first, 10, 0)
		late := f.gateNext(s)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := bs.Get(ctx, testdata.RootCID); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get = %v", err)
		}
		next := f.gateNext(s)
		var wg sync.WaitGroup
		get := func() {
			if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
				t.Error(err)
			}
		}
		wg.Go(get)
		synctest.Wait()
		close(late)
		synctest.Wait()
		if s.opened.Load() != 1 || s.open() != 0 {
			t.Errorf("late: %d opened, %d open", s.opened.Load(), s.open())
		}
		wg.Go(get)
		synctest.Wait()
		close(next)
		wg.Wait()
		if f.count() != 2 || s.open() != 1 {
			t.Errorf("%d acquires, %d open; want 2, 1", f.count(), s.open())
		}
	})
}

// TestCancelledReadStops: a cancelled read tries no other shard.
func TestCancelledReadStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarV1})
		for _, s := range f.shards {
			s.gate, s.heeds = make(chan struct{}), true
		}
		bs := newBlockstore(t, f, first, 10, 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := bs.Get(ctx, testdata.RootCID); err != context.DeadlineExceeded {
			t.Errorf("Get = %v", err)
		}
		if f.count() != 1 {
			t.Errorf("%d acquires, want 1", f.count())
		}
		if has, err := bs.Has(ctx, testdata.RootCID); has || err != context.DeadlineExceeded {
			t.Errorf("Has = %v, %v", has, err)
		}
	})
}

// TestEviction: the least recently used accessor makes room, and is closed after its
// last use.
func TestEviction(t *testing.T) {
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarV1, "c": testdata.CarV1})
	want := ""
	bs := newBlockstore(t, f, func(cid.Cid, []shard.Key) (shard.Key, error) { return shard.KeyFromString(want), nil }, 2, 0)
	get := func(name string) {
		t.Helper()
		want = name
		if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
			t.Fatal(err)
		}
	}
	open := func() (names string) {
		for _, k := range f.order {
			if f.shards[k].open() > 0 {
				names += k.String()
			}
		}
		return names
	}
	for _, step := range []struct{ get, open string }{
		{"a", "a"}, {"b", "ab"}, {"a", "ab"}, {"c", "ac"}, {"c", "ac"}, {"b", "bc"}, {"c", "bc"}, {"a", "ac"},
	} {
		if get(step.get); open() != step.open {
			t.Fatalf("after %s: open are %q, want %q", step.get, open(), step.open)
		}
	}
	err := bs.View(t.Context(), testdata.RootCID, func(p []byte) error { // of a
		get("b")
		get("c")
		if f.shard("a").open() != 1 {
			t.Error("an accessor was closed during its use")
		}
		return nil
	})
	if err != nil || open() != "bc" {
		t.Errorf("after its use: %v; open are %q", err, open())
	}
}

// TestExpiry: an accessor is closed when it was not used for the configured time, by
// a timer that is there only while it has something to do.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared})
		a, b := f.shard("a"), f.shard("b")
		bs := newBlockstore(t, f, first, 0, time.Minute)
		get := func(c cid.Cid) {
			t.Helper()
			if _, err := bs.Get(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		wait := func(d time.Duration, openA, openB int32) {
			t.Helper()
			<-time.After(d)
			synctest.Wait()
			if a.open() != openA || b.open() != openB {
				t.Fatalf("open: %d, %d; want %d, %d", a.open(), b.open(), openA, openB)
			}
		}
		get(testdata.RootCID)
		wait(40*time.Second, 1, 0)
		get(testdata.SharedRootCID)
		wait(19*time.Second, 1, 1)
		get(testdata.RootCID) // at 59 s, until 119
		wait(40*time.Second, 1, 1)
		wait(time.Second+1, 1, 0) // b at 100
		wait(18*time.Second, 1, 0)
		wait(time.Second, 0, 0)
		wait(time.Hour, 0, 0)
		get(testdata.RootCID)
		wait(time.Minute-1, 1, 0)
		wait(1, 0, 0)
		if n := a.opened.Load(); n != 2 {
			t.Errorf("a was opened %d times", n)
		}
	})
}

// TestEnds: when the constructor's context ends, or Close is called, idle accessors
// are closed at once and used ones after their use; reads that wait end, and no later
// one begins.
func TestEnds(t *testing.T) {
	ends := map[string]func(cancel func(), bs interface{ Close() error }){
		"Close":   func(_ func(), bs interface{ Close() error }) { bs.Close(); bs.Close() },
		"context": func(cancel func(), _ interface{ Close() error }) { cancel() },
		"both":    func(cancel func(), bs interface{ Close() error }) { cancel(); bs.Close() },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared, "c": testdata.CarV1})
				a, b := f.shard("a"), f.shard("b")
				b.gate = make(chan struct{}) // which ignores contexts
				c := f.shard("c")
				c.gate, c.heeds, c.holds = make(chan struct{}), true, map[string]bool{string(missing.Hash()): true}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				bs := newBlockstoreCtx(t, ctx, f)
				waiting := make(chan error)
				for _, wanted := range []cid.Cid{testdata.SharedRootCID, missing} {
					go func() {
						_, err := bs.Get(t.Context(), wanted)
						waiting <- err
					}()
				}
				synctest.Wait()
				err := bs.View(t.Context(), testdata.RootCID, func([]byte) error {
					end(cancel, bs)
					synctest.Wait()
					if a.open() != 1 {
						t.Error("closed during its use")
					}
					return nil
				})
				if err != nil || a.open() != 0 {
					t.Errorf("View = %v; %d open", err, a.open())
				}
				for range 2 {
					if err := <-waiting; !errors.Is(err, dagstore.ErrClosed) || err.Error() != "index-backed blockstore: dagstore closed" {
						t.Errorf("a waiting reader got %v", err)
					}
				}
				for range 50 {
					_, err = bs.Get(t.Context(), testdata.RootCID)
					if !errors.Is(err, dagstore.ErrClosed) {
						t.Errorf("a later read: %v", err)
					}
				}
				if f.count() != 3 {
					t.Errorf("%d acquires, want 3 from before the end", f.count())
				}
				if n := f.shard("c").cancelled.Load(); n != 1 {
					t.Errorf("%d acquires in flight were cancelled, want 1", n)
				}
				close(b.gate)
				synctest.Wait()
				if b.opened.Load() != 1 || b.open() != 0 || a.open() != 0 {
					t.Errorf("open: %d, %d", a.open(), b.open())
				}
			})
		})
	}
}

// blockingMount does not answer before its context ends.
type blockingMount struct{ mount.BytesMount }

func (m *blockingMount) Fetch(ctx context.Context) (mount.Reader, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestCancelledReadsOfStore: cancelled reads of a real store leave neither accessors
// nor descriptors behind. Proves F14, F15.
func TestCancelledReadsOfStore(t *testing.T) {
	before, counted := descriptors()
	t.Run("reads", func(t *testing.T) {
		d, _ := openStore(t, map[string][]byte{"v1": testdata.CarV1, "shared": testdata.CarShared})
		bs := newBlockstore(t, over(d), first, 1, 0)
		c, _ := sharedBlock(t)
		for i := range 200 {
			ctx, cancel := context.WithCancel(t.Context())
			go cancel()
			_, err := bs.Get(ctx, []cid.Cid{c, testdata.RootCID, testdata.SharedRootCID}[i%3])
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		bs.Close()
		for _, name := range []string{"v1", "shared"} {
			key := shard.KeyFromString(name)
			eventually(t, name+" is no longer in use", func() bool {
				return must(d.GetShardInfo(key)).ShardState == dagstore.ShardStateAvailable
			})
			if _, err := d.DestroyShardSync(t.Context(), key, dagstore.DestroyOpts{}); err != nil {
				t.Error(err)
			}
		}
	})
	if after, _ := descriptors(); counted && after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestCancelledReadOfBusyShard: a read that waits for a shard which is being fetched
// ends with its context; the fetch is the store's. Proves F15, F23.
func TestCancelledReadOfBusyShard(t *testing.T) {
	dir := t.TempDir()
	d, err := dagstore.Open(t.Context(), dir, dagstore.WithMount("blocking", &blockingMount{}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	key := shard.KeyFromString("slow")
	if _, err := d.RegisterShardSync(t.Context(), key, &blockingMount{}, dagstore.RegisterOpts{LazyInitialization: true}); err != nil {
		t.Fatal(err)
	}
	f := newFakeStore(t, map[string][]byte{"slow": testdata.CarV1})
	bs := newBlockstore(t, slowStore{f, d}, first, 1, 0)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error)
	go func() {
		_, err := bs.Get(ctx, testdata.RootCID)
		got <- err
	}()
	eventually(t, "the shard is being fetched", func() bool {
		return must(d.GetShardInfo(key)).ShardState == dagstore.ShardStateInitializing
	})
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("Get = %v", err)
	}
	if s := must(d.GetShardInfo(key)).ShardState; s != dagstore.ShardStateInitializing {
		t.Errorf("the shard is %s", s)
	}
}

// slowStore looks up in one store and acquires from another.
type slowStore struct {
	*fakeStore
	d *dagstore.DAGStore
}

func (s slowStore) AcquireShard(ctx context.Context, key shard.Key, out chan dagstore.ShardResult, opts dagstore.AcquireOpts) error {
	return s.d.AcquireShard(ctx, key, out, opts)
}
