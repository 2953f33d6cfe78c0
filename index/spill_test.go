package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/multiformats/go-multihash"
	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/shard"
)

var spillKey = shard.KeyFromString("spilled")

// simRepo is a repository on a simulated disk.
func simRepo(tb testing.TB, sim *fsio.Sim) *FSIndexRepo {
	tb.Helper()
	r, err := NewFSRepoOn(sim, "/index")
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// spillTo is a spill with given bounds, whatever is sensible.
func spillTo(r *FSIndexRepo, budget, block, fanIn int) *spill {
	create := func() (ScratchFile, error) { return r.CreateScratch(spillKey, 1) }
	return &spill{budget: budget, runs: &runs{create: create, block: block, fanIn: fanIn}}
}

func addAll(d *drafter, records []record) error {
	for _, r := range records {
		code, digest, _ := cids.Split([]byte(r.mh))
		if err := d.add(code, digest, r.e); err != nil {
			return err
		}
	}
	return nil
}

func namesIn(tb testing.TB, sim *fsio.Sim, dir string) (names []string) {
	tb.Helper()
	entries, err := sim.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

type multihashList []string

func (l *multihashList) add(mh multihash.Multihash) error {
	*l = append(*l, string(mh))
	return nil
}

// TestSpilledEqualsUnspilled: whatever the budget, the size of blocks and the fan-in, an
// index is the same byte by byte as that of a draft in memory: by way of a file, which
// is written in two places at once, and in one stream; and its multihashes come in the
// same order. Nothing is left afterwards. Proves I15, F20 for drafts that spill.
func TestSpilledEqualsUnspilled(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		records := drawRecords(rt)
		if len(records) > 1 && rapid.Bool().Draw(rt, "the same record again") {
			for i := range 1 + len(records)/10 {
				r := records[0]
				r.e.Size += i % 3
				records = append(records, r)
			}
		}
		spilledEquals(rt, records,
			rapid.SampledFrom([]int{1, 1000, 5000, 20000, 100000, 1 << 20}).Draw(rt, "budget"),
			rapid.SampledFrom([]int{100, 145, 500, 4096}).Draw(rt, "block"),
			rapid.SampledFrom([]int{2, 3, 8}).Draw(rt, "fan-in"))
	})
	if r := spilledEquals(t, sha256Records(3000), 1, 500, 2); r.seq < 300 || len(r.levels) < 6 {
		t.Errorf("%d runs were written, in %d levels: too few to see them merged", r.seq, len(r.levels))
	}
}

