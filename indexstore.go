package dagstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/ipfs/go-cid"
	carindex "github.com/ipld/go-car/v2/index"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// location is where the data of a block lies in the source.
type location struct {
	data int64
	size int
}

// finder finds blocks in a source by multihash. It may be used concurrently.
type finder interface {
	// find returns where a block lies. What is found is to be believed only after the
	// block itself was checked against its multihash, unless checked is set. That a
	// block is not there can be believed.
	find(r io.ReaderAt, m string, checked bool) (location, bool, error)
	// places calls yield for every place of a block, until that returns false. What lies
	// there is to be checked.
	places(r io.ReaderAt, m string, yield func(location) bool) error
	// findInMemory is find, unchecked, of what is known to be in memory. known is false if
	// there is more to be waited for than that is worth: then find finds it.
	findInMemory(r io.ReaderAt, m string) (loc location, found, known bool, err error)
	forEach(func(mh.Multihash, uint64) error) error
	// payloadEnd is where the CARv1 payload ends in the source.
	payloadEnd() int64
	// checkSource proves cheaply that r is what was indexed. It is called once,
	// before find.
	checkSource(r io.ReaderAt, size int64) error
	// prove says whether blocks can be looked for in a source that is not what was
	// indexed, after checkSource said so: where one was, if it hashes, it still is.
	prove() bool
	close()
}

// indexStore keeps the shard indices.
type indexStore interface {
	// build makes the index of a shard durable.
	build(ctx context.Context, j *job, r mount.Reader, size int64) (shard.IndexInfo, index.MultihashIterator, error)
	open(key shard.Key, gen uint64) (finder, error)
	drop(key shard.Key, gen uint64) error
	sweep(alive func(gen uint64) bool) (removed int, err error)
	multihashes(key shard.Key, gen uint64) (it index.MultihashIterator, close func(), err error)
	// has says whether a block is in the index, which is opened for that.
	has(key shard.Key, gen uint64, h mh.Multihash) (bool, error)
	// perLife says whether lives have indices of their own.
	perLife() bool
}

func newIndexStore(repo index.FullIndexRepo) indexStore {
	if life, ok := repo.(index.LifeRepo); ok {
		return lifeStore{repo, life}
	}
	return &keyStore{repo: repo, builder: make(map[shard.Key]uint64)}
}

// maxHeader is the largest CAR header that can be allowed.
const maxHeader = 64 << 20

// anyLayout lets pass what was indexed, whatever the limits were then.
var anyLayout = carscan.Options{MaxHeaderBytes: maxHeader, MaxRoots: math.MaxInt32}

// buildOptions are how sources are scanned.
func (cfg *Config) buildOptions() index.BuildOptions {
	return index.BuildOptions{
		SkipVerify: cfg.SkipVerifyOnIndex, MaxSectionBytes: int(cfg.MaxSectionSize), MaxRecords: cfg.MaxShardRecords,
		MaxHeaderBytes: int(min(cfg.MaxHeaderSize, maxHeader)), MaxRoots: cfg.MaxRoots, SkipUnsupported: cfg.SkipUnsupportedHashes,
	}
}

// draft makes an index of r, with the configured indexer or the built-in scanner. It
// spills into temporary files of repo, if that can make some. It is closed with the job.
func (j *job) draft(ctx context.Context, r mount.Reader, size int64, repo any) (*index.Draft, error) {
	cfg := &j.d.cfg
	opts := cfg.buildOptions()
	opts.Memory, opts.Pool = cfg.IndexMemory, j.d.indexMemory
	if sp, ok := repo.(index.Spiller); ok {
		opts.Spill = func() (index.ScratchFile, error) { return j.createScratch(sp) }
	}
	var d *index.Draft
	var err error
	if cfg.ShardIndexer != nil {
		var idx carindex.Index
		if idx, err = cfg.ShardIndexer(ctx, j.key, unfilled(r)); err == nil {
			d, err = index.DraftFromIndex(ctx, idx, r, size, opts)
		}
	} else {
		d, err = index.Build(ctx, r, size, opts)
	}
	if err != nil {
		return nil, fmt.Errorf("failed to read/generate CAR Index: %w", err)
	}
	j.held = append(j.held, d)
	j.tellSkipped(d.Skipped())
	return d, nil
}

// tellSkipped logs which blocks are in the file and not in the index.
func (j *job) tellSkipped(s index.Skipped) {
	if s.Blocks == 0 {
		return
	}
	var first []string
	for _, b := range s.First[:min(len(s.First), 4)] {
		first = append(first, fmt.Sprintf("at %d: function %#x with a digest of %d bytes", b.Offset, b.Code, b.DigestLen))
	}
	j.d.log.Warn("blocks with unsupported hashes were left out of the index", "shard", j.key.String(), "blocks", s.Blocks, "bytes", s.Bytes, "first", first)
}

