package index

import (
	"bytes"
	"cmp"
	"context"
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

// Draft is a shard index, sorted and not yet stored. Its methods may be called
// concurrently.
//
// It is in memory, or, if it was built with a place to spill to and did not fit, in
// sorted runs in temporary files, which Close removes (see runs).
//
// Heap per record in memory: the record itself (digest + 12 bytes) and its place in
// the order (4); while sorting, 17 more. Heap of one that spilled: the buffers of a
// merge while it is read, a few MiB whatever its length.
type Draft struct {
	head   header // without key, generation and layout
	groups []draftGroup
	runs   *runs // nil: everything is in memory
	share  *share
	told   func(done, total uint64)

	skipped Skipped
}

// draftGroup holds the records of one group in the order in which they came.
type draftGroup struct {
	group
	id    int // groups are numbered as they come
	slabs [][]byte
	held  uint32   // records in slabs
	order []uint32 // record numbers in index order
	fan   []byte   // the encoded fan-out
}

// slabRecords is how many records one slab holds. Slabs keep a growing group from
// being copied, and its heap from doubling.
const slabRecords = 1 << 12

func (d *draftGroup) record(i uint32) []byte {
	n := int(d.recordLen())
	at := int(i%slabRecords) * n
	return d.slabs[i/slabRecords][at : at+n]
}

// drafter collects records into groups. With a place to spill to, it holds at most
// its budget: when the next slab would take it beyond, what it holds becomes a run.
//
//	slabs + sortCost × records that fit into them ≤ spill.budget, leastMemory + share
type drafter struct {
	ctx    context.Context // of spills and of sorting; nil: none
	groups map[groupKey]*draftGroup
	list   []*draftGroup // in the order of their ids
	last   *draftGroup   // the group of the last record
	n      uint64
	told   func(done, total uint64) // of the draft

	skipped Skipped

	spill  *spill // nil: everything stays in memory
	sorter sorter
	slabs  int      // bytes of all slabs, the free ones included
	room   int      // records that fit into them
	free   [][]byte // slabs of one size, emptied by a spill
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
	if len(g.slabs) == 0 || cap(g.slabs[len(g.slabs)-1])-len(g.slabs[len(g.slabs)-1]) < n {
		if err := d.makeRoom(g); err != nil {
			return err
		}
	}
	slab := &g.slabs[len(g.slabs)-1]
	end := len(*slab)
	*slab = (*slab)[:end+n]
	b := (*slab)[end : end+n : end+n]
	copy(b, digest)
	binary.LittleEndian.PutUint64(b[len(digest):], e.Offset<<locShift|uint64(e.HeaderLen))
	binary.LittleEndian.PutUint32(b[len(digest)+8:], uint32(e.Size))
	g.held++
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
		g = &draftGroup{group: group{code: code, digestLen: uint32(digestLen)}, id: len(d.list)}
		if d.groups == nil {
			d.groups = make(map[groupKey]*draftGroup)
		}
		d.groups[k] = g
		d.list = append(d.list, g)
	}
	d.last = g
	return g, nil
}

// makeRoom gives g room for a record at least, in a larger slab or in another one.
func (d *drafter) makeRoom(g *draftGroup) error {
	n := int(g.recordLen())
	full := slabRecords * n
	for {
		// The first slab grows with its records, so that many small groups stay small;
		// that of a group which was large before does not begin anew.
		old, want := 0, full
		if len(g.slabs) > 0 {
			old = cap(g.slabs[len(g.slabs)-1]) % full
		}
		if old > 0 || len(g.slabs) == 0 && g.records < slabRecords {
			want = min(max(8*n, 2*old/n*n), full)
		}
		if old == 0 && (len(d.free) == 0 || d.spill.allows(d.need(0, 0))) && d.takeFree(g, want) {
			return nil
		}
		if d.spill == nil || d.spill.allows(d.need(want, want/n)) {
			d.grow(g, old, want, n)
			return nil
		}
		switch {
		case len(d.free) > 0:
			d.dropFree()
		case d.sorter.bytes() > sortCost*d.room: // left of a larger share
			d.sorter = sorter{}
		case d.holds():
			if err := d.spillAll(); err != nil {
				return err
			}
		default: // a budget smaller than a slab
			d.grow(g, old, want, n)
			return nil
		}
	}
}

// sortCost bounds what a record takes beside its slab when records are sorted: 16
// bytes in sorter.keys, 1 in its counters, 4 in the order and half a one in the
// fan-out.
const sortCost = 22

