package dagstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/internal/mapped"
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
// Blocks that lie close to each other are read together. If a disk or a network has to be
// waited for, several are looked up and read at a time. Blocks that are asked for in
// the order of the file, as an export or a walk does, are not even looked up: each
// section names its block. It takes 24 bytes a CID, and a buffer of 128 KiB or of the
// largest block; sixteen of them while it waits.
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
	if err := r.findLater(); err != nil {
		return err
	}
	slices.SortFunc(r.later, func(x, y wanted) int {
		return cmp.Or(cmp.Compare(x.loc.data, y.loc.data), cmp.Compare(x.i, y.i))
	})
	for spans := 0; len(r.later) > 0; spans++ {
		// Looking at the clock costs as much as a small read of memory.
		waited, err := r.nextSpan(spans%lookEvery == 0)
		if err != nil {
			return err
		}
		if waited {
			return r.overlapped()
		}
	}
	return nil
}

// lookEvery is one of how many spans that are read is timed.
const lookEvery = 8

// manyReader is one ViewMany or GetMany.
type manyReader struct {
	b     *ShardBlockstore
	ctx   context.Context
	cids  []cid.Cid
	span  int64
	alloc func(int) []byte
	fn    func(int, []byte, error) error
	row   row
	cold  []int    // to be found yet: the index is not in memory there
	later []wanted // found in the index and not served yet
}

// coldInRow is how many blocks one after another are looked up though the index has to be
// waited for: two that begin a row spare all others of it the same.
const coldInRow = 2

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
	last, patience := wanted{i: -1}, coldInRow
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
		loc, known, err := r.b.locateInMemory(c, m)
		if !known {
			if patience--; patience < 0 {
				r.cold, last = append(r.cold, i), wanted{i: -1}
				continue
			}
			loc, err = r.b.locate(c, m, false)
		}
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
			patience = coldInRow
		}
		if last = w; !served {
			r.later = append(r.later, w)
		}
	}
	return nil
}

// findLater looks up what has to be waited for, several at a time and in the order of the
// index.
func (r *manyReader) findLater() error {
	if len(r.cold) == 0 {
		return nil
	}
	mhs := make([]string, len(r.cold))
	for k, i := range r.cold {
		mhs[k] = cids.Multihash(r.cids[i])
	}
	slices.Sort(mhs)
	h := r.b.sa.h
	mapped.Overlap(len(mhs), func(k int) bool {
		defer func() { _ = recover() }()           // the next look panics where it may
		_, _, _ = h.index.find(h.r, mhs[k], false) // it is in memory then, or the next says why not
		return r.alive() == nil
	})
	for _, i := range r.cold {
		if err := r.alive(); err != nil {
			return err
		}
		c := r.cids[i]
		loc, err := r.b.locate(c, cids.Multihash(c), false)
		if err == nil {
			r.later = append(r.later, wanted{i, loc})
			continue
		}
		if err := r.fn(i, nil, err); err != nil {
			return err
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

// takeSpan takes the first of the blocks that are left and those that lie close behind it,
// and where they end.
func (r *manyReader) takeSpan() (these []wanted, end int64) {
	first := r.later[0]
	n, end := 1, first.end()
	for ; n < len(r.later); n++ {
		w := r.later[n]
		if w.loc.data-end > spanGap || max(end, w.end())-first.loc.data > r.span {
			break
		}
		end = max(end, w.end())
	}
	these, r.later = r.later[:n], r.later[n:]
	return these, end
}

// nextSpan serves the next span. With timed it says whether reading it waited.
func (r *manyReader) nextSpan(timed bool) (waited bool, err error) {
	if err := r.alive(); err != nil {
		return false, err
	}
	these, end := r.takeSpan()
	if len(these) == 1 && !timed {
		return false, r.one(these[0])
	}
	from := these[0].loc.data
	buf := r.alloc(int(end - from))
	if !timed {
		return false, r.serveSpan(these, buf, r.b.sa.h.readAt(buf, from) == nil)
	}
	began := time.Now()
	read := r.b.sa.h.readAt(buf, from) == nil
	waited = mapped.Waited(time.Since(began), len(buf))
	return waited, r.serveSpan(these, buf, read)
}

// serveSpan serves blocks that were read together, or could not be.
func (r *manyReader) serveSpan(these []wanted, buf []byte, read bool) error {
	first := these[0].loc.data
	alone := these[:0] // buf may be used again by then
	for _, w := range these {
		from := int(w.loc.data - first)
		if !read || r.b.check(cids.Multihash(r.cids[w.i]), buf[from:from+w.loc.size]) != nil {
			alone = append(alone, w)
			continue
		}
		if err := r.fn(w.i, buf[from:from+w.loc.size:from+w.loc.size], nil); err != nil {
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

// spanRead is a span that is being read beside others.
type spanRead struct {
	these []wanted
	buf   []byte
	read  bool
	done  chan struct{}
}

// start reads the span in another goroutine. If the reader is of others and panics, it is
// read again where it always was.
func (s *spanRead) start(h *handle) {
	go func() {
		defer close(s.done)
		defer func() { _ = recover() }()
		s.read = h.readAt(s.buf, s.these[0].loc.data) == nil
	}()
}

// aheadMost is how much is read at once of spans that have to be waited for, but for one
// that is larger.
const aheadMost = mapped.Overlapped * spanMax

// overlapped serves the spans that are left, in their order, and has several read
// meanwhile.
func (r *manyReader) overlapped() error {
	var ahead []*spanRead
	var spare [][]byte
	held := 0
	defer func() { // nothing reads when the handle is left
		for _, s := range ahead {
			<-s.done
		}
	}()
	for len(r.later) > 0 || len(ahead) > 0 {
		for len(r.later) > 0 && len(ahead) < mapped.Overlapped {
			before := r.later
			these, end := r.takeSpan()
			n := int(end - these[0].loc.data)
			if len(ahead) > 0 && held+n > aheadMost {
				r.later = before
				break
			}
			s := &spanRead{these: these, done: make(chan struct{})}
			if k := len(spare) - 1; k >= 0 && cap(spare[k]) >= n {
				s.buf, spare = spare[k][:n], spare[:k]
			} else {
				s.buf = make([]byte, n)
			}
			held += n
			ahead = append(ahead, s)
			s.start(r.b.sa.h)
		}
		s := ahead[0]
		<-s.done
		ahead, held = ahead[1:], held-len(s.buf)
		if err := r.alive(); err != nil {
			return err
		}
		if err := r.serveSpan(s.these, s.buf, s.read); err != nil {
			return err
		}
		if r.span == spanMax { // what fn was given was valid until it returned
			spare = append(spare, s.buf)
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
