// Package throttle bounds how many actions run at once.
//
// A [Throttler] runs an action when there is room for it and not before. Waiters
// are served in the order in which they came, so none starves; one whose context
// ends while it waits leaves the queue and its action never runs.
package throttle

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// Throttler runs actions under a bound. Implementations may be used by any number
// of goroutines at once. It is an alias so that package mount, which does not import
// this one, takes the same type.
type Throttler = interface {
	// Do waits for room, runs action with ctx, and returns its error as it is. If
	// ctx ends before there is room, action does not run and ctx's error is
	// returned. Room is given back when action returns, however it does: a panic
	// passes through and leaks nothing.
	Do(ctx context.Context, action func(ctx context.Context) error) error
}

// Fixed returns a throttler that runs at most maxConcurrency actions at once. A
// bound of zero or less means no bound, as everywhere in this module's
// configuration: a throttler that lets nothing through would only hang its users.
func Fixed(maxConcurrency int) Throttler {
	if maxConcurrency <= 0 {
		return Noop()
	}
	return fixed{semaphore.NewWeighted(int64(maxConcurrency))}
}

type fixed struct{ slots *semaphore.Weighted }

func (f fixed) Do(ctx context.Context, action func(ctx context.Context) error) error {
	if err := f.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer f.slots.Release(1)
	return action(ctx)
}

// Noop returns a throttler without a bound. It runs every action at once, also one
// whose context has already ended: the action is the better judge of that.
func Noop() Throttler { return noop{} }

type noop struct{}

func (noop) Do(ctx context.Context, action func(ctx context.Context) error) error {
	return action(ctx)
}
