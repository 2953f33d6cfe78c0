// Package toplevel is the top-level index on disk: multihash to the shards that hold
// it, for 10⁹ entries on one machine.
//
// An entry is 12 bytes of fingerprint and one to four that name an ingest: one life of
// one shard with one content. Entries lie in sorted runs that are used in place. What
// is added becomes a run in memory; runs in memory become one on disk when there are
// enough of them; runs on disk are merged in tiers, beside everything else.
//
//	Add ──▶ runs in memory ──flush──▶ run on disk ─┐
//	                                  run on disk ─┴─merge──▶ larger run on disk
//
// # Fingerprints
//
// A fingerprint is 96 bits of SipHash-2-4-128 (Aumasson, Bernstein, "SipHash: a fast
// short-input PRF", 2012) of the whole multihash under a key that every index draws for
// itself. So fingerprints are uniform whatever hash functions the multihashes are of
// and whoever chose the blocks, which is what makes a lookup two probes; and for n
// entries a lookup names a shard that does not hold the block with probability n/2⁹⁶,
// which nobody can raise who does not know the key. Whoever reads a block finds out in
// the shard's own index.
//
// # Liveness
//
// An ingest is live if the catalogue says so: [Hooks].Alive. Removing a shard is a
// change of the catalogue and costs nothing here. Entries of ingests that are not live
// are left out when runs are merged, and a run with more dead entries than live ones is
// merged with itself.
//
// # Durability
//
// The index is derived: every ingest can be added again from its shard's own index. A
// manifest names the runs and carries a mark, the position up to which they hold
// everything; it is replaced atomically, so rows and position are of one moment. What
// was only in memory when the process ended is added again from there on. A run or a
// manifest that is damaged costs that work and no answer: a lookup that meets damage is
// an error, never "not found".
//
//	manifest on disk = {mark, runs}     everything added before mark is in runs
//	a file goes     ⇒ no durable manifest names it
//
// # Cost
//
// On disk, an entry takes 12 bytes, 1 to 4 for the ingest, 1.13 of filter, 0.25 of
// directory and checksums: 15 to 18. In memory, the filter and the directory as far as
// they are used, through the page cache. While it is not on disk yet an entry takes 16
// bytes and a filter's, [Options].Memory in all. A lookup that finds nothing asks one
// filter a run; one that finds something reads one bucket of some 32 entries, and
// checks it, in each run that has it.
package toplevel