// createScratch makes a temporary file for a build, unless the store is closing.
func (j *job) createScratch(sp index.Spiller) (index.ScratchFile, error) {
	if !j.d.beginWrite() {
		return nil, ErrClosed
	}
	defer j.d.writes.Done()
	f, err := sp.CreateScratch(j.key, j.gen)
	if err != nil {
		return nil, err
	}
	return j.d.scratch.keep(f), nil
}

// scratchFiles are the temporary files of builds. Close of the store removes those of
// builds that it cannot wait for: a late removal could hit a file of whoever opens the
// directory next.
type scratchFiles struct {
	sync.Mutex
	open map[*keptScratch]struct{}
}

// keptScratch is a temporary file that the store closes if its build does not.
type keptScratch struct {
	index.ScratchFile
	by *scratchFiles
}

func (s *scratchFiles) keep(f index.ScratchFile) index.ScratchFile {
	s.Lock()
	defer s.Unlock()
	if s.open == nil {
		s.open = make(map[*keptScratch]struct{})
	}
	k := &keptScratch{f, s}
	s.open[k] = struct{}{}
	return k
}

func (k *keptScratch) Close() error {
	k.by.Lock()
	delete(k.by.open, k)
	k.by.Unlock()
	return k.ScratchFile.Close()
}

func (s *scratchFiles) closeAll() {
	if planted.Bug("store-spill-left-at-close") {
		return
	}
	s.Lock()
	left := slices.Collect(maps.Keys(s.open))
	s.Unlock()
	for _, k := range left {
		k.Close() // what could not be removed is swept at the next start
	}
}

// lifeStore keeps one index per life of a shard.
type lifeStore struct {
	index.FullIndexRepo
	repo index.LifeRepo
}

func (st lifeStore) build(ctx context.Context, j *job, r mount.Reader, size int64) (shard.IndexInfo, index.MultihashIterator, error) {
	if !j.recovering {
		// A crash may have come between the index and its event.
		if x, err := st.repo.OpenIndex(j.key, j.gen); err == nil {
			if _, bound := x.Binding(); bound && x.CheckSource(r, size) == nil && x.Verify(ctx) == nil && planted.Unless("store-adopts-index-unsynced", st.sync) == nil {
				j.held = append(j.held, x)
				return x.Info(), x.Multihashes(), nil
			}
			x.Close()
		}
	}
	d, err := j.draft(ctx, r, size, st.repo)
	if err != nil {
		return shard.IndexInfo{}, nil, err
	}
	if !j.d.beginWrite() {
		return shard.IndexInfo{}, nil, ErrClosed
	}
	defer j.d.writes.Done()
	if err := st.put(ctx, j, d); err != nil {
		return shard.IndexInfo{}, nil, fmt.Errorf("failed to add index for shard: %w", err)
	}
	return d.Info(), d.Multihashes(), nil
}

// put stores a draft. A repository of others may not be able to end with ctx.
func (st lifeStore) put(ctx context.Context, j *job, d *index.Draft) error {
	if p, ok := st.repo.(index.PutterContext); ok {
		return p.PutIndexContext(ctx, j.key, j.gen, d)
	}
	return st.repo.PutIndex(j.key, j.gen, d)
}

// sync makes an index that was found durable, before anybody relies on it.
func (st lifeStore) sync() error {
	if s, ok := st.repo.(index.Syncer); ok {
		return s.SyncIndexes()
	}
	return nil
}

func (st lifeStore) open(key shard.Key, gen uint64) (finder, error) {
	x, err := st.repo.OpenIndex(key, gen)
	if err != nil {
		return nil, err
	}
	return &shardFinder{x: x}, nil
}

// drop also drops what the predecessor left of the key: a shard that is gone has gone there,
// too.
func (st lifeStore) drop(key shard.Key, gen uint64) error {
	_, err := st.repo.DropIndex(key, gen)
	if r, ok := st.repo.(legacyIndices); ok && err == nil {
		if name, ok := index.LegacyName(key.String()); ok {
			_, err = r.DropLegacy(name)
		}
	}
	return err
}

func (st lifeStore) sweep(alive func(gen uint64) bool) (int, error) {
	return st.repo.SweepIndexes(alive)
}

func (st lifeStore) multihashes(key shard.Key, gen uint64) (index.MultihashIterator, func(), error) {
	x, err := st.repo.OpenIndex(key, gen)
	if err != nil {
		return nil, nil, err
	}
	return x.Multihashes(), func() { x.Close() }, nil
}

