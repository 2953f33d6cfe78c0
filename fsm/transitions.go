package fsm

import (
	"github.com/dagstore/dagstore/shard"

	"github.com/dagstore/dagstore/internal/planted"
)

var (
	answers    = places(PlaceParked, PlaceWaiting) // everybody who waits
	fails      = answers | places(PlaceLife, PlaceFault)
	ails       = answers | places(PlaceFault, PlaceRest)
	rests      = places(PlaceFault, PlaceRest)
	recovers   = places(PlaceLife, PlaceFault)
	probeEnds  = places(PlaceJob, PlaceData, PlaceOpenSlots)
	fetchEnds  = places(PlaceJob, PlaceData, PlaceFetchSlots)
	indexEnds  = places(PlaceJob, PlaceIndex, PlaceIndexSlots)
	openEnds   = places(PlaceJob, PlaceHandle, PlaceOpenSlots)
	removeEnds = places(PlaceJob, PlaceData, PlaceWaiting)
)

// table is the machine. For an input, the first row of its trigger whose guards
// all hold fires; then automatic rows fire until none is enabled. The rows of one
// trigger exclude each other and leave no case out, which the model check holds.
var table = []*Transition{
	// Requests.
	{Name: "register", On: Register, Guards: g(gNoLife, gWritable), Op: OpRegister,
		Writes: places(PlaceLife, PlaceData, PlaceWish, PlaceWaiting), Emits: k(shard.EventRegistered),
		Does: "begin a life; answer at once if lazy, else when initialised", do: doRegister},
	{Name: "register-exists", On: Register, Guards: g(gHasLife), Op: OpNone, Does: "refuse: the key is taken", do: answer(ErrExists)},
	{Name: "register-read-only", On: Register, Guards: g(gNoLife, gReadOnly), Op: OpNone, Does: "refuse: read-only", do: answer(ErrReadOnly)},

	{Name: "acquire-open", On: Acquire, Guards: g(gOpen, gStays), Writes: places(PlaceRefs), Op: OpAcquire,
		Does: "count a reference and answer with an accessor", do: doAcquireOpen},
	{Name: "acquire-park", On: Acquire, Guards: g(gServing, gNotOpen, gStays, gMayFetch, gNotAway),
		Writes: places(PlaceParked), Op: OpAcquire, Does: "wait for the data and the index to be made and opened", do: doPark},
	{Name: "acquire-local", On: Acquire, Guards: g(gServing, gNotOpen, gStays, gMaybeLocal, gNotAway),
		Writes: places(PlaceParked), Op: OpAcquire, Does: "wait, unless a copy would have to be fetched", do: func(t *step) { t.s.Local = append(t.s.Local, t.in.Ticket) }},
	{Name: "acquire-no-copy", On: Acquire, Guards: g(gServing, gStays, gWouldFetch, gNotAway),
		Op: OpAcquire, Does: "refuse: it would need a download", do: answer(ErrNoCopy)},
	{Name: "acquire-first", On: Acquire, Guards: g(gUnborn, gWritable, gMayFetch, gNotAway),
		Writes: places(PlaceParked), Op: OpAcquire, Does: "wait; the shard will be initialised", do: doPark},
	{Name: "acquire-first-no-download", On: Acquire, Guards: g(gUnborn, gWritable, gNoDownload, gNotAway),
		Op: OpAcquire, Does: "refuse: initialising may need a download", do: answer(ErrNoCopy)},
	{Name: "acquire-read-only", On: Acquire, Guards: g(gUnborn, gReadOnly, gNotAway),
		Op: OpAcquire, Does: "refuse: the index could not be recorded", do: answer(ErrReadOnly)},
	{Name: "acquire-ending", On: Acquire, Guards: g(gServing, gEnding), Op: OpAcquire,
		Does: "refuse: a destruction waits for the open accessors", do: answer(ErrEnding)},
	{Name: "acquire-away", On: Acquire, Guards: g(gAway, gStays), Op: OpAcquire,
		Does: "refuse with the cause: the next try is not due", do: func(t *step) { t.reply(t.in.Ticket, ErrAway, t.s.Cause) }},
	{Name: "acquire-errored", On: Acquire, Guards: g(gErrored, gNotHealing), Op: OpAcquire,
		Does: "refuse with the cause", do: answerCause},
	{Name: "acquire-heal", On: Acquire, Guards: g(gHealing, gMayFetch, gWritable), Op: OpRecover,
		Writes: recovers | places(PlaceParked), Emits: k(shard.EventRecovering),
		Does: "recover afresh and wait", do: func(t *step) { doPark(t); t.trace(OpAcquire); t.s.Fresh = true; t.recover(t.s.Cause) }},
	{Name: "acquire-heal-no-download", On: Acquire, Guards: g(gHealing, gNoDownload, gWritable), Op: OpAcquire,
		Does: "refuse with the cause: recovering would need a download", do: answerCause},
	{Name: "acquire-heal-read-only", On: Acquire, Guards: g(gHealing, gReadOnly), Op: OpAcquire,
		Does: "refuse: read-only", do: answer(ErrReadOnly)},
	{Name: "acquire-unknown", On: Acquire, Guards: g(gNoLife), Op: OpNone, Does: "refuse: no such shard", do: answer(ErrUnknown)},

	{Name: "release", On: Release, Guards: g(gRefs), Writes: places(PlaceRefs), Op: OpRelease,
		Does: "drop a reference", do: func(t *step) { t.s.Refs-- }},
	{Name: "release-stray", On: Release, Guards: g(gNoRefs), Op: OpNone, Does: "nothing", do: nothing},

	{Name: "recover", On: Recover, Guards: g(gRecoverable, gWritable), Op: OpRecover,
		Writes: recovers | answers | places(PlaceData, PlaceIndex, PlaceHandle, PlaceRest), Emits: k(shard.EventRecovering),
		Does: "fetch and index afresh; answer with the outcome",
		do:   doRecover},
	{Name: "recover-join", On: Recover, Guards: g(gMending), Writes: places(PlaceWaiting, PlaceRest), Op: OpNone,
		Does: "wait for the outcome of what is under way, or of a try made now", do: func(t *step) { t.await(); t.s.Resting = false }},
	{Name: "recover-first", On: Recover, Guards: g(gUnborn, gAiling, gWritable), Writes: places(PlaceWaiting, PlaceRest, PlaceWish), Op: OpNone,
		Does: "initialise now; answer with the outcome", do: func(t *step) { t.await(); t.s.Resting, t.s.Eager = false, true }},
	{Name: "recover-first-read-only", On: Recover, Guards: g(gUnborn, gAiling, gReadOnly), Op: OpNone, Does: "refuse: read-only", do: answer(ErrReadOnly)},
	{Name: "recover-refused", On: Recover, Guards: g(gHealthy), Op: OpNone, Does: "refuse: nothing to recover", do: answer(ErrNotErrored)},
	{Name: "recover-read-only", On: Recover, Guards: g(gRecoverable, gReadOnly), Op: OpNone, Does: "refuse: read-only", do: answer(ErrReadOnly)},
	{Name: "recover-unknown", On: Recover, Guards: g(gNoLife), Op: OpNone, Does: "refuse: no such shard", do: answer(ErrUnknown)},

	{Name: "destroy", On: Destroy, Guards: g(gHasLife, gNoRefs, gWritable), Op: OpDestroy,
		Writes: fails | places(PlaceData, PlaceIndex, PlaceHandle, PlaceWish, PlaceJob, PlaceRest), Emits: k(shard.EventDestroyed),
		Does: "end the life; waiting callers learn that the shard is gone; sweep its files, then answer", do: doDestroy},
	{Name: "destroy-in-use", On: Destroy, Guards: g(gRefs, gRefuses), Op: OpNone, Does: "refuse: accessors are open", do: answer(ErrInUse)},
	{Name: "destroy-wait", On: Destroy, Guards: g(gRefs, gWaits, gWritable), Writes: places(PlaceEnding), Op: OpNone,
		Does: "wait until the open accessors are closed; nobody gets another meanwhile",
		do:   func(t *step) { t.s.Ending = append(t.s.Ending, t.in.Ticket) }},
	{Name: "destroy-cut", On: Destroy, Guards: g(gRefs, gCuts, gWritable), Op: OpDestroy,
		Writes: fails | places(PlaceData, PlaceIndex, PlaceHandle, PlaceRefs, PlaceEnding, PlaceWish, PlaceJob, PlaceRest), Emits: k(shard.EventDestroyed),
		Does: "cut the readers off, then as destroy", do: doCutAndDestroy},
	{Name: "destroy-insist-read-only", On: Destroy, Guards: g(gRefs, gInsists, gReadOnly), Op: OpNone, Does: "refuse: read-only", do: answer(ErrReadOnly)},
	{Name: "destroy-read-only", On: Destroy, Guards: g(gHasLife, gNoRefs, gReadOnly), Op: OpNone, Does: "refuse: read-only", do: answer(ErrReadOnly)},
	{Name: "destroy-unknown", On: Destroy, Guards: g(gNoLife), Op: OpNone, Does: "refuse: no such shard", do: answer(ErrUnknown)},

	{Name: "cancel-acquire", On: Cancel, Guards: g(gIsParked), Writes: places(PlaceParked), Op: OpNone,
		Does: "forget the request", do: doCancelAcquire},
	{Name: "cancel-outcome", On: Cancel, Guards: g(gIsWaiting), Writes: places(PlaceWaiting), Op: OpNone,
		Does: "forget the request", do: func(t *step) { t.s.Waiting = without(t.s.Waiting, t.in.Ticket) }},
	{Name: "cancel-destroy", On: Cancel, Guards: g(gIsEnding), Writes: places(PlaceEnding), Op: OpNone,
		Does: "forget the request; the shard goes on", do: func(t *step) { t.s.Ending = without(t.s.Ending, t.in.Ticket) }},
	{Name: "cancel-reclaim", On: Cancel, Guards: g(gIsReclaimer), Writes: places(PlaceWaiting), Op: OpNone,
		Does: "forget the request; the removal goes on", do: func(t *step) { t.s.Reclaimer = 0 }},
	{Name: "cancel-late", On: Cancel, Guards: g(gIsGone), Op: OpNone, Does: "nothing: it was answered", do: nothing},

	{Name: "reclaim", On: Reclaim, Guards: g(gOwned, gReclaimable), Op: OpNone, Slot: NoSlot,
		Writes: places(PlaceData, PlaceHandle, PlaceJob, PlaceWaiting), Does: "remove the local copy, then answer", do: doReclaim},
	{Name: "reclaim-nothing", On: Reclaim, Guards: g(gNotOwned), Op: OpNone, Does: "nothing to remove", do: answer(OK)},
	{Name: "reclaim-busy", On: Reclaim, Guards: g(gOwned, gNotReclaimable), Op: OpNone, Does: "refuse: the copy is needed", do: answer(ErrBusy)},

	// What the store does of itself.
	{Name: "resume-registered", On: Resume, Guards: g(gUnborn), Op: OpRegister, Writes: places(PlaceWish),
		Does: "initialise, unless lazy", do: func(t *step) { t.s.Eager = !t.s.Lazy }},
	{Name: "resume-recovering", On: Resume, Guards: g(lifeIs(shard.Recovering)), Op: OpRecover, Writes: places(PlaceLife, PlaceFault),
		Does: "go on with the recovery, afresh", do: func(t *step) { t.s.Fresh = true }},
	{Name: "resume-errored", On: Resume, Guards: g(gErrored, gHealHand), Op: OpNone, Does: "stay errored", do: nothing},
	{Name: "resume-heal-on-acquire", On: Resume, Guards: g(gErrored, gHealAcquire), Op: OpNone, Writes: places(PlaceFault),
		Does: "the next acquire recovers it", do: func(t *step) { t.s.Healing = true }},
	{Name: "resume-heal-now", On: Resume, Guards: g(gErrored, gHealNow, gWritable), Op: OpRecover,
		Writes: recovers, Emits: k(shard.EventRecovering),
		Does: "recover afresh", do: func(t *step) { t.s.Fresh = true; t.recover(t.s.Cause) }},
	{Name: "resume-heal-read-only", On: Resume, Guards: g(gErrored, gHealNow, gReadOnly), Op: OpNone, Does: "stay errored", do: nothing},
	{Name: "resume-rested", On: Resume, Guards: g(lifeIs(shard.None, shard.Initialising, shard.Available)), Op: OpNone, Does: "nothing", do: nothing},

	{Name: "freeze", On: Freeze, Op: OpNone, Writes: places(PlaceJournal, PlaceEnding),
		Does: "see that the journal takes no more events, and tell the destructions that wait; what runs ends by itself", do: doFreeze},

	{Name: "close-idle", On: CloseIdle, Guards: g(gOpen, gNoRefs), Op: OpNone, Writes: places(PlaceHandle),
		Does: "close the shared reader and index", do: func(t *step) { t.closeHandle() }},
	{Name: "close-idle-in-use", On: CloseIdle, Guards: g(gOpen, gRefs), Op: OpNone, Does: "nothing", do: nothing},
	{Name: "close-idle-closed", On: CloseIdle, Guards: g(gNotOpen), Op: OpNone, Does: "nothing", do: nothing},

	{Name: "damage", On: Damage, Guards: g(gAvail, gNoJob, gBadIndex, gWritable), Op: OpRecover, Writes: recovers | places(PlaceIndex, PlaceHandle, PlaceRest), Emits: k(shard.EventRecovering),
		Does: "drop the index and build it again from the data at hand", do: func(t *step) { t.closeHandle(); t.dropIndex(); t.s.Resting = false; t.recover(t.in.Err) }},
	{Name: "damage-busy", On: Damage, Guards: g(gAvail, gHasJob), Op: OpNone,
		Does: "nothing: the next open will find it", do: nothing},
	{Name: "damage-copy", On: Damage, Guards: g(gAvail, gNoJob, gBadCopy), Op: OpNone, Writes: places(PlaceHandle, PlaceData, PlaceParked, PlaceFault),
		Does: "stop using the local copy; the next acquire fetches afresh", do: doDistrust},
	{Name: "damage-source", On: Damage, Guards: g(gAvail, gNoJob, gBadSource), Op: OpFail, Writes: places(PlaceFault),
		Does: "note that not all of the source is what was indexed; go on serving what can be proven",
		do:   func(t *step) { t.s.Ail, t.s.Cause = Changed, t.in.Err; t.notify() }},
	{Name: "damage-passing", On: Damage, Guards: g(gAvail, gNoJob, gPasses), Op: OpNone, Writes: places(PlaceHandle),
		Does: "close the shared reader and index: the next acquire finds out whether they can be had", do: func(t *step) { t.closeHandle() }},
	{Name: "damage-read-only", On: Damage, Guards: g(gAvail, gNoJob, gBadIndex, gReadOnly), Op: OpNone, Does: "nothing: it cannot be recorded", do: nothing},
	{Name: "damage-known", On: Damage, Guards: g(lifeIs(shard.None, shard.Registered, shard.Initialising, shard.Errored, shard.Recovering)),
		Op: OpNone, Does: "nothing", do: nothing},

	{Name: "overdue", On: Overdue, Guards: g(gOpensWithToken), Op: OpNone, Writes: places(PlaceJob, PlaceOpenSlots),
		Does: "give the token back and let the job go on: a source that hangs holds up nobody", do: doOverdue},
	{Name: "overdue-late", On: Overdue, Guards: g(gOpensWithout), Op: OpNone, Does: "nothing", do: nothing},

	{Name: "retry", On: Retry, Guards: g(gResting), Op: OpNone, Writes: places(PlaceRest),
		Does: "let what is wanted be tried again", do: func(t *step) { t.s.Resting = false }},
	{Name: "retry-late", On: Retry, Guards: g(gRested), Op: OpNone, Does: "nothing", do: nothing},

	{Name: "superseded", On: Supersede, Guards: g(gHasLife), Op: OpNone,
		Writes: answers | places(PlaceLife, PlaceData, PlaceIndex, PlaceHandle, PlaceRefs, PlaceFault, PlaceWish, PlaceJob, PlaceRest),
		Does:   "drop the life: waiting callers learn that another hand changed it; open accessors outlive it uncounted", do: doSupersede},
	{Name: "superseded-nothing", On: Supersede, Guards: g(gNoLife), Op: OpNone, Does: "nothing", do: nothing},

	// Completions.
	{Name: "probe-found", On: ProbeDone, Guards: g(isCurrent(JobProbe), gOK, gFound), Op: OpNone,
		Writes: probeEnds, Does: "use the copy that is there",
		do: func(t *step) { t.endJob(); t.s.Data, t.s.Owned = Present, t.in.Owned }},
	{Name: "probe-ready", On: ProbeDone, Guards: g(isCurrent(JobProbe), gOK, gMissing, gIsReady), Op: OpNone,
		Writes: probeEnds | places(PlaceParked), Does: "fetch when a slot is free; refuse who wants no download",
		do: func(t *step) { t.endJob(); t.s.Data = Ready; t.refuseLocal() }},
	{Name: "probe-slow", On: ProbeDone, Guards: g(isCurrent(JobProbe), gOK, gMissing, gIsSlow), Op: OpNone,
		Writes: probeEnds | places(PlaceParked), Does: "fetch without a slot, in which it would idle; refuse who wants no download",
		do: func(t *step) { t.endJob(); t.s.Data = Slow; t.refuseLocal() }},
	{Name: "probe-failed", On: ProbeDone, Guards: g(isCurrent(JobProbe), gMaking, gFailed, gForGood, gWritable), Op: OpFail,
		Writes: probeEnds | fails, Emits: k(shard.EventFailed), Does: "errored; everybody who waits learns why",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.fail() }},
	{Name: "probe-failed-available", On: ProbeDone, Guards: g(isCurrent(JobProbe), gAvail, gFailed, gNotShort), Op: OpFail,
		Writes: probeEnds | ails, Does: "those who wait learn why; after a pause the next acquire tries afresh",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.ail() }},
	{Name: "probe-away", On: ProbeDone, Guards: g(isCurrent(JobProbe), gMaking, gFailed, gPassing, gWritable), Op: OpFail,
		Writes: probeEnds | fails | places(PlaceRest), Does: "nothing is held against the shard; those who wait learn why; tried again after a pause",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.ail() }},
	{Name: "probe-short", On: ProbeDone, Guards: g(isCurrent(JobProbe), gFailed, gShortage, gGoesOn), Op: OpNone,
		Writes: probeEnds | rests, Does: "everybody goes on waiting; tried again after a pause",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.short() }},
	{Name: "probe-failed-read-only", On: ProbeDone, Guards: g(isCurrent(JobProbe), gMaking, gFailed, gReadOnly), Op: OpNone,
		Writes: probeEnds | places(PlaceFault), Does: "note the cause, then give up",
		do: func(t *step) { t.endJob(); t.s.Data, t.s.Cause = Absent, t.in.Err }},

	{Name: "fetched", On: FetchDone, Guards: g(isCurrent(JobFetch), gOK), Op: OpNone,
		Writes: fetchEnds | places(PlaceFault), Does: "a complete, verified copy is durable",
		do: func(t *step) { t.endJob(); t.s.Data, t.s.Owned, t.s.Fresh = Present, true, false }},
	{Name: "fetch-failed", On: FetchDone, Guards: g(isCurrent(JobFetch), gMaking, gFailed, gForGood, gWritable), Op: OpFail,
		Writes: fetchEnds | fails, Emits: k(shard.EventFailed), Does: "errored; everybody who waits learns why",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.fail() }},
	{Name: "fetch-failed-available", On: FetchDone, Guards: g(isCurrent(JobFetch), gAvail, gFailed, gNotShort), Op: OpFail,
		Writes: fetchEnds | ails, Does: "those who wait learn why; after a pause the next acquire or recovery fetches afresh",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.ail() }},
	{Name: "fetch-away", On: FetchDone, Guards: g(isCurrent(JobFetch), gMaking, gFailed, gPassing, gWritable), Op: OpFail,
		Writes: fetchEnds | fails | places(PlaceRest), Does: "nothing is held against the shard; those who wait learn why; tried again after a pause",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.ail() }},
	{Name: "fetch-short", On: FetchDone, Guards: g(isCurrent(JobFetch), gFailed, gShortage, gGoesOn), Op: OpNone,
		Writes: fetchEnds | rests, Does: "everybody goes on waiting; tried again after a pause",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.short() }},
	{Name: "fetch-failed-read-only", On: FetchDone, Guards: g(isCurrent(JobFetch), gMaking, gFailed, gReadOnly), Op: OpNone,
		Writes: fetchEnds | places(PlaceFault), Does: "note the cause, then give up",
		do: func(t *step) { t.endJob(); t.s.Data, t.s.Cause = Absent, t.in.Err }},

	{Name: "indexed", On: IndexDone, Guards: g(isCurrent(JobIndex), gOK, gWritable), Op: OpMakeAvailable,
		Writes: indexEnds | places(PlaceLife, PlaceWaiting, PlaceFault), Emits: k(shard.EventIndexed),
		Does: "available; answer who waits for the outcome", do: doIndexed},
	{Name: "index-found-bad-copy", On: IndexDone, Guards: g(isCurrent(JobIndex), gFailed, gBadCopy, gFirstTry, gWritable), Op: OpNone,
		Writes: indexEnds | places(PlaceData, PlaceParked, PlaceFault), Does: "fetch the copy afresh",
		do: func(t *step) { t.endJob(); t.dropIndex(); t.s.Retried, t.s.Fresh = true, true; t.dropCopy() }},
	{Name: "index-failed", On: IndexDone, Guards: g(isCurrent(JobIndex), gFailed, gForGood, gNoOtherCopy, gWritable), Op: OpFail,
		Writes: indexEnds | fails, Emits: k(shard.EventFailed), Does: "errored; everybody who waits learns why",
		do: func(t *step) { t.endJob(); t.dropIndex(); t.fail() }},
	{Name: "index-away", On: IndexDone, Guards: g(isCurrent(JobIndex), gFailed, gPassing, gWritable), Op: OpFail,
		Writes: indexEnds | fails | places(PlaceRest), Does: "nothing is held against the shard; those who wait learn why; tried again after a pause",
		do: func(t *step) { t.endJob(); t.dropIndex(); t.ail() }},
	{Name: "index-short", On: IndexDone, Guards: g(isCurrent(JobIndex), gFailed, gShortage, gWritable), Op: OpNone,
		Writes: indexEnds | rests, Does: "everybody goes on waiting; tried again after a pause",
		do: func(t *step) { t.endJob(); t.dropIndex(); t.short() }},
	{Name: "indexed-read-only", On: IndexDone, Guards: g(isCurrent(JobIndex), gOK, gReadOnly), Op: OpNone,
		Writes: indexEnds, Does: "drop the index, then give up",
		do: func(t *step) { t.endJob(); t.dropIndex() }},
	{Name: "index-failed-read-only", On: IndexDone, Guards: g(isCurrent(JobIndex), gFailed, gReadOnly), Op: OpNone,
		Writes: indexEnds | places(PlaceFault), Does: "note the cause, then give up",
		do: func(t *step) { t.endJob(); t.dropIndex(); t.s.Cause = t.in.Err }},

	{Name: "opened", On: OpenDone, Guards: g(isCurrent(JobOpen), gOK, gUnchanged), Op: OpNone,
		Writes: openEnds | places(PlaceFault, PlaceWaiting), Does: "the shared reader and index are open", do: doOpened},
	{Name: "opened-changed", On: OpenDone, Guards: g(isCurrent(JobOpen), gOK, gChanged), Op: OpFail,
		Writes: openEnds | places(PlaceFault, PlaceWaiting), Does: "the source is not what was indexed: open, to serve what can be proven; a recovery indexes it afresh",
		do: doOpenedChanged},
	{Name: "open-found-bad-index", On: OpenDone, Guards: g(isCurrent(JobOpen), gFailed, gBadIndex, gFirstTry, gWritable), Op: OpRecover,
		Writes: openEnds | recovers | places(PlaceIndex), Emits: k(shard.EventRecovering), Does: "build the index again from the data at hand",
		do: func(t *step) { t.endOpen(); t.s.Retried = true; t.dropIndex(); t.recover(t.in.Err) }},
	{Name: "open-found-bad-copy", On: OpenDone, Guards: g(isCurrent(JobOpen), gFailed, gBadCopy, gFirstTry), Op: OpNone,
		Writes: openEnds | places(PlaceData, PlaceParked, PlaceFault), Does: "fetch the copy afresh",
		do: func(t *step) { t.endOpen(); t.s.Retried, t.s.Fresh = true, true; t.dropCopy() }},
	{Name: "open-failed", On: OpenDone, Guards: g(isCurrent(JobOpen), gFailed, gBadSource, gWritable), Op: OpFail,
		Writes: openEnds | fails | places(PlaceIndex), Emits: k(shard.EventFailed), Does: "errored; everybody who waits learns why",
		do: func(t *step) { t.endOpen(); t.dropIndex(); t.fail() }},
	{Name: "open-failed-passing", On: OpenDone, Guards: g(isCurrent(JobOpen), gFailed, gPassing), Op: OpFail,
		Writes: openEnds | ails, Does: "those who wait learn why; after a pause the next acquire tries again",
		do: func(t *step) { t.endOpen(); t.ail() }},
	{Name: "open-short", On: OpenDone, Guards: g(isCurrent(JobOpen), gFailed, gShortage), Op: OpNone,
		Writes: openEnds | rests, Does: "everybody goes on waiting; tried again after a pause",
		do: func(t *step) { t.endOpen(); t.short() }},
	{Name: "open-failed-again", On: OpenDone, Guards: g(isCurrent(JobOpen), gFailed,
		onInput("index or copy at fault", func(in *Input) bool { return in.Fault == FaultIndex || in.Fault == FaultCopy }), gSecondTry, gWritable), Op: OpFail,
		Writes: openEnds | fails | places(PlaceIndex), Emits: k(shard.EventFailed), Does: "errored: mending it once did not help",
		do: func(t *step) { t.endOpen(); t.dropIndex(); t.fail() }},
	{Name: "open-failed-read-only", On: OpenDone, Guards: g(isCurrent(JobOpen), gFailed, gReadOnly, gCannotMend), Op: OpNone,
		Writes: openEnds | answers, Does: "those who wait learn why; nothing can be recorded",
		do: func(t *step) { t.endOpen(); t.answerAll(ErrFailed, t.in.Err) }},

	{Name: "removed", On: RemoveDone, Guards: g(isCurrent(JobRemove), gOK), Op: OpNone,
		Writes: removeEnds, Does: "the copy is gone", do: doRemoved},
	{Name: "remove-failed", On: RemoveDone, Guards: g(isCurrent(JobRemove), gFailed), Op: OpNone,
		Writes: removeEnds, Looks: places(PlaceFault), Does: "say why the copy is still there", do: doRemoveFailed},

	late(ProbeDone, JobProbe, PlaceOpenSlots), late(FetchDone, JobFetch, PlaceFetchSlots), late(IndexDone, JobIndex, PlaceIndexSlots),
	late(OpenDone, JobOpen, PlaceOpenSlots), late(RemoveDone, JobRemove, PlaceJob),
	outdated(ProbeDone, JobProbe), outdated(FetchDone, JobFetch), outdated(IndexDone, JobIndex),
	outdated(OpenDone, JobOpen), outdated(RemoveDone, JobRemove),

	// Automatic.
	{Name: "initialise", On: Auto, Guards: g(gUnborn, gWanted, gWritable), Op: OpInitialize, Writes: places(PlaceLife, PlaceWish),
		Does: "begin to fetch and index", do: func(t *step) { t.s.Life, t.s.Eager = shard.Initialising, false }},
	{Name: "give-up", On: Auto, Guards: g(gMaking, gNoJob, gReadOnly), Op: OpNone, Writes: fails | places(PlaceRest),
		Does: "those who wait learn that nothing can be recorded", do: doGiveUp},
	{Name: "probe", On: Auto, Guards: g(gWantsProbe, gAbsent, gNoJob, gRested, slotFree(OpenSlot)), Slot: OpenSlot, Op: OpNone,
		Writes: places(PlaceData, PlaceJob, PlaceOpenSlots), Looks: places(PlaceFault), Does: "ask the source whether it is there and ready",
		do: func(t *step) { t.s.Data = Probing; t.start(JobProbe, OpenSlot) }},
	{Name: "fetch", On: Auto, Guards: g(gWantsData, gReady, slotFree(FetchSlot)), Slot: FetchSlot, Op: OpNone,
		Writes: places(PlaceData, PlaceJob, PlaceFetchSlots), Looks: places(PlaceFault), Does: "make a local copy",
		do: func(t *step) { t.s.Data = Fetching; t.start(JobFetch, FetchSlot) }},
	{Name: "fetch-slow", On: Auto, Guards: g(gWantsData, gSlow), Slot: NoSlot, Op: OpNone,
		Writes: places(PlaceData, PlaceJob), Looks: places(PlaceFault), Does: "make a local copy once the source has prepared",
		do: func(t *step) { t.s.Data = Fetching; t.start(JobFetch, NoSlot) }},
	{Name: "forget-probe", On: Auto, Guards: g(gSettled, gNoWish, gProbed), Op: OpNone, Writes: places(PlaceData),
		Does: "forget an answer that nobody waits for: the next acquire asks anew", do: func(t *step) { t.s.Data = Absent }},
	{Name: "build", On: Auto, Guards: g(gMaking, gReadable, gNoJob, gRested, gWritable, slotFree(IndexSlot)), Slot: IndexSlot, Op: OpNone,
		Writes: places(PlaceIndex, PlaceJob, PlaceIndexSlots), Does: "scan the data and write the index",
		do: func(t *step) { t.s.Index = Building; t.start(JobIndex, IndexSlot) }},
	{Name: "open", On: Auto, Guards: g(gAvail, gClosed, gAsked, gReadable, gRested, slotFree(OpenSlot)), Slot: OpenSlot, Op: OpNone,
		Writes: places(PlaceHandle, PlaceJob, PlaceOpenSlots), Does: "open the reader and the index",
		do: func(t *step) { t.s.Handle = Opening; t.start(JobOpen, OpenSlot) }},
	{Name: "destroy-waited", On: Auto, Guards: g(gEnding, gNoRefs), Op: OpDestroy,
		Writes: fails | places(PlaceData, PlaceIndex, PlaceHandle, PlaceEnding, PlaceWish, PlaceJob, PlaceRest), Emits: k(shard.EventDestroyed),
		Does: "as destroy, for the first that waits", do: doDestroyWaited},
	{Name: "serve", On: Auto, Guards: g(gOpen, gParked), Op: OpNone, Writes: places(PlaceRefs, PlaceParked),
		Does: "count a reference for each waiting acquire and answer with accessors", do: doServe},
}

