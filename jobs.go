package dagstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// pool bounds work that takes no slot of the machine. It belongs to the loop.
type pool struct {
	limit, running int
	queue          []*pooled
}

// pooled is one piece of work: queued, running, or dropped before it ran.
type pooled struct {
	run   func()
	begun bool
	drop  bool
}

func (p *pool) start(e *eventLoop, f func()) *pooled {
	w := &pooled{run: f}
	p.queue = append(p.queue, w)
	p.next(e)
	return w
}

func (p *pool) ended(e *eventLoop) {
	p.running--
	p.next(e)
}

func (p *pool) next(e *eventLoop) {
	for p.running < p.limit && len(p.queue) > 0 && !e.closing {
		w := p.queue[0]
		p.queue[0] = nil
		p.queue = p.queue[1:]
		if w.drop {
			continue
		}
		w.begun = true
		p.running++
		e.spawn(w.run)
	}
}

// effect does what a step wants.
func (e *eventLoop) effect(lv *live, eff *fsm.Effect, at durable) {
	switch eff.Kind {
	case fsm.StartJob:
		e.startJob(lv, eff)
	case fsm.CloseHandle:
		if lv.handle != nil {
			e.letGo(lv.handle)
			lv.handle = nil
		}
	case fsm.CutOff:
		e.cutOff(lv)
	case fsm.CancelJob:
		e.cancelRunning(lv)
	case fsm.NotifyFailure:
		e.d.fails.send(ShardResult{Key: lv.key, Error: eff.Cause})
	case fsm.Sweep:
		e.d.top.Load().entries.leave(lv.key, lv.s.Gen)
		lv.sweep = &sweepOrder{ticket: eff.Ticket, at: at}
		e.sweeping[eff.Ticket] = struct{}{}
		e.endJobThenSweep(lv)
	}
}

// endJobThenSweep cancels the job of a life that is over; the sweep follows its end.
func (e *eventLoop) endJobThenSweep(lv *live) {
	if lv.cancelJob == nil {
		e.startSweep(lv)
		return
	}
	e.cancelRunning(lv)
}

// cancelRunning cancels the running job, whose end is still told, at once if it has
// not begun.
func (e *eventLoop) cancelRunning(lv *live) {
	if lv.cancelJob == nil {
		return
	}
	lv.cancelJob()
	if lv.queued != nil && !lv.queued.begun {
		lv.queued.drop = true
		e.internal = append(e.internal, input{lv: lv, trig: doneTrigger(lv.s.Job()),
			done: &completion{attempt: lv.s.Attempt, err: context.Canceled}})
	}
}

// letGo ends the loop's use of a handle. If accessors go on using it, that is noted,
// so that Close ends them.
func (e *eventLoop) letGo(h *handle) {
	h.release()
	for old := range e.outlived {
		if old.isOff.Load() {
			delete(e.outlived, old)
		}
	}
	if !h.isOff.Load() {
		e.outlived[h] = struct{}{}
	}
}

// job is what a running job knows: copies of what the loop owns.
type job struct {
	d       *DAGStore
	kind    fsm.Job
	key     shard.Key
	gen     uint64
	mnt     mount.Mount
	noMount error // why mnt is nil
	direct  bool
	fresh   bool
	indexed bool
	// recovering: there may be traces of an earlier index.
	recovering bool
	held       []io.Closer        // closed when the job ends
	cancel     context.CancelFunc // of the job's context; the reader's once there is one
	info       shard.IndexInfo
	transient  string // the caller's own copy, if it may be used
	loop       *eventLoop
	lv         *live
}

