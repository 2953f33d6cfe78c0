package fsm

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/dagstore/dagstore/shard"
)

const pathsFile = "testdata/paths.txt"

// TestPathGolden shows the paths from states that people ask about. Proves N7 as an
// operator sees it.
func TestPathGolden(t *testing.T) {
	var b strings.Builder
	show := func(name string, goal Goal, n *Net, s *Shard) {
		fmt.Fprintf(&b, "# %s: until %s\n", name, goal)
		steps, ok := Path(n, s, goal)
		if !ok {
			t.Errorf("%s: no path", name)
		}
		for i, p := range steps {
			fmt.Fprintf(&b, "%d. %s\n", i+1, p)
		}
		if len(steps) == 0 {
			b.WriteString("   it is so\n")
		}
		b.WriteString("\n")
	}
	for _, c := range pathCases() {
		x := newBed(t)
		x.n = NewNet(1, 1, 1)
		c.build(x)
		for _, goal := range c.goals {
			show(c.name, goal, x.n, x.s)
		}
	}
	if *rewrite {
		if err := os.WriteFile(pathsFile, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(pathsFile)
	if err != nil || string(want) != b.String() {
		t.Errorf("%s is not what is found (%v).\nRun: go test ./fsm -run PathGolden -rewrite\nand read the diff.", pathsFile, err)
	}
}

type pathCase struct {
	name  string
	goals []Goal
	build func(*bed)
}

func pathCases() []pathCase {
	accessor := []Goal{GoalAccessor}
	lazily := func(b *bed) { b.do(Input{Trigger: Register, Gen: 1, Lazy: true}) }
	probing := func(b *bed) { b.do(Input{Trigger: Register, Gen: 1}) }
	fetched := func(b *bed) { probing(b); b.done(Input{Ready: true}); b.done(Input{}) }
	rival := func(b *bed, in Input) { b.n.Step(&b.rival, &in, &b.o) }
	return []pathCase{
		{"no life", []Goal{GoalAccessor, GoalAvailable, GoalGone, GoalReclaimed}, func(*bed) {}},
		{"registered lazily", []Goal{GoalAccessor, GoalAvailable, GoalGone}, lazily},
		{"probing", accessor, probing},
		{"an acquire that forbids a download waits for the probe", accessor, func(b *bed) {
			*b.s = Shard{Gen: 1, Life: shard.Available, Index: Indexed}
			b.do(Input{Trigger: Acquire, Ticket: 1, NoDownload: true})
		}},
		{"queued for a fetch slot", accessor, func(b *bed) {
			rival(b, Input{Trigger: Register, Gen: 1})
			rival(b, Input{Trigger: ProbeDone, Attempt: 1, Ready: true})
			probing(b)
			b.done(Input{Ready: true})
		}},
		{"probing while another wants the open slot", accessor, func(b *bed) {
			probing(b)
			rival(b, Input{Trigger: Register, Gen: 1})
		}},
		{"indexing", accessor, fetched},
		{"available, closed", accessor, func(b *bed) { fetched(b); b.done(Input{}) }},
		{"open", accessor, func(b *bed) { b.open() }},
		{"in use", []Goal{GoalGone, GoalReclaimed}, func(b *bed) {
			fetched(b)
			b.do(Input{Trigger: Acquire, Ticket: 1})
			b.do(Input{Trigger: Acquire, Ticket: 2})
			b.done(Input{})
			b.done(Input{})
		}},
		{"removing the copy", []Goal{GoalAccessor, GoalReclaimed}, func(b *bed) {
			fetched(b)
			b.done(Input{})
			b.do(Input{Trigger: Reclaim, Ticket: 3})
		}},
		{"errored", []Goal{GoalAccessor, GoalAvailable, GoalGone}, func(b *bed) { probing(b); b.done(Input{Err: errModel}) }},
		{"errored, recovers on acquire", accessor, func(b *bed) {
			*b.s = Shard{Gen: 1, Life: shard.Errored, Cause: errModel}
			b.do(Input{Trigger: Resume, Heal: HealOnAcquire})
		}},
		{"recovering", []Goal{GoalAccessor, GoalAvailable}, func(b *bed) {
			probing(b)
			b.done(Input{Err: errModel})
			b.do(Input{Trigger: Recover, Ticket: 1})
		}},
		{"available, its last fetch failed", accessor, func(b *bed) {
			*b.s = Shard{Gen: 1, Life: shard.Available, Index: Indexed}
			b.do(Input{Trigger: Acquire, Ticket: 1})
			b.done(Input{Err: errModel})
		}},
		{"read-only, registered", []Goal{GoalAccessor, GoalGone}, func(b *bed) { lazily(b); b.n.SetReadOnly(0, 0) }},
		{"read-only, available", []Goal{GoalAccessor, GoalGone}, func(b *bed) { fetched(b); b.done(Input{}); b.n.SetReadOnly(0, 0) }},
		{"read-only, errored", accessor, func(b *bed) { probing(b); b.done(Input{Err: errModel}); b.n.SetReadOnly(0, 0) }},
		{"a job of a former life runs", accessor, func(b *bed) {
			probing(b)
			b.do(Input{Trigger: Destroy})
			b.do(Input{Trigger: Register, Gen: 2})
		}},
	}
}

// pathWorld gives the world one more caller, whose requests the path's are.
func pathWorld(w *world, cfg *config) *world {
	x := w.clone()
	x.net.watch, x.cfg = nil, cfg
	return x
}

// helping lists the moves that may be on a path, found without the search: all that
// the model has, but for failures, distrusted copies, and requests that lead away.
func helping(w *world, goal Goal) (ms []move) {
	s := &w.shards[0]
	for _, mv := range w.moves() {
		in := &mv.in
		good := false
		switch in.Trigger {
		case Register:
			good = (goal == GoalAccessor || goal == GoalAvailable) && s.Life == shard.None && !in.Lazy && !in.Direct
		case Acquire:
			good = (goal == GoalAccessor || goal == GoalAvailable) && !in.NoDownload
		case Recover:
			good = goal == GoalAccessor || goal == GoalAvailable
		case Release, Destroy:
			good = goal == GoalGone || goal == GoalReclaimed && in.Trigger == Release
		case Reclaim:
			good = goal == GoalReclaimed
		case Retry:
			good = s.Resting && goal != GoalGone
		case ProbeDone:
			good = in.Err == nil && (s.stale || in.Ready && !in.Present || in.Present && in.Owned && !s.Fresh)
		case FetchDone, IndexDone, OpenDone, RemoveDone:
			good = in.Err == nil && in.Attempt == s.Attempt
		}
		if mv.what == moveRestart {
			good = goal != GoalReclaimed && w.net.ReadOnly && mv.shard == 0 && in.Heal == HealByHand
		}
		if in.Trigger != Acquire {
			in.Ticket = 0 // nobody wants the answer
		}
		if good && (mv.what == moveRestart || mv.what == moveStep) {
			ms = append(ms, mv)
		}
	}
	return ms
}

// reaches makes the move in a copy of w, and says whether the goal is then reached.
func reaches(w *world, mv move, goal Goal) (next *world, there bool) {
	next = w.clone()
	served := false
	next.apply(mv, func(_ int, _ *Input, out *Out) {
		for _, r := range out.Replies {
			served = served || r.Accessor
		}
	})
	return next, goal == GoalAccessor && served || isThere(next, goal)
}

func isThere(w *world, goal Goal) bool {
	s := &w.shards[0]
	switch goal {
	case GoalAvailable:
		return s.Life == shard.Available
	case GoalGone:
		return s.Life == shard.None
	case GoalReclaimed:
		return (s.Data != Present || !s.Owned) && s.Data != Removing
	}
	return false
}

// distances finds how far every state that can be reached from those in starts by
// helping moves is from the goal, from the goal backwards over all moves.
func distances(starts []*world, goal Goal) map[worldKey]int {
	back := map[worldKey][]worldKey{}
	dist := map[worldKey]int{}
	known := map[worldKey]bool{}
	var queue []*world
	visit := func(w *world) {
		if k := w.key(); !known[k] {
			known[k] = true
			queue = append(queue, w)
		}
	}
	for _, w := range starts {
		visit(w)
	}
	var layer []worldKey
	reach := func(k worldKey, d int) {
		if _, ok := dist[k]; !ok {
			dist[k] = d
			layer = append(layer, k)
		}
	}
	var ones []worldKey
	for len(queue) > 0 {
		w := queue[0]
		queue = queue[1:]
		if isThere(w, goal) {
			reach(w.key(), 0)
			continue
		}
		for _, mv := range helping(w, goal) {
			next, there := reaches(w, mv, goal)
			if there {
				ones = append(ones, w.key())
			} else {
				back[next.key()] = append(back[next.key()], w.key())
				visit(next)
			}
		}
	}
	for _, k := range ones {
		reach(k, 1)
	}
	for d := 2; len(layer) > 0; d++ {
		now := layer
		layer = nil
		for _, k := range now {
			for _, from := range back[k] {
				reach(from, dist[k]+1)
			}
		}
	}
	return dist
}

// follow makes the steps of the path in w, one after the other, as caller c.
func follow(w *world, steps []PathStep, goal Goal, c int) (there bool, err error) {
	there = isThere(w, goal)
	for _, p := range steps {
		for range p.Times {
			mv := move{in: p.in}
			if p.Trigger == "reopen" {
				mv = move{what: moveRestart}
			}
			if mv.in.Ticket != 0 {
				for ; c < len(w.callers)-1 && w.callers[c].asks != idle; c++ {
				}
				mv.in.Ticket = Ticket(c + 1)
			}
			if mv.in.Attempt != 0 {
				mv.in.Attempt = w.shards[0].Attempt
			}
			w, there = reaches(w, mv, goal)
			if w.broken != "" {
				return false, fmt.Errorf("%s: %s", mv, w.broken)
			}
		}
	}
	return there, nil
}

// TestPathIsShortest: from every state of one shard there is a path to each goal, its
// inputs lead there on the machine, and no fewer do. Proves N7 and N4.
func TestPathIsShortest(t *testing.T) {
	cfg := oneShard(1)
	cfg.late = false
	more := cfg
	more.callers = 2
	var starts []*world
	limit := 0
	if raceEnabled {
		limit = 500
	}
	walk(&theMachine, &cfg, limit, nil, func(w *world) bool { starts = append(starts, pathWorld(w, &more)); return true }, nil, nil)
	for goal := range numGoals {
		dist := distances(starts, goal)
		longest := 0
		for _, w := range starts {
			steps, ok := Path(&w.net, &w.shards[0], goal)
			if !ok {
				t.Fatalf("until %s: no path from %s", goal, Why(&w.net, &w.shards[0]))
			}
			n := 0
			for _, p := range steps {
				n += p.Times
			}
			longest = max(longest, n)
			there, err := follow(w, steps, goal, 1)
			if err != nil || !there {
				t.Fatalf("until %s: the path does not lead there (%v) from %s\n%v", goal, err, Why(&w.net, &w.shards[0]), steps)
			}
			pathOfCaller(t, w, goal, steps)
			// A life that gave up while the journal was read-only is recorded as recovering,
			// of which the machine knows nothing: the restart goes on by itself.
			gaveUp := w.shards[0].Life == shard.Errored && w.fates[0].durable == shard.Recovering
			want, known := dist[w.key()]
			if !known || n != want && !(gaveUp && n > want) {
				t.Fatalf("until %s: %d steps, %d are enough (%t) from %s\n%v", goal, n, want, known, Why(&w.net, &w.shards[0]), steps)
			}
		}
		t.Logf("until %s: %d states, at most %d steps", goal, len(starts), longest)
	}
}

// pathOfCaller: the path to the answer of the caller that waits leads to it. That of an
// acquire that others could have made is the path to an accessor.
func pathOfCaller(t *testing.T, w *world, goal Goal, accessor []PathStep) {
	t.Helper()
	if w.callers[0].asks != waits || goal != GoalAccessor {
		return
	}
	s := &w.shards[0]
	steps, ok := PathOf(&w.net, s, 1)
	if !ok {
		// Only one that would be refused in time, or whose outcome cannot be recorded.
		if !(has(s.Local, 1) && s.Fresh) && !w.net.ReadOnly {
			t.Fatalf("no path to the answer of a ticket from %s", Why(&w.net, s))
		}
		return
	}
	if has(s.Parked, 1) && len(steps) != len(accessor) && accessor[0].Trigger != "reopen" {
		t.Fatalf("%d steps to the answer of a parked acquire, %d to an accessor", len(steps), len(accessor))
	}
	x := w.clone()
	for i, p := range steps {
		mv := move{in: p.in}
		if mv.in.Attempt != 0 {
			mv.in.Attempt = x.shards[0].Attempt
		}
		if x.callers[0].asks != waits {
			t.Fatalf("answered after %d of %v", i, steps)
		}
		x, _ = reaches(x, mv, goal)
	}
	if x.callers[0].asks == waits || x.broken != "" {
		t.Fatalf("not answered by %v (%s)", steps, x.broken)
	}
}

// TestPathBesideRivals: with another shard that takes tokens and goes on, the steps
// that are not the other's lead to the goal, whenever the other gives way. Proves N7.
func TestPathBesideRivals(t *testing.T) {
	cfg := rivals2()
	visited, waited := 0, 0
	walk(&theMachine, &cfg, 4000, nil, func(from *world) bool {
		if visited++; visited%3 != 0 {
			return true
		}
		w := pathWorld(from, from.cfg)
		steps, ok := Path(&w.net, &w.shards[0], GoalAccessor)
		if !ok {
			t.Fatalf("no path from %s", Why(&w.net, &w.shards[0]))
		}
		served := false
		step := func(i int, in Input) {
			var out Out
			w.net.Step(&w.shards[i], &in, &out)
			w.net.Step(&w.shards[0], &Input{}, &out)
			w.net.Step(&w.shards[1], &Input{}, &out)
			for _, r := range out.Replies {
				served = served || r.Accessor && i == 0
			}
		}
		giveWay := func() {
			for n := 0; w.shards[0].Queued != NoSlot; n++ {
				waited++
				rival := &w.shards[1]
				if rival.job == JobNone || n > 4 {
					t.Fatalf("stands in the %s queue for nothing: %s", w.shards[0].Queued, Why(&w.net, &w.shards[0]))
				}
				step(1, Input{Trigger: doneOf[rival.job], Attempt: rival.Attempt, Ready: true})
			}
		}
		for _, p := range steps {
			if p.Trigger != "token" {
				in := p.in
				if in.Attempt != 0 {
					in.Attempt = w.shards[0].Attempt
				}
				giveWay()
				step(0, in)
			}
			giveWay()
		}
		if !served {
			t.Fatalf("the path does not lead to an accessor from %s\n%v", Why(&from.net, &from.shards[0]), steps)
		}
		return !t.Failed()
	}, nil, nil)
	if waited == 0 {
		t.Error("nobody ever waited for the rival")
	}
}

// TestPathCountsTokens: a path says how many tokens have to come back first.
func TestPathCountsTokens(t *testing.T) {
	n := NewNet(1, 1, 2)
	var out Out
	shards := make([]Shard, 6)
	for i := range shards {
		shards[i] = Shard{Gen: uint64(i + 1), Life: shard.Available, Data: Direct, Index: Indexed}
		n.Step(&shards[i], &Input{Trigger: Acquire, Ticket: Ticket(i + 1)}, &out)
	}
	steps, ok := Path(n, &shards[5], GoalAccessor) // two hold, three stand ahead
	if !ok || len(steps) != 2 || steps[0].Trigger != "token" || steps[0].Times != 4 || steps[1].Trigger != "open-done" {
		t.Fatal(steps)
	}
	for i := range 4 { // and as many it takes
		n.Step(&shards[i], &Input{Trigger: OpenDone, Attempt: 1}, &out)
		n.Step(&shards[i+2], &Input{}, &out)
	}
	if shards[5].Job() != JobOpen {
		t.Errorf("after four tokens the job is %s", shards[5].Job())
	}
	if holders := n.Holders(OpenSlot); len(holders) != 2 {
		t.Errorf("%d holders", len(holders))
	}
}

// BenchmarkPath is the longest search: from an errored shard that is queued behind
// others on the way, to an accessor.
func BenchmarkPath(b *testing.B) {
	x := newBed(b)
	x.do(Input{Trigger: Register, Gen: 1})
	x.done(Input{Err: errModel})
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := Path(x.n, x.s, GoalAccessor); !ok {
			b.Fatal("no path")
		}
	}
}
