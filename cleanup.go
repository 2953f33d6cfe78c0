package dagstore

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// What a start removes is what a record says is over: copies and indices of lives that
// ended, and what was being written for a life when a process ended. Nothing is removed for
// want of a record. A file of a life that the journal has never heard of is another
// store's, or this store's with another journal.
//
// Below the horizon there is no record of lives that ended. A file from there is taken for
// this store's if all files beside it are of which there is a record.

// life is what a file's name says: a generation, and which key.
type life struct {
	gen  uint64
	hash string // as mount.CopyName has it
}

// lifeOf reads the name of a local copy or an index, finished or not.
func lifeOf(file string) (l life, ok bool) {
	const n = len("0000000000000000-") + 32
	if len(file) < n {
		return l, false
	}
	gen, ok := mount.CopyGeneration(file[:n])
	return life{gen, file[17:n]}, ok
}

func hashOf(key string) string { return mount.CopyName(0, key)[17:] }

// pasts is what the store has records of, of the generations that were asked for.
type pasts struct {
	// all: the store has no past, and whatever is not alive is over.
	all     bool
	horizon uint64
	born    map[life]struct{}
	alive   map[uint64]struct{}
	// keys are those of shards, by their hashes, if records are all that is left of a
	// past: what a record does not name of its shard is over.
	keys map[string]struct{}
}

// pastsOf looks up generations. A journal in memory that the store made itself has no
// past.
func (d *DAGStore) pastsOf(gens map[uint64]struct{}) (*pasts, error) {
	p := &pasts{born: make(map[life]struct{}), alive: make(map[uint64]struct{})}
	if d.cfg.ShardRepo != nil {
		p.keys = make(map[string]struct{})
	}
	d.cat.Snapshot().All(func(r *projection.Record) bool {
		if p.keys != nil {
			p.keys[hashOf(r.Key().String())] = struct{}{}
		}
		if _, wanted := gens[r.Gen()]; wanted {
			p.born[life{r.Gen(), hashOf(r.Key().String())}] = struct{}{}
			p.alive[r.Gen()] = struct{}{}
		}
		return true
	})
	if d.cfg.ShardRepo == nil && d.cfg.Journal == nil && d.cfg.Datastore == nil || planted.Bug("store-sweeps-without-a-record") {
		p.all = true
		return p, nil
	}
	if c, ok := d.journal.(journal.Compacted); ok {
		p.horizon = c.Horizon().Seq
	}
	rest := make(map[uint64]struct{})
	for g := range gens {
		if _, ok := p.alive[g]; !ok {
			rest[g] = struct{}{}
		}
	}
	err := d.births(rest, func(e *shard.Event) { p.born[life{e.Gen, hashOf(e.Key.String())}] = struct{}{} })
	return p, err
}

// forgotten says that there cannot be a record of a life any more, if it was.
func (p *pasts) forgotten(l life) bool {
	_, alive := p.alive[l.gen]
	return l.gen <= p.horizon && !alive
}

func (p *pasts) known(l life) bool {
	_, ok := p.born[l]
	if !ok && p.keys != nil {
		_, ok = p.keys[l.hash]
	}
	return ok || p.all
}

// trusts says that files beside others are taken for this store's without a record: none
// of the others contradicts it, and one bears it out. natural says that there need not be
// one.
func (p *pasts) trusts(files []string, natural bool) bool {
	found := natural
	for _, f := range files {
		l, ok := lifeOf(f)
		if !ok || l.gen == 0 || p.forgotten(l) {
			continue
		}
		if !p.known(l) {
			return false
		}
		found = true
	}
	return found
}

// fewBirths is up to how many registrations are looked up one by one.
const fewBirths = 16

// births visits the registrations of the generations, as far as the journal still has
// them.
func (d *DAGStore) births(of map[uint64]struct{}, visit func(*shard.Event)) error {
	gens := slices.Sorted(maps.Keys(of))
	horizon, head := uint64(0), d.journal.Head().Seq
	if c, ok := d.journal.(journal.Compacted); ok {
		horizon = c.Horizon().Seq
	}
	gens = slices.DeleteFunc(gens, func(g uint64) bool { return g <= horizon || g > head })
	if len(gens) == 0 {
		return nil
	}
	look := func(from, to uint64) error {
		err := d.journal.Replay(from-1, func(b *journal.Batch) error {
			for i := range b.Events {
				if e := &b.Events[i]; e.Kind == shard.EventRegistered && e.Seq == e.Gen {
					visit(e)
				}
			}
			if b.End.Seq >= to {
				return errFound
			}
			return d.ctx.Err()
		})
		if errors.Is(err, errFound) {
			return nil
		}
		return err
	}
	if len(gens) > fewBirths {
		return look(gens[0], gens[len(gens)-1])
	}
	for _, g := range gens {
		if err := look(g, g); err != nil {
			return err
		}
	}
	return nil
}

