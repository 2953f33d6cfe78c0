package dagstore_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	dssync "github.com/ipfs/go-datastore/sync"
	ipld "github.com/ipfs/go-ipld-format"
	car "github.com/ipld/go-car/v2"
	carindex "github.com/ipld/go-car/v2/index"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// One test per fault of the predecessor that shows through the public API. Each
// comment says how the predecessor would have failed it.

// makeCAR writes a CARv1 of the given blocks, whose first is the root.
func makeCAR(data ...[]byte) ([]byte, []cid.Cid) {
	var cids []cid.Cid
	var sections bytes.Buffer
	for _, d := range data {
		c, err := cid.V1Builder{Codec: cid.Raw, MhType: mh.SHA2_256}.Sum(d)
		if err != nil {
			panic(err)
		}
		cids = append(cids, c)
		writeSection(&sections, c, d)
	}
	// {"roots": [cid], "version": 1} in DAG-CBOR
	header := append([]byte("\xa2\x65roots\x81\xd8\x2a\x58\x25\x00"), cids[0].Bytes()...)
	header = append(header, "\x67version\x01"...)
	out := append([]byte{byte(len(header))}, header...)
	return append(out, sections.Bytes()...), cids
}

func writeSection(w *bytes.Buffer, c cid.Cid, data []byte) {
	n := uint64(c.ByteLen() + len(data))
	for ; n >= 0x80; n >>= 7 {
		w.WriteByte(byte(n) | 0x80)
	}
	w.WriteByte(byte(n))
	w.Write(c.Bytes())
	w.Write(data)
}

// randomBlocks makes n blocks of the given size.
func randomBlocks(seed uint64, n, size int) [][]byte {
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	all := make([][]byte, n)
	for i := range all {
		all[i] = make([]byte, size)
		src.Read(all[i])
	}
	return all
}

// TestF1FailedFetch: a fetch that failed, or whose callers left, is not the shard's
// fate. The predecessor kept the error in the mount for good.
// Proves F1.
func TestF1FailedFetch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		k := key("foo")
		broken := errors.New("wire cut")
		g.setFail(broken)
		g.letIn(1)
		_, err := d.RegisterShardSync(background, k, &gateMount{carV1(), g}, dagstore.RegisterOpts{})
		wantErr(t, "register", err, broken)
		g.letIn(1)
		_, err = d.RecoverShardSync(background, k, dagstore.RecoverOpts{})
		wantErr(t, "recover while it is still broken", err, broken)
		g.setFail(nil)
		g.letIn(1)
		if _, err := d.RecoverShardSync(background, k, dagstore.RecoverOpts{}); err != nil {
			t.Fatalf("recover once it is mended: %v", err)
		}
		works(t, d, k)

		// The copy is reclaimed, and fetching it again fails once.
		settle()
		if _, err := d.GC(background); err != nil {
			t.Fatal(err)
		}
		g.setFail(broken)
		g.letIn(1)
		_, err = d.AcquireShardSync(background, k, dagstore.AcquireOpts{})
		wantErr(t, "acquire while the fetch fails", err, broken)
		if s := state(t, d, k); s != dagstore.ShardStateAvailable {
			t.Errorf("a failed fetch of an indexed shard makes it %s", s)
		}
		g.setFail(nil)
		g.letIn(1)
		works(t, d, k)

		// All callers leave during the fetch.
		settle()
		if _, err := d.GC(background); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(background)
		out := make(chan dagstore.ShardResult, 2)
		for range 2 {
			if err := d.AcquireShard(ctx, k, out, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		cancel()
		settle()
		for range len(out) {
			if res := <-out; !errors.Is(res.Error, context.Canceled) {
				t.Errorf("the caller that left was answered %+v", res)
			}
		}
		g.letIn(2)
		works(t, d, k)
	})
}

// TestF2RefusedDestroy: a destroy that is refused changes nothing. The predecessor
// removed the record first and looked afterwards; a restart had lost the shard.
// Proves F2.
func TestF2RefusedDestroy(t *testing.T) {
	cfg := dagstore.Config{TransientsDir: t.TempDir(), Datastore: mapDatastore(), IndexRepo: index.NewMemoryRepo()}
	d := start(t, cfg)
	k := key("foo")
	register(t, d, k, carV1())
	acc := acquire(t, d, k)
	_, err := d.DestroyShardSync(background, k, dagstore.DestroyOpts{})
	wantErr(t, "destroy a shard in use", err, dagstore.ErrShardInUse)
	wantState(t, d, k, dagstore.ShardStateServing)
	readAll(t, acc)
	closeStore(t, d)
	d = start(t, cfg)
	wantState(t, d, k, dagstore.ShardStateAvailable)
	works(t, d, k)
}

// TestF3CancelledGC: a GC whose context ends returns, before it began and in the
// middle, and the store goes on. The predecessor's loop waited for the caller for
// good.
// Proves F3.
func TestF3CancelledGC(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := newTestJournal()
		d := start(t, dagstore.Config{Journal: j})
		for i := range 8 {
			register(t, d, key("%d", i), carV1())
		}
		ctx, cancel := context.WithCancel(background)
		cancel()
		_, err := d.GC(ctx)
		wantErr(t, "GC with an ended context", err, context.Canceled)

		// A shard whose event is on its way into the journal has GC wait.
		release := j.hold()
		if err := d.DestroyShard(background, key("3"), nil, dagstore.DestroyOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		ctx, cancel = context.WithCancel(background)
		done := make(chan error)
		go func() { _, err := d.GC(ctx); done <- err }()
		settle()
		cancel()
		wantErr(t, "GC that is cancelled while it waits", <-done, context.Canceled)
		release()
		settle()
		works(t, d, key("5"))
		if res, err := d.GC(background); err != nil || res.ShardFailures() != 0 {
			t.Errorf("the GC after that: %v, %v", res, err)
		}
		_, err = d.GetShardInfo(key("3"))
		wantErr(t, "info of the destroyed shard", err, dagstore.ErrShardUnknown)
	})
}

// TestF7ErroredStaysErrored: closing the last accessor of a shard that has failed
// meanwhile leaves it errored. The predecessor made it available.
// Proves F7, I6 (for failures).
func TestF7ErroredStaysErrored(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		d := open(t, dir)
		data, cids := makeCAR(randomBlocks(1, 40, 64)...)
		path := writeFile(t, filepath.Join(t.TempDir(), "a.car"), data)
		k := key("foo")
		register(t, d, k, &mount.FileMount{Path: path})
		acc := acquire(t, d, k)
		bs := blockstore(t, acc)
		damageIndex(t, dir)
		writeFile(t, path, testdata.Junk) // the rebuild fails
		for _, c := range cids {
			if _, err := bs.Get(background, c); err == nil {
				t.Errorf("read %s through a damaged index", c)
			}
		}
		settle()
		wantState(t, d, k, dagstore.ShardStateErrored)
		closeAll(t, acc)
		settle()
		wantState(t, d, k, dagstore.ShardStateErrored)
		_, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{})
		wantErr(t, "acquire", err, dagstore.ErrShardInitializationFailed)
		writeFile(t, path, data)
		if _, err := d.RecoverShardSync(background, k, dagstore.RecoverOpts{}); err != nil {
			t.Fatal(err)
		}
		works(t, d, k)
	})
}

