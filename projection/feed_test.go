package projection_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/projection/projectiontest"
	"github.com/dagstore/dagstore/shard"
)

var errPlanted = errors.New("planted")

// Proves G13, G9: a view that cannot show a batch stops there, says so with the event
// and the error, tries again after 1, 2, 4, … 30 s, and stops nobody else; when it can,
// it goes on where it was. An error, a panic, the end of its goroutine and a lie about
// the position all do that.
func TestStall(t *testing.T) {
	const bad = 5
	for what, fail := range map[string]func(l *ledger, b *journal.Batch) error{
		"error": func(*ledger, *journal.Batch) error { return errPlanted },
		"panic": func(*ledger, *journal.Batch) error { panic(errPlanted) },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				other, l := newLedger("other"), newLedger("ledger")
				var tries []time.Time
				broken := true
				var w *world
				l.before = func(b *journal.Batch) error {
					if b.End.Seq != w.end(bad) || !broken {
						return nil
					}
					tries = append(tries, time.Now())
					return fail(l, b)
				}
				w = newWorld(t, journal.NewMemory(), projection.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, l, other)
				w.commit(10)
				began := time.Now()
				synctest.Wait()
				f, err := w.r.Freshness("ledger")
				var stall *projection.StallError
				if err != nil || f.State != projection.Stalled || f.Applied.Seq != w.end(bad-1) || !errors.As(f.Err, &stall) ||
					!errors.Is(f.Err, errPlanted) || stall.First != w.end(bad-1)+1 || stall.Last != w.end(bad) || stall.View != "ledger" {
					t.Fatalf("%v, %v", f, err)
				}
				for _, name := range []string{"other", "catalogue"} {
					if f, err := w.r.Freshness(name); err != nil || f.State != projection.Live || f.Lag != 0 || f.Err != nil {
						t.Errorf("%v, %v", f, err)
					}
				}
				var e *projection.NotFreshError
				if _, err := w.r.Wait(t.Context(), "ledger", projection.Latest().Wait(-1)); !errors.As(err, &e) ||
					e.State != projection.Stalled || !errors.Is(err, errPlanted) || e.RetryAfter != time.Second {
					t.Errorf("%+v", e)
				}
				time.Sleep(100 * time.Second)
				synctest.Wait()
				for i, want := range []int{0, 1, 3, 7, 15, 31, 61, 91} {
					if i >= len(tries) || tries[i].Sub(began) != time.Duration(want)*time.Second {
						t.Fatalf("tries %v from %v", tries, began)
					}
				}
				broken = false
				w.r.Retry("ledger")
				synctest.Wait()
				value, f, err := w.r.Read(t.Context(), "ledger", projection.Any())
				if err != nil || f.State != projection.Live || f.Err != nil || f.Lag != 0 {
					t.Fatalf("%v, %v", f, err)
				}
				wantTally(t, w.history, value, w.j.Head())
				broken, tries = true, nil
				if l.batches() != 10 {
					t.Errorf("%d batches applied", l.batches())
				}
				if !strings.Contains(log.String(), "planted") || what == "panic" && !strings.Contains(log.String(), "feed_test.go") {
					t.Errorf("the log says %s", log.String())
				}
			})
		})
	}
}

// liar does something else than it says.
type liar struct {
	*ledger
	lie func(b *journal.Batch) error
}

func (l *liar) Apply(b *journal.Batch) error {
	if l.lie == nil {
		return l.ledger.Apply(b)
	}
	return l.lie(b)
}

