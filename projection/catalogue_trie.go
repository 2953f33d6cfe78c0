package projection

import "strings"

// The catalogue's records are in a trie of the hashes of their keys, which spreads any
// set of keys evenly:
//
//	root   256 nodes by the first 8 bits of the hash
//	inner  16 nodes by the next 4 bits
//	leaf   up to maxLeaf slots in the order of (hash, key)
//
// so a walk goes in the order of (hash, key), whatever the course of events was. At
// 1,000,000 shards there are two levels of inner nodes, and 15 slots in a leaf. Leaves
// whose hash is used up, which needs keys made for it, may be of any length.
//
// The trie is persistent. A node is changed in place only by the writer of the epoch
// that made it, which is over when the root is published; older nodes are copied
// first. So publishing is handing out a root, and costs a copy of it.
type root [1 << rootBits]*node

const (
	rootBits = 8
	kidBits  = 4
	numKids  = 1 << kidBits
	// firstShift brings the bits below those of the root down.
	firstShift = 64 - rootBits - kidBits

	// maxLeaf is how many slots a leaf has before it is split.
	maxLeaf = 30
	// minInner is what an inner node comes to before it is made a leaf. Far below
	// maxLeaf, so that shards that come and go do not have it made and split in turn.
	minInner = 12
)

// node is an inner node or a leaf. Either is the front of one allocation, which the
// slice or the pointer here leads into.
type node struct {
	epoch uint64          // who may change it
	kids  *[numKids]*node // nil in a leaf
	count int             // of the slots below an inner node
	slots []slot          // of a leaf, never empty
}

// slot is a record with the hash of its key, so that a search follows one pointer,
// that of the record it finds.
type slot struct {
	hash uint64
	rec  Record
}

// compare orders slots by (hash, key).
func (s *slot) compare(hash uint64, key string) int {
	switch {
	case s.hash < hash:
		return -1
	case s.hash > hash:
		return 1
	}
	return strings.Compare(s.rec.key(), key)
}

// search returns the place of a key in a leaf, or where it belongs.
func (n *node) search(hash uint64, key string) (i int, found bool) {
	for i = range n.slots {
		if n.slots[i].hash < hash {
			continue
		}
		if c := n.slots[i].compare(hash, key); c >= 0 {
			return i, c == 0
		}
	}
	return len(n.slots), false
}

// find returns the record of a key, or nil. It lies in a leaf and keeps that, and the
// texts of its records, in memory.
func (r *root) find(hash uint64, key string) *Record {
	n := r[hash>>(64-rootBits)]
	for shift := firstShift; n != nil; shift -= kidBits {
		if n.kids == nil {
			if i, ok := n.search(hash, key); ok {
				return &n.slots[i].rec
			}
			return nil
		}
		n = n.kids[hash>>shift%numKids]
	}
	return nil
}

// walk visits the slots of n in order until visit returns false.
func (n *node) walk(visit func(*slot) bool) bool {
	if n == nil {
		return true
	}
	for i := range n.slots {
		if !visit(&n.slots[i]) {
			return false
		}
	}
	if n.kids != nil {
		for _, kid := range n.kids {
			if !kid.walk(visit) {
				return false
			}
		}
	}
	return true
}

// walkFrom is walk for the slots behind (hash, key). shift brings the bits that tell
// the kids of n apart down.
func (n *node) walkFrom(shift int, hash uint64, key string, visit func(*slot) bool) bool {
	if n == nil {
		return true
	}
	for i := range n.slots {
		if s := &n.slots[i]; s.compare(hash, key) > 0 && !visit(s) {
			return false
		}
	}
	if n.kids == nil {
		return true
	}
	first := int(hash >> shift % numKids)
	if !n.kids[first].walkFrom(shift-kidBits, hash, key, visit) {
		return false
	}
	for _, kid := range n.kids[first+1:] {
		if !kid.walk(visit) {
			return false
		}
	}
	return true
}

// writer changes a trie that is not published yet.
type writer struct {
	epoch uint64
	root  *root
}

// put sets the record of a key.
func (w *writer) put(hash uint64, rec Record) {
	n := &w.root[hash>>(64-rootBits)]
	*n, _ = w.putIn(*n, firstShift, slot{hash, rec})
}

func (w *writer) putIn(n *node, shift int, s slot) (_ *node, added bool) {
	switch {
	case n == nil:
		n = w.newLeaf(1)
		n.slots[0] = s
		return n, true
	case n.kids == nil:
		i, found := n.search(s.hash, s.rec.key())
		if found {
			n = w.ownLeaf(n)
			n.slots[i] = s
			return n, false
		}
		if len(n.slots) < maxLeaf || shift < 0 {
			return w.insert(n, i, s), true
		}
		n = w.split(n.slots, shift)
	default:
		n = w.ownInner(n)
	}
	kid := &n.kids[s.hash>>shift%numKids]
	if *kid, added = w.putIn(*kid, shift-kidBits, s); added {
		n.count++
	}
	return n, added
}

// remove takes away the record of a key that is there.
func (w *writer) remove(hash uint64, key string) {
	n := &w.root[hash>>(64-rootBits)]
	*n = w.removeFrom(*n, firstShift, hash, key)
}

func (w *writer) removeFrom(n *node, shift int, hash uint64, key string) *node {
	if n.kids == nil {
		i, _ := n.search(hash, key)
		return w.cut(n, i)
	}
	n = w.ownInner(n)
	kid := &n.kids[hash>>shift%numKids]
	*kid = w.removeFrom(*kid, shift-kidBits, hash, key)
	if n.count--; n.count > minInner {
		return n
	}
	return w.flatten(n)
}

