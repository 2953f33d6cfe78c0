package indexbs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// accessorCache keeps accessors open, the least recently used last in line.
//
//	entry.refs  = (1 while in the cache) + reads that use it
//	refs = 0    ⇒ the accessor is closed, once
//	flight      = one acquire in progress; all first readers of a shard wait for it
//	timer armed ⇔ there are entries, and they expire
//
// Nothing runs while nothing is acquired: expiry is a timer, not a goroutine.
type accessorCache struct {
	d   IdxBstoreDagstore
	max int           // 0: no limit
	ttl time.Duration // 0: no expiry

	ctx    context.Context // of acquires
	cancel context.CancelFunc

	mu struct {
		sync.Mutex
		entries map[shard.Key]*entry
		flights map[shard.Key]*flight
		lru     entry // head of the ring: next is the most recently used
		timer   *time.Timer
		closed  bool
		unwatch func() bool // ends the watch over the constructor's context
	}
}

// entry is an open accessor.
type entry struct {
	key  shard.Key
	acc  *dagstore.ShardAccessor
	bs   dagstore.ReadBlockstore
	refs atomic.Int32

	used       time.Time // last; guarded by accessorCache.mu, as is the ring
	prev, next *entry    // next == nil: not in the cache
}

// flight is an acquire in progress.
type flight struct {
	key     shard.Key
	cancel  context.CancelFunc
	done    chan struct{}
	readers int // who wait; guarded by accessorCache.mu until done
	e       *entry
	err     error
}

func (a *accessorCache) init(ctx context.Context, d IdxBstoreDagstore, size int, ttl time.Duration) {
	a.d, a.max, a.ttl = d, max(size, 0), max(ttl, 0)
	a.mu.entries = make(map[shard.Key]*entry)
	a.mu.flights = make(map[shard.Key]*flight)
	a.mu.lru.prev, a.mu.lru.next = &a.mu.lru, &a.mu.lru
	a.ctx, a.cancel = context.WithCancel(ctx)
	a.mu.Lock() // close may run at once
	defer a.mu.Unlock()
	a.mu.unwatch = context.AfterFunc(ctx, a.close)
}

// use runs op on the accessor and ends the reader's use of it.
func (e *entry) use(op func(dagstore.ReadBlockstore) error) error {
	defer e.release()
	err := op(e.bs)
	var block *dagstore.BlockError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &block): // names the shard, and never means that the block is not there
		return asFailure(err)
	case isAbsent(err):
		return err
	}
	return fmt.Errorf("shard %q: %w", e.key, asFailure(err))
}

// release ends one use.
func (e *entry) release() {
	if e.refs.Add(-1) == 0 {
		e.acc.Close()
	}
}

// acquire returns an accessor that the caller must release. It is fresh if it was
// not there when the call began.
func (a *accessorCache) acquire(ctx context.Context, key shard.Key) (e *entry, fresh bool, err error) {
	a.mu.Lock()
	if e := a.mu.entries[key]; e != nil {
		e.refs.Add(1)
		a.touchLocked(e)
		a.mu.Unlock()
		return e, false, nil
	}
	if a.mu.closed {
		a.mu.Unlock()
		return nil, false, a.closedError()
	}
	f := a.mu.flights[key]
	if f == nil {
		f = a.departLocked(key)
	}
	f.readers++
	a.mu.Unlock()
	select {
	case <-f.done:
		return f.e, true, f.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-a.ctx.Done():
		err = a.closedError()
	}
	a.leave(f)
	return nil, false, err
}

