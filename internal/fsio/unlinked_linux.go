package fsio

import "golang.org/x/sys/unix"

// unlinked asks for the number of names only. Who asks for the times of a file, as fstat
// does, has Linux since 6.13 note new ones at the next write, and the sync after that take
// half as long again.
func (f osFile) unlinked() bool {
	var st unix.Statx_t
	err := control(f.File, func(fd int) error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_NLINK, &st)
	})
	return err == nil && st.Mask&unix.STATX_NLINK != 0 && st.Nlink == 0
}

func (f osFile) tryLock() error { return lockFile(f.File) }
