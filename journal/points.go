package journal

import "sort"

// seekPoint is a place in a segment where a frame begins, or will: reading and
// verifying can begin there as well as at the segment's header.
type seekPoint struct {
	off    int64
	before Position
}

const (
	// pointSpacing is about how far apart the lasting points are: what a small replay
	// from a seq of long ago reads in vain, at most.
	pointSpacing = 256 << 10
	// densePoints is how many of the newest batches have points of their own. Who
	// follows the head begins exactly where it stopped.
	densePoints = 512
)

// points are the seek points of one segment, ascending in off:
//
//	all[:sparse]   at least pointSpacing apart
//	all[sparse:]   the ends of consecutive batches; fewer than 2 densePoints
//
// The zero value is none, which is right for every segment.
type points struct {
	all    []seekPoint
	sparse int
}

// add adds the end of the newest batch.
func (p *points) add(pt seekPoint) {
	p.all = append(p.all, pt)
	if len(p.all)-p.sparse >= 2*densePoints {
		p.thin(len(p.all) - densePoints)
	}
}

// thin drops what lies too close together from all[sparse:n].
func (p *points) thin(n int) {
	kept, last := p.all[:p.sparse], int64(segmentHeaderSize)
	if p.sparse > 0 {
		last = kept[p.sparse-1].off
	}
	for _, pt := range p.all[p.sparse:n] {
		if pt.off-last >= pointSpacing {
			kept, last = append(kept, pt), pt.off
		}
	}
	p.sparse = len(kept)
	p.all = append(kept, p.all[n:]...)
}

// near returns the last point at or before seq; the segment's beginning if there is
// none.
func (p *points) near(s *segment, seq uint64) seekPoint {
	i := p.after(seq)
	if i == 0 {
		return seekPoint{off: segmentHeaderSize, before: s.before}
	}
	return p.all[i-1]
}

// after is the index of the first point beyond seq.
func (p *points) after(seq uint64) int {
	return sort.Search(len(p.all), func(i int) bool { return p.all[i].before.Seq > seq })
}

// at returns the end of the batch that event seq belongs to, if the points alone
// tell: one is there, or seq lies between two neighbours in the dense part.
func (p *points) at(seq uint64) (Position, bool) {
	i := p.after(seq - 1)
	if i == len(p.all) {
		return Position{}, false
	}
	pos := p.all[i].before
	return pos, pos.Seq == seq || i > p.sparse
}
