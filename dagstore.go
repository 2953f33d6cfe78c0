package dagstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	carindex "github.com/ipld/go-car/v2/index"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/index/toplevel"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// StoreNamespace is the namespace within [Config.Datastore] under which the store
// keeps its state.
var StoreNamespace = ds.NewKey("dagstore")

var (
	// ErrShardUnknown is returned by every verb for a key that names no shard, and
	// to those who were waiting for a shard that is destroyed.
	ErrShardUnknown = errors.New("shard not found")
	// ErrShardExists is returned by RegisterShard for a key that is taken.
	ErrShardExists = errors.New("shard already exists")
	// ErrShardInitializationFailed is wrapped by the errors that tell why a shard
	// could not be initialised or recovered, or is errored.
	ErrShardInitializationFailed = errors.New("shard initialization failed")
	// ErrShardInUse is returned by DestroyShard while accessors are open; the shard
	// is unchanged.
	ErrShardInUse = errors.New("shard in use")
	// ErrClosed is returned by every verb after Close, to all who were waiting when
	// it was called, and by accessors that outlived it.
	ErrClosed = errors.New("dagstore closed")
	// ErrReadOnly is wrapped by the error of every mutation once the journal could
	// not be written: reopen the store. Open accessors and acquires of available
	// shards go on working.
	ErrReadOnly = errors.New("dagstore is read-only")
	// ErrRequestUnknown: no pending request has that ID.
	ErrRequestUnknown = errors.New("no such request is pending")
	// ErrShardChanged: the store follows the journal of another process, and that one
	// changed the shard while the request waited.
	ErrShardChanged = errors.New("the shard was changed by the writer meanwhile; ask again")
	// ErrNotStarted is returned by verbs before Start.
	ErrNotStarted = errors.New("dagstore not started")
	// ErrNotErrored is returned by RecoverShard for a shard with nothing to recover.
	ErrNotErrored = errors.New("refused to recover a shard that is not errored")
)

// RecoverOnStartPolicy says what becomes of errored shards when a store starts.
type RecoverOnStartPolicy int

const (
	// DoNotRecover leaves them errored; they are recovered by request.
	DoNotRecover RecoverOnStartPolicy = iota
	// RecoverOnAcquire recovers an errored shard on its first acquire, which waits.
	RecoverOnAcquire
	// RecoverNow recovers all of them at once.
	RecoverNow
)

// ShardIndexer makes the index of a shard in place of the built-in scanner. The
// offsets of the index are relative to the CARv1 payload.
type ShardIndexer func(context.Context, shard.Key, mount.Reader) (carindex.Index, error)

