package dagstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// TopLevelView is the name of the view that maps multihashes to shards.
const TopLevelView = "top-level"

// topLevel is the view that maps multihashes to shards: the second one, after the
// catalogue. It may lag and says so; it is never ahead of the catalogue, because what
// is found in it is held against the catalogue before it is told.
//
// The entries of a shard are there before the event that makes it available: the job
// that built the index adds them, having the multihashes at hand, and the event finds
// that done. Where that job was not of this process, or the view is being made anew,
// the event takes them from the shard's index.
type topLevel struct {
	d     *DAGStore
	index index.Inverted
	mine  bool // in memory: empty at the start of the process
	again bool // made to fill a given index anew
	keys  keyLocks

	pos atomic.Pointer[journal.Position]

	// leaving holds the keys whose former life may still have entries. Whoever comes
	// first removes them: the sweep of that life, or the next life before it adds its
	// own. The loop takes part, so no long work is done under it.
	leaving struct {
		sync.Mutex
		keys map[shard.Key]struct{}
	}
	// known says what jobs did ahead of their events, and what is missing.
	known struct {
		sync.Mutex
		// added holds the generations whose entries are there before their event.
		added   map[uint64]struct{}
		missing map[shard.Key]error
	}
}

var (
	_ projection.View      = (*topLevel)(nil)
	_ projection.Rebuilder = (*topLevel)(nil)
	_ projection.Seeded    = (*topLevel)(nil)
	_ projection.Successor = (*topLevel)(nil)
	_ projection.Selective = (*topLevel)(nil)
)

func newTopLevel(d *DAGStore, given index.Inverted) *topLevel {
	t := &topLevel{d: d, index: given}
	if given == nil {
		t.index, t.mine = index.NewMemoryInverted(), true
	}
	t.pos.Store(new(journal.Position))
	t.leaving.keys = make(map[shard.Key]struct{})
	t.known.added = make(map[uint64]struct{})
	t.known.missing = make(map[shard.Key]error)
	return t
}

// Name implements [projection.View].
func (t *topLevel) Name() string { return TopLevelView }

// Version implements [projection.View].
func (t *topLevel) Version() uint32 { return 1 }

// Position implements [projection.View].
func (t *topLevel) Position() journal.Position { return *t.pos.Load() }

// Fresh implements [projection.Rebuilder]. An index in memory is made anew; one that
// was given is filled anew, in place.
func (t *topLevel) Fresh() (projection.View, error) {
	if t.mine {
		return newTopLevel(t.d, nil), nil
	}
	f := newTopLevel(t.d, t.index)
	f.again = true
	return f, nil
}

// Succeed implements [projection.Successor].
func (t *topLevel) Succeed(projection.View) error {
	t.d.top.Store(t)
	return nil
}

// Seed adds every shard that is available in the catalogue's state s from its index, in
// place of all events up to there. An index that was given is taken to hold them.
func (t *topLevel) Seed(ctx context.Context, s *projection.Snapshot) error {
	if t.mine || t.again {
		var err error
		s.All(func(rec *projection.Record) bool {
			if rec.Life() == shard.Available {
				err = t.enter(ctx, rec)
			}
			return err == nil && ctx.Err() == nil
		})
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
	}
	pos := s.Position()
	t.pos.Store(&pos)
	return nil
}

// Concerns implements [projection.Selective].
func (t *topLevel) Concerns(e *shard.Event) bool {
	return e.Kind == shard.EventIndexed || e.Kind == shard.EventDestroyed
}

// Apply implements [projection.View]. Applying a batch again comes to the same.
func (t *topLevel) Apply(b *journal.Batch) error {
	if b.End.Seq <= t.Position().Seq {
		return nil
	}
	for i := range b.Events {
		if err := t.apply(&b.Events[i]); err != nil {
			return fmt.Errorf("shard %q, event %d: %w", b.Events[i].Key, b.Events[i].Seq, err)
		}
	}
	pos := b.End // b is used again
	t.pos.Store(&pos)
	return nil
}

