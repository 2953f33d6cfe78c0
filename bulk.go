package dagstore

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// Verbs for many shards at once. Each is one goroutine, the caller's, and one channel:
// requests are made as long as fewer than so many wait for their answers, and answers are
// taken in between.

const (
	// bulkRegister is how many registrations wait for their answers at once: as many as
	// a batch of the journal holds.
	bulkRegister = maxBatchEvents
	// bulkDefault is how many shards are initialised or recovered at once unless told.
	bulkDefault = 16
	// maxBulkFailures bounds how many failures a report lists.
	maxBulkFailures = 100
)

// Registration is what [DAGStore.RegisterMany] registers.
type Registration struct {
	Key   shard.Key
	Mount mount.Mount
	Opts  RegisterOpts
}

// Progress tells how far a verb for many shards has come, with each shard's result.
type Progress struct {
	// Result is what the verb for one shard would have answered.
	Result ShardResult
	// Done counts the shards that are done, of them those that failed; Total is how many
	// there are, 0 if that is not known.
	Done, Failed, Total int
}

// BulkReport sums up a verb for many shards.
type BulkReport struct {
	// Done counts the shards that were answered for, Failed those of them with an error.
	Done, Failed int
	// Failures are the first 100 of those.
	Failures []ShardResult
	Took     time.Duration
}

// RegisterMany registers all that regs yields, as [DAGStore.RegisterShard] does, and
// returns when all are answered. each, if it is not nil, is called with each answer, in
// the goroutine of the caller and in no particular order: a registration that is not lazy
// is answered when its shard is available or errored. The memory that it takes does not
// grow with the number of shards.
//
// A shard that cannot be registered is one of the report's failures and stops nothing.
// When ctx ends no more are registered, what waits is answered with ctx's error, which is
// returned, and what has begun goes on.
func (d *DAGStore) RegisterMany(ctx context.Context, regs iter.Seq[Registration], each func(Progress)) (BulkReport, error) {
	if err := d.checkWriter(); err != nil {
		return BulkReport{}, err
	}
	b := newBulk(ctx, bulkRegister, 0, each)
	for r := range regs {
		if !b.room() {
			break
		}
		b.sent(r.Key, d.RegisterShard(ctx, r.Key, r.Mount, b.out, r.Opts))
	}
	return b.end()
}

// Initialize fetches and indexes a shard that was registered lazily, so that the next
// acquire only opens it, and waits for that. One that is being initialised or recovered is
// waited for, one that is available is left as it is, and the error of one that is
// errored is returned. Its source is opened once, and not kept open. If ctx ends first the
// initialisation goes on.
func (d *DAGStore) Initialize(ctx context.Context, key shard.Key) (ShardResult, error) {
	return d.wait(&request{ctx: ctx, key: key, kind: fsm.Recover, initialise: true}, d.request)
}

// InitializeAll initialises all shards that are not, n at a time, or 16 if that is 0, and
// returns when all have an outcome. each, if it is not nil, is called with each of them in
// the goroutine of the caller. A shard that fails is one of the report's failures and
// stops nothing. When ctx ends no more are begun, what has begun goes on, and ctx's error
// is returned.
func (d *DAGStore) InitializeAll(ctx context.Context, n int, each func(Progress)) (BulkReport, error) {
	return d.eachOf(ctx, n, each, func(rec *projection.Record) bool {
		l := rec.Life()
		return l == shard.Registered || l == shard.Initialising
	}, func(key shard.Key, out chan ShardResult) error {
		return d.request(&request{ctx: ctx, out: out, key: key, kind: fsm.Recover, initialise: true})
	})
}

// RecoverAll recovers the errored shards for which filter is true, or all if it is nil, n
// at a time, or 16 if that is 0, and returns when all have an outcome. Otherwise it is as
// [DAGStore.InitializeAll].
func (d *DAGStore) RecoverAll(ctx context.Context, filter func(ShardSummary) bool, n int, each func(Progress)) (BulkReport, error) {
	return d.eachOf(ctx, n, each, func(rec *projection.Record) bool {
		return rec.Life() == shard.Errored && (filter == nil || filter(summary(rec, d.recordInfo(rec))))
	}, func(key shard.Key, out chan ShardResult) error {
		return d.RecoverShard(ctx, key, out, RecoverOpts{})
	})
}

