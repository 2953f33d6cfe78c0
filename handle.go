package dagstore

import (
	"errors"
	"fmt"
	"io"
	"os"
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
	r     io.ReaderAt
	size  int64
	src   *source
	data  []byte // the source mapped, if it is a copy of the store's own; else nil
	unmap func() error
	file  *mapped.File // the source, if it is a file of others that may be mapped
	ahead readahead
	index finder

	users atomic.Int32
	reads atomic.Int64 // + shutBias once shut
	isOff atomic.Bool
	off   chan struct{} // closed by shut
	once  sync.Once

	copied   bool        // the source is a local copy
	reported atomic.Bool // damage was reported
}

const shutBias = -1 << 62

// newHandle joins a source and an index. Files of others are read through a mapping
// only if mapFiles is set, and as package mapped has it.
func newHandle(key shard.Key, src *source, f finder, mapFiles bool) *handle {
	h := &handle{key: key, r: src.Reader, size: src.size, src: src, index: f, off: make(chan struct{})}
	h.users.Store(1)
	if f, ok := src.Reader.(*os.File); ok && mapFiles {
		h.file = mapped.NewFile(f, src.size)
	}
	if m, ok := src.Reader.(fsio.Mapper); ok {
		if data, unmap, err := m.Map(); err == nil {
			h.data, h.unmap = data, unmap
		}
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
	if h.unmap != nil {
		h.unmap()
	}
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
	return fmt.Sprintf("shard %q: block %s at offset %d: %v", e.Shard, e.Cid, e.Offset, e.Err)
}

func (e *BlockError) Unwrap() error { return e.Err }

// readAt fills p from offset off, or says why it cannot. A file that has shrunk
// ends in io.ErrUnexpectedEOF.
func (h *handle) readAt(p []byte, off int64) error {
	if off < 0 || off > h.size-int64(len(p)) {
		return fmt.Errorf("%d bytes at %d lie outside the source of %d bytes", len(p), off, h.size)
	}
	if off+int64(len(p)) <= int64(len(h.data)) && mapped.Copy(p, h.data[off:]) {
		return nil
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
