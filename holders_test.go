package dagstore_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ipld "github.com/ipfs/go-ipld-format"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// keeper is a Holder that keeps one accessor and, unless it is stubborn, lets go when
// asked.
type keeper struct {
	acc      *dagstore.ShardAccessor
	stubborn bool
	asked    chan shard.Key
	idle     chan struct{}
}

func newKeeper(t testing.TB, d *dagstore.DAGStore, k shard.Key) *keeper {
	t.Helper()
	h := &keeper{asked: make(chan shard.Key, 8), idle: make(chan struct{}, 8)}
	h.keep(t, d, k)
	return h
}

func (h *keeper) keep(t testing.TB, d *dagstore.DAGStore, k shard.Key) {
	t.Helper()
	var err error
	if h.acc, err = d.AcquireShardSync(background, k, dagstore.AcquireOpts{Holder: h}); err != nil {
		t.Fatal(err)
	}
}

func (h *keeper) HolderName() string { return "the test's keeper" }

func (h *keeper) LetGo(k shard.Key) {
	if !h.stubborn {
		h.acc.Close()
	}
	h.asked <- k
}

func (h *keeper) LetGoIdle() {
	h.acc.Close()
	h.idle <- struct{}{}
}

// TestDestroyAsksHolders: a destruction without options takes no notice of accessors that
// are kept open for later: who keeps them is asked. Proves A10.
func TestDestroyAsksHolders(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{})
		k := key("a")
		register(t, d, k, carV1())
		h := newKeeper(t, d, k)
		destroy(t, d, k)
		if got := <-h.asked; got != k {
			t.Errorf("asked for %s", got)
		}
		register(t, d, k, carV1())
		h.keep(t, d, k)
		acc := acquire(t, d, k)
		_, err := d.DestroyShardSync(background, k, dagstore.DestroyOpts{})
		wantErr(t, "destroy what a caller uses", err, dagstore.ErrShardInUse)
		if want := "1 of callers, 1 of the test's keeper"; !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
		if len(h.asked) != 0 {
			t.Error("the holder was asked for a destruction that was refused")
		}
		readAll(t, acc)
		closeAll(t, acc)
		destroy(t, d, k)
	})
}

// TestDestroyPatience: a destruction without options waits five seconds for a holder
// that does not let go, and the shard goes on then. Proves A10.
func TestDestroyPatience(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{})
		k := key("a")
		register(t, d, k, carV1())
		h := newKeeper(t, d, k)
		h.stubborn = true
		began := time.Now()
		_, err := d.DestroyShardSync(background, k, dagstore.DestroyOpts{})
		wantErr(t, "destroy", err, dagstore.ErrShardInUse)
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("refused after %s", took)
		}
		works(t, d, k)
		closeAll(t, h.acc)
	})
}

// TestDestroyWaits: with Wait a destruction waits for callers too. Who asks for the shard
// meanwhile is told that it is away, explanations name who holds it, and if the
// destruction is given up the shard goes on. Proves A10, A2 (acquires), N7.
func TestDestroyWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{})
		k := key("a")
		register(t, d, k, carV1())
		acc := acquire(t, d, k)
		h := newKeeper(t, d, k)
		h.stubborn = true
		ctx, cancel := context.WithCancel(background)
		out := make(chan dagstore.ShardResult, 1)
		if err := d.DestroyShard(ctx, k, out, dagstore.DestroyOpts{Wait: true}); err != nil {
			t.Fatal(err)
		}
		settle()
		_, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{})
		var away *dagstore.UnavailableError
		if !errors.As(err, &away) || away.RetryAfter <= 0 || len(away.Shards) != 1 || ipld.IsNotFound(err) || errors.Is(err, dagstore.ErrShardUnknown) {
			t.Errorf("acquire of a shard whose destruction waits: %v", err)
		}
		x, err := d.Explain(k)
		if err != nil {
			t.Fatal(err)
		}
		text := x.String()
		for _, r := range d.ExplainRequests(out) {
			text += r.String()
		}
		for _, want := range []string{"destroy-waited", "needs no accessor open; now 2 accessors", "1 accessors of the test's keeper", "the closing of 2 accessors"} {
			if !strings.Contains(text, want) {
				t.Errorf("the explanation does not say %q:\n%s", want, text)
			}
		}
		cancel()
		if res := <-out; !errors.Is(res.Error, context.Canceled) {
			t.Errorf("given up: %v", res.Error)
		}
		works(t, d, k)

		if err := d.DestroyShard(background, k, out, dagstore.DestroyOpts{Wait: true}); err != nil {
			t.Fatal(err)
		}
		readAll(t, acc)
		closeAll(t, acc, h.acc)
		if res := <-out; res.Error != nil || res.Seq == 0 {
			t.Errorf("destroy: %+v", res)
		}
		if _, err := d.GetShardInfo(k); !errors.Is(err, dagstore.ErrShardUnknown) {
			t.Errorf("info of the destroyed shard: %v", err)
		}
	})
}

