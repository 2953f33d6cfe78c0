//go:build darwin || freebsd || linux

package fsiotest

import (
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dagstore/dagstore/internal/fsio"
)

// Cold is a file system none of whose files is in memory until it is read by a call:
// whoever touches a page of a mapping before gets a fault. It stands for a disk that has
// to be waited for, by those who must not wait for it in a fault.
type Cold struct {
	fsio.FS

	wait         atomic.Pointer[func()]
	reads, waits atomic.Int64
	open, maps   atomic.Int64

	mu    sync.Mutex
	files map[uint64]*coldFile // by inode
}

// NewCold returns a Cold of the operating system's files.
func NewCold() *Cold { return &Cold{FS: fsio.OS(), files: make(map[uint64]*coldFile)} }

// Wait has wait called in each read of pages that are not all in memory.
func (c *Cold) Wait(wait func()) { c.wait.Store(&wait) }

// Reads counts the calls that read, and those of them that read what was not in memory.
func (c *Cold) Reads() (all, waits int64) { return c.reads.Load(), c.waits.Load() }

// Held counts the files that are open for reading and the mappings.
func (c *Cold) Held() (open, maps int64) { return c.open.Load(), c.maps.Load() }

// Forget takes all files out of memory.
func (c *Cold) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.files {
		f.forget()
	}
}

// OpenFile opens files that are only read as cold ones.
func (c *Cold) OpenFile(name string, flag int, perm fs.FileMode) (fsio.File, error) {
	f, err := c.FS.OpenFile(name, flag, perm)
	if err != nil || flag != 0 {
		return f, err
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return f, err
	}
	inode := info.Sys().(*syscall.Stat_t).Ino
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.files[inode]
	if of == nil || of.size != info.Size() {
		of = &coldFile{size: info.Size(), warm: make(map[int64]bool)}
		c.files[inode] = of
	}
	c.open.Add(1)
	return &coldHandle{File: f, fs: c, of: of}, nil
}

// coldPage is the size of a page of mappings.
var coldPage = int64(unix.Getpagesize())

// coldFile is what is in memory of a file.
type coldFile struct {
	mu   sync.Mutex
	size int64
	warm map[int64]bool
	maps [][]byte
}

func (f *coldFile) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.warm)
	for _, m := range f.maps {
		protect(m, unix.PROT_NONE)
	}
}

func protect(b []byte, prot int) {
	if err := unix.Mprotect(b, prot); err != nil {
		panic(err)
	}
}

// touch has n bytes from off in memory, and says whether they were.
func (f *coldFile) touch(off, n int64) (was bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	was = true
	for page := off / coldPage; page*coldPage < off+n; page++ {
		if f.warm[page] {
			continue
		}
		was, f.warm[page] = false, true
		for _, m := range f.maps {
			protect(m[page*coldPage:][:coldPage], unix.PROT_READ)
		}
	}
	return was
}

type coldHandle struct {
	fsio.File
	fs   *Cold
	of   *coldFile
	pos  int64
	once sync.Once
}

func (h *coldHandle) ReadAt(p []byte, off int64) (int, error) {
	h.fs.reads.Add(1)
	n, err := h.File.ReadAt(p, off)
	if n > 0 && !h.of.touch(off, int64(n)) {
		h.fs.waits.Add(1)
		if wait := h.fs.wait.Load(); wait != nil {
			(*wait)()
		}
	}
	return n, err
}

func (h *coldHandle) Read(p []byte) (int, error) {
	n, err := h.ReadAt(p, h.pos)
	if h.pos += int64(n); n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (h *coldHandle) Close() error {
	h.once.Do(func() { h.fs.open.Add(-1) })
	return h.File.Close()
}

// Map maps a copy of the file, whose pages can be read once they are in memory.
func (h *coldHandle) Map() ([]byte, func() error, error) {
	if h.of.size == 0 {
		return []byte{}, func() error { return nil }, nil
	}
	m, err := unix.Mmap(-1, 0, int((h.of.size+coldPage-1)/coldPage*coldPage), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, nil, err
	}
	if _, err := h.File.ReadAt(m[:h.of.size], 0); err != nil && err != io.EOF {
		return nil, nil, err
	}
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	protect(m, unix.PROT_NONE)
	for page := range h.of.warm {
		protect(m[page*coldPage:][:coldPage], unix.PROT_READ)
	}
	h.of.maps = append(h.of.maps, m)
	h.fs.maps.Add(1)
	return m[:h.of.size], sync.OnceValue(func() error {
		h.of.mu.Lock()
		defer h.of.mu.Unlock()
		h.fs.maps.Add(-1)
		for i := range h.of.maps {
			if &h.of.maps[i][0] == &m[0] {
				h.of.maps = append(h.of.maps[:i], h.of.maps[i+1:]...)
				break
			}
		}
		return unix.Munmap(m)
	}), nil
}
