package main

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dagstore/dagstore/index/toplevel"
)

// TestPageIsCurrent holds the tables of docs/SCALE.md to the planner and the format.
func TestPageIsCurrent(t *testing.T) {
	got, err := os.ReadFile(filepath.Join("../..", filepath.FromSlash(page)))
	if err != nil {
		t.Fatal(err)
	}
	want, err := replace(got, tables())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(bytes.ReplaceAll(got, []byte("\r\n"), []byte("\n")))); d != "" {
		t.Errorf("%s is stale; run `go run ./internal/scale -write` in the root of the module and read the diff (-want +got):\n%s", page, d)
	}
}

// TestRunWritesThePage: what is around the tables stays, and a page without marks is
// left alone.
func TestRunWritesThePage(t *testing.T) {
	root := t.TempDir()
	name := filepath.Join(root, filepath.FromSlash(page))
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		before, after string
		ok            bool
	}{
		{"before\r\n" + tablesBegin + "stale\n" + tablesEnd + "after\n", "before\n" + tablesBegin + string(tables()) + tablesEnd + "after\n", true},
		{"before\n" + tablesEnd + tablesBegin, "before\n" + tablesEnd + tablesBegin, false},
		{"before\n", "before\n", false},
	} {
		if err := os.WriteFile(name, []byte(c.before), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := run(root, true); (err == nil) != c.ok {
			t.Errorf("%q: %v", c.before, err)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.after, string(got)); d != "" {
			t.Errorf("the page (-want +got):\n%s", d)
		}
	}
}

// TestScheduleIsTheIndexes: an index on disk, whose merges are waited for after every
// shard, writes and merges what the simulation says.
func TestScheduleIsTheIndexes(t *testing.T) {
	for _, fanIn := range []int{2, 4} {
		set := setting{memory: 1 << 20, fanIn: fanIn, shard: 5000}
		n := 40*set.flushed() + 2*set.shard
		x, err := toplevel.Open(t.TempDir(), toplevel.Options{Memory: set.memory, FanIn: fanIn, MergeShare: 1, RestAfter: -1}, toplevel.Hooks{})
		if err != nil {
			t.Fatal(err)
		}
		x.Start()
		most := 0
		for i := range n / set.shard {
			if err := x.Add(t.Context(), ingest(i), blocks{i, set.shard}); err != nil {
				t.Fatal(err)
			}
			x.Settle()
			most = max(most, x.Stats().Runs)
		}
		if err := x.Flush(nil); err != nil {
			t.Fatal(err)
		}
		x.Settle()
		st := x.Stats()
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		s := &schedule{fanIn: fanIn}
		flushes, settled := 0, 0
		for left := n; left > 0; flushes++ {
			f := min(left, set.flushed())
			s.flush(f)
			instantly(s, f)
			settled = max(settled, len(s.runs))
			left -= f
		}
		got := []int{int(st.Flushes), int(st.Merges), int(st.MergedEntries), st.Runs, most}
		want := []int{flushes, s.out.merges, int(s.total) - int(n), len(s.runs), settled}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("fan-in %d: flushes, merges, merged entries, runs, most of them (-simulated +real):\n%s", fanIn, d)
		}
		if s.out.merges < 10 {
			t.Errorf("fan-in %d: %d merges; too few to say anything", fanIn, s.out.merges)
		}
	}
}

// TestLayoutIsTheFormats: the bytes of a real run are those of the model, to 1 %.
func TestLayoutIsTheFormats(t *testing.T) {
	for n, size := range map[uint64]uint64{100_000: 100, 700_000: 1000} {
		x := filled(t, toplevel.Options{Memory: 1 << 30, RestAfter: -1}, n, size)
		st := x.Stats()
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		l := layoutOf(n, size)
		if st.Runs != 1 || !near(float64(l.disk()), float64(st.DiskBytes), 0.01) || !near(float64(l.filters()), float64(st.FilterBytes), 0.01) {
			t.Errorf("%d entries in %d runs: %d bytes, of them %d of filters; the model says %d and %d", n, st.Runs, st.DiskBytes, st.FilterBytes, l.disk(), l.filters())
		}
	}
}

