package journal_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
)

// checkSuffix fails unless j holds the end of batches, from its oldest event on.
func checkSuffix(t *testing.T, what string, j *journal.File, batches []journal.Batch) {
	t.Helper()
	oldest := j.Stats().OldestSeq
	for len(batches) > 0 && batches[0].Events[0].Seq < oldest {
		batches = batches[1:]
	}
	if diff := journaltest.Diff(batches, journaltest.Collect(t, j, oldest-1)); diff != "" {
		t.Fatalf("%s: from seq %d (-want +got):\n%s", what, oldest, diff)
	}
	if oldest == 1 {
		return
	}
	err := j.Replay(oldest-2, func(*journal.Batch) error { return nil })
	if !errors.Is(err, journal.ErrCompacted) {
		t.Fatalf("%s: Replay from below the oldest event = %v, want ErrCompacted", what, err)
	}
}

// Proves C7, G1 (journal): whole segments below the given event go, nothing else
// does, and the journal goes on.
func TestRemoveBelow(t *testing.T) {
	t.Parallel()
	s := newSpecimen(t, true)
	head := s.batches[len(s.batches)-1].End
	for seq := range head.Seq + 3 {
		what := fmt.Sprintf("RemoveBelow(%d)", seq)
		sim := s.sim.Clone(1)
		j := mustOpen(t, sim)
		must(t, j.RemoveBelow(seq))
		if oldest := j.Stats().OldestSeq; oldest > max(seq, 1) {
			t.Fatalf("%s: oldest seq is %d", what, oldest)
		}
		if got := len(segmentsOf(t, sim)); got != j.Stats().Segments {
			t.Fatalf("%s: %d files, %d segments", what, got, j.Stats().Segments)
		}
		checkSuffix(t, what, j, s.batches)
		must(t, j.Close())
		sim = sim.Crash()
		j = mustOpen(t, sim)
		if j.Head() != head {
			t.Fatalf("%s: Head = %v, want %v", what, j.Head(), head)
		}
		checkSuffix(t, what, j, s.batches)
		for range 30 {
			if _, err := j.Append(journaltest.Events(j.Head().Seq+1, 1)); err != nil {
				t.Fatal(err)
			}
		}
		must(t, j.RemoveBelow(j.Head().Seq))
		must(t, j.Close())
		must(t, mustOpen(t, sim).Close())
	}
}

// Proves C7, C9: every fault at every operation of a removal.
func TestRemoveBelowCrash(t *testing.T) {
	t.Parallel()
	s := newSpecimen(t, true)
	head := s.batches[len(s.batches)-1].End
	probe := s.sim.Clone(1)
	j := mustOpen(t, probe)
	must(t, j.RemoveBelow(head.Seq))
	must(t, j.Close())
	for n := range probe.NumOps() {
		for _, fault := range fsio.Faults() {
			for seed := range uint64(3) {
				what := fmt.Sprintf("op %d, %v, seed %d", n, fault, seed)
				sim := s.sim.Clone(seed)
				sim.FailAt(n, fault)
				if j, err := journal.OpenFile(sim, dir, small); err == nil {
					if j.RemoveBelow(head.Seq) != nil && j.RemoveBelow(head.Seq) == nil && len(segmentsOf(t, sim)) != j.Stats().Segments {
						t.Fatalf("%s: repeated, but not finished", what)
					}
					_ = j.Close()
				}
				sim = sim.Crash()
				j := mustOpen(t, sim)
				if j.Head() != head || len(segmentsOf(t, sim)) != j.Stats().Segments {
					t.Fatalf("%s: Head = %v, want %v; %d files, %d segments", what, j.Head(), head, len(segmentsOf(t, sim)), j.Stats().Segments)
				}
				checkSuffix(t, what, j, s.batches)
				must(t, j.Close())
			}
		}
	}
}

// Proves C10 (journal): the horizon and the segment it names.
func TestHorizonDamage(t *testing.T) {
	s := newSpecimen(t, true)
	j := mustOpen(t, s.sim)
	must(t, j.RemoveBelow(s.batches[3].End.Seq+1))
	must(t, j.Close())
	segments := segmentsOf(t, s.sim)
	if len(segments) < 2 || j.Stats().OldestSeq == 1 {
		t.Fatalf("nothing was removed: %v", segments)
	}
	horizon := filepath.Join(dir, "HORIZON")
	for off, b := range contents(t, s.sim, horizon) {
		what := fmt.Sprintf("horizon byte %d", off)
		if o := s.flip(t, horizon, int64(off), b^1<<(off%8), what); o.damage == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	for name, wound := range map[string]func(sim *fsio.Sim){
		"oldest missing":  func(sim *fsio.Sim) { must(t, sim.Remove(segments[0])) },
		"horizon missing": func(sim *fsio.Sim) { must(t, sim.Remove(horizon)) },
		"all missing": func(sim *fsio.Sim) {
			for _, path := range segments {
				must(t, sim.Remove(path))
			}
		},
	} {
		sim := s.sim.Clone(2)
		wound(sim)
		if o := inspect(t, sim, name); o.damage == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
