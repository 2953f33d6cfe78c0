package dagstore

import (
	"errors"
	"io"
	"sync/atomic"
)

const (
	// aheadSize is how much is read at once from a source that is read in order. A
	// system call costs as much as copying some ten kilobytes.
	aheadSize = 64 << 10
	// aheadMax is the largest block that is read so.
	aheadMax = aheadSize / 4
	// aheadGap is what may lie between two blocks that are read one after the other:
	// a section's header.
	aheadGap = 1 << 10
	// aheadAfter is how many blocks in order make a pattern.
	aheadAfter = 4
)

// readahead serves blocks that are read in the order in which they lie in the file,
// as a walk over a DAG or an export does, with one system call for many. A window
// serves each byte at most once, and only going forward, so that what is read again
// is read from the file again. Readers that get in each other's way lose the help
// and nothing else.
type readahead struct {
	win   atomic.Pointer[window]
	next  atomic.Int64 // where the last block ended
	inRow atomic.Int32 // blocks in order until now
}

// window is a part of the file. Its bytes do not change.
type window struct {
	off int64
	buf []byte
	pos atomic.Int64 // nothing before it is served any more
}

// readAt fills p from offset off of r, and returns as io.ReaderAt does.
func (a *readahead) readAt(r io.ReaderAt, p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	if !a.inOrder(p, off, end) {
		return r.ReadAt(p, off)
	}
	if w := a.win.Load(); w != nil {
		from := w.pos.Load()
		if off >= from && end <= w.off+int64(len(w.buf)) && w.pos.CompareAndSwap(from, end) {
			return copy(p, w.buf[off-w.off:]), nil
		}
	}
	buf := make([]byte, aheadSize)
	n, err := r.ReadAt(buf, off)
	if n < len(p) {
		return r.ReadAt(p, off) // what is ahead may be all that cannot be read
	}
	if err == nil || errors.Is(err, io.EOF) {
		w := &window{off: off, buf: buf[:n]}
		w.pos.Store(end)
		a.win.Store(w)
	}
	return copy(p, buf), nil
}

// inOrder says whether the block continues a pattern.
func (a *readahead) inOrder(p []byte, off, end int64) bool {
	last := a.next.Swap(end)
	if off < last || off-last > aheadGap || len(p) > aheadMax {
		a.inRow.Store(0)
		a.win.Store(nil)
		return false
	}
	return a.inRow.Load() >= aheadAfter || a.inRow.Add(1) >= aheadAfter
}
