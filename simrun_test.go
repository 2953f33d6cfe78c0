package dagstore

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// What the simulator does.

func absentCID() cid.Cid {
	c, err := cid.Cast(hostile.RawCID([]byte("in no shard")))
	if err != nil {
		panic(err)
	}
	return c
}

// run does ops operations, lets the store come to rest, and ends.
func (s *simulator) run(ops int) {
	s.hooks.off()
	for name, text := range s.model.foreign {
		if err := writeFile(s.disk, name, []byte(text)); err != nil {
			s.t.Fatal(err)
		}
	}
	s.disk = s.disk.Kill()
	s.hooks.disabled = false
	s.policy = RecoverOnStartPolicy(s.rng.IntN(3))
	s.reopen(&replayed{cat: nil}, "the beginning")
	for s.stats.ops < ops {
		s.stats.ops++
		s.step()
		s.afterStep()
	}
	s.drain()
}

// afterStep checks, and goes on after a power cut.
func (s *simulator) afterStep() {
	if s.hooks.dead() {
		s.logf("power was lost")
		s.crash(true)
		return
	}
	s.model.poll()
	s.model.note()
	s.model.checkLoop()
}

type action struct {
	weight int
	do     func(*simulator) bool
}

var simActions = []action{
	{26, (*simulator).actTurn},
	{26, (*simulator).actJob},
	{16, (*simulator).actGate},
	{5, (*simulator).actRegister},
	{11, (*simulator).actAcquire},
	{3, (*simulator).actCancel},
	{6, (*simulator).actRead},
	{8, (*simulator).actCloseAcc},
	{3, (*simulator).actRecover},
	{4, (*simulator).actDestroy},
	{2, (*simulator).actGC},
	{3, (*simulator).actQuery},
	{3, (*simulator).actSource},
	{1, (*simulator).actRot},
	{1, (*simulator).actDamage},
	{2, (*simulator).actTime},
	{3, (*simulator).actReceive},
	{2, (*simulator).actRest},
	{1, (*simulator).actCloneCheck},
	{1, (*simulator).actCrash},
	{1, (*simulator).actReopen},
}

var simWeights = func() (n int) {
	for _, a := range simActions {
		n += a.weight
	}
	return n
}()

// step does one thing that can be done.
func (s *simulator) step() {
	for {
		n := s.rng.IntN(simWeights)
		for i := range simActions {
			if n -= simActions[i].weight; n < 0 {
				if simActions[i].do(s) {
					return
				}
				break
			}
		}
	}
}

func (s *simulator) actTurn() bool {
	if !s.turn() {
		return false
	}
	s.logf("turn")
	return true
}

func (s *simulator) actJob() bool {
	if len(s.jobs) == 0 {
		return false
	}
	i := s.rng.IntN(len(s.jobs))
	s.logf("job %d of %d", i, len(s.jobs))
	s.runJob(i)
	return true
}

// actGate lets a mount's call or a disk's operation go on.
func (s *simulator) actGate() bool {
	n := s.numGates()
	if n == 0 || s.seed%3 == 1 && s.pct(75) { // everything takes long
		return false
	}
	i := s.rng.IntN(n)
	g := s.w.gates[i]
	v := verdictOK
	if g.src != nil {
		switch key := s.keyOfSource(g.src); {
		case g.what == "stat" && s.pct(15):
			v = verdictNotReady
		case g.what == "fetch" && s.pct(15):
			v = verdictPause
		case s.model.victim(key) && s.hooks.mode != modeDisk && s.pct(30):
			v = verdict(1 + s.rng.IntN(int(numVerdicts)-1))
		}
		if v != verdictOK && v != verdictPause && v != verdictNotReady {
			s.stats.mountFaults++
			s.taint(s.keyOfSource(g.src))
		}
		s.logf("gate %s %s: %s", g.what, g.src.name, v)
	} else {
		s.logf("gate %s", g.what)
	}
	s.stats.gates++
	s.openGate(i, v)
	return true
}

func (s *simulator) taint(k shard.Key) { s.model.tainted[k] = true }

