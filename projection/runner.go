package projection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
)

// catalogueName is the name of the first view.
const catalogueName = "catalogue"

// CheckpointPolicy says when a view's checkpoint is due: when either bound is reached.
// With both zero it is due only when the journal has also grown by an eighth of the
// last checkpoint's size, so that checkpoints cost a bounded share of what is
// written. An explicit value is taken as it is.
type CheckpointPolicy struct {
	Events uint64 // events since the last one; 0: 100,000
	Bytes  int64  // their encoded size, about; 0: 64 MiB
}

// Retention says how much history is kept when the journal can be compacted.
type Retention struct {
	// Events is how many events of history are kept before the oldest checkpoint.
	Events uint64
	// Bytes is how much a compaction has to give back to be worth while; 0: 256 MiB;
	// less than 0: the journal is never compacted.
	Bytes int64
}

const (
	defaultPolicyEvents   = 100_000
	defaultPolicyBytes    = 64 << 20
	policyShare           = 8
	defaultRetentionBytes = 256 << 20
)

// Options of a [Runner]. The zero value makes no checkpoints.
type Options struct {
	// FS holds Dir; nil: the operating system's.
	FS fsio.FS
	// Dir is the directory of the checkpoints; if it is empty none are made or read.
	Dir string
	// ReadOnly: checkpoints are read, and nothing is written, removed or compacted.
	ReadOnly  bool
	Policy    CheckpointPolicy
	Retention Retention
	// Spawn has one piece of work done beside the caller; nil: in a goroutine. It is
	// called without a lock held and may do the work later, or at once.
	Spawn  func(work func())
	Logger *slog.Logger
	// Now is the time; nil: time.Now.
	Now func() time.Time
}

// Runner feeds the views of one journal. It knows how far each has come, lets
// readers wait, checkpoints what is in memory, and compacts the journal once all
// have passed.
//
// The catalogue is fed by [Runner.Commit], in the goroutine that appends. The others
// are fed from the journal, each by a function given to Options.Spawn while there is
// something to feed it with; an idle view has no goroutine. Always
//
//	view.Position ≤ Head() ≤ journal.Head()
//
// so no view is ahead of the catalogue. All methods but Commit may be called by any
// goroutine; Commit by one at a time.
type Runner struct {
	j     journal.Journal
	cat   *Catalogue
	first *view // the catalogue's
	opts  Options
	now   func() time.Time
	log   *slog.Logger
	files checkpointFiles

	// ctx ends with Close and has ErrEnded as its cause.
	ctx context.Context
	end context.CancelCauseFunc

	// Locks are taken in this order: view.apply, mu.
	mu struct {
		sync.Mutex
		views      []*view // the catalogue first
		recovering bool
		recovered  bool
		started    bool
		closed     bool
		head       journal.Position // the last batch that was committed
		recent     positionRing
		times      headTimes
		working    int       // pieces of work under way
		writing    int       // of them those that write or remove files, with no code of others in it
		idle       sync.Cond // working or writing has become 0, or Close waits no longer
		// historians read the journal from its beginning: it is not compacted
		// meanwhile.
		historians int
		compacting chan struct{} // closed at the end of the compaction; nil if there is none
		stats      RunnerStats
	}
}

// RunnerStats are counters since the runner was made.
type RunnerStats struct {
	Checkpoints       uint64 // written
	CheckpointsFailed uint64 // not written; the former stay
	CheckpointBytes   uint64 // in those written
	Ignored           uint64 // checkpoints that recovery could not use
	Replayed          uint64 // events that recovery applied to the catalogue
	Compactions       uint64
	CompactionsFailed uint64
	Rebuilds          uint64 // swapped in
	Stalls            uint64 // times that a view stopped
	Waited            uint64 // waits that did not end at once
	NotFresh          uint64 // waits that ended without what they waited for
	Waiting           int    // now
}

// view is one view with what the runner knows of it.
type view struct {
	name    string
	version uint32
	cat     *Catalogue // nil unless it is the catalogue

	// apply serialises Apply, ApplyBase, Publish and Freeze, and guards the fields
	// up to the empty line.
	apply applyLock
	cur   View
	gen   int // counts the swaps
	// admitted: the position was found to be the journal's.
	admitted bool
	// spoiled: a base was applied to it in part.
	spoiled bool
	since   growth // since the last checkpoint

	shown atomic.Pointer[shown]
	using atomic.Pointer[View] // cur, for who does not hold apply
	// saving is held by whoever writes a checkpoint of the view.
	saving  chan struct{}
	lastLen atomic.Int64 // of the last checkpoint, in bytes

	// The rest is guarded by Runner.mu.
	waiters    waitHeap
	working    bool // it is being fed
	live       bool // it has caught up since it was started or stalled
	rebuilding bool
	err        error // why it is stalled
	backoff    time.Duration
	retryAt    time.Time
	retry      *time.Timer
	savePlan   bool // a frozen state is on its way to its file
	rate       catchUpRate
	kept       []keptCheckpoint // newest first, at most two
}

