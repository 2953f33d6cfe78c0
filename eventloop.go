package dagstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

const (
	// turnInputs is how many external inputs one turn takes at most.
	turnInputs = 512
	// maxExternal bounds the external queue; callers wait for room.
	maxExternal = 1 << 16
	// maxBatchEvents and maxBatchBytes bound one batch of the journal, but for a
	// last event that may be larger.
	maxBatchEvents = 4096
	maxBatchBytes  = 8 << 20
	// maxRevivals bounds how many mounts are made from their URLs at once.
	maxRevivals = 16
)

// eventLoop owns the state of all shards. Its fields below mu belong to the one
// goroutine that runs turns. Invariants:
//
//	a shard's machine steps only while the shard is not busy
//	busy(shard) ⇔ an event of it is on its way into the journal, or its mount is being made
//	what a step with events wants is done only when they are durable
type eventLoop struct {
	d *DAGStore

	mu struct {
		sync.Mutex
		completion []input
		external   []input
		tickets    fsm.Ticket // given to requests
		asleep     bool
		closed     bool
		room       chan struct{} // closed and replaced when the external queue has room again
	}
	wake chan struct{}
	done chan struct{}

	internal []input
	taken    []input // external inputs of this turn
	finished []input // completions of this turn

	net    *fsm.Net
	in     fsm.Input
	out    fsm.Out
	now    int64
	parked map[fsm.Ticket]*request
	// sweeping are the requests whose shards are gone and whose files are not.
	sweeping map[fsm.Ticket]struct{}
	// cancelling are the shards with cancelled acquires of this turn.
	cancelling []*live
	mounts     map[uint64]retained // live mounts of this process by generation
	copies     map[shard.Key]uint64
	// outlived are the handles that accessors use and the loop no longer does.
	outlived map[*handle]struct{}
	// holderOf says who has an open accessor, if that is somebody who lets go when asked.
	holderOf map[*ShardAccessor]Holder
	idle     idleList
	revive   pool
	slow     pool
	// initialising: the acquire that is being stepped is of nobody's making.
	initialising bool
	pauses       pauses
	overdues     int // probes and opens that go on without a slot

	seq      uint64    // of the last event given to the journal
	startSeq uint64    // ... when the store started
	durable  uint64    // of the newest event that is known to be durable
	outbox   []*commit // waiting for the journal, in order
	spare    *commit
	prior    fsm.Shard // the stepped shard before the step
	flying   *commit
	failed   error // why the journal is read-only
	closing  bool
	turns    uint64 // so far
	inputs   uint64 // that they took from the queues

	// spawn runs asynchronous work; the simulator replaces it.
	spawn func(func())
	// cancels wraps the cancelling of a job; the simulator lets a job that was
	// cancelled come to its end before the next is.
	cancels func(context.CancelFunc) context.CancelFunc
	clock   func() int64
	// chance draws below n; the simulator draws by its seed.
	chance func(n int64) int64
	held   map[Holder]int // accessors of those who let go when asked
}

// input is one thing for the loop to deal with: a request, something that happens
// to a live shard, or a piece of the loop's own housekeeping.
type input struct {
	req  *request
	lv   *live
	trig fsm.Trigger
	acc  *ShardAccessor // that was closed
	done *completion
	ctl  func()
}

// completion is the result of a job.
type completion struct {
	attempt uint32
	err     error
	fault   fsm.Fault
	ready   bool
	present bool
	owned   bool
	info    shard.IndexInfo
	handle  *handle
	changed error // in what way the source is not what was indexed
}

func newEventLoop(d *DAGStore) *eventLoop {
	e := &eventLoop{
		d:    d,
		wake: make(chan struct{}, 1),
		done: make(chan struct{}),
		net: fsm.NewNet(
			d.cfg.MaxConcurrentReadyFetches, d.cfg.MaxConcurrentIndex, d.cfg.MaxConcurrentOpens),
		parked: make(map[fsm.Ticket]*request), sweeping: make(map[fsm.Ticket]struct{}),
		mounts: make(map[uint64]retained),
		copies: make(map[shard.Key]uint64), outlived: make(map[*handle]struct{}), held: make(map[Holder]int), holderOf: make(map[*ShardAccessor]Holder),
		clock: func() int64 { return time.Now().UnixNano() }, chance: chance,
	}
	e.mu.room = make(chan struct{})
	e.out.Trace = d.traces.wanted()
	if d.tail != nil {
		e.failed = ErrFollower
		e.net.SetReadOnly(e.clock(), 0)
	}
	e.revive.limit, e.slow.limit = maxRevivals, defaultSlots
	e.cancels = func(c context.CancelFunc) context.CancelFunc { return c }
	e.spawn = func(f func()) {
		d.jobs.Add(1)
		go func() { defer d.jobs.Done(); f() }()
	}
	return e
}

