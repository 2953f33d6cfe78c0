package dagstore

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// ShardRepo keeps one record per shard, as forks of the predecessor have it. A store
// over one is as durable as its SaveShard and DeleteShard: a batch of changes is saved
// record by record, so a crash may keep some of it.
//
// A repository keeps records as they are given. One that keeps only the predecessor's six
// fields loses what sums up the index, so shards are held to their indices anew at each
// start; local copies are found again by TransientPath.
//
// History does not outlive the process: a start goes on behind the newest event, with the
// records in place of what was before (a view of your own has to be projection.Based).
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
	k := ds.NewKey(key)
	if err := r.ds.Delete(ctx, k); err != nil {
		return err
	}
	return r.ds.Sync(ctx, k)
}

// repoJournal is a journal whose durable form is one record per shard: each append
// saves the states after its events. It begins as a journal that was compacted does: with
// the newest event of every shard in place of the history.
//
//	base at the horizon = the records;  events from the horizon on are in memory
//
// A life keeps its generation, by which its copy and its index are found, and no number
// is given twice while a file carries it: the horizon is not below any of those.
type repoJournal struct {
	*journal.Memory
	repo   ShardRepo
	copies string // the directory of the local copies
	mu     sync.Mutex
	bad    error
}

// openRepoJournal reads the records. Files of this store carry generations up to floor.
func openRepoJournal(ctx context.Context, repo ShardRepo, copies string, floor uint64) (*repoJournal, error) {
	recs, err := repo.ListShards(ctx)
	if err != nil {
		return nil, fmt.Errorf("dagstore: list the shard repository: %w", err)
	}
	if len(recs) == 0 && floor == 0 {
		return &repoJournal{Memory: journal.NewMemory(), repo: repo, copies: copies}, nil
	}
	sort.Slice(recs, func(i, k int) bool { return recs[i].Key < recs[k].Key })
	now := time.Now().UnixNano()
	base := make([]shard.Event, 0, len(recs))
	taken := make(map[uint64]bool, len(recs))
	horizon := floor
	for _, p := range recs {
		e, err := p.event(copies)
		if err != nil {
			return nil, fmt.Errorf("dagstore: shard repository: %w", err)
		}
		if len(base) > 0 && base[len(base)-1].Key == e.Key {
			return nil, fmt.Errorf("dagstore: shard repository: two records of shard %q", e.Key)
		}
		if taken[e.Gen] {
			e.Gen = 0 // a record that was copied; whose the files are is not known
		}
		taken[e.Gen] = true
		horizon = max(horizon, e.Gen, e.Seq)
		base = append(base, e)
	}
	for i := range base {
		e := &base[i]
		if e.Gen == 0 {
			horizon++
			e.Gen = horizon
		}
		if e.Time == 0 {
			e.Time = now
		}
		if e.Kind == shard.EventRegistered {
			e.Seq = e.Gen
		} else if e.Seq <= e.Gen {
			horizon++
			e.Seq = horizon
		}
	}
	j, err := journal.NewMemoryAt(horizon, base)
	if err != nil {
		return nil, fmt.Errorf("dagstore: shard repository: %w", err)
	}
	return &repoJournal{Memory: j, repo: repo, copies: copies}, nil
}

// highestGeneration is the highest that a local copy or an index carries.
func (d *DAGStore) highestGeneration() (highest uint64, err error) {
	names, err := mount.ListCopies(d.cfg.fs, d.cfg.TransientsDir)
	if err != nil {
		return 0, fmt.Errorf("dagstore: local copies: %w", err)
	}
	for _, name := range names {
		if gen, ok := mount.CopyGeneration(name); ok && believed(gen) {
			highest = max(highest, gen)
		}
	}
	gen := uint64(0)
	if r, ok := d.cfg.IndexRepo.(interface {
		NewestGeneration(limit uint64) (uint64, int, error)
	}); ok {
		gen, _, err = r.NewestGeneration(believedBelow)
	} else {
		_, err = d.indices.sweep(func(g uint64) bool { // asks for each and takes none
			if believed(g) {
				gen = max(gen, g)
			}
			return true
		})
	}
	if err != nil {
		return 0, fmt.Errorf("dagstore: indices: %w", err)
	}
	return max(highest, gen), nil
}

