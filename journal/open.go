package journal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
)

// OpenFile opens the journal in directory dir of fsys, or begins one, and takes
// the lock: [ErrLocked] if another has it, [ErrNewerFormat] or a [*DamageError] if
// the files are not such as this release may change. Nothing is written, but for
// the directory and its lock file, before all of that is known.
//
// All frames of the last segment are verified, and header, footer and succession of
// the sealed ones; the frames of those are verified by Replay.
//
// A tear, which is what a crash leaves of the append it interrupted, is cut and
// counted in [Stats]. It is a tear only if HEAD, which is never ahead of what is
// durable, does not say that there was more: then it is a [*LostError]. A batch that is whole is kept, synced, whether or not its
// Append returned. Reading errors are returned as they are. Files of other names
// are left alone.
func OpenFile(fsys fsio.FS, dir string, opts FileOptions) (*File, error) {
	return openFile(fsys, dir, opts, nil)
}

func openFile(fsys fsio.FS, dir string, opts FileOptions, check func(*File) error) (*File, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	f := &File{files: files{fsys: fsys, dir: dir}, opts: opts}
	if err := f.takeLock(); err != nil {
		return nil, err
	}
	if err := f.open(check); err != nil {
		// The reason matters; what release says does not.
		_ = f.release()
		return nil, err
	}
	return f, nil
}

func (f *File) takeLock() error {
	if err := f.fsys.MkdirAll(f.dir, dirMode); err != nil {
		return fmt.Errorf("journal: open: %w", err)
	}
	info, err := f.fsys.Lstat(f.dir)
	if err != nil {
		return fmt.Errorf("journal: open: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("journal: open: %s is not a directory; links are not followed", f.dir)
	}
	if planted.Bug("journal-no-lock") {
		f.lock = io.NopCloser(nil)
		return nil
	}
	f.lock, err = f.fsys.Lock(f.path(lockName))
	if errors.Is(err, fsio.ErrLocked) {
		return fmt.Errorf("%w: close the other one first: %w", ErrLocked, err)
	}
	if err != nil {
		return fmt.Errorf("journal: open: %w", err)
	}
	return nil
}

// open finds out everything, questions the witnesses, then repairs.
func (f *File) open(check func(*File) error) error {
	f.told.epoch = newEpoch()
	names, err := f.lockTail()
	if err != nil {
		return err
	}
	found, err := f.inspect(names)
	if err != nil {
		return err
	}
	f.show(found)
	if err := f.question(found, check); err != nil {
		return err
	}
	if err := f.sweep(names.temps, found.leftover); err != nil {
		return fmt.Errorf("journal: open: %w", err)
	}
	if len(names.segments) == 0 {
		if err := f.begin(); err != nil {
			return err
		}
		f.tell(Position{}, false)
		return nil
	}
	if err := f.repair(found); err != nil {
		return fmt.Errorf("journal: open: %w", err)
	}
	f.tell(found.head, false)
	return nil
}

// show has f show what was found. Nobody else has f yet.
func (f *File) show(found *findings) {
	if len(found.segments) == 0 {
		return
	}
	if h := found.horizon; h != nil {
		f.mu.horizon, f.mu.baseSize, f.bases = h.at, found.baseSize, []string{baseName(h.at.Seq)}
	}
	f.mu.sealed, f.mu.last = found.sealed, found.last
	f.mu.head, f.mu.end = found.head, found.end
	*f.mu.pointsOf(found.last.number) = points{all: found.points, sparse: len(found.points)}
}

// lockTail lists the journal's files and opens and locks the last segment, if there is
// one.
func (f *File) lockTail() (names, error) {
	for {
		before, err := f.list()
		if err != nil || len(before.segments) == 0 {
			return before, err
		}
		last := before.segments[len(before.segments)-1]
		file, err := f.openSegment(last)
		if isNotExist(err) {
			continue // removed since
		}
		if errors.Is(err, ErrLocked) {
			return before, err
		}
		if err != nil {
			return before, fmt.Errorf("journal: open: %w", err)
		}
		// Who held it may have gone on to the next one.
		now, err := f.list()
		if err == nil && len(now.segments) > 0 && now.segments[len(now.segments)-1] == last {
			f.tail = &tail{file: file}
			return now, nil
		}
		if err := errors.Join(err, file.Close()); err != nil {
			return now, err
		}
	}
}

func newEpoch() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}

// sweep removes what never got its name, and what an interrupted compaction left.
// HORIZON may have its name without that being durable, if the sync of the directory
// failed a former writer: nothing goes before it is.
func (f *File) sweep(temps, leftover []string) error {
	if len(leftover) > 0 {
		if err := planted.Unless("journal-leftovers-removed-unsynced", func() error { return f.fsys.SyncDir(f.dir) }); err != nil {
			return err
		}
	}
	return f.remove(slices.Concat(temps, leftover))
}

// names are the journal's files in its directory.
type names struct {
	segments []string // in order
	bases    []string // in order
	temps    []string
	horizon  bool // there is one
}

