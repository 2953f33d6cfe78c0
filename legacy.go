package dagstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	carindex "github.com/ipld/go-car/v2/index"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// PersistedShard is the predecessor's record of a shard, kept as JSON in a
// datastore under the shard's key.
type PersistedShard struct {
	Key           string     `json:"k"`
	URL           string     `json:"u"`
	TransientPath string     `json:"t"`
	State         ShardState `json:"s"`
	Lazy          bool       `json:"l"`
	Error         string     `json:"e"`
}

// Shard names a shard for [NewShardAccessor]. It encodes as a [PersistedShard].
type Shard struct {
	key shard.Key
	rec PersistedShard
}

// MarshalJSON encodes the shard's record.
func (s *Shard) MarshalJSON() ([]byte, error) {
	rec := s.rec
	rec.Key = s.key.String()
	return json.Marshal(rec)
}

// UnmarshalJSON decodes a record.
func (s *Shard) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, &s.rec); err != nil {
		return fmt.Errorf("shard record: %w", err)
	}
	s.key = shard.KeyFromString(s.rec.Key)
	return nil
}

// adoptLegacy takes over what the predecessor left in the datastore: each record
// becomes a registration and what has become of it since. The records stay where
// they are. It runs when the journal is empty, and writes the journal in batches;
// one that was cut short by a crash is finished the next time, since the records of
// shards that are there already are skipped.
func (d *DAGStore) adoptLegacy(ctx context.Context, store ds.Datastore) error {
	results, err := store.Query(ctx, query.Query{})
	if err != nil {
		return fmt.Errorf("dagstore: look for records of the predecessor: %w", err)
	}
	defer results.Close()
	var recs []PersistedShard
	for r := range results.Next() {
		if r.Error != nil {
			return fmt.Errorf("dagstore: read records of the predecessor: %w", r.Error)
		}
		var p PersistedShard
		if err := json.Unmarshal(r.Value, &p); err != nil || p.Key == "" || ds.NewKey(p.Key).String() != r.Key {
			continue // something else of the daemon's
		}
		if err := shard.KeyFromString(p.Key).Validate(); err != nil {
			d.log.Warn("adopt: a record of the predecessor has a key that cannot be", "err", err)
			continue
		}
		recs = append(recs, p)
	}
	return d.adopt(recs)
}

// adopt journals the records: all registrations as one batch, so that adoption
// happened or did not, then what each has become.
func (d *DAGStore) adopt(recs []PersistedShard) error {
	if len(recs) == 0 {
		return nil
	}
	now := time.Now().UnixNano()
	seq := d.journal.Head().Seq
	born := make([]shard.Event, len(recs))
	var later []shard.Event
	for i := range recs {
		p := &recs[i]
		seq++
		st := shard.State{Life: shard.Registered, Lazy: p.Lazy || p.State == ShardStateAvailable || p.State == ShardStateServing,
			URL: p.URL, Transient: d.adoptCopy(p, seq)}
		born[i] = shard.Event{Seq: seq, Gen: seq, Time: now, Kind: shard.EventRegistered, Key: shard.KeyFromString(p.Key), State: st}
		if e, ok := d.adoptState(p, born[i]); ok {
			later = append(later, e)
		}
	}
	for i := range later {
		seq++
		later[i].Seq = seq
	}
	if _, err := d.journal.Append(append(born, later...)); err != nil {
		return fmt.Errorf("dagstore: adopt %d records of the predecessor: %w", len(recs), err)
	}
	d.log.Info("adopted the predecessor's records", "shards", len(recs))
	return nil
}

// adoptCopy gives a local copy that the predecessor made the name it has here, and
// returns the path of one that is not ours.
func (d *DAGStore) adoptCopy(p *PersistedShard, gen uint64) string {
	old := p.TransientPath
	if old == "" || old != filepath.Join(d.cfg.TransientsDir, "transient-"+p.Key+".complete") {
		return old
	}
	to := filepath.Join(d.cfg.TransientsDir, mount.CopyName(gen, p.Key)+".complete")
	err := d.cfg.fs.Rename(old, to)
	if err == nil {
		err = d.cfg.fs.SyncDir(d.cfg.TransientsDir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("adopt: a local copy keeps its old name", "shard", p.Key, "err", err)
		return old
	}
	return ""
}

// adoptState returns the event after the registration, if there is one: an errored
// shard stays errored, and an available one whose index can be taken over stays
// available. All others begin anew.
func (d *DAGStore) adoptState(p *PersistedShard, born shard.Event) (shard.Event, bool) {
	e := born
	e.State.Lazy = p.Lazy
	switch p.State {
	case ShardStateErrored, ShardStateRecovering:
		e.Kind, e.State.Life, e.State.Reason = shard.EventFailed, shard.Errored, p.Error
		if e.State.Reason == "" {
			e.State.Reason = "unknown; adopted as " + p.State.String()
		}
		return e, true
	case ShardStateAvailable, ShardStateServing:
		info, err := d.adoptIndex(born.Key, born.Gen)
		if err != nil {
			d.log.Info("adopt: the shard will be indexed when it is first acquired", "shard", p.Key, "why", err)
			return e, false
		}
		e.Kind, e.State.Life, e.State.Index = shard.EventIndexed, shard.Available, info
		return e, true
	}
	return e, false
}

// adoptIndex makes an index of ours from the predecessor's.
func (d *DAGStore) adoptIndex(key shard.Key, gen uint64) (shard.IndexInfo, error) {
	idx, err := d.cfg.IndexRepo.GetFullIndex(key)
	if err != nil {
		return shard.IndexInfo{}, err
	}
	it, ok := idx.(carindex.IterableIndex)
	if !ok {
		return shard.IndexInfo{}, errNotIterable
	}
	draft, err := index.ImportIndex(it)
	if err != nil {
		return shard.IndexInfo{}, err
	}
	if life, ok := d.cfg.IndexRepo.(index.LifeRepo); ok {
		err = life.PutIndex(key, gen, draft)
	}
	return draft.Info(), err
}
