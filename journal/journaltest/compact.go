package journaltest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// State is what events come to: of every shard that lives, its newest event.
type State map[shard.Key]shard.Event

// Apply applies events, copying what it keeps.
func (s State) Apply(events []shard.Event) {
	for i := range events {
		e := clone(&events[i])
		if e.Kind == shard.EventDestroyed {
			delete(s, e.Key)
			continue
		}
		s[e.Key] = e
	}
}

// Emit calls emit with the events of s, in the order of their sequence numbers.
func (s State) Emit(emit func(*shard.Event) error) error {
	for _, e := range slices.SortedFunc(maps.Values(s), func(a, b shard.Event) int { return int(a.Seq) - int(b.Seq) }) {
		if err := emit(&e); err != nil {
			return err
		}
	}
	return nil
}

// StateAt folds batches up to the one that ends at seq.
func StateAt(batches []journal.Batch, seq uint64) State {
	s := State{}
	for i := range batches {
		if batches[i].End.Seq <= seq {
			s.Apply(batches[i].Events)
		}
	}
	return s
}

// Based is a journal with a horizon.
type Based interface {
	journal.Journal
	Horizon() journal.Position
	Base(visit func(events []shard.Event) error) (journal.Position, error)
}

// CheckBased returns an error unless j holds batches from its horizon on, up to some
// batch of them, its base is what those before come to, and no earlier replay is
// possible. found is the number of batches up to the head.
func CheckBased(j Based, batches []journal.Batch) (found int, err error) {
	base := State{}
	at, err := j.Base(func(events []shard.Event) error {
		base.Apply(events)
		return nil
	})
	if err != nil {
		return 0, err
	}
	for at.Seq > 0 && found < len(batches) && batches[found].End.Seq <= at.Seq {
		found++
	}
	if at != j.Horizon() || at.Seq > 0 && (found == 0 || batches[found-1].End != at) {
		return 0, fmt.Errorf("%w: base of %v, horizon %v", ErrDiffers, at, j.Horizon())
	}
	if diff := diffStates(StateAt(batches, at.Seq), base); diff != "" {
		return 0, fmt.Errorf("%w: base of %v (-want +got):\n%s", ErrDiffers, at, diff)
	}
	err = j.Replay(at.Seq, func(b *journal.Batch) error {
		if found == len(batches) || !Equal(batches[found:found+1], []journal.Batch{*b}) {
			return fmt.Errorf("%w: batch %d is %v with %d events", ErrDiffers, found, b.End, len(b.Events))
		}
		found++
		return nil
	})
	if err != nil {
		return 0, err
	}
	if at.Seq > 0 {
		err = j.Replay(at.Seq-1, func(*journal.Batch) error { return nil })
		if !errors.Is(err, journal.ErrCompacted) {
			return 0, fmt.Errorf("%w: Replay from below the horizon %v = %w", ErrDiffers, at, err)
		}
	}
	return found, nil
}

// ErrDiffers says that a journal does not hold what it should.
var ErrDiffers = errors.New("wrong contents")

func diffStates(want, got State) string {
	if maps.Equal(want, got) {
		return ""
	}
	return cmp.Diff(want, got, cmpopts.EquateComparable(shard.Key{}))
}

