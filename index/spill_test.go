package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/multiformats/go-multihash"
	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/shard"
)

// memTemp is a temporary file in memory.
type memTemp struct {
	bytes.Buffer
	closed int
	fail   error
}

func (m *memTemp) ReadAt(p []byte, at int64) (int, error) {
	if m.fail != nil {
		return 0, m.fail
	}
	return bytesAt(m.Bytes()).ReadAt(p, at)
}
func (m *memTemp) Close() error { m.closed++; return nil }

// spilling returns a drafter that holds at most memory bytes.
func spilling(ctx context.Context, memory int64, f TempFile) *drafter {
	return &drafter{ctx: ctx, memory: memory, temp: func() (TempFile, error) { return f, nil }}
}

// addAll adds records and sums their sizes up.
func addAll(tb rapid.TB, d *drafter, records []record) (payload uint64) {
	tb.Helper()
	for _, r := range records {
		code, digest, _ := splitMultihash([]byte(r.mh))
		if err := d.add(code, digest, r.e); err != nil {
			tb.Fatal(err)
		}
		payload += uint64(r.e.Size)
	}
	return payload
}

func second[T any](_ T, err error) error { return err }

// multihashesOf lists what a draft iterates over.
func multihashesOf(tb rapid.TB, d *Draft) (all []string) {
	tb.Helper()
	if err := d.Multihashes().ForEach(func(mh multihash.Multihash) error { all = append(all, string(mh)); return nil }); err != nil {
		tb.Fatal(err)
	}
	return all
}

// TestSpilledIsTheSame: an index that was sorted in parts is the one that was sorted in
// memory, to the byte, whether the place for its fan-out can be filled in or not; its
// multihashes come in the same order; no more memory than allowed was held. Proves I15, F20.
func TestSpilledIsTheSame(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		records := drawRecords(rt)
		if len(records) == 0 {
			return
		}
		var whole drafter
		want, err := whole.finish(header{payload: addAll(rt, &whole, records), flags: flagUnbound})
		if err != nil {
			rt.Fatal(err)
		}
		const one = 128 + recordTail + sortedBytes // the largest record
		memory := int64(rapid.SampledFrom([]int{one, 5 * one, 40 * one, 1000 * one}).Draw(rt, "memory"))
		temp := new(memTemp)
		d := spilling(context.Background(), memory, temp)
		got, err := d.finish(header{payload: addAll(rt, d, records), flags: flagUnbound})
		if err != nil {
			rt.Fatal(err)
		}
		defer got.Close()
		if d.most > memory {
			rt.Fatalf("%d bytes were held, %d are allowed", d.most, memory)
		}
		if total := int64(len(records)) * one; got.Spilled() != (temp.Len() > 0) || total <= memory && got.Spilled() {
			rt.Fatalf("%d records, %d bytes of memory: spilled is %t", len(records), memory, got.Spilled())
		}
		var streamed bytes.Buffer
		if _, err := got.write(&streamed, shard.KeyFromString("test"), 7); err != nil {
			rt.Fatal(err)
		}
		f, err := os.Create(filepath.Join(dir, "index"))
		if err != nil {
			rt.Fatal(err)
		}
		defer f.Close()
		if _, err := got.write(f, shard.KeyFromString("test"), 7); err != nil {
			rt.Fatal(err)
		}
		filled, err := os.ReadFile(f.Name())
		if err != nil {
			rt.Fatal(err)
		}
		// A file that has something in it already.
		unnamed := bytes.NewBufferString("before")
		if _, err := want.WriteTo(unnamed); err != nil {
			rt.Fatal(err)
		}
		if err := errors.Join(f.Truncate(0), second(f.Seek(0, 0)), second(f.WriteString("before")), second(got.WriteTo(f))); err != nil {
			rt.Fatal(err)
		}
		if behind, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(behind, unnamed.Bytes()) {
			rt.Fatalf("behind something else: another index, %v", err)
		}
		var direct bytes.Buffer
		if _, err := want.write(&direct, shard.KeyFromString("test"), 7); err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(streamed.Bytes(), direct.Bytes()) || !bytes.Equal(filled, direct.Bytes()) {
			rt.Fatalf("%d records, %d bytes of memory: other indices, of %d and %d bytes, not %d", len(records), memory, streamed.Len(), len(filled), direct.Len())
		}
		if a, b := multihashesOf(rt, want), multihashesOf(rt, got); fmt.Sprint(a) != fmt.Sprint(b) {
			rt.Fatal("other multihashes")
		}
		if got.Info() != want.Info() {
			rt.Fatalf("%+v, want %+v", got.Info(), want.Info())
		}
	})
}

