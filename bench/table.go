package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// table is a part of the page: subjects that do the same.
type table struct {
	title, inputs string
	columns       []column
	rows          []row
	baseline      int // a row that ratios refer to, or none
}

const none = -1

type column struct {
	title    string
	unit     unit
	absolute bool   // ratios to the baseline say nothing
	chart    string // title of the panel of the chart that shows it; empty: not shown
}

type row struct {
	name, does string
	ours       bool
	runs       int
	cells      []float64 // NaN: there is no such figure
}

func isOurs(name string) bool { return strings.HasPrefix(name, "dagstore") }

// unit says how a number is written, and which way is better.
type unit struct {
	format func(float64) string
	better string
}

var (
	perSecondUnit  = unit{func(x float64) string { return scaled(x, 1000, "/s", " k/s", " M/s") }, "more is better"}
	throughputUnit = unit{func(x float64) string { return scaled(x, 1000, " B/s", " kB/s", " MB/s", " GB/s") }, "more is better"}
	secondsUnit    = unit{func(x float64) string { return scaled(x*1e9, 1000, " ns", " µs", " ms", " s") }, "less is better"}
	bytesUnit      = unit{func(x float64) string { return scaled(x, 1000, " B", " kB", " MB", " GB") }, "less is better"}
	countUnit      = unit{func(x float64) string { return strconv.FormatFloat(math.Round(x*10)/10, 'f', -1, 64) }, "less is better"}
)

// scaled is a number with three digits and the largest unit that it has one of.
func scaled(x, step float64, units ...string) string {
	i := 0
	for ; x >= 0.9995*step && i < len(units)-1; i++ {
		x /= step
	}
	return digits3(x) + units[i]
}