// applyLock is a mutex whose owner may be the code of a view that never returns, so
// that who waits for it may leave. It has room for one.
type applyLock chan struct{}

func (l applyLock) Lock() { l <- struct{}{} }

func (l applyLock) Unlock() { <-l }

// TryLock is Lock if that need not wait, and says whether it was.
func (l applyLock) TryLock() bool {
	select {
	case l <- struct{}{}:
		return true
	default:
		return false
	}
}

// lockFor is Lock, unless ctx ends first. The error is the cause of that.
func (l applyLock) lockFor(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// shown is what readers of a view get, and the position that belongs to it.
type shown struct {
	value any
	pos   journal.Position
}

// growth is how much a view has applied.
type growth struct {
	events uint64
	bytes  int64
}

// keptCheckpoint is a checkpoint on disk.
type keptCheckpoint struct {
	pos  journal.Position
	snap *Snapshot // of the catalogue, if it was made by this process
}

// NewRunner returns a runner of the views of j, of which cat, which shows nothing
// yet, is the first. Its name is "catalogue".
func NewRunner(j journal.Journal, cat *Catalogue, opts Options) *Runner {
	r := &Runner{j: j, cat: cat, opts: opts, now: opts.Now, log: opts.Logger}
	if r.now == nil {
		r.now = time.Now
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.opts.FS == nil {
		r.opts.FS = fsio.OS()
	}
	r.files = checkpointFiles{fsys: r.opts.FS, dir: opts.Dir}
	r.ctx, r.end = context.WithCancelCause(context.Background())
	r.mu.idle.L = &r.mu
	v := newView(catalogueName, cat)
	v.cat, v.admitted = cat, true
	r.first, r.mu.views = v, []*view{v}
	return r
}

func newView(name string, cur View) *view {
	v := &view{name: name, version: cur.Version(), apply: make(applyLock, 1), saving: make(chan struct{}, 1)}
	v.use(cur)
	return v
}

// use makes cur the view in use.
func (v *view) use(cur View) {
	v.cur = cur
	v.using.Store(&cur)
}

// inUse returns the view in use.
func (v *view) inUse() View { return *v.using.Load() }

// Add registers a view. From then on it counts for waits and retention, whether it
// is fed or not. It is refused if its name is not 1 to 64 of a-z, 0-9 and '-', or
// taken, if it is a [Saver] but no [Rebuilder], or if the runner has recovered.
func (r *Runner) Add(v View) error {
	var w *view
	err := safely("Name, Version or Publish", func() (err error) {
		w = newView(v.Name(), v)
		w.shown.Store(&shown{value: published(v)})
		return nil
	})
	if err != nil {
		return err
	}
	if w.name == "" || len(w.name) > maxViewName || strings.Trim(w.name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("view %.80q: a name is 1 to %d of a-z, 0-9 and '-'", w.name, maxViewName)
	}
	_, saver := v.(Saver)
	if _, rebuilder := v.(Rebuilder); saver && !rebuilder {
		return fmt.Errorf("view %q can restore a checkpoint, so it has to be a Rebuilder too: one that fails in the middle is begun anew", w.name)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.recovered {
		return fmt.Errorf("view %q: views are registered before the runner recovers", w.name)
	}
	for _, other := range r.mu.views {
		if other.name == w.name {
			return fmt.Errorf("view %q is there already", w.name)
		}
	}
	r.mu.views = append(r.mu.views, w)
	return nil
}

// published returns what readers of v get.
func published(v View) any {
	if p, ok := v.(Publisher); ok {
		return p.Publish()
	}
	return v
}

// look returns what readers get now and the position that it shows.
func (v *view) look() (value any, pos journal.Position) {
	if v.cat != nil {
		s := v.cat.Snapshot()
		return s, s.Position()
	}
	s := v.shown.Load()
	return s.value, s.pos
}

// applied returns the position that readers are shown.
func (v *view) applied() journal.Position {
	if v.cat != nil {
		return v.cat.Position()
	}
	return v.shown.Load().pos
}

// find returns the view of that name.
func (r *Runner) find(name string) (*view, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.mu.views {
		if v.name == name {
			return v, nil
		}
	}
	return nil, fmt.Errorf("%w: %.80q", ErrUnknownView, name)
}

// views returns all views, the catalogue first.
func (r *Runner) views() []*view {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.views[:len(r.mu.views):len(r.mu.views)]
}

// Start begins to feed the views. It is called after Recover.
func (r *Runner) Start() {
	r.mu.Lock()
	r.mu.started = true
	var feeds []*view
	for _, v := range r.mu.views[1:] {
		if v.err != nil {
			r.retryLaterLocked(v)
		} else if r.takeLocked(v) {
			feeds = append(feeds, v)
		}
	}
	r.mu.Unlock()
	r.spawnFeeds(feeds)
}

// Commit shows a batch that is durable in the journal: first in the catalogue, then,
// beside the caller, in the other views. It wakes who waits for it and has a
// checkpoint made if one is due. The error is the catalogue's; the journal's head
// has moved all the same, and the next Commit tries what is missing again. Events
// are not kept.
func (r *Runner) Commit(b *journal.Batch) error {
	frozen, err := r.applyToCatalogue(b)
	now := r.now()
	r.mu.Lock()
	if b.End.Seq > r.mu.head.Seq {
		r.mu.head = b.End
		r.mu.recent.add(b.End)
		r.mu.times.add(b.End.Seq, now)
	}
	r.first.setErrLocked(r, err)
	r.first.wakeLocked(r.cat.Position().Seq)
	var feeds []*view
	for _, v := range r.mu.views[1:] {
		if r.takeLocked(v) {
			feeds = append(feeds, v)
		}
	}
	r.mu.Unlock()
	r.spawnFeeds(slices.DeleteFunc(feeds, func(v *view) bool { return r.pass(v, b) }))
	r.spawnSave(frozen)
	return err
}

// applyToCatalogue shows b in the catalogue, and whatever it lacks before b.
func (r *Runner) applyToCatalogue(b *journal.Batch) (*frozenState, error) {
	v := r.first
	v.apply.Lock()
	defer v.apply.Unlock()
	from := r.cat.Position().Seq
	if first := b.End.Seq - uint64(len(b.Events)) + 1; first > from+1 {
		// An earlier batch could not be shown, or was not committed.
		to := first - 1
		err := r.j.Replay(from, func(missed *journal.Batch) error {
			if missed.End.Seq > to {
				return errStop
			}
			v.since.add(missed)
			return r.cat.Apply(missed)
		})
		if err != nil && !errors.Is(err, errStop) {
			return nil, err
		}
	}
	if err := r.cat.Apply(b); err != nil {
		return nil, err
	}
	v.since.add(b)
	return r.freezeIfDue(v), nil
}

// setErrLocked notes whether the catalogue could be fed.
func (v *view) setErrLocked(r *Runner, err error) {
	if err != nil && v.err == nil {
		r.mu.stats.Stalls++
		r.log.Error("the catalogue cannot show what is in the journal", "err", err)
	}
	v.err = err
}

// Head returns the end of the last batch that was committed.
func (r *Runner) Head() journal.Position {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.head
}

// Stats returns the counters.
func (r *Runner) Stats() RunnerStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.mu.stats
	for _, v := range r.mu.views {
		s.Waiting += len(v.waiters)
	}
	return s
}

// enter counts one more piece of work under way, unless the runner was closed.
func (r *Runner) enter() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.closed {
		return ErrEnded
	}
	r.mu.working++
	return nil
}

func (r *Runner) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.working--; r.mu.working == 0 {
		r.mu.idle.Broadcast()
	}
}

