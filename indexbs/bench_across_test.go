package indexbs_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	mh "github.com/multiformats/go-multihash"
	"golang.org/x/sync/errgroup"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// blockOf is block number i of a benchmark: bytes that follow from i alone.
func blockOf(i uint64, size int) []byte {
	data := make([]byte, size)
	binary.LittleEndian.PutUint64(data, i*0x9e3779b97f4a7c15)
	return data
}

func cidOf(data []byte) cid.Cid {
	sum := sha256.Sum256(data)
	return cid.NewCidV1(cid.Raw, must(mh.Encode(sum[:], mh.SHA2_256)))
}

// writeCAR writes n blocks of a size, from number first on, and returns their CIDs.
func writeCAR(path string, first uint64, n, size int) ([]cid.Cid, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	root := cidOf(blockOf(first, size))
	header := append([]byte("\xa2eroots\x81\xd8\x2a\x58\x25\x00"), root.Bytes()...) // DAG-CBOR
	header = append(header, "gversion\x01"...)
	w.Write(binary.AppendUvarint(nil, uint64(len(header))))
	w.Write(header)
	cids := make([]cid.Cid, n)
	for i := range cids {
		data := blockOf(first+uint64(i), size)
		cids[i] = cidOf(data)
		w.Write(binary.AppendUvarint(nil, uint64(cids[i].ByteLen()+size)))
		w.Write(cids[i].Bytes())
		w.Write(data)
	}
	return cids, w.Flush()
}

