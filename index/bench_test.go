package index

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/shard"
)

// BenchmarkBuild indexes 262,144 blocks of 1 KiB from the page cache, the durable
// write of the index included. x-plain is the time relative to a sequential read with
// SHA-256 on one core in the same run.
func BenchmarkBuild(b *testing.B) {
	dir := b.TempDir()
	name := filepath.Join(dir, "bench.car")
	data := hostile.Random(262144, 1024, 1)
	if err := os.WriteFile(name, data, 0o600); err != nil {
		b.Fatal(err)
	}
	size := int64(len(data))
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	repo, err := NewFSRepo(filepath.Join(dir, "index"))
	if err != nil {
		b.Fatal(err)
	}
	plain := time.Duration(1 << 62)
	buf := make([]byte, 1<<20)
	for range 5 {
		start := time.Now()
		h := sha256.New()
		if _, err := io.CopyBuffer(h, struct{ io.Reader }{io.NewSectionReader(f, 0, size)}, buf); err != nil {
			b.Fatal(err)
		}
		plain = min(plain, time.Since(start))
	}
	key := shard.KeyFromString("bench")
	for _, bench := range []struct {
		name string
		opts BuildOptions
	}{{"verified", BuildOptions{}}, {"unverified", BuildOptions{SkipVerify: true}}} {
		b.Run(bench.name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			gen := uint64(0)
			for b.Loop() {
				d, err := Build(b.Context(), f, size, bench.opts)
				if err != nil {
					b.Fatal(err)
				}
				gen++
				if err := repo.PutIndex(key, gen, d); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(plain), "x-plain")
		})
	}
}

