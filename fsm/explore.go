package fsm

import (
	"fmt"

	"github.com/dagstore/dagstore/shard"
)

// This file walks the machine: every state that a small configuration of shards
// and callers can reach. The diagrams are drawn from such a walk, and the model
// check in the tests asserts on one.

// config bounds a walk. All slot places have one token, or as many as tokens says.
type config struct {
	tokens          int
	shards, callers int
	pinned          bool // caller i asks only for shard i
	rival           bool // shard 1 only comes, takes tokens, and goes
	durable         bool // restarts, heal policies, the journal turning read-only
	hostile         bool // damage, closing of idle handles, copies of others
	late            bool // stray and outdated inputs
	delayed         bool // a shard that is to be woken is woken later
	lost            bool // appends that fail, for this step or from now on
	noDownload      bool // acquires that forbid a download
	direct, copied  bool // sources read in place, sources that need a copy
	reclaim, slow   bool
	ends            bool // destructions that wait for readers, or cut them off
	overdue         bool // probes and opens that take long
	mild            bool // no failures that pass
	follower        bool // read-only from the start: another hand writes the records
}

// oneShard is one shard with the given number of callers, and everything.
func oneShard(callers int) config {
	return config{
		shards: 1, callers: callers, durable: true, hostile: true, late: true, noDownload: true,
		direct: true, copied: true, reclaim: true, slow: true,
	}
}

// asking is what a caller is doing. Each has at most one request or one accessor.
type asking uint8

const (
	idle asking = iota
	waits
	holds
)

type caller struct {
	asks asking
	at   int8 // the shard, unless idle
}

func (c caller) ticket(i int) Ticket { return Ticket(i + 1) }

// fate is what is true of a shard outside the machine: what the journal says, and
// which job really runs.
type fate struct {
	durable      shard.Life
	lazy, direct bool
	job          Job
	token        Slot // that the job holds
	open         bool // the reader and the index are open
	// distrusted: whatever an earlier attempt left must not be used by the next
	// probe or fetch.
	distrusted bool
	// mended: a bad index or copy was found by an open and is being mended; a
	// second one in a row is not.
	mended bool
}

// world is a state of the whole configuration.
type world struct {
	net     Net
	shards  [2]Shard
	fates   [2]fate
	callers [3]caller
	cfg     *config
	// broken says which rule of the game was broken on the way here, if any.
	broken string
	// woken has a bit for each shard that is to be woken, if that may take time.
	woken uint8
	depth int // of steps that woke each other
	// wantMended: the move is a fault that must be mended, not recorded.
	wantMended bool
	// steps is memory for what a step takes and wants, for each depth. All worlds of
	// one walk share it.
	steps *[maxDepth + 1]struct {
		in  Input
		out Out
	}
}

const maxDepth = 20 // of steps that wake each other

func newWorld(m *machine, cfg *config) *world {
	w := &world{cfg: cfg}
	w.steps = new([maxDepth + 1]struct {
		in  Input
		out Out
	})
	w.net.m, w.net.ReadOnly = m, cfg.follower
	for s := FetchSlot; s < numSlots; s++ {
		w.net.slots[s].cap = max(cfg.tokens, 1)
	}
	return w
}

// clone copies the world; nothing is shared.
func (w *world) clone() *world { return w.cloneInto(new(world)) }

// cloneInto copies the world to c and uses the memory that c has.
func (w *world) cloneInto(c *world) *world {
	slots, shards := c.net.slots, c.shards
	*c = *w
	c.net.st = step{}
	for s := range c.net.slots {
		q := &c.net.slots[s].queue
		items := slots[s].queue.items[:0]
		for _, x := range q.items[q.head:] {
			if x != nil {
				items = append(items, &c.shards[w.indexOf(x)])
			}
		}
		*q = fifo{items: items, n: q.n}
		held := slots[s].holders[:0]
		for _, x := range c.net.slots[s].holders {
			held = append(held, &c.shards[w.indexOf(x)])
		}
		c.net.slots[s].holders = held
	}
	for i := range c.shards {
		s, old := &c.shards[i], &shards[i]
		s.Parked = append(old.Parked[:0], s.Parked...)
		s.Local = append(old.Local[:0], s.Local...)
		s.Waiting = append(old.Waiting[:0], s.Waiting...)
		s.Ending = append(old.Ending[:0], s.Ending...)
	}
	return c
}