func onlyFile(t *testing.T, fsys fsio.FS, dir string) string {
	t.Helper()
	entries, err := fsys.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%s holds %v, %v; want one file", dir, entries, err)
	}
	return filepath.Join(dir, entries[0].Name())
}

func fileSize(t *testing.T, fsys fsio.FS, name string) int64 {
	t.Helper()
	st, err := fsys.Lstat(name)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// TestF8SecondClose: closing an accessor twice does not take another reader's
// reference. In the predecessor the count went down twice, and a shard in use was
// collected or destroyed.
// Proves F8.
func TestF8SecondClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{})
		k := key("foo")
		register(t, d, k, carV1())
		a, b := acquire(t, d, k), acquire(t, d, k)
		closeAll(t, a, a, a)
		settle()
		wantState(t, d, k, dagstore.ShardStateServing)
		_, err := d.DestroyShardSync(background, k, dagstore.DestroyOpts{})
		wantErr(t, "destroy", err, dagstore.ErrShardInUse)
		readAll(t, b)
		_, err = a.Blockstore()
		wantErr(t, "Blockstore of a closed accessor", err, dagstore.ErrClosed)
		closeAll(t, b)
		settle()
		wantState(t, d, k, dagstore.ShardStateAvailable)
	})
}

// TestF9RecoveringSurvivesNot: a shard that was recovering when the store stopped is
// not stuck: the recovery goes on. The predecessor persisted the state and had no
// way out of it.
// Proves F9.
func TestF9RecoveringSurvivesNot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		base := mapDatastore()
		cfg := dagstore.Config{TransientsDir: t.TempDir(), Datastore: base, MountRegistry: registry(t, g)}
		d := start(t, cfg)
		k := key("foo")
		g.setFail(changed("wire cut"))
		g.letIn(1)
		if _, err := d.RegisterShardSync(background, k, &gateMount{carV1(), g}, dagstore.RegisterOpts{}); err == nil {
			t.Fatal("registered through a cut wire")
		}
		g.setFail(nil)
		out := make(chan dagstore.ShardResult, 1)
		if err := d.RecoverShard(background, k, out, dagstore.RecoverOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		wantState(t, d, k, dagstore.ShardStateRecovering)
		closeStore(t, d)
		if res := <-out; !errors.Is(res.Error, dagstore.ErrClosed) {
			t.Errorf("recovery that Close interrupted: %v", res.Error)
		}
		g.letIn(1)
		d = start(t, cfg)
		settle()
		wantState(t, d, k, dagstore.ShardStateAvailable)
		works(t, d, k)
	})
}

// TestF10DestroyTakesAll: with a shard go its copy, its index and its entries in
// the top-level index, and the next shard of that key sees nothing of it. The
// predecessor left all three, and served the new shard by the old index.
// Proves F10, C8 (without the crash).
func TestF10DestroyTakesAll(t *testing.T) {
	first, firstCids := makeCAR(randomBlocks(1, 20, 100)...)
	second, secondCids := makeCAR(randomBlocks(2, 20, 100)...) // as long, so that offsets agree
	repos := map[string]func() index.FullIndexRepo{
		"files":   func() index.FullIndexRepo { return nil },
		"memory":  func() index.FullIndexRepo { return index.NewMemoryRepo() },
		"foreign": func() index.FullIndexRepo { return newForeignRepo() },
	}
	for name, repo := range repos {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d := open(t, dir, dagstore.WithConfig(func(c *dagstore.Config) { c.IndexRepo = repo() }),
				dagstore.WithMount("stream", &streamMount{}))
			k := key("foo")
			for round := range 6 {
				register(t, d, k, &streamMount{mount.BytesMount{Bytes: first}})
				works(t, d, k)
				destroyThen(t, d, k, round%2 == 0, func() error {
					return d.RegisterShard(background, k, &streamMount{mount.BytesMount{Bytes: second}}, nil, dagstore.RegisterOpts{})
				})
				acc := acquire(t, d, k)
				bs := blockstore(t, acc)
				for _, c := range firstCids {
					if ok, err := bs.Has(background, c); ok || err != nil {
						t.Fatalf("round %d: the new shard has a block of the old one: %v", round, err)
					}
					_, err := d.ShardsContainingMultihash(background, c.Hash())
					wantErr(t, "lookup of an old block", err, ds.ErrNotFound)
				}
				for _, c := range secondCids {
					if _, err := bs.Get(background, c); err != nil {
						t.Fatal(err)
					}
					if keys, err := d.ShardsContainingMultihash(background, c.Hash()); err != nil || len(keys) != 1 {
						t.Fatalf("lookup: %v, %v", keys, err)
					}
				}
				closeAll(t, acc)
				destroyThen(t, d, k, true, nil)
			}
			if left := slices.DeleteFunc(names(t, dir), func(n string) bool { return strings.HasPrefix(n, "journal") }); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			if keys, err := d.TopLevelIndex.GetShardsForMultihash(background, secondCids[0].Hash()); err == nil {
				t.Errorf("the top-level index still has %v", keys)
			}
		})
	}
}

// TestF10SweepAndNextLife: a shard's key is in use again before the sweep of its
// former life gets at the indices. Neither the old entries stay nor the new ones go.
// Proves F10, I8 (a key used again).
func TestF10SweepAndNextLife(t *testing.T) {
	first, firstCids := makeCAR(randomBlocks(1, 20, 100)...)
	second, secondCids := makeCAR(randomBlocks(2, 20, 100)...)
	for _, removing := range []bool{false, true} {
		top := &slowInverted{MemInverted: index.NewMemoryInverted(), held: key("other"), removing: removing,
			entered: make(chan struct{}), proceed: make(chan struct{})}
		repo := &noisyRepo{foreignRepo: newForeignRepo(), added: make(chan shard.Key, 8)}
		d := start(t, dagstore.Config{TopLevelIndex: top, IndexRepo: repo})
		k, out := key("foo"), make(chan dagstore.ShardResult, 1)
		register(t, d, k, &mount.BytesMount{Bytes: first})
		<-repo.added
		if removing { // the sweep is slow, and drops the shard index after the next life made its own
			top.held = k
			destroyAsync(t, d, k, out)
			<-top.entered
			if err := d.RegisterShard(background, k, &mount.BytesMount{Bytes: second}, nil, dagstore.RegisterOpts{}); err != nil {
				t.Fatal(err)
			}
			<-repo.added
		} else { // the index is busy with another shard, which the sweep need not wait for
			if err := d.RegisterShard(background, top.held, carV1(), nil, dagstore.RegisterOpts{}); err != nil {
				t.Fatal(err)
			}
			<-top.entered
			destroyAsync(t, d, k, out)
			registerLazily(t, d, k, &mount.BytesMount{Bytes: second})
		}
		close(top.proceed)
		if res := <-out; res.Error != nil {
			t.Fatal(res.Error)
		}
		if stat, err := repo.StatFullIndex(k); err != nil || removing && !stat.Exists {
			t.Errorf("the sweep of the former life dropped the index of this one: %v", err)
		}
		works(t, d, k)
		if n := len(multihashes(t, d, k)); n != len(secondCids) {
			t.Errorf("the index has %d blocks, want %d", n, len(secondCids))
		}
		for i := range firstCids {
			if keys, err := d.ShardsContainingMultihash(background, firstCids[i].Hash()); !errors.Is(err, ds.ErrNotFound) {
				t.Fatalf("lookup of an old block: %v, %v", keys, err)
			}
			if _, err := d.ShardsContainingMultihash(background, secondCids[i].Hash()); err != nil {
				t.Fatalf("lookup of a new block: %v", err)
			}
		}
	}
}