// Config configures a store. Only TransientsDir is required.
type Config struct {
	// TransientsDir is the directory of the local copies of shards whose source
	// cannot be read in place. Files that the store did not make stay untouched.
	TransientsDir string
	// IndexRepo keeps the shard indices; nil keeps them in memory. One that is not
	// an index.LifeRepo keeps one index per key.
	IndexRepo index.FullIndexRepo
	// IndexMemory is how many bytes of heap all builds of shard indices that run at once
	// take together, if IndexRepo is an index.Spiller, as those on a disk are: what does
	// not fit is sorted in temporary files there. 0 means 128 MiB, enough for some
	// 2,000,000 blocks without a file; the least is 1 MiB. Each build, of which
	// MaxConcurrentIndex run at once, takes some MiB besides: 1 of its own, 1/2 for each
	// core that hashes, and up to 4.5 for merges once it has spilled.
	IndexMemory int64
	// TopLevelIndex maps multihashes to shards in an index of your own; nil: the store's.
	//
	// What index.NewInverted returns asks for the store's own as well, by the
	// predecessor's name: with TopLevelDir empty it is kept in a directory of IndexRepo,
	// if that is one on a disk. Nothing is read from or written to its datastore then.
	//
	// An index of your own is held to the catalogue at every start: the shards that it
	// lacks are added from their own indices, and until that is done lookups say that
	// they do not know yet. Which shards live is the catalogue's to say. Entries are
	// removed with a shard if it is an index.MultihashRemover or an index.Remover.
	TopLevelIndex index.Inverted
	// TopLevelDir is the directory of the store's own top-level index, which nothing
	// else uses. Empty keeps it in memory, at some 18 bytes a block, and makes it anew
	// from the shard indices at Start.
	TopLevelDir string
	// TopLevel are the options of the store's own top-level index. Spawn and Logger are
	// the store's.
	TopLevel toplevel.Options
	// Datastore holds the journal if Journal is nil. It must keep any bytes under any
	// key: one that is a table of shard records belongs into ShardRepo. If Datastore
	// and ShardRepo are nil too, state is in memory and does not survive the process.
	Datastore ds.Datastore
	// ShardRepo holds the state as one record per shard, for daemons that bring such
	// a repository. It takes the place of Datastore.
	ShardRepo ShardRepo
	// Journal is the truth. The store closes it.
	Journal journal.Journal
	// MountRegistry knows the types of mounts by URL scheme; nil knows none.
	MountRegistry *mount.Registry
	// TraceCh hears of every operation. It is fed through a bounded buffer: a
	// reader that is too slow misses traces, which Metrics counts, and delays
	// nobody.
	TraceCh chan<- Trace
	// FailureCh hears of every failure of a shard, in the same manner.
	FailureCh chan<- ShardResult
	// OnTrace and OnFailure are called with what TraceCh and FailureCh hear, one at a
	// time and in order, beside the event loop: they may take their time, and miss what
	// comes when 4,096 wait, which Metrics counts. They must not call Close.
	OnTrace   func(Trace)
	OnFailure func(ShardResult)
	// GCInterval is how often GC is run of itself, about; 0: never. Followers run none.
	GCInterval time.Duration
	// Recovery has shards that fail recovered of themselves; nil does not.
	Recovery *RecoveryPolicy
	// MaxConcurrentIndex bounds concurrent scans. 0 means 1,024.
	MaxConcurrentIndex int
	// MaxConcurrentReadyFetches bounds concurrent fetches from mounts that report
	// themselves ready. 0 means 1,024.
	MaxConcurrentReadyFetches int
	// MaxConcurrentOpens bounds concurrent probes and opens of sources. 0 means 64.
	// One that takes longer than a second no longer counts, so that sources which
	// hang hold up no others; there are at most 1,024 of those.
	MaxConcurrentOpens int
	// MaxCopySize is the largest local copy in bytes, of a source that tells its size and
	// of one that does not. 0 means 128 GiB, twice the largest sector of Filecoin.
	MaxCopySize int64
	// MinFreeSpace is how many bytes of the disk of TransientsDir local copies leave free,
	// where the system tells: a fetch that would take them fails for want of space. 0
	// means 1 GiB, or a hundredth of the disk if that is less; negative none.
	MinFreeSpace int64
	// MinFetchRate is how many bytes a second a source must deliver, on average over each
	// minute of a fetch after its first byte, to keep its slot: with less the fetch fails
	// with mount.ErrTooSlow. 0 means 1,024, negative no bound. HTTP mounts have a bound
	// of their own besides, see mount.HTTPOptions.
	MinFetchRate int64
	// AbandonFetchAfter ends a fetch that nobody has waited for that long, within twice
	// the time: those who wanted the shard left, and it is neither being recovered nor one
	// that is not lazy. 0 means five minutes, negative never.
	AbandonFetchAfter time.Duration
	// RecoverOnStart says what becomes of errored shards at Start.
	RecoverOnStart RecoverOnStartPolicy
	// ShardIndexer replaces the built-in scanner; nil does not.
	ShardIndexer ShardIndexer

	// SkipVerifyOnIndex indexes without hashing blocks.
	SkipVerifyOnIndex bool
	// SkipVerifyOnRead serves blocks without hashing them.
	SkipVerifyOnRead bool
	// SkipMapSources reads the files of file mounts by system calls only. Without it
	// small blocks that were read within the last seconds, and so are in the kernel's
	// memory, are read again through a mapping of the file, which takes half as long.
	// A file that is cut short or cannot be read under its mapping gives an error and
	// not a signal, files on network file systems are never mapped, and there are at
	// most 8,192 mappings. Set it where address space is short.
	SkipMapSources bool
	// MaxSectionSize is the largest CAR section in bytes that is accepted; 0 means
	// the scanner's default of 32 MiB, 1 GiB is the most.
	MaxSectionSize uint64
	// MaxHeaderSize is the largest CAR header in bytes that is accepted, MaxRoots the
	// largest number of roots in it; 0 means 1 MiB and 4,096. A header of more than 64 MiB
	// is refused always. A source that was indexed stays readable if they are lowered.
	MaxHeaderSize uint64
	MaxRoots      int
	// SkipUnsupportedHashes indexes CARs of which some blocks have hashes that nothing here
	// can check: functions that are not known or broken (MD5, murmur3), digests of less than
	// 20 bytes, identity of more than 128. Those blocks are left out, and so not found; the
	// log says how many, and where the first ones lie, [ShardAccessor.Skipped] lists them.
	// Without it such a CAR is refused.
	SkipUnsupportedHashes bool
	// MaxShardRecords is the largest number of sections of one shard; 0 means
	// 1<<32 - 1, the most that an index holds.
	MaxShardRecords uint64
	// IdleHandles is how many shards without accessors are kept open; 0 means 128, or
	// fewer if the process may have few descriptors (see ShardsToKeepOpen), negative
	// none. They are given up when there are none left.
	IdleHandles int
	// IdleTimeout is how long they are; 0 means one second.
	IdleTimeout time.Duration
	// CloseTimeout bounds how long Close waits for mounts that ignore their context and
	// for views that do not return. 0 means two seconds.
	CloseTimeout time.Duration
	// Views are folds of the journal that the store feeds and checkpoints besides its
	// own. See package projection.
	Views []projection.View
	// CheckpointDir is the directory of the checkpoints, which bound what a start
	// replays; empty for none. Open puts them under its directory.
	CheckpointDir string
	// Checkpoints says how often one is made, Retention how much history is kept.
	Checkpoints projection.CheckpointPolicy
	Retention   projection.Retention
	// KeepLeftovers leaves files that nothing needs any more where they are: copies and
	// indices of shards that were destroyed while a crash or a failed removal kept them,
	// and what was being written then. Without it a start removes them. Either way it says
	// how many there are and how large, at WARN.
	KeepLeftovers bool
	// Logger hears what goes wrong; nil is slog.Default().
	Logger *slog.Logger

	fs fsio.FS // the operating system's if nil
	// witnessed: the other parts of the store were asked what the journal must hold.
	witnessed bool
	// drive takes the event loop over in place of a goroutine, for the simulator.
	drive func(*eventLoop)
}

