package dagstore

import (
	"fmt"
	"strings"
	"time"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// Explanation says how a shard stands and what keeps an acquire of it waiting. It
// encodes as JSON for programs; String is for people.
type Explanation struct {
	Key   shard.Key `json:"key"`
	State string    `json:"state"`
	// URL of the mount, with user information masked.
	URL  string `json:"url"`
	Lazy bool   `json:"lazy"`
	// Seq is the journal position of the shard's newest durable event, Since its
	// time: since when the durable state is what it is.
	Seq   uint64    `json:"seq"`
	Since time.Time `json:"since"`
	// Recording: an event of the shard is on its way into the journal.
	Recording bool `json:"recording,omitempty"`
	// Machine is how the shard's machine stands, and every guard that is not met.
	// Times in it are Unix nanoseconds.
	Machine fsm.Answer `json:"machine"`
}

// Explain says how a shard stands: whether an acquire would be answered at once,
// and if not, what is missing, since when, and what would change it.
func (d *DAGStore) Explain(key shard.Key) (Explanation, error) {
	if _, err := d.GetShardInfo(key); err != nil {
		return Explanation{}, fmt.Errorf("%s: %w", key, err)
	}
	x := Explanation{Key: key}
	rec := d.cat.Get(key)
	if rec != nil {
		x.URL, x.Lazy, x.Seq, x.Since = redact(rec.URL()), rec.Lazy(), rec.Seq(), time.Unix(0, rec.Time())
	}
	live := false
	if !d.loop.control(func() { live = d.loop.explain(key, &x) }) {
		return Explanation{}, ErrClosed
	}
	if live {
		return x, nil
	}
	if rec == nil {
		return Explanation{}, fmt.Errorf("%s: %w", key, ErrShardUnknown)
	}
	// At rest: the machine as it would be if something came up.
	s := &fsm.Shard{}
	restingShard(rec, s)
	_, direct, err := d.instantiate(rec.URL())
	switch {
	case err != nil:
		s.Life, s.Cause = shard.Errored, err
	case direct:
		s.Data = fsm.Direct
	}
	x.State = stateOf(s.Life, 0).String()
	if !d.loop.control(func() {
		if gen, ok := d.loop.copies[key]; ok && gen == s.Gen && s.Data == fsm.Absent {
			s.Data, s.Owned = fsm.Present, true
		}
		x.Machine = fsm.Why(d.loop.net, s)
	}) {
		return Explanation{}, ErrClosed
	}
	return x, nil
}

// explain fills in how a live shard stands; false if the shard is at rest.
func (e *eventLoop) explain(key shard.Key, x *Explanation) bool {
	lv := e.d.mu.hot[key]
	if lv == nil {
		return false
	}
	x.State, x.Recording = lv.info().String(), lv.busy
	x.Machine = fsm.Why(e.net, &lv.s)
	return true
}

// restingShard sets the machine's state of a shard to what its record says.
func restingShard(rec *projection.Record, s *fsm.Shard) {
	s.Gen, s.Life, s.Lazy = rec.Gen(), rec.Life(), rec.Lazy()
	s.Rest(rec.Time(), rec.Seq())
	if s.Life == shard.Available {
		s.Index, s.Info = fsm.Indexed, rec.Index()
	}
	if reason := rec.Reason(); reason != "" {
		s.Cause = recordedError(reason)
	}
}

// String renders the explanation as a few lines.
func (x Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "shard %q: %s since %s (event %d)\n  source %q", x.Key, x.State, x.Since.UTC().Format(time.RFC3339), x.Seq, x.URL)
	if x.Lazy {
		b.WriteString(", lazy")
	}
	if x.Recording {
		b.WriteString(", a change is being recorded")
	}
	b.WriteString("\n")
	b.WriteString(x.Machine.String())
	return b.String()
}
