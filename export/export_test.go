package export_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	car "github.com/ipld/go-car/v2"
	dagpb "github.com/ipld/go-codec-dagpb"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/codec/dagjson"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/fluent/qp"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	selectorparse "github.com/ipld/go-ipld-prime/traversal/selector/parse"
	mh "github.com/multiformats/go-multihash"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/export"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// blocks is a source in memory.
type blocks map[cid.Cid][]byte

func (b blocks) View(ctx context.Context, c cid.Cid, fn func([]byte) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	data, ok := b[c]
	if !ok {
		return ipld.ErrNotFound{Cid: c}
	}
	lent := slices.Clone(data)
	err := fn(lent)
	for i := range lent { // it is valid during the call only
		lent[i] = 0xee
	}
	return err
}

func (b blocks) add(codec uint64, data []byte) cid.Cid {
	c := must(cid.Prefix{Version: 1, Codec: codec, MhType: mh.SHA2_256, MhLength: -1}.Sum(data))
	b[c] = data
	return c
}

// node makes a block of a codec with links and something else.
func (b blocks) node(codec uint64, salt uint64, links ...cid.Cid) cid.Cid {
	list := func(la datamodel.ListAssembler) {
		for _, c := range links {
			qp.ListEntry(la, qp.Link(cidlink.Link{Cid: c}))
		}
	}
	var buf bytes.Buffer
	switch codec {
	case cid.Raw:
		return b.add(codec, fmt.Append(nil, "leaf ", salt))
	case cid.DagProtobuf:
		n := must(qp.BuildMap(dagpb.Type.PBNode, -1, func(ma datamodel.MapAssembler) {
			qp.MapEntry(ma, "Links", qp.List(-1, func(la datamodel.ListAssembler) {
				for _, c := range links {
					qp.ListEntry(la, qp.Map(-1, func(ma datamodel.MapAssembler) {
						qp.MapEntry(ma, "Hash", qp.Link(cidlink.Link{Cid: c}))
						qp.MapEntry(ma, "Name", qp.String(""))
					}))
				}
			}))
			qp.MapEntry(ma, "Data", qp.Bytes(fmt.Append(nil, salt)))
		}))
		if err := dagpb.Encode(n, &buf); err != nil {
			panic(err)
		}
	default:
		n := must(qp.BuildMap(basicnode.Prototype.Any, -1, func(ma datamodel.MapAssembler) {
			qp.MapEntry(ma, "a", qp.Int(int64(salt)))
			qp.MapEntry(ma, "b", qp.List(-1, list))
		}))
		encode := dagcbor.Encode
		if codec == cid.DagJSON {
			encode = dagjson.Encode
		}
		if err := encode(n, &buf); err != nil {
			panic(err)
		}
	}
	return b.add(codec, buf.Bytes())
}

// dag is a DAG of which the test knows all links.
type dag struct {
	blocks
	root  cid.Cid
	links map[cid.Cid][]cid.Cid
}

// drawDAG draws a DAG of n nodes of all codecs, in which nodes are shared.
func drawDAG(seed uint64, n int) *dag {
	rng := rand.New(rand.NewPCG(seed, 1))
	d := &dag{blocks: blocks{}, links: map[cid.Cid][]cid.Cid{}}
	var all []cid.Cid
	for i := range n {
		codec := []uint64{cid.Raw, cid.DagProtobuf, cid.DagCBOR, cid.DagJSON}[rng.IntN(4)]
		var links []cid.Cid
		if codec != cid.Raw {
			for range rng.IntN(5) {
				if len(all) == 0 || rng.IntN(12) == 0 {
					id := must(mh.Sum(fmt.Append(nil, "inline ", i), mh.IDENTITY, -1))
					links = append(links, cid.NewCidV1(cid.Raw, id))
					continue
				}
				links = append(links, all[max(0, len(all)-1-rng.IntN(6))])
			}
		}
		c := d.node(codec, uint64(i), links...)
		d.links[c] = links
		all = append(all, c)
	}
	d.root = d.node(cid.DagCBOR, 1<<40, all[max(0, len(all)-4):]...)
	d.links[d.root] = all[max(0, len(all)-4):]
	return d
}

