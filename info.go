package dagstore

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	ds "github.com/ipfs/go-datastore"

	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

var errNoShard = ds.ErrNotFound

// ShardState is the public state of a shard, derived from the machine's.
type ShardState byte

const (
	// ShardStateNew: registered, not yet initialised.
	ShardStateNew ShardState = iota
	// ShardStateInitializing: being fetched and indexed.
	ShardStateInitializing
	// ShardStateAvailable: indexed; nobody uses it.
	ShardStateAvailable
	// ShardStateServing: indexed and in use.
	ShardStateServing
	// ShardStateRecovering: being fetched and indexed afresh after a failure.
	ShardStateRecovering ShardState = 0x80
	// ShardStateErrored: a failure; recover or destroy it.
	ShardStateErrored ShardState = 0xf0
	// ShardStateUnknown is reserved.
	ShardStateUnknown ShardState = 0xff
)

// String returns the constant's name, or nothing for a value that has none.
func (ss ShardState) String() string {
	switch ss {
	case ShardStateNew:
		return "ShardStateNew"
	case ShardStateInitializing:
		return "ShardStateInitializing"
	case ShardStateAvailable:
		return "ShardStateAvailable"
	case ShardStateServing:
		return "ShardStateServing"
	case ShardStateRecovering:
		return "ShardStateRecovering"
	case ShardStateErrored:
		return "ShardStateErrored"
	case ShardStateUnknown:
		return "ShardStateUnknown"
	}
	return ""
}

func stateOf(life shard.Life, refs int32) ShardState {
	switch life {
	case shard.Registered:
		return ShardStateNew
	case shard.Initialising:
		return ShardStateInitializing
	case shard.Available:
		if refs > 0 {
			return ShardStateServing
		}
		return ShardStateAvailable
	case shard.Errored:
		return ShardStateErrored
	case shard.Recovering:
		return ShardStateRecovering
	}
	return ShardStateUnknown
}

// ShardInfo is the state of one shard at one moment.
type ShardInfo struct {
	ShardState
	// Error is why the shard is errored or recovering, or why its last fetch failed.
	Error error
	// Since is when a shard began to ail that is not errored: its source could not be had,
	// or this machine was short of something. NextTry is when it is tried again, or who
	// asks for it has it tried again. Both are zero if there is nothing of the kind.
	Since, NextTry time.Time

	refs uint32
}

// AllShardsInfo is the state of all shards.
type AllShardsInfo map[shard.Key]ShardInfo

func (lv *live) info() ShardInfo {
	refs := lv.pub.refs.Load()
	i := ShardInfo{ShardState: stateOf(shard.Life(lv.pub.life.Load()), refs), refs: uint32(refs)}
	if cause := lv.pub.cause.Load(); cause != nil {
		i.Error = *cause
	}
	i.Since, i.NextTry = timeOf(lv.pub.since.Load()), timeOf(lv.pub.retryAt.Load())
	return i
}

// timeOf is the time of Unix nanoseconds, of which 0 stands for none.
func timeOf(nanoseconds int64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds)
}

// recordInfo is the state of a shard of which nothing volatile is known.
func (d *DAGStore) recordInfo(rec *projection.Record) ShardInfo {
	i := ShardInfo{ShardState: stateOf(rec.Life(), 0)}
	if reason := rec.Reason(); reason != "" {
		i.Error = recordedError(reason)
	}
	if scheme, _, ok := strings.Cut(rec.URL(), ":"); ok && !d.mountable(scheme) {
		i.ShardState = ShardStateErrored
		i.Error = fmt.Errorf("%w: %q; register the mount type and start again", mount.ErrUnrecognizedScheme, scheme)
	}
	return i
}

// mountable says whether the registry knows a scheme.
func (d *DAGStore) mountable(scheme string) bool {
	return d.schemes == nil || d.schemes[scheme]
}

