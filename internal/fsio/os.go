package fsio

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
)

// OS returns the operating system's file system. Its files are [Mapper]s where the
// platform can map files.
func OS() FS { return osFS{} }

type osFS struct{}

// osFile adds to os.File what os does not offer: SyncData and, per platform, Map.
type osFile struct{ *os.File }

func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if flag&os.O_CREATE != 0 {
		if err := refuseLink(name, flag); err != nil {
			return nil, err
		}
		flag |= oNoFollow
	}
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE) == 0 {
		flag |= oNonblock // what is no file must not be waited for: a pipe for its writer
	}
	// The os package adds O_CLOEXEC on its own.
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Rename(oldname, newname string) error { return os.Rename(oldname, newname) }

func (osFS) Remove(name string) error { return os.Remove(name) }

// Stat follows links; see [Stat].
func (osFS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

func (osFS) Lstat(name string) (fs.FileInfo, error) { return os.Lstat(name) }

func (osFS) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err // not the part that was read: a caller would take it for all
	}
	return entries, nil
}

// MkdirAll syncs the parent of each directory that it makes before it makes the
// next one below. So a process that is killed in between leaves at most one name
// unsynced, the deepest one there is; that one's parent is synced here too.
func (o osFS) MkdirAll(name string, perm fs.FileMode) error {
	if name == "" {
		return &fs.PathError{Op: "mkdir", Path: name, Err: fs.ErrNotExist}
	}
	name = filepath.Clean(name)
	parent := filepath.Dir(name)
	switch info, err := os.Stat(name); {
	case err == nil && !info.IsDir():
		return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
	case err == nil:
		// Somebody else's parent may not be ours to open; then its names are not
		// ours to keep either.
		if err := o.SyncDir(parent); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if parent != name {
		if err := o.MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(name, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if info, err := os.Stat(name); err != nil {
		return err
	} else if !info.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
	}
	return o.SyncDir(parent)
}

func (osFS) SyncDir(name string) error {
	if !canSyncDir {
		return nil
	}
	d, err := os.OpenFile(name, os.O_RDONLY|oDirectory, 0)
	if err != nil {
		return err
	}
	err = d.Sync()
	// File systems that know no sync of directories answer so (FUSE, some network
	// file systems). There is nothing stronger to ask them for.
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// held lists the locks that this process holds. The kernel's locks alone would not
// do: where they are emulated per process (NFS), a process excludes others but not
// itself. And a lock that its holder forgot must not end with the garbage
// collection of its file.
var held struct {
	sync.Mutex
	locks []*osLock
}

// maxLockTries bounds how often Lock starts over because somebody removed the lock
// file between its opening and its locking.
const maxLockTries = 10

func (osFS) Lock(name string) (io.Closer, error) {
	for range maxLockTries {
		l, err := tryLock(name)
		if err != nil {
			return nil, err
		}
		// A lock on a file that has lost its name excludes nobody.
		if now, err := os.Lstat(name); err == nil && os.SameFile(now, l.info) {
			return l, nil
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
	return nil, &fs.PathError{Op: "lock", Path: name, Err: errors.New("the lock file is removed again and again; stop whatever removes it")}
}

func tryLock(name string) (*osLock, error) {
	if err := refuseLink(name, os.O_CREATE|os.O_RDWR); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|oNoFollow, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	held.Lock()
	defer held.Unlock()
	for _, h := range held.locks {
		if os.SameFile(h.info, info) {
			return nil, errors.Join(lockedError(name), f.Close())
		}
	}
	if err := lockFile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l := &osLock{f: f, info: info}
	held.locks = append(held.locks, l)
	return l, nil
}

func lockedError(name string) error {
	return &fs.PathError{Op: "lock", Path: name, Err: ErrLocked}
}

// osLock is one entry of held and the open file that carries the kernel's lock.
type osLock struct {
	f    *os.File
	info os.FileInfo
	once sync.Once
	err  error
}

// Close ends the lock. The file stays: removing it would let two others lock two
// different files of that name.
func (l *osLock) Close() error {
	l.once.Do(func() {
		held.Lock()
		defer held.Unlock()
		l.err = l.f.Close()
		held.locks = slices.DeleteFunc(held.locks, func(h *osLock) bool { return h == l })
	})
	return l.err
}

// mapSize is the size to map, or an error if it does not fit an address space.
func mapSize(f *os.File) (int, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	if int64(int(size)) != size {
		return 0, &fs.PathError{Op: "mmap", Path: f.Name(), Err: fmt.Errorf("%d bytes do not fit the address space", size)}
	}
	return int(size), nil
}
