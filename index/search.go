package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"sync"
	"unsafe"

	"github.com/dagstore/dagstore/internal/planted"
)

// pageBuffer holds any page, what a probe looks at, and the first bytes of any header.
type pageBuffer [maxReach]byte

var pageBuffers = sync.Pool{New: func() any { return new(pageBuffer) }}

// finding is the answer of search.
type finding struct {
	match bool
	index uint64 // of the first record that matches
	entry Entry
}

// search finds the first record of g with the given digest: by probe if
// it can, and else by pages, each of which is checked when it is used. again has probe
// do so too.
//
// A search by pages looks for the last page whose first record sorts before the digest; if the
// digest is anywhere, it begins in that page or is the first record of the next.
// The fan-out says where to look first. It may be wrong, and it may be useless for
// digests made to share their leading bits: then the search gallops away from the
// hint and bisects, so that its cost is logarithmic whatever the fan-out says.
//
//	first(lo) < digest ≤ first(hi)      proven by checked pages, with
//	first(-1) = -∞, first(pages) = ∞    by the checked header
//
// A mapping that cannot be read faults; turning that into a panic to recover from
// costs 3 ns of the 110 that a lookup in cached memory takes. What is not known to be in
// memory is waited for in system calls.
func (c *indexCore) search(g *group, digest []byte, again bool) (f finding, err error) {
	if c.data != nil {
		old := debug.SetPanicOnFault(true)
		defer func() {
			debug.SetPanicOnFault(old)
			if r := recover(); r != nil {
				if err = c.fault(r); c.table != nil { // reading says what is wrong
					c.table.Forget()
					f, err = c.searchFile(g, digest, again)
				}
			}
		}()
		if f, ok, err := c.probe(g, digest, again, nil); ok || err != nil {
			return f, err
		}
	}
	return c.searchFile(g, digest, again)
}

// searchFile is search of what has to be read.
func (c *indexCore) searchFile(g *group, digest []byte, again bool) (f finding, err error) {
	defer c.unguard(c.guard(), &err)
	buf := pageBuffers.Get().(*pageBuffer)
	defer pageBuffers.Put(buf)
	if f, ok, err := c.probe(g, digest, again, buf); ok || err != nil {
		return f, err
	}
	return c.searchPages(g, digest, buf)
}

// probeMemory is probe of what is in memory.
func (c *indexCore) probeMemory(g *group, digest []byte) (f finding, ok bool, err error) {
	defer c.unguard(c.guard(), &err)
	return c.probe(g, digest, false, nil)
}

func (c *indexCore) searchPages(g *group, digest []byte, buf *pageBuffer) (finding, error) {
	n, pages := int(g.recordLen()), int64(g.numPages())
	guess, err := c.hint(g, digest, buf)
	if err != nil {
		return finding{}, err
	}
	lo, hi, step := int64(-1), pages, int64(1)
	for lo+1 < hi {
		records, err := c.page(g, uint64(guess), buf)
		if err != nil {
			return finding{}, err
		}
		if bytes.Compare(records[:g.digestLen], digest) < 0 {
			last := records[len(records)-n:]
			if bytes.Compare(last[:g.digestLen], digest) >= 0 {
				return c.inPage(g, uint64(guess), records, digest), nil
			}
			lo = guess
			guess += step
		} else {
			hi = guess
			guess -= step
		}
		if step *= 2; guess <= lo || guess >= hi || lo >= 0 && hi < pages {
			guess = lo + (hi-lo)/2
		}
	}
	if hi == pages {
		return finding{}, nil
	}
	records, err := c.page(g, uint64(hi), buf)
	if err != nil {
		return finding{}, err
	}
	return c.inPage(g, uint64(hi), records, digest), nil
}

// hint returns the page where the fan-out leads one to expect the digest, or any
// page. Within the records that share the digest's leading bits it interpolates by
// the bits that follow.
func (c *indexCore) hint(g *group, digest []byte, buf *pageBuffer) (int64, error) {
	if g.fanBits == 0 {
		return 0, nil
	}
	p := prefix(digest)
	slot := p >> (64 - g.fanBits)
	entries := uint64(2)
	if slot == 1<<g.fanBits-1 {
		entries = 1
	}
	b, err := c.bytes(g.offset+slot*entrySize, entries*entrySize, buf)
	if err != nil {
		return 0, err
	}
	from, to := uint64(binary.LittleEndian.Uint32(b)), g.records
	if entries == 2 {
		to = uint64(binary.LittleEndian.Uint32(b[entrySize:]))
	}
	if to > from {
		from += (to - from) * (p << g.fanBits >> 32) >> 32
	}
	return int64(min(from, g.records-1) / uint64(g.perPage)), nil
}

// inPage finds the first match in a page.
func (c *indexCore) inPage(g *group, page uint64, records, digest []byte) finding {
	n := int(g.recordLen())
	lo, hi := 0, len(records)/n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if bytes.Compare(records[mid*n:mid*n+len(digest)], digest) < 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	r := records[lo*n:]
	if len(r) == 0 || string(r[:len(digest)]) != string(digest) {
		return finding{}
	}
	if planted.Bug("index-entry-off-by-one") && len(r) >= 2*n {
		r = r[n:]
	}
	return finding{match: true, index: page*uint64(g.perPage) + uint64(lo), entry: c.entry(r[len(digest):])}
}