// need is what the drafter takes with so many more bytes of slabs, which hold so many
// records, until everything is sorted.
func (d *drafter) need(bytes, records int) int {
	return d.slabs + bytes + max(sortCost*(d.room+records), d.sorter.bytes())
}

func (d *drafter) grow(g *draftGroup, old, want, n int) {
	if d.spill != nil {
		d.spill.runs.note(d.need(want, want/n)) // the old slab is there while it is copied
	}
	slab := make([]byte, 0, want)
	if old > 0 {
		last := len(g.slabs) - 1
		g.slabs[last] = append(slab, g.slabs[last]...)
	} else {
		g.slabs = append(g.slabs, slab)
	}
	d.slabs += want - old
	d.room += (want - old) / n
}

func (d *drafter) takeFree(g *draftGroup, want int) bool {
	last := len(d.free) - 1
	if last < 0 || cap(d.free[last]) != want {
		return false
	}
	g.slabs = append(g.slabs, d.free[last])
	d.free = d.free[:last]
	return true
}

func (d *drafter) dropFree() {
	last := len(d.free) - 1
	d.slabs -= cap(d.free[last])
	d.room -= slabRecords
	d.free[last] = nil
	d.free = d.free[:last]
}

// holds says whether there are records in memory.
func (d *drafter) holds() bool {
	return slices.ContainsFunc(d.list, func(g *draftGroup) bool { return g.held > 0 })
}

// spillAll makes a run of what is in memory. The slabs of the largest group are used
// again, or the heap would hold them twice until it is collected.
func (d *drafter) spillAll() error {
	w, err := d.spill.runs.newRun(0)
	if err != nil {
		return err
	}
	d.sorter.ctx = d.ctx
	var largest *draftGroup
	for _, g := range d.list {
		if g.held == 0 {
			continue
		}
		keys, err := d.sorter.sort(g)
		if err != nil {
			return err
		}
		d.spill.runs.note(d.slabs + d.sorter.bytes() + w.bytes())
		if err := w.gather(d.ctx, g, keys); err != nil {
			return err
		}
		if largest == nil || g.held > largest.held {
			largest = g
		}
	}
	if err := w.finish(); err != nil {
		return err
	}
	d.empty(largest)
	return d.spill.runs.settle(d.ctx, d.slabs+d.sorter.bytes())
}

// empty forgets all records, and keeps the full slabs of one group.
func (d *drafter) empty(keep *draftGroup) {
	d.free, d.slabs, d.room = d.free[:0], 0, 0
	if keep != nil {
		for _, s := range keep.slabs {
			if cap(s) == slabRecords*int(keep.recordLen()) {
				d.free = append(d.free, s[:0])
				d.slabs += cap(s)
				d.room += slabRecords
			}
		}
	}
	for _, g := range d.list {
		g.slabs, g.held = nil, 0
	}
}

// finish sorts what was collected in memory.
func (d *drafter) finish(head header) *Draft {
	out, err := d.draft(head)
	if err != nil { // neither a context nor a disk is involved
		panic("index: " + err.Error())
	}
	return out
}

// draft sorts what was collected, or completes the runs. The draft takes over what
// the drafter has; after an error close gives it back.
func (d *drafter) draft(head header) (*Draft, error) {
	out := &Draft{head: head, told: d.told, skipped: d.skipped}
	out.head.records = d.n
	spilled := d.spill != nil && !d.spill.runs.empty()
	if spilled {
		if err := d.completeRuns(); err != nil {
			return nil, err
		}
		out.runs = d.spill.runs
	}
	if d.spill != nil {
		out.share = d.spill.share
	}
	d.sorter.ctx = d.ctx
	for _, g := range d.list {
		g.group = newGroup(g.code, int(g.digestLen), g.records)
		if !spilled {
			if err := g.putInOrder(&d.sorter); err != nil {
				return nil, err
			}
		}
		out.groups = append(out.groups, *g)
	}
	slices.SortFunc(out.groups, func(a, b draftGroup) int {
		return cmp.Or(cmp.Compare(a.code, b.code), cmp.Compare(a.digestLen, b.digestLen))
	})
	for i := range out.groups {
		out.head.groups = append(out.head.groups, out.groups[i].group)
	}
	return out, nil
}

// completeRuns spills the rest, and leaves no more runs than can be merged at once.
func (d *drafter) completeRuns() error {
	if d.holds() {
		if err := d.spillAll(); err != nil {
			return err
		}
	}
	d.free, d.sorter = nil, sorter{}
	d.spill.share.release()
	return d.spill.runs.reduce(d.ctx)
}

