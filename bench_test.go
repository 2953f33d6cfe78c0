package dagstore

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// The figures of the README. `make bench` runs them; each compares with something
// plain in the same run where there is something plain to compare with.

// writeCAR writes a CARv1 of n distinct raw blocks of size bytes and returns the
// CIDs, if there are not too many.
func writeCAR(tb testing.TB, path string, n, size int) []cid.Cid {
	tb.Helper()
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	block := make([]byte, size)
	cidOf := func(i int) cid.Cid {
		binary.LittleEndian.PutUint64(block, uint64(i)+1)
		sum := sha256.Sum256(block)
		mh, err := multihash.Encode(sum[:], multihash.SHA2_256)
		if err != nil {
			tb.Fatal(err)
		}
		return cid.NewCidV1(cid.Raw, mh)
	}
	root := cidOf(0)
	// {"roots": [root], "version": 1} in DAG-CBOR.
	header := append([]byte("\xa2eroots\x81\xd8\x2a\x58\x25\x00"), root.Bytes()...)
	header = append(header, "gversion\x01"...)
	w.Write(binary.AppendUvarint(nil, uint64(len(header))))
	w.Write(header)
	var cids []cid.Cid
	for i := range n {
		c := cidOf(i)
		if n <= 100_000 {
			cids = append(cids, c)
		}
		w.Write(binary.AppendUvarint(nil, uint64(c.ByteLen()+size)))
		w.Write(c.Bytes())
		w.Write(block)
	}
	if err := w.Flush(); err != nil {
		tb.Fatal(err)
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
	return cids
}

func openBench(tb testing.TB, dir string, opts ...Option) *DAGStore {
	tb.Helper()
	s, err := Open(context.Background(), dir, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func registerBench(tb testing.TB, s *DAGStore, key, path string) shard.Key {
	tb.Helper()
	k := shard.KeyFromString(key)
	if _, err := s.RegisterShardSync(context.Background(), k, &mount.FileMount{Path: path}, RegisterOpts{}); err != nil {
		tb.Fatal(err)
	}
	return k
}

func BenchmarkAcquireClose(b *testing.B) {
	ctx := context.Background()
	path := filepath.Join(b.TempDir(), "a.car")
	writeCAR(b, path, 100, 1024)
	s := openBench(b, b.TempDir())
	var keys []shard.Key
	for i := range 8 {
		keys = append(keys, registerBench(b, s, fmt.Sprintf("shard-%d", i), path))
	}
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			b.ReportAllocs()
			var next atomic.Int64
			times := make([][]time.Duration, callers)
			start := time.Now()
			var wg sync.WaitGroup
			for c := range callers {
				wg.Go(func() {
					out := make(chan ShardResult, 1)
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						t := time.Now()
						if err := s.AcquireShard(ctx, keys[i%8], out, AcquireOpts{}); err != nil {
							b.Error(err)
							return
						}
						res := <-out
						if res.Error != nil {
							b.Error(res.Error)
							return
						}
						res.Accessor.Close()
						times[c] = append(times[c], time.Since(t))
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "pairs/s")
			all := slices.Concat(times...)
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Nanoseconds()), "p50-ns")
			b.ReportMetric(float64(all[len(all)*99/100].Nanoseconds()), "p99-ns")
		})
	}
}

// BenchmarkAcquireCold opens and closes the shard every time.
func BenchmarkAcquireCold(b *testing.B) {
	ctx := context.Background()
	for _, n := range []int{100, 2_500_000} {
		b.Run(fmt.Sprintf("blocks=%d", n), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "a.car")
			writeCAR(b, path, n, 32)
			s := openBench(b, b.TempDir(), WithConfig(func(c *Config) { c.IdleHandles = -1 }))
			k := registerBench(b, s, "shard", path)
			b.ReportAllocs()
			for b.Loop() {
				acc, err := s.AcquireShardSync(ctx, k, AcquireOpts{})
				if err != nil {
					b.Fatal(err)
				}
				acc.Close()
			}
			b.ReportMetric(heldHeap(b, s, k), "held-heap-B")
		})
	}
}

// heldHeap measures the heap that one open shard takes, its accessor included.
func heldHeap(b *testing.B, s *DAGStore, k shard.Key) float64 {
	before := heapInUse()
	acc, err := s.AcquireShardSync(context.Background(), k, AcquireOpts{})
	if err != nil {
		b.Fatal(err)
	}
	held := float64(heapInUse()) - float64(before)
	acc.Close()
	return held
}

func BenchmarkGet(b *testing.B) {
	ctx := context.Background()
	path := filepath.Join(b.TempDir(), "a.car")
	all := writeCAR(b, path, 100_000, 1024)
	var some []cid.Cid // spread over the file
	for i := range 4096 {
		some = append(some, all[i*(len(all)/4096)])
	}
	for _, verify := range []bool{false, true} {
		s := openBench(b, b.TempDir(), WithConfig(func(c *Config) { c.SkipVerifyOnRead = !verify }))
		acc, err := s.AcquireShardSync(ctx, registerBench(b, s, "shard", path), AcquireOpts{})
		if err != nil {
			b.Fatal(err)
		}
		bs, err := acc.Blockstore()
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("get/verify=%t", verify), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := bs.Get(ctx, some[i%len(some)]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "blocks/s")
		})
		b.Run(fmt.Sprintf("get-in-order/verify=%t", verify), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := bs.Get(ctx, all[i%len(all)]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "blocks/s")
		})
		b.Run(fmt.Sprintf("view/verify=%t", verify), func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for i := 0; b.Loop(); i++ {
				if err := acc.View(ctx, some[i%len(some)], func(p []byte) error { n += len(p); return nil }); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "blocks/s")
		})
		acc.Close()
	}
	b.Run("plain-pread", func(b *testing.B) {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		p := make([]byte, 1024)
		for i := 0; b.Loop(); i++ {
			if _, err := f.ReadAt(p, int64(i*7919%90_000)*1024); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "blocks/s")
	})
}

