package carscan

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"
)

// Layout is what the headers of a CAR say, checked against the file's size.
type Layout struct {
	// Version is 1 or 2.
	Version int
	// DataOffset is where the CARv1 payload starts in the file, DataSize its length.
	DataOffset, DataSize uint64
	// IndexOffset is where a CARv2's index starts, or 0.
	IndexOffset uint64
	// Header is the CARv1 header with its length prefix, HeaderDigest its SHA-256.
	Header       []byte
	HeaderDigest [sha256.Size]byte
	// Roots are the header's roots. They are parsed, not judged: a root may use a
	// hash function that no block may.
	Roots []cid.Cid
}

const (
	v2HeaderLen = 40
	v2FixedLen  = len(pragma) + v2HeaderLen
	pragma      = "\x0a\xa1\x67version\x02"
)

// ReadLayout reads and checks the headers of a CAR of size bytes.
func ReadLayout(r io.ReaderAt, size int64, opts Options) (*Layout, error) {
	opts = opts.withDefaults()
	if size < 0 {
		return nil, bad(ErrTruncated, 0, "a size of %d bytes", size)
	}
	header, version, roots, err := readHeader(r, 0, size, &opts)
	if err != nil {
		return nil, err
	}
	l := &Layout{Version: 1, DataSize: uint64(size)}
	if version == 2 {
		if string(header) != pragma {
			return nil, bad(ErrMalformed, 0, "a CARv2 that does not begin with the pragma")
		}
		if err := l.readV2(r, size); err != nil {
			return nil, err
		}
		end := int64(l.DataOffset + l.DataSize)
		if header, version, roots, err = readHeader(r, int64(l.DataOffset), end, &opts); err != nil {
			return nil, err
		}
		if version != 1 {
			return nil, bad(ErrMalformed, int64(l.DataOffset), "the payload of a CARv2 has version %d, not 1", version)
		}
	}
	l.Header, l.HeaderDigest, l.Roots = header, sha256.Sum256(header), roots
	return l, nil
}

// readV2 reads the fixed CARv2 header:
//
//	11  16 characteristics   27  8 data offset   35  8 data size   43  8 index offset
func (l *Layout) readV2(r io.ReaderAt, size int64) error {
	var b [v2HeaderLen]byte
	at := int64(len(pragma))
	if size < int64(v2FixedLen) {
		return bad(ErrTruncated, at, "the CARv2 header takes %d bytes, the file ends after %d: it was cut off, or never finalised", v2FixedLen, size)
	}
	if err := readFull(r, b[:], at); err != nil {
		return err
	}
	// The characteristics are not looked at, as go-car does not: the one that is defined
	// (bit 7 of byte 0: the index lists every section) is not believed, and a new one must
	// not make a file unreadable.
	dataOffset := binary.LittleEndian.Uint64(b[16:])
	dataSize := binary.LittleEndian.Uint64(b[24:])
	indexOffset := binary.LittleEndian.Uint64(b[32:])
	usize := uint64(size)
	switch {
	case dataOffset == 0 && dataSize == 0 && indexOffset == 0:
		return bad(ErrNotFinalised, at+16, "the header is blank: its writer stopped before the end, or still writes")
	case dataSize == 0 && dataOffset >= uint64(v2FixedLen) && dataOffset <= usize:
		return bad(ErrNotFinalised, at+24, "the payload at %d has a length of 0: its writer stopped before the end, or still writes", dataOffset)
	case dataOffset < uint64(v2FixedLen):
		return bad(ErrMalformed, at+16, "data offset %d lies inside the headers", dataOffset)
	case dataSize == 0:
		return bad(ErrMalformed, at+16, "the payload is empty, at %d in a file of %d bytes", dataOffset, size)
	case dataOffset > usize || dataSize > usize-dataOffset:
		return bad(ErrTruncated, at+16, "a payload of %d bytes at %d leaves the file of %d", dataSize, dataOffset, size)
	case indexOffset != 0 && indexOffset < dataOffset+dataSize:
		return bad(ErrMalformed, at+32, "index offset %d lies before the end of the payload at %d", indexOffset, dataOffset+dataSize)
	case indexOffset > usize:
		return bad(ErrTruncated, at+32, "index offset %d leaves the file of %d bytes: it was cut off, or not finalised", indexOffset, size)
	}
	l.Version, l.DataOffset, l.DataSize, l.IndexOffset = 2, dataOffset, dataSize, indexOffset
	return nil
}

