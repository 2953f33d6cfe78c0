package projection_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// silent is a journal that keeps nothing, so that what a commit costs is seen.
type silent struct {
	*journal.Memory
	mu   sync.Mutex
	head journal.Position
}

func (s *silent) Head() journal.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head
}

func (s *silent) Append(events []shard.Event) (journal.Position, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.head.Seq += uint64(len(events))
	return s.head, nil
}

// BenchmarkCommit is what Commit costs beside the catalogue's Apply, which is the first
// row: without views, with one that is fed, and with 1,000 who wait for later.
func BenchmarkCommit(b *testing.B) {
	event := shard.Event{Gen: 1, Kind: shard.EventRecovering, Key: shard.KeyFromString("k"), State: shard.State{Life: shard.Recovering, URL: "file:///data/x.car"}}
	run := func(b *testing.B, j journal.Journal, commit func(*journal.Batch) error) {
		events := make([]shard.Event, 1)
		batch := &journal.Batch{Events: events}
		seq := uint64(0)
		b.ReportAllocs()
		for b.Loop() {
			seq++
			events[0] = event
			events[0].Seq = seq
			if seq == 1 {
				events[0].Kind, events[0].State.Life = shard.EventRegistered, shard.Registered
			}
			var err error
			if batch.End, err = j.Append(events); err != nil {
				b.Fatal(err)
			}
			if err := commit(batch); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("apply alone", func(b *testing.B) {
		cat := projection.NewCatalogue()
		run(b, new(silent), cat.Apply)
	})
	runner := func(b *testing.B, j journal.Journal, views ...projection.View) *projection.Runner {
		r := projection.NewRunner(j, projection.NewCatalogue(), projection.Options{})
		for _, v := range views {
			if err := r.Add(v); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := r.Recover(b.Context()); err != nil {
			b.Fatal(err)
		}
		r.Start()
		return r
	}
	b.Run("no views", func(b *testing.B) {
		j := &silent{Memory: journal.NewMemory()}
		r := runner(b, j)
		defer r.Close()
		run(b, j, r.Commit)
	})
	b.Run("1 view", func(b *testing.B) {
		j := journal.NewMemory()
		r := runner(b, j, newUsageView())
		defer r.Close()
		run(b, j, r.Commit)
	})
	b.Run("1000 waiters", func(b *testing.B) {
		j := &silent{Memory: journal.NewMemory()}
		r := runner(b, j)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		// They wait for what the journal has and nobody commits.
		j.head.Seq = 1 << 40
		for range 1000 {
			wg.Go(func() { _, _ = r.Wait(ctx, "catalogue", projection.AtLeastSeq(1<<40).Wait(1<<62)) })
		}
		for r.Stats().Waiting < 1000 {
			if ctx.Err() != nil {
				b.Fatal(ctx.Err())
			}
		}
		j.head.Seq = 0
		run(b, j, r.Commit)
		cancel()
		wg.Wait()
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkWait is a read of what is shown already: with Any, and with a position that
// is checked.
func BenchmarkWait(b *testing.B) {
	w := newWorld(b, journal.NewMemory(), projection.Options{})
	head := w.commit(100)
	for _, c := range []projection.Consistency{projection.Any(), projection.AtLeast(head), projection.Latest()} {
		b.Run(fmt.Sprint(c)[:3], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.r.Wait(b.Context(), "catalogue", c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
