package dagstore

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/index/toplevel"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// A store in a directory has five parts. The journal is the truth, and the others come
// from it: each can be lost, and is made again. So whoever finds the others without
// their journal must not take them for left-overs of a store that begins:
//
//	journal            the others                  an opening
//	whole              whatever there is of them   opens; what is missing or older is made again
//	missing or empty   hold nothing                begins a store
//	missing or empty   hold anything               refuses: the journal is away
//	older              hold nothing newer          opens: nobody can tell
//	older              hold anything newer         refuses: the journal ends early
//	another store's    hold a position             refuses: it is not in this journal
//	another store's    hold files only             opens; files that it has no record of stay
//
// What a part holds is told by generations (index/, copies/) and by positions (toplevel/,
// checkpoints/), all of which were durable in the journal before they were written there.

// PartsError is returned by [Open] for a store whose parts do not belong together: its
// journal is missing, ends before what the others are of, or is not the one that they are
// of. Nothing was written or removed. It wraps a *[journal.LostError], and so a
// *[journal.DamageError].
type PartsError struct {
	Dir string // of the store; empty if it is not all in one
	// Parts is what was found where.
	Parts []Part
	// Err is what the journal does not hold, and what says that it should.
	Err error
}

// Part is what was found of one part of a store.
type Part struct {
	// Name is journal, index, copies, toplevel or checkpoints; Path is where it is.
	Name, Path string
	// Missing: there is no such directory.
	Missing bool
	// Files is how many files of its kind it holds: segments, indices, copies, runs,
	// checkpoints.
	Files int
	// Witness says how far the journal was durable when its newest file was made; its By
	// is empty if nothing there says so.
	Witness journal.Witness
}

// String says it to people, in one line.
func (p Part) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s/ ", p.Name)
	switch {
	case p.Missing:
		b.WriteString("is missing")
	case p.Files == 0:
		b.WriteString("is empty")
	case p.Name == partJournal:
		fmt.Fprintf(&b, "has %d files", p.Files)
	case p.Witness.By == "":
		fmt.Fprintf(&b, "has %d files that carry no number", p.Files)
	default:
		fmt.Fprintf(&b, "has %d files, up to event %d", p.Files, p.Witness.At.Seq)
	}
	return b.String()
}

func (e *PartsError) Error() string {
	var b strings.Builder
	b.WriteString("the parts of the store do not belong together, nothing was written or removed: ")
	for i, p := range e.Parts {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(p.String())
	}
	fmt.Fprintf(&b, ": %v. ", e.Err)
	if e.Dir == "" {
		b.WriteString("Bring back the journal that they are of, or move the directories of what is left away and begin anew")
		return b.String()
	}
	b.WriteString("Bring back what belongs together (is a volume not mounted, or another's?), or open with WithNewJournal, which moves all of it aside and begins a new store; Salvage reads into another directory what can be read")
	return b.String()
}

// Unwrap returns Err.
func (e *PartsError) Unwrap() error { return e.Err }

const (
	partJournal     = "journal"
	partIndex       = "index"
	partCopies      = "copies"
	partTopLevel    = "toplevel"
	partCheckpoints = "checkpoints"
)

// parts are the directories of a store: empty for a part that is not in one.
type parts struct {
	fs   fsio.FS
	root string // of the store; empty if it has none
	dirs []partDir
	repo index.FullIndexRepo // in place of an index directory
}

type partDir struct{ name, path string }

// parts lists the directories that Open uses.
func (c *openConfig) parts(dir string) *parts {
	p := &parts{fs: c.fs, root: dir}
	add := func(name, configured string) {
		if configured == "" {
			configured = filepath.Join(dir, name)
		}
		p.dirs = append(p.dirs, partDir{name, configured})
	}
	add(partJournal, "")
	if p.repo = c.IndexRepo; p.repo == nil {
		add(partIndex, "")
	}
	add(partCopies, c.TransientsDir)
	if c.TopLevelDir != "" || !isGiven(c.TopLevelIndex) {
		add(partTopLevel, c.TopLevelDir)
	}
	add(partCheckpoints, c.CheckpointDir)
	return p
}