// believed says that a number can be one that a store has given: records and file names
// are changed by others, and what follows the highest has to have numbers too.
func believed(gen uint64) bool { return gen < believedBelow }

// event is the newest event of a shard, of which a record is what is left. Gen and Seq are
// 0 if the record does not say.
func (p *PersistedShard) event(copies string) (shard.Event, error) {
	e := shard.Event{Key: shard.KeyFromString(p.Key), Gen: p.Gen, Seq: p.Seq, Time: p.Changed,
		State: shard.State{Lazy: p.Lazy, URL: p.URL, Transient: p.TransientPath}}
	if err := e.Key.Validate(); err != nil {
		return e, err
	}
	if gen, ok := p.ownCopy(copies); ok {
		e.State.Transient = ""
		if e.Gen == 0 {
			e.Gen = gen
		}
	}
	if !believed(e.Gen) || !believed(e.Seq) || e.Seq < e.Gen {
		e.Seq = 0
	}
	if !believed(e.Gen) {
		e.Gen = 0
	}
	e.Kind, e.State.Life = shard.EventRegistered, shard.Registered
	switch p.State {
	case ShardStateErrored:
		e.Kind, e.State.Life = shard.EventFailed, shard.Errored
	case ShardStateRecovering:
		e.Kind, e.State.Life = shard.EventRecovering, shard.Recovering
	case ShardStateAvailable, ShardStateServing:
		if info, ok := p.Index.info(); ok && e.Gen != 0 {
			e.Kind, e.State.Life, e.State.Index = shard.EventIndexed, shard.Available, info
		}
	}
	if l := e.State.Life; l == shard.Errored || l == shard.Recovering {
		if e.State.Reason = shard.CutText(p.Error); p.Error == "" {
			e.State.Reason = "unknown"
		}
	}
	return e, nil
}

// record is what is kept of an event. A shard without a copy of the caller's own names
// the local copy that it has or will have, as the predecessor's records do.
func record(e *shard.Event, copies string) *PersistedShard {
	p := &PersistedShard{
		Key: e.Key.String(), URL: e.State.URL, TransientPath: e.State.Transient,
		State: stateOf(e.State.Life, 0), Lazy: e.State.Lazy, Error: e.State.Reason,
		Gen: e.Gen, Seq: e.Seq, Changed: e.Time,
	}
	if p.TransientPath == "" {
		p.TransientPath = filepath.Join(copies, mount.CopyName(e.Gen, p.Key)+copySuffix)
	}
	if x := e.State.Index; x != (shard.IndexInfo{}) {
		p.Index = PersistedIndex{Blocks: x.Blocks, PayloadBytes: x.PayloadBytes, SourceSize: x.SourceSize, Digest: hex.EncodeToString(x.Digest[:])}
	}
	return p
}

// copySuffix ends the file name of a local copy.
const copySuffix = ".complete"

// ownCopy says that TransientPath names a local copy of the store's own, wherever its
// directory was then, and returns the generation that it carries: 0 for a copy that is
// another shard's.
func (p *PersistedShard) ownCopy(copies string) (gen uint64, own bool) {
	name, ok := strings.CutSuffix(filepath.Base(p.TransientPath), copySuffix)
	if !ok {
		return 0, false
	}
	gen, ok = mount.CopyGeneration(name)
	if ok && name != mount.CopyName(gen, p.Key) {
		return 0, filepath.Dir(p.TransientPath) == filepath.Clean(copies)
	}
	return gen, ok
}

// info is the inverse of what record makes of a summary; false if there is none.
func (x *PersistedIndex) info() (info shard.IndexInfo, ok bool) {
	info = shard.IndexInfo{Blocks: x.Blocks, PayloadBytes: x.PayloadBytes, SourceSize: x.SourceSize}
	n, err := hex.Decode(info.Digest[:], []byte(x.Digest[:min(len(x.Digest), 2*len(info.Digest))]))
	return info, err == nil && n == len(info.Digest) && 2*n == len(x.Digest)
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
			err = j.repo.SaveShard(ctx, record(e, j.copies))
		}
		if err != nil {
			j.bad = err
			return journal.Position{}, fmt.Errorf("%w: save shard %q: %w", journal.ErrOutcomeUnknown, e.Key, err)
		}
	}
	return j.Memory.Append(events)
}

var _ journal.Journal = (*repoJournal)(nil)