// Proves G13: a view that says it has applied what it has not, or whose goroutine
// ends, is stalled, and nobody waits for it in vain.
func TestLiar(t *testing.T) {
	for what, lie := range map[string]func(b *journal.Batch) error{
		"applies nothing":  func(*journal.Batch) error { return nil },
		"ends its routine": func(*journal.Batch) error { runtime.Goexit(); return nil },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &liar{newLedger("liar"), lie}
				w := newWorld(t, journal.NewMemory(), projection.Options{}, l)
				w.commit(2)
				synctest.Wait()
				if f, err := w.r.Freshness("liar"); err != nil || f.State != projection.Stalled || f.Err == nil || f.Applied.Seq != 0 {
					t.Fatalf("%v, %v", f, err)
				}
				l.lie = nil
				if f, err := w.r.Wait(t.Context(), "liar", projection.Latest()); err != nil || f.Lag != 0 {
					t.Fatalf("after its retry: %v, %v", f, err)
				}
			})
		})
	}
}

// Proves I15: what the runner does beside its callers it gives to Spawn. A view that has something to
// do has one piece of work queued, and one that has nothing has none.
func TestSpawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q queue
		w := newWorld(t, journal.NewMemory(), projection.Options{Spawn: q.spawn}, newLedger("a"), newLedger("b"))
		q.drain()
		w.commit(3)
		if q.len() != 2 {
			t.Errorf("%d pieces of work for 2 views", q.len())
		}
		if f, _ := w.r.Freshness("a"); f.Applied.Seq != 0 {
			t.Errorf("fed without being asked to: %v", f)
		}
		q.drain()
		for _, f := range w.r.All() {
			if f.Lag != 0 || f.State != projection.Live {
				t.Errorf("%v", f)
			}
		}
		if q.len() != 0 {
			t.Errorf("%d pieces of work are left", q.len())
		}
		w.commit(1)
		w.r.Close()
		q.drain() // what comes late does nothing
		if f, _ := w.r.Freshness("a"); f.Applied.Seq != w.end(3) || f.State != projection.Ended {
			t.Errorf("%v", f)
		}
	})
}

// Proves G3: a view is never ahead of what was committed, though the journal is.
func TestNeverAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, journal.NewMemory(), projection.Options{}, newLedger("ledger"))
		b1, b2 := w.append(), w.append()
		for i, b := range []*journal.Batch{b1, b2} {
			if err := w.r.Commit(b); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if f, _ := w.r.Freshness("ledger"); f.Applied.Seq != w.end(i+1) || f.Head != b2.End {
				t.Errorf("%v after %d commits", f, i+1)
			}
		}
	})
}

// durable is a view that keeps rows and position outside of the process, in one step.
type durable struct {
	*ledger
	disk *diskRows
}

type diskRows struct {
	pos     journal.Position
	batches []uint64
}

func openDurable(disk *diskRows) *durable {
	l := newLedger("durable")
	l.pos = disk.pos
	return &durable{l, disk}
}

func (d *durable) Apply(b *journal.Batch) error {
	if err := d.ledger.Apply(b); err != nil {
		return err
	}
	d.disk.pos, d.disk.batches = b.End, append(d.disk.batches, b.End.Seq)
	return nil
}

func (d *durable) Fresh() (projection.View, error) { return openDurable(new(diskRows)), nil }

func (d *durable) Succeed(former projection.View) error {
	*former.(*durable).disk = *d.disk
	d.disk = former.(*durable).disk
	return nil
}

// Proves G7: a persistent view goes on where it says it is, over restarts, each batch
// once.
func TestPersistentViewGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, disk := journal.NewMemory(), new(diskRows)
		n := 0
		for range 5 {
			w := newWorld(t, j, projection.Options{}, openDurable(disk))
			w.commit(4)
			n += 4
			if n != 12 { // once it is left behind
				synctest.Wait()
			}
			w.r.Close()
		}
		w := newWorld(t, j, projection.Options{}, openDurable(disk))
		synctest.Wait()
		if f, _ := w.r.Freshness("durable"); f.Lag != 0 || f.State != projection.Live {
			t.Fatalf("%v", f)
		}
		for i, seq := range disk.batches {
			if seq != w.end(i+1) {
				t.Fatalf("batches %v", disk.batches)
			}
		}
		if len(disk.batches) != n {
			t.Errorf("%d of %d batches", len(disk.batches), n)
		}
	})
}

