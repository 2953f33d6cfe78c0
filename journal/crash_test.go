package journal_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
	"github.com/dagstore/dagstore/shard"
)

// history is what a run of a program does to a journal, over all its restarts: it
// appends the same batches in the same order, whatever happens.
type history struct {
	batches []journal.Batch // what the journal holds in the end
	// acked and attempted bound what a restart may find:
	//
	//	acked ≤ batches found ≤ attempted
	acked, attempted int
}

func newHistory(t *testing.T, sizes []int) *history {
	t.Helper()
	m := journal.NewMemory()
	for _, n := range sizes {
		if _, err := m.Append(journaltest.Events(m.Head().Seq+1, n)); err != nil {
			t.Fatal(err)
		}
	}
	return &history{batches: journaltest.Collect(t, m, 0)}
}

// fresh is the same history before its beginning.
func (h *history) fresh() *history { return &history{batches: h.batches} }

// play opens the journal on sim, checks what it finds, appends until the journal
// holds upTo batches, and closes it. It returns the error that stopped it.
func (h *history) play(sim *fsio.Sim, upTo int) error {
	j, err := journal.OpenFile(sim, dir, small)
	if err != nil {
		if !errors.Is(err, fsio.ErrCrashed) && (sim.OpenFiles() != 0 || sim.HeldLocks() != 0) {
			return fmt.Errorf("%w: left open by a failed OpenFile: %v", errWrong, sim.OpenNames())
		}
		return err
	}
	if err := h.check(j); err != nil {
		return errors.Join(err, j.Close())
	}
	for h.acked < upTo {
		if err := h.append(j, h.batches[h.acked].Events); err != nil {
			return errors.Join(err, j.Close())
		}
	}
	return j.Close()
}

// errWrong marks what no fault excuses.
var errWrong = errors.New("wrong")

// check compares what the journal holds with what it may hold. From then on
// that is acknowledged: somebody has seen it.
func (h *history) check(j *journal.File) error {
	found := 0
	err := j.Replay(0, func(b *journal.Batch) error {
		if found == len(h.batches) || !journaltest.Equal(h.batches[found:found+1], []journal.Batch{*b}) {
			return fmt.Errorf("%w: batch %d is %v with %d events", errWrong, found, b.End, len(b.Events))
		}
		found++
		return nil
	})
	if err != nil {
		return err
	}
	if found < h.acked || found > h.attempted {
		return fmt.Errorf("%w: %d batches found; %d were acknowledged, %d attempted", errWrong, found, h.acked, h.attempted)
	}
	h.acked, h.attempted = found, found
	return nil
}

// append appends the next batch, again if the journal says that nothing was
// written.
func (h *history) append(j *journal.File, events []shard.Event) error {
	head := j.Head()
	for range 3 {
		h.attempted = h.acked + 1
		end, err := j.Append(events)
		if err == nil {
			h.acked++
			if end != h.batches[h.acked-1].End || end != j.Head() {
				return fmt.Errorf("%w: Append = %v, Head %v", errWrong, end, j.Head())
			}
			return nil
		}
		if j.Head() != head {
			return fmt.Errorf("%w: Head moved to %v with %w", errWrong, j.Head(), err)
		}
		if errors.Is(err, journal.ErrOutcomeUnknown) {
			if _, again := j.Append(events); !errors.Is(again, journal.ErrReadOnly) {
				return fmt.Errorf("%w: Append after an unknown outcome: %w", errWrong, again)
			}
			return err
		}
		if errors.Is(err, journal.ErrReadOnly) {
			return fmt.Errorf("%w: read-only without an unknown outcome: %w", errWrong, err)
		}
		h.attempted = h.acked // nothing was written: it must never be found
		if errors.Is(err, fsio.ErrCrashed) {
			return err
		}
	}
	return fmt.Errorf("%w: a single fault fails three appends", errWrong)
}

