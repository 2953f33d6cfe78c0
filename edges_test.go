package dagstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	ipld "github.com/ipfs/go-ipld-format"
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

// Contexts and channels.

// TestContextEnds: a caller's context ends before the request, while it waits and
// after its accessor was delivered to a buffer that nobody reads. Each time the
// reference is gone, and at most the context's error is received.
// Proves F14 (accessors lying unread), I1 (one answer), I5.
func TestContextEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		k, slow := key("foo"), key("slow")
		register(t, d, k, carV1())
		registerLazily(t, d, slow, &gateMount{carV1(), g})

		check := func(what string, out chan dagstore.ShardResult) {
			t.Helper()
			settle()
			if len(out) != 1 {
				t.Fatalf("%s: %d results, want 1", what, len(out))
			}
			if res := <-out; !errors.Is(res.Error, context.Canceled) || res.Accessor != nil || res.Key == (shard.Key{}) {
				t.Errorf("%s: got %+v", what, res)
			}
			settle()
			wantState(t, d, k, dagstore.ShardStateAvailable)
		}
		out := make(chan dagstore.ShardResult, 1)
		ctx, cancel := context.WithCancel(background)
		cancel()
		if err := d.AcquireShard(ctx, k, out, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		check("before", out)

		ctx, cancel = context.WithCancel(background)
		if err := d.AcquireShard(ctx, slow, out, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		cancel()
		check("while waiting", out)

		ctx, cancel = context.WithCancel(background)
		if err := d.AcquireShard(ctx, k, out, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		wantState(t, d, k, dagstore.ShardStateServing)
		cancel()
		check("in the buffer", out)

		// Among others in one buffer, only the one whose context ends is replaced.
		shared := make(chan dagstore.ShardResult, 8)
		ctx, cancel = context.WithCancel(background)
		for i := range 5 {
			c := background
			if i == 2 {
				c = ctx
			}
			if err := d.AcquireShard(c, k, shared, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		cancel()
		settle()
		good, bad := 0, 0
		for range len(shared) {
			if res := <-shared; res.Error == nil {
				good++
				readAll(t, res.Accessor)
				closeAll(t, res.Accessor)
			} else {
				bad++
			}
		}
		if good != 4 || bad != 1 {
			t.Errorf("%d accessors and %d errors, want 4 and 1", good, bad)
		}

		// An accessor that was received stays good when the context ends.
		ctx, cancel = context.WithCancel(background)
		if err := d.AcquireShard(ctx, k, out, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		res := <-out
		cancel()
		settle()
		readAll(t, res.Accessor)
		closeAll(t, res.Accessor)

		// An unbuffered channel that nobody reads.
		ctx, cancel = context.WithCancel(background)
		none := make(chan dagstore.ShardResult)
		if err := d.AcquireShard(ctx, k, none, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		wantState(t, d, k, dagstore.ShardStateServing)
		cancel()
		settle()
		wantState(t, d, k, dagstore.ShardStateAvailable)
		select {
		case res := <-none:
			t.Errorf("received %+v after the context ended", res)
		default:
		}
		g.letIn(1)
	})
}

// TestSyncForms: they return the results, and a context that ends returns its error
// and leaves nothing behind, while what it began goes on.
func TestSyncForms(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		ended, cancel := context.WithCancel(background)
		cancel()
		k := key("foo")
		_, err := d.RegisterShardSync(ended, k, carV1(), dagstore.RegisterOpts{})
		wantErr(t, "register", err, context.Canceled)
		_, err = d.GetShardInfo(k)
		wantErr(t, "info", err, dagstore.ErrShardUnknown)

		ctx, cancel := context.WithTimeout(background, time.Second)
		_, err = d.RegisterShardSync(ctx, k, &gateMount{carV1(), g}, dagstore.RegisterOpts{})
		wantErr(t, "register with too little time", err, context.DeadlineExceeded)
		cancel()
		ctx, cancel = context.WithTimeout(background, time.Second)
		acc, err := d.AcquireShardSync(ctx, k, dagstore.AcquireOpts{})
		wantErr(t, "acquire with too little time", err, context.DeadlineExceeded)
		if acc != nil {
			t.Error("an accessor beside an error")
		}
		cancel()
		g.letIn(1)
		settle()
		wantState(t, d, k, dagstore.ShardStateAvailable)
		for what, f := range map[string]func() error{
			"acquire": func() error { _, err := d.AcquireShardSync(ended, k, dagstore.AcquireOpts{}); return err },
			"recover": func() error { _, err := d.RecoverShardSync(ended, k, dagstore.RecoverOpts{}); return err },
			"destroy": func() error { _, err := d.DestroyShardSync(ended, k, dagstore.DestroyOpts{}); return err },
		} {
			wantErr(t, what+" with an ended context", f(), context.Canceled)
		}
		settle()
		works(t, d, k)
		for what, f := range map[string]func(shard.Key) error{
			"acquire": func(k shard.Key) error {
				_, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{})
				return err
			},
			"recover": func(k shard.Key) error {
				_, err := d.RecoverShardSync(background, k, dagstore.RecoverOpts{})
				return err
			},
			"destroy": func(k shard.Key) error {
				_, err := d.DestroyShardSync(background, k, dagstore.DestroyOpts{})
				return err
			},
		} {
			wantErr(t, what+" of an unknown shard", f(key("nobody")), dagstore.ErrShardUnknown)
		}
	})
}

// TestOneAnswerEach: whatever requests meet a Close, each that was accepted gets
// one answer, none comes after Close, and nothing stays open.
// Proves F28, I1.
func TestOneAnswerEach(t *testing.T) {
	dir := t.TempDir()
	for round := range 20 {
		d := open(t, filepath.Join(dir, fmt.Sprint(round)))
		register(t, d, key("0"), carV1())
		out := make(chan dagstore.ShardResult, 1<<14)
		var accepted, answered atomic.Int64
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for w := range 8 {
			wg.Go(func() {
				<-begin
				for i := range 100 {
					k := key("%d", (i*w)%7)
					var err error
					switch (i + w) % 5 {
					case 0:
						err = d.RegisterShard(background, k, carV1(), out, dagstore.RegisterOpts{LazyInitialization: i%2 == 0})
					case 1, 2:
						err = d.AcquireShard(background, k, out, dagstore.AcquireOpts{})
					case 3:
						err = d.RecoverShard(background, k, out, dagstore.RecoverOpts{})
					default:
						err = d.DestroyShard(background, k, out, dagstore.DestroyOpts{})
					}
					if err == nil {
						accepted.Add(1)
					}
				}
			})
		}
		take := func(res dagstore.ShardResult) {
			answered.Add(1)
			if res.Error == nil && res.Accessor == nil && res.Seq == 0 || res.Error != nil && res.Accessor != nil {
				t.Errorf("answer %+v", res)
			}
			if res.Accessor != nil && round%2 == 0 {
				closeAll(t, res.Accessor)
			}
		}
		close(begin)
		for range round * 10 {
			take(<-out)
		}
		closeStore(t, d)
		wg.Wait()
		for range len(out) {
			take(<-out)
		}
		if accepted.Load() != answered.Load() {
			t.Errorf("round %d: %d requests were accepted and %d answered", round, accepted.Load(), answered.Load())
		}
	}
	if files := openFiles(t, dir); len(files) != 0 {
		t.Errorf("open after Close: %v", files)
	}
}

// TestLifecycle: verbs before Start and after Close, Start twice, Close of a store
// that was not started, two stores on one directory.
// Proves C12 (one process).
func TestLifecycle(t *testing.T) {
	if _, err := dagstore.NewDAGStore(dagstore.Config{}); err == nil {
		t.Error("a store without a directory")
	}
	d, err := dagstore.NewDAGStore(dagstore.Config{TransientsDir: t.TempDir(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "register before Start", d.RegisterShard(background, key("a"), carV1(), nil, dagstore.RegisterOpts{}), dagstore.ErrNotStarted)
	_, err = d.GetShardInfo(key("a"))
	wantErr(t, "info before Start", err, dagstore.ErrNotStarted)
	_, err = d.GC(background)
	wantErr(t, "GC before Start", err, dagstore.ErrNotStarted)
	closeStore(t, d)
	if err := d.Start(background); err == nil {
		t.Error("started after Close")
	}
	wantErr(t, "register after Close", d.RegisterShard(background, key("a"), carV1(), nil, dagstore.RegisterOpts{}), dagstore.ErrClosed)

	dir := t.TempDir()
	a := open(t, dir)
	if err := a.Start(background); err == nil {
		t.Error("started twice")
	}
	_, err = dagstore.Open(background, dir, dagstore.WithLogger(quiet))
	wantErr(t, "a second store in the directory", err, journal.ErrLocked)
	register(t, a, key("a"), carV1())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { closeStore(t, a) })
	}
	wg.Wait()
	works(t, open(t, dir), key("a"))

	ctx, cancel := context.WithCancel(background)
	cancel()
	if _, err := dagstore.Open(ctx, t.TempDir(), dagstore.WithLogger(quiet)); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("open with an ended context: %v", err)
	}
}