func (e *eventLoop) start() {
	e.now = e.clock()
	e.durable = e.startSeq
	e.net.Begin(e.now, e.durable)
	if drive := e.d.cfg.drive; drive != nil {
		drive(e)
		return
	}
	go func() {
		defer close(e.done)
		for e.turn() || e.sleep() {
		}
	}()
}

// sleep waits for an input; false means that the loop is over.
func (e *eventLoop) sleep() bool {
	e.mu.Lock()
	if e.mu.closed {
		e.mu.Unlock()
		return false
	}
	if len(e.mu.completion)+len(e.mu.external) > 0 {
		e.mu.Unlock()
		return true
	}
	e.mu.asleep = true
	e.mu.Unlock()
	<-e.wake
	return true
}

func (e *eventLoop) wakeLocked() {
	if e.mu.asleep {
		e.mu.asleep = false
		e.wake <- struct{}{}
	}
}

// submit queues a request. It waits while the queue is full.
func (e *eventLoop) submit(req *request) error {
	if req.ctx == nil { // the loop's end, if it were to find out
		req.ctx = context.Background()
	}
	for {
		e.mu.Lock()
		switch {
		case e.mu.closed:
			e.mu.Unlock()
			return ErrClosed
		case len(e.mu.external) < maxExternal:
			e.mu.tickets++
			req.ticket = e.mu.tickets
			e.mu.external = append(e.mu.external, input{req: req})
			e.wakeLocked()
			e.mu.Unlock()
			return nil
		}
		room := e.mu.room
		e.mu.Unlock()
		select {
		case <-room:
		case <-req.ctx.Done():
			return req.ctx.Err()
		}
	}
}

// release queues the end of a reference. It never waits: there are no more of them
// than open accessors.
func (e *eventLoop) release(sa *ShardAccessor) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.mu.closed {
		e.mu.external = append(e.mu.external, input{lv: sa.lv, acc: sa, trig: fsm.Release})
		e.wakeLocked()
	}
}

// complete queues the result of asynchronous work; false means that the loop is
// over and nobody will look at it.
func (e *eventLoop) complete(in input) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.closed {
		return false
	}
	e.mu.completion = append(e.mu.completion, in)
	e.wakeLocked()
	return true
}

// control runs f in the loop and waits for it; false means that the loop is over.
func (e *eventLoop) control(f func()) bool {
	done := make(chan struct{})
	if !e.complete(input{ctl: func() { f(); close(done) }}) {
		return false
	}
	select {
	case <-done:
		return true
	case <-e.done:
		return false
	}
}

// abandon tells the loop that the caller of a parked request left.
func (e *eventLoop) abandon(req *request) {
	e.complete(input{ctl: func() { e.cancel(req) }})
}

// turn deals with what is queued now and reports whether there was anything.
func (e *eventLoop) turn() bool {
	e.mu.Lock()
	e.finished, e.mu.completion = e.mu.completion, e.finished[:0]
	if n := len(e.mu.external); n <= turnInputs {
		e.taken, e.mu.external = e.mu.external, e.taken[:0]
	} else {
		e.taken = append(e.taken[:0], e.mu.external[:turnInputs]...)
		rest := copy(e.mu.external, e.mu.external[turnInputs:])
		clear(e.mu.external[rest:])
		e.mu.external = e.mu.external[:rest]
		if n >= maxExternal {
			close(e.mu.room)
			e.mu.room = make(chan struct{})
		}
	}
	e.mu.Unlock()
	if len(e.finished)+len(e.taken)+len(e.internal) == 0 {
		return false
	}
	e.turns++
	e.inputs += uint64(len(e.finished) + len(e.taken))
	e.now = e.clock()
	e.drain()
	for i := range e.finished {
		e.process(&e.finished[i])
		e.drain()
	}
	e.cancelAcquires()
	for i := range e.taken {
		e.process(&e.taken[i])
		e.drain()
	}
	clear(e.finished)
	clear(e.taken)
	e.send()
	return true
}

