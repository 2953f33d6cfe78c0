package projection

import (
	"errors"
	"fmt"
	"time"

	"github.com/dagstore/dagstore/journal"
)

// State says what a view is doing.
type State uint8

const (
	// Starting: registered, not yet fed.
	Starting State = iota
	// CatchingUp: it applies what it missed, and will be live.
	CatchingUp
	// Live: it applies batches as they come.
	Live
	// Stalled: an event could not be applied; Freshness.Err says which and why.
	Stalled
	// Rebuilding: it is being made anew; the former state is served meanwhile.
	Rebuilding
	// Ended: the runner was closed.
	Ended
)

var stateNames = [...]string{"starting", "catching up", "live", "stalled", "rebuilding", "ended"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "invalid"
}

// MarshalText encodes the state as its name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Freshness says how far a view is behind the journal. Applied is what the answer
// that came with it shows.
type Freshness struct {
	View    string
	Applied journal.Position
	// Head is the end of the journal, not of what the view has heard of.
	Head journal.Position
	// Lag is Head.Seq - Applied.Seq, in events; LagFor is since when the first of
	// them is durable, as far as is known.
	Lag    uint64
	LagFor time.Duration
	State  State
	// Err is why the view is stalled, or what it lacks while it goes on; else nil.
	Err error
}

// String is for people.
func (f Freshness) String() string {
	s := fmt.Sprintf("%s is %s at event %d of %d", f.View, f.State, f.Applied.Seq, f.Head.Seq)
	if f.Lag > 0 {
		s += fmt.Sprintf(", behind for %s", f.LagFor.Round(time.Millisecond))
	}
	if f.Err != nil {
		s += ": " + f.Err.Error()
	}
	return s
}

var (
	// ErrNotFresh is what every [*NotFreshError] is.
	ErrNotFresh = errors.New("not fresh enough")
	// ErrNoPosition is returned for AtLeast and AsOf without a position: a position
	// that is missing never means "any".
	ErrNoPosition = errors.New("no position given")
	// ErrUnknownView is returned for a name that no view was registered under.
	ErrUnknownView = errors.New("no such view")
	// ErrEnded is returned to those who wait when the runner is closed.
	ErrEnded = errors.New("views ended")
	// ErrHangs is returned when the runner is closed and the code of a view does not
	// return: its goroutine is left behind.
	ErrHangs = errors.New("a view does not return")
)

// NotFreshError says that a view did not become as fresh as was asked for in time.
type NotFreshError struct {
	View string
	// Want is the position that was waited for, Had what the view shows, Head the
	// end of the journal. Want is the zero Position if a time was asked for.
	Want, Had, Head journal.Position
	// Within is the staleness that was asked for, or 0.
	Within time.Duration
	State  State
	// Err is why the view does not go on, if it is stalled.
	Err error
	// RetryAfter is when it may be worth while to ask again.
	RetryAfter time.Duration
	// Cause is the error of the context if that ended the wait.
	Cause error
}

func (e *NotFreshError) Error() string {
	want := fmt.Sprintf("event %d", e.Want.Seq)
	if e.Within > 0 {
		want = "at most " + e.Within.String() + " behind"
	}
	s := fmt.Sprintf("view %q is not fresh enough: wanted %s, shows event %d of %d, %s; try again in %s",
		e.View, want, e.Had.Seq, e.Head.Seq, e.State, e.RetryAfter)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Is makes every NotFreshError an [ErrNotFresh].
func (e *NotFreshError) Is(target error) bool { return target == ErrNotFresh }

// Unwrap returns the errors that led to this one.
func (e *NotFreshError) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.Err, e.Cause} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}
