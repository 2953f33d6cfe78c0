package journal_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
	"github.com/dagstore/dagstore/shard"
)

// crashPoints counts the points at which the tests of this package break a disk or
// cut its power, each followed by a recovery that is checked.
var crashPoints atomic.Int64

// logCrashPoints logs how many there were in a test, and so far.
func logCrashPoints(t *testing.T, n int64) {
	t.Helper()
	t.Logf("%d crash points, %d in this package so far", n, crashPoints.Add(n))
}

// history is what a run of a program does to a journal, over all its restarts: it
// appends the same batches in the same order and compacts at the same places, whatever
// happens.
type history struct {
	batches []journal.Batch // what the journal holds in the end
	// compactions tells behind which batch the journal is compacted, and to which; both
	// are counts of batches.
	compactions map[int]int
	// acked and attempted bound what a restart may find:
	//
	//	acked ≤ batches found ≤ attempted
	//	compacted ≤ batches below the horizon ≤ compacting
	acked, attempted      int
	compacted, compacting int
	// givesUp: an append that is refused ends the program.
	givesUp bool
}

func newHistory(t *testing.T, sizes []int) *history {
	t.Helper()
	m := journal.NewMemory()
	for _, n := range sizes {
		if _, err := m.Append(journaltest.Events(m.Head().Seq+1, n)); err != nil {
			t.Fatal(err)
		}
	}
	return &history{batches: journaltest.Collect(t, m, 0), compactions: crashCompactions}
}

// fresh is the same history before its beginning.
func (h *history) fresh() *history {
	return &history{batches: h.batches, compactions: h.compactions, givesUp: h.givesUp}
}

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
	err = h.compact(j)
	for err == nil && h.acked < upTo {
		if err = h.append(j, h.batches[h.acked].Events); err == nil {
			err = h.compact(j)
		}
	}
	if err != nil {
		return errors.Join(err, j.Close())
	}
	return j.Close()
}

// errWrong marks what no fault excuses.
var errWrong = errors.New("wrong")

// check compares what the journal holds with what it may hold. From then on
// that is acknowledged: somebody has seen it.
func (h *history) check(j *journal.File) error {
	found, err := journaltest.CheckBased(j, h.batches)
	if errors.Is(err, journaltest.ErrDiffers) {
		err = fmt.Errorf("%w: %w", errWrong, err)
	}
	if err != nil {
		return err
	}
	below := h.below(j.Horizon())
	if found < h.acked || found > h.attempted {
		return fmt.Errorf("%w: %d batches found; %d were acknowledged, %d attempted", errWrong, found, h.acked, h.attempted)
	}
	if below < h.compacted || below > max(h.compacting, h.compacted) {
		return fmt.Errorf("%w: the horizon is behind %d batches; %d were acknowledged, %d attempted", errWrong, below, h.compacted, h.compacting)
	}
	h.acked, h.attempted = found, found
	h.compacted, h.compacting = below, below
	return nil
}

// below is how many batches end at or before pos.
func (h *history) below(pos journal.Position) (n int) {
	for n < len(h.batches) && h.batches[n].End.Seq <= pos.Seq {
		n++
	}
	return n
}

// compact moves the horizon to where it belongs by now, again if that failed.
func (h *history) compact(j *journal.File) error {
	want := 0
	for after, to := range h.compactions {
		if after <= h.acked {
			want = max(want, to)
		}
	}
	if want <= h.compacted {
		return nil
	}
	at := h.batches[want-1].End
	for range 3 {
		before := j.Horizon()
		h.compacting = want
		err := j.Compact(context.Background(), at, journaltest.StateAt(h.batches, at.Seq).Emit)
		if err == nil {
			h.compacted = want
			if j.Horizon() != at {
				return fmt.Errorf("%w: the horizon is %v after Compact(%v)", errWrong, j.Horizon(), at)
			}
			_, err := journaltest.CheckBased(j, h.batches)
			return err
		}
		if now := j.Horizon(); now != before && now != at {
			return fmt.Errorf("%w: the horizon moved to %v with %w", errWrong, now, err)
		}
		if errors.Is(err, fsio.ErrCrashed) {
			return err
		}
	}
	return fmt.Errorf("%w: a single fault fails three compactions", errWrong)
}

// show has a Reader look at a copy of sim, whose power may be cut, before anybody
// repairs anything. What it shows must be found later, whatever happens. In every other
// copy HEAD is missing.
func (h *history) show(sim *fsio.Sim, seed uint64) error {
	copied := sim.Clone(seed)
	if seed%2 == 1 {
		_ = copied.Remove(filepath.Join(dir, "HEAD")) // if there is one
	}
	r, err := journal.OpenReader(readOnly{copied}, dir)
	if errors.Is(err, fs.ErrNotExist) && h.acked == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: OpenReader: %w", errWrong, err)
	}
	defer r.Close()
	return h.saw(r, 0)
}

