package dagstore

import (
	"context"
	"fmt"
	"io"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/carscan"
)

// Extent says where in a shard's file its blocks lie.
//
//	CARv1    header section* [padding]
//	         ↑ PayloadOffset = 0    ↑ PayloadEnd
//	CARv2    pragma header … [ header section* [padding] ] … [index] [padding]
//	                           ↑ PayloadOffset    ↑ PayloadEnd
//
// The bytes from PayloadOffset to PayloadEnd are a CARv1 with all blocks and no padding,
// whatever the file is: a Filecoin piece is half padding at times.
type Extent struct {
	// Version is 1 or 2.
	Version int
	// PayloadOffset is where the CARv1 begins, PayloadEnd where its last section ends.
	PayloadOffset, PayloadEnd int64
	// SourceSize is the length of the file.
	SourceSize int64
}

// Extent returns where in the shard's file its blocks lie, without padding. The first
// call on an open shard goes through its index, some 60 ms for 1,000,000 blocks.
func (sa *ShardAccessor) Extent(ctx context.Context) (Extent, error) {
	sa.inHand()
	if err := sa.enter(); err != nil {
		return Extent{}, err
	}
	defer sa.h.leave()
	if x := sa.h.extent.Load(); x != nil {
		return *x, nil
	}
	x, err := sa.h.findExtent(ctx)
	if err != nil {
		sa.noteDamage(err)
		return Extent{}, fmt.Errorf("shard %q: where its payload ends: %w", sa.h.key, err)
	}
	sa.h.extent.Store(&x)
	return x, nil
}

// PayloadReader returns a reader of the shard as a CARv1 without padding: what
// [ShardAccessor.Extent] describes. It is good until the accessor is closed.
func (sa *ShardAccessor) PayloadReader(ctx context.Context) (*io.SectionReader, error) {
	x, err := sa.Extent(ctx)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(&accessorReader{sa: sa}, x.PayloadOffset, x.PayloadEnd-x.PayloadOffset), nil
}

// findExtent finds the last section in the index, and walks on from there: an index may
// leave sections out.
func (h *handle) findExtent(ctx context.Context) (Extent, error) {
	l, err := carscan.ReadLayout(h.r, h.size, anyLayout)
	if err != nil {
		return Extent{}, err
	}
	last, n := uint64(len(l.Header)), 0
	see := func(offset uint64) error {
		last = max(last, offset)
		if n++; n%4096 == 0 {
			return ctx.Err()
		}
		return nil
	}
	if f, ok := h.index.(*shardFinder); ok {
		err = f.x.Entries(func(_ mh.Multihash, e index.Entry) error { return see(e.Offset) })
	} else if err = h.index.forEach(func(_ mh.Multihash, offset uint64) error { return see(offset) }); err == errNotIterable {
		err = nil // then all sections are walked
	}
	if err != nil {
		return Extent{}, err
	}
	end, err := carscan.PayloadEnd(ctx, h.r, l, last, carscan.Options{MaxSectionBytes: 1 << 30})
	if err != nil {
		return Extent{}, err
	}
	base := int64(l.DataOffset)
	return Extent{Version: l.Version, PayloadOffset: base, PayloadEnd: base + int64(end), SourceSize: h.size}, nil
}

// Skipped lists what of the shard's file is not in its index because nothing here can check
// its hash: see Config.SkipUnsupportedHashes. It goes through the headers of all sections of
// the file, of large blocks without reading them.
func (sa *ShardAccessor) Skipped(ctx context.Context) (index.Skipped, error) {
	sa.inHand()
	if err := sa.enter(); err != nil {
		return index.Skipped{}, err
	}
	defer sa.h.leave()
	opts := anyLayout
	opts.MaxSectionBytes, opts.SkipVerify, opts.SkipUnsupported = 1<<30, true, true
	sum, err := carscan.Scan(ctx, sa.h.r, sa.h.size, opts, func(*carscan.Record) error { return nil })
	if err != nil {
		return index.Skipped{}, fmt.Errorf("shard %q: %w", sa.h.key, err)
	}
	return sum.Skipped, nil
}
