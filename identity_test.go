package dagstore_test

import (
	"testing"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/carscan/hostile"
)

// TestIdentityBlocksAreTheCallers: whoever changes the bytes of a block that is in its
// CID does not change the CID.
func TestIdentityBlocksAreTheCallers(t *testing.T) {
	car, _, _ := carOf(3, func(int) int { return 10 })
	bs, _ := ofMemory(t, car)
	c := cid.NewCidV1(cid.Raw, hostile.Mh(mh.IDENTITY, []byte("hello")))
	was := c.String()
	must(bs.Get(t.Context(), c)).RawData()[0] = 'J'
	must(bs.GetMany(t.Context(), []cid.Cid{c}))[0].RawData()[0] = 'J'
	if c.String() != was {
		t.Errorf("%s is %s now", was, c)
	}
}
