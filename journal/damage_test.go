package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
	"github.com/dagstore/dagstore/shard"
)

const dir = "/store/journal"

// specimen is a small journal of several segments, on a disk that is cloned for
// every wound.
type specimen struct {
	sim      *fsio.Sim
	batches  []journal.Batch
	segments []string // paths, in order
	// The last batch is the last frame that is not a mark; its frame is
	// [lastFrom, lastTo) of the last segment.
	lastFrom, lastTo int64
	closed           bool // cleanly, with a mark behind the last batch
}

var specimenSizes = []int{1, 3, 2, 4, 1, 6, 2, 1, 2}

// newSpecimen writes one. Unless closed, its writer was killed in the last append, when
// all of that was on the disk and HEAD not yet.
func newSpecimen(t *testing.T, closed bool) *specimen {
	t.Helper()
	return newSpecimenOn(t, fsio.NewSim(1), closed)
}

func newSpecimenOn(t *testing.T, sim *fsio.Sim, closed bool) *specimen {
	t.Helper()
	s := &specimen{sim: sim, closed: closed}
	j := mustOpen(t, s.sim)
	m := newScript()
	var before []byte
	for _, n := range specimenSizes {
		before = contents(t, s.sim, filepath.Join(dir, "HEAD"))
		s.lastFrom = tailSize(j.Stats(), s.sealedBytes(t, s.sim))
		if _, err := j.Append(m.batch(n)); err != nil {
			t.Fatal(err)
		}
		s.lastTo = tailSize(j.Stats(), s.sealedBytes(t, s.sim))
	}
	s.batches = journaltest.Collect(t, j, 0)
	if closed {
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	} else {
		overwrite(t, s.sim, filepath.Join(dir, "HEAD"), before)
	}
	s.sim = s.sim.Kill()
	s.segments = segmentsOf(t, s.sim)
	if len(s.segments) < 3 || s.lastFrom <= 80 {
		t.Fatalf("%d segments, the last batch at %d: not the specimen that was wanted", len(s.segments), s.lastFrom)
	}
	return s
}

func (s *specimen) sealedBytes(t *testing.T, sim *fsio.Sim) (n int64) {
	names := segmentsOf(t, sim)
	for _, name := range names[:len(names)-1] {
		n += int64(len(contents(t, sim, name)))
	}
	return n
}

func tailSize(stats journal.Stats, sealed int64) int64 { return stats.Bytes - sealed }

func mustOpen(t *testing.T, fsys fsio.FS) *journal.File {
	t.Helper()
	j, err := journal.OpenFile(fsys, dir, small)
	if err != nil {
		t.Fatalf("OpenFile: %v", err)
	}
	return j
}

// script makes the batches of a run: equal sizes give equal batches.
type script struct{ next uint64 }

func newScript() *script { return &script{next: 1} }

func (s *script) batch(n int) (events []shard.Event) {
	events = journaltest.Events(s.next, n)
	s.next += uint64(n)
	return events
}

func segmentsOf(t *testing.T, sim *fsio.Sim) (paths []string) {
	t.Helper()
	entries, err := sim.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".seg") {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths
}

