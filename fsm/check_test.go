package fsm

import (
	"fmt"
	"slices"

	"github.com/dagstore/dagstore/shard"
)

// checker holds a machine against its invariants, one state and one outcome at a
// time. It knows nothing of the table but the declarations that it checks.
type checker struct {
	m   *machine
	err string

	states, edges int
	fired         map[*Transition]int
	// wrote and emitted are what the rows were seen to do.
	wrote   map[*Transition]Places
	emitted map[*Transition]map[shard.Kind]bool
	scratch world
	fires   int // in the running step, against endless ones
	// thorough asks for what the mutants need not pay for: places perturbed, pairs
	// tried in both orders, explanations compared, the way to an error told.
	thorough bool
	// pairs of inputs to different shards, whose steps share no place or do.
	commuting, conflicting int
}

func newChecker(m *machine) *checker {
	return &checker{
		m: m, fired: map[*Transition]int{}, wrote: map[*Transition]Places{},
		emitted: map[*Transition]map[shard.Kind]bool{},
	}
}

func (c *checker) fail(format string, args ...any) {
	if c.err == "" {
		c.err = fmt.Sprintf(format, args...)
	}
}

// run walks cfg and reports what is wrong, if anything.
func (c *checker) run(cfg *config, limit int) (err string) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Sprintf("panic: %v", r)
		}
	}()
	var last string
	walk(c.m, cfg, limit, c.watch, func(w *world) bool {
		c.states++
		c.state(w)
		if c.thorough && c.states%sampled == 0 {
			c.pairs(w)
			c.explained(w)
		}
		if c.err != "" && c.thorough {
			last = trace(c.m, cfg, limit, w.key())
		}
		return c.err == ""
	}, func(from *world, mv move, to *world, known bool) bool {
		c.edges++
		c.fires = 0
		if to.broken != "" {
			c.fail("%s", to.broken)
		}
		if c.err != "" && c.thorough {
			last = trace(c.m, cfg, limit, from.key()) + "\n  " + mv.String() + "   <-- here"
		}
		return c.err == ""
	}, nil)
	return c.err + last
}

// trace returns the moves that lead to the state.
func trace(m *machine, cfg *config, limit int, to worldKey) (text string) {
	type origin struct {
		key worldKey
		mv  move
	}
	from := map[worldKey]origin{}
	walk(m, cfg, limit, nil, nil, func(w *world, mv move, next *world, known bool) bool {
		if !known {
			from[next.key()] = origin{w.key(), mv}
		}
		return next.key() != to
	}, nil)
	for {
		o, ok := from[to]
		if !ok {
			return text
		}
		text, to = "\n  "+o.mv.String()+text, o.key
	}
}

// marking is the content of every place, as numbers that can be compared.
type marking [numPlaces]uint64

func mark(n *Net, s *Shard) (m marking) {
	m[PlaceLife] = uint64(s.Life) | s.Gen<<8
	m[PlaceData] = uint64(s.Data) | uint64(flags(s.Owned))<<8
	m[PlaceIndex] = uint64(s.Index) | s.Info.Blocks<<8
	m[PlaceHandle] = uint64(s.Handle)
	m[PlaceRefs] = uint64(uint32(s.Refs))
	m[PlaceParked] = uint64(code(s.Parked)) | uint64(code(s.Local))<<32
	m[PlaceWaiting] = uint64(code(s.Waiting)) | uint64(s.Reclaimer)<<32
	m[PlaceEnding] = uint64(code(s.Ending))
	m[PlaceFault] = uint64(flags(s.Healing, s.Fresh, s.Retried, s.Cause != nil)) | uint64(s.Ail)<<8
	m[PlaceRest] = uint64(flags(s.Resting))
	m[PlaceWish] = uint64(flags(s.Lazy, s.Eager))
	m[PlaceJob] = uint64(s.job) | uint64(flags(s.slow, s.stale))<<8 | uint64(s.Attempt)<<16
	for slot := FetchSlot; slot < numSlots; slot++ {
		p := &n.slots[slot]
		m[slot.place()] = uint64(uint32(p.used())) | uint64(p.queue.n)<<32 | uint64(flags(s.Queued == slot))<<48
	}
	m[PlaceJournal] = uint64(flags(n.ReadOnly))
	return m
}

