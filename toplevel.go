package dagstore

import (
	"context"
	"fmt"
	"sync"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// topLevel keeps the top-level index in step with the catalogue: entries are added
// before a shard becomes available and removed when it is destroyed, and lookups
// show available shards only, so that the index is never ahead of the catalogue.
type topLevel struct {
	d     *DAGStore
	index index.Inverted
	mine  bool          // in memory: rebuilt at start
	ready chan struct{} // closed when the rebuild is done
	mu    sync.Mutex    // one change of one shard at a time
	wg    sync.WaitGroup

	// leaving holds the keys whose former life may still have entries. Whoever comes
	// first removes them: the sweep of that life, or the next life before it adds its
	// own. The loop takes part, so no long work is done under it.
	leaving struct {
		sync.Mutex
		keys map[shard.Key]struct{}
	}
}

func (t *topLevel) init(d *DAGStore, given index.Inverted) {
	t.d, t.index, t.ready = d, given, make(chan struct{})
	t.leaving.keys = make(map[shard.Key]struct{})
	if given == nil {
		t.index, t.mine = index.NewMemoryInverted(), true
	}
}

// start rebuilds an index that is in memory, beside everything else.
func (t *topLevel) start() {
	snap := t.d.cat.Snapshot()
	if !t.mine || snap.Count(shard.Available) == 0 {
		close(t.ready)
		return
	}
	t.wg.Go(func() {
		defer close(t.ready)
		if err := t.rebuild(t.d.ctx, snap); err != nil && t.d.ctx.Err() == nil {
			t.d.log.Error("top-level index: some shards are missing until they are acquired or recovered", "err", err)
		}
	})
}

func (t *topLevel) wait() { t.wg.Wait() }

// rebuild adds every available shard from its index.
func (t *topLevel) rebuild(ctx context.Context, snap *projection.Snapshot) error {
	missing := 0
	var first error
	snap.All(func(rec *projection.Record) bool {
		if rec.Life() != shard.Available {
			return true
		}
		if err := t.addRecorded(ctx, rec); err != nil {
			if missing++; first == nil {
				first = fmt.Errorf("shard %q: %w", rec.Key(), err)
			}
			t.d.loop.complete(input{ctl: func() { t.d.loop.mend(rec, err) }})
		}
		return ctx.Err() == nil
	})
	if missing > 0 {
		return fmt.Errorf("%d shards, the first: %w", missing, first)
	}
	return ctx.Err()
}

func (t *topLevel) addRecorded(ctx context.Context, rec *projection.Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.d.cat.Get(rec.Key()); now == nil || now.Gen() != rec.Gen() || now.Life() != shard.Available {
		return nil // whoever changed it takes care of its entries
	}
	it, done, err := t.d.indices.multihashes(rec.Key(), rec.Gen())
	if err != nil {
		return err
	}
	defer done()
	return t.index.AddMultihashesForShard(ctx, it, rec.Key())
}

// add records what a shard holds, in place of what it held before.
func (t *topLevel) add(ctx context.Context, j *job, it index.MultihashIterator) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.d.cat.Get(j.key); now == nil || now.Gen() != j.gen {
		return ErrShardUnknown // destroyed meanwhile; the entries may be another life's by now
	}
	if left := t.left(j.key); left || j.recovering {
		if err := t.removeLocked(ctx, j.key); err != nil {
			return err
		}
	}
	return t.index.AddMultihashesForShard(ctx, it, j.key)
}

// leave notes that a life of key is over. It does not wait for the index.
func (t *topLevel) leave(key shard.Key) {
	t.leaving.Lock()
	defer t.leaving.Unlock()
	t.leaving.keys[key] = struct{}{}
}

// left says, once for each leave, that entries of a former life may be there.
func (t *topLevel) left(key shard.Key) bool {
	t.leaving.Lock()
	defer t.leaving.Unlock()
	_, ok := t.leaving.keys[key]
	delete(t.leaving.keys, key)
	return ok
}

// sweep removes the entries of a life that is over, unless the next one did.
func (t *topLevel) sweep(ctx context.Context, key shard.Key) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.left(key) {
		return nil
	}
	return t.removeLocked(ctx, key)
}

// removeLocked removes all entries of key, or leaves them to the next who tries.
func (t *topLevel) removeLocked(ctx context.Context, key shard.Key) error {
	r, ok := t.index.(index.Remover)
	if !ok {
		return nil
	}
	err := r.RemoveShard(ctx, key)
	if err != nil {
		t.leave(key)
	}
	return err
}

// ShardsContainingMultihash returns the available shards that hold a block, or an
// error that wraps go-datastore's ErrNotFound if there is none. While the index is
// being rebuilt after a start it waits, as long as ctx allows.
func (d *DAGStore) ShardsContainingMultihash(ctx context.Context, h mh.Multihash) ([]shard.Key, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	select {
	case <-d.top.ready:
	case <-ctx.Done():
		return nil, fmt.Errorf("the top-level index is being rebuilt: %w", ctx.Err())
	}
	keys, err := d.top.index.GetShardsForMultihash(ctx, h)
	if err != nil {
		return nil, err
	}
	kept := make([]shard.Key, 0, len(keys))
	for _, k := range keys {
		if rec := d.cat.Get(k); rec != nil && rec.Life() == shard.Available {
			kept = append(kept, k)
		}
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("no available shard holds %s: %w", h.B58String(), errNoShard)
	}
	return kept, nil
}
