// Package projection holds the views of the journal.
//
// A view is a fold over the journal's batches. It has a position, the prefix of
// the journal that it shows; it applies whole batches only, so what it shows is
// always the state after some batch:
//
//	state = fold(events 1..Position().Seq)
//
// Applying a batch that the view already shows changes nothing. The catalogue is
// the first view: key to the newest durable state.
package projection
