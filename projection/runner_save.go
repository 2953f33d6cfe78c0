package projection

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// frozenState is a view's state on its way to a checkpoint.
type frozenState struct {
	v    *view
	gen  int
	id   checkpointID
	save func(emit func([]byte) error) error
	snap *Snapshot // of the catalogue, if the journal may be compacted there
}

// writes reports whether checkpoints are made at all.
func (r *Runner) writes() bool { return r.opts.Dir != "" && !r.opts.ReadOnly }

// freezeIfDue freezes v if its policy says so and no other checkpoint of it is on its
// way. v.apply is held.
func (r *Runner) freezeIfDue(v *view) *frozenState {
	if !r.writes() || !r.due(v) {
		return nil
	}
	if _, ok := v.cur.(Saver); !ok {
		return nil
	}
	r.mu.Lock()
	planned := v.savePlan
	v.savePlan = true
	r.mu.Unlock()
	if planned {
		return nil
	}
	f, err := r.freeze(v)
	if err != nil {
		r.mu.Lock()
		v.savePlan = false
		r.mu.Unlock()
		r.saveFailed(v, err)
	}
	return f
}

func (r *Runner) due(v *view) bool {
	p := r.opts.Policy
	if p == (CheckpointPolicy{}) && v.since.bytes < v.lastLen.Load()/policyShare {
		return false
	}
	if p.Events == 0 {
		p.Events = defaultPolicyEvents
	}
	if p.Bytes == 0 {
		p.Bytes = defaultPolicyBytes
	}
	return v.since.events >= p.Events || v.since.bytes >= p.Bytes
}

