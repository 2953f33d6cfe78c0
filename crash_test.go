package dagstore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"
	"testing/cryptotest"
	"testing/synctest"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

var crashSeed = flag.Uint64("crash.seed", 0, "what the tests that crash at every operation mix into their seeds")

// script is a run of a store that has everything in it. It ends early if the power
// goes.
func (s *simulator) script() {
	film, music, junk := s.model.keys[0], s.model.keys[3], s.model.keys[4]
	all := simContents()
	bad := &carSource{name: "bad", key: junk, exists: true, ready: true}
	bad.set(all[len(all)-1])
	steps := []func(){
		func() { s.scriptRegister(film, "one", all[4], true, false) },
		func() { s.scriptRegister(music, "two", all[3], false, true) },
		func() { s.scriptUse(music) },
		func() { s.scriptUse(film) },
		func() { s.actGC() },
		func() { s.scriptUse(film) },
		func() { s.taint(junk); s.scriptRegisterFrom(junk, bad, true, false) },
		func() { bad.set(all[2]); s.try(fsm.Recover, junk) },
		func() { s.scriptUse(junk) },
		func() { s.try(fsm.Destroy, film) },
		func() { s.scriptRegister(film, "three", all[7], true, false) },
		func() { s.scriptUse(film) },
		func() { s.try(fsm.Destroy, music) },
	}
	for _, step := range steps {
		if step(); s.hooks.dead() {
			return
		}
		s.rest()
		s.model.poll()
		if s.hooks.dead() {
			return
		}
		s.model.checkLoop()
	}
}

func (s *simulator) scriptRegister(key shard.Key, name string, c *content, stream, lazy bool) {
	src := &carSource{name: name, key: key, exists: true, ready: true}
	src.set(c)
	s.scriptRegisterFrom(key, src, stream, lazy)
}

func (s *simulator) scriptRegisterFrom(key shard.Key, src *carSource, stream, lazy bool) {
	s.w.sources[src.name] = src
	var m mount.Mount = &simMount{w: s.w, Name: src.name}
	if stream {
		m = &streamMount{simMount{w: s.w, Name: src.name, stream: true}}
	}
	r := s.plain(fsm.Register, key)
	r.src, r.lazy = src, lazy
	s.model.unknown[key] = true
	s.submit(r, s.d.RegisterShard(r.ctx, key, m, r.out, RegisterOpts{LazyInitialization: lazy}), ErrShardExists)
	s.rest()
}

// scriptUse acquires a shard, reads all of it, and closes it.
func (s *simulator) scriptUse(key shard.Key) {
	held := len(s.model.held)
	s.try(fsm.Acquire, key)
	if s.hooks.dead() || len(s.model.held) == held {
		return
	}
	h := s.model.held[held]
	for i := range h.content.blocks {
		if s.model.read(h, i); s.hooks.dead() {
			return
		}
	}
	s.model.closeAcc(held)
	s.rest()
}

// try makes a request that may fail, and sees it through.
func (s *simulator) try(kind fsm.Trigger, key shard.Key) {
	r := s.plain(kind, key)
	var err error
	switch kind {
	case fsm.Acquire:
		err = s.d.AcquireShard(r.ctx, key, r.out, AcquireOpts{})
	case fsm.Recover:
		err = s.d.RecoverShard(r.ctx, key, r.out, RecoverOpts{})
	case fsm.Destroy:
		s.stats.ops++
		r.began = s.stats.ops
		s.model.unknown[key] = true
		err = s.d.DestroyShard(r.ctx, key, r.out, DestroyOpts{})
	}
	s.submit(r, err, ErrShardUnknown)
	s.rest()
}

// plain is a request without a context of its own, whose answer is received at once.
func (s *simulator) plain(kind fsm.Trigger, key shard.Key) *simReq {
	s.model.nextReq++
	return &simReq{
		id: s.model.nextReq, kind: kind, key: key, ctx: context.Background(), out: make(chan ShardResult, 1), began: s.stats.ops,
	}
}

