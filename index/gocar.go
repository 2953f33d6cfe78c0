package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/ipfs/go-cid"
	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multicodec"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/cids"
)

var _ carindex.IterableIndex = (*ShardIndex)(nil)

// Codec implements go-car's Index: what Marshal writes is a MultihashIndexSorted.
func (x *ShardIndex) Codec() multicodec.Code { return multicodec.CarMultihashIndexSorted }

// Marshal writes the index as a MultihashIndexSorted, without its codec, as go-car's
// index.WriteTo wants it:
//
//	4 number of functions
//	  8 function, 4 number of widths
//	    4 width = digest length + 8, 8 length of the records in bytes
//	      digest, 8 section offset
func (x *ShardIndex) Marshal(w io.Writer) (uint64, error) {
	c := x.core
	if !x.enter() {
		return 0, ErrClosed
	}
	defer c.leave()
	out := countingWriter{w: w}
	err := c.marshal(&out)
	return out.n, err
}

type countingWriter struct {
	w io.Writer
	n uint64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += uint64(n)
	return n, err
}

func (c *indexCore) marshal(w io.Writer) error {
	le := binary.LittleEndian
	widths := make(map[uint64]int) // by function
	for i := range c.groups {
		widths[c.groups[i].code]++
	}
	buf := le.AppendUint32(make([]byte, 0, 64<<10), uint32(len(widths)))
	for i := range c.groups {
		g := &c.groups[i]
		if i == 0 || c.groups[i-1].code != g.code {
			buf = le.AppendUint64(buf, g.code)
			buf = le.AppendUint32(buf, uint32(widths[g.code]))
		}
		width := g.digestLen + 8
		buf = le.AppendUint32(buf, width)
		buf = le.AppendUint64(buf, uint64(width)*g.records)
		err := c.eachRecord(g, 0, func(digest []byte, e Entry) error {
			if len(buf)+int(width) > cap(buf) {
				if _, err := w.Write(buf); err != nil {
					return err
				}
				buf = buf[:0]
			}
			buf = le.AppendUint64(append(buf, digest...), e.Offset)
			return nil
		})
		if err != nil {
			return err
		}
	}
	_, err := w.Write(buf)
	return err
}

// Unmarshal returns [ErrImmutable].
func (x *ShardIndex) Unmarshal(io.Reader) error { return ErrImmutable }

// Load returns [ErrImmutable].
func (x *ShardIndex) Load([]carindex.Record) error { return ErrImmutable }

// GetAll implements go-car's Index: fn gets every section offset of c's multihash in
// ascending order, until it returns false; carindex.ErrNotFound if there is none.
func (x *ShardIndex) GetAll(c cid.Cid, fn func(uint64) bool) error {
	found := false
	err := x.FindAll(string(c.Hash()), func(e Entry) bool {
		found = true
		return fn(e.Offset)
	})
	if err == nil && !found {
		err = carindex.ErrNotFound
	}
	return err
}

// ForEach implements go-car's IterableIndex, in go-car's order: by function, digest
// length, digest. The multihash is the visitor's to keep.
func (x *ShardIndex) ForEach(fn func(multihash.Multihash, uint64) error) error {
	return x.Entries(func(mh multihash.Multihash, e Entry) error {
		return fn(bytes.Clone(mh), e.Offset)
	})
}

// WithoutIdentity is idx without the identity multihashes where it is listed: they carry
// their blocks themselves, and IPNI wants them left out of what is advertised. Asked for
// one it still answers; Marshal writes all.
func WithoutIdentity(idx carindex.IterableIndex) carindex.IterableIndex {
	return withoutIdentity{idx}
}

type withoutIdentity struct{ carindex.IterableIndex }

func (x withoutIdentity) ForEach(fn func(multihash.Multihash, uint64) error) error {
	return x.IterableIndex.ForEach(func(mh multihash.Multihash, offset uint64) error {
		if code, _, ok := cids.Split(mh); ok && code == multihash.IDENTITY {
			return nil
		}
		return fn(mh, offset)
	})
}

