package journal_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
)

// compactTo moves the horizon of j to the end of batches[n-1].
func compactTo(t *testing.T, j *journal.File, batches []journal.Batch, n int) error {
	t.Helper()
	at := batches[n-1].End
	return j.Compact(t.Context(), at, journaltest.StateAt(batches, at.Seq).Emit)
}

// checkAll fails unless j holds exactly batches, from its horizon on.
func checkAll(t *testing.T, what string, j journaltest.Based, batches []journal.Batch) {
	t.Helper()
	found, err := journaltest.CheckBased(j, batches)
	if err != nil || found != len(batches) {
		t.Fatalf("%s: %d of %d batches: %v", what, found, len(batches), err)
	}
}

// filesOf lists the names in the journal's directory that end in suffix.
func filesOf(t *testing.T, sim *fsio.Sim, suffix string) (names []string) {
	t.Helper()
	entries, err := sim.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			names = append(names, e.Name())
		}
	}
	return names
}

// checkFiles fails unless the directory holds what j knows of and nothing else.
func checkFiles(t *testing.T, what string, sim *fsio.Sim, j *journal.File) {
	t.Helper()
	s := j.Stats()
	if got := len(filesOf(t, sim, ".seg")); got != s.Segments {
		t.Fatalf("%s: %d segment files, %d segments", what, got, s.Segments)
	}
	var bases []string
	if h := s.Horizon; h.Seq > 0 {
		bases = []string{fmt.Sprintf("%016x.base", h.Seq)}
	}
	if got := filesOf(t, sim, ".base"); !slices.Equal(got, bases) {
		t.Fatalf("%s: bases %v, want %v", what, got, bases)
	}
	if len(bases) > 0 && s.BaseBytes != int64(len(contents(t, sim, filepath.Join(dir, bases[0])))) {
		t.Fatalf("%s: BaseBytes is %d", what, s.BaseBytes)
	}
	if temps := filesOf(t, sim, ".tmp-00000000"); len(temps) > 0 {
		t.Fatalf("%s: %v are left", what, temps)
	}
}

// TestCompactFiles: whole segments below the horizon go, at any batch, nothing else
// does, and the journal goes on, also after a crash. Proves C7, G1 (journal).
func TestCompactFiles(t *testing.T) {
	t.Parallel()
	s := newSpecimen(t, true)
	removed := map[int]bool{}
	for n := 1; n <= len(s.batches); n++ {
		what := fmt.Sprintf("compacted behind batch %d", n)
		sim := s.sim.Clone(1)
		j := mustOpen(t, sim)
		before, bytes := j.Stats(), j.Reclaimable(s.batches[n-1].End)
		must(t, compactTo(t, j, s.batches, n))
		after := j.Stats()
		if got := before.Segments - after.Segments; uint64(got) != after.Removed || before.Bytes-after.Bytes != bytes {
			t.Fatalf("%s: %d segments and %d bytes went; Reclaimable was %d, %+v", what, got, before.Bytes-after.Bytes, bytes, after)
		}
		removed[int(after.Removed)] = true
		checkFiles(t, what, sim, j)
		checkAll(t, what, j, s.batches)
		must(t, j.Close())
		sim = sim.Crash()
		j = mustOpen(t, sim)
		checkFiles(t, what+", crashed", sim, j)
		checkAll(t, what+", crashed", j, s.batches)
		batches := slices.Clone(s.batches)
		for range 30 {
			events := journaltest.Events(j.Head().Seq+1, 1)
			end, err := j.Append(events)
			must(t, err)
			batches = append(batches, journal.Batch{Events: events, End: end})
		}
		must(t, compactTo(t, j, batches, len(batches)-1))
		must(t, j.Close())
		j = mustOpen(t, sim)
		checkAll(t, what+", again", j, batches)
		must(t, j.Close())
	}
	if len(removed) < 3 {
		t.Errorf("only %v segments were ever removed", removed)
	}
}

