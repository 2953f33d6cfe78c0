package projection

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/journal"
)

// Recovery says what a start found.
type Recovery struct {
	// Checkpoint is the position of the catalogue's checkpoint that was used; zero if
	// none was.
	Checkpoint journal.Position
	// Replayed is how many events were applied to the catalogue after that.
	Replayed uint64
	// Ignored are the checkpoints, of all views, that could not be used.
	Ignored []IgnoredCheckpoint
	Took    time.Duration
}

// IgnoredCheckpoint is a checkpoint that cost time and nothing else.
type IgnoredCheckpoint struct {
	File string
	Why  error
}

// aboutEvent is the encoded size of an event whose own is not known, in bytes.
const aboutEvent = 128

// Recover makes the catalogue show the whole journal, and restores the other views
// that can be saved. The catalogue begins with
//
//	its newest checkpoint, else the one before, else the journal's base, else nothing
//
// and what follows in the journal is replayed. A checkpoint is used if its bytes are
// as they were written, if it is of this view, this version and this journal, sequence
// number and digest, and if what follows can follow it. One that is not is counted in
// Recovery, with the reason, and is never an error. An error is the journal's, or the
// context's; Recover may then be called again.
func (r *Runner) Recover(ctx context.Context) (Recovery, error) {
	var rec Recovery
	ctx, leave, err := r.join(ctx)
	if err != nil {
		return rec, err
	}
	defer leave()
	r.mu.Lock()
	again := r.mu.recovered
	r.mu.recovering = true
	r.mu.Unlock()
	if again {
		return rec, errors.New("the runner has recovered already")
	}
	began := r.now()
	if r.writes() {
		if err := r.files.prepare(); err != nil {
			r.log.Warn("the directory of the checkpoints is not as it should be", "err", err)
		}
	}
	if err := r.recoverCatalogue(ctx, &rec); err != nil {
		return rec, err
	}
	r.recovered()
	for _, v := range r.views()[1:] {
		if err := r.recoverView(ctx, v, &rec); err != nil {
			return rec, err
		}
	}
	rec.Took = r.now().Sub(began)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.recovered = true
	r.mu.stats.Replayed += rec.Replayed
	r.mu.stats.Ignored += uint64(len(rec.Ignored))
	return rec, nil
}

// recovered notes what the catalogue has come to.
func (r *Runner) recovered() {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first.live {
		return // Recover is called again
	}
	r.first.live = true
	r.mu.head = r.cat.Position()
	r.mu.recent.add(r.mu.head)
	r.mu.times.add(r.mu.head.Seq, now)
	r.first.wakeLocked(r.mu.head.Seq)
}

func (r *Runner) ignore(rec *Recovery, file string, why error) {
	rec.Ignored = append(rec.Ignored, IgnoredCheckpoint{File: file, Why: why})
	r.log.Warn("a checkpoint is not used; this start takes longer", "file", file, "why", why)
}

// filesOf lists the checkpoints of v, newest first.
func (r *Runner) filesOf(v *view, rec *Recovery) []checkpointFile {
	if r.opts.Dir == "" {
		return nil
	}
	files, err := r.files.list(v.name)
	if err != nil {
		r.ignore(rec, r.opts.Dir, err)
	}
	return files
}

