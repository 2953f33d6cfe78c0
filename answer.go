package dagstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// park lets a request wait, and watches its context.
func (e *eventLoop) park(req *request) {
	e.parked[req.ticket] = req
	if lv := e.d.mu.hot[req.key]; lv != nil {
		req.indexed = lv.s.Life == shard.Available
	}
	if req.ctx.Done() != nil && req.stop == nil {
		req.stop = context.AfterFunc(req.ctx, func() { e.abandon(req) })
	}
}

// cancel ends a parked request whose caller no longer waits.
func (e *eventLoop) cancel(req *request) {
	if e.parked[req.ticket] != req {
		return
	}
	err := req.ctx.Err()
	if err == nil {
		err = context.Canceled
	}
	ticket := req.ticket
	e.answerError(req, err)
	lv := e.d.mu.hot[req.key]
	if lv == nil {
		return
	}
	if req.kind == fsm.Acquire {
		// A context may end that many acquires have in common.
		if len(lv.cancelled) == 0 {
			e.cancelling = append(e.cancelling, lv)
		}
		lv.cancelled = append(lv.cancelled, ticket)
		return
	}
	if lv.busy {
		lv.deferred = append(lv.deferred, input{ctl: func() { e.cancelTicket(lv, ticket) }})
		return
	}
	e.cancelTicket(lv, ticket)
}

// cancelAcquires takes the acquires whose callers left off their shards, all of a
// shard's at once: one by one, n of them would cost n².
func (e *eventLoop) cancelAcquires() {
	for i, lv := range e.cancelling {
		e.cancelling[i] = nil
		e.cancelParked(lv)
		e.drain()
	}
	e.cancelling = e.cancelling[:0]
}

func (e *eventLoop) cancelParked(lv *live) {
	if lv.busy {
		lv.deferred = append(lv.deferred, input{ctl: func() { e.cancelParked(lv) }})
		return
	}
	tickets := lv.cancelled
	lv.cancelled = nil
	if lv.gone || e.closing {
		return
	}
	gone := make(map[fsm.Ticket]struct{}, len(tickets))
	for _, t := range tickets {
		gone[t] = struct{}{}
	}
	if last, ok := lv.s.Thin(gone); ok {
		e.cancelTicket(lv, last)
	}
}

func (e *eventLoop) cancelTicket(lv *live, ticket fsm.Ticket) {
	if lv.gone || lv.busy || e.closing {
		return
	}
	e.in = fsm.Input{Trigger: fsm.Cancel, Ticket: ticket, Time: e.now}
	e.step(lv, nil)
}

func (e *eventLoop) answerCode(req *request, code fsm.Code, cause error) {
	e.answer(req, &fsm.Reply{Ticket: req.ticket, Code: code, Cause: cause}, nil, durable{})
}

func (e *eventLoop) answerError(req *request, err error) {
	if e.settle(req) {
		if req.more != nil && req.more.reclaimed != nil {
			req.more.reclaimed(req.key, fsm.ErrFailed, err)
			return
		}
		e.d.courier.deliver(req, ShardResult{Key: req.key, Error: err})
	}
}

// settle claims the right to answer a request.
func (e *eventLoop) settle(req *request) bool {
	if req.ticket != 0 {
		delete(e.parked, req.ticket)
	}
	if req.stop != nil {
		req.stop()
	}
	if req.more != nil && req.more.patience != nil {
		req.more.patience.Stop()
	}
	if req.reg != nil && !req.reg.begun {
		req.reg.begun = true
		e.d.registered(req.key, req.reg)
	}
	return req.state.CompareAndSwap(reqPending, reqAnswered)
}

