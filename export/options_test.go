package export_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	dagpb "github.com/ipld/go-codec-dagpb"
	"github.com/ipld/go-ipld-prime/codec"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/linking"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	selectorparse "github.com/ipld/go-ipld-prime/traversal/selector/parse"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/export"
	"github.com/dagstore/dagstore/shard"
)

// walks are both ways to walk.
var walks = map[string]func(w io.Writer, src export.Source, root cid.Cid, o export.Options) (export.Result, error){
	"DAG": func(w io.Writer, src export.Source, root cid.Cid, o export.Options) (export.Result, error) {
		return export.DAG(context.Background(), w, src, []cid.Cid{root}, o)
	},
	"Selector": func(w io.Writer, src export.Source, root cid.Cid, o export.Options) (export.Result, error) {
		return export.Selector(context.Background(), w, src, root, everything, o)
	},
}

// away is a source that cannot serve now.
type away struct{ blocks }

func (a away) View(ctx context.Context, c cid.Cid, fn func([]byte) error) error {
	if _, ok := a.blocks[c]; !ok {
		return fmt.Errorf("read: %w", &dagstore.UnavailableError{Multihash: c.Hash(), Shards: []shard.Key{shard.KeyFromString("s")}, Reason: errors.New("not mounted")})
	}
	return a.blocks.View(ctx, c, fn)
}

// TestNothingBeforeTheRoot: until the first root's block is had, is what its CID says, and
// is decoded, not a byte is written, and the error says what is the matter: not found, away
// (and never not found), not what it should be. Proves A2 (export).
func TestNothingBeforeTheRoot(t *testing.T) {
	b := blocks{}
	leaf := b.node(cid.Raw, 1)
	root := b.node(cid.DagCBOR, 1, leaf)
	missing := blocks{}.node(cid.DagCBOR, 7)
	broken := b.add(cid.DagCBOR, []byte("\xff not CBOR"))
	git := b.add(cid.GitRaw, []byte("blob 3\x00abc"))
	wrong := blocks{}.add(cid.DagCBOR, []byte("\xa0"))
	b[wrong] = []byte("\xa1")
	inline := cid.NewCidV1(cid.DagCBOR, must(mh.Sum([]byte("\x81\xd8\x2a\x58"+string([]byte{byte(missing.ByteLen() + 1), 0})+missing.KeyString()), mh.IDENTITY, -1)))
	small := export.Options{MaxBlockSize: 3}
	tiny := export.Options{MaxBytes: 70}
	for name, c := range map[string]struct {
		src  export.Source
		root cid.Cid
		opts export.Options
		ok   func(error) bool
	}{
		"absent":         {b, missing, export.Options{}, ipld.IsNotFound},
		"absent, skip":   {b, missing, export.Options{SkipMissing: true}, ipld.IsNotFound},
		"away":           {away{b}, missing, export.Options{}, func(err error) bool { return !ipld.IsNotFound(err) && errors.Is(err, dagstore.ErrUnavailable) }},
		"away, skip":     {away{b}, missing, export.Options{SkipMissing: true}, func(err error) bool { return !ipld.IsNotFound(err) && errors.Is(err, dagstore.ErrUnavailable) }},
		"away in one":    {export.Sources(b, away{b}), missing, export.Options{}, func(err error) bool { return !ipld.IsNotFound(err) && errors.Is(err, dagstore.ErrUnavailable) }},
		"malformed":      {b, broken, export.Options{}, func(err error) bool { return errors.Is(err, export.ErrMalformed) }},
		"unknown codec":  {b, git, export.Options{}, func(err error) bool { return errors.Is(err, export.ErrUnknownCodec) }},
		"other bytes":    {b, wrong, export.Options{}, func(err error) bool { return errors.Is(err, export.ErrHashMismatch) }},
		"too large":      {b, root, small, func(err error) bool { return errors.Is(err, export.ErrLimit) }},
		"over the bytes": {b, root, tiny, func(err error) bool { return errors.Is(err, export.ErrLimit) }},
		"below identity": {b, inline, export.Options{}, ipld.IsNotFound},
	} {
		for walk, run := range walks {
			var buf bytes.Buffer
			res, err := run(&buf, c.src, c.root, c.opts)
			if buf.Len() != 0 || res.Bytes != 0 || res.Blocks != 0 || err == nil || !c.ok(err) {
				t.Errorf("%s, %s: %d bytes, %+v, %v", walk, name, buf.Len(), res, err)
			}
			if u := (*dagstore.UnavailableError)(nil); strings.HasPrefix(name, "away") && !errors.As(err, &u) {
				t.Errorf("%s, %s: %v says not what is away", walk, name, err)
			}
		}
	}
	var buf bytes.Buffer
	if _, err := export.DAG(t.Context(), &buf, b, []cid.Cid{missing, root}, export.Options{}); err == nil || buf.Len() != 0 {
		t.Errorf("the first of two roots is absent: %d bytes, %v", buf.Len(), err)
	}
	// What is all in its CID is a CAR without blocks.
	alone := cid.NewCidV1(cid.Raw, must(mh.Sum([]byte("x"), mh.IDENTITY, -1)))
	for walk, run := range walks {
		buf.Reset()
		res, err := run(&buf, b, alone, export.Options{})
		if roots, cids, _ := read(t, buf.Bytes()); err != nil || len(cids) != 0 || len(roots) != 1 || res.Bytes != uint64(buf.Len()) {
			t.Errorf("%s, identity: %+v, %v", walk, res, err)
		}
	}
}

