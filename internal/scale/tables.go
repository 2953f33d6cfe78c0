package main

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
)

// measured are the rates of docs/adr/0009 and the README, of the machine on its slower
// day: inserts of two goroutines, merges beside them. A merge alone is 2.4 times as fast
// as inserts are (BenchmarkMerge here, BenchmarkInsert in index/toplevel, 10⁸ entries,
// the same hour), and so it is taken to be here.
var measured = rates{insert: 2e6, merge: 4.8e6}

// missTime is what a lookup of two goroutines takes that finds nothing, in seconds: the
// line through the two points of docs/adr/0009, 1.80 M/s with 3 runs and 0.42 M/s with
// 20.
func missTime(runs float64) float64 {
	const at3, at20 = 1 / 1.80e6, 1 / 0.42e6
	each := (at20 - at3) / (20 - 3)
	return at3 + float64((runs-3)*each)
}

var (
	blocksOfShard = []uint64{1e4, 1e5, 1e6}
	settings      = []setting{
		{memory: 64 << 20, fanIn: 4, shard: 1e5},
		{memory: 64 << 20, fanIn: 16, shard: 1e5},
		{memory: 1 << 30, fanIn: 4, shard: 1e5},
		{memory: 8 << 30, fanIn: 4, shard: 1e5},
	}
)

// tables are all tables of the page, made once: 10¹² entries take a while.
var tables = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	costs(&b)
	byShard(&b)
	schedules(&b)
	return b.Bytes()
})