// intEnv is a number out of the environment.
func intEnv(b *testing.B, name string, otherwise int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// across is a store with shards of blocks of 1 KiB, and one shard with as many blocks
// as all of them.
type across struct {
	d      *dagstore.DAGStore
	blocks []placed // of all shards, mixed
	one    []placed // of the one
}

// placed is a block with the accessor of its shard.
type placed struct {
	c  cid.Cid
	in dagstore.ReadBlockstore
}

func openAcross(b *testing.B, shards, blocks int, opts ...dagstore.Option) *across {
	b.Helper()
	dir := b.TempDir()
	d, err := dagstore.Open(b.Context(), filepath.Join(dir, "store"), opts...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	register := func(name string, first uint64, n int) ([]cid.Cid, error) {
		path := filepath.Join(dir, name+".car")
		cids, err := writeCAR(path, first, n, 1<<10)
		if err != nil {
			return nil, err
		}
		_, err = d.RegisterShardSync(b.Context(), shard.KeyFromString(name), &mount.FileMount{Path: path}, dagstore.RegisterOpts{})
		return cids, err
	}
	a := &across{d: d, blocks: make([]placed, shards*blocks)}
	place := func(dst []placed, name string, cids []cid.Cid) error {
		acc, err := d.AcquireShardSync(b.Context(), shard.KeyFromString(name), dagstore.AcquireOpts{})
		if err != nil {
			return err
		}
		b.Cleanup(func() { acc.Close() })
		in, err := acc.Blockstore()
		for i, c := range cids {
			dst[i] = placed{c, in}
		}
		return err
	}
	var g errgroup.Group
	g.SetLimit(4)
	for s := range shards {
		g.Go(func() error {
			name := fmt.Sprintf("baga6ea4seaq-shard-%06d", s)
			cids, err := register(name, uint64(s*blocks+1), blocks)
			if err != nil {
				return err
			}
			return place(a.blocks[s*blocks:], name, cids)
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	cids, err := register("one", 1<<40, shards*blocks)
	if err != nil {
		b.Fatal(err)
	}
	a.one = make([]placed, len(cids))
	if err := place(a.one, "one", cids); err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, mixed := range [][]placed{a.blocks, a.one} {
		r.Shuffle(len(mixed), func(i, k int) { mixed[i], mixed[k] = mixed[k], mixed[i] })
	}
	return a
}

// BenchmarkAcross reads blocks of 1 KiB in random order over 1,000 shards of 1,000
// blocks, on disk and all of them open, with two goroutines, and compares in turns in
// one run with
//
//   - the same reads by who knows in which shard each block is and has all accessors at
//     hand: "ratio" is what finding the shard costs;
//   - reads of one shard that holds as many blocks, through its accessor: "ratio-of-one"
//     has in it too what 1,000 files and indices cost beside one.
//
// Every block was read once before, so most of them are hot; "looked-up" is without that.
//
// DAGSTORE_BENCH_SHARDS and DAGSTORE_BENCH_BLOCKS change the numbers.
func BenchmarkAcross(b *testing.B) {
	a := openAcross(b, intEnv(b, "DAGSTORE_BENCH_SHARDS", 1000), intEnv(b, "DAGSTORE_BENCH_BLOCKS", 1000))
	all, err := indexbs.New(b.Context(), over(a.d), indexbs.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer all.Close()
	cold, err := indexbs.New(b.Context(), over(a.d), indexbs.Options{HotBlocks: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer cold.Close()
	get := func(ctx context.Context, bs dagstore.ReadBlockstore, c cid.Cid) error {
		_, err := bs.Get(ctx, c)
		return err
	}
	size := func(ctx context.Context, bs dagstore.ReadBlockstore, c cid.Cid) error {
		_, err := bs.GetSize(ctx, c)
		return err
	}
	across := func(all dagstore.ReadBlockstore, read reader) func(context.Context, placed) error {
		return func(ctx context.Context, p placed) error { return read(ctx, all, p.c) }
	}
	direct := func(read reader) func(context.Context, placed) error {
		return func(ctx context.Context, p placed) error { return read(ctx, p.in, p.c) }
	}
	for _, bs := range []*indexbs.IndexBackedBlockstore{all, cold} { // open all, and fill the page cache
		readAll(b, across(bs, get), a.blocks, 0, len(a.blocks))
	}
	readAll(b, direct(get), a.one, 0, len(a.one))
	for name, read := range map[string]reader{"get": get, "size": size} {
		b.Run(name, func(b *testing.B) {
			compareReads(b, []compared{
				{"across/s", "", across(all, read), a.blocks},
				{"direct/s", "ratio", direct(read), a.blocks},
				{"one/s", "ratio-of-one", direct(read), a.one},
			})
			b.ReportMetric(0, "ns/op") // of all three together
		})
		b.Run(name+"-looked-up", func(b *testing.B) {
			compareReads(b, []compared{
				{"across/s", "", across(cold, read), a.blocks},
				{"direct/s", "ratio", direct(read), a.blocks},
				{"one/s", "ratio-of-one", direct(read), a.one},
			})
			b.ReportMetric(0, "ns/op")
		})
	}
	b.Run("get-alone", func(b *testing.B) {
		b.ReportAllocs()
		readAll(b, across(all, get), a.blocks, 0, b.N)
	})
	if n := all.Stats().OpenNow; n < min(1000, len(a.blocks)) && b.N > 0 {
		b.Logf("%d shards are open", n)
	}
}

type reader func(context.Context, dagstore.ReadBlockstore, cid.Cid) error

// compared is one way to read blocks.
type compared struct {
	rate, ratio string // names of metrics: reads each second, and the first one's time by this one's
	read        func(context.Context, placed) error
	blocks      []placed
}

// compareReads reads in several ways, in turns of the same length.
func compareReads(b *testing.B, ways []compared) {
	const turns = 8
	took := make([]time.Duration, len(ways))
	n := max(b.N/turns/len(ways), 1)
	for t := range turns {
		for i, w := range ways {
			start := time.Now()
			readAll(b, w.read, w.blocks, t*n, n)
			took[i] += time.Since(start)
		}
	}
	for i, w := range ways {
		b.ReportMetric(float64(turns*n)/took[i].Seconds(), w.rate)
		if w.ratio != "" {
			b.ReportMetric(float64(took[0])/float64(took[i]), w.ratio)
		}
	}
}

// readAll has two goroutines read n blocks.
func readAll(b *testing.B, read func(context.Context, placed) error, blocks []placed, from, n int) {
	var next atomic.Int64
	var g errgroup.Group
	const step = 64
	for range 2 {
		g.Go(func() error {
			for {
				i := int(next.Add(step)) - step
				if i >= n {
					return nil
				}
				for k := i; k < min(i+step, n); k++ {
					if err := read(b.Context(), blocks[(from+k)%len(blocks)]); err != nil {
						return err
					}
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkMiss asks for the size of blocks that are in no shard, as a bitswap server
// does mostly, with and without remembering that they are not; of the store's own
// top-level index and of one over a datastore, which is in memory.
func BenchmarkMiss(b *testing.B) {
	for name, opts := range map[string][]dagstore.Option{"own": nil, "given": {dagstore.WithConfig(func(c *dagstore.Config) {
		c.TopLevelIndex = index.NewInverted(dssync.MutexWrap(ds.NewMapDatastore()))
	})}} {
		d, err := dagstore.Open(b.Context(), filepath.Join(b.TempDir(), "store"), opts...)
		if err != nil {
			b.Fatal(err)
		}
		defer d.Close()
		path := filepath.Join(b.TempDir(), "a.car")
		if _, err := writeCAR(path, 1, 100_000, 64); err != nil {
			b.Fatal(err)
		}
		if _, err := d.RegisterShardSync(b.Context(), shard.KeyFromString("a"), &mount.FileMount{Path: path}, dagstore.RegisterOpts{}); err != nil {
			b.Fatal(err)
		}
		again, ever := make([]cid.Cid, 1<<10), make([]cid.Cid, 1<<17)
		for i := range ever {
			ever[i] = cidOf(blockOf(uint64(i)+1<<50, 64))
		}
		copy(again, ever)
		for what, keep := range map[string]time.Duration{"": 0, "-remembered": time.Hour} {
			bs, err := indexbs.New(b.Context(), over(d), indexbs.Options{NotFoundFor: keep})
			if err != nil {
				b.Fatal(err)
			}
			defer bs.Close()
			for which, cids := range map[string][]cid.Cid{"again": again, "once": ever} {
				b.Run(name+"/"+which+what, func(b *testing.B) {
					b.ReportAllocs()
					for i := 0; b.Loop(); i++ {
						if _, err := bs.GetSize(b.Context(), cids[i%len(cids)]); err == nil {
							b.Fatal("found")
						}
					}
				})
			}
		}
	}
}

// BenchmarkPopular reads a block that very many shards hold, and one that a single shard
// does, in turns, and reports how much longer the popular one takes: with what is
// remembered, and looked up each time. DAGSTORE_BENCH_POPULAR changes how many shards.
func BenchmarkPopular(b *testing.B) {
	n := intEnv(b, "DAGSTORE_BENCH_POPULAR", 3000)
	small := dagstore.WithConfig(func(c *dagstore.Config) { c.TopLevel.Memory = 1 << 18 }) // the top-level index is on the disk
	dir := filepath.Join(b.TempDir(), "store")
	d, err := dagstore.Open(b.Context(), dir, small)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { d.Close() }()
	popular, out := blockOf(1<<55, 64), make(chan dagstore.ShardResult, n)
	for i := range n {
		own := blockOf(uint64(i+1), 64)
		m := &mount.BytesMount{Bytes: carOfMany([]cid.Cid{cidOf(popular), cidOf(own)}, [][]byte{popular, own})}
		if err := d.RegisterShard(b.Context(), shard.KeyFromString(strconv.Itoa(i)), m, out, dagstore.RegisterOpts{}); err != nil {
			b.Fatal(err)
		}
	}
	for range n {
		if res := <-out; res.Error != nil {
			b.Fatal(res.Error)
		}
	}
	// A store that was opened anew has its top-level index on disk.
	if err := d.Close(); err != nil {
		b.Fatal(err)
	}
	if d, err = dagstore.Open(b.Context(), dir, small); err != nil {
		b.Fatal(err)
	}
	one := cidOf(blockOf(7, 64))
	for name, hot := range map[string]int{"": 0, "-looked-up": -1} {
		bs, err := indexbs.Of(d, indexbs.Options{HotBlocks: hot})
		if err != nil {
			b.Fatal(err)
		}
		defer bs.Close()
		for what, read := range map[string]func(context.Context, cid.Cid) error{
			"get":  func(ctx context.Context, c cid.Cid) error { _, err := bs.Get(ctx, c); return err },
			"size": func(ctx context.Context, c cid.Cid) error { _, err := bs.GetSize(ctx, c); return err },
			"has":  func(ctx context.Context, c cid.Cid) error { _, err := bs.Has(ctx, c); return err },
			"many": func(ctx context.Context, c cid.Cid) error { _, err := bs.GetMany(ctx, []cid.Cid{c}); return err },
		} {
			b.Run(what+name, func(b *testing.B) {
				var took [2]time.Duration
				for b.Loop() {
					for i, c := range []cid.Cid{one, cidOf(popular)} {
						begin := time.Now()
						for range 16 {
							if err := read(b.Context(), c); err != nil {
								b.Fatal(err)
							}
						}
						took[i] += time.Since(begin)
					}
				}
				b.ReportMetric(float64(took[1])/float64(took[0]), "ratio")
			})
		}
	}
}
