package projection_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// retained is a world whose journal is compacted whenever that is allowed.
func retained(t *testing.T, retention projection.Retention, views ...projection.View) (*world, *compacting, *fsio.Sim) {
	t.Helper()
	j, sim := &compacting{Journal: journal.NewMemory()}, fsio.NewSim(1)
	opts := on(sim)
	opts.Retention = retention
	return newWorld(t, j, opts, views...), j, sim
}

// Proves C7, G15: the journal is compacted at the older checkpoint of the catalogue,
// with as much history before it as was asked for, and the base is the state there.
func TestCompaction(t *testing.T) {
	for _, events := range []uint64{0, 10, 25, 1 << 40} {
		w, j, sim := retained(t, projection.Retention{Bytes: 1, Events: events}, newUsageView())
		var last journal.Position
		for range 60 {
			w.commit(1)
			h := j.Horizon()
			if h.Seq < last.Seq {
				t.Fatalf("the horizon goes back from %v to %v", last, h)
			}
			last = h
			names := namesIn(t, sim, checkpoints)
			if h.Seq == 0 {
				continue
			}
			_, older, _ := projection.ParseCheckpointName(names[0])
			if h.Seq+events > older {
				t.Fatalf("the horizon is at %v with %v, and %d more events were to be kept", h, names, events)
			}
		}
		if (last.Seq == 0) != (events == 1<<40) {
			t.Errorf("%d events kept: the horizon is at %v", events, last)
		}
		if last.Seq > 0 {
			s, err := w.r.CatalogueAt(t.Context(), last.Seq)
			if err != nil || s.Position() != last {
				t.Fatal(err)
			}
			base := projection.NewCatalogue()
			_, err = j.Base(func(events []shard.Event) error { return base.ApplyBase(events, last, false) })
			if err != nil {
				t.Fatal(err)
			}
			if err := base.ApplyBase(nil, last, true); err != nil || base.Snapshot().Digest() != s.Digest() {
				t.Errorf("the base at %v is not the state there: %v", last, err)
			}
		}
		// Without any checkpoint, the base and what follows is the state.
		w.r.Close()
		for _, views := range [][]projection.View{{newUsageView()}, {}} {
			next := newWorld(t, j, projection.Options{}, views...)
			next.wantReplayed()
			if len(views) > 0 {
				value, _, err := next.r.Read(t.Context(), "usage", projection.Latest())
				want := newUsageView()
				if err != nil || j.Journal.Replay(0, want.Apply) != nil || len(value.(map[string]Usage)) != len(want.totals) {
					t.Fatal(err)
				}
				for scheme, u := range want.totals {
					if value.(map[string]Usage)[scheme] != u {
						t.Errorf("%s: %v, want %v", scheme, value, want.totals)
					}
				}
			}
			next.r.Close()
		}
	}
}

// Proves C7, G12: nothing goes that a registered view or a checkpoint has not passed,
// whether the view is fed, stalled, foreign, or was never started.
func TestCompactionWaitsForViews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger("slow")
		g := newGate()
		l.before = g.before
		j, sim := &compacting{Journal: journal.NewMemory()}, fsio.NewSim(1)
		opts := on(sim)
		opts.Retention.Bytes, opts.Spawn = 1, nil
		w := newWorld(t, j, opts, l)
		for n := 1; n <= 40; n++ {
			w.commit(1)
			synctest.Wait()
		}
		if h := j.Horizon(); h.Seq != 0 || w.r.Stats().Checkpoints < 3 {
			t.Fatalf("the horizon is at %v and the view at nothing", h)
		}
		for range 30 {
			g.pass <- struct{}{}
		}
		synctest.Wait()
		w.commit(10)
		synctest.Wait()
		f, _ := w.r.Freshness("slow")
		if h := j.Horizon(); h.Seq == 0 || h.Seq > f.Applied.Seq || w.r.Stats().Compactions == 0 {
			t.Fatalf("the horizon is at %v, the view at %v", h, f)
		}
		close(g.pass)
	})
	// Two checkpoints of a view, and then no more: they are what it begins with.
	old := &failing{usageView: newUsageView()}
	saves := 0
	old.save = func(emit func([]byte) error) error {
		if saves++; saves > 2 {
			return errPlanted
		}
		return emit([]byte("[]"))
	}
	w, j, sim := retained(t, projection.Retention{Bytes: 1}, old)
	w.commit(60)
	names := namesIn(t, sim, checkpoints)
	if _, seq, _ := projection.ParseCheckpointName(names[2]); len(names) != 4 || j.Horizon().Seq > seq || j.Horizon().Seq == 0 {
		t.Errorf("the horizon is at %v with %v", j.Horizon(), names)
	}
	for what, v := range map[string]projection.View{
		"foreign": openDurable(&diskRows{pos: journal.Position{Seq: 5}}),
		"broken":  &liar{newLedger("broken"), func(*journal.Batch) error { return errPlanted }},
	} {
		w, j, _ := retained(t, projection.Retention{Bytes: 1}, v)
		w.commit(60)
		if h := j.Horizon(); h.Seq != 0 {
			t.Errorf("%s: the horizon is at %v", what, h)
		}
	}
	j = &compacting{Journal: journal.NewMemory()}
	opts := on(fsio.NewSim(1))
	opts.Retention.Bytes = 1
	w = idleWorld(t, j, opts, newLedger("never-started"))
	w.recover()
	w.commit(60)
	if h := j.Horizon(); h.Seq != 0 {
		t.Errorf("never started: the horizon is at %v", h)
	}
}

