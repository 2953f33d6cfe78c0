package indexbs

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/mapped"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// accessorCache keeps accessors open.
//
//	entry.refs  = (1 while in the cache) + reads that use it
//	refs = 0    ⇒ the accessor is closed, once
//	flight      = one acquire in progress; all first readers of a shard wait for it
//	timer armed ⇔ there are entries, and they expire
//	stamp ≤ used of every entry, so the entry on top of the heap that has not been used
//	since it was placed is the least recently used of all
//
// A read of an open shard takes the lock of its stripe only, to find the entry and count
// itself. Whoever adds or removes an entry holds mu and then the stripe's lock. Nothing
// runs while nothing is acquired: expiry is a timer, not a goroutine.
type accessorCache struct {
	d   IdxBstoreDagstore
	max int           // 0: no limit
	ttl time.Duration // 0: no expiry

	ctx    context.Context // of acquires
	cancel context.CancelFunc

	began   time.Time // uses are counted from here
	seed    maphash.Seed
	stripes [stripes]stripe
	places  places

	mu struct {
		sync.Mutex
		flights map[shard.Key]*flight
		ahead   map[*opening]struct{} // what batches opened ahead
		byUse   byStamp               // all entries
		timer   *time.Timer
		closed  bool
		hits    uint64      // of entries that were removed
		unwatch func() bool // ends the watch over the constructor's context
	}
	counts struct {
		opens, evictions, expiries, late, letGo, shortages atomic.Uint64
	}
}

const stripes = 64

// stripe is the entries of some keys.
type stripe struct {
	sync.Mutex
	entries map[shard.Key]*entry
	_       [64 - 8 - 8]byte // a cache line of its own
}

// entry is an open accessor. What a read touches comes first and lies together.
type entry struct {
	bs     dagstore.ReadBlockstore
	refs   atomic.Int32
	number uint16        // among places; 0: none. It stays the same.
	used   atomic.Int64  // last, in ns from accessorCache.began
	hits   atomic.Uint64 // uses after the first

	key   shard.Key
	acc   *dagstore.ShardAccessor
	stamp int64 // used when it was placed in the heap; guarded by accessorCache.mu
	at    int   // where it is in the heap; -1: not in the cache
}

// flight is an acquire in progress.
type flight struct {
	key     shard.Key
	cancel  context.CancelFunc
	done    chan struct{}
	readers int // who wait; guarded by accessorCache.mu until done
	// unkept: what arrives is for those who wait only; guarded by accessorCache.mu.
	unkept bool
	e      *entry
	err    error
}

func (a *accessorCache) init(ctx context.Context, d IdxBstoreDagstore, size int, ttl time.Duration) {
	a.d, a.max, a.ttl = d, max(size, 0), max(ttl, 0)
	a.began, a.seed = time.Now(), maphash.MakeSeed()
	for i := range a.stripes {
		a.stripes[i].entries = make(map[shard.Key]*entry)
	}
	a.mu.flights, a.mu.ahead = make(map[shard.Key]*flight), make(map[*opening]struct{})
	a.ctx, a.cancel = context.WithCancel(ctx)
	a.mu.Lock() // close may run at once
	defer a.mu.Unlock()
	a.mu.unwatch = context.AfterFunc(ctx, a.close)
}

// use runs op on the accessor and ends the reader's use of it.
func (e *entry) use(op func(dagstore.ReadBlockstore) error) error {
	defer e.release()
	return e.failure(op(e.bs))
}

// failure says what an error of the accessor means to a reader.
func (e *entry) failure(err error) error {
	if err == nil {
		return nil
	}
	var block *dagstore.BlockError
	switch {
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

func (a *accessorCache) stripeOf(key shard.Key) *stripe {
	return &a.stripes[maphash.String(a.seed, key.String())%stripes]
}

// hit returns the entry of a key, if it is in the cache, with one use more.
func (a *accessorCache) hit(key shard.Key) *entry {
	s := a.stripeOf(key)
	s.Lock()
	e := s.entries[key]
	if e != nil {
		e.refs.Add(1) // from 1 or more: it is in the cache
	}
	s.Unlock()
	if e != nil {
		a.touch(e)
	}
	return e
}

// placed is hit for the shard that a block was found in before, if that is remembered.
func (a *accessorCache) placed(m string) *entry {
	e := a.places.of(m)
	if e != nil {
		a.touch(e)
	}
	return e
}

// touch notes a use.
func (a *accessorCache) touch(e *entry) {
	e.hits.Add(1)
	if a.max > 0 || a.ttl > 0 {
		e.used.Store(a.now())
	}
}

func (a *accessorCache) now() int64 { return int64(time.Since(a.began)) }

// isOpen says whether a key is in the cache.
func (a *accessorCache) isOpen(key shard.Key) bool {
	s := a.stripeOf(key)
	s.Lock()
	defer s.Unlock()
	return s.entries[key] != nil
}

// hits counts the uses of entries that were there. Of entries that were removed while
// they were used, later uses are missing.
func (a *accessorCache) hits() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.mu.hits
	for _, e := range a.mu.byUse {
		n += e.hits.Load()
	}
	return n
}

// len returns how many entries there are.
func (a *accessorCache) len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.mu.byUse)
}

