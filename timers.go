package dagstore

import (
	"errors"
	"math/rand/v2"
	"time"
)

// What the store does of itself when time has passed.

// listen connects the functions that the configuration names with what they hear.
func (d *DAGStore) listen() {
	guarded := func(f func()) {
		_ = d.guarded("OnTrace or OnFailure", func() error { f(); return nil }) // it is logged
	}
	if f := d.cfg.OnTrace; f != nil {
		d.traces.listen(guarded, f)
	}
	if f := d.cfg.OnFailure; f != nil {
		d.fails.listen(guarded, f)
	}
	if p := d.cfg.Recovery; p != nil {
		d.healer = newRecoverer(d, *p)
		d.fails.listen(guarded, func(res ShardResult) { d.healer.failed(d.ctx, res) })
	}
}

// startTimers begins what goes on until the store is closed.
func (d *DAGStore) startTimers() {
	if d.cfg.GCInterval > 0 {
		d.jobs.Go(d.collect)
	}
	if d.healer != nil {
		d.jobs.Go(func() { d.healer.run(d.ctx) })
	}
}

// collect runs GC from time to time.
func (d *DAGStore) collect() {
	timer := time.NewTimer(jittered(d.cfg.GCInterval, 0.1))
	defer timer.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-timer.C:
		}
		switch res, err := d.GC(d.ctx); {
		case d.ctx.Err() != nil || errors.Is(err, ErrClosed):
			return
		case err != nil:
			d.log.Warn("gc: ended early", "err", err)
		case res.ShardFailures() > 0:
			d.log.Warn("gc: some copies could not be removed", "shards", res.ShardFailures())
		}
		timer.Reset(jittered(d.cfg.GCInterval, 0.1))
	}
}

// jittered is d, give or take a part of it, so that many of the same do not come at once.
func jittered(d time.Duration, part float64) time.Duration {
	return d + time.Duration((2*rand.Float64()-1)*part*float64(d))
}
