package updown

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"
)

// actor is one caller in the model.
type actor struct {
	doing    doing
	dir      direction
	overtook int8 // phases that began while it waited
}

type doing uint8

const (
	idle doing = iota
	waiting
	holding
)

const actors = 4

// model is the lock's state together with what its callers see of it.
type model struct {
	lock   state
	actors [actors]actor
}

// move is one thing that one actor does.
type move struct {
	actor int
	what  string
	dir   direction
}

func (m model) moves() []move {
	var all []move
	for i, a := range m.actors {
		switch a.doing {
		case idle:
			for _, d := range []direction{up, down} {
				all = append(all, move{i, "enter", d}, move{i, "try", d})
			}
		case waiting:
			all = append(all, move{i, "cancel", a.dir})
		case holding:
			all = append(all, move{i, "leave", a.dir})
		}
	}
	return all
}

// apply makes the move on the lock and lets the actors see what they would see.
func (m model) apply(mv move) model {
	before := m.lock
	a := &m.actors[mv.actor]
	var in entrants
	switch mv.what {
	case "enter":
		*a = actor{doing: waiting, dir: mv.dir}
		if m.lock.enter(mv.dir) {
			a.doing = holding
		}
	case "try":
		if m.lock.try(mv.dir) {
			*a = actor{doing: holding, dir: mv.dir}
		}
	case "cancel":
		in = m.lock.cancel(mv.dir)
		*a = actor{}
	case "leave":
		in = m.lock.leave(mv.dir)
		*a = actor{}
	}
	began := m.lock.holders > 0 && (before.holders == 0 || mv.what == "leave" && in.any)
	for i := range m.actors {
		a := &m.actors[i]
		switch {
		case a.doing == waiting && in.any && a.dir == in.dir:
			*a = actor{doing: holding, dir: a.dir}
		case a.doing == waiting && began:
			a.overtook++
		}
	}
	return m
}

// check says which promise m breaks.
func (m model) check(by move) error {
	var held, waits [2]int
	for _, a := range m.actors {
		switch a.doing {
		case holding:
			held[a.dir]++
		case waiting:
			waits[a.dir]++
		}
		if a.overtook > 1 {
			return errors.New("waits longer than the rest of a phase and one more")
		}
	}
	switch d := m.lock.dir; {
	case held[up] > 0 && held[down] > 0:
		return errors.New("both directions hold")
	case waits != m.lock.waiting || held[d] != m.lock.holders || held[d.other()] != 0:
		return errors.New("the counts are wrong: somebody was not woken, or is not known")
	case m.lock.holders == 0 && waits != [2]int{}:
		return errors.New("somebody waits for a free lock")
	case waits[d] > 0 && waits[d.other()] == 0:
		return errors.New("somebody waits for nobody")
	case (by.what == "enter" || by.what == "try") && m.actors[by.actor].doing == holding && waits[by.dir.other()] > 0:
		return errors.New("a newcomer overtook a waiter")
	}
	return nil
}

// drain has holders leave, and nothing else happen, until nobody waits.
func (m model) drain() error {
	for range 2 * actors {
		if m.lock.waiting == [2]int{} {
			return nil
		}
		for i, a := range m.actors {
			if a.doing == holding {
				mv := move{i, "leave", a.dir}
				m = m.apply(mv)
				if err := m.check(mv); err != nil {
					return err
				}
				break
			}
		}
	}
	return errors.New("somebody waits for ever")
}

// Proves R17: every reachable state of four callers, which enter, try, cancel and
// leave in any order, keeps exclusion, the bound on waiting, and wakes everybody.
func TestEveryReachableState(t *testing.T) {
	seen := map[model]bool{{}: true}
	queue := []model{{}}
	edges := 0
	for len(queue) > 0 {
		m := queue[0]
		queue = queue[1:]
		for _, mv := range m.moves() {
			edges++
			next := m.apply(mv)
			if err := next.check(mv); err != nil {
				t.Fatalf("%+v, then %v: %v", m, mv, err)
			}
			if err := next.drain(); err != nil {
				t.Fatalf("%+v, then %v: %v", m, mv, err)
			}
			if !seen[next] {
				seen[next] = true
				queue = append(queue, next)
			}
		}
	}
	t.Logf("%d actors: %d states, %d edges", actors, len(seen), edges)
	if len(seen) < 300 {
		t.Errorf("only %d states were reached", len(seen))
	}
}

