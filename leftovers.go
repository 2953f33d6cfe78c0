package dagstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// LeftoverKind says what a left-over is of.
type LeftoverKind string

const (
	// LegacyIndex is an index file of the predecessor, <key>.full.idx.
	LegacyIndex LeftoverKind = "index of the predecessor"
	// LegacyPartial is an unfinished local copy of the predecessor, transient-<key>.partial.
	LegacyPartial LeftoverKind = "unfinished copy of the predecessor"
	// LegacyInverted are entries of a top-level index in a datastore that nobody asks.
	LegacyInverted LeftoverKind = "top-level index in the datastore"
	// EndedLife is a copy or index of a shard that was destroyed.
	EndedLife LeftoverKind = "of a shard that is gone"
	// Unrecorded is a copy or index of which the journal has no record: another store's, or
	// this one's with another journal.
	Unrecorded LeftoverKind = "without a record"
)

// Leftover is something that nothing in the store needs.
type Leftover struct {
	Kind LeftoverKind
	// Name is a file's, copies/ or index/ in front; of datastore entries the datastore's
	// part.
	Name string
	// Bytes is the file's size; 0 of datastore entries.
	Bytes int64
	// Entries is how many datastore entries there are; 0 of files.
	Entries int
	// Needed: it stays for now, because a shard has no index of this store's yet.
	Needed bool
}

// CleanUpOpts say what [DAGStore.CleanUp] removes besides what cannot be another's.
type CleanUpOpts struct {
	// Unrecorded files go as well.
	Unrecorded bool
}

// legacyIndices is a repository that knows what the predecessor left in it.
type legacyIndices interface {
	LegacyFiles() ([]index.Leftover, error)
	DropLegacy(name string) (bool, error)
}

// Leftovers lists what an upgrade, a crash or another store left in the store's
// directories, and changes nothing. A follower refuses it.
func (d *DAGStore) Leftovers(ctx context.Context) ([]Leftover, error) {
	if err := d.checkWriter(); err != nil {
		return nil, err
	}
	var all []Leftover
	copies, indices, _, err := d.findLeftovers(func(string) bool { return false }, aliveIn(d.cat.Snapshot()))
	if err != nil {
		return nil, err
	}
	for _, l := range []struct {
		dir string
		leftovers
	}{{partCopies, copies}, {partIndex, indices}} {
		for kind, names := range map[LeftoverKind][]string{EndedLife: l.over, Unrecorded: l.strange} {
			for _, name := range names {
				if finished(name) { // or it is being written
					all = append(all, Leftover{Kind: kind, Name: l.dir + "/" + name, Bytes: l.sizes[name]})
				}
			}
		}
	}
	if r, ok := d.cfg.IndexRepo.(legacyIndices); ok {
		files, err := r.LegacyFiles()
		if err != nil {
			return nil, fmt.Errorf("dagstore: indices of the predecessor: %w", err)
		}
		for _, f := range files {
			all = append(all, Leftover{Kind: LegacyIndex, Name: partIndex + "/" + f.Name, Bytes: f.Bytes, Needed: d.needsLegacy(f.Name)})
		}
	}
	partials, err := mount.LegacyPartials(d.cfg.fs, d.cfg.TransientsDir)
	if err != nil {
		return nil, fmt.Errorf("dagstore: copies of the predecessor: %w", err)
	}
	for _, f := range partials {
		all = append(all, Leftover{Kind: LegacyPartial, Name: partCopies + "/" + f.Name, Bytes: f.Bytes})
	}
	if x, ok := d.cfg.TopLevelIndex.(*index.DSInverted); ok && x != nil {
		n, err := x.Unused(ctx)
		if err != nil {
			return nil, fmt.Errorf("dagstore: top-level index in the datastore: %w", err)
		}
		if n > 0 {
			all = append(all, Leftover{Kind: LegacyInverted, Name: "/inverted", Entries: n})
		}
	}
	return all, ctx.Err()
}

// needsLegacy says that the shard of a legacy index has none of this store's.
func (d *DAGStore) needsLegacy(file string) bool {
	rec := d.cat.Get(shard.KeyFromString(strings.TrimSuffix(file, ".full.idx")))
	if rec == nil {
		return false
	}
	x, err := d.indices.open(rec.Key(), rec.Gen())
	if err != nil {
		return true
	}
	x.close()
	return rec.Life() != shard.Available
}

// CleanUp removes what Leftovers lists, but for what is needed and, unless opts say
// otherwise, what has no record, and returns what it removed. What the predecessor left is
// what going back to it would start from; without it the predecessor makes it again. The
// errors of single removals are joined.
func (d *DAGStore) CleanUp(ctx context.Context, opts CleanUpOpts) (removed []Leftover, err error) {
	all, err := d.Leftovers(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, l := range all {
		if l.Needed || l.Kind == Unrecorded && !opts.Unrecorded {
			continue
		}
		if err := ctx.Err(); err != nil {
			return removed, errors.Join(append(errs, err)...)
		}
		if err := d.cleanUp(ctx, l); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.Name, err))
			continue
		}
		removed = append(removed, l)
	}
	return removed, errors.Join(errs...)
}

func (d *DAGStore) cleanUp(ctx context.Context, l Leftover) error {
	dir, name := filepath.Split(l.Name)
	switch {
	case l.Kind == LegacyInverted:
		_, err := d.cfg.TopLevelIndex.(*index.DSInverted).RemoveUnused(ctx)
		return err
	case l.Kind == LegacyIndex:
		_, err := d.cfg.IndexRepo.(legacyIndices).DropLegacy(name)
		return err
	case l.Kind == LegacyPartial:
		return mount.RemoveLegacyPartial(d.cfg.fs, d.cfg.TransientsDir, name)
	case dir == partIndex+"/":
		return d.cfg.IndexRepo.(indexLister).RemoveLeftovers([]string{name})
	}
	return mount.RemoveCopies(d.cfg.fs, d.cfg.TransientsDir, []string{name})
}
