package fsm

import "github.com/dagstore/dagstore/shard"

var (
	failWrites    = places(PlaceLife, PlaceData, PlaceIndex, PlaceHandle, PlaceParked, PlaceWaiting, PlaceFault, PlaceWish, PlaceJob)
	recoverWrites = places(PlaceLife, PlaceData, PlaceIndex, PlaceHandle, PlaceWaiting, PlaceParked, PlaceFault)
	openEnds      = places(PlaceJob, PlaceOpenSlots, PlaceHandle)
)

// table is the machine. For an input, the first row of its trigger whose guards
// all hold fires; then automatic rows fire until none is enabled. The rows of one
// trigger exclude each other and leave no case out, which the model check holds.
var table = []*Transition{
	// Requests.
	{Name: "register", On: Register, Guards: g(gNoLife, gWritable), Op: OpRegister,
		Writes: places(PlaceLife, PlaceData, PlaceWish, PlaceWaiting), Emits: k(shard.EventRegistered),
		Does: "begin a life; answer at once if lazy, else when initialised", do: doRegister},
	{Name: "register-exists", On: Register, Guards: g(gHasLife), Does: "refuse: the key is taken", do: answer(ErrExists)},
	{Name: "register-read-only", On: Register, Guards: g(gNoLife, gReadOnly), Does: "refuse: read-only", do: answer(ErrReadOnly)},

	{Name: "acquire-open", On: Acquire, Guards: g(gAvail, gOpen), Writes: places(PlaceRefs), Op: OpAcquire,
		Does: "count a reference and answer with an accessor", do: doAcquireOpen},
	{Name: "acquire-park", On: Acquire, Guards: g(lifeIs(shard.Initialising, shard.Recovering), gNoFetch),
		Writes: places(PlaceParked), Op: OpAcquire, Does: "wait for the index", do: doPark},
	{Name: "acquire-closed", On: Acquire, Guards: g(gAvail, gNotOpen, gNoFetch),
		Writes: places(PlaceParked), Op: OpAcquire, Does: "wait for the data and the index to be opened", do: doPark},
	{Name: "acquire-first", On: Acquire, Guards: g(gUnborn, gWritable, gNoFetch),
		Writes: places(PlaceParked), Op: OpAcquire, Does: "wait; the shard will be initialised", do: doPark},
	{Name: "acquire-read-only", On: Acquire, Guards: g(gUnborn, gReadOnly, gNoFetch),
		Op: OpAcquire, Does: "refuse: the index could not be recorded", do: answer(ErrReadOnly)},
	{Name: "acquire-no-download", On: Acquire, Guards: g(lifeIs(shard.Registered, shard.Initialising, shard.Recovering), gWouldFetch),
		Op: OpAcquire, Does: "refuse: it would need a download", do: answer(ErrNoCopy)},
	{Name: "acquire-closed-no-download", On: Acquire, Guards: g(gAvail, gNotOpen, gWouldFetch),
		Op: OpAcquire, Does: "refuse: it would need a download", do: answer(ErrNoCopy)},
	{Name: "acquire-errored", On: Acquire, Guards: g(gErrored, gNotHealing), Op: OpAcquire,
		Does: "refuse with the cause", do: answer(ErrErrored)},
	{Name: "acquire-heal", On: Acquire, Guards: g(gErrored, gHealing, gWritable), Op: OpRecover,
		Writes: recoverWrites, Emits: k(shard.EventRecovering),
		Does: "recover afresh and wait", do: func(t *step) { doPark(t); t.trace(OpAcquire); t.recover(t.s.Cause, true) }},
	{Name: "acquire-heal-read-only", On: Acquire, Guards: g(gErrored, gHealing, gReadOnly), Op: OpAcquire,
		Does: "refuse: read-only", do: answer(ErrReadOnly)},
	{Name: "acquire-unknown", On: Acquire, Guards: g(gNoLife), Op: OpNone, Does: "refuse: no such shard", do: answer(ErrUnknown)},

	{Name: "release", On: Release, Guards: g(gRefs), Writes: places(PlaceRefs), Op: OpRelease,
		Does: "drop a reference", do: func(t *step) { t.s.Refs-- }},
	{Name: "release-stray", On: Release, Guards: g(gNoRefs), Op: OpNone, Does: "nothing", do: nothing},

	{Name: "recover", On: Recover, Guards: g(gRecoverable, gWritable), Op: OpRecover,
		Writes: recoverWrites, Emits: k(shard.EventRecovering),
		Does: "fetch and index afresh; answer with the outcome",
		do:   func(t *step) { t.await(); t.recover(t.s.Cause, true) }},
	{Name: "recover-join", On: Recover, Guards: g(gMending), Writes: places(PlaceWaiting), Op: OpNone,
		Does: "wait for the outcome of what is under way", do: func(t *step) { t.await() }},
	{Name: "recover-refused", On: Recover, Guards: g(gHealthy), Op: OpNone, Does: "refuse: nothing to recover", do: answer(ErrNotErrored)},
	{Name: "recover-read-only", On: Recover, Guards: g(gRecoverable, gReadOnly), Op: OpNone, Does: "refuse: read-only", do: answer(ErrReadOnly)},
	{Name: "recover-unknown", On: Recover, Guards: g(gNoLife), Op: OpNone, Does: "refuse: no such shard", do: answer(ErrUnknown)},

	{Name: "destroy", On: Destroy, Guards: g(gHasLife, gNoRefs, gWritable), Op: OpDestroy,
		Writes: failWrites | places(PlaceFetchSlots, PlaceIndexSlots, PlaceOpenSlots), Emits: k(shard.EventDestroyed),
		Does: "end the life; waiting callers learn that the shard is gone; sweep its files, then answer", do: doDestroy},
	{Name: "destroy-in-use", On: Destroy, Guards: g(gHasLife, gRefs), Op: OpNone, Does: "refuse: accessors are open", do: answer(ErrInUse)},
	{Name: "destroy-read-only", On: Destroy, Guards: g(gHasLife, gNoRefs, gReadOnly), Op: OpNone, Does: "refuse: read-only", do: answer(ErrReadOnly)},
	{Name: "destroy-unknown", On: Destroy, Guards: g(gNoLife), Op: OpNone, Does: "refuse: no such shard", do: answer(ErrUnknown)},

	{Name: "cancel-acquire", On: Cancel, Guards: g(gIsParked), Writes: places(PlaceParked), Op: OpNone,
		Does: "forget the request", do: func(t *step) { t.s.Parked = without(t.s.Parked, t.in.Ticket) }},
	{Name: "cancel-outcome", On: Cancel, Guards: g(gIsWaiting), Writes: places(PlaceWaiting), Op: OpNone,
		Does: "forget the request", do: func(t *step) { t.s.Waiting = without(t.s.Waiting, t.in.Ticket) }},
	{Name: "cancel-late", On: Cancel, Guards: g(gIsGone), Op: OpNone, Does: "nothing: it was answered", do: nothing},

	{Name: "reclaim", On: Reclaim, Guards: g(gOwned, gReclaimable), Op: OpNone, Slot: NoSlot,
		Writes: places(PlaceData, PlaceHandle, PlaceJob, PlaceWaiting), Does: "remove the local copy, then answer", do: doReclaim},
	{Name: "reclaim-nothing", On: Reclaim, Guards: g(gNotOwned), Op: OpNone, Does: "nothing to remove", do: answer(OK)},
	{Name: "reclaim-busy", On: Reclaim, Guards: g(gOwned, gNotReclaimable), Op: OpNone, Does: "refuse: the copy is needed", do: answer(ErrBusy)},

	// What the store does of itself.
	{Name: "resume-registered", On: Resume, Guards: g(gUnborn), Op: OpRegister, Writes: places(PlaceWish),
		Does: "initialise, unless lazy", do: func(t *step) { t.s.Eager = !t.s.Lazy }},
	{Name: "resume-recovering", On: Resume, Guards: g(lifeIs(shard.Recovering)), Op: OpRecover, Writes: places(PlaceFault),
		Does: "go on with the recovery, afresh", do: func(t *step) { t.s.Fresh = true }},
	{Name: "resume-errored", On: Resume, Guards: g(gErrored, gHealHand), Op: OpNone, Does: "stay errored", do: nothing},
	{Name: "resume-heal-on-acquire", On: Resume, Guards: g(gErrored, gHealAcquire), Op: OpNone, Writes: places(PlaceFault),
		Does: "the next acquire recovers it", do: func(t *step) { t.s.Healing = true }},
	{Name: "resume-heal-now", On: Resume, Guards: g(gErrored, gHealNow, gWritable), Op: OpRecover,
		Writes: recoverWrites, Emits: k(shard.EventRecovering),
		Does: "recover afresh", do: func(t *step) { t.recover(t.s.Cause, true) }},
	{Name: "resume-heal-read-only", On: Resume, Guards: g(gErrored, gHealNow, gReadOnly), Op: OpNone, Does: "stay errored", do: nothing},
	{Name: "resume-rested", On: Resume, Guards: g(lifeIs(shard.None, shard.Initialising, shard.Available)), Op: OpNone, Does: "nothing", do: nothing},

	{Name: "freeze-unborn", On: Freeze, Guards: g(gUnborn), Op: OpNone, Writes: places(PlaceParked, PlaceWaiting, PlaceWish),
		Does: "answer those who wait for an initialisation that cannot be recorded",
		do:   func(t *step) { t.s.Eager = false; t.answerAll(ErrReadOnly, nil) }},
	{Name: "freeze", On: Freeze, Guards: g(lifeIs(shard.None, shard.Initialising, shard.Available, shard.Errored, shard.Recovering)),
		Op: OpNone, Does: "nothing: what runs ends by itself", do: nothing},

	{Name: "close-idle", On: CloseIdle, Guards: g(gOpen, gNoRefs, gNoParked), Op: OpNone, Writes: places(PlaceHandle),
		Does: "close the shared reader and index", do: func(t *step) { t.closeHandle() }},
	{Name: "close-idle-in-use", On: CloseIdle, Guards: g(gOpen, gRefs), Op: OpNone, Does: "nothing", do: nothing},
	{Name: "close-idle-closed", On: CloseIdle, Guards: g(gNotOpen), Op: OpNone, Does: "nothing", do: nothing},

	{Name: "damage", On: Damage, Guards: g(gAvail, gNoJob, gWritable), Op: OpRecover, Writes: recoverWrites, Emits: k(shard.EventRecovering),
		Does: "drop the index and build it again from the data at hand", do: func(t *step) { t.recover(t.in.Err, false) }},
	{Name: "damage-busy", On: Damage, Guards: g(gAvail, on("a job running", places(PlaceJob), "a job", func(s *Shard) bool { return s.job != JobNone }, haveJob)),
		Op: OpNone, Does: "nothing: the open that runs will find it", do: nothing},
	{Name: "damage-read-only", On: Damage, Guards: g(gAvail, gNoJob, gReadOnly), Op: OpNone, Does: "nothing: it cannot be recorded", do: nothing},
	{Name: "damage-known", On: Damage, Guards: g(lifeIs(shard.None, shard.Registered, shard.Initialising, shard.Errored, shard.Recovering)),
		Op: OpNone, Does: "nothing", do: nothing},

	// Completions.
	{Name: "probe-found", On: ProbeDone, Guards: g(isCurrent(JobProbe), gHasLife, gOK, gFound), Op: OpNone,
		Writes: places(PlaceData, PlaceJob, PlaceOpenSlots), Does: "use the copy that is there",
		do: func(t *step) { t.endJob(); t.s.Data, t.s.Owned = Present, t.in.Owned }},
	{Name: "probe-ready", On: ProbeDone, Guards: g(isCurrent(JobProbe), gHasLife, gOK, gMissing, gIsReady), Op: OpNone,
		Writes: places(PlaceData, PlaceJob, PlaceOpenSlots), Does: "fetch when a slot is free",
		do: func(t *step) { t.endJob(); t.s.Data = Ready }},
	{Name: "probe-slow", On: ProbeDone, Guards: g(isCurrent(JobProbe), gHasLife, gOK, gMissing, gIsSlow), Op: OpNone,
		Writes: places(PlaceData, PlaceJob, PlaceOpenSlots), Does: "fetch without a slot: it would idle in it",
		do: func(t *step) { t.endJob(); t.s.Data = Slow }},
	{Name: "probe-failed", On: ProbeDone, Guards: g(isCurrent(JobProbe), gMaking, gFailed, gWritable), Op: OpFail,
		Writes: failWrites | places(PlaceOpenSlots), Emits: k(shard.EventFailed), Does: "errored; everybody who waits learns why",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.fail() }},
	{Name: "probe-failed-available", On: ProbeDone, Guards: g(isCurrent(JobProbe), gAvail, gFailed), Op: OpFail,
		Writes: failWrites | places(PlaceOpenSlots), Does: "those who wait learn why; the next acquire tries afresh",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.ail() }},
	{Name: "probe-failed-read-only", On: ProbeDone, Guards: g(isCurrent(JobProbe), gMaking, gFailed, gReadOnly), Op: OpNone,
		Writes: failWrites | places(PlaceOpenSlots), Does: "those who wait learn that nothing can be recorded",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.giveUp() }},

	{Name: "fetched", On: FetchDone, Guards: g(isCurrent(JobFetch), gHasLife, gOK), Op: OpNone,
		Writes: places(PlaceData, PlaceJob, PlaceFetchSlots, PlaceFault), Does: "a complete, verified copy is durable",
		do: func(t *step) { t.endJob(); t.s.Data, t.s.Owned, t.s.Fresh = Present, true, false }},
	{Name: "fetch-failed", On: FetchDone, Guards: g(isCurrent(JobFetch), gMaking, gFailed, gWritable), Op: OpFail,
		Writes: failWrites | places(PlaceFetchSlots), Emits: k(shard.EventFailed), Does: "errored; everybody who waits learns why",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.fail() }},
	{Name: "fetch-failed-available", On: FetchDone, Guards: g(isCurrent(JobFetch), gAvail, gFailed), Op: OpFail,
		Writes: failWrites | places(PlaceFetchSlots), Does: "those who wait learn why; the next acquire or recovery fetches afresh",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.ail() }},
	{Name: "fetch-failed-read-only", On: FetchDone, Guards: g(isCurrent(JobFetch), gMaking, gFailed, gReadOnly), Op: OpNone,
		Writes: failWrites | places(PlaceFetchSlots), Does: "those who wait learn that nothing can be recorded",
		do: func(t *step) { t.endJob(); t.s.Data = Absent; t.giveUp() }},

	{Name: "indexed", On: IndexDone, Guards: g(isCurrent(JobIndex), gMaking, gOK, gWritable), Op: OpMakeAvailable,
		Writes: places(PlaceLife, PlaceIndex, PlaceWaiting, PlaceFault, PlaceWish, PlaceJob, PlaceIndexSlots), Emits: k(shard.EventIndexed),
		Does: "available; answer who waits for the outcome", do: doIndexed},
	{Name: "index-failed", On: IndexDone, Guards: g(isCurrent(JobIndex), gMaking, gFailed, gWritable), Op: OpFail,
		Writes: failWrites | places(PlaceIndexSlots), Emits: k(shard.EventFailed), Does: "errored; everybody who waits learns why",
		do: func(t *step) { t.endJob(); t.s.Index = NoIndex; t.fail() }},
	{Name: "index-read-only", On: IndexDone, Guards: g(isCurrent(JobIndex), gMaking, gReadOnly), Op: OpNone,
		Writes: failWrites | places(PlaceIndexSlots), Does: "those who wait learn that nothing can be recorded",
		do: func(t *step) { t.endJob(); t.s.Index = NoIndex; t.giveUp() }},

	{Name: "opened", On: OpenDone, Guards: g(isCurrent(JobOpen), gAvail, gOK), Op: OpNone,
		Writes: openEnds | places(PlaceFault, PlaceWaiting), Does: "the shared reader and index are open", do: doOpened},
	{Name: "open-found-bad-index", On: OpenDone, Guards: g(isCurrent(JobOpen), gAvail, gFailed, gBadIndex, gFirstTry, gWritable), Op: OpRecover,
		Writes: openEnds | recoverWrites, Emits: k(shard.EventRecovering), Does: "build the index again from the data at hand",
		do: func(t *step) { t.endJob(); t.s.Handle = Closed; t.s.Retried = true; t.recover(t.in.Err, false) }},
	{Name: "open-found-bad-copy", On: OpenDone, Guards: g(isCurrent(JobOpen), gAvail, gFailed, gBadCopy, gFirstTry), Op: OpNone,
		Writes: openEnds | places(PlaceData, PlaceFault), Does: "fetch the copy afresh",
		do: func(t *step) {
			t.endJob()
			t.s.Handle, t.s.Retried, t.s.Fresh = Closed, true, true
			t.dropCopy()
		}},
	{Name: "open-failed", On: OpenDone, Guards: g(isCurrent(JobOpen), gAvail, gFailed, gBadSource, gWritable), Op: OpFail,
		Writes: openEnds | failWrites, Emits: k(shard.EventFailed), Does: "errored; everybody who waits learns why",
		do: func(t *step) { t.endJob(); t.s.Handle = Closed; t.fail() }},
	{Name: "open-failed-again", On: OpenDone, Guards: g(isCurrent(JobOpen), gAvail, gFailed,
		onInput("index or copy at fault", func(in *Input) bool { return in.Fault != FaultSource }), gSecondTry, gWritable), Op: OpFail,
		Writes: openEnds | failWrites, Emits: k(shard.EventFailed), Does: "errored: mending it once did not help",
		do: func(t *step) { t.endJob(); t.s.Handle = Closed; t.fail() }},
	{Name: "open-failed-read-only", On: OpenDone, Guards: g(isCurrent(JobOpen), gAvail, gFailed, gReadOnly, gCannotMend), Op: OpNone,
		Writes: openEnds | failWrites, Does: "those who wait learn why; nothing can be recorded",
		do: func(t *step) { t.endJob(); t.s.Handle = Closed; t.answerAll(ErrFailed, t.in.Err) }},

	{Name: "removed", On: RemoveDone, Guards: g(isCurrent(JobRemove), gHasLife, gOK), Op: OpNone,
		Writes: places(PlaceData, PlaceJob, PlaceWaiting), Does: "the copy is gone", do: doRemoved},
	{Name: "remove-failed", On: RemoveDone, Guards: g(isCurrent(JobRemove), gHasLife, gFailed), Op: OpNone,
		Writes: places(PlaceData, PlaceJob, PlaceWaiting), Does: "say why the copy is still there", do: doRemoved},

	late(ProbeDone, JobProbe, PlaceOpenSlots), late(FetchDone, JobFetch, PlaceFetchSlots), late(IndexDone, JobIndex, PlaceIndexSlots),
	late(OpenDone, JobOpen, PlaceOpenSlots), late(RemoveDone, JobRemove, PlaceJob),
	outdated(ProbeDone, JobProbe), outdated(FetchDone, JobFetch), outdated(IndexDone, JobIndex),
	outdated(OpenDone, JobOpen), outdated(RemoveDone, JobRemove),

	// Automatic.
	{Name: "initialise", On: Auto, Guards: g(gUnborn, gWanted, gWritable), Op: OpInitialize, Writes: places(PlaceLife),
		Does: "begin to fetch and index", do: func(t *step) { t.s.Life = shard.Initialising }},
	{Name: "probe", On: Auto, Guards: g(gWantsData, gAbsent, gNoJob, slotFree(OpenSlot)), Slot: OpenSlot, Op: OpNone,
		Writes: places(PlaceData, PlaceJob, PlaceOpenSlots), Does: "ask the source whether it is there and ready",
		do: func(t *step) { t.s.Data = Probing; t.start(JobProbe, OpenSlot) }},
	{Name: "fetch", On: Auto, Guards: g(gWantsData, gReady, gNoJob, slotFree(FetchSlot)), Slot: FetchSlot, Op: OpNone,
		Writes: places(PlaceData, PlaceJob, PlaceFetchSlots), Does: "make a local copy",
		do: func(t *step) { t.s.Data = Fetching; t.start(JobFetch, FetchSlot) }},
	{Name: "fetch-slow", On: Auto, Guards: g(gWantsData, gSlow, gNoJob), Slot: NoSlot, Op: OpNone,
		Writes: places(PlaceData, PlaceJob), Does: "make a local copy once the source has prepared",
		do: func(t *step) { t.s.Data = Fetching; t.start(JobFetch, NoSlot) }},
	{Name: "build", On: Auto, Guards: g(gMaking, gReadable, gNoIndex, gNoJob, slotFree(IndexSlot)), Slot: IndexSlot, Op: OpNone,
		Writes: places(PlaceIndex, PlaceJob, PlaceIndexSlots), Does: "scan the data and write the index",
		do: func(t *step) { t.s.Index = Building; t.start(JobIndex, IndexSlot) }},
	{Name: "open", On: Auto, Guards: g(gAvail, gClosed, gParked, gReadable, gNoJob, slotFree(OpenSlot)), Slot: OpenSlot, Op: OpNone,
		Writes: places(PlaceHandle, PlaceJob, PlaceOpenSlots), Does: "open the reader and the index",
		do: func(t *step) { t.s.Handle = Opening; t.start(JobOpen, OpenSlot) }},
	{Name: "serve", On: Auto, Guards: g(gAvail, gOpen, gParked), Op: OpNone, Writes: places(PlaceRefs, PlaceParked),
		Does: "count a reference for each waiting acquire and answer with accessors", do: doServe},
}

