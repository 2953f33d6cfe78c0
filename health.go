package dagstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// HealthState sums up how a store is.
type HealthState uint8

const (
	// HealthStarting: not started yet, or recovering its state.
	HealthStarting HealthState = iota
	// HealthReady: everything is shown and everything can be changed.
	HealthReady
	// HealthCatchingUp: a view applies what it missed.
	HealthCatchingUp
	// HealthRebuilding: a view is being made anew; the former is served meanwhile.
	HealthRebuilding
	// HealthStalled: a view cannot apply an event. The store goes on; what that view
	// shows gets older.
	HealthStalled
	// HealthReadOnly: the journal cannot be written. Accessors, and acquires of
	// available shards, go on; reopen the store.
	HealthReadOnly
	// HealthClosed: closed, or it could not be started.
	HealthClosed
)

var healthNames = [...]string{"starting", "ready", "catching up", "rebuilding", "stalled", "read-only", "closed"}

func (s HealthState) String() string {
	if int(s) < len(healthNames) {
		return healthNames[s]
	}
	return "invalid"
}

// MarshalText encodes the state as its name.
func (s HealthState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Health is how a store is at one moment. State is the gravest of what there is; the
// rest says all of it.
type Health struct {
	State HealthState
	// Since is when State began, as far as Health was asked for or a change was noticed.
	Since time.Time
	// Cause is why State is stalled, read-only or closed; else nil.
	Cause error
	// Head is the end of the journal.
	Head Position
	// Views are the catalogue and the others, with what they show.
	Views []Freshness
	// ReadOnly is why the journal cannot be written, or nil. For a follower, which
	// never writes, it stays nil.
	ReadOnly error
	// Follower: the store follows the journal of another process.
	Follower bool
	// Shards counts those that cannot serve, or could not when they were last asked for.
	// They keep no store from being ready.
	Shards TroubledShards
	// Refused counts the appends that the journal refused, be it for a moment: a full
	// disk shows here while the store goes on.
	Refused RefusedAppends
	// WriterSeen is when a follower last heard of the process that writes: when that one
	// said last how far the journal is, or now, if it is seen to hold the journal. It is
	// zero if nothing was heard, and for a store that writes itself.
	WriterSeen time.Time
	// Writer is what a follower believes of that process.
	Writer WriterState
	// Recovery is what the start found.
	Recovery projection.Recovery
	// Views' checkpoints and the removal of old segments, counted.
	Checkpoints projection.RunnerStats
}

// WriterState is what a follower believes of the process that writes.
type WriterState uint8

const (
	// WriterUnknown: it has not closed the store, and whether it lives cannot be seen on
	// this system. So it is for a store that does not follow.
	WriterUnknown WriterState = iota
	// WriterRunning: a process holds the lock of the journal.
	WriterRunning
	// WriterClosed: it closed the store, and nobody has opened it since.
	WriterClosed
	// WriterGone: it did not close the store, and nobody who can be seen from here holds
	// the lock: it was killed, or it is on another machine, or in another PID namespace.
	WriterGone
)

var writerNames = [...]string{"unknown", "running", "closed", "gone"}

func (s WriterState) String() string {
	if int(s) < len(writerNames) {
		return writerNames[s]
	}
	return "invalid"
}

// MarshalText encodes the state as its name.
func (s WriterState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// TroubledShards counts the shards that cannot serve, by why.
type TroubledShards struct {
	// Errored: recover or destroy them. Recovering: they are being indexed anew.
	Errored, Recovering int
	// Away: their sources could not be had when they were last asked for, or this machine
	// was short of something. They come back by themselves.
	Away int
}

// RefusedAppends are the batches of events that the journal did not take since the store
// was started. What was to become of the shards in them did not come to be, and who asked
// for it was told.
type RefusedAppends struct {
	// Count is how many batches were refused, Events how many events were in them.
	Count, Events uint64
	// Last is when the last one was, Err why; the zero time and nil if none was.
	Last time.Time
	Err  error
}

// Live says that the process is worth keeping: the store was not closed.
func (h Health) Live() bool { return h.State != HealthClosed }

// Ready says that requests are served with the freshness that is promised: not
// before the start is done, and not while a view is behind for good.
func (h Health) Ready() bool {
	switch h.State {
	case HealthReady, HealthRebuilding, HealthReadOnly:
		return true
	case HealthCatchingUp:
		for _, f := range h.Views {
			if f.State != projection.Rebuilding && f.LagFor > readyLag {
				return false
			}
		}
		return true
	}
	return false
}

// Reason says why the store is not ready, or, if it is, what keeps it from being all
// right. It is empty for [HealthReady].
func (h Health) Reason() string {
	switch {
	case h.Cause != nil:
		return h.Cause.Error()
	case h.State == HealthStarting:
		return "not started yet, or recovering its state"
	case h.State == HealthRebuilding:
		return "a view is being made anew; the former is served meanwhile"
	case h.State == HealthCatchingUp:
		var worst Freshness
		for _, f := range h.Views {
			if healthOf(f) == HealthCatchingUp && (worst.View == "" || f.LagFor > worst.LagFor) {
				worst = f
			}
		}
		return fmt.Sprintf("view %q is %d events behind, for %s", worst.View, worst.Lag, worst.LagFor.Round(time.Millisecond))
	}
	return ""
}

// readyLag is how long a view may be behind in a store that is ready.
const readyLag = time.Second

// health remembers since when the store is how it is.
type health struct {
	sync.Mutex
	state HealthState
	since time.Time
	ended error // why it could not be started, or ErrClosed

	readOnly error
	refused  RefusedAppends
	recovery projection.Recovery
}

// setReadOnly notes why the journal takes no more events.
func (h *health) setReadOnly(err error) {
	h.Lock()
	defer h.Unlock()
	h.readOnly = err
}

// refusedAppend notes that the journal did not take a batch of n events.
func (h *health) refusedAppend(n int, err error) {
	h.Lock()
	defer h.Unlock()
	h.refused.Count++
	h.refused.Events += uint64(n)
	h.refused.Last, h.refused.Err = time.Now(), bounded(err)
}

// whyReadOnly is why the journal takes no more events, or nil.
func (h *health) whyReadOnly() error {
	h.Lock()
	defer h.Unlock()
	return h.readOnly
}

func (h *health) end(err error) {
	h.Lock()
	defer h.Unlock()
	if h.ended == nil {
		h.ended = err
	}
}

// Health says how the store is. It may be asked at any time, before Start and after
// Close too, and waits for nothing.
func (d *DAGStore) Health() Health {
	h := Health{Follower: d.tail != nil}
	running := d.phase.Load() == phaseRunning
	if running {
		h.Views, h.Head, h.Checkpoints = d.Views(), d.journal.Head(), d.views.Stats()
		if d.tail != nil {
			h.WriterSeen, h.Writer = d.tail.writer()
		}
	}
	if snap := d.cat.Snapshot(); running {
		h.Shards = TroubledShards{Errored: snap.Count(shard.Errored), Recovering: snap.Count(shard.Recovering), Away: int(d.ailing.Load())}
	}
	d.health.Lock()
	defer d.health.Unlock()
	h.ReadOnly, h.Refused, h.Recovery = d.health.readOnly, d.health.refused, d.health.recovery
	h.State, h.Cause = d.health.judge(running, d.phase.Load() == phaseClosing, h.Views)
	if now := time.Now(); d.health.since.IsZero() || d.health.state != h.State {
		d.health.state, d.health.since = h.State, now
	}
	h.Since = d.health.since
	return h
}

// judge finds the gravest of what there is. It needs the lock.
func (h *health) judge(running, closing bool, views []Freshness) (HealthState, error) {
	switch {
	case closing || h.ended != nil:
		if h.ended == nil {
			return HealthClosed, ErrClosed
		}
		return HealthClosed, h.ended
	case !running:
		return HealthStarting, nil
	case h.readOnly != nil:
		return HealthReadOnly, h.readOnly
	}
	state, cause := HealthReady, error(nil)
	for _, f := range views {
		s := healthOf(f)
		if s > state {
			state, cause = s, nil
			if s == HealthStalled {
				cause = fmt.Errorf("view %q: %w", f.View, f.Err)
			}
		}
	}
	return state, cause
}

func healthOf(f Freshness) HealthState {
	switch f.State {
	case projection.Stalled:
		return HealthStalled
	case projection.Rebuilding:
		return HealthRebuilding
	case projection.Starting, projection.CatchingUp:
		return HealthCatchingUp
	}
	if f.LagFor > readyLag {
		return HealthCatchingUp // it hangs, or cannot keep up
	}
	return HealthReady
}

// String is a line for people, and one for each view.
func (h Health) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s at event %d", h.State, h.Head.Seq)
	if h.Follower {
		fmt.Fprintf(&b, ", following a writer that is %s", h.Writer)
		if !h.WriterSeen.IsZero() {
			fmt.Fprintf(&b, " and was last heard at %s", h.WriterSeen.UTC().Format(time.RFC3339))
		}
	}
	if why := h.Reason(); why != "" {
		fmt.Fprintf(&b, ": %q", why)
	}
	b.WriteString("\n")
	if s := h.Shards; s != (TroubledShards{}) {
		fmt.Fprintf(&b, "  shards: %d errored, %d being recovered, %d away\n", s.Errored, s.Recovering, s.Away)
	}
	if r := h.Refused; r.Count > 0 {
		fmt.Fprintf(&b, "  the journal refused %d appends, the last one at %s: %q\n", r.Count, r.Last.UTC().Format(time.RFC3339), r.Err)
	}
	for _, f := range h.Views {
		fmt.Fprintf(&b, "  %s\n", f)
	}
	return b.String()
}

// MarshalJSON encodes health for monitoring; errors are their text.
func (h Health) MarshalJSON() ([]byte, error) {
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	views := make([]FreshnessJSON, len(h.Views))
	for i, f := range h.Views {
		views[i] = FreshnessAsJSON(f)
	}
	writer, seen := "", (*time.Time)(nil)
	if h.Follower {
		writer = h.Writer.String()
		if at := h.WriterSeen.UTC(); !h.WriterSeen.IsZero() {
			seen = &at
		}
	}
	return json.Marshal(struct {
		State    HealthState     `json:"state"`
		Since    time.Time       `json:"since"`
		Live     bool            `json:"live"`
		Ready    bool            `json:"ready"`
		Reason   string          `json:"reason,omitempty"`
		Head     uint64          `json:"head"`
		Position string          `json:"position"`
		Follower bool            `json:"follower,omitempty"`
		Writer   string          `json:"writer,omitempty"`
		Seen     *time.Time      `json:"writerSeen,omitempty"`
		ReadOnly string          `json:"readOnly,omitempty"`
		Shards   shardsJSON      `json:"troubledShards"`
		Refused  *refusedJSON    `json:"refusedAppends,omitempty"`
		Views    []FreshnessJSON `json:"views"`
	}{h.State, h.Since.UTC(), h.Live(), h.Ready(), h.Reason(), h.Head.Seq, h.Head.Token(), h.Follower, writer, seen, text(h.ReadOnly), shardsJSON(h.Shards), h.Refused.json(), views})
}

type refusedJSON struct {
	Count  uint64    `json:"count"`
	Events uint64    `json:"events"`
	Last   time.Time `json:"last"`
	Error  string    `json:"error"`
}

// json is the form for programs, nil if nothing was refused.
// shardsJSON is TroubledShards for programs.
type shardsJSON struct {
	Errored    int `json:"errored"`
	Recovering int `json:"recovering"`
	Away       int `json:"away"`
}

func (r *RefusedAppends) json() *refusedJSON {
	if r.Count == 0 {
		return nil
	}
	return &refusedJSON{r.Count, r.Events, r.Last.UTC(), r.Err.Error()}
}

// FreshnessJSON is the form in which freshness is told to programs.
type FreshnessJSON struct {
	View string `json:"view"`
	// State is starting, catching up, live, stalled, rebuilding or ended.
	State projection.State `json:"state"`
	// Applied and Head are sequence numbers, Position the token of Applied.
	Applied  uint64 `json:"applied"`
	Head     uint64 `json:"head"`
	Position string `json:"position"`
	// Lag is in events, LagSeconds since when the first of them is durable.
	Lag        uint64  `json:"lag"`
	LagSeconds float64 `json:"lagSeconds"`
	Error      string  `json:"error,omitempty"`
}

// FreshnessAsJSON returns f in the form for programs.
func FreshnessAsJSON(f Freshness) FreshnessJSON {
	j := FreshnessJSON{
		View: f.View, State: f.State, Applied: f.Applied.Seq, Head: f.Head.Seq, Position: f.Applied.Token(),
		Lag: f.Lag, LagSeconds: f.LagFor.Seconds(),
	}
	if f.Err != nil {
		j.Error = f.Err.Error()
	}
	return j
}

var errNotStartedWell = errors.New("the store could not be started")
