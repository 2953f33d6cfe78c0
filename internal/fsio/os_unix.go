//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package fsio

import (
	"errors"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	oNoFollow  = unix.O_NOFOLLOW
	oDirectory = unix.O_DIRECTORY
	oNonblock  = unix.O_NONBLOCK
	canSyncDir = true
)

// refuseLink has nothing to do where O_NOFOLLOW refuses links without a race.
func refuseLink(string, int) error { return nil }

func lockFile(f *os.File) error {
	err := control(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return lockedError(f.Name())
	case err != nil:
		return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return nil
}

// Map maps the file as it is now, read-only and shared.
func (f osFile) Map() ([]byte, func() error, error) {
	size, err := mapSize(f.File)
	if err != nil {
		return nil, nil, err
	}
	if size == 0 { // mmap refuses it
		return []byte{}, func() error { return nil }, nil
	}
	var data []byte
	err = control(f.File, func(fd int) (err error) {
		data, err = unix.Mmap(fd, 0, size, unix.PROT_READ, unix.MAP_SHARED)
		return err
	})
	if err != nil {
		return nil, nil, &fs.PathError{Op: "mmap", Path: f.Name(), Err: err}
	}
	return data, sync.OnceValue(func() error { return unix.Munmap(data) }), nil
}

// control runs op on the descriptor, which cannot be closed meanwhile, and repeats
// it while a signal interrupts it.
func control(f *os.File, op func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	if err := conn.Control(func(fd uintptr) {
		for {
			if opErr = op(int(fd)); opErr != unix.EINTR {
				return
			}
		}
	}); err != nil {
		return fs.ErrClosed // the one reason there is, which Control words otherwise
	}
	return opErr
}
