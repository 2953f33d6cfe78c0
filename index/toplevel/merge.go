package toplevel

import (
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"

	"github.com/FastFilter/xorfilter"

	"github.com/dagstore/dagstore/internal/fsio"
)

// merger reads runs as one.
type merger struct {
	cursors []cursor
	numbers [][]uint32 // per run: the new number of each ingest
	ingests []record   // of all runs, those that are live, sorted; entries are counted anew
	total   uint64     // entries at most
	buf     []entry
	spare   []entry
	ends    []int
}

// newMerger prepares to read srcs without the ingests that are not alive. It holds all
// ingests in memory, some hundred bytes each.
func newMerger(srcs []source, alive func(*record) bool) (*merger, error) {
	type place struct {
		record
		src, at int
	}
	var all []place
	m := &merger{}
	for i, s := range srcs {
		recs, err := s.records()
		if err != nil {
			return nil, err
		}
		m.total += s.len()
		m.cursors = append(m.cursors, s.read())
		m.numbers = append(m.numbers, make([]uint32, len(recs)))
		for j := range recs {
			all = append(all, place{recs[j], i, j})
		}
	}
	slices.SortFunc(all, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.gen, b.gen), cmp.Compare(a.tag, b.tag), cmp.Compare(a.key, b.key))
	})
	live := false
	for i := range all {
		p := &all[i]
		if i == 0 || p.gen != all[i-1].gen || p.tag != all[i-1].tag || p.key != all[i-1].key {
			if live = alive(&p.record); live {
				rec := p.record
				rec.entries = 0
				m.ingests = append(m.ingests, rec)
			}
		} else if live && p.whole {
			m.ingests[len(m.ingests)-1].whole = true
		}
		m.numbers[p.src][p.at] = dropped
		if live {
			m.numbers[p.src][p.at] = uint32(len(m.ingests) - 1)
		}
	}
	return m, nil
}

// next returns the entries up to fingerprints that begin with last, sorted and without
// duplicates, until it is called again.
func (m *merger) next(last uint64) ([]entry, error) {
	m.buf, m.ends = m.buf[:0], m.ends[:0]
	for i, c := range m.cursors {
		var err error
		if m.buf, err = c.next(last, m.numbers[i], m.buf); err != nil {
			return nil, err
		}
		m.ends = append(m.ends, len(m.buf))
	}
	m.buf, m.spare = mergeSorted(m.buf, m.spare, m.ends)
	for i := range m.buf {
		if n := &m.ingests[m.buf[i].ingest].entries; *n < math.MaxUint32 {
			*n++
		}
	}
	return m.buf, nil
}

// mergeInMemory merges runs in memory into one.
func mergeInMemory(runs []*memRun, alive func(*record) bool) *memRun {
	srcs := make([]source, len(runs))
	for i, r := range runs {
		srcs[i] = r
	}
	m, err := newMerger(srcs, alive)
	if err != nil {
		panic(err) // nothing is read
	}
	es, err := m.next(math.MaxUint64)
	if err != nil {
		panic(err)
	}
	return newMemRun(slices.Clone(es), m.ingests)
}

// runWriter writes a run partition by partition.
type runWriter struct {
	f       fsio.File
	at      uint64
	width   int
	bits    uint32 // P
	entries uint64
	dir     []byte
	block   []byte
	header  uint32
	builder xorfilter.BinaryFuseBuilder
	keys    []uint64
}

// writeRun merges srcs into the file that f becomes. step is called after each
// partition with the bytes written and ends the merge with its error.
func writeRun(f fsio.File, m *merger, epoch uint32, id uint64, step func(n int) error) (*footer, error) {
	w := &runWriter{f: f, width: width(uint64(len(m.ingests))), bits: partBits(m.total)}
	h := encodeHeader(epoch, id)
	w.header = binary.LittleEndian.Uint32(h[headerLen-crcLen:])
	if err := w.write(h); err != nil {
		return nil, err
	}
	for p := range uint64(1) << w.bits {
		es, err := m.next(lastOf(p, w.bits))
		if err != nil {
			return nil, err
		}
		if err := w.partition(es); err != nil {
			return nil, err
		}
		if err := step(len(w.block)); err != nil {
			return nil, err
		}
	}
	return w.finish(m.ingests)
}

// lastOf is the greatest first half of a fingerprint in partition p.
func lastOf(p uint64, partBits uint32) uint64 {
	return (p+1)<<(63-partBits)<<1 - 1
}

func (w *runWriter) write(b []byte) error {
	_, err := w.f.Write(b)
	w.at += uint64(len(b))
	return err
}

// partition writes the next partition.
func (w *runWriter) partition(es []entry) error {
	p := partition{at: w.at, entries: uint32(len(es)), bits: bucketBits(len(es))}
	w.entries += uint64(len(es))
	b := w.block[:0]
	if len(es) > 0 {
		if len(es) >= filterLeast {
			w.keys = slices.Grow(w.keys[:0], len(es))
			if fuse := buildFilter(es, &w.builder, w.keys); fuse != nil {
				p.seed, p.segment, p.segments, p.filterLen = fuse.Seed, fuse.SegmentLength, fuse.SegmentCount, uint32(len(fuse.Fingerprints))
				b = append(b, fuse.Fingerprints...)
			}
		}
		b = w.buckets(b, &p, es)
		p.crc = crc32.Checksum(b[:p.bucketsAt()-p.at], castagnoli)
	}
	w.block = b
	w.dir = p.append(w.dir)
	return w.write(b)
}

// buckets appends the ends and the buckets of a partition.
func (w *runWriter) buckets(b []byte, p *partition, es []entry) []byte {
	le := binary.LittleEndian
	n := 1 << p.bits
	ends := len(b)
	b = slices.Grow(b, n*8+len(es)*(digestPart+w.width))
	b = b[:ends+n*4]
	i := 0
	for bucket := range uint64(n) {
		from := len(b)
		for ; i < len(es) && bucketOf(es[i].hi, w.bits, p.bits) == bucket; i++ {
			e := &es[i]
			b = le.AppendUint64(b, e.hi)
			b = le.AppendUint32(b, e.lo)
			b = le.AppendUint32(b, e.ingest)
			b = b[:len(b)-4+w.width]
		}
		le.PutUint32(b[ends+4*int(bucket):], uint32(i))
		b = le.AppendUint32(b, crc32.Update(bucketSeed(p.at+uint64(from)), castagnoli, b[from:]))
	}
	return b
}

// finish writes what follows the partitions.
func (w *runWriter) finish(ingests []record) (*footer, error) {
	f := &footer{
		entries: w.entries, ingests: uint64(len(ingests)), ingestsAt: w.at,
		partBits: w.bits, width: uint32(w.width), dirCRC: crc32.Checksum(w.dir, castagnoli), header: w.header,
	}
	b := w.block[:0]
	flush := func() error {
		f.ingestsCRC = crc32.Update(f.ingestsCRC, castagnoli, b)
		err := w.write(b)
		b = b[:0]
		return err
	}
	for i := range ingests {
		b = appendIngest(b, &ingests[i], f.keysLen)
		f.keysLen += uint64(len(ingests[i].key))
		if len(b) >= 1<<20 {
			if err := flush(); err != nil {
				return nil, err
			}
		}
	}
	for i := range ingests {
		b = append(b, ingests[i].key...)
		if len(b) >= 1<<20 {
			if err := flush(); err != nil {
				return nil, err
			}
		}
	}
	if err := flush(); err != nil {
		return nil, err
	}
	f.dirAt = w.at
	if err := w.write(w.dir); err != nil {
		return nil, err
	}
	return f, w.write(f.encode())
}