// judge fails the test for an error that no fault excuses: wrong contents, damage
// where a disk only failed, or anything at all where nothing failed.
func judge(t *testing.T, what string, err error, faulty bool) {
	t.Helper()
	var damage *journal.DamageError
	if err != nil && !faulty || errors.Is(err, errWrong) || errors.As(err, &damage) {
		t.Fatalf("%s: %v", what, err)
	}
}

var crashSizes = []int{1, 4, 2, 9, 1, 3, 40, 1, 5, 2, 1}

// crashHalf is after how many of crashSizes the program is restarted.
const crashHalf = 7

// runWith plays the whole history on a disk where operation n suffers fault f,
// starting the program again if that stopped it.
func (h *history) runWith(t *testing.T, sim *fsio.Sim, what string) {
	t.Helper()
	for _, upTo := range []int{crashHalf, len(h.batches), len(h.batches)} {
		judge(t, what, h.play(sim, upTo), true)
	}
}

func newCrashSim(seed uint64) *fsio.Sim {
	return fsio.NewSim(seed, fsio.TornSectors(), fsio.ReorderRenames())
}

// countOps is how many operations a run without faults takes.
func countOps(t *testing.T, h *history) uint64 {
	t.Helper()
	sim := newCrashSim(1)
	h.runWith(t, sim, "no fault")
	if h.acked != len(h.batches) || len(segmentsOf(t, sim)) < 4 {
		t.Fatalf("the run is not what the test wants: %d batches, %v", h.acked, segmentsOf(t, sim))
	}
	return sim.NumOps()
}

// Proves C1, C2, C3, C4, C11, F27: every fault at every operation of a run of
// appends, rotations and restarts; then power is lost, at once or after the program
// was killed and started again; then the journal must open and go on.
func TestCrashEveryOperation(t *testing.T) {
	t.Parallel()
	want := newHistory(t, crashSizes)
	ops := countOps(t, want.fresh())
	seeds := uint64(4)
	if testing.Short() || raceEnabled {
		seeds = 2
	}
	runs := 0
	for n := range ops {
		for _, fault := range fsio.Faults() {
			for seed := range seeds {
				what := fmt.Sprintf("op %d of %d, %v, seed %d", n, ops, fault, seed)
				sim, h := newCrashSim(seed), want.fresh()
				sim.FailAt(n, fault)
				h.runWith(t, sim, what)
				if seed%2 == 1 {
					// Killed, started, seen, and only then without power.
					sim = sim.Kill()
					judge(t, what+", killed", h.play(sim, h.acked), false)
				}
				sim = sim.Crash()
				judge(t, what+", crashed", h.play(sim, len(h.batches)), false)
				judge(t, what+", again", h.play(sim.Crash(), len(h.batches)), false)
				runs++
			}
		}
	}
	t.Logf("%d operations, %d runs", ops, runs)
}

// Proves C9: every fault at every operation of the recovery from a crash at every
// operation. What the recovery showed, and what it acknowledged, is there after it.
func TestCrashDuringRecovery(t *testing.T) {
	t.Parallel()
	want := newHistory(t, crashSizes)
	clean := newCrashSim(1)
	want.fresh().runWith(t, clean, "no fault")
	runs, crashes := 0, 0
	for _, op := range clean.Ops() {
		// Operations that only look leave what the next one finds.
		if !op.Kind.Mutates() {
			continue
		}
		if crashes++; crashes%10 != 0 && (testing.Short() || raceEnabled) {
			continue
		}
		n, ops := op.Index, clean.NumOps()
		sim, base := newCrashSim(n), want.fresh()
		sim.FailAt(n, fsio.FaultCrash)
		what := fmt.Sprintf("op %d of %d", n, ops)
		_ = base.play(sim, crashHalf)
		_ = base.play(sim, len(base.batches))
		sim = sim.Crash()
		again := *base
		probe := sim.Clone(n)
		judge(t, what, again.play(probe, min(base.attempted+1, len(base.batches))), false)
		for _, op := range probe.Ops() {
			for _, fault := range []fsio.Fault{fsio.FaultCrash, fsio.FaultEIO} {
				if fault == fsio.FaultCrash && !op.Kind.Mutates() {
					continue
				}
				m := op.Index
				what := fmt.Sprintf("%s, then op %d of the recovery, %v", what, m, fault)
				h, sim := *base, sim.Clone(m)
				sim.FailAt(m, fault)
				judge(t, what, h.play(sim, min(base.attempted+1, len(h.batches))), true)
				judge(t, what+", crashed", h.play(sim.Crash(), len(h.batches)), false)
				runs++
			}
		}
	}
	t.Logf("%d crashes, %d recoveries", crashes, runs)
}

