//go:build !planted

package planted

// Bug says whether the mistake called name is to be made.
func Bug(name string) bool { return false }
