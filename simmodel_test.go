package dagstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// simReq is one request as its caller sees it.
type simReq struct {
	id        int
	kind      fsm.Trigger
	key       shard.Key
	ctx       context.Context
	cancel    context.CancelFunc
	cancelled bool
	out       chan ShardResult
	unread    bool // the caller does not receive yet
	answered  bool
	err       error
	began     int // operation

	src        *carSource
	lazy       bool
	direct     bool
	transient  string
	noDownload bool
}

func (r *simReq) String() string { return fmt.Sprintf("#%d %s %.20q", r.id, r.kind, r.key) }

// left: the context ended before anybody received, which counts as answered.
func (r *simReq) left() bool { return r.cancelled && cap(r.out) == 0 }

// heldAcc is an accessor in a caller's hand.
type heldAcc struct {
	acc     *ShardAccessor
	key     shard.Key
	gen     uint64
	content *content
	// unsure: its index is of a copy that was damaged where no CID covers it; the
	// content is a guess.
	unsure bool
}

// ack is a mutation that a caller was told of.
type ack struct {
	kind shard.Kind
	key  shard.Key
	seq  uint64
	url  string
}

// simModel is what callers know and may rely on.
type simModel struct {
	journalHurt bool // a fault of the disk hit the journal
	s           *simulator
	keys        []shard.Key
	hashes      map[string]shard.Key // as in file names
	reqs        []*simReq            // of this process
	nextReq     int
	held        []*heldAcc
	acks        []ack // ever
	tainted     map[shard.Key]bool
	rotten      map[shard.Key]bool // a copy was damaged
	disked      map[shard.Key]bool // the disk failed for its files, or they were damaged
	// active is the last operation during which an accessor of the key was open or
	// an acquire under way.
	active  map[shard.Key]int
	foreign map[string]string
	closing bool
	// gone: since when a key may be unknown to an asynchronous request.
	unknown  map[shard.Key]bool
	tolerant bool // a start may have left orphans
}

func (m *simModel) init(s *simulator) {
	m.s = s
	for _, k := range []string{"film", "../../escape", "c/d", "music\x00", "数据", strings.Repeat("long", 128)} {
		m.keys = append(m.keys, shard.KeyFromString(k))
	}
	m.hashes = make(map[string]shard.Key)
	for _, k := range m.keys {
		m.hashes[mount.CopyName(0, k.String())[17:]] = k
	}
	m.tainted = make(map[shard.Key]bool)
	m.rotten = make(map[shard.Key]bool)
	m.disked = make(map[shard.Key]bool)
	m.active = make(map[shard.Key]int)
	m.unknown = make(map[shard.Key]bool)
	m.foreign = make(map[string]string)
	for n, c := range foreignFiles {
		m.foreign[n] = c
	}
	h := &s.hooks
	h.w = s.w
	h.blame = m.blame
	h.victim = func(name string) bool {
		if strings.HasPrefix(name, simRoot+"/checkpoints") {
			return h.mode != modeCalm
		}
		if h.mode == modeWild {
			return strings.HasPrefix(name, simRoot+"/copies") || strings.HasPrefix(name, simRoot+"/index")
		}
		k, ok := m.keyOf(name)
		return ok && m.victim(k)
	}
}

// victim says that faults may be meant for the shard.
func (m *simModel) victim(k shard.Key) bool {
	switch m.s.hooks.mode {
	case modeCalm:
		return false
	case modeWild:
		return true
	}
	return k == m.keys[0] || k == m.keys[1]
}

// keyOf finds the shard that a file belongs to.
func (m *simModel) keyOf(name string) (shard.Key, bool) {
	base := filepath.Base(name)
	if len(base) < 49 {
		return shard.Key{}, false
	}
	k, ok := m.hashes[base[17:49]]
	return k, ok
}

// blame notes whose business a fault of the disk is.
func (m *simModel) blame(name string, _ fsio.Fault) {
	if strings.HasPrefix(name, simRoot+"/journal") {
		m.journalHurt = true
		return
	}
	if strings.HasPrefix(name, simRoot+"/checkpoints") {
		return // costs time, and nobody anything else
	}
	for _, k := range m.keys {
		if one, ok := m.keyOf(name); !ok || one == k {
			m.tainted[k], m.disked[k] = true, true
		}
	}
}

