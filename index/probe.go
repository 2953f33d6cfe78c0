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
	w := walker{g: g, data: c.data}
	if !w.start(p) || !w.walk(p, digest) {
		return f, false, nil
	}
	f = w.finding(c, digest)
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
	g    *group
	data []byte
	i    uint64
	page uint64
	slot uint32
	at   uint64 // offset of the record
}

// start goes to the record where the fan-out leads one to expect a digest that begins
// with p. Within the records that share the fan-out's bits it interpolates by the bits
// that follow.
func (w *walker) start(p uint64) bool {
	g := w.g
	i := uint64(0)
	if g.fanBits > 0 {
		slot := p >> (64 - g.fanBits)
		at := g.offset + slot*entrySize
		from, to := uint64(binary.LittleEndian.Uint32(w.data[at:])), g.records
		if slot != 1<<g.fanBits-1 {
			to = uint64(binary.LittleEndian.Uint32(w.data[at+entrySize:]))
		}
		if from > to || to > g.records {
			return false // nobody checked it; search does without
		}
		i = min(from+(to-from)*(p<<g.fanBits>>32)>>32, g.records-1)
	}
	w.i, w.page = i, i/uint64(g.perPage)
	w.slot = uint32(i - w.page*uint64(g.perPage))
	w.at = g.pages + w.page*g.pageLen() + uint64(w.slot)*g.recordLen()
	return true
}

// walk goes to the first record that does not sort before the digest, whose prefix is
// p. It gives up after maxWalk records.
func (w *walker) walk(p uint64, digest []byte) bool {
	forth := w.less(p, digest)
	for range maxWalk {
		switch {
		case forth:
			if !w.next() || !w.less(p, digest) {
				return true
			}
		case !w.prev():
			return true
		case w.less(p, digest):
			w.next()
			return true
		}
	}
	return false
}

// less says whether the record sorts before a digest whose prefix is p.
func (w *walker) less(p uint64, digest []byte) bool {
	r := w.data[w.at : w.at+w.g.recordLen()]
	if len(digest) >= 8 {
		if q := binary.BigEndian.Uint64(r); q != p {
			return q < p
		}
	}
	return bytes.Compare(r[:len(digest)], digest) < 0
}

// next steps forward; false means that it stands behind the last record.
func (w *walker) next() bool {
	w.i++
	w.at += w.g.recordLen()
	if w.slot++; w.slot == w.g.perPage {
		w.slot = 0
		w.page++
		w.at += crcLen
	}
	return w.i < w.g.records
}

// prev steps back; false means that it stands on the first record and stays there.
func (w *walker) prev() bool {
	if w.i == 0 {
		return false
	}
	w.i--
	w.at -= w.g.recordLen()
	if w.slot == 0 {
		w.slot = w.g.perPage
		w.page--
		w.at -= crcLen
	}
	w.slot--
	return true
}

// finding compares the record with the digest.
func (w *walker) finding(c *indexCore, digest []byte) finding {
	if w.i == w.g.records {
		return finding{}
	}
	r := w.data[w.at : w.at+w.g.recordLen()]
	if string(r[:len(digest)]) != string(digest) {
		return finding{}
	}
	if planted.Bug("index-entry-off-by-one") && w.i+1 < w.g.records && w.slot+1 < w.g.perPage {
		r = w.data[w.at+w.g.recordLen():][:w.g.recordLen()]
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
