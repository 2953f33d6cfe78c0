package dagstore

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/shard"
)

// RequestStage is how far a request has come.
type RequestStage string

const (
	// StageQueued: the event loop has not looked at it.
	StageQueued RequestStage = "queued"
	// StageDeferred: an event of its shard is being recorded, or its mount made.
	StageDeferred RequestStage = "deferred"
	// StageWaiting: its shard's machine knows it and cannot answer it yet.
	StageWaiting RequestStage = "waiting"
	// StageRecording: it is answered as soon as an event is durable.
	StageRecording RequestStage = "recording"
	// StageSweeping: its shard is gone; its files are being removed.
	StageSweeping RequestStage = "sweeping"
	// StageUndelivered: it was answered, and its channel does not take the answer.
	StageUndelivered RequestStage = "undelivered"
)

// RequestExplanation says where one request stands and what it waits for.
type RequestExplanation struct {
	// ID names the request in this process.
	ID   uint64    `json:"id"`
	Key  shard.Key `json:"key"`
	Kind string    `json:"kind"`
	// Since is when the loop took it from its queue, the next moment after it was made
	// unless the queue is long. Age is how long ago that is, in nanoseconds.
	Since time.Time     `json:"since"`
	Age   time.Duration `json:"ageNs"`
	Stage RequestStage  `json:"stage"`
	// Ahead is how many stand before it: requests in the queue of the loop, behind the
	// same event or among those that wait for the same; results of the same channel.
	Ahead int `json:"ahead"`
	// Goal is what the path leads to.
	Goal string `json:"goal"`
	// Recording is the event that it waits for, if any.
	Recording *Recording `json:"recording,omitempty"`
	// Running is the job of its shard that runs.
	Running *fsm.Holder `json:"running,omitempty"`
	// Queue is where its shard stands in line for a slot.
	Queue *fsm.QueuePlace `json:"queue,omitempty"`
	// Missing are the transitions that come next, with every guard that is not met.
	Missing []fsm.Verdict `json:"missing,omitempty"`
	// Path is the shortest way to its success. NoPath: there is none, and it will be
	// refused: what it forbids would be needed.
	Path   []fsm.PathStep `json:"path"`
	NoPath bool           `json:"noPath,omitempty"`
	// Result is the answer that was not taken: "ok" or the error.
	Result string `json:"result,omitempty"`
}

// ExplainRequests explains the oldest requests that will be answered on out, in
// the order in which they were made. Requests whose callers left are not listed.
func (d *DAGStore) ExplainRequests(out chan ShardResult) []RequestExplanation {
	if out == nil {
		return nil
	}
	return d.explainRequests(func(r *request) bool { return r.out == out })
}

// ExplainRequest explains the pending request with the given ID, which explanations
// tell. ErrRequestUnknown: there is none, or it was answered.
func (d *DAGStore) ExplainRequest(id uint64) (RequestExplanation, error) {
	if err := d.check(); err != nil {
		return RequestExplanation{}, err
	}
	found := d.explainRequests(func(r *request) bool { return uint64(r.ticket) == id })
	if len(found) == 0 {
		return RequestExplanation{}, fmt.Errorf("request %d: %w", id, ErrRequestUnknown)
	}
	return found[0], nil
}

func (d *DAGStore) explainRequests(which func(*request) bool) (rs []RequestExplanation) {
	d.loop.control(func() { rs, _ = d.loop.explainer().all(which, nil) })
	return rs
}

// pathQuestion is what a path depends on, for requests that wait alike.
type pathQuestion struct {
	s    *fsm.Shard
	goal fsm.Goal
	list *[]fsm.Ticket // of the shard's, for the way to a ticket's answer
}

type pathAnswer struct {
	path []fsm.PathStep
	ok   bool
}

// ofShard explains the requests for one shard; lv is nil if it is at rest.
func (x *explainer) ofShard(key shard.Key, lv *live) ([]RequestExplanation, int) {
	only := []*live{}
	if lv != nil {
		only = append(only, lv)
	}
	return x.all(func(r *request) bool { return r.key == key }, only)
}

// found is a request and where it was found.
type found struct {
	req   *request
	stage RequestStage
	ahead int
	lv    *live
	list  *[]fsm.Ticket
	res   *ShardResult
}

// all explains the requests that are meant, the oldest first, and says how many there
// are. If lives is not nil, no others are looked at.
func (x *explainer) all(which func(*request) bool, lives []*live) ([]RequestExplanation, int) {
	e := x.e
	fs := x.queued(which)
	for _, lv := range x.lives(lives) {
		fs = append(fs, x.atShard(lv, which)...)
	}
	fs = append(fs, x.answered(which)...)
	fs = append(fs, e.d.courier.find(which)...)
	seen := make(map[*request]bool, len(fs)) // the first place that is named counts
	kept := fs[:0]
	for _, f := range fs {
		if !seen[f.req] && (f.stage == StageUndelivered || f.req.state.Load() == reqPending) {
			seen[f.req] = true
			kept = append(kept, f)
		}
	}
	slices.SortFunc(kept, func(a, b found) int { return cmp.Compare(a.req.ticket, b.req.ticket) })
	n := len(kept)
	rs := make([]RequestExplanation, 0, min(n, maxExplained))
	for _, f := range kept[:min(n, maxExplained)] {
		rs = append(rs, x.explain(&f))
	}
	return rs, n
}