// sourceOf finds the source that a mount's URL names.
func (m *simModel) sourceOf(url string) *carSource {
	m.s.w.mu.Lock()
	defer m.s.w.mu.Unlock()
	if src := m.s.w.sources[url]; src != nil {
		return src
	}
	_, name, _ := strings.Cut(url, ":")
	return m.s.w.sources[name]
}

// newReq makes a request with a context and a channel of its own.
func (m *simModel) newReq(kind fsm.Trigger, key shard.Key) *simReq {
	s := m.s
	m.nextReq++
	r := &simReq{id: m.nextReq, kind: kind, key: key, ctx: context.Background(), began: s.stats.ops}
	if s.pct(70) {
		r.ctx, r.cancel = context.WithCancel(r.ctx)
	}
	switch x := s.rng.IntN(20); {
	case x == 0:
		r.out, r.unread = make(chan ShardResult), true
	case x == 1:
		r.out, r.unread = make(chan ShardResult, 1), true
	case x < 5:
		r.out = make(chan ShardResult)
	default:
		r.out = make(chan ShardResult, 1)
	}
	return r
}

func (m *simModel) cancel(r *simReq) {
	if r.cancel != nil {
		r.cancelled = true
		if r.kind == fsm.Register {
			m.unknown[r.key] = true
		}
		r.cancel()
		m.s.settle()
	}
}

// poll receives what callers have been sent.
func (m *simModel) poll() {
	for _, r := range m.reqs {
		if r.unread {
			continue
		}
		select {
		case res := <-r.out:
			m.answer(r, res)
			m.s.settle()
		default:
		}
	}
}

// note keeps track of when keys were in use.
func (m *simModel) note() {
	now := m.s.stats.ops
	for _, h := range m.held {
		m.active[h.key] = now
	}
	for _, r := range m.reqs {
		if r.kind == fsm.Acquire && (!r.answered || r.unread) {
			m.active[r.key] = now
		}
	}
}

// answer judges one result.
func (m *simModel) answer(r *simReq, res ShardResult) {
	s := m.s
	what := "ok"
	if res.Error != nil {
		what = res.Error.Error()
	}
	s.logf("%s answered: %.200s", r, strings.ReplaceAll(strings.ReplaceAll(what, "\n", "; "), m.keys[5].String(), "long…"))
	s.stats.answers++
	switch {
	case r.answered:
		s.failf("I1: %s was answered twice: %v", r, res.Error)
	case res.Key != r.key:
		s.failf("I1: %s got the answer for %q", r, res.Key)
	}
	r.answered, r.err = true, res.Error
	if s.hooks.dead() {
		if res.Accessor != nil {
			res.Accessor.Close()
		}
		return // nobody is there to be told
	}
	if res.Error != nil {
		if res.Accessor != nil {
			s.failf("I1: %s got an error and an accessor", r)
		}
		m.refused(r, res.Error)
		return
	}
	if m.closing && r.kind == fsm.Acquire && res.Accessor == nil {
		s.failf("I1: %s got nothing", r)
	}
	pos := s.d.cat.Position()
	if res.Seq > pos.Seq {
		s.failf("I1, G3: %s was told of seq %d; visible is %d", r, res.Seq, pos.Seq)
	}
	switch r.kind {
	case fsm.Register:
		kind := shard.EventIndexed
		if r.lazy {
			kind = shard.EventRegistered
		}
		m.told(r, kind, res.Seq)
	case fsm.Destroy:
		m.told(r, shard.EventDestroyed, res.Seq)
		s.stats.destroyed++
		for _, h := range m.held {
			if h.key == r.key && h.gen < res.Seq {
				s.failf("I5: %s succeeded while an accessor of generation %d is open", r, h.gen)
			}
		}
	case fsm.Recover:
		s.stats.recovered++
		if res.Seq != 0 {
			m.told(r, shard.EventIndexed, res.Seq)
		}
	case fsm.Acquire:
		m.hold(r, res.Accessor)
	}
}

func (m *simModel) told(r *simReq, kind shard.Kind, seq uint64) {
	if seq == 0 {
		m.s.failf("I1: %s succeeded without a place in the journal", r)
	}
	a := ack{kind: kind, key: r.key, seq: seq}
	if kind == shard.EventRegistered || kind == shard.EventDestroyed {
		for _, b := range m.acks {
			if b.seq == seq {
				m.s.failf("I1: %s was told of seq %d, as somebody else was", r, seq)
			}
		}
	}
	if r.src != nil {
		a.url = r.src.name
	}
	m.acks = append(m.acks, a)
}

