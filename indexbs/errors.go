package indexbs

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
)

var (
	// ErrBlockNotFound is wrapped by the error of Get, GetSize and View for a block
	// that no shard holds, or none that the selector takes. That error is an
	// ipld.ErrNotFound as well, and if no shard holds the block a
	// *dagstore.NoShardError, which says as of when, if the store does.
	ErrBlockNotFound = errors.New("block not found")
	// ErrNoShardSelected is what a selector returns to take none of the shards it
	// was offered. It is wrapped by the error of the read: with ErrBlockNotFound if
	// nothing failed before, else with the failures.
	ErrNoShardSelected = errors.New("no shard selected")
)

// notFoundError says that a block is nowhere, or nowhere that the selector takes.
// It satisfies errors.Is and errors.As for ipld.ErrNotFound and the older check for
// a method NotFound.
type notFoundError struct {
	ipld.ErrNotFound
	declined bool
	// asOf says how fresh the answer is, if asOf.View is not empty.
	asOf dagstore.Freshness
}

// notFound is the error of a block that is in some shard by the index, and was not
// looked for there, or not found.
func notFound(c cid.Cid, declined bool) error {
	return &notFoundError{ErrNotFound: ipld.ErrNotFound{Cid: c}, declined: declined}
}

func (e *notFoundError) Error() string {
	if e.declined {
		return e.ErrNotFound.Error() + ": " + ErrNoShardSelected.Error()
	}
	return e.ErrNotFound.Error()
}

func (e *notFoundError) Unwrap() []error {
	all := []error{e.ErrNotFound, ErrBlockNotFound}
	if e.declined {
		all = append(all, ErrNoShardSelected)
	}
	if e.asOf.View != "" {
		all = append(all, &dagstore.NoShardError{Multihash: e.Cid.Hash(), AsOf: e.asOf})
	}
	return all
}

// readError says why a block that some shard holds could not be read: what each
// shard that was asked said, in the order they were asked.
type readError struct {
	c      cid.Cid
	causes []error
}

func (e *readError) Error() string {
	if len(e.causes) == 1 && errors.As(e.causes[0], new(*dagstore.BlockError)) {
		return e.causes[0].Error() // which names the block
	}
	said := make([]string, len(e.causes))
	for i, err := range e.causes {
		said[i] = err.Error()
	}
	return fmt.Sprintf("read block %s: %s", e.c, strings.Join(said, "; "))
}

func (e *readError) Unwrap() []error { return e.causes }

// unread is the error of a block that some shard holds and none could serve: a
// *dagstore.UnavailableError if one of them may serve it later, and otherwise what they
// said.
func (bs *IndexBackedBlockstore) unread(c cid.Cid, failed []failing) error {
	e := &readError{c: c}
	away := &dagstore.UnavailableError{}
	for _, f := range failed {
		e.causes = append(e.causes, f.err)
		if passing(f.err) {
			bs.addAway(away, f)
		}
	}
	if len(away.Shards) == 0 {
		return e
	}
	bs.counts.unavailable.Add(1)
	away.Multihash = c.Hash()
	if len(e.causes) > 1 {
		away.Reason = e
	}
	return away
}

// addAway adds a shard to those that cannot serve a block now.
func (bs *IndexBackedBlockstore) addAway(away *dagstore.UnavailableError, f failing) {
	const most = 16
	u := dagstore.UnavailableError{Reason: f.err, Since: bs.failures.since(f.key), RetryAfter: bs.failures.keep}
	if u.RetryAfter == 0 {
		u.RetryAfter = time.Second
	}
	var known *dagstore.UnavailableError
	if errors.As(f.err, &known) {
		u.Since, u.RetryAfter = known.Since, known.RetryAfter
		if known.Reason != nil && len(known.Shards) == 1 {
			u.Reason = known.Reason
		}
	}
	if len(away.Shards) == 0 {
		away.Reason, away.Since, away.RetryAfter = u.Reason, u.Since, u.RetryAfter
	}
	if u.RetryAfter > 0 && (away.RetryAfter == 0 || u.RetryAfter < away.RetryAfter) {
		away.RetryAfter = u.RetryAfter
	}
	if len(away.Shards) < most {
		away.Shards = append(away.Shards, f.key)
	}
}

// passing says that a failure may be over by itself: all that tells nothing about the
// block's bytes.
func passing(err error) bool {
	switch {
	case errors.Is(err, dagstore.ErrUnavailable):
		return true
	case errors.Is(err, dagstore.ErrBlockCorrupt), errors.Is(err, io.ErrUnexpectedEOF), mount.IsContent(err):
		return false
	case errors.Is(err, dagstore.ErrClosed), errors.Is(err, errNotTold), errors.Is(err, ErrNoShardSelected):
		return false
	}
	return true
}

// unknown passes on what a lookup says that does not mean that there is no such block.
func (bs *IndexBackedBlockstore) unknown(c cid.Cid, err error) error {
	if errors.Is(err, dagstore.ErrUnavailable) {
		bs.counts.unavailable.Add(1)
	}
	var away *dagstore.UnavailableError
	if errors.As(err, &away) && away.Multihash != nil {
		return err // which names the block
	}
	return fmt.Errorf("look up block %s: %w", c, err)
}

// isAbsent says that an error means that the block, or its shard, is not there.
func isAbsent(err error) bool {
	return !isUnknown(err) && (ipld.IsNotFound(err) || errors.Is(err, dagstore.ErrShardUnknown))
}

// asFailure hides from errors.Is that a failure has a not-found among its causes: a
// source that is missing, say, does not mean that the block does not exist.
func asFailure(err error) error {
	if isAbsent(err) || errors.Is(err, ErrBlockNotFound) || errors.Is(err, ds.ErrNotFound) {
		return errors.New(err.Error())
	}
	return err
}
