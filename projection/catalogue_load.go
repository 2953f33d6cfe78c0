package projection

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cespare/xxhash/v2"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// Load brings the catalogue to the head of j. An empty one begins with the base of a
// compacted journal, any other with what it shows, which must be of j. events counts
// those that were replayed, the base not included. The result is shown at the end; an
// error, also that of ctx, leaves what was shown before.
//
// It is what Apply of all batches comes to and several times as fast: the events are
// folded by the hashes of their keys, on all cores, and nothing is published between.
func (c *Catalogue) Load(ctx context.Context, j journal.Journal) (events uint64, err error) {
	l := c.newLoader(j.Head().Seq)
	defer l.end()
	comp, _ := j.(journal.Compactor)
	if comp != nil && l.next.pos.Seq == 0 && comp.Horizon().Seq > 0 {
		l.limit = math.MaxUint64
		horizon, err := comp.Base(func(events []shard.Event) error { return l.add(ctx, events) })
		if err == nil {
			err = l.settle()
		}
		if err != nil {
			return 0, err
		}
		l.next.pos, l.limit = horizon, 0
	}
	from := l.next.pos.Seq
	err = j.Replay(from, func(b *journal.Batch) error {
		if err := l.next.follows(b); err != nil {
			return err
		}
		l.next.pos = b.End
		return l.add(ctx, b.Events)
	})
	// An event that a worker could not show comes before what made the replay end.
	if werr := l.settle(); werr != nil {
		err = werr
	}
	if err != nil {
		return 0, err
	}
	c.shown.Store(l.next)
	return l.next.pos.Seq - from, nil
}

// ApplyBase implements [Based].
func (c *Catalogue) ApplyBase(events []shard.Event, end journal.Position, last bool) error {
	if c.Position().Seq != 0 {
		return fmt.Errorf("catalogue at %d is not empty: a base at %d cannot be added", c.Position().Seq, end.Seq)
	}
	if c.base == nil {
		c.base = c.next()
	}
	c.base.pos = end
	w := loadWorker{writer: writer{epoch: c.epoch, root: &c.base.root}}
	for i := range events {
		var err error
		if c.buf, err = appendRecord(c.buf[:0], &events[i]); err != nil {
			return err
		}
		if err := w.showBase(xxhash.Sum64String(events[i].Key.String()), string(c.buf), end.Seq); err != nil {
			return err
		}
	}
	for l, n := range w.n {
		c.base.n[l] += n
	}
	if last {
		c.shown.Store(c.base)
		c.base = nil
	}
	return nil
}

const (
	// fewEvents are folded by the goroutine that replays.
	fewEvents = 4096
	// loadChunk is about how many bytes of records a worker is given at a time. They
	// are all of one node of the root, whose trie then stays in the core's cache.
	loadChunk = 32 << 10
	// loadAhead is how many chunks may wait for each worker.
	loadAhead = 32
)

// loader folds events into the trie of a snapshot that nobody sees yet. Events of the
// same key go through the same worker, in their order.
type loader struct {
	next    *Snapshot
	limit   uint64                // of a base: its horizon; 0 for events
	parts   [1 << rootBits][]byte // chunks that are being filled
	workers []*loadWorker
	running sync.WaitGroup // workers
	pending sync.WaitGroup // chunks that are not folded yet
	failed  atomic.Bool    // a worker has an error
	// free are chunks to be used again. It is nil if there is no goroutine but the
	// caller's; buf is the chunk then.
	free chan []byte
	buf  []byte
}

// loadWorker folds the events of some of the root's nodes.
type loadWorker struct {
	writer
	n     [8]int // what is added to the count of records by life
	queue chan chunk
	event shard.Event // the last one, if err is not nil the one it is about
	err   error
}

// chunk is a run of hash, 8 bytes, length, 4 bytes, and bytes of a record.
type chunk struct {
	data  []byte
	limit uint64 // of the seqs in a base; 0 for events
}

const chunkHeader = 8 + 4

var errStopped = errors.New("a worker of the load has failed")

// newLoader begins an epoch and a snapshot to be changed. head is where the events are
// expected to end. The caller calls end.
func (c *Catalogue) newLoader(head uint64) *loader {
	l := &loader{next: c.next()}
	workers := 1
	if many := head-l.next.pos.Seq > fewEvents; many {
		// One core is busy with replaying, and the replay with reading ahead.
		workers = max(1, min(runtime.GOMAXPROCS(0)-1, 8))
		l.free = make(chan []byte, workers*loadAhead)
	}
	for range workers {
		w := &loadWorker{writer: writer{epoch: c.epoch, root: &l.next.root}}
		l.workers = append(l.workers, w)
		if l.free != nil {
			w.queue = make(chan chunk, loadAhead)
			l.running.Go(func() { w.run(l) })
		}
	}
	return l
}

