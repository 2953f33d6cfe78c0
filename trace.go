package dagstore

import (
	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/shard"
)

// OpType is a kind of operation on a shard.
type OpType int

const (
	OpShardRegister OpType = iota
	OpShardInitialize
	OpShardMakeAvailable
	OpShardDestroy
	OpShardAcquire
	OpShardFail
	OpShardRelease
	OpShardRecover
)

var opNames = [...]string{
	"OpShardRegister", "OpShardInitialize", "OpShardMakeAvailable", "OpShardDestroy",
	"OpShardAcquire", "OpShardFail", "OpShardRelease", "OpShardRecover",
}

// String returns the constant's name, or nothing for a value that has none.
func (o OpType) String() string {
	if o < 0 || int(o) >= len(opNames) {
		return ""
	}
	return opNames[o]
}

// Trace tells of one operation and the state of the shard right after it.
type Trace struct {
	Key   shard.Key
	Op    OpType
	After ShardInfo
}

// trace passes on an operation that the machine labelled.
func (e *eventLoop) trace(lv *live, t *fsm.Traced) {
	if e.initialising && OpType(t.Op) == OpShardAcquire {
		return
	}
	refs := t.Refs
	if refs == 0 && t.Parked > 0 {
		refs = 1
	}
	e.d.traces.send(Trace{Key: lv.key, Op: OpType(t.Op), After: ShardInfo{
		ShardState: stateOf(t.Life, refs), Error: t.Cause, refs: uint32(t.Refs),
	}})
}