// slowInverted waits while it adds, or removes, one shard.
type slowInverted struct {
	*index.MemInverted
	held             shard.Key
	removing         bool
	entered, proceed chan struct{}
	once             atomic.Bool
}

func (v *slowInverted) wait(k shard.Key, removing bool) {
	if k == v.held && removing == v.removing && !v.once.Swap(true) {
		close(v.entered)
		<-v.proceed
	}
}

func (v *slowInverted) AddMultihashesForShard(ctx context.Context, it index.MultihashIterator, k shard.Key) error {
	v.wait(k, false)
	return v.MemInverted.AddMultihashesForShard(ctx, it, k)
}

func (v *slowInverted) RemoveShard(ctx context.Context, k shard.Key) error {
	v.wait(k, true)
	return v.MemInverted.RemoveShard(ctx, k)
}

// noisyRepo tells when an index was stored.
type noisyRepo struct {
	*foreignRepo
	added chan shard.Key
}

func (r *noisyRepo) AddFullIndex(k shard.Key, idx carindex.Index) error {
	err := r.foreignRepo.AddFullIndex(k, idx)
	r.added <- k
	return err
}

// destroyAsync destroys a shard and returns when that is durable, whether its
// files are gone or not.
func destroyAsync(t *testing.T, d *dagstore.DAGStore, k shard.Key, out chan dagstore.ShardResult) {
	t.Helper()
	if err := d.DestroyShard(background, k, out, dagstore.DestroyOpts{}); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := d.GetShardInfo(k); errors.Is(err, dagstore.ErrShardUnknown) {
			return
		}
		runtime.Gosched()
	}
}

// destroyThen destroys a shard as soon as the release of its last accessor got
// through, and then, having waited for the files to go or not, calls then.
func destroyThen(t *testing.T, d *dagstore.DAGStore, k shard.Key, wait bool, then func() error) {
	t.Helper()
	out := make(chan dagstore.ShardResult, 1)
	if err := d.DestroyShard(background, k, out, dagstore.DestroyOpts{}); err != nil {
		t.Fatal(err)
	}
	if wait {
		if res := <-out; res.Error != nil {
			t.Fatal(res.Error)
		}
	}
	for then != nil {
		err := then()
		if err == nil {
			break
		}
		if !errors.Is(err, dagstore.ErrShardExists) {
			t.Fatal(err)
		}
		runtime.Gosched() // the destruction is not durable yet
	}
	if !wait {
		if res := <-out; res.Error != nil {
			t.Fatal(res.Error)
		}
	}
}

// streamMount can only be read from front to back, so that it needs a copy.
type streamMount struct{ mount.BytesMount }

func (m *streamMount) Info() mount.Info {
	return mount.Info{Kind: mount.KindRemote, AccessSequential: true}
}

// foreignRepo is an index repository of a daemon's own, which knows nothing of
// lives and keeps indices in go-car's form.
type foreignRepo struct {
	mu  sync.Mutex
	all map[shard.Key][]byte
}

func newForeignRepo() *foreignRepo { return &foreignRepo{all: make(map[shard.Key][]byte)} }

func (r *foreignRepo) GetFullIndex(k shard.Key) (carindex.Index, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.all[k]
	if !ok {
		return nil, index.ErrNotFound
	}
	return carindex.ReadFrom(bytes.NewReader(b))
}

func (r *foreignRepo) AddFullIndex(k shard.Key, idx carindex.Index) error {
	var b bytes.Buffer
	if _, err := carindex.WriteTo(idx, &b); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[k] = b.Bytes()
	return nil
}

func (r *foreignRepo) DropFullIndex(k shard.Key) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.all[k]
	delete(r.all, k)
	if !ok {
		return false, index.ErrNotFound
	}
	return true, nil
}

func (r *foreignRepo) StatFullIndex(k shard.Key) (index.Stat, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.all[k]
	return index.Stat{Exists: ok, Size: uint64(len(b))}, nil
}

func (r *foreignRepo) Len() (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all), nil
}

func (r *foreignRepo) ForEach(f func(shard.Key) (bool, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.all {
		if more, err := f(k); err != nil || !more {
			return err
		}
	}
	return nil
}

func (r *foreignRepo) Size() (uint64, error) { return 0, nil }

// TestF11UnreadChannels: results that nobody reads hold up nobody, be the channel
// nil, unbuffered, full or shared, 10,000 of them, and Close neither. The
// predecessor's dispatcher stopped at the first.
// Proves F11.
func TestF11UnreadChannels(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{})
		k := key("foo")
		register(t, d, k, carV1())
		unread := make(chan dagstore.ShardResult)
		full := make(chan dagstore.ShardResult, 1)
		full <- dagstore.ShardResult{}
		const n = 10_000
		before := runtime.NumGoroutine()
		for i := range n {
			out := []chan dagstore.ShardResult{unread, full, make(chan dagstore.ShardResult), nil}[i%4]
			if err := d.AcquireShard(background, k, out, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		if m := d.Metrics(); m.Undelivered != n*3/4 {
			t.Errorf("%d results wait, want %d", m.Undelivered, n*3/4)
		}
		if grown := runtime.NumGoroutine() - before; grown > n/50 {
			t.Errorf("%d results wait in %d goroutines", n, grown)
		}
		works(t, d, k) // the others go on
		register(t, d, key("bar"), carV2())
		for range 100 { // some read after all
			res := <-unread
			if res.Error != nil || res.Accessor == nil {
				t.Fatalf("late result %+v", res)
			}
			readAll(t, res.Accessor)
			closeAll(t, res.Accessor)
		}
		<-full
		if res := <-full; res.Error != nil {
			t.Error(res.Error)
		} else {
			closeAll(t, res.Accessor)
		}
		settle()
		begun := time.Now()
		closeStore(t, d)
		if took := time.Since(begun); took > time.Second {
			t.Errorf("Close took %v", took)
		}
	})
}

// TestF12Keys: any key of 1 to 512 bytes of valid UTF-8 works, through a restart,
// and nothing outside the store's directory is touched. The predecessor wrote to
// "../../x.full.idx".
// Proves F12, I14 (for keys).
func TestF12Keys(t *testing.T) {
	outer := t.TempDir()
	dir := filepath.Join(outer, "a", "b", "store")
	keys := []string{"/", "..", ".", "../../x", "/etc/passwd", "a/b/c", "a\x00b", "\n", "ключ", "con", "x.full.idx", ".version",
		strings.Repeat("k", 512), strings.Repeat("../", 170), strings.Repeat("é", 256), `\\server\share`, "%2e%2e%2f", " "}
	d := open(t, dir)
	for i, s := range keys {
		if i%2 == 0 {
			register(t, d, key("%s", s), carV1())
		} else {
			registerLazily(t, d, key("%s", s), carV2())
		}
		works(t, d, key("%s", s))
	}
	for _, s := range []string{"", strings.Repeat("k", 513), "a\xffb"} {
		err := d.RegisterShard(background, shard.KeyFromString(s), carV1(), nil, dagstore.RegisterOpts{})
		wantErr(t, fmt.Sprintf("register %.20q", s), err, shard.ErrInvalidKey)
	}
	closeStore(t, d)
	d = open(t, dir)
	for _, s := range keys {
		works(t, d, key("%s", s))
	}
	for _, n := range names(t, outer) {
		if !strings.HasPrefix(n, filepath.Join("a", "b", "store")+string(filepath.Separator)) {
			t.Errorf("outside the store: %s", n)
		}
	}
	closeStore(t, d)
	d = open(t, dir)
	for _, s := range keys {
		destroy(t, d, key("%s", s))
	}
	if n := len(d.AllShardsInfo()); n != 0 {
		t.Errorf("%d shards are left", n)
	}
	for _, sub := range []string{"index", "copies"} {
		if left := names(t, filepath.Join(dir, sub)); len(left) != 0 {
			t.Errorf("left in %s: %q", sub, left)
		}
	}
}

