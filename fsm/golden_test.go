package fsm

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

const machinePage = "../docs/MACHINE.md"

// TestGolden holds docs/MACHINE.md to the table. Proves N9.
func TestGolden(t *testing.T) {
	want := page()
	if *rewrite && !raceEnabled {
		if err := os.WriteFile(machinePage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(machinePage)
	if raceEnabled { // the walks are bounded and their counts other ones
		got, _, _ = bytes.Cut(got, []byte(countsHead))
		want, _, _ = strings.Cut(want, countsHead)
	}
	if err != nil || string(got) != want {
		t.Fatalf("%s is not what the table says (%v).\nRun: go test ./fsm -run Golden -rewrite\nand read the diff.", machinePage, err)
	}
}

const countsHead = "| configuration |"

const pageHead = `# The shard machine

Generated from fsm/table.go and fsm/transitions.go by ` + "`go test ./fsm -run Golden -rewrite`" + `; a test
fails if this page and the table differ. Why it is built so: adr/0002-pure-machine.md.

A shard is composed of four machines. A transition may move several of them at once, which is what keeps them in
step. The public state of a shard is derived from where they are. The diagrams show every change that a walk of all
reachable states of one shard makes, each labelled with the transitions that make it. A restart is not shown: it
takes a shard to its recorded life, with nothing open, running or waiting.
`

const pageTable = `
## Transitions

For an input, the one transition of its trigger whose conditions all hold fires; then those marked "auto" fire,
one after the other, until none is enabled. No two of one shard are ever enabled at once. "Reads" are the places that
the conditions and the outcome depend on beside those written; ` + "`fetch-slots`, `index-slots`, `open-slots` and `journal`" + ` are
shared by all shards.

`

const pageCheck = `
## What is proven

` + "`go test ./fsm`" + ` visits every state of these configurations, each with one token per kind of slot, and every input in
each, and asserts rows N1 to N8 of GUARANTEES.md. "Commuting" are pairs of inputs to different shards whose steps share
no place and lead to the same state in either order; "conflicting" pairs share one and are serialised. A pair is looked at
in every fifth state. Each guard removed or negated, each write undeclared and each mistake in an outcome makes the
check fail (N10).

From every state of one shard a search in the machine finds the shortest path of inputs to an accessor, to being available,
to being gone and to having no copy of the store's. Its inputs lead there when they are made, and no fewer do
(TestPathIsShortest). testdata/paths.txt shows some.

`

// goFiles lists the Go files of this folder.
func goFiles(keep func(string) bool) (names []string, err error) {
	entries, err := os.ReadDir(".")
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".go") && keep(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

func page() string {
	var b strings.Builder
	b.WriteString(pageHead)
	diagrams := Mermaid()
	for _, m := range machines {
		fmt.Fprintf(&b, "\n## %s%s\n\n```mermaid\n%s```\n", strings.ToUpper(m.name[:1]), m.name[1:], diagrams[m.name])
	}
	b.WriteString(pageTable + Markdown() + pageCheck)
	b.WriteString(countsTable())
	return b.String()
}
