package journal_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
)

// One batch is one write and one sync, also where zeros are written ahead; and then
// one small write for other processes, which nobody waits for on the disk.
// Proves G2 by the calls that are made, not only by their result.
func TestCallsOfAppend(t *testing.T) {
	sim := fsio.NewSim(1)
	j, err := journal.OpenFile(sim, dir, journal.FileOptions{})
	must(t, err)
	opened := j.Stats()
	for range 3 {
		sim.ClearOps()
		if _, err := j.Append(journaltest.Events(j.Head().Seq+1, 64)); err != nil {
			t.Fatal(err)
		}
		var kinds []string
		for _, op := range sim.Ops() {
			kinds = append(kinds, op.Kind.String())
		}
		want := []string{fsio.OpWrite.String(), fsio.OpSyncData.String(), fsio.OpWrite.String()}
		if diff := cmp.Diff(want, kinds); diff != "" {
			t.Errorf("operations of one append (-want +got):\n%s", diff)
		}
	}
	got := j.Stats()
	want := journal.Stats{Segments: 1, Bytes: got.Bytes, OldestSeq: 1, Appends: 3, Syncs: opened.Syncs + 3}
	if diff := cmp.Diff(want, got); diff != "" || got.Bytes <= opened.Bytes {
		t.Errorf("Stats, before %+v (-want +got):\n%s", opened, diff)
	}
	must(t, j.Close())
}