func (s *simulator) keyOfSource(src *carSource) shard.Key { return src.key }

func (s *simulator) key() shard.Key { return s.model.keys[s.rng.IntN(len(s.model.keys))] }

// submit notes a request that the store took.
func (s *simulator) submit(r *simReq, err error, refusal ...error) bool {
	s.settle()
	if err == nil {
		s.logf("%s", r)
		s.model.reqs = append(s.model.reqs, r)
		return true
	}
	s.logf("%s refused: %.60v", r, err)
	for _, e := range refusal {
		if errors.Is(err, e) {
			return true
		}
	}
	if s.e.failed != nil && r.kind != fsm.Acquire && errors.Is(err, ErrReadOnly) {
		return true // nobody knows whether the key is taken
	}
	s.failf("%s was refused: %.60v", r, err)
	return false
}

// exists says whether a key is there to a caller.
func (s *simulator) exists(k shard.Key) bool {
	s.d.mu.RLock()
	defer s.d.mu.RUnlock()
	return s.d.mu.registering[k] != nil || s.d.existsLocked(k)
}

func (s *simulator) actRegister() bool {
	key := s.key()
	r := s.model.newReq(fsm.Register, key)
	all := simContents()
	c := all[s.rng.IntN(len(all)-1)]
	if s.model.victim(key) && s.hooks.mode != modeDisk && s.pct(10) {
		c = all[len(all)-1]
		s.taint(key)
	}
	r.src = &carSource{name: fmt.Sprintf("s%d", r.id+1000*int(s.hooks.epoch)), key: key, exists: true, ready: !s.pct(15)}
	r.src.set(c)
	var m mount.Mount
	switch s.rng.IntN(5) {
	case 0:
		m, r.direct = &mount.BytesMount{Bytes: c.data}, true
		r.src.name = "bytes:" + m.Serialize().Opaque
	case 1, 2:
		m, r.direct = &simMount{w: s.w, Name: r.src.name}, true
	default:
		m = &streamMount{simMount{w: s.w, Name: r.src.name, stream: true}}
	}
	s.w.mu.Lock()
	s.w.sources[r.src.name] = r.src
	s.w.mu.Unlock()
	r.lazy = s.pct(40)
	if s.pct(15) && c.digest != [32]byte{} {
		r.transient = fmt.Sprintf("/user/own-%d.car", r.id+1000*int(s.hooks.epoch))
		s.userWrites(r.transient, c.data)
	}
	was := s.exists(key)
	err := s.d.RegisterShard(r.ctx, key, m, r.out, RegisterOpts{ExistingTransient: r.transient, LazyInitialization: r.lazy})
	if was != errors.Is(err, ErrShardExists) && !(was && errors.Is(err, ErrReadOnly)) {
		s.failf("%s: existed %t, and the answer is %v", r, was, err)
	}
	return s.submit(r, err, ErrShardExists, ErrReadOnly)
}

// userWrites writes a file as its owner, past the faults.
func (s *simulator) userWrites(name string, data []byte) {
	s.hooks.disabled = true
	err := writeFile(s.disk, name, data)
	s.hooks.disabled = false
	if err != nil && !s.hooks.dead() {
		s.t.Fatalf("%s: %v", name, err)
	}
	s.model.foreign[name] = string(data)
}

func (s *simulator) actAcquire() bool {
	r := s.model.newReq(fsm.Acquire, s.key())
	r.noDownload = s.pct(20)
	was := s.exists(r.key)
	if r.cancel != nil && s.pct(25) {
		if !was {
			return false
		}
		// The synchronous form, from a goroutine of its own.
		out := make(chan ShardResult, 1)
		r.out, r.unread = out, false
		d := s.d
		go func() {
			acc, err := d.AcquireShardSync(r.ctx, r.key, AcquireOpts{NoDownload: r.noDownload})
			out <- ShardResult{Key: r.key, Accessor: acc, Error: err}
		}()
		return s.submit(r, nil)
	}
	err := s.d.AcquireShard(r.ctx, r.key, r.out, AcquireOpts{NoDownload: r.noDownload})
	if was == errors.Is(err, ErrShardUnknown) {
		s.failf("%s: existed %t, and the answer is %v", r, was, err)
	}
	return s.submit(r, err, ErrShardUnknown)
}