// foreignCodec reads the codec of go-car index bytes.
func foreignCodec(r io.ReaderAt) (multicodec.Code, error) {
	var b [binary.MaxVarintLen64]byte
	n, err := carscan.FillAt(r, b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	v, w := binary.Uvarint(b[:n])
	if w <= 0 {
		return 0, fmt.Errorf("%w: it has no codec", ErrBadIndex)
	}
	return multicodec.Code(v), nil
}

// foreignLength returns how many of size bytes the MultihashIndexSorted takes at whose
// codec r begins, without reading its records.
func foreignLength(r io.ReaderAt, size int64) (int64, error) {
	var b [binary.MaxVarintLen64]byte
	if n, err := carscan.FillAt(r, b[:], 0); err != nil && !errors.Is(err, io.EOF) || n == 0 {
		return 0, err
	}
	_, n := binary.Uvarint(b[:])
	at := int64(n)
	field := func(width int64) (v uint64, err error) {
		if width > size-at {
			return 0, fmt.Errorf("%w: it ends inside a length, at %d", ErrBadIndex, size)
		}
		b := b[:width]
		if _, err := carscan.FillAt(r, b, at); err != nil {
			return 0, err
		}
		at += width
		if width == 4 {
			return uint64(binary.LittleEndian.Uint32(b)), nil
		}
		return binary.LittleEndian.Uint64(b), nil
	}
	functions, err := field(4)
	groups := uint64(0)
	for ; functions > 0 && err == nil; functions-- {
		var widths uint64
		if _, err = field(8); err == nil {
			widths, err = field(4)
		}
		if groups += max(widths, 1); groups > maxGroups && err == nil { // a draft holds no more
			err = fmt.Errorf("%w: more than %d kinds of multihash", ErrBadIndex, maxGroups)
		}
		for ; widths > 0 && err == nil; widths-- {
			var n uint64
			if _, err = field(4); err == nil {
				n, err = field(8)
			}
			if err == nil && n > uint64(size-at) {
				err = fmt.Errorf("%w: records of %d bytes at %d, it has %d", ErrBadIndex, n, at, size)
			}
			if err == nil {
				at += int64(n)
			}
		}
	}
	if err != nil {
		return 0, err
	}
	return at, nil
}

// ReadForeignIndex reads index bytes in go-car's forms, IndexSorted and
// MultihashIndexSorted, from a stranger. It keeps the bytes in memory, size of them
// and no more: lengths are compared with what is there, never allocated, which
// go-car's own reader does not do. The bytes must be sorted and fill the source to
// its end. What is wrong with them wraps [ErrBadIndex]; errors of r come back as they
// are.
//
// A MultihashIndexSorted comes back as a carindex.IterableIndex. An IndexSorted does
// not know its hash functions and can only be asked.
func ReadForeignIndex(r io.ReaderAt, size int64) (carindex.Index, error) {
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, io.NewSectionReader(filled{r}, 0, size)); err != nil {
		return nil, err
	}
	if int64(buf.Len()) != size {
		return nil, fmt.Errorf("%w: the source ends after %d of %d bytes", ErrBadIndex, buf.Len(), size)
	}
	p := foreignParser{b: buf.Bytes()}
	codec, n := binary.Uvarint(p.b)
	if n <= 0 {
		return nil, fmt.Errorf("%w: it has no codec", ErrBadIndex)
	}
	raw := foreignIndex{codec: multicodec.Code(codec), body: p.b[n:]}
	p.b = raw.body
	switch raw.codec {
	case multicodec.CarIndexSorted:
		raw.buckets = p.widths(0, nil)
	case multicodec.CarMultihashIndexSorted:
		for range p.count(8 + 4) {
			code := p.uint64()
			raw.buckets = p.widths(code, raw.buckets)
		}
	default:
		return nil, fmt.Errorf("%w: index codec %#x", ErrBadIndex, codec)
	}
	if len(p.b) > 0 {
		p.fail("%d bytes after its end", len(p.b))
	}
	if p.err != nil {
		return nil, p.err
	}
	if raw.codec == multicodec.CarIndexSorted {
		return &raw, nil
	}
	return &foreignMultihashIndex{raw}, nil
}

// foreignParser reads from the front of b. After the first error every method
// returns zero.
type foreignParser struct {
	b   []byte
	err error
}

func (p *foreignParser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: %s", ErrBadIndex, fmt.Sprintf(format, args...))
	}
	p.b = nil
}

