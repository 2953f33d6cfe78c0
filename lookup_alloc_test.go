//go:build !race

package dagstore_test

import (
	"context"
	"testing"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// The race detector has pools drop what they are given now and then.

// TestLookupsDoNotAllocate holds AppendShards and LookupPosition to what they say.
func TestLookupsDoNotAllocate(t *testing.T) {
	d := start(t, dagstore.Config{})
	register(t, d, key("a"), carV1())
	register(t, d, key("b"), carV1())
	there := testdata.RootCID.Hash()
	gone, err := mh.Sum([]byte("gone"), mh.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]shard.Key, 0, 4)
	for what, f := range map[string]func(){
		"found":     func() { dst, _, _ = d.AppendShards(context.Background(), dst[:0], there, dagstore.Latest()) },
		"not found": func() { dst, _, _ = d.AppendShards(context.Background(), dst[:0], gone, dagstore.Latest()) },
		"position":  func() { d.LookupPosition(dagstore.Latest()) },
	} {
		if n := testing.AllocsPerRun(200, f); n >= 1 {
			t.Errorf("%s: %g allocations", what, n)
		}
	}
}
