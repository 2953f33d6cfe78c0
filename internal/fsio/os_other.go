//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd || windows)

package fsio

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

const (
	oNoFollow  = 0
	oDirectory = 0
	oNonblock  = 0
	canSyncDir = true
)

// refuseLink stands in for O_NOFOLLOW. A link planted between this look and the
// opening is not seen.
func refuseLink(name string, flag int) error {
	if info, err := os.Lstat(name); err == nil && info.Mode()&fs.ModeSymlink != 0 && flag&os.O_EXCL == 0 {
		return &fs.PathError{Op: "open", Path: name, Err: syscall.EINVAL}
	}
	return nil
}

// lockFile fails: a store that cannot keep a second writer out does not open.
func lockFile(f *os.File) error {
	return &fs.PathError{Op: "lock", Path: f.Name(), Err: errors.ErrUnsupported}
}
