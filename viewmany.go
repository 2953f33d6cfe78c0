package dagstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/cids"
)

const (
	// spanMax is how much ViewMany reads at once; it stays in a core's cache.
	spanMax = 128 << 10
	// spanShared is how much GetMany reads at once, and so the most that a block from
	// there may keep alive.
	spanShared = 32 << 10
	// spanGap is what may lie between two blocks that are read together. A system call
	// costs as much as copying some kilobytes.
	spanGap = 4 << 10
)

// ViewMany calls fn once for each of cids, with its index: with the bytes of the
// block, which are valid during the call only and must not be changed, or with the
// reason why it is not served, an ipld.ErrNotFound or a [*BlockError]. The calls come
// one after the other, in the order in which the blocks lie in the file as far as that
// spares reads, not in the order of cids. An error of fn ends ViewMany and is returned
// as it is; otherwise the error is that of the whole: of ctx, or ErrClosed.
//
// Blocks that lie close to each other are read together. Blocks that are asked for in
// the order of the file, as an export or a walk does, are not even looked up: each
// section names its block. It takes 24 bytes a CID, and a buffer of 128 KiB or of the
// largest block.
func (b *ShardBlockstore) ViewMany(ctx context.Context, cids []cid.Cid, fn func(i int, data []byte, err error) error) error {
	buf := viewBuffers.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= maxPooled {
			viewBuffers.Put(buf)
		}
	}()
	return b.readMany(ctx, cids, spanMax, func(n int) []byte {
		if cap(*buf) < n {
			*buf = make([]byte, n)
		}
		return (*buf)[:n]
	}, fn)
}

// GetMany returns the blocks of cids, in their order. Where one is not served there is
// nil, and the error, which joins those of all such blocks, says why; the others are
// good nevertheless. See [ShardBlockstore.ViewMany] for how it reads.
//
// Small blocks that lie close to each other share memory: one that is kept keeps up to
// 32 KiB. Copy what is to outlive the others.
func (b *ShardBlockstore) GetMany(ctx context.Context, cids []cid.Cid) ([]blocks.Block, error) {
	out := make([]blocks.Block, len(cids))
	var errs []error
	fresh := func(n int) []byte { return make([]byte, n) }
	err := b.readMany(ctx, cids, spanShared, fresh, func(i int, data []byte, err error) error {
		if err == nil {
			out[i], err = blocks.NewBlockWithCid(data, cids[i])
		}
		if err != nil {
			errs = append(errs, err)
		}
		return nil
	})
	return out, errors.Join(append(errs, err)...)
}

// readMany reads blocks for fn, at most span bytes at once unless a block is larger,
// into memory from alloc, which may be the same each time.
func (b *ShardBlockstore) readMany(ctx context.Context, cids []cid.Cid, span int, alloc func(int) []byte, fn func(int, []byte, error) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.sa.enter(); err != nil {
		return err
	}
	defer b.sa.h.leave()
	r := manyReader{b: b, ctx: ctx, cids: cids, span: int64(span), alloc: alloc, fn: fn}
	r.row.end = min(b.sa.h.index.payloadEnd(), b.sa.h.size)
	if err := r.inOrder(); err != nil {
		return err
	}
	slices.SortFunc(r.later, func(x, y wanted) int {
		return cmp.Or(cmp.Compare(x.loc.data, y.loc.data), cmp.Compare(x.i, y.i))
	})
	for len(r.later) > 0 {
		if err := r.nextSpan(); err != nil {
			return err
		}
	}
	return nil
}

// manyReader is one ViewMany or GetMany.
type manyReader struct {
	b     *ShardBlockstore
	ctx   context.Context
	cids  []cid.Cid
	span  int64
	alloc func(int) []byte
	fn    func(int, []byte, error) error
	row   row
	later []wanted // found in the index and not served yet
}

// wanted is a block that was found in the index.
type wanted struct {
	i   int
	loc location
}

// end is where the block's section ends in the file.
func (w wanted) end() int64 { return w.loc.data + int64(w.loc.size) }

// row is a part of the file whose blocks are asked for one after the other.
//
//	at ≤ next ≤ at + len(win) ≤ end
type row struct {
	on   bool
	end  int64 // of the CARv1 payload
	at   int64 // of win in the file
	win  []byte
	next int64 // where the section after the one served last begins
	want int64 // how much to read next time: more each time
}

// aliveEvery is how many blocks are looked for between two looks at the context.
const aliveEvery = 64

// rowStart is how much of a row is read at first.
const rowStart = 4 << 10

