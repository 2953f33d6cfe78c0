package dagstore

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/dagstore/dagstore/index/toplevel"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
)

// The simulator runs a whole store on a simulated disk. It takes the event loop's
// turns itself, decides by the seed which job runs next and which call of a mount
// returns what, fails and crashes the disk, and holds the store to its invariants
// after every step. The same seed does the same.
//
// Nothing runs but what the simulator has just let go on: a job, a caller, a gate.
// It waits with synctest.Wait until all of it has ended or waits for the simulator
// once more. Time is the bubble's.

var (
	simSeed  = flag.Uint64("sim.seed", 0, "run only this seed of the simulator")
	simOps   = flag.Int("sim.ops", 0, "operations of the simulator in all, or of the one seed; 0: as many as suit a normal test run")
	simFirst = flag.Uint64("sim.first", 1, "the first seed of many")
)

const (
	simRoot    = "/store"
	simOpsSeed = 320 // operations of one seed, for many short runs find more than one long one
)

// TestSim runs many short simulations. A failed one prints its last operations and
// the command that repeats it. Proves C5, C8, C9, C11, F9, F10, F17,
// F18, F27, F28, F30, S8 (names), I1, I2, I3, I4, I5, I6, I7, I8, I9, I10,
// I11 (directory of copies), I12 (one fetch per copy), I13, I14, I15, I16, I17, N1,
// G1, G2, G3, G4, G5 (at the store).
func TestSim(t *testing.T) {
	if *simSeed != 0 {
		n := *simOps
		if n == 0 {
			n = simOpsSeed
		}
		runSim(t, *simSeed, n, simLoud)
		return
	}
	total := *simOps
	if total == 0 {
		total = 205_000
		if testing.Short() {
			total = 20_000
		}
	}
	began := time.Now()
	seed := *simFirst
	var sum simStats
	for sum.ops < total && !t.Failed() {
		_, st := runSim(t, seed, simOpsSeed, 0)
		sum.add(&st)
		seed++
	}
	t.Logf("%d seeds, %d operations in %s: %+v", seed-*simFirst, sum.ops, time.Since(began).Round(time.Millisecond), sum)
	fsiotest.Report(t, "dagstore.TestSim", sum.crashes+sum.kills+sum.diskFaults, testing.Short() || *simOps != 0)
}

// TestSimRepeats: the same seed leaves the same trace, operation by operation, or a
// failure could not be looked into.
func TestSimRepeats(t *testing.T) {
	for seed := uint64(1001); seed < 1013; seed++ {
		a, _ := runSim(t, seed, simOpsSeed, simOneGC)
		b, _ := runSim(t, seed, simOpsSeed, simOneGC)
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				t.Fatalf("seed %d: operation %d was\n  %s\nthe first time, then\n  %s", seed, i, a[i], b[i])
			}
		}
		if len(a) != len(b) {
			t.Fatalf("seed %d: %d operations, then %d", seed, len(a), len(b))
		}
	}
}

// simStats counts what happened, to see that everything does.
type simStats struct {
	ops, answers, accessors, reads, crashes, kills, reopens, failedOpens             int
	diskFaults, mountFaults, checks, gates, available, destroyed, recovered, drained int
	checkpoints, compactions, restored                                               int
}

func (s *simStats) add(o *simStats) {
	s.ops += o.ops
	s.answers += o.answers
	s.accessors += o.accessors
	s.reads += o.reads
	s.crashes += o.crashes
	s.kills += o.kills
	s.reopens += o.reopens
	s.failedOpens += o.failedOpens
	s.diskFaults += o.diskFaults
	s.mountFaults += o.mountFaults
	s.checks += o.checks
	s.gates += o.gates
	s.available += o.available
	s.destroyed += o.destroyed
	s.recovered += o.recovered
	s.drained += o.drained
	s.checkpoints += o.checkpoints
	s.compactions += o.compactions
	s.restored += o.restored
}

