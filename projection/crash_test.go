package projection_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
)

// program is what a process does with the journal and the disk of its checkpoints,
// over all its restarts. The journal is durable; what is tried is the disk.
type program struct {
	t *testing.T
	j journal.Journal
	// saved is the end of the last checkpoint of the catalogue that was reported as
	// made.
	saved uint64
}

// run recovers, checks what it finds, commits until there are upTo batches, and ends.
// Whatever the disk does, all of that works: checkpoints are accelerators only.
func (p *program) run(sim *fsio.Sim, upTo int, what string) projection.Recovery {
	p.t.Helper()
	opts := on(sim)
	opts.Retention.Bytes = 1
	opts.Policy.Events = 12
	w := idleWorld(p.t, p.j, opts)
	defer w.r.Close()
	rec, err := w.r.Recover(p.t.Context())
	if err != nil {
		p.t.Fatalf("%s: %v", what, err)
	}
	p.same(w, what)
	w.r.Start()
	for w.n < upTo {
		before := w.r.Stats().Checkpoints
		w.commit(1)
		if w.r.Stats().Checkpoints > before {
			p.saved = w.r.Head().Seq
		}
	}
	p.same(w, what)
	return rec
}

func (p *program) same(w *world, what string) {
	p.t.Helper()
	if got, want := w.cat.Snapshot().Digest(), digestAt(p.t, w.n); got != want || w.r.Head() != p.j.Head() || w.end(w.n) != p.j.Head().Seq {
		p.t.Fatalf("%s: the catalogue at %v is not what the journal comes to at %v", what, w.r.Head(), p.j.Head())
	}
}

// wantSaved fails if a checkpoint that was reported as made was not used.
func (p *program) wantSaved(rec projection.Recovery, what string) {
	p.t.Helper()
	if rec.Checkpoint.Seq < p.saved || len(rec.Ignored) > 0 || rec.Checkpoint.Seq+rec.Replayed != p.j.Head().Seq {
		p.t.Fatalf("%s: the checkpoint at %d was made, and this is found: %+v", what, p.saved, rec)
	}
}

// crashBatches is how many batches the program commits, and crashHalf after how many it
// is started again.
const (
	crashBatches = 20
	crashHalf    = 11
)

func newCrashSim(seed uint64) *fsio.Sim {
	return fsio.NewSim(seed, fsio.TornSectors(), fsio.ReorderRenames())
}

// journals are what the program runs on: with all history, and one that is compacted
// after each checkpoint.
var journals = map[string]func() journal.Journal{
	"all history": func() journal.Journal { return journal.NewMemory() },
	"compacted":   func() journal.Journal { return &compacting{Journal: journal.NewMemory()} },
}

// Proves C6, C7, C11, G6, G16: every fault at every operation on the disk while
// checkpoints are written, replaced and removed and the journal is compacted. The
// program goes on; after a crash, at once or later, the state is what the journal comes
// to, and no checkpoint that was reported as made is lost or torn.
func TestCrashEveryOperation(t *testing.T) {
	t.Parallel()
	seeds := uint64(2)
	if testing.Short() {
		seeds = 1
	}
	for name, newJournal := range journals {
		t.Run(name, func(t *testing.T) {
			clean := newCrashSim(1)
			p := program{t: t, j: newJournal()}
			p.run(clean, crashHalf, "clean")
			p.run(clean, crashBatches, "clean")
			if p.saved == 0 || clean.NumOps() < 100 {
				t.Fatalf("the run is not what the test wants: %d operations", clean.NumOps())
			}
			if c, ok := p.j.(*compacting); ok && c.Horizon().Seq == 0 {
				t.Fatal("nothing is compacted")
			}
			runs := 0
			for _, op := range clean.Ops() {
				for _, fault := range fsio.Faults() {
					if fault == fsio.FaultShortWrite && op.Kind != fsio.OpWrite || fault == fsio.FaultENOSPC && !op.Kind.Mutates() {
						continue
					}
					for seed := range seeds {
						what := fmt.Sprintf("%v, %v, seed %d", op, fault, seed)
						sim, p := newCrashSim(seed), program{t: t, j: newJournal()}
						sim.FailAt(op.Index, fault)
						p.run(sim, crashHalf, what)
						p.run(sim, crashBatches, what)
						if fault != fsio.FaultCrash && (sim.OpenFiles() > 0 || sim.HeldLocks() > 0) {
							t.Fatalf("%s: left open: %v", what, sim.OpenNames())
						}
						if seed%2 == 1 {
							sim = sim.Kill()
							p.wantSaved(p.run(sim, 0, what+", killed"), what+", killed")
						}
						sim = sim.Crash()
						p.wantSaved(p.run(sim, 0, what+", crashed"), what+", crashed")
						sim = sim.Crash()
						p.wantSaved(p.run(sim, 0, what+", again"), what+", again")
						p.run(sim, crashBatches+6, what+", and on")
						for _, file := range namesIn(t, sim, checkpoints) {
							if strings.Contains(file, ".tmp-") {
								t.Fatalf("%s: %s is left", what, file)
							}
						}
						runs++
					}
				}
			}
			t.Logf("%d operations, %d crash points", clean.NumOps(), runs)
		})
	}
}

