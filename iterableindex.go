package dagstore

import (
	"errors"
	"fmt"

	carindex "github.com/ipld/go-car/v2/index"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/shard"
)

// ErrNotInitialized is returned for the index of a shard that has none yet, because it is
// lazy and was never acquired, or because its initialisation goes on. It is an
// [index.ErrNotFound] too.
var ErrNotInitialized error = notInitialized{}

type notInitialized struct{}

func (notInitialized) Error() string { return "shard is not initialized" }
func (notInitialized) Unwrap() error { return index.ErrNotFound }

// noIndexError says why a shard has no index to give. It is an index.ErrNotFound, as it
// was for clients of the predecessor, without saying so twice.
type noIndexError struct {
	key shard.Key
	why error
}

func (e *noIndexError) Error() string {
	return fmt.Sprintf("index of shard %.*q: %v", maxNamed, e.key, e.why)
}
func (e *noIndexError) Unwrap() []error { return []error{e.why, index.ErrNotFound} }

// GetIterableIndex returns the index of an available shard, which needs no closing. It
// returns [ErrShardUnknown], [ErrNotInitialized], the error of an errored shard, an
// *[UnavailableError] while a shard is being recovered, or what its repository says.
// Identity multihashes are in it; index.WithoutIdentity leaves them out, as IPNI wants.
func (d *DAGStore) GetIterableIndex(key shard.Key) (carindex.IterableIndex, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	info, err := d.GetShardInfo(key)
	if errors.Is(err, ErrShardUnknown) {
		return nil, &noIndexError{key, ErrShardUnknown}
	}
	if err != nil {
		return nil, err
	}
	switch info.ShardState {
	case ShardStateNew, ShardStateInitializing:
		return nil, &noIndexError{key, ErrNotInitialized}
	case ShardStateErrored:
		return nil, &noIndexError{key, info.Error}
	case ShardStateRecovering:
		return nil, &UnavailableError{Shards: []shard.Key{key}, Reason: info.Error}
	}
	idx, err := d.indexOf(key)
	if err != nil {
		return nil, fmt.Errorf("index of shard %.*q: %w", maxNamed, key, err)
	}
	it, ok := idx.(carindex.IterableIndex)
	if !ok {
		return nil, fmt.Errorf("index of shard %.*q: %w", maxNamed, key, errNotIterable)
	}
	return it, nil
}

// indexOf returns the index of this life of a shard, or of a repository that knows no
// lives the one that it has.
func (d *DAGStore) indexOf(key shard.Key) (carindex.Index, error) {
	life, ok := d.cfg.IndexRepo.(index.LifeRepo)
	rec := d.cat.Get(key)
	if !ok || rec == nil {
		return d.cfg.IndexRepo.GetFullIndex(key)
	}
	x, err := life.OpenIndex(key, rec.Gen())
	if errors.Is(err, index.ErrNotFound) {
		return d.cfg.IndexRepo.GetFullIndex(key)
	}
	return x, err
}
