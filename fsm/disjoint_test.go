package fsm

import (
	"testing"

	"github.com/dagstore/dagstore/shard"
)

// jobPair is the work of two shards at one time, each a job and whether it goes on
// without a token.
type jobPair [2]struct {
	job       Job
	tokenless bool
}

func (w *world) jobs() (p jobPair) {
	for i := range p {
		p[i].job = w.shards[i].job
		p[i].tokenless = w.shards[i].slotOf() == NoSlot
	}
	return p
}

// allJobs are the kinds of work, and the slot that each holds a token of.
var allJobs = map[struct {
	job       Job
	tokenless bool
}]Slot{
	{JobProbe, false}: OpenSlot, {JobProbe, true}: NoSlot,
	{JobFetch, false}: FetchSlot, {JobFetch, true}: NoSlot,
	{JobIndex, false}: IndexSlot,
	{JobOpen, false}:  OpenSlot, {JobOpen, true}: NoSlot,
	{JobRemove, true}: NoSlot,
}

// busy is two shards alike that do everything which takes a job. Their restarts and
// failures are left out: what runs beside what does not depend on them.
func busy(tokens int) config {
	return config{shards: 2, callers: 2, pinned: true, copied: true, reclaim: true, slow: true, overdue: true, tokens: tokens}
}

// TestDisjointPlacesRunConcurrently: two shards share nothing but the slots and the
// journal. With two tokens of each kind, jobs of every two kinds are in flight at the
// same time in some state; with one, exactly those pairs never are that need the same
// token. And in every state, every two enabled steps of the two shards whose declared
// footprints do not meet, shared places included, lead to the same state in either
// order. Proves N3 (work on disjoint places is concurrent) and N5.
func TestDisjointPlacesRunConcurrently(t *testing.T) {
	if raceEnabled {
		return // one goroutine; the walks without the race detector see more
	}
	for tokens := 1; tokens <= 2; tokens++ {
		cfg := busy(tokens)
		seen := map[jobPair]bool{}
		states, all := 0, (len(allJobs)+1)*(len(allJobs)+1)
		walk(&theMachine, &cfg, 0, nil, func(w *world) bool {
			states++
			seen[w.jobs()] = true
			return tokens == 1 || len(seen) < all // with one token, that pairs never run needs every state
		}, nil, nil)
		together, apart := 0, 0
		for a, slotA := range allJobs {
			for b, slotB := range allJobs {
				possible := tokens == 2 || slotA == NoSlot || slotA != slotB
				if seen[jobPair{a, b}] != possible {
					t.Errorf("%d tokens: %s (%s token) beside %s (%s token): %t", tokens, a.job, slotA, b.job, slotB, !possible)
				}
				if possible {
					together++
				} else {
					apart++
				}
			}
		}
		t.Logf("%d tokens: %d states; %d pairs of jobs run at the same time, %d never", tokens, states, together, apart)
	}
}

// TestDisjointStepsCommute looks at every state of two shards, where the model check
// looks at every fifth, with the footprints of the shard's own places taken into
// account: that they do not meet is part of what is asserted. Proves N3.
func TestDisjointStepsCommute(t *testing.T) {
	cfg := twoShards()
	limit := 12_000
	if raceEnabled {
		limit = 500
	}
	c := newChecker(&theMachine)
	walk(&theMachine, &cfg, limit, nil, func(w *world) bool {
		c.pairs(w)
		return c.err == ""
	}, func(from *world, mv move, to *world, _ bool) bool {
		if mv.what != moveStep {
			return true
		}
		// A step changes the other shard only by waking it: its places are its own.
		o := 1 - mv.shard
		next := from.clone()
		var out Out
		next.net.Step(&next.shards[mv.shard], &mv.in, &out)
		if changed := mark(&from.net, &from.shards[o]).diff(mark(&next.net, &next.shards[o])) &^ sharedPlaces; changed != 0 {
			t.Errorf("%s changes %v of the other shard", mv, changed.List())
		}
		return !t.Failed()
	}, nil)
	if c.err != "" || c.commuting == 0 || c.conflicting == 0 {
		t.Errorf("%s; %d pairs commute, %d conflict", c.err, c.commuting, c.conflicting)
	}
	t.Logf("%d pairs commute, %d conflict", c.commuting, c.conflicting)
}

