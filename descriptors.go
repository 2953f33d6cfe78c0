package dagstore

// Descriptors are a resource of the process. Whoever keeps shards open for later use
// takes a share of what there may be, and gives it back when there are none left.

// perOpenShard is how many descriptors an open shard takes: its source and its index.
const perOpenShard = 2

// ShardsToKeepOpen is how many shards one who keeps them open for later use does best to
// keep, if nobody says otherwise: as many as take a quarter of the descriptors that the
// process may have, and at least four. What is in use is not in that, nor are fetches and
// what the rest of the process does. It is the default bound of [Config.IdleHandles] and
// of package indexbs; where nobody knows a limit it is 1<<20.
func ShardsToKeepOpen() int {
	limit, known := descriptorLimit()
	if !known {
		return 1 << 20
	}
	return int(min(max(limit/4/perOpenShard, 4), 1<<20))
}
