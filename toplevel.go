package dagstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/index/toplevel"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// TopLevelView is the name of the view that maps multihashes to shards.
const TopLevelView = "top-level"

// topLevel is the view that maps multihashes to shards: the second one, after the
// catalogue. It may lag and says so; it is never ahead of the catalogue, because what
// is found in it is held against the catalogue before it is told.
//
// The entries of a shard are there before the event that makes it available: the job
// that built the index adds them, having the multihashes at hand, and the event finds
// that done. Where that job was not of this process, or the view is being made anew,
// the event takes them from the shard's index.
type topLevel struct {
	d       *DAGStore
	entries shardEntries

	pos atomic.Pointer[journal.Position]

	// known says what jobs do ahead of their events.
	known struct {
		sync.Mutex
		// adding counts jobs that add entries of a generation.
		adding map[uint64]int
		// added holds, by generation, the content whose entries are there before their
		// event.
		added map[uint64]contentTag
	}
	lacking lacking

	// replay says, of events up to a sequence number, which a start applies again because
	// the mark did not pass them, whether their entries are there all the same. Only who
	// applies uses it.
	replay struct {
		to    uint64
		holds func(*projection.Record) (bool, error)
	}
}

// contentTag stands for what a shard holds: a part of the digest of its index.
type contentTag uint64

func tagOf(x shard.IndexInfo) contentTag {
	return contentTag(binary.LittleEndian.Uint64(x.Digest[:]))
}

// shardEntries is where the entries are: in runs of our own, or in an index of others.
type shardEntries interface {
	// holding returns what says whether the entries of a shard that was indexed are
	// there: those of its content if it is available, else any of its life.
	holding(ctx context.Context) (func(rec *projection.Record) (bool, error), error)
	// fresh returns where they are made anew.
	fresh() (shardEntries, error)
	// succeed is called when they take the place of former.
	succeed(former shardEntries, pos journal.Position) error
	// add adds what a shard holds. current says, once what is to be done for other lives
	// is done, whether that is still wanted.
	add(ctx context.Context, in ingest, current func() bool, it index.MultihashIterator) error
	// leave notes that a life is over. It waits for nothing.
	leave(key shard.Key, gen uint64)
	// sweep removes the entries of a life that is over, while its index is still there.
	sweep(ctx context.Context, key shard.Key, gen uint64) error
	// forget passes the event that ended a life. It waits for nothing.
	forget()
	// find calls visit for every shard that has entries of h, until it returns false,
	// with the life and the content that they are of if that is known.
	find(ctx context.Context, h mh.Multihash, visit func(in ingest, known bool) bool) error
	close() error
}

// ingest is one content of one life of a shard.
type ingest struct {
	key shard.Key
	gen uint64
	tag contentTag
	// again: there may be entries of another content of this life, which stay.
	again bool
	// part: these are not all entries of the content.
	part bool
}

var (
	_ projection.View      = (*topLevel)(nil)
	_ projection.Rebuilder = (*topLevel)(nil)
	_ projection.Seeded    = (*topLevel)(nil)
	_ projection.Successor = (*topLevel)(nil)
	_ projection.Selective = (*topLevel)(nil)
)

func newTopLevel(d *DAGStore, entries shardEntries) *topLevel {
	t := &topLevel{d: d, entries: entries}
	t.pos.Store(new(journal.Position))
	t.known.adding = make(map[uint64]int)
	t.known.added = make(map[uint64]contentTag)
	t.lacking.shards = make(map[shard.Key]lackedShard)
	return t
}

// Name implements [projection.View].
func (t *topLevel) Name() string { return TopLevelView }

// Version implements [projection.View].
func (t *topLevel) Version() uint32 { return 1 }

// Position implements [projection.View].
func (t *topLevel) Position() journal.Position { return *t.pos.Load() }

// Fresh implements [projection.Rebuilder].
func (t *topLevel) Fresh() (projection.View, error) {
	entries, err := t.entries.fresh()
	if err != nil {
		return nil, err
	}
	f := newTopLevel(t.d, entries)
	if r, ok := entries.(*runEntries); ok {
		r.serve(f)
	}
	return f, nil
}