// Reading.

// TestReadBlockstore: what a shard's blockstore says of blocks that are there, that
// are not, of CIDs of other versions and codecs, and of identity CIDs.
// Proves F24 (of one shard), I13.
func TestReadBlockstore(t *testing.T) {
	d := start(t, dagstore.Config{})
	k := key("foo")
	register(t, d, k, carV2())
	acc := acquire(t, d, k)
	defer acc.Close()
	bs := blockstore(t, acc)
	ctx := t.Context()
	view := func(c cid.Cid) (b []byte, err error) {
		err = acc.View(ctx, c, func(p []byte) error { b = bytes.Clone(p); return nil })
		return b, err
	}
	all := multihashes(t, d, k)
	for _, h := range all {
		forms := []cid.Cid{cid.NewCidV1(cid.Raw, h), cid.NewCidV1(cid.DagProtobuf, h), cid.NewCidV1(cid.DagCBOR, h)}
		if dec, err := mh.Decode(h); err == nil && dec.Code == mh.SHA2_256 {
			forms = append(forms, cid.NewCidV0(h))
		}
		for _, c := range forms {
			b, err := bs.Get(ctx, c)
			if err != nil || !b.Cid().Equals(c) {
				t.Fatalf("Get %s: %v, %v", c, b, err)
			}
			checkBlock(t, b)
			if n, err := bs.GetSize(ctx, c); err != nil || n != len(b.RawData()) {
				t.Errorf("GetSize %s: %d, %v, want %d", c, n, err, len(b.RawData()))
			}
			if ok, err := bs.Has(ctx, c); err != nil || !ok {
				t.Errorf("Has %s: %t, %v", c, ok, err)
			}
			if p, err := view(c); err != nil || !bytes.Equal(p, b.RawData()) {
				t.Errorf("View %s: %d bytes, %v", c, len(p), err)
			}
		}
	}
	_, absent := makeCAR([]byte("not in there"))
	_, err := bs.Get(ctx, absent[0])
	if nf := (ipld.ErrNotFound{}); !errors.As(err, &nf) || !nf.Cid.Equals(absent[0]) || !ipld.IsNotFound(err) {
		t.Errorf("Get of an absent block: %v", err)
	}
	if _, err := bs.GetSize(ctx, absent[0]); !ipld.IsNotFound(err) {
		t.Errorf("GetSize of an absent block: %v", err)
	}
	if _, err := view(absent[0]); !ipld.IsNotFound(err) {
		t.Errorf("View of an absent block: %v", err)
	}
	if ok, err := bs.Has(ctx, absent[0]); ok || err != nil {
		t.Errorf("Has of an absent block: %t, %v", ok, err)
	}

	for _, text := range []string{"", "inline", strings.Repeat("x", 128)} {
		h, err := mh.Sum([]byte(text), mh.IDENTITY, -1)
		if err != nil {
			t.Fatal(err)
		}
		c := cid.NewCidV1(cid.Raw, h)
		if b, err := bs.Get(ctx, c); err != nil || string(b.RawData()) != text {
			t.Errorf("Get of an identity CID: %v", err)
		}
		if p, err := view(c); err != nil || string(p) != text {
			t.Errorf("View of an identity CID: %q, %v", p, err)
		}
		if n, err := bs.GetSize(ctx, c); err != nil || n != len(text) {
			t.Errorf("GetSize of an identity CID: %d, %v", n, err)
		}
	}
	if _, err := bs.Get(ctx, cid.Undef); !ipld.IsNotFound(err) {
		t.Errorf("Get of no CID: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	keys, err := bs.AllKeysChan(ended)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	<-keys
	cancel()
	for range keys { // closes
	}
	_, err = bs.Get(ended, rawCid(all[0]))
	wantErr(t, "Get with an ended context", err, context.Canceled)
	if keys, err = bs.AllKeysChan(ctx); err != nil {
		t.Fatal(err)
	}
	for c := range keys {
		if seen[string(c.Hash())] {
			t.Errorf("%s was listed twice", c)
		}
		seen[string(c.Hash())] = true
	}
	for _, h := range all {
		if !seen[string(h)] {
			t.Errorf("%s was not listed", h)
		}
	}
	bs.HashOnRead(true)
	bs.HashOnRead(false)

	sentinel := errors.New("mine")
	wantErr(t, "View's own error", acc.View(ctx, rawCid(all[0]), func([]byte) error { return sentinel }), sentinel)
}

// TestAllKeysChanEnds: a listing that nobody reads ends with the accessor, and holds
// up neither its Close nor the store's.
func TestAllKeysChanEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{})
		k := key("foo")
		register(t, d, k, carV2())
		acc := acquire(t, d, k)
		keys, err := blockstore(t, acc).AllKeysChan(background)
		if err != nil {
			t.Fatal(err)
		}
		<-keys
		closeAll(t, acc)
		pass(5 * time.Second)
		wantState(t, d, k, dagstore.ShardStateAvailable)
		for range keys { // what is left, if anything, ends
		}
		others, acc := acquire(t, d, k), acquire(t, d, k) // of one handle, which stays open
		if keys, err = blockstore(t, acc).AllKeysChan(background); err != nil {
			t.Fatal(err)
		}
		<-keys
		synctest.Wait() // it waits for somebody to receive the next one
		closeAll(t, acc)
		synctest.Wait()
		select {
		case _, open := <-keys:
			if open {
				t.Error("a key after Close")
			}
		default:
			t.Error("the listing goes on after Close")
		}
		closeAll(t, others)
		acc = acquire(t, d, k)
		keys, err = blockstore(t, acc).AllKeysChan(background)
		if err != nil {
			t.Fatal(err)
		}
		closeStore(t, d)
		for range keys {
		}
		closeAll(t, acc)
	})
}

