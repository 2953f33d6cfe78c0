package toplevel

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// Options configures an [Index]. The zero value is an index in memory.
type Options struct {
	// Memory is about how many bytes entries may take before they are on disk, at 18
	// each; 0 means 64 MiB. At half of it they are written; at all of it Add waits, and
	// at twice as much it is refused. Each Add that is running takes up to a third of
	// it more, and a merge some 10 MiB and 100 bytes for each ingest.
	Memory int64
	// FilterMemory is how many bytes the filters of runs on disk may take in memory, at
	// about 1.3 an entry; 0 means a quarter of the Go runtime's memory limit (GOMEMLIMIT),
	// at most 1.25 GiB, which is enough for 10⁹ entries. They are read when they are first
	// asked. Where that is too little for all, those that were not asked lately give way,
	// and a lookup that needs one of those reads it, some 130 KiB. What tells the shards of
	// a run apart, 32 bytes and the key for each, is kept besides.
	FilterMemory int64
	// FanIn is how many runs of about one size there may be before they are merged, a
	// power of two from 2 to 64; 0 means 4. A larger one writes less and makes lookups
	// ask more filters.
	FanIn int
	// MergeShare is the part of the time that a merge may work while nothing is
	// behind: 1 does not pause, 0 means ½. It never pauses when runs pile up.
	MergeShare float64
	// RestAfter is when an index that nothing is added to merges what is left, to few
	// runs ([Rest]); 0 means 2 s, negative never.
	RestAfter time.Duration
	// Spawn runs the merges; nil: go.
	Spawn func(func())
	// Logger is told what goes wrong in the background.
	Logger *slog.Logger
}

// Hooks are what an index asks of whoever keeps it. Each may be nil.
type Hooks struct {
	// Alive says whether lookups may ever want an ingest, now or later; nil: always. It
	// is called by merges, beside everything else. The key is valid during the call only.
	Alive func(Ingest) bool
	// Mark returns the position that everything added until now has reached, to be kept
	// with it on disk; up to 1 KiB. With nil the former mark is kept.
	Mark func() []byte
	// Damaged is told, beside everything else, when damage is found.
	Damaged func(error)
}