// caller is a goroutine that uses a Lock for one actor of the model.
type caller struct {
	cancel context.CancelFunc
	done   chan error // one result of Up or Down
	holds  bool
}

func (c *caller) enter(l *Lock, d direction) {
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel, c.done = cancel, make(chan error, 1)
	go func() {
		if d == up {
			c.done <- l.Up(ctx)
		} else {
			c.done <- l.Down(ctx)
		}
	}()
}

func unlock(l *Lock, d direction) {
	if d == up {
		l.UnlockUp()
	} else {
		l.UnlockDown()
	}
}

// follow does on a Lock what the model does, and compares what is seen.
func follow(l *Lock, moves []move) error {
	var m model
	var callers [actors]caller
	for step, mv := range moves {
		a, c := m.actors[mv.actor], &callers[mv.actor]
		switch {
		case a.doing == idle && (mv.what == "enter" || mv.what == "try"):
		case a.doing == waiting && mv.what == "cancel", a.doing == holding && mv.what == "leave":
			mv.dir = a.dir
		default:
			continue // not possible now
		}
		m = m.apply(mv)
		switch mv.what {
		case "enter":
			c.enter(l, mv.dir)
		case "try":
			if l.try(mv.dir) != (m.actors[mv.actor].doing == holding) {
				return fmt.Errorf("step %d: %v went otherwise than in the model", step, mv)
			}
			c.holds = m.actors[mv.actor].doing == holding
		case "cancel":
			c.cancel()
			if err := <-c.done; !errors.Is(err, context.Canceled) {
				return fmt.Errorf("step %d: a cancelled waiter got %v", step, err)
			}
		case "leave":
			unlock(l, mv.dir)
			c.holds = false
		}
		synctest.Wait()
		if err := compare(l, &m, &callers); err != nil {
			return fmt.Errorf("step %d, %v: %w", step, mv, err)
		}
	}
	finish(l, &m, &callers)
	if s := l.Stats(); s != (Stats{}) || l.gates[up] != nil || l.gates[down] != nil {
		return fmt.Errorf("after everybody left: %+v", s)
	}
	return nil
}

func compare(l *Lock, m *model, callers *[actors]caller) error {
	if l.state != m.lock {
		return fmt.Errorf("the lock is %+v, the model %+v", l.state, m.lock)
	}
	for i, a := range m.actors {
		c := &callers[i]
		if a.doing == holding && !c.holds {
			select {
			case err := <-c.done:
				c.holds = err == nil
			default:
			}
			if !c.holds {
				return fmt.Errorf("caller %d was let in and does not know", i)
			}
		}
		if a.doing == waiting && len(c.done) > 0 {
			return fmt.Errorf("caller %d should be waiting", i)
		}
	}
	return nil
}

// finish ends the bubble's goroutines: waiters cancel, holders leave.
func finish(l *Lock, m *model, callers *[actors]caller) {
	for i := range m.actors {
		if a := m.actors[i]; a.doing == waiting {
			callers[i].cancel()
			<-callers[i].done
			*m = m.apply(move{i, "cancel", a.dir})
			synctest.Wait()
		}
	}
	for _, a := range m.actors {
		if a.doing == holding {
			unlock(l, a.dir)
		}
	}
	for i := range callers {
		if callers[i].cancel != nil {
			callers[i].cancel()
		}
	}
}