// TestF13UnregisteredMount: a mount that could not be revived is refused at once,
// and the channel hears nothing. The predecessor took it and forgot it with the
// process.
// Proves F13.
func TestF13UnregisteredMount(t *testing.T) {
	d := start(t, dagstore.Config{})
	out := make(chan dagstore.ShardResult, 1)
	k := key("foo")
	err := d.RegisterShard(background, k, &streamMount{}, out, dagstore.RegisterOpts{})
	wantErr(t, "register", err, mount.ErrUnrecognizedType)
	if len(out) != 0 {
		t.Errorf("refused, and answered %+v", <-out)
	}
	_, err = d.GetShardInfo(k)
	wantErr(t, "info", err, dagstore.ErrShardUnknown)
	register(t, d, k, carV1())
	if err := d.RegisterShard(background, key("nil"), nil, out, dagstore.RegisterOpts{}); err == nil {
		t.Error("a nil mount was accepted")
	}
}

// TestF14NoDescriptorLeaks: whatever becomes of acquires, no descriptor is open
// once nobody uses the shards; and none after Close, whoever forgot an accessor.
// The predecessor opened a reader per acquire and lost those whose caller left.
// Proves F14.
func TestF14NoDescriptorLeaks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		car := writeFile(t, filepath.Join(dir, "x.car"), testdata.CarV1)
		d := open(t, filepath.Join(dir, "store"))
		idle := len(openFiles(t, dir)) // the journal and its lock
		direct, copied := key("direct"), key("copied")
		register(t, d, direct, &mount.FileMount{Path: car})
		register(t, d, copied, carV1())
		for i := range 400 {
			k := []shard.Key{direct, copied}[i%2]
			ctx, cancel := context.WithCancel(background)
			out := make(chan dagstore.ShardResult, i/2%2)
			if i%5 == 0 {
				cancel()
			}
			if err := d.AcquireShard(ctx, k, out, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
			if i%3 == 0 {
				settle()
			}
			cancel()
		}
		settle()
		pass(5 * time.Second) // more than the idle timeout
		if files := openFiles(t, dir); len(files) != idle && runtime.GOOS == "linux" {
			t.Errorf("open files: %v, want %d", files, idle)
		}
		wantState(t, d, direct, dagstore.ShardStateAvailable)
		wantState(t, d, copied, dagstore.ShardStateAvailable)

		acquire(t, d, direct)
		acc := acquire(t, d, copied)
		bs := blockstore(t, acc)
		closeStore(t, d)
		if files := openFiles(t, dir); len(files) != 0 {
			t.Errorf("open after Close: %v", files)
		}
		_, err := bs.Get(background, testdata.RootCID)
		wantErr(t, "read after Close", err, dagstore.ErrClosed)
		closeAll(t, acc)
	})
}

// TestF14OutlivedHandle: an accessor that was open while its shard was rebuilt is
// closed with the store, too.
// Proves F14 (accessors of a handle that was replaced).
func TestF14OutlivedHandle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		d := open(t, dir)
		data, cids := makeCAR(randomBlocks(1, 40, 64)...)
		path := writeFile(t, filepath.Join(dir, "x.car"), data)
		k := key("foo")
		register(t, d, k, &mount.FileMount{Path: path})
		acc := acquire(t, d, k)
		bs := blockstore(t, acc)
		damageIndex(t, dir)
		for _, c := range cids {
			bs.Get(background, c) // reports the damage
		}
		settle()
		works(t, d, k) // the index was built again
		reader := acc.Reader().(mount.Reader)
		if _, err := reader.ReadAt(make([]byte, 10), 0); err != nil {
			t.Errorf("the old accessor no longer reads: %v", err)
		}
		closeStore(t, d)
		if _, err := reader.ReadAt(make([]byte, 10), 0); !errors.Is(err, dagstore.ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
		if files := openFiles(t, dir); len(files) != 0 {
			t.Errorf("open after Close: %v", files)
		}
		closeAll(t, acc)
	})
}

// damageIndex changes the second half of the only index of a store, in place.
func damageIndex(t *testing.T, dir string) {
	t.Helper()
	dir = filepath.Join(dir, "index")
	name := filepath.Join(dir, names(t, dir)[0])
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	half := b[len(b)/2:]
	for i := range half {
		half[i] ^= 1
	}
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(half, int64(len(b)-len(half)))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestF16CloseDuringReads: accessors are closed while others read through them and
// through the shared handle. Each read gives the right bytes or ErrClosed. The
// predecessor unmapped the file under its readers, which ended the process.
// Proves F16.
func TestF16CloseDuringReads(t *testing.T) {
	d := start(t, dagstore.Config{IdleHandles: -1})
	k := key("foo")
	register(t, d, k, carV2())
	all := multihashes(t, d, k)
	var wg sync.WaitGroup
	for range 100 {
		acc := acquire(t, d, k)
		bs := blockstore(t, acc)
		for r := range 4 {
			wg.Go(func() {
				for i := range 50 {
					c := rawCid(all[(i*7+r)%len(all)])
					b, err := bs.Get(background, c)
					if err == nil {
						checkBlock(t, b)
						_, err = acc.Reader().(mount.Reader).ReadAt(make([]byte, 100), int64(i))
					}
					if err != nil {
						if !errors.Is(err, dagstore.ErrClosed) {
							t.Errorf("read while closing: %v", err)
						}
						return
					}
				}
			})
		}
		closeAll(t, acc)
		_, err := bs.Get(background, testdata.RootCID)
		wantErr(t, "Get after Close", err, dagstore.ErrClosed)
		_, err = bs.AllKeysChan(background)
		wantErr(t, "AllKeysChan after Close", err, dagstore.ErrClosed)
	}
	wg.Wait()
}

// TestF16ShrinkingFile: the shard's file becomes shorter while it is being read.
// The read is an error; the predecessor had it mapped and died of SIGBUS.
// Proves F16 (shrinking sources).
func TestF16ShrinkingFile(t *testing.T) {
	path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), testdata.CarV1)
	d := start(t, dagstore.Config{})
	k := key("foo")
	register(t, d, k, &mount.FileMount{Path: path})
	acc := acquire(t, d, k)
	defer acc.Close()
	bs := blockstore(t, acc)
	all := multihashes(t, d, k)
	if err := os.Truncate(path, int64(len(testdata.CarV1)/2)); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for _, h := range all {
		b, err := bs.Get(background, rawCid(h))
		var be *dagstore.BlockError
		switch {
		case err == nil:
			checkBlock(t, b)
		case errors.As(err, &be) && be.Shard == k && be.Offset > 0 && errors.Is(err, io.ErrUnexpectedEOF):
			failed++
		default:
			t.Errorf("block %s of a shrunk file: %v", h, err)
		}
	}
	if failed == 0 || failed == len(all) {
		t.Errorf("%d of %d blocks could not be read", failed, len(all))
	}
}

