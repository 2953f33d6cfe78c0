package journal_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
	"github.com/dagstore/dagstore/shard"
)

func mustRead(t *testing.T, fsys fsio.FS) *journal.Reader {
	t.Helper()
	r, err := journal.OpenReader(readOnly{fsys}, dir)
	if err != nil {
		t.Fatalf("OpenReader: %v", err)
	}
	return r
}

func mustRefresh(t *testing.T, r *journal.Reader) journal.Position {
	t.Helper()
	pos, err := r.Refresh()
	if err != nil {
		t.Fatalf("Refresh: %v", err)
	}
	if pos != r.Head() {
		t.Fatalf("Refresh = %v, Head %v", pos, r.Head())
	}
	return pos
}

func appendEvents(t *testing.T, j journal.Journal, n int) journal.Position {
	t.Helper()
	end, err := j.Append(journaltest.Events(j.Head().Seq+1, n))
	if err != nil {
		t.Fatal(err)
	}
	return end
}

// TestReader: a reader beside a writer shows each batch from the Refresh after it on,
// refuses to append, and holds nothing open when it is closed. Proves G18, G3.
func TestReader(t *testing.T) {
	t.Parallel()
	sim := fsio.NewSim(1)
	if _, err := journal.OpenReader(readOnly{sim}, dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("OpenReader before there is a journal = %v, want fs.ErrNotExist", err)
	}
	j := mustOpen(t, sim)
	r := mustRead(t, sim)
	for n := range 60 {
		shown := r.Head()
		end := appendEvents(t, j, 1+n%9)
		if r.Head() != shown {
			t.Fatalf("Head moved to %v without a Refresh", r.Head())
		}
		if got := mustRefresh(t, r); got != end {
			t.Fatalf("Refresh = %v, the journal is at %v", got, end)
		}
		if w, ok := r.Watermark(); !ok || w.Head != end || w.Closed || w.Time.IsZero() {
			t.Fatalf("Watermark = %+v, %v", w, ok)
		}
	}
	batches := journaltest.Collect(t, j, 0)
	checkAll(t, "reader", r, batches)
	for seq := range j.Head().Seq + 1 {
		if diff := journaltest.Diff(journaltest.Collect(t, j, seq), journaltest.Collect(t, r, seq)); diff != "" {
			t.Fatalf("Replay(%d) (-writer +reader):\n%s", seq, diff)
		}
		want, _ := j.PositionAt(seq)
		if got, err := r.PositionAt(seq); err != nil || got != want {
			t.Fatalf("PositionAt(%d) = %v, %v; the writer says %v", seq, got, err, want)
		}
	}
	for _, n := range []int{0, 1} {
		if _, err := r.Append(journaltest.Events(r.Head().Seq+1, n)); !errors.Is(err, journal.ErrReadOnly) {
			t.Errorf("Append of %d events = %v, want ErrReadOnly", n, err)
		}
	}
	must(t, j.Close())
	mustRefresh(t, r)
	if w, ok := r.Watermark(); !ok || !w.Closed {
		t.Errorf("Watermark after the writer's Close = %+v, %v", w, ok)
	}
	must(t, r.Close())
	must(t, r.Close())
	if sim.OpenFiles() != 0 || sim.HeldLocks() != 0 {
		t.Errorf("left open: %v", sim.OpenNames())
	}
	if _, err := r.Refresh(); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Refresh after Close = %v", err)
	}
	if _, err := r.Reload(); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Reload after Close = %v", err)
	}
	if err := r.Replay(0, nil); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Replay after Close = %v", err)
	}
}

