package projection

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// many is how many shards the benchmarks have.
func many() int {
	if testing.Short() {
		return 20_000
	}
	return 1_000_000
}

// filled returns a catalogue of n shards and what it takes of the heap per shard.
func filled(tb testing.TB, n int) (c *Catalogue, heap float64) {
	before := heapInUse()
	c = NewCatalogue()
	events := make([]shard.Event, 0, 30)
	for i := 0; i < n; {
		for events = events[:0]; len(events) < 30 && i < n; i++ {
			events = append(events, registration(uint64(i+1), i))
		}
		mustApply(tb, c, events)
	}
	return c, float64(heapInUse()-before) / float64(n)
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkPublish is a batch of one event, without the event: what it costs that
// readers take no lock. It is the same at any number of shards.
func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{1000, many()} {
		b.Run(fmt.Sprintf("shards=%d", n), func(b *testing.B) {
			c, _ := filled(b, n)
			batch := journal.Batch{End: c.Position()}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				next := c.next()
				next.pos = batch.End
				c.shown.Store(next)
				sink = c.Publish()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N), "ns/publish")
		})
	}
}

var sink any

// BenchmarkApply applies batches of 30 events: registrations of new shards, and changes
// of shards taken at random. Every batch is published.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1000, many()} {
		for _, what := range []string{"register", "change"} {
			b.Run(fmt.Sprintf("%s/shards=%d", what, n), func(b *testing.B) {
				c, heap := filled(b, n)
				const size = 30
				batches := make([][]shard.Event, 0, b.N)
				rng := rand.New(rand.NewPCG(1, 2))
				seq := c.Position().Seq
				for range b.N {
					events := make([]shard.Event, 0, size)
					used := map[int]bool{}
					for len(events) < size {
						i := int(seq) + 1
						if what == "change" {
							if i = rng.IntN(n); used[i] {
								continue
							}
							used[i] = true
						}
						seq++
						e := registration(seq, i)
						if what == "change" {
							e.Gen, e.Kind, e.State.Life = uint64(i+1), shard.EventRecovering, shard.Recovering
						}
						events = append(events, e)
					}
					batches = append(batches, events)
				}
				runtime.GC()
				b.ReportAllocs()
				b.ResetTimer()
				for _, events := range batches {
					if err := c.Check(events); err != nil {
						b.Fatal(err)
					}
					mustApply(b, c, events)
				}
				b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
				b.ReportMetric(heap, "heap-B/shard")
			})
		}
	}
}

// unsynced makes filling a journal fast; what it loses is nobody's.
type unsynced struct{ fsio.FS }

type unsyncedFile struct{ fsio.File }

func (u unsynced) OpenFile(name string, flag int, perm fs.FileMode) (fsio.File, error) {
	f, err := u.FS.OpenFile(name, flag, perm)
	return unsyncedFile{f}, err
}

func (unsyncedFile) SyncData() error { return nil }

// benchHistory appends a history of n events to j: registrations, or a mixed one, in
// which a shard is registered, indexed, fails, recovers, is indexed again, and every
// other one destroyed, while others do the same.
func benchHistory(tb testing.TB, j journal.Journal, mixed bool, n int) {
	const batch = 1000
	kinds := []shard.Kind{shard.EventRegistered, shard.EventIndexed, shard.EventFailed, shard.EventRecovering, shard.EventIndexed, shard.EventDestroyed}
	lives := []shard.Life{shard.Registered, shard.Available, shard.Errored, shard.Recovering, shard.Available, shard.None}
	for first := 0; first < n; first += batch {
		events := make([]shard.Event, 0, batch)
		for i := range batch {
			seq := uint64(first + i + 1)
			e := registration(seq, first+i)
			if mixed {
				round := first / batch
				step := round % len(kinds)
				if step == len(kinds)-1 && i%2 == 1 {
					step = 3 // from available: recovering
				}
				e = registration(seq, round/len(kinds)*batch+i)
				e.Gen = seq - uint64(round%len(kinds))*batch
				e.Kind, e.State.Life = kinds[step], lives[step]
				switch e.State.Life {
				case shard.Available:
					e.State.Index.Blocks, e.State.Index.Digest[7] = 262_144, byte(i)
				case shard.Errored, shard.Recovering:
					e.State.Reason = "fetch: connection reset by peer"
				}
			}
			events = append(events, e)
		}
		if _, err := j.Append(events); err != nil {
			tb.Fatal(err)
		}
	}
}

// BenchmarkLoad replays journals without a checkpoint.
func BenchmarkLoad(b *testing.B) {
	n := many()
	for _, history := range []string{"registered", "mixed"} {
		for _, kind := range []string{"file", "memory"} {
			b.Run(history+"/"+kind, func(b *testing.B) {
				var j journal.Journal = journal.NewMemory()
				if kind == "file" {
					var err error
					if j, err = journal.OpenFile(unsynced{fsio.OS()}, filepath.Join(b.TempDir(), "journal"), journal.FileOptions{}); err != nil {
						b.Fatal(err)
					}
				}
				defer j.Close()
				benchHistory(b, j, history == "mixed", n)
				runtime.GC()
				b.ReportAllocs()
				b.ResetTimer()
				var events uint64
				for range b.N {
					c := NewCatalogue()
					got, err := c.Load(b.Context(), j)
					if err != nil {
						b.Fatal(err)
					}
					events += got
				}
				b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
			})
		}
	}
}

// BenchmarkRestore restores from blocks in memory, which is what reading a checkpoint
// takes beside the disk and its checksums.
func BenchmarkRestore(b *testing.B) {
	n := many()
	c, _ := filled(b, n)
	pos, blocks := blocksOf(b, c)
	c = nil
	runtime.GC()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		blocks := blocks
		next := func() ([]byte, error) {
			if len(blocks) == 0 {
				return nil, io.EOF
			}
			block := blocks[0]
			blocks = blocks[1:]
			return block, nil
		}
		if err := NewCatalogue().Restore(pos, next); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()*1e3/float64(b.N)*1e6/float64(n), "ms/1M-shards")
}

// BenchmarkSave saves while batches are applied, and says how long the longest took.
func BenchmarkSave(b *testing.B) {
	n := many()
	c, _ := filled(b, n)
	done := make(chan struct{})
	var longest time.Duration
	var applied int
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			seq := c.Position().Seq
			events := make([]shard.Event, 30)
			for i := range events {
				events[i] = registration(seq+uint64(i)+1, int(seq)+i+1)
			}
			began := time.Now()
			mustApply(b, c, events)
			longest = max(longest, time.Since(began))
			applied++
		}
	})
	for b.Loop() {
		var bytes int
		if err := c.Snapshot().save(func(block []byte) error { bytes += len(block); return nil }); err != nil {
			b.Fatal(err)
		}
	}
	close(done)
	wg.Wait()
	b.ReportMetric(b.Elapsed().Seconds()*1e3/float64(b.N)*1e6/float64(n), "ms/1M-shards")
	b.ReportMetric(float64(longest.Microseconds()), "longest-apply-µs")
	b.ReportMetric(float64(applied), "batches-meanwhile")
}

// BenchmarkGet looks shards up at random.
func BenchmarkGet(b *testing.B) {
	n := many()
	c, _ := filled(b, n)
	keys := make([]shard.Key, 1<<16)
	for i := range keys {
		keys[i] = registration(1, rand.IntN(n)).Key
	}
	b.ResetTimer()
	for i := range b.N {
		if c.Get(keys[i%len(keys)]) == nil {
			b.Fatal("missing")
		}
	}
}