// bigIndex writes an index of n SHA2-256 records and returns its multihashes.
func bigIndex(b *testing.B, n int) (repo *FSIndexRepo, key shard.Key, mhs []string) {
	repo, err := NewFSRepo(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	key = shard.KeyFromString("bench")
	var d drafter
	rng := rand.New(rand.NewPCG(1, 2))
	var mh [34]byte
	mh[0], mh[1] = multihash.SHA2_256, 32
	for i := range n {
		for j := 2; j < len(mh); j += 8 {
			binary.LittleEndian.PutUint64(mh[j:], rng.Uint64())
		}
		if err := d.add(multihash.SHA2_256, mh[2:], Entry{Offset: uint64(i) * 1062, HeaderLen: 38, Size: 1024}); err != nil {
			b.Fatal(err)
		}
		mhs = append(mhs, string(mh[:]))
	}
	if err := repo.PutIndex(key, 1, d.finish(header{payload: uint64(n) * 1024, flags: flagUnbound})); err != nil {
		b.Fatal(err)
	}
	return repo, key, mhs
}

// BenchmarkOpen opens and closes an index; the heap it takes must not depend on the
// number of blocks.
func BenchmarkOpen(b *testing.B) {
	for name, n := range map[string]int{"100": 100, "2500000": 2_500_000} {
		b.Run(name, func(b *testing.B) {
			repo, key, _ := bigIndex(b, n)
			b.ReportAllocs()
			for b.Loop() {
				x, err := repo.OpenIndex(key, 1)
				if err != nil {
					b.Fatal(err)
				}
				if err := x.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFind looks up one of 2,500,000 blocks, against a Go map and go-car's index in
// memory: any of them (110 MB of index, most of it in no cache), and over and over one of
// 4,096 that are spread over the index, which caches hold. "load" is what one load of a
// word costs that lies anywhere in as much memory: less than that nobody can do.
func BenchmarkFind(b *testing.B) {
	repo, key, mhs := bigIndex(b, 2_500_000)
	x, err := repo.OpenIndex(key, 1)
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	if err := x.Verify(b.Context()); err != nil {
		b.Fatal(err)
	}
	// The keys lie in memory in the order of their use, so that what is measured is
	// the lookup and not fetching its argument.
	const n = 1 << 20
	present, absent := make([]byte, 0, 34*n), make([]byte, 0, 34*n)
	rng := rand.New(rand.NewPCG(3, 4))
	for range n {
		present = append(present, mhs[rng.IntN(len(mhs))]...)
		absent = append(absent, mhs[rng.IntN(len(mhs))]...)
		absent[len(absent)-12] ^= 1
	}
	each := func(b *testing.B, keys []byte, look func(mh string) (bool, error), want bool) {
		b.ReportAllocs()
		all := string(keys)
		n := len(keys) / 34
		i := 0
		for b.Loop() {
			if found, err := look(all[i*34 : i*34+34]); found != want || err != nil {
				b.Fatal(found, err)
			}
			i = (i + 1) % n
		}
	}
	find := func(mh string) (bool, error) {
		_, found, err := x.Find(mh)
		return found, err
	}
	b.Run("hit", func(b *testing.B) { each(b, present, find, true) })
	b.Run("miss", func(b *testing.B) { each(b, absent, find, false) })
	b.Run("hit-again", func(b *testing.B) { each(b, present[:34<<12], find, true) })
	b.Run("miss-again", func(b *testing.B) { each(b, absent[:34<<12], find, false) })
	b.Run("map", func(b *testing.B) {
		m := make(map[string]Entry, len(mhs))
		for i, mh := range mhs {
			m[mh] = Entry{Offset: uint64(i)}
		}
		look := func(mh string) (bool, error) { _, found := m[mh]; return found, nil }
		b.Run("any", func(b *testing.B) { each(b, present, look, true) })
		b.Run("again", func(b *testing.B) { each(b, present[:34<<12], look, true) })
	})
	b.Run("load", func(b *testing.B) {
		memory := make([]uint64, 110<<20/8)
		for i := range memory {
			memory[i] = uint64(i)
		}
		at := uint64(1)
		for b.Loop() { // each place follows from what was loaded last
			at = at*6364136223846793005 + 1442695040888963407
			at += memory[(at>>20)%uint64(len(memory))] & 1
		}
	})
	b.Run("go-car", func(b *testing.B) {
		var buf bytes.Buffer
		if _, err := carindex.WriteTo(x, &buf); err != nil {
			b.Fatal(err)
		}
		theirs, err := carindex.ReadFrom(bytes.NewReader(buf.Bytes()))
		if err != nil {
			b.Fatal(err)
		}
		cids := make([]cid.Cid, n)
		for i := range cids {
			cids[i] = cid.NewCidV1(cid.Raw, present[i*34:i*34+34])
		}
		i := 0
		for b.Loop() {
			if _, err := carindex.GetFirst(theirs, cids[i]); err != nil {
				b.Fatal(err)
			}
			i = (i + 1) % n
		}
	})
}

// BenchmarkMemInverted measures the top-level index in memory: ingest, hit, miss and
// heap per entry.
func BenchmarkMemInverted(b *testing.B) {
	const shards, each = 40, 25_000
	d := make([]*Draft, shards)
	rng := rand.New(rand.NewPCG(1, 2))
	var some, absent []string
	for s := range d {
		var dr drafter
		var mh [34]byte
		mh[0], mh[1] = multihash.SHA2_256, 32
		for i := range each {
			for j := 2; j < len(mh); j += 8 {
				binary.LittleEndian.PutUint64(mh[j:], rng.Uint64())
			}
			if err := dr.add(multihash.SHA2_256, mh[2:], Entry{Offset: uint64(i)}); err != nil {
				b.Fatal(err)
			}
			if i%16 == 0 {
				some = append(some, string(mh[:]))
				mh[9] ^= 1
				absent = append(absent, string(mh[:]))
			}
		}
		d[s] = dr.finish(header{flags: flagUnbound})
	}
	rng.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
	fill := func() *MemInverted {
		v := NewMemoryInverted()
		for s := range d {
			if err := v.AddMultihashesForShard(b.Context(), d[s].Multihashes(), shard.KeyFromBytes([]byte{byte(s)})); err != nil {
				b.Fatal(err)
			}
		}
		return v
	}
	b.Run("ingest", func(b *testing.B) {
		var before, after runtime.MemStats
		var v *MemInverted
		for b.Loop() {
			v = nil
			runtime.GC()
			runtime.ReadMemStats(&before)
			v = fill()
			runtime.GC()
			runtime.ReadMemStats(&after)
		}
		b.ReportMetric(float64(shards*each)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(shards*each), "B/entry")
		runtime.KeepAlive(v)
	})
	v := fill()
	for name, list := range map[string][]string{"hit": some, "miss": absent} {
		mhs := make([]multihash.Multihash, len(list))
		for i := range list {
			mhs[i] = multihash.Multihash(list[i])
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				_, err := v.GetShardsForMultihash(b.Context(), mhs[i%len(mhs)])
				if (err == nil) != (name == "hit") {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}
