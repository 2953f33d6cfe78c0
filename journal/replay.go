package journal

import (
	"errors"
	"fmt"
)

// window is a run of verified frames on its way from the reader to the visits.
type window struct {
	name   string
	off    int64
	text   string // what the frames' payloads are cut from
	frames []frameRef
	err    error
}

const (
	// replayAhead is how many windows the reader may be ahead of the visits.
	replayAhead = 2
	// smallReplay is up to how many bytes a replay is not worth a goroutine.
	smallReplay = 512 << 10
)

// errEnough ends a reading early.
var errEnough = errors.New("enough")

// replay is one call of Replay.
type replay struct {
	f     *files
	seq   uint64
	visit func(*Batch) error
	batch Batch

	full chan *window  // from the reader to the visits
	free chan *window  // and back
	quit chan struct{} // closed when nobody visits any more
}

// replay implements Replay. It reads and verifies in one goroutine while another
// decodes and visits, unless there is little to read.
func (f *files) replay(seq uint64, visit func(*Batch) error) error {
	r := replay{f: f, seq: seq, visit: visit}
	segments, start, err := r.begin()
	if err != nil {
		return err
	}
	todo := -start.off
	for i := range segments {
		todo += segments[i].size
	}
	if todo <= smallReplay {
		err = r.inline(segments, start)
	} else {
		err = r.ahead(segments, start)
	}
	if err == nil && f.isClosed() {
		err = fmt.Errorf("replay: %w", ErrClosed)
	}
	return err
}

// begin takes a snapshot of the segments that hold anything after seq, and the place
// to begin.
func (r *replay) begin() ([]sealedSegment, seekPoint, error) {
	f := r.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.seq < f.mu.horizon.Seq {
		return nil, seekPoint{}, fmt.Errorf("%w: replay from seq %d, the oldest kept is %d", ErrCompacted, r.seq+1, f.mu.horizon.Seq+1)
	}
	segments, start := f.mu.from(r.seq)
	return segments, start, nil
}

// read reads and verifies segments and calls pass with every run of frames that has
// any to visit.
func (r *replay) read(segments []sealedSegment, start seekPoint, pass func(sc *scanner) error) error {
	for i := range segments {
		s := &segments[i]
		if i > 0 {
			start = seekPoint{off: segmentHeaderSize, before: s.before}
		}
		err := r.f.readSegment(s, start, r.seq, func(sc *scanner) error {
			if sc.frames[len(sc.frames)-1].end.Seq <= r.seq {
				return nil
			}
			return pass(sc)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// inline visits as it reads.
func (r *replay) inline(segments []sealedSegment, start seekPoint) error {
	var w window
	return r.read(segments, start, func(sc *scanner) error {
		w.fill(sc)
		return r.show(&w)
	})
}

// ahead reads in another goroutine while this one visits.
func (r *replay) ahead(segments []sealedSegment, start seekPoint) error {
	r.full, r.free, r.quit = make(chan *window), make(chan *window, replayAhead), make(chan struct{})
	for range replayAhead {
		r.free <- new(window)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(r.full)
		if err := r.read(segments, start, r.pass); err != nil && err != errEnough {
			_ = r.send(&window{err: err}) // nobody there to be told
		}
	}()
	err := r.showAll()
	close(r.quit)
	<-done
	return err
}

// pass hands the scanner's frames to the visits; errEnough if nobody wants them.
func (r *replay) pass(sc *scanner) error {
	select {
	case w := <-r.free:
		w.fill(sc)
		return r.send(w)
	case <-r.quit:
		return errEnough
	}
}

func (r *replay) send(w *window) error {
	select {
	case r.full <- w:
		return nil
	case <-r.quit:
		return errEnough
	}
}

// fill takes over what sc has read: one copy for all strings, because the scanner's
// buffer is its own.
func (w *window) fill(sc *scanner) {
	w.name, w.off, w.text = sc.name, sc.off, string(sc.data)
	w.frames = append(w.frames[:0], sc.frames...)
}

func (r *replay) showAll() error {
	for w := range r.full {
		if w.err != nil {
			return w.err
		}
		if err := r.show(w); err != nil {
			return err
		}
		r.free <- w
	}
	return nil
}

// show visits the batches in w that end after r.seq.
func (r *replay) show(w *window) (err error) {
	b := &r.batch
	for i := range w.frames {
		fr := &w.frames[i]
		if fr.kind != frameBatch || fr.end.Seq <= r.seq {
			continue
		}
		if r.f.isClosed() {
			return fmt.Errorf("replay: %w", ErrClosed)
		}
		if b.Events, err = decodeBatch(b.Events, w.text[fr.lo:fr.hi], fr.end.Seq-uint64(fr.count)+1, fr.count); err != nil {
			return &DamageError{File: w.name, Offset: w.off, What: "in a frame before it: " + err.Error()}
		}
		b.End = fr.end
		if err := r.visit(b); err != nil {
			return err
		}
	}
	return nil
}
