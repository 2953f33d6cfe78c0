package journal_test

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
)

// onlyRefused opens the journal on sim and expects a refusal that changed nothing.
func onlyRefused(t *testing.T, sim *fsio.Sim, what string) *journal.DamageError {
	t.Helper()
	before := sim.Tree()
	o := inspect(t, sim, what)
	if o.damage == nil {
		t.Fatalf("%s: accepted, with %d batches", what, len(o.batches))
	}
	if after := sim.Tree(); after != before {
		t.Fatalf("%s: refused, and changed:\n%s\nwas\n%s", what, after, before)
	}
	return o.damage
}

// TestHeadIsAWitness: whatever takes acknowledged events from the end of the last
// segment, HEAD says that they were there, and the journal is refused as it is. Without a
// HEAD, or with one that is behind, a tear is a tear. Proves C10, C1, A6 (journal).
func TestHeadIsAWitness(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{1 << 10, 1 << 20} {
		for _, closed := range []bool{true, false} {
			sim := fsio.NewSim(1)
			opts := journal.FileOptions{SegmentSize: size, Preallocate: 512}
			j, err := journal.OpenFile(sim, dir, opts)
			must(t, err)
			m := newScript()
			for range 12 {
				_, err := j.Append(m.batch(1))
				must(t, err)
			}
			if closed {
				must(t, j.Close())
			}
			sim = sim.Kill()
			segments := segmentsOf(t, sim)
			last := segments[len(segments)-1]
			whole := contents(t, sim, last)
			end := len(strings.TrimRight(string(whole), "\x00"))
			wounds := map[string]func(sim *fsio.Sim){
				"removed":       func(sim *fsio.Sim) { must(t, sim.Remove(last)) },
				"emptied":       func(sim *fsio.Sim) { overwrite(t, sim, last, nil) },
				"header cut":    func(sim *fsio.Sim) { overwrite(t, sim, last, whole[:40]) },
				"header only":   func(sim *fsio.Sim) { overwrite(t, sim, last, whole[:80]) },
				"all but HEAD":  func(sim *fsio.Sim) { removeAll(t, sim, segments) },
				"second half 0": func(sim *fsio.Sim) { overwrite(t, sim, last, zeroed(whole, (80+end)/2, len(whole))) },
				"all 0":         func(sim *fsio.Sim) { overwrite(t, sim, last, zeroed(whole, 80, len(whole))) },
				"last frame 0":  func(sim *fsio.Sim) { overwrite(t, sim, last, zeroed(whole, end-180, len(whole))) },
			}
			rng := rand.New(rand.NewPCG(1, uint64(size)))
			for i := range 300 {
				at := 80 + rng.IntN(end-180-80)
				n := 1 + rng.IntN(100)
				name := []string{"insertion", "deletion", "splice", "zeros", "cut"}[i%5]
				wounds[name+strings.Repeat("'", i/5)] = func(sim *fsio.Sim) {
					b := slices.Clone(whole)
					switch name {
					case "insertion":
						b = slices.Insert(b, at, make([]byte, n)...)
						b[at] = 1
					case "deletion":
						b = slices.Delete(b, at, at+n)
					case "splice":
						b = append(b[:at:at], b[max(80, at-n):]...)
					case "zeros":
						b = zeroed(b, at, end)
					case "cut":
						b = b[:at]
					}
					overwrite(t, sim, last, b)
				}
			}
			for what, wound := range wounds {
				wounded := sim.Clone(2)
				wound(wounded)
				onlyRefused(t, wounded, what)
			}
			// All of it gone but HEAD: the error says what HEAD says.
			wounded := sim.Clone(2)
			removeAll(t, wounded, segments)
			_, err = journal.OpenFile(wounded, dir, opts)
			var lost *journal.LostError
			if !errors.As(err, &lost) || lost.Head != (journal.Position{}) || len(lost.Witnesses) != 1 || !strings.Contains(err.Error(), "journal/HEAD says that 12@") {
				t.Errorf("without segments: %v", err)
			}
			// And a HEAD that is gone, cut, rotten or behind takes nothing away.
			head := filepath.Join(dir, "HEAD")
			for what, b := range map[string][]byte{"cut": contents(t, sim, head)[:100], "empty": {}, "rotten": zeroed(contents(t, sim, head), 50, 52)} {
				wounded := sim.Clone(2)
				overwrite(t, wounded, head, b)
				o := inspect(t, wounded, what)
				if o.damage != nil || len(o.batches) != 12 {
					t.Errorf("HEAD %s: %d batches, %v", what, len(o.batches), o.damage)
				}
			}
		}
	}
}

func removeAll(t *testing.T, sim *fsio.Sim, paths []string) {
	t.Helper()
	for _, p := range paths {
		must(t, sim.Remove(p))
	}
}

// zeroed returns b with zeros in [from, to).
func zeroed(b []byte, from, to int) []byte {
	b = slices.Clone(b)
	clear(b[min(from, len(b)):min(to, len(b))])
	return b
}