// TestReader: the accessor's reader is the CAR file, byte by byte, with a position
// of its own for each.
func TestReader(t *testing.T) {
	d := start(t, dagstore.Config{})
	path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), testdata.CarV2)
	for name, m := range map[string]mount.Mount{"copy": carV2(), "file": &mount.FileMount{Path: path}, "bytes": &mount.BytesMount{Bytes: testdata.CarV2}} {
		k := key("%s", name)
		register(t, d, k, m)
		acc := acquire(t, d, k)
		a, b := acc.Reader().(mount.Reader), acc.Reader().(mount.Reader)
		first := make([]byte, 100)
		if _, err := io.ReadFull(a, first); err != nil {
			t.Fatal(err)
		}
		if all, err := io.ReadAll(b); err != nil || !bytes.Equal(all, testdata.CarV2) {
			t.Errorf("%s: read %d bytes, %v", name, len(all), err)
		}
		if rest, err := io.ReadAll(a); err != nil || !bytes.Equal(append(first, rest...), testdata.CarV2) {
			t.Errorf("%s: the other reader: %d bytes, %v", name, len(rest), err)
		}
		if n, err := a.Seek(-10, io.SeekEnd); err != nil || n != int64(len(testdata.CarV2)-10) {
			t.Errorf("%s: seek: %d, %v", name, n, err)
		}
		if tail, err := io.ReadAll(a); err != nil || len(tail) != 10 {
			t.Errorf("%s: tail: %d, %v", name, len(tail), err)
		}
		if n, err := a.ReadAt(make([]byte, 20), int64(len(testdata.CarV2)-5)); n != 5 || err != io.EOF {
			t.Errorf("%s: read past the end: %d, %v", name, n, err)
		}
		if _, err := a.Seek(-1, io.SeekStart); err == nil {
			t.Errorf("%s: seek to a negative position", name)
		}
		closeAll(t, acc)
		_, err := b.ReadAt(first, 0)
		wantErr(t, name+": read after Close", err, dagstore.ErrClosed)
	}
}

// TestCARForms: CARs that clients store: with zero padding behind the payload, as
// sealed pieces have, with duplicates, with empty and identity blocks.
func TestCARForms(t *testing.T) {
	d := start(t, dagstore.Config{})
	plain, _ := makeCAR(randomBlocks(1, 10, 100)...)
	var identity bytes.Buffer
	h, err := mh.Sum([]byte("inline"), mh.IDENTITY, -1)
	if err != nil {
		t.Fatal(err)
	}
	writeSection(&identity, cid.NewCidV1(cid.Raw, h), []byte("inline"))
	double, _ := makeCAR([]byte("a"), []byte("b"), []byte("a"), []byte(""))
	for name, c := range map[string]struct {
		car  []byte
		want int
	}{
		"padded":    {append(slices.Clone(plain), make([]byte, 4096)...), 10},
		"padded v2": {slices.Clone(testdata.CarV2), len(uniqueBlocks(t, d))},
		"identity":  {append(slices.Clone(plain), identity.Bytes()...), 11},
		"doubles":   {double, 3},
		"no blocks": {plain[:1+int(plain[0])], 0},
	} {
		k := key("%s", name)
		register(t, d, k, &mount.BytesMount{Bytes: c.car})
		acc := acquire(t, d, k)
		if n := readAll(t, acc); n != c.want {
			t.Errorf("%s: %d blocks, want %d", name, n, c.want)
		}
		closeAll(t, acc)
	}
	if _, err := d.ShardsContainingMultihash(background, h); err != nil {
		t.Errorf("lookup of an identity multihash that is in a shard: %v", err)
	}
	for name, bad := range map[string][]byte{"cut": plain[:len(plain)-10], "empty": {}, "junk": testdata.Junk,
		"swapped": bytes.Replace(plain, plain[len(plain)-50:], bytes.Repeat([]byte{7}, 50), 1)} {
		_, err := d.RegisterShardSync(background, key("bad-%s", name), &mount.BytesMount{Bytes: bad}, dagstore.RegisterOpts{})
		wantErr(t, "register a CAR that is "+name, err, dagstore.ErrShardInitializationFailed)
	}
}

func uniqueBlocks(t *testing.T, d *dagstore.DAGStore) map[string]bool {
	k := key("unique")
	register(t, d, k, carV2())
	all := make(map[string]bool)
	for _, h := range multihashes(t, d, k) {
		all[string(h)] = true
	}
	return all
}

// TestNewShardAccessor joins a reader and any index, as clients and tests of theirs do.
func TestNewShardAccessor(t *testing.T) {
	for name, data := range map[string][]byte{"v1": testdata.CarV1, "v2": testdata.CarV2, "none": testdata.CarV2} {
		idx, err := carindex.ReadFrom(bytes.NewReader(goCarIndex(t, data)))
		if err != nil {
			t.Fatal(err)
		}
		var s dagstore.Shard
		if err := s.UnmarshalJSON([]byte(`{"k":"x"}`)); err != nil {
			t.Fatal(err)
		}
		r, err := (&mount.BytesMount{Bytes: data}).Fetch(background)
		if err != nil {
			t.Fatal(err)
		}
		if name == "none" {
			idx = nil // as clients' tests have it
		}
		acc, err := dagstore.NewShardAccessor(r, idx, &s)
		if err != nil {
			t.Fatal(err)
		}
		if acc.Shard() != key("x") {
			t.Errorf("%s: shard %s", name, acc.Shard())
		}
		if b, err := blockstore(t, acc).Get(background, testdata.RootCID); err != nil {
			t.Errorf("%s: %v", name, err)
		} else {
			checkBlock(t, b)
		}
		if n := readAll(t, acc); n == 0 {
			t.Errorf("%s: no blocks", name)
		}
		closeAll(t, acc, acc)
		_, err = acc.Blockstore()
		wantErr(t, "Blockstore after Close", err, dagstore.ErrClosed)
	}
	if _, err := dagstore.NewShardAccessor(nil, nil, nil); err == nil {
		t.Error("an accessor of nothing")
	}
	junk, err := (&mount.BytesMount{Bytes: testdata.Junk}).Fetch(background)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dagstore.NewShardAccessor(junk, nil, nil); !errors.Is(err, index.ErrMalformed) {
		t.Errorf("an accessor of junk without an index: %v", err)
	}
}

// TestGetIterableIndex: the index of a shard, whole, and none of a shard that has none.
func TestGetIterableIndex(t *testing.T) {
	d := start(t, dagstore.Config{})
	data, cids := makeCAR(randomBlocks(3, 30, 50)...)
	k := key("foo")
	register(t, d, k, &mount.BytesMount{Bytes: data})
	idx, err := d.GetIterableIndex(k)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cids {
		found := 0
		if err := idx.GetAll(c, func(off uint64) bool { found++; return true }); err != nil || found != 1 {
			t.Errorf("%s: %d offsets, %v", c, found, err)
		}
	}
	if n := len(multihashes(t, d, k)); n != len(cids) {
		t.Errorf("%d entries, want %d", n, len(cids))
	}
	registerLazily(t, d, key("lazy"), carV1())
	for name, want := range map[string]error{"lazy": dagstore.ErrNotInitialized, "nobody": dagstore.ErrShardUnknown} {
		_, err := d.GetIterableIndex(key("%s", name))
		wantErr(t, "index of "+name, err, want)
		wantErr(t, "index of "+name, err, index.ErrNotFound)
	}
}

// What clients plug in.

