package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	ds "github.com/ipfs/go-datastore"
	dsleveldb "github.com/ipfs/go-ds-leveldb"
	"github.com/multiformats/go-multihash"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/index/toplevel"
	"github.com/dagstore/dagstore/shard"
)

// engine is a top-level index.
type engine interface {
	// add adds a shard. It may be called by several goroutines.
	add(ctx context.Context, no int, mhs shardHashes) error
	// flush makes durable what was added.
	flush() error
	// finder makes what one goroutine looks multihashes up with: how many shards hold it?
	finder() (func(mh multihash.Multihash) (int, error), error)
	close() error
}

// contender is an engine that can be opened.
type contender struct {
	name, does string
	most       int // entries that it is measured with
	open       func(dir string) (engine, error)
}

const (
	batchLen = 10_000 // entries of a synced batch
	forever  = math.MaxInt
)

func contenders() []contender {
	return []contender{
		{"Go map, in memory", "map[[32]byte]uint64, nothing is durable, one shard per block; the baseline", 20_000_000, openMap},
		{"dagstore", "index/toplevel with its defaults: durable by 32 MiB and at the end (after a crash the store adds the rest again from its journal); merges go on after the insert is measured", forever, openOurs(false)},
		{"dagstore, each shard flushed", "the same, made durable after each shard", forever, openOurs(true)},
		{"pebble, an SST per shard", "digest‖shard in one ingested table per shard, Bloom filters of 10 bits, also on the last level, 64 MiB of cache, an iterator per goroutine; compactions go on after the insert is measured", forever, openPebble(true)},
		{"pebble, batches", "the same keys in synced batches of 10,000", forever, openPebble(false)},
		{"goleveldb, batches", "the same keys in synced batches of 10,000, 64 MiB of cache; its filters do not serve searches by prefix", forever, openLeveldb},
		{"index.Inverted on go-ds-leveldb", "the form of dagstore's predecessor: a JSON list of shards per multihash, read, changed and written in synced batches of 4,096", forever, openInverted},
	}
}

// filled is an engine with all entries in it.
type filled struct {
	contender
	engine
	dir      string
	insert   []float64 // entries/s, of each time
	spent    time.Duration
	perEntry float64 // bytes on disk
}

func measureTopLevel(ctx context.Context, cfg config, dir string, progress io.Writer) (_ []table, err error) {
	shards := makeShards(cfg.entries, cfg.perAdd)
	n := 0
	for _, s := range shards {
		n += s.len()
	}
	var all []*filled
	for _, c := range contenders() {
		if n <= c.most {
			all = append(all, &filled{contender: c})
		}
	}
	defer func() {
		for _, f := range all {
			if f.engine != nil {
				err = errors.Join(err, f.close())
			}
		}
	}()
	for round := range cfg.rounds {
		for i, f := range all {
			if f.spent > cfg.patient {
				continue
			}
			if err := f.fill(ctx, cfg, filepath.Join(dir, fmt.Sprintf("%d-%d", i, round)), shards, n); err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
			fmt.Fprintf(progress, "  %-48s %12s inserted\n", f.name, perSecondUnit.format(f.insert[len(f.insert)-1]))
		}
	}
	const sample = 1 << 18
	present := pick(shards, sample)
	absent := makeShard(-1, sample)
	hits, _, err := inTurn(ctx, cfg, 2, lookups(all, present, true), progress)
	if err != nil {
		return nil, err
	}
	misses, _, err := inTurn(ctx, cfg, 2, lookups(all, absent, false), progress)
	if err != nil {
		return nil, err
	}
	t := table{
		title: "Top-level index: which shards hold this block?",
		inputs: fmt.Sprintf("%s SHA2-256 multihashes in %d shards, ascending in each, added by two goroutines; then each is left to its background work until its folder does not change for %s. Then two goroutines look up %s of them in a random order, and as many that are not there; the answers are checked. An insert that took more than %s was not repeated.",
			grouped(n), len(shards), cfg.rest, grouped(sample), cfg.patient),
		columns: []column{
			{title: "insert", unit: perSecondUnit, chart: "Top-level index: insert, durable"},
			{title: "hit", unit: perSecondUnit, chart: "Top-level index: look up a block that is there"},
			{title: "miss", unit: perSecondUnit, chart: "Top-level index: look up a block that is not there"},
			{title: "disk, an entry", unit: bytesUnit},
		},
		baseline: baselineOf(all),
	}
	for i, f := range all {
		t.rows = append(t.rows, row{name: f.name, does: f.does, ours: isOurs(f.name), runs: len(f.insert), cells: []float64{median(f.insert), hits[i], misses[i], f.perEntry}})
	}
	return []table{t}, nil
}

func baselineOf(all []*filled) int {
	if len(all) > 0 && all[0].most < forever {
		return 0
	}
	return none
}

// makeShards makes n entries in shards of some size, or in ten if there are fewer.
func makeShards(n, each int) []shardHashes {
	each = max(1, min(each, n/10))
	shards := make([]shardHashes, n/each)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(shards); i = int(next.Add(1)) - 1 {
				shards[i] = makeShard(i, each)
			}
		})
	}
	wg.Wait()
	return shards
}

