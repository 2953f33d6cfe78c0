//lint:file-ignore SA1019 The constructor returns what the predecessor's returned, the archived Blockstore.

package indexbs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	blockstore "github.com/ipfs/go-ipfs-blockstore"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/shard"
)

// ShardSelectorF chooses which of the shards that hold a block is read. It returns
// [ErrNoShardSelected] to take none; any other error ends the read. It must be safe
// for concurrent use and must not keep or change shards.
//
// To stay with shards that are open already, a read offers those first; only if none
// of them is taken does it offer all.
type ShardSelectorF func(c cid.Cid, shards []shard.Key) (shard.Key, error)

// IdxBstoreDagstore is what the blockstore needs of a store.
//
// AcquireShard must answer on out once, unless it returns an error, as
// [dagstore.DAGStore] does; an answer that comes after the reader has gone is
// received and its accessor closed.
type IdxBstoreDagstore interface {
	ShardsContainingCid(ctx context.Context, c cid.Cid) ([]shard.Key, error)
	AcquireShard(ctx context.Context, key shard.Key, out chan dagstore.ShardResult, _ dagstore.AcquireOpts) error
}

// IdxBstoreDagstoreFromDagstore makes an [IdxBstoreDagstore] of a store.
type IdxBstoreDagstoreFromDagstore struct {
	dagstore.Interface
}

var _ IdxBstoreDagstore = (*IdxBstoreDagstoreFromDagstore)(nil)

// ShardsContainingCid returns the shards that hold the CID's multihash.
func (d *IdxBstoreDagstoreFromDagstore) ShardsContainingCid(ctx context.Context, c cid.Cid) ([]shard.Key, error) {
	return d.ShardsContainingMultihash(ctx, c.Hash())
}

// BlockstoreOp names an operation of the blockstore.
type BlockstoreOp bool

// The operations; untyped, as they always were.
const (
	BlockstoreOpGet     = true
	BlockstoreOpGetSize = !BlockstoreOpGet
)

// String returns "Get" or "GetSize".
func (o BlockstoreOp) String() string {
	if o {
		return "Get"
	}
	return "GetSize"
}

// IndexBackedBlockstore is the blocks of all shards. Make it with
// [NewIndexBackedBlockstore]. Its methods may be called concurrently.
//
// Not found is an ipld.ErrNotFound that wraps [ErrBlockNotFound] too. Identity CIDs
// are answered from themselves.
type IndexBackedBlockstore struct {
	d      IdxBstoreDagstore
	choose ShardSelectorF
	cache  accessorCache
}

var (
	_ blockstore.Blockstore = (*IndexBackedBlockstore)(nil)
	_ blockstore.Viewer     = (*IndexBackedBlockstore)(nil)
	_ io.Closer             = (*IndexBackedBlockstore)(nil)
)

// NewIndexBackedBlockstore makes a blockstore over all shards of d. A nil selector
// takes the first shard.
//
// It keeps up to maxCacheSize accessors open (0: any number) for cacheExpire after
// their last use (0: for ever). A shard with an open accessor cannot be destroyed
// and its local copy is not reclaimed. An accessor that leaves the cache is closed
// after the last read that uses it.
//
// When ctx ends, or Close is called, the cache is emptied and reads fail. What is
// returned is an [*IndexBackedBlockstore], which has Close and View besides.
func NewIndexBackedBlockstore(ctx context.Context, d IdxBstoreDagstore, shardSelector ShardSelectorF, maxCacheSize int, cacheExpire time.Duration) (blockstore.Blockstore, error) {
	if d == nil {
		return nil, errors.New("index-backed blockstore: no store")
	}
	if shardSelector == nil {
		shardSelector = func(_ cid.Cid, shards []shard.Key) (shard.Key, error) { return shards[0], nil }
	}
	bs := &IndexBackedBlockstore{d: d, choose: shardSelector}
	bs.cache.init(ctx, d, maxCacheSize, cacheExpire)
	return bs, nil
}

// Close closes the cached accessors, those in use after their last use. Acquires in
// flight are cancelled, and reads end with an error that wraps dagstore.ErrClosed.
// It does not close the store.
func (bs *IndexBackedBlockstore) Close() error {
	bs.cache.close()
	return nil
}

// Get returns a block.
func (bs *IndexBackedBlockstore) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if digest, ok := identity(c); ok {
		return blocks.NewBlockWithCid(digest, c)
	}
	var blk blocks.Block
	err := bs.read(ctx, c, func(b dagstore.ReadBlockstore) (err error) {
		blk, err = b.Get(ctx, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	return blk, nil
}

// GetSize returns the length of a block, which it does not read. With an error the
// length is 0, as it was with the predecessor.
func (bs *IndexBackedBlockstore) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	if digest, ok := identity(c); ok {
		return len(digest), nil
	}
	size := 0
	err := bs.read(ctx, c, func(b dagstore.ReadBlockstore) (err error) {
		size, err = b.GetSize(ctx, c)
		return err
	})
	if err != nil {
		return 0, err
	}
	return size, nil
}

// View calls fn once with the bytes of a block, which are valid during the call only
// and must not be changed. An error of fn is returned as it is.
func (bs *IndexBackedBlockstore) View(ctx context.Context, c cid.Cid, fn func([]byte) error) error {
	if digest, ok := identity(c); ok {
		return fn(digest)
	}
	var ofFn error
	err := bs.read(ctx, c, func(b dagstore.ReadBlockstore) error {
		v, ok := b.(blockstore.Viewer)
		if !ok {
			blk, err := b.Get(ctx, c)
			if err == nil {
				ofFn = fn(blk.RawData())
			}
			return err
		}
		return v.View(ctx, c, func(p []byte) error {
			ofFn = fn(p)
			return nil // the read was good, whatever fn says
		})
	})
	if err != nil {
		return err
	}
	return ofFn
}

// Has says whether some shard that the selector takes holds the block. It opens no
// shard.
func (bs *IndexBackedBlockstore) Has(ctx context.Context, c cid.Cid) (bool, error) {
	if _, ok := identity(c); ok {
		return true, nil
	}
	shards, err := bs.lookup(ctx, c)
	if err != nil || len(shards) == 0 {
		return false, err
	}
	_, err = bs.choose(c, shards)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, ErrNoShardSelected):
		return false, nil
	}
	return false, selectorError(c, err)
}

