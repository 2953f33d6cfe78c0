package dagstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// AppendShards appends to dst the available shards that hold a block, in the order of
// their keys, and returns the position of the top-level index that this is the answer
// of. It is [DAGStore.FindShards] for who asks often: it allocates nothing if dst has
// room, finding none is no error if it is certain, and with [Any] and [Latest] it takes no
// lock of the views. If shards that hold the block cannot serve the error is an
// *[UnavailableError], if the index lacks entries a *[NotFreshError]. h is neither kept nor changed.
func (d *DAGStore) AppendShards(ctx context.Context, dst []shard.Key, h mh.Multihash, c Consistency) ([]shard.Key, Position, error) {
	return d.AppendShardsUpTo(ctx, dst, h, c, 0)
}

// AppendShardsUpTo is AppendShards that stops when it has found most shards, for who
// reads a block that very many shards may hold: which ones these are is not said. 0
// means all.
func (d *DAGStore) AppendShardsUpTo(ctx context.Context, dst []shard.Key, h mh.Multihash, c Consistency, most int) ([]shard.Key, Position, error) {
	if err := d.freshFor(TopLevelView, c); err != nil {
		return dst, Position{}, fmt.Errorf("find shards: %w", err)
	}
	t := d.top.Load()
	pos, ok := d.reached(t, c)
	if !ok {
		v, f, err := d.views.Read(ctx, TopLevelView, c)
		if err != nil {
			return dst, f.Applied, fmt.Errorf("find shards: %w", d.told(err))
		}
		t, pos = v.(*topLevel), f.Applied
	}
	if _, own := t.entries.(*runEntries); !own {
		h = slices.Clone(h) // who knows what an index of others does with it
	}
	l := lookups.Get().(*lookup)
	defer l.done()
	l.most, l.seq = most, pos.Seq
	if err := l.find(ctx, t, h); err != nil {
		return dst, pos, err
	}
	found := len(dst)
	for i := range l.found {
		if l.found[i].is == serving {
			dst = append(dst, l.found[i].key)
		}
	}
	if len(dst) == found {
		return dst, pos, d.notServed(t, h, l.found, pos)
	}
	return dst, pos, nil
}

// FindHolders returns all that is known of where a block is: the shards that hold it and
// can be acquired, those that hold it and cannot serve, and how many were never looked
// into. That none holds it is no error. If the index lacks entries, and no shard is found
// that serves, the error is a *[NotFreshError] besides.
func (d *DAGStore) FindHolders(ctx context.Context, h mh.Multihash, c Consistency) (HeldBy, error) {
	if err := d.fresher(); err != nil {
		return HeldBy{}, err
	}
	v, f, err := d.views.Read(ctx, TopLevelView, c)
	by := HeldBy{AsOf: d.overlay(f)}
	if err != nil {
		return by, fmt.Errorf("find holders: %w", d.told(err))
	}
	t := v.(*topLevel)
	found, err := t.holders(ctx, h, f.Applied.Seq)
	if err != nil {
		return by, err
	}
	unseen := false
	for i := range found {
		switch found[i].is {
		case serving:
			by.Serving = append(by.Serving, found[i].key)
		case away:
			by.Away = append(by.Away, d.trouble(&found[i]))
		case unseenYet:
			unseen = true
		}
	}
	snap := d.cat.Snapshot()
	by.NeverIndexed = snap.Count(shard.Registered)
	if snap.Count(shard.Errored)+snap.Count(shard.Recovering) > 0 {
		snap.All(func(r *projection.Record) bool {
			if l := r.Life(); (l == shard.Errored || l == shard.Recovering) && r.Index() == (shard.IndexInfo{}) {
				by.NeverIndexed++
			}
			return true
		})
	}
	if len(by.Serving) == 0 && (unseen || d.incomplete(t, f.Applied)) {
		return by, d.notKnown(t, f.Applied)
	}
	return by, nil
}

// standing is what a holder is to who looks for a block.
type standing uint8

const (
	none      standing = iota // never indexed, or not known
	serving                   // can be acquired
	away                      // holds the block and cannot serve
	unseenYet                 // changed after what the index shows
)

// standing judges a holder for an answer as of event seq. What an index of others has not
// seen is another state of the shard, perhaps with other blocks; entries of our own name
// the content that they are of.
func (d *DAGStore) standing(h *holder, seq uint64) standing {
	if h.rec == nil {
		return none
	}
	switch h.rec.Life() {
	case shard.Available:
		if h.rec.Seq() > seq && !h.known {
			return unseenYet
		}
		return serving
	case shard.Errored:
		if d.healsOnAcquire(h.rec) {
			return serving
		}
		return away
	case shard.Recovering:
		return away
	}
	return none
}

// healsOnAcquire says that an acquire recovers the errored shard.
func (d *DAGStore) healsOnAcquire(rec *projection.Record) bool {
	return d.cfg.RecoverOnStart == RecoverOnAcquire && rec.Seq() <= d.loop.startSeq && d.tail == nil
}