// A Refresh in vain is one read of HEAD, but that it looks up the name now and then;
// one with news reads what is new.
func TestCallsOfRefresh(t *testing.T) {
	sim := fsio.NewSim(1)
	j, err := journal.OpenFile(sim, dir, journal.FileOptions{})
	must(t, err)
	appendEvents(t, j, 500)
	r := mustRead(t, sim)
	calls := func() (calls []string) {
		t.Helper()
		sim.ClearOps()
		mustRefresh(t, r)
		for _, op := range sim.Ops() {
			calls = append(calls, fmt.Sprintf("%v %s", op.Kind, filepath.Base(op.Name)))
			if op.Kind == fsio.OpRead && op.Len > 2000 {
				t.Errorf("%v", op)
			}
		}
		return calls
	}
	idle := 0
	for range 160 {
		if got := calls(); slices.Equal(got, []string{"read HEAD"}) {
			idle++
		}
	}
	if idle < 145 {
		t.Errorf("only %d of 160 idle Refreshs were one read", idle)
	}
	appendEvents(t, j, 1)
	const tail = "0000000000000001.seg"
	if got, want := calls(), []string{"read HEAD", "stat " + tail, "read " + tail}; !slices.Equal(got, want) {
		t.Errorf("Refresh after an append: %v, want %v", got, want)
	}
	must(t, errors.Join(j.Close(), r.Close()))
}

// TestReaderOvertaken: a compaction removes the segment that a reader needs next. It
// says so, shows what it showed, and goes on after Reload. Proves G18, C7.
func TestReaderOvertaken(t *testing.T) {
	t.Parallel()
	sim := fsio.NewSim(1)
	j := mustOpen(t, sim)
	for range 8 {
		appendEvents(t, j, 5)
	}
	r, behind := mustRead(t, sim), mustRead(t, sim)
	shown := behind.Head()
	for range 20 {
		appendEvents(t, j, 5)
	}
	mustRefresh(t, r)
	for range 20 {
		appendEvents(t, j, 5)
	}
	batches := journaltest.Collect(t, j, 0)
	must(t, compactTo(t, j, batches, len(batches)-3))
	for range 2 {
		if _, err := behind.Refresh(); !errors.Is(err, journal.ErrCompacted) {
			t.Fatalf("Refresh = %v, want ErrCompacted", err)
		}
	}
	if got := behind.Head(); got.Seq < shown.Seq || got.Seq > batches[len(batches)-3].End.Seq {
		t.Errorf("Head = %v, shown was %v", got, shown)
	}
	if err := behind.Replay(0, func(*journal.Batch) error { return nil }); !errors.Is(err, journal.ErrCompacted) {
		t.Errorf("Replay of what was removed = %v, want ErrCompacted", err)
	}
	for _, reader := range []*journal.Reader{behind, r} {
		pos, err := reader.Reload()
		if err != nil || pos != j.Head() || reader.Head() != pos {
			t.Fatalf("Reload = %v, %v; the journal is at %v", pos, err, j.Head())
		}
		checkAll(t, "reloaded", reader, batches)
	}
	// One that keeps up is not overtaken, takes over the horizon, and closes what it
	// no longer needs.
	for n := range 20 {
		appendEvents(t, j, 5)
		mustRefresh(t, r)
		batches = journaltest.Collect(t, j, j.Horizon().Seq)
		if n%5 == 4 {
			all := journaltest.StateAt(foldable(t, j), batches[len(batches)-1].End.Seq)
			must(t, j.Compact(t.Context(), batches[len(batches)-1].End, all.Emit))
			mustRefresh(t, r)
			if r.Horizon() != j.Horizon() {
				t.Fatalf("the reader's horizon is %v, the writer's %v", r.Horizon(), j.Horizon())
			}
		}
	}
	must(t, errors.Join(j.Close(), r.Close(), behind.Close()))
	if sim.OpenFiles() != 0 {
		t.Errorf("left open: %v", sim.OpenNames())
	}
}

// foldable gives the events of j from the beginning, compacted or not, as they were
// written by this test.
func foldable(t *testing.T, j *journal.File) []journal.Batch {
	t.Helper()
	return []journal.Batch{{Events: journaltest.Events(1, int(j.Head().Seq)), End: j.Head()}}
}

