package index

import (
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"sync"
	"testing"
	"time"

	"github.com/multiformats/go-multihash"
)

var (
	boundedBlocks = flag.Int64("index.blocks", 10_000_000, "blocks of BenchmarkBuildBounded")
	boundedMemory = flag.Int64("index.memory", 0, "BuildOptions.Memory of BenchmarkBuildBounded")
)

// heapWatch looks at the heap every millisecond and keeps the most that it has seen.
type heapWatch struct {
	base, peak uint64
	done       chan struct{}
	over       sync.WaitGroup
}

func watchHeap() *heapWatch {
	runtime.GC()
	h := &heapWatch{base: heapNow(), done: make(chan struct{})}
	h.over.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			h.peak = max(h.peak, heapNow())
			select {
			case <-tick.C:
			case <-h.done:
				return
			}
		}
	})
	return h
}

// heapNow counts the bytes of objects, those included that are garbage and not yet swept.
func heapNow() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

func (h *heapWatch) MiB() float64 {
	close(h.done)
	h.over.Wait()
	return float64(h.peak-h.base) / (1 << 20)
}

// BenchmarkBuildBounded indexes 10,000,000 blocks of 8 bytes (-index.blocks), unverified,
// from a CAR that is made while it is read: build, durable write, and the multihashes
// once over, as a registration does it. peak-heap-MiB is how far the heap grew at most,
// with what the collector has not taken yet, looked at every millisecond. x-memory is
// the time relative to a build in memory, the mean of one before and one after in the
// same run.
func BenchmarkBuildBounded(b *testing.B) {
	car := syntheticCAR{*boundedBlocks}
	dir := b.TempDir()
	repo, err := NewFSRepo(filepath.Join(dir, "index"))
	if err != nil {
		b.Fatal(err)
	}
	gen := uint64(0)
	build := func(spill bool) (heap float64, took time.Duration) {
		gen++
		watch := watchHeap()
		opts := BuildOptions{SkipVerify: true, Memory: *boundedMemory}
		if spill {
			opts.Spill = func() (ScratchFile, error) { return repo.CreateScratch(spillKey, gen) }
		}
		began := time.Now()
		d, err := Build(b.Context(), car, car.size(), opts)
		if err != nil {
			b.Fatal(err)
		}
		if (d.runs != nil) != spill {
			b.Fatalf("spilled: %v, want %v", d.runs != nil, spill)
		}
		scanned := time.Since(began)
		if err := repo.PutIndex(spillKey, gen, d); err != nil {
			b.Fatal(err)
		}
		written := time.Since(began)
		n := int64(0)
		err = d.Multihashes().ForEach(func(multihash.Multihash) error {
			n++
			return nil
		})
		if err != nil || n != car.n {
			b.Fatal(n, err)
		}
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		took, heap = time.Since(began), watch.MiB()
		b.Logf("spilled %v: scan %v, write %v, multihashes %v; heap %.0f MiB", spill, scanned, written-scanned, took-written, heap)
		if err := os.Remove(repo.path(hashKey(spillKey), gen)); err != nil {
			b.Fatal(err)
		}
		return heap, took
	}
	for b.Loop() {
		b.StopTimer()
		inMemory, before := build(false)
		b.StartTimer()
		bounded, took := build(true)
		b.StopTimer()
		_, after := build(false)
		if bounded > 256 {
			b.Errorf("the heap grew by %.0f MiB; 256 are promised", bounded)
		}
		b.ReportMetric(bounded, "peak-heap-MiB")
		b.ReportMetric(inMemory, "in-memory-MiB")
		b.ReportMetric(2*took.Seconds()/(before+after).Seconds(), "x-memory")
		b.ReportMetric(float64(car.n)/took.Seconds(), "blocks/s")
		b.StartTimer()
	}
}
