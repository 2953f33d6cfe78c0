package dagstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	ipldformat "github.com/ipfs/go-ipld-format"
	carindex "github.com/ipld/go-car/v2/index"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
	"github.com/dagstore/dagstore/throttle"
)

// This file is a client of every name that the predecessor exported, as clients
// write them. It compiles, or a daemon that changes its import paths does not.
// Package indexbs has its own.

// Package dagstore: functions and methods by their exact signatures.
var (
	_ error  = dagstore.ErrShardUnknown
	_ error  = dagstore.ErrShardExists
	_ error  = dagstore.ErrShardInitializationFailed
	_ error  = dagstore.ErrShardInUse
	_ ds.Key = dagstore.StoreNamespace

	_ func(dagstore.Config) (*dagstore.DAGStore, error)                                                                         = dagstore.NewDAGStore
	_ func(*dagstore.DAGStore, context.Context) error                                                                           = (*dagstore.DAGStore).Start
	_ func(*dagstore.DAGStore, context.Context, shard.Key, mount.Mount, chan dagstore.ShardResult, dagstore.RegisterOpts) error = (*dagstore.DAGStore).RegisterShard
	_ func(*dagstore.DAGStore, context.Context, shard.Key, chan dagstore.ShardResult, dagstore.DestroyOpts) error               = (*dagstore.DAGStore).DestroyShard
	_ func(*dagstore.DAGStore, context.Context, shard.Key, chan dagstore.ShardResult, dagstore.AcquireOpts) error               = (*dagstore.DAGStore).AcquireShard
	_ func(*dagstore.DAGStore, context.Context, shard.Key, chan dagstore.ShardResult, dagstore.RecoverOpts) error               = (*dagstore.DAGStore).RecoverShard
	_ func(*dagstore.DAGStore, shard.Key) (dagstore.ShardInfo, error)                                                           = (*dagstore.DAGStore).GetShardInfo
	_ func(*dagstore.DAGStore, shard.Key) (carindex.IterableIndex, error)                                                       = (*dagstore.DAGStore).GetIterableIndex
	_ func(*dagstore.DAGStore) dagstore.AllShardsInfo                                                                           = (*dagstore.DAGStore).AllShardsInfo
	_ func(*dagstore.DAGStore, context.Context, mh.Multihash) ([]shard.Key, error)                                              = (*dagstore.DAGStore).ShardsContainingMultihash
	_ func(*dagstore.DAGStore, context.Context) (*dagstore.GCResult, error)                                                     = (*dagstore.DAGStore).GC
	_ func(*dagstore.DAGStore) error                                                                                            = (*dagstore.DAGStore).Close

	_ dagstore.ShardIndexer                                                                = func(context.Context, shard.Key, mount.Reader) (carindex.Index, error) { return nil, nil }
	_ func(*dagstore.GCResult) int                                                         = (*dagstore.GCResult).ShardFailures
	_ func(context.Context, *dagstore.DAGStore, chan dagstore.ShardResult, uint64, func()) = dagstore.RecoverImmediately
	_ func(dagstore.OpType) string                                                         = dagstore.OpType.String
	_ func(dagstore.ShardState) string                                                     = dagstore.ShardState.String
	_ json.Marshaler                                                                       = (*dagstore.Shard)(nil)
	_ json.Unmarshaler                                                                     = (*dagstore.Shard)(nil)
	_ func(mount.Reader, carindex.Index, *dagstore.Shard) (*dagstore.ShardAccessor, error) = dagstore.NewShardAccessor

	// The interface that a fork's client has its accessor cache ask for.
	_ interface {
		Reader() io.Reader
		Blockstore() (dagstore.ReadBlockstore, error)
		io.Closer
	} = (*dagstore.ShardAccessor)(nil)
	_ func(*dagstore.ShardAccessor) shard.Key                        = (*dagstore.ShardAccessor).Shard
	_ func(*dagstore.ShardAccessor) (dagstore.ReadBlockstore, error) = (*dagstore.ShardAccessor).Blockstore
	_ func(*dagstore.ShardAccessor) error                            = (*dagstore.ShardAccessor).Close

	// What live clients use of forks.
	_ func(*dagstore.ShardAccessor) io.Reader              = (*dagstore.ShardAccessor).Reader
	_ func(*dagstore.DAGStore) map[dagstore.ShardState]int = (*dagstore.DAGStore).Stats
	_ func(ds.Datastore) dagstore.ShardRepo                = dagstore.NewBadgerShardRepo
	_ error                                                = mount.ErrTransientNotFound
	_                                                      = dagstore.AcquireOpts{NoDownload: true}
)