// hold takes an accessor and finds out what is to be read from it.
func (m *simModel) hold(r *simReq, acc *ShardAccessor) {
	s := m.s
	s.stats.accessors++
	if acc == nil {
		s.failf("I1: %s got neither error nor accessor", r)
	}
	rec := s.d.cat.Get(r.key)
	if acc.Shard() != r.key || rec == nil {
		s.failf("F17: %s got an accessor of %q; record: %v", r, acc.Shard(), rec != nil)
	}
	f, ok := acc.h.index.(*shardFinder)
	if !ok {
		s.failf("%s: the index is a %T", r, acc.h.index)
	}
	digest := f.x.Info().Digest
	src := m.sourceOf(rec.URL())
	h := &heldAcc{acc: acc, key: r.key, gen: rec.Gen(), content: src.content}
	// Rot in the header of a copy, which no CID covers, makes another source of it.
	if !src.holds(digest) && !m.rotten[r.key] {
		s.failf("F10, F30: %s was served an index of what its source %s never held", r, src.name)
	}
	for _, c := range simContents() {
		if c.digest == digest {
			h.content = c
		}
	}
	if sr, ok := acc.h.r.(*simReader); ok && sr.held.digest != digest {
		s.failf("F30: %s was served an index of another content than the source has", r)
	}
	h.unsure = !src.holds(digest)
	m.held = append(m.held, h)
}

// refused asks whether an error was justified.
func (m *simModel) refused(r *simReq, err error) {
	s := m.s
	journalFault := s.e.failed != nil || s.hooks.journal.Load() > 0
	switch {
	case m.closing && errors.Is(err, ErrClosed):
	case errors.Is(err, ErrClosed):
		s.failf("%s: %v, and nobody closed the store", r, err)
	case errors.Is(err, context.Canceled) && r.cancelled:
	case errors.Is(err, ErrReadOnly), strings.Contains(err.Error(), "could not be recorded"):
		if !journalFault {
			s.failf("%s: %v, and nothing happened to the journal", r, err)
		}
		m.unknown[r.key] = true
	case errors.Is(err, ErrShardUnknown):
		if !m.unknown[r.key] && !journalFault {
			s.failf("%s: %v, and it was never destroyed", r, err)
		}
	case errors.Is(err, ErrShardExists) && r.kind == fsm.Register:
	case errors.Is(err, ErrShardInUse) && r.kind == fsm.Destroy:
		if a, ok := m.active[r.key]; !ok || a < r.began {
			s.failf("I5: %s: %v; nobody used it since operation %d", r, err, a)
		}
	case errors.Is(err, ErrNotErrored) && r.kind == fsm.Recover:
	case errors.Is(err, mount.ErrTransientNotFound) && r.noDownload:
	case errors.Is(err, ErrUnavailable) && r.kind != fsm.Destroy, errors.Is(err, ErrShardInitializationFailed) && r.kind != fsm.Destroy:
		if !m.tainted[r.key] {
			s.failf("I16: %s: %v, and nothing was done to this shard", r, err)
		}
	default:
		s.failf("%s: unexpected error %v", r, err)
	}
}

// read reads a block of an accessor in hand.
func (m *simModel) read(h *heldAcc, i int) {
	s := m.s
	b := h.content.blocks[i%len(h.content.blocks)]
	bs, err := h.acc.Blockstore()
	if err != nil {
		s.failf("I6: blockstore of %q: %v", h.key, err)
	}
	s.stats.reads++
	got, err := bs.Get(context.Background(), b.Cid())
	switch {
	case err == nil && !bytes.Equal(got.RawData(), b.RawData()):
		s.failf("I13: block %s of %q has wrong bytes", b.Cid(), h.key)
	case errors.Is(err, fsio.ErrCrashed): // while its copy was read
	case err != nil && !m.tainted[h.key]:
		s.failf("I6: block %s of %q, generation %d: %v", b.Cid(), h.key, h.gen, err)
	case errors.Is(err, ErrClosed):
		s.failf("I6: an accessor of %.20q that nobody closed says %v", h.key, err)
	case err != nil && ipld.IsNotFound(err) && !h.unsure:
		s.failf("I6: block %s of %q is said not to be there", b.Cid(), h.key)
	}
	s.logf("read %q gen %d block %d: %v", h.key, h.gen, i, err)
	if ok, err := bs.Has(context.Background(), absentCID()); ok || err != nil && !m.tainted[h.key] {
		s.failf("%q has a block that is nowhere: %v", h.key, err)
	}
}

