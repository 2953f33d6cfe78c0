package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
)

// ErrDiscarded is returned to those who were waiting for a fetch when the copy it
// was to make was discarded. Fetching again starts afresh.
var ErrDiscarded = errors.New("the local copy was discarded while it was being fetched")

// errAbandoned ends a fetch that nobody waits for any more.
var errAbandoned = errors.New("nobody waits for this fetch any more")

// Throttler bounds how many fetches run at once; package throttle has some. It is
// the same type as throttle.Throttler.
type Throttler = interface {
	Do(context.Context, func(ctx context.Context) error) error
}

// UpgradeOptions say where an Upgrader keeps its copy and what the copy must be
// like. Dir and Name are required.
type UpgradeOptions struct {
	// FS is where copies are written, the operating system's if nil.
	FS fsio.FS
	// Dir is the directory of the copies. It is made when it is first needed.
	Dir string
	// Name names the copy within Dir, as [CopyName] does. No two Upgraders that are
	// in use may share one.
	Name string
	// Initial is the path of a complete copy that somebody else owns, or empty.
	// While it exists, as a regular file or a symbolic link to one, it is used in
	// place of a copy of our own. It is never changed, renamed or removed.
	Initial string
	// Throttler bounds fetches from sources that are ready; nil does not.
	Throttler Throttler
	// Check judges a new copy before it is kept: an error drops it and fails the
	// fetch. r is good until Check returns.
	Check func(ctx context.Context, r io.ReaderAt, size int64) error
	// ExpectSize is the size that the source must have, if known; else 0. A copy of
	// another size is not used but fetched again, and a source of another size is
	// refused with ErrSourceChanged.
	ExpectSize int64
	// MaxSize bounds the copy; a larger source is refused with ErrTooLarge, before it is
	// fetched if it tells its size. 0 means no bound.
	MaxSize int64
	// MinFree is how many bytes of the file system of Dir a copy leaves free, where that
	// can be asked; a fetch that would take them ends with ErrNoRoom. 0 means 1 GiB, or a
	// hundredth of the file system if that is less; negative no bound.
	MinFree int64
	// MinRate is how many bytes a second a source that is ready must deliver, on average
	// over RateWindow (0 means 1 min), once it has delivered the first; with less the
	// fetch ends with ErrTooSlow. 0 means DefaultMinRate, negative no bound.
	MinRate    int64
	RateWindow time.Duration
	// Logger hears of copies that had to be dropped; nil is silent.
	Logger *slog.Logger
}

// Upgrader makes a complete local copy of a mount that cannot seek or be read at
// offsets, and serves readers from it. A mount that can do both is passed through:
// no copy is made.
//
// All who want the copy while it is missing share one fetch. They join and leave
// it with contexts of their own; the fetch has another, which ends when the last
// of them has left, at Discard, or at Close. A fetch that fails leaves nothing
// behind, neither on disk nor here: the next one starts afresh.
//
//	copy visible ⇒ complete ∧ size as promised ∧ checked ∧ durable
//
// Removing a copy harms no reader: each keeps the descriptor it was opened with.
type Upgrader struct {
	underlying  Mount
	passthrough bool
	opts        UpgradeOptions
	fs          fsio.FS
	log         *slog.Logger
	path        string // of our own complete copy

	fetches atomic.Int64
	wg      sync.WaitGroup

	// disk is held while our own copy is given its name or loses it, and taken
	// before mu.
	disk sync.Mutex

	mu struct {
		sync.Mutex
		flight  *flight // the fetch that newcomers join; nil if there is none
		initial string  // Initial until Discard
		closed  bool
	}
}

// flight is one fetch under way.
type flight struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	waiters int // guarded by Upgrader.mu
	// publishing: the copy is being given its name. Guarded by Upgrader.mu.
	publishing bool
	// gaveUp is closed, with slow set, when the source was found to be too slow: nobody
	// waits until it heeds that.
	gaveUp chan struct{}
	slow   error
	done   chan struct{} // closed when err is set
	err    error
}

var _ Mount = (*Upgrader)(nil)

// NeedsCopy tells whether a mount that describes itself so needs a local copy to
// be served from: whether it lacks seeking or reading at offsets. A remote mount
// that can do both is read in place, as operators of such mounts expect: a second
// copy of a sealed sector would double their disks.
func NeedsCopy(info Info) bool { return !info.AccessSeek || !info.AccessRandom }