// linksTo makes a DAG-CBOR block of links that need not be of blocks.
func (b blocks) linksTo(links ...cid.Cid) cid.Cid { return b.node(cid.DagCBOR, 99, links...) }

// TestLinksThatAreNoBlocks: a link of an unknown codec or hash to what is not there is
// left out with SkipMissing and not found without it, an identity CID of an unknown codec
// has no links, and both walks say the same, the depth included.
func TestLinksThatAreNoBlocks(t *testing.T) {
	piece := must(cid.Decode("baga6ea4seaqao7s73y24kcutaosvacpdjgfe5pw76ooefnyqw4ynr3d2y6x2mpq"))
	ipns := cid.NewCidV1(cid.Libp2pKey, must(mh.Sum([]byte("\x08\x01\x12\x20a public key of 32 bytes, or so..."), mh.IDENTITY, -1)))
	md5 := cid.NewCidV1(cid.GitRaw, must(mh.Encode(make([]byte, 16), mh.MD5)))
	b := blocks{}
	git := b.add(cid.GitRaw, []byte("blob 3\x00abc"))
	for name, c := range map[string]struct {
		link    cid.Cid
		missing uint64 // with SkipMissing
		with    error  // with SkipMissing
		without func(error) bool
	}{
		"piece":         {piece, 1, nil, ipld.IsNotFound},
		"md5":           {md5, 1, nil, ipld.IsNotFound},
		"IPNS key":      {ipns, 0, nil, func(err error) bool { return err == nil }},
		"there":         {git, 0, export.ErrUnknownCodec, func(err error) bool { return errors.Is(err, export.ErrUnknownCodec) }},
		"absent, known": {blocks{}.node(cid.DagCBOR, 1234), 1, nil, ipld.IsNotFound},
	} {
		for depth := 1; depth <= 3; depth++ {
			root := b.linksTo(c.link, b.node(cid.Raw, 5))
			for range depth - 1 {
				root = b.linksTo(b.node(cid.Raw, 6), root)
			}
			for walk, run := range walks {
				res, err := run(io.Discard, b, root, export.Options{SkipMissing: true})
				if res.Missing != c.missing || !errors.Is(err, c.with) || err == nil != (c.with == nil) {
					t.Errorf("%s, %s, SkipMissing: %+v, %v", walk, name, res, err)
				}
				_, err = run(io.Discard, b, root, export.Options{})
				var be *export.BlockError
				if !c.without(err) || err != nil && (!errors.As(err, &be) || be.Cid != c.link || be.Depth != depth) {
					t.Errorf("%s, %s, %d links deep: %v", walk, name, depth, err)
				}
			}
		}
	}
	for walk, run := range walks { // as roots
		if res, err := run(io.Discard, b, ipns, export.Options{}); err != nil || res.Blocks != 0 {
			t.Errorf("%s: %+v, %v", walk, res, err)
		}
		if _, err := run(io.Discard, b, piece, export.Options{SkipMissing: true}); !ipld.IsNotFound(err) {
			t.Errorf("%s: %v", walk, err)
		}
	}
}

