package fsio

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// Crash cuts the power and returns the machine after it came back. What was synced
// is there. Of the rest the seed chooses a legal part: each unsynced sector is old
// or new, and if it lies beyond the synced size zeros or garbage too; the size is
// old, new or between; each unsynced change of a name happened or did not, in
// whatever order, but a rename happened whole.
//
// The Sim that it is called on is off: everything returns ErrCrashed. The new one
// counts operations from 0, and has no faults, no hook, no open files and no locks.
func (s *Sim) Crash() *Sim {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clone(s.rng.Uint64())
	s.dead = true
	c.settleNames()
	c.settleTree(func(n *node) {
		clear(n.names)
		maps.Copy(n.names, n.saved)
	}, c.settleFile)
	return c
}

// Kill ends the program but not the machine and returns the machine as a new
// program finds it: everything that was written is there, synced or not. The Sim
// that it is called on is off, as after [Sim.Crash].
func (s *Sim) Kill() *Sim {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clone(s.rng.Uint64())
	s.dead = true
	return c
}

// Clone returns another machine with an equal disk, volatile and durable, and no
// program on it: no open files, locks, faults or hook. It makes its choices from
// seed; to look at many crashes of one state, crash many clones of it. Cloning
// copies names and page tables but no contents.
func (s *Sim) Clone(seed uint64) *Sim {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clone(seed)
}

func (s *Sim) clone(seed uint64) *Sim {
	c := newSim(s.simOptions, seed)
	s.gen = gens.Add(1) // the pages are no longer this Sim's alone
	copies := map[*node]*node{nil: nil}
	var copyNode func(n *node) *node
	copyNames := func(names map[string]*node) map[string]*node {
		if names == nil {
			return nil
		}
		m := make(map[string]*node, len(names))
		for name, n := range names {
			m[name] = copyNode(n)
		}
		return m
	}
	copyNode = func(n *node) *node {
		if c, ok := copies[n]; ok {
			return c
		}
		c := new(node)
		copies[n] = c
		*c = *n
		c.opens = 0
		c.names, c.saved = copyNames(n.names), copyNames(n.saved)
		c.now, c.disk = slices.Clone(n.now), slices.Clone(n.disk)
		c.dirty, c.dirtyPages = slices.Clone(n.dirty), slices.Clone(n.dirtyPages)
		return c
	}
	c.root = copyNode(s.root)
	for _, o := range s.pending {
		c.pending = append(c.pending, nameOp{copyNode(o.n), copyNode(o.from), copyNode(o.to), o.old, o.new})
	}
	c.next = s.next // times stay in order; reset below
	c.settleTree(func(*node) {}, func(*node) {})
	c.next = 0
	return c
}

// settleTree visits what can be reached from the root in name order, so that the
// seed's choices do not depend on a map's, and counts links and space anew.
func (s *Sim) settleTree(dir, file func(*node)) {
	s.used = 0
	seen := map[*node]bool{}
	var walk func(n *node)
	walk = func(n *node) {
		if seen[n] {
			n.nlink++
			return
		}
		seen[n] = true
		n.nlink = 1
		if !n.mode.IsDir() {
			file(n)
			for _, p := range n.now {
				if p != nil {
					s.used += pageSize
				}
			}
			return
		}
		dir(n)
		for _, name := range sortedNames(n.names) {
			walk(n.names[name])
		}
	}
	walk(s.root)
}

// fate is how much of what is unsynced survives: nothing and everything are as
// likely as all that lies between.
type fate struct {
	rng  *rand.Rand
	kind int
}

func (s *Sim) drawFate() fate { return fate{s.rng, s.rng.IntN(4)} }

func (f fate) mixed() bool { return f.kind > 1 }

func (f fate) keep() bool {
	if f.mixed() {
		return f.rng.IntN(2) == 0
	}
	return f.kind == 1
}

func (s *Sim) settleNames() {
	f := s.drawFate()
	chosen := make([]bool, len(s.pending))
	for i := range chosen {
		chosen[i] = f.keep()
	}
	s.saveNames(chosen)
	s.pending = nil
}

// settleFile gives a file the contents that a crash leaves.
func (s *Sim) settleFile(n *node) {
	if n.link != "" {
		return
	}
	if len(n.dirtyPages) > 0 || n.size != n.diskSize || n.minSize != n.size {
		f := s.drawFate()
		size := s.settleSize(n, f)
		for _, i := range n.dirtyPages {
			s.settlePage(n, i, f)
		}
		n.diskSize = size
	}
	n.disk = n.disk[:min(numPages(n.diskSize), len(n.disk))]
	if i, in := int(n.diskSize/pageSize), n.diskSize%pageSize; in > 0 && pageAt(n.disk, i) != nil {
		n.disk[i] = s.copyPage(n.disk[i])
		clear(n.disk[i].b[in:])
	}
	n.now = slices.Clone(n.disk)
	n.size, n.minSize = n.diskSize, n.diskSize
	n.clearDirty()
}

func (s *Sim) settleSize(n *node, f fate) int64 {
	switch {
	case !f.mixed():
		if f.keep() {
			return n.size
		}
		return n.diskSize
	case f.keep():
		return n.diskSize
	case f.keep():
		return n.size
	}
	return n.minSize + s.rng.Int64N(n.size-n.minSize+1)
}

// settlePage decides each dirty sector of page i.
func (s *Sim) settlePage(n *node, i int, f fate) {
	now := pageAt(n.now, i)
	d := s.copyPage(pageAt(n.disk, i))
	for k := range sectorsPerPage {
		off := int64(i*pageSize + k*sectorSize)
		if n.dirty[i]&(1<<k) == 0 || off >= n.size {
			continue // beyond a truncation that is lost, if its bytes show at all
		}
		switch {
		case s.tornSectors && f.mixed() && s.coin(3):
			torn := *d
			copySector(&torn, now, k)
			cut := k*sectorSize + 1 + s.rng.IntN(sectorSize-1)
			copy(d.b[k*sectorSize:cut], torn.b[k*sectorSize:])
		case f.keep():
			copySector(d, now, k)
		case f.mixed() && off+sectorSize > n.diskSize && f.keep():
			s.garbage(d.b[k*sectorSize+int(max(0, n.diskSize-off)) : (k+1)*sectorSize])
		}
	}
	n.disk = setPage(n.disk, i, d)
}

func (s *Sim) garbage(p []byte) {
	for i := range p {
		p[i] = byte(s.rng.Uint32())
	}
}