const (
	defaultSlots       = 1024
	defaultOpens       = 64
	defaultIdle        = 128
	defaultIdleTimeout = time.Second
	defaultCloseWait   = 2 * time.Second
	defaultAbandon     = 5 * time.Minute
)

// withDefaults returns cfg with every zero replaced by what it stands for.
func (cfg Config) withDefaults() Config {
	orInt := func(v *int, def int) {
		if *v <= 0 {
			*v = def
		}
	}
	orInt(&cfg.MaxConcurrentIndex, defaultSlots)
	orInt(&cfg.MaxConcurrentReadyFetches, defaultSlots)
	orInt(&cfg.MaxConcurrentOpens, defaultOpens)
	if cfg.MaxCopySize <= 0 {
		cfg.MaxCopySize = mount.DefaultMaxSize
	}
	if cfg.IdleHandles == 0 {
		cfg.IdleHandles = min(defaultIdle, ShardsToKeepOpen())
	}
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = defaultIdleTimeout
	}
	if cfg.AbandonFetchAfter == 0 {
		cfg.AbandonFetchAfter = defaultAbandon
	}
	if cfg.CloseTimeout <= 0 {
		cfg.CloseTimeout = defaultCloseWait
	}
	if cfg.fs == nil {
		cfg.fs = fsio.OS()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	cfg.Logger = cfg.Logger.With("logger", "dagstore")
	if cfg.MountRegistry == nil {
		cfg.MountRegistry = mount.NewRegistry()
	}
	if cfg.IndexRepo == nil {
		cfg.IndexRepo = index.NewMemoryRepo()
	}
	return cfg
}

