package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files of testdata")

// golden holds text to a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	// A checkout may have changed the ends of lines.
	if d := cmp.Diff(strings.ReplaceAll(string(want), "\r\n", "\n"), got); d != "" {
		t.Errorf("%s; if that is meant, run `go test -run %s . -args -rewrite` and read the diff (-want +got):\n%s", name, t.Name(), d)
	}
}

// sample is a report of fixed numbers.
func sample() report {
	return report{
		about: about{
			cpu: "Processor 3000", cores: 2, system: "linux/amd64", goVersion: "go1.26.0", date: "2026-11-27",
			command: "go run . -out ../docs", loadBefore: "0.10 0.20 0.30", loadAfter: "2.10 1.90 1.50", others: "7 %", disk: "ext4",
		},
		tables: []table{
			{
				title: "Finding", inputs: "Ten things.", baseline: 0,
				columns: []column{
					{title: "finds", unit: perSecondUnit, chart: "Finding <a> & b"},
					{title: "takes", unit: secondsUnit},
					{title: "keeps", unit: bytesUnit, chart: "Keeping"},
					{title: "allocations", unit: countUnit, absolute: true},
				},
				rows: []row{
					{name: "plain", does: "the baseline", runs: 5, cells: []float64{2_000_000, 0.25e-6, 16, 0}},
					{name: "dagstore", does: "ours", ours: true, runs: 5, cells: []float64{1_000_000, 1.5e-3, math.NaN(), 2}},
					{name: "a store of others with a name that does not fit", does: "theirs", runs: 1, cells: []float64{960, 2, 45.6e9, 13.97}},
				},
			},
			{
				title: "Reading", inputs: "A file.", baseline: none,
				columns: []column{{title: "read", unit: throughputUnit, chart: "Reading"}},
				rows:    []row{{name: "dagstore", ours: true, runs: 2, cells: []float64{999.7e6}}, {name: "nothing", runs: 2, cells: []float64{0}}},
			},
		},
	}
}

// TestPage is the page of fixed numbers.
func TestPage(t *testing.T) {
	r := sample()
	var b strings.Builder
	if err := r.writePage(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "BENCH.md", b.String())
}

// TestChart is the chart of fixed numbers, which is well-formed and keeps within its
// frame.
func TestChart(t *testing.T) {
	r := sample()
	var b strings.Builder
	if err := r.writeChart(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "bench.svg", b.String())
	dec := xml.NewDecoder(strings.NewReader(b.String()))
	for {
		if _, err := dec.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("not XML: %v", err)
		}
	}
	d := draw(r.charted())
	if len(d.Panels) != 3 {
		t.Fatalf("%d panels", len(d.Panels))
	}
	bottom := 0
	for _, p := range d.Panels {
		for _, b := range p.Bars {
			if b.Y < bottom || b.Y+b.H > d.Height-margin || b.BarX+b.W > d.Width || b.LabelX+7*len(b.Label) > d.Width {
				t.Errorf("%+v lies on another bar or outside of %d × %d", b, d.Width, d.Height)
			}
			bottom = b.Y + b.H
		}
	}
	longest, half := d.Panels[0].Bars[0], d.Panels[0].Bars[1]
	if longest.W != barWidth || half.W != barWidth/2 {
		t.Errorf("bars of 2 and 1 M/s are %d and %d long", longest.W, half.W)
	}
}

