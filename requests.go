package dagstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// ShardResult is the answer to one request.
type ShardResult struct {
	Key   shard.Key
	Error error
	// Accessor is set by a successful acquire only. The receiver must close it.
	Accessor *ShardAccessor
	// Seq is the sequence number of the event that made a mutation durable; 0 otherwise.
	Seq uint64
	// Position is the journal position that holds Seq, and with it all that became
	// durable in one step; zero otherwise. Its Token lets another process, or a later
	// one, read this write: see AtLeast.
	Position Position
}

// RegisterOpts are the options of a registration.
type RegisterOpts struct {
	// ExistingTransient is the path of a complete local copy of the shard, owned by
	// the caller. The store reads it in place of fetching, while it exists and
	// matches, and never changes or removes it. A relative path is taken from the working
	// directory at the time of registration.
	ExistingTransient string
	// LazyInitialization puts off fetching and indexing to the first acquire. The
	// registration is answered as soon as it is durable.
	LazyInitialization bool
}

// AcquireOpts are the options of an acquire.
type AcquireOpts struct {
	// NoDownload refuses with mount.ErrTransientNotFound rather than to fetch a
	// local copy.
	NoDownload bool
	// Holder, if it is not nil, is who keeps the accessor open between uses and lets go
	// of it when asked, so that a shard under traffic can be destroyed. Without one the
	// accessor is a caller's, whom nobody asks.
	Holder Holder
}

// RecoverOpts are the options of a recovery.
type RecoverOpts struct{}

// DestroyOpts are the options of a destruction. They say what becomes of accessors that
// are open. While a destruction waits nobody gets another one: who asks gets an
// *[UnavailableError].
//
// The zero value asks those who let go when asked (see [Holder]), which the blockstore
// of package indexbs does, and waits for the reads that they have in progress, up to
// five seconds. If an accessor is a caller's, it is refused with [ErrShardInUse] at once.
type DestroyOpts struct {
	// Wait waits until all accessors are closed, or the request's context ends.
	Wait bool
	// CutReaders waits for nobody: reads of accessors that are open end with ErrClosed
	// from now on, those in progress with their bytes. The accessors must be closed as
	// ever.
	CutReaders bool
}

// maxRegistered is how many bytes the URL of a mount and the path of an existing copy may
// have together: a batch of the journal holds 64 MiB, and one that is not full takes in
// another event.
const maxRegistered = 48 << 20

// ErrMountTooLarge is returned by RegisterShard for a mount whose URL is longer than the
// journal records: that of a BytesMount holds the bytes, in base64.
var ErrMountTooLarge = errors.New("mount too large")

// request is one call that waits for an answer.
type request struct {
	ctx    context.Context
	out    chan ShardResult
	key    shard.Key
	ticket fsm.Ticket // given when it is queued
	since  int64      // when the loop took it
	// state goes from pending to answered or abandoned, once.
	state atomic.Int32
	kind  fsm.Trigger
	// sync: the caller takes part in the state and wants no watch over its channel.
	sync bool

	noDownload bool
	initialise bool // a Recover that only wants the shard initialised
	again      bool // a Recover that is made once more, of a shard found changed
	indexed    bool // its shard was available when it began to wait
	destroy    DestroyOpts
	stop       func() bool // of the watch over ctx while parked
	reg        *registration
	more       *extras // what few requests have; nil: none
}

// extras are what few requests have, so that the others are small.
type extras struct {
	holder    Holder
	patience  *time.Timer // ends the waiting of a destruction that was not told to
	reclaimed func(key shard.Key, code fsm.Code, cause error)
}

func extrasOf(h Holder) *extras {
	if h == nil {
		return nil
	}
	return &extras{holder: h}
}

func (r *request) extras() *extras {
	if r.more == nil {
		r.more = new(extras)
	}
	return r.more
}

// holder is who asks for an accessor, if that is somebody who lets go when asked.
func (r *request) holder() Holder {
	if r.more == nil {
		return nil
	}
	return r.more.holder
}

const (
	reqPending int32 = iota
	reqAnswered
	reqAbandoned
)

// registration is what only a Register request carries.
type registration struct {
	mnt       mount.Mount
	url       string
	transient string
	lazy      bool
	direct    bool
	durable   chan struct{} // made by who waits; closed when the registration is durable or refused; guarded by DAGStore.mu
	begun     bool          // the shard's record is on its way; the loop's
}

