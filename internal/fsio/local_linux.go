package fsio

import (
	"os"

	"golang.org/x/sys/unix"
)

// local says whether a file is on a file system that this machine has to itself: a
// page of it that is in memory stays so, whatever happens on a network.
func local(f *os.File) bool {
	var st unix.Statfs_t
	if control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }) != nil {
		return false
	}
	return localType(uint32(st.Type))
}

// localType knows the file systems that are local by their numbers. Those it does not
// know may be anything: FUSE is. ZFS is local, but what is read there by system calls
// is in a cache of its own, and a mapping would have it in memory twice.
func localType(magic uint32) bool {
	switch magic {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC,
		unix.BCACHEFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC:
		return true
	}
	return false
}
