package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPageIsCurrent holds docs/GUARANTEES.md to the rows and to the tests' comments.
func TestPageIsCurrent(t *testing.T) {
	want, err := render("../..")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join("../..", filepath.FromSlash(page)))
	if err != nil {
		t.Fatalf("%v; run `make docs` in the root of the module", err)
	}
	// A checkout may have changed the ends of lines.
	got = bytes.ReplaceAll(got, []byte("\r\n"), []byte("\n"))
	if !bytes.Equal(want, got) {
		t.Errorf("%s is stale, in %s; run `make docs` in the root of the module and commit the page", page, strings.Join(changed(want, got), " "))
	}
}

// changed names the lines of want that are not in got, by row where they are rows.
func changed(want, got []byte) []string {
	have := map[string]bool{}
	for _, line := range strings.Split(string(got), "\n") {
		have[line] = true
	}
	var names []string
	for n, line := range strings.Split(string(want), "\n") {
		if have[line] {
			continue
		}
		name := fmt.Sprintf("line %d", n+1)
		if cells := strings.Fields(line); len(cells) > 1 && rowID.MatchString(cells[1]) {
			name = cells[1]
		}
		names = append(names, name)
	}
	if names == nil {
		names = []string{"lines that should be gone"}
	}
	return names
}

// TestRows reads the real rows: the letters are complete, the numbers have no gap.
func TestRows(t *testing.T) {
	sections, err := parseRows(rowsMD)
	if err != nil {
		t.Fatal(err)
	}
	var letters strings.Builder
	for _, s := range sections {
		letters.WriteString(s.title[:1])
		for i, r := range s.rows {
			if cs, err := expand(s.title[:1], r.id[1:], "", "", ""); err != nil || cs[0].row != r.id {
				t.Errorf("row %s in section %q", r.id, s.title)
			}
			if i > 0 && len(s.rows[i-1].id) == len(r.id) && s.rows[i-1].id >= r.id {
				t.Errorf("%s after %s", r.id, s.rows[i-1].id)
			}
		}
		last := s.rows[len(s.rows)-1].id
		if cs, err := expand(last[:1], "1", "", last[1:], ""); err != nil || len(cs) != len(s.rows) {
			t.Errorf("section %q has %d rows and ends with %s", s.title, len(s.rows), last)
		}
	}
	if letters.String() != "FCINGRSA" {
		t.Errorf("sections %s, want FCINGRSA", letters.String())
	}
	for _, bad := range []string{
		"## F\n| # | a |\n|---|---|\n| F1 | x |\n| F1 | y |\n",
		"## F\n| # | a |\n|---|---|\n| first | x |\n",
		"## F\n| # | a |\n|---|---|\n| F1 | x | y |\n",
	} {
		if _, err := parseRows(bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestParseClaims(t *testing.T) {
	for _, c := range []struct {
		doc  string
		want string // row or row(limit), separated by spaces; "error"
	}{
		{"TestA does things.\n", ""},
		{"TestA proves nothing. Proves a point.\n", ""},
		{"Proves F3, C6.\n", "F3 C6"},
		{"TestA: a long story. Proves F3,\nC6 and N1. More follows about F9.\n", "F3 C6 N1"},
		{"Proves N1–N3.\n", "N1 N2 N3"},
		{"Proves N1-N3, G2—G3 and F1.\n", "N1 N2 N3 G2 G3 F1"},
		{"Proves N9–11\n", "N9 N10 N11"},
		{"Proves F3 (files), C6 (a crash), and R17.\n", "F3(files) C6(a crash) R17"},
		{"Proves G1, G2 for the journal in memory.\n", "G1(for the journal in memory) G2(for the journal in memory)"},
		{"Proves C10 (journal), C1: one bit, at every byte, as in F3.\n", "C10(journal) C1"},
		{"Proves C4 and, of the disk's part, C2: words.\n", "C4 C2(of the disk's part)"},
		{"Proves N1 to N3, and of the invariants I1, I5 and I9 what the machine can break.\n", "N1 N2 N3 I1(what the machine can break) I5(what the machine can break) I9(what the machine can break)"},
		{"Proves F1. Proves F2\n\nand F3 does not count.\n", "F1 F2"},
		{"TestA says:\n\n - one\n\nProves F1\n", "F1"},
		{"Proves F3 for files, and C6 too.\n", "error"},
		{"Proves F3–C6.\n", "error"},
		{"Proves F6–F3.\n", "error"},
	} {
		claims, err := parseClaims(c.doc)
		var parts []string
		for _, cl := range claims {
			s := cl.row
			if cl.limit != "" {
				s += "(" + cl.limit + ")"
			}
			parts = append(parts, s)
		}
		got := strings.Join(parts, " ")
		if err != nil {
			got = "error"
		}
		if got != c.want {
			t.Errorf("%q: %s (%v), want %s", c.doc, got, err, c.want)
		}
	}
}

// TestFindProofs: which functions count, and where they are looked for.
func TestFindProofs(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"a/a_test.go":          "package a_test\n\n// Proves F1.\nfunc TestA() {}\n\n// Proves F1, F2.\nfunc FuzzB() {}\n",
		"a/atest/suite.go":     "package atest\n\nimport \"testing\"\n\n// Proves F2 (suite), F4 (suite).\nfunc Run(t *testing.T) {}\n",
		"a/a.go":               "package a\n\n// Proves F1.\nfunc NotATest() {}\n",
		"a/testdata/x_test.go": "package x\n\n// Proves F1.\nfunc TestX() {}\n",
		"nested/go.mod":        "module nested\n",
		"nested/n_test.go":     "package n\n\n// Proves F1.\nfunc TestN() {}\n",
		".hidden/h_test.go":    "package h\n\n// Proves F1.\nfunc TestH() {}\n",
		"a/notes_test.go.md":   "Proves F1.",
	} {
		name = filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	proofs, err := findProofs(root, map[string]bool{"F1": true, "F2": true, "F4": true})
	if err != nil {
		t.Fatal(err)
	}
	sections := []section{{title: "F. Faults", header: []string{"#", "holds"}, rows: []row{
		{id: "F1", cells: []string{"F1", "one"}},
		{id: "F2", cells: []string{"F2", "two"}},
		{id: "F3", cells: []string{"F3", "three"}},
		{id: "F4", cells: []string{"F4", "four"}},
	}}}
	want := pageIntro + `| | rows | proved | in part | open |
|---|---|---|---|---|
| F. Faults | 4 | 2 | F4 | F3 |

## F. Faults

| # | holds | proved by |
|---|---|---|
` +
		"| F1 | one | [`a.FuzzB`](../a/a_test.go)<br>[`a.TestA`](../a/a_test.go) |\n" +
		"| F2 | two | [`a.FuzzB`](../a/a_test.go)<br>[`atest.Run`](../a/atest/suite.go) (suite) |\n" +
		"| F3 | three | **open** |\n" +
		"| F4 | four | [`atest.Run`](../a/atest/suite.go) (suite) |\n"
	if d := cmp.Diff(want, string(pageOf(sections, proofs))); d != "" {
		t.Errorf("the page (-want +got):\n%s", d)
	}
	if _, err := findProofs(root, map[string]bool{"F1": true, "F4": true}); err == nil || !strings.Contains(err.Error(), "no row F2") {
		t.Errorf("a claim for a row that does not exist: %v", err)
	}
}
