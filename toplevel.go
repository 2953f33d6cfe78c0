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
}

func (t *topLevel) init(d *DAGStore, given index.Inverted) {
	t.d, t.index, t.ready = d, given, make(chan struct{})
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
	if r, ok := t.index.(index.Remover); ok && j.recovering {
		if err := r.RemoveShard(ctx, j.key); err != nil {
			return err
		}
	}
	return t.index.AddMultihashesForShard(ctx, it, j.key)
}

// remove forgets a destroyed shard, unless its key has another life by now whose
// entries may be there already.
func (t *topLevel) remove(ctx context.Context, key shard.Key, gen uint64) error {
	r, ok := t.index.(index.Remover)
	if !ok {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.d.cat.Get(key); now != nil && now.Gen() != gen {
		return nil
	}
	return r.RemoveShard(ctx, key)
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
