package journal

import (
	"fmt"
	"os"
)

// window is a run of verified frames on its way from the reader to the visits.
type window struct {
	name   string
	off    int64
	text   string // what the frames' payloads are cut from
	frames []frameRef
	err    error
}

// replayAhead is how many windows the reader may be ahead of the visits.
const replayAhead = 2

// Replay implements [Journal]. It reads and verifies in one goroutine while another
// decodes and visits.
func (f *File) Replay(seq uint64, visit func(*Batch) error) error {
	r := replay{f: f, seq: seq, full: make(chan *window), free: make(chan *window, replayAhead), quit: make(chan struct{})}
	segments, err := r.begin()
	if err != nil {
		return err
	}
	for range replayAhead {
		r.free <- new(window)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(r.full)
		if err := r.read(segments); err != nil {
			r.send(&window{err: err})
		}
	}()
	err = r.visit(visit)
	close(r.quit)
	<-done
	return err
}

// replay is one call of Replay.
type replay struct {
	f    *File
	seq  uint64
	full chan *window  // from the reader to the visits
	free chan *window  // and back
	quit chan struct{} // closed when nobody visits any more
}

// begin takes a snapshot of the segments that hold anything after seq. The last of
// them ends where the journal now ends.
func (r *replay) begin() ([]sealedSegment, error) {
	f := r.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if oldest := f.oldestLocked(); r.seq+1 < oldest {
		return nil, fmt.Errorf("%w: replay from seq %d, the oldest kept is %d", ErrCompacted, r.seq+1, oldest)
	}
	all := append(f.mu.sealed[:len(f.mu.sealed):len(f.mu.sealed)], sealedSegment{segment: f.mu.last, end: f.mu.head, size: f.mu.end})
	return all[firstAfter(len(all), r.seq, func(i int) uint64 { return all[i].end.Seq }):], nil
}

func (r *replay) read(segments []sealedSegment) error {
	for i := range segments {
		if err := r.readSegment(&segments[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *replay) readSegment(s *sealedSegment) error {
	file, err := r.f.fsys.OpenFile(r.f.path(s.name()), os.O_RDONLY, 0)
	if isNotExist(err) {
		if s.before.Seq+1 < r.f.Stats().OldestSeq {
			return fmt.Errorf("%w: %s was removed during the replay", ErrCompacted, s.name())
		}
		return &DamageError{File: s.name(), What: "the segment was removed while the journal was open"}
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
	sc.skip = r.seq
	for {
		more, err := sc.next()
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if !r.pass(sc) {
			return nil
		}
	}
	if sc.off != s.size || sc.pos != s.end {
		return sc.damage()
	}
	return nil
}

// pass hands the scanner's frames to the visits; false if nobody wants them.
func (r *replay) pass(sc *scanner) bool {
	if sc.frames[len(sc.frames)-1].end.Seq <= r.seq {
		return true
	}
	select {
	case w := <-r.free:
		// One copy for all strings of the window: the scanner's buffer is its own.
		w.name, w.off, w.text = sc.name, sc.off, string(sc.data)
		w.frames = append(w.frames[:0], sc.frames...)
		return r.send(w)
	case <-r.quit:
		return false
	}
}

func (r *replay) send(w *window) bool {
	select {
	case r.full <- w:
		return true
	case <-r.quit:
		return false
	}
}

func (r *replay) visit(visit func(*Batch) error) error {
	var b Batch
	for w := range r.full {
		if w.err != nil {
			return w.err
		}
		for i := range w.frames {
			fr := &w.frames[i]
			if fr.kind != frameBatch || fr.end.Seq <= r.seq {
				continue
			}
			if r.f.isClosed() {
				return fmt.Errorf("replay: %w", ErrClosed)
			}
			var err error
			if b.Events, err = decodeBatch(b.Events, w.text[fr.lo:fr.hi], fr.end.Seq-uint64(fr.count)+1, fr.count); err != nil {
				return &DamageError{File: w.name, Offset: w.off, What: "in a frame before it: " + err.Error()}
			}
			b.End = fr.end
			if err := visit(&b); err != nil {
				return err
			}
		}
		r.free <- w
	}
	if r.f.isClosed() {
		return fmt.Errorf("replay: %w", ErrClosed)
	}
	return nil
}

func (f *File) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.closed
}