func (o *Options) setDefaults() error {
	if o.Memory == 0 {
		o.Memory = 64 << 20
	}
	if o.FilterMemory == 0 {
		o.FilterMemory = defaultFilterMemory()
	}
	if o.FanIn == 0 {
		o.FanIn = 4
	}
	if o.FanIn < 2 || o.FanIn > 64 || o.FanIn&(o.FanIn-1) != 0 {
		return fmt.Errorf("top-level index: a fan-in of %d; it has to be a power of two from 2 to 64", o.FanIn)
	}
	if o.MergeShare == 0 {
		o.MergeShare = 0.5
	}
	if o.MergeShare < 0 || o.MergeShare > 1 {
		return fmt.Errorf("top-level index: a merge share of %g; it has to be above 0 and at most 1", o.MergeShare)
	}
	if o.RestAfter == 0 {
		o.RestAfter = 2 * time.Second
	}
	if o.Spawn == nil {
		o.Spawn = func(f func()) { go f() }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// memFanIn is the fan-in of runs in memory.
const memFanIn = 8

// Index maps multihashes to ingests. Its methods may be called concurrently.
type Index struct {
	opts  Options
	hooks Hooks
	fs    fsio.FS // nil: in memory
	dir   string
	key   hashKey
	id    uint64

	// state is what lookups see. It is replaced as a whole, under mu.
	state atomic.Pointer[state]
	ended atomic.Bool // by Close or a successor: nothing is looked up here any more
	// successor has taken the place of this index.
	successor atomic.Pointer[Index]

	// writing is held while runs in memory become another run, in memory or on disk.
	writing token
	// committing is held while a manifest is written and shown.
	committing token

	filters filters

	ctx    context.Context // of merges
	cancel context.CancelFunc

	mu struct {
		sync.Mutex
		epoch   uint32
		next    uint64 // number of the next run
		mark    []byte // that is durable
		adopted bool   // the manifest is this index's
		closed  bool
		merging bool
		started bool
		idle    *sync.Cond // merging became false
		// doubtful holds runs that a manifest may or may not name.
		doubtful []string
		failed   error // of the last attempt to write
		puts     uint64
		resting  *time.Timer
		dead     int // ingests that died since they were last counted
	}
	stats struct {
		flushes, merges, written, merged atomic.Uint64
	}
}

// state is immutable.
type state struct {
	mem []*memRun
	*diskSet
}

// token is a lock whose waiters can leave.
type token chan struct{}

func (t token) lock()   { t <- struct{}{} }
func (t token) unlock() { <-t }
func (t token) tryLock() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

// New returns an index in memory.
func New(o Options, h Hooks) (*Index, error) { return open(nil, "", o, h) }

// Open opens the index in a directory, which is made if missing. One process at a time
// may have it open. What is damaged there is left out, and [Index.Mark] is empty then. Nothing is merged before [Index.Start].
func Open(dir string, o Options, h Hooks) (*Index, error) { return open(fsio.OS(), dir, o, h) }

// OpenOn is [Open] on any file system.
func OpenOn(fsys fsio.FS, dir string, o Options, h Hooks) (*Index, error) {
	return open(fsys, dir, o, h)
}

func open(fsys fsio.FS, dir string, o Options, h Hooks) (*Index, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	x := newIndex(fsys, dir, o, h)
	x.mu.adopted = true
	if fsys == nil {
		return x, x.draw()
	}
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("top-level index: %w", err)
	}
	if err := x.load(); err != nil {
		return nil, err
	}
	x.sweep()
	return x, nil
}

// Start lets merges begin, which ask [Hooks].Alive.
func (x *Index) Start() {
	x.mu.Lock()
	x.mu.started = true
	x.mu.Unlock()
	x.kick()
}

func newIndex(fsys fsio.FS, dir string, o Options, h Hooks) *Index {
	x := &Index{opts: o, hooks: h, fs: fsys, dir: dir, writing: make(token, 1), committing: make(token, 1)}
	x.filters.limit = o.FilterMemory
	x.ctx, x.cancel = context.WithCancel(context.Background())
	x.mu.idle = sync.NewCond(&x.mu)
	x.mu.next = 1
	x.state.Store(&state{diskSet: new(diskSet)})
	return x
}

// draw gives a new index its identity and its key.
func (x *Index) draw() error {
	var b [24]byte
	if _, err := rand.Read(b[:]); err != nil {
		return err
	}
	le := binary.LittleEndian
	x.id, x.key = le.Uint64(b[:]), hashKey{le.Uint64(b[8:]), le.Uint64(b[16:])}
	return nil
}

// load reads the manifest and opens its runs. What is damaged is left out, and then the
// mark is empty.
func (x *Index) load() error {
	m, err := readManifest(x.fs, x.dir)
	var damaged *DamagedError
	if errors.As(err, &damaged) {
		x.opts.Logger.Warn("the top-level index begins empty", "err", err)
		m, err = nil, nil
	}
	if err != nil {
		return err
	}
	if m == nil {
		x.mu.epoch = x.freeEpoch()
		return x.draw()
	}
	x.id, x.key, x.mu.epoch, x.mu.next, x.mu.mark = m.id, m.key, m.epoch, m.next, m.mark
	st := &state{diskSet: new(diskSet)}
	for _, ref := range m.runs {
		r, err := openRun(x.fs, filepath.Join(x.dir, runName(m.epoch, ref.seq)), m.id, &ref.crc, &x.filters)
		if errors.As(err, &damaged) {
			x.opts.Logger.Warn("a run of the top-level index is left out; its shards are added again", "err", err)
			x.mu.mark = nil
			continue
		}
		if err != nil {
			for _, r := range st.disk {
				r.close()
			}
			return err
		}
		r.seq = ref.seq
		st.disk = append(st.disk, r)
	}
	st.dead = make([]uint64, len(st.disk))
	x.mu.Lock()
	defer x.mu.Unlock()
	x.showLocked(st)
	return nil
}

// freeEpoch is greater than that of any run in the directory.
func (x *Index) freeEpoch() uint32 {
	epoch := uint32(1)
	entries, err := x.fs.ReadDir(x.dir)
	if err != nil {
		return epoch
	}
	for _, e := range entries {
		if n, _, ok := parseRunName(e.Name()); ok {
			epoch = max(epoch, n+1)
		}
	}
	return epoch
}

// sweep removes the files of the index that its state does not name.
func (x *Index) sweep() {
	entries, err := x.fs.ReadDir(x.dir)
	if err != nil {
		x.opts.Logger.Warn("top-level index: sweep", "err", err)
		return
	}
	named := make(map[string]bool)
	for _, r := range x.state.Load().disk {
		named[filepath.Base(r.name)] = true
	}
	for _, e := range entries {
		name := e.Name()
		_, _, run := parseRunName(name)
		if !e.Type().IsRegular() || named[name] || !run && !(fsio.IsTemp(name) && isOurs(name)) {
			continue
		}
		if err := x.fs.Remove(filepath.Join(x.dir, name)); err != nil {
			x.opts.Logger.Warn("top-level index: sweep", "err", err)
		}
	}
}

// isOurs says whether a temporary file is of a run or a manifest.
func isOurs(temp string) bool {
	if len(temp) > len(manifestName) && temp[:len(manifestName)] == manifestName {
		return true
	}
	n := len(runName(0, 0))
	if len(temp) <= n {
		return false
	}
	_, _, ok := parseRunName(temp[:n])
	return ok
}

// Mark returns the position up to which everything that was added is on disk, as
// [Hooks].Mark gave it; empty if none is known.
func (x *Index) Mark() []byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.mu.mark)
}

