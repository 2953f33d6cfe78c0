package mount

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
)

// Names of local copies. Never the raw key: that may be anything, "../" included.
//
//	<name>                      16 hex digits '-' 32 hex digits, see CopyName
//	<name>.complete             a sealed, durable copy
//	<name>.partial-<16 hex>     being written; worthless after a crash
const (
	completeSuffix = ".complete"
	partialInfix   = ".partial-"

	genDigits  = 16
	hashDigits = 32
	tempDigits = 16
)

// CopyName returns the name of the local copy of one life of a shard: its
// generation and the first half of its key's SHA-256, in hexadecimal.
func CopyName(gen uint64, key string) string {
	h := sha256.Sum256([]byte(key))
	return fmt.Sprintf("%0*x-%s", genDigits, gen, hex.EncodeToString(h[:hashDigits/2]))
}

// validCopyName tells whether name is one that CopyName can return.
func validCopyName(name string) bool {
	gen, hash, ok := strings.Cut(name, "-")
	return ok && isHex(gen, genDigits) && isHex(hash, hashDigits)
}

// parseCopyFile takes a file name apart. It knows only the names that this package
// gives, so that no other file is ever taken for one of its own.
func parseCopyFile(file string) (name string, complete, ok bool) {
	if name, ok := strings.CutSuffix(file, completeSuffix); ok {
		return name, true, validCopyName(name)
	}
	name, temp, _ := strings.Cut(file, partialInfix)
	return name, false, validCopyName(name) && isHex(temp, tempDigits)
}

func isHex(s string, digits int) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == digits
}

func tempName(dir, name string) string {
	var b [tempDigits / 2]byte
	rand.Read(b[:]) // never fails
	return filepath.Join(dir, name+partialInfix+hex.EncodeToString(b[:]))
}

// SweepCopies removes from dir the local copies whose names are not alive, and all
// partial ones, whosever they are. It touches only regular files with names that
// this package gives, and returns the file names that it removed. Call it before
// the first fetch into dir. A directory that does not exist is empty. An error
// does not stop the sweep; the errors are joined. The copies that stay are durable
// after a nil error.
func SweepCopies(fsys fsio.FS, dir string, alive func(name string) bool) (removed []string, err error) {
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sweep local copies: %w", err)
	}
	var errs []error
	found := false
	for _, e := range entries {
		name, complete, ok := parseCopyFile(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		if found = true; complete && alive(name) || !complete && planted.Bug("copy-partial-not-swept") {
			continue
		}
		if err := removeFile(fsys, filepath.Join(dir, e.Name())); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, e.Name())
	}
	if found { // a killed process may have given a copy its name and not synced it
		errs = append(errs, fsys.SyncDir(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return removed, fmt.Errorf("sweep local copies: %w", err)
	}
	return removed, nil
}

// removeFile removes a file; one that is not there is removed already.
func removeFile(fsys fsio.FS, path string) error {
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
