package projection

import (
	"context"
	"errors"
	"fmt"

	"github.com/dagstore/dagstore/journal"
)

var (
	// ErrRebuilding is returned by Rebuild for a view that is being rebuilt already.
	ErrRebuilding = errors.New("view is being rebuilt already")
	// ErrCannotRebuild is returned by Rebuild for a view that is no [Rebuilder].
	ErrCannotRebuild = errors.New("view cannot be rebuilt")
)

// rebuildRounds is how often a new view is fed what was committed meanwhile before
// the one in use is held up for the rest.
const rebuildRounds = 8

// Rebuild makes the view anew beside the one in use, from the base and the history,
// while commits go on and readers are served, and then puts it in its place. What it
// shows then is not older than what readers saw. It revives a stalled view. It waits
// for the end; after an error the former view goes on as it was.
func (r *Runner) Rebuild(ctx context.Context, name string) error {
	v, err := r.find(name)
	if err != nil {
		return err
	}
	ctx, leave, err := r.join(ctx)
	if err != nil {
		return err
	}
	defer leave()
	r.mu.Lock()
	busy := v.rebuilding
	v.rebuilding = true
	r.mu.Unlock()
	if busy {
		return fmt.Errorf("%w: %q", ErrRebuilding, name)
	}
	err = safely("a view that is rebuilt", func() error { return r.rebuild(ctx, v) })
	r.rebuilt(v, err)
	if err != nil {
		return fmt.Errorf("rebuild view %q: %w", name, cause(ctx, err))
	}
	return r.saveRebuilt(ctx, v)
}

// freshOf returns another view like the one of v in use, which shows nothing.
func freshOf(v *view) (fresh View, err error) {
	if v.cat != nil {
		return NewCatalogue(), nil
	}
	old, ok := v.inUse().(Rebuilder)
	if !ok {
		return nil, ErrCannotRebuild
	}
	err = safely("Fresh", func() error {
		if fresh, err = old.Fresh(); err != nil {
			return err
		}
		if fresh.Name() != v.name || fresh.Version() != v.version || fresh.Position() != (journal.Position{}) {
			return fmt.Errorf("the fresh view is %q of version %d at %v", fresh.Name(), fresh.Version(), fresh.Position())
		}
		_, saver := old.(Saver)
		if _, ok := fresh.(Saver); ok != saver {
			return errors.New("of the old and the fresh view one can be saved and the other not")
		}
		return nil
	})
	return fresh, err
}

// rebuild fills a fresh view and swaps it in.
func (r *Runner) rebuild(ctx context.Context, v *view) error {
	done, err := r.readHistory(ctx)
	if err != nil {
		return err
	}
	defer done()
	fresh, err := freshOf(v)
	if err != nil {
		return err
	}
	for range rebuildRounds {
		if err := r.fill(ctx, v, fresh); err != nil {
			return err
		}
		if fresh.Position() == r.Head() {
			break
		}
	}
	if err := v.apply.lockFor(ctx); err != nil {
		return err
	}
	defer v.apply.Unlock()
	if err := r.fill(ctx, v, fresh); err != nil {
		return err
	}
	return r.swapLocked(v, fresh)
}

