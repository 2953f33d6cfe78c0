package index

import (
	"context"
	"errors"
	"io"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multicodec"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/shard"
)

var errUnbuilt = errors.New("index: being written")

// BuildOptions bounds and directs [Build]. The zero value is safe for untrusted
// files.
type BuildOptions struct {
	// SkipVerify leaves block hashes unchecked.
	SkipVerify bool
	// Workers hash in parallel; 0 means GOMAXPROCS.
	Workers int
	// MaxHeaderBytes, MaxRoots, MaxSectionBytes, MaxRecords; 0 means 1 MiB, 4,096,
	// 32 MiB, 1<<32 - 1.
	MaxHeaderBytes  int
	MaxRoots        int
	MaxSectionBytes int
	MaxRecords      uint64
	// Progress, if set, is told from time to time how many bytes of the source and
	// how many blocks are done. It is called by one goroutine at a time.
	Progress func(bytes, blocks uint64)
	// TrustEmbeddedIndex adopts the index inside a CARv2 after checking every entry
	// against the payload's section headers, instead of scanning. For sources that
	// are trusted to list all their blocks. A file without a usable embedded index
	// is scanned.
	TrustEmbeddedIndex bool
}

// Draft is a shard index in memory, sorted and not yet stored.
type Draft struct{}

// Build scans a CARv1 or CARv2 of size bytes and drafts its index. Errors of r come
// back as they are; what is wrong with the file is a *carscan.Error.
func Build(ctx context.Context, r io.ReaderAt, size int64, opts BuildOptions) (*Draft, error) {
	return nil, errUnbuilt
}

// DraftFromIndex drafts an index from one that somebody else made over the same
// source, reading each section header at its offset.
func DraftFromIndex(ctx context.Context, idx carindex.Index, r io.ReaderAt, size int64, opts BuildOptions) (*Draft, error) {
	return nil, errUnbuilt
}

// ImportIndex drafts an index without looking at a source: block sizes are unknown
// and the index is bound to nothing.
func ImportIndex(idx carindex.IterableIndex) (*Draft, error) { return nil, errUnbuilt }

// Info sums up the draft and its source.
func (d *Draft) Info() shard.IndexInfo { return shard.IndexInfo{} }

// Len counts the records, duplicates included.
func (d *Draft) Len() uint64 { return 0 }

// Multihashes iterates over the multihashes in index order.
func (d *Draft) Multihashes() MultihashIterator { return nil }

// Entry says where a block lies.
type Entry struct {
	// Offset of the section from the start of the CARv1 payload, as in go-car's
	// indices. The block's data begins at Offset + HeaderLen.
	Offset uint64
	// HeaderLen is the length of the section's length prefix and CID; 0 if unknown.
	HeaderLen int
	// Size is the length of the block's data; -1 if unknown.
	Size int
}

// Binding says which source an index was built from.
type Binding struct {
	SourceSize    uint64
	CARVersion    int
	DataOffset    uint64 // of the CARv1 payload in the source
	DataSize      uint64
	HeaderLen     uint64 // CARv1 header with its length prefix
	HeaderDigest  [32]byte
	RootsDigest   [32]byte
	ContentDigest [32]byte
}

// ShardIndex is an open shard index. Methods may be called concurrently. It
// implements go-car's Index and IterableIndex.
type ShardIndex struct{}

// Find returns the first entry of a multihash (binary form). It does not allocate.
func (x *ShardIndex) Find(mh string) (Entry, bool, error) { return Entry{}, false, errUnbuilt }

// FindMultihash is Find for a byte slice.
func (x *ShardIndex) FindMultihash(mh multihash.Multihash) (Entry, bool, error) {
	return Entry{}, false, errUnbuilt
}

// FindAll calls yield for every entry of a multihash, until it returns false.
func (x *ShardIndex) FindAll(mh string, yield func(Entry) bool) error { return errUnbuilt }

// Entries calls yield for every record in index order. The multihash is valid
// during the call only.
func (x *ShardIndex) Entries(yield func(multihash.Multihash, Entry) error) error { return errUnbuilt }