// NewUpgrader returns an Upgrader for underlying. It does no I/O.
func NewUpgrader(underlying Mount, opts UpgradeOptions) (*Upgrader, error) {
	if isNil(underlying) {
		return nil, fmt.Errorf("upgrade mount: %w", ErrNoMount)
	}
	info := underlying.Info()
	if !info.AccessSequential {
		return nil, fmt.Errorf("upgrade mount: %T cannot be read sequentially", underlying)
	}
	if !validCopyName(opts.Name) || opts.Dir == "" {
		return nil, fmt.Errorf("upgrade mount: copy %q in directory %q: want a name made by CopyName and a directory", opts.Name, opts.Dir)
	}
	u := &Upgrader{
		underlying:  underlying,
		passthrough: !NeedsCopy(info),
		opts:        opts,
		fs:          opts.FS,
		log:         opts.Logger,
		path:        filepath.Join(opts.Dir, opts.Name+completeSuffix),
	}
	if u.fs == nil {
		u.fs = fsio.OS()
	}
	if u.log == nil {
		u.log = slog.New(slog.DiscardHandler)
	}
	u.mu.initial = opts.Initial
	return u, nil
}

// Upgrade is the predecessor's constructor: copies go to rootdir (the system's
// directory for temporary files if empty) under a name made from key, and initial
// is [UpgradeOptions].Initial.
func Upgrade(underlying Mount, throttler Throttler, rootdir, key string, initial string) (*Upgrader, error) {
	if rootdir == "" {
		rootdir = os.TempDir()
	}
	return NewUpgrader(underlying, UpgradeOptions{
		Dir:       rootdir,
		Name:      CopyName(0, key),
		Initial:   initial,
		Throttler: throttler,
	})
}

// Fetch returns a reader of the local copy, fetching it first if it is missing. ctx
// bounds the wait of this caller only. The reader is the caller's to close; it
// stays good whatever happens to the copy or the Upgrader.
func (u *Upgrader) Fetch(ctx context.Context) (Reader, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if u.passthrough {
		if u.isClosed() {
			return nil, ErrClosed
		}
		return u.underlying.Fetch(ctx)
	}
	return ensured(u, ctx, u.openCopy)
}

// Ensure makes the local copy present, fetching it if it is missing. ctx bounds the
// wait of this caller only.
func (u *Upgrader) Ensure(ctx context.Context) error {
	if u.passthrough {
		return nil
	}
	_, err := ensured(u, ctx, u.findCopy)
	return err
}

// ensured calls get, which reports a missing copy as fs.ErrNotExist, and has the
// copy fetched until get succeeds.
func ensured[T any](u *Upgrader, ctx context.Context, get func() (T, error)) (v T, err error) {
	// Somebody may remove the copy just after it was made; that this happens time
	// and again is not worth waiting for.
	for range 4 {
		if u.isClosed() {
			return v, ErrClosed
		}
		if v, err = get(); !errors.Is(err, fs.ErrNotExist) {
			return v, err
		}
		if err := u.await(ctx); err != nil {
			return v, err
		}
	}
	return v, fmt.Errorf("local copy vanished as often as it was fetched: %w", err)
}

// localCopy is a copy that was found.
type localCopy struct {
	path string
	size int64
	own  bool // not Initial
}

// findCopy returns the copy to read: Initial while it exists, else our own. Its
// error wraps fs.ErrNotExist if there is neither.
func (u *Upgrader) findCopy() (localCopy, error) {
	u.mu.Lock()
	initial := u.mu.initial
	u.mu.Unlock()
	if initial != "" {
		if size, ok := u.usableInitial(initial); ok {
			return localCopy{path: initial, size: size}, nil
		}
	}
	st, err := u.fs.Lstat(u.path)
	switch {
	case err != nil:
		return localCopy{}, err
	case !st.Mode().IsRegular():
		return localCopy{}, fmt.Errorf("local copy %q: %w but %s; remove it", u.path, ErrNotRegular, st.Mode().Type())
	case u.opts.ExpectSize > 0 && st.Size() != u.opts.ExpectSize:
		u.log.Warn("local copy has the wrong size and is fetched again", "path", u.path, "size", st.Size(), "want", u.opts.ExpectSize)
		return localCopy{}, &fs.PathError{Op: "open", Path: u.path, Err: fs.ErrNotExist}
	}
	return localCopy{path: u.path, size: st.Size(), own: true}, nil
}