// scripted prepares a simulator whose mounts answer at once, and whose disk has one
// fault at most: f at operation n.
func scripted(t *testing.T, seed uint64, n uint64, f fsio.Fault) *simulator {
	cryptotest.SetGlobalRandom(t, seed)
	s := newSimulator(t, seed)
	s.hooks.mode = modeWild
	s.hooks.rate.file, s.hooks.rate.journal, s.hooks.rate.crash, s.hooks.rate.gate = 0, 0, 0, 0
	s.w.free = true
	s.hooks.disabled = true
	for name, text := range s.model.foreign {
		if err := writeFile(s.disk, name, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	s.disk = s.disk.Kill()
	s.hooks.disabled = false
	s.hooks.fixed.on, s.hooks.fixed.at, s.hooks.fixed.fault = f != 0, n, f
	return s
}

// TestCrashAtEveryOperation runs the script with each fault at each operation of the
// disk. Whatever happens, what was told is there afterwards, all can be mended, and
// nothing is left when all is destroyed. Proves C5, C8, C9, C11, F9, F10, F27, I2, I4,
// I7, I14, I17.
func TestCrashAtEveryOperation(t *testing.T) {
	var ops uint64
	synctest.Test(t, func(t *testing.T) {
		s := scripted(t, 1, 0, 0)
		if err := s.open(openFaults{}); err != nil {
			t.Fatal(err)
		}
		s.script()
		s.closeForScript()
		ops = s.disk.NumOps()
		s.dropStore()
	})
	stride := uint64(1)
	if testing.Short() {
		stride = 11
	}
	runs, again := 0, 0
	for n := uint64(0); n < ops; n += stride {
		for _, f := range fsio.Faults() {
			synctest.Test(t, func(t *testing.T) {
				s := scripted(t, *crashSeed<<32+n*7+uint64(f), n, f)
				again += s.runFaulty(fmt.Sprintf("%s at operation %d", f, n))
			})
			if runs++; t.Failed() {
				t.Fatalf("with %s at operation %d of %d", f, n, ops)
			}
		}
	}
	t.Logf("%d operations, %d runs, %d crashes during recovery", ops, runs, again)
	fsiotest.Report(t, "dagstore.TestCrashAtEveryOperation", runs+again, testing.Short())
}

// closeForScript closes the store as the script's last step.
func (s *simulator) closeForScript() {
	s.model.closing = true
	s.closeStore()
	s.model.closing = false
}

// dropStore lets the bubble end.
func (s *simulator) dropStore() {
	s.openAllGates()
	s.model.closeAll()
}

// runFaulty plays the script on a disk with one fault and sees what becomes of it.
// If that was a crash, it crashes the recovery too, at each of its operations, and
// returns how often.
func (s *simulator) runFaulty(what string) (again int) {
	s.logf("%s", what)
	err := s.open(openFaults{})
	switch {
	case s.hooks.dead() && err != nil:
	case err != nil:
		if n := s.disk.OpenFiles() + s.disk.HeldLocks(); n > 0 {
			s.failf("F14: a failed open leaves %v", s.disk.OpenNames())
		}
		if err := s.open(openFaults{}); err != nil {
			s.failf("the second open: %v", err)
		}
		fallthrough
	default:
		s.script()
	}
	if s.hooks.dead() {
		shown := journal.Position{}
		if err == nil {
			shown = s.d.cat.Position()
		}
		s.hooks.fixed.on = false
		crashed := s.disk.Crash()
		if s.disk = crashed; err == nil {
			s.dispose()
			s.w.free = true
		}
		r := s.judgeDisk(crashed, shown, what)
		if r != nil {
			again = s.crashRecovery(crashed, r, (*fsio.Sim).Crash)
		}
		s.disk = crashed
		if err := s.open(openFaults{}); err != nil {
			s.failf("C9: the store does not open after %s: %v", what, err)
		}
		if r != nil {
			s.model.checkStarted(r)
		}
	}
	s.hooks.fixed.on = false
	s.drain()
	return again
}

// judgeDisk holds what is on the disk to what was told and shown, if a store was
// begun there, and returns what its journal says.
func (s *simulator) judgeDisk(disk *fsio.Sim, shown journal.Position, what string) *replayed {
	if _, err := disk.Lstat(simRoot + "/journal"); err != nil {
		return nil
	}
	return s.model.checkDurable(disk.Clone(5), shown, what)
}

// TestKillThenCrash kills the process at each operation of the script, and the next
// one at each operation of its recovery; then lets one finish what it finds, and cuts
// the power: what it found and went on from was the first one's, and perhaps not yet
// durable. Proves C2 (index and copy), C5, C9, I2, I7.
func TestKillThenCrash(t *testing.T) {
	runs, again := 0, 0
	stride := uint64(1)
	if testing.Short() {
		stride = 11
	}
	for n, more := uint64(0), true; more; n += stride {
		synctest.Test(t, func(t *testing.T) {
			s := scripted(t, *crashSeed<<32+n, n, fsio.FaultCrash)
			err := s.open(openFaults{})
			if err == nil {
				s.script()
			}
			if !s.hooks.dead() {
				more = n < s.disk.NumOps() // a close, which always succeeds, or the end
				s.drain()
				return
			}
			shown := journal.Position{}
			if err == nil {
				shown = s.d.cat.Position()
			}
			s.hooks.fixed.on = false
			disk := s.disk.Kill()
			if s.disk = disk; err == nil {
				s.dispose()
				s.w.free = true
			}
			if r := s.judgeDisk(disk, shown, fmt.Sprint("a kill at operation ", n)); r != nil {
				again += s.crashRecovery(disk, r, (*fsio.Sim).Kill)
			}
			s.disk = disk
			if err := s.open(openFaults{}); err != nil {
				s.failf("C9: the store does not open after a kill at operation %d: %v", n, err)
			}
			s.rest()
			for range 6 { // other outcomes of the same power cut
				s.actCloneCheck()
			}
			s.w.free = true
			s.drain()
		})
		if runs++; t.Failed() {
			t.Fatalf("killed at operation %d", n)
		}
	}
	t.Logf("%d kills, %d of the recovery", runs, again)
	fsiotest.Report(t, "dagstore.TestKillThenCrash", runs+again, testing.Short())
}

// carryOn lets everything happen but what waits at gates.
func (s *simulator) carryOn() {
	for s.turn() || len(s.jobs) > 0 {
		s.model.poll()
		for len(s.jobs) > 0 {
			s.runJob(0)
		}
	}
}

// freeMounts opens the gates of mounts, and not those of the disk.
func (s *simulator) freeMounts() {
	for i := 0; i < s.numGates(); i++ {
		if s.w.gates[i].src != nil {
			s.openGate(i, verdictOK)
			i = -1
		}
		s.carryOn()
	}
}

// TestRemovalOfFormerLife collects a copy from a slow disk, destroys the shard
// meanwhile and registers another under its key, which has a copy before the removal
// ends. The store then knows of that copy. Proves F10, I11 (directory of copies).
func TestRemovalOfFormerLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scripted(t, 4, 0, 0)
		s.must0(s.open(openFaults{}))
		key, all := s.model.keys[0], simContents()
		s.scriptRegister(key, "life0", all[4], true, false)
		s.hooks.stall = "remove " + simRoot + "/copies"
		s.w.free = false
		s.actGC()
		s.carryOn()
		if s.numGates() != 1 {
			t.Fatalf("%d operations wait", s.numGates())
		}
		s.hooks.stall = ""
		gone := s.plain(fsm.Destroy, key)
		s.model.unknown[key] = true
		s.submit(gone, s.d.DestroyShard(gone.ctx, key, gone.out, DestroyOpts{}))
		s.carryOn()
		next := &carSource{name: "life1", key: key, exists: true, ready: true}
		next.set(all[7])
		s.w.sources[next.name] = next
		second := s.plain(fsm.Register, key)
		second.src = next
		m := &streamMount{simMount{w: s.w, Name: next.name, stream: true}}
		s.submit(second, s.d.RegisterShard(second.ctx, key, m, second.out, RegisterOpts{}))
		for range 8 {
			s.carryOn()
			s.freeMounts()
		}
		s.must(second)
		s.rest()
		s.must(gone)
		s.model.checkRest()
		s.w.free = true
		s.drain()
	})
}

