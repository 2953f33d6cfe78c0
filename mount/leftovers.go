package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/dagstore/dagstore/internal/fsio"
)

// Leftover is a file in a directory of local copies that nothing needs.
type Leftover struct {
	Name  string // without its directory
	Bytes int64
}

// Leftovers lists what [SweepCopies] would remove, with their sizes, and changes nothing.
func Leftovers(fsys fsio.FS, dir string, alive func(name string) bool) ([]Leftover, error) {
	return listFiles(fsys, dir, func(file string) bool {
		name, complete, ok := parseCopyFile(file)
		return ok && !(complete && alive(name))
	})
}

// The predecessor's local copies are called
//
//	transient-<key>.partial    unfinished; worthless
//	transient-<key>.complete   whole
const (
	legacyPrefix  = "transient-"
	legacyPartial = ".partial"
)

// LegacyPartials lists the unfinished copies that the predecessor left, with their sizes.
func LegacyPartials(fsys fsio.FS, dir string) ([]Leftover, error) {
	return listFiles(fsys, dir, IsLegacyPartial)
}

// IsLegacyPartial says whether a file has the name of an unfinished copy of the
// predecessor.
func IsLegacyPartial(file string) bool {
	return strings.HasPrefix(file, legacyPrefix) && strings.HasSuffix(file, legacyPartial) && len(file) > len(legacyPrefix)+len(legacyPartial)
}

func listFiles(fsys fsio.FS, dir string, wanted func(file string) bool) (files []Leftover, err error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		if err = ignoreMissing(err); err != nil {
			err = fmt.Errorf("list local copies: %w", err)
		}
		return nil, err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !wanted(e.Name()) {
			continue
		}
		var info fs.FileInfo
		if info, err = e.Info(); err != nil {
			if err = ignoreMissing(err); err != nil {
				return files, err
			}
			continue // removed since
		}
		files = append(files, Leftover{e.Name(), info.Size()})
	}
	return files, nil
}

// RemoveCopies removes files that [Leftovers] listed, and none of other names. The errors
// are joined.
func RemoveCopies(fsys fsio.FS, dir string, files []string) error {
	var errs []error
	for _, file := range files {
		if _, _, ok := parseCopyFile(file); ok {
			errs = append(errs, removeFile(fsys, filepath.Join(dir, file)))
		}
	}
	return errors.Join(errs...)
}

// SyncCopies makes the names of the local copies in dir durable, if there are any: a
// process that was killed may have given one its name and not have got further.
func SyncCopies(fsys fsio.FS, dir string) error {
	names, err := ListCopies(fsys, dir)
	if err != nil || len(names) == 0 {
		return err
	}
	return fsys.SyncDir(dir)
}

// RemoveLegacyPartial removes an unfinished copy of the predecessor, and no other file.
func RemoveLegacyPartial(fsys fsio.FS, dir, file string) error {
	if !IsLegacyPartial(file) || filepath.Base(file) != file {
		return nil
	}
	return removeFile(fsys, filepath.Join(dir, file))
}