// fill opens the engine in a new folder and adds all shards with two goroutines.
func (f *filled) fill(ctx context.Context, cfg config, dir string, shards []shardHashes, n int) error {
	if f.engine != nil {
		e := f.engine
		f.engine = nil
		if err := errors.Join(e.close(), os.RemoveAll(f.dir)); err != nil {
			return err
		}
	}
	e, err := f.open(dir)
	if err != nil {
		return err
	}
	f.engine, f.dir = e, dir
	took, err := timed(func() error {
		var next atomic.Int64
		errs := make([]error, 2)
		var wg sync.WaitGroup
		for g := range errs {
			wg.Go(func() {
				for i := int(next.Add(1)) - 1; i < len(shards) && errs[g] == nil; i = int(next.Add(1)) - 1 {
					errs[g] = e.add(ctx, i, shards[i])
				}
			})
		}
		wg.Wait()
		return errors.Join(append(errs, e.flush())...)
	})
	if err != nil {
		return err
	}
	f.insert = append(f.insert, float64(n)/took.Seconds())
	f.spent += took
	size, err := quiet(ctx, dir, cfg.rest)
	f.perEntry = float64(size) / float64(n)
	if size == 0 {
		f.perEntry = math.NaN()
	}
	return err
}

// lookups are the engines as subjects that look up some multihashes.
func lookups(all []*filled, mhs shardHashes, there bool) []subject {
	order := shuffled(mhs.len())
	mixed := make(shardHashes, 0, len(mhs))
	for _, i := range order {
		mixed = append(mixed, mhs.at(i)...)
	}
	what := "miss"
	if there {
		what = "hit"
	}
	var subjects []subject
	for _, f := range all {
		subjects = append(subjects, subject{name: f.name + ": " + what, worker: func() (operation, error) {
			find, err := f.finder()
			if err != nil {
				return nil, err
			}
			return func(n int) error {
				mh := mixed.at(n % mixed.len())
				found, err := find(mh)
				if err == nil && (found > 0) != there {
					err = fmt.Errorf("%x: %d shards", []byte(mh), found)
				}
				return err
			}, nil
		}})
	}
	return subjects
}

// mapEngine is a Go map.
type mapEngine struct {
	mu sync.Mutex
	m  map[[digestLen]byte]uint64
}

func openMap(dir string) (engine, error) {
	return &mapEngine{m: make(map[[digestLen]byte]uint64)}, os.Mkdir(dir, 0o700)
}

func (e *mapEngine) add(_ context.Context, no int, mhs shardHashes) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range mhs.len() {
		e.m[[digestLen]byte(mhs.at(i)[2:])] = uint64(no)
	}
	return nil
}

func (e *mapEngine) flush() error { return nil }
func (e *mapEngine) close() error { return nil }

func (e *mapEngine) finder() (func(multihash.Multihash) (int, error), error) {
	return func(mh multihash.Multihash) (int, error) {
		if _, ok := e.m[[digestLen]byte(mh[2:])]; ok {
			return 1, nil
		}
		return 0, nil
	}, nil
}

// ours is dagstore's index.
type ours struct {
	x    *toplevel.Index
	each bool // flush after each shard
}

func openOurs(each bool) func(dir string) (engine, error) {
	return func(dir string) (engine, error) {
		x, err := toplevel.Open(dir, toplevel.Options{}, toplevel.Hooks{})
		if err != nil {
			return nil, err
		}
		x.Start()
		return &ours{x, each}, nil
	}
}

func (e *ours) add(ctx context.Context, no int, mhs shardHashes) error {
	err := e.x.Add(ctx, toplevel.Ingest{Key: keyOf(no), Gen: uint64(no) + 1}, mhs)
	if err == nil && e.each {
		err = e.x.Flush(nil)
	}
	return err
}

func keyOf(no int) shard.Key { return shard.KeyFromString(fmt.Sprintf("shard-%034d", no)) }

func (e *ours) flush() error { return e.x.Flush(nil) }
func (e *ours) close() error { return e.x.Close() }

func (e *ours) finder() (func(multihash.Multihash) (int, error), error) {
	return func(mh multihash.Multihash) (n int, err error) {
		err = e.x.Lookup(mh, func(toplevel.Ingest) bool { n++; return true })
		return n, err
	}, nil
}

// wideKey is a digest and a shard's number.
func wideKey(b []byte, mh multihash.Multihash, no int) []byte {
	return binary.BigEndian.AppendUint64(append(b[:0], mh[2:]...), uint64(no))
}

// pebbleEngine keeps digest‖shard.
type pebbleEngine struct {
	db     *pebble.DB
	opts   *pebble.Options
	dir    string
	ingest bool
	mu     sync.Mutex
	iters  []*pebble.Iterator
}

