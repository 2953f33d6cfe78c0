// Package shard says what a shard is called, which state it is in, and what
// happened to it.
//
// A shard is one CAR file, wherever it lives. Its name is a [Key]; its identity
// is (Key, Gen), where Gen is the sequence number of the event that registered
// it, so that a key used again after a Destroy is another shard. What is known of
// it durably is a [State]; what changes a state is an [Event], the one kind of
// record the journal holds. An event carries the whole state after the change, so
// folding events sets values and runs no rules:
//
//	state(n) = event(n).State        for the newest event n of the key
//	exists   = event(n).Kind ≠ Destroyed
//
// The package does no I/O.
package shard
