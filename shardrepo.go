package dagstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// ShardRepo keeps one record per shard, as forks of the predecessor have it. A store
// over one is as durable as its SaveShard: a batch of changes is saved record by
// record, so a crash may keep some of it.
type ShardRepo interface {
	SaveShard(ctx context.Context, s *PersistedShard) error
	GetShard(ctx context.Context, key string) (*PersistedShard, error)
	ListShards(ctx context.Context) ([]*PersistedShard, error)
	HasShard(ctx context.Context, key string) (bool, error)
	DeleteShard(ctx context.Context, key string) error
}

// NewBadgerShardRepo returns a ShardRepo over a datastore, which keeps JSON records
// under the shards' keys.
func NewBadgerShardRepo(store ds.Datastore) ShardRepo { return dsShardRepo{store} }

type dsShardRepo struct{ ds ds.Datastore }

func (r dsShardRepo) SaveShard(ctx context.Context, s *PersistedShard) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	k := ds.NewKey(s.Key)
	if err := r.ds.Put(ctx, k, b); err != nil {
		return err
	}
	return r.ds.Sync(ctx, k)
}

func (r dsShardRepo) GetShard(ctx context.Context, key string) (*PersistedShard, error) {
	b, err := r.ds.Get(ctx, ds.NewKey(key))
	if err != nil {
		return nil, err
	}
	s := new(PersistedShard)
	return s, json.Unmarshal(b, s)
}

func (r dsShardRepo) ListShards(ctx context.Context) ([]*PersistedShard, error) {
	results, err := r.ds.Query(ctx, query.Query{})
	if err != nil {
		return nil, err
	}
	defer results.Close()
	var all []*PersistedShard
	for res := range results.Next() {
		if res.Error != nil {
			return nil, res.Error
		}
		s := new(PersistedShard)
		if err := json.Unmarshal(res.Value, s); err != nil {
			return nil, fmt.Errorf("record %s: %w", res.Key, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func (r dsShardRepo) HasShard(ctx context.Context, key string) (bool, error) {
	return r.ds.Has(ctx, ds.NewKey(key))
}

func (r dsShardRepo) DeleteShard(ctx context.Context, key string) error {
	return r.ds.Delete(ctx, ds.NewKey(key))
}

// repoJournal is a journal whose durable form is one record per shard: each append
// saves the states after its events. What is read back is one registration per
// record, and what the shard has become.
type repoJournal struct {
	*journal.Memory
	repo ShardRepo
	mu   sync.Mutex
	bad  error
}

func openRepoJournal(ctx context.Context, repo ShardRepo) (*repoJournal, error) {
	recs, err := repo.ListShards(ctx)
	if err != nil {
		return nil, fmt.Errorf("dagstore: list the shard repository: %w", err)
	}
	sort.Slice(recs, func(i, k int) bool { return recs[i].Key < recs[k].Key })
	j := &repoJournal{Memory: journal.NewMemory(), repo: repo}
	now := time.Now().UnixNano()
	for _, p := range recs {
		seq := j.Head().Seq + 1
		e := shard.Event{Seq: seq, Gen: seq, Time: now, Kind: shard.EventRegistered, Key: shard.KeyFromString(p.Key),
			State: shard.State{Life: shard.Registered, Lazy: p.Lazy, URL: p.URL, Transient: p.TransientPath}}
		if err := e.Key.Validate(); err != nil {
			return nil, fmt.Errorf("dagstore: shard repository: %w", err)
		}
		events := []shard.Event{e}
		if p.State == ShardStateErrored || p.State == ShardStateRecovering {
			e.Seq++
			e.Kind, e.State.Life, e.State.Reason = shard.EventFailed, shard.Errored, p.Error
			if e.State.Reason == "" {
				e.State.Reason = "unknown"
			}
			events = append(events, e)
		}
		if _, err := j.Memory.Append(events); err != nil {
			return nil, err
		}
	}
	return j, nil
}

// Append saves the records and then the events.
func (j *repoJournal) Append(events []shard.Event) (journal.Position, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.bad != nil {
		return journal.Position{}, fmt.Errorf("%w: %w", journal.ErrReadOnly, j.bad)
	}
	ctx := context.Background()
	for i := range events {
		e := &events[i]
		var err error
		if e.Kind == shard.EventDestroyed {
			err = j.repo.DeleteShard(ctx, e.Key.String())
			if errors.Is(err, ds.ErrNotFound) {
				err = nil
			}
		} else {
			err = j.repo.SaveShard(ctx, &PersistedShard{
				Key: e.Key.String(), URL: e.State.URL, TransientPath: e.State.Transient,
				State: stateOf(e.State.Life, 0), Lazy: e.State.Lazy, Error: e.State.Reason,
			})
		}
		if err != nil {
			j.bad = err
			return journal.Position{}, fmt.Errorf("%w: save shard %q: %w", journal.ErrOutcomeUnknown, e.Key, err)
		}
	}
	return j.Memory.Append(events)
}

var _ journal.Journal = (*repoJournal)(nil)