// flatten returns an inner node as a leaf.
func (w *writer) flatten(n *node) *node {
	if n.count == 0 {
		return nil
	}
	leaf := w.newLeaf(n.count)
	i := 0
	n.walk(func(s *slot) bool { leaf.slots[i] = *s; i++; return true })
	return leaf
}

// build makes the node of slots that are in order. It copies them.
func (w *writer) build(slots []slot, shift int) *node {
	if len(slots) == 0 {
		return nil
	}
	if len(slots) <= maxLeaf || shift < 0 {
		n := w.newLeaf(len(slots))
		copy(n.slots, slots)
		return n
	}
	return w.split(slots, shift)
}

// split makes the inner node of slots that are in order.
func (w *writer) split(slots []slot, shift int) *node {
	n := w.newInner()
	n.count = len(slots)
	for len(slots) > 0 {
		kid := slots[0].hash >> shift % numKids
		to := 1
		for to < len(slots) && slots[to].hash>>shift%numKids == kid {
			to++
		}
		n.kids[kid] = w.build(slots[:to], shift-kidBits)
		slots = slots[to:]
	}
	return n
}

// insert puts s at place i of a leaf.
func (w *writer) insert(n *node, i int, s slot) *node {
	m := n
	if n.epoch == w.epoch && len(n.slots) < cap(n.slots) {
		m.slots = n.slots[:len(n.slots)+1]
		copy(m.slots[i+1:], m.slots[i:])
	} else {
		m = w.newLeaf(len(n.slots) + 1)
		copy(m.slots, n.slots[:i])
		copy(m.slots[i+1:], n.slots[i:])
	}
	m.slots[i] = s
	return m
}

// cut takes the slot at place i out of a leaf.
func (w *writer) cut(n *node, i int) *node {
	if len(n.slots) == 1 {
		return nil
	}
	m := w.newLeaf(len(n.slots) - 1)
	copy(m.slots, n.slots[:i])
	copy(m.slots[i:], n.slots[i+1:])
	return m
}

func (w *writer) ownLeaf(n *node) *node {
	if n.epoch == w.epoch {
		return n
	}
	m := w.newLeaf(len(n.slots))
	copy(m.slots, n.slots)
	return m
}

func (w *writer) ownInner(n *node) *node {
	if n.epoch == w.epoch {
		return n
	}
	m := w.newInner()
	m.count = n.count
	*m.kids = *n.kids
	return m
}

type inner struct {
	node
	array [numKids]*node
}

func (w *writer) newInner() *node {
	n := &inner{node: node{epoch: w.epoch}}
	n.kids = &n.array
	return &n.node
}

// The lengths of leaves are those that fill a size class of the allocator, or nearly:
// 56 B for the node and 24 B a slot.
type (
	leaf1 struct {
		node
		array [1]slot
	}
	leaf2 struct {
		node
		array [2]slot
	}
	leaf4 struct {
		node
		array [4]slot
	}
	leaf6 struct {
		node
		array [6]slot
	}
	leaf8 struct {
		node
		array [8]slot
	}
	leaf10 struct {
		node
		array [10]slot
	}
	leaf12 struct {
		node
		array [12]slot
	}
	leaf13 struct {
		node
		array [13]slot
	}
	leaf15 struct {
		node
		array [15]slot
	}
	leaf16 struct {
		node
		array [16]slot
	}
	leaf17 struct {
		node
		array [17]slot
	}
	leaf19 struct {
		node
		array [19]slot
	}
	leaf21 struct {
		node
		array [21]slot
	}
	leaf24 struct {
		node
		array [24]slot
	}
	leaf26 struct {
		node
		array [26]slot
	}
	leaf30 struct {
		node
		array [30]slot
	}
)

// newLeaf returns a leaf of n empty slots, with room for few more.
func (w *writer) newLeaf(n int) *node {
	var l *node
	var array []slot
	switch {
	case n <= 1:
		x := new(leaf1)
		l, array = &x.node, x.array[:]
	case n <= 2:
		x := new(leaf2)
		l, array = &x.node, x.array[:]
	case n <= 4:
		x := new(leaf4)
		l, array = &x.node, x.array[:]
	case n <= 6:
		x := new(leaf6)
		l, array = &x.node, x.array[:]
	case n <= 8:
		x := new(leaf8)
		l, array = &x.node, x.array[:]
	case n <= 10:
		x := new(leaf10)
		l, array = &x.node, x.array[:]
	case n <= 12:
		x := new(leaf12)
		l, array = &x.node, x.array[:]
	case n <= 13:
		x := new(leaf13)
		l, array = &x.node, x.array[:]
	case n <= 15:
		x := new(leaf15)
		l, array = &x.node, x.array[:]
	case n <= 16:
		x := new(leaf16)
		l, array = &x.node, x.array[:]
	case n <= 17:
		x := new(leaf17)
		l, array = &x.node, x.array[:]
	case n <= 19:
		x := new(leaf19)
		l, array = &x.node, x.array[:]
	case n <= 21:
		x := new(leaf21)
		l, array = &x.node, x.array[:]
	case n <= 24:
		x := new(leaf24)
		l, array = &x.node, x.array[:]
	case n <= 26:
		x := new(leaf26)
		l, array = &x.node, x.array[:]
	case n <= maxLeaf:
		x := new(leaf30)
		l, array = &x.node, x.array[:]
	default:
		l, array = new(node), make([]slot, n)
	}
	l.epoch, l.slots = w.epoch, array[:n]
	return l
}