func (s *simulator) actRecover() bool {
	r := s.model.newReq(fsm.Recover, s.key())
	return s.submit(r, s.d.RecoverShard(r.ctx, r.key, r.out, RecoverOpts{}), ErrShardUnknown)
}

func (s *simulator) actDestroy() bool {
	r := s.model.newReq(fsm.Destroy, s.key())
	s.model.unknown[r.key] = true
	return s.submit(r, s.d.DestroyShard(r.ctx, r.key, r.out, DestroyOpts{}), ErrShardUnknown)
}

func (s *simulator) actCancel() bool {
	var open []*simReq
	for _, r := range s.model.reqs {
		if r.cancel != nil && !r.cancelled && (!r.answered || r.unread) {
			open = append(open, r)
		}
	}
	if len(open) == 0 {
		return false
	}
	r := open[s.rng.IntN(len(open))]
	s.logf("cancel %s", r)
	s.model.cancel(r)
	return true
}

func (s *simulator) actRead() bool {
	if len(s.model.held) == 0 {
		return false
	}
	s.hooks.main(true)
	s.model.read(s.model.held[s.rng.IntN(len(s.model.held))], s.rng.IntN(5))
	s.hooks.main(false)
	return true
}

func (s *simulator) actCloseAcc() bool {
	if len(s.model.held) == 0 {
		return false
	}
	i := s.rng.IntN(len(s.model.held))
	s.logf("close an accessor of %.20q", s.model.held[i].key)
	s.model.closeAcc(i)
	return true
}

func (s *simulator) actReceive() bool {
	for _, r := range s.model.reqs {
		if r.unread && s.pct(50) {
			r.unread = false
			s.logf("%s is ready to receive", r)
			return true
		}
	}
	return false
}

// actGC collects beside everything else; some collections are cancelled.
func (s *simulator) actGC() bool {
	if s.oneGC && slices.ContainsFunc(s.model.reqs, func(r *simReq) bool { return r.kind == fsm.Reclaim && !r.answered }) {
		return false
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &simReq{kind: fsm.Reclaim, ctx: ctx, cancel: cancel, out: make(chan ShardResult, 1), began: s.stats.ops}
	s.model.nextReq++
	r.id = s.model.nextReq
	d := s.d
	m := &s.model
	go func() {
		res, err := d.GC(ctx)
		var wrong error
		switch {
		case errors.Is(err, context.Canceled):
		case err != nil && !errors.Is(err, ErrClosed):
			wrong = fmt.Errorf("GC: %w", err)
		case err == nil:
			for k, err := range res.Shards {
				if err != nil && !m.tainted[k] && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrShardUnknown) {
					wrong = fmt.Errorf("GC: shard %q: %w", k, err)
				}
			}
		}
		r.out <- ShardResult{Error: wrong}
	}()
	return s.submit(r, nil)
}

// actQuery asks what may be asked at any time.
func (s *simulator) actQuery() bool {
	key := s.key()
	d := s.d
	s.logf("query %q", key)
	before := s.exists(key)
	pending := d.mu.registering[key] != nil
	type answer struct {
		info ShardInfo
		err  error
	}
	out := make(chan answer, 1)
	go func() {
		info, err := d.GetShardInfo(key)
		out <- answer{info, err}
	}()
	go func() { _, _ = d.Explain(key) }()
	s.settle()
	select {
	case a := <-out:
		if before != (a.err == nil) {
			s.failf("info of %q: %v; exists: %t", key, a.err, before)
		}
		if st := a.info.ShardState; a.err == nil && (st == ShardStateAvailable || st == ShardStateServing) {
			// A change is durable a moment before the loop shows it.
			rec, lv := d.cat.Get(key), d.mu.hot[key]
			if (rec == nil || rec.Life() != shard.Available) && (lv == nil || !lv.busy) {
				s.failf("G3: %q is shown as %s and not recorded so", key, st)
			}
		}
	default:
		if !pending {
			s.failf("I10: info of %q waits, and nothing is being registered", key)
		}
	}
	page, err := d.ListShards(ListOptions{Limit: 2})
	all := d.AllShardsInfo()
	for err == nil && page.Next != "" {
		page, err = d.ListShards(ListOptions{Limit: 2, Cursor: page.Next})
	}
	if n := d.cat.Snapshot().Len(); err != nil || len(all) != n {
		s.failf("list: %v; %d of %d", err, len(all), n)
	}
	return true
}

