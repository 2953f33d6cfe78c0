package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// FileOptions are the options of [OpenFile]; the zero value is the default.
type FileOptions struct {
	// SegmentSize is the size in bytes at which a segment is sealed and the next
	// begun; a single batch may exceed it. Default 64 MiB, at least 1 KiB.
	SegmentSize int64
	// Preallocate is the largest step in bytes by which zeros are written ahead of
	// the appends; steps double up to it from 64 KiB. An append into space that was
	// written before needs no change of the file's metadata, which about halves
	// the time of its sync. Default 4 MiB; negative for none.
	Preallocate int64
}

const (
	defaultSegmentSize = 64 << 20
	minSegmentSize     = 1 << 10
	defaultPreallocate = 4 << 20
	firstPreallocate   = 64 << 10

	fileMode = 0o600
	dirMode  = 0o700
)

func (o FileOptions) withDefaults() (FileOptions, error) {
	if o.SegmentSize == 0 {
		o.SegmentSize = defaultSegmentSize
	}
	if o.SegmentSize < minSegmentSize {
		return o, fmt.Errorf("journal: FileOptions.SegmentSize is %d bytes; the least is %d", o.SegmentSize, minSegmentSize)
	}
	if o.Preallocate == 0 {
		o.Preallocate = defaultPreallocate
	}
	return o, nil
}

// Stats are the counters of a [File] since it was opened, and its size.
type Stats struct {
	Segments  int
	Bytes     int64  // of all segments, without the space written ahead
	OldestSeq uint64 // of the first event above the horizon, or of the first to come
	Horizon   Position
	BaseBytes int64  // of the base of the horizon
	Appends   uint64 // batches
	Syncs     uint64 // of files
	TornTails uint64 // tears that were cut when the journal was opened: 0 or 1
	TornBytes int64  // how much was cut
	Removed   uint64 // segments that fell below the horizon since it was opened
	// HeadErrors counts failures to tell other processes how far the journal is
	// durable. They may show less of it than there is until one succeeds.
	HeadErrors uint64
}

// File is a journal in segmented files; see segment.go for the format.
//
// What it promises about the disk, per segment, where synced is what the last nil
// SyncData covered:
//
//	synced = end   between appends, unless broken
//	[end, size)    zeros
//	Head           = the position after the last frame in [0, synced)
type File struct {
	files
	opts FileOptions
	lock io.Closer

	// appending is held by Append and Close. It guards what only a writer needs.
	appending sync.Mutex
	enc       encoder
	tail      *tail
	next      *tail // the successor, once its name exists, until tail is sealed
	marked    bool  // nothing was appended behind the last mark
	told      headFile

	// compacting is held by Compact and Close, before appending if both are. It guards
	// bases and gone.
	compacting sync.Mutex
	bases      []string // that may have a file, the present one among them
	gone       []string // what is below the horizon, yet to be removed
}

// tail is a segment that frames are written to.
type tail struct {
	segment
	file fsio.File
	end  int64 // where the next frame goes
	size int64 // of the file; all zeros from end on
}

var (
	_ Journal    = (*File)(nil)
	_ Positioner = (*File)(nil)
	_ Compactor  = (*File)(nil)
)

// Append implements [Journal].
func (f *File) Append(events []shard.Event) (Position, error) {
	f.appending.Lock()
	defer f.appending.Unlock()
	head, err := f.writable("append")
	if err != nil || len(events) == 0 {
		return head, err
	}
	frame, end, err := f.enc.batch(events, head, f.tail.end, &f.tail.salt)
	if err != nil {
		return Position{}, err
	}
	if f.next != nil || f.isFull(head, len(frame)) {
		if err := f.rotate(head); err != nil {
			return Position{}, err
		}
		// Offset and salt are the new segment's.
		if frame, end, err = f.enc.batch(events, head, f.tail.end, &f.tail.salt); err != nil {
			return Position{}, err
		}
	}
	if planted.Bug("journal-head-ahead-of-sync") {
		t := f.tail.end
		f.tail.end += int64(len(frame))
		f.tell(end, false)
		f.tail.end = t
	}
	if err := f.write(frame); err != nil {
		return Position{}, err
	}
	f.marked = false
	f.tell(end, false)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.stats.Appends++
	f.mu.head, f.mu.end = end, f.tail.end
	f.mu.pointsOf(f.tail.number).add(seekPoint{off: f.tail.end, before: end})
	return end, nil
}

