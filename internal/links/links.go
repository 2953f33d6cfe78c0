// Package links is what the blockstores have in common for go-ipld-prime: CIDs of its
// links, and a link system that reads.
package links

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/linking"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
)

// Cid returns the CID of a link.
func Cid(l datamodel.Link) (cid.Cid, error) {
	switch l := l.(type) {
	case cidlink.Link:
		if l.Defined() {
			return l.Cid, nil
		}
	case *cidlink.Link:
		if l != nil && l.Defined() {
			return l.Cid, nil
		}
	}
	return cid.Undef, fmt.Errorf("a link of type %T that has no CID", l)
}

// System returns a LinkSystem that loads blocks with load, whose bytes are the caller's,
// and stores nothing. trusted says that load checks them. Codecs are those of
// go-ipld-prime's global registry.
func System(trusted bool, load func(context.Context, cid.Cid) ([]byte, error)) linking.LinkSystem {
	lsys := cidlink.DefaultLinkSystem()
	lsys.TrustedStorage = trusted
	lsys.StorageReadOpener = func(lc linking.LinkContext, l datamodel.Link) (io.Reader, error) {
		c, err := Cid(l)
		if err != nil {
			return nil, fmt.Errorf("load a link: %w", err)
		}
		ctx := lc.Ctx
		if ctx == nil { // LinkContext says that it may be zero
			ctx = context.Background()
		}
		p, err := load(ctx, c)
		if err != nil {
			return nil, err
		}
		return bytes.NewBuffer(p), nil // out of which go-ipld-prime takes it without copying
	}
	lsys.StorageWriteOpener = func(linking.LinkContext) (io.Writer, linking.BlockWriteCommitter, error) {
		return nil, nil, fmt.Errorf("store a link: read-only: %w", errors.ErrUnsupported)
	}
	return lsys
}