func (m marking) diff(o marking) (set Places) {
	for p := range m {
		if m[p] != o[p] {
			set |= 1 << p
		}
	}
	return set
}

// limited runs one outcome, if the step has not run too many.
func (c *checker) limited(t *Transition, st *step) {
	if c.fires++; c.fires > 200 {
		panic("a step does not end")
	}
	t.do(st)
}

// watch runs one outcome and looks at it from both sides.
func (c *checker) watch(t *Transition, st *step) {
	if c.fires++; c.fires > 200 {
		panic("a step does not end")
	}
	c.fired[t]++
	c.exclusive(t, st)
	before := mark(st.net, st.s)
	replies, events, effects := len(st.out.Replies), len(st.out.Events), len(st.out.Effects)
	if p := &st.net.slots[t.Slot]; t.Slot != NoSlot && p.queue.n > 0 && p.queue.first() != st.s {
		c.fail("%s takes the token of somebody ahead in the queue", t.Name)
	}
	old := *st.s
	old.Parked, old.Local, old.Waiting, old.Ending = cloned(old.Parked), cloned(old.Local), cloned(old.Waiting), cloned(old.Ending)
	if c.thorough && (c.fired[t] < 40 || c.fired[t]%256 == 0) {
		c.perturbed(t, st)
	}
	t.do(st)
	after := mark(st.net, st.s)
	diff := before.diff(after)
	c.wrote[t] |= diff
	if undeclared := diff &^ t.Writes; undeclared != 0 {
		c.fail("N2: %s writes %v undeclared", t.Name, undeclared.List())
	}
	o := outDiff{
		replies: st.out.Replies[replies:],
		events:  st.out.Events[events:],
		effects: st.out.Effects[effects:],
	}
	c.outcome(t, st, &old, &o, diff)
}

type outDiff struct {
	replies []Reply
	events  []Event
	effects []Effect
}

// exclusive: of the rows of an input, exactly one is enabled; of the automatic
// ones, one at a time, so that their order in the table means nothing.
func (c *checker) exclusive(t *Transition, st *step) {
	for _, u := range c.m.byTrigger[t.On] {
		if u != t && allHold(u.Guards, st.net, st.s, st.in) {
			c.fail("both %s and %s are enabled", t.Name, u.Name)
		}
	}
}

// outcome checks what one row wanted and did. old is the shard before.
func (c *checker) outcome(t *Transition, st *step, old *Shard, o *outDiff, diff Places) {
	s := st.s
	granted := int32(0)
	for _, r := range o.replies {
		if r.Accessor {
			granted++
		}
		if why := misfit(r, t.On, old, s, st); why != "" {
			c.fail("%s answers %s: %s", t.Name, r.Code, why)
		}
	}
	if t.On == Release && old.Refs > 0 {
		granted--
	}
	cuts := t.On == Destroy && st.in.Patience == CutReaders && !st.net.ReadOnly
	if t.On == Supersede || cuts {
		granted -= old.Refs
	}
	if s.Refs-old.Refs != granted {
		c.fail("I5: %s changes refs by %d, but %d accessors came or went", t.Name, s.Refs-old.Refs, granted)
	}
	if c.emitted[t] == nil {
		c.emitted[t] = map[shard.Kind]bool{}
	}
	for _, e := range o.events {
		c.emitted[t][e.Kind] = true
		if !slices.Contains(t.Emits, e.Kind) {
			c.fail("%s emits %s undeclared", t.Name, e.Kind)
		}
	}
	notified := false
	for _, e := range o.effects {
		if e.Kind == NotifyFailure {
			notified = e.Cause != nil
		}
		if e.Kind == StartJob && e.Job == JobFetch && old.Life == shard.Available && len(old.Parked)+len(old.Waiting) == 0 {
			c.fail("%s fetches what nobody waits for", t.Name)
		}
	}
	if notified != (t.Op == OpFail) {
		c.fail("%s: tells of a failure: %t", t.Name, notified)
	}
	if why := c.missed(t, st, old, o); why != "" {
		c.fail("%s: %s", t.Name, why)
	}
	if t.On < ProbeDone {
		return
	}
	switch outputs := len(o.replies) + len(o.events) + len(o.effects); {
	case doneOf[old.job] != t.On || old.Attempt != st.in.Attempt:
		if diff != 0 || outputs != 0 {
			c.fail("N6: %s acts on an outdated completion", t.Name)
		}
	case old.stale:
		if diff&^places(PlaceJob, PlaceFetchSlots, PlaceIndexSlots, PlaceOpenSlots) != 0 || outputs != 0 {
			c.fail("N6: %s acts on the completion of a former life", t.Name)
		}
	}
}