// TestShardIndexer: a daemon's own indexer is used, and what it gets wrong is an
// error: no index, a panic, offsets of somewhere else.
func TestShardIndexer(t *testing.T) {
	var calls atomic.Int32
	var with func(r mount.Reader) (carindex.Index, error)
	d := start(t, dagstore.Config{ShardIndexer: func(ctx context.Context, k shard.Key, r mount.Reader) (carindex.Index, error) {
		calls.Add(1)
		return with(r)
	}})
	with = func(r mount.Reader) (carindex.Index, error) { return readOrGenerate(r) }
	for name, m := range map[string]mount.Mount{"v1": carV1(), "v2": carV2()} {
		register(t, d, key("%s", name), m)
		works(t, d, key("%s", name))
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("called %d times, want 2", n)
	}
	with = func(r mount.Reader) (carindex.Index, error) {
		idx, err := readOrGenerate(r)
		return struct{ carindex.Index }{idx}, err // cannot be iterated
	}
	register(t, d, key("asked"), carV2())
	works(t, d, key("asked"))
	sentinel := errors.New("no")
	other := func(r mount.Reader) (carindex.Index, error) {
		data, _ := makeCAR(randomBlocks(8, 20, 333)...)
		return readOrGenerate(bytes.NewReader(data))
	}
	for name, f := range map[string]func(mount.Reader) (carindex.Index, error){
		"error":     func(mount.Reader) (carindex.Index, error) { return nil, sentinel },
		"nil":       func(mount.Reader) (carindex.Index, error) { return nil, nil },
		"panic":     func(mount.Reader) (carindex.Index, error) { panic("boo") },
		"elsewhere": other,
	} {
		with = f
		_, err := d.RegisterShardSync(background, key("%s", name), carV1(), dagstore.RegisterOpts{})
		wantErr(t, "index: "+name, err, dagstore.ErrShardInitializationFailed)
		if name == "error" {
			wantErr(t, "index: "+name, err, sentinel)
		}
	}
	with = func(r mount.Reader) (carindex.Index, error) { return readOrGenerate(r) }
	if _, err := d.RecoverShardSync(background, key("panic"), dagstore.RecoverOpts{}); err != nil {
		t.Error(err)
	}
	works(t, d, key("panic"))
}

// TestForeignRepoRestart: a repository that knows nothing of lives serves a store
// through restarts.
func TestForeignRepoRestart(t *testing.T) {
	cfg := dagstore.Config{TransientsDir: t.TempDir(), Datastore: mapDatastore(), IndexRepo: newForeignRepo()}
	d := start(t, cfg)
	register(t, d, key("v1"), carV1())
	register(t, d, key("v2"), carV2())
	closeStore(t, d)
	d = start(t, cfg)
	works(t, d, key("v1"))
	works(t, d, key("v2"))
	if keys, err := d.ShardsContainingMultihash(background, testdata.RootCID.Hash()); err != nil || len(keys) != 2 {
		t.Errorf("lookup after a restart: %v, %v", keys, err)
	}
}

// objectRepo keeps the very objects that it is given, as clients' mocks do.
type objectRepo struct {
	*foreignRepo
	objects sync.Map
}

func (r *objectRepo) AddFullIndex(k shard.Key, idx carindex.Index) error {
	r.objects.Store(k, idx)
	return r.foreignRepo.AddFullIndex(k, idx)
}

func (r *objectRepo) GetFullIndex(k shard.Key) (carindex.Index, error) {
	idx, ok := r.objects.Load(k)
	if !ok {
		return nil, index.ErrNotFound
	}
	return idx.(carindex.Index), nil
}

// TestObjectRepo: an index that a daemon's repository hands out again and again is
// not closed with one use of it, nor is one given to NewShardAccessor.
func TestObjectRepo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repo := &objectRepo{foreignRepo: newForeignRepo()}
		d := start(t, dagstore.Config{IndexRepo: repo, IdleHandles: -1})
		k := key("foo")
		register(t, d, k, carV2())
		for range 3 {
			works(t, d, k)
			settle()
		}
		idx, err := repo.GetFullIndex(k)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			r, err := (&mount.BytesMount{Bytes: testdata.CarV2}).Fetch(background)
			if err != nil {
				t.Fatal(err)
			}
			acc, err := dagstore.NewShardAccessor(r, idx, nil)
			if err != nil {
				t.Fatal(err)
			}
			readAll(t, acc)
			closeAll(t, acc)
		}
		if n := len(multihashes(t, d, k)); n == 0 {
			t.Error("the index is empty")
		}
	})
}

// TestOwnInverted: a daemon's own top-level index, which cannot remove: lookups show
// what is available only, and its failure to add is the registration's.
func TestOwnInverted(t *testing.T) {
	own := &plainInverted{all: make(map[string][]shard.Key)}
	d := start(t, dagstore.Config{TopLevelIndex: own})
	if d.TopLevelIndex != index.Inverted(own) {
		t.Error("the store's TopLevelIndex is another")
	}
	k := key("foo")
	register(t, d, k, carV1())
	h := multihashes(t, d, k)[0]
	if keys, err := d.ShardsContainingMultihash(background, h); err != nil || len(keys) != 1 || keys[0] != k {
		t.Errorf("lookup: %v, %v", keys, err)
	}
	own.fail = errors.New("disk full")
	_, err := d.RegisterShardSync(background, key("bar"), carV1(), dagstore.RegisterOpts{})
	wantErr(t, "register", err, own.fail)
	wantState(t, d, key("bar"), dagstore.ShardStateNew) // which is not the shard's fate
	own.fail = nil
	if _, err := d.RecoverShardSync(background, key("bar"), dagstore.RecoverOpts{}); err != nil {
		t.Error(err)
	}
	if keys, err := d.ShardsContainingMultihash(background, h); err != nil || len(keys) != 2 {
		t.Errorf("lookup: %v, %v", keys, err)
	}
	destroy(t, d, k)
	destroy(t, d, key("bar"))
	_, err = d.ShardsContainingMultihash(background, h)
	wantErr(t, "lookup after both are gone", err, ds.ErrNotFound)
}

// plainInverted has the two methods that the interface asks for.
type plainInverted struct {
	mu   sync.Mutex
	all  map[string][]shard.Key
	fail error
}

func (v *plainInverted) AddMultihashesForShard(ctx context.Context, it index.MultihashIterator, k shard.Key) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fail != nil {
		return v.fail
	}
	return it.ForEach(func(h mh.Multihash) error {
		v.all[string(h)] = append(v.all[string(h)], k)
		return nil
	})
}

func (v *plainInverted) GetShardsForMultihash(_ context.Context, h mh.Multihash) ([]shard.Key, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if keys := v.all[string(h)]; len(keys) > 0 {
		return keys, nil
	}
	return nil, ds.ErrNotFound
}

// badMount panics where it is told to.
type badMount struct {
	mount.BytesMount
	In     string
	stream bool
	closed atomic.Bool
}

func (m *badMount) Fetch(ctx context.Context) (mount.Reader, error) {
	if m.In == "fetch" {
		panic("fetch")
	}
	if m.closed.Load() {
		return nil, mount.ErrClosed
	}
	return m.BytesMount.Fetch(ctx)
}

func (m *badMount) Stat(ctx context.Context) (mount.Stat, error) {
	if m.In == "stat" {
		panic("stat")
	}
	return m.BytesMount.Stat(ctx)
}

func (m *badMount) Info() mount.Info {
	if m.stream {
		return mount.Info{Kind: mount.KindRemote, AccessSequential: true}
	}
	return m.BytesMount.Info()
}

func (m *badMount) Close() error {
	m.closed.Store(true)
	return nil
}

// CloneMount: a mount that was made from a URL panics nowhere.
func (m *badMount) CloneMount() mount.Mount { return &badMount{} }

