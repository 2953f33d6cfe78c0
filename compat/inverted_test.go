package compat

import (
	"fmt"
	"slices"
	"testing"

	oldindex "github.com/filecoin-project/dagstore/index"
	oldshard "github.com/filecoin-project/dagstore/shard"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/shard"
)

// manyHashes are multihashes of a shard; the visitor may not keep them.
type manyHashes []mh.Multihash

func (m manyHashes) ForEach(visit func(mh.Multihash) error) error {
	for _, h := range m {
		if err := visit(h); err != nil {
			return err
		}
	}
	return nil
}

// TestInvertedOverLevelDB: an index over lotus's datastore holds all of a large shard, of
// several in one, and is not disturbed by what the predecessor left there under the same
// prefix, nor does it disturb that.
func TestInvertedOverLevelDB(t *testing.T) {
	t.Parallel()
	store, err := root(t.TempDir()).datastore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var all manyHashes
	for i := range 20_000 {
		c, _ := block(fmt.Sprint(i))
		all = append(all, c.Hash())
	}
	old := oldindex.NewInverted(store)
	if err := old.AddMultihashesForShard(ctx, all[:100], oldshard.KeyFromString("the predecessor's")); err != nil {
		t.Fatal(err)
	}
	x := index.NewInverted(store)
	a, b := shard.KeyFromString("a"), shard.KeyFromString("b/../b")
	for range 2 { // again changes nothing
		if err := x.AddMultihashesForShard(ctx, all, a); err != nil {
			t.Fatal(err)
		}
		if err := x.AddMultihashesForShard(ctx, all[:50], b); err != nil {
			t.Fatal(err)
		}
	}
	for i, h := range all {
		keys, err := x.GetShardsForMultihash(ctx, h)
		slices.SortFunc(keys, func(a, b shard.Key) int { return len(a.String()) - len(b.String()) })
		want := []shard.Key{a, b}
		if i >= 50 {
			want = want[:1]
		}
		if err != nil || !slices.Equal(keys, want) {
			t.Fatalf("%d: %q, %v", i, keys, err)
		}
	}
	for _, h := range all[:100] {
		if keys, err := old.GetShardsForMultihash(ctx, h); err != nil || len(keys) != 1 {
			t.Fatalf("the predecessor finds %q, %v", keys, err)
		}
	}
}
