//go:build unix

package mount

import "syscall"

// openNonblock makes opening a pipe return at once. It changes nothing for
// regular files.
const openNonblock = syscall.O_NONBLOCK