// RegisterShard registers a shard and, unless it is lazy, fetches and indexes it.
// An invalid key, a key that is taken (ErrShardExists), a mount that the registry does
// not know (mount.ErrUnrecognizedType) and one whose URL is longer than 48 MiB
// (ErrMountTooLarge) are refused at once; then the channel hears nothing. Otherwise the result is sent to out: when the registration
// is durable if lazy, else when the shard is available or errored. out may be nil.
//
// An acquire may be queued as soon as RegisterShard has returned.
func (d *DAGStore) RegisterShard(ctx context.Context, key shard.Key, mnt mount.Mount, out chan ShardResult, opts RegisterOpts) error {
	return d.register(&request{ctx: ctx, out: out, key: key, kind: fsm.Register}, mnt, opts)
}

func (d *DAGStore) register(req *request, mnt mount.Mount, opts RegisterOpts) error {
	if err := d.checkWriter(); err != nil {
		return err
	}
	key := req.key
	if err := key.Validate(); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	url, info, err := d.describe(mnt)
	switch {
	case errors.Is(err, mount.ErrNoMount):
		return fmt.Errorf("register shard %q: %w", key, mount.ErrNoMount)
	case err != nil:
		return fmt.Errorf("register shard %q: %w", key, err)
	}
	if opts.ExistingTransient, err = d.absolute(opts.ExistingTransient); err != nil {
		return fmt.Errorf("register shard %q: the path of its copy: %w", key, err)
	}
	if n := len(url) + len(opts.ExistingTransient); n > maxRegistered {
		return fmt.Errorf("register shard %q: %w: its mount's URL and the path of its copy take %d bytes, at most %d are recorded; keep the data in a file, and register where that is", key, ErrMountTooLarge, n, maxRegistered)
	}
	if !info.AccessSequential {
		return fmt.Errorf("register shard %q: mount %T must support sequential access", key, mnt)
	}
	reg := &registration{
		mnt: mnt, url: url, transient: opts.ExistingTransient, lazy: opts.LazyInitialization,
		direct: !mount.NeedsCopy(info),
	}
	req.reg = reg

	d.mu.Lock()
	_, registering := d.mu.registering[key]
	if registering || d.existsLocked(key) {
		d.mu.Unlock()
		return d.decided(key, ErrShardExists)
	}
	d.mu.registering[key] = reg
	d.mu.Unlock()

	if err := d.loop.submit(req); err != nil {
		d.registered(key, reg)
		return err
	}
	return nil
}

// describe returns the URL of a mount and what it can do. The paths of its files are made
// absolute first: what is written down is read by a process that runs elsewhere. A mount
// of others may panic; a wrapper around nothing does.
func (d *DAGStore) describe(mnt mount.Mount) (url string, info mount.Info, err error) {
	err = d.guarded(fmt.Sprintf("mount of type %T", mnt), func() error {
		if err := mount.Anchor(mnt); err != nil {
			return err
		}
		u, err := d.mounts.Represent(mnt)
		if err != nil {
			return err
		}
		url, info = u.String(), mnt.Info()
		return nil
	})
	return url, info, err
}

// absolute makes a path of the operating system absolute, unless it is empty. Those of a
// simulated disk stay as they are.
func (cfg *Config) absolute(path string) (string, error) {
	if path == "" || cfg.fs != fsio.OS() {
		return path, nil
	}
	return filepath.Abs(path)
}

func (d *DAGStore) absolute(path string) (string, error) { return d.cfg.absolute(path) }

// registered ends a registration's being in flight: the catalogue tells from now on.
func (d *DAGStore) registered(key shard.Key, reg *registration) {
	d.mu.Lock()
	if d.mu.registering[key] == reg {
		delete(d.mu.registering, key)
	}
	if reg.durable != nil {
		close(reg.durable)
	}
	d.mu.Unlock()
}

// awaitRegistration waits until key is not being registered.
func (d *DAGStore) awaitRegistration(key shard.Key) {
	for {
		d.mu.Lock()
		reg := d.mu.registering[key]
		if reg == nil {
			d.mu.Unlock()
			return
		}
		if reg.durable == nil {
			reg.durable = make(chan struct{})
		}
		durable := reg.durable
		d.mu.Unlock()
		<-durable
	}
}

