package dagstore

import (
	"context"
	"errors"
	"sync"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// givenEntries are entries in an index that somebody else brings. It knows keys and not
// lives, so what a life leaves is removed before the next one adds its own.
type givenEntries struct {
	index index.Inverted
	again bool // made to fill the index anew
	keys  keyLocks

	// leaving holds the keys whose former life may still have entries. Whoever comes
	// first removes them: the sweep of that life, or the next life before it adds its
	// own. The loop takes part, so no long work is done under it.
	leaving struct {
		sync.Mutex
		keys map[shard.Key]struct{}
	}
}

func newGivenEntries(x index.Inverted) *givenEntries {
	g := &givenEntries{index: x}
	g.leaving.keys = make(map[shard.Key]struct{})
	return g
}

func (g *givenEntries) whole() bool { return !g.again }

func (g *givenEntries) held(func(ingest)) error { return nil }

func (g *givenEntries) fresh() (shardEntries, error) {
	f := newGivenEntries(g.index)
	f.again = true
	return f, nil
}

func (g *givenEntries) succeed(shardEntries, journal.Position) error { return nil }

func (g *givenEntries) add(ctx context.Context, in ingest, current func() bool, it index.MultihashIterator) error {
	defer g.keys.lock(in.key)()
	if !current() {
		return ErrShardUnknown
	}
	if left := g.left(in.key); left || in.again {
		if err := g.removeLocked(ctx, in.key); err != nil {
			return err
		}
	}
	return g.index.AddMultihashesForShard(ctx, it, in.key)
}

func (g *givenEntries) leave(key shard.Key) {
	g.leaving.Lock()
	defer g.leaving.Unlock()
	g.leaving.keys[key] = struct{}{}
}

// left says, once for each leave, that entries of a former life may be there.
func (g *givenEntries) left(key shard.Key) bool {
	g.leaving.Lock()
	defer g.leaving.Unlock()
	_, ok := g.leaving.keys[key]
	delete(g.leaving.keys, key)
	return ok
}

func (g *givenEntries) sweep(ctx context.Context, key shard.Key) error {
	defer g.keys.lock(key)()
	if !g.left(key) {
		return nil
	}
	return g.removeLocked(ctx, key)
}

func (g *givenEntries) forget(ctx context.Context, key shard.Key, next func() bool) error {
	defer g.keys.lock(key)()
	if next() {
		return nil
	}
	return g.removeLocked(ctx, key)
}

// removeLocked removes all entries of key, or leaves them to the next who tries.
func (g *givenEntries) removeLocked(ctx context.Context, key shard.Key) error {
	r, ok := g.index.(index.Remover)
	if !ok {
		return nil
	}
	err := r.RemoveShard(ctx, key)
	if err != nil {
		g.leave(key)
	}
	return err
}

func (g *givenEntries) find(ctx context.Context, h mh.Multihash, visit func(ingest, bool) bool) error {
	keys, err := g.index.GetShardsForMultihash(ctx, h)
	if err != nil && !errors.Is(err, errNoShard) {
		return err
	}
	for _, k := range keys {
		if !visit(ingest{key: k}, false) {
			break
		}
	}
	return nil
}

func (g *givenEntries) close() error { return nil }

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