// Proves G7, G11, G14: a persistent view of another journal, or ahead of this one, is
// not built upon: it is stalled until it is rebuilt.
func TestForeignView(t *testing.T) {
	for what, c := range map[string]struct {
		pos  journal.Position
		want error
	}{
		"foreign": {projectiontest.Journal(t, projectiontest.History(2, 3)).Head(), journal.ErrForeignPosition},
		"future":  {projectiontest.Journal(t, longHistory()[:50]).Head(), journal.ErrFuturePosition},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := &diskRows{pos: c.pos}
				w := newWorld(t, projectiontest.Journal(t, longHistory()[:10]), projection.Options{}, openDurable(disk))
				w.commit(2)
				time.Sleep(time.Hour)
				synctest.Wait()
				f, err := w.r.Freshness("durable")
				if err != nil || f.State != projection.Stalled || !errors.Is(f.Err, c.want) || len(disk.batches) != 0 || f.Lag != w.j.Head().Seq {
					t.Fatalf("%v, %v; %d batches were applied on top", f, err, len(disk.batches))
				}
				if _, err := w.r.Wait(t.Context(), "durable", projection.AtLeastSeq(1)); !errors.Is(err, projection.ErrNotFresh) || !errors.Is(err, c.want) {
					t.Errorf("%v", err)
				}
				if err := w.r.Rebuild(t.Context(), "durable"); err != nil {
					t.Fatal(err)
				}
				w.commit(1)
				value, f, err := w.r.Read(t.Context(), "durable", projection.Latest())
				if err != nil || f.State != projection.Live {
					t.Fatalf("%v, %v", f, err)
				}
				wantTally(t, w.history, value, w.j.Head())
				if len(disk.batches) != 13 || disk.pos != w.j.Head() {
					t.Errorf("the rows on disk are not the new ones: %v", disk)
				}
			})
		})
	}
}

// Proves G14: a view is rebuilt beside the one in use while commits and reads go on.
// What readers see is always whole and never older than before, and at the end all of
// it comes from the new one.
func TestRebuild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger("ledger")
		g := newGate()
		fresh := newLedger("ledger")
		fresh.before = g.before
		fresh.fresh = again("ledger")
		l.fresh = func() (projection.View, error) { return rebuildable{fresh}, nil }
		w := newWorld(t, journal.NewMemory(), projection.Options{}, rebuildable{l})
		w.commit(10)
		synctest.Wait()
		rebuilt := make(chan error, 1)
		go func() { rebuilt <- w.r.Rebuild(t.Context(), "ledger") }()
		var last journal.Position
		look := func(c projection.Consistency) projection.Freshness {
			value, f, err := w.r.Read(t.Context(), "ledger", c)
			if err != nil {
				t.Fatal(err)
			}
			wantTally(t, w.history, value, f.Applied)
			if f.Applied.Seq < last.Seq {
				t.Fatalf("readers go back from %v to %v", last, f.Applied)
			}
			last = f.Applied
			return f
		}
		for i := range 30 {
			synctest.Wait()
			if err := w.r.Rebuild(t.Context(), "ledger"); i == 0 && !errors.Is(err, projection.ErrRebuilding) {
				t.Fatalf("a second one beside it: %v", err)
			}
			if f := look(projection.Any()); f.State != projection.Rebuilding {
				t.Fatalf("round %d: %v", i, f)
			}
			w.commit(1)
			look(projection.Latest())
			g.pass <- struct{}{}
		}
		close(g.pass)
		if err := <-rebuilt; err != nil {
			t.Fatal(err)
		}
		before := l.batches()
		w.commit(5)
		if f := look(projection.Latest()); f.State != projection.Live || fresh.batches() != 45 || l.batches() != before {
			t.Errorf("%v; the new one applied %d, the former %d and %d", f, fresh.batches(), before, l.batches())
		}
		if s := w.r.Stats(); s.Rebuilds != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// Proves G14: however fast commits come, the new view is not behind what readers saw.
func TestRebuildUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rounds = projection.RebuildRounds
		var w *world
		l, fresh := newLedger("ledger"), newLedger("ledger")
		late := 0
		fresh.before = func(b *journal.Batch) error {
			if b.End == w.j.Head() && late < rounds {
				late++
				w.commit(1)
				synctest.Wait() // the former view shows it before the new one
			}
			return nil
		}
		l.fresh = func() (projection.View, error) { return rebuildable{fresh}, nil }
		w = newWorld(t, journal.NewMemory(), projection.Options{}, rebuildable{l})
		w.commit(5)
		synctest.Wait()
		if err := w.r.Rebuild(t.Context(), "ledger"); err != nil {
			t.Fatal(err)
		}
		if late != rounds {
			t.Fatalf("%d commits came late", late)
		}
		value, f, err := w.r.Read(t.Context(), "ledger", projection.Latest())
		if err != nil || f.Lag != 0 {
			t.Fatalf("%v, %v", f, err)
		}
		wantTally(t, w.history, value, w.j.Head())
	})
}

// Proves G14, G13: a rebuild that fails leaves the view as it was; one that succeeds
// revives a stalled view.
func TestRebuildFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger("ledger")
		failing := func(fail func() error) func() (projection.View, error) {
			return func() (projection.View, error) {
				f := newLedger("ledger")
				f.before = func(b *journal.Batch) error {
					if b.End.Seq > 10 {
						return fail()
					}
					return nil
				}
				return rebuildable{f}, nil
			}
		}
		w := newWorld(t, journal.NewMemory(), projection.Options{}, rebuildable{l}, newLedger("other"))
		w.commit(20)
		synctest.Wait()
		cancelled, cancel := context.WithCancel(t.Context())
		for what, fresh := range map[string]func() (projection.View, error){
			"Fresh fails":   func() (projection.View, error) { return nil, errPlanted },
			"Fresh panics":  func() (projection.View, error) { panic(errPlanted) },
			"Apply fails":   failing(func() error { return errPlanted }),
			"Apply panics":  failing(func() error { panic(errPlanted) }),
			"another name":  again("somebody"),
			"not empty":     func() (projection.View, error) { return rebuildable{l}, nil },
			"was cancelled": failing(func() error { cancel(); return nil }),
		} {
			l.fresh = fresh
			ctx := t.Context()
			if what == "was cancelled" {
				ctx = cancelled
			}
			if err := w.r.Rebuild(ctx, "ledger"); err == nil {
				t.Errorf("%s: no error", what)
			}
			w.commit(1)
			value, f, err := w.r.Read(t.Context(), "ledger", projection.Latest())
			if err != nil || f.State != projection.Live {
				t.Fatalf("%s: %v, %v", what, f, err)
			}
			wantTally(t, w.history, value, w.j.Head())
		}
		if err := w.r.Rebuild(t.Context(), "other"); !errors.Is(err, projection.ErrCannotRebuild) {
			t.Error(err)
		}
		if err := w.r.Rebuild(t.Context(), "none"); !errors.Is(err, projection.ErrUnknownView) {
			t.Error(err)
		}
		l.fresh = again("ledger")
		l.before = func(*journal.Batch) error { return errPlanted }
		w.commit(1)
		synctest.Wait()
		if f, _ := w.r.Freshness("ledger"); f.State != projection.Stalled {
			t.Fatalf("%v", f)
		}
		if err := w.r.Rebuild(t.Context(), "ledger"); err != nil {
			t.Fatal(err)
		}
		w.commit(1)
		if f, err := w.r.Wait(t.Context(), "ledger", projection.Latest()); err != nil || f.State != projection.Live || f.Err != nil {
			t.Errorf("%v, %v", f, err)
		}
	})
}

