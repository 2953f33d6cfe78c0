package projection

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// history draws a legal history of a few keys, in batches, as a journal.
func history(t *rapid.T) *journal.Memory {
	j := journal.NewMemory()
	type life struct {
		l   shard.Life
		gen uint64
	}
	shards := map[int]life{}
	seq := uint64(0)
	for range rapid.IntRange(0, 30).Draw(t, "batches") {
		var events []shard.Event
		touched := map[int]bool{}
		for range rapid.IntRange(1, 5).Draw(t, "events") {
			k := rapid.IntRange(0, 7).Draw(t, "key")
			if touched[k] {
				continue
			}
			touched[k] = true
			seq++
			e := shard.Event{Seq: seq, Gen: shards[k].gen, Time: int64(seq), Key: shard.KeyFromString(fmt.Sprint("key-", k))}
			e.State.URL = fmt.Sprint("mem:", k)
			switch l := shards[k].l; {
			case l == shard.None:
				e.Kind, e.State.Life, e.Gen = shard.EventRegistered, shard.Registered, seq
				e.State.Lazy = rapid.Bool().Draw(t, "lazy")
			case rapid.IntRange(0, 4).Draw(t, "end") == 0:
				e.Kind, e.State.Life = shard.EventDestroyed, shard.None
			case l == shard.Registered || l == shard.Recovering:
				e.Kind, e.State.Life = shard.EventIndexed, shard.Available
				e.State.Index.Blocks = seq
			case l == shard.Available:
				e.Kind, e.State.Life, e.State.Reason = shard.EventFailed, shard.Errored, fmt.Sprint("reason ", seq)
			default:
				e.Kind, e.State.Life, e.State.Reason = shard.EventRecovering, shard.Recovering, "again"
			}
			shards[k] = life{e.State.Life, e.Gen}
			events = append(events, e)
		}
		if _, err := j.Append(events); err != nil {
			t.Fatal(err)
		}
	}
	return j
}

// fold is the catalogue as a plain map: the newest event of each key.
func fold(t *rapid.T, j journal.Journal) map[string]shard.Event {
	m := map[string]shard.Event{}
	err := j.Replay(0, func(b *journal.Batch) error {
		for _, e := range b.Events {
			if e.Kind == shard.EventDestroyed {
				delete(m, e.Key.String())
			} else {
				m[e.Key.String()] = e
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func apply(t *rapid.T, c *Catalogue, j journal.Journal) {
	if err := j.Replay(0, c.Apply); err != nil {
		t.Fatal(err)
	}
}

// Proves G4, G5, I4: applied, applied twice or loaded, a catalogue is the fold of
// the journal, byte for byte.
func TestCatalogueIsFold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j := history(t)
		want := fold(t, j)
		applied, loaded := NewCatalogue(), NewCatalogue()
		apply(t, applied, j)
		apply(t, applied, j) // twice equals once
		if _, err := loaded.Load(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]*Catalogue{"applied": applied, "loaded": loaded} {
			s := c.Snapshot()
			if s.Position() != j.Head() || c.Position() != j.Head() {
				t.Fatalf("%s: position %v, head %v", name, s.Position(), j.Head())
			}
			if s.Digest() != applied.Snapshot().Digest() {
				t.Fatalf("%s: another digest", name)
			}
			if s.Len() != len(want) {
				t.Fatalf("%s: %d shards, want %d", name, s.Len(), len(want))
			}
			byLife := map[shard.Life]int{}
			for key, e := range want {
				byLife[e.State.Life]++
				r := c.Get(shard.KeyFromString(key))
				if r == nil {
					t.Fatalf("%s: %s is missing", name, key)
				}
				if diff := cmp.Diff(e.State, r.State()); diff != "" || r.Gen() != e.Gen || r.Seq() != e.Seq || r.Time() != e.Time || r.Key() != e.Key {
					t.Fatalf("%s: %s: %s", name, key, diff)
				}
			}
			for l := shard.None; l <= shard.Recovering; l++ {
				if s.Count(l) != byLife[l] {
					t.Fatalf("%s: %d are %s, want %d", name, s.Count(l), l, byLife[l])
				}
			}
		}
	})
}

// Proves G4: a snapshot does not change with the catalogue.
func TestSnapshotStays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j := history(t)
		c := NewCatalogue()
		var snaps []*Snapshot
		var digests [][32]byte
		err := j.Replay(0, func(b *journal.Batch) error {
			if err := c.Apply(b); err != nil {
				return err
			}
			s := c.Snapshot()
			snaps, digests = append(snaps, s), append(digests, s.Digest())
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range snaps {
			if s.Digest() != digests[i] {
				t.Fatalf("snapshot %d has changed", i)
			}
		}
	})
}

// Proves N1, G4: of a batch with an event that cannot follow, nothing is shown, and
// Check says so before.
func TestIllegalBatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j := history(t)
		c := NewCatalogue()
		apply(t, c, j)
		before := c.Snapshot().Digest()
		seq := j.Head().Seq
		fresh := shard.Event{Seq: seq + 1, Gen: seq + 1, Kind: shard.EventRegistered, Key: shard.KeyFromString("new"), State: shard.State{Life: shard.Registered}}
		known := fresh
		known.Seq, known.Gen, known.Key = seq+2, seq+2, shard.KeyFromString("key-0")
		if c.Get(known.Key) == nil {
			known.Kind, known.Gen, known.State.Life = shard.EventIndexed, 1, shard.Available
		}
		b := &journal.Batch{Events: []shard.Event{fresh, known}, End: journal.Position{Seq: seq + 2}}
		if c.Check(b.Events) == nil || c.Apply(b) == nil {
			t.Fatal("an illegal event passes")
		}
		if c.Snapshot().Digest() != before || c.Position() != j.Head() || c.Get(fresh.Key) != nil {
			t.Fatal("half a batch is shown")
		}
		if err := c.Check(b.Events[:1]); err != nil {
			t.Fatal(err)
		}
		gap := &journal.Batch{Events: []shard.Event{known}, End: journal.Position{Seq: seq + 2}}
		if c.Apply(gap) == nil {
			t.Fatal("a gap passes")
		}
	})
}

// TestFrom begins a walk after each key.
func TestFrom(t *testing.T) {
	c := NewCatalogue()
	var want []string
	for i := range 100 {
		e := shard.Event{Seq: uint64(i + 1), Gen: uint64(i + 1), Kind: shard.EventRegistered, Key: shard.KeyFromString(fmt.Sprint("k", i)), State: shard.State{Life: shard.Registered}}
		if err := c.Apply(&journal.Batch{Events: []shard.Event{e}, End: journal.Position{Seq: e.Seq}}); err != nil {
			t.Fatal(err)
		}
	}
	s := c.Snapshot()
	s.All(func(r *Record) bool { want = append(want, r.Key().String()); return true })
	if len(want) != 100 {
		t.Fatalf("%d of 100 are visited", len(want))
	}
	for i, k := range want {
		var rest []string
		s.From(k, func(r *Record) bool { rest = append(rest, r.Key().String()); return len(rest) < 7 })
		if !slices.Equal(rest, want[i+1:min(i+8, 100)]) {
			t.Fatalf("after %s come %v", k, rest)
		}
	}
}