// TestPanickingMount: a panic of a mount's is that shard's error, and the mount that
// a client uses for several shards is not closed with one of them.
// Proves R20, I16.
func TestPanickingMount(t *testing.T) {
	r := registry(t, nil)
	if err := r.Register("bad", &badMount{}); err != nil {
		t.Fatal(err)
	}
	d := start(t, dagstore.Config{MountRegistry: r})
	for i, m := range []*badMount{{In: "fetch"}, {In: "fetch", stream: true}, {In: "stat", stream: true}} {
		m.Bytes = testdata.CarV1
		_, err := d.RegisterShardSync(background, key("%d", i), m, dagstore.RegisterOpts{})
		wantErr(t, "register", err, dagstore.ErrShardInitializationFailed)
		m.In = ""
		if _, err := d.RecoverShardSync(background, key("%d", i), dagstore.RecoverOpts{}); err != nil {
			t.Error(err)
		}
		works(t, d, key("%d", i))
	}
	shared := &badMount{BytesMount: mount.BytesMount{Bytes: testdata.CarV1}, stream: true}
	register(t, d, key("a"), shared)
	registerLazily(t, d, key("b"), shared)
	destroy(t, d, key("a"))
	works(t, d, key("b"))
}

// TestGCFailure: a copy that cannot be removed is told by its shard, stays in use,
// and the next GC removes it.
func TestGCFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		sim := fsio.NewSim(11)
		d := open(t, "/store", dagstore.WithFS(sim))
		for i := range 5 {
			register(t, d, key("%d", i), carV1())
		}
		failed := ""
		sim.OnOp(func(op fsio.Op) error {
			if op.Kind == fsio.OpRemove && strings.HasSuffix(op.Name, ".complete") && (failed == "" || failed == op.Name) {
				failed = op.Name
				return syscall.EIO
			}
			return nil
		})
		res, err := d.GC(background)
		if err != nil || res.ShardFailures() != 1 || len(res.Shards) != 5 {
			t.Fatalf("GC: %v, %v", res, err)
		}
		for k, err := range res.Shards {
			if err != nil {
				wantErr(t, "GC of "+k.String(), err, syscall.EIO)
			}
			works(t, d, k)
		}
		settle()
		sim.OnOp(nil)
		res, err = d.GC(background)
		if err != nil || res.ShardFailures() != 0 {
			t.Fatalf("the GC after that: %v, %v", res, err)
		}
		if left, _ := sim.ReadDir("/store/copies"); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
		for i := range 5 {
			works(t, d, key("%d", i))
		}
	})
}

// TestIdleHandles: shards that nobody uses are kept open up to the configured number
// and time.
// Proves I15 (descriptors).
func TestIdleHandles(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		d := start(t, dagstore.Config{TransientsDir: dir, IdleHandles: 4, IdleTimeout: 10 * time.Second})
		path := writeFile(t, filepath.Join(dir, "x.car"), testdata.CarV1)
		for i := range 20 {
			register(t, d, key("%d", i), &mount.FileMount{Path: path})
			works(t, d, key("%d", i))
			settle()
		}
		check := func(want int) {
			t.Helper()
			if n := d.Metrics().OpenHandles; n != want {
				t.Errorf("%d shards are open, want %d", n, want)
			}
			if n := len(openFiles(t, dir)); n != want && runtime.GOOS == "linux" {
				t.Errorf("%d files are open, want %d", n, want)
			}
		}
		check(4)
		pass(6 * time.Second)
		works(t, d, key("19"))
		settle()
		check(4)
		pass(6 * time.Second)
		check(1) // the one that was used again
		pass(15 * time.Second)
		check(0)
		if n := d.Metrics().LiveShards; n != 0 {
			t.Errorf("%d shards have volatile state though nobody uses any", n)
		}
		works(t, d, key("3"))
	})
}

// The journal fails.

// TestReadOnly: once the journal does not know what became of a batch, those
// concerned learn that, every further mutation is refused, and reading goes on:
// open accessors and acquires of shards that are indexed.
// Proves C3 (the store), F27 (failures).
func TestReadOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := newTestJournal()
		g := newGate()
		d := start(t, dagstore.Config{Journal: j, MountRegistry: registry(t, g), IdleHandles: -1})
		a, b, lazy := key("a"), key("b"), key("lazy")
		register(t, d, a, carV1())
		register(t, d, b, carV2())
		registerLazily(t, d, lazy, carV1())
		m := junk()
		if _, err := d.RegisterShardSync(background, key("junk"), m, dagstore.RegisterOpts{}); err == nil {
			t.Fatal("registered junk")
		}
		acc := acquire(t, d, a)
		pending := make(chan dagstore.ShardResult, 4)
		if err := d.RegisterShard(background, key("fetching"), &gateMount{carV1(), g}, pending, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		if err := d.AcquireShard(background, key("fetching"), pending, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()

		cause := errors.New("the cable fell out")
		j.failWith(func([]shard.Event) error { return fmt.Errorf("%w: %w", journal.ErrOutcomeUnknown, cause) })
		_, err := d.RegisterShardSync(background, key("new"), carV1(), dagstore.RegisterOpts{})
		wantErr(t, "register", err, journal.ErrOutcomeUnknown)
		wantErr(t, "register", err, cause)
		_, err = d.GetShardInfo(key("new"))
		wantErr(t, "info of what may not be there", err, dagstore.ErrShardUnknown)
		j.failWith(nil) // it would work again; the store must not try

		before := j.appends.Load()
		for what, f := range map[string]func() error{
			"register": func() error {
				_, err := d.RegisterShardSync(background, key("x"), carV1(), dagstore.RegisterOpts{})
				return err
			},
			"lazy register": func() error {
				_, err := d.RegisterShardSync(background, key("x"), carV1(), dagstore.RegisterOpts{LazyInitialization: true})
				return err
			},
			"destroy": func() error { _, err := d.DestroyShardSync(background, b, dagstore.DestroyOpts{}); return err },
			"recover": func() error {
				_, err := d.RecoverShardSync(background, key("junk"), dagstore.RecoverOpts{})
				return err
			},
			"first acquire": func() error { _, err := d.AcquireShardSync(background, lazy, dagstore.AcquireOpts{}); return err },
		} {
			wantErr(t, what, f(), dagstore.ErrReadOnly)
		}
		readAll(t, acc)
		closeAll(t, acc)
		for range 3 {
			works(t, d, a)
			works(t, d, b)
			settle()
		}
		if res, err := d.GC(background); err != nil || res.ShardFailures() != 0 {
			t.Errorf("GC: %v, %v", res, err)
		}
		works(t, d, b) // fetched again
		g.letIn(1)
		settle()
		if len(pending) != 2 {
			t.Fatalf("%d of 2 who waited for an initialisation were answered", len(pending))
		}
		for range 2 {
			res := <-pending
			wantErr(t, "who waited for an initialisation", res.Error, dagstore.ErrReadOnly)
		}
		if n := j.appends.Load() - before; n != 0 {
			t.Errorf("%d appends after the journal failed", n)
		}
		wantState(t, d, lazy, dagstore.ShardStateNew)
		wantState(t, d, key("junk"), dagstore.ShardStateErrored)
	})
}