// TestUnits are the ways that figures are written.
func TestUnits(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{perSecondUnit.format(9_996), "10.0 k/s"},
		{perSecondUnit.format(999_950), "1.00 M/s"},
		{perSecondUnit.format(12_340_000), "12.3 M/s"},
		{perSecondUnit.format(5), "5.00/s"},
		{throughputUnit.format(1.5e9), "1.50 GB/s"},
		{secondsUnit.format(120e-9), "120 ns"},
		{secondsUnit.format(0.0151), "15.1 ms"},
		{secondsUnit.format(75), "75.0 s"},
		{bytesUnit.format(0), "0 B"},
		{bytesUnit.format(14.42), "14.4 B"},
		{countUnit.format(13.97), "14"},
		{countUnit.format(0.04), "0"},
		{ratioText(0.00012345), "0.00012"},
		{ratioText(0.5), "0.50"},
		{ratioText(0.0996), "0.100"},
		{ratioText(1), "1.00"},
		{ratioText(12.34), "12.3"},
		{grouped(999), "999"},
		{grouped(1_234_567), "1,234,567"},
		{shortened("short"), "short"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
	if m := median([]float64{5, 1, 3}); m != 3 {
		t.Errorf("median %g", m)
	}
	if m := median([]float64{4, 1}); m != 1 {
		t.Errorf("median of two %g", m)
	}
	if !math.IsNaN(median(nil)) {
		t.Error("a median of nothing")
	}
}

func tiny(t *testing.T) config {
	return config{
		entries: 2000, perAdd: 100, records: 500, blocks: 300, rounds: 1,
		each: time.Millisecond, rest: 20 * time.Millisecond, patient: time.Minute, dir: t.TempDir(), command: "go run . -tiny",
	}
}

// TestRun runs everything at tiny size: every subject finds what it is asked for, every
// cell that has a figure has a possible one, and nothing is left behind.
func TestRun(t *testing.T) {
	cfg := tiny(t)
	cfg.out = filepath.Join(t.TempDir(), "docs")
	var progress bytes.Buffer
	if err := run(t.Context(), cfg, io.Discard, &progress); err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	page, err := os.ReadFile(filepath.Join(cfg.out, "BENCH.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range contenders() {
		if !bytes.Contains(page, []byte(c.name)) {
			t.Errorf("%s is not in the page", c.name)
		}
	}
	for _, bad := range []string{"NaN", "Inf", "0/s", "| 0 B/s"} {
		if i := bytes.Index(page, []byte(" "+bad)); i >= 0 {
			t.Errorf("%q in the page:\n%s", bad, page)
		}
	}
	if n := bytes.Count(page, []byte("\n## ")); n != 5 {
		t.Errorf("%d tables", n)
	}
	chart, err := os.ReadFile(filepath.Join(cfg.out, "bench.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(chart, []byte(`class="title"`)); n != 7 {
		t.Errorf("%d panels", n)
	}
	left, err := os.ReadDir(cfg.dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestRunEnds: a run that is cancelled says so and leaves nothing behind.
func TestRunEnds(t *testing.T) {
	cfg := tiny(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, cfg, io.Discard, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	left, err := os.ReadDir(cfg.dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestEnginesAnswer: every engine finds the shard of every block, and nothing else, also
// a block of two shards.
func TestEnginesAnswer(t *testing.T) {
	for _, c := range contenders() {
		e, err := c.open(filepath.Join(t.TempDir(), "x"))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		shards := []shardHashes{makeShard(0, 500), makeShard(1, 500), makeShard(0, 500)}
		for i, s := range shards {
			if err := e.add(t.Context(), i, s); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		if err := e.flush(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		find, err := e.finder()
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		twice := 2
		if c.most < forever {
			twice = 1 // a map keeps one
		}
		for i := range 500 {
			for _, want := range []struct {
				mhs shardHashes
				n   int
			}{{shards[0], twice}, {shards[1], 1}, {makeShard(2, 500), 0}} {
				if n, err := find(want.mhs.at(i)); n != want.n || err != nil {
					t.Fatalf("%s: %d shards, want %d; %v", c.name, n, want.n, err)
				}
			}
		}
		if err := e.close(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestLookupsAreChecked: an engine that answers wrongly is an error, not a fast engine.
func TestLookupsAreChecked(t *testing.T) {
	e, err := openMap(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	mhs := makeShard(0, 50)
	if err := e.add(t.Context(), 0, mhs); err != nil {
		t.Fatal(err)
	}
	all := []*filled{{contender: contender{name: "map"}, engine: e}}
	for _, c := range []struct {
		mhs   shardHashes
		there bool
		ok    bool
	}{{mhs, true, true}, {mhs, false, false}, {makeShard(1, 50), true, false}, {makeShard(1, 50), false, true}} {
		if _, _, err := rate(lookups(all, c.mhs, c.there)[0], 2, time.Millisecond); (err == nil) != c.ok {
			t.Errorf("there %v: %v", c.there, err)
		}
	}
}

// TestRate counts what was done and what that allocated.
func TestRate(t *testing.T) {
	var keep []byte
	perSecond, allocs, err := rate(subject{worker: func() (operation, error) {
		return func(int) error { keep = make([]byte, 1<<10); return nil }, nil
	}}, 1, 20*time.Millisecond)
	if err != nil || perSecond < 1000 || allocs < 0.9 || allocs > 1.5 {
		t.Errorf("%g/s, %g allocations, %v", perSecond, allocs, err)
	}
	_, allocs, err = rate(subject{worker: func() (operation, error) {
		return func(int) error { return nil }, nil
	}}, 2, 20*time.Millisecond)
	if err != nil || allocs > 0.1 {
		t.Errorf("nothing done: %g allocations, %v", allocs, err)
	}
	_ = keep
	broken := errors.New("broken")
	for _, s := range []subject{
		{worker: func() (operation, error) { return nil, broken }},
		{worker: func() (operation, error) { return func(n int) error { return broken }, nil }},
	} {
		if _, _, err := rate(s, 2, time.Hour); !errors.Is(err, broken) {
			t.Errorf("%v", err)
		}
	}
}

// TestInputsFollowFromSeeds: two makes are one, multihashes ascend, and a CAR's blocks are
// where it says.
func TestInputsFollowFromSeeds(t *testing.T) {
	a, b := makeShard(3, 200), makeShard(3, 200)
	if !bytes.Equal(a, b) || bytes.Equal(a, makeShard(4, 200)) {
		t.Error("multihashes do not follow from the shard's number")
	}
	for i := 1; i < a.len(); i++ {
		if bytes.Compare(a.at(i-1), a.at(i)) >= 0 {
			t.Fatalf("%d does not ascend", i)
		}
	}
	dir := t.TempDir()
	one, err := writeCAR(filepath.Join(dir, "1"), 20, 64, 9)
	if err != nil {
		t.Fatal(err)
	}
	two, err := writeCAR(filepath.Join(dir, "2"), 20, 64, 9)
	if err != nil {
		t.Fatal(err)
	}
	x, err := os.ReadFile(one.path)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(two.path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) || int64(len(x)) != one.size {
		t.Error("a CAR does not follow from its seed")
	}
	for i, c := range one.cids {
		if sum, err := c.Prefix().Sum(x[one.at[i]:][:64]); err != nil || sum != c {
			t.Errorf("block %d is not at %d: %v", i, one.at[i], err)
		}
	}
}

// TestMachine: the file system is that of the longest mount that the folder is below, and
// others are whoever is busy besides this process.
func TestMachine(t *testing.T) {
	before := parseTicks("cpu  100 0 100 800 50 0 0 0 0 0\ncpu0 1\n", "7 (a b) c) S 1 1 1 0 -1 0 0 0 0 0 50 30 0 0\n")
	after := parseTicks("cpu  150 5 120 900 65 1 2 7 9 9\n", "7 (a b) c) S 1 1 1 0 -1 0 0 0 0 0 80 35 0 0\n")
	if want := (ticks{busy: 200, all: 1050, own: 80}); before != want {
		t.Errorf("%+v, want %+v", before, want)
	}
	// Busy are 50 + 5 + 20 + 1 + 2 + 7 = 85 of 200, and 35 are its own.
	if got := othersShare(before, after); got != "25 %" {
		t.Errorf("others took %s", got)
	}
	if got := othersShare(ticks{}, ticks{}); got != "an unknown part" {
		t.Errorf("others took %s", got)
	}
	const mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/deep xfs rw 0 0\nbroken\n"
	for dir, want := range map[string]string{"/home/x": "ext4", "/tmp": "tmpfs", "/tmp/deep/er": "xfs", "/tmp/deeper": "tmpfs"} {
		if got := mountOf(mounts, dir); got != want {
			t.Errorf("%s is on %s, want %s", dir, got, want)
		}
	}
}
