package toplevel

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/multiformats/go-multihash"
	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/shard"
)

// hash returns multihash i of a sequence, in b.
func hash(i uint64, b []byte) multihash.Multihash {
	b = append(b[:0], multihash.SHA2_256, 32)
	p := rand.NewPCG(i, 99)
	for range 4 {
		b = binary.LittleEndian.AppendUint64(b, p.Uint64())
	}
	return b
}

// span is the multihashes from one number up to another.
type span struct{ from, to uint64 }

func (s span) ForEach(visit func(multihash.Multihash) error) error {
	b := make([]byte, 0, 34)
	for i := s.from; i < s.to; i++ {
		if err := visit(hash(i, b)); err != nil {
			return err
		}
	}
	return nil
}

// among is some multihashes.
type among []uint64

func (a among) ForEach(visit func(multihash.Multihash) error) error {
	for _, i := range a {
		if err := visit(hash(i, nil)); err != nil {
			return err
		}
	}
	return nil
}

func ingestNo(n int) Ingest {
	return Ingest{Key: shard.KeyFromString(fmt.Sprintf("shard/%d", n)), Gen: uint64(n) + 1, Tag: uint64(n) * 7}
}

// gens returns the generations that a lookup finds, sorted, each once.
func gens(t testing.TB, x *Index, i uint64) []uint64 {
	t.Helper()
	var out []uint64
	err := x.Lookup(hash(i, nil), func(in Ingest) bool {
		if want := ingestNo(int(in.Gen) - 1); in.Key.String() != want.Key.String() || in.Tag != want.Tag {
			t.Errorf("found %v, want %v", in, want)
		}
		out = append(out, in.Gen)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// model is what an index should hold.
type model struct {
	sync.Mutex
	live map[uint64][]uint64 // generation: multihashes
	dead map[uint64]bool
}

func (m *model) alive(in Ingest) bool {
	m.Lock()
	defer m.Unlock()
	return !m.dead[in.Gen]
}

func (m *model) want(i uint64) []uint64 {
	m.Lock()
	defer m.Unlock()
	var out []uint64
	for g, hs := range m.live {
		if slices.Contains(hs, i) {
			out = append(out, g)
		}
	}
	slices.Sort(out)
	return out
}

// TestAgainstAMap holds an index to a plain map: the same answers after every add,
// flush, merge, removal, rebuild and restart. Proves G7, G14, I8 (the index by itself).
func TestAgainstAMap(t *testing.T) {
	const hashes = 60
	rapid.Check(t, func(t *rapid.T) {
		disk := fsio.NewSim(1, fsio.TraceLimit(0))
		m := &model{live: make(map[uint64][]uint64), dead: make(map[uint64]bool)}
		mark := uint64(0)
		hooks := Hooks{Alive: m.alive, Mark: func() []byte { return binary.BigEndian.AppendUint64(nil, mark) }}
		opts := Options{
			Memory: rapid.SampledFrom([]int64{200, 3000, 1 << 20}).Draw(t, "memory"), FanIn: rapid.SampledFrom([]int{2, 4}).Draw(t, "fan-in"),
			MergeShare: 1, Spawn: func(f func()) { f() },
		}
		x := must(OpenOn(disk, "/top", opts, hooks))
		x.Start()
		next := 0
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				in := ingestNo(next)
				next++
				hs := rapid.SliceOfN(rapid.Uint64Range(0, hashes-1), 0, 40).Draw(t, "multihashes")
				if err := x.Add(context.Background(), in, among(hs)); err != nil {
					t.Fatal(err)
				}
				m.live[in.Gen] = hs
				mark = in.Gen
			},
			"add again": func(t *rapid.T) {
				for g, hs := range m.live {
					if err := x.Add(context.Background(), ingestNo(int(g)-1), among(hs)); err != nil {
						t.Fatal(err)
					}
					return
				}
			},
			"remove": func(t *rapid.T) {
				for g := range m.live {
					delete(m.live, g)
					m.dead[g] = true
					x.Died()
					return
				}
			},
			"flush": func(t *rapid.T) {
				if err := x.Flush(hooks.Mark()); err != nil {
					t.Fatal(err)
				}
			},
			"count the dead": func(*rapid.T) { x.census() },
			"restart": func(t *rapid.T) {
				if err := x.Close(); err != nil {
					t.Fatal(err)
				}
				if err := x.Lookup(hash(0, nil), nil); !errors.Is(err, ErrClosed) {
					t.Fatalf("lookup after Close: %v", err)
				}
				x = must(OpenOn(disk, "/top", opts, hooks))
				x.Start()
				if next > 0 && !bytes.Equal(x.Mark(), hooks.Mark()) {
					t.Fatalf("mark %x after a restart, want %x", x.Mark(), hooks.Mark())
				}
			},
			"rebuild": func(t *rapid.T) {
				f := must(x.Fresh(hooks))
				for g, hs := range m.live {
					if err := f.Add(context.Background(), ingestNo(int(g)-1), among(hs)); err != nil {
						t.Fatal(err)
					}
				}
				if err := f.Adopt(x, hooks.Mark()); err != nil {
					t.Fatal(err)
				}
				if err := x.Add(context.Background(), ingestNo(next), among{1}); !errors.Is(err, ErrClosed) {
					t.Fatalf("add to an index that was replaced: %v", err)
				}
				x = f
			},
			"": func(t *rapid.T) {
				for i := range uint64(hashes) {
					var got []uint64
					err := x.Lookup(hash(i, nil), func(in Ingest) bool {
						if m.alive(in) {
							got = append(got, in.Gen)
						}
						return true
					})
					slices.Sort(got)
					if got = slices.Compact(got); err != nil || !slices.Equal(got, m.want(i)) {
						t.Fatalf("multihash %d: %v, %v, want %v", i, got, err, m.want(i))
					}
				}
				held := make(map[uint64]bool)
				if err := x.Ingests(func(in Ingest, whole bool) bool { held[in.Gen] = held[in.Gen] || whole; return true }); err != nil {
					t.Fatal(err)
				}
				for g, hs := range m.live {
					if len(hs) > 0 && !held[g] {
						t.Fatalf("ingest %d is not said to be there", g)
					}
				}
				if err := x.Verify(context.Background()); err != nil {
					t.Fatal(err)
				}
				entries, _ := disk.ReadDir("/top")
				if st := x.Stats(); len(entries) > st.Runs+1 {
					t.Fatalf("%d files for %d runs", len(entries), st.Runs)
				}
			},
		})
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		if n := disk.OpenFiles(); n != 0 {
			t.Fatalf("%d files are open", n)
		}
	})
}