func cloned(ts []Ticket) []Ticket { return append([]Ticket(nil), ts...) }

func (w *world) indexOf(s *Shard) int {
	for i := range w.shards {
		if s == &w.shards[i] {
			return i
		}
	}
	panic("fsm: a queue holds a shard of another world")
}

// worldKey identifies a world up to the names of attempts, generations and times.
type worldKey [48]byte

func (w *world) key() (k worldKey) {
	i := 0
	put := func(b int) { k[i] = byte(b); i++ }
	for j := range w.cfg.shards {
		s, f := &w.shards[j], &w.fates[j]
		put(int(s.Life) | int(s.Data)<<4)
		put(int(s.Index) | int(s.Handle)<<2 | int(s.Queued)<<4)
		put(flags(s.Lazy, s.Eager, s.Owned, s.Healing, s.Fresh, s.Retried, s.Resting, s.Cause != nil))
		put(int(s.Ail))
		put(int(s.job) | flags(s.slow, s.stale)<<4)
		put(int(s.Refs))
		put(code(s.Parked)<<4 | code(s.Local))
		put(code(s.Waiting)<<4 | int(s.Reclaimer))
		put(code(s.Ending))
		put(int(f.durable) | flags(f.lazy, f.direct, f.open, f.distrusted)<<4 | flags(f.mended)<<3)
		put(int(f.job) | int(f.token)<<4)
	}
	put(flags(w.net.ReadOnly) | int(w.woken)<<1)
	for s := FetchSlot; s < numSlots; s++ {
		p := &w.net.slots[s]
		order := 0
		for _, x := range p.queue.items[p.queue.head:] {
			if x != nil {
				order = order*3 + w.indexOf(x) + 1
			}
		}
		put(p.used())
		put(order)
	}
	for _, c := range w.callers[:w.cfg.callers] {
		put(int(c.asks) | int(c.at)<<4)
	}
	return k
}

func flags(bits ...bool) (v int) {
	for i, b := range bits {
		if b {
			v |= 1 << i
		}
	}
	return v
}

func code(ts []Ticket) (v int) {
	for _, t := range ts {
		v = v*3 + int(t)
	}
	return v
}

// move is one thing that can happen in a world.
type move struct {
	what  moveKind
	shard int
	in    Input
}

type moveKind uint8

const (
	moveStep       moveKind = iota
	moveFreeze              // the journal turns read-only; every shard is told
	moveLost                // a step whose events the journal refuses; it goes on
	moveLostFreeze          // ... and it turns read-only
	moveRestart             // only what is durable survives; in.Heal is the policy; read-only if shard is 1
	moveRevive              // the record that another hand wrote is taken up; in.Gen is its life
)

func (m move) String() string {
	switch m.what {
	case moveFreeze:
		return "the journal turns read-only"
	case moveRevive:
		return fmt.Sprintf("shard %d: revived as %s, direct: %t", m.shard, shard.Life(m.in.Gen), m.in.Direct)
	case moveRestart:
		return fmt.Sprintf("restart, heal policy %d, read-only: %t", m.in.Heal, m.shard == 1)
	}
	in := &m.in
	text := fmt.Sprintf("shard %d: %s", m.shard, in.Trigger)
	if m.what != moveStep {
		text = "not recorded: " + text
	}
	if in.Ticket != 0 {
		text += fmt.Sprintf(" ticket=%d", in.Ticket)
	}
	for name, set := range map[string]bool{
		"lazy": in.Lazy, "direct": in.Direct, "no-download": in.NoDownload, "ready": in.Ready,
		"found": in.Present, "owned": in.Owned, "failed": in.Err != nil,
	} {
		if set {
			text += " " + name
		}
	}
	if in.Patience != Refuse {
		text += fmt.Sprintf(" patience=%d", in.Patience)
	}
	if in.Fault != FaultSource {
		text += fmt.Sprintf(" fault=%d", in.Fault)
	}
	return text
}

