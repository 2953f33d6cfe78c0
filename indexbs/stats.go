package indexbs

import "sync/atomic"

// Stats counts what happened since the blockstore was made. All but OpenNow only grow.
type Stats struct {
	// Hits counts reads that found their shard open, Opens accessors that were acquired,
	// and OpenNow those that are in the cache. A batch counts one for each shard that it
	// reads from.
	Hits, Opens uint64
	OpenNow     int
	// Evictions counts accessors that made room for others, Expiries those that were not
	// used for Options.IdleFor, Late those that came when nobody waited any more and were
	// closed at once.
	Evictions, Expiries, Late uint64
	// Failures counts shards that could not be opened or not be read a block from,
	// Fallbacks the reads of a block that went on to another shard after one.
	Failures, Fallbacks uint64
	// FailedHits counts blocks that were not read because all their shards had failed
	// within Options.FailedFor, NotFoundHits those that were not looked up because they
	// had not been found within Options.NotFoundFor.
	FailedHits, NotFoundHits uint64
	// Unavailable counts reads of a block that ended with a *dagstore.UnavailableError.
	Unavailable uint64
	// LetGo counts accessors that were closed because the store asked for them or Evict
	// was called, Shortages acquires that were tried again after the process had no
	// descriptors.
	LetGo, Shortages uint64
	// CutListings counts listings of all keys that ended early.
	CutListings uint64
}

// counters are what Stats counts that the cache does not.
type counters struct {
	failures, fallbacks, failedHits, notFoundHits, unavailable, cutListings atomic.Uint64
}

// Stats returns the counters. Each is exact; together they are of about one moment.
func (bs *IndexBackedBlockstore) Stats() Stats {
	a := &bs.cache
	s := Stats{
		Hits: a.hits(), Opens: a.counts.opens.Load(), OpenNow: a.len(),
		Evictions: a.counts.evictions.Load(), Expiries: a.counts.expiries.Load(), Late: a.counts.late.Load(),
		Failures: bs.counts.failures.Load(), Fallbacks: bs.counts.fallbacks.Load(),
		FailedHits: bs.counts.failedHits.Load(), NotFoundHits: bs.counts.notFoundHits.Load(),
		Unavailable: bs.counts.unavailable.Load(), LetGo: a.counts.letGo.Load(), Shortages: a.counts.shortages.Load(),
		CutListings: bs.counts.cutListings.Load(),
	}
	return s
}
