package fsm

import "github.com/dagstore/dagstore/shard"

// Trigger is a kind of input.
type Trigger uint8

const (
	// Auto marks transitions that no input triggers: they fire as soon as all
	// their guards hold. As an input it only has them evaluated (a wake-up).
	Auto Trigger = iota

	// Requests of callers.
	Register // Gen, Lazy, Direct
	Acquire  // NoDownload; the ticket must not be zero, for an accessor is owed
	Release
	Recover
	Destroy // Patience; the ticket must not be zero if it waits
	Cancel  // the caller of Ticket no longer waits
	Reclaim // remove the local copy if nothing needs it

	// What the store does of itself.
	Resume    // Heal; once per shard that needs something after a restart
	Freeze    // Net.ReadOnly has been set; once per shard that is not idle
	CloseIdle // close the shared reader and index if nobody uses them
	Damage    // Fault, Err: what a read found out
	Overdue   // Attempt; the running probe or open takes long
	Retry     // the pause after a try that failed for a cause that passes is over
	// Supersede: the durable record of the shard was changed by another hand, the
	// writer whose journal this store follows. Nothing known of it here holds.
	Supersede

	// Completions of jobs. Attempt, Err and its Fault.
	ProbeDone // Ready, Present
	FetchDone
	IndexDone // Info
	OpenDone  // Changed; what was opened is to be closed unless Handle is Open afterwards
	RemoveDone

	numTriggers
)

var triggerNames = [numTriggers]string{
	"auto", "register", "acquire", "release", "recover", "destroy", "cancel", "reclaim",
	"resume", "freeze", "close-idle", "damage", "overdue", "retry", "supersede",
	"probe-done", "fetch-done", "index-done", "open-done", "remove-done",
}

func (t Trigger) String() string { return triggerNames[t] }

// Input is one thing that happens to one shard. Which fields count is said with
// the trigger.
type Input struct {
	Trigger Trigger
	Ticket  Ticket
	Time    int64  // now, in any unit; recorded in Shard.Since
	Seq     uint64 // of the newest durable event now; recorded in Shard.SinceSeq
	Gen     uint64
	Attempt uint32

	Lazy       bool
	Direct     bool // the source is read in place
	NoDownload bool // refuse rather than fetch
	Patience   Patience
	Ready      bool // the source can be fetched at once
	Present    bool // a complete local copy is already there
	Owned      bool // ... and the store made it
	Fault      Fault
	Heal       Heal
	Err        error
	// Changed says in what way the source that was opened is not what was indexed. Its
	// blocks are served as far as they can be proven.
	Changed error
	Info    shard.IndexInfo
}

// Heal says what becomes of an errored shard after a restart.
type Heal uint8

const (
	// HealByHand: it stays errored until it is recovered by request.
	HealByHand Heal = iota
	// HealOnAcquire: the first acquire recovers it and waits.
	HealOnAcquire
	// HealNow: it is recovered at once.
	HealNow
)

// Patience says what a destruction does about open accessors.
type Patience uint8

const (
	// Refuse: nothing; it is refused.
	Refuse Patience = iota
	// AwaitReaders: it waits until they are closed. Nobody gets another meanwhile.
	AwaitReaders
	// CutReaders: it takes what they read from away.
	CutReaders
)

// Fault says what a failed job, or a read, found.
type Fault uint8

const (
	// FaultSource: there is evidence about the source: it is no CAR, or not what was
	// indexed.
	FaultSource Fault = iota
	// FaultIndex: the index is missing or damaged; the source is not to blame.
	FaultIndex
	// FaultCopy: the local copy is gone or damaged; the source is not to blame.
	FaultCopy
	// FaultPassing: the source could not be had, or something could not be read. Nothing
	// is to blame for good.
	FaultPassing
	// FaultShortage: this machine is short of something: descriptors, memory, space.
	FaultShortage

	numFaults
)

// Code says how a request ended.
type Code uint8

