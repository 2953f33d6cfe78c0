package index

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	carindex "github.com/ipld/go-car/v2/index"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// FSIndexRepo keeps indices as files in one directory. It implements
// [FullIndexRepo] and [LifeRepo]. A file is named
//
//	<generation, 16 hex digits>-<first 16 bytes of SHA-256(key), hex>.idx
//
// so that no part of a key ever becomes part of a path; the key itself is in the
// file. Files are written as a temporary file, synced and renamed.
//
// The predecessor's <key>.full.idx files in the same directory are read and dropped
// like indices of a generation before all others, and never written.
type FSIndexRepo struct {
	fs  fsio.FS
	dir string

	// writing is held shared while files are written, so that a sweep does not take
	// their temporary names.
	writing sync.RWMutex

	mu sync.Mutex // guards what follows
	// scratch holds the names of temporary files in use by builds. A build may take as
	// long as its source, so that no sweep can wait for it.
	scratch map[string]struct{}
	// generations lists the generations on disk per key, ascending. It is nil until
	// one of the FullIndexRepo's methods needs it: the LifeRepo's know their file
	// names.
	generations map[keyHash][]uint64
}

var (
	_ FullIndexRepo = (*FSIndexRepo)(nil)
	_ LifeRepo      = (*FSIndexRepo)(nil)
	_ Syncer        = (*FSIndexRepo)(nil)
	_ PutterContext = (*FSIndexRepo)(nil)
	_ Spiller       = (*FSIndexRepo)(nil)
)

const (
	indexSuffix  = ".idx"
	legacySuffix = ".full.idx"
	versionFile  = ".version"
	legacyFormat = "1"
)

// keyHash stands for a key in file names.
type keyHash [16]byte

func hashKey(key shard.Key) keyHash {
	sum := sha256.Sum256([]byte(key.String()))
	return keyHash(sum[:16])
}

// NewFSRepo opens a repository in a directory of the operating system, which is made
// if missing.
func NewFSRepo(baseDir string) (*FSIndexRepo, error) {
	return NewFSRepoOn(fsio.OS(), baseDir)
}

// NewFSRepoOn is [NewFSRepo] on any file system.
func NewFSRepoOn(fsys fsio.FS, baseDir string) (*FSIndexRepo, error) {
	if fsys == fsio.OS() { // the process may go elsewhere
		abs, err := filepath.Abs(baseDir)
		if err != nil {
			return nil, fmt.Errorf("index repository: %w", err)
		}
		baseDir = abs
	}
	if err := fsys.MkdirAll(baseDir, 0o700); err != nil {
		return nil, fmt.Errorf("index repository: %w", err)
	}
	r := &FSIndexRepo{fs: fsys, dir: baseDir, scratch: make(map[string]struct{})}
	if err := r.checkVersion(); err != nil {
		return nil, err
	}
	return r, nil
}

// TopLevelDir is the directory within the repository's that a store keeps its own
// top-level index in if it is told of no other. It is empty for a repository on another
// file system than the operating system's.
func (r *FSIndexRepo) TopLevelDir() string {
	if r.fs != fsio.OS() {
		return ""
	}
	return filepath.Join(r.dir, "toplevel")
}