// storeInterface and readBlockstore are the predecessor's interfaces, method by
// method: each is assignable to ours and ours to each, so none has grown.
type storeInterface interface {
	Start(ctx context.Context) error
	RegisterShard(ctx context.Context, key shard.Key, mnt mount.Mount, out chan dagstore.ShardResult, opts dagstore.RegisterOpts) error
	DestroyShard(ctx context.Context, key shard.Key, out chan dagstore.ShardResult, _ dagstore.DestroyOpts) error
	AcquireShard(ctx context.Context, key shard.Key, out chan dagstore.ShardResult, _ dagstore.AcquireOpts) error
	RecoverShard(ctx context.Context, key shard.Key, out chan dagstore.ShardResult, _ dagstore.RecoverOpts) error
	GetShardInfo(k shard.Key) (dagstore.ShardInfo, error)
	GetIterableIndex(key shard.Key) (carindex.IterableIndex, error)
	AllShardsInfo() dagstore.AllShardsInfo
	ShardsContainingMultihash(ctx context.Context, h mh.Multihash) ([]shard.Key, error)
	GC(ctx context.Context) (*dagstore.GCResult, error)
	Close() error
}

type readBlockstore interface {
	Has(context.Context, cid.Cid) (bool, error)
	Get(context.Context, cid.Cid) (blocks.Block, error)
	GetSize(context.Context, cid.Cid) (int, error)
	AllKeysChan(ctx context.Context) (<-chan cid.Cid, error)
	HashOnRead(enabled bool)
}

type shardRepo interface {
	SaveShard(ctx context.Context, s *dagstore.PersistedShard) error
	GetShard(ctx context.Context, key string) (*dagstore.PersistedShard, error)
	ListShards(ctx context.Context) ([]*dagstore.PersistedShard, error)
	HasShard(ctx context.Context, key string) (bool, error)
	DeleteShard(ctx context.Context, key string) error
}

var (
	_ storeInterface          = dagstore.Interface(nil)
	_ dagstore.Interface      = storeInterface(nil)
	_ readBlockstore          = dagstore.ReadBlockstore(nil)
	_ dagstore.ReadBlockstore = readBlockstore(nil)
	_ shardRepo               = dagstore.ShardRepo(nil)
	_ dagstore.ShardRepo      = shardRepo(nil)
)

// mockStore is a client's mock, which has the eleven methods and no more.
type mockStore struct{}

func (mockStore) Start(context.Context) error { return nil }
func (mockStore) RegisterShard(context.Context, shard.Key, mount.Mount, chan dagstore.ShardResult, dagstore.RegisterOpts) error {
	return nil
}
func (mockStore) DestroyShard(context.Context, shard.Key, chan dagstore.ShardResult, dagstore.DestroyOpts) error {
	return nil
}
func (mockStore) AcquireShard(context.Context, shard.Key, chan dagstore.ShardResult, dagstore.AcquireOpts) error {
	return nil
}
func (mockStore) RecoverShard(context.Context, shard.Key, chan dagstore.ShardResult, dagstore.RecoverOpts) error {
	return nil
}
func (mockStore) GetShardInfo(shard.Key) (dagstore.ShardInfo, error) {
	return dagstore.ShardInfo{ShardState: dagstore.ShardStateServing}, nil
}
func (mockStore) GetIterableIndex(shard.Key) (carindex.IterableIndex, error) { return nil, nil }
func (mockStore) AllShardsInfo() dagstore.AllShardsInfo                      { return nil }
func (mockStore) ShardsContainingMultihash(context.Context, mh.Multihash) ([]shard.Key, error) {
	return nil, nil
}
func (mockStore) GC(context.Context) (*dagstore.GCResult, error) { return nil, nil }
func (mockStore) Close() error                                   { return nil }

// embedded holds the interface by value, as clients' wrappers do.
type embedded struct{ dagstore.Interface }

