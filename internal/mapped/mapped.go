// Package mapped reads files through mappings without the two things that make that
// dangerous: the signal when the file is shorter than its mapping, and the fault that
// waits for a disk.
//
// A system call takes longer than all else that reading a small block does, so memory
// is twice as fast. But a page that is not in memory must be waited for. A system call
// holds up a goroutine meanwhile; a fault holds up the processor that the goroutine
// runs on, and whoever wants to stop the world, the garbage collector for one. So a
// [File] reads through its mapping only what a system call read a short while ago,
// which the kernel has in memory then.
package mapped

import (
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
)

const (
	// MaxRead is the largest read in bytes that goes through a mapping. Larger ones
	// take so long to copy that the system call does not matter.
	MaxRead = 16 << 10
	// Memory is for how long a page that a system call read is taken to be in memory.
	Memory = 10 * time.Second

	pageSize  = 4 << 10 // of the map of pages, whatever the kernel's is
	leafPages = 1 << 14 // pages of a leaf, which is 64 MiB of the file in 2 KiB
	mapAfter  = 16      // reads that could have gone through a mapping make one
	maxMapped = 8 << 10 // mappings at once; the kernel grants a process some 65,000
	wordPages = 64      // pages of a word of a leaf
	leafSize  = leafPages * pageSize
)

// inUse counts the mappings of all Files.
var inUse atomic.Int64

// copyOut copies out of a mapping. It returns false if the mapping cannot be read there:
// the file was cut off underneath, or its disk fails. Reading the file says which.
// Within the page in which a file was cut off zeros are read, so it returns false too
// unless a byte that is not zero is the last of p, or follows p in the same page. What
// follows a block of a CAR is the length of a section, which is not zero.
func copyOut(p, data []byte, off int64) (ok bool) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			if _, isFault := r.(interface{ Addr() uintptr }); !isFault {
				panic(r)
			}
			ok = false
		}
	}()
	copy(p, data[off:])
	if p[len(p)-1] != 0 || planted.Bug("mapped-zeros-believed") {
		return true
	}
	end := off + int64(len(p))
	return end%pageSize != 0 && end < int64(len(data)) && data[end] != 0
}

// File remembers which pages of a file are in memory, and reads those through a
// mapping, which it makes once that has been worth it. It takes a bit for each page
// of each 64 MiB that were read in within [Memory], and nothing for a file that is
// only open. The methods may be called by several goroutines at once, but Close only
// after all others.
type File struct {
	m      fsio.Mapper
	size   int64
	once   sync.Once
	leaves atomic.Pointer[[]atomic.Pointer[leaf]]

	worth atomic.Int32 // reads that could have gone through a mapping; mapAfter makes it
	data  atomic.Pointer[[]byte]
	unmap func() error // nil without a mapping
}

// leaf is what is known of leafSize bytes of a file, for as long as [Memory].
type leaf struct {
	pages []atomic.Uint64
}

// NewFile returns a File of a file of size bytes, which m maps when it comes to that. If
// it cannot, the file is read by system calls.
func NewFile(m fsio.Mapper, size int64) *File { return &File{m: m, size: size} }

// Read fills p from offset off if that can be done through the mapping, and says
// whether it was. A false says nothing about the file.
func (f *File) Read(p []byte, off int64) bool {
	end := off + int64(len(p))
	if !f.fits(off, len(p)) || !f.holds(off, end) {
		return false
	}
	data := f.data.Load()
	if data == nil {
		if f.worth.Load() >= mapAfter || f.worth.Add(1) != mapAfter {
			return false
		}
		if data = f.makeMapping(); data == nil {
			return false
		}
	}
	return end <= int64(len(*data)) && copyOut(p, *data, off)
}

// Note remembers that a system call read n bytes from offset off.
func (f *File) Note(off int64, n int) {
	if !f.fits(off, n) {
		return
	}
	for page := off / pageSize; page <= (off+int64(n)-1)/pageSize; page++ {
		word := &f.grow(page / leafPages).pages[page%leafPages/wordPages]
		if bit := uint64(1) << (page % wordPages); word.Load()&bit == 0 {
			word.Or(bit)
		}
	}
}

// fits says whether a read is in the file and small enough.
func (f *File) fits(off int64, n int) bool {
	return 0 < n && n <= MaxRead && 0 <= off && off <= f.size-int64(n)
}

// Close ends the mapping. It does not close the file.
func (f *File) Close() {
	if f.unmap != nil {
		f.unmap()
		inUse.Add(-1)
	}
}

// holds says whether the pages from off to end are taken to be in memory.
func (f *File) holds(off, end int64) bool {
	leaves := f.leaves.Load()
	if leaves == nil {
		return false
	}
	for page := off / pageSize; page <= (end-1)/pageSize; page++ {
		l := (*leaves)[page/leafPages].Load()
		if l == nil || l.pages[page%leafPages/wordPages].Load()&(1<<(page%wordPages)) == 0 {
			return false
		}
	}
	return true
}

// grow returns the leaf with the given number.
func (f *File) grow(n int64) *leaf {
	f.once.Do(func() {
		leaves := make([]atomic.Pointer[leaf], (f.size+leafSize-1)/leafSize)
		f.leaves.Store(&leaves)
	})
	at := &(*f.leaves.Load())[n]
	if l := at.Load(); l != nil {
		return l
	}
	pages := (min(leafSize, f.size-n*leafSize) + pageSize - 1) / pageSize
	l := &leaf{make([]atomic.Uint64, (pages+wordPages-1)/wordPages)}
	if at.CompareAndSwap(nil, l) { // if another was quicker, what is noted here is lost: a system call
		// Not by a look at the clock now and then: a file that was left alone for a while
		// would be believed to be in memory by the next reads.
		time.AfterFunc(Memory, func() { at.CompareAndSwap(l, nil) })
	}
	return l
}

// makeMapping maps the file, if it can be and there are not too many mappings; else it
// returns nil.
func (f *File) makeMapping() *[]byte {
	if inUse.Add(1) > maxMapped {
		inUse.Add(-1)
		return nil
	}
	data, unmap, err := f.m.Map()
	if err != nil {
		inUse.Add(-1)
		return nil
	}
	f.unmap = unmap
	f.data.Store(&data)
	return &data
}