// Proves C9 (checkpoints): power is lost at every operation that changes the disk, and
// then again, or a read fails, at every operation of the recovery from that.
func TestCrashDuringRecovery(t *testing.T) {
	for name, newJournal := range journals {
		t.Run(name, func(t *testing.T) {
			clean := newCrashSim(1)
			p := program{t: t, j: newJournal()}
			p.run(clean, crashBatches, "clean")
			runs, crashes := 0, 0
			for _, op := range clean.Ops() {
				if crashes++; !op.Kind.Mutates() || crashes%5 != 0 && testing.Short() {
					continue
				}
				what := op.String()
				sim, p := newCrashSim(op.Index), program{t: t, j: newJournal()}
				sim.FailAt(op.Index, fsio.FaultCrash)
				p.run(sim, crashBatches, what)
				sim = sim.Crash()
				probe := sim.Clone(1)
				p.run(probe, 0, what)
				for _, op := range probe.Ops() {
					for _, fault := range []fsio.Fault{fsio.FaultCrash, fsio.FaultEIO} {
						what := fmt.Sprintf("%s, then %v at %v of the recovery", what, fault, op)
						sim := sim.Clone(op.Index)
						sim.FailAt(op.Index, fault)
						p.run(sim, 0, what)
						p.wantSaved(p.run(sim.Crash(), 0, what), what)
						runs++
					}
				}
			}
			t.Logf("%d crash points", runs)
		})
	}
}

// Proves C11: while the disk is full, or fails, the store goes on without checkpoints,
// counts and says so; when it is well again they are made again.
func TestDiskFails(t *testing.T) {
	for _, fault := range []fsio.Fault{fsio.FaultEIO, fsio.FaultENOSPC, fsio.FaultShortWrite} {
		sim := fsio.NewSim(1)
		w := newWorld(t, &compacting{Journal: journal.NewMemory()}, on(sim), newUsageView())
		w.commit(20)
		made := w.r.Stats().Checkpoints
		sim.OnOp(func(op fsio.Op) error {
			if op.Kind.Mutates() {
				return fault
			}
			return nil
		})
		w.commit(30)
		w.wantReplayed()
		s := w.r.Stats()
		if s.Checkpoints != made || s.CheckpointsFailed < 4 || s.CheckpointsFailed > 30 {
			t.Errorf("%v: %+v", fault, s)
		}
		if f, err := w.r.Freshness("usage"); err != nil || f.Lag != 0 || f.Err != nil {
			t.Errorf("%v: %v, %v", fault, f, err)
		}
		if err := w.r.Checkpoint(t.Context()); err == nil {
			t.Errorf("%v: Checkpoint says nothing", fault)
		}
		sim.OnOp(nil)
		w.commit(20)
		if now := w.r.Stats().Checkpoints; now <= made {
			t.Errorf("%v: %d checkpoints, still", fault, now)
		}
		if sim.OpenFiles() > 0 {
			t.Errorf("%v: left open: %v", fault, sim.OpenNames())
		}
	}
}

