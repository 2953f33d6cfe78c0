package projection

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/journal"
)

// Bounds of [NotFreshError.RetryAfter], and what it is when nothing is known of how
// fast the view is.
const (
	minRetryAfter     = 10 * time.Millisecond
	maxRetryAfter     = 30 * time.Second
	unknownRetryAfter = 100 * time.Millisecond
)

// waiter waits until a view shows seq.
type waiter struct {
	seq   uint64
	place int           // in the heap; -1 when it is out
	ready chan struct{} // closed when it is out
	err   error         // why, if not because seq is shown
}

// waitHeap is the waiters of one view, the one with the least seq on top: children
// of i are 2i+1 and 2i+2. A publication takes off the top whom it wakes, and looks
// at nobody else but the next.
type waitHeap []*waiter

func (h *waitHeap) push(w *waiter) {
	w.place = len(*h)
	*h = append(*h, w)
	h.up(w.place)
}

// remove takes out a waiter that is in the heap.
func (h *waitHeap) remove(w *waiter) {
	i, last := w.place, len(*h)-1
	h.swap(i, last)
	(*h)[last] = nil
	*h = (*h)[:last]
	w.place = -1
	if i < last {
		h.down(i)
		h.up(i)
	}
}

func (h waitHeap) swap(i, k int) {
	h[i], h[k] = h[k], h[i]
	h[i].place, h[k].place = i, k
}