// readHeader reads the length-prefixed header at offset at, which must end by end.
func readHeader(r io.ReaderAt, at, end int64, opts *Options) (header []byte, version uint64, roots []cid.Cid, err error) {
	var first [maxVarint + 1 + len("\x67version")]byte
	p := first[:min(int64(len(first)), end-at)]
	if err := readFull(r, p, at); err != nil {
		return nil, 0, nil, err
	}
	n, w := uvarint(p)
	switch {
	case !beginsHeader(p, n, w, opts.MaxHeaderBytes):
		return nil, 0, nil, notACAR(r, at, end, p)
	case w == 0:
		return nil, 0, nil, bad(ErrTruncated, at, "the file ends inside the header's length")
	case n > uint64(opts.MaxHeaderBytes):
		return nil, 0, nil, bad(ErrLimit, at, "a header of %d bytes, at most %d allowed", n, opts.MaxHeaderBytes)
	case n > uint64(end-at)-uint64(w):
		return nil, 0, nil, bad(ErrTruncated, at, "a header of %d bytes, %d are there", n, end-at-int64(w))
	}
	header = make([]byte, w+int(n))
	if err := readFull(r, header, at); err != nil {
		return nil, 0, nil, err
	}
	d := cborReader{b: header, at: w, base: at}
	version, roots, err = d.carHeader(opts.MaxRoots)
	if err != nil {
		return nil, 0, nil, err
	}
	return header, version, roots, nil
}

// cborReader reads the little of DAG-CBOR that a header consists of. Only minimal,
// definite lengths are accepted, keys in either order.
type cborReader struct {
	b    []byte
	at   int
	base int64
}

const (
	cborUint  = 0
	cborBytes = 2
	cborText  = 3
	cborArray = 4
	cborMap   = 5
	cborTag   = 6

	cidTag = 42
)

func (d *cborReader) fail(format string, args ...any) error {
	return bad(ErrMalformed, d.base+int64(d.at), "header: "+format, args...)
}

// head reads one CBOR head of the wanted major type and returns its argument.
func (d *cborReader) head(major byte) (uint64, error) {
	if d.at >= len(d.b) {
		return 0, d.fail("it ends too early")
	}
	first := d.b[d.at]
	if first>>5 != major {
		return 0, d.fail("byte %#x where CBOR major type %d belongs", first, major)
	}
	info := first & 31
	if info < 24 {
		d.at++
		return uint64(info), nil
	}
	if info > 27 {
		return 0, d.fail("indefinite or reserved CBOR length")
	}
	n := 1 << (info - 24)
	if len(d.b)-d.at-1 < n {
		return 0, d.fail("it ends inside a CBOR length")
	}
	var v uint64
	for _, c := range d.b[d.at+1 : d.at+1+n] {
		v = v<<8 | uint64(c)
	}
	smallest := uint64(24)
	if n > 1 {
		smallest = 1 << (8 * n / 2)
	}
	if v < smallest {
		return 0, d.fail("a CBOR length that is not minimal")
	}
	d.at += 1 + n
	return v, nil
}

// bytes reads a string of the wanted major type; the result shares memory.
func (d *cborReader) bytes(major byte) ([]byte, error) {
	n, err := d.head(major)
	if err != nil {
		return nil, err
	}
	if n > uint64(len(d.b)-d.at) {
		return nil, d.fail("a string of %d bytes, %d are left", n, len(d.b)-d.at)
	}
	s := d.b[d.at : d.at+int(n)]
	d.at += int(n)
	return s, nil
}

