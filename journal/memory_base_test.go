package journal_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

func baseOf(t *testing.T, c journal.Compacted) (events []shard.Event, at journal.Position) {
	t.Helper()
	at, err := c.Base(func(run []shard.Event) error { events = append(events, run...); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return events, at
}

// TestMemoryAt: a journal that begins with a state goes on behind it, and its positions
// are of that state alone. Proves G1, G2 (a journal that begins with a base).
func TestMemoryAt(t *testing.T) {
	of := func(seq, gen uint64, k string, kind shard.Kind, life shard.Life) shard.Event {
		return shard.Event{Seq: seq, Gen: gen, Time: 5, Kind: kind, Key: shard.KeyFromString(k), State: shard.State{Life: life, URL: "x://" + k}}
	}
	base := []shard.Event{of(3, 3, "a", shard.EventRegistered, shard.Registered), of(9, 2, "b", shard.EventFailed, shard.Errored)}
	j, err := journal.NewMemoryAt(12, base)
	if err != nil {
		t.Fatal(err)
	}
	have, at := baseOf(t, j)
	if !slices.Equal(have, base) || at.Seq != 12 || j.Head() != at || j.Horizon() != at {
		t.Errorf("base %+v at %v, head %v, horizon %v", have, at, j.Head(), j.Horizon())
	}
	if _, err := j.Append([]shard.Event{of(1, 1, "c", shard.EventRegistered, shard.Registered)}); !errors.Is(err, journal.ErrOutOfOrder) {
		t.Errorf("an event that is over: %v", err)
	}
	end, err := j.Append([]shard.Event{of(13, 13, "c", shard.EventRegistered, shard.Registered)})
	if err != nil || end.Seq != 13 {
		t.Fatal(end, err)
	}
	if err := j.Replay(11, func(*journal.Batch) error { return nil }); !errors.Is(err, journal.ErrCompacted) {
		t.Errorf("replay from below: %v", err)
	}
	var seqs []uint64
	err = j.Replay(12, func(b *journal.Batch) error {
		for i := range b.Events {
			seqs = append(seqs, b.Events[i].Seq)
		}
		return nil
	})
	if err != nil || !slices.Equal(seqs, []uint64{13}) {
		t.Errorf("replayed %v, %v", seqs, err)
	}

	same, err := journal.NewMemoryAt(12, base)
	if err != nil || same.Head() != at {
		t.Errorf("the same state is at %v, not %v (%v)", same.Head(), at, err)
	}
	changed := slices.Clone(base)
	changed[1].State.Reason = "why"
	for name, other := range map[string]func() (*journal.Memory, error){
		"another event": func() (*journal.Memory, error) { return journal.NewMemoryAt(12, changed) },
		"one less":      func() (*journal.Memory, error) { return journal.NewMemoryAt(12, base[:1]) },
		"none":          func() (*journal.Memory, error) { return journal.NewMemoryAt(12, nil) },
		"another seq":   func() (*journal.Memory, error) { return journal.NewMemoryAt(13, base) },
	} {
		if o, err := other(); err != nil || o.Head().Digest == at.Digest {
			t.Errorf("%s: at %v, as %v (%v)", name, o.Head(), at, err)
		}
	}
	if o, err := journal.NewMemoryAt(0, nil); err != nil || o.Head() != (journal.Position{}) {
		t.Errorf("nothing: %v, %v", o.Head(), err)
	}
	for name, bad := range map[string]shard.Event{
		"beyond":    of(13, 3, "z", shard.EventFailed, shard.Errored),
		"destroyed": of(5, 3, "z", shard.EventDestroyed, shard.None),
		"no life":   of(5, 0, "z", shard.EventFailed, shard.Errored),
	} {
		if _, err := journal.NewMemoryAt(12, append(slices.Clone(base), bad)); !errors.Is(err, shard.ErrBadEvent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
