package index

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"

	"github.com/dagstore/dagstore/internal/planted"
)

// maxWalk is how many records probe looks at beside its guess. With digests of a hash
// function the guess is off by one or two; for digests made to share their leading
// bits there is search.
const maxWalk = 24

// probe is search for a mapped file and digests that are spread evenly, as those of
// hash functions are: the fan-out and the digest's bits say which record it would be,
// and from there it walks to the first record i that does not sort before the digest.
//
//	record(i-1) < digest ≤ record(i)    with record(-1) = -∞, record(records) = ∞
//
// The two are in one cache line or two most often. An answer rests on the pages of
// both: a match on pages that were checked since the index was opened, for its digest
// is compared here and its block when it is read; "not found", which nothing else
// would bear out, on pages that are checked now, as does everything if again is set.
// Checking eight records takes 50 ns, as much as all else when they are in the cache.
//
// ok is false if the walk did not get there.
func (c *indexCore) probe(g *group, digest []byte, again bool) (f finding, ok bool, err error) {
	p := prefix(digest)
	i, ok := c.guess(g, p)
	if !ok {
		return f, false, nil
	}
	w, ok := c.walk(g, i, p, digest)
	if !ok {
		return f, false, nil
	}
	f = c.finding(g, &w, digest)
	again = again || !f.match && !planted.Bug("index-miss-not-checked")
	if w.slot == 0 && w.page > 0 { // record i-1 is in the page before
		if err := c.checkPage(g, w.page-1, again); err != nil {
			return finding{}, false, err
		}
	}
	if w.i < g.records || w.slot > 0 {
		if err := c.checkPage(g, w.page, again); err != nil {
			return finding{}, false, err
		}
	}
	return f, true, nil
}

// walker stands on a record of a group, or behind the last one.
//
//	i = page · perPage + slot
type walker struct {
	i    uint64
	page uint64
	slot uint64
	at   uint64 // offset of the record
}

// guess returns the number of the record where the fan-out leads one to expect a digest
// that begins with p. Within the records that share the fan-out's bits it interpolates
// by the bits that follow. ok is false if the fan-out makes no sense, which nobody
// checked; search does without.
func (c *indexCore) guess(g *group, p uint64) (i uint64, ok bool) {
	if g.fanBits == 0 {
		return 0, true
	}
	slot := p >> (64 - g.fanBits)
	at := g.offset + slot*entrySize
	from, to := uint64(binary.LittleEndian.Uint32(c.data[at:])), g.records
	if slot != 1<<g.fanBits-1 {
		to = uint64(binary.LittleEndian.Uint32(c.data[at+entrySize:]))
	}
	if from > to || to > g.records {
		return 0, false
	}
	return min(from+(to-from)*(p<<g.fanBits>>32)>>32, g.records-1), true
}

// walk goes from record i to the first one that does not sort before the digest, whose
// prefix is p. It gives up after maxWalk records. All is in one function, so that the
// processor sees the next record's load before it has the last one's outcome.
func (c *indexCore) walk(g *group, i, p uint64, digest []byte) (w walker, ok bool) {
	n, per := g.recordLen(), uint64(g.perPage)
	w.i, w.page = i, i/per
	w.slot = i - w.page*per
	w.at = g.pages + w.page*g.pageLen() + w.slot*n
	data := c.data[:g.pages+g.size()-g.fanLen()]
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
	for range maxWalk {
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
func (c *indexCore) finding(g *group, w *walker, digest []byte) finding {
	if w.i == g.records {
		return finding{}
	}
	r := c.data[w.at : w.at+g.recordLen()]
	if string(r[:len(digest)]) != string(digest) {
		return finding{}
	}
	if planted.Bug("index-entry-off-by-one") && w.i+1 < g.records && w.slot+1 < uint64(g.perPage) {
		r = c.data[w.at+g.recordLen():][:g.recordLen()]
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

// checkPage checks a page of a mapped file, unless it was checked before and again is
// not set.
func (c *indexCore) checkPage(g *group, i uint64, again bool) error {
	if !again && g.checked.has(i) {
		return nil
	}
	if _, err := c.page(g, i, nil); err != nil {
		return err
	}
	g.checked.add(i, g.numPages())
	return nil
}