// modelError is the cause of every failure in a walk.
type modelError string

func (e modelError) Error() string { return string(e) }

const errModel = modelError("it failed")

// doneOf is the completion of each job.
var doneOf = [numJobs]Trigger{
	JobProbe: ProbeDone, JobFetch: FetchDone, JobIndex: IndexDone, JobOpen: OpenDone, JobRemove: RemoveDone,
}

// moves lists what can happen.
func (w *world) moves() []move { return w.movesInto(nil) }

func (w *world) movesInto(ms []move) []move {
	step := func(shard int, in Input) { ms = append(ms, move{shard: shard, in: in}) }
	for i := range w.cfg.shards {
		if w.woken&(1<<i) != 0 {
			step(i, Input{Trigger: Auto})
		}
		if i == 1 && w.cfg.rival {
			w.rivalry(step)
			break
		}
		asked := false // one idle caller stands for all: they are alike
		for c := range w.cfg.callers {
			if w.cfg.pinned && c != i {
				continue
			}
			x := w.callers[c]
			t := x.ticket(c)
			switch {
			case x.asks == idle && !asked:
				asked = true
				w.requests(i, t, step)
			case x.asks == waits && int(x.at) == i:
				step(i, Input{Trigger: Cancel, Ticket: t})
			case x.asks == holds && int(x.at) == i:
				step(i, Input{Trigger: Release})
			}
		}
		for _, in := range w.completions(i) {
			step(i, in)
		}
		if w.cfg.follower {
			step(i, Input{Trigger: Supersede})
			ms = w.revivals(i, ms)
		}
		if w.cfg.hostile {
			step(i, Input{Trigger: CloseIdle})
			for fault := FaultSource; fault < numFaults; fault++ {
				step(i, Input{Trigger: Damage, Fault: fault, Err: errModel})
			}
		}
		if w.shards[i].Resting || w.cfg.late {
			step(i, Input{Trigger: Retry})
		}
		if w.cfg.hostile || w.cfg.overdue {
			step(i, Input{Trigger: Overdue, Attempt: w.shards[i].Attempt})
		}
		if w.cfg.late {
			w.strays(i, step)
		}
	}
	if w.cfg.lost {
		for _, mv := range ms {
			for what := moveLost; what <= moveLostFreeze; what++ {
				mv.what = what
				ms = append(ms, mv)
			}
		}
	}
	if w.cfg.durable {
		if !w.net.ReadOnly {
			ms = append(ms, move{what: moveFreeze})
		}
		for h := HealByHand; h <= HealNow; h++ {
			ms = append(ms, move{what: moveRestart, in: Input{Heal: h}}, move{what: moveRestart, shard: 1, in: Input{Heal: h}})
		}
	}
	return ms
}

// rivalry is what a shard does that is there only to hold tokens. Nobody waits for
// its answers.
func (w *world) rivalry(step func(int, Input)) {
	if w.shards[1].Life == shard.None {
		step(1, Input{Trigger: Register, Gen: 1})
	} else {
		step(1, Input{Trigger: Destroy})
	}
	for _, in := range w.completions(1) {
		if in.Err == nil {
			step(1, in)
		}
	}
}

