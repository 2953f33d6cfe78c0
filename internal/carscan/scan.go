package carscan

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"runtime"
	"sync"

	"github.com/multiformats/go-multihash"
)

// Options bounds a scan. The zero value is safe for files of strangers.
type Options struct {
	// MaxHeaderBytes bounds the CARv1 header; 0 means 1 MiB.
	MaxHeaderBytes int
	// MaxRoots bounds the number of roots; 0 means 4,096.
	MaxRoots int
	// MaxSectionBytes bounds CID and data of one section; 0 means 32 MiB, at most
	// 1 GiB.
	MaxSectionBytes int
	// MaxRecords bounds the number of sections; 0 means 1<<32 - 1, which is also
	// the most.
	MaxRecords uint64
	// SkipVerify leaves the hashes of blocks unchecked. Payloads of large blocks are
	// then not even read.
	SkipVerify bool
	// SkipUnsupported leaves out sections whose hash function or digest length proves
	// nothing here, in place of ErrUnsupportedHash, and lists them in Summary.Skipped.
	SkipUnsupported bool
	// Workers hash in parallel; 0 means GOMAXPROCS.
	Workers int
	// Progress, if set, is told after every chunk how far the scan has come: bytes
	// of the file and blocks. Calls do not overlap and hold up the scan.
	Progress func(bytes, blocks uint64)
}

const (
	defaultHeaderBytes  = 1 << 20
	defaultRoots        = 4096
	defaultSectionBytes = 32 << 20
	maxSectionBytes     = 1 << 30
	maxRecords          = 1<<32 - 1

	// chunkLen is what one worker reads at a time: large enough to make system
	// calls cheap, small enough to stay in a core's cache until it is hashed.
	chunkLen = 512 << 10
	// sparseLen is the least that is read at a time where payloads are skipped.
	sparseLen = 4 << 10
)

func (o Options) withDefaults() Options {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&o.MaxHeaderBytes, defaultHeaderBytes)
	def(&o.MaxRoots, defaultRoots)
	def(&o.MaxSectionBytes, defaultSectionBytes)
	def(&o.Workers, runtime.GOMAXPROCS(0))
	o.MaxSectionBytes = min(o.MaxSectionBytes, maxSectionBytes)
	if o.MaxRecords == 0 || o.MaxRecords > maxRecords {
		o.MaxRecords = maxRecords
	}
	return o
}

// Record describes one section. CID and Digest share the scan's buffer.
type Record struct {
	// Offset of the section from the start of the CARv1 payload.
	Offset uint64
	// HeaderLen is the length of the length prefix and the CID; the data follow.
	HeaderLen int
	// Size is the length of the data.
	Size int
	// Code is the multihash function, Digest its value.
	Code   uint64
	CID    []byte
	Digest []byte
}

// Summary says what a whole scan found.
type Summary struct {
	Layout
	// Blocks counts the sections, PayloadBytes sums their data.
	Blocks, PayloadBytes uint64
	// Digest names the content; see [ContentDigest].
	Digest [sha256.Size]byte
	// Skipped are the sections that were left out, if Options.SkipUnsupported is set. They
	// count in Digest, and neither in Blocks nor in PayloadBytes.
	Skipped Skipped
}

// Skipped are sections that were left out because nothing here could check them.
type Skipped struct {
	// Blocks counts them, Bytes sums their data.
	Blocks, Bytes uint64
	// First are the first of them, 16 at most.
	First []SkippedSection
}

// SkippedSection is a section that was left out.
type SkippedSection struct {
	// Offset of the section from the start of the CARv1 payload.
	Offset uint64
	// Code is the multihash function, DigestLen the length of its value.
	Code      uint64
	DigestLen int
	// CID is the binary CID; of one with a digest of more than 128 bytes the beginning.
	CID []byte
	// Size is the length of the data.
	Size int
}

const skippedShown = 16

// Note counts a section.
func (s *Skipped) Note(rec *Record, digestLen int) {
	s.Blocks++
	s.Bytes += uint64(rec.Size)
	if len(s.First) < skippedShown {
		s.First = append(s.First, SkippedSection{rec.Offset, rec.Code, digestLen, bytes.Clone(rec.CID), rec.Size})
	}
}

