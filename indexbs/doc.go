// Package indexbs is a read-only blockstore over all shards of a store: ask for a
// CID, and whichever shard holds it answers.
//
//	bs, err := indexbs.NewIndexBackedBlockstore(ctx,
//		&indexbs.IdxBstoreDagstoreFromDagstore{Interface: store}, selector, 100, time.Minute)
//	blk, err := bs.Get(ctx, c)
//
// A read looks up which shards hold the block, lets the selector choose one, takes
// an accessor of it out of the cache or acquires one, and reads. If that fails, the
// selector is asked again without the shard that failed. Not found is said only
// when no shard that was asked failed otherwise.
//
// The package is apart from the core because its constructor's signature, which is
// the predecessor's, names the archived go-ipfs-blockstore.
package indexbs
