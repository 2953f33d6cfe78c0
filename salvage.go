package dagstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// SalvageOpts are the options of [Salvage]. The zero value is the default.
type SalvageOpts struct {
	// Files copies the indices and local copies of the shards, too. Without it they are
	// made again, or may be moved by hand: generations, and so the names of files, stay.
	Files bool

	fs fsio.FS // the operating system's if nil
}

// SalvageReport says what [Salvage] found, and what is certain of it.
type SalvageReport struct {
	// Shards is how many the new store has.
	Shards int
	// Checkpoint is the file of the catalogue's checkpoint that was used, Base the horizon
	// whose base was, if that was the newer; all events up to From are in it.
	Checkpoint string
	Base       journal.Position
	From       uint64
	// Read are the events after From that were read, Lost those of which something says
	// that they were durable, and which were not. If Lost is empty, what the store has is
	// what was acknowledged.
	Read, Lost []journal.SeqRange
	// End is where the new store's journal begins, with nothing but the state there.
	End journal.Position
	// Damage is what was met.
	Damage []error
	// Files is how many indices and copies were copied.
	Files int
}

// Certain reports whether nothing was lost of which there is a trace.
func (r *SalvageReport) Certain() bool { return len(r.Lost) == 0 }

// String is for people.
func (r *SalvageReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d shards as of event %d", r.Shards, r.End.Seq)
	switch {
	case r.Checkpoint != "":
		fmt.Fprintf(&b, ", up to event %d from %s", r.From, r.Checkpoint)
	case r.Base.Seq > 0:
		fmt.Fprintf(&b, ", up to event %d from the journal's base", r.From)
	}
	for _, l := range r.Lost {
		fmt.Fprintf(&b, ", events %d to %d are lost", l.First, l.Last)
	}
	if r.Certain() {
		b.WriteString(", nothing is known to be lost")
	}
	return b.String()
}

// Salvage reads what can be read of a store whose journal is damaged or missing, from its
// newest checkpoint, its base and its segments, and makes a new store of it in the
// directory to, which must be missing or empty. from is only read; nobody may have it open
// for writing. A shard is as the newest event says that could be read; one whose newest
// event is among those lost may be as it was before, or be destroyed, or missing.
//
// The new store has the same generations, and positions and tokens of the former if
// nothing was lost. It is not opened. An error is a disk's, or ctx's, or that there is
// nothing to be read; what was begun in to is then to be removed.
func Salvage(ctx context.Context, from, to string, opts SalvageOpts) (SalvageReport, error) {
	if opts.fs == nil {
		opts.fs = fsio.OS()
	}
	s := &salvage{opts: opts, from: from, to: to, state: make(map[shard.Key]shard.Event)}
	if err := s.run(ctx); err != nil {
		return s.rep, fmt.Errorf("salvage store %q: %w", from, err)
	}
	return s.rep, nil
}

type salvage struct {
	opts     SalvageOpts
	from, to string
	rep      SalvageReport
	state    map[shard.Key]shard.Event
	pos      journal.Position // up to which state is whole
}

