// Package export writes a DAG, or what a selector matches of it, as a CARv1 stream while
// it walks it, out of one shard or of several.
//
//	acc, _ := store.AcquireShardSync(ctx, key, dagstore.AcquireOpts{})
//	res, err := export.DAG(ctx, w, acc.ShardBlockstore(), []cid.Cid{root}, export.Options{SkipVerify: true})
//
// Blocks come depth first, a block before those that it links to, and its links in their
// order, each block once (or each time that it is met: [Options].Duplicates). That is the
// order "dfs" of the trustless gateway's CARs. Blocks under an identity CID are followed
// and not written: the CID is the block.
//
// Blocks of DAG-PB, DAG-CBOR, DAG-JSON and raw are decoded, those of other codecs with
// [Options].Decoders. A selector may go through ADLs, such as UnixFS's, for which
// [Options].Reifiers has the code:
//
//	opts.Reifiers = map[string]linking.NodeReifier{"unixfs": unixfsnode.Reify}
//	res, err := export.Selector(ctx, w, src, root, unixfsnode.UnixFSPathSelector("dir/file"), opts)
//
// # Bounds
//
// A DAG of a stranger may be deep, wide, or small and met exponentially often. So a walk
// ends with a [*LimitError] when it passes one of these; each is an option.
//
//	depth       links on the way from a root          10,000
//	links       met, followed or not                  100,000,000
//	links of one block                                1,000,000
//	links waiting to be followed                      4,000,000
//	blocks      written                               10,000,000
//	bytes       written                               none
//	block size                                        32 MiB
//
// A walk holds one block, the links that wait (some 80 bytes each) and, unless duplicates
// are written, the CIDs that it has met (some 100 bytes each).
//
// # What a reader of the stream sees
//
// Nothing is written before the block of the first root was had, is what its CID says, and
// is decoded: a handler whose export failed with Result.Bytes = 0 can still answer 404 (an
// ipld.ErrNotFound) or 503 (a *dagstore.UnavailableError). Other roots are found missing
// when their turn comes.
//
// A CAR has no end mark. After an error the stream ends after a whole section, if w took
// all that it was given; [Result] says how much is good. Whoever sends it on must break
// the transfer off, so that the receiver does not take it for all.
package export