// TestCompactionIsWorthWhile: not for a few bytes, not by a follower, not if it is
// switched off; an error is counted, and the next checkpoint tries again.
// Proves C7, C11.
func TestCompactionIsWorthWhile(t *testing.T) {
	for what, retention := range map[string]projection.Retention{
		"by default": {}, "too little": {Bytes: 1 << 20}, "never": {Bytes: -1},
	} {
		w, j, _ := retained(t, retention)
		w.commit(60)
		if h := j.Horizon(); h.Seq != 0 || w.r.Stats().Compactions != 0 {
			t.Errorf("%s: the horizon is at %v", what, h)
		}
	}
	w, j, sim := retained(t, projection.Retention{Bytes: 1})
	j.fail = errPlanted
	w.commit(60)
	if s := w.r.Stats(); s.CompactionsFailed != 1 || s.Compactions == 0 || j.Horizon().Seq == 0 {
		t.Errorf("%+v", s)
	}
	w.r.Close()
	before := j.Horizon()
	opts := on(sim)
	opts.ReadOnly, opts.Retention.Bytes = true, 1
	follower := newWorld(t, j, opts)
	follower.commit(60)
	if j.Horizon() != before {
		t.Error("a follower compacts")
	}
}

// Proves G11, G15: what is below the horizon is told apart: AtLeast is satisfied, AsOf
// and CatalogueAt are ErrCompacted; a view that needs it says so and stops alone.
func TestBelowTheHorizon(t *testing.T) {
	w, j, _ := retained(t, projection.Retention{Bytes: 1}, newUsageView())
	old := w.commit(3)
	w.commit(60)
	h := j.Horizon()
	if h.Seq <= old.Seq {
		t.Fatalf("the horizon is at %v", h)
	}
	w.r.Close()
	next := newWorld(t, j, projection.Options{Spawn: atOnce}, newUsageView(), newLedger("ledger"))
	if _, err := next.r.Wait(t.Context(), "catalogue", projection.AtLeast(old)); err != nil {
		t.Error(err)
	}
	for _, view := range []string{"catalogue", "usage"} {
		if _, err := next.r.Wait(t.Context(), view, projection.AsOf(old)); !errors.Is(err, journal.ErrCompacted) {
			t.Errorf("%s: %v", view, err)
		}
	}
	for _, seq := range []uint64{0, 1, old.Seq, h.Seq - 1} {
		if _, err := next.r.CatalogueAt(t.Context(), seq); !errors.Is(err, journal.ErrCompacted) {
			t.Errorf("event %d: %v", seq, err)
		}
	}
	if _, _, err := next.r.SnapshotFor(t.Context(), projection.AsOf(old)); !errors.Is(err, journal.ErrCompacted) {
		t.Error(err)
	}
	s, f, err := next.r.SnapshotFor(t.Context(), projection.AsOf(h))
	if err != nil || s.Position() != h || f.Applied != h {
		t.Errorf("at the horizon: %v, %v", f, err)
	}
	if f, _ := next.r.Freshness("ledger"); f.State != projection.Stalled || !errors.Is(f.Err, journal.ErrCompacted) {
		t.Errorf("%v", f)
	}
	if f, _ := next.r.Freshness("usage"); f.State != projection.Live || f.Lag != 0 {
		t.Errorf("%v", f)
	}
	rep, err := next.r.Check(t.Context())
	if err != nil || !rep.OK() {
		t.Errorf("%+v, %v", rep, err)
	}
	if err := next.r.Rebuild(t.Context(), "usage"); err != nil {
		t.Error(err)
	}
}
