package dagstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// ReadBlockstore is a read-only blockstore.
type ReadBlockstore interface {
	Has(context.Context, cid.Cid) (bool, error)
	Get(context.Context, cid.Cid) (blocks.Block, error)
	GetSize(context.Context, cid.Cid) (int, error)
	AllKeysChan(ctx context.Context) (<-chan cid.Cid, error)
	HashOnRead(enabled bool)
}

// ShardBlockstore is the blocks of one shard, read-only. It satisfies boxo's Blockstore
// and Viewer. A block that is not there is
// ipld.ErrNotFound, as is an undefined CID; one that cannot be served is a [*BlockError].
// If the file holds a block several times, and one copy is rotten, another is served.
// Blocks are found by multihash, whatever the codec of the CID. Identity CIDs are answered from
// themselves. Bytes are checked against the CID unless the store was configured
// otherwise.
type ShardBlockstore struct {
	sa        *ShardAccessor
	verify    bool
	byDefault bool
}

var _ ReadBlockstore = (*ShardBlockstore)(nil)

// HashOnRead(true) checks the bytes of every block even if the store is configured
// not to; HashOnRead(false) does what the store is configured to do. Call it before
// the first read.
func (b *ShardBlockstore) HashOnRead(enabled bool) { b.verify = enabled || b.byDefault }

// locate finds a block in the index, as finder.find does. The accessor must be entered.
func (b *ShardBlockstore) locate(c cid.Cid, m string, checked bool) (location, error) {
	h := b.sa.h
	loc, found, err := h.index.find(h.r, m, checked)
	var outside error // nobody makes room for what an entry says that rotted
	if err == nil && found {
		if outside = h.outside(loc.data, loc.size); outside != nil && !checked {
			return b.locate(c, m, true)
		}
	}
	switch {
	case outside != nil:
		return loc, b.cannot(&BlockError{Shard: h.key, Cid: c, Offset: loc.data, Err: outside})
	case err != nil:
		b.sa.noteDamage(err)
		return loc, b.cannot(&BlockError{Shard: h.key, Cid: c, Offset: -1, Err: fmt.Errorf("index: %w", err)})
	case !found:
		return loc, ipld.ErrNotFound{Cid: c}
	}
	return loc, nil
}

// locateInMemory is locate for as long as nothing has to be waited for. known is false
// otherwise, and whenever something is not as it should be: then locate says what.
func (b *ShardBlockstore) locateInMemory(c cid.Cid, m string) (loc location, known bool, err error) {
	h := b.sa.h
	loc, found, known, err := h.index.findInMemory(h.r, m)
	switch {
	case err != nil || !known || found && h.outside(loc.data, loc.size) != nil:
		return loc, false, nil
	case !found:
		return loc, true, ipld.ErrNotFound{Cid: c}
	}
	return loc, true, nil
}

// read reads a block, which is as long as p, into it, and checks it. If it is rotten, or
// cannot be read, and the file holds it once more, what is returned is that copy.
func (b *ShardBlockstore) read(c cid.Cid, m string, loc location, p []byte) ([]byte, error) {
	err := b.sa.h.readAt(p, loc.data)
	if err == nil {
		err = b.check(m, p)
	}
	if err == nil {
		return p, nil
	}
	err, sound := b.blame(c, m, loc, err)
	if sound {
		if p := b.readAnother(m, loc, p); p != nil {
			return p, nil
		}
	}
	return nil, err
}

// maxCopies is how many places of a block in one file are tried.
const maxCopies = 64

// readAnother reads a block at the first other place in the file where it is good, into p
// if it is as long as that; nil if there is none.
func (b *ShardBlockstore) readAnother(m string, first location, p []byte) []byte {
	h, tried := b.sa.h, 0
	var good []byte
	err := h.index.places(h.r, m, func(loc location) bool {
		if loc == first || h.outside(loc.data, loc.size) != nil {
			return true
		}
		if len(p) != loc.size {
			p = make([]byte, loc.size)
		}
		if h.readAt(p, loc.data) == nil && b.check(m, p) == nil {
			good = p
			return false
		}
		tried++
		return tried < maxCopies
	})
	b.sa.noteDamage(err)
	return good
}

// check holds the bytes of a block against its multihash.
func (b *ShardBlockstore) check(m string, p []byte) error {
	if !b.verify && b.sa.h.changed == nil || planted.Bug("store-block-not-verified") {
		return nil
	}
	if code, digest, _ := cids.SplitString(m); !carscan.Matches(code, digest, p) {
		return ErrBlockCorrupt
	}
	return nil
}