func (e *eventLoop) startJob(lv *live, eff *fsm.Effect) {
	s := &lv.s
	if eff.Fresh {
		lv.noInitial = true
	}
	j := &job{
		d: e.d, kind: eff.Job, key: lv.key, gen: s.Gen, mnt: lv.mnt, noMount: lv.noMount, direct: s.Data == fsm.Direct,
		fresh: eff.Fresh && e.d.tail == nil, // a follower hopes that the writer did something about it

		indexed: s.Index == fsm.Indexed, info: s.Info, recovering: s.Life == shard.Recovering, loop: e, lv: lv,
	}
	if !lv.noInitial {
		j.transient = lv.transient
	}
	ctx, cancel := context.WithCancel(e.d.ctx)
	lv.cancelJob = e.cancels(cancel)
	attempt := eff.Attempt
	slow := s.Slow()
	j.cancel = cancel
	run := func() {
		stop := e.watchOverdue(lv, j.kind, attempt)
		if j.kind == fsm.JobFetch {
			stop = e.watchUnwanted(lv, attempt)
		}
		c := j.run(ctx)
		stop()
		j.cancel()
		c.attempt = attempt
		in := input{lv: lv, trig: doneTrigger(j.kind), done: c}
		if slow {
			// One slow fetch less; the next may start.
			e.complete(input{ctl: func() { e.slow.ended(e) }})
		}
		if !e.complete(in) && c.handle != nil && !planted.Bug("store-late-handle-left-at-close") {
			c.handle.shut()
		}
	}
	if lv.queued = nil; slow {
		lv.queued = e.slow.start(e, run)
		return
	}
	e.spawn(run)
}

// openPatience is how long a probe or an open may hold a slot. A source that takes
// longer prepares, or hangs, and must not hold up the shards behind it.
const openPatience = time.Second

// maxOverdue bounds the probes and opens that go on without a slot. Those beyond it
// keep theirs, so that no number of sources that hang takes more than
// MaxConcurrentOpens + maxOverdue goroutines and descriptors.
const maxOverdue = 1024

// watchOverdue has the machine take back the token of a probe or open that takes
// long, until the job calls stop.
func (e *eventLoop) watchOverdue(lv *live, kind fsm.Job, attempt uint32) (stop func() bool) {
	if kind != fsm.JobProbe && kind != fsm.JobOpen || e.d.cfg.drive != nil {
		return func() bool { return true }
	}
	return e.overdueIn(openPatience, lv, attempt).Stop
}

// watchUnwanted ends a fetch that nobody waits for, until the job calls stop.
func (e *eventLoop) watchUnwanted(lv *live, attempt uint32) (stop func() bool) {
	after := e.d.cfg.AbandonFetchAfter
	if after < 0 || e.d.cfg.drive != nil {
		return func() bool { return true }
	}
	unwanted := false // when last looked at; the loop's
	var timer *time.Timer
	look := func() {
		s := &lv.s
		switch {
		case e.closing || lv.gone || s.Attempt != attempt || s.Job() != fsm.JobFetch || s.FormerJob():
			return
		case s.Acquires() > 0 || len(s.Waiting) > 0 || s.Life == shard.Recovering || s.Life == shard.Initialising && !s.Lazy:
			unwanted = false
		case unwanted && !lv.busy:
			e.d.log.Info("a fetch that nobody waits for ends", "shard", lv.key.String())
			e.cancelRunning(lv)
			e.drain()
			return
		default:
			unwanted = true
		}
		timer.Reset(after)
	}
	var begun sync.Mutex // the timer is set before it can fire
	begun.Lock()
	defer begun.Unlock()
	timer = time.AfterFunc(after, func() {
		begun.Lock()
		defer begun.Unlock()
		e.complete(input{ctl: look})
	})
	return timer.Stop
}

func (e *eventLoop) overdueIn(d time.Duration, lv *live, attempt uint32) *time.Timer {
	return time.AfterFunc(d, func() { e.complete(input{ctl: func() { e.overdue(lv, attempt) }}) })
}

func (e *eventLoop) overdue(lv *live, attempt uint32) {
	switch {
	case e.closing || lv.s.Attempt != attempt || lv.s.Job() == fsm.JobNone:
	case lv.busy:
		lv.deferred = append(lv.deferred, input{ctl: func() { e.overdue(lv, attempt) }})
	case e.overdues >= maxOverdue:
		e.overdueIn(openPatience, lv, attempt)
	default:
		e.in = fsm.Input{Trigger: fsm.Overdue, Attempt: attempt, Time: e.now}
		e.step(lv, nil)
		if !lv.overdue && lv.s.Overdue() {
			lv.overdue = true
			e.overdues++
		}
		e.drain()
	}
}

