package index

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/dagstore/dagstore/internal/planted"
)

// TempFile is a file for sorted records that do not fit into memory. It is written from
// front to back and then read. Close removes it.
type TempFile interface {
	io.Writer
	io.ReaderAt
	io.Closer
}

// defaultMemory is what the records of a build may take.
const defaultMemory = 64 << 20

// leastMemory keeps the number of runs, each of which takes a buffer while they are
// merged, in proportion.
const leastMemory = 1 << 20

// sortedBytes is what a record takes besides itself while it is sorted: its place in the
// order, and a sortKey.
const sortedBytes = 4 + 16

// spillChunk is about how much of a run is read and checked at once.
const spillChunk = 16 << 10

// spill holds sorted runs of records in one temporary file.
//
//	file   run, run, …        one for each group each time that memory was full
//	run    chunk, chunk, …    records in index order; checksums are in memory
//
// Merging takes a chunk for each run of a group. With the default memory that is 16 KiB
// for a million records.
type spill struct {
	ctx  context.Context // of the build
	f    TempFile
	size int64
	runs map[groupKey][]spilledRun
	buf  []byte
}

// spilledRun is a sorted part of a group.
type spilledRun struct {
	at      int64
	records uint64
	sums    []uint32 // CRC32C of each chunk
}

// chunkRecords is how many records of n bytes make a chunk.
func chunkRecords(n int) int { return max(1, spillChunk/n) }

// add writes the records of a group, which are sorted, as a run.
func (s *spill) add(k groupKey, g *draftGroup) error {
	n := int(g.recordLen())
	per := chunkRecords(n)
	run := spilledRun{at: s.size, records: uint64(len(g.order))}
	for some := range slices.Chunk(g.order, per) {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		s.buf = s.buf[:0]
		for _, r := range some {
			s.buf = append(s.buf, g.record(r)...)
		}
		run.sums = append(run.sums, crc32.Checksum(s.buf, castagnoli))
		if _, err := s.f.Write(s.buf); err != nil {
			return fmt.Errorf("index: write sorted records to a temporary file: %w", err)
		}
		s.size += int64(len(s.buf))
	}
	s.runs[k] = append(s.runs[k], run)
	return nil
}

// merge visits the records of a group, of n bytes each, in index order. A record is valid
// during the call.
func (s *spill) merge(k groupKey, n int, visit func(record []byte) error) error {
	h := make(mergeHeap, 0, len(s.runs[k]))
	for i := range s.runs[k] {
		c := &spillCursor{s: s, run: &s.runs[k][i], n: n, digestLen: k.digestLen}
		switch ok, err := c.next(); {
		case err != nil:
			return err
		case ok:
			h = append(h, c)
		}
	}
	for i := len(h)/2 - 1; i >= 0; i-- {
		h.down(i)
	}
	for seen := 0; len(h) > 0; seen++ {
		if seen%4096 == 0 {
			if err := s.ctx.Err(); err != nil {
				return err
			}
		}
		c := h[0]
		if err := visit(c.record); err != nil {
			return err
		}
		switch ok, err := c.next(); {
		case err != nil:
			return err
		case !ok:
			h[0] = h[len(h)-1]
			h = h[:len(h)-1]
		}
		h.down(0)
	}
	return nil
}

// spillCursor reads a run.
type spillCursor struct {
	s         *spill
	run       *spilledRun
	n         int
	digestLen int
	chunk     int    // to be read next
	buf       []byte // of the chunk at hand
	rest      []byte // of buf, not visited
	record    []byte // at hand
	prefix    uint64 // of its digest
}

// next goes to the next record; false means that there is none.
func (c *spillCursor) next() (bool, error) {
	if len(c.rest) == 0 {
		if c.chunk == len(c.run.sums) {
			return false, nil
		}
		if err := c.load(); err != nil {
			return false, err
		}
	}
	c.record, c.rest = c.rest[:c.n], c.rest[c.n:]
	c.prefix = prefix(c.record[:c.digestLen])
	return true, nil
}

func (c *spillCursor) load() error {
	per := chunkRecords(c.n)
	first := uint64(c.chunk * per)
	size := int(min(uint64(per), c.run.records-first)) * c.n
	at := c.run.at + int64(first)*int64(c.n)
	if c.buf == nil {
		c.buf = make([]byte, size)
	}
	c.rest = c.buf[:size]
	if k, err := c.s.f.ReadAt(c.rest, at); k < size {
		if err == nil || err == io.EOF {
			return &DamagedError{File: "temporary file", Offset: at + int64(k), What: "sorted records end here"}
		}
		return fmt.Errorf("index: read sorted records from a temporary file: %w", err)
	}
	if crc32.Checksum(c.rest, castagnoli) != c.run.sums[c.chunk] && !planted.Bug("index-spill-not-checked") {
		return &DamagedError{File: "temporary file", Offset: at, What: "checksum of sorted records"}
	}
	c.chunk++
	return nil
}