// TestF17DestroyInFlight: a shard is destroyed while it is fetched and others wait
// for it. They learn that it is gone; what the fetch brings is dropped and harms
// neither the key's next shard nor the directory. The predecessor revived the
// destroyed shard and handed its waiters accessors of a deleted file.
// Proves F17.
func TestF17DestroyInFlight(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			g := newGate()
			g.deaf = deaf
			dir := t.TempDir()
			d := start(t, dagstore.Config{TransientsDir: dir, MountRegistry: registry(t, g)})
			k := key("foo")
			out := make(chan dagstore.ShardResult, 8)
			if err := d.RegisterShard(background, k, &gateMount{carV1(), g}, out, dagstore.RegisterOpts{}); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if err := d.AcquireShard(background, k, out, dagstore.AcquireOpts{}); err != nil {
					t.Fatal(err)
				}
			}
			settle()
			gone := make(chan dagstore.ShardResult, 1)
			if err := d.DestroyShard(background, k, gone, dagstore.DestroyOpts{}); err != nil {
				t.Fatal(err)
			}
			settle()
			if len(out) != 4 {
				t.Fatalf("%d of 4 who waited were answered", len(out))
			}
			for range 4 {
				if res := <-out; !errors.Is(res.Error, dagstore.ErrShardUnknown) || res.Accessor != nil {
					t.Errorf("who waited got %+v", res)
				}
			}
			_, err := d.GetShardInfo(k)
			wantErr(t, "info", err, dagstore.ErrShardUnknown)
			if len(gone) != 1 {
				t.Error("the destruction waits for the fetch")
			}

			register(t, d, k, carV2()) // the next life
			g.letIn(8)                 // and only now the old fetch ends
			settle()
			if len(gone) != 1 {
				t.Fatal("the destruction was not answered")
			}
			if res := <-gone; res.Error != nil {
				t.Error(res.Error)
			}
			works(t, d, k)
			settle()
			wantState(t, d, k, dagstore.ShardStateAvailable)
			if files := names(t, dir); len(files) != 1 {
				t.Errorf("files %v, want the one copy of the new shard", files)
			}
			settle()
			destroy(t, d, k)
			if files := names(t, dir); len(files) != 0 {
				t.Errorf("left behind: %v", files)
			}
		})
	}
}

// TestF18ForeignFiles: what the store did not make stays, in every directory, and so
// do the copies of shards whose mount type is not registered: they are errored with
// the reason, and as they were once it is. The predecessor deleted both at Start.
// Proves F18, I14.
func TestF18ForeignFiles(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		with := dagstore.WithMount("stream", &streamMount{})
		d := open(t, dir, with)
		k := key("foo")
		register(t, d, k, &streamMount{mount.BytesMount{Bytes: testdata.CarV1}})
		register(t, d, key("bar"), carV1())
		closeStore(t, d)
		var foreign []string
		for _, sub := range []string{"copies", "index", "journal", "toplevel", "."} {
			for _, name := range []string{"notes.txt", "x.complete", "x.partial", "transient-zzz.complete", ".hidden", "0.idx", "a.full.idx",
				"zzzzzzzzzzzzzzzz-00000000000000000000000000000000.complete"} {
				foreign = append(foreign, writeFile(t, filepath.Join(dir, sub, name), []byte(name)))
			}
			sub := filepath.Join(dir, sub, "0000000000000001-00000000000000000000000000000000.complete", "inner")
			if err := os.MkdirAll(sub, 0o700); err != nil {
				t.Fatal(err)
			}
			foreign = append(foreign, writeFile(t, filepath.Join(sub, "f"), []byte("f")))
		}
		// The top-level index adds a run for what it had not seen yet when it was closed.
		stays := func() int {
			return len(slices.DeleteFunc(names(t, dir), func(n string) bool { return strings.HasSuffix(n, ".run") }))
		}
		before := stays()

		d = open(t, dir) // without that type
		i, err := d.GetShardInfo(k)
		if err != nil || i.ShardState != dagstore.ShardStateErrored || !errors.Is(i.Error, mount.ErrUnrecognizedScheme) {
			t.Errorf("a shard of an unknown mount type: %v, %v, %v", i, i.Error, err)
		}
		_, err = d.AcquireShardSync(background, k, dagstore.AcquireOpts{})
		wantErr(t, "acquire it", err, mount.ErrUnrecognizedScheme)
		works(t, d, key("bar"))
		settle()
		if _, err := d.GC(background); err != nil { // takes the copy of bar
			t.Fatal(err)
		}
		closeStore(t, d)

		d = open(t, dir, with)
		wantState(t, d, k, dagstore.ShardStateAvailable)
		acc, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{NoDownload: true})
		if err != nil {
			t.Fatalf("the copy of a shard whose type was unknown for a while: %v", err)
		}
		readAll(t, acc)
		closeAll(t, acc)
		for _, f := range foreign {
			if _, err := os.Stat(f); err != nil {
				t.Error(err)
			}
		}
		if after := stays(); after != before-1 {
			t.Errorf("%d files, want %d", after, before-1)
		}
	})
}

// TestF20DamagedIndex: with one byte of a shard's index changed, for every byte, no
// read is wrong: it is right or an error, never "not found"; the index is built
// again by itself, and acquiring works. The predecessor's indices had no checksum.
// Proves F20, C10 (index).
func TestF20DamagedIndex(t *testing.T) {
	bubble(t, func(t *testing.T) {
		sim := fsio.NewSim(20)
		d := open(t, "/store", dagstore.WithFS(sim), dagstore.WithConfig(func(c *dagstore.Config) { c.IdleHandles = -1 }))
		data, cids := makeCAR(randomBlocks(5, 6, 40)...)
		k := key("foo")
		register(t, d, k, &mount.BytesMount{Bytes: data})
		name := onlyFile(t, sim, "/store/index")
		size := fileSize(t, sim, name)
		noticed := 0
		for off := range size {
			if err := sim.FlipBit(name, off); err != nil {
				t.Fatal(err)
			}
			head := d.Metrics().Head
			for _, whole := range []bool{false, true} {
				acc, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{})
				if err != nil {
					t.Fatalf("byte %d of %d: acquire: %v", off, size, err)
				}
				bs := blockstore(t, acc)
				for _, c := range cids {
					b, err := bs.Get(background, c)
					switch {
					case err == nil:
						checkBlock(t, b)
					case whole || ipld.IsNotFound(err):
						t.Fatalf("byte %d of %d: block %s, built again %t: %v", off, size, c, whole, err)
					}
				}
				closeAll(t, acc)
				settle()
			}
			if d.Metrics().Head > head {
				noticed++
				continue
			}
			// Nobody came across that byte: put it right for the next.
			if err := sim.FlipBit(name, off); err != nil {
				t.Fatal(err)
			}
		}
		if noticed < int(size)/4 {
			t.Errorf("only %d of %d damaged bytes were noticed", noticed, size)
		}
		t.Logf("index of %d bytes: %d damages noticed and mended", size, noticed)
		wantState(t, d, k, dagstore.ShardStateAvailable)
	})
}