// simFlags say how a seed is run.
type simFlags uint8

const (
	simLoud  simFlags = 1 << iota // print every operation
	simOneGC                      // one collection at a time: two that are woken together run in any order
)

// runSim runs one seed and returns its trace.
func runSim(t *testing.T, seed uint64, ops int, flags simFlags) (trace []string, st simStats) {
	synctest.Test(t, func(t *testing.T) {
		cryptotest.SetGlobalRandom(t, seed)
		s := newSimulator(t, seed)
		s.loud, s.oneGC = flags&simLoud != 0, flags&simOneGC != 0
		defer func() {
			if p := recover(); p != nil {
				s.report(fmt.Sprintf("panic: %v\n%s", p, debug.Stack()))
				panic(p)
			}
		}()
		s.run(ops)
		trace, st = s.trace, s.stats
		st.diskFaults = int(s.hooks.injected.Load())
	})
	return trace, st
}

// simulator is one run.
type simulator struct {
	t     *testing.T
	seed  uint64
	rng   *rand.Rand
	loud  bool
	oneGC bool
	trace []string
	stats simStats

	w    *world
	disk *fsio.Sim
	d    *DAGStore
	e    *eventLoop
	jobs []func()
	// what this process of the store was given
	policy  RecoverOnStartPolicy
	doneOff bool // e.done is closed

	hooks simHooks
	model simModel
}

func newSimulator(t *testing.T, seed uint64) *simulator {
	s := &simulator{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 77)),
		w: &world{sources: make(map[string]*carSource)},
	}
	s.hooks.init(seed)
	s.model.init(s)
	s.disk = fsio.NewSim(seed, s.simOptions()...)
	return s
}

func (s *simulator) simOptions() []fsio.SimOption {
	var o []fsio.SimOption
	if s.seed%5 == 1 {
		o = append(o, fsio.TornSectors())
	}
	return append(o, fsio.TraceLimit(0))
}

// goroutineNumber is in the messages of panics, and is another in every run.
var goroutineNumber = regexp.MustCompile(`goroutine \d+`)

// logf records one operation.
func (s *simulator) logf(format string, args ...any) {
	line := goroutineNumber.ReplaceAllString(fmt.Sprintf(format, args...), "goroutine")
	s.trace = append(s.trace, line)
	if s.loud {
		fmt.Printf("%5d %s\n", len(s.trace), line)
	}
}

// failf ends the run with what led to it.
func (s *simulator) failf(format string, args ...any) {
	s.t.Helper()
	s.report(fmt.Sprintf(format, args...))
	// The bubble cannot end while goroutines wait in it; failing must not hang.
	s.abort()
	s.t.FailNow()
}

func (s *simulator) report(what string) {
	s.t.Helper()
	from := max(0, len(s.trace)-50)
	s.t.Errorf("last operations:\n  %s\nseed %d, operation %d: %s\nrepeat: go test -run 'TestSim$' -sim.seed %d -sim.ops %d .",
		strings.Join(s.trace[from:], "\n  "), s.seed, s.stats.ops, what, s.seed, max(simOpsSeed, s.stats.ops))
}

// abort lets everything end somehow.
func (s *simulator) abort() {
	s.hooks.off()
	s.openAllGates()
	s.model.closeAll()
	s.model.reqs = nil
	if s.d != nil {
		s.closeStore()
	}
	s.openAllGates()
}

// settle waits until nothing runs that was not stopped by the simulator.
func (s *simulator) settle() { synctest.Wait() }

func (s *simulator) pct(p float64) bool { return s.rng.Float64()*100 < p }

