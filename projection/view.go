package projection

import (
	"context"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// View is a fold over the journal. Apply is called by one goroutine at a time, with
// batches that follow each other without a gap. Position may be called by any.
//
// What else a view can do it says by implementing [Publisher], [Saver], [Based],
// [Rebuilder], [Successor], [Seeded], [Selective] or [Lacker].
type View interface {
	// Name tells the view from others: 1 to 64 of a-z, 0-9 and '-'.
	Name() string
	// Version changes when the same events come to mean another state: what an
	// earlier version saved is not used.
	Version() uint32
	// Apply shows a batch: all of it, or nothing and an error. The error stops this
	// view, visibly, and no other; so does a panic. A batch at or below Position changes nothing. The
	// events and their strings are valid only during the call.
	Apply(b *journal.Batch) error
	// Position is the prefix of the journal that the view shows. A view that keeps
	// its rows elsewhere writes rows and position in one atomic step, and returns
	// what it finds there; one that lives in memory begins with the zero Position.
	Position() journal.Position
}

// Publisher is a view that publishes immutable states: readers get what Publish
// returned last, without a lock and without seeing half a batch. Without it they get
// the view itself, which then sees to its own locking.
type Publisher interface {
	View
	// Publish returns the state at Position. It is called after every Apply, by the
	// goroutine that applies, so it should take the time of a batch, not of the state.
	// What it returned never changes.
	Publish() any
}

// Saver is a view in memory that the runner may checkpoint. It has to be a
// [Rebuilder] as well, because a checkpoint that cannot be restored leaves nothing
// to go on with.
type Saver interface {
	View
	// Freeze returns the position and a function that writes the state there, in
	// blocks of up to 4 MiB each that may be reused after emit. It is called by the
	// goroutine that applies and should be quick; save runs beside further Applies.
	Freeze() (pos journal.Position, save func(emit func(block []byte) error) error)
	// Restore fills an empty view with what a save of the same version wrote. next
	// returns the blocks in order, each valid until the call after, and io.EOF after
	// the last. After an error the view is not used any more.
	Restore(pos journal.Position, next func() ([]byte, error)) error
}

// Based is a view that can begin with the base of a compacted journal in place of
// the history that is gone. One that cannot stops with journal.ErrCompacted if it
// needs that history.
type Based interface {
	View
	// ApplyBase adds to an empty view the newest events of some of the shards that
	// lived at end. With the call whose last is true, which may have no events, the
	// view's position becomes end.
	ApplyBase(events []shard.Event, end journal.Position, last bool) error
}

// Rebuilder is a view that can be made anew beside the one in use.
type Rebuilder interface {
	View
	// Fresh returns another view of the same name and version that shows nothing.
	Fresh() (View, error)
}

// Successor is a [Rebuilder] that is told when it takes the place of the view that it
// was made beside, as one that keeps its rows on disk has to be.
type Successor interface {
	Rebuilder
	// Succeed is called once, with former in use for the last time, before readers see
	// the new view. After an error, former stays in use.
	Succeed(former View) error
}

// Lacker is a view that can go on although it lacks something.
type Lacker interface {
	View
	// Lacking says what, for [Freshness.Err], or returns nil. It may be called by any
	// goroutine and should be quick.
	Lacking() error
}

// Seeded is a view that can begin with a state of the catalogue in place of all events
// up to there, because it keeps nothing of what is over.
type Seeded interface {
	View
	// Seed fills an empty view from s, whose position becomes the view's. After an
	// error the view is not used any more. ctx is the runner's.
	Seed(ctx context.Context, s *Snapshot) error
}

// Selective is a view that many events mean nothing to. A batch of such events only
// moves its position, which is then done by the goroutine that commits, at once.
type Selective interface {
	View
	// Concerns says whether Apply does more for an event than to pass it. It must be
	// quick, and may be called beside Apply.
	Concerns(e *shard.Event) bool
}
