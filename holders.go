package dagstore

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/shard"
)

// Holder is somebody who keeps accessors open that are not in use, so that the next
// use finds them open, and who lets go when asked: see [AcquireOpts.Holder]. Its type must
// be comparable, and its methods are called concurrently. They must not wait.
type Holder interface {
	// HolderName says who it is to people: in errors, explanations and results.
	HolderName() string
	// LetGo asks it to close its accessors of a shard: those that are not in use now,
	// the others after their last use, and one that it is about to receive too. The
	// store asks when a destruction waits for them, and when a GC wants the copy.
	LetGo(key shard.Key)
	// LetGoIdle asks it to close all accessors that are not in use. The store asks when
	// the process has no more descriptors.
	LetGoIdle()
}

// destroyPatience is how long a destruction that was not told to wait does so for those
// who let go when asked: a read that takes longer is like one of anybody.
const destroyPatience = 5 * time.Second

// endingRetry is when to ask again for a shard whose destruction waits.
const endingRetry = time.Second

// errEnding is why a shard that waits to be destroyed gives out no accessors.
var errEnding = errors.New("it is being destroyed, and readers are waited for")

// holding is how many accessors of a shard somebody has who lets go when asked.
type holding struct {
	h Holder
	n int32
}

func checkHolder(h Holder) error {
	if h != nil && !reflect.TypeOf(h).Comparable() {
		return fmt.Errorf("acquire: a holder of type %T cannot be told from another: use a pointer", h)
	}
	return nil
}

// hold notes that an accessor goes to a holder.
func (e *eventLoop) hold(lv *live, h Holder) {
	e.held[h]++
	for i := range lv.holders {
		if lv.holders[i].h == h {
			lv.holders[i].n++
			return
		}
	}
	lv.holders = append(lv.holders, holding{h, 1})
}

// returned notes that an accessor was closed. It reports whether the shard's life is
// that of the accessor: readers that were cut off outlive theirs.
func (e *eventLoop) returned(lv *live, sa *ShardAccessor) bool {
	if h := e.holderOf[sa]; h != nil {
		delete(e.holderOf, sa)
		if e.held[h]--; e.held[h] <= 0 {
			delete(e.held, h)
		}
		for i := range lv.holders {
			if x := &lv.holders[i]; x.h == h && sa.h.gen == lv.s.Gen {
				if x.n--; x.n == 0 {
					lv.holders = append(lv.holders[:i], lv.holders[i+1:]...)
				}
				break
			}
		}
	}
	return sa.h.gen == lv.s.Gen
}

// heldByHolders is how many of the open accessors are let go of when somebody asks.
func (lv *live) heldByHolders() (n int32) {
	for _, x := range lv.holders {
		n += x.n
	}
	return n
}

// patience says what a destruction does about the accessors that are open now.
func (lv *live) patience(o DestroyOpts) fsm.Patience {
	switch refs := lv.s.Refs; {
	case o.CutReaders:
		return fsm.CutReaders
	case o.Wait, refs > 0 && lv.heldByHolders() == refs:
		return fsm.AwaitReaders
	}
	return fsm.Refuse
}

// awaitEnd asks the holders of a shard to let go of it, for a destruction that now
// waits. One that was not told to wait does so for a while.
func (e *eventLoop) awaitEnd(lv *live, req *request) {
	if e.parked[req.ticket] != req || len(lv.s.Ending) == 0 {
		return
	}
	if !req.destroy.Wait && e.d.cfg.drive == nil {
		req.extras().patience = time.AfterFunc(destroyPatience, func() { e.complete(input{ctl: func() { e.giveUpDestroy(lv, req) }}) })
	}
	for _, x := range lv.holders {
		e.ask(x.h, lv.key)
	}
}

func (e *eventLoop) ask(h Holder, key shard.Key) {
	e.d.beside(func() {
		_ = e.d.guarded("a holder of accessors", func() error { h.LetGo(key); return nil })
	})
}

// giveUpDestroy refuses a destruction that has waited for long enough.
func (e *eventLoop) giveUpDestroy(lv *live, req *request) {
	switch {
	case e.closing || lv.gone || e.parked[req.ticket] != req:
	case lv.busy:
		lv.deferred = append(lv.deferred, input{ctl: func() { e.giveUpDestroy(lv, req) }})
	default:
		e.answer(req, &fsm.Reply{Ticket: req.ticket, Code: fsm.ErrInUse}, lv, durable{})
		e.cancelTicket(lv, req.ticket)
		e.drain()
	}
}

// cutOff ends all reads of a shard, those through older handles too.
func (e *eventLoop) cutOff(lv *live) {
	if lv.handle != nil {
		lv.handle.shut()
	}
	for h := range e.outlived {
		if h.key == lv.key {
			h.shut()
			delete(e.outlived, h)
		}
	}
	lv.holders = nil
}

// users says who has a shard's accessors.
func (lv *live) users() string {
	var who []string
	if n := lv.s.Refs - lv.heldByHolders(); n > 0 {
		who = append(who, fmt.Sprintf("%d of callers", n))
	}
	for _, x := range lv.holders {
		who = append(who, fmt.Sprintf("%d of %s", x.n, x.h.HolderName()))
	}
	if len(who) == 0 {
		return ""
	}
	return "accessors are open: " + strings.Join(who, ", ")
}