// late handles a completion that comes after the shard's life: the token goes
// back, nothing else happens.
func late(on Trigger, job Job, slots Place) *Transition {
	return &Transition{Name: job.String() + "-after-life", On: on, Guards: g(isStale(job)), Op: OpNone,
		Writes: places(PlaceJob, slots), Does: "the result of a former life is dropped", do: func(t *step) { t.endJob() }}
}

func outdated(on Trigger, job Job) *Transition {
	return &Transition{Name: job.String() + "-outdated", On: on, Guards: g(isOutdated(job)), Op: OpNone,
		Does: "the result of an outdated attempt is dropped", do: nothing}
}

func g(gs ...*Guard) []*Guard         { return gs }
func k(ks ...shard.Kind) []shard.Kind { return ks }
func nothing(*step)                   {}
func answer(c Code) func(*step)       { return func(t *step) { t.reply(t.in.Ticket, c, nil) } }
func answerCause(t *step)             { t.reply(t.in.Ticket, ErrErrored, t.s.Cause) }

// Outcomes.

func doRegister(t *step) {
	s := t.s
	s.Gen, s.Life, s.Lazy, s.Eager = t.in.Gen, shard.Registered, t.in.Lazy, !t.in.Lazy
	if s.Data = Absent; t.in.Direct {
		s.Data = Direct
	}
	t.emit(shard.EventRegistered)
	if s.Lazy {
		t.reply(t.in.Ticket, OK, nil)
	} else {
		t.await()
	}
}