// acquire returns an accessor that the caller must release. It is fresh if it was
// not there when the call began.
func (a *accessorCache) acquire(ctx context.Context, key shard.Key) (e *entry, fresh bool, err error) {
	if e := a.hit(key); e != nil {
		return e, false, nil
	}
	a.mu.Lock()
	if e := a.hit(key); e != nil {
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
	res, err := a.ask(ctx, key)
	for pause, left := shortPause, shortPatience; err != nil && mount.IsShortage(err) && left > 0 && ctx.Err() == nil; left -= pause {
		a.counts.shortages.Add(1)
		a.letGoIdle()
		mapped.ReleaseDescriptors()
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, shortPauseMost)
		res, err = a.ask(ctx, key)
	}
	switch {
	case err == nil:
	case errors.Is(err, dagstore.ErrShardUnknown):
		return nil, notAcquired(key, err)
	default:
		return nil, notAcquired(key, asFailure(err))
	}
	// Taking the blockstore tells the store that the accessor has arrived: it is no
	// longer closed when ctx ends.
	bs, err := res.Accessor.Blockstore()
	if err != nil {
		res.Accessor.Close()
		return nil, fmt.Errorf("shard %q: %w", key, err)
	}
	a.counts.opens.Add(1)
	return &entry{key: key, acc: res.Accessor, bs: bs, at: -1}, nil
}

// Acquires for which this process has no descriptors are tried again once those of
// accessors that are not in use are given up: after 5 ms, 10, and so on, for 10 s or as
// long as somebody waits. A read holds one accessor at a time, so others come free.
const (
	shortPause     = 5 * time.Millisecond
	shortPauseMost = 160 * time.Millisecond
	shortPatience  = 10 * time.Second
)

// ask acquires a shard, once.
func (a *accessorCache) ask(ctx context.Context, key shard.Key) (res dagstore.ShardResult, err error) {
	out := make(chan dagstore.ShardResult, 1)
	if err := a.d.AcquireShard(ctx, key, out, dagstore.AcquireOpts{Holder: cacheHolder{a}}); err != nil {
		return res, err
	}
	res = <-out
	return res, res.Error
}

// cacheHolder is whom the store asks to let go of accessors.
type cacheHolder struct{ a *accessorCache }

var _ dagstore.Holder = cacheHolder{}

func (h cacheHolder) HolderName() string  { return "the index-backed blockstore" }
func (h cacheHolder) LetGo(key shard.Key) { h.a.letGo(key) }
func (h cacheHolder) LetGoIdle()          { h.a.letGoIdle() }

// letGo closes the accessor of a shard, after its last use if it is in use. One that is
// on its way is not kept.
func (a *accessorCache) letGo(key shard.Key) {
	a.mu.Lock()
	if f := a.mu.flights[key]; f != nil {
		f.unkept = true
	}
	s := a.stripeOf(key)
	s.Lock()
	e := s.entries[key]
	s.Unlock()
	if e != nil {
		a.removeLocked(e)
		a.counts.letGo.Add(1)
	}
	a.mu.Unlock()
	if e != nil {
		e.release()
	}
}

// putAhead keeps what a batch opened ahead, with one use of it, until takeAhead.
func (a *accessorCache) putAhead(x *opening, e *entry) {
	x.e.Store(e)
	a.mu.Lock()
	a.mu.ahead[x] = struct{}{}
	a.mu.Unlock()
}

// takeAhead returns what a batch opened ahead; nil: nothing, or it was let go of.
func (a *accessorCache) takeAhead(x *opening) *entry {
	a.mu.Lock()
	delete(a.mu.ahead, x)
	a.mu.Unlock()
	return x.e.Swap(nil)
}

