package toplevel

import (
	"cmp"
	"math/bits"
	"slices"
)

// RunSize is what the planner knows of a run.
type RunSize struct {
	Entries uint64
	Dead    uint64 // of them, those that a merge would leave out
}

// Plan says which of runs to merge into one, nil for none. Runs are in tiers:
//
//	tier = ⌊log_fanIn(entries)⌋
//
// When a tier holds fanIn runs, they and all smaller ones become one of a higher tier.
// So an entry is written once per tier that it passes through, and there are fewer than
// fanIn runs in each. A run of which more than half is dead is merged with itself.
//
// Plan is pure: what the merges of a schedule cost can be simulated with it.
func Plan(runs []RunSize, fanIn int) []int {
	count := make(map[int]int)
	top := -1
	for i := range runs {
		t := tier(runs[i].Entries, fanIn)
		if count[t]++; count[t] >= fanIn {
			top = max(top, t)
		}
	}
	var pick []int
	for i := range runs {
		if tier(runs[i].Entries, fanIn) <= top {
			pick = append(pick, i)
		}
	}
	if pick != nil {
		return pick
	}
	i := slices.IndexFunc(runs, func(r RunSize) bool { return r.Dead > 0 && 2*r.Dead >= r.Entries })
	if i >= 0 {
		return []int{i}
	}
	return nil
}

// Rest says which of runs to merge when there is nothing else to do, nil for none: the
// smaller ones as far as they come to a quarter of the next larger one. So of an index at
// rest
//
//	4 · Σ smaller runs < each run
//
// which are few, and what a merge wrote anew was for the sake of a fifth of it at least:
// with a pause after every flush an entry is written some log₅(flushes) times for it, and
// not once for every few flushes, as if all were merged to one or two.
func Rest(runs []RunSize) []int {
	bySize := make([]int, len(runs))
	for i := range bySize {
		bySize[i] = i
	}
	slices.SortStableFunc(bySize, func(a, b int) int { return cmp.Compare(runs[a].Entries, runs[b].Entries) })
	take, sum := 0, uint64(0)
	for k, i := range bySize {
		if k > 0 && 4*sum >= runs[i].Entries {
			take = k + 1
		}
		sum += runs[i].Entries
	}
	if take == 0 {
		return nil
	}
	pick := bySize[:take]
	slices.Sort(pick)
	return pick
}

// tier is ⌊log_fanIn(n)⌋; fanIn is a power of two.
func tier(n uint64, fanIn int) int {
	return (bits.Len64(max(n, 1)) - 1) / (bits.Len(uint(fanIn)) - 1)
}
