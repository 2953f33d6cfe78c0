package dagstore

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dagstore/dagstore/internal/planted"
)

const (
	// groupSize is how many channels one goroutine of the courier looks after. Waiting
	// for n of them costs time in proportion to n.
	groupSize = 128
	// closeGrace is how long Close lets callers that are about to receive do so.
	closeGrace = 100 * time.Millisecond
)

// courier delivers results to callers that are not receiving yet. The event loop hands
// over what a channel does not take at once; a result waits here until its channel takes
// it or its context ends, and holds up no other.
//
// What waits for one channel is a lane, first come first served: only its first result is
// offered, so that a channel costs the same however many wait for it. A goroutine looks
// after up to 128 lanes. One that turns out to be read, and has more, gets a goroutine of
// its own, which does no more than to send. There is none when nothing waits.
type courier struct {
	mu struct {
		sync.Mutex
		lanes  map[chan ShardResult]*lane
		groups []*courierGroup
		held   int // results in lanes
		closed bool
	}
	busy atomic.Int32 // lanes
	wg   sync.WaitGroup
}

// parcel is a result that waits. All but ctx, out, res and req is guarded by courier.mu.
type parcel struct {
	ctx  context.Context
	out  chan ShardResult
	res  ShardResult
	req  *request // nil: not known any more
	prev *parcel
	next *parcel
	// offered: the lane's goroutine may be sending it. ended: and its context has ended.
	offered, ended bool
}

// lane is what waits for one channel.
type lane struct {
	out         chan ShardResult
	first, last *parcel
	group       *courierGroup
	// watches are over the contexts, by their Done channels, which many results have in
	// common.
	watches map[<-chan struct{}]*watch
}

type watch struct {
	parcels map[*parcel]struct{}
	stop    func() bool
}

// courierGroup is the lanes of one goroutine.
type courierGroup struct {
	lanes []*lane // guarded by courier.mu
	alone bool    // it takes no other lanes
	wake  chan struct{}
}

func newCourier() *courier {
	c := &courier{}
	c.mu.lanes = make(map[chan ShardResult]*lane)
	return c
}

// discard closes what a result carries; nobody will get it.
func (r *ShardResult) discard() {
	if r.Accessor != nil && !planted.Bug("store-undelivered-accessor-kept") {
		r.Accessor.Close()
		r.Accessor = nil
	}
}

// deliver sends res to the request's channel now, or later if it is not taken.
func (c *courier) deliver(req *request, res ShardResult) {
	if req.out == nil {
		res.discard()
		return
	}
	if !req.sync && c.busy.Load() > 0 && c.join(req, res) {
		return
	}
	switch offer(req.out, res) {
	case taken:
		if res.Accessor != nil && !req.sync && req.ctx.Done() != nil && len(req.out) > 0 {
			watchBuffered(req, res.Accessor)
		}
	case notYet:
		if req.ctx.Err() == nil {
			c.hold(&parcel{ctx: req.ctx, out: req.out, res: res, req: req})
			return
		}
		res.discard() // who left counts as answered
	case never:
		res.discard()
	}
}

type offered uint8

const (
	notYet offered = iota
	taken
	never // the caller closed the channel
)

// offer sends v if the channel takes it now.
func offer[T any](out chan<- T, v T) (o offered) {
	defer func() {
		if o == notYet && recover() != nil {
			o = never
		}
	}()
	select {
	case out <- v:
		return taken
	default:
		return notYet
	}
}

// watchBuffered closes an accessor that lies unread in a channel's buffer when the
// caller's context ends, and leaves the context's error in its place.
func watchBuffered(req *request, acc *ShardAccessor) {
	stop := context.AfterFunc(req.ctx, func() {
		if acc.used.Load() {
			return
		}
		for range len(req.out) {
			select {
			case res, open := <-req.out:
				if !open {
					return
				}
				mine := res.Accessor == acc
				if mine {
					res.discard()
					res = ShardResult{Key: req.key, Error: req.ctx.Err()}
				}
				if offer(req.out, res) == notYet {
					p := &parcel{ctx: context.Background(), out: req.out, res: res}
					if mine {
						p.req = req
					}
					acc.loop.d.courier.hold(p)
				}
				if mine {
					return
				}
			default:
				return
			}
		}
	})
	acc.onUse.Store(&stop)
	if acc.used.Load() {
		stop() // it was received and used in between
	}
}

// join lets a result wait behind others for the same channel, if there are such.
func (c *courier) join(req *request, res ShardResult) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.mu.lanes[req.out]; l != nil && !c.mu.closed && req.ctx.Err() == nil {
		c.pushLocked(l, &parcel{ctx: req.ctx, out: req.out, res: res, req: req})
		return true
	}
	return false
}