// Proves G14, I4: the catalogue can be rebuilt as well: what was wrong with it is gone.
func TestRebuildCatalogue(t *testing.T) {
	w := newWorld(t, journal.NewMemory(), projection.Options{})
	w.commit(20)
	w.damage()
	if err := w.r.Rebuild(t.Context(), "catalogue"); err != nil {
		t.Fatal(err)
	}
	w.wantReplayed()
	w.commit(5)
	w.wantReplayed()
}

// damage makes the catalogue show something else of a shard than the next batch says,
// and commits that. It returns the shard's key.
func (w *world) damage() shard.Key {
	w.t.Helper()
	lives := func(e shard.Event) bool { return e.Kind != shard.EventDestroyed }
	for !slices.ContainsFunc(w.history[w.n], lives) {
		w.commit(1)
	}
	b := w.append()
	i := slices.IndexFunc(b.Events, lives)
	wrong := *b
	wrong.Events = slices.Clone(b.Events)
	wrong.Events[i].State.URL += "?wrong"
	if err := w.cat.Apply(&wrong); err != nil {
		w.t.Fatal(err)
	}
	if err := w.r.Commit(b); err != nil {
		w.t.Fatal(err)
	}
	if w.cat.Snapshot().Digest() == digestAt(w.t, w.n) {
		w.t.Fatal("nothing is damaged")
	}
	return wrong.Events[i].Key
}

// Proves G13, G4: what the catalogue cannot show stops it alone, visibly; with what it
// missed it goes on.
func TestCatalogueStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, journal.NewMemory(), projection.Options{}, newLedger("ledger"))
		w.commit(3)
		b := w.append()
		bad := *b
		bad.Events = append([]shard.Event(nil), b.Events...)
		bad.Events[0].Gen += 77
		if err := w.r.Commit(&bad); !errors.Is(err, shard.ErrIllegal) {
			t.Fatal(err)
		}
		synctest.Wait()
		all := w.r.All()
		if all[0].State != projection.Stalled || !errors.Is(all[0].Err, shard.ErrIllegal) || all[0].Applied.Seq != w.end(3) {
			t.Errorf("%v", all[0])
		}
		if all[1].State != projection.Live || all[1].Lag != 0 {
			t.Errorf("%v", all[1])
		}
		w.commit(1) // and the one before, as the journal has it
		w.wantReplayed()
		if f, _ := w.r.Freshness("catalogue"); f.State != projection.Live || f.Err != nil {
			t.Errorf("%v", f)
		}
	})
}

// lacking is a view that lacks something.
type lacking struct {
	*ledger
	what atomic.Pointer[error]
}

func (l *lacking) Lacking() error {
	if p := l.what.Load(); p != nil {
		return *p
	}
	return nil
}

// Proves G9: a view that is live and lacks something says so.
func TestLacking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lacking{ledger: newLedger("ledger")}
		w := newWorld(t, journal.NewMemory(), projection.Options{}, l)
		w.commit(1)
		synctest.Wait()
		for _, err := range []error{nil, errPlanted} {
			if err != nil {
				l.what.Store(&err)
			}
			if f, _ := w.r.Freshness("ledger"); f.State != projection.Live || !errors.Is(f.Err, err) {
				t.Errorf("%v", f)
			}
		}
	})
}