func (t *topLevel) apply(e *shard.Event) error {
	switch e.Kind {
	case shard.EventIndexed:
		if t.wasAdded(e.Gen) {
			return nil
		}
		rec := t.d.cat.Get(e.Key)
		if rec == nil || rec.Gen() != e.Gen || rec.Life() != shard.Available {
			return nil // there are later events of the shard
		}
		return t.enter(t.d.ctx, rec)
	case shard.EventDestroyed:
		t.lacks(e.Key, nil)
		return t.forget(t.d.ctx, e)
	}
	return nil
}

// wasAdded says, once, that a job has added the entries of a generation.
func (t *topLevel) wasAdded(gen uint64) bool {
	t.known.Lock()
	defer t.known.Unlock()
	_, ok := t.known.added[gen]
	delete(t.known.added, gen)
	return ok
}

// lacks notes that the entries of an available shard are missing, or no longer.
func (t *topLevel) lacks(key shard.Key, err error) {
	t.known.Lock()
	defer t.known.Unlock()
	if err == nil {
		delete(t.known.missing, key)
		return
	}
	t.known.missing[key] = err
}

// Lacking says what the view does not show although it is as far as its position.
func (t *topLevel) Lacking() error {
	t.known.Lock()
	defer t.known.Unlock()
	n := len(t.known.missing)
	if n == 0 {
		return nil
	}
	key := slices.MinFunc(slices.Collect(maps.Keys(t.known.missing)), shard.Key.Compare)
	return fmt.Errorf("%d shards are missing until their indices are built again, among them %q: %w", n, key, t.known.missing[key])
}

// enter adds an available shard from its index. If that cannot be read, the view goes
// on without: the shard is missed, and told by Lacking. A damaged or missing index is
// to be built again, which ends in another event; what could not be read for another
// reason is tried again. The error is the top-level index's own.
func (t *topLevel) enter(ctx context.Context, rec *projection.Record) error {
	unread, err := t.addRecorded(ctx, rec)
	if err = errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	t.lacks(rec.Key(), unread)
	var damaged *index.DamagedError
	switch {
	case unread == nil:
	case errors.As(unread, &damaged) || errors.Is(unread, index.ErrNotFound):
		t.d.loop.complete(input{ctl: func() { t.d.loop.mend(rec, unread) }})
	default:
		t.d.log.Warn("top-level index: a shard is missing until its index can be read", "shard", rec.Key().String(), "err", unread)
		time.AfterFunc(missedRetry, func() { t.d.loop.complete(input{ctl: func() { t.retry(rec) }}) })
	}
	return nil
}

// missedRetry is when the index of a shard that could not be read is read again.
const missedRetry = 5 * time.Second

// retry enters a shard that is still missing, beside the loop.
func (t *topLevel) retry(rec *projection.Record) {
	t.known.Lock()
	_, missing := t.known.missing[rec.Key()]
	t.known.Unlock()
	if !missing || t.d.loop.closing {
		return
	}
	t.d.loop.spawn(func() {
		if err := t.enter(t.d.ctx, rec); err != nil && t.d.ctx.Err() == nil {
			t.lacks(rec.Key(), err)
			t.d.log.Error("top-level index: a shard is missing", "shard", rec.Key().String(), "err", err)
		}
	})
}

// addRecorded adds a shard. unread says why its index could not be read.
func (t *topLevel) addRecorded(ctx context.Context, rec *projection.Record) (unread, err error) {
	defer t.keys.lock(rec.Key())()
	if now := t.d.cat.Get(rec.Key()); now == nil || now.Gen() != rec.Gen() || now.Life() != shard.Available {
		return nil, nil // whoever changed it takes care of its entries
	}
	it, done, err := t.d.indices.multihashes(rec.Key(), rec.Gen())
	if err != nil {
		return err, nil
	}
	defer done()
	if err := t.removeLocked(ctx, rec.Key()); err != nil {
		return nil, err
	}
	w := &watchedIterator{it: it}
	if err := t.index.AddMultihashesForShard(ctx, w, rec.Key()); err != nil && w.err == nil {
		return nil, err
	}
	return w.err, nil
}

