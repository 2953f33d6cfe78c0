package layering

import (
	"path"
	"slices"
	"strings"
	"testing"
)

// kind says what a package is for, which decides whom it may import besides the
// layers below its own.
type kind int

const (
	// library is what an importer of the module links.
	library kind = iota
	// suite is code for tests in ordinary files: conformance suites that mount or
	// journal authors run, corpora. Only tests and other suites import it.
	suite
	// edge is a program, an example, a tool of this repository or its data. It may
	// import everything; nothing imports it but edges and tests.
	edge
)

// entry is a row of the table of layers.
type entry struct {
	layer int
	kind  kind
	// onTop lists packages of the same layer that this one may import all the same.
	onTop []string
}

// table is the layers of this module, by path below its root ("." is the root). A
// library may import libraries of lower layers; a suite those, the package that it
// is a suite for, and suites.
//
//	5   cmd/…   examples/…
//	4   root   ←   indexbs   gateway   status      export
//	3   projection
//	2   fsm      journal      index      mount      throttle
//	1   internal/cache   internal/carscan   internal/mapped
//	0   shard    internal/ranges   internal/updown   internal/cids   internal/links   internal/planted   ←   internal/fsio
var table = map[string]entry{
	"shard":           {layer: 0},
	"internal/ranges": {layer: 0},
	"internal/updown": {layer: 0},
	"internal/cids":   {layer: 0},
	"internal/links":  {layer: 0},
	// Imported by whoever has a mistake to make on purpose.
	"internal/planted": {layer: 0},
	"internal/fsio":    {layer: 0, onTop: []string{"internal/planted"}},

	"internal/cache":   {layer: 1},
	"internal/carscan": {layer: 1},
	"internal/mapped":  {layer: 1},

	"fsm":      {layer: 2},
	"journal":  {layer: 2},
	"index":    {layer: 2},
	"mount":    {layer: 2},
	"throttle": {layer: 2},

	"projection": {layer: 3},

	// These take a store by its types, which the root declares.
	".":       {layer: 4},
	"indexbs": {layer: 4, onTop: []string{"."}},
	"export":  {layer: 4}, // takes any source of blocks
	"gateway": {layer: 4, onTop: []string{".", "indexbs"}},
	"status":  {layer: 4, onTop: []string{"."}},

	"internal/fsio/fsiotest":    {layer: 0, kind: suite},
	"internal/carscan/hostile":  {layer: 1, kind: suite},
	"journal/journaltest":       {layer: 2, kind: suite},
	"projection/projectiontest": {layer: 3, kind: suite},
	"index/toplevel":            {layer: 2, onTop: []string{"index"}},
	"index/indextest":           {layer: 2, kind: suite},
	"mount/mounttest":           {layer: 2, kind: suite},

	"cmd/dagstore":          {layer: 5, kind: edge},
	"examples/quickstart":   {layer: 5, kind: edge},
	"testdata":              {layer: 5, kind: edge},
	"internal/gentestdata":  {layer: 5, kind: edge},
	"internal/guarantees":   {layer: 5, kind: edge},
	"internal/layering":     {layer: 5, kind: edge},
	"internal/planted/hunt": {layer: 5, kind: edge},
	"internal/scale":        {layer: 5, kind: edge},
}

// refuse says why package from may not import package to, or "". Tests may use
// suites, data and their neighbours, but still reach for nothing above themselves:
// what a test needs from above is tested above.
func refuse(from, to string, inTest bool) string {
	f, ok := table[from]
	if !ok {
		return "" // reported once, by TestPackages
	}
	t, ok := table[to]
	if !ok || f.kind == edge || from == to {
		return ""
	}
	switch {
	case t.kind == library && t.layer < f.layer:
		return ""
	case slices.Contains(f.onTop, to):
		return ""
	case inTest && (t.kind != library || t.layer == f.layer):
		return ""
	case f.kind == suite && (t.kind == suite || strings.HasPrefix(from, to+"/")):
		return ""
	case t.kind == suite:
		return "a suite is for tests; import it from a _test.go file or from another suite"
	case t.kind == edge:
		return "nothing of the library imports a program, an example or test data; move what is needed into a package of the table"
	case t.layer > f.layer:
		return "imports point down, and this one points up; move what is needed to a lower layer, or declare here the small interface that is used and let the caller pass it in"
	default:
		return "imports point down, and this one points sideways; move what both need to a lower layer, or declare here the small interface that is used and let the layer above join the two"
	}
}

