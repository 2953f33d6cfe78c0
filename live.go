package dagstore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// live is a shard that something volatile is known of: it is being worked on, waited
// for or used, or was a moment ago. All others are records of the catalogue only.
// Everything but pub and the identity belongs to the event loop.
type live struct {
	key       shard.Key
	url       string
	transient string
	s         fsm.Shard
	before    *fsm.Shard // s before the event that is on its way; nil: no life
	seq       uint64     // of the newest durable event
	mnt       mount.Mount
	noMount   error         // why mnt is nil
	ownMount  bool          // mnt was made by the store, which closes it; others are their makers'
	reg       *registration // until the registration is durable or refused

	busy     bool    // inputs are put off
	deferred []input // ... here
	gone     bool    // no longer in hot
	// cancelled are the acquires that wait without a caller.
	cancelled []fsm.Ticket

	handle    *handle
	holders   []holding // of its accessors
	cancelJob context.CancelFunc
	overdue   bool        // the running job is among eventLoop.overdues
	queued    *pooled     // the running job, if it takes no slot
	sweep     *sweepOrder // waits for the running job to end
	// noInitial: the caller's own copy was found wanting.
	noInitial bool
	ail       ailment
	// was is what this life's index held when it was last recorded.
	was shard.IndexInfo

	idleNext, idlePrev *live
	idleSince          int64
	inIdle             bool

	// pub is what readers outside the loop see.
	pub struct {
		life  atomic.Uint32
		refs  atomic.Int32 // open accessors and deliveries in flight; waiting acquires of an available shard count as one
		cause atomic.Pointer[error]
		// since is when the shard began to ail, retryAt when the next try is due; 0: not.
		since, retryAt atomic.Int64
		ail            atomic.Uint32
	}
}

type sweepOrder struct {
	ticket fsm.Ticket
	at     durable
}

// retained is a mount that was given as an object in this process.
type retained struct {
	mnt    mount.Mount
	direct bool
}

func newLive(key shard.Key, reg *registration) *live {
	return &live{key: key, url: reg.url, transient: reg.transient, mnt: reg.mnt, reg: reg}
}

// addLive makes a shard live.
func (e *eventLoop) addLive(lv *live) *live {
	lv.s.Owner = lv
	e.d.mu.Lock()
	e.d.mu.hot[lv.key] = lv
	e.d.mu.Unlock()
	return lv
}

// reviveLive makes a recorded shard live. Its mount is made from its URL beside
// the loop, for that runs code of the mount's.
func (e *eventLoop) reviveLive(rec *projection.Record) *live {
	st := rec.State()
	lv := &live{key: rec.Key(), url: st.URL, transient: st.Transient, seq: rec.Seq(), was: st.Index}
	s := &lv.s
	restingShard(rec, s)
	s.Healing = st.Life == shard.Errored && e.d.cfg.RecoverOnStart == RecoverOnAcquire && rec.Seq() <= e.startSeq
	e.addLive(lv)
	if st.Life == shard.Recovering {
		// Nothing goes on: a start found it so, or its end could not be recorded.
		e.internal = append(e.internal, input{lv: lv, trig: fsm.Resume})
	}
	if r, ok := e.mounts[s.Gen]; ok {
		e.revived(lv, r.mnt, r.direct, nil)
		return lv
	}
	lv.busy = true
	e.publish(lv)
	e.revive.start(e, func() {
		mnt, direct, err := e.d.instantiate(lv.url)
		if !e.complete(input{ctl: func() {
			e.revive.ended(e)
			lv.busy = false
			lv.ownMount = true
			e.revived(lv, mnt, direct, err)
			e.resumeDeferred(lv)
			e.drain()
			e.rest(lv) // those that it was made for may be gone
		}}) {
			e.d.closeMount(mnt)
		}
	})
	return lv
}

// revived ends the making of a live shard.
func (e *eventLoop) revived(lv *live, mnt mount.Mount, direct bool, err error) {
	s := &lv.s
	err = bounded(err)
	lv.mnt, lv.noMount = mnt, err
	gen, copied := e.copies[lv.key]
	switch {
	case err != nil:
		// Volatile: with a registry that knows the scheme the shard is as it was.
		s.Life, s.Cause, s.Index, s.Healing = shard.Errored, err, fsm.NoIndex, false
	case direct:
		s.Data = fsm.Direct
	case copied && gen == s.Gen:
		s.Data, s.Owned = fsm.Present, true
		lv.noInitial = true
	}
	e.publish(lv)
}

