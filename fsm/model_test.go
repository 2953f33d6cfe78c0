package fsm

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/dagstore/dagstore/shard"
)

// rivals is one shard with one caller and everything, beside one that takes its
// tokens away.
func rivals() config {
	cfg := oneShard(1)
	cfg.shards, cfg.rival, cfg.late, cfg.mild = 2, true, false, true
	return cfg
}

// rivals2 has two callers, and only what they can do to each other.
func rivals2() config {
	return config{shards: 2, callers: 2, rival: true, copied: true, noDownload: true, mild: true}
}

// delayed is one shard and a rival, woken some time after their token is free, by
// a journal that does not take every event.
func delayed() config {
	return config{shards: 2, callers: 1, rival: true, delayed: true, lost: true, direct: true}
}

// failing is one shard whose events are not always recorded.
func failing() config {
	cfg := oneShard(1)
	cfg.late, cfg.lost = false, true
	return cfg
}

// follower is one shard of a store that is read-only from the start and follows the
// journal of another: its records change without it.
func follower() config {
	return config{
		shards: 1, callers: 1, follower: true, hostile: true, noDownload: true,
		direct: true, copied: true, reclaim: true, slow: true,
	}
}

// ending is one shard that is destroyed while it is read.
func ending() config {
	return config{shards: 1, callers: 3, ends: true, copied: true, noDownload: true, hostile: true}
}

// endingUnrecorded is that with a journal that does not take every event.
func endingUnrecorded() config {
	return config{shards: 1, callers: 2, ends: true, lost: true, durable: true, direct: true}
}

// oneShard2 leaves out the stray inputs, which change nothing.
func oneShard2() config {
	cfg := oneShard(2)
	cfg.late, cfg.mild = false, true
	return cfg
}

// twoShards is two shards alike, each with a caller of its own, that share one
// token of each kind.
func twoShards() config {
	return config{shards: 2, callers: 2, pinned: true, copied: true, mild: true}
}

// sampled: pairs and explanations are looked at in every so many states.
const sampled = 5

// models are the configurations of the model check, small ones first, and how many
// of their states a run under the race detector visits.
var models = []struct {
	name string
	cfg  config
	race int
}{
	{"one shard, one caller", oneShard(1), 0},
	{"one shard, one caller, a follower", follower(), 0},
	{"one shard, two callers, destroyed in use, appends that fail", endingUnrecorded(), 0},
	{"one shard, three callers, destroyed in use", ending(), 2000},
	{"one shard, two callers, a rival shard", rivals2(), 2000},
	{"one shard, one caller, a rival shard", rivals(), 2000},
	{"one shard, two callers", oneShard2(), 2000},
	{"one shard, one caller, appends that fail", failing(), 0},
	{"one shard, one caller, a rival shard, wake-ups that take time", delayed(), 0},
	{"two shards, two callers", twoShards(), 3000},
}

// touches are the writes that are declared though nothing is written, so that what
// reads the place is evaluated: the token is put into the net after a restart, and
// the journal was changed from outside.
var touches = map[string]Places{
	"resume-recovering": places(PlaceLife),
	"freeze":            places(PlaceJournal),
}

// TestModel walks every state of ten small configurations. Proves N1 to N8, and of
// the invariants I1, I5, I7, I9 and I10 what the machine can break.
//
// In every state and on every edge: exactly one row of an input is enabled; events
// are legal after what is recorded; outcomes write what they declare and depend on
// what they declare, and so do guards; tokens in use are those of running jobs;
// outdated completions and those of a former life change nothing; every ticket is
// answered once; nothing that is enabled was missed and the queues hold exactly
// those who lack a token; disjoint steps of two shards commute; and when running
// jobs end, however they end, everybody is answered and every token is back.
func TestModel(t *testing.T) {
	all := newChecker(&theMachine)
	for i, c := range checked() {
		if c.err != "" {
			t.Fatalf("%s: %s", models[i].name, c.err)
		}
		t.Logf("%s: %d states, %d edges, %d commuting pairs, %d conflicting pairs",
			models[i].name, c.states, c.edges, c.commuting, c.conflicting)
		all.add(c)
	}
	if raceEnabled {
		return // the bounded walks do not reach every row
	}
	for _, row := range table {
		if all.fired[row] == 0 {
			t.Errorf("row %s never fires: remove it", row.Name)
		}
		if never := row.Writes &^ all.wrote[row] &^ touches[row.Name]; never != 0 {
			t.Errorf("row %s declares that it writes %v and never does: drop the declaration", row.Name, never.List())
		}
		for _, kind := range row.Emits {
			if !all.emitted[row][kind] {
				t.Errorf("row %s declares the event %s and never emits it: drop the declaration", row.Name, kind)
			}
		}
	}
}