// TestDestroyWaitsOfTwo: of two destructions that wait, one ends the shard and the other
// finds none. Proves A10, I1.
func TestDestroyWaitsOfTwo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{})
		k := key("a")
		register(t, d, k, carV1())
		acc := acquire(t, d, k)
		out := make(chan dagstore.ShardResult, 2)
		for range 2 {
			if err := d.DestroyShard(background, k, out, dagstore.DestroyOpts{Wait: true}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		closeAll(t, acc)
		ended, unknown := 0, 0
		for range 2 {
			switch res := <-out; {
			case res.Error == nil:
				ended++
			case errors.Is(res.Error, dagstore.ErrShardUnknown):
				unknown++
			default:
				t.Error(res.Error)
			}
		}
		if ended != 1 || unknown != 1 {
			t.Errorf("%d ended it, %d found none", ended, unknown)
		}
	})
}

// TestDestroyCutsReadersOff: with CutReaders a destruction waits for nobody. Reads end
// with ErrClosed, and accessors that are closed late take nothing from the next life of
// the key. Proves A10, I5.
func TestDestroyCutsReadersOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{})
		k := key("a")
		register(t, d, k, carV1())
		old := []*dagstore.ShardAccessor{acquire(t, d, k), acquire(t, d, k)}
		bs := blockstore(t, old[0])
		keys, err := bs.AllKeysChan(background)
		if err != nil {
			t.Fatal(err)
		}
		c := <-keys
		if _, err := d.DestroyShardSync(background, k, dagstore.DestroyOpts{CutReaders: true}); err != nil {
			t.Fatal(err)
		}
		_, err = bs.Get(background, c)
		wantErr(t, "a read after the cut", err, dagstore.ErrClosed)
		register(t, d, k, carV1())
		acc := acquire(t, d, k)
		closeAll(t, old...)
		settle()
		_, err = d.DestroyShardSync(background, k, dagstore.DestroyOpts{})
		wantErr(t, "destroy the next life", err, dagstore.ErrShardInUse)
		readAll(t, acc)
		closeAll(t, acc)
		destroy(t, d, k)
	})
}

// TestHolderMustCompare: a holder that cannot be told from another is refused.
func TestHolderMustCompare(t *testing.T) {
	d := start(t, dagstore.Config{})
	k := key("a")
	register(t, d, k, carV1())
	if _, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{Holder: manyKeepers{}}); err == nil {
		t.Error("a holder that cannot be compared was taken")
	}
}

type manyKeepers []int

func (manyKeepers) HolderName() string { return "" }
func (manyKeepers) LetGo(shard.Key)    {}
func (manyKeepers) LetGoIdle()         {}