// watchedIterator tells an error of the iterator from one of its reader.
type watchedIterator struct {
	it  index.MultihashIterator
	err error
}

func (w *watchedIterator) ForEach(visit func(mh.Multihash) error) error {
	visiting := false
	err := w.it.ForEach(func(m mh.Multihash) error {
		err := visit(m)
		visiting = err != nil
		return err
	})
	if !visiting {
		w.err = err
	}
	return err
}

// add records what a shard holds, in place of what it held before.
func (t *topLevel) add(ctx context.Context, j *job, it index.MultihashIterator) error {
	defer t.keys.lock(j.key)()
	if now := t.d.cat.Get(j.key); now == nil || now.Gen() != j.gen {
		return ErrShardUnknown // destroyed meanwhile; the entries may be another life's by now
	}
	if left := t.left(j.key); left || j.recovering {
		if err := t.removeLocked(ctx, j.key); err != nil {
			return err
		}
	}
	if err := t.index.AddMultihashesForShard(ctx, it, j.key); err != nil {
		return err
	}
	t.known.Lock()
	defer t.known.Unlock()
	t.known.added[j.gen] = struct{}{}
	return nil
}

// leave notes that a life of key is over. It does not wait for the index.
func (t *topLevel) leave(key shard.Key) {
	t.leaving.Lock()
	defer t.leaving.Unlock()
	t.leaving.keys[key] = struct{}{}
}

// left says, once for each leave, that entries of a former life may be there.
func (t *topLevel) left(key shard.Key) bool {
	t.leaving.Lock()
	defer t.leaving.Unlock()
	_, ok := t.leaving.keys[key]
	delete(t.leaving.keys, key)
	return ok
}

// sweep removes the entries of a life that is over, unless the next one did.
func (t *topLevel) sweep(ctx context.Context, key shard.Key) error {
	defer t.keys.lock(key)()
	if !t.left(key) {
		return nil
	}
	return t.removeLocked(ctx, key)
}

// forget removes the entries of a life that is over, unless a job has put those of the
// next in their place.
func (t *topLevel) forget(ctx context.Context, e *shard.Event) error {
	defer t.keys.lock(e.Key)()
	t.wasAdded(e.Gen)
	if now := t.d.cat.Get(e.Key); now != nil && t.isAdded(now.Gen()) {
		return nil
	}
	return t.removeLocked(ctx, e.Key)
}

func (t *topLevel) isAdded(gen uint64) bool {
	t.known.Lock()
	defer t.known.Unlock()
	_, ok := t.known.added[gen]
	return ok
}

// removeLocked removes all entries of key, or leaves them to the next who tries.
func (t *topLevel) removeLocked(ctx context.Context, key shard.Key) error {
	r, ok := t.index.(index.Remover)
	if !ok {
		return nil
	}
	err := r.RemoveShard(ctx, key)
	if err != nil {
		t.leave(key)
	}
	return err
}

// keyLocks lets one at a time change the entries of a shard. Those of different shards
// are disjoint, and an index of others may take long over one.
type keyLocks struct {
	mu   sync.Mutex
	held map[shard.Key]*keyLock
}

type keyLock struct {
	token chan struct{} // full while somebody holds the lock
	users int           // who hold it or wait
}

// lock waits for the key's lock, and returns what gives it back.
func (l *keyLocks) lock(key shard.Key) (unlock func()) {
	l.mu.Lock()
	k := l.held[key]
	if k == nil {
		if l.held == nil {
			l.held = make(map[shard.Key]*keyLock)
		}
		k = &keyLock{token: make(chan struct{}, 1)}
		l.held[key] = k
	}
	k.users++
	l.mu.Unlock()
	k.token <- struct{}{}
	return func() {
		<-k.token
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, key)
		}
	}
}
