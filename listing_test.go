package dagstore_test

import (
	"bytes"
	"testing"

	carindex "github.com/ipld/go-car/v2/index"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
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
