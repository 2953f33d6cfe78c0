package fsm

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/dagstore/dagstore/shard"
)

// TestWhyNamesWhatIsMissing follows one shard from its registration to an accessor
// and asks at each stop. Proves N7 as a person sees it.
func TestWhyNamesWhatIsMissing(t *testing.T) {
	b := newBed(t)
	rival := func(in Input) { // takes the only fetch token, or gives it back
		t.Helper()
		if !b.n.Step(&b.rival, &in, &b.o) {
			t.Fatal("no row fired")
		}
	}
	b.n = NewNet(1, 1, 2)
	ask := func(wants ...string) {
		t.Helper()
		text := Why(b.n, b.s).String()
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("want %q in:\n%s", want, text)
			}
		}
	}
	ask("not ready", "next: register")
	b.do(Input{Trigger: Register, Gen: 1, Lazy: true, Time: 10})
	ask("next: initialise", "would be changed by an acquire")
	rival(Input{Trigger: Register, Gen: 2})
	rival(Input{Trigger: ProbeDone, Attempt: 1, Ready: true})

	b.do(Input{Trigger: Acquire, Ticket: 1, Time: 20})
	ask("running: a probe job")
	b.done(Input{Ready: true, Time: 30})
	ask("waits for a fetch slot: 1 of 1 in use, 0 ahead", "next: fetch", "the end of a job that holds a fetch slot")
	rival(Input{Trigger: FetchDone, Attempt: 2})
	b.do(Input{})
	ask("running: a fetch job")
	b.done(Input{Err: errModel, Time: 40})
	ask("life errored", `last failure: "it failed"`, "next: recover")
	b.do(Input{Trigger: Recover, Ticket: 1, Time: 50})
	b.done(Input{Ready: true})
	b.done(Input{})
	rival(Input{Trigger: IndexDone, Attempt: 3})
	b.do(Input{})
	b.done(Input{})
	ask("available; an acquire opens it", "life available")
	b.do(Input{Trigger: Acquire, Ticket: 1})
	b.done(Input{})
	ask("ready: an acquire is answered at once")
	if _, err := json.Marshal(Why(b.n, b.s)); err != nil {
		t.Error(err)
	}
}

// TestSince: an unmet guard says since when and since which sequence number, in the
// caller's time, for what shards share too.
func TestSince(t *testing.T) {
	b := newBed(t)
	b.n.Begin(3, 1)
	b.do(Input{Trigger: Register, Gen: 1, Lazy: true, Time: 7, Seq: 2})
	since := func(row string) map[string]stamp {
		found := map[string]stamp{}
		for _, v := range Explain(b.n, b.s, Input{}) {
			if v.Transition == row {
				for _, u := range v.Unmet {
					found[u.Name] = stamp{u.Since, u.SinceSeq}
				}
			}
		}
		return found
	}
	if got := since("initialise"); len(got) != 1 || got["initialisation wanted"] != (stamp{7, 2}) {
		t.Error("before the event is durable: ", got)
	}
	b.s.Recorded(5)
	b.n.SetReadOnly(8, 6)
	if got := since("initialise"); len(got) != 2 || got["initialisation wanted"] != (stamp{7, 5}) || got["journal writable"] != (stamp{8, 6}) {
		t.Error("after it: ", got)
	}
	if got := since("open"); got["somebody waits for the shard"] != (stamp{7, 5}) {
		t.Error(got)
	}
	if b.n.sinceOf(b.s, PlaceOpenSlots) != (stamp{3, 1}) {
		t.Error("no token was taken since the start")
	}
}

// TestSinceAtRest: of a shard that was at rest everything is since its record.
func TestSinceAtRest(t *testing.T) {
	n, s := NewNet(1, 1, 1), &Shard{Life: shard.Available, Index: Indexed}
	s.Rest(40, 4)
	for _, v := range Why(n, s).Missing {
		for _, u := range v.Unmet {
			if u.Since != 40 || u.SinceSeq != 4 {
				t.Errorf("%s: %d, %d", u.Name, u.Since, u.SinceSeq)
			}
		}
	}
}

// TestNoDownload: an acquire that forbids a download is served from a copy that the
// probe finds, and refused when it finds none.
func TestNoDownload(t *testing.T) {
	for _, found := range []bool{true, false} {
		b := newBed(t)
		*b.s = Shard{Gen: 1, Life: shard.Available, Index: Indexed} // as after a restart
		b.do(Input{Trigger: Acquire, Ticket: 1, NoDownload: true})
		b.done(Input{Present: found, Owned: true, Ready: true})
		if !found {
			if len(b.o.Replies) != 1 || b.o.Replies[0].Code != ErrNoCopy || b.s.Job() != JobNone {
				t.Errorf("refused: %+v, job %s", b.o.Replies, b.s.Job())
			}
			continue
		}
		b.done(Input{})
		if len(b.o.Replies) != 1 || !b.o.Replies[0].Accessor {
			t.Errorf("served: %+v", b.o.Replies)
		}
	}
}

