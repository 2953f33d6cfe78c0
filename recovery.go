package dagstore

import (
	"context"

	"github.com/dagstore/dagstore/shard"
)

// RecoverImmediately recovers every shard whose failure is told on failureCh, up to
// maxAttempts times in a row for each. It returns when ctx ends, and then calls
// onDone if that is not nil.
func RecoverImmediately(ctx context.Context, dagst *DAGStore, failureCh chan ShardResult, maxAttempts uint64, onDone func()) {
	if onDone != nil {
		defer onDone()
	}
	attempts := make(map[shard.Key]uint64)
	outcomes := make(chan ShardResult, 128)
	for {
		select {
		case <-ctx.Done():
			return
		case res := <-outcomes:
			// A failure is told on failureCh too; a success starts the count again.
			if res.Error == nil {
				delete(attempts, res.Key)
			}
		case res := <-failureCh:
			if attempts[res.Key] >= maxAttempts {
				dagst.log.Info("recovery: attempts are used up", "shard", res.Key.String(), "attempts", maxAttempts, "err", res.Error)
				continue
			}
			if err := dagst.RecoverShard(ctx, res.Key, outcomes, RecoverOpts{}); err != nil {
				dagst.log.Warn("recovery: not queued", "shard", res.Key.String(), "err", err)
				continue
			}
			attempts[res.Key]++
		}
	}
}
