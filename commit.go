package dagstore

import (
	"errors"
	"fmt"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// commit is a batch of events and what is to be done when it is durable.
type commit struct {
	events []shard.Event
	steps  []pendingStep
	pos    journal.Position
	err    error
}

// pendingStep is what one step wants once its event is durable.
type pendingStep struct {
	lv      *live
	event   int // index in commit.events
	effects []fsm.Effect
	replies []answer
	traces  []fsm.Traced
}

type answer struct {
	req *request
	fsm.Reply
}

// record puts the step's event, and all that depends on it, into the outbox.
func (e *eventLoop) record(lv *live, req *request) {
	out := &e.out
	if e.outbox == nil {
		e.outbox = &commit{}
	}
	c := e.outbox
	p := pendingStep{lv: lv, event: len(c.events)}
	for _, ev := range out.Events {
		c.events = append(c.events, lv.event(ev, e.now))
	}
	p.effects = append(p.effects, out.Effects...)
	p.traces = append(p.traces, out.Traces...)
	answered := req == nil
	for _, r := range out.Replies {
		a := answer{Reply: r, req: e.parked[r.Ticket]}
		if req != nil && r.Ticket == req.ticket {
			answered, a.req = true, req
		}
		if a.req != nil {
			p.replies = append(p.replies, a)
		}
	}
	for i := range p.effects {
		if req != nil && p.effects[i].Ticket == req.ticket {
			answered = true
			e.parked[req.ticket] = req // answered by the sweep
		}
	}
	if !answered {
		e.park(req)
	}
	if lv.reg != nil {
		lv.reg.begun = true
	}
	lv.busy = true
	c.steps = append(c.steps, p)
}

// send gives the outbox to the journal if it is idle.
func (e *eventLoop) send() {
	if e.flying != nil || e.outbox == nil {
		return
	}
	c := e.outbox
	e.outbox = nil
	if len(c.steps) > maxBatchEvents {
		rest := &commit{}
		cut := c.steps[maxBatchEvents].event
		rest.events = append(rest.events, c.events[cut:]...)
		rest.steps = append(rest.steps, c.steps[maxBatchEvents:]...)
		for i := range rest.steps {
			rest.steps[i].event -= cut
		}
		c.events, c.steps = c.events[:cut], c.steps[:maxBatchEvents]
		e.outbox = rest
	}
	for i := range c.events {
		ev := &c.events[i]
		e.seq++
		ev.Seq = e.seq
		if ev.Kind == shard.EventRegistered {
			ev.Gen = ev.Seq
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
	if c.pos, c.err = d.journal.Append(c.events); c.err != nil {
		return
	}
	if err := d.cat.Apply(&journal.Batch{Events: c.events, End: c.pos}); err != nil {
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
	for i := range c.steps {
		p := &c.steps[i]
		ev := &c.events[p.event]
		lv := p.lv
		lv.busy = false
		lv.s.Gen, lv.seq = ev.Gen, ev.Seq
		if ev.Kind == shard.EventRegistered {
			e.nowDurable(lv)
		}
		e.publish(lv)
		for j := range p.traces {
			e.trace(lv, &p.traces[j])
		}
		for j := range p.replies {
			e.answer(p.replies[j].req, &p.replies[j].Reply, lv, ev.Seq)
		}
		for j := range p.effects {
			e.effect(lv, &p.effects[j], ev.Seq)
		}
		e.resumeDeferred(lv)
		e.rest(lv)
	}
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
	failed := []*commit{c}
	if goesOn {
		e.seq -= uint64(len(c.events))
	} else {
		e.failed, e.net.ReadOnly = c.err, true
		if e.outbox != nil {
			failed = append(failed, e.outbox)
			e.outbox = nil
		}
	}
	for _, c := range failed {
		for i := range c.steps {
			e.undo(&c.steps[i], c.events[c.steps[i].event].Kind)
		}
	}
	if e.net.ReadOnly {
		for _, lv := range e.d.mu.hot {
			e.internal = append(e.internal, input{lv: lv, trig: fsm.Freeze})
		}
	}
	e.next()
}

// undo takes back a step whose event is not durable and answers everybody who
// would have been answered by it, or waits for the shard.
func (e *eventLoop) undo(p *pendingStep, kind shard.Kind) {
	lv := p.lv
	cause := fmt.Errorf("the change could not be recorded: %w", e.commitCause())
	for _, a := range p.replies {
		e.answerError(a.req, fmt.Errorf("%s: %w", lv.key, cause))
	}
	for i := range p.effects {
		if req := e.parked[p.effects[i].Ticket]; req != nil {
			e.answerError(req, fmt.Errorf("%s: %w", lv.key, cause))
		}
	}
	e.out.Reset()
	for _, t := range e.net.Revert(&lv.s, &lv.before, &e.out) {
		if req := e.parked[t]; req != nil {
			e.answerError(req, fmt.Errorf("%s: %w", lv.key, cause))
		}
	}
	for _, s := range e.out.Wake {
		e.internal = append(e.internal, input{lv: s.Owner.(*live), trig: fsm.Auto})
	}
	lv.busy = false
	if kind == shard.EventRegistered {
		e.nowDurable(lv)
	}
	e.publish(lv)
	e.resumeDeferred(lv)
	e.rest(lv)
}

func (e *eventLoop) commitCause() error {
	if e.failed != nil {
		return fmt.Errorf("%w: %w", ErrReadOnly, e.failed)
	}
	return errors.New("the journal refused it and goes on")
}
