package indexbs

import (
	"hash/maphash"
	"sync/atomic"
)

// places remembers in which open shard a block was found, so that a block that is read
// often is not looked up each time: that takes as long as a quarter of a read from
// memory, or more. It is a hint and never wrong: the shard's own index says whether the
// block is there, and its bytes are checked. Whatever fails is looked up.
//
//	slot = the upper 52 bits of the multihash's hash ‖ 12 bits number of the entry
//
// A block may be in any slot of its bucket, which is a cache line; if all are taken it
// takes one that belongs to another. Entries that leave the cache take their numbers
// back; what a slot says of the next one that has it is wrong once.
type places struct {
	seed    maphash.Seed
	buckets []bucket // a power of two; none: nothing is remembered
	open    []atomic.Pointer[entry]
	free    []uint16 // numbers; guarded by accessorCache.mu
}

type bucket [8]atomic.Uint64

// maxPlaces is how many entries may have numbers, from 1 on. The others are not hinted at.
const maxPlaces = 1 << 12

func (p *places) init(blocks int) {
	if blocks <= 0 {
		return
	}
	n := 1
	for n*len(bucket{}) < blocks {
		n *= 2
	}
	p.seed, p.buckets = maphash.MakeSeed(), make([]bucket, n)
	p.open = make([]atomic.Pointer[entry], maxPlaces)
	for n := maxPlaces - 1; n > 0; n-- {
		p.free = append(p.free, uint16(n))
	}
}

// addLocked gives an entry a number, if there is one.
func (p *places) addLocked(e *entry) {
	if n := len(p.free); n > 0 {
		e.number, p.free = p.free[n-1], p.free[:n-1]
		p.open[e.number].Store(e)
	}
}

// removeLocked takes the number back. Who has the entry in hand may note it once more.
func (p *places) removeLocked(e *entry) {
	if e.number > 0 {
		p.open[e.number].Store(nil)
		p.free = append(p.free, e.number)
	}
}

// note remembers that a block is in an entry's shard.
func (p *places) note(m string, e *entry) {
	if e.number == 0 || len(p.buckets) == 0 {
		return
	}
	h := maphash.String(p.seed, m)
	b, tag := p.bucket(h)
	to := &b[tag>>61] // by bits that the bucket was not chosen by
	for i := range b {
		place := b[i].Load()
		if place&^numbers == tag {
			to = &b[i]
			break
		}
		if place == 0 {
			to = &b[i]
		}
	}
	if place := tag | uint64(e.number); to.Load() != place {
		to.Store(place)
	}
}

// bucket returns the bucket of a block and the upper bits of its slot.
func (p *places) bucket(h uint64) (b *bucket, tag uint64) {
	return &p.buckets[h&uint64(len(p.buckets)-1)], h &^ numbers
}

// numbers are the bits of a slot that are the number.
const numbers = maxPlaces - 1

// of returns the entry that a block was found in, with one use more, or nil.
func (p *places) of(m string) *entry {
	if len(p.buckets) == 0 {
		return nil
	}
	b, tag := p.bucket(maphash.String(p.seed, m))
	for i := range b {
		place := b[i].Load()
		if place&^numbers != tag {
			continue
		}
		if e := p.open[place&numbers].Load(); e != nil && e.retain() {
			return e
		}
		return nil
	}
	return nil
}

// retain counts one use more, unless the entry is closed.
func (e *entry) retain() bool {
	for {
		n := e.refs.Load()
		if n == 0 {
			return false
		}
		if e.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}