// checked walks each model once, for the tests that look at the outcome.
var checked = sync.OnceValue(func() (cs []*checker) {
	for _, m := range models {
		c := newChecker(&theMachine)
		c.thorough = true
		limit := 0
		if raceEnabled {
			limit = m.race
		}
		c.err = c.run(&m.cfg, limit)
		cs = append(cs, c)
	}
	return cs
})

// countsTable tells how much the model check looked at.
func countsTable() string {
	var b strings.Builder
	b.WriteString("| configuration | states | edges | commuting pairs | conflicting pairs |\n|---|---|---|---|---|\n")
	for i, c := range checked() {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d |\n", models[i].name, c.states, c.edges, c.commuting, c.conflicting)
	}
	return b.String()
}

func (c *checker) add(o *checker) {
	for t, n := range o.fired {
		c.fired[t] += n
		c.wrote[t] |= o.wrote[t]
		if c.emitted[t] == nil {
			c.emitted[t] = map[shard.Kind]bool{}
		}
		for kind := range o.emitted[t] {
			c.emitted[t][kind] = true
		}
	}
}

// footprint is which shared places one move read and wrote.
type footprint struct{ reads, writes Places }

const sharedPlaces = Places(1<<numPlaces - 1<<numShardPlaces)

// tryMove makes the move in a copy of w and returns it with the move's footprint.
func tryMove(w *world, mv move) (*world, footprint) {
	next := w.clone()
	next.net.watch = nil
	var f footprint
	stood := func(i int) {
		if slot := next.shards[i].Queued; slot != NoSlot {
			f.writes |= places(slot.place())
		}
	}
	stood(mv.shard)
	next.apply(mv, func(i int, _ *Input, out *Out) {
		for _, t := range out.Fired {
			f.reads |= t.Reads() & sharedPlaces
			f.writes |= t.Writes & sharedPlaces
		}
		stood(i)
	})
	return next, f
}

// pairs makes every two moves of different shards in both orders: if they share no
// place, the outcome must be the same (N3).
func (c *checker) pairs(w *world) {
	if w.cfg.shards < 2 {
		return
	}
	type tried struct {
		mv   move
		next *world
		f    footprint
	}
	var of [2][]tried
	for _, mv := range w.moves() {
		if mv.what == moveStep {
			next, f := tryMove(w, mv)
			of[mv.shard] = append(of[mv.shard], tried{mv, next, f})
		}
	}
	for _, a := range of[0] {
		for _, b := range of[1] {
			if a.f.writes&(b.f.reads|b.f.writes)|b.f.writes&a.f.reads != 0 {
				c.conflicting++
				continue
			}
			c.commuting++
			ab, _ := tryMove(a.next, b.mv)
			ba, _ := tryMove(b.next, a.mv)
			if ab.key() != ba.key() || ab.broken != ba.broken {
				c.fail("N3: %q and %q share no place and do not commute", a.mv, b.mv)
			}
		}
	}
}

// explained: for every input, Explain finds nothing unmet exactly in the row that
// fires (N7).
func (c *checker) explained(w *world) {
	for _, mv := range w.moves() {
		if mv.what != moveStep || mv.in.Trigger == Auto {
			continue
		}
		var fired *Transition
		next := w.clone()
		next.net.watch = nil
		next.apply(mv, func(_ int, in *Input, out *Out) {
			if fired == nil {
				fired = out.Fired[0]
			}
		})
		for _, v := range Explain(&w.net, &w.shards[mv.shard], mv.in) {
			if v.Enabled() != (fired.Name == v.Transition) {
				c.fail("N7: %s fires on %s, Explain says of %s that it lacks %v", fired.Name, mv, v.Transition, v.Unmet)
			}
		}
	}
	for i := range w.cfg.shards {
		if w.woken&(1<<i) == 0 {
			c.why(w, &w.shards[i])
		}
	}
}

// why: if no accessor is ready, the answer names something that is missing.
func (c *checker) why(w *world, s *Shard) {
	a := Why(&w.net, s)
	if a.Ready != (s.Life == shard.Available && s.Handle == Open && len(s.Ending) == 0) {
		c.fail("N7: ready is %t in life %s", a.Ready, s.Life)
	}
	if !a.Ready && len(a.Missing) == 0 && a.Job == "" {
		c.fail("N7: nothing is missing, no job runs, and there is no accessor: %s", a)
	}
	if a.Queue != nil && (len(a.Missing) == 0 || len(a.Missing[0].Unmet) != 1) {
		c.fail("N7: in a queue, but not for want of a token alone: %s", a)
	}
	for _, v := range Explain(&w.net, s, Input{}) {
		if v.Enabled() {
			c.fail("N8: %s is enabled at rest", v.Transition)
		}
	}
}
