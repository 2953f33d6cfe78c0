package journal

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/shard"
)

// longEvents returns n events of about size bytes.
func longEvents(first uint64, n, size int) []shard.Event {
	var events []shard.Event
	for i := range n {
		e := testEvents(first + uint64(i))[0]
		e.State.URL = fmt.Sprintf("file:///%0*d", size, first+uint64(i))
		events = append(events, e)
	}
	return events
}

type replayed struct {
	end    Position
	events int
}

func replayFrom(t *rapid.T, f *files, seq uint64) (all []replayed) {
	err := f.replay(seq, func(b *Batch) error {
		for i := range b.Events {
			if want := b.End.Seq - uint64(len(b.Events)) + 1 + uint64(i); b.Events[i].Seq != want {
				t.Fatalf("Replay(%d): seq %d where %d comes next", seq, b.Events[i].Seq, want)
			}
		}
		all = append(all, replayed{b.End, len(b.Events)})
		return nil
	})
	if err != nil {
		t.Fatalf("Replay(%d): %v", seq, err)
	}
	return all
}

// TestSeekPoints: a replay and a position from any seq are the same with the seek
// points of a writer, with those that opening learns, and with none; points are few,
// and lie where frames begin. Proves G5 (journal), I3.
func TestSeekPoints(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		sim := fsio.NewSim(1)
		opts := FileOptions{SegmentSize: int64(rapid.IntRange(1, 5).Draw(t, "segment")) << 19}
		written, err := OpenFile(sim, "j", opts)
		if err != nil {
			t.Fatal(err)
		}
		var ends []Position
		for range rapid.IntRange(1, 3).Draw(t, "bursts") {
			n := rapid.IntRange(1, 300).Draw(t, "batches")
			size := rapid.SampledFrom([]int{10, 1000, 20_000, 200_000}).Draw(t, "size")
			for range min(n, 600_000/size+1) {
				end, err := written.Append(longEvents(written.Head().Seq+1, rapid.IntRange(1, 3).Draw(t, "n"), size))
				if err != nil {
					t.Fatal(err)
				}
				ends = append(ends, end)
			}
		}
		opened, err := OpenReader(sim, "j")
		if err != nil {
			t.Fatal(err)
		}
		bare := &files{fsys: sim, dir: "j"}
		written.mu.Lock()
		bare.mu.extent = written.mu.extent
		bare.mu.points = nil
		written.mu.Unlock()
		checkPoints(t, &written.files)
		checkPoints(t, &opened.files)
		for range 6 {
			seq := rapid.Uint64Range(0, written.Head().Seq+1).Draw(t, "seq")
			want := replayFrom(t, bare, seq)
			bare.mu.points = nil // which the replay taught it
			for i, f := range []*files{&written.files, &opened.files} {
				if got := replayFrom(t, f, seq); !slices.Equal(got, want) {
					t.Fatalf("Replay(%d) with the points of %d gives %d batches, without %d", seq, i, len(got), len(want))
				}
			}
			i, _ := slices.BinarySearchFunc(ends, seq, func(p Position, seq uint64) int {
				if p.Seq < seq {
					return -1
				}
				return 1
			})
			for k, f := range []*files{&written.files, &opened.files, bare} {
				pos, err := f.positionAt(seq)
				switch {
				case seq == 0 && (err != nil || pos != Position{}),
					seq > written.Head().Seq && err == nil,
					seq > 0 && seq <= written.Head().Seq && (err != nil || pos != ends[i]):
					t.Fatalf("PositionAt(%d) with the points of %d = %v, %v", seq, k, pos, err)
				}
			}
		}
		_, _ = written.Close(), opened.Close()
	})
}

func checkPoints(t *rapid.T, f *files) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for number, p := range f.mu.points {
		size := int64(0)
		for _, s := range append(f.mu.sealed[:len(f.mu.sealed):len(f.mu.sealed)], sealedSegment{segment: f.mu.last, size: f.mu.end}) {
			if s.number == number {
				size = s.size
			}
		}
		if size == 0 {
			t.Fatalf("points of segment %d, which is not there", number)
		}
		if most := int(size/pointSpacing) + 2*densePoints; len(p.all) > most || len(p.all)-p.sparse >= 2*densePoints {
			t.Fatalf("%d points, %d of them sparse, in %d bytes", len(p.all), p.sparse, size)
		}
		last := seekPoint{off: segmentHeaderSize}
		for i, pt := range p.all {
			if pt.off <= last.off || pt.off > size || pt.before.Seq <= last.before.Seq || i < p.sparse && pt.off-last.off < pointSpacing {
				t.Fatalf("point %d of %d is at %d, the one before at %d", i, len(p.all), pt.off, last.off)
			}
			last = pt
		}
	}
}

// TestSmallReplayReadsLittle: a replay of the newest batches reads what they take and
// the segment's header, not the segment, however the journal came to know it.
func TestSmallReplayReadsLittle(t *testing.T) {
	sim := fsio.NewSim(1)
	j, err := OpenFile(sim, "j", FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		if _, err := j.Append(longEvents(j.Head().Seq+1, 1, 3000)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(f *files, seq uint64) (n int64) {
		sim.ClearOps()
		if err := f.replay(seq, func(*Batch) error { return nil }); err != nil {
			t.Fatal(err)
		}
		for _, op := range sim.Ops() {
			if op.Kind == fsio.OpRead {
				n += op.Len
			}
		}
		return n
	}
	if n := read(&j.files, j.Head().Seq-3); n > 3*4096 {
		t.Errorf("the newest three batches of 3 KB: %d bytes were read", n)
	}
	if n := read(&j.files, j.Head().Seq); n != 0 {
		t.Errorf("nothing new: %d bytes were read", n)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j, err = OpenFile(sim, "j", FileOptions{}); err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if n := read(&j.files, j.Head().Seq-3); n > 3*4096+2*pointSpacing {
		t.Errorf("the newest three batches after opening: %d bytes were read", n)
	}
}

// TestPoints: what the points alone tell of a position is exact, for many more batches
// than have points of their own, and near gives a place at or before the seq.
func TestPoints(t *testing.T) {
	var p points
	s := segment{number: 1}
	off, ends := int64(segmentHeaderSize), []uint64{0}
	told := 0
	for i := range 4 * densePoints {
		off += 800
		ends = append(ends, ends[i]+uint64(1+i%3))
		p.add(seekPoint{off: off, before: Position{Seq: ends[i+1]}})
		if i%100 != 99 && i != 2*densePoints {
			continue
		}
		next := 0
		for seq := uint64(1); seq <= ends[i+1]; seq++ {
			if seq > ends[next] {
				next++
			}
			if pos, ok := p.at(seq); ok {
				if told++; pos.Seq != ends[next] {
					t.Fatalf("after %d batches, %d is said to belong to the batch that ends at %d, not %d", i+1, seq, pos.Seq, ends[next])
				}
			}
			if pt := p.near(&s, seq); pt.before.Seq > seq {
				t.Fatalf("near(%d) is at %d", seq, pt.before.Seq)
			}
		}
	}
	if told < 10*densePoints {
		t.Errorf("only %d positions were told", told)
	}
	if p.sparse == 0 || len(p.all) >= 3*densePoints {
		t.Errorf("%d points, %d sparse", len(p.all), p.sparse)
	}
}