func testPositions(t *testing.T, s Subject) {
	j := open(t, s)
	p, ok := j.(journal.Positioner)
	if !ok {
		return // an extra power, which this journal does not have
	}
	m := newMirror(t, j)
	for range 20 {
		m.append(1, 4, 2, 30)
		for seq := range m.memory.Head().Seq + 1 {
			want, err := m.memory.PositionAt(seq)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := p.PositionAt(seq); err != nil || got != want {
				t.Fatalf("PositionAt(%d) = %v, %v; want %v", seq, got, err, want)
			}
		}
	}
	if _, err := p.PositionAt(m.memory.Head().Seq + 1); !errors.Is(err, journal.ErrFuturePosition) {
		t.Errorf("PositionAt beyond the head = %v, want ErrFuturePosition", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.PositionAt(3); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("PositionAt after Close = %v, want ErrClosed", err)
	}
}

// compactor is a journal under test that can be compacted.
type compactor interface {
	Based
	journal.Positioner
	journal.Compactor
}

// compact moves j's horizon to the end of batches[n-1].
func compact(t *testing.T, j compactor, batches []journal.Batch, n int) {
	t.Helper()
	at := batches[n-1].End
	if err := j.Compact(t.Context(), at, StateAt(batches, at.Seq).Emit); err != nil {
		t.Fatalf("Compact(%v): %v", at, err)
	}
}

func checkBased(t *testing.T, j Based, batches []journal.Batch) {
	t.Helper()
	found, err := CheckBased(j, batches)
	if err != nil {
		t.Fatal(err)
	}
	if found != len(batches) {
		t.Fatalf("%d of %d batches", found, len(batches))
	}
}

// testCompaction: the horizon moves to any batch, everything below it is the base,
// everything above stays, and the journal goes on.
func testCompaction(t *testing.T, s Subject) {
	j, ok := open(t, s).(compactor)
	if !ok {
		return // an extra power, which this journal does not have
	}
	m := newMirror(t, j)
	m.append(1, 4, 2, 30, 1, 9, 50, 3, 3)
	checkBased(t, j, Collect(t, m.memory, 0))
	for n := 1; n <= 16; n++ {
		m.append(1 + n%7)
		batches := Collect(t, m.memory, 0)
		at := batches[n-1].End
		before := j.Reclaimable(at)
		compact(t, j, batches, n)
		if before <= 0 && n > 12 || j.Reclaimable(at) != 0 {
			t.Errorf("Reclaimable(%v) was %d and is %d", at, before, j.Reclaimable(at))
		}
		checkBased(t, j, batches)
		checkPositions(t, j, batches, at.Seq)
		compact(t, j, batches, n) // again, which changes nothing
		checkBased(t, j, batches)
	}
	batches := Collect(t, m.memory, 0)
	compact(t, j, batches, len(batches)) // the head itself
	checkBased(t, j, batches)
	m.append(5)
	checkBased(t, j, Collect(t, m.memory, 0))
}

func checkPositions(t *testing.T, j journal.Positioner, batches []journal.Batch, horizon uint64) {
	t.Helper()
	seq := uint64(0)
	for i := range batches {
		for range batches[i].Events {
			seq++
			got, err := j.PositionAt(seq)
			if seq < horizon {
				if !errors.Is(err, journal.ErrCompacted) {
					t.Fatalf("PositionAt(%d) below the horizon = %v, %v", seq, got, err)
				}
			} else if err != nil || got != batches[i].End {
				t.Fatalf("PositionAt(%d) = %v, %v; want %v", seq, got, err, batches[i].End)
			}
		}
	}
}

func testCompactionRefused(t *testing.T, s Subject) {
	j, ok := open(t, s).(compactor)
	if !ok {
		return // an extra power, which this journal does not have
	}
	m := newMirror(t, j)
	m.append(1, 4, 2, 30, 1, 9, 50, 3, 3)
	batches := Collect(t, m.memory, 0)
	compact(t, j, batches, 3)
	end := batches[6].End
	foreign := end
	foreign.Digest[0] ^= 1
	enough := errors.New("enough")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	good := StateAt(batches, end.Seq).Emit
	one := func(change func(e *shard.Event)) func(func(*shard.Event) error) error {
		return func(emit func(*shard.Event) error) error {
			e := Events(1, 1)[0]
			change(&e)
			_ = emit(&e) // the refusal must not depend on the caller's passing it on
			return nil
		}
	}
	for name, c := range map[string]struct {
		ctx  context.Context
		at   journal.Position
		base func(func(*shard.Event) error) error
		want error
	}{
		"below the horizon": {t.Context(), batches[1].End, good, journal.ErrCompacted},
		"nothing":           {t.Context(), journal.Position{}, good, journal.ErrCompacted},
		"beyond the head":   {t.Context(), journal.Position{Seq: 1000}, good, journal.ErrFuturePosition},
		"foreign":           {t.Context(), foreign, good, journal.ErrForeignPosition},
		"inside a batch":    {t.Context(), journal.Position{Seq: end.Seq - 1}, good, journal.ErrForeignPosition},
		"base fails":        {t.Context(), end, func(func(*shard.Event) error) error { return enough }, enough},
		"cancelled":         {ctx, end, good, context.Canceled},
		"no gen":            {t.Context(), end, one(func(e *shard.Event) { e.Gen = 0 }), shard.ErrBadEvent},
		"too new":           {t.Context(), end, one(func(e *shard.Event) { e.Seq = end.Seq + 1 }), shard.ErrBadEvent},
		"destroyed":         {t.Context(), end, one(func(e *shard.Event) { e.Kind = shard.EventDestroyed }), shard.ErrBadEvent},
	} {
		if err := j.Compact(c.ctx, c.at, c.base); !errors.Is(err, c.want) {
			t.Errorf("%s: Compact = %v, want %v", name, err, c.want)
		}
		if got := j.Horizon(); got != batches[2].End {
			t.Fatalf("%s: the horizon moved to %v", name, got)
		}
		checkBased(t, j, batches)
	}
	m.append(2) // and the journal goes on
	batches = Collect(t, m.memory, 0)
	compact(t, j, batches, 7)
	checkBased(t, j, batches)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Compact(t.Context(), batches[8].End, good); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Compact after Close = %v, want ErrClosed", err)
	}
	if _, err := j.Base(func([]shard.Event) error { return nil }); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Base after Close = %v, want ErrClosed", err)
	}
}

