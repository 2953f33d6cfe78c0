package dagstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// ErrFollower is returned by a [Follower] for what would change the store. It is an
// [ErrReadOnly].
var ErrFollower = fmt.Errorf("a follower changes nothing, ask the process that has the store open for writing: %w", ErrReadOnly)

// A follower looks for news this often while there is some, and this often while there
// is none.
const (
	pollBusy = time.Millisecond
	pollIdle = 10 * time.Millisecond
	// pollBroken is how long it waits after an error.
	pollBroken = 250 * time.Millisecond
	// lookAge is how old a look at the journal's names may be for an answer that is to be
	// fresh: between two, the files that are open are believed to be the journal.
	lookAge = time.Millisecond
)

// Follower is a store that another process writes, opened read-only: it tails the
// journal and shows what is durable there, with a lag that every answer states. It
// acquires shards that are available and whose bytes it can reach: sources that are
// read in place, and the copies that the writer has made. It writes nothing, takes no
// lock, and does not mind whether the writer runs, crashes or starts again.
//
// Registrations, destructions, recoveries, GC and checkpoints are refused with
// [ErrFollower]; an acquire that would need a local copy that is not there with
// mount.ErrTransientNotFound.
type Follower struct{ *DAGStore }

var _ Interface = (*Follower)(nil)

// OpenFollower opens the store in dir as a follower. The options are those of [Open]:
// the mounts must be the writer's, and views are the follower's own. ctx bounds the
// opening only. A directory without a journal is an error that wraps fs.ErrNotExist.
func OpenFollower(ctx context.Context, dir string, opts ...Option) (*Follower, error) {
	d, err := openFollower(ctx, dir, opts)
	if err != nil {
		return nil, fmt.Errorf("follow store %q: %w", dir, err)
	}
	return &Follower{d}, nil
}

func openFollower(ctx context.Context, dir string, opts []Option) (*DAGStore, error) {
	c := openConfig{}
	c.MountRegistry = DefaultRegistry()
	c.fs = fsio.OS()
	for _, o := range opts {
		if err := o(&c); err != nil {
			return nil, err
		}
	}
	if c.Journal != nil || c.Datastore != nil || c.ShardRepo != nil || c.TopLevelIndex != nil || c.TopLevelDir != "" {
		return nil, errors.New("a follower reads the directory and keeps a top-level index of its own in memory: leave Journal, Datastore, ShardRepo, TopLevelIndex and TopLevelDir unset")
	}
	dir, err := c.absolute(dir)
	if err != nil {
		return nil, err
	}
	c.fs = fsio.ReadOnly(c.fs)
	r, err := journal.OpenReader(c.fs, filepath.Join(dir, "journal"))
	if err != nil {
		return nil, err
	}
	c.Journal = r
	if c.IndexRepo == nil {
		repo, err := index.NewFSRepoOn(c.fs, filepath.Join(dir, "index"))
		if err != nil {
			return nil, errors.Join(err, r.Close())
		}
		c.IndexRepo = repo
	}
	if c.TransientsDir == "" {
		c.TransientsDir = filepath.Join(dir, "copies")
	}
	if c.CheckpointDir == "" {
		c.CheckpointDir = filepath.Join(dir, "checkpoints")
	}
	c.RecoverOnStart = DoNotRecover
	t := newTail(r)
	t.lockHeld = func() (held, known bool) { return fsio.LockHeld(c.fs, filepath.Join(dir, "journal", "LOCK")) }
	d, err := newStore(c.Config, t)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if err := d.Start(ctx); err != nil {
		return nil, err
	}
	d.tail.start(d)
	return d, nil
}

// tail follows another process's journal for a store.
type tail struct {
	reader *journal.Reader
	d      *DAGStore
	// lockHeld says whether somebody holds the writer's lock, if that can be seen.
	lockHeld func() (held, known bool)

	// following is held by who shows what is new.
	following sync.Mutex
	kick      chan struct{} // somebody waits
	done      chan struct{}

	mu struct {
		sync.Mutex
		err    error // why the last look failed
		since  time.Time
		looked time.Time // when the journal was last looked at, by name, with success
		jumps  int       // how often a compaction overtook the follower
	}
}

func newTail(r *journal.Reader) *tail {
	return &tail{reader: r, kick: make(chan struct{}, 1), done: make(chan struct{})}
}

// start begins to follow. The store is started.
func (t *tail) start(d *DAGStore) {
	t.d = d
	t.seen(time.Now()) // it was just opened
	go t.run()
}

