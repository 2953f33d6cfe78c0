package dagstore

import "github.com/dagstore/dagstore/internal/fsio"

// Descriptors are a resource of the process. Whoever keeps shards open for later use
// takes a share of what there may be, and gives it back when there are none left.

// perOpenShard is how many descriptors an open shard takes: its source and its index.
const perOpenShard = 2

// ShardsToKeepOpen is how many shards one who keeps them open for later use does best to
// keep, if nobody says otherwise: as many as take a quarter of the descriptors that the
// process may have, and at least four. What is in use is not in that, nor are fetches and
// what the rest of the process does. It bounds the default of [Config.IdleHandles], and
// that of package indexbs.
func ShardsToKeepOpen() int { return max(fsio.MaxOpen()/4/perOpenShard, 4) }