// drain deals with what the loop itself emitted.
func (e *eventLoop) drain() {
	for i := 0; i < len(e.internal); i++ {
		in := e.internal[i]
		e.process(&in)
	}
	clear(e.internal)
	e.internal = e.internal[:0]
}

func (e *eventLoop) process(in *input) {
	switch {
	case in.ctl != nil:
		in.ctl()
	case e.closing:
		e.refuse(in)
	case in.req != nil:
		e.request(in)
	default:
		e.feed(in)
	}
}

// request finds the live shard that a request is for.
func (e *eventLoop) request(in *input) {
	req := in.req
	if req.since == 0 {
		req.since = e.now
	}
	if err := req.ctx.Err(); err != nil || req.state.Load() == reqAbandoned {
		if err == nil {
			err = context.Canceled
		}
		e.answerError(req, err)
		return
	}
	if in.lv == nil || in.lv.gone {
		in.lv = e.d.mu.hot[req.key]
	}
	if in.lv != nil && !e.d.isCurrent(in.lv) {
		if e.supersede(in.lv); in.lv.gone {
			in.lv = nil
		}
	}
	if in.lv == nil && req.kind == fsm.Register {
		in.lv = e.addLive(newLive(req.key, req.reg))
	}
	if in.lv == nil {
		rec := e.d.cat.Get(req.key)
		if rec == nil {
			e.answerCode(req, fsm.ErrUnknown, nil)
			return
		}
		in.lv = e.reviveLive(rec)
	}
	e.feed(in)
}

// feed steps a shard's machine, or puts the input off while the shard is busy.
func (e *eventLoop) feed(in *input) {
	lv := in.lv
	if in.acc != nil && !lv.busy && !e.returned(lv, in.acc) {
		return // its readers were cut off
	}
	if lv.gone && in.done == nil {
		return // let go of meanwhile; the key may be another live shard's by now
	}
	if lv.busy {
		lv.deferred = append(lv.deferred, *in)
		return
	}
	if in.done != nil {
		e.finishJob(lv, in)
	}
	if in.req != nil && in.req.initialise {
		e.initialise(lv, in.req)
		return
	}
	fi := &e.in
	*fi = fsm.Input{Trigger: in.trig, Time: e.now}
	if req := in.req; req != nil {
		fi.Trigger, fi.Ticket, fi.NoDownload = req.kind, req.ticket, req.noDownload
		if req.reg != nil {
			fi.Lazy, fi.Direct = req.reg.lazy, req.reg.direct
		}
		if req.kind == fsm.Destroy {
			fi.Patience = lv.patience(req.destroy)
		}
	} else if c := in.done; c != nil {
		fi.Attempt, fi.Err, fi.Fault = c.attempt, bounded(c.err), e.faultNow(lv, c)
		fi.Ready, fi.Present, fi.Owned, fi.Info, fi.Changed = c.ready, c.present, c.owned, c.info, c.changed
	}
	if fi.Trigger == fsm.Resume {
		fi.Heal = fsm.Heal(e.d.cfg.RecoverOnStart)
	}
	e.step(lv, in.req)
	if req := in.req; req != nil && req.kind == fsm.Destroy {
		e.awaitEnd(lv, req)
	}
}

