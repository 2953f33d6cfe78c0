package projection

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// A stalled view tries again by itself after a second, then after two, four, …
const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// StallError says at which batch a view stopped, and why.
type StallError struct {
	View string
	// First and Last are the events of the batch that could not be shown.
	First, Last uint64
	Err         error
}

func (e *StallError) Error() string {
	events := fmt.Sprintf("event %d", e.First)
	if e.Last > e.First {
		events = fmt.Sprintf("events %d to %d", e.First, e.Last)
	}
	return fmt.Sprintf("view %q cannot show %s: %v", e.View, events, e.Err)
}

func (e *StallError) Unwrap() error { return e.Err }

var (
	// errStop ends a replay where it was meant to end.
	errStop = errors.New("stop")
	// errSwapped ends the feeding of a view that another took the place of.
	errSwapped = errors.New("swapped")
)

// panicError is a panic in the code of a view.
type panicError struct {
	in    string
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic in %s: %v", e.in, e.value) }

// Unwrap returns the panic's value if that is an error.
func (e *panicError) Unwrap() error {
	err, _ := e.value.(error)
	return err
}

// safely calls into a view: a panic is that call's error.
func safely(what string, call func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{in: what, value: p, stack: debug.Stack()}
		}
	}()
	return call()
}

// takeLocked says whether v has something to be fed with and nobody feeds it, and
// makes the caller the one who does.
func (r *Runner) takeLocked(v *view) bool {
	if r.mu.closed || !r.mu.started || v.working || v.err != nil || v.cat != nil {
		return false
	}
	v.working = v.shown.Load().pos.Seq < r.mu.head.Seq || !v.live
	return v.working
}

func (r *Runner) spawnFeeds(vs []*view) {
	for _, v := range vs {
		r.spawn(func() { r.feed(v) })
	}
}

// pass shows v, which the caller took, a batch of events that do not concern it, if
// that is all it lacks. Otherwise it returns false, and v is still to be fed.
func (r *Runner) pass(v *view, b *journal.Batch) bool {
	s, ok := v.inUse().(Selective)
	if !ok || concerns(s, b.Events) || !v.apply.TryLock() {
		return false
	}
	next := b.End.Seq - uint64(len(b.Events))
	ready, gen := v.admitted && !v.spoiled && v.shown.Load().pos.Seq == next, v.gen
	v.apply.Unlock()
	if !ready {
		return false
	}
	frozen, err := r.show(v, gen, b)
	if errors.Is(err, errSwapped) {
		return false
	}
	r.spawnSave(frozen)
	return !r.fed(v, err)
}

// concerns says whether any of the events may mean something to s.
func concerns(s Selective, events []shard.Event) bool {
	some := true
	err := safely("Concerns", func() error {
		some = slices.ContainsFunc(events, func(e shard.Event) bool { return s.Concerns(&e) })
		return nil
	})
	return some || err != nil
}

// feed shows v what it lacks until it lacks nothing, cannot go on, or the runner is
// closed. The caller took v.
func (r *Runner) feed(v *view) {
	ended := false
	defer func() {
		if !ended { // the view ended the goroutine
			r.fed(v, errors.New("the view called runtime.Goexit"))
		}
	}()
	for {
		err := r.feedOnce(v)
		if !r.fed(v, err) {
			ended = true
			r.renew(v, err)
			return
		}
	}
}

// renew has a view made anew that would need history which was compacted away, if it
// can begin with what that came to. In a process that follows another's journal it may
// be overtaken although the catalogue was not.
func (r *Runner) renew(v *view, err error) {
	w := v.inUse()
	_, again := w.(Rebuilder)
	_, based := w.(Based)
	_, seeded := w.(Seeded)
	if !errors.Is(err, journal.ErrCompacted) || !again || !based && !seeded {
		return
	}
	r.spawn(func() {
		if err := r.Rebuild(r.ctx, v.name); err != nil && !errors.Is(err, ErrRebuilding) && r.ctx.Err() == nil {
			r.log.Error("a view cannot go on behind a compaction", "view", v.name, "err", err)
		}
	})
}