// spilledEquals drafts records in memory and with spills, and compares all that comes of
// it.
func spilledEquals(t interface {
	Fatal(...any)
	Fatalf(string, ...any)
}, records []record, budget, block, fanIn int,
) *runs {
	sim := fsio.NewSim(1)
	repo, err := NewFSRepoOn(sim, "/index")
	if err != nil {
		t.Fatal(err)
	}
	var plain drafter
	d := drafter{ctx: context.Background(), spill: spillTo(repo, budget, block, fanIn)}
	if err := errors.Join(addAll(&plain, records), addAll(&d, records)); err != nil {
		t.Fatal(err)
	}
	h := header{payload: 77, flags: flagUnbound}
	want := plain.finish(h)
	have, err := d.draft(h)
	if err != nil {
		t.Fatal(err)
	}
	var wantBytes, haveBytes bytes.Buffer
	for d, b := range map[*Draft]*bytes.Buffer{want: &wantBytes, have: &haveBytes} {
		if n, err := d.write(b, spillKey, 1); err != nil || n != int64(b.Len()) {
			t.Fatal(n, err)
		}
	}
	if !bytes.Equal(wantBytes.Bytes(), haveBytes.Bytes()) {
		t.Fatalf("in one stream: %d bytes of %d are the same", commonPrefix(wantBytes.Bytes(), haveBytes.Bytes()), wantBytes.Len())
	}
	if err := repo.PutIndex(spillKey, 1, have); err != nil {
		t.Fatal(err)
	}
	f, err := sim.OpenFile(repo.path(hashKey(spillKey), 1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	file, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil || !bytes.Equal(file, wantBytes.Bytes()) {
		t.Fatalf("by way of a file: %d bytes of %d are the same, %v", commonPrefix(wantBytes.Bytes(), file), wantBytes.Len(), err)
	}
	var wantMhs, haveMhs multihashList
	if err := errors.Join(want.Multihashes().ForEach(wantMhs.add), have.Multihashes().ForEach(haveMhs.add)); err != nil || !slices.Equal(wantMhs, haveMhs) {
		t.Fatalf("%d multihashes, want %d: %v", len(haveMhs), len(wantMhs), err)
	}
	if have.Len() != want.Len() || have.Info() != want.Info() {
		t.Fatalf("%+v, want %+v", have.Info(), want.Info())
	}
	if err := errors.Join(have.Close(), have.Close()); err != nil {
		t.Fatal(err)
	}
	if names, err := sim.ReadDir("/index"); err != nil || len(names) != 1 || sim.OpenFiles() != 0 {
		t.Fatalf("left: %v, %d open files, %v", names, sim.OpenFiles(), err)
	}
	return d.spill.runs
}

func commonPrefix(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// syntheticCAR is a CARv1 of n raw blocks of 8 bytes, the blocks' numbers, that is made
// while it is read. Each section but for the header has the same length.
//
//	29      1    1  1   1  1     32      8
//	header  len  1  raw  sha 32  digest  number
type syntheticCAR struct{ n int64 }

const (
	syntheticHeader  = "\x11\xa2\x65roots\x80\x67version\x01"
	syntheticSection = 1 + 4 + 32 + 8
)

func (c syntheticCAR) size() int64 {
	return int64(len(syntheticHeader)) + c.n*syntheticSection
}

func (c syntheticCAR) ReadAt(p []byte, at int64) (int, error) {
	n := 0
	for n < len(p) && at < c.size() {
		var k int
		if at < int64(len(syntheticHeader)) {
			k = copy(p[n:], syntheticHeader[at:])
		} else {
			in := at - int64(len(syntheticHeader))
			section := syntheticBlock(uint64(in / syntheticSection))
			k = copy(p[n:], section[in%syntheticSection:])
		}
		n, at = n+k, at+int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func syntheticBlock(i uint64) (b [syntheticSection]byte) {
	b = [syntheticSection]byte{syntheticSection - 1, 1, 0x55, multihash.SHA2_256, 32}
	// Digests that are even over their range; they are not verified.
	x := i
	for at := 5; at < 37; at += 8 {
		x = mix(x + 0x9e3779b97f4a7c15)
		binary.BigEndian.PutUint64(b[at:], x)
	}
	binary.BigEndian.PutUint64(b[37:], i)
	return b
}

// mix is the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// TestHeldStaysWithinMemory: what a build holds, by its own account, is never more than
// BuildOptions.Memory: while it collects, sorts, merges runs of runs and writes.
// Proves I15, C11 for builds.
func TestHeldStaysWithinMemory(t *testing.T) {
	car := syntheticCAR{300_000}
	for _, memory := range []int64{0, 1 << 20, 3 << 20, 16 << 20} { // 0: in need of none
		t.Run(fmt.Sprint(memory), func(t *testing.T) {
			sim := fsio.NewSim(1)
			repo := simRepo(t, sim)
			opts := BuildOptions{SkipVerify: true, Memory: memory, Spill: func() (ScratchFile, error) { return repo.CreateScratch(spillKey, 1) }}
			s := newSpill(&opts)
			d := drafter{ctx: t.Context(), spill: s}
			out, err := Build(t.Context(), car, car.size(), opts)
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			if used, most := sim.Used(), car.n*(32+recordTail)*11/10; used > most {
				t.Errorf("the runs take %d bytes of the disk, at most %d of them are in use", used, most)
			}
			for i := range uint64(car.n) {
				b := syntheticBlock(i)
				if err := d.add(multihash.SHA2_256, b[5:37], Entry{Offset: uint64(len(syntheticHeader)) + i*syntheticSection, HeaderLen: 37, Size: 8}); err != nil {
					t.Fatal(err)
				}
			}
			same, err := d.draft(out.head)
			if err != nil {
				t.Fatal(err)
			}
			defer same.Close()
			if (out.runs == nil) != (memory == 0) {
				t.Fatalf("memory of %d: spilled %v", memory, out.runs != nil)
			}
			limit := memory
			if limit == 0 {
				limit = defaultMemory
			}
			if peak := s.runs.peak; int64(peak) > limit || memory != 0 && int64(peak) < limit/2 {
				t.Errorf("%d bytes held of %d", peak, limit)
			}
			if s.runs.seq > 0 {
				t.Logf("%d of %d bytes held; %d runs were written, %d are left in %d levels", s.runs.peak, limit, s.runs.seq, len(s.runs.all()), len(s.runs.levels))
			}
			if err := repo.PutIndex(spillKey, 1, out); err != nil {
				t.Fatal(err)
			}
			x, err := repo.OpenIndex(spillKey, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			if err := x.Verify(t.Context()); err != nil || x.Len() != uint64(car.n) {
				t.Error(x.Len(), err)
			}
		})
	}
}

// TestManyKindsSpill: the slabs of a kind that has passed do not keep the next from
// memory, nor do very many kinds make the drafter hold more than its budget. Proves I15.
func TestManyKindsSpill(t *testing.T) {
	repo := simRepo(t, fsio.NewSim(1))
	const budget = 3 << 20
	d := drafter{ctx: t.Context(), spill: spillTo(repo, budget, 8<<10, 16)}
	var plain drafter
	rng := rand.New(rand.NewPCG(1, 2))
	add := func(code uint64, n int) {
		digest := make([]byte, n)
		for i := range digest {
			digest[i] = byte(rng.Uint32())
		}
		e := Entry{Offset: plain.n, HeaderLen: 40, Size: 5}
		if err := errors.Join(d.add(code, digest, e), plain.add(code, digest, e)); err != nil {
			t.Fatal(err)
		}
	}
	for range 60_000 {
		add(multihash.SHA2_256, 32)
	}
	runsOfOne := d.spill.runs.seq
	for range 60_000 {
		add(multihash.SHA2_512, 64)
	}
	runsOfTwo := d.spill.runs.seq - runsOfOne
	for i := range 60_000 {
		add(uint64(i%4000/2+100), i%2*100+20)
	}
	if runsOfOne == 0 || runsOfTwo > 2*runsOfOne+2 {
		t.Errorf("%d runs of one kind, %d of the next", runsOfOne, runsOfTwo)
	}
	h := header{flags: flagUnbound}
	have, err := d.draft(h)
	if err != nil {
		t.Fatal(err)
	}
	defer have.Close()
	if !bytes.Equal(encodeDraft(t, have), encodeDraft(t, plain.finish(h))) {
		t.Error("the index is another one")
	}
	t.Logf("%d runs, %d bytes held", d.spill.runs.seq, d.spill.runs.peak)
	if most := budget + 32*8<<10; d.spill.runs.peak > most {
		t.Errorf("%d bytes held of %d", d.spill.runs.peak, most)
	}
}

// spilledBuild builds and stores an index that spills into two levels.
func spilledBuild(ctx context.Context, repo *FSIndexRepo, gen uint64, records []record) error {
	create := func() (ScratchFile, error) { return repo.CreateScratch(spillKey, gen) }
	d, err := draftingOn(ctx, &spill{budget: 2000, runs: &runs{create: create, block: 500, fanIn: 2}}, records)
	if err != nil {
		return err
	}
	err = repo.PutIndexContext(ctx, spillKey, gen, d)
	var mhs multihashList
	return errors.Join(err, d.Multihashes().ForEach(mhs.add), d.Close())
}

// draftingOn is drafting with a spill of its own.
func draftingOn(ctx context.Context, s *spill, records []record) (*Draft, error) {
	d := drafter{ctx: ctx, spill: s}
	h := header{flags: flagUnbound}
	for _, r := range records {
		h.payload += uint64(r.e.Size)
	}
	err := addAll(&d, records)
	if err == nil {
		var out *Draft
		if out, err = d.draft(h); err == nil {
			return out, nil
		}
	}
	d.close()
	return nil, err
}

// TestFaultsOfASpilledBuild makes every fault happen at every operation of a build that
// spills, and crashes there: a nil error means a whole and valid index, an error that
// there is none; no file stays open, and no temporary one is left but those that the
// disk refused to remove; the next start sweeps those and nothing else, and the next
// build succeeds. Proves C5, C11, F20, I16.
func TestFaultsOfASpilledBuild(t *testing.T) {
	records := sha256Records(200)
	sim := fsio.NewSim(1)
	if err := spilledBuild(t.Context(), simRepo(t, sim), 1, records); err != nil {
		t.Fatal(err)
	}
	ops := sim.Ops()
	stride := 1
	if testing.Short() {
		stride = 5
	}
	for n := 0; n < len(ops); n += stride {
		for _, fault := range fsio.Faults() {
			for seed := range uint64(2) {
				sim := fsio.NewSim(seed)
				sim.FailAt(uint64(n), fault)
				var err error
				if repo, rerr := NewFSRepoOn(sim, "/index"); rerr != nil {
					err = rerr
				} else {
					err = spilledBuild(t.Context(), repo, 1, records)
				}
				at := fmt.Sprintf("%v at operation %d (%v), seed %d: %v", fault, n, ops[n], seed, err)
				if fault != fsio.FaultCrash {
					if sim.OpenFiles() != 0 {
						t.Fatalf("%s: open: %q", at, sim.OpenNames())
					}
					names, _ := sim.ReadDir("/index")
					for _, e := range names {
						if fsio.IsTemp(e.Name()) && ops[n].Kind != fsio.OpRemove && ops[n].Kind != fsio.OpClose {
							t.Fatalf("%s: left: %q", at, e.Name())
						}
					}
				}
				afterSpill(t, at, sim.Crash(), err == nil, records)
			}
		}
	}
	fsiotest.Report(t, "index.TestFaultsOfASpilledBuild", (len(ops)+stride-1)/stride*len(fsio.Faults()), testing.Short())
}

// afterSpill judges what a crash has left of a spilled build.
func afterSpill(t *testing.T, at string, sim *fsio.Sim, acked bool, records []record) {
	t.Helper()
	repo := simRepo(t, sim)
	foreign := "/index/0000000000000001-notes.tmp-00000000"
	f, err := sim.OpenFile(foreign, 0o102, 0o600)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	x, err := repo.OpenIndex(spillKey, 1)
	if err != nil && (acked || err != ErrNotFound) {
		t.Fatalf("%s: %v", at, err)
	}
	if err == nil {
		if err := errors.Join(x.Verify(t.Context()), x.Close()); err != nil || x.Len() != uint64(len(records)) {
			t.Fatalf("%s: an index of %d records: %v", at, x.Len(), err)
		}
	}
	if _, err := repo.SweepIndexes(func(uint64) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if names := namesIn(t, sim, "/index"); len(names) != 1 || "/index/"+names[0] != foreign {
		t.Fatalf("%s: after the sweep: %q", at, names)
	}
	if err := spilledBuild(t.Context(), repo, 2, records); err != nil {
		t.Fatalf("%s: the next build: %v", at, err)
	}
}

// TestDiskFullIsOfOneBuild: a build that finds the disk full while it spills ends with
// that error and gives the space back; one that does not spill goes on beside it.
// Proves C11, I16.
func TestDiskFullIsOfOneBuild(t *testing.T) {
	sim := fsio.NewSim(1)
	repo := simRepo(t, sim)
	used := sim.Used()
	sim.SetCapacity(used + 20_000)
	err := spilledBuild(t.Context(), repo, 1, sha256Records(2000))
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("%v", err)
	}
	if sim.Used() != used || sim.OpenFiles() != 0 {
		t.Errorf("%d bytes used, %d before; %d open files", sim.Used(), used, sim.OpenFiles())
	}
	if err := repo.PutIndex(spillKey, 2, draftRecords(t, sha256Records(100))); err != nil {
		t.Error(err)
	}
}

// flippingScratch is a temporary file of a sick disk.
type flippingScratch struct {
	ScratchFile
	flip func(b []byte, at int64)
}

func (f *flippingScratch) ReadAt(b []byte, at int64) (int, error) {
	n, err := f.ScratchFile.ReadAt(b, at)
	if f.flip != nil {
		f.flip(b[:n], at)
	}
	return n, err
}

// TestDamagedRun: whichever byte of a run reads back as another one, or as one of
// another block, and wherever the file ends, there is an error that names the file and
// the place, and no index. Proves C10, F20.
func TestDamagedRun(t *testing.T) {
	records := sha256Records(60)
	repo := simRepo(t, fsio.NewSim(1))
	files := []*flippingScratch{}
	create := func() (ScratchFile, error) {
		f, err := repo.CreateScratch(spillKey, 1)
		if err != nil {
			return nil, err
		}
		files = append(files, &flippingScratch{ScratchFile: f})
		return files[len(files)-1], nil
	}
	d, err := draftingOn(t.Context(), &spill{budget: 2000, runs: &runs{create: create, block: 300, fanIn: 8}}, records)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f := files[0]
	size := d.runs.levels[0].end
	refused := func(what string, from, to int64) {
		t.Helper()
		err := repo.PutIndex(spillKey, 1, d)
		var damage *DamagedError
		if !errors.As(err, &damage) || damage.File != f.Name() || damage.Offset < from || damage.Offset > to {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := repo.OpenIndex(spillKey, 1); err != ErrNotFound {
			t.Fatalf("%s: an index: %v", what, err)
		}
		var mhs multihashList
		if err := d.Multihashes().ForEach(mhs.add); !errors.As(err, &damage) {
			t.Fatalf("%s: multihashes: %v", what, err)
		}
	}
	for off := range size {
		f.flip = func(b []byte, at int64) {
			if off >= at && off < at+int64(len(b)) {
				b[off-at] ^= 1 << (off % 8)
			}
		}
		refused(fmt.Sprintf("byte %d of %d flipped", off, size), max(off-500, 0), off)
	}
	// Blocks that are sound and lie elsewhere: in another run, in the same one, or in a
	// former one at the same offset.
	f.flip = nil
	runs := d.runs.levels[0].runs
	a, b := runs[0].parts[0], runs[1].parts[0]
	perBlock := d.runs.perBlock(32 + recordTail)
	second := a.at + int64(perBlock*(32+recordTail)+crcLen)
	if a.records < 2*uint64(perBlock) || b.records < uint64(perBlock) {
		t.Fatal("too few blocks")
	}
	for _, from := range []int64{b.at, second} {
		other := make([]byte, second-a.at)
		f.flip = nil
		if n, err := f.ReadAt(other, from); n != len(other) {
			t.Fatal(err)
		}
		f.flip = func(buf []byte, at int64) {
			if at == a.at {
				copy(buf, other)
			}
		}
		refused(fmt.Sprintf("the block at %d in place of the one at %d", from, a.at), a.at, a.at)
	}
	f.flip = nil
	runs[0].seq += 5
	refused("a block of a former run", a.at, a.at)
	runs[0].seq -= 5
	f.flip = nil
	if err := f.Truncate(size - 1); err != nil {
		t.Fatal(err)
	}
	refused("the file ends early", size-1, size-1)
}

// TestReadErrorOfARunIsNotDamage: that a run cannot be read says nothing about what is
// in it. Proves C11.
func TestReadErrorOfARunIsNotDamage(t *testing.T) {
	sim := fsio.NewSim(1)
	repo := simRepo(t, sim)
	d, err := draftingOn(t.Context(), spillTo(repo, 2000, 500, 8), sha256Records(100))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	sim.OnOp(func(op fsio.Op) error {
		if op.Kind == fsio.OpRead {
			return fsio.FaultEIO
		}
		return nil
	})
	err = repo.PutIndex(spillKey, 1, d)
	var damage *DamagedError
	if !errors.Is(err, syscall.EIO) || errors.As(err, &damage) {
		t.Errorf("%v", err)
	}
}

// TestClosedDraft: a draft that spilled and is closed answers ErrClosed, also to those
// who are reading it; one in memory stays as it is.
func TestClosedDraft(t *testing.T) {
	repo := simRepo(t, fsio.NewSim(1))
	records := sha256Records(100)
	d, err := draftingOn(t.Context(), spillTo(repo, 2000, 500, 8), records)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	err = d.Multihashes().ForEach(func(multihash.Multihash) error {
		if n++; n == 1 {
			return d.Close()
		}
		return nil
	})
	if err != ErrClosed || n == len(records) {
		t.Errorf("closed while it is read: %v after %d", err, n)
	}
	if err := repo.PutIndex(spillKey, 1, d); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	inMemory := draftRecords(t, records)
	if err := errors.Join(inMemory.Close(), repo.PutIndex(spillKey, 1, inMemory)); err != nil {
		t.Error(err)
	}
}

// TestSweepSparesBuilds: a sweep waits for no build and leaves its temporary files,
// and removes those that an earlier process left. Proves C5, I16.
func TestSweepSparesBuilds(t *testing.T) {
	sim := fsio.NewSim(1)
	former := simRepo(t, sim)
	left, err := former.CreateScratch(spillKey, 1)
	if err != nil {
		t.Fatal(err)
	}
	repo := simRepo(t, sim)
	d, err := draftingOn(t.Context(), spillTo(repo, 2000, 500, 2), sha256Records(100))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := repo.SweepIndexes(func(uint64) bool { return true }); n != 1 || err != nil {
		t.Errorf("%d swept, %v", n, err)
	}
	for _, name := range namesIn(t, sim, "/index") {
		info, err := sim.Lstat(filepath.Join("/index", name))
		if name == filepath.Base(left.Name()) || err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := repo.PutIndex(spillKey, 1, d); err != nil {
		t.Error(err)
	}
	if err := errors.Join(d.Close(), left.Close()); err != nil {
		t.Error(err)
	}
	if names := namesIn(t, sim, "/index"); len(names) != 1 {
		t.Errorf("%q", names)
	}
}

// TestCancelledBuild: a context that ends while a build sorts, spills, merges or writes
// ends it soon, with its error and nothing left behind. Proves C11.
func TestCancelledBuild(t *testing.T) {
	car := syntheticCAR{60_000}
	for _, stage := range []string{"spill", "write in place", "write"} {
		t.Run(stage, func(t *testing.T) {
			sim := fsio.NewSim(1)
			repo := simRepo(t, sim)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			opts := BuildOptions{SkipVerify: true, Memory: 1 << 20}
			opts.Spill = func() (ScratchFile, error) {
				if stage == "spill" {
					cancel()
				}
				return repo.CreateScratch(spillKey, 1)
			}
			last := uint64(0)
			opts.WriteProgress = func(n, of uint64) {
				if n < last || of != uint64(car.n) {
					t.Errorf("%d of %d after %d", n, of, last)
				}
				last = n
				cancel()
			}
			d, err := Build(ctx, car, car.size(), opts)
			if stage != "spill" {
				if err != nil {
					t.Fatal(err)
				}
				if stage == "write" {
					err = NewMemoryRepo().PutIndexContext(ctx, spillKey, 1, d)
				} else {
					err = repo.PutIndexContext(ctx, spillKey, 1, d)
				}
				if last == 0 || last > 2*stepsBetween {
					t.Errorf("%d records were written", last)
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
			if names := namesIn(t, sim, "/index"); len(names) != 0 || sim.OpenFiles() != 0 {
				t.Errorf("left: %q, %d open files", names, sim.OpenFiles())
			}
		})
	}
}

// TestSortEndsWithItsContext: also one bucket that holds everything.
func TestSortEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var plain drafter
	for i := range uint64(50_000) {
		var digest [32]byte
		binary.BigEndian.PutUint64(digest[24:], mix(i))
		if err := plain.add(multihash.SHA2_256, digest[:], Entry{Offset: i}); err != nil {
			t.Fatal(err)
		}
	}
	s := sorter{ctx: ctx}
	if _, err := s.sort(plain.list[0]); err != context.Canceled {
		t.Errorf("%v", err)
	}
}

// TestDraftFromIndexSpills: an index that somebody else made is spilled like a scan, and
// so is one that is asked about each section.
func TestDraftFromIndexSpills(t *testing.T) {
	data := hostile.Random(30_000, 20, 1)
	size := int64(len(data))
	plain, err := Build(t.Context(), bytes.NewReader(data), size, BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := encodeDraft(t, plain)
	x, err := openBytes(want, "memory")
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	sim := fsio.NewSim(1)
	repo := simRepo(t, sim)
	opts := BuildOptions{Memory: 1, Spill: func() (ScratchFile, error) { return repo.CreateScratch(spillKey, 1) }}
	d, err := DraftFromIndex(t.Context(), x, bytes.NewReader(data), size, opts)
	if err != nil {
		t.Fatal(err)
	}
	if d.runs == nil || !bytes.Equal(encodeDraft(t, d), want) {
		t.Errorf("spilled %v, or another index", d.runs != nil)
	}
	if err := d.Close(); err != nil || len(namesIn(t, sim, "/index")) != 0 {
		t.Error(err)
	}
	if _, err := DraftFromIndex(t.Context(), x, bytes.NewReader(data[:size-21]), size-21, opts); err == nil {
		t.Error("a source that is too short")
	}
	if names := namesIn(t, sim, "/index"); len(names) != 0 || sim.OpenFiles() != 0 {
		t.Errorf("left: %q, %d open files", names, sim.OpenFiles())
	}
}
