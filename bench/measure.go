package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// operation is done again and again; n counts up.
type operation func(n int) error

// subject is something that is measured beside others.
type subject struct {
	name, does string
	// worker makes what one goroutine does.
	worker func() (operation, error)
}

// rate does a subject's operation for some time with so many goroutines, and returns how
// often in a second, and how many allocations each took.
func rate(s subject, goroutines int, d time.Duration) (perSecond, allocs float64, err error) {
	ops := make([]operation, goroutines)
	for i := range ops {
		if ops[i], err = s.worker(); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for g, op := range ops {
		wg.Go(func() {
			n, first := 0, g*1_000_003 // goroutines begin at different places
			for time.Since(began) < d && failed.Load() == nil {
				for range 32 {
					if err := op(first + n); err != nil {
						escaped := err // which would otherwise be allocated each time
						failed.CompareAndSwap(nil, &escaped)
						return
					}
					n++
				}
			}
			done.Add(int64(n))
		})
	}
	wg.Wait()
	took := time.Since(began)
	runtime.ReadMemStats(&after)
	if err := failed.Load(); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", s.name, *err)
	}
	n := float64(done.Load())
	return n / took.Seconds(), float64(after.Mallocs-before.Mallocs) / n, nil
}

// inTurn measures the subjects in turn, round after round, and returns the medians.
func inTurn(ctx context.Context, cfg config, goroutines int, subjects []subject, progress io.Writer) (perSecond, allocs []float64, err error) {
	rates, mallocs := make([][]float64, len(subjects)), make([][]float64, len(subjects))
	for range cfg.rounds {
		for i, s := range subjects {
			if err := ctx.Err(); err != nil {
				return nil, nil, err
			}
			r, a, err := rate(s, goroutines, cfg.each)
			if err != nil {
				return nil, nil, err
			}
			rates[i], mallocs[i] = append(rates[i], r), append(mallocs[i], a)
		}
	}
	for i, s := range subjects {
		perSecond, allocs = append(perSecond, median(rates[i])), append(allocs, median(mallocs[i]))
		fmt.Fprintf(progress, "  %-48s %12s\n", s.name, perSecondUnit.format(perSecond[i]))
	}
	return perSecond, allocs, nil
}

// median is of at least one number; of an even count it is the lower middle one.
func median(xs []float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	xs = slices.Clone(xs)
	slices.Sort(xs)
	return xs[(len(xs)-1)/2]
}

// timed says how long something takes.
func timed(f func() error) (time.Duration, error) {
	began := time.Now()
	err := f()
	return time.Since(began), err
}

// folderSize is the sum of the files below a folder. Files may come and go meanwhile.
func folderSize(dir string) (int64, error) {
	sum := int64(0)
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if os.IsNotExist(err) {
			return nil
		}
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}

// quiet waits until the size of a folder has not changed for a while: whoever works in
// the background has come to rest.
func quiet(ctx context.Context, dir string, while time.Duration) (int64, error) {
	tick := time.NewTicker(while / 4)
	defer tick.Stop()
	last, same := int64(-1), 0
	for {
		now, err := folderSize(dir)
		if err != nil {
			return 0, err
		}
		if same++; now != last {
			last, same = now, 0
		}
		if same >= 4 {
			return now, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// heap is what is in use after a collection.
func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
