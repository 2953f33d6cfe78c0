package dagstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ds "github.com/ipfs/go-datastore"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// countView counts events by kind. It fails, blocks or panics when it is told to.
type countView struct {
	name    string
	pos     atomic.Pointer[journal.Position]
	indexed atomic.Int64
	fail    atomic.Pointer[error]
	gate    chan struct{} // Apply waits until it is closed, unless nil
	entered chan struct{} // ... and says so here
	fresh   func() *countView
}

func newCountView(name string) *countView { return &countView{name: name} }

func (v *countView) Name() string    { return v.name }
func (v *countView) Version() uint32 { return 1 }
func (v *countView) Position() journal.Position {
	if p := v.pos.Load(); p != nil {
		return *p
	}
	return journal.Position{}
}

func (v *countView) Apply(b *journal.Batch) error {
	if err := v.fail.Load(); err != nil {
		return *err
	}
	if v.gate != nil {
		select {
		case v.entered <- struct{}{}:
		default:
		}
		<-v.gate
	}
	for i := range b.Events {
		if b.Events[i].Kind == shard.EventIndexed {
			v.indexed.Add(1)
		}
	}
	end := b.End
	v.pos.Store(&end)
	return nil
}

func (v *countView) Fresh() (projection.View, error) {
	if v.fresh == nil {
		return newCountView(v.name), nil
	}
	return v.fresh(), nil
}