// DAGStore is the store. Its methods may be called concurrently.
type DAGStore struct {
	// TopLevelIndex maps multihashes to shards. Most callers want
	// ShardsContainingMultihash, which leaves out shards that are not available.
	TopLevelIndex index.Inverted

	cfg     Config
	log     *slog.Logger
	mounts  *mount.Registry
	indices indexStore
	// indexMemory is what builds share, scratch the temporary files that they have open.
	indexMemory *index.MemoryPool
	scratch     scratchFiles
	journal     journal.Journal
	cat         *projection.Catalogue
	views       *projection.Runner // feeds all views; nil before Start
	tail        *tail              // set if another process writes
	health      health
	healer      *recoverer // recovers what fails, if Config.Recovery says so
	loop        *eventLoop
	courier     *courier
	ailing      atomic.Int64 // shards that cannot be served now, by no fault of their own
	traces      *bridge[Trace]
	fails       *bridge[ShardResult]
	top         atomic.Pointer[topLevel]
	listingsCut atomic.Uint64 // see Metrics.ListingsCut

	ctx    context.Context // of all work that callers share
	cancel context.CancelFunc
	jobs   sync.WaitGroup // running jobs and what they left behind
	// late guards the last additions to jobs: once ended, Close waits for no more.
	late struct {
		sync.Mutex
		ended bool
	}
	writes sync.WaitGroup // those that write an index now, which no mount holds up

	phase  atomic.Int32
	closed chan struct{} // closed when Close is done

	// mu guards what callers look at before they queue a request. Only the loop
	// changes hot.
	mu struct {
		sync.RWMutex
		hot         map[shard.Key]*live         // shards with volatile state
		registering map[shard.Key]*registration // not yet durable
	}
	// schemes are those that the registry knew at Start.
	schemes map[string]bool
}

const (
	phaseNew int32 = iota
	phaseStarting
	phaseRunning
	phaseClosing
)

var _ Interface = (*DAGStore)(nil)

// NewDAGStore makes a store and the directory for its local copies. The rest begins
// with [DAGStore.Start]; until then requests are refused with ErrNotStarted.
func NewDAGStore(cfg Config) (*DAGStore, error) { return newStore(cfg, nil) }

