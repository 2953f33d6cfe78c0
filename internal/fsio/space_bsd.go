//go:build darwin || dragonfly || freebsd

package fsio

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

func (osFS) Space(dir string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	unit := int64(st.Bsize)
	return Space{Free: max(0, int64(st.Bavail)) * unit, Total: int64(st.Blocks) * unit}, nil
}
