package fsio

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// ErrReadOnly is wrapped by the errors of a [ReadOnly] file system.
var ErrReadOnly = errors.New("file system is read-only here")

// ReadOnly returns fsys without its powers to change anything: files open for reading
// only, and all else that would write is refused with [ErrReadOnly]. MkdirAll of a
// directory that is there, and SyncDir, do nothing.
func ReadOnly(fsys FS) FS { return readOnly{fsys} }

type readOnly struct{ FS }

func refused(op, name string) error {
	return &fs.PathError{Op: op, Path: name, Err: ErrReadOnly}
}

func (r readOnly) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND) != 0 {
		return nil, refused("open", name)
	}
	f, err := r.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	if m, ok := f.(Mapper); ok {
		return readOnlyMapped{readOnlyFile{f}, m}, nil
	}
	return readOnlyFile{f}, nil
}

func (r readOnly) Rename(oldname, newname string) error {
	return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: ErrReadOnly}
}

func (r readOnly) Remove(name string) error { return refused("remove", name) }

func (r readOnly) MkdirAll(name string, _ fs.FileMode) error {
	info, err := r.Lstat(name)
	switch {
	case err != nil:
		return fmt.Errorf("mkdir: %w", err)
	case !info.IsDir():
		return refused("mkdir", name)
	}
	return nil
}

func (r readOnly) SyncDir(string) error { return nil }

func (r readOnly) Lock(name string) (io.Closer, error) { return nil, refused("lock", name) }

func (r readOnly) LockHeld(name string) (held, known bool) { return LockHeld(r.FS, name) }

type readOnlyFile struct{ File }

func (f readOnlyFile) Write([]byte) (int, error)          { return 0, refused("write", f.Name()) }
func (f readOnlyFile) WriteAt([]byte, int64) (int, error) { return 0, refused("write", f.Name()) }
func (f readOnlyFile) Truncate(int64) error               { return refused("truncate", f.Name()) }
func (f readOnlyFile) Sync() error                        { return nil }
func (f readOnlyFile) SyncData() error                    { return nil }

// readOnlyMapped keeps the power of mapping, which reads only.
type readOnlyMapped struct {
	readOnlyFile
	Mapper
}