// freeze freezes v, which is a Saver. v.apply is held. Whatever comes of it, the next
// is due after as many events again.
func (r *Runner) freeze(v *view) (f *frozenState, err error) {
	v.since = growth{}
	f = &frozenState{v: v, gen: v.gen, id: checkpointID{view: v.name, version: v.version}}
	err = safely("Freeze", func() error {
		f.id.pos, f.save = v.cur.(Saver).Freeze()
		if planted.Bug("checkpoint-ahead-of-its-state") {
			f.id.pos = r.j.Head()
		} else if at := v.applied(); f.id.pos != at || f.save == nil {
			return fmt.Errorf("the view froze at %v and shows %v", f.id.pos, at)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if _, ok := r.compactor(); ok && v.cat != nil {
		f.snap = v.cat.Snapshot()
	}
	return f, nil
}

// spawnSave saves f beside the caller.
func (r *Runner) spawnSave(f *frozenState) {
	if f == nil {
		return
	}
	r.spawn(func() {
		v := f.v
		defer func() {
			r.mu.Lock()
			v.savePlan = false
			r.mu.Unlock()
		}()
		select {
		case v.saving <- struct{}{}:
		default:
			return // somebody asked for a checkpoint meanwhile
		}
		err := r.save(r.ctx, f)
		<-v.saving
		if err == nil && v.cat != nil {
			r.compact(r.ctx)
		}
	})
}

// save writes the checkpoint of f, and then removes those that are older than the one
// before. v.saving is held.
func (r *Runner) save(ctx context.Context, f *frozenState) error {
	v := f.v
	if err := v.apply.lockFor(ctx); err != nil {
		return err
	}
	swapped := v.gen != f.gen
	v.apply.Unlock()
	if swapped {
		return errSwapped
	}
	size, err := r.writeCheckpoint(ctx, f)
	if err != nil {
		if r.ctx.Err() == nil {
			r.saveFailed(v, err)
		}
		return err
	}
	v.lastLen.Store(size)
	r.mu.Lock()
	r.mu.stats.Checkpoints++
	r.mu.stats.CheckpointBytes += uint64(size)
	kept := []keptCheckpoint{{pos: f.id.pos, snap: f.snap}}
	if len(v.kept) > 0 && v.kept[0].pos != f.id.pos {
		kept = append(kept, v.kept[0])
	} else if len(v.kept) > 1 {
		kept = append(kept, v.kept[1])
	}
	v.kept = kept
	r.mu.Unlock()
	r.removeOthers(v, kept)
	return nil
}

func (r *Runner) writeCheckpoint(ctx context.Context, f *frozenState) (int64, error) {
	if f.v.cat != nil {
		defer r.beginWriting()()
	}
	save := func(emit func([]byte) error) error {
		return safely("save", func() error { return f.save(emit) })
	}
	size, err := r.files.write(ctx, f.id, save)
	if errors.Is(err, fs.ErrNotExist) {
		if err := r.files.prepare(); err != nil {
			return 0, err
		}
		size, err = r.files.write(ctx, f.id, save)
	}
	return size, err
}

func (r *Runner) removeOthers(v *view, kept []keptCheckpoint) {
	if r.ctx.Err() != nil && v.cat == nil {
		return // too late: the next process may have its own there by now
	}
	var seqs []uint64
	for _, k := range kept {
		seqs = append(seqs, k.pos.Seq)
	}
	if err := r.files.removeBut(v.name, seqs...); err != nil {
		r.log.Warn("old checkpoints could not be removed", "view", v.name, "err", err)
	}
}

func (r *Runner) saveFailed(v *view, err error) {
	r.log.Warn("a checkpoint could not be made; the next start takes longer", "view", v.name, "err", err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.stats.CheckpointsFailed++
}

// Checkpoint makes a checkpoint of every view that can be saved and has changed
// since its last one, and compacts the journal if that is due. It waits for the end.
// Checkpoints only make the next start faster: nothing depends on the error.
func (r *Runner) Checkpoint(ctx context.Context) error {
	ctx, leave, err := r.join(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if !r.writes() {
		return nil
	}
	var errs []error
	for _, v := range r.views() {
		if err := r.checkpoint(ctx, v); err != nil {
			errs = append(errs, fmt.Errorf("checkpoint of view %q: %w", v.name, err))
		}
	}
	if len(errs) == 0 {
		r.compact(ctx)
	}
	return errors.Join(errs...)
}

func (r *Runner) checkpoint(ctx context.Context, v *view) error {
	if err := v.lockSaving(ctx); err != nil {
		return err
	}
	defer func() { <-v.saving }()
	f, err := r.freezeNow(ctx, v)
	if f == nil || err != nil {
		return err
	}
	return r.save(ctx, f)
}

func (v *view) lockSaving(ctx context.Context) error {
	select {
	case v.saving <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// freezeNow freezes v if it can be saved and shows what is in no checkpoint yet.
func (r *Runner) freezeNow(ctx context.Context, v *view) (*frozenState, error) {
	if err := v.apply.lockFor(ctx); err != nil {
		return nil, err
	}
	defer v.apply.Unlock()
	at := v.applied()
	r.mu.Lock()
	done := len(v.kept) > 0 && v.kept[0].pos == at
	r.mu.Unlock()
	if _, ok := v.cur.(Saver); !ok || !v.admitted || at.Seq == 0 || done {
		return nil, nil
	}
	return r.freeze(v)
}

// compactor returns the journal if this runner may compact it.
func (r *Runner) compactor() (journal.Compactor, bool) {
	c, ok := r.j.(journal.Compactor)
	return c, ok && r.writes() && r.opts.Retention.Bytes >= 0
}

// compact has the journal forget what no view, no checkpoint and no wish needs any
// more, if that is worth while. Not while somebody reads the history.
func (r *Runner) compact(ctx context.Context) {
	c, ok := r.compactor()
	if !ok {
		return
	}
	r.mu.Lock()
	limit := r.horizonLocked()
	busy := r.mu.compacting != nil || r.mu.historians > 0 && !planted.Bug("history-removed-under-a-reader") || limit <= c.Horizon().Seq
	compacting := make(chan struct{})
	if !busy {
		r.mu.compacting = compacting
	}
	r.mu.Unlock()
	if busy {
		return
	}
	done, err := r.compactTo(ctx, c, limit)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.compacting = nil
	close(compacting)
	switch {
	case err != nil && r.ctx.Err() == nil:
		r.mu.stats.CompactionsFailed++
		r.log.Warn("the journal could not be compacted; it will be tried again after the next checkpoint", "err", err)
	case done:
		r.mu.stats.Compactions++
	}
}

// horizonLocked returns up to where nobody needs the history:
//
//	horizon ≤ older checkpoint of the catalogue - Retention.Events
//	horizon ≤ position of every registered view, and of every checkpoint kept
//
// A view that is restored from checkpoints and cannot begin with a base needs the
// history until it has two.
func (r *Runner) horizonLocked() uint64 {
	var horizon uint64
	if kept := r.first.kept; len(kept) == 2 {
		horizon = kept[1].pos.Seq
	}
	if kept := r.first.kept; len(kept) > 0 && planted.Bug("history-removed-above-the-older-checkpoint") {
		horizon = kept[0].pos.Seq
	}
	horizon -= min(horizon, r.opts.Retention.Events)
	for _, v := range r.mu.views {
		if !planted.Bug("history-removed-above-a-view") {
			horizon = min(horizon, v.applied().Seq)
		}
		for _, k := range v.kept {
			horizon = min(horizon, k.pos.Seq)
		}
		_, saver := v.inUse().(Saver)
		_, based := v.inUse().(Based)
		_, seeded := v.inUse().(Seeded)
		if saver && !based && !seeded && len(v.kept) < 2 {
			horizon = 0
		}
	}
	return horizon
}

// compactTo compacts up to the last batch that ends at limit or before, unless that
// gives back too little.
func (r *Runner) compactTo(ctx context.Context, c journal.Compactor, limit uint64) (done bool, err error) {
	about, err := positionAt(r.j, limit)
	if err != nil {
		return false, err
	}
	least := r.opts.Retention.Bytes
	if least == 0 {
		least = defaultRetentionBytes
	}
	if c.Reclaimable(about) < least {
		return false, nil
	}
	snap, err := r.fold(ctx, limit)
	if err != nil || snap.Position().Seq <= c.Horizon().Seq {
		return false, err
	}
	err = c.Compact(ctx, snap.Position(), func(emit func(*shard.Event) error) error { return snap.Events(emit) })
	return err == nil, err
}