// TestCompactCrash: every fault at every operation of two compactions; what stays
// behind is swept at the next opening, and a compaction that failed may be repeated.
// Proves C7, C9, C11.
func TestCompactCrash(t *testing.T) {
	t.Parallel()
	s := newSpecimenOn(t, newCrashSim(1), true)
	const first, second = 3, 8
	run := func(sim *fsio.Sim) (done int, err error) {
		j, err := journal.OpenFile(sim, dir, small)
		if err != nil {
			return 0, err
		}
		defer j.Close()
		for _, n := range []int{first, second} {
			err := compactTo(t, j, s.batches, n)
			if err != nil && !errors.Is(err, fsio.ErrCrashed) {
				if err = compactTo(t, j, s.batches, n); err == nil {
					checkFiles(t, "repeated", sim, j)
				}
			}
			if err != nil {
				return done, err
			}
			done = n
		}
		return done, nil
	}
	probe := s.sim.Clone(1)
	if _, err := run(probe); err != nil {
		t.Fatal(err)
	}
	points := int64(0)
	for n := range probe.NumOps() {
		for _, fault := range fsio.Faults() {
			for seed := range uint64(4) {
				what := fmt.Sprintf("op %d, %v, seed %d", n, fault, seed)
				sim := s.sim.Clone(seed)
				sim.FailAt(n, fault)
				done, err := run(sim)
				if fault != fsio.FaultCrash && done == 0 && err != nil && n > 60 {
					t.Fatalf("%s: a single fault fails the compaction and its repetition: %v", what, err)
				}
				if seed%2 == 1 {
					sim = sim.Kill()
					must(t, mustOpen(t, sim).Close())
				}
				sim = sim.Crash()
				j := mustOpen(t, sim)
				checkFiles(t, what, sim, j)
				checkAll(t, what, j, s.batches)
				if done > 0 && j.Horizon().Seq < s.batches[done-1].End.Seq {
					t.Fatalf("%s: the horizon went back to %v", what, j.Horizon())
				}
				must(t, j.Close())
				points++
			}
		}
	}
	logCrashPoints(t, points)
	fsiotest.Report(t, "journal.TestCompactCrash", int(probe.NumOps())*len(fsio.Faults()), false)
}

// A compaction makes the base durable before HORIZON, and HORIZON before anything goes,
// oldest first, the older base last. Proves C7 by the calls that are made.
func TestCallsOfCompact(t *testing.T) {
	s := newSpecimen(t, true)
	j := mustOpen(t, s.sim)
	must(t, compactTo(t, j, s.batches, 3))
	s.sim.ClearOps()
	must(t, compactTo(t, j, s.batches, 8))
	var got []string
	for _, op := range s.sim.Ops() {
		switch op.Kind {
		case fsio.OpSync, fsio.OpRename, fsio.OpSyncDir, fsio.OpRemove, fsio.OpSyncData:
			base := filepath.Base(op.Name)
			if op.Kind == fsio.OpRename {
				base = filepath.Base(op.To)
			}
			got = append(got, op.Kind.String()+" "+strings.TrimSuffix(base, ".tmp-00000000"))
		}
	}
	base := fmt.Sprintf("%016x.base", s.batches[7].End.Seq)
	want := []string{
		"sync " + base, "rename " + base, "syncdir journal",
		"sync HORIZON", "rename HORIZON", "syncdir journal",
	}
	if !slices.Equal(got[:min(len(want), len(got))], want) {
		t.Fatalf("the operations are %v, want at first %v", got, want)
	}
	gone := got[len(want):]
	older := fmt.Sprintf("remove %016x.base", s.batches[2].End.Seq)
	if len(gone) < 2 || gone[len(gone)-1] != older || !slices.IsSorted(gone[:len(gone)-1]) {
		t.Errorf("removed in this order: %v; want segments, oldest first, then %q", gone, older)
	}
	must(t, j.Close())
}

// compactedSpecimen is a journal of several segments whose horizon lies inside the
// oldest.
func compactedSpecimen(t *testing.T) *specimen {
	t.Helper()
	s := newSpecimen(t, true)
	j := mustOpen(t, s.sim)
	for n := 4; n < len(s.batches); n++ {
		must(t, compactTo(t, j, s.batches, n))
		if st := j.Stats(); st.Removed > 0 && st.Segments > 1 {
			break
		}
	}
	must(t, j.Close())
	if st := j.Stats(); st.Removed == 0 || st.Segments < 2 {
		t.Fatalf("not the specimen that was wanted: %+v", st)
	}
	s.segments = segmentsOf(t, s.sim)
	s.sim = s.sim.Kill()
	return s
}