// close gives back what a drafter holds whose draft is not wanted.
func (d *drafter) close() {
	if d.spill != nil {
		d.spill.share.release()
		_ = d.spill.runs.close() // what could not be removed is swept
	}
}

type sortKey struct {
	prefix uint64
	record uint32
}

// sorter sorts groups one after the other in the same memory.
type sorter struct {
	ctx          context.Context // nil: sorting is not ended
	keys         []sortKey
	starts, next []uint32
}

func (s *sorter) bytes() int { return 16*cap(s.keys) + 4*cap(s.starts) + 4*cap(s.next) }

// sort returns the records of g in index order, until the next call: one pass of
// radix sort by the leading bits of the digests, as many as leave about 16 records to
// a bucket, then every bucket by comparison, the buckets spread over the cores.
// Digests ground to share their leading bits cost the n·log n of the comparison sort
// and no more.
func (s *sorter) sort(g *draftGroup) ([]sortKey, error) {
	n := int(g.held)
	shift := 64 - min(bits.Len(uint(n/16)), 18)
	buckets := 1 << (64 - shift)
	s.starts = resize(s.starts, buckets+1)
	clear(s.starts)
	starts := s.starts
	for i := range uint32(n) {
		starts[prefix(g.record(i)[:g.digestLen])>>shift+1]++
	}
	for i := range buckets {
		starts[i+1] += starts[i]
	}
	s.keys = resize(s.keys, n)
	s.next = append(s.next[:0], starts...)
	for i := range uint32(n) {
		p := prefix(g.record(i)[:g.digestLen])
		b := &s.next[p>>shift]
		s.keys[*b] = sortKey{p, i}
		*b++
	}
	parallel(buckets, func(from, to int) {
		end := ender{ctx: s.ctx}
		compare := func(a, b sortKey) int {
			if end.ended(1) {
				return 0 // all are equal now: the sort is over at once
			}
			return g.compare(a, b)
		}
		for b := from; b < to; b++ {
			slices.SortFunc(s.keys[starts[b]:starts[b+1]], compare)
		}
	})
	if s.ctx != nil && s.ctx.Err() != nil {
		return nil, s.ctx.Err()
	}
	return s.keys, nil
}

// ender asks a context every few thousand steps whether it has ended.
type ender struct {
	ctx  context.Context // nil: never
	n    int
	over bool
}

func (e *ender) ended(steps int) bool {
	if e.n += steps; e.n >= stepsBetween {
		e.n = 0
		e.over = e.over || e.ctx != nil && e.ctx.Err() != nil
	}
	return e.over
}

const stepsBetween = 4096

func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// putInOrder fills order and fan.
func (d *draftGroup) putInOrder(s *sorter) error {
	keys, err := s.sort(d)
	if err != nil {
		return err
	}
	d.order = make([]uint32, len(keys))
	for i := range keys {
		d.order[i] = keys[i].record
	}
	d.fan = d.fanOut(keys)
	return nil
}

func (d *draftGroup) compare(a, b sortKey) int {
	if c := cmp.Compare(a.prefix, b.prefix); c != 0 {
		return c
	}
	return compareRecords(d.record(a.record), d.record(b.record), int(d.digestLen))
}

// compareRecords compares records of one group by (digest, offset), and then by all
// the rest, so that there is one order whatever the way to it.
func compareRecords(x, y []byte, digestLen int) int {
	if c := bytes.Compare(x[:digestLen], y[:digestLen]); c != 0 {
		return c
	}
	x, y = x[digestLen:], y[digestLen:]
	return cmp.Or(
		cmp.Compare(binary.LittleEndian.Uint64(x), binary.LittleEndian.Uint64(y)),
		cmp.Compare(binary.LittleEndian.Uint32(x[8:]), binary.LittleEndian.Uint32(y[8:])),
	)
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

// Skipped lists the sections that were left out for their hashes
// (BuildOptions.SkipUnsupported).
func (d *Draft) Skipped() Skipped { return d.skipped }

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
		each := func(rec []byte) error {
			mh = append(mh[:head], rec[:g.digestLen]...)
			return visit(mh)
		}
		if err := it.d.eachRecord(g, each); err != nil {
			return err
		}
	}
	return nil
}

