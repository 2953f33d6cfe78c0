package projection

import (
	"errors"
	"runtime"
	"sync"
	"testing"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// TestReaders reads while batches are applied, each of which changes every shard and
// replaces one: whoever looks sees all of a batch or nothing of it. Proves G4, G8.
func TestReaders(t *testing.T) {
	const shards, batches, readers = 60, 1500, 4
	c := NewCatalogue()
	step := func(batch int) (b journal.Batch) {
		seq := c.Position().Seq
		for i := max(batch-1, 0); i < batch+shards; i++ {
			seq++
			e := registration(seq, i)
			if r := c.Get(e.Key); r != nil {
				e.Gen, e.Kind, e.State.Life = r.Gen(), shard.EventRecovering, shard.Recovering
			}
			if i == batch-1 {
				e.Kind, e.State.Life = shard.EventDestroyed, shard.None
			}
			e.State.Index.Blocks = uint64(batch)
			b.Events = append(b.Events, e)
		}
		b.End.Seq = seq
		b.End.Digest[0] = byte(batch)
		return b
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			var last uint64
			for {
				select {
				case <-done:
					return
				default:
				}
				s := c.Publish().(*Snapshot)
				if err := whole(s, &last); err != nil {
					t.Error(err)
					return
				}
				if pos := c.Position(); pos.Seq < last {
					t.Errorf("position %d after %d", pos.Seq, last)
					return
				}
				runtime.Gosched()
			}
		})
	}
	for batch := range batches {
		b := step(batch)
		if err := c.Check(b.Events); err != nil {
			t.Fatal(err)
		}
		if err := c.Apply(&b); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	wg.Wait()
}

// whole says whether s is the state after some batch of TestReaders, not before last.
func whole(s *Snapshot, last *uint64) error {
	if s.Position().Seq < *last {
		return errors.New("an older state is seen after a newer one")
	}
	*last = s.Position().Seq
	n, batch := 0, uint64(0)
	var err error
	s.All(func(r *Record) bool {
		if n == 0 {
			batch = r.Index().Blocks
		}
		if n++; r.Index().Blocks != batch || byte(batch) != s.Position().Digest[0] || r.Seq() > s.Position().Seq {
			err = errors.New("records of two batches are seen")
		}
		if got := s.Get(r.Key()); got != r {
			err = errors.New("a record of the walk is not found")
		}
		return err == nil
	})
	if err == nil && (n != s.Len() || n != s.Count(shard.Registered)+s.Count(shard.Recovering)) {
		err = errors.New("the counts are of another batch")
	}
	return err
}

// TestView: what the runner knows the catalogue by.
func TestView(t *testing.T) {
	c := NewCatalogue()
	if c.Name() != "catalogue" || c.Version() != 1 {
		t.Errorf("%s, version %d", c.Name(), c.Version())
	}
	mustApply(t, c, []shard.Event{registration(1, 1)})
	fresh, err := c.Fresh()
	if err != nil || fresh.Position().Seq != 0 || fresh.Name() != c.Name() || fresh.Version() != c.Version() {
		t.Errorf("fresh: %v, %v", fresh, err)
	}
	if c.Publish() != any(c.Snapshot()) || c.Publish().(*Snapshot).Len() != 1 {
		t.Error("what is published is not what is shown")
	}
	twice := []shard.Event{registration(2, 2), registration(3, 2)}
	if err := c.Check(twice); !errors.Is(err, shard.ErrIllegal) {
		t.Errorf("two events of a shard: %v", err)
	}
	stop := errors.New("stop")
	if err := c.Snapshot().Events(func(*shard.Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("events: %v", err)
	}
}

// TestBecome: a catalogue that takes over another's state does not change what that has
// published. Each batch of one event changes what the other made in the epoch of the
// same number. Proves G8, G14.
func TestBecome(t *testing.T) {
	const n = 200
	c, o := NewCatalogue(), NewCatalogue()
	for i := range n {
		mustApply(t, o, []shard.Event{registration(uint64(i+1), i)})
	}
	published := o.Snapshot()
	before := published.Digest()
	c.become(o)
	if c.Snapshot() != published {
		t.Fatal("something else is shown")
	}
	for i := range n {
		e := registration(uint64(n+i+1), i)
		e.Gen, e.Kind, e.State.Life = uint64(i+1), shard.EventRecovering, shard.Recovering
		mustApply(t, c, []shard.Event{e})
	}
	if published.Digest() != before {
		t.Fatal("the published state has changed")
	}
}
