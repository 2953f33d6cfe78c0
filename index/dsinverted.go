package index

import (
	"context"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	"github.com/ipfs/go-datastore/query"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/shard"
)

// DSInverted is a top-level index in a go-datastore. It implements [Inverted], [Remover]
// and [MultihashRemover].
//
//	/inverted/multihash/<base32 of the multihash>  →  JSON array of shard keys
//
// The predecessor kept the same values under /inverted/index/<raw multihash>. A
// datastore key is a path and raw bytes do not survive that: of 1,000 digests four
// came out changed, and entries under one name belonged to another. Those entries
// are neither read nor removed; shard indices have all it takes to add them again.
//
// In the configuration of a store it stands for the store's own top-level index, which
// is some hundred times as fast, removes a shard without looking for its entries, and
// is never taken for whole when it is not: from then on the datastore is left alone and
// the store answers ([DSInverted.ServeFrom]).
type DSInverted struct {
	ds     ds.Batching
	whole  ds.Batching // without the namespace
	mu     sync.Mutex  // one read-modify-write at a time
	server atomic.Pointer[Inverted]
}

var (
	_ Inverted         = (*DSInverted)(nil)
	_ Remover          = (*DSInverted)(nil)
	_ MultihashRemover = (*DSInverted)(nil)
)

// invertedChunk is how many entries go into one batch of the datastore.
const invertedChunk = 4096

var (
	invertedNamespace = ds.NewKey("/inverted/multihash")
	invertedEncoding  = base32.StdEncoding.WithPadding(base32.NoPadding)
)

// NewInverted returns a top-level index in dts.
func NewInverted(dts ds.Batching) *DSInverted {
	return &DSInverted{ds: namespace.Wrap(dts, invertedNamespace), whole: dts}
}

// ServeFrom has x asked in place of the datastore from now on, and told what is added. A
// store does so with an index that it is configured with: who kept it sees what the store
// knows, in place of nothing. What is removed is x's affair.
func (d *DSInverted) ServeFrom(x Inverted) { d.server.Store(&x) }

func invertedKey(mh multihash.Multihash) ds.Key {
	return ds.RawKey("/" + invertedEncoding.EncodeToString(mh))
}

// AddMultihashesForShard implements [Inverted]. It writes batch by batch: after an
// error some multihashes may have been recorded, and may be recorded again.
func (d *DSInverted) AddMultihashesForShard(ctx context.Context, it MultihashIterator, key shard.Key) error {
	if x := d.server.Load(); x != nil {
		return (*x).AddMultihashesForShard(ctx, it, key)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	b := batcher{ctx: ctx, ds: d.ds}
	err := it.ForEach(func(mh multihash.Multihash) error {
		k := invertedKey(mh)
		keys, err := d.get(ctx, k)
		if err != nil && !errors.Is(err, ds.ErrNotFound) {
			return err
		}
		if slices.Contains(keys, key) {
			return nil
		}
		return b.put(k, append(keys, key))
	})
	if err = b.finish(err); err != nil {
		return fmt.Errorf("top-level index: add shard %s: %w", key, err)
	}
	return nil
}

// GetShardsForMultihash implements [Inverted].
func (d *DSInverted) GetShardsForMultihash(ctx context.Context, h multihash.Multihash) ([]shard.Key, error) {
	if x := d.server.Load(); x != nil {
		return (*x).GetShardsForMultihash(ctx, h)
	}
	keys, err := d.get(ctx, invertedKey(h))
	if errors.Is(err, ds.ErrNotFound) {
		return nil, &noShardError{string(h)}
	}
	if err != nil {
		return nil, fmt.Errorf("top-level index: multihash %x: %w", []byte(h), err)
	}
	return keys, nil
}

func (d *DSInverted) get(ctx context.Context, k ds.Key) ([]shard.Key, error) {
	b, err := d.ds.Get(ctx, k)
	if err != nil {
		return nil, err
	}
	return decodeKeys(b)
}

func decodeKeys(b []byte) ([]shard.Key, error) {
	var keys []shard.Key
	if err := json.Unmarshal(b, &keys); err != nil {
		return nil, fmt.Errorf("entry is damaged: %w", err)
	}
	return keys, nil
}

// RemoveShard implements [Remover]. It reads every entry of the index; where the
// shard's multihashes are at hand, [DSInverted.RemoveMultihashesForShard] is cheaper.
func (d *DSInverted) RemoveShard(ctx context.Context, key shard.Key) error {
	if d.server.Load() != nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	held, err := d.heldBy(ctx, key)
	b := batcher{ctx: ctx, ds: d.ds}
	for i := 0; i < len(held) && err == nil; i++ {
		err = d.removeOne(&b, held[i], key)
	}
	if err = b.finish(err); err != nil {
		return fmt.Errorf("top-level index: remove shard %s: %w", key, err)
	}
	return nil
}

// RemoveMultihashesForShard implements [MultihashRemover].
func (d *DSInverted) RemoveMultihashesForShard(ctx context.Context, it MultihashIterator, key shard.Key) error {
	if d.server.Load() != nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	b := batcher{ctx: ctx, ds: d.ds}
	err := it.ForEach(func(mh multihash.Multihash) error {
		return d.removeOne(&b, invertedKey(mh), key)
	})
	if err = b.finish(err); err != nil {
		return fmt.Errorf("top-level index: remove shard %s: %w", key, err)
	}
	return nil
}

// heldBy lists the entries that name a shard. They are listed before any is changed,
// because a datastore need not allow changes during a query.
func (d *DSInverted) heldBy(ctx context.Context, key shard.Key) (held []ds.Key, err error) {
	results, err := d.ds.Query(ctx, query.Query{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, results.Close()) }()
	for r := range results.Next() {
		if r.Error != nil {
			return nil, r.Error
		}
		keys, err := decodeKeys(r.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.Key, err)
		}
		if slices.Contains(keys, key) {
			held = append(held, ds.RawKey(r.Key))
		}
	}
	return held, ctx.Err()
}

func (d *DSInverted) removeOne(b *batcher, k ds.Key, key shard.Key) error {
	keys, err := d.get(b.ctx, k)
	if errors.Is(err, ds.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	i := slices.Index(keys, key)
	if i < 0 {
		return nil
	}
	return b.put(k, slices.Delete(keys, i, i+1))
}

// batcher writes entries in batches of invertedChunk.
type batcher struct {
	ctx   context.Context
	ds    ds.Batching
	batch ds.Batch
	n     int
}

// put sets an entry, or deletes it if no shard is left.
func (b *batcher) put(k ds.Key, keys []shard.Key) (err error) {
	if b.batch == nil {
		if b.batch, err = b.ds.Batch(b.ctx); err != nil {
			return err
		}
	}
	if len(keys) == 0 {
		err = b.batch.Delete(b.ctx, k)
	} else {
		var value []byte
		if value, err = json.Marshal(keys); err == nil {
			err = b.batch.Put(b.ctx, k, value)
		}
	}
	if b.n++; err == nil && b.n == invertedChunk {
		err = b.commit()
	}
	return err
}

func (b *batcher) commit() error {
	if b.n == 0 {
		return nil
	}
	batch := b.batch
	b.batch, b.n = nil, 0
	return batch.Commit(b.ctx)
}

// finish commits and syncs, unless err.
func (b *batcher) finish(err error) error {
	if err == nil {
		err = b.commit()
	}
	if err == nil {
		err = b.ds.Sync(b.ctx, ds.NewKey(""))
	}
	return err
}