// Len counts the records, duplicates included.
func (x *ShardIndex) Len() uint64 { return 0 }

// Info sums up the index and its source.
func (x *ShardIndex) Info() shard.IndexInfo { return shard.IndexInfo{} }

// Binding says which source the index was built from; false if it is unbound
// (imported without a source).
func (x *ShardIndex) Binding() (Binding, bool) { return Binding{}, false }

// SizesKnown says whether entries carry HeaderLen and Size.
func (x *ShardIndex) SizesKnown() bool { return false }

// Multihashes iterates over the multihashes in index order.
func (x *ShardIndex) Multihashes() MultihashIterator { return nil }

// Verify reads the whole index and checks every promise of the format.
func (x *ShardIndex) Verify(ctx context.Context) error { return errUnbuilt }

// CheckSource proves cheaply that a source is still the one indexed, or returns a
// *SourceMismatchError, or an error of r.
func (x *ShardIndex) CheckSource(r io.ReaderAt, size int64) error { return errUnbuilt }

// Close releases the index. A lookup in progress ends well; a later one gets
// ErrClosed. Idempotent.
func (x *ShardIndex) Close() error { return errUnbuilt }

// Codec implements go-car's Index.
func (x *ShardIndex) Codec() multicodec.Code { return multicodec.CarMultihashIndexSorted }

// Marshal writes the index in go-car's MultihashIndexSorted form.
func (x *ShardIndex) Marshal(w io.Writer) (uint64, error) { return 0, errUnbuilt }

// Unmarshal returns ErrImmutable.
func (x *ShardIndex) Unmarshal(r io.Reader) error { return ErrImmutable }

// Load returns ErrImmutable.
func (x *ShardIndex) Load([]carindex.Record) error { return ErrImmutable }

// GetAll implements go-car's Index: fn gets every section offset of c's multihash;
// carindex.ErrNotFound if there is none.
func (x *ShardIndex) GetAll(c cid.Cid, fn func(uint64) bool) error { return errUnbuilt }

// ForEach implements go-car's IterableIndex.
func (x *ShardIndex) ForEach(fn func(multihash.Multihash, uint64) error) error { return errUnbuilt }

// ReadForeignIndex reads go-car index bytes (IndexSorted or MultihashIndexSorted)
// from an untrusted source of size bytes; memory is bounded by size.
func ReadForeignIndex(r io.ReaderAt, size int64) (carindex.Index, error) { return nil, errUnbuilt }

// FSIndexRepo keeps indices as files in one directory. It implements
// [FullIndexRepo] and [LifeRepo].
type FSIndexRepo struct{}

// NewFSRepo opens a repository in a directory of the operating system, made if
// missing.
func NewFSRepo(baseDir string) (*FSIndexRepo, error) { return nil, errUnbuilt }

// NewFSRepoOn is NewFSRepo on any file system.
func NewFSRepoOn(fs fsio.FS, baseDir string) (*FSIndexRepo, error) { return nil, errUnbuilt }

// MemIndexRepo keeps indices in memory. It implements [FullIndexRepo] and
// [LifeRepo].
type MemIndexRepo struct{}

// NewMemoryRepo returns an empty repository.
func NewMemoryRepo() *MemIndexRepo { return nil }