// newStore makes a store that writes, or with a tail one that follows.
func newStore(cfg Config, t *tail) (*DAGStore, error) {
	if cfg.TransientsDir == "" {
		return nil, errors.New("dagstore: Config.TransientsDir is empty: name the directory for local copies")
	}
	cfg = cfg.withDefaults()
	for _, dir := range []*string{&cfg.TransientsDir, &cfg.TopLevelDir, &cfg.CheckpointDir} {
		var err error
		if *dir, err = cfg.absolute(*dir); err != nil {
			return nil, fmt.Errorf("dagstore: directory %q: %w", *dir, err)
		}
	}
	if err := cfg.fs.MkdirAll(cfg.TransientsDir, 0o700); err != nil {
		return nil, fmt.Errorf("dagstore: directory for local copies: %w", err)
	}
	d := &DAGStore{
		cfg: cfg, log: cfg.Logger, mounts: cfg.MountRegistry, journal: cfg.Journal,
		indices: newIndexStore(cfg.IndexRepo), indexMemory: index.NewMemoryPool(cfg.IndexMemory),
		cat:    projection.NewCatalogue(),
		closed: make(chan struct{}),
		tail:   t,
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.mu.hot = make(map[shard.Key]*live)
	d.mu.registering = make(map[shard.Key]*registration)
	d.chooseTopLevel()
	d.courier = newCourier()
	d.traces = newBridge(cfg.TraceCh)
	d.fails = newBridge(cfg.FailureCh)
	d.listen()
	d.loop = newEventLoop(d)
	return d, nil
}

// Start recovers the state from the journal and begins to serve. ctx bounds Start
// only. Registrations and recoveries that a stop or crash interrupted go on.
func (d *DAGStore) Start(ctx context.Context) error {
	if !d.phase.CompareAndSwap(phaseNew, phaseStarting) {
		return errors.New("dagstore: Start was called before, or after Close")
	}
	if err := d.recoverState(ctx); err != nil {
		d.health.end(fmt.Errorf("%w: %w", errNotStartedWell, err))
		d.phase.Store(phaseClosing)
		if d.views != nil {
			err = errors.Join(err, d.views.Close())
		}
		if t := d.top.Load(); t != nil {
			err = errors.Join(err, t.entries.close())
		}
		if d.journal != nil {
			err = errors.Join(err, d.journal.Close())
		}
		close(d.closed)
		return err
	}
	d.phase.Store(phaseRunning)
	d.loop.start()
	if d.tail == nil {
		d.resume()
		d.startTimers()
	}
	d.views.Start()
	if r, ok := d.top.Load().entries.(*runEntries); ok {
		r.x.Start() // the catalogue says what is alive
	}
	return nil
}

// recoverState opens the journal and makes the catalogue from it.
func (d *DAGStore) recoverState(ctx context.Context) error {
	var namespaced ds.Datastore
	if d.cfg.Datastore != nil {
		namespaced = namespace.Wrap(d.cfg.Datastore, StoreNamespace)
	}
	switch {
	case d.journal != nil:
	case d.cfg.ShardRepo != nil:
		floor, err := d.highestGeneration()
		if err != nil {
			return err
		}
		j, err := openRepoJournal(ctx, d.cfg.ShardRepo, d.cfg.TransientsDir, floor)
		if err != nil {
			return err
		}
		d.journal = j
	case namespaced != nil:
		j, err := journal.OpenDatastore(ctx, namespaced)
		if err != nil {
			return fmt.Errorf("dagstore: journal in Config.Datastore (one that keeps nothing but shard records goes into Config.ShardRepo): %w", err)
		}
		d.journal = j
	default:
		d.journal = journal.NewMemory()
	}
	if err := d.questionJournal(); err != nil {
		return err
	}
	if err := d.recoverViews(ctx); err != nil {
		return err
	}
	if namespaced != nil && d.cfg.ShardRepo == nil {
		if err := d.adoptLegacy(ctx, namespaced); err != nil {
			return err
		}
	}
	d.loop.seq = d.journal.Head().Seq
	d.loop.startSeq = d.loop.seq
	if d.tail != nil {
		d.knowSchemes()
		return nil
	}
	return d.sweepAtStart()
}

// recoverViews makes the runner of the views and the catalogue's state.
func (d *DAGStore) recoverViews(ctx context.Context) error {
	d.views = projection.NewRunner(d.journal, d.cat, projection.Options{
		FS: d.cfg.fs, Dir: d.cfg.CheckpointDir, ReadOnly: d.tail != nil,
		Policy: d.cfg.Checkpoints, Retention: d.cfg.Retention, Logger: d.log,
		Spawn: func(f func()) { d.loop.spawn(f) },
	})
	if d.top.Load() == nil {
		entries, err := d.openRuns()
		if err != nil {
			return fmt.Errorf("dagstore: %w", err)
		}
		t := newTopLevel(d, entries)
		entries.serve(t)
		d.top.Store(t)
	}
	for _, v := range append([]projection.View{d.top.Load()}, d.cfg.Views...) {
		if err := d.views.Add(v); err != nil {
			return fmt.Errorf("dagstore: %w", err)
		}
	}
	rec, err := d.views.Recover(ctx)
	if err != nil {
		return fmt.Errorf("dagstore: replay: %w", err)
	}
	for _, c := range rec.Ignored {
		d.log.Warn("start: a checkpoint is not used", "file", c.File, "why", c.Why)
	}
	d.health.Lock()
	d.health.recovery = rec
	d.health.Unlock()
	return nil
}

// check returns an error unless requests are served.
func (d *DAGStore) check() error {
	switch d.phase.Load() {
	case phaseRunning:
		return nil
	case phaseClosing:
		return ErrClosed
	default:
		return ErrNotStarted
	}
}

// Close answers everything that is pending with [ErrClosed], ends all work, closes
// open accessors and releases everything. It waits for a mount that ignores its
// context, and for a view that does not return, no longer than Config.CloseTimeout. A
// second Close waits for the first.
func (d *DAGStore) Close() error {
	switch {
	case d.phase.CompareAndSwap(phaseNew, phaseClosing):
		d.cancel()
		close(d.closed)
		if d.journal != nil {
			return d.journal.Close()
		}
		return nil
	case d.phase.CompareAndSwap(phaseRunning, phaseClosing):
	default:
		if d.phase.Load() == phaseStarting {
			return errors.New("dagstore: Close during Start")
		}
		<-d.closed
		return nil
	}
	d.loop.shutdown()
	d.tail.stop()
	began := time.Now()
	err := d.views.CloseWithin(d.cfg.CloseTimeout)
	if errors.Is(err, projection.ErrHangs) {
		d.log.Warn("close: a view does not return; its goroutine is left behind", "waited", d.cfg.CloseTimeout)
		err = nil
	}
	if cerr := d.top.Load().entries.close(); cerr != nil {
		d.log.Warn("close: the top-level index could not be written; the next start makes up for it", "err", cerr)
	}
	d.waitForJobs(d.cfg.CloseTimeout - time.Since(began))
	d.courier.close()
	if traces, fails := d.traces.close(d.cfg.CloseTimeout), d.fails.close(d.cfg.CloseTimeout); !traces || !fails {
		d.log.Warn("close: Config.OnTrace or Config.OnFailure does not return; its goroutine is left behind", "waited", d.cfg.CloseTimeout)
	}
	err = errors.Join(err, d.journal.Close())
	close(d.closed)
	return err
}

// waitForJobs waits for running jobs, for limit at most.
func (d *DAGStore) waitForJobs(limit time.Duration) {
	d.late.Lock()
	d.late.ended = true
	d.late.Unlock()
	done := make(chan struct{})
	go func() { d.jobs.Wait(); close(done) }()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		d.log.Warn("close: a mount or a view does not return; its goroutine is left behind", "waited", d.cfg.CloseTimeout)
	}
	d.mu.Lock()   // whoever began a write has done so, and nobody begins another
	d.mu.Unlock() //lint:ignore SA2001 passing through is what waits for them
	d.writes.Wait()
	d.scratch.closeAll()
}