// saw checks what r shows, at least so many batches, and holds the history to it.
func (h *history) saw(r *journal.Reader, least int) error {
	found, err := journaltest.CheckBased(r, h.batches)
	if err != nil {
		return fmt.Errorf("%w: of a reader: %w", errWrong, err)
	}
	if found > h.attempted || found < least {
		return fmt.Errorf("%w: a reader shows %d batches; at least %d, attempted %d", errWrong, found, least, h.attempted)
	}
	h.acked = max(h.acked, found)
	return nil
}

// recover is a play without faults to the batch upTo that a Reader follows, from before
// the writer repairs anything to its end.
func (h *history) recover(sim *fsio.Sim, upTo int) error {
	r, err := journal.OpenReader(readOnly{sim}, dir)
	if err != nil && (!errors.Is(err, fs.ErrNotExist) || h.acked > 0) {
		return fmt.Errorf("%w: OpenReader: %w", errWrong, err)
	}
	if err != nil {
		return h.play(sim, upTo)
	}
	defer r.Close()
	if err := h.saw(r, 0); err != nil {
		return err
	}
	if err := h.play(sim, upTo); err != nil {
		return err
	}
	if _, err = r.Refresh(); errors.Is(err, journal.ErrCompacted) {
		_, err = r.Reload()
	}
	if err != nil {
		return fmt.Errorf("%w: Refresh: %w", errWrong, err)
	}
	return h.saw(r, h.acked)
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
		if errors.Is(err, fsio.ErrCrashed) || h.givesUp {
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

// crashCompactions: once within a segment, once past several.
var crashCompactions = map[int]int{5: 3, 9: 7}

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
	if h.acked != len(h.batches) || len(segmentsOf(t, sim)) < 2 || h.compacted != 7 {
		t.Fatalf("the run is not what the test wants: %d batches, %v", h.acked, segmentsOf(t, sim))
	}
	return sim.NumOps()
}

// TestCrashEveryOperation: every fault at every operation of a run of appends,
// rotations, compactions and restarts; then power is lost, at once or after the program
// was killed and started again; then the journal must open and go on. A Reader looks
// on: what it ever showed must be there. Proves C1, C2, C3, C4, C7, C11, F27, G3.
func TestCrashEveryOperation(t *testing.T) {
	t.Parallel()
	want := newHistory(t, crashSizes)
	ops := countOps(t, want.fresh())
	seeds := uint64(4)
	if testing.Short() || raceEnabled {
		seeds = 1
	}
	points := int64(0)
	for n := range ops {
		for _, fault := range fsio.Faults() {
			for seed := range seeds {
				what := fmt.Sprintf("op %d of %d, %v, seed %d", n, ops, fault, seed)
				sim, h := newCrashSim(seed), want.fresh()
				sim.FailAt(n, fault)
				h.runWith(t, sim, what)
				judge(t, what+", shown", h.show(sim, seed), false)
				points++
				if seed%2 == 1 {
					// Killed, started, seen, and only then without power.
					sim = sim.Kill()
					judge(t, what+", killed", h.recover(sim, h.acked), false)
					points++
				}
				sim = sim.Crash()
				judge(t, what+", crashed", h.recover(sim, len(h.batches)), false)
				judge(t, what+", again", h.play(sim.Crash(), len(h.batches)), false)
				points++
			}
		}
	}
	t.Logf("%d operations", ops)
	logCrashPoints(t, points)
	fsiotest.Report(t, "journal.TestCrashEveryOperation", int(ops)*len(fsio.Faults()), testing.Short() || raceEnabled)
}

// TestCrashDuringRecovery: every fault at every operation of the recovery from a crash
// at every operation. What the recovery showed, and what it acknowledged, is there
// after it. Proves C9, C7.
func TestCrashDuringRecovery(t *testing.T) {
	t.Parallel()
	want := newHistory(t, crashSizes)
	clean := newCrashSim(1)
	want.fresh().runWith(t, clean, "no fault")
	points, crashes := int64(0), 0
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
				judge(t, what+", shown", h.show(sim, m), false)
				judge(t, what+", crashed", h.play(sim.Crash(), len(h.batches)), false)
				points++
			}
		}
	}
	t.Logf("%d crashes before the recoveries", crashes)
	logCrashPoints(t, points)
	fsiotest.Report(t, "journal.TestCrashDuringRecovery", crashes+int(points), testing.Short() || raceEnabled)
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
	syncs := 0
	sim.OnOp(func(op fsio.Op) error {
		if op.Kind == fsio.OpSyncData {
			syncs++
			return fsio.FaultEIO
		}
		return nil
	})
	if _, err := j.Append(journaltest.Events(1, 1)); !errors.Is(err, journal.ErrOutcomeUnknown) {
		t.Fatalf("Append = %v", err)
	}
	if syncs != 1 {
		t.Errorf("the sync that failed was tried %d times", syncs)
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