func (x *explainer) lives(given []*live) []*live {
	if given != nil {
		return given
	}
	all := make([]*live, 0, len(x.e.d.mu.hot))
	for _, lv := range x.e.d.mu.hot {
		all = append(all, lv)
	}
	return all
}

// queued finds requests that the loop has not looked at: those taken for this turn,
// whose time comes after completions like this one, and those behind them.
func (x *explainer) queued(which func(*request) bool) (fs []found) {
	e := x.e
	ahead := 0
	look := func(ins []input) {
		for i := range ins {
			if r := ins[i].req; r != nil && which(r) {
				fs = append(fs, found{req: r, stage: StageQueued, ahead: ahead, lv: e.d.mu.hot[r.key]})
			}
			ahead++
		}
	}
	look(e.taken)
	e.mu.Lock()
	defer e.mu.Unlock()
	look(e.mu.external)
	return fs
}

// atShard finds requests that wait for a shard, or for what keeps it busy.
func (x *explainer) atShard(lv *live, which func(*request) bool) (fs []found) {
	for i := range lv.deferred {
		if r := lv.deferred[i].req; r != nil && which(r) {
			fs = append(fs, found{req: r, stage: StageDeferred, ahead: i, lv: lv})
		}
	}
	for _, list := range []*[]fsm.Ticket{&lv.s.Parked, &lv.s.Local, &lv.s.Waiting, &lv.s.Ending} {
		for i, t := range *list {
			if r := x.e.parked[t]; r != nil && which(r) {
				fs = append(fs, found{req: r, stage: StageWaiting, ahead: i, lv: lv, list: list})
			}
		}
	}
	if r := x.e.parked[lv.s.Reclaimer]; r != nil && which(r) {
		fs = append(fs, found{req: r, stage: StageWaiting, lv: lv, list: &[]fsm.Ticket{lv.s.Reclaimer}})
	}
	return fs
}

// answered finds requests whose answer waits for an event, or for a sweep.
func (x *explainer) answered(which func(*request) bool) (fs []found) {
	e := x.e
	look := func(c *commit) {
		for i := range c.steps {
			p := &c.steps[i]
			for _, a := range c.replies[p.replies.from:p.replies.to] {
				if which(a.req) {
					fs = append(fs, found{req: a.req, stage: StageRecording, lv: p.lv})
				}
			}
			for j := p.effects.from; j < p.effects.to; j++ {
				if r := e.parked[c.effects[j].Ticket]; r != nil && which(r) {
					fs = append(fs, found{req: r, stage: StageRecording, lv: p.lv})
				}
			}
		}
	}
	if e.flying != nil {
		look(e.flying)
	}
	for _, c := range e.outbox {
		look(c)
	}
	for t := range e.sweeping {
		if r := e.parked[t]; r != nil && which(r) {
			fs = append(fs, found{req: r, stage: StageSweeping})
		}
	}
	return fs
}

// find lists results that wait for their channel.
func (c *courier) find(which func(*request) bool) (fs []found) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.mu.lanes {
		ahead := 0
		for p := l.first; p != nil; p = p.next {
			if p.req != nil && which(p.req) {
				fs = append(fs, found{req: p.req, stage: StageUndelivered, ahead: ahead, res: &p.res})
			}
			ahead++
		}
	}
	return fs
}

func (x *explainer) explain(f *found) RequestExplanation {
	e, req := x.e, f.req
	since := req.since
	if since == 0 {
		since = e.now
	}
	r := RequestExplanation{
		ID: uint64(req.ticket), Key: req.key, Kind: req.kind.String(), Since: time.Unix(0, since).UTC(),
		Age: time.Duration(max(e.now-since, 0)), Stage: f.stage, Ahead: f.ahead, Goal: goalOf(req).String(),
	}
	if lazily(req) {
		r.Goal = "the registration is recorded"
	}
	if f.lv != nil {
		r.Recording = e.recording(f.lv)
	}
	switch f.stage {
	case StageUndelivered:
		r.Path = []fsm.PathStep{{Trigger: "receive", Times: 1, By: "its caller", WaitsFor: "the channel to take the result"}}
		if r.Result = "ok"; f.res.Error != nil {
			r.Result = f.res.Error.Error()
		}
	case StageSweeping:
		r.Path = []fsm.PathStep{{Trigger: "swept", Times: 1, By: "the store", WaitsFor: "the removal of the shard's files"}}
	case StageRecording:
		if r.Recording != nil {
			r.Path = []fsm.PathStep{durableStep(r.Recording)}
		}
	case StageWaiting:
		x.waiting(f, &r)
	default:
		x.toCome(f, &r)
	}
	if r.Path == nil {
		r.Path = []fsm.PathStep{}
	}
	return r
}

