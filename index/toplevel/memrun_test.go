package toplevel

import (
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"
)

// TestFirst holds the search in a run in memory to a binary search: of entries that
// are spread evenly, as fingerprints are, and of such as never come.
func TestFirst(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, hi := range map[string]func() uint64{
		"even":  rng.Uint64,
		"same":  func() uint64 { return 1 << 63 },
		"few":   func() uint64 { return rng.Uint64N(3) * (math.MaxUint64 / 2) },
		"low":   func() uint64 { return rng.Uint64N(1000) },
		"high":  func() uint64 { return math.MaxUint64 - rng.Uint64N(1000) },
		"twice": func() uint64 { return rng.Uint64() >> (40 * rng.Uint64N(2)) },
	} {
		for n := range 300 {
			if n > 250 {
				n *= 10
			}
			es := make([]entry, n)
			for i := range es {
				es[i] = entry{hi: hi(), lo: uint32(rng.Uint64N(4)), ingest: uint32(rng.Uint64N(3))}
			}
			slices.SortFunc(es, entry.compare)
			r := &memRun{entries: es}
			for range 40 {
				f := fingerprint{hi: hi(), lo: uint32(rng.Uint64N(4))}
				switch {
				case n > 0 && rng.IntN(2) == 0:
					e := es[rng.IntN(n)]
					f = fingerprint{e.hi, e.lo}
				case rng.IntN(4) == 0:
					f.hi = []uint64{0, math.MaxUint64}[rng.IntN(2)]
				}
				want := sort.Search(n, func(i int) bool { return es[i].hi > f.hi || es[i].hi == f.hi && es[i].lo >= f.lo })
				if got := r.first(f); got != want {
					t.Fatalf("%s: %d entries: first of %v is %d, want %d", name, n, f, got, want)
				}
			}
		}
	}
}