func (t *tail) run() {
	defer close(t.done)
	pause := pollIdle
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-t.d.ctx.Done():
			return
		case <-timer.C:
		case <-t.kick:
		}
		news, err := t.look()
		switch {
		case err != nil:
			pause = pollBroken
		case news:
			pause = pollBusy
		default:
			pause = min(2*pause, pollIdle)
		}
		timer.Reset(pause)
	}
}

// refresh looks where the journal ends, so that who asks next is measured against its
// real head, and has the news applied. It does not wait for that, unless a compaction
// has overtaken the follower: before that is made up for, nobody knows the head.
func (t *tail) refresh() {
	t.mu.Lock()
	blind := t.mu.err != nil
	byName := blind || time.Since(t.mu.looked) > lookAge
	t.mu.Unlock()
	refresh := t.reader.Refresh
	if byName {
		refresh = t.reader.RefreshByName
	}
	before := t.reader.Head()
	began := time.Now()
	head, err := refresh()
	switch {
	case err != nil, blind:
		_, _ = t.look() // once more, or what is new now; it is in Freshness, and tried again
	case head != before:
		t.wake()
		fallthrough
	case byName:
		t.seen(began)
	}
}

// seen notes that the journal was looked at, by name, and found to be what it was. It
// ends no trouble: what is new may not have been shown.
func (t *tail) seen(at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at.After(t.mu.looked) {
		t.mu.looked = at
	}
}

func (t *tail) wake() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// look takes up what is new in the journal and reports whether there was anything.
func (t *tail) look() (news bool, err error) {
	t.following.Lock()
	defer t.following.Unlock()
	began := time.Now()
	defer func() { t.looked(began, err) }()
	_, err = t.reader.RefreshByName()
	if err == nil {
		news, err = t.takeUp()
	}
	if errors.Is(err, journal.ErrCompacted) {
		return true, t.jump()
	}
	return news, err
}

// takeUp shows what is durable and not shown yet.
func (t *tail) takeUp() (news bool, err error) {
	from, head := t.d.cat.Position(), t.reader.Head()
	if head.Seq <= from.Seq {
		return false, nil
	}
	err = t.reader.Replay(from.Seq, func(b *journal.Batch) error {
		if err := t.d.ctx.Err(); err != nil {
			return err
		}
		if err := t.d.views.Commit(b); err != nil {
			return err
		}
		t.d.changed(b.Events)
		return nil
	})
	return true, err
}

// jump goes on behind a compaction that overtook the follower: the events between are
// gone, and the state after them is taken from a checkpoint or the base.
func (t *tail) jump() error {
	if _, err := t.reader.Reload(); err != nil {
		return err
	}
	t.mu.Lock()
	t.mu.jumps++
	t.mu.Unlock()
	if err := t.d.views.Jump(t.d.ctx); err != nil {
		return err
	}
	t.d.log.Warn("follower: overtaken by a compaction, the state was taken from a checkpoint", "event", t.d.cat.Position().Seq)
	t.d.allChanged()
	return nil
}

// looked notes how a look at the journal ended, which began at that time.
func (t *tail) looked(began time.Time, err error) {
	if t.d.ctx.Err() != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		if t.mu.err != nil {
			t.d.log.Info("follower: goes on", "event", t.d.cat.Position().Seq)
		}
		t.mu.err, t.mu.looked = nil, began
	case t.mu.err == nil:
		t.mu.since = time.Now()
		fallthrough
	default:
		if t.mu.err == nil || t.mu.err.Error() != err.Error() {
			t.d.log.Error("follower: the journal cannot be followed", "err", err)
		}
		t.mu.err = err
	}
}

// trouble says why the journal cannot be followed, or nil.
func (t *tail) trouble() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.err == nil {
		return nil
	}
	return fmt.Errorf("the journal cannot be followed since %s: %w", t.mu.since.UTC().Format(time.RFC3339), t.mu.err)
}

// blindFor is since when the journal cannot be looked at; 0 if it can be.
func (t *tail) blindFor() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.err == nil {
		return 0
	}
	return time.Since(t.mu.looked)
}

// writer says how the process that writes is, as far as can be seen from here.
func (t *tail) writer() (seen time.Time, state WriterState) {
	mark, told := t.reader.Watermark()
	if told {
		seen = mark.Time
	}
	held, known := t.lockHeld()
	switch {
	case held:
		return time.Now(), WriterRunning
	case told && mark.Closed:
		return seen, WriterClosed
	case known:
		return seen, WriterGone
	}
	return seen, WriterUnknown
}

// stop waits for the end of following. The store's context has ended.
func (t *tail) stop() {
	if t != nil && t.d != nil {
		<-t.done
	}
}

