package dagstore

import (
	"context"
	"reflect"
	"sync"
	"time"

	"github.com/dagstore/dagstore/internal/planted"
)

const (
	// groupSize is how many undelivered results one goroutine of the courier looks
	// after. Waiting for n of them costs time in proportion to n.
	groupSize = 128
	// closeGrace is how long Close lets callers that are about to receive do so.
	closeGrace = 100 * time.Millisecond
)

// courier delivers results to callers that are not receiving yet. The event loop
// hands over what a channel does not take at once; a result waits here until its
// channel takes it or its context ends, and holds up no other. There is a goroutine
// per 128 waiting results, and none when none waits.
type courier struct {
	mu struct {
		sync.Mutex
		groups []*courierGroup
		closed bool
		held   map[uint64]parcel // what waits by number, for who asks
		number uint64
	}
	wg sync.WaitGroup
}

type parcel struct {
	ctx context.Context
	out chan ShardResult
	res ShardResult
	req *request // nil: not known any more
	no  uint64
}

type courierGroup struct {
	incoming []parcel // guarded by courier.mu
	n        int      // parcels in the group; guarded by courier.mu
	wake     chan struct{}
}

func newCourier() *courier {
	c := &courier{}
	c.mu.held = make(map[uint64]parcel)
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
	switch offer(req.out, res) {
	case taken:
		if res.Accessor != nil && !req.sync && req.ctx.Done() != nil && len(req.out) > 0 {
			watchBuffered(req, res.Accessor)
		}
	case notYet:
		if req.ctx.Err() == nil {
			c.hold(parcel{ctx: req.ctx, out: req.out, res: res, req: req})
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
					p := parcel{ctx: context.Background(), out: req.out, res: res}
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

func (c *courier) hold(p parcel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		c.lastTry(&p)
		return
	}
	c.mu.number++
	p.no = c.mu.number
	c.mu.held[p.no] = p
	for _, g := range c.mu.groups {
		if g.n < groupSize {
			g.add(p)
			return
		}
	}
	g := &courierGroup{wake: make(chan struct{}, 1)}
	g.add(p)
	c.mu.groups = append(c.mu.groups, g)
	c.wg.Go(func() { c.run(g) })
}

// add needs courier.mu.
func (g *courierGroup) add(p parcel) {
	g.n++
	g.incoming = append(g.incoming, p)
	select {
	case g.wake <- struct{}{}:
	default:
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

// run looks after one group until it is empty or the courier closes.
func (c *courier) run(g *courierGroup) {
	var held []parcel
	var deadline <-chan time.Time
	for {
		c.mu.Lock()
		held = append(held, g.incoming...)
		clear(g.incoming)
		g.incoming = g.incoming[:0]
		g.n = len(held)
		if c.mu.closed && deadline == nil {
			deadline = time.After(closeGrace)
			for i := range held {
				held[i].res.afterClose()
			}
		}
		if len(held) == 0 {
			c.removeLocked(g)
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		i, ended := awaitAny(g.wake, deadline, held)
		switch {
		case i == waitDeadline:
			for j := range held {
				held[j].res.discard()
			}
			c.mu.Lock()
			c.removeLocked(g)
			for j := range held {
				delete(c.mu.held, held[j].no)
			}
			c.mu.Unlock()
			return
		case i == waitWake:
		default:
			c.mu.Lock()
			delete(c.mu.held, held[i].no)
			c.mu.Unlock()
			if ended {
				held[i].res.discard()
			}
			last := len(held) - 1
			copy(held[i:], held[i+1:])
			held[last] = parcel{}
			held = held[:last]
		}
	}
}

const (
	waitWake     = -2
	waitDeadline = -1
)

// awaitAny waits until one of the parcels is taken, or its context has ended.
func awaitAny(wake chan struct{}, deadline <-chan time.Time, held []parcel) (i int, ended bool) {
	defer func() {
		if recover() != nil { // a caller closed its channel: nobody will get what is for it
			for j := range held {
				if o := offer(held[j].out, held[j].res); o != notYet {
					i, ended = j, o == never
					return
				}
			}
			i = waitWake
		}
	}()
	cases := make([]reflect.SelectCase, 0, 2+2*len(held))
	cases = append(cases,
		reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(wake)},
		reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(deadline)})
	for i := range held {
		p := &held[i]
		cases = append(cases,
			reflect.SelectCase{Dir: reflect.SelectSend, Chan: reflect.ValueOf(p.out), Send: reflect.ValueOf(p.res)},
			reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(p.ctx.Done())})
	}
	switch n, _, _ := reflect.Select(cases); n {
	case 0:
		return waitWake, false
	case 1:
		return waitDeadline, false
	default:
		return (n - 2) / 2, n%2 == 1
	}
}

func (c *courier) removeLocked(g *courierGroup) {
	for i, x := range c.mu.groups {
		if x == g {
			last := len(c.mu.groups) - 1
			c.mu.groups[i] = c.mu.groups[last]
			c.mu.groups[last] = nil
			c.mu.groups = c.mu.groups[:last]
			return
		}
	}
}

// waiting counts undelivered results.
func (c *courier) waiting() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.mu.groups {
		n += g.n
	}
	return n
}

// close gives callers a moment to receive what is theirs, and then drops the rest.
func (c *courier) close() {
	c.mu.Lock()
	c.mu.closed = true
	for _, g := range c.mu.groups {
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
	c.mu.Unlock()
	c.wg.Wait()
}