// TestFormerLifeOnTheDisk destroys a shard while the disk is slow to give its copy,
// or its index, a name, and registers another under its key. Nothing of the former
// life is left, and nothing of it is in the way of the next. Proves F10, F17, C8.
func TestFormerLifeOnTheDisk(t *testing.T) {
	for _, stall := range []string{"rename " + simRoot + "/copies", "rename " + simRoot + "/index", "syncdir " + simRoot + "/index"} {
		synctest.Test(t, func(t *testing.T) {
			s := scripted(t, 4, 0, 0)
			s.must0(s.open(openFaults{}))
			key, all := s.model.keys[0], simContents()
			s.hooks.stall = stall
			for i, c := range []*content{all[4], all[7]} {
				src := &carSource{name: fmt.Sprint("life", i), key: key, exists: true, ready: true}
				src.set(c)
				s.w.sources[src.name] = src
			}
			first := s.plain(fsm.Register, key)
			first.src = s.w.sources["life0"]
			m := &streamMount{simMount{w: s.w, Name: "life0", stream: true}}
			s.submit(first, s.d.RegisterShard(first.ctx, key, m, first.out, RegisterOpts{}))
			s.w.free = false // for the disk
			s.carryOn()
			s.freeMounts()
			if s.numGates() != 1 {
				t.Fatalf("%s: %d operations wait", stall, s.numGates())
			}
			s.hooks.stall = ""
			s.model.unknown[key] = true
			gone := s.plain(fsm.Destroy, key)
			s.submit(gone, s.d.DestroyShard(gone.ctx, key, gone.out, DestroyOpts{}))
			s.carryOn()
			second := s.plain(fsm.Register, key)
			second.src = s.w.sources["life1"]
			m = &streamMount{simMount{w: s.w, Name: "life1", stream: true}}
			s.submit(second, s.d.RegisterShard(second.ctx, key, m, second.out, RegisterOpts{}))
			for range 8 {
				s.carryOn()
				s.freeMounts()
			}
			if !second.answered || second.err != nil {
				t.Errorf("%s: the next life waits for the former one's disk: %v", stall, second.err)
			}
			s.rest()
			s.must(gone)
			s.model.checkRest()
			s.w.free = true
			s.drain()
		})
	}
}

