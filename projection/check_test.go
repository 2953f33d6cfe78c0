package projection_test

import (
	"path/filepath"
	"testing"

	"github.com/dagstore/dagstore/projection"
)

// TestCheckOldCheckpoints: checkpoints below the horizon, which a removal that failed left,
// are no difference; their bytes count. Proves C6, G6 (Check).
func TestCheckOldCheckpoints(t *testing.T) {
	w, j, sim := retained(t, projection.Retention{Bytes: 1}, newUsageView())
	old := make(map[string][]byte)
	for range 60 {
		w.commit(1)
		for _, name := range namesIn(t, sim, checkpoints) {
			if _, have := old[name]; !have && len(old) < 4 {
				old[name] = readFile(t, sim, filepath.Join(checkpoints, name))
			}
		}
	}
	below := 0
	for name, b := range old {
		if _, seq, ok := projection.ParseCheckpointName(name); ok && seq < j.Horizon().Seq {
			writeFile(t, sim, filepath.Join(checkpoints, name), b)
			below++
		}
	}
	if below < 2 {
		t.Fatalf("%d old checkpoints below %v", below, j.Horizon())
	}
	rep, err := w.r.Check(t.Context())
	if err != nil || !rep.OK() || len(rep.Differences) != 0 || len(rep.Checkpoints) < below+2 {
		t.Fatalf("%+v, %v", rep, err)
	}
	for name := range old {
		if _, seq, _ := projection.ParseCheckpointName(name); seq >= j.Horizon().Seq {
			continue
		}
		if err := sim.FlipBit(filepath.Join(checkpoints, name), 150); err != nil {
			t.Fatal(err)
		}
	}
	if rep, err = w.r.Check(t.Context()); err != nil || rep.OK() {
		t.Fatalf("damage of an old checkpoint is not told: %+v, %v", rep, err)
	}
}
