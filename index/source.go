package index

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/dagstore/dagstore/internal/carscan"
)

// sourceSamples is how many sections CheckSource looks at.
const sourceSamples = 8

// CheckSource proves cheaply that a source is still the one that was indexed: its
// size, its headers, and the section headers at up to eight offsets spread over the
// index. A different source is a [*SourceMismatchError]; an error of r comes back as
// it is. It costs a dozen small reads, whatever the size of the source, and does not
// look at the data of blocks: those are checked against their CIDs when read.
//
// An index that is bound to no source is held against the sections only.
func (x *ShardIndex) CheckSource(r io.ReaderAt, size int64) error {
	c := x.core
	if !x.enter() {
		return ErrClosed
	}
	defer c.leave()
	b, bound := x.Binding()
	if bound && uint64(size) != b.SourceSize {
		return mismatch("size", b.SourceSize, size)
	}
	// What was indexed under wider limits must pass here too.
	opts := carscan.Options{MaxHeaderBytes: max(int(b.HeaderLen), 64<<20), MaxRoots: math.MaxInt32, MaxSectionBytes: 1 << 30}
	l, err := carscan.ReadLayout(r, size, opts)
	if err != nil {
		return asMismatch("headers", "those indexed", err)
	}
	if bound {
		if err := compareLayout(&b, l); err != nil {
			return err
		}
	}
	n := min(c.records, sourceSamples)
	buf := sectionBuffers.Get().(*[carscan.MaxSectionHeader]byte)
	defer sectionBuffers.Put(buf)
	for i := range n {
		if err := c.checkSample(r, l, opts, c.records*i/n, buf[:]); err != nil {
			return err
		}
	}
	return nil
}

func compareLayout(b *Binding, l *carscan.Layout) error {
	switch {
	case l.Version != b.CARVersion:
		return mismatch("CAR version", b.CARVersion, l.Version)
	case l.DataOffset != b.DataOffset:
		return mismatch("payload offset", b.DataOffset, l.DataOffset)
	case l.DataSize != b.DataSize:
		return mismatch("payload size", b.DataSize, l.DataSize)
	case l.HeaderDigest != b.HeaderDigest:
		return mismatch("SHA-256 of the CAR header", fmt.Sprintf("%x", b.HeaderDigest[:8]), fmt.Sprintf("%x", l.HeaderDigest[:8]))
	}
	return nil
}

var sectionBuffers = sync.Pool{New: func() any { return new([carscan.MaxSectionHeader]byte) }}

// checkSample compares record number n, counted over all groups, with the section
// that it points to, whose header it reads into buf.
func (c *indexCore) checkSample(r io.ReaderAt, l *carscan.Layout, opts carscan.Options, n uint64, buf []byte) error {
	i := 0
	for ; n >= c.groups[i].records; i++ {
		n -= c.groups[i].records
	}
	g := &c.groups[i]
	return c.eachRecord(g, n, func(digest []byte, e Entry) error {
		var rec carscan.Record
		err := carscan.SectionAt(r, l, e.Offset, opts, buf, &rec)
		same := err == nil && rec.Code == g.code && string(rec.Digest) == string(digest) &&
			(e.Size == unknownSize || rec.Size == e.Size && rec.HeaderLen == e.HeaderLen)
		if same {
			return errStop
		}
		what := fmt.Sprintf("section at %d of the payload", e.Offset)
		want := fmt.Sprintf("block %x (function %#x) in %d+%d bytes", digest, g.code, e.HeaderLen, e.Size)
		if err != nil {
			return asMismatch(what, want, err)
		}
		return mismatch(what, want, fmt.Sprintf("block %x (function %#x) in %d+%d bytes", rec.Digest, rec.Code, rec.HeaderLen, rec.Size))
	})
}

func mismatch(what string, want, have any) error {
	return &SourceMismatchError{What: what, Want: fmt.Sprint(want), Have: fmt.Sprint(have)}
}

// asMismatch turns what is wrong with a source into a mismatch and leaves errors of
// reading as they are.
func asMismatch(what, want string, err error) error {
	if e := (*carscan.Error)(nil); errors.As(err, &e) {
		return mismatch(what, want, e)
	}
	return err
}
