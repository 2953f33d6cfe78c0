package projection

import (
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/dagstore/dagstore/shard"
)

// change is an event as its record, and the hash of its key. Life None ends a life.
type change struct {
	hash uint64
	rec  Record
}

// loadWorker merges chunks of changes into the trie.
type loadWorker struct {
	writer
	n      [8]int // what is added to the count of records by life
	queue  chan chunk
	limit  uint64      // of the seqs in a base; 0 for events
	event  shard.Event // what checkNext needs of one
	err    error       // of the change with the lowest seq
	errSeq uint64

	changes, sorted []change
	slots           []slot
}

func (w *loadWorker) run(l *loader) {
	for c := range w.queue {
		w.fold(c, l)
		if cap(c.data) >= min(loadChunk, l.likely) && cap(c.data) <= 2*loadChunk {
			select {
			case l.free <- c.data[:0]:
			default:
			}
		}
		l.pending.Done()
	}
}

// fold merges a chunk. One change that cannot follow is left out, and then the load
// fails; the others are merged all the same, so that the error is of the first.
func (w *loadWorker) fold(c chunk, l *loader) {
	// The chunk's memory is used again: what stays of it is copied.
	text := unsafe.String(unsafe.SliceData(c.data), len(c.data))
	w.limit, w.changes = c.limit, w.changes[:0]
	for len(text) > 0 {
		n := chunkHeader + int(le32(text[8:]))
		w.changes = append(w.changes, change{le64(text), Record{text[chunkHeader:n]}})
		text = text[n:]
	}
	w.sort()
	for part, run := range runs(w.changes, 64-rootBits) {
		w.root[part], _ = w.merge(w.root[part], firstShift, run)
	}
	if w.err != nil {
		l.failed.Store(true)
	}
}

// sort puts changes in the order of (hash, key), and those of a key in the order in
// which they came.
func (w *loadWorker) sort() {
	// Two passes by 8 bits of the hash, the first 8 of which are mostly the same, leave
	// little to do.
	const next = 64 - 2*rootBits
	w.sorted = slices.Grow(w.sorted[:0], len(w.changes))[:len(w.changes)]
	for _, shift := range [...]int{next, next + rootBits} {
		var at [1 << rootBits]int
		for i := range w.changes {
			at[w.changes[i].hash>>shift%(1<<rootBits)]++
		}
		sum := 0
		for b, n := range at {
			at[b] = sum
			sum += n
		}
		for i := range w.changes {
			b := w.changes[i].hash >> shift % (1 << rootBits)
			w.sorted[at[b]] = w.changes[i]
			at[b]++
		}
		w.changes, w.sorted = w.sorted, w.changes
	}
	for _, run := range runs(w.changes, next) {
		if len(run) > 1 {
			slices.SortStableFunc(run, func(a, b change) int {
				s := slot(a)
				return s.compare(b.hash, b.rec.key())
			})
		}
	}
}

// runs iterates over the longest runs of changes with the same hash>>shift.
func runs(changes []change, shift int) func(yield func(uint64, []change) bool) {
	return func(yield func(uint64, []change) bool) {
		for len(changes) > 0 {
			bits, to := changes[0].hash>>shift, 1
			for to < len(changes) && changes[to].hash>>shift == bits {
				to++
			}
			if !yield(bits, changes[:to]) {
				return
			}
			changes = changes[to:]
		}
	}
}

// merge returns n after sorted changes, and how many slots that adds.
func (w *loadWorker) merge(n *node, shift int, changes []change) (_ *node, added int) {
	if n == nil {
		n = new(node)
	}
	if n.kids == nil {
		w.slots = w.mergeLeaf(n.slots, w.slots[:0], changes)
		added = len(w.slots) - len(n.slots)
		return w.build(w.slots, shift), added
	}
	n = w.ownInner(n)
	for bits, run := range runs(changes, shift) {
		kid := &n.kids[bits%numKids]
		var more int
		*kid, more = w.merge(*kid, shift-kidBits, run)
		added += more
	}
	if n.count += added; n.count <= minInner {
		return w.flatten(n), added
	}
	return n, added
}

// mergeLeaf appends what becomes of a leaf's slots to out.
func (w *loadWorker) mergeLeaf(old, out []slot, changes []change) []slot {
	for len(changes) > 0 {
		first := slot(changes[0])
		key := first.rec.key()
		at := 0
		for at < len(old) && old[at].compare(first.hash, key) < 0 {
			at++
		}
		out = append(out, old[:at]...)
		old = old[at:]
		var prev, now *Record
		if len(old) > 0 && old[0].compare(first.hash, key) == 0 {
			prev = &old[0].rec
			old = old[1:]
		}
		now = prev
		for len(changes) > 0 && changes[0].hash == first.hash && changes[0].rec.key() == key {
			now = w.after(now, &changes[0].rec)
			changes = changes[1:]
		}
		switch {
		case now == nil:
		case now == prev:
			out = append(out, slot{first.hash, *prev})
		default:
			out = append(out, slot{first.hash, Record{strings.Clone(now.text)}})
		}
	}
	return append(out, old...)
}

// after returns the record of a key after a change; nil is none.
func (w *loadWorker) after(prev, rec *Record) *Record {
	if err := w.check(prev, rec); err != nil {
		if w.err == nil || rec.Seq() < w.errSeq {
			w.err, w.errSeq = err, rec.Seq()
		}
		return prev
	}
	if prev != nil {
		w.n[prev.Life()]--
	}
	if rec.Life() == shard.None {
		return nil
	}
	w.n[rec.Life()]++
	return rec
}

func (w *loadWorker) check(prev, rec *Record) error {
	if w.limit == 0 {
		e := &w.event
		e.Seq, e.Gen, e.Key, e.State.Life = rec.Seq(), rec.Gen(), rec.Key(), rec.Life()
		e.Kind = kindOf(e.State.Life)
		return checkNext(prev, e)
	}
	if prev != nil || rec.Life() == shard.None || rec.Gen() == 0 || rec.Gen() > rec.Seq() || rec.Seq() > w.limit {
		return fmt.Errorf("%w: base: shard %q: seq %d, generation %d, %s, known already: %t",
			shard.ErrBadEvent, rec.key(), rec.Seq(), rec.Gen(), rec.Life(), prev != nil)
	}
	return nil
}
