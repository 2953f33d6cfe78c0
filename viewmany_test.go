package dagstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/ipfs/boxo/blockservice"
	boxo "github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/linking"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	"github.com/ipld/go-ipld-prime/storage"
	mh "github.com/multiformats/go-multihash"
	"pgregory.net/rapid"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/mount"
)

// carOf makes a CAR of n raw blocks of sizes that size returns, and lists their CIDs
// and data in the order of the file.
func carOf(n int, size func(i int) int) (car []byte, cids []cid.Cid, data [][]byte) {
	rng := rand.New(rand.NewPCG(uint64(n), 7))
	var sections [][]byte
	for i := range n {
		p := make([]byte, size(i))
		for j := range p {
			p[j] = byte(rng.Uint32())
		}
		sections = append(sections, hostile.Raw(p))
		cids, data = append(cids, must(cid.Cast(hostile.RawCID(p)))), append(data, p)
	}
	return hostile.V1(sections...), cids, data
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// ofMemory opens a CAR in memory, whose reads are counted.
func ofMemory(t testing.TB, car []byte) (*dagstore.ShardBlockstore, *countingReader) {
	t.Helper()
	r := &countingReader{Reader: bytes.NewReader(car)}
	acc, err := dagstore.NewShardAccessor(r, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { acc.Close() })
	r.reset()
	return must(acc.Blockstore()).(*dagstore.ShardBlockstore), r
}

type countingReader struct {
	*bytes.Reader
	calls, bytes atomic.Int64
	fail         func(off int64, n int) error
}

func (r *countingReader) ReadAt(p []byte, off int64) (int, error) {
	r.calls.Add(1)
	r.bytes.Add(int64(len(p)))
	if r.fail != nil {
		if err := r.fail(off, len(p)); err != nil {
			return 0, err
		}
	}
	return r.Reader.ReadAt(p, off)
}

func (r *countingReader) Close() error { return nil }

func (r *countingReader) reset() {
	r.calls.Store(0)
	r.bytes.Store(0)
}

// TestManyAgainstMap asks for blocks in runs of the file's order and in none, of every
// size around those that are read at once, some twice, some absent, malformed or of
// identity, and compares ViewMany and GetMany with a map: one call for each, with the
// block or its own error. Through a file, a mapped file and a reader; verified or not.
// Proves I13, F24.
func TestManyAgainstMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 80).Draw(rt, "blocks")
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 100, 1000, 4090, 16 << 10, 40 << 10, 130 << 10}), n, n).Draw(rt, "sizes")
		sections, cids, data := make([][]byte, n), make([]cid.Cid, n), make(map[string][]byte)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		for i := range n {
			p := make([]byte, sizes[i])
			for j := range p {
				p[j] = byte(rng.Uint32())
			}
			if i > 0 && rng.IntN(10) == 0 {
				p = data[string(cids[rng.IntN(i)].Hash())] // once more
			}
			cids[i] = must(cid.Cast(hostile.RawCID(p)))
			data[string(cids[i].Hash())] = p
			sections[i] = hostile.Raw(p)
		}
		dir := must(os.MkdirTemp("", "many"))
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "a.car")
		if err := os.WriteFile(path, hostile.V2(hostile.V1(sections...)), 0o600); err != nil {
			rt.Fatal(err)
		}
		var ask []cid.Cid
		for range rapid.IntRange(0, 12).Draw(rt, "pieces") {
			from := rng.IntN(n)
			switch rng.IntN(5) {
			case 0:
				ask = append(ask, cids[from])
			case 1:
				ask = append(ask, must(cid.Cast(hostile.RawCID(fmt.Append(nil, "absent", rng.Uint64())))))
			case 2:
				ask = append(ask, rawCid(hostile.Mh(mh.IDENTITY, fmt.Append(nil, rng.Uint64()))))
			default:
				ask = append(ask, cids[from:from+1+rng.IntN(n-from)]...)
			}
		}
		for _, change := range []func(*dagstore.Config){
			func(c *dagstore.Config) {},
			func(c *dagstore.Config) { c.SkipMapSources = true },
			func(c *dagstore.Config) { c.SkipVerifyOnRead = true },
		} {
			d, err := dagstore.Open(context.Background(), filepath.Join(dir, "store"), dagstore.WithConfig(change))
			if err != nil {
				rt.Fatal(err)
			}
			defer d.Close()
			if _, err := d.GetShardInfo(key("a")); err != nil {
				if _, err := d.RegisterShardSync(context.Background(), key("a"), &mount.FileMount{Path: path}, dagstore.RegisterOpts{}); err != nil {
					rt.Fatal(err)
				}
			}
			acc, err := d.AcquireShardSync(context.Background(), key("a"), dagstore.AcquireOpts{})
			if err != nil {
				rt.Fatal(err)
			}
			checkMany(rt, must(acc.Blockstore()).(*dagstore.ShardBlockstore), ask, data)
			acc.Close()
			if err := d.Close(); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

// checkMany compares ViewMany and GetMany of ask with what is there.
func checkMany(t rapid.TB, bs *dagstore.ShardBlockstore, ask []cid.Cid, data map[string][]byte) {
	t.Helper()
	want := func(c cid.Cid) ([]byte, bool) {
		if c.Prefix().MhType == mh.IDENTITY {
			return must(mh.Decode(c.Hash())).Digest, true
		}
		p, ok := data[string(c.Hash())]
		return p, ok
	}
	calls := make([]int, len(ask))
	err := bs.ViewMany(context.Background(), ask, func(i int, p []byte, err error) error {
		calls[i]++
		q, ok := want(ask[i])
		switch {
		case ok && (err != nil || !bytes.Equal(p, q)):
			t.Fatalf("ViewMany: block %d: %d bytes, %v; want %d bytes", i, len(p), err, len(q))
		case !ok && (!ipld.IsNotFound(err) || p != nil):
			t.Fatalf("ViewMany: absent block %d: %d bytes, %v", i, len(p), err)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("ViewMany: %v", err)
	}
	for i, n := range calls {
		if n != 1 {
			t.Fatalf("ViewMany called for block %d of %d %d times", i, len(ask), n)
		}
	}
	got, err := bs.GetMany(context.Background(), ask)
	absent := 0
	for i, b := range got {
		q, ok := want(ask[i])
		switch {
		case !ok:
			absent++
			if b != nil {
				t.Fatalf("GetMany: block %d is absent, not %s", i, b)
			}
		case b == nil || b.Cid() != ask[i] || !bytes.Equal(b.RawData(), q):
			t.Fatalf("GetMany: block %d: %v", i, b)
		}
	}
	if (absent > 0) != (err != nil) || err != nil && !ipld.IsNotFound(err) && absent == 1 {
		t.Fatalf("GetMany: %d blocks are absent, the error is %v", absent, err)
	}
}

// TestManyReadsTogether: a thousand neighbours cost few reads of the source, in the
// file's order and in any other, and no block is read that is far from all wanted.
func TestManyReadsTogether(t *testing.T) {
	car, cids, data := carOf(2000, func(int) int { return 1000 })
	bs, r := ofMemory(t, car)
	ask := slices.Clone(cids[500:1500])
	for _, order := range []string{"of the file", "shuffled", "every other"} {
		switch order {
		case "shuffled":
			rand.Shuffle(len(ask), func(i, j int) { ask[i], ask[j] = ask[j], ask[i] })
		case "every other":
			ask = nil
			for i := 0; i < len(cids); i += 2 {
				ask = append(ask, cids[i])
			}
		}
		r.reset()
		seen := 0
		if err := bs.ViewMany(t.Context(), ask, func(_ int, p []byte, err error) error {
			seen += len(p)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if seen != 1000*len(ask) || r.calls.Load() > 24 || int(r.bytes.Load()) > 5*seen/2 {
			t.Errorf("order %s: %d bytes of blocks took %d reads of %d bytes", order, seen, r.calls.Load(), r.bytes.Load())
		}
	}
	r.reset()
	far := []cid.Cid{cids[1], cids[1000], cids[1999]}
	if err := bs.ViewMany(t.Context(), far, func(i int, p []byte, err error) error {
		if !bytes.Equal(p, data[[]int{1, 1000, 1999}[i]]) {
			t.Errorf("block %d: %v", i, err)
		}
		return nil
	}); err != nil || r.bytes.Load() != 3000 {
		t.Errorf("three blocks of 1,000 bytes that lie far apart took %d bytes; %v", r.bytes.Load(), err)
	}
}

// TestManyWithDamage: a block whose bytes are bad, or that cannot be read, or whose
// section header is bad, in the middle of a row or of a span costs itself and no other.
// Proves F21, I13.
func TestManyWithDamage(t *testing.T) {
	car, cids, data := carOf(300, func(int) int { return 1000 })
	const hurt = 150
	at := bytes.Index(car, data[hurt])
	errDisk := errors.New("the disk fails")
	cases := map[string]struct {
		damage func(car []byte, r *countingReader)
		served bool // the block too
		is     error
	}{
		"data": {damage: func(car []byte, _ *countingReader) { car[at+500] ^= 1 }, is: dagstore.ErrBlockCorrupt},
		// The index knows where the data is.
		"section header": {damage: func(car []byte, _ *countingReader) { car[at-10] ^= 1 }, served: true},
		"section length": {damage: func(car []byte, _ *countingReader) { car[at-38] ^= 1 }, served: true},
		"reading": {damage: func(_ []byte, r *countingReader) {
			r.fail = func(off int64, n int) error {
				if off < int64(at+1000) && off+int64(n) > int64(at) {
					return errDisk
				}
				return nil
			}
		}, is: errDisk},
	}
	for name, c := range cases {
		for _, shuffled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/shuffled=%t", name, shuffled), func(t *testing.T) {
				mine := slices.Clone(car)
				bs, r := ofMemory(t, mine)
				c.damage(mine, r)
				ask := slices.Clone(cids)
				if shuffled {
					rand.Shuffle(len(ask), func(i, j int) { ask[i], ask[j] = ask[j], ask[i] })
				}
				calls := 0
				err := bs.ViewMany(t.Context(), ask, func(i int, p []byte, err error) error {
					calls++
					which := slices.Index(cids, ask[i])
					var be *dagstore.BlockError
					switch {
					case which != hurt || c.served:
						if err != nil || !bytes.Equal(p, data[which]) {
							t.Errorf("block %d: %v", which, err)
						}
					case !errors.Is(err, c.is) || !errors.As(err, &be) || be.Offset != int64(at) || p != nil:
						t.Errorf("the bad block: %v", err)
					}
					return nil
				})
				if err != nil || calls != len(cids) {
					t.Errorf("%d calls; %v", calls, err)
				}
				got, err := bs.GetMany(t.Context(), ask)
				for i, b := range got {
					if (b == nil) != (ask[i] == cids[hurt] && !c.served) {
						t.Errorf("GetMany: block %d: %v", i, b)
					}
				}
				if c.served != (err == nil) || !c.served && !errors.Is(err, c.is) {
					t.Errorf("GetMany: %v", err)
				}
			})
		}
	}
}

// TestManyEnds: an error of the callback, the end of the context and closing the
// accessor end ViewMany between two reads, with that error. Proves F14, F16.
func TestManyEnds(t *testing.T) {
	car, cids, _ := carOf(2000, func(int) int { return 1000 })
	mine := errors.New("mine")
	for _, shuffled := range []bool{false, true} {
		ask := slices.Clone(cids)
		if shuffled {
			rand.Shuffle(len(ask), func(i, j int) { ask[i], ask[j] = ask[j], ask[i] })
		}
		bs, _ := ofMemory(t, car)
		calls := 0
		view := func(ctx context.Context, bs *dagstore.ShardBlockstore, fifth func() error) error {
			calls = 0
			return bs.ViewMany(ctx, ask, func(int, []byte, error) error {
				if calls++; calls == 5 {
					return fifth()
				}
				return nil
			})
		}
		if err := view(t.Context(), bs, func() error { return mine }); err != mine || calls != 5 {
			t.Errorf("error of the callback: %v after %d calls", err, calls)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if err := view(ctx, bs, func() error { cancel(); return nil }); err != context.Canceled || calls > 200 {
			t.Errorf("context: %v after %d calls", err, calls)
		}
		if _, err := bs.GetMany(ctx, ask); !errors.Is(err, context.Canceled) {
			t.Errorf("GetMany with a context that has ended: %v", err)
		}
		absent := make([]cid.Cid, 1000) // nothing is read for these
		for i := range absent {
			absent[i] = must(cid.Cast(hostile.RawCID(fmt.Append(nil, "absent", i))))
		}
		ctx, cancel = context.WithCancel(t.Context())
		calls = 0
		if err := bs.ViewMany(ctx, absent, func(int, []byte, error) error { calls++; cancel(); return nil }); err != context.Canceled || calls > 200 {
			t.Errorf("context, of blocks that are not there: %v after %d calls", err, calls)
		}
		acc := must(dagstore.NewShardAccessor(&countingReader{Reader: bytes.NewReader(car)}, nil, nil))
		closing := must(acc.Blockstore()).(*dagstore.ShardBlockstore)
		if err := view(t.Context(), closing, acc.Close); !errors.Is(err, dagstore.ErrClosed) || calls > 200 {
			t.Errorf("accessor closed: %v after %d calls", err, calls)
		}
		if err := view(t.Context(), closing, nil); !errors.Is(err, dagstore.ErrClosed) || calls != 0 {
			t.Errorf("after Close: %v after %d calls", err, calls)
		}
	}
}

// TestMappedSourceShrinks cuts a source file, or the store's copy of one, under an accessor
// that reads it through a mapping: what is left is served, the rest is an error, whether blocks are hashed or
// not, the process lives. Proves F16, C10.
func TestMappedSourceShrinks(t *testing.T) {
	car, cids, data := carOf(300, func(int) int { return 1000 })
	for i := range 4 {
		skipVerify, copied := i%2 == 1, i/2 == 1
		dir, src := t.TempDir(), t.TempDir()
		path := writeFile(t, filepath.Join(src, "a.car"), car)
		d := open(t, dir, dagstore.WithConfig(func(c *dagstore.Config) { c.SkipVerifyOnRead = skipVerify }),
			dagstore.WithMount("dir", &mount.FSMount{FS: os.DirFS(src)}))
		var m mount.Mount = &mount.FileMount{Path: path}
		if copied {
			m = &mount.FSMount{FS: os.DirFS(src), Path: "a.car"}
		}
		register(t, d, key("a"), m)
		if copied {
			path = must(filepath.Glob(filepath.Join(dir, "copies", "*.complete")))[0]
		}
		acc := acquire(t, d, key("a"))
		defer acc.Close()
		bs := must(acc.Blockstore()).(*dagstore.ShardBlockstore)
		for range 3 { // read by a system call, then mapped, then through the mapping
			for _, c := range cids {
				must(bs.Get(t.Context(), c))
			}
		}
		cut := bytes.Index(car, data[200]) + 500
		if err := os.Truncate(path, int64(cut)); err != nil {
			t.Fatal(err)
		}
		check := func(how string, i int, p []byte, err error) {
			t.Helper()
			var be *dagstore.BlockError
			switch {
			case i < 200 && (err != nil || !bytes.Equal(p, data[i])):
				t.Errorf("%s: block %d is before the cut: %v", how, i, err)
			case i >= 200 && (!errors.As(err, &be) || !errors.Is(err, io.ErrUnexpectedEOF)):
				t.Errorf("%s: block %d is behind the cut: %v", how, i, err)
			}
		}
		for i, c := range cids {
			b, err := bs.Get(t.Context(), c)
			if err != nil {
				check("Get", i, nil, err)
				continue
			}
			check("Get", i, b.RawData(), nil)
		}
		if err := bs.ViewMany(t.Context(), cids, func(i int, p []byte, err error) error { check("ViewMany", i, p, err); return nil }); err != nil {
			t.Error(err)
		}
	}
}

// TestLinkSystem loads a DAG through the accessor's LinkSystem and its storage: nodes,
// absent blocks, a corrupt one; storing is refused. Proves F21, F24.
func TestLinkSystem(t *testing.T) {
	leaf := []byte("a leaf")
	leafCid := must(cid.Cast(hostile.RawCID(leaf)))
	absent := must(cid.Cast(hostile.RawCID([]byte("absent"))))
	nb := basicnode.Prototype.Any.NewBuilder()
	ma := must(nb.BeginMap(2))
	for k, c := range map[string]cid.Cid{"leaf": leafCid, "absent": absent} {
		if err := must(ma.AssembleEntry(k)).AssignLink(cidlink.Link{Cid: c}); err != nil {
			t.Fatal(err)
		}
	}
	if err := ma.Finish(); err != nil {
		t.Fatal(err)
	}
	var root bytes.Buffer
	if err := dagcbor.Encode(nb.Build(), &root); err != nil {
		t.Fatal(err)
	}
	rootCid := must(cid.Prefix{Version: 1, Codec: cid.DagCBOR, MhType: mh.SHA2_256, MhLength: 32}.Sum(root.Bytes()))
	car := hostile.V1(hostile.Section(rootCid.Bytes(), root.Bytes()), hostile.Raw(leaf))
	bs, _ := ofMemory(t, car)

	lsys := bs.LinkSystem()
	load := func(c cid.Cid) (datamodel.Node, error) {
		return lsys.Load(linking.LinkContext{}, cidlink.Link{Cid: c}, basicnode.Prototype.Any)
	}
	n, err := load(rootCid)
	if err != nil {
		t.Fatal(err)
	}
	l := must(must(n.LookupByString("leaf")).AsLink())
	if p, err := lsys.LoadRaw(linking.LinkContext{Ctx: t.Context()}, l); err != nil || !bytes.Equal(p, leaf) {
		t.Errorf("leaf: %q, %v", p, err)
	}
	if _, err := load(absent); !ipld.IsNotFound(err) {
		t.Errorf("an absent block: %v", err)
	}
	if _, err := lsys.Store(linking.LinkContext{}, cidlink.LinkPrototype{Prefix: rootCid.Prefix()}, n); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("storing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lsys.LoadRaw(linking.LinkContext{Ctx: ctx}, l); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}

	st := bs.Storage()
	if has, err := st.Has(t.Context(), leafCid.KeyString()); !has || err != nil {
		t.Error("storage: the leaf is not there", err)
	}
	if has, err := st.Has(t.Context(), absent.KeyString()); has || err != nil {
		t.Error("storage: an absent block is there", err)
	}
	if p, err := storage.Get(t.Context(), st, leafCid.KeyString()); err != nil || !bytes.Equal(p, leaf) {
		t.Errorf("storage: %q, %v", p, err)
	}
	if _, err := storage.GetStream(t.Context(), st, absent.KeyString()); !ipld.IsNotFound(err) {
		t.Errorf("storage: an absent block: %v", err)
	}
	if _, err := st.Get(t.Context(), "not a CID"); err == nil {
		t.Error("storage: a key that is no CID is accepted")
	}

	car[bytes.Index(car, leaf)] ^= 1
	if _, err := lsys.LoadRaw(linking.LinkContext{Ctx: t.Context()}, l); !errors.Is(err, dagstore.ErrBlockCorrupt) {
		t.Errorf("a corrupt block: %v", err)
	}
	if _, err := st.Get(t.Context(), leafCid.KeyString()); !errors.Is(err, dagstore.ErrBlockCorrupt) {
		t.Errorf("storage: a corrupt block: %v", err)
	}
}

var (
	_ boxo.Blockstore = (*dagstore.ShardBlockstore)(nil)
	_ boxo.Viewer     = (*dagstore.ShardBlockstore)(nil)
)

// TestBlockstoreIsReadOnly: a shard's blockstore can stand where boxo wants one, and changes nothing.
// Proves F24.
func TestBlockstoreIsReadOnly(t *testing.T) {
	car, cids, data := carOf(3, func(int) int { return 10 })
	bs, _ := ofMemory(t, car)
	block := must(blocks.NewBlockWithCid(data[0], cids[0]))
	for name, err := range map[string]error{
		"Put":         bs.Put(t.Context(), block),
		"PutMany":     bs.PutMany(t.Context(), []blocks.Block{block}),
		"DeleteBlock": bs.DeleteBlock(t.Context(), cids[0]),
	} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A DAG service over it, as a gateway has it.
	service := blockservice.New(bs, nil)
	defer service.Close()
	if b, err := service.GetBlock(t.Context(), cids[1]); err != nil || !bytes.Equal(b.RawData(), data[1]) {
		t.Errorf("through a block service: %v", err)
	}
	if _, err := service.GetBlock(t.Context(), must(cid.Cast(hostile.RawCID([]byte("absent"))))); !ipld.IsNotFound(err) {
		t.Errorf("through a block service: an absent block: %v", err)
	}
}
