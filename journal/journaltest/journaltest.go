// Package journaltest is the conformance suite of journals: what every
// [journal.Journal] has to keep, whatever it stores its batches in.
//
// An implementation's test is a few lines:
//
//	journaltest.Run(t, func(t *testing.T) journaltest.Subject {
//		d := newStore(t)
//		return journaltest.Subject{
//			Open:    func() (journal.Journal, error) { return mine.Open(d) },
//			Durable: true,
//		}
//	})
package journaltest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// Subject is one journal under test.
type Subject struct {
	// Open opens the journal; after a Close, the same one again.
	Open func() (journal.Journal, error)
	// Durable: what was appended is there after Close and Open.
	Durable bool
	// FailNext makes the next write or sync below the journal fail with err. Nil if
	// nothing below the journal can fail.
	FailNext func(err error)
}

// Events returns n legal events that begin with seq first, of all kinds and shapes.
// Equal arguments give equal events.
func Events(first uint64, n int) []shard.Event {
	events := make([]shard.Event, n)
	for i := range events {
		seq := first + uint64(i)
		e := shard.Event{
			Seq: seq, Gen: 1 + (seq-1)/5*5, Time: int64(seq) * 1_000_000_007, // five events a life
			Key: shard.KeyFromString(fmt.Sprintf("shard/%d", (seq-1)/5)),
		}
		e.State.URL = fmt.Sprintf("file:///var/lib/cars/%032d.car", e.Gen)
		switch seq - e.Gen {
		case 0:
			e.Kind, e.State.Life, e.State.Lazy = shard.EventRegistered, shard.Registered, e.Gen%2 == 0
			e.State.Transient = strings.Repeat("/tmp", int(e.Gen%3))
		case 1:
			e.Kind, e.State.Life, e.State.Reason = shard.EventFailed, shard.Errored, "no such file: ✗"
		case 2:
			e.Kind, e.State.Life, e.State.Reason = shard.EventRecovering, shard.Recovering, "no such file: ✗"
		case 3:
			e.Kind, e.State.Life = shard.EventIndexed, shard.Available
			e.State.Index = shard.IndexInfo{Blocks: seq, PayloadBytes: seq << 20, SourceSize: seq<<20 + 100, Digest: [32]byte{byte(seq), 31: 1}}
		case 4:
			e.Kind, e.State = shard.EventDestroyed, shard.State{}
		}
		events[i] = e
	}
	return events
}

// Run runs the suite. newSubject returns a fresh, empty journal each time.
func Run(t *testing.T, newSubject func(t *testing.T) Subject) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, s Subject)
	}{
		{"empty", testEmpty},
		{"order and batches", testOrder},
		{"replay from anywhere", testReplayFrom},
		{"refusals write nothing", testRefusals},
		{"large batch", testLarge},
		{"digests agree", testDigests},
		{"visit errors", testVisitError},
		{"concurrent readers", testConcurrent},
		{"close", testClose},
		{"positions", testPositions},
		{"compaction", testCompaction},
		{"compaction refused", testCompactionRefused},
		{"compaction beside replays", testCompactionBesideReplays},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, newSubject(t)) })
	}
	if s := newSubject(t); s.Durable {
		t.Run("reopen", func(t *testing.T) { testReopen(t, s) })
		t.Run("reopen compacted", func(t *testing.T) { testReopenCompacted(t, newSubject(t)) })
	}
	if s := newSubject(t); s.FailNext != nil {
		t.Run("failure", func(t *testing.T) { testFailure(t, s) })
	}
}

// open opens s and closes it with the test.
func open(t *testing.T, s Subject) journal.Journal {
	t.Helper()
	j, err := s.Open()
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return j
}

// mirror appends the same batches to a journal in memory, which says what the one
// under test should hold.
type mirror struct {
	t      *testing.T
	j      journal.Journal
	memory *journal.Memory
}

func newMirror(t *testing.T, j journal.Journal) *mirror {
	return &mirror{t: t, j: j, memory: journal.NewMemory()}
}

func (m *mirror) append(sizes ...int) {
	m.t.Helper()
	for _, n := range sizes {
		events := Events(m.memory.Head().Seq+1, n)
		want, err := m.memory.Append(events)
		if err != nil {
			m.t.Fatal(err)
		}
		got, err := m.j.Append(events)
		if err != nil || got != want {
			m.t.Fatalf("Append of %d events = %v, %v; want %v", n, got, err, want)
		}
	}
}

// check compares head and contents.
func (m *mirror) check() {
	m.t.Helper()
	if got, want := m.j.Head(), m.memory.Head(); got != want {
		m.t.Fatalf("Head = %v, want %v", got, want)
	}
	if diff := Diff(Collect(m.t, m.memory, 0), Collect(m.t, m.j, 0)); diff != "" {
		m.t.Fatalf("replay differs from what was appended (-want +got):\n%s", diff)
	}
}

