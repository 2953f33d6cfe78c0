package main

import (
	"math"
	"slices"

	"github.com/dagstore/dagstore/index/toplevel"
)

// setting is what a store's operator chooses.
type setting struct {
	memory int64  // toplevel.Options.Memory
	fanIn  int    // toplevel.Options.FanIn
	shard  uint64 // blocks of a shard
}

// rates are what one machine does, in entries a second.
type rates struct {
	insert float64 // offered by whoever adds shards
	merge  float64 // of one merge that does not pause
}

// Of index/toplevel/memrun.go and index.go, which do not export them.
const (
	memEntry  = 18     // bytes an entry takes in memory, with its filter
	memIngest = 48     // and an ingest, besides its key
	keyLen    = 40     // bytes of a shard's key, assumed
	pieces    = 8      // of a shard, each that part of Options.Memory
	unpaced   = 3      // times FanIn runs, and a merge does not pause any more
	share     = 1. / 2 // of the time that it works otherwise
)

// flushed is how many entries become one run on disk: shards are added, each in pieces,
// until they take half of the memory.
func (s setting) flushed() uint64 {
	var entries uint64
	var bytes int64
	for left := s.shard; bytes < s.memory/2; {
		n := min(left, uint64(s.memory/pieces/memEntry))
		entries += n
		bytes += int64(n)*memEntry + memIngest + keyLen
		if left -= n; left == 0 {
			left = s.shard
		}
	}
	return entries
}

// outcome is what a schedule of merges came to.
type outcome struct {
	written float64 // times that an entry was written, the flush included
	most    int     // runs at any time
	mean    float64 // runs, over the time
	largest uint64  // entries of the largest merge
	merges  int
	rest    float64 // times written by the merges of an index at rest, at the end
	resting int     // runs after those
}

// schedule is an index of which only the sizes of the runs are left.
type schedule struct {
	fanIn int
	runs  []toplevel.RunSize
	out   outcome
	total float64 // entries written
	area  float64 // runs × time
	clock float64 // seconds, or flushes where there is no time

	// merging is what a merge is made of that is under way: the first runs in place.
	merging []int
	left    float64 // entries that it has to write yet
}

func (s *schedule) plan(runs []toplevel.RunSize) []int { return toplevel.Plan(runs, s.fanIn) }

func (s *schedule) flush(n uint64) {
	s.runs = append(s.runs, toplevel.RunSize{Entries: n})
	s.total += float64(n)
	s.out.most = max(s.out.most, len(s.runs))
}

// begin starts the merge that a plan picks, if any.
func (s *schedule) begin(plan func([]toplevel.RunSize) []int) bool {
	s.merging = plan(s.runs)
	s.left = 0
	for _, i := range s.merging {
		s.left += float64(s.runs[i].Entries)
	}
	return len(s.merging) > 0
}

// end puts the merged run in the place of the first that it was made of.
func (s *schedule) end() {
	sum := uint64(0)
	for _, i := range s.merging {
		sum += s.runs[i].Entries
		s.runs[i].Entries = 0
	}
	s.runs[s.merging[0]].Entries = sum
	s.runs = slices.DeleteFunc(s.runs, func(r toplevel.RunSize) bool { return r.Entries == 0 })
	s.total += float64(sum)
	s.out.largest = max(s.out.largest, sum)
	s.out.merges++
	s.merging = nil
}

// settle merges at once until there is nothing to merge.
func (s *schedule) settle(plan func([]toplevel.RunSize) []int) {
	for s.begin(plan) {
		s.end()
	}
}

// pass lets time pass until the next flush while merges work.
func (s *schedule) pass(seconds, merge float64) {
	for seconds > 0 {
		if len(s.merging) == 0 && !s.begin(s.plan) {
			s.wait(seconds)
			return
		}
		rate := merge
		if len(s.runs) <= unpaced*s.fanIn {
			rate *= share
		}
		worked := min(seconds, s.left/rate)
		s.wait(worked)
		seconds -= worked
		// Converted, so that no processor multiplies and subtracts in one step and comes to
		// other tables.
		if s.left -= float64(worked * rate); s.left < 1 {
			s.end()
		}
	}
}

func (s *schedule) wait(d float64) {
	s.clock += d
	s.area += float64(d * float64(len(s.runs)))
}

// step is what happens between two flushes.
type step func(s *schedule, entries uint64)

// instantly: every merge ends before the next flush, because shards come slowly enough,
// but without a pause of Options.RestAfter.
func instantly(s *schedule, _ uint64) {
	s.settle(s.plan)
	s.wait(1)
}

// trickling: there is a pause after every flush, and what is left is merged in it.
func trickling(s *schedule, _ uint64) {
	s.settle(s.plan)
	s.settle(toplevel.Rest)
	s.wait(1)
}

// beside: shards come as fast as they are taken, and one merge at a time works beside.
func (r rates) beside(s *schedule, entries uint64) { s.pass(float64(entries)/r.insert, r.merge) }

// simulate adds n entries to an empty index, and then nothing.
func simulate(n uint64, set setting, between step) outcome {
	s := &schedule{fanIn: set.fanIn}
	for left, each := n, set.flushed(); left > 0; {
		f := min(left, each)
		s.flush(f)
		between(s, f)
		left -= f
	}
	s.out.mean = s.area / s.clock
	s.out.written = s.total / float64(n)
	if len(s.merging) > 0 {
		s.end()
	}
	s.settle(s.plan)
	s.settle(toplevel.Rest)
	s.out.rest = s.total/float64(n) - s.out.written
	s.out.resting = len(s.runs)
	return s.out
}

// collisions is how many pairs of n fingerprints of 96 bits are expected to be equal:
// n²/2 / 2⁹⁶.
func collisions(n float64) float64 { return n * n / 2 / math.Pow(2, 96) }
