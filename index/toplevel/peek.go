package toplevel

import (
	"errors"
	"io/fs"

	"github.com/dagstore/dagstore/internal/fsio"
)

// Peek looks at an index on disk without opening it, and changes nothing. mark is what
// its manifest keeps, nil if there is none or it is damaged or of a later release; runs
// is how many files of runs the directory holds. A directory that is not there holds
// nothing.
func Peek(fsys fsio.FS, dir string) (mark []byte, runs int, err error) {
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		if _, _, ok := parseRunName(e.Name()); ok {
			runs++
		}
	}
	m, err := readManifest(fsys, dir)
	var damaged *DamagedError
	if errors.As(err, &damaged) || errors.Is(err, ErrNewerFormat) {
		return nil, runs, nil
	}
	if err != nil || m == nil {
		return nil, runs, err
	}
	return m.mark, runs, nil
}