// TestSpillDamage flips every byte of a temporary file, cuts it off, and has reading fail:
// the index is not made, and the error says which of these it was. Proves F20, C10, C11.
func TestSpillDamage(t *testing.T) {
	records := evenRecords(60)
	temp := new(memTemp)
	d := spilling(t.Context(), 20*64, temp)
	draft, err := d.finish(header{payload: addAll(t, d, records), flags: flagUnbound})
	if err != nil || !draft.Spilled() {
		t.Fatal(err)
	}
	write := func() error { _, err := draft.WriteTo(io.Discard); return err }
	var damaged *DamagedError
	b := temp.Bytes()
	for i := range b {
		b[i] ^= 0x10
		if err := write(); !errors.As(err, &damaged) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		if err := draft.Multihashes().ForEach(func(multihash.Multihash) error { return nil }); !errors.As(err, &damaged) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		b[i] ^= 0x10
	}
	temp.fail = errors.New("the disk fails")
	if err := write(); !errors.Is(err, temp.fail) || errors.As(err, &damaged) {
		t.Errorf("reading fails: %v", err)
	}
	temp.fail = nil
	if err := write(); err != nil {
		t.Error(err)
	}
	temp.Truncate(len(b) - 1)
	if err := write(); !errors.As(err, &damaged) {
		t.Errorf("cut off: %v", err)
	}
	if err := errors.Join(draft.Close(), draft.Close()); err != nil || temp.closed != 1 {
		t.Errorf("%d times closed, %v", temp.closed, err)
	}
}

// TestSpillEnds: the context ends sorting, writing and iterating; a build that fails gives
// its file back.
func TestSpillEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	temp := new(memTemp)
	d := spilling(ctx, 20*64, temp)
	payload := addAll(t, d, evenRecords(60))
	draft, err := d.finish(header{payload: payload, flags: flagUnbound})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := draft.WriteTo(io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("writing: %v", err)
	}
	late := spilling(ctx, 20*64, temp)
	for _, r := range evenRecords(60) {
		code, digest, _ := splitMultihash([]byte(r.mh))
		if err = late.add(code, digest, r.e); err != nil {
			break
		}
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("sorting: %v", err)
	}

	cut := hostile.Random(40_000, 10, 1)
	temp = new(memTemp)
	opts := BuildOptions{Memory: 1, Temp: func() (TempFile, error) { return temp, nil }}
	if _, err := Build(t.Context(), bytes.NewReader(cut), int64(len(cut)-3), opts); !errors.Is(err, ErrTruncated) || temp.Len() == 0 || temp.closed != 1 {
		t.Errorf("a build that fails: %v; %d bytes in the file, %d times closed", err, temp.Len(), temp.closed)
	}
	errTemp := errors.New("no room")
	opts.Temp = func() (TempFile, error) { return nil, errTemp }
	if _, err := Build(t.Context(), bytes.NewReader(cut), int64(len(cut)), opts); !errors.Is(err, errTemp) {
		t.Errorf("no temporary file: %v", err)
	}
}

