package dagstore

import (
	"testing"

	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/shard"
)

// TestFailureKeepsWhatWasHeld: the event of a shard that fails says what its index held
// when that was last durable, and an event that is only on its way changes nothing of
// that. Proves A2.
func TestFailureKeepsWhatWasHeld(t *testing.T) {
	held, next := shard.IndexInfo{Blocks: 1}, shard.IndexInfo{Blocks: 2}
	lv := &live{key: shard.KeyFromString("s"), was: held}
	lv.s.Info = next
	if ev := lv.event(fsm.Event{Kind: shard.EventIndexed, Life: shard.Available}, 0); ev.State.Index != next {
		t.Errorf("indexed: %+v", ev.State.Index)
	}
	for kind, life := range map[shard.Kind]shard.Life{shard.EventFailed: shard.Errored, shard.EventRecovering: shard.Recovering} {
		if ev := lv.event(fsm.Event{Kind: kind, Life: life}, 0); ev.State.Index != held {
			t.Errorf("%s: %+v, want what was durable", kind, ev.State.Index)
		}
	}
}