// TestF20MissingIndex: an index that is gone, empty or cut short is built again by
// the acquire that finds it so, on disk and in a daemon's own repository.
// Proves F20 (missing indices).
func TestF20MissingIndex(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		d := open(t, dir, dagstore.WithConfig(func(c *dagstore.Config) { c.IdleHandles = -1 }))
		k := key("foo")
		register(t, d, k, carV1())
		for _, size := range []int64{-1, 0, 1, 100} {
			name := filepath.Join(dir, "index", names(t, filepath.Join(dir, "index"))[0])
			err := os.Remove(name)
			if size >= 0 {
				err = os.WriteFile(name, make([]byte, size), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			works(t, d, k)
			settle()
		}
		repo := newForeignRepo()
		d = start(t, dagstore.Config{IndexRepo: repo, IdleHandles: -1})
		register(t, d, k, carV1())
		works(t, d, k)
		settle()
		if _, err := repo.DropFullIndex(k); err != nil {
			t.Fatal(err)
		}
		works(t, d, k)
	})
}

// TestF21CorruptBlock: a block whose bytes have changed is never served. The error
// names shard, CID and offset; all other blocks are served. The predecessor hashed
// nothing.
// Proves F21, I13.
func TestF21CorruptBlock(t *testing.T) {
	data, cids := makeCAR(randomBlocks(9, 50, 200)...)
	path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), data)
	d := start(t, dagstore.Config{})
	k := key("foo")
	register(t, d, k, &mount.FileMount{Path: path})
	acc := acquire(t, d, k)
	defer acc.Close()
	bad := cids[17]
	at := bytes.Index(data, bad.Bytes()) + bad.ByteLen()
	data[at+100] ^= 4
	writeFile(t, path, data)

	bs := blockstore(t, acc)
	view := func(c cid.Cid) error { return acc.View(background, c, func([]byte) error { return nil }) }
	get := func(c cid.Cid) error { _, err := bs.Get(background, c); return err }
	for name, read := range map[string]func(cid.Cid) error{"Get": get, "View": view} {
		for _, c := range cids {
			err := read(c)
			if c != bad {
				if err != nil {
					t.Errorf("%s of a sound block: %v", name, err)
				}
				continue
			}
			var be *dagstore.BlockError
			if !errors.As(err, &be) || !errors.Is(err, dagstore.ErrBlockCorrupt) || ipld.IsNotFound(err) {
				t.Fatalf("%s of a corrupt block: %v", name, err)
			}
			if be.Shard != k || be.Cid.String() != bad.String() || be.Offset != int64(at) {
				t.Errorf("%s: the error is about %s, %s, %d; want %s, %s, %d", name, be.Shard, be.Cid, be.Offset, k, bad, at)
			}
			for _, part := range []string{k.String(), bad.String(), fmt.Sprint(at)} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s: the error does not say %s: %v", name, part, err)
				}
			}
		}
	}
}

// TestF22Bounds: the limits bound scans and opens at once, and waiting shards cost
// no goroutine. In the predecessor each had its own, and a file open besides.
// Proves F22.
func TestF22Bounds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var running, peak atomic.Int32
		proceed := make(chan struct{})
		d := start(t, dagstore.Config{MaxConcurrentIndex: 3, ShardIndexer: func(ctx context.Context, _ shard.Key, r mount.Reader) (carindex.Index, error) {
			peak.Store(max(peak.Load(), running.Add(1)))
			defer running.Add(-1)
			select {
			case <-proceed:
			case <-ctx.Done():
			}
			return nil, errors.New("no index today")
		}})
		const shards = 2000
		before := runtime.NumGoroutine()
		tiny, _ := makeCAR([]byte("tiny"))
		for i := range shards {
			if err := d.RegisterShard(background, key("%d", i), &mount.BytesMount{Bytes: tiny}, nil, dagstore.RegisterOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		if n := running.Load(); n != 3 {
			t.Errorf("%d scans run, want 3", n)
		}
		if grown := runtime.NumGoroutine() - before; grown > 100 {
			t.Errorf("%d waiting shards take %d goroutines", shards, grown)
		}
		close(proceed)
		settle()
		if n := peak.Load(); n != 3 {
			t.Errorf("%d scans at once, want 3", n)
		}
		if n := d.Stats()[dagstore.ShardStateErrored]; n != shards {
			t.Errorf("%d of %d shards were dealt with", n, shards)
		}
	})
	bubble(t, func(t *testing.T) {
		g := newGate()
		r := registry(t, nil)
		if err := r.Register("opening", &openMount{}); err != nil {
			t.Fatal(err)
		}
		d := start(t, dagstore.Config{MountRegistry: r, MaxConcurrentOpens: 2})
		for i := range 50 {
			register(t, d, key("%d", i), &openMount{BytesMount: mount.BytesMount{Bytes: testdata.CarV1}})
		}
		pass(5 * time.Second)
		d2 := make(chan dagstore.ShardResult, 50)
		openGate.Store(g)
		defer openGate.Store(nil)
		for i := range 50 {
			if err := d.AcquireShard(background, key("%d", i), d2, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		g.letIn(50)
		settle()
		if _, _, peak := g.count(); peak != 2 || len(d2) != 50 {
			t.Errorf("%d opens at once and %d answers, want 2 and 50", peak, len(d2))
		}
		for range 50 {
			res := <-d2
			if res.Error != nil {
				t.Fatal(res.Error)
			}
			closeAll(t, res.Accessor)
		}
	})
}

// openMount is read in place, through openGate if that is set.
type openMount struct{ mount.BytesMount }

var openGate atomic.Pointer[gate]

func (m *openMount) Fetch(ctx context.Context) (mount.Reader, error) {
	if g := openGate.Load(); g != nil {
		return (&gateMount{&m.BytesMount, g}).Fetch(ctx)
	}
	return m.BytesMount.Fetch(ctx)
}

// TestF23CallersContext: the caller who began an initialisation leaves; it goes on
// for those who joined, and for the shard if nobody did. The predecessor ran it on
// the first caller's context.
// Proves F23.
func TestF23CallersContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		lazy, eager := key("lazy"), key("eager")
		registerLazily(t, d, lazy, &gateMount{carV1(), g})
		ctx, cancel := context.WithCancel(background)
		first, second := make(chan dagstore.ShardResult, 1), make(chan dagstore.ShardResult, 1)
		if err := d.AcquireShard(ctx, lazy, first, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		if err := d.AcquireShard(background, lazy, second, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		if err := d.RegisterShard(ctx, eager, &gateMount{carV2(), g}, nil, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		cancel()
		settle()
		if res := <-first; !errors.Is(res.Error, context.Canceled) || res.Accessor != nil {
			t.Errorf("the caller who left got %+v", res)
		}
		g.letIn(2)
		res := <-second
		if res.Error != nil {
			t.Fatalf("the caller who stayed got %v", res.Error)
		}
		readAll(t, res.Accessor)
		closeAll(t, res.Accessor)
		works(t, d, eager)
		if begun, _, _ := g.count(); begun != 2 {
			t.Errorf("%d fetches of 2 shards", begun)
		}
	})
}

// TestF25EveryMultihash: each of 3,000 multihashes leads to its shard and to no
// other, with the top-level index in a datastore. The predecessor used the raw
// bytes as a path, which changed one in 230.
// Proves F25.
func TestF25EveryMultihash(t *testing.T) {
	top := dssync.MutexWrap(ds.NewMapDatastore())
	d := start(t, dagstore.Config{TopLevelIndex: index.NewInverted(top)})
	for i := range 3 {
		data, _ := makeCAR(randomBlocks(uint64(i), 1000, 16)...)
		register(t, d, key("%d", i), &mount.BytesMount{Bytes: data})
	}
	for i := range 3 {
		_, cids := makeCAR(randomBlocks(uint64(i), 1000, 16)...)
		for _, c := range cids {
			if keys, err := d.ShardsContainingMultihash(background, c.Hash()); err != nil || len(keys) != 1 || keys[0] != key("%d", i) {
				t.Fatalf("%s is in %v, %v; want %d", c, keys, err, i)
			}
		}
	}
}

// TestF26NothingWritten: acquires, releases, reads and a GC with nothing to reclaim
// write nothing to the journal. The predecessor synced a record for each.
// Proves F26 (writes).
func TestF26NothingWritten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := newTestJournal()
		d := start(t, dagstore.Config{Journal: j})
		for i := range 10 {
			register(t, d, key("%d", i), &mount.BytesMount{Bytes: testdata.CarV1})
		}
		before := j.appends.Load()
		for range 10 {
			for i := range 10 {
				works(t, d, key("%d", i))
			}
			if _, err := d.GC(background); err != nil {
				t.Fatal(err)
			}
			pass(2 * time.Second)
		}
		if n := j.appends.Load() - before; n != 0 {
			t.Errorf("%d appends for acquires, releases and GC", n)
		}
	})
}

