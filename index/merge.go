package index

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"github.com/dagstore/dagstore/internal/planted"
)

// merger visits the records of runs, group by group, in index order.
type merger struct {
	r    *runs
	runs []*run
	bufs [][]byte // of the cursors
	heap []*cursor
}

func (m *merger) bytes() int {
	sum := 0
	for _, b := range m.bufs {
		sum += cap(b)
	}
	return sum
}

// groups returns one part of each group that the runs have, in the order of ids.
func (m *merger) groups() []part {
	var parts []part
	for _, r := range m.runs {
		parts = append(parts, r.parts...)
	}
	byGroup := func(a, b part) int { return cmp.Compare(a.group, b.group) }
	slices.SortFunc(parts, byGroup)
	return slices.CompactFunc(parts, func(a, b part) bool { return a.group == b.group })
}

// each visits the records of a group with the leading 8 bytes of their digests, until
// ctx ends or the visitor returns an error. A record is valid during the call.
func (m *merger) each(ctx context.Context, group int, visit func(rec []byte, prefix uint64) error) error {
	if err := m.start(group); err != nil {
		return err
	}
	for end := (ender{ctx: ctx}); len(m.heap) > 0; {
		if end.ended(1) {
			return ctx.Err()
		}
		c := m.heap[0]
		if err := visit(c.rec, c.prefix); err != nil {
			return err
		}
		more, err := c.advance()
		if err != nil {
			return err
		}
		if !more {
			last := len(m.heap) - 1
			m.heap[0] = m.heap[last]
			m.heap = m.heap[:last]
		}
		m.down(0)
	}
	return nil
}

// start puts a cursor for each run that has the group into the heap.
func (m *merger) start(group int) error {
	m.heap = m.heap[:0]
	for i, r := range m.runs {
		at, found := slices.BinarySearchFunc(r.parts, group, func(p part, id int) int { return cmp.Compare(p.group, id) })
		if !found {
			continue
		}
		if len(m.bufs) <= i {
			m.bufs = append(m.bufs, make([][]byte, len(m.runs)-len(m.bufs))...)
		}
		c := &cursor{r: m.r, run: r, part: r.parts[at], buf: m.bufs[i]}
		c.recordLen = c.part.digestLen + recordTail
		c.perBlock = m.r.perBlock(c.recordLen)
		more, err := c.advance()
		if err != nil {
			return err
		}
		m.bufs[i] = c.buf // it may have grown
		if more {
			m.heap = append(m.heap, c)
		}
	}
	for i := len(m.heap)/2 - 1; i >= 0; i-- {
		m.down(i)
	}
	return nil
}

