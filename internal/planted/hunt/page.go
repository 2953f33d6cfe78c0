package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	page       = "docs/TESTING.md"
	tableBegin = "<!-- Written by `make planted`; do not edit. -->\n"
	tableEnd   = "<!-- End of what `make planted` writes. -->\n"
)

// finding is the test that found a bug, and how it ended: it fails, panics or hangs.
type finding struct{ test, how string }

func (f finding) String() string {
	if f.how == "" || f.how == "fails" {
		return f.test
	}
	return f.test + " (" + f.how + ")"
}

// A record is lines of three words: bug, test, how.
func parseRecord(text string) map[string]finding {
	found := make(map[string]finding)
	for line := range strings.Lines(text) {
		if w := strings.Fields(line); len(w) == 3 {
			found[w[0]] = finding{w[1], w[2]}
		}
	}
	return found
}

// formatRecord leaves out what is no bug any more.
func formatRecord(found map[string]finding) []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if known := slices.ContainsFunc(bugs, func(x bug) bool { return x.name == name }); known {
			fmt.Fprintf(&b, "%s %s %s\n", name, found[name].test, found[name].how)
		}
	}
	return b.Bytes()
}

// tableOf is the table of the page.
func tableOf(bugs []bug, found map[string]finding) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "\n%d bugs:\n\n| bug | what is wrong | found by | rows |\n|---|---|---|---|\n", len(bugs))
	for _, x := range bugs {
		by := "**nothing yet**"
		if f, ok := found[x.name]; ok {
			dir := "../" + x.pkg
			if x.pkg == "." {
				dir = ".."
			}
			by = fmt.Sprintf("`%s` in [%s](%s)", f.test, title(x.pkg), dir)
			if f.how != "fails" {
				by += ", which " + f.how
			}
			if len(x.args) > 0 {
				by += " (`" + strings.Join(x.args, " ") + "`)"
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", x.name, x.breaks, by, x.rows)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

func title(pkg string) string {
	if pkg == "." {
		return "dagstore"
	}
	return pkg
}

var errNoMarks = errors.New(page + " lacks the two comments that the table stands between")

// withTable replaces what stands between the marks.
func withTable(text, table []byte) ([]byte, error) {
	before, rest, ok := bytes.Cut(text, []byte(tableBegin))
	if !ok {
		return nil, errNoMarks
	}
	_, after, ok := bytes.Cut(rest, []byte(tableEnd))
	if !ok {
		return nil, errNoMarks
	}
	return slices.Concat(before, []byte(tableBegin), table, []byte(tableEnd), after), nil
}