// revivals are the records in which a follower may find a shard that it knows
// nothing of. It is revived as a new value; until the job of the former has ended, that
// is another shard than the one of this world.
func (w *world) revivals(i int, ms []move) []move {
	if w.shards[i].Life != shard.None || w.fates[i].job != JobNone {
		return ms
	}
	for _, life := range []shard.Life{shard.Registered, shard.Available, shard.Errored, shard.Recovering} {
		for _, direct := range []bool{false, true} {
			ms = append(ms, move{what: moveRevive, shard: i, in: Input{Gen: uint64(life), Direct: direct, Lazy: direct}})
		}
	}
	return append(ms, move{what: moveRevive, shard: i, in: Input{Gen: uint64(shard.Errored), Heal: HealOnAcquire}})
}

func (w *world) requests(i int, t Ticket, step func(int, Input)) {
	sources := []bool{}
	if w.cfg.copied {
		sources = append(sources, false)
	}
	if w.cfg.direct {
		sources = append(sources, true)
	}
	if w.shards[i].Life != shard.None {
		sources = sources[:1]
	}
	for _, direct := range sources {
		step(i, Input{Trigger: Register, Ticket: t, Gen: 1, Direct: direct})
		step(i, Input{Trigger: Register, Ticket: t, Gen: 1, Direct: direct, Lazy: true})
	}
	step(i, Input{Trigger: Acquire, Ticket: t})
	if w.cfg.noDownload {
		step(i, Input{Trigger: Acquire, Ticket: t, NoDownload: true})
	}
	step(i, Input{Trigger: Recover, Ticket: t})
	step(i, Input{Trigger: Destroy, Ticket: t})
	if w.cfg.ends {
		step(i, Input{Trigger: Destroy, Ticket: t, Patience: AwaitReaders})
		step(i, Input{Trigger: Destroy, Ticket: t, Patience: CutReaders})
	}
	if w.cfg.reclaim {
		step(i, Input{Trigger: Reclaim, Ticket: t})
	}
}

// completions lists every way in which the job that really runs can end.
func (w *world) completions(i int) (ins []Input) {
	f := &w.fates[i]
	if f.job == JobNone {
		return nil
	}
	ins = make([]Input, 0, 9)
	done := Input{Trigger: doneOf[f.job], Attempt: w.shards[i].Attempt}
	add := func(change func(*Input)) {
		in := done
		change(&in)
		ins = append(ins, in)
	}
	switch f.job {
	case JobProbe:
		add(func(in *Input) { in.Ready = true })
		add(func(in *Input) { in.Present, in.Owned = true, true })
		if w.cfg.hostile {
			add(func(in *Input) { in.Present = true })
		}
		if w.cfg.slow {
			add(func(*Input) {})
		}
	default:
		add(func(*Input) {})
	}
	if f.job == JobIndex {
		add(func(in *Input) { in.Err, in.Fault = errModel, FaultCopy })
	}
	if f.job == JobOpen {
		add(func(in *Input) { in.Err, in.Fault = errModel, FaultIndex })
		add(func(in *Input) { in.Err, in.Fault = errModel, FaultCopy })
		add(func(in *Input) { in.Changed = errModel })
	}
	if f.job != JobRemove && !w.cfg.mild {
		add(func(in *Input) { in.Err, in.Fault = errModel, FaultPassing })
		add(func(in *Input) { in.Err, in.Fault = errModel, FaultShortage })
	}
	if w.cfg.late { // fields that do not count
		add(func(in *Input) { in.Fault, in.Present, in.Ready = FaultIndex, true, true })
		add(func(in *Input) { in.Fault = FaultCopy })
		add(func(in *Input) { in.Fault = FaultPassing })
		add(func(in *Input) { in.Fault = FaultShortage })
		add(func(in *Input) { in.Err, in.Changed = errModel, errModel })
		add(func(in *Input) { in.Err, in.Present = errModel, true })
		add(func(in *Input) { in.Err, in.Ready = errModel, true })
	}
	add(func(in *Input) { in.Err = errModel })
	return ins
}

