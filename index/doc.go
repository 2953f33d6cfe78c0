// Package index answers two questions: where in a shard a block lies, and which
// shards hold a block.
//
// The first is the shard index: one immutable, checksummed file per shard
// generation, searched in place ([ShardIndex]), made from a CAR by [Build] as a
// [Draft] and kept by a [LifeRepo]. The second is the top-level index: [Inverted] for
// those who bring their own; a store's own is in package index/toplevel.
//
//	CAR ──Build──▶ Draft ──PutIndex──▶ file ──OpenIndex──▶ ShardIndex ──Find──▶ Entry
//	                 └─Multihashes──▶ Inverted ──GetShardsForMultihash──▶ shard keys
//
// # Memory
//
// A [Draft] is sorted in memory, or, if BuildOptions.Spill gives it temporary files, in
// runs on the disk that are merged while the index is written: then a build takes
// BuildOptions.Memory, whatever the file claims. Builds that run at once share a
// [MemoryPool]. The index is the same byte by byte.
//
// # Binding
//
// An index is bound to the source it was built from by the source's size, the
// position and SHA-256 of its CAR header, its roots, and the content digest that
// [shard.IndexInfo] carries:
//
//	SHA-256("dagstore car content 1\n" ‖ CARv1 header with its length prefix ‖
//	        for each section in file order: offset ‖ CID ‖ data length)
//
// with offset (relative to the CARv1 payload) and data length as 8 bytes, little
// endian. A CID is self-delimiting, so the form is unambiguous; with every block
// checked against its CID the digest commits to the whole content for the price of
// hashing some fifty bytes a block.
package index
