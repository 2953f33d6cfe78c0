package toplevel

import (
	"hash/crc32"
	"math/bits"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/dagstore/dagstore/internal/planted"
)

// A lookup asks a filter of each run, and must not wait for a disk to do so: filters, and
// the ends of buckets behind them, are on the heap, from the first lookup in their
// partition on. Where they may not take so much, those that were not used lately make room,
// and are read again when they are wanted: one read more for a lookup, and no wrong answer.

// filters bounds what the filters of an index's runs on disk take.
type filters struct {
	limit int64
	used  atomic.Int64
	loads atomic.Uint64

	mu    sync.Mutex
	parts []*part // that are kept, in the order of a clock's hand
	hand  int
}

// defaultFilterMemory is a quarter of what the process may take, if that is limited, or
// enough for some 10⁹ entries.
func defaultFilterMemory() int64 {
	const most = 1280 << 20
	return min(most, debug.SetMemoryLimit(-1)/4)
}

// keep has a partition of a run keep its filter, and others give way to it.
func (fs *filters) keep(r *diskRun, p *part, mem *byte) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n := p.headLen()
	if n > fs.limit || r.retired || p.mem.Load() != nil {
		return
	}
	for fs.used.Load()+n > fs.limit && len(fs.parts) > 0 {
		fs.hand %= len(fs.parts)
		if q := fs.parts[fs.hand]; q.used.Swap(false) {
			fs.hand++
		} else {
			fs.drop(q)
		}
	}
	p.used.Store(true)
	p.mem.Store(mem)
	p.slot = len(fs.parts)
	fs.parts = append(fs.parts, p)
	fs.used.Add(n)
}

// drop has a partition that keeps its filter forget it.
func (fs *filters) drop(p *part) {
	last := fs.parts[len(fs.parts)-1]
	fs.parts[p.slot], last.slot = last, p.slot
	fs.parts[len(fs.parts)-1] = nil
	fs.parts = fs.parts[:len(fs.parts)-1]
	p.mem.Store(nil)
	fs.used.Add(-p.headLen())
}

// retire has the partitions of a run that was merged keep nothing any more. A lookup that
// still goes on reads what it needs.
func (fs *filters) retire(r *diskRun) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	r.retired = true
	for i := range r.parts {
		if p := &r.parts[i]; r.file != nil && p.mem.Load() != nil {
			fs.drop(p)
		}
	}
}

// part is a partition that is open.
type part struct {
	partition
	// mem is where its filter and the ends of its buckets are in memory, after they were
	// checked; nil: they are not.
	mem  atomic.Pointer[byte]
	used atomic.Bool // since the hand came by
	slot int         // guarded by filters.mu

	mu      sync.Mutex
	loading *loading // somebody reads them
}

// loading is the reading of filter and ends, whose outcome others wait for.
type loading struct {
	done chan struct{}
	mem  *byte
	err  error
}

// headLen is how long filter and ends are.
func (p *partition) headLen() int64 { return int64(p.bucketsAt() - p.at) }

// ends returns the ends of the buckets.
func (p *part) ends(mem *byte) []byte {
	return unsafe.Slice(mem, p.headLen())[p.filterLen:]
}

// has asks the filter, which is in memory at mem, for the first half of a fingerprint, as
// xorfilter.BinaryFuse.Contains does, for which there would have to be a struct.
func (p *part) has(mem *byte, hi uint64) bool {
	h := hi + p.seed
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	at, _ := bits.Mul64(h, uint64(p.segment*p.segments))
	h0, mask := uint32(at), p.segment-1
	h1 := (h0 + p.segment) ^ uint32(h>>18)&mask
	h2 := (h0 + 2*p.segment) ^ uint32(h)&mask
	b := unsafe.Slice(mem, p.filterLen)
	return uint8(h^h>>32)^b[h0]^b[h1]^b[h2] == 0
}

// loadHead reads filter and ends of a partition that has entries, or waits for whoever does.
func (r *diskRun) loadHead(p *part) (*byte, error) {
	p.mu.Lock()
	if l := p.loading; l != nil {
		p.mu.Unlock()
		<-l.done
		return l.mem, l.err
	}
	if mem := p.mem.Load(); mem != nil {
		p.mu.Unlock()
		return mem, nil
	}
	l := &loading{done: make(chan struct{})}
	p.loading = l
	p.mu.Unlock()
	defer close(l.done)
	b, err := r.readHead(p, nil)
	switch {
	case err != nil:
		l.err = err
	case r.file == nil:
		l.mem = unsafe.SliceData(b)
		p.mem.Store(l.mem)
	default:
		l.mem = unsafe.SliceData(b)
		r.filters.loads.Add(1)
		r.filters.keep(r, p, l.mem)
	}
	p.mu.Lock()
	p.loading = nil
	p.mu.Unlock()
	return l.mem, l.err
}

// readHead reads filter and ends, into buf if they fit, and checks them.
func (r *diskRun) readHead(p *part, buf []byte) ([]byte, error) {
	b, err := r.readOnce(p.at, uint64(p.headLen()), buf)
	if err != nil {
		return nil, err
	}
	if crc32.Checksum(b, castagnoli) != p.crc && !planted.Bug("toplevel-filter-not-checked") {
		return nil, r.damaged(p.at, "checksum of a filter")
	}
	return b, nil
}