func doneTrigger(k fsm.Job) fsm.Trigger {
	switch k {
	case fsm.JobProbe:
		return fsm.ProbeDone
	case fsm.JobFetch:
		return fsm.FetchDone
	case fsm.JobIndex:
		return fsm.IndexDone
	case fsm.JobOpen:
		return fsm.OpenDone
	default:
		return fsm.RemoveDone
	}
}

// finishJob takes over what a job brought, before the machine hears of it.
func (e *eventLoop) finishJob(lv *live, in *input) {
	c := in.done
	current := lv.s.Attempt == c.attempt
	if current {
		lv.cancelJob = nil
		if lv.overdue {
			lv.overdue = false
			e.overdues--
		}
	}
	if c.handle != nil {
		if current && lv.s.Life == shard.Available && lv.s.Job() == fsm.JobOpen && lv.handle == nil {
			lv.handle = c.handle
		} else {
			c.handle.shut()
		}
	}
	if c.fault == fsm.FaultShortage {
		e.shed()
	}
	switch in.trig {
	case fsm.FetchDone:
		if c.err == nil && lv.s.Life != shard.None {
			e.copies[lv.key] = lv.s.Gen
			lv.noInitial = true
		}
	case fsm.ProbeDone:
		switch {
		case c.err != nil || lv.s.Life == shard.None:
		case c.present && c.owned:
			e.copies[lv.key] = lv.s.Gen
		case !c.present:
			e.forgetCopy(lv)
		}
	case fsm.RemoveDone:
		if c.err == nil {
			e.forgetCopy(lv)
		}
	}
	if lv.sweep != nil && current {
		e.startSweep(lv)
	}
}

// forgetCopy notes that this life has no local copy; the next one may have.
func (e *eventLoop) forgetCopy(lv *live) {
	if e.copies[lv.key] == lv.s.Gen {
		delete(e.copies, lv.key)
	}
}

// run does the job. A panic is the job's error and nobody else's.
func (j *job) run(ctx context.Context) (c *completion) {
	defer func() {
		if p := recover(); p != nil {
			c = &completion{err: panicked(j.kind.String(), p)}
			j.d.log.Error("job panicked", "job", j.kind.String(), "shard", j.key.String(), "panic", p, "stack", string(debug.Stack()))
		}
	}()
	if j.mnt == nil && j.kind != fsm.JobRemove {
		return &completion{err: j.noMount, fault: fsm.FaultSource}
	}
	switch j.kind {
	case fsm.JobProbe:
		return j.probe(ctx)
	case fsm.JobFetch:
		return j.fetch(ctx)
	case fsm.JobIndex:
		return j.index(ctx)
	case fsm.JobOpen:
		return j.open(ctx)
	default:
		return j.remove()
	}
}

// failed is the end of a job that could not have the source.
func failed(err error) *completion { return &completion{err: err, fault: sourceFault(err)} }

// upgrader makes the keeper of the shard's local copy.
func (j *job) upgrader() (*mount.Upgrader, error) {
	opts := mount.UpgradeOptions{
		FS: j.d.cfg.fs, Dir: j.d.cfg.TransientsDir, Name: mount.CopyName(j.gen, j.key.String()),
		Initial: j.transient, Logger: j.d.log,
		MaxSize: j.d.cfg.MaxCopySize, MinFree: j.d.cfg.MinFreeSpace, MinRate: j.d.cfg.MinFetchRate,
	}
	if j.indexed && j.info.SourceSize > 0 {
		opts.ExpectSize = int64(j.info.SourceSize)
		if j.d.cfg.ShardIndexer == nil { // whose digest covers what it chose to index
			opts.Check = j.checkCopy
		}
	}
	return mount.NewUpgrader(j.mnt, opts)
}

