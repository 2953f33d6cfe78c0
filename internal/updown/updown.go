// Package updown is a lock with two directions that are both shared: any number of
// holders up, or any number of holders down, never both.
//
// Whoever creates entries of a directory goes up, whoever removes them goes down:
// creators do not disturb each other, nor do removers, but a directory must not be
// swept while something is being put into it.
//
// The lock is phase-fair. A phase is a time in which one direction holds the lock
// without a gap. Once somebody waits for the other direction, newcomers of the
// present one wait too; when the last holder leaves, all who wait for the other
// direction enter together. So nobody waits longer than the rest of this phase and
// one more:
//
//	waiting for the other direction: the rest of this phase
//	waiting for this direction:      the rest of this phase, and the next
//
// The idea is that of phase-fair reader-writer locks (Brandenburg and Anderson,
// "Spin-Based Reader-Writer Synchronization for Multiprocessor Real-Time Systems",
// 2010), with readers on both sides.
package updown

import (
	"context"
	"fmt"
	"sync"
)

// Lock is the lock. Its zero value is free. It must not be copied after first use.
//
// It starts no goroutine. A holder that wants the lock again, in either direction,
// may wait for itself: it must not ask.
type Lock struct {
	mu    sync.Mutex
	state state
	gates [2]chan struct{} // closed when those who wait for a direction enter; nil if nobody does
}

// Up waits until the caller holds the lock upwards, or until ctx ends. It returns
// ctx's error if, and only if, the caller does not hold the lock.
func (l *Lock) Up(ctx context.Context) error { return l.enter(ctx, up) }

// Down is Up in the other direction.
func (l *Lock) Down(ctx context.Context) error { return l.enter(ctx, down) }

// TryUp takes the lock upwards if that takes no waiting, and reports whether it did.
func (l *Lock) TryUp() bool { return l.try(up) }

// TryDown is TryUp in the other direction.
func (l *Lock) TryDown() bool { return l.try(down) }

// UnlockUp gives back what Up or TryUp took. It panics if nobody holds the lock
// upwards.
func (l *Lock) UnlockUp() { l.unlock(up) }

// UnlockDown gives back what Down or TryDown took. It panics if nobody holds the
// lock downwards.
func (l *Lock) UnlockDown() { l.unlock(down) }

// Stats is how many hold the lock and how many wait for it, at one moment.
type Stats struct {
	Up, Down               int
	WaitingUp, WaitingDown int
}

// Stats returns the present counts.
func (l *Lock) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{WaitingUp: l.state.waiting[up], WaitingDown: l.state.waiting[down]}
	if l.state.dir == up {
		s.Up = l.state.holders
	} else {
		s.Down = l.state.holders
	}
	return s
}

func (l *Lock) enter(ctx context.Context, d direction) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.mu.Lock()
	if l.state.enter(d) {
		l.mu.Unlock()
		return nil
	}
	if l.gates[d] == nil {
		l.gates[d] = make(chan struct{})
	}
	gate := l.gates[d]
	l.mu.Unlock()
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		l.giveUp(d, gate)
		return ctx.Err()
	}
}

// giveUp is what a waiter whose context ended does. It may have been let in
// meanwhile; then it leaves at once, rather than begin something that nobody wants
// any more.
func (l *Lock) giveUp(d direction, gate chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gates[d] == gate {
		l.open(l.state.cancel(d))
	} else {
		l.open(l.state.leave(d))
	}
	if l.state.waiting[d] == 0 {
		l.gates[d] = nil
	}
}

func (l *Lock) try(d direction) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.try(d)
}

func (l *Lock) unlock(d direction) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.dir != d || l.state.holders == 0 {
		panic(fmt.Sprintf("updown: unlock of a lock that nobody holds %s", d))
	}
	l.open(l.state.leave(d))
}

// open wakes those whom the state has let in.
func (l *Lock) open(entered entrants) {
	if entered.any {
		close(l.gates[entered.dir])
		l.gates[entered.dir] = nil
	}
}