// TestJournalRefuses: an append that wrote nothing is that request's error, and the
// store goes on.
// Proves C11 (the journal, at the store).
func TestJournalRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := newTestJournal()
		d := start(t, dagstore.Config{Journal: j})
		full := errors.New("no space left")
		k := key("foo")
		j.failWith(func([]shard.Event) error { return full })
		_, err := d.RegisterShardSync(background, k, carV1(), dagstore.RegisterOpts{})
		wantErr(t, "register", err, full)
		if errors.Is(err, dagstore.ErrReadOnly) {
			t.Errorf("read-only for want of space: %v", err)
		}
		j.failWith(nil)
		register(t, d, k, carV1())
		works(t, d, k)
		settle()

		// The index of an initialisation cannot be recorded.
		n := 0
		j.failWith(func(events []shard.Event) error {
			if events[0].Kind == shard.EventIndexed {
				if n++; n == 1 {
					return full
				}
			}
			return nil
		})
		_, err = d.RegisterShardSync(background, key("bar"), carV1(), dagstore.RegisterOpts{})
		wantErr(t, "register", err, full)
		j.failWith(nil)
		settle()
		s := state(t, d, key("bar"))
		if s == dagstore.ShardStateInitializing || s == dagstore.ShardStateAvailable {
			t.Errorf("the shard is %s", s)
		}
		if s == dagstore.ShardStateErrored {
			if _, err := d.RecoverShardSync(background, key("bar"), dagstore.RecoverOpts{}); err != nil {
				t.Error(err)
			}
		}
		works(t, d, key("bar"))
		settle()

		j.failWith(func([]shard.Event) error { return full })
		_, err = d.DestroyShardSync(background, k, dagstore.DestroyOpts{})
		wantErr(t, "destroy", err, full)
		j.failWith(nil)
		works(t, d, k)
		settle()
		destroy(t, d, k)
	})
}

// TestShardRepoFails: a repository that cannot save makes the store read-only.
func TestShardRepoFails(t *testing.T) {
	repo := &flakyRepo{ShardRepo: dagstore.NewBadgerShardRepo(mapDatastore())}
	cfg := dagstore.Config{TransientsDir: t.TempDir(), ShardRepo: repo}
	d := start(t, cfg)
	register(t, d, key("a"), carV1())
	if s, err := repo.GetShard(background, "a"); err != nil || s.State != dagstore.ShardStateAvailable || s.Key != "a" {
		t.Errorf("saved %+v, %v", s, err)
	}
	repo.fail.Store(true)
	_, err := d.RegisterShardSync(background, key("b"), carV1(), dagstore.RegisterOpts{})
	wantErr(t, "register", err, journal.ErrOutcomeUnknown)
	repo.fail.Store(false)
	_, err = d.DestroyShardSync(background, key("a"), dagstore.DestroyOpts{})
	wantErr(t, "destroy", err, dagstore.ErrReadOnly)
	works(t, d, key("a"))
	closeStore(t, d)
	d = start(t, cfg)
	works(t, d, key("a"))
	destroy(t, d, key("a"))
	if ok, err := repo.HasShard(background, "a"); ok || err != nil {
		t.Errorf("a destroyed shard is still in the repository: %t, %v", ok, err)
	}
}

type flakyRepo struct {
	dagstore.ShardRepo
	fail atomic.Bool
}

func (r *flakyRepo) SaveShard(ctx context.Context, s *dagstore.PersistedShard) error {
	if r.fail.Load() {
		return errors.New("no")
	}
	return r.ShardRepo.SaveShard(ctx, s)
}

// TestRecoverJoins: a recovery that is asked for while one runs waits for that one,
// and acquires wait for it too.
func TestRecoverJoins(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		g.setFail(changed("wire cut"))
		g.letIn(1)
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		k := key("foo")
		if _, err := d.RegisterShardSync(background, k, &gateMount{carV1(), g}, dagstore.RegisterOpts{}); err == nil {
			t.Fatal("registered through a cut wire")
		}
		g.setFail(nil)
		out := make(chan dagstore.ShardResult, 4)
		for range 3 {
			if err := d.RecoverShard(background, k, out, dagstore.RecoverOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.AcquireShard(background, k, out, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		wantState(t, d, k, dagstore.ShardStateRecovering)
		g.letIn(1)
		settle()
		if len(out) != 4 {
			t.Fatalf("%d of 4 were answered", len(out))
		}
		for range 4 {
			res := <-out
			if res.Error != nil {
				t.Error(res.Error)
			}
			if res.Accessor != nil {
				readAll(t, res.Accessor)
				closeAll(t, res.Accessor)
			}
		}
		if begun, _, _ := g.count(); begun != 2 {
			t.Errorf("%d fetches, want 2", begun)
		}
	})
}

// TestTempsSweptAtStart: what a crash left half done goes when the store starts. Files of
// lives that are over: TestLeftoversAtStart.
// Proves C5 (swept by the store).
func TestTempsSweptAtStart(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	k := key("foo")
	register(t, d, k, carV1())
	if _, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil {
		t.Fatal(err)
	}
	closeStore(t, d)
	before := names(t, dir)
	name := mount.CopyName(1, "foo")
	for _, n := range []string{"copies/" + name + ".partial-0123456789abcdef", "index/" + name + ".idx.tmp-00000000"} {
		writeFile(t, filepath.Join(dir, n), []byte("left"))
	}
	d = open(t, dir)
	works(t, d, k)
	closeStore(t, d)
	if after := names(t, dir); !slices.Equal(after, before) {
		t.Errorf("files %v, want %v", after, before)
	}
	if st, err := os.Stat(filepath.Join(dir, "copies")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory of copies: %v, %v", st.Mode(), err)
	}
}

// TestAbandonRaces: callers leave at every moment of an acquire that has to open the
// shard. However it turns out, no reference is left.
// Proves I5, F14 (races).
func TestAbandonRaces(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{IdleHandles: -1})
		k := key("foo")
		data, _ := makeCAR([]byte("tiny"))
		register(t, d, k, &mount.BytesMount{Bytes: data})
		for i := range 3000 {
			ctx, cancel := context.WithCancel(background)
			go func() {
				for range i % 300 {
					runtime.Gosched()
				}
				cancel()
			}()
			acc, err := d.AcquireShardSync(ctx, k, dagstore.AcquireOpts{})
			switch {
			case err == nil:
				closeAll(t, acc)
			case !errors.Is(err, context.Canceled):
				t.Fatal(err)
			}
		}
		settle()
		wantState(t, d, k, dagstore.ShardStateAvailable)
		if n := d.Metrics().OpenHandles; n != 0 {
			t.Errorf("%d handles are open", n)
		}
		destroy(t, d, k)
	})
}

// slowReads are readers that wait in ReadAt, and notice a Close meanwhile.
type slowReads struct {
	mount.BytesMount
	ctl *readControl
}

type readControl struct {
	slow             atomic.Bool
	entered, proceed chan struct{}
	inside, closed   atomic.Int32
	closedInside     atomic.Bool
}

func (m *slowReads) Fetch(ctx context.Context) (mount.Reader, error) {
	r, err := m.BytesMount.Fetch(ctx)
	return &slowReader{r, m.ctl}, err
}

type slowReader struct {
	mount.Reader
	ctl *readControl
}

func (r *slowReader) ReadAt(p []byte, off int64) (int, error) {
	r.ctl.inside.Add(1)
	defer r.ctl.inside.Add(-1)
	if r.ctl.slow.Load() {
		r.ctl.entered <- struct{}{}
		<-r.ctl.proceed
	}
	return r.Reader.ReadAt(p, off)
}

func (r *slowReader) Close() error {
	r.ctl.closed.Add(1)
	if r.ctl.inside.Load() > 0 {
		r.ctl.closedInside.Store(true)
	}
	return r.Reader.Close()
}

