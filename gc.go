package dagstore

import (
	"context"
	"errors"
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
func (d *DAGStore) GC(ctx context.Context) (*GCResult, error) {
	if err := d.checkWriter(); err != nil {
		return nil, err
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
			reclaimed: func(key shard.Key, code fsm.Code, cause error) { results <- reclaimed{key, code, cause} }})
		if err != nil {
			return nil, err
		}
	}
	res := &GCResult{Shards: make(map[shard.Key]error)}
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
