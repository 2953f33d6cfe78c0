package projection

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/dagstore/dagstore/internal/fsio"
)

const (
	checkpointSuffix = ".ckpt"
	seqDigits        = 16
	dirPerm          = 0o700
	filePerm         = 0o600
)

// checkpointFiles is the directory of the checkpoints of all views. The file of a
// view's state at seq is called
//
//	<view>-<seq, 16 hexadecimal digits>.ckpt
//
// Who reads trusts the header and never the name.
type checkpointFiles struct {
	fsys fsio.FS
	dir  string
}

func checkpointName(view string, seq uint64) string {
	return fmt.Sprintf("%s-%0*x%s", view, seqDigits, seq, checkpointSuffix)
}

// parseCheckpointName is the inverse of checkpointName.
func parseCheckpointName(name string) (view string, seq uint64, ok bool) {
	base, ok := strings.CutSuffix(name, checkpointSuffix)
	i := len(base) - seqDigits - 1
	if !ok || i <= 0 {
		return "", 0, false
	}
	seq, err := strconv.ParseUint(base[i+1:], 16, 64)
	if err != nil || checkpointName(base[:i], seq) != name {
		return "", 0, false
	}
	return base[:i], seq, true
}

func (c *checkpointFiles) path(name string) string { return filepath.Join(c.dir, name) }

// prepare makes the directory and sweeps what a crash left there.
func (c *checkpointFiles) prepare() error {
	if err := c.fsys.MkdirAll(c.dir, dirPerm); err != nil {
		return err
	}
	_, err := fsio.SweepTemps(c.fsys, c.dir)
	return err
}

// checkpointFile is a directory entry.
type checkpointFile struct {
	name string
	seq  uint64 // as the name has it
}

// list returns the view's files, newest first by name. A missing directory holds none.
func (c *checkpointFiles) list(view string) ([]checkpointFile, error) {
	entries, err := c.fsys.ReadDir(c.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var files []checkpointFile
	for _, e := range entries {
		if v, seq, ok := parseCheckpointName(e.Name()); ok && v == view && e.Type().IsRegular() {
			files = append(files, checkpointFile{e.Name(), seq})
		}
	}
	slices.SortFunc(files, func(a, b checkpointFile) int { return cmp.Compare(b.seq, a.seq) })
	return files, nil
}

// open opens a checkpoint and reads its header. The caller closes the file.
func (c *checkpointFiles) open(name string) (*checkpointReader, fsio.File, error) {
	f, err := c.fsys.OpenFile(c.path(name), os.O_RDONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	var r *checkpointReader
	if err == nil {
		r, err = newCheckpointReader(f, info.Size())
	}
	if err != nil {
		// A file that was only read has nothing to report on closing.
		_ = f.Close()
		return nil, nil, err
	}
	return r, f, nil
}

// write writes the checkpoint of id and returns the file's size. It ends early,
// leaving nothing, when ctx does.
func (c *checkpointFiles) write(ctx context.Context, id checkpointID, save func(emit func([]byte) error) error) (int64, error) {
	var w checkpointWriter
	err := fsio.WriteFileAtomic(c.fsys, c.path(checkpointName(id.view, id.pos.Seq)), filePerm, func(f fsio.File) error {
		w = checkpointWriter{w: f}
		if err := w.begin(&id); err != nil {
			return err
		}
		err := save(func(block []byte) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return w.block(block)
		})
		if err != nil {
			return err
		}
		return w.end()
	})
	return w.size, err
}

// removeBut removes the view's checkpoints except those of the given sequence
// numbers, and except files of formats that this release does not know: they were
// written by another that may come back.
func (c *checkpointFiles) removeBut(view string, keep ...uint64) error {
	files, err := c.list(view)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		if slices.Contains(keep, f.seq) {
			continue
		}
		if _, file, err := c.open(f.name); err == nil {
			_ = file.Close()
		} else if errors.Is(err, errOtherFormat) {
			continue
		}
		if err := c.fsys.Remove(c.path(f.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