// Succeed implements [projection.Successor].
func (t *topLevel) Succeed(former projection.View) error {
	if err := t.entries.succeed(former.(*topLevel).entries, t.Position()); err != nil {
		return err
	}
	t.d.top.Store(t)
	t.retryLater()
	return nil
}

// Seed adds every shard that was indexed, by the catalogue's state s, from its index, in
// place of all events up to there, unless its entries are there. Of a shard that is not
// available now any entries of its life do: what it holds will be known when it is
// indexed again, and until then they say what it held.
func (t *topLevel) Seed(ctx context.Context, s *projection.Snapshot) error {
	holds, err := t.entries.holding(ctx)
	if err != nil {
		return err
	}
	s.All(func(rec *projection.Record) bool {
		if !wasIndexed(rec) {
			return true
		}
		var held bool
		if held, err = holds(rec); err == nil && !held {
			err = t.enter(ctx, rec)
		}
		return err == nil && ctx.Err() == nil
	})
	if err = errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	pos := s.Position()
	t.pos.Store(&pos)
	return nil
}

// Concerns implements [projection.Selective].
func (t *topLevel) Concerns(e *shard.Event) bool {
	return e.Kind == shard.EventIndexed || e.Kind == shard.EventDestroyed
}

// Apply implements [projection.View]. Applying a batch again comes to the same.
func (t *topLevel) Apply(b *journal.Batch) error {
	if b.End.Seq <= t.Position().Seq {
		return nil
	}
	for i := range b.Events {
		if err := t.apply(&b.Events[i]); err != nil {
			return fmt.Errorf("shard %q, event %d: %w", b.Events[i].Key, b.Events[i].Seq, err)
		}
	}
	pos := b.End // b is used again
	t.pos.Store(&pos)
	return nil
}

func (t *topLevel) apply(e *shard.Event) error {
	switch e.Kind {
	case shard.EventIndexed:
		if t.wasAdded(e.Gen, tagOf(e.State.Index)) {
			t.has(e.Key, e.Gen)
			return nil
		}
		rec := t.d.cat.Get(e.Key)
		if rec == nil || rec.Gen() != e.Gen {
			return nil // there are later events of the key
		}
		if held, err := t.heldBefore(e, rec); held || err != nil {
			return err
		}
		return t.enter(t.d.ctx, rec)
	case shard.EventDestroyed:
		t.has(e.Key, e.Gen)
		t.known.Lock()
		delete(t.known.added, e.Gen)
		t.known.Unlock()
		t.entries.forget()
	}
	return nil
}

// heldBefore says whether the entries of an event that is applied again are there. A mark
// that stood still for a long time would have every index read again without it.
func (t *topLevel) heldBefore(e *shard.Event, rec *projection.Record) (held bool, err error) {
	if e.Seq > t.replay.to {
		t.replay.holds = nil
		return false, nil
	}
	if t.replay.holds == nil {
		if t.replay.holds, err = t.entries.holding(t.d.ctx); err != nil {
			return false, err
		}
	}
	return t.replay.holds(rec)
}

// wasAdded says, once, that a job has added the entries of a generation's content.
func (t *topLevel) wasAdded(gen uint64, tag contentTag) bool {
	t.known.Lock()
	defer t.known.Unlock()
	have, ok := t.known.added[gen]
	delete(t.known.added, gen)
	return ok && have == tag
}

// wasIndexed says whether a shard was indexed in this life, as far as that is recorded:
// of one that is not available now, journals of earlier releases do not say.
func wasIndexed(rec *projection.Record) bool {
	return rec.Life() == shard.Available || rec.Index() != shard.IndexInfo{}
}

func ingestOf(rec *projection.Record) ingest {
	return ingest{key: rec.Key(), gen: rec.Gen(), tag: tagOf(rec.Index())}
}

