package fsm

import (
	"slices"

	"github.com/dagstore/dagstore/shard"
)

// perturb changes place p and nothing else, in one of a few ways.
func perturb(n *Net, s *Shard, p Place, variant int) {
	toggle := func(ts []Ticket) []Ticket {
		if len(ts) > 0 {
			return nil
		}
		return []Ticket{1}
	}
	switch p {
	case PlaceLife:
		s.Life = shard.Life((int(s.Life) + variant) % 6)
	case PlaceData:
		s.Data = Data((int(s.Data) + variant) % int(numData))
		s.Owned = !s.Owned
	case PlaceIndex:
		s.Index = Index((int(s.Index) + variant) % int(numIndex))
		s.Info.Blocks++
	case PlaceHandle:
		s.Handle = Handle((int(s.Handle) + variant) % int(numHandle))
	case PlaceRefs:
		s.Refs = (s.Refs + int32(variant)) % 3
	case PlaceParked:
		if s.Local = toggle(s.Local); variant > 1 {
			s.Parked = toggle(s.Parked)
		}
	case PlaceWaiting:
		if s.Waiting = toggle(s.Waiting); variant > 1 {
			s.Reclaimer = 2 - s.Reclaimer
		}
	case PlaceFault:
		s.Fresh, s.Retried = !s.Fresh, !s.Retried
		if variant > 1 {
			s.Healing = !s.Healing
			s.Ail = (s.Ail + 1) % numAilments
		}
		if s.Cause == nil {
			s.Cause = errModel
		} else {
			s.Cause = nil
		}
	case PlaceEnding:
		s.Ending = toggle(s.Ending)
	case PlaceRest:
		s.Resting = !s.Resting
	case PlaceWish:
		s.Eager, s.Lazy = !s.Eager, s.Lazy != (variant > 1)
	case PlaceJob:
		s.job = Job((int(s.job) + variant) % int(numJobs))
		s.Attempt++
		s.stale = !s.stale
	case PlaceJournal:
		n.ReadOnly = !n.ReadOnly
	default:
		slot := &n.slots[Slot(p-numShardPlaces+1)]
		for range variant {
			slot.holders = append(slot.holders, new(Shard))
		}
	}
}

const perturbations = 3

// copied returns the state of one shard and its net, apart from the original.
func copied(n *Net, s *Shard) (*Net, *Shard) {
	n2, s2 := *n, *s
	n2.watch = nil
	s2.Parked, s2.Local, s2.Waiting, s2.Ending = cloned(s.Parked), cloned(s.Local), cloned(s.Waiting), cloned(s.Ending)
	for slot := range n2.slots {
		q := &n2.slots[slot].queue
		q.items = slices.Clone(q.items)
		for i, x := range q.items {
			if x == s {
				q.items[i] = &s2
			}
		}
		held := slices.Clone(n2.slots[slot].holders)
		for i, x := range held {
			if x == s {
				held[i] = &s2
			}
		}
		n2.slots[slot].holders = held
	}
	return &n2, &s2
}

// perturbed: the outcome of t depends on nothing that it does not declare.
func (c *checker) perturbed(t *Transition, st *step) {
	run := func(n *Net, s *Shard) (Out, marking) {
		var out Out
		t.do(&step{net: n, s: s, in: st.in, out: &out})
		for i, w := range out.Wake {
			if w == s {
				out.Wake[i] = st.s
			}
		}
		return out, mark(n, s)
	}
	want, wantMark := run(copied(st.net, st.s))
	for p := range numPlaces {
		if t.Reads().Has(p) {
			continue
		}
		for v := 1; v <= perturbations; v++ {
			n, s := copied(st.net, st.s)
			perturb(n, s, p, v)
			before := mark(n, s)
			got, gotMark := run(n, s)
			for q := range numPlaces {
				if t.Writes.Has(q) && gotMark[q] != wantMark[q] || !t.Writes.Has(q) && gotMark[q] != before[q] {
					c.fail("N2: what %s does to %s depends on %s", t.Name, q, p)
				}
			}
			if !slices.Equal(got.Events, want.Events) || !slices.Equal(got.Effects, want.Effects) ||
				!slices.Equal(got.Replies, want.Replies) || !slices.Equal(got.Wake, want.Wake) {
				c.fail("N2: what %s wants depends on %s", t.Name, p)
			}
		}
	}
}

// probes are inputs that differ in everything a guard may look at.
var probes = []Input{
	{},
	{Ticket: 1, NoDownload: true, Ready: true, Present: true, Heal: HealOnAcquire, Fault: FaultIndex, Attempt: 1, Patience: AwaitReaders},
	{Ticket: 2, Err: errModel, Heal: HealNow, Fault: FaultCopy, Attempt: 2, Patience: CutReaders},
}

// guards: a guard depends on nothing that it does not declare.
func (c *checker) guards(w *world) {
	if c.states%8 != 0 {
		return
	}
	for i := range w.cfg.shards {
		n0, s0 := &w.net, &w.shards[i]
		for p := range numPlaces {
			for v := 1; v <= perturbations; v++ {
				n, s := copied(n0, s0)
				perturb(n, s, p, v)
				for _, t := range c.m.rows {
					for _, g := range t.Guards {
						if g.Reads.Has(p) {
							continue
						}
						for k := range probes {
							if g.holds(n, s, &probes[k]) != g.holds(n0, s0, &probes[k]) {
								c.fail("N2: guard %q of %s depends on %s", g.Name, t.Name, p)
							}
						}
					}
				}
			}
		}
	}
}