// digits3 rounds to three digits, and writes no exponent.
func digits3(x float64) string {
	if x >= 99.95 {
		return strconv.FormatFloat(math.Round(x), 'f', 0, 64)
	}
	if x >= 9.995 {
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	if x == 0 {
		return "0"
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

// grouped writes a whole number with commas.
func grouped(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// cell writes a figure and its ratio to the baseline's.
func (t *table) cell(r, c int) string {
	x := t.rows[r].cells[c]
	if math.IsNaN(x) {
		return "–"
	}
	s := t.columns[c].unit.format(x)
	if ratio, ok := t.ratio(r, c); ok {
		s += fmt.Sprintf(" (%s×)", ratioText(ratio))
	}
	return s
}

func (t *table) ratio(r, c int) (float64, bool) {
	if t.baseline == none || r == t.baseline || t.columns[c].absolute {
		return 0, false
	}
	base := t.rows[t.baseline].cells[c]
	ratio := t.rows[r].cells[c] / base
	return ratio, base > 0 && !math.IsNaN(ratio)
}

// ratioText is a ratio with two digits or more.
func ratioText(x float64) string {
	if x >= 0.995 || x == 0 {
		return digits3(x)
	}
	places := 1 - int(math.Floor(math.Log10(x)))
	return strconv.FormatFloat(x, 'f', places, 64)
}

func (t *table) write(w io.Writer) {
	fmt.Fprintf(w, "\n## %s\n\n%s\n\n| |", t.title, t.inputs)
	for _, c := range t.columns {
		fmt.Fprintf(w, " %s |", c.title)
	}
	fmt.Fprintf(w, " runs | what it does |\n|---|%s\n", strings.Repeat("---|", len(t.columns)+2))
	for i, r := range t.rows {
		name := r.name
		if r.ours {
			name = "**" + name + "**"
		}
		fmt.Fprintf(w, "| %s |", name)
		for c := range t.columns {
			fmt.Fprintf(w, " %s |", t.cell(i, c))
		}
		fmt.Fprintf(w, " %d | %s |\n", r.runs, r.does)
	}
}

// about says of what a report is.
type about struct {
	cpu                   string
	cores                 int
	system, goVersion     string
	date                  string
	command               string
	loadBefore, loadAfter string
	others                string // part of the processors that others used
	disk                  string
}

// report is what a run found out.
type report struct {
	about  about
	tables []table
}

func (r *report) writePage(w io.Writer) error {
	b := bufio.NewWriter(w)
	a := &r.about
	fmt.Fprintf(b, "<!-- Written by the program in bench/; do not edit. -->\n# dagstore beside others\n\n")
	fmt.Fprintf(b, "Measured in one run of `%s` in [bench/](../bench), %s: %d × %s, %s, %s, files on %s.\n", a.command, a.date, a.cores, a.cpu, a.system, a.goVersion, a.disk)
	fmt.Fprintf(b, "Load of the machine before the run: %s, at its end: %s (1, 5, 15 min; the run itself makes up to %d of it).\nOther work took %s of the processors' time meanwhile.\n\n", a.loadBefore, a.loadAfter, a.cores, a.others)
	fmt.Fprintf(b, "Figures are medians of as many runs as the table says; subjects are measured in turn, round after round. In parentheses is the\nratio to the baseline, where there is one. Inputs follow from fixed seeds. Rows that do different things are not to be compared: the last column says what each does.\n\n")
	fmt.Fprintf(b, "![bar charts of the tables below](bench.svg)\n")
	for i := range r.tables {
		r.tables[i].write(b)
	}
	return b.Flush()
}

// writeFiles writes BENCH.md and bench.svg.
func (r *report) writeFiles(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, write := range map[string]func(io.Writer) error{"BENCH.md": r.writePage, "bench.svg": r.writeChart} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// describe says where and when a run is made.
func describe(cfg config, dir string) about {
	return about{
		cpu: cpuModel(), cores: runtime.GOMAXPROCS(0), system: runtime.GOOS + "/" + runtime.GOARCH, goVersion: runtime.Version(),
		date: time.Now().UTC().Format("2006-01-02"), command: cfg.command, loadBefore: load(), disk: fileSystem(dir),
	}
}

// cpuModel is the processor's name where Linux tells it.
func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "processor of unknown model"
	}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "processor of unknown model"
}

// load is the machine's load where Linux tells it.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if fields := strings.Fields(string(b)); err == nil && len(fields) >= 3 {
		return strings.Join(fields[:3], " ")
	}
	return "unknown"
}

// ticks is what the processors did since the machine was started, in ticks.
type ticks struct{ busy, all, own float64 }

// spent is what this process and the others did until now, where Linux tells it.
func spent() ticks {
	machine, err := os.ReadFile("/proc/stat")
	own, err2 := os.ReadFile("/proc/self/stat")
	if err != nil || err2 != nil {
		return ticks{}
	}
	return parseTicks(string(machine), string(own))
}

// parseTicks reads /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal; and
// /proc/self/stat, whose fields 14 and 15 are user and system time.
func parseTicks(machine, own string) (t ticks) {
	first, _, _ := strings.Cut(machine, "\n")
	for i, f := range strings.Fields(first) {
		if i == 0 || i > 8 {
			continue // its name; time of guests, which is in user
		}
		n, _ := strconv.ParseFloat(f, 64) // 0 if it is none
		t.all += n
		if i != 4 && i != 5 {
			t.busy += n
		}
	}
	// The program's name may hold spaces.
	fields := strings.Fields(own[strings.LastIndexByte(own, ')')+1:])
	if len(fields) > 12 {
		for _, f := range fields[11:13] {
			n, _ := strconv.ParseFloat(f, 64)
			t.own += n
		}
	}
	return t
}

// othersShare is what others did between two moments.
func othersShare(from, to ticks) string {
	if to.all <= from.all {
		return "an unknown part"
	}
	share := ((to.busy - from.busy) - (to.own - from.own)) / (to.all - from.all)
	return fmt.Sprintf("%.0f %%", max(share, 0)*100)
}

// fileSystem is the kind of file system of a folder where Linux tells it.
func fileSystem(dir string) string {
	b, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return "an unknown file system"
	}
	return mountOf(string(b), dir)
}

// mountOf finds the file system that a folder is on in the text of /proc/mounts.
func mountOf(mounts, dir string) string {
	at, kind := "", "an unknown file system"
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		below := f[1] == "/" || dir == f[1] || strings.HasPrefix(dir, f[1]+"/")
		if below && len(f[1]) >= len(at) {
			at, kind = f[1], f[2]
		}
	}
	return kind
}

// charted are the tables' columns that the chart shows.
func (r *report) charted() []panel {
	var panels []panel
	for i := range r.tables {
		t := &r.tables[i]
		for c, col := range t.columns {
			if col.chart == "" {
				continue
			}
			p := panel{Title: col.chart, Note: col.unit.better}
			for _, row := range t.rows {
				if x := row.cells[c]; !math.IsNaN(x) {
					p.bars = append(p.bars, bar{name: row.name, value: x, label: col.unit.format(x), ours: row.ours})
				}
			}
			if len(p.bars) > 0 {
				panels = append(panels, p)
			}
		}
	}
	return slices.Clip(panels)
}