// stillWanted says whether the entries of what a shard held when in was taken from the
// catalogue are wanted now. If not, a later event of the shard sees to its entries.
func (t *topLevel) stillWanted(in ingest) bool {
	now := t.d.cat.Get(in.key)
	return now != nil && now.Gen() == in.gen && (now.Life() != shard.Available || tagOf(now.Index()) == in.tag)
}

// enter adds a shard that was indexed from its index. If that cannot be read, the view
// goes on without: the shard is lacking. A damaged or missing index of an available
// shard is to be built again, which ends in another event. The error is the top-level
// index's own.
func (t *topLevel) enter(ctx context.Context, rec *projection.Record) error {
	unread, err := t.addRecorded(ctx, rec)
	if err = errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	news := t.lacks(ingestOf(rec), unread)
	var damaged *index.DamagedError
	switch {
	case unread == nil:
	case rec.Life() == shard.Available && (errors.As(unread, &damaged) || errors.Is(unread, index.ErrNotFound)):
		t.d.loop.complete(input{ctl: func() { t.d.loop.mend(rec, unread) }})
	case news:
		t.d.log.Warn("top-level index: a shard is missing until its index can be read", "shard", rec.Key().String(), "err", unread)
	}
	return nil
}

// addRecorded adds a shard. unread says why its index could not be read.
func (t *topLevel) addRecorded(ctx context.Context, rec *projection.Record) (unread, err error) {
	in := ingestOf(rec)
	current := func() bool { return t.stillWanted(in) } // whoever changed it takes care of its entries
	if !current() {
		return nil, nil
	}
	it, done, err := t.d.indices.multihashes(rec.Key(), rec.Gen())
	if err != nil {
		return err, nil
	}
	defer done()
	w := &watchedIterator{it: it}
	if err := t.entries.add(ctx, in, current, w); err != nil && w.err == nil && !errors.Is(err, ErrShardUnknown) {
		return nil, err
	}
	return w.err, nil
}

// watchedIterator tells an error of the iterator from one of its reader.
type watchedIterator struct {
	it  index.MultihashIterator
	err error
}

func (w *watchedIterator) ForEach(visit func(mh.Multihash) error) error {
	visiting := false
	err := w.it.ForEach(func(m mh.Multihash) error {
		err := visit(m)
		visiting = err != nil
		return err
	})
	if !visiting {
		w.err = err
	}
	return err
}

// add records what a shard holds, in place of what it held before, for the job that
// found out.
func (t *topLevel) add(ctx context.Context, j *job, info shard.IndexInfo, it index.MultihashIterator) error {
	in := ingest{key: j.key, gen: j.gen, tag: tagOf(info), again: j.recovering}
	t.known.Lock()
	t.known.adding[j.gen]++
	t.known.Unlock()
	err := t.entries.add(ctx, in, func() bool {
		now := t.d.cat.Get(j.key)
		return now != nil && now.Gen() == j.gen // or else the entries may be another life's by now
	}, it)
	t.known.Lock()
	if t.known.adding[j.gen]--; t.known.adding[j.gen] == 0 {
		delete(t.known.adding, j.gen)
	}
	if err == nil {
		t.known.added[j.gen] = in.tag
	}
	t.known.Unlock()
	if err == nil {
		t.has(j.key, j.gen)
	}
	if now := t.d.top.Load(); now != t && errors.Is(err, toplevel.ErrClosed) {
		return now.add(ctx, j, info, it) // it was made anew meanwhile
	}
	return err
}

// alive says whether entries of an ingest may be wanted, now or later.
func (t *topLevel) alive(in ingest) bool {
	t.known.Lock()
	tag, added := t.known.added[in.gen]
	adding := t.known.adding[in.gen] > 0
	t.known.Unlock()
	if adding || added && tag == in.tag {
		return true
	}
	rec := t.d.cat.Get(in.key)
	switch {
	case rec == nil || rec.Gen() > in.gen:
		return false // a registration is durable and shown before anything is indexed
	case rec.Gen() < in.gen || rec.Life() != shard.Available:
		return true
	}
	return tagOf(rec.Index()) == in.tag
}
