package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/dagstore/dagstore/internal/fsio"
)

// A file journal is a directory:
//
//	LOCK                   held by the writer
//	<first seq>.seg        one segment each; 16 hex digits
//	HEAD                   how far it is durable, for other processes (watermark.go)
//	HORIZON                once it was compacted: from where on it is kept (compact.go)
//	<seq of horizon>.base  and what the events before that came to (base.go)
//	….tmp-…                what a crash kept from getting one of these names; swept
//
// and a segment is
//
//	 0  8  magic "dagstjnl"
//	 8  4  format version, 1
//	12  4  zero
//	16  8  segment number: 1, 2, 3, …
//	24  8  seq of the first event
//	32 32  chain digest before it
//	64  8  salt of this segment's frames
//	72  4  zero
//	76  4  CRC32C of bytes 0..76
//	80     frames, one behind the other (frame.go)
//	       zeros: space written ahead, so that an append need not grow the file
//
// All versions keep magic, version and the place of this checksum.
//
// All segments but the last are sealed: they end with a footer, and nothing follows
// it. A segment gets its name only when its header is durable, and the footer of
// the one before is written only when that name is durable. So
//
//	the header of a segment does not verify             ⇒  damage, never a tear
//	the last segment is sealed                          ⇒  its successor is missing
//	any other lacks its footer, its successor is empty  ⇒  a crash in between
const (
	segmentMagic      = "dagstjnl"
	segmentVersion    = 1
	segmentHeaderSize = 80
	segmentSuffix     = ".seg"
	lockName          = LockName
	horizonName       = "HORIZON"
)

// segment is what one segment's header says.
type segment struct {
	number uint64
	before Position // the position before its first event
	salt   salt
}

func segmentName(first uint64) string { return fmt.Sprintf("%016x%s", first, segmentSuffix) }

// parseSegmentName returns the first seq of the segment called name.
func parseSegmentName(name string) (first uint64, ok bool) {
	hex, _ := strings.CutSuffix(name, segmentSuffix)
	first, err := strconv.ParseUint(hex, 16, 64)
	return first, err == nil && first > 0 && segmentName(first) == name
}

// isTemp reports whether name is that of a segment, base or horizon that was not
// finished.
func isTemp(name string) bool {
	if !fsio.IsTemp(name) {
		return false
	}
	base := strings.TrimSuffix(name, filepath.Ext(name))
	_, isSegment := parseSegmentName(base)
	_, isBase := parseBaseName(base)
	return isSegment || isBase || base == horizonName
}

func (s *segment) name() string { return segmentName(s.before.Seq + 1) }

func (s *segment) header() []byte {
	b := make([]byte, segmentHeaderSize)
	copy(b, segmentMagic)
	binary.LittleEndian.PutUint32(b[8:], segmentVersion)
	binary.LittleEndian.PutUint64(b[16:], s.number)
	binary.LittleEndian.PutUint64(b[24:], s.before.Seq+1)
	copy(b[32:], s.before.Digest[:])
	copy(b[64:], s.salt[:])
	binary.LittleEndian.PutUint32(b[76:], crc32.Checksum(b[:76], castagnoli))
	return b
}

// readSegment reads the header of the segment file called name.
func readSegment(f io.ReaderAt, name string) (segment, error) {
	s, err := readHeaderOf(f, name, segmentVersion)
	if err == nil && s.name() != name {
		err = &DamageError{File: name, What: fmt.Sprintf("the segment belongs in %s", s.name())}
	}
	return s, err
}

// readHeaderOf reads the header of a segment, or the copy of one that HORIZON begins
// with, which has a version of its own.
func readHeaderOf(f io.ReaderAt, name string, known uint32) (s segment, err error) {
	b := make([]byte, segmentHeaderSize)
	n, err := readFull(f, b, 0)
	if err != nil {
		return s, err
	}
	if n < len(b) {
		return s, &DamageError{File: name, What: fmt.Sprintf("the file ends after %d bytes, inside its header", n)}
	}
	if string(b[:8]) != segmentMagic || crc32.Checksum(b[:76], castagnoli) != binary.LittleEndian.Uint32(b[76:]) {
		return s, &DamageError{File: name, What: "the segment header does not match its checksum"}
	}
	switch version := binary.LittleEndian.Uint32(b[8:]); {
	case version > known:
		return s, fmt.Errorf("%w: %s has version %d, this release reads %d; use a newer release", ErrNewerFormat, name, version, known)
	case version < known:
		return s, &DamageError{File: name, What: fmt.Sprintf("version %d, which such a file never had", version)}
	}
	s.number = binary.LittleEndian.Uint64(b[16:])
	s.before.Seq = binary.LittleEndian.Uint64(b[24:]) - 1
	copy(s.before.Digest[:], b[32:])
	copy(s.salt[:], b[64:])
	return s, nil
}

// readFull reads b from offset off on and returns how much of it there is. The end
// of the file is no error; any error is the disk's.
func readFull(f io.ReaderAt, b []byte, off int64) (n int, err error) {
	n, err = f.ReadAt(b, off)
	if errors.Is(err, io.EOF) || n == len(b) {
		err = nil
	}
	return n, err
}

// A segment is read in chunks that double from the first to scanChunk, unless a frame
// is larger: who wants little reads little.
const (
	firstChunk = 64 << 10
	scanChunk  = 1 << 20
)

