package dagstore

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// undelivered hands a result for each context to the courier, which nobody receives yet.
func undelivered(c *courier, out chan ShardResult, ctxs ...context.Context) {
	for i, ctx := range ctxs {
		c.deliver(&request{ctx: ctx, out: out}, ShardResult{Seq: uint64(i + 1)})
	}
}

// TestCourierOrder: what waits for one channel comes in the order in which it was
// answered, without those whose contexts have ended, wherever in the line they were, and
// the last of it ends what looked after it. Proves F11 (order, contexts).
func TestCourierOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCourier()
		out, other := make(chan ShardResult), make(chan ShardResult)
		shared, leave := context.WithCancel(t.Context())
		var ctxs []context.Context
		var alone []context.CancelFunc
		for i := range 300 {
			ctx := shared
			switch i % 3 {
			case 1:
				ctx = context.Background()
			case 2:
				var cancel context.CancelFunc
				ctx, cancel = context.WithCancel(t.Context())
				alone = append(alone, cancel)
			}
			ctxs = append(ctxs, ctx)
		}
		undelivered(c, out, ctxs...)
		undelivered(c, other, context.Background())
		synctest.Wait()
		if n := c.waiting(); n != 301 {
			t.Fatalf("%d wait", n)
		}
		leave() // the first of them among others
		for i, cancel := range alone {
			if i%2 == 0 {
				cancel()
			}
		}
		synctest.Wait()
		if n := c.waiting(); n != 151 {
			t.Errorf("%d wait after 150 left", n)
		}
		late, leaveLate := context.WithCancel(t.Context())
		c.deliver(&request{ctx: late, out: out}, ShardResult{Seq: 301})
		leaveLate()
		synctest.Wait()
		var got []uint64
		for range 150 {
			got = append(got, (<-out).Seq)
		}
		if !slices.IsSorted(got) || got[0] != 2 {
			t.Errorf("out of order: %v", got)
		}
		<-other
		synctest.Wait()
		if n := c.waiting(); n != 0 || len(c.mu.lanes)+len(c.mu.groups) != 0 || c.busy.Load() != 0 {
			t.Errorf("%d wait, %d lanes, %d groups, %d counted", n, len(c.mu.lanes), len(c.mu.groups), c.busy.Load())
		}
		for _, cancel := range alone {
			cancel()
		}
		c.close()
	})
}

// TestCourierMany: many channels, contexts, receivers that come late and ones that never
// do, closed channels: each result is received once or its context has ended, and close
// ends all of it. Proves F11, F14 (at the courier).
func TestCourierMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCourier()
		rng := rand.New(rand.NewPCG(1, 2))
		const channels, each = 400, 50
		outs := make([]chan ShardResult, channels)
		var sent sync.WaitGroup
		received := make([][]uint64, channels)
		var receivers sync.WaitGroup
		for i := range outs {
			outs[i] = make(chan ShardResult, rng.IntN(3))
			ctx, cancel := context.WithCancel(t.Context())
			t.Cleanup(cancel)
			sent.Go(func() {
				for n := range each {
					ctx := ctx
					if n%2 == 0 {
						ctx = context.Background()
					}
					c.deliver(&request{ctx: ctx, out: outs[i]}, ShardResult{Seq: uint64(n)})
				}
			})
			switch i % 4 {
			case 0: // all are received
				receivers.Go(func() {
					for len(received[i]) < each {
						received[i] = append(received[i], (<-outs[i]).Seq)
					}
					cancel()
				})
			case 1: // half of them leave, and the rest is received
				receivers.Go(func() {
					cancel()
					for len(received[i]) < each/2 {
						if r := <-outs[i]; r.Seq%2 == 0 {
							received[i] = append(received[i], r.Seq)
						}
					}
				})
			case 2: // nobody receives
			case 3: // the channel is closed below
			}
		}
		sent.Wait()
		receivers.Wait()
		synctest.Wait()
		for i := range outs {
			if i%4 == 3 {
				close(outs[i])
				synctest.Wait() // to close while another sends is a race of the caller's
			}
		}
		for i := range outs {
			if i%4 < 2 && !slices.IsSorted(received[i]) {
				t.Errorf("channel %d: %v", i, received[i])
			}
		}
		if n, most := c.waiting(), channels/4*each; n > most || n < most-2*channels {
			t.Errorf("%d wait, at most %d are for nobody", n, most)
		}
		c.close()
		if n := c.waiting(); n != 0 || len(c.mu.lanes)+len(c.mu.groups) != 0 {
			t.Errorf("after close %d wait, %d lanes, %d groups", n, len(c.mu.lanes), len(c.mu.groups))
		}
	})
}

// BenchmarkDelivery delivers results that wait for their channels.
func BenchmarkDelivery(b *testing.B) {
	const n = 20_000
	cancelled, cancel := context.WithCancel(b.Context())
	defer cancel()
	for _, x := range []struct {
		name     string
		channels int
		ctx      context.Context
	}{{"one-channel", 1, context.Background()}, {"one-channel,context", 1, cancelled}, {"100-channels", 100, context.Background()}} {
		b.Run(x.name, func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				c := newCourier()
				outs := make([]chan ShardResult, x.channels)
				for i := range outs {
					outs[i] = make(chan ShardResult)
				}
				for i := range n {
					c.deliver(&request{ctx: x.ctx, out: outs[i%x.channels]}, ShardResult{})
				}
				b.StartTimer()
				for i := range n {
					<-outs[i%x.channels]
				}
				c.close()
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "results/s")
		})
	}
}