// strays are inputs that come late, or twice.
func (w *world) strays(i int, step func(int, Input)) {
	s := &w.shards[i]
	step(i, Input{Trigger: Cancel, Ticket: 9})
	step(i, Input{Trigger: Overdue, Attempt: s.Attempt - 1})
	if s.Refs == 0 {
		step(i, Input{Trigger: Release})
	}
	for job := JobProbe; job < numJobs; job++ {
		for fault := FaultSource; fault < numFaults; fault++ {
			step(i, Input{Trigger: doneOf[job], Attempt: s.Attempt - 1, Fault: fault, Err: errModel})
		}
		step(i, Input{Trigger: doneOf[job], Attempt: s.Attempt - 1, Present: true})
		step(i, Input{Trigger: doneOf[job], Attempt: s.Attempt - 1, Ready: true})
		if job != w.fates[i].job {
			step(i, Input{Trigger: doneOf[job], Attempt: s.Attempt})
		}
	}
}

// apply makes the move in w itself. seen is told of each step.
func (w *world) apply(m move, seen func(i int, in *Input, out *Out)) {
	switch m.what {
	case moveStep:
		w.wantMended = false
		w.request(m)
		w.step(m.shard, m.in, seen)
		if w.wantMended && w.shards[m.shard].Life != shard.Available && w.shards[m.shard].Life != shard.Initialising && w.fates[m.shard].durable != shard.Recovering {
			w.blame("a fault that could be mended was not")
		}
	case moveLost, moveLostFreeze:
		w.request(m)
		w.lose(m.shard, m.in, m.what == moveLostFreeze)
		if m.what == moveLost {
			return
		}
		fallthrough
	case moveFreeze:
		w.net.ReadOnly = true
		for i := range w.cfg.shards {
			w.step(i, Input{Trigger: Freeze}, seen)
		}
	case moveRevive:
		s, f := &w.shards[m.shard], &w.fates[m.shard]
		f.durable, f.lazy, f.direct = shard.Life(m.in.Gen), m.in.Lazy, m.in.Direct
		f.revive(s)
		w.step(m.shard, Input{Trigger: Resume, Heal: m.in.Heal}, seen)
	case moveRestart:
		w.restart()
		w.net.ReadOnly = m.shard == 1
		for i := range w.cfg.shards {
			w.step(i, Input{Trigger: Resume, Heal: m.in.Heal}, seen)
		}
	}
}

// request notes that a caller begins to wait, stops, or gives its accessor back.
func (w *world) request(m move) {
	in := &m.in
	switch in.Trigger {
	case Register, Acquire, Recover, Destroy, Reclaim:
		if in.Ticket != 0 {
			w.callers[in.Ticket-1] = caller{waits, int8(m.shard)}
		}
	case Cancel:
		if int(in.Ticket) <= len(w.callers) {
			w.callers[in.Ticket-1] = caller{}
		}
	case Supersede: // open accessors go on, and count no more
		w.cutOff(m.shard)
		f := &w.fates[m.shard]
		f.durable, f.distrusted, f.mended = shard.None, false, false
	case Release:
		for c := range w.callers {
			if w.callers[c] == (caller{holds, int8(m.shard)}) {
				w.callers[c] = caller{}
				break
			}
		}
	}
	s, f := &w.shards[m.shard], &w.fates[m.shard]
	if in.Trigger == Auto {
		w.woken &^= 1 << m.shard
	}
	switch {
	case in.Trigger == Overdue && in.Attempt == s.Attempt && f.token == OpenSlot:
		f.token = NoSlot
	case in.Trigger == Damage && in.Fault == FaultCopy && s.Life == shard.Available && f.job == JobNone && s.Data == Present:
		f.distrusted = true
	}
	if f.job == JobNone || doneOf[f.job] != in.Trigger || in.Attempt != s.Attempt {
		return
	}
	f.job, f.token = JobNone, NoSlot
	switch {
	case s.stale:
	case in.Err == nil && in.Trigger != ProbeDone:
		f.distrusted = f.distrusted && in.Trigger == RemoveDone
		f.open = f.open || in.Trigger == OpenDone
		f.mended = f.mended && in.Trigger != OpenDone
	case in.Trigger == IndexDone && in.Fault == FaultCopy && !f.mended && !w.net.ReadOnly:
		f.mended, f.distrusted, w.wantMended = true, true, true
	case in.Trigger == OpenDone && (in.Fault == FaultIndex || in.Fault == FaultCopy) && !f.mended && !(w.net.ReadOnly && in.Fault == FaultIndex):
		f.mended = true
		f.distrusted = f.distrusted || in.Fault == FaultCopy
		w.wantMended = true
	}
}

