package dagstore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// TestViewThatHangs: a view whose Apply never returns holds up nobody: waits,
// checkpoints and rebuilds end with their contexts, and Close within its bound.
// Proves G13 (a hang), G10 (bounded), F28.
func TestViewThatHangs(t *testing.T) {
	v := newCountView("hangs")
	v.gate, v.entered = make(chan struct{}), make(chan struct{}, 1)
	t.Cleanup(func() { close(v.gate) })
	d := open(t, t.TempDir(), dagstore.WithView(v), dagstore.WithConfig(func(c *dagstore.Config) { c.CloseTimeout = 100 * time.Millisecond }))
	register(t, d, key("a"), carV1())
	<-v.entered
	for what, call := range map[string]func(context.Context) error{
		"wait":       func(ctx context.Context) error { _, err := d.WaitFor(ctx, "hangs", dagstore.Latest()); return err },
		"checkpoint": d.Checkpoint,
		"rebuild":    func(ctx context.Context) error { return d.RebuildView(ctx, "hangs") },
		"check":      func(ctx context.Context) error { _, err := d.Check(ctx); return err },
	} {
		ctx, cancel := context.WithTimeout(background, 50*time.Millisecond)
		done := make(chan error, 1)
		go func() { done <- call(ctx) }()
		select {
		case err := <-done:
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s does not end with its context", what)
		}
		cancel()
	}
	register(t, d, key("b"), carV2())
	done := make(chan error, 1)
	go func() { done <- d.Close() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits for a view that hangs")
	}
}

// TestFollowerViewOvertaken: a view of a follower that lags while the writer compacts
// what it has not seen is made anew of itself, although the follower's catalogue was not
// overtaken. Proves G18, C7 (followers), G13.
func TestFollowerViewOvertaken(t *testing.T) {
	dir := t.TempDir()
	opts := []dagstore.Option{
		dagstore.WithCheckpoints(projection.CheckpointPolicy{Events: 1 << 20, Bytes: 1 << 30}),
		dagstore.WithRetention(projection.Retention{Bytes: 1}),
		dagstore.WithJournalOptions(journal.FileOptions{SegmentSize: 4 << 10}),
	}
	d := open(t, dir, opts...)
	register(t, d, key("first"), carV1())
	v := newBasedView("lags")
	v.gate, v.entered = make(chan struct{}), make(chan struct{}, 1)
	f := follow(t, dir, append(opts, dagstore.WithView(v))...)
	<-v.entered
	for i := range 300 {
		k := key("k%d", i)
		registerLazily(t, d, k, carV1())
		destroy(t, d, k)
		if i%50 == 49 {
			if _, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil {
				t.Fatal(err)
			}
			// Only now may go what the catalogue has seen, and the view has not.
			if _, err := f.WaitFor(background, dagstore.CatalogueView, dagstore.AtLeast(d.Position())); err != nil {
				t.Fatal(err)
			}
			if err := d.Checkpoint(background); err != nil {
				t.Fatal(err)
			}
		}
	}
	if dagstore.Jumps(f) != 0 {
		t.Fatal("the catalogue was overtaken")
	}
	close(v.gate)
	fresh, err := f.WaitFor(background, "lags", dagstore.Latest().Wait(20*time.Second))
	if err != nil || fresh.Applied.Seq < d.Position().Seq {
		t.Fatalf("%v, %v", fresh, err)
	}
}

// basedView is a countView that can begin with the base of a compacted journal.
type basedView struct{ *countView }

func newBasedView(name string) *basedView { return &basedView{newCountView(name)} }

func (v *basedView) ApplyBase(_ []shard.Event, end journal.Position, last bool) error {
	if last {
		v.pos.Store(&end)
	}
	return nil
}

func (v *basedView) Fresh() (projection.View, error) { return newBasedView(v.name), nil }
