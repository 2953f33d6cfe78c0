package projection_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/projection/projectiontest"
	"github.com/dagstore/dagstore/shard"
)

// world is a journal with its runner, and a history to come.
type world struct {
	t       testing.TB
	j       journal.Journal
	cat     *projection.Catalogue
	r       *projection.Runner
	history [][]shard.Event
	n       int // batches appended
}

// longHistory is what happens in every world.
var longHistory = sync.OnceValue(func() [][]shard.Event { return projectiontest.History(1, 400) })

// newWorld returns a world that has recovered and started with the views.
func newWorld(t testing.TB, j journal.Journal, opts projection.Options, views ...projection.View) *world {
	t.Helper()
	w := idleWorld(t, j, opts, views...)
	w.recover()
	w.r.Start()
	return w
}

// idleWorld is newWorld before Recover.
func idleWorld(t testing.TB, j journal.Journal, opts projection.Options, views ...projection.View) *world {
	t.Helper()
	w := &world{t: t, j: j, cat: projection.NewCatalogue(), history: longHistory()}
	w.r = projection.NewRunner(j, w.cat, opts)
	t.Cleanup(func() { w.r.Close() })
	for _, v := range views {
		if err := w.r.Add(v); err != nil {
			t.Fatal(err)
		}
	}
	for w.n < len(w.history) && w.end(w.n+1) <= j.Head().Seq {
		w.n++
	}
	return w
}

func (w *world) recover() projection.Recovery {
	w.t.Helper()
	rec, err := w.r.Recover(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return rec
}

// end is the last event of the first n batches.
func (w *world) end(n int) uint64 {
	if n == 0 {
		return 0
	}
	b := w.history[n-1]
	return b[len(b)-1].Seq
}

// append appends the next batch and returns it, not yet committed.
func (w *world) append() *journal.Batch {
	w.t.Helper()
	events := w.history[w.n]
	end, err := w.j.Append(events)
	if err != nil {
		w.t.Fatal(err)
	}
	w.n++
	return &journal.Batch{Events: events, End: end}
}

// commit appends and commits the next n batches and returns the head.
func (w *world) commit(n int) journal.Position {
	w.t.Helper()
	for range n {
		if err := w.r.Commit(w.append()); err != nil {
			w.t.Fatal(err)
		}
	}
	return w.j.Head()
}

// wantReplayed fails unless the catalogue is what the journal comes to.
func (w *world) wantReplayed() {
	w.t.Helper()
	if got, want := w.cat.Snapshot().Digest(), digestAt(w.t, w.n); got != want {
		w.t.Fatal("the catalogue is not what the journal comes to")
	}
	if w.cat.Position() != w.j.Head() {
		w.t.Fatalf("the catalogue shows %v, the head is %v", w.cat.Position(), w.j.Head())
	}
}

var digests struct {
	sync.Mutex
	after map[int][32]byte
}

// digestAt is the catalogue's digest after the first n batches.
func digestAt(t testing.TB, n int) [32]byte {
	t.Helper()
	digests.Lock()
	defer digests.Unlock()
	if d, ok := digests.after[n]; ok {
		return d
	}
	cat := projection.NewCatalogue()
	if err := projectiontest.Journal(t, longHistory()[:n]).Replay(0, cat.Apply); err != nil {
		t.Fatal(err)
	}
	if digests.after == nil {
		digests.after = map[int][32]byte{}
	}
	digests.after[n] = cat.Snapshot().Digest()
	return digests.after[n]
}

// ledger is a view that needs all of the history: it hashes every event that it is
// shown. A test can get in the way of its Apply.
type ledger struct {
	name string
	// before is called before a batch is applied, and its error is Apply's.
	before func(b *journal.Batch) error
	fresh  func() (projection.View, error)

	mu      sync.Mutex
	pos     journal.Position
	sum     [32]byte
	applied int // batches that were applied
}

// tally is what a ledger publishes.
type tally struct {
	pos journal.Position
	sum [32]byte
}

func newLedger(name string) *ledger { return &ledger{name: name} }

func (l *ledger) Name() string    { return l.name }
func (l *ledger) Version() uint32 { return 1 }

func (l *ledger) Position() journal.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pos
}

