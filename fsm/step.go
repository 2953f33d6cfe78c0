package fsm

import (
	"math/bits"

	"github.com/dagstore/dagstore/internal/planted"
)

// machine is a table, compiled.
type machine struct {
	rows []*Transition
	// byTrigger lists the rows of each trigger in table order.
	byTrigger [numTriggers][]*Transition
	// autos are the rows of Auto; a set of them is a bit mask over their places here.
	autos []*Transition
}

// theMachine is the compiled table of this package. The model check compiles
// others: the mutants.
var theMachine machine

func init() { theMachine.compile(table) }

// compile derives from the rows what Step needs. It changes them.
func (m *machine) compile(rows []*Transition) {
	*m = machine{rows: rows}
	for _, t := range rows {
		m.byTrigger[t.On] = append(m.byTrigger[t.On], t)
		if t.On == Auto {
			t.slotless = nil
			for _, g := range t.Guards {
				if g.slot == NoSlot {
					t.slotless = append(t.slotless, g)
				}
			}
		}
	}
	m.autos = m.byTrigger[Auto]
	for _, t := range rows {
		t.wakes = 0
		for i, a := range m.autos {
			if a.guardReads()&t.Writes != 0 {
				t.wakes |= 1 << i
			}
		}
	}
}

func (t *Transition) guardReads() (set Places) {
	for _, g := range t.Guards {
		set |= g.Reads
	}
	return set
}

func allHold(guards []*Guard, n *Net, s *Shard, in *Input) bool {
	for _, g := range guards {
		if !g.holds(n, s, in) {
			return false
		}
	}
	return true
}

// Step applies one input to shard s and adds what follows from it to out. With
// Auto as the trigger it only evaluates the automatic transitions. It reports
// whether a row of the trigger fired; that none does cannot happen, and is worth a
// panic of the caller.
func (n *Net) Step(s *Shard, in *Input, out *Out) bool {
	s.wrote, s.cut, n.now = 0, 0, stamp{in.Time, in.Seq}
	if in.Trigger == Auto {
		n.settle(s, in, out, 1<<len(n.m.autos)-1)
		return true
	}
	for _, t := range n.m.byTrigger[in.Trigger] {
		if allHold(t.Guards, n, s, in) {
			n.fire(t, s, in, out)
			n.settle(s, in, out, t.wakes)
			return true
		}
	}
	return false
}

// settle fires automatic transitions until none is enabled. Only those that read
// a place which changed are looked at: the given ones, and whatever those wake. A
// shard that lacks nothing but a token joins the queue of its place.
func (n *Net) settle(s *Shard, in *Input, out *Out, pending uint16) {
	n.leaveUnwanted(s, in, out)
	for pending != 0 {
		i := bits.TrailingZeros16(pending)
		pending &^= 1 << i
		t := n.m.autos[i]
		if !allHold(t.slotless, n, s, in) {
			continue
		}
		if t.Slot != NoSlot && !n.admits(t.Slot, s) {
			n.join(s, t.Slot)
			continue
		}
		n.fire(t, s, in, out)
		pending |= t.wakes
	}
	n.leaveUnwanted(s, in, out)
}

// leaveUnwanted takes the shard out of a queue if it no longer lacks nothing but
// the token, having got it or not wanting it, and wakes who is next if there is a
// token for them. No outcome leaves a queue.
func (n *Net) leaveUnwanted(s *Shard, in *Input, out *Out) {
	if s.Queued == NoSlot {
		return
	}
	for _, t := range n.m.autos {
		if t.Slot == s.Queued && allHold(t.slotless, n, s, in) {
			return
		}
	}
	n.leave(s, out)
}

func (n *Net) leave(s *Shard, out *Out) {
	slot := s.Queued
	if slot == NoSlot {
		return
	}
	n.slots[slot].queue.remove(s)
	n.touch(slot.place()) // a join does not count: it changes the guard of nobody
	s.Queued = NoSlot
	n.wakeHead(slot, out)
}

func (n *Net) fire(t *Transition, s *Shard, in *Input, out *Out) {
	out.Fired = append(out.Fired, t)
	n.st = step{net: n, s: s, in: in, out: out}
	st := &n.st
	if n.watch == nil {
		t.do(st)
	} else {
		n.watch(t, st)
	}
	written := t.Writes & (1<<numShardPlaces - 1)
	s.stamp(written, n.now)
	s.wrote |= written
	if t.Op != OpNone {
		st.trace(t.Op)
	}
}

func (t *step) trace(op Op) {
	if t.out.Trace {
		s := t.s
		t.out.Traces = append(t.out.Traces, Traced{Op: op, Life: s.Life, Refs: s.Refs, Parked: s.acquires(), Cause: s.Cause})
	}
}

// Jobs and their tokens.

// slotOf is the place that a running job holds a token of.
func (s *Shard) slotOf() Slot {
	if s.slow {
		return NoSlot
	}
	switch s.job {
	case JobProbe, JobOpen:
		return OpenSlot
	case JobIndex:
		return IndexSlot
	case JobFetch:
		return FetchSlot
	}
	return NoSlot
}

func (t *step) start(job Job, slot Slot) {
	s := t.s
	s.job, s.slow = job, job == JobFetch && slot == NoSlot
	s.Attempt++
	s.began = t.net.now
	if slot != NoSlot {
		t.net.slots[slot].holders = append(t.net.slots[slot].holders, s)
		t.net.touch(slot.place())
		if planted.Bug("fsm-token-counted-twice") {
			t.net.slots[slot].holders = append(t.net.slots[slot].holders, s)
		}
	}
	fresh := s.Fresh && (job == JobProbe || job == JobFetch)
	t.out.Effects = append(t.out.Effects, Effect{Kind: StartJob, Job: job, Attempt: s.Attempt, Fresh: fresh})
}

// endJob ends the running job and gives its token back.
func (t *step) endJob() {
	slot := t.s.slotOf()
	t.s.job, t.s.slow, t.s.stale = JobNone, false, false
	if slot != NoSlot && !(planted.Bug("fsm-token-leaked-at-failure") && t.in.Err != nil) {
		t.net.giveBack(slot, t.s, t.out)
	}
}

// giveBack returns the token of s.
func (n *Net) giveBack(slot Slot, s *Shard, out *Out) {
	n.slots[slot].drop(s)
	n.touch(slot.place())
	n.wakeHead(slot, out)
}

// admits says whether s may take a token now: there is one, and it is not meant
// for somebody ahead in the queue.
func (p *slotPlace) admits(s *Shard, queued bool) bool {
	free := p.cap - p.used()
	if free <= 0 {
		return false
	}
	if !queued {
		return p.queue.n < free
	}
	return p.queue.index(s, free) < free
}

func (n *Net) admits(slot Slot, s *Shard) bool { return n.slots[slot].admits(s, s.Queued == slot) }

// join puts s at the end of the queue, unless it stands there. It stands in no
// other: it would lack more than that token.
func (n *Net) join(s *Shard, slot Slot) {
	if s.Queued == slot {
		return
	}
	s.Queued = slot
	n.slots[slot].queue.push(s)
}

// wakeHead asks for the evaluation of the first in the queue if a token is free.
func (n *Net) wakeHead(slot Slot, out *Out) {
	if p := &n.slots[slot]; p.used() < p.cap && p.queue.n > 0 && !planted.Bug("fsm-wake-up-missed") {
		out.Wake = append(out.Wake, p.queue.first())
	}
}
