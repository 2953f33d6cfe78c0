package fsm

import (
	"fmt"

	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// Guard is a named condition of a transition.
type Guard struct {
	Name string
	// Reads are the places the condition depends on, beside the input.
	Reads Places
	// Need says what must be so, Wakes what would make it so.
	Need, Wakes string

	slot  Slot // whose token it asks for, or NoSlot
	holds func(*Net, *Shard, *Input) bool
	have  func(*Net, *Shard, *Input) string
}

// Transition is a row of the table.
type Transition struct {
	Name   string
	On     Trigger
	Guards []*Guard
	// Writes are the places that the outcome may change. The automatic transitions
	// that read one of them are evaluated afterwards.
	Writes Places
	// Looks are places that the outcome depends on beside those.
	Looks Places
	// Emits are the kinds of event that the outcome makes.
	Emits []shard.Kind
	// Slot is the place that the job started by the outcome takes a token from.
	Slot Slot
	// Op labels the transition for tracing.
	Op Op
	// Does says the outcome in words, for the documentation.
	Does string

	do func(*step)
	// wakes are the automatic transitions that read a place this one writes.
	wakes uint16
	// slotless are the guards without that for the token.
	slotless []*Guard
}

// Reads are the places that the transition's guards and outcome depend on: what
// is written is read too.
func (t *Transition) Reads() (set Places) {
	for _, g := range t.Guards {
		set |= g.Reads
	}
	return set | t.Writes | t.Looks
}

// step is what an outcome sees.
type step struct {
	net *Net
	s   *Shard
	in  *Input
	out *Out
}

// Guards.

func lifeIs(lives ...shard.Life) *Guard {
	need := "life is "
	for i, l := range lives {
		if i > 0 {
			need += " or "
		}
		need += l.String()
	}
	var set uint16
	for _, l := range lives {
		set |= 1 << l
	}
	return &Guard{
		Name: need[len("life is "):], Reads: places(PlaceLife), Need: need, Wakes: "a change of the shard's life",
		holds: func(_ *Net, s *Shard, _ *Input) bool { return set&(1<<s.Life) != 0 },
		have:  func(_ *Net, s *Shard, _ *Input) string { return "life is " + s.Life.String() },
	}
}

func dataIs(name string, wakes string, want ...Data) *Guard {
	var set uint16
	for _, d := range want {
		set |= 1 << d
	}
	return &Guard{
		Name: name, Reads: places(PlaceData), Need: name, Wakes: wakes,
		holds: func(_ *Net, s *Shard, _ *Input) bool { return set&(1<<s.Data) != 0 },
		have:  func(_ *Net, s *Shard, _ *Input) string { return "data is " + s.Data.String() },
	}
}

func handleIs(h Handle, name, wakes string) *Guard {
	return &Guard{
		Name: name, Reads: places(PlaceHandle), Need: name, Wakes: wakes,
		holds: func(_ *Net, s *Shard, _ *Input) bool { return s.Handle == h },
		have:  func(_ *Net, s *Shard, _ *Input) string { return "handle is " + s.Handle.String() },
	}
}

func slotFree(slot Slot) *Guard {
	return &Guard{
		Name: slot.String() + " slot free", slot: slot, Reads: places(slot.place()),
		Need:  "a free " + slot.String() + " slot, and nobody ahead in its queue",
		Wakes: "the end of a job that holds a " + slot.String() + " slot",
		holds: func(n *Net, s *Shard, _ *Input) bool { return n.admits(slot, s) },
		have: func(n *Net, s *Shard, _ *Input) string {
			p := &n.slots[slot]
			return fmt.Sprintf("%d of %d %s slots in use, %d ahead in the queue", p.used(), p.cap, slot, p.queue.index(s, p.queue.n))
		},
	}
}

// onInput makes a guard that looks at the input only.
func onInput(name string, holds func(*Input) bool) *Guard {
	return &Guard{
		Name: name, Need: name, Wakes: "another input",
		holds: func(_ *Net, _ *Shard, in *Input) bool { return holds(in) },
		have:  func(*Net, *Shard, *Input) string { return "the input says otherwise" },
	}
}

// on makes a guard over places of the shard.
func on(name string, reads Places, wakes string, holds func(*Shard) bool, have func(*Shard) string) *Guard {
	return &Guard{
		Name: name, Reads: reads, Need: name, Wakes: wakes,
		holds: func(_ *Net, s *Shard, _ *Input) bool { return holds(s) },
		have:  func(_ *Net, s *Shard, _ *Input) string { return have(s) },
	}
}

func haveRefs(s *Shard) string   { return fmt.Sprintf("%d accessors open or being delivered", s.Refs) }
func haveParked(s *Shard) string { return fmt.Sprintf("%d acquires wait", s.acquires()) }
func haveAsking(s *Shard) string {
	return fmt.Sprintf("life is %s, %d acquires and %d others wait", s.Life, s.acquires(), len(s.Waiting))
}
func haveEnding(s *Shard) string {
	return fmt.Sprintf("%d destructions wait, %s", len(s.Ending), haveRefs(s))
}
func haveJob(s *Shard) string { return "running job: " + s.job.String() }
func haveCause(s *Shard) string {
	if s.Cause == nil {
		return "no failure"
	}
	return "last failure: " + s.Cause.Error()
}

var (
	gNoLife  = lifeIs(shard.None)
	gHasLife = lifeIs(shard.Registered, shard.Initialising, shard.Available, shard.Errored, shard.Recovering)
	gErrored = lifeIs(shard.Errored)
	gAvail   = lifeIs(shard.Available)
	gUnborn  = lifeIs(shard.Registered)
	gMaking  = lifeIs(shard.Initialising, shard.Recovering)
	gServing = lifeIs(shard.Initialising, shard.Recovering, shard.Available)
	gSettled = lifeIs(shard.Registered, shard.Available, shard.Errored)

	gWritable = &Guard{
		Name: "journal writable", Reads: places(PlaceJournal), Need: "the journal takes events", Wakes: "reopening the store",
		holds: func(n *Net, _ *Shard, _ *Input) bool { return !n.ReadOnly },
		have:  func(*Net, *Shard, *Input) string { return "the journal is read-only" },
	}
	gReadOnly = &Guard{
		Name: "journal read-only", Reads: places(PlaceJournal), Need: "the journal is read-only", Wakes: "a failure of the journal",
		holds: func(n *Net, _ *Shard, _ *Input) bool { return n.ReadOnly },
		have:  func(*Net, *Shard, *Input) string { return "the journal is writable" },
	}

	gRefs   = on("accessors open", places(PlaceRefs), "an acquire", func(s *Shard) bool { return s.Refs > 0 }, haveRefs)
	gNoRefs = on("no accessor open", places(PlaceRefs), "closing the open accessors", func(s *Shard) bool { return s.Refs == 0 }, haveRefs)
	gEnding = on("a destruction waits", places(PlaceEnding), "a destruction that may wait",
		func(s *Shard) bool { return len(s.Ending) > 0 }, haveEnding)
	gStays = on("no destruction waits", places(PlaceEnding), "the closing of the open accessors, or the destruction being given up",
		func(s *Shard) bool { return len(s.Ending) == 0 }, haveEnding)
	gAsked = on("somebody waits for the shard", places(PlaceParked, PlaceWaiting), "an acquire",
		func(s *Shard) bool { return s.acquires()+len(s.Waiting) > 0 }, haveAsking)
	gParked = on("an acquire waits", places(PlaceParked), "an acquire", func(s *Shard) bool { return s.acquires() > 0 }, haveParked)
	gNoJob  = on("no job running", places(PlaceJob), "the end of the running job", func(s *Shard) bool { return s.job == JobNone }, haveJob)
	gHasJob = on("a job running", places(PlaceJob), "a job", func(s *Shard) bool { return s.job != JobNone }, haveJob)

	gOpen    = handleIs(Open, "handle is open", "an acquire that opens it")
	gNotOpen = on("handle is not open", places(PlaceHandle), "the handle closing",
		func(s *Shard) bool { return s.Handle != Open }, func(s *Shard) string { return "handle is " + s.Handle.String() })
	gClosed = handleIs(Closed, "handle is closed", "the handle closing")

	gAbsent   = dataIs("no local copy", "the copy being removed", Absent)
	gReady    = dataIs("source probed and ready", "the end of the probe", Ready)
	gSlow     = dataIs("source probed and preparing", "the end of the probe", Slow)
	gReadable = dataIs("data readable", "the end of the fetch", Direct, Present)
	gProbed   = dataIs("source probed", "the end of the probe", Ready, Slow)

	gHealing = on("recovers on acquire", places(PlaceFault), "a restart with that policy",
		func(s *Shard) bool { return s.Healing }, haveCause)
	gNotHealing = on("does not recover on acquire", places(PlaceFault), "a recover request",
		func(s *Shard) bool { return !s.Healing }, haveCause)
	gFirstTry = on("no second try yet", places(PlaceFault), "a successful open",
		func(s *Shard) bool { return !s.Retried }, haveCause)
	gSecondTry = on("second try already made", places(PlaceFault), "a failed open",
		func(s *Shard) bool { return s.Retried }, haveCause)
	gWanted = on("initialisation wanted", places(PlaceParked, PlaceWish), "an acquire",
		func(s *Shard) bool { return s.Eager || s.acquires() > 0 }, haveParked)
	// gNoOtherCopy: fetching the copy afresh would not help, or did not.
	gNoOtherCopy = &Guard{
		Name: "not the copy at fault, or a second try", Reads: places(PlaceFault), Need: "another fault than the copy's, or a second try", Wakes: "a failed try",
		holds: func(_ *Net, s *Shard, in *Input) bool { return in.Fault != FaultCopy || s.Retried },
		have:  func(_ *Net, s *Shard, _ *Input) string { return haveCause(s) },
	}
	gAiling  = on("last try failed", places(PlaceFault), "a failure", func(s *Shard) bool { return s.Ail != Well }, haveCause)
	gRested  = on("no pause after a failed try", places(PlaceRest), "the end of the pause", func(s *Shard) bool { return !s.Resting }, haveRest)
	gResting = on("pause after a failed try", places(PlaceRest), "a failure", func(s *Shard) bool { return s.Resting }, haveRest)
	// gAway: who asks is told why, and not made to wait; gNotAway: is not.
	gAway    = on("away, next try not due", places(PlaceRest, PlaceFault), "a failure", away, haveCause)
	gNotAway = on("not away, or next try due", places(PlaceRest, PlaceFault), "the end of the pause",
		func(s *Shard) bool { return !away(s) }, haveCause)
	// gGoesOn: what is short is waited for; an outcome could be recorded if one has to be.
	gGoesOn = &Guard{
		Name: "available, or journal writable", Reads: places(PlaceLife, PlaceJournal), Need: "an outcome that can be recorded", Wakes: "reopening the store",
		holds: func(n *Net, s *Shard, _ *Input) bool { return s.Life == shard.Available || !n.ReadOnly },
		have:  func(*Net, *Shard, *Input) string { return "the journal is read-only" },
	}
	// gRecoverable: errored, or available with a source that is not what was indexed and
	// nothing under way.
	gRecoverable = on("errored, or available and changed", places(PlaceLife, PlaceFault, PlaceJob), "a failure",
		func(s *Shard) bool {
			return s.Life == shard.Errored || s.Life == shard.Available && s.Ail == Changed && s.job == JobNone
		}, func(s *Shard) string { return "life is " + s.Life.String() + ", " + haveCause(s) })
	// gMending: what a recovery would do is being done, or is done by the next try.
	gMending = on("already being mended", places(PlaceLife, PlaceFault, PlaceJob), "a recovery",
		func(s *Shard) bool {
			return s.Life == shard.Recovering || s.Life == shard.Initialising && s.Ail != Well ||
				s.Life == shard.Available && (s.Ail == Away || s.Ail == Short || s.Ail == Changed && s.job != JobNone)
		}, func(s *Shard) string { return "life is " + s.Life.String() + ", " + haveJob(s) })
	gHealthy = on("nothing to recover", places(PlaceLife, PlaceFault), "a failure",
		func(s *Shard) bool {
			return (s.Life == shard.Registered || s.Life == shard.Initialising || s.Life == shard.Available) && s.Ail == Well
		}, func(s *Shard) string { return "life is " + s.Life.String() + ", " + haveCause(s) })
	// gWantsProbe: somebody would use a copy if there is one. gWantsData: somebody
	// wants one made. An initialisation or recovery wants it for itself, as long as
	// its outcome can be recorded; a recovery that joined a mending waits for it.
	gWantsProbe = wants("copy wanted", func(s *Shard) bool { return s.acquires()+len(s.Waiting) > 0 })
	gWantsData  = wants("download wanted", func(s *Shard) bool { return len(s.Parked)+len(s.Waiting) > 0 })
	gNoWish     = &Guard{
		Name: "no download wanted", Reads: gWantsData.Reads, Need: "nobody who waits for the download", Wakes: "a cancellation",
		holds: func(n *Net, s *Shard, in *Input) bool { return !gWantsData.holds(n, s, in) }, have: gWantsData.have,
	}
	gReclaimable = on("nobody needs the copy", places(PlaceRefs, PlaceParked, PlaceJob, PlaceLife), "the last accessor closing",
		func(s *Shard) bool {
			return s.Refs == 0 && s.acquires() == 0 && s.job == JobNone &&
				s.Life != shard.Initialising && s.Life != shard.Recovering
		}, func(s *Shard) string { return haveRefs(s) + ", " + haveParked(s) + ", " + haveJob(s) })
	gNotReclaimable = on("somebody needs the copy", places(PlaceRefs, PlaceParked, PlaceJob, PlaceLife), "an acquire",
		func(s *Shard) bool { return !gReclaimable.holds(nil, s, nil) }, haveRefs)
	gOwned = on("copy made by the store", places(PlaceData), "a fetch",
		func(s *Shard) bool { return s.Data == Present && s.Owned }, func(s *Shard) string { return "data is " + s.Data.String() })
	gNotOwned = on("no copy made by the store", places(PlaceData), "removing the copy",
		func(s *Shard) bool { return !(s.Data == Present && s.Owned) }, func(s *Shard) string { return "data is " + s.Data.String() })

	gMayFetch = acquireGuard("download allowed or not needed", "leave to download, or a source read in place",
		func(s *Shard, in *Input) bool { return !noDownload(s, in) })
	gNoDownload = acquireGuard("download refused", "a request that forbids a download, of a source that needs a copy", noDownload)
	gMaybeLocal = acquireGuard("download refused, copy possible", "a request that forbids a download, and a copy or nobody who has looked",
		func(s *Shard, in *Input) bool { return noDownload(s, in) && s.Data.maybeCopied() })
	gWouldFetch = acquireGuard("download refused, no copy", "a request that forbids a download, and no copy",
		func(s *Shard, in *Input) bool { return noDownload(s, in) && !s.Data.maybeCopied() })

	gIsParked = ticketGuard("ticket parked", "the ticket is a waiting acquire", PlaceParked,
		func(s *Shard, t Ticket) bool { return has(s.Parked, t) || has(s.Local, t) })
	gIsWaiting = ticketGuard("ticket waiting", "the ticket is a waiting registration or recovery", PlaceWaiting,
		func(s *Shard, t Ticket) bool { return has(s.Waiting, t) })
	gIsEnding = ticketGuard("ticket destroys", "the ticket is a destruction that waits", PlaceEnding,
		func(s *Shard, t Ticket) bool { return has(s.Ending, t) })
	gIsReclaimer = ticketGuard("ticket reclaims", "the ticket waits for the running removal", PlaceWaiting,
		func(s *Shard, t Ticket) bool { return t != 0 && t == s.Reclaimer })
	gIsGone = &Guard{
		Name: "ticket answered", Reads: places(PlaceParked, PlaceWaiting, PlaceEnding), Need: "the ticket was answered", Wakes: "nothing",
		holds: func(n *Net, s *Shard, in *Input) bool {
			return !gIsParked.holds(n, s, in) && !gIsWaiting.holds(n, s, in) && !gIsReclaimer.holds(n, s, in) && !gIsEnding.holds(n, s, in)
		},
		have: func(_ *Net, s *Shard, _ *Input) string { return haveAsking(s) },
	}

	gOK      = onInput("ok", func(in *Input) bool { return in.Err == nil })
	gFailed  = onInput("failed", func(in *Input) bool { return in.Err != nil })
	gFound   = onInput("copy found", func(in *Input) bool { return in.Present })
	gMissing = onInput("no copy found", func(in *Input) bool { return !in.Present })
	gIsReady = onInput("source ready", func(in *Input) bool { return in.Ready })
	gIsSlow  = onInput("source preparing", func(in *Input) bool { return !in.Ready })

	gBadSource = onInput("source at fault", func(in *Input) bool { return in.Fault == FaultSource })
	gBadIndex  = onInput("index at fault", func(in *Input) bool { return in.Fault == FaultIndex })
	gBadCopy   = onInput("copy at fault", func(in *Input) bool { return in.Fault == FaultCopy })
	gPassing   = onInput("nothing at fault for good", func(in *Input) bool { return in.Fault == FaultPassing })
	gShortage  = onInput("this machine is short", func(in *Input) bool { return in.Fault == FaultShortage })
	gNotShort  = onInput("this machine is not short", func(in *Input) bool { return in.Fault != FaultShortage })
	gForGood   = onInput("something at fault for good", func(in *Input) bool { return !in.Fault.passes() })
	gPasses    = onInput("a fault that passes", func(in *Input) bool { return in.Fault.passes() })
	gChanged   = onInput("source changed", func(in *Input) bool { return in.Changed != nil })
	gUnchanged = onInput("source unchanged", func(in *Input) bool { return in.Changed == nil })

	// gCannotMend: only a copy can be mended without recording anything, once.
	gCannotMend = &Guard{
		Name: "cannot be mended unrecorded", Reads: places(PlaceFault), Need: "the source or the index at fault, or a second try",
		Wakes: "reopening the store",
		holds: func(_ *Net, s *Shard, in *Input) bool {
			return !in.Fault.passes() && (in.Fault != FaultCopy || s.Retried)
		},
		have: func(_ *Net, s *Shard, _ *Input) string { return haveCause(s) },
	}

	gRefuses = onInput("readers are respected", func(in *Input) bool { return in.Patience == Refuse })
	gWaits   = onInput("readers are waited for", func(in *Input) bool { return in.Patience == AwaitReaders })
	gCuts    = onInput("readers are cut off", func(in *Input) bool { return in.Patience == CutReaders })
	gInsists = onInput("readers do not stop it", func(in *Input) bool { return in.Patience != Refuse })

	gHealHand    = onInput("policy: by hand", func(in *Input) bool { return in.Heal == HealByHand })
	gHealAcquire = onInput("policy: on acquire", func(in *Input) bool { return in.Heal == HealOnAcquire })
	gHealNow     = onInput("policy: now", func(in *Input) bool { return in.Heal == HealNow })
)

// wants makes the guards that ask whether bytes are wanted.
func wants(name string, byOthers func(*Shard) bool) *Guard {
	return &Guard{
		Name: name, Reads: places(PlaceLife, PlaceParked, PlaceWaiting, PlaceJournal),
		Need: "an initialisation, a recovery, or somebody who waits", Wakes: "an acquire",
		holds: func(n *Net, s *Shard, _ *Input) bool {
			switch s.Life {
			case shard.Initialising, shard.Recovering:
				return !n.ReadOnly
			case shard.Available:
				return byOthers(s)
			}
			return false
		},
		have: func(_ *Net, s *Shard, _ *Input) string { return haveAsking(s) },
	}
}

// acquireGuard makes a guard over where the data is and what an acquire permits.
func acquireGuard(name, need string, holds func(*Shard, *Input) bool) *Guard {
	return &Guard{
		Name: name, Reads: places(PlaceData), Need: need, Wakes: "another request, or a fetch",
		holds: func(_ *Net, s *Shard, in *Input) bool { return holds(s, in) },
		have: func(_ *Net, s *Shard, in *Input) string {
			return fmt.Sprintf("data is %s, download forbidden: %t", s.Data, in.NoDownload)
		},
	}
}

// ticketGuard makes a guard over where the ticket of a cancellation is.
func ticketGuard(name, need string, where Place, holds func(*Shard, Ticket) bool) *Guard {
	return &Guard{
		Name: name, Reads: places(where), Need: need, Wakes: "nothing",
		holds: func(_ *Net, s *Shard, in *Input) bool { return holds(s, in.Ticket) },
		have:  func(_ *Net, s *Shard, _ *Input) string { return haveAsking(s) },
	}
}

// isCurrent guards the completions of job: the shard runs that job in this life,
// and this is the attempt.
func isCurrent(job Job) *Guard {
	return jobGuard("current "+job.String()+" job", "the running job is this attempt",
		func(s *Shard, in *Input) bool {
			return s.job == job && s.Attempt == in.Attempt && (!s.stale || planted.Bug("fsm-former-life-accepted"))
		})
}

// gOpensWithToken: the running job is a probe or an open, this attempt, and holds a
// token. Whose life it is of does not matter: the token is wanted.
var (
	gOpensWithToken = jobGuard("probe or open job with a token", "the running job is this attempt of a probe or an open, and holds a token", opensWithToken)
	gOpensWithout   = jobGuard("no such job with a token", "the running job is another, or holds no token",
		func(s *Shard, in *Input) bool { return !opensWithToken(s, in) })
)

func opensWithToken(s *Shard, in *Input) bool {
	return s.slotOf() == OpenSlot && s.Attempt == in.Attempt
}

// isStale guards them too: the job was started in a former life.
func isStale(job Job) *Guard {
	return jobGuard(job.String()+" job of a former life", "the running job is this attempt, begun before the shard was destroyed",
		func(s *Shard, in *Input) bool { return s.job == job && s.Attempt == in.Attempt && s.stale })
}

func isOutdated(job Job) *Guard {
	return jobGuard("outdated "+job.String()+" job", "the running job is another",
		func(s *Shard, in *Input) bool { return s.job != job || s.Attempt != in.Attempt })
}

func jobGuard(name, need string, holds func(*Shard, *Input) bool) *Guard {
	return &Guard{
		Name: name, Reads: places(PlaceJob), Need: need, Wakes: "nothing: a completion comes once",
		holds: func(_ *Net, s *Shard, in *Input) bool { return holds(s, in) },
		have: func(_ *Net, s *Shard, _ *Input) string {
			return fmt.Sprintf("job %s, attempt %d, of a former life: %t", s.job, s.Attempt, s.stale)
		},
	}
}

// passes says that the fault is nobody's for good.
func (f Fault) passes() bool { return f == FaultPassing || f == FaultShortage }

// away says that who asks for the shard is told why it cannot be had, until the next try.
func away(s *Shard) bool { return s.Resting && s.Ail != Short }

func haveRest(s *Shard) string {
	if s.Resting {
		return "paused after a failed try: " + haveCause(s)
	}
	return "no pause"
}

// noDownload: the request may be refused rather than have a copy fetched. A
// source that is read in place never needs one.
func noDownload(s *Shard, in *Input) bool { return in.NoDownload && s.Data != Direct }

// maybeCopied: a copy is there, or nobody has looked yet.
func (d Data) maybeCopied() bool { return d == Absent || d == Probing || d == Present }

func has(ts []Ticket, t Ticket) bool {
	for _, x := range ts {
		if x == t {
			return true
		}
	}
	return false
}
