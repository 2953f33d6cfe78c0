package dagstore

import (
	"context"
	"errors"
	"time"

	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// RecoveryPolicy says how shards that fail are recovered of themselves.
type RecoveryPolicy struct {
	// MaxAttempts is how often a shard is tried in a row; 0: until it succeeds or the
	// store is closed.
	MaxAttempts uint64
	// FirstPause is how long the first attempt waits after a failure, and each further
	// one twice as long as the one before, up to MaxPause; all give or take a quarter, so
	// that shards which fail together are not tried together. 0 means 1 s and 5 min.
	FirstPause, MaxPause time.Duration
}

const (
	firstPause = time.Second
	maxPause   = 5 * time.Minute
	pauseParts = 0.25 // how much of a pause is chance
)

// RecoverImmediately recovers every shard whose failure is told on failureCh, up to
// maxAttempts times in a row for each: the first time at once, and then after pauses of
// 1 s, 2 s and so on up to 5 min, give or take a quarter, so that an outage does not use
// up the attempts. It returns when ctx ends, and then calls onDone if that is not nil.
func RecoverImmediately(ctx context.Context, dagst *DAGStore, failureCh chan ShardResult, maxAttempts uint64, onDone func()) {
	if onDone != nil {
		defer onDone()
	}
	r := newRecoverer(dagst, RecoveryPolicy{})
	r.atOnce, r.most, r.failures = true, maxAttempts, failureCh
	r.limited = true
	r.run(ctx)
}

// recoverer recovers shards that fail. Its maps belong to the goroutine of run.
type recoverer struct {
	d           *DAGStore
	first, last time.Duration
	most        uint64
	limited     bool // by most
	atOnce      bool // the first attempt waits for nothing
	failures    chan ShardResult
	outcomes    chan ShardResult
	due         chan shard.Key
	attempts    map[shard.Key]uint64
	waiting     map[shard.Key]*time.Timer
}

func newRecoverer(d *DAGStore, p RecoveryPolicy) *recoverer {
	r := &recoverer{
		d: d, first: p.FirstPause, last: p.MaxPause, most: p.MaxAttempts, limited: p.MaxAttempts > 0,
		failures: make(chan ShardResult), outcomes: make(chan ShardResult, 128), due: make(chan shard.Key),
		attempts: make(map[shard.Key]uint64), waiting: make(map[shard.Key]*time.Timer),
	}
	if r.first <= 0 {
		r.first = firstPause
	}
	if r.last <= 0 {
		r.last = maxPause
	}
	return r
}

// failed hands over a failure, unless ctx ends first.
func (r *recoverer) failed(ctx context.Context, res ShardResult) {
	select {
	case r.failures <- res:
	case <-ctx.Done():
	}
}

// run recovers until ctx ends.
func (r *recoverer) run(ctx context.Context) {
	defer func() {
		for _, t := range r.waiting {
			t.Stop()
		}
	}()
	var sweep <-chan time.Time
	if !r.atOnce {
		t := time.NewTicker(r.last)
		defer t.Stop()
		sweep = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep:
			r.planAll(ctx)
		case res := <-r.outcomes:
			// A failure is told as such too; all else starts the count again.
			if res.Error == nil || errors.Is(res.Error, ErrNotErrored) || errors.Is(res.Error, ErrShardUnknown) {
				delete(r.attempts, res.Key)
			}
		case key := <-r.due:
			delete(r.waiting, key)
			r.attempt(ctx, key)
		case res := <-r.failures:
			r.plan(ctx, res)
		}
	}
}

// plan has a shard that failed recovered when its pause is over.
func (r *recoverer) plan(ctx context.Context, res ShardResult) {
	key, n := res.Key, r.attempts[res.Key]
	switch {
	case r.waiting[key] != nil:
		return
	case r.limited && n >= r.most:
		r.d.log.Info("recovery: attempts are used up", "shard", key.String(), "attempts", r.most, "err", res.Error)
		return
	case r.atOnce && n == 0:
		r.attempt(ctx, key)
		return
	case r.atOnce:
		n--
	}
	r.waiting[key] = time.AfterFunc(r.pause(n), func() {
		select {
		case r.due <- key:
		case <-ctx.Done():
		}
	})
}

// planAll is plan for what is errored and was not told: failures of before the start, and
// what was too much at a time.
func (r *recoverer) planAll(ctx context.Context) {
	r.d.cat.Snapshot().All(func(rec *projection.Record) bool {
		if key := rec.Key(); rec.Life() == shard.Errored && !(r.limited && r.attempts[key] >= r.most) {
			r.plan(ctx, ShardResult{Key: key})
		}
		return ctx.Err() == nil
	})
}

// pause is how long is waited after n attempts with pauses.
func (r *recoverer) pause(n uint64) time.Duration {
	p := r.first
	for ; n > 0 && p < r.last; n-- {
		p *= 2
	}
	return jittered(min(p, r.last), pauseParts)
}

func (r *recoverer) attempt(ctx context.Context, key shard.Key) {
	switch err := r.d.RecoverShard(ctx, key, r.outcomes, RecoverOpts{}); {
	case err == nil:
		r.attempts[key]++
	case errors.Is(err, ErrShardUnknown):
		delete(r.attempts, key)
	default:
		r.d.log.Warn("recovery: not queued", "shard", key.String(), "err", err)
	}
}
