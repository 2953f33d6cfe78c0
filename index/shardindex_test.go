package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/ipfs/go-cid"
	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multihash"
	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/shard"
)

// record is one entry of a test index.
type record struct {
	mh string
	e  Entry
}

// draftRecords drafts an index of given records, whatever they say.
func draftRecords(tb testing.TB, records []record) *Draft {
	tb.Helper()
	var d drafter
	payload := uint64(0)
	for _, r := range records {
		code, digest, ok := cids.Split([]byte(r.mh))
		if !ok {
			tb.Fatalf("not a multihash: %x", r.mh)
		}
		if err := d.add(code, digest, r.e); err != nil {
			tb.Fatal(err)
		}
		payload += uint64(r.e.Size)
	}
	return d.finish(header{payload: payload, flags: flagUnbound})
}

func encodeDraft(tb testing.TB, d *Draft) []byte {
	tb.Helper()
	var buf bytes.Buffer
	if _, err := d.write(&buf, shard.KeyFromString("test"), 7); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// openBoth opens index bytes in memory and through ReadAt.
func openBoth(tb testing.TB, b []byte) []*ShardIndex {
	tb.Helper()
	mapped, err := openBytes(b, "mapped")
	if err != nil {
		tb.Fatal(err)
	}
	read, err := OpenIndex(bytes.NewReader(b), int64(len(b)), "read", nil)
	if err != nil {
		tb.Fatal(err)
	}
	return []*ShardIndex{mapped, read}
}

// drawRecords draws multihashes of few kinds, with digests that are random, share
// long prefixes, or repeat.
func drawRecords(t *rapid.T) []record {
	type kind struct {
		code uint64
		n    int
	}
	kinds := []kind{{multihash.SHA2_256, 32}, {multihash.SHA2_512, 64}, {multihash.SHA2_256, 20}, {multihash.IDENTITY, 0}, {multihash.IDENTITY, 3}, {multihash.IDENTITY, 128}}
	n := rapid.SampledFrom([]int{0, 1, 2, 3, 22, 23, 24, 46, 100, 500, 3000}).Draw(t, "n")
	ground := rapid.SampledFrom([]int{0, 1, 8, 31}).Draw(t, "shared prefix")
	seed := rapid.Uint64().Draw(t, "seed")
	rng := rand.New(rand.NewPCG(seed, 1))
	out := make([]record, 0, n)
	offset := uint64(50)
	for len(out) < n {
		k := kinds[0]
		if rng.IntN(4) == 0 {
			k = kinds[rng.IntN(len(kinds))]
		}
		digest := make([]byte, k.n)
		for i := min(ground, k.n/2); i < k.n; i++ {
			digest[i] = byte(rng.Uint32())
		}
		mh := string(hostile.Mh(k.code, digest))
		if len(out) > 0 && rng.IntN(10) == 0 {
			mh = out[rng.IntN(len(out))].mh
		}
		out = append(out, record{mh, Entry{Offset: offset, HeaderLen: 1 + rng.IntN(100), Size: rng.IntN(1 << 20)}})
		offset += uint64(rng.IntN(1<<20) + 1)
	}
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// TestIndexAgainstMap holds the shard index against a map: every lookup of what is
// there and of what is not, every iteration, in both ways of access. Proves F20 (no
// wrong answers without damage), S2.
func TestIndexAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		records := drawRecords(t)
		want := make(map[string][]Entry)
		for _, r := range records {
			want[r.mh] = append(want[r.mh], r.e)
		}
		for _, list := range want {
			slices.SortFunc(list, func(a, b Entry) int { return int(int64(a.Offset) - int64(b.Offset)) })
		}
		var d drafter
		for _, r := range records {
			code, digest, _ := cids.Split([]byte(r.mh))
			if err := d.add(code, digest, r.e); err != nil {
				t.Fatal(err)
			}
		}
		payload := uint64(0)
		for _, r := range records {
			payload += uint64(r.e.Size)
		}
		var buf bytes.Buffer
		if _, err := d.finish(header{payload: payload}).WriteTo(&buf); err != nil {
			t.Fatal(err)
		}
		b := buf.Bytes()
		mapped, err := openBytes(b, "mapped")
		if err != nil {
			t.Fatal(err)
		}
		read, err := OpenIndex(bytes.NewReader(b), int64(len(b)), "read", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range []*ShardIndex{mapped, read} {
			if err := x.Verify(context.Background()); err != nil {
				t.Fatal(err)
			}
			checkAgainst(t, x, want)
		}
	})
}

