package indexbs

import (
	"cmp"
	"errors"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore/shard"
)

// Candidate is a shard that holds a block, with what is known about reading from it.
type Candidate struct {
	Key shard.Key
	// Open: an accessor of it is in the cache.
	Open bool
	// Local says whether its bytes are at hand. It is [Unknown] of all candidates if one
	// of them is open, for to ask would take longer than to read, and of stores that
	// cannot be asked.
	Local Locality
	// Failure is what the shard last failed with, at FailedAt, if that was within
	// Options.FailedFor; else nil. It is of another block: a shard that failed with the
	// one in question is no candidate.
	Failure  error
	FailedAt time.Time
	// Blocks is how many of the blocks that are being read at once it holds: 1 or more.
	Blocks int
	// Reason is for the policy to say why another candidate was chosen.
	Reason string
}

// Locality says where the bytes of a shard are.
type Locality int8

const (
	// Remote: they have to be fetched, or some of them.
	Remote Locality = iota - 1
	// Unknown: nobody knows, or nobody asked.
	Unknown
	// Local: they are in a local copy or are read in place.
	Local
)

// String returns the constant's name in lower case.
func (l Locality) String() string {
	switch l {
	case Remote:
		return "remote"
	case Local:
		return "local"
	}
	return "unknown"
}

// Policy chooses the shard that a block is read from. It is pure: it does no I/O, and
// what it says depends on its arguments alone. It must be safe for concurrent use and
// must not keep cs, of which it may change no field but Reason.
type Policy interface {
	// Choose returns the key of one of the candidates, of which there are two or more:
	// eight of those that hold the block, if more do, and all if those fail. (A
	// [Decliner] is always offered all.)
	// If reading from that fails, it is asked again with the others. Of the others it
	// may say in Reason why they were not chosen. [ErrNoShardSelected] takes none; any
	// other error ends the read.
	Choose(c cid.Cid, cs []Candidate) (shard.Key, error)
}

// Decliner is a [Policy] that may take none of the candidates: it is asked also if there
// is only one.
type Decliner interface {
	Policy
	Declines() bool
}

var _ Decliner = ShardSelectorF(nil)

// Declines implements [Decliner].
func (f ShardSelectorF) Declines() bool { return true }

// Choose implements [Policy]. To stay with shards that are open already, it offers
// those first; only if none of them is taken does it offer all.
func (f ShardSelectorF) Choose(c cid.Cid, cs []Candidate) (shard.Key, error) {
	open := make([]shard.Key, 0, len(cs))
	for i := range cs {
		if cs[i].Open {
			open = append(open, cs[i].Key)
		}
	}
	if n := len(open); n > 0 && n < len(cs) {
		key, err := f(c, open)
		if !errors.Is(err, ErrNoShardSelected) {
			return key, err
		}
		open = make([]shard.Key, 0, len(cs)) // the former may have been kept, contract or not
	}
	all := open[:0]
	for i := range cs {
		all = append(all, cs[i].Key)
	}
	return f(c, all)
}

// asOffered takes the first shard that is open, or else the first: the predecessor's
// choice without a selector.
type asOffered struct{}

func (asOffered) Choose(_ cid.Cid, cs []Candidate) (shard.Key, error) {
	for i := range cs {
		if cs[i].Open {
			return cs[i].Key, nil
		}
	}
	return cs[0].Key, nil
}

// Preference is one respect in which a candidate may be better than another.
type Preference struct {
	// Compare is less than 0 if a is to be read from rather than b.
	Compare func(a, b *Candidate) int
	// Reason is that of a candidate which is not chosen for it.
	Reason string
}

// The preferences that [DefaultPolicy] is made of.
var (
	// HealthyFirst prefers shards that did not fail lately, and among those that did the
	// one whose failure is longer ago.
	HealthyFirst = Preference{
		Compare: func(a, b *Candidate) int {
			switch {
			case a.Failure == nil && b.Failure == nil:
				return 0
			case a.Failure == nil:
				return -1
			case b.Failure == nil:
				return 1
			}
			return a.FailedAt.Compare(b.FailedAt)
		},
		Reason: "it failed lately",
	}
	// FullestFirst prefers the shard that holds most of the blocks that are read at once.
	FullestFirst = Preference{
		Compare: func(a, b *Candidate) int { return cmp.Compare(b.Blocks, a.Blocks) },
		Reason:  "it holds fewer of the blocks",
	}
	// OpenFirst prefers shards that are open.
	OpenFirst = Preference{
		Compare: func(a, b *Candidate) int {
			switch {
			case a.Open == b.Open:
				return 0
			case a.Open:
				return -1
			}
			return 1
		},
		Reason: "it would have to be opened first",
	}
	// LocalFirst prefers shards whose bytes are local to those of which that is unknown,
	// and those to shards that have to be fetched.
	LocalFirst = Preference{
		Compare: func(a, b *Candidate) int { return cmp.Compare(b.Local, a.Local) },
		Reason:  "its bytes are not known to be local",
	}
)

// reasonOfKey is that of a candidate that is as good as the chosen one.
const reasonOfKey = "it is as good, and its key comes later"

// Prefer is the policy that goes by the first preference that tells two candidates
// apart; of those that none does it takes the one with the lowest key. It allocates
// nothing.
func Prefer(preferences ...Preference) Policy { return preferring(preferences) }

// DefaultPolicy prefers shards that did not fail lately, then those that hold more of
// what is read at once, then those that are open, then those that are local.
func DefaultPolicy() Policy {
	return defaultPolicy{preferring{HealthyFirst, FullestFirst, OpenFirst, LocalFirst}}
}

// defaultPolicy takes a shard that is open and serves, so where a block was found it may
// be read again without asking.
type defaultPolicy struct{ preferring }

type preferring []Preference

func (p preferring) Choose(_ cid.Cid, cs []Candidate) (shard.Key, error) {
	best := &cs[0]
	for i := 1; i < len(cs); i++ {
		if order, _ := p.compare(&cs[i], best); order < 0 {
			best = &cs[i]
		}
	}
	for i := range cs {
		if c := &cs[i]; c != best {
			_, c.Reason = p.compare(best, c)
		}
	}
	best.Reason = ""
	return best.Key, nil
}

// compare is less than 0 if a is better than b, and says why b is not better then.
func (p preferring) compare(a, b *Candidate) (order int, reason string) {
	for i := range p {
		if order := p[i].Compare(a, b); order != 0 {
			return order, p[i].Reason
		}
	}
	return a.Key.Compare(b.Key), reasonOfKey
}