// Proves R17: the Lock itself does what the model does, goroutines, contexts and
// all.
func TestLockFollowsModel(t *testing.T) {
	moves := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) move {
		return move{
			actor: rapid.IntRange(0, actors-1).Draw(t, "actor"),
			what:  rapid.SampledFrom([]string{"enter", "enter", "try", "cancel", "leave", "leave"}).Draw(t, "what"),
			dir:   direction(rapid.IntRange(0, 1).Draw(t, "dir")),
		}
	}), 1, 60)
	rapid.Check(t, func(rt *rapid.T) {
		all := moves.Draw(rt, "moves")
		var err error
		synctest.Test(t, func(*testing.T) { err = follow(new(Lock), all) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

// Proves R17: under contention, creators and removers never overlap, and nobody is
// left waiting. Creators write plain variables that removers read, so that the race
// detector sees the lock's order too.
func TestStress(t *testing.T) {
	const goroutines, rounds = 8, 2000
	var l Lock
	var entries [goroutines]int
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 0))
			for range rounds {
				ctx, cancel := context.WithCancel(t.Context())
				if rng.IntN(4) == 0 {
					go cancel()
				}
				if rng.IntN(2) == 0 {
					if l.Up(ctx) == nil {
						entries[g]++
						l.UnlockUp()
					}
				} else if l.Down(ctx) == nil {
					before := entries
					if entries != before {
						t.Error("an entry was created while others were removed")
					}
					l.UnlockDown()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if s := l.Stats(); s != (Stats{}) {
		t.Errorf("at the end: %+v", s)
	}
}

// A waiter that is let in at the moment its context ends does not keep the lock.
func TestEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var l Lock
	if err := l.Up(ctx); !errors.Is(err, context.Canceled) || l.Stats() != (Stats{}) {
		t.Errorf("free lock, ended context: %v, %+v", err, l.Stats())
	}
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			var l Lock
			ctx, cancel := context.WithCancel(context.Background())
			if !l.TryUp() {
				t.Fatal("not free")
			}
			done := make(chan error, 1)
			go func() { done <- l.Down(ctx) }()
			synctest.Wait()
			go cancel()
			l.UnlockUp() // races with the cancellation
			if err := <-done; err == nil {
				l.UnlockDown()
			} else if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			synctest.Wait()
			if s := l.Stats(); s != (Stats{}) {
				t.Errorf("left: %+v", s)
			}
		})
	}
}

func TestGiveUpAfterAdmission(t *testing.T) {
	var l Lock
	l.TryUp()
	l.mu.Lock()
	l.state.enter(down)
	gate := make(chan struct{})
	l.gates[down] = gate
	l.mu.Unlock()
	l.UnlockUp() // lets the waiter in …
	if s := l.Stats(); s != (Stats{Down: 1}) {
		t.Fatalf("got %+v", s)
	}
	l.giveUp(down, gate) // … who did not notice before its context ended
	if s := l.Stats(); s != (Stats{}) {
		t.Errorf("got %+v", s)
	}
}

func TestMisusePanics(t *testing.T) {
	for name, misuse := range map[string]func(l *Lock){
		"free, up":   (*Lock).UnlockUp,
		"free, down": (*Lock).UnlockDown,
		"wrong way":  func(l *Lock) { l.TryUp(); l.UnlockDown() },
		"twice":      func(l *Lock) { l.TryDown(); l.UnlockDown(); l.UnlockDown() },
	} {
		t.Run(name, func(t *testing.T) {
			var l Lock
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
				l.Stats() // the mutex is free again
			}()
			misuse(&l)
		})
	}
}

func BenchmarkUncontended(b *testing.B) {
	var l Lock
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Up(ctx); err != nil {
			b.Fatal(err)
		}
		l.UnlockUp()
	}
}

func BenchmarkAlternating(b *testing.B) {
	var l Lock
	ctx := b.Context()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if i%2 == 0 {
				if err := l.Up(ctx); err == nil {
					l.UnlockUp()
				}
			} else if err := l.Down(ctx); err == nil {
				l.UnlockDown()
			}
		}
	})
}