// feedOnce shows v what is committed.
func (r *Runner) feedOnce(v *view) error {
	from, gen, err := r.begin(v)
	if err != nil {
		return err
	}
	head := r.Head()
	err = r.j.Replay(from.Seq, func(b *journal.Batch) error {
		if r.ctx.Err() != nil || b.End.Seq > r.Head().Seq && !planted.Bug("view-ahead-of-the-catalogue") {
			return errStop
		}
		frozen, err := r.show(v, gen, b)
		r.spawnSave(frozen)
		return err
	})
	if errors.Is(err, errStop) || errors.Is(err, errSwapped) {
		return nil
	}
	if at := v.shown.Load().pos; err == nil && at.Seq < head.Seq {
		return fmt.Errorf("the journal has nothing after event %d, and %d are committed", at.Seq, head.Seq)
	}
	return err
}

// fed notes how a round of feeding ended and says whether there is another.
func (r *Runner) fed(v *view, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.mu.closed:
		v.working = false
	case err != nil:
		v.working = false
		r.stallLocked(v, err)
	case v.shown.Load().pos.Seq >= r.mu.head.Seq:
		v.working, v.live = false, true
		v.rate.end(r.now())
	}
	return v.working
}

// stallLocked stops v and has it try again later.
func (r *Runner) stallLocked(v *view, err error) {
	v.err, v.live = err, false
	r.mu.stats.Stalls++
	r.retryLaterLocked(v)
	attrs := []any{"view", v.name, "err", err, "again in", v.backoff}
	var p *panicError
	if errors.As(err, &p) {
		attrs = append(attrs, "stack", string(p.stack))
	}
	r.log.Error("a view is stalled", attrs...)
}

func (r *Runner) retryLaterLocked(v *view) {
	if r.mu.closed || !r.mu.started {
		return
	}
	v.backoff = min(max(2*v.backoff, firstRetry), lastRetry)
	v.retryAt = r.now().Add(v.backoff)
	if v.retry != nil {
		v.retry.Stop()
	}
	v.retry = time.AfterFunc(v.backoff, func() { r.Retry(v.name) })
}

// Retry has a stalled view try again now. It does nothing for a view that is not
// stalled, for the catalogue, which tries again with each Commit, and for unknown
// names.
func (r *Runner) Retry(name string) {
	v, err := r.find(name)
	if err != nil || v.cat != nil {
		return
	}
	r.mu.Lock()
	retry := v.err != nil && !v.working && !v.rebuilding && r.mu.started && !r.mu.closed
	if retry {
		v.err, v.working = nil, true
		if v.retry != nil {
			v.retry.Stop()
		}
	}
	r.mu.Unlock()
	if retry {
		r.spawnFeeds([]*view{v})
	}
}

// begin returns where the feeding of v begins, after its position was found to be
// the journal's and, if it shows nothing, the base was applied.
func (r *Runner) begin(v *view) (from journal.Position, gen int, err error) {
	if err := v.apply.lockFor(r.ctx); err != nil {
		return from, 0, err
	}
	defer v.apply.Unlock()
	if v.spoiled {
		fresh, err := freshOf(v)
		if err != nil {
			return from, 0, fmt.Errorf("a base was applied in part: %w", err)
		}
		v.use(fresh)
		v.spoiled, v.admitted = false, false
	}
	if from, err = r.admitLocked(v); err != nil {
		return from, 0, err
	}
	if from.Seq == 0 {
		if from, err = r.applyBase(r.ctx, v.cur); err != nil {
			v.spoiled = !errors.Is(err, errNotBased)
			return from, 0, err
		}
		if err := r.publishLocked(v, from); err != nil {
			return from, 0, err
		}
	}
	return from, v.gen, nil
}