// Proves C11, G6: a checkpoint that cannot be read is one that costs time, whatever
// read fails.
func TestReadsFail(t *testing.T) {
	sim, w := saved(t, newUsageView())
	probe := sim.Clone(1)
	w.again(t, probe, newUsageView())
	for _, op := range probe.Ops() {
		disk := sim.Clone(1)
		disk.FailAt(op.Index, fsio.FaultEIO)
		next, rec := w.again(t, disk, newUsageView())
		next.wantReplayed()
		if len(rec.Ignored) > 1 || op.Kind == fsio.OpRead && len(rec.Ignored) != 1 && op.Offset > 0 {
			t.Errorf("%v: %+v", op, rec)
		}
		if disk.OpenFiles() > 0 {
			t.Errorf("%v: left open: %v", op, disk.OpenNames())
		}
	}
}

// fileProgram has the journal on the same disk, in files.
type fileProgram struct {
	t *testing.T
	// acked and tried are batches that were acknowledged and attempted.
	acked, tried int
}

// run opens the journal, recovers, commits until there are upTo batches or the disk
// fails, and closes. It returns the error that stopped it.
func (p *fileProgram) run(sim *fsio.Sim, upTo int, what string) error {
	p.t.Helper()
	j, err := journal.OpenFile(sim, "/store/journal", journal.FileOptions{SegmentSize: 2 << 10, Preallocate: -1})
	if err != nil {
		return err
	}
	defer j.Close()
	opts := on(sim)
	opts.Retention.Bytes, opts.Policy.Events = 1, 12
	w := idleWorld(p.t, j, opts, newUsageView())
	defer w.r.Close()
	if _, err := w.r.Recover(p.t.Context()); err != nil {
		return err
	}
	w.r.Start()
	if w.n < p.acked || w.n > p.tried || w.end(w.n) != j.Head().Seq {
		p.t.Fatalf("%s: %d batches are found, %d were acknowledged and %d tried", what, w.n, p.acked, p.tried)
	}
	p.acked, p.tried = w.n, w.n
	for {
		if w.cat.Snapshot().Digest() != digestAt(p.t, w.n) {
			p.t.Fatalf("%s: the catalogue after %d batches is not what they come to", what, w.n)
		}
		if w.n >= upTo {
			break
		}
		p.tried = w.n + 1
		end, err := j.Append(w.history[w.n])
		if err != nil {
			return err
		}
		w.n++
		p.acked = w.n
		if err := w.r.Commit(&journal.Batch{Events: w.history[w.n-1], End: end}); err != nil {
			p.t.Fatalf("%s: %v", what, err)
		}
	}
	if rep, err := w.r.Check(p.t.Context()); err == nil && (len(rep.Differences) > 0 || rep.Live != rep.Replayed) {
		p.t.Fatalf("%s: %+v", what, rep)
	}
	return nil
}

// Proves C1, C4, C6, C7, C9, G6, I2, I4: a crash at every operation of journal,
// checkpoints, rotation and compaction together, on one disk, and other faults at a
// third of them; and two crashes after that.
func TestCrashWithJournal(t *testing.T) {
	t.Parallel()
	clean := newCrashSim(1)
	p := fileProgram{t: t}
	for _, upTo := range []int{crashHalf, crashBatches} {
		if err := p.run(clean, upTo, "clean"); err != nil {
			t.Fatal(err)
		}
	}
	runs := 0
	for _, op := range clean.Ops() {
		if !op.Kind.Mutates() && op.Index%3 != 0 || testing.Short() && op.Index%5 != 0 {
			continue
		}
		for _, fault := range []fsio.Fault{fsio.FaultEIO, fsio.FaultENOSPC, fsio.FaultCrash} {
			if fault != fsio.FaultCrash && (op.Kind == fsio.OpClose || op.Index%3 != 0) {
				continue
			}
			what := fmt.Sprintf("%v, %v", op, fault)
			sim, p := newCrashSim(op.Index), fileProgram{t: t}
			sim.FailAt(op.Index, fault)
			for _, upTo := range []int{crashHalf, crashBatches} {
				err := p.run(sim, upTo, what)
				if errors.As(err, new(*journal.DamageError)) {
					t.Fatalf("%s: %v", what, err)
				}
			}
			for range 2 {
				sim = sim.Crash()
				if err := p.run(sim, p.acked, what+", crashed"); err != nil {
					t.Fatalf("%s, crashed: %v", what, err)
				}
			}
			if err := p.run(sim, crashBatches+6, what+", again"); err != nil {
				t.Fatalf("%s, again: %v", what, err)
			}
			runs++
		}
	}
	t.Logf("%d operations, %d crash points", clean.NumOps(), runs)
}