// Scan reads a CAR of size bytes and hands every section to sink, in file order,
// one at a time. What sink was given counts only if Scan returns nil: hashes are
// checked behind its back. An error of sink ends the scan and is returned as it is,
// as is an error of r. If several things are wrong, the one that lies first in the
// file is reported.
//
// The walk from section to section is sequential, the rest is not: the workers pass
// a baton. Whoever holds it reads the next chunk, walks the sections in it, and
// hands the baton on before hashing what it has just read into its own cache.
//
//	worker 1  ─[read walk]──hash────────[read walk]──hash───
//	worker 2  ────────────[read walk]──hash────────[read walk]──
func Scan(ctx context.Context, r io.ReaderAt, size int64, opts Options, sink func(*Record) error) (Summary, error) {
	if err := ctx.Err(); err != nil {
		return Summary{}, err
	}
	layout, err := ReadLayout(r, size, opts)
	if err != nil {
		return Summary{}, err
	}
	s := &scanner{
		ctx:    ctx,
		r:      r,
		opts:   opts.withDefaults(),
		sink:   sink,
		base:   int64(layout.DataOffset),
		end:    layout.DataSize,
		next:   uint64(len(layout.Header)),
		sum:    Summary{Layout: *layout},
		digest: NewContentDigest(layout.Header),
	}
	s.run()
	if s.err != nil {
		return Summary{}, s.err
	}
	s.sum.Digest = s.digest.Sum()
	return s.sum, nil
}

type scanner struct {
	ctx  context.Context
	r    io.ReaderAt
	opts Options
	sink func(*Record) error
	base int64  // of the payload in the file
	end  uint64 // of the payload

	baton sync.Mutex // guards what follows
	next  uint64     // the next section, from the start of the payload
	over  bool       // nothing is left to walk
	sum   Summary
	hash  hashPolicy
	left  rawCID // of the section that was left out last
	// digest sees the sections in file order.
	digest *ContentDigest
	err    error
	errAt  uint64 // where err lies; of several the first in the file is kept
}

func (s *scanner) run() {
	workers := s.opts.Workers
	if s.opts.SkipVerify {
		workers = 1 // nothing is left to do without the baton
	}
	workers = int(min(uint64(workers), (s.end-s.next)/chunkLen+1))
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(s.work)
	}
	s.work()
	wg.Wait()
}

// job is one block to be hashed; positions are in the worker's buffer.
type job struct {
	code                   uint64
	digest, dataAt, dataTo int32
	digestLen              int32
}

// worker is what one goroutine keeps between chunks.
type worker struct {
	buf  []byte
	jobs []job
	at   uint64 // where buf begins in the payload
	want int    // how much to read next
	tail tail
}

// tail is the last thing of a chunk, of which more follows after the chunk.
type tail struct {
	kind   tailKind
	at     uint64 // of the section, from the start of the payload
	code   uint64
	digest [MaxIdentity]byte
	n      int    // of the digest
	from   int    // where its bytes begin in buf
	end    uint64 // where they end in the payload
}

type tailKind uint8

const (
	tailNone tailKind = iota
	tailBlock
	tailPadding
)

func (s *scanner) work() {
	w := &worker{buf: make([]byte, min(chunkLen, max(s.end-uint64(len(s.sum.Header)), 1)))}
	w.want = len(w.buf)
	for s.walk(w) {
		if !s.opts.SkipVerify {
			s.verify(w)
		}
		if w.tail.kind != tailNone {
			s.finishTail(w)
		}
	}
}

// fail notes an error at an offset of the payload and ends the walk.
func (s *scanner) fail(at uint64, err error) {
	s.baton.Lock()
	defer s.baton.Unlock()
	s.failLocked(at, err)
}

func (s *scanner) failLocked(at uint64, err error) {
	s.over = true
	if s.err == nil || at < s.errAt {
		s.err, s.errAt = err, at
	}
}

// walk takes the baton, reads a chunk and walks the sections in it. False means
// that nothing is left.
func (s *scanner) walk(w *worker) bool {
	s.baton.Lock()
	defer s.baton.Unlock()
	if s.over {
		return false
	}
	w.jobs, w.tail.kind, w.at = w.jobs[:0], tailNone, s.next
	if s.next == s.end {
		s.over = true
		return false
	}
	if err := s.ctx.Err(); err != nil {
		s.failLocked(s.next, err)
		return false
	}
	buf := w.buf[:min(uint64(w.want), s.end-s.next)]
	if err := readFull(s.r, buf, s.base+int64(s.next)); err != nil {
		s.failLocked(s.next, err)
		return false
	}
	s.walkChunk(w, buf)
	if s.opts.Progress != nil {
		s.opts.Progress(uint64(s.base)+s.next, s.sum.Blocks)
	}
	return true
}