func row(b *bytes.Buffer, cells ...string) { fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | ")) }

func head(b *bytes.Buffer, title string, cells ...string) {
	fmt.Fprintf(b, "\n**%s**\n\n", title)
	row(b, cells...)
	fmt.Fprintf(b, "|%s\n", strings.Repeat("---|", len(cells)))
}

// costs is the table of what follows from the number of entries alone.
func costs(b *bytes.Buffer) {
	head(b, "Table 1. An index of one run, shards of 10⁵ blocks",
		"entries", "disk", "an entry", "filters and directories", "heap, open", "in memory as a follower has it", "made anew at "+count(measured.insert)+"/s", "equal fingerprints expected, pairs")
	for e := 7; e <= 12; e++ {
		n := math.Pow10(e)
		l := layoutOf(uint64(n), 1e5)
		row(b, power(e), size(float64(l.disk())), fmt.Sprintf("%.1f B", float64(l.disk())/n), size(float64(l.filters())),
			size(float64(l.heap())), size(n*memEntry), lasting(n/measured.insert), science(collisions(n)))
	}
}

// byShard is the table of what depends on how large shards are.
func byShard(b *bytes.Buffer) {
	head(b, "Table 2. The size of shards",
		"entries", "blocks of a shard", "shards", "disk, an entry", "catalogue in memory", "heap of the largest merge")
	for e := 9; e <= 12; e++ {
		for _, s := range blocksOfShard {
			n := math.Pow10(e)
			l := layoutOf(uint64(n), s)
			row(b, power(e), power(int(math.Log10(float64(s)))), power(int(math.Round(math.Log10(float64(l.ingests))))),
				fmt.Sprintf("%.1f B", float64(l.disk())/n), size(float64(l.ingests*shardHeap)), size(float64(l.mergeHeap())))
		}
	}
}

// schedules is the table of what merging comes to.
func schedules(b *bytes.Buffer) {
	type cell struct {
		e                     int
		set                   setting
		slow, fast, trickling outcome
	}
	var cells []cell
	for e := 8; e <= 12; e++ {
		for _, set := range settings {
			cells = append(cells, cell{e: e, set: set})
		}
	}
	var wg sync.WaitGroup
	for i := range cells {
		wg.Go(func() {
			c := &cells[i]
			n := uint64(math.Pow10(c.e))
			c.slow = simulate(n, c.set, instantly)
			c.fast = simulate(n, c.set, measured.beside)
			c.trickling = simulate(n, c.set, trickling)
		})
	}
	wg.Wait()
	head(b, "Table 3. Merging, shards of 10⁵ blocks",
		"entries", "Memory, FanIn", "steadily: runs, mean / most", "written, times", "at "+count(measured.insert)+"/s: runs, mean / most", "written, times", "misses then", "with pauses: runs, mean / most", "written, times", "largest merge")
	for _, c := range cells {
		n := math.Pow10(c.e)
		largest := max(c.slow.largest, c.fast.largest, c.trickling.largest)
		row(b, power(c.e), fmt.Sprintf("%s, %d", memory(c.set.memory), c.set.fanIn),
			fmt.Sprintf("%s / %s", count(c.slow.mean), count(float64(c.slow.most))), fmt.Sprintf("%.1f", c.slow.written+c.slow.rest),
			fmt.Sprintf("%s / %s", count(c.fast.mean), count(float64(c.fast.most))), fmt.Sprintf("%.1f", c.fast.written+c.fast.rest),
			count(1/missTime(max(c.fast.mean, 1)))+"/s", fmt.Sprintf("%s / %s", count(c.trickling.mean), count(float64(c.trickling.most))), times(c.trickling.written+c.trickling.rest), mergeOf(float64(largest), n, c.set))
	}
	reads(b)
}

// mergeOf says how large a merge is and how long it takes, with its pauses.
func mergeOf(entries, n float64, set setting) string {
	if entries == 0 {
		return "none"
	}
	bytes := entries * float64(layoutOf(uint64(n), set.shard).disk()) / n
	return fmt.Sprintf("%s, %s", size(bytes), lasting(entries/measured.merge/share))
}

// reads is the table of what a lookup reads.
func reads(b *bytes.Buffer) {
	head(b, "Table 4. Reads of the disk that a lookup is expected to make",
		"runs", "miss, filters in memory", "hit, filters in memory", "miss, filters on disk", "hit, filters on disk")
	for _, runs := range []float64{1, 2, 10, 30, 200, 1000} {
		row(b, count(runs), fmt.Sprintf("%.3f", missReads(runs)), fmt.Sprintf("%.2f", hitReads(runs)),
			fmt.Sprintf("%.0f", coldReads(runs, false)), fmt.Sprintf("%.0f", coldReads(runs, true)))
	}
}

var superscripts = strings.NewReplacer("0", "⁰", "1", "¹", "2", "²", "3", "³", "4", "⁴", "5", "⁵", "6", "⁶", "7", "⁷", "8", "⁸", "9", "⁹", "-", "⁻")

func power(e int) string { return "10" + superscripts.Replace(strconv.Itoa(e)) }

// science is a number of any size to one digit.
func science(x float64) string {
	e := int(math.Floor(math.Log10(x)))
	return fmt.Sprintf("%.0f·%s", x/math.Pow10(e), power(e))
}

// three rounds to three digits at most.
func three(x float64) string {
	return strconv.FormatFloat(mustFloat(strconv.FormatFloat(x, 'g', 2+btoi(x >= 10), 64)), 'f', -1, 64)
}

func mustFloat(s string) float64 {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		panic(err) // it was formatted
	}
	return f
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func scaled(x, unit float64, names ...string) string {
	i := 0
	for ; x >= unit*0.9995 && i < len(names)-1; i++ {
		x /= unit
	}
	return three(x) + names[i]
}

func count(x float64) string { return scaled(x, 1000, "", " k", " M", " G") }
func size(x float64) string  { return scaled(x, 1000, " B", " kB", " MB", " GB", " TB") }

func memory(n int64) string { return scaled(float64(n), 1024, " B", " KiB", " MiB", " GiB") }

func times(x float64) string {
	if x >= 100 {
		return strconv.FormatFloat(mustFloat(strconv.FormatFloat(x, 'g', 2, 64)), 'f', -1, 64)
	}
	return fmt.Sprintf("%.1f", x)
}

// lasting is a time in the unit that suits it.
func lasting(seconds float64) string {
	switch {
	case seconds < 90:
		return three(seconds) + " s"
	case seconds < 90*60:
		return three(seconds/60) + " min"
	case seconds < 72*3600:
		return three(seconds/3600) + " h"
	default:
		return three(seconds/86400) + " days"
	}
}