func (m *simModel) closeAcc(i int) {
	h := m.held[i]
	m.active[h.key] = m.s.stats.ops
	m.held = slices.Delete(m.held, i, i+1)
	h.acc.Close()
	if m.s.rng.IntN(4) == 0 {
		h.acc.Close() // F8
	}
}

func (m *simModel) closeAll() {
	for _, h := range m.held {
		h.acc.Close()
	}
	m.held = nil
}

// Invariants.

// checkLoop holds the loop's own state to the invariants, after any turn.
func (m *simModel) checkLoop() {
	s := m.s
	e := s.e
	if len(e.internal) > 0 {
		s.failf("I15: %d inputs of the loop's own are left after a turn", len(e.internal))
	}
	e.mu.Lock()
	queued := len(e.mu.completion) + len(e.mu.external)
	e.mu.Unlock()
	for _, c := range append(e.outbox[:len(e.outbox):len(e.outbox)], e.flying) {
		for i := 0; c != nil && i < len(c.steps); i++ {
			if lv := c.steps[i].lv; lv.gone || e.d.mu.hot[lv.key] != lv {
				s.failf("N1: an event of %.20q comes from a shard that the loop has let go of", lv.key)
			}
		}
	}
	open := make(map[*live]int32)
	for _, h := range m.held {
		open[h.acc.lv]++
		if h.acc.lv.gone {
			s.failf("I5: an accessor of %q is open, and the loop has forgotten the shard", h.key)
		}
	}
	loose := make(map[shard.Key]int32) // perhaps delivered
	for _, r := range m.reqs {
		if r.kind == fsm.Acquire && !r.answered {
			loose[r.key]++
		}
	}
	for key, lv := range e.d.mu.hot {
		lvs := &lv.s
		if lv.gone || lv.key != key {
			s.failf("hot[%q] is %q, gone: %t", key, lv.key, lv.gone)
		}
		if lvs.Refs < 0 {
			s.failf("I5: %q has %d references", key, lvs.Refs)
		}
		if lv.busy {
			continue
		}
		if queued == 0 && (lvs.Refs < open[lv] || lvs.Refs > open[lv]+loose[key]) {
			s.failf("I5: %q has %d references, %d accessors are open, %d perhaps delivered", key, lvs.Refs, open[lv], loose[key])
		}
		if (lvs.Handle == fsm.Open) != (lv.handle != nil) {
			s.failf("%q: handle is %s and lv.handle %v", key, lvs.Handle, lv.handle != nil)
		}
		if lvs.Handle == fsm.Open && (lvs.Life != shard.Available || lvs.Index != fsm.Indexed) {
			s.failf("I7: %q is %s, index %s, and open", key, lvs.Life, lvs.Index)
		}
		if lvs.Refs > 0 && lvs.Data != fsm.Present && lvs.Data != fsm.Direct && !m.tainted[key] {
			s.failf("I6: %.20q is in use, and its data is %s", key, lvs.Data)
		}
		if rec := e.d.cat.Get(key); lv.noMount == nil {
			m.agrees(lv, rec)
		}
	}
	if len(e.parked) > len(m.reqs)+64 {
		s.failf("I15: %d requests are parked, %d were made", len(e.parked), len(m.reqs))
	}
	for slot := fsm.FetchSlot; slot <= fsm.OpenSlot; slot++ {
		if used, capacity, _ := e.net.Slots(slot); used < 0 || used > capacity {
			s.failf("N5: %d of %d slots of kind %d used", used, capacity, slot)
		}
	}
}

// agrees holds what the loop thinks of a shard to its record: what is volatile about
// a life is only that it is being initialised.
func (m *simModel) agrees(lv *live, rec *projection.Record) {
	life := shard.None
	if rec != nil {
		life = rec.Life()
	}
	now := lv.s.Life
	ok := now == life || now == shard.Initialising && life == shard.Registered ||
		now == shard.Errored && life == shard.Recovering && m.s.e.net.ReadOnly ||
		// A refused change: the journal goes on, and the recovery may be asked for again.
		now == shard.Errored && life == shard.Recovering && m.s.hooks.journal.Load() > 0
	if !ok {
		m.s.failf("G3, I4: %q is %s to the loop and %s in the catalogue", lv.key, now, life)
	}
}