// TestGCSaysWhoUses: a GC says which copies it kept and who needs them, and how much it
// reclaimed; asked to, it has those let go who keep accessors for later.
func TestGCSaysWhoUses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{})
		free, called, kept := key("free"), key("called"), key("kept")
		for _, k := range []shard.Key{free, called, kept} {
			register(t, d, k, carV1())
		}
		acc := acquire(t, d, called)
		h := newKeeper(t, d, kept)
		gc := func(o dagstore.GCOptions) *dagstore.GCResult {
			t.Helper()
			res, err := d.GCWith(background, o)
			if err != nil || res.ShardFailures() != 0 {
				t.Fatalf("%+v, %v", res, err)
			}
			return res
		}
		size := uint64(len(testdata.CarV1))
		res := gc(dagstore.GCOptions{})
		if len(res.InUse) != 2 || !strings.Contains(res.InUse[called], "1 of callers") || !strings.Contains(res.InUse[kept], "1 of the test's keeper") || res.Reclaimed != size {
			t.Errorf("%+v", res)
		}
		if res = gc(dagstore.GCOptions{}); res.Reclaimed != 0 {
			t.Errorf("reclaimed %d bytes of nothing", res.Reclaimed)
		}
		res = gc(dagstore.GCOptions{AskHolders: true})
		if len(res.InUse) != 1 || res.InUse[called] == "" || res.Reclaimed != size {
			t.Errorf("with holders asked: %+v", res)
		}
		<-h.asked
		closeAll(t, acc)
		if res = gc(dagstore.GCOptions{}); len(res.InUse) != 0 || res.Reclaimed != size {
			t.Errorf("at last: %+v", res)
		}
	})
}

// refusingJournal refuses the next batch if it is told to, and goes on.
type refusingJournal struct {
	journal.Journal
	refuse atomic.Bool
}

func (j *refusingJournal) Append(events []shard.Event) (journal.Position, error) {
	if j.refuse.CompareAndSwap(true, false) {
		return journal.Position{}, errors.New("refused")
	}
	return j.Journal.Append(events)
}

// TestDestroyInUseNotRecorded: if the end of a shard in use cannot be recorded nothing has
// ended: readers were not cut off, what was closed meanwhile stays closed, and the
// counts are right. Proves A10, I5, C11.
func TestDestroyInUseNotRecorded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := &refusingJournal{Journal: journal.NewMemory()}
		d := start(t, dagstore.Config{Journal: j})
		k := key("a")
		register(t, d, k, carV1())
		inUse := func() {
			t.Helper()
			_, err := d.DestroyShardSync(background, k, dagstore.DestroyOpts{})
			wantErr(t, "destroy", err, dagstore.ErrShardInUse)
		}

		acc := acquire(t, d, k)
		j.refuse.Store(true)
		if _, err := d.DestroyShardSync(background, k, dagstore.DestroyOpts{CutReaders: true}); err == nil || !strings.Contains(err.Error(), "could not be recorded") {
			t.Errorf("cut off: %v", err)
		}
		readAll(t, acc)
		inUse()
		h := newKeeper(t, d, k)
		closeAll(t, acc)
		settle()

		acc = acquire(t, d, k)
		out := make(chan dagstore.ShardResult, 1)
		if err := d.DestroyShard(background, k, out, dagstore.DestroyOpts{Wait: true}); err != nil {
			t.Fatal(err)
		}
		settle()
		j.refuse.Store(true)
		closeAll(t, acc) // the last, for the keeper let go
		if res := <-out; res.Error == nil || !strings.Contains(res.Error.Error(), "could not be recorded") {
			t.Errorf("waited: %v", res.Error)
		}
		<-h.asked
		works(t, d, k)
		settle()
		acc = acquire(t, d, k)
		inUse()
		closeAll(t, acc)
		destroy(t, d, k)
	})
}

// lender is a Holder of many accessors.
type lender struct {
	mu   sync.Mutex
	open map[shard.Key][]*dagstore.ShardAccessor
}

func (l *lender) HolderName() string { return "the lender" }

func (l *lender) LetGo(k shard.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, acc := range l.open[k] {
		acc.Close()
	}
	delete(l.open, k)
}