// open starts a store on the disk. It may fail, or crash, if faults are on.
func (s *simulator) open(opts openFaults) error {
	s.hooks.opening(opts)
	s.disk.OnOp(s.hooks.onOp)
	s.jobs = nil
	s.doneOff = false
	registry := func(c *Config) {
		c.drive = s.drive
		c.RecoverOnStart = s.policy
		c.MaxConcurrentIndex = 1 + int(s.seed%3)
		c.MaxConcurrentReadyFetches = 1 + int(s.seed/3%3)
		c.MaxConcurrentOpens = 1 + int(s.seed/9%3)
		c.IdleHandles = int(s.seed%4) - 1
		c.TopLevel = toplevel.Options{Memory: 512 << (s.seed % 3), FanIn: 2 << (s.seed % 2), MergeShare: 1, RestAfter: -1}
		c.Logger = slog.New(slog.DiscardHandler)
		if s.seed%3 == 0 {
			c.FailureCh = make(chan ShardResult, 2) // nobody reads it
		}
		if s.seed%7 == 0 {
			c.TraceCh = make(chan Trace) // nor this
		}
	}
	if s.loud {
		s.logf("open policy %d", s.policy)
	}
	d, err := Open(s.t.Context(), simRoot, withFS(s.disk), WithConfig(registry),
		WithMount("sim", &simMount{w: s.w}), WithMount("stream", &streamMount{simMount{w: s.w, stream: true}}),
		WithCheckpoints(projection.CheckpointPolicy{Events: 1 + s.seed%11}),
		WithRetention(projection.Retention{Bytes: 1 - int64(s.seed%3/2)*2}), // two in three compact
		WithJournalOptions(journal.FileOptions{SegmentSize: 1024 << (s.seed % 4), Preallocate: -1 + int64(s.seed%2)*4097}))
	s.hooks.opened()
	if err != nil {
		s.settle()
		return err
	}
	s.d, s.e = d, d.loop
	s.settle()
	return nil
}

// drive takes over a store's event loop.
func (s *simulator) drive(e *eventLoop) {
	s.hooks.opened()
	e.cancels = func(cancel context.CancelFunc) context.CancelFunc {
		return func() {
			s.hooks.main(false)
			cancel()
			s.settle()
			s.hooks.main(true)
		}
	}
	e.chance = func(n int64) int64 { return int64(s.seed*2654435761+e.turns) % n }
	e.spawn = func(f func()) {
		e.d.jobs.Add(1)
		s.jobs = append(s.jobs, func() { defer e.d.jobs.Done(); f() })
	}
}

// turn lets the event loop take one turn.
func (s *simulator) turn() bool {
	s.hooks.main(true)
	busy := s.e.turn()
	s.hooks.main(false)
	s.e.mu.Lock()
	closed := s.e.mu.closed
	s.e.mu.Unlock()
	if closed && !s.doneOff {
		s.doneOff = true
		close(s.e.done)
	}
	s.settle()
	return busy
}

// runJob starts job i, and waits until it ends or stops at a gate.
func (s *simulator) runJob(i int) {
	f := s.jobs[i]
	s.jobs = slices.Delete(s.jobs, i, i+1)
	go f()
	s.settle()
}

func (s *simulator) numGates() int {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return len(s.w.gates)
}

// openGate lets the call at gate i go on with v.
func (s *simulator) openGate(i int, v verdict) {
	s.w.mu.Lock()
	g := s.w.gates[i]
	s.w.gates = slices.Delete(s.w.gates, i, i+1)
	s.w.mu.Unlock()
	g.open <- v
	s.settle()
}

// openAllGates opens what is and comes to be closed, one after the other.
func (s *simulator) openAllGates() {
	s.w.mu.Lock()
	s.w.free = true
	s.w.mu.Unlock()
	s.settle()
	for s.numGates() > 0 {
		s.openGate(0, verdictOK)
	}
}