func doAcquireOpen(t *step) {
	t.s.Refs++
	t.out.Replies = append(t.out.Replies, Reply{Ticket: t.in.Ticket, Accessor: true})
}

func doPark(t *step) { t.s.Parked = append(t.s.Parked, t.in.Ticket) }

func doServe(t *step) {
	s := t.s
	for _, waiting := range [...][]Ticket{s.Parked, s.Local} {
		for _, ticket := range waiting {
			if s.Refs == 0 || !planted.Bug("fsm-delivery-not-counted") {
				s.Refs++
			}
			t.out.Replies = append(t.out.Replies, Reply{Ticket: ticket, Accessor: true})
		}
	}
	s.Parked, s.Local = s.Parked[:0], s.Local[:0]
}

func doCancelAcquire(t *step) {
	t.s.Parked, t.s.Local = without(t.s.Parked, t.in.Ticket), without(t.s.Local, t.in.Ticket)
}

func doDestroy(t *step) { t.destroy(t.in.Ticket) }

// doDestroyWaited is for the first of the destructions that wait. The others find no
// shard.
func doDestroyWaited(t *step) {
	first := t.s.Ending[0]
	t.s.Ending = without(t.s.Ending, first)
	t.destroy(first)
	t.answerEnding(ErrUnknown)
}

