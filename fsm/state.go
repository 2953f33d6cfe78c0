package fsm

import (
	"math/bits"
	"slices"

	"github.com/dagstore/dagstore/shard"
)

// Data says where the bytes of a shard are.
type Data uint8

const (
	// Absent: the source needs a local copy, and none is known. After a restart
	// one may be there all the same: the probe looks.
	Absent Data = iota
	// Direct: the source is read in place; there is never a copy.
	Direct
	// Probing: a job asks the source whether it exists and is ready, and looks
	// for a copy that is already there.
	Probing
	// Ready: the source can be fetched at once; waiting for a fetch slot.
	Ready
	// Slow: the source exists but must prepare (unseal, recall from tape). Its
	// fetch takes no slot, for it would only idle in it.
	Slow
	// Fetching: a job makes the local copy.
	Fetching
	// Present: a complete local copy exists.
	Present
	// Removing: a job removes the local copy.
	Removing

	numData
)

var dataNames = [numData]string{"absent", "direct", "probing", "ready", "slow", "fetching", "present", "removing"}

func (d Data) String() string { return dataNames[d] }

// readable says that the bytes can be opened now.
func (d Data) readable() bool { return d == Direct || d == Present }

// Index says whether the shard index exists.
type Index uint8

const (
	// NoIndex: there is none, or it is not to be trusted.
	NoIndex Index = iota
	// Building: a job scans the data and writes the index.
	Building
	// Indexed: a durable, valid index of this generation exists.
	Indexed

	numIndex
)

var indexNames = [numIndex]string{"absent", "building", "present"}

func (x Index) String() string { return indexNames[x] }

// Handle says whether the reader and the index that accessors share are open.
type Handle uint8

const (
	// Closed: nothing is open.
	Closed Handle = iota
	// Opening: a job opens the data and the index.
	Opening
	// Open: accessors can be handed out at once.
	Open

	numHandle
)

var handleNames = [numHandle]string{"closed", "opening", "open"}

func (h Handle) String() string { return handleNames[h] }

// Ailment says what is the matter with a shard that its record does not tell.
type Ailment uint8

const (
	// Well: nothing.
	Well Ailment = iota
	// Away: the source could not be had, or something could not be read.
	Away
	// Short: this machine was short of something. Whoever waits goes on waiting.
	Short
	// Changed: an available shard's source is not all that was indexed. It may be recovered.
	Changed

	numAilments
)

var ailmentNames = [numAilments]string{"well", "away", "short", "changed"}

func (a Ailment) String() string { return ailmentNames[a] }

// Slot names a shared place that holds tokens for running jobs.
type Slot uint8

const (
	// NoSlot: none is needed.
	NoSlot Slot = iota
	// FetchSlot: one per concurrent fetch of a source that is ready.
	FetchSlot
	// IndexSlot: one per concurrent scan.
	IndexSlot
	// OpenSlot: one per concurrent probe or open.
	OpenSlot

	numSlots
)

var slotNames = [numSlots]string{"no", "fetch", "index", "open"}

func (s Slot) String() string { return slotNames[s] }

// place is the shared place that the slot's tokens are in.
func (s Slot) place() Place { return numShardPlaces + Place(s) - 1 }

// Place is a part of the state that a transition may read or write.
type Place uint8

const (
	PlaceLife Place = iota
	PlaceData
	PlaceIndex
	PlaceHandle
	PlaceRefs
	PlaceParked  // acquires that wait
	PlaceWaiting // registrations and recoveries that wait for an outcome
	PlaceFault   // the cause of the last failure, and what it permits
	PlaceEnding  // destructions that wait for accessors to be closed
	PlaceWish    // whether initialisation is wanted without an acquire
	PlaceJob     // the running job: its kind and attempt
	PlaceRest    // the pause after a try that failed

	numShardPlaces

	PlaceFetchSlots = numShardPlaces + Place(FetchSlot) - 1
	PlaceIndexSlots = numShardPlaces + Place(IndexSlot) - 1
	PlaceOpenSlots  = numShardPlaces + Place(OpenSlot) - 1
	PlaceJournal    = numShardPlaces + Place(numSlots) - 1

	numPlaces = PlaceJournal + 1
)

var placeNames = [numPlaces]string{
	"life", "data", "index", "handle", "refs", "parked", "waiting", "fault", "ending", "wish", "job", "rest",
	"fetch-slots", "index-slots", "open-slots", "journal",
}

func (p Place) String() string { return placeNames[p] }

// Shared says that all shards have the place in common.
func (p Place) Shared() bool { return p >= numShardPlaces }

// Places is a set of places.
type Places uint16

func places(ps ...Place) (set Places) {
	for _, p := range ps {
		set |= 1 << p
	}
	return set
}

// Has says whether p is in the set.
func (s Places) Has(p Place) bool { return s&(1<<p) != 0 }

