package projection

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// compacted is a journal whose batches up to a horizon are gone. visited counts the
// events that are replayed.
type compacted struct {
	journal.Journal
	horizon journal.Position
	base    []shard.Event
	visited int
}

func (j *compacted) Horizon() journal.Position { return j.horizon }

func (j *compacted) Base(visit func([]shard.Event) error) (journal.Position, error) {
	for run := range slices.Chunk(j.base, 700) {
		if err := visit(run); err != nil {
			return journal.Position{}, err
		}
	}
	return j.horizon, nil
}

func (j *compacted) Replay(seq uint64, visit func(*journal.Batch) error) error {
	if seq < j.horizon.Seq {
		return journal.ErrCompacted
	}
	return j.Journal.Replay(seq, func(b *journal.Batch) error {
		j.visited += len(b.Events)
		return visit(b)
	})
}

func (j *compacted) Reclaimable(journal.Position) int64 { return 0 }

func (j *compacted) Compact(context.Context, journal.Position, func(func(*shard.Event) error) error) error {
	return errors.ErrUnsupported
}

// eventsOf collects the base that s comes to.
func eventsOf(s *Snapshot) (events []shard.Event) {
	_ = s.Events(func(e *shard.Event) error { events = append(events, *e); return nil })
	return events
}

// restored is a catalogue that was saved and restored.
func restored(t testing.TB, c *Catalogue) *Catalogue {
	t.Helper()
	pos, blocks := blocksOf(t, c)
	back := NewCatalogue()
	if err := back.Restore(pos, reader(blocks)); err != nil {
		t.Fatal(err)
	}
	return back
}

// TestWaysToAState reaches the end of a long course, by goroutines and without, by
// every way there is: each batch applied, all loaded, a prefix and then the rest
// loaded, a checkpoint and the rest, the base of a compacted journal and the rest, fed
// by Load and by ApplyBase. Proves G5, G6, G15, I4 (one state, byte for byte) and G16
// (no more is replayed than what follows).
func TestWaysToAState(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		events := rapid.SampledFrom([]int{0, 300, fewEvents + 2000, 2 * fewEvents}).Draw(rt, "events")
		keys := rapid.SampledFrom([]int{20, 900, 30_000}).Draw(rt, "keys")
		batches := course(rapid.Uint64().Draw(rt, "seed"), keys, events, 100)
		j := memoryOf(t, batches)
		applied, half := NewCatalogue(), NewCatalogue()
		cut := rapid.IntRange(0, len(batches)).Draw(rt, "cut")
		if err := j.Replay(0, func(b *journal.Batch) error {
			if cut--; cut >= 0 {
				if err := half.Apply(b); err != nil {
					return err
				}
			}
			return applied.Apply(b)
		}); err != nil {
			t.Fatal(err)
		}
		want, middle := applied.Snapshot(), half.Snapshot()
		cj := &compacted{Journal: j, horizon: middle.Position(), base: eventsOf(middle)}
		based := NewCatalogue()
		for run := range slices.Chunk(cj.base, 333) {
			if err := based.ApplyBase(run, cj.horizon, false); err != nil {
				t.Fatal(err)
			}
			if based.Position().Seq != 0 || based.Snapshot().Len() != 0 {
				t.Fatal("half a base is shown")
			}
		}
		if err := based.ApplyBase(nil, cj.horizon, true); err != nil {
			t.Fatal(err)
		}
		if based.Position() != cj.horizon || based.Snapshot().Digest() != middle.Digest() {
			t.Fatal("the base is another state")
		}
		for name, way := range map[string]struct {
			c        *Catalogue
			j        journal.Journal
			replayed uint64
		}{
			"loaded":     {NewCatalogue(), j, want.Position().Seq},
			"the rest":   {half, j, want.Position().Seq - middle.Position().Seq},
			"checkpoint": {restored(t, half), cj, want.Position().Seq - middle.Position().Seq},
			"base":       {NewCatalogue(), cj, want.Position().Seq - middle.Position().Seq},
			"ApplyBase":  {based, cj, want.Position().Seq - middle.Position().Seq},
		} {
			cj.visited = 0
			n, err := way.c.Load(t.Context(), way.j)
			if err != nil || n != way.replayed {
				t.Fatalf("%s: %d events are replayed, want %d: %v", name, n, way.replayed, err)
			}
			if way.j == cj && cj.visited != int(n) {
				t.Fatalf("%s: %d events were read, of which %d count", name, cj.visited, n)
			}
			got := way.c.Snapshot()
			if got.Position() != want.Position() || got.n != want.n || got.Digest() != want.Digest() {
				t.Fatalf("%s: %v %v, want %v %v", name, got.Position(), got.n, want.Position(), want.n)
			}
			if _, err := sound(&got.root); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if middle.Digest() != half.restoredDigest(t, middle) {
			t.Fatal("what was shown before has changed")
		}
	})
}

