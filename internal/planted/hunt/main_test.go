package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const moduleRoot = "../../.."

// TestPageIsCurrent holds the table in docs/TESTING.md to the registry and to what the
// last hunt found.
func TestPageIsCurrent(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(moduleRoot, filepath.FromSlash(page)))
	if err != nil {
		t.Fatal(err)
	}
	// A checkout may have changed the ends of lines.
	text = bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))
	want, err := withTable(text, tableOf(bugs, parseRecord(recorded)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, want) {
		t.Errorf("%s is stale; run `make planted-write` in the root of the module and commit the page", page)
	}
}

var (
	plantedCall = regexp.MustCompile(`planted\.(?:Bug|Unless)\("([^"]*)"`)
	bugName     = regexp.MustCompile(`^[a-z]+(-[a-z]+)+$`)
	rowList     = regexp.MustCompile(`^[FCINGRSA][1-9][0-9]?(, [FCINGRSA][1-9][0-9]?)*$`)
)

// TestRegistry: every planted line belongs to a bug of the registry and the other way
// round, each has a test that exists and a record of the last hunt, and there are
// enough of them.
func TestRegistry(t *testing.T) {
	lines := plantedLines(t)
	found := parseRecord(recorded)
	seen := make(map[string]bool)
	for _, b := range bugs {
		if seen[b.name] || !bugName.MatchString(b.name) || !rowList.MatchString(b.rows) || b.breaks == "" {
			t.Errorf("%q stands there twice, or lacks something: %+v", b.name, b)
		}
		seen[b.name] = true
		if lines[b.name] == "" {
			t.Errorf("%s is planted nowhere", b.name)
		}
		if f := found[b.name]; !slices.Contains(strings.Split(b.run, "|"), f.test) {
			t.Errorf("%s: the record says that %q found it, and %s should; run `make planted-write`", b.name, f.test, b.run)
		}
		for _, test := range strings.Split(b.run, "|") {
			if !hasTest(t, b.pkg, test) {
				t.Errorf("%s: package %s has no test %s", b.name, b.pkg, test)
			}
		}
	}
	for name, where := range lines {
		if !seen[name] {
			t.Errorf("%s: the bug %q is not in bugs.go", where, name)
		}
	}
	if len(bugs) < 30 || len(found) != len(bugs) {
		t.Errorf("%d bugs, %d in %s", len(bugs), len(found), recordFile)
	}
}

// plantedLines finds the names of bugs in the module's sources, and where they stand.
func plantedLines(t *testing.T) map[string]string {
	t.Helper()
	lines := make(map[string]string)
	err := filepath.WalkDir(moduleRoot, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != moduleRoot && (strings.HasPrefix(d.Name(), ".") || d.Name() == "planted"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(name)
		for _, m := range plantedCall.FindAllSubmatch(text, -1) {
			lines[string(m[1])] = name
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func hasTest(t *testing.T, pkg, test string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(moduleRoot, filepath.FromSlash(pkg), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(f string) bool {
		text, err := os.ReadFile(f)
		return err == nil && bytes.Contains(text, []byte("\nfunc "+test+"(t *testing.T)"))
	})
}

// TestOrdinaryBuild: a program that uses the store has no name of a bug in it, so no
// planted line either, unless it is built with the tag.
func TestOrdinaryBuild(t *testing.T) {
	build := func(flags ...string) []byte {
		t.Helper()
		out := filepath.Join(t.TempDir(), "program")
		cmd := exec.CommandContext(t.Context(), "go", slices.Concat([]string{"build", "-buildvcs=false", "-o", out}, flags, []string{"./examples/quickstart"})...)
		cmd.Dir = moduleRoot
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		program, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return program
	}
	ordinary, tagged := build(), build("-tags", "planted")
	missing := 0
	for _, b := range bugs {
		if bytes.Contains(ordinary, []byte(b.name)) {
			t.Errorf("%s is in an ordinary build", b.name)
		}
		if !bytes.Contains(tagged, []byte(b.name)) {
			missing++ // of a package that the program does not link, or compared in pieces
		}
	}
	if bytes.Contains(ordinary, []byte("DAGSTORE_PLANT")) {
		t.Error("an ordinary build reads DAGSTORE_PLANT")
	}
	if missing > len(bugs)/2 || !bytes.Contains(tagged, []byte("DAGSTORE_PLANT")) {
		t.Errorf("%d of %d bugs are not in a program built with the tag: what is looked for is not what is linked", missing, len(bugs))
	}
}

// TestFinding reads what test binaries print.
func TestFinding(t *testing.T) {
	failed := errors.New("exit status 2")
	for _, c := range []struct {
		name, out string
		err       error
		want      finding
		found     bool
	}{
		{"passes", "=== RUN   TestA\n--- PASS: TestA (0.00s)\nPASS\n", nil, finding{}, false},
		{"fails", "=== RUN   TestA\n--- PASS: TestA\n=== RUN   TestB\n    x: --- FAIL: TestC\n--- FAIL: TestB (0.1s)\n", failed, finding{"TestB", "fails"}, true},
		{"panics", "=== RUN   TestA\n--- FAIL: TestA (0.00s)\npanic: oh [recovered]\n", failed, finding{"TestA", "panics"}, true},
		{"panics elsewhere", "=== RUN   TestA\npanic: oh\n\ngoroutine 7 [running]:\n", failed, finding{"TestA", "panics"}, true},
		{"hangs", "=== RUN   TestA\n=== RUN   TestA/one\npanic: test timed out after 1s\n", failed, finding{"TestA", "hangs"}, true},
		{"did not start", "cannot execute\n", failed, finding{}, false},
		{"ended without a word", "=== RUN   TestA\n", failed, finding{}, false},
	} {
		r := result{err: c.err}
		for _, b := range []byte(c.out) { // in pieces
			_, _ = r.Write([]byte{b})
		}
		if got, found := r.finding(); got != c.want || found != c.found {
			t.Errorf("%s: %v, %t, want %v, %t", c.name, got, found, c.want, c.found)
		}
	}
}

// TestJudge: what is not found, or by another test than before, is said.
func TestJudge(t *testing.T) {
	chosen := bugs[:2]
	a, b := chosen[0].name, chosen[1].name
	before := map[string]finding{a: {"TestA", "fails"}, b: {"TestB", "fails"}}
	if errs := judge(chosen, before, before, false); len(errs) > 0 {
		t.Error(errs)
	}
	errs := judge(chosen, map[string]finding{a: {"TestC", "fails"}}, before, false)
	if len(errs) != 2 {
		t.Errorf("errors %v, want two", errs)
	}
	if errs := judge(chosen, map[string]finding{a: {"TestC", "fails"}}, before, true); len(errs) != 1 {
		t.Errorf("errors %v, want one", errs)
	}
}
