// Package status shows over HTTP how a store, or a follower, is: whether it lives and
// is ready, how fresh its views are, what shards there are, and why something is not
// done yet.
//
//	h := status.Handler(store)                    // mount it where you like
//	err := status.Serve(ctx, "", store)           // or by itself, on 127.0.0.1:7070
//
//	GET /healthz     200 while the store lives, else 503
//	GET /readyz      200 while it serves with the freshness it promises, else 503
//	GET /freshness   all views; ?view=NAME one, waited for
//	GET /shards      a page: ?prefix= ?state= ?limit= ?cursor=
//	GET /history     ?key=   every life and event
//	GET /explain     ?key= or ?cid=   why it is not done yet; text if text/plain is asked for
//	GET /find        ?cid= or ?multihash=   which shards hold a block
//	GET /machine     the shard machine as a Markdown table; ?diagram=life|data|index|handle in Mermaid
//
// # Freshness
//
// A question says how fresh its answer has to be in the header Dagstore-Consistency (or
// the parameter consistency):
//
//	any | latest | within=500ms | at-least=TOKEN | at-least-seq=N | as-of=TOKEN
//
// and in Dagstore-Wait how long it may be waited for, 5 s unless told and at most. A
// header that is there and cannot be read is an error and never means any. Answers carry
//
//	Dagstore-Position   the token of what the answer shows, for the next question
//	Dagstore-Head       the sequence number of the journal's end
//	Dagstore-Lag        by how many events the view is behind
//	Dagstore-State      what the view is doing
//
// An answer that is not fresh in time is 425 Too Early (RFC 8470) with Retry-After, and of
// /find 503: which shards hold the block is not known yet, which is not the 404 of a block
// that is in none. A block or shard that cannot be served now is 503 too.
// Errors are application/problem+json (RFC 9457). They say what the caller can act on
// and nothing of the inside.
//
// Everything is read-only. Keys, URLs without their secrets, and reasons of failures are
// shown: do not serve it to strangers.
package status
