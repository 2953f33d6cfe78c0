package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

//go:embed rows.md
var rowsMD string

// section is a letter's worth of rows: a heading, a line about them, and a table.
type section struct {
	title  string
	intro  string
	header []string // names of the columns
	rows   []row
}

// row is one promise. id is cells[0].
type row struct {
	id    string
	cells []string
}

var rowID = regexp.MustCompile(`^[A-Z][1-9][0-9]*$`)

// parseRows reads rows.md: sections of `## title`, text, and one table whose first
// column is the row's name.
func parseRows(md string) ([]section, error) {
	var sections []section
	seen := map[string]bool{}
	for n, line := range strings.Split(md, "\n") {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			sections = append(sections, section{title: title})
			continue
		}
		if len(sections) == 0 || strings.TrimSpace(line) == "" || strings.HasPrefix(line, "|---") {
			continue
		}
		s := &sections[len(sections)-1]
		if !strings.HasPrefix(line, "|") {
			s.intro = strings.TrimSpace(s.intro + " " + line)
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if s.header == nil {
			s.header = cells
			continue
		}
		r := row{id: cells[0], cells: cells}
		switch {
		case !rowID.MatchString(r.id):
			return nil, fmt.Errorf("rows.md:%d: %q names no row; rows are a capital letter and a number", n+1, r.id)
		case seen[r.id]:
			return nil, fmt.Errorf("rows.md:%d: row %s stands there twice", n+1, r.id)
		case len(cells) != len(s.header):
			return nil, fmt.Errorf("rows.md:%d: row %s has %d cells, its table %d columns", n+1, r.id, len(cells), len(s.header))
		}
		seen[r.id] = true
		s.rows = append(s.rows, r)
	}
	return sections, nil
}

const pageIntro = `<!-- Written by ` + "`make docs`" + ` from internal/guarantees/rows.md and the tests' comments; do not edit. -->

# Guarantees

Every promise as a row that a test can prove. A test says in its doc comment which rows it proves
("Proves F3, C6."); this page is made from those comments. A limit in parentheses says that the
test proves the row for that part; a row that no test proves without such a limit counts as proved
in part. A row without a test is **open**.

`

// pageOf is the whole page.
func pageOf(sections []section, proofs map[string][]proof) []byte {
	var b bytes.Buffer
	b.WriteString(pageIntro)
	b.WriteString("| | rows | proved | in part | open |\n|---|---|---|---|---|\n")
	for _, s := range sections {
		var inPart, open []string
		for _, r := range s.rows {
			switch ps := proofs[r.id]; {
			case len(ps) == 0:
				open = append(open, r.id)
			case !slices.ContainsFunc(ps, func(p proof) bool { return p.limit == "" }):
				inPart = append(inPart, r.id)
			}
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %s | %s |\n", s.title, len(s.rows), len(s.rows)-len(inPart)-len(open), strings.Join(inPart, " "), strings.Join(open, " "))
	}
	for _, s := range sections {
		fmt.Fprintf(&b, "\n## %s\n\n", s.title)
		if s.intro != "" {
			fmt.Fprintf(&b, "%s\n\n", s.intro)
		}
		fmt.Fprintf(&b, "| %s | proved by |\n%s\n", strings.Join(s.header, " | "), strings.Repeat("|---", len(s.header)+1)+"|")
		for _, r := range s.rows {
			fmt.Fprintf(&b, "| %s | %s |\n", strings.Join(r.cells, " | "), provedBy(proofs[r.id]))
		}
	}
	return b.Bytes()
}

func provedBy(ps []proof) string {
	if len(ps) == 0 {
		return "**open**"
	}
	cells := make([]string, len(ps))
	for i, p := range ps {
		cells[i] = fmt.Sprintf("[`%s`](../%s)", p.test, p.file)
		if p.limit != "" {
			cells[i] += " (" + strings.ReplaceAll(p.limit, "|", "\\|") + ")"
		}
	}
	return strings.Join(slices.Compact(cells), "<br>")
}