// TestAdd refuses what cannot be a view.
func TestAdd(t *testing.T) {
	w := idleWorld(t, journal.NewMemory(), projection.Options{}, newLedger("a-1"))
	for _, name := range []string{"", "A", "a_b", "a/b", "catalogue", "a-1", strings.Repeat("x", 65)} {
		if err := w.r.Add(newLedger(name)); err == nil {
			t.Errorf("%q is a name", name)
		}
	}
	if err := w.r.Add(newLedger(strings.Repeat("x", 64))); err != nil {
		t.Error(err)
	}
	if err := w.r.Add(struct {
		*ledger
		saver
	}{ledger: newLedger("saver")}); err == nil || !strings.Contains(err.Error(), "Rebuilder") {
		t.Errorf("a Saver that is no Rebuilder: %v", err)
	}
	if err := w.r.Add((*ledger)(nil)); err == nil {
		t.Error("nil is a view")
	}
	w.recover()
	if err := w.r.Add(newLedger("late")); err == nil {
		t.Error("added after the recovery")
	}
	if _, err := w.r.Recover(t.Context()); err == nil {
		t.Error("recovered twice")
	}
}

type saver struct{}

func (saver) Freeze() (journal.Position, func(func([]byte) error) error) { panic("unused") }
func (saver) Restore(journal.Position, func() ([]byte, error)) error     { panic("unused") }

// TestFreshnessText is what people read.
func TestFreshnessText(t *testing.T) {
	w := newWorld(t, journal.NewMemory(), projection.Options{})
	w.commit(1)
	f, _ := w.r.Freshness("catalogue")
	if got := fmt.Sprint(f); got != fmt.Sprintf("catalogue is live at event %d of %[1]d", w.end(1)) {
		t.Errorf("%s", got)
	}
}

// Proves G8, G10, I15: readers, waits, commits, rebuilds and checks beside each other.
func TestStress(t *testing.T) {
	l := newLedger("ledger")
	l.fresh = again("ledger")
	w := newWorld(t, journal.NewMemory(), projection.Options{}, rebuildable{l}, newUsageView())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	beside := func(work func() error) {
		go func() {
			defer func() { done <- struct{}{} }()
			for ctx.Err() == nil {
				runtime.Gosched()
				if err := work(); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	beside(func() error { return w.r.Rebuild(ctx, "ledger") })
	beside(func() error { return w.r.Rebuild(ctx, "catalogue") })
	beside(func() error {
		rep, err := w.r.Check(ctx)
		if err == nil && !rep.OK() {
			err = fmt.Errorf("%+v", rep)
		}
		return err
	})
	for _, name := range []string{"ledger", "usage", "catalogue"} {
		beside(func() error {
			head := w.r.Head()
			_, f, err := w.r.Read(ctx, name, projection.Latest())
			if err == nil && f.Applied.Seq < head.Seq {
				err = fmt.Errorf("%v, wanted %v", f, head)
			}
			return err
		})
	}
	for range 50 {
		head := w.commit(1)
		for _, name := range []string{"ledger", "usage"} {
			if _, err := w.r.Wait(t.Context(), name, projection.AtLeast(head)); err != nil {
				t.Error(err)
			}
		}
	}
	cancel()
	for range 6 {
		<-done
	}
	w.wantReplayed()
	value, f, err := w.r.Read(t.Context(), "ledger", projection.Latest())
	if err != nil {
		t.Fatal(err)
	}
	wantTally(t, w.history, value, f.Applied)
}

// patientUsage waits in Seed until the runner ends.
type patientUsage struct {
	seededUsage
	entered chan struct{}
}

func (p patientUsage) Seed(ctx context.Context, _ *projection.Snapshot) error {
	close(p.entered)
	<-ctx.Done()
	return context.Cause(ctx)
}

// TestCloseIsNoStall: a view that ends because the runner does is not stalled, and
// nobody is told so.
func TestCloseIsNoStall(t *testing.T) {
	for range 300 {
		p := patientUsage{seededUsage{newUsageView()}, make(chan struct{})}
		w := newWorld(t, journal.NewMemory(), projection.Options{}, p)
		<-p.entered
		if err := w.r.Close(); err != nil {
			t.Fatal(err)
		}
		if n := w.r.Stats().Stalls; n != 0 {
			t.Fatalf("%d stalls", n)
		}
	}
}
