package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/dagstore/dagstore/internal/fsio"
)

// ErrTransientNotFound is returned when there is no local copy and the request did
// not allow for a download.
var ErrTransientNotFound = errors.New("no local copy, and a download is not wanted")

// RemoveCopy removes the complete copy of the given name (see [CopyName]) from dir,
// durably. One that is not there is removed already. A name that CopyName does not
// make is refused.
func RemoveCopy(fsys fsio.FS, dir, name string) error {
	if !validCopyName(name) {
		return fmt.Errorf("remove local copy: %q is not the name of one", name)
	}
	path := filepath.Join(dir, name+completeSuffix)
	if _, err := fsys.Lstat(path); err != nil {
		return ignoreMissing(err)
	}
	if err := removeFile(fsys, path); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ListCopies returns the names of the complete copies in dir.
func ListCopies(fsys fsio.FS, dir string) (names []string, err error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	for _, e := range entries {
		if name, complete, ok := parseCopyFile(e.Name()); ok && complete && e.Type().IsRegular() {
			names = append(names, name)
		}
	}
	return names, nil
}

// CopyGeneration returns the generation that a copy's name carries; false for a name
// that CopyName does not make.
func CopyGeneration(name string) (gen uint64, ok bool) {
	if !validCopyName(name) {
		return 0, false
	}
	gen, err := strconv.ParseUint(name[:genDigits], 16, 64)
	return gen, err == nil
}
