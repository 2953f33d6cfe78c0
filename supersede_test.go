package dagstore

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// stuckMount fetches nothing until its context ends.
type stuckMount struct {
	mount.BytesMount
	ended chan struct{}
}

func (m *stuckMount) Info() mount.Info { return mount.Info{AccessSequential: true} }

func (m *stuckMount) Fetch(ctx context.Context) (mount.Reader, error) {
	<-ctx.Done()
	close(m.ended)
	return nil, ctx.Err()
}

// TestSupersede: when another hand changes a shard's record, those who wait for the
// shard are told so, its running job is cancelled, an open accessor goes on and may
// be closed, and the next acquire finds what is recorded. Proves I1, I5 (of a
// follower's shards).
func TestSupersede(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		d := openBench(t, t.TempDir(), WithMount("stuck", &stuckMount{}))
		defer d.Close()
		supersede := func(key shard.Key) {
			if !d.loop.control(func() {
				e := d.loop
				e.in = fsm.Input{Trigger: fsm.Supersede, Time: e.now}
				e.step(d.mu.hot[key], nil)
			}) {
				t.Fatal("closed")
			}
		}
		used, stuck := shard.KeyFromString("used"), shard.KeyFromString("stuck")
		if _, err := d.RegisterShardSync(ctx, used, &mount.BytesMount{Bytes: testdata.CarV1}, RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		acc, err := d.AcquireShardSync(ctx, used, AcquireOpts{})
		if err != nil {
			t.Fatal(err)
		}
		supersede(used)
		bs, err := acc.Blockstore()
		if err != nil {
			t.Fatal(err)
		}
		if b, err := bs.Get(ctx, testdata.RootCID); err != nil || len(b.RawData()) == 0 {
			t.Errorf("an accessor that was open: %v", err)
		}
		again, err := d.AcquireShardSync(ctx, used, AcquireOpts{})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(acc.Close(), acc.Close()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if i, err := d.GetShardInfo(used); err != nil || i.ShardState != ShardStateServing {
			t.Errorf("the stray release counts: %s, %v", i.ShardState, err)
		}
		again.Close()

		m := &stuckMount{mount.BytesMount{Bytes: testdata.CarV1}, make(chan struct{})}
		out := make(chan ShardResult, 2)
		if err := d.RegisterShard(ctx, stuck, m, out, RegisterOpts{LazyInitialization: true}); err != nil {
			t.Fatal(err)
		}
		if res := <-out; res.Error != nil {
			t.Fatal(res.Error)
		}
		if err := d.AcquireShard(ctx, stuck, out, AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		supersede(stuck)
		<-m.ended
		if res := <-out; !errors.Is(res.Error, ErrShardChanged) {
			t.Errorf("who waits is told %v", res.Error)
		}
		if x, err := d.Explain(stuck); err != nil || x.Machine.Life != "registered" {
			t.Errorf("%v: %s", err, x)
		}
	})
}
