// Where address space is short nothing is mapped.

//go:build (darwin || freebsd || linux) && !386 && !arm

package dagstore_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index/toplevel"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/mount"
)

// coldMount is a file of a cold file system.
type coldMount struct {
	fs   *fsiotest.Cold
	path string
}

func (m *coldMount) Fetch(context.Context) (mount.Reader, error) {
	f, err := m.fs.OpenFile(m.path, 0, 0)
	if err != nil {
		return nil, err
	}
	return struct{ mount.Reader }{f}, nil
}

func (m *coldMount) Stat(context.Context) (mount.Stat, error) {
	info, err := os.Stat(m.path)
	if err != nil {
		return mount.Stat{}, err
	}
	return mount.Stat{Exists: true, Size: info.Size(), Ready: true}, nil
}

func (m *coldMount) Info() mount.Info {
	return mount.Info{Kind: mount.KindLocal, AccessSequential: true, AccessSeek: true, AccessRandom: true}
}
func (m *coldMount) Serialize() *url.URL          { return &url.URL{Host: "x", Path: m.path} }
func (m *coldMount) Deserialize(u *url.URL) error { m.path = u.Path; return nil }
func (m *coldMount) Close() error                 { return nil }

// coldStore is a store nothing of which is in memory, and the blocks of its shards.
type coldStore struct {
	fs   *fsiotest.Cold
	dir  string
	d    *dagstore.DAGStore
	opts []dagstore.Option
	cids []cid.Cid
	data map[cid.Cid][]byte
}

// newColdStore makes one of shards with so many blocks each, and opens it again.
func newColdStore(t testing.TB, shards, each, size int) *coldStore {
	t.Helper()
	s := &coldStore{fs: fsiotest.NewCold(), dir: t.TempDir(), data: make(map[cid.Cid][]byte)}
	s.opts = []dagstore.Option{
		dagstore.WithFS(s.fs), dagstore.WithMount("cold", &coldMount{fs: s.fs}), dagstore.WithLogger(quiet),
		dagstore.WithConfig(func(c *dagstore.Config) { c.TopLevel = toplevel.Options{Memory: 1 << 20, RestAfter: -1} }),
	}
	d, err := dagstore.Open(background, s.dir, s.opts...)
	if err != nil {
		t.Fatal(err)
	}
	cars := t.TempDir()
	for i := range shards {
		car, cids, data := carOf(each, func(int) int { return size + i })
		s.cids = append(s.cids, cids...)
		for k, c := range cids {
			s.data[c] = data[k]
		}
		register(t, d, key("shard %d", i), &coldMount{fs: s.fs, path: writeFile(t, filepath.Join(cars, fmt.Sprint(i)), car)})
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	s.fs.Forget()
	if s.d, err = dagstore.Open(background, s.dir, s.opts...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s.d) })
	return s
}

// blockstore is one over all shards of the store, which remembers nothing.
func (s *coldStore) blockstore(t testing.TB) *indexbs.IndexBackedBlockstore {
	t.Helper()
	bs, err := indexbs.New(t.Context(), &indexbs.IdxBstoreDagstoreFromDagstore{Interface: s.d}, indexbs.Options{HotBlocks: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bs.Close() })
	return bs
}

// reads counts how often do reads, and how often it waits for that.
func (s *coldStore) reads(do func()) (all, waits int64) {
	a, w := s.fs.Reads()
	do()
	b, v := s.fs.Reads()
	return b - a, v - w
}

// TestColdGet: a block of which nothing is in memory takes at most four reads once filters
// are in memory and shards are open: a bucket of the top-level index, the fan-out and a
// page of the shard's index, and the block; Has and GetSize take the first three. What was
// read is not waited for again, and the indices are not even read. A mapping that is not
// known to be in memory faults when it is touched, and is not. Proves F20.
func TestColdGet(t *testing.T) {
	const shards, each = 4, 25_000
	s := newColdStore(t, shards, each, 40)
	bs := s.blockstore(t)
	ctx := t.Context()
	rng := rand.New(rand.NewPCG(5, 5))
	pick := func() cid.Cid { return s.cids[rng.IntN(len(s.cids))] }
	get := func(c cid.Cid) {
		t.Helper()
		if b, err := bs.Get(ctx, c); err != nil || !bytes.Equal(b.RawData(), s.data[c]) {
			t.Fatalf("get: %v", err)
		}
	}
	for range 20 * shards { // reads filters, and opens shards
		get(pick())
	}
	for _, c := range []struct {
		name        string
		least, most int64
		do          func(c cid.Cid)
	}{
		{"Get", 2, 4, get},
		{"Has", 0, 3, func(c cid.Cid) {
			if has, err := bs.Has(ctx, c); err != nil || !has {
				t.Fatal(has, err)
			}
		}},
		{"GetSize", 0, 3, func(c cid.Cid) {
			if n, err := bs.GetSize(ctx, c); err != nil || n != len(s.data[c]) {
				t.Fatal(n, err)
			}
		}},
	} {
		total, over := int64(0), 0
		const reads = 200
		for range reads {
			x := pick()
			all, _ := s.reads(func() { c.do(x) })
			if total += all; all > c.most {
				over++
			}
			again, waits := s.reads(func() { c.do(x) })
			if waits != 0 || again > c.most-3 { // the source is not mapped
				t.Errorf("%s again: %d reads, of which %d wait", c.name, again, waits)
			}
		}
		// A filter lets one in 256 pass, and a few digests lie away from where they are
		// expected.
		if over > reads/20 || total < c.least*reads {
			t.Errorf("%d times %s take %d reads, %d of them more than %d", reads, c.name, total, over, c.most)
		}
		t.Logf("%s: %.2f reads", c.name, float64(total)/reads)
	}
}

