package index

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/shard"
)

// Leftover is a file that nothing in the store needs.
type Leftover struct {
	// Name is the file's, without its directory.
	Name string
	// Bytes is its size.
	Bytes int64
}

// NewestGeneration looks at the names of the index files in a directory of an
// [FSIndexRepo], which need not be there, and changes nothing. It returns how many files
// there are and the highest generation below limit that one carries. Files of the
// predecessor, and those of AddFullIndex, carry none.
func NewestGeneration(fsys fsio.FS, dir string, limit uint64) (gen uint64, files int, err error) {
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	for _, e := range entries {
		_, g, ours := parseFileName(e.Name())
		if !ours || !e.Type().IsRegular() {
			continue
		}
		files++
		if g < limit {
			gen = max(gen, g)
		}
	}
	return gen, files, nil
}

// NewestGeneration is the function of that name for the repository's directory.
func (r *FSIndexRepo) NewestGeneration(limit uint64) (gen uint64, files int, err error) {
	return NewestGeneration(r.fs, r.dir, limit)
}

// Leftovers lists what SweepIndexes would remove, with their sizes, and changes nothing.
func (r *FSIndexRepo) Leftovers(alive func(gen uint64) bool) ([]Leftover, error) {
	return r.list(func(name string) bool {
		base, temp := name, fsio.IsTemp(name)
		if temp {
			base = name[:strings.LastIndex(name, indexSuffix)+len(indexSuffix)]
		}
		_, gen, ours := parseFileName(base)
		return ours && (temp && !r.keepsTemp(name) || !temp && !alive(gen))
	})
}

// Files lists the names of the index files, without the predecessor's.
func (r *FSIndexRepo) Files() ([]string, error) {
	files, err := r.list(func(name string) bool {
		_, _, ours := parseFileName(name)
		return ours
	})
	names := make([]string, len(files))
	for i := range files {
		names[i] = files[i].Name
	}
	return names, err
}

// LegacyFiles lists the predecessor's index files, with their sizes. Files that only have
// such a name are not among them.
func (r *FSIndexRepo) LegacyFiles() ([]Leftover, error) { return r.list(r.isLegacy) }

// isLegacy says whether a file is an index of the predecessor by its name, and begins as
// one: with the number of a codec that go-car writes, 0x0400 or 0x0401, as a varint.
func (r *FSIndexRepo) isLegacy(name string) bool {
	if _, _, ours := parseFileName(name); ours || !strings.HasSuffix(name, legacySuffix) || len(name) == len(legacySuffix) || filepath.Base(name) != name {
		return false
	}
	f, err := r.fs.OpenFile(filepath.Join(r.dir, name), 0, 0)
	if err != nil {
		return false
	}
	defer f.Close() // was only read
	var b [2]byte
	n, _ := f.ReadAt(b[:], 0)
	return n == len(b) && (b[0] == 0x80 || b[0] == 0x81) && b[1] == 0x08
}

// LegacyName returns the name of the index file that the predecessor gave a key; false
// if it could give it none.
func LegacyName(key string) (string, bool) { return legacyName(shard.KeyFromString(key)) }

// DropLegacy removes the predecessor's index file of a key, if there is one. Indices of
// this release stay.
func (r *FSIndexRepo) DropLegacy(name string) (bool, error) {
	if !r.isLegacy(name) {
		return false, nil
	}
	return r.remove(name)
}

// list returns the regular files that wanted wants.
func (r *FSIndexRepo) list(wanted func(name string) bool) (files []Leftover, err error) {
	entries, err := r.fs.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !wanted(e.Name()) {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) { // dropped since
			continue
		}
		if err != nil {
			return files, err
		}
		files = append(files, Leftover{e.Name(), info.Size()})
	}
	return files, nil
}

// RemoveLeftovers removes files that Leftovers listed. Others stay. It does not wait for
// the disk. The errors are joined.
func (r *FSIndexRepo) RemoveLeftovers(names []string) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	var errs []error
	for _, name := range names {
		base, temp := name, fsio.IsTemp(name)
		if temp {
			base = name[:strings.LastIndex(name, indexSuffix)+len(indexSuffix)]
		}
		h, gen, ours := parseFileName(base)
		if !ours || temp && r.keepsTemp(name) {
			continue
		}
		if _, err := r.remove(name); err != nil {
			errs = append(errs, err)
		} else if !temp {
			r.noteRemoved(h, gen)
		}
	}
	return errors.Join(errs...)
}