// admitLocked holds the position of v, which may be of another journal or of a
// restored copy of this one, against the journal. v.apply is held.
func (r *Runner) admitLocked(v *view) (pos journal.Position, err error) {
	err = safely("Position", func() error {
		pos = v.cur.Position()
		return nil
	})
	if err != nil || v.admitted && pos == v.shown.Load().pos {
		return pos, err
	}
	v.admitted = false
	if err := r.verify(pos); err != nil && !planted.Bug("view-of-another-journal-fed") {
		return pos, fmt.Errorf("view %q shows %v: %w; rebuild it", v.name, pos, err)
	}
	v.admitted = true
	return pos, r.publishLocked(v, pos)
}

// publishLocked lets readers see v, which shows pos, and wakes those who wait for
// it. v.apply is held.
func (r *Runner) publishLocked(v *view, pos journal.Position) error {
	var value any
	if planted.Bug("view-wakes-before-it-shows") {
		r.mu.Lock()
		v.wakeLocked(pos.Seq)
		r.mu.Unlock()
	}
	err := safely("Publish", func() error {
		value = published(v.cur)
		return nil
	})
	if err != nil {
		return err
	}
	v.shown.Store(&shown{value: value, pos: pos})
	r.mu.Lock()
	defer r.mu.Unlock()
	if !planted.Bug("view-wakes-before-it-shows") {
		v.wakeLocked(pos.Seq)
	}
	return nil
}

// show applies and publishes one batch. What it returns is to be saved.
func (r *Runner) show(v *view, gen int, b *journal.Batch) (*frozenState, error) {
	if err := v.apply.lockFor(r.ctx); err != nil {
		return nil, err
	}
	defer v.apply.Unlock()
	if v.gen != gen {
		return nil, errSwapped
	}
	first := b.End.Seq - uint64(len(b.Events)) + 1
	if err := applyBatch(v.cur, v.shown.Load().pos, b); err != nil && !(planted.Bug("view-skips-what-it-cannot-apply") && v.backoff > 0) {
		return nil, &StallError{View: v.name, First: first, Last: b.End.Seq, Err: err}
	}
	if err := r.publishLocked(v, b.End); err != nil {
		return nil, &StallError{View: v.name, First: first, Last: b.End.Seq, Err: err}
	}
	v.since.add(b)
	r.mu.Lock()
	v.backoff = 0
	v.rate.add(len(b.Events), r.now)
	r.mu.Unlock()
	return r.freezeIfDue(v), nil
}

// applyBatch shows b to w, which shows pos, and holds w to its word.
func applyBatch(w View, pos journal.Position, b *journal.Batch) error {
	if first := b.End.Seq - uint64(len(b.Events)) + 1; first != pos.Seq+1 {
		return fmt.Errorf("a gap in the journal: events %d to %d follow %d", first, b.End.Seq, pos.Seq)
	}
	return safely("Apply", func() error {
		if err := w.Apply(b); err != nil {
			return err
		}
		if got := w.Position(); got != b.End {
			return fmt.Errorf("the view's Position is %v after it applied a batch that ends at %v", got, b.End)
		}
		return nil
	})
}

// errNotBased: a view needs history that was compacted away.
var errNotBased = fmt.Errorf("%w: the view needs the history from the beginning", journal.ErrCompacted)

// seed fills w, which shows nothing, from the catalogue.
func (r *Runner) seed(ctx context.Context, w Seeded) (journal.Position, error) {
	s := r.cat.Snapshot()
	err := safely("Seed", func() error {
		if err := w.Seed(ctx, s); err != nil {
			return err
		}
		if got := w.Position(); got != s.Position() {
			return fmt.Errorf("the view's Position is %v after it was seeded at %v", got, s.Position())
		}
		return nil
	})
	return s.Position(), err
}

