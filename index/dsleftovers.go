package index

import (
	"context"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
)

// legacyNamespace is where the predecessor kept its entries.
var legacyNamespace = ds.NewKey("/inverted/index")

// Unused counts the entries in the datastore that nobody asks any more: the
// predecessor's, and once a store answers in place of the datastore ([DSInverted.ServeFrom])
// its own.
func (d *DSInverted) Unused(ctx context.Context) (entries int, err error) {
	err = d.unused(ctx, func(ds.Key) error { entries++; return nil })
	return entries, err
}

// RemoveUnused removes them and returns how many there were.
func (d *DSInverted) RemoveUnused(ctx context.Context) (removed int, err error) {
	var b ds.Batch
	pending := 0
	commit := func() error {
		if pending == 0 {
			return nil
		}
		removed, pending = removed+pending, 0
		return b.Commit(ctx)
	}
	err = d.unused(ctx, func(k ds.Key) (err error) {
		if pending == 0 {
			if b, err = d.whole.Batch(ctx); err != nil {
				return err
			}
		}
		if err := b.Delete(ctx, k); err != nil {
			return err
		}
		if pending++; pending < invertedChunk {
			return nil
		}
		return commit()
	})
	if err == nil {
		err = commit()
	}
	if err == nil {
		err = d.whole.Sync(ctx, ds.NewKey("/inverted"))
	}
	return removed, err
}

func (d *DSInverted) unused(ctx context.Context, visit func(ds.Key) error) error {
	spaces := []ds.Key{legacyNamespace}
	if d.server.Load() != nil {
		spaces = append(spaces, invertedNamespace)
	}
	for _, space := range spaces {
		results, err := d.whole.Query(ctx, query.Query{Prefix: space.String(), KeysOnly: true})
		if err != nil {
			return err
		}
		var keys []ds.Key // not removed while they are listed
		for r := range results.Next() {
			if r.Error != nil {
				results.Close()
				return r.Error
			}
			keys = append(keys, ds.RawKey(r.Key))
		}
		if err := results.Close(); err != nil {
			return err
		}
		for _, k := range keys {
			if err := visit(k); err != nil {
				return err
			}
		}
	}
	return nil
}