// join is enter for work of a caller: the context that it returns ends with ctx and
// with the runner. leave is called at the end of the work.
func (r *Runner) join(ctx context.Context) (joined context.Context, leave func(), err error) {
	if err := r.enter(); err != nil {
		return nil, nil, err
	}
	joined, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(r.ctx, func() { cancel(ErrEnded) })
	return joined, func() {
		stop()
		cancel(nil)
		r.leave()
	}, nil
}

// cause is err, or what ended ctx if that is why.
func cause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// spawn has work done beside the caller, or not at all if the runner was closed.
func (r *Runner) spawn(work func()) {
	if r.opts.Spawn != nil {
		r.opts.Spawn(func() {
			if r.enter() == nil {
				defer r.leave()
				work()
			}
		})
		return
	}
	if r.enter() == nil {
		go func() {
			defer r.leave()
			work()
		}()
	}
}

// Close is CloseWithin without a bound.
func (r *Runner) Close() error { return r.CloseWithin(math.MaxInt64) }

// CloseWithin ends all waits with [ErrEnded], stops what is under way and waits for its
// end: for d at most where a view does not return, and then the error is ErrHangs. What
// is being written of the catalogue's checkpoints is waited for in any case. The views
// stay as they are. Idempotent. No view may call it.
func (r *Runner) CloseWithin(d time.Duration) error {
	late := false
	defer time.AfterFunc(d, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		late = true
		r.mu.idle.Broadcast()
	}).Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.closed = true
	r.end(ErrEnded) // not before: a view that ends by it is not stalled
	for _, v := range r.mu.views {
		if v.retry != nil {
			v.retry.Stop()
		}
		v.endWaitsLocked()
	}
	for r.mu.working > 0 && (!late || r.mu.writing > 0) {
		r.mu.idle.Wait()
	}
	if r.mu.working > 0 {
		return ErrHangs
	}
	return nil
}

// beginWriting says that files are written until end is called.
func (r *Runner) beginWriting() (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.writing++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.mu.writing--; r.mu.writing == 0 {
			r.mu.idle.Broadcast()
		}
	}
}
