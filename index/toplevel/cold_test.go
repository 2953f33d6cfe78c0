// Where address space is short nothing is mapped.
//go:build (darwin || freebsd || linux) && !386 && !arm

package toplevel

import (
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/shard"
)

// coldRuns makes an index of several runs on a cold file system, merges some, and opens it
// again. Nothing of it is in memory.
func coldRuns(t *testing.T, shards, each uint64, o Options) (*fsiotest.Cold, *Index) {
	t.Helper()
	cold := fsiotest.NewCold()
	dir := t.TempDir()
	o.RestAfter = -1
	x := must(OpenOn(cold, dir, o, Hooks{}))
	x.Start()
	for n := range shards {
		if err := errors.Join(x.Add(t.Context(), ingestNo(int(n)), span{n * each, (n + 1) * each}), x.Flush([]byte{byte(n)})); err != nil {
			t.Fatal(err)
		}
	}
	x.Settle()
	if st := x.Stats(); st.Merges == 0 || st.Runs < 2 {
		t.Fatalf("%d runs after %d merges", st.Runs, st.Merges)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	cold.Forget()
	x = must(OpenOn(cold, dir, o, Hooks{}))
	t.Cleanup(func() { x.Close() })
	return cold, x
}

// find looks a multihash up and fails unless it is in the one shard that has it, or in none.
func find(t *testing.T, x *Index, n, each, all uint64) {
	t.Helper()
	var got []Ingest
	if err := x.Lookup(hash(n, nil), func(in Ingest) bool {
		in.Key = shard.KeyFromString(strings.Clone(in.Key.String()))
		got = append(got, in)
		return true
	}); err != nil {
		t.Errorf("multihash %d: %v", n, err)
	} else if n >= all && len(got) != 0 || n < all && (len(got) != 1 || got[0] != ingestNo(int(n/each))) {
		t.Errorf("multihash %d: %v", n, got)
	}
}

// TestColdRuns: once the filters are in memory, what is nowhere is told without a read, and
// what is somewhere by one read, of its bucket, or by none when that is known to be in
// memory. Nothing touches a mapping that is not, neither lookups nor merges nor checks: it
// faults, and they would say so. Proves F20.
func TestColdRuns(t *testing.T) {
	const shards, each = 6, 20_000
	const all = shards * each
	cold, x := coldRuns(t, shards, each, Options{})
	runs := int64(x.Stats().Runs)
	reads := func(n uint64) int64 {
		before, _ := cold.Reads()
		find(t, x, n, each, all)
		after, _ := cold.Reads()
		return after - before
	}
	for n := range uint64(64) {
		reads(all + n*1_000_003) // reads the filters
	}
	for n := uint64(0); n < all; n += 999 { // and the ingests
		reads(n)
	}
	if st := x.Stats(); st.FilterMemory == 0 || int64(st.FilterLoads) != runs || st.FilterMemory > st.FilterBytes {
		t.Errorf("filters of %d partitions in %d bytes are in memory, of %d runs with one each, in %d", st.FilterLoads, st.FilterMemory, runs, st.FilterBytes)
	}
	misses, hits, again := int64(0), int64(0), int64(0)
	const sample = 1_000
	for n := range uint64(sample) {
		misses += reads(2*all + n*1_000_003)
		h := n * (all / sample)
		if got := reads(h); got > runs {
			t.Errorf("a lookup takes %d reads", got)
		} else {
			hits += got
		}
		again += reads(h)
	}
	// A filter lets one in 256 pass.
	if misses > runs*sample/50 || hits > sample+runs*sample/50 || hits < sample/10 || again != 0 {
		t.Errorf("%d misses take %d reads, as many hits %d, and %d when they are repeated", sample, misses, hits, again)
	}
	if err := x.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestFilterMemory: filters take no more memory than they may, whoever asks, and what does
// not fit is read when it is wanted.
func TestFilterMemory(t *testing.T) {
	const shards, each = 6, 5_000
	const all = shards * each
	for _, limit := range []int64{1, 35_000, 1 << 30} {
		cold, x := coldRuns(t, shards, each, Options{FilterMemory: limit})
		before, _ := cold.Reads()
		var wg sync.WaitGroup
		for g := range uint64(16) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(g, 1))
				for range 100 {
					find(t, x, rng.Uint64N(2*all), each, all)
					if st := x.Stats(); int64(st.FilterMemory) > limit {
						t.Errorf("filters take %d bytes of %d", st.FilterMemory, limit)
					}
				}
			})
		}
		wg.Wait()
		after, _ := cold.Reads()
		st := x.Stats()
		if fits := limit > 1<<20; fits != (int(st.FilterLoads) == st.Runs) {
			t.Errorf("%d filters of %d runs were read in %d bytes", st.FilterLoads, st.Runs, limit)
		}
		t.Logf("%d bytes for filters of %d: %d lookups take %d reads, %d of them of filters", limit, st.FilterBytes, 16*100, after-before, st.FilterLoads)
	}
}

