package index

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/shard"
)

var (
	// ErrNotFound is returned by repositories for a shard without an index.
	ErrNotFound = errors.New("index not found")
	// ErrClosed is returned by a [ShardIndex] that was closed, and by a [Draft] that
	// was closed and had spilled.
	ErrClosed = errors.New("shard index: closed")
	// ErrNewerFormat is returned, wrapped with the file, for an index or repository
	// that a newer release wrote. Nothing is changed; use that release.
	ErrNewerFormat = errors.New("index: newer format")
	// ErrImmutable is returned by Unmarshal and Load of a [ShardIndex], which
	// go-car's interface demands: build a new index instead.
	ErrImmutable = errors.New("shard index: immutable")
	// ErrBadIndex is wrapped by errors about foreign index bytes and custom indices
	// that cannot be what they claim to be.
	ErrBadIndex = errors.New("index: malformed")
)

// DamagedError says that stored index bytes are not what was written. The cure is
// to drop the index and build it again from the shard.
type DamagedError struct {
	File   string // file name, or "memory"
	Offset int64  // byte offset in File where the damage was noticed
	What   string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("index: damage in %s at offset %d: %s; recover the shard to rebuild its index", e.File, e.Offset, e.What)
}

// SourceMismatchError says that a source is not the one an index was built from.
type SourceMismatchError struct {
	What string // what was compared
	Want string
	Have string
}

func (e *SourceMismatchError) Error() string {
	return fmt.Sprintf("index: source changed since it was indexed: %s: want %s, have %s; recover the shard to index it afresh", e.What, e.Want, e.Have)
}

// Repo is the predecessor's union of both kinds of repository.
type Repo interface {
	FullIndexRepo
	ManifestRepo
}

// Stat describes a stored index or manifest.
type Stat struct {
	Exists bool
	Size   uint64 // bytes
}

// FullIndexRepo keeps one full index per shard key. Methods may be called
// concurrently.
type FullIndexRepo interface {
	// GetFullIndex returns the newest index of key, or ErrNotFound.
	GetFullIndex(key shard.Key) (carindex.Index, error)
	// AddFullIndex stores an index durably, replacing one that it stored earlier. An
	// index of a later life (LifeRepo) stays the newest.
	AddFullIndex(key shard.Key, index carindex.Index) error
	// DropFullIndex removes every index of key and says whether there was one.
	DropFullIndex(key shard.Key) (dropped bool, err error)
	// StatFullIndex describes the newest index of key; a missing one is not an error.
	StatFullIndex(key shard.Key) (Stat, error)
	// Len counts the shards that have an index.
	Len() (int, error)
	// ForEach visits every key that has an index, until the visitor returns false
	// or an error.
	ForEach(func(shard.Key) (bool, error)) error
	// Size sums the bytes of all indices.
	Size() (uint64, error)
}

// LifeRepo is an extra power of a [FullIndexRepo]: one index per life of a shard,
// so that a new life never sees an old one's index.
type LifeRepo interface {
	// PutIndex stores d as the index of (key, gen), replacing one that is there. A
	// nil error means durable; after any error the earlier state is intact.
	PutIndex(key shard.Key, gen uint64, d *Draft) error
	// OpenIndex opens the index of (key, gen). Errors: ErrNotFound, ErrNewerFormat,
	// *DamagedError, or what the file system said. The caller closes the index.
	OpenIndex(key shard.Key, gen uint64) (*ShardIndex, error)
	// DropIndex removes the index of (key, gen) and says whether there was one. An
	// index that is open stays readable until it is closed.
	DropIndex(key shard.Key, gen uint64) (dropped bool, err error)
	// SweepIndexes removes the indices of generations that are not alive and the
	// repository's own temporary files. Whatever it did not make stays.
	SweepIndexes(alive func(gen uint64) bool) (removed int, err error)
}

// Syncer is an extra power of a [LifeRepo] on a disk: making durable what was found
// there. A process that is killed may leave an index that can be read and that a
// power cut would take back.
type Syncer interface {
	// SyncIndexes makes the indices that OpenIndex finds now durable.
	SyncIndexes() error
}

// PutterContext is an extra power of a [LifeRepo]: a PutIndex that ends, with ctx's
// error and everything as it was, when ctx does.
type PutterContext interface {
	PutIndexContext(ctx context.Context, key shard.Key, gen uint64, d *Draft) error
}

// Spiller is an extra power of a [LifeRepo] on a disk: temporary files for the build of
// an index that is to be put there (BuildOptions.Spill).
type Spiller interface {
	// CreateScratch makes an empty temporary file. SweepIndexes spares it until it is
	// closed, and removes what an earlier process left.
	CreateScratch(key shard.Key, gen uint64) (ScratchFile, error)
}

// ManifestRepo is declared by the predecessor and implemented by nobody.
type ManifestRepo interface {
	ListManifests(shard.Key) ([]ManifestKey, error)
	GetManifest(ManifestKey) (Manifest, error)
	AddManifest(ManifestKey, Manifest) error
	DropManifest(ManifestKey) (bool, error)
	StatManifest(ManifestKey) (Stat, error)
}

// Manifest lists the CIDs of a shard.
type Manifest interface {
	Contains(c cid.Cid) (bool, error)
	Len() (l int64, err error)
	ForEach(func(c cid.Cid) (ok bool, err error)) error
}

// ManifestKey names a manifest.
type ManifestKey struct {
	Shard      shard.Key
	GenRule    string
	GenVersion uint
}

// MultihashIterator visits multihashes. The visitor must not keep them: they may
// share one buffer.
type MultihashIterator interface {
	ForEach(func(mh multihash.Multihash) error) error
}

// Inverted is the top-level index: multihash to the shards that hold it. Methods
// may be called concurrently.
type Inverted interface {
	// AddMultihashesForShard records that shard s holds the given multihashes.
	// Recording one again changes nothing.
	AddMultihashesForShard(ctx context.Context, mhIter MultihashIterator, s shard.Key) error
	// GetShardsForMultihash returns the shards that hold h, in no particular order,
	// or an error that wraps go-datastore's ErrNotFound if there is none.
	GetShardsForMultihash(ctx context.Context, h multihash.Multihash) ([]shard.Key, error)
}

// Remover is an extra power of an [Inverted]: forgetting a shard.
type Remover interface {
	// RemoveShard removes every entry of key. A key without entries is no error.
	RemoveShard(ctx context.Context, key shard.Key) error
}

// MultihashRemover is an extra power of an [Inverted]: forgetting a shard at the cost of
// what the shard holds. A store prefers it to a [Remover]'s.
type MultihashRemover interface {
	// RemoveMultihashesForShard forgets that shard key holds the given multihashes. One
	// that it is not known to hold is no error.
	RemoveMultihashesForShard(ctx context.Context, it MultihashIterator, key shard.Key) error
}