// bytes returns n bytes of the file at offset at: of the mapping, if they are known to
// be in memory, or in buf.
func (c *indexCore) bytes(at, n uint64, buf *pageBuffer) ([]byte, error) {
	if c.warm().Holds(at, at+n) {
		return c.data[at : at+n], nil
	}
	b := buf[:n]
	return b, c.readAt(c.src, b, int64(at))
}

// page returns the records of page i after checking them. They lie in the mapping or
// in buf.
func (c *indexCore) page(g *group, i uint64, buf *pageBuffer) ([]byte, error) {
	at, size := g.page(i)
	b, err := c.bytes(at, size, buf)
	if err != nil {
		return nil, err
	}
	return c.pageIn(b, at)
}

// pageIn returns the records of the page b, which is at offset at, after checking them.
func (c *indexCore) pageIn(b []byte, at uint64) ([]byte, error) {
	records := b[:len(b)-crcLen]
	if pageCRC(c.crc, at, records) != binary.LittleEndian.Uint32(b[len(records):]) && !planted.Bug("index-page-not-checked") {
		return nil, c.damaged(at, "page checksum")
	}
	return records, nil
}

// guard and unguard turn a fault on the mapping (a file that shrank underneath, a
// disk that fails) into an error. Use: defer c.unguard(c.guard(), &err).
func (c *indexCore) guard() (old bool) {
	return c.data != nil && debug.SetPanicOnFault(true)
}

func (c *indexCore) unguard(old bool, err *error) {
	if c.data == nil {
		return
	}
	debug.SetPanicOnFault(old)
	if r := recover(); r != nil {
		*err = c.fault(r)
	}
}

// fault returns the error for a recovered fault on the mapping and panics again with
// anything else.
func (c *indexCore) fault(r any) error {
	if e, ok := r.(interface{ Addr() uintptr }); ok && len(c.data) > 0 {
		base := uintptr(unsafe.Pointer(unsafe.SliceData(c.data)))
		if at := e.Addr() - base; at < uintptr(len(c.data)) {
			return c.damaged(uint64(at), "the mapped file cannot be read here; it was cut short or its disk fails")
		}
	}
	panic(r)
}

// Verify reads the whole index and checks every promise of the format: checksums,
// order, sums, and that every fan-out entry is exact.
func (x *ShardIndex) Verify(ctx context.Context) error {
	c := x.core
	if !x.enter() {
		return ErrClosed
	}
	defer c.leave()
	payload := uint64(0)
	for i := range c.groups {
		g := &c.groups[i]
		v := groupVerifier{c: c, g: g, ctx: ctx}
		if err := c.eachRecord(g, 0, v.record); err != nil {
			return err
		}
		if err := v.fanOut(); err != nil {
			return err
		}
		payload += v.payload
	}
	if payload != c.payload {
		return c.damaged(0, fmt.Sprintf("blocks sum up to %d bytes, the header says %d", payload, c.payload))
	}
	return nil
}

type groupVerifier struct {
	c       *indexCore
	g       *group
	ctx     context.Context
	n       uint64
	payload uint64
	last    []byte // digest and offset of the last record, in sortable form
	now     []byte
	// fan collects what the fan-out must be.
	fan []uint32
}

func (v *groupVerifier) record(digest []byte, e Entry) error {
	v.now = binary.BigEndian.AppendUint64(append(v.now[:0], digest...), e.Offset)
	if v.n > 0 && bytes.Compare(v.last, v.now) > 0 {
		return v.c.damaged(v.g.pages, fmt.Sprintf("record %d is out of order", v.n))
	}
	v.last, v.now = v.now, v.last
	if v.g.fanBits > 0 {
		for p := prefix(digest) >> (64 - v.g.fanBits); uint64(len(v.fan)) <= p; {
			v.fan = append(v.fan, uint32(v.n))
		}
	}
	if e.Size > 0 {
		v.payload += uint64(e.Size)
	}
	if v.n++; v.n%4096 == 0 {
		return v.ctx.Err()
	}
	return nil
}

// fanOut compares the stored fan-out with the one that the records demand.
func (v *groupVerifier) fanOut() error {
	if v.g.fanBits == 0 {
		return nil
	}
	buf := pageBuffers.Get().(*pageBuffer)
	defer pageBuffers.Put(buf)
	entries := uint64(1) << v.g.fanBits
	for i := uint64(0); i < entries; {
		n := min(entries-i, uint64(len(buf)/entrySize))
		b := buf[:n*entrySize]
		if err := v.c.readOnce(b, v.g.offset+i*entrySize); err != nil {
			return err
		}
		for ; n > 0; n, i, b = n-1, i+1, b[entrySize:] {
			want := uint32(v.n)
			if i < uint64(len(v.fan)) {
				want = v.fan[i]
			}
			if binary.LittleEndian.Uint32(b) != want {
				return v.c.damaged(v.g.offset+i*entrySize, "fan-out entry")
			}
		}
	}
	return nil
}
