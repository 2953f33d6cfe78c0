package fsm

import "github.com/dagstore/dagstore/shard"

// legal says which kinds of event may follow each durable life, written by hand
// and not derived from the table, so that one can be held against the other:
//
//	none       → registered
//	registered → indexed, failed, destroyed
//	available  → failed, recovering, destroyed
//	errored    → recovering, destroyed
//	recovering → indexed, failed, recovering, destroyed
//
// A recovery whose outcome could not be recorded is errored until it is recovered
// once more, while the journal still says recovering.
// Initialising is never durable: nothing leads to it and nothing may follow it.
var legal = [...]uint{
	shard.None:         1 << shard.EventRegistered,
	shard.Registered:   1<<shard.EventIndexed | 1<<shard.EventFailed | 1<<shard.EventDestroyed,
	shard.Initialising: 0,
	shard.Available:    1<<shard.EventFailed | 1<<shard.EventRecovering | 1<<shard.EventDestroyed,
	shard.Errored:      1<<shard.EventRecovering | 1<<shard.EventDestroyed,
	shard.Recovering:   1<<shard.EventIndexed | 1<<shard.EventFailed | 1<<shard.EventRecovering | 1<<shard.EventDestroyed,
}

// becomes is the life that each kind of event leads to.
var becomes = [...]shard.Life{
	shard.EventRegistered: shard.Registered,
	shard.EventIndexed:    shard.Available,
	shard.EventFailed:     shard.Errored,
	shard.EventRecovering: shard.Recovering,
	shard.EventDestroyed:  shard.None,
}

// legalNext says whether the machine may want e recorded of a shard whose newest
// event recorded the life durable, none if there is none. It is narrower than
// [shard.CheckNext], the relation that every journal obeys and that is asked before
// each write: a store also records a recovery of a shard whose mount it cannot make.
func legalNext(durable shard.Life, e Event) bool {
	return int(durable) < len(legal) && legal[durable]&(1<<e.Kind) != 0 && becomes[e.Kind] == e.Life
}