// step steps one shard, and then those that are to be woken.
func (w *world) step(i int, in Input, seen func(int, *Input, *Out)) {
	if w.depth++; w.depth > maxDepth {
		w.blame("steps wake each other without end")
		return
	}
	defer func() { w.depth-- }()
	mem := &w.steps[w.depth]
	mem.in = in
	mem.out.Reset()
	out := &mem.out
	if !w.net.Step(&w.shards[i], &mem.in, out) {
		w.blame("no row of " + in.Trigger.String() + " fired")
	}
	w.absorb(i, &mem.in, out)
	if seen != nil {
		seen(i, &mem.in, out)
	}
	w.wake(out.Wake, seen)
}

// wake evaluates the shards, or notes that it must be done.
func (w *world) wake(shards []*Shard, seen func(int, *Input, *Out)) {
	for _, s := range shards {
		switch i := w.indexOf(s); {
		case w.cfg.delayed:
			w.woken |= 1 << i
		case w.broken == "":
			w.step(i, Input{Trigger: Auto}, seen)
		}
	}
}

// lose steps one shard and takes the step back if it wanted to record something.
func (w *world) lose(i int, in Input, frozen bool) {
	s, f := &w.shards[i], &w.fates[i]
	before := *s
	before.Parked, before.Local, before.Waiting, before.Ending = cloned(s.Parked), cloned(s.Local), cloned(s.Waiting), cloned(s.Ending)
	var out Out
	w.net.Step(s, &in, &out)
	if len(out.Events) == 0 {
		w.absorb(i, &in, &out)
	} else {
		w.refuse(i, in.Ticket)
		w.net.ReadOnly = w.net.ReadOnly || frozen
		for _, t := range w.net.Revert(s, &before, in.Time, in.Seq, &out) {
			w.refuse(i, t)
		}
		f.distrusted, f.mended = s.Fresh, s.Retried
	}
	w.wake(out.Wake, nil)
}

// refuse answers the caller of t with an error, if that was not done.
func (w *world) refuse(i int, t Ticket) {
	if t != 0 && int(t) <= len(w.callers) && w.callers[t-1] == (caller{waits, int8(i)}) {
		w.callers[t-1] = caller{}
	}
}

