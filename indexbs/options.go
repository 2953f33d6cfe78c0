//lint:file-ignore SA1019 The constructor returns what the predecessor's returned, the archived Blockstore.

package indexbs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	blockstore "github.com/ipfs/go-ipfs-blockstore"

	"github.com/dagstore/dagstore"
)

// Options configures an [IndexBackedBlockstore]. The zero value is the default.
type Options struct {
	// Policy chooses among the shards that hold a block; nil: [DefaultPolicy].
	Policy Policy
	// MaxOpen is how many accessors are kept open; 0: 2,048, or fewer if the process may
	// have few descriptors (see [dagstore.ShardsToKeepOpen]); less than 0: any number. A
	// shard on disk takes two descriptors or so. What is kept is given up when the store
	// asks for it: because a shard is to be destroyed, a GC wants its local copy, or
	// there are no descriptors.
	MaxOpen int
	// IdleFor is how long an accessor that is not used stays open; 0: 5 minutes; less
	// than 0: for ever.
	IdleFor time.Duration
	// HotBlocks is of how many blocks, about, it is remembered which open shard they were
	// read from, so that they are not looked up the next time. Each takes 8 bytes; 0:
	// 2,097,152, which is 16 MiB once all are used; less than 0: none. If the policy may
	// decline nothing is remembered, and with another than [DefaultPolicy] blocks that are
	// in several shards are always looked up.
	HotBlocks int
	// FailedFor is for how long a failure is remembered; 0: 3 seconds; less than 0: not
	// at all. A shard that could not be opened, or not be read a block from, is not
	// asked for that again meanwhile. If no other serves, the answer is the remembered
	// error, at once, so that an origin that is down is not hammered. What the store says
	// is away ([dagstore.UnavailableError]) is not remembered: it answers from memory, and
	// knows when the shard is back. [HealthyFirst] has other blocks read from other
	// shards, too.
	FailedFor time.Duration
	// NotFoundFor is for how long it is remembered that a block is in no shard; 0 or
	// less: not at all. It is believed only while the top-level index is where it was, so
	// a block that becomes available is found at once, and it is of use where the index
	// moves seldom: every event of the journal moves it. The store's own says nearly as
	// fast that it does not have a block: a miss took 0.24 µs instead of 0.53 µs when it
	// was remembered, and 0.9 µs when it was not yet (BenchmarkMiss). Of an index of
	// others ([dagstore.Config.TopLevelIndex]) a lookup may take ten times as long, and
	// then some seconds are worth their while. An index into which others put entries
	// without an event may show them that much later.
	NotFoundFor time.Duration
	// Consistency is how fresh the top-level index has to be; nil: [dagstore.Latest].
	// With [dagstore.Any] nothing waits for an index that lags, and what a block was not
	// found as of is in the error, a *[dagstore.NoShardError]. It is heeded with stores
	// that can be asked for it, which are [*dagstore.DAGStore] and a [Finder].
	Consistency *dagstore.Consistency
	// Logger is told of shards that fail, once in FailedFor; nil: nobody is.
	Logger *slog.Logger
}

const (
	defaultMaxOpen   = 2048
	defaultHotBlocks = 1 << 21
	maxHotBlocks     = 1 << 30
	defaultIdleFor   = 5 * time.Minute
	defaultFailedFor = 3 * time.Second
)

// validate fills in the defaults: what is less than 0 then is 0, which is none.
func (o *Options) validate() error {
	if o.Policy == nil {
		o.Policy = DefaultPolicy()
	}
	switch {
	case o.MaxOpen == 0:
		o.MaxOpen = min(defaultMaxOpen, dagstore.ShardsToKeepOpen())
	case o.MaxOpen < 0:
		o.MaxOpen = 0
	}
	if o.HotBlocks == 0 {
		o.HotBlocks = defaultHotBlocks
	}
	if o.HotBlocks > maxHotBlocks {
		return fmt.Errorf("index-backed blockstore: %d hot blocks; at most %d", o.HotBlocks, maxHotBlocks)
	}
	orDefault(&o.IdleFor, defaultIdleFor)
	orDefault(&o.FailedFor, defaultFailedFor)
	orDefault(&o.NotFoundFor, 0)
	if o.Consistency == nil {
		o.Consistency = new(dagstore.Latest())
	}
	if p, past := o.Consistency.AsOfPosition(); past {
		return fmt.Errorf("index-backed blockstore: lookups cannot be asked for the past, %v: take Any, Latest, Within or AtLeast", p)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func orDefault(d *time.Duration, otherwise time.Duration) {
	switch {
	case *d == 0:
		*d = otherwise
	case *d < 0:
		*d = 0
	}
}

// New makes a blockstore over all shards of d. When ctx ends, or Close is called, the
// accessors are closed, those in use after their last use, and reads fail.
func New(ctx context.Context, d IdxBstoreDagstore, o Options) (*IndexBackedBlockstore, error) {
	if d == nil {
		return nil, errors.New("index-backed blockstore: no store")
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	bs := &IndexBackedBlockstore{
		finder: finderOf(d, *o.Consistency), policy: o.Policy, log: o.Logger,
		failures: failures{keep: o.FailedFor},
	}
	if p, ok := o.Policy.(Decliner); ok {
		bs.declines = p.Declines()
	}
	if !bs.declines {
		bs.cache.places.init(o.HotBlocks)
	}
	_, bs.sticky = o.Policy.(defaultPolicy)
	if _, selector := o.Policy.(ShardSelectorF); !selector {
		bs.locator = locatorOf(d)
	}
	bs.lister = listerOf(d)
	bs.absences.init(o.NotFoundFor)
	bs.cache.init(ctx, d, o.MaxOpen, o.IdleFor)
	return bs, nil
}

// Of is [New] over a store, with at most one set of options; without any it is as it
// comes. The blockstore is good until its Close; after the store's, reads fail.
func Of(store *dagstore.DAGStore, o ...Options) (*IndexBackedBlockstore, error) {
	if store == nil {
		return nil, errors.New("index-backed blockstore: no store")
	}
	if len(o) > 1 {
		return nil, fmt.Errorf("index-backed blockstore: %d sets of options; at most one", len(o))
	}
	return New(context.Background(), &IdxBstoreDagstoreFromDagstore{Interface: store}, append(o, Options{})[0])
}

// NewIndexBackedBlockstore is [New] as the predecessor had it. A nil selector takes the
// first shard, and nothing is remembered but accessors: up to maxCacheSize of them (0:
// any number) for cacheExpire after their last use (0: for ever).
//
// What is returned is an [*IndexBackedBlockstore], which can do more than the interface
// says.
func NewIndexBackedBlockstore(ctx context.Context, d IdxBstoreDagstore, shardSelector ShardSelectorF, maxCacheSize int, cacheExpire time.Duration) (blockstore.Blockstore, error) {
	o := Options{Policy: asOffered{}, MaxOpen: maxCacheSize, IdleFor: cacheExpire, HotBlocks: -1, FailedFor: -1, NotFoundFor: -1}
	if shardSelector != nil {
		o.Policy = shardSelector
	}
	if o.MaxOpen == 0 {
		o.MaxOpen = -1
	}
	if o.IdleFor == 0 {
		o.IdleFor = -1
	}
	bs, err := New(ctx, d, o)
	if err != nil {
		return nil, err
	}
	return bs, nil
}
