package projection_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/projection/projectiontest"
	"github.com/dagstore/dagstore/shard"
)

// gate lets a view apply one batch at a time.
type gate struct{ pass chan struct{} }

func newGate() gate { return gate{make(chan struct{})} }

func (g gate) before(*journal.Batch) error {
	<-g.pass
	return nil
}

// Proves G10, I15: with hundreds of waiters, of which some give up, each publication
// wakes exactly those whose position it reaches, and nobody else.
func TestWakeUpIsExact(t *testing.T) {
	for seed := range uint64(5) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			g, l := newGate(), newLedger("ledger")
			l.before = g.before
			w := newWorld(t, journal.NewMemory(), projection.Options{}, l)
			const batches = 40
			head := w.commit(batches)
			type ended struct {
				seq uint64
				f   projection.Freshness
				err error
			}
			results := make(chan ended, 400)
			waiting := map[uint64]int{}
			var cancels []context.CancelFunc
			for range 300 {
				seq := 1 + rng.Uint64N(head.Seq)
				ctx, cancel := context.WithCancel(t.Context())
				if rng.IntN(4) == 0 {
					cancels = append(cancels, cancel)
				} else {
					defer cancel()
					waiting[seq]++
				}
				go func() {
					f, err := w.r.Wait(ctx, "ledger", projection.AtLeastSeq(seq).Wait(time.Hour))
					results <- ended{seq, f, err}
				}()
			}
			synctest.Wait()
			for _, cancel := range cancels {
				cancel()
			}
			synctest.Wait()
			for range cancels {
				if e := <-results; !errors.Is(e.err, context.Canceled) || !errors.Is(e.err, projection.ErrNotFresh) {
					t.Fatalf("cancelled: %v", e.err)
				}
			}
			for n := 1; n <= batches; n++ {
				g.pass <- struct{}{}
				synctest.Wait()
				want := 0
				for seq, k := range waiting {
					if seq <= w.end(n) {
						want += k
						delete(waiting, seq)
					}
				}
				if len(results) != want {
					t.Fatalf("event %d is published and %d are woken, want %d", w.end(n), len(results), want)
				}
				for range want {
					if e := <-results; e.err != nil || e.seq > w.end(n) || e.f.Applied.Seq != w.end(n) {
						t.Fatalf("woken for %d: %v, %v", e.seq, e.f, e.err)
					}
				}
			}
			if s := w.r.Stats(); s.Waiting != 0 || s.NotFresh != uint64(len(cancels)) {
				t.Errorf("%+v", s)
			}
		})
	}
}

// Proves G10, G3: who waits for what is durable and not yet committed is woken by the
// commit; the catalogue shows it by then.
func TestWaitForCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, journal.NewMemory(), projection.Options{})
		b := w.append()
		for _, c := range []projection.Consistency{projection.AtLeast(b.End), projection.AtLeastSeq(1), projection.Latest()} {
			go func() {
				s, f, err := w.r.SnapshotFor(t.Context(), c)
				if err != nil || s.Position() != b.End || f.Applied != b.End {
					t.Errorf("%v: %v, %v", c, f, err)
				}
			}()
		}
		synctest.Wait()
		if n := w.r.Stats().Waiting; n != 3 {
			t.Fatalf("%d wait", n)
		}
		f, err := w.r.Freshness("catalogue")
		if err != nil || f.Lag != b.End.Seq || f.Head != b.End {
			t.Errorf("%v, %v", f, err)
		}
		if err := w.r.Commit(b); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := w.r.Stats().Waiting; n != 0 {
			t.Fatalf("%d still wait", n)
		}
	})
}

