package indexbs

import (
	"context"

	"github.com/ipfs/go-cid"
	"github.com/ipld/go-ipld-prime/linking"

	"github.com/dagstore/dagstore/internal/links"
)

// LinkSystem returns a link system of go-ipld-prime that loads nodes from the blocks of
// all shards. Bytes are not hashed again: they were checked when they were read, unless
// the store is configured not to. Codecs are those of the global registry, so import the
// ones that are needed. Storing is not supported: it returns an error that wraps
// errors.ErrUnsupported.
func (bs *IndexBackedBlockstore) LinkSystem() linking.LinkSystem {
	return links.System(true, func(ctx context.Context, c cid.Cid) ([]byte, error) {
		blk, err := bs.Get(ctx, c)
		if err != nil {
			return nil, err
		}
		return blk.RawData(), nil
	})
}