// shardFinder finds in an index of our own.
type shardFinder struct {
	x    *index.ShardIndex
	base uint64
	// layout is for an index that does not know sizes.
	layout *carscan.Layout
	// borrowed: somebody else has x too, and may give it to us again.
	borrowed bool
}

func (f *shardFinder) checkSource(r io.ReaderAt, size int64) error {
	if err := f.x.CheckSource(r, size); err != nil {
		return err
	}
	b, bound := f.x.Binding()
	if bound && f.x.SizesKnown() {
		f.base = b.DataOffset
		return nil
	}
	l, err := carscan.ReadLayout(r, size, anyLayout)
	if err != nil {
		return err
	}
	f.layout, f.base = l, l.DataOffset
	return nil
}

func (f *shardFinder) prove() bool {
	b, bound := f.x.Binding()
	if !bound || !f.x.SizesKnown() {
		return false
	}
	f.base = b.DataOffset
	return true
}

func (f *shardFinder) find(r io.ReaderAt, m string, checked bool) (location, bool, error) {
	look := f.x.Find
	if checked {
		look = f.x.FindChecked
	}
	e, found, err := look(m)
	if err != nil || !found {
		return location{}, false, err
	}
	loc, err := f.at(r, m, e)
	return loc, err == nil, err
}

// at says where the data of an entry's block lies.
func (f *shardFinder) at(r io.ReaderAt, m string, e index.Entry) (location, error) {
	if e.Size < 0 {
		return sectionAt(r, f.layout, e.Offset, m)
	}
	return location{int64(f.base + e.Offset + uint64(e.HeaderLen)), e.Size}, nil
}

func (f *shardFinder) places(r io.ReaderAt, m string, yield func(location) bool) error {
	return f.x.FindAll(m, func(e index.Entry) bool {
		loc, err := f.at(r, m, e)
		return err != nil || yield(loc)
	})
}

func (f *shardFinder) findInMemory(r io.ReaderAt, m string) (loc location, found, known bool, err error) {
	if !f.x.SizesKnown() {
		loc, found, err = f.find(r, m, false) // the source is asked besides
		return loc, found, true, err
	}
	e, found, known, err := f.x.FindInMemory(m)
	if err != nil || !found {
		return location{}, false, known, err
	}
	loc, err = f.at(r, m, e)
	return loc, err == nil, true, err
}

func (f *shardFinder) payloadEnd() int64 {
	if f.layout != nil {
		return int64(f.layout.DataOffset + f.layout.DataSize)
	}
	b, _ := f.x.Binding()
	return int64(b.DataOffset + b.DataSize)
}

func (f *shardFinder) forEach(visit func(mh.Multihash, uint64) error) error {
	return f.x.ForEach(visit)
}
func (f *shardFinder) close() {
	if !f.borrowed {
		f.x.Close()
	}
}

// sectionAt reads the header of a section to learn where its data lies.
func sectionAt(r io.ReaderAt, l *carscan.Layout, offset uint64, m string) (location, error) {
	var buf [carscan.MaxSectionHeader]byte
	var rec carscan.Record
	if err := carscan.SectionAt(r, l, offset, carscan.Options{MaxSectionBytes: 1 << 30}, buf[:], &rec); err != nil {
		return location{}, err
	}
	code, digest, _ := cids.SplitString(m)
	if rec.Code != code || !bytes.Equal(rec.Digest, digest) {
		return location{}, fmt.Errorf("the section at offset %d is of another block than the index says", offset)
	}
	return location{int64(l.DataOffset + offset + uint64(rec.HeaderLen)), int(rec.Size)}, nil
}

// keyStore keeps one index per key in a repository that knows nothing of lives.
type keyStore struct {
	repo index.FullIndexRepo
	// changing is held while an index is replaced or dropped; it guards builder.
	changing sync.Mutex
	// builder is the generation that last stored an index of the key: what is left
	// of a former life leaves that alone.
	builder map[shard.Key]uint64
}

