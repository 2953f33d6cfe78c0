package journal_test

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/dagstore/dagstore/internal/fsio"
)

// readOnly is a file system on which every mutation fails, so that a test in which
// nothing fails shows that there was none.
type readOnly struct{ fsio.FS }

type readOnlyFile struct{ fsio.File }

var errMutation = errors.New("a reader tried to change the disk")

func (r readOnly) OpenFile(name string, flag int, perm fs.FileMode) (fsio.File, error) {
	if flag != os.O_RDONLY {
		return nil, errMutation
	}
	f, err := r.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return readOnlyFile{f}, nil
}

func (readOnly) Rename(string, string) error            { return errMutation }
func (readOnly) Remove(string) error                    { return errMutation }
func (readOnly) MkdirAll(string, fs.FileMode) error     { return errMutation }
func (readOnly) SyncDir(string) error                   { return errMutation }
func (readOnly) Lock(string) (io.Closer, error)         { return nil, errMutation }
func (readOnlyFile) Write([]byte) (int, error)          { return 0, errMutation }
func (readOnlyFile) WriteAt([]byte, int64) (int, error) { return 0, errMutation }
func (readOnlyFile) Sync() error                        { return errMutation }
func (readOnlyFile) SyncData() error                    { return errMutation }
func (readOnlyFile) Truncate(int64) error               { return errMutation }
