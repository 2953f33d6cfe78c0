package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multicodec"
	"github.com/multiformats/go-multihash"
	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/shard"
)

// FuzzShardIndex opens any bytes as a shard index: no lookup panics, loops or
// allocates by what the bytes claim; what passes Verify is consistent. Proves F20,
// S1 for index files.
func FuzzShardIndex(f *testing.F) {
	for _, n := range []int{0, 1, 9, 60} {
		f.Add(encodeDraft(f, draftRecords(f, sha256Records(n))), []byte(sha256Records(1)[0].mh))
	}
	f.Fuzz(func(t *testing.T, b, mh []byte) {
		// Damage is caught by checksums; what is behind them must hold by itself.
		if n, what := headerLength(b, int64(len(b))); what == "" {
			b = bytes.Clone(b)
			putCRC(b[:n])
		}
		x, err := openBytes(b, "fuzz")
		if err != nil {
			return
		}
		defer x.Close()
		_, _, _ = x.FindMultihash(mh)
		n := uint64(0)
		err = x.Entries(func(mh multihash.Multihash, e Entry) error {
			n++
			got, found, err := x.FindMultihash(mh)
			if err == nil && found && x.SizesKnown() && got.Size < 0 {
				t.Fatalf("a size of %d", got.Size)
			}
			return nil
		})
		if err == nil && n != x.Len() {
			t.Fatalf("%d records, Len says %d", n, x.Len())
		}
		_ = x.Verify(t.Context())
	})
}

func putCRC(b []byte) {
	sum := crcOf(b[:len(b)-crcLen])
	for i := range crcLen {
		b[len(b)-crcLen+i] = byte(sum >> (8 * i))
	}
}