// doCutAndDestroy ends the life although accessors are open: they count no more.
func doCutAndDestroy(t *step) {
	t.out.Effects = append(t.out.Effects, Effect{Kind: CutOff})
	t.s.Refs, t.s.cut = 0, t.s.Refs
	t.destroy(t.in.Ticket)
	t.answerEnding(ErrUnknown)
}

// destroy ends the life for ticket, which the sweep answers.
func (t *step) destroy(ticket Ticket) {
	t.endLife(ErrUnknown)
	t.emit(shard.EventDestroyed)
	t.out.Effects = append(t.out.Effects, Effect{Kind: Sweep, Ticket: ticket})
}

func doFreeze(t *step) { t.answerEnding(ErrReadOnly) }

// doSupersede ends what is known here of a life that goes on, or ended, elsewhere:
// its files are not ours to sweep.
func doSupersede(t *step) {
	working := t.s.job != JobNone && !t.s.stale
	t.endLife(ErrSuperseded)
	t.s.Refs = 0
	if working {
		t.out.Effects = append(t.out.Effects, Effect{Kind: CancelJob})
	}
}

// endLife leaves nothing of the life but its running job, and answers everybody.
func (t *step) endLife(code Code) {
	s := t.s
	t.answerAll(code, nil)
	t.closeHandle()
	s.Life, s.Data, s.Index = shard.None, Absent, NoIndex
	s.Handle, s.stale = Closed, s.job != JobNone
	s.Lazy, s.Eager, s.Healing, s.Fresh, s.Retried, s.Owned = false, false, false, false, false, false
	s.Ail, s.Resting = Well, false
	s.Cause, s.Info = nil, shard.IndexInfo{}
	t.answerReclaimer(code, nil)
}

