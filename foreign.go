package dagstore

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/mount"
)

// Mounts, their readers and a daemon's own repositories are code that others wrote:
// it may panic, and it may never return. Neither may end the process or hold up the
// event loop.

// guarded runs code that others wrote. A panic is an error, and logged.
func (d *DAGStore) guarded(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: panic: %v", what, p)
			d.log.Error("panic in code that is not the store's", "what", what, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	return f()
}

// beside runs f, for which nobody waits but Close. It may be called at any time,
// also after Close.
func (d *DAGStore) beside(f func()) {
	if d.cfg.drive != nil { // the simulator wants everything in its turn
		f()
		return
	}
	d.late.Lock()
	defer d.late.Unlock()
	if d.late.ended {
		go f()
		return
	}
	d.jobs.Go(f)
}

// foreign tells a reader that is code of others from a file of the system's.
func foreign(r mount.Reader) bool {
	_, file := r.(*os.File)
	return !file
}

// filled is a reader of others that is read on where it gives less than was asked for and
// no error. Everything that reads a source at offsets gets it: indexing, blocks, samples,
// exports. Scans of a stream know short reads anyway.
type filled struct{ mount.Reader }

func (f filled) ReadAt(p []byte, off int64) (int, error) { return carscan.FillAt(f.Reader, p, off) }

// filling returns what reads r on. Files of the system's need no help.
func filling(r mount.Reader) mount.Reader {
	if _, mapper := r.(fsio.Mapper); mapper || !foreign(r) {
		return r
	}
	return filled{r}
}

// unfilled returns the reader as its mount made it, for code that may look for its type.
func unfilled(r mount.Reader) mount.Reader {
	if f, ok := r.(filled); ok {
		return f.Reader
	}
	return r
}

// closeMount ends the use of a mount that the store made.
func (d *DAGStore) closeMount(m mount.Mount) {
	switch m.(type) {
	case nil, *mount.FileMount, *mount.FSMount, *mount.BytesMount, *mount.HTTPMount: // they hold nothing
	default:
		d.beside(func() {
			if err := d.guarded("close a mount", m.Close); err != nil {
				d.log.Warn("a mount did not close", "err", err)
			}
		})
	}
}
