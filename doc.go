// Package dagstore keeps a catalogue of shards, which are CAR files wherever they
// live, indexes them, and serves their blocks. It is embedded: one process, one
// directory, no server.
//
//	store, err := dagstore.Open(ctx, dir)
//	res, err := store.RegisterShardSync(ctx, shard.KeyFromString("movies"), &mount.FileMount{Path: "/cars/movies.car"}, dagstore.RegisterOpts{})
//	acc, err := store.AcquireShardSync(ctx, shard.KeyFromString("movies"), dagstore.AcquireOpts{})
//	bs, err := acc.Blockstore()
//	blk, err := bs.Get(ctx, c)
//	acc.Close()
//
// # The loop in five lines
//
// One goroutine owns all shard state (eventloop.go). A turn takes inputs off three
// queues, internal before completion before external, and steps each through the
// machine of package fsm. The events of a turn go to the journal as one batch; what
// depends on them (effects, answers, the catalogue) waits for the batch and for
// nothing else. Work runs on bounded goroutines and comes back as completions.
// Answers go to the channels the callers supplied and never hold anybody up.
//
// # Promises
//
// What was told survives a crash; what is visible is durable. A request gets one
// answer. Bytes served for a CID hash to it. docs/GUARANTEES.md has every promise
// as a row with the tests that prove it.
package dagstore