// closeStore closes the store and takes the turns that Close needs.
func (s *simulator) closeStore() error {
	done := make(chan error, 1)
	d := s.d
	views := d.Health()
	s.stats.checkpoints += int(views.Checkpoints.Checkpoints)
	s.stats.compactions += int(views.Checkpoints.Compactions)
	if views.Recovery.Checkpoint.Seq > 0 {
		s.stats.restored++
	}
	go func() { done <- d.Close() }()
	s.settle()
	patience := time.Now() // for the disk
	if s.rng.IntN(2) == 0 {
		patience = patience.Add(5 * time.Second)
	}
	for range 1 << 20 {
		select {
		case err := <-done:
			s.settle()
			s.model.poll()
			s.d, s.e = nil, nil
			if !s.hooks.dead() {
				s.noWrites()
			}
			return err
		default:
		}
		s.model.poll()
		switch {
		case s.turn():
		case len(s.jobs) > 0:
			s.runJob(s.rng.IntN(len(s.jobs)))
		case s.hooks.diskGates(s.w) >= 0 && !time.Now().Before(patience):
			s.openGate(s.hooks.diskGates(s.w), verdictOK)
		default: // it waits for a mount that ignores its context, or for the disk
			<-time.After(50 * time.Millisecond)
			s.settle()
		}
	}
	s.t.Fatalf("seed %d: Close does not return", s.seed)
	return nil
}

// noWrites finds nobody writing an index, as another process may do from now on.
func (s *simulator) noWrites() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for _, g := range s.w.gates {
		harmless := strings.HasPrefix(g.what, "disk remove") || strings.HasPrefix(g.what, "disk syncdir")
		if g.src == nil && strings.Contains(g.what, "/index") && !harmless {
			s.t.Errorf("seed %d: Close left somebody at %s", s.seed, g.what)
		}
	}
}

// simHooks decides about every operation of the disk.
type simHooks struct {
	seed  uint64
	phase simPhase
	epoch uint64 // counts processes
	count map[string]uint64
	mode  simMode
	open  openFaults

	// fixed is a fault at one operation of the machine, for a directed test.
	fixed struct {
		on    bool
		at    uint64
		of    func(fsio.Op) bool // in place of at
		fault fsio.Fault
	}

	stall string // operations on names that contain it wait at a gate

	inMain   string // the goroutine that takes a turn, or "": it must not wait at a gate
	disabled bool
	rate     struct{ file, journal, crash, gate uint64 } // one in so many; 0: never
	victim   func(name string) bool
	w        *world

	mu       chanMutex
	n        int  // operations of this opening
	died     bool // power was lost in an operation
	injected atomic.Int64
	journal  atomic.Int64 // faults of the journal in this process
	blame    func(name string, f fsio.Fault)
}

// chanMutex is a mutex whose waiters wait durably in a bubble.
type chanMutex chan struct{}

func (m chanMutex) lock()   { m <- struct{}{} }
func (m chanMutex) unlock() { <-m }

type simPhase uint8

const (
	phaseRuns simPhase = iota
	phaseOpens
)

// simMode says what a seed does to the store.
type simMode uint8

const (
	modeCalm   simMode = iota // crashes only
	modeMounts                // and the mounts of some shards misbehave
	modeDisk                  // and the disk fails for the files of some shards, and the journal
	modeWild                  // all of that for all shards
)

// openFaults is what goes wrong while a store opens.
type openFaults struct {
	at    int // the operation, from 1; 0: none
	fault fsio.Fault
}

func (h *simHooks) init(seed uint64) {
	h.seed, h.mode = seed, simMode(seed%4)
	h.count = make(map[string]uint64)
	h.mu = make(chanMutex, 1)
	h.rate.crash, h.rate.gate = 1500, 12
	if seed%3 == 1 {
		h.rate.gate = 3
	}
	switch h.mode {
	case modeDisk:
		h.rate.file, h.rate.journal = 30, 250
	case modeWild:
		h.rate.file, h.rate.journal = 60, 400
	}
}

func (h *simHooks) off() {
	h.mu.lock()
	h.disabled = true
	h.mu.unlock()
}