// GetShardInfo returns the state of a shard. It waits for a registration that is not
// yet durable. For a key that names no shard the error is ErrShardUnknown itself:
// clients of the predecessor compare it with ==.
func (d *DAGStore) GetShardInfo(k shard.Key) (ShardInfo, error) {
	if err := d.check(); err != nil {
		return ShardInfo{}, err
	}
	d.mu.RLock()
	lv, pending := d.hotLocked(k), d.mu.registering[k]
	d.mu.RUnlock()
	if pending != nil {
		d.awaitRegistration(k)
		d.mu.RLock()
		lv = d.hotLocked(k)
		d.mu.RUnlock()
	}
	if lv != nil && lv.pub.life.Load() != uint32(shard.None) {
		return lv.info(), nil
	}
	rec := d.cat.Get(k)
	if rec == nil {
		return ShardInfo{}, ErrShardUnknown
	}
	return d.recordInfo(rec), nil
}

// AllShardsInfo returns the state of all shards. With many, ListShards is kinder.
func (d *DAGStore) AllShardsInfo() AllShardsInfo {
	snap := d.cat.Snapshot()
	all := make(AllShardsInfo, snap.Len())
	d.eachShard(snap, "", func(rec *projection.Record, i ShardInfo) bool {
		all[rec.Key()] = i
		return true
	})
	return all
}

// eachShard visits the shards of a snapshot with what is volatile about them now, if
// they are still as the snapshot shows them.
func (d *DAGStore) eachShard(snap *projection.Snapshot, from string, visit func(*projection.Record, ShardInfo) bool) {
	d.mu.RLock()
	hot := make(map[shard.Key]ShardInfo, len(d.mu.hot))
	for k, lv := range d.mu.hot {
		if lv.pub.life.Load() != uint32(shard.None) && d.isCurrent(lv) {
			hot[k] = lv.info()
		}
	}
	d.mu.RUnlock()
	snap.From(from, func(rec *projection.Record) bool {
		i, ok := hot[rec.Key()]
		if !ok || !d.isNewest(rec) {
			i = d.recordInfo(rec)
		}
		return visit(rec, i)
	})
}

// isNewest says that the catalogue shows of a shard what rec does.
func (d *DAGStore) isNewest(rec *projection.Record) bool {
	now := d.cat.Get(rec.Key())
	return now != nil && now.Seq() == rec.Seq()
}

// Stats counts the shards by state.
func (d *DAGStore) Stats() map[ShardState]int {
	n := make(map[ShardState]int)
	d.eachShard(d.cat.Snapshot(), "", func(_ *projection.Record, i ShardInfo) bool {
		n[i.ShardState]++
		return true
	})
	return n
}

// ListOptions choose what ListShards returns.
type ListOptions struct {
	// States keeps shards in one of these states; empty keeps all.
	States []ShardState
	// Prefix keeps shards whose key begins so.
	Prefix string
	// Limit is the number of shards in a page at most; 0 means 1,000.
	Limit int
	// Cursor is where the page begins: ShardPage.Next of the page before, or empty.
	Cursor string
	// Snapshot is what is listed, as [DAGStore.Catalogue] returns it; nil means the
	// newest. Whether a shard is being served is only known of what is still so.
	Snapshot *projection.Snapshot
}

// ShardSummary describes one shard of a list.
type ShardSummary struct {
	Key   shard.Key
	State ShardState
	Error string
	// URL of the mount, with user information masked.
	URL  string
	Lazy bool
	// Blocks and SourceSize are known once the shard is indexed.
	Blocks, SourceSize uint64
	// Seq is the journal position of the newest event of the shard, Changed its time.
	Seq     uint64
	Changed time.Time
}

// ShardPage is a page of a list.
type ShardPage struct {
	Shards []ShardSummary
	// Next is the cursor of the next page, or empty after the last.
	Next string
	// Freshness says which state of the catalogue the page shows. What is volatile
	// about a shard, such as its being in use, is of the moment.
	Freshness Freshness
}

// ErrBadCursor is returned by ListShards for a cursor that no page gave.
var ErrBadCursor = errors.New("malformed list cursor")

const cursorMark = "1:"