// blame says what is wrong if the block that the index names could not be read, or is
// another one: the index, whose entry was not checked again before it was used, or the
// source. sound says that the index can be asked for another place.
func (b *ShardBlockstore) blame(c cid.Cid, m string, loc location, err error) (_ error, sound bool) {
	now, lerr := b.locate(c, m, true)
	switch {
	case lerr != nil && !ipld.IsNotFound(lerr):
		return lerr, false
	case lerr != nil || now != loc:
	case errors.Is(err, ErrBlockCorrupt), errors.Is(err, io.ErrUnexpectedEOF):
		b.sa.noteBadSource(&BlockError{Shard: b.sa.h.key, Cid: c, Offset: loc.data, Err: err})
	}
	return b.cannot(&BlockError{Shard: b.sa.h.key, Cid: c, Offset: loc.data, Err: err}), true
}

// cannot is what a reader is told of a block that is there and cannot be served: if that
// passes, or if the source is not what was indexed, it is away; if its bytes are bad, or
// the index is, it is what e says.
func (b *ShardBlockstore) cannot(e *BlockError) error {
	h := b.sa.h
	u := &UnavailableError{Multihash: multihashOf(e.Cid), Shards: []shard.Key{h.key}, Reason: e, Since: time.Now()}
	var damaged *index.DamagedError
	switch {
	case h.changed != nil:
		e.Err = fmt.Errorf("%w: %w", h.changed, e.Err)
		return u
	case errors.Is(e.Err, io.ErrUnexpectedEOF), errors.As(e.Err, &damaged), errors.Is(e.Err, errOutside),
		errors.Is(e.Err, ErrClosed), errors.Is(e.Err, index.ErrClosed), sourceFault(e.Err) == fsm.FaultSource:
		return e
	}
	b.sa.noteUnreadable(e)
	u.RetryAfter = lackRetry
	return u
}

// multihashOf is the multihash of a block that an error names.
func multihashOf(s fmt.Stringer) mh.Multihash {
	if c, ok := s.(cid.Cid); ok {
		return c.Hash()
	}
	return nil
}

// begin enters the accessor and takes the CID apart. With a nil error the caller
// must leave. A CID that is undefined, or has no well-formed multihash, is of no block:
// it is not found.
func (b *ShardBlockstore) begin(ctx context.Context, c cid.Cid) (m string, code uint64, digest []byte, err error) {
	if err := ctx.Err(); err != nil {
		return "", 0, nil, err
	}
	m = cids.Multihash(c)
	code, digest, ok := cids.SplitString(m)
	if err := b.sa.enter(); err != nil {
		return "", 0, nil, err
	}
	if !ok {
		b.sa.h.leave()
		return "", 0, nil, ipld.ErrNotFound{Cid: c}
	}
	return m, code, digest, nil
}

// Has says whether the shard holds the block. It does not read the block.
func (b *ShardBlockstore) Has(ctx context.Context, c cid.Cid) (bool, error) {
	m, code, _, err := b.begin(ctx, c)
	if ipld.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer b.sa.h.leave()
	if code == mh.IDENTITY {
		return true, nil
	}
	_, err = b.locate(c, m, false) // the digest is compared, the rest is not used
	if ipld.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// GetSize returns the length of a block. It does not read the block.
func (b *ShardBlockstore) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	m, code, digest, err := b.begin(ctx, c)
	if err != nil {
		return -1, err
	}
	defer b.sa.h.leave()
	if code == mh.IDENTITY {
		return len(digest), nil
	}
	loc, err := b.locate(c, m, true)
	if err != nil {
		return -1, err
	}
	return loc.size, nil
}

// Get returns a block.
func (b *ShardBlockstore) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	p, err := b.bytes(ctx, c)
	if err != nil {
		return nil, err
	}
	return blocks.NewBlockWithCid(p, c)
}

// bytes returns the bytes of a block, which are the caller's.
func (b *ShardBlockstore) bytes(ctx context.Context, c cid.Cid) ([]byte, error) {
	m, code, digest, err := b.begin(ctx, c)
	if err != nil {
		return nil, err
	}
	defer b.sa.h.leave()
	if code == mh.IDENTITY {
		return []byte(string(digest)), nil
	}
	loc, err := b.locate(c, m, false)
	if err != nil {
		return nil, err
	}
	return b.read(c, m, loc, make([]byte, loc.size))
}

// viewBuffers holds the buffers of View.
var viewBuffers = sync.Pool{New: func() any { return new([]byte) }}

// maxPooled is the largest buffer that is kept for another View.
const maxPooled = 4 << 20

// View calls fn with the bytes of a block, which are valid during the call only and
// must not be changed. An error of fn is returned as it is.
func (b *ShardBlockstore) View(ctx context.Context, c cid.Cid, fn func([]byte) error) error {
	m, code, digest, err := b.begin(ctx, c)
	if err != nil {
		return err
	}
	defer b.sa.h.leave()
	if code == mh.IDENTITY {
		return fn(digest)
	}
	loc, err := b.locate(c, m, false)
	if err != nil {
		return err
	}
	buf := viewBuffers.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= maxPooled {
			viewBuffers.Put(buf)
		}
	}()
	if cap(*buf) < loc.size {
		*buf = make([]byte, loc.size)
	}
	p, err := b.read(c, m, loc, (*buf)[:loc.size])
	if err != nil {
		return err
	}
	return fn(p)
}

