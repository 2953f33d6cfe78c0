package toplevel

import (
	"math/bits"
	"sort"

	"github.com/FastFilter/xorfilter"

	"github.com/dagstore/dagstore/shard"
)

// Ingest names one life of a shard with one content, from which multihashes were added.
type Ingest struct {
	Key shard.Key
	// Gen is the generation of the shard's life.
	Gen uint64
	// Tag stands for the content: ingests of one life with equal tags have the same
	// multihashes.
	Tag uint64
}

// source is a run that can be merged.
type source interface {
	len() uint64
	// records returns the ingests, ascending by generation, tag and key.
	records() ([]record, error)
	read() cursor
}

// cursor reads a run in order.
type cursor interface {
	// next appends the entries up to fingerprints that begin with last, each with its
	// ingest's number replaced by that in number, without those that are dropped.
	next(last uint64, number []uint32, out []entry) ([]entry, error)
}

// dropped stands for an ingest that is left out.
const dropped = 1<<32 - 1

// memRun is a run in memory. It is immutable.
type memRun struct {
	entries []entry // sorted
	ingests []record
	fuse    *xorfilter.BinaryFuse[uint8] // nil: none
	bytes   int64                        // about what it takes

}

// memEntry is about what an entry takes in memory, with its filter, in bytes.
const memEntry = 18

func newMemRun(es []entry, ingests []record) *memRun {
	r := &memRun{entries: es, ingests: ingests, bytes: int64(len(es)) * memEntry}
	for i := range ingests {
		r.bytes += int64(len(ingests[i].key)) + 48
	}
	if len(es) >= filterLeast {
		r.fuse = buildFilter(es, nil, nil)
	}
	return r
}

// buildFilter makes the filter of sorted entries, or nil if none comes out.
func buildFilter(es []entry, b *xorfilter.BinaryFuseBuilder, keys []uint64) *xorfilter.BinaryFuse[uint8] {
	if b == nil {
		b = new(xorfilter.BinaryFuseBuilder)
	}
	keys = keys[:0]
	for i := range es {
		if i == 0 || es[i].hi != es[i-1].hi {
			keys = append(keys, es[i].hi)
		}
	}
	f, err := xorfilter.BuildBinaryFuse[uint8](b, keys)
	if err != nil {
		return nil
	}
	return &f
}

func (r *memRun) len() uint64 { return uint64(len(r.entries)) }

// first returns the place of the first entry that is not before f. Fingerprints are
// spread evenly, so it is looked for from where it should be; were they not, it would
// take as long as a binary search, twice.
func (r *memRun) first(f fingerprint) int {
	es := r.entries
	if len(es) == 0 {
		return 0
	}
	before := func(i int) bool { return es[i].hi < f.hi || es[i].hi == f.hi && es[i].lo < f.lo }
	share := func(hi uint64) int { // of the entries that lie in a part of the space
		n, _ := bits.Mul64(hi, uint64(len(es)))
		return int(n)
	}
	at := share(f.hi)
	if hi := es[at].hi; hi < f.hi {
		at = min(at+share(f.hi-hi), len(es)-1)
	} else {
		at = max(at-share(hi-f.hi), 0)
	}
	// Entries before from are before f, those from to on are not.
	from, to := 0, len(es)
	for step := 1; from <= at && at < to; step *= 2 {
		if before(at) {
			from = at + 1
			at += step
		} else {
			to = at
			at -= step
		}
	}
	return from + sort.Search(to-from, func(i int) bool { return !before(from + i) })
}

func (r *memRun) records() ([]record, error) { return r.ingests, nil }
func (r *memRun) read() cursor               { return &memCursor{r.entries} }

type memCursor struct{ rest []entry }

func (c *memCursor) next(last uint64, number []uint32, out []entry) ([]entry, error) {
	for len(c.rest) > 0 && c.rest[0].hi <= last {
		e := c.rest[0]
		c.rest = c.rest[1:]
		if e.ingest = number[e.ingest]; e.ingest != dropped {
			out = append(out, e)
		}
	}
	return out, nil
}