// TestFormerLife: a completion of a former life gives its token back and touches
// nothing of the life that goes by the same value. Proves F17, N6.
func TestFormerLife(t *testing.T) {
	b := newBed(t)
	b.do(Input{Trigger: Register, Gen: 1})
	b.do(Input{Trigger: Destroy})
	b.do(Input{Trigger: Register, Gen: 2})
	if got := b.done(Input{Present: true}); got != "probe-after-life" || b.s.Data != Probing || b.s.Attempt != 2 {
		t.Errorf("%s, data %s, attempt %d", got, b.s.Data, b.s.Attempt)
	}
	if used, _, _ := b.n.Slots(OpenSlot); used != 1 {
		t.Errorf("%d open tokens used", used)
	}
}

// TestReleaseKeepsErrored: releasing accessors of an errored shard leaves it
// errored. Proves F7.
func TestReleaseKeepsErrored(t *testing.T) {
	b := newBed(t).open()
	b.do(Input{Trigger: Acquire, Ticket: 1})
	b.do(Input{Trigger: Damage, Fault: FaultIndex, Err: errModel})
	b.done(Input{Err: errModel})
	b.do(Input{Trigger: Release})
	if b.s.Life != shard.Errored || b.s.Refs != 0 {
		t.Errorf("life %s, %d refs", b.s.Life, b.s.Refs)
	}
}

// TestLegal spells out which events the machine may want after which recorded life,
// and that any journal takes them. Proves N1.
func TestLegal(t *testing.T) {
	lives := map[shard.Kind]shard.Life{
		shard.EventRegistered: shard.Registered, shard.EventIndexed: shard.Available, shard.EventFailed: shard.Errored,
		shard.EventRecovering: shard.Recovering, shard.EventDestroyed: shard.None,
	}
	may := map[shard.Life]string{
		shard.None: "registered", shard.Registered: "indexed failed destroyed", shard.Initialising: "",
		shard.Available: "failed recovering destroyed", shard.Errored: "recovering destroyed",
		shard.Recovering: "indexed failed recovering destroyed",
	}
	for from, kinds := range may {
		for kind, to := range lives {
			want := strings.Contains(" "+kinds+" ", " "+kind.String()+" ")
			if got := legalNext(from, Event{Kind: kind, Life: to}); got != want {
				t.Errorf("%s after %s: legal is %t", kind, from, got)
			}
			e := shard.Event{Seq: 9, Gen: 3, Kind: kind, State: shard.State{Life: to}}
			if kind == shard.EventRegistered {
				e.Gen = 9
			}
			if err := shard.CheckNext(from, 3, &e); want && err != nil {
				t.Errorf("the machine may do what no journal takes: %v", err)
			}
			if legalNext(from, Event{Kind: kind, Life: shard.Initialising}) {
				t.Errorf("%s with life initialising is legal after %s", kind, from)
			}
		}
	}
}

// three returns a net with one token per slot and three shards that are read in
// place, available and closed.
func three() (*Net, [3]*Shard) {
	var shards [3]*Shard
	for i := range shards {
		shards[i] = &Shard{Gen: uint64(i + 1), Life: shard.Available, Data: Direct, Index: Indexed}
	}
	return NewNet(1, 1, 1), shards
}

// TestLeavingWakesTheNext: when the head of a queue was woken and no longer wants
// its token, the next is woken. Proves N8 for a queue of two.
func TestLeavingWakesTheNext(t *testing.T) {
	n, s := three()
	var out Out
	for i := range s {
		n.Step(s[i], &Input{Trigger: Acquire, Ticket: Ticket(i + 1)}, &out)
	}
	out.Reset()
	n.Step(s[0], &Input{Trigger: OpenDone, Attempt: 1}, &out)
	if len(out.Wake) != 1 || out.Wake[0] != s[1] {
		t.Fatalf("the end of a job wakes %d shards", len(out.Wake))
	}
	out.Reset()
	n.Step(s[1], &Input{Trigger: Cancel, Ticket: 2}, &out)
	if len(out.Wake) != 1 || out.Wake[0] != s[2] {
		t.Fatalf("leaving the queue wakes %d shards", len(out.Wake))
	}
	n.Step(s[2], &Input{}, &out)
	if s[2].Job() != JobOpen {
		t.Errorf("job %s", s[2].Job())
	}
}

// TestOneQueueAtATime: a shard that comes to lack another token changes queues.
func TestOneQueueAtATime(t *testing.T) {
	n, s := three()
	var out Out
	n.Step(s[0], &Input{Trigger: Acquire, Ticket: 1}, &out)                       // the open token
	n.Step(s[1], &Input{Trigger: Damage, Fault: FaultIndex, Err: errModel}, &out) // the index token
	n.Step(s[2], &Input{Trigger: Acquire, Ticket: 3}, &out)                       // lacks open
	n.Step(s[2], &Input{Trigger: Damage, Fault: FaultIndex, Err: errModel}, &out) // lacks index
	_, _, open := n.Slots(OpenSlot)
	if _, _, index := n.Slots(IndexSlot); open != 0 || index != 1 || s[2].Queued != IndexSlot {
		t.Errorf("%d wait for open, %d for index, the shard for %s", open, index, s[2].Queued)
	}
}