func contents(t *testing.T, sim *fsio.Sim, path string) []byte {
	t.Helper()
	f, err := sim.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func overwrite(t *testing.T, sim *fsio.Sim, path string, b []byte) {
	t.Helper()
	f, err := sim.OpenFile(path, os.O_RDWR|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// outcome is what became of a wounded journal.
type outcome struct {
	damage  *journal.DamageError // refused, at open or replay
	batches []journal.Batch      // otherwise what it holds
	stats   journal.Stats
}

// inspect opens the journal on sim and replays it. A refusal must not have changed
// anything; an acceptance must be good for another append and another opening.
func inspect(t *testing.T, sim *fsio.Sim, what string) (o outcome) {
	t.Helper()
	before := sim.NumOps()
	j, err := journal.OpenFile(sim, dir, small)
	if errors.As(err, &o.damage) {
		if o.damage.File == "" || o.damage.Offset < 0 {
			t.Fatalf("%s: damage without file and offset: %v", what, err)
		}
		if sim.OpenFiles() != 0 || sim.HeldLocks() != 0 {
			t.Fatalf("%s: after a refusal these are open: %v", what, sim.OpenNames())
		}
		for _, op := range sim.Ops() {
			if op.Index >= before && op.Kind.Mutates() && op.Kind != fsio.OpLock && op.Kind != fsio.OpMkdirAll {
				t.Fatalf("%s: refused, but not before %v", what, op)
			}
		}
		return o
	}
	if err != nil {
		t.Fatalf("%s: OpenFile: %v", what, err)
	}
	defer j.Close()
	o.stats = j.Stats()
	err = j.Replay(0, func(b *journal.Batch) error {
		o.batches = append(o.batches, journal.Batch{Events: slices.Clone(b.Events), End: b.End})
		return nil
	})
	if errors.As(err, &o.damage) {
		return o
	}
	if err != nil {
		t.Fatalf("%s: Replay: %v", what, err)
	}
	checkUsable(t, sim, j, o.batches, what)
	return o
}

// checkUsable appends to j and finds that after power is lost.
func checkUsable(t *testing.T, sim *fsio.Sim, j *journal.File, have []journal.Batch, what string) {
	t.Helper()
	events := journaltest.Events(j.Head().Seq+1, 2)
	end, err := j.Append(events)
	if err != nil {
		t.Fatalf("%s: Append: %v", what, err)
	}
	want := append(slices.Clone(have), journal.Batch{Events: events, End: end})
	again := mustOpen(t, sim.Crash())
	defer again.Close()
	if diff := journaltest.Diff(want, journaltest.Collect(t, again, 0)); diff != "" {
		t.Fatalf("%s: after another append (-want +got):\n%s", what, diff)
	}
	if n := again.Stats().TornTails; n != 0 {
		t.Fatalf("%s: %d torn tails after a clean append", what, n)
	}
}

// Proves C10 (journal), C1: one bit, at every byte of all segments, of a journal
// that was closed and of one whose writer was killed. The verdict is refusal, or
// all events, or, only for the last frame that nothing behind it proves durable,
// all batches but the last. Wrong events: never.
func TestDamageBitFlips(t *testing.T) {
	t.Parallel()
	for _, closed := range []bool{true, false} {
		t.Run(fmt.Sprintf("closed=%v", closed), func(t *testing.T) {
			s := newSpecimen(t, closed)
			bits := 8
			if testing.Short() || raceEnabled {
				bits = 1
			}
			var refused, cut, harmless int
			for i, path := range s.segments {
				last := i == len(s.segments)-1
				for off, b := range contents(t, s.sim, path) {
					for bit := range bits {
						if bits == 1 {
							bit = off % 8
						}
						what := fmt.Sprintf("%s byte %d bit %d", path, off, bit)
						o := s.flip(t, path, int64(off), b^1<<bit, what)
						switch behind := last && int64(off) >= s.lastTo; {
						case o.damage != nil && behind:
							t.Fatalf("%s: refused, though everything promised is there: %v", what, o.damage)
						case o.damage != nil && o.damage.File != filepath.Base(path) && !isSuccessor(s, o.damage.File, i):
							t.Fatalf("%s: blamed on %v", what, o.damage)
						case o.damage != nil:
							refused++
						case journaltest.Equal(s.batches, o.batches):
							harmless++
							if !behind || o.stats.TornTails != 1 {
								t.Fatalf("%s: not noticed", what)
							}
						case !closed && last && int64(off) >= s.lastFrom && int64(off) < s.lastTo &&
							journaltest.Equal(s.batches[:len(s.batches)-1], o.batches) && o.stats.TornTails == 1:
							cut++
						default:
							t.Fatalf("%s: %d of %d batches, no refusal", what, len(o.batches), len(s.batches))
						}
					}
				}
			}
			t.Logf("%d refused, %d cut as a torn last frame, %d behind the end and cut without loss", refused, cut, harmless)
			if refused == 0 || harmless == 0 || closed != (cut == 0) {
				t.Error("the specimen did not show all verdicts")
			}
		})
	}
}

// isSuccessor: damage to a segment's end may show in the header after it, which
// says how it should have ended.
func isSuccessor(s *specimen, name string, i int) bool {
	return i+1 < len(s.segments) && name == filepath.Base(s.segments[i+1])
}

// flip damages a byte and opens what is left, without HEAD, which would know of what is
// lost by itself.
func (s *specimen) flip(t *testing.T, path string, off int64, to byte, what string) outcome {
	sim := s.sim.Clone(2)
	if err := sim.Remove(filepath.Join(filepath.Dir(path), "HEAD")); err != nil {
		t.Fatal(err)
	}
	f, err := sim.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{to}, off); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return inspect(t, sim, what)
}

// Proves C1: the last append torn at every byte, and everything that a crash may
// leave behind the tear: nothing, zeros, noise, a frame of long ago.
func TestDamageTornTail(t *testing.T) {
	t.Parallel()
	s := newSpecimen(t, false)
	tail := s.segments[len(s.segments)-1]
	whole := contents(t, s.sim, tail)
	noise := make([]byte, s.lastTo-s.lastFrom+200)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	behind := map[string][]byte{
		"nothing":   nil,
		"zeros":     make([]byte, 700),
		"noise":     noise,
		"old frame": bytes.Repeat(whole[80:s.lastFrom], 2),
		"old file":  contents(t, s.sim, s.segments[0]),
	}
	for name, garbage := range behind {
		for kept := s.lastFrom; kept <= s.lastTo; kept++ {
			what := fmt.Sprintf("%d of %d bytes of the last frame, then %s", kept-s.lastFrom, s.lastTo-s.lastFrom, name)
			sim := s.sim.Clone(2)
			overwrite(t, sim, tail, slices.Concat(whole[:kept], garbage))
			o := inspect(t, sim, what)
			if o.damage != nil {
				t.Fatalf("%s: refused: %v", what, o.damage)
			}
			want := s.batches
			// The last bytes of a frame may be padding, which zeros complete.
			if !journaltest.Equal(want, o.batches) || kept < s.lastTo-7 {
				want = s.batches[:len(s.batches)-1]
			}
			if diff := journaltest.Diff(want, o.batches); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", what, diff)
			}
			if kept > s.lastFrom && kept < s.lastTo-7 && (o.stats.TornTails != 1 || o.stats.TornBytes <= 0) {
				t.Fatalf("%s: %+v", what, o.stats)
			}
		}
	}
}

// Proves C10, C7 (no gap): files that are missing, cut, exchanged or copied.
func TestDamageFiles(t *testing.T) {
	t.Parallel()
	s := newSpecimen(t, true)
	first, second, last := s.segments[0], s.segments[1], s.segments[len(s.segments)-1]
	for name, wound := range map[string]func(sim *fsio.Sim){
		"first missing":  func(sim *fsio.Sim) { must(t, sim.Remove(first)) },
		"middle missing": func(sim *fsio.Sim) { must(t, sim.Remove(second)) },
		"last missing":   func(sim *fsio.Sim) { must(t, sim.Remove(last)) },
		"renamed":        func(sim *fsio.Sim) { must(t, sim.Rename(last, filepath.Join(dir, "00000000000000ff.seg"))) },
		"replaced":       func(sim *fsio.Sim) { overwrite(t, sim, second, contents(t, sim, first)) },
		"copied":         func(sim *fsio.Sim) { copyTo(t, sim, second, filepath.Join(dir, "00000000000000ff.seg")) },
		"emptied":        func(sim *fsio.Sim) { overwrite(t, sim, last, nil) },
		"longer":         func(sim *fsio.Sim) { overwrite(t, sim, first, append(contents(t, sim, first), 0)) },
	} {
		sim := s.sim.Clone(2)
		wound(sim)
		if o := inspect(t, sim, name); o.damage == nil {
			t.Errorf("%s: accepted, with %d of %d batches", name, len(o.batches), len(s.batches))
		}
	}
	whole := contents(t, s.sim, first)
	for n := range whole {
		sim := s.sim.Clone(2)
		overwrite(t, sim, first, whole[:n])
		if o := inspect(t, sim, fmt.Sprintf("first cut to %d bytes", n)); o.damage == nil {
			t.Errorf("a sealed segment cut to %d of %d bytes was accepted", n, len(whole))
		}
	}
}

// Proves G1: a journal of another history does not continue this one, though all of
// its checksums are right.
func TestDamageForeignSegment(t *testing.T) {
	t.Parallel()
	s, other := newSpecimen(t, true), fsio.NewSim(3)
	j := mustOpen(t, other)
	for _, n := range specimenSizes {
		events := journaltest.Events(j.Head().Seq+1, n)
		events[0].Time++
		if _, err := j.Append(events); err != nil {
			t.Fatal(err)
		}
	}
	must(t, j.Close())
	for i, path := range s.segments {
		sim := s.sim.Clone(2)
		overwrite(t, sim, path, contents(t, other, segmentsOf(t, other)[i]))
		if o := inspect(t, sim, path); o.damage == nil {
			t.Errorf("%s of another journal was accepted", path)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func copyTo(t *testing.T, sim *fsio.Sim, from, to string) {
	t.Helper()
	f, err := sim.OpenFile(to, os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	_, err = f.Write(contents(t, sim, from))
	must(t, errors.Join(err, f.Close()))
}
