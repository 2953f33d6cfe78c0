package fsm

import (
	"slices"
	"testing"
)

// TestThin: all but one of the tickets go, the others stay in order.
func TestThin(t *testing.T) {
	for _, c := range []struct {
		parked, local, gone, wantParked, wantLocal []Ticket
		last                                       Ticket
	}{
		{[]Ticket{1, 2, 3, 4}, []Ticket{5, 6}, []Ticket{2, 4, 5, 9}, []Ticket{1, 2, 3}, []Ticket{6}, 2},
		{[]Ticket{1}, []Ticket{5, 6, 7}, []Ticket{7, 6}, []Ticket{1}, []Ticket{5, 6}, 6},
		{[]Ticket{1, 2}, []Ticket{3}, []Ticket{1, 2, 3}, []Ticket{1}, []Ticket{}, 1},
		{[]Ticket{1, 2}, nil, []Ticket{8}, []Ticket{1, 2}, nil, 0},
	} {
		s := &Shard{Parked: c.parked, Local: c.local}
		gone := make(map[Ticket]struct{})
		for _, x := range c.gone {
			gone[x] = struct{}{}
		}
		last, ok := s.Thin(gone)
		if last != c.last || ok != (c.last != 0) || !slices.Equal(s.Parked, c.wantParked) || !slices.Equal(s.Local, c.wantLocal) {
			t.Errorf("thinned to %v %v, last %d %v, want %+v", s.Parked, s.Local, last, ok, c)
		}
	}
}
