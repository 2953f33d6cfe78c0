package dagstore

import (
	"container/heap"
	"math/rand/v2"
	"time"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// A try that failed for a cause that passes is made again at once, as soon as somebody asks,
// and if that fails too, after a pause. The pauses of one ailment grow, and vary by a quarter, so that shards of one source do not come in step.
// They stay so short that a source which is back is read from within five seconds.
const (
	pauseFirst = 200 * time.Millisecond
	pauseMost  = 2400 * time.Millisecond
	// pauseShort is the first pause for want of something that this machine is short of,
	// pauseShortMost the longest.
	pauseShort     = 20 * time.Millisecond
	pauseShortMost = time.Second
	// pauseAsked bounds how long an origin that asks to come again later is left alone.
	pauseAsked = 30 * time.Second
	// pauseUnasked is the longest until a new shard whose source is away is tried again
	// without a request. A request tries it when the ordinary pause is over.
	pauseUnasked = time.Minute
	// retryRate bounds how many shards that are being recovered are tried again a second,
	// all together: with more of them than that allows, pauses are longer.
	retryRate = 1000
	// maxAiling is how many shards that nobody waits for are kept in mind only for being
	// ailing. Of more, it is found out anew when they are asked for.
	maxAiling = 1 << 16
)

// pauses are the ends of pauses, the next first. They belong to the loop.
type pauses struct {
	ends  pauseHeap
	timer *time.Timer
	due   int64 // when the timer fires; 0: there is none
}

// clockWentBack moves all ends by how much the clock says less than the timer, which is
// not moved by who sets the clock.
func (p *pauses) clockWentBack(by int64) {
	for i := range p.ends {
		end := &p.ends[i]
		if end.lv.ail.retryAt == end.at {
			end.lv.ail.retryAt -= by
		}
		end.at -= by
	}
}

// pause is one end. It counts if the shard still waits for it.
type pause struct {
	at int64
	lv *live
	// unasked: at its end a new shard is initialised without a request.
	unasked bool
}

type pauseHeap []pause

func (h pauseHeap) Len() int           { return len(h) }
func (h pauseHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h pauseHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *pauseHeap) Push(x any)        { *h = append(*h, x.(pause)) }
func (h *pauseHeap) Pop() any {
	old := *h
	last := len(old) - 1
	p := old[last]
	old[last] = pause{}
	*h = old[:last]
	return p
}

// ailment is what the loop knows of a shard's ailing beside the machine.
type ailment struct {
	since   int64 // when it began; 0: the shard is well
	tries   int   // that failed
	retryAt int64 // the end of the pause; 0: there is none
}

// noteAilment keeps track of whether the shard ails, after a step of it.
func (e *eventLoop) noteAilment(lv *live) {
	s, a := &lv.s, &lv.ail
	ails := s.Ail != fsm.Well
	switch {
	case ails && a.since == 0:
		a.since = e.now
		e.d.ailing.Add(1)
	case !ails && a.since != 0:
		*a = ailment{}
		e.d.ailing.Add(-1)
	}
	switch {
	case s.Resting && a.retryAt == 0:
		e.pause(lv)
	case !s.Resting:
		a.retryAt = 0
	}
	lv.pub.since.Store(a.since)
	lv.pub.retryAt.Store(a.retryAt)
}

// pause has the shard tried again after a while.
func (e *eventLoop) pause(lv *live) {
	s, a := &lv.s, &lv.ail
	if a.tries == 0 && s.Ail != fsm.Short {
		a.tries, a.retryAt = 1, e.now
		e.internal = append(e.internal, input{lv: lv, trig: fsm.Retry})
		e.tryUnasked(lv, pauseFirst)
		return
	}
	first, most := pauseFirst, pauseMost
	if s.Ail == fsm.Short {
		first, most = pauseShort, pauseShortMost
	}
	d := grown(first, most, a.tries-1)
	if s.Life == shard.Recovering {
		d = max(d, time.Duration(len(e.pauses.ends))*time.Second/retryRate)
	}
	if asked, ok := mount.RetryAfter(s.Cause); ok {
		d = max(d, min(asked, pauseAsked))
	}
	d = e.varied(d)
	a.retryAt = e.now + int64(d)
	e.pauses.add(e, pause{at: a.retryAt, lv: lv})
	e.tryUnasked(lv, max(d, grown(pauseFirst, pauseUnasked, a.tries-1)))
	a.tries++
}

// tryUnasked has a new shard that is not lazy initialised after a while, though nobody
// asks for it.
func (e *eventLoop) tryUnasked(lv *live, d time.Duration) {
	if s := &lv.s; s.Life == shard.Registered && !s.Lazy {
		e.pauses.add(e, pause{at: e.now + int64(e.varied(d)), lv: lv, unasked: true})
	}
}

// grown is first, doubled for each try that failed, at most most.
func grown(first, most time.Duration, tries int) time.Duration {
	return min(first<<min(max(tries, 0), 16), most)
}

// varied is d, a quarter more or less.
func (e *eventLoop) varied(d time.Duration) time.Duration {
	return d*3/4 + time.Duration(e.chance(int64(d)/2+1))
}

// add notes an end, and sets the timer if it is the next.
func (p *pauses) add(e *eventLoop, end pause) {
	heap.Push(&p.ends, end)
	p.arm(e)
}

func (p *pauses) arm(e *eventLoop) {
	if len(p.ends) == 0 || e.closing || p.due != 0 && p.due <= p.ends[0].at {
		return
	}
	p.stop()
	p.due = p.ends[0].at
	p.timer = time.AfterFunc(time.Duration(p.due-e.now), func() { e.complete(input{ctl: e.endPauses}) })
}

func (p *pauses) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
	p.due = 0
}

// endPauses has those shards tried again whose pauses are over.
func (e *eventLoop) endPauses() {
	p := &e.pauses
	due := p.due
	p.due = 0
	if e.closing {
		return
	}
	if due > e.now {
		p.clockWentBack(due - e.now)
	}
	for len(p.ends) > 0 && p.ends[0].at <= e.now {
		end := heap.Pop(&p.ends).(pause)
		lv := end.lv
		switch {
		case lv.gone:
		case end.unasked:
			if s := &lv.s; s.Life == shard.Registered && s.Ail == fsm.Away {
				e.internal = append(e.internal, input{lv: lv, trig: fsm.Retry}, input{lv: lv, trig: fsm.Resume})
			}
		case lv.ail.retryAt == end.at:
			e.internal = append(e.internal, input{lv: lv, trig: fsm.Retry})
		}
	}
	e.drain()
	p.arm(e)
}

// shed gives up descriptors that nobody needs now, because there are no more.
func (e *eventLoop) shed() {
	for e.idle.first != nil {
		e.closeIdle(e.idle.first)
	}
	for h := range e.held {
		e.askIdle(h)
	}
}

func (e *eventLoop) askIdle(h Holder) {
	e.d.beside(func() {
		_ = e.d.guarded("a holder of accessors", func() error { h.LetGoIdle(); return nil })
	})
}

// chance returns a number below n.
func chance(n int64) int64 { return rand.Int64N(n) }