// testJournal is a journal in memory that can be held up and made to fail.
type testJournal struct {
	journal.Journal
	appends atomic.Int64
	mu      sync.Mutex
	gate    chan struct{} // closed: go on
	fail    func(events []shard.Event) error
}

func newTestJournal() *testJournal {
	j := &testJournal{Journal: journal.NewMemory(), gate: make(chan struct{})}
	close(j.gate)
	return j
}

// hold makes appends wait until the function it returns is called.
func (j *testJournal) hold() (release func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	gate := make(chan struct{})
	j.gate = gate
	return func() { close(gate) }
}

func (j *testJournal) failWith(f func(events []shard.Event) error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fail = f
}

func (j *testJournal) Append(events []shard.Event) (journal.Position, error) {
	j.appends.Add(1)
	j.mu.Lock()
	gate := j.gate
	j.mu.Unlock()
	<-gate
	j.mu.Lock()
	fail := j.fail
	j.mu.Unlock()
	if fail != nil {
		if err := fail(events); err != nil {
			return journal.Position{}, err
		}
	}
	return j.Journal.Append(events)
}

// TestF27ToldIsDurable: while the journal has not said that an event is durable,
// nobody is told and nothing is to be seen, and what needs no event goes on. The
// predecessor answered first and logged the failure.
// Proves F27, G3, I1 (order).
func TestF27ToldIsDurable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := newTestJournal()
		ch := make(chan dagstore.Trace, 64)
		d := start(t, dagstore.Config{Journal: j, TraceCh: ch})
		old, k := key("old"), key("foo")
		register(t, d, old, carV1())
		traces(ch)

		release := j.hold()
		out := make(chan dagstore.ShardResult, 4)
		if err := d.RegisterShard(background, k, carV2(), out, dagstore.RegisterOpts{LazyInitialization: true}); err != nil {
			t.Fatal(err)
		}
		if err := d.DestroyShard(background, key("old"), out, dagstore.DestroyOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		if n := len(out) + len(ch); n != 0 {
			t.Errorf("%d answers and traces before the journal was", n)
		}
		if all := d.AllShardsInfo(); len(all) != 1 {
			t.Errorf("visible before it is durable: %v", all)
		}
		if _, err := d.ListShards(dagstore.ListOptions{}); err != nil {
			t.Error(err)
		}
		release()
		settle()
		if len(out) != 2 {
			t.Fatalf("%d answers, want 2", len(out))
		}
		for range 2 {
			if res := <-out; res.Error != nil || res.Seq == 0 {
				t.Errorf("answer %+v", res)
			}
		}
		wantState(t, d, k, dagstore.ShardStateNew)

		// Acquires of other shards wait for no batch.
		works(t, d, k)
		release = j.hold()
		if err := d.RegisterShard(background, key("bar"), carV2(), nil, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		works(t, d, k)
		release()
		settle()
		works(t, d, key("bar"))
	})
}

// TestF29UnreadTraces: a trace channel and a failure channel that nobody reads stop
// nothing, and what is dropped is counted. In the predecessor the loop waited.
// Proves F29.
func TestF29UnreadTraces(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{TraceCh: make(chan dagstore.Trace), FailureCh: make(chan dagstore.ShardResult)})
		k := key("foo")
		register(t, d, k, &mount.BytesMount{Bytes: testdata.CarV1})
		if _, err := d.RegisterShardSync(background, key("junk"), junk(), dagstore.RegisterOpts{}); err == nil {
			t.Error("registered junk")
		}
		for range 3000 {
			closeAll(t, acquire(t, d, k))
		}
		settle()
		if m := d.Metrics(); m.TracesDropped == 0 || m.TracesDropped > 6000 {
			t.Errorf("%d traces were dropped", m.TracesDropped)
		}
	})
}

// TestF30ChangedSource: a source that is no longer what was indexed is an error, and
// recovery takes it as it is now; a local copy of another length is fetched again.
// The predecessor served the new bytes by the old index.
// Proves F30.
func TestF30ChangedSource(t *testing.T) {
	bubble(t, func(t *testing.T) {
		first, firstCids := makeCAR(randomBlocks(1, 20, 100)...)
		second, secondCids := makeCAR(randomBlocks(2, 20, 100)...)
		if len(first) != len(second) {
			t.Fatal("the two are not of one size")
		}
		dir := t.TempDir()
		path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), first)
		failures := make(chan dagstore.ShardResult, 4)
		cfg := dagstore.Config{TransientsDir: dir, Datastore: mapDatastore(), IndexRepo: index.NewMemoryRepo(), IdleHandles: -1, FailureCh: failures}
		d := start(t, cfg)
		k := key("foo")
		register(t, d, k, &mount.FileMount{Path: path})
		works(t, d, k)
		settle()
		writeFile(t, path, second)
		acc := acquire(t, d, k)
		for range 2 {
			_, err := blockstore(t, acc).Get(background, firstCids[0])
			wantErr(t, "a block that is no longer there", err, mount.ErrSourceChanged)
			wantErr(t, "a block that is no longer there", err, dagstore.ErrUnavailable)
		}
		if _, err := io.ReadAll(acc.Reader()); !errors.Is(err, mount.ErrSourceChanged) {
			t.Errorf("bytes that nobody can check: %v", err)
		}
		closeAll(t, acc)
		settle()
		var mismatch *index.SourceMismatchError
		if i, err := d.GetShardInfo(k); err != nil || i.ShardState != dagstore.ShardStateAvailable || !errors.As(i.Error, &mismatch) {
			t.Errorf("%+v, %v", i, err)
		}
		settle()
		if len(failures) != 1 {
			t.Errorf("%d failures told, want 1", len(failures))
		}
		if _, err := d.RecoverShardSync(background, k, dagstore.RecoverOpts{}); err != nil {
			t.Fatal(err)
		}
		acc = acquire(t, d, k)
		for _, c := range secondCids {
			if _, err := blockstore(t, acc).Get(background, c); err != nil {
				t.Error(err)
			}
		}
		if ok, err := blockstore(t, acc).Has(background, firstCids[0]); ok || err != nil {
			t.Errorf("has a block of the former content: %v", err)
		}
		closeAll(t, acc)
		if keys, err := d.ShardsContainingMultihash(background, firstCids[0].Hash()); !errors.Is(err, ds.ErrNotFound) {
			t.Errorf("lookup of a block of the former content: %v, %v", keys, err)
		}

		c := key("copied")
		m := &mount.Counting{Mount: carV1()}
		register(t, d, c, m)
		settle()
		name := filepath.Join(dir, names(t, dir)[0])
		for what, damage := range map[string]func() error{
			"gone":  func() error { return os.Remove(name) },
			"short": func() error { return os.Truncate(name, 100) },
			"other": func() error { return os.WriteFile(name, bytes.Repeat([]byte{1}, len(testdata.CarV1)), 0o600) },
		} {
			before := m.Count()
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			works(t, d, c)
			settle()
			if n := m.Count() - before; n != 1 {
				t.Errorf("copy %s: fetched %d times, want once", what, n)
			}
		}
	})
}

