// Package fsio is the file system as the store sees it: one interface, the
// operating system behind it ([OS]), and a simulated disk ([Sim]) that keeps what
// is durable apart from what was only written, tears, fails and crashes.
//
// Everything in this module that creates, writes, renames or removes a file goes
// through an [FS]. The rules of durability are those of POSIX, taken at their
// weakest:
//
//   - what was written is durable after a nil Sync or SyncData of that file;
//   - a created, renamed or removed name is durable after a nil SyncDir of its
//     directory;
//   - after a failed Sync nothing is known about the file's unsynced contents, and
//     syncing that descriptor again proves nothing.
package fsio

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

// ErrLocked is returned by [FS.Lock] when another holder has the lock.
var ErrLocked = errors.New("locked by another process or store")

// FS is a file system. Names are paths in the operating system's form. Errors are
// *fs.PathError (of Rename: *os.LinkError) or wrap one, so errors.Is with
// fs.ErrNotExist and friends works.
// All methods may be called concurrently.
type FS interface {
	// OpenFile opens name as os.OpenFile does, with the os.O_* flags. Files that
	// are created get mode perm; a final symbolic link is not followed when the
	// flags include O_CREATE.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Rename gives oldname the name newname, replacing a file of that name.
	Rename(oldname, newname string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// MkdirAll makes the directory and its missing parents with mode perm and
	// makes their names durable.
	MkdirAll(name string, perm fs.FileMode) error
	// ReadDir lists a directory in name order.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Lstat describes a name without following a final symbolic link.
	Lstat(name string) (fs.FileInfo, error)
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	// Lock takes the exclusive lock that file name stands for, creating the file
	// if needed, or returns an error that wraps ErrLocked. The lock ends with
	// Close, or with the process, however that ends.
	Lock(name string) (io.Closer, error)
}

// File is an open file. ReadAt and WriteAt may be called concurrently.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Seeker
	io.Closer
	// Name returns the name given to OpenFile.
	Name() string
	// Stat describes the open file, not whatever has its name now.
	Stat() (fs.FileInfo, error)
	// Sync makes the contents and the size durable.
	Sync() error
	// SyncData is Sync without such metadata as is not needed to read the contents
	// back (fdatasync). It is what an append to preallocated space wants.
	SyncData() error
	// Truncate sets the size.
	Truncate(size int64) error
}

// Stat describes what name is, or what it links to, without opening that if fsys can:
// opening alone waits for the other end of a pipe and rewinds a tape.
func Stat(fsys FS, name string) (fs.FileInfo, error) {
	if s, ok := fsys.(interface {
		Stat(name string) (fs.FileInfo, error)
	}); ok {
		return s.Stat(name)
	}
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// Mapper is an extra power of a File: mapping its current contents read-only into
// memory. The mapping outlives the file's Close and ends with unmap. Only files
// that the store itself sealed may be mapped.
type Mapper interface {
	Map() (data []byte, unmap func() error, err error)
}

// MemoryMapper is a Mapper whose mappings are memory: reading them waits for no disk.
type MemoryMapper interface {
	Mapper
	MapsMemory()
}

// MapperOf returns the power to map a file of others; false where there is none. Who
// maps one must expect that it shrinks, which makes reading the mapping a fault. Map
// fails if the file is on a file system that is not this machine's own, where reading
// a mapping may take as long as a network likes.
func MapperOf(f *os.File) (Mapper, bool) {
	if _, ok := any(osFile{f}).(Mapper); !ok {
		return nil, false
	}
	return foreignFile{f}, true
}

type foreignFile struct{ *os.File }

func (f foreignFile) Map() ([]byte, func() error, error) {
	if !local(f.File) {
		return nil, nil, &fs.PathError{Op: "mmap", Path: f.Name(), Err: errNotLocal}
	}
	return any(osFile(f)).(Mapper).Map()
}

var errNotLocal = errors.New("the file system is not known to be of this machine")