// Add adds the multihashes of an ingest, which are durable with the next Flush, or
// earlier. Adding an ingest again changes nothing. They need not all become visible at
// once, and after an error some may be: an ingest should not count before it is whole,
// which is for whoever reads what [Index.Lookup] finds to see to. Errors of it, which are
// those of a shard's index, come back as they are.
func (x *Index) Add(ctx context.Context, in Ingest, it index.MultihashIterator) error {
	return x.add(ctx, in, it, true)
}

// AddPart is Add for some of an ingest's multihashes: it leaves open whether the others
// are there.
func (x *Index) AddPart(ctx context.Context, in Ingest, it index.MultihashIterator) error {
	return x.add(ctx, in, it, false)
}

func (x *Index) add(ctx context.Context, in Ingest, it index.MultihashIterator, whole bool) error {
	if err := in.Key.Validate(); err != nil {
		return err
	}
	if err := x.check(); err != nil {
		return err
	}
	// So much of a large shard is taken at once.
	chunk := max(int(min(x.opts.Memory/8/memEntry, math.MaxInt32)), filterLeast)
	if x.fs == nil {
		chunk = math.MaxInt32
	}
	var es []entry
	n := 0
	err := it.ForEach(func(mh multihash.Multihash) error {
		if n++; n%4096 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		if len(es) >= chunk {
			whole = false
			if err := x.put(in, es, whole); err != nil {
				return err
			}
			es = es[:0]
		}
		f := x.key.of(mh)
		es = append(es, entry{f.hi, f.lo, 0})
		return nil
	})
	if err = errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	return x.put(in, es, whole)
}

