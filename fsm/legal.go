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

// Legal says whether e may be appended to the journal when durable is the life
// that the newest event of its key recorded, None if there is none. A caller asks
// before it writes, and panics rather than write an illegal event: the table is
// wrong then, or was not used.
func Legal(durable shard.Life, e Event) bool {
	return int(durable) < len(legal) && legal[durable]&(1<<e.Kind) != 0 && becomes[e.Kind] == e.Life
}