// add hands events to the workers.
func (l *loader) add(ctx context.Context, events []shard.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if l.failed.Load() {
		return errStopped
	}
	for i := range events {
		hash := xxhash.Sum64String(events[i].Key.String())
		part := hash >> (64 - rootBits)
		buf := l.parts[part]
		if l.free == nil {
			buf = l.buf[:0]
		} else if buf == nil {
			buf = l.newPart()
		}
		at := len(buf)
		buf = binary.LittleEndian.AppendUint64(buf, hash)
		buf = append(buf, 0, 0, 0, 0)
		buf, err := appendRecord(buf, &events[i])
		if err != nil {
			return err
		}
		binary.LittleEndian.PutUint32(buf[at+8:], uint32(len(buf)-at-chunkHeader))
		switch {
		case l.free == nil:
			l.workers[0].fold(chunk{buf, l.limit}, l)
			l.buf = buf
		case len(buf) >= loadChunk:
			l.parts[part] = nil
			l.send(part, buf)
		default:
			l.parts[part] = buf
		}
	}
	return nil
}

func (l *loader) newPart() []byte {
	select {
	case buf := <-l.free:
		return buf[:0]
	default:
		return make([]byte, 0, loadChunk+loadChunk/8)
	}
}

func (l *loader) send(part uint64, buf []byte) {
	l.pending.Add(1)
	l.workers[part%uint64(len(l.workers))].queue <- chunk{buf, l.limit}
}

// settle waits until everything that was added is folded. It returns the error of the
// event that comes first in the journal.
func (l *loader) settle() error {
	for part, buf := range l.parts {
		if buf != nil {
			l.parts[part] = nil
			l.send(uint64(part), buf)
		}
	}
	l.pending.Wait()
	var first *loadWorker
	for _, w := range l.workers {
		if w.err != nil && (first == nil || w.event.Seq < first.event.Seq) {
			first = w
		}
		for life, n := range w.n {
			l.next.n[life] += n
		}
		w.n = [8]int{}
	}
	if first != nil {
		return first.err
	}
	return nil
}

// end ends the workers.
func (l *loader) end() {
	if l.free == nil {
		return
	}
	for _, w := range l.workers {
		close(w.queue)
	}
	l.running.Wait()
}

func (w *loadWorker) run(l *loader) {
	for c := range w.queue {
		w.fold(c, l)
		if cap(c.data) <= 2*loadChunk {
			select {
			case l.free <- c.data:
			default:
			}
		}
		l.pending.Done()
	}
}

// fold shows the events of a chunk, unless an earlier one could not be shown.
func (w *loadWorker) fold(c chunk, l *loader) {
	// The chunk's memory is used again; what stays of it is copied.
	text := unsafe.String(unsafe.SliceData(c.data), len(c.data))
	for len(text) > 0 && w.err == nil {
		hash, n := le64(text), chunkHeader+int(le32(text[8:]))
		rec := text[chunkHeader:n]
		text = text[n:]
		if c.limit != 0 {
			w.err = w.showBase(hash, rec, c.limit)
		} else {
			w.err = w.show(hash, rec)
		}
		if w.err != nil {
			l.failed.Store(true)
		}
	}
}

// show changes the trie by one event, given as its record. The text is copied.
func (w *loadWorker) show(hash uint64, text string) error {
	rec := Record{text}
	e := &w.event
	e.Seq, e.Gen, e.Key, e.State.Life = rec.Seq(), rec.Gen(), rec.Key(), rec.Life()
	e.Kind = kindOf(e.State.Life)
	prev := w.root.find(hash, e.Key.String())
	if err := checkNext(prev, e); err != nil {
		return err
	}
	if prev != nil {
		w.n[prev.Life()]--
	}
	if e.Kind == shard.EventDestroyed {
		w.remove(hash, e.Key.String())
		return nil
	}
	w.n[e.State.Life]++
	w.put(hash, Record{strings.Clone(text)})
	return nil
}

// showBase adds a shard of a base that ends at limit. The text is copied.
func (w *loadWorker) showBase(hash uint64, text string, limit uint64) error {
	rec := Record{text}
	w.event.Seq = rec.Seq()
	switch {
	case rec.Life() == shard.None || rec.Gen() == 0 || rec.Gen() > rec.Seq() || rec.Seq() > limit:
		return fmt.Errorf("%w: base at %d: shard %q: seq %d, gen %d, %s", shard.ErrBadEvent, limit, rec.key(), rec.Seq(), rec.Gen(), rec.Life())
	case w.root.find(hash, rec.key()) != nil:
		return fmt.Errorf("%w: base at %d: shard %q twice", shard.ErrBadEvent, limit, rec.key())
	}
	w.n[rec.Life()]++
	w.put(hash, Record{strings.Clone(text)})
	return nil
}
