package toplevel

import (
	"errors"
	"fmt"
	"io/fs"
)

var (
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("top-level index: closed")
	// ErrNewerFormat is returned, wrapped with the file, for what a newer release wrote.
	// Nothing is changed; use that release.
	ErrNewerFormat = errors.New("top-level index: newer format")
	// ErrFull is returned by Add when what is in memory cannot be written, and there is
	// too much of it. It wraps the error of the last attempt.
	ErrFull = errors.New("top-level index: memory is full of entries that cannot be written")
)

// DamagedError says that bytes of the index are not what was written. The cure is to
// build the index anew, from the shard indices.
type DamagedError struct {
	File   string
	Offset int64 // byte offset in File where the damage was noticed
	What   string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("top-level index: damage in %s at offset %d: %s; rebuild the view %q", e.File, e.Offset, e.What, "top-level")
}

func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) }