// TestF16ReadInProgress: a read that is in progress while its accessor, and then the
// store, is closed ends with its bytes; only then is the reader closed, once.
// Proves F16, I6.
func TestF16ReadInProgress(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ctl := &readControl{entered: make(chan struct{}), proceed: make(chan struct{})}
		r := registry(t, nil)
		if err := r.Register("slow", &slowReads{ctl: ctl}); err != nil {
			t.Fatal(err)
		}
		data, cids := makeCAR(randomBlocks(4, 10, 100)...)
		for _, closing := range []string{"accessor", "store"} {
			d := start(t, dagstore.Config{MountRegistry: r, IdleHandles: -1})
			k := key("foo")
			register(t, d, k, &slowReads{mount.BytesMount{Bytes: data}, ctl})
			acc := acquire(t, d, k)
			bs := blockstore(t, acc)
			settle() // the reader of the scan is closed
			before := ctl.closed.Load()
			ctl.slow.Store(true)
			got := make(chan error)
			go func() {
				b, err := bs.Get(background, cids[3])
				if err == nil {
					checkBlock(t, b)
				}
				got <- err
			}()
			<-ctl.entered
			if closing == "accessor" {
				closeAll(t, acc)
				pass(time.Minute)
			} else {
				closeStore(t, d)
			}
			ctl.slow.Store(false)
			_, err := bs.Get(background, cids[4])
			wantErr(t, "a read that begins after the "+closing+" is closed", err, dagstore.ErrClosed)
			if n := ctl.closed.Load() - before; n != 0 {
				t.Errorf("%s: the reader was closed %d times during a read", closing, n)
			}
			ctl.proceed <- struct{}{}
			if err := <-got; err != nil {
				t.Errorf("%s: the read in progress: %v", closing, err)
			}
			settle()
			if n := ctl.closed.Load() - before; n != 1 || ctl.closedInside.Load() {
				t.Errorf("%s: the reader was closed %d times, during a read %t", closing, n, ctl.closedInside.Load())
			}
			closeStore(t, d)
		}
	})
}

// TestLookupMends: an index that is damaged or gone when the top-level index is made
// from it at start is built again, without anybody acquiring the shard.
// Proves F19 (in memory), F20, C10 (index).
func TestLookupMends(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		d := open(t, dir)
		data, cids := makeCAR(randomBlocks(6, 40, 64)...)
		path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), data)
		k := key("foo")
		register(t, d, k, &mount.FileMount{Path: path})
		closeStore(t, d)
		for _, harm := range []func(){
			func() { damageIndex(t, dir) },
			func() {
				if err := os.Remove(filepath.Join(dir, "index", names(t, filepath.Join(dir, "index"))[0])); err != nil {
					t.Fatal(err)
				}
			},
		} {
			harm()
			d = open(t, dir)
			settle()
			for _, c := range cids {
				if keys, err := d.ShardsContainingMultihash(background, c.Hash()); err != nil || len(keys) != 1 {
					t.Fatalf("lookup: %v, %v", keys, err)
				}
			}
			wantState(t, d, k, dagstore.ShardStateAvailable)
			works(t, d, k)
			closeStore(t, d)
		}
	})
}

// TestVerifyOptions: hashing may be turned off for scanning and for reading, and on
// again by the caller who asks for it.
func TestVerifyOptions(t *testing.T) {
	data, cids := makeCAR(randomBlocks(7, 10, 100)...)
	bad := cids[4]
	data[bytes.Index(data, bad.Bytes())+bad.ByteLen()] ^= 1
	d := start(t, dagstore.Config{})
	_, err := d.RegisterShardSync(background, key("strict"), &mount.BytesMount{Bytes: data}, dagstore.RegisterOpts{})
	wantErr(t, "register a CAR with a corrupt block", err, dagstore.ErrShardInitializationFailed)

	d = start(t, dagstore.Config{SkipVerifyOnIndex: true})
	register(t, d, key("scan"), &mount.BytesMount{Bytes: data})
	acc := acquire(t, d, key("scan"))
	_, err = blockstore(t, acc).Get(background, bad)
	wantErr(t, "Get", err, dagstore.ErrBlockCorrupt)
	closeAll(t, acc)

	d = start(t, dagstore.Config{SkipVerifyOnIndex: true, SkipVerifyOnRead: true})
	register(t, d, key("none"), &mount.BytesMount{Bytes: data})
	acc = acquire(t, d, key("none"))
	bs := blockstore(t, acc)
	if _, err := bs.Get(background, bad); err != nil {
		t.Errorf("Get without hashing: %v", err)
	}
	bs.HashOnRead(true)
	_, err = bs.Get(background, bad)
	wantErr(t, "Get with HashOnRead", err, dagstore.ErrBlockCorrupt)
	closeAll(t, acc)

	d = start(t, dagstore.Config{MaxShardRecords: 9})
	_, err = d.RegisterShardSync(background, key("many"), &mount.BytesMount{Bytes: data[:len(data)/2]}, dagstore.RegisterOpts{})
	wantErr(t, "register a cut CAR", err, dagstore.ErrShardInitializationFailed)
	good, _ := makeCAR(randomBlocks(7, 10, 100)...)
	_, err = d.RegisterShardSync(background, key("limit"), &mount.BytesMount{Bytes: good}, dagstore.RegisterOpts{})
	wantErr(t, "register more records than allowed", err, dagstore.ErrShardInitializationFailed)
	fewer, _ := makeCAR(randomBlocks(7, 9, 100)...)
	register(t, d, key("fewer"), &mount.BytesMount{Bytes: fewer})
}

