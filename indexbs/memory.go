package indexbs

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/shard"
)

// failures remembers for a while which shards failed, and with which blocks.
//
//	until = the end of the newest; after it all are forgotten
//	n     = 0 ⇒ nobody looks
type failures struct {
	keep time.Duration // 0: nothing is remembered
	n    atomic.Int32
	mu   struct {
		sync.Mutex
		until  time.Time
		shards map[shard.Key]failure
		blocks map[blockOfShard]failure
	}
}

// maxFailures bounds each of the two maps.
const maxFailures = 4096

// failure is the newest of a shard, or of a block in a shard.
type failure struct {
	err error
	at  time.Time
	// since is when the first of those failed that followed each other.
	since time.Time
	// whole: the shard could not be opened.
	whole bool
}

type blockOfShard struct {
	key shard.Key
	mh  string
}

// any says whether there may be something to know.
func (f *failures) any() bool { return f.n.Load() > 0 }

// note remembers that a shard failed with what is over when the store says so: it is
// asked again at any time, and others rather than it.
func (f *failures) note(key shard.Key, err error) (news bool) { return f.add(key, "", err, passes) }

// scope is what a failure is of.
type scope uint8

const (
	ofBlock scope = iota // one block of the shard
	whole                // the shard could not be opened
	passes               // the store knows when it is over
)

// add remembers why a block could not be read from a shard, and says whether that is the
// first failure of the shard that is.
func (f *failures) add(key shard.Key, m string, err error, of scope) (news bool) {
	if f.keep == 0 {
		return false
	}
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgetLocked(now)
	if f.mu.shards == nil {
		f.mu.shards, f.mu.blocks = make(map[shard.Key]failure), make(map[blockOfShard]failure)
	}
	f.mu.until = now.Add(f.keep)
	former, known := f.mu.shards[key]
	since := now
	if known && now.Sub(former.at) < f.keep {
		since = former.since
	}
	makeRoom(f.mu.shards, now.Add(-f.keep))
	f.mu.shards[key] = failure{err, now, since, of == whole}
	if of == ofBlock {
		makeRoom(f.mu.blocks, now.Add(-f.keep))
		f.mu.blocks[blockOfShard{key, m}] = failure{err, now, since, false}
	}
	f.n.Store(int32(len(f.mu.shards)))
	return !known
}

// makeRoom removes what is over, and if that does not help something.
func makeRoom[K comparable](m map[K]failure, before time.Time) {
	if len(m) < maxFailures {
		return
	}
	for k, v := range m {
		if !v.at.After(before) {
			delete(m, k)
		}
	}
	for k := range m {
		if len(m) < maxFailures {
			return
		}
		delete(m, k)
	}
}

func (f *failures) forgetLocked(now time.Time) {
	if len(f.mu.shards) > 0 && !now.Before(f.mu.until) {
		f.mu.shards, f.mu.blocks = nil, nil
		f.n.Store(0)
	}
}

// of returns what a shard last failed with, if that was lately, and why it need not be
// asked for a block: it failed with that very block, or as a whole.
func (f *failures) of(key shard.Key, m string) (last failure, why error) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgetLocked(now)
	recent := func(x failure) bool { return x.err != nil && now.Sub(x.at) < f.keep }
	if x := f.mu.shards[key]; recent(x) {
		last = x
		if x.whole {
			return last, x.err
		}
	}
	if x := f.mu.blocks[blockOfShard{key, m}]; recent(x) {
		return last, x.err
	}
	return last, nil
}

// absences remembers for a while that blocks are in no shard. It is a table in which a
// newer one takes the place of an older one: it has no lock and is bounded.
type absences struct {
	keep  time.Duration // 0: nothing is remembered
	seed  maphash.Seed
	slots []atomic.Pointer[absence]
}

// absence is believed while the top-level index shows pos, and before until.
type absence struct {
	mh    string
	pos   dagstore.Position
	until time.Time
	err   *notFoundError
}

// maxAbsences is how many are remembered.
const maxAbsences = 1 << 14

func (a *absences) init(keep time.Duration) {
	if a.keep = keep; keep > 0 {
		a.seed, a.slots = maphash.MakeSeed(), make([]atomic.Pointer[absence], maxAbsences)
	}
}

func (a *absences) slot(m string) *atomic.Pointer[absence] {
	return &a.slots[maphash.String(a.seed, m)%maxAbsences]
}

// of returns the error of a block that is known not to be there.
func (a *absences) of(c cid.Cid, pos dagstore.Position) *notFoundError {
	m := cids.Multihash(c)
	x := a.slot(m).Load()
	if x == nil || x.mh != m || x.pos != pos || !time.Now().Before(x.until) {
		return nil
	}
	if x.err.Cid != c { // of another codec
		return &notFoundError{ErrNotFound: ipld.ErrNotFound{Cid: c}, asOf: x.err.asOf}
	}
	return x.err
}

// add remembers err. An index that says that it lacks something is not believed.
func (a *absences) add(err *notFoundError) {
	if a.keep == 0 || err.asOf.Err != nil || err.asOf.Applied.Seq == 0 {
		return
	}
	m := cids.Multihash(err.Cid)
	a.slot(m).Store(&absence{m, err.asOf.Applied, time.Now().Add(a.keep), err})
}

// since is when a shard began to fail; now, if that is not remembered.
func (f *failures) since(key shard.Key) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x, ok := f.mu.shards[key]; ok {
		return x.since
	}
	return time.Now()
}
