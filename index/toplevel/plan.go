package toplevel

import (
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

// Rest says which of runs to merge when there is nothing else to do, nil for none: all of
// them while the smaller ones come to a quarter of the largest or more, and the smaller
// ones otherwise. So an index at rest has two runs at most, and what that wrote was
// written for the fourth part of it at least.
func Rest(runs []RunSize) []int {
	largest, sum := 0, uint64(0)
	all := make([]int, len(runs))
	for i := range runs {
		all[i] = i
		sum += runs[i].Entries
		if runs[i].Entries > runs[largest].Entries {
			largest = i
		}
	}
	switch {
	case len(runs) < 2:
		return nil
	case 4*(sum-runs[largest].Entries) >= runs[largest].Entries:
		return all
	case len(runs) == 2:
		return nil
	}
	return slices.Delete(all, largest, largest+1)
}

// tier is ⌊log_fanIn(n)⌋; fanIn is a power of two.
func tier(n uint64, fanIn int) int {
	return (bits.Len64(max(n, 1)) - 1) / (bits.Len(uint(fanIn)) - 1)
}