// A client's configuration, with the field names and types of the predecessor.
var _ = dagstore.Config{
	TransientsDir:             string(""),
	IndexRepo:                 index.FullIndexRepo(nil),
	TopLevelIndex:             index.Inverted(nil),
	Datastore:                 ds.Datastore(nil),
	MountRegistry:             (*mount.Registry)(nil),
	TraceCh:                   (chan<- dagstore.Trace)(nil),
	FailureCh:                 (chan<- dagstore.ShardResult)(nil),
	MaxConcurrentIndex:        int(0),
	MaxConcurrentReadyFetches: int(0),
	RecoverOnStart:            dagstore.RecoverOnAcquire,
	ShardIndexer:              dagstore.ShardIndexer(nil),
	ShardRepo:                 dagstore.ShardRepo(nil),
}

var (
	_ = dagstore.RegisterOpts{ExistingTransient: string(""), LazyInitialization: bool(false)}
	_ = dagstore.AcquireOpts{}
	_ = dagstore.RecoverOpts{}
	_ = dagstore.DestroyOpts{}
	_ = dagstore.ShardResult{Key: shard.Key{}, Error: error(nil), Accessor: (*dagstore.ShardAccessor)(nil)}
	_ = dagstore.Trace{Key: shard.Key{}, Op: dagstore.OpShardFail, After: dagstore.ShardInfo{}}
	_ = dagstore.ShardInfo{ShardState: dagstore.ShardStateNew, Error: error(nil)}
	_ = dagstore.AllShardsInfo(map[shard.Key]dagstore.ShardInfo{})
	_ = dagstore.GCResult{Shards: map[shard.Key]error{}}
	_ = dagstore.PersistedShard{Key: string(""), URL: string(""), TransientPath: string(""), State: dagstore.ShardStateNew, Lazy: bool(false), Error: string("")}
)

// Package index.
type (
	fullIndexRepo interface {
		GetFullIndex(key shard.Key) (carindex.Index, error)
		AddFullIndex(key shard.Key, index carindex.Index) error
		DropFullIndex(key shard.Key) (dropped bool, err error)
		StatFullIndex(key shard.Key) (index.Stat, error)
		Len() (int, error)
		ForEach(func(shard.Key) (bool, error)) error
		Size() (uint64, error)
	}
	manifestRepo interface {
		ListManifests(shard.Key) ([]index.ManifestKey, error)
		GetManifest(index.ManifestKey) (index.Manifest, error)
		AddManifest(index.ManifestKey, index.Manifest) error
		DropManifest(index.ManifestKey) (bool, error)
		StatManifest(index.ManifestKey) (index.Stat, error)
	}
	manifest interface {
		Contains(c cid.Cid) (bool, error)
		Len() (l int64, err error)
		ForEach(func(c cid.Cid) (ok bool, err error)) error
	}
	multihashIterator interface {
		ForEach(func(mh mh.Multihash) error) error
	}
	inverted interface {
		AddMultihashesForShard(ctx context.Context, mhIter index.MultihashIterator, s shard.Key) error
		GetShardsForMultihash(ctx context.Context, h mh.Multihash) ([]shard.Key, error)
	}
	bothRepos interface {
		fullIndexRepo
		manifestRepo
	}
)

var (
	_ error                   = index.ErrNotFound
	_ fullIndexRepo           = index.FullIndexRepo(nil)
	_ index.FullIndexRepo     = fullIndexRepo(nil)
	_ manifestRepo            = index.ManifestRepo(nil)
	_ index.ManifestRepo      = manifestRepo(nil)
	_ bothRepos               = index.Repo(nil)
	_ index.Repo              = bothRepos(nil)
	_ manifest                = index.Manifest(nil)
	_ index.Manifest          = manifest(nil)
	_ multihashIterator       = index.MultihashIterator(nil)
	_ index.MultihashIterator = multihashIterator(nil)
	_ inverted                = index.Inverted(nil)
	_ index.Inverted          = inverted(nil)

	_                                          = index.Stat{Exists: bool(false), Size: uint64(0)}
	_                                          = index.ManifestKey{Shard: shard.Key{}, GenRule: string(""), GenVersion: uint(0)}
	_ func(string) (*index.FSIndexRepo, error) = index.NewFSRepo
	_ func() *index.MemIndexRepo               = index.NewMemoryRepo
	_ index.FullIndexRepo                      = (*index.FSIndexRepo)(nil)
	_ index.FullIndexRepo                      = (*index.MemIndexRepo)(nil)
	_ index.Inverted                           = newInverted(nil)
)

