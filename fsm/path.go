package fsm

import (
	"fmt"
	"strings"

	"github.com/dagstore/dagstore/shard"
)

// Goal is where a path leads.
type Goal uint8

const (
	// GoalAccessor: an acquire is answered with an accessor.
	GoalAccessor Goal = iota
	// GoalAvailable: the shard is available.
	GoalAvailable
	// GoalGone: the shard has no life.
	GoalGone
	// GoalReclaimed: there is no local copy that the store made.
	GoalReclaimed

	numGoals
	goalAnswer = numGoals // the request of a given ticket succeeds
)

var goalNames = [numGoals]string{"an acquire is answered", "the shard is available", "the shard is gone", "the copy is reclaimed"}

func (g Goal) String() string { return goalNames[g] }

// MarshalText encodes the goal as its name.
func (g Goal) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// PathStep is one thing that has to happen on the way to a goal, and what the
// machine does then of itself.
type PathStep struct {
	// Trigger is the input, or "token": others give tokens of a slot back, or
	// "reopen": the store is opened anew.
	Trigger string `json:"trigger"`
	// Times is how often it has to happen.
	Times int `json:"times"`
	// By is who makes it happen.
	By string `json:"by"`
	// WaitsFor says what the step waits for.
	WaitsFor string `json:"waitsFor"`
	// Fires names the transitions, that of the input first.
	Fires []string `json:"fires,omitempty"`
	// Records are the events that must become durable before anything of it shows.
	Records []string `json:"records,omitempty"`
	// Else says what comes instead if the step does not go as hoped.
	Else string `json:"else,omitempty"`

	in   Input
	slot Slot // that tokens are given back of
}

// String renders the step as one line.
func (p PathStep) String() string {
	text := p.WaitsFor + ", by " + p.By
	if len(p.Fires) > 0 {
		text += " → " + strings.Join(p.Fires, ", ")
	}
	if len(p.Records) > 0 {
		text += " (records " + strings.Join(p.Records, ", ") + ")"
	}
	if p.Else != "" {
		text += "; else " + p.Else
	}
	return text
}

// maxPathStates bounds a search. The state of one shard takes some hundred.
const maxPathStates = 4096

// Path finds the shortest way from where s stands to the goal: the inputs that have to
// come, in order, if all goes well. It executes the table on copies and changes
// nothing. There is one from every state, so ok is false only if the search gave up.
//
// The other shards are seen only where they are in the way: if they hold or want all
// tokens of a slot, the path waits for as many as have to come back first. What they
// may come to want later is not foreseen. Requests that do not help towards the goal
// are not tried: no path to an accessor destroys the shard.
func Path(n *Net, s *Shard, goal Goal) (steps []PathStep, ok bool) { return search(n, s, goal, 0) }

// PathOf finds the shortest way to a successful answer of the ticket, which waits for
// s. What would take it off the shard unanswered is not on it: other requests, and a
// restart. That there is none is possible: an acquire that forbids a download is
// refused if the probe must not find a copy.
func PathOf(n *Net, s *Shard, t Ticket) (steps []PathStep, ok bool) {
	return search(n, s, goalAnswer, t)
}

func search(n *Net, s *Shard, goal Goal, t Ticket) (steps []PathStep, ok bool) {
	start := newPathNode(n, s, t)
	if start.at(goal) {
		return nil, true
	}
	seen := map[pathKey]struct{}{start.key(): {}}
	queue := []*pathNode{start}
	next := new(pathNode)
	for head := 0; head < len(queue) && len(queue) < maxPathStates; head++ {
		from := queue[head]
		for _, p := range from.inputs(goal) {
			from.cloneInto(next)
			next.from, next.step = from, p
			for _, r := range next.apply() {
				ok = ok || goal == GoalAccessor && r.Accessor || goal == goalAnswer && r.Ticket == t && r.Code == OK
			}
			if ok || next.at(goal) {
				return next.steps(), true
			}
			k := next.key()
			if _, old := seen[k]; !old {
				seen[k] = struct{}{}
				queue = append(queue, next)
				next = new(pathNode)
			}
		}
	}
	return nil, false
}