func doReclaim(t *step) {
	t.closeHandle()
	t.s.Data, t.s.Reclaimer = Removing, t.in.Ticket
	t.start(JobRemove, NoSlot)
}

func doRemoved(t *step) {
	t.endJob()
	t.s.Data, t.s.Owned = Absent, false
	t.answerReclaimer(OK, nil)
}

func doRemoveFailed(t *step) {
	t.endJob()
	t.s.Data = Present
	if t.s.Fresh { // a recovery began meanwhile and distrusts what is left
		t.s.Data, t.s.Owned = Absent, false
	}
	t.answerReclaimer(ErrFailed, t.in.Err)
}

func doIndexed(t *step) {
	t.endJob()
	s := t.s
	s.Index, s.Info, s.Life = Indexed, t.in.Info, shard.Available
	s.Cause, s.Fresh, s.Ail = nil, false, Well
	t.emit(shard.EventIndexed)
	t.answerWaiting(OK, nil)
}

func doOpened(t *step) {
	t.endJob()
	s := t.s
	s.Handle = Open
	s.Cause, s.Ail, s.Retried, s.Fresh = nil, Well, false, false
	t.answerWaiting(OK, nil)
}

// doOpenedChanged: a recovery that waited for a next try learns that one was not enough.
func doOpenedChanged(t *step) {
	t.endJob()
	s := t.s
	s.Handle = Open
	s.Cause, s.Ail, s.Retried, s.Fresh = t.in.Changed, Changed, false, false
	t.answerWaiting(ErrFailed, t.in.Changed)
	t.out.Effects = append(t.out.Effects, Effect{Kind: NotifyFailure, Cause: t.in.Changed})
}

