package dagstore

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

const (
	// maxHolders bounds how many holders of a place are listed, and how many who
	// stand ahead in a queue.
	maxHolders = 16
	// maxExplained bounds how many requests one explanation lists.
	maxExplained = 64
)

// Explanation says how a shard stands, what keeps an acquire of it waiting, and what
// leads to its answer. It encodes as JSON for programs; String is for people.
type Explanation struct {
	Key shard.Key `json:"key"`
	// State is the public state. What is not durable yet does not show in it.
	State string `json:"state"`
	// URL of the mount, with user information masked.
	URL  string `json:"url"`
	Lazy bool   `json:"lazy"`
	// Seq is the journal position of the shard's newest durable event, Since its
	// time: since when the durable state is what it is.
	Seq   uint64    `json:"seq"`
	Since time.Time `json:"since"`
	// Recording is the event of the shard that is on its way into the journal, if
	// any. What is asked of the shard meanwhile waits for it.
	Recording *Recording `json:"recording,omitempty"`
	// Mounting: the mount of the shard is being made from its URL; what is asked of
	// the shard waits for that.
	Mounting bool `json:"mounting,omitempty"`
	// Machine is how the shard's machine stands, and every guard that is not met.
	// Times in it are Unix nanoseconds.
	Machine fsm.Answer `json:"machine"`
	// Path is the shortest way from here to the answer of an acquire.
	Path []fsm.PathStep `json:"path"`
	// Requests are the oldest requests for the shard that wait, Pending is how many do.
	Requests []RequestExplanation `json:"requests,omitempty"`
	Pending  int                  `json:"pending"`
}

// Recording is an event on its way into the journal.
type Recording struct {
	Kind string `json:"kind"`
	// Seq is the event's sequence number, 0 while its batch is being collected.
	Seq uint64 `json:"seq"`
	// Batch is how many events its batch has, Ahead how many batches are before it.
	Batch int `json:"batch"`
	Ahead int `json:"ahead"`
	// Since is when the event was decided.
	Since time.Time `json:"since"`
}

// Explain says how a shard stands: whether an acquire would be answered at once, and
// if not, what is missing, since when, who has it, what would change it, and what has
// to happen, step by step. It does not wait for what is being recorded.
func (d *DAGStore) Explain(key shard.Key) (Explanation, error) {
	if err := d.check(); err != nil {
		return Explanation{}, err
	}
	x := Explanation{Key: key}
	live := false
	if !d.loop.control(func() { live = d.loop.explain(key, &x) }) {
		return Explanation{}, ErrClosed
	}
	rec := d.cat.Get(key)
	if rec != nil {
		x.URL, x.Lazy, x.Seq, x.Since = redact(rec.URL()), rec.Lazy(), rec.Seq(), time.Unix(0, rec.Time()).UTC()
	}
	if live {
		return x, nil
	}
	if rec == nil {
		return Explanation{}, unknownShard(key)
	}
	// At rest: the machine as it would be if something came up.
	s := &fsm.Shard{}
	restingShard(rec, s)
	mnt, direct, err := d.instantiate(rec.URL())
	switch {
	case err != nil:
		s.Life, s.Cause = shard.Errored, err
	case direct:
		s.Data = fsm.Direct
	}
	d.closeMount(mnt)
	x.State = stateOf(s.Life, 0).String()
	if !d.loop.control(func() { d.loop.explainResting(key, &x, s, err) }) {
		return Explanation{}, ErrClosed
	}
	return x, nil
}

// explainer answers questions within one turn of the loop.
type explainer struct {
	e *eventLoop
	// paths and lacks are what was found out about a shard already: a thousand
	// acquires may wait for the same.
	paths map[pathQuestion]pathAnswer
	lacks map[*fsm.Shard][]fsm.Verdict
}

func (e *eventLoop) explainer() *explainer {
	return &explainer{e: e, paths: make(map[pathQuestion]pathAnswer), lacks: make(map[*fsm.Shard][]fsm.Verdict)}
}