// answer turns the machine's reply into the caller's result.
func (e *eventLoop) answer(req *request, r *fsm.Reply, lv *live, at durable) {
	if req.kind == fsm.Recover && r.Code == fsm.ErrFailed && lv.s.Ail == fsm.Changed && lv.s.Handle == fsm.Open && !req.again {
		// It waited for a next try, which found another source than was indexed.
		req.again = true
		delete(e.parked, req.ticket)
		e.internal = append(e.internal, input{req: req, lv: lv})
		return
	}
	if !e.settle(req) {
		if r.Accessor && !planted.Bug("store-reference-of-absent-kept") {
			e.internal = append(e.internal, input{lv: lv, trig: fsm.Release})
		}
		return
	}
	switch {
	case req.more != nil && req.more.reclaimed != nil:
		cause := r.Cause
		if r.Code == fsm.ErrBusy && lv != nil {
			cause = lv.needs()
		}
		req.more.reclaimed(req.key, r.Code, cause)
	case r.Accessor:
		if err := req.ctx.Err(); err != nil && !planted.Bug("store-reference-of-absent-kept") {
			e.internal = append(e.internal, input{lv: lv, trig: fsm.Release})
			e.d.courier.deliver(req, ShardResult{Key: req.key, Error: err})
			return
		}
		e.d.courier.deliver(req, ShardResult{Key: req.key, Accessor: newAccessor(e, lv, req.holder())})
		if len(lv.s.Ending) > 0 && req.holder() != nil {
			e.ask(req.holder(), lv.key)
		}
	default:
		code, cause := r.Code, r.Cause
		if e.undecided(req.kind, code) {
			code = fsm.ErrReadOnly
		}
		switch code {
		case fsm.ErrReadOnly:
			cause = e.failed
		case fsm.ErrAway:
			cause = e.awayError(lv, cause)
		}
		if r.Code == fsm.ErrInUse && lv != nil {
			if users := lv.users(); users != "" {
				cause = errors.New(users)
			}
		}
		if r.Code == fsm.ErrEnding {
			e.d.courier.deliver(req, ShardResult{Key: req.key, Error: &UnavailableError{
				Shards: []shard.Key{req.key}, Reason: errEnding, Since: time.Unix(0, lv.s.Since[fsm.PlaceEnding]), RetryAfter: endingRetry,
			}})
			return
		}
		if req.kind == fsm.Acquire {
			at = durable{} // the event was not of its making
		}
		err := errorFor(req, code, cause)
		if lv != nil && req.kind == fsm.Acquire && (code == fsm.ErrErrored || code == fsm.ErrFailed) {
			err = &refusal{err, &UnavailableError{Shards: []shard.Key{req.key}, Reason: err, Since: timeOf(lv.s.Since[fsm.PlaceFault])}}
		}
		e.d.courier.deliver(req, ShardResult{Key: req.key, Error: err, Seq: at.seq, Position: at.pos})
	}
}

// refusal is the error of an acquire of a shard that failed, in the words of old, and
// what that means to who looks for its blocks.
type refusal struct {
	err  error
	away *UnavailableError
}

func (r *refusal) Error() string   { return r.err.Error() }
func (r *refusal) Unwrap() []error { return []error{r.err, r.away} }

// awayError says that a shard's source cannot be had, and when it is tried again.
func (e *eventLoop) awayError(lv *live, cause error) error {
	u := &UnavailableError{Shards: []shard.Key{lv.key}, Reason: cause, Since: timeOf(lv.ail.since)}
	u.RetryAfter = max(time.Duration(lv.ail.retryAt-e.now), pauseFirst) // sooner it is of no use
	if lv.s.Life == shard.Registered {
		return fmt.Errorf("%w: %w", ErrShardInitializationFailed, u)
	}
	return u
}

// undecided says that the verdict on a change rests on what may turn out otherwise when
// the store is opened anew: after a write of unknown outcome nobody knows whether a key
// is taken, or what there is to destroy or to recover. That it was refused is all that
// can be said.
func (e *eventLoop) undecided(kind fsm.Trigger, code fsm.Code) bool {
	if e.failed == nil {
		return false
	}
	switch code {
	case fsm.ErrExists, fsm.ErrNotErrored:
		return true
	case fsm.ErrUnknown:
		return kind == fsm.Destroy || kind == fsm.Recover
	}
	return false
}