// put shows entries of an ingest, and then sees to it that there are few runs and
// little in memory. whole says that they are all of the ingest's entries.
func (x *Index) put(in Ingest, es []entry, whole bool) error {
	if err := x.admit(); err != nil || len(es) == 0 {
		return err
	}
	es = slices.Clone(sortEntries(es))
	r := newMemRun(es, []record{{in.Gen, in.Tag, in.Key.String(), uint32(min(uint64(len(es)), math.MaxUint32)), whole}})
	x.mu.Lock()
	if x.mu.closed {
		x.mu.Unlock()
		return ErrClosed
	}
	st := *x.state.Load()
	st.mem = append(slices.Clone(st.mem), r)
	x.showLocked(&st)
	x.mu.puts++
	x.mu.Unlock()
	if !x.writing.tryLock() {
		return nil // somebody else is at it
	}
	defer x.writing.unlock()
	x.tidyLocked()
	if x.fs != nil && x.memory() >= x.opts.Memory/2 {
		if err := x.flushLocked(x.mark(), false); err != nil {
			x.opts.Logger.Warn("the top-level index stays in memory for now", "err", err)
		}
	}
	return nil
}

// admit waits until there is room in memory.
func (x *Index) admit() error {
	if x.fs == nil || x.memory() < x.opts.Memory {
		return x.check()
	}
	if err := x.flush(); err != nil && x.memory() >= 2*x.opts.Memory {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return x.check()
}

func (x *Index) check() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.mu.closed {
		return ErrClosed
	}
	return nil
}

// memory is about what entries in memory take.
func (x *Index) memory() int64 {
	n := int64(0)
	for _, r := range x.state.Load().mem {
		n += r.bytes
	}
	return n
}

// tidyLocked merges runs in memory.
func (x *Index) tidyLocked() {
	for {
		st := x.state.Load()
		sizes := make([]RunSize, len(st.mem))
		for i, r := range st.mem {
			sizes[i] = RunSize{Entries: r.len()}
		}
		pick := Plan(sizes, memFanIn)
		if len(pick) < 2 {
			return
		}
		runs := make([]*memRun, len(pick))
		for i, p := range pick {
			runs[i] = st.mem[p]
		}
		x.replaceMem(runs, mergeInMemory(runs, x.alive))
	}
}

// replaceMem shows a run in place of some in memory.
func (x *Index) replaceMem(old []*memRun, m *memRun) {
	x.mu.Lock()
	defer x.mu.Unlock()
	st := *x.state.Load()
	st.mem = slices.DeleteFunc(slices.Clone(st.mem), func(r *memRun) bool { return slices.Contains(old, r) })
	if len(m.entries) > 0 {
		st.mem = append(st.mem, m)
	}
	x.showLocked(&st)
}

func (x *Index) alive(r *record) bool {
	return x.hooks.Alive == nil || x.hooks.Alive(r.ingest())
}

func (x *Index) mark() []byte {
	if x.hooks.Mark == nil {
		return nil
	}
	return x.hooks.Mark()
}

// Flush makes everything durable that was added until now, together with mark. It
// writes nothing if there is nothing new.
func (x *Index) Flush(mark []byte) error {
	if err := x.check(); err != nil {
		return err
	}
	x.writing.lock()
	defer x.writing.unlock()
	return x.flushLocked(mark, false)
}

func (x *Index) flush() error {
	x.writing.lock()
	defer x.writing.unlock()
	if x.memory() < x.opts.Memory/2 {
		return nil // somebody else did
	}
	return x.flushLocked(x.mark(), false)
}

// flushLocked writes the runs in memory as one run on disk, and then a manifest, which
// it does always or if there is something new.
func (x *Index) flushLocked(mark []byte, always bool) error {
	if x.fs == nil {
		return nil
	}
	if len(mark) > maxMark {
		return fmt.Errorf("top-level index: a mark of %d bytes; at most %d", len(mark), maxMark)
	}
	mem := x.state.Load().mem
	x.mu.Lock()
	same := mark == nil || string(mark) == string(x.mu.mark)
	x.mu.Unlock()
	if len(mem) == 0 && same && !always {
		return nil
	}
	var srcs []source
	for _, r := range mem {
		srcs = append(srcs, r)
	}
	var run *diskRun
	var err error
	if len(srcs) > 0 {
		run, err = x.write(srcs, func(int) error { return nil })
	}
	if err == nil {
		err = x.commit(mark, func(st *state) {
			st.mem = slices.DeleteFunc(slices.Clone(st.mem), func(r *memRun) bool { return slices.Contains(mem, r) })
			if run != nil {
				st.disk = append(slices.Clone(st.disk), run)
				st.dead = append(slices.Clone(st.dead), 0)
			}
		}, run)
	}
	x.mu.Lock()
	x.mu.failed = err
	x.mu.Unlock()
	if err != nil {
		return err
	}
	x.stats.flushes.Add(1)
	x.kick()
	return nil
}

