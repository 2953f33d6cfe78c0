package index

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"

	"github.com/dagstore/dagstore/internal/mapped"
	"github.com/dagstore/dagstore/internal/planted"
)

// maxWalk is how many records probe looks at beside its guess, in as many pages as that
// takes and maxReach holds. With digests of a hash function the guess is off by one or
// two; for digests made to share their leading bits there is search.
const (
	maxWalk  = 8
	maxReach = 4 << 10
)

// probe is search for digests that are spread evenly, as those of hash functions are: the
// fan-out and the digest's bits say which record it would be, and from there it walks to
// the first record i that does not sort before the digest.
//
//	record(i-1) < digest ≤ record(i)    with record(-1) = -∞, record(records) = ∞
//
// The two are in one cache line or two most often. An answer rests on the pages of
// both: a match on pages that were checked since the index was opened, for its digest
// is compared here and its block when it is read; "not found", which nothing else
// would bear out, on pages that are checked now, as does everything if again is set.
// Checking eight records takes 50 ns, as much as all else when they are in the cache.
//
// It looks at two places: the fan-out's entries, and the pages around the guess. What of
// them is not known to be in memory is read by one system call each, and then checked
// whatever again is, for it may be from the disk. With a nil buf nothing is read.
//
// ok is false if the walk did not get there, or something would have to be read.
func (c *indexCore) probe(g *group, digest []byte, again bool, buf *pageBuffer) (f finding, ok bool, err error) {
	p, warm, i := prefix(digest), c.warm(), uint64(0)
	if g.fanBits != 0 {
		at, n := g.entries(p)
		var b []byte
		if warm.Near(at, at+n) {
			b = c.data[at : at+n]
		} else if b, err = c.readInto(buf, at, n); b == nil {
			return f, false, err
		}
		if i, ok = g.guess(p, b); !ok {
			return f, false, nil
		}
	}
	w := g.at(i)
	from, to := g.around(w)
	// The byte at offset x of the file is data[x-base].
	data, base := c.data, uint64(0)
	if !warm.Near(from, to) {
		again, base = true, from
		if data, err = c.readInto(buf, from, to-from); data == nil {
			return f, false, err
		}
	}
	w.at -= base
	if w, ok = g.walk(w, p, digest, data[:to-base]); !ok {
		return f, false, nil
	}
	f = c.finding(g, w, digest, data)
	again = again || !f.match && !planted.Bug("index-miss-not-checked")
	if w.slot == 0 && w.page > 0 { // record i-1 is in the page before
		if err := c.checkPage(g, w.page-1, again, data, base); err != nil {
			return finding{}, false, err
		}
	}
	if w.i < g.records || w.slot > 0 {
		if err := c.checkPage(g, w.page, again, data, base); err != nil {
			return finding{}, false, err
		}
	}
	return f, true, nil
}

