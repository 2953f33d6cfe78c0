package indexbs_test

import (
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// BenchmarkGet compares a read through the blockstore over all shards, whose accessor
// is in the cache, with the same read through a single accessor. The difference is
// the look-up across shards and the cache.
func BenchmarkGet(b *testing.B) {
	d, _ := openStore(b, map[string][]byte{"v1": testdata.CarV1, "shared": testdata.CarShared})
	var only, both []cid.Cid
	shared := sampleBlocks(b, testdata.CarShared)
	for c := range sampleBlocks(b, testdata.CarV1) {
		if _, ok := shared[c]; ok {
			both = append(both, c)
		} else {
			only = append(only, c)
		}
	}
	acc, err := d.AcquireShardSync(b.Context(), shard.KeyFromString("v1"), dagstore.AcquireOpts{})
	if err != nil {
		b.Fatal(err)
	}
	defer acc.Close()
	one := must(acc.Blockstore())
	all := newBlockstore(b, over(d), first, 10, time.Minute)

	get := func(bs dagstore.ReadBlockstore, cids []cid.Cid) func(*testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := bs.Get(b.Context(), cids[i%len(cids)]); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.Run("accessor", get(one, only))
	b.Run("blockstore", get(all, only))
	b.Run("blockstore-two-shards", get(all, both))
	b.Run("blockstore-parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				if _, err := all.Get(b.Context(), only[i%len(only)]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
	b.Run("view", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if err := all.View(b.Context(), only[i%len(only)], func([]byte) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("size", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, err := all.GetSize(b.Context(), only[i%len(only)]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("lookup", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if has, err := all.Has(b.Context(), only[i%len(only)]); err != nil || !has {
				b.Fatal(has, err)
			}
		}
	})
	b.Run("size-accessor", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, err := one.GetSize(b.Context(), only[i%len(only)]); err != nil {
				b.Fatal(err)
			}
		}
	})
}
