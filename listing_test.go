package dagstore_test

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	carindex "github.com/ipld/go-car/v2/index"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
)

type panicIndex struct{ carindex.IterableIndex }

func (panicIndex) ForEach(func(mh.Multihash, uint64) error) error { panic("x") }

// TestListingSurvivesPanic: an index of others that panics while it is listed ends the
// listing, and nothing else.
func TestListingSurvivesPanic(t *testing.T) {
	car, cids, _ := carOf(3, func(int) int { return 10 })
	idx := carindex.NewMultihashSorted()
	if err := idx.Load([]carindex.Record{{Cid: cids[0], Offset: 59}}); err != nil {
		t.Fatal(err)
	}
	acc := must(dagstore.NewShardAccessor(&countingReader{Reader: bytes.NewReader(car)}, panicIndex{idx}, nil))
	defer acc.Close()
	for range must(must(acc.Blockstore()).AllKeysChan(t.Context())) {
		t.Error("a key")
	}
}

// TestRottenSizeTakesNoMemory: what an entry says after it was checked and rotted is held
// to the source before anybody makes room for it.
func TestRottenSizeTakesNoMemory(t *testing.T) {
	car, cids, _ := carOf(300, func(int) int { return 100 })
	path := writeFile(t, filepath.Join(t.TempDir(), "a.car"), car)
	dir := t.TempDir()
	d := open(t, dir)
	register(t, d, key("a"), &mount.FileMount{Path: path})
	acc := acquire(t, d, key("a"))
	defer acc.Close()
	bs := must(acc.Blockstore())
	for _, c := range cids { // all pages are checked now
		must(bs.Get(t.Context(), c))
	}
	indices := must(filepath.Glob(filepath.Join(dir, "index", "*")))
	hurt := 0
	for _, name := range indices {
		st := must(os.Stat(name))
		if !st.Mode().IsRegular() || st.Size() < 1000 {
			continue
		}
		f := must(os.OpenFile(name, os.O_RDWR, 0))
		must(f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff}, st.Size()-8)) // the size of the last record
		f.Close()
		hurt++
	}
	if hurt != 1 {
		t.Fatalf("%d indices among %v", hurt, indices)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	bad := 0
	for _, c := range cids {
		if _, err := bs.Get(t.Context(), c); err != nil {
			bad++
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 100<<20 || bad == 0 {
		t.Errorf("%d bytes allocated, %d reads failed", n, bad)
	}
}