func (p *foreignParser) take(n uint64) []byte {
	if n > uint64(len(p.b)) {
		p.fail("it ends %d bytes early", n-uint64(len(p.b)))
		return nil
	}
	b := p.b[:n:n]
	p.b = p.b[n:]
	return b
}

func (p *foreignParser) uint32() uint32 {
	if b := p.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (p *foreignParser) uint64() uint64 {
	if b := p.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// count reads a number of things that take at least min bytes each.
func (p *foreignParser) count(min int) uint32 {
	n := p.uint32()
	if uint64(n)*uint64(min) > uint64(len(p.b)) {
		p.fail("%d parts cannot lie in %d bytes", n, len(p.b))
		return 0
	}
	return n
}

// foreignBucket holds the records of one function and width, digest and offset each.
type foreignBucket struct {
	code    uint64
	width   int
	records []byte
}

func (p *foreignParser) widths(code uint64, into []foreignBucket) []foreignBucket {
	for range p.count(4 + 8) {
		width := p.uint32()
		if p.err == nil && (width < 8 || width > maxDigest+8) {
			p.fail("records of %d bytes", width)
		}
		b := foreignBucket{code, int(width), p.take(p.uint64())}
		if p.err != nil {
			return nil
		}
		switch {
		case len(b.records)%b.width != 0:
			p.fail("%d bytes of records of %d bytes", len(b.records), b.width)
		case len(into) > 0 && !into[len(into)-1].before(code, b.width):
			p.fail("widths or functions are out of order")
		case !b.sorted():
			p.fail("records are out of order")
		}
		into = append(into, b)
	}
	return into
}

func (b *foreignBucket) before(code uint64, width int) bool {
	return b.code < code || b.code == code && b.width < width
}

func (b *foreignBucket) len() int { return len(b.records) / b.width }

func (b *foreignBucket) digest(i int) []byte {
	return b.records[i*b.width : (i+1)*b.width-8]
}

func (b *foreignBucket) offset(i int) uint64 {
	return binary.LittleEndian.Uint64(b.records[(i+1)*b.width-8:])
}

func (b *foreignBucket) sorted() bool {
	for i := 1; i < b.len(); i++ {
		if bytes.Compare(b.digest(i-1), b.digest(i)) > 0 {
			return false
		}
	}
	return true
}

// foreignIndex serves go-car index bytes from memory.
type foreignIndex struct {
	codec   multicodec.Code
	body    []byte // all but the codec
	buckets []foreignBucket
}

func (x *foreignIndex) Codec() multicodec.Code { return x.codec }

func (x *foreignIndex) Marshal(w io.Writer) (uint64, error) {
	n, err := w.Write(x.body)
	return uint64(n), err
}

func (x *foreignIndex) Unmarshal(io.Reader) error { return ErrImmutable }

func (x *foreignIndex) Load([]carindex.Record) error { return ErrImmutable }

func (x *foreignIndex) GetAll(c cid.Cid, fn func(uint64) bool) error {
	code, digest, ok := cids.Split(c.Hash())
	if !ok {
		return fmt.Errorf("index: %v holds no multihash", c)
	}
	found := false
	for i := range x.buckets {
		b := &x.buckets[i]
		if b.width != len(digest)+8 || x.codec == multicodec.CarMultihashIndexSorted && b.code != code {
			continue
		}
		n := b.len()
		for at := sort.Search(n, func(i int) bool { return bytes.Compare(b.digest(i), digest) >= 0 }); at < n && bytes.Equal(b.digest(at), digest); at++ {
			found = true
			if !fn(b.offset(at)) {
				return nil
			}
		}
	}
	if !found {
		return carindex.ErrNotFound
	}
	return nil
}

// foreignMultihashIndex knows its hash functions and can be iterated.
type foreignMultihashIndex struct{ foreignIndex }

var _ carindex.IterableIndex = (*foreignMultihashIndex)(nil)

func (x *foreignMultihashIndex) ForEach(fn func(multihash.Multihash, uint64) error) error {
	for i := range x.buckets {
		b := &x.buckets[i]
		prefix := multihashPrefix(&group{code: b.code, digestLen: uint32(b.width - 8)})
		for r := range b.len() {
			mh := bytes.Clone(append(prefix, b.digest(r)...))
			if err := fn(mh, b.offset(r)); err != nil {
				return err
			}
		}
	}
	return nil
}
