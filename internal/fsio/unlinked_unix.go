//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package fsio

import "golang.org/x/sys/unix"

func (f osFile) unlinked() bool {
	var st unix.Stat_t
	err := control(f.File, func(fd int) error { return unix.Fstat(fd, &st) })
	return err == nil && st.Nlink == 0
}

func (f osFile) tryLock() error { return lockFile(f.File) }
