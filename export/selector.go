package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	dagpb "github.com/ipld/go-codec-dagpb"
	"github.com/ipld/go-ipld-prime/codec"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/linking"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	"github.com/ipld/go-ipld-prime/traversal"
	"github.com/ipld/go-ipld-prime/traversal/selector"
	"github.com/multiformats/go-multicodec"

	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/internal/links"
)

// Selector writes the blocks that a walk from root by an IPLD selector loads, in the order
// in which it first loads them (with Options.Duplicates each time). See [DAG] for errors;
// a selector that does not compile wraps [ErrSelector].
//
// A block that several parts of the selector reach is loaded for each: bounds count that.
func Selector(ctx context.Context, w io.Writer, src Source, root cid.Cid, sel datamodel.Node, opts Options) (Result, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return Result{}, fmt.Errorf("export: %w", err)
	}
	if sel == nil {
		return Result{}, fmt.Errorf("export: %w: none", ErrSelector)
	}
	compiled, err := selector.CompileSelector(sel)
	if err != nil {
		return Result{}, fmt.Errorf("export: %w: %w", ErrSelector, err)
	}
	cw, err := newCARWriter(w, opts, []cid.Cid{root})
	if err != nil {
		return Result{}, fmt.Errorf("export: %w", err)
	}
	s := selectorWalk{ctx: ctx, src: src, cw: cw, opts: opts}
	if !opts.Duplicates {
		s.seen = make(map[string]struct{})
	}
	return cw.finish(s.walk(root, compiled))
}

// ErrSelector: a selector that cannot be used.
var ErrSelector = errors.New("bad selector")

// selectorWalk has go-ipld-prime walk, and writes what that loads.
type selectorWalk struct {
	ctx  context.Context
	src  Source
	cw   *carWriter
	opts Options
	seen map[string]struct{} // CIDs that were written; nil if duplicates are
	// fatal is what ended the walk, as it was.
	fatal error
}

func (s *selectorWalk) walk(root cid.Cid, sel selector.Selector) error {
	lsys := cidlink.DefaultLinkSystem()
	lsys.DecoderChooser, lsys.StorageReadOpener = s.decoder, s.open
	lsys.TrustedStorage = true // open checks
	chooser := dagpb.AddSupportToChooser(func(datamodel.Link, linking.LinkContext) (datamodel.NodePrototype, error) {
		return basicnode.Prototype.Any, nil
	})
	link := cidlink.Link{Cid: root}
	proto, err := chooser(link, linking.LinkContext{})
	if err != nil {
		return wrap(step{root, 0}, "", err)
	}
	n, err := lsys.Load(linking.LinkContext{Ctx: s.ctx}, link, proto)
	if err != nil {
		return s.why(err, step{root, 0}, "")
	}
	budget := int64(min(s.opts.MaxLinks, math.MaxInt64))
	progress := traversal.Progress{
		Cfg:    &traversal.Config{Ctx: s.ctx, LinkSystem: lsys, LinkTargetNodePrototypeChooser: chooser},
		Budget: &traversal.Budget{NodeBudget: budget, LinkBudget: budget},
	}
	last := root
	err = progress.WalkAdv(n, sel, func(p traversal.Progress, _ datamodel.Node, _ traversal.VisitReason) error {
		if p.LastBlock.Link != nil {
			if c, err := links.Cid(p.LastBlock.Link); err == nil {
				last = c
			}
		}
		if d := len(p.Path.Segments()); d > s.opts.MaxDepth {
			return s.end(&LimitError{"links deep", uint64(s.opts.MaxDepth), last, d})
		}
		return s.ctx.Err()
	})
	var over *traversal.ErrBudgetExceeded
	if errors.As(err, &over) && s.fatal == nil {
		what := "nodes"
		if over.BudgetKind == "link" {
			what = "links"
		}
		return &LimitError{what, s.opts.MaxLinks, last, len(over.Path.Segments())}
	}
	return s.why(err, step{last, 0}, "")
}

// why returns what ended the walk.
func (s *selectorWalk) why(err error, at step, path string) error {
	switch {
	case err == nil:
		return nil
	case s.fatal != nil:
		return s.fatal
	case s.ctx.Err() != nil:
		return s.ctx.Err()
	}
	return wrap(at, path, err)
}

func (s *selectorWalk) end(err error) error {
	if s.fatal == nil {
		s.fatal = err
	}
	return err
}

// decoder returns the decoder of a link's codec.
func (s *selectorWalk) decoder(l datamodel.Link) (codec.Decoder, error) {
	c, err := links.Cid(l)
	if err != nil {
		return nil, err
	}
	code := multicodec.Code(c.Prefix().Codec)
	if decode, _ := decoderOf(code, s.opts.MaxBlockSize); decode == nil {
		if !s.opts.UnknownAsLeaf {
			return nil, s.end(wrap(step{c, 0}, "", unknownCodec(code)))
		}
		decode, _ = decoderOf(multicodec.Raw, 0)
		return decode, nil
	}
	return func(na datamodel.NodeAssembler, r io.Reader) error {
		n := s.opts.MaxBlockSize
		if sized, ok := r.(interface{ Len() int }); ok {
			n = sized.Len()
		}
		decode, _ := decoderOf(code, n)
		if err := decode(na, r); err != nil {
			return s.end(wrap(step{c, 0}, "", fmt.Errorf("%w: %s: %w", ErrMalformed, code, err)))
		}
		return nil
	}, nil
}

// open loads a block, checks it, and writes it.
func (s *selectorWalk) open(lc linking.LinkContext, l datamodel.Link) (io.Reader, error) {
	c, err := links.Cid(l)
	if err != nil {
		return nil, err
	}
	at := step{c, len(lc.LinkPath.Segments())}
	s.cw.res.Links++
	if data, ok := cids.Identity(c); ok {
		return bytes.NewReader(data), nil
	}
	var block []byte
	err = s.src.View(s.ctx, c, func(data []byte) error {
		if err := s.cw.check(c, data, at.depth); err != nil {
			return err
		}
		block = slices.Clone(data) // nodes keep it
		if block == nil {
			block = []byte{}
		}
		return nil
	})
	switch {
	case err == nil && block == nil:
		err = errNoBlock
	case err == nil:
		return bytes.NewReader(block), s.write(c, block, at.depth)
	case ipld.IsNotFound(err) && s.opts.SkipMissing && at.depth > 0:
		s.cw.res.Missing++
		return nil, traversal.SkipMe{}
	case s.ctx.Err() != nil:
		return nil, s.ctx.Err()
	}
	return nil, s.end(wrap(at, lc.LinkPath.String(), err))
}

// write writes a block, unless that was done.
func (s *selectorWalk) write(c cid.Cid, block []byte, depth int) error {
	if s.seen != nil {
		k := c.KeyString()
		if _, ok := s.seen[k]; ok {
			return nil
		}
		s.seen[k] = struct{}{}
	}
	if err := s.cw.section(c, block, depth); err != nil {
		return s.end(err)
	}
	return nil
}