// TestDepthCountsLinks: what a walk by a selector says of how deep it is counts links, not
// steps, also after it came back from a deeper part.
func TestDepthCountsLinks(t *testing.T) {
	b := blocks{}
	deep := b.linksTo(b.linksTo(b.linksTo(b.node(cid.Raw, 1))))
	missing := blocks{}.node(cid.DagCBOR, 4321)
	root := b.linksTo(deep, b.linksTo(deep, b.node(cid.Raw, 2), missing))
	for walk, run := range walks {
		var be *export.BlockError
		if _, err := run(io.Discard, b, root, export.Options{}); !errors.As(err, &be) || be.Depth != 2 || be.Cid != missing {
			t.Errorf("%s: %v", walk, err)
		}
	}
}

// tree is a codec of the test's own: a byte for the number of links, then binary CIDs of
// 36 bytes.
func decodeTree(na datamodel.NodeAssembler, r io.Reader) error {
	p, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if len(p) == 0 || len(p) != 1+36*int(p[0]) {
		return errors.New("not a tree")
	}
	la, err := na.BeginList(int64(p[0]))
	if err != nil {
		return err
	}
	for p = p[1:]; len(p) > 0; p = p[36:] {
		c, err := cid.Cast(bytes.Clone(p[:36]))
		if err != nil {
			return err
		}
		if err := la.AssembleValue().AssignLink(cidlink.Link{Cid: c}); err != nil {
			return err
		}
	}
	return la.Finish()
}

// TestDecoders: codecs that are not built in are decoded by what the options give, which
// takes the place of what is built in too; what it refuses is malformed.
func TestDecoders(t *testing.T) {
	const treeCodec = 0x300001
	b := blocks{}
	leaf := b.node(cid.Raw, 1)
	tree := b.add(treeCodec, []byte("\x02"+leaf.KeyString()+leaf.KeyString()))
	bad := b.add(treeCodec, []byte("\x07"))
	root := b.node(cid.DagCBOR, 1, tree)
	opts := export.Options{Decoders: map[uint64]export.Decoder{treeCodec: {Decode: decodeTree}}}
	lists := export.Options{Decoders: map[uint64]export.Decoder{treeCodec: {Decode: decodeTree, Prototype: basicnode.Prototype.List}}}
	for walk, run := range walks {
		if _, err := run(io.Discard, b, root, export.Options{}); !errors.Is(err, export.ErrUnknownCodec) || !strings.Contains(err.Error(), "Options.Decoders") {
			t.Errorf("%s, none: %v", walk, err)
		}
		for _, o := range []export.Options{opts, lists} {
			var buf bytes.Buffer
			res, err := run(&buf, b, root, o)
			if _, cids, _ := read(t, buf.Bytes()); err != nil || res.Blocks != 3 || !slices.Equal(cids, []cid.Cid{root, tree, leaf}) {
				t.Errorf("%s: %+v, %v", walk, res, err)
			}
			if _, err := run(io.Discard, b, bad, o); !errors.Is(err, export.ErrMalformed) {
				t.Errorf("%s, malformed: %v", walk, err)
			}
		}
		none := export.Options{Decoders: map[uint64]export.Decoder{cid.Raw: {Decode: func(datamodel.NodeAssembler, io.Reader) error { return errors.New("no leaves here") }}}}
		if _, err := run(io.Discard, b, b.node(cid.DagCBOR, 1, leaf), none); !errors.Is(err, export.ErrMalformed) {
			t.Errorf("%s, in place of a built-in one: %v", walk, err)
		}
		if _, err := run(io.Discard, b, root, export.Options{Decoders: map[uint64]export.Decoder{treeCodec: {}}}); err == nil {
			t.Errorf("%s: a decoder that is nil", walk)
		}
	}
}

var _ codec.Decoder = decodeTree

