// Package journal is the append-only commit log of shard events: the truth of
// which everything else in the store is a projection.
//
// A journal is totally ordered and gap-free. A batch is all or nothing. A nil
// error from Append means durable. There are three: [Memory], [OpenDatastore] over
// any go-datastore, and [OpenFile] in segmented files, which [OpenReader] follows from
// other processes. One conformance suite, journal/journaltest, holds them to this page.
package journal

import (
	"context"
	"errors"
	"fmt"

	"github.com/dagstore/dagstore/shard"
)

// Batch is what one Append wrote: events with consecutive sequence numbers, and
// the position after them. Events and their strings are valid only during the
// visit; they share one buffer.
type Batch struct {
	Events []shard.Event
	End    Position
}

// Journal is a commit log. One goroutine appends; any may read Head and replay.
type Journal interface {
	// Append writes events as one batch. Their sequence numbers must follow Head
	// without a gap (ErrOutOfOrder, nothing written). A nil error means durable.
	// An error that wraps ErrOutcomeUnknown means that the batch may or may not be
	// found after a restart; from then on the journal is read-only and every
	// Append returns an error that wraps ErrReadOnly. Any other error means that
	// nothing was written and that the journal may go on. A batch of no events
	// writes nothing and returns Head.
	Append(events []shard.Event) (Position, error)
	// Head is the position after the last durable batch.
	Head() Position
	// Replay visits every durable batch that ends after seq, in order, up to what
	// was Head when it began. A visit's error ends the replay and is returned as
	// it is. A visit may append. Errors wrap ErrCompacted if seq is below the horizon
	// of a journal that was compacted.
	Replay(seq uint64, visit func(*Batch) error) error
	// Close releases the journal and its lock. Idempotent.
	Close() error
}

// Positioner is an extra power of a journal: telling the position at a sequence
// number. All journals of this package have it.
type Positioner interface {
	// PositionAt returns the end of the batch that event seq belongs to, so that
	// the result's Seq is seq or a little more; for 0 the zero Position. Errors
	// wrap [ErrFuturePosition] if seq is beyond the head and [ErrCompacted] if it is
	// below the horizon.
	PositionAt(seq uint64) (Position, error)
}

// Compacted is an extra power of a journal: it may have forgotten its oldest events.
// What they come to is kept as the base: of every shard that lived at the horizon, its
// newest event. So the state is a fold of the base and of what follows, whatever becomes
// of checkpoints.
//
//	state = fold(base at Horizon, events Horizon.Seq+1 … Head.Seq)
type Compacted interface {
	// Horizon is the position below which the history is gone; the zero Position
	// if nothing is. A Replay from below it returns [ErrCompacted].
	Horizon() Position
	// Base visits the newest events of all shards that lived at the horizon, in
	// runs, in no particular order, and returns the horizon. Their sequence
	// numbers are their own. It visits nothing if nothing was compacted. Events
	// and their strings are valid only during the visit.
	Base(visit func(events []shard.Event) error) (Position, error)
}

// Compactor is a journal that can be made to forget its oldest events.
type Compactor interface {
	Compacted
	// Reclaimable is how many bytes Compact(at) would give back, before the base
	// that it has to write.
	Reclaimable(at Position) int64
	// Compact makes at the horizon. base emits the newest event of every shard that
	// lived there, each once; at is a position of this journal, not below the
	// present horizon. Callers see to it that every view and checkpoint has passed
	// at. After an error it may be repeated; one that was interrupted is finished or
	// swept when the journal is opened.
	Compact(ctx context.Context, at Position, base func(emit func(*shard.Event) error) error) error
}

var (
	// ErrOutOfOrder: an append whose sequence numbers do not follow the head.
	ErrOutOfOrder = errors.New("journal: events do not follow the head")
	// ErrOutcomeUnknown: a write or sync failed and what is on disk is not known.
	ErrOutcomeUnknown = errors.New("journal: outcome unknown")
	// ErrReadOnly: an earlier failure made the journal read-only until reopened.
	ErrReadOnly = errors.New("journal: read-only")
	// ErrClosed: the journal was closed.
	ErrClosed = errors.New("journal: closed")
	// ErrLocked: another process or store has the journal open for writing.
	ErrLocked = errors.New("journal: locked by another writer")
	// ErrNewerFormat: the files were written by a newer release. Nothing was
	// changed.
	ErrNewerFormat = errors.New("journal: newer format")
	// ErrCompacted: a replay from below the oldest event that is still kept.
	ErrCompacted = errors.New("journal: compacted")
	// ErrTooLarge: a batch whose encoded events exceed 64 MiB. Nothing was written.
	ErrTooLarge = errors.New("journal: batch too large")
)

// DamageError says that stored bytes are not what was written, and are not a torn
// tail either: the journal refuses to open rather than to lose what was promised.
type DamageError struct {
	File   string // file name, or datastore key
	Offset int64  // byte offset of the damaged frame in File; -1 if it has none
	What   string
}

func (e *DamageError) Error() string {
	where := e.File
	if e.Offset >= 0 {
		where = fmt.Sprintf("%s at offset %d", e.File, e.Offset)
	}
	return fmt.Sprintf("journal: damage in %s: %s; restore it from a backup or a replica", where, e.What)
}