// actSource changes a source of a shard that faults are meant for.
func (s *simulator) actSource() bool {
	if s.hooks.mode != modeMounts && s.hooks.mode != modeWild {
		return false
	}
	var names []string
	for name, src := range s.w.sources {
		if s.model.victim(src.key) && src.content.digest != [32]byte{} && path.Ext(name) == "" && len(name) < 20 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return false
	}
	slices.Sort(names)
	s.w.mu.Lock()
	src := s.w.sources[names[s.rng.IntN(len(names))]]
	what := s.rng.IntN(6)
	switch what {
	case 0:
		src.exists = !src.exists
	case 1:
		src.readErr = !src.readErr
	case 2:
		src.rotten = !src.rotten
	case 3, 4:
		src.set(simContents()[s.rng.IntN(len(simContents())-1)])
	case 5:
		src.ready = !src.ready
	}
	s.w.mu.Unlock()
	s.stats.mountFaults++
	s.taint(src.key)
	s.logf("source %s of %.20q: change %d", src.name, src.key, what)
	return true
}

// actRot damages a file of a shard that faults are meant for.
func (s *simulator) actRot() bool {
	if s.hooks.mode != modeDisk && s.hooks.mode != modeWild {
		return false
	}
	s.hooks.disabled = true
	defer func() { s.hooks.disabled = false }()
	copies, indices, _, err := storeFiles(s.disk)
	if err != nil {
		return false
	}
	var files []string
	for _, n := range copies {
		files = append(files, simRoot+"/copies/"+n+".complete")
	}
	for _, n := range indices {
		files = append(files, simRoot+"/index/"+n)
	}
	files = slices.DeleteFunc(files, func(f string) bool {
		k, ok := s.model.keyOf(f)
		return !ok || !s.model.victim(k)
	})
	if len(files) == 0 {
		return false
	}
	f := files[s.rng.IntN(len(files))]
	info, err := s.disk.Lstat(f)
	if err != nil || info.Size() == 0 {
		return false
	}
	k, _ := s.model.keyOf(f)
	s.taint(k)
	s.model.disked[k] = true
	off := s.rng.Int64N(info.Size())
	if s.pct(20) {
		s.logf("somebody removes %s", f)
		_ = s.disk.Remove(f)
	} else {
		s.logf("rot in %s at %d", f, off)
		_ = s.disk.FlipBit(f, off)
		s.model.rotten[k] = s.model.rotten[k] || path.Ext(f) == ".complete"
	}
	return true
}

// actDamage has a reader notice that the index is damaged. The index is built again
// while the reader goes on.
func (s *simulator) actDamage() bool {
	for _, h := range s.model.held {
		if s.model.victim(h.key) && s.pct(40) {
			s.logf("damage of the index of %.20q is noticed", h.key)
			s.taint(h.key)
			s.model.disked[h.key] = true
			h.acc.noteDamage(&index.DamagedError{File: "simulated"})
			return true
		}
	}
	return false
}

func (s *simulator) actTime() bool {
	d := time.Duration(1+s.rng.IntN(1500)) * time.Millisecond
	s.logf("%s passes", d)
	s.pass(d)
	return true
}

func (s *simulator) pass(d time.Duration) {
	<-time.After(d)
	s.settle()
}

// actRest lets everything end that can, and looks at the store at rest.
func (s *simulator) actRest() bool {
	s.logf("rest")
	s.rest()
	if s.hooks.dead() {
		return true
	}
	if s.e.failed != nil {
		return s.actReopen()
	}
	s.model.checkRest()
	return true
}