// step applies e.in to a shard that is not busy.
func (e *eventLoop) step(lv *live, req *request) {
	out := &e.out
	out.Reset()
	e.in.Seq = e.durable
	warm := lv.s.Life == shard.Available && (e.in.Trigger == fsm.Acquire || e.in.Trigger == fsm.Release) && len(lv.s.Ending) == 0
	if !warm {
		e.prior = lv.s
	}
	if !e.net.Step(&lv.s, &e.in, out) {
		panic(fmt.Sprintf("dagstore: no row of the machine takes %s in %+v", e.in.Trigger, lv.s))
	}
	for _, s := range out.Wake {
		e.internal = append(e.internal, input{lv: s.Owner.(*live), trig: fsm.Auto})
	}
	if len(out.Events) > 0 {
		e.record(lv, req, &e.prior)
		return
	}
	if warm {
		e.publishRefs(lv)
	} else {
		e.publish(lv)
	}
	for i := range out.Traces {
		e.trace(lv, &out.Traces[i])
	}
	answered := req == nil
	for i := range out.Replies {
		r := &out.Replies[i]
		if req != nil && r.Ticket == req.ticket {
			answered = true
			e.answer(req, r, lv, durable{})
		} else if p := e.parked[r.Ticket]; p != nil {
			e.answer(p, r, lv, durable{})
		} else if r.Accessor && !planted.Bug("store-reference-of-absent-kept") { // its caller left
			e.internal = append(e.internal, input{lv: lv, trig: fsm.Release})
		}
	}
	if !answered {
		e.park(req)
	}
	for i := range out.Effects {
		e.effect(lv, &out.Effects[i], durable{})
	}
	e.rest(lv)
}

// Shutdown.

// shutdown ends the loop: what is being written is told as it turns out, everything
// else that waits is answered with ErrClosed, and all handles are shut.
func (e *eventLoop) shutdown() {
	e.complete(input{ctl: func() {
		e.closing = true
		e.d.cancel()
		if e.flying == nil {
			e.refuseAll()
		}
	}})
	<-e.done
}

// refuse answers an input that came too late.
func (e *eventLoop) refuse(in *input) {
	if in.req != nil {
		e.answerError(in.req, ErrClosed)
	}
	if in.done != nil && in.done.handle != nil && !planted.Bug("store-late-handle-left-at-close") {
		in.done.handle.shut()
	}
}

func (e *eventLoop) refuseAll() {
	for _, c := range e.outbox {
		for _, a := range c.replies {
			e.answerError(a.req, ErrClosed)
		}
		for _, p := range c.steps {
			e.endRegistration(p.lv)
		}
	}
	e.outbox = nil
	if planted.Bug("store-parked-left-at-close") {
		clear(e.parked)
	}
	for _, req := range e.parked {
		e.answerError(req, ErrClosed)
	}
	for _, lv := range e.d.mu.hot {
		for i := range lv.deferred {
			e.refuse(&lv.deferred[i])
		}
		lv.deferred = nil
		if lv.handle != nil {
			lv.handle.shut()
		}
		if lv.ownMount {
			e.d.closeMount(lv.mnt)
			lv.ownMount = false
		}
	}
	for h := range e.outlived {
		h.shut()
	}
	e.idle.stop()
	e.pauses.stop()
	e.mu.Lock()
	e.mu.closed = true
	late := append(e.mu.completion, e.mu.external...)
	e.mu.completion, e.mu.external = nil, nil
	close(e.mu.room)
	e.mu.Unlock()
	for i := range late {
		if late[i].ctl == nil {
			e.refuse(&late[i])
		}
	}
}

// damaged tells the loop that a read found the shard's index or copy damaged.
func (e *eventLoop) damaged(lv *live, h *handle, fault fsm.Fault, err error) {
	e.complete(input{ctl: func() { e.damage(lv, h, fault, err) }})
}

// mend has the damaged or missing index of a recorded shard built again.
func (e *eventLoop) mend(rec *projection.Record, err error) {
	var damaged *index.DamagedError
	if e.closing || e.d.tail != nil || !errors.As(err, &damaged) && !errors.Is(err, index.ErrNotFound) {
		return
	}
	lv := e.d.mu.hot[rec.Key()]
	if lv == nil {
		if now := e.d.cat.Get(rec.Key()); now == nil || now.Gen() != rec.Gen() {
			return
		}
		lv = e.reviveLive(rec)
	}
	e.damage(lv, lv.handle, fsm.FaultIndex, err)
	e.drain()
}

func (e *eventLoop) damage(lv *live, h *handle, fault fsm.Fault, err error) {
	switch {
	case e.closing || lv.gone || lv.handle != h:
	case lv.busy:
		lv.deferred = append(lv.deferred, input{ctl: func() { e.damage(lv, h, fault, err) }})
	default:
		e.in = fsm.Input{Trigger: fsm.Damage, Fault: fault, Err: bounded(err), Time: e.now}
		e.step(lv, nil)
	}
}
