package indexbs

import (
	"context"
	"errors"
	"unsafe"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/shard"
)

// IdxBstoreDagstore is what the blockstore needs of a store.
//
// AcquireShard must answer on out once, unless it returns an error, as
// [dagstore.DAGStore] does; an answer that comes after the reader has gone is
// received and its accessor closed.
//
// A store may be a [Finder], a [FewFinder] or a [Locator] besides. One that passes the
// options on that AcquireShard gets lets the store ask for accessors back (see
// [dagstore.Holder]); of another, [IndexBackedBlockstore.Evict] lets go of shards.
type IdxBstoreDagstore interface {
	ShardsContainingCid(ctx context.Context, c cid.Cid) ([]shard.Key, error)
	AcquireShard(ctx context.Context, key shard.Key, out chan dagstore.ShardResult, _ dagstore.AcquireOpts) error
}

// Finder is a store whose lookups allocate nothing and say what they are of. It is asked
// in place of ShardsContainingCid.
type Finder interface {
	// AppendShardsOfCid appends the available shards that hold a block to dst and returns
	// the position that the answer is of. It is no error if there are none.
	AppendShardsOfCid(ctx context.Context, dst []shard.Key, c cid.Cid, fresh dagstore.Consistency) ([]shard.Key, dagstore.Position, error)
	// LookupPosition is [dagstore.DAGStore.LookupPosition].
	LookupPosition(fresh dagstore.Consistency) (dagstore.Position, bool)
	// Freshness is [dagstore.DAGStore.Freshness]; it is asked for that of
	// [dagstore.TopLevelView].
	Freshness(view string) (dagstore.Freshness, error)
}

// FewFinder is a [Finder] whose lookups can stop early: a block that very many shards
// hold is then found as fast as another.
type FewFinder interface {
	Finder
	// AppendSomeShardsOfCid is AppendShardsOfCid that may stop once it has found most
	// shards that can be acquired; 0 means all.
	AppendSomeShardsOfCid(ctx context.Context, dst []shard.Key, c cid.Cid, fresh dagstore.Consistency, most int) ([]shard.Key, dagstore.Position, error)
}

// Locator is a store that knows where the bytes of shards are.
type Locator interface {
	// LocalShards says of each shard whether it can be read without fetching it.
	LocalShards(keys []shard.Key) ([]bool, error)
}

var (
	_ IdxBstoreDagstore = (*IdxBstoreDagstoreFromDagstore)(nil)
	_ FewFinder         = storeFinder{}
	_ Locator           = (*dagstore.DAGStore)(nil)
)

// IdxBstoreDagstoreFromDagstore makes an [IdxBstoreDagstore] of a store. Of a
// [*dagstore.DAGStore] or a [*dagstore.Follower] all is used that it can do besides.
type IdxBstoreDagstoreFromDagstore struct {
	dagstore.Interface
}

// ShardsContainingCid returns the shards that hold the CID's multihash.
func (d *IdxBstoreDagstoreFromDagstore) ShardsContainingCid(ctx context.Context, c cid.Cid) ([]shard.Key, error) {
	return d.ShardsContainingMultihash(ctx, c.Hash())
}

// wrapped returns the store within d, if nobody has a say in between: who embeds a store
// and has a ShardsContainingCid or ShardsContainingMultihash of their own means that.
func wrapped(d IdxBstoreDagstore) *dagstore.DAGStore {
	w, ok := d.(*IdxBstoreDagstoreFromDagstore)
	if !ok {
		return nil
	}
	switch store := w.Interface.(type) {
	case *dagstore.DAGStore:
		return store
	case *dagstore.Follower:
		return store.DAGStore
	}
	return nil
}

// storeFinder is a [Finder] over the store.
type storeFinder struct {
	*dagstore.DAGStore
}

func (f storeFinder) AppendShardsOfCid(ctx context.Context, dst []shard.Key, c cid.Cid, fresh dagstore.Consistency) ([]shard.Key, dagstore.Position, error) {
	return f.AppendSomeShardsOfCid(ctx, dst, c, fresh, 0)
}

func (f storeFinder) AppendSomeShardsOfCid(ctx context.Context, dst []shard.Key, c cid.Cid, fresh dagstore.Consistency, most int) ([]shard.Key, dagstore.Position, error) {
	m := cids.Multihash(c)
	return f.AppendShardsUpTo(ctx, dst, unsafe.Slice(unsafe.StringData(m), len(m)), fresh, most) // which does not change it
}

// finder looks up blocks.
type finder struct {
	d     IdxBstoreDagstore
	more  Finder // nil: d cannot do more
	few   FewFinder
	fresh dagstore.Consistency
}

func finderOf(d IdxBstoreDagstore, fresh dagstore.Consistency) finder {
	f := finder{d: d, fresh: fresh}
	if more, ok := d.(Finder); ok {
		f.more = more
	} else if store := wrapped(d); store != nil {
		f.more = storeFinder{store}
	}
	f.few, _ = f.more.(FewFinder)
	return f
}

func locatorOf(d IdxBstoreDagstore) Locator {
	if l, ok := d.(Locator); ok {
		return l
	}
	if store := wrapped(d); store != nil {
		return store
	}
	return nil
}

// find looks up a block, appending to dst; most is of [FewFinder]. That there is none is
// no error.
func (f *finder) find(ctx context.Context, dst []shard.Key, c cid.Cid, most int) ([]shard.Key, dagstore.Position, error) {
	if most > 0 && f.few != nil {
		return f.few.AppendSomeShardsOfCid(ctx, dst, c, f.fresh, most)
	}
	if f.more != nil {
		return f.more.AppendShardsOfCid(ctx, dst, c, f.fresh)
	}
	keys, err := f.d.ShardsContainingCid(ctx, c)
	return append(dst, keys...), dagstore.Position{}, err
}

// asOf says how fresh the answer is that a block is nowhere: that of pos, or what err
// says. known is false if it cannot be told.
func (f *finder) asOf(pos dagstore.Position, err error) (fresh dagstore.Freshness, known bool) {
	if err != nil {
		var none *dagstore.NoShardError
		if errors.As(err, &none) {
			return none.AsOf, true
		}
		return fresh, false
	}
	if f.more == nil {
		return fresh, false
	}
	if fresh, err = f.more.Freshness(dagstore.TopLevelView); err != nil {
		return fresh, false
	}
	if fresh.Applied != pos { // it moved since
		fresh.Applied = pos
		fresh.Lag = max(fresh.Head.Seq, pos.Seq) - pos.Seq
	}
	return fresh, true
}

// isNowhere says that a lookup's error means that there is no such block: not that it is
// away, or that nobody knows yet.
func isNowhere(err error) bool {
	return !isUnknown(err) && (isAbsent(err) || errors.Is(err, ds.ErrNotFound))
}

// isUnknown says that an error means that a block may well be there: in a shard that is
// away, or in one that the lookup does not know of yet.
func isUnknown(err error) bool {
	return errors.Is(err, dagstore.ErrUnavailable) || errors.Is(err, dagstore.ErrNotFresh)
}
