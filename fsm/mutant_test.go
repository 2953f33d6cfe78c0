package fsm

import (
	"fmt"
	"runtime/debug"
	"slices"
	"sort"
	"sync"
	"testing"

	"github.com/dagstore/dagstore/shard"
)

// mutant is the table with one thing made wrong.
type mutant struct {
	name string
	rows []*Transition
}

// mutated returns a copy of the table in which change was applied to row r.
func mutated(name string, r int, change func(*Transition)) mutant {
	rows := make([]*Transition, len(table))
	for i, t := range table {
		c := *t
		c.Guards = slices.Clone(t.Guards)
		rows[i] = &c
	}
	change(rows[r])
	return mutant{name, rows}
}

// guardMutants removes each guard in turn, and negates each.
func guardMutants() (ms []mutant) {
	for r, t := range table {
		for i, g := range t.Guards {
			ms = append(ms,
				mutated(fmt.Sprintf("%s without %q", t.Name, g.Name), r, func(t *Transition) {
					t.Guards = slices.Delete(t.Guards, i, i+1)
				}),
				mutated(fmt.Sprintf("%s with %q negated", t.Name, g.Name), r, func(t *Transition) {
					not := *g
					not.holds = func(n *Net, s *Shard, in *Input) bool { return !g.holds(n, s, in) }
					t.Guards[i] = &not
				}))
		}
	}
	return ms
}

// writeMutants forgets to declare each write in turn.
func writeMutants() (ms []mutant) {
	for r, t := range table {
		for _, p := range t.Writes.List() {
			ms = append(ms, mutated(fmt.Sprintf("%s does not declare %s", t.Name, p), r, func(t *Transition) {
				t.Writes &^= places(p)
			}))
		}
	}
	return ms
}

// outcomeMutants makes each mistake in the outcome of each row where it makes a
// difference in some state that is reached.
func outcomeMutants() (ms []mutant) {
	effective := make([]map[*Transition]bool, len(mistakes))
	for i := range mistakes {
		effective[i] = map[*Transition]bool{}
	}
	seen := map[*Transition]map[marking]bool{}
	watch := func(t *Transition, st *step) {
		m := mark(st.net, st.s)
		if seen[t] == nil {
			seen[t] = map[marking]bool{}
		}
		if !seen[t][m] {
			seen[t][m] = true
			for i, wrong := range mistakes {
				if !effective[i][t] && touches[t.Name] == 0 {
					effective[i][t] = differs(t, st, wrong.do)
				}
			}
		}
		t.do(st)
	}
	for _, m := range models {
		if m.cfg.rival || m.cfg.shards == 1 {
			walk(&theMachine, &m.cfg, 6000, watch, nil, nil, nil)
		}
	}
	for i, wrong := range mistakes {
		for r, t := range table {
			if effective[i][t] {
				ms = append(ms, mutated(t.Name+" "+wrong.name, r, func(t *Transition) {
					do := t.do
					t.do = func(st *step) { wrong.do(st, do) }
				}))
			}
		}
	}
	return ms
}

// differs says whether the mistake shows in this state, at once.
func differs(t *Transition, st *step, wrong func(*step, func(*step))) bool {
	run := func(do func(*step)) (Out, marking) {
		n, s := copied(st.net, st.s)
		var out Out
		do(&step{net: n, s: s, in: st.in, out: &out})
		return out, mark(n, s)
	}
	want, wantMark := run(t.do)
	got, gotMark := run(func(st *step) { wrong(st, t.do) })
	return wantMark != gotMark || !slices.Equal(got.Events, want.Events) || !slices.Equal(got.Effects, want.Effects) ||
		!slices.Equal(got.Replies, want.Replies) || len(got.Wake) != len(want.Wake)
}