// hold keeps a result until it is taken, its context ends or the courier closes.
func (c *courier) hold(p *parcel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		c.lastTry(p)
		return
	}
	l := c.mu.lanes[p.out]
	if l == nil {
		l = &lane{out: p.out, watches: make(map[<-chan struct{}]*watch)}
		c.mu.lanes[p.out] = l
		c.busy.Add(1)
		defer c.placeLocked(l)
	}
	c.pushLocked(l, p)
}

// placeLocked gives a lane to a goroutine.
func (c *courier) placeLocked(l *lane) {
	for _, g := range c.mu.groups {
		if !g.alone && len(g.lanes) < groupSize {
			l.group = g
			g.lanes = append(g.lanes, l)
			g.rouse()
			return
		}
	}
	c.startLocked(l, false)
}

// startLocked begins a group with one lane.
func (c *courier) startLocked(l *lane, alone bool) {
	g := &courierGroup{lanes: []*lane{l}, alone: alone, wake: make(chan struct{}, 1)}
	l.group = g
	c.mu.groups = append(c.mu.groups, g)
	c.wg.Go(func() { c.run(g) })
}

// rouse has a group's goroutine look at its lanes again.
func (g *courierGroup) rouse() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

func (c *courier) pushLocked(l *lane, p *parcel) {
	if p.prev = l.last; l.last == nil {
		l.first = p
	} else {
		l.last.next = p
	}
	l.last = p
	c.mu.held++
	done := p.ctx.Done()
	if done == nil {
		return
	}
	w := l.watches[done]
	if w == nil {
		w = &watch{parcels: make(map[*parcel]struct{})}
		w.stop = context.AfterFunc(p.ctx, func() { c.end(l, done, w) })
		l.watches[done] = w
	}
	w.parcels[p] = struct{}{}
}

// removeLocked takes a parcel out of its lane.
func (c *courier) removeLocked(l *lane, p *parcel) {
	if p.prev == nil {
		l.first = p.next
	} else {
		p.prev.next = p.next
	}
	if p.next == nil {
		l.last = p.prev
	} else {
		p.next.prev = p.prev
	}
	p.prev, p.next = nil, nil
	c.mu.held--
	if done := p.ctx.Done(); done != nil {
		if w := l.watches[done]; w != nil {
			if delete(w.parcels, p); len(w.parcels) == 0 {
				w.stop()
				delete(l.watches, done)
			}
		}
	}
}

// end takes back what waits with a context that has ended: who left counts as answered.
func (c *courier) end(l *lane, done <-chan struct{}, w *watch) {
	var over []*parcel
	c.mu.Lock()
	if l.watches[done] == w {
		delete(l.watches, done)
	}
	for p := range w.parcels {
		if p.offered {
			p.ended = true
			l.group.rouse()
			continue
		}
		c.removeLocked(l, p)
		over = append(over, p)
	}
	c.mu.Unlock()
	for _, p := range over {
		p.res.discard()
	}
}

// lastTry offers a result for the last time.
func (c *courier) lastTry(p *parcel) {
	p.res.afterClose()
	offer(p.out, p.res)
}

// afterClose turns an accessor, which is of no use any more, into ErrClosed.
func (r *ShardResult) afterClose() {
	if r.Accessor != nil {
		r.discard()
		r.Error = ErrClosed
	}
}

// run looks after one group until nothing waits in it or the courier closes.
func (c *courier) run(g *courierGroup) {
	var deadline <-chan time.Time
	var offers, over []*parcel
	var sent *parcel // what the last wait was the end of
	for {
		over = over[:0]
		c.mu.Lock()
		if sent != nil {
			c.sentLocked(g, sent)
		}
		offers, over = c.offersLocked(g, offers[:0], over)
		ended := len(g.lanes) == 0
		if ended {
			c.endGroupLocked(g)
		} else if c.mu.closed && deadline == nil {
			deadline = time.After(closeGrace)
			g.each(func(p *parcel) { p.res.afterClose() }) // and none is added any more
		}
		c.mu.Unlock()
		discardAll(over)
		if ended {
			return
		}
		var how outcome
		switch sent, how = awaitAny(g.wake, deadline, offers); how {
		case waitTaken:
			if r := sent.req; r != nil && sent.res.Accessor != nil && sent.ctx.Done() != nil && len(sent.out) > 0 {
				watchBuffered(r, sent.res.Accessor)
			}
		case waitNever:
			sent.res.discard()
		case waitDeadline:
			c.mu.Lock()
			over = over[:0]
			g.each(func(p *parcel) { over = append(over, p) })
			for _, p := range over {
				c.removeLocked(c.mu.lanes[p.out], p)
			}
			for len(g.lanes) > 0 {
				c.endLaneLocked(g, 0)
			}
			c.endGroupLocked(g)
			c.mu.Unlock()
			discardAll(over)
			return
		}
	}
}