// writable returns the head, or why op cannot change anything.
func (f *File) writable(op string) (Position, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.mu.closed:
		return Position{}, fmt.Errorf("%s: %w", op, ErrClosed)
	case f.mu.broken != nil:
		return Position{}, fmt.Errorf("%w until it is opened again, since this failed: %w", ErrReadOnly, f.mu.broken)
	}
	return f.mu.head, nil
}

// isFull reports whether a frame of n bytes that follows head belongs in the next
// segment. A footer must fit as well. A segment without an event is never full,
// whatever marks are in it: its successor would begin with the same event and so have
// its name.
func (f *File) isFull(head Position, n int) bool {
	empty := head.Seq == f.tail.before.Seq
	if planted.Bug("journal-mark-fills-a-segment") {
		empty = f.tail.end == segmentHeaderSize
	}
	return !empty && f.tail.end+int64(n)+frameHeaderSize > f.opts.SegmentSize
}

// write puts frame at the end of the tail and makes it durable.
func (f *File) write(frame []byte) error {
	t := f.tail
	f.extend(t, t.end+int64(len(frame)))
	if err := writeAt(t.file, frame, t.end); err != nil {
		return f.undo(t, err)
	}
	t.size = max(t.size, t.end+int64(len(frame)))
	if err := planted.Unless("journal-ack-before-sync", func() error { return f.sync(t.file.SyncData) }); err != nil {
		return f.fail(err)
	}
	// A sync of a file that has lost its name says that it is durable where nobody finds it.
	if fsio.Unlinked(t.file) && !planted.Bug("journal-goes-on-without-a-name") {
		return f.fail(fmt.Errorf("%s was removed while the journal was open", f.path(t.name())))
	}
	t.end += int64(len(frame))
	return nil
}

func writeAt(w io.WriterAt, b []byte, off int64) error {
	n, err := w.WriteAt(b, off)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}

// undo takes back a write behind t.end that failed with cause, before any sync. If
// the shorter file is durable, nothing was written. Otherwise the write may yet be
// found, whole or in part.
func (f *File) undo(t *tail, cause error) error {
	if err := planted.Unless("journal-no-undo", func() error { return t.file.Truncate(t.end) }); err != nil {
		return f.fail(errors.Join(cause, err))
	}
	if err := f.sync(t.file.Sync); err != nil {
		return f.fail(errors.Join(cause, err))
	}
	t.size = t.end
	return fmt.Errorf("journal: append: nothing was written: %w", cause)
}

// fail makes the journal read-only: after cause nobody knows what is on the disk. A
// sync that failed is never tried again on the same descriptor, because the kernel
// may have dropped what it could not write, and would report success.
func (f *File) fail(cause error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !planted.Bug("journal-goes-on-after-unknown") {
		f.mu.broken = cause
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, cause)
}

// sync counts what it calls.
func (f *File) sync(sync func() error) error {
	f.mu.Lock()
	f.mu.stats.Syncs++
	f.mu.Unlock()
	if planted.Bug("journal-retry-failed-sync") && sync() == nil {
		return nil
	}
	return sync()
}