// late handles a completion that comes after the shard's life: the token goes
// back, nothing else happens.
func late(on Trigger, job Job, slots Place) *Transition {
	return &Transition{Name: job.String() + "-after-life", On: on, Guards: g(isCurrent(job), gNoLife), Op: OpNone,
		Writes: places(PlaceJob, slots), Does: "the result of a former life is dropped", do: func(t *step) { t.endJob() }}
}

func outdated(on Trigger, job Job) *Transition {
	return &Transition{Name: job.String() + "-outdated", On: on, Guards: g(isOutdated(job)), Op: OpNone,
		Does: "the result of an outdated attempt is dropped", do: nothing}
}

func g(gs ...*Guard) []*Guard         { return gs }
func k(ks ...shard.Kind) []shard.Kind { return ks }
func nothing(*step)                   {}
func answer(c Code) func(*step)       { return func(t *step) { t.reply(t.in.Ticket, c, t.s.Cause) } }

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
	for _, ticket := range t.s.Parked {
		t.s.Refs++
		t.out.Replies = append(t.out.Replies, Reply{Ticket: ticket, Accessor: true})
	}
	t.s.Parked = t.s.Parked[:0]
}

func doDestroy(t *step) {
	s := t.s
	t.answerAll(ErrUnknown, nil)
	t.closeHandle()
	t.net.leave(s, t.out)
	s.Life, s.Data, s.Index = shard.None, Absent, NoIndex
	s.Handle = Closed
	s.Eager, s.Healing, s.Ailing, s.Fresh, s.Retried, s.Owned = false, false, false, false, false, false
	s.Cause, s.Info = nil, shard.IndexInfo{}
	t.reply(s.Reclaimer, ErrUnknown, nil)
	s.Reclaimer = 0
	t.emit(shard.EventDestroyed)
	t.out.Effects = append(t.out.Effects, Effect{Kind: Sweep, Ticket: t.in.Ticket})
}

