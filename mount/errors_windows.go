package mount

import (
	"syscall"

	"golang.org/x/sys/windows"
)

// shortages are the errors of a machine that lacks descriptors, memory or space: the
// system's, and those that package syscall makes up.
var shortages = []syscall.Errno{
	windows.ERROR_TOO_MANY_OPEN_FILES, windows.ERROR_NOT_ENOUGH_MEMORY, windows.ERROR_OUTOFMEMORY,
	windows.ERROR_DISK_FULL, windows.ERROR_HANDLE_DISK_FULL, windows.ERROR_DISK_QUOTA_EXCEEDED,
	windows.ERROR_NO_SYSTEM_RESOURCES, windows.WSAEMFILE, windows.WSAENOBUFS,
	syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG,
}
