package projection

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cespare/xxhash/v2"
	"github.com/tidwall/btree"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// Catalogue is the view that maps each key to its newest durable state. One
// goroutine applies; any may read. Looking up one key takes a read lock for the
// time of a lookup; a [Snapshot] takes it for an instant and reads without.
type Catalogue struct {
	mu struct {
		sync.RWMutex
		tree *btree.BTreeG[slot]
		pos  journal.Position
		n    [8]int // records by life
	}
	seen map[shard.Key]struct{} // the keys of a batch, while it is checked
}

// slot is an entry of the tree, which is in the order of the keys' hashes: that
// spreads any set of keys evenly and compares without following a pointer. Keys
// with the same hash are chained.
type slot struct {
	hash uint64
	rec  *Record
}

func byHash(a, b slot) bool { return a.hash < b.hash }

// NewCatalogue returns the view of the empty journal.
func NewCatalogue() *Catalogue {
	c := &Catalogue{seen: make(map[shard.Key]struct{})}
	c.mu.tree = btree.NewBTreeGOptions(byHash, btree.Options{NoLocks: true, Degree: 64})
	return c
}

// Apply shows a batch. A batch that is already shown changes nothing. An event
// that cannot follow what is shown is an error, and then none of the batch is
// shown.
func (c *Catalogue) Apply(b *journal.Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.End.Seq <= c.mu.pos.Seq {
		return nil
	}
	if first := b.End.Seq - uint64(len(b.Events)) + 1; first != c.mu.pos.Seq+1 {
		return fmt.Errorf("catalogue at %d cannot show events %d to %d: a gap", c.mu.pos.Seq, first, b.End.Seq)
	}
	n := c.mu.n
	undo := make([]slot, 0, len(b.Events))
	for i := range b.Events {
		if err := c.applyLocked(&b.Events[i], &undo); err != nil {
			for j := len(undo) - 1; j >= 0; j-- {
				c.storeLocked(undo[j].hash, undo[j].rec)
			}
			c.mu.n = n
			return err
		}
	}
	c.mu.pos = b.End
	return nil
}

// Check says whether Apply could show events as the next batch. No two may be of the
// same key: a shard takes one step at a time. Who applies checks.
func (c *Catalogue) Check(events []shard.Event) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	clear(c.seen)
	for i := range events {
		e := &events[i]
		if _, ok := c.seen[e.Key]; ok {
			return fmt.Errorf("%w: two events of shard %q in one batch", shard.ErrIllegal, e.Key)
		}
		c.seen[e.Key] = struct{}{}
		life, gen := shard.None, e.Gen
		if prev := find(c.chainLocked(xxhash.Sum64String(e.Key.String())), e.Key.String()); prev != nil {
			life, gen = prev.life, prev.gen
		}
		if err := shard.CheckNext(life, gen, e); err != nil {
			return err
		}
	}
	return nil
}

// applyLocked shows one event and notes in undo what it replaced.
func (c *Catalogue) applyLocked(e *shard.Event, undo *[]slot) error {
	h := xxhash.Sum64String(e.Key.String())
	chain := c.chainLocked(h)
	*undo = append(*undo, slot{h, chain})
	chain, err := follow(chain, e, &c.mu.n)
	if err == nil {
		c.storeLocked(h, chain)
	}
	return err
}

// follow returns the chain after an event, and keeps the count of records by life.
func follow(chain *Record, e *shard.Event, n *[8]int) (*Record, error) {
	prev := find(chain, e.Key.String())
	life, gen := shard.None, e.Gen
	if prev != nil {
		life, gen = prev.life, prev.gen
	}
	if err := shard.CheckNext(life, gen, e); err != nil {
		return nil, err
	}
	if prev != nil {
		n[prev.life]--
	}
	var r *Record
	if e.Kind != shard.EventDestroyed {
		r = newRecord(e, prev)
		n[r.life]++
	}
	return replace(chain, prev, r), nil
}

