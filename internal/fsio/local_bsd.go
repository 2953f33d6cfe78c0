//go:build darwin || dragonfly || freebsd

package fsio

import (
	"os"

	"golang.org/x/sys/unix"
)

// local says whether a file is on a file system that this machine has to itself: a
// page of it that is in memory stays so, whatever happens on a network.
func local(f *os.File) bool {
	var st unix.Statfs_t
	return control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }) == nil && st.Flags&unix.MNT_LOCAL != 0
}
