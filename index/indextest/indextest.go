// Package indextest holds implementations of package index's interfaces to what
// those interfaces promise. An implementation's test is four lines:
//
//	func TestMyRepo(t *testing.T) {
//		indextest.FullIndexRepo(t, func(t *testing.T) index.FullIndexRepo { return mine.New() })
//		indextest.LifeRepo(t, func(t *testing.T) index.LifeRepo { return mine.New() })
//	}
package indextest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/shard"
)

// Keys returns legal keys that a careless repository would trip over.
func Keys() []shard.Key {
	var keys []shard.Key
	for _, s := range []string{
		"plain", "with space", "a/b", "../../etc/passwd", "/", ".", "..", "a\\b", "nul\x00byte", "new\nline",
		"ünïcödé", "CASE", "case", ".version", "x.full.idx", "x.idx", "%2F", "~", "-rf",
		strings.Repeat("k", shard.MaxKeyLen),
	} {
		keys = append(keys, shard.KeyFromString(s))
	}
	return keys
}

// Multihashes returns n multihashes that depend on seed, in no order.
func Multihashes(seed, n int) []multihash.Multihash {
	out := make([]multihash.Multihash, n)
	for i := range out {
		sum, err := multihash.Sum(binary.AppendUvarint(binary.AppendUvarint(nil, uint64(seed)), uint64(i)), multihash.SHA2_256, -1)
		if err != nil {
			panic(err)
		}
		out[i] = sum
	}
	return out
}

// CAR returns a CARv1 of raw blocks whose multihashes depend on seed.
func CAR(seed, n int) []byte {
	out := []byte("\x11\xa2\x65roots\x80\x67version\x01")
	for i := range n {
		data := binary.AppendUvarint(binary.AppendUvarint(nil, uint64(seed)), uint64(i))
		sum, err := multihash.Sum(data, multihash.SHA2_256, -1)
		if err != nil {
			panic(err)
		}
		out = binary.AppendUvarint(out, uint64(2+len(sum)+len(data)))
		out = append(append(append(out, 1, cid.Raw), sum...), data...)
	}
	return out
}