// pathNode is a state on the way: the shard, and a net with one token per slot. What
// others do to the shard is in claims.
type pathNode struct {
	net   Net
	s     Shard
	other [numSlots]Shard // stands for the others, where they take the token
	// claims is how many tokens have to come back before the shard can have one.
	claims [numSlots]int
	from   *pathNode
	step   PathStep // that led here
}

// pathTicket is the acquire of a path. Nobody wants the answers to its other requests.
const pathTicket = ^Ticket(0)

func newPathNode(n *Net, s *Shard, t Ticket) *pathNode {
	p := &pathNode{s: *s}
	p.net.m, p.net.ReadOnly = n.m, n.ReadOnly
	// No guard asks how many wait.
	p.s.Parked, p.s.Local, p.s.Waiting, p.s.Ending = oneOf(s.Parked, t), oneOf(s.Local, t), oneOf(s.Waiting, t), oneOf(s.Ending, t)
	p.s.Owner = nil
	for slot := FetchSlot; slot < numSlots; slot++ {
		real, q := &n.slots[slot], &p.net.slots[slot]
		q.cap = 1
		free := real.cap - real.used()
		mine := s.slotOf() == slot
		if s.Queued == slot {
			p.claims[slot] = max(real.queue.index(s, real.queue.n)+1-free, 0)
		} else {
			p.claims[slot] = max(real.queue.n+1-free-flags(mine), 0)
		}
		claimed := p.claims[slot] > 0
		switch {
		case mine && claimed:
			q.holders = []*Shard{&p.s}
			q.queue.push(&p.other[slot])
		case mine:
			q.holders = []*Shard{&p.s}
		case claimed:
			q.holders = []*Shard{&p.other[slot]}
		}
		if s.Queued == slot {
			q.queue.push(&p.s)
		}
	}
	return p
}

// oneOf keeps t of ts, or else the first.
func oneOf(ts []Ticket, t Ticket) []Ticket {
	if has(ts, t) {
		return []Ticket{t}
	}
	return cloned(ts[:min(len(ts), 1)])
}

// cloneInto copies p to c and uses the memory that c has.
func (p *pathNode) cloneInto(c *pathNode) {
	moved := func(x *Shard) *Shard {
		if x == &p.s {
			return &c.s
		}
		for slot := range p.other {
			if x == &p.other[slot] {
				return &c.other[slot]
			}
		}
		panic("fsm: a stranger on a path")
	}
	slots, s := c.net.slots, c.s
	*c = *p
	c.net.st = step{}
	for slot := range c.net.slots {
		from, to := &p.net.slots[slot], &c.net.slots[slot]
		to.holders, to.queue = slots[slot].holders[:0], fifo{items: slots[slot].queue.items[:0]}
		for _, x := range from.holders {
			to.holders = append(to.holders, moved(x))
		}
		for _, x := range from.queue.items[from.queue.head:] {
			if x != nil {
				to.queue.push(moved(x))
			}
		}
	}
	c.s.Parked = append(s.Parked[:0], p.s.Parked...)
	c.s.Local = append(s.Local[:0], p.s.Local...)
	c.s.Waiting = append(s.Waiting[:0], p.s.Waiting...)
	c.s.Ending = append(s.Ending[:0], p.s.Ending...)
}

// pathKey identifies a node up to the names of attempts, tickets and times.
type pathKey struct {
	life                             shard.Life
	data                             Data
	index                            Index
	handle                           Handle
	job                              Job
	queued                           Slot
	refs                             int32
	parked, local, waiting, reclaims bool
	ending, readOnly                 bool
	bits                             int
	ail                              Ailment
	claims                           [numSlots]int
}