// script is what the fault test does. It returns the generation that was flushed last,
// and which were added.
func script(x *Index, mark *atomic.Uint64) (flushed uint64, added map[uint64]bool) {
	added = make(map[uint64]bool)
	for n := range 9 {
		in := ingestNo(n)
		if x.Add(context.Background(), in, span{uint64(n) * 20, uint64(n)*20 + 30}) != nil {
			continue
		}
		added[in.Gen] = true
		mark.Store(in.Gen)
		if n%2 == 0 && x.Flush(binary.BigEndian.AppendUint64(nil, in.Gen)) == nil {
			flushed = in.Gen
		}
	}
	if x.Close() == nil {
		flushed = mark.Load()
	}
	return flushed, added
}

// TestFaultAtEveryOperation has every operation of the disk fail in every way. What a
// start finds is whole up to its mark, which is no older than the last flush that was
// reported, and the index can be gone on with. Proves C5, C6, C11 (the top-level
// index), G7.
func TestFaultAtEveryOperation(t *testing.T) {
	points := 0
	opts := Options{Memory: 3000, FanIn: 2, MergeShare: 1, Spawn: func(f func()) { f() }}
	for _, fault := range fsio.Faults() {
		for seed := uint64(1); seed <= 3; seed++ {
			for at := uint64(0); ; at++ {
				disk := fsio.NewSim(seed, fsio.TraceLimit(0), fsio.ReorderRenames())
				var mark atomic.Uint64
				hooks := Hooks{Mark: func() []byte { return binary.BigEndian.AppendUint64(nil, mark.Load()) }}
				if err := disk.MkdirAll("/top", 0o700); err != nil {
					t.Fatal(err)
				}
				began := disk.NumOps()
				disk.FailAt(began+at, fault)
				flushed, added := uint64(0), map[uint64]bool(nil)
				if x, err := OpenOn(disk, "/top", opts, hooks); err == nil {
					x.Start()
					flushed, added = script(x, &mark)
				}
				if disk.NumOps() <= began+at {
					break // it ended before
				}
				if seed == 1 {
					points++
				}
				disk = disk.Crash()
				what := fmt.Sprintf("%v at operation %d, seed %d", fault, at, seed)
				x, err := OpenOn(disk, "/top", opts, hooks)
				if err != nil {
					t.Fatalf("%s: open: %v", what, err)
				}
				x.Start()
				got := uint64(0)
				if m := x.Mark(); len(m) == 8 {
					got = binary.BigEndian.Uint64(m)
				}
				if got < flushed {
					t.Fatalf("%s: the mark is %d, %d was flushed", what, got, flushed)
				}
				for n := range int(got) {
					if !added[uint64(n)+1] {
						continue // Add failed, and said so
					}
					for i := uint64(n) * 20; i < uint64(n)*20+30; i++ {
						if !slices.Contains(gens(t, x, i), uint64(n)+1) {
							t.Fatalf("%s: mark %d, and multihash %d of ingest %d is gone", what, got, i, n)
						}
					}
				}
				mark.Store(0)
				if last, _ := script(x, &mark); last != 9 {
					t.Fatalf("%s: the index cannot be gone on with: %v", what, x.Stats().Failed)
				}
				x = must(OpenOn(disk, "/top", opts, hooks))
				for n := range 9 {
					for i := uint64(n) * 20; i < uint64(n)*20+30; i++ {
						if !slices.Contains(gens(t, x, i), uint64(n)+1) {
							t.Fatalf("%s: afterwards, multihash %d of ingest %d is gone", what, i, n)
						}
					}
				}
				if err := x.Verify(t.Context()); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if entries, _ := disk.ReadDir("/top"); len(entries) != x.Stats().Runs+1 {
					t.Fatalf("%s: %d files for %d runs", what, len(entries), x.Stats().Runs)
				}
			}
		}
	}
	fsiotest.Report(t, "toplevel.TestFaultAtEveryOperation", points, false)
}