// eachOf asks for something of all shards that are meant, n at a time.
func (d *DAGStore) eachOf(ctx context.Context, n int, each func(Progress), meant func(*projection.Record) bool, ask func(shard.Key, chan ShardResult) error) (BulkReport, error) {
	if err := d.checkWriter(); err != nil {
		return BulkReport{}, err
	}
	if n <= 0 {
		n = bulkDefault
	}
	var keys []shard.Key
	d.cat.Snapshot().All(func(rec *projection.Record) bool {
		if meant(rec) {
			keys = append(keys, rec.Key())
		}
		return true
	})
	b := newBulk(ctx, n, len(keys), each)
	for _, key := range keys {
		if !b.room() {
			break
		}
		err := ask(key, b.out)
		if errors.Is(err, ErrShardUnknown) {
			b.progress.Total-- // destroyed meanwhile
			continue
		}
		b.sent(key, err)
	}
	return b.end()
}

// bulk is a verb for many shards that is under way. The channel has room for all answers
// that are due, so the store never waits for it.
type bulk struct {
	ctx      context.Context
	began    time.Time
	out      chan ShardResult
	waiting  int
	each     func(Progress)
	progress Progress
	report   BulkReport
	err      error
}

func newBulk(ctx context.Context, n, total int, each func(Progress)) *bulk {
	return &bulk{ctx: ctx, began: time.Now(), out: make(chan ShardResult, n), each: each, progress: Progress{Total: total}}
}

// room takes the answers that have come, and waits for one if all that may wait do. It is
// false when no more requests are to be made.
func (b *bulk) room() bool {
	for b.waiting == cap(b.out) || len(b.out) > 0 {
		b.take()
	}
	if b.err == nil {
		b.err = b.ctx.Err()
	}
	return b.err == nil
}

// sent notes a request that was made, or refused at once.
func (b *bulk) sent(key shard.Key, err error) {
	if err != nil {
		b.done(ShardResult{Key: key, Error: err})
		return
	}
	b.waiting++
}

// take waits for an answer. Every request gets one, also when its context or the store
// ends.
func (b *bulk) take() {
	res := <-b.out
	b.waiting--
	b.done(res)
}

func (b *bulk) done(res ShardResult) {
	p := &b.progress
	p.Result = res
	p.Done++
	if res.Error != nil {
		if p.Failed++; len(b.report.Failures) < maxBulkFailures {
			b.report.Failures = append(b.report.Failures, res)
		}
		if errors.Is(res.Error, ErrClosed) && b.err == nil {
			b.err = ErrClosed
		}
	}
	if b.each != nil {
		b.each(*p)
	}
}

// end waits for what has not been answered.
func (b *bulk) end() (BulkReport, error) {
	for b.waiting > 0 {
		b.take()
	}
	b.report.Done, b.report.Failed, b.report.Took = b.progress.Done, b.progress.Failed, time.Since(b.began)
	if b.err == nil {
		b.err = b.ctx.Err()
	}
	return b.report, b.err
}

// initialise has a shard initialised, if that is to be done, and the request wait for the
// outcome and not for an accessor.
func (e *eventLoop) initialise(lv *live, req *request) {
	s := &lv.s
	switch s.Life {
	case shard.Available:
		e.answerCode(req, fsm.OK, nil)
		e.rest(lv)
	case shard.Errored:
		e.answerCode(req, fsm.ErrErrored, s.Cause)
		e.rest(lv)
	case shard.Registered, shard.Initialising:
		// An acquire is what begins it; its place among those who wait is changed before
		// anything else happens.
		e.initialising = true
		e.in = fsm.Input{Trigger: fsm.Acquire, Ticket: req.ticket, Time: e.now}
		e.step(lv, req)
		e.initialising = false
		if e.parked[req.ticket] == req {
			s.AwaitOutcome(req.ticket)
		}
	default: // being recovered, or gone
		e.in = fsm.Input{Trigger: fsm.Recover, Ticket: req.ticket, Time: e.now}
		e.step(lv, req)
	}
}