// existsLocked says whether key has a durable life. Needs mu.
func (d *DAGStore) existsLocked(key shard.Key) bool {
	if lv := d.hotLocked(key); lv != nil && shard.Life(lv.pub.life.Load()) != shard.None {
		return true
	}
	return d.cat.Get(key) != nil
}

// known returns nil if key names a shard or one that is being registered.
func (d *DAGStore) known(key shard.Key) error {
	if err := d.check(); err != nil {
		return err
	}
	d.mu.RLock()
	_, ok := d.mu.registering[key]
	ok = ok || d.existsLocked(key)
	d.mu.RUnlock()
	if !ok {
		return unknownShard(key)
	}
	return nil
}

// decided is the refusal of a change because a key is taken or names no shard, if that
// is known for good: see eventLoop.undecided.
func (d *DAGStore) decided(key shard.Key, err error) error {
	if cause := d.health.whyReadOnly(); cause != nil {
		return errorFor(&request{key: key}, fsm.ErrReadOnly, cause)
	}
	if err == ErrShardUnknown {
		return unknownShard(key)
	}
	return fmt.Errorf("%s: %w", key, err)
}

func (d *DAGStore) request(req *request) error {
	if d.tail != nil {
		if req.kind != fsm.Acquire {
			return d.checkWriter()
		}
		req.noDownload = true
	}
	if err := d.known(req.key); err != nil {
		if req.kind != fsm.Acquire && errors.Is(err, ErrShardUnknown) {
			return d.decided(req.key, ErrShardUnknown)
		}
		return err
	}
	return d.loop.submit(req)
}

// DestroyShard ends a shard: its record, index, local copy and top-level entries
// go, and the key may be used again. While callers have accessors open it is refused
// with ErrShardInUse and nothing changes, unless opts say otherwise. Those who wait for
// the shard get ErrShardUnknown.
func (d *DAGStore) DestroyShard(ctx context.Context, key shard.Key, out chan ShardResult, opts DestroyOpts) error {
	return d.request(&request{ctx: ctx, out: out, key: key, kind: fsm.Destroy, destroy: opts})
}

// AcquireShard asks for an accessor to a shard's blocks, which is sent to out and
// must be closed by the receiver. A shard that was registered lazily is initialised
// first; a shard that is being initialised or recovered is waited for. If ctx ends
// before the accessor is received, the accessor is closed. The work that others may
// share does not end with ctx.
func (d *DAGStore) AcquireShard(ctx context.Context, key shard.Key, out chan ShardResult, opts AcquireOpts) error {
	if err := checkHolder(opts.Holder); err != nil {
		return err
	}
	return d.request(&request{ctx: ctx, out: out, key: key, kind: fsm.Acquire, noDownload: opts.NoDownload, more: extrasOf(opts.Holder)})
}

// RecoverShard fetches and indexes an errored shard afresh and sends the outcome to
// out. A shard that is being recovered is waited for; one with nothing to recover
// is answered with ErrNotErrored.
func (d *DAGStore) RecoverShard(ctx context.Context, key shard.Key, out chan ShardResult, _ RecoverOpts) error {
	return d.request(&request{ctx: ctx, out: out, key: key, kind: fsm.Recover})
}

// RegisterShardSync is RegisterShard that waits for the result. If ctx ends first,
// the registration goes on and ctx's error is returned.
func (d *DAGStore) RegisterShardSync(ctx context.Context, key shard.Key, mnt mount.Mount, opts RegisterOpts) (ShardResult, error) {
	return d.wait(&request{ctx: ctx, key: key, kind: fsm.Register}, func(r *request) error { return d.register(r, mnt, opts) })
}

// AcquireShardSync is AcquireShard that waits for the accessor.
func (d *DAGStore) AcquireShardSync(ctx context.Context, key shard.Key, opts AcquireOpts) (*ShardAccessor, error) {
	if err := checkHolder(opts.Holder); err != nil {
		return nil, err
	}
	res, err := d.wait(&request{ctx: ctx, key: key, kind: fsm.Acquire, noDownload: opts.NoDownload, more: extrasOf(opts.Holder)}, d.request)
	return res.Accessor, err
}

