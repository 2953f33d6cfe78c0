package dagstore

import (
	"context"
	"errors"
	"fmt"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// maxListingErrors is how many errors of shards a listing of all keys tells.
const maxListingErrors = 16

// AllMultihashes calls visit with the multihash of every block of every shard, in no
// particular order; blocks of several shards, and blocks that are in a shard more than
// once, may come as often. h is valid during the call only. Sources are not looked at, so
// shards whose sources are away are listed too.
//
// The result is nil only if all of them were listed, as of the catalogue at the call. A
// shard that was indexed and whose index cannot be had or read is an error, joined with
// those of up to 15 others, and the others are listed all the same. Shards that were never
// indexed are not counted: nobody knows what they hold. An error of visit ends the listing
// and is returned as it is, and so is that of ctx.
func (d *DAGStore) AllMultihashes(ctx context.Context, visit func(h mh.Multihash) error) error {
	if err := d.fresher(); err != nil {
		return err
	}
	var missing []error
	more := 0
	var stop error
	d.cat.Snapshot().All(func(rec *projection.Record) bool {
		if stop = ctx.Err(); stop != nil {
			return false
		}
		err := d.multihashesOf(ctx, rec, func(h mh.Multihash) error {
			if stop = visit(h); stop == nil {
				stop = ctx.Err()
			}
			return stop
		})
		switch {
		case stop != nil:
			return false
		case err == nil || !d.isNewest(rec) && d.cat.Get(rec.Key()) == nil: // it ended meanwhile
		case len(missing) < maxListingErrors:
			missing = append(missing, err)
		default:
			more++
		}
		return true
	})
	switch {
	case stop != nil:
		return stop
	case more > 0:
		missing = append(missing, fmt.Errorf("and of %d shards more", more))
	}
	return errors.Join(missing...)
}

// multihashesOf lists one shard.
func (d *DAGStore) multihashesOf(ctx context.Context, rec *projection.Record, visit func(mh.Multihash) error) error {
	switch rec.Life() {
	case shard.Available:
	case shard.Errored, shard.Recovering:
		if rec.Index() == (shard.IndexInfo{}) {
			return nil
		}
		i := d.recordInfo(rec)
		return &UnavailableError{Shards: []shard.Key{rec.Key()}, Reason: i.Error}
	default:
		return nil
	}
	return d.guarded("list the multihashes of a shard", func() error {
		it, done, err := d.indices.multihashes(rec.Key(), rec.Gen())
		if err != nil {
			return fmt.Errorf("list shard %q: index: %w", rec.Key(), err)
		}
		defer done()
		if err := it.ForEach(visit); err != nil {
			return fmt.Errorf("list shard %q: index: %w", rec.Key(), err)
		}
		return nil
	})
}

// listingCut counts and logs a listing that ended early, for those whose interface has
// no room for an error. That it was given up by who asked for it is only counted.
func (d *DAGStore) listingCut(what string, err error) {
	d.listingsCut.Add(1)
	if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		d.log.Warn("a listing of keys ended early", "of", what, "err", err)
	}
}
