package projection_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/projection/projectiontest"
	"github.com/dagstore/dagstore/shard"
)

const checkpoints = "/store/checkpoints"

// atOnce does spawned work at once.
func atOnce(work func()) { work() }

// on returns the options of a runner whose checkpoints are on sim: one every 20 events.
func on(sim *fsio.Sim) projection.Options {
	return projection.Options{
		FS: sim, Dir: checkpoints, Spawn: atOnce,
		Policy: projection.CheckpointPolicy{Events: 20},
	}
}

// namesIn lists the files of a directory.
func namesIn(t testing.TB, fsys fsio.FS, dir string) (names []string) {
	t.Helper()
	entries, err := fsys.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func readFile(t testing.TB, fsys fsio.FS, name string) []byte {
	t.Helper()
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
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

func writeFile(t testing.TB, fsys fsio.FS, name string, b []byte) {
	t.Helper()
	f, err := fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(b)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// saved is a world of 60 batches with checkpoints on a disk, closed.
func saved(t testing.TB, views ...projection.View) (*fsio.Sim, *world) {
	t.Helper()
	sim := fsio.NewSim(1)
	w := newWorld(t, journal.NewMemory(), on(sim), views...)
	w.commit(60)
	w.r.Close()
	return sim, w
}

// again recovers the journal of w with what is on sim.
func (w *world) again(t testing.TB, sim *fsio.Sim, views ...projection.View) (*world, projection.Recovery) {
	t.Helper()
	opts := on(sim)
	opts.ReadOnly = true
	next := idleWorld(t, w.j, opts, views...)
	return next, next.recover()
}

// Proves G6, G16, C6: a start uses the newest checkpoint and replays only what came
// after it; two checkpoints are kept of each view; each further one that is missing
// costs a longer replay and changes nothing.
func TestRecoverLadder(t *testing.T) {
	sim, w := saved(t, newUsageView())
	names := namesIn(t, sim, checkpoints)
	if len(names) != 4 || !strings.HasPrefix(names[0], "catalogue-") || !strings.HasPrefix(names[3], "usage-") {
		t.Fatalf("two checkpoints per view are kept: %v", names)
	}
	head := w.j.Head()
	var replayed []uint64
	for _, gone := range [][]int{{}, {1}, {0, 1}} {
		disk := sim.Clone(1)
		for _, i := range gone {
			if err := disk.Remove(filepath.Join(checkpoints, names[i])); err != nil {
				t.Fatal(err)
			}
		}
		next, rec := w.again(t, disk, newUsageView())
		next.wantReplayed()
		if rec.Checkpoint.Seq+rec.Replayed != head.Seq || len(rec.Ignored) != 0 || next.r.Head() != head {
			t.Errorf("without %v: %+v", gone, rec)
		}
		replayed = append(replayed, rec.Replayed)
		f, err := next.r.Freshness("usage")
		if err != nil || head.Seq-f.Applied.Seq > 30 {
			t.Errorf("the other view begins at %v: %v", f, err)
		}
	}
	if replayed[0] >= 30 || replayed[1] <= replayed[0] || replayed[2] != head.Seq {
		t.Errorf("replayed %v", replayed)
	}
}

// Proves G6: a view that is restored shows what it would show without.
func TestViewsAreRestored(t *testing.T) {
	sim, w := saved(t, newUsageView())
	want := newUsageView()
	if err := w.j.Replay(0, want.Apply); err != nil {
		t.Fatal(err)
	}
	next, rec := w.again(t, sim, newUsageView())
	next.r.Start()
	value, f, err := next.r.Read(t.Context(), "usage", projection.Latest())
	if err != nil || len(rec.Ignored) > 0 {
		t.Fatalf("%v, %v", rec.Ignored, err)
	}
	if fmt.Sprint(value) != fmt.Sprint(want.Publish()) || f.Applied != w.j.Head() {
		t.Errorf("%v at %v, want %v", value, f, want.Publish())
	}
}

// Proves G6, C10 (checkpoint): whatever byte of the newest checkpoint is changed,
// wherever it is cut or grows, the start ends with what the journal comes to.
func TestDamagedCheckpoint(t *testing.T) {
	sim, w := saved(t)
	names := namesIn(t, sim, checkpoints)
	newest := filepath.Join(checkpoints, names[len(names)-1])
	good := readFile(t, sim, newest)
	try := func(what string, b []byte) {
		t.Helper()
		disk := sim.Clone(1)
		writeFile(t, disk, newest, b)
		next, rec := w.again(t, disk)
		next.wantReplayed()
		if len(rec.Ignored) != 1 || rec.Ignored[0].File != filepath.Base(newest) || rec.Ignored[0].Why == nil ||
			rec.Checkpoint.Seq == 0 || rec.Checkpoint.Seq+rec.Replayed != w.j.Head().Seq {
			t.Fatalf("%s: %+v", what, rec)
		}
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1 << (i % 8)
		try(fmt.Sprintf("byte %d of %d is flipped", i, len(b)), b)
	}
	for n := range good {
		if n%7 == 0 || n < projection.CheckpointHeaderSize+40 || n > len(good)-60 {
			try(fmt.Sprintf("cut to %d of %d bytes", n, len(good)), good[:n])
		}
	}
	try("grown", append(bytes.Clone(good), 0))
	try("twice", append(bytes.Clone(good), good...))
	t.Logf("%d bytes flipped", len(good))
}

// Proves G6, G11, C13 (checkpoints): checkpoints of other views, versions, stores,
// formats and times cost time and nothing else.
func TestSwappedCheckpoints(t *testing.T) {
	sim, w := saved(t, newUsageView())
	names := namesIn(t, sim, checkpoints)
	read := func(i int) []byte { return readFile(t, sim, filepath.Join(checkpoints, names[i])) }
	_, _, pos, blocks, err := projection.DecodeCheckpoint(bytes.NewReader(read(1)), int64(len(read(1))))
	if err != nil {
		t.Fatal(err)
	}
	encode := func(view string, version uint32, pos journal.Position, blocks [][]byte) []byte {
		var b bytes.Buffer
		if err := projection.EncodeCheckpoint(&b, view, version, pos, blocks); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	version := projection.NewCatalogue().Version()
	other := projectiontest.Journal(t, projectiontest.History(2, 400))
	foreign, err := projection.PositionAt(other, pos.Seq)
	if err != nil {
		t.Fatal(err)
	}
	longer := projectiontest.Journal(t, w.history[:100]).Head()
	newer := read(1)
	newer[8]++
	for what, c := range map[string]struct {
		b    []byte
		want error
	}{
		"another view's":     {read(3), projection.ErrOtherView},
		"another version":    {encode("catalogue", version+1, pos, blocks), projection.ErrOtherView},
		"another store's":    {encode("catalogue", version, foreign, blocks), journal.ErrForeignPosition},
		"another digest":     {encode("catalogue", version, journal.Position{Seq: pos.Seq}, blocks), journal.ErrForeignPosition},
		"the future":         {encode("catalogue", version, longer, blocks), journal.ErrFuturePosition},
		"another format":     {newer, projection.ErrOtherFormat},
		"of nothing":         {encode("catalogue", version, journal.Position{}, nil), projection.ErrDamagedCheckpoint},
		"something else":     {[]byte("something else"), projection.ErrDamagedCheckpoint},
		"empty":              {nil, projection.ErrDamagedCheckpoint},
		"blocks of nonsense": {encode("catalogue", version, pos, [][]byte{[]byte("nonsense"), {1, 2, 3}}), nil},
		"one block too many": {encode("catalogue", version, pos, append(slices.Clone(blocks), []byte("x"))), nil},
		"without its blocks": {encode("catalogue", version, pos, nil), nil},
	} {
		disk := sim.Clone(1)
		writeFile(t, disk, filepath.Join(checkpoints, projection.CheckpointName("catalogue", 1<<62)), c.b)
		next, rec := w.again(t, disk, newUsageView())
		next.wantReplayed()
		if len(rec.Ignored) != 1 || c.want != nil && !errors.Is(rec.Ignored[0].Why, c.want) {
			t.Errorf("%s: %v", what, rec.Ignored)
		}
		if s := next.r.Stats(); s.Ignored != uint64(len(rec.Ignored)) || s.Replayed != rec.Replayed {
			t.Errorf("%s: %+v", what, s)
		}
		t.Logf("%s: %v", what, rec.Ignored)
	}
	// The same for a view of somebody's: it is begun anew after each that it cannot use.
	for what, b := range map[string][]byte{
		"the catalogue's": read(1), "not JSON": encode("usage", 1, pos, [][]byte{[]byte(`[{"Key":"x"`)}),
		"half": encode("usage", 1, pos, [][]byte{[]byte(`[{"Key":"x","Scheme":"s","Usage":{"Shards":1}}]`), []byte("{")}),
	} {
		disk := sim.Clone(1)
		writeFile(t, disk, filepath.Join(checkpoints, projection.CheckpointName("usage", 1<<62)), b)
		next, rec := w.again(t, disk, newUsageView())
		next.r.Start()
		value, _, err := next.r.Read(t.Context(), "usage", projection.Latest())
		want := newUsageView()
		if err := w.j.Replay(0, want.Apply); err != nil {
			t.Fatal(err)
		}
		if err != nil || len(rec.Ignored) != 1 || fmt.Sprint(value) != fmt.Sprint(want.Publish()) {
			t.Errorf("%s: %v, %v", what, rec.Ignored, err)
		}
	}
}

// Proves G6, C13: the next checkpoint removes what could not be used, and leaves the
// files of a newer format, of other views and of others alone.
func TestWhatIsRemoved(t *testing.T) {
	sim, w := saved(t)
	newer := readFile(t, sim, filepath.Join(checkpoints, namesIn(t, sim, checkpoints)[0]))
	newer[8]++
	add := map[string][]byte{
		projection.CheckpointName("catalogue", 1<<60):   []byte("damaged"),
		projection.CheckpointName("catalogue", 1<<61):   newer,
		projection.CheckpointName("catalogue-2", 1<<60): []byte("another view's"),
		"notes.txt": []byte("somebody's"),
		projection.CheckpointName("catalogue", 5) + ".tmp-00000000": []byte("torn"),
	}
	for name, b := range add {
		writeFile(t, sim, filepath.Join(checkpoints, name), b)
	}
	next := newWorld(t, w.j, on(sim))
	next.commit(20)
	next.r.Close()
	names := namesIn(t, sim, checkpoints)
	for name := range add {
		kept := !strings.Contains(name, "tmp") && string(add[name]) != "damaged"
		if slices.Contains(names, name) != kept {
			t.Errorf("%s: %v", name, names)
		}
	}
	if len(names) != 2+3 {
		t.Errorf("%v", names)
	}
}

// Proves C11, G16: checkpoints are made by events, by bytes, and by default only when
// the journal has grown by a share of them.
func TestPolicy(t *testing.T) {
	for what, c := range map[string]struct {
		policy projection.CheckpointPolicy
		least  int
		most   int
	}{
		"events":     {projection.CheckpointPolicy{Events: 50}, 14, 18},
		"bytes":      {projection.CheckpointPolicy{Bytes: 4000}, 8, 20},
		"one event":  {projection.CheckpointPolicy{Events: 1}, 200, 200},
		"by default": {projection.CheckpointPolicy{}, 0, 0},
	} {
		sim := fsio.NewSim(1)
		opts := on(sim)
		opts.Policy = c.policy
		w := newWorld(t, journal.NewMemory(), opts)
		w.commit(200)
		if n := int(w.r.Stats().Checkpoints); n < c.least || n > c.most {
			t.Errorf("%s: %d checkpoints of %d events", what, n, w.j.Head().Seq)
		}
		if err := w.r.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := w.r.Stats().Checkpoints
		if err := w.r.Checkpoint(t.Context()); err != nil || w.r.Stats().Checkpoints != before {
			t.Errorf("%s: a second checkpoint of the same state: %v", what, err)
		}
		if _, rec := w.again(t, sim); rec.Replayed != 0 {
			t.Errorf("%s: %d events replayed after a checkpoint of all", what, rec.Replayed)
		}
	}
}

// Proves C11 (ReadOnly): a follower reads checkpoints and changes nothing on the disk.
func TestReadOnlyWritesNothing(t *testing.T) {
	sim, w := saved(t, newUsageView())
	writeFile(t, sim, filepath.Join(checkpoints, "catalogue-x.ckpt.tmp-00000000"), []byte("torn"))
	tree := sim.Tree()
	next, rec := w.again(t, sim, newUsageView())
	next.r.Start()
	next.commit(50)
	if err := next.r.Checkpoint(t.Context()); err != nil {
		t.Error(err)
	}
	if err := next.r.Rebuild(t.Context(), "usage"); err != nil {
		t.Error(err)
	}
	if rec.Checkpoint.Seq == 0 || sim.Tree() != tree {
		t.Errorf("%+v\n%s\nbefore:\n%s", rec, sim.Tree(), tree)
	}
}

// Proves G14, G6: after a rebuild no checkpoint of the former view is left.
func TestRebuildReplacesCheckpoints(t *testing.T) {
	sim := fsio.NewSim(1)
	w := newWorld(t, journal.NewMemory(), on(sim), newUsageView())
	w.commit(30)
	w.damage()
	w.commit(20) // wrong checkpoints
	rep, err := w.r.Check(t.Context())
	if err != nil || rep.OK() {
		t.Fatalf("%+v, %v", rep, err)
	}
	for _, name := range []string{"catalogue", "usage"} {
		if err := w.r.Rebuild(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	names := namesIn(t, sim, checkpoints)
	if len(names) != 2 {
		t.Errorf("%v", names)
	}
	if rep, err = w.r.Check(t.Context()); err != nil || !rep.OK() || len(rep.Checkpoints) != 2 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// Proves G14, G6, C11: a rebuild whose checkpoint cannot be written is one all the
// same, and leaves none of the former view's.
func TestRebuildWithoutCheckpoint(t *testing.T) {
	sim := fsio.NewSim(1)
	w := newWorld(t, journal.NewMemory(), on(sim))
	w.damage()
	w.commit(20)
	sim.OnOp(func(op fsio.Op) error {
		if op.Kind == fsio.OpCreate {
			return fsio.FaultENOSPC
		}
		return nil
	})
	if err := w.r.Rebuild(t.Context(), "catalogue"); err != nil {
		t.Fatal(err)
	}
	w.wantReplayed()
	if names := namesIn(t, sim, checkpoints); len(names) != 0 || w.r.Stats().CheckpointsFailed != 1 {
		t.Errorf("%v, %+v", names, w.r.Stats())
	}
}

// hasty restores itself without looking.
type hasty struct{ *usageView }

func (h hasty) Restore(pos journal.Position, _ func() ([]byte, error)) error {
	h.pos = pos
	return nil
}

func (h hasty) Fresh() (projection.View, error) { return hasty{newUsageView()}, nil }

// Proves G6: a view that leaves blocks unread is not taken for restored.
func TestHastyRestore(t *testing.T) {
	sim, w := saved(t, newUsageView())
	next, rec := w.again(t, sim, hasty{newUsageView()})
	if f, err := next.r.Freshness("usage"); err != nil || len(rec.Ignored) != 2 || f.Applied.Seq != 0 {
		t.Errorf("%v, %v, %v", f, rec.Ignored, err)
	}
}

// Proves G14, G6: a checkpoint of the former view that was on its way is not written
// after the new one's.
func TestRebuildOvertakesCheckpoint(t *testing.T) {
	var q queue
	sim := fsio.NewSim(1)
	opts := on(sim)
	opts.Spawn = q.spawn
	w := newWorld(t, journal.NewMemory(), opts)
	w.damage()
	w.commit(20)
	if q.len() == 0 {
		t.Fatal("no checkpoint is on its way")
	}
	if err := w.r.Rebuild(t.Context(), "catalogue"); err != nil {
		t.Fatal(err)
	}
	q.drain()
	if rep, err := w.r.Check(t.Context()); err != nil || !rep.OK() || len(rep.Checkpoints) != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// Proves G16: short runs that each do little get a checkpoint all the same: what was
// replayed counts.
func TestPolicyOverRestarts(t *testing.T) {
	sim, j := fsio.NewSim(1), journal.NewMemory()
	opts := on(sim)
	opts.Policy.Events = 50
	for range 30 {
		w := idleWorld(t, j, opts)
		if rec := w.recover(); rec.Replayed > 60 {
			t.Fatalf("%d events replayed", rec.Replayed)
		}
		w.r.Start()
		w.commit(1)
		w.r.Close()
	}
}

// Proves G6: what is written of a checkpoint is what is read, and no two files with
// other contents are the same.
func TestCheckpointFormat(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		view := rapid.StringMatching(`[a-z0-9-]{1,64}`).Draw(t, "view")
		version := rapid.Uint32().Draw(t, "version")
		pos := journal.Position{Seq: rapid.Uint64().Draw(t, "seq")}
		copy(pos.Digest[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "digest"))
		blocks := rapid.SliceOf(rapid.SliceOfN(rapid.Byte(), 1, 100)).Draw(t, "blocks")
		var b bytes.Buffer
		if err := projection.EncodeCheckpoint(&b, view, version, pos, blocks); err != nil {
			t.Fatal(err)
		}
		gotView, gotVersion, gotPos, gotBlocks, err := projection.DecodeCheckpoint(bytes.NewReader(b.Bytes()), int64(b.Len()))
		if err != nil || gotView != view || gotVersion != version || gotPos != pos || !slices.EqualFunc(gotBlocks, blocks, bytes.Equal) {
			t.Fatalf("%q %d %v %v: %v", gotView, gotVersion, gotPos, gotBlocks, err)
		}
		if len(blocks) > 0 {
			// The same blocks at another position are another checkpoint's.
			pos.Seq++
			var other bytes.Buffer
			if err := projection.EncodeCheckpoint(&other, view, version, pos, blocks); err != nil {
				t.Fatal(err)
			}
			s := append(bytes.Clone(other.Bytes()[:projection.CheckpointHeaderSize]), b.Bytes()[projection.CheckpointHeaderSize:]...)
			if _, _, _, _, err := projection.DecodeCheckpoint(bytes.NewReader(s), int64(len(s))); !errors.Is(err, projection.ErrDamagedCheckpoint) {
				t.Fatalf("another's blocks: %v", err)
			}
		}
		if len(blocks) > 1 && !bytes.Equal(blocks[0], blocks[1]) && len(blocks[0]) == len(blocks[1]) {
			// Blocks that changed places are damage, though each is whole.
			at, size := projection.CheckpointHeaderSize, 16+len(blocks[0])
			s := bytes.Clone(b.Bytes())
			copy(s[at:], b.Bytes()[at+size:at+2*size])
			copy(s[at+size:], b.Bytes()[at:at+size])
			if _, _, _, _, err := projection.DecodeCheckpoint(bytes.NewReader(s), int64(len(s))); !errors.Is(err, projection.ErrDamagedCheckpoint) {
				t.Fatalf("swapped blocks: %v", err)
			}
		}
	})
	for _, block := range [][]byte{{}, make([]byte, 4<<20+1)} {
		if err := projection.EncodeCheckpoint(io.Discard, "v", 1, journal.Position{Seq: 1}, [][]byte{block}); err == nil {
			t.Errorf("a block of %d bytes", len(block))
		}
	}
}

// FuzzCheckpoint: whatever the bytes, reading ends, holds no more than there is, and
// what it accepts is what writing the same would give.
// Proves G6, S1 (checkpoints).
func FuzzCheckpoint(f *testing.F) {
	var b bytes.Buffer
	if err := projection.EncodeCheckpoint(&b, "catalogue", 1, journal.Position{Seq: 7}, [][]byte{[]byte("a"), []byte("bc")}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:projection.CheckpointHeaderSize])
	f.Add(append(b.Bytes()[:projection.CheckpointHeaderSize:projection.CheckpointHeaderSize], 0xff, 0xff, 0x3f, 0))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		view, version, pos, blocks, err := projection.DecodeCheckpoint(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := projection.EncodeCheckpoint(&again, view, version, pos, blocks); err != nil || !bytes.Equal(again.Bytes(), b) {
			t.Fatalf("accepted, and written otherwise: %v", err)
		}
	})
}

// failing is a Saver whose save fails or panics.
type failing struct {
	*usageView
	save func(emit func([]byte) error) error
}

func (f *failing) Freeze() (journal.Position, func(func([]byte) error) error) {
	if f.save == nil {
		panic("planted")
	}
	return f.pos, f.save
}

func (f *failing) Fresh() (projection.View, error) {
	return &failing{newUsageView(), f.save}, nil
}

// Proves C11, G13: a view whose checkpoint cannot be made is fed all the same, and no
// file is left.
func TestSaveFails(t *testing.T) {
	for what, save := range map[string]func(emit func([]byte) error) error{
		"Freeze panics": nil,
		"save fails":    func(func([]byte) error) error { return errPlanted },
		"save panics":   func(func([]byte) error) error { panic(errPlanted) },
		"too long":      func(emit func([]byte) error) error { return emit(make([]byte, 5<<20)) },
		"empty":         func(emit func([]byte) error) error { return emit(nil) },
	} {
		sim := fsio.NewSim(1)
		w := newWorld(t, journal.NewMemory(), on(sim), &failing{newUsageView(), save})
		w.commit(30)
		if f, err := w.r.Freshness("usage"); err != nil || f.State != projection.Live || f.Lag != 0 {
			t.Errorf("%s: %v, %v", what, f, err)
		}
		for _, name := range namesIn(t, sim, checkpoints) {
			if !strings.HasPrefix(name, "catalogue-") {
				t.Errorf("%s: %s", what, name)
			}
		}
		if s := w.r.Stats(); s.CheckpointsFailed == 0 {
			t.Errorf("%s: %+v", what, s)
		}
		if err := w.r.Checkpoint(t.Context()); err == nil {
			t.Errorf("%s: Checkpoint says nothing", what)
		}
	}
}

// Proves G15: at every retained position CatalogueAt gives what a replay to it gives,
// with checkpoints, without, and with a base; below the horizon it says so.
func TestCatalogueAt(t *testing.T) {
	for _, what := range []string{"checkpoints", "no checkpoints", "compacted"} {
		t.Run(what, func(t *testing.T) {
			j, sim := &compacting{Journal: journal.NewMemory()}, fsio.NewSim(1)
			opts := on(sim)
			opts.Retention.Bytes = -1
			if what == "no checkpoints" {
				opts.Dir = ""
			}
			if what == "compacted" {
				opts.Retention = projection.Retention{Bytes: 1, Events: 30}
			}
			w := newWorld(t, j, opts)
			w.commit(50)
			horizon := j.Horizon()
			if (horizon.Seq > 0) != (what == "compacted") {
				t.Fatalf("the horizon is at %v", horizon)
			}
			for n := range 50 + 1 {
				var begin uint64
				if n > 0 {
					begin = w.end(n-1) + 1
				}
				for seq := begin; seq <= w.end(n); seq++ {
					s, err := w.r.CatalogueAt(t.Context(), seq)
					if seq < horizon.Seq {
						if !errors.Is(err, journal.ErrCompacted) {
							t.Errorf("event %d, the horizon is %v: %v", seq, horizon, err)
						}
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					if s.Position().Seq != w.end(n) || s.Digest() != digestAt(t, n) {
						t.Fatalf("the catalogue at event %d is at %v", seq, s.Position())
					}
				}
			}
			if _, err := w.r.CatalogueAt(t.Context(), w.end(50)+1); !errors.Is(err, journal.ErrFuturePosition) {
				t.Error(err)
			}
		})
	}
}

// Proves I4, G6, C10 (checkpoint): Check finds a live catalogue that is not what the
// journal comes to and names the keys; a wrong checkpoint; a damaged one.
func TestCheck(t *testing.T) {
	sim := fsio.NewSim(1)
	w := newWorld(t, journal.NewMemory(), on(sim), newUsageView())
	w.commit(40)
	rep, err := w.r.Check(t.Context())
	if err != nil || !rep.OK() || rep.Position != w.j.Head() || rep.Shards == 0 || len(rep.Checkpoints) != 4 {
		t.Fatalf("%+v, %v", rep, err)
	}
	wrong := w.damage()
	rep, err = w.r.Check(t.Context())
	if err != nil || rep.OK() || len(rep.Differences) != 1 || rep.Differences[0].Key != wrong ||
		!strings.Contains(rep.Differences[0].String(), "wrong") {
		t.Fatalf("%+v, %v", rep, err)
	}
	if err := w.r.Rebuild(t.Context(), "catalogue"); err != nil {
		t.Fatal(err)
	}
	// A checkpoint that is whole, of this position, and lies.
	liar := projection.NewCatalogue()
	if err := projectiontest.Journal(t, w.history[:10]).Replay(0, liar.Apply); err != nil {
		t.Fatal(err)
	}
	_, save := liar.Freeze()
	var blocks [][]byte
	if err := save(func(b []byte) error { blocks = append(blocks, bytes.Clone(b)); return nil }); err != nil {
		t.Fatal(err)
	}
	pos, err := projection.PositionAt(w.j, w.end(20))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := projection.EncodeCheckpoint(&b, "catalogue", liar.Version(), pos, blocks); err != nil {
		t.Fatal(err)
	}
	lie := projection.CheckpointName("catalogue", pos.Seq)
	writeFile(t, sim, filepath.Join(checkpoints, lie), b.Bytes())
	rotten := namesIn(t, sim, checkpoints)[2]
	if err := sim.FlipBit(filepath.Join(checkpoints, rotten), 8*150); err != nil {
		t.Fatal(err)
	}
	rep, err = w.r.Check(t.Context())
	if err != nil || rep.OK() || len(rep.Differences) != 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	for _, k := range rep.Checkpoints {
		if bad := k.File == lie || k.File == rotten; (k.Err != nil) != bad {
			t.Errorf("%s: %v", k.File, k.Err)
		}
	}
}

// TestCheckBounded lists 100 differences and counts the rest.
func TestCheckBounded(t *testing.T) {
	w := idleWorld(t, journal.NewMemory(), projection.Options{})
	w.recover()
	const n = 250
	events := make([]shard.Event, n)
	for i := range events {
		events[i] = shard.Event{
			Seq: uint64(i + 1), Gen: uint64(i + 1), Kind: shard.EventRegistered,
			Key: shard.KeyFromString(fmt.Sprint(i)), State: shard.State{Life: shard.Registered},
		}
	}
	end, err := w.j.Append(events)
	if err != nil {
		t.Fatal(err)
	}
	wrong := slices.Clone(events)
	for i := range wrong {
		wrong[i].Key = shard.KeyFromString(fmt.Sprint("wrong-", i))
	}
	if err := w.cat.Apply(&journal.Batch{Events: wrong, End: end}); err != nil {
		t.Fatal(err)
	}
	rep, err := w.r.Check(t.Context())
	if err != nil || rep.OK() || len(rep.Differences) != 100 || rep.Omitted != 2*n-100 {
		t.Errorf("%d differences and %d more: %v", len(rep.Differences), rep.Omitted, err)
	}
}