// verdict opens the journal on sim, for writing and for reading, and reads all of it:
// nil if both hold batches, or the damage that both find. A refusal has changed
// nothing.
func (s *specimen) verdict(t *testing.T, sim *fsio.Sim, what string) *journal.DamageError {
	t.Helper()
	var byReader, byWriter *journal.DamageError
	r, err := journal.OpenReader(readOnly{sim}, dir)
	if err == nil {
		_, err = journaltest.CheckBased(r, s.batches)
		must(t, r.Close())
	}
	if err != nil && !errors.As(err, &byReader) {
		t.Fatalf("%s: a reader: %v", what, err)
	}
	before := sim.NumOps()
	j, err := journal.OpenFile(sim, dir, small)
	if err == nil {
		defer j.Close()
		var found int
		if found, err = journaltest.CheckBased(j, s.batches); err == nil && found != len(s.batches) {
			t.Fatalf("%s: %d of %d batches", what, found, len(s.batches))
		}
	} else {
		for _, op := range sim.Ops() {
			if op.Index >= before && op.Kind.Mutates() && op.Kind != fsio.OpLock && op.Kind != fsio.OpMkdirAll {
				t.Fatalf("%s: refused, but not before %v", what, op)
			}
		}
	}
	if err != nil && !errors.As(err, &byWriter) {
		t.Fatalf("%s: %v", what, err)
	}
	if (byReader == nil) != (byWriter == nil) {
		t.Fatalf("%s: the reader says %v, the writer %v", what, byReader, byWriter)
	}
	if byWriter != nil && (byWriter.File == "" || byWriter.Offset < 0) {
		t.Fatalf("%s: damage without file and offset: %v", what, byWriter)
	}
	return byWriter
}

// with returns a copy of the disk on which the file holds b.
func (s *specimen) with(t *testing.T, path string, b []byte) *fsio.Sim {
	t.Helper()
	sim := s.sim.Clone(2)
	overwrite(t, sim, path, b)
	return sim
}

// TestDamageBase: one bit at every byte of base and HORIZON, and every length that is
// too short. Nothing of it is accepted, by writers or by readers, nor blamed on another
// file. Proves C10 (journal).
func TestDamageBase(t *testing.T) {
	t.Parallel()
	s := compactedSpecimen(t)
	if d := s.verdict(t, s.sim.Clone(1), "unharmed"); d != nil {
		t.Fatal(d)
	}
	base := filepath.Join(dir, filesOf(t, s.sim, ".base")[0])
	for _, path := range []string{base, filepath.Join(dir, "HORIZON")} {
		whole := contents(t, s.sim, path)
		for off := range whole {
			b := slices.Clone(whole)
			b[off] ^= 1 << (off % 8)
			for what, b := range map[string][]byte{
				fmt.Sprintf("%s byte %d", path, off):      b,
				fmt.Sprintf("%s cut to %d", path, off):    whole[:off],
				fmt.Sprintf("%s zero from %d", path, off): append(slices.Clone(whole[:off]), make([]byte, len(whole)-off)...),
			} {
				if slices.Equal(b, whole) {
					continue // the end was zero before
				}
				d := s.verdict(t, s.with(t, path, b), what)
				if d == nil {
					t.Errorf("%s: accepted", what)
				} else if d.File != filepath.Base(path) {
					t.Errorf("%s: blamed on %v", what, d)
				}
			}
		}
		if d := s.verdict(t, s.with(t, path, append(slices.Clone(whole), 0)), path+" longer"); d == nil {
			t.Errorf("%s with a byte more: accepted", path)
		}
	}
}

