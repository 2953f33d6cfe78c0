package toplevel

import "sync/atomic"

// A run on disk is given up, its mapping and its descriptor, when it is in no state that
// is shown and nobody looks into a state that it was in:
//
//	run.sets   = states shown, or still looked into, that it is in
//	readers    = those who look into a set now, in stripes, so that lookups on several
//	             cores do not share a counter
//
//	reader     readers++, is the set still shown?  yes: it stays until readers--
//	                                               no: readers--, look again
//	writer     shows another set, retired = true; when Σ readers = 0: run.sets--
//
// Who counts itself after a set was retired finds that it is not shown any more and reads
// nothing of it. So once Σ readers = 0 was seen behind retired, nobody reads it again.

// diskSet are the runs on disk that a state has. It is immutable but for its counters.
type diskSet struct {
	disk []*diskRun
	// dead is how many entries of each run were dead when they were counted.
	dead []uint64

	readers  [readerStripes]readerCount
	retired  atomic.Bool
	disposed atomic.Bool
}

const readerStripes = 8 // a power of two

type readerCount struct {
	n atomic.Int64
	_ [56]byte // of a cache line
}

// clone returns a state to be changed and shown.
func (st *state) clone() *state {
	return &state{mem: st.mem, diskSet: &diskSet{disk: st.disk, dead: st.dead}}
}

// use returns the state that is shown, whose runs stay until leave is called with the
// same stripe.
func (x *Index) use(stripe uint32) *state {
	for {
		st := x.state.Load()
		st.readers[stripe%readerStripes].n.Add(1)
		if x.state.Load().diskSet == st.diskSet {
			return st
		}
		st.leave(stripe)
	}
}

func (s *diskSet) leave(stripe uint32) {
	if s.readers[stripe%readerStripes].n.Add(-1) == 0 && s.retired.Load() {
		s.dispose()
	}
}

// showLocked shows a state. The set that it returns, which may be nil, is to be retired.
// x.mu is held.
func (x *Index) showLocked(st *state) (former *diskSet) {
	old := x.state.Load()
	if st.diskSet != old.diskSet {
		former = old.diskSet
		for _, r := range st.disk {
			r.sets.Add(1)
		}
	}
	x.state.Store(st)
	return former
}

// retire lets the runs of a set go that no other has, as soon as nobody looks into it.
func (s *diskSet) retire() {
	if s != nil {
		s.retired.Store(true)
		s.dispose()
	}
}

func (s *diskSet) dispose() {
	for i := range s.readers {
		if s.readers[i].n.Load() != 0 {
			return // the last to leave comes here
		}
	}
	if s.disposed.Swap(true) {
		return
	}
	for _, r := range s.disk {
		if r.sets.Add(-1) == 0 {
			r.close()
		}
	}
}
