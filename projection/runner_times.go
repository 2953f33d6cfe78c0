package projection

import (
	"cmp"
	"slices"
	"sort"
	"time"

	"github.com/dagstore/dagstore/journal"
)

// recentPositions is how many ends of batches are remembered, so that a position
// that somebody was told lately is known without asking the journal.
const recentPositions = 4096

// positionRing holds the newest ends of batches, oldest first from start on.
type positionRing struct {
	ring  []journal.Position
	start int
}

func (p *positionRing) add(pos journal.Position) {
	if len(p.ring) < recentPositions {
		p.ring = append(p.ring, pos)
		return
	}
	p.ring[p.start] = pos
	p.start = (p.start + 1) % len(p.ring)
}

// at returns the position at seq, if it is remembered.
func (p *positionRing) at(seq uint64) (journal.Position, bool) {
	n := len(p.ring)
	i := sort.Search(n, func(i int) bool { return p.ring[(p.start+i)%n].Seq >= seq })
	if i == n {
		return journal.Position{}, false
	}
	pos := p.ring[(p.start+i)%n]
	return pos, pos.Seq == seq
}

// maxHeadTimes bounds the times that are remembered.
const maxHeadTimes = 1024

// headTimes remembers when the journal reached which sequence number: all of the
// newest times, and the coarser the older. What is not remembered any more is taken
// for older than it is, so that nothing passes for fresher than it is:
//
//	true LagFor ≤ LagFor that is told
//
// Entry 0 is where the runner began: when what it found became durable is unknown.
type headTimes struct {
	at []headTime
}

type headTime struct {
	seq uint64
	t   time.Time
	// merged: entries between the one before and this were dropped.
	merged bool
}

func (h *headTimes) add(seq uint64, t time.Time) {
	if len(h.at) == maxHeadTimes {
		h.thin()
	}
	h.at = append(h.at, headTime{seq: seq, t: t})
}

// thin drops every other entry of the older half, but not the first.
func (h *headTimes) thin() {
	kept := h.at[:1]
	for i := 1; i < maxHeadTimes/2; i += 2 {
		e := h.at[i+1]
		e.merged = true
		kept = append(kept, e)
	}
	h.at = append(kept, h.at[maxHeadTimes/2+1:]...)
}

// earliest is the earliest time at which entry i, or a dropped one that it stands
// for, can have become durable.
func (h *headTimes) earliest(i int) time.Time {
	if h.at[i].merged {
		return h.at[i-1].t
	}
	return h.at[i].t
}

// since returns since when event seq is durable, or the earliest that it can be.
// known is false for what was durable before the runner began; then t is that time.
// The zero time says that seq was not heard of yet.
func (h *headTimes) since(seq uint64) (t time.Time, known bool) {
	i, _ := slices.BinarySearchFunc(h.at, seq, func(e headTime, seq uint64) int { return cmp.Compare(e.seq, seq) })
	if i == len(h.at) {
		return time.Time{}, true
	}
	return h.earliest(i), i > 0
}

// mustShow returns the least sequence number that a view has to show at now to be
// behind for d at most.
func (h *headTimes) mustShow(now time.Time, d time.Duration) uint64 {
	limit := now.Add(-d)
	i := sort.Search(len(h.at), func(i int) bool { return i > 0 && !h.earliest(i).Before(limit) })
	if i == 0 {
		return 0
	}
	return h.at[i-1].seq
}
