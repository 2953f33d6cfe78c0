package index

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"runtime"
	"slices"
	"sync"

	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/shard"
)

// Draft is a shard index in memory, sorted and not yet stored. Its methods may be
// called concurrently.
//
// Heap per record: the record itself (digest + 12 bytes) and its place in the order
// (4); while sorting, 16 more.
type Draft struct {
	head   header // without key, generation and layout
	groups []draftGroup
}

// draftGroup holds the records of one group in the order in which they came.
type draftGroup struct {
	group
	slabs [][]byte
	order []uint32 // record numbers in index order
	fan   []byte   // the encoded fan-out
}

// slabRecords is how many records one slab holds. Slabs keep a growing group from
// being copied, and its heap from doubling.
const slabRecords = 1 << 14

func (d *draftGroup) record(i uint32) []byte {
	n := int(d.recordLen())
	at := int(i%slabRecords) * n
	return d.slabs[i/slabRecords][at : at+n]
}

// drafter collects records into groups.
type drafter struct {
	groups map[groupKey]*draftGroup
	last   *draftGroup // the group of the last record
	n      uint64
}

type groupKey struct {
	code      uint64
	digestLen int
}

func (d *drafter) add(code uint64, digest []byte, e Entry) error {
	g := d.last
	if g == nil || g.code != code || int(g.digestLen) != len(digest) {
		var err error
		if g, err = d.groupOf(code, len(digest)); err != nil {
			return err
		}
	}
	if e.Offset > maxOffset || d.n >= maxRecords {
		return fmt.Errorf("%w: more records or a larger offset than an index can hold (record %d at %d)", ErrBadIndex, d.n, e.Offset)
	}
	n := len(digest) + recordTail
	if g.records%slabRecords == 0 {
		// The first slab grows with its records, so that many small groups stay small.
		room := slabRecords * n
		if g.records == 0 {
			room = n
		}
		g.slabs = append(g.slabs, make([]byte, 0, room))
	}
	slab := &g.slabs[len(g.slabs)-1]
	end := len(*slab)
	if cap(*slab)-end < n {
		*slab = slices.Grow(*slab, n)
	}
	*slab = (*slab)[:end+n]
	b := (*slab)[end : end+n : end+n]
	copy(b, digest)
	binary.LittleEndian.PutUint64(b[len(digest):], e.Offset<<locShift|uint64(e.HeaderLen))
	binary.LittleEndian.PutUint32(b[len(digest)+8:], uint32(e.Size))
	g.records++
	d.n++
	return nil
}

func (d *drafter) groupOf(code uint64, digestLen int) (*draftGroup, error) {
	k := groupKey{code, digestLen}
	g := d.groups[k]
	if g == nil {
		if digestLen > maxDigest || len(d.groups) >= maxGroups {
			return nil, fmt.Errorf("%w: a digest of %d bytes, or more than %d kinds of multihash", ErrBadIndex, digestLen, maxGroups)
		}
		g = &draftGroup{group: group{code: code, digestLen: uint32(digestLen)}}
		if d.groups == nil {
			d.groups = make(map[groupKey]*draftGroup)
		}
		d.groups[k] = g
	}
	d.last = g
	return g, nil
}

// finish sorts what was collected.
func (d *drafter) finish(head header) *Draft {
	out := &Draft{head: head}
	out.head.records = d.n
	for _, g := range d.groups {
		g.group = newGroup(g.code, int(g.digestLen), g.records)
		g.sort()
		out.groups = append(out.groups, *g)
	}
	slices.SortFunc(out.groups, func(a, b draftGroup) int {
		return cmp.Or(cmp.Compare(a.code, b.code), cmp.Compare(a.digestLen, b.digestLen))
	})
	for i := range out.groups {
		out.head.groups = append(out.head.groups, out.groups[i].group)
	}
	return out
}

type sortKey struct {
	prefix uint64
	record uint32
}

// sort fills order: one pass of radix sort by the leading bits of the digests, as
// many as leave about 16 records to a bucket, then every bucket by comparison, the
// buckets spread over the cores. Digests ground to share their leading bits cost the
// n·log n of the comparison sort and no more.
func (d *draftGroup) sort() {
	n := int(d.records)
	shift := 64 - min(bits.Len(uint(n/16)), 18)
	starts := make([]uint32, 1<<(64-shift)+1)
	for i := range uint32(n) {
		starts[prefix(d.record(i)[:d.digestLen])>>shift+1]++
	}
	for i := range len(starts) - 1 {
		starts[i+1] += starts[i]
	}
	keys := make([]sortKey, n)
	next := slices.Clone(starts)
	for i := range uint32(n) {
		p := prefix(d.record(i)[:d.digestLen])
		b := &next[p>>shift]
		keys[*b] = sortKey{p, i}
		*b++
	}
	d.order = make([]uint32, n)
	buckets := len(starts) - 1
	parallel(buckets, func(from, to int) {
		for b := from; b < to; b++ {
			slices.SortFunc(keys[starts[b]:starts[b+1]], d.compare)
		}
		for i := starts[from]; i < starts[to]; i++ {
			d.order[i] = keys[i].record
		}
	})
	d.fan = d.fanOut(keys)
}