func (l *ledger) Apply(b *journal.Batch) error {
	if l.before != nil {
		if err := l.before(b); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if b.End.Seq <= l.pos.Seq {
		return nil
	}
	l.sum = sumOf(l.sum, b.Events)
	l.pos = b.End
	l.applied++
	return nil
}

func sumOf(sum [32]byte, events []shard.Event) [32]byte {
	buf := sum[:]
	for i := range events {
		buf = shard.AppendEvent(buf, &events[i])
	}
	return sha256.Sum256(buf)
}

func (l *ledger) Publish() any {
	l.mu.Lock()
	defer l.mu.Unlock()
	return tally{l.pos, l.sum}
}

func (l *ledger) batches() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.applied
}

// wantTally fails unless value is what a ledger comes to at pos.
func wantTally(t testing.TB, history [][]shard.Event, value any, pos journal.Position) {
	t.Helper()
	var want tally
	for _, events := range history {
		if events[0].Seq > pos.Seq {
			break
		}
		want.sum = sumOf(want.sum, events)
	}
	want.pos = pos
	if value != want {
		t.Fatalf("the view shows %v, want %v", value, want)
	}
}

// rebuildable is a ledger that is a Rebuilder too.
type rebuildable struct{ *ledger }

func (r rebuildable) Fresh() (projection.View, error) { return r.fresh() }

// again is a Fresh for ledgers that nothing gets in the way of.
func again(name string) func() (projection.View, error) {
	return func() (projection.View, error) {
		l := newLedger(name)
		l.fresh = again(name)
		return rebuildable{l}, nil
	}
}

// queue is a Spawn that does nothing until it is told to.
type queue struct {
	mu   sync.Mutex
	work []func()
}

func (q *queue) spawn(work func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.work = append(q.work, work)
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.work)
}

// drain does what is queued, and what that queues, in this goroutine.
func (q *queue) drain() {
	for {
		q.mu.Lock()
		if len(q.work) == 0 {
			q.mu.Unlock()
			return
		}
		work := q.work[0]
		q.work = q.work[1:]
		q.mu.Unlock()
		work()
	}
}

// compacting is a journal that can be compacted, over one that need not be.
type compacting struct {
	journal.Journal
	mu      sync.Mutex
	horizon journal.Position
	base    []shard.Event
	fail    error // of the next Compact
}

func (c *compacting) at() journal.Position {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.horizon
}

func (c *compacting) Horizon() journal.Position { return c.at() }

func (c *compacting) Replay(seq uint64, visit func(*journal.Batch) error) error {
	if h := c.at(); seq < h.Seq {
		return fmt.Errorf("%w: replay from %d, the horizon is at %d", journal.ErrCompacted, seq, h.Seq)
	}
	return c.Journal.Replay(seq, visit)
}

func (c *compacting) PositionAt(seq uint64) (journal.Position, error) {
	if h := c.at(); seq < h.Seq && seq > 0 {
		return journal.Position{}, fmt.Errorf("%w: event %d", journal.ErrCompacted, seq)
	}
	return projection.PositionAt(c.Journal, seq)
}

func (c *compacting) Base(visit func([]shard.Event) error) (journal.Position, error) {
	c.mu.Lock()
	base, horizon := c.base, c.horizon
	c.mu.Unlock()
	for i := 0; i < len(base); i += 3 {
		if err := visit(base[i:min(i+3, len(base))]); err != nil {
			return journal.Position{}, err
		}
	}
	return horizon, nil
}

func (c *compacting) Reclaimable(at journal.Position) int64 {
	return 100 * int64(at.Seq-min(at.Seq, c.at().Seq))
}

func (c *compacting) Compact(_ context.Context, at journal.Position, base func(func(*shard.Event) error) error) error {
	var events []shard.Event
	err := base(func(e *shard.Event) error {
		events = append(events, *e)
		return nil
	})
	if err != nil {
		return err
	}
	if p, err := c.PositionAt(at.Seq); err != nil || p != at {
		return fmt.Errorf("compact at %v, the journal has %v: %w", at, p, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.fail; err != nil {
		c.fail = nil
		return err
	}
	c.horizon, c.base = at, events
	return nil
}

// seededUsage begins with the catalogue where it can.
type seededUsage struct{ *usageView }

func (u seededUsage) Fresh() (projection.View, error) { return seededUsage{newUsageView()}, nil }

func (u seededUsage) Seed(_ context.Context, s *projection.Snapshot) error {
	var events []shard.Event
	err := s.Events(func(e *shard.Event) error {
		events = append(events, *e)
		return nil
	})
	if err != nil {
		return err
	}
	return u.ApplyBase(events, s.Position(), true)
}