func doRecover(t *step) {
	t.await()
	t.closeHandle()
	t.dropIndex()
	t.dropCopy()
	t.s.Fresh, t.s.Resting = true, false
	t.recover(t.s.Cause)
}

// doDistrust is for a copy whose bytes are not what was indexed.
func doDistrust(t *step) {
	if t.s.Data == Present {
		t.closeHandle()
		t.s.Fresh = true
		t.dropCopy()
	}
}

func doOverdue(t *step) {
	t.s.slow = !planted.Bug("fsm-token-released-twice")
	t.net.giveBack(OpenSlot, t.s, t.out)
}

// recover begins a recovery because of cause.
func (t *step) recover(cause error) {
	s := t.s
	s.Life, s.Cause, s.Healing, s.Ail = shard.Recovering, cause, false, Well
	t.emit(shard.EventRecovering)
}

func (t *step) dropIndex() { t.s.Index, t.s.Info = NoIndex, shard.IndexInfo{} }

// dropCopy stops using the local copy; the next probe removes it.
func (t *step) dropCopy() {
	if t.s.Data == Present {
		t.s.Data, t.s.Owned = Absent, false
	}
	if t.s.Data != Direct {
		t.refuseLocal()
	}
}

// fail makes the shard errored because of the input's error. Whatever leaves that
// state begins afresh, with a second try.
func (t *step) fail() {
	s := t.s
	s.Life, s.Cause = shard.Errored, t.in.Err
	s.Ail, s.Fresh, s.Retried = Well, false, false
	t.emit(shard.EventFailed)
	t.answerAll(ErrFailed, t.in.Err)
	t.notify()
}