func (d *draftGroup) compare(a, b sortKey) int {
	if c := cmp.Compare(a.prefix, b.prefix); c != 0 {
		return c
	}
	x, y := d.record(a.record), d.record(b.record)
	if c := bytes.Compare(x[:d.digestLen], y[:d.digestLen]); c != 0 {
		return c
	}
	return cmp.Compare(binary.LittleEndian.Uint64(x[d.digestLen:]), binary.LittleEndian.Uint64(y[d.digestLen:]))
}

// parallel splits 0..n into one range per core and runs them.
func parallel(n int, run func(from, to int)) {
	workers := min(runtime.GOMAXPROCS(0), n/1024+1)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() { run(n*i/workers, n*(i+1)/workers) })
	}
	wg.Wait()
}

// Info sums up the draft and its source.
func (d *Draft) Info() shard.IndexInfo { return d.head.info() }

// Len counts the records, duplicates included.
func (d *Draft) Len() uint64 { return d.head.records }

// Binding says which source the draft was built from; false if it is unbound.
func (d *Draft) Binding() (Binding, bool) {
	return d.head.binding, d.head.flags&flagUnbound == 0
}

// SizesKnown says whether entries carry HeaderLen and Size.
func (d *Draft) SizesKnown() bool { return d.head.flags&flagSizesUnknown == 0 }

// Multihashes iterates over the multihashes in index order, duplicates included.
func (d *Draft) Multihashes() MultihashIterator { return draftMultihashes{d} }

type draftMultihashes struct{ d *Draft }

func (it draftMultihashes) ForEach(visit func(mh multihash.Multihash) error) error {
	for i := range it.d.groups {
		g := &it.d.groups[i]
		mh := multihashPrefix(&g.group)
		head := len(mh)
		for _, r := range g.order {
			mh = append(mh[:head], g.record(r)[:g.digestLen]...)
			if err := visit(mh); err != nil {
				return err
			}
		}
	}
	return nil
}

// multihashPrefix returns what stands before the digest in a group's multihashes,
// with room for the digest.
func multihashPrefix(g *group) []byte {
	b := make([]byte, 0, 2*binary.MaxVarintLen64+int(g.digestLen))
	b = binary.AppendUvarint(b, g.code)
	return binary.AppendUvarint(b, uint64(g.digestLen))
}

// WriteTo writes the draft as an index file that names no shard, for repositories
// that keep track of that themselves; see [OpenIndex].
func (d *Draft) WriteTo(w io.Writer) (int64, error) {
	return d.write(w, shard.Key{}, 0)
}

// write writes the draft as the index file of (key, gen).
func (d *Draft) write(w io.Writer, key shard.Key, gen uint64) (int64, error) {
	h := d.head
	h.key, h.gen = key.String(), gen
	h.groups = slices.Clone(d.head.groups)
	h.layout()
	written := int64(0)
	put := func(b []byte) error {
		n, err := w.Write(b)
		written += int64(n)
		return err
	}
	if err := put(h.encode()); err != nil {
		return written, err
	}
	for i := range h.groups {
		g := &d.groups[i]
		if err := put(g.fan); err != nil {
			return written, err
		}
		if err := g.writePages(&h.groups[i], h.crc, put); err != nil {
			return written, err
		}
	}
	return written, nil
}

// fanOut encodes the fan-out of sorted keys.
func (d *draftGroup) fanOut(keys []sortKey) []byte {
	if d.fanBits == 0 {
		return nil
	}
	b := make([]byte, 0, d.fanLen())
	for i := range keys {
		for p := keys[i].prefix >> (64 - d.fanBits); uint64(len(b)/entrySize) <= p; {
			b = binary.LittleEndian.AppendUint32(b, uint32(i))
		}
	}
	for uint64(len(b)) < d.fanLen() {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(keys)))
	}
	return b
}

// writePages writes the pages in stretches of many, each stretch encoded by all
// cores, because gathering records in digest order misses the caches.
func (d *draftGroup) writePages(g *group, headerCRC uint32, put func([]byte) error) error {
	const stretch = 1 << 10 // pages
	pageLen := int(g.pageLen())
	pages := int(g.numPages())
	buf := make([]byte, min(pages, stretch)*pageLen)
	for first := 0; first < pages; first += stretch {
		n := min(stretch, pages-first)
		parallel(n, func(from, to int) {
			for i := from; i < to; i++ {
				at, size := g.page(uint64(first + i))
				d.encodePage(buf[i*pageLen:i*pageLen+int(size)], first+i, headerCRC, at)
			}
		})
		_, last := g.page(uint64(first + n - 1))
		if err := put(buf[:(n-1)*pageLen+int(last)]); err != nil {
			return err
		}
	}
	return nil
}

func (d *draftGroup) encodePage(b []byte, page int, headerCRC uint32, at uint64) {
	records := b[:len(b)-crcLen]
	for i, pos := page*int(d.perPage), 0; pos < len(records); i++ {
		pos += copy(records[pos:], d.record(d.order[i]))
	}
	binary.LittleEndian.PutUint32(b[len(records):], pageCRC(headerCRC, at, records))
}
