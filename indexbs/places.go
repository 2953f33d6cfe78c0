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
// A newer block takes the slot of an older one. Entries that leave the cache take their
// numbers back; what a slot says of the next one that has it is wrong once.
type places struct {
	seed  maphash.Seed
	slots []atomic.Uint64 // a power of two; none: nothing is remembered
	open  []atomic.Pointer[entry]
	free  []uint16 // numbers; guarded by accessorCache.mu
}

// maxPlaces is how many entries may have numbers, from 1 on. The others are not hinted at.
const maxPlaces = 1 << 12

func (p *places) init(blocks int) {
	if blocks <= 0 {
		return
	}
	size := 1
	for size < blocks {
		size *= 2
	}
	p.seed, p.slots = maphash.MakeSeed(), make([]atomic.Uint64, size)
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
	if e.number == 0 || len(p.slots) == 0 {
		return
	}
	h := maphash.String(p.seed, m)
	slot, place := p.slot(h), h&^(maxPlaces-1)|uint64(e.number)
	if slot.Load() != place {
		slot.Store(place)
	}
}

func (p *places) slot(h uint64) *atomic.Uint64 { return &p.slots[h&uint64(len(p.slots)-1)] }

// of returns the entry that a block was found in, with one use more, or nil.
func (p *places) of(m string) *entry {
	if len(p.slots) == 0 {
		return nil
	}
	h := maphash.String(p.seed, m)
	place := p.slot(h).Load()
	if place&^(maxPlaces-1) != h&^(maxPlaces-1) {
		return nil
	}
	if e := p.open[place&(maxPlaces-1)].Load(); e != nil && e.retain() {
		return e
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
