package fsm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dagstore/dagstore/shard"
)

// Unmet is a guard that does not hold.
type Unmet struct {
	Name string `json:"name"`
	Have string `json:"have"`
	Need string `json:"need"`
	// Since is when what the guard reads last changed, in the time given with inputs,
	// and SinceSeq the sequence number (see [Shard.SinceSeq]). 0: it reads the input
	// only.
	Since    int64  `json:"since"`
	SinceSeq uint64 `json:"sinceSeq"`
	// Wakes says what would make the guard hold.
	Wakes string `json:"wakes"`
	// Holders are who keeps it from holding, where that can be said. Who asks fills
	// them in: the machine does not know what shards are called.
	Holders *Holders `json:"holders,omitempty"`

	// Reads are the places that the guard reads, Slot whose token it asks for.
	Reads Places `json:"-"`
	Slot  Slot   `json:"-"`
}

// Holders are who has what a guard lacks.
type Holders struct {
	Count int `json:"count"`
	// Listed are some of them, those who have it longest first.
	Listed []Holder `json:"listed,omitempty"`
	// Ahead are the first who stand in the queue before the shard.
	Ahead []string `json:"ahead,omitempty"`
}

// Holder is one of them: a shard's job, the journal, or accessors.
type Holder struct {
	Kind string `json:"kind"`
	// Shard is the key of the shard.
	Shard    string `json:"shard,omitempty"`
	Job      string `json:"job,omitempty"`
	Attempt  uint32 `json:"attempt,omitempty"`
	Since    int64  `json:"since,omitempty"`
	SinceSeq uint64 `json:"sinceSeq,omitempty"`
	// FormerLife: the job goes on although its shard was destroyed.
	FormerLife bool `json:"formerLife,omitempty"`
	// Cause is why, if it is a failure.
	Cause string `json:"cause,omitempty"`
}

// Verdict says what keeps a transition from firing: nothing, if it is enabled.
type Verdict struct {
	Transition string  `json:"transition"`
	Does       string  `json:"does"`
	Unmet      []Unmet `json:"unmet,omitempty"`
}

// Enabled says whether every guard holds.
func (v *Verdict) Enabled() bool { return len(v.Unmet) == 0 }

// Explain says for each transition of the input's trigger which of its guards do
// not hold, and why. It evaluates the guards that Step evaluates; so a transition
// is enabled exactly if nothing is unmet. It changes nothing.
func Explain(n *Net, s *Shard, in Input) []Verdict {
	rows := n.m.byTrigger[in.Trigger]
	vs := make([]Verdict, len(rows))
	for i, t := range rows {
		vs[i] = t.explain(n, s, &in)
	}
	return vs
}

func (t *Transition) explain(n *Net, s *Shard, in *Input) Verdict {
	v := Verdict{Transition: t.Name, Does: t.Does}
	for _, g := range t.Guards {
		if !g.holds(n, s, in) {
			v.Unmet = append(v.Unmet, g.unmet(n, s, in))
		}
	}
	return v
}

func (g *Guard) unmet(n *Net, s *Shard, in *Input) Unmet {
	u := Unmet{Name: g.Name, Have: g.have(n, s, in), Need: g.Need, Wakes: g.Wakes, Reads: g.Reads, Slot: g.slot}
	var since stamp
	for _, p := range g.Reads.List() {
		since = since.later(n.sinceOf(s, p))
	}
	u.Since, u.SinceSeq = since.time, since.seq
	return u
}

// Answer says why no accessor of a shard is available yet, or that one is.
type Answer struct {
	// Ready: an acquire would be answered with an accessor at once.
	Ready   bool   `json:"ready"`
	Life    string `json:"life"`
	Data    string `json:"data"`
	Index   string `json:"index"`
	Handle  string `json:"handle"`
	Refs    int32  `json:"refs"`
	Parked  int    `json:"parked"`  // acquires that wait
	Waiting int    `json:"waiting"` // registrations and recoveries that wait
	// Ending are destructions that wait until the accessors are closed. Nobody gets
	// another one meanwhile.
	Ending int `json:"ending,omitempty"`
	// Job is the running job, empty if none. FormerLife: it must end before this
	// life can start one of its own.
	Job         string `json:"job,omitempty"`
	Attempt     uint32 `json:"attempt,omitempty"`
	JobSince    int64  `json:"jobSince,omitempty"`
	JobSinceSeq uint64 `json:"jobSinceSeq,omitempty"`
	FormerLife  bool   `json:"formerLife,omitempty"`
	// Queue is where the shard stands in line, if it lacks only a token.
	Queue *QueuePlace `json:"queue,omitempty"`
	// Cause is the last failure, empty if it was mended.
	Cause string `json:"cause,omitempty"`
	// Missing are the transitions that would come next on the way to an accessor,
	// each with what keeps it: nothing, if the shard is about to be woken. Empty if a
	// job is on the way.
	Missing []Verdict `json:"missing,omitempty"`
}

