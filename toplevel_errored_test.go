package dagstore

import (
	"context"
	"log/slog"
	"testing"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// TestTopLevelOfErroredShards: a top-level index that is made anew has the entries of
// shards that were indexed and are errored now, from their own indices if those are
// there; if not they are lacking, until they are indexed again or destroyed. Of what was
// never indexed nothing is. Proves A1, A3.
func TestTopLevelOfErroredShards(t *testing.T) {
	ctx := context.Background()
	for _, there := range []bool{true, false} {
		repo, j := index.NewMemoryRepo(), journal.NewMemory()
		begin := func(j journal.Journal) *DAGStore {
			reg := mount.NewRegistry()
			if err := reg.Register("bytes", &mount.BytesMount{}); err != nil {
				t.Fatal(err)
			}
			d, err := NewDAGStore(Config{Journal: j, IndexRepo: repo, TransientsDir: t.TempDir(), MountRegistry: reg, Logger: slog.New(slog.DiscardHandler)})
			if err == nil {
				err = d.Start(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		d := begin(j)
		k, never := shard.KeyFromString("k"), shard.KeyFromString("never indexed")
		c := simContents()[4]
		if _, err := d.RegisterShardSync(ctx, k, &mount.BytesMount{Bytes: c.data}, RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		if _, err := d.RegisterShardSync(ctx, never, &mount.BytesMount{Bytes: []byte("no CAR")}, RegisterOpts{}); err == nil {
			t.Fatal("registered what is no CAR")
		}
		rec := d.cat.Get(k)
		later := journal.NewMemory()
		err := j.Replay(0, func(b *journal.Batch) error {
			_, err := later.Append(b.Events)
			return err
		})
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		e := shard.Event{Seq: later.Head().Seq + 1, Gen: rec.Gen(), Kind: shard.EventFailed, Key: k, State: rec.State()}
		e.State.Life, e.State.Reason = shard.Errored, "it was taken away"
		if err == nil {
			_, err = later.Append([]shard.Event{e})
		}
		if err == nil && !there {
			_, err = repo.DropIndex(k, rec.Gen())
		}
		if err != nil {
			t.Fatal(err)
		}
		d = begin(later)
		if _, err := d.WaitFor(ctx, TopLevelView, Latest()); err != nil {
			t.Fatal(err)
		}
		top := d.top.Load()
		for _, b := range c.blocks {
			found, err := top.holders(ctx, mh.Multihash(b.Cid().Hash()), d.Position().Seq)
			if err != nil || there != (len(found) == 1 && found[0].key == k) {
				t.Errorf("index there %t: holders %v, %v", there, found, err)
			}
		}
		if n := top.lackingCount(); there != (n == 0) || n > 1 {
			t.Errorf("index there %t: %d shards are lacking: %v", there, n, top.Lacking())
		}
		if there {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		if _, err := d.DestroyShardSync(ctx, k, DestroyOpts{}); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WaitFor(ctx, TopLevelView, Latest()); err != nil {
			t.Fatal(err)
		}
		if n := top.lackingCount(); n != 0 {
			t.Errorf("with the shard destroyed %d are lacking", n)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}
