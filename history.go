package dagstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// ShardHistory is what happened to a key, as far as the journal still tells.
type ShardHistory struct {
	Key   shard.Key   `json:"key"`
	Lives []ShardLife `json:"lives"`
	// From is the sequence number after which the history is complete: 0 unless the
	// journal was compacted. What the first life was like at From is told by its first
	// event, if that is marked as Base.
	From uint64 `json:"from"`
	// AsOf is the end of the journal that was read.
	AsOf Position `json:"-"`
}

// ShardLife is one life of a key, from its registration to its destruction.
type ShardLife struct {
	// Gen is the sequence number of the registration.
	Gen    uint64         `json:"gen"`
	Events []HistoryEvent `json:"events"`
	// Over: the life ended with a destruction.
	Over bool `json:"over"`
}

// HistoryEvent is one durable change of a shard.
type HistoryEvent struct {
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	// Kind is registered, indexed, failed, recovering or destroyed; Life what the
	// shard was from then on.
	Kind string `json:"kind"`
	Life string `json:"life"`
	// Reason is why it failed, or recovers.
	Reason string `json:"reason,omitempty"`
	// URL of the mount, with user information masked.
	URL  string `json:"url,omitempty"`
	Lazy bool   `json:"lazy,omitempty"`
	// Blocks and SourceSize are known of an indexed shard.
	Blocks     uint64 `json:"blocks,omitempty"`
	SourceSize uint64 `json:"sourceSize,omitempty"`
	// Base: earlier events of this life are gone; this one was the newest.
	Base bool `json:"base,omitempty"`
}

// History returns every life and event of a key that the journal still holds. It reads
// the whole journal, some millions of events a second. For a key that it does not
// mention the error wraps ErrShardUnknown.
func (d *DAGStore) History(ctx context.Context, key shard.Key) (ShardHistory, error) {
	if err := d.fresher(); err != nil {
		return ShardHistory{}, err
	}
	h := ShardHistory{Key: key}
	from := uint64(0)
	if c, ok := d.journal.(journal.Compacted); ok {
		horizon, err := c.Base(func(events []shard.Event) error {
			for i := range events {
				if events[i].Key == key {
					h.add(&events[i], true)
				}
			}
			return ctx.Err()
		})
		if err != nil {
			return ShardHistory{}, fmt.Errorf("history of %q: %w", key, err)
		}
		from = horizon.Seq
	}
	h.From, h.AsOf = from, d.journal.Head()
	err := d.journal.Replay(from, func(b *journal.Batch) error {
		for i := range b.Events {
			if b.Events[i].Key == key {
				h.add(&b.Events[i], false)
			}
		}
		h.AsOf = b.End
		return ctx.Err()
	})
	switch {
	case errors.Is(err, journal.ErrCompacted) && ctx.Err() == nil:
		return d.History(ctx, key) // it was compacted meanwhile, which is not done often
	case err != nil:
		return ShardHistory{}, fmt.Errorf("history of %q: %w", key, err)
	case len(h.Lives) == 0:
		return h, unknownShard(key)
	}
	return h, nil
}

func (h *ShardHistory) add(e *shard.Event, base bool) {
	if n := len(h.Lives); n == 0 || h.Lives[n-1].Gen != e.Gen {
		h.Lives = append(h.Lives, ShardLife{Gen: e.Gen})
	}
	l := &h.Lives[len(h.Lives)-1]
	l.Over = e.Kind == shard.EventDestroyed
	l.Events = append(l.Events, HistoryEvent{
		Seq: e.Seq, Time: time.Unix(0, e.Time), Kind: e.Kind.String(), Life: e.State.Life.String(),
		Reason: strings.Clone(e.State.Reason), URL: redact(strings.Clone(e.State.URL)), Lazy: e.State.Lazy,
		Blocks: e.State.Index.Blocks, SourceSize: e.State.Index.SourceSize, Base: base,
	})
}

// Replay applies the events from+1 … to to a view of the caller's, batch by batch, for
// analysis; the batch that event to belongs to is the last. The view is not registered
// and need not begin where the batches do.
func (d *DAGStore) Replay(ctx context.Context, from, to uint64, view projection.View) error {
	if err := d.fresher(); err != nil {
		return err
	}
	if head := d.journal.Head(); to > head.Seq {
		return fmt.Errorf("replay to event %d: %w, which is event %d", to, ErrFuturePosition, head.Seq)
	}
	if to <= from {
		return nil
	}
	err := d.journal.Replay(from, func(b *journal.Batch) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if b.End.Seq-uint64(len(b.Events)) >= to {
			return errReplayed
		}
		if err := view.Apply(b); err != nil {
			return fmt.Errorf("view %q, events up to %d: %w", view.Name(), b.End.Seq, err)
		}
		return nil
	})
	if errors.Is(err, errReplayed) {
		return nil
	}
	return err
}

var errReplayed = errors.New("replayed")