// QueuePlace is a place in the queue of a slot.
type QueuePlace struct {
	Slot     string `json:"slot"`
	Ahead    int    `json:"ahead"` // shards before this one
	Used     int    `json:"used"`
	Capacity int    `json:"capacity"`
}

// Why says why no accessor of s is available yet. It changes nothing.
//
// Of the automatic transitions, those are on the way whose component machines
// (life, data, index, handle) stand where the transition begins; what they lack is
// then a wish, a token, or the journal. None stands so while a job runs: its end is
// what is missing.
func Why(n *Net, s *Shard) Answer {
	a := Answer{
		Ready: s.Life == shard.Available && s.Handle == Open && len(s.Ending) == 0,
		Life:  s.Life.String(), Data: s.Data.String(), Index: s.Index.String(), Handle: s.Handle.String(),
		Refs: s.Refs, Parked: s.acquires(), Waiting: len(s.Waiting), Ending: len(s.Ending),
	}
	if s.job != JobNone {
		a.Job, a.Attempt, a.FormerLife = s.job.String(), s.Attempt, s.stale
		a.JobSince, a.JobSinceSeq = s.JobBegan()
	}
	if s.Queued != NoSlot {
		p := &n.slots[s.Queued]
		a.Queue = &QueuePlace{Slot: s.Queued.String(), Ahead: p.queue.index(s, p.queue.n), Used: p.used(), Capacity: p.cap}
	}
	if s.Cause != nil {
		a.Cause = s.Cause.Error()
	}
	if !a.Ready {
		a.Missing = missing(n, s)
	}
	return a
}

const components = 1<<PlaceLife | 1<<PlaceData | 1<<PlaceIndex | 1<<PlaceHandle

// missing lists the automatic transitions that come next. A life that none leads
// out of is answered with the transition of a request that does.
func missing(n *Net, s *Shard) (vs []Verdict) {
	if in, ask := wayOut(n, s); ask {
		for _, v := range Explain(n, s, in) {
			if v.Transition == in.Trigger.String() {
				return append(vs, v)
			}
		}
	}
	for _, t := range n.m.autos {
		if t.Name == "destroy-waited" && len(s.Ending) > 0 {
			return append(vs, t.explain(n, s, &Input{}))
		}
	}
	for _, t := range n.m.autos {
		if t.onTheWay(n, s) {
			vs = append(vs, t.explain(n, s, &Input{}))
		}
	}
	return vs
}

// wayOut is the request without which nothing will happen, if the life is one that
// no automatic transition leaves.
func wayOut(n *Net, s *Shard) (in Input, ask bool) {
	switch s.Life {
	case shard.None:
		return Input{Trigger: Register}, true
	case shard.Errored:
		return Input{Trigger: Recover}, true
	}
	return in, false
}

// onTheWay says whether the component machines stand where t begins. Only
// transitions that move one of them towards an accessor count.
func (t *Transition) onTheWay(n *Net, s *Shard) bool {
	if t.Name == "give-up" || t.Name == "forget-probe" || t.Name == "destroy-waited" {
		return false
	}
	for _, g := range t.Guards {
		if g.Reads != 0 && g.Reads&^components == 0 && !g.holds(n, s, &Input{}) {
			return false
		}
	}
	return true
}

// String renders the answer as a few lines for a person.
func (a Answer) String() string { return a.Text(nil) }