// Collect returns copies of all batches of j that end after seq, and fails the test
// if they are not in order, not whole, or their chain does not hold.
func Collect(t testing.TB, j journal.Journal, seq uint64) []journal.Batch {
	t.Helper()
	var batches []journal.Batch
	err := j.Replay(seq, func(b *journal.Batch) error {
		c := journal.Batch{Events: make([]shard.Event, len(b.Events)), End: b.End}
		for i := range b.Events {
			c.Events[i] = clone(&b.Events[i])
		}
		batches = append(batches, c)
		return nil
	})
	if err != nil {
		t.Fatalf("Replay(%d): %v", seq, err)
	}
	next := uint64(0)
	for _, b := range batches {
		for _, e := range b.Events {
			if next != 0 && e.Seq != next {
				t.Fatalf("Replay(%d): seq %d where %d comes next", seq, e.Seq, next)
			}
			next = e.Seq + 1
		}
		if b.End.Seq != next-1 || b.End.Seq <= seq {
			t.Fatalf("Replay(%d): a batch ends at %d, its events at %d", seq, b.End.Seq, next-1)
		}
	}
	if len(batches) > 0 && seq == 0 && batches[0].Events[0].Seq != 1 {
		t.Fatalf("Replay(0) begins with seq %d", batches[0].Events[0].Seq)
	}
	return batches
}

func clone(e *shard.Event) shard.Event {
	c := *e
	c.Key = shard.KeyFromString(strings.Clone(e.Key.String()))
	c.State.URL = strings.Clone(e.State.URL)
	c.State.Transient = strings.Clone(e.State.Transient)
	c.State.Reason = strings.Clone(e.State.Reason)
	return c
}

// Equal reports whether two replays gave the same batches.
func Equal(a, b []journal.Batch) bool {
	return slices.EqualFunc(a, b, func(a, b journal.Batch) bool {
		return a.End == b.End && slices.Equal(a.Events, b.Events)
	})
}

// Diff describes how got differs from want; it is empty if they are equal.
func Diff(want, got []journal.Batch) string {
	if Equal(want, got) {
		return "" // without what cmp costs
	}
	return cmp.Diff(want, got, cmpopts.EquateComparable(shard.Key{}))
}

func testEmpty(t *testing.T, s Subject) {
	j := open(t, s)
	if h := j.Head(); h != (journal.Position{}) {
		t.Errorf("Head of an empty journal = %v", h)
	}
	if b := Collect(t, j, 0); len(b) != 0 {
		t.Errorf("an empty journal replays %d batches", len(b))
	}
	if end, err := j.Append(nil); err != nil || end != (journal.Position{}) {
		t.Errorf("Append of nothing = %v, %v; want the head and nil", end, err)
	}
}

func testOrder(t *testing.T, s Subject) {
	m := newMirror(t, open(t, s))
	m.append(1, 2, 3, 50, 1, 7)
	m.check()
}

func testReplayFrom(t *testing.T, s Subject) {
	m := newMirror(t, open(t, s))
	m.append(1, 4, 1, 10, 2)
	for seq := range m.j.Head().Seq + 3 {
		if diff := Diff(Collect(t, m.memory, seq), Collect(t, m.j, seq)); diff != "" {
			t.Fatalf("Replay(%d) (-want +got):\n%s", seq, diff)
		}
	}
}

func testRefusals(t *testing.T, s Subject) {
	m := newMirror(t, open(t, s))
	m.append(3)
	bad := func(change func([]shard.Event)) []shard.Event {
		events := Events(4, 3)
		change(events)
		return events
	}
	for name, c := range map[string]struct {
		events []shard.Event
		want   error
	}{
		"repeated":   {Events(3, 2), journal.ErrOutOfOrder},
		"gap":        {Events(5, 2), journal.ErrOutOfOrder},
		"gap inside": {bad(func(e []shard.Event) { e[2].Seq = 7 }), journal.ErrOutOfOrder},
		"no seq":     {bad(func(e []shard.Event) { e[0].Seq = 0 }), journal.ErrOutOfOrder},
		"late gen":   {bad(func(e []shard.Event) { e[1].Gen = 6 }), shard.ErrBadEvent},
		"no gen":     {bad(func(e []shard.Event) { e[1].Gen = 0 }), shard.ErrBadEvent},
		"no kind":    {bad(func(e []shard.Event) { e[2].Kind = 0 }), shard.ErrBadEvent},
		"odd life":   {bad(func(e []shard.Event) { e[2].State.Life = 200 }), shard.ErrBadEvent},
		"too large":  {bad(func(e []shard.Event) { e[0].State.URL = strings.Repeat("x", 64<<20) }), journal.ErrTooLarge},
	} {
		if _, err := m.j.Append(c.events); !errors.Is(err, c.want) {
			t.Errorf("%s: Append = %v, want %v", name, err, c.want)
		}
	}
	m.check()
	m.append(2) // and the journal goes on
	m.check()
}