// compare orders records as draftGroup.compare does.
func (c *spillCursor) compare(o *spillCursor) int {
	if x := cmp.Compare(c.prefix, o.prefix); x != 0 {
		return x
	}
	if x := bytes.Compare(c.record[:c.digestLen], o.record[:c.digestLen]); x != 0 {
		return x
	}
	return cmp.Compare(binary.LittleEndian.Uint64(c.record[c.digestLen:]), binary.LittleEndian.Uint64(o.record[c.digestLen:]))
}

// mergeHeap has the cursor with the least record first.
type mergeHeap []*spillCursor

func (h mergeHeap) down(i int) {
	for {
		least := i
		for k := 2*i + 1; k <= 2*i+2 && k < len(h); k++ {
			if h[k].compare(h[least]) < 0 {
				least = k
			}
		}
		if least == i {
			return
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

// writeGroup writes a group's fan-out and pages out of its runs. The fan-out comes first
// in the file and is known last: where w can write at offsets it is filled in, elsewhere
// the runs are merged twice.
func (s *spill) writeGroup(w io.Writer, g *group, headerCRC uint32, put func([]byte) error) error {
	k := groupKey{g.code, int(g.digestLen)}
	at, fills := w.(io.WriterAt)
	fan := fanWriter{bits: g.fanBits}
	if !fills && g.fanBits > 0 {
		if err := s.merge(k, int(g.recordLen()), func(r []byte) error { fan.add(prefix(r[:g.digestLen])); return nil }); err != nil {
			return err
		}
	}
	if err := put(fan.encode(g)); err != nil {
		return err
	}
	if fills {
		fan = fanWriter{bits: g.fanBits}
	}
	pages := pageWriter{g: g, crc: headerCRC, put: put}
	err := s.merge(k, int(g.recordLen()), func(r []byte) error {
		if fills {
			fan.add(prefix(r[:g.digestLen]))
		}
		return pages.add(r)
	})
	if err == nil {
		err = pages.flush(true)
	}
	if err == nil && fills && g.fanBits > 0 {
		_, err = at.WriteAt(fan.encode(g), int64(g.offset))
	}
	return err
}

// fanWriter makes a fan-out of prefixes that come in order.
type fanWriter struct {
	bits uint32
	n    uint32
	b    []byte
}

func (f *fanWriter) add(p uint64) {
	if f.bits > 0 {
		for p >>= 64 - f.bits; uint64(len(f.b)/entrySize) <= p; {
			f.b = binary.LittleEndian.AppendUint32(f.b, f.n)
		}
	}
	f.n++
}

// encode returns the fan-out of what was added.
func (f *fanWriter) encode(g *group) []byte {
	if f.b == nil {
		f.b = make([]byte, 0, g.fanLen())
	}
	for uint64(len(f.b)) < g.fanLen() {
		f.b = binary.LittleEndian.AppendUint32(f.b, f.n)
	}
	return f.b
}

// pageWriter writes the pages of records that come in order, many at once.
type pageWriter struct {
	g    *group
	crc  uint32
	put  func([]byte) error
	buf  []byte
	page uint64 // number of the one that is being filled
	from int    // where it begins in buf
}

// pageBatch is about how much is written at once.
const pageBatch = 256 << 10

func (p *pageWriter) add(record []byte) error {
	p.buf = append(p.buf, record...)
	if len(p.buf)-p.from < int(p.g.perPage)*len(record) {
		return nil
	}
	p.seal()
	if len(p.buf) < pageBatch {
		return nil
	}
	return p.flush(false)
}

// seal ends a page with its checksum.
func (p *pageWriter) seal() {
	at, _ := p.g.page(p.page)
	p.buf = binary.LittleEndian.AppendUint32(p.buf, pageCRC(p.crc, at, p.buf[p.from:]))
	p.from = len(p.buf)
	p.page++
}

func (p *pageWriter) flush(last bool) error {
	if last && p.from < len(p.buf) {
		p.seal()
	}
	err := p.put(p.buf)
	p.buf, p.from = p.buf[:0], 0
	return err
}
