package toplevel

import (
	"slices"
	"time"
)

// When runs on disk are merged, and how that is done beside everything else. What to
// merge is decided by [Plan] and [Rest].

// kick starts merging, beside everything else, if there is something to merge.
func (x *Index) kick() {
	x.mu.Lock()
	due := x.fs != nil && !x.mu.merging && !x.mu.closed && x.mu.started && len(x.choose(x.plan)) > 0
	if due {
		x.mu.merging = true
	}
	x.mu.Unlock()
	if due {
		x.opts.Spawn(x.merge)
	} else {
		x.rest()
	}
}

// rest has what is left merged when nothing was added for a while.
func (x *Index) rest() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.opts.RestAfter < 0 || x.fs == nil || x.mu.closed || !x.mu.started {
		return
	}
	if x.mu.resting != nil {
		x.mu.resting.Stop()
	}
	puts := x.mu.puts
	x.mu.resting = time.AfterFunc(x.opts.RestAfter, func() {
		x.mu.Lock()
		quiet := x.mu.puts == puts
		due := quiet && !x.mu.merging && !x.mu.closed && len(x.choose(Rest)) > 0
		if due {
			x.mu.merging = true
		}
		x.mu.Unlock()
		switch {
		case due:
			x.opts.Spawn(x.mergeRest)
		case !quiet:
			x.rest()
		}
	})
}

// mergeRest is a merge of what is left.
func (x *Index) mergeRest() {
	if runs := x.choose(Rest); len(runs) > 0 {
		if err := x.mergeRuns(runs); err != nil {
			x.mergeFailed(err)
			return
		}
	}
	x.merge()
}

// choose returns the runs that a plan picks.
func (x *Index) choose(plan func([]RunSize) []int) []*diskRun {
	st := x.state.Load()
	sizes := make([]RunSize, len(st.disk))
	for i, r := range st.disk {
		sizes[i] = RunSize{Entries: r.entries, Dead: st.dead[i]}
	}
	var runs []*diskRun
	for _, i := range plan(sizes) {
		runs = append(runs, st.disk[i])
	}
	return runs
}

func (x *Index) plan(sizes []RunSize) []int { return Plan(sizes, x.opts.FanIn) }

// merge merges until there is nothing to merge.
func (x *Index) merge() {
	for {
		x.mu.Lock()
		runs := x.choose(x.plan)
		if len(runs) == 0 || x.mu.closed {
			x.mu.merging = false
			x.mu.idle.Broadcast()
			x.mu.Unlock()
			x.rest()
			return
		}
		x.mu.Unlock()
		if err := x.mergeRuns(runs); err != nil {
			x.mergeFailed(err)
			return
		}
	}
}

// mergeFailed ends a merge, until the next flush.
func (x *Index) mergeFailed(err error) {
	x.mu.Lock()
	x.mu.merging = false
	x.mu.idle.Broadcast()
	x.mu.Unlock()
	if x.ctx.Err() == nil {
		x.opts.Logger.Warn("top-level index: merge", "err", err)
		x.noteDamage(err)
	}
}

func (x *Index) mergeRuns(runs []*diskRun) error {
	shown := x.use(0)
	defer shown.leave(0)
	srcs := make([]source, len(runs))
	for i, r := range runs {
		if !slices.Contains(shown.disk, r) {
			return errSuperseded // only merges change what is there, and there is one
		}
		srcs[i] = r
	}
	began := time.Now()
	made, err := x.write(srcs, func(int) error {
		err := x.pace(time.Since(began))
		began = time.Now()
		return err
	})
	if err != nil {
		return err
	}
	err = x.commit(nil, func(st *state) {
		disk, dead := st.disk, st.dead
		st.disk, st.dead = nil, nil
		placed := made == nil
		for i, r := range disk {
			if !slices.Contains(runs, r) {
				st.disk, st.dead = append(st.disk, r), append(st.dead, dead[i])
			} else if !placed {
				st.disk, st.dead, placed = append(st.disk, made), append(st.dead, 0), true
			}
		}
	}, made)
	if err != nil {
		return err
	}
	x.stats.merges.Add(1)
	for _, r := range runs {
		x.stats.merged.Add(r.entries)
	}
	return nil
}

// pace pauses a merge that worked for some time, unless runs pile up.
func (x *Index) pace(worked time.Duration) error {
	if err := x.ctx.Err(); err != nil {
		return err
	}
	pause := time.Duration(float64(worked) * (1 - x.opts.MergeShare) / x.opts.MergeShare)
	if pause <= 0 || len(x.state.Load().disk) > 3*x.opts.FanIn {
		return nil
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-x.ctx.Done():
		return x.ctx.Err()
	}
}

// Died notes that an ingest is no longer alive. Its entries go with a later merge; when
// there are many, one is started for them.
func (x *Index) Died() {
	st := x.state.Load()
	ingests := 0
	for _, r := range st.mem {
		ingests += len(r.ingests)
	}
	for _, r := range st.disk {
		ingests += int(r.ingests)
	}
	x.mu.Lock()
	x.mu.dead++
	due := x.mu.dead >= max(64, ingests/16) && !x.mu.closed
	if due {
		x.mu.dead = 0
	}
	x.mu.Unlock()
	if due {
		x.opts.Spawn(x.census)
	}
}

// census counts the dead entries of every run.
func (x *Index) census() {
	if x.fs == nil {
		x.writing.lock()
		defer x.writing.unlock()
		if mem := x.state.Load().mem; len(mem) > 0 {
			x.replaceMem(mem, mergeInMemory(mem, x.alive))
		}
		return
	}
	st := x.use(0)
	defer st.leave(0)
	dead := make(map[*diskRun]uint64)
	for _, r := range st.disk {
		recs, err := r.records()
		if err != nil {
			x.noteDamage(err)
			return
		}
		for i := range recs {
			if !x.alive(&recs[i]) {
				dead[r] += uint64(recs[i].entries)
			}
		}
	}
	x.mu.Lock()
	now := x.state.Load().clone()
	now.dead = make([]uint64, len(now.disk))
	for i, r := range now.disk {
		now.dead[i] = dead[r]
	}
	former := x.showLocked(now)
	x.mu.Unlock()
	former.retire()
	x.kick()
}
