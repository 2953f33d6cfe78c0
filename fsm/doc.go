// Package fsm is the shard machine: a pure function from (state, input) to
// (state, events, effects, replies), written as one table of transitions.
//
// The machine is a small coloured Petri net. A shard is a token whose colour is
// its [Shard] value; its places are the machines it is composed of (life, data,
// index, handle) and what is volatile about it (refs, parked requests). The
// [Net] holds the places that shards share: fetch, index and open slots, and
// whether the journal can be written. A running job holds one token of a slot
// place; nothing else counts tokens, so
//
//	used(slot) = number of running jobs that hold one     (N5)
//
// Everything else comes from the table in table.go: [Net.Step], which re-evaluates
// exactly the automatic transitions that read a place which changed; [Explain],
// which evaluates the same guards; [Mermaid] and [Markdown], the pictures in the
// documentation (docs/MACHINE.md); and the model check in the tests.
//
// The package does no I/O and keeps no time: it imports neither context, sync,
// time, io nor os. Callers say what time it is.
package fsm
