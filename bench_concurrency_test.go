package dagstore

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// What proceeds at the same time, and what does not: docs/adr/0007-one-loop.md.

// sourceLatency is how long a source of these benchmarks takes to answer.
const sourceLatency = 2 * time.Millisecond

// calls counts what the sources of one store were asked.
type calls struct{ stats, fetches atomic.Int64 }

// farMount answers after a time. In place, each open of the shard fetches;
// otherwise a local copy is made.
type farMount struct {
	mount.BytesMount
	inPlace bool
	takes   time.Duration
	asked   *calls
}

func (m *farMount) Info() mount.Info {
	return mount.Info{AccessSequential: true, AccessSeek: m.inPlace, AccessRandom: m.inPlace}
}

func (m *farMount) answers(ctx context.Context) error {
	if m.takes == 0 {
		return nil
	}
	timer := time.NewTimer(m.takes)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *farMount) Stat(ctx context.Context) (mount.Stat, error) {
	m.asked.stats.Add(1)
	if err := m.answers(ctx); err != nil {
		return mount.Stat{}, err
	}
	return m.BytesMount.Stat(ctx)
}

func (m *farMount) Fetch(ctx context.Context) (mount.Reader, error) {
	m.asked.fetches.Add(1)
	if err := m.answers(ctx); err != nil {
		return nil, err
	}
	return m.BytesMount.Fetch(ctx)
}

// farStore is a store with that many slots of each kind, whose journal is in memory:
// what is measured is the sources.
func farStore(tb testing.TB, slots int) (*DAGStore, *calls) {
	tb.Helper()
	asked := &calls{}
	r := mount.NewRegistry()
	if err := r.Register("far", &farMount{asked: asked}); err != nil {
		tb.Fatal(err)
	}
	d, err := NewDAGStore(Config{
		TransientsDir: tb.TempDir(), MountRegistry: r,
		MaxConcurrentReadyFetches: slots, MaxConcurrentIndex: slots, MaxConcurrentOpens: slots,
	})
	if err != nil {
		tb.Fatal(err)
	}
	if err := d.Start(context.Background()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { d.Close() })
	return d, asked
}

func farSource(asked *calls, inPlace bool, takes time.Duration) *farMount {
	return &farMount{mount.BytesMount{Bytes: testdata.CarV1}, inPlace, takes, asked}
}

// openAll registers and acquires that many shards and says how long it took.
func openAll(tb testing.TB, d *DAGStore, asked *calls, shards int, inPlace bool, takes time.Duration) time.Duration {
	tb.Helper()
	ctx := context.Background()
	out := make(chan ShardResult, shards)
	begin := time.Now()
	for i := range shards {
		k := shard.KeyFromString(fmt.Sprintf("shard-%02d", i))
		if err := d.RegisterShard(ctx, k, farSource(asked, inPlace, takes), nil, RegisterOpts{}); err != nil {
			tb.Fatal(err)
		}
		if err := d.AcquireShard(ctx, k, out, AcquireOpts{}); err != nil {
			tb.Fatal(err)
		}
	}
	accs := make([]*ShardAccessor, 0, shards)
	for range shards {
		res := <-out
		if res.Error != nil {
			tb.Fatal(res.Error)
		}
		accs = append(accs, res.Accessor)
	}
	took := time.Since(begin)
	for _, a := range accs {
		a.Close()
	}
	return took
}