// usableInitial tells whether the caller's copy is there: a regular file of the
// right size, or a symbolic link to one, which is the caller's to make.
func (u *Upgrader) usableInitial(path string) (size int64, ok bool) {
	st, err := u.fs.Lstat(path)
	if err == nil && st.Mode().Type() == fs.ModeSymlink {
		st, err = fsio.Stat(u.fs, path)
	}
	if err != nil || !st.Mode().IsRegular() {
		return 0, false
	}
	return st.Size(), u.opts.ExpectSize <= 0 || st.Size() == u.opts.ExpectSize
}

// openCopy opens the copy that findCopy finds.
func (u *Upgrader) openCopy() (Reader, error) {
	c, err := u.findCopy()
	if err != nil {
		return nil, err
	}
	f, err := u.fs.OpenFile(c.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("open %q: %w but %s", c.path, ErrNotRegular, st.Mode().Type())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r := &copyReader{f: f, size: st.Size()}
	if m, ok := f.(fsio.Mapper); ok && c.own {
		return &sealedReader{copyReader: r, Mapper: m}, nil
	}
	return r, nil
}

// copyReader reads a copy. It hides the methods of the file that could change it.
type copyReader struct {
	f      fsio.File
	size   int64
	closed atomic.Bool
}

func (r *copyReader) Read(p []byte) (int, error)                   { return r.f.Read(p) }
func (r *copyReader) ReadAt(p []byte, off int64) (int, error)      { return r.f.ReadAt(p, off) }
func (r *copyReader) Seek(offset int64, whence int) (int64, error) { return r.f.Seek(offset, whence) }
func (r *copyReader) Stat() (fs.FileInfo, error)                   { return r.f.Stat() }
func (r *copyReader) Size() int64                                  { return r.size }
func (r *copyReader) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	return r.f.Close()
}

// sealedReader reads a copy that this package sealed, which may also be mapped.
type sealedReader struct {
	*copyReader
	fsio.Mapper
}

// await joins the fetch under way, or starts one, and waits for its end.
func (u *Upgrader) await(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	u.mu.Lock()
	if u.mu.closed {
		u.mu.Unlock()
		return ErrClosed
	}
	f := u.mu.flight
	if f == nil {
		f = u.startLocked()
	}
	f.waiters++
	u.mu.Unlock()

	select {
	case <-f.done:
		return f.err
	case <-f.gaveUp:
		return f.slow
	case <-ctx.Done():
		if u.leave(f) {
			<-f.done // the disk's work, not the mount's
		}
		return ctx.Err()
	}
}

// leave takes one waiter off f; the last one ends it. It reports whether that came
// too late to keep the copy from becoming visible: then it is being given its name,
// and who left waits for that, so that what they do next comes after it.
func (u *Upgrader) leave(f *flight) (late bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f.waiters--; f.waiters > 0 {
		return false
	}
	u.dropLocked(f, errAbandoned)
	return f.publishing
}

// dropLocked ends f early. Newcomers no longer join it, and it can no longer make
// its copy visible.
func (u *Upgrader) dropLocked(f *flight, cause error) {
	if u.mu.flight == f {
		u.mu.flight = nil
		f.cancel(cause)
	}
}

// giveUp ends f because its source is too slow.
func (u *Upgrader) giveUp(f *flight, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.mu.flight == f && f.slow == nil {
		u.dropLocked(f, err)
		f.slow = u.fetchError(err)
		close(f.gaveUp)
	}
}

func (u *Upgrader) fetchError(err error) error {
	return fmt.Errorf("fetch %T to a local copy: %w", u.underlying, err)
}

