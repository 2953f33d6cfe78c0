package dagstore

import (
	"fmt"
	"slices"
	"sync"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// sweepAtStart removes what a crash or a removal that was cut short left behind:
// copies and indices of lives that are over, and temporary files. It learns which
// shards have a copy.
func (d *DAGStore) sweepAtStart() error {
	d.knowSchemes()
	snap := d.cat.Snapshot()
	names, err := mount.ListCopies(d.cfg.fs, d.cfg.TransientsDir)
	if err != nil {
		return fmt.Errorf("dagstore: local copies: %w", err)
	}
	copies := d.copiesOf(snap, names)
	return d.sweepLeftovers(func(name string) bool { return copies[name] }, aliveIn(snap))
}

// aliveIn says which generations are those of shards.
func aliveIn(snap *projection.Snapshot) func(gen uint64) bool {
	gens := sync.OnceValue(func() []uint64 { return generations(snap) })
	return func(gen uint64) bool {
		// Generation 0 is what a daemon put there itself, by AddFullIndex.
		_, ok := slices.BinarySearch(gens(), gen)
		return ok || gen == 0
	}
}

// knowSchemes notes which mounts can be made.
func (d *DAGStore) knowSchemes() {
	d.schemes = make(map[string]bool)
	for _, s := range d.mounts.Schemes() {
		d.schemes[s] = true
	}
}

// copiesOf finds the shards whose copies the names are.
func (d *DAGStore) copiesOf(snap *projection.Snapshot, names []string) map[string]bool {
	alive := make(map[string]bool)
	byGen := make(map[uint64]string, len(names))
	for _, name := range names {
		if gen, ok := mount.CopyGeneration(name); ok {
			byGen[gen] = name
		}
	}
	if len(byGen) == 0 {
		return alive
	}
	snap.All(func(r *projection.Record) bool {
		if name, ok := byGen[r.Gen()]; ok && name == mount.CopyName(r.Gen(), r.Key().String()) {
			alive[name] = true
			d.loop.copies[r.Key()] = r.Gen()
		}
		return true
	})
	return alive
}

func generations(snap *projection.Snapshot) []uint64 {
	gens := make([]uint64, 0, snap.Len())
	snap.All(func(r *projection.Record) bool { gens = append(gens, r.Gen()); return true })
	slices.Sort(gens)
	return gens
}

// resume takes up what a stop or crash interrupted: initialisations of shards that
// are not lazy, recoveries, and errored shards if the policy says so.
func (d *DAGStore) resume() {
	d.cat.Snapshot().All(func(r *projection.Record) bool {
		st := r.Life()
		if st == shard.Registered && !r.Lazy() || st == shard.Recovering && !planted.Bug("store-recovery-not-resumed") || st == shard.Errored && d.cfg.RecoverOnStart == RecoverNow {
			d.loop.complete(input{ctl: func() { d.loop.resume(r) }})
		}
		return true
	})
}

func (e *eventLoop) resume(rec *projection.Record) {
	if e.closing {
		return
	}
	lv := e.d.mu.hot[rec.Key()]
	if lv == nil {
		if now := e.d.cat.Get(rec.Key()); now == nil || now.Gen() != rec.Gen() {
			return
		}
		if lv = e.reviveLive(rec); rec.Life() == shard.Recovering {
			e.drain() // revived, it resumes of itself
			return
		}
	}
	e.feed(&input{lv: lv, trig: fsm.Resume})
	e.drain()
}