// write writes a run. It is nil if nothing in it is alive.
func (x *Index) write(srcs []source, step func(n int) error) (*diskRun, error) {
	m, err := newMerger(srcs, x.alive)
	if err != nil {
		return nil, err
	}
	if len(m.ingests) == 0 {
		return nil, nil
	}
	x.mu.Lock()
	seq, epoch := x.mu.next, x.mu.epoch
	x.mu.next++
	x.mu.Unlock()
	name := filepath.Join(x.dir, runName(epoch, seq))
	err = fsio.WriteFileAtomic(x.fs, name, 0o600, func(f fsio.File) error {
		_, err := writeRun(f, m, epoch, x.id, func(n int) error {
			x.stats.written.Add(uint64(n))
			return step(n)
		})
		return err
	})
	if err != nil {
		x.doubt(name)
		return nil, err
	}
	run, err := openRun(x.fs, name, x.id, nil, &x.filters)
	if err != nil {
		x.doubt(name)
		return nil, err
	}
	run.seq = seq
	return run, nil
}

// doubt notes a run that is to be removed when a manifest is durable that does not name
// it.
func (x *Index) doubt(names ...string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.mu.doubtful = append(x.mu.doubtful, names...)
}

// errSuperseded ends the work of an index that another took the place of.
var errSuperseded = errors.New("top-level index: superseded")

// commit makes a change of the state durable and shows it. mark is nil to keep it. made
// is the run that was written for it.
func (x *Index) commit(mark []byte, change func(*state), made *diskRun) error {
	x.committing.lock()
	defer x.committing.unlock()
	x.mu.Lock()
	now := x.state.Load()
	after := now.clone()
	change(after)
	m := manifest{epoch: x.mu.epoch, id: x.id, key: x.key, next: x.mu.next, mark: x.mu.mark}
	if mark != nil {
		m.mark = slices.Clone(mark)
	}
	adopted := x.mu.adopted
	closed := x.mu.closed && x.ctx.Err() != nil
	doubtful := slices.Clone(x.mu.doubtful)
	x.mu.Unlock()
	if closed {
		x.doubtRun(made)
		return errSuperseded
	}
	for _, r := range after.disk {
		m.runs = append(m.runs, runRef{r.seq, r.entries, r.footer.crc})
	}
	if adopted && !planted.Bug("toplevel-manifest-not-written") {
		if err := writeManifest(x.fs, x.dir, &m); err != nil {
			// It may be the old one or the new one that a crash leaves: the runs of both
			// stay until there is another.
			x.doubtRun(made)
			return err
		}
	}
	var gone []string
	var retired []*diskRun
	for _, r := range now.disk {
		if !slices.Contains(after.disk, r) {
			gone, retired = append(gone, r.name), append(retired, r)
		}
	}
	x.mu.Lock()
	// Runs in memory may have come meanwhile.
	st := x.state.Load().clone()
	change(st)
	former := x.showLocked(st)
	x.mu.mark = m.mark
	x.mu.doubtful = slices.DeleteFunc(x.mu.doubtful, func(n string) bool { return slices.Contains(doubtful, n) })
	x.mu.Unlock()
	for _, r := range retired {
		x.filters.retire(r)
	}
	former.retire()
	for _, name := range slices.Concat(doubtful, gone) {
		if slices.ContainsFunc(after.disk, func(r *diskRun) bool { return r.name == name }) {
			continue
		}
		if err := x.fs.Remove(name); err != nil && !isGone(err) {
			x.opts.Logger.Warn("top-level index: a run that was merged is left until the next start", "err", err)
		}
	}
	return nil
}