// inOrder serves what is asked for in the order of the file, and looks up the rest.
//
// Two blocks of which one follows the other in the file begin a row. While it lasts,
// the next block wanted is expected in the next section; whether it is there is what
// the section's CID says, and that is what the index was made from.
func (r *manyReader) inOrder() error {
	last := wanted{i: -1}
	for i, c := range r.cids {
		if i%aliveEvery == aliveEvery-1 { // what is not there reads nothing, which would ask
			if err := r.alive(); err != nil {
				return err
			}
		}
		m := cids.Multihash(c)
		code, digest, ok := cids.SplitString(m)
		served, err := true, error(nil)
		switch {
		case !ok:
			err = r.fn(i, nil, ipld.ErrNotFound{Cid: c})
		case code == mh.IDENTITY:
			err = r.fn(i, bytes.Clone(digest), nil) // the CID's own must not change
		case r.row.on:
			served, err = r.follow(i, m)
		default:
			served = false
		}
		if err != nil {
			return err
		}
		if served {
			continue
		}
		loc, err := r.b.locate(c, m, false)
		if err != nil {
			if err := r.fn(i, nil, err); err != nil {
				return err
			}
			continue
		}
		w := wanted{i, loc}
		if last.i >= 0 && 0 < loc.data-last.end() && loc.data-last.end() <= carscan.MaxSectionHeader {
			r.row = row{on: true, end: r.row.end, at: loc.data, next: loc.data, want: max(rowStart, 4*int64(loc.size))}
			if served, err = r.serveRow(w, m); err != nil {
				return err
			}
		}
		if last = w; !served {
			r.later = append(r.later, w)
		}
	}
	return nil
}

// serveRow begins a row with a block that was looked up.
func (r *manyReader) serveRow(w wanted, m string) (served bool, err error) {
	r.row.on, err = r.fill()
	if err != nil || !r.row.on || w.loc.size > len(r.row.win) {
		r.row.on = false
		return false, err
	}
	return r.serve(w.i, m, 0, w.loc.size)
}

// follow serves block i from the next section, if that is what it holds. Otherwise the
// row is over.
func (r *manyReader) follow(i int, m string) (served bool, err error) {
	for filled := false; ; filled = true {
		rest := r.row.win[r.row.next-r.row.at:]
		headerLen, size, ok := carscan.MatchSection(rest, m)
		if ok && headerLen+size <= len(rest) {
			return r.serve(i, m, headerLen, size)
		}
		other := !ok && len(rest) >= carscan.MaxSectionHeader
		if filled || other || ok && int64(headerLen+size) > r.span {
			r.row.on = false
			return false, nil
		}
		if ok { // the section is cut off by the window
			r.row.want = max(r.row.want, int64(headerLen+size))
		}
		if r.row.on, err = r.fill(); err != nil || !r.row.on {
			return false, err
		}
	}
}

// serve serves the block whose data begins skip bytes after next. If it is not what it
// should be, it is looked up, which finds out why.
func (r *manyReader) serve(i int, m string, skip, size int) (served bool, err error) {
	from := int(r.row.next-r.row.at) + skip
	data := r.row.win[from : from+size : from+size]
	if r.b.check(m, data) != nil {
		r.row.on = false
		return false, nil
	}
	r.row.next += int64(skip + size)
	return true, r.fn(i, data, nil)
}

// fill reads the window afresh from next on. A false without an error means that it
// could not be read.
func (r *manyReader) fill() (bool, error) {
	if err := r.alive(); err != nil {
		return false, err
	}
	n := min(r.row.want, r.span, r.row.end-r.row.next)
	if n <= 0 {
		return false, nil
	}
	r.row.want *= 2
	r.row.at, r.row.win = r.row.next, r.alloc(int(n))
	return r.b.sa.h.readAt(r.row.win, r.row.at) == nil, nil
}

// alive says whether the work is still wanted.
func (r *manyReader) alive() error {
	if r.b.sa.closed.Load() {
		return ErrClosed
	}
	return r.ctx.Err()
}

// nextSpan serves the first of the blocks that are left and those that lie close
// behind it.
func (r *manyReader) nextSpan() error {
	if err := r.alive(); err != nil {
		return err
	}
	first := r.later[0]
	n, end := 1, first.end()
	for ; n < len(r.later); n++ {
		w := r.later[n]
		if w.loc.data-end > spanGap || max(end, w.end())-first.loc.data > r.span {
			break
		}
		end = max(end, w.end())
	}
	these := r.later[:n]
	r.later = r.later[n:]
	if n == 1 {
		return r.one(first)
	}
	buf := r.alloc(int(end - first.loc.data))
	read := r.b.sa.h.readAt(buf, first.loc.data) == nil
	alone := these[:0] // buf may be used again by then
	for _, w := range these {
		from := int(w.loc.data - first.loc.data)
		data := buf[from : from+w.loc.size : from+w.loc.size]
		if !read || r.b.check(cids.Multihash(r.cids[w.i]), data) != nil {
			alone = append(alone, w)
			continue
		}
		if err := r.fn(w.i, data, nil); err != nil {
			return err
		}
	}
	for _, w := range alone {
		if err := r.one(w); err != nil {
			return err
		}
	}
	return nil
}

// one serves a block by itself.
func (r *manyReader) one(w wanted) error {
	c := r.cids[w.i]
	p, err := r.b.read(c, cids.Multihash(c), w.loc, r.alloc(w.loc.size))
	return r.fn(w.i, p, err)
}
