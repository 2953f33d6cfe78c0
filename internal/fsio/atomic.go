package fsio

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dagstore/dagstore/internal/planted"
)

// A temporary file is named after the file that it will become:
//
//	<base>.tmp-<8 hex digits>
//
// The digits are the first that are free, not random, so that a simulated run is
// the same every time. O_EXCL keeps two writers apart, and planted links out.
const (
	tempMark   = ".tmp-"
	tempDigits = 8
)

// maxTemps bounds the temporary files that one name may have lying about.
const maxTemps = 1 << 12

// WriteFileAtomic gives the file name the contents that write writes, or leaves it
// as it was. A nil error means that the new contents are durable under that name.
//
//	create temp → write → Sync → Close → Rename → SyncDir
//
// A crash leaves the old or the new file, and at most the temp beside it, which
// [SweepTemps] removes. After an error name holds its old contents, with one
// exception: if the last step fails, it holds the new ones, and which of the two
// a crash would leave is not known.
func WriteFileAtomic(fsys FS, name string, perm fs.FileMode, write func(File) error) error {
	f, err := CreateTemp(fsys, name, perm)
	if err != nil {
		return err
	}
	temp := f.Name()
	err = write(f)
	if planted.Bug("fsio-rename-before-sync") {
		_ = fsys.Rename(temp, name)
	}
	if err == nil {
		err = planted.Unless("fsio-no-file-sync", f.Sync)
	}
	// Close always; its error counts, because some file systems report a failed
	// write only then.
	err = errors.Join(err, f.Close())
	if err == nil {
		err = planted.Unless("fsio-rename-before-sync", func() error { return fsys.Rename(temp, name) })
	}
	if err != nil {
		// A temp that cannot be removed now is swept later.
		_ = fsys.Remove(temp)
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := planted.Unless("fsio-no-dir-sync", func() error { return fsys.SyncDir(filepath.Dir(name)) }); err != nil {
		return fmt.Errorf("write %s: replaced, but not known to be durable: %w", name, err)
	}
	return nil
}

// CreateTemp creates an empty temporary file of the file name, which nobody else has,
// for reading and writing. [SweepTemps] removes it if its owner does not.
func CreateTemp(fsys FS, name string, perm fs.FileMode) (File, error) {
	for i := range maxTemps {
		temp := fmt.Sprintf("%s%s%0*x", name, tempMark, tempDigits, i)
		f, err := fsys.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
		if !errors.Is(err, fs.ErrExist) {
			return f, err
		}
	}
	return nil, &fs.PathError{Op: "create temp", Path: name, Err: fmt.Errorf("%d temporary files of that name exist; sweep the directory", maxTemps)}
}

// IsTemp reports whether name is one that [WriteFileAtomic] gives a temporary file.
func IsTemp(name string) bool {
	base := filepath.Base(name)
	i := len(base) - tempDigits
	if i <= len(tempMark) || !strings.HasSuffix(base[:i], tempMark) {
		return false
	}
	return strings.Trim(base[i:], "0123456789abcdef") == ""
}

// SweepTemps removes the temporary files that a crash left in dir and returns how
// many. It removes regular files whose name [IsTemp], and nothing else. Nobody may
// be writing in dir. A missing dir holds none.
func SweepTemps(fsys FS, dir string) (int, error) {
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	swept := 0
	var errs []error
	for _, e := range entries {
		if !e.Type().IsRegular() || !IsTemp(e.Name()) {
			continue
		}
		switch err := fsys.Remove(filepath.Join(dir, e.Name())); {
		case err == nil:
			swept++
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	return swept, errors.Join(errs...)
}
