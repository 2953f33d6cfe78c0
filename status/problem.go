package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/dagstore/dagstore"
)

// problem is an error that the caller is told, after RFC 9457.
type problem struct {
	kind   string // the last part of the type
	code   int
	detail string
	err    error
	more   map[string]any // extension members
}

func (p *problem) Error() string { return p.detail }
func (p *problem) Unwrap() error { return p.err }

func badRequest(format string, args ...any) error {
	return &problem{kind: "bad-request", code: http.StatusBadRequest, detail: fmt.Sprintf(format, args...)}
}

var (
	errMethod    = &problem{kind: "method-not-allowed", code: http.StatusMethodNotAllowed, detail: "this page is only read: GET or HEAD"}
	errLongQuery = &problem{kind: "query-too-long", code: http.StatusRequestURITooLong, detail: fmt.Sprintf("the query is longer than %d bytes", maxQuery)}
	errBusy      = &problem{kind: "busy", code: http.StatusServiceUnavailable, detail: "too many requests at a time; try again"}
)

// titles are the short names of the kinds of problem.
var titles = map[string]string{
	"bad-request": "The request cannot be read", "bad-consistency": "The consistency cannot be read",
	"method-not-allowed": "Method not allowed", "query-too-long": "Query too long", "busy": "Too busy",
	"not-fresh": "Not fresh enough in time", "future-position": "Position beyond the journal",
	"foreign-position": "Position of another journal", "compacted": "No longer kept",
	"unknown-shard": "No such shard", "unknown-view": "No such view", "no-shard": "No shard holds the block",
	"unavailable": "Cannot be served now",
	"not-found":   "No such page", "closed": "The store is closed", "internal": "Something went wrong",
}

// unknownYet is the answer of a lookup that is not fresh enough: 503 and not 425, for it
// is to a question that may be asked in passing, by who knows nothing of freshness.
type unknownYet struct{ error }

func (u *unknownYet) Unwrap() error { return u.error }

// judge finds the problem that an error is. What the caller cannot act on is told in
// general terms only.
func judge(err error) *problem {
	var p *problem
	var stale *dagstore.NotFreshError
	var none *dagstore.NoShardError
	var away *dagstore.UnavailableError
	var lookup *unknownYet
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &away):
		return &problem{kind: "unavailable", code: http.StatusServiceUnavailable, detail: "a shard that holds it cannot serve now", err: err,
			more: map[string]any{"shards": away.Shards, "since": away.Since.UTC(), "retryAfterSeconds": away.RetryAfter.Seconds()}}
	case errors.As(err, &stale):
		code := http.StatusTooEarly
		if errors.As(err, &lookup) {
			code = http.StatusServiceUnavailable
		}
		return &problem{kind: "not-fresh", code: code,
			detail: fmt.Sprintf("view %q shows event %d of %d and is %s", stale.View, stale.Had.Seq, stale.Head.Seq, stale.State), err: err,
			more: map[string]any{"view": stale.View, "wanted": stale.Want.Seq, "had": stale.Had.Seq, "head": stale.Head.Seq,
				"state": stale.State.String(), "retryAfterSeconds": stale.RetryAfter.Seconds()}}
	case errors.As(err, &none):
		return &problem{kind: "no-shard", code: http.StatusNotFound, detail: fmt.Sprintf("no available shard holds the block as of event %d", none.AsOf.Applied.Seq), err: err,
			more: map[string]any{"asOf": none.AsOf.Applied.Seq, "head": none.AsOf.Head.Seq, "position": none.AsOf.Applied.Token()}}
	case errors.Is(err, dagstore.ErrFuturePosition):
		// The resource may come to be in that state, and is not: 409.
		return &problem{kind: "future-position", code: http.StatusConflict, detail: "the position lies beyond the end of the journal; whoever was told it was told by another store, or by a former course of this one", err: err}
	case errors.Is(err, dagstore.ErrForeignPosition):
		return &problem{kind: "foreign-position", code: http.StatusConflict, detail: "the position is of another journal", err: err}
	case errors.Is(err, dagstore.ErrCompacted):
		return &problem{kind: "compacted", code: http.StatusGone, detail: "the history there is no longer kept", err: err}
	case errors.Is(err, dagstore.ErrNoPosition), errors.Is(err, dagstore.ErrBadToken), errors.Is(err, dagstore.ErrBadCursor):
		return &problem{kind: "bad-request", code: http.StatusBadRequest, detail: "a position or cursor is missing or cannot be read", err: err}
	case errors.Is(err, dagstore.ErrUnknownView):
		return &problem{kind: "unknown-view", code: http.StatusNotFound, detail: "no view is registered under that name", err: err}
	case errors.Is(err, dagstore.ErrShardUnknown):
		return &problem{kind: "unknown-shard", code: http.StatusNotFound, detail: "no shard has that key", err: err}
	case errors.Is(err, errNoPage):
		return &problem{kind: "not-found", code: http.StatusNotFound, detail: "there is no such page", err: err}
	case errors.Is(err, dagstore.ErrClosed), errors.Is(err, dagstore.ErrNotStarted), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &problem{kind: "closed", code: http.StatusServiceUnavailable, detail: "the store is not open, or the request has ended", err: err}
	}
	return &problem{kind: "internal", code: http.StatusInternalServerError, detail: "the log has the details", err: err}
}

func (h *handler) problem(w http.ResponseWriter, r *http.Request, err error) {
	p := judge(err)
	if p.kind == "internal" {
		h.log.Error("status: a page failed", "page", r.URL.Path, "err", err)
	}
	head := w.Header()
	var stale *dagstore.NotFreshError
	var away *dagstore.UnavailableError
	switch {
	case errors.As(err, &away):
		head.Set("Retry-After", retryAfter(away.RetryAfter))
	case errors.As(err, &stale):
		head.Set("Retry-After", retryAfter(stale.RetryAfter))
		head.Set("Dagstore-Position", stale.Had.Token())
	case p.code == http.StatusServiceUnavailable:
		head.Set("Retry-After", "1")
	}
	body := map[string]any{"type": "/problems/" + p.kind, "title": titles[p.kind], "status": p.code, "detail": p.detail, "instance": r.URL.EscapedPath()}
	for k, v := range p.more {
		body[k] = v
	}
	b, merr := json.MarshalIndent(body, "", "  ")
	if merr != nil {
		b = []byte(`{"type":"/problems/internal","status":500}`)
	}
	head.Set("Content-Type", "application/problem+json")
	write(w, p.code, append(b, '\n'))
}
