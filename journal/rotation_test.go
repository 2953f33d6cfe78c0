package journal_test

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
)

// refuseWrites has writes of more than most bytes into segments fail, as a full disk or
// a limit of the size of files does, until most is negative.
func refuseWrites(sim *fsio.Sim, most *int64) {
	sim.OnOp(func(op fsio.Op) error {
		if op.Kind == fsio.OpWrite && *most >= 0 && op.Len > *most && strings.Contains(op.Name, ".seg") {
			return fsio.FaultENOSPC
		}
		return nil
	})
}

// TestRefusedAfterRotation: the first append after a rotation is refused, and what comes
// after it does not fit into a segment: the segment that holds nothing is used, however
// often the journal was opened meanwhile, and never replaced by another of its name.
// Proves C4, C11.
func TestRefusedAfterRotation(t *testing.T) {
	for _, reopened := range []int{0, 1, 2} {
		sim := newCrashSim(1)
		most := int64(-1)
		refuseWrites(sim, &most)
		j := mustOpen(t, sim)
		var want []journal.Batch
		add := func(n int) {
			t.Helper()
			events := journaltest.Events(j.Head().Seq+1, n)
			end, err := j.Append(events)
			must(t, err)
			want = append(want, journal.Batch{Events: events, End: end})
		}
		add(3)
		most = 500
		if _, err := j.Append(journaltest.Events(4, 100)); !errors.Is(err, syscall.ENOSPC) || errors.Is(err, journal.ErrOutcomeUnknown) {
			t.Fatalf("Append = %v", err)
		}
		if n := len(segmentsOf(t, sim)); n != 2 {
			t.Fatalf("%d segments: the append did not rotate", n)
		}
		most = -1
		for range reopened {
			must(t, j.Close())
			j = mustOpen(t, sim)
		}
		add(100)
		add(100)
		if diff := journaltest.Diff(want, journaltest.Collect(t, j, 0)); diff != "" {
			t.Fatalf("reopened %d times (-want +got):\n%s", reopened, diff)
		}
		must(t, j.Close())
		for _, sim := range []*fsio.Sim{sim.Clone(2), sim.Crash()} {
			j, err := journal.OpenFile(sim, dir, small)
			if err != nil {
				t.Fatalf("reopened %d times: %v", reopened, err)
			}
			if diff := journaltest.Diff(want, journaltest.Collect(t, j, 0)); diff != "" {
				t.Fatalf("reopened %d times, then again (-want +got):\n%s", reopened, diff)
			}
			must(t, j.Close())
		}
	}
}

// TestMarkedEmptySegment: a former release wrote a mark into a segment that holds no
// event, and what comes next does not fit behind it. Proves C4, C11.
func TestMarkedEmptySegment(t *testing.T) {
	sim := newCrashSim(1)
	j := mustOpen(t, sim)
	events := journaltest.Events(1, 3)
	end, err := j.Append(events)
	must(t, err)
	want := []journal.Batch{{Events: events, End: end}}
	most := int64(500)
	refuseWrites(sim, &most)
	if _, err := j.Append(journaltest.Events(4, 100)); err == nil {
		t.Fatal("not refused")
	}
	most = -1
	journal.MarkTail(j)
	must(t, j.Close())
	j = mustOpen(t, sim)
	events = journaltest.Events(4, 100)
	if end, err = j.Append(events); err != nil {
		t.Fatal(err)
	}
	want = append(want, journal.Batch{Events: events, End: end})
	must(t, j.Close())
	j = mustOpen(t, sim.Crash())
	if diff := journaltest.Diff(want, journaltest.Collect(t, j, 0)); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	must(t, j.Close())
}

// TestTakenName: a segment never takes the place of a file, whosever it is.
// Proves C4, F18.
func TestTakenName(t *testing.T) {
	sim := newCrashSim(1)
	j := mustOpen(t, sim)
	if _, err := j.Append(journaltest.Events(1, 3)); err != nil {
		t.Fatal(err)
	}
	taken := filepath.Join(dir, "0000000000000004.seg")
	copyTo(t, sim, segmentsOf(t, sim)[0], taken)
	before := contents(t, sim, taken)
	if _, err := j.Append(journaltest.Events(4, 100)); !errors.Is(err, fs.ErrExist) || errors.Is(err, journal.ErrOutcomeUnknown) {
		t.Fatalf("Append = %v, want fs.ErrExist", err)
	}
	if string(contents(t, sim, taken)) != string(before) {
		t.Error("the file was replaced")
	}
	must(t, sim.Remove(taken))
	if _, err := j.Append(journaltest.Events(4, 100)); err != nil {
		t.Errorf("with the name free again: %v", err)
	}
	must(t, j.Close())
}

// TestCrashGivingUp: every fault at every operation of runs whose program ends at the
// first append that is refused, and is started again with batches larger than a
// segment. Proves C4, C11, C1.
func TestCrashGivingUp(t *testing.T) {
	t.Parallel()
	want := newHistory(t, []int{2, 40, 1, 60, 60, 1, 40})
	want.compactions = nil
	want.givesUp = true
	clean := newCrashSim(1)
	judge(t, "no fault", want.fresh().play(clean, len(want.batches)), false)
	ops := clean.NumOps()
	points := int64(0)
	for n := range ops {
		for _, fault := range fsio.Faults() {
			what := fmt.Sprintf("op %d of %d, %v", n, ops, fault)
			sim, h := newCrashSim(n), want.fresh()
			sim.FailAt(n, fault)
			for range 3 {
				judge(t, what, h.play(sim, len(h.batches)), true)
			}
			judge(t, what+", crashed", h.play(sim.Crash(), len(h.batches)), false)
			points++
		}
	}
	logCrashPoints(t, points)
	fsiotest.Report(t, "journal.TestCrashGivingUp", int(ops)*len(fsio.Faults()), false)
}
