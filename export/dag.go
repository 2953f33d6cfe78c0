package export

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/dagstore/dagstore/internal/cids"
)

// DAG writes everything that can be reached from the roots, which become the roots of the
// CAR. Errors wrap a [*LimitError], a [*BlockError], the context's error or that of w.
func DAG(ctx context.Context, w io.Writer, src Source, roots []cid.Cid, opts Options) (Result, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return Result{}, fmt.Errorf("export: %w", err)
	}
	cw, err := newCARWriter(w, opts, roots)
	if err != nil {
		return Result{}, fmt.Errorf("export: %w", err)
	}
	d := dagWalk{ctx: ctx, src: src, cw: cw, opts: opts}
	if !opts.Duplicates {
		d.seen = make(map[string]struct{})
	}
	return cw.finish(d.walk(roots))
}

// dagWalk walks depth first with a stack of its own: the goroutine's grows with nothing.
type dagWalk struct {
	ctx  context.Context
	src  Source
	cw   *carWriter
	opts Options
	seen map[string]struct{} // CIDs that were met; nil if duplicates are written

	// stack holds the links to follow, the next one last. Those of one block lie
	// together, in reverse.
	stack []step
	links []cid.Cid // of the block at hand
}

type step struct {
	cid   cid.Cid
	depth int
}

func (d *dagWalk) walk(roots []cid.Cid) error {
	d.links = append(d.links, roots...)
	if err := d.push(cid.Undef, 0); err != nil {
		return err
	}
	for len(d.stack) > 0 {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		top := d.stack[len(d.stack)-1]
		d.stack = d.stack[:len(d.stack)-1]
		if err := d.visit(top); err != nil {
			return err
		}
	}
	return nil
}

// push has the links of the block at hand followed, from depth.
func (d *dagWalk) push(of cid.Cid, depth int) error {
	n := len(d.links)
	d.cw.res.Links += uint64(n)
	switch {
	case n == 0:
		return nil
	case d.cw.res.Links > d.opts.MaxLinks:
		return &LimitError{"links", d.opts.MaxLinks, of, depth}
	case depth > d.opts.MaxDepth:
		return &LimitError{"links deep", uint64(d.opts.MaxDepth), of, depth}
	case len(d.stack)+n > d.opts.MaxPending:
		return &LimitError{"links waiting", uint64(d.opts.MaxPending), of, depth}
	}
	for i := n - 1; i >= 0; i-- {
		d.stack = append(d.stack, step{d.links[i], depth})
	}
	d.links = d.links[:0]
	return nil
}

// visit writes a block and has its links followed, unless that was done.
func (d *dagWalk) visit(s step) error {
	if d.seen != nil {
		k := s.cid.KeyString()
		if _, ok := d.seen[k]; ok {
			return nil
		}
		d.seen[k] = struct{}{}
	}
	if data, ok := cids.Identity(s.cid); ok {
		if err := d.read(s, data); err != nil {
			return wrap(s, "", err)
		}
		return d.push(s.cid, s.depth+1)
	}
	took := false
	err := d.src.View(d.ctx, s.cid, func(data []byte) error {
		if took {
			return errTwice
		}
		err := d.take(s, data)
		took = err == nil
		return err
	})
	switch {
	case err == nil && took:
		return d.push(s.cid, s.depth+1)
	case err == nil:
		err = errNoBlock
	case d.ctx.Err() != nil:
		return d.ctx.Err()
	case ipld.IsNotFound(err) && d.opts.SkipMissing && s.depth > 0:
		d.cw.res.Missing++
		return nil
	}
	return wrap(s, "", err)
}

// take checks a block, reads its links and writes it. A source that is one of several may
// call it again if the block was not what it should be.
func (d *dagWalk) take(s step, data []byte) error {
	if err := d.cw.check(s.cid, data, s.depth); err != nil {
		return err
	}
	if err := d.read(s, data); err != nil {
		return err
	}
	return d.cw.section(s.cid, data, s.depth)
}

// read reads the links of a block.
func (d *dagWalk) read(s step, data []byte) (err error) {
	d.links, err = linksOf(s.cid, data, &d.opts, s.depth, d.links[:0])
	return err
}

var (
	errNoBlock = errors.New("the source returned neither a block nor an error")
	errTwice   = errors.New("the source returned a block twice")
)

// wrap says at which block an error came up, unless the error does.
func wrap(s step, path string, err error) error {
	var limit *LimitError
	var write *writeError
	if errors.As(err, &limit) || errors.As(err, &write) {
		return err
	}
	return &BlockError{Cid: s.cid, Depth: s.depth, Path: path, Err: err}
}