func (x *Index) doubtRun(r *diskRun) {
	if r != nil {
		x.doubt(r.name)
		r.close()
	}
}

func (x *Index) noteDamage(err error) {
	var damaged *DamagedError
	if errors.As(err, &damaged) && x.hooks.Damaged != nil {
		x.hooks.Damaged(err)
	}
}

// scratch is what a lookup works with.
type scratch struct {
	stripe uint32 // of the readers that it is counted with
	found  []uint32
	bucket []byte
	faults int // met by this lookup
	key    [shard.MaxKeyLen]byte
}

// maxScratch is the largest bucket that a scratch is kept with for another lookup.
const maxScratch = 64 << 10

var (
	scratches  = sync.Pool{New: func() any { return &scratch{stripe: lastStripe.Add(1)} }}
	lastStripe atomic.Uint32
)

// Lookup calls visit for every ingest that has the multihash, dead ones included, some
// perhaps twice, until it returns false. The ingest's key is valid during the call only:
// clone it to keep it. An error, a *[DamagedError] or [ErrClosed], means that what was
// visited need not be all.
func (x *Index) Lookup(mh multihash.Multihash, visit func(Ingest) bool) error {
	if x.ended.Load() {
		return x.lookupElsewhere(mh, visit)
	}
	f := x.key.of(mh)
	st := x.state.Load()
	for _, r := range st.mem {
		if r.fuse != nil && !r.fuse.Contains(f.hi) {
			continue
		}
		for i := r.first(f); i < len(r.entries) && r.entries[i].is(f); i++ {
			if !visit(r.ingests[r.entries[i].ingest].ingest()) {
				return nil
			}
		}
	}
	i := st.skip(f, 0)
	if i == len(st.disk) {
		if i == 0 && x.ended.Load() {
			return x.lookupElsewhere(mh, visit)
		}
		return nil
	}
	s := scratches.Get().(*scratch)
	defer s.done()
	now := x.use(s.stripe)
	defer now.leave(s.stripe)
	if now.diskSet != st.diskSet {
		if len(now.disk) == 0 && x.ended.Load() {
			return x.lookupElsewhere(mh, visit)
		}
		st, i = now, 0 // what was in memory and is no longer is on the disk
	}
	err := st.lookup(f, i, s, visit)
	if err != nil {
		x.noteDamage(err)
	}
	return err
}

// lookupElsewhere is a Lookup of an index that is no more.
func (x *Index) lookupElsewhere(mh multihash.Multihash, visit func(Ingest) bool) error {
	if next := x.successor.Load(); next != nil {
		return next.Lookup(mh, visit)
	}
	return ErrClosed
}

// again says whether a lookup that met a fault in a run is to try again, by reading. That
// does not fault, unless what is read is in memory for a moment and then is not.
func (s *scratch) again(r *diskRun) bool {
	if s.faults++; r.file == nil || s.faults > 3 {
		return false
	}
	r.file.Forget()
	return true
}

func (s *scratch) done() {
	s.faults = 0
	if cap(s.bucket) > maxScratch {
		s.bucket = nil
	}
	scratches.Put(s)
}

// skip returns the first run on disk from number i on that is to be looked into. It
// asks filters that are in memory only, which nobody has to hold.
func (st *state) skip(f fingerprint, i int) int {
	for i < len(st.disk) && !st.disk[i].passes(f) {
		i++
	}
	return i
}

