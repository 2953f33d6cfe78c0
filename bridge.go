package dagstore

import (
	"sync"
	"sync/atomic"
)

// bridgeBuffer is how many values wait for a slow reader before they are dropped.
const bridgeBuffer = 4096

// bridge feeds a channel of the caller's from the event loop: in order, without
// ever waiting in the loop, and counting what a reader was too slow to get.
type bridge[T any] struct {
	ch      chan<- T
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

// send passes v on, now or soon.
func (b *bridge[T]) send(v T) {
	if b.ch == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.closed {
		return
	}
	if !b.mu.running {
		switch offer(b.ch, v) {
		case taken:
			return
		case never: // the caller closed the channel
			b.mu.closed = true
			return
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

// close ends the bridge; what still waits is dropped and counted.
func (b *bridge[T]) close() {
	b.mu.Lock()
	b.mu.closed = true
	b.dropped.Add(uint64(len(b.mu.queue)))
	b.mu.queue = nil
	b.mu.Unlock()
	close(b.stop)
	b.wg.Wait()
}