// lookup returns the shards that hold a block, none if there are none.
func (bs *IndexBackedBlockstore) lookup(ctx context.Context, c cid.Cid) ([]shard.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !c.Defined() {
		return nil, nil
	}
	shards, err := bs.d.ShardsContainingCid(ctx, c)
	switch {
	case err == nil:
		return shards, nil
	case isAbsent(err) || errors.Is(err, ds.ErrNotFound):
		return nil, nil
	}
	return nil, fmt.Errorf("look up block %s: %w", c, err)
}

func selectorError(c cid.Cid, err error) error {
	return fmt.Errorf("select a shard for block %s: %w", c, err)
}

// read runs op on the blocks of one shard after the other until one of them serves.
func (bs *IndexBackedBlockstore) read(ctx context.Context, c cid.Cid, op func(dagstore.ReadBlockstore) error) error {
	shards, err := bs.lookup(ctx, c)
	if err != nil {
		return err
	}
	var failed []error
	for len(shards) > 0 {
		key, err := bs.pick(c, shards)
		switch {
		case err != nil && len(failed) > 0:
			return &readError{c, append(failed, asFailure(err))}
		case errors.Is(err, ErrNoShardSelected):
			return notFound(c, true)
		case err != nil:
			return selectorError(c, err)
		}
		err = bs.readShard(ctx, key, op)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case bs.cache.ctx.Err() != nil:
			return bs.cache.closedError()
		case !isAbsent(err):
			failed = append(failed, err)
		}
		before := len(shards)
		shards = without(shards, key)
		if len(shards) == before {
			break // the selector chose what it was not offered, and may do so for ever
		}
	}
	if len(failed) > 0 {
		return &readError{c, failed}
	}
	return notFound(c, false)
}

// pick asks the selector: for a shard that is open already, or else for any.
func (bs *IndexBackedBlockstore) pick(c cid.Cid, shards []shard.Key) (shard.Key, error) {
	if len(shards) > 1 {
		if open := bs.cache.open(shards); len(open) > 0 && len(open) < len(shards) {
			key, err := bs.choose(c, open)
			if !errors.Is(err, ErrNoShardSelected) {
				return key, err
			}
		}
	}
	return bs.choose(c, shards)
}

// readShard runs op on the blocks of one shard. An accessor that fails leaves the
// cache. If it was there before, the shard may have been recovered since, so a new
// one is tried.
func (bs *IndexBackedBlockstore) readShard(ctx context.Context, key shard.Key, op func(dagstore.ReadBlockstore) error) error {
	for attempt := 0; ; attempt++ {
		e, fresh, err := bs.cache.acquire(ctx, key)
		if err != nil {
			return err
		}
		err = e.use(op)
		if err == nil || ctx.Err() != nil {
			return err
		}
		bs.cache.drop(e)
		if fresh || attempt > 0 {
			return err
		}
	}
}

// without returns a copy of shards that lacks key: the slice may be the store's.
func without(shards []shard.Key, key shard.Key) []shard.Key {
	return slices.DeleteFunc(slices.Clone(shards), func(k shard.Key) bool { return k == key })
}

// identity returns the bytes that an identity CID carries.
func identity(c cid.Cid) ([]byte, bool) {
	if !c.Defined() || c.Prefix().MhType != mh.IDENTITY {
		return nil, false
	}
	d, err := mh.Decode(c.Hash())
	if err != nil {
		return nil, false
	}
	return d.Digest, true
}

// HashOnRead does nothing: whether blocks are verified is the store's to say.
func (bs *IndexBackedBlockstore) HashOnRead(bool) {}

// Put is not supported: it returns an error that wraps errors.ErrUnsupported.
func (bs *IndexBackedBlockstore) Put(context.Context, blocks.Block) error {
	return fmt.Errorf("%w Put", errors.ErrUnsupported)
}

// PutMany is not supported: it returns an error that wraps errors.ErrUnsupported.
func (bs *IndexBackedBlockstore) PutMany(context.Context, []blocks.Block) error {
	return fmt.Errorf("%w PutMany", errors.ErrUnsupported)
}

// DeleteBlock is not supported: it returns an error that wraps errors.ErrUnsupported.
func (bs *IndexBackedBlockstore) DeleteBlock(context.Context, cid.Cid) error {
	return fmt.Errorf("%w DeleteBlock", errors.ErrUnsupported)
}

// AllKeysChan is not supported: it returns an error that wraps errors.ErrUnsupported.
func (bs *IndexBackedBlockstore) AllKeysChan(context.Context) (<-chan cid.Cid, error) {
	return nil, fmt.Errorf("%w AllKeysChan", errors.ErrUnsupported)
}
