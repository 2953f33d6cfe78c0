package export

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
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
	if err := checkReifiers(sel, opts.Reifiers); err != nil {
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
	// missing is the last block that was left out.
	missing error

	begun bool // the root was asked for
	// at is where the block lies that was loaded last, waits its bytes, which are written
	// once they are decoded; nil if none are.
	at    step
	path  datamodel.Path
	waits []byte
	// way are the blocks on the way from the root to the one loaded last, which is the
	// last of them: the paths of the links to them. The root is not among them.
	way []datamodel.Path
}

func (s *selectorWalk) walk(root cid.Cid, sel selector.Selector) error {
	lsys := cidlink.DefaultLinkSystem()
	lsys.DecoderChooser, lsys.StorageReadOpener = s.decoder, s.open
	lsys.KnownReifiers = s.opts.Reifiers
	lsys.TrustedStorage = true // open checks
	known := lsys.HasherChooser
	lsys.HasherChooser = func(p datamodel.LinkPrototype) (hash.Hash, error) {
		// It is asked before the block is, also of links to what is no block.
		if h, err := known(p); err == nil {
			return h, nil
		}
		return sha256.New(), nil
	}
	chooser := dagpb.AddSupportToChooser(func(l datamodel.Link, _ linking.LinkContext) (datamodel.NodePrototype, error) {
		if c, err := links.Cid(l); err == nil {
			if d := s.opts.Decoders[c.Prefix().Codec]; d.Prototype != nil {
				return d.Prototype, nil
			}
		}
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
	last := step{root, 0}
	err = progress.WalkAdv(n, sel, func(p traversal.Progress, _ datamodel.Node, _ traversal.VisitReason) error {
		if p.LastBlock.Link != nil {
			if c, err := links.Cid(p.LastBlock.Link); err == nil && c != last.cid {
				last = step{c, s.depthOf(p.LastBlock.Path) + 1}
			}
		}
		if d := p.Path.Len(); d > s.opts.MaxDepth { // of steps, as the option says
			return s.end(&LimitError{"links deep", uint64(s.opts.MaxDepth), last.cid, d})
		}
		return s.ctx.Err()
	})
	if err == nil {
		err = s.write()
	}
	var over *traversal.ErrBudgetExceeded
	if errors.As(err, &over) && s.fatal == nil {
		what := "nodes"
		if over.BudgetKind == "link" {
			what = "links"
		}
		return &LimitError{what, s.opts.MaxLinks, last.cid, last.depth}
	}
	var skip traversal.SkipMe
	if errors.As(err, &skip) && s.fatal == nil && s.missing != nil {
		return s.missing // a reifier could not do without it
	}
	return s.why(err, last, "")
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

// enter notes that the link at a path is followed, and returns how many links deep that
// is. What a reifier loads has no path, and lies below what was loaded last.
func (s *selectorWalk) enter(path datamodel.Path) (depth int) {
	if path.Len() > 0 {
		s.way = append(s.way[:s.depthOf(path)], path)
		return len(s.way)
	}
	return len(s.way) + 1
}

// depthOf returns how many of the blocks on the way lie above a path.
func (s *selectorWalk) depthOf(path datamodel.Path) int {
	n := len(s.way)
	for n > 0 && !above(s.way[n-1], path) {
		n--
	}
	return n
}

// above says whether a path leads on from another one.
func above(a, b datamodel.Path) bool {
	as, bs := a.Segments(), b.Segments()
	return len(as) < len(bs) && slices.EqualFunc(as, bs[:len(as)], datamodel.PathSegment.Equals)
}

// decoder returns the decoder of a link's codec. Whether there is one matters only once
// the block is there: a link may be to what is none.
func (s *selectorWalk) decoder(l datamodel.Link) (codec.Decoder, error) {
	c, err := links.Cid(l)
	if err != nil {
		return nil, err
	}
	code := multicodec.Code(c.Prefix().Codec)
	return func(na datamodel.NodeAssembler, r io.Reader) error {
		n := s.opts.MaxBlockSize
		if sized, ok := r.(interface{ Len() int }); ok {
			n = sized.Len()
		}
		decode, _ := s.opts.decoderOf(code, n)
		if decode == nil && s.opts.isLeaf(c) {
			decode, _ = new(Options).decoderOf(multicodec.Raw, 0)
		}
		why := error(nil)
		if decode == nil {
			why = unknownCodec(code)
		} else if err := decode(na, r); err != nil {
			why = fmt.Errorf("%w: %s: %w", ErrMalformed, code, err)
		}
		if why != nil {
			s.waits = nil
			return s.end(wrap(step{c, s.at.depth}, s.path.String(), why))
		}
		return s.write()
	}, nil
}

// open loads a block and checks it. It is written once it is decoded.
func (s *selectorWalk) open(lc linking.LinkContext, l datamodel.Link) (io.Reader, error) {
	c, err := links.Cid(l)
	if err != nil {
		return nil, err
	}
	if err := s.write(); err != nil { // of a reifier that took the bytes as they were
		return nil, err
	}
	root := !s.begun
	s.begun = true
	s.at, s.path = step{cid: c}, lc.LinkPath
	if !root {
		s.at.depth = s.enter(lc.LinkPath)
	}
	s.cw.res.Links++
	if data, ok := cids.Identity(c); ok {
		return bytes.NewReader(data), nil
	}
	var block []byte
	err = s.src.View(s.ctx, c, func(data []byte) error {
		if err := s.cw.check(c, data, s.at.depth); err != nil {
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
		s.waits = block
		return bytes.NewReader(block), nil
	case ipld.IsNotFound(err) && s.opts.SkipMissing && !root && lc.LinkNode != nil:
		s.cw.res.Missing++
		s.missing = wrap(s.at, lc.LinkPath.String(), err)
		return nil, traversal.SkipMe{}
	case s.ctx.Err() != nil:
		return nil, s.ctx.Err()
	}
	return nil, s.end(wrap(s.at, lc.LinkPath.String(), err))
}

// write writes the block that waits, unless it was written before.
func (s *selectorWalk) write() error {
	block, c := s.waits, s.at.cid
	if s.waits = nil; block == nil {
		return nil
	}
	if s.seen != nil {
		k := c.KeyString()
		if _, ok := s.seen[k]; ok {
			return nil
		}
		s.seen[k] = struct{}{}
	}
	if err := s.cw.section(c, block, s.at.depth); err != nil {
		return s.end(err)
	}
	return nil
}

// checkReifiers says which ADL a selector asks for that nobody gave.
func checkReifiers(sel datamodel.Node, known map[string]linking.NodeReifier) error {
	switch sel.Kind() {
	case datamodel.Kind_Map:
		for it := sel.MapIterator(); !it.Done(); {
			k, v, err := it.Next()
			if err != nil {
				return err
			}
			if key, _ := k.AsString(); key == selector.SelectorKey_ExploreInterpretAs && v.Kind() == datamodel.Kind_Map {
				if as, err := v.LookupByString(selector.SelectorKey_As); err == nil {
					name, err := as.AsString()
					if _, ok := known[name]; err == nil && !ok {
						return fmt.Errorf("it wants %q: give its reifier in Options.Reifiers", name)
					}
				}
			}
			if err := checkReifiers(v, known); err != nil {
				return err
			}
		}
	case datamodel.Kind_List:
		for it := sel.ListIterator(); !it.Done(); {
			_, v, err := it.Next()
			if err != nil {
				return err
			}
			if err := checkReifiers(v, known); err != nil {
				return err
			}
		}
	}
	return nil
}
