//lint:file-ignore SA1019 The predecessor's signatures name the archived Blockstore.

package indexbs_test

import (
	"context"
	"errors"
	"io"
	"reflect"
	"testing"
	"time"

	boxo "github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	blockstore "github.com/ipfs/go-ipfs-blockstore"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// Every exported name of the predecessor's package, with the type that clients rely
// on. This file compiles, or a daemon does not.
var (
	_ error = indexbs.ErrBlockNotFound
	_ error = indexbs.ErrNoShardSelected

	_ bool                              = indexbs.BlockstoreOpGet // untyped: fits both
	_ indexbs.BlockstoreOp              = indexbs.BlockstoreOpGet
	_ bool                              = indexbs.BlockstoreOpGetSize
	_ indexbs.BlockstoreOp              = indexbs.BlockstoreOpGetSize
	_ func(indexbs.BlockstoreOp) string = indexbs.BlockstoreOp.String

	_ indexbs.ShardSelectorF = func(c cid.Cid, shards []shard.Key) (shard.Key, error) { return shards[0], nil }

	_ interface {
		ShardsContainingCid(ctx context.Context, c cid.Cid) ([]shard.Key, error)
		AcquireShard(ctx context.Context, key shard.Key, out chan dagstore.ShardResult, _ dagstore.AcquireOpts) error
	} = indexbs.IdxBstoreDagstore(nil)
	_ indexbs.IdxBstoreDagstore = (*indexbs.IdxBstoreDagstoreFromDagstore)(nil)
	_ dagstore.Interface        = indexbs.IdxBstoreDagstoreFromDagstore{Interface: dagstore.Interface(nil)}

	_ func(d *indexbs.IdxBstoreDagstoreFromDagstore, ctx context.Context, c cid.Cid) ([]shard.Key, error) = (*indexbs.IdxBstoreDagstoreFromDagstore).ShardsContainingCid

	_ func(ctx context.Context, d indexbs.IdxBstoreDagstore, shardSelector indexbs.ShardSelectorF, maxCacheSize int, cacheExpire time.Duration) (blockstore.Blockstore, error) = indexbs.NewIndexBackedBlockstore

	_ blockstore.Blockstore   = (*indexbs.IndexBackedBlockstore)(nil)
	_ dagstore.ReadBlockstore = (*indexbs.IndexBackedBlockstore)(nil)
	// Additions.
	_ indexbs.Policy    = indexbs.ShardSelectorF(nil)
	_ boxo.Blockstore   = (*indexbs.IndexBackedBlockstore)(nil)
	_ boxo.Viewer       = (*indexbs.IndexBackedBlockstore)(nil)
	_ blockstore.Viewer = (*indexbs.IndexBackedBlockstore)(nil)
	_ io.Closer         = (*indexbs.IndexBackedBlockstore)(nil)
)

// partialStore is how clients write a store of their own.
type partialStore struct {
	dagstore.Interface
}

func (partialStore) ShardsContainingCid(context.Context, cid.Cid) ([]shard.Key, error) {
	return nil, nil
}

// TestCompat holds what the compiler cannot.
func TestCompat(t *testing.T) {
	if got := indexbs.BlockstoreOp(indexbs.BlockstoreOpGet).String(); got != "Get" {
		t.Errorf("BlockstoreOpGet = %q", got)
	}
	if got := indexbs.BlockstoreOp(indexbs.BlockstoreOpGetSize).String(); got != "GetSize" {
		t.Errorf("BlockstoreOpGetSize = %q", got)
	}
	if n := reflect.TypeFor[indexbs.IdxBstoreDagstore]().NumMethod(); n != 2 {
		t.Errorf("IdxBstoreDagstore has %d methods; a client's own has 2", n)
	}
	bs, err := indexbs.NewIndexBackedBlockstore(t.Context(), partialStore{}, nil, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	bs.HashOnRead(true)
	ctx := t.Context()
	for op, do := range map[string]func() error{
		"Put":         func() error { return bs.Put(ctx, blocks.NewBlock(nil)) },
		"PutMany":     func() error { return bs.PutMany(ctx, nil) },
		"DeleteBlock": func() error { return bs.DeleteBlock(ctx, cid.Undef) },
		"AllKeysChan": func() error { _, err := bs.AllKeysChan(ctx); return err },
	} {
		err := do()
		if !errors.Is(err, errors.ErrUnsupported) || err.Error() != "unsupported operation "+op {
			t.Errorf("%s: %v", op, err)
		}
	}
	if _, err := indexbs.NewIndexBackedBlockstore(ctx, nil, nil, 0, 0); err == nil {
		t.Error("no store: accepted")
	}
}

// filtered is a client's store that has a say in lookups.
type filtered struct {
	*dagstore.DAGStore
	asked int
}

func (s *filtered) ShardsContainingCid(ctx context.Context, c cid.Cid) ([]shard.Key, error) {
	s.asked++
	return nil, nil
}

func (s *filtered) ShardsContainingMultihash(ctx context.Context, m mh.Multihash) ([]shard.Key, error) {
	s.asked++
	return nil, nil
}

// TestClientsLookups: a client that embeds a store and has lookups of its own is asked,
// not the store within.
func TestClientsLookups(t *testing.T) {
	d := openWith(t)
	register(t, d, "a", testdata.CarV1)
	s := &filtered{DAGStore: d}
	for i, client := range []indexbs.IdxBstoreDagstore{s, &indexbs.IdxBstoreDagstoreFromDagstore{Interface: s}} {
		bs := newWith(t, client, indexbs.Options{NotFoundFor: time.Hour})
		if has, err := bs.Has(t.Context(), testdata.RootCID); has || err != nil || s.asked != i+1 {
			t.Errorf("client %d: Has says %v, %v; asked %d times", i, has, err, s.asked)
		}
	}
	bs := newWith(t, over(d), indexbs.Options{})
	if has, err := bs.Has(t.Context(), testdata.RootCID); !has || err != nil {
		t.Errorf("the store itself: %v, %v", has, err)
	}
}