// Proves G10: every wait is bounded, by the context, by what was asked for, or by 5 s,
// and says what it has waited for.
func TestWaitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, l := newGate(), newLedger("ledger")
		l.before = g.before
		w := newWorld(t, journal.NewMemory(), projection.Options{}, l)
		w.commit(1)
		g.pass <- struct{}{}
		synctest.Wait()
		head := w.commit(3)
		f, err := w.r.Freshness("ledger")
		if err != nil {
			t.Fatal(err)
		}
		had := f.Applied
		short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		dead, cancel := context.WithCancel(t.Context())
		cancel()
		for _, c := range []struct {
			what string
			ctx  context.Context
			c    projection.Consistency
			took time.Duration
			err  error
		}{
			{"context", short, projection.AtLeast(head), 2 * time.Second, context.DeadlineExceeded},
			{"default", t.Context(), projection.AtLeast(head), projection.DefaultWait, nil},
			{"latest", t.Context(), projection.Latest(), projection.DefaultWait, nil},
			{"asked for", t.Context(), projection.AtLeast(head).Wait(time.Minute), time.Minute, nil},
			{"none", t.Context(), projection.AtLeast(head).Wait(-1), 0, nil},
			{"cancelled before", dead, projection.AtLeast(head), 0, context.Canceled},
			{"within", t.Context(), projection.Within(time.Second), projection.DefaultWait, nil},
		} {
			began := time.Now()
			f, err := w.r.Wait(c.ctx, "ledger", c.c)
			var e *projection.NotFreshError
			if !errors.As(err, &e) || !errors.Is(err, projection.ErrNotFresh) || time.Since(began) != c.took {
				t.Fatalf("%s: %v after %s", c.what, err, time.Since(began))
			}
			if e.Cause != c.err || c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("%s: cause %v", c.what, e.Cause)
			}
			want := head
			if c.what == "within" {
				want = journal.Position{}
			}
			if e.View != "ledger" || e.Want != want || e.Had != had || e.Head != head || e.State != f.State ||
				e.RetryAfter < 10*time.Millisecond || e.RetryAfter > 30*time.Second || f.Applied != had {
				t.Errorf("%s: %+v, %v", c.what, e, f)
			}
		}
		for _, c := range []projection.Consistency{projection.Any(), projection.AtLeast(had), projection.AsOf(had), {}} {
			if f, err := w.r.Wait(dead, "ledger", c); err != nil || f.Applied != had {
				t.Errorf("%v is there and not answered: %v, %v", c, f, err)
			}
		}
		if s := w.r.Stats(); s.Waiting != 0 {
			t.Errorf("%d still wait", s.Waiting)
		}
		close(g.pass)
	})
}

// Proves G11: a position that is missing, beyond the log, of another log, or of no
// batch's end is refused at once, whether the runner knows it by heart or not.
func TestPositionsAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := projectiontest.Journal(t, projectiontest.History(2, 150))
		at := func(j journal.Journal, seq uint64) journal.Position {
			p, err := projection.PositionAt(j, seq)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		j := projectiontest.Journal(t, longHistory()[:100])
		w := newWorld(t, j, projection.Options{}) // what it found it does not know by heart
		head := w.commit(40)
		began := time.Now()
		for _, p := range []journal.Position{w.j.Head(), at(j, 3), at(j, 1), at(j, head.Seq-20)} {
			if _, err := w.r.Wait(t.Context(), "catalogue", projection.AtLeast(p)); err != nil {
				t.Errorf("%v: %v", p, err)
			}
		}
		middle := func(n int) journal.Position { // inside batch n
			for ; len(w.history[n]) < 2; n++ {
			}
			p := at(j, w.history[n][0].Seq)
			return journal.Position{Seq: p.Seq - 1, Digest: p.Digest}
		}
		for _, c := range []struct {
			what string
			p    journal.Position
			err  error
		}{
			{"missing", journal.Position{}, projection.ErrNoPosition},
			{"future", journal.Position{Seq: head.Seq + 1, Digest: head.Digest}, journal.ErrFuturePosition},
			{"far future", journal.Position{Seq: 1 << 63}, journal.ErrFuturePosition},
			{"of another, old", at(other, 5), journal.ErrForeignPosition},
			{"of another, new", journal.Position{Seq: head.Seq, Digest: at(other, 9).Digest}, journal.ErrForeignPosition},
			{"of nothing", journal.Position{Digest: head.Digest}, journal.ErrForeignPosition},
			{"inside a batch, old", middle(10), journal.ErrForeignPosition},
			{"inside a batch, new", middle(120), journal.ErrForeignPosition},
		} {
			for _, ask := range []func(journal.Position) projection.Consistency{projection.AtLeast, projection.AsOf} {
				if f, err := w.r.Wait(t.Context(), "catalogue", ask(c.p)); !errors.Is(err, c.err) || errors.Is(err, projection.ErrNotFresh) || f.Applied != head {
					t.Errorf("%s, %v: %v", c.what, ask(c.p), err)
				}
				if _, _, err := w.r.SnapshotFor(t.Context(), ask(c.p)); !errors.Is(err, c.err) {
					t.Errorf("%s, %v of the catalogue: %v", c.what, ask(c.p), err)
				}
			}
		}
		for seq, want := range map[uint64]error{0: projection.ErrNoPosition, head.Seq + 1: journal.ErrFuturePosition, 2: nil, head.Seq: nil} {
			if _, err := w.r.Wait(t.Context(), "catalogue", projection.AtLeastSeq(seq)); !errors.Is(err, want) {
				t.Errorf("event %d: %v", seq, err)
			}
		}
		if _, err := w.r.Wait(t.Context(), "none", projection.Any()); !errors.Is(err, projection.ErrUnknownView) {
			t.Error(err)
		}
		if _, err := w.r.Freshness("none"); !errors.Is(err, projection.ErrUnknownView) {
			t.Error(err)
		}
		if time.Since(began) != 0 {
			t.Errorf("refusals took %s", time.Since(began))
		}
	})
}

