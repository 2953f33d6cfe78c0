package projection_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
)

// Proves C6, G6 (a view behind its journal): a checkpoint says how far the view was
// that it was made of, not how far the journal was by then. Restored, the view goes on
// from there.
func TestCheckpointOfALaggingView(t *testing.T) {
	sim, q := fsio.NewSim(1), &queue{}
	opts := on(sim)
	opts.Policy, opts.Spawn = projection.CheckpointPolicy{Events: 5}, q.spawn
	j := journal.NewMemory()
	w := newWorld(t, j, opts, newUsageView())
	w.commit(40)
	q.drain() // the view catches up, and is due for a checkpoint right at the beginning
	f, err := w.r.Freshness("usage")
	if err != nil || f.Lag != 0 {
		t.Fatalf("the view did not catch up: %v, %v", f, err)
	}
	behind := false
	for _, name := range namesIn(t, sim, checkpoints) {
		view, seq, _ := projection.ParseCheckpointName(name)
		behind = behind || view == "usage" && seq < j.Head().Seq
	}
	if !behind {
		t.Errorf("no checkpoint of a view that was behind: %v", namesIn(t, sim, checkpoints))
	}
	w.r.Close()
	q.drain()
	next := newWorld(t, j, opts, newUsageView())
	q.drain()
	value, f, err := next.r.Read(t.Context(), "usage", projection.Latest())
	if err != nil || f.Lag != 0 {
		t.Fatalf("the restored view is at %v: %v", f, err)
	}
	want := newUsageView()
	if err := j.Replay(0, want.Apply); err != nil {
		t.Fatal(err)
	}
	got := value.(map[string]Usage)
	if len(got) != len(want.totals) {
		t.Errorf("%d totals, want %d", len(got), len(want.totals))
	}
	for scheme, u := range want.totals {
		if got[scheme] != u {
			t.Errorf("%s: %v, want %v", scheme, got[scheme], u)
		}
	}
}

// held is a journal of which one replay, once armed, waits to be let go on.
type held struct {
	*compacting
	armed   atomic.Bool
	entered chan struct{}
	goOn    chan struct{}
}

func (h *held) Replay(seq uint64, visit func(*journal.Batch) error) error {
	if h.armed.CompareAndSwap(true, false) {
		close(h.entered)
		<-h.goOn
	}
	return h.compacting.Replay(seq, visit)
}

// Proves C7, G15: history that somebody is reading stays, however many checkpoints are
// made meanwhile, and goes afterwards.
func TestReadersHoldTheHistory(t *testing.T) {
	j := &held{compacting: &compacting{Journal: journal.NewMemory()}, entered: make(chan struct{}), goOn: make(chan struct{})}
	opts := on(fsio.NewSim(1))
	opts.Retention = projection.Retention{Bytes: 1}
	w := newWorld(t, j, opts)
	w.commit(3)
	if h := j.Horizon(); h.Seq != 0 {
		t.Fatalf("the horizon is at %v before anybody reads", h)
	}
	j.armed.Store(true)
	checked := make(chan error)
	go func() {
		_, err := w.r.Check(t.Context())
		checked <- err
	}()
	<-j.entered
	w.commit(60)
	if h := j.Horizon(); h.Seq != 0 || w.r.Stats().Checkpoints < 3 {
		t.Errorf("the horizon moved to %v under a reader; %d checkpoints", h, w.r.Stats().Checkpoints)
	}
	close(j.goOn)
	if err := <-checked; err != nil {
		t.Errorf("Check beside compactions: %v", err)
	}
	w.commit(40)
	if h := j.Horizon(); h.Seq == 0 {
		t.Error("nothing goes after the reader is done")
	}
}

// publisher is a ledger that takes its time to publish, once armed.
type publisher struct {
	*ledger
	armed atomic.Bool
	goOn  chan struct{}
}

func (p *publisher) Publish() any {
	if p.armed.Load() {
		<-p.goOn
	}
	return p.ledger.Publish()
}

// Proves G10: who waits is woken when readers see the position, not when the view has
// it.
func TestWokenWhenShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &publisher{ledger: newLedger("slow"), goOn: make(chan struct{})}
		w := newWorld(t, journal.NewMemory(), projection.Options{}, p)
		w.commit(1)
		synctest.Wait()
		p.armed.Store(true)
		head := w.commit(1)
		answered := make(chan error, 1)
		go func() {
			f, err := w.r.Wait(t.Context(), "slow", projection.AtLeast(head).Wait(time.Hour))
			if err == nil && f.Applied != head {
				t.Errorf("woken at %v, waited for %v", f.Applied, head)
			}
			answered <- err
		}()
		synctest.Wait()
		if len(answered) > 0 {
			t.Error("answered before the position was published")
		}
		close(p.goOn)
		synctest.Wait()
		if len(answered) == 0 {
			t.Error("published, and who waited for it is not woken")
		}
	})
}