// missed says what should have happened and did not, or must not and did.
func (c *checker) missed(t *Transition, st *step, old *Shard, o *outDiff) string {
	s, in, writable := st.s, st.in, !st.net.ReadOnly
	cuts := t.On == Destroy && in.Patience == CutReaders && writable
	emitted := func(kind shard.Kind) bool { return len(o.events) == 1 && o.events[0].Kind == kind }
	ours := !old.stale && old.job != JobNone && doneOf[old.job] == t.On && old.Attempt == in.Attempt
	failed := ours && in.Err != nil && t.On != RemoveDone
	// What goes on can be recorded. left is the life that a failure which passes leaves.
	goesOn := writable || old.Life == shard.Available
	left := old.Life
	if left == shard.Initialising && in.Fault == FaultPassing {
		left = shard.Registered
	}
	otherCopy := t.On == IndexDone && failed && in.Fault == FaultCopy && !old.Retried && writable
	pauses := in.Fault.passes() || old.Life == shard.Available && t.On != OpenDone
	for _, rule := range [...]struct {
		broken bool
		name   string
	}{
		{cuts && old.Refs > 0 && (len(o.effects) == 0 || o.effects[0].Kind != CutOff), "readers are not cut off"},
		{t.On == Destroy && in.Patience == AwaitReaders && old.Refs > 0 && writable && (!has(s.Ending, in.Ticket) || len(o.events) > 0), "readers are not waited for"},
		{t.On == CloseIdle && s.Handle == Open && s.Refs == 0, "an idle handle stays open"},
		{t.On == Damage && in.Fault == FaultCopy && old.Life == shard.Available && old.job == JobNone && (s.Data == Present || old.Data == Present && !s.Fresh), "a bad copy is trusted"},
		{t.On == Damage && in.Fault == FaultSource && old.Life == shard.Available && old.job == JobNone && (s.Ail != Changed || s.Cause != in.Err), "evidence is not noted"},
		{t.On == Damage && in.Fault.passes() && old.Life == shard.Available && old.job == JobNone && s.Handle == Open, "what cannot be read from stays open"},
		{t.On == Damage && in.Fault == FaultIndex && old.Life == shard.Available && old.job == JobNone && writable && !emitted(shard.EventRecovering), "damage is not mended"},
		{t.On == Supersede && s.Life != shard.None, "a life goes on that another hand changed"},
		{t.On == Supersede && len(o.events)+len(o.effects) != flags(old.Handle == Open)+flags(old.job != JobNone && !old.stale),
			"what another hand did is recorded or swept here, or its job goes on"},
		{t.On == Resume && old.Life == shard.Errored && in.Heal == HealNow && writable && !emitted(shard.EventRecovering), "not healed"},
		{t.On == Resume && old.Life == shard.Errored && s.Healing != (in.Heal == HealOnAcquire), "wrong policy"},
		{t.On == Resume && old.Life == shard.Registered && s.Eager == s.Lazy, "eager ⇔ not lazy"},
		{t.On == Recover && emitted(shard.EventRecovering) && s.Data == Present, "a recovery trusts the copy"},
		{t.On == OpenDone && ours && in.Err != nil && in.Fault == FaultCopy && !old.Retried && s.Data == Present, "a bad copy is trusted"},
		{failed && in.Fault.passes() && len(o.events) > 0, "a passing failure is held against the shard"},
		{failed && in.Fault.passes() && goesOn && s.Life != left, "a passing failure changes the life"},
		{failed && pauses && goesOn && !s.Resting, "tries again at once"},
		{failed && in.Fault == FaultPassing && goesOn && s.Ail != Away, "the source is away"},
		{failed && in.Fault == FaultShortage && goesOn && (s.Ail != Short || len(o.replies) > 0), "who waits for what is short is told"},
		{failed && in.Fault == FaultPassing && goesOn && s.acquires()+len(s.Waiting) > 0, "who waits for what is away is not told"},
		{failed && !in.Fault.passes() && s.Life == shard.Available && t.On != OpenDone && s.Ail != Changed, "evidence is not noted"},
		{t.On == Retry && s.Resting, "the pause does not end"},
		{t.On == Acquire && away(old) && (len(old.Ending) == 0 || old.Refs == 0) && (len(o.replies) != 1 || o.replies[0].Code != ErrAway), "who asks in the pause is not told"},
		{startsIn(o.effects) && s.Resting, "a job starts in the pause"},
		{t.On == Recover && s.Resting && writable && old.Life != shard.None, "a recovery waits for the end of the pause"},
		{t.On == Recover && old.Life == shard.Registered && old.Ail != Well && writable && !s.Eager, "a recovery is forgotten"},
		{t.On == OpenDone && ours && in.Err == nil && in.Changed != nil && (s.Ail != Changed || s.Cause != in.Changed), "evidence is not noted"},
		{t.On == OpenDone && ours && in.Err == nil && in.Changed == nil && s.Ail != Well, "ailing though it was opened"},
		{t.On == IndexDone && ours && in.Err == nil && writable && s.Ail != Well, "ailing though it was indexed"},
		{t.On == ProbeDone && ours && s.Data == Present && s.Owned != in.Owned, "the owner of the copy is mistaken"},
		{t.On == FetchDone && ours && s.Data == Present && !s.Owned, "a fetched copy is the store's"},
		{failed && !otherCopy && (t.On != OpenDone || in.Fault.passes()) && goesOn && s.Cause != in.Err, "the cause is lost"},
		{(t.On == ProbeDone || t.On == FetchDone || t.On == IndexDone) && ours && in.Err != nil && !otherCopy && s.Cause != in.Err, "the cause is lost"},
		{otherCopy && (s.Life != old.Life || len(o.events)+len(o.replies) > flags(len(old.Local) > 0)*len(old.Local)), "a bad copy is held against the shard"},
		{otherCopy && s.Data == Present, "a bad copy is trusted"},
		{t.On == Auto && !writable && (s.Life == shard.Initialising || s.Index == Building && old.Index != Building), "begins what cannot be recorded"},
	} {
		if rule.broken {
			return rule.name
		}
	}
	return ""
}

