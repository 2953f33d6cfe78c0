package dagstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
)

// readBench is a shard of 100,000 blocks of 1 KiB in a file, and an order to read them.
type readBench struct {
	path  string
	cids  []cid.Cid // in the order of the file
	mixed []cid.Cid
}

func newReadBench(b *testing.B) *readBench {
	r := &readBench{path: filepath.Join(b.TempDir(), "a.car")}
	r.cids = writeCAR(b, r.path, 100_000, 1024)
	for range 1 << 16 {
		r.mixed = append(r.mixed, r.cids[rand.IntN(len(r.cids))])
	}
	return r
}

// each runs do over the shard read by system calls and mapped, verified and not. Mapped
// is the default, for what was read before, which is nearly all.
func (r *readBench) each(b *testing.B, do func(b *testing.B, bs *ShardBlockstore)) {
	for _, mapped := range []bool{false, true} {
		for _, verify := range []bool{false, true} {
			s := openBench(b, b.TempDir(), WithConfig(func(c *Config) { c.SkipVerifyOnRead, c.SkipMapSources = !verify, !mapped }))
			acc, err := s.AcquireShardSync(context.Background(), registerBench(b, s, "shard", r.path), AcquireOpts{})
			if err != nil {
				b.Fatal(err)
			}
			bs, err := acc.Blockstore()
			if err != nil {
				b.Fatal(err)
			}
			b.Run(fmt.Sprintf("mapped=%t/verify=%t", mapped, verify), func(b *testing.B) { do(b, bs.(*ShardBlockstore)) })
			acc.Close()
		}
	}
}

// parallel calls do from as many goroutines as there are cores, with numbers that
// start somewhere.
func parallel(b *testing.B, do func(i int) error) {
	b.ReportAllocs()
	var start atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for i := int(start.Add(17_011)); pb.Next(); i++ {
			if err := do(i); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "blocks/s")
}

// BenchmarkReadParallel reads blocks of 1 KiB in any order, from as many goroutines as
// there are cores, beside plain reads of as many bytes.
func BenchmarkReadParallel(b *testing.B) {
	ctx := context.Background()
	r := newReadBench(b)
	r.each(b, func(b *testing.B, bs *ShardBlockstore) {
		b.Run("get", func(b *testing.B) {
			parallel(b, func(i int) error { _, err := bs.Get(ctx, r.mixed[i%len(r.mixed)]); return err })
		})
		b.Run("view", func(b *testing.B) {
			parallel(b, func(i int) error {
				return bs.View(ctx, r.mixed[i%len(r.mixed)], func([]byte) error { return nil })
			})
		})
		b.Run("size", func(b *testing.B) {
			parallel(b, func(i int) error { _, err := bs.GetSize(ctx, r.mixed[i%len(r.mixed)]); return err })
		})
	})
	f, err := os.Open(r.path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	at := func(i int) int64 { return int64(i) * 7919 % 90_000 * 1024 }
	b.Run("plain-read", func(b *testing.B) {
		parallel(b, func(i int) error { _, err := f.ReadAt(make([]byte, 1024), at(i)); return err })
	})
	b.Run("plain-read-hashed", func(b *testing.B) {
		parallel(b, func(i int) error {
			p := make([]byte, 1024)
			_, err := f.ReadAt(p, at(i))
			sum := sha256.Sum256(p)
			if sum[0] == 1 && sum[1] == 2 && sum[2] == 3 && sum[3] == 4 {
				b.Log("unlikely")
			}
			return err
		})
	})
}

// BenchmarkMany reads 1,000 blocks of 1 KiB that lie one after the other, beside a
// plain read of the same part of the file: into a buffer that is used again, and into
// new memory, which is what GetMany returns.
func BenchmarkMany(b *testing.B) {
	ctx := context.Background()
	r := newReadBench(b)
	const n = 1000
	from := func(i int) int { return i * 7919 % (len(r.cids) - n) }
	rate := func(b *testing.B) {
		b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "blocks/s")
	}
	r.each(b, func(b *testing.B, bs *ShardBlockstore) {
		b.Run("get-many", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := bs.GetMany(ctx, r.cids[from(i):from(i)+n]); err != nil {
					b.Fatal(err)
				}
			}
			rate(b)
		})
		b.Run("view-many", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := bs.ViewMany(ctx, r.cids[from(i):from(i)+n], func(_ int, _ []byte, err error) error { return err }); err != nil {
					b.Fatal(err)
				}
			}
			rate(b)
		})
		b.Run("get-each", func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				for _, c := range r.cids[from(i) : from(i)+n] {
					if _, err := bs.Get(ctx, c); err != nil {
						b.Fatal(err)
					}
				}
			}
			rate(b)
		})
	})
	f, err := os.Open(r.path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	const size = n * (1024 + 38)
	plain := func(b *testing.B, again, hash bool) {
		p := make([]byte, size)
		for i := 0; b.Loop(); i++ {
			if !again {
				p = make([]byte, size)
			}
			if _, err := f.ReadAt(p, int64(from(i))*(1024+38)); err != nil {
				b.Fatal(err)
			}
			for q := p; hash && len(q) >= 1062; q = q[1062:] {
				sha256.Sum256(q[:1024])
			}
		}
		rate(b)
	}
	b.Run("plain-read/buffer=again", func(b *testing.B) { plain(b, true, false) })
	b.Run("plain-read/buffer=new", func(b *testing.B) { plain(b, false, false) })
	b.Run("plain-read-hashed/buffer=again", func(b *testing.B) { plain(b, true, true) })
	b.Run("plain-read-hashed/buffer=new", func(b *testing.B) { plain(b, false, true) })
}

// BenchmarkRemove destroys shards of 100,000 blocks whose blocks are being looked up: how
// long the destroying takes, how long the slowest lookup meanwhile, and how long the first
// one after the answer, which must no longer find the shard.
func BenchmarkRemove(b *testing.B) {
	ctx := context.Background()
	path := filepath.Join(b.TempDir(), "a.car")
	cids := writeCAR(b, path, 100_000, 64)
	s := openBench(b, b.TempDir())
	var destroy, slowest, after []time.Duration
	for b.Loop() {
		k := registerBench(b, s, "shard", path)
		stop, worst := make(chan struct{}), make(chan time.Duration)
		go func() {
			var max time.Duration
			for i := 0; ; i++ {
				began := time.Now()
				_, _, err := s.FindShards(ctx, cids[i%len(cids)].Hash(), Any())
				if took := time.Since(began); took > max {
					max = took
				}
				var none *NoShardError
				if err != nil && !errors.As(err, &none) {
					b.Error(err)
				}
				select {
				case <-stop:
					worst <- max
					return
				default:
				}
			}
		}()
		began := time.Now()
		if _, err := s.DestroyShardSync(ctx, k, DestroyOpts{}); err != nil {
			b.Fatal(err)
		}
		destroy = append(destroy, time.Since(began))
		began = time.Now()
		if _, _, err := s.FindShards(ctx, cids[7].Hash(), Any()); err == nil {
			b.Fatal("the shard is found after it was destroyed")
		}
		after = append(after, time.Since(began))
		close(stop)
		slowest = append(slowest, <-worst)
	}
	median := func(d []time.Duration) float64 { slices.Sort(d); return float64(d[len(d)/2].Microseconds()) }
	b.ReportMetric(median(destroy), "destroy-us")
	b.ReportMetric(median(slowest), "slowest-lookup-us")
	b.ReportMetric(median(after), "first-lookup-after-us")
}