// BenchmarkDisjointPlaces makes 16 shards ready whose sources take 2 ms for every
// answer, with one slot of each kind and with 16. Shards share nothing but slots, so
// with 16 they wait for their sources at the same time. instant-ms is with 16 slots and
// sources that take no time, which is what the machine and the disk need in any case:
// what 16-slots-ms has above it is all that is left of the waiting.
func BenchmarkDisjointPlaces(b *testing.B) {
	const shards = 16
	for _, inPlace := range []bool{false, true} {
		name := map[bool]string{false: "fetched", true: "in-place"}[inPlace]
		b.Run(name, func(b *testing.B) {
			var one, many, instant time.Duration
			for range b.N {
				d, asked := farStore(b, 1)
				one += openAll(b, d, asked, shards, inPlace, sourceLatency)
				d.Close()
				d, asked = farStore(b, shards)
				many += openAll(b, d, asked, shards, inPlace, sourceLatency)
				d.Close()
				d, asked = farStore(b, shards)
				instant += openAll(b, d, asked, shards, inPlace, 0)
				d.Close()
			}
			ms := func(t time.Duration) float64 { return float64(t.Microseconds()) / 1000 / float64(b.N) }
			b.ReportMetric(ms(one), "1-slot-ms")
			b.ReportMetric(ms(many), "16-slots-ms")
			b.ReportMetric(ms(instant), "instant-ms")
			b.ReportMetric(float64(one)/float64(many), "times")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// TestConflictingWorkIsShared: 64 acquires of one closed shard at once cause one
// probe, one fetch and one open, not 64. Proves N3 (conflicting work is serialised).
func TestConflictingWorkIsShared(t *testing.T) {
	for _, inPlace := range []bool{false, true} {
		d, asked := farStore(t, 16)
		k := shard.KeyFromString("one")
		ctx := context.Background()
		if _, err := d.RegisterShardSync(ctx, k, farSource(asked, inPlace, sourceLatency), RegisterOpts{LazyInitialization: true}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				acc, err := d.AcquireShardSync(ctx, k, AcquireOpts{})
				if err != nil {
					t.Error(err)
					return
				}
				acc.Close()
			})
		}
		wg.Wait()
		// The probe asks once, and the fetch once more how long the source is. In place,
		// the scan fetches once and the open once.
		wantStats, wantFetches := int64(2), int64(1)
		if inPlace {
			wantStats, wantFetches = 0, 2
		}
		if stats, fetches := asked.stats.Load(), asked.fetches.Load(); stats != wantStats || fetches != wantFetches {
			t.Errorf("in place %t: the source was asked %d times whether it is there and fetched %d times", inPlace, stats, fetches)
		}
	}
}

// BenchmarkLoopThroughput is acquire and release of open shards by 64 callers over 8
// shards: with one store, and the same load over two, which is what splitting the
// loop by the places of shards could bring at best.
func BenchmarkLoopThroughput(b *testing.B) {
	const callers, shards = 64, 8
	path := filepath.Join(b.TempDir(), "a.car")
	writeCAR(b, path, 100, 1024)
	var stores []*DAGStore
	for range 2 {
		stores = append(stores, openBench(b, b.TempDir()))
	}
	keys := make([]shard.Key, shards)
	for i := range keys {
		for _, s := range stores {
			keys[i] = registerBench(b, s, fmt.Sprintf("shard-%d", i), path)
			acc, err := s.AcquireShardSync(context.Background(), keys[i], AcquireOpts{})
			if err != nil {
				b.Fatal(err)
			}
			defer acc.Close() // it stays open
		}
	}
	rate := func(loops int) float64 {
		var next atomic.Int64
		var wg sync.WaitGroup
		begin := time.Now()
		for range callers {
			wg.Go(func() {
				out := make(chan ShardResult, 1)
				for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
					k := int(i) % shards
					if err := stores[k%loops].AcquireShard(context.Background(), keys[k], out, AcquireOpts{}); err != nil {
						b.Error(err)
						return
					}
					(<-out).Accessor.Close()
				}
			})
		}
		wg.Wait()
		return float64(b.N) / time.Since(begin).Seconds()
	}
	batch := func() (turns, inputs uint64) {
		stores[0].loop.control(func() { turns, inputs = stores[0].loop.turns, stores[0].loop.inputs })
		return turns, inputs
	}
	b.ResetTimer()
	turns, inputs := batch()
	one := rate(1)
	turns2, inputs2 := batch()
	two := rate(2)
	b.ReportMetric(one, "one-loop-pairs/s")
	b.ReportMetric(two, "two-loops-pairs/s")
	b.ReportMetric(two/one, "times")
	b.ReportMetric(float64(inputs2-inputs)/float64(turns2-turns), "inputs/turn")
}