// walkChunk walks the sections in buf, which begins at s.next. It stops where a
// section's header might not lie in buf as a whole, so buf must be longer than any
// header or reach the end of the payload.
func (s *scanner) walkChunk(w *worker, buf []byte) {
	var (
		rec     Record
		start   = s.next
		last    = start+uint64(len(buf)) == s.end
		skipped uint64
	)
	for pos := 0; pos < len(buf) && (last || len(buf)-pos >= MaxSectionHeader); {
		err := s.section(buf[pos:], &rec)
		if err == errPadding {
			s.startPadding(w, pos)
			return
		}
		left := err == errSkip
		switch {
		case err == nil:
			err = s.emit(&rec)
		case left:
			err = s.skip(&rec)
		}
		if err != nil {
			s.failLocked(s.next, err)
			return
		}
		dataAt := pos + rec.HeaderLen
		pos = dataAt + rec.Size
		s.next = start + uint64(pos)
		if left { // its data are not wanted
			if s.opts.SkipVerify && pos > len(buf) {
				skipped = uint64(pos - len(buf))
			}
			continue
		}
		if pos > len(buf) {
			skipped = uint64(pos - len(buf))
			w.startTail(&rec, dataAt, s.next)
		} else if !s.opts.SkipVerify {
			w.jobs = append(w.jobs, job{rec.Code, int32(dataAt - len(rec.Digest)), int32(dataAt), int32(pos), int32(len(rec.Digest))})
		}
	}
	if s.opts.SkipVerify {
		w.tail.kind = tailNone
		w.adapt(skipped)
	}
}

var (
	// errPadding: a zero byte stands where a section should begin.
	errPadding = errors.New("zero padding")
	// errSkip: a section that is to be left out.
	errSkip = errors.New("unsupported multihash, left out")
)

// section parses the header of the section at s.next, of which b holds the first
// bytes, all that may belong to the header.
func (s *scanner) section(b []byte, rec *Record) error {
	n, prefix := uvarint(b)
	if prefix <= 0 || n == 0 || n > uint64(s.opts.MaxSectionBytes) || n > s.end-s.next-uint64(prefix) {
		return s.badLength(b, n, prefix)
	}
	b = b[prefix:]
	if uint64(len(b)) > n {
		b = b[:n]
	}
	var c rawCID
	if what := parseCID(b, &c); what != "" || !s.hash.allows(c.code, len(c.digest)) {
		return s.refused(b, n, prefix, &c, what, rec)
	}
	*rec = Record{
		Offset:    s.next,
		HeaderLen: prefix + c.len,
		Size:      int(n) - c.len,
		Code:      c.code,
		CID:       b[:c.len:c.len],
		Digest:    c.digest,
	}
	return nil
}

// refused says what is wrong with the CID that b begins with, of which parseCID said what,
// in a section of n bytes behind its length; or errSkip, with what is known of it in rec.
func (s *scanner) refused(b []byte, n uint64, prefix int, c *rawCID, what string, rec *Record) error {
	if what == digestCut && c.digestLen > MaxIdentity && c.digestLen <= n-uint64(c.len) {
		// It is there, and longer than what is read of a section's header, or allowed.
		c.len, what = c.len+int(c.digestLen), ""
	}
	if what != "" {
		return bad(ErrMalformed, s.base+int64(s.next), "%s; what is here begins with %s", what, quoted(b))
	}
	if !s.opts.SkipUnsupported {
		return s.unsupported(c)
	}
	*rec = Record{
		Offset:    s.next,
		HeaderLen: prefix + c.len,
		Size:      int(n) - c.len,
		Code:      c.code,
		CID:       b[:min(c.len, maxCID, len(b))],
	}
	s.left = *c
	return errSkip
}

func (s *scanner) unsupported(c *rawCID) error {
	return bad(ErrUnsupportedHash, s.base+int64(s.next), "function %#x with a digest of %d bytes", c.code, c.digestLen)
}

// adapt chooses how much to read next where payloads are not wanted: little while
// blocks are larger than what is read, much while they are smaller.
func (w *worker) adapt(skipped uint64) {
	if skipped > uint64(w.want) {
		w.want = max(w.want/4, sparseLen)
	} else {
		w.want = w.want * 2
	}
	w.want = min(w.want, len(w.buf))
}

