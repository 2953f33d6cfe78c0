//go:build !windows

package mount

import "syscall"

// shortages are the errors of a machine that lacks descriptors, memory or space. EFBIG
// is the limit of a process or a file system on one file.
var shortages = []syscall.Errno{
	syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG,
}