// Proves G11: more positions than the runner knows by heart.
func TestOldPositions(t *testing.T) {
	w := newWorld(t, journal.NewMemory(), projection.Options{})
	var all []journal.Position
	key := shard.KeyFromString("k")
	for seq := uint64(1); seq <= projection.RecentPositions+500; seq++ {
		e := shard.Event{Seq: seq, Gen: 1, Kind: shard.EventRecovering, Key: key, State: shard.State{Life: shard.Recovering}}
		if seq == 1 {
			e.Kind, e.State.Life = shard.EventRegistered, shard.Registered
		}
		end, err := w.j.Append([]shard.Event{e})
		if err == nil {
			err = w.r.Commit(&journal.Batch{Events: []shard.Event{e}, End: end})
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, end)
	}
	for _, i := range []int{0, 1, 400, 498, 499, 500, 501, 502, 2000, len(all) - 1} {
		bad := all[i]
		bad.Digest[0]++
		if _, err := w.r.Wait(t.Context(), "catalogue", projection.AtLeast(all[i])); err != nil {
			t.Errorf("%v: %v", all[i], err)
		}
		if _, err := w.r.Wait(t.Context(), "catalogue", projection.AtLeast(bad)); !errors.Is(err, journal.ErrForeignPosition) {
			t.Errorf("%v of another: %v", bad, err)
		}
	}
}

// Proves G9, G10: LagFor is the time since the first missing batch became durable, and
// Within waits until it is short enough.
func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, l := newGate(), newLedger("ledger")
		l.before = g.before
		w := newWorld(t, journal.NewMemory(), projection.Options{}, l)
		for range 4 { // batches 1 to 4, 10 s apart
			w.commit(1)
			time.Sleep(10 * time.Second)
		}
		for n, lag := range []time.Duration{40 * time.Second, 30 * time.Second, 20 * time.Second, 10 * time.Second, 0} {
			f, err := w.r.Freshness("ledger")
			if err != nil || f.LagFor != lag || f.Lag != w.end(4)-w.end(n) || f.Applied.Seq != w.end(n) {
				t.Fatalf("after %d batches: %v, %v", n, f, err)
			}
			if _, err := w.r.Wait(t.Context(), "ledger", projection.Within(lag).Wait(-1)); err != nil {
				t.Error(err)
			}
			if _, err := w.r.Wait(t.Context(), "ledger", projection.Within(lag-1).Wait(-1)); (err == nil) != (lag == 0) {
				t.Errorf("behind for %s, within %s: %v", lag, lag-1, err)
			}
			if lag == 0 {
				break
			}
			if n == 0 {
				go func() {
					f, err := w.r.Wait(t.Context(), "ledger", projection.Within(25*time.Second).Wait(time.Minute))
					if err != nil || f.Applied.Seq != w.end(2) {
						t.Errorf("within 25 s: %v, %v", f, err)
					}
				}()
				synctest.Wait()
			}
			g.pass <- struct{}{}
			synctest.Wait()
		}
	})
}

