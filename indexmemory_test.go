package dagstore_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// TestIndexLargerThanMemory registers a shard whose records do not fit into what an index
// may take while it is made: its index file is that of a store with room, every block is
// found, in the shard and across shards, after a restart too, and no temporary file stays.
// Proves I15, C5.
func TestIndexLargerThanMemory(t *testing.T) {
	const n = 60_000
	sections := make([][]byte, n)
	var cids []cid.Cid
	for i := range sections {
		data := binary.BigEndian.AppendUint32([]byte("block "), uint32(i))
		sections[i] = hostile.Raw(data)
		if i%1000 == 0 {
			cids = append(cids, must(cid.Cast(hostile.RawCID(data))))
		}
	}
	path := writeFile(t, filepath.Join(t.TempDir(), "a.car"), hostile.V1(sections...))
	files := make([][]byte, 2)
	for i, memory := range []int64{0, 1} { // 1 stands for the least, 1 MiB: a quarter
		dir := t.TempDir()
		d := open(t, dir, dagstore.WithConfig(func(c *dagstore.Config) { c.IndexMemory = memory }))
		register(t, d, key("a"), &mount.FileMount{Path: path})
		for range 2 {
			acc := acquire(t, d, key("a"))
			bs := blockstore(t, acc)
			for _, c := range cids {
				if _, err := bs.Get(t.Context(), c); err != nil {
					t.Fatal(err)
				}
				if keys, err := d.ShardsContainingMultihash(t.Context(), c.Hash()); err != nil || !slices.Equal(keys, []shard.Key{key("a")}) {
					t.Fatal(keys, err)
				}
			}
			acc.Close()
			closeStore(t, d)
			d = open(t, dir)
		}
		closeStore(t, d)
		left := names(t, filepath.Join(dir, "index"))
		if len(left) != 1 {
			t.Fatalf("files in the index directory: %v", left)
		}
		files[i] = must(os.ReadFile(filepath.Join(dir, "index", left[0])))
	}
	if !bytes.Equal(files[0], files[1]) {
		t.Error("the index that was made with little memory is another one")
	}
}