func checkAgainst(t *rapid.T, x *ShardIndex, want map[string][]Entry) {
	n := 0
	for mh, list := range want {
		n += len(list)
		e, found, err := x.Find(mh)
		if err != nil || !found || e != list[0] {
			t.Fatalf("Find(%x) = %v, %v, %v, want %v", mh, e, found, err, list[0])
		}
		var all []Entry
		if err := x.FindAll(mh, func(e Entry) bool { all = append(all, e); return true }); err != nil || !slices.Equal(all, list) {
			t.Fatalf("FindAll(%x) = %v, %v, want %v", mh, all, err, list)
		}
		// Neighbours of what is there.
		for _, delta := range []byte{1, 0xff} {
			near := []byte(mh)
			near[len(near)-1] += delta
			if _, _, ok := cids.Split(near); !ok || want[string(near)] != nil {
				continue
			}
			if _, found, err := x.FindMultihash(near); found || err != nil {
				t.Fatalf("Find of the absent %x: %v, %v", near, found, err)
			}
		}
	}
	for _, fill := range []byte{0, 0xff} {
		edge := string(hostile.Mh(multihash.SHA2_256, bytes.Repeat([]byte{fill}, 32)))
		if _, found, err := x.Find(edge); found != (want[edge] != nil) || err != nil {
			t.Fatalf("Find(%x): %v, %v", edge, found, err)
		}
	}
	if x.Len() != uint64(n) {
		t.Fatalf("Len() = %d, want %d", x.Len(), n)
	}
	got := make(map[string][]Entry)
	if err := x.Entries(func(mh multihash.Multihash, e Entry) error {
		got[string(mh)] = append(got[string(mh)], e)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for mh, list := range got {
		if !slices.Equal(list, want[mh]) {
			t.Fatalf("Entries: %x has %v, want %v", mh, list, want[mh])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("Entries: %d multihashes, want %d", len(got), len(want))
	}
}

// sha256Records returns n records with pseudo-random SHA2-256 multihashes.
func sha256Records(n int) []record {
	rng := rand.New(rand.NewPCG(1, 2))
	out := make([]record, n)
	var b [34]byte
	b[0], b[1] = multihash.SHA2_256, 32
	for i := range out {
		for j := 2; j < len(b); j += 8 {
			binary.LittleEndian.PutUint64(b[j:], rng.Uint64())
		}
		out[i] = record{string(b[:]), Entry{Offset: uint64(59 + i*1062), HeaderLen: 38, Size: 1024}}
	}
	return out
}

// TestEveryFlippedByte flips every byte of a small index file and truncates it at
// every length. Whatever comes of it, a lookup gives the right answer or a
// DamagedError, never a wrong one, and Verify finds every flip. Proves F20, C10.
func TestEveryFlippedByte(t *testing.T) {
	records := sha256Records(60)
	records = append(records, record{string(hostile.Mh(multihash.IDENTITY, []byte("hello"))), Entry{Offset: 1 << 30, HeaderLen: 10, Size: 5}})
	records = append(records, record{records[5].mh, Entry{Offset: 1 << 31, HeaderLen: 38, Size: 1024}})
	good := encodeDraft(t, draftRecords(t, records))
	want := make(map[string]Entry)
	for _, r := range records {
		if _, ok := want[r.mh]; !ok {
			want[r.mh] = r.e
		}
	}
	for _, r := range records[:60:60] {
		absent := []byte(r.mh)
		absent[20] ^= 0x10
		records = append(records, record{mh: string(absent)})
	}
	opened, answers := 0, 0
	for i := range good {
		for _, flip := range []byte{0x01, 0x80, 0xff} {
			b := bytes.Clone(good)
			b[i] ^= flip
			x, err := openBytes(b, "flipped")
			if err != nil {
				wantDamage(t, err)
				continue
			}
			opened++
			for _, r := range records {
				e, found, err := x.Find(r.mh)
				if err != nil {
					wantDamage(t, err)
					continue
				}
				answers++
				if w, ok := want[r.mh]; ok != found || e != w {
					t.Fatalf("byte %d ^ %#x: Find(%x) = %v, %v, want %v, %v", i, flip, r.mh, e, found, w, ok)
				}
			}
			if err := x.Verify(t.Context()); err == nil {
				t.Fatalf("byte %d ^ %#x: Verify finds nothing", i, flip)
			}
		}
	}
	for n := range len(good) {
		_, err := openBytes(good[:n], "cut")
		wantDamage(t, err)
	}
	_, err := openBytes(append(bytes.Clone(good), 0), "longer")
	wantDamage(t, err)
	if opened == 0 || answers == 0 {
		t.Fatal("nothing was tried")
	}
	t.Logf("%d bytes, %d damaged files opened, %d right answers from them", len(good), opened, answers)
}

// TestMisplacedPages swaps pages within a file and takes one from another file: each
// has a sound checksum, and none is believed in the wrong place. Proves F20.
func TestMisplacedPages(t *testing.T) {
	records := sha256Records(60)
	good := encodeDraft(t, draftRecords(t, records))
	g := openBoth(t, good)[0].core.groups[0]
	page := func(b []byte, i uint64) []byte {
		at, n := g.page(i)
		return b[at : at+n]
	}
	swapped := bytes.Clone(good)
	copy(page(swapped, 1), page(good, 3))
	copy(page(swapped, 3), page(good, 1))
	records[0].e.Size++
	foreign := bytes.Clone(good)
	copy(page(foreign, 1), page(encodeDraft(t, draftRecords(t, records)), 1))
	records[0].e.Size--
	for name, b := range map[string][]byte{"swapped": swapped, "foreign": foreign} {
		x := openBoth(t, b)[0]
		damaged := 0
		for _, r := range records {
			e, found, err := x.Find(r.mh)
			if err != nil {
				wantDamage(t, err)
				damaged++
			} else if !found || e != r.e {
				t.Errorf("%s: Find(%x) = %v, %v", name, r.mh, e, found)
			}
		}
		if damaged == 0 {
			t.Errorf("%s: nothing was noticed", name)
		}
	}
}

func wantDamage(t *testing.T, err error) {
	t.Helper()
	var d *DamagedError
	if !errors.As(err, &d) {
		t.Fatalf("want a DamagedError, have %v", err)
	}
}

// TestNewerAndForeignFiles tells a newer file from a damaged one. Proves C13 for shard indices.
func TestNewerAndForeignFiles(t *testing.T) {
	good := encodeDraft(t, draftRecords(t, sha256Records(5)))
	x := openBoth(t, good)[0]
	h := x.core.header
	b := h.encode()
	newer := bytes.Clone(good)
	binary.LittleEndian.PutUint16(newer[8:], formatVersion+1)
	_, err := openBytes(newer, "flipped")
	wantDamage(t, err) // a version without its checksum is damage
	// The same with a right checksum is a newer file.
	body := newer[:len(b)-crcLen]
	binary.LittleEndian.PutUint32(newer[len(body):], crcOf(body))
	if _, err := openBytes(newer, "newer"); !errors.Is(err, ErrNewerFormat) {
		t.Fatalf("a newer file: %v", err)
	}
	_, err = openBytes(bytes.Repeat([]byte("no index"), 100), "foreign")
	wantDamage(t, err)
}

// TestSearchWithLyingHints destroys the fan-out: answers stay right and the number of
// pages looked at stays logarithmic, also for digests ground to share their leading
// bytes. Proves F20, S1 (bounded work).
func TestSearchWithLyingHints(t *testing.T) {
	random := sha256Records(20000)
	ground := slices.Clone(random)
	for i := range ground {
		b := []byte(ground[i].mh)
		copy(b[2:], make([]byte, 12))
		ground[i].mh = string(b)
	}
	for name, records := range map[string][]record{"random": random, "ground": ground} {
		for lie, fill := range map[string]func(i int) uint32{
			"truth": nil,
			"zero":  func(int) uint32 { return 0 },
			"max":   func(int) uint32 { return 1<<32 - 1 },
			"noise": func(i int) uint32 { return uint32(uint64(i) * 2654435761) },
		} {
			b := encodeDraft(t, draftRecords(t, records))
			x := openBoth(t, b)[0]
			g := x.core.groups[0]
			if fill != nil {
				for i := range 1 << g.fanBits {
					binary.LittleEndian.PutUint32(b[g.offset+uint64(i)*4:], fill(i))
				}
			}
			reads := &countingAt{r: bytes.NewReader(b)}
			y, err := OpenIndex(reads, int64(len(b)), "lying", nil)
			if err != nil {
				t.Fatal(err)
			}
			most := 0
			for _, r := range records[:2000] {
				reads.n = 0
				e, found, err := y.Find(r.mh)
				if err != nil || !found || e != r.e {
					t.Fatalf("%s, %s: Find = %v, %v, %v, want %v", name, lie, e, found, err, r.e)
				}
				most = max(most, reads.n)
			}
			if most > 30 { // gallop and bisect over 2,500 pages: at most about 2·log2
				t.Errorf("%s, %s: a lookup took %d reads", name, lie, most)
			}
		}
	}
}

type countingAt struct {
	r *bytes.Reader
	n int
}

func (c *countingAt) ReadAt(p []byte, at int64) (int, error) {
	c.n++
	return c.r.ReadAt(p, at)
}

// TestFindDoesNotAllocate, nor does opening grow with the index.
func TestFindDoesNotAllocate(t *testing.T) {
	records := sha256Records(10000)
	dir := t.TempDir()
	repo, err := NewFSRepo(dir)
	if err != nil {
		t.Fatal(err)
	}
	key := shard.KeyFromString("k")
	if err := repo.PutIndex(key, 1, draftRecords(t, records)); err != nil {
		t.Fatal(err)
	}
	x, err := repo.OpenIndex(key, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if x.core.data == nil && runtime.GOOS == "linux" && strconv.IntSize == 64 {
		t.Error("the index is not mapped")
	}
	i := 0
	for _, y := range []*ShardIndex{x, openBoth(t, encodeDraft(t, draftRecords(t, records)))[1]} {
		if n := testing.AllocsPerRun(1000, func() {
			i++
			if _, found, err := y.Find(records[i%len(records)].mh); !found || err != nil {
				t.Fatal(found, err)
			}
		}); n != 0 {
			t.Errorf("Find allocates %v times", n)
		}
	}
}

// TestCloseRacesWithLookups closes indices under readers: each lookup ends with the
// right answer or ErrClosed. Proves F16 for indices.
func TestCloseRacesWithLookups(t *testing.T) {
	records := sha256Records(500)
	repo, err := NewFSRepo(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key := shard.KeyFromString("k")
	if err := repo.PutIndex(key, 1, draftRecords(t, records)); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		x, err := repo.OpenIndex(key, 1)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		started := make(chan struct{}, 4)
		for range 4 {
			wg.Go(func() {
				for i := 0; ; i++ {
					r := records[i%len(records)]
					e, found, err := x.Find(r.mh)
					if err == ErrClosed {
						return
					}
					if err != nil || !found || e != r.e {
						t.Errorf("Find = %v, %v, %v", e, found, err)
						return
					}
					if i == 10 {
						started <- struct{}{}
					}
				}
			})
		}
		<-started
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := x.Entries(nil); err != ErrClosed {
			t.Errorf("Entries of a closed index: %v", err)
		}
	}
}

// TestTruncatedUnderTheMapping cuts an index file that is mapped: lookups get a
// DamagedError, the process lives. Proves F16, F20.
func TestTruncatedUnderTheMapping(t *testing.T) {
	records := sha256Records(20000)
	dir := t.TempDir()
	repo, err := NewFSRepo(dir)
	if err != nil {
		t.Fatal(err)
	}
	key := shard.KeyFromString("k")
	if err := repo.PutIndex(key, 1, draftRecords(t, records)); err != nil {
		t.Fatal(err)
	}
	x, err := repo.OpenIndex(key, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if x.core.data == nil {
		t.Log("not mapped on this platform; reads are checked instead")
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.idx"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	if err := os.Truncate(names[0], 8192); err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for _, r := range records[:2000] {
		e, found, err := x.Find(r.mh)
		if err == nil {
			if !found || e != r.e {
				t.Fatalf("a wrong answer: %v, %v", e, found)
			}
			continue
		}
		wantDamage(t, err)
		damaged++
	}
	if damaged == 0 {
		t.Error("no lookup noticed the cut")
	}
	wantDamage(t, x.Verify(t.Context()))
	wantDamage(t, x.Entries(func(multihash.Multihash, Entry) error { return nil }))
}

// TestGoCarAgrees marshals the index and has go-car read it back, and the other way
// round. Proves S3 (export and import).
func TestGoCarAgrees(t *testing.T) {
	car := hostile.Random(300, 100, 3)
	d, err := Build(t.Context(), bytes.NewReader(car), int64(len(car)), BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	x := openBoth(t, encodeDraft(t, d))[0]
	var ours bytes.Buffer
	if _, err := carindex.WriteTo(x, &ours); err != nil {
		t.Fatal(err)
	}
	theirs, err := carindex.ReadFrom(bytes.NewReader(ours.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if _, err := carindex.WriteTo(theirs, &again); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ours.Bytes(), again.Bytes()) {
		t.Error("go-car writes other bytes than it read")
	}
	foreign, err := ReadForeignIndex(bytes.NewReader(ours.Bytes()), int64(ours.Len()))
	if err != nil {
		t.Fatal(err)
	}
	imported, err := ImportIndex(foreign.(carindex.IterableIndex))
	if err != nil {
		t.Fatal(err)
	}
	y := openBoth(t, encodeDraft(t, imported))[1]
	if _, bound := y.Binding(); bound || y.SizesKnown() {
		t.Error("an import pretends to know its source")
	}
	adopted, err := DraftFromIndex(t.Context(), foreign, bytes.NewReader(car), int64(len(car)), BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if adopted.Info() != d.Info() {
		t.Errorf("adopted %+v, built %+v", adopted.Info(), d.Info())
	}
	if !bytes.Equal(encodeDraft(t, adopted), encodeDraft(t, d)) {
		t.Error("the adopted index differs from the built one")
	}
	err = x.Entries(func(mh multihash.Multihash, e Entry) error {
		c := cid.NewCidV1(cid.Raw, bytes.Clone(mh))
		for _, idx := range []carindex.Index{x, y, foreign, theirs} {
			if at, err := carindex.GetFirst(idx, c); err != nil || at != e.Offset {
				return fmt.Errorf("%T: %d, %v, want %d", idx, at, err, e.Offset)
			}
		}
		if e, _, err := y.FindMultihash(mh); err != nil || e.Size != -1 || e.HeaderLen != 0 {
			return fmt.Errorf("imported entry %v, %v", e, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	absent, _ := multihash.Sum([]byte("absent"), multihash.SHA2_256, -1)
	for _, idx := range []carindex.Index{x, y, foreign, theirs} {
		if _, err := carindex.GetFirst(idx, cid.NewCidV1(cid.Raw, absent)); err != carindex.ErrNotFound {
			t.Errorf("%T: absent: %v", idx, err)
		}
	}
	if x.Unmarshal(nil) != ErrImmutable || x.Load(nil) != ErrImmutable {
		t.Error("an index let itself be changed")
	}
}

// TestCheckSource: a source that differs in size, header, or in the blocks at the
// sampled offsets is a mismatch; an error of reading is not. Proves F30, R9.
func TestCheckSource(t *testing.T) {
	for name, car := range map[string][]byte{
		"v1": hostile.Random(100, 200, 1),
		"v2": hostile.V2(hostile.Random(100, 200, 1)),
	} {
		t.Run(name, func(t *testing.T) {
			size := int64(len(car))
			d, err := Build(t.Context(), bytes.NewReader(car), size, BuildOptions{})
			if err != nil {
				t.Fatal(err)
			}
			x := openBoth(t, encodeDraft(t, d))[0]
			reads := &countingAt{r: bytes.NewReader(car)}
			if err := x.CheckSource(reads, size); err != nil {
				t.Fatal(err)
			}
			if reads.n > 16 {
				t.Errorf("%d reads", reads.n)
			}
			mismatched := func(what string, b []byte) {
				t.Helper()
				var m *SourceMismatchError
				if err := x.CheckSource(bytes.NewReader(b), int64(len(b))); !errors.As(err, &m) {
					t.Errorf("%s: %v", what, err)
				}
			}
			mismatched("longer", append(bytes.Clone(car), 0))
			mismatched("shorter", car[:size-1])
			other := hostile.Random(100, 200, 2)
			if name == "v2" {
				other = hostile.V2(other)
			}
			mismatched("other blocks of the same sizes", other)
			mismatched("zeros", make([]byte, size))
			header := bytes.Clone(car)
			header[bytes.Index(header, []byte("version"))-3] ^= 1 // last byte of the root
			mismatched("another root", header)
			boom := errors.New("boom")
			if err := x.CheckSource(failingAt{boom}, size); err != boom {
				t.Errorf("an error of reading came back as %v", err)
			}
		})
	}
}

type failingAt struct{ err error }

func (f failingAt) ReadAt([]byte, int64) (int, error) { return 0, f.err }

// TestBuildKeepsEverySection: duplicates, identity CIDs and empty blocks are indexed,
// in CARv1, CARv2 and padded, with one content digest for the same content.
func TestBuildKeepsEverySection(t *testing.T) {
	id := hostile.CIDv1(0x55, hostile.Mh(multihash.IDENTITY, []byte("inline")))
	sections := [][]byte{hostile.Raw([]byte("a")), hostile.Raw(nil), hostile.Section(id, []byte("inline")), hostile.Raw([]byte("a"))}
	payload := hostile.V1(sections...)
	var digest [32]byte
	for i, car := range [][]byte{payload, hostile.V2(payload), append(bytes.Clone(payload), make([]byte, 100)...)} {
		d, err := Build(t.Context(), bytes.NewReader(car), int64(len(car)), BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		info := d.Info()
		if info.Blocks != 4 || info.PayloadBytes != 8 || info.SourceSize != uint64(len(car)) {
			t.Errorf("%+v", info)
		}
		if i > 0 && info.Digest != digest {
			t.Error("the content digest depends on the wrapping")
		}
		digest = info.Digest
		x := openBoth(t, encodeDraft(t, d))[1]
		var offsets []uint64
		sum, _ := multihash.Sum([]byte("a"), multihash.SHA2_256, -1)
		c := cid.NewCidV1(cid.Raw, sum)
		if err := x.GetAll(c, func(at uint64) bool { offsets = append(offsets, at); return true }); err != nil || len(offsets) != 2 || offsets[0] >= offsets[1] {
			t.Errorf("duplicates at %v, %v", offsets, err)
		}
	}
}

// TestEmbeddedIndex: a true embedded index is adopted where the caller trusts it, a
// lying one is an error. Proves S3.
func TestEmbeddedIndex(t *testing.T) {
	payload := hostile.Random(50, 100, 9)
	d, err := Build(t.Context(), bytes.NewReader(payload), int64(len(payload)), BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var idx bytes.Buffer
	if _, err := carindex.WriteTo(openBoth(t, encodeDraft(t, d))[0], &idx); err != nil {
		t.Fatal(err)
	}
	wrap := func(idx []byte) []byte {
		head := hostile.V2Header([16]byte{}, 51, uint64(len(payload)), uint64(51+len(payload)))
		return hostile.Join(head, payload, idx)
	}
	build := func(idx []byte) (*Draft, error) {
		car := wrap(idx)
		return Build(t.Context(), bytes.NewReader(car), int64(len(car)), BuildOptions{TrustEmbeddedIndex: true})
	}
	got, err := build(idx.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if got.Info().Digest != d.Info().Digest || got.Len() != d.Len() {
		t.Errorf("adopted %+v, built %+v", got.Info(), d.Info())
	}
	for i := range idx.Len() {
		lie := bytes.Clone(idx.Bytes())
		lie[i] ^= 0x41
		if got, err := build(lie); err == nil && got.Info().Digest != d.Info().Digest {
			t.Fatalf("byte %d: a lying index was adopted", i)
		}
	}
	if _, err := build(idx.Bytes()[:idx.Len()-1]); !errors.Is(err, ErrBadIndex) {
		t.Errorf("a cut index: %v", err)
	}
}

// TestReadForeignIndexIsBounded: lengths that lie are refused without allocating
// them. Proves S3.
func TestReadForeignIndexIsBounded(t *testing.T) {
	le := binary.LittleEndian
	mh := []byte{0x81, 0x08} // MultihashIndexSorted
	single := []byte{0x80, 0x08}
	huge := le.AppendUint64(le.AppendUint32(le.AppendUint32(nil, 1), 40), 1<<40)
	cases := map[string][]byte{
		"empty":           nil,
		"unknown codec":   {1},
		"no count":        mh,
		"count":           le.AppendUint32(bytes.Clone(mh), 1<<31-1),
		"negative count":  le.AppendUint32(bytes.Clone(mh), 1<<31),
		"huge records":    hostile.Join(single, huge),
		"huge records mh": hostile.Join(mh, le.AppendUint64(le.AppendUint32(nil, 1), 0x12), huge),
		"width 7":         hostile.Join(single, le.AppendUint64(le.AppendUint32(le.AppendUint32(nil, 1), 7), 0)),
		"width 32 MiB":    hostile.Join(single, le.AppendUint64(le.AppendUint32(le.AppendUint32(nil, 1), 32<<20), 0)),
		"ragged":          hostile.Join(single, le.AppendUint64(le.AppendUint32(le.AppendUint32(nil, 1), 40), 39), make([]byte, 39)),
		"trailing":        hostile.Join(single, le.AppendUint32(nil, 0), []byte{0}),
		"unsorted":        hostile.Join(single, le.AppendUint64(le.AppendUint32(le.AppendUint32(nil, 1), 9), 18), []byte{2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}),
		"widths twice":    hostile.Join(single, le.AppendUint32(nil, 2), bytes.Repeat(le.AppendUint64(le.AppendUint32(nil, 40), 0), 2)),
	}
	for name, b := range cases {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := ReadForeignIndex(bytes.NewReader(b), int64(len(b)))
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrBadIndex) {
			t.Errorf("%s: %v", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: %d bytes allocated for a file of %d", name, n, len(b))
		}
	}
	boom := errors.New("boom")
	if _, err := ReadForeignIndex(failingAt{boom}, 100); err != boom {
		t.Errorf("an error of reading came back as %v", err)
	}
}

// TestBuildPassesErrorsThrough: an error of the source is neither wrapped nor judged,
// sinks see nothing after a cancelled context. Proves R9.
func TestBuildPassesErrorsThrough(t *testing.T) {
	boom := errors.New("boom")
	if _, err := Build(t.Context(), failingAt{boom}, 1000, BuildOptions{}); err != boom {
		t.Errorf("%v", err)
	}
	car := hostile.Random(10, 10, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Build(ctx, bytes.NewReader(car), int64(len(car)), BuildOptions{}); err != context.Canceled {
		t.Errorf("%v", err)
	}
	car[len(car)-1] ^= 1
	var e *carscan.Error
	if _, err := Build(t.Context(), bytes.NewReader(car), int64(len(car)), BuildOptions{}); !errors.As(err, &e) || !errors.Is(err, ErrHashMismatch) {
		t.Errorf("%v", err)
	}
	if _, err := Build(t.Context(), bytes.NewReader(car), int64(len(car)), BuildOptions{SkipVerify: true}); err != nil {
		t.Errorf("unverified: %v", err)
	}
}

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