// replayed is what a journal says.
type replayed struct {
	cat    *projection.Catalogue
	from   uint64 // the horizon: what was before it is gone
	events []shard.Event
	ends   map[uint64][32]byte
}

// replay folds a journal anew, and holds it to I3 and N1.
func (m *simModel) replay(j journal.Journal) *replayed {
	r := &replayed{cat: projection.NewCatalogue(), ends: map[uint64][32]byte{0: {}}}
	horizon, err := j.(journal.Compacted).Base(func(events []shard.Event) error {
		return r.cat.ApplyBase(events, j.(journal.Compacted).Horizon(), false)
	})
	if err == nil && horizon.Seq > 0 {
		err = r.cat.ApplyBase(nil, horizon, true)
	}
	if err != nil {
		m.s.failf("C7: base: %v", err)
	}
	r.from, r.ends[horizon.Seq] = horizon.Seq, horizon.Digest
	next := horizon.Seq + 1
	err = j.Replay(horizon.Seq, func(b *journal.Batch) error {
		for i := range b.Events {
			ev := b.Events[i]
			if ev.Kind == shard.EventFailed && slices.ContainsFunc(passingTexts, func(text string) bool { return strings.Contains(ev.State.Reason, text) }) {
				m.s.failf("A4, A5: %q is errored for what passes: %s", ev.Key, ev.State.Reason)
			}
			if ev.Seq != next {
				return fmt.Errorf("event %d where %d comes next", ev.Seq, next)
			}
			next++
			ev.Key = shard.KeyFromString(strings.Clone(ev.Key.String()))
			ev.State = shard.State{URL: strings.Clone(ev.State.URL), Life: ev.State.Life}
			r.events = append(r.events, ev)
		}
		r.ends[b.End.Seq] = b.End.Digest
		return r.cat.Apply(b)
	})
	if err != nil {
		m.s.failf("I3, I9, N1: replay: %v", err)
	}
	return r
}

// checkState holds the catalogue to a fold of the journal.
func (m *simModel) checkState() {
	s := m.s
	r := m.replay(s.d.journal)
	pos := s.d.cat.Position()
	if r.cat.Position() != pos {
		s.failf("I4: the catalogue is at %s, the journal at %s", pos, r.cat.Position())
	}
	if r.cat.Snapshot().Digest() != s.d.cat.Snapshot().Digest() {
		s.failf("I4, G5: the catalogue is not the fold of the journal")
	}
	if b := m.replay(s.d.journal); b.cat.Snapshot().Digest() != r.cat.Snapshot().Digest() {
		s.failf("G5: two replays differ")
	}
}

// checkDurable holds a disk, as a crash left it, to what was told and shown. It
// changes the disk: give it a clone.
func (m *simModel) checkDurable(disk *fsio.Sim, shown journal.Position, before string) *replayed {
	s := m.s
	s.stats.checks++
	j, err := journal.OpenFile(disk, simRoot+"/journal", journal.FileOptions{})
	if err != nil {
		s.failf("C9, after %s: the journal does not open: %v", before, err)
	}
	defer j.Close()
	r := m.replay(j)
	if shown.Seq > j.Head().Seq || shown.Seq >= r.from && r.ends[shown.Seq] != shown.Digest {
		s.failf("G2, G3, after %s: %s was shown, and the journal now ends at %s", before, shown, j.Head())
	}
	for _, a := range m.acks {
		if a.seq <= r.from {
			continue // only what came of it is left
		}
		if a.seq-r.from > uint64(len(r.events)) {
			s.failf("I2, after %s: %s of %q was told at %d and is lost", before, a.kind, a.key, a.seq)
		}
		ev := &r.events[a.seq-r.from-1]
		if ev.Kind != a.kind || ev.Key != a.key || a.url != "" && !strings.HasSuffix(ev.State.URL, a.url) {
			s.failf("I2, after %s: %s of %q was told at %d; that is %s of %q", before, a.kind, a.key, a.seq, ev.Kind, ev.Key)
		}
	}
	repo, err := index.NewFSRepoOn(disk, simRoot+"/index")
	if err != nil {
		s.failf("after %s: %v", before, err)
	}
	r.cat.Snapshot().All(func(rec *projection.Record) bool {
		if rec.Life() != shard.Available || m.tainted[rec.Key()] {
			return true
		}
		x, err := repo.OpenIndex(rec.Key(), rec.Gen())
		if err != nil {
			s.failf("I7, C5, after %s: %q, generation %d, is available without an index: %v", before, rec.Key(), rec.Gen(), err)
		}
		if err := x.Verify(context.Background()); err != nil || x.Info() != rec.Index() {
			s.failf("I7, C5, after %s: the index of %q: %v", before, rec.Key(), err)
		}
		x.Close()
		return true
	})
	if err := checkForeign(disk, m.foreign); err != nil {
		s.failf("after %s: %v", before, err)
	}
	return r
}