// preload is a reifier in the manner of go-unixfsnode's "unixfs-preload": a file in chunks
// is loaded as a whole, and is its bytes.
func preload(lc linking.LinkContext, n datamodel.Node, ls *linking.LinkSystem) (datamodel.Node, error) {
	pb, ok := n.(dagpb.PBNode)
	if !ok {
		return n, nil
	}
	var data []byte
	for it := pb.FieldLinks().Iterator(); !it.Done(); {
		_, l := it.Next()
		child, err := ls.Load(linking.LinkContext{Ctx: lc.Ctx}, l.FieldHash().Link(), basicnode.Prototype.Any)
		if err != nil {
			return nil, err
		}
		p, err := child.AsBytes()
		if err != nil {
			return nil, err
		}
		data = append(data, p...)
	}
	return basicnode.NewBytes(data), nil
}

// TestReifiers: a selector over an ADL writes what the ADL loads; one that nobody gave is
// refused before the first byte; a chunk that is missing is not found. go-unixfsnode's
// reifiers have the type of the test's own.
func TestReifiers(t *testing.T) {
	b := blocks{}
	chunks := []cid.Cid{b.node(cid.Raw, 1), b.node(cid.Raw, 2), b.node(cid.Raw, 3)}
	file := b.node(cid.DagProtobuf, 9, chunks...)
	root := b.node(cid.DagCBOR, 1, b.node(cid.Raw, 4), file)
	whole := must(selectorparse.ParseJSONSelector(`{"~":{"as":"unixfs-preload",">":{".":{}}}}`))
	inside := must(selectorparse.ParseJSONSelector(`{"f":{"f>":{"b":{"i":{"i":1,">":{"~":{"as":"unixfs-preload",">":{".":{}}}}}}}}}`))
	opts := export.Options{Reifiers: map[string]linking.NodeReifier{"unixfs-preload": preload}}
	for name, c := range map[string]struct {
		root cid.Cid
		sel  datamodel.Node
		want []cid.Cid
	}{
		"root":   {file, whole, append([]cid.Cid{file}, chunks...)},
		"inside": {root, inside, append([]cid.Cid{root, file}, chunks...)},
	} {
		var buf bytes.Buffer
		res, err := export.Selector(t.Context(), &buf, b, c.root, c.sel, opts)
		if _, cids, _ := read(t, buf.Bytes()); err != nil || !slices.Equal(cids, c.want) || res.Links != uint64(len(c.want)) {
			t.Errorf("%s: %+v, %v, %v", name, res, cids, err)
		}
		for _, o := range []export.Options{{}, {Reifiers: map[string]linking.NodeReifier{"unixfs": preload}}} {
			buf.Reset()
			_, err := export.Selector(t.Context(), &buf, b, c.root, c.sel, o)
			if !errors.Is(err, export.ErrSelector) || !strings.Contains(err.Error(), `"unixfs-preload"`) || buf.Len() > 0 {
				t.Errorf("%s, no reifier: %d bytes, %v", name, buf.Len(), err)
			}
		}
		less := blocks{}
		for k, v := range b {
			if k != chunks[1] {
				less[k] = v
			}
		}
		for _, skip := range []bool{false, true} {
			var be *export.BlockError
			_, err = export.Selector(t.Context(), io.Discard, less, c.root, c.sel, export.Options{Reifiers: opts.Reifiers, SkipMissing: skip})
			if !ipld.IsNotFound(err) || !errors.As(err, &be) || be.Cid != chunks[1] || be.Depth != len(c.want)-3 {
				t.Errorf("%s, a chunk is missing: %v", name, err)
			}
		}
	}
	if _, err := export.Selector(t.Context(), io.Discard, b, file, whole, export.Options{Reifiers: map[string]linking.NodeReifier{"unixfs-preload": nil}}); err == nil {
		t.Error("a reifier that is nil")
	}
	boom := errors.New("boom")
	opts.Reifiers["unixfs-preload"] = func(linking.LinkContext, datamodel.Node, *linking.LinkSystem) (datamodel.Node, error) {
		return nil, boom
	}
	if _, err := export.Selector(t.Context(), io.Discard, b, file, whole, opts); !errors.Is(err, boom) {
		t.Errorf("a reifier that fails: %v", err)
	}
}