// order is the plain recursive walk.
func (d *dag) order(duplicates bool) (out []cid.Cid) {
	seen := map[cid.Cid]bool{}
	var walk func(c cid.Cid)
	walk = func(c cid.Cid) {
		if seen[c] && !duplicates {
			return
		}
		seen[c] = true
		if c.Prefix().MhType != mh.IDENTITY {
			out = append(out, c)
		}
		for _, l := range d.links[c] {
			walk(l)
		}
	}
	walk(d.root)
	return out
}

// read reads a CAR with go-car, which hashes the blocks.
func read(t rapid.TB, b []byte) (roots, cids []cid.Cid, data [][]byte) {
	t.Helper()
	r, err := car.NewBlockReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for {
		blk, err := r.Next()
		if err == io.EOF {
			return r.Roots, cids, data
		}
		if err != nil {
			t.Fatal(err)
		}
		cids, data = append(cids, blk.Cid()), append(data, blk.RawData())
	}
}

var everything = selectorparse.CommonSelector_ExploreAllRecursively

// TestAgainstPlainWalk exports random DAGs of all codecs, with shared and inline nodes, by
// links and by a selector, each block once or each time, and compares with a recursive
// walk: order, bytes, counts. Proves I13.
func TestAgainstPlainWalk(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := drawDAG(rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(1, 25).Draw(rt, "nodes"))
		for _, dup := range []bool{false, true} {
			want := d.order(dup)
			if len(want) > 20_000 {
				continue
			}
			for name, run := range map[string]func(w io.Writer) (export.Result, error){
				"links": func(w io.Writer) (export.Result, error) {
					return export.DAG(context.Background(), w, d, []cid.Cid{d.root}, export.Options{Duplicates: dup})
				},
				"selector": func(w io.Writer) (export.Result, error) {
					return export.Selector(context.Background(), w, d, d.root, everything, export.Options{Duplicates: dup})
				},
			} {
				var buf bytes.Buffer
				res, err := run(&buf)
				if err != nil {
					rt.Fatalf("%s: %v", name, err)
				}
				roots, cids, data := read(rt, buf.Bytes())
				if !slices.Equal(cids, want) || !slices.Equal(roots, []cid.Cid{d.root}) {
					rt.Fatalf("%s, duplicates %t:\n%v\nwant\n%v", name, dup, cids, want)
				}
				for i := range data {
					if !bytes.Equal(data[i], d.blocks[cids[i]]) {
						rt.Fatalf("%s: block %d", name, i)
					}
				}
				if res.Blocks != uint64(len(want)) || res.Bytes != uint64(buf.Len()) || res.Missing != 0 {
					rt.Fatalf("%s: %+v; %d blocks, %d bytes", name, res, len(want), buf.Len())
				}
			}
		}
	})
}

