package dagstore

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// BenchmarkRecovery opens a store of a million shards as a kill leaves it: the directory
// is copied while the store is open and at rest. It reports the time with a checkpoint
// at the end, with one every 100,000 events and 99,999 events since the last, and
// without any, and how many events each replayed.
func BenchmarkRecovery(b *testing.B) {
	const n = 1_000_000
	for _, c := range []struct {
		name string
		opts []Option
		more int  // events after the last checkpoint
		last bool // a checkpoint at the end
	}{
		{name: "checkpoint at the end", last: true},
		{name: "checkpoint every 100k, 99,999 since", opts: []Option{WithCheckpoints(projection.CheckpointPolicy{Events: 100_000})}, more: 99_999, last: true},
		{name: "no checkpoint", opts: []Option{WithCheckpoints(projection.CheckpointPolicy{Events: 1 << 62, Bytes: 1 << 62})}},
	} {
		b.Run(c.name, func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "store")
			s, err := Open(context.Background(), dir, c.opts...)
			if err != nil {
				b.Fatal(err)
			}
			file := func(k string) mount.Mount { return &mount.FileMount{Path: "/data/shards/" + k + ".car"} }
			registerMany(b, s, n-c.more, file)
			if c.last {
				if err := s.Checkpoint(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
			registerManyAs(b, s, "later", c.more, file)
			killed := filepath.Join(b.TempDir(), "killed")
			var took []time.Duration
			var replayed uint64
			for b.Loop() {
				b.StopTimer()
				if err := os.RemoveAll(killed); err != nil {
					b.Fatal(err)
				}
				if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				start := time.Now()
				again, err := Open(context.Background(), killed, c.opts...)
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
				b.StopTimer()
				replayed = again.Health().Recovery.Replayed
				if got := again.cat.Snapshot().Len(); got != n {
					b.Fatalf("%d shards are back", got)
				}
				again.Close()
				b.StartTimer()
			}
			s.Close()
			slices.Sort(took)
			b.ReportMetric(took[len(took)/2].Seconds(), "open-s")
			b.ReportMetric(float64(replayed), "replayed-events")
		})
	}
}

// lagDir names the directory of the store to a process that writes at a steady rate.
const (
	lagDir  = "DAGSTORE_BENCH_LAG_DIR"
	lagRate = "DAGSTORE_BENCH_LAG_RATE"
	lagFor  = 5 * time.Second
)

func init() {
	if dir := os.Getenv(lagDir); dir != "" {
		rate, err := strconv.Atoi(os.Getenv(lagRate))
		if err == nil {
			err = writeSteadily(dir, rate)
		}
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// writeSteadily registers rate shards a second.
func writeSteadily(dir string, rate int) error {
	ctx := context.Background()
	d, err := Open(ctx, dir, WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	fmt.Println("open")
	start := time.Now()
	n := 0
	for tick := range time.Tick(time.Millisecond) {
		since := tick.Sub(start)
		if since > lagFor {
			break
		}
		for ; n < int(since.Seconds()*float64(rate)); n++ {
			k := fmt.Sprintf("baga6ea4seaqsteady%045d", n)
			if err := d.RegisterShard(ctx, shard.KeyFromString(k), &mount.FileMount{Path: "/data/" + k + ".car"}, nil, RegisterOpts{LazyInitialization: true}); err != nil {
				return err
			}
		}
	}
	// What is still in the queue counts as not written.
	if _, err := d.WaitFor(ctx, CatalogueView, Latest()); err != nil {
		return err
	}
	fmt.Println("wrote", d.Position().Seq, "of", n)
	return nil // which ends the process, as a kill would
}

// lagView notes how old events are when it sees them, of those that were decided since
// it was told to begin.
type lagView struct {
	pos   atomic.Pointer[Position]
	since atomic.Int64
	lags  []time.Duration
}

func (v *lagView) Name() string    { return "lag" }
func (v *lagView) Version() uint32 { return 1 }
func (v *lagView) Position() Position {
	if p := v.pos.Load(); p != nil {
		return *p
	}
	return Position{}
}

func (v *lagView) Apply(b *journal.Batch) error {
	now := time.Now().UnixNano()
	since := v.since.Load()
	for i := range b.Events {
		if since > 0 && b.Events[i].Time > since {
			v.lags = append(v.lags, time.Duration(now-b.Events[i].Time))
		}
	}
	end := b.End
	v.pos.Store(&end)
	return nil
}

// BenchmarkFollowerLag has another process write 50,000 events a second for five seconds
// and follows it: how old is an event, since it was decided and not yet durable, when
// the follower has shown it in the catalogue and in one more view.
func BenchmarkFollowerLag(b *testing.B) {
	const rate = 50_000
	var all []time.Duration
	events := 0
	for b.Loop() {
		dir := b.TempDir()
		p := startProcess(b, lagDir+"="+dir, lagRate+"="+strconv.Itoa(rate))
		p.hear(b)
		v := &lagView{}
		f, err := OpenFollower(context.Background(), dir, WithView(v), WithLogger(slog.New(slog.DiscardHandler)))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.WaitFor(context.Background(), v.Name(), Latest()); err != nil {
			b.Fatal(err)
		}
		v.since.Store(time.Now().UnixNano()) // it has caught up with what was there before
		wrote, _ := p.hear(b)
		if _, err := fmt.Sscanf(wrote, "wrote %d", &events); err != nil {
			b.Fatalf("%q: %v", wrote, err)
		}
		if _, err := f.WaitFor(context.Background(), v.Name(), AtLeastSeq(uint64(events))); err != nil {
			b.Fatal(err)
		}
		f.Close()
		p.kill()
		all = append(all, v.lags...)
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1e3, "p50-ms")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1e3, "p99-ms")
	b.ReportMetric(float64(all[len(all)-1].Microseconds())/1e3, "max-ms")
	b.ReportMetric(float64(events)/lagFor.Seconds(), "events/s")
	b.ReportMetric(0, "ns/op")
}