// TestForeignHead: a HEAD of another journal, or of another segment, is not this one's.
// Proves C10, A6 (journal).
func TestForeignHead(t *testing.T) {
	s, other := newSpecimen(t, true), fsio.NewSim(3)
	j := mustOpen(t, other)
	for _, n := range specimenSizes {
		events := journaltest.Events(j.Head().Seq+1, n)
		events[0].Time++
		_, err := j.Append(events)
		must(t, err)
	}
	must(t, j.Close())
	head := filepath.Join(dir, "HEAD")
	sim := s.sim.Clone(2)
	overwrite(t, sim, head, contents(t, other, head))
	if d := onlyRefused(t, sim, "HEAD of another journal"); !strings.Contains(d.What, "which is not in this journal") {
		t.Errorf("%v", d)
	}
	// The same events in other segments: every position is right, the segment is not.
	same := newSpecimenOn(t, fsio.NewSim(4), true)
	sim = s.sim.Clone(2)
	overwrite(t, sim, head, contents(t, same.sim, head))
	if d := onlyRefused(t, sim, "HEAD of other segments"); !strings.Contains(d.What, "another segment") {
		t.Errorf("%v", d)
	}
}

// TestWitnesses: what others say was durable has to be there, position or number, and
// is not asked for where it was compacted. Proves C10, A6 (journal).
func TestWitnesses(t *testing.T) {
	sim := fsio.NewSim(1)
	j := mustOpen(t, sim)
	m := newScript()
	var ends []journal.Position
	for range 12 {
		end, err := j.Append(m.batch(2))
		must(t, err)
		ends = append(ends, end)
	}
	batches := journaltest.Collect(t, j, 0)
	must(t, j.Compact(t.Context(), ends[5], journaltest.StateAt(batches, ends[5].Seq).Emit))
	must(t, j.Close())
	wrong := ends[8]
	wrong.Digest[0]++
	old := ends[2]
	old.Digest[0]++
	beyond := journal.Position{Seq: 25, Digest: ends[0].Digest}
	for _, c := range []struct {
		name string
		at   journal.Position
		lost bool
	}{
		{"the head", ends[11], false},
		{"an older batch", ends[8], false},
		{"a number", journal.Position{Seq: 24}, false},
		{"nothing", journal.Position{}, false},
		{"the horizon", ends[5], false},
		{"below the horizon", old, false},
		{"a number beyond", journal.Position{Seq: 25}, true},
		{"a position beyond", beyond, true},
		{"another course", wrong, true},
		{"inside a batch", journal.Position{Seq: ends[8].Seq - 1, Digest: ends[8].Digest}, true},
	} {
		sim := sim.Clone(1)
		before := sim.Tree()
		j, err := journal.OpenFileChecked(sim, dir, small, func(j *journal.File) error {
			if got := journaltest.Collect(t, j, j.Horizon().Seq); len(got) != 6 {
				t.Errorf("the check can read %d batches", len(got))
			}
			return journal.CheckWitnesses(j, []journal.Witness{{By: "the test", At: c.at}})
		})
		var lost *journal.LostError
		if got := errors.As(err, &lost); got != c.lost || err != nil && !c.lost {
			t.Fatalf("%s: %v", c.name, err)
		}
		if c.lost && (len(lost.Witnesses) != 1 || lost.Head != ends[11] || !strings.Contains(err.Error(), "the test says")) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.lost && sim.Tree() != before {
			t.Errorf("%s: refused, and something was written", c.name)
		}
		if j == nil {
			continue
		}
		if err := journal.CheckWitnesses(j, []journal.Witness{{By: "a", At: beyond}, {By: "b", At: wrong}, {By: "c", At: ends[9]}}); !errors.As(err, &lost) || len(lost.Witnesses) != 2 {
			t.Errorf("CheckWitnesses = %v", err)
		}
		must(t, j.Close())
	}
	// HEAD and the others are named together.
	cut := sim.Clone(1)
	last := segmentsOf(t, cut)
	overwrite(t, cut, last[len(last)-1], contents(t, cut, last[len(last)-1])[:80])
	_, err := journal.OpenFileChecked(cut, dir, small, func(j *journal.File) error {
		return journal.CheckWitnesses(j, []journal.Witness{{By: "the test", At: beyond}})
	})
	if lost := new(journal.LostError); !errors.As(err, &lost) || len(lost.Witnesses) != 2 || lost.Offset != 80 {
		t.Errorf("HEAD and another: %v", err)
	}
	// A journal that is not there yet.
	empty := fsio.NewSim(1)
	_, err = journal.OpenFileChecked(empty, dir, small, func(j *journal.File) error {
		return journal.CheckWitnesses(j, []journal.Witness{{By: "index/", At: journal.Position{Seq: 3}}})
	})
	if lost := new(journal.LostError); !errors.As(err, &lost) || !strings.Contains(err.Error(), "index/ says that event 3 was durable") {
		t.Errorf("no journal: %v", err)
	}
	if has, err := journal.HasFiles(empty, dir); has || err != nil {
		t.Errorf("HasFiles = %v, %v", has, err)
	}
	if has, err := journal.HasFiles(sim, dir); !has || err != nil {
		t.Errorf("HasFiles = %v, %v", has, err)
	}
	if _, err = journal.OpenFileChecked(empty, dir, small, func(*journal.File) error { return syscall.EIO }); !errors.Is(err, syscall.EIO) {
		t.Errorf("witnesses that cannot be read: %v", err)
	}
}