// checkCopy holds a fetched copy to what was indexed, byte for byte as far as the
// index knows: every block to its CID, and all of them together to the digest.
func (j *job) checkCopy(ctx context.Context, r io.ReaderAt, size int64) error {
	opts := j.d.cfg.buildOptions()
	sum, err := carscan.Scan(ctx, r, size, carscan.Options{
		SkipVerify: opts.SkipVerify, MaxSectionBytes: opts.MaxSectionBytes, MaxRecords: opts.MaxRecords,
		MaxHeaderBytes: opts.MaxHeaderBytes, MaxRoots: opts.MaxRoots, SkipUnsupported: opts.SkipUnsupported,
	}, func(*carscan.Record) error { return nil })
	if err != nil {
		return err
	}
	if sum.Digest != j.info.Digest {
		return fmt.Errorf("%w: its content is not what was indexed; recover the shard to index it afresh", mount.ErrSourceChanged)
	}
	return nil
}

// probe looks for a copy that is there, or else asks the source.
func (j *job) probe(ctx context.Context) *completion {
	u, err := j.upgrader()
	if err != nil {
		return failed(err)
	}
	defer u.Close()
	if j.fresh {
		if err := u.Discard(); err != nil {
			return failed(fmt.Errorf("discard the local copy: %w", err))
		}
	} else if u.Present() {
		return &completion{present: true, owned: j.transient == "" || u.TransientPath() != j.transient}
	}
	st, err := abandonable(ctx, j.d, func() (mount.Stat, error) { return j.mnt.Stat(ctx) }, nil)
	switch {
	case err != nil:
		return failed(fmt.Errorf("ask for the source: %w", err))
	case !st.Exists:
		return failed(fmt.Errorf("the source does not exist: %w", fs.ErrNotExist))
	}
	return &completion{ready: st.Ready}
}

// fetch makes the local copy.
func (j *job) fetch(ctx context.Context) *completion {
	u, err := j.upgrader()
	if err != nil {
		return failed(err)
	}
	err = u.Ensure(ctx)
	// Close waits for the end of a fetch that nobody waits for any more; a mount
	// that ignores its context must not hold up the shard meanwhile.
	j.d.jobs.Go(func() { u.Close() })
	if err != nil {
		return failed(err) // which says that it is of a fetch
	}
	return &completion{}
}

// source is the shard's bytes, open.
type source struct {
	mount.Reader
	size int64
	// cancel ends the context that the mount was given, which governs reading too.
	cancel context.CancelFunc
	// d is set if the reader is code of others, which closes beside its caller.
	d *DAGStore
}

func (s *source) Close() error {
	if s.d == nil {
		return s.closeNow()
	}
	s.d.beside(func() { s.closeNow() })
	return nil
}

// closeNow waits for the reader's Close.
func (s *source) closeNow() error {
	defer s.cancel()
	if s.d == nil {
		return s.Reader.Close()
	}
	s.d.closeReader(s.Reader)
	return nil
}

func (d *DAGStore) closeReader(r mount.Reader) {
	if err := d.guarded("close a reader", r.Close); err != nil {
		d.log.Debug("a reader did not close", "err", err)
	}
}

var errNoReader = errors.New("the mount returned neither a reader nor an error")

// fetchDirect opens a source that is read in place.
func (j *job) fetchDirect(ctx context.Context) (mount.Reader, error) {
	return abandonable(ctx, j.d, func() (mount.Reader, error) {
		r, err := j.mnt.Fetch(ctx)
		if err == nil && r == nil {
			err = errNoReader
		}
		return r, err
	}, j.d.closeReader)
}

// reader opens the shard's bytes. They stay good until they are closed, or the
// store is: with them goes the job's context, which the mount was given.
func (j *job) reader(ctx context.Context) (*source, error) {
	var ok bool
	var r mount.Reader
	var err error
	if j.direct {
		r, err = j.fetchDirect(ctx)
	} else {
		r, err = j.copyReader(ctx)
	}
	if err != nil {
		return nil, err
	}
	s := &source{Reader: r, cancel: j.cancel}
	if j.direct && foreign(r) {
		s.d = j.d
	}
	j.cancel = func() {}
	defer closeUnless(&ok, s)
	if s.size, err = sizeOf(r); err != nil {
		return nil, fmt.Errorf("size of the source: %w", err)
	}
	if j.direct {
		s.Reader = filling(r)
	}
	ok = true
	return s, nil
}