// checkVersion looks at the predecessor's version file, if there is one.
func (r *FSIndexRepo) checkVersion() error {
	name := filepath.Join(r.dir, versionFile)
	f, err := r.fs.OpenFile(name, 0, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("index repository: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("index repository: read %s: %w", name, err)
	}
	if v := string(bytes.TrimSpace(b)); v != legacyFormat {
		return fmt.Errorf("%w: %s says %q, this release knows %q", ErrNewerFormat, name, v, legacyFormat)
	}
	return nil
}

func fileName(h keyHash, gen uint64) string {
	return fmt.Sprintf("%016x-%x%s", gen, h[:], indexSuffix)
}

// parseFileName is the inverse of fileName.
func parseFileName(name string) (h keyHash, gen uint64, ok bool) {
	if len(name) != 16+1+32+len(indexSuffix) {
		return h, 0, false
	}
	gen, err := strconv.ParseUint(name[:16], 16, 64)
	if err != nil {
		return h, 0, false
	}
	if _, err := hex.Decode(h[:], []byte(name[17:49])); err != nil {
		return h, 0, false
	}
	return h, gen, fileName(h, gen) == name
}

func (r *FSIndexRepo) path(h keyHash, gen uint64) string {
	return filepath.Join(r.dir, fileName(h, gen))
}

// PutIndex implements [LifeRepo].
func (r *FSIndexRepo) PutIndex(key shard.Key, gen uint64, d *Draft) error {
	return r.PutIndexContext(context.Background(), key, gen, d)
}

// PutIndexContext implements [PutterContext].
func (r *FSIndexRepo) PutIndexContext(ctx context.Context, key shard.Key, gen uint64, d *Draft) error {
	if err := key.Validate(); err != nil {
		return err
	}
	r.writing.RLock()
	defer r.writing.RUnlock()
	h := hashKey(key)
	err := fsio.WriteFileAtomic(r.fs, r.path(h, gen), 0o600, func(f fsio.File) error {
		return d.writeFile(ctx, f, key, gen)
	})
	if err != nil {
		return fmt.Errorf("index of shard %s: %w", key, err)
	}
	r.noteAdded(h, gen)
	return nil
}

// CreateScratch implements [Spiller]. The file is a temporary one of the index that it
// helps to make, and has its name.
func (r *FSIndexRepo) CreateScratch(key shard.Key, gen uint64) (ScratchFile, error) {
	if err := key.Validate(); err != nil {
		return nil, err
	}
	r.writing.RLock()
	defer r.writing.RUnlock()
	f, err := fsio.CreateTemp(r.fs, r.path(hashKey(key), gen), 0o600)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.scratch[filepath.Base(f.Name())] = struct{}{}
	return &scratchFile{File: f, repo: r}, nil
}

// scratchFile is the temporary file of a build.
type scratchFile struct {
	fsio.File
	repo *FSIndexRepo
	once sync.Once
	err  error
}

// Close closes and removes the file. One that cannot be removed is swept.
func (f *scratchFile) Close() error {
	f.once.Do(func() {
		base := filepath.Base(f.Name())
		f.err = f.File.Close()
		_, err := f.repo.remove(base)
		f.err = errors.Join(f.err, err)
		f.repo.mu.Lock()
		defer f.repo.mu.Unlock()
		delete(f.repo.scratch, base)
	})
	return f.err
}

// keepsTemp says whether a name is that of a temporary file which a build has open.
func (r *FSIndexRepo) keepsTemp(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.scratch[name]
	return ok && !planted.Bug("index-sweep-takes-temps-in-use") || planted.Bug("index-temp-not-swept")
}

// OpenIndex implements [LifeRepo].
func (r *FSIndexRepo) OpenIndex(key shard.Key, gen uint64) (*ShardIndex, error) {
	name := r.path(hashKey(key), gen)
	x, err := openFile(r.fs, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrNotFound
	case err != nil:
		return nil, err
	}
	if c := x.core; (c.key != key.String() || c.gen != gen) && !planted.Bug("index-of-another-life-opened") {
		err := &DamagedError{File: name, What: fmt.Sprintf("it is the index of shard %.64q, generation %d", c.key, c.gen)}
		return nil, errors.Join(err, x.Close())
	}
	return x, nil
}

// DropIndex implements [LifeRepo]. It does not wait for the disk: a crash may bring
// the file back, and the next sweep takes it.
func (r *FSIndexRepo) DropIndex(key shard.Key, gen uint64) (bool, error) {
	h := hashKey(key)
	dropped, err := r.remove(fileName(h, gen))
	if err == nil {
		r.noteRemoved(h, gen)
	}
	return dropped, err
}

func (r *FSIndexRepo) remove(name string) (bool, error) {
	switch err := r.fs.Remove(filepath.Join(r.dir, name)); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, err
	}
}