// instantiate makes a mount from its URL. A panic of the mount's is an error.
func (d *DAGStore) instantiate(text string) (mnt mount.Mount, direct bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked("mount", p)
		}
	}()
	u, err := mount.ParseURL(text)
	if err != nil {
		return nil, false, fmt.Errorf("mount: %w", err)
	}
	mnt, err = d.mounts.Instantiate(u)
	if err != nil {
		return nil, false, fmt.Errorf("mount: %w", err)
	}
	return mnt, !mount.NeedsCopy(mnt.Info()), nil
}

// recordedError is the text of an error of an earlier process.
func recordedError(text string) error { return errors.New(text) }

// event makes the record of what the machine decided.
func (lv *live) event(ev fsm.Event, now int64) shard.Event {
	s := &lv.s
	st := shard.State{Life: ev.Life, Lazy: s.Lazy, URL: lv.url, Transient: lv.transient}
	switch ev.Life {
	case shard.Errored, shard.Recovering:
		if s.Cause != nil {
			st.Reason = shard.CutText(s.Cause.Error())
		} else {
			st.Reason = "unknown"
		}
		st.Index = lv.was // whose blocks are away, and not absent
	case shard.Available:
		st.Index = s.Info
	}
	return shard.Event{Gen: s.Gen, Time: now, Kind: ev.Kind, Key: lv.key, State: st}
}

// nowDurable ends a registration's being in flight, for better or worse.
func (e *eventLoop) nowDurable(lv *live) {
	reg := lv.reg
	if reg == nil {
		return
	}
	if lv.s.Gen != 0 && !rebuiltFromURL(reg.mnt) {
		e.mounts[lv.s.Gen] = retained{reg.mnt, reg.direct}
	}
	e.publish(lv)
	e.endRegistration(lv)
}

func (e *eventLoop) endRegistration(lv *live) {
	if reg := lv.reg; reg != nil {
		lv.reg = nil
		e.d.registered(lv.key, reg)
	}
}

// rebuiltFromURL says that a mount object is no more than its URL, so that keeping
// it would only cost memory.
func rebuiltFromURL(m mount.Mount) bool {
	_, ok := m.(*mount.FileMount)
	return ok
}

// publish shows the volatile state to readers outside the loop.
func (e *eventLoop) publish(lv *live) {
	e.publishRefs(lv)
	e.noteAilment(lv)
	s := &lv.s
	lv.pub.ail.Store(uint32(s.Ail))
	if s.Cause != nil {
		cause := s.Cause
		lv.pub.cause.Store(&cause)
	} else if lv.pub.cause.Load() != nil {
		lv.pub.cause.Store(nil)
	}
}

// publishRefs is publish for a step that cannot have changed the cause.
func (e *eventLoop) publishRefs(lv *live) {
	s := &lv.s
	refs := s.Refs
	if refs == 0 && s.Life == shard.Available && s.Acquires() > 0 {
		refs = 1
	}
	if lv.pub.refs.Load() != refs {
		lv.pub.refs.Store(refs)
	}
	if lv.pub.life.Load() != uint32(s.Life) {
		lv.pub.life.Store(uint32(s.Life))
	}
}

// rest lets go of a shard that nothing volatile is known of any more, and notes one
// that is open without being used.
func (e *eventLoop) rest(lv *live) {
	if lv.gone || lv.busy {
		return
	}
	s := &lv.s
	if s.Life == shard.None || s.Idle() || s.OnlyAils() && e.d.ailing.Load() > maxAiling {
		e.forget(lv)
		return
	}
	if s.Refs == 0 && s.Handle == fsm.Open {
		lv.idleSince = e.now
		if !lv.inIdle {
			e.idle.add(e, lv)
		}
	}
}

func (e *eventLoop) forget(lv *live) {
	lv.gone = true
	e.idle.remove(lv)
	e.d.mu.Lock()
	if e.d.mu.hot[lv.key] == lv {
		delete(e.d.mu.hot, lv.key)
	}
	e.d.mu.Unlock()
	if lv.ownMount {
		e.d.closeMount(lv.mnt)
		lv.ownMount = false
	}
	if lv.ail.since != 0 {
		lv.ail = ailment{}
		e.d.ailing.Add(-1)
	}
	if lv.s.Life == shard.None {
		delete(e.mounts, lv.s.Gen)
		e.forgetCopy(lv)
	}
}