func (d *cborReader) carHeader(maxRoots int) (version uint64, roots []cid.Cid, err error) {
	pairs, err := d.head(cborMap)
	if err != nil {
		return 0, nil, err
	}
	if pairs < 1 || pairs > 2 {
		return 0, nil, d.fail("a map of %d pairs", pairs)
	}
	var haveVersion, haveRoots bool
	for range pairs {
		key, err := d.bytes(cborText)
		if err != nil {
			return 0, nil, err
		}
		switch {
		case string(key) == "version" && !haveVersion:
			haveVersion = true
			version, err = d.head(cborUint)
		case string(key) == "roots" && !haveRoots:
			haveRoots = true
			roots, err = d.roots(maxRoots)
		default:
			err = d.fail("unexpected key %.16q", key)
		}
		if err != nil {
			return 0, nil, err
		}
	}
	switch {
	case d.at != len(d.b):
		return 0, nil, d.fail("%d bytes after its end", len(d.b)-d.at)
	case !haveVersion:
		return 0, nil, d.fail("it has no version")
	case version != 1 && version != 2:
		return 0, nil, bad(ErrUnsupportedVersion, d.base, "CAR version %d", version)
	case haveRoots != (version == 1):
		return 0, nil, d.fail("roots belong into version 1, and only there")
	}
	return version, roots, nil
}

func (d *cborReader) roots(maxRoots int) ([]cid.Cid, error) {
	n, err := d.head(cborArray)
	if err != nil {
		return nil, err
	}
	if n > uint64(maxRoots) {
		return nil, bad(ErrLimit, d.base+int64(d.at), "%d roots, at most %d allowed", n, maxRoots)
	}
	var roots []cid.Cid // grows with the bytes that are really there
	for range n {
		at := d.at
		tag, err := d.head(cborTag)
		if err != nil {
			return nil, err
		}
		s, err := d.bytes(cborBytes)
		if err != nil {
			return nil, err
		}
		var raw rawCID
		if tag != cidTag || len(s) < 1 || s[0] != 0 || parseCID(s[1:], &raw) != "" || raw.len != len(s)-1 {
			d.at = at
			return nil, d.fail("root %d is not a CID", len(roots))
		}
		c, err := cid.Cast(bytes.Clone(s[1:]))
		if err != nil {
			return nil, d.fail("root %d: %v", len(roots), err)
		}
		roots = append(roots, c)
	}
	return roots, nil
}

// readFull fills b from offset at. A source that ends although its size says
// otherwise is truncated; any other error of r is returned as it is.
func readFull(r io.ReaderAt, b []byte, at int64) error {
	n, err := FillAt(r, b, at)
	if errors.Is(err, io.EOF) {
		return bad(ErrTruncated, at+int64(n), "the source ends here, %d bytes early", len(b)-n)
	}
	return err
}

// noProgress is how often a reader may give nothing, and no error, before it is given up.
const noProgress = 100

// FillAt reads on where a reader gives less than was asked for and no error, which
// io.ReaderAt forbids and readers of others do. It returns nil if b was filled, and
// io.ErrNoProgress if nothing more comes.
func FillAt(r io.ReaderAt, b []byte, at int64) (n int, err error) {
	for idle := 0; ; {
		m, err := r.ReadAt(b[n:], at+int64(n))
		if m < 0 || m > len(b)-n {
			return n, fmt.Errorf("reader of type %T: %d bytes read of %d", r, m, len(b)-n)
		}
		n += m
		switch {
		case n == len(b):
			return n, nil
		case err != nil:
			return n, err
		case m > 0:
			idle = 0
		default:
			if idle++; idle == noProgress {
				return n, io.ErrNoProgress
			}
		}
	}
}

// allZero reports whether b holds only zeros.
func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