// TestAdoption: a store of the predecessor's, records, indices and copies, is taken
// over at the first start: nothing is fetched or indexed again that need not be, no
// record is stuck in between, and the old records stay.
// Proves F9 (records), F5 (URLs in records).
func TestAdoption(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir, idxDir := t.TempDir(), t.TempDir()
		base := mapDatastore()
		old := namespace.Wrap(base, dagstore.StoreNamespace)
		put := func(p dagstore.PersistedShard) {
			b, err := json.Marshal(p)
			if err == nil {
				err = old.Put(background, ds.NewKey(p.Key), b)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		own := writeFile(t, filepath.Join(t.TempDir(), "own.car"), testdata.CarV1)
		copyOf := func(k string, data []byte) string {
			return writeFile(t, filepath.Join(dir, "transient-"+k+".complete"), data)
		}
		const url1, url2 = "fs://sample-v1.car?path=files/sample-v1.car", "fs://sample-wrapped-v2.car?path=files/sample-wrapped-v2.car"
		put(dagstore.PersistedShard{Key: "avail", URL: url2, State: dagstore.ShardStateAvailable, TransientPath: copyOf("avail", testdata.CarV2)})
		put(dagstore.PersistedShard{Key: "serving", URL: url1, State: dagstore.ShardStateServing, TransientPath: copyOf("serving", testdata.CarV1)})
		put(dagstore.PersistedShard{Key: "noindex", URL: url1, State: dagstore.ShardStateAvailable})
		put(dagstore.PersistedShard{Key: "lazy", URL: url1, State: dagstore.ShardStateNew, Lazy: true})
		put(dagstore.PersistedShard{Key: "eager", URL: url1, State: dagstore.ShardStateInitializing})
		put(dagstore.PersistedShard{Key: "errored", URL: url1, State: dagstore.ShardStateErrored, Error: "it broke"})
		put(dagstore.PersistedShard{Key: "recovering", URL: url1, State: dagstore.ShardStateRecovering})
		put(dagstore.PersistedShard{Key: "own", URL: "fs://gone?path=gone", State: dagstore.ShardStateNew, Lazy: true, TransientPath: own})
		for k, v := range map[string]string{"daemon": "not ours", "other": `{"k":"something"}`} {
			if err := old.Put(background, ds.NewKey(k), []byte(v)); err != nil {
				t.Fatal(err)
			}
		}
		writeFile(t, filepath.Join(idxDir, ".version"), []byte("1"))
		for k, data := range map[string][]byte{"avail": testdata.CarV2, "serving": testdata.CarV1} {
			writeFile(t, filepath.Join(idxDir, k+".full.idx"), goCarIndex(t, data))
		}
		idx, err := index.NewFSRepo(idxDir)
		if err != nil {
			t.Fatal(err)
		}
		cfg := dagstore.Config{TransientsDir: dir, Datastore: base, IndexRepo: idx}
		for round := range 2 {
			d := start(t, cfg)
			settle()
			want := map[string]dagstore.ShardState{
				"avail": dagstore.ShardStateAvailable, "serving": dagstore.ShardStateAvailable, "noindex": dagstore.ShardStateAvailable,
				"lazy": dagstore.ShardStateNew, "eager": dagstore.ShardStateAvailable, "errored": dagstore.ShardStateErrored,
				"recovering": dagstore.ShardStateAvailable, "own": dagstore.ShardStateNew,
			}
			if all := d.AllShardsInfo(); round == 0 && len(all) != len(want) {
				t.Errorf("adopted %v", all)
			}
			if round == 0 {
				for k, s := range want {
					wantState(t, d, key("%s", k), s)
				}
				if i, _ := d.GetShardInfo(key("errored")); i.Error == nil || i.Error.Error() != "it broke" {
					t.Errorf("reason of an errored shard: %v", i.Error)
				}
			}
			for _, k := range []string{"avail", "serving"} { // by their copies
				acc, err := d.AcquireShardSync(background, key("%s", k), dagstore.AcquireOpts{NoDownload: true})
				if err != nil {
					t.Fatalf("round %d: %s: %v", round, k, err)
				}
				if n, want := readAll(t, acc), len(multihashes(t, d, key("%s", k))); n != want {
					t.Errorf("%s: %d blocks, %d indexed", k, n, want)
				}
				if n, err := blockstore(t, acc).GetSize(background, testdata.RootCID); err != nil || n <= 0 {
					t.Errorf("%s: size by an index without sizes: %d, %v", k, n, err)
				}
				closeAll(t, acc)
			}
			for _, k := range []string{"noindex", "lazy", "eager", "own"} {
				works(t, d, key("%s", k))
			}
			for _, k := range []string{"errored", "recovering"} {
				if round == 0 && k == "errored" {
					if _, err := d.RecoverShardSync(background, key("%s", k), dagstore.RecoverOpts{}); err != nil {
						t.Errorf("recover %s: %v", k, err)
					}
				}
				works(t, d, key("%s", k))
			}
			if keys, err := d.ShardsContainingMultihash(background, testdata.RootCID.Hash()); err != nil || len(keys) != len(want) {
				t.Errorf("round %d: the root is in %v, %v", round, keys, err)
			}
			closeStore(t, d)
		}
		if b, err := old.Get(background, ds.NewKey("avail")); err != nil || !bytes.Contains(b, []byte(`"k":"avail"`)) {
			t.Errorf("the old record: %s, %v", b, err)
		}
	})
}

// goCarIndex is an index as the predecessor wrote it.
func goCarIndex(t *testing.T, data []byte) []byte {
	t.Helper()
	idx, err := readOrGenerate(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := carindex.WriteTo(idx, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// readOrGenerate indexes as the predecessor does.
func readOrGenerate(r io.ReadSeeker) (carindex.Index, error) {
	return car.ReadOrGenerateIndex(r, car.ZeroLengthSectionAsEOF(true), car.StoreIdentityCIDs(true))
}
