// Package indexbs is a read-only blockstore over all shards of a store: ask for a
// CID, and whichever shard holds it answers.
//
//	bs, err := indexbs.New(ctx, &indexbs.IdxBstoreDagstoreFromDagstore{Interface: store}, indexbs.Options{})
//	blk, err := bs.Get(ctx, c)
//	all, err := bs.GetMany(ctx, cids)
//
// A read looks up which shards hold the block, lets the [Policy] choose one, takes
// an accessor of it out of the cache or acquires one, and reads. If that fails, the
// policy is asked again without the shard that failed. Not found is said only
// when no shard that was asked failed otherwise, and says as of when.
//
// What is remembered, all of it bounded, and none of it able to make an answer wrong:
//
//	accessors   the least recently used makes room, or goes when it was idle for long
//	hot blocks  in which open shard a block was found: saves its lookup
//	failures    for seconds: which shards cannot be opened, which blocks not be read
//	absences    if asked for: blocks in no shard, while the index does not move
//
// [NewIndexBackedBlockstore] is the predecessor's constructor, which remembers the first
// of these only.
//
// The package is apart from the core because that constructor's signature names the
// archived go-ipfs-blockstore.
package indexbs
