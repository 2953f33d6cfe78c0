package dagstore_test

import (
	"context"
	"testing"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
)

// TestSharedContextEnds: acquires of several shards with one context that ends leave
// nothing behind, be they many, and those with another context are served.
// Proves I5, I10.
func TestSharedContextEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		ctx, cancel := context.WithCancel(background)
		kept := make(chan dagstore.ShardResult, 8)
		lost := make(chan dagstore.ShardResult)
		for _, k := range []string{"a", "b"} {
			registerLazily(t, d, key("%s", k), &gateMount{Mount: carV1(), gate: g})
			for i := range 20_000 {
				out, of := lost, ctx
				if i%10_000 == 0 {
					out, of = kept, background
				}
				opts := dagstore.AcquireOpts{}
				if err := d.AcquireShard(of, key("%s", k), out, opts); err != nil {
					t.Fatal(err)
				}
			}
		}
		settle()
		cancel()
		settle()
		for _, k := range []string{"a", "b"} {
			if x, err := d.Explain(key("%s", k)); err != nil || x.Machine.Parked != 2 {
				t.Errorf("%d acquires wait, want 2 (%v)", x.Machine.Parked, err)
			}
		}
		if n := d.Metrics().Undelivered; n != 0 {
			t.Errorf("%d results wait for callers that left", n)
		}
		g.letIn(100)
		for range 4 {
			res := <-kept
			if res.Error != nil {
				t.Fatal(res.Error)
			}
			closeAll(t, res.Accessor)
		}
		destroy(t, d, key("a"))
		destroy(t, d, key("b"))
	})
}

// BenchmarkCancelParked is the cost of the end of a context per acquire that waits
// for one shard with it.
func BenchmarkCancelParked(b *testing.B) {
	g := newGate()
	d := start(b, dagstore.Config{MountRegistry: registry(b, g)})
	var m mount.Mount = &gateMount{Mount: carV1(), gate: g}
	registerLazily(b, d, key("a"), m)
	ctx, cancel := context.WithCancel(background)
	out := make(chan dagstore.ShardResult)
	for range b.N {
		if err := d.AcquireShard(ctx, key("a"), out, dagstore.AcquireOpts{}); err != nil {
			b.Fatal(err)
		}
	}
	d.Metrics() // all are parked
	b.ResetTimer()
	cancel()
	for {
		if x, err := d.Explain(key("a")); err != nil || x.Machine.Parked == 0 {
			break
		}
	}
}