// extend writes zeros ahead so that t's file has at least need bytes. They become
// durable with the frame that made them necessary. It is an accelerator only: if it
// fails, a full disk for one, the frame's own write will grow the file or say why
// it cannot.
func (f *File) extend(t *tail, need int64) {
	if need <= t.size || f.opts.Preallocate < 0 {
		return
	}
	// The footer should find room, too: a disk that fills up later then does not
	// stop the journal in the middle of a rotation.
	size := max(need+frameHeaderSize, min(nextSize(t.size, f.opts.Preallocate), f.opts.SegmentSize))
	if err := writeZeros(t.file, t.size, size); err != nil {
		// What cannot be cut is zeros, or behind a crash a tear like any other.
		_ = t.file.Truncate(t.size)
		return
	}
	t.size = size
}

// nextSize is how long a file of size bytes becomes by one step of preallocation.
func nextSize(size, most int64) int64 {
	return size + min(max(size, firstPreallocate), most)
}

func writeZeros(w io.WriterAt, from, to int64) error {
	for from < to {
		n := min(int64(len(zeros)), to-from)
		if err := writeAt(w, zeros[:n], from); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// rotate seals the tail, which ends at head, and goes on in a new segment:
//
//	successor: temp, header, sync, rename, sync of the directory
//	tail:      footer, cut behind it, sync
//
// Each step may fail and be taken again by the next append; f.next is set from the
// moment the successor's name exists, so that nothing is appended to the tail that
// the successor's header does not know.
func (f *File) rotate(head Position) error {
	if f.next == nil {
		if planted.Bug("journal-seal-before-successor") {
			_ = f.seal(f.tail, head)
		}
		next := segment{number: f.tail.number + 1, before: head}
		size, err := f.create(&next)
		if err != nil {
			return err
		}
		f.next = &tail{segment: next, end: segmentHeaderSize, size: size}
	}
	if f.next.file == nil {
		file, err := f.openSegment(f.next.name())
		if err != nil {
			return fmt.Errorf("journal: append: nothing was written: %w", err)
		}
		f.next.file = file
	}
	if err := planted.Unless("journal-seal-before-successor", func() error { return f.seal(f.tail, head) }); err != nil {
		return err
	}
	old := f.tail
	f.tail, f.next = f.next, nil
	f.marked = true // the footer before it says what a mark in it would
	f.publishRotation(sealedSegment{segment: old.segment, end: head, size: old.size})
	// All of it is durable; an error can say nothing that matters.
	_ = old.file.Close()
	return nil
}

// openSegment opens a segment to write to it, and locks it. The lock on LOCK keeps others
// out only as long as that file has its name, and a segment cannot lose its own without
// that being noticed: whoever took LOCK for stale and removed it still finds the segment
// locked. The tail's lock is held from before it is read, and its successor's from before
// the tail is sealed.
func (f *File) openSegment(name string) (fsio.File, error) {
	file, err := f.fsys.OpenFile(f.path(name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if planted.Bug("journal-no-lock") {
		return file, nil
	}
	if err := planted.Unless("journal-segment-not-locked", func() error { return fsio.TryLock(file) }); err != nil {
		_ = file.Close() // nothing was written
		if errors.Is(err, fsio.ErrLocked) {
			err = fmt.Errorf("%w: %s was removed while it was held: %w", ErrLocked, lockName, err)
		}
		return nil, err
	}
	return file, nil
}

func (f *File) publishRotation(s sealedSegment) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.mu.pointsOf(s.number)
	p.thin(len(p.all))
	f.mu.sealed = append(f.mu.sealed, s)
	f.mu.last, f.mu.end = f.tail.segment, f.tail.end
}

// create makes the file of s, empty and durable, with a fresh salt. It returns the
// file's size. An error that wraps ErrOutcomeUnknown made the journal read-only; after
// one that wraps fs.ErrExist the name is that of a file which was there before, and
// which stays; after any other there is no such file.
func (f *File) create(s *segment) (size int64, err error) {
	// rand.Read never fails.
	rand.Read(s.salt[:])
	path := f.path(s.name())
	// The rename at the end would replace it.
	if _, err := f.fsys.Lstat(path); !isNotExist(err) && !planted.Bug("journal-segment-replaced") {
		if err == nil {
			err = &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
		}
		return 0, fmt.Errorf("journal: begin a segment: nothing was written: %w", err)
	}
	err = fsio.WriteFileAtomic(f.fsys, path, fileMode, func(w fsio.File) error {
		t := tail{segment: *s, file: w, size: segmentHeaderSize}
		if err := writeAt(w, s.header(), 0); err != nil {
			return err
		}
		f.extend(&t, segmentHeaderSize+1)
		size = t.size
		return nil
	})
	if err == nil {
		f.mu.Lock()
		f.mu.stats.Syncs++
		f.mu.Unlock()
		return size, nil
	}
	if _, lerr := f.fsys.Lstat(path); !isNotExist(lerr) {
		return 0, f.fail(err)
	}
	return 0, fmt.Errorf("journal: begin a segment: nothing was written: %w", err)
}

// seal ends t, whose last batch ends at head, with a footer.
func (f *File) seal(t *tail, head Position) error {
	footer := f.enc.bare(frameFooter, head, t.end, &t.salt)
	end := t.end + int64(len(footer))
	err := writeAt(t.file, footer, t.end)
	if err == nil {
		err = t.file.Truncate(end)
	}
	if err != nil {
		return f.undo(t, err)
	}
	if err := f.sync(t.file.Sync); err != nil {
		return f.fail(err)
	}
	t.end, t.size = end, end
	return nil
}

// Head implements [Journal].
func (f *File) Head() Position { return f.head() }

// PositionAt implements [Positioner]. It reads little or nothing for what was
// appended or replayed since the journal was opened, and at most a segment's headers
// otherwise.
func (f *File) PositionAt(seq uint64) (Position, error) { return f.positionAt(seq) }

// Replay implements [Journal]. It reads and verifies in one goroutine while another
// decodes and visits, unless there is little to read.
func (f *File) Replay(seq uint64, visit func(*Batch) error) error { return f.replay(seq, visit) }

// Stats returns the journal's counters.
func (f *File) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.mu.stats
	s.Segments = len(f.mu.sealed) + 1
	s.Bytes = f.mu.end
	s.Horizon, s.BaseBytes, s.OldestSeq = f.mu.horizon, f.mu.baseSize, f.mu.horizon.Seq+1
	for i := range f.mu.sealed {
		s.Bytes += f.mu.sealed[i].size
	}
	return s
}

// Close implements [Journal]. It leaves a mark behind the last batch, so that rot
// in that batch cannot pass for a tear when the journal is opened again.
func (f *File) Close() error {
	f.mu.Lock()
	closed := f.mu.closed
	f.mu.closed = true // which ends a compaction
	f.mu.Unlock()
	f.compacting.Lock()
	defer f.compacting.Unlock()
	f.appending.Lock()
	defer f.appending.Unlock()
	if closed {
		return nil
	}
	f.mu.Lock()
	broken, head := f.mu.broken, f.mu.head
	f.mu.Unlock()
	if broken == nil && f.next == nil && !f.marked {
		f.mark(head)
	}
	if broken == nil {
		f.tell(head, true)
	}
	return f.release()
}

// mark writes the mark. It fails silently: all that was promised is durable, and a
// torn mark is cut.
func (f *File) mark(head Position) {
	if writeAt(f.tail.file, f.enc.bare(frameMark, head, f.tail.end, &f.tail.salt), f.tail.end) == nil {
		_ = f.sync(f.tail.file.SyncData)
	}
}

// release closes what is open, the lock last.
func (f *File) release() error {
	var errs []error
	for _, t := range []*tail{f.tail, f.next} {
		if t != nil && t.file != nil {
			errs = append(errs, t.file.Close())
		}
	}
	if f.told.file != nil {
		_ = f.told.file.Close() // nobody was promised anything
	}
	if err := errors.Join(append(errs, f.lock.Close())...); err != nil {
		return fmt.Errorf("journal: close: %w", err)
	}
	return nil
}
