package fsio

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// SyncData is fdatasync(2), which leaves out the times but not the size.
func (f osFile) SyncData() error {
	if err := control(f.File, unix.Fdatasync); err != nil {
		return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return nil
}
