// Package indexbs is a read-only blockstore over all shards of a store: ask for a
// CID, and whichever shard holds it answers.
//
//	bs, err := indexbs.Of(store)
//	blk, err := bs.Get(ctx, c)
//	all, err := bs.GetMany(ctx, cids)
//
// A read looks up which shards hold the block, lets the [Policy] choose one, takes
// an accessor of it out of the cache or acquires one, and reads. If that fails, the
// policy is asked again without the shard that failed. There are three answers beside
// the block, and none is ever given for another:
//
//	ipld.ErrNotFound            it is in no shard, as of a position of the journal
//	dagstore.UnavailableError   shards hold it and cannot serve it now; why, since when,
//	                            and when to ask again
//	dagstore.NotFreshError      the index lacks what it would have to know
//
// What is remembered, all of it bounded, and none of it able to make an answer wrong:
//
//	accessors   the least recently used makes room, or goes when it was idle for long
//	hot blocks  in which open shard a block was found: saves its lookup
//	failures    for seconds: which shards cannot be opened, which blocks not be read,
//	            unless the store itself knows that they are away
//	absences    if asked for: blocks in no shard, while the index does not move
//
// Accessors that are kept are given up when the store asks for them: a shard that is read
// all the time can be destroyed, and what is idle makes room when the process has no
// descriptors left. A block that very many shards hold is looked up in a few of them.
//
// [NewIndexBackedBlockstore] is the predecessor's constructor, which remembers the first
// of these only.
//
// The package is apart from the core because that constructor's signature names the
// archived go-ipfs-blockstore.
package indexbs