// absorb lets the outside see what a step wants.
func (w *world) absorb(i int, in *Input, out *Out) {
	f := &w.fates[i]
	for _, r := range out.Replies {
		w.answer(i, r.Ticket, r.Accessor)
	}
	for _, e := range out.Events {
		if !legalNext(f.durable, e) {
			w.blame("event " + e.Kind.String() + " after " + f.durable.String())
		}
		if w.net.ReadOnly {
			w.blame("the event " + e.Kind.String() + " cannot be recorded")
		}
		f.durable = e.Life
		switch e.Kind {
		case shard.EventRecovering:
			f.distrusted = f.distrusted || in.Trigger == Recover || in.Trigger == Acquire || in.Trigger == Resume
		case shard.EventFailed, shard.EventDestroyed:
			f.distrusted, f.mended = false, false
		}
		if e.Kind == shard.EventRegistered {
			f.lazy, f.direct = in.Lazy, in.Direct
		}
	}
	for _, e := range out.Effects {
		switch e.Kind {
		case StartJob:
			if f.job != JobNone {
				w.blame("job " + e.Job.String() + " starts while " + f.job.String() + " runs")
			}
			if e.Fresh != (f.distrusted && (e.Job == JobProbe || e.Job == JobFetch)) {
				w.blame(fmt.Sprintf("job %s starts with fresh=%t", e.Job, e.Fresh))
			}
			f.job = e.Job
			for _, t := range out.Fired {
				if t.On == Auto && t.Slot != NoSlot {
					f.token = t.Slot
				}
			}
		case CloseHandle:
			if !f.open {
				w.blame("a handle is closed that is not open")
			}
			f.open = false
		case CutOff:
			w.cutOff(i)
		case Sweep:
			if e.Ticket != 0 {
				w.answer(i, e.Ticket, false)
			}
		}
	}
}

// cutOff ends the use of the shard's accessors, which count no more.
func (w *world) cutOff(i int) {
	for c := range w.callers {
		if w.callers[c] == (caller{holds, int8(i)}) {
			w.callers[c] = caller{}
		}
	}
}

// answer gives the caller of t its one answer.
func (w *world) answer(i int, t Ticket, accessor bool) {
	if t == 0 || int(t) > len(w.callers) || w.callers[t-1] != (caller{waits, int8(i)}) {
		w.blame(fmt.Sprintf("an answer to ticket %d, which does not wait", t))
		return
	}
	w.callers[t-1] = caller{}
	if accessor {
		w.callers[t-1] = caller{holds, int8(i)}
	}
}

func (w *world) blame(what string) {
	if w.broken == "" {
		w.broken = what
	}
}

// restart keeps what is durable.
func (w *world) restart() {
	fresh := newWorld(w.net.m, w.cfg)
	fresh.net.watch = w.net.watch
	for i := range w.cfg.shards {
		f := w.fates[i]
		if f.durable == shard.None {
			continue
		}
		fresh.fates[i] = fate{durable: f.durable, lazy: f.lazy, direct: f.direct}
		fresh.fates[i].revive(&fresh.shards[i])
	}
	*w = *fresh // its queues are empty: nothing points to its shards
}

// revive gives a shard without a life the one that is recorded.
func (f *fate) revive(s *Shard) {
	f.distrusted = f.durable == shard.Recovering
	s.Gen, s.Life, s.Lazy = 1, f.durable, f.lazy
	if f.direct {
		s.Data = Direct
	}
	switch f.durable {
	case shard.Available:
		s.Index = Indexed
	case shard.Errored, shard.Recovering:
		s.Cause = errModel
	}
}

// walk visits every state within cfg, breadth first, at most limit if that is not
// zero, and makes every move in each. visit sees each state once, edge each move;
// either ends the walk by returning false.
func walk(m *machine, cfg *config, limit int, watch func(*Transition, *step),
	visit func(*world) bool, edge func(from *world, mv move, to *world, known bool) bool,
	seen func(int, *Input, *Out),
) {
	start := newWorld(m, cfg)
	start.net.watch = watch
	known := map[worldKey]struct{}{start.key(): {}}
	queue := []*world{start}
	var ms []move
	next := new(world)
	for len(queue) > 0 {
		w := queue[0]
		queue[0], queue = nil, queue[1:]
		if visit != nil && !visit(w) {
			return
		}
		ms = w.movesInto(ms[:0])
		for _, mv := range ms {
			w.cloneInto(next)
			next.apply(mv, seen)
			k := next.key()
			_, old := known[k]
			if edge != nil && !edge(w, mv, next, old) {
				return
			}
			if !old && (limit == 0 || len(known) < limit) {
				known[k] = struct{}{}
				queue = append(queue, next)
				next = new(world)
			}
		}
	}
}
