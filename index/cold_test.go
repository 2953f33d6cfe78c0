// Where address space is short nothing is mapped.
//go:build (darwin || freebsd || linux) && !386 && !arm

package index

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/internal/mapped"
	"github.com/dagstore/dagstore/shard"
)

// coldIndex writes an index of the records and opens it on a cold file system.
func coldIndex(t *testing.T, records []record) (*fsiotest.Cold, *FSIndexRepo, *ShardIndex) {
	t.Helper()
	cold := fsiotest.NewCold()
	repo, err := NewFSRepoOn(cold, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key := shard.KeyFromString("cold")
	if err := repo.PutIndex(key, 1, draftRecords(t, records)); err != nil {
		t.Fatal(err)
	}
	x, err := repo.OpenIndex(key, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return cold, repo, x
}

// TestColdLookups: a lookup in an index that is not in memory reads it by two calls at
// most, and one that is repeated by none. A mapping that is not known to be in memory is
// touched by nothing, lookups of all kinds and walks through the index: it faults, and
// they would say so. Proves F20.
func TestColdLookups(t *testing.T) {
	records := evenRecords(30_000)
	want := make(map[string]Entry)
	for _, r := range records {
		if _, ok := want[r.mh]; !ok {
			want[r.mh] = r.e
		}
	}
	cold, _, x := coldIndex(t, records)
	if all, _ := cold.Reads(); all > 1 {
		t.Errorf("opening takes %d reads, want one", all)
	}
	look := func(mh string, find func(string) (Entry, bool, error)) (reads int64) {
		t.Helper()
		before, _ := cold.Reads()
		e, found, err := find(mh)
		after, _ := cold.Reads()
		if w, there := want[mh]; err != nil || found != there || e != w {
			t.Fatalf("lookup of %x: %+v, %t, %v; want %+v, %t", mh, e, found, err, w, there)
		}
		return after - before
	}
	again, most := int64(0), int64(0)
	for i := 0; i < len(records); i += 7 {
		absent := []byte(records[i].mh)
		absent[2+len(records[i].mh)%30] ^= 1
		for _, mh := range []string{records[i].mh, string(absent)} {
			find := x.Find
			if i%3 == 0 {
				find = x.FindChecked
			}
			most = max(most, look(mh, find))
			again += look(mh, find)
		}
	}
	// The digests of a few lead the fan-out astray.
	if most > 4 {
		t.Errorf("a lookup takes %d reads", most)
	}
	if again > 4 {
		t.Errorf("lookups that are repeated take %d reads", again)
	}
	before, _ := cold.Reads()
	n := 0
	for _, r := range records {
		e, found, known, err := x.FindInMemory(r.mh)
		if err != nil || known && (!found || e != want[r.mh]) {
			t.Fatalf("lookup of %x in memory: %+v, %t, %v; want %+v", r.mh, e, found, err, want[r.mh])
		}
		if known {
			n++
		}
	}
	if after, _ := cold.Reads(); after != before {
		t.Errorf("lookups in memory take %d reads", after-before)
	}
	if n < len(records)/2 {
		t.Errorf("%d of %d are known to be in memory", n, len(records))
	}

	// And now by those who read all of it, one after another.
	if err := x.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	n = 0
	if err := x.Entries(func(mh multihash.Multihash, e Entry) error {
		n++
		return nil
	}); err != nil || n != len(records) {
		t.Errorf("%d entries of %d: %v", n, len(records), err)
	}
}

// TestColdTwoReads: of a digest of a hash function, spread as those are, a lookup takes two
// reads, the fan-out's and that of the pages around the guess; in nearly all cases.
func TestColdTwoReads(t *testing.T) {
	records := evenRecords(30_000)
	cold, repo, _ := coldIndex(t, records)
	three := 0
	const lookups = 300
	for i := range lookups {
		x, err := repo.OpenIndex(shard.KeyFromString("cold"), 1)
		if err != nil {
			t.Fatal(err)
		}
		before, _ := cold.Reads()
		if _, found, err := x.Find(records[i*97].mh); err != nil || !found {
			t.Fatal(found, err)
		}
		if after, _ := cold.Reads(); after-before > 2 {
			three++
		}
		x.Close()
	}
	if three > lookups/100 {
		t.Errorf("%d of %d lookups take more than two reads", three, lookups)
	}
}

// TestColdOpenMany: open indices are mapped once each and have few descriptors among them;
// all are given back.
func TestColdOpenMany(t *testing.T) {
	const shards = 1_000
	records := evenRecords(100)
	cold, repo, x := coldIndex(t, records)
	x.Close()
	mapped.ReleaseDescriptors()
	var open [shards]*ShardIndex
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := g; i < shards; i += 8 {
				x, err := repo.OpenIndex(shard.KeyFromString("cold"), 1)
				if err == nil {
					open[i] = x
					_, _, err = x.Find(records[rand.IntN(len(records))].mh)
				}
				if err != nil {
					t.Errorf("%d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if files, maps := cold.Held(); files > 256 || maps != shards {
		t.Errorf("%d indices have %d descriptors and %d mappings", shards, files, maps)
	}
	for _, x := range open {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	}
	if files, maps := cold.Held(); files != 0 || maps != 0 {
		t.Errorf("%d descriptors and %d mappings are left", files, maps)
	}
}

// TestColdRot flips bits of an index on the disk that is not in memory: what is read is
// checked before it is believed, each time. Proves C10 (shard index), F20.
func TestColdRot(t *testing.T) {
	records := evenRecords(200)
	want := make(map[string]Entry)
	for _, r := range records {
		if _, ok := want[r.mh]; !ok {
			want[r.mh] = r.e
		}
	}
	_, repo, x := coldIndex(t, records)
	name := filepath.Join(repo.dir, fileName(hashKey(shard.KeyFromString("cold")), 1))
	sound, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	x.Close()
	rng := rand.New(rand.NewPCG(8, 8))
	noticed := 0
	for range 600 {
		at := int(x.core.length) + rng.IntN(len(sound)-int(x.core.length))
		rotten := append([]byte(nil), sound...)
		rotten[at] ^= 1 << rng.IntN(8)
		if err := os.WriteFile(name, rotten, 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := repo.OpenIndex(shard.KeyFromString("cold"), 1)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			r := records[rng.IntN(len(records))]
			e, found, err := x.FindChecked(r.mh)
			var d *DamagedError
			switch {
			case errors.As(err, &d):
				noticed++
			case err != nil, !found, e != want[r.mh]:
				t.Fatalf("byte %d flipped: %+v, %t, %v; want %+v", at, e, found, err, want[r.mh])
			}
		}
		x.Close()
	}
	if noticed == 0 {
		t.Error("no damage was noticed")
	}
}

// TestColdGround looks up digests that were made to share their leading bits, cold: by a
// search whose reads are logarithmic. Proves F20.
func TestColdGround(t *testing.T) {
	var records []record
	for i := range 20_000 {
		digest := []byte(strings.Repeat("x", 28) + fmt.Sprintf("%04x", i))
		records = append(records, record{string(hostile.Mh(multihash.SHA2_256, digest)), Entry{Offset: uint64(i) * 100, HeaderLen: 38, Size: i + 1}})
	}
	cold, _, x := coldIndex(t, records)
	for i := 0; i < len(records); i += 1_999 {
		before, _ := cold.Reads()
		e, found, err := x.Find(records[i].mh)
		if err != nil || !found || e != records[i].e {
			t.Fatalf("%+v, %t, %v; want %+v", e, found, err, records[i].e)
		}
		if after, _ := cold.Reads(); after-before > 40 {
			t.Errorf("%d reads", after-before)
		}
	}
	if err := x.Verify(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestColdFault: what is taken to be in memory and faults nevertheless is read by a call, which
// says what is wrong, if anything is. Proves C10 (shard index).
func TestColdFault(t *testing.T) {
	records := evenRecords(2_000)
	cold, repo, x := coldIndex(t, records)
	find := func(r record) error {
		e, found, err := x.Find(r.mh)
		if err == nil && (!found || e.Size == 0) {
			t.Fatalf("%+v, %t", e, found)
		}
		return err
	}
	for range 2 {
		for _, r := range records {
			if err := find(r); err != nil {
				t.Fatal(err)
			}
		}
		cold.Forget() // and the index does not know
	}
	name := filepath.Join(repo.dir, fileName(hashKey(shard.KeyFromString("cold")), 1))
	if err := os.Truncate(name, int64(x.core.length)+10); err != nil {
		t.Fatal(err)
	}
	var d *DamagedError
	if err := find(records[0]); !errors.As(err, &d) {
		t.Errorf("a file that was cut off: %v", err)
	}
}
