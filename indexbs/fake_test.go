package indexbs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	car "github.com/ipld/go-car/v2"
	carindex "github.com/ipld/go-car/v2/index"
	mh "github.com/multiformats/go-multihash"
	"go.uber.org/goleak"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// TestMain looks for goroutines that are left behind. The archived go-log, which
// go-ipfs-blockstore imports, starts one before main.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

// fakeStore is a store whose shards fail, wait and come late as a test wants.
type fakeStore struct {
	mu       sync.Mutex
	shards   map[shard.Key]*fakeShard
	order    []shard.Key
	found    map[string][]shard.Key // by multihash; readers must not change it
	lookup   error                  // if set, what lookups end with
	acquires int
}

// fakeShard is a CAR in memory.
type fakeShard struct {
	key   shard.Key
	car   []byte
	index carindex.Index
	holds map[string]bool // by multihash; what lookups say

	refuse  error         // AcquireShard returns it
	fail    error         // ... or answers with it
	readErr error         // what reads end with
	gate    chan struct{} // answers wait for it to be closed
	heeds   bool          // answers with the context's error if that comes first

	opened, closed, cancelled atomic.Int32
}

func newFakeStore(t testing.TB, cars map[string][]byte) *fakeStore {
	t.Helper()
	f := &fakeStore{shards: map[shard.Key]*fakeShard{}, found: map[string][]shard.Key{}}
	for name, data := range cars {
		s := &fakeShard{key: shard.KeyFromString(name), car: slices.Clone(data), holds: map[string]bool{}}
		idx, err := car.GenerateIndex(bytes.NewReader(data), car.StoreIdentityCIDs(true))
		if err != nil {
			t.Fatal(err)
		}
		s.index = idx
		if err := idx.(carindex.IterableIndex).ForEach(func(m mh.Multihash, _ uint64) error {
			s.holds[string(m)] = true
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		f.shards[s.key] = s
		f.order = append(f.order, s.key)
	}
	slices.SortFunc(f.order, func(a, b shard.Key) int { return bytes.Compare([]byte(a.String()), []byte(b.String())) })
	return f
}

func (f *fakeStore) shard(name string) *fakeShard { return f.shards[shard.KeyFromString(name)] }

func (f *fakeStore) ShardsContainingCid(_ context.Context, c cid.Cid) ([]shard.Key, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lookup != nil {
		return nil, f.lookup
	}
	if in := f.found[string(c.Hash())]; in != nil {
		return in, nil
	}
	var in []shard.Key
	for _, k := range f.order {
		if f.shards[k].holds[string(c.Hash())] {
			in = append(in, k)
		}
	}
	if len(in) == 0 {
		return nil, fmt.Errorf("multihash %s: %w", c.Hash(), ds.ErrNotFound)
	}
	f.found[string(c.Hash())] = in
	return in, nil
}

func (f *fakeStore) AcquireShard(ctx context.Context, key shard.Key, out chan dagstore.ShardResult, _ dagstore.AcquireOpts) error {
	f.mu.Lock()
	f.acquires++
	s := f.shards[key]
	var gate chan struct{}
	if s != nil {
		gate = s.gate
	}
	f.mu.Unlock()
	switch {
	case cap(out) == 0:
		return errors.New("nobody may be there to receive the answer")
	case s == nil:
		return fmt.Errorf("%s: %w", key, dagstore.ErrShardUnknown)
	case s.refuse != nil:
		return s.refuse
	}
	go func() {
		if gate != nil {
			var gone <-chan struct{}
			if s.heeds {
				gone = ctx.Done()
			}
			select {
			case <-gate:
			case <-gone:
				s.cancelled.Add(1)
				out <- dagstore.ShardResult{Key: key, Error: ctx.Err()}
				return
			}
		}
		out <- s.answer()
	}()
	return nil
}

func (s *fakeShard) answer() dagstore.ShardResult {
	if s.fail != nil {
		return dagstore.ShardResult{Key: s.key, Error: s.fail}
	}
	named := new(dagstore.Shard)
	if err := named.UnmarshalJSON(fmt.Appendf(nil, `{"k":%q,"u":"fake:"}`, s.key)); err != nil {
		panic(err)
	}
	s.opened.Add(1)
	acc, err := dagstore.NewShardAccessor(&fakeReader{Reader: bytes.NewReader(s.car), s: s}, s.index, named)
	return dagstore.ShardResult{Key: s.key, Accessor: acc, Error: err}
}

type fakeReader struct {
	*bytes.Reader
	s *fakeShard
}

func (r *fakeReader) ReadAt(p []byte, off int64) (int, error) {
	if r.s.readErr != nil && off > 1000 { // the header is read when it is opened
		return 0, r.s.readErr
	}
	return r.Reader.ReadAt(p, off)
}

func (r *fakeReader) Close() error { r.s.closed.Add(1); return nil }

// corrupt changes a byte of a block.
func (s *fakeShard) corrupt(t testing.TB, c cid.Cid, data []byte) {
	t.Helper()
	i := bytes.Index(s.car, data)
	if i < 0 {
		t.Fatalf("shard %s does not hold %s", s.key, c)
	}
	s.car = slices.Clone(s.car)
	s.car[i] ^= 1
}

// open is how many accessors of a shard are open.
func (s *fakeShard) open() int32 { return s.opened.Load() - s.closed.Load() }

// gateNext has answers to acquires from now on wait for a new gate.
func (f *fakeStore) gateNext(s *fakeShard) chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.gate = make(chan struct{})
	return s.gate
}

func (f *fakeStore) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.acquires
}

// eventually waits for something that other goroutines are about to do.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for !done() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("still not so after 10 s: %s", what)
		}
	}
}

// sampleBlocks are the blocks of a CAR by CID.
func sampleBlocks(t testing.TB, data []byte) map[cid.Cid][]byte {
	t.Helper()
	r, err := car.NewBlockReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	all := map[cid.Cid][]byte{}
	for {
		blk, err := r.Next()
		if err != nil {
			break
		}
		all[blk.Cid()] = blk.RawData()
	}
	if len(all) == 0 {
		t.Fatal("no blocks")
	}
	return all
}

// sharedBlock is a block that both sample CARs hold.
func sharedBlock(t testing.TB) (cid.Cid, []byte) {
	t.Helper()
	other := sampleBlocks(t, testdata.CarShared)
	for c, data := range sampleBlocks(t, testdata.CarV1) {
		if _, ok := other[c]; ok && len(data) > 100 {
			return c, data
		}
	}
	t.Fatal("the sample CARs have no block in common")
	return cid.Undef, nil
}

func newBlockstore(t testing.TB, d indexbs.IdxBstoreDagstore, choose indexbs.ShardSelectorF, size int, expire time.Duration) *indexbs.IndexBackedBlockstore {
	t.Helper()
	bs, err := indexbs.NewIndexBackedBlockstore(t.Context(), d, choose, size, expire)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bs.(*indexbs.IndexBackedBlockstore).Close() })
	return bs.(*indexbs.IndexBackedBlockstore)
}

// descriptors counts the open files of the process, or says that it cannot.
func descriptors() (int, bool) {
	entries, err := os.ReadDir("/proc/self/fd")
	return len(entries), err == nil
}

func newBlockstoreCtx(t testing.TB, ctx context.Context, d indexbs.IdxBstoreDagstore) *indexbs.IndexBackedBlockstore {
	t.Helper()
	bs, err := indexbs.NewIndexBackedBlockstore(ctx, d, nil, 10, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return bs.(*indexbs.IndexBackedBlockstore)
}