// TestSameKeyAtOnce: of many who register a key at once one succeeds, and of many
// who destroy it one; the others learn why.
func TestSameKeyAtOnce(t *testing.T) {
	d := start(t, dagstore.Config{})
	for range 20 {
		k := key("foo")
		var registered, destroyed atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				switch _, err := d.RegisterShardSync(background, k, carV1(), dagstore.RegisterOpts{LazyInitialization: true}); {
				case err == nil:
					registered.Add(1)
				case !errors.Is(err, dagstore.ErrShardExists):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for range 8 {
			wg.Go(func() {
				switch _, err := d.DestroyShardSync(background, k, dagstore.DestroyOpts{}); {
				case err == nil:
					destroyed.Add(1)
				case !errors.Is(err, dagstore.ErrShardUnknown):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if registered.Load() != 1 || destroyed.Load() != 1 {
			t.Fatalf("%d registrations and %d destructions succeeded, want one each", registered.Load(), destroyed.Load())
		}
	}
}

// TestFailedStart: a start that is given too little time gives the directory back.
func TestFailedStart(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	register(t, d, key("foo"), carV1())
	closeStore(t, d)
	ctx, cancel := context.WithCancel(background)
	cancel()
	_, err := dagstore.Open(ctx, dir, dagstore.WithLogger(quiet))
	wantErr(t, "open with an ended context", err, context.Canceled)
	if files := openFiles(t, dir); len(files) != 0 {
		t.Errorf("open after a failed start: %v", files)
	}
	works(t, open(t, dir), key("foo"))
}

// TestGCMeetsClose: a GC that waits when the store is closed says so.
// Proves F28 (GC).
func TestGCMeetsClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := newTestJournal()
		d := start(t, dagstore.Config{Journal: j})
		register(t, d, key("a"), carV1())
		register(t, d, key("b"), carV1())
		release := j.hold()
		if err := d.DestroyShard(background, key("a"), nil, dagstore.DestroyOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		done := make(chan error)
		go func() { _, err := d.GC(background); done <- err }()
		settle()
		go closeStore(t, d)
		settle()
		release()
		wantErr(t, "GC", <-done, dagstore.ErrClosed)
	})
}

// TestLateOpen: the shard is destroyed, or the store closed, while a source is being
// opened for somebody who waits. Whoever waits is answered, and the reader that comes
// late is closed, also if the mount ignores its context.
// Proves F14, F17 (opens), F28.
func TestLateOpen(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		for _, closing := range []bool{false, true} {
			bubble(t, func(t *testing.T) {
				dir := t.TempDir()
				g := newGate()
				g.deaf = deaf
				d := start(t, dagstore.Config{TransientsDir: t.TempDir(), MountRegistry: registry(t, g), IdleHandles: -1})
				path := writeFile(t, filepath.Join(dir, "x.car"), testdata.CarV1)
				k := key("foo")
				g.letIn(1)
				register(t, d, k, &gateMount{&mount.FileMount{Path: path}, g})
				settle()
				out := make(chan dagstore.ShardResult, 3)
				for range 3 {
					if err := d.AcquireShard(background, k, out, dagstore.AcquireOpts{}); err != nil {
						t.Fatal(err)
					}
				}
				settle()
				want := dagstore.ErrShardUnknown
				if closing {
					want = dagstore.ErrClosed
					go closeStore(t, d)
				} else {
					if err := d.DestroyShard(background, k, nil, dagstore.DestroyOpts{}); err != nil {
						t.Fatal(err)
					}
				}
				settle()
				if len(out) != 3 {
					t.Fatalf("%d of 3 who waited were answered", len(out))
				}
				for range 3 {
					res := <-out
					wantErr(t, "who waited", res.Error, want)
				}
				pass(5 * time.Second) // more than Close waits
				g.letIn(1)
				settle()
				if files := openFiles(t, dir); len(files) != 0 {
					t.Errorf("deaf %t, closing %t: open files: %v", deaf, closing, files)
				}
			})
		}
	}
}

// TestUnknownScheme: a shard whose mount type is not registered can be recovered
// once it is, and destroyed without it.
// Proves F18 (ways out).
func TestUnknownScheme(t *testing.T) {
	dir := t.TempDir()
	with := dagstore.WithMount("stream", &streamMount{})
	d := open(t, dir, with)
	for _, k := range []string{"a", "b", "c"} {
		register(t, d, key("%s", k), &streamMount{mount.BytesMount{Bytes: testdata.CarV1}})
	}
	closeStore(t, d)
	d = open(t, dir)
	_, err := d.RecoverShardSync(background, key("a"), dagstore.RecoverOpts{})
	wantErr(t, "recover without the type", err, mount.ErrUnrecognizedScheme)
	wantState(t, d, key("a"), dagstore.ShardStateErrored)
	destroy(t, d, key("b"))
	if _, err := d.GC(background); err != nil {
		t.Error(err)
	}
	closeStore(t, d)
	d = open(t, dir, with)
	wantState(t, d, key("a"), dagstore.ShardStateErrored)
	if _, err := d.RecoverShardSync(background, key("a"), dagstore.RecoverOpts{}); err != nil {
		t.Error(err)
	}
	works(t, d, key("a"))
	works(t, d, key("c"))
	_, err = d.GetShardInfo(key("b"))
	wantErr(t, "info of the destroyed shard", err, dagstore.ErrShardUnknown)
}

// TestTransientReplaced: the caller's copy is put away, or replaced by something
// else, after the shard was indexed: the origin serves, and the file stays.
// Proves F30 (given copies), F4.
func TestTransientReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		other, _ := makeCAR(randomBlocks(1, 5, 10)...)
		same := bytes.Clone(testdata.CarV1)
		for i := len(same) / 3; i < len(same); i++ {
			same[i] ^= 0x55
		}
		for name, content := range map[string][]byte{"gone": nil, "longer": append(bytes.Clone(testdata.CarV1), 1), "other": other, "garbled": same} {
			own := writeFile(t, filepath.Join(t.TempDir(), "own.car"), testdata.CarV1)
			d := start(t, dagstore.Config{IdleHandles: -1})
			k := key("%s", name)
			m := &mount.Counting{Mount: carV1()}
			if _, err := d.RegisterShardSync(background, k, m, dagstore.RegisterOpts{ExistingTransient: own}); err != nil {
				t.Fatal(err)
			}
			works(t, d, k)
			settle()
			if n := m.Count(); n != 0 {
				t.Errorf("%s: fetched %d times with a good copy given", name, n)
			}
			if content == nil {
				if err := os.Remove(own); err != nil {
					t.Fatal(err)
				}
			} else {
				writeFile(t, own, content)
			}
			works(t, d, k)
			settle()
			if n := m.Count(); n != 1 {
				t.Errorf("%s: fetched %d times, want once", name, n)
			}
			if b, err := os.ReadFile(own); content != nil && (err != nil || !bytes.Equal(b, content)) {
				t.Errorf("%s: the caller's file was changed: %v", name, err)
			}
			wantState(t, d, k, dagstore.ShardStateAvailable)
		}
	})
}

// TestCloseDuringCommit: what is being written when the store is closed is told as it
// turns out; what had not been given to the journal is refused.
// Proves F27, F28 (a commit in flight).
func TestCloseDuringCommit(t *testing.T) {
	for _, fails := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			j := newTestJournal()
			d := start(t, dagstore.Config{Journal: j})
			release := j.hold()
			first, second := make(chan dagstore.ShardResult, 1), make(chan dagstore.ShardResult, 1)
			lazy := dagstore.RegisterOpts{LazyInitialization: true}
			if err := d.RegisterShard(background, key("first"), carV1(), first, lazy); err != nil {
				t.Fatal(err)
			}
			settle()
			if err := d.RegisterShard(background, key("second"), carV1(), second, lazy); err != nil {
				t.Fatal(err)
			}
			if err := d.AcquireShard(background, key("first"), second, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
			settle()
			go closeStore(t, d)
			settle()
			lost := errors.New("lost")
			if fails {
				j.failWith(func([]shard.Event) error { return fmt.Errorf("%w: %w", journal.ErrOutcomeUnknown, lost) })
			}
			release()
			if res := <-first; fails {
				wantErr(t, "the registration being written", res.Error, lost)
			} else if res.Error != nil || res.Seq != 1 {
				t.Errorf("the registration being written: %+v", res)
			}
			for range 2 {
				if res := <-second; res.Error == nil || !fails && !errors.Is(res.Error, dagstore.ErrClosed) {
					t.Errorf("what was not being written: %+v", res)
				}
			}
			closeStore(t, d)
			if n := j.appends.Load(); n != 1 {
				t.Errorf("%d appends, want 1", n)
			}
			if head := j.Head().Seq; head != 1 && !fails {
				t.Errorf("head %d, want 1", head)
			}
		})
	}
}

// TestMountsSurviveRestart: shards of every kind of mount that needs no
// configuration are there after a restart, whatever the path is called.
// Proves F5.
func TestMountsSurviveRestart(t *testing.T) {
	dir, files := t.TempDir(), t.TempDir()
	d := open(t, dir)
	var keys []shard.Key
	for i, name := range []string{"plain.car", "a b.car", "a%20b.car", "a#b?c=d.car", "ключ.car", "x:y.car", "-.car", `back\slash.car`, "new\nline.car"} {
		path := writeFile(t, filepath.Join(files, name), testdata.CarV1)
		keys = append(keys, key("file-%d", i))
		register(t, d, keys[i], &mount.FileMount{Path: path})
	}
	data, _ := makeCAR(randomBlocks(1, 3, 300)...)
	for name, m := range map[string]mount.Mount{"bytes": &mount.BytesMount{Bytes: data}, "fs": carV2()} {
		keys = append(keys, key("%s", name))
		register(t, d, key("%s", name), m)
	}
	closeStore(t, d)
	d = open(t, dir)
	for _, k := range keys {
		works(t, d, k)
	}
}