// explain fills in how a live shard stands; false if the shard is at rest.
func (e *eventLoop) explain(key shard.Key, x *Explanation) bool {
	lv := e.d.mu.hot[key]
	if lv == nil || lv.s.Life == shard.None && !lv.busy {
		return false
	}
	q := e.explainer()
	x.State, x.URL, x.Lazy = lv.info().String(), redact(lv.url), lv.s.Lazy
	x.Recording = e.recording(lv)
	x.Mounting = lv.busy && x.Recording == nil
	x.Machine = fsm.Why(e.net, &lv.s)
	e.fillHolders(&lv.s, key, x.Machine.Missing)
	x.Path, _ = fsm.Path(e.net, &lv.s, fsm.GoalAccessor)
	if lv.noMount != nil {
		x.Path = e.pathWithoutMount(key, lv.noMount)
	}
	x.Path = append(e.firstDurable(lv, x.Recording), x.Path...)
	x.Requests, x.Pending = q.ofShard(key, lv)
	return true
}

// explainResting fills in how a shard stands of which nothing volatile is known. noMount
// is why its mount cannot be made.
func (e *eventLoop) explainResting(key shard.Key, x *Explanation, s *fsm.Shard, noMount error) {
	if gen, ok := e.copies[key]; ok && gen == s.Gen && s.Data == fsm.Absent {
		s.Data, s.Owned = fsm.Present, true
	}
	x.Machine = fsm.Why(e.net, s)
	e.fillHolders(s, key, x.Machine.Missing)
	if noMount != nil {
		x.Path = e.pathWithoutMount(key, noMount)
	} else {
		x.Path, _ = fsm.Path(e.net, s, fsm.GoalAccessor)
	}
	x.Requests, x.Pending = e.explainer().ofShard(key, nil)
}

// pathWithoutMount is the path of a shard whose mount cannot be made: it is as it was
// recorded once a store is opened that can.
func (e *eventLoop) pathWithoutMount(key shard.Key, noMount error) []fsm.PathStep {
	path := []fsm.PathStep{{
		Trigger: "reopen", Times: 1, By: "the operator",
		WaitsFor: fmt.Sprintf("the store opened anew so that it can make the mount (now: %q)", noMount),
	}}
	rec := e.d.cat.Get(key)
	if rec == nil {
		return path
	}
	s := &fsm.Shard{}
	restingShard(rec, s)
	rest, _ := fsm.Path(e.net, s, fsm.GoalAccessor)
	return append(path, rest...)
}

// recording describes the event of lv that is on its way; nil if there is none.
func (e *eventLoop) recording(lv *live) *Recording {
	if !lv.busy {
		return nil
	}
	ahead := 0
	find := func(c *commit) *Recording {
		for i := range c.steps {
			if p := &c.steps[i]; p.lv == lv {
				ev := &c.events[p.event]
				return &Recording{
					Kind: ev.Kind.String(), Seq: ev.Seq, Batch: len(c.events), Ahead: ahead, Since: time.Unix(0, ev.Time).UTC(),
				}
			}
		}
		ahead++
		return nil
	}
	if c := e.flying; c != nil {
		if r := find(c); r != nil {
			return r
		}
	}
	for _, c := range e.outbox {
		if r := find(c); r != nil {
			return r
		}
	}
	return nil
}

// firstDurable is what a path begins with while the shard is busy: nothing moves
// before that.
func (e *eventLoop) firstDurable(lv *live, r *Recording) []fsm.PathStep {
	switch {
	case !lv.busy:
		return nil
	case r == nil:
		return []fsm.PathStep{{Trigger: "mounted", Times: 1, By: "the store", WaitsFor: "its mount made from the URL"}}
	}
	return []fsm.PathStep{durableStep(r)}
}

func durableStep(r *Recording) fsm.PathStep {
	return fsm.PathStep{
		Trigger: "durable", Times: 1, By: "the journal",
		WaitsFor: fmt.Sprintf("its event %q made durable (a batch of %d, %d batches ahead)", r.Kind, r.Batch, r.Ahead),
	}
}

// fillHolders says who has what the guards lack.
func (e *eventLoop) fillHolders(s *fsm.Shard, key shard.Key, vs []fsm.Verdict) {
	for i := range vs {
		for j := range vs[i].Unmet {
			u := &vs[i].Unmet[j]
			u.Holders = e.holders(s, key, u)
		}
	}
}