// List returns the members in order.
func (s Places) List() (ps []Place) {
	for p := range numPlaces {
		if s.Has(p) {
			ps = append(ps, p)
		}
	}
	return ps
}

// Ticket names one request of a caller. The machine parks tickets and says in
// replies which of them are answered; it knows nothing else about callers. Zero
// means that nobody wants the answer.
type Ticket uint64

// Shard is the colour of one shard's token: everything the machine knows of one
// life of one key. The zero value is a key without a life. Only Step changes it.
//
// A value may be used for the next life of its key: that life's jobs then wait
// for a job of the former one that still runs. Who does not want to wait takes a
// new value, and steps the old one until its job has ended.
type Shard struct {
	Gen     uint64
	Life    shard.Life
	Data    Data
	Index   Index
	Handle  Handle
	Lazy    bool
	Eager   bool // initialise without waiting for an acquire
	Owned   bool // the local copy was made by the store and may be removed
	Healing bool // the next acquire of the errored shard recovers it
	Fresh   bool // what an earlier attempt left must not be used
	Retried bool // a rebuild or refetch was begun because an open failed
	// Ail is what keeps the shard from being served, or from being what it was, and is not
	// recorded; Cause says more.
	Ail Ailment
	// Resting: the last try failed, and the next one comes after a pause.
	//
	//	Resting ⇒ Ail ≠ Well, and no job runs but a removal or a former life's
	Resting bool
	Queued  Slot // the slot place in whose queue the shard stands; NoSlot if none
	Refs    int32
	// Attempt numbers the jobs of this life. A completion that carries another
	// number is outdated.
	Attempt uint32
	// Parked and Local are the acquires that wait, in order; those in Local would
	// rather be refused than have a copy fetched for them:
	//
	//	Local ≠ ∅ ⇒ Data ∈ {Absent, Probing, Present}
	Parked, Local []Ticket
	// Waiting are the registrations and recoveries that wait for an outcome.
	Waiting []Ticket
	// Ending are the destructions that wait until no accessor is open:
	//
	//	Ending ≠ ∅ ⇒ Refs > 0, and the journal takes events
	Ending []Ticket
	// Reclaimer is the request that waits for the running removal, if any.
	Reclaimer Ticket
	// Cause is why the shard is errored, recovering or ailing; else nil.
	Cause error
	// Info sums up the index while Index is Indexed.
	Info shard.IndexInfo
	// Since is when each place last changed, in the time given with inputs, and
	// SinceSeq the sequence number: that of the event which recorded the change, or
	// where none does, of the newest durable event when it happened. Of a shard that
	// was at rest both are its record's, for every place.
	Since    [numShardPlaces]int64
	SinceSeq [numShardPlaces]uint64
	// Owner is the caller's; the machine does not look at it.
	Owner any

	job   Job  // the running job
	slow  bool // ... takes no token: a fetch from a source that prepares, a probe or open that takes long
	stale bool // ... is of a former life
	began stamp
	wrote Places // by the newest step
	cut   int32  // references that it took away
}

// stamp is when something happened.
type stamp struct {
	time int64
	seq  uint64
}

// later returns the later of the two.
func (a stamp) later(b stamp) stamp { return stamp{max(a.time, b.time), max(a.seq, b.seq)} }

// Rest says since when a shard that was at rest is as it is.
func (s *Shard) Rest(time int64, seq uint64) {
	for p := range numShardPlaces {
		s.Since[p], s.SinceSeq[p] = time, seq
	}
}

// Recorded says that the event of the newest step is durable, and where.
func (s *Shard) Recorded(seq uint64) {
	for w := s.wrote; w != 0; w &= w - 1 {
		s.SinceSeq[bits.TrailingZeros16(uint16(w))] = seq
	}
}

// stamp notes that the places change.
func (s *Shard) stamp(changed Places, now stamp) {
	for w := uint16(changed) & (1<<numShardPlaces - 1); w != 0; w &= w - 1 {
		p := bits.TrailingZeros16(w)
		s.Since[p], s.SinceSeq[p] = now.time, now.seq
	}
}

// JobBegan is when the running job was started.
func (s *Shard) JobBegan() (time int64, seq uint64) { return s.began.time, s.began.seq }

// FormerJob says that the running job is of a former life.
func (s *Shard) FormerJob() bool { return s.stale }

// Job returns the running job, or JobNone.
func (s *Shard) Job() Job { return s.job }

// Idle says that nothing volatile is known of the shard: it can be forgotten and
// made again from its durable state with the same meaning.
func (s *Shard) Idle() bool {
	return s.Refs == 0 && s.acquires() == 0 && len(s.Waiting) == 0 && s.job == JobNone &&
		s.Handle == Closed && s.Queued == NoSlot && !s.Healing && s.Ail == Well && !s.Eager && !s.Fresh && !s.Retried
}

