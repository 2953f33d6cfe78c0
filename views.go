package dagstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// What is known of the store is a set of views of its journal: the catalogue, the
// top-level index, and those that were registered with [WithView]. Every answer of a
// view says how fresh it is, and who asks says how fresh it has to be.

// CatalogueView is the name of the view that maps keys to states.
const CatalogueView = "catalogue"

// The vocabulary of packages journal and projection, for those who import this one only.
type (
	// Position names a prefix of the journal; its Token is for other processes.
	Position = journal.Position
	// Consistency says how fresh an answer has to be.
	Consistency = projection.Consistency
	// Freshness says how fresh an answer is.
	Freshness = projection.Freshness
	// NotFreshError says that a view did not become fresh enough in time.
	NotFreshError = projection.NotFreshError
)

// Any is answered at once. See [projection.Any].
func Any() Consistency { return projection.Any() }

// AtLeast is answered when p is shown. See [projection.AtLeast].
func AtLeast(p Position) Consistency { return projection.AtLeast(p) }

// AtLeastSeq is answered when event seq is shown. See [projection.AtLeastSeq].
func AtLeastSeq(seq uint64) Consistency { return projection.AtLeastSeq(seq) }

// Latest is answered when all is shown that was durable when it was asked for.
func Latest() Consistency { return projection.Latest() }

// Within is answered when the view is behind for d at most.
func Within(d time.Duration) Consistency { return projection.Within(d) }

// AsOf is the state at exactly p. See [projection.AsOf].
func AsOf(p Position) Consistency { return projection.AsOf(p) }

// ParsePosition reads a position's token. Errors wrap [ErrBadToken].
func ParsePosition(token string) (Position, error) { return journal.ParseToken(token) }

var (
	// ErrNotFresh is what every NotFreshError is.
	ErrNotFresh = projection.ErrNotFresh
	// ErrNoPosition is returned for a consistency that lacks its position.
	ErrNoPosition = projection.ErrNoPosition
	// ErrUnknownView is returned for a name under which no view is registered.
	ErrUnknownView = projection.ErrUnknownView
	// ErrFuturePosition is returned for a position beyond the journal.
	ErrFuturePosition = journal.ErrFuturePosition
	// ErrForeignPosition is returned for a position of another journal.
	ErrForeignPosition = journal.ErrForeignPosition
	// ErrCompacted is returned for history that is no longer kept.
	ErrCompacted = journal.ErrCompacted
	// ErrBadToken is returned for a token that cannot be read.
	ErrBadToken = journal.ErrBadToken
)

// Position returns the position that the catalogue shows.
func (d *DAGStore) Position() Position { return d.cat.Position() }

// Freshness says how fresh a view is.
func (d *DAGStore) Freshness(view string) (Freshness, error) {
	if err := d.fresher(); err != nil {
		return Freshness{}, err
	}
	f, err := d.views.Freshness(view)
	return d.overlay(f), err
}

// Views says how fresh every view is: the catalogue, the top-level index, and then the
// others in the order of their registration.
func (d *DAGStore) Views() []Freshness {
	if d.fresher() != nil {
		return nil
	}
	all := d.views.All()
	for i := range all {
		all[i] = d.overlay(all[i])
	}
	return all
}

// WaitFor waits until a view is as fresh as c asks for. It waits as long as ctx and
// c allow, by default 5 s, and then returns a *[NotFreshError].
func (d *DAGStore) WaitFor(ctx context.Context, view string, c Consistency) (Freshness, error) {
	if err := d.freshFor(view, c); err != nil {
		return Freshness{}, err
	}
	f, err := d.views.Wait(ctx, view, c)
	return d.overlay(f), d.told(err)
}

// ReadView waits like WaitFor and returns what the view published last, or the view
// itself if it publishes nothing.
func (d *DAGStore) ReadView(ctx context.Context, view string, c Consistency) (any, Freshness, error) {
	if err := d.freshFor(view, c); err != nil {
		return nil, Freshness{}, err
	}
	v, f, err := d.views.Read(ctx, view, c)
	return v, d.overlay(f), d.told(err)
}