// ListShards returns a page of shards, in an order that stays the same while shards
// come and go: a shard that is there all the time is listed once.
func (d *DAGStore) ListShards(opts ListOptions) (ShardPage, error) {
	if err := d.fresher(); err != nil {
		return ShardPage{}, err
	}
	from := ""
	if opts.Cursor != "" {
		b, err := base64.RawURLEncoding.DecodeString(opts.Cursor)
		var ok bool
		if from, ok = strings.CutPrefix(string(b), cursorMark); err != nil || !ok || from == "" {
			return ShardPage{}, fmt.Errorf("%w: %.40q", ErrBadCursor, opts.Cursor)
		}
	}
	limit := opts.Limit
	if limit <= 0 {
		limit = 1000
	}
	snap, fresh, err := d.views.SnapshotFor(d.ctx, Any())
	if err != nil {
		return ShardPage{}, ended(err)
	}
	fresh = d.overlay(fresh)
	if opts.Snapshot != nil {
		snap, fresh.Applied = opts.Snapshot, opts.Snapshot.Position()
		fresh.Lag = fresh.Head.Seq - fresh.Applied.Seq
	}
	page := ShardPage{Freshness: fresh}
	d.eachShard(snap, from, func(rec *projection.Record, i ShardInfo) bool {
		key := rec.Key().String()
		if !strings.HasPrefix(key, opts.Prefix) || len(opts.States) > 0 && !slices.Contains(opts.States, i.ShardState) {
			return true
		}
		if len(page.Shards) == limit {
			last := page.Shards[limit-1].Key.String()
			page.Next = base64.RawURLEncoding.EncodeToString([]byte(cursorMark + last))
			return false
		}
		page.Shards = append(page.Shards, summary(rec, i))
		return true
	})
	return page, nil
}

// SummaryOf describes one shard of a snapshot, as [DAGStore.Catalogue] returns it. For a
// key that the snapshot does not hold the error wraps [ErrShardUnknown].
func (d *DAGStore) SummaryOf(snap *projection.Snapshot, key shard.Key) (ShardSummary, error) {
	if err := d.check(); err != nil {
		return ShardSummary{}, err
	}
	rec := snap.Get(key)
	if rec == nil {
		return ShardSummary{}, unknownShard(key)
	}
	d.mu.RLock()
	lv := d.hotLocked(key)
	d.mu.RUnlock()
	if lv != nil && lv.pub.life.Load() != uint32(shard.None) && d.isNewest(rec) {
		return summary(rec, lv.info()), nil
	}
	return summary(rec, d.recordInfo(rec)), nil
}

func summary(rec *projection.Record, i ShardInfo) ShardSummary {
	st := rec.State()
	s := ShardSummary{
		Key: rec.Key(), State: i.ShardState, URL: redact(st.URL), Lazy: st.Lazy,
		Blocks: st.Index.Blocks, SourceSize: st.Index.SourceSize, Seq: rec.Seq(), Changed: time.Unix(0, rec.Time()),
	}
	if i.Error != nil {
		s.Error = i.Error.Error()
	}
	return s
}

// Metrics counts what happened since Start.
type Metrics struct {
	// Head is the journal position of the newest durable event.
	Head uint64
	// LiveShards have volatile state, OpenHandles of them are open.
	LiveShards, OpenHandles int
	// Undelivered results wait for callers to receive them.
	Undelivered int
	// TracesDropped and FailuresDropped were not received in time.
	TracesDropped, FailuresDropped uint64
	// ListingsCut are AllKeysChans of shards that ended before all keys were sent.
	ListingsCut uint64
}

// Metrics returns the store's counters.
func (d *DAGStore) Metrics() Metrics {
	m := Metrics{
		Undelivered: d.courier.waiting(), TracesDropped: d.traces.missed(), FailuresDropped: d.fails.missed(),
		ListingsCut: d.listingsCut.Load(),
	}
	if d.phase.Load() == phaseRunning {
		m.Head = d.cat.Position().Seq
		d.loop.control(func() {
			m.LiveShards = len(d.mu.hot)
			for _, lv := range d.mu.hot {
				if lv.handle != nil {
					m.OpenHandles++
				}
			}
		})
	}
	return m
}
