// Package projectiontest is the conformance suite of views: what every
// [projection.View] has to keep, and what it has to keep in addition if it is a
// Publisher, a Saver, a Based, a Seeded or a Rebuilder.
//
// A view's test is a few lines:
//
//	projectiontest.Run(t, projectiontest.Subject{
//		New:  func(t *testing.T) projection.View { return mine.New() },
//		Show: func(value any) string { return fmt.Sprint(value.(mine.State)) },
//	})
package projectiontest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// Subject is one kind of view under test.
type Subject struct {
	// New returns a view that shows nothing.
	New func(t *testing.T) projection.View
	// Show says what readers see, all of it, in a form that depends on nothing else:
	// equal states give equal texts. value is what Publish returned, or the view.
	Show func(value any) string
}

var schemes = [...]string{"file", "http", "s3", "fs"}

// History returns a legal history of some shards in that many batches of 1 to 8
// events. Equal arguments give equal events.
func History(seed uint64, batches int) [][]shard.Event {
	rng := rand.New(rand.NewPCG(seed, 1))
	type life struct {
		life shard.Life
		gen  uint64
	}
	shards := make([]life, 4+batches/4)
	var all [][]shard.Event
	seq := uint64(0)
	for range batches {
		var events []shard.Event
		for _, k := range rng.Perm(len(shards))[:1+rng.IntN(min(8, len(shards)))] {
			seq++
			s := &shards[k]
			e := shard.Event{Seq: seq, Gen: s.gen, Time: int64(seq) * 1e9, Key: shard.KeyFromString(fmt.Sprintf("shard/%d", k))}
			e.State.URL = fmt.Sprintf("%s://host/%d.car", schemes[k%len(schemes)], k)
			switch draw := rng.IntN(8); {
			case s.life == shard.None:
				e.Kind, e.State.Life, e.Gen, e.State.Lazy = shard.EventRegistered, shard.Registered, seq, draw < 4
			case draw == 0:
				e.Kind, e.State = shard.EventDestroyed, shard.State{}
			case s.life == shard.Available || s.life == shard.Registered && draw == 1:
				e.Kind, e.State.Life, e.State.Reason = shard.EventFailed, shard.Errored, fmt.Sprint("reason ", seq)
			case s.life == shard.Errored:
				e.Kind, e.State.Life, e.State.Reason = shard.EventRecovering, shard.Recovering, "again"
			default:
				e.Kind, e.State.Life = shard.EventIndexed, shard.Available
				e.State.Index = shard.IndexInfo{Blocks: seq, PayloadBytes: seq << 10, SourceSize: seq<<10 + 50, Digest: [32]byte{byte(seq), 31: 1}}
			}
			*s = life{e.State.Life, e.Gen}
			events = append(events, e)
		}
		all = append(all, events)
	}
	return all
}

// Journal returns a journal in memory that holds the batches.
func Journal(t testing.TB, batches [][]shard.Event) *journal.Memory {
	t.Helper()
	j := journal.NewMemory()
	for _, events := range batches {
		if _, err := j.Append(events); err != nil {
			t.Fatal(err)
		}
	}
	return j
}

// Base returns the newest events of the shards that live after the batches.
func Base(batches [][]shard.Event) []shard.Event {
	newest := map[shard.Key]shard.Event{}
	var order []shard.Key
	for _, events := range batches {
		for _, e := range events {
			if _, ok := newest[e.Key]; !ok {
				order = append(order, e.Key)
			}
			newest[e.Key] = e
		}
	}
	var base []shard.Event
	for _, key := range order {
		if e := newest[key]; e.Kind != shard.EventDestroyed {
			base = append(base, e)
		}
	}
	return base
}