func (p *pathNode) key() pathKey {
	s := &p.s
	return pathKey{
		s.Life, s.Data, s.Index, s.Handle, s.job, s.Queued, s.Refs,
		len(s.Parked) > 0, len(s.Local) > 0, len(s.Waiting) > 0, s.Reclaimer != 0, len(s.Ending) > 0, p.net.ReadOnly,
		flags(s.Lazy, s.Eager, s.Owned, s.Healing, s.Fresh, s.Retried, s.Resting, s.Cause != nil, s.slow, s.stale), s.Ail, p.claims,
	}
}

// at says whether the state is the goal. That an acquire was answered is seen in
// what a step replies.
func (p *pathNode) at(goal Goal) bool {
	s := &p.s
	switch goal {
	case GoalAvailable:
		return s.Life == shard.Available
	case GoalGone:
		return s.Life == shard.None
	case GoalReclaimed:
		return s.Data != Removing && !(s.Data == Present && s.Owned)
	}
	return false
}

// inputs lists what may help towards the goal, in the order in which it is tried.
func (p *pathNode) inputs(goal Goal) (ps []PathStep) {
	s := &p.s
	ask := func(on Trigger, times int, waitsFor string) {
		p := PathStep{Times: times, By: "a caller", WaitsFor: waitsFor, in: Input{Trigger: on}}
		if on == Acquire {
			p.in.Ticket = pathTicket
		}
		ps = append(ps, p)
	}
	if p.from == nil && p.enabled() {
		ps = append(ps, PathStep{Times: 1, By: "the store", WaitsFor: "its turn", in: Input{Trigger: Auto}})
	}
	switch goal {
	case GoalAccessor, GoalAvailable:
		switch {
		case goal == GoalAccessor && len(s.Ending) > 0:
			ask(Cancel, 1, "the giving up of the destruction")
			ps[len(ps)-1].in.Ticket = s.Ending[0]
		case s.Life == shard.None:
			ask(Register, 1, "a registration")
		case len(s.Parked) == 0:
			ask(Acquire, 1, "an acquire")
		}
		if gRecoverable.holds(&p.net, s, &Input{}) || s.Life == shard.Registered && s.Ail != Well {
			ask(Recover, 1, "a recover request")
		}
	case GoalGone, GoalReclaimed:
		if s.Refs > 0 {
			ask(Release, int(s.Refs), "the closing of "+counted(int(s.Refs), "accessor"))
		}
		if goal == GoalGone {
			ask(Destroy, 1, "a destroy request")
		} else {
			ask(Reclaim, 1, "a collection of local copies")
		}
	case goalAnswer:
		if len(s.Ending) > 0 && s.Refs > 0 {
			ask(Release, int(s.Refs), "the closing of "+counted(int(s.Refs), "accessor"))
		}
	}
	if s.Resting && goal != GoalGone {
		ps = append(ps, PathStep{Times: 1, By: "the store", WaitsFor: "the end of the pause after the try that failed", in: Input{Trigger: Retry}})
	}
	ps = p.endings(ps)
	if slot := s.Queued; slot != NoSlot && p.claims[slot] > 0 {
		ps = append(ps, PathStep{
			Trigger: "token", Times: p.claims[slot], By: "other shards", slot: slot,
			WaitsFor: "the return of " + counted(p.claims[slot], slot.String()+" token"),
		})
	}
	if p.net.ReadOnly && goal != GoalReclaimed && goal != goalAnswer {
		ps = append(ps, PathStep{Trigger: "reopen", Times: 1, By: "the operator", WaitsFor: "the store opened anew, its journal writable"})
	}
	return ps
}