// restoredDigest is the digest of s by way of its blocks.
func (c *Catalogue) restoredDigest(t testing.TB, s *Snapshot) [32]byte {
	t.Helper()
	frozen := NewCatalogue()
	frozen.shown.Store(s)
	return restored(t, frozen).Snapshot().Digest()
}

// TestDigest holds the digest of a fixed history to a constant: two replays give equal
// bytes on any machine and in any release. Proves G5.
func TestDigest(t *testing.T) {
	j, err := journal.OpenFile(fsio.OS(), filepath.Join(t.TempDir(), "journal"), journal.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	for _, b := range course(11, 3000, 9000, 500) {
		if _, err := j.Append(b); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		c := NewCatalogue()
		if _, err := c.Load(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		d := c.Snapshot().Digest()
		const want = "1e1853b56a54895dd267a47da5cd64abb49f41e0277bed679eba6a8f7a58a959"
		if got := hex.EncodeToString(d[:]); got != want {
			t.Fatalf("digest %s, want %s", got, want)
		}
	}
}

// TestLoadRefuses: of a journal with events that cannot follow, nothing is shown, and
// the error is that of the first, however many cores were at work. Proves G4, N1.
func TestLoadRefuses(t *testing.T) {
	for seed := range uint64(8) {
		events := []int{200, 3 * fewEvents}[seed%2]
		batches := course(seed, 300, events, 40)
		var first *shard.Event
		for _, b := range batches[len(batches)/2:] {
			e := &b[len(b)-1]
			e.Gen = e.Seq // another life than the one that is
			if e.Kind == shard.EventRegistered {
				e.Kind, e.State.Life, e.Gen = shard.EventIndexed, shard.Available, 1
			}
			if first == nil {
				first = e
			}
		}
		c := NewCatalogue()
		_, err := c.Load(t.Context(), memoryOf(t, batches))
		if !errors.Is(err, shard.ErrIllegal) || !strings.Contains(err.Error(), fmt.Sprintf("seq %d:", first.Seq)) {
			t.Errorf("%d events: %v, want that of %d", events, err, first.Seq)
		}
		if c.Position().Seq != 0 || c.Snapshot().Len() != 0 {
			t.Errorf("%d events: something is shown", events)
		}
	}
}

// TestLoadEnds: a load ends with its context, and with the journal's error.
func TestLoadEnds(t *testing.T) {
	j := memoryOf(t, course(6, 300, 3*fewEvents, 40))
	ctx, cancel := context.WithCancel(t.Context())
	cj := &compacted{Journal: j}
	c := NewCatalogue()
	mustApply(t, c, course(6, 300, 40, 40)[0])
	before := c.Snapshot()
	broken := errors.New("broken")
	for name, end := range map[string]struct {
		j    journal.Journal
		want error
	}{
		"context": {stopped{cj, func() error { cancel(); return nil }}, context.Canceled},
		"journal": {stopped{cj, func() error { return broken }}, broken},
	} {
		ctx := ctx
		if name == "journal" {
			ctx = t.Context()
		}
		if _, err := c.Load(ctx, end.j); !errors.Is(err, end.want) {
			t.Errorf("%s: %v", name, err)
		}
		if c.Snapshot() != before {
			t.Errorf("%s: something else is shown", name)
		}
	}
	cj.horizon = journal.Position{Seq: 1000}
	if _, err := c.Load(t.Context(), cj); !errors.Is(err, journal.ErrCompacted) {
		t.Errorf("from below the horizon: %v", err)
	}
	if _, err := c.Load(t.Context(), j); err != nil || c.Position() == before.Position() {
		t.Errorf("after all that: %v", err)
	}
}

// stopped is a journal that does something in the middle of a replay.
type stopped struct {
	journal.Journal
	middle func() error
}

func (j stopped) Replay(seq uint64, visit func(*journal.Batch) error) error {
	return j.Journal.Replay(seq, func(b *journal.Batch) error {
		if b.End.Seq > 2*fewEvents {
			if err := j.middle(); err != nil {
				return err
			}
		}
		return visit(b)
	})
}

// TestBaseRefuses: a base that cannot be one.
func TestBaseRefuses(t *testing.T) {
	one := registration(3, 1)
	ended := one
	ended.Kind, ended.State.Life = shard.EventDestroyed, shard.None
	mixed := one
	mixed.Kind = shard.EventIndexed
	unborn := one
	unborn.Gen = 0
	late := registration(9, 2)
	for name, events := range map[string][]shard.Event{
		"twice": {one, one}, "destroyed": {ended}, "no event": {mixed}, "no generation": {unborn}, "after its end": {late},
	} {
		c := NewCatalogue()
		if err := c.ApplyBase(events, journal.Position{Seq: 8}, true); err == nil {
			t.Errorf("%s passes", name)
		}
		if c.Position().Seq != 0 {
			t.Errorf("%s: something is shown", name)
		}
	}
	c := NewCatalogue()
	mustApply(t, c, []shard.Event{registration(1, 1)})
	if err := c.ApplyBase(nil, journal.Position{Seq: 8}, true); err == nil {
		t.Error("a base passes for a catalogue that is not empty")
	}
}