// Proves C11: a read that fails is returned as it is, and neither cut nor refused as
// damage: the next opening finds everything.
func TestReadErrors(t *testing.T) {
	s := newSpecimen(t, false)
	probe := s.sim.Clone(1)
	mustOpen(t, probe).Close()
	reads := 0
	for _, op := range probe.Ops() {
		if op.Kind != fsio.OpRead && op.Kind != fsio.OpStat && op.Kind != fsio.OpReadDir && op.Kind != fsio.OpOpen {
			continue
		}
		reads++
		sim := s.sim.Clone(1)
		sim.FailAt(op.Index, fsio.FaultEIO)
		_, err := journal.OpenFile(sim, dir, small)
		var damage *journal.DamageError
		if err == nil || errors.As(err, &damage) || !errors.Is(err, syscall.EIO) {
			t.Fatalf("%v fails with EIO: OpenFile = %v", op, err)
		}
		if o := inspect(t, sim, op.String()); !journaltest.Equal(s.batches, o.batches) || o.stats.TornTails != 0 {
			t.Fatalf("%v failed once: now %d of %d batches, %v", op, len(o.batches), len(s.batches), o.damage)
		}
	}
	if reads < 10 {
		t.Fatalf("only %d reads failed", reads)
	}
}

// Proves C11: on a full disk the append fails, says that nothing was written, and
// the journal goes on once there is room.
func TestDiskFull(t *testing.T) {
	h := newHistory(t, []int{1, 2, 3, 400, 5, 6})
	for pages := int64(1); pages < 30; pages++ {
		sim := fsio.NewSim(1, fsio.Capacity(pages*4096))
		j, err := journal.OpenFile(sim, dir, small)
		if err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("%d pages: OpenFile = %v", pages, err)
			}
			continue
		}
		for i := range h.batches {
			_, err := j.Append(h.batches[i].Events)
			if err == nil {
				continue
			}
			if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, journal.ErrOutcomeUnknown) {
				t.Fatalf("%d pages, batch %d: Append = %v", pages, i, err)
			}
			sim.SetCapacity(0)
			if _, err := j.Append(h.batches[i].Events); err != nil {
				t.Fatalf("%d pages, batch %d: Append with room again = %v", pages, i, err)
			}
		}
		must(t, j.Close())
		again := mustOpen(t, sim.Crash())
		if diff := journaltest.Diff(h.batches, journaltest.Collect(t, again, 0)); diff != "" {
			t.Fatalf("%d pages (-want +got):\n%s", pages, diff)
		}
		must(t, again.Close())
	}
}

// Proves C3: after a failed sync that descriptor is never synced again, not by Close
// either.
func TestFailedSyncIsFinal(t *testing.T) {
	sim := fsio.NewSim(1)
	j := mustOpen(t, sim)
	sim.OnOp(func(op fsio.Op) error {
		if op.Kind == fsio.OpSyncData {
			return fsio.FaultEIO
		}
		return nil
	})
	if _, err := j.Append(journaltest.Events(1, 1)); !errors.Is(err, journal.ErrOutcomeUnknown) {
		t.Fatalf("Append = %v", err)
	}
	sim.ClearOps()
	if _, err := j.Append(journaltest.Events(1, 1)); !errors.Is(err, journal.ErrReadOnly) {
		t.Fatalf("second Append = %v", err)
	}
	must(t, j.Close())
	for _, op := range sim.Ops() {
		if op.Kind.Mutates() || op.Kind == fsio.OpSync || op.Kind == fsio.OpSyncData {
			t.Errorf("after a failed sync: %v", op)
		}
	}
}

