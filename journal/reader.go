package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// Reader follows the journal that another process, or nobody, writes in the same
// directory. It takes no lock and changes nothing there.
//
// It shows what was durable when [Reader.Refresh] last looked: never what a crash
// could take back. How far that is it takes from HEAD (watermark.go), which the
// writer keeps; where HEAD is missing or torn it shows what witnesses prove: what lies
// before the last frame that is there. Every frame that it goes past is verified, and
// so is the chain.
//
//	Head of the reader ≤ head of the writer
//
// One goroutine calls Refresh, Reload and Replay; any may call the others.
type Reader struct {
	files
	// following is held by Refresh, Reload and Close. It guards what is below.
	following sync.Mutex
	tail      fsio.File // the last segment, open
	proven    uint64    // events up to here need no witness: HORIZON is one
	head      headReader

	told struct {
		sync.Mutex
		mark Watermark
		ok   bool
	}
}

// Watermark is what a writer said last about its journal.
type Watermark struct {
	Head   Position
	Time   time.Time // when it said so
	Epoch  uint64    // another one each time the journal is opened for writing
	Closed bool      // the writer closed the journal
}

var (
	_ Journal    = (*Reader)(nil)
	_ Positioner = (*Reader)(nil)
	_ Compacted  = (*Reader)(nil)
)