func (u *Upgrader) startLocked() *flight {
	f := &flight{done: make(chan struct{}), gaveUp: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	u.mu.flight = f
	u.wg.Go(func() { u.fly(f) })
	return f
}

// fly runs one fetch to its end and tells the waiters.
func (u *Upgrader) fly(f *flight) {
	err := u.fetchCopy(f)
	if cause := context.Cause(f.ctx); err != nil && cause != nil {
		err = cause // what it failed of is only how the cancellation showed
	}
	if err != nil {
		err = u.fetchError(err)
	}
	u.mu.Lock()
	if u.mu.flight == f {
		u.mu.flight = nil
	}
	u.mu.Unlock()
	f.cancel(nil)
	f.err = err
	close(f.done)
}

// fetchCopy makes the copy present. A panic of the mount's becomes an error: it
// must not end the process and with it all other shards.
func (u *Upgrader) fetchCopy(f *flight) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	// The copy may have been completed between a waiter's look and its joining.
	if _, err := u.findCopy(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if open := wholeFetcher(u.underlying); open != nil && u.opts.Throttler == nil {
		return u.transfer(f.ctx, f, open, nil)
	}
	st, err := u.underlying.Stat(f.ctx)
	if err != nil {
		return err
	}
	if !st.Exists {
		return ErrNotFound
	}
	run := func(ctx context.Context) error { return u.transfer(ctx, f, u.underlying.Fetch, &st) }
	if st.Ready && u.opts.Throttler != nil {
		return u.opts.Throttler.Do(f.ctx, run)
	}
	// Waiting for a source that is not ready must not keep others from fetching.
	return run(f.ctx)
}

// wholeFetcher returns what opens a mount that tells all of itself when it is opened, so
// that Stat need not be asked first; nil for others. Only for the types of this package:
// a wrapper's Fetch is not to be passed by.
func wholeFetcher(m Mount) func(context.Context) (Reader, error) {
	switch m := m.(type) {
	case *HTTPMount:
		return m.fetchWhole
	case *Counting:
		if open := wholeFetcher(m.Mount); open != nil {
			return func(ctx context.Context) (Reader, error) {
				m.n.Add(1)
				return open(ctx)
			}
		}
	}
	return nil
}

// promised is how long a source said it is.
type promised struct {
	size   int64 // -1 if nobody knows
	stated bool  // by Stat; else it is what was measured before
}

// kept says whether n bytes are what was promised. Filecoin daemons state the padded
// size of a piece, a power of two, and deliver the piece without the two bits that
// padding adds to each 254 (PaddedPieceSize.Unpadded in go-state-types/abi).
func (p promised) kept(n int64) bool {
	padded := p.stated && p.size >= 128 && p.size&(p.size-1) == 0
	return p.size < 0 || n == p.size || padded && n == p.size/128*127
}

// wantSize returns the size that the copy must have.
func (u *Upgrader) wantSize(st Stat) (promised, error) {
	stated := promised{st.Size, true}
	switch want, most := u.opts.ExpectSize, u.opts.MaxSize; {
	case most > 0 && max(want, st.Size) > most:
		return promised{}, fmt.Errorf("%w: it has %d bytes, a local copy may have %d", ErrTooLarge, max(want, st.Size), most)
	case want > 0 && st.Size > 0 && !stated.kept(want):
		return promised{}, fmt.Errorf("%w: it has %d bytes, and had %d when it was indexed", ErrSourceChanged, st.Size, want)
	case want > 0:
		return promised{size: want}, nil
	case st.Size > 0:
		return stated, nil
	}
	return promised{size: -1}, nil
}

// transfer streams the source, which open opens, into a temporary file and makes that the
// copy. st is what the source said of itself; without it, its reader says it.
func (u *Upgrader) transfer(ctx context.Context, f *flight, open func(context.Context) (Reader, error), st *Stat) (err error) {
	var want promised
	if st != nil {
		if want, err = u.wantSize(*st); err != nil {
			return err
		}
	}
	u.fetches.Add(1)
	src, err := open(ctx)
	if err != nil {
		return err
	}
	if src == nil {
		return errNoReader
	}
	closeSrc := sync.OnceValue(func() error { return closeGuarded(src) })
	defer closeSrc()
	if st == nil {
		if want, err = u.wantSize(Stat{Exists: true, Size: sizeOf(src), Ready: true}); err != nil {
			return err
		}
	}
	// A source that does not watch its context is woken by closing it.
	defer context.AfterFunc(ctx, func() { closeSrc() })()

	if err := u.fs.MkdirAll(u.opts.Dir, 0o700); err != nil {
		return err
	}
	if err := u.room(want.size); err != nil {
		return err
	}
	temp := tempName(u.opts.Dir, u.opts.Name)
	file, err := u.fs.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	done := false
	defer func() { // also when the source or the check panics
		if !done {
			file.Close()
			err = errors.Join(err, removeFile(u.fs, temp))
		}
	}()
	// What holds a slot is held to the least rate; who prepares may take its time.
	var data io.Reader = src
	if mt := newMeter(u.opts.MinRate, u.opts.RateWindow); mt != nil && (st == nil || st.Ready) {
		data = &meteredReader{Reader: src, meter: mt, giveUp: func(err error) { u.giveUp(f, err) }}
	}
	if err := u.fill(ctx, file, data, want); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	if err := u.publish(f, temp); err != nil {
		return err
	}
	done = true
	return nil
}

// ErrNoRoom is returned for a fetch that would leave less of the disk free than is to
// stay free. It is a shortage of this machine, see [IsShortage].
var ErrNoRoom = fmt.Errorf("too little of the disk would stay free: %w", syscall.ENOSPC)

// room tells whether there is room for so many bytes more; negative is unknown.
func (u *Upgrader) room(more int64) error {
	keep := u.opts.MinFree
	if keep < 0 {
		return nil
	}
	s, ok := fsio.SpaceOf(u.fs, u.opts.Dir)
	if keep == 0 {
		keep = min(1<<30, s.Total/100)
	}
	if ok && s.Free-max(more, 0) < keep {
		return fmt.Errorf("local copy of %d bytes more: %w: %d are free and %d are to stay so", max(more, 0), ErrNoRoom, s.Free, keep)
	}
	return nil
}

// roomyFile asks once in a while whether there is room to go on.
type roomyFile struct {
	fsio.File
	u       *Upgrader
	written int64
}

// askEach is after how many bytes it is asked again.
const askEach = 64 << 20

func (f *roomyFile) Write(p []byte) (int, error) {
	if f.written += int64(len(p)); f.written >= askEach {
		f.written = 0
		if err := f.u.room(0); err != nil {
			return 0, err
		}
	}
	return f.File.Write(p)
}

// meteredReader holds a source to the least rate, also one whose Read does not return. The
// clock starts with the first byte: before it sources of tape and the like prepare.
type meteredReader struct {
	io.Reader
	meter  *meter
	giveUp func(error)
	begun  bool
}

func (r *meteredReader) Read(p []byte) (int, error) {
	if !r.begun {
		n, err := r.Reader.Read(p)
		if r.begun = n > 0; r.begun {
			r.meter.got = int64(n)
		}
		return n, err
	}
	// A read that takes the rest of the window is judged without it.
	mt := r.meter
	left, got, spent := mt.window-mt.spent, mt.got, mt.spent
	judge := func() {
		if err := mt.judge(got, spent+left); err != nil {
			r.giveUp(err)
		}
	}
	timer := time.AfterFunc(left, judge)
	begun := time.Now()
	n, err := r.Reader.Read(p)
	timer.Stop()
	if slow := mt.delivered(begun, n); slow != nil && err == nil {
		err = slow
	}
	return n, err
}

// sizeOf returns how long a reader says that its source is; 0 if it does not know.
func sizeOf(r Reader) int64 {
	if s, ok := r.(interface{ Size() int64 }); ok {
		return max(s.Size(), 0)
	}
	return 0
}

var errNoReader = errors.New("the mount returned neither a reader nor an error")

// closeGuarded closes a source. It may run in a goroutine of its own, where a panic
// would end the process.
func closeGuarded(src io.Closer) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("close the source: panic: %v", p)
		}
	}()
	return src.Close()
}

