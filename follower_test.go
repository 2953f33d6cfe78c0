package dagstore_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// follow opens a follower that is closed with the test.
func follow(t *testing.T, dir string, opts ...dagstore.Option) *dagstore.Follower {
	t.Helper()
	opts = append([]dagstore.Option{dagstore.WithLogger(quiet), dagstore.WithMount("fs", &mount.FSMount{FS: testdata.FS})}, opts...)
	f, err := dagstore.OpenFollower(background, dir, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// follows waits until the follower shows a change of the writer's.
func follows(t *testing.T, f *dagstore.Follower, at dagstore.Position) {
	t.Helper()
	for _, view := range []string{dagstore.CatalogueView, dagstore.TopLevelView} {
		fresh, err := f.WaitFor(background, view, dagstore.AtLeast(at))
		if err != nil {
			t.Fatalf("%s: %v", view, err)
		}
		if fresh.Applied.Seq < at.Seq {
			t.Fatalf("%s shows %d, waited for %d", view, fresh.Applied.Seq, at.Seq)
		}
	}
}

// TestFollower: a follower shows what its writer did, as of a position that it is
// asked for, serves shards in place and from the writer's copies, and learns of
// destructions, failures and new lives of a key while it has them open. Proves G18
// (in one process), G10 (across stores), G11 (tokens of others), I6.
func TestFollower(t *testing.T) {
	dir := t.TempDir()
	if _, err := dagstore.OpenFollower(background, filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("follow a directory that is not there: %v", err)
	}
	stream := dagstore.WithMount("stream", &streamMount{})
	d := open(t, dir, stream)
	f := follow(t, dir, stream)

	direct, copied, lazy := key("direct"), key("copied"), key("lazy")
	register(t, d, direct, carV1())
	register(t, d, copied, &streamMount{mount.BytesMount{Bytes: testdata.CarV2}})
	registerLazily(t, d, lazy, carV1())
	at, err := dagstore.ParsePosition(d.Position().Token())
	if err != nil {
		t.Fatal(err)
	}
	follows(t, f, at)
	for _, k := range []shard.Key{direct, copied} {
		acc, err := f.AcquireShardSync(background, k, dagstore.AcquireOpts{})
		if err != nil {
			t.Fatalf("%s: %v", k, err)
		}
		if _, err := blockstore(t, acc).Get(background, testdata.RootCID); err != nil {
			t.Errorf("%s: %v", k, err)
		}
		closeAll(t, acc)
	}
	if _, err := f.AcquireShardSync(background, lazy, dagstore.AcquireOpts{}); err == nil {
		t.Error("a shard that was never indexed is served")
	}
	keys, fresh, err := f.FindShards(background, testdata.RootCID.Hash(), dagstore.AtLeast(at))
	if err != nil || len(keys) != 2 || fresh.Applied.Seq < at.Seq {
		t.Errorf("find: %v, %v, %v", keys, fresh, err)
	}
	refusesMutations(t, f, direct)

	// An accessor outlives what the writer does to the shard.
	held, err := f.AcquireShardSync(background, direct, dagstore.AcquireOpts{})
	if err != nil {
		t.Fatal(err)
	}
	destroy(t, d, direct)
	follows(t, f, d.Position())
	if _, err := blockstore(t, held).Get(background, testdata.RootCID); err != nil {
		t.Errorf("read from an accessor of a destroyed shard: %v", err)
	}
	_, err = f.AcquireShardSync(background, direct, dagstore.AcquireOpts{})
	wantErr(t, "acquire of a destroyed shard", err, dagstore.ErrShardUnknown)
	data, cids := makeCAR(randomBlocks(7, 9, 100)...)
	register(t, d, direct, &mount.BytesMount{Bytes: data})
	follows(t, f, d.Position())
	acc, err := f.AcquireShardSync(background, direct, dagstore.AcquireOpts{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cids {
		if _, err := blockstore(t, acc).Get(background, c); err != nil {
			t.Errorf("read from the next life: %v", err)
		}
		if keys, fresh, err := f.FindShards(background, c.Hash(), dagstore.Latest()); err != nil || len(keys) != 1 || keys[0] != direct {
			t.Errorf("find in the next life: %v, %v, %v", keys, fresh, err)
		}
	}
	closeAll(t, held, acc)

	// It goes on without the writer, and with the next one.
	closeStore(t, d)
	if keys, _, err := f.FindShards(background, cids[0].Hash(), dagstore.Latest()); err != nil || len(keys) != 1 {
		t.Errorf("find without a writer: %v, %v", keys, err)
	}
	d = open(t, dir, stream)
	destroy(t, d, copied)
	follows(t, f, d.Position())
	_, err = f.AcquireShardSync(background, copied, dagstore.AcquireOpts{})
	wantErr(t, "acquire of a shard that the next writer destroyed", err, dagstore.ErrShardUnknown)
	if h := f.Health(); h.State != dagstore.HealthReady || !h.Follower {
		t.Errorf("health: %s", h)
	}
}

// refusesMutations: a follower refuses to change anything, and its files are refused
// it. Proves G18 (mutations).
func refusesMutations(t *testing.T, f *dagstore.Follower, k shard.Key) {
	t.Helper()
	for what, err := range map[string]error{
		"register":   f.RegisterShard(background, key("new"), carV1(), nil, dagstore.RegisterOpts{}),
		"destroy":    f.DestroyShard(background, k, nil, dagstore.DestroyOpts{}),
		"recover":    f.RecoverShard(background, k, nil, dagstore.RecoverOpts{}),
		"checkpoint": f.Checkpoint(background),
		"gc":         func() error { _, err := f.GC(background); return err }(),
	} {
		if !errors.Is(err, dagstore.ErrFollower) || !errors.Is(err, dagstore.ErrReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestFollowerOvertaken: a follower that was overtaken by a compaction takes up the
// state from a checkpoint and goes on. Proves G18, C7 (followers).
func TestFollowerOvertaken(t *testing.T) {
	dir := t.TempDir()
	opts := []dagstore.Option{
		dagstore.WithCheckpoints(projection.CheckpointPolicy{Events: 10}),
		dagstore.WithRetention(projection.Retention{Bytes: 1}),
		dagstore.WithJournalOptions(journal.FileOptions{SegmentSize: 4 << 10}),
	}
	d := open(t, dir, opts...)
	register(t, d, key("first"), carV1())
	f := follow(t, dir, opts...)
	follows(t, f, d.Position())
	resume := dagstore.Suspend(f)
	for i := range 300 {
		k := key("k%d", i)
		registerLazily(t, d, k, carV1())
		destroy(t, d, k)
	}
	destroy(t, d, key("first"))
	register(t, d, key("second"), carV2())
	for i := range 3 {
		registerLazily(t, d, key("last%d", i), carV1())
		if _, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil {
			t.Fatal(err)
		}
		if err := d.Checkpoint(background); err != nil {
			t.Fatal(err)
		}
	}
	if h := d.Health(); h.Checkpoints.Compactions == 0 {
		t.Fatalf("nothing was compacted: %+v", h.Checkpoints)
	}
	resume()
	follows(t, f, d.Position())
	_, err := f.AcquireShardSync(background, key("first"), dagstore.AcquireOpts{})
	wantErr(t, "acquire of a shard destroyed meanwhile", err, dagstore.ErrShardUnknown)
	keys, _, err := f.FindShards(background, testdata.RootCID.Hash(), dagstore.Latest())
	if err != nil || len(keys) != 1 || keys[0] != key("second") {
		t.Errorf("find: %v, %v", keys, err)
	}
	if dagstore.Jumps(f) == 0 {
		t.Errorf("the follower was not overtaken: %+v", d.Health().Checkpoints)
	}
}

// TestFollowerHasNoTopLevelDir: a follower writes nothing, so it takes no directory for
// a top-level index. Proves G18 (what a follower refuses).
func TestFollowerHasNoTopLevelDir(t *testing.T) {
	dir := t.TempDir()
	closeStore(t, open(t, dir))
	other := filepath.Join(t.TempDir(), "top")
	_, err := dagstore.OpenFollower(background, dir, dagstore.WithConfig(func(c *dagstore.Config) { c.TopLevelDir = other }))
	if err == nil || !strings.Contains(err.Error(), "TopLevelDir") {
		t.Errorf("a follower with a directory to write to: %v", err)
	}
	if _, err := os.Stat(other); err == nil {
		t.Error("and it made the directory")
	}
}
