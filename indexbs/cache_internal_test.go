package indexbs

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	car "github.com/ipld/go-car/v2"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// idleStore answers nothing before a test lets it.
type idleStore struct {
	IdxBstoreDagstore
	answer chan dagstore.ShardResult
}

func (s idleStore) AcquireShard(_ context.Context, _ shard.Key, out chan dagstore.ShardResult, _ dagstore.AcquireOpts) error {
	go func() { out <- <-s.answer }()
	return nil
}

// countedReader tells when it is closed.
type countedReader struct {
	*bytes.Reader
	closed chan struct{}
}

func (r countedReader) Close() error { r.closed <- struct{}{}; return nil }

func newAccessor(t *testing.T) (*dagstore.ShardAccessor, chan struct{}) {
	t.Helper()
	idx, err := car.GenerateIndex(bytes.NewReader(testdata.CarV1))
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{}, 2)
	acc, err := dagstore.NewShardAccessor(countedReader{bytes.NewReader(testdata.CarV1), closed}, idx, nil)
	if err != nil {
		t.Fatal(err)
	}
	return acc, closed
}

// TestArrivals goes through the moments at which an accessor and the end of those who
// wait for it cross: whoever is left closes it, once. Proves F15.
func TestArrivals(t *testing.T) {
	key := shard.KeyFromString("a")
	depart := func(a *accessorCache) *flight {
		a.mu.Lock()
		defer a.mu.Unlock()
		f := a.departLocked(key)
		f.readers++
		return f
	}
	for name, c := range map[string]struct {
		cross func(t *testing.T, a *accessorCache, f *flight, arrive func())
		kept  bool
	}{
		"closed, then it arrives, the reader not yet gone": {cross: func(t *testing.T, a *accessorCache, f *flight, arrive func()) {
			a.close()
			arrive()
			if f.e != nil || !errors.Is(f.err, dagstore.ErrClosed) {
				t.Errorf("the reader got %v, %v", f.e, f.err)
			}
			a.leave(f)
		}},
		"it arrives, then the reader goes": {kept: true, cross: func(_ *testing.T, a *accessorCache, f *flight, arrive func()) {
			arrive()
			a.leave(f)
		}},
		"the reader goes, then it arrives": {cross: func(_ *testing.T, a *accessorCache, f *flight, arrive func()) {
			a.leave(f)
			arrive()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			acc, closed := newAccessor(t)
			store := idleStore{answer: make(chan dagstore.ShardResult)}
			var a accessorCache
			a.init(t.Context(), store, 0, time.Hour)
			f := depart(&a)
			c.cross(t, &a, f, func() {
				store.answer <- dagstore.ShardResult{Key: key, Accessor: acc}
				<-f.done
			})
			if c.kept != (a.len() == 1) {
				t.Errorf("%d in the cache", a.len())
			}
			a.close()
			select {
			case <-closed:
			case <-time.After(10 * time.Second):
				t.Fatal("the accessor is still open")
			}
			if len(closed) > 0 {
				t.Error("closed twice")
			}
		})
	}
}