// TestManyKindsSpilled: a file that brings its hash functions one after the other does not
// make each keep the memory that it needed. Proves I15, S1.
func TestManyKindsSpilled(t *testing.T) {
	const memory = 256 << 10
	d := spilling(t.Context(), memory, new(memTemp))
	rng := rand.New(rand.NewPCG(1, 1))
	for n := 20; n <= 128; n++ {
		digest := make([]byte, n)
		for range 3 * memory / (n + recordTail + sortedBytes) {
			for i := range digest {
				digest[i] = byte(rng.Uint32())
			}
			if err := d.add(multihash.SHA2_512, digest, Entry{Offset: 1, HeaderLen: 1, Size: 1}); err != nil {
				t.Fatal(err)
			}
		}
		kept := 0
		for _, g := range d.groups {
			for _, s := range g.slabs {
				kept += cap(s)
			}
			kept += 4 * cap(g.order)
		}
		kept += 16 * cap(d.keys)
		if kept > 5*memory {
			t.Fatalf("after digests of %d bytes %d bytes are kept, %d are allowed to be in use", n, kept, memory)
		}
	}
	d.discard()
}

// TestSpillFaults makes every fault happen at every operation of a build that spills, and
// crashes there: an index that was acknowledged is whole, a failed one leaves no file open,
// a sweep after the crash leaves nothing else, and one meanwhile leaves the build alone.
// Proves C5, C11, F20.
func TestSpillFaults(t *testing.T) {
	records := evenRecords(60)
	key := shard.KeyFromString("a")
	var whole drafter
	d, err := whole.finish(header{payload: addAll(t, &whole, records), flags: flagUnbound})
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	if _, err := d.write(&want, key, 1); err != nil {
		t.Fatal(err)
	}
	swept := 0
	build := func(sim *fsio.Sim) (put error, opened bool) {
		r, err := NewFSRepoOn(sim, "/index")
		if err != nil {
			return err, false
		}
		d := &drafter{ctx: t.Context(), memory: 20 * 64, temp: func() (TempFile, error) { return r.TempFile(key, 1) }}
		for i, rec := range records {
			code, digest, _ := splitMultihash([]byte(rec.mh))
			if err := d.add(code, digest, rec.e); err != nil {
				d.discard()
				return err, true
			}
			if i == 40 {
				swept, _ = r.SweepIndexes(func(uint64) bool { return false })
			}
		}
		draft, err := d.finish(header{payload: uint64(len(records) * (len(records) + 1) / 2), flags: flagUnbound})
		if err != nil {
			return err, true
		}
		defer draft.Close()
		return r.PutIndex(key, 1, draft), true
	}
	sim := fsio.NewSim(1)
	if err, _ := build(sim); err != nil {
		t.Fatal(err)
	}
	if left, err := sim.ReadDir("/index"); err != nil || len(left) != 1 || swept != 0 {
		t.Fatalf("%d files are left, %d were swept during the build; %v", len(left), swept, err)
	}
	ops := uint64(len(sim.Ops()))
	for n := range ops {
		for _, fault := range fsio.Faults() {
			for seed := range uint64(3) {
				sim := fsio.NewSim(seed)
				sim.FailAt(n, fault)
				put, opened := build(sim)
				if fault != fsio.FaultCrash && sim.OpenFiles() != 0 {
					t.Fatalf("%v at operation %d: %d files are open", fault, n, sim.OpenFiles())
				}
				if !opened {
					continue
				}
				after := sim.Crash()
				r, err := NewFSRepoOn(after, "/index")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := r.SweepIndexes(func(gen uint64) bool { return gen == 1 }); err != nil {
					t.Fatal(err)
				}
				left, err := after.ReadDir("/index")
				if err != nil || len(left) > 1 || len(left) == 1 && strings.Contains(left[0].Name(), ".tmp") {
					t.Fatalf("%v at operation %d: %v are left, %v", fault, n, left, err)
				}
				x, err := r.OpenIndex(key, 1)
				if err == ErrNotFound && put != nil {
					continue
				}
				if err != nil {
					t.Fatalf("%v at operation %d: PutIndex said %v, then %v", fault, n, put, err)
				}
				if err := errors.Join(x.Verify(t.Context()), x.Close()); err != nil {
					t.Fatalf("%v at operation %d: %v", fault, n, err)
				}
				f, err := after.OpenFile("/index/"+left[0].Name(), 0, 0)
				if err != nil {
					t.Fatal(err)
				}
				have, err := io.ReadAll(f)
				if err = errors.Join(err, f.Close()); err != nil || !bytes.Equal(have, want.Bytes()) {
					t.Fatalf("%v at operation %d: another index, %v", fault, n, err)
				}
			}
		}
	}
	fsiotest.Report(t, "index.TestSpillFaults", int(ops)*len(fsio.Faults()), false)
}