func (h *simHooks) opening(o openFaults) {
	h.mu.lock()
	h.phase, h.open, h.n, h.died = phaseOpens, o, 0, false
	h.journal.Store(0)
	h.epoch++
	clear(h.count)
	h.mu.unlock()
}

func (h *simHooks) opened() {
	h.mu.lock()
	h.phase = phaseRuns
	h.mu.unlock()
}

// main says that the simulator's own goroutine does what is done.
func (h *simHooks) main(on bool) {
	h.mu.lock()
	if h.inMain = ""; on {
		h.inMain = goroutine()
	}
	h.mu.unlock()
}

// goroutine names the goroutine that calls it. What a turn woke runs beside the turn, and
// whether that waits at a gate must not depend on which of them is faster.
func goroutine() string {
	var buf [32]byte
	name, _, _ := strings.Cut(string(buf[:runtime.Stack(buf[:], false)]), "[")
	return name
}

// normal is a name without what is random in it.
func normal(name string) string {
	if i := strings.Index(name, ".partial-"); i >= 0 {
		return name[:i+9]
	}
	return name
}

// chance is true once in n, depending on the seed and on what is done how often, but
// not on what else goes on.
func (h *simHooks) chance(n uint64, what string) bool {
	if n == 0 {
		return false
	}
	h.count[what]++
	f := fnv.New64a()
	var b [24]byte
	binary.LittleEndian.PutUint64(b[:], h.seed)
	binary.LittleEndian.PutUint64(b[8:], h.epoch)
	binary.LittleEndian.PutUint64(b[16:], h.count[what])
	f.Write(b[:])
	io.WriteString(f, what)
	x := f.Sum64()
	x ^= x >> 29
	x *= 0xbf58476d1ce4e5b9
	return (x^x>>32)%n == 0
}

// onOp is asked before every operation of the disk.
func (h *simHooks) onOp(op fsio.Op) error {
	h.mu.lock()
	fault, wait := h.decide(op)
	h.mu.unlock()
	if wait {
		h.w.pass(context.Background(), "disk "+op.Kind.String()+" "+normal(op.Name), nil)
	}
	if fault != 0 {
		return fault
	}
	return nil
}

func (h *simHooks) decide(op fsio.Op) (fault fsio.Fault, wait bool) {
	if h.disabled || op.Kind == fsio.OpClose {
		return 0, false
	}
	if h.fixed.on && (h.fixed.of == nil && op.Index == h.fixed.at || h.fixed.of != nil && h.fixed.of(op)) {
		h.fixed.on = false
		return h.inject(op, h.fixed.fault), false
	}
	if h.phase == phaseOpens {
		if h.n++; h.n == h.open.at {
			return h.inject(op, h.open.fault), false
		}
		return 0, false
	}
	what := op.Kind.String() + " " + normal(op.Name)
	dir := path.Base(path.Dir(op.Name))
	if op.Kind.Mutates() && h.chance(h.rate.crash, "crash "+what) {
		return h.inject(op, fsio.FaultCrash), false
	}
	switch {
	case dir == "journal" || path.Base(op.Name) == "journal":
		if op.Kind.Mutates() && h.chance(h.rate.journal, what) {
			return h.inject(op, h.pick(what)), false
		}
		return 0, false
	case h.victim(op.Name) && h.chance(h.rate.file, what):
		return h.inject(op, h.pick(what)), false
	}
	if h.stall != "" && strings.Contains(op.Kind.String()+" "+op.Name, h.stall) {
		return 0, true
	}
	return 0, op.Kind.Mutates() && strings.HasPrefix(op.Name, simRoot) && (h.inMain == "" || h.inMain != goroutine()) && h.chance(h.rate.gate, "gate "+what)
}

func (h *simHooks) pick(what string) fsio.Fault {
	switch {
	case h.chance(3, "a"+what):
		return fsio.FaultENOSPC
	case h.chance(2, "b"+what):
		return fsio.FaultShortWrite
	}
	return fsio.FaultEIO
}