// beginWrite begins the writing of an index, unless the store is closing. Close waits
// for its end however slow the disk is: whoever opens the directory next sweeps
// unfinished files and gives their names away. The writer calls writes.Done.
func (d *DAGStore) beginWrite() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.ctx.Err() != nil {
		return false
	}
	d.writes.Add(1)
	return true
}

// Interface is what clients of the store depend on. It is frozen: new verbs are
// methods of *DAGStore only.
type Interface interface {
	Start(ctx context.Context) error
	RegisterShard(ctx context.Context, key shard.Key, mnt mount.Mount, out chan ShardResult, opts RegisterOpts) error
	DestroyShard(ctx context.Context, key shard.Key, out chan ShardResult, _ DestroyOpts) error
	AcquireShard(ctx context.Context, key shard.Key, out chan ShardResult, _ AcquireOpts) error
	RecoverShard(ctx context.Context, key shard.Key, out chan ShardResult, _ RecoverOpts) error
	GetShardInfo(k shard.Key) (ShardInfo, error)
	GetIterableIndex(key shard.Key) (carindex.IterableIndex, error)
	AllShardsInfo() AllShardsInfo
	ShardsContainingMultihash(ctx context.Context, h mh.Multihash) ([]shard.Key, error)
	GC(ctx context.Context) (*GCResult, error)
	Close() error
}
