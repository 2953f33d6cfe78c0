package projection

import (
	"fmt"
	"time"

	"github.com/dagstore/dagstore/journal"
)

// DefaultWait bounds a wait for freshness whose context has no deadline.
const DefaultWait = 5 * time.Second

// Consistency says how fresh an answer has to be. The zero value is [Any].
type Consistency struct {
	mode   mode
	pos    journal.Position
	seq    uint64
	within time.Duration
	wait   time.Duration
}

type mode uint8

const (
	anyMode mode = iota
	atLeastMode
	atLeastSeqMode
	latestMode
	withinMode
	asOfMode
)

// Any is answered at once, with whatever is shown.
func Any() Consistency { return Consistency{} }

// AtLeast is answered when the view shows p or more. A position beyond the journal is
// refused at once with journal.ErrFuturePosition, one of another journal with
// journal.ErrForeignPosition, the zero Position with [ErrNoPosition].
func AtLeast(p journal.Position) Consistency { return Consistency{mode: atLeastMode, pos: p} }

// AtLeastSeq is AtLeast for the sequence number of a change, as results of mutations
// carry it. It cannot tell another journal.
func AtLeastSeq(seq uint64) Consistency { return Consistency{mode: atLeastSeqMode, seq: seq} }

// Latest is answered when the view shows everything that was durable when it was
// asked for.
func Latest() Consistency { return Consistency{mode: latestMode} }

// Within is answered when the view is behind for d at most.
func Within(d time.Duration) Consistency { return Consistency{mode: withinMode, within: d} }

// AsOf is the state at exactly p, now or then. Only the catalogue can be asked for
// the past; journal.ErrCompacted says that p is below the horizon.
func AsOf(p journal.Position) Consistency { return Consistency{mode: asOfMode, pos: p} }

// Wait returns c with another bound on waiting than the default of 5 s. The
// context's deadline bounds it as well.
func (c Consistency) Wait(d time.Duration) Consistency {
	c.wait = d
	return c
}

// AsOfPosition returns the position of an AsOf.
func (c Consistency) AsOfPosition() (p journal.Position, ok bool) { return c.pos, c.mode == asOfMode }

// WithinBound returns the staleness of a Within.
func (c Consistency) WithinBound() (d time.Duration, ok bool) { return c.within, c.mode == withinMode }

// ShownBy says whether pos is all that c asks for, whatever else there is by now: of Any
// it always is, and of AtLeast if pos has come so far.
func (c Consistency) ShownBy(pos journal.Position) bool {
	switch c.mode {
	case anyMode:
		return true
	case atLeastMode:
		return c.pos.Seq <= pos.Seq
	case atLeastSeqMode:
		return c.seq <= pos.Seq
	}
	return false
}

// String is for people.
func (c Consistency) String() string {
	switch c.mode {
	case atLeastMode:
		return "at least " + c.pos.String()
	case atLeastSeqMode:
		return fmt.Sprintf("at least event %d", c.seq)
	case latestMode:
		return "latest"
	case withinMode:
		return "within " + c.within.String()
	case asOfMode:
		return "as of " + c.pos.String()
	}
	return "any"
}