func (l *lender) LetGoIdle() {
	for _, k := range []shard.Key{key("0"), key("1"), key("2")} {
		l.LetGo(k)
	}
}

func (l *lender) keep(acc *dagstore.ShardAccessor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[acc.Shard()] = append(l.open[acc.Shard()], acc)
}

// TestEndingAtRandom: callers and a holder acquire, read, close, register and destroy in
// every manner, at the same time and some giving up. Every request is answered with what
// may be said, and in the end nothing is held that anybody holds. Proves A10, I1, I5.
func TestEndingAtRandom(t *testing.T) {
	for seed := range uint64(6) {
		bubble(t, func(t *testing.T) {
			d := start(t, dagstore.Config{})
			l := &lender{open: map[shard.Key][]*dagstore.ShardAccessor{}}
			var wg sync.WaitGroup
			var ended, cut, refused, away atomic.Int32
			for w := range uint64(8) {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(seed, w))
					var mine []*dagstore.ShardAccessor
					for range 150 {
						k := key("%d", r.IntN(3))
						ctx, cancel := context.WithTimeout(background, time.Duration(1+r.IntN(20))*time.Millisecond)
						switch n := r.IntN(12); {
						case n < 2:
							_, err := d.RegisterShardSync(background, k, carV1(), dagstore.RegisterOpts{LazyInitialization: n == 0})
							if err != nil && !errors.Is(err, dagstore.ErrShardExists) && !errors.Is(err, dagstore.ErrShardUnknown) {
								t.Errorf("register: %v", err)
							}
						case n < 7:
							opts := dagstore.AcquireOpts{}
							if n < 5 {
								opts.Holder = l
							}
							acc, err := d.AcquireShardSync(ctx, k, opts)
							switch {
							case err == nil && opts.Holder != nil:
								l.keep(acc)
							case err == nil:
								mine = append(mine, acc)
							case errors.Is(err, dagstore.ErrUnavailable):
								away.Add(1)
							case !errors.Is(err, dagstore.ErrShardUnknown) && !errors.Is(err, context.DeadlineExceeded):
								t.Errorf("acquire: %v", err)
							}
						case n < 9 && len(mine) > 0:
							i := r.IntN(len(mine))
							err := mine[i].View(background, testdata.RootCID, func([]byte) error { return nil })
							if errors.Is(err, dagstore.ErrClosed) {
								cut.Add(1)
							} else if err != nil {
								t.Errorf("read: %v", err)
							}
							closeAll(t, mine[i])
							mine = append(mine[:i], mine[i+1:]...)
						case n < 9:
							l.LetGo(k)
						default:
							opts := dagstore.DestroyOpts{Wait: n == 10, CutReaders: n == 11 && r.IntN(3) == 0}
							_, err := d.DestroyShardSync(ctx, k, opts)
							switch {
							case err == nil:
								ended.Add(1)
							case errors.Is(err, dagstore.ErrShardInUse):
								refused.Add(1)
							case !errors.Is(err, dagstore.ErrShardUnknown) && !errors.Is(err, context.DeadlineExceeded):
								t.Errorf("destroy %+v: %v", opts, err)
							}
						}
						cancel()
					}
					closeAll(t, mine...)
				})
			}
			wg.Wait()
			l.LetGoIdle()
			settle()
			for i := range 3 {
				k := key("%d", i)
				if _, err := d.GetShardInfo(k); errors.Is(err, dagstore.ErrShardUnknown) {
					register(t, d, k, carV1())
				}
				works(t, d, k)
				h := newKeeper(t, d, k)
				destroy(t, d, k)
				<-h.asked
			}
			if res, err := d.GC(background); err != nil || len(res.InUse) != 0 {
				t.Errorf("in use at the end: %+v, %v", res, err)
			}
			t.Logf("seed %d: %d ended, %d reads cut off, %d refused, %d acquires away", seed, ended.Load(), cut.Load(), refused.Load(), away.Load())
		})
	}
}