// Proves C12: the second writer is refused before it changes anything, and the lock
// of a killed one is free.
func TestLock(t *testing.T) {
	sim := fsio.NewSim(1)
	j := mustOpen(t, sim)
	if _, err := j.Append(journaltest.Events(1, 3)); err != nil {
		t.Fatal(err)
	}
	before := sim.Tree()
	if _, err := journal.OpenFile(sim, dir, small); !errors.Is(err, journal.ErrLocked) {
		t.Fatalf("second OpenFile = %v, want ErrLocked", err)
	}
	if after := sim.Tree(); after != before {
		t.Errorf("the refused one changed\n%s\ninto\n%s", before, after)
	}
	again := mustOpen(t, sim.Kill())
	if again.Head() != j.Head() {
		t.Errorf("Head after a kill = %v, want %v", again.Head(), j.Head())
	}
	must(t, again.Close())
}

// Proves C13: any segment of a newer format, and nothing is written.
func TestNewerFormat(t *testing.T) {
	s := newSpecimen(t, true)
	for _, path := range s.segments {
		sim := s.sim.Clone(1)
		b := contents(t, sim, path)
		journal.SetSegmentVersion(b, 2)
		overwrite(t, sim, path, b)
		sim.ClearOps()
		if _, err := journal.OpenFile(sim, dir, small); !errors.Is(err, journal.ErrNewerFormat) {
			t.Fatalf("%s: OpenFile = %v, want ErrNewerFormat", path, err)
		}
		for _, op := range sim.Ops() {
			if op.Kind.Mutates() && op.Kind != fsio.OpLock && op.Kind != fsio.OpMkdirAll {
				t.Errorf("%s: %v", path, op)
			}
		}
	}
}

// Proves F18, S8 (journal): files of other names stay, temporary files of segments
// go, links are refused, and nobody else may read what is written.
func TestForeignFiles(t *testing.T) {
	sim := fsio.NewSim(1)
	j := mustOpen(t, sim)
	if _, err := j.Append(journaltest.Events(1, 3)); err != nil {
		t.Fatal(err)
	}
	must(t, j.Close())
	foreign := []string{"notes.txt", "1.seg", "0000000000000001.seg.bak", "000000000000000G.seg", "notes.tmp-00000000", "0000000000000000.seg"}
	for _, name := range append(foreign, "0000000000000004.seg.tmp-00000000") {
		f, err := sim.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600)
		must(t, err)
		must(t, f.Close())
	}
	must(t, mustOpen(t, sim).Close())
	for _, name := range foreign {
		if _, err := sim.Lstat(filepath.Join(dir, name)); err != nil {
			t.Errorf("a foreign file is gone: %v", err)
		}
	}
	if _, err := sim.Lstat(filepath.Join(dir, "0000000000000004.seg.tmp-00000000")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a segment's temporary file stays: %v", err)
	}
	link := filepath.Join(dir, "0000000000000004.seg")
	must(t, sim.Symlink(filepath.Join(dir, "notes.txt"), link))
	if _, err := journal.OpenFile(sim, dir, small); err == nil {
		t.Error("a planted link was followed")
	}
}

// Proves S8 (journal): directories 0700, files 0600.
func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "journal")
	j, err := journal.OpenFile(fsio.OS(), dir, small)
	must(t, err)
	if _, err := j.Append(journaltest.Events(1, 30)); err != nil {
		t.Fatal(err)
	}
	must(t, j.Close())
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
		return nil
	}))
}