func (s *salvage) run(ctx context.Context) error {
	entries, err := s.opts.fs.ReadDir(s.to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty: name a new directory", s.to)
	}
	if err := s.checkpoint(); err != nil {
		return err
	}
	if err := s.journal(ctx); err != nil {
		return err
	}
	if s.rep.End.Seq == 0 {
		return errors.Join(append(s.rep.Damage, errors.New("nothing can be read: neither a checkpoint nor an event"))...)
	}
	keys := slices.SortedFunc(maps.Keys(s.state), shard.Key.Compare)
	s.rep.Shards = len(keys)
	if err := s.opts.fs.MkdirAll(s.to, 0o700); err != nil {
		return err
	}
	err = journal.CreateAt(ctx, s.opts.fs, filepath.Join(s.to, partJournal), s.rep.End, func(emit func(*shard.Event) error) error {
		for _, k := range keys {
			e := s.state[k]
			if err := emit(&e); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && s.opts.Files {
		err = s.files(ctx)
	}
	return err
}

// checkpoint takes the state of the newest checkpoint of the catalogue that can be read.
func (s *salvage) checkpoint() error {
	dir := filepath.Join(s.from, partCheckpoints)
	found, err := projection.ListCheckpoints(s.opts.fs, dir)
	if err != nil {
		s.rep.Damage = append(s.rep.Damage, err)
	}
	slices.SortFunc(found, func(a, b projection.FoundCheckpoint) int {
		return int(min(1, max(-1, int64(b.Position.Seq-a.Position.Seq))))
	})
	for _, f := range found {
		cat := projection.NewCatalogue()
		if f.View != cat.Name() {
			continue
		}
		pos, err := projection.LoadCheckpoint(s.opts.fs, dir, f.File, cat)
		if err != nil {
			s.rep.Damage = append(s.rep.Damage, fmt.Errorf("%s: %w", f.File, err))
			continue
		}
		s.rep.Checkpoint, s.pos = f.File, pos
		return cat.Snapshot().Events(func(e *shard.Event) error { s.set(e); return nil })
	}
	return nil
}

// set notes what an event says of its shard. Its strings may be a buffer's.
func (s *salvage) set(e *shard.Event) {
	if e.Kind == shard.EventDestroyed {
		delete(s.state, e.Key)
		return
	}
	own := *e
	own.Key = shard.KeyFromString(strings.Clone(e.Key.String()))
	own.State.URL, own.State.Transient, own.State.Reason = strings.Clone(e.State.URL), strings.Clone(e.State.Transient), strings.Clone(e.State.Reason)
	s.state[own.Key] = own
}

// journal adds what the journal says after the checkpoint.
func (s *salvage) journal(ctx context.Context) error {
	based := make(map[shard.Key]shard.Event)
	former, at := s.state, s.pos
	began := false
	begin := func(base journal.Position) {
		if began = true; base.Seq > at.Seq { // the base is newer than the checkpoint
			s.rep.Checkpoint, s.rep.Base, s.pos = "", base, base
			s.state = based
			return
		}
		s.state = former
	}
	dir := filepath.Join(s.from, partJournal)
	found, err := journal.Scavenge(s.opts.fs, dir, func(events []shard.Event) error {
		s.state = based
		for i := range events {
			s.set(&events[i])
		}
		return ctx.Err()
	}, func(events []shard.Event, b journal.Position) error {
		if !began {
			begin(b)
		}
		for i := range events {
			if events[i].Seq > s.pos.Seq {
				s.set(&events[i])
			}
		}
		return ctx.Err()
	})
	if errors.Is(err, fs.ErrNotExist) {
		s.rep.Damage = append(s.rep.Damage, err)
		found, err = new(journal.Scavenged), nil
	}
	if err != nil {
		return err
	}
	if !began {
		begin(found.Base)
	}
	s.rep.Damage = append(s.rep.Damage, found.Damage...)
	s.rep.From = s.pos.Seq
	return s.losses(found)
}

// losses finds out which events are missing: between those that were read, and behind
// them, up to where anything says that there were some.
func (s *salvage) losses(found *journal.Scavenged) error {
	p := &parts{fs: s.opts.fs, root: s.from}
	for _, name := range partNamesInOrder {
		p.dirs = append(p.dirs, partDir{name, filepath.Join(s.from, name)})
	}
	_, ws, err := p.look()
	if err != nil {
		s.rep.Damage = append(s.rep.Damage, err)
	}
	last := found.Head.Seq
	for _, w := range ws {
		last = max(last, w.At.Seq)
	}
	next := s.pos.Seq + 1
	for _, r := range found.Read {
		if r.Last < next {
			continue
		}
		if r.First > next {
			s.rep.Lost = append(s.rep.Lost, journal.SeqRange{First: next, Last: r.First - 1})
		}
		s.rep.Read = append(s.rep.Read, journal.SeqRange{First: max(r.First, next), Last: r.Last})
		next = r.Last + 1
	}
	if last >= next {
		s.rep.Lost = append(s.rep.Lost, journal.SeqRange{First: next, Last: last})
	}
	s.rep.End = s.pos
	if found.End.Seq > s.pos.Seq {
		s.rep.End = found.End
	}
	if len(s.rep.Lost) > 0 {
		// Another course than the one that positions of the former store are of.
		s.rep.End.Seq = max(s.rep.End.Seq, last)
		rand.Read(s.rep.End.Digest[:]) // never fails
	}
	return nil
}

// partNamesInOrder are the parts of a store with everything under one directory.
var partNamesInOrder = []string{partJournal, partIndex, partCopies, partTopLevel, partCheckpoints}

// files copies the indices and local copies of the shards there are.
func (s *salvage) files(ctx context.Context) error {
	alive := make(map[life]bool)
	for k, e := range s.state {
		alive[life{e.Gen, hashOf(k.String())}] = true
	}
	for _, part := range []string{partIndex, partCopies} {
		entries, err := s.opts.fs.ReadDir(filepath.Join(s.from, part))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = s.opts.fs.MkdirAll(filepath.Join(s.to, part), 0o700)
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			name := e.Name()
			l, ok := lifeOf(name)
			if !ok || !alive[l] || !e.Type().IsRegular() || !strings.HasSuffix(name, ".idx") && !strings.HasSuffix(name, copySuffix) {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := s.copyFile(filepath.Join(part, name)); err != nil {
				s.rep.Damage = append(s.rep.Damage, err) // it is made again
				continue
			}
			s.rep.Files++
		}
	}
	return nil
}

func (s *salvage) copyFile(name string) error {
	from, err := s.opts.fs.OpenFile(filepath.Join(s.from, name), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer from.Close() // was only read
	return fsio.WriteFileAtomic(s.opts.fs, filepath.Join(s.to, name), 0o600, func(f fsio.File) error {
		_, err := io.Copy(f, from)
		return err
	})
}