// badLength says what is wrong with a section's length n, of which the varint took
// prefix bytes of b. Words that a server put after a part of a file (or in place of it)
// are lengths as well: where no CID follows there is no section that could be cut off.
func (s *scanner) badLength(b []byte, n uint64, prefix int) error {
	at, left := s.base+int64(s.next), s.end-s.next
	switch {
	case prefix == 1 && n == 0:
		return errPadding
	case prefix == 0 && left < maxVarint:
		return bad(ErrTruncated, at, "the payload ends inside a section's length")
	case prefix <= 0:
		return bad(ErrMalformed, at, "a section length that is not a minimal varint; what is here begins with %s", quoted(b[:min(uint64(len(b)), left)]))
	case !beginsSection(b[prefix:]):
		return bad(ErrMalformed, at, "a section should be here, and no CID follows its length; what is here begins with %s", quoted(b[:min(uint64(len(b)), left)]))
	case n > uint64(s.opts.MaxSectionBytes):
		return bad(ErrLimit, at, "a section of %d bytes, at most %d allowed", n, s.opts.MaxSectionBytes)
	default:
		return bad(ErrTruncated, at, "a section of %d bytes, %d are left of the payload", n, left-uint64(prefix))
	}
}

// emit counts a section and hands it to the digest and to sink.
func (s *scanner) emit(rec *Record) error {
	if err := s.checkCount(rec); err != nil {
		return err
	}
	s.sum.Blocks++
	s.sum.PayloadBytes += uint64(rec.Size)
	s.digest.Add(rec)
	return s.sink(rec)
}

func (s *scanner) checkCount(rec *Record) error {
	if s.sum.Blocks+s.sum.Skipped.Blocks >= s.opts.MaxRecords {
		return bad(ErrLimit, s.base+int64(rec.Offset), "more than %d sections", s.opts.MaxRecords)
	}
	return nil
}

// skip counts a section that is left out and hands it to the digest.
func (s *scanner) skip(rec *Record) error {
	if err := s.checkCount(rec); err != nil {
		return err
	}
	s.sum.Skipped.Note(rec, int(s.left.digestLen))
	s.digest.Add(rec)
	return nil
}

func (w *worker) startTail(rec *Record, from int, end uint64) {
	w.tail = tail{kind: tailBlock, at: rec.Offset, code: rec.Code, n: len(rec.Digest), from: from, end: end}
	copy(w.tail.digest[:], rec.Digest)
}

// startPadding ends the walk: from pos on everything must be zero.
func (s *scanner) startPadding(w *worker, pos int) {
	w.tail = tail{kind: tailPadding, at: s.next, from: pos, end: s.end}
	s.over = true
}

// verify hashes the blocks that lie in the chunk as a whole.
func (s *scanner) verify(w *worker) {
	for i := range w.jobs {
		j := &w.jobs[i]
		digest := w.buf[j.digest : j.digest+j.digestLen]
		if !Matches(j.code, digest, w.buf[j.dataAt:j.dataTo]) {
			s.mismatch(w.at+uint64(j.dataAt), j.code, digest)
			return
		}
	}
}

func (s *scanner) mismatch(at, code uint64, digest []byte) {
	s.fail(at, bad(ErrHashMismatch, s.base+int64(at), "the data here do not hash to %x (function %#x)", digest[:min(len(digest), 32)], code))
}

// finishTail reads on from the end of the chunk to the end of the tail.
func (s *scanner) finishTail(w *worker) {
	t := &w.tail
	var h *streamHash
	if t.kind == tailBlock {
		// Identity matches only data of its own length, so that no more than that is
		// ever collected.
		if size := t.end - w.at - uint64(t.from); t.code != multihash.IDENTITY || size == uint64(t.n) {
			h = newHash(t.code, t.n)
		}
		if h == nil {
			s.mismatch(w.at+uint64(t.from), t.code, t.digest[:t.n])
			return
		}
	}
	at := w.at + uint64(t.from)
	have := w.buf[t.from:min(uint64(len(w.buf)), uint64(w.want), s.end-w.at)]
	for {
		if h != nil {
			h.Write(have)
		} else if !allZero(have) {
			s.fail(t.at, bad(ErrMalformed, s.base+int64(t.at), "zero padding that is not zero to the end of the payload"))
			return
		}
		if at += uint64(len(have)); at >= t.end {
			break
		}
		if err := s.ctx.Err(); err != nil {
			s.fail(t.at, err)
			return
		}
		have = w.buf[:min(uint64(len(w.buf)), t.end-at)]
		if err := readFull(s.r, have, s.base+int64(at)); err != nil {
			s.fail(at, err)
			return
		}
	}
	if h != nil && !h.matches(t.digest[:t.n]) {
		s.mismatch(w.at+uint64(t.from), t.code, t.digest[:t.n])
	}
}