// checkCopies finds on a disk, as a crash left it, the copies that the store relies on.
func (m *simModel) checkCopies(disk *fsio.Sim) {
	e := m.s.e
	for key, gen := range e.copies {
		rec, lv := e.d.cat.Get(key), e.d.mu.hot[key]
		if m.tainted[key] || rec == nil || rec.Gen() != gen || lv != nil && (lv.busy || lv.s.Data != fsm.Present) {
			continue // on its way out
		}
		name := mount.CopyName(gen, key.String()) + ".complete"
		if data, err := readFile(disk, simRoot+"/copies/"+name); err != nil || !m.sourceOf(rec.URL()).hasData(data) {
			m.s.failf("C5: after a crash now the copy of %.20q is not what it was: %v", key, err)
		}
	}
}

// checkStarted holds a store that has just started to what it started from.
func (m *simModel) checkStarted(r *replayed) {
	s := m.s
	if s.d.cat.Snapshot().Digest() != r.cat.Snapshot().Digest() {
		s.failf("I4, C9: the catalogue after the start is not the fold of the journal before it")
	}
	if !m.tolerant {
		m.checkFiles("the start", true)
	}
}

// checkFiles holds the directories to what the store knows.
func (m *simModel) checkFiles(after string, started bool) {
	s := m.s
	s.hooks.main(true)
	off := s.hooks.disabled
	s.hooks.disabled = true
	copies, indices, temps, err := storeFiles(s.disk)
	s.hooks.disabled = off
	s.hooks.main(false)
	if err != nil {
		s.failf("after %s: %v", after, err)
	}
	known := make(map[string]bool)
	alive := make(map[uint64]*projection.Record)
	s.d.cat.Snapshot().All(func(rec *projection.Record) bool {
		alive[rec.Gen()] = rec
		if s.e.copies[rec.Key()] == rec.Gen() {
			known[mount.CopyName(rec.Gen(), rec.Key().String())] = true
		}
		return true
	})
	for _, name := range copies {
		k, _ := m.keyOf(name)
		if m.tainted[k] && !started {
			delete(known, name)
			continue
		}
		if !known[name] {
			s.failf("I11, C8, after %s: the copy %s (%q) is nobody's; the store knows %v", after, name, k, known)
		}
		delete(known, name)
	}
	for name := range known {
		if k, _ := m.keyOf(name); !m.tainted[k] {
			s.failf("I11, after %s: the store believes in a copy %s of %q that is not there", after, name, k)
		}
	}
	for _, name := range indices {
		k, _ := m.keyOf(name)
		gen, _ := mount.CopyGeneration(strings.TrimSuffix(name, ".idx"))
		if rec := alive[gen]; rec == nil && (started || !m.tainted[k]) {
			s.failf("F10, C8, after %s: the index %s (%q) is nobody's", after, name, k)
		}
	}
	for _, name := range temps {
		// What a fault kept from being removed is removed at the next start.
		k, _ := m.keyOf(name)
		if hurt := m.tainted[k] || m.journalHurt && strings.HasPrefix(name, "journal/") ||
			s.hooks.injected.Load() > 0 && strings.HasPrefix(name, "checkpoints/"); started || !hurt {
			s.failf("C5, after %s: %s is left behind", after, name)
		}
	}
}

