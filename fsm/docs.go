package fsm

import (
	"fmt"
	"slices"
	"strings"
)

// edge is one change of one component machine that some row was seen to make.
type edge struct{ from, to, row string }

// component is one of the machines that a shard is composed of.
type component struct {
	name  string
	where func(*Shard) string
	from  string // where a shard without a life is
}

var machines = []component{
	{"life", func(s *Shard) string { return s.Life.String() }, "none"},
	{"data", func(s *Shard) string { return s.Data.String() }, "absent"},
	{"index", func(s *Shard) string { return s.Index.String() }, "absent"},
	{"handle", func(s *Shard) string { return s.Handle.String() }, "closed"},
}

// Mermaid returns state diagrams of the component machines, in Mermaid's notation
// (https://mermaid.js.org/syntax/stateDiagram.html), one per machine. It walks all
// states that one shard and one caller can reach and draws each change that is
// made, labelled with the rows that make it; the walk takes a fraction of a second.
func Mermaid() map[string]string {
	seen := make([]map[edge]bool, len(machines))
	for i := range seen {
		seen[i] = map[edge]bool{}
	}
	cfg := oneShard(1)
	walk(&theMachine, &cfg, 0, func(t *Transition, st *step) {
		before := *st.s
		t.do(st)
		for i, m := range machines {
			if from, to := m.where(&before), m.where(st.s); from != to {
				seen[i][edge{from, to, t.Name}] = true
			}
		}
	}, nil, nil, nil)
	diagrams := map[string]string{}
	for i, m := range machines {
		diagrams[m.name] = diagram(m, seen[i])
	}
	return diagrams
}

// diagram draws the edges, those between the same two states as one.
func diagram(m component, edges map[edge]bool) string {
	rows := map[[2]string][]string{}
	for e := range edges {
		k := [2]string{e.from, e.to}
		rows[k] = append(rows[k], e.row)
	}
	var lines []string
	for k, names := range rows {
		slices.Sort(names)
		lines = append(lines, fmt.Sprintf("    %s --> %s: %s\n", k[0], k[1], strings.Join(names, "<br/>")))
	}
	slices.Sort(lines)
	return "stateDiagram-v2\n    [*] --> " + m.from + "\n" + strings.Join(lines, "")
}

// Markdown returns the table of transitions as a Markdown table.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| transition | on | if | reads | writes | emits | token | does |\n|---|---|---|---|---|---|---|---|\n")
	for _, t := range theMachine.rows {
		var guards, emits []string
		for _, g := range t.Guards {
			guards = append(guards, g.Name)
		}
		for _, k := range t.Emits {
			emits = append(emits, k.String())
		}
		slot := ""
		if t.Slot != NoSlot {
			slot = t.Slot.String()
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", t.Name, t.On, strings.Join(guards, "; "),
			(t.guardReads() | t.Looks).list(), t.Writes.list(), strings.Join(emits, ", "), slot, t.Does)
	}
	return b.String()
}

func (s Places) list() string {
	var names []string
	for _, p := range s.List() {
		names = append(names, p.String())
	}
	return strings.Join(names, ", ")
}