// acquires counts the acquires that wait.
func (s *Shard) acquires() int { return len(s.Parked) + len(s.Local) }

// Job is a kind of asynchronous work. A shard has at most one at a time.
type Job uint8

const (
	JobNone Job = iota
	JobProbe
	JobFetch
	JobIndex
	JobOpen
	JobRemove

	numJobs
)

var jobNames = [numJobs]string{"none", "probe", "fetch", "index", "open", "remove"}

func (j Job) String() string { return jobNames[j] }

// Net holds the places that shards share.
type Net struct {
	ReadOnly bool // the journal takes no more events
	slots    [numSlots]slotPlace
	since    [numPlaces - numShardPlaces]stamp // of the shared places
	now      stamp                             // of the step
	m        *machine
	st       step // kept here so that a step allocates nothing
	// watch, if set, runs the outcomes in fire's stead: the model check looks at
	// each from both sides.
	watch func(*Transition, *step)
}

// slotPlace is the content of a slot's place: who holds a token and who waits for
// one. The tokens are not counted beside that.
type slotPlace struct {
	cap     int
	holders []*Shard
	queue   fifo // of those who wait for a token
}

func (p *slotPlace) used() int { return len(p.holders) }

// drop takes s off those who hold a token. Their order means nothing.
func (p *slotPlace) drop(s *Shard) {
	for i, h := range p.holders {
		if h == s {
			last := len(p.holders) - 1
			p.holders[i], p.holders[last] = p.holders[last], nil
			p.holders = p.holders[:last]
			return
		}
	}
}

// fifo is a queue of shards that can be left from anywhere. Leaving at the front
// costs nothing; elsewhere it leaves a hole.
type fifo struct {
	items []*Shard // nil: a hole
	head  int      // items[:head] are gone
	n     int      // shards in the queue
}

func (f *fifo) push(s *Shard) {
	f.items = append(f.items, s)
	f.n++
}

// first returns the shard at the front, or nil.
func (f *fifo) first() *Shard {
	if f.n == 0 {
		return nil
	}
	return f.items[f.head]
}

// index returns how many stand before s, looking at no more than limit shards;
// limit if it is not among them.
func (f *fifo) index(s *Shard, limit int) (i int) {
	for _, q := range f.items[f.head:] {
		if q == s || i >= limit {
			return i
		}
		if q != nil {
			i++
		}
	}
	return i
}

func (f *fifo) remove(s *Shard) {
	for i := f.head; i < len(f.items); i++ {
		if f.items[i] == s {
			f.items[i] = nil
			f.n--
			break
		}
	}
	for f.head < len(f.items) && f.items[f.head] == nil {
		f.head++
	}
	if f.head > 32 && f.head*2 > len(f.items) {
		kept := copy(f.items, f.items[f.head:])
		clear(f.items[kept:])
		f.items, f.head = f.items[:kept], 0
	}
}

// NewNet returns a net with the given numbers of slots, each at least one.
func NewNet(fetch, index, open int) *Net {
	n := &Net{m: &theMachine}
	for s, c := range map[Slot]int{FetchSlot: fetch, IndexSlot: index, OpenSlot: open} {
		n.slots[s].cap = max(c, 1)
	}
	return n
}

// Slots returns how many tokens of the place are used, how many there are, and
// how many shards wait for one.
func (n *Net) Slots(s Slot) (used, capacity, waiting int) {
	p := &n.slots[s]
	return p.used(), p.cap, p.queue.n
}

// Holders lists the shards whose running job holds a token of the place.
func (n *Net) Holders(s Slot) []*Shard { return slices.Clone(n.slots[s].holders) }

// Ahead lists who stands before s in the queue that s stands in, the first ones if
// there are more than limit.
func (n *Net) Ahead(s *Shard, limit int) (ahead []*Shard) {
	q := &n.slots[s.Queued].queue
	for _, x := range q.items[q.head:] {
		if x == s || len(ahead) >= limit {
			return ahead
		}
		if x != nil {
			ahead = append(ahead, x)
		}
	}
	return ahead
}

// Begin says when the store started: since then the shared places are as they are.
func (n *Net) Begin(time int64, seq uint64) {
	for i := range n.since {
		n.since[i] = stamp{time, seq}
	}
}

// SetReadOnly notes that the journal takes no more events, and since when.
func (n *Net) SetReadOnly(time int64, seq uint64) {
	n.ReadOnly = true
	n.now = stamp{time, seq}
	n.touch(PlaceJournal)
}

// touch notes that a shared place changes in the running step.
func (n *Net) touch(p Place) { n.since[p-numShardPlaces] = n.now }

// sinceOf is when a place last changed, as s sees it.
func (n *Net) sinceOf(s *Shard, p Place) stamp {
	if p.Shared() {
		return n.since[p-numShardPlaces]
	}
	return stamp{s.Since[p], s.SinceSeq[p]}
}