func (s *simulator) must0(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestNewerIndexFormat: a store whose index directory a newer release wrote is
// refused, and nothing is changed. Proves C13 (store).
func TestNewerIndexFormat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scripted(t, 4, 0, 0)
		s.must0(s.open(openFaults{}))
		s.script()
		s.closeForScript()
		s.must0(writeFile(s.disk, simRoot+"/index/.version", []byte("2")))
		before := s.disk.Tree()
		if err := s.open(openFaults{}); !errors.Is(err, index.ErrNewerFormat) {
			t.Fatalf("Open = %v, want ErrNewerFormat", err)
		}
		if after := s.disk.Tree(); after != before {
			t.Errorf("the directory was\n%s\nand is\n%s", before, after)
		}
		if names := s.disk.OpenNames(); len(names) > 0 {
			t.Errorf("left open: %v", names)
		}
		s.dropStore()
	})
}

// crashRecovery ends the recovery of a disk at each of its operations, by a power cut
// or a kill, and lets another finish. All come to the same state.
func (s *simulator) crashRecovery(disk *fsio.Sim, want *replayed, end func(*fsio.Sim) *fsio.Sim) (n int) {
	clean := disk.Clone(9)
	tree := ""
	for at := 0; ; at++ { // 0: no crash
		d := clean.Clone(uint64(at))
		s.disk = d
		err := s.open(openFaults{at: at, fault: fsio.FaultCrash})
		died := s.hooks.dead()
		if died {
			s.disk = end(d)
			if err == nil {
				s.dispose()
				s.w.free = true
			}
			s.model.checkDurable(s.disk.Clone(3), journal.Position{}, fmt.Sprint("a crash of the recovery at ", at))
			err = s.open(openFaults{})
			n++
		}
		if err != nil {
			s.failf("C9: after a crash of the recovery at %d: %v", at, err)
		}
		s.model.checkStarted(want)
		s.disk.OnOp(nil)
		switch now := storeTree(s.disk); {
		case at == 0:
			tree = now
		case now != tree:
			s.failf("C9: after a crash of the recovery at %d the directories hold\n%s\nnot\n%s", at, now, tree)
		}
		s.disk = s.disk.Kill()
		s.dispose()
		s.w.free = true
		if at > 0 && !died {
			return n
		}
	}
}

// storeTree lists a disk but for the journal, whose files may end in more or fewer
// zeros.
func storeTree(disk *fsio.Sim) string {
	var b strings.Builder
	for line := range strings.Lines(disk.Tree()) {
		if !strings.HasPrefix(line, simRoot+"/journal/") {
			b.WriteString(line)
		}
	}
	return b.String()
}