// inject notes what is done to an operation.
func (h *simHooks) inject(op fsio.Op, f fsio.Fault) fsio.Fault {
	if f == fsio.FaultShortWrite && op.Kind != fsio.OpWrite {
		f = fsio.FaultEIO
	}
	if f == fsio.FaultCrash {
		h.died = true
		return f
	}
	h.injected.Add(1)
	if strings.HasPrefix(op.Name, simRoot+"/journal") {
		h.journal.Add(1)
	}
	h.blame(op.Name, f)
	return f
}

func (h *simHooks) dead() bool {
	h.mu.lock()
	defer h.mu.unlock()
	return h.died
}

// diskGates returns the index of a gate of the disk, or -1: a disk, unlike a mount,
// always returns in the end.
func (h *simHooks) diskGates(w *world) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.IndexFunc(w.gates, func(g *gate) bool { return g.src == nil })
}

// foreign files lie about everywhere and must stay as they are.
var foreignFiles = map[string]string{
	simRoot + "/notes.txt":                                                "mine",
	simRoot + "/journal/README":                                           "do not touch",
	simRoot + "/index/.keep":                                              "x",
	simRoot + "/index/0000000000000001-zz.idx":                            "almost an index",
	simRoot + "/index/film.full.idx":                                      "of the predecessor",
	simRoot + "/copies/film.car":                                          "a film",
	simRoot + "/copies/0000000000000001-00112233445566778899aabbccddeeff": "no suffix",
	simRoot + "/copies/0000000000000001-00112233445566778899aabbccddeeff.complete.backup": "no",
	simRoot + "/copies/transient-film.complete":                                           "of the predecessor",
	simRoot + "/copies/deep/0000000000000001-00112233445566778899aabbccddeeff.complete":   "below",
	"/user/keep.car":   "outside",
	"/store2/other.db": "beside",
}

// writeFile writes a durable file of somebody else's.
func writeFile(fsys fsio.FS, name string, data []byte) error {
	if err := fsys.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close(), fsys.SyncDir(path.Dir(name)))
}

func readFile(fsys fsio.FS, name string) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// checkForeign holds a disk to the foreign files.
func checkForeign(disk fsio.FS, files map[string]string) error {
	for name, want := range files {
		got, err := readFile(disk, name)
		if err != nil || string(got) != want {
			return fmt.Errorf("I14: foreign file %s is now %.40q, %v", name, got, err)
		}
	}
	return nil
}

// filesIn lists the regular files of a directory.
func filesIn(disk fsio.FS, dir string) (names []string, err error) {
	entries, err := disk.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// storeFiles lists the copies and indices that the store made, and what is left of
// unfinished ones.
func storeFiles(disk fsio.FS) (copies, indices, temps []string, err error) {
	names, err := filesIn(disk, simRoot+"/copies")
	if err != nil {
		return nil, nil, nil, err
	}
	for _, n := range names {
		if _, ok := foreignFiles[simRoot+"/copies/"+n]; ok {
			continue
		}
		if name, ok := strings.CutSuffix(n, ".complete"); ok {
			copies = append(copies, name)
		} else {
			temps = append(temps, n)
		}
	}
	if names, err = filesIn(disk, simRoot+"/index"); err != nil {
		return nil, nil, nil, err
	}
	for _, n := range names {
		if _, ok := foreignFiles[simRoot+"/index/"+n]; ok {
			continue
		}
		if fsio.IsTemp(n) {
			temps = append(temps, n)
		} else {
			indices = append(indices, n)
		}
	}
	for _, dir := range []string{"journal", "checkpoints"} {
		if names, err = filesIn(disk, simRoot+"/"+dir); err != nil {
			return nil, nil, nil, err
		}
		for _, n := range names {
			if fsio.IsTemp(n) {
				temps = append(temps, dir+"/"+n)
			}
		}
	}
	return copies, indices, temps, nil
}