func (f *files) list() (names, error) {
	var n names
	entries, err := f.fsys.ReadDir(f.dir)
	if err != nil {
		return n, fmt.Errorf("journal: open: %w", err)
	}
	for _, e := range entries { // in name order, which is that of the numbers
		name := e.Name()
		_, isSegment := parseSegmentName(name)
		_, isBase := parseBaseName(name)
		switch {
		case (isSegment || isBase || name == horizonName) && !e.Type().IsRegular():
			return n, fmt.Errorf("journal: open: %s is %s, not a regular file; put the file itself there", f.path(name), e.Type())
		case isSegment:
			n.segments = append(n.segments, name)
		case isBase:
			n.bases = append(n.bases, name)
		case name == horizonName:
			n.horizon = true
		case isTemp(name) && !e.IsDir():
			n.temps = append(n.temps, name)
		}
	}
	return n, nil
}

// remove removes files, in order.
func (f *File) remove(names []string) error {
	for _, name := range names {
		if err := f.fsys.Remove(f.path(name)); err != nil && !isNotExist(err) {
			return err
		}
	}
	return nil
}

// begin makes the first segment of an empty journal.
func (f *File) begin() error {
	first := segment{number: 1}
	size, err := f.create(&first)
	if err != nil {
		return err
	}
	file, err := f.openSegment(first.name())
	if err != nil {
		return fmt.Errorf("journal: open: %w", err)
	}
	f.tail = &tail{segment: first, file: file, end: segmentHeaderSize, size: size}
	f.mu.last, f.mu.end, f.marked = first, segmentHeaderSize, true
	return nil
}

// outline is what the names and headers of a journal's files tell.
type outline struct {
	segments []segment // from the horizon on
	horizon  *horizon  // nil if nothing was compacted
	baseSize int64
	// leftover: segments below the horizon and bases of other horizons, which an
	// interrupted compaction left.
	leftover []string
}