// TestImports: imports point down, never sideways and never up.
func TestImports(t *testing.T) {
	for _, f := range sources(t) {
		for _, imp := range f.imports {
			to, ok := inModule(imp.path)
			if !ok {
				continue
			}
			if why := refuse(f.pkg, to, f.test); why != "" {
				t.Errorf("%s: %s (layer %d) imports %s (layer %d): %s",
					f.at(imp.pos), f.pkg, table[f.pkg].layer, to, table[to].layer, why)
			}
		}
	}
}

// TestRefuse is the rule itself by examples, so that a slip in it shows.
func TestRefuse(t *testing.T) {
	for _, c := range []struct {
		from, to string
		inTest   bool
		ok       bool
	}{
		{from: "journal", to: "shard", ok: true},
		{from: "journal", to: "index"},
		{from: "mount", to: "throttle"},
		{from: "mount", to: "throttle", inTest: true, ok: true},
		{from: "shard", to: "journal"},
		{from: "shard", to: "journal", inTest: true},
		{from: ".", to: "projection", ok: true},
		{from: ".", to: "indexbs"},
		{from: "indexbs", to: ".", ok: true},
		{from: "index", to: "internal/carscan", ok: true},
		{from: "index", to: "internal/carscan/hostile"},
		{from: "index", to: "internal/carscan/hostile", inTest: true, ok: true},
		{from: "journal/journaltest", to: "journal", ok: true},
		{from: "journal/journaltest", to: "index"},
		{from: "journal/journaltest", to: "internal/fsio", ok: true},
		{from: "index", to: "testdata"},
		{from: "index", to: "testdata", inTest: true, ok: true},
		{from: "examples/quickstart", to: "testdata", ok: true},
	} {
		if why := refuse(c.from, c.to, c.inTest); (why == "") != c.ok {
			t.Errorf("refuse(%s → %s, test %v) = %q, want ok %v", c.from, c.to, c.inTest, why, c.ok)
		}
	}
}

// TestPackages: every package has a row in the table and a name that says what is
// inside.
func TestPackages(t *testing.T) {
	// Names that fit any content.
	vague := []string{"util", "utils", "common", "types", "log", "misc", "base", "shared", "lib"}
	seen := map[string]bool{}
	for _, f := range sources(t) {
		if seen[f.pkg] {
			continue
		}
		seen[f.pkg] = true
		if _, ok := table[f.pkg]; !ok {
			t.Errorf("package %s is in no layer: add it to the table in internal/layering/layering_test.go, as low as its imports allow", f.pkg)
		}
		if slices.Contains(vague, f.name) || slices.Contains(vague, path.Base(f.pkg)) {
			t.Errorf("package %s: the name says nothing; call it by what is inside", f.pkg)
		}
	}
}

// TestMachineIsPure: the shard machine decides and does nothing else, so it has no
// use for anything that waits, measures time, or reads and writes. Shards' names and
// events are values in the same sense.
func TestMachineIsPure(t *testing.T) {
	impure := []string{"context", "sync", "time", "io", "os", "net", "syscall"}
	for _, f := range sources(t) {
		if f.test || f.pkg != "fsm" && f.pkg != "shard" {
			continue
		}
		for _, imp := range f.imports {
			if first, _, _ := strings.Cut(imp.path, "/"); slices.Contains(impure, first) {
				t.Errorf("%s: %s imports %s: return what is to be done as an effect and let the event loop do it; time comes in as a number", f.at(imp.pos), f.pkg, imp.path)
			}
		}
	}
}