// frameRef is a verified frame within the scanner's buffer.
type frameRef struct {
	kind   frameKind
	count  int
	lo, hi int // the payload is data[lo:hi]
	end    Position
}

// scanner reads the frames of one segment and verifies them.
type scanner struct {
	file  io.ReaderAt
	name  string
	limit int64 // nothing is read from here on
	skip  uint64

	verifier
	off    int64 // of the next frame
	chunk  int64 // how much to read next
	data   []byte
	used   int // how much of data the frames take
	frames []frameRef

	points []seekPoint // that were passed, pointSpacing apart

	stopped bool
	stop    verdict // why, once stopped; frameShort if the limit is inside a frame
}

func newScanner(f io.ReaderAt, s *segment, limit int64) *scanner {
	return &scanner{
		file: f, name: s.name(), limit: limit, off: segmentHeaderSize, chunk: firstChunk,
		verifier: verifier{salt: s.salt, pos: s.before},
	}
}

// begin makes the scan begin at pt.
func (s *scanner) begin(pt seekPoint) { s.off, s.pos = pt.off, pt.before }

// next reads a run of frames into s.frames, whose payloads are in s.data until the
// call after. false means that no further frame verifies: s.off is where, and
// s.stop why. An error is the disk's.
func (s *scanner) next() (bool, error) {
	want := s.chunk
	s.chunk = min(2*s.chunk, scanChunk)
	for !s.stopped {
		want = min(want, s.limit-s.off)
		if int64(cap(s.data)) < want {
			s.data = make([]byte, want)
		}
		n, err := readFull(s.file, s.data[:want], s.off)
		if err != nil {
			return false, fmt.Errorf("journal: %w", err)
		}
		if int64(n) < want {
			s.limit = s.off + int64(n) // somebody cut the file meanwhile
		}
		s.data = s.data[:n]
		need := s.parse()
		s.off += int64(s.used)
		if s.off+int64(need) > s.limit {
			s.stopped, s.stop = true, frameShort
		}
		if len(s.frames) > 0 {
			return true, nil
		}
		want = int64(need)
	}
	return false, nil
}

// parse collects the whole frames in s.data. It returns how many bytes the next
// frame needs, if that goes on behind the data.
func (s *scanner) parse() (need int) {
	s.frames, s.used = s.frames[:0], 0
	for {
		h, size, is := s.verifier.next(s.data[s.used:], s.off+int64(s.used), s.skip)
		switch is {
		case frameOK:
			lo := s.used + frameHeaderSize
			s.frames = append(s.frames, frameRef{kind: h.kind, count: int(h.count), lo: lo, hi: lo + int(h.length), end: s.pos})
			s.used += size
			s.notePoint(s.off + int64(s.used))
			if h.kind == frameFooter {
				s.stopped, s.stop = true, frameOK
				return 0
			}
		case frameShort:
			return size
		default:
			s.stopped, s.stop = true, is
			return 0
		}
	}
}

// notePoint keeps the place behind a frame, if it is far enough from the last one.
func (s *scanner) notePoint(off int64) {
	last := int64(segmentHeaderSize)
	if n := len(s.points); n > 0 {
		last = s.points[n-1].off
	}
	if off-last >= pointSpacing {
		s.points = append(s.points, seekPoint{off: off, before: s.pos})
	}
}

// damage describes why the scan stopped.
func (s *scanner) damage() *DamageError {
	what := s.what
	switch s.stop {
	case frameOK:
		what = "bytes follow the footer"
	case frameShort:
		what = "the file ends inside a frame"
	case frameNone:
		what = "zeros where a frame should be"
	}
	return &DamageError{File: s.name, Offset: s.off, What: what}
}

// remainder looks at what follows the last good frame of an unsealed segment, from
// s.off to size. dirty is the length up to the last byte that is not zero. A
// witness is a valid frame header in there: everything before its offset was
// durable.
func (s *scanner) remainder(size int64) (dirty int64, witness bool, err error) {
	buf := make([]byte, min(scanChunk, size-s.off))
	for off := s.off; off < size; {
		n, err := readFull(s.file, buf[:min(int64(len(buf)), size-off)], off)
		if err != nil {
			return 0, false, fmt.Errorf("journal: %w", err)
		}
		if n == 0 {
			break
		}
		if b := buf[:n]; !allZero(b) {
			dirty = off - s.off + int64(lastNonZero(b)) + 1
			if s.witnessIn(b, off) {
				return dirty, true, nil
			}
		}
		if off+int64(n) >= size || n < len(buf) {
			break
		}
		off += int64(n - frameHeaderSize) // a header may straddle two reads
	}
	return dirty, false, nil
}

func lastNonZero(b []byte) int {
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] != 0 {
			return i
		}
	}
	return -1
}

// witnessIn looks for a frame header of this segment in b, which stands at off. The
// frame at s.off itself, torn, proves nothing.
func (s *scanner) witnessIn(b []byte, off int64) bool {
	first := int((frameAlign - off%frameAlign) % frameAlign)
	for i := first; i+frameHeaderSize <= len(b); i += frameAlign {
		if string(b[i:i+3]) != frameMagic {
			continue
		}
		at := off + int64(i)
		if h, ok := parseHeader(b[i:], &s.salt); ok && h.offset == uint64(at) && at > s.off {
			return true
		}
	}
	return false
}

// isNotExist is fs.ErrNotExist, spelled short.
func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
