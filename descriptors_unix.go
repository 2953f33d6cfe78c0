//go:build unix

package dagstore

import "golang.org/x/sys/unix"

// descriptorLimit is how many descriptors the process may have.
func descriptorLimit() (limit uint64, known bool) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur == unix.RLIM_INFINITY {
		return 0, false
	}
	return uint64(l.Cur), true
}
