package throttle_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/dagstore/dagstore/throttle"
)

// TestFixedBound: exactly n of many actions run at once, and all run in the end.
// Proves F22 (the bound itself).
func TestFixedBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bound, jobs = 3, 100
		thr := throttle.Fixed(bound)
		var mu sync.Mutex
		running, ran := 0, 0
		release := make(chan struct{})
		for range jobs {
			go func() {
				err := thr.Do(t.Context(), func(context.Context) error {
					mu.Lock()
					running++
					mu.Unlock()
					<-release
					mu.Lock()
					running--
					ran++
					mu.Unlock()
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}()
		}
		for done := 0; done < jobs; done++ {
			synctest.Wait()
			if want := min(bound, jobs-done); running != want {
				t.Fatalf("after %d actions %d run at once, want %d", done, running, want)
			}
			release <- struct{}{}
		}
		synctest.Wait()
		if ran != jobs {
			t.Errorf("%d actions ran, want %d", ran, jobs)
		}
	})
}

// TestFixedCancelled: a waiter whose context ends leaves the queue, and a waiter
// behind it is served.
func TestFixedCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		thr := throttle.Fixed(1)
		hold := make(chan struct{})
		go thr.Do(t.Context(), func(context.Context) error { <-hold; return nil })
		synctest.Wait()

		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() {
			first <- thr.Do(ctx, func(context.Context) error { t.Error("the cancelled action ran"); return nil })
		}()
		synctest.Wait()
		go func() { second <- thr.Do(t.Context(), func(context.Context) error { return nil }) }()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled waiter got %v", err)
		}
		close(hold)
		if err := <-second; err != nil {
			t.Errorf("the waiter behind got %v", err)
		}
	})
}

// TestRoomComesBack: errors pass through unchanged, and neither an error nor a
// panic keeps room.
func TestRoomComesBack(t *testing.T) {
	boom := errors.New("boom")
	thr := throttle.Fixed(1)
	for range 3 {
		if err := thr.Do(t.Context(), func(context.Context) error { return boom }); err != boom {
			t.Fatalf("got %v, want the action's own error", err)
		}
		func() {
			defer func() { recover() }()
			thr.Do(t.Context(), func(context.Context) error { panic(boom) })
		}()
	}
}

// TestUnbounded: Noop and non-positive bounds never make anyone wait.
func TestUnbounded(t *testing.T) {
	for _, thr := range []throttle.Throttler{throttle.Noop(), throttle.Fixed(0), throttle.Fixed(-1)} {
		depth := 0
		var nest func(context.Context) error
		nest = func(ctx context.Context) error {
			if depth++; depth == 100 {
				return nil
			}
			return thr.Do(ctx, nest)
		}
		if err := thr.Do(t.Context(), nest); err != nil || depth != 100 {
			t.Errorf("%T: depth %d, err %v", thr, depth, err)
		}
	}
}

func BenchmarkFixedUncontended(b *testing.B) {
	thr := throttle.Fixed(1)
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		thr.Do(ctx, func(context.Context) error { return nil })
	}
}