// TestColdFollower: so it is for a follower, which looks up in memory.
func TestColdFollower(t *testing.T) {
	s := newColdStore(t, 2, 10_000, 40)
	f, err := dagstore.OpenFollower(t.Context(), s.dir, s.opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	acc, err := f.AcquireShardSync(t.Context(), key("shard 1"), dagstore.AcquireOpts{})
	if err != nil {
		t.Fatal(err)
	}
	defer acc.Close()
	bs := blockstore(t, acc)
	over := 0
	const reads = 200
	for i := range reads {
		c := s.cids[10_000+i*50]
		all, _ := s.reads(func() {
			if b, err := bs.Get(t.Context(), c); err != nil || !bytes.Equal(b.RawData(), s.data[c]) {
				t.Fatalf("get: %v", err)
			}
		})
		if all > 3 {
			over++
		}
	}
	if over > reads/20 {
		t.Errorf("%d of %d blocks take more than three reads", over, reads)
	}
}

// slowDisk makes reads that wait take a while, and counts how many do so at a time.
type slowDisk struct{ now, most atomic.Int64 }

func (d *slowDisk) wait() {
	n := d.now.Add(1)
	defer d.now.Add(-1)
	for m := d.most.Load(); n > m && !d.most.CompareAndSwap(m, n); m = d.most.Load() {
	}
	for began := time.Now(); time.Since(began) < 500*time.Microsecond; {
		runtime.Gosched()
	}
}

// TestColdMany: a batch has several reads wait at a time, but not very many; it tells of each
// block once. Proves I13 (batches that wait for a disk).
func TestColdMany(t *testing.T) {
	const shards, each = 2, 20_000
	s := newColdStore(t, shards, each, 100)
	bs := s.blockstore(t)
	var disk slowDisk
	s.fs.Wait(disk.wait)
	for i, m := range []interface {
		ViewMany(context.Context, []cid.Cid, func(int, []byte, error) error) error
	}{bs, must(acquire(t, s.d, key("shard 1")).Blockstore()).(*dagstore.ShardBlockstore)} {
		disk.most.Store(0)
		var want []cid.Cid
		rng := rand.New(rand.NewPCG(7, 7))
		for range 300 {
			want = append(want, s.cids[i*each+rng.IntN(each)])
		}
		absent := must(cid.Cast(hostileCID))
		want = append(want, absent)
		told := make([]int, len(want))
		if err := m.ViewMany(t.Context(), want, func(i int, data []byte, err error) error {
			told[i]++
			if want[i] != absent && (err != nil || !bytes.Equal(data, s.data[want[i]])) || want[i] == absent && err == nil {
				t.Errorf("block %d: %v", i, err)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(told, func(n int) bool { return n != 1 }); i >= 0 {
			t.Errorf("block %d was told of %d times", i, told[i])
		}
		if n := disk.most.Load(); n < 4 || n > 2*16 {
			t.Errorf("%d reads wait at a time", n)
		}
	}
}

var hostileCID = append([]byte{1, 0x55, 0x12, 32}, make([]byte, 32)...)

// TestColdRow: blocks that are asked for in the order of the file are found by their sections
// though the index is not in memory: a few reads of it, not one for each.
func TestColdRow(t *testing.T) {
	const each = 20_000
	s := newColdStore(t, 1, each, 100)
	bs := must(acquire(t, s.d, key("shard 0")).Blockstore()).(*dagstore.ShardBlockstore)
	const n = 5_000
	all, _ := s.reads(func() {
		got, err := bs.GetMany(t.Context(), s.cids[1_000:1_000+n])
		if err != nil || len(got) != n {
			t.Fatal(len(got), err)
		}
	})
	if all > 60 {
		t.Errorf("%d blocks in a row take %d reads", n, all)
	}
}

// TestManyEndsWhileReading: an error of fn ends a batch that waits for a disk, after the reads
// that are under way, and a reader that panics does so where the caller is.
func TestManyEndsWhileReading(t *testing.T) {
	car, cids, _ := carOf(400, func(int) int { return 5_000 })
	bs, r := ofMemory(t, car)
	var inside atomic.Int64
	var disk slowDisk
	r.fail = func(int64, int) error {
		inside.Add(1)
		defer inside.Add(-1)
		disk.wait()
		return nil
	}
	var far []cid.Cid
	for i := len(cids) - 1; i > 0; i -= 3 {
		far = append(far, cids[i])
	}
	stop := fmt.Errorf("enough")
	told := 0
	err := bs.ViewMany(t.Context(), far, func(int, []byte, error) error {
		if told++; told == 20 {
			return stop
		}
		return nil
	})
	if err != stop || told != 20 || inside.Load() != 0 {
		t.Errorf("%v after %d blocks; %d reads go on", err, told, inside.Load())
	}
	if disk.most.Load() < 4 {
		t.Errorf("%d reads wait at a time", disk.most.Load())
	}
	var calls atomic.Int64
	r.fail = func(int64, int) error {
		disk.wait()
		if calls.Add(1) > 10 {
			panic("of theirs")
		}
		return nil
	}
	defer func() {
		if p := recover(); p != "of theirs" {
			t.Errorf("recovered %v", p)
		}
	}()
	_ = bs.ViewMany(t.Context(), far, func(int, []byte, error) error { return nil })
	t.Error("the panic is gone")
}

// BenchmarkColdDisk reads through 64 goroutines from a disk that does 400 reads a second and
// has nothing in memory, and compares with plain reads of files. reads/s are those of the
// disk; share is how many come to one plain read; stall is how long a goroutine that sleeps
// for a millisecond stood still, at most. A fault on a mapping would fail it.
func BenchmarkColdDisk(b *testing.B) {
	const shards, each = 10, 20_000
	s := newColdStore(b, shards, each, 100)
	bs := s.blockstore(b)
	for i := range 20 * shards {
		if _, err := bs.Get(background, s.cids[i*each/20]); err != nil {
			b.Fatal(err)
		}
	}
	var queue sync.Mutex
	s.fs.Wait(func() {
		queue.Lock()
		<-time.After(2500 * time.Microsecond)
		queue.Unlock()
	})
	plain, err := s.fs.OpenFile(writeFile(b, filepath.Join(b.TempDir(), "plain"), make([]byte, 512<<20)), 0, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer plain.Close()
	perSecond := 0.0
	for _, way := range []struct {
		name string
		do   func(rng *rand.Rand) (int, error)
	}{
		{"plain", func(rng *rand.Rand) (int, error) {
			_, err := plain.ReadAt(make([]byte, 512), rng.Int64N(1<<20)*512)
			return 1, err
		}},
		{"get", func(rng *rand.Rand) (int, error) {
			_, err := bs.Get(background, s.cids[rng.IntN(len(s.cids))])
			return 1, err
		}},
		{"has", func(rng *rand.Rand) (int, error) {
			_, err := bs.Has(background, s.cids[rng.IntN(len(s.cids))])
			return 1, err
		}},
		{"size", func(rng *rand.Rand) (int, error) {
			_, err := bs.GetSize(background, s.cids[rng.IntN(len(s.cids))])
			return 1, err
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			stalled, end := make(chan time.Duration), make(chan struct{})
			go func() {
				longest, last := time.Duration(0), time.Now()
				for {
					select {
					case <-end:
						stalled <- longest
						return
					case <-time.After(time.Millisecond):
						longest, last = max(longest, time.Since(last)-time.Millisecond), time.Now()
					}
				}
			}()
			var seed atomic.Uint64
			b.SetParallelism(64 / runtime.GOMAXPROCS(0))
			_, waits := s.reads(func() {
				b.RunParallel(func(pb *testing.PB) {
					rng := rand.New(rand.NewPCG(seed.Add(1), uint64(b.N)))
					for pb.Next() {
						if _, err := way.do(rng); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
			close(end)
			ops := float64(b.N) / b.Elapsed().Seconds()
			if way.name == "plain" {
				perSecond = ops
			}
			b.ReportMetric(float64(waits)/b.Elapsed().Seconds(), "reads/s")
			b.ReportMetric(float64(waits)/float64(b.N), "reads/op")
			b.ReportMetric(ops/perSecond, "share")
			b.ReportMetric(float64((<-stalled).Microseconds())/1000, "ms-stall")
		})
	}
}
