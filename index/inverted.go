package index

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"runtime"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	ds "github.com/ipfs/go-datastore"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/shard"
)

// MemInverted is a top-level index in memory. It implements [Inverted] and
// [Remover].
//
// The multihashes of one ingest lie sorted in segments, digests only; a hash table of
// eight-byte slots points at them:
//
//	slot     16 tag | 28 segment + 1 | 20 position      0 empty, 1 deleted
//	segment  shard key, multihash prefix, digests of one length
//
// An entry takes its digest and 10 to 20 bytes of table, some 46 bytes for SHA2-256
// on average. A lookup compares digests only where the tag agrees. The table is cut
// into stripes that grow one by one, each under its own lock; a segment is freed
// after the last slot that names it, so whoever holds the stripe's lock may follow a
// slot. What an ingest adds becomes visible in one step.
type MemInverted struct {
	seed    maphash.Seed
	stripes [numStripes]stripe
	// segments is indexed by the slots. Elements are set before a slot names them.
	segments atomic.Pointer[[]*segment]

	writing sync.Mutex // one ingest or removal at a time; guards what follows
	shards  map[shard.Key][]uint32
	free    []uint32 // segment numbers to be used again
}

var (
	_ Inverted = (*MemInverted)(nil)
	_ Remover  = (*MemInverted)(nil)
)

const (
	numStripes = 256

	posBits     = 20
	segBits     = 28
	tagShift    = posBits + segBits
	segmentMax  = 1 << posBits // entries
	maxSegments = 1<<segBits - 1

	slotEmpty   = 0
	slotDeleted = 1 // no segment 0 in slots, so no clash
)

type stripe struct {
	mu    sync.RWMutex
	slots []uint64 // length a power of two
	used  int      // not empty
	live  int      // neither empty nor deleted
}

// segment holds up to segmentMax digests of one kind of multihash of one shard.
type segment struct {
	key     shard.Key
	head    string // multihash up to the digest
	width   int    // of a digest
	digests []byte // ascending
	salt    uint64 // hash of head
	visible *atomic.Bool
}

func (s *segment) digest(i int) []byte { return s.digests[i*s.width : (i+1)*s.width] }
func (s *segment) len() int {
	if s.width == 0 {
		return 1 // the identity of nothing; duplicates are gone
	}
	return len(s.digests) / s.width
}

// NewMemoryInverted returns an empty top-level index in memory.
func NewMemoryInverted() *MemInverted {
	v := &MemInverted{seed: maphash.MakeSeed(), shards: make(map[shard.Key][]uint32)}
	v.segments.Store(new([]*segment))
	return v
}

// AddMultihashesForShard implements [Inverted]. What it adds becomes visible as a
// whole, and nothing of it after an error.
func (v *MemInverted) AddMultihashesForShard(ctx context.Context, it MultihashIterator, key shard.Key) error {
	runs, err := v.collect(ctx, it)
	if err != nil {
		return fmt.Errorf("top-level index: shard %s: %w", key, err)
	}
	v.writing.Lock()
	defer v.writing.Unlock()
	visible := new(atomic.Bool)
	for _, s := range runs {
		s.key, s.visible = key, visible
		if len(v.shards[key]) > 0 {
			v.dropKnownLocked(s)
		}
	}
	var added []uint32
	for _, run := range runs {
		for _, s := range run.split() {
			n, err := v.insertLocked(s)
			if err != nil {
				v.removeLocked(added)
				return fmt.Errorf("top-level index: shard %s: %w", key, err)
			}
			added = append(added, n)
		}
	}
	if len(added) > 0 {
		v.shards[key] = append(v.shards[key], added...)
	}
	visible.Store(true)
	return nil
}

// collect copies the multihashes into one sorted run per kind, without duplicates.
func (v *MemInverted) collect(ctx context.Context, it MultihashIterator) ([]*segment, error) {
	var runs []*segment
	last := (*segment)(nil)
	n := 0
	err := it.ForEach(func(mh multihash.Multihash) error {
		if n++; n%4096 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		_, digest, ok := cids.Split(mh)
		if !ok {
			return fmt.Errorf("multihash %d is not one: %x", n, []byte(mh[:min(len(mh), 64)]))
		}
		head := mh[:len(mh)-len(digest)]
		if last == nil || last.head != string(head) {
			i := slices.IndexFunc(runs, func(s *segment) bool { return s.head == string(head) })
			if i < 0 {
				i = len(runs)
				runs = append(runs, &segment{head: string(head), width: len(digest), salt: maphash.Bytes(v.seed, head)})
			}
			last = runs[i]
		}
		last.digests = append(last.digests, digest...)
		return nil
	})
	if err == nil {
		err = ctx.Err()
	}
	for _, s := range runs {
		s.sort()
	}
	return runs, err
}