// applyBase shows w, which shows nothing, the catalogue if it can begin there, or else
// the base of the journal if it has one, and returns where w then is.
func (r *Runner) applyBase(ctx context.Context, w View) (journal.Position, error) {
	if s, ok := w.(Seeded); ok {
		return r.seed(ctx, s)
	}
	c, ok := r.j.(journal.Compacted)
	if !ok || c.Horizon() == (journal.Position{}) {
		return journal.Position{}, nil
	}
	based, ok := w.(Based)
	if !ok {
		return journal.Position{}, errNotBased
	}
	done, err := r.readHistory(ctx)
	if err != nil {
		return journal.Position{}, err
	}
	defer done()
	var end journal.Position
	err = safely("ApplyBase", func() error {
		horizon := c.Horizon()
		var err error
		end, err = c.Base(func(events []shard.Event) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return based.ApplyBase(events, horizon, false)
		})
		if err != nil {
			return err
		}
		if err := based.ApplyBase(nil, end, true); err != nil {
			return err
		}
		if got := w.Position(); got != end {
			return fmt.Errorf("the view's Position is %v after it applied the base at %v", got, end)
		}
		return nil
	})
	return end, err
}

// readHistory waits for the end of a compaction and keeps the journal from being
// compacted until done is called.
func (r *Runner) readHistory(ctx context.Context) (done func(), err error) {
	r.mu.Lock()
	for r.mu.compacting != nil {
		compacted := r.mu.compacting
		r.mu.Unlock()
		select {
		case <-compacted:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		r.mu.Lock()
	}
	defer r.mu.Unlock()
	r.mu.historians++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.mu.historians--
	}, nil
}

// verify returns nil if pos is a position of this journal, and else an error that
// wraps journal.ErrFuturePosition, ErrForeignPosition or ErrCompacted, or says why
// that could not be found out.
func (r *Runner) verify(pos journal.Position) error {
	if pos.Seq == 0 {
		if pos != (journal.Position{}) {
			return journal.ErrForeignPosition
		}
		return nil
	}
	r.mu.Lock()
	at, ok := r.mu.recent.at(pos.Seq)
	r.mu.Unlock()
	if !ok {
		var err error
		if at, err = positionAt(r.j, pos.Seq); err != nil {
			return err
		}
	}
	if at != pos {
		return journal.ErrForeignPosition
	}
	return nil
}

// positionAt is journal.Positioner for any journal.
func positionAt(j journal.Journal, seq uint64) (pos journal.Position, err error) {
	if p, ok := j.(journal.Positioner); ok {
		return p.PositionAt(seq)
	}
	if head := j.Head(); seq > head.Seq {
		return pos, fmt.Errorf("%w: event %d of %d", journal.ErrFuturePosition, seq, head.Seq)
	}
	if seq == 0 {
		return pos, nil
	}
	err = j.Replay(seq-1, func(b *journal.Batch) error {
		pos = b.End
		return errStop
	})
	if errors.Is(err, errStop) {
		err = nil
	}
	return pos, err
}

// add counts a batch. Bytes are about what the journal writes for it.
func (g *growth) add(b *journal.Batch) {
	g.events += uint64(len(b.Events))
	for i := range b.Events {
		e := &b.Events[i]
		g.bytes += int64(20 + len(e.Key.String()) + len(e.State.URL) + len(e.State.Transient) + len(e.State.Reason))
		if e.State.Index.Blocks != 0 {
			g.bytes += 40
		}
	}
}

// catchUpRate measures how fast a view applies events.
type catchUpRate struct {
	perSecond float64 // 0: not known
	events    int     // since the measurement began
	since     time.Time
}

// measured is how many events are measured at a time.
const measured = 4096

func (c *catchUpRate) add(events int, now func() time.Time) {
	if c.since.IsZero() {
		c.since = now()
		return
	}
	if c.events += events; c.events >= measured {
		t := now()
		c.end(t)
		c.since = t
	}
}

// end ends a measurement: the view has caught up, or enough was measured.
func (c *catchUpRate) end(now time.Time) {
	if d := now.Sub(c.since); !c.since.IsZero() && d > 0 && c.events > 0 {
		rate := float64(c.events) / d.Seconds()
		if c.perSecond > 0 {
			rate = (3*c.perSecond + rate) / 4
		}
		c.perSecond = rate
	}
	c.events, c.since = 0, time.Time{}
}