func doReclaim(t *step) {
	t.closeHandle()
	t.s.Data, t.s.Reclaimer = Removing, t.in.Ticket
	t.start(JobRemove, NoSlot)
}

func doRemoved(t *step) {
	t.endJob()
	s := t.s
	if s.Data = Absent; t.in.Err != nil && !s.Fresh {
		s.Data = Present
	}
	code := OK
	if t.in.Err != nil {
		code = ErrFailed
	}
	t.reply(s.Reclaimer, code, t.in.Err)
	s.Reclaimer = 0
}

func doIndexed(t *step) {
	t.endJob()
	s := t.s
	s.Index, s.Info, s.Life = Indexed, t.in.Info, shard.Available
	s.Cause, s.Eager, s.Ailing, s.Fresh = nil, false, false, false
	t.emit(shard.EventIndexed)
	t.answerWaiting(OK, nil)
}

func doOpened(t *step) {
	t.endJob()
	s := t.s
	s.Handle = Open
	s.Cause, s.Ailing, s.Retried, s.Fresh = nil, false, false, false
	t.answerWaiting(OK, nil)
}

// recover begins a recovery because of cause. A fresh one distrusts the local
// copy; one that only mends the index keeps it.
func (t *step) recover(cause error, fresh bool) {
	s := t.s
	t.closeHandle()
	s.Life, s.Index, s.Info = shard.Recovering, NoIndex, shard.IndexInfo{}
	s.Cause, s.Healing, s.Ailing = cause, false, false
	if fresh {
		s.Fresh = true
		t.dropCopy()
	}
	t.emit(shard.EventRecovering)
}

