// Package planted holds the switch of the bugs that are built into this module on
// purpose: to see that its tests find them.
//
// In an ordinary build [Bug] is a constant false, so the compiler drops every planted
// line and the name with it. Built with the tag "planted", a program makes the one
// mistake that the environment variable DAGSTORE_PLANT names when it starts, or none.
//
// What each bug breaks, and which test finds it, stands in the registry of
// internal/planted/hunt, which runs them all:
//
//	go run ./internal/planted/hunt
package planted

// Unless does what do does, unless the bug name is planted: then it does nothing and
// calls that a success.
func Unless(name string, do func() error) error {
	if Bug(name) {
		return nil
	}
	return do()
}