// recoverCatalogue tries one rung of the ladder after the other. Each fills a
// catalogue of its own, because what a failed one leaves is not to be used.
func (r *Runner) recoverCatalogue(ctx context.Context, rec *Recovery) error {
	files := r.filesOf(r.first, rec)
	for i, f := range files {
		cat := NewCatalogue()
		c, err := r.restore(ctx, f.name, r.first, cat)
		if err == nil {
			var events uint64
			if events, err = cat.Load(ctx, r.j); err == nil {
				rec.Checkpoint, rec.Replayed = c.pos, events
				r.cat.become(cat)
				r.restored(r.first, c, events, files[i+1:])
				return nil
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.ignore(rec, f.name, err)
	}
	cat := NewCatalogue()
	events, err := cat.Load(ctx, r.j)
	if err != nil {
		return err
	}
	rec.Replayed = events
	r.cat.become(cat)
	r.first.since = growth{events: events, bytes: int64(events) * aboutEvent}
	return nil
}

// usedCheckpoint is a checkpoint that a view was restored from.
type usedCheckpoint struct {
	pos  journal.Position
	size int64
}

// restored notes that v was restored from a checkpoint, and which of the older is
// worth keeping beside it.
func (r *Runner) restored(v *view, c usedCheckpoint, replayed uint64, older []checkpointFile) {
	kept := []keptCheckpoint{{pos: c.pos}}
	for _, f := range older {
		if pos, err := r.usable(f.name, v); err == nil {
			kept = append(kept, keptCheckpoint{pos: pos})
			break
		}
	}
	v.lastLen.Store(c.size)
	v.since = growth{events: replayed, bytes: int64(replayed) * aboutEvent}
	r.mu.Lock()
	defer r.mu.Unlock()
	v.kept = kept
}

// usable returns the position of a checkpoint whose header says that it can be used.
func (r *Runner) usable(file string, v *view) (journal.Position, error) {
	c, f, err := r.files.open(file)
	if err != nil {
		return journal.Position{}, err
	}
	// A file that was only read has nothing to report on closing.
	defer func() { _ = f.Close() }()
	return c.id.pos, r.suits(&c.id, v)
}

// suits returns nil if a checkpoint is of v and of this journal.
func (r *Runner) suits(id *checkpointID, v *view) error {
	if id.view != v.name || id.version != v.version && !planted.Bug("checkpoint-of-another-version-used") {
		return fmt.Errorf("%w: %q of version %d, not %q of version %d", errOtherView, id.view, id.version, v.name, v.version)
	}
	if id.pos.Seq == 0 {
		return damaged("it is of nothing")
	}
	if head := r.Head(); v.cat == nil && id.pos.Seq > head.Seq {
		return fmt.Errorf("%w: event %d, the catalogue shows %d", journal.ErrFuturePosition, id.pos.Seq, head.Seq)
	}
	return planted.Unless("checkpoint-not-bound-to-its-journal", func() error { return r.verify(id.pos) })
}

// restore fills w, a view like v that shows nothing, from a checkpoint. After an
// error w is not to be used, unless an unsuitable says that it was not touched.
func (r *Runner) restore(ctx context.Context, file string, v *view, w Saver) (used usedCheckpoint, err error) {
	c, f, err := r.files.open(file)
	if err != nil {
		return used, unsuitable{err}
	}
	defer func() { _ = f.Close() }()
	used = usedCheckpoint{pos: c.id.pos, size: c.left + checkpointHeaderSize}
	if err := r.suits(&c.id, v); err != nil {
		return used, unsuitable{err}
	}
	next := func() ([]byte, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return c.next()
	}
	return used, safely("Restore", func() error {
		if err := w.Restore(c.id.pos, next); err != nil {
			return err
		}
		skipped, err := c.finish()
		switch {
		case err != nil:
			return err
		case skipped > 0:
			return fmt.Errorf("the view left %d blocks unread", skipped)
		case w.Position() != c.id.pos:
			return fmt.Errorf("the view's Position is %v after it was restored to %v", w.Position(), c.id.pos)
		}
		return nil
	})
}

// unsuitable is why a checkpoint was not even begun to be restored.
type unsuitable struct{ error }

func (u unsuitable) Unwrap() error { return u.error }

// recoverView restores v from a checkpoint if it lives in memory, and holds its
// position against the journal. What is wrong with v stalls it; the error is the
// context's.
func (r *Runner) recoverView(ctx context.Context, v *view, rec *Recovery) error {
	v.apply.Lock()
	defer v.apply.Unlock()
	err := r.restoreLocked(ctx, v, rec)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		_, err = r.admitLocked(v)
	}
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.stallLocked(v, err)
	}
	return nil
}

// restoreLocked restores v if it can be and shows nothing. v.apply is held.
func (r *Runner) restoreLocked(ctx context.Context, v *view, rec *Recovery) error {
	w, ok := v.cur.(Saver)
	if !ok {
		return nil
	}
	var at journal.Position
	err := safely("Position", func() error {
		at = w.Position()
		return nil
	})
	if err != nil || at.Seq > 0 {
		return err
	}
	files := r.filesOf(v, rec)
	for i, f := range files {
		c, err := r.restore(ctx, f.name, v, w)
		if err == nil {
			r.restored(v, c, 0, files[i+1:])
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.ignore(rec, f.name, err)
		if errors.As(err, new(unsuitable)) {
			continue
		}
		fresh, err := freshOf(v)
		if err != nil {
			return err
		}
		v.use(fresh)
		w = fresh.(Saver) // freshOf sees to that
	}
	return nil
}