// dropCopy stops using the local copy; the next probe removes it.
func (t *step) dropCopy() {
	if t.s.Data == Present || t.s.Data == Ready || t.s.Data == Slow {
		t.s.Data, t.s.Owned = Absent, false
	}
}

// fail makes the shard errored because of the input's error.
func (t *step) fail() {
	s := t.s
	s.Life, s.Cause, s.Eager, s.Ailing = shard.Errored, t.in.Err, false, false
	t.emit(shard.EventFailed)
	t.answerAll(ErrFailed, t.in.Err)
	t.notify()
}

// ail leaves the shard available although its data could not be had.
func (t *step) ail() {
	t.s.Ailing, t.s.Cause = true, t.in.Err
	t.answerAll(ErrFailed, t.in.Err)
	t.notify()
}

// giveUp ends an initialisation or recovery whose outcome cannot be recorded.
func (t *step) giveUp() {
	s := t.s
	s.Eager = false
	if s.Life == shard.Initialising {
		s.Life = shard.Registered
	} else {
		s.Life = shard.Errored
	}
	if t.in.Err != nil {
		s.Cause = t.in.Err
	}
	t.answerAll(ErrReadOnly, t.in.Err)
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

func (t *step) answerAll(c Code, cause error) {
	for _, ticket := range t.s.Parked {
		t.reply(ticket, c, cause)
	}
	t.s.Parked = t.s.Parked[:0]
	t.answerWaiting(c, cause)
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
