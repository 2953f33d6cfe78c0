//lint:file-ignore SA1019 It is what the predecessor's was, the archived Blockstore.

package indexbs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
)

// Lister is a store that can list its blocks.
type Lister interface {
	// AllMultihashes is [dagstore.DAGStore.AllMultihashes].
	AllMultihashes(ctx context.Context, visit func(h mh.Multihash) error) error
}

var _ Lister = (*dagstore.DAGStore)(nil)

func listerOf(d IdxBstoreDagstore) Lister {
	if l, ok := d.(Lister); ok {
		return l
	}
	if store := wrapped(d); store != nil {
		return store
	}
	return nil
}

// AllKeysChan sends the CIDs of the blocks of all shards, as raw CIDv1, in no particular
// order; a block of several shards comes as often. Nothing is opened: it goes by the
// indices. The channel closes when all were sent, or before that when ctx or the
// blockstore ends, and some are missing if an index cannot be read: that is logged and
// counted ([Stats]), and AllKeysChanWithErr tells. Of a store that is no [Lister] it is
// not supported: the error wraps errors.ErrUnsupported.
func (bs *IndexBackedBlockstore) AllKeysChan(ctx context.Context) (<-chan cid.Cid, error) {
	keys, _, err := bs.allKeys(ctx, func(err error) {
		if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			bs.log.Warn("a listing of keys is not whole", "err", err)
		}
	})
	return keys, err
}

// AllKeysChanWithErr is AllKeysChan with a function that waits until the channel is
// closed and then says what is missing; nil: all keys of all shards that were ever
// indexed were sent. Call it when the channel is drained. It makes the blockstore boxo's
// AllKeysChanWithErrer.
func (bs *IndexBackedBlockstore) AllKeysChanWithErr(ctx context.Context) (<-chan cid.Cid, func() error, error) {
	return bs.allKeys(ctx, func(error) {})
}

func (bs *IndexBackedBlockstore) allKeys(ctx context.Context, cut func(error)) (<-chan cid.Cid, func() error, error) {
	if bs.lister == nil {
		return nil, nil, fmt.Errorf("%w AllKeysChan", errors.ErrUnsupported)
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if bs.cache.ctx.Err() != nil {
		return nil, nil, bs.cache.closedError()
	}
	out := make(chan cid.Cid)
	var why error // until out is closed the goroutine's
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(out)
		why = bs.lister.AllMultihashes(ctx, func(h mh.Multihash) error {
			select {
			case out <- cid.NewCidV1(cid.Raw, slices.Clone(h)):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			case <-bs.cache.ctx.Done():
				return bs.cache.closedError()
			}
		})
		if why == nil {
			return
		}
		why = fmt.Errorf("list all keys: %w", why)
		bs.counts.cutListings.Add(1)
		cut(why)
	}()
	return out, func() error { <-done; return why }, nil
}