func (l *FSIndexRepo) PutIndex(key shard.Key, gen uint64, d *Draft) error { return errUnbuilt }
func (l *FSIndexRepo) OpenIndex(key shard.Key, gen uint64) (*ShardIndex, error) {
	return nil, errUnbuilt
}
func (l *FSIndexRepo) DropIndex(key shard.Key, gen uint64) (bool, error) { return false, errUnbuilt }
func (l *FSIndexRepo) SweepIndexes(alive func(gen uint64) bool) (int, error) {
	return 0, errUnbuilt
}
func (l *FSIndexRepo) GetFullIndex(key shard.Key) (carindex.Index, error)     { return nil, errUnbuilt }
func (l *FSIndexRepo) AddFullIndex(key shard.Key, index carindex.Index) error { return errUnbuilt }
func (l *FSIndexRepo) DropFullIndex(key shard.Key) (dropped bool, err error) {
	return false, errUnbuilt
}
func (l *FSIndexRepo) StatFullIndex(key shard.Key) (Stat, error)           { return Stat{}, errUnbuilt }
func (l *FSIndexRepo) Len() (int, error)                                   { return 0, errUnbuilt }
func (l *FSIndexRepo) ForEach(func(shard.Key) (bool, error)) error         { return errUnbuilt }
func (l *FSIndexRepo) Size() (uint64, error)                               { return 0, errUnbuilt }
func (m *MemIndexRepo) PutIndex(key shard.Key, gen uint64, d *Draft) error { return errUnbuilt }
func (m *MemIndexRepo) OpenIndex(key shard.Key, gen uint64) (*ShardIndex, error) {
	return nil, errUnbuilt
}
func (m *MemIndexRepo) DropIndex(key shard.Key, gen uint64) (bool, error) { return false, errUnbuilt }
func (m *MemIndexRepo) SweepIndexes(alive func(gen uint64) bool) (int, error) {
	return 0, errUnbuilt
}
func (m *MemIndexRepo) GetFullIndex(key shard.Key) (carindex.Index, error)     { return nil, errUnbuilt }
func (m *MemIndexRepo) AddFullIndex(key shard.Key, index carindex.Index) error { return errUnbuilt }
func (m *MemIndexRepo) DropFullIndex(key shard.Key) (dropped bool, err error) {
	return false, errUnbuilt
}
func (m *MemIndexRepo) StatFullIndex(key shard.Key) (Stat, error)   { return Stat{}, errUnbuilt }
func (m *MemIndexRepo) Len() (int, error)                           { return 0, errUnbuilt }
func (m *MemIndexRepo) ForEach(func(shard.Key) (bool, error)) error { return errUnbuilt }
func (m *MemIndexRepo) Size() (uint64, error)                       { return 0, errUnbuilt }

// MemInverted is a top-level index in memory.
type MemInverted struct{}

// NewMemoryInverted returns an empty top-level index in memory. It implements
// [Inverted] and [Remover].
func NewMemoryInverted() *MemInverted { return nil }

func (v *MemInverted) AddMultihashesForShard(ctx context.Context, it MultihashIterator, s shard.Key) error {
	return errUnbuilt
}
func (v *MemInverted) GetShardsForMultihash(ctx context.Context, h multihash.Multihash) ([]shard.Key, error) {
	return nil, errUnbuilt
}
func (v *MemInverted) RemoveShard(ctx context.Context, key shard.Key) error { return errUnbuilt }

// DSInverted is a top-level index in a go-datastore.
type DSInverted struct{}

// NewInverted returns a top-level index in dts. It implements [Inverted] and
// [Remover].
func NewInverted(dts ds.Batching) *DSInverted { return nil }

func (d *DSInverted) AddMultihashesForShard(ctx context.Context, it MultihashIterator, s shard.Key) error {
	return errUnbuilt
}
func (d *DSInverted) GetShardsForMultihash(ctx context.Context, h multihash.Multihash) ([]shard.Key, error) {
	return nil, errUnbuilt
}
func (d *DSInverted) RemoveShard(ctx context.Context, key shard.Key) error { return errUnbuilt }

var (
	_ carindex.IterableIndex = (*ShardIndex)(nil)
	_ FullIndexRepo          = (*FSIndexRepo)(nil)
	_ FullIndexRepo          = (*MemIndexRepo)(nil)
	_ LifeRepo               = (*FSIndexRepo)(nil)
	_ LifeRepo               = (*MemIndexRepo)(nil)
	_ Inverted               = (*MemInverted)(nil)
	_ Remover                = (*MemInverted)(nil)
	_ Inverted               = (*DSInverted)(nil)
	_ Remover                = (*DSInverted)(nil)
)
