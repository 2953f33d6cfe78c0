package mapped

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
)

// Table is an immutable file of the store's own that is looked into at random, as an
// index is: a few hundred bytes here, a few hundred there. It is mapped from the
// beginning, for lookups that find it in memory make no system call; what is not known
// to be there ([Table.Warm]) is read by one ([Table.ReadAt]), which holds up a goroutine
// and no processor.
//
// A file that is mapped needs no descriptor, and the number of those is what bounds how
// many shards can be open. So there is a small number for all Tables: who has none
// opens its file again, which is nothing beside the wait for a disk.
//
// It takes a bit for each page while it is in use, and nothing if it is only open. The
// methods may be called by several goroutines at once, but Close only after all others.
type Table struct {
	fs    fsio.FS
	name  string
	size  int64
	info  fs.FileInfo // to know the file again
	data  []byte      // nil: it is not mapped
	unmap func() error
	warm  atomic.Pointer[Warm]

	fd   atomic.Pointer[descriptor] // not nil for as long as the Table is open, if it is not mapped
	gone atomic.Bool                // the name leads elsewhere
	slot int                        // in the pool; guarded by it
}

// descriptor is an open file.
type descriptor struct {
	f    fsio.File
	used atomic.Bool // since the pool looked last
}

// canMap says whether address space is to be had for whole files.
const canMap = strconv.IntSize >= 64

// NewTable makes a Table of a file of fsys that was opened by the name, and takes it
// over, but for the case of an error.
func NewTable(fsys fsio.FS, f fsio.File, name string) (*Table, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	t := &Table{fs: fsys, name: name, size: info.Size(), info: info, slot: -1}
	t.fd.Store(&descriptor{f: f})
	m, ok := f.(fsio.Mapper)
	if !ok || !canMap {
		return t, nil
	}
	data, unmap, err := m.Map()
	switch {
	case err != nil: // it is read by system calls, all of it
	case int64(len(data)) != t.size: // it is not immutable; whoever reads it finds out
		_ = unmap()
	default:
		t.data, t.unmap = data, unmap
		if _, ok := m.(fsio.MemoryMapper); !ok {
			pool.add(t)
			return t, nil
		}
		w := AllWarm(t.size)
		t.warm.Store(&w)
		t.gone.Store(true) // it is never wanted again
		t.fd.Swap(nil).close()
	}
	return t, nil
}

// Size is the length of the file.
func (t *Table) Size() int64 { return t.size }

// Data is the mapping; nil if there is none. Who reads of it what [Table.Warm] did not
// say is in memory may stop a processor. A file that was cut off faults.
func (t *Table) Data() []byte { return t.data }

// Warm returns what of the mapping is taken to be in memory now.
func (t *Table) Warm() Warm {
	if p := t.warm.Load(); p != nil {
		return *p
	}
	return nil
}

// Warm is which pages of a Table are taken to be in memory, a bit for each.
type Warm []atomic.Uint64

// Forget forgets what is in memory, for who met a fault: reading by system calls finds out
// what is wrong.
func (t *Table) Forget() { t.warm.Store(nil) }

// AllWarm is of size bytes that are in memory.
func AllWarm(size int64) Warm {
	w := make(Warm, (size+wordPages*pageSize-1)/(wordPages*pageSize))
	for i := range w {
		w[i].Store(1<<wordPages - 1)
	}
	return w
}

// Near says whether the bytes from off to end, which are more than none and at most
// [NearMax], are taken to be in memory.
func (w Warm) Near(off, end uint64) bool {
	return w.page(off/pageSize) && w.page((end-1)/pageSize)
}

// NearMax is what lies in two pages at most.
const NearMax = pageSize

// Holds is Near for any number of bytes.
func (w Warm) Holds(off, end uint64) bool {
	for page := off / pageSize; page <= (end-1)/pageSize; page++ {
		if !w.page(page) {
			return false
		}
	}
	return true
}

func (w Warm) page(i uint64) bool {
	return i/wordPages < uint64(len(w)) && w[i/wordPages].Load()>>(i%wordPages)&1 != 0
}

// ReadAt reads by a system call, and remembers what is in memory then.
func (t *Table) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.ReadOnce(p, off)
	if n > 0 && t.data != nil {
		t.note(off, n)
	}
	return n, err
}

// ReadOnce is ReadAt for who reads much and will not soon come back, and so pushes out
// of memory what it leaves behind.
func (t *Table) ReadOnce(p []byte, off int64) (int, error) {
	for {
		d, err := t.open()
		if err != nil {
			if t.data == nil {
				return 0, err
			}
			return t.copyOut(p, off)
		}
		n, err := d.f.ReadAt(p, off)
		if errors.Is(err, fs.ErrClosed) && t.fd.Load() != d {
			continue // the pool gave it to another
		}
		return n, err
	}
}