// fill copies src to file, judges the result and makes it durable.
func (u *Upgrader) fill(ctx context.Context, file fsio.File, src io.Reader, want promised) error {
	limit := want.size
	if want.size < 0 {
		limit = u.opts.MaxSize
	}
	n, err := copyTo(ctx, &roomyFile{File: file, u: u}, src, limit)
	switch {
	case err != nil:
		return err
	case limit > 0 && n > limit && want.size < 0:
		return fmt.Errorf("%w: %w: it goes on after %d bytes, which are allowed", ErrTooLarge, ErrSizeMismatch, limit)
	case limit > 0 && n > limit:
		return fmt.Errorf("%w: it goes on after %d bytes", ErrSizeMismatch, limit)
	case !want.kept(n) && !planted.Bug("copy-size-not-checked"):
		return fmt.Errorf("%w: it ended after %d of %d bytes", ErrSizeMismatch, n, want.size)
	}
	if u.opts.Check != nil {
		if err := u.opts.Check(ctx, file, n); err != nil {
			return err
		}
	}
	return planted.Unless("copy-visible-before-sync", file.Sync)
}

var copyBuffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// copyTo copies src to dst until its end, an error, or the first byte beyond limit,
// if limit > 0; bytes beyond it are counted but not written.
func copyTo(ctx context.Context, dst io.Writer, src io.Reader, limit int64) (n int64, err error) {
	buf := copyBuffers.Get().(*[256 << 10]byte)
	defer copyBuffers.Put(buf)
	for idle := 0; ; {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		m, rerr := src.Read(buf[:])
		if m < 0 || m > len(buf) {
			return n, fmt.Errorf("source returned an impossible count of %d bytes", m)
		}
		n += int64(m)
		if limit > 0 && n > limit {
			return n, nil
		}
		if w, err := dst.Write(buf[:m]); err != nil {
			return n, err
		} else if w < m {
			return n, io.ErrShortWrite
		}
		switch {
		case rerr == io.EOF:
			return n, nil
		case rerr != nil:
			return n, rerr
		case m > 0:
			idle = 0
		default:
			if idle++; idle == 100 {
				return n, io.ErrNoProgress
			}
		}
	}
}