// FuzzForeignIndex reads any bytes as a go-car index: what is accepted, go-car
// accepts too and answers alike. Proves S3.
func FuzzForeignIndex(f *testing.F) {
	x := openBoth(f, encodeDraft(f, draftRecords(f, sha256Records(5))))[0]
	var buf bytes.Buffer
	if _, err := carindex.WriteTo(x, &buf); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add([]byte{0x80, 0x08, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		idx, err := ReadForeignIndex(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !errors.Is(err, ErrBadIndex) {
				t.Fatal(err)
			}
			return
		}
		theirs, err := carindex.ReadFrom(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("go-car refuses what is accepted here: %v", err)
		}
		it, ok := idx.(carindex.IterableIndex)
		if !ok {
			return
		}
		padded := append(bytes.Clone(b), make([]byte, 100)...)
		if n, err := foreignLength(bytes.NewReader(padded), int64(len(padded))); n != int64(len(b)) && len(it.(*foreignMultihashIndex).buckets) <= maxGroups {
			t.Fatalf("an index of %d bytes, padded: %d, %v", len(b), n, err)
		}
		list := func(it carindex.IterableIndex) (out []string) {
			if err := it.ForEach(func(mh multihash.Multihash, at uint64) error {
				out = append(out, fmt.Sprintf("%x %d", []byte(mh), at))
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return out
		}
		if ours, want := list(it), list(theirs.(carindex.IterableIndex)); fmt.Sprint(ours) != fmt.Sprint(want) {
			t.Fatalf("have %v, want %v", ours, want)
		}
	})
}

// eioAt fails after n good reads.
type eioAt struct {
	r   io.ReaderAt
	n   int
	err error
}

func (e *eioAt) ReadAt(p []byte, at int64) (int, error) {
	if e.n--; e.n < 0 {
		return 0, e.err
	}
	return e.r.ReadAt(p, at)
}

// TestReadErrorsAreNotDamage: an index that cannot be read is not a damaged one.
// Proves C11, R9.
func TestReadErrorsAreNotDamage(t *testing.T) {
	records := sha256Records(200)
	b := encodeDraft(t, draftRecords(t, records))
	boom := errors.New("input/output error")
	for n := range 6 {
		x, err := OpenIndex(&eioAt{bytes.NewReader(b), n, boom}, int64(len(b)), "eio", nil)
		if n == 0 {
			if err != boom {
				t.Errorf("opening: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = x.Find(records[7].mh)
		if err == nil {
			_, _, err = x.Find(records[150].mh)
		}
		if err == nil {
			err = x.Entries(func(multihash.Multihash, Entry) error { return nil })
		}
		if err != boom {
			t.Errorf("after %d reads: %v", n, err)
		}
	}
}

// TestDraftFromIndexes drafts from indices of others: those that can be iterated, one
// that can only be asked, ones that leave blocks out, and ones that lie. Proves S3.
func TestDraftFromIndexes(t *testing.T) {
	b := hostile.Random(200, 50, 3)
	size := int64(len(b))
	built, err := Build(t.Context(), bytes.NewReader(b), size, BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	x := openBoth(t, encodeDraft(t, built))[0]
	var all, some, lying, inside []carindex.Record
	if err := x.Entries(func(mh multihash.Multihash, e Entry) error {
		r := carindex.Record{Cid: cid.NewCidV1(cid.Raw, bytes.Clone(mh)), Offset: e.Offset}
		all = append(all, r)
		if len(all)%2 == 0 {
			some = append(some, r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	lying = append(lying, all...)
	lying[3].Offset, lying[4].Offset = lying[4].Offset, lying[3].Offset
	inside = append(inside, all...)
	inside[3].Offset += 2
	for _, codec := range []multicodec.Code{multicodec.CarMultihashIndexSorted, multicodec.CarIndexSorted} {
		draft := func(records []carindex.Record) (*Draft, error) {
			idx, err := carindex.New(codec)
			if err != nil {
				t.Fatal(err)
			}
			if err := idx.Load(records); err != nil {
				t.Fatal(err)
			}
			return DraftFromIndex(t.Context(), idx, bytes.NewReader(b), size, BuildOptions{})
		}
		d, err := draft(all)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(encodeDraft(t, d), encodeDraft(t, built)) {
			t.Errorf("%v: the draft of a whole index differs from the built one", codec)
		}
		d, err = draft(some)
		if err != nil {
			t.Fatal(err)
		}
		if d.Len() != 100 || d.Info().Digest == built.Info().Digest {
			t.Errorf("%v: the draft of half an index: %+v", codec, d.Info())
		}
		for name, records := range map[string][]carindex.Record{"lying": lying, "inside": inside} {
			d, err := draft(records)
			if codec == multicodec.CarMultihashIndexSorted {
				if !errors.Is(err, ErrBadIndex) {
					t.Errorf("%s: %v", name, err)
				}
			} else if err != nil || d.Len() >= 200 { // what it does not know at its place is left out
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestSectionInsideASection: an index that also names the section that some block
// happens to contain is refused. Proves S3.
func TestSectionInsideASection(t *testing.T) {
	inner := hostile.Raw([]byte("inner"))
	b := hostile.V1(hostile.Raw(inner), hostile.Raw([]byte("outer")))
	size := int64(len(b))
	built, err := Build(t.Context(), bytes.NewReader(b), size, BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	records := []carindex.Record{{Cid: cid.NewCidV1(cid.Raw, hostile.RawCID([]byte("inner"))[2:]), Offset: uint64(bytes.Index(b, inner))}}
	if err := openBoth(t, encodeDraft(t, built))[0].ForEach(func(mh multihash.Multihash, at uint64) error {
		records = append(records, carindex.Record{Cid: cid.NewCidV1(cid.Raw, mh), Offset: at})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	idx := carindex.NewMultihashSorted()
	if err := idx.Load(records); err != nil {
		t.Fatal(err)
	}
	if _, err := DraftFromIndex(t.Context(), idx, bytes.NewReader(b), size, BuildOptions{}); !errors.Is(err, ErrBadIndex) {
		t.Errorf("%v", err)
	}
}

// TestFaultsWhileOpening: a fault of the disk while an index is opened and read is
// told as it is, and leaves no file open. Proves C11, R9.
func TestFaultsWhileOpening(t *testing.T) {
	records := sha256Records(100)
	key := shard.KeyFromString("k")
	for n := range uint64(12) {
		sim := fsio.NewSim(n)
		repo, err := NewFSRepoOn(sim, "/index")
		if err != nil {
			t.Fatal(err)
		}
		if err := repo.PutIndex(key, 1, draftRecords(t, records)); err != nil {
			t.Fatal(err)
		}
		before := uint64(len(sim.Ops()))
		sim.FailAt(before+n, fsio.FaultEIO)
		use := func() error {
			x, err := repo.OpenIndex(key, 1)
			if err != nil {
				return err
			}
			for _, r := range records {
				if e, found, err := x.Find(r.mh); err != nil || !found || e != r.e {
					return errors.Join(fmt.Errorf("Find: %v, %v, %w", e, found, err), x.Close())
				}
			}
			return x.Close()
		}
		err = use()
		var d *DamagedError
		if errors.As(err, &d) || errors.Is(err, ErrNotFound) {
			t.Errorf("operation %d: %v", n, err)
		}
		if open := sim.OpenFiles(); open != 0 {
			t.Errorf("operation %d: %d files are open", n, open)
		}
		if use() != nil { // the fault may lie in the second use
			if err := use(); err != nil {
				t.Errorf("operation %d: the fault has passed, and still %v", n, err)
			}
		}
	}
}

// TestManyKinds: an index of more kinds of multihash than are searched one by one.
func TestManyKinds(t *testing.T) {
	var records []record
	for n := range 129 {
		records = append(records, record{string(hostile.Mh(multihash.IDENTITY, bytes.Repeat([]byte{7}, n))), Entry{Offset: uint64(1000 + n), HeaderLen: 5, Size: n}})
	}
	for n := 20; n <= 64; n++ {
		records = append(records, record{string(hostile.Mh(multihash.SHA2_512, bytes.Repeat([]byte{9}, n))), Entry{Offset: uint64(n), HeaderLen: 5, Size: 1}})
	}
	for _, x := range openBoth(t, encodeDraft(t, draftRecords(t, records))) {
		for _, r := range records {
			if e, found, err := x.Find(r.mh); e != r.e || !found || err != nil {
				t.Errorf("Find(%x) = %v, %v, %v", r.mh, e, found, err)
			}
		}
		for _, absent := range [][]byte{hostile.Mh(multihash.SHA2_512, make([]byte, 19)), hostile.Mh(0x99, nil), hostile.Mh(multihash.IDENTITY, []byte{8})} {
			if _, found, err := x.FindMultihash(absent); found || err != nil {
				t.Errorf("Find(%x) = %v, %v", absent, found, err)
			}
		}
		for _, bad := range [][]byte{nil, {0x12}, {0x12, 32}, {0x12, 1, 2, 3}, bytes.Repeat([]byte{0xff}, 40)} {
			if _, _, err := x.FindMultihash(bad); err == nil {
				t.Errorf("Find(%x) takes it for a multihash", bad)
			}
		}
		if err := x.Verify(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestForgottenIndexIsReleased: an index that is dropped without Close gives its file
// back.
func TestForgottenIndexIsReleased(t *testing.T) {
	b := encodeDraft(t, draftRecords(t, sha256Records(5)))
	released := make(chan struct{})
	func() {
		if _, err := OpenIndex(bytes.NewReader(b), int64(len(b)), "forgotten", closerFunc(func() error { close(released); return nil })); err != nil {
			t.Fatal(err)
		}
	}()
	for {
		runtime.GC()
		select {
		case <-released:
			return
		case <-t.Context().Done():
			t.Fatal("never released")
		default:
			runtime.Gosched()
		}
	}
}

// TestLastMention looks things up in indices whose last mention is the lookup, while
// the collector runs: none is closed under its caller.
func TestLastMention(t *testing.T) {
	records := sha256Records(50)
	b := encodeDraft(t, draftRecords(t, records))
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			runtime.GC()
		}
	})
	for range 300 {
		x, err := openBytes(b, "x")
		if err != nil {
			t.Fatal(err)
		}
		if _, found, err := x.Find(records[1].mh); !found || err != nil {
			t.Errorf("%v, %v", found, err)
			break
		}
	}
	stop.Store(true)
	wg.Wait()
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }

// TestCloseReportsErrors: the error of the underlying close is told, once and again.
func TestCloseReportsErrors(t *testing.T) {
	b := encodeDraft(t, draftRecords(t, sha256Records(5)))
	boom := errors.New("boom")
	x, err := OpenIndex(bytes.NewReader(b), int64(len(b)), "x", closerFunc(func() error { return boom }))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := x.Close(); err != boom {
			t.Errorf("%v", err)
		}
	}
}

// mhList iterates over multihashes.
type mhList []string

func (l mhList) ForEach(visit func(multihash.Multihash) error) error {
	for _, mh := range l {
		if err := visit(multihash.Multihash(mh)); err != nil {
			return err
		}
	}
	return nil
}

// TestMemInvertedAgainstMap holds the top-level index against a map of sets over
// random additions and removals.
func TestMemInvertedAgainstMap(t *testing.T) {
	universe := make([]string, 0, 60)
	for _, r := range sha256Records(50) {
		universe = append(universe, r.mh)
	}
	for n := range 10 {
		universe = append(universe, string(hostile.Mh(multihash.IDENTITY, make([]byte, n))))
	}
	rapid.Check(t, func(t *rapid.T) {
		v := NewMemoryInverted()
		model := make(map[string]map[shard.Key]bool)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			key := shard.KeyFromString(rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "key"))
			if rapid.IntRange(0, 3).Draw(t, "op") == 0 {
				if err := v.RemoveShard(t.Context(), key); err != nil {
					t.Fatal(err)
				}
				for _, set := range model {
					delete(set, key)
				}
			} else {
				list := rapid.SliceOf(rapid.SampledFrom(universe)).Draw(t, "multihashes")
				if err := v.AddMultihashesForShard(t.Context(), mhList(list), key); err != nil {
					t.Fatal(err)
				}
				for _, mh := range list {
					if model[mh] == nil {
						model[mh] = make(map[shard.Key]bool)
					}
					model[mh][key] = true
				}
			}
			entries := 0
			for _, mh := range universe {
				keys, err := v.GetShardsForMultihash(t.Context(), multihash.Multihash(mh))
				if err != nil && !errors.Is(err, ds.ErrNotFound) {
					t.Fatal(err)
				}
				if len(keys) != len(model[mh]) {
					t.Fatalf("%x: have %v, want %v", mh, keys, model[mh])
				}
				for _, k := range keys {
					if !model[mh][k] {
						t.Fatalf("%x: have %v, want %v", mh, keys, model[mh])
					}
				}
				entries += len(keys)
			}
			live := 0
			for i := range v.stripes {
				live += v.stripes[i].live
			}
			if live != entries {
				t.Fatalf("%d slots for %d entries", live, entries)
			}
		}
	})
}

// TestIngestIsOneStep: while shards come and go, a reader that sees the last entry of
// a shard also sees the first.
func TestIngestIsOneStep(t *testing.T) {
	var list mhList
	for _, r := range sha256Records(2000) {
		list = append(list, r.mh)
	}
	v := NewMemoryInverted()
	key := shard.KeyFromString("k")
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				n := len(v.shardsOf(list[0]))
				for _, mh := range list[1:20] {
					m := len(v.shardsOf(mh))
					if m < n { // visible before, so it must still be: nothing is removed here
						t.Errorf("%d entries, then %d", n, m)
						return
					}
					n = m
				}
			}
		})
	}
	for i := range 20 {
		if err := v.AddMultihashesForShard(t.Context(), list, shard.KeyFromBytes([]byte{byte(i)})); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	boom := errors.New("boom")
	err := v.AddMultihashesForShard(t.Context(), failingList{list, boom}, key)
	if !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
	if n := len(v.shardsOf(list[0])); n != 20 {
		t.Errorf("%d shards after a failed ingest", n)
	}
}

type failingList struct {
	mhList
	err error
}

func (f failingList) ForEach(visit func(multihash.Multihash) error) error {
	return errors.Join(f.mhList.ForEach(visit), f.err)
}

func (v *MemInverted) shardsOf(mh string) []shard.Key {
	keys, _ := v.GetShardsForMultihash(context.Background(), multihash.Multihash(mh))
	return keys
}
