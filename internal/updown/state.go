package updown

// direction is up or down.
type direction uint8

const (
	up direction = iota
	down
)

func (d direction) other() direction { return 1 - d }

func (d direction) String() string {
	if d == up {
		return "upwards"
	}
	return "downwards"
}

// state is the whole of the lock's rules, without the waiting:
//
//	holders = 0             ⇒ nobody waits
//	waiting[dir] > 0        ⇒ waiting[other] > 0     only fairness keeps dir out
//
// Its methods are the lock's moves. They change the counts; those whom they let in
// are all who wait for one direction.
type state struct {
	dir     direction // of the holders, if there are any
	holders int
	waiting [2]int
}

// entrants are all who waited for dir, if any.
type entrants struct {
	dir direction
	any bool
}

// try lets one in if it need not wait: the lock is free, or it is held in this
// direction and nobody waits for the other.
func (s *state) try(d direction) bool {
	if s.holders > 0 && (s.dir != d || s.waiting[d.other()] > 0) {
		return false
	}
	s.dir = d
	s.holders++
	return true
}

// enter is try, or else waits.
func (s *state) enter(d direction) bool {
	if s.try(d) {
		return true
	}
	s.waiting[d]++
	return false
}

// leave takes out one holder. The last one ends the phase, and the other direction
// is first to begin one.
func (s *state) leave(d direction) entrants {
	s.holders--
	if s.holders > 0 {
		return entrants{}
	}
	if s.waiting[d.other()] > 0 {
		return s.admit(d.other())
	}
	return s.admit(d)
}

// cancel takes out one waiter. If it was the last to wait for the other direction,
// it no longer keeps newcomers of the present one out.
func (s *state) cancel(d direction) entrants {
	s.waiting[d]--
	if s.waiting[d] == 0 && s.dir != d {
		return s.admit(d.other())
	}
	return entrants{}
}

// admit lets in all who wait for d.
func (s *state) admit(d direction) entrants {
	if s.waiting[d] == 0 {
		return entrants{}
	}
	s.dir = d
	s.holders += s.waiting[d]
	s.waiting[d] = 0
	return entrants{d, true}
}
