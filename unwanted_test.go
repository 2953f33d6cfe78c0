package dagstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/dagstore/dagstore"
)

// TestUnwantedFetchEnds: a fetch whose callers left ends after a while and gives its slot
// back; one that somebody waits for goes on, and so does the initialisation of a shard
// that is not lazy. Proves F22, I16, R20.
func TestUnwantedFetchEnds(t *testing.T) {
	const after = time.Minute
	for name, c := range map[string]struct{ lazy, stays, ends bool }{
		"nobody waits":   {lazy: true, ends: true},
		"somebody waits": {lazy: true, stays: true},
		"not lazy":       {},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newGate()
				g.ready = true
				d := start(t, dagstore.Config{MountRegistry: registry(t, g), AbandonFetchAfter: after, MaxConcurrentReadyFetches: 1})
				ctx, cancel := context.WithCancel(background)
				defer cancel()
				out := make(chan dagstore.ShardResult, 2)
				if err := d.RegisterShard(ctx, key("a"), &gateMount{carV1(), g}, out, dagstore.RegisterOpts{LazyInitialization: c.lazy}); err != nil {
					t.Fatal(err)
				}
				settle()
				if c.lazy {
					<-out
					if err := d.AcquireShard(ctx, key("a"), out, dagstore.AcquireOpts{}); err != nil {
						t.Fatal(err)
					}
				}
				settle()
				if _, inside, _ := g.count(); inside != 1 {
					t.Fatalf("%d fetches", inside)
				}
				if !c.stays {
					cancel()
				}
				pass(after / 2)
				if _, inside, _ := g.count(); inside != 1 {
					t.Fatal("ended at once")
				}
				pass(2 * after)
				_, inside, _ := g.count()
				if (inside == 0) != c.ends {
					t.Fatalf("%d fetches go on", inside)
				}
				g.letIn(2)
				settle()
				if c.ends {
					wantState(t, d, key("a"), dagstore.ShardStateNew)
				}
				works(t, d, key("a"))
			})
		})
	}
}