// TestReaderForeign: another journal, or an older copy of this one, takes the place of
// what a reader follows. Proves G11, G18.
func TestReaderForeign(t *testing.T) {
	t.Parallel()
	write := func(sim *fsio.Sim, batches int, time int64) {
		j := mustOpen(t, sim)
		for range batches {
			events := journaltest.Events(j.Head().Seq+1, 5)
			events[0].Time += time
			if _, err := j.Append(events); err != nil {
				t.Fatal(err)
			}
		}
		must(t, j.Close())
	}
	own := fsio.NewSim(1)
	write(own, 10, 0)
	older := own.Clone(1)
	write(own, 10, 0)
	smaller, equal, larger := fsio.NewSim(2), fsio.NewSim(3), fsio.NewSim(4)
	write(smaller, 3, 1)
	write(equal, 20, 1)
	write(larger, 50, 1)
	same := fsio.NewSim(5)
	write(same, 30, 0) // another writer's, with the same events
	gone := fsio.NewSim(6)
	little := own.Clone(7) // older by what goes into the last segment
	for names := segmentsOf(t, own); ; names = segmentsOf(t, own) {
		j := mustOpen(t, own)
		appendEvents(t, j, 1)
		must(t, j.Close())
		if slices.Equal(names, segmentsOf(t, own)) {
			break
		}
		little = own.Clone(7)
	}
	younger := own.Clone(1)
	write(younger, 20, 0)
	for name, c := range map[string]struct {
		sim  *fsio.Sim
		head bool // HEAD is there as well
		want error
	}{
		"an older copy":               {older, true, journal.ErrForeignPosition},
		"a slightly older copy":       {little, true, journal.ErrForeignPosition},
		"a smaller one":               {smaller, true, journal.ErrForeignPosition},
		"one as long":                 {equal, true, journal.ErrForeignPosition},
		"a longer one":                {larger, true, journal.ErrForeignPosition},
		"other segments, same events": {same, true, journal.ErrForeignPosition},
		"without HEAD":                {larger, false, journal.ErrForeignPosition},
		"nothing":                     {gone, false, journal.ErrForeignPosition},
		"a younger copy":              {younger, true, nil},
	} {
		next := c.sim.Clone(9)
		if !c.head {
			_ = next.Remove(filepath.Join(dir, "HEAD")) // if there is one
		}
		// Equal events are an equal position, which Reload may begin with again; of an
		// empty directory it says that there is no journal.
		reloads := name == "nothing" || name == "other segments, same events"
		t.Run(name, func(t *testing.T) { checkExchanged(t, own, next, c.want, reloads) })
	}
}

// checkExchanged has a reader follow own, exchanges that for next, and wants the
// reader to notice.
func checkExchanged(t *testing.T, own, next *fsio.Sim, want error, reloads bool) {
	sw := &switched{now: own}
	r := mustRead(t, sw)
	defer r.Close()
	shown := r.Head()
	mustRefresh(t, r)
	sw.now = next
	var err error
	for range 17 { // the name is looked up now and then only
		if _, err = r.Refresh(); err != nil {
			break
		}
	}
	switch {
	case !errors.Is(err, want) || want == nil && err != nil:
		t.Fatalf("Refresh = %v, want %v", err, want)
	case want == nil && r.Head().Seq <= shown.Seq:
		t.Errorf("Head = %v", r.Head())
	case want != nil && r.Head() != shown:
		t.Errorf("Head = %v, shown was %v", r.Head(), shown)
	case want != nil && !reloads:
		if _, err := r.Reload(); !errors.Is(err, journal.ErrForeignPosition) {
			t.Errorf("Reload = %v, want ErrForeignPosition", err)
		}
	}
}

// TestReaderMarkIsNoPlace: a mark may be lost with the power, and something else take
// its place, which a reader that looks on from elsewhere does not miss. Proves G18.
func TestReaderMarkIsNoPlace(t *testing.T) {
	t.Parallel()
	sim := fsio.NewSim(1)
	j := mustOpen(t, sim)
	appendEvents(t, j, 1)
	appendEvents(t, j, 1)
	without := sim.Clone(2)
	must(t, j.Close())
	sw := &switched{now: sim}
	r, err := journal.OpenReader(noHead{readOnly{sw}}, dir)
	must(t, err)
	if got := mustRefresh(t, r); got != j.Head() {
		t.Fatalf("the reader shows %v, the mark proves %v", got, j.Head())
	}
	sw.now = without
	j = mustOpen(t, without)
	appendEvents(t, j, 2)
	end := j.Head()
	appendEvents(t, j, 1)
	if got := mustRefresh(t, r); got != end {
		t.Errorf("the reader shows %v, want %v", got, end)
	}
	must(t, errors.Join(j.Close(), r.Close()))
}