// Load makes the catalogue from a whole journal, with nobody reading meanwhile. It
// is several times as fast as applying the batches one after the other: the tree is
// built at the end, in order.
func (c *Catalogue) Load(j journal.Journal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	chains := make(map[uint64]*Record, min(j.Head().Seq, 1<<22))
	err := j.Replay(0, func(b *journal.Batch) error {
		for i := range b.Events {
			e := &b.Events[i]
			h := xxhash.Sum64String(e.Key.String())
			chain, err := follow(chains[h], e, &c.mu.n)
			if err != nil {
				return err
			}
			if chain == nil {
				delete(chains, h)
			} else {
				chains[h] = chain
			}
		}
		c.mu.pos = b.End
		return nil
	})
	if err != nil {
		return err
	}
	slots := make([]slot, 0, len(chains))
	for h, chain := range chains {
		slots = append(slots, slot{h, chain})
	}
	slices.SortFunc(slots, func(a, b slot) int { return cmp.Compare(a.hash, b.hash) })
	for _, s := range slots {
		c.mu.tree.Load(s)
	}
	return nil
}

func (c *Catalogue) chainLocked(h uint64) *Record {
	s, _ := c.mu.tree.Get(slot{hash: h})
	return s.rec
}

func (c *Catalogue) storeLocked(h uint64, chain *Record) {
	if chain == nil {
		c.mu.tree.Delete(slot{hash: h})
		return
	}
	c.mu.tree.Set(slot{h, chain})
}

func find(chain *Record, key string) *Record {
	for r := chain; r != nil; r = r.next {
		if r.key() == key {
			return r
		}
	}
	return nil
}

// replace returns the chain with r in place of old, in key order; either may be
// nil. Records are immutable once shown, so a chain of several, which is next to
// never, is made of copies.
func replace(chain, old, r *Record) *Record {
	if chain == nil || chain == old && old.next == nil {
		return r
	}
	var rs []*Record
	for p := chain; p != nil; p = p.next {
		if p != old {
			q := *p
			rs = append(rs, &q)
		}
	}
	if r != nil {
		rs = append(rs, r)
	}
	slices.SortFunc(rs, func(a, b *Record) int { return strings.Compare(a.key(), b.key()) })
	var out *Record
	for _, r := range slices.Backward(rs) {
		r.next = out
		out = r
	}
	return out
}

// Get returns the record of key, or nil.
func (c *Catalogue) Get(key shard.Key) *Record {
	h := xxhash.Sum64String(key.String())
	c.mu.RLock()
	chain := c.chainLocked(h)
	c.mu.RUnlock()
	return find(chain, key.String())
}

// Position returns the prefix of the journal that is shown.
func (c *Catalogue) Position() journal.Position {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.mu.pos
}

// Snapshot returns what is shown now, in constant time. It never changes.
func (c *Catalogue) Snapshot() *Snapshot {
	// Copying marks the shared nodes in both trees, so it needs the write lock.
	c.mu.Lock()
	defer c.mu.Unlock()
	return &Snapshot{tree: c.mu.tree.Copy(), pos: c.mu.pos, n: c.mu.n}
}

// Snapshot is the catalogue after one batch. It may be read by many goroutines.
type Snapshot struct {
	tree *btree.BTreeG[slot]
	pos  journal.Position
	n    [8]int
}

// Position returns the prefix of the journal that the snapshot shows.
func (s *Snapshot) Position() journal.Position { return s.pos }

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
func (s *Snapshot) All(visit func(*Record) bool) { s.From("", visit) }

// From is All for what comes after key in that order; the empty key is before all.
// The key need not be there any more.
func (s *Snapshot) From(key string, visit func(*Record) bool) {
	h := uint64(0)
	if key != "" {
		h = xxhash.Sum64String(key)
	}
	s.tree.Ascend(slot{hash: h}, func(sl slot) bool {
		for r := sl.rec; r != nil; r = r.next {
			if key != "" && sl.hash == h && r.key() <= key {
				continue
			}
			if !visit(r) {
				return false
			}
		}
		return true
	})
}

// Digest hashes all records: equal digests mean equal states.
func (s *Snapshot) Digest() (d [32]byte) {
	h := sha256.New()
	var buf []byte
	s.All(func(r *Record) bool {
		e := shard.Event{Seq: r.seq, Gen: r.gen, Time: r.time, Kind: shard.EventRegistered, Key: r.Key(), State: r.State()}
		buf = shard.AppendEvent(buf[:0], &e)
		buf = append(buf, byte(r.seq), byte(r.seq>>8), byte(r.seq>>16), byte(r.seq>>24), byte(r.seq>>32))
		h.Write(buf)
		return true
	})
	h.Sum(d[:0])
	return d
}
