package fsio

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

const (
	oNoFollow  = 0
	oDirectory = 0
	oNonblock  = 0
	canSyncDir = false // there is no such call; NTFS journals its names
)

// refuseLink stands in for O_NOFOLLOW. A link planted between this look and the
// opening is not seen.
func refuseLink(name string, flag int) error {
	if info, err := os.Lstat(name); err == nil && info.Mode()&fs.ModeSymlink != 0 && flag&os.O_EXCL == 0 {
		return &fs.PathError{Op: "open", Path: name, Err: syscall.ELOOP}
	}
	return nil
}

func lockFile(f *os.File) error {
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, new(windows.Overlapped))
	switch {
	case errors.Is(err, windows.ERROR_LOCK_VIOLATION):
		return lockedError(f.Name())
	case err != nil:
		return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return nil
}
