package index_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/index/indextest"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/shard"
)

func newFSRepo(t *testing.T) *index.FSIndexRepo {
	r, err := index.NewFSRepo(filepath.Join(t.TempDir(), "index"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newSimRepo(t *testing.T) *index.FSIndexRepo {
	r, err := index.NewFSRepoOn(fsio.NewSim(1), "/index")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestFSRepo proves F10 and F12 for indices on files.
func TestFSRepo(t *testing.T) {
	indextest.FullIndexRepo(t, func(t *testing.T) index.FullIndexRepo { return newFSRepo(t) })
	indextest.LifeRepo(t, func(t *testing.T) index.LifeRepo { return newFSRepo(t) })
	indextest.Spiller(t, func(t *testing.T) index.LifeRepo { return newFSRepo(t) })
}

// TestSimRepo is TestFSRepo on the simulated disk.
func TestSimRepo(t *testing.T) {
	indextest.FullIndexRepo(t, func(t *testing.T) index.FullIndexRepo { return newSimRepo(t) })
	indextest.LifeRepo(t, func(t *testing.T) index.LifeRepo { return newSimRepo(t) })
	indextest.Spiller(t, func(t *testing.T) index.LifeRepo { return newSimRepo(t) })
}

func TestMemoryRepo(t *testing.T) {
	indextest.FullIndexRepo(t, func(t *testing.T) index.FullIndexRepo { return index.NewMemoryRepo() })
	indextest.LifeRepo(t, func(t *testing.T) index.LifeRepo { return index.NewMemoryRepo() })
}

func TestMemoryInverted(t *testing.T) {
	indextest.Inverted(t, func(t *testing.T) index.Inverted { return index.NewMemoryInverted() })
}

// TestDatastoreInverted proves F25: keys round-trip.
func TestDatastoreInverted(t *testing.T) {
	indextest.Inverted(t, func(t *testing.T) index.Inverted {
		return index.NewInverted(dssync.MutexWrap(ds.NewMapDatastore()))
	})
}

// TestRemoveMultihashes removes by iterator what RemoveShard would find by scanning.
func TestRemoveMultihashes(t *testing.T) {
	v := index.NewInverted(dssync.MutexWrap(ds.NewMapDatastore()))
	d := indextest.Draft(t, 1, 5000)
	a, b := shard.KeyFromString("a"), shard.KeyFromString("b")
	for _, k := range []shard.Key{a, b} {
		if err := v.AddMultihashesForShard(t.Context(), d.Multihashes(), k); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.RemoveMultihashesForShard(t.Context(), d.Multihashes(), a); err != nil {
		t.Fatal(err)
	}
	err := d.Multihashes().ForEach(func(mh multihash.Multihash) error {
		keys, err := v.GetShardsForMultihash(t.Context(), mh)
		if err != nil || len(keys) != 1 || keys[0] != b {
			return fmt.Errorf("%q, %w", keys, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// boundedBatches counts what each batch of a datastore takes.
type boundedBatches struct {
	ds.Batching
	largest, batches int
}

func (b *boundedBatches) Batch(ctx context.Context) (ds.Batch, error) {
	inner, err := b.Batching.Batch(ctx)
	b.batches++
	return &countedBatch{Batch: inner, of: b}, err
}

type countedBatch struct {
	ds.Batch
	of *boundedBatches
	n  int
}

func (c *countedBatch) Put(ctx context.Context, k ds.Key, v []byte) error {
	c.n++
	c.of.largest = max(c.of.largest, c.n)
	return c.Batch.Put(ctx, k, v)
}

// TestDatastoreBatchesAreBounded: a large shard is written in batches of some
// thousands, not in one.
func TestDatastoreBatchesAreBounded(t *testing.T) {
	b := &boundedBatches{Batching: dssync.MutexWrap(ds.NewMapDatastore())}
	v := index.NewInverted(b)
	if err := v.AddMultihashesForShard(t.Context(), indextest.Draft(t, 1, 10000).Multihashes(), shard.KeyFromString("k")); err != nil {
		t.Fatal(err)
	}
	if b.largest > 5000 || b.batches < 2 {
		t.Errorf("%d batches, %d entries in the largest", b.batches, b.largest)
	}
}

// TestFilesOfOthersStay: a sweep removes what the repository made and nothing else;
// files have mode 0600 and directories 0700. Proves F18, S8 for indices.
func TestFilesOfOthersStay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	r, err := index.NewFSRepo(dir)
	if err != nil {
		t.Fatal(err)
	}
	key := shard.KeyFromString("../k")
	if err := r.PutIndex(key, 5, indextest.Draft(t, 1, 10)); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	own := names[0].Name()
	foreign := []string{
		"notes.txt", "k.full.idx", ".version", "0000000000000005.idx", strings.ToUpper(own), own + ".bak", own + ".tmp",
		"x.idx.tmp-00000000", "f.idx", strings.Replace(own, "-", "_", 1), own[1:],
	}
	for _, name := range foreign {
		content := "mine"
		if name == ".version" {
			content = "1"
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, strings.Replace(own, "5-", "6-", 1)), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{own + ".tmp-00000000", own + ".tmp-0000000f"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("torn"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if runtime.GOOS != "windows" {
		for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, own): 0o600} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v", path, info.Mode(), err)
			}
		}
	}
	if removed, err := r.SweepIndexes(func(gen uint64) bool { return gen == 5 }); removed != 2 || err != nil {
		t.Errorf("the temps: %d, %v", removed, err)
	}
	if removed, err := r.SweepIndexes(func(uint64) bool { return false }); removed != 1 || err != nil {
		t.Errorf("the dead: %d, %v", removed, err)
	}
	if _, err := r.OpenIndex(key, 5); err != index.ErrNotFound {
		t.Errorf("%v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != len(foreign)+1 {
		t.Errorf("%d files are left, want %d: %v", len(left), len(foreign)+1, err)
	}
}

// TestPredecessorsFiles: <key>.full.idx files are read, listed and dropped, hidden
// by newer indices, and never written.
func TestPredecessorsFiles(t *testing.T) {
	dir := t.TempDir()
	idx := carindex.NewMultihashSorted()
	car := indextest.CAR(1, 30)
	built, err := index.Build(t.Context(), bytes.NewReader(car), int64(len(car)), index.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mem := index.NewMemoryRepo()
	if err := mem.PutIndex(shard.KeyFromString("k"), 1, built); err != nil {
		t.Fatal(err)
	}
	x, err := mem.GetFullIndex(shard.KeyFromString("k"))
	if err != nil {
		t.Fatal(err)
	}
	var raw bytes.Buffer
	if _, err := carindex.WriteTo(x, &raw); err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("old.full.idx", raw.Bytes())
	write("torn.full.idx", raw.Bytes()[:100])
	write(".version", []byte("1"))
	r, err := index.NewFSRepo(dir)
	if err != nil {
		t.Fatal(err)
	}
	old := shard.KeyFromString("old")
	got, err := r.GetFullIndex(old)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := got.(carindex.IterableIndex).ForEach(func(multihash.Multihash, uint64) error { n++; return nil }); err != nil || n != 30 {
		t.Errorf("%d, %v", n, err)
	}
	if stat, err := r.StatFullIndex(old); !stat.Exists || stat.Size != uint64(raw.Len()) || err != nil {
		t.Errorf("%v, %v", stat, err)
	}
	var damage *index.DamagedError
	if _, err := r.GetFullIndex(shard.KeyFromString("torn")); !errors.As(err, &damage) {
		t.Errorf("a torn file: %v", err)
	}
	var keys []string
	if err := r.ForEach(func(k shard.Key) (bool, error) { keys = append(keys, k.String()); return true, nil }); err != nil {
		t.Error(err)
	}
	slices.Sort(keys)
	if !slices.Equal(keys, []string{"old", "torn"}) {
		t.Errorf("%q", keys)
	}
	if err := r.AddFullIndex(old, got); err != nil {
		t.Fatal(err)
	}
	if got, err = r.GetFullIndex(old); err != nil {
		t.Fatal(err)
	}
	if _, ours := got.(*index.ShardIndex); !ours {
		t.Errorf("a %T", got)
	}
	if n, err := r.Len(); n != 2 || err != nil {
		t.Errorf("Len() = %d, %v", n, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "old.full.idx")); err != nil || !bytes.Equal(b, raw.Bytes()) {
		t.Errorf("the old file was changed: %v", err)
	}
	if dropped, err := r.DropFullIndex(old); !dropped || err != nil {
		t.Errorf("%v, %v", dropped, err)
	}
	if _, err := r.GetFullIndex(old); err != index.ErrNotFound {
		t.Errorf("%v", err)
	}
	if err := r.AddFullIndex(old, idx); err != nil {
		t.Errorf("an empty index: %v", err)
	}
	write(".version", []byte("2"))
	if _, err := index.NewFSRepo(dir); !errors.Is(err, index.ErrNewerFormat) {
		t.Errorf("another version: %v", err)
	}
}

// TestMisplacedFile: an index file under another shard's or generation's name is
// damage, not an answer. Proves F10, F20.
func TestMisplacedFile(t *testing.T) {
	dir := t.TempDir()
	r, err := index.NewFSRepo(dir)
	if err != nil {
		t.Fatal(err)
	}
	a, b := shard.KeyFromString("a"), shard.KeyFromString("b")
	file := func() string {
		names, err := filepath.Glob(filepath.Join(dir, "*.idx"))
		if err != nil || len(names) != 1 {
			t.Fatal(names, err)
		}
		return names[0]
	}
	if err := r.PutIndex(a, 1, indextest.Draft(t, 1, 10)); err != nil {
		t.Fatal(err)
	}
	ofA := file()
	moved := ofA + ".moved"
	if err := os.Rename(ofA, moved); err != nil {
		t.Fatal(err)
	}
	if err := r.PutIndex(b, 1, indextest.Draft(t, 2, 10)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(moved, file()); err != nil {
		t.Fatal(err)
	}
	var damage *index.DamagedError
	if _, err := r.OpenIndex(b, 1); !errors.As(err, &damage) {
		t.Errorf("%v", err)
	}
	// ForEach reports a damaged file after it has visited the sound ones.
	if err := os.WriteFile(file(), []byte("rot"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.PutIndex(a, 2, indextest.Draft(t, 1, 10)); err != nil {
		t.Fatal(err)
	}
	visited := 0
	if err := r.ForEach(func(shard.Key) (bool, error) { visited++; return true, nil }); !errors.As(err, &damage) || visited != 1 {
		t.Errorf("%d visited, %v", visited, err)
	}
}

// story is what the crash test does to a repository: the acknowledged and the
// possible state of every (key, generation).
type story struct {
	repo  *index.FSIndexRepo
	acked map[life]*index.Draft
	// maybe holds the drafts whose PutIndex ended with an error, and what was
	// dropped: they may or may not be there.
	maybe map[life][]*index.Draft
}

type life struct {
	key string
	gen uint64
}

func (s *story) put(key string, gen uint64, d *index.Draft) {
	l := life{key, gen}
	if err := s.repo.PutIndex(shard.KeyFromString(key), gen, d); err == nil {
		s.acked[l], s.maybe[l] = d, nil
		return
	}
	s.maybe[l] = append(s.maybe[l], d)
}

func (s *story) drop(key string, gen uint64) {
	l := life{key, gen}
	if d := s.acked[l]; d != nil {
		s.maybe[l] = append(s.maybe[l], d)
		delete(s.acked, l)
	}
	_, _ = s.repo.DropIndex(shard.KeyFromString(key), gen) // it is "maybe" either way
}

func (s *story) tell(drafts []*index.Draft) {
	s.put("a", 1, drafts[0])
	s.put("b", 2, drafts[1])
	s.put("a", 1, drafts[2]) // replaced
	s.drop("b", 2)
	s.put("b", 3, drafts[3])
}

// check opens every life: acknowledged means there, valid, and what was put last;
// anything else is there whole or not at all.
func (s *story) check(ctx context.Context) error {
	lives := make(map[life]bool)
	for l := range s.acked {
		lives[l] = true
	}
	for l := range s.maybe {
		lives[l] = true
	}
	for l := range lives {
		want := s.maybe[l]
		if d := s.acked[l]; d != nil {
			want = append(slices.Clone(want), d)
		}
		x, err := s.repo.OpenIndex(shard.KeyFromString(l.key), l.gen)
		if err == index.ErrNotFound && s.acked[l] == nil {
			continue
		}
		if err != nil {
			return fmt.Errorf("%v: %w", l, err)
		}
		if !slices.ContainsFunc(want, func(d *index.Draft) bool { return d.Info() == x.Info() }) {
			return fmt.Errorf("%v: an index that nobody put there: %+v", l, x.Info())
		}
		if err := errors.Join(x.Verify(ctx), x.Close()); err != nil {
			return fmt.Errorf("%v: %w", l, err)
		}
	}
	return nil
}

// TestCrashesAndFaults makes every fault happen at every operation of a story of puts
// and drops, crashes there, and looks at what a restart finds: acknowledged indices
// are there and valid, the others whole or absent; a sweep gives the space back; no
// file stays open. Proves C5, C8, C11, F20 for indices.
func TestCrashesAndFaults(t *testing.T) {
	var drafts []*index.Draft
	for i := range 4 {
		drafts = append(drafts, indextest.Draft(t, i, 30+10*i))
	}
	tell := func(sim *fsio.Sim) *story {
		repo, err := index.NewFSRepoOn(sim, "/index")
		if err != nil {
			return nil
		}
		s := &story{repo, make(map[life]*index.Draft), make(map[life][]*index.Draft)}
		s.tell(drafts)
		return s
	}
	ops := uint64(0)
	sim := fsio.NewSim(1)
	if s := tell(sim); s == nil || s.check(t.Context()) != nil {
		t.Fatal("the story fails without faults")
	}
	ops = uint64(len(sim.Ops()))
	runs := 0
	for n := range ops {
		for _, fault := range fsio.Faults() {
			for seed := range uint64(4) {
				sim := fsio.NewSim(seed)
				sim.FailAt(n, fault)
				s := tell(sim)
				if s == nil {
					continue // the repository did not open, and said so
				}
				if fault != fsio.FaultCrash {
					if n := sim.OpenFiles(); n != 0 {
						t.Fatalf("%v at operation %d: %d files are open", fault, n, n)
					}
				}
				after := sim.Crash()
				var err error
				if s.repo, err = index.NewFSRepoOn(after, "/index"); err != nil {
					t.Fatal(err)
				}
				if err := s.check(t.Context()); err != nil {
					t.Fatalf("%v at operation %d, seed %d: %v", fault, n, seed, err)
				}
				if _, err := s.repo.SweepIndexes(func(gen uint64) bool { return gen == 1 }); err != nil {
					t.Fatal(err)
				}
				left, err := after.ReadDir("/index")
				if err != nil || len(left) > 1 {
					t.Fatalf("%v at operation %d: %d files after the sweep, %v", fault, n, len(left), err)
				}
				runs++
			}
		}
	}
	t.Logf("%d operations, %d crashes", ops, runs)
	fsiotest.Report(t, "index.TestCrashesAndFaults", int(ops)*len(fsio.Faults()), false)
}