// told is ended, with what keeps a follower from going on where that is why.
func (d *DAGStore) told(err error) error {
	var stale *NotFreshError
	if errors.As(err, &stale) && stale.Err == nil {
		stale.Err = d.tail.trouble()
	}
	return ended(err)
}

// ended turns the views' end into the store's.
func ended(err error) error {
	if errors.Is(err, projection.ErrEnded) {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return err
}

// RebuildView makes a view anew from the journal, and the top-level index from the
// shard indices, beside the one in use, which is served meanwhile. It returns when
// the new one is in use. A view that is stalled goes on with it.
func (d *DAGStore) RebuildView(ctx context.Context, view string) error {
	if err := d.fresher(); err != nil {
		return err
	}
	return ended(d.views.Rebuild(ctx, view))
}

// Checkpoint saves the views that live in memory, so that the next start replays
// nothing before it, and removes the segments that nothing needs any more. It is
// done every so often of itself.
func (d *DAGStore) Checkpoint(ctx context.Context) error {
	if err := d.checkWriter(); err != nil {
		return err
	}
	return ended(d.views.Checkpoint(ctx))
}

// Catalogue returns the state of all shards as fresh as c asks for, or with [AsOf] as
// it was at a position. It never changes.
func (d *DAGStore) Catalogue(ctx context.Context, c Consistency) (*projection.Snapshot, Freshness, error) {
	if err := d.freshFor(CatalogueView, c); err != nil {
		return nil, Freshness{}, err
	}
	s, f, err := d.views.SnapshotFor(ctx, c)
	return s, d.overlay(f), d.told(err)
}

// CatalogueAt returns the state of all shards after event seq, and after those that
// became durable in one step with it: the snapshot's Position says which. It reads a
// checkpoint and replays what follows, so its cost is that of a start. Errors wrap
// [ErrFuturePosition] and [ErrCompacted].
func (d *DAGStore) CatalogueAt(ctx context.Context, seq uint64) (*projection.Snapshot, error) {
	if err := d.freshFor(CatalogueView, Latest()); err != nil {
		return nil, err
	}
	s, err := d.views.CatalogueAt(ctx, seq)
	return s, ended(err)
}

// Check holds the store to its journal: the catalogue, and every checkpoint, against a
// replay, by digest. The report says where they differ. The store goes on meanwhile;
// the replay takes the time and memory of a start.
func (d *DAGStore) Check(ctx context.Context) (projection.CheckReport, error) {
	if err := d.check(); err != nil {
		return projection.CheckReport{}, err
	}
	rep, err := d.views.Check(ctx)
	return rep, ended(err)
}

// maxNamed is the longest multihash in bytes that an error spells out.
const maxNamed = 128

// NoShardError says that no available shard held a block as of a position. It is a
// go-datastore ErrNotFound.
type NoShardError struct {
	Multihash mh.Multihash
	// AsOf is how fresh the answer is: shards that became available after
	// AsOf.Applied were not looked at.
	AsOf Freshness
}

func (e *NoShardError) Error() string {
	return fmt.Sprintf("no available shard holds %s as of event %d of %d: %v", multihashName(e.Multihash), e.AsOf.Applied.Seq, e.AsOf.Head.Seq, errNoShard)
}

func (e *NoShardError) Unwrap() error { return errNoShard }

// FindShards returns the available shards that hold a block, according to a top-level
// index that is as fresh as c asks for, and how fresh that is. If there is none the
// error is a *[NoShardError], which says as of when; an *[UnavailableError] if shards are
// known to hold the block that cannot serve now; or a *[NotFreshError] if the index lacks
// entries of shards, so that nobody can tell. The past cannot be asked for:
// the entries of shards that were destroyed are gone.
func (d *DAGStore) FindShards(ctx context.Context, h mh.Multihash, c Consistency) ([]shard.Key, Freshness, error) {
	if err := d.freshFor(TopLevelView, c); err != nil {
		return nil, Freshness{}, fmt.Errorf("find shards: %w", err)
	}
	v, f, err := d.views.Read(ctx, TopLevelView, c)
	f = d.overlay(f)
	if err != nil {
		return nil, f, fmt.Errorf("find shards: %w", d.told(err))
	}
	t := v.(*topLevel)
	holders, err := t.holders(ctx, h, f.Applied.Seq)
	if err != nil {
		return nil, f, err
	}
	kept := make([]shard.Key, 0, len(holders))
	for i := range holders {
		if holders[i].is == serving {
			kept = append(kept, holders[i].key)
		}
	}
	if len(kept) == 0 {
		if err := d.notServed(t, h, holders, f.Applied); err != nil {
			return nil, f, err
		}
		return nil, f, &NoShardError{Multihash: h, AsOf: f}
	}
	return kept, f, nil
}

// reached returns what the top-level index t shows, and says whether that is known,
// without asking the views, to be as fresh as c asks for.
func (d *DAGStore) reached(t *topLevel, c Consistency) (pos Position, ok bool) {
	pos = t.Position()
	switch c {
	case anyFreshness:
		return pos, true
	case latestFreshness:
		return pos, pos.Seq >= d.journal.Head().Seq
	}
	return pos, false
}

// What reached knows.
var anyFreshness, latestFreshness = Any(), Latest()

// LookupPosition returns the position that AppendShards, asked now, would answer as of.
// While that is the same, a block that was not found is still in no available shard,
// unless the index lacked something, which is Freshness.Err then. It costs nanoseconds.
// ok is false where it would have to wait or to look at files: if the index lags behind
// what c asks for, for a c other than [Any] and [Latest], and of a follower.
func (d *DAGStore) LookupPosition(c Consistency) (pos Position, ok bool) {
	if d.check() != nil || d.tail != nil {
		return Position{}, false
	}
	return d.reached(d.top.Load(), c)
}

// LocalShards says of each shard whether its bytes are in a local copy, or are read in
// place, so that no fetch is needed to read from it. It asks the event loop, once.
func (d *DAGStore) LocalShards(keys []shard.Key) ([]bool, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	held := make([]holder, len(keys))
	for i, key := range keys {
		held[i] = holder{key: key, rec: d.cat.Get(key)}
	}
	cs := d.candidates(held)
	if !d.loop.control(func() { d.loop.lookAt(cs) }) {
		return nil, ErrClosed
	}
	local := make([]bool, len(cs))
	for i := range cs {
		local[i] = cs[i].local
	}
	return local, nil
}

// ShardsContainingMultihash returns the available shards that hold a block, or an
// error that wraps go-datastore's ErrNotFound if there is none. It is FindShards with
// [Latest]: while the index is being rebuilt after a start it waits as long as ctx
// allows, or for 5 s.
func (d *DAGStore) ShardsContainingMultihash(ctx context.Context, h mh.Multihash) ([]shard.Key, error) {
	keys, _, err := d.FindShards(ctx, h, Latest())
	return keys, err
}

// currentIndex is the top-level index in use, if that is the store's own, for clients
// of the predecessor, which had it in a field.
type currentIndex struct{ d *DAGStore }

var _ index.Inverted = currentIndex{}

// AddMultihashesForShard adds multihashes to those of a shard. They count as long as the
// shard is what it is now.
func (c currentIndex) AddMultihashesForShard(ctx context.Context, it index.MultihashIterator, key shard.Key) error {
	rec := c.d.cat.Get(key)
	if rec == nil {
		return fmt.Errorf("top-level index: shard %q: %w", key, ErrShardUnknown)
	}
	in := ingest{key: rec.Key(), gen: rec.Gen(), tag: tagOf(rec.Index()), part: true}
	return c.d.top.Load().entries.add(ctx, in, func() bool { return true }, it)
}

// GetShardsForMultihash is [DAGStore.FindShards] with [Any], as far as it is not told.
func (c currentIndex) GetShardsForMultihash(ctx context.Context, h mh.Multihash) ([]shard.Key, error) {
	keys, _, err := c.d.FindShards(ctx, h, Any())
	return keys, err
}