// partsOf lists the directories of a store that is given its journal.
func partsOf(cfg *Config) *parts {
	p := &parts{fs: cfg.fs, repo: cfg.IndexRepo, dirs: []partDir{{partCopies, cfg.TransientsDir}}}
	if cfg.TopLevelDir != "" {
		p.dirs = append(p.dirs, partDir{partTopLevel, cfg.TopLevelDir})
	}
	if cfg.CheckpointDir != "" {
		p.dirs = append(p.dirs, partDir{partCheckpoints, cfg.CheckpointDir})
	}
	return p
}

// look finds out what is there. It changes nothing. The journal's witness is left out:
// package journal asks it itself.
func (p *parts) look() ([]Part, []journal.Witness, error) {
	var all []Part
	var ws []journal.Witness
	for _, d := range p.dirs {
		part, err := p.lookAt(d, &ws)
		if err != nil {
			return nil, nil, fmt.Errorf("look at %s: %w", d.path, err)
		}
		all = append(all, part)
	}
	if r, ok := p.repo.(interface {
		NewestGeneration(limit uint64) (uint64, int, error)
	}); ok {
		part := Part{Name: partIndex, Path: "the index repository"}
		gen, n, err := r.NewestGeneration(believedBelow)
		if err != nil {
			return nil, nil, fmt.Errorf("look at the index repository: %w", err)
		}
		part.count(n, gen, &ws)
		all = append(all, part)
	}
	return all, ws, nil
}

// believedBelow bounds the generations that are believed.
const believedBelow = 1 << 62

func (p *parts) lookAt(d partDir, ws *[]journal.Witness) (part Part, err error) {
	part = Part{Name: d.name, Path: d.path}
	if _, err := p.fs.Lstat(d.path); err != nil {
		if part.Missing = errors.Is(err, fs.ErrNotExist); part.Missing {
			err = nil
		}
		return part, err
	}
	switch d.name {
	case partJournal:
		part.Files, err = journal.CountFiles(p.fs, d.path)
	case partIndex:
		var gen uint64
		if gen, part.Files, err = index.NewestGeneration(p.fs, d.path, believedBelow); err == nil {
			part.count(part.Files, gen, ws)
		}
	case partCopies:
		var names []string
		if names, err = mount.ListCopies(p.fs, d.path); err == nil {
			newest := uint64(0)
			for _, name := range names {
				if gen, ok := mount.CopyGeneration(name); ok && gen < believedBelow {
					newest = max(newest, gen)
				}
			}
			part.count(len(names), newest, ws)
		}
	case partTopLevel:
		var mark []byte
		if mark, part.Files, err = toplevel.Peek(p.fs, d.path); err == nil {
			if pos, perr := journal.ParseToken(string(mark)); perr == nil {
				part.witness("toplevel/MANIFEST", pos, ws)
			}
		}
	case partCheckpoints:
		var found []projection.FoundCheckpoint
		if found, err = projection.ListCheckpoints(p.fs, d.path); err == nil {
			part.Files = len(found)
			for _, c := range found {
				part.witness(filepath.Join(partCheckpoints, c.File), c.Position, ws)
			}
		}
	}
	return part, err
}

// count notes how many files a part has, and the highest generation among them.
func (p *Part) count(files int, gen uint64, ws *[]journal.Witness) {
	if p.Files = files; gen > 0 {
		p.witness(fmt.Sprintf("the newest of %d files in %s/", files, p.Name), journal.Position{Seq: gen}, ws)
	}
}

func (p *Part) witness(by string, at journal.Position, ws *[]journal.Witness) {
	switch p.Name {
	case partIndex, partCopies:
		if planted.Bug("store-generations-not-asked") {
			return
		}
	case partTopLevel:
		if planted.Bug("store-mark-not-asked") {
			return
		}
	case partCheckpoints:
		if planted.Bug("store-checkpoints-not-asked") {
			return
		}
	}
	w := journal.Witness{By: by, At: at}
	*ws = append(*ws, w)
	if p.Witness.By == "" || at.Seq > p.Witness.At.Seq {
		p.Witness = w
	}
}

// openJournal opens the journal of the store in dir, or begins one if no part holds
// anything that it would have to have.
func (c *openConfig) openJournal(dir string) (*journal.File, error) {
	p := c.parts(dir)
	j, err := p.openJournal(c.file)
	var bad *PartsError
	if errors.As(err, &bad) && c.newJournal {
		aside, aerr := p.setAside()
		if aerr != nil {
			return nil, errors.Join(aerr, err)
		}
		c.log().Warn("open: a new store begins; what the former journal left was moved aside", "to", aside, "why", bad.Err)
		j, err = p.openJournal(c.file)
	}
	return j, err
}

