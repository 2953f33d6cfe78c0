package projection

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sort"
	"testing"

	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// sound holds a trie to its description and returns its records by key. hashes are
// those of the keys, if they are not the usual ones.
func sound(r *root) (map[string]string, error) {
	got := map[string]string{}
	var last *slot
	var check func(n *node, shift int, prefix uint64) (int, error)
	check = func(n *node, shift int, prefix uint64) (count int, err error) {
		above := shift + kidBits
		switch {
		case n == nil:
			return 0, nil
		case n.kids == nil && len(n.slots) == 0, n.kids != nil && n.slots != nil:
			return 0, fmt.Errorf("a leaf of %d slots, kids %v", len(n.slots), n.kids)
		case n.kids == nil && len(n.slots) > maxLeaf && shift >= 0:
			return 0, fmt.Errorf("a leaf of %d", len(n.slots))
		}
		for i := range n.slots {
			s := &n.slots[i]
			if s.hash>>above != prefix {
				return 0, fmt.Errorf("%x is below %x", s.hash, prefix)
			}
			if last != nil && last.compare(s.hash, s.rec.key()) >= 0 {
				return 0, fmt.Errorf("%x %q follows %x %q", s.hash, s.rec.key(), last.hash, last.rec.key())
			}
			if r.find(s.hash, s.rec.key()) != &s.rec {
				return 0, fmt.Errorf("%x %q is not found", s.hash, s.rec.key())
			}
			last = s
			got[s.rec.key()] = s.rec.text
		}
		if n.kids == nil {
			return len(n.slots), nil
		}
		for i, kid := range n.kids {
			c, err := check(kid, shift-kidBits, prefix<<kidBits|uint64(i))
			if err != nil {
				return 0, err
			}
			count += c
		}
		if count != n.count || count <= minInner {
			return 0, fmt.Errorf("an inner node of %d slots says %d", count, n.count)
		}
		return count, nil
	}
	for i, n := range r {
		if _, err := check(n, firstShift, uint64(i)); err != nil {
			return nil, err
		}
	}
	return got, nil
}

// TestTrie changes a trie by single records and by sorted runs, keeps what it was after
// each epoch, and finds that unchanged at the end. Proves G4, G8 (published states are
// complete and never change), whatever the hashes.
func TestTrie(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type epoch struct {
			root root
			want map[string]string
		}
		var now epoch
		now.want = map[string]string{}
		var kept []epoch
		seq := uint64(0)
		keys := rapid.SampledFrom([]int{3, 40, 400, 2000}).Draw(t, "keys")
		// Hashes that lack some bits make deep tries, long leaves and collisions.
		mask := rapid.SampledFrom([]uint64{^uint64(0), 0xf0f0 << 48, 0xff<<48 | 0xff, 0x01f0 << 48, 1, 0}).Draw(t, "mask")
		hashOf := func(key string) uint64 { return hashOfKey(key) & mask }
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		for e := range uint64(8) {
			w := loadWorker{writer: writer{epoch: e, root: &now.root}}
			var chunk []byte
			merge := rapid.Bool().Draw(t, "merge")
			drain := rapid.IntRange(0, 2).Draw(t, "drain") == 0
			remove := rapid.IntRange(0, 11).Draw(t, "remove")
			for range rng.IntN(2 * keys) {
				k := rng.IntN(keys)
				key := fmt.Sprintf("%0*d", 1+k%9, k)
				if _, known := now.want[key]; drain && !known {
					continue
				}
				seq++
				ev := shard.Event{Seq: seq, Gen: seq, Kind: shard.EventRegistered, Key: shard.KeyFromString(key), State: shard.State{Life: shard.Registered}}
				old, known := now.want[key]
				switch {
				case known && (drain || k%11 < remove):
					ev.Gen, ev.Kind, ev.State.Life = le64(old[8:]), shard.EventDestroyed, shard.None
				case known:
					ev.Gen, ev.Kind, ev.State.Life = le64(old[8:]), shard.EventRecovering, shard.Recovering
				}
				text, err := appendRecord(nil, &ev)
				if err != nil {
					t.Fatal(err)
				}
				if merge {
					chunk = binary.LittleEndian.AppendUint64(chunk, hashOf(key))
					chunk = binary.LittleEndian.AppendUint32(chunk, uint32(len(text)))
					chunk = append(chunk, text...)
				}
				switch {
				case ev.Kind == shard.EventDestroyed:
					delete(now.want, key)
					if !merge {
						w.remove(hashOf(key), key)
					}
				default:
					now.want[key] = string(text)
					if !merge {
						w.put(hashOf(key), Record{string(text)})
					}
				}
			}
			w.fold(chunkOf(chunk), new(loader))
			if w.err != nil {
				t.Fatal(w.err)
			}
			kept = append(kept, epoch{now.root, maps.Clone(now.want)})
		}
		for i := range kept {
			got, err := sound(&kept[i].root)
			if err != nil {
				t.Fatalf("epoch %d: %v", i, err)
			}
			if !maps.Equal(got, kept[i].want) {
				t.Fatalf("epoch %d: %d keys, want %d", i, len(got), len(kept[i].want))
			}
		}
	})
}

func chunkOf(data []byte) chunk { return chunk{data: data} }

// TestFromWithin begins walks in a trie with every kind of node, at keys that are there
// and at keys that are not.
func TestFromWithin(t *testing.T) {
	c := NewCatalogue()
	batches := course(3, 24_000, 30_000, 100)
	for _, b := range batches {
		mustApply(t, c, b)
	}
	s := c.Snapshot()
	var all []slot
	s.slots(func(sl *slot) bool { all = append(all, *sl); return true })
	for i := range 2000 {
		key := fmt.Sprint("course-", i*12)
		hash := hashOfKey(key)
		n := sort.Search(len(all), func(i int) bool { return all[i].compare(hash, key) > 0 })
		var got, want []string
		s.From(key, func(r *Record) bool { got = append(got, r.key()); return len(got) < 40 })
		for j := n; j < min(n+40, len(all)); j++ {
			want = append(want, all[j].rec.key())
		}
		if !slices.Equal(got, want) {
			t.Fatalf("after %s come %v, want %v", key, got, want)
		}
	}
}

// TestApplyAllocates holds what a batch costs to a bound that does not grow with the
// catalogue. Proves G8 (publishing takes the time of a batch).
func TestApplyAllocates(t *testing.T) {
	for _, n := range []int{1000, 30_000} {
		c := NewCatalogue()
		var events []shard.Event
		for i := range n {
			events = append(events, registration(uint64(i+1), i))
		}
		mustApply(t, c, events)
		const batches = 500
		seq := uint64(n)
		var b journal.Batch
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range batches {
			seq++
			b.Events, b.End.Seq = append(b.Events[:0], registration(seq, int(seq))), seq
			if err := c.Apply(&b); err != nil {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		if bytes := (after.TotalAlloc - before.TotalAlloc) / batches; bytes > 5000 {
			t.Errorf("a batch of one event allocates %d bytes at %d shards", bytes, n)
		}
	}
}
