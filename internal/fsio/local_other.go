//go:build !(darwin || dragonfly || freebsd || linux)

package fsio

import "os"

// local says whether a file is on a file system that this machine has to itself,
// which cannot be found out here.
func local(*os.File) bool { return false }