// TestViewAllocatesNothing proves nothing but the figure it names.
func TestViewAllocatesNothing(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "a.car")
	some := writeCAR(t, path, 100, 1024)
	s := openBench(t, t.TempDir())
	acc, err := s.AcquireShardSync(ctx, registerBench(t, s, "shard", path), AcquireOpts{})
	if err != nil {
		t.Fatal(err)
	}
	defer acc.Close()
	see := func([]byte) error { return nil }
	i := 0
	if n := testing.AllocsPerRun(1000, func() {
		i++
		if err := acc.View(ctx, some[i%len(some)], see); err != nil {
			t.Fatal(err)
		}
	}); n >= 1 { // a collection may empty the pool of buffers meanwhile
		t.Errorf("View allocates %v times", n)
	}
}

func BenchmarkRegisterLazy(b *testing.B) {
	ctx := context.Background()
	s := openBench(b, b.TempDir())
	var next atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			out := make(chan ShardResult, 1)
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				k := shard.KeyFromString(fmt.Sprintf("baga6ea4seaqshard%040d", i))
				if err := s.RegisterShard(ctx, k, &mount.FileMount{Path: "/data/shards/" + k.String() + ".car"}, out, RegisterOpts{LazyInitialization: true}); err != nil {
					b.Error(err)
					return
				}
				if res := <-out; res.Error != nil {
					b.Error(res.Error)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "shards/s")
}

// registerMany registers n shards lazily, keeping many requests in flight.
func registerMany(tb testing.TB, s *DAGStore, n int, mnt func(key string) mount.Mount) {
	tb.Helper()
	registerManyAs(tb, s, "shard", n, mnt)
}

func registerManyAs(tb testing.TB, s *DAGStore, kind string, n int, mnt func(key string) mount.Mount) {
	tb.Helper()
	ctx := context.Background()
	out := make(chan ShardResult, 4096)
	go func() {
		for i := range n {
			k := fmt.Sprintf("baga6ea4seaq%s%040d", kind, i)
			if err := s.RegisterShard(ctx, shard.KeyFromString(k), mnt(k), out, RegisterOpts{LazyInitialization: true}); err != nil {
				tb.Error(err)
			}
		}
	}()
	for range n {
		if res := <-out; res.Error != nil {
			tb.Fatal(res.Error)
		}
	}
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkMillion(b *testing.B) {
	const n = 1_000_000
	dir := b.TempDir()
	before := heapInUse()
	s, err := Open(context.Background(), dir)
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	registerMany(b, s, n, func(k string) mount.Mount { return &mount.FileMount{Path: "/data/shards/" + k + ".car"} })
	registered, heap := n/time.Since(start).Seconds(), float64(heapInUse()-before)/n
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	s = nil
	var opened []time.Duration
	for b.Loop() {
		before := heapInUse()
		start := time.Now()
		s, err := Open(context.Background(), dir)
		if err != nil {
			b.Fatal(err)
		}
		opened = append(opened, time.Since(start))
		b.ReportMetric(float64(heapInUse()-before)/n, "reopened-heap-B/shard")
		if got := s.cat.Snapshot().Len(); got != n {
			b.Fatalf("%d shards are back", got)
		}
		s.Close()
	}
	slices.Sort(opened)
	b.ReportMetric(registered, "registered/s")
	b.ReportMetric(heap, "heap-B/shard")
	b.ReportMetric(opened[len(opened)/2].Seconds(), "reopen-s")
}

func BenchmarkGC(b *testing.B) {
	ctx := context.Background()
	path := filepath.Join(b.TempDir(), "a.car")
	writeCAR(b, path, 100, 1024)
	s := openBench(b, b.TempDir())
	k := registerBench(b, s, "used", path)
	registerMany(b, s, 100_000, func(k string) mount.Mount { return &mount.FileMount{Path: "/data/shards/" + k + ".car"} })
	stop := make(chan struct{})
	var took []time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			t := time.Now()
			acc, err := s.AcquireShardSync(ctx, k, AcquireOpts{})
			if err != nil {
				b.Error(err)
				return
			}
			took = append(took, time.Since(t))
			acc.Close()
			runtime.Gosched()
		}
	})
	for b.Loop() {
		if _, err := s.GC(ctx); err != nil {
			b.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "acquire-p50-µs")
	b.ReportMetric(float64(took[len(took)*999/1000].Nanoseconds())/1e3, "acquire-p99.9-µs")
}

// BenchmarkIndex registers a shard of 262,144 blocks of 1 KiB eagerly: scan, index,
// durable write, journal. The plain figure reads the file and hashes it.
func BenchmarkIndex(b *testing.B) {
	path := filepath.Join(b.TempDir(), "a.car")
	writeCAR(b, path, 262_144, 1024)
	st, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	for _, verify := range []bool{true, false} {
		b.Run(fmt.Sprintf("verify=%t", verify), func(b *testing.B) {
			s := openBench(b, b.TempDir(), WithConfig(func(c *Config) { c.SkipVerifyOnIndex = !verify }))
			b.SetBytes(st.Size())
			for i := 0; b.Loop(); i++ {
				registerBench(b, s, fmt.Sprint("shard-", i), path)
			}
		})
	}
	b.Run("plain-read-sha256", func(b *testing.B) {
		b.SetBytes(st.Size())
		buf := make([]byte, 1<<20)
		for b.Loop() {
			f, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			h := sha256.New()
			for {
				n, err := f.Read(buf)
				h.Write(buf[:n])
				if err != nil {
					break
				}
			}
			f.Close()
		}
	})
}
