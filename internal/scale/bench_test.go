package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index/toplevel"
	"github.com/dagstore/dagstore/shard"
)

var benchEntries = flag.Uint64("scale.entries", 1_000_000, "entries of the merge that is measured")

// blocks are n multihashes that follow from a seed.
type blocks struct{ seed, n uint64 }

func (b blocks) ForEach(f func(multihash.Multihash) error) error {
	rng := rand.New(rand.NewPCG(b.seed, 7))
	mh := make([]byte, 34)
	mh[0], mh[1] = multihash.SHA2_256, 32
	for range b.n {
		for i := 2; i < len(mh); i += 8 {
			binary.LittleEndian.PutUint64(mh[i:], rng.Uint64())
		}
		if err := f(mh); err != nil {
			return err
		}
	}
	return nil
}

// ingest is a shard with a key of keyLen bytes.
func ingest(i uint64) toplevel.Ingest {
	return toplevel.Ingest{Key: shard.KeyFromString(fmt.Sprintf("%0*d", keyLen, i)), Gen: i + 1}
}

// filled is an index on disk with n entries in shards of size blocks each.
func filled(tb testing.TB, o toplevel.Options, n, size uint64) *toplevel.Index {
	tb.Helper()
	x, err := toplevel.Open(tb.TempDir(), o, toplevel.Hooks{})
	if err != nil {
		tb.Fatal(err)
	}
	for i := range n / size {
		if err := x.Add(tb.Context(), ingest(i), blocks{i, size}); err != nil {
			tb.Fatal(err)
		}
	}
	if err := x.Flush(nil); err != nil {
		tb.Fatal(err)
	}
	return x
}

// BenchmarkMerge merges four runs into one without a pause, which is the rate that the
// tables of docs/SCALE.md go by.
func BenchmarkMerge(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		n := *benchEntries
		x := filled(b, toplevel.Options{Memory: int64(n / 4 * memEntry * 2), MergeShare: 1, RestAfter: -1}, n, max(n/1000, 1000))
		runs := x.Stats().Runs
		b.StartTimer()
		began := time.Now()
		x.Start()
		x.Settle()
		took := time.Since(began)
		b.StopTimer()
		b.ReportMetric(float64(x.Stats().MergedEntries)/took.Seconds(), "merged/s")
		b.ReportMetric(float64(runs), "runs-before")
		b.ReportMetric(float64(x.Stats().Runs), "runs-after")
		if err := x.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
