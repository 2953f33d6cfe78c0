package mapped

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Overlapped is how much of one piece of work waits for a disk at a time.
	Overlapped = 16
	// waited is how long nothing takes that finds in memory what it reads.
	waited = 50 * time.Microsecond
)

// Waited says whether what took so long, and read n bytes, is likely to have waited for a
// disk or a network.
func Waited(took time.Duration, n int) bool {
	return took > waited+time.Duration(n/4) // at 4 GB/s
}

// Overlap calls do with the numbers below n, one after another as long as none waits for a
// disk, and then several at a time, until one returns false. do reads a few pages. It
// returns when all calls have.
func Overlap(n int, do func(i int) bool) {
	i := 0
	for slow := false; i < n && !slow; i++ {
		began := time.Now()
		if !do(i) {
			return
		}
		slow = Waited(time.Since(began), 0)
	}
	var next atomic.Int64
	next.Store(int64(i))
	var wg sync.WaitGroup
	for range min(Overlapped, n-i) {
		wg.Go(func() {
			for k := next.Add(1) - 1; k < int64(n); k = next.Add(1) - 1 {
				if !do(int(k)) {
					next.Store(int64(n))
				}
			}
		})
	}
	wg.Wait()
}
