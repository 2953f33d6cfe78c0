package fsio

// Unlinked reports whether an open file has lost its last name, so that nobody will find
// it again; false where the platform cannot tell. It looks at the file, not at the disk.
func Unlinked(f File) bool {
	u, ok := f.(interface{ unlinked() bool })
	return ok && u.unlinked()
}

// TryLock locks an open file against others who lock it, as long as it is open, or returns
// an error that wraps [ErrLocked]. Nobody is kept from reading or writing. Where locks are
// of another kind (Windows), and for files that are not this package's, it does nothing.
// Unlike a lock by name, [FS.Lock], it does not go with the name.
func TryLock(f File) error {
	if l, ok := f.(interface{ tryLock() error }); ok {
		return l.tryLock()
	}
	return nil
}

func (f *simFile) unlinked() bool {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.n.nlink == 0 && !f.s.dead
}

// tryLock: the lock is the opener's that has it, and ends with its Close.
func (f *simFile) tryLock() error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	for other := range f.s.open {
		if other != f && other.n == f.n && other.locked {
			return lockedError(f.name)
		}
	}
	f.locked = true
	return nil
}