func testLarge(t *testing.T, s Subject) {
	m := newMirror(t, open(t, s))
	m.append(1, 20_000, 1)
	m.check()
}

// goldenDigest is Head().Digest after batches of 1, 2 and 3 Events.
const goldenDigest = "6@914e915a1322"

func testDigests(t *testing.T, s Subject) {
	m := newMirror(t, open(t, s))
	m.append(1, 2, 3)
	if got := m.j.Head().String(); got != goldenDigest {
		t.Errorf("Head = %s, want %s: journals written by other releases would not be read", got, goldenDigest)
	}
}

func testVisitError(t *testing.T, s Subject) {
	m := newMirror(t, open(t, s))
	m.append(1, 1, 1)
	enough, visits := errors.New("enough"), 0
	err := m.j.Replay(0, func(*journal.Batch) error {
		if visits++; visits == 2 {
			return enough
		}
		return nil
	})
	if err != enough || visits != 2 {
		t.Errorf("Replay = %v after %d visits; want the visit's error as it is, after 2", err, visits)
	}
	m.check()
}

// testConcurrent: whatever a reader sees as Head, a replay begun later shows.
func testConcurrent(t *testing.T, s Subject) {
	m := newMirror(t, open(t, s))
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for {
				head := m.j.Head()
				var last journal.Position
				if err := m.j.Replay(head.Seq/2, func(b *journal.Batch) error { last = b.End; return nil }); err != nil {
					t.Errorf("Replay: %v", err)
					return
				}
				if last.Seq < head.Seq || last.Seq == head.Seq && last != head {
					t.Errorf("Replay ended at %v, Head before it was %v", last, head)
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
	for i := range 30 {
		m.append(1 + i%7)
	}
	close(stop)
	readers.Wait()
	m.check()
}

func testClose(t *testing.T, s Subject) {
	j := open(t, s)
	if _, err := j.Append(Events(1, 2)); err != nil {
		t.Fatal(err)
	}
	// Closing from within a visit ends the replay.
	err := j.Replay(0, func(*journal.Batch) error { return j.Close() })
	if !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Replay across Close = %v, want ErrClosed", err)
	}
	if err := j.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	for _, events := range [][]shard.Event{nil, Events(3, 1)} {
		if _, err := j.Append(events); !errors.Is(err, journal.ErrClosed) {
			t.Errorf("Append of %d events after Close = %v, want ErrClosed", len(events), err)
		}
	}
	if err := j.Replay(0, func(*journal.Batch) error { t.Error("visited"); return nil }); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Replay after Close = %v, want ErrClosed", err)
	}
	if got := j.Head().Seq; got != 2 {
		t.Errorf("Head after Close = %d, want what it was, 2", got)
	}
}

func testReopen(t *testing.T, s Subject) {
	m := newMirror(t, open(t, s))
	for i := range 3 {
		m.append(1, i+1, 40)
		if err := m.j.Close(); err != nil {
			t.Fatal(err)
		}
		m.j = open(t, s)
		m.check()
	}
}

// testFailure: whatever fails, the batch is wholly there or wholly not, and nobody
// is told that it is when it may not be.
func testFailure(t *testing.T, s Subject) {
	m := newMirror(t, open(t, s))
	m.append(3, 2)
	cause := errors.New("the disk is on fire")
	s.FailNext(cause)
	_, err := m.j.Append(Events(6, 2))
	if !errors.Is(err, cause) {
		t.Fatalf("Append on a failing disk = %v, want its cause", err)
	}
	m.check() // what was durable is still served
	if !errors.Is(err, journal.ErrOutcomeUnknown) {
		m.append(2)
		m.check()
		return
	}
	for range 2 {
		if _, err := m.j.Append(Events(6, 2)); !errors.Is(err, journal.ErrReadOnly) || !errors.Is(err, cause) {
			t.Fatalf("Append after an unknown outcome = %v, want ErrReadOnly with its cause", err)
		}
	}
	if _, err := m.j.Append(nil); !errors.Is(err, journal.ErrReadOnly) {
		t.Fatalf("Append of nothing after an unknown outcome = %v, want ErrReadOnly", err)
	}
	if err := m.j.Close(); err != nil {
		t.Fatal(err)
	}
	m.j = open(t, s)
	if m.j.Head().Seq == 7 {
		if _, err := m.memory.Append(Events(6, 2)); err != nil {
			t.Fatal(err)
		}
	}
	m.check()
	m.append(4)
	m.check()
}