// fill feeds w, which becomes the view of v and has no readers yet, up to the head.
func (r *Runner) fill(ctx context.Context, v *view, w View) error {
	if v.cat != nil {
		// A batch is in the catalogue before it is the head.
		limit := max(r.Head().Seq, v.applied().Seq)
		_, err := w.(*Catalogue).Load(ctx, prefix{r.j, limit})
		return err
	}
	pos := w.Position()
	if pos.Seq == 0 {
		var err error
		if pos, err = r.applyBase(ctx, w); err != nil {
			return err
		}
	}
	head := r.Head()
	err := r.j.Replay(pos.Seq, func(b *journal.Batch) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if b.End.Seq > head.Seq {
			return errStop
		}
		if err := applyBatch(w, pos, b); err != nil {
			return &StallError{View: v.name, First: pos.Seq + 1, Last: b.End.Seq, Err: err}
		}
		pos = b.End
		return nil
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// swapLocked puts fresh in the place of the view in use. v.apply is held, so nothing
// is applied to either meanwhile.
func (r *Runner) swapLocked(v *view, fresh View) error {
	pos := fresh.Position()
	if at := v.applied(); v.admitted && pos.Seq < at.Seq {
		return fmt.Errorf("the new view shows event %d, readers have seen %d", pos.Seq, at.Seq)
	}
	if v.cat != nil {
		v.cat.become(fresh.(*Catalogue))
	} else {
		value := any(nil)
		err := safely("Publish or Succeed", func() error {
			value = published(fresh)
			if s, ok := fresh.(Successor); ok {
				return s.Succeed(v.cur)
			}
			return nil
		})
		if err != nil {
			return err
		}
		v.use(fresh)
		v.shown.Store(&shown{value: value, pos: pos})
	}
	v.gen++
	v.admitted, v.spoiled, v.since = true, false, growth{}
	r.mu.Lock()
	defer r.mu.Unlock()
	v.err, v.backoff, v.live = nil, 0, pos.Seq >= r.mu.head.Seq
	v.wakeLocked(pos.Seq)
	return nil
}

// rebuilt ends what Rebuild began, and has v fed again.
func (r *Runner) rebuilt(v *view, err error) {
	r.mu.Lock()
	v.rebuilding = false
	if err == nil {
		r.mu.stats.Rebuilds++
	} else if v.err != nil && v.cat == nil {
		r.retryLaterLocked(v) // its retry may have come and gone meanwhile
	}
	take := r.takeLocked(v)
	r.mu.Unlock()
	if take {
		r.spawnFeeds([]*view{v})
	}
}

// saveRebuilt replaces the checkpoints of the former view, which may be what was wrong
// with it, by one of the new, or by none: then the next start takes longer.
func (r *Runner) saveRebuilt(ctx context.Context, v *view) error {
	if _, ok := v.inUse().(Saver); !ok || !r.writes() {
		return nil
	}
	if err := v.lockSaving(ctx); err != nil {
		return err
	}
	defer func() { <-v.saving }()
	r.mu.Lock()
	v.kept = nil
	r.mu.Unlock()
	// A checkpoint that cannot be made is counted, and no reason to say that the view
	// was not rebuilt.
	f, err := r.freezeNow(ctx, v)
	switch {
	case err != nil:
		r.saveFailed(v, err)
	case f != nil:
		_ = r.save(ctx, f)
	}
	r.mu.Lock()
	kept := v.kept
	r.mu.Unlock()
	r.removeOthers(v, kept)
	return nil
}

// Jump goes on behind a compaction that overtook the reader of another process's
// journal: the events after the catalogue's position are gone, and its state is taken
// from the newest checkpoint or the base, and what follows. Views that would need what
// is gone are rebuilt beside the caller, those that cannot be are stalled.
func (r *Runner) Jump(ctx context.Context) error {
	ctx, leave, err := r.join(ctx)
	if err != nil {
		return err
	}
	defer leave()
	var rec Recovery
	r.first.apply.Lock()
	err = r.recoverCatalogue(ctx, &rec)
	r.first.apply.Unlock()
	if err != nil {
		return fmt.Errorf("go on behind a compaction: %w", err)
	}
	now, head, horizon := r.now(), r.cat.Position(), horizonOf(r.j).Seq
	r.mu.Lock()
	if head.Seq > r.mu.head.Seq {
		r.mu.head = head
		r.mu.recent.add(head)
		r.mu.times.add(head.Seq, now)
	}
	r.first.setErrLocked(r, nil)
	r.first.wakeLocked(head.Seq)
	var lost []*view
	for _, v := range r.mu.views[1:] {
		if v.shown.Load().pos.Seq < horizon {
			lost = append(lost, v)
		}
	}
	r.mu.Unlock()
	for _, v := range lost {
		r.spawn(func() {
			if err := r.Rebuild(r.ctx, v.name); err != nil && !errors.Is(err, ErrRebuilding) {
				r.log.Error("a view cannot go on behind a compaction", "view", v.name, "err", err)
			}
		})
	}
	return nil
}
