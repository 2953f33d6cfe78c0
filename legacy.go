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
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// PersistedShard is the predecessor's record of a shard, kept as JSON in a
// datastore under the shard's key. What stands behind its six fields is what a
// [ShardRepo] keeps of ours; the predecessor passes over it.
type PersistedShard struct {
	Key           string     `json:"k"`
	URL           string     `json:"u"`
	TransientPath string     `json:"t"`
	State         ShardState `json:"s"`
	Lazy          bool       `json:"l"`
	Error         string     `json:"e"`

	// Gen is the generation of this life, by which its copy and its index are found; 0 is
	// not known. Seq is the number of the newest event, Changed its time in Unix
	// nanoseconds.
	Gen     uint64 `json:"g,omitempty"`
	Seq     uint64 `json:"q,omitempty"`
	Changed int64  `json:"c,omitempty"`
	// Index sums up the index of an available shard.
	Index PersistedIndex `json:"i,omitzero"`
}

// PersistedIndex sums up a shard index and what it was built from.
type PersistedIndex struct {
	Blocks       uint64 `json:"n"` // indexed sections, duplicates included
	PayloadBytes uint64 `json:"b"` // sum of the block lengths
	SourceSize   uint64 `json:"s"` // bytes of the CAR
	Digest       string `json:"d"` // names the content: 32 bytes in hex
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

// adoptedKey marks a datastore whose records of the predecessor have been adopted,
// so that a shard destroyed since does not come back.
var adoptedKey = ds.NewKey("/journal-adopted")

// adoptLegacy takes over what the predecessor left in the datastore: each record
// becomes a registration and what has become of it since. The records stay where
// they are. An adoption that a crash cut short goes on the next time: shards that
// the catalogue has already are left out, unless they were only registered.
func (d *DAGStore) adoptLegacy(ctx context.Context, store ds.Datastore) error {
	done, err := store.Has(ctx, adoptedKey)
	if err != nil {
		return fmt.Errorf("dagstore: look for records of the predecessor: %w", err)
	}
	if done {
		return nil
	}
	recs, err := d.legacyRecords(ctx, store)
	if err != nil {
		return err
	}
	for len(recs) > 0 {
		n, bytes := 0, 0
		for n < min(len(recs), maxBatchEvents) && bytes < maxBatchBytes {
			bytes += len(recs[n].URL) + len(recs[n].Error)
			n++
		}
		if err := d.adopt(recs[:n]); err != nil {
			return fmt.Errorf("dagstore: adopt %d records of the predecessor: %w", n, err)
		}
		d.log.Info("adopted records of the predecessor", "shards", n)
		recs = recs[n:]
	}
	if err := store.Put(ctx, adoptedKey, []byte("1")); err != nil {
		return fmt.Errorf("dagstore: mark the records of the predecessor as adopted (a datastore that keeps nothing but shard records goes into Config.ShardRepo): %w", err)
	}
	return store.Sync(ctx, adoptedKey)
}

// legacyRecords reads the records whose shards are not in the catalogue, or only begun
// to be adopted.
func (d *DAGStore) legacyRecords(ctx context.Context, store ds.Datastore) ([]PersistedShard, error) {
	results, err := store.Query(ctx, query.Query{})
	if err != nil {
		return nil, fmt.Errorf("dagstore: look for records of the predecessor: %w", err)
	}
	defer results.Close()
	var recs []PersistedShard
	for r := range results.Next() {
		if r.Error != nil {
			return nil, fmt.Errorf("dagstore: read records of the predecessor: %w", r.Error)
		}
		var p PersistedShard
		if err := json.Unmarshal(r.Value, &p); err != nil || p.Key == "" || ds.NewKey(p.Key).String() != r.Key {
			continue // something else of the daemon's
		}
		key := shard.KeyFromString(p.Key)
		if err := key.Validate(); err != nil {
			d.log.Warn("adopt: a record of the predecessor has a key that cannot be", "err", err)
			continue
		}
		if rec := d.cat.Get(key); rec == nil || rec.Life() == shard.Registered && rec.Seq() == rec.Gen() {
			recs = append(recs, p)
		}
	}
	return recs, nil
}

// adopt journals some records and shows them, in two steps:
//
//	registrations durable → files get names with those generations → what has become of them durable
//
// No file carries a generation that the journal does not have, so whatever a crash leaves
// is this store's.
func (d *DAGStore) adopt(recs []PersistedShard) error {
	now := time.Now().UnixNano()
	seq := d.journal.Head().Seq
	var events []shard.Event
	for i := range recs {
		p := &recs[i]
		if d.cat.Get(shard.KeyFromString(p.Key)) != nil {
			continue // an earlier start came so far
		}
		seq++
		st := shard.State{Life: shard.Registered, Lazy: p.Lazy, URL: p.URL, Transient: p.TransientPath}
		if d.isOwnCopy(p) {
			st.Transient = ""
		}
		events = append(events, shard.Event{Seq: seq, Gen: seq, Time: now, Kind: shard.EventRegistered, Key: shard.KeyFromString(p.Key), State: st})
	}
	if err := d.appendAdopted(events); err != nil {
		return err
	}
	events = events[:0]
	for i := range recs {
		p := &recs[i]
		born := d.cat.Get(shard.KeyFromString(p.Key)).Event()
		d.adoptCopy(p, born.Gen)
		if e, ok := d.adoptState(p, born); ok {
			seq++
			e.Seq, e.Time = seq, now
			events = append(events, e)
		}
	}
	return d.appendAdopted(events)
}

// appendAdopted journals events as one batch and shows it.
func (d *DAGStore) appendAdopted(events []shard.Event) error {
	if len(events) == 0 {
		return nil
	}
	pos, err := d.journal.Append(events)
	if err == nil {
		err = d.cat.Apply(&journal.Batch{Events: events, End: pos})
	}
	return err
}

// predecessorsCopy is the name that the predecessor gave a shard's local copy.
func (d *DAGStore) predecessorsCopy(key string) string {
	return filepath.Join(d.cfg.TransientsDir, "transient-"+key+".complete")
}

// isOwnCopy says that the copy of a record was made by the predecessor; others are the
// caller's.
func (d *DAGStore) isOwnCopy(p *PersistedShard) bool {
	return p.TransientPath != "" && p.TransientPath == d.predecessorsCopy(p.Key)
}

// adoptCopy gives the copy of a record the name that it has here. One that cannot have it
// is made again.
func (d *DAGStore) adoptCopy(p *PersistedShard, gen uint64) {
	if !d.isOwnCopy(p) {
		return
	}
	to := filepath.Join(d.cfg.TransientsDir, mount.CopyName(gen, p.Key)+copySuffix)
	err := d.cfg.fs.Rename(p.TransientPath, to)
	if err == nil {
		err = d.cfg.fs.SyncDir(d.cfg.TransientsDir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("adopt: a local copy keeps its old name and is not used", "shard", p.Key, "err", err)
	}
}

// adoptState returns the event after the registration, if there is one: an errored
// shard stays errored, a recovery that was under way goes on, and an available shard
// stays available, or is recovered if its index cannot be taken over. All others begin
// anew.
func (d *DAGStore) adoptState(p *PersistedShard, born shard.Event) (shard.Event, bool) {
	e := born
	e.State.Lazy = p.Lazy
	switch p.State {
	case ShardStateErrored, ShardStateRecovering:
		e.Kind, e.State.Life, e.State.Reason = shard.EventFailed, shard.Errored, shard.CutText(p.Error)
		if p.State == ShardStateRecovering {
			e.Kind, e.State.Life = shard.EventRecovering, shard.Recovering
		}
		if e.State.Reason == "" {
			e.State.Reason = "unknown; adopted as " + p.State.String()
		}
		return e, true
	case ShardStateAvailable, ShardStateServing:
		info, err := d.adoptIndex(born.Key, born.Gen)
		if err != nil {
			// Its blocks are promised: lookups may not say that nobody has them.
			d.log.Warn("adopt: the index of a shard cannot be taken over and is made anew", "shard", p.Key, "why", err)
			e.Kind, e.State.Life, e.State.Reason = shard.EventRecovering, shard.Recovering, fmt.Sprintf("adopted without its index: %v", err)
			return e, true
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
	defer draft.Close()
	if life, ok := d.cfg.IndexRepo.(index.LifeRepo); ok {
		err = life.PutIndex(key, gen, draft)
	}
	return draft.Info(), err
}