var errFound = errors.New("found")

// leftovers are the files of a directory that no living shard needs.
type leftovers struct {
	over  []string
	bytes int64
	// strange: there is no record of their lives.
	strange      []string
	strangeBytes int64
	sizes        map[string]int64
}

func (l *leftovers) add(p *pasts, trusted bool, name string, bytes int64) {
	of, ok := lifeOf(name)
	if _, born := p.born[of]; born && finished(name) {
		if _, alive := p.alive[of.gen]; alive {
			return // it was registered since the files were listed
		}
	}
	if l.sizes == nil {
		l.sizes = make(map[string]int64)
	}
	l.sizes[name] = bytes
	if ok && (p.known(of) || trusted && p.forgotten(of)) {
		l.over = append(l.over, name)
		l.bytes += bytes
		return
	}
	l.strange = append(l.strange, name)
	l.strangeBytes += bytes
}

// finished tells a copy or an index from one that is being written.
func finished(name string) bool {
	return strings.HasSuffix(name, ".idx") || strings.HasSuffix(name, copySuffix)
}

// sweepLeftovers removes the copies and indices of lives that are over, and what was being
// written when a process ended, unless Config.KeepLeftovers, and says so.
func (d *DAGStore) sweepLeftovers(copyAlive func(name string) bool, indexAlive func(gen uint64) bool) error {
	copies, indices, listed, err := d.findLeftovers(copyAlive, indexAlive)
	if err != nil {
		return err
	}
	if !d.cfg.KeepLeftovers {
		// What stays after an error is swept next time; nothing reads it.
		if err := mount.RemoveCopies(d.cfg.fs, d.cfg.TransientsDir, copies.over); err != nil {
			d.log.Warn("start: some files could not be removed", "err", err)
		}
		if err := d.removeIndices(&indices, listed, indexAlive); err != nil {
			d.log.Warn("start: some indices could not be removed", "err", err)
		}
	}
	// A killed process may have given a copy its name and not synced it.
	if err := mount.SyncCopies(d.cfg.fs, d.cfg.TransientsDir); err != nil {
		d.log.Warn("start: the directory of the local copies could not be synced", "err", err)
	}
	what := "start: removed what was left behind by shards that are gone (Config.KeepLeftovers keeps it)"
	if d.cfg.KeepLeftovers {
		what = "start: kept what was left behind by shards that are gone"
	}
	d.tellLeftovers(what, len(copies.over), len(indices.over), copies.bytes+indices.bytes, slices.Concat(copies.over, indices.over))
	d.tellLeftovers("start: kept files that the journal has no record of (Leftovers lists them, CleanUp can remove them)",
		len(copies.strange), len(indices.strange), copies.strangeBytes+indices.strangeBytes, slices.Concat(copies.strange, indices.strange))
	return nil
}

// maxListed is how many files a line of the log names.
const maxListed = 5

func (d *DAGStore) tellLeftovers(what string, copies, indices int, bytes int64, names []string) {
	if copies+indices > 0 {
		d.log.Warn(what, "copies", copies, "indices", indices, "bytes", bytes, "among them", names[:min(len(names), maxListed)])
	}
}

// findLeftovers lists what is not alive. listed is false if the indices are in a
// repository that can only be swept.
func (d *DAGStore) findLeftovers(copyAlive func(name string) bool, indexAlive func(gen uint64) bool) (copies, indices leftovers, listed bool, err error) {
	dead, err := mount.Leftovers(d.cfg.fs, d.cfg.TransientsDir, copyAlive)
	if err != nil {
		return copies, indices, false, fmt.Errorf("dagstore: local copies: %w", err)
	}
	var deadIndices []index.Leftover
	r, listed := d.cfg.IndexRepo.(indexLister)
	var files []string // of both kinds
	if listed {
		if deadIndices, err = r.Leftovers(indexAlive); err != nil {
			d.log.Warn("the indices could not be listed", "err", err) // swept another time
			deadIndices = nil
		}
	}
	if len(dead)+len(deadIndices) == 0 {
		return copies, indices, listed, nil
	}
	if listed {
		if files, err = r.Files(); err != nil {
			return copies, indices, listed, fmt.Errorf("dagstore: indices: %w", err)
		}
	}
	names, err := mount.ListCopies(d.cfg.fs, d.cfg.TransientsDir)
	if err != nil {
		return copies, indices, listed, fmt.Errorf("dagstore: local copies: %w", err)
	}
	gens := make(map[uint64]struct{})
	note := func(name string) {
		if l, ok := lifeOf(name); ok {
			gens[l.gen] = struct{}{}
		}
	}
	for i := range dead {
		note(dead[i].Name)
	}
	for i := range deadIndices {
		note(deadIndices[i].Name)
	}
	for _, name := range slices.Concat(files, names) {
		note(name)
	}
	p, err := d.pastsOf(gens)
	if err != nil {
		return copies, indices, listed, fmt.Errorf("dagstore: what the journal says of files that no shard has: %w", err)
	}
	// Records that are away look like those of a store that begins.
	trusted := p.trusts(files, !d.hasIndexed() && d.cfg.ShardRepo == nil)
	for _, f := range deadIndices {
		indices.add(p, trusted, f.Name, f.Bytes)
	}
	trusted = p.trusts(names, trusted)
	for _, f := range dead {
		copies.add(p, trusted, f.Name, f.Bytes)
	}
	return copies, indices, listed, nil
}