// eachRecord visits the records of a group in index order. Visitors end it.
func (d *Draft) eachRecord(g *draftGroup, visit func(rec []byte) error) error {
	if d.runs != nil {
		return d.runs.each(context.Background(), g, func(rec []byte, _ uint64) error { return visit(rec) })
	}
	for _, r := range g.order {
		if err := visit(g.record(r)); err != nil {
			return err
		}
	}
	return nil
}

// Close removes the temporary files of a draft that spilled; what is done with it
// afterwards ends with ErrClosed. A draft in memory is not changed, but what it has of
// a pool counts as given back: let it go. Idempotent.
func (d *Draft) Close() error {
	d.share.release()
	if d.runs == nil {
		return nil
	}
	return d.runs.close()
}

// multihashPrefix returns what stands before the digest in a group's multihashes,
// with room for the digest.
func multihashPrefix(g *group) []byte {
	b := make([]byte, 0, 2*binary.MaxVarintLen64+int(g.digestLen))
	b = binary.AppendUvarint(b, g.code)
	return binary.AppendUvarint(b, uint64(g.digestLen))
}

// WriteTo writes the draft as an index file that names no shard, for repositories
// that keep track of that themselves; see [OpenIndex]. A draft that spilled is merged
// twice for it, because a fan-out stands before its pages.
func (d *Draft) WriteTo(w io.Writer) (int64, error) {
	return d.write(w, shard.Key{}, 0)
}

// write writes the draft as the index file of (key, gen).
func (d *Draft) write(w io.Writer, key shard.Key, gen uint64) (int64, error) {
	return d.writeTo(context.Background(), w, key, gen)
}

// headerOf returns the header of the index file of (key, gen), and its bytes.
func (d *Draft) headerOf(key shard.Key, gen uint64) (header, []byte) {
	h := d.head
	h.key, h.gen = key.String(), gen
	h.groups = slices.Clone(d.head.groups)
	h.layout()
	b := h.encode()
	return h, b
}

// writeTo is write, until ctx ends.
func (d *Draft) writeTo(ctx context.Context, w io.Writer, key shard.Key, gen uint64) (int64, error) {
	h, b := d.headerOf(key, gen)
	written := int64(0)
	put := func(b []byte) error {
		n, err := w.Write(b)
		written += int64(n)
		return err
	}
	if err := put(b); err != nil {
		return written, err
	}
	tell := d.teller()
	for i := range h.groups {
		g := &d.groups[i]
		var err error
		switch {
		case d.runs != nil:
			if err = d.runs.writeGroup(ctx, g, &h.groups[i], h.crc, put, nil, func(int) {}); err == nil {
				err = d.runs.writeGroup(ctx, g, &h.groups[i], h.crc, nil, put, tell)
			}
		default:
			if err = put(g.fan); err == nil {
				err = g.writePages(ctx, &h.groups[i], h.crc, put, tell)
			}
		}
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// writeFile is writeTo for an empty file: one that can be written in two places at
// once spares a draft that spilled the second merge.
func (d *Draft) writeFile(ctx context.Context, f interface {
	io.Writer
	io.WriterAt
}, key shard.Key, gen uint64,
) error {
	if d.runs == nil {
		_, err := d.writeTo(ctx, f, key, gen)
		return err
	}
	h, b := d.headerOf(key, gen)
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	tell := d.teller()
	for i := range h.groups {
		g := &h.groups[i]
		if err := d.runs.writeGroup(ctx, &d.groups[i], g, h.crc, putAt(f, g.offset), putAt(f, g.pages), tell); err != nil {
			return err
		}
	}
	return nil
}

// putAt writes at an offset and on from there.
func putAt(w io.WriterAt, at uint64) func([]byte) error {
	return func(b []byte) error {
		n, err := w.WriteAt(b, int64(at))
		at += uint64(n)
		return err
	}
}

// teller returns what adds up the records that were written and tells of them.
func (d *Draft) teller() func(records int) {
	if d.told == nil {
		return func(int) {}
	}
	done := uint64(0)
	return func(records int) {
		done += uint64(records)
		d.told(done, d.head.records)
	}
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
func (d *draftGroup) writePages(ctx context.Context, g *group, headerCRC uint32, put func([]byte) error, tell func(records int)) error {
	const stretch = 1 << 10 // pages
	pageLen := int(g.pageLen())
	pages := int(g.numPages())
	buf := make([]byte, min(pages, stretch)*pageLen)
	for first := 0; first < pages; first += stretch {
		if err := ctx.Err(); err != nil {
			return err
		}
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
		tell(min(n*int(g.perPage), int(g.records)-first*int(g.perPage)))
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
