package dagstore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ipfs/go-cid"
	carindex "github.com/ipld/go-car/v2/index"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// chooseTopLevel decides whose the top-level index is.
func (d *DAGStore) chooseTopLevel() {
	given := d.cfg.TopLevelIndex
	if isGiven(given) {
		d.TopLevelIndex = given
		d.top.Store(newTopLevel(d, newGivenEntries(d, given)))
		return
	}
	d.TopLevelIndex = currentIndex{d}
	x, asked := given.(*index.DSInverted)
	if !asked || x == nil {
		return
	}
	x.ServeFrom(d.TopLevelIndex)
	if place, ok := d.cfg.IndexRepo.(interface{ TopLevelDir() string }); ok && d.cfg.TopLevelDir == "" {
		d.cfg.TopLevelDir = place.TopLevelDir()
	}
}

// isGiven says whether x is an index of somebody's own, and not a name for the store's.
func isGiven(x index.Inverted) bool {
	_, own := x.(*index.DSInverted)
	return x != nil && !own
}

// givenEntries are entries in an index that somebody else brings. It knows keys and not
// lives, it may be of another store or of none, and what it does may take long. So it is
// asked what it has, the catalogue says what of that counts, and nobody waits for a
// removal but who removed the shard, or gives its key to another.
type givenEntries struct {
	*givenIndex
	again bool // made to fill the index anew
}

// givenIndex is what givenEntries of one index have in common.
type givenIndex struct {
	d     *DAGStore
	index index.Inverted
	keys  keyLocks

	// leaving holds the lives that are over and may still have entries, by key. Whoever
	// comes first removes them: the sweep of that life, or the next life before it adds
	// its own. The loop takes part, so no long work is done under it.
	leaving struct {
		sync.Mutex
		lives map[shard.Key][]uint64
		// doubted are keys that have entries of what they no longer hold, which nothing
		// can remove. Their own indices are asked.
		doubted map[shard.Key]struct{}
		n       atomic.Int64 // keys in both
	}
}

func newGivenEntries(d *DAGStore, x index.Inverted) *givenEntries {
	g := &givenIndex{d: d, index: x}
	g.leaving.lives = make(map[shard.Key][]uint64)
	g.leaving.doubted = make(map[shard.Key]struct{})
	return &givenEntries{givenIndex: g}
}

// holding asks the index for one block of each shard: that which is added after all
// others. So an index that was lost, that is of an earlier scheme or another store, or
// that a crash kept from being filled, is found out at the cost of one lookup a shard.
func (g *givenEntries) holding(ctx context.Context) (func(*projection.Record) (bool, error), error) {
	if g.again {
		return func(*projection.Record) (bool, error) { return false, nil }, nil
	}
	return func(rec *projection.Record) (bool, error) {
		it, done, err := g.d.indices.multihashes(rec.Key(), rec.Gen())
		if err != nil {
			return false, nil // whoever enters it finds out why
		}
		defer done()
		var last mh.Multihash
		err = it.ForEach(func(m mh.Multihash) error {
			last = slices.Clone(m)
			return errStopIteration
		})
		switch {
		case last == nil && err == nil:
			return true, nil
		case !errors.Is(err, errStopIteration):
			return false, nil
		}
		keys, err := g.index.GetShardsForMultihash(ctx, last)
		if err != nil && !errors.Is(err, errNoShard) {
			return false, err
		}
		return slices.Contains(keys, rec.Key()), nil
	}, nil
}

var errStopIteration = errors.New("stop")

// firstLast delivers the first multihash after all others. Indices that are filled batch
// by batch have it only if they have the others.
type firstLast struct{ index.MultihashIterator }

func (f firstLast) ForEach(visit func(mh.Multihash) error) error {
	var first mh.Multihash
	err := f.MultihashIterator.ForEach(func(m mh.Multihash) error {
		if first == nil {
			first = slices.Clone(m)
			return nil
		}
		return visit(m)
	})
	if err != nil || first == nil {
		return err
	}
	return visit(first)
}

func (g *givenEntries) fresh() (shardEntries, error) {
	return &givenEntries{givenIndex: g.givenIndex, again: true}, nil
}

func (g *givenEntries) succeed(shardEntries, journal.Position) error { return nil }

func (g *givenEntries) add(ctx context.Context, in ingest, current func() bool, it index.MultihashIterator) error {
	defer g.keys.lock(in.key)()
	if !current() {
		return ErrShardUnknown
	}
	if err := g.removeLocked(ctx, in.key); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		g.d.log.Warn("the top-level index keeps entries of a shard that was destroyed", "shard", in.key.String(), "err", err)
		g.doubt(in.key)
	}
	if now := g.d.cat.Get(in.key); in.again && (now == nil || tagOf(now.Index()) != in.tag) {
		// What it held stays, so that its blocks are known to be away and not to be
		// nowhere while it is indexed again.
		g.doubt(in.key)
	}
	return g.index.AddMultihashesForShard(ctx, firstLast{it}, in.key)
}

func (g *givenEntries) leave(key shard.Key, gen uint64) {
	l := &g.leaving
	l.Lock()
	defer l.Unlock()
	l.lives[key] = append(l.lives[key], gen)
	g.countLocked()
}

