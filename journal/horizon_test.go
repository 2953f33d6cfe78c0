package journal_test

import (
	"fmt"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
)

// TestHorizonBeforeRemoval: a HORIZON whose name a failed sync left in the cache only is
// made durable before anything below it is removed: wherever the next opening is cut
// short, the journal opens again and has everything.
// Proves C7, C9.
func TestHorizonBeforeRemoval(t *testing.T) {
	s := newSpecimenOn(t, newCrashSim(1), true)
	j := mustOpen(t, s.sim)
	named := false // HORIZON, and nobody knows whether durably
	s.sim.OnOp(func(op fsio.Op) error {
		switch {
		case op.Kind == fsio.OpRename && op.To == dir+"/HORIZON":
			named = true
		case op.Kind == fsio.OpSyncDir && named:
			return fsio.FaultEIO
		}
		return nil
	})
	if err := compactTo(t, j, s.batches, 8); err == nil || !named {
		t.Fatalf("Compact = %v, HORIZON was begun: %t", err, named)
	}
	must(t, j.Close())
	s.sim.OnOp(nil)
	for k := uint64(0); ; k++ {
		sim := s.sim.Clone(k)
		sim.FailAt(k, fsio.FaultCrash)
		j, err := journal.OpenFile(sim, dir, small)
		done := err == nil
		if done {
			_ = j.Close() // which is what is cut short
		}
		for seed := range uint64(20) {
			what := fmt.Sprintf("cut short at operation %d, crash %d", k, seed)
			j := mustOpen(t, sim.Clone(seed).Crash())
			checkAll(t, what, j, s.batches)
			must(t, j.Close())
		}
		if done && k < 5 {
			t.Fatalf("opening takes %d operations", k)
		}
		if done {
			return
		}
	}
}