const (
	// OK: done. For an acquire: an accessor is owed, and counted in Refs.
	OK Code = iota
	// ErrExists: the key has a life.
	ErrExists
	// ErrUnknown: the key has no life, or lost it while the request waited.
	ErrUnknown
	// ErrInUse: accessors are open.
	ErrInUse
	// ErrNotErrored: there is nothing to recover.
	ErrNotErrored
	// ErrErrored: the shard is errored; Cause says why.
	ErrErrored
	// ErrFailed: what the request waited for failed; Cause says why.
	ErrFailed
	// ErrNoCopy: a download was needed and not wanted.
	ErrNoCopy
	// ErrReadOnly: the journal takes no more events.
	ErrReadOnly
	// ErrBusy: the copy is needed and was not reclaimed.
	ErrBusy
	// ErrAway: the source could not be had when it was last tried, or something could not
	// be read; Cause says why. It is tried again.
	ErrAway
	// ErrSuperseded: the life that the request waited for is not what the record says
	// any more.
	ErrSuperseded
	// ErrEnding: a destruction waits for the open accessors.
	ErrEnding

	numCodes
)

var codeNames = [numCodes]string{
	"ok", "exists", "unknown", "in-use", "not-errored", "errored", "failed", "no-copy", "read-only", "busy", "away", "superseded", "ending",
}

func (c Code) String() string { return codeNames[c] }

// Reply answers one ticket.
type Reply struct {
	Ticket Ticket
	Code   Code
	Cause  error
	// Accessor: the answer is an accessor.
	Accessor bool
}

// EffectKind is a kind of work that the machine wants done.
type EffectKind uint8

const (
	// StartJob: run Job as Attempt; its completion comes back as an input.
	StartJob EffectKind = iota
	// CloseHandle: the shared reader and index are no longer wanted; they close
	// when the last accessor that uses them does.
	CloseHandle
	// Sweep: the life is over: cancel its job, remove all its files, then answer
	// Ticket.
	Sweep
	// CancelJob: nobody wants the result of the running job; its end is still to come.
	CancelJob
	// CutOff: whoever reads from the shard's accessors gets an error from now on.
	CutOff
	// NotifyFailure: tell the failure channel.
	NotifyFailure
)

// Effect is work that the machine wants done after the step's events are durable.
type Effect struct {
	Kind    EffectKind
	Job     Job
	Attempt uint32
	// Fresh: JobProbe and JobFetch must not use what an earlier attempt left.
	Fresh  bool
	Ticket Ticket
	Cause  error
}

// Event is a fact to be made durable; the caller adds key, place and time.
type Event struct {
	Kind shard.Kind
	Life shard.Life
}

// Op labels a transition for tracing; the values are those of the store's public
// OpType, and OpNone is not traced.
type Op int8

const (
	OpRegister Op = iota
	OpInitialize
	OpMakeAvailable
	OpDestroy
	OpAcquire
	OpFail
	OpRelease
	OpRecover
	OpNone Op = -1
)

// Traced is one labelled transition that fired, and the state right after it.
type Traced struct {
	Op     Op
	Life   shard.Life
	Refs   int32
	Parked int
	Cause  error
}

// Out is what a step wants. A caller reuses one Out for many steps.
type Out struct {
	Fired   []*Transition
	Events  []Event
	Effects []Effect
	Replies []Reply
	Traces  []Traced // filled only if Trace is set
	// Wake lists other shards whose automatic transitions must be evaluated now,
	// for a slot they wait for became free.
	Wake []*Shard
	// Trace asks for Traces.
	Trace bool
}

// Reset empties o and keeps its memory.
func (o *Out) Reset() {
	o.Fired, o.Events, o.Effects = o.Fired[:0], o.Events[:0], o.Effects[:0]
	clear(o.Replies)
	clear(o.Traces)
	clear(o.Wake)
	o.Replies, o.Traces, o.Wake = o.Replies[:0], o.Traces[:0], o.Wake[:0]
}