// checkRest holds a store in which nothing goes on to what must be so then.
func (m *simModel) checkRest() {
	s := m.s
	e := s.e
	if len(e.parked) > 0 {
		for _, r := range m.reqs {
			if !r.answered && !r.unread && !r.left() {
				lv := e.d.mu.hot[r.key]
				if lv != nil && lv.s.Resting && lv.ail.retryAt > 0 {
					continue // the end of the pause will
				}
				s.failf("I10: %s waits, and nothing will wake it: %+v", r, lv)
			}
		}
	}
	for _, r := range m.reqs {
		if lv := e.d.mu.hot[r.key]; lv != nil && lv.s.Resting {
			continue
		}
		if !r.answered && !r.unread && !r.left() {
			s.failf("I1, I17: %s was never answered", r)
		}
	}
	for slot := fsm.FetchSlot; slot <= fsm.OpenSlot; slot++ {
		if used, _, waiting := e.net.Slots(slot); used != 0 || waiting != 0 {
			s.failf("N5: at rest, %d slots of kind %d are used and %d wait", used, slot, waiting)
		}
	}
	for key, lv := range e.d.mu.hot {
		if lv.busy || len(lv.deferred) > 0 || lv.s.Job() != fsm.JobNone {
			s.failf("I10: at rest, %.20q is busy %t with %d inputs put off, job %s", key, lv.busy, len(lv.deferred), lv.s.Job())
		}
	}
	for key, lv := range e.d.mu.hot {
		if lv.s.Idle() {
			s.failf("I15: at rest, %.20q is kept live for nothing", key)
		}
	}
	if e.revive.running != 0 || e.slow.running != 0 || len(e.revive.queue)+len(e.slow.queue) > 0 {
		s.failf("N5: at rest, the pools are at %d and %d", e.revive.running, e.slow.running)
	}
	for _, src := range s.w.sources {
		if src.fetching != 0 {
			s.failf("F14: %d streams of %s are open at rest", src.fetching, src.name)
		}
		if src.most > 1 {
			s.failf("I12: %d fetches of %s at a time", src.most, src.name)
		}
	}
	if !m.tolerant {
		m.checkFiles("coming to rest", false)
	}
	m.checkTopLevel()
	m.checkState()
}

// notKnown says that a lookup's error is one of the two that are neither a shard nor the
// certainty that there is none, and rightly so (A2, A3).
func (m *simModel) notKnown(h mh.Multihash, err error) bool {
	s := m.s
	var u *UnavailableError
	switch {
	case errors.As(err, &u):
		for _, key := range u.Shards {
			rec := s.d.cat.Get(key)
			if rec == nil || rec.Life() != shard.Errored && rec.Life() != shard.Recovering {
				s.failf("A2: %v, and the record of the shard is %v", err, rec)
			}
		}
		if ipld.IsNotFound(err) || errors.Is(err, errNoShard) {
			s.failf("A2: %v is taken for not found", err)
		}
		return true
	case errors.Is(err, ErrNotFresh):
		if s.d.top.Load().lackingCount() == 0 {
			s.failf("A3: %v, and nothing lacks", err)
		}
		return true
	}
	return false
}

// checkTopLevel holds the top-level index to the shards' own.
func (m *simModel) checkTopLevel() {
	s := m.s
	s.d.views.Retry(TopLevelView)
	s.rest()
	holders := make(map[string][]string)
	s.d.cat.Snapshot().All(func(rec *projection.Record) bool {
		for _, c := range simContents() {
			if rec.Life() != shard.Available || c.digest != rec.Index().Digest {
				continue
			}
			for _, b := range c.blocks {
				holders[string(b.Cid().Hash())] = append(holders[string(b.Cid().Hash())], rec.Key().String())
			}
		}
		return true
	})
	for _, c := range simContents() {
		for _, b := range c.blocks {
			keys, err := s.d.ShardsContainingMultihash(context.Background(), b.Cid().Hash())
			if m.notKnown(b.Cid().Hash(), err) {
				continue
			}
			if err != nil && !errors.Is(err, errNoShard) {
				s.failf("I8: lookup: %v", err)
			}
			var got []string
			for _, k := range keys {
				if !m.disked[k] {
					got = append(got, k.String())
				}
			}
			var want []string
			for _, k := range holders[string(b.Cid().Hash())] {
				if !m.disked[shard.KeyFromString(k)] {
					want = append(want, k)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(slices.Compact(got), slices.Compact(want)) {
				s.failf("I8: block %s is in %q, and the top-level index says %q", b.Cid(), want, got)
			}
		}
	}
}
