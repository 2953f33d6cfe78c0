//go:build !race

package indexbs_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore/indexbs"
)

// The race detector has pools drop what they are given now and then.

// TestReadsDoNotAllocate: of an open shard, GetSize, View and Has allocate nothing, Get
// the block and its bytes, and a miss its error; whether the block is hot or looked up.
func TestReadsDoNotAllocate(t *testing.T) {
	d := openWith(t)
	var cids []cid.Cid
	for s := range 4 {
		data := blockOf(uint64(s+1), 1024)
		cids = append(cids, cidOf(data))
		register(t, d, fmt.Sprint(s), carOf(cids[s], data))
	}
	register(t, d, "again", carOf(cids[3], blockOf(4, 1024)))
	ctx := context.Background()
	for what, hot := range map[string]int{"hot": 0, "looked up": -1} {
		bs := newWith(t, over(d), indexbs.Options{HotBlocks: hot})
		fn := func([]byte) error { return nil }
		for name, c := range map[string]struct {
			f    func(c cid.Cid)
			most float64
		}{
			"GetSize": {func(c cid.Cid) { bs.GetSize(ctx, c) }, 0},
			"Has":     {func(c cid.Cid) { bs.Has(ctx, c) }, 0},
			"View":    {func(c cid.Cid) { bs.View(ctx, c, fn) }, 0},
			"Get":     {func(c cid.Cid) { bs.Get(ctx, c) }, 2},
		} {
			for i := range cids { // the last one is in two shards
				if n := testing.AllocsPerRun(500, func() { c.f(cids[i]) }); n >= c.most+1 {
					t.Errorf("%s of a block that is %s, in shard %d: %g allocations, at most %g", name, what, i, n, c.most)
				}
			}
		}
		if n := testing.AllocsPerRun(500, func() { bs.GetSize(ctx, missing) }); n >= 2 {
			t.Errorf("a miss that is %s: %g allocations", what, n)
		}
	}
}
