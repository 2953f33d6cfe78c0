package dagstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/ipfs/go-cid"
	carindex "github.com/ipld/go-car/v2/index"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// ShardAccessor gives access to the blocks of one shard. What it holds stays
// readable until it is closed, whatever becomes of the shard. Its methods may be
// called concurrently.
type ShardAccessor struct {
	h      *handle
	loop   *eventLoop // nil: made by NewShardAccessor
	lv     *live
	bs     ShardBlockstore
	closed atomic.Bool
	used   atomic.Bool // the caller has it in hand
	onUse  atomic.Pointer[func() bool]
	end    atomic.Pointer[chan struct{}] // closed by Close, if anybody waits for it
}

// newAccessor hands out a reference that the machine has counted.
func newAccessor(e *eventLoop, lv *live, holder Holder) *ShardAccessor {
	lv.handle.users.Add(1)
	sa := &ShardAccessor{h: lv.handle, loop: e, lv: lv}
	if holder != nil {
		e.holderOf[sa] = holder
		e.hold(lv, holder)
	}
	sa.bs = ShardBlockstore{sa: sa, verify: !e.d.cfg.SkipVerifyOnRead, byDefault: !e.d.cfg.SkipVerifyOnRead}
	return sa
}

// NewShardAccessor joins a reader and an index. Without an index (nil) it makes one of
// the reader's CAR, in memory. The accessor closes the reader. s names the shard and
// may be nil.
func NewShardAccessor(data mount.Reader, idx carindex.Index, s *Shard) (*ShardAccessor, error) {
	if data == nil {
		return nil, errors.New("shard accessor: a reader is needed")
	}
	size, err := sizeOf(data)
	if err != nil {
		return nil, err
	}
	data = filling(data)
	if idx == nil {
		draft, err := index.Build(context.Background(), data, size, index.BuildOptions{})
		if err != nil {
			return nil, fmt.Errorf("shard accessor: %w", err)
		}
		if idx, err = indexInMemory(draft); err != nil {
			return nil, fmt.Errorf("shard accessor: %w", err)
		}
	}
	var key shard.Key
	if s != nil {
		key = s.key
	}
	f := findIn(idx)
	if err := f.checkSource(data, size); err != nil {
		return nil, err
	}
	sa := &ShardAccessor{h: newHandle(key, &source{Reader: data, size: size, cancel: func() {}}, f, nil)}
	sa.bs = ShardBlockstore{sa: sa, verify: true, byDefault: true}
	return sa, nil
}

// Shard returns the shard's key.
func (sa *ShardAccessor) Shard() shard.Key { return sa.h.key }

// Blockstore returns the shard's blocks as a read-only blockstore. It is a
// [*ShardBlockstore], which can do more than the interface says, and is good until
// the accessor is closed.
func (sa *ShardAccessor) Blockstore() (ReadBlockstore, error) {
	sa.inHand()
	if sa.closed.Load() {
		return nil, ErrClosed
	}
	return &sa.bs, nil
}

// ShardBlockstore is [ShardAccessor.Blockstore] as what it is. After the accessor is closed
// its methods return ErrClosed.
func (sa *ShardAccessor) ShardBlockstore() *ShardBlockstore {
	sa.inHand()
	return &sa.bs
}

// View calls fn with the bytes of a block, which are valid during the call only and
// must not be changed. It does not allocate.
func (sa *ShardAccessor) View(ctx context.Context, c cid.Cid, fn func([]byte) error) error {
	sa.inHand()
	return sa.bs.View(ctx, c, fn)
}

// Reader returns a reader of the shard's CAR file with a position of its own. It is a
// [mount.Reader], which can seek and be read at offsets; the result has the type that
// interfaces of existing clients ask for. Reads after the accessor is closed return
// ErrClosed; closing the reader does not close the accessor.
func (sa *ShardAccessor) Reader() io.Reader {
	sa.inHand()
	return &accessorReader{sa: sa}
}

// Close ends the use of the shard. It waits for nothing: a read in progress ends
// with its bytes, a later one with ErrClosed. A second Close does nothing.
func (sa *ShardAccessor) Close() error {
	if !sa.closed.CompareAndSwap(false, true) && !planted.Bug("store-closed-twice-counted-twice") {
		return nil
	}
	sa.inHand()
	if end := sa.end.Swap(nil); end != nil {
		close(*end)
	}
	if sa.loop == nil {
		sa.h.release()
		return nil
	}
	sa.h.release()
	sa.loop.release(sa)
	return nil
}

// ended returns a channel that Close closes. Whoever asks after Close may get one that
// nothing closes, and looks at closed next.
func (sa *ShardAccessor) ended() <-chan struct{} {
	for {
		if end := sa.end.Load(); end != nil {
			return *end
		}
		end := make(chan struct{})
		if sa.end.CompareAndSwap(nil, &end) {
			return end
		}
	}
}

// inHand notes that the caller received the accessor.
func (sa *ShardAccessor) inHand() {
	if !sa.used.Load() && !sa.used.Swap(true) {
		if stop := sa.onUse.Load(); stop != nil {
			(*stop)()
		}
	}
}

// enter begins a read.
func (sa *ShardAccessor) enter() error {
	if sa.closed.Load() || !sa.h.enter() {
		return ErrClosed
	}
	return nil
}

var _ mount.Reader = (*accessorReader)(nil)

// accessorReader is a mount.Reader over the shared handle.
type accessorReader struct {
	sa  *ShardAccessor
	pos int64
}

func (r *accessorReader) Read(p []byte) (int, error) {
	n, err := r.ReadAt(p, r.pos)
	r.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (r *accessorReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.sa.enter(); err != nil {
		return 0, err
	}
	defer r.sa.h.leave()
	if err := r.sa.h.changed; err != nil { // nobody checks these bytes
		return 0, fmt.Errorf("shard %q: %w", r.sa.h.key, err)
	}
	return r.sa.h.r.ReadAt(p, off)
}

var errSeek = errors.New("seek: invalid whence or negative position")

func (r *accessorReader) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		off += r.pos
	case io.SeekEnd:
		off += r.sa.h.size
	default:
		return 0, errSeek
	}
	if off < 0 {
		return 0, errSeek
	}
	r.pos = off
	return off, nil
}

func (r *accessorReader) Size() int64  { return r.sa.h.size }
func (r *accessorReader) Close() error { return nil }
