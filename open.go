package dagstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
)

// Option configures Open.
type Option func(*openConfig) error

type openConfig struct {
	Config
	file       journal.FileOptions
	newJournal bool
}

// WithConfig changes any field of the configuration.
func WithConfig(change func(*Config)) Option {
	return func(c *openConfig) error { change(&c.Config); return nil }
}

// WithMount registers a type of mount under a URL scheme, beside file, bytes, http
// and https, which are known. The template carries what the URL does not: an fs.FS,
// credentials, a client.
func WithMount(scheme string, template mount.Mount) Option {
	return func(c *openConfig) error { return c.MountRegistry.Register(scheme, template) }
}

// WithLogger sets the logger.
func WithLogger(l *slog.Logger) Option {
	return func(c *openConfig) error { c.Logger = l; return nil }
}

// WithJournalOptions sets the options of the journal's files.
func WithJournalOptions(o journal.FileOptions) Option {
	return func(c *openConfig) error { c.file = o; return nil }
}

// WithView registers a view of the journal: see package projection.
func WithView(v projection.View) Option {
	return func(c *openConfig) error { c.Views = append(c.Views, v); return nil }
}

// WithCheckpoints says how often checkpoints are made.
func WithCheckpoints(p projection.CheckpointPolicy) Option {
	return func(c *openConfig) error { c.Checkpoints = p; return nil }
}

// WithRetention says how much of the journal is kept.
func WithRetention(r projection.Retention) Option {
	return func(c *openConfig) error { c.Retention = r; return nil }
}

// WithGC runs [DAGStore.GC] every so often, give or take a tenth.
func WithGC(interval time.Duration) Option {
	return func(c *openConfig) error {
		if interval <= 0 {
			return fmt.Errorf("GC every %s: an interval is more than 0", interval)
		}
		c.GCInterval = interval
		return nil
	}
}

// WithRecovery has shards that fail recovered of themselves, with pauses.
func WithRecovery(p RecoveryPolicy) Option {
	return func(c *openConfig) error { c.Recovery = &p; return nil }
}

// WithTrace has f called with every operation, beside the event loop: see Config.OnTrace.
func WithTrace(f func(Trace)) Option {
	return func(c *openConfig) error { c.OnTrace = f; return nil }
}

// WithFailures has f called with every failure of a shard, beside the event loop: see
// Config.OnFailure.
func WithFailures(f func(ShardResult)) Option {
	return func(c *openConfig) error { c.OnFailure = f; return nil }
}

// WithNewJournal lets Open begin a new store where the journal is missing, or ends before
// what the other parts of the store are of: what is there, the journal included, is moved
// into a directory set-aside-0001 of the store (or the next number that is free), parts
// configured to be elsewhere into one beside them. Nothing is deleted. Without this
// option such a store is refused with a [*PartsError].
// It does nothing to a store that opens.
func WithNewJournal() Option {
	return func(c *openConfig) error { c.newJournal = true; return nil }
}

// withFS puts everything on another file system, for tests.
func withFS(fsys fsio.FS) Option {
	return func(c *openConfig) error { c.fs = fsys; return nil }
}

// Open opens the store in dir, or makes one, and starts it. Everything is under dir:
//
//	journal/      the log of shard events, and the lock that one process holds
//	index/        shard indices
//	copies/       local copies of shards that cannot be read in place
//	toplevel/     the top-level index: multihash to shards
//	checkpoints/  states of the views, which spare a start the replay up to there
//
// All but the journal is derived from it: a part that is missing or older is made again.
//
// Errors wrap journal.ErrLocked if another process has the store open,
// journal.ErrNewerFormat if a newer release wrote it, and *journal.DamageError if
// what was promised can no longer be read; [*PartsError] if the journal is missing or
// ends before what the other parts are of, or a part is another store's. Nothing was
// written or removed then.
func Open(ctx context.Context, dir string, opts ...Option) (*DAGStore, error) {
	c := openConfig{}
	c.MountRegistry = DefaultRegistry()
	c.fs = fsio.OS()
	for _, o := range opts {
		if err := o(&c); err != nil {
			return nil, fmt.Errorf("open store %q: %w", dir, err)
		}
	}
	d, err := open(ctx, dir, &c)
	if err != nil {
		return nil, fmt.Errorf("open store %q: %w", dir, err)
	}
	return d, nil
}

func open(ctx context.Context, dir string, c *openConfig) (*DAGStore, error) {
	if c.Journal != nil || c.Datastore != nil || c.ShardRepo != nil {
		return nil, errors.New("the state lives in the directory: leave Journal, Datastore and ShardRepo unset, or use NewDAGStore")
	}
	dir, err := c.absolute(dir) // the process may go elsewhere
	if err != nil {
		return nil, err
	}
	if err := c.fs.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, sub := range []string{partIndex, partCopies, partCheckpoints, partTopLevel} {
		if err := noLink(c.fs, filepath.Join(dir, sub)); err != nil {
			return nil, err
		}
	}
	// The journal's lock comes first: nothing is touched that another process uses.
	j, err := c.openJournal(dir)
	if err != nil {
		return nil, err
	}
	c.Journal, c.witnessed = j, true
	if c.IndexRepo == nil {
		repo, err := index.NewFSRepoOn(c.fs, filepath.Join(dir, partIndex))
		if err != nil {
			return nil, errors.Join(err, j.Close())
		}
		c.IndexRepo = repo
	}
	if c.TransientsDir == "" {
		c.TransientsDir = filepath.Join(dir, partCopies)
	}
	if c.CheckpointDir == "" {
		c.CheckpointDir = filepath.Join(dir, partCheckpoints)
	}
	if c.TopLevelDir == "" && !isGiven(c.TopLevelIndex) {
		c.TopLevelDir = filepath.Join(dir, partTopLevel)
	}
	d, err := NewDAGStore(c.Config)
	if err != nil {
		return nil, errors.Join(err, j.Close())
	}
	if err := d.Start(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// noLink refuses a path that is there and is not a directory itself: what the store
// writes and removes stays under its own directory.
func noLink(fsys fsio.FS, path string) error {
	st, err := fsys.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s is not a directory; links are not followed: name another place in the configuration", path)
	}
	return err
}

// DefaultRegistry returns a registry that knows the mounts which need no
// configuration: file, bytes, http and https.
func DefaultRegistry() *mount.Registry {
	r := mount.NewRegistry()
	for scheme, template := range map[string]mount.Mount{
		"file": &mount.FileMount{}, "bytes": &mount.BytesMount{}, "http": &mount.HTTPMount{}, "https": &mount.HTTPMount{},
	} {
		if err := r.Register(scheme, template); err != nil {
			panic(err) // the schemes are legal and distinct
		}
	}
	return r
}
