package fsio

import (
	"io/fs"
	"maps"
	"slices"
	"syscall"
)

const (
	pageSize       = 4096
	sectorSize     = 512 // what a disk writes whole or not at all
	sectorsPerPage = pageSize / sectorSize
)

// page is 4 KiB of a file. A page that two tables share, or that has another gen
// than the Sim, is copied before it is written to.
type page struct {
	gen uint64
	b   [pageSize]byte
}

// node is a file, a directory or a symbolic link.
//
// Of a file:
//
//	now[i] == disk[i]                  page i is on the platter as programs see it
//	dirty[i] has bit k                 sector k of page i is not
//	minSize ≤ size, minSize ≤ diskSize the smallest size since the last sync
//	bytes of now beyond size are zero  so that growing shows zeros
//
// A table may be shorter than the size; what is missing, or nil, is zeros.
type node struct {
	mode  fs.FileMode
	mtime uint64
	names map[string]*node // a directory's entries
	saved map[string]*node // … and those on the platter
	link  string           // a symbolic link's target

	now, disk               []*page
	size, diskSize, minSize int64
	dirty                   []uint8
	dirtyPages              []int // the i with dirty[i] ≠ 0, in the order they became so

	nlink, opens int
}

func newDir(perm fs.FileMode) *node {
	return &node{mode: fs.ModeDir | perm.Perm(), names: map[string]*node{}, saved: map[string]*node{}}
}

func sortedNames(m map[string]*node) []string { return slices.Sorted(maps.Keys(m)) }

func pageAt(table []*page, i int) *page {
	if i < len(table) {
		return table[i]
	}
	return nil
}

func setPage(table []*page, i int, p *page) []*page {
	if n := i + 1 - len(table); n > 0 {
		if p == nil {
			return table
		}
		table = append(table, make([]*page, n)...)
	}
	table[i] = p
	return table
}

func numPages(size int64) int { return int((size + pageSize - 1) / pageSize) }

// copyPage returns a page that only this Sim has, equal to p.
func (s *Sim) copyPage(p *page) *page {
	c := &page{gen: s.gen}
	if p != nil {
		c.b = p.b
	}
	return c
}