// rest takes turns, runs jobs and opens gates until nothing is left to do.
func (s *simulator) rest() {
	for range 20_000 {
		if s.hooks.dead() {
			return
		}
		s.model.poll()
		switch {
		case s.turn():
		case len(s.jobs) > 0:
			s.runJob(s.rng.IntN(len(s.jobs)))
		case s.numGates() > 0:
			s.openGate(s.rng.IntN(s.numGates()), verdictOK)
		default:
			return
		}
	}
	s.failf("I17: the store does not come to rest")
}

// actCloneCheck looks at what would be there after a power cut now.
func (s *simulator) actCloneCheck() bool {
	s.logf("what if")
	disk := s.disk.Clone(s.rng.Uint64()).Crash()
	s.model.checkDurable(disk, s.d.cat.Position(), "a crash now")
	s.model.checkCopies(disk)
	return true
}

func (s *simulator) actCrash() bool {
	if !s.pct(60) {
		return false
	}
	power := s.pct(60)
	s.logf("crash, power %t", power)
	s.crash(power)
	return true
}

// crash cuts the power or kills the process, and starts the store again.
func (s *simulator) crash(power bool) {
	shown := s.d.cat.Position()
	old := s.disk
	if power {
		s.disk = old.Crash()
		s.stats.crashes++
	} else {
		s.disk = old.Kill()
		s.stats.kills++
	}
	s.dispose()
	s.policy = RecoverOnStartPolicy(s.rng.IntN(3))
	r := s.model.checkDurable(s.disk.Clone(s.rng.Uint64()), shown, "the crash")
	s.reopen(r, "a crash")
}

// dispose ends what is left of a store whose machine is off.
func (s *simulator) dispose() {
	s.hooks.off()
	s.hooks.died = true
	s.model.closing = true
	s.openAllGates()
	s.model.closeAll()
	s.closeStore()
	s.openAllGates()
	s.model.reqs, s.model.closing = nil, false
	s.hooks.disabled, s.w.free = false, false
}

// reopen starts the store, perhaps at several attempts.
func (s *simulator) reopen(r *replayed, after string) {
	for attempt := 0; ; attempt++ {
		var f openFaults
		if attempt < 4 && s.pct(35) {
			f.at = 1 + s.rng.IntN(40)
			f.fault = fsio.FaultCrash
			if s.hooks.mode >= modeDisk && s.pct(60) {
				f.fault = fsio.Faults()[s.rng.IntN(3)]
			}
		}
		injected := s.hooks.injected.Load()
		err := s.open(f)
		faulty := s.hooks.injected.Load() > injected
		s.model.tolerant = faulty
		if s.hooks.dead() {
			shown := journal.Position{}
			if err == nil {
				shown = s.d.cat.Position()
			}
			s.logf("power was lost while opening, operation %d: %v", f.at, err)
			s.stats.crashes++
			s.disk = s.disk.Crash()
			if err == nil {
				s.dispose()
			}
			if after != "the beginning" || shown.Seq > 0 {
				r = s.model.checkDurable(s.disk.Clone(s.rng.Uint64()), shown, "a crash while opening")
			}
			continue
		}
		if err == nil {
			s.logf("opened at %d", s.d.cat.Position().Seq)
			if r.cat != nil {
				s.model.checkStarted(r)
			}
			return
		}
		s.stats.failedOpens++
		s.logf("open: %v", err)
		if !faulty {
			s.failf("C9, after %s: the store does not open: %v", after, err)
		}
		if n := s.disk.OpenFiles() + s.disk.HeldLocks(); n > 0 {
			s.failf("F14: a failed open leaves %v", s.disk.OpenNames())
		}
		if r.cat != nil {
			// A batch of unknown outcome may have come to an end in it.
			r = s.model.checkDurable(s.disk.Clone(s.rng.Uint64()), journal.Position{}, "a failed open")
		}
	}
}