// ail leaves the shard what it was, new or available or recovering, although its bytes
// could not be had.
func (t *step) ail() {
	s := t.s
	code := ErrAway
	s.Ail, s.Cause, s.Resting = Away, t.in.Err, true
	if !t.in.Fault.passes() {
		s.Ail, code = Changed, ErrFailed
	}
	if s.Life == shard.Initialising {
		s.Life = shard.Registered
	}
	t.answerAll(code, t.in.Err)
	t.notify()
}

// short lets everybody wait until this machine is no longer short of what it was.
func (t *step) short() { t.s.Ail, t.s.Cause, t.s.Resting = Short, t.in.Err, true }

// doGiveUp ends an initialisation or recovery whose outcome cannot be recorded.
func doGiveUp(t *step) {
	s := t.s
	s.Fresh, s.Retried = false, false
	s.Ail, s.Resting = Well, false
	if s.Life == shard.Initialising {
		s.Life = shard.Registered
	} else {
		s.Life = shard.Errored
	}
	t.answerAll(ErrReadOnly, s.Cause)
}

// endOpen ends an open that failed.
func (t *step) endOpen() {
	t.endJob()
	t.s.Handle = Closed
}

func (t *step) closeHandle() {
	if t.s.Handle == Open {
		t.s.Handle = Closed
		t.out.Effects = append(t.out.Effects, Effect{Kind: CloseHandle})
	}
}