// closeUnless closes c unless all went well. Deferred, it does so after a panic too.
func closeUnless(ok *bool, c io.Closer) {
	if !*ok {
		c.Close()
	}
}

var errCopyGone = errors.New("the local copy is gone")

func (j *job) copyReader(ctx context.Context) (mount.Reader, error) {
	u, err := j.upgrader()
	if err != nil {
		return nil, err
	}
	defer u.Close()
	if !u.Present() {
		return nil, errCopyGone
	}
	return u.Fetch(ctx)
}

// sizeOf asks a reader for the length of what it reads.
func sizeOf(r mount.Reader) (int64, error) {
	if r, ok := r.(interface{ Size() int64 }); ok {
		return r.Size(), nil
	}
	size, err := r.Seek(0, io.SeekEnd)
	if err != nil {
		// There are daemons whose readers can seek, but not from the end.
		size, perr := probeSize(r)
		if perr != nil {
			return 0, errors.Join(err, perr)
		}
		return size, nil
	}
	_, err = r.Seek(0, io.SeekStart)
	return size, err
}

// probeSize finds the end by reading single bytes, some 2 log2(size) of them.
//
//	low ≤ size ≤ high
func probeSize(r io.ReaderAt) (int64, error) {
	var b [1]byte
	has := func(off int64) (bool, error) {
		n, err := carscan.FillAt(r, b[:], off)
		if n == 1 || err == io.EOF {
			err = nil
		}
		return n == 1, err
	}
	low, high := int64(0), int64(1)<<61
	for at := int64(0); at < high; {
		ok, err := has(at)
		switch {
		case err != nil:
			return 0, fmt.Errorf("look for the end at offset %d: %w", at, err)
		case !ok:
			high = at
		default:
			low = at + 1
		}
		// First in ever longer strides, then halving.
		at = min(2*low, low+(high-low)/2)
	}
	return low, nil
}

// index makes the shard index durable, or adopts the one that a crash left behind.
func (j *job) index(ctx context.Context) *completion {
	r, err := j.reader(ctx)
	if err != nil {
		return &completion{err: fmt.Errorf("open the source: %w", err), fault: j.dataFault(err)}
	}
	defer r.closeNow()
	defer func() {
		for _, c := range j.held {
			c.Close()
		}
	}()
	info, mhs, err := j.d.indices.build(ctx, j, r.Reader, r.size)
	if err != nil {
		return &completion{err: err, fault: j.indexFault(err)}
	}
	if err := j.d.top.Load().add(ctx, j, info, mhs); err != nil {
		return failed(fmt.Errorf("add to the top-level index: %w", err))
	}
	return &completion{info: info}
}

