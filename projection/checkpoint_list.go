package projection

import (
	"errors"
	"io"
	"io/fs"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
)

// FoundCheckpoint is a checkpoint on disk, of whatever view and version, whose header
// says what it is of.
type FoundCheckpoint struct {
	File     string // its name, without the directory
	View     string
	Version  uint32
	Position journal.Position
}

// ListCheckpoints reads the headers of the checkpoints in a directory, in the order of
// their names, and changes nothing. Files whose header does not verify, or is of another
// release, are left out: what they say cannot be believed. A directory that is not there
// holds none. An error is the disk's.
func ListCheckpoints(fsys fsio.FS, dir string) ([]FoundCheckpoint, error) {
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	files := checkpointFiles{fsys: fsys, dir: dir}
	var found []FoundCheckpoint
	for _, e := range entries {
		if _, _, ok := parseCheckpointName(e.Name()); !ok || !e.Type().IsRegular() {
			continue
		}
		c, f, err := files.open(e.Name())
		switch {
		case errors.Is(err, errDamagedCheckpoint) || errors.Is(err, errOtherFormat) || errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, err
		}
		_ = f.Close() // was only read
		found = append(found, FoundCheckpoint{File: e.Name(), View: c.id.view, Version: c.id.version, Position: c.id.pos})
	}
	return found, nil
}

// LoadCheckpoint fills w, a view that shows nothing, from a checkpoint file, whichever
// journal it is of. It is for those who have lost their journal: nothing is held against
// one. After an error w is not to be used.
func LoadCheckpoint(fsys fsio.FS, dir, file string, w Saver) (journal.Position, error) {
	files := checkpointFiles{fsys: fsys, dir: dir}
	c, f, err := files.open(file)
	if err != nil {
		return journal.Position{}, err
	}
	defer func() { _ = f.Close() }()
	if c.id.view != w.Name() || c.id.version != w.Version() {
		return c.id.pos, errOtherView
	}
	err = safely("Restore", func() error {
		if err := w.Restore(c.id.pos, c.next); err != nil {
			return err
		}
		_, err := c.finish()
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return err
	})
	return c.id.pos, err
}