// outline reads HORIZON and the headers of what it says is kept.
func (f *files) outline(n names) (*outline, error) {
	x := new(outline)
	if n.horizon {
		err := f.read(horizonName, func(file fsio.File, size int64) (err error) {
			x.horizon, err = decodeHorizon(file, size)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for _, name := range n.segments {
		if x.horizon != nil && name < x.horizon.oldest.name() {
			x.leftover = append(x.leftover, name)
			continue
		}
		err := f.read(name, func(file fsio.File, _ int64) error {
			s, err := readSegment(file, name)
			x.segments = append(x.segments, s)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if err := succession(x.segments, x.horizon); err != nil {
		return nil, err
	}
	return x, f.outlineBases(x, n.bases)
}

// outlineBases finds the base of the horizon among the bases called names.
func (f *files) outlineBases(x *outline, names []string) error {
	if len(x.segments) == 0 && len(names) > 0 {
		return &DamageError{File: names[0], What: "there is a base, and neither a segment nor HORIZON"}
	}
	present := ""
	if x.horizon != nil {
		present = baseName(x.horizon.at.Seq)
	}
	found := false
	for _, name := range names {
		if name != present {
			x.leftover = append(x.leftover, name)
			continue
		}
		found = true
		err := f.read(name, func(file fsio.File, size int64) error {
			x.baseSize = size
			_, err := readBase(file, x.horizon.at, size)
			return err
		})
		if err != nil {
			return err
		}
	}
	if present != "" && !found {
		return &DamageError{File: present, What: "the base of the journal's horizon is missing"}
	}
	return nil
}

// findings is what is known of the segments before anything is written.
type findings struct {
	*outline
	sealed []sealedSegment
	last   segment
	head   Position
	end    int64 // of the last segment's frames
	size   int64 // of the last segment's file
	dirty  int64 // bytes from end on that a tear left
	marked bool
	points []seekPoint // of the last segment

	// lastFrame holds the bytes of the last segment's last frame.
	lastFrame []byte
}

// empty reports whether the last segment was never written to.
func (x *findings) empty() bool { return x.end == segmentHeaderSize && x.dirty == 0 }

// inspect reads what open must know. It writes nothing.
func (f *File) inspect(n names) (*findings, error) {
	o, err := f.outline(n)
	if err != nil {
		return nil, err
	}
	x, segments := &findings{outline: o}, o.segments
	for i := len(segments) - 1; i >= 0; i-- {
		s := &segments[i]
		err := f.read(s.name(), func(file fsio.File, size int64) error {
			if i == len(segments)-1 {
				return x.scanLast(file, s, size)
			}
			mayLackFooter := i == len(segments)-2 && x.empty()
			sealed, err := checkSealed(file, s, &segments[i+1], size, mayLackFooter)
			x.sealed = append(x.sealed, sealed)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	// They were found last to first.
	slices.Reverse(x.sealed)
	if x.horizon != nil {
		return x, x.horizon.check(x.head, &x.last, x.end)
	}
	return x, nil
}

// succession checks that the segments are numbered without a gap from the horizon,
// or if there is none, from the beginning. That each begins where the one before
// ends is for its footer to say.
func succession(segments []segment, horizon *horizon) error {
	first := segment{number: 1}
	if horizon != nil {
		first = horizon.oldest
		if len(segments) == 0 || segments[0] != first {
			return &DamageError{File: first.name(), What: "the oldest segment is missing, or is not the one that HORIZON names"}
		}
	}
	for i := range segments {
		s := &segments[i]
		if want := first.number + uint64(i); s.number != want {
			return &DamageError{File: s.name(), What: fmt.Sprintf("segment %d where number %d comes next: a file is missing", s.number, want)}
		}
	}
	if len(segments) > 0 && segments[0].before != first.before {
		return &DamageError{File: segments[0].name(), What: "the first segment does not begin the journal"}
	}
	return nil
}

// scanLast verifies the frames of the last segment and finds their end.
func (x *findings) scanLast(file fsio.File, s *segment, size int64) error {
	sc := newScanner(file, s, size)
	x.marked = true // an empty segment needs no mark
	for {
		more, err := sc.next()
		if err != nil {
			return err
		}
		if !more {
			break
		}
		fr := &sc.frames[len(sc.frames)-1]
		x.marked = fr.kind == frameMark
		x.lastFrame = append(x.lastFrame[:0], sc.data[fr.lo-frameHeaderSize:sc.used]...)
	}
	if sc.stop == frameOK {
		return &DamageError{File: s.name(), Offset: sc.off, What: "the last segment is sealed: its successor is missing"}
	}
	dirty, witness, err := sc.remainder(size)
	if err != nil {
		return err
	}
	if (witness || sc.rot) && !planted.Bug("journal-rot-taken-for-tear") {
		return sc.damage()
	}
	x.last, x.head, x.points = *s, sc.pos, sc.points
	x.end, x.size, x.dirty = sc.off, size, dirty
	return nil
}

// checkSealed verifies that s ends where next begins. If it lacks its footer, which
// only a segment with an empty successor may, all of its frames are verified. The size
// in the result is the one with the footer in place.
func checkSealed(file fsio.File, s, next *segment, size int64, mayLackFooter bool) (sealed sealedSegment, err error) {
	footed, err := hasFooter(file, s, next, size)
	if err != nil {
		return sealed, err
	}
	if !footed {
		if !mayLackFooter {
			return sealed, &DamageError{File: s.name(), Offset: max(0, size-frameHeaderSize), What: "the footer of a sealed segment does not verify"}
		}
		sc := newScanner(file, s, size)
		for more := true; more; {
			if more, err = sc.next(); err != nil {
				return sealed, err
			}
		}
		if sc.pos != next.before {
			return sealed, sc.damage()
		}
		size = sc.off
		if sc.stop != frameOK {
			size += frameHeaderSize // the footer that will be there
		}
	}
	return sealedSegment{segment: *s, end: next.before, size: size}, nil
}

// hasFooter reports whether the file ends with a footer that joins s and next.
func hasFooter(file fsio.File, s, next *segment, size int64) (bool, error) {
	at := size - frameHeaderSize
	if at < segmentHeaderSize {
		return false, nil
	}
	b := make([]byte, frameHeaderSize)
	if n, err := readFull(file, b, at); err != nil || n < len(b) {
		return false, err
	}
	h, ok := parseHeader(b, &s.salt)
	v := verifier{pos: next.before}
	return ok && h.kind == frameFooter && v.checkHeader(&h, at) == "", nil
}

// repair finishes what a crash interrupted, and makes durable what was found. Each step may be interrupted and repeated.
//
// The one frame that may have been found without being durable, the tail's last or
// the footer before an empty tail, is written again before it is synced. The sync
// of a former writer may have failed, and then the kernel holds the frame in memory,
// takes it for clean, and would have this sync succeed without writing it.
func (f *File) repair(x *findings) error {
	file := f.tail.file
	f.tail = &tail{segment: x.last, file: file, end: x.end, size: x.size}
	f.marked = x.marked
	if x.dirty > 0 {
		if err := planted.Unless("journal-keep-torn-tail", func() error { return file.Truncate(x.end) }); err != nil {
			return err
		}
		f.tail.size = x.end
		f.mu.stats.TornTails, f.mu.stats.TornBytes = 1, x.dirty
	}
	if planted.Bug("journal-adopt-without-rewrite") {
		x.lastFrame = nil
	}
	if err := writeAt(file, x.lastFrame, x.end-int64(len(x.lastFrame))); err != nil {
		return err
	}
	if err := f.sync(file.Sync); err != nil {
		return err
	}
	// The name of an empty tail may be as little durable as the footer before it, if
	// a former writer failed between the two. A seal must never outlive it.
	if err := planted.Unless("journal-adopt-without-dir-sync", func() error { return f.fsys.SyncDir(f.dir) }); err != nil {
		return err
	}
	if n := len(x.sealed); n > 0 && x.empty() {
		return f.finishSeal(&x.sealed[n-1])
	}
	return nil
}

func (f *File) finishSeal(s *sealedSegment) error {
	file, err := f.fsys.OpenFile(f.path(s.name()), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	t := &tail{segment: s.segment, file: file, end: s.size - frameHeaderSize, size: s.size}
	return errors.Join(f.seal(t, s.end), file.Close())
}