// startsIn says that a job is among the effects which is none of the removal's.
func startsIn(effects []Effect) bool {
	return slices.ContainsFunc(effects, func(e Effect) bool { return e.Kind == StartJob && e.Job != JobRemove })
}

// misfit says why r may not be given, in words that know nothing of the table.
func misfit(r Reply, on Trigger, old, s *Shard, st *step) string {
	in := st.in
	own := r.Ticket == in.Ticket
	ok := true
	switch r.Code {
	case OK:
		switch {
		case r.Accessor:
			ok = s.Life == shard.Available && s.Handle == Open
		case on == Register:
			ok = in.Lazy && s.Life == shard.Registered
		case on == Reclaim:
			ok = old.Data != Present || !old.Owned
		case on == RemoveDone:
			ok = in.Err == nil && s.Data == Absent
		default:
			ok = s.Life == shard.Available && (on == IndexDone || on == OpenDone)
		}
	case ErrExists:
		ok = own && on == Register && old.Life != shard.None
	case ErrUnknown:
		ok = own && old.Life == shard.None && (on == Acquire || on == Recover || on == Destroy) || !own && (on == Destroy || on == Auto) && s.Life == shard.None
	case ErrInUse:
		ok = own && on == Destroy && old.Refs > 0 && in.Patience == Refuse
	case ErrEnding:
		ok = own && on == Acquire && len(old.Ending) > 0 && old.Refs > 0
	case ErrNotErrored:
		ok = own && on == Recover && old.Life != shard.None && old.Life != shard.Errored && old.Life != shard.Recovering && old.Ail == Well
	case ErrErrored:
		ok = own && on == Acquire && old.Life == shard.Errored && r.Cause != nil
	case ErrFailed:
		ok = !own && on >= ProbeDone && (in.Err != nil && r.Cause == in.Err && !in.Fault.passes() || on == RemoveDone && r.Cause == in.Err ||
			on == OpenDone && in.Err == nil && r.Cause == in.Changed)
	case ErrAway:
		ok = r.Cause != nil && (own && on == Acquire && away(old) && r.Cause == old.Cause || !own && on >= ProbeDone && in.Fault == FaultPassing && r.Cause == in.Err)
	case ErrNoCopy:
		ok = old.Data != Direct && s.Data != Direct && (own && in.NoDownload || has(old.Local, r.Ticket))
	case ErrReadOnly:
		ok = st.net.ReadOnly
	case ErrSuperseded:
		ok = on == Supersede && !own && old.Life != shard.None && s.Life == shard.None
	case ErrBusy:
		ok = own && on == Reclaim && (old.Refs > 0 || old.acquires() > 0 || old.job != JobNone || old.Life == shard.Recovering || old.Life == shard.Initialising)
	}
	if ok {
		return ""
	}
	return fmt.Sprintf("life was %s, now %s", old.Life, s.Life)
}