// TestDamageCompacted: files that are missing, or belong to another horizon. Proves C10
// (journal), C7.
func TestDamageCompacted(t *testing.T) {
	t.Parallel()
	s := compactedSpecimen(t)
	base := filepath.Join(dir, filesOf(t, s.sim, ".base")[0])
	horizon := filepath.Join(dir, "HORIZON")
	other := s.sim.Clone(3)
	j := mustOpen(t, other)
	must(t, compactTo(t, j, s.batches, len(s.batches)))
	must(t, j.Close())
	otherBase := filepath.Join(dir, filesOf(t, other, ".base")[0])
	for name, wound := range map[string]func(sim *fsio.Sim){
		"oldest missing":  func(sim *fsio.Sim) { must(t, sim.Remove(s.segments[0])) },
		"horizon missing": func(sim *fsio.Sim) { must(t, sim.Remove(horizon)) },
		"base missing":    func(sim *fsio.Sim) { must(t, sim.Remove(base)) },
		"later horizon":   func(sim *fsio.Sim) { overwrite(t, sim, horizon, contents(t, other, horizon)) },
		"later base":      func(sim *fsio.Sim) { overwrite(t, sim, base, contents(t, other, otherBase)) },
		"a segment as horizon": func(sim *fsio.Sim) {
			overwrite(t, sim, horizon, contents(t, sim, s.segments[0])[:80])
		},
		"all segments missing": func(sim *fsio.Sim) {
			for _, path := range s.segments {
				must(t, sim.Remove(path))
			}
		},
		"all missing but the base": func(sim *fsio.Sim) {
			for _, path := range append(s.segments, horizon) {
				must(t, sim.Remove(path))
			}
		},
	} {
		sim := s.sim.Clone(2)
		wound(sim)
		if d := s.verdict(t, sim, name); d == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestNewerBase: a base or a horizon of a newer format, and nothing is written. Proves
// C13.
func TestNewerBase(t *testing.T) {
	t.Parallel()
	s := compactedSpecimen(t)
	for _, path := range []string{filepath.Join(dir, filesOf(t, s.sim, ".base")[0]), filepath.Join(dir, "HORIZON")} {
		b := contents(t, s.sim, path)
		journal.SetSegmentVersion(b, 9)
		sim := s.with(t, path, b)
		sim.ClearOps()
		if _, err := journal.OpenFile(sim, dir, small); !errors.Is(err, journal.ErrNewerFormat) {
			t.Fatalf("%s: OpenFile = %v, want ErrNewerFormat", path, err)
		}
		for _, op := range sim.Ops() {
			if op.Kind.Mutates() && op.Kind != fsio.OpLock && op.Kind != fsio.OpMkdirAll {
				t.Errorf("%s: %v", path, op)
			}
		}
		if _, err := journal.OpenReader(readOnly{sim}, dir); !errors.Is(err, journal.ErrNewerFormat) {
			t.Fatalf("%s: OpenReader = %v, want ErrNewerFormat", path, err)
		}
	}
}

// TestDamageHead: one bit at every byte of HEAD, and every length that is too short.
// Nobody is misled: writers find everything, readers a part of it that witnesses prove,
// which is all but what stands last. Proves C10 (journal), G3.
func TestDamageHead(t *testing.T) {
	t.Parallel()
	for _, closed := range []bool{true, false} {
		s := newSpecimen(t, closed)
		path := filepath.Join(dir, "HEAD")
		whole := contents(t, s.sim, path)
		for off := range whole {
			b := slices.Clone(whole)
			b[off] ^= 1 << (off % 8)
			for what, b := range map[string][]byte{"byte": b, "cut": whole[:off]} {
				what := fmt.Sprintf("%s %d, closed %v", what, off, closed)
				sim := s.with(t, path, b)
				r, err := journal.OpenReader(readOnly{sim}, dir)
				must(t, err)
				_, told := r.Watermark()
				found, err := journaltest.CheckBased(r, s.batches)
				want := len(s.batches)
				if !closed {
					want-- // nothing stands behind the last one
				}
				if told || err != nil || found != want {
					t.Fatalf("%s: a reader shows %d of %d batches: %v", what, found, want, err)
				}
				j := mustOpen(t, sim)
				checkAll(t, what, j, s.batches)
				if _, err := r.Refresh(); err != nil || r.Head() != j.Head() {
					t.Fatalf("%s: after the writer opened: %v, %v", what, r.Head(), err)
				}
				must(t, errors.Join(j.Close(), r.Close()))
			}
		}
	}
}