// offersLocked collects the first result of each lane, after those whose contexts have
// ended, which it takes out into over, and ends lanes where nothing is left.
func (c *courier) offersLocked(g *courierGroup, offers, over []*parcel) (_, _ []*parcel) {
	for i := 0; i < len(g.lanes); {
		l := g.lanes[i]
		for l.first != nil && l.first.ended {
			over = append(over, l.first)
			c.removeLocked(l, l.first)
		}
		if l.first == nil {
			c.endLaneLocked(g, i)
			continue
		}
		l.first.offered = true
		offers = append(offers, l.first)
		i++
	}
	return offers, over
}

// sentLocked takes out what the group g is done with. A lane that has more is being read:
// it shall not wait for others.
func (c *courier) sentLocked(g *courierGroup, p *parcel) {
	l := c.mu.lanes[p.out]
	c.removeLocked(l, p)
	switch {
	case l.first == nil || g.alone || c.mu.closed:
	case len(g.lanes) == 1:
		g.alone = true
	default:
		g.remove(slices.Index(g.lanes, l))
		c.startLocked(l, true)
	}
}

// endLaneLocked forgets the i-th lane of a group, in which nothing waits.
func (c *courier) endLaneLocked(g *courierGroup, i int) {
	delete(c.mu.lanes, g.lanes[i].out)
	g.remove(i)
	c.busy.Add(-1)
}

func (g *courierGroup) remove(i int) {
	last := len(g.lanes) - 1
	g.lanes[i], g.lanes[last] = g.lanes[last], nil
	g.lanes = g.lanes[:last]
}

// each visits what waits in a group.
func (g *courierGroup) each(visit func(*parcel)) {
	for _, l := range g.lanes {
		for p := l.first; p != nil; p = p.next {
			visit(p)
		}
	}
}

func (c *courier) endGroupLocked(g *courierGroup) {
	i, last := slices.Index(c.mu.groups, g), len(c.mu.groups)-1
	c.mu.groups[i], c.mu.groups[last] = c.mu.groups[last], nil
	c.mu.groups = c.mu.groups[:last]
}

func discardAll(ps []*parcel) {
	for i, p := range ps {
		p.res.discard()
		ps[i] = nil
	}
}

// outcome is how a wait for somebody to take a result ended.
type outcome uint8

const (
	waitWake     outcome = iota // look again
	waitDeadline                // give up
	waitTaken                   // a result was taken
	waitNever                   // its channel is closed
)

// awaitAny waits until one of the results is taken, or there is something else to do.
func awaitAny(wake chan struct{}, deadline <-chan time.Time, offers []*parcel) (p *parcel, how outcome) {
	defer func() {
		if how == waitWake && p != nil && recover() != nil { // a caller closed its channel: nobody will get what is for it
			p, how = afterPanic(offers)
		}
	}()
	p = offers[0]
	if len(offers) == 1 {
		select {
		case p.out <- p.res:
			return p, waitTaken
		case <-wake:
			return nil, waitWake
		case <-deadline:
			return nil, waitDeadline
		}
	}
	cases := make([]reflect.SelectCase, 0, 2+len(offers))
	cases = append(cases,
		reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(wake)},
		reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(deadline)})
	for _, p := range offers {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectSend, Chan: reflect.ValueOf(p.out), Send: reflect.ValueOf(p.res)})
	}
	switch n, _, _ := reflect.Select(cases); n {
	case 0:
		return nil, waitWake
	case 1:
		return nil, waitDeadline
	default:
		return offers[n-2], waitTaken
	}
}

// afterPanic finds the channel that is closed, or one that takes its result.
func afterPanic(offers []*parcel) (*parcel, outcome) {
	for _, p := range offers {
		switch offer(p.out, p.res) {
		case taken:
			return p, waitTaken
		case never:
			return p, waitNever
		}
	}
	return nil, waitWake
}

// waiting counts undelivered results.
func (c *courier) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.held
}

// close gives callers a moment to receive what is theirs, and then drops the rest.
func (c *courier) close() {
	c.mu.Lock()
	c.mu.closed = true
	for _, g := range c.mu.groups {
		g.rouse()
	}
	c.mu.Unlock()
	c.wg.Wait()
}