func (p *parts) openJournal(opts journal.FileOptions) (*journal.File, error) {
	path := p.dirs[0].path
	// Where there is no journal not even its directory is made before it is clear that
	// one may begin. Whoever begins one now may have written more by the time we looked
	// at the rest: that is for those to judge who have the lock.
	if has, err := journal.HasFiles(p.fs, path); err == nil && !has {
		all, ws, err := p.look()
		if err != nil {
			return nil, err
		}
		if lost := journal.CheckWitnesses(journal.NewMemory(), ws); lost != nil {
			if has, err := journal.HasFiles(p.fs, path); err == nil && !has {
				return nil, &PartsError{Dir: p.root, Parts: all, Err: lost}
			}
		}
	}
	var all []Part
	j, err := journal.OpenFileChecked(p.fs, path, opts, func(j *journal.File) error {
		var ws []journal.Witness
		var err error
		if all, ws, err = p.look(); err != nil {
			return err
		}
		return p.question(j, ws)
	})
	if errors.As(err, new(*journal.LostError)) {
		return nil, &PartsError{Dir: p.root, Parts: all, Err: err}
	}
	return j, err
}

// question refuses a journal that ends before what the witnesses say was durable, and one
// that is not theirs. If some bear it out and others do not, it is the others that are
// foreign: what is derived is made again, and it takes more than that to put the journal
// in doubt.
func (p *parts) question(j journal.Journal, ws []journal.Witness) error {
	err := journal.CheckWitnesses(j, ws)
	var lost *journal.LostError
	if !errors.As(err, &lost) {
		return err
	}
	positions := 0
	for _, w := range ws {
		if w.At.Digest != [32]byte{} {
			positions++
		}
	}
	for _, w := range lost.Witnesses {
		if w.At.Seq > lost.Head.Seq {
			return lost
		}
		positions--
	}
	if positions > 0 {
		return nil
	}
	switch borne, err := p.bornIn(j); {
	case err != nil:
		return err
	case borne:
		return nil
	}
	return lost
}

// bornIn reports whether the journal has the registration of the life of any index or
// local copy.
func (p *parts) bornIn(j journal.Journal) (bool, error) {
	lives := make(map[life]struct{})
	for _, d := range p.dirs {
		if d.name != partIndex && d.name != partCopies {
			continue
		}
		entries, err := p.fs.ReadDir(d.path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		for _, e := range entries {
			if l, ok := lifeOf(e.Name()); ok {
				lives[l] = struct{}{}
			}
		}
	}
	if r, ok := p.repo.(indexLister); ok {
		files, err := r.Files()
		if err != nil {
			return false, err
		}
		for _, f := range files {
			if l, ok := lifeOf(f); ok {
				lives[l] = struct{}{}
			}
		}
	}
	if len(lives) == 0 {
		return false, nil
	}
	found := false
	look := func(events []shard.Event) error {
		for i := range events {
			if _, ok := lives[life{events[i].Gen, hashOf(events[i].Key.String())}]; ok {
				found = true
				return errFound
			}
		}
		return nil
	}
	var from uint64
	var err error
	if c, ok := j.(journal.Compacted); ok {
		var at journal.Position
		at, err = c.Base(look)
		from = max(at.Seq, c.Horizon().Seq)
	}
	if err == nil {
		err = j.Replay(from, func(b *journal.Batch) error { return look(b.Events) })
	}
	if found {
		err = nil
	}
	return found, err
}

// questionJournal refuses a journal that ends before what the other parts of the store are
// of. One that Open opened has been asked; one in memory, or made of records, has no past.
func (d *DAGStore) questionJournal() error {
	if d.tail != nil || d.cfg.witnessed || d.cfg.ShardRepo != nil || d.cfg.Journal == nil && d.cfg.Datastore == nil {
		return nil
	}
	p := partsOf(&d.cfg)
	all, ws, err := p.look()
	if err != nil {
		return fmt.Errorf("dagstore: %w", err)
	}
	err = p.question(d.journal, ws)
	if errors.As(err, new(*journal.LostError)) {
		err = &PartsError{Parts: all, Err: err}
	}
	return err
}

// log is the logger that the store will have.
func (c *openConfig) log() *slog.Logger {
	if c.Logger != nil {
		return c.Logger.With("logger", "dagstore")
	}
	return slog.Default().With("logger", "dagstore")
}
