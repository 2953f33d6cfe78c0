package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/shard"
)

// printer writes for people, and remembers the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format+"\n", args...); err != nil && p.err == nil {
		p.err = err
	}
}

func (p *printer) indented(text string) {
	for line := range strings.Lines(text) {
		p.line("      %s", strings.TrimRight(line, "\n"))
	}
}

// table writes rows in columns.
func (p *printer) table(rows [][]any) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for _, cell := range row {
			fmt.Fprintf(w, "%v\t", cell)
		}
		fmt.Fprintln(w)
	}
	w.Flush() // into memory: cannot fail
	for line := range strings.Lines(b.String()) {
		p.line("   %s", strings.TrimRight(line, " \n"))
	}
}

// table writes the shards as they are now.
func (t *tour) table(when string) error {
	t.out.line("   %s:", when)
	rows := [][]any{{"SHARD", "SOURCE", "INIT", "STATE", "BLOCKS", "SIZE"}}
	for cursor := ""; ; {
		page, err := t.store.ListShards(dagstore.ListOptions{Cursor: cursor})
		if err != nil {
			return err
		}
		for _, s := range page.Shards {
			rows = append(rows, row(&s))
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	slices.SortFunc(rows[1:], func(a, b []any) int { return strings.Compare(a[0].(string), b[0].(string)) })
	t.out.table(rows)
	return nil
}

func row(s *dagstore.ShardSummary) []any {
	init, blocks, size := "eager", "-", "-"
	if s.Lazy {
		init = "lazy"
	}
	if s.Blocks > 0 {
		blocks, size = fmt.Sprint(s.Blocks), bytesize(s.SourceSize)
	}
	return []any{name(s.Key), source(s.URL), init, strings.TrimPrefix(s.State.String(), "ShardState"), blocks, size}
}

// name is a key for a terminal: quoted if there is anything odd about it.
func name(k shard.Key) string {
	if q := strconv.Quote(k.String()); len(q) != len(k.String())+2 {
		return q
	}
	return k.String()
}

// source shortens the URL of a mount.
func source(mountURL string) string {
	u, err := url.Parse(mountURL)
	if err != nil {
		return mountURL
	}
	name := u.Path
	if u.Opaque != "" {
		name = u.Opaque
	}
	return fmt.Sprintf("%s %s", u.Scheme, path.Base(name))
}

// bytesize is a number of bytes for people.
func bytesize(n uint64) string {
	unit := 0
	f := float64(n)
	for ; f >= 1024 && unit < 4; unit++ {
		f /= 1024
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %ciB", f, " KMGT"[unit])
}

// rounded is a duration with three digits or so.
func rounded(d time.Duration) time.Duration {
	for unit := time.Second; unit > time.Nanosecond; unit /= 10 {
		if d >= unit {
			return d.Round(unit / 100)
		}
	}
	return d
}

// quiet logs errors only: the example says itself what happens.
func quiet() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}