// state checks the invariants that hold between steps.
func (c *checker) state(w *world) {
	n := &w.net
	for slot := FetchSlot; slot < numSlots; slot++ {
		used, members := 0, 0
		for i := range w.cfg.shards {
			if w.fates[i].token == slot {
				used++
			}
		}
		p := &n.slots[slot]
		for _, q := range p.queue.items[p.queue.head:] {
			if q != nil {
				members++
				if q.Queued != slot {
					c.fail("a shard stands in the %s queue and does not know", slot)
				}
			}
		}
		for i := range w.cfg.shards {
			if held := slices.Contains(p.holders, &w.shards[i]); held != (w.fates[i].token == slot) || held != (w.shards[i].slotOf() == slot) {
				c.fail("N5: shard %d is among the holders of %s tokens: %t", i, slot, held)
			}
		}
		if p.used() != used || used > p.cap {
			c.fail("N5: %d %s tokens are used, %d running jobs hold one", p.used(), slot, used)
		}
		if members != p.queue.n {
			c.fail("the %s queue counts %d, holds %d", slot, p.queue.n, members)
		}
	}
	for i := range w.cfg.shards {
		if why := c.shardState(w, i); why != "" {
			c.fail("%s", why)
		}
	}
	c.rests(w)
	if c.thorough {
		c.guards(w)
	}
}

