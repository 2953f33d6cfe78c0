// Package journal is the append-only commit log of shard events: the truth of
// which everything else in the store is a projection.
//
// A journal is totally ordered and gap-free. A batch is all or nothing. A nil
// error from Append means durable. There are three: [Memory], [OpenDatastore] over
// any go-datastore, and [OpenFile] in segmented files. One conformance suite,
// journal/journaltest, holds them to this page.
package journal

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/dagstore/dagstore/shard"
)

// Position names a prefix of a journal: the events 1..Seq, whose batches hash to
// Digest. The zero Position is the empty journal. Two journals that agree in a
// Position agree in everything up to it.
//
//	Digest(0)            = 32 zero bytes
//	Digest(after batch)  = SHA-256(Digest(before) ‖ first Seq ‖ the batch's encoded events)
//
// where first Seq is 8 bytes, little endian.
type Position struct {
	Seq    uint64
	Digest [32]byte
}

// String gives the sequence number and the first bytes of the digest.
func (p Position) String() string {
	return fmt.Sprintf("%d@%s", p.Seq, hex.EncodeToString(p.Digest[:6]))
}

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
	// it is. A visit may append.
	Replay(seq uint64, visit func(*Batch) error) error
	// Close releases the journal and its lock. Idempotent.
	Close() error
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