// switched is a directory that is exchanged for another: files that are open stay.
type switched struct {
	fsio.FS
	now *fsio.Sim
}

func (s *switched) OpenFile(name string, flag int, perm fs.FileMode) (fsio.File, error) {
	return s.now.OpenFile(name, flag, perm)
}
func (s *switched) ReadDir(name string) ([]fs.DirEntry, error) { return s.now.ReadDir(name) }
func (s *switched) Lstat(name string) (fs.FileInfo, error)     { return s.now.Lstat(name) }

// TestHeadFails: HEAD cannot be written. No append fails; it is counted; the next one
// tells. Proves C11.
func TestHeadFails(t *testing.T) {
	t.Parallel()
	sim := fsio.NewSim(1)
	must(t, mustOpen(t, sim).Close())
	fail := true
	sim.OnOp(func(op fsio.Op) error {
		if fail && op.Kind.Mutates() && filepath.Base(op.Name) == "HEAD" {
			return fsio.FaultShortWrite
		}
		return nil
	})
	j := mustOpen(t, sim)
	r := mustRead(t, sim)
	for range 5 {
		end := appendEvents(t, j, 3)
		if got := mustRefresh(t, r); got.Seq > end.Seq {
			t.Errorf("the reader shows %v, the journal is at %v", got, end)
		}
	}
	if got := j.Stats().HeadErrors; got != 6 {
		t.Errorf("HeadErrors = %d, want 6", got)
	}
	fail = false
	if end := appendEvents(t, j, 3); mustRefresh(t, r) != end {
		t.Errorf("the reader shows %v, the journal is at %v", r.Head(), end)
	}
	must(t, errors.Join(j.Close(), r.Close()))
}

// TestHeadNotRegular: whatever has the name HEAD, the journal is written and read, and
// a planted link is not followed. Proves S8 (journal).
func TestHeadNotRegular(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"directory", "link"} {
		sim := fsio.NewSim(1)
		target := filepath.Join(dir, "notes.txt")
		must(t, sim.MkdirAll(dir, 0o700))
		f, err := sim.OpenFile(target, os.O_CREATE|os.O_RDWR, 0o600)
		must(t, errors.Join(err, f.Close()))
		if kind == "link" {
			must(t, sim.Symlink(target, filepath.Join(dir, "HEAD")))
		} else {
			must(t, sim.MkdirAll(filepath.Join(dir, "HEAD"), 0o700))
		}
		j := mustOpen(t, sim)
		appendEvents(t, j, 3)
		appendEvents(t, j, 3)
		r := mustRead(t, sim)
		if r.Head().Seq != 3 || j.Stats().HeadErrors != 3 {
			t.Errorf("%s: the reader shows %v, %+v", kind, r.Head(), j.Stats())
		}
		must(t, errors.Join(j.Close(), r.Close()))
		if got := contents(t, sim, target); len(got) != 0 {
			t.Errorf("%s: followed", kind)
		}
	}
}

// followed is the model of TestReaderProperty: a writer and two readers, one of which
// finds no HEAD.
type followed struct {
	t       *rapid.T
	sim     *fsio.Sim
	j       *journal.File
	batches []journal.Batch // durable
	readers [2]*journal.Reader
	shown   [2]journal.Position
}

// noHead hides HEAD from a reader.
type noHead struct{ fsio.FS }

func (n noHead) Lstat(name string) (fs.FileInfo, error) {
	if filepath.Base(name) == "HEAD" {
		return nil, fs.ErrNotExist
	}
	return n.FS.Lstat(name)
}

func (f *followed) open() {
	j, err := journal.OpenFile(f.sim, dir, small)
	if err != nil {
		f.t.Fatalf("OpenFile: %v", err)
	}
	f.j = j
	found, err := journaltest.CheckBased(j, f.batches)
	if err != nil || found != len(f.batches) {
		f.t.Fatalf("opened with %d of %d batches: %v", found, len(f.batches), err)
	}
}