func (st *keyStore) build(ctx context.Context, j *job, r mount.Reader, size int64) (shard.IndexInfo, index.MultihashIterator, error) {
	d, err := j.draft(ctx, r, size, nil)
	if err != nil {
		return shard.IndexInfo{}, nil, err
	}
	x, err := indexInMemory(d)
	if err != nil {
		return shard.IndexInfo{}, nil, err
	}
	st.changing.Lock()
	defer st.changing.Unlock()
	if st.builder[j.key] > j.gen {
		return shard.IndexInfo{}, nil, ErrShardUnknown // destroyed meanwhile
	}
	if _, err := st.repo.DropFullIndex(j.key); err != nil && !errors.Is(err, index.ErrNotFound) {
		return shard.IndexInfo{}, nil, fmt.Errorf("failed to drop the earlier index of the shard: %w", err)
	}
	if err := st.repo.AddFullIndex(j.key, x); err != nil {
		return shard.IndexInfo{}, nil, fmt.Errorf("failed to add index for shard: %w", err)
	}
	st.builder[j.key] = j.gen
	return d.Info(), d.Multihashes(), nil
}

// indexInMemory opens a draft as the index that it would be on disk.
func indexInMemory(d *index.Draft) (*index.ShardIndex, error) {
	var b bytes.Buffer
	if _, err := d.WriteTo(&b); err != nil {
		return nil, err
	}
	return index.OpenIndex(bytes.NewReader(b.Bytes()), int64(b.Len()), "memory", nil)
}

func (st *keyStore) open(key shard.Key, _ uint64) (finder, error) {
	idx, err := st.repo.GetFullIndex(key)
	if err != nil {
		return nil, err
	}
	return findIn(idx), nil
}

func (st *keyStore) drop(key shard.Key, gen uint64) error {
	st.changing.Lock()
	defer st.changing.Unlock()
	if st.builder[key] > gen {
		return nil
	}
	delete(st.builder, key)
	_, err := st.repo.DropFullIndex(key)
	if errors.Is(err, index.ErrNotFound) {
		return nil
	}
	return err
}

func (st *keyStore) sweep(func(uint64) bool) (int, error) { return 0, nil }

func (st *keyStore) multihashes(key shard.Key, _ uint64) (index.MultihashIterator, func(), error) {
	idx, err := st.repo.GetFullIndex(key)
	if err != nil {
		return nil, nil, err
	}
	it, ok := idx.(carindex.IterableIndex)
	if !ok {
		return nil, nil, errNotIterable
	}
	return multihashesOf{it}, func() {}, nil
}

var errNotIterable = errors.New("index for shard is not iterable")

// multihashesOf adapts a go-car index to what the top-level index reads.
type multihashesOf struct{ carindex.IterableIndex }

func (m multihashesOf) ForEach(visit func(mh.Multihash) error) error {
	return m.IterableIndex.ForEach(func(m mh.Multihash, _ uint64) error { return visit(m) })
}

// findIn finds in any go-car index.
func findIn(idx carindex.Index) finder {
	if x, ok := idx.(*index.ShardIndex); ok {
		return &shardFinder{x: x, borrowed: true}
	}
	return &carFinder{idx: idx}
}

// carFinder finds in a go-car index, which knows offsets only.
type carFinder struct {
	idx    carindex.Index
	layout *carscan.Layout
}

func (f *carFinder) checkSource(r io.ReaderAt, size int64) (err error) {
	f.layout, err = carscan.ReadLayout(r, size, anyLayout)
	return err
}

func (f *carFinder) find(r io.ReaderAt, m string, _ bool) (loc location, found bool, err error) {
	var last error
	err = f.idx.GetAll(cid.NewCidV1(cid.Raw, mh.Multihash(m)), func(offset uint64) bool {
		loc, last = sectionAt(r, f.layout, offset, m)
		found = last == nil
		return !found
	})
	switch {
	case found:
		return loc, true, nil
	case errors.Is(err, carindex.ErrNotFound):
		return location{}, false, nil
	}
	return location{}, false, errors.Join(err, last)
}

func (f *carFinder) places(r io.ReaderAt, m string, yield func(location) bool) error {
	return f.idx.GetAll(cid.NewCidV1(cid.Raw, mh.Multihash(m)), func(offset uint64) bool {
		loc, err := sectionAt(r, f.layout, offset, m)
		return err != nil || yield(loc)
	})
}

func (f *carFinder) findInMemory(r io.ReaderAt, m string) (loc location, found, known bool, err error) {
	loc, found, err = f.find(r, m, false)
	return loc, found, true, err
}

func (f *carFinder) prove() bool { return false }

func (f *carFinder) payloadEnd() int64 { return int64(f.layout.DataOffset + f.layout.DataSize) }

// forEach is called on a goroutine of the store's, which a panic in code of others must
// not end.
func (f *carFinder) forEach(visit func(mh.Multihash, uint64) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("listing the index: panic: %v", p)
		}
	}()
	it, ok := f.idx.(carindex.IterableIndex)
	if !ok {
		return errNotIterable
	}
	return it.ForEach(visit)
}

func (f *carFinder) close() {}
