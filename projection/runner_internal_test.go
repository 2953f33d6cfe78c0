package projection

import (
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/journal"
)

// Proves G10: whoever is woken is exactly who waits for the position or less, whatever
// came and went before.
func TestWaitHeap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := &view{}
		waiting := map[*waiter]bool{}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				seq := rapid.Uint64Range(0, 40).Draw(t, "shown")
				v.wakeLocked(seq)
				for w := range waiting {
					woken := false
					select {
					case <-w.ready:
						woken = true
					default:
					}
					if woken != (w.seq <= seq) || woken != (w.place < 0) {
						t.Fatalf("%d is shown, %d is woken: %v", seq, w.seq, woken)
					}
					if woken {
						delete(waiting, w)
					}
				}
			case 1:
				all := slices.SortedFunc(maps.Keys(waiting), func(a, b *waiter) int { return a.place - b.place })
				if len(all) > 0 {
					w := rapid.SampledFrom(all).Draw(t, "gives up")
					v.waiters.remove(w)
					delete(waiting, w)
				}
			default:
				w := &waiter{seq: rapid.Uint64Range(0, 40).Draw(t, "seq"), ready: make(chan struct{})}
				v.waiters.push(w)
				waiting[w] = true
			}
			for i, w := range v.waiters {
				if w.place != i || i > 0 && v.waiters[(i-1)/2].seq > w.seq || !waiting[w] {
					t.Fatalf("the heap is none at %d", i)
				}
			}
			if len(v.waiters) != len(waiting) {
				t.Fatalf("%d in the heap, %d wait", len(v.waiters), len(waiting))
			}
		}
	})
}

// Proves G9, I15: however much is forgotten, what is told of an event's age is never
// less than its age, what is recent is exact, and mustShow agrees with since.
func TestHeadTimes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h headTimes
		start := time.Unix(1000, 0)
		now, seq := start, rapid.Uint64Range(0, 5).Draw(t, "start")
		first := seq
		h.add(seq, now)
		var ends []uint64
		var at []time.Time
		step := rapid.IntRange(1, 5).Draw(t, "step")
		for range rapid.IntRange(0, 4*maxHeadTimes).Draw(t, "batches") {
			seq += uint64(step)
			now = now.Add(time.Duration(step) * time.Second)
			h.add(seq, now)
			ends, at = append(ends, seq), append(at, now)
		}
		if len(h.at) > maxHeadTimes {
			t.Fatalf("%d times", len(h.at))
		}
		if _, known := h.since(first); known {
			t.Fatal("the age of what was there at the start is known")
		}
		for i := range ends {
			got, known := h.since(ends[i])
			if !known || got.After(at[i]) || got.Before(start) {
				t.Fatalf("event %d is from %v, told %v, %v", ends[i], at[i], got, known)
			}
			if i >= len(ends)-maxHeadTimes/2 && got != at[i] {
				t.Fatalf("event %d, recent, is from %v, told %v", ends[i], at[i], got)
			}
		}
		if got, known := h.since(seq + 1); !got.IsZero() || !known {
			t.Fatal("the future has an age")
		}
		d := time.Duration(rapid.IntRange(0, 2000).Draw(t, "within")) * time.Second
		must := h.mustShow(now, d)
		// Whoever shows must is within d, and nobody who shows less is.
		if since, known := h.since(must + 1); !since.IsZero() && (!known || now.Sub(since) > d) {
			t.Fatalf("%d is to be shown for %s, and the next is from %v", must, d, since)
		}
		if since, known := h.since(must); must > first && known && now.Sub(since) <= d {
			t.Fatalf("%d is to be shown for %s, and is itself from %v", must, d, since)
		}
	})
}

// Proves G11: of the positions that were added the newest are known, and no others.
func TestPositionRing(t *testing.T) {
	var p positionRing
	for i := uint64(1); i <= 2*recentPositions+77; i++ {
		p.add(journal.Position{Seq: 3 * i, Digest: [32]byte{byte(i), byte(i >> 8)}})
		for _, back := range []uint64{0, 1, 77, recentPositions - 1, recentPositions, recentPositions + 1} {
			if back >= i {
				continue
			}
			k := i - back
			got, ok := p.at(3 * k)
			if want := back < recentPositions; ok != want || ok && got.Digest != [32]byte{byte(k), byte(k >> 8)} {
				t.Fatalf("%d of %d: %v, %v", k, i, got, ok)
			}
			if _, ok := p.at(3*k + 1); ok {
				t.Fatal("a position that was not added is known")
			}
		}
	}
}

// Proves G6: names of checkpoints say which view they are of, dashes and all.
func TestCheckpointName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		view, seq := rapid.StringMatching(`[a-z0-9-]{1,64}`).Draw(t, "view"), rapid.Uint64().Draw(t, "seq")
		got, gotSeq, ok := parseCheckpointName(checkpointName(view, seq))
		if !ok || got != view || gotSeq != seq {
			t.Fatalf("%q, %d, %v", got, gotSeq, ok)
		}
	})
	for _, name := range []string{
		"", ".ckpt", "-0000000000000001.ckpt", "a-000000000000001.ckpt", "a-000000000000000G.ckpt",
		"a-00000000000000AB.ckpt", "a-0000000000000001.ckpt.tmp-00000000", "a+000000000000001.ckpt",
	} {
		if _, _, ok := parseCheckpointName(name); ok {
			t.Errorf("%q is a checkpoint", name)
		}
	}
}