// SweepIndexes implements [LifeRepo]. Temporary files of builds that go on stay. Generation 0, which AddFullIndex uses, is asked
// about like any other; the predecessor's files stay.
func (r *FSIndexRepo) SweepIndexes(alive func(gen uint64) bool) (removed int, err error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	entries, err := r.fs.ReadDir(r.dir)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, e := range entries {
		name := e.Name()
		base := name
		temp := fsio.IsTemp(name)
		if temp {
			base = name[:strings.LastIndex(name, indexSuffix)+len(indexSuffix)]
		}
		h, gen, ours := parseFileName(base)
		if !ours || !e.Type().IsRegular() || !temp && alive(gen) || temp && r.keepsTemp(name) {
			continue
		}
		gone, err := r.remove(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if gone {
			removed++
		}
		if !temp {
			r.noteRemoved(h, gen)
		}
	}
	return removed, errors.Join(errs...)
}

// SyncIndexes implements [Syncer]. The contents were synced before a file got its
// name, so only the names are missing.
func (r *FSIndexRepo) SyncIndexes() error { return r.fs.SyncDir(r.dir) }

func (r *FSIndexRepo) noteAdded(h keyHash, gen uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.generations == nil {
		return
	}
	gens := r.generations[h]
	if i, found := slices.BinarySearch(gens, gen); !found {
		r.generations[h] = slices.Insert(gens, i, gen)
	}
}

func (r *FSIndexRepo) noteRemoved(h keyHash, gen uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	gens := r.generations[h]
	i, found := slices.BinarySearch(gens, gen)
	switch {
	case !found:
	case len(gens) == 1:
		delete(r.generations, h)
	default:
		r.generations[h] = slices.Delete(gens, i, i+1)
	}
}

// generationsOf returns the generations of a key, ascending.
func (r *FSIndexRepo) generationsOf(h keyHash) ([]uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.generations == nil {
		entries, err := r.fs.ReadDir(r.dir)
		if err != nil {
			return nil, err
		}
		// Names ascend, and begin with the generation.
		all := make(map[keyHash][]uint64, len(entries))
		for _, e := range entries {
			if h, gen, ours := parseFileName(e.Name()); ours && e.Type().IsRegular() {
				all[h] = append(all[h], gen)
			}
		}
		r.generations = all
	}
	return slices.Clone(r.generations[h]), nil
}

// GetFullIndex implements [FullIndexRepo]. The index gives its file back when it is
// no longer referenced; a *[ShardIndex] may also be closed.
func (r *FSIndexRepo) GetFullIndex(key shard.Key) (carindex.Index, error) {
	gens, err := r.generationsOf(hashKey(key))
	if err != nil {
		return nil, err
	}
	for _, gen := range slices.Backward(gens) {
		x, err := r.OpenIndex(key, gen)
		if err == nil {
			return x, nil
		}
		if err != ErrNotFound { // dropped since
			return nil, err
		}
	}
	return r.legacyIndex(key)
}

// AddFullIndex implements [FullIndexRepo] under generation 0. The index must be a
// carindex.IterableIndex; one that is not a *[ShardIndex] is stored without block
// sizes and bound to no source.
func (r *FSIndexRepo) AddFullIndex(key shard.Key, index carindex.Index) error {
	d, err := draftOf(index)
	if err != nil {
		return fmt.Errorf("index of shard %s: %w", key, err)
	}
	defer d.Close()
	return r.PutIndex(key, 0, d)
}

// draftOf drafts a copy of any index that can be iterated.
func draftOf(index carindex.Index) (*Draft, error) {
	switch idx := index.(type) {
	case *ShardIndex:
		return idx.draft()
	case carindex.IterableIndex:
		return ImportIndex(idx)
	}
	return nil, fmt.Errorf("%w: an index of type %T cannot be iterated", ErrBadIndex, index)
}

// DropFullIndex implements [FullIndexRepo]. The removal is durable.
func (r *FSIndexRepo) DropFullIndex(key shard.Key) (dropped bool, err error) {
	gens, err := r.generationsOf(hashKey(key))
	if err != nil {
		return false, err
	}
	for _, gen := range gens {
		one, err := r.DropIndex(key, gen)
		if err != nil {
			return dropped, err
		}
		dropped = dropped || one
	}
	if name, ok := legacyName(key); ok {
		one, err := r.remove(name)
		if err != nil {
			return dropped, err
		}
		dropped = dropped || one
	}
	if dropped {
		err = r.fs.SyncDir(r.dir)
	}
	return dropped, err
}

// StatFullIndex implements [FullIndexRepo].
func (r *FSIndexRepo) StatFullIndex(key shard.Key) (Stat, error) {
	h := hashKey(key)
	gens, err := r.generationsOf(h)
	if err != nil {
		return Stat{}, err
	}
	var names []string
	for _, gen := range slices.Backward(gens) {
		names = append(names, fileName(h, gen))
	}
	if name, ok := legacyName(key); ok {
		names = append(names, name)
	}
	for _, name := range names {
		info, err := r.fs.Lstat(filepath.Join(r.dir, name))
		switch {
		case err == nil:
			return Stat{Exists: true, Size: uint64(info.Size())}, nil
		case !errors.Is(err, fs.ErrNotExist):
			return Stat{}, err
		}
	}
	return Stat{}, nil
}

// Len implements [FullIndexRepo].
func (r *FSIndexRepo) Len() (int, error) {
	seen := make(map[keyHash]struct{})
	err := r.scan(func(e fs.DirEntry, h keyHash, _ uint64, _ bool) error {
		seen[h] = struct{}{}
		return nil
	})
	return len(seen), err
}

// Size implements [FullIndexRepo].
func (r *FSIndexRepo) Size() (uint64, error) {
	total := uint64(0)
	err := r.scan(func(e fs.DirEntry, _ keyHash, _ uint64, _ bool) error {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) { // dropped since
			return nil
		}
		if err == nil {
			total += uint64(info.Size())
		}
		return err
	})
	return total, err
}

