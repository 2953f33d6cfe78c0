//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package fsio

func (f osFile) unlinked() bool { return false }
func (f osFile) tryLock() error { return nil }