func (e *eventLoop) holders(s *fsm.Shard, key shard.Key, u *fsm.Unmet) *fsm.Holders {
	const ofJobs = 1<<fsm.PlaceJob | 1<<fsm.PlaceHandle | 1<<fsm.PlaceData | 1<<fsm.PlaceIndex
	switch {
	case u.Slot != fsm.NoSlot:
		return e.slotHolders(s, u.Slot)
	case u.Reads == 1<<fsm.PlaceJournal && e.net.ReadOnly:
		h := fsm.Holder{Kind: "journal", Since: u.Since, SinceSeq: u.SinceSeq}
		if e.failed != nil {
			h.Cause = e.failed.Error()
		}
		return &fsm.Holders{Count: 1, Listed: []fsm.Holder{h}}
	case u.Reads == 1<<fsm.PlaceRefs && s.Refs > 0:
		return e.accessorHolders(s, key, u)
	case u.Reads&ofJobs != 0 && s.Job() != fsm.JobNone:
		return &fsm.Holders{Count: 1, Listed: []fsm.Holder{jobHolder(s, key)}}
	}
	return nil
}

// accessorHolders lists who has the accessors of a shard.
func (e *eventLoop) accessorHolders(s *fsm.Shard, key shard.Key, u *fsm.Unmet) *fsm.Holders {
	h := &fsm.Holders{Count: int(s.Refs)}
	list := func(kind string) {
		h.Listed = append(h.Listed, fsm.Holder{Kind: kind, Shard: key.String(), Since: u.Since, SinceSeq: u.SinceSeq})
	}
	lv, _ := s.Owner.(*live)
	if lv == nil || lv.heldByHolders() < s.Refs {
		list("accessors")
	}
	if lv != nil {
		for _, x := range lv.holders {
			list(fmt.Sprintf("%d accessors of %s", x.n, x.h.HolderName()))
		}
	}
	return h
}

// slotHolders lists whose jobs hold the tokens of a slot, those longest at it first,
// and who stands before s in its queue.
func (e *eventLoop) slotHolders(s *fsm.Shard, slot fsm.Slot) *fsm.Holders {
	shards := e.net.Holders(slot)
	all := make([]fsm.Holder, 0, len(shards))
	for _, x := range shards {
		all = append(all, jobHolder(x, x.Owner.(*live).key))
	}
	slices.SortFunc(all, func(a, b fsm.Holder) int {
		return cmp.Or(cmp.Compare(a.Since, b.Since), cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Attempt, b.Attempt))
	})
	h := &fsm.Holders{Count: len(all), Listed: all[:min(len(all), maxHolders)]}
	if s.Queued == slot {
		for _, x := range e.net.Ahead(s, maxHolders) {
			h.Ahead = append(h.Ahead, x.Owner.(*live).key.String())
		}
	}
	return h
}

// jobHolder describes the running job of a shard.
func jobHolder(s *fsm.Shard, key shard.Key) fsm.Holder {
	h := fsm.Holder{Kind: "job", Shard: key.String(), Job: s.Job().String(), Attempt: s.Attempt, FormerLife: s.FormerJob()}
	h.Since, h.SinceSeq = s.JobBegan()
	return h
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
	fmt.Fprintf(&b, "shard %q: %s", x.Key, x.State)
	if x.Seq > 0 {
		fmt.Fprintf(&b, " since %s (event %d)", x.Since.UTC().Format(time.RFC3339), x.Seq)
	}
	fmt.Fprintf(&b, "\n  source %q", x.URL)
	if x.Lazy {
		b.WriteString(", lazy")
	}
	if r := x.Recording; r != nil {
		fmt.Fprintf(&b, "; its event %q is being recorded (a batch of %d, %d batches ahead)", r.Kind, r.Batch, r.Ahead)
	}
	if x.Mounting {
		b.WriteString("; its mount is being made")
	}
	b.WriteString("\n")
	b.WriteString(x.Machine.Text(timeText))
	pathText(&b, "an acquire is answered", x.Path)
	if x.Pending > 0 {
		fmt.Fprintf(&b, "  pending requests: %d\n", x.Pending)
		for i := range x.Requests {
			b.WriteString("    " + x.Requests[i].headline() + "\n")
		}
		if more := x.Pending - len(x.Requests); more > 0 {
			fmt.Fprintf(&b, "    and %d more\n", more)
		}
	}
	return b.String()
}

// timeText renders a time of the machine's.
func timeText(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }

func pathText(b *strings.Builder, goal string, path []fsm.PathStep) {
	if len(path) == 0 {
		return
	}
	fmt.Fprintf(b, "  the way until %s:\n", goal)
	for i, p := range path {
		fmt.Fprintf(b, "    %d. %s\n", i+1, p)
	}
}