func (s *simulator) actReopen() bool {
	if !s.pct(50) && s.e.failed == nil {
		return false
	}
	s.logf("close")
	s.stats.reopens++
	shown := s.d.cat.Position()
	m := &s.model
	m.closing = true
	s.closeStore()
	if !s.hooks.dead() {
		m.checkClosed()
	}
	if s.hooks.dead() { // in Close, or in what outlasts it
		s.disk = s.disk.Crash()
		s.openAllGates()
		m.closeAll()
		s.hooks.disabled, s.w.free = false, false
	}
	m.reqs, m.closing = nil, false
	s.policy = RecoverOnStartPolicy(s.rng.IntN(3))
	r := m.checkDurable(s.disk.Clone(s.rng.Uint64()), shown, "Close")
	s.reopen(r, "Close")
	return true
}

// checkClosed holds what Close left to what it promises.
func (m *simModel) checkClosed() {
	s := m.s
	for _, r := range m.reqs {
		if !r.answered && !r.unread && (cap(r.out) > 0) {
			s.failf("F28: Close left %s without an answer", r)
		}
		if r.answered && len(r.out) > 0 {
			s.failf("I1: %s was answered again", r)
		}
	}
	for _, h := range m.held {
		bs, err := h.acc.Blockstore()
		if err == nil {
			_, err = bs.Get(context.Background(), h.content.blocks[0].Cid())
		}
		if !errors.Is(err, ErrClosed) {
			s.failf("after Close an accessor of %q says %v", h.key, err)
		}
	}
	m.closeAll()
	if n := s.disk.HeldLocks(); n > 0 {
		s.failf("C12: Close left %v", s.disk.OpenNames())
	}
	s.openAllGates() // those that ignored their context come back at last
	s.w.free = false
	s.settle()
	if len(s.jobs) > 0 {
		s.failf("F28: Close left %d jobs", len(s.jobs))
	}
	if n := s.disk.OpenFiles(); n > 0 && !s.hooks.dead() {
		s.failf("F14: Close left %v", s.disk.OpenNames())
	}
}

// drain stops all faults and sees everything through: every request is answered,
// every shard recovers and reads right, and nothing is left when all is destroyed.
func (s *simulator) drain() {
	m := &s.model
	if s.hooks.dead() {
		s.crash(true)
	}
	s.logf("drain")
	s.hooks.off()
	for _, src := range s.w.sources {
		src.exists, src.ready, src.readErr, src.rotten = true, true, false, false
	}
	for _, r := range m.reqs {
		r.unread = false
	}
	s.rest()
	if s.hooks.dead() || s.e.failed != nil {
		if s.hooks.dead() {
			s.crash(true)
		} else {
			s.actReopen()
		}
		s.hooks.off()
		s.rest()
	}
	m.checkRest()
	for _, key := range m.keys {
		s.drainShard(key)
	}
	m.closeAll()            // those that came late, after a pause
	s.pass(3 * time.Second) // idle handles close
	s.rest()
	s.pass(3 * time.Second)
	s.rest()
	names := slices.DeleteFunc(s.disk.OpenNames(), func(n string) bool { return path.Dir(n) == simRoot+"/journal" })
	if len(names) != 1 { // the lock
		s.failf("F14: with no accessor open and after the idle time these are: %v", names)
	}
	s.finish(s.actGC)
	if copies, _, _, _ := storeFiles(s.disk); len(copies) > 0 && !m.tolerant {
		for _, c := range copies {
			if k, _ := m.keyOf(c); !m.tainted[k] {
				s.failf("GC left the copies %v", copies)
			}
		}
	}
	m.checkState()
	s.restartWhole()
	for _, key := range m.keys {
		if s.exists(key) {
			s.must(s.request(fsm.Destroy, key))
			s.stats.drained++
		}
	}
	m.checkRest()
	s.logf("close")
	shown := s.d.cat.Position()
	m.closing = true
	if err := s.closeStore(); err != nil {
		s.failf("close: %v", err)
	}
	m.checkClosed()
	m.reqs, m.closing = nil, false
	m.checkDurable(s.disk.Clone(1).Crash(), shown, "the end")
	s.reopenClean()
	copies, indices, temps, err := storeFiles(s.disk)
	if len(copies)+len(indices)+len(temps) > 0 || err != nil {
		s.failf("C8: with all shards destroyed these are left: %v %v %v, %v", copies, indices, temps, err)
	}
	m.closing = true
	if err := s.closeStore(); err != nil {
		s.failf("close: %v", err)
	}
	s.openAllGates()
	if err := checkForeign(s.disk, m.foreign); err != nil {
		s.failf("%v", err)
	}
	for dir, want := range map[string][]string{"/": {"store", "store2", "user"}, simRoot: {"checkpoints", "copies", "index", "journal", "notes.txt", "toplevel"}} {
		entries, err := s.disk.ReadDir(dir)
		if err != nil {
			s.failf("%v", err)
		}
		for _, e := range entries {
			if !slices.Contains(want, e.Name()) {
				s.failf("I14, F12: the store made %s in %s", e.Name(), dir)
			}
		}
	}
}