// TestFiltersGo: what filters take is given back when their run is merged.
func TestFiltersGo(t *testing.T) {
	const shards, each = 6, 1_000
	_, x := coldRuns(t, shards, each, Options{})
	for n := range uint64(100) {
		find(t, x, n*7, each, shards*each)
	}
	if st := x.Stats(); st.FilterMemory == 0 {
		t.Fatal("no filter is in memory")
	}
	x.Start()
	for n := range uint64(3) {
		if err := errors.Join(x.Add(t.Context(), ingestNo(int(shards+n)), span{(shards + n) * each, (shards + n + 1) * each}), x.Flush([]byte{byte(shards + n)})); err != nil {
			t.Fatal(err)
		}
	}
	x.Settle()
	kept := int64(0)
	for _, r := range x.state.Load().disk {
		for i := range r.parts {
			if r.parts[i].mem.Load() != nil {
				kept += r.parts[i].headLen()
			}
		}
	}
	if st := x.Stats(); int64(st.FilterMemory) != kept {
		t.Errorf("%d bytes are counted, the runs that are there keep %d", st.FilterMemory, kept)
	}
}

// TestFilterIsTheirs: a filter is asked as the package that made it would.
func TestFilterIsTheirs(t *testing.T) {
	for _, n := range []int{filterLeast, 1_000, 100_000} {
		es := make([]entry, n)
		rng := rand.New(rand.NewPCG(uint64(n), 3))
		for i := range es {
			es[i].hi = rng.Uint64()
		}
		theirs := buildFilter(sortEntries(es), nil, nil)
		var p part
		p.seed, p.segment, p.segments, p.filterLen = theirs.Seed, theirs.SegmentLength, theirs.SegmentCount, uint32(len(theirs.Fingerprints))
		for range 100_000 {
			hi := rng.Uint64()
			if got := p.has(&theirs.Fingerprints[0], hi); got != theirs.Contains(hi) {
				t.Fatalf("%x of %d: %t", hi, n, got)
			}
		}
		for i := range es {
			if !p.has(&theirs.Fingerprints[0], es[i].hi) {
				t.Fatalf("%x of %d is denied", es[i].hi, n)
			}
		}
	}
}

// TestColdRunFault: a bucket that is taken to be in memory and faults nevertheless is read by
// a call, which says what is wrong, if anything is.
func TestColdRunFault(t *testing.T) {
	const shards, each = 6, 1_000
	cold, x := coldRuns(t, shards, each, Options{})
	for range 3 {
		for n := range uint64(shards * each) {
			find(t, x, n, each, shards*each)
		}
		cold.Forget() // and the index does not know
	}
	for _, r := range x.state.Load().disk {
		if err := os.Truncate(r.name, 200); err != nil {
			t.Fatal(err)
		}
	}
	var d *DamagedError
	if err := x.Lookup(hash(1, nil), func(Ingest) bool { return true }); !errors.As(err, &d) {
		t.Errorf("a file that was cut off: %v", err)
	}
}