// Put is not supported: it returns an error that wraps errors.ErrUnsupported.
func (b *ShardBlockstore) Put(context.Context, blocks.Block) error { return b.readOnly("Put") }

// PutMany is not supported: it returns an error that wraps errors.ErrUnsupported.
func (b *ShardBlockstore) PutMany(context.Context, []blocks.Block) error {
	return b.readOnly("PutMany")
}

// DeleteBlock is not supported: it returns an error that wraps errors.ErrUnsupported.
func (b *ShardBlockstore) DeleteBlock(context.Context, cid.Cid) error {
	return b.readOnly("DeleteBlock")
}

func (b *ShardBlockstore) readOnly(op string) error {
	return fmt.Errorf("shard %q is read-only: %s: %w", b.sa.h.key, op, errors.ErrUnsupported)
}

// AllKeysChan sends the CIDs of all blocks, as raw CIDv1 since blocks are found by
// multihash, in no particular order and without duplicates. The channel closes when all
// were sent, or before that when ctx or the accessor ends, or the index cannot be read
// further: the store logs that and counts it (Metrics), and AllKeysChanWithErr tells.
func (b *ShardBlockstore) AllKeysChan(ctx context.Context) (<-chan cid.Cid, error) {
	keys, _, err := b.allKeys(ctx, func(err error) {
		if b.sa.loop != nil {
			b.sa.loop.d.listingCut(fmt.Sprintf("shard %q", b.sa.h.key), err)
		}
	})
	return keys, err
}

// AllKeysChanWithErr is AllKeysChan with a function that waits until the channel is
// closed and then says why it was closed before all keys were sent; nil: they all were.
// Call it when the channel is drained. It makes the blockstore boxo's AllKeysChanWithErrer.
func (b *ShardBlockstore) AllKeysChanWithErr(ctx context.Context) (<-chan cid.Cid, func() error, error) {
	return b.allKeys(ctx, func(error) {})
}

func (b *ShardBlockstore) allKeys(ctx context.Context, cut func(error)) (<-chan cid.Cid, func() error, error) {
	ended := b.sa.ended()
	if err := b.sa.enter(); err != nil {
		return nil, nil, err
	}
	h := b.sa.h
	out := make(chan cid.Cid)
	var why error // until out is closed the goroutine's
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(out)
		defer h.leave()
		var last string
		why = h.index.forEach(func(m mh.Multihash, _ uint64) error {
			if string(m) == last {
				return nil
			}
			last = string(m)
			if b.sa.closed.Load() {
				return ErrClosed
			}
			select {
			case out <- cid.NewCidV1(cid.Raw, mh.Multihash(last)):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			case <-ended:
				return ErrClosed
			case <-h.off:
				return ErrClosed
			}
		})
		if why == nil {
			return
		}
		b.sa.noteDamage(why)
		why = fmt.Errorf("list the keys of shard %q: %w", h.key, why)
		cut(why)
	}()
	return out, func() error { <-done; return why }, nil
}

// noteDamage has a damaged index built again, once per handle.
func (sa *ShardAccessor) noteDamage(err error) {
	var damaged *index.DamagedError
	if err == nil || sa.loop == nil || !errors.As(err, &damaged) || sa.h.reported.Swap(true) {
		return
	}
	sa.loop.damaged(sa.lv, sa.h, fsm.FaultIndex, err)
}

// noteBadSource has a local copy fetched afresh that was cut off, or whose bytes are not
// what was indexed, once per handle. If blocks were not hashed when they were indexed,
// the source's bytes may be as bad, and nothing is done about those. That a source which
// is read in place has such bytes is noted, so that people see it and can recover it.
func (sa *ShardAccessor) noteBadSource(err error) {
	if sa.loop == nil || sa.h.changed != nil || sa.h.copied && sa.loop.d.cfg.SkipVerifyOnIndex && errors.Is(err, ErrBlockCorrupt) || sa.h.reported.Swap(true) {
		return
	}
	fault := fsm.FaultSource
	if sa.h.copied {
		fault = fsm.FaultCopy
	}
	sa.loop.damaged(sa.lv, sa.h, fault, err)
}

// noteUnreadable has the shared reader and index closed, once per handle: the next
// acquire finds out whether they can be had.
func (sa *ShardAccessor) noteUnreadable(err error) {
	if sa.loop == nil || sa.h.reported.Swap(true) {
		return
	}
	sa.loop.damaged(sa.lv, sa.h, fsm.FaultPassing, err)
}