// waiting explains a request that the machine knows.
func (x *explainer) waiting(f *found, r *RequestExplanation) {
	e, lv := x.e, f.lv
	r.Missing, r.Running = x.lacking(lv), running(lv)
	r.Queue = fsm.Why(e.net, &lv.s).Queue
	a := x.path(pathQuestion{&lv.s, 0, f.list}, func() ([]fsm.PathStep, bool) { return fsm.PathOf(e.net, &lv.s, f.req.ticket) })
	r.NoPath = !a.ok
	r.Path = append(e.firstDurable(lv, r.Recording), a.path...)
}

// toCome explains a request that the machine has not heard of: from where the shard
// stands now to its goal, itself the first step.
func (x *explainer) toCome(f *found, r *RequestExplanation) {
	e, req := x.e, f.req
	var s *fsm.Shard
	if f.lv != nil {
		s = &f.lv.s
		r.Path = e.firstDurable(f.lv, r.Recording)
		r.Running = running(f.lv)
	} else {
		s = &fsm.Shard{}
		if rec := e.d.cat.Get(req.key); rec != nil {
			restingShard(rec, s)
		}
	}
	in := fsm.Input{Trigger: req.kind, Ticket: req.ticket, NoDownload: req.noDownload}
	for _, v := range fsm.Explain(e.net, s, in) {
		if v.Transition == req.kind.String() && len(v.Unmet) > 0 {
			e.fillHolders(s, req.key, []fsm.Verdict{v})
			r.Missing = append(r.Missing, v)
		}
	}
	if req.kind == fsm.Acquire && f.lv != nil {
		r.Missing = x.lacking(f.lv)
	}
	if lazily(req) {
		r.Path = append(r.Path, fsm.PathStep{Trigger: "durable", Times: 1, By: "the journal", WaitsFor: "its registration made durable"})
		return
	}
	a := x.path(pathQuestion{s, goalOf(req), nil}, func() ([]fsm.PathStep, bool) { return fsm.Path(e.net, s, goalOf(req)) })
	r.Path = append(r.Path, a.path...)
}

func (x *explainer) path(q pathQuestion, find func() ([]fsm.PathStep, bool)) pathAnswer {
	a, ok := x.paths[q]
	if !ok {
		a.path, a.ok = find()
		x.paths[q] = a
	}
	return a
}

// lacking is what the shard lacks on the way to an accessor, with who has it.
func (x *explainer) lacking(lv *live) []fsm.Verdict {
	vs, ok := x.lacks[&lv.s]
	if !ok {
		vs = fsm.Why(x.e.net, &lv.s).Missing
		x.e.fillHolders(&lv.s, lv.key, vs)
		x.lacks[&lv.s] = vs
	}
	return vs
}

func running(lv *live) *fsm.Holder {
	if lv.s.Job() == fsm.JobNone {
		return nil
	}
	h := jobHolder(&lv.s, lv.key)
	return &h
}

// goalOf is what a request is for.
func goalOf(req *request) fsm.Goal {
	switch req.kind {
	case fsm.Acquire:
		return fsm.GoalAccessor
	case fsm.Destroy:
		return fsm.GoalGone
	case fsm.Reclaim:
		return fsm.GoalReclaimed
	}
	return fsm.GoalAvailable
}

func lazily(req *request) bool { return req.kind == fsm.Register && req.reg != nil && req.reg.lazy }

// headline is the request as one line.
func (r *RequestExplanation) headline() string {
	text := fmt.Sprintf("request %d: %s of shard %q, %s for %s", r.ID, r.Kind, r.Key, r.Stage, r.Age)
	if r.Ahead > 0 {
		text += fmt.Sprintf(", %d ahead", r.Ahead)
	}
	return text
}

// String renders the explanation as a few lines.
func (r RequestExplanation) String() string {
	var b strings.Builder
	b.WriteString(r.headline() + "\n")
	if r.Result != "" {
		fmt.Fprintf(&b, "  answered: %q\n", r.Result)
	}
	if h := r.Running; h != nil {
		fmt.Fprintf(&b, "  running: a %s job, attempt %d, since %s (event %d)\n", h.Job, h.Attempt, timeText(h.Since), h.SinceSeq)
	}
	if q := r.Queue; q != nil {
		fmt.Fprintf(&b, "  waits for a %s slot: %d of %d in use, %d ahead in the queue\n", q.Slot, q.Used, q.Capacity, q.Ahead)
	}
	b.WriteString(fsm.VerdictsText(r.Missing, timeText))
	if r.NoPath {
		b.WriteString("  no way leads there: it will be refused\n")
	}
	pathText(&b, r.Goal, r.Path)
	return b.String()
}