// letGoIdle closes the accessors that are not in use, those that batches opened ahead of
// their turn too: who holds one shard and waits for another might wait for ever.
func (a *accessorCache) letGoIdle() {
	var out []*entry
	a.mu.Lock()
	for x := range a.mu.ahead {
		if e := x.e.Swap(nil); e != nil {
			out = append(out, e)
		}
	}
	a.mu.Unlock()
	for _, e := range out {
		e.release()
	}
	out = out[:0]
	a.mu.Lock()
	for _, e := range a.mu.byUse {
		if e.refs.Load() == 1 {
			out = append(out, e)
		}
	}
	for _, e := range out {
		a.removeLocked(e)
		a.counts.letGo.Add(1)
	}
	a.mu.Unlock()
	for _, e := range out {
		e.release()
	}
}

// arrive ends an acquire: its readers get what came of it, and the cache keeps it.
// If nobody waits any more, it is closed.
func (a *accessorCache) arrive(f *flight, e *entry, err error) {
	var out *entry
	a.mu.Lock()
	wanted := f.readers > 0 && !a.mu.closed
	switch {
	case e != nil && wanted && f.unkept:
		e.refs.Store(int32(f.readers))
		f.e = e
	case e != nil && wanted:
		e.refs.Store(1 + int32(f.readers))
		out = a.insertLocked(e)
		f.e = e
	case e != nil:
		e.refs.Store(1)
		a.counts.late.Add(1)
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
	a.mu.Unlock()
	if out != nil {
		out.release()
	}
	close(f.done)
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
	if a.max > 0 && len(a.mu.byUse) >= a.max {
		out = a.oldestLocked()
		a.removeLocked(out)
		a.counts.evictions.Add(1)
	}
	e.stamp = a.now()
	e.used.Store(e.stamp)
	heap.Push(&a.mu.byUse, e)
	a.places.addLocked(e)
	s := a.stripeOf(e.key)
	s.Lock()
	s.entries[e.key] = e
	s.Unlock()
	if a.ttl > 0 && a.mu.timer == nil {
		a.mu.timer = time.AfterFunc(a.ttl, a.expire)
	}
	return out
}

func (a *accessorCache) removeLocked(e *entry) {
	s := a.stripeOf(e.key)
	s.Lock()
	delete(s.entries, e.key)
	s.Unlock()
	a.places.removeLocked(e)
	a.mu.hits += e.hits.Load()
	heap.Remove(&a.mu.byUse, e.at)
}

// oldestLocked returns the entry that was used least recently. There must be one. The
// entries that it finds were used since they were placed it places anew, so a use costs
// no more than a store until somebody asks.
func (a *accessorCache) oldestLocked() *entry {
	// Others go on using entries: it ends when all were placed anew, and some more.
	for range len(a.mu.byUse) + 16 {
		e := a.mu.byUse[0]
		used := e.used.Load()
		if used == e.stamp {
			break
		}
		e.stamp = used
		heap.Fix(&a.mu.byUse, 0)
	}
	return a.mu.byUse[0]
}

// byStamp is a heap, the entry with the least stamp on top.
type byStamp []*entry

func (h byStamp) Len() int           { return len(h) }
func (h byStamp) Less(i, k int) bool { return h[i].stamp < h[k].stamp }

func (h byStamp) Swap(i, k int) {
	h[i], h[k] = h[k], h[i]
	h[i].at, h[k].at = i, k
}

func (h *byStamp) Push(x any) {
	e := x.(*entry)
	e.at = len(*h)
	*h = append(*h, e)
}

func (h *byStamp) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	e.at = -1
	return e
}

// drop takes an entry out of the cache if it is still there.
func (a *accessorCache) drop(e *entry) {
	a.mu.Lock()
	in := e.at >= 0
	if in {
		a.removeLocked(e)
	}
	a.mu.Unlock()
	if in {
		e.release()
	}
}

// expire closes what was not used for long enough, and comes again for the rest.
func (a *accessorCache) expire() {
	var out []*entry
	a.mu.Lock()
	a.mu.timer = nil
	now := a.now()
	for len(a.mu.byUse) > 0 && !a.mu.closed {
		oldest := a.oldestLocked()
		if left := a.ttl - time.Duration(now-oldest.stamp); left > 0 {
			a.mu.timer = time.AfterFunc(left, a.expire)
			break
		}
		a.removeLocked(oldest)
		a.counts.expiries.Add(1)
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
	for n := len(a.mu.byUse); n > 0; n-- {
		e := a.mu.byUse[n-1]
		a.removeLocked(e)
		out = append(out, e)
	}
	a.mu.Unlock()
	a.cancel()
	for _, e := range out {
		e.release()
	}
}

// notAcquired is the error of an acquire, which names the shard once.
func notAcquired(key shard.Key, err error) error {
	if strings.HasPrefix(err.Error(), key.String()+": ") {
		return fmt.Errorf("acquire shard %w", err)
	}
	return fmt.Errorf("acquire shard %q: %w", key, err)
}