// check has each reader look again and compares what it shows with what is durable.
// A HEAD that a crash left may be an old one, or none; one that a kill left may lack the
// last batch.
func (f *followed) check(what, how string) {
	for i := range f.readers {
		fsys := fsio.FS(readOnly{f.sim})
		if i == 1 {
			fsys = noHead{fsys}
		}
		if f.readers[i] == nil {
			r, err := journal.OpenReader(fsys, dir)
			if err != nil {
				f.t.Fatalf("%s: reader %d: OpenReader: %v", what, i, err)
			}
			f.readers[i] = r
		}
		r := f.readers[i]
		_, err := r.Refresh()
		if errors.Is(err, journal.ErrCompacted) {
			_, err = r.Reload()
		}
		if err != nil {
			f.t.Fatalf("%s: reader %d: %v", what, i, err)
		}
		found, err := journaltest.CheckBased(r, f.batches)
		least := len(f.batches)
		switch {
		case how == "crash" && i == 0:
			least = 0
		case how == "kill" || i == 1:
			least = max(0, least-1) // the last one has no witness
		}
		if err != nil || found < least {
			f.t.Fatalf("%s: reader %d shows %d of %d batches: %v", what, i, found, len(f.batches), err)
		}
		if r.Head().Seq < f.shown[i].Seq {
			f.t.Fatalf("%s: reader %d went back from %v to %v", what, i, f.shown[i], r.Head())
		}
		f.shown[i] = r.Head()
	}
}

func (f *followed) dropReaders() {
	for i, r := range f.readers {
		if r != nil {
			_ = r.Close()
			f.readers[i], f.shown[i] = nil, journal.Position{}
		}
	}
}

// step does one thing that a writer or its machine may do.
func (f *followed) step(n int) (what string) {
	choice := rapid.SampledFrom([]string{"append", "append", "append", "append", "large", "compact", "close", "kill", "crash", "failed sync"}).Draw(f.t, "step")
	what = fmt.Sprintf("step %d, %s", n, choice)
	size := rapid.IntRange(1, 6).Draw(f.t, "size")
	if choice == "large" {
		size *= 20
	}
	head := f.j.Head().Seq
	events := journaltest.Events(head+1, size)
	switch choice {
	case "append", "large":
		end, err := f.j.Append(events)
		if err != nil {
			f.t.Fatalf("%s: %v", what, err)
		}
		f.batches = append(f.batches, journal.Batch{Events: events, End: end})
	case "compact":
		if len(f.batches) == 0 {
			break
		}
		at := f.batches[rapid.IntRange(0, len(f.batches)-1).Draw(f.t, "at")].End
		err := f.j.Compact(context.Background(), at, journaltest.StateAt(f.batches, at.Seq).Emit)
		if err != nil && (!errors.Is(err, journal.ErrCompacted) || at.Seq >= f.j.Horizon().Seq) {
			f.t.Fatalf("%s: %v", what, err)
		}
	case "close":
		if err := f.j.Close(); err != nil {
			f.t.Fatalf("%s: %v", what, err)
		}
		f.check(what, "") // while nobody writes
		f.open()
	case "kill", "crash":
		f.interrupted(events, choice)
	case "failed sync":
		f.sim.OnOp(func(op fsio.Op) error {
			if op.Kind == fsio.OpSyncData {
				return fsio.FaultEIO
			}
			return nil
		})
		if _, err := f.j.Append(events); !errors.Is(err, journal.ErrOutcomeUnknown) && !errors.Is(err, journal.ErrReadOnly) {
			f.t.Fatalf("%s: %v", what, err)
		}
		f.sim.OnOp(nil)
		f.check(what, "")
		_ = f.j.Close()
		f.reopenUnknown(events)
	}
	return what
}

// interrupted cuts an append short: the program is killed, or the power cut.
func (f *followed) interrupted(events []shard.Event, how string) {
	at := f.sim.NumOps() + uint64(rapid.IntRange(0, 4).Draw(f.t, "at"))
	f.sim.FailAt(at, fsio.FaultCrash)
	end, err := f.j.Append(events)
	acked := err == nil
	if acked {
		f.batches = append(f.batches, journal.Batch{Events: events, End: end})
	}
	f.dropReaders()
	if how == "kill" {
		f.sim = f.sim.Kill()
	} else {
		f.sim = f.sim.Crash()
	}
	f.check(how+", found", how) // before anybody repairs anything
	if acked {
		f.open()
	} else {
		f.reopenUnknown(events)
	}
}