// open opens the bytes and the index together, and holds them to each other.
func (j *job) open(ctx context.Context) *completion {
	r, err := j.reader(ctx)
	if err != nil {
		return &completion{err: fmt.Errorf("open the source: %w", err), fault: j.dataFault(err)}
	}
	var ok bool
	defer closeUnless(&ok, r)
	f, err := j.d.indices.open(j.key, j.gen)
	if err != nil {
		fault := fsm.FaultPassing
		switch {
		case mount.IsShortage(err):
			fault = fsm.FaultShortage
		case isIndexFault(err) || errors.Is(err, index.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
			fault = fsm.FaultIndex
		}
		return &completion{err: fmt.Errorf("open the index: %w", err), fault: fault}
	}
	defer func() {
		if !ok {
			f.close()
		}
	}()
	changed := f.checkSource(r.Reader, r.size)
	if changed != nil {
		fault := j.dataFault(changed)
		if isIndexFault(changed) {
			fault = fsm.FaultIndex
		}
		changed = changedError(changed)
		if fault != fsm.FaultSource || !f.prove() {
			return &completion{err: changed, fault: fault}
		}
	}
	h := newHandle(j.key, r, f, j.d.mapper(r.Reader))
	h.gen, h.copied, h.changed = j.gen, !j.direct, changed
	ok = true
	return &completion{handle: h, changed: changed}
}

// mapper returns what maps a source, if it may be mapped; else nil. Those are the store's
// own copies, unless the disk is a simulated one, whose reads are operations that are to
// be the same each time, and files of others.
func (d *DAGStore) mapper(r mount.Reader) fsio.Mapper {
	switch r := r.(type) {
	case fsio.Mapper:
		if d.cfg.fs == fsio.OS() {
			return r
		}
	case *os.File:
		if m, ok := fsio.MapperOf(r); ok && !d.cfg.SkipMapSources {
			return m
		}
	}
	return nil
}

// dataFault says what is to blame for a failure to open the shard's bytes. That
// they could not be read is no sign that they are bad.
func (j *job) dataFault(err error) fsm.Fault {
	fault := sourceFault(err)
	switch {
	case j.direct:
		return fault
	case fault == fsm.FaultSource, errors.Is(err, errCopyGone), errors.Is(err, fs.ErrNotExist):
		return fsm.FaultCopy
	}
	return fault
}

// changedError says that a source is not what was indexed, if err is evidence of that.
func changedError(err error) error {
	var mismatch *index.SourceMismatchError
	if errors.As(err, &mismatch) {
		return fmt.Errorf("%w: %w", mount.ErrSourceChanged, err)
	}
	return fmt.Errorf("the source cannot be held to what was indexed: %w", err)
}

func isIndexFault(err error) bool {
	var damaged *index.DamagedError
	return errors.As(err, &damaged)
}

// remove removes the local copy.
func (j *job) remove() *completion {
	d := j.d
	return &completion{err: mount.RemoveCopy(d.cfg.fs, d.cfg.TransientsDir, mount.CopyName(j.gen, j.key.String()))}
}

// startSweep removes what a destroyed shard leaves, and answers the request.
func (e *eventLoop) startSweep(lv *live) {
	order := lv.sweep
	lv.sweep = nil
	j := &job{d: e.d, kind: fsm.JobRemove, key: lv.key, gen: lv.s.Gen, loop: e, lv: lv}
	e.spawn(func() {
		j.sweep()
		e.complete(input{ctl: func() {
			delete(e.sweeping, order.ticket)
			if req := e.parked[order.ticket]; req != nil {
				e.answer(req, &fsm.Reply{Ticket: order.ticket}, lv, order.at)
			}
		}})
	})
}

// sweep removes the top-level entries, the index and the copy of a destroyed shard.
// What fails is swept when the store starts again.
func (j *job) sweep() {
	d := j.d
	if planted.Bug("store-destroy-without-sweep") {
		return
	}
	var errs []error
	errs = append(errs, d.guarded("the top-level index", func() error { return d.top.Load().entries.sweep(d.ctx, j.key, j.gen) }))
	errs = append(errs, d.guarded("the index repository", func() error { return d.indices.drop(j.key, j.gen) }))
	errs = append(errs, mount.RemoveCopy(d.cfg.fs, d.cfg.TransientsDir, mount.CopyName(j.gen, j.key.String())))
	if err := errors.Join(errs...); err != nil {
		d.log.Warn("files of a destroyed shard are left until the next start", "shard", j.key.String(), "err", err)
	}
}

// abandonable runs f and returns its result, or ctx's error as soon as ctx ends. A
// result that comes later goes to late.
func abandonable[T any](ctx context.Context, d *DAGStore, f func() (T, error), late func(T)) (T, error) {
	type result struct {
		v   T
		err error
	}
	ch := make(chan result, 1)
	d.jobs.Go(func() {
		// Told also when f panics, or ends its goroutine.
		res := result{err: errNoReturn}
		defer func() {
			if p := recover(); p != nil {
				res = result{err: panicked("mount", p)}
			}
			ch <- res
		}()
		v, err := f()
		res = result{v, err}
	})
	select {
	case r := <-ch:
		return r.v, r.err
	case <-ctx.Done():
		d.jobs.Go(func() {
			if r := <-ch; r.err == nil && late != nil {
				late(r.v)
			}
		})
		var zero T
		return zero, ctx.Err()
	}
}

var errNoReturn = errors.New("the mount ended the goroutine that called it")