// Text is String with the times that are shown rendered by when, if it is not nil.
func (a Answer) Text(when func(time int64) string) string {
	since := sinceText(when)
	var b strings.Builder
	missing := a.Missing
	switch {
	case a.Ready:
		fmt.Fprintf(&b, "ready: an acquire is answered at once\n")
	case a.healthy():
		fmt.Fprintf(&b, "available; an acquire opens it\n")
		missing = beside(missing, gAsked, gWantsProbe) // that is what the acquire is
	default:
		fmt.Fprintf(&b, "not ready\n")
	}
	fmt.Fprintf(&b, "  life %s, data %s, index %s, handle %s; %d accessors, %d acquires wait, %d others wait\n",
		a.Life, a.Data, a.Index, a.Handle, a.Refs, a.Parked, a.Waiting)
	if a.Job != "" {
		of := ""
		if a.FormerLife {
			of = " of a former life"
		}
		fmt.Fprintf(&b, "  running: a %s job%s%s\n", a.Job, of, since(a.JobSince, a.JobSinceSeq))
	}
	if q := a.Queue; q != nil {
		fmt.Fprintf(&b, "  waits for a %s slot: %d of %d in use, %d ahead in the queue\n", q.Slot, q.Used, q.Capacity, q.Ahead)
	}
	if a.Ending > 0 {
		fmt.Fprintf(&b, "  ending: %d destructions wait for the accessors to be closed\n", a.Ending)
	}
	if a.Cause != "" {
		fmt.Fprintf(&b, "  last failure: %q\n", a.Cause)
	}
	verdicts(&b, missing, since)
	return b.String()
}

// healthy says that a shard is available and closed, with nothing the matter and nobody
// who waits.
func (a *Answer) healthy() bool {
	return a.Life == shard.Available.String() && a.Handle == Closed.String() && a.Cause == "" && a.Job == "" &&
		a.Queue == nil && a.Ending == 0 && a.Parked == 0 && a.Waiting == 0
}

// beside leaves out the verdicts that lack nothing but one of gs.
func beside(vs []Verdict, gs ...*Guard) (rest []Verdict) {
	for i := range vs {
		u := vs[i].Unmet
		if len(u) != 1 || !slices.ContainsFunc(gs, func(g *Guard) bool { return g.Name == u[0].Name }) {
			rest = append(rest, vs[i])
		}
	}
	return rest
}

func sinceText(when func(int64) string) func(int64, uint64) string {
	return func(time int64, seq uint64) string {
		if when == nil || time == 0 {
			return ""
		}
		return fmt.Sprintf(" since %s (event %d)", when(time), seq)
	}
}

// VerdictsText renders verdicts as [Answer.Text] does.
func VerdictsText(vs []Verdict, when func(time int64) string) string {
	var b strings.Builder
	verdicts(&b, vs, sinceText(when))
	return b.String()
}

func verdicts(b *strings.Builder, vs []Verdict, since func(int64, uint64) string) {
	for _, v := range vs {
		fmt.Fprintf(b, "  next: %s (%s)\n", v.Transition, v.Does)
		for _, u := range v.Unmet {
			fmt.Fprintf(b, "    needs %s; now %s%s; would be changed by %s\n", u.Need, u.Have, since(u.Since, u.SinceSeq), u.Wakes)
			u.Holders.text(b, since)
		}
	}
}

func (h *Holders) text(b *strings.Builder, since func(int64, uint64) string) {
	if h == nil {
		return
	}
	for _, x := range h.Listed {
		b.WriteString("      held by ")
		switch {
		case x.Shard != "":
			fmt.Fprintf(b, "%s of shard %q", x.Kind, x.Shard)
		default:
			b.WriteString("the " + x.Kind)
		}
		if x.Job != "" {
			fmt.Fprintf(b, ": %s, attempt %d", x.Job, x.Attempt)
		}
		if x.FormerLife {
			b.WriteString(", of a former life")
		}
		b.WriteString(since(x.Since, x.SinceSeq))
		if x.Cause != "" {
			fmt.Fprintf(b, ": %q", x.Cause)
		}
		b.WriteString("\n")
	}
	if more := h.Count - len(h.Listed); more > 0 {
		fmt.Fprintf(b, "      and by %d more\n", more)
	}
	if len(h.Ahead) > 0 {
		fmt.Fprintf(b, "      ahead in the queue: %q\n", h.Ahead)
	}
}
