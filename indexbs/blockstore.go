//lint:file-ignore SA1019 It is what the predecessor's was, the archived Blockstore.

package indexbs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	blockstore "github.com/ipfs/go-ipfs-blockstore"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/shard"
)

// ShardSelectorF chooses which of the shards that hold a block is read. It returns
// [ErrNoShardSelected] to take none; any other error ends the read. It must be safe
// for concurrent use and must not keep or change shards. It is a [Policy].
//
// To stay with shards that are open already, a read offers those first; only if none
// of them is taken does it offer all.
type ShardSelectorF func(c cid.Cid, shards []shard.Key) (shard.Key, error)

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

// IndexBackedBlockstore is the blocks of all shards. Make it with [New] or
// [NewIndexBackedBlockstore]. Its methods may be called concurrently.
//
// A read looks up which shards hold the block and reads from the one that the policy
// chooses; if that fails, from the next. Not found is an ipld.ErrNotFound that wraps
// [ErrBlockNotFound] and, if the store can tell, a *[dagstore.NoShardError] which says
// as of which position of the journal; it is said only when no shard that was asked
// failed otherwise. A block that shards are known to hold and cannot serve now is a
// *[dagstore.UnavailableError], and one of which the index cannot tell yet a
// *[dagstore.NotFreshError]. Identity CIDs are answered from themselves.
type IndexBackedBlockstore struct {
	finder   finder
	locator  Locator // nil: nobody knows what is local
	lister   Lister  // nil: keys cannot be listed
	policy   Policy
	declines bool // the policy is asked about single candidates too
	sticky   bool // the policy takes what is open and serves
	log      *slog.Logger
	cache    accessorCache
	failures failures
	absences absences
	counts   counters
}

var (
	_ blockstore.Blockstore = (*IndexBackedBlockstore)(nil)
	_ blockstore.Viewer     = (*IndexBackedBlockstore)(nil)
	_ io.Closer             = (*IndexBackedBlockstore)(nil)
)

// Close closes the cached accessors, those in use after their last use. Acquires in
// flight are cancelled, and reads end with an error that wraps dagstore.ErrClosed.
// It does not close the store.
func (bs *IndexBackedBlockstore) Close() error {
	bs.cache.close()
	return nil
}

// Evict lets go of a shard: its accessor is closed, after its last use if it is in use,
// and one that is on its way is not kept. The next read of the shard opens it again. A
// destruction ([dagstore.DAGStore.DestroyShard]) and a GC of the store ask for that by
// themselves.
func (bs *IndexBackedBlockstore) Evict(key shard.Key) { bs.cache.letGo(key) }

// Get returns a block.
func (bs *IndexBackedBlockstore) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if digest, ok := cids.Identity(c); ok {
		return blocks.NewBlockWithCid(bytes.Clone(digest), c) // the CID's own must not change
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
	if digest, ok := cids.Identity(c); ok {
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
	if digest, ok := cids.Identity(c); ok {
		return fn(digest)
	}
	var ofFn error
	err := bs.read(ctx, c, func(b dagstore.ReadBlockstore) error {
		return view(ctx, b, c, func(p []byte) error {
			ofFn = fn(p)
			return nil // the read was good, whatever fn says
		})
	})
	if err != nil {
		return err
	}
	return ofFn
}

// view is View of one shard. By the type, which is what accessors have, it is plain that
// fn is not kept, and that need not be allocated.
func view(ctx context.Context, b dagstore.ReadBlockstore, c cid.Cid, fn func([]byte) error) error {
	if b, ok := b.(*dagstore.ShardBlockstore); ok {
		return b.View(ctx, c, fn)
	}
	blk, err := b.Get(ctx, c)
	if err != nil {
		return err
	}
	return fn(blk.RawData())
}

// Has says whether some shard that the policy takes holds the block. It opens no
// shard. False is said only of what is in none: if the block is away, or it is not known
// yet where it is, that is the error.
func (bs *IndexBackedBlockstore) Has(ctx context.Context, c cid.Cid) (bool, error) {
	if _, ok := cids.Identity(c); ok {
		return true, nil
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if e := bs.cache.placed(cids.Multihash(c)); e != nil { // no policy declines then
		has := false
		err := e.use(func(b dagstore.ReadBlockstore) (err error) {
			has, err = b.Has(ctx, c)
			return err
		})
		if err == nil && has {
			return true, nil
		} // or else the index will tell
	}
	s := newReading(c)
	defer s.done()
	if err := bs.lookup(ctx, s, bs.most(1)); err != nil || s.absent != nil {
		return false, err
	}
	if len(s.keys) == 0 || !bs.declines {
		return len(s.keys) > 0, nil
	}
	for _, key := range s.keys {
		s.cands = append(s.cands, Candidate{Key: key, Blocks: 1})
	}
	_, err := bs.policy.Choose(c, s.cands)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, ErrNoShardSelected):
		return false, nil
	}
	return false, selectorError(c, err)
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