// newInverted assigns what NewInverted returns without naming its type, which the
// predecessor's clients could not.
func newInverted(d ds.Batching) index.Inverted {
	if d == nil {
		return nil
	}
	topIndex := index.NewInverted(d)
	return topIndex
}

// Package mount.
type (
	mountMount interface {
		io.Closer
		Fetch(ctx context.Context) (mount.Reader, error)
		Info() mount.Info
		Stat(ctx context.Context) (mount.Stat, error)
		Serialize() *url.URL
		Deserialize(*url.URL) error
	}
	mountReader interface {
		io.Closer
		io.Reader
		io.ReaderAt
		io.Seeker
	}
)

var (
	_ = []error{mount.ErrSeekUnsupported, mount.ErrRandomAccessUnsupported, mount.ErrUnrecognizedScheme, mount.ErrUnrecognizedType}

	_ mountMount   = mount.Mount(nil)
	_ mount.Mount  = mountMount(nil)
	_ mountReader  = mount.Reader(nil)
	_ mount.Reader = mountReader(nil)
	_ mount.Reader = &mount.NopCloser{Reader: io.Reader(nil), ReaderAt: io.ReaderAt(nil), Seeker: io.Seeker(nil)}

	_             = mount.Info{Kind: mount.KindRemote, AccessSequential: true, AccessSeek: true, AccessRandom: true}
	_             = mount.Stat{Exists: bool(false), Size: int64(0), Ready: bool(false)}
	_ mount.Mount = &mount.BytesMount{Bytes: []byte(nil)}
	_ mount.Mount = &mount.FileMount{Path: string("")}
	_ mount.Mount = &mount.FSMount{FS: fs.FS(nil), Path: string("")}
	_ mount.Mount = &mount.Counting{Mount: mount.Mount(nil)}
	_ mount.Mount = (*mount.Upgrader)(nil)

	_ func(*mount.Counting) int                            = (*mount.Counting).Count
	_ func() *mount.Registry                               = mount.NewRegistry
	_ func(*mount.Registry, string, mount.Mount) error     = (*mount.Registry).Register
	_ func(*mount.Registry, *url.URL) (mount.Mount, error) = (*mount.Registry).Instantiate
	_ func(*mount.Registry, mount.Mount) (*url.URL, error) = (*mount.Registry).Represent
	_ func(*mount.Upgrader) string                         = (*mount.Upgrader).TransientPath
	_ func(*mount.Upgrader) int                            = (*mount.Upgrader).TimesFetched
	_ func(*mount.Upgrader) mount.Mount                    = (*mount.Upgrader).Underlying
	_ func(*mount.Upgrader) error                          = (*mount.Upgrader).DeleteTransient
)

// upgrade calls as clients do: mount takes any throttler, throttle.Throttler among them.
func upgrade(m mount.Mount, t throttle.Throttler) (*mount.Upgrader, error) {
	return mount.Upgrade(m, t, "rootdir", "key", "initial")
}

// Packages shard, throttle and testdata.
type throttler interface {
	Do(context.Context, func(ctx context.Context) error) error
}

var (
	_ func(string) shard.Key       = shard.KeyFromString
	_ func([]byte) shard.Key       = shard.KeyFromBytes
	_ func(cid.Cid) shard.Key      = shard.KeyFromCID
	_ func(shard.Key) string       = shard.Key.String
	_ json.Marshaler               = shard.Key{}
	_ json.Unmarshaler             = (*shard.Key)(nil)
	_ throttler                    = throttle.Throttler(nil)
	_ throttle.Throttler           = throttler(nil)
	_ func(int) throttle.Throttler = throttle.Fixed
	_ func() throttle.Throttler    = throttle.Noop
	_ fs.ReadFileFS                = testdata.FS
	_ [][]byte                     = [][]byte{testdata.CarV1, testdata.CarV2, testdata.Junk}
	_ cid.Cid                      = testdata.RootCID
	_                              = []string{testdata.RootPathCarV1, testdata.RootPathCarV2, testdata.RootPathJunk}

	_ func(dir string, rseed, size int) (string, error)              = testdata.CreateRandomFile
	_ func(dir, src string) (cid.Cid, string, error)                 = testdata.CreateDenseCARv2
	_ func(path string, into ipldformat.DAGService) (cid.Cid, error) = testdata.WriteUnixfsDAGTo
)