// TestSinceIsTheNewestChange: whenever a step changes whether a guard holds, for the
// shard that was stepped or for the other, the guard says that it changed then. And a
// step that was taken back says so too. Proves N7 (since).
func TestSinceIsTheNewestChange(t *testing.T) {
	guards := map[*Guard]bool{}
	for _, row := range table {
		for _, g := range row.Guards {
			if g.Reads != 0 {
				guards[g] = true
			}
		}
	}
	limit := 3000
	if raceEnabled {
		limit = 300
	}
	for _, cfg := range []config{rivals2(), delayed()} {
		cfg.lost = false
		changes := 0
		// look holds every guard whose value differs to the time of the change.
		look := func(what string, mv move, from, to *world, now stamp) {
			for g := range guards {
				for i := range cfg.shards {
					a, b := &from.shards[i], &to.shards[i]
					if g.holds(&from.net, a, &noInput) == g.holds(&to.net, b, &noInput) {
						continue
					}
					changes++
					if u := g.unmet(&to.net, b, &noInput); u.Since != now.time || u.SinceSeq != now.seq {
						t.Errorf("%s %s changes %q of shard %d, which says since %d, %d", what, mv, g.Name, i, u.Since, u.SinceSeq)
					}
				}
			}
		}
		walk(&theMachine, &cfg, limit, nil, nil, func(from *world, mv move, _ *world, _ bool) bool {
			if mv.what != moveStep {
				return true
			}
			next := from.clone()
			next.net.watch = nil
			mv.in.Time, mv.in.Seq = 1000, 7
			var out Out
			before := next.shards[mv.shard]
			next.net.Step(&next.shards[mv.shard], &mv.in, &out)
			look("", mv, from, next, stamp{1000, 7})
			if len(out.Events) > 0 {
				reverted := next.clone()
				reverted.net.Revert(&reverted.shards[mv.shard], &before, 2000, 8, &out)
				look("taking back", mv, next, reverted, stamp{2000, 8})
			}
			return !t.Failed()
		}, nil)
		if changes < 1000 {
			t.Errorf("only %d changes seen", changes)
		}
	}
}

// TestFollowerNeverWrites: whatever happens to a shard of a store that follows, no row
// wants anything recorded or swept, and a superseded life leaves nothing but its
// running job. Proves N1 for followers.
func TestFollowerNeverWrites(t *testing.T) {
	cfg := follower()
	superseded := 0
	walk(&theMachine, &cfg, 0, nil, nil, nil, func(_ int, in *Input, out *Out) {
		if len(out.Events) > 0 {
			t.Errorf("%s wants %s recorded", in.Trigger, out.Events[0].Kind)
		}
		for _, e := range out.Effects {
			if e.Kind == Sweep {
				t.Errorf("%s wants files swept", in.Trigger)
			}
		}
		if in.Trigger == Supersede {
			superseded++
		}
	})
	if superseded == 0 {
		t.Error("nothing was ever superseded")
	}
}

// TestSuperseded: who waits is told to ask again, an accessor that is open outlives
// the life uncounted, and its release is a stray.
func TestSuperseded(t *testing.T) {
	b := newBed(t)
	b.n.SetReadOnly(0, 0)
	*b.s = Shard{Gen: 1, Life: shard.Available, Index: Indexed, Data: Direct}
	b.do(Input{Trigger: Acquire, Ticket: 1})
	b.done(Input{})
	b.do(Input{Trigger: CloseIdle})
	if got := b.do(Input{Trigger: Supersede, Time: 9, Seq: 4}); got != "superseded" || b.s.Life != shard.None || b.s.Refs != 0 || b.s.Since[PlaceLife] != 9 {
		t.Errorf("%s: life %s, %d refs, since %d", got, b.s.Life, b.s.Refs, b.s.Since[PlaceLife])
	}
	if len(b.o.Effects) != 1 || b.o.Effects[0].Kind != CloseHandle || len(b.o.Events) != 0 {
		t.Errorf("effects %v, events %v", b.o.Effects, b.o.Events)
	}
	if got := b.do(Input{Trigger: Release}); got != "release-stray" {
		t.Error(got)
	}
	*b.s = Shard{Gen: 1, Life: shard.Available, Index: Indexed}
	b.do(Input{Trigger: Acquire, Ticket: 2})
	b.do(Input{Trigger: Supersede})
	if len(b.o.Replies) != 1 || b.o.Replies[0].Code != ErrSuperseded || b.s.Job() != JobProbe {
		t.Errorf("%+v, job %s", b.o.Replies, b.s.Job())
	}
	if got := b.done(Input{Present: true}); got != "probe-after-life" {
		t.Error(got)
	}
	if got := b.do(Input{Trigger: Supersede}); got != "superseded-nothing" {
		t.Error(got)
	}
}
