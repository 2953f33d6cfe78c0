package toplevel

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/multiformats/go-multihash"
)

var benchEntries = flag.Uint64("toplevel.entries", 1_000_000, "entries of the benchmarks")

// benchShard is how many blocks a shard of the benchmarks has.
const benchShard = 100_000

// fill adds shards with two goroutines.
func fill(tb testing.TB, x *Index, entries uint64) {
	var next atomic.Uint64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for n := next.Add(1) - 1; n < entries/benchShard; n = next.Add(1) - 1 {
				if err := x.Add(tb.Context(), ingestNo(int(n)), span{n * benchShard, (n + 1) * benchShard}); err != nil {
					tb.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkInsert adds shards of 100,000 blocks to an index on disk, merges included,
// the last of which is waited for. Making the multihashes takes some 60 ns of it.
func BenchmarkInsert(b *testing.B) {
	for b.Loop() {
		x := must(Open(b.TempDir(), Options{}, Hooks{}))
		x.Start()
		began := time.Now()
		fill(b, x, *benchEntries)
		added := time.Since(began)
		if err := x.Flush(nil); err != nil {
			b.Fatal(err)
		}
		x.Settle()
		n, st := float64(*benchEntries), x.Stats()
		b.ReportMetric(n/added.Seconds(), "entries/s")
		b.ReportMetric(n/time.Since(began).Seconds(), "merged-entries/s")
		b.ReportMetric(float64(st.DiskBytes)/n, "disk-B/entry")
		b.ReportMetric(float64(st.FilterBytes)/n, "memory-B/entry")
		b.ReportMetric(float64(st.WrittenBytes)/n, "written-B/entry")
		b.ReportMetric(float64(st.Runs), "runs")
		if err := x.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLookup looks up random multihashes with as many goroutines as processors: in
// an index as merging in tiers leaves it, which is what lookups meet while shards are
// being added, and in one at rest.
func BenchmarkLookup(b *testing.B) {
	const sample = 1 << 20
	random := func(from, n uint64) []multihash.Multihash {
		out := make([]multihash.Multihash, sample)
		rng := rand.New(rand.NewPCG(from, 4))
		for i := range out {
			out[i] = hash(from+rng.Uint64N(n), nil)
		}
		return out
	}
	hits, misses := random(0, *benchEntries), random(1<<40, 1<<40)
	for _, rest := range []time.Duration{-1, 50 * time.Millisecond} {
		x := must(Open(b.TempDir(), Options{RestAfter: rest}, Hooks{}))
		x.Start()
		fill(b, x, *benchEntries)
		if err := x.Flush(nil); err != nil {
			b.Fatal(err)
		}
		for x.Stats().Merging || rest > 0 && len(x.choose(Rest)) > 0 {
			<-time.After(10 * time.Millisecond)
		}
		when := "at-rest"
		if rest < 0 {
			when = "in-tiers"
		}
		for _, look := range []struct {
			name string
			mhs  []multihash.Multihash
		}{{"hit", hits}, {"miss", misses}} {
			b.Run(fmt.Sprintf("%s/%s/runs=%d", look.name, when, x.Stats().Runs), func(b *testing.B) {
				b.ReportAllocs()
				var from atomic.Uint64
				b.RunParallel(func(pb *testing.PB) {
					found := 0
					i := from.Add(sample / 7)
					for ; pb.Next(); i++ {
						if err := x.Lookup(look.mhs[i%sample], func(Ingest) bool { found++; return true }); err != nil {
							b.Error(err)
							return
						}
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
			})
		}
		if err := x.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