// down restores the heap below i.
//
//	heap[i] ≤ heap[2i+1], heap[2i+2]
func (m *merger) down(i int) {
	h := m.heap
	for {
		least := 2*i + 1
		if least >= len(h) {
			return
		}
		if right := least + 1; right < len(h) && h[right].before(h[least]) {
			least = right
		}
		if !h[least].before(h[i]) {
			return
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

// cursor goes through one part of a run, and holds one block of it.
type cursor struct {
	r    *runs
	run  *run
	part part

	recordLen int
	perBlock  int
	read      uint64 // records in blocks that were read
	buf       []byte
	rest      []byte // of the block, after rec

	rec    []byte
	prefix uint64
}

func (c *cursor) before(o *cursor) bool {
	if c.prefix != o.prefix {
		return c.prefix < o.prefix
	}
	return compareRecords(c.rec, o.rec, c.part.digestLen) < 0
}

// advance goes to the next record; false means that there is none.
func (c *cursor) advance() (bool, error) {
	if len(c.rest) == 0 {
		if c.read == c.part.records {
			return false, nil
		}
		if err := c.readBlock(); err != nil {
			return false, err
		}
	}
	c.rec, c.rest = c.rest[:c.recordLen], c.rest[c.recordLen:]
	c.prefix = prefix(c.rec[:c.part.digestLen])
	return true, nil
}

func (c *cursor) readBlock() error {
	records := int(min(uint64(c.perBlock), c.part.records-c.read))
	n := records*c.recordLen + crcLen
	// All blocks of a part but the last are of one length.
	at := c.part.at + int64(c.read/uint64(c.perBlock))*int64(c.perBlock*c.recordLen+crcLen)
	c.buf = resize(c.buf, n)
	switch have, err := c.run.file.ReadAt(c.buf, at); {
	case have == n:
	case c.r.closed.Load():
		return ErrClosed
	case err == nil:
		return io.ErrNoProgress
	case errors.Is(err, io.EOF):
		return &DamagedError{File: c.run.file.Name(), Offset: at + int64(have), What: "a sorted run of a build ends here"}
	default:
		return err
	}
	block := c.buf[:n-crcLen]
	if binary.LittleEndian.Uint32(c.buf[n-crcLen:]) != c.run.crc(at, block) && !planted.Bug("index-spilled-run-not-checked") {
		return &DamagedError{File: c.run.file.Name(), Offset: at, What: "checksum of a block of a sorted run of a build"}
	}
	c.rest = block
	c.read += uint64(records)
	return nil
}

// each visits the records of a group of a finished draft in index order.
func (r *runs) each(ctx context.Context, g *draftGroup, visit func(rec []byte, prefix uint64) error) error {
	m := merger{r: r, runs: r.all()}
	return m.each(ctx, g.id, visit)
}

// writeGroup merges a group once and writes its fan-out, its pages or both, each in
// order; nil: not that one. Its memory does not depend on the number of records.
func (r *runs) writeGroup(ctx context.Context, from *draftGroup, g *group, headerCRC uint32, fan, pages func([]byte) error, tell func(records int)) error {
	w := groupWriter{g: g, headerCRC: headerCRC, at: g.pages, tell: tell}
	w.fan = chunks{put: fan, buf: make([]byte, 0, writeBlocks*r.block)}
	w.pages = chunks{put: pages, buf: make([]byte, 0, writeBlocks*r.block)}
	m := merger{r: r, runs: r.all()}
	if err := m.each(ctx, from.id, w.add); err != nil {
		return err
	}
	return w.finish()
}

// groupWriter makes the fan-out and the pages of a group from its records in order.
type groupWriter struct {
	g          *group
	headerCRC  uint32
	fan, pages chunks
	records    uint64 // so far
	entries    uint64 // of the fan-out, so far
	inPage     uint32
	at         uint64 // of the next page
	page       []byte
	tell       func(records int)
	untold     int
}

func (w *groupWriter) add(rec []byte, prefix uint64) error {
	if w.fan.put != nil && w.g.fanBits > 0 {
		if err := w.addEntries(prefix >> (64 - w.g.fanBits)); err != nil {
			return err
		}
	}
	w.records++
	if w.pages.put != nil {
		w.page = append(w.page, rec...)
		if w.inPage++; w.inPage == w.g.perPage {
			if err := w.endPage(); err != nil {
				return err
			}
		}
	}
	if w.untold++; w.untold == stepsBetween {
		w.tell(w.untold)
		w.untold = 0
	}
	return nil
}

// addEntries adds the entries up to that of p, all of which begin with this record.
func (w *groupWriter) addEntries(p uint64) error {
	for ; w.entries <= p; w.entries++ {
		var b [entrySize]byte
		binary.LittleEndian.PutUint32(b[:], uint32(w.records))
		if err := w.fan.add(b[:]); err != nil {
			return err
		}
	}
	return nil
}

func (w *groupWriter) endPage() error {
	w.page = binary.LittleEndian.AppendUint32(w.page, pageCRC(w.headerCRC, w.at, w.page))
	w.at += uint64(len(w.page))
	err := w.pages.add(w.page)
	w.page, w.inPage = w.page[:0], 0
	return err
}

func (w *groupWriter) finish() error {
	if w.fan.put != nil && w.g.fanBits > 0 {
		if err := w.addEntries(1<<w.g.fanBits - 1); err != nil {
			return err
		}
	}
	if w.inPage > 0 {
		if err := w.endPage(); err != nil {
			return err
		}
	}
	w.tell(w.untold)
	return errors.Join(w.fan.flush(), w.pages.flush())
}

// chunks hands on what is added in large pieces.
type chunks struct {
	put func([]byte) error
	buf []byte
}

func (c *chunks) add(b []byte) error {
	if len(c.buf)+len(b) > cap(c.buf) {
		if err := c.flush(); err != nil {
			return err
		}
	}
	c.buf = append(c.buf, b...)
	return nil
}

func (c *chunks) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	err := c.put(c.buf)
	c.buf = c.buf[:0]
	return err
}