// note remembers that n bytes from off are in memory, for a while.
func (t *Table) note(off int64, n int) {
	p := t.warm.Load()
	if p == nil {
		pages := (t.size + pageSize - 1) / pageSize
		w := make(Warm, (pages+wordPages-1)/wordPages)
		if t.warm.CompareAndSwap(nil, &w) {
			time.AfterFunc(Memory, func() { t.warm.CompareAndSwap(&w, nil) })
		}
		if p = t.warm.Load(); p == nil {
			return
		}
	}
	w := *p
	for page := off / pageSize; page <= (off+int64(n)-1)/pageSize; page++ {
		if bit := uint64(1) << (page % wordPages); w[page/wordPages].Load()&bit == 0 {
			w[page/wordPages].Or(bit)
		}
	}
}

// open returns a descriptor of the file.
func (t *Table) open() (*descriptor, error) {
	for {
		if d := t.fd.Load(); d != nil {
			if !d.used.Load() {
				d.used.Store(true)
			}
			return d, nil
		}
		if t.gone.Load() {
			return nil, fs.ErrNotExist
		}
		f, err := Open(t.fs, t.name)
		if err != nil {
			t.gone.Store(errors.Is(err, fs.ErrNotExist))
			return nil, err
		}
		if info, err := f.Stat(); err != nil || !os.SameFile(info, t.info) {
			t.gone.Store(err == nil)
			_ = f.Close() // nothing was read
			return nil, fs.ErrNotExist
		}
		if !t.fd.CompareAndSwap(nil, &descriptor{f: f}) {
			_ = f.Close() // another was quicker
			continue
		}
		pool.add(t)
	}
}

// copyOut reads through the mapping, whether it has to be waited for or not: the file has
// no name any more, or there is no descriptor to be had.
func (t *Table) copyOut(p []byte, off int64) (n int, err error) {
	if off >= t.size {
		return 0, io.EOF
	}
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			if _, isFault := r.(interface{ Addr() uintptr }); !isFault {
				panic(r)
			}
			n, err = 0, &fs.PathError{Op: "read", Path: t.name, Err: errFault}
		}
	}()
	if n = copy(p, t.data[off:]); n < len(p) {
		err = io.EOF
	}
	return n, err
}

var errFault = errors.New("the mapped file cannot be read here; it was cut short or its disk fails")

// Close ends the mapping and closes the file.
func (t *Table) Close() (err error) {
	pool.remove(t)
	if d := t.fd.Swap(nil); d != nil {
		err = d.f.Close()
	}
	if t.unmap != nil {
		err = errors.Join(err, t.unmap())
	}
	return err
}

// descriptors are those of all Tables that are mapped, and so can do without.
type descriptors struct {
	sync.Mutex
	once   sync.Once
	limit  int
	tables []*Table
	hand   int // of a clock: who was used since it came by last stays
}

var pool descriptors

// maxDescriptors is how many descriptors mapped Tables have at once, at most; where the
// process may have few, an eighth of those.
const maxDescriptors = 256

func (p *descriptors) setLimit() { p.limit = max(1, min(maxDescriptors, fsio.MaxOpen()/8)) }

func (p *descriptors) add(t *Table) {
	p.once.Do(p.setLimit)
	p.Lock()
	var spare *descriptor
	if len(p.tables) >= p.limit {
		for {
			p.hand %= len(p.tables)
			d := p.tables[p.hand].fd.Load()
			if d == nil || !d.used.Swap(false) {
				break
			}
			p.hand++
		}
		spare = p.take(p.hand)
	}
	t.slot = len(p.tables)
	p.tables = append(p.tables, t)
	p.Unlock()
	spare.close()
}

// take removes the Table in a slot and returns its descriptor.
func (p *descriptors) take(slot int) *descriptor {
	t, last := p.tables[slot], p.tables[len(p.tables)-1]
	p.tables[slot] = last
	last.slot = slot
	p.tables[len(p.tables)-1] = nil
	p.tables = p.tables[:len(p.tables)-1]
	t.slot = -1
	return t.fd.Swap(nil)
}

func (p *descriptors) remove(t *Table) {
	p.Lock()
	var d *descriptor
	if t.slot >= 0 {
		d = p.take(t.slot)
	}
	p.Unlock()
	d.close()
}

// close closes a file that was only read; that it cannot be says nothing of its contents.
func (d *descriptor) close() {
	if d != nil {
		_ = d.f.Close()
	}
}

// ReleaseDescriptors closes the descriptors that Tables can do without, for whoever
// needs some, and returns how many.
func ReleaseDescriptors() (n int) {
	for {
		pool.Lock()
		if len(pool.tables) == 0 {
			pool.Unlock()
			return n
		}
		d := pool.take(len(pool.tables) - 1)
		pool.Unlock()
		d.close()
		n++
	}
}

// Open opens a file to read it, and has Tables give up descriptors if there are none left.
func Open(fsys fsio.FS, name string) (fsio.File, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)) && ReleaseDescriptors() > 0 {
		f, err = fsys.OpenFile(name, os.O_RDONLY, 0)
	}
	return f, err
}
