package projection

import (
	"context"
	"errors"
	"fmt"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// prefix is a journal up to the last batch that ends at limit or before.
type prefix struct {
	journal.Journal
	limit uint64
}

func (p prefix) Replay(seq uint64, visit func(*journal.Batch) error) error {
	err := p.Journal.Replay(seq, func(b *journal.Batch) error {
		if b.End.Seq > p.limit {
			return errStop
		}
		return visit(b)
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// Horizon and Base implement journal.Compacted.
func (p prefix) Horizon() journal.Position { return horizonOf(p.Journal) }

func (p prefix) Base(visit func(events []shard.Event) error) (journal.Position, error) {
	if c, ok := p.Journal.(journal.Compacted); ok {
		return c.Base(visit)
	}
	return journal.Position{}, nil
}

func horizonOf(j journal.Journal) journal.Position {
	if c, ok := j.(journal.Compacted); ok {
		return c.Horizon()
	}
	return journal.Position{}
}

// CatalogueAt returns the catalogue as it was at the end of the batch that event seq
// belongs to; 0 is before all. It costs a replay from the nearest checkpoint at or
// below, or from the base or the beginning. Errors wrap journal.ErrFuturePosition if
// seq is beyond the head, and journal.ErrCompacted if it is below the horizon.
func (r *Runner) CatalogueAt(ctx context.Context, seq uint64) (*Snapshot, error) {
	ctx, leave, err := r.join(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if horizon := horizonOf(r.j); seq < horizon.Seq {
		return nil, fmt.Errorf("%w: event %d, the horizon is at %d", journal.ErrCompacted, seq, horizon.Seq)
	}
	pos, err := positionAt(r.j, seq)
	if err != nil {
		return nil, err
	}
	s, err := r.stateAt(ctx, pos.Seq)
	if err == nil && s.Position() != pos {
		err = fmt.Errorf("the state at %v was asked for, and a replay ends at %v", pos, s.Position())
	}
	if err != nil {
		return nil, cause(ctx, err)
	}
	return s, nil
}

// stateAttempts is how often a replay is begun again when the journal of a
// writer elsewhere is compacted under it.
const stateAttempts = 3

// stateAt returns the catalogue after the last batch that ends at limit or before. No
// history goes meanwhile.
func (r *Runner) stateAt(ctx context.Context, limit uint64) (*Snapshot, error) {
	if s := r.cat.Snapshot(); s.Position().Seq == limit {
		return s, nil
	}
	done, err := r.readHistory(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return r.fold(ctx, limit)
}

// fold is stateAt for those who keep the history themselves.
func (r *Runner) fold(ctx context.Context, limit uint64) (*Snapshot, error) {
	r.mu.Lock()
	for _, k := range r.first.kept {
		if k.snap != nil && k.pos.Seq == limit {
			r.mu.Unlock()
			return k.snap, nil
		}
	}
	r.mu.Unlock()
	for attempt := 1; ; attempt++ {
		horizon := horizonOf(r.j)
		cat, err := r.nearest(ctx, limit)
		if err != nil {
			return nil, err
		}
		_, err = cat.Load(ctx, prefix{r.j, limit})
		if err == nil {
			return cat.Snapshot(), nil
		}
		if !errors.Is(err, journal.ErrCompacted) || horizonOf(r.j) == horizon || attempt == stateAttempts {
			return nil, err
		}
	}
}

// nearest returns a catalogue restored from the newest usable checkpoint at limit or
// below, or an empty one.
func (r *Runner) nearest(ctx context.Context, limit uint64) (*Catalogue, error) {
	if r.opts.Dir == "" {
		return NewCatalogue(), nil
	}
	files, err := r.files.list(catalogueName)
	if err != nil {
		files = nil // a longer replay
	}
	for _, f := range files {
		pos, err := r.usable(f.name, r.first)
		if err != nil || pos.Seq > limit {
			continue
		}
		cat := NewCatalogue()
		if _, err := r.restore(ctx, f.name, r.first, cat); err == nil {
			return cat, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return NewCatalogue(), nil
}

// SnapshotFor returns the catalogue as c asks for, and how fresh it is. Unlike
// [Runner.Wait] it answers [AsOf] for the past as well, after checking the digest.
func (r *Runner) SnapshotFor(ctx context.Context, c Consistency) (*Snapshot, Freshness, error) {
	if c.mode != asOfMode {
		value, f, err := r.Read(ctx, catalogueName, c)
		if err != nil {
			return nil, f, err
		}
		return value.(*Snapshot), f, nil
	}
	now := r.freshness(r.first, r.cat.Position())
	want, err := r.target(c)
	if err != nil {
		return nil, now, err
	}
	s, err := r.CatalogueAt(ctx, want.Seq)
	if err != nil {
		return nil, now, err
	}
	return s, r.freshness(r.first, s.Position()), nil
}