// notServed says why no shard was found that serves a block: the shards that hold it are
// away, or it is not known yet; nil: it is in none that the index has been told of.
func (d *DAGStore) notServed(t *topLevel, h mh.Multihash, found []holder, pos Position) error {
	var troubled []UnavailableShard
	unseen := false
	for i := range found {
		switch found[i].is {
		case away:
			troubled = append(troubled, d.trouble(&found[i]))
		case unseenYet:
			unseen = true
		}
	}
	switch {
	case len(troubled) > 0 && !planted.Bug("store-away-taken-for-absent"):
		return unavailable(h, troubled)
	case unseen || d.incomplete(t, pos):
		return d.notKnown(t, pos)
	}
	return nil
}

// incomplete says that what is not found may be there all the same: entries of shards
// lack, or the view has not come as far as the journal was when the store started.
func (d *DAGStore) incomplete(t *topLevel, pos Position) bool {
	if planted.Bug("store-lacking-taken-for-absent") {
		return false
	}
	return t.lackingCount() > 0 || pos.Seq < d.loop.startSeq
}

// lackRetry is when it may be worth while to ask again for what the index lacks.
const lackRetry = time.Second

// notKnown is the answer to a lookup in an index that lacks something.
func (d *DAGStore) notKnown(t *topLevel, pos Position) error {
	e := &NotFreshError{View: TopLevelView, Want: pos, Had: pos, Head: d.journal.Head(), RetryAfter: lackRetry, Err: t.Lacking()}
	if e.Want.Seq < d.loop.startSeq {
		e.Want = Position{Seq: d.loop.startSeq}
	}
	if f, err := d.views.Freshness(TopLevelView); err == nil {
		e.State = f.State
	}
	return fmt.Errorf("find shards: not found, which is not known for certain: %w", e)
}

// trouble says why a holder cannot serve.
func (d *DAGStore) trouble(h *holder) UnavailableShard {
	i := d.recordInfo(h.rec)
	u := UnavailableShard{Key: h.key, Since: time.Unix(0, h.rec.Time())}
	d.mu.RLock()
	lv := d.hotLocked(h.key)
	d.mu.RUnlock()
	if lv != nil && lv.pub.life.Load() != uint32(shard.None) && d.isCurrent(lv) {
		i = lv.info()
	}
	u.State, u.Reason = i.ShardState, i.Error
	if !i.Since.IsZero() {
		u.Since = i.Since
	}
	if i.ShardState == ShardStateRecovering {
		u.Reason = errors.Join(errRecovering, i.Error)
		u.RetryAfter = lackRetry
	}
	if !i.NextTry.IsZero() {
		u.RetryAfter = max(time.Until(i.NextTry), time.Millisecond)
	}
	return u
}

var errRecovering = errors.New("the shard is being recovered")

// holder is a shard that a multihash is found in.
type holder struct {
	key shard.Key
	rec *projection.Record // nil: an index of others knows it and the catalogue does not
	// known: the entry names the content that the catalogue's record says is there.
	known bool
	is    standing
}

// holders returns the shards that h is found in as of event seq, in the order of their
// keys, whatever their states are. Entries of another life or content do not count.
func (t *topLevel) holders(ctx context.Context, h mh.Multihash, seq uint64) ([]holder, error) {
	l := lookups.Get().(*lookup)
	defer l.done()
	l.seq = seq
	err := l.find(ctx, t, h)
	return slices.Clone(l.found), err
}

// lookup is what a lookup works with. It is used again, with visit, which is see, so
// that a lookup does not allocate.
type lookup struct {
	t     *topLevel
	found []holder
	// most, if it is not 0, ends the lookup when so many are found that serve as of seq.
	most, servers int
	seq           uint64
	visit         func(ingest, bool) bool
}

var lookups = sync.Pool{New: func() any {
	l := new(lookup)
	l.visit = l.see
	return l
}}

func (l *lookup) find(ctx context.Context, t *topLevel, h mh.Multihash) error {
	l.t = t
	err := t.entries.find(ctx, h, l.visit)
	if len(l.found) > 1 { // an ingest may be in several runs
		slices.SortFunc(l.found, func(a, b holder) int { return a.key.Compare(b.key) })
		l.found = slices.CompactFunc(l.found, func(a, b holder) bool { return a.key == b.key })
	}
	return err
}

func (l *lookup) see(in ingest, known bool) bool {
	d := l.t.d
	rec := d.cat.Get(in.key)
	switch {
	case known && (rec == nil || rec.Gen() != in.gen || !holds(rec, in.tag)):
	case rec == nil:
		l.found = append(l.found, holder{key: shard.KeyFromString(strings.Clone(in.key.String()))})
	default:
		h := holder{key: rec.Key(), rec: rec, known: known} // in.key is not ours to keep
		h.is = d.standing(&h, l.seq)
		l.found = append(l.found, h)
		if h.is == serving {
			l.servers++ // one in several runs counts more than once: the caller asked for some
		}
	}
	return l.most == 0 || l.servers < l.most
}

// holds says whether entries of a content are of what a shard holds, or held when its
// index was last recorded. Of a shard that failed in a journal of an earlier release that
// is not recorded.
func holds(rec *projection.Record, tag contentTag) bool {
	x := rec.Index()
	return tagOf(x) == tag || rec.Life() != shard.Available && x == (shard.IndexInfo{})
}

// maxLookup is how many holders a lookup has room for that is kept for another.
const maxLookup = 64

func (l *lookup) done() {
	if cap(l.found) > maxLookup {
		l.found = nil
	}
	clear(l.found) // records keep others in memory
	*l = lookup{found: l.found[:0], visit: l.visit}
	lookups.Put(l)
}
