// Package projection holds the views of the journal, and what runs them.
//
// A view is a fold over the journal's batches. It has a name, a version and a
// position, the prefix of the journal that it shows; it applies whole batches only,
// so what it shows is always the state after some batch:
//
//	state = fold(events 1..Position().Seq)
//
// Applying a batch that the view already shows changes nothing. The [Catalogue] is
// the first view: key to the newest durable state. Others implement [View] and are
// registered with a [Runner], which feeds them, checkpoints them, knows how fresh
// they are, and lets readers wait until they are fresh enough.
//
// The order of a view's work is
//
//	apply → publish → checkpoint
//
// so a checkpoint describes what was visible, and losing one costs a longer replay
// and nothing else. Whatever becomes of checkpoints,
//
//	state = fold(base of the journal, events behind it)
//	      = fold(checkpoint, events behind it)        for a checkpoint that is used
//
// What a view is and can be is in view.go, and checked by
// projection/projectiontest; how fresh one is and can be asked to be in freshness.go
// and consistency.go. The runner is told of commits (runner.go), feeds views
// (feed.go), lets readers wait (wait.go), writes checkpoints (checkpoint.go,
// runner_save.go), and begins with them (runner_recover.go).
package projection