func near(a, b, part float64) bool { return math.Abs(a-b) <= part*b }

// TestSimulate: what must be so of any schedule.
func TestSimulate(t *testing.T) {
	for _, set := range settings {
		for _, n := range []uint64{1, 1e6, 5e8} {
			for name, between := range map[string]step{"instantly": instantly, "trickling": trickling, "beside": measured.beside} {
				out := simulate(n, set, between)
				switch {
				case out.written < 1, out.largest > n, out.most < 1, out.mean > float64(out.most):
					t.Errorf("%v, %d entries, %s: %+v", set, n, name, out)
				case out.resting > 8:
					t.Errorf("%v, %d entries, %s: %d runs at rest", set, n, name, out.resting)
				}
			}
		}
	}
	set := settings[0]
	quick := simulate(1e9, set, rates{insert: 1, merge: 1e12}.beside)
	if steady := simulate(1e9, set, instantly); !near(quick.written, steady.written, 1e-9) || quick.merges != steady.merges {
		t.Errorf("merges that take no time: %+v, merges at once: %+v", quick, steady)
	}
}

// TestPass: a merge pauses half of the time unless runs pile up.
func TestPass(t *testing.T) {
	s := &schedule{fanIn: 2}
	s.flush(100)
	s.flush(100)
	s.pass(39, 10) // 200 entries at 5/s
	if len(s.runs) != 2 {
		t.Error("merged before its time")
	}
	s.pass(1, 10)
	if len(s.runs) != 1 || s.runs[0].Entries != 200 {
		t.Errorf("after 40 s: %v", s.runs)
	}
	if s.area != 80 {
		t.Errorf("runs × time: %g", s.area)
	}
	s = &schedule{fanIn: 2}
	for range 7 {
		s.flush(100)
	}
	s.pass(70, 10) // 700 entries at 10/s
	if len(s.runs) != 1 {
		t.Errorf("more than 3 × 2 runs, and after 70 s: %v", s.runs)
	}
}

// TestFormats are the ways that numbers are written.
func TestFormats(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{power(-12), "10⁻¹²"},
		{count(1), "1"},
		{count(9.12), "9.1"},
		{count(999.96), "1 k"},
		{count(14012), "14 k"},
		{count(2e6), "2 M"},
		{size(15.44e9), "15.4 GB"},
		{size(1.6e13), "16 TB"},
		{size(5e15), "5000 TB"},
		{memory(64 << 20), "64 MiB"},
		{memory(8 << 30), "8 GiB"},
		{times(9.96), "10.0"},
		{times(294), "290"},
		{times(26528), "27000"},
		{lasting(50), "50 s"},
		{lasting(500), "8.3 min"},
		{lasting(50000), "13.9 h"},
		{lasting(5e5), "5.8 days"},
		{science(collisions(1e12)), "6·10⁻⁶"},
		{science(1e-3), "1·10⁻³"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

// TestReads: no filter in memory costs three reads a run, and every 256th lookup asks a
// run in vain.
func TestReads(t *testing.T) {
	if missReads(256) != 1 || hitReads(1) != 1 || hitReads(257) != 2 || coldReads(256, false) != 3*256+2 || coldReads(1, true) != 5 {
		t.Error(missReads(256), hitReads(1), hitReads(257), coldReads(256, false), coldReads(1, true))
	}
	if got := 1 / missTime(3); !near(got, 1.8e6, 1e-9) {
		t.Errorf("%g misses/s at 3 runs", got)
	}
	if got := 1 / missTime(20); !near(got, 0.42e6, 1e-9) {
		t.Errorf("%g misses/s at 20 runs", got)
	}
}
