package fsm

import "slices"

// AwaitOutcome has a request wait for the outcome of what is under way: for the shard to
// be available or errored, and not, if it is parked, for an accessor. So a caller wants
// an initialisation and nothing opened.
func (s *Shard) AwaitOutcome(t Ticket) {
	s.Parked = without(s.Parked, t)
	if !slices.Contains(s.Waiting, t) {
		s.Waiting = append(s.Waiting, t)
	}
}