// TestBounds passes each bound by one: what is within it is exported whole, what is not
// ends with an error that names it and leaves whole sections. Proves S11.
func TestBounds(t *testing.T) {
	b := blocks{}
	leaves := make([]cid.Cid, 6)
	for i := range leaves {
		leaves[i] = b.node(cid.Raw, uint64(i))
	}
	mid := b.node(cid.DagProtobuf, 1, leaves[:3]...)
	root := b.node(cid.DagCBOR, 2, mid, leaves[3], leaves[4], leaves[5])
	var all bytes.Buffer
	whole, err := export.DAG(t.Context(), &all, b, []cid.Cid{root}, export.Options{})
	if err != nil || whole.Blocks != 8 || whole.Links != 1+4+3 {
		t.Fatalf("%+v, %v", whole, err)
	}
	largest := 0
	for _, data := range b {
		largest = max(largest, len(data))
	}
	cases := map[string]struct {
		least int // that passes
		set   func(o *export.Options, n int)
		only  string // walk
	}{
		"links deep":         {2, func(o *export.Options, n int) { o.MaxDepth = n }, "links"},
		"links":              {8, func(o *export.Options, n int) { o.MaxLinks = uint64(n) }, "links"},
		"links of one block": {4, func(o *export.Options, n int) { o.MaxBlockLinks = n }, "links"},
		"links waiting":      {6, func(o *export.Options, n int) { o.MaxPending = n }, "links"},
		"blocks":             {8, func(o *export.Options, n int) { o.MaxBlocks = uint64(n) }, ""},
		"bytes":              {int(whole.Bytes), func(o *export.Options, n int) { o.MaxBytes = uint64(n) }, ""},
		"bytes of one block": {largest, func(o *export.Options, n int) { o.MaxBlockSize = n }, ""},
	}
	for what, c := range cases {
		for _, walk := range []string{"links", "selector"} {
			if c.only != "" && c.only != walk {
				continue
			}
			t.Run(what+"/"+walk, func(t *testing.T) {
				run := func(n int) (export.Result, []byte, error) {
					var opts export.Options
					c.set(&opts, n)
					var buf bytes.Buffer
					var res export.Result
					var err error
					if walk == "links" {
						res, err = export.DAG(t.Context(), &buf, b, []cid.Cid{root}, opts)
					} else {
						res, err = export.Selector(t.Context(), &buf, b, root, everything, opts)
					}
					return res, buf.Bytes(), err
				}
				if res, _, err := run(c.least); err != nil || res.Blocks != 8 {
					t.Errorf("%d: %+v, %v", c.least, res, err)
				}
				res, out, err := run(c.least - 1)
				var le *export.LimitError
				if !errors.As(err, &le) || !errors.Is(err, export.ErrLimit) || le.What != what || le.Limit != uint64(c.least-1) || !le.Cid.Defined() {
					t.Fatalf("%d: %+v, %v", c.least-1, res, err)
				}
				if uint64(len(out)) != res.Bytes {
					t.Errorf("%d bytes were written, %d are told", len(out), res.Bytes)
				}
				if len(out) > 0 {
					if _, cids, _ := read(t, out); uint64(len(cids)) != res.Blocks {
						t.Errorf("%d blocks were written, %d are told", len(cids), res.Blocks)
					}
				}
			})
		}
	}
	// A selector's walk is bounded in nodes, links and steps; how many there are is
	// go-ipld-prime's to say.
	for what, opts := range map[string]export.Options{"nodes": {MaxLinks: 9}, "links deep": {MaxDepth: 4}} {
		_, err := export.Selector(t.Context(), io.Discard, b, root, everything, opts)
		var le *export.LimitError
		if !errors.As(err, &le) || le.What != what {
			t.Errorf("selector, %s: %v", what, err)
		}
	}
	// b, 0, Links, 0, Hash
	if res, err := export.Selector(t.Context(), io.Discard, b, root, everything, export.Options{MaxDepth: 5}); err != nil || res.Blocks != 8 {
		t.Errorf("selector, a path of five steps: %+v, %v", res, err)
	}
	for name, opts := range map[string]export.Options{"depth": {MaxDepth: -1}, "pending": {MaxPending: -1}} {
		if _, err := export.DAG(t.Context(), io.Discard, b, []cid.Cid{root}, opts); err == nil {
			t.Errorf("a negative limit of %s is accepted", name)
		}
	}
}

