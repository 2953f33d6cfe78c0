package dagstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/mount"
)

// What a failure says decides what becomes of the shard. Evidence about what a source is
// (its size, validator, digest or structure) is the shard's fate and is recorded. That it
// could not be reached, opened or read leaves the shard as it was, and so does a shortage
// of this machine: both pass.

// panicError is a panic of code of others.
type panicError struct{ of, value string }

func panicked(of string, value any) error { return &panicError{of, fmt.Sprint(value)} }

func (e *panicError) Error() string { return e.of + ": panic: " + e.value }

// isEvidence says that an error tells what a source is.
func isEvidence(err error) bool {
	var scanned *carscan.Error
	var mismatch *index.SourceMismatchError
	var panic *panicError
	return mount.IsContent(err) || errors.As(err, &scanned) || errors.As(err, &mismatch) || errors.As(err, &panic) ||
		errors.Is(err, ErrBlockCorrupt) || errors.Is(err, errNoReader) || errors.Is(err, errNoReturn)
}

// sourceFault says what a failure to find, fetch or open a source tells. A mount's error
// that nobody knows is that the source could not be had.
func sourceFault(err error) fsm.Fault {
	switch {
	case err == nil:
		return fsm.FaultSource // not looked at
	case outOfSpace(err):
		return fsm.FaultPassing // for who knows how long: nobody is made to wait
	case mount.IsShortage(err):
		return fsm.FaultShortage
	case isEvidence(err), planted.Bug("store-away-recorded"):
		return fsm.FaultSource
	}
	return fsm.FaultPassing
}

// outOfSpace says that a disk, or somebody's share of it, is full.
func outOfSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// shortPatience is how long who waits for what this machine is short of does so.
const shortPatience = 30 * time.Second

// faultNow is what a completion says of a shard, which has been short for long already.
func (e *eventLoop) faultNow(lv *live, c *completion) fsm.Fault {
	if c.fault == fsm.FaultShortage && lv.ail.since != 0 && e.now-lv.ail.since > int64(shortPatience) {
		return fsm.FaultPassing
	}
	return c.fault
}

// indexFault says what a failed build of an index tells. What an indexer of somebody's own
// says and nobody knows is its verdict on the source.
func (j *job) indexFault(err error) fsm.Fault {
	if fault := sourceFault(err); fault != fsm.FaultPassing || j.d.cfg.ShardIndexer == nil || couldNotHave(err) {
		return fault
	}
	return fsm.FaultSource
}

// couldNotHave says that an error is plainly one of reading or of waiting.
func couldNotHave(err error) bool {
	var errno syscall.Errno
	var network net.Error
	return errors.As(err, &errno) || errors.As(err, &network) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}
