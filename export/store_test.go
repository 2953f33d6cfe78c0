package export_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	blockformat "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipld/go-car/v2/blockstore"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/export"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

func openStore(t testing.TB, opts ...dagstore.Option) *dagstore.DAGStore {
	t.Helper()
	d, err := dagstore.Open(t.Context(), t.TempDir(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func register(t testing.TB, d *dagstore.DAGStore, key string, m mount.Mount) *dagstore.ShardBlockstore {
	t.Helper()
	k := shard.KeyFromString(key)
	if _, err := d.RegisterShardSync(t.Context(), k, m, dagstore.RegisterOpts{}); err != nil {
		t.Fatal(err)
	}
	acc, err := d.AcquireShardSync(t.Context(), k, dagstore.AcquireOpts{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { acc.Close() })
	return must(acc.Blockstore()).(*dagstore.ShardBlockstore)
}

// TestOutOfShards exports a UnixFS DAG out of one shard, out of two of which neither has
// all of it, and out of two of which one has a corrupt block; the result is the same each
// time, and a shard by itself. Proves F21, I13.
func TestOutOfShards(t *testing.T) {
	d := openStore(t)
	root := testdata.RootCID
	whole := register(t, d, "whole", &mount.BytesMount{Bytes: testdata.CarV1})
	var want bytes.Buffer
	res, err := export.DAG(t.Context(), &want, whole, []cid.Cid{root}, export.Options{SkipVerify: true})
	if err != nil || res.Blocks < 10 {
		t.Fatal(res, err)
	}
	_, cids, data := read(t, want.Bytes())

	// Two files, each with every other block.
	halves := make([]*dagstore.ShardBlockstore, 2)
	for i := range halves {
		path := filepath.Join(t.TempDir(), "half.car")
		rw, err := blockstore.OpenReadWrite(path, []cid.Cid{root})
		if err != nil {
			t.Fatal(err)
		}
		for j := i; j < len(cids); j += 2 {
			if err := rw.Put(t.Context(), must(blockformat.NewBlockWithCid(data[j], cids[j]))); err != nil {
				t.Fatal(err)
			}
		}
		if err := rw.Finalize(); err != nil {
			t.Fatal(err)
		}
		halves[i] = register(t, d, fmt.Sprintf("half %d", i), &mount.FileMount{Path: path})
	}
	bad := filepath.Join(t.TempDir(), "bad.car")
	rotten := bytes.Clone(want.Bytes())
	if err := os.WriteFile(bad, rotten, 0o600); err != nil {
		t.Fatal(err)
	}
	corrupt := register(t, d, "bad", &mount.FileMount{Path: bad})
	rotten[bytes.Index(rotten, data[7])+3] ^= 1
	if err := os.WriteFile(bad, rotten, 0o600); err != nil {
		t.Fatal(err)
	}

	all, err := indexbs.NewIndexBackedBlockstore(t.Context(), &indexbs.IdxBstoreDagstoreFromDagstore{Interface: d}, nil, 10, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer all.(io.Closer).Close()
	for name, src := range map[string]export.Source{
		"one":                   whole,
		"halves":                export.Sources(halves[0], halves[1]),
		"halves, in the other":  export.Sources(halves[1], halves[0]),
		"a corrupt one":         export.Sources(corrupt, halves[0], halves[1]),
		"the blockstore of all": all.(*indexbs.IndexBackedBlockstore),
	} {
		for _, o := range []export.Options{{}, {SkipVerify: true}} {
			var buf bytes.Buffer
			if _, err := export.DAG(t.Context(), &buf, src, []cid.Cid{root}, o); err != nil || !bytes.Equal(buf.Bytes(), want.Bytes()) {
				t.Errorf("%s: %d bytes, %v", name, buf.Len(), err)
			}
			buf.Reset()
			if _, err := export.Selector(t.Context(), &buf, src, root, everything, o); err != nil || !bytes.Equal(buf.Bytes(), want.Bytes()) {
				t.Errorf("%s, by a selector: %d bytes, %v", name, buf.Len(), err)
			}
		}
	}
	if _, err := export.DAG(t.Context(), io.Discard, corrupt, []cid.Cid{root}, export.Options{SkipVerify: true}); err == nil {
		t.Error("a corrupt block is exported")
	}

	again := register(t, d, "again", &mount.BytesMount{Bytes: want.Bytes()})
	var buf bytes.Buffer
	if _, err := export.DAG(t.Context(), &buf, again, []cid.Cid{root}, export.Options{}); err != nil || !bytes.Equal(buf.Bytes(), want.Bytes()) {
		t.Errorf("an export of an export: %d bytes, %v", buf.Len(), err)
	}
	if !slices.Contains(cids, root) {
		t.Error("the root is not in the export")
	}
}

// ExampleDAG exports a DAG out of a shard.
func ExampleDAG() {
	ctx := context.Background()
	dir := must(os.MkdirTemp("", "example"))
	defer os.RemoveAll(dir)
	d, err := dagstore.Open(ctx, dir)
	if err != nil {
		panic(err)
	}
	defer d.Close()
	key := shard.KeyFromString("movies")
	if _, err := d.RegisterShardSync(ctx, key, &mount.BytesMount{Bytes: testdata.CarV1}, dagstore.RegisterOpts{}); err != nil {
		panic(err)
	}
	acc, err := d.AcquireShardSync(ctx, key, dagstore.AcquireOpts{})
	if err != nil {
		panic(err)
	}
	defer acc.Close()
	bs, err := acc.Blockstore()
	if err != nil {
		panic(err)
	}
	// The store hashes what it serves.
	opts := export.Options{SkipVerify: true, MaxBytes: 1 << 30}
	res, err := export.DAG(ctx, io.Discard, bs.(*dagstore.ShardBlockstore), []cid.Cid{testdata.RootCID}, opts)
	fmt.Println(res.Blocks, err)
	// Output: 71 <nil>
}

// BenchmarkDAG exports a DAG of 64 MiB out of a shard, beside a plain read of its CAR file
// from front to back, also one that hashes.
func BenchmarkDAG(b *testing.B) {
	for _, leaf := range []int{256 << 10, 1 << 10} {
		src := blocks{}
		var links []cid.Cid
		data := make([]byte, leaf)
		for i := range (64 << 20) / leaf {
			copy(data, fmt.Sprintf("%016d", i))
			links = append(links, src.add(cid.Raw, bytes.Clone(data)))
		}
		for salt := uint64(0); len(links) > 1; salt++ {
			var up []cid.Cid
			for part := range slices.Chunk(links, 174) {
				up = append(up, src.node(cid.DagProtobuf, salt, part...))
			}
			links = up
		}
		var buf bytes.Buffer
		if _, err := export.DAG(b.Context(), &buf, src, links, export.Options{}); err != nil {
			b.Fatal(err)
		}
		path := filepath.Join(b.TempDir(), "a.car")
		if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
			b.Fatal(err)
		}
		bs := register(b, openStore(b), "a", &mount.FileMount{Path: path})
		trusting := register(b, openStore(b, dagstore.WithConfig(func(c *dagstore.Config) { c.SkipVerifyOnRead = true })), "a", &mount.FileMount{Path: path})
		plain := func(hash bool) func(b *testing.B) {
			return func(b *testing.B) {
				b.SetBytes(int64(buf.Len()))
				p := make([]byte, 256<<10)
				for b.Loop() {
					f, err := os.Open(path)
					if err != nil {
						b.Fatal(err)
					}
					h := sha256.New()
					for {
						n, err := f.Read(p)
						if n == 0 {
							break
						}
						if hash {
							h.Write(p[:n])
						}
						if err != nil {
							b.Fatal(err)
						}
					}
					f.Close()
				}
			}
		}
		walk := func(bs *dagstore.ShardBlockstore) func(b *testing.B) {
			return func(b *testing.B) {
				b.SetBytes(int64(buf.Len()))
				for b.Loop() {
					if _, err := export.DAG(b.Context(), io.Discard, bs, links, export.Options{SkipVerify: true}); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		b.Run(fmt.Sprintf("leaf=%d/verified", leaf), walk(bs))
		b.Run(fmt.Sprintf("leaf=%d/unverified", leaf), walk(trusting))
		b.Run(fmt.Sprintf("leaf=%d/plain-read-hashed", leaf), plain(true))
		b.Run(fmt.Sprintf("leaf=%d/plain-read", leaf), plain(false))
	}
}