// lookup looks into the runs on disk from number i on, which the caller holds.
func (st *state) lookup(f fingerprint, i int, s *scratch, visit func(Ingest) bool) error {
	for i < len(st.disk) {
		var err error
		// All runs that have nothing, under one guard.
		if i, err = st.first(f, i, s); err != nil {
			return err
		}
		if len(s.found) == 0 {
			return nil
		}
		r := st.disk[i]
		if on, err := r.visit(s.found, s, visit); !on || err != nil {
			return err
		}
		if n := len(s.found); n == someIngests {
			if err := r.findAll(f, s); err != nil {
				return err
			}
			if on, err := r.visit(s.found[n:], s, visit); !on || err != nil {
				return err
			}
		}
		i++
	}
	return nil
}

// someIngests is how many ingests with a multihash are looked for in a run before they
// are visited. Most multihashes have one; of those that very many have, a few are enough
// for most who ask, and to find all takes long.
const someIngests = 64

// visit calls visit for ingests; on is what it returned last.
func (r *diskRun) visit(numbers []uint32, s *scratch, visit func(Ingest) bool) (on bool, err error) {
	for _, n := range numbers {
		rec, err := r.ingest(n, &s.key)
		if err != nil {
			return false, err
		}
		if !visit(rec.ingest()) {
			return false, nil
		}
	}
	return true, nil
}

// findAll finds all that a run has, in s.found.
func (r *diskRun) findAll(f fingerprint, s *scratch) (err error) {
	old := r.guard()
	defer func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			if err = r.fault(p); s.again(r) { // reading says what is wrong
				err = r.findAll(f, s)
			}
		}
	}()
	s.found, err = r.find(f, s.found[:0], &s.bucket, math.MaxInt)
	return err
}

// first finds the first run from number i on that has f, and up to someIngests of what
// it has.
func (st *state) first(f fingerprint, i int, s *scratch) (at int, err error) {
	s.found = s.found[:0]
	r := st.disk[i]
	old := r.guard()
	defer func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			if err = r.fault(p); s.again(r) { // reading says what is wrong
				at, err = st.first(f, i, s)
			}
		}
	}()
	for ; i < len(st.disk); i++ {
		r = st.disk[i]
		if s.found, err = r.find(f, s.found, &s.bucket, someIngests); err != nil || len(s.found) > 0 {
			break
		}
	}
	return i, err
}

// Ingests calls yield for every ingest that the index has entries of, dead ones
// included and some more than once, until it returns false. whole says that all of the
// ingest's entries are there: they came in one piece, so that they were kept, merged and
// left out together. Of a shard that is taken in several pieces it is never said.
func (x *Index) Ingests(yield func(in Ingest, whole bool) bool) error {
	if x.ended.Load() {
		return ErrClosed
	}
	st := x.use(0)
	defer st.leave(0)
	var srcs []source
	for _, r := range st.mem {
		srcs = append(srcs, r)
	}
	for _, r := range st.disk {
		srcs = append(srcs, r)
	}
	for _, s := range srcs {
		recs, err := s.records()
		if err != nil {
			return err
		}
		for i := range recs {
			if !yield(recs[i].ingest(), recs[i].whole) {
				return nil
			}
		}
	}
	return nil
}

// Verify reads the whole index and checks every promise of its format.
func (x *Index) Verify(ctx context.Context) error {
	if x.ended.Load() {
		return ErrClosed
	}
	st := x.use(0)
	defer st.leave(0)
	for _, r := range st.disk {
		if err := r.verify(ctx.Err); err != nil {
			return err
		}
	}
	return nil
}

// Stats are figures of an index.
type Stats struct {
	Entries       uint64 // on disk and in memory, dead ones and duplicates included
	MemoryEntries uint64 // of them, those in memory
	Runs          int    // on disk
	MemoryRuns    int
	DiskBytes     uint64
	FilterBytes   uint64 // filters and directories of the runs on disk
	FilterMemory  uint64 // of that, what filters take in memory now
	FilterLoads   uint64 // filters of partitions that were read into memory
	Flushes       uint64
	Merges        uint64
	MergedEntries uint64 // read by merges
	WrittenBytes  uint64 // by flushes and merges
	Merging       bool
	// Failed is why the entries in memory could not be written, or nil.
	Failed error
}

