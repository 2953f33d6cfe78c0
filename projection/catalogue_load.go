package projection

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// Load brings the catalogue to the head of j. An empty one begins with the base of a
// compacted journal, any other with what it shows, which must be of j. events counts
// those that were replayed, the base not included. The result is shown at the end; an
// error, also that of ctx, leaves what was shown before.
//
// It is what Apply of all batches comes to and several times as fast: events are
// collected by the hashes of their keys, and merged into the trie in runs, on all
// cores. Nothing is published in between.
func (c *Catalogue) Load(ctx context.Context, j journal.Journal) (events uint64, err error) {
	l := c.newLoader(j.Head().Seq)
	defer l.end()
	comp, _ := j.(journal.Compacted)
	if comp != nil && l.next.pos.Seq == 0 && comp.Horizon().Seq > 0 {
		l.limit = math.MaxUint64 // the journal has verified it
		horizon, err := comp.Base(func(events []shard.Event) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return l.add(events)
		})
		if err := l.settle(err); err != nil {
			return 0, err
		}
		l.next.pos, l.limit = horizon, 0
	}
	from := l.next.pos.Seq
	err = j.Replay(from, func(b *journal.Batch) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := l.next.follows(b); err != nil {
			return err
		}
		l.next.pos = b.End
		return l.add(b.Events)
	})
	if err := l.settle(err); err != nil {
		return 0, err
	}
	c.shown.Store(l.next)
	return l.next.pos.Seq - from, nil
}

// ApplyBase implements [Based].
func (c *Catalogue) ApplyBase(events []shard.Event, end journal.Position, last bool) error {
	if c.base == nil {
		if pos := c.Position(); pos.Seq != 0 {
			return fmt.Errorf("catalogue at %d is not empty: a base at %d cannot be added", pos.Seq, end.Seq)
		}
		c.base = c.newLoader(0)
	}
	l := c.base
	l.limit, l.next.pos = end.Seq, end
	if err := l.settle(l.add(events)); err != nil {
		return err
	}
	if last {
		c.base = nil
		c.shown.Store(l.next)
	}
	return nil
}

const (
	// fewEvents are folded by the goroutine that replays.
	fewEvents = 4096
	// loadChunk is about how many bytes of records a worker is given at a time. They
	// are all of one node of the root, so that many go into each of its leaves. There
	// are 256 chunks that are being filled: 64 MiB.
	loadChunk = 256 << 10
	// loadSlack is by how much a chunk may be longer without being moved.
	loadSlack = 1 << 10
	// loadAhead is how many chunks may wait for each worker.
	loadAhead = 8
)

// loader folds events into the trie of a snapshot that nobody sees yet. Those of a
// node of the root are all folded by the same worker, in the order in which they came.
type loader struct {
	next    *Snapshot
	limit   uint64                // of the seqs in a base; 0 for events
	parts   [1 << rootBits][]byte // chunks that are being filled, by node of the root
	full    [1 << rootBits]int    // the length at which each is handed on
	workers []*loadWorker
	running sync.WaitGroup // workers
	pending sync.WaitGroup // chunks that are not folded yet
	failed  atomic.Bool    // a worker has an error
	// free are chunks to be used again. It is nil if there is no goroutine but the
	// caller's, and then parts[0] is the chunk of all nodes.
	free chan []byte
	// likely is about how many bytes will go into each part, 250 for an event.
	likely int
}

// chunk is a run of records, each after its hash, 8 bytes, and its length, 4 bytes.
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
	if many := head - l.next.pos.Seq; head > l.next.pos.Seq && many > fewEvents {
		l.likely = int(min(loadChunk, many))
		workers = min(runtime.GOMAXPROCS(0), 8)
		l.free = make(chan []byte, workers*loadAhead)
	}
	for part := range l.full {
		// All fill at about the same pace. If they began with the same length, all
		// would be handed on at the same time, and none in between.
		l.full[part] = loadChunk * (part + 1) / len(l.full)
		if l.free != nil {
			l.parts[part] = l.newChunk(uint64(part))
		}
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

// add collects events.
func (l *loader) add(events []shard.Event) error {
	if l.failed.Load() {
		return errStopped
	}
	for i := range events {
		hash := xxhash.Sum64String(events[i].Key.String())
		part := hash >> (64 - rootBits)
		if l.free == nil {
			part = 0
		}
		buf := l.parts[part]
		at := len(buf)
		buf = binary.LittleEndian.AppendUint64(buf, hash)
		buf = append(buf, 0, 0, 0, 0)
		buf, err := appendRecord(buf, &events[i])
		if err != nil {
			return err
		}
		binary.LittleEndian.PutUint32(buf[at+8:], uint32(len(buf)-at-chunkHeader))
		l.parts[part] = buf
		if len(buf) >= l.full[part] {
			l.full[part] = loadChunk
			l.handOn(part)
		}
	}
	return nil
}

// handOn gives the chunk of a part to its worker, and begins another.
func (l *loader) handOn(part uint64) {
	c := chunk{l.parts[part], l.limit}
	if l.free == nil {
		l.workers[0].fold(c, l)
		l.parts[part] = c.data[:0]
		return
	}
	l.pending.Add(1)
	l.workers[part%uint64(len(l.workers))].queue <- c
	select {
	case l.parts[part] = <-l.free:
	default:
		l.parts[part] = l.newChunk(part)
	}
}

// newChunk returns room for what is likely to come.
func (l *loader) newChunk(part uint64) []byte {
	return make([]byte, 0, min(l.full[part], l.likely)+loadSlack)
}

// settle waits until everything that was added is folded. It returns the error of the
// event that comes first in the journal, or else err, which is why no more come.
func (l *loader) settle(err error) error {
	for part, buf := range l.parts {
		if len(buf) > 0 {
			l.handOn(uint64(part))
		}
	}
	l.pending.Wait()
	first := uint64(math.MaxUint64)
	for _, w := range l.workers {
		if w.err != nil && w.errSeq < first {
			first, err = w.errSeq, w.err
		}
		for life, n := range w.n {
			l.next.n[life] += n
		}
		w.n = [8]int{}
	}
	return err
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