// TestReadYourWrites: a result's position makes any view of the store, and its token
// any later process, show the write; positions of the future and of other stores, and
// tokens that are missing or damaged, are refused at once. Proves G10 (in the store),
// G11, G19, F19 (freshness).
func TestReadYourWrites(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	res, err := d.RegisterShardSync(background, key("a"), carV1(), dagstore.RegisterOpts{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Seq == 0 || res.Position.Seq < res.Seq {
		t.Fatalf("the result is at %d, %v", res.Seq, res.Position)
	}
	root := testdata.RootCID.Hash()
	for _, c := range []dagstore.Consistency{dagstore.AtLeast(res.Position), dagstore.AtLeastSeq(res.Seq), dagstore.Latest(), dagstore.Within(time.Minute)} {
		keys, f, err := d.FindShards(background, root, c)
		if err != nil || len(keys) != 1 || c != dagstore.Within(time.Minute) && f.Applied.Seq < res.Seq {
			t.Errorf("%s: %v, %s, %v", c, keys, f, err)
		}
	}
	_, cids := makeCAR(randomBlocks(99, 1, 10)...)
	_, _, err = d.FindShards(background, cids[0].Hash(), dagstore.AtLeast(res.Position))
	var none *dagstore.NoShardError
	if !errors.As(err, &none) || none.AsOf.Applied.Seq < res.Seq || !errors.Is(err, ds.ErrNotFound) {
		t.Errorf("none: %v", err)
	}

	token := res.Position.Token()
	future := d.Position()
	future.Seq += 100
	foreign := d.Position()
	foreign.Digest[0]++
	for c, want := range map[dagstore.Consistency]error{
		dagstore.AtLeast(future):                dagstore.ErrFuturePosition,
		dagstore.AtLeastSeq(future.Seq):         dagstore.ErrFuturePosition,
		dagstore.AtLeast(foreign):               dagstore.ErrForeignPosition,
		dagstore.AsOf(foreign):                  dagstore.ErrForeignPosition,
		dagstore.AtLeast(dagstore.Position{}):   dagstore.ErrNoPosition,
		dagstore.AsOf(dagstore.Position{}):      dagstore.ErrNoPosition,
		dagstore.AsOf(future).Wait(time.Second): dagstore.ErrFuturePosition,
	} {
		if _, _, err := d.Catalogue(background, c); !errors.Is(err, want) {
			t.Errorf("catalogue %s: %v, want %v", c, err, want)
		}
	}
	for _, bad := range []string{"", "x", token[1:], token + "A", token[:30]} {
		if _, err := dagstore.ParsePosition(bad); !errors.Is(err, dagstore.ErrBadToken) {
			t.Errorf("token %q: %v", bad, err)
		}
	}
	if _, err := d.WaitFor(background, "nonesuch", dagstore.Any()); !errors.Is(err, dagstore.ErrUnknownView) {
		t.Errorf("unknown view: %v", err)
	}

	closeStore(t, d)
	d = open(t, dir)
	at, err := dagstore.ParsePosition(token)
	if err != nil {
		t.Fatal(err)
	}
	if keys, _, err := d.FindShards(background, root, dagstore.AtLeast(at)); err != nil || len(keys) != 1 {
		t.Errorf("find by the token of an earlier process: %v, %v", keys, err)
	}
	other := open(t, t.TempDir())
	register(t, other, key("a"), carV2())
	if _, _, err := other.FindShards(background, root, dagstore.AtLeast(at)); !errors.Is(err, dagstore.ErrForeignPosition) {
		t.Errorf("the token of another store: %v", err)
	}
}

// TestTimeTravel: the catalogue as of any retained position is what it was then, by
// digest; after a restart, with and without checkpoints; and below the horizon it is
// said that it is gone. History tells every life. Proves G15, G8, C7, I4.
func TestTimeTravel(t *testing.T) {
	dir := t.TempDir()
	opts := []dagstore.Option{
		dagstore.WithCheckpoints(projection.CheckpointPolicy{Events: 7}),
		dagstore.WithRetention(projection.Retention{Bytes: -1}),
		dagstore.WithJournalOptions(journal.FileOptions{SegmentSize: 1 << 10}),
	}
	d := open(t, dir, opts...)
	type moment struct {
		pos    dagstore.Position
		digest [32]byte
	}
	var past []moment
	note := func() {
		s, _, err := d.Catalogue(background, dagstore.Latest())
		if err != nil {
			t.Fatal(err)
		}
		past = append(past, moment{s.Position(), s.Digest()})
	}
	for i := range 12 {
		register(t, d, key("a"), carV1())
		note()
		registerLazily(t, d, key("k%d", i), carV2())
		note()
		destroy(t, d, key("a"))
		note()
	}
	check := func(d *dagstore.DAGStore) (gone int) {
		t.Helper()
		for _, m := range past {
			s, f, err := d.Catalogue(background, dagstore.AsOf(m.pos))
			if errors.Is(err, dagstore.ErrCompacted) {
				gone++
				continue
			}
			if err != nil || s.Digest() != m.digest || s.Position() != m.pos || f.Applied != m.pos {
				t.Fatalf("as of %s: %v, %v", m.pos, f, err)
			}
			if s, err = d.CatalogueAt(background, m.pos.Seq); err != nil || s.Digest() != m.digest {
				t.Fatalf("at %d: %v", m.pos.Seq, err)
			}
		}
		return gone
	}
	if gone := check(d); gone > 0 {
		t.Fatalf("%d moments are gone", gone)
	}
	h, err := d.History(background, key("a"))
	if err != nil || len(h.Lives) != 12 || h.From != 0 {
		t.Fatalf("history: %d lives from %d, %v", len(h.Lives), h.From, err)
	}
	for _, l := range h.Lives {
		if len(l.Events) != 3 || !l.Over || l.Events[0].Kind != "registered" || l.Events[0].Seq != l.Gen || l.Events[2].Kind != "destroyed" {
			t.Errorf("a life: %+v", l)
		}
	}
	if _, err := d.History(background, key("never")); !errors.Is(err, dagstore.ErrShardUnknown) {
		t.Errorf("history of a key that never was: %v", err)
	}
	report, err := d.Check(background)
	if err != nil || !report.OK() {
		t.Errorf("check: %+v, %v", report, err)
	}
	counted := newCountView("analysis")
	if err := d.Replay(background, 0, d.Position().Seq, counted); err != nil || counted.indexed.Load() != 12 {
		t.Errorf("replay: %d indexed, %v", counted.indexed.Load(), err)
	}
	if err := d.Replay(background, 0, d.Position().Seq+1, counted); !errors.Is(err, dagstore.ErrFuturePosition) {
		t.Errorf("replay beyond the head: %v", err)
	}
	closeStore(t, d)

	d = open(t, dir, opts...)
	if d.Health().Recovery.Checkpoint.Seq == 0 {
		t.Error("no checkpoint was used")
	}
	if gone := check(d); gone > 0 {
		t.Fatalf("%d moments are gone after a restart", gone)
	}
	closeStore(t, d)

	d = open(t, dir, append(opts, dagstore.WithRetention(projection.Retention{Bytes: 1}))...)
	for i := range 3 {
		registerLazily(t, d, key("more%d", i), carV2())
		if _, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil {
			t.Fatal(err)
		}
		if err := d.Checkpoint(background); err != nil {
			t.Fatal(err)
		}
	}
	if gone := check(d); gone == 0 {
		t.Error("nothing was compacted")
	}
	h, err = d.History(background, key("k0"))
	if err != nil || h.From == 0 || len(h.Lives) != 1 || !h.Lives[0].Events[0].Base {
		t.Errorf("history after a compaction: %+v, %v", h, err)
	}
	if report, err := d.Check(background); err != nil || !report.OK() {
		t.Errorf("check after a compaction: %+v, %v", report, err)
	}
}

// TestCheckpointsAreAccelerators: whatever becomes of the checkpoints, the store starts
// with the same state, and says what it did not use. Proves G6, G16, C6, C10
// (checkpoints).
func TestCheckpointsAreAccelerators(t *testing.T) {
	dir := t.TempDir()
	policy := dagstore.WithCheckpoints(projection.CheckpointPolicy{Events: 5})
	d := open(t, dir, policy)
	for i := range 20 {
		register(t, d, key("k%d", i), carV1())
	}
	if err := d.Checkpoint(background); err != nil {
		t.Fatal(err)
	}
	registerLazily(t, d, key("last"), carV1())
	want, _, err := d.Catalogue(background, dagstore.Latest())
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, d)
	ckpts, err := filepath.Glob(filepath.Join(dir, "checkpoints", "catalogue-*.ckpt"))
	if err != nil || len(ckpts) != 2 {
		t.Fatalf("checkpoints: %v, %v", ckpts, err)
	}
	replayed := func(ignored int, atMost uint64) {
		t.Helper()
		d := open(t, dir, policy)
		s, _, err := d.Catalogue(background, dagstore.Any())
		if err != nil || s.Digest() != want.Digest() {
			t.Errorf("the state is another: %v", err)
		}
		if r := d.Health().Recovery; len(r.Ignored) != ignored || r.Replayed > atMost {
			t.Errorf("recovery: %+v, want %d ignored and at most %d replayed", r, ignored, atMost)
		}
		closeStore(t, d)
	}
	replayed(0, 1)
	newest, err := os.ReadFile(ckpts[1])
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(newest)
	damaged[len(damaged)/2] ^= 1
	writeFile(t, ckpts[1], damaged)
	replayed(1, 10)
	writeFile(t, ckpts[0], newest) // under another's name
	replayed(1, 10)
	writeFile(t, ckpts[0], []byte("nonsense"))
	replayed(2, 100)
	for _, c := range ckpts {
		if err := os.Remove(c); err != nil {
			t.Fatal(err)
		}
	}
	replayed(0, 100)
	other := t.TempDir()
	d = open(t, other, policy)
	for i := range 30 {
		registerLazily(t, d, key("other%d", i), carV1())
	}
	if err := d.Checkpoint(background); err != nil {
		t.Fatal(err)
	}
	closeStore(t, d)
	foreign, err := filepath.Glob(filepath.Join(other, "checkpoints", "catalogue-*.ckpt"))
	if err != nil || len(foreign) == 0 {
		t.Fatalf("no checkpoints: %v", err)
	}
	for _, f := range foreign {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, "checkpoints", filepath.Base(f)), b)
	}
	replayed(len(foreign), 100)
}