// ContentDigest computes the digest that names a CAR's content:
//
//	SHA-256("dagstore car content 1\n" ‖ CARv1 header with its length prefix ‖
//	        for each section in file order: offset ‖ CID ‖ data length)
//
// with offset and data length as 8 bytes, little endian. Of a CID with a digest of more
// than 128 bytes, whose section can only be left out, the first 149 bytes count. It is independent of a
// CARv2 wrapping and of zero padding.
type ContentDigest struct {
	h   hash.Hash
	buf []byte
}

const contentDomain = "dagstore car content 1\n"

// NewContentDigest begins the digest of a CAR with the given header.
func NewContentDigest(header []byte) *ContentDigest {
	d := &ContentDigest{h: sha256.New(), buf: make([]byte, 0, 8<<10)}
	d.h.Write([]byte(contentDomain))
	d.h.Write(header)
	return d
}

// Add adds the next section in file order.
func (d *ContentDigest) Add(rec *Record) {
	if len(d.buf)+16+len(rec.CID) > cap(d.buf) {
		d.h.Write(d.buf)
		d.buf = d.buf[:0]
	}
	d.buf = binary.LittleEndian.AppendUint64(d.buf, rec.Offset)
	d.buf = append(d.buf, rec.CID...)
	d.buf = binary.LittleEndian.AppendUint64(d.buf, uint64(rec.Size))
}

// Sum returns the digest of what was added so far.
func (d *ContentDigest) Sum() (sum [sha256.Size]byte) {
	d.h.Write(d.buf)
	d.buf = d.buf[:0]
	d.h.Sum(sum[:0])
	return sum
}

// SectionAt reads the header of the section at offset of the payload into rec,
// using buf (of MaxSectionHeader bytes or more) for its bytes. It applies the same
// rules as Scan, but does not look at the data. With Options.SkipUnsupported rec is filled
// in with ErrUnsupportedHash too.
func SectionAt(r io.ReaderAt, l *Layout, offset uint64, opts Options, buf []byte, rec *Record) error {
	opts = opts.withDefaults()
	if offset < uint64(len(l.Header)) || offset >= l.DataSize {
		return bad(ErrMalformed, int64(l.DataOffset), "no section can lie at %d of a payload of %d bytes", offset, l.DataSize)
	}
	buf = buf[:min(uint64(len(buf)), MaxSectionHeader, l.DataSize-offset)]
	if err := readFull(r, buf, int64(l.DataOffset+offset)); err != nil {
		return err
	}
	s := scanner{opts: opts, base: int64(l.DataOffset), end: l.DataSize, next: offset}
	err := s.section(buf, rec)
	switch err {
	case errPadding:
		return bad(ErrMalformed, s.base+int64(offset), "zero padding where a section should begin")
	case errSkip:
		rec.Digest = s.left.digest
		return s.unsupported(&s.left)
	}
	return err
}

// PayloadEnd returns where the section ends behind which only padding is left, or
// nothing, for a file that was scanned before. It walks from the section at offset from
// of the payload on; with the length of the header it begins with the first one.
func PayloadEnd(ctx context.Context, r io.ReaderAt, l *Layout, from uint64, opts Options) (uint64, error) {
	opts.SkipUnsupported = true
	s := scanner{opts: opts.withDefaults(), base: int64(l.DataOffset), end: l.DataSize, next: from}
	var buf [MaxSectionHeader]byte
	var rec Record
	for s.next < s.end {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		b := buf[:min(MaxSectionHeader, s.end-s.next)]
		if err := readFull(r, b, s.base+int64(s.next)); err != nil {
			return 0, err
		}
		switch err := s.section(b, &rec); err {
		case nil, errSkip:
			s.next += uint64(rec.HeaderLen) + uint64(rec.Size)
		case errPadding:
			return s.next, nil
		default:
			return 0, err
		}
	}
	return s.next, nil
}
