package dagstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// GCResult tells what a GC did.
type GCResult struct {
	// Shards has an entry for every available or errored shard that nobody used:
	// nil, or why its local copy could not be removed.
	Shards map[shard.Key]error
	// InUse are the shards whose local copies the store made and kept because they are
	// needed, and who needs them: callers with open accessors, those who keep accessors
	// for later ([Holder]), acquires that wait, a job.
	InUse map[shard.Key]string
	// Reclaimed is how many bytes the removed copies had, as far as is known without
	// looking: those of shards that were indexed.
	Reclaimed uint64
}

// GCOptions are the options of a GC.
type GCOptions struct {
	// AskHolders asks those who keep accessors open for later, as the blockstore of package
	// indexbs does, to let go of shards with a local copy first: what is not being read at
	// this moment is reclaimed. Without it their accessors count like those of callers,
	// so that a GC every minute does not take what is read every second.
	AskHolders bool
}

// ShardFailures counts the shards whose copy could not be removed.
func (e *GCResult) ShardFailures() int {
	n := 0
	for _, err := range e.Shards {
		if err != nil {
			n++
		}
	}
	return n
}

type reclaimed struct {
	key   shard.Key
	code  fsm.Code
	cause error
}

// GC removes the local copies that the store made of shards which nobody uses. It
// looks at shards that have a copy only, and other requests go on meanwhile. If ctx
// ends, what was done by then is returned with ctx's error.
func (d *DAGStore) GC(ctx context.Context) (*GCResult, error) { return d.GCWith(ctx, GCOptions{}) }

// GCWith is GC with options.
func (d *DAGStore) GCWith(ctx context.Context, opts GCOptions) (*GCResult, error) {
	if err := d.checkWriter(); err != nil {
		return nil, err
	}
	if opts.AskHolders {
		d.askForCopies()
	}
	var copies []shard.Key
	busy := make(map[shard.Key]bool)
	if !d.loop.control(func() { copies, busy = d.loop.planGC(busy) }) {
		return nil, ErrClosed
	}
	results := make(chan reclaimed, len(copies))
	for _, k := range copies {
		busy[k] = true // its own result says
		err := d.loop.submit(&request{ctx: ctx, key: k, kind: fsm.Reclaim,
			more: &extras{reclaimed: func(key shard.Key, code fsm.Code, cause error) { results <- reclaimed{key, code, cause} }}})
		if err != nil {
			return nil, err
		}
	}
	res := &GCResult{Shards: make(map[shard.Key]error), InUse: make(map[shard.Key]string)}
	sizes := make(map[shard.Key]uint64, len(copies))
	for _, k := range copies {
		if rec := d.cat.Get(k); rec != nil {
			sizes[k] = rec.Index().SourceSize
		}
	}
	d.cat.Snapshot().All(func(r *projection.Record) bool {
		if l := r.Life(); (l == shard.Available || l == shard.Errored) && !busy[r.Key()] {
			res.Shards[r.Key()] = nil
		}
		return ctx.Err() == nil
	})
	for range copies {
		select {
		case r := <-results:
			switch r.code {
			case fsm.OK:
				res.Shards[r.key] = nil
				res.Reclaimed += sizes[r.key]
			case fsm.ErrBusy:
				if r.cause != nil {
					res.InUse[r.key] = r.cause.Error()
				}
			case fsm.ErrFailed:
				if errors.Is(r.cause, ErrClosed) {
					return res, ErrClosed
				}
				res.Shards[r.key] = r.cause
			}
		case <-ctx.Done():
			return res, ctx.Err()
		}
	}
	return res, ctx.Err()
}

// askForCopies asks holders to let go of the shards that have a copy. What they close at
// once is closed for a request that is made afterwards.
func (d *DAGStore) askForCopies() {
	type asked struct {
		h   Holder
		key shard.Key
	}
	var all []asked
	d.loop.control(func() {
		for k := range d.loop.copies {
			if lv := d.mu.hot[k]; lv != nil {
				for _, x := range lv.holders {
					all = append(all, asked{x.h, k})
				}
			}
		}
	})
	for _, a := range all {
		_ = d.guarded("a holder of accessors", func() error { a.h.LetGo(a.key); return nil })
	}
}

// needs says who needs the copy of a shard.
func (lv *live) needs() error {
	if users := lv.users(); users != "" {
		return errors.New(users)
	}
	s := &lv.s
	switch {
	case s.Acquires() > 0:
		return fmt.Errorf("%d acquires wait for it", s.Acquires())
	case s.Job() != fsm.JobNone:
		return fmt.Errorf("a %s job runs", s.Job())
	}
	return fmt.Errorf("the shard is %s", s.Life)
}

// planGC lists the shards that have a copy of ours, and those that are in use.
func (e *eventLoop) planGC(busy map[shard.Key]bool) ([]shard.Key, map[shard.Key]bool) {
	copies := make([]shard.Key, 0, len(e.copies))
	for k := range e.copies {
		copies = append(copies, k)
	}
	slices.SortFunc(copies, shard.Key.Compare) // the same run twice does the same twice
	for k, lv := range e.d.mu.hot {
		if s := &lv.s; s.Refs > 0 || s.Acquires() > 0 || s.Life != shard.Available && s.Life != shard.Errored {
			busy[k] = true
		}
	}
	return copies, busy
}