// fresher is what every question about freshness begins with.
func (d *DAGStore) fresher() error {
	if err := d.check(); err != nil {
		return err
	}
	if d.tail != nil {
		d.tail.refresh()
	}
	return nil
}

// freshFor is fresher for an answer of a view that shall be as fresh as c asks for. While
// a follower cannot look at the journal, nobody knows what is in it by now: only what
// does not depend on that is answered.
func (d *DAGStore) freshFor(view string, c Consistency) error {
	if err := d.fresher(); err != nil || d.tail == nil {
		return err
	}
	cause := d.tail.trouble()
	if cause == nil {
		return nil
	}
	f, err := d.views.Freshness(view)
	if err != nil || c.ShownBy(f.Applied) {
		return err
	}
	e := &NotFreshError{View: view, Had: f.Applied, Head: f.Head, State: projection.Stalled, Err: cause, RetryAfter: pollBroken}
	var timed bool
	if e.Within, timed = c.WithinBound(); !timed {
		e.Want = f.Head
	}
	return e
}

// overlay adds to a view's freshness what keeps a follower from going on, and since when:
// what was written since is not counted by anybody.
func (d *DAGStore) overlay(f Freshness) Freshness {
	if d.tail == nil {
		return f
	}
	if err := d.tail.trouble(); err != nil {
		f.LagFor = max(f.LagFor, d.tail.blindFor())
		if f.Err == nil {
			f.State, f.Err = projection.Stalled, err
		}
	}
	return f
}

// checkWriter is check for what a follower refuses.
func (d *DAGStore) checkWriter() error {
	if err := d.check(); err != nil {
		return err
	}
	if d.tail != nil {
		return ErrFollower
	}
	return nil
}

// changed tells the loop that records of shards are not what they were.
func (d *DAGStore) changed(events []shard.Event) {
	d.mu.RLock()
	var lives []*live
	for i := range events {
		if lv := d.mu.hot[events[i].Key]; lv != nil && !slices.Contains(lives, lv) {
			lives = append(lives, lv)
		}
	}
	d.mu.RUnlock()
	for _, lv := range lives {
		d.loop.complete(input{ctl: func() { d.loop.supersede(lv) }})
	}
}

// hotLocked returns the live shard of a key, if there is one and it is what the
// catalogue says. It needs mu.
func (d *DAGStore) hotLocked(key shard.Key) *live {
	lv := d.mu.hot[key]
	if lv == nil || !d.isCurrent(lv) {
		return nil
	}
	return lv
}

// isCurrent says that a live shard is of the record that the catalogue shows. In a store
// that writes it always is; in a follower it may not have been superseded yet, and its
// seq never changes.
func (d *DAGStore) isCurrent(lv *live) bool {
	if d.tail == nil {
		return true
	}
	rec := d.cat.Get(lv.key)
	return rec != nil && rec.Seq() == lv.seq
}

// allChanged tells the loop that any record may have changed.
func (d *DAGStore) allChanged() {
	d.loop.complete(input{ctl: func() {
		for _, lv := range d.loop.hotLives() {
			d.loop.supersede(lv)
		}
	}})
}

// hotLives lists the live shards in the order of their keys.
func (e *eventLoop) hotLives() []*live {
	lives := make([]*live, 0, len(e.d.mu.hot))
	for _, lv := range e.d.mu.hot {
		lives = append(lives, lv)
	}
	slices.SortFunc(lives, func(a, b *live) int { return a.key.Compare(b.key) })
	return lives
}

// supersede ends a live shard whose record was changed by another process. Accessors
// go on with what they hold; who waits is served anew, from the record as it is now.
func (e *eventLoop) supersede(lv *live) {
	switch {
	case e.closing || lv.gone || e.d.isCurrent(lv):
		return
	case lv.busy:
		lv.deferred = append(lv.deferred, input{ctl: func() { e.supersede(lv) }})
		return
	}
	waiting := e.takeParked(lv)
	e.in = fsm.Input{Trigger: fsm.Supersede, Time: e.now}
	e.step(lv, nil)
	for _, req := range waiting {
		e.internal = append(e.internal, input{req: req})
	}
	e.drain()
}

// takeParked takes the requests that wait for a shard from it, in order.
func (e *eventLoop) takeParked(lv *live) (reqs []*request) {
	for _, list := range [][]fsm.Ticket{lv.s.Parked, lv.s.Local, lv.s.Waiting, lv.s.Ending} {
		for _, t := range list {
			if req := e.parked[t]; req != nil {
				delete(e.parked, t)
				reqs = append(reqs, req)
			}
		}
	}
	slices.SortFunc(reqs, func(a, b *request) int { return int(int64(a.ticket) - int64(b.ticket)) })
	return reqs
}
