package dagstore_test

import (
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/shard"
)

// TestGCInterval: GC runs of itself, again and again, until the store is closed, and
// leaves what is in use. Proves I6 (GC on a timer).
func TestGCInterval(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		g.letIn(100)
		d := start(t, dagstore.Config{MountRegistry: registry(t, g), GCInterval: time.Minute})
		k := key("k")
		register(t, d, k, &gateMount{carV1(), g})
		for i := range 3 {
			works(t, d, k)
			if begun, _, _ := g.count(); begun != i+1 {
				t.Fatalf("fetched %d times after GC number %d", begun, i)
			}
			pass(3 * time.Minute)
		}
		acc := acquire(t, d, k)
		begun, _, _ := g.count()
		pass(10 * time.Minute)
		readAll(t, acc) // what is in use stays
		closeAll(t, acc)
		if now, _, _ := g.count(); now != begun {
			t.Errorf("what is in use was fetched again")
		}
	})
	if _, err := dagstore.Open(background, t.TempDir(), dagstore.WithGC(0)); err == nil {
		t.Error("GC every 0s")
	}
}

// TestRecoveryPolicy: shards that fail are tried again with growing pauses until the
// source is back, or as often as was said, also those that failed before the start.
// Proves F1 (recovery on a timer), F29 (functions that panic).
func TestRecoveryPolicy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg := dagstore.Config{Datastore: mapDatastore(), TransientsDir: t.TempDir()}
		d := start(t, cfg)
		register(t, d, key("well"), carV1())
		if _, err := d.RegisterShardSync(background, key("old"), junk(), dagstore.RegisterOpts{}); err == nil {
			t.Fatal("junk")
		}
		closeStore(t, d)
		var mu sync.Mutex
		failed := make(map[shard.Key]int)
		tried := func() map[shard.Key]int {
			mu.Lock()
			defer mu.Unlock()
			return maps.Clone(failed)
		}
		cfg.Recovery = &dagstore.RecoveryPolicy{MaxAttempts: 5, FirstPause: time.Minute, MaxPause: 4 * time.Minute}
		cfg.OnFailure = func(res dagstore.ShardResult) {
			mu.Lock()
			defer mu.Unlock()
			failed[res.Key]++
			panic("in code of others")
		}
		d = start(t, cfg)
		for _, k := range []shard.Key{key("a"), key("b")} {
			if _, err := d.RegisterShardSync(background, k, junk(), dagstore.RegisterOpts{}); err == nil {
				t.Fatal("junk")
			}
		}
		settle()
		if n := tried(); n[key("a")] != 1 || n[key("b")] != 1 {
			t.Fatalf("at once: %v", n)
		}
		pass(30 * time.Second)
		if n := tried(); n[key("a")] != 1 {
			t.Errorf("before the pause: %v", n)
		}
		pass(time.Minute)
		if n := tried(); n[key("a")] != 2 || n[key("b")] != 2 {
			t.Errorf("after the first pause: %v", n)
		}
		pass(24 * time.Hour)
		if n := tried(); n[key("a")] != 6 || n[key("b")] != 6 || n[key("old")] != 5 || n[key("well")] != 0 {
			t.Errorf("after a day: %v", n)
		}
	})
}

// TestHooks: functions hear what channels hear, in order, and one that takes its time or
// panics holds up nobody. Proves F29 (functions).
func TestHooks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		var ops []dagstore.OpType
		proceed := make(chan struct{})
		ch := make(chan dagstore.Trace, 1024)
		d := start(t, dagstore.Config{TraceCh: ch, OnTrace: func(tr dagstore.Trace) {
			<-proceed
			mu.Lock()
			defer mu.Unlock()
			ops = append(ops, tr.Op)
		}})
		k := key("k")
		register(t, d, k, carV1())
		works(t, d, k)
		for range 5000 { // more than wait
			closeAll(t, acquire(t, d, k))
			<-ch
			settle()
		}
		if n := d.Metrics().TracesDropped; n == 0 {
			t.Error("nothing was missed by a function that does not return")
		}
		close(proceed)
		settle()
		want := []dagstore.OpType{dagstore.OpShardRegister, dagstore.OpShardInitialize, dagstore.OpShardMakeAvailable, dagstore.OpShardAcquire, dagstore.OpShardRelease}
		mu.Lock()
		defer mu.Unlock()
		for i, op := range want {
			if len(ops) <= i || ops[i] != op {
				t.Fatalf("heard %v, want %v first", ops[:min(len(ops), 10)], want)
			}
		}
	})
	bubble(t, func(t *testing.T) {
		never := make(chan struct{})
		d := start(t, dagstore.Config{OnFailure: func(dagstore.ShardResult) { <-never }, CloseTimeout: time.Second})
		if _, err := d.RegisterShardSync(background, key("k"), junk(), dagstore.RegisterOpts{}); err == nil {
			t.Fatal("junk")
		}
		begun := time.Now()
		closeStore(t, d)
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("Close took %s", took)
		}
		close(never)
	})
}
