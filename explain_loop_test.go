package dagstore

import (
	"context"
	"testing"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// TestExplainQueued: requests that the loop has not looked at are explained too, those
// of its present turn and those behind, each with its place. And what an event
// recorded is since that event. Proves N7.
func TestExplainQueued(t *testing.T) {
	ctx := context.Background()
	d := openBench(t, t.TempDir())
	key := shard.KeyFromString("a")
	if _, err := d.RegisterShardSync(ctx, key, &mount.BytesMount{Bytes: testdata.CarV1}, RegisterOpts{LazyInitialization: true}); err != nil {
		t.Fatal(err)
	}
	acc, err := d.AcquireShardSync(ctx, key, AcquireOpts{})
	if err != nil {
		t.Fatal(err)
	}
	defer acc.Close()

	const n = turnInputs + 60 // more than a turn takes
	entered, gate := make(chan struct{}), make(chan struct{})
	d.loop.complete(input{ctl: func() { close(entered); <-gate }})
	<-entered
	out, other := make(chan ShardResult, n), make(chan ShardResult, 2)
	if err := d.AcquireShard(ctx, key, other, AcquireOpts{}); err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := d.AcquireShard(ctx, key, out, AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.DestroyShard(ctx, key, other, DestroyOpts{}); err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	var mine, others []RequestExplanation
	var pending int
	var life stamped
	d.loop.complete(input{ctl: func() {
		mine, pending = d.loop.explainer().all(func(r *request) bool { return r.out == out }, nil)
		others, _ = d.loop.explainer().all(func(r *request) bool { return r.out == other }, nil)
		lv := d.mu.hot[key]
		life = stamped{lv.s.SinceSeq[fsm.PlaceLife], lv.seq}
		close(asked)
	}})
	close(gate)
	<-asked
	if pending != n || len(mine) != maxExplained {
		t.Fatalf("%d pending, %d explained", pending, len(mine))
	}
	for i, r := range mine {
		if r.Stage != StageQueued || r.Ahead != i+1 || len(r.Path) != 1 || r.Path[0].Trigger != "acquire" {
			t.Fatalf("request %d: %s", i, r)
		}
	}
	if len(others) != 2 || others[1].Kind != "destroy" || others[1].Ahead != n+1 || others[1].Goal != fsm.GoalGone.String() {
		t.Fatalf("%v", others)
	}
	if u := others[1].Missing[0].Unmet[0]; u.Holders == nil || u.Holders.Listed[0].Kind != "accessors" || u.Holders.Count != 1 {
		t.Errorf("a destroy that accessors are in the way of: %+v", u)
	}
	if life.place != life.record || life.record == 0 {
		t.Errorf("the life is since event %d, recorded by %d", life.place, life.record)
	}
	for range n {
		(<-out).Accessor.Close()
	}
	for range 2 {
		if res := <-other; res.Accessor != nil {
			res.Accessor.Close()
		}
	}
}

// stamped is since which event a place is as it is, and which recorded it.
type stamped struct{ place, record uint64 }
