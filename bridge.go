package dagstore

import (
	"sync"
	"sync/atomic"
	"time"
)

// bridgeBuffer is how many values wait for a slow reader before they are dropped.
const bridgeBuffer = 4096

// bridge feeds a channel of the caller's from the event loop: in order, without
// ever waiting in the loop, and counting what a reader was too slow to get. What is sent
// to it also goes to those who listen.
type bridge[T any] struct {
	ch      chan<- T
	call    func(T) // in place of ch
	also    []*bridge[T]
	dropped atomic.Uint64
	stop    chan struct{}
	wg      sync.WaitGroup
	mu      struct {
		sync.Mutex
		queue   []T
		running bool
		closed  bool
	}
}

func newBridge[T any](ch chan<- T) *bridge[T] {
	return &bridge[T]{ch: ch, stop: make(chan struct{})}
}

// listen has f called with what is sent, one at a time, in a goroutine that is there
// while something is to be told. f may take its time, and may panic: guarded is what runs
// it. It is called before anything is sent.
func (b *bridge[T]) listen(guarded func(func()), f func(T)) {
	b.also = append(b.also, &bridge[T]{stop: make(chan struct{}), call: func(v T) { guarded(func() { f(v) }) }})
}

// wanted says whether anybody hears what is sent.
func (b *bridge[T]) wanted() bool { return b.ch != nil || len(b.also) > 0 }

// missed counts what was too much for those who hear.
func (b *bridge[T]) missed() uint64 {
	n := b.dropped.Load()
	for _, l := range b.also {
		n += l.dropped.Load()
	}
	return n
}

// send passes v on, now or soon.
func (b *bridge[T]) send(v T) {
	for _, l := range b.also {
		l.send(v)
	}
	if b.ch == nil && b.call == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.closed {
		return
	}
	if !b.mu.running {
		if b.call == nil {
			switch offer(b.ch, v) {
			case taken:
				return
			case never: // the caller closed the channel
				b.mu.closed = true
				return
			}
		}
		b.mu.running = true
		b.mu.queue = append(b.mu.queue, v)
		b.wg.Go(b.run)
		return
	}
	if len(b.mu.queue) >= bridgeBuffer {
		b.dropped.Add(1)
		return
	}
	b.mu.queue = append(b.mu.queue, v)
}

// run empties the queue, one value at a time, and ends.
func (b *bridge[T]) run() {
	for {
		b.mu.Lock()
		if len(b.mu.queue) == 0 {
			b.mu.running = false
			b.mu.Unlock()
			return
		}
		v := b.mu.queue[0]
		var zero T
		b.mu.queue[0] = zero
		b.mu.queue = b.mu.queue[1:]
		b.mu.Unlock()
		if !b.pass(v) {
			return
		}
	}
}

// pass waits until v is taken; false means that nothing will be any more.
func (b *bridge[T]) pass(v T) (ok bool) {
	if b.call != nil {
		b.call(v)
		return true
	}
	defer func() {
		if !ok && recover() != nil { // the caller closed the channel
			b.mu.Lock()
			b.mu.closed, b.mu.queue = true, nil
			b.mu.Unlock()
		}
	}()
	select {
	case b.ch <- v:
		return true
	case <-b.stop:
		return false
	}
}

// close ends the bridge; what still waits is dropped and counted. It waits for a call
// that goes on, for limit at most, and says whether all have ended.
func (b *bridge[T]) close(limit time.Duration) bool {
	b.mu.Lock()
	b.mu.closed = true
	b.dropped.Add(uint64(len(b.mu.queue)))
	b.mu.queue = nil
	b.mu.Unlock()
	close(b.stop)
	ended := true
	for _, l := range b.also {
		ended = l.close(limit) && ended
	}
	if b.call == nil {
		b.wg.Wait() // what it waits for has ended
		return ended
	}
	done := make(chan struct{})
	go func() { b.wg.Wait(); close(done) }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return ended
	case <-timer.C:
		return false
	}
}