// TestCompatValues holds the values of constants, texts and names that clients
// compare, print or persist. That the file compiles holds the rest.
func TestCompatValues(t *testing.T) {
	states := map[dagstore.ShardState]struct {
		value byte
		name  string
	}{
		dagstore.ShardStateNew:          {0, "ShardStateNew"},
		dagstore.ShardStateInitializing: {1, "ShardStateInitializing"},
		dagstore.ShardStateAvailable:    {2, "ShardStateAvailable"},
		dagstore.ShardStateServing:      {3, "ShardStateServing"},
		dagstore.ShardStateRecovering:   {0x80, "ShardStateRecovering"},
		dagstore.ShardStateErrored:      {0xf0, "ShardStateErrored"},
		dagstore.ShardStateUnknown:      {0xff, "ShardStateUnknown"},
	}
	for s, want := range states {
		if byte(s) != want.value || s.String() != want.name {
			t.Errorf("state %d is called %q, want %d, %q", byte(s), s, want.value, want.name)
		}
	}
	ops := []string{"OpShardRegister", "OpShardInitialize", "OpShardMakeAvailable", "OpShardDestroy",
		"OpShardAcquire", "OpShardFail", "OpShardRelease", "OpShardRecover"}
	for i, op := range []dagstore.OpType{dagstore.OpShardRegister, dagstore.OpShardInitialize, dagstore.OpShardMakeAvailable,
		dagstore.OpShardDestroy, dagstore.OpShardAcquire, dagstore.OpShardFail, dagstore.OpShardRelease, dagstore.OpShardRecover} {
		if int(op) != i || op.String() != ops[i] {
			t.Errorf("operation %d is called %q, want %d, %q", int(op), op, i, ops[i])
		}
	}
	for i, p := range []dagstore.RecoverOnStartPolicy{dagstore.DoNotRecover, dagstore.RecoverOnAcquire, dagstore.RecoverNow} {
		if int(p) != i {
			t.Errorf("recover-on-start policy %d, want %d", p, i)
		}
	}
	if mount.KindLocal != 0 || mount.KindRemote != 1 {
		t.Errorf("mount kinds %d, %d, want 0, 1", mount.KindLocal, mount.KindRemote)
	}
	texts := map[error]string{
		dagstore.ErrShardUnknown:              "shard not found",
		dagstore.ErrShardExists:               "shard already exists",
		dagstore.ErrShardInitializationFailed: "shard initialization failed",
		dagstore.ErrShardInUse:                "shard in use",
		index.ErrNotFound:                     "index not found",
	}
	for err, want := range texts {
		if err.Error() != want {
			t.Errorf("error says %q, want %q", err, want)
		}
	}
	if s := dagstore.StoreNamespace.String(); s != "/dagstore" {
		t.Errorf("namespace %s, want /dagstore", s)
	}
	if n := reflect.TypeFor[dagstore.Interface]().NumMethod(); n != 11 {
		t.Errorf("Interface has %d methods, want 11: clients mock it; put new verbs on *DAGStore", n)
	}
}