// testCompactionBesideReplays: a replay shows everything from where it began, or says
// that this is gone; a base is whole.
func testCompactionBesideReplays(t *testing.T, s Subject) {
	j, ok := open(t, s).(compactor)
	if !ok {
		return // an extra power, which this journal does not have
	}
	m := newMirror(t, j)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				if err := foldOnce(j); err != nil && !errors.Is(err, journal.ErrCompacted) {
					t.Error(err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 24 {
		m.append(1+i%5, 6)
		if i%4 == 3 {
			batches := Collect(t, m.memory, 0)
			compact(t, j, batches, len(batches)-3)
		}
	}
	close(stop)
	readers.Wait()
	checkBased(t, j, Collect(t, m.memory, 0))
}

// foldOnce folds base and replay and compares with the events that [Events] gives.
func foldOnce(j Based) error {
	got := State{}
	at, err := j.Base(func(events []shard.Event) error {
		got.Apply(events)
		return nil
	})
	if err != nil {
		return err
	}
	end := at.Seq
	err = j.Replay(at.Seq, func(b *journal.Batch) error {
		if first := b.Events[0].Seq; first != end+1 {
			return fmt.Errorf("%w: seq %d where %d comes next", ErrDiffers, first, end+1)
		}
		end = b.End.Seq
		got.Apply(b.Events)
		return nil
	})
	if err != nil {
		return err
	}
	want := State{}
	want.Apply(Events(1, int(end)))
	if diff := diffStates(want, got); diff != "" {
		return fmt.Errorf("%w: state at %d from the base of %v (-want +got):\n%s", ErrDiffers, end, at, diff)
	}
	return nil
}

func testReopenCompacted(t *testing.T, s Subject) {
	j, ok := open(t, s).(compactor)
	if !ok {
		return // an extra power, which this journal does not have
	}
	m := newMirror(t, j)
	for i := range 4 {
		m.append(1, i+1, 40, 2)
		batches := Collect(t, m.memory, 0)
		compact(t, j, batches, len(batches)-i)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		j = open(t, s).(compactor)
		m.j = j
		checkBased(t, j, batches)
		checkPositions(t, j, batches, j.Horizon().Seq)
	}
}
