package export

import (
	"bytes"
	"fmt"

	"github.com/ipfs/go-cid"
	dagpb "github.com/ipld/go-codec-dagpb"
	"github.com/ipld/go-ipld-prime/codec"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/codec/dagjson"
	"github.com/ipld/go-ipld-prime/codec/raw"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	"github.com/ipld/go-ipld-prime/traversal"
	"github.com/multiformats/go-multicodec"

	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/internal/links"
)

// maxNesting bounds maps and lists within one another in one block: decoders recurse.
const maxNesting = 1024

// allocation is what a decoder may take for a block of n bytes: a map entry or a list
// element of a few bytes becomes a node of tens.
func allocation(n int) int64 { return 1<<20 + 32*int64(n) }

// decoderOf returns the decoder of a codec for a block of n bytes, and the prototype that
// it fills; nil if there is none.
func (o *Options) decoderOf(code multicodec.Code, n int) (codec.Decoder, datamodel.NodePrototype) {
	if d, ok := o.Decoders[uint64(code)]; ok {
		if d.Prototype == nil {
			return d.Decode, basicnode.Prototype.Any
		}
		return d.Decode, d.Prototype
	}
	switch code {
	case multicodec.DagPb:
		return dagpb.Decode, dagpb.Type.PBNode
	case multicodec.DagCbor, multicodec.Cbor:
		// Older writers were not strict.
		return dagcbor.DecodeOptions{AllowLinks: code == multicodec.DagCbor, RelaxedDecode: true, AllocationBudget: allocation(n), MaxDepth: maxNesting}.Decode, basicnode.Prototype.Any
	case multicodec.DagJson, multicodec.Json:
		links := code == multicodec.DagJson
		return dagjson.DecodeOptions{ParseLinks: links, ParseBytes: links, MaxDepth: maxNesting}.Decode, basicnode.Prototype.Any
	case multicodec.Raw:
		return raw.Decode, basicnode.Prototype.Bytes
	}
	return nil, nil
}

// linksOf appends the links of a block to out, in their order.
func linksOf(c cid.Cid, data []byte, opts *Options, depth int, out []cid.Cid) ([]cid.Cid, error) {
	code := multicodec.Code(c.Prefix().Codec)
	_, given := opts.Decoders[uint64(code)]
	switch code {
	case multicodec.Raw, multicodec.Cbor, multicodec.Json:
		if !given {
			return out, nil
		}
	}
	decode, proto := opts.decoderOf(code, len(data))
	if decode == nil {
		if opts.isLeaf(c) {
			return out, nil
		}
		return out, unknownCodec(code)
	}
	nb := proto.NewBuilder()
	if err := decode(nb, bytes.NewReader(data)); err != nil {
		return out, fmt.Errorf("%w: %s: %w", ErrMalformed, code, err)
	}
	all, err := traversal.SelectLinks(nb.Build())
	if err != nil {
		return out, fmt.Errorf("%w: %s: %w", ErrMalformed, code, err)
	}
	if len(all) > opts.MaxBlockLinks {
		return out, &LimitError{"links of one block", uint64(opts.MaxBlockLinks), c, depth}
	}
	for _, l := range all {
		child, err := links.Cid(l)
		if err != nil {
			return out, fmt.Errorf("%w: %s: %w", ErrMalformed, code, err)
		}
		out = append(out, child)
	}
	return out, nil
}

// isLeaf says that a block of an unknown codec has no links to follow.
func (o *Options) isLeaf(c cid.Cid) bool {
	_, inline := cids.Identity(c)
	return inline || o.UnknownAsLeaf
}

func unknownCodec(code multicodec.Code) error {
	return fmt.Errorf("%w: %s (%#x): give a decoder in Options.Decoders, or set UnknownAsLeaf to take such blocks for leaves", ErrUnknownCodec, code, uint64(code))
}
