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
	mh "github.com/multiformats/go-multihash"
	"golang.org/x/sync/errgroup"

	"github.com/dagstore/dagstore"
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
	d    *dagstore.DAGStore
	cids []cid.Cid // of all shards, mixed
	one  *dagstore.ShardAccessor
	ones []cid.Cid // of the one
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
	a := &across{d: d, cids: make([]cid.Cid, shards*blocks)}
	var g errgroup.Group
	g.SetLimit(4)
	for s := range shards {
		g.Go(func() error {
			cids, err := register(fmt.Sprintf("baga6ea4seaq-shard-%06d", s), uint64(s*blocks+1), blocks)
			copy(a.cids[s*blocks:], cids)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	if a.ones, err = register("one", 1<<40, shards*blocks); err != nil {
		b.Fatal(err)
	}
	if a.one, err = d.AcquireShardSync(b.Context(), shard.KeyFromString("one"), dagstore.AcquireOpts{}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { a.one.Close() })
	r := rand.New(rand.NewPCG(1, 2))
	mix := func(cids []cid.Cid) {
		r.Shuffle(len(cids), func(i, k int) { cids[i], cids[k] = cids[k], cids[i] })
	}
	mix(a.cids)
	mix(a.ones)
	return a
}

// BenchmarkAcross compares reads of 1 KiB blocks in random order over 1,000 shards of
// 1,000 blocks, on disk and all of them open, with the same reads of one shard that
// holds as many, through its accessor: two goroutines each. "ratio" is the time of the
// former by that of the latter, measured in turns in one run.
//
// DAGSTORE_BENCH_SHARDS and DAGSTORE_BENCH_BLOCKS change the numbers.
func BenchmarkAcross(b *testing.B) {
	shards, blocks := intEnv(b, "DAGSTORE_BENCH_SHARDS", 1000), intEnv(b, "DAGSTORE_BENCH_BLOCKS", 1000)
	for name, opts := range map[string][]dagstore.Option{"verified": nil} {
		b.Run(name, func(b *testing.B) { benchAcross(b, openAcross(b, shards, blocks, opts...)) })
	}
}

func benchAcross(b *testing.B, a *across) {
	one := must(a.one.Blockstore())
	all, err := indexbs.NewIndexBackedBlockstore(b.Context(), over(a.d), nil, 0, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	defer all.(*indexbs.IndexBackedBlockstore).Close()
	get := func(bs dagstore.ReadBlockstore) func(context.Context, cid.Cid) error {
		return func(ctx context.Context, c cid.Cid) error {
			_, err := bs.Get(ctx, c)
			return err
		}
	}
	size := func(bs dagstore.ReadBlockstore) func(context.Context, cid.Cid) error {
		return func(ctx context.Context, c cid.Cid) error {
			_, err := bs.GetSize(ctx, c)
			return err
		}
	}
	for _, c := range a.cids { // open all, and fill the page cache
		if _, err := all.Get(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
	for _, c := range a.ones {
		if _, err := one.Get(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("get", func(b *testing.B) { compareReads(b, get(all), a.cids, get(one), a.ones) })
	b.Run("size", func(b *testing.B) { compareReads(b, size(all), a.cids, size(one), a.ones) })
	b.Run("get-profiled", func(b *testing.B) {
		b.ReportAllocs()
		readAll(b, get(all), a.cids, 0, b.N)
	})
}

// compareReads reads with one and the other in turns of the same length.
func compareReads(b *testing.B, all func(context.Context, cid.Cid) error, cids []cid.Cid, one func(context.Context, cid.Cid) error, ones []cid.Cid) {
	const turns = 8
	var took [2]time.Duration
	n := max(b.N/turns/2, 1)
	b.ReportAllocs()
	for t := range turns {
		start := time.Now()
		readAll(b, all, cids, t*n, n)
		took[0] += time.Since(start)
		start = time.Now()
		readAll(b, one, ones, t*n, n)
		took[1] += time.Since(start)
	}
	b.ReportMetric(float64(took[0])/float64(took[1]), "ratio")
	b.ReportMetric(float64(turns*n)/took[0].Seconds(), "across/s")
	b.ReportMetric(float64(turns*n)/took[1].Seconds(), "one/s")
}

// readAll has two goroutines read n blocks.
func readAll(b *testing.B, read func(context.Context, cid.Cid) error, cids []cid.Cid, from, n int) {
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
					if err := read(b.Context(), cids[(from+k)%len(cids)]); err != nil {
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