// Draft drafts the index of CAR(seed, n).
func Draft(tb testing.TB, seed, n int) *index.Draft {
	tb.Helper()
	b := CAR(seed, n)
	d, err := index.Build(tb.Context(), bytes.NewReader(b), int64(len(b)), index.BuildOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

// goCarIndex is an index made by go-car with offset i+1 for multihash i.
func goCarIndex(tb testing.TB, mhs []multihash.Multihash) carindex.Index {
	tb.Helper()
	idx := carindex.NewMultihashSorted()
	var records []carindex.Record
	for i, mh := range mhs {
		records = append(records, carindex.Record{Cid: cid.NewCidV1(cid.Raw, mh), Offset: uint64(i + 1)})
	}
	if err := idx.Load(records); err != nil {
		tb.Fatal(err)
	}
	return idx
}

// FullIndexRepo tests what every FullIndexRepo promises.
func FullIndexRepo(t *testing.T, open func(t *testing.T) index.FullIndexRepo) {
	t.Run("empty", func(t *testing.T) { fullEmpty(t, open(t)) })
	t.Run("keys", func(t *testing.T) { fullKeys(t, open(t)) })
	t.Run("replace", func(t *testing.T) { fullReplace(t, open(t)) })
	t.Run("bad keys", func(t *testing.T) {
		for _, s := range []string{"", "\xff", strings.Repeat("k", shard.MaxKeyLen+1)} {
			if err := open(t).AddFullIndex(shard.KeyFromString(s), goCarIndex(t, nil)); !errors.Is(err, shard.ErrInvalidKey) {
				t.Errorf("key %.10q: %v", s, err)
			}
		}
	})
}

func fullEmpty(t *testing.T, r index.FullIndexRepo) {
	key := shard.KeyFromString("absent")
	if _, err := r.GetFullIndex(key); !errors.Is(err, index.ErrNotFound) {
		t.Errorf("GetFullIndex: %v", err)
	}
	if dropped, err := r.DropFullIndex(key); dropped || err != nil {
		t.Errorf("DropFullIndex: %v, %v", dropped, err)
	}
	if stat, err := r.StatFullIndex(key); stat != (index.Stat{}) || err != nil {
		t.Errorf("StatFullIndex: %v, %v", stat, err)
	}
	wantFull(t, r)
}

// wantFull checks Len, ForEach, Size and StatFullIndex against the keys that should
// be there.
func wantFull(t *testing.T, r index.FullIndexRepo, keys ...shard.Key) {
	t.Helper()
	if n, err := r.Len(); n != len(keys) || err != nil {
		t.Errorf("Len() = %d, %v, want %d", n, err, len(keys))
	}
	var have []string
	if err := r.ForEach(func(k shard.Key) (bool, error) { have = append(have, k.String()); return true, nil }); err != nil {
		t.Errorf("ForEach: %v", err)
	}
	var want []string
	sum := uint64(0)
	for _, k := range keys {
		want = append(want, k.String())
		stat, err := r.StatFullIndex(k)
		if !stat.Exists || stat.Size == 0 || err != nil {
			t.Errorf("StatFullIndex(%q) = %v, %v", k, stat, err)
		}
		sum += stat.Size
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("ForEach visits %q, want %q", have, want)
	}
	if size, err := r.Size(); size != sum || err != nil {
		t.Errorf("Size() = %d, %v, want %d", size, err, sum)
	}
}

func fullKeys(t *testing.T, r index.FullIndexRepo) {
	keys := Keys()
	for i, key := range keys {
		if err := r.AddFullIndex(key, goCarIndex(t, Multihashes(i, 10))); err != nil {
			t.Fatalf("AddFullIndex(%q): %v", key, err)
		}
	}
	wantFull(t, r, keys...)
	for i, key := range keys {
		idx, err := r.GetFullIndex(key)
		if err != nil {
			t.Fatalf("GetFullIndex(%q): %v", key, err)
		}
		wantOffsets(t, idx, Multihashes(i, 10))
		if _, err := carindex.GetFirst(idx, cid.NewCidV1(cid.Raw, Multihashes(1000, 1)[0])); !errors.Is(err, carindex.ErrNotFound) {
			t.Errorf("GetAll of what is absent: %v", err)
		}
	}
	visits := 0
	if err := r.ForEach(func(shard.Key) (bool, error) { visits++; return visits < 3, nil }); visits != 3 || err != nil {
		t.Errorf("ForEach stopped after %d visits: %v", visits, err)
	}
	boom := errors.New("boom")
	if err := r.ForEach(func(shard.Key) (bool, error) { return true, boom }); !errors.Is(err, boom) {
		t.Errorf("ForEach: %v", err)
	}
	for i, key := range keys {
		if dropped, err := r.DropFullIndex(key); !dropped || err != nil {
			t.Errorf("DropFullIndex(%q) = %v, %v", key, dropped, err)
		}
		if _, err := r.GetFullIndex(key); !errors.Is(err, index.ErrNotFound) {
			t.Errorf("GetFullIndex after the drop: %v", err)
		}
		wantFull(t, r, keys[i+1:]...)
	}
}

func wantOffsets(t *testing.T, idx carindex.Index, mhs []multihash.Multihash) {
	t.Helper()
	n := 0
	err := idx.(carindex.IterableIndex).ForEach(func(multihash.Multihash, uint64) error { n++; return nil })
	if n != len(mhs) || err != nil {
		t.Errorf("ForEach visits %d, %v, want %d", n, err, len(mhs))
	}
	for i, mh := range mhs {
		at, err := carindex.GetFirst(idx, cid.NewCidV1(cid.Raw, mh))
		if at != uint64(i+1) || err != nil {
			t.Errorf("GetFirst = %d, %v, want %d", at, err, i+1)
		}
	}
}

func fullReplace(t *testing.T, r index.FullIndexRepo) {
	key := shard.KeyFromString("k")
	for i := range 3 {
		if err := r.AddFullIndex(key, goCarIndex(t, Multihashes(i, 5+i))); err != nil {
			t.Fatal(err)
		}
		idx, err := r.GetFullIndex(key)
		if err != nil {
			t.Fatal(err)
		}
		wantOffsets(t, idx, Multihashes(i, 5+i))
		wantFull(t, r, key)
	}
}

// LifeRepo tests what every LifeRepo promises.
func LifeRepo(t *testing.T, open func(t *testing.T) index.LifeRepo) {
	t.Run("lives", func(t *testing.T) { lives(t, open(t)) })
	t.Run("sweep", func(t *testing.T) { lifeSweep(t, open(t)) })
	t.Run("open while dropped", func(t *testing.T) { lifeOpenWhileDropped(t, open(t)) })
	t.Run("concurrent", func(t *testing.T) { lifeConcurrent(t, open(t)) })
}

func wantIndex(t *testing.T, r index.LifeRepo, key shard.Key, gen uint64, want *index.Draft) {
	t.Helper()
	x, err := r.OpenIndex(key, gen)
	if err != nil {
		t.Errorf("OpenIndex(%q, %d): %v", key, gen, err)
		return
	}
	defer x.Close()
	if x.Info() != want.Info() {
		t.Errorf("OpenIndex(%q, %d) has %+v, want %+v", key, gen, x.Info(), want.Info())
	}
	if err := x.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	n := uint64(0)
	err = want.Multihashes().ForEach(func(mh multihash.Multihash) error {
		n++
		if _, found, err := x.FindMultihash(mh); !found || err != nil {
			return fmt.Errorf("Find(%x): %v, %w", mh, found, err)
		}
		return nil
	})
	if err != nil || n != x.Len() {
		t.Errorf("%d multihashes, want %d: %v", x.Len(), n, err)
	}
}

func wantNoIndex(t *testing.T, r index.LifeRepo, key shard.Key, gen uint64) {
	t.Helper()
	if x, err := r.OpenIndex(key, gen); !errors.Is(err, index.ErrNotFound) {
		t.Errorf("OpenIndex(%q, %d) = %v, %v, want ErrNotFound", key, gen, x, err)
	}
}

func lives(t *testing.T, r index.LifeRepo) {
	for i, key := range Keys() {
		old, young := Draft(t, i, 20), Draft(t, i+1000, 30)
		gen := uint64(i*2 + 1)
		wantNoIndex(t, r, key, gen)
		if dropped, err := r.DropIndex(key, gen); dropped || err != nil {
			t.Errorf("DropIndex of nothing: %v, %v", dropped, err)
		}
		for g, d := range map[uint64]*index.Draft{gen: old, gen + 1: young} {
			if err := r.PutIndex(key, g, d); err != nil {
				t.Fatalf("PutIndex(%q): %v", key, err)
			}
		}
		wantIndex(t, r, key, gen, old)
		wantIndex(t, r, key, gen+1, young)
		wantNoIndex(t, r, key, gen+2)
		wantNoIndex(t, r, shard.KeyFromString("another"), gen)
		if full, ok := r.(index.FullIndexRepo); ok {
			idx, err := full.GetFullIndex(key)
			if err != nil {
				t.Error(err)
			} else if x, ok := idx.(*index.ShardIndex); !ok || x.Info() != young.Info() {
				t.Errorf("GetFullIndex(%q) is not that of the newest generation", key)
			}
		}
		if dropped, err := r.DropIndex(key, gen); !dropped || err != nil {
			t.Errorf("DropIndex: %v, %v", dropped, err)
		}
		wantNoIndex(t, r, key, gen)
		wantIndex(t, r, key, gen+1, young)
		if err := r.PutIndex(key, gen+1, old); err != nil {
			t.Fatal(err)
		}
		wantIndex(t, r, key, gen+1, old)
	}
	if err := r.PutIndex(shard.Key{}, 1, Draft(t, 1, 1)); !errors.Is(err, shard.ErrInvalidKey) {
		t.Errorf("PutIndex without a key: %v", err)
	}
	empty := shard.KeyFromString("empty")
	if err := r.PutIndex(empty, 9999, Draft(t, 1, 0)); err != nil {
		t.Fatal(err)
	}
	wantIndex(t, r, empty, 9999, Draft(t, 1, 0))
}

func lifeSweep(t *testing.T, r index.LifeRepo) {
	for gen := range uint64(20) {
		if err := r.PutIndex(shard.KeyFromString(fmt.Sprint("k", gen%7)), gen, Draft(t, int(gen), 5)); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := r.SweepIndexes(func(gen uint64) bool { return gen%3 == 0 })
	if removed != 13 || err != nil {
		t.Errorf("SweepIndexes = %d, %v, want 13", removed, err)
	}
	for gen := range uint64(20) {
		key := shard.KeyFromString(fmt.Sprint("k", gen%7))
		if gen%3 == 0 {
			wantIndex(t, r, key, gen, Draft(t, int(gen), 5))
		} else {
			wantNoIndex(t, r, key, gen)
		}
	}
	if removed, err := r.SweepIndexes(func(gen uint64) bool { return gen%3 == 0 }); removed != 0 || err != nil {
		t.Errorf("the second SweepIndexes = %d, %v", removed, err)
	}
}

func lifeOpenWhileDropped(t *testing.T, r index.LifeRepo) {
	key, d := shard.KeyFromString("k"), Draft(t, 1, 100)
	if err := r.PutIndex(key, 1, d); err != nil {
		t.Fatal(err)
	}
	x, err := r.OpenIndex(key, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.DropIndex(key, 1); err != nil {
		t.Fatal(err)
	}
	if err := x.Verify(t.Context()); err != nil {
		t.Errorf("an open index does not survive its drop: %v", err)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := x.FindMultihash(Multihashes(1, 1)[0]); !errors.Is(err, index.ErrClosed) {
		t.Errorf("Find after Close: %v", err)
	}
}

func lifeConcurrent(t *testing.T, r index.LifeRepo) {
	var wg sync.WaitGroup
	drafts := []*index.Draft{Draft(t, 0, 10), Draft(t, 1, 20), Draft(t, 2, 30), Draft(t, 3, 40)}
	for i, d := range drafts {
		wg.Go(func() {
			key := shard.KeyFromString("shared")
			for round := range 10 {
				gen := uint64(100 + round*len(drafts) + i)
				if err := r.PutIndex(key, gen, d); err != nil {
					t.Error(err)
				}
				wantIndex(t, r, key, gen, d)
				if _, err := r.SweepIndexes(func(g uint64) bool { return g >= 100 }); err != nil {
					t.Error(err)
				}
				if dropped, err := r.DropIndex(key, gen); !dropped || err != nil {
					t.Errorf("DropIndex: %v, %v", dropped, err)
				}
			}
		})
	}
	wg.Wait()
}

// multihashes iterates over a slice through one buffer, as the interface allows.
type multihashes []multihash.Multihash

func (m multihashes) ForEach(visit func(multihash.Multihash) error) error {
	var buf []byte
	for _, mh := range m {
		buf = append(buf[:0], mh...)
		if err := visit(buf); err != nil {
			return err
		}
	}
	return nil
}

// Inverted tests what every Inverted promises; if it is a Remover too, that as well.
func Inverted(t *testing.T, open func(t *testing.T) index.Inverted) {
	t.Run("shards", func(t *testing.T) { invertedShards(t, open(t)) })
	t.Run("odd multihashes", func(t *testing.T) { invertedOdd(t, open(t)) })
	t.Run("errors", func(t *testing.T) { invertedErrors(t, open(t)) })
	t.Run("concurrent", func(t *testing.T) { invertedConcurrent(t, open(t)) })
	if _, ok := open(t).(index.Remover); ok {
		t.Run("remove", func(t *testing.T) { invertedRemove(t, open(t)) })
	}
}

func wantShards(t *testing.T, v index.Inverted, mh multihash.Multihash, want ...shard.Key) {
	t.Helper()
	have, err := v.GetShardsForMultihash(t.Context(), mh)
	if len(want) == 0 {
		if !errors.Is(err, ds.ErrNotFound) || len(have) > 0 {
			t.Errorf("GetShardsForMultihash(%x) = %q, %v, want ErrNotFound", mh, have, err)
		}
		return
	}
	order := func(a, b shard.Key) int { return strings.Compare(a.String(), b.String()) }
	slices.SortFunc(have, order)
	slices.SortFunc(want, order)
	if err != nil || !slices.Equal(have, want) {
		t.Errorf("GetShardsForMultihash(%x) = %q, %v, want %q", mh, have, err, want)
	}
}

func add(t *testing.T, v index.Inverted, key shard.Key, mhs ...multihash.Multihash) {
	t.Helper()
	if err := v.AddMultihashesForShard(t.Context(), multihashes(mhs), key); err != nil {
		t.Fatal(err)
	}
}

func invertedShards(t *testing.T, v index.Inverted) {
	keys := Keys()
	common := Multihashes(5000, 3)
	for i, key := range keys {
		add(t, v, key, append(Multihashes(i, 50), common...)...)
		add(t, v, key, append(Multihashes(i, 60), Multihashes(i, 10)...)...) // again, and twice, and more
	}
	for i, key := range keys {
		for _, mh := range Multihashes(i, 60) {
			wantShards(t, v, mh, key)
		}
	}
	for _, mh := range common {
		wantShards(t, v, mh, slices.Clone(keys)...)
	}
	for _, mh := range Multihashes(9999, 50) {
		wantShards(t, v, mh)
	}
}

// invertedOdd: every byte value at every place of a digest, short digests, and the
// same digest under two functions stay apart.
func invertedOdd(t *testing.T, v index.Inverted) {
	odd := []multihash.Multihash{{0, 0}, {0, 1, '/'}, {0, 2, '/', '/'}, {0, 2, '.', '.'}, {0, 3, '.', '.', '/'}, {0, 128}}
	odd[5] = append(odd[5][:1:1], append([]byte{0x80, 1}, make([]byte, 128)...)...)
	for b := range 256 {
		d := bytes.Repeat([]byte{byte(b)}, 32)
		odd = append(odd, append([]byte{0x12, 32}, d...), append([]byte{0x16, 32}, d...))
		d = bytes.Clone(Multihashes(b, 1)[0])
		d[2+b%32], d[2+(b+1)%32] = '/', byte(b)
		odd = append(odd, d)
	}
	for i, mh := range odd {
		add(t, v, shard.KeyFromString(fmt.Sprint(i)), mh)
	}
	for i, mh := range odd {
		wantShards(t, v, mh, shard.KeyFromString(fmt.Sprint(i)))
	}
}

type failing struct {
	mhs multihashes
	err error
}

func (f failing) ForEach(visit func(multihash.Multihash) error) error {
	return errors.Join(f.mhs.ForEach(visit), f.err)
}

func invertedErrors(t *testing.T, v index.Inverted) {
	boom := errors.New("boom")
	key := shard.KeyFromString("k")
	if err := v.AddMultihashesForShard(t.Context(), failing{Multihashes(1, 5), boom}, key); !errors.Is(err, boom) {
		t.Errorf("an error of the iterator came back as %v", err)
	}
	add(t, v, key, Multihashes(1, 5)...)
	for _, mh := range Multihashes(1, 5) {
		wantShards(t, v, mh, key)
	}
	add(t, v, shard.KeyFromString("empty"))
}

func invertedConcurrent(t *testing.T, v index.Inverted) {
	var wg sync.WaitGroup
	common := Multihashes(77, 20)
	for i := range 4 {
		key := shard.KeyFromString(fmt.Sprint("writer ", i))
		wg.Go(func() {
			for round := range 5 {
				mhs := append(Multihashes(i*100+round, 50), common...)
				if err := v.AddMultihashesForShard(context.Background(), multihashes(mhs), key); err != nil {
					t.Error(err)
				}
				wantShards(t, v, mhs[0], key)
				if r, ok := v.(index.Remover); ok && round == 2 {
					if err := r.RemoveShard(context.Background(), key); err != nil {
						t.Error(err)
					}
					wantShards(t, v, mhs[0])
				}
			}
		})
	}
	wg.Wait()
	for _, mh := range common {
		if keys, err := v.GetShardsForMultihash(t.Context(), mh); len(keys) != 4 || err != nil {
			t.Errorf("%d shards, %v", len(keys), err)
		}
	}
}

func invertedRemove(t *testing.T, v index.Inverted) {
	r := v.(index.Remover)
	a, b := shard.KeyFromString("a"), shard.KeyFromString("a/b")
	common := Multihashes(3, 40)
	for range 3 {
		add(t, v, a, append(Multihashes(1, 5000), common...)...)
		add(t, v, b, append(Multihashes(2, 40), common...)...)
		for range 2 { // twice is no error
			if err := r.RemoveShard(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
		for _, mh := range Multihashes(1, 5000) {
			wantShards(t, v, mh)
		}
		for _, mh := range append(Multihashes(2, 40), common...) {
			wantShards(t, v, mh, b)
		}
	}
}