// Proves G9: what was durable before the start is never taken for fresh by time.
func TestWithinAfterStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, l := newGate(), newLedger("ledger")
		l.before = g.before
		w := newWorld(t, projectiontest.Journal(t, longHistory()[:10]), projection.Options{}, l)
		if _, err := w.r.Wait(t.Context(), "ledger", projection.Within(time.Hour).Wait(-1)); !errors.Is(err, projection.ErrNotFresh) {
			t.Fatal(err)
		}
		close(g.pass)
		if f, err := w.r.Wait(t.Context(), "ledger", projection.Within(time.Hour)); err != nil || f.Lag != 0 {
			t.Fatalf("%v, %v", f, err)
		}
	})
}

// Proves G12, G9: a view that nobody feeds counts: waits for it end as not fresh, and
// its lag grows with the journal.
func TestNotStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := idleWorld(t, journal.NewMemory(), projection.Options{}, newLedger("ledger"))
		w.recover()
		head := w.commit(5)
		f, err := w.r.Wait(t.Context(), "ledger", projection.AtLeast(head))
		var e *projection.NotFreshError
		if !errors.As(err, &e) || e.State != projection.Starting || f.State != projection.Starting || f.Lag != head.Seq {
			t.Fatalf("%v, %v", f, err)
		}
		w.r.Start()
		if f, err = w.r.Wait(t.Context(), "ledger", projection.AtLeast(head)); err != nil || f.Lag != 0 {
			t.Fatalf("%v, %v", f, err)
		}
		synctest.Wait()
		var names []string
		for _, f := range w.r.All() {
			names = append(names, fmt.Sprint(f.View, " ", f.State))
		}
		if !slices.Equal(names, []string{"catalogue live", "ledger live"}) {
			t.Errorf("%v", names)
		}
	})
}

// Proves G9: the lag is that to the real head, so a view that hangs shows.
func TestHangingView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, l := newGate(), newLedger("ledger")
		w := newWorld(t, journal.NewMemory(), projection.Options{}, l)
		w.commit(1)
		synctest.Wait()
		if f, _ := w.r.Freshness("ledger"); f.State != projection.Live {
			t.Fatalf("%v", f)
		}
		l.before = g.before
		for n := 2; n < 6; n++ {
			w.commit(1)
			time.Sleep(3 * time.Second)
			f, _ := w.r.Freshness("ledger")
			if f.Lag != w.end(n)-w.end(1) || f.LagFor != time.Duration(n-1)*3*time.Second {
				t.Errorf("%v", f)
			}
			if n > 2 && f.State != projection.CatchingUp {
				t.Errorf("a view that hangs is %s", f.State)
			}
		}
		close(g.pass)
	})
}

// Proves G15 (its limits), G9: AsOf is answered only by what is shown.
func TestAsOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, journal.NewMemory(), projection.Options{}, newLedger("ledger"))
		p := w.commit(3)
		if _, err := w.r.Wait(t.Context(), "ledger", projection.AtLeast(p)); err != nil {
			t.Fatal(err)
		}
		value, f, err := w.r.Read(t.Context(), "ledger", projection.AsOf(p))
		if err != nil || f.Applied != p {
			t.Fatalf("%v, %v", f, err)
		}
		wantTally(t, w.history, value, p)
		w.commit(1)
		synctest.Wait()
		if _, err := w.r.Wait(t.Context(), "ledger", projection.AsOf(p)); err == nil || !strings.Contains(err.Error(), "CatalogueAt") {
			t.Errorf("%v", err)
		}
		s, f, err := w.r.SnapshotFor(t.Context(), projection.AsOf(p))
		if err != nil || s.Position() != p || s.Digest() != digestAt(t, 3) || f.Applied != p || f.Lag != w.end(4)-p.Seq {
			t.Errorf("%v, %v", f, err)
		}
	})
}