// shardState says what is wrong with one shard, if anything.
func (c *checker) shardState(w *world, i int) string {
	s, f := &w.shards[i], &w.fates[i]
	holders, tickets := int32(0), 0
	for x, caller := range w.callers {
		if int(caller.at) != i {
			continue
		}
		switch t := caller.ticket(x); caller.asks {
		case holds:
			holders++
		case waits:
			tickets++
			if !has(s.Parked, t) && !has(s.Local, t) && !has(s.Waiting, t) && !has(s.Ending, t) && s.Reclaimer != t {
				return fmt.Sprintf("I1: ticket %d waits, and the machine does not know it", t)
			}
		}
	}
	known := len(s.Parked) + len(s.Local) + len(s.Waiting) + len(s.Ending) + flags(s.Reclaimer != 0)
	making := s.Life == shard.Initialising || s.Life == shard.Recovering
	life := s.Life
	if life == shard.Initialising {
		life = shard.Registered
	}
	current := !s.stale
	for _, rule := range [...]struct {
		broken bool
		name   string
	}{
		{s.Refs != holders, "I5: refs = accessors held"},
		{len(s.Ending) > 0 && (s.Refs == 0 || w.net.ReadOnly || s.Life == shard.None), "a destruction waits ⇒ accessors are open, and it can be recorded"},
		{known != tickets, "I1: a ticket is known twice, or after its answer"},
		{(s.Life == shard.Available) != (s.Index == Indexed), "I7: available ⇔ indexed"},
		{s.Handle == Open && (s.Life != shard.Available || !s.Data.readable()), "open ⇒ available and readable"},
		{f.open != (s.Handle == Open), "the handle is open ⇔ the machine thinks so"},
		{f.job != s.job, "the running job is the one that the machine thinks runs"},
		{s.stale && s.job == JobNone, "stale ⇒ a job runs"},
		{s.slow && s.job != JobFetch && s.job != JobProbe && s.job != JobOpen, "slow ⇒ a fetch, probe or open runs"},
		{(s.Data == Probing) != (s.job == JobProbe && current), "probing ⇔ a probe runs"},
		{(s.Data == Fetching) != (s.job == JobFetch && current), "fetching ⇔ a fetch runs"},
		{(s.Data == Removing) != (s.job == JobRemove && current), "removing ⇔ a removal runs"},
		{(s.Index == Building) != (s.job == JobIndex && current), "building ⇔ a scan runs"},
		{(s.Handle == Opening) != (s.job == JobOpen && current), "opening ⇔ an open runs"},
		{f.direct != (s.Data == Direct) && s.Life != shard.None, "direct ⇔ the source is read in place"},
		{s.Owned && s.Data != Present && s.Data != Removing, "owned ⇒ a copy"},
		{len(s.Local) > 0 && !s.Data.maybeCopied(), "local ≠ ∅ ⇒ a copy is possible"},
		{(s.Life == shard.Errored || s.Life == shard.Recovering) && s.Cause == nil, "errored or recovering ⇒ a cause"},
		{s.Ail != Well && (s.Life == shard.Errored || s.Cause == nil), "ailing ⇒ not errored, a cause"},
		{(s.Ail == Away || s.Ail == Short) && s.Handle == Open, "away or short ⇒ not open"},
		{s.Ail == Changed && s.Life != shard.Available, "changed ⇒ available"},
		{s.Resting && (s.Ail == Well || s.job != JobNone && s.job != JobRemove && !s.stale), "resting ⇒ ailing, and no job but a removal or a former life's"},
		{s.Cause != nil && s.Ail == Well && s.Life != shard.Errored && s.Life != shard.Recovering &&
			!(s.Life == shard.Registered && w.net.ReadOnly), "a cause ⇒ errored, recovering or ailing"},
		{s.Healing && s.Life != shard.Errored, "healing ⇒ errored"},
		{s.Eager && (s.Life != shard.Registered || !w.net.ReadOnly), "eager ⇒ registered, and begun as soon as it can be recorded"},
		{(s.Fresh || s.Retried) && s.Life == shard.Errored, "fresh or retried ⇒ not errored"},
		{!w.net.ReadOnly && f.durable != life && (life != shard.Errored || f.durable != shard.Recovering), "N1: what is recorded is what is"},
		{(s.Data == Ready || s.Data == Slow) && len(s.Parked)+len(s.Waiting) == 0 && !making, "probed ⇒ somebody wants it"},
		{making && s.Idle(), "I10: an initialisation or recovery has a job or a place in a queue"},
		{s.Idle() && (f.job != JobNone || tickets > 0 || holders > 0), "idle ⇒ nothing volatile"},
		{s.Life == shard.None && (s.Data != Absent || s.Index != NoIndex || s.Handle != Closed || s.Lazy || s.Eager || s.Owned ||
			s.Healing || s.Fresh || s.Retried || s.Ail != Well || s.Resting || s.Queued != NoSlot || s.Cause != nil), "no life ⇒ nothing but a stale job"},
	} {
		if rule.broken {
			return "broken: " + rule.name
		}
	}
	return c.evaluated(w, i)
}