// Stats returns the present figures.
func (x *Index) Stats() Stats {
	st := x.state.Load()
	s := Stats{
		Runs: len(st.disk), MemoryRuns: len(st.mem), Flushes: x.stats.flushes.Load(), Merges: x.stats.merges.Load(),
		FilterMemory: uint64(x.filters.used.Load()), FilterLoads: x.filters.loads.Load(),
		MergedEntries: x.stats.merged.Load(), WrittenBytes: x.stats.written.Load(),
	}
	for _, r := range st.mem {
		s.MemoryEntries += r.len()
	}
	s.Entries = s.MemoryEntries
	for _, r := range st.disk {
		s.Entries += r.entries
		s.DiskBytes += r.size
		for i := range r.parts {
			if p := &r.parts[i]; p.entries > 0 {
				s.FilterBytes += uint64(p.filterLen) + 4<<p.bits + dirLen
			}
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	s.Merging, s.Failed = x.mu.merging, x.mu.failed
	return s
}

// Settle waits until no merge is running, for tests and measurements.
func (x *Index) Settle() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for x.mu.merging {
		x.mu.idle.Wait()
	}
}

// Fresh returns an empty index in the same directory, with a key of its own, that takes
// the place of x with [Index.Adopt]. Until then a start finds x.
func (x *Index) Fresh(h Hooks) (*Index, error) {
	f := newIndex(x.fs, x.dir, x.opts, h)
	f.mu.started = true
	if err := f.draw(); err != nil {
		return nil, err
	}
	if x.fs == nil {
		f.mu.adopted = true
		return f, nil
	}
	f.mu.epoch = x.freeEpoch()
	x.mu.Lock()
	defer x.mu.Unlock()
	f.mu.epoch = max(f.mu.epoch, x.mu.epoch+1)
	return f, nil
}

// Adopt puts x, which [Index.Fresh] made, in the place of former, which is closed and
// whose files are removed. After an error former is as it was.
func (x *Index) Adopt(former *Index, mark []byte) error {
	if x.fs == nil {
		former.end()
		return nil
	}
	former.committing.lock()
	defer former.committing.unlock()
	x.mu.Lock()
	x.mu.adopted = true
	x.mu.Unlock()
	x.writing.lock()
	err := x.flushLocked(mark, true)
	x.writing.unlock()
	if err != nil {
		// The new manifest may be there or not. A start copes with both as long as the
		// files of both stay, and whichever index commits next decides.
		x.mu.Lock()
		x.mu.adopted = false
		x.mu.Unlock()
		return err
	}
	former.end()
	gone := former.state.Load().disk
	former.successor.Store(x)
	former.giveUp()
	for _, r := range gone {
		if err := x.fs.Remove(r.name); err != nil && !isGone(err) {
			x.opts.Logger.Warn("top-level index: a run that was replaced is left until the next start", "err", err)
		}
	}
	x.kick()
	return nil
}

// giveUp lets all runs go. Lookups that are under way end first.
func (x *Index) giveUp() {
	x.ended.Store(true)
	x.mu.Lock()
	former := x.showLocked(&state{diskSet: new(diskSet)})
	x.mu.Unlock()
	former.retire()
}

// end stops merges and refuses further work. What is looked up goes on.
func (x *Index) end() {
	x.mu.Lock()
	x.mu.closed = true
	if x.mu.resting != nil {
		x.mu.resting.Stop()
	}
	x.mu.Unlock()
	x.cancel()
}

// Close makes everything durable, as Flush does with [Hooks].Mark, and ends the index.
// It waits for a merge that is running to stop.
func (x *Index) Close() error {
	if x.check() != nil {
		return nil
	}
	x.cancel()
	x.writing.lock()
	defer x.writing.unlock()
	err := x.flushLocked(x.mark(), false)
	x.end()
	x.Settle()
	x.giveUp()
	return err
}
