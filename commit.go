package dagstore

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// commit is a batch of events and what is to be done when it is durable.
type commit struct {
	events  []shard.Event
	steps   []pendingStep
	replies []answer
	effects []fsm.Effect
	traces  []fsm.Traced
	bytes   int // about what the events take in the journal
	pos     journal.Position
	err     error
}

// pendingStep is what one step wants once its event is durable: parts of the
// commit's slices.
type pendingStep struct {
	lv                       *live
	event                    int
	replies, effects, traces span
}

type span struct{ from, to int }

// durable is where in the journal a change is: its event, and the end of its batch.
type durable struct {
	seq uint64
	pos journal.Position
}

type answer struct {
	req *request
	fsm.Reply
}

func (c *commit) full() bool { return len(c.events) >= maxBatchEvents || c.bytes >= maxBatchBytes }

// maxShared is the size in bytes from which events have a batch of their own: what the
// journal refuses for its size is refused to nobody else.
const maxShared = 1 << 20

// commitFor returns the batch that is being collected, in which size bytes go.
func (e *eventLoop) commitFor(size int) *commit {
	if n := len(e.outbox); n > 0 && !e.outbox[n-1].full() && size < maxShared {
		return e.outbox[n-1]
	}
	c := e.spare
	if e.spare = nil; c == nil {
		c = &commit{}
	}
	e.outbox = append(e.outbox, c)
	return c
}

// recycle keeps a batch's memory for another.
func (e *eventLoop) recycle(c *commit) {
	clear(c.events)
	clear(c.steps)
	clear(c.replies)
	clear(c.effects)
	clear(c.traces)
	*c = commit{events: c.events[:0], steps: c.steps[:0], replies: c.replies[:0], effects: c.effects[:0], traces: c.traces[:0]}
	e.spare = c
}

// record puts the step's event, and all that depends on it, into the outbox. before
// is the shard as it was.
func (e *eventLoop) record(lv *live, req *request, before *fsm.Shard) {
	out := &e.out
	size := 64 + len(lv.key.String()) + len(lv.url) + len(lv.transient)
	c := e.commitFor(size)
	p := pendingStep{lv: lv, event: len(c.events)}
	for _, ev := range out.Events {
		c.events = append(c.events, lv.event(ev, e.now))
		c.bytes += size + len(c.events[len(c.events)-1].State.Reason)
	}
	if size >= maxShared {
		c.bytes = max(c.bytes, maxBatchBytes) // full
	}
	answered := req == nil
	p.replies.from = len(c.replies)
	for _, r := range out.Replies {
		a := answer{Reply: r, req: e.parked[r.Ticket]}
		if req != nil && r.Ticket == req.ticket {
			answered, a.req = true, req
		}
		if a.req != nil {
			c.replies = append(c.replies, a)
		} else if r.Accessor { // its caller left
			e.internal = append(e.internal, input{lv: lv, trig: fsm.Release})
		}
	}
	p.replies.to = len(c.replies)
	p.effects.from = len(c.effects)
	c.effects = append(c.effects, out.Effects...)
	p.effects.to = len(c.effects)
	for i := range out.Effects {
		if req != nil && out.Effects[i].Ticket == req.ticket {
			answered = true
			e.parked[req.ticket] = req // answered by the sweep
		}
	}
	p.traces.from = len(c.traces)
	c.traces = append(c.traces, out.Traces...)
	p.traces.to = len(c.traces)
	if !answered {
		e.park(req)
	}
	if lv.reg != nil {
		lv.reg.begun = true
	}
	if before.Gen != 0 {
		b := *before
		lv.before = &b
	}
	lv.busy = true
	c.steps = append(c.steps, p)
}

// send gives the journal its next batch if it is idle.
func (e *eventLoop) send() {
	if e.flying != nil || len(e.outbox) == 0 {
		return
	}
	c := e.outbox[0]
	e.outbox[0] = nil
	if e.outbox = e.outbox[1:]; len(e.outbox) == 0 {
		e.outbox = nil
	}
	for i := range c.events {
		ev := &c.events[i]
		e.seq++
		ev.Seq = e.seq
		if ev.Kind == shard.EventRegistered {
			ev.Gen = ev.Seq
		}
	}
	if planted.Bug("store-answers-before-commit") {
		for i := range c.replies {
			e.answer(c.replies[i].req, &c.replies[i].Reply, c.steps[0].lv, durable{seq: e.seq})
		}
	}
	e.flying = c
	e.spawn(func() {
		e.d.write(c)
		e.complete(input{ctl: func() { e.committed(c) }})
	})
}

// write makes a batch durable and then visible.
func (d *DAGStore) write(c *commit) {
	// A fault of the machine must not get into the journal, which would then never
	// open again.
	if c.err = d.cat.Check(c.events); c.err != nil {
		return
	}
	if planted.Bug("store-shows-before-durable") {
		_ = d.views.Commit(&journal.Batch{Events: c.events, End: journal.Position{Seq: c.events[len(c.events)-1].Seq}})
	}
	if c.pos, c.err = d.journal.Append(c.events); c.err != nil || planted.Bug("store-shows-before-durable") {
		return
	}
	if err := d.views.Commit(&journal.Batch{Events: c.events, End: c.pos}); err != nil {
		panic(err) // checked above, and nobody else applies
	}
}

