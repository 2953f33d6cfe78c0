package fsm

import (
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dagstore/dagstore/shard"
)

// bed is a net and a shard that is stepped through its life by hand.
type bed struct {
	t     testing.TB
	n     *Net
	s     *Shard
	o     Out
	rival Shard
	// in is used by the steps that must not allocate: an input belongs to the caller.
	in Input
}

func newBed(t testing.TB) *bed { return &bed{t: t, n: NewNet(2, 2, 2), s: &Shard{}} }

// do steps in on b's shard and returns the name of the first row that fired.
func (b *bed) do(in Input) string {
	b.t.Helper()
	b.o.Reset()
	if !b.n.Step(b.s, &in, &b.o) {
		b.t.Fatalf("no row of %s fired", in.Trigger)
	}
	if len(b.o.Fired) == 0 {
		return ""
	}
	return b.o.Fired[0].Name
}

// done ends the running job.
func (b *bed) done(in Input) string {
	b.t.Helper()
	in.Trigger, in.Attempt = doneOf[b.s.Job()], b.s.Attempt
	return b.do(in)
}

// open takes the shard to an open handle.
func (b *bed) open() *bed {
	b.do(Input{Trigger: Register, Gen: 1, Direct: true})
	b.done(Input{})
	b.do(Input{Trigger: Acquire, Ticket: 1})
	b.done(Input{})
	b.do(Input{Trigger: Release})
	if b.s.Handle != Open || b.s.Refs != 0 {
		b.t.Fatalf("handle %s, %d refs", b.s.Handle, b.s.Refs)
	}
	return b
}

func (b *bed) step(in Input) {
	b.in = in
	b.n.Step(b.s, &b.in, &b.o)
}

func (b *bed) acquireRelease() {
	b.o.Reset()
	b.step(Input{Trigger: Acquire, Ticket: 2})
	b.step(Input{Trigger: Release})
}

func (b *bed) parkServe() {
	b.o.Reset()
	b.step(Input{Trigger: CloseIdle})
	b.step(Input{Trigger: Acquire, Ticket: 2})
	b.step(Input{Trigger: OpenDone, Attempt: b.s.Attempt})
	b.step(Input{Trigger: Release})
}

// TestNoAllocation: stepping an acquire and a release, warm or parked, allocates
// nothing.
func TestNoAllocation(t *testing.T) {
	b := newBed(t).open()
	b.acquireRelease()
	if n := testing.AllocsPerRun(100, b.acquireRelease); n != 0 {
		t.Errorf("acquire and release allocate %v times", n)
	}
	b.parkServe()
	if n := testing.AllocsPerRun(100, b.parkServe); n != 0 {
		t.Errorf("park and serve allocate %v times", n)
	}
	if b.s.Refs != 0 {
		t.Errorf("%d refs", b.s.Refs)
	}
}

func BenchmarkAcquireRelease(b *testing.B) {
	x := newBed(b).open()
	b.ReportAllocs()
	for b.Loop() {
		x.acquireRelease()
	}
}

// BenchmarkParkServe closes the handle, acquires, opens, serves and releases: four
// steps and the automatic ones.
func BenchmarkParkServe(b *testing.B) {
	x := newBed(b).open()
	b.ReportAllocs()
	for b.Loop() {
		x.parkServe()
	}
}

func BenchmarkRegister(b *testing.B) {
	n := NewNet(1, 1, 1)
	in := Input{Trigger: Register, Ticket: 1, Gen: 1, Lazy: true}
	var out Out
	var s Shard
	b.ReportAllocs()
	for b.Loop() {
		s = Shard{}
		out.Reset()
		n.Step(&s, &in, &out)
	}
	if s.Life != shard.Registered {
		b.Fatal(s.Life)
	}
}

// TestImports: the machine does no I/O, keeps no time and waits for nothing, so it
// imports nothing that could.
func TestImports(t *testing.T) {
	forbidden := []string{"context", "sync", "sync/atomic", "time", "io", "os", "math/rand", "net"}
	notTests := func(name string) bool { return !strings.HasSuffix(name, "_test.go") }
	files, err := parseDir(notTests)
	if err != nil {
		t.Fatal(err)
	}
	for name, imports := range files {
		for _, path := range imports {
			if slices.Contains(forbidden, path) {
				t.Errorf("%s imports %s: give what it is needed for as an Input, or want it as an Effect", name, path)
			}
		}
	}
}

func parseDir(keep func(string) bool) (map[string][]string, error) {
	names, err := goFiles(keep)
	if err != nil {
		return nil, err
	}
	imports := map[string][]string{}
	for _, name := range names {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return nil, err
		}
		for _, spec := range f.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return nil, err
			}
			imports[name] = append(imports[name], path)
		}
	}
	return imports, nil
}