// readAt copies from the volatile contents and returns how many bytes there were.
func (n *node) readAt(p []byte, off int64) int {
	if off >= n.size {
		return 0
	}
	p = p[:min(int64(len(p)), n.size-off)]
	for done := 0; done < len(p); {
		in := (off + int64(done)) % pageSize
		part := p[done:min(len(p), done+int(pageSize-in))]
		if pg := pageAt(n.now, int((off+int64(done))/pageSize)); pg != nil {
			copy(part, pg.b[in:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return len(p)
}

// writeAt writes to the volatile contents, up to the first page for which there is
// no room.
func (s *Sim) writeAt(n *node, p []byte, off int64) (int, error) {
	done := 0
	var err error
	for done < len(p) {
		at := off + int64(done)
		i, in := int(at/pageSize), int(at%pageSize)
		part := p[done:min(len(p), done+pageSize-in)]
		var pg *page
		if pg, err = s.pageToWrite(n, i, in, len(part)); err != nil {
			break
		}
		copy(pg.b[in:], part)
		done += len(part)
	}
	if done > 0 {
		n.size = max(n.size, off+int64(done))
		n.mtime = s.next
	}
	return done, err
}

// pageToWrite returns page i with the sectors of [in, in+length) marked dirty.
func (s *Sim) pageToWrite(n *node, i, in, length int) (*page, error) {
	pg := pageAt(n.now, i)
	if pg == nil {
		if s.capacity > 0 && s.used+pageSize > s.capacity {
			return nil, syscall.ENOSPC
		}
		s.used += pageSize
	}
	first, last := in/sectorSize, (in+length-1)/sectorSize
	mask := uint8(1<<(last+1) - 1<<first)
	// What is overwritten before it was synced may have reached the platter all the
	// same: the kernel writes back when it likes.
	if i < len(n.dirty) && n.dirty[i]&mask != 0 && s.coin(4) {
		s.writeBack(n, i, n.dirty[i]&mask)
	}
	if pg == nil || pg.gen != s.gen || pg == pageAt(n.disk, i) {
		pg = s.copyPage(pg)
		n.now = setPage(n.now, i, pg)
	}
	n.markDirty(i, mask)
	return pg, nil
}

// writeBack copies the masked sectors of page i to the platter.
func (s *Sim) writeBack(n *node, i int, mask uint8) {
	d := s.copyPage(pageAt(n.disk, i))
	now := pageAt(n.now, i)
	for k := range sectorsPerPage {
		if mask&(1<<k) != 0 {
			copySector(d, now, k)
		}
	}
	n.disk = setPage(n.disk, i, d)
}

func copySector(dst, src *page, k int) {
	part := dst.b[k*sectorSize : (k+1)*sectorSize]
	if src == nil {
		clear(part)
		return
	}
	copy(part, src.b[k*sectorSize:])
}

func (n *node) markDirty(i int, mask uint8) {
	if i >= len(n.dirty) {
		n.dirty = append(n.dirty, make([]uint8, i+1-len(n.dirty))...)
	}
	if n.dirty[i] == 0 {
		n.dirtyPages = append(n.dirtyPages, i)
	}
	n.dirty[i] |= mask
}

func (n *node) clearDirty() {
	for _, i := range n.dirtyPages {
		n.dirty[i] = 0
	}
	n.dirtyPages = n.dirtyPages[:0]
}

func (s *Sim) truncate(n *node, size int64) {
	n.mtime = s.next
	if size < n.size {
		keep := numPages(size)
		for i := keep; i < max(len(n.now), len(n.disk)); i++ {
			if pageAt(n.now, i) != nil {
				s.used -= pageSize
			}
			n.markDirty(i, 1<<sectorsPerPage-1)
		}
		n.now = n.now[:min(keep, len(n.now))]
		if in := int(size % pageSize); in > 0 && pageAt(n.now, keep-1) != nil {
			pg, _ := s.pageToWrite(n, keep-1, in, pageSize-in) // it exists, so there is room
			clear(pg.b[in:])
		}
		n.minSize = min(n.minSize, size)
	}
	n.size = size
}

// sync makes the volatile contents and size durable.
func (n *node) sync() {
	for _, i := range n.dirtyPages {
		n.disk = setPage(n.disk, i, pageAt(n.now, i))
	}
	n.disk = n.disk[:min(numPages(n.size), len(n.disk))]
	n.diskSize, n.minSize = n.size, n.size
	n.clearDirty()
}

// failSync is a sync that fails: of each dirty sector it is a matter of luck whether
// it reaches the platter and, if not, whether programs go on seeing it; it counts
// as clean either way. The size stays unsynced.
func (s *Sim) failSync(n *node) {
	for _, i := range n.dirtyPages {
		now := pageAt(n.now, i)
		for k := range sectorsPerPage {
			off := int64(i*pageSize + k*sectorSize)
			if n.dirty[i]&(1<<k) == 0 || off >= n.size {
				continue
			}
			switch s.rng.IntN(3) {
			case 0:
				s.writeBack(n, i, 1<<k)
			case 1: // lost, but still cached
			case 2: // lost, and dropped from the cache
				if now == nil {
					continue
				}
				now = s.copyPage(now)
				copySector(now, pageAt(n.disk, i), k)
				if beyond := n.size - int64(i)*pageSize; beyond < pageSize {
					clear(now.b[beyond:])
				}
				n.now = setPage(n.now, i, now)
			}
		}
	}
	n.clearDirty()
}

// nameOp is an unsynced change of one name (create, remove) or two (rename).
type nameOp struct {
	n        *node
	from, to *node // directories; from is nil for a create, to for a remove
	old, new string
}

func (o *nameOp) rename() bool         { return o.from != nil && o.to != nil }
func (o *nameOp) touches(d *node) bool { return o.from == d || o.to == d }

// save applies the change to the platter.
func (o *nameOp) save() {
	if o.to != nil {
		o.to.saved[o.new] = o.n
	}
	if o.from != nil && o.from.saved[o.old] == o.n {
		delete(o.from.saved, o.old)
	}
}

func (s *Sim) addName(dir *node, base string, n *node) {
	dir.names[base] = n
	n.nlink++
	s.pending = append(s.pending, nameOp{n: n, to: dir, new: base})
}

func (s *Sim) removeName(dir *node, base string) {
	n := dir.names[base]
	delete(dir.names, base)
	s.unlinked(n)
	s.pending = append(s.pending, nameOp{n: n, from: dir, old: base})
}

func (s *Sim) renameName(from *node, old string, to *node, new string) {
	n := from.names[old]
	if replaced := to.names[new]; replaced != nil {
		s.unlinked(replaced)
	}
	delete(from.names, old)
	to.names[new] = n
	if s.reorderRenames {
		s.pending = append(s.pending, nameOp{n: n, to: to, new: new}, nameOp{n: n, from: from, old: old})
		return
	}
	s.pending = append(s.pending, nameOp{n: n, from: from, old: old, to: to, new: new})
}

// unlinked takes note that n lost a name.
func (s *Sim) unlinked(n *node) {
	n.nlink--
	s.free(n)
}

// free gives back the space of a file that has neither name nor opener. Its pages
// stay: its name may still be on the platter.
func (s *Sim) free(n *node) {
	if n.nlink > 0 || n.opens > 0 {
		return
	}
	for _, p := range n.now {
		if p != nil {
			s.used -= pageSize
		}
	}
}

// syncNames makes the names in d durable.
func (s *Sim) syncNames(d *node) {
	if len(s.pending) == 0 {
		return
	}
	chosen := make([]bool, len(s.pending))
	for i := range s.pending {
		chosen[i] = s.pending[i].touches(d)
	}
	s.saveNames(chosen)
}

// saveNames applies the chosen operations to the platter in their order, and with
// each those that it builds upon: the earlier ones of the same name, if one of the
// two is a rename. A rename is atomic, so what happens to a name before or after
// must not undo half of it.
func (s *Sim) saveNames(chosen []bool) {
	type place struct {
		dir  *node
		name string
	}
	named, renamed := map[place]bool{}, map[place]bool{} // by the chosen ones that are later
	for i := len(s.pending) - 1; i >= 0 && !s.reorderRenames; i-- {
		o := &s.pending[i]
		a, b := place{o.from, o.old}, place{o.to, o.new}
		if renamed[a] || renamed[b] || o.rename() && (named[a] || named[b]) {
			chosen[i] = true
		}
		if !chosen[i] {
			continue
		}
		for _, p := range []place{a, b} {
			if p.dir != nil {
				named[p] = true
				renamed[p] = renamed[p] || o.rename()
			}
		}
	}
	rest := s.pending[:0]
	for i, o := range s.pending {
		if chosen[i] {
			o.save()
		} else {
			rest = append(rest, o)
		}
	}
	clear(s.pending[len(rest):])
	s.pending = rest
}