// TestDamage flips bits and cuts off ends: never does a lookup say "not found" for what
// is there. It is an error, or the run is left out at the start and the mark is empty.
// Proves C10 (the top-level index), F20.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	hooks := Hooks{Mark: func() []byte { return []byte("mark") }}
	x := must(Open(dir, Options{}, hooks))
	const entries = 3000
	for n := range 3 {
		if err := x.Add(t.Context(), ingestNo(n), span{uint64(n) * 1000, uint64(n+1) * 1000}); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(5, 6))
	look := func(what string) {
		t.Helper()
		told := 0
		h := hooks
		h.Damaged = func(error) { told++ }
		x, err := Open(dir, Options{}, h)
		if err != nil {
			t.Fatalf("%s: open: %v", what, err)
		}
		x.Start()
		failed := 0
		for range 400 {
			i := rng.Uint64N(entries)
			found := false
			err := x.Lookup(hash(i, nil), func(in Ingest) bool { found = found || in == ingestNo(int(i/1000)); return true })
			var damaged *DamagedError
			switch {
			case err != nil && !errors.As(err, &damaged):
				t.Fatalf("%s: lookup: %v", what, err)
			case err != nil:
				failed++
			case !found && len(x.Mark()) > 0:
				t.Fatalf("%s: multihash %d is not found", what, i)
			}
		}
		if failed > 0 && told != failed {
			t.Errorf("%s: %d lookups failed, %d were told", what, failed, told)
		}
		x.cancel() // not closed: nothing is to be written
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	runs := 0
	for _, e := range files {
		name := filepath.Join(dir, e.Name())
		good := must(os.ReadFile(name))
		keep := filepath.Join(t.TempDir(), "good")
		for i := range 120 {
			if err := os.Rename(name, keep); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			bad := bytes.Clone(good)
			what := ""
			if i%8 == 0 {
				bad = bad[:rng.IntN(len(bad))]
				what = fmt.Sprintf("%s cut off at %d", e.Name(), len(bad))
			} else {
				at := rng.IntN(len(bad))
				if i%3 == 0 {
					at = len(bad) - 1 - rng.IntN(min(len(bad), 400))
				}
				bad[at] ^= 1 << rng.IntN(8)
				what = fmt.Sprintf("%s flipped at %d of %d", e.Name(), at, len(bad))
			}
			// Another file, for the mapping of the former one lives on.
			if err := os.WriteFile(name, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			// The manifest's damage has the start sweep the runs.
			saved := map[string][]byte{}
			for _, f := range files {
				if f.Name() != e.Name() {
					saved[f.Name()] = must(os.ReadFile(filepath.Join(dir, f.Name())))
				}
			}
			look(what)
			runs++
			for n, b := range saved {
				if err := fsio.WriteFileAtomic(fsio.OS(), filepath.Join(dir, n), 0o600, func(f fsio.File) error { _, err := f.Write(b); return err }); err != nil {
					t.Fatal(err)
				}
			}
		}
		os.Remove(name)
		if err := os.WriteFile(name, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	look("nothing") // and everything is found again
	if x := must(Open(dir, Options{}, hooks)); string(x.Mark()) != "mark" {
		t.Errorf("mark %q", x.Mark())
	}
}

// TestEveryByteOfARun flips a bit of every byte of a run in turn. What the run has is
// found as it was, or the lookup or the opening is an error that says where. Proves
// C10, F20 (runs of the top-level index).
func TestEveryByteOfARun(t *testing.T) {
	const entries = 150
	dir := t.TempDir()
	x := must(Open(dir, Options{}, Hooks{}))
	if err := errors.Join(x.Add(t.Context(), ingestNo(0), span{0, entries}), x.Flush(nil)); err != nil {
		t.Fatal(err)
	}
	good := x.state.Load().disk[0]
	if good.parts[0].segment == 0 {
		t.Fatal("the run has no filter")
	}
	whole := must(os.ReadFile(good.name))
	for at := range whole {
		bad := bytes.Clone(whole)
		bad[at] ^= 1 << (at % 8)
		r := &diskRun{name: "flipped", data: bad}
		var damaged *DamagedError
		if err := r.open(x.id, &good.footer.crc); err != nil {
			if !errors.As(err, &damaged) && !errors.Is(err, ErrNewerFormat) {
				t.Fatalf("byte %d: open: %v", at, err)
			}
			continue
		}
		failed := 0
		st := &state{diskSet: &diskSet{disk: []*diskRun{r}}}
		for i := range uint64(entries) {
			found := false
			err := st.lookup(x.key.of(hash(i, nil)), 0, new(scratch), func(in Ingest) bool { found = found || in == ingestNo(0); return true })
			switch {
			case errors.As(err, &damaged):
				failed++
			case err != nil || !found:
				t.Fatalf("byte %d of %d: multihash %d: %v, %v", at, len(bad), i, found, err)
			}
		}
		if failed == 0 {
			t.Errorf("byte %d of %d: nobody noticed", at, len(bad))
		}
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLostRun: whatever run is lost, and whatever was merged, an ingest that is said to
// be whole is. A large shard lies in several runs. Proves C10, F20 (what a start takes
// to be there).
func TestLostRun(t *testing.T) {
	for lost := 0; ; lost++ {
		disk := fsio.NewSim(1, fsio.TraceLimit(0))
		opts := Options{Memory: 16 << 10, FanIn: 64, MergeShare: 1, RestAfter: -1}
		x := must(OpenOn(disk, "/top", opts, Hooks{}))
		x.Start()
		const large, small = 3000, 50
		if err := errors.Join(
			x.Add(t.Context(), ingestNo(0), span{0, large}),
			x.Flush(nil),
			x.Add(t.Context(), ingestNo(1), span{large, large + small}),
			x.Close()); err != nil {
			t.Fatal(err)
		}
		files := slices.DeleteFunc(must(disk.ReadDir("/top")), func(e os.DirEntry) bool { return e.Name() == manifestName })
		if lost == len(files) {
			if lost < 4 {
				t.Fatalf("%d runs; the large shard is to lie in several", lost)
			}
			return
		}
		if err := disk.Remove(filepath.Join("/top", files[lost].Name())); err != nil {
			t.Fatal(err)
		}
		x = must(OpenOn(disk, "/top", opts, Hooks{}))
		whole := make(map[uint64]bool)
		if err := x.Ingests(func(in Ingest, w bool) bool { whole[in.Gen] = whole[in.Gen] || w; return true }); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(large + small) {
			gen := uint64(1)
			if i >= large {
				gen = 2
			}
			if whole[gen] && !slices.Contains(gens(t, x, i), gen) {
				t.Fatalf("without run %d, ingest %d is said to be whole and lacks multihash %d", lost, gen, i)
			}
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestShrinks: a run that is cut off under its mapping is an error and not the end of
// the process. Proves F16 (the top-level index).
func TestShrinks(t *testing.T) {
	dir := t.TempDir()
	x := must(Open(dir, Options{}, Hooks{}))
	if err := errors.Join(x.Add(t.Context(), ingestNo(0), span{0, 200_000}), x.Flush(nil)); err != nil {
		t.Fatal(err)
	}
	run := x.state.Load().disk[0]
	if err := os.Truncate(run.name, 8192); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for i := range uint64(100) {
		var damaged *DamagedError
		if err := x.Lookup(hash(i, nil), func(Ingest) bool { return true }); errors.As(err, &damaged) {
			failed++
		}
	}
	if failed == 0 {
		t.Error("lookups in a file that was cut off do not fail")
	}
}

// TestNewerFormat: what a newer release wrote is refused and left alone. Proves C13 (the
// top-level index).
func TestNewerFormat(t *testing.T) {
	for _, pattern := range []string{manifestName, "*" + runSuffix} {
		dir := t.TempDir()
		x := must(Open(dir, Options{}, Hooks{}))
		if err := errors.Join(x.Add(t.Context(), ingestNo(0), span{0, 100}), x.Close()); err != nil {
			t.Fatal(err)
		}
		name := must(filepath.Glob(filepath.Join(dir, pattern)))[0]
		b := must(os.ReadFile(name))
		b[8]++
		reseal(b)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		before := must(os.ReadDir(dir))
		if _, err := Open(dir, Options{}, Hooks{}); !errors.Is(err, ErrNewerFormat) {
			t.Errorf("%s: %v", pattern, err)
		}
		if after := must(os.ReadDir(dir)); len(after) != len(before) {
			t.Errorf("%s: files %v, then %v", pattern, before, after)
		}
	}
}

// TestForeignFilesStay: what the index did not make stays. Proves F18, I14 (the
// top-level index).
func TestForeignFilesStay(t *testing.T) {
	dir := t.TempDir()
	names := []string{"notes.txt", "0.run", "00000001-zzzzzzzzzzzzzzzz.run", "x.tmp-00000000", "MANIFEST.old"}
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ours := filepath.Join(dir, runName(3, 9))
	if err := os.WriteFile(ours, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := must(Open(dir, Options{}, Hooks{})).Close(); err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if _, err := os.Stat(filepath.Join(dir, n)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(ours); err == nil {
		t.Error("a run that no manifest names stays")
	}
}

// TestMemoryIsBounded: one shard of many blocks takes no more memory than is allowed,
// and a disk that cannot be written makes adds fail and nothing else. Proves I15, C11
// (the memory of the top-level index).
func TestMemoryIsBounded(t *testing.T) {
	disk := fsio.NewSim(1, fsio.TraceLimit(0))
	const memory = 64 << 10
	x := must(OpenOn(disk, "/top", Options{Memory: memory, MergeShare: 1}, Hooks{}))
	x.Start()
	peak := int64(0)
	it := visits{span{0, 100_000}, func() { peak = max(peak, x.memory()) }}
	if err := x.Add(t.Context(), ingestNo(0), it); err != nil {
		t.Fatal(err)
	}
	if peak > memory {
		t.Errorf("entries took %d bytes of memory, allowed are %d", peak, memory)
	}
	if err := x.Flush(nil); err != nil {
		t.Fatal(err)
	}
	x.Settle()
	disk.OnOp(func(op fsio.Op) error {
		if op.Kind.Mutates() {
			return fsio.FaultENOSPC
		}
		return nil
	})
	var err error
	n := 1
	for ; n < 1000 && err == nil; n++ {
		err = x.Add(t.Context(), ingestNo(n), span{100_000 + uint64(n)*100, 100_100 + uint64(n)*100})
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("adding to a full disk: %v", err)
	}
	if got := x.memory(); got > 3*memory {
		t.Errorf("%d bytes of memory, allowed are %d", got, memory)
	}
	for i := uint64(0); i < 100_000; i += 500 {
		if got := gens(t, x, i); len(got) != 1 {
			t.Fatalf("multihash %d: %v", i, got)
		}
	}
	disk.OnOp(nil)
	if err := x.Add(t.Context(), ingestNo(n), span{0, 10}); err != nil {
		t.Errorf("when there is room again: %v", err)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

// visits calls a function now and then.
type visits struct {
	span
	each func()
}

func (v visits) ForEach(visit func(multihash.Multihash) error) error {
	n := 0
	return v.span.ForEach(func(mh multihash.Multihash) error {
		if n++; n%256 == 0 {
			v.each()
		}
		return visit(mh)
	})
}

// TestLookupsBesideMerges: what was added is found at every moment, whatever is
// flushed, merged and replaced meanwhile. Proves I8, G14 (lookups beside merges).
func TestLookupsBesideMerges(t *testing.T) {
	x := must(Open(t.TempDir(), Options{Memory: 256 << 10, FanIn: 2, MergeShare: 1}, Hooks{}))
	x.Start()
	var current atomic.Pointer[Index]
	current.Store(x)
	var added atomic.Int64
	const shards, per = 60, 2000
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := added.Load()
				if n == 0 {
					continue
				}
				i := rng.Uint64N(uint64(n) * per)
				if got := gens(t, current.Load(), i); !slices.Equal(got, []uint64{i/per + 1}) {
					t.Errorf("multihash %d of %d: %v", i, n*per, got)
					return
				}
			}
		})
	}
	for n := range shards {
		if err := current.Load().Add(t.Context(), ingestNo(n), span{uint64(n) * per, uint64(n+1) * per}); err != nil {
			t.Fatal(err)
		}
		added.Store(int64(n + 1))
		if n == shards/2 {
			f := must(x.Fresh(Hooks{}))
			for i := range n + 1 {
				if err := f.Add(t.Context(), ingestNo(i), span{uint64(i) * per, uint64(i+1) * per}); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Adopt(x, nil); err != nil {
				t.Fatal(err)
			}
			current.Store(f)
		}
	}
	current.Load().Settle()
	close(stop)
	wg.Wait()
	if st := current.Load().Stats(); st.Merges == 0 || st.Runs == 0 {
		t.Errorf("nothing was merged: %+v", st)
	}
	if err := errors.Join(current.Load().Verify(t.Context()), current.Load().Close()); err != nil {
		t.Error(err)
	}
}

// TestDeadEntriesGo: what is dead takes no part in merges, and when most of a run is, it
// is merged for that. Proves F10 (entries of destroyed shards give back their space).
func TestDeadEntriesGo(t *testing.T) {
	var dead atomic.Uint64 // all generations up to it
	x := must(Open(t.TempDir(), Options{MergeShare: 1}, Hooks{Alive: func(in Ingest) bool { return in.Gen > dead.Load() }}))
	x.Start()
	for n := range 100 {
		if err := x.Add(t.Context(), ingestNo(n), span{uint64(n) * 50, uint64(n)*50 + 50}); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Flush(nil); err != nil {
		t.Fatal(err)
	}
	dead.Store(70)
	for range 70 {
		x.Died()
	}
	for x.Stats().Merges == 0 && !t.Failed() {
		x.Settle()
	}
	if st := x.Stats(); st.Entries != 30*50 || st.Runs != 1 {
		t.Errorf("%+v", st)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

// TestRest: an index that nothing is added to comes by itself to few runs, of which each is
// more than four times as large as all smaller ones; and pauses between additions do not
// have it written over and over.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := must(OpenOn(fsio.NewSim(1, fsio.TraceLimit(0)), "/top", Options{FanIn: 16, RestAfter: time.Minute}, Hooks{}))
		x.Start()
		for n := range 10 {
			if err := errors.Join(x.Add(t.Context(), ingestNo(n), span{uint64(n) * 50, uint64(n)*50 + 50}), x.Flush(nil)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(30 * time.Second)
			synctest.Wait()
			if st := x.Stats(); st.Runs != n+1 {
				t.Fatalf("after flush %d: %+v", n, st)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if st := x.Stats(); st.Runs > 2 || st.Entries != 500 {
			t.Errorf("at rest: %+v", st)
		}
		for i := range uint64(500) {
			if got := gens(t, x, i); !slices.Equal(got, []uint64{i/50 + 1}) {
				t.Fatalf("multihash %d: %v", i, got)
			}
		}
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		var runs []RunSize
		for _, n := range rapid.SliceOfN(rapid.Uint64Range(1, 1000), 0, 20).Draw(t, "runs") {
			runs = append(runs, RunSize{Entries: n})
		}
		for pick := Rest(runs); pick != nil; pick = Rest(runs) {
			if len(pick) < 2 {
				t.Fatalf("%v of %v", pick, runs)
			}
			sum := uint64(0)
			for _, i := range slices.Backward(pick) {
				sum += runs[i].Entries
				runs = slices.Delete(runs, i, i+1)
			}
			runs = append(runs, RunSize{Entries: sum})
		}
		smaller := uint64(0)
		slices.SortFunc(runs, func(a, b RunSize) int { return cmp.Compare(a.Entries, b.Entries) })
		for i, r := range runs {
			if i > 0 && 4*smaller >= r.Entries {
				t.Fatalf("%v", runs)
			}
			smaller += r.Entries
		}
	})
	for _, c := range []struct {
		runs []uint64
		want []int
	}{
		{nil, nil},
		{[]uint64{7}, nil},
		{[]uint64{100, 24}, nil},
		{[]uint64{100, 25}, []int{0, 1}},
		{[]uint64{1000, 100, 20, 10}, []int{1, 2, 3}},
		{[]uint64{10, 100, 20, 400}, []int{0, 1, 2, 3}},
		{[]uint64{1000, 100, 20, 1}, nil},
	} {
		var runs []RunSize
		for _, n := range c.runs {
			runs = append(runs, RunSize{Entries: n})
		}
		if got := Rest(runs); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.runs, got, c.want)
		}
	}
	var runs []RunSize
	written, most := uint64(0), 0
	for range 10_000 {
		runs = append(runs, RunSize{Entries: 1})
		for pick := Rest(runs); pick != nil; pick = Rest(runs) {
			sum := uint64(0)
			for _, i := range slices.Backward(pick) {
				sum += runs[i].Entries
				runs = slices.Delete(runs, i, i+1)
			}
			runs = append(runs, RunSize{Entries: sum})
			written += sum
		}
		most = max(most, len(runs))
	}
	if written > 20*10_000 || most > 8 {
		t.Errorf("10,000 flushes with pauses: an entry is written %d times, %d runs", written/10_000, most)
	}
}

// TestPlan: fewer than fan-in runs are left in each tier, and what is merged is worth it.
func TestPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fanIn := rapid.SampledFrom([]int{2, 4, 8, 16}).Draw(t, "fan-in")
		var runs []RunSize
		for range rapid.IntRange(1, 300).Draw(t, "flushes") {
			runs = append(runs, RunSize{Entries: rapid.Uint64Range(1, 5000).Draw(t, "entries")})
			for {
				pick := Plan(runs, fanIn)
				if pick == nil {
					break
				}
				if len(pick) < fanIn {
					t.Fatalf("%d runs are merged for no reason", len(pick))
				}
				sum := uint64(0)
				for _, i := range slices.Backward(pick) {
					sum += runs[i].Entries
					runs = slices.Delete(runs, i, i+1)
				}
				runs = append(runs, RunSize{Entries: sum})
			}
			tiers := make(map[int]int)
			for _, r := range runs {
				if tiers[tier(r.Entries, fanIn)]++; tiers[tier(r.Entries, fanIn)] >= fanIn {
					t.Fatalf("runs %v", runs)
				}
			}
		}
	})
}