func openPebble(ingest bool) func(dir string) (engine, error) {
	return func(dir string) (engine, error) {
		comparer := *pebble.DefaultComparer
		comparer.Name = "digest"
		comparer.Split = func(key []byte) int { return min(len(key), digestLen) }
		opts := &pebble.Options{Comparer: &comparer, Logger: silent{}, FormatMajorVersion: pebble.FormatNewest, Cache: pebble.NewCache(64 << 20)}
		defer opts.Cache.Unref() // the database holds it
		for i := range opts.Levels {
			opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		}
		opts.EnsureDefaults()
		db, err := pebble.Open(dir, opts)
		if err != nil {
			return nil, err
		}
		return &pebbleEngine{db: db, opts: opts, dir: dir, ingest: ingest}, nil
	}
}

// silent is a pebble.Logger that says nothing unless the database has to stop.
type silent struct{}

func (silent) Infof(string, ...any)              {}
func (silent) Errorf(string, ...any)             {}
func (silent) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func (e *pebbleEngine) add(ctx context.Context, no int, mhs shardHashes) error {
	if e.ingest {
		return e.ingestShard(ctx, no, mhs)
	}
	var key []byte
	for from := 0; from < mhs.len(); from += batchLen {
		b := e.db.NewBatch()
		for i := from; i < min(from+batchLen, mhs.len()); i++ {
			key = wideKey(key, mhs.at(i), no)
			if err := b.Set(key, nil, nil); err != nil {
				return err
			}
		}
		if err := errors.Join(b.Commit(pebble.Sync), b.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (e *pebbleEngine) ingestShard(ctx context.Context, no int, mhs shardHashes) error {
	path := filepath.Join(e.dir, fmt.Sprintf("shard-%d.ingest", no))
	f, err := vfs.Default.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	w := sstable.NewWriter(objstorageprovider.NewFileWritable(f), e.opts.MakeWriterOptions(0, e.db.TableFormat()))
	var key []byte
	for i := range mhs.len() {
		key = wideKey(key, mhs.at(i), no)
		if err := w.Set(key, nil); err != nil {
			return errors.Join(err, w.Close())
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return e.db.Ingest(ctx, []string{path})
}

// flush does nothing: tables are durable when they are ingested and batches when they
// are committed, and DB.Flush would wait for compactions.
func (e *pebbleEngine) flush() error { return nil }

func (e *pebbleEngine) close() error {
	for _, it := range e.iters {
		if err := it.Close(); err != nil {
			return err
		}
	}
	return e.db.Close()
}

func (e *pebbleEngine) finder() (func(multihash.Multihash) (int, error), error) {
	it, err := e.db.NewIter(&pebble.IterOptions{UseL6Filters: true})
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.iters = append(e.iters, it)
	e.mu.Unlock()
	return func(mh multihash.Multihash) (n int, err error) {
		for ok := it.SeekPrefixGE(mh[2:]); ok; ok = it.Next() {
			n++
		}
		return n, it.Error()
	}, nil
}

// leveldbEngine keeps digest‖shard.
type leveldbEngine struct{ db *leveldb.DB }

func openLeveldb(dir string) (engine, error) {
	db, err := leveldb.OpenFile(dir, &opt.Options{Filter: filter.NewBloomFilter(10), BlockCacheCapacity: 64 << 20})
	if err != nil {
		return nil, err
	}
	return &leveldbEngine{db}, nil
}

func (e *leveldbEngine) add(_ context.Context, no int, mhs shardHashes) error {
	var key []byte
	for from := 0; from < mhs.len(); from += batchLen {
		b := new(leveldb.Batch)
		for i := from; i < min(from+batchLen, mhs.len()); i++ {
			key = wideKey(key, mhs.at(i), no)
			b.Put(key, nil)
		}
		if err := e.db.Write(b, &opt.WriteOptions{Sync: true}); err != nil {
			return err
		}
	}
	return nil
}

func (e *leveldbEngine) flush() error { return nil }
func (e *leveldbEngine) close() error { return e.db.Close() }

func (e *leveldbEngine) finder() (func(multihash.Multihash) (int, error), error) {
	return func(mh multihash.Multihash) (n int, err error) {
		it := e.db.NewIterator(util.BytesPrefix(mh[2:]), nil)
		for it.Next() {
			n++
		}
		it.Release()
		return n, it.Error()
	}, nil
}

// invertedEngine is index.Inverted over any datastore.
type invertedEngine struct {
	inv   index.Inverted
	store io.Closer
}

func openInverted(dir string) (engine, error) {
	store, err := dsleveldb.NewDatastore(dir, nil)
	if err != nil {
		return nil, err
	}
	return &invertedEngine{index.NewInverted(store), store}, nil
}

func (e *invertedEngine) add(ctx context.Context, no int, mhs shardHashes) error {
	return e.inv.AddMultihashesForShard(ctx, mhs, keyOf(no))
}

func (e *invertedEngine) flush() error { return nil }
func (e *invertedEngine) close() error { return e.store.Close() }

func (e *invertedEngine) finder() (func(multihash.Multihash) (int, error), error) {
	return func(mh multihash.Multihash) (int, error) {
		keys, err := e.inv.GetShardsForMultihash(context.Background(), mh)
		if errors.Is(err, ds.ErrNotFound) {
			return 0, nil
		}
		return len(keys), err
	}, nil
}