// Proves I1 (of views), I10: Close ends every wait, and what comes after it.
func TestCloseEndsWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := idleWorld(t, journal.NewMemory(), projection.Options{}, newLedger("ledger"))
		w.recover()
		head := w.commit(2)
		for range 50 {
			go func() {
				if f, err := w.r.Wait(t.Context(), "ledger", projection.AtLeast(head)); !errors.Is(err, projection.ErrEnded) || f.State != projection.Ended {
					t.Errorf("%v, %v", f, err)
				}
			}()
		}
		synctest.Wait()
		for range 2 {
			if err := w.r.Close(); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if _, err := w.r.Wait(t.Context(), "ledger", projection.Latest()); !errors.Is(err, projection.ErrEnded) {
			t.Error(err)
		}
		if f, err := w.r.Wait(t.Context(), "catalogue", projection.AtLeast(head)); err != nil || f.State != projection.Ended {
			t.Errorf("what is shown is not shown any more: %v", err)
		}
		for what, call := range map[string]func() error{
			"Rebuild":    func() error { return w.r.Rebuild(t.Context(), "catalogue") },
			"Checkpoint": func() error { return w.r.Checkpoint(t.Context()) },
			"At":         func() error { _, err := w.r.CatalogueAt(t.Context(), 1); return err },
			"Check":      func() error { _, err := w.r.Check(t.Context()); return err },
			"Recover":    func() error { _, err := w.r.Recover(t.Context()); return err },
		} {
			if err := call(); !errors.Is(err, projection.ErrEnded) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

// Proves G10: the retry hint is what the view needs at the rate at which it goes.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger("ledger")
		l.before = func(b *journal.Batch) error {
			time.Sleep(time.Duration(len(b.Events)) * time.Millisecond) // 1,000 events/s
			return nil
		}
		w := newWorld(t, journal.NewMemory(), projection.Options{}, l)
		for range 2 {
			w.commit(40)
			if _, err := w.r.Wait(t.Context(), "ledger", projection.Latest()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		w.commit(60)
		var e *projection.NotFreshError
		if _, err := w.r.Wait(t.Context(), "ledger", projection.Latest().Wait(-1)); !errors.As(err, &e) {
			t.Fatal(err)
		}
		want := time.Duration(e.Want.Seq-e.Had.Seq) * time.Millisecond
		if e.RetryAfter < want*8/10 || e.RetryAfter > want*12/10 {
			t.Errorf("%d events are missing, try again in %s", e.Want.Seq-e.Had.Seq, e.RetryAfter)
		}
	})
}

// Proves G19: an answer of a view, "there is none" too, comes with the position as of
// which that is so.
func TestNotFoundAsOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		v := &slowUsage{newUsageView(), g}
		w := newWorld(t, journal.NewMemory(), projection.Options{}, v)
		head := w.commit(1)
		scheme, _, _ := strings.Cut(w.history[0][0].State.URL, ":")
		value, f, err := w.r.Read(t.Context(), "usage", projection.Any())
		if _, found := value.(map[string]Usage)[scheme]; err != nil || found || f.Applied.Seq != 0 || f.Lag != head.Seq {
			t.Fatalf("%v, %v, %v", value, f, err)
		}
		close(g.pass)
		value, f, err = w.r.Read(t.Context(), "usage", projection.AtLeast(head))
		if _, found := value.(map[string]Usage)[scheme]; err != nil || !found || f.Applied != head || f.Lag != 0 {
			t.Fatalf("%v, %v, %v", value, f, err)
		}
	})
}

// slowUsage waits before each batch.
type slowUsage struct {
	*usageView
	gate
}

func (s *slowUsage) Apply(b *journal.Batch) error {
	if err := s.before(b); err != nil {
		return err
	}
	return s.usageView.Apply(b)
}
