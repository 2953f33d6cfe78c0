//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package fsio

const locksAreAdvisory = false

func (f osFile) unlinked() bool { return false }
