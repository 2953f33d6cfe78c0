package indexbs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// TestSourceAwayAndBack: while the files of a store's shards are away every read of their
// blocks says so, absent blocks stay absent, blocks of other shards are served, and when
// the files are back so are the blocks, without a request to recover anything. Proves A1,
// A2, A4 (the blockstore over all shards).
func TestSourceAwayAndBack(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	// What is idle is closed at once, so that each read opens the file.
	d := must(dagstore.Open(t.Context(), filepath.Join(dir, "store"), dagstore.WithConfig(func(c *dagstore.Config) { c.IdleHandles = -1 })))
	defer d.Close()
	register := func(key, path string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.RegisterShardSync(t.Context(), shard.KeyFromString(key), &mount.FileMount{Path: path}, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
	}
	a := shard.KeyFromString("a")
	register("a", filepath.Join(disk, "a.car"), testdata.CarV1)
	register("b", filepath.Join(dir, "b.car"), testdata.CarShared)
	both, _ := sharedBlock(t)
	onlyA := cid.Undef
	for c := range sampleBlocks(t, testdata.CarV1) {
		if _, ok := sampleBlocks(t, testdata.CarShared)[c]; !ok {
			onlyA = c
		}
	}
	bs := must(indexbs.Of(d))
	defer bs.Close()
	for round := range 2 {
		if err := os.Rename(disk, disk+".away"); err != nil { // the disk is not mounted
			t.Fatal(err)
		}
		bs.Evict(a)
		for range 3 {
			for how, err := range everyRead(t.Context(), bs, onlyA) {
				var away *dagstore.UnavailableError
				if !errors.As(err, &away) || !errors.Is(err, fs.ErrNotExist) || isNotFoundOfAny(err) || len(away.Shards) != 1 || away.Shards[0] != a {
					t.Errorf("round %d, %s while the file is away: %v", round, how, err)
				}
			}
			if has, err := bs.Has(t.Context(), onlyA); !has && err == nil {
				t.Error("Has says that there is no block whose file is away")
			}
			for how, err := range everyRead(t.Context(), bs, both) {
				if err != nil {
					t.Errorf("%s of a block that another shard holds too: %v", how, err)
				}
			}
			for how, err := range everyRead(t.Context(), bs, missing) {
				if !ipld.IsNotFound(err) {
					t.Errorf("%s of an absent block: %v", how, err)
				}
			}
		}
		if err := os.Rename(disk+".away", disk); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the block is served again", func() bool {
			_, err := bs.Get(t.Context(), onlyA)
			return err == nil
		})
		for how, err := range everyRead(t.Context(), bs, onlyA) {
			if err != nil {
				t.Errorf("round %d, %s: %v", round, how, err)
			}
		}
	}
}