// OpenReader opens the journal in directory dir of fsys for reading only. If there is
// none yet, the error wraps fs.ErrNotExist. Others are those of [OpenFile], but for
// [ErrLocked]: a tear is not a fault, since its writer may be about to write it.
func OpenReader(fsys fsio.FS, dir string) (*Reader, error) {
	r := &Reader{files: files{fsys: fsys, dir: dir}}
	r.head.files = &r.files
	if err := r.load(); err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

// Append implements [Journal]: it refuses.
func (r *Reader) Append([]shard.Event) (Position, error) {
	if r.isClosed() {
		return Position{}, fmt.Errorf("append: %w", ErrClosed)
	}
	return Position{}, fmt.Errorf("%w: this process only follows the journal in %s", ErrReadOnly, r.dir)
}

// Head implements [Journal]: how far the journal was durable when Refresh looked.
func (r *Reader) Head() Position { return r.files.head() }

// PositionAt implements [Positioner].
func (r *Reader) PositionAt(seq uint64) (Position, error) { return r.positionAt(seq) }

// Replay implements [Journal]. [ErrCompacted] says that a compaction has overtaken
// the reader: what it needs is gone, and Refresh or Reload are to follow.
func (r *Reader) Replay(seq uint64, visit func(*Batch) error) error { return r.replay(seq, visit) }

// Horizon is as a [Compactor] has it.
func (r *Reader) Horizon() Position { return r.horizon() }

// Base is as a [Compactor] has it. [ErrCompacted] says that there is another by now.
func (r *Reader) Base(visit func(events []shard.Event) error) (Position, error) { return r.base(visit) }

// Watermark returns what the writer said last; false if nothing that could be read.
func (r *Reader) Watermark() (Watermark, bool) {
	r.told.Lock()
	defer r.told.Unlock()
	return r.told.mark, r.told.ok
}

// Close implements [Journal].
func (r *Reader) Close() error {
	r.mu.Lock()
	closed := r.mu.closed
	r.mu.closed = true
	r.mu.Unlock()
	r.following.Lock()
	defer r.following.Unlock()
	if !closed {
		r.release()
	}
	return nil
}

// release closes what is open. Files that were only read have nothing to report.
func (r *Reader) release() {
	for _, file := range []fsio.File{r.tail, r.head.file} {
		if file != nil {
			_ = file.Close()
		}
	}
	r.tail, r.head.file = nil, nil
}

// Refresh looks at the directory again and moves Head. It costs one small read if
// nothing has happened. After an error Head is what can be shown all the same, and
// the next Refresh tries again. Errors wrap
//
//	[ErrCompacted]        the reader was overtaken: its next segment is gone. Reload.
//	[ErrForeignPosition]  another journal is in the directory, or this one from an
//	                      older copy: what was shown is not so any more.
//
// or are a [*DamageError] or the disk's.
func (r *Reader) Refresh() (Position, error) { return r.refresh(false) }

// RefreshByName is Refresh that looks the journal's names up again, at the cost of some
// system calls: one that was moved away, removed or exchanged for another is noticed now,
// and not by one of the next Refreshes.
func (r *Reader) RefreshByName() (Position, error) { return r.refresh(true) }

func (r *Reader) refresh(byName bool) (Position, error) {
	r.following.Lock()
	defer r.following.Unlock()
	if byName {
		r.head.idle = -1
	}
	if r.isClosed() {
		return Position{}, fmt.Errorf("refresh: %w", ErrClosed)
	}
	w, err := r.head.read()
	if err != nil {
		return r.Head(), err
	}
	if w != nil && *w == r.head.seen {
		return r.Head(), nil
	}
	if w != nil {
		if err := r.accept(w); err != nil {
			return r.Head(), err
		}
	}
	if err := r.follow(w); err != nil {
		return r.Head(), err
	}
	if err := r.followHorizon(w); err != nil {
		return r.Head(), err
	}
	r.saw(w)
	return r.Head(), nil
}

// saw remembers that all of w, if that is not nil, has been shown.
func (r *Reader) saw(w *watermark) {
	r.told.Lock()
	defer r.told.Unlock()
	r.told.ok, r.head.seen = w != nil, watermark{}
	if w != nil {
		r.head.seen = *w
		r.told.mark = Watermark{Head: w.pos, Time: time.Unix(0, w.time), Epoch: w.epoch, Closed: w.closed}
	}
}

// accept refuses a watermark of another journal or of another course of this one.
func (r *Reader) accept(w *watermark) error {
	head, last, end := r.place()
	switch {
	case w.pos.Seq < head.Seq, w.pos.Seq == head.Seq && w.pos != head:
		return fmt.Errorf("%w: the journal is at %v, shown was %v", ErrForeignPosition, w.pos, head)
	case w.number < last.number, w.number == last.number && (w.salt != last.salt || w.end < end):
		return fmt.Errorf("%w: another segment takes the place of %s", ErrForeignPosition, last.name())
	}
	return nil
}

func (r *Reader) place() (head Position, last segment, end int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.head, r.mu.last, r.mu.end
}

// follow reads on from where the reader is, to w, or if w is nil as far as witnesses
// prove. The file that is open may not be the one that has the name by now, if the
// directory was exchanged for a copy: a last segment that disappoints is opened again.
func (r *Reader) follow(w *watermark) error {
	reopened := w == nil
	if reopened {
		h, err := r.readHorizon()
		if err != nil {
			return err
		}
		if h != nil {
			r.proven = max(r.proven, h.at.Seq)
		}
		if err := r.reopen(); err != nil {
			return err
		}
	}
	for {
		_, last, _ := r.place()
		info, err := r.tail.Stat()
		if err != nil {
			return fmt.Errorf("journal: refresh: %w", err)
		}
		limit := info.Size()
		here := w != nil && w.number == last.number
		if here {
			limit = w.end
		}
		sc, err := r.scan(limit, w != nil)
		switch {
		case err != nil:
			return err
		case here && sc.off == w.end && sc.pos == w.pos, w == nil && sc.stop != frameOK:
			return nil
		case !here && sc.stop == frameOK:
			if err := r.moveOn(sc.off); err != nil {
				return err
			}
		case !reopened:
			reopened = true
			if err := r.reopen(); err != nil {
				return err
			}
		default:
			d := sc.damage()
			d.What = fmt.Sprintf("HEAD says that segment %d is durable to offset %d with %v: %s", w.number, w.end, w.pos, d.What)
			return d
		}
	}
}

// scan verifies the frames up to limit and shows them: all if they are known to be
// durable, otherwise as many as have a witness. The footer is not gone past, so that
// it is found again if there is no way on yet.
func (r *Reader) scan(limit int64, durable bool) (*scanner, error) {
	head, last, end := r.place()
	sc := newScanner(r.tail, &last, limit)
	read := seekPoint{off: end, before: head}
	sc.begin(read)
	for {
		more, err := sc.next()
		if err != nil || !more {
			return sc, err
		}
		var shown []seekPoint
		start := sc.off - int64(sc.used)
		for i := range sc.frames {
			fr := &sc.frames[i]
			if read.before != head {
				shown = append(shown, read) // the frame behind it is its witness
				head = read.before
			}
			read.before = fr.end
			read.off = start + int64(fr.lo-frameHeaderSize+frameSize(fr.hi-fr.lo))
			// A mark without a later witness may be lost and something else take its place.
			if fr.kind != frameFooter && (durable || planted.Bug("journal-reader-needs-no-witness") || fr.kind == frameBatch && fr.end.Seq <= r.proven) {
				shown = append(shown, read)
				head = read.before
			}
		}
		r.show(last.number, shown)
	}
}

// show moves the head to the last of places, which follow each other in the last
// segment.
func (r *Reader) show(number uint64, places []seekPoint) {
	if len(places) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.mu.pointsOf(number)
	for _, pt := range places {
		p.add(pt)
	}
	pt := places[len(places)-1]
	r.mu.head, r.mu.end = pt.before, pt.off
}

// moveOn goes on in the segment that follows the last one, which has size bytes with
// its footer. It exists: nothing is sealed before.
func (r *Reader) moveOn(size int64) error {
	head, last, _ := r.place()
	name := segmentName(head.Seq + 1)
	next, err := r.openSegment(name)
	if isNotExist(err) {
		return r.overtaken(&segment{number: last.number + 1, before: head})
	}
	if err != nil {
		return err
	}
	if next.number != last.number+1 || next.before != head {
		_ = next.Close()
		return fmt.Errorf("%w: %s does not continue %s", ErrForeignPosition, name, last.name())
	}
	_ = r.tail.Close()
	r.tail = next.File
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.mu.pointsOf(last.number)
	p.thin(len(p.all))
	r.mu.sealed = append(r.mu.sealed, sealedSegment{segment: last, end: head, size: size})
	r.mu.last, r.mu.end = next.segment, segmentHeaderSize
	return nil
}

// overtaken says why there is no segment s, which belongs to this journal.
func (r *Reader) overtaken(s *segment) error {
	h, err := r.readHorizon()
	if err != nil {
		return err
	}
	if h != nil && s.number < h.oldest.number {
		return fmt.Errorf("%w: %s was removed, the horizon is %v; reload", ErrCompacted, s.name(), h.at)
	}
	return fmt.Errorf("%w: %s is gone, and not by a compaction", ErrForeignPosition, s.name())
}

// reopen opens the file that has the name of the last segment, if it is that.
func (r *Reader) reopen() error {
	_, last, _ := r.place()
	file, err := r.openSegment(last.name())
	if isNotExist(err) {
		return r.overtaken(&last)
	}
	if err != nil {
		return err
	}
	if file.segment != last {
		_ = file.Close()
		return fmt.Errorf("%w: another segment has the name %s", ErrForeignPosition, last.name())
	}
	_ = r.tail.Close()
	r.tail = file.File
	return nil
}

// openedSegment is an open file and what its header says.
type openedSegment struct {
	fsio.File
	segment
}

func (r *Reader) openSegment(name string) (o openedSegment, err error) {
	if o.File, err = r.fsys.OpenFile(r.path(name), os.O_RDONLY, 0); err != nil {
		return o, fmt.Errorf("journal: refresh: %w", err)
	}
	if o.segment, err = readSegment(o.File, name); err != nil {
		_ = o.Close()
	}
	return o, err
}

// followHorizon takes over the horizon, if it moved and the head is beyond it.
func (r *Reader) followHorizon(w *watermark) error {
	now := r.horizon()
	if w != nil && w.horizon == now.Seq {
		return nil
	}
	h, err := r.readHorizon()
	if err != nil || h == nil || h.at.Seq <= now.Seq || h.at.Seq > r.Head().Seq {
		return err
	}
	var size int64
	err = r.read(baseName(h.at.Seq), func(file fsio.File, n int64) error {
		size = n
		_, err := readBase(file, h.at, n)
		return err
	})
	if isNotExist(err) {
		return nil // the next compaction has replaced it; its end will be told
	}
	if err != nil {
		return err
	}
	r.setHorizon(h, size)
	return nil
}

func (r *Reader) setHorizon(h *horizon, baseSize int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.horizon, r.mu.baseSize = h.at, baseSize
	r.mu.keepFrom(h.oldest.number)
}

// Reload begins again with what the directory has now: after [ErrCompacted] that is
// the way on, with a base or a checkpoint of the caller's. An error that wraps
// [ErrForeignPosition] says that the directory does not hold what was shown; any
// error leaves the reader as it was.
func (r *Reader) Reload() (Position, error) {
	r.following.Lock()
	defer r.following.Unlock()
	if r.isClosed() {
		return Position{}, fmt.Errorf("reload: %w", ErrClosed)
	}
	n, err := OpenReader(r.fsys, r.dir)
	if err != nil {
		return r.Head(), err
	}
	if err := n.continues(r.Head()); err != nil {
		n.release()
		return r.Head(), err
	}
	r.release()
	r.tail, r.proven = n.tail, n.proven
	r.head.file, r.head.seen, r.head.ignored = n.head.file, n.head.seen, n.head.ignored
	r.told.Lock()
	r.told.mark, r.told.ok = n.told.mark, n.told.ok
	r.told.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.extent = n.mu.extent
	return r.mu.head, nil
}

// continues fails if the journal is known not to hold the position shown.
func (r *Reader) continues(shown Position) error {
	have, err := r.PositionAt(shown.Seq)
	switch {
	case errors.Is(err, ErrCompacted):
		return nil // nobody can tell
	case errors.Is(err, ErrFuturePosition), err == nil && have != shown:
		return fmt.Errorf("%w: the journal is at %v, shown was %v", ErrForeignPosition, r.Head(), shown)
	}
	return err
}

// maxLoads bounds how often a load begins again because the writer changed the
// directory meanwhile.
const maxLoads = 20

// load finds out what there is and follows it. The writer may rotate and compact in
// between: an error counts only if nothing has changed.
func (r *Reader) load() error {
	for range maxLoads {
		before, w, n, err := r.look()
		if err != nil {
			return err
		}
		if err = r.loadFrom(w, n); err == nil {
			return nil
		}
		after, _, _, lookErr := r.look()
		if lookErr != nil || before == after {
			return err
		}
		if r.tail != nil {
			_ = r.tail.Close()
			r.tail = nil
		}
		r.mu.Lock()
		r.mu.extent = extent{}
		r.mu.Unlock()
	}
	return fmt.Errorf("journal: open: %s changed %d times while it was read; try again", r.dir, maxLoads)
}

// look returns HEAD and the names, and both with HORIZON as text to compare.
func (r *Reader) look() (text string, w *watermark, n names, err error) {
	r.head.forget()
	if w, err = r.head.read(); err != nil {
		return "", nil, n, err
	}
	if n, err = r.list(); err != nil {
		return "", nil, n, err
	}
	if len(n.segments) == 0 && !n.horizon && len(n.bases) == 0 {
		return "", nil, n, fmt.Errorf("journal: open: there is no journal in %s yet: %w", r.dir, fs.ErrNotExist)
	}
	h, err := r.readHorizon()
	if err != nil {
		return "", nil, n, err
	}
	text = fmt.Sprintf("%+v", n)
	if w != nil {
		text += fmt.Sprintf("%+v", *w)
	}
	if h != nil {
		text += fmt.Sprintf("%+v", *h)
	}
	return text, w, n, nil
}

// loadFrom opens what w and n tell of. A watermark that does not fit is one that its
// writer could not overwrite, or came with a copy of the directory: it is ignored.
func (r *Reader) loadFrom(w *watermark, n names) error {
	o, err := r.outline(n)
	if err != nil {
		return err
	}
	if w != nil && !o.knows(w) {
		r.head.ignored, w = *w, nil
	}
	sealed, last, err := r.loadSealed(o, w)
	if err != nil {
		return err
	}
	if r.tail, err = r.fsys.OpenFile(r.path(last.name()), os.O_RDONLY, 0); err != nil {
		return fmt.Errorf("journal: open: %w", err)
	}
	r.mu.Lock()
	r.mu.extent = extent{sealed: sealed, last: last, head: last.before, end: segmentHeaderSize}
	r.mu.Unlock()
	if err := r.follow(w); err != nil {
		return err
	}
	if o.horizon != nil {
		head, last, end := r.place()
		if err := o.horizon.check(head, &last, end); err != nil {
			return err
		}
		r.setHorizon(o.horizon, o.baseSize)
	}
	r.saw(w)
	return nil
}

// knows reports whether w can be of this journal as it is now.
func (x *outline) knows(w *watermark) bool {
	return (x.horizon == nil || w.pos.Seq >= x.horizon.at.Seq) &&
		slices.ContainsFunc(x.segments, func(s segment) bool { return s.number == w.number && s.salt == w.salt })
}

// loadSealed checks the segments before the last one that may be shown: the one that
// w names, or else the last there is, unless that is the empty successor of one that
// was not sealed yet.
func (r *Reader) loadSealed(o *outline, w *watermark) (sealed []sealedSegment, last segment, err error) {
	segments := o.segments
	if w != nil {
		n := slices.IndexFunc(segments, func(s segment) bool { return s.number == w.number })
		segments = segments[:n+1]
	}
	for i := range segments[:len(segments)-1] {
		s, next := &segments[i], &segments[i+1]
		footed := true
		err := r.read(s.name(), func(file fsio.File, size int64) (err error) {
			if w == nil && i == len(segments)-2 {
				if footed, err = hasFooter(file, s, next, size); err != nil || !footed {
					return err
				}
			}
			found, err := checkSealed(file, s, next, size, false)
			sealed = append(sealed, found)
			return err
		})
		if err != nil {
			return nil, last, err
		}
		if !footed {
			return sealed, *s, nil
		}
	}
	return sealed, segments[len(segments)-1], nil
}

const (
	// headTries is how often a HEAD that is being written is read before it is called
	// torn.
	headTries = 3
	// headIdle is after how many readings without news its name is looked up again: the
	// directory may be another one by now.
	headIdle = 16
)

// headReader is a reader's end of HEAD.
type headReader struct {
	files   *files
	file    fsio.File // nil if there is none
	idle    int
	seen    watermark // all of it is shown; the zero value if there is no such
	ignored watermark // does not fit what is there
	now     watermark // what was read last
	buf     [headSize]byte
}

// forget has the next read look for everything anew.
func (h *headReader) forget() {
	h.seen, h.ignored, h.idle = watermark{}, watermark{}, -1
}

// read returns what HEAD says, valid until the next call; nil if nothing that could be
// used. An error is the disk's.
func (h *headReader) read() (*watermark, error) {
	w, err := h.parse()
	if err != nil {
		return nil, err
	}
	h.idle++
	if w == nil || *w == h.seen && h.idle%headIdle == 0 || h.idle == 0 {
		if err := h.reopen(); err != nil {
			return nil, err
		}
		if w, err = h.parse(); err != nil {
			return nil, err
		}
	}
	if w != nil && *w == h.ignored {
		return nil, nil
	}
	return w, nil
}

// parse reads the open file.
func (h *headReader) parse() (*watermark, error) {
	if h.file == nil {
		return nil, nil
	}
	for range headTries {
		n, err := readFull(h.file, h.buf[:], 0)
		if err != nil {
			return nil, fmt.Errorf("journal: refresh: %w", err)
		}
		if n == headSize && h.now.parse(&h.buf) {
			return &h.now, nil
		}
	}
	return nil, nil
}

// reopen opens the file that has the name now. Anything but a regular file counts as
// none: opening a pipe would wait for its other end.
func (h *headReader) reopen() error {
	if h.file != nil {
		_ = h.file.Close()
		h.file = nil
	}
	path := h.files.path(headName)
	info, err := h.files.fsys.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		return nil
	}
	if err == nil {
		h.file, err = h.files.fsys.OpenFile(path, os.O_RDONLY, 0)
	}
	if err != nil && !isNotExist(err) {
		return fmt.Errorf("journal: refresh: %w", err)
	}
	return nil
}