// TestCompatUse uses embedded interfaces, embedded states, type assertions and JSON
// as clients do.
func TestCompatUse(t *testing.T) {
	info, err := embedded{mockStore{}}.GetShardInfo(shard.KeyFromString("a"))
	if err != nil || info.String() != "ShardStateServing" || info.ShardState != dagstore.ShardStateServing {
		t.Errorf("embedded mock: %v, %v", info, err)
	}
	d, err := dagstore.NewDAGStore(dagstore.Config{TransientsDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	wrapped := embedded{d}
	if back, ok := wrapped.Interface.(*dagstore.DAGStore); !ok || back != d {
		t.Errorf("the store does not come back out of its interface")
	}
	var top index.Inverted = d.TopLevelIndex // an exported field
	if top == nil {
		t.Errorf("TopLevelIndex is nil by default")
	}
	if err := wrapped.Close(); err != nil {
		t.Error(err)
	}

	tr := dagstore.Trace{Op: dagstore.OpShardFail, After: dagstore.ShardInfo{ShardState: dagstore.ShardStateErrored}}
	if s := tr.Op.String() + " " + tr.After.String() + " " + tr.After.ShardState.String(); s != "OpShardFail ShardStateErrored ShardStateErrored" {
		t.Errorf("trace prints as %q", s)
	}

	const record = `{"k":"baga","u":"fs://x","t":"/t/transient-baga.complete","s":240,"l":true,"e":"why"}`
	var s dagstore.Shard
	if err := json.Unmarshal([]byte(record), &s); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(&s)
	if err != nil || string(b) != record {
		t.Errorf("shard record comes back as %s, %v, want %s", b, err, record)
	}
	b, err = json.Marshal(dagstore.PersistedShard{Key: "baga", URL: "fs://x", TransientPath: "/t/transient-baga.complete",
		State: dagstore.ShardStateErrored, Lazy: true, Error: "why"})
	if err != nil || string(b) != record {
		t.Errorf("persisted shard is %s, %v, want %s", b, err, record)
	}

	keys := map[shard.Key]int{shard.KeyFromString("a"): 1}
	b, err = json.Marshal(shard.KeyFromString("a"))
	var k shard.Key
	if err := errors.Join(err, json.Unmarshal(b, &k)); err != nil || keys[k] != 1 {
		t.Errorf("key through JSON: %s, %v", b, err)
	}
	if k := shard.KeyFromBytes([]byte{0, 1, 2}); k.String() != "15T" {
		t.Errorf("key of bytes is %q, want their base58 form", k)
	}
	if k := shard.KeyFromCID(testdata.RootCID); k.String() != testdata.RootCID.String() {
		t.Errorf("key of a CID is %q, want its text", k)
	}

	u, err := upgrade(&mount.BytesMount{Bytes: testdata.CarV1}, throttle.Fixed(1))
	if err != nil || u.Underlying().(*mount.BytesMount) == nil || u.TransientPath() != "" || u.TimesFetched() != 0 {
		t.Errorf("upgraded mount: %v, %v", u, err)
	}
	if err := errors.Join(u.DeleteTransient(), u.Close()); err != nil {
		t.Error(err)
	}
	c := &mount.Counting{Mount: &mount.BytesMount{Bytes: testdata.CarV1}}
	if _, err := c.Fetch(t.Context()); err != nil || c.Count() != 1 {
		t.Errorf("counting mount counts %d, %v", c.Count(), err)
	}
}

// predecessorTest is one of the tests that the predecessor has at v0.7.0, and the test here
// that holds the store to the same behaviour.
type predecessorTest struct {
	name string // there, with its package
	here string // here
	how  outcome
	why  string // it differs
}

type outcome int

const (
	// same: the test passes here as it is, but for the import paths.
	same outcome = iota
	// documented: it passes once it expects what is documented.
	documented
	// onPurpose: it asserts what is a fault of the predecessor's, or not to be had.
	onPurpose
	// notRun: it is skipped there, or is about the inside only.
	notRun
)

var predecessorTests = []predecessorTest{
	{".TestDestroyShard", ".TestPredecessorDestroy", documented, "the error is ErrShardInUse and says who holds the shard, in other words"},
	{".TestDestroyAcrossRestart", ".TestPredecessorDestroy", documented, "the datastore holds a journal and not a record for each shard"},
	{".TestRegisterUsingExistingTransient", ".TestPredecessorRegister", same, ""},
	{".TestRegisterWithaNilResponseChannel", ".TestPredecessorRegister", same, ""},
	{".TestRegisterCarV1", ".TestPredecessorRegister", same, ""},
	{".TestRegisterCarV2", ".TestPredecessorRegister", same, ""},
	{".TestRegisterConcurrentShards", ".TestConcurrentUse", same, ""},
	{".TestAcquireInexistentShard", ".TestAcquireBeforeRegistered", same, ""},
	{".TestAcquireAfterRegisterWait", ".TestTraceStories", same, ""},
	{".TestConcurrentAcquires", ".TestPredecessorAcquires", same, ""},
	{".TestRestartRestoresState", ".TestPredecessorRestart", documented, "the datastore holds a journal and not a record for each shard"},
	{".TestRestartResumesRegistration", ".TestRestartResumes", same, ""},
	{".TestGC", ".TestGCLeavesWhatIsUsed", same, ""},
	{".TestOrphansRemovedOnStartup", ".TestF18ForeignFiles", onPurpose, "a file that the store did not make is never removed"},
	{".TestLazyInitialization", ".TestLazyFetchedOnce", same, ""},
	{".TestThrottleFetch", ".TestThrottledFetches", same, ""},
	{".TestIndexingFailure", ".TestFailureStories", same, ""},
	{".TestFailureRecovery", ".TestRecoverImmediately", same, ""},
	{".TestRecoveryOnStart", ".TestRecoverOnStart", same, ""},
	{".TestFailingAcquireErrorPropagates", ".TestFailedFetchTellsAll", documented, "the text says what the file is in other words"},
	{".TestTransientReusedOnRestart", ".TestPredecessorRestart", same, ""},
	{".TestAcquireFailsWhenIndexGone", ".TestF20MissingIndex", onPurpose, "an index that is lost is made again, and the acquire succeeds"},
	{".TestBlockCallback", ".TestF11UnreadChannels", notRun, "it is skipped there"},
	{".TestWaiterContextCancelled", ".TestContextEnds", notRun, "it calls what the store has inside"},
	{".TestAcquireContextCancelled", ".TestPredecessorCancelledAcquires", same, ""},
	{".TestMmap", ".TestF14OutlivedHandle", onPurpose, "a file is mapped while its blocks are in memory and are asked for again, not because it is open"},
	{".TestShardStates", ".TestCompatValues", same, ""},
	{"shard.TestKeyMarshalJSON", "shard.TestKeys", same, ""},
	{"throttle.TestThrottler", "throttle.TestFixedBound", same, ""},
	{"index.TestFSRepo", "index.TestFSRepo", documented, "IndexSorted, which cannot be iterated, is refused; the size is that of the file here"},
	{"index.TestFSRepoVersions", "index.TestPredecessorsFiles", documented, "the version is in each file; the predecessor's version file is read and never written"},
	{"index.TestFSRepoLoadFromDisk", "index.TestFSRepo", documented, "IndexSorted, which cannot be iterated, is refused"},
	{"index.TestMemIndexRepo", "index.TestMemoryRepo", documented, "IndexSorted, which cannot be iterated, is refused"},
	{"index.TestDatastoreIndexEmpty", "index.TestDatastoreInverted", same, ""},
	{"index.TestLevelDBBatch", "compat.TestInvertedOverLevelDB", same, ""},
	{"index.TestDatastoreIndex", "index.TestDatastoreInverted", same, ""},
	{"mount.TestUpgrade", "mount.TestUpgraderInitial", same, ""},
	{"mount.TestUpgraderDeduplicatesRemote", "mount.TestUpgraderCompat", same, ""},
	{"mount.TestUpgraderFetchAndCopyThrottle", "mount.TestUpgraderThrottle", onPurpose, "a source that ends before the size that it states is cut off, and no copy"},
	{"mount.TestRegistry", "mount.TestRegistryRefuses", onPurpose, "a type may have several schemes"},
	{"mount.TestRegistryHonoursTemplate", "mount.TestRegistryTemplates", same, ""},
	{"mount.TestRegistryRecognizedType", "mount.TestRegistryTemplates", same, ""},
	{"mount.TestFileMount", "mount.TestURLRoundTrip", documented, "the path is the URL's path; a host cannot hold every path"},
	{"indexbs.TestIndexBackedBlockstore", "indexbs.TestOverStore", same, ""},
	{"indexbs.TestIndexBackedBlockstoreFuzz", "indexbs.TestStress", documented, "a mount whose type is not registered is refused, as it could not be found again"},
}

// TestPredecessorsTests: each of the predecessor's 45 tests is a test here.
func TestPredecessorsTests(t *testing.T) {
	seen, n := make(map[string]bool), make(map[outcome]int)
	for _, p := range predecessorTests {
		if n[p.how]++; seen[p.name] || (p.how == same) != (p.why == "") {
			t.Errorf("%s: twice, or without a reason: %+v", p.name, p)
		}
		seen[p.name] = true
		dir, name, _ := strings.Cut(p.here, ".")
		if !tests(t, dir)[name] {
			t.Errorf("%s: there is no test %s", p.name, p.here)
		}
	}
	if want := (map[outcome]int{same: 28, documented: 10, onPurpose: 5, notRun: 2}); !maps.Equal(n, want) {
		t.Errorf("outcomes %v, want %v", n, want)
	}
}

// tests are the names of the tests in a directory.
func tests(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(".", dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%q: no tests: %v", dir, err)
	}
	all := make(map[string]bool)
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				all[f.Name.Name] = true
			}
		}
	}
	return all
}