// reopenUnknown opens a journal that may hold one more batch, of events.
func (f *followed) reopenUnknown(events []shard.Event) {
	j, err := journal.OpenFile(f.sim, dir, small)
	if err != nil {
		f.t.Fatalf("OpenFile: %v", err)
	}
	f.j = j
	if n := len(f.batches); n == 0 || j.Head() != f.batches[n-1].End {
		if j.Head().Seq > 0 {
			f.batches = append(f.batches, journal.Batch{Events: events, End: j.Head()})
		}
	}
	found, err := journaltest.CheckBased(j, f.batches)
	if err != nil || found != len(f.batches) {
		f.t.Fatalf("opened with %d of %d batches: %v", found, len(f.batches), err)
	}
}

// TestReaderProperty: whatever a writer and its machine do, readers show a prefix of
// what is durable, never go back, and show all of it if there is a HEAD, all but the
// last batch if there is none. Proves G18, G3, C1, C2, C4, C7.
func TestReaderProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := &followed{t: t, sim: newCrashSim(rapid.Uint64().Draw(t, "seed"))}
		f.open()
		defer func() {
			f.dropReaders()
			_ = f.j.Close()
		}()
		for n := range rapid.IntRange(1, 25).Draw(t, "steps") {
			f.check(f.step(n), "")
		}
	})
}

// TestReaderBesideWriter: readers refresh and replay while the writer appends, rotates
// and compacts. Proves G18, G1.
func TestReaderBesideWriter(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	j, err := journal.OpenFile(fsio.OS(), root, small)
	must(t, err)
	defer j.Close()
	appendEvents(t, j, 1)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	var last [2]journal.Position
	for i := range last {
		readers.Go(func() {
			r, err := journal.OpenReader(readOnly{fsio.OS()}, root)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			state, at := journaltest.State{}, uint64(0)
			for stopped := false; ; {
				if at, err = followOnce(r, state, at); err != nil {
					t.Errorf("reader at %d: %v", at, err)
					return
				}
				if stopped {
					last[i] = r.Head()
					return
				}
				select {
				case <-stop:
					stopped = true
				default:
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range 160 {
		appendEvents(t, j, 1+rng.IntN(8))
		if n%20 == 19 {
			at := j.Head()
			must(t, j.Compact(t.Context(), at, journaltest.StateAt(foldable(t, j), at.Seq).Emit))
		}
	}
	close(stop)
	readers.Wait()
	for i := range last {
		if last[i] != j.Head() {
			t.Errorf("reader %d ended at %v, the writer at %v", i, last[i], j.Head())
		}
	}
}

// followOnce brings state from at to the journal's head, and checks it against the
// events that were written.
func followOnce(r *journal.Reader, state journaltest.State, at uint64) (uint64, error) {
	_, err := r.Refresh()
	if errors.Is(err, journal.ErrCompacted) {
		_, err = r.Reload()
	}
	if err != nil {
		return at, err
	}
	if horizon := r.Horizon(); at < horizon.Seq {
		clear(state)
		pos, err := r.Base(func(events []shard.Event) error { state.Apply(events); return nil })
		if errors.Is(err, journal.ErrCompacted) {
			return at, nil // overtaken once more
		}
		if err != nil {
			return at, err
		}
		at = pos.Seq
	}
	err = r.Replay(at, func(b *journal.Batch) error {
		if b.Events[0].Seq != at+1 {
			return fmt.Errorf("seq %d where %d comes next", b.Events[0].Seq, at+1)
		}
		state.Apply(b.Events)
		at = b.End.Seq
		return nil
	})
	if err != nil && !errors.Is(err, journal.ErrCompacted) {
		return at, err
	}
	want := journaltest.State{}
	want.Apply(journaltest.Events(1, int(at)))
	if len(want) != len(state) {
		return at, fmt.Errorf("%d shards at %d, want %d", len(state), at, len(want))
	}
	for key, e := range want {
		if state[key] != e {
			return at, fmt.Errorf("%v at %d is %+v, want %+v", key, at, state[key], e)
		}
	}
	return at, nil
}