// indexLister is a repository that can say what it holds.
type indexLister interface {
	Files() ([]string, error)
	Leftovers(alive func(gen uint64) bool) ([]index.Leftover, error)
	RemoveLeftovers(names []string) error
}

// hasIndexed says that there are shards which have an index.
func (d *DAGStore) hasIndexed() (has bool) {
	d.cat.Snapshot().All(func(r *projection.Record) bool {
		has = r.Life() == shard.Available
		return !has
	})
	return has
}

// removeIndices removes the indices that are over: those that were listed, or of a
// repository that cannot list, those of generations that are over.
func (d *DAGStore) removeIndices(l *leftovers, listed bool, alive func(gen uint64) bool) error {
	if listed {
		if len(l.over) == 0 {
			return nil
		}
		return d.cfg.IndexRepo.(indexLister).RemoveLeftovers(l.over)
	}
	if d.cfg.ShardRepo != nil && d.cat.Snapshot().Len() == 0 {
		return nil
	}
	head := d.journal.Head().Seq
	_, memory := d.journal.(*journal.Memory)
	memory = memory && d.cfg.Journal == nil
	n, err := d.indices.sweep(func(gen uint64) bool { return alive(gen) || gen > head && !memory })
	l.over = make([]string, n)
	return err
}

// setAside moves the parts of a store into a directory of their own and returns its path.
// It holds the journal's lock, whose file stays. The journal is moved first: what a crash
// leaves behind it is refused, and never taken for a store.
func (p *parts) setAside() (aside string, err error) {
	jdir := p.dirs[0].path
	if err := p.fs.MkdirAll(jdir, 0o700); err != nil {
		return "", err
	}
	lock, err := p.fs.Lock(filepath.Join(jdir, journal.LockName))
	if err != nil {
		return "", fmt.Errorf("%w: %w", journal.ErrLocked, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	number, err := p.freeNumber()
	if err != nil {
		return "", err
	}
	aside = asideOf(p.root, number)
	for _, d := range p.dirs {
		to := filepath.Join(aside, d.name)
		if filepath.Dir(d.path) != filepath.Clean(p.root) {
			to = asideOf(d.path, number)
		}
		if err := p.moveAll(d.path, to); err != nil {
			return "", fmt.Errorf("move %s aside to %s: %w", d.path, to, err)
		}
	}
	return aside, nil
}

// asideOf is where what was in dir is moved.
func asideOf(dir string, number int) string {
	return filepath.Join(dir, fmt.Sprintf("%s%04d", asidePrefix, number))
}

const (
	asidePrefix = "set-aside-"
	maxAside    = 9999
)

// freeNumber is the first that no directory of former times has.
func (p *parts) freeNumber() (int, error) {
next:
	for n := 1; n <= maxAside; n++ {
		dirs := []string{p.root}
		for _, d := range p.dirs {
			dirs = append(dirs, d.path)
		}
		for _, dir := range dirs {
			switch _, err := p.fs.Lstat(asideOf(dir, n)); {
			case err == nil:
				continue next
			case !errors.Is(err, fs.ErrNotExist):
				return 0, err
			}
		}
		return n, nil
	}
	return 0, fmt.Errorf("there are %d directories %s… already", maxAside, asidePrefix)
}

// moveAll moves what is in from, but for the lock and what was moved aside before, to a
// new directory. The directory itself stays: something may be mounted there.
func (p *parts) moveAll(from, to string) error {
	entries, err := p.fs.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := p.fs.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if name == journal.LockName || len(name) > len(asidePrefix) && name[:len(asidePrefix)] == asidePrefix {
			continue
		}
		if err := p.fs.Rename(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	return errors.Join(p.fs.SyncDir(to), p.fs.SyncDir(from))
}
