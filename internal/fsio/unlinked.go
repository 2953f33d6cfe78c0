package fsio

// Unlinked reports whether an open file has lost its last name, so that nobody will find
// it again; false where the platform cannot tell. It looks at the file, not at the disk.
func Unlinked(f File) bool {
	u, ok := f.(interface{ unlinked() bool })
	return ok && u.unlinked()
}

// LocksNames says whether a lock on a file that others read and write keeps them from
// neither. Where it does not (Windows), only files made for it are locked.
func LocksNames(fsys FS) bool {
	if _, ok := fsys.(osFS); ok {
		return locksAreAdvisory
	}
	return true
}

func (f *simFile) unlinked() bool {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.n.nlink == 0 && !f.s.dead
}