// committed does what waited for a batch.
func (e *eventLoop) committed(c *commit) {
	e.flying = nil
	if c.err != nil {
		e.commitFailed(c)
		return
	}
	e.durable = c.pos.Seq
	for i := range c.steps {
		p := &c.steps[i]
		ev := &c.events[p.event]
		lv := p.lv
		lv.busy, lv.before = false, nil
		lv.s.Gen, lv.seq = ev.Gen, ev.Seq
		lv.s.Recorded(ev.Seq)
		switch ev.Kind {
		case shard.EventRegistered:
			e.nowDurable(lv)
		case shard.EventIndexed:
			lv.was = ev.State.Index
		}
		e.publish(lv)
		for j := p.traces.from; j < p.traces.to; j++ {
			e.trace(lv, &c.traces[j])
		}
		for j := p.replies.from; j < p.replies.to; j++ {
			e.answer(c.replies[j].req, &c.replies[j].Reply, lv, durable{ev.Seq, c.pos})
		}
		for j := p.effects.from; j < p.effects.to; j++ {
			e.effect(lv, &c.effects[j], durable{ev.Seq, c.pos})
		}
		e.resumeDeferred(lv)
		e.rest(lv)
	}
	e.recycle(c)
	e.next()
}

// next goes on after a batch: with the following one, or with shutting down.
func (e *eventLoop) next() {
	if e.closing {
		e.refuseAll()
		return
	}
	e.drain()
	e.send()
}

// resumeDeferred queues what came while the shard was busy.
func (e *eventLoop) resumeDeferred(lv *live) {
	e.internal = append(e.internal, lv.deferred...)
	clear(lv.deferred)
	lv.deferred = lv.deferred[:0]
}

// commitFailed undoes the steps of a batch that is not durable. If the journal
// says that nothing was written and that it can go on, so does the store.
func (e *eventLoop) commitFailed(c *commit) {
	goesOn := !errors.Is(c.err, journal.ErrOutcomeUnknown) && !errors.Is(c.err, journal.ErrReadOnly) &&
		!errors.Is(c.err, journal.ErrClosed) && e.d.journal.Head().Seq == e.seq-uint64(len(c.events))
	e.d.log.Error("journal: append failed", "events", len(c.events), "goes on", goesOn, "err", c.err)
	e.d.health.refusedAppend(len(c.events), c.err)
	failed := []*commit{c}
	if goesOn || planted.Bug("store-goes-on-after-unknown") {
		if !planted.Bug("store-seq-not-given-back") {
			e.seq -= uint64(len(c.events))
		}
	} else {
		e.failed = c.err
		e.d.health.setReadOnly(c.err)
		e.net.SetReadOnly(e.now, e.durable)
		failed = append(failed, e.outbox...)
		e.outbox = nil
	}
	for _, c := range failed {
		for i := range c.steps {
			e.undo(c, &c.steps[i])
		}
	}
	if e.net.ReadOnly {
		for _, key := range slices.SortedFunc(maps.Keys(e.d.mu.hot), shard.Key.Compare) {
			lv := e.d.mu.hot[key]
			e.internal = append(e.internal, input{lv: lv, trig: fsm.Freeze})
		}
	}
	e.next()
}

// undo takes back a step whose event is not durable, and then tells everybody who
// would have been answered by it, or waits for the shard.
func (e *eventLoop) undo(c *commit, p *pendingStep) {
	lv := p.lv
	before := lv.before
	if lv.before = nil; before == nil {
		before = &fsm.Shard{}
	}
	e.out.Reset()
	var waiting []fsm.Ticket
	if !planted.Bug("store-refused-change-kept") {
		waiting = e.net.Revert(&lv.s, before, e.now, e.durable, &e.out)
	}
	for _, s := range e.out.Wake {
		e.internal = append(e.internal, input{lv: s.Owner.(*live), trig: fsm.Auto})
	}
	lv.busy = false
	e.nowDurable(lv)
	e.publish(lv)

	cause := fmt.Errorf("%s: the change could not be recorded: %w", lv.key, e.commitCause(c.err))
	for _, a := range c.replies[p.replies.from:p.replies.to] {
		e.answerError(a.req, cause)
	}
	for _, eff := range c.effects[p.effects.from:p.effects.to] {
		waiting = append(waiting, eff.Ticket)
	}
	for _, t := range waiting {
		if req := e.parked[t]; req != nil {
			e.answerError(req, cause)
		}
	}
	e.resumeDeferred(lv)
	e.rest(lv)
}

func (e *eventLoop) commitCause(err error) error {
	if e.failed != nil {
		return asReadOnly(e.failed)
	}
	return fmt.Errorf("the journal refused it and goes on: %w", err)
}
