package fsm

import "github.com/dagstore/dagstore/shard"

// Slow says that the running job is a fetch that takes no slot.
func (s *Shard) Slow() bool { return s.job == JobFetch && s.slow }

// Overdue says that the running job is a probe or open that gave its token back.
func (s *Shard) Overdue() bool { return s.slow && (s.job == JobProbe || s.job == JobOpen) }

// OnlyAils says that nothing volatile is known of the shard but that its source could not
// be had: forgotten, it is found out anew when the shard is asked for.
func (s *Shard) OnlyAils() bool {
	if s.Ail != Away || s.Resting || s.Life == shard.Recovering {
		return false
	}
	well := *s
	well.Ail = Well
	return well.Idle()
}

// Acquires counts the acquires that wait.
func (s *Shard) Acquires() int { return s.acquires() }

// Thin takes all but one of the acquires in gone off s, in one pass, and returns the
// one that is left for a Cancel. Taking them off one by one with Cancel comes to the
// same: while one is left that Cancel must remove, no guard changes. It reports false
// if none of them waits.
func (s *Shard) Thin(gone map[Ticket]struct{}) (last Ticket, ok bool) {
	for _, list := range [...]*[]Ticket{&s.Parked, &s.Local} { // a parked one is left if there is one
		kept := (*list)[:0]
		for _, t := range *list {
			if _, drop := gone[t]; drop && ok {
				continue
			} else if drop {
				last, ok = t, true
			}
			kept = append(kept, t)
		}
		*list = kept
	}
	return last, ok
}

// Revert takes back a step whose event could not be made durable: s becomes what
// it was before, except that a job which ended with the step stays ended, and with
// it whatever it was for. It returns the tickets of all who wait for the shard; the
// caller answers them. A job that the step started was never run. What is other than
// after the step changed at the given time.
//
//	no job runs ⇒ life(s) = the durable life, or errored where that is recovering
func (n *Net) Revert(s, before *Shard, time int64, seq uint64, out *Out) []Ticket {
	n.now = stamp{time, seq}
	after := *s
	n.leave(s, out)
	started := s.job != JobNone && (s.Attempt != before.Attempt || s.job != before.job)
	if started {
		if slot := s.slotOf(); slot != NoSlot {
			n.giveBack(slot, s, out)
		}
	}
	running := !started && s.job != JobNone
	attempt, owner := s.Attempt, s.Owner
	tickets := s.waiting(nil) // that of the step itself, too
	refs := s.Refs + s.cut    // what was closed stays closed
	*s = *before
	s.Refs, s.cut = refs, 0
	s.Attempt, s.Owner, s.Queued = attempt, owner, NoSlot
	if !running {
		s.job, s.slow, s.stale = JobNone, false, false
		s.restJob()
	}
	s.Eager = false
	switch {
	case running: // its completion goes on from here
	case s.Life == shard.Initialising:
		s.Life, s.Cause = shard.Registered, nil
		s.Ail, s.Resting = Well, false
	case s.Life == shard.Recovering:
		s.Life, s.Fresh, s.Retried = shard.Errored, false, false // until it is recovered once more
		s.Ail, s.Resting = Well, false
	}
	tickets = s.waiting(tickets)
	if s.Reclaimer != 0 && s.job != JobRemove {
		tickets = append(tickets, s.Reclaimer)
		s.Reclaimer = 0
	}
	s.Parked, s.Local, s.Waiting, s.Ending = nil, nil, nil, nil
	s.Since, s.SinceSeq = after.Since, after.SinceSeq
	s.stamp(after.differs(s), n.now)
	return tickets
}

// differs lists the places of the shard in which s and o differ.
func (s *Shard) differs(o *Shard) (set Places) {
	for p, differ := range [numShardPlaces]bool{
		PlaceLife: s.Life != o.Life, PlaceData: s.Data != o.Data || s.Owned != o.Owned, PlaceIndex: s.Index != o.Index,
		PlaceHandle: s.Handle != o.Handle, PlaceRefs: s.Refs != o.Refs, PlaceParked: s.acquires() != o.acquires(),
		PlaceWaiting: len(s.Waiting) != len(o.Waiting) || s.Reclaimer != o.Reclaimer,
		PlaceFault:   s.Healing != o.Healing || s.Fresh != o.Fresh || s.Retried != o.Retried || s.Ail != o.Ail || (s.Cause == nil) != (o.Cause == nil),
		PlaceEnding:  len(s.Ending) != len(o.Ending),
		PlaceRest:    s.Resting != o.Resting,
		PlaceWish:    s.Eager != o.Eager, PlaceJob: s.job != o.job || s.slow != o.slow || s.stale != o.stale,
	} {
		if differ {
			set |= 1 << p
		}
	}
	return set
}

// waiting appends the tickets that wait for the shard and are not among ts.
func (s *Shard) waiting(ts []Ticket) []Ticket {
	for _, list := range [...][]Ticket{s.Parked, s.Local, s.Waiting, s.Ending} {
		for _, t := range list {
			if !has(ts, t) {
				ts = append(ts, t)
			}
		}
	}
	return ts
}

// restJob puts the places that a job occupies back to where they were without it.
func (s *Shard) restJob() {
	switch s.Data {
	case Probing, Fetching, Ready, Slow:
		s.Data = Absent
	case Removing:
		s.Data = Present
	}
	if s.Index == Building {
		s.Index = NoIndex
	}
	if s.Handle == Opening {
		s.Handle = Closed
	}
}
