package mount

import (
	"context"
	"time"
)

// A server without ranges answers Stat, which asks for one byte, with all of them. That
// answer is kept for the Fetch that mostly follows, so that the body is asked for once.
const (
	// parkFor is how long it is kept: its connection waits meanwhile.
	parkFor = 5 * time.Second
	// maxParked bounds how many are, of the mounts with the same options.
	maxParked = 64
)

type parkedAnswer struct {
	answer *answer
	expiry *time.Timer
}

// park keeps an unread answer for the next Fetch of m, or closes it.
func (o *HTTPOptions) park(m *HTTPMount, a *answer) {
	p := &parkedAnswer{answer: a}
	o.parkMu.Lock()
	old := o.parked[m]
	full := old == nil && len(o.parked) >= maxParked
	if !full {
		if o.parked == nil {
			o.parked = make(map[*HTTPMount]*parkedAnswer)
		}
		o.parked[m] = p
		p.expiry = time.AfterFunc(parkFor, func() {
			if o.takeParked(m, p) != nil {
				a.body.Close()
			}
		})
	}
	o.parkMu.Unlock()
	if full {
		a.body.Close()
	}
	if old != nil {
		old.expiry.Stop()
		old.answer.body.Close()
	}
}

// unpark returns the answer that is kept for m, or nil.
func (o *HTTPOptions) unpark(m *HTTPMount) *answer { return o.takeParked(m, nil) }

// takeParked is unpark, of this one if it is not nil.
func (o *HTTPOptions) takeParked(m *HTTPMount, only *parkedAnswer) *answer {
	o.parkMu.Lock()
	defer o.parkMu.Unlock()
	p := o.parked[m]
	if p == nil || only != nil && p != only {
		return nil
	}
	delete(o.parked, m)
	p.expiry.Stop()
	return p.answer
}

// dropParked closes all that is kept.
func (o *HTTPOptions) dropParked() {
	o.parkMu.Lock()
	all := o.parked
	o.parked = nil
	o.parkMu.Unlock()
	for _, p := range all {
		p.expiry.Stop()
		p.answer.body.Close()
	}
}

// detached returns a context with the values of ctx that ends with ctx until attach is
// called, and with cancel thereafter.
func detached(ctx context.Context) (own context.Context, attach func() bool, cancel context.CancelFunc) {
	own, cancel = context.WithCancel(context.WithoutCancel(ctx))
	return own, context.AfterFunc(ctx, cancel), cancel
}