// readInto reads n bytes at offset at into buf. Without an error nil means that there is
// no buf.
func (c *indexCore) readInto(buf *pageBuffer, at, n uint64) ([]byte, error) {
	if buf == nil {
		return nil, nil
	}
	if err := c.readAt(c.src, buf[:n], int64(at)); err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// warm says what of data is in memory.
func (c *indexCore) warm() mapped.Warm {
	if c.table == nil {
		return c.all
	}
	if planted.Bug("index-mapping-read-cold") {
		return mapped.AllWarm(c.table.Size())
	}
	return c.table.Warm()
}

// walker stands on a record of a group, or behind the last one.
//
//	i = page · perPage + slot
//
// at is where the record is in what the walk sees, at first in the file.
type walker struct {
	i    uint64
	page uint64
	slot uint64
	at   uint64
}

// entries says where the fan-out's entries are, one or two, for digests that begin with p.
func (g *group) entries(p uint64) (at, n uint64) {
	slot := p >> (64 - g.fanBits)
	if slot == 1<<g.fanBits-1 {
		return g.offset + slot*entrySize, entrySize
	}
	return g.offset + slot*entrySize, 2 * entrySize
}

// guess returns the number of the record where the fan-out, whose entries are b, leads one
// to expect a digest that begins with p. Within the records that share the fan-out's bits
// it interpolates by the bits that follow. ok is false if the fan-out makes no sense, which
// nobody checked; search does without.
func (g *group) guess(p uint64, b []byte) (i uint64, ok bool) {
	from, to := uint64(binary.LittleEndian.Uint32(b)), g.records
	if len(b) > entrySize {
		to = uint64(binary.LittleEndian.Uint32(b[entrySize:]))
	}
	if from > to || to > g.records {
		return 0, false
	}
	return min(from+(to-from)*(p<<g.fanBits>>32)>>32, g.records-1), true
}

// at stands on record i.
func (g *group) at(i uint64) walker {
	page := i / uint64(g.perPage)
	slot := i - page*uint64(g.perPage)
	return walker{i: i, page: page, slot: slot, at: g.pages + page*g.pageLen() + slot*g.recordLen()}
}

// around says where the pages are that a walk from w may come to.
func (g *group) around(w walker) (from, to uint64) {
	at := w.at - w.slot*g.recordLen()
	return max(at-min(at, g.reachLen), g.pages), min(at+g.reachLen+g.pageLen(), g.end)
}

// walk goes from w to the first record that does not sort before the digest, whose
// prefix is p. It gives up after reach records. All is in one function, so that the
// processor sees the next record's load before it has the last one's outcome.
func (g *group) walk(w walker, p uint64, digest, data []byte) (_ walker, ok bool) {
	n, per := g.recordLen(), uint64(g.perPage)
	wide := len(digest) >= 8
	less := func(at uint64) bool {
		if wide {
			if q := binary.BigEndian.Uint64(data[at:]); q != p {
				return q < p
			}
		}
		return bytes.Compare(data[at:at+uint64(len(digest))], digest) < 0
	}
	forth := less(w.at)
	for range g.reach {
		if forth {
			w.i++
			w.at += n
			if w.slot++; w.slot == per {
				w.slot = 0
				w.page++
				w.at += crcLen
			}
			if w.i == g.records || !less(w.at) {
				return w, true
			}
			continue
		}
		if w.i == 0 {
			return w, true
		}
		before := w
		w.i--
		w.at -= n
		if w.slot == 0 {
			w.slot = per
			w.page--
			w.at -= crcLen
		}
		w.slot--
		if less(w.at) {
			return before, true
		}
	}
	return w, false
}

// finding compares the record that w stands on with the digest.
func (c *indexCore) finding(g *group, w walker, digest, data []byte) finding {
	if w.i == g.records {
		return finding{}
	}
	r := data[w.at : w.at+g.recordLen()]
	if string(r[:len(digest)]) != string(digest) {
		return finding{}
	}
	if planted.Bug("index-entry-off-by-one") && w.i+1 < g.records && w.slot+1 < uint64(g.perPage) {
		r = data[w.at+g.recordLen():][:g.recordLen()]
	}
	return finding{match: true, index: w.i, entry: c.entry(r[len(digest):])}
}

// checkedPages is a bit for each page of a group that was found sound since the index
// was opened. It is made when the first page is: an index that is only opened takes no
// memory for it, one in use 1 byte for 64 records of SHA2-256.
type checkedPages struct {
	bits atomic.Pointer[[]atomic.Uint32]
}

func (p *checkedPages) has(i uint64) bool {
	bits := p.bits.Load()
	return bits != nil && (*bits)[i/32].Load()&(1<<(i%32)) != 0
}

func (p *checkedPages) add(i, pages uint64) {
	bits := p.bits.Load()
	for bits == nil {
		made := make([]atomic.Uint32, (pages+31)/32)
		p.bits.CompareAndSwap(nil, &made)
		bits = p.bits.Load()
	}
	(*bits)[i/32].Or(1 << (i % 32))
}

// checkPage checks a page, whose bytes begin in data at its offset less base, unless it
// was checked before and again is not set.
func (c *indexCore) checkPage(g *group, i uint64, again bool, data []byte, base uint64) error {
	if !again && g.checked.has(i) {
		return nil
	}
	at, size := g.page(i)
	if _, err := c.pageIn(data[at-base:][:size], at); err != nil {
		return err
	}
	if base == 0 { // what was read for this lookup says nothing of what is mapped
		g.checked.add(i, g.numPages())
	}
	return nil
}