// lend calls use with copies of events whose strings are overwritten afterwards: what
// kept one shows it.
func lend(events []shard.Event, use func([]shard.Event)) {
	var n int
	size := func(s string) { n += len(s) }
	for i := range events {
		eachString(&events[i], size)
	}
	buf := make([]byte, 0, n)
	lent := make([]shard.Event, len(events))
	for i := range events {
		lent[i] = events[i]
		borrow := func(s string) string {
			if s == "" {
				return ""
			}
			buf = append(buf, s...)
			return unsafe.String(&buf[len(buf)-len(s)], len(s))
		}
		st := &lent[i].State
		lent[i].Key = shard.KeyFromString(borrow(events[i].Key.String()))
		st.URL, st.Transient, st.Reason = borrow(st.URL), borrow(st.Transient), borrow(st.Reason)
	}
	use(lent)
	for i := range buf {
		buf[i] = '#'
	}
}

func eachString(e *shard.Event, visit func(string)) {
	for _, s := range []string{e.Key.String(), e.State.URL, e.State.Transient, e.State.Reason} {
		visit(s)
	}
}

// Run runs the suite.
func Run(t *testing.T, s Subject) {
	c := check{s, History(7, 60)}
	t.Run("name and beginning", c.beginning)
	t.Run("batches", c.batches)
	t.Run("twice equals once", c.twice)
	t.Run("batching does not matter", c.batching)
	v := s.New(t)
	if _, ok := v.(projection.Publisher); ok {
		t.Run("what was published stays", c.published)
	}
	if _, ok := v.(projection.Saver); ok {
		t.Run("save and restore", c.saved)
		t.Run("a broken save", c.broken)
		if _, ok := v.(projection.Rebuilder); !ok {
			t.Error("a Saver has to be a Rebuilder")
		}
	}
	if _, ok := v.(projection.Based); ok {
		t.Run("base", c.based)
	}
	if _, ok := v.(projection.Seeded); ok {
		t.Run("seed", c.seeded)
	}
	if _, ok := v.(projection.Rebuilder); ok {
		t.Run("fresh", c.fresh)
	}
	t.Run("with a runner", c.runner)
}

type check struct {
	Subject
	history [][]shard.Event
}

// show says what readers of v see.
func (c *check) show(v projection.View) string {
	if p, ok := v.(projection.Publisher); ok {
		return c.Show(p.Publish())
	}
	return c.Show(v)
}