// ForEach implements [FullIndexRepo]. A file whose header is damaged cannot say
// which shard it belongs to: the others are visited first, then its *[DamagedError]
// is returned.
func (r *FSIndexRepo) ForEach(visit func(shard.Key) (bool, error)) error {
	seen := make(map[keyHash]struct{})
	var damage error
	err := r.scan(func(e fs.DirEntry, h keyHash, gen uint64, legacy bool) error {
		if _, ok := seen[h]; ok {
			return nil
		}
		key := shard.KeyFromString(strings.TrimSuffix(e.Name(), legacySuffix))
		if !legacy {
			x, err := openFile(r.fs, filepath.Join(r.dir, e.Name()))
			var d *DamagedError
			switch {
			case errors.Is(err, fs.ErrNotExist): // dropped since
				return nil
			case errors.As(err, &d):
				damage = firstError(damage, err)
				return nil
			case err != nil:
				return err
			}
			key = shard.KeyFromString(x.core.key)
			if err := x.Close(); err != nil {
				return err
			}
		}
		seen[h] = struct{}{}
		more, err := visit(key)
		if err == nil && !more {
			err = errStop
		}
		return err
	})
	if err == errStop {
		return nil
	}
	return firstError(err, damage)
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// scan visits the index files, the predecessor's included.
func (r *FSIndexRepo) scan(visit func(e fs.DirEntry, h keyHash, gen uint64, legacy bool) error) error {
	entries, err := r.fs.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		h, gen, ours := parseFileName(e.Name())
		legacy := !ours && strings.HasSuffix(e.Name(), legacySuffix) && len(e.Name()) > len(legacySuffix)
		if legacy {
			h = hashKey(shard.KeyFromString(strings.TrimSuffix(e.Name(), legacySuffix)))
		}
		if ours || legacy {
			if err := visit(e, h, gen, legacy); err != nil {
				return err
			}
		}
	}
	return nil
}

// legacyName returns the name that the predecessor gave a key's file; false if the
// key could not have had one.
func legacyName(key shard.Key) (string, bool) {
	name := key.String() + legacySuffix
	const longest = 255 // of a name, on any file system that counts
	return name, key.Validate() == nil && len(name) <= longest && filepath.Base(name) == name && !strings.ContainsAny(name, "/\x00")
}

// legacyIndex reads a file of the predecessor.
func (r *FSIndexRepo) legacyIndex(key shard.Key) (carindex.Index, error) {
	name, ok := legacyName(key)
	if !ok {
		return nil, ErrNotFound
	}
	name = filepath.Join(r.dir, name)
	f, err := r.fs.OpenFile(name, 0, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing can be lost
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	idx, err := ReadForeignIndex(f, info.Size())
	if errors.Is(err, ErrBadIndex) {
		return nil, &DamagedError{File: name, What: err.Error()}
	}
	return idx, err
}