func (t *step) notify() {
	t.out.Effects = append(t.out.Effects, Effect{Kind: NotifyFailure, Cause: t.in.Err})
}

func (t *step) await() {
	if t.in.Ticket != 0 {
		t.s.Waiting = append(t.s.Waiting, t.in.Ticket)
	}
}

func (t *step) reply(ticket Ticket, c Code, cause error) {
	if ticket != 0 {
		t.out.Replies = append(t.out.Replies, Reply{Ticket: ticket, Code: c, Cause: cause})
	}
}

func (t *step) answerWaiting(c Code, cause error) {
	for _, ticket := range t.s.Waiting {
		t.reply(ticket, c, cause)
	}
	t.s.Waiting = t.s.Waiting[:0]
}

func (t *step) answerEnding(c Code) {
	for _, ticket := range t.s.Ending {
		t.reply(ticket, c, nil)
	}
	t.s.Ending = t.s.Ending[:0]
}

func (t *step) answerReclaimer(c Code, cause error) {
	t.reply(t.s.Reclaimer, c, cause)
	t.s.Reclaimer = 0
}

func (t *step) answerAll(c Code, cause error) {
	for _, ticket := range t.s.Parked {
		t.reply(ticket, c, cause)
	}
	for _, ticket := range t.s.Local {
		t.reply(ticket, c, cause)
	}
	t.s.Parked, t.s.Local = t.s.Parked[:0], t.s.Local[:0]
	t.answerWaiting(c, cause)
}

// refuseLocal answers the acquires that want no download: there is no copy.
func (t *step) refuseLocal() {
	for _, ticket := range t.s.Local {
		t.reply(ticket, ErrNoCopy, nil)
	}
	t.s.Local = t.s.Local[:0]
}

func (t *step) emit(kind shard.Kind) {
	t.out.Events = append(t.out.Events, Event{Kind: kind, Life: t.s.Life})
}

func without(ts []Ticket, t Ticket) []Ticket {
	kept := ts[:0]
	for _, x := range ts {
		if x != t {
			kept = append(kept, x)
		}
	}
	return kept
}