// feed applies the batches of j after v's position and returns what is shown after
// each of them, by sequence number.
func (c *check) feed(t *testing.T, v projection.View, batches [][]shard.Event) (shown map[uint64]string) {
	t.Helper()
	shown = map[uint64]string{}
	err := Journal(t, batches).Replay(v.Position().Seq, func(b *journal.Batch) error {
		var err error
		lend(b.Events, func(events []shard.Event) { err = v.Apply(&journal.Batch{Events: events, End: b.End}) })
		if err != nil {
			return err
		}
		if v.Position() != b.End {
			return fmt.Errorf("the view's Position is %v after a batch that ends at %v", v.Position(), b.End)
		}
		shown[b.End.Seq] = c.show(v)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return shown
}

func (c *check) beginning(t *testing.T) {
	a, b := c.New(t), c.New(t)
	if a.Name() != b.Name() || a.Version() != b.Version() {
		t.Error("name or version change")
	}
	if a.Position() != (journal.Position{}) {
		t.Errorf("a new view shows %v", a.Position())
	}
	r := projection.NewRunner(journal.NewMemory(), projection.NewCatalogue(), projection.Options{})
	defer r.Close()
	if err := r.Add(a); err != nil {
		t.Error(err)
	}
}

func (c *check) batches(t *testing.T) {
	if shown := c.feed(t, c.New(t), c.history); len(shown) != len(c.history) {
		t.Errorf("%d of %d batches", len(shown), len(c.history))
	}
}

func (c *check) twice(t *testing.T) {
	v := c.New(t)
	var before []journal.Batch
	err := Journal(t, c.history).Replay(0, func(b *journal.Batch) error {
		if err := v.Apply(b); err != nil {
			return err
		}
		before = append(before, journal.Batch{Events: append([]shard.Event(nil), b.Events...), End: b.End})
		want := c.show(v)
		for i := range before {
			if err := v.Apply(&before[i]); err != nil {
				return fmt.Errorf("batch %v again: %w", before[i].End, err)
			}
		}
		if got := c.show(v); got != want || v.Position() != b.End {
			return fmt.Errorf("after the batches up to %v again:\n%s\nbefore:\n%s", b.End, got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (c *check) batching(t *testing.T) {
	v, single := c.New(t), c.New(t)
	shown := c.feed(t, v, c.history)
	var singles [][]shard.Event
	for _, events := range c.history {
		for i := range events {
			singles = append(singles, events[i:i+1])
		}
	}
	for seq, text := range c.feed(t, single, singles) {
		if want, ok := shown[seq]; ok && text != want {
			t.Fatalf("after event %d, one by one:\n%s\nin batches:\n%s", seq, text, want)
		}
	}
}

func (c *check) published(t *testing.T) {
	v := c.New(t).(projection.Publisher)
	type published struct {
		value any
		text  string
	}
	all := []published{{v.Publish(), c.Show(v.Publish())}}
	err := Journal(t, c.history).Replay(0, func(b *journal.Batch) error {
		if err := v.Apply(b); err != nil {
			return err
		}
		value := v.Publish()
		all = append(all, published{value, c.Show(value)})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range all {
		if got := c.Show(p.value); got != p.text {
			t.Fatalf("what was published after %d batches has become\n%s\nand was\n%s", i, got, p.text)
		}
	}
}

// blocks is what save emits.
func blocks(t *testing.T, save func(func([]byte) error) error) (all [][]byte) {
	t.Helper()
	err := save(func(b []byte) error {
		if len(b) == 0 || len(b) > 4<<20 {
			t.Errorf("a block of %d bytes", len(b))
		}
		all = append(all, bytes.Clone(b))
		for i := range b {
			b[i] = '#' // it may be reused, by anybody
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// errNext is what a broken file answers.
var errNext = errors.New("no more blocks can be read")

// source gives the blocks, each in the same buffer, and then end.
func source(all [][]byte, end error) func() ([]byte, error) {
	var buf []byte
	return func() ([]byte, error) {
		for i := range buf {
			buf[i] = '#'
		}
		if len(all) == 0 {
			return nil, end
		}
		buf = append(buf[:0], all[0]...)
		all = all[1:]
		return buf, nil
	}
}

func (c *check) saved(t *testing.T) {
	for n := range len(c.history) + 1 {
		v := c.New(t).(projection.Saver)
		c.feed(t, v, c.history[:n])
		want := c.show(v)
		pos, save := v.Freeze()
		if pos != v.Position() {
			t.Fatalf("frozen at %v, shows %v", pos, v.Position())
		}
		c.feed(t, v, c.history) // the frozen state stays
		after := c.show(v)
		all := blocks(t, save)
		w := c.New(t).(projection.Saver)
		if err := w.Restore(pos, source(all, io.EOF)); err != nil {
			t.Fatalf("after %d batches: %v", n, err)
		}
		if got := c.show(w); got != want || w.Position() != pos {
			t.Fatalf("restored after %d batches, at %v:\n%s\nsaved, at %v:\n%s", n, w.Position(), got, pos, want)
		}
		c.feed(t, w, c.history)
		if got := c.show(w); got != after {
			t.Fatalf("restored after %d batches, then fed:\n%s\nfed without:\n%s", n, got, after)
		}
	}
}

func (c *check) broken(t *testing.T) {
	v := c.New(t).(projection.Saver)
	c.feed(t, v, c.history)
	pos, save := v.Freeze()
	all := blocks(t, save)
	for n := range len(all) {
		if err := c.New(t).(projection.Saver).Restore(pos, source(all[:n], errNext)); !errors.Is(err, errNext) {
			t.Errorf("with %d of %d blocks and then an error, Restore returns %v", n, len(all), err)
		}
	}
	calls := 0
	if err := save(func([]byte) error { calls++; return errNext }); !errors.Is(err, errNext) || calls != 1 {
		t.Errorf("save goes on after emit failed: %v, %d calls", err, calls)
	}
}

func (c *check) based(t *testing.T) {
	want := c.New(t)
	c.feed(t, want, c.history)
	for n := 1; n <= len(c.history); n++ {
		base, end := Base(c.history[:n]), Journal(t, c.history[:n]).Head()
		rand.New(rand.NewPCG(uint64(n), 0)).Shuffle(len(base), func(i, k int) { base[i], base[k] = base[k], base[i] })
		v := c.New(t).(projection.Based)
		for len(base) > 3 {
			lend(base[:3], func(events []shard.Event) {
				if err := v.ApplyBase(events, end, false); err != nil {
					t.Fatal(err)
				}
			})
			base = base[3:]
		}
		lend(base, func(events []shard.Event) {
			if err := v.ApplyBase(events, end, true); err != nil {
				t.Fatal(err)
			}
		})
		if v.Position() != end {
			t.Fatalf("Position is %v after the base at %v", v.Position(), end)
		}
		c.feed(t, v, c.history)
		if got := c.show(v); got != c.show(want) {
			t.Fatalf("with the base after %d batches:\n%s\nwith all history:\n%s", n, got, c.show(want))
		}
	}
}

func (c *check) seeded(t *testing.T) {
	want := c.New(t)
	c.feed(t, want, c.history)
	for n := range len(c.history) + 1 {
		cat := projection.NewCatalogue()
		if err := Journal(t, c.history[:n]).Replay(0, cat.Apply); err != nil {
			t.Fatal(err)
		}
		v := c.New(t).(projection.Seeded)
		if err := v.Seed(t.Context(), cat.Snapshot()); err != nil || v.Position() != cat.Position() {
			t.Fatalf("Position is %v after the catalogue at %v: %v", v.Position(), cat.Position(), err)
		}
		c.feed(t, v, c.history)
		if got := c.show(v); got != c.show(want) {
			t.Fatalf("with the catalogue after %d batches:\n%s\nwith all history:\n%s", n, got, c.show(want))
		}
	}
}

func (c *check) fresh(t *testing.T) {
	v := c.New(t)
	empty := c.show(v)
	c.feed(t, v, c.history)
	want := c.show(v)
	w, err := v.(projection.Rebuilder).Fresh()
	if err != nil {
		t.Fatal(err)
	}
	if w.Name() != v.Name() || w.Version() != v.Version() || w.Position() != (journal.Position{}) || c.show(w) != empty {
		t.Fatalf("a fresh view is %q of version %d at %v and shows\n%s", w.Name(), w.Version(), w.Position(), c.show(w))
	}
	c.feed(t, w, c.history[:len(c.history)/2])
	if c.show(v) != want {
		t.Fatal("feeding the fresh view changes the former")
	}
	c.feed(t, w, c.history)
	if c.show(w) != want {
		t.Fatalf("the fresh view comes to\n%s\nthe former to\n%s", c.show(w), want)
	}
}

// runner feeds the view with a runner, and asks for it at each position.
func (c *check) runner(t *testing.T) {
	want := c.feed(t, c.New(t), c.history)
	j, v := journal.NewMemory(), c.New(t)
	r := projection.NewRunner(j, projection.NewCatalogue(), projection.Options{})
	defer r.Close()
	if err := r.Add(v); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Start()
	for _, events := range c.history {
		end, err := j.Append(events)
		if err == nil {
			err = r.Commit(&journal.Batch{Events: events, End: end})
		}
		if err != nil {
			t.Fatal(err)
		}
		value, f, err := r.Read(t.Context(), v.Name(), projection.AtLeast(end))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Show(value); f.Applied != end || got != want[end.Seq] {
			t.Fatalf("%v:\n%s\nwant\n%s", f, got, want[end.Seq])
		}
	}
}
