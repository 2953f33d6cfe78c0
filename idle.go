package dagstore

import (
	"time"

	"github.com/dagstore/dagstore/fsm"
)

// idleList holds the shards that are open and were not in use when last looked at,
// the longest idle first. They are closed when they have been idle for the
// configured time, or when there are too many. It belongs to the loop.
type idleList struct {
	first, last *live
	n           int
	timer       *time.Timer
}

func (l *idleList) add(e *eventLoop, lv *live) {
	lv.inIdle = true
	lv.idlePrev = l.last
	if l.last != nil {
		l.last.idleNext = lv
	} else {
		l.first = lv
	}
	l.last = lv
	l.n++
	if l.n > max(e.d.cfg.IdleHandles, 0) {
		e.closeIdle(l.first)
	}
	if l.first != nil && l.timer == nil && !e.closing {
		l.timer = time.AfterFunc(e.d.cfg.IdleTimeout, func() { e.complete(input{ctl: e.sweepIdle}) })
	}
}

func (l *idleList) remove(lv *live) {
	if !lv.inIdle {
		return
	}
	if lv.idlePrev != nil {
		lv.idlePrev.idleNext = lv.idleNext
	} else {
		l.first = lv.idleNext
	}
	if lv.idleNext != nil {
		lv.idleNext.idlePrev = lv.idlePrev
	} else {
		l.last = lv.idlePrev
	}
	lv.idleNext, lv.idlePrev, lv.inIdle = nil, nil, false
	l.n--
}

func (l *idleList) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
}

// closeIdle takes a shard off the list and closes it if nobody uses it.
func (e *eventLoop) closeIdle(lv *live) {
	e.idle.remove(lv)
	e.internal = append(e.internal, input{lv: lv, trig: fsm.CloseIdle})
}

// sweepIdle closes what has been idle for long enough, and looks again later.
func (e *eventLoop) sweepIdle() {
	l := &e.idle
	l.timer = nil
	if e.closing {
		return
	}
	limit := e.now - int64(e.d.cfg.IdleTimeout)
	for range l.n {
		lv := l.first
		switch {
		case lv.s.Refs > 0 || lv.s.Handle != fsm.Open:
			l.remove(lv) // in use: it comes back with the last release
		case lv.idleSince <= limit:
			e.closeIdle(lv)
		default: // used since it was put here
			l.remove(lv)
			l.add(e, lv)
		}
	}
	if l.first != nil && l.timer == nil {
		l.timer = time.AfterFunc(e.d.cfg.IdleTimeout, func() { e.complete(input{ctl: e.sweepIdle}) })
	}
}
