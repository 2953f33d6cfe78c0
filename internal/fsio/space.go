package fsio

// Space is how much room a file system has, in bytes, for a user without privileges.
type Space struct {
	Free, Total int64
}

// Spacer is an extra power of an FS: telling how much room there is. The simulated disk
// does not have it.
type Spacer interface {
	// Space asks the file system that the directory is on.
	Space(dir string) (Space, error)
}

// SpaceOf asks fsys; false if it cannot tell.
func SpaceOf(fsys FS, dir string) (Space, bool) {
	s, ok := fsys.(Spacer)
	if !ok {
		return Space{}, false
	}
	space, err := s.Space(dir)
	return space, err == nil && space.Total > 0
}