// RecoverShardSync is RecoverShard that waits for the outcome.
func (d *DAGStore) RecoverShardSync(ctx context.Context, key shard.Key, _ RecoverOpts) (ShardResult, error) {
	return d.wait(&request{ctx: ctx, key: key, kind: fsm.Recover}, d.request)
}

// DestroyShardSync is DestroyShard that waits until the shard and its files are gone.
func (d *DAGStore) DestroyShardSync(ctx context.Context, key shard.Key, opts DestroyOpts) (ShardResult, error) {
	return d.wait(&request{ctx: ctx, key: key, kind: fsm.Destroy, destroy: opts}, d.request)
}

// wait submits a request and waits for its answer or the end of its context.
func (d *DAGStore) wait(req *request, submit func(*request) error) (ShardResult, error) {
	if req.ctx == nil {
		req.ctx = context.Background()
	}
	if err := req.ctx.Err(); err != nil {
		return ShardResult{Key: req.key}, err
	}
	req.out, req.sync = make(chan ShardResult, 1), true
	if err := submit(req); err != nil {
		return ShardResult{Key: req.key, Error: err}, err
	}
	if done := req.ctx.Done(); done != nil {
		select {
		case res := <-req.out:
			return res, res.Error
		case <-done:
		}
		if req.state.CompareAndSwap(reqPending, reqAbandoned) {
			d.loop.abandon(req)
			return ShardResult{Key: req.key, Error: req.ctx.Err()}, req.ctx.Err()
		}
	}
	res := <-req.out
	return res, res.Error
}

// errorFor turns the machine's verdict into what the caller gets.
func errorFor(req *request, code fsm.Code, cause error) error {
	key := req.key
	switch code {
	case fsm.OK:
		return nil
	case fsm.ErrExists:
		return fmt.Errorf("%s: %w", key, ErrShardExists)
	case fsm.ErrUnknown:
		return unknownShard(key)
	case fsm.ErrInUse:
		if cause != nil {
			return fmt.Errorf("%s: %w: %w", key, ErrShardInUse, cause)
		}
		return fmt.Errorf("%s: %w: accessors are open", key, ErrShardInUse)
	case fsm.ErrNotErrored:
		return fmt.Errorf("%s: %w", key, ErrNotErrored)
	case fsm.ErrNoCopy:
		return fmt.Errorf("%s: %w", key, mount.ErrTransientNotFound)
	case fsm.ErrReadOnly:
		return fmt.Errorf("%s: %w", key, asReadOnly(cause))
	case fsm.ErrSuperseded:
		return fmt.Errorf("%s: %w", key, ErrShardChanged)
	case fsm.ErrBusy:
		return fmt.Errorf("%s: %w", key, ErrShardInUse)
	case fsm.ErrAway:
		return cause
	}
	if cause == nil {
		cause = errors.New("cause unknown")
	}
	if told, ok := cause.(*failedError); ok {
		cause = told.cause
	}
	what := "shard initialization failed"
	switch {
	case code == fsm.ErrErrored:
		what = "shard is in errored state"
	case req.kind == fsm.Recover && !req.initialise:
		what = "shard could not be recovered"
	case req.kind == fsm.Acquire && req.indexed:
		what = "shard could not be opened"
	}
	return &failedError{key: key, what: what, cause: cause}
}

// failedError says that a shard is errored, or what was asked of it failed. It is an
// [ErrShardInitializationFailed] in each case, and says so only where that is what failed.
type failedError struct {
	key   shard.Key
	what  string
	cause error
}

func (e *failedError) Error() string { return fmt.Sprintf("%s: %s: %v", e.key, e.what, e.cause) }

func (e *failedError) Unwrap() []error { return []error{ErrShardInitializationFailed, e.cause} }

// asReadOnly is an ErrReadOnly that says why, if there is a reason, and says it once.
func asReadOnly(cause error) error {
	switch {
	case cause == nil:
		return ErrReadOnly
	case errors.Is(cause, ErrReadOnly):
		return cause
	}
	return fmt.Errorf("%w: %w", ErrReadOnly, cause)
}

// unknownShard is the error for a key that names no shard. One that is no key may be of
// any length.
func unknownShard(key shard.Key) error {
	if name := key.String(); len(name) > shard.MaxKeyLen {
		return fmt.Errorf("%.64q… (%d bytes): %w", name, len(name), ErrShardUnknown)
	}
	return fmt.Errorf("%s: %w", key, ErrShardUnknown)
}
