package dagstore

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/mapped"
	"github.com/dagstore/dagstore/shard"
)

// handle is the reader and the index that the accessors of one shard share.
//
//	open       users > 0: one for the loop while it may hand out more, one per accessor
//	shut       no new read begins
//	released   reads = 0: the descriptors are closed
//
// A read in progress keeps them open, whoever closes what meanwhile.
type handle struct {
	key   shard.Key
	gen   uint64 // of the shard's life
	r     io.ReaderAt
	size  int64
	src   *source
	file  *mapped.File // the source, if it may be mapped; else nil
	ahead readahead
	index finder

	users atomic.Int32
	reads atomic.Int64 // + shutBias once shut
	isOff atomic.Bool
	off   chan struct{} // closed by shut
	once  sync.Once

	extent   atomic.Pointer[Extent] // once somebody asked for it
	copied   bool                   // the source is a local copy
	changed  error                  // the source is not what was indexed: blocks count only if they hash
	reported atomic.Bool            // damage was reported
}

const shutBias = -1 << 62

// newHandle joins a source and an index. What of the source is in memory is read through
// a mapping, which m makes; nil: nothing is.
func newHandle(key shard.Key, src *source, f finder, m fsio.Mapper) *handle {
	h := &handle{key: key, r: src.Reader, size: src.size, src: src, index: f, off: make(chan struct{})}
	h.users.Store(1)
	if m != nil {
		h.file = mapped.NewFile(m, src.size)
	}
	return h
}

// enter begins a read; false means that the handle is shut.
func (h *handle) enter() bool {
	if h.reads.Add(1) > 0 {
		return true
	}
	h.leave()
	return false
}

func (h *handle) leave() {
	if h.reads.Add(-1) == shutBias {
		h.once.Do(h.close)
	}
}

// release ends one user's use.
func (h *handle) release() {
	if h.users.Add(-1) == 0 {
		h.shut()
	}
}

// shut ends all use but that of reads in progress.
func (h *handle) shut() {
	if !h.isOff.CompareAndSwap(false, true) {
		return
	}
	close(h.off)
	if h.reads.Add(shutBias) == shutBias {
		h.once.Do(h.close)
	}
}

func (h *handle) close() {
	h.index.close()
	if h.file != nil {
		h.file.Close()
	}
	h.src.Close()
}

// BlockError says that a block could not be served: its bytes are not what its CID
// says, or could not be read. It never stands for a block that is not there.
type BlockError struct {
	Shard  shard.Key
	Cid    fmt.Stringer
	Offset int64 // of the block's data in the shard's CAR; -1 if it was not found out
	Err    error
}

// ErrBlockCorrupt is wrapped by a BlockError whose bytes do not hash to the CID.
var ErrBlockCorrupt = errors.New("block does not match its CID")

func (e *BlockError) Error() string {
	return fmt.Sprintf("shard %q: %s", e.Shard, e.inShard())
}

func (e *BlockError) inShard() string {
	return fmt.Sprintf("block %s at offset %d: %v", e.Cid, e.Offset, e.Err)
}

func (e *BlockError) Unwrap() error { return e.Err }

var errOutside = errors.New("lie outside the source")

// outside returns an error if n bytes at an offset are not all in the source.
func (h *handle) outside(off int64, n int) error {
	if off < 0 || n < 0 || off > h.size-int64(n) {
		return fmt.Errorf("%d bytes at %d %w of %d bytes", n, off, errOutside, h.size)
	}
	return nil
}

// readAt fills p from offset off, or says why it cannot. A file that has shrunk
// ends in io.ErrUnexpectedEOF.
func (h *handle) readAt(p []byte, off int64) error {
	if err := h.outside(off, len(p)); err != nil {
		return err
	}
	if h.file != nil && h.file.Read(p, off) {
		return nil
	}
	n, err := h.ahead.readAt(h.r, p, off)
	if n == len(p) {
		if h.file != nil {
			h.file.Note(off, n)
		}
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("the source ends after %d of %d bytes: %w", n, len(p), io.ErrUnexpectedEOF)
	}
	return err
}