// restartWhole starts the store once more: whatever could not be read at some time is
// in the top-level index now, for everything can be.
func (s *simulator) restartWhole() {
	m := &s.model
	s.logf("restart")
	m.closing = true
	if err := s.closeStore(); err != nil {
		s.failf("close: %v", err)
	}
	s.openAllGates()
	m.reqs, m.closing = nil, false
	s.reopenClean()
	m.forgive()
	m.checkTopLevel()
}

func (s *simulator) reopenClean() {
	if err := s.open(openFaults{}); err != nil {
		s.failf("open: %v", err)
	}
	s.rest()
}

// request makes a request and sees it through.
func (s *simulator) request(kind fsm.Trigger, key shard.Key) *simReq {
	r := &simReq{kind: kind, key: key, ctx: context.Background(), out: make(chan ShardResult, 1), began: s.stats.ops}
	s.model.nextReq++
	r.id = s.model.nextReq
	var err error
	switch kind {
	case fsm.Acquire:
		err = s.d.AcquireShard(r.ctx, key, r.out, AcquireOpts{})
	case fsm.Recover:
		err = s.d.RecoverShard(r.ctx, key, r.out, RecoverOpts{})
	case fsm.Destroy:
		s.stats.ops++ // that which was in use until now no longer is
		r.began = s.stats.ops
		s.model.unknown[key] = true
		err = s.d.DestroyShard(r.ctx, key, r.out, DestroyOpts{})
	}
	s.submit(r, err)
	for s.rest(); !r.answered; s.rest() { // what pauses goes on
		if lv := s.e.d.mu.hot[key]; lv == nil || !lv.s.Resting {
			break
		}
		s.pass(pauseMost)
	}
	return r
}

func (s *simulator) must(r *simReq) {
	if !r.answered || r.err != nil {
		s.failf("I17: %s: answered %t, %v", r, r.answered, r.err)
	}
}

func (s *simulator) finish(act func() bool) {
	act()
	s.rest()
	s.model.poll()
}

// drainShard sees that one shard serves all of its blocks, after a recovery if need
// be.
func (s *simulator) drainShard(key shard.Key) {
	m := &s.model
	for i := len(m.held) - 1; i >= 0; i-- {
		if m.held[i].key == key {
			m.closeAcc(i)
		}
	}
	rec := s.d.cat.Get(key)
	if rec == nil {
		return
	}
	r := s.request(fsm.Acquire, key)
	if m.sourceOf(rec.URL()).content.digest == [32]byte{} {
		return // no CAR, and never was
	}
	if r.err != nil && m.tainted[key] {
		s.must(s.request(fsm.Recover, key))
		r = s.request(fsm.Acquire, key)
	}
	s.must(r)
	h := m.held[len(m.held)-1]
	for i := range h.content.blocks {
		s.hooks.main(true)
		m.read(h, i)
		s.hooks.main(false)
	}
	m.closeAcc(len(m.held) - 1)
	s.stats.available++
	s.rest()
}
