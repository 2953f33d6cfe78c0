package dagstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dagstore/dagstore/shard"
)

// What the top-level index lacks: shards whose indices could not be read when their
// entries were wanted. A lookup that finds nothing while something lacks has not found
// out that there is nothing. They are tried again, in this process by a timer, in the
// next because the durable mark does not pass them ([topLevel.mark]).

// lacking holds the shards whose entries are lacking, by key.
type lacking struct {
	// n is len(shards), for lookups, which take no lock.
	n atomic.Int64

	sync.Mutex
	shards map[shard.Key]lackedShard
	// pause is how long the timer that is running takes; 0: none is.
	pause time.Duration
}

type lackedShard struct {
	gen uint64
	err error // why its index could not be read
}

// The pauses between tries. What is back is found again within the last.
const (
	firstMissedRetry = 500 * time.Millisecond
	lastMissedRetry  = 4 * time.Second
	// maxMissedTries is how many shards may fail in one try: if as many do, whatever
	// keeps them from being read is likely to keep the others too.
	maxMissedTries = 32
)

// lackingCount is how many shards were indexed in this life and have no entries here.
// While it is not 0 nothing that is not found is known not to be there. It costs
// nanoseconds.
func (t *topLevel) lackingCount() int64 { return t.lacking.n.Load() }

// Lacking says what the view does not show although it is as far as its position.
func (t *topLevel) Lacking() error {
	if t.lackingCount() == 0 {
		return nil
	}
	l := &t.lacking
	l.Lock()
	defer l.Unlock()
	if len(l.shards) == 0 {
		return nil
	}
	key := slices.MinFunc(slices.Collect(maps.Keys(l.shards)), shard.Key.Compare)
	return fmt.Errorf("%d shards are missing until their indices can be read or are built again, among them %q: %w", len(l.shards), key, l.shards[key].err)
}

// lacks notes how an attempt to enter a shard ended: err is why its index could not be
// read, or nil. An attempt that a later event of the shard made pointless says nothing.
// news says that the shard was not lacking before.
func (t *topLevel) lacks(in ingest, err error) (news bool) {
	l := &t.lacking
	l.Lock()
	defer l.Unlock()
	// The catalogue is ahead of this view, so a shard that is still wanted by it has no
	// event before it that the view has seen and that said otherwise.
	if !t.stillWanted(in) {
		return false
	}
	had, ok := l.shards[in.key]
	if err == nil {
		if ok && had.gen == in.gen {
			delete(l.shards, in.key)
		}
	} else {
		l.shards[in.key] = lackedShard{in.gen, err}
	}
	l.n.Store(int64(len(l.shards)))
	t.retryLaterLocked(firstMissedRetry)
	return err != nil && !ok
}

// has notes that a life's entries are there, or are no longer wanted.
func (t *topLevel) has(key shard.Key, gen uint64) {
	l := &t.lacking
	if l.n.Load() == 0 {
		return // whoever makes it lacking looks at the catalogue, which is as far as the caller
	}
	l.Lock()
	defer l.Unlock()
	if had, ok := l.shards[key]; ok && had.gen <= gen {
		delete(l.shards, key)
		l.n.Store(int64(len(l.shards)))
	}
}

// retryLater has what lacks tried again, if this is the view in use.
func (t *topLevel) retryLater() {
	t.lacking.Lock()
	defer t.lacking.Unlock()
	t.retryLaterLocked(firstMissedRetry)
}

func (t *topLevel) retryLaterLocked(pause time.Duration) {
	l := &t.lacking
	if l.pause > 0 || len(l.shards) == 0 || t.d.top.Load() != t {
		return
	}
	l.pause = pause
	time.AfterFunc(pause, func() { t.d.loop.complete(input{ctl: t.retry}) })
}

// retry tries again what lacks, beside the loop.
func (t *topLevel) retry() {
	if t.d.loop.closing {
		return
	}
	t.d.loop.spawn(func() {
		t.tryMissed(t.d.ctx)
		l := &t.lacking
		l.Lock()
		defer l.Unlock()
		pause := min(2*l.pause, lastMissedRetry)
		l.pause = 0
		if t.d.ctx.Err() == nil {
			t.retryLaterLocked(pause)
		}
	})
}

// tryMissed enters what lacks from the shards' indices, as far as they can be read now.
func (t *topLevel) tryMissed(ctx context.Context) {
	l := &t.lacking
	l.Lock()
	keys := slices.Collect(maps.Keys(l.shards)) // in another order each time
	l.Unlock()
	failed := 0
	for _, key := range keys {
		if ctx.Err() != nil || failed == maxMissedTries || t.d.top.Load() != t {
			return
		}
		l.Lock()
		was, missing := l.shards[key]
		l.Unlock()
		rec := t.d.cat.Get(key)
		if !missing || rec == nil || rec.Gen() != was.gen {
			continue // an event that is on its way sees to it
		}
		if err := t.enter(ctx, rec); err != nil && ctx.Err() == nil {
			t.d.log.Error("top-level index: a shard is missing", "shard", key.String(), "err", err)
			return
		}
		l.Lock()
		if _, missing = l.shards[key]; missing {
			failed++
		}
		l.Unlock()
	}
}