// TestHealth: starting, ready, stalled, rebuilding, read-only and closed are told apart,
// with what is to blame. Proves G17, G13, G9.
func TestHealth(t *testing.T) {
	state := func(d *dagstore.DAGStore, want dagstore.HealthState) dagstore.Health {
		t.Helper()
		h := d.Health()
		if h.State != want {
			t.Errorf("health is %s, want %s", h, want)
		}
		return h
	}
	unstarted, err := dagstore.NewDAGStore(dagstore.Config{TransientsDir: t.TempDir(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if h := state(unstarted, dagstore.HealthStarting); h.Ready() || !h.Live() {
		t.Errorf("ready before the start: %s", h)
	}
	closeStore(t, unstarted)
	state(unstarted, dagstore.HealthClosed)

	bad, slow := newCountView("bad"), newCountView("slow")
	again := make(chan *countView, 1)
	slow.fresh = func() *countView {
		v := newCountView("slow")
		v.gate, v.entered = make(chan struct{}), make(chan struct{}, 1)
		again <- v
		return v
	}
	d := open(t, t.TempDir(), dagstore.WithView(bad), dagstore.WithView(slow))
	registerLazily(t, d, key("a"), carV1())
	for _, v := range []string{"bad", "slow", dagstore.TopLevelView} {
		if _, err := d.WaitFor(background, v, dagstore.Latest()); err != nil {
			t.Fatal(err)
		}
	}
	if h := state(d, dagstore.HealthReady); !h.Ready() || len(h.Views) != 4 {
		t.Errorf("not ready: %s", h)
	}

	cause := errors.New("no room in the attic")
	bad.fail.Store(&cause)
	res, err := d.RegisterShardSync(background, key("b"), carV1(), dagstore.RegisterOpts{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.WaitFor(background, "bad", dagstore.AtLeast(res.Position).Wait(50*time.Millisecond))
	var stale *dagstore.NotFreshError
	if !errors.As(err, &stale) || stale.State != projection.Stalled || !errors.Is(err, cause) || stale.RetryAfter <= 0 {
		t.Errorf("wait for a stalled view: %v", err)
	}
	if _, err := d.WaitFor(background, "slow", dagstore.Latest()); err != nil {
		t.Errorf("another view stopped with it: %v", err)
	}
	if h := state(d, dagstore.HealthStalled); !errors.Is(h.Cause, cause) || h.Ready() {
		t.Errorf("the cause: %v", h.Cause)
	}
	bad.fail.Store(nil)
	if err := d.RebuildView(background, "bad"); err != nil {
		t.Fatal(err)
	}
	state(d, dagstore.HealthReady)

	rebuilt := make(chan error, 1)
	go func() { rebuilt <- d.RebuildView(background, "slow") }()
	v := <-again
	<-v.entered
	if h := state(d, dagstore.HealthRebuilding); !h.Ready() {
		t.Errorf("not ready while a view is rebuilt: %s", h)
	}
	if _, f, err := d.ReadView(background, "slow", dagstore.Any()); err != nil || f.Applied.Seq == 0 {
		t.Errorf("the former view is not served: %s, %v", f, err)
	}
	close(v.gate)
	if err := <-rebuilt; err != nil {
		t.Fatal(err)
	}
	state(d, dagstore.HealthReady)
	if err := d.RebuildView(background, dagstore.TopLevelView); err != nil {
		t.Fatal(err)
	}
	if keys, _, err := d.FindShards(background, testdata.RootCID.Hash(), dagstore.Latest()); err != nil || len(keys) != 1 {
		t.Errorf("find after a rebuild: %v, %v", keys, err)
	}
	if keys, err := d.TopLevelIndex.GetShardsForMultihash(background, testdata.RootCID.Hash()); err != nil || len(keys) != 1 {
		t.Errorf("the field after a rebuild: %v, %v", keys, err)
	}

	// A view that blocks holds up its own readers only.
	bounded, cancel := context.WithTimeout(background, 20*time.Millisecond)
	defer cancel()
	slow2 := newCountView("slow2")
	slow2.gate, slow2.entered = make(chan struct{}), make(chan struct{}, 1)
	d2 := open(t, t.TempDir(), dagstore.WithView(slow2))
	registerLazily(t, d2, key("a"), carV1())
	<-slow2.entered
	if _, err := d2.WaitFor(bounded, "slow2", dagstore.Latest()); !errors.Is(err, dagstore.ErrNotFresh) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for a view that blocks: %v", err)
	}
	if _, _, err := d2.FindShards(background, testdata.RootCID.Hash(), dagstore.Latest()); !errors.Is(err, ds.ErrNotFound) {
		t.Errorf("another view is held up: %v", err)
	}
	close(slow2.gate)
}

// TestHealthReadOnly: a journal that cannot be written is told with its cause. Proves
// G17 (read-only), C3.
func TestHealthReadOnly(t *testing.T) {
	broken := errors.New("the cable is out")
	j := &failingJournal{Memory: journal.NewMemory(), err: fmt.Errorf("%w: %w", journal.ErrOutcomeUnknown, broken)}
	d := start(t, dagstore.Config{Journal: j})
	register(t, d, key("a"), carV1())
	j.failing.Store(true)
	if _, err := d.RegisterShardSync(background, key("b"), carV1(), dagstore.RegisterOpts{}); !errors.Is(err, dagstore.ErrReadOnly) {
		t.Fatalf("register: %v", err)
	}
	h := d.Health()
	if h.State != dagstore.HealthReadOnly || !errors.Is(h.Cause, broken) || !errors.Is(h.ReadOnly, broken) || !h.Ready() {
		t.Errorf("health: %s", h)
	}
	closeAll(t, acquire(t, d, key("a")))
}

// failingJournal refuses to append when it is told to.
type failingJournal struct {
	*journal.Memory
	failing atomic.Bool
	err     error
}

func (j *failingJournal) Append(events []shard.Event) (journal.Position, error) {
	if j.failing.Load() {
		return journal.Position{}, j.err
	}
	return j.Memory.Append(events)
}

// TestViewOverRestart: a view in memory that saves itself begins where its checkpoint
// is; one that does not begins anew; both come to the same. A view that was not there
// before catches up. Proves G12 (views registered later), G16 (views).
func TestViewOverRestart(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	for i := range 5 {
		register(t, d, key("k%d", i), &mount.BytesMount{Bytes: testdata.CarV1})
	}
	closeStore(t, d)
	v := newCountView("late")
	d = open(t, dir, dagstore.WithView(v))
	f, err := d.WaitFor(background, "late", dagstore.Latest())
	if err != nil || v.indexed.Load() != 5 || f.Lag != 0 {
		t.Errorf("%d indexed, %s, %v", v.indexed.Load(), f, err)
	}
}

// TestNoShardErrorIsShort: a stranger's multihash of a megabyte is not spelt out, which
// would take minutes.
func TestNoShardErrorIsShort(t *testing.T) {
	long := hostile.Mh(mh.IDENTITY, make([]byte, 1<<20))
	if msg := (&dagstore.NoShardError{Multihash: long}).Error(); len(msg) > 1000 || !strings.Contains(msg, fmt.Sprint(len(long))) {
		t.Errorf("%d bytes: %.2000s", len(msg), msg)
	}
	if msg := (&dagstore.NoShardError{Multihash: testdata.RootCID.Hash()}).Error(); !strings.Contains(msg, testdata.RootCID.Hash().B58String()) {
		t.Error(msg)
	}
}