// digestSorter sorts fixed-width digests in place.
type digestSorter struct {
	*segment
	tmp []byte
}

func (d digestSorter) Len() int           { return d.len() }
func (d digestSorter) Less(i, j int) bool { return bytes.Compare(d.digest(i), d.digest(j)) < 0 }
func (d digestSorter) Swap(i, j int) {
	copy(d.tmp, d.digest(i))
	copy(d.digest(i), d.digest(j))
	copy(d.digest(j), d.tmp)
}

// sort sorts the digests and removes duplicates. Shard indices deliver them sorted,
// which costs one pass.
func (s *segment) sort() {
	if d := (digestSorter{s, make([]byte, s.width)}); !sort.IsSorted(d) {
		sort.Sort(d)
	}
	var last []byte
	s.keep(func(digest []byte) bool {
		dup := last != nil && bytes.Equal(last, digest)
		last = digest
		return !dup
	})
}

// keep retains the digests that want wants.
func (s *segment) keep(want func(digest []byte) bool) {
	if s.width == 0 {
		return
	}
	kept := 0
	for i := range s.len() {
		if d := s.digest(i); want(d) {
			if kept != i {
				copy(s.digest(kept), d)
			}
			kept++
		}
	}
	s.digests = s.digests[:kept*s.width]
}

// split cuts a run into segments of legal length, each in memory of its own size.
func (s *segment) split() []*segment {
	if s.width == 0 {
		return []*segment{s}
	}
	var out []*segment
	for rest := s.digests; len(rest) > 0; {
		n := min(len(rest), segmentMax*s.width)
		part := *s
		part.digests = bytes.Clone(rest[:n])
		out = append(out, &part)
		rest = rest[n:]
	}
	return out
}

// dropKnownLocked removes from s what its shard holds already.
func (v *MemInverted) dropKnownLocked(s *segment) {
	known := func(digest []byte) bool {
		found := false
		v.each(s.salt, []byte(s.head), digest, func(o *segment) {
			found = found || o.key == s.key
		})
		return found
	}
	if s.width == 0 && known(nil) {
		s.width = 1 // and no digest: nothing is left
		return
	}
	s.keep(func(digest []byte) bool { return !known(digest) })
}

func (v *MemInverted) hash(salt uint64, digest []byte) uint64 {
	return maphash.Bytes(v.seed, digest) ^ salt
}

func (v *MemInverted) stripeOf(hash uint64) *stripe { return &v.stripes[hash>>56] }

// slotOf returns the slot value of an entry.
func slotOf(hash uint64, seg uint32, pos int) uint64 {
	return hash>>40<<tagShift | uint64(seg+1)<<posBits | uint64(pos)
}

func slotParts(slot uint64) (seg uint32, pos int) {
	return uint32(slot>>posBits)&maxSegments - 1, int(slot & (segmentMax - 1))
}

// insertLocked gives s a number and its entries slots.
func (v *MemInverted) insertLocked(s *segment) (uint32, error) {
	segs := *v.segments.Load()
	var n uint32
	if k := len(v.free); k > 0 {
		n = v.free[k-1]
		v.free = v.free[:k-1]
		segs[n] = s
	} else {
		if len(segs) >= maxSegments-1 {
			return 0, fmt.Errorf("more than %d segments", maxSegments)
		}
		n = uint32(len(segs))
		segs = append(segs, s)
		v.segments.Store(&segs)
	}
	v.insertEntries(s, n)
	return n, nil
}

// insertEntries gives the entries of segment number n slots, stripe by stripe: the
// slots of one stripe stay in the cache, and the stripes are spread over the cores.
func (v *MemInverted) insertEntries(s *segment, n uint32) {
	hashes := make([]uint64, s.len())
	parallel(len(hashes), func(from, to int) {
		for i := from; i < to; i++ {
			hashes[i] = v.hash(s.salt, s.digest(i))
		}
	})
	var starts [numStripes + 1]int
	for _, h := range hashes {
		starts[h>>56+1]++
	}
	for i := range numStripes {
		starts[i+1] += starts[i]
	}
	order, next := make([]uint32, len(hashes)), starts
	for i, h := range hashes {
		order[next[h>>56]] = uint32(i)
		next[h>>56]++
	}
	workers := min(runtime.GOMAXPROCS(0), len(hashes)/4096+1)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for k := w; k < numStripes; k += workers {
				v.insertInto(&v.stripes[k], order[starts[k]:starts[k+1]], hashes, n)
			}
		})
	}
	wg.Wait()
}