// counted renders n things.
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// endings appends how the running job may end well.
func (p *pathNode) endings(ps []PathStep) []PathStep {
	s := &p.s
	if s.job == JobNone {
		return ps
	}
	end := PathStep{Times: 1, By: "the store", in: Input{Trigger: doneOf[s.job], Attempt: s.Attempt}}
	switch s.job {
	case JobProbe:
		end.By, end.WaitsFor = "the source", "the probe's answer that the source is ready"
	case JobFetch:
		end.By, end.WaitsFor = "the source", "the end of the fetch"
	case JobIndex:
		end.WaitsFor = "the end of the scan"
	case JobOpen:
		end.WaitsFor = "the end of the open"
	case JobRemove:
		end.WaitsFor = "the end of the removal"
	}
	if s.stale {
		end.WaitsFor = "the end of the former life's " + s.job.String() + " job"
		return append(ps, end)
	}
	if s.job != JobProbe {
		return append(ps, end)
	}
	ready := end
	ready.in.Ready = true
	if !s.Fresh { // which removes what is there first
		end.WaitsFor, end.in.Present, end.in.Owned = "the probe's answer that a copy is there", true, true
		end.Else = "a fetch, if there is none"
		ps = append(ps, end)
	}
	return append(ps, ready)
}

// enabled says that an automatic transition is.
func (p *pathNode) enabled() bool {
	for _, t := range p.net.m.autos {
		if allHold(t.Guards, &p.net, &p.s, &Input{}) {
			return true
		}
	}
	return false
}

// apply makes the step of p and returns the answers that it gives.
func (p *pathNode) apply() []Reply {
	var out Out
	st := &p.step
	switch st.Trigger {
	case "token":
		p.claims[st.slot] = 0
		p.net.giveBack(st.slot, &p.other[st.slot], &out)
		p.net.Step(&p.s, &Input{Trigger: Auto}, &out)
	case "reopen":
		p.reopen(&out)
	default:
		st.Trigger = st.in.Trigger.String()
		for range st.Times {
			p.net.Step(&p.s, &st.in, &out)
		}
	}
	for slot := range p.other { // the others take what they claim
		if q := &p.net.slots[slot]; q.queue.n > 0 && q.queue.first() == &p.other[slot] && q.used() < q.cap {
			q.queue.remove(&p.other[slot])
			q.holders = append(q.holders, &p.other[slot])
		}
	}
	for _, t := range out.Fired {
		if len(st.Fires) == 0 || st.Fires[len(st.Fires)-1] != t.Name {
			st.Fires = append(st.Fires, t.Name)
		}
	}
	for _, e := range out.Effects {
		if e.Kind == Sweep {
			out.Replies = append(out.Replies, Reply{Ticket: e.Ticket})
		}
	}
	for _, e := range out.Events {
		st.Records = append(st.Records, e.Kind.String())
	}
	return out.Replies
}

// reopen leaves of the shard what is durable, or what that can only be.
func (p *pathNode) reopen(out *Out) {
	old := p.s
	fresh := Shard{Gen: old.Gen, Life: old.Life, Lazy: old.Lazy, Cause: old.Cause, Attempt: old.Attempt}
	if old.Data == Direct {
		fresh.Data = Direct
	}
	switch old.Life {
	case shard.Initialising:
		fresh.Life = shard.Registered
	case shard.Available:
		fresh.Index, fresh.Info = Indexed, old.Info
	}
	if fresh.Life != shard.Errored && fresh.Life != shard.Recovering {
		fresh.Cause = nil
	}
	p.s, p.claims = fresh, [numSlots]int{}
	net := Net{m: p.net.m}
	for slot := FetchSlot; slot < numSlots; slot++ {
		net.slots[slot].cap = 1
	}
	p.net = net
	p.net.Step(&p.s, &Input{Trigger: Resume}, out)
}

// steps lists how p was reached.
func (p *pathNode) steps() []PathStep {
	n := 0
	for x := p; x.from != nil; x = x.from {
		n++
	}
	steps := make([]PathStep, n)
	for x := p; x.from != nil; x = x.from {
		n--
		steps[n] = x.step
	}
	return steps
}
