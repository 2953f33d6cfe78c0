package journal

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"

	"github.com/dagstore/dagstore/internal/fsio"
)

// files is what [File] and [Reader] have in common: which segments there are, how
// far they may be read, and the reading.
type files struct {
	fsys fsio.FS
	dir  string

	// mu guards what readers need. It is never held during I/O.
	mu struct {
		sync.Mutex
		extent
		closed bool
		// Of a File only.
		stats  Stats
		broken error
	}
}

// extent is a journal in files as far as it may be shown:
//
//	horizon.Seq ≤ head.Seq
//	the oldest segment begins at or before horizon
//	Head = the position after the last frame in [0, end) of the last segment
type extent struct {
	head     Position
	horizon  Position // the zero Position if nothing was compacted
	baseSize int64    // of the base file at horizon
	sealed   []sealedSegment
	last     segment
	end      int64 // of the last segment's frames
	// points by segment number. A segment that is not in it has none.
	points map[uint64]*points
}

type sealedSegment struct {
	segment
	end  Position
	size int64
}

// pointsOf returns the points of segment number, to read or to add to.
func (x *extent) pointsOf(number uint64) *points {
	p := x.points[number]
	if p == nil {
		p = new(points)
		if x.points == nil {
			x.points = map[uint64]*points{}
		}
		x.points[number] = p
	}
	return p
}

// from returns the segments that hold anything after seq, the last of which ends
// where the journal now ends, and the place to begin in the first of them.
func (x *extent) from(seq uint64) ([]sealedSegment, seekPoint) {
	all := append(x.sealed[:len(x.sealed):len(x.sealed)], sealedSegment{segment: x.last, end: x.head, size: x.end})
	all = all[firstAfter(len(all), seq, func(i int) uint64 { return all[i].end.Seq }):]
	if len(all) == 0 {
		return nil, seekPoint{}
	}
	p := x.points[all[0].number]
	if p == nil {
		p = new(points)
	}
	return all, p.near(&all[0].segment, seq)
}

// keepFrom forgets the segments before number. It returns their names, oldest
// first.
func (x *extent) keepFrom(number uint64) (gone []string) {
	for len(x.sealed) > 0 && x.sealed[0].number < number {
		delete(x.points, x.sealed[0].number)
		gone = append(gone, x.sealed[0].name())
		x.sealed = x.sealed[1:]
	}
	return gone
}

func (f *files) path(name string) string { return filepath.Join(f.dir, name) }

// head is the position up to which the journal may be shown.
func (f *files) head() Position {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.head
}

func (f *files) horizon() Position {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.horizon
}

func (f *files) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.closed
}

// positionAt implements [Positioner]: from memory for the newest batches and for the
// ends of segments, by reading frame headers from the next seek point on otherwise.
func (f *files) positionAt(seq uint64) (Position, error) {
	segments, start, pos, err := f.locate(seq)
	if err != nil || segments == nil {
		return pos, err
	}
	err = f.readSegment(&segments[0], start, math.MaxUint64, func(sc *scanner) error {
		for i := range sc.frames {
			if end := sc.frames[i].end; end.Seq >= seq {
				pos = end
				return errEnough
			}
		}
		return nil
	})
	if err == errEnough {
		return pos, nil
	}
	return Position{}, err
}

// locate finds the position in memory, or the segment and the place in it from where
// it can be found.
func (f *files) locate(seq uint64) (segments []sealedSegment, start seekPoint, pos Position, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known, err := knownPosition(seq, f.mu.head, f.mu.horizon)
	switch {
	case f.mu.closed:
		return nil, start, pos, fmt.Errorf("position at %d: %w", seq, ErrClosed)
	case err != nil || known != nil:
		if known != nil {
			pos = *known
		}
		return nil, start, pos, err
	}
	segments, start = f.mu.from(seq - 1)
	if s := &segments[0]; s.end.Seq == seq {
		return nil, start, s.end, nil
	} else if p := f.mu.points[s.number]; p != nil {
		if pos, ok := p.at(seq); ok {
			return nil, start, pos, nil
		}
	}
	return segments[:1], start, pos, nil
}

// knownPosition is what every journal can say of the position at seq without
// looking; nil, nil if nothing.
func knownPosition(seq uint64, head, horizon Position) (*Position, error) {
	switch {
	case seq == 0:
		return new(Position), nil
	case seq > head.Seq:
		return nil, fmt.Errorf("%w: seq %d, the head is %v", ErrFuturePosition, seq, head)
	case seq == head.Seq:
		return &head, nil
	case seq < horizon.Seq:
		return nil, fmt.Errorf("%w: seq %d, the horizon is %v", ErrCompacted, seq, horizon)
	case seq == horizon.Seq:
		return &horizon, nil
	}
	return nil, nil
}

// readSegment reads s from start to its end and calls pass with every run of frames.
// Of batches that end at or before skip only the header is verified. An error of
// pass is returned as it is.
func (f *files) readSegment(s *sealedSegment, start seekPoint, skip uint64, pass func(sc *scanner) error) error {
	file, err := f.fsys.OpenFile(f.path(s.name()), os.O_RDONLY, 0)
	if isNotExist(err) {
		return f.lost(&s.segment)
	}
	if err != nil {
		return fmt.Errorf("journal: replay: %w", err)
	}
	// A file that was only read has nothing to report on closing.
	defer func() { _ = file.Close() }()
	now, err := readSegment(file, s.name())
	if err != nil {
		return err
	}
	if now != s.segment {
		return &DamageError{File: s.name(), What: "the segment was replaced while the journal was open"}
	}
	sc := newScanner(file, &s.segment, s.size)
	sc.begin(start)
	sc.skip = skip
	for {
		more, err := sc.next()
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if err := pass(sc); err != nil {
			return err
		}
	}
	if sc.off != s.size || sc.pos != s.end {
		return sc.damage()
	}
	if start.off == segmentHeaderSize {
		f.learn(s.number, sc.points)
	}
	return nil
}

// learn keeps the points that were met when a sealed segment was read, if none are
// known.
func (f *files) learn(number uint64, found []seekPoint) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.mu.sealed)
	if n == 0 || number < f.mu.sealed[0].number || number > f.mu.sealed[n-1].number {
		return
	}
	if p := f.mu.pointsOf(number); len(p.all) == 0 {
		p.all, p.sparse = found, len(found)
	}
}

// lost says why s has no file: HORIZON, which is durable before anything is removed,
// lies beyond it, or it is damage.
func (f *files) lost(s *segment) error {
	h, err := f.readHorizon()
	if err != nil {
		return err
	}
	if h != nil && s.number < h.oldest.number {
		return fmt.Errorf("%w: %s was removed, the horizon is %v", ErrCompacted, s.name(), h.at)
	}
	return &DamageError{File: s.name(), What: "the segment was removed while the journal was open"}
}

// read calls visit with the file called name, opened for reading.
func (f *files) read(name string, visit func(file fsio.File, size int64) error) error {
	file, err := f.fsys.OpenFile(f.path(name), os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("journal: open: %w", err)
	}
	info, err := file.Stat()
	if err == nil {
		err = visit(file, info.Size())
	}
	// A file that was only read has nothing to report on closing.
	_ = file.Close()
	return err
}