// closedError is what reads get when the blockstore has ended.
func (a *accessorCache) closedError() error {
	err := fmt.Errorf("index-backed blockstore: %w", dagstore.ErrClosed)
	if cause := context.Cause(a.ctx); cause != nil && cause != context.Canceled {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// departLocked begins an acquire. It ends with the blockstore or with the last of
// its readers, so that the context of one reader does not govern the others.
func (a *accessorCache) departLocked(key shard.Key) *flight {
	ctx, cancel := context.WithCancel(a.ctx)
	f := &flight{key: key, cancel: cancel, done: make(chan struct{})}
	a.mu.flights[key] = f
	go func() {
		defer cancel()
		e, err := a.fetch(ctx, key)
		a.arrive(f, e, err)
	}()
	return f
}

// fetch acquires a shard. It waits for the answer also when ctx has ended, for an
// accessor that comes late must be closed.
func (a *accessorCache) fetch(ctx context.Context, key shard.Key) (*entry, error) {
	out := make(chan dagstore.ShardResult, 1)
	var res dagstore.ShardResult
	err := a.d.AcquireShard(ctx, key, out, dagstore.AcquireOpts{})
	if err == nil {
		res = <-out
		err = res.Error
	}
	switch {
	case err == nil:
	case errors.Is(err, dagstore.ErrShardUnknown):
		return nil, fmt.Errorf("acquire shard %q: %w", key, err)
	default:
		return nil, fmt.Errorf("acquire shard %q: %w", key, asFailure(err))
	}
	// Taking the blockstore tells the store that the accessor has arrived: it is no
	// longer closed when ctx ends.
	bs, err := res.Accessor.Blockstore()
	if err != nil {
		res.Accessor.Close()
		return nil, fmt.Errorf("shard %q: %w", key, err)
	}
	return &entry{key: key, acc: res.Accessor, bs: bs}, nil
}

// arrive ends an acquire: its readers get what came of it, and the cache keeps it.
// If nobody waits any more, it is closed.
func (a *accessorCache) arrive(f *flight, e *entry, err error) {
	var out *entry
	a.mu.Lock()
	wanted := f.readers > 0 && !a.mu.closed
	switch {
	case e != nil && wanted:
		e.refs.Store(1 + int32(f.readers))
		out = a.insertLocked(e)
		f.e = e
	case e != nil:
		e.refs.Store(1)
		if !planted.Bug("indexbs-late-accessor-kept") {
			out = e
		}
		f.err = a.closedError()
	default:
		f.err = err
	}
	if f.readers > 0 {
		delete(a.mu.flights, f.key) // the last reader to leave did otherwise
	}
	close(f.done)
	a.mu.Unlock()
	if out != nil {
		out.release()
	}
}

// leave ends a reader's wait. The last one takes the acquire with it.
func (a *accessorCache) leave(f *flight) {
	a.mu.Lock()
	if f.e != nil {
		a.mu.Unlock()
		f.e.release() // it arrived just now
		return
	}
	f.readers--
	last := f.readers == 0 && f.err == nil
	if last {
		delete(a.mu.flights, f.key) // who comes now begins another
	}
	a.mu.Unlock()
	if last {
		f.cancel()
	}
}

// insertLocked adds an entry and returns the one that has to make room for it, if
// any, which the caller releases.
func (a *accessorCache) insertLocked(e *entry) (out *entry) {
	if a.max > 0 && len(a.mu.entries) >= a.max {
		out = a.mu.lru.prev
		a.removeLocked(out)
	}
	a.mu.entries[e.key] = e
	head := &a.mu.lru
	e.prev, e.next = head, head.next
	e.prev.next, e.next.prev = e, e
	a.touchLocked(e)
	if a.ttl > 0 && a.mu.timer == nil {
		a.mu.timer = time.AfterFunc(a.ttl, a.expire)
	}
	return out
}

// touchLocked notes a use: the entry moves to the head of the line.
func (a *accessorCache) touchLocked(e *entry) {
	if a.ttl > 0 {
		e.used = time.Now()
	}
	head := &a.mu.lru
	if head.next == e {
		return
	}
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = head, head.next
	e.prev.next, e.next.prev = e, e
}

func (a *accessorCache) removeLocked(e *entry) {
	delete(a.mu.entries, e.key)
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
}

// drop takes an entry out of the cache if it is still there.
func (a *accessorCache) drop(e *entry) {
	a.mu.Lock()
	in := e.next != nil
	if in {
		a.removeLocked(e)
	}
	a.mu.Unlock()
	if in {
		e.release()
	}
}

// open returns those of shards that are in the cache.
func (a *accessorCache) open(shards []shard.Key) (in []shard.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range shards {
		if a.mu.entries[k] != nil {
			in = append(in, k)
		}
	}
	return in
}

// expire closes what was not used for long enough, and comes again for the rest.
func (a *accessorCache) expire() {
	var out []*entry
	a.mu.Lock()
	a.mu.timer = nil
	now := time.Now()
	for len(a.mu.entries) > 0 {
		oldest := a.mu.lru.prev
		if left := a.ttl - now.Sub(oldest.used); left > 0 {
			a.mu.timer = time.AfterFunc(left, a.expire)
			break
		}
		a.removeLocked(oldest)
		out = append(out, oldest)
	}
	a.mu.Unlock()
	for _, e := range out {
		e.release()
	}
}

// close empties the cache for good and cancels acquires.
func (a *accessorCache) close() {
	var out []*entry
	a.mu.Lock()
	if a.mu.timer != nil {
		a.mu.timer.Stop()
		a.mu.timer = nil
	}
	a.mu.closed = true
	a.mu.unwatch()
	for _, e := range a.mu.entries {
		a.removeLocked(e)
		out = append(out, e)
	}
	a.mu.Unlock()
	a.cancel()
	for _, e := range out {
		e.release()
	}
}