var noInput Input

// evaluated: a full evaluation of the automatic rows finds nothing to do (N8), and
// the shard stands in the queue of a slot exactly if it lacks only the token.
func (c *checker) evaluated(w *world, i int) string {
	s := &w.shards[i]
	if w.woken&(1<<i) != 0 {
		return "" // it will be
	}
	lacks := NoSlot
	for _, t := range c.m.autos {
		others := true
		for _, g := range t.Guards {
			others = others && (g.slot != NoSlot || g.holds(&w.net, s, &noInput))
		}
		switch {
		case !others:
		case allHold(t.Guards, &w.net, s, &noInput):
			return "N8: " + t.Name + " is enabled and was missed"
		default:
			lacks = t.Slot
		}
	}
	if s.Queued != lacks {
		return fmt.Sprintf("N8: lacks the %s token, stands in the %s queue", lacks, s.Queued)
	}
	return ""
}

// rests: once the running jobs and what they lead to have ended, however they end,
// nobody waits and no queue holds anybody (N4, I10).
func (c *checker) rests(w *world) {
	for variant := range 3 {
		end := w.cloneInto(&c.scratch)
		end.net.watch = c.limited
		for round := 0; ; round++ {
			if c.fires = 0; round > 60 {
				c.fail("N4: does not come to rest")
				return
			}
			if !end.finishOne(variant) {
				break
			}
			if end.broken != "" {
				c.fail("N4: on the way to rest: %s", end.broken)
				return
			}
		}
		for x, caller := range end.callers {
			if caller.asks == waits {
				c.fail("N4: ticket %d waits for ever (variant %d)", caller.ticket(x), variant)
			}
		}
		for slot := FetchSlot; slot < numSlots; slot++ {
			if used, _, waiting := end.net.Slots(slot); used+waiting != 0 {
				c.fail("N4: at rest, %d %s tokens are used and %d wait", used, slot, waiting)
			}
		}
	}
}

// finishOne ends one running job: well, badly, or any way that the variant takes.
func (w *world) finishOne(variant int) bool {
	for i := range w.cfg.shards {
		if w.woken&(1<<i) != 0 {
			w.apply(move{shard: i, in: Input{Trigger: Auto}}, nil)
			return true
		}
	}
	for i := range w.cfg.shards {
		ins := slices.DeleteFunc(w.completions(i), func(in Input) bool { return in.Err != nil && in.Fault == FaultShortage }) // shortages pass
		if len(ins) > 0 {
			in := ins[[...]int{0, len(ins) - 1, len(ins) / 2}[variant]]
			w.apply(move{shard: i, in: in}, nil)
			return true
		}
	}
	for i := range w.cfg.shards { // what waits for readers ends with them
		if s := &w.shards[i]; len(s.Ending) > 0 && s.Refs > 0 {
			w.apply(move{shard: i, in: Input{Trigger: Release}}, nil)
			return true
		}
	}
	for i := range w.cfg.shards {
		if s := &w.shards[i]; s.Resting && s.acquires()+len(s.Waiting) > 0 {
			w.apply(move{shard: i, in: Input{Trigger: Retry}}, nil)
			return true
		}
	}
	return false
}