// TestHostileShapes: a long chain takes no stack, a DAG in which the number of ways
// doubles with each level ends, decoders are not drowned, identity CIDs within one another
// end. Proves S11, S1, S2.
func TestHostileShapes(t *testing.T) {
	b := blocks{}
	chain := b.node(cid.Raw, 0)
	for i := range 200_000 {
		chain = b.node(cid.DagCBOR, uint64(i), chain)
	}
	if res, err := export.DAG(t.Context(), io.Discard, b, []cid.Cid{chain}, export.Options{MaxDepth: 1 << 20}); err != nil || res.Blocks != 200_001 {
		t.Errorf("chain: %+v, %v", res, err)
	}
	for name, err := range map[string]error{
		"links":    second(export.DAG(t.Context(), io.Discard, b, []cid.Cid{chain}, export.Options{})),
		"selector": second(export.Selector(t.Context(), io.Discard, b, chain, everything, export.Options{})),
	} {
		if !errors.Is(err, export.ErrLimit) {
			t.Errorf("chain, by default, %s: %v", name, err)
		}
	}

	double := b.node(cid.Raw, 1)
	for i := range 60 {
		double = b.node(cid.DagProtobuf, uint64(i), double, double)
	}
	if res, err := export.DAG(t.Context(), io.Discard, b, []cid.Cid{double}, export.Options{}); err != nil || res.Blocks != 61 {
		t.Errorf("doubling, each once: %+v, %v", res, err)
	}
	for name, err := range map[string]error{
		"each time": second(export.DAG(t.Context(), io.Discard, b, []cid.Cid{double}, export.Options{Duplicates: true, MaxBlocks: 10_000})),
		"selector":  second(export.Selector(t.Context(), io.Discard, b, double, everything, export.Options{MaxLinks: 10_000})),
	} {
		if !errors.Is(err, export.ErrLimit) {
			t.Errorf("doubling, %s: %v", name, err)
		}
	}

	for name, root := range map[string]cid.Cid{
		"nested CBOR":       b.add(cid.DagCBOR, bytes.Repeat([]byte{0x81}, 8<<20)),
		"nested JSON":       b.add(cid.DagJSON, bytes.Repeat([]byte{'['}, 8<<20)),
		"CBOR that claims":  b.add(cid.DagCBOR, []byte{0x9b, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}),
		"CBOR cut off":      b.add(cid.DagCBOR, []byte{0x82, 1}),
		"not dag-pb":        b.add(cid.DagProtobuf, []byte{0xff, 0xff, 0xff}),
		"a link to nothing": b.add(cid.DagCBOR, []byte{0xd8, 42, 0x41, 0}),
		"trailing bytes":    b.add(cid.DagCBOR, []byte{1, 2}),
	} {
		for walk, err := range map[string]error{
			"links":    second(export.DAG(t.Context(), io.Discard, b, []cid.Cid{root}, export.Options{})),
			"selector": second(export.Selector(t.Context(), io.Discard, b, root, everything, export.Options{})),
		} {
			var be *export.BlockError
			if !errors.Is(err, export.ErrMalformed) || !errors.As(err, &be) || be.Cid != root {
				t.Errorf("%s, %s: %v", name, walk, err)
			}
		}
	}

	inline := b.node(cid.Raw, 77)
	for range 12 {
		var buf bytes.Buffer
		n := must(qp.BuildList(basicnode.Prototype.Any, -1, func(la datamodel.ListAssembler) {
			qp.ListEntry(la, qp.Link(cidlink.Link{Cid: inline}))
		}))
		if err := dagcbor.Encode(n, &buf); err != nil {
			t.Fatal(err)
		}
		inline = cid.NewCidV1(cid.DagCBOR, must(mh.Sum(buf.Bytes(), mh.IDENTITY, -1)))
	}
	if res, err := export.DAG(t.Context(), io.Discard, b, []cid.Cid{inline}, export.Options{}); err != nil || res.Blocks != 1 || res.Links != 13 {
		t.Errorf("inline: %+v, %v", res, err)
	}

	weak := cid.NewCidV1(cid.Raw, must(mh.Encode([]byte{1, 2, 3, 4}, mh.MURMUR3X64_64)))
	b[weak] = []byte("anything")
	if err := second(export.DAG(t.Context(), io.Discard, b, []cid.Cid{weak}, export.Options{})); !errors.Is(err, export.ErrHashMismatch) {
		t.Errorf("a hash that proves nothing: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestUnknownCodec: an error that says what to do, or a leaf.
func TestUnknownCodec(t *testing.T) {
	b := blocks{}
	odd := b.add(cid.GitRaw, []byte("blob 3\x00abc"))
	root := b.node(cid.DagCBOR, 1, odd)
	for walk, run := range map[string]func(o export.Options) (export.Result, error){
		"links": func(o export.Options) (export.Result, error) {
			return export.DAG(t.Context(), io.Discard, b, []cid.Cid{root}, o)
		},
		"selector": func(o export.Options) (export.Result, error) {
			return export.Selector(t.Context(), io.Discard, b, root, everything, o)
		},
	} {
		var be *export.BlockError
		if _, err := run(export.Options{}); !errors.Is(err, export.ErrUnknownCodec) || !errors.As(err, &be) || be.Cid != odd {
			t.Errorf("%s: %v", walk, err)
		}
		if res, err := run(export.Options{UnknownAsLeaf: true}); err != nil || res.Blocks != 2 {
			t.Errorf("%s, as a leaf: %+v, %v", walk, res, err)
		}
	}
}

// failing is a source some of whose blocks are bad, missing or cannot be read.
type failing struct {
	blocks
	bad map[cid.Cid]error // nil: other bytes
}

func (f failing) View(ctx context.Context, c cid.Cid, fn func([]byte) error) error {
	err, ok := f.bad[c]
	switch {
	case !ok:
		return f.blocks.View(ctx, c, fn)
	case err == nil:
		return fn([]byte("other bytes"))
	}
	return err
}

// TestBlocksThatFail: a corrupt block is never written, neither it nor one that is missing
// or cannot be read ends in a CAR that looks whole; the next source serves it if there is
// one; what is missing can be left out. Proves F21, I13.
func TestBlocksThatFail(t *testing.T) {
	d := drawDAG(5, 25)
	order := d.order(false)
	victim := order[len(order)/2]
	errDisk := errors.New("the disk fails")
	var good bytes.Buffer
	if _, err := export.DAG(t.Context(), &good, d, []cid.Cid{d.root}, export.Options{}); err != nil {
		t.Fatal(err)
	}
	walks := map[string]func(w io.Writer, src export.Source, o export.Options) (export.Result, error){
		"links": func(w io.Writer, src export.Source, o export.Options) (export.Result, error) {
			return export.DAG(t.Context(), w, src, []cid.Cid{d.root}, o)
		},
		"selector": func(w io.Writer, src export.Source, o export.Options) (export.Result, error) {
			return export.Selector(t.Context(), w, src, d.root, everything, o)
		},
	}
	for name, c := range map[string]struct{ fault, is error }{
		"corrupt": {nil, export.ErrHashMismatch},
		"missing": {ipld.ErrNotFound{Cid: victim}, ipld.ErrNotFound{Cid: victim}},
		"reading": {errDisk, errDisk},
	} {
		src := failing{d.blocks, map[cid.Cid]error{victim: c.fault}}
		for walk, run := range walks {
			t.Run(name+"/"+walk, func(t *testing.T) {
				var buf bytes.Buffer
				res, err := run(&buf, src, export.Options{})
				var be *export.BlockError
				if !errors.Is(err, c.is) || !errors.As(err, &be) || be.Cid != victim || name == "missing" != ipld.IsNotFound(err) {
					t.Errorf("%v", err)
				}
				_, cids, _ := read(t, buf.Bytes())
				if slices.Contains(cids, victim) || len(cids) != len(order)/2 || res.Blocks != uint64(len(cids)) {
					t.Errorf("%d blocks were written, of which the one that fails is number %d", len(cids), len(order)/2)
				}
				for _, second := range []export.Source{d, export.Sources(blocks{}, d)} {
					buf.Reset()
					if _, err := run(&buf, export.Sources(src, second), export.Options{}); err != nil || !bytes.Equal(buf.Bytes(), good.Bytes()) {
						t.Errorf("with a second source: %d bytes, %v", buf.Len(), err)
					}
				}
				if _, err := run(io.Discard, export.Sources(src, blocks{}), export.Options{}); err == nil || ipld.IsNotFound(err) != (name == "missing" && ipld.IsNotFound(err)) {
					t.Errorf("with a second source that has nothing: %v", err)
				}
				buf.Reset()
				res, err = run(&buf, src, export.Options{SkipMissing: true})
				if name == "missing" {
					if _, cids, _ := read(t, buf.Bytes()); err != nil || res.Missing == 0 || slices.Contains(cids, victim) || len(cids) < len(order)/2 {
						t.Errorf("left out: %+v, %v", res, err)
					}
				} else if !errors.Is(err, c.is) {
					t.Errorf("SkipMissing leaves out more than what is missing: %v", err)
				}
			})
		}
	}
	for walk, run := range walks {
		if _, err := run(io.Discard, blocks{}, export.Options{SkipMissing: true}); !ipld.IsNotFound(err) {
			t.Errorf("%s: a root that is missing: %v", walk, err)
		}
	}
}

// odd is a source that breaks its contract.
type odd struct {
	blocks
	times int
}

func (o odd) View(ctx context.Context, c cid.Cid, fn func([]byte) error) error {
	for range o.times {
		if err := o.blocks.View(ctx, c, fn); err != nil {
			return err
		}
	}
	return nil
}

// TestOddSources: a source that returns a block twice, or neither a block nor an error,
// gets an error, and no block is written twice.
func TestOddSources(t *testing.T) {
	d := drawDAG(5, 25)
	for _, times := range []int{0, 2} {
		for name, src := range map[string]export.Source{"one": odd{d.blocks, times}, "of several": export.Sources(odd{d.blocks, times})} {
			var buf bytes.Buffer
			if _, err := export.DAG(t.Context(), &buf, src, []cid.Cid{d.root}, export.Options{}); err == nil {
				t.Errorf("%s, %d times: no error", name, times)
			}
			if times == 0 {
				if buf.Len() > 0 {
					t.Errorf("%s: %d bytes without the root's block", name, buf.Len())
				}
				continue
			}
			if _, cids, _ := read(t, buf.Bytes()); len(cids) > 1 {
				t.Errorf("%s, %d times: %d blocks were written", name, times, len(cids))
			}
		}
	}
	if _, err := export.Selector(t.Context(), io.Discard, odd{d.blocks, 0}, d.root, everything, export.Options{}); err == nil {
		t.Error("a selector, no block: no error")
	}
}

// limited takes so many bytes and then fails.
type limited struct {
	left int
	err  error
}

func (w *limited) Write(p []byte) (int, error) {
	if len(p) > w.left {
		n := w.left
		w.left = 0
		return n, w.err
	}
	w.left -= len(p)
	return len(p), nil
}

// TestReceiverAndContext: an error of the receiver and the end of the context end an
// export with that error.
func TestReceiverAndContext(t *testing.T) {
	b := blocks{}
	var leaves []cid.Cid
	for i := range 200 {
		leaves = append(leaves, b.add(cid.Raw, bytes.Repeat([]byte{byte(i)}, 2000)))
	}
	root := b.node(cid.DagProtobuf, 0, leaves...)
	errGone := errors.New("gone")
	for name, run := range map[string]func(ctx context.Context, w io.Writer, src export.Source) (export.Result, error){
		"links": func(ctx context.Context, w io.Writer, src export.Source) (export.Result, error) {
			return export.DAG(ctx, w, src, []cid.Cid{root}, export.Options{})
		},
		"selector": func(ctx context.Context, w io.Writer, src export.Source) (export.Result, error) {
			return export.Selector(ctx, w, src, root, everything, export.Options{})
		},
	} {
		for _, n := range []int{0, 10, 100_000, 390_000} {
			if _, err := run(t.Context(), &limited{n, errGone}, b); !errors.Is(err, errGone) {
				t.Errorf("%s: after %d bytes: %v", name, n, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		views := 0
		_, err := run(ctx, io.Discard, counted{b, func() {
			if views++; views == 10 {
				cancel()
			}
		}})
		if !errors.Is(err, context.Canceled) || views > 12 {
			t.Errorf("%s: %v after %d blocks", name, err, views)
		}
	}
	if _, err := export.DAG(t.Context(), io.Discard, b, nil, export.Options{}); err == nil {
		t.Error("no root is accepted")
	}
	if _, err := export.DAG(t.Context(), io.Discard, b, []cid.Cid{cid.Undef}, export.Options{}); err == nil {
		t.Error("an undefined root is accepted")
	}
	for name, sel := range map[string]datamodel.Node{"nil": nil, "a string": basicnode.NewString("x")} {
		if _, err := export.Selector(t.Context(), io.Discard, b, root, sel, export.Options{}); !errors.Is(err, export.ErrSelector) {
			t.Errorf("selector %s: %v", name, err)
		}
	}
}

type counted struct {
	blocks
	each func()
}

func (c counted) View(ctx context.Context, k cid.Cid, fn func([]byte) error) error {
	c.each()
	return c.blocks.View(ctx, k, fn)
}

// TestPartOfADAG: a selector that matches less exports less.
func TestPartOfADAG(t *testing.T) {
	b := blocks{}
	left, right := b.node(cid.Raw, 1), b.node(cid.Raw, 2)
	root := b.node(cid.DagCBOR, 3, left, right)
	sel := must(selectorparse.ParseJSONSelector(`{"f":{"f>":{"b":{"i":{"i":1,">":{".":{}}}}}}}`))
	var buf bytes.Buffer
	if _, err := export.Selector(t.Context(), &buf, b, root, sel, export.Options{}); err != nil {
		t.Fatal(err)
	}
	if _, cids, _ := read(t, buf.Bytes()); !slices.Equal(cids, []cid.Cid{root, right}) {
		t.Errorf("%v, want the root %s and %s", cids, root, right)
	}
	// Several roots, one of them below another.
	buf.Reset()
	if _, err := export.DAG(t.Context(), &buf, b, []cid.Cid{right, root}, export.Options{}); err != nil {
		t.Fatal(err)
	}
	if roots, cids, _ := read(t, buf.Bytes()); !slices.Equal(cids, []cid.Cid{right, root, left}) || !slices.Equal(roots, []cid.Cid{right, root}) {
		t.Errorf("two roots: %v, %v", roots, cids)
	}
}

// FuzzBlocks exports a DAG whose blocks are whatever comes: every outcome is an error or a
// CAR that go-car reads, within the bounds. Proves S11, S1.
func FuzzBlocks(f *testing.F) {
	d := drawDAG(3, 20)
	for c, data := range d.blocks {
		f.Add(c.Prefix().Codec, data)
	}
	f.Add(uint64(cid.DagCBOR), []byte{0x81, 0xd8, 42, 0x45, 0, 1, 0x55, 0, 0})
	f.Add(uint64(cid.DagJSON), []byte(`{"/":"bafkqaaa"}`))
	f.Fuzz(func(t *testing.T, codec uint64, data []byte) {
		b := blocks{}
		for k, v := range d.blocks {
			b[k] = v
		}
		root := b.add(codec, data)
		opts := export.Options{MaxBlocks: 50, MaxLinks: 1000, MaxDepth: 20, SkipMissing: true}
		for _, run := range []func(w io.Writer) (export.Result, error){
			func(w io.Writer) (export.Result, error) {
				return export.DAG(context.Background(), w, b, []cid.Cid{root}, opts)
			},
			func(w io.Writer) (export.Result, error) {
				return export.Selector(context.Background(), w, b, root, everything, opts)
			},
		} {
			var buf bytes.Buffer
			res, err := run(&buf)
			if res.Blocks > opts.MaxBlocks || uint64(buf.Len()) != res.Bytes {
				t.Fatalf("%+v, %d bytes, %v", res, buf.Len(), err)
			}
			if buf.Len() > 0 {
				if _, cids, _ := read(t, buf.Bytes()); uint64(len(cids)) != res.Blocks {
					t.Fatalf("%d blocks, %+v", len(cids), res)
				}
			}
		}
	})
}

// FuzzSelector compiles and walks whatever selector comes. Proves S11.
func FuzzSelector(f *testing.F) {
	d := drawDAG(3, 20)
	f.Add([]byte(`{"R":{"l":{"none":{}},":>":{"a":{">":{"@":{}}}}}}`))
	f.Add([]byte(`{"f":{"f>":{"b":{"i":{"i":1,">":{".":{}}}}}}}`))
	f.Add([]byte(`{"|":[{".":{}},{"a":{">":{".":{}}}}]}`))
	f.Fuzz(func(t *testing.T, js []byte) {
		sel, err := selectorparse.ParseJSONSelector(string(js))
		if err != nil {
			return
		}
		opts := export.Options{MaxBlocks: 50, MaxLinks: 1000, MaxDepth: 20}
		if res, err := export.Selector(context.Background(), io.Discard, d, d.root, sel, opts); res.Blocks > opts.MaxBlocks {
			t.Fatal(res, err)
		}
	})
}