func (h waitHeap) up(i int) {
	for i > 0 && h[i].seq < h[(i-1)/2].seq {
		h.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
}

func (h waitHeap) down(i int) {
	for {
		least := i
		for _, c := range []int{2*i + 1, 2*i + 2} {
			if c < len(h) && h[c].seq < h[least].seq {
				least = c
			}
		}
		if least == i {
			return
		}
		h.swap(i, least)
		i = least
	}
}

// wakeLocked wakes exactly those who wait for seq or less, which is shown.
func (v *view) wakeLocked(seq uint64) {
	for len(v.waiters) > 0 && v.waiters[0].seq <= seq {
		v.wakeOneLocked(v.waiters[0], nil)
	}
}

func (v *view) endWaitsLocked() {
	for len(v.waiters) > 0 {
		v.wakeOneLocked(v.waiters[0], ErrEnded)
	}
}

func (v *view) wakeOneLocked(w *waiter, err error) {
	v.waiters.remove(w)
	w.err = err
	close(w.ready)
}

// Freshness says how far the view is behind the journal.
func (r *Runner) Freshness(name string) (Freshness, error) {
	v, err := r.find(name)
	if err != nil {
		return Freshness{}, err
	}
	return r.freshness(v, v.applied()), nil
}

// All returns the freshness of all views, the catalogue's first and then in the
// order in which they were added.
func (r *Runner) All() []Freshness {
	var all []Freshness
	for _, v := range r.views() {
		all = append(all, r.freshness(v, v.applied()))
	}
	return all
}

// freshness is that of an answer of v that shows applied.
func (r *Runner) freshness(v *view, applied journal.Position) Freshness {
	f, _ := r.measure(v, applied)
	if l, ok := v.inUse().(Lacker); ok && f.Err == nil && f.State != Ended {
		f.Err = safely("Lacking", l.Lacking)
	}
	return f
}

// measure is freshness without asking the view. known is false if the events that
// the view lacks were durable before the runner began, so that LagFor is less than
// the truth; otherwise it is the truth, or more.
func (r *Runner) measure(v *view, applied journal.Position) (f Freshness, known bool) {
	head := r.j.Head()
	if head.Seq < applied.Seq || planted.Bug("view-hides-its-lag") {
		head = applied // it moved between the two looks
	}
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	f = Freshness{View: v.name, Applied: applied, Head: head, Lag: head.Seq - applied.Seq, Err: v.err}
	known = true
	if f.Lag > 0 {
		var t time.Time
		if t, known = r.mu.times.since(applied.Seq + 1); !t.IsZero() {
			f.LagFor = max(now.Sub(t), 0)
		}
	}
	f.State = r.stateLocked(v, &f)
	return f, known
}

// stateLocked tells the state of a view whose lag is known.
func (r *Runner) stateLocked(v *view, f *Freshness) State {
	switch {
	case r.mu.closed:
		return Ended
	case v.rebuilding:
		return Rebuilding
	case v.err != nil:
		return Stalled
	case v.cat != nil && !r.mu.recovering, v.cat == nil && !r.mu.started:
		return Starting
	case !v.live, f.LagFor > DefaultWait:
		return CatchingUp
	}
	return Live
}

// Wait waits until the view is as fresh as c asks for, and says how fresh it is. An
// answer that cannot be given in time is a [*NotFreshError]; the time ends with ctx,
// or after c's bound, 5 s unless [Consistency.Wait] set another. Less than 0 does
// not wait at all.
//
// Positions are held against the journal first: ErrNoPosition, and errors that wrap
// journal.ErrFuturePosition or journal.ErrForeignPosition, are returned at once. One
// below the horizon of a compacted journal cannot be told from a foreign one; AtLeast
// takes it for reached. [AsOf] is answered only if it is what the view shows now:
// [Runner.SnapshotFor] and [Runner.CatalogueAt] know the past.
//
// A view that is stalled is waited for as well: it may go on in time.
func (r *Runner) Wait(ctx context.Context, name string, c Consistency) (Freshness, error) {
	_, f, err := r.Read(ctx, name, c)
	return f, err
}

// Read is Wait, and returns what the view then shows: what a [Publisher] published,
// of which f.Applied is the position; otherwise the view itself, which may show more
// than f.Applied by the time it is looked at. The catalogue's is a *Snapshot.
func (r *Runner) Read(ctx context.Context, name string, c Consistency) (value any, f Freshness, err error) {
	v, err := r.find(name)
	if err != nil {
		return nil, Freshness{}, err
	}
	value, pos := v.look()
	if c.mode == anyMode {
		return value, r.freshness(v, pos), nil
	}
	want, err := r.target(c)
	if err != nil {
		return nil, r.freshness(v, pos), err
	}
	if seq, ok := r.reached(v, c, want, pos); !ok {
		if value, pos, err = r.wait(ctx, v, c, want, seq); err != nil {
			return nil, r.freshness(v, pos), err
		}
	}
	return value, r.freshness(v, pos), nil
}

// target returns the position that c asks for, which is one of the journal; the zero
// Position if c asks for none.
func (r *Runner) target(c Consistency) (journal.Position, error) {
	want := c.pos
	switch c.mode {
	case latestMode:
		return r.j.Head(), nil
	case withinMode:
		return journal.Position{}, nil
	case atLeastSeqMode:
		want = journal.Position{Seq: c.seq}
	}
	if want == (journal.Position{}) {
		return want, ErrNoPosition
	}
	if head := r.j.Head(); want.Seq > head.Seq && !planted.Bug("view-waits-for-the-future") {
		return want, fmt.Errorf("%w: event %d, the head is %d", journal.ErrFuturePosition, want.Seq, head.Seq)
	}
	if c.mode == atLeastSeqMode {
		return want, nil
	}
	err := r.verify(want)
	if errors.Is(err, journal.ErrCompacted) && c.mode == atLeastMode {
		err = nil
	}
	return want, err
}

// reached says whether v, which shows pos, is as fresh as c asks for, and if not what
// it has to show before it can be.
func (r *Runner) reached(v *view, c Consistency, want, pos journal.Position) (seq uint64, ok bool) {
	switch c.mode {
	case withinMode:
		f, known := r.measure(v, pos)
		if f.Lag == 0 || known && f.LagFor <= c.within {
			return 0, true
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return max(r.mu.times.mustShow(r.now(), c.within), pos.Seq+1), false
	case asOfMode:
		return 0, pos == want
	}
	return want.Seq, pos.Seq >= want.Seq
}

// wait waits for what reached said is not reached.
func (r *Runner) wait(ctx context.Context, v *view, c Consistency, want journal.Position, seq uint64) (any, journal.Position, error) {
	if c.mode == asOfMode {
		pos := v.applied()
		return nil, pos, fmt.Errorf("view %q shows %v and not %v: only the catalogue can be asked for the past, with CatalogueAt", v.name, pos, want)
	}
	bound := c.wait
	if bound == 0 {
		bound = DefaultWait
	}
	timer := time.NewTimer(bound)
	defer timer.Stop()
	r.mu.Lock()
	r.mu.stats.Waited++
	r.mu.Unlock()
	for {
		err := r.await(ctx, v, seq, timer.C)
		value, pos := v.look()
		next, ok := r.reached(v, c, want, pos)
		switch {
		case ok:
			return value, pos, nil
		case errors.Is(err, ErrEnded):
			return nil, pos, err
		case err != nil:
			return nil, pos, r.notFresh(v, c, want, pos, ctx.Err())
		}
		seq = next // time went on
	}
}

// errWaited: the bound of a wait has passed.
var errWaited = errors.New("waited")

// await waits until v shows seq.
func (r *Runner) await(ctx context.Context, v *view, seq uint64, bound <-chan time.Time) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	w := &waiter{seq: seq, ready: make(chan struct{})}
	r.mu.Lock()
	if v.applied().Seq >= seq {
		r.mu.Unlock()
		return nil
	}
	if r.mu.closed {
		r.mu.Unlock()
		return ErrEnded
	}
	v.waiters.push(w)
	r.mu.Unlock()
	var err error
	select {
	case <-w.ready:
		return w.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-bound:
		err = errWaited
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.place < 0 {
		return w.err // both at once
	}
	v.waiters.remove(w)
	return err
}

// notFresh is the error of a wait that ended too soon.
func (r *Runner) notFresh(v *view, c Consistency, want, had journal.Position, cause error) error {
	f, _ := r.measure(v, had)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.stats.NotFresh++
	missing := f.Lag
	if want.Seq > had.Seq {
		missing = want.Seq - had.Seq
	}
	return &NotFreshError{
		View: v.name, Want: want, Had: had, Head: f.Head, Within: c.within, State: f.State, Err: f.Err,
		RetryAfter: r.retryAfterLocked(v, missing), Cause: cause,
	}
}

// retryAfterLocked guesses when v will have applied that many events more.
func (r *Runner) retryAfterLocked(v *view, missing uint64) time.Duration {
	after := unknownRetryAfter
	switch {
	case v.err != nil && !v.retryAt.IsZero():
		after = v.retryAt.Sub(r.now())
	case v.rate.perSecond > 0:
		after = maxRetryAfter
		if s := float64(missing) / v.rate.perSecond; s < maxRetryAfter.Seconds() {
			after = time.Duration(s * float64(time.Second))
		}
	}
	return min(max(after, minRetryAfter), maxRetryAfter)
}
