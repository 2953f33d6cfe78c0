package indexbs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/linking"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
)

// LinkSystem returns a link system of go-ipld-prime that loads nodes from the blocks of
// all shards. Bytes are not hashed again: they were checked when they were read, unless
// the store is configured not to. Codecs are those of the global registry, so import the
// ones that are needed. Storing is not supported: it returns an error that wraps
// errors.ErrUnsupported.
func (bs *IndexBackedBlockstore) LinkSystem() linking.LinkSystem {
	lsys := cidlink.DefaultLinkSystem()
	lsys.TrustedStorage = true
	lsys.StorageReadOpener = bs.openLink
	lsys.StorageWriteOpener = func(linking.LinkContext) (io.Writer, linking.BlockWriteCommitter, error) {
		return nil, nil, fmt.Errorf("%w: store a link", errors.ErrUnsupported)
	}
	return lsys
}

// openLink returns the bytes of a block. go-ipld-prime takes them out of a bytes.Buffer
// without copying.
func (bs *IndexBackedBlockstore) openLink(lc linking.LinkContext, l datamodel.Link) (io.Reader, error) {
	link, ok := l.(cidlink.Link)
	if !ok {
		return nil, fmt.Errorf("load a link: it is a %T and has no CID", l)
	}
	ctx := lc.Ctx
	if ctx == nil {
		ctx = context.Background()
	}
	blk, err := bs.Get(ctx, link.Cid)
	if err != nil {
		return nil, err
	}
	return bytes.NewBuffer(blk.RawData()), nil
}