// insertInto inserts some entries of segment number n, all of one stripe.
func (v *MemInverted) insertInto(st *stripe, entries []uint32, hashes []uint64, n uint32) {
	if len(entries) == 0 {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if (st.used+len(entries))*5 > len(st.slots)*4 {
		v.rehashLocked(st, len(entries))
	}
	for _, i := range entries {
		st.insertLocked(hashes[i], slotOf(hashes[i], n, int(i)))
	}
}

func (st *stripe) insertLocked(hash, slot uint64) {
	mask := uint64(len(st.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		if old := st.slots[i]; old <= slotDeleted {
			st.slots[i] = slot
			st.live++
			if old == slotEmpty {
				st.used++
			}
			return
		}
	}
}

// rehashLocked makes room for some more entries in a stripe: more if it is full, or
// what is deleted.
func (v *MemInverted) rehashLocked(st *stripe, more int) {
	size := max(len(st.slots), 8)
	for (st.live+more)*5 > size*3 {
		size *= 2
	}
	old := st.slots
	st.slots, st.used, st.live = make([]uint64, size), 0, 0
	segs := *v.segments.Load()
	for _, slot := range old {
		if slot > slotDeleted {
			seg, pos := slotParts(slot)
			s := segs[seg]
			st.insertLocked(v.hash(s.salt, s.digest(pos)), slot)
		}
	}
}

// each calls visit with every segment that holds a digest, visible or not. The
// visitor must be quick: it runs under a lock.
func (v *MemInverted) each(salt uint64, head, digest []byte, visit func(*segment)) {
	h := v.hash(salt, digest)
	st := v.stripeOf(h)
	st.mu.RLock()
	defer st.mu.RUnlock()
	if len(st.slots) == 0 {
		return
	}
	segs := *v.segments.Load()
	mask := uint64(len(st.slots) - 1)
	tag := h >> 40 & 0xffff
	for i := h & mask; st.slots[i] != slotEmpty; i = (i + 1) & mask {
		slot := st.slots[i]
		if slot == slotDeleted || slot>>tagShift != tag {
			continue
		}
		seg, pos := slotParts(slot)
		if s := segs[seg]; s.width == len(digest) && s.head == string(head) && bytes.Equal(s.digest(pos), digest) {
			visit(s)
		}
	}
}

// GetShardsForMultihash implements [Inverted].
func (v *MemInverted) GetShardsForMultihash(ctx context.Context, h multihash.Multihash) ([]shard.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	_, digest, ok := cids.Split(h)
	if !ok {
		return nil, fmt.Errorf("top-level index: not a multihash: %x", []byte(h[:min(len(h), 64)]))
	}
	head := h[:len(h)-len(digest)]
	var keys []shard.Key
	v.each(maphash.Bytes(v.seed, head), head, digest, func(s *segment) {
		if s.visible.Load() && !slices.Contains(keys, s.key) {
			keys = append(keys, s.key)
		}
	})
	if len(keys) == 0 {
		return nil, &noShardError{string(h)}
	}
	return keys, nil
}

// noShardError says that no shard holds a multihash. It is put into words only when
// somebody reads it: most questions end this way.
type noShardError struct{ mh string }

func (e *noShardError) Error() string {
	return fmt.Sprintf("top-level index: multihash %x: %v", e.mh, ds.ErrNotFound)
}

func (e *noShardError) Unwrap() error { return ds.ErrNotFound }

// RemoveShard implements [Remover].
func (v *MemInverted) RemoveShard(_ context.Context, key shard.Key) error {
	v.writing.Lock()
	defer v.writing.Unlock()
	v.removeLocked(v.shards[key])
	delete(v.shards, key)
	return nil
}

// removeLocked hides segments, deletes their slots, then frees their numbers.
func (v *MemInverted) removeLocked(numbers []uint32) {
	segs := *v.segments.Load()
	for _, n := range numbers {
		segs[n].visible.Store(false)
	}
	for _, n := range numbers {
		s := segs[n]
		for i := range s.len() {
			h := v.hash(s.salt, s.digest(i))
			v.stripeOf(h).remove(h, slotOf(h, n, i))
		}
		segs[n] = nil
		v.free = append(v.free, n)
	}
}

func (st *stripe) remove(hash, slot uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	mask := uint64(len(st.slots) - 1)
	i := hash & mask
	for st.slots[i] != slot { // it is there: only whole segments are removed
		i = (i + 1) & mask
	}
	st.slots[i] = slotDeleted
	st.live--
	if st.live == 0 {
		st.slots, st.used = nil, 0
	}
}
