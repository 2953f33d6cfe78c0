package fsio

// lockProber is an extra power of an FS: to see whether somebody holds a lock.
type lockProber interface {
	LockHeld(name string) (held, known bool)
}

// LockHeld says whether somebody holds the lock that file name stands for, without taking
// it for a moment: who opens the store just then would be refused. known is false where
// that cannot be seen. A holder on another machine, or in a PID namespace that this
// process does not see into, is not seen.
func LockHeld(fsys FS, name string) (held, known bool) {
	if p, ok := fsys.(lockProber); ok {
		return p.LockHeld(name)
	}
	return false, false
}
