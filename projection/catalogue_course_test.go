package projection

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// registration is what registering shard i of many is in the journal: a key of 60 bytes
// and a URL of 60.
func registration(seq uint64, i int) shard.Event {
	return shard.Event{
		Seq: seq, Gen: seq, Time: 1_795_000_000_000_000_000 + int64(seq), Kind: shard.EventRegistered,
		Key:   shard.KeyFromString(fmt.Sprintf("baga6ea4seaqao7s73y24kcutaosvacpdjgfe5pw76ooefny%012d", i)),
		State: shard.State{Life: shard.Registered, Lazy: true, URL: fmt.Sprintf("file:///var/lib/dagstore/pieces/%024d.car", i)},
	}
}

// course returns a legal history of many shards, in batches of up to batch events,
// which is the same for the same seed. Keys are taken at random; every third event of
// one ends its life.
func course(seed uint64, keys, events, batch int) (batches [][]shard.Event) {
	rng := rand.New(rand.NewPCG(seed, 0))
	now := make([]shard.Event, keys)
	var b []shard.Event
	touched := map[int]bool{}
	for seq := uint64(1); seq <= uint64(events); {
		k := rng.IntN(keys)
		if touched[k] {
			k = -1
		} else {
			touched[k] = true
			e := after(&now[k], rng, seq, k)
			now[k] = e
			b = append(b, e)
			seq++
		}
		if len(b) > 0 && (k < 0 || len(b) == batch || seq > uint64(events)) {
			batches, b = append(batches, b), nil
			clear(touched)
		}
	}
	return batches
}

// after draws an event that may follow e.
func after(e *shard.Event, rng *rand.Rand, seq uint64, k int) shard.Event {
	next := shard.Event{Seq: seq, Gen: e.Gen, Time: int64(seq) * 7, Key: shard.KeyFromString(fmt.Sprint("course-", k))}
	st := &next.State
	st.URL, st.Lazy = fmt.Sprint("mem:", k%17), k%2 == 0
	if k%5 == 0 {
		st.Transient = fmt.Sprint("/data/", k)
	}
	switch {
	case e.State.Life == shard.None:
		next.Kind, st.Life, next.Gen = shard.EventRegistered, shard.Registered, seq
	case rng.IntN(3) == 0:
		next.Kind, st.Life = shard.EventDestroyed, shard.None
	case e.State.Life == shard.Registered || e.State.Life == shard.Recovering:
		next.Kind, st.Life = shard.EventIndexed, shard.Available
		st.Index.Blocks, st.Index.Digest[0] = seq, byte(k)
	case e.State.Life == shard.Available:
		next.Kind, st.Life, st.Reason = shard.EventFailed, shard.Errored, fmt.Sprint("reason ", seq)
	default:
		next.Kind, st.Life, st.Reason = shard.EventRecovering, shard.Recovering, "again"
	}
	return next
}

func hashOfKey(key string) uint64 { return xxhash.Sum64String(key) }

// mustApply applies events as the batch that follows.
func mustApply(tb testing.TB, c *Catalogue, events []shard.Event) {
	tb.Helper()
	b := journal.Batch{Events: events, End: journal.Position{Seq: c.Position().Seq + uint64(len(events))}}
	if err := c.Apply(&b); err != nil {
		tb.Fatal(err)
	}
}

func memoryOf(tb testing.TB, batches [][]shard.Event) *journal.Memory {
	tb.Helper()
	j := journal.NewMemory()
	for _, b := range batches {
		if _, err := j.Append(b); err != nil {
			tb.Fatal(err)
		}
	}
	return j
}
