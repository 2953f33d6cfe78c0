package projection

import (
	"crypto/sha256"
	"fmt"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// Catalogue is the view that maps each key to its newest durable state. One goroutine
// applies, and calls Check; any may read, without a lock: a batch is shown by
// exchanging one pointer, whatever the number of shards.
//
//	state = fold(events 1..Position().Seq)   or   fold(base, events behind its horizon)
type Catalogue struct {
	shown atomic.Pointer[Snapshot]

	// What follows belongs to the goroutine that applies.

	epoch uint64                 // of the newest nodes of the trie
	seen  map[shard.Key]struct{} // the keys of a batch, while it is checked
	buf   []byte                 // the bytes of a record, while it is made
	base  *loader                // has what ApplyBase was given so far
}

var (
	_ Publisher = (*Catalogue)(nil)
	_ Saver     = (*Catalogue)(nil)
	_ Based     = (*Catalogue)(nil)
	_ Rebuilder = (*Catalogue)(nil)
)

// NewCatalogue returns the view of the empty journal.
func NewCatalogue() *Catalogue {
	c := &Catalogue{seen: make(map[shard.Key]struct{})}
	c.shown.Store(&Snapshot{})
	return c
}

// Name implements [View].
func (c *Catalogue) Name() string { return "catalogue" }

// Version implements [View].
func (c *Catalogue) Version() uint32 { return 1 }

// Fresh implements [Rebuilder].
func (c *Catalogue) Fresh() (View, error) { return NewCatalogue(), nil }

// Position returns the prefix of the journal that is shown.
func (c *Catalogue) Position() journal.Position { return c.shown.Load().pos }

// Snapshot returns what is shown now. It never changes.
func (c *Catalogue) Snapshot() *Snapshot { return c.shown.Load() }

// Publish implements [Publisher]: it returns what Snapshot does.
func (c *Catalogue) Publish() any { return c.shown.Load() }

// Get returns the record of key, or nil. A record keeps about 15 others in memory; who
// keeps some for long copies what they need.
func (c *Catalogue) Get(key shard.Key) *Record { return c.shown.Load().Get(key) }

// become shows what o shows; o is not used any more.
func (c *Catalogue) become(o *Catalogue) {
	c.epoch = max(c.epoch, o.epoch) // o's nodes are of past epochs from now on
	c.shown.Store(o.shown.Load())
}

// Apply shows a batch. A batch that is already shown changes nothing. An event
// that cannot follow what is shown is an error, and then none of the batch is
// shown.
func (c *Catalogue) Apply(b *journal.Batch) error {
	now := c.shown.Load()
	if b.End.Seq <= now.pos.Seq && !planted.Bug("catalogue-applies-twice") {
		return nil
	}
	if err := now.follows(b); err != nil {
		return err
	}
	// What is made of a batch that fails is reachable from nowhere: the next epoch
	// begins with what is shown.
	next := c.next()
	w := writer{epoch: c.epoch, root: &next.root}
	for i := range b.Events {
		if err := c.show(&w, next, &b.Events[i]); err != nil {
			return err
		}
		if planted.Bug("catalogue-shows-half-a-batch") {
			c.shown.Store(next)
		}
	}
	next.pos = b.End
	c.shown.Store(next)
	return nil
}

// follows returns an error unless b begins where s ends.
func (s *Snapshot) follows(b *journal.Batch) error {
	if first := b.End.Seq - uint64(len(b.Events)) + 1; first != s.pos.Seq+1 {
		return fmt.Errorf("catalogue at %d cannot show events %d to %d: a gap", s.pos.Seq, first, b.End.Seq)
	}
	return nil
}

// next begins an epoch, with a copy of what is shown to be changed and shown in turn.
func (c *Catalogue) next() *Snapshot {
	if c.epoch == 0 || !planted.Bug("catalogue-snapshots-change") {
		c.epoch++
	}
	next := *c.shown.Load()
	return &next
}

// show changes s by one event.
func (c *Catalogue) show(w *writer, s *Snapshot, e *shard.Event) error {
	hash := xxhash.Sum64String(e.Key.String())
	prev := s.root.find(hash, e.Key.String())
	if err := checkNext(prev, e); err != nil {
		return err
	}
	if prev != nil {
		s.n[prev.Life()]--
	}
	if e.Kind == shard.EventDestroyed {
		w.remove(hash, e.Key.String())
		return nil
	}
	var err error
	if c.buf, err = appendRecord(c.buf[:0], e); err != nil {
		return err
	}
	s.n[e.State.Life]++
	w.put(hash, Record{string(c.buf)})
	return nil
}

// checkNext is shard.CheckNext after a record, which is nil if there is no shard.
func checkNext(prev *Record, e *shard.Event) error {
	if prev == nil {
		return shard.CheckNext(shard.None, e.Gen, e)
	}
	return shard.CheckNext(prev.Life(), prev.Gen(), e)
}

// Check says whether Apply could show events as the next batch. No two may be of the
// same key: a shard takes one step at a time. Who applies checks.
func (c *Catalogue) Check(events []shard.Event) error {
	now := c.shown.Load()
	clear(c.seen)
	for i := range events {
		e := &events[i]
		if _, ok := c.seen[e.Key]; ok {
			return fmt.Errorf("%w: two events of shard %q in one batch", shard.ErrIllegal, e.Key)
		}
		c.seen[e.Key] = struct{}{}
		if err := checkNext(now.Get(e.Key), e); err != nil {
			return err
		}
	}
	return nil
}

// Snapshot is the catalogue after one batch. It is immutable; any number of goroutines
// may read it.
type Snapshot struct {
	pos  journal.Position
	n    [8]int // records by life
	root root
}

// Position returns the prefix of the journal that the snapshot shows.
func (s *Snapshot) Position() journal.Position { return s.pos }

// Get returns the record of key, or nil.
func (s *Snapshot) Get(key shard.Key) *Record {
	return s.root.find(xxhash.Sum64String(key.String()), key.String())
}

// Len counts the shards.
func (s *Snapshot) Len() (n int) {
	for _, k := range s.n {
		n += k
	}
	return n
}

// Count counts the shards of one life.
func (s *Snapshot) Count(l shard.Life) int { return s.n[l] }

// All visits every record until visit returns false, in an order that depends on
// the keys alone.
func (s *Snapshot) All(visit func(*Record) bool) {
	s.slots(func(sl *slot) bool { return visit(&sl.rec) })
}

func (s *Snapshot) slots(visit func(*slot) bool) {
	for _, n := range s.root {
		if !n.walk(visit) {
			return
		}
	}
}

// From is All for what comes after key in that order; the empty key is before all.
// The key need not be there any more.
func (s *Snapshot) From(key string, visit func(*Record) bool) {
	if key == "" {
		s.All(visit)
		return
	}
	hash := xxhash.Sum64String(key)
	each := func(sl *slot) bool { return visit(&sl.rec) }
	first := hash >> (64 - rootBits)
	if !s.root[first].walkFrom(firstShift, hash, key, each) {
		return
	}
	for _, n := range s.root[first+1:] {
		if !n.walk(each) {
			return
		}
	}
}

// Events emits the newest event of every shard, in the order of All, until emit
// returns an error, which it returns. It is what a journal is compacted to:
// journal.Compactor.Compact takes it as the base at Position. The event is valid
// during the call only, its strings for good.
func (s *Snapshot) Events(emit func(*shard.Event) error) (err error) {
	s.All(func(r *Record) bool {
		e := r.Event()
		err = emit(&e)
		return err == nil
	})
	return err
}

// Digest hashes all records: equal digests mean equal states.
func (s *Snapshot) Digest() (d [32]byte) {
	h := sha256.New()
	var buf []byte
	s.All(func(r *Record) bool {
		e := r.Event()
		e.Kind = shard.EventRegistered
		buf = shard.AppendEvent(buf[:0], &e)
		buf = append(buf, byte(e.Seq), byte(e.Seq>>8), byte(e.Seq>>16), byte(e.Seq>>24), byte(e.Seq>>32))
		h.Write(buf)
		return true
	})
	h.Sum(d[:0])
	return d
}