// doubt notes that key has entries of what it does not hold.
func (g *givenIndex) doubt(key shard.Key) {
	l := &g.leaving
	l.Lock()
	defer l.Unlock()
	l.doubted[key] = struct{}{}
	delete(l.lives, key) // they cannot be told from those of the next life any more
	g.countLocked()
}

func (g *givenIndex) countLocked() {
	g.leaving.n.Store(int64(len(g.leaving.lives) + len(g.leaving.doubted)))
}

// doubts says whether key may have entries of what it does not hold.
func (g *givenIndex) doubts(key shard.Key) bool {
	l := &g.leaving
	if l.n.Load() == 0 {
		return false
	}
	l.Lock()
	defer l.Unlock()
	_, leaving := l.lives[key]
	_, doubted := l.doubted[key]
	return leaving || doubted
}

func (g *givenEntries) sweep(ctx context.Context, key shard.Key, _ uint64) error {
	defer g.keys.lock(key)()
	return g.removeLocked(ctx, key)
}

// forget does nothing: the catalogue hides the shard, and the sweep removes its entries.
func (g *givenEntries) forget() {}

// removeLocked removes the entries of the lives of key that are over, or leaves them to
// the next who tries.
func (g *givenIndex) removeLocked(ctx context.Context, key shard.Key) error {
	l := &g.leaving
	l.Lock()
	lives := slices.Clone(l.lives[key])
	l.Unlock()
	for _, gen := range lives {
		if err := g.removeLife(ctx, key, gen); err != nil {
			return err
		}
		l.Lock()
		if l.lives[key] = slices.DeleteFunc(l.lives[key], func(g uint64) bool { return g == gen }); len(l.lives[key]) == 0 {
			delete(l.lives, key)
		}
		g.countLocked()
		l.Unlock()
	}
	return nil
}

// removeLife removes the entries of one life: by its own index if that is there and the
// other can do it.
func (g *givenIndex) removeLife(ctx context.Context, key shard.Key, gen uint64) error {
	if r, ok := g.index.(index.MultihashRemover); ok && g.d.indices.perLife() {
		it, done, err := g.d.indices.multihashes(key, gen)
		if err == nil {
			defer done()
			w := &watchedIterator{it: it}
			if err := r.RemoveMultihashesForShard(ctx, w, key); err == nil || w.err == nil {
				return err
			}
		}
	}
	if r, ok := g.index.(index.Remover); ok {
		err := r.RemoveShard(ctx, key)
		if err == nil {
			l := &g.leaving
			l.Lock()
			defer l.Unlock()
			delete(l.doubted, key)
			g.countLocked()
		}
		return err
	}
	g.doubt(key)
	return nil
}

func (g *givenEntries) find(ctx context.Context, h mh.Multihash, visit func(ingest, bool) bool) error {
	keys, err := g.index.GetShardsForMultihash(ctx, h)
	if err != nil && !errors.Is(err, errNoShard) {
		return err
	}
	for _, k := range keys {
		if g.doubts(k) && !g.mayHold(k, h) {
			continue
		}
		if !visit(ingest{key: k}, false) {
			break
		}
	}
	return nil
}

// mayHold asks the shard's own index. One that cannot be asked may.
func (g *givenIndex) mayHold(key shard.Key, h mh.Multihash) bool {
	rec := g.d.cat.Get(key)
	if rec == nil {
		return false
	}
	has, err := g.d.indices.has(rec.Key(), rec.Gen(), h)
	return has || err != nil
}

func (g *givenEntries) close() error { return nil }

func (st lifeStore) perLife() bool { return true }

func (st lifeStore) has(key shard.Key, gen uint64, h mh.Multihash) (bool, error) {
	x, err := st.repo.OpenIndex(key, gen)
	if err != nil {
		return false, err
	}
	defer x.Close()
	_, found, err := x.FindChecked(string(h))
	return found, err
}

func (st *keyStore) perLife() bool { return false }

func (st *keyStore) has(key shard.Key, _ uint64, h mh.Multihash) (bool, error) {
	idx, err := st.repo.GetFullIndex(key)
	if err != nil {
		return false, err
	}
	found := false
	err = idx.GetAll(cid.NewCidV1(cid.Raw, h), func(uint64) bool {
		found = true
		return false
	})
	if errors.Is(err, carindex.ErrNotFound) {
		err = nil
	}
	return found, err
}

// keyLocks lets one at a time change the entries of a shard. Those of different shards
// are disjoint, and an index of others may take long over one.
type keyLocks struct {
	mu   sync.Mutex
	held map[shard.Key]*keyLock
}

type keyLock struct {
	token chan struct{} // full while somebody holds the lock
	users int           // who hold it or wait
}

// lock waits for the key's lock, and returns what gives it back.
func (l *keyLocks) lock(key shard.Key) (unlock func()) {
	l.mu.Lock()
	k := l.held[key]
	if k == nil {
		if l.held == nil {
			l.held = make(map[shard.Key]*keyLock)
		}
		k = &keyLock{token: make(chan struct{}, 1)}
		l.held[key] = k
	}
	k.users++
	l.mu.Unlock()
	k.token <- struct{}{}
	return func() {
		<-k.token
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, key)
		}
	}
}
