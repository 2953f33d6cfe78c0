package dagstore_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/mount"
)

// TestIndexRotsUnderAnAccessor damages where a block lies in an index whose pages were
// all found sound before, under an open accessor. What is read through it is the index's
// fault and said to be, not the source's; sizes are right or not told; the index is built
// again; and nobody makes room for a length that is not the block's. Proves C10, F20, I13.
func TestIndexRotsUnderAnAccessor(t *testing.T) {
	t.Run("a bit each", func(t *testing.T) {
		testIndexRots(t, func(location, size []byte) { location[1] ^= 0x10; size[0] ^= 1 })
	})
	t.Run("4 GiB", func(t *testing.T) {
		testIndexRots(t, func(_, size []byte) { binary.LittleEndian.PutUint32(size, 1<<32-1) })
	})
}

func testIndexRots(t *testing.T, rot func(location, size []byte)) {
	car, cids, data := carOf(100, func(i int) int { return 500 + i })
	path := writeFile(t, filepath.Join(t.TempDir(), "a.car"), car)
	dir := t.TempDir()
	d := open(t, dir)
	register(t, d, key("a"), &mount.FileMount{Path: path})
	acc := acquire(t, d, key("a"))
	defer acc.Close()
	bs := blockstore(t, acc)
	read := func(wantDamage bool) (damaged int) {
		t.Helper()
		for i, c := range cids {
			b, err := bs.Get(t.Context(), c)
			var de *index.DamagedError
			switch {
			case err == nil && !bytes.Equal(b.RawData(), data[i]):
				t.Fatalf("block %d: other bytes", i)
			case errors.As(err, &de) && wantDamage:
				damaged++
			case err != nil:
				t.Errorf("block %d: %v", i, err)
			}
			if n, err := bs.GetSize(t.Context(), c); err == nil && n != len(data[i]) {
				t.Errorf("block %d has %d bytes, not %d", i, len(data[i]), n)
			}
		}
		return damaged
	}
	read(false)
	files, err := filepath.Glob(filepath.Join(dir, "index", "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	f := must(os.OpenFile(files[0], os.O_RDWR, 0))
	defer f.Close()
	size := must(f.Stat()).Size()
	var b [16]byte // of the last record: 8 location, 4 size; and the page's checksum
	if _, err := f.ReadAt(b[:], size-16); err != nil {
		t.Fatal(err)
	}
	rot(b[:8], b[8:12])
	if _, err := f.WriteAt(b[:], size-16); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if read(true) == 0 {
		t.Error("no damage of the index was told")
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 100<<20 {
		t.Errorf("%d bytes were allocated to read 100 small blocks", n)
	}
	acc.Close()
	works(t, d, key("a")) // by an index that was built again
	acc = acquire(t, d, key("a"))
	defer acc.Close()
	bs = blockstore(t, acc)
	read(false)
}