// publish gives the finished file its name, durably, unless f was dropped.
func (u *Upgrader) publish(f *flight, temp string) error {
	u.disk.Lock()
	defer u.disk.Unlock()
	u.mu.Lock()
	current := u.mu.flight == f
	f.publishing = current
	u.mu.Unlock()
	if !current && !planted.Bug("copy-of-dropped-fetch-shown") {
		return context.Cause(f.ctx)
	}
	if err := u.fs.Rename(temp, u.path); err != nil {
		return err
	}
	if err := planted.Unless("copy-no-dir-sync", func() error { return u.fs.SyncDir(u.opts.Dir) }); err != nil {
		return errors.Join(err, removeFile(u.fs, u.path))
	}
	return nil
}

// Info says local, with every kind of access.
func (u *Upgrader) Info() Info {
	return Info{Kind: KindLocal, AccessSequential: true, AccessSeek: true, AccessRandom: true}
}

// Stat describes the local copy if there is one, else the underlying mount.
func (u *Upgrader) Stat(ctx context.Context) (Stat, error) {
	if !u.passthrough {
		if c, err := u.findCopy(); err == nil {
			return Stat{Exists: true, Size: c.size, Ready: true}, nil
		}
	}
	return u.underlying.Stat(ctx)
}

// Present tells whether a Fetch would be served without fetching from the source.
func (u *Upgrader) Present() bool {
	return u.passthrough || u.TransientPath() != ""
}

// TransientPath returns the path of the local copy in use, or "" if there is none.
func (u *Upgrader) TransientPath() string {
	if u.passthrough {
		return ""
	}
	c, err := u.findCopy()
	if err != nil {
		return ""
	}
	return c.path
}

// TimesFetched returns how often a fetch from the underlying mount was begun.
func (u *Upgrader) TimesFetched() int { return int(u.fetches.Load()) }

// Underlying returns the mount that is upgraded.
func (u *Upgrader) Underlying() Mount { return u.underlying }

// DeleteTransient gives back the space of our own copy, if there is one. Initial is
// neither removed nor forgotten. The next Fetch that finds no copy makes one.
func (u *Upgrader) DeleteTransient() error {
	if u.passthrough {
		return nil
	}
	u.disk.Lock()
	defer u.disk.Unlock()
	if planted.Bug("copy-users-file-removed") && u.opts.Initial != "" {
		_ = removeFile(u.fs, u.opts.Initial)
	}
	if err := RemoveCopy(u.fs, u.opts.Dir, u.opts.Name); err != nil {
		return fmt.Errorf("delete local copy: %w", err)
	}
	return nil
}

// Discard is for a copy that is no longer believed: it removes our own, stops using
// Initial for good (without touching the file), and ends a fetch under way with
// [ErrDiscarded]. The next Fetch fetches afresh.
func (u *Upgrader) Discard() error {
	u.mu.Lock()
	u.mu.initial = ""
	if f := u.mu.flight; f != nil {
		u.dropLocked(f, ErrDiscarded)
	}
	u.mu.Unlock()
	return u.DeleteTransient()
}

// Serialize returns the underlying mount's URL.
func (u *Upgrader) Serialize() *url.URL { return u.underlying.Serialize() }

// Deserialize configures the underlying mount.
func (u *Upgrader) Deserialize(url *url.URL) error { return u.underlying.Deserialize(url) }

// Close ends a fetch under way with [ErrClosed] and waits until it has cleaned up.
// It waits as long as a source does that heeds neither its context nor the Close of
// its reader. The copy stays, readers stay good, and the underlying mount stays
// open: whoever made it closes it.
func (u *Upgrader) Close() error {
	u.mu.Lock()
	u.mu.closed = true
	if f := u.mu.flight; f != nil {
		u.dropLocked(f, ErrClosed)
	}
	u.mu.Unlock()
	u.wg.Wait()
	return nil
}

func (u *Upgrader) isClosed() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.mu.closed
}
