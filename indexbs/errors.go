package indexbs

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/dagstore/dagstore"
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

// isAbsent says that an error means that the block, or its shard, is not there.
func isAbsent(err error) bool {
	return ipld.IsNotFound(err) || errors.Is(err, dagstore.ErrShardUnknown)
}

// asFailure hides from errors.Is that a failure has a not-found among its causes: a
// source that is missing, say, does not mean that the block does not exist.
func asFailure(err error) error {
	if isAbsent(err) || errors.Is(err, ErrBlockNotFound) || errors.Is(err, ds.ErrNotFound) {
		return errors.New(err.Error())
	}
	return err
}
