package toplevel

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/dchest/siphash"
)

// fingerprint stands for a multihash.
type fingerprint struct {
	hi uint64
	lo uint32
}

// hashKey is the key that fingerprints are made with.
type hashKey [2]uint64

func (k hashKey) of(mh []byte) fingerprint {
	a, b := siphash.Hash128(k[0], k[1], mh)
	return fingerprint{a, uint32(b)}
}

// entry says that an ingest has a multihash. Ingests are numbered within a run.
type entry struct {
	hi     uint64
	lo     uint32
	ingest uint32
}

func (e entry) compare(o entry) int {
	if c := cmp.Compare(e.hi, o.hi); c != 0 {
		return c
	}
	return cmp.Compare(uint64(e.lo)<<32|uint64(e.ingest), uint64(o.lo)<<32|uint64(o.ingest))
}

func (e entry) is(f fingerprint) bool { return e.hi == f.hi && e.lo == f.lo }

// sortEntries sorts by fingerprint and ingest, and drops duplicates. Fingerprints are
// uniform, so one pass by leading bits leaves buckets of a few entries.
func sortEntries(es []entry) []entry {
	if len(es) > 1<<10 {
		spread := make([]entry, len(es))
		shift := 64 - min(bits.Len(uint(len(es)/8)), 16)
		ends := make([]uint32, 1<<(64-shift))
		for i := range es {
			ends[es[i].hi>>shift]++
		}
		sum := uint32(0)
		for i, n := range ends {
			ends[i] = sum
			sum += n
		}
		for _, e := range es {
			at := &ends[e.hi>>shift]
			spread[*at] = e
			*at++
		}
		from := uint32(0)
		for _, to := range ends {
			slices.SortFunc(spread[from:to], entry.compare)
			from = to
		}
		es = spread
	} else {
		slices.SortFunc(es, entry.compare)
	}
	return slices.Compact(es)
}

// mergeSorted merges the sorted pieces of buf, which end at ends, with the help of
// spare. It returns the result without duplicates, and memory to be used again.
func mergeSorted(buf, spare []entry, ends []int) (merged, rest []entry) {
	spare = slices.Grow(spare[:0], len(buf))[:len(buf)]
	for len(ends) > 1 {
		from, kept := 0, ends[:0]
		for i := 0; i < len(ends); i += 2 {
			mid, to := ends[i], ends[i]
			if i+1 < len(ends) {
				to = ends[i+1]
			}
			mergeTwo(spare[from:to], buf[from:mid], buf[mid:to])
			kept = append(kept, to)
			from = to
		}
		ends = kept
		buf, spare = spare, buf
	}
	return slices.Compact(buf), spare
}

func mergeTwo(out, a, b []entry) {
	for len(a) > 0 && len(b) > 0 {
		if a[0].compare(b[0]) <= 0 {
			out[0], a = a[0], a[1:]
		} else {
			out[0], b = b[0], b[1:]
		}
		out = out[1:]
	}
	copy(out[copy(out, a):], b)
}