// carOfMany is a CAR of n raw blocks of 8 bytes that exists only as far as it is read.
type carOfMany struct {
	n      int
	header []byte
}

const manySection = 1 + 4 + 32 + 8

func (c *carOfMany) size() int64 { return int64(len(c.header)) + int64(c.n)*manySection }

// section writes section i.
func (c *carOfMany) section(i int, b []byte) {
	data := b[37:manySection]
	for k := range data {
		data[k] = byte(i >> (8 * k))
	}
	copy(b, "\x2c\x01\x55\x12\x20")
	copy(b[5:], hostile.RawCID(data)[4:])
}

func (c *carOfMany) ReadAt(p []byte, at int64) (n int, err error) {
	if at < int64(len(c.header)) {
		n = copy(p, c.header[at:])
	}
	var s [manySection]byte
	for n < len(p) {
		pos := at + int64(n) - int64(len(c.header))
		if pos >= int64(c.n)*manySection {
			return n, io.EOF
		}
		c.section(int(pos/manySection), s[:])
		n += copy(p[n:], s[pos%manySection:])
	}
	return n, nil
}

// BenchmarkBuildBounded builds the index of 10,000,000 blocks with the default memory and
// with all in memory, stores it and iterates over its multihashes. It reports the most heap
// that was in use above what was before, by looking at it 100 times a second. Making the
// blocks and hashing them is most of the time.
func BenchmarkBuildBounded(b *testing.B) {
	src := &carOfMany{n: 10_000_000, header: hostile.Header(hostile.RawCID([]byte("root")))}
	if testing.Short() {
		src.n = 200_000
	}
	for _, bounded := range []bool{true, false} {
		b.Run(fmt.Sprintf("bounded=%t", bounded), func(b *testing.B) {
			for b.Loop() {
				repo, err := NewFSRepo(b.TempDir())
				if err != nil {
					b.Fatal(err)
				}
				key := shard.KeyFromString("many")
				var opts BuildOptions
				if bounded {
					opts.Temp = func() (TempFile, error) { return repo.TempFile(key, 1) }
				}
				peak := watchHeap()
				began := time.Now()
				d, err := Build(b.Context(), src, src.size(), opts)
				if err != nil {
					b.Fatal(err)
				}
				if err := repo.PutIndex(key, 1, d); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(time.Since(began).Seconds(), "build-s")
				n := 0
				if err := d.Multihashes().ForEach(func(multihash.Multihash) error { n++; return nil }); err != nil || n != src.n {
					b.Fatal(n, err)
				}
				b.ReportMetric(float64(peak())/(1<<20), "peak-heap-MiB")
				if err := d.Close(); err != nil {
					b.Fatal(err)
				}
				if d.Spilled() != (bounded && src.n > 1_000_000) {
					b.Fatal("spilled:", d.Spilled())
				}
			}
		})
	}
}

// watchHeap returns what stops watching and says how much heap was in use at most.
func watchHeap() func() uint64 {
	inUse := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	runtime.GC()
	before, stop, most := inUse(), make(chan struct{}), make(chan uint64)
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		top := uint64(0)
		for {
			select {
			case <-tick.C:
				top = max(top, inUse())
			case <-stop:
				most <- top
				return
			}
		}
	}()
	return func() uint64 { close(stop); top := <-most; return top - min(top, before) }
}