// mistakes are wrong ways to carry out an outcome.
var mistakes = []struct {
	name string
	do   func(st *step, do func(*step))
}{
	{"does nothing", func(*step, func(*step)) {}},
	{"forgets its replies", func(st *step, do func(*step)) {
		n := len(st.out.Replies)
		do(st)
		st.out.Replies = st.out.Replies[:n]
	}},
	{"answers twice", func(st *step, do func(*step)) {
		n := len(st.out.Replies)
		do(st)
		st.out.Replies = append(st.out.Replies, st.out.Replies[n:]...)
	}},
	{"answers with the wrong code", func(st *step, do func(*step)) {
		n := len(st.out.Replies)
		do(st)
		for i := range st.out.Replies[n:] {
			r := &st.out.Replies[n+i]
			if r.Code++; r.Code == numCodes {
				r.Code = OK
			}
			r.Accessor = false
		}
	}},
	{"forgets its effects", func(st *step, do func(*step)) {
		n := len(st.out.Effects)
		do(st)
		st.out.Effects = st.out.Effects[:n]
	}},
	{"starts its job with the trust reversed", func(st *step, do func(*step)) {
		n := len(st.out.Effects)
		do(st)
		for i := range st.out.Effects[n:] {
			if e := &st.out.Effects[n+i]; e.Kind == StartJob {
				e.Fresh = !e.Fresh
			}
		}
	}},
	{"forgets its events", func(st *step, do func(*step)) {
		n := len(st.out.Events)
		do(st)
		st.out.Events = st.out.Events[:n]
	}},
	{"emits another event", func(st *step, do func(*step)) {
		n := len(st.out.Events)
		do(st)
		for i := range st.out.Events[n:] {
			e := &st.out.Events[n+i]
			if e.Kind++; e.Kind > shard.EventDestroyed {
				e.Kind = shard.EventRegistered
			}
		}
	}},
	{"wakes nobody", func(st *step, do func(*step)) {
		n := len(st.out.Wake)
		do(st)
		st.out.Wake = st.out.Wake[:n]
	}},
	{"counts a reference twice", func(st *step, do func(*step)) {
		refs := st.s.Refs
		do(st)
		st.s.Refs += st.s.Refs - refs
	}},
	{"keeps the job", func(st *step, do func(*step)) {
		job, slow, stale := st.s.job, st.s.slow, st.s.stale
		do(st)
		st.s.job, st.s.slow, st.s.stale = job, slow, stale
	}},
	{"keeps the tokens", func(st *step, do func(*step)) {
		var held [numSlots][]*Shard
		for i := range held {
			held[i] = slices.Clone(st.net.slots[i].holders)
		}
		do(st)
		for i := range held {
			st.net.slots[i].holders = held[i]
		}
	}},
	{"stays in the queue", func(st *step, do func(*step)) {
		q := st.s.Queued
		do(st)
		if q != NoSlot && st.s.Queued == NoSlot {
			st.net.join(st.s, q)
		}
	}},
	{"keeps the life", func(st *step, do func(*step)) { l := st.s.Life; do(st); st.s.Life = l }},
	{"keeps the data", func(st *step, do func(*step)) { d := st.s.Data; do(st); st.s.Data = d }},
	{"keeps the owner of the copy", func(st *step, do func(*step)) { o := st.s.Owned; do(st); st.s.Owned = o }},
	{"keeps the index", func(st *step, do func(*step)) { x := st.s.Index; do(st); st.s.Index = x }},
	{"keeps the handle", func(st *step, do func(*step)) { h := st.s.Handle; do(st); st.s.Handle = h }},
	{"keeps who is parked", func(st *step, do func(*step)) {
		p, l := cloned(st.s.Parked), cloned(st.s.Local)
		do(st)
		st.s.Parked, st.s.Local = p, l
	}},
	{"keeps who waits", func(st *step, do func(*step)) {
		w, r := cloned(st.s.Waiting), st.s.Reclaimer
		do(st)
		st.s.Waiting, st.s.Reclaimer = w, r
	}},
	{"keeps who ends it", func(st *step, do func(*step)) { e := cloned(st.s.Ending); do(st); st.s.Ending = e }},
	{"keeps the wish", func(st *step, do func(*step)) { e := st.s.Eager; do(st); st.s.Eager = e }},
	{"keeps the cause", func(st *step, do func(*step)) { c := st.s.Cause; do(st); st.s.Cause = c }},
	{"keeps the distrust", func(st *step, do func(*step)) { f := st.s.Fresh; do(st); st.s.Fresh = f }},
	{"keeps the second try", func(st *step, do func(*step)) { r := st.s.Retried; do(st); st.s.Retried = r }},
	{"keeps the ailment", func(st *step, do func(*step)) { a := st.s.Ail; do(st); st.s.Ail = a }},
	{"keeps the pause", func(st *step, do func(*step)) { r := st.s.Resting; do(st); st.s.Resting = r }},
	{"keeps the healing", func(st *step, do func(*step)) { h := st.s.Healing; do(st); st.s.Healing = h }},
}

// caught walks small configurations until one shows that the mutant is wrong.
func (m mutant) caught() (why string) {
	var machine machine
	machine.compile(m.rows)
	// Nearly all show within few states of some model: all are tried a little before
	// one is walked far.
	for _, limit := range []int{400, 40_000} {
		for i := range models {
			if why := newChecker(&machine).run(&models[i].cfg, limit); why != "" {
				return why
			}
		}
	}
	return ""
}

// TestMutants makes the table wrong in about a thousand ways, one at a time: each
// guard removed and negated, each write undeclared, each mistake in each outcome
// where it makes a difference. Every one must fail the model check. Proves N10.
func TestMutants(t *testing.T) {
	// The walks make much that lives for a moment.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	var all []mutant
	all = append(all, guardMutants()...)
	all = append(all, writeMutants()...)
	all = append(all, outcomeMutants()...)
	if raceEnabled { // which makes each several times as slow
		for i := range len(all) / 12 {
			all[i] = all[i*12]
		}
		all = all[:len(all)/12]
	}
	var mu sync.Mutex
	var survivors []string
	work := make(chan mutant)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for m := range work {
				if m.caught() == "" {
					mu.Lock()
					survivors = append(survivors, m.name)
					mu.Unlock()
				}
			}
		})
	}
	for _, m := range all {
		work <- m
	}
	close(work)
	wg.Wait()
	sort.Strings(survivors)
	for _, s := range survivors {
		t.Errorf("%q survives the model check: if nothing depends on it, remove it from the table; else say in checker what does", s)
	}
	t.Logf("%d mutants, %d survive", len(all), len(survivors))
}
