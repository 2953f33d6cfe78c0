package status

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/dagstore/dagstore"
)

const (
	// maxWait bounds how long a request waits for freshness.
	maxWait = 5 * time.Second
	// maxQuery bounds a request's query in bytes: a key of 512 bytes, escaped, is 1,536.
	maxQuery = 8 << 10
	// maxAtOnce is how many requests are served at a time.
	maxAtOnce = 64
	// maxUnsent is how many bytes of answers wait for callers to receive them before
	// others are made.
	maxUnsent = 64 << 20
)

// Option configures a handler.
type Option func(*handler)

// WithWait sets how long a request may wait for freshness, 5 s unless told.
func WithWait(d time.Duration) Option { return func(h *handler) { h.wait = d } }

// WithConcurrency sets how many answers are made at a time, 64 unless told. Requests
// beyond get 503 with Retry-After, but for /healthz and /readyz.
func WithConcurrency(n int) Option {
	return func(h *handler) { h.slots = make(chan struct{}, max(n, 1)) }
}

// WithLogger sets who hears of errors that the caller is not told in full.
func WithLogger(l *slog.Logger) Option { return func(h *handler) { h.log = l } }

// Handler serves the status of a store; of a follower, hand over its DAGStore. The
// store may be closed before the handler.
func Handler(s *dagstore.DAGStore, opts ...Option) http.Handler {
	h := &handler{store: s, wait: maxWait, slots: make(chan struct{}, maxAtOnce), log: slog.Default()}
	for _, o := range opts {
		o(h)
	}
	mux := http.NewServeMux()
	for pattern, serve := range map[string]func(http.ResponseWriter, *http.Request) error{
		"/freshness": h.freshness,
		"/shards":    h.shards,
		"/history":   h.history,
		"/explain":   h.explain,
		"/find":      h.find,
		"/machine":   h.machine,
		"/{$}":       h.index,
		"/":          func(http.ResponseWriter, *http.Request) error { return errNoPage },
	} {
		mux.Handle(pattern, h.guard(serve))
	}
	// Whoever looks after the process gets an answer however many others wait for theirs.
	mux.Handle("/healthz", h.page(h.healthz))
	mux.Handle("/readyz", h.page(h.readyz))
	return mux
}

type handler struct {
	store *dagstore.DAGStore
	wait  time.Duration
	slots chan struct{}
	log   *slog.Logger
	// unsent is how many bytes of answers are being sent.
	unsent atomic.Int64
}

// guard is page for what takes a slot. The slot is held until the answer is made: how
// long the caller takes to receive it is of no account.
func (h *handler) guard(serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	return h.page(func(w http.ResponseWriter, r *http.Request) error {
		if h.unsent.Load() > maxUnsent {
			return errBusy
		}
		select {
		case h.slots <- struct{}{}:
		default:
			return errBusy
		}
		defer func() { <-h.slots }()
		return serve(w, r)
	})
}

// page is what all pages have in common. Their answers are sent when they are made.
func (h *handler) page(serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("Cache-Control", "no-store")
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		made := &made{ResponseWriter: w}
		err := admit(w, r)
		if err == nil {
			err = serve(made, r)
		}
		if err != nil {
			h.problem(made, r, err)
		}
		h.unsent.Add(int64(len(made.body)))
		defer h.unsent.Add(-int64(len(made.body)))
		made.send()
	})
}

// made is an answer that was made and not sent.
type made struct {
	http.ResponseWriter
	code int
	body []byte
}

func (m *made) WriteHeader(code int) { m.code = code }

func (m *made) Write(b []byte) (int, error) {
	if m.body == nil {
		m.body = b // all that write has
	} else {
		m.body = append(m.body, b...)
	}
	return len(b), nil
}

// send sends it. A caller who left is nobody's error.
func (m *made) send() {
	m.ResponseWriter.WriteHeader(m.code)
	_, _ = m.ResponseWriter.Write(m.body)
}

// admit refuses what is not served.
func admit(w http.ResponseWriter, r *http.Request) error {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		return errMethod
	case len(r.URL.RawQuery) > maxQuery:
		return errLongQuery
	}
	return nil
}

// answer sends v as JSON.
func answer(w http.ResponseWriter, code int, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	write(w, code, append(b, '\n'))
	return nil
}

func text(w http.ResponseWriter, kind, s string) error {
	w.Header().Set("Content-Type", kind+"; charset=utf-8")
	write(w, http.StatusOK, []byte(s))
	return nil
}

// write makes an answer of a body.
func write(w http.ResponseWriter, code int, b []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(code)
	_, _ = w.Write(b)
}

// shows says in the headers what an answer of a view shows.
func shows(w http.ResponseWriter, f dagstore.Freshness) {
	head := w.Header()
	head.Set("Dagstore-Position", f.Applied.Token())
	head.Set("Dagstore-Head", strconv.FormatUint(f.Head.Seq, 10))
	head.Set("Dagstore-Lag", strconv.FormatUint(f.Lag, 10))
	head.Set("Dagstore-State", f.State.String())
}

// param returns the one value of a parameter.
func param(r *http.Request, name string) (string, error) {
	vs, ok := r.URL.Query()[name]
	switch {
	case !ok:
		return "", nil
	case len(vs) > 1:
		return "", badRequest("the parameter %s is given %d times", name, len(vs))
	case vs[0] == "":
		return "", badRequest("the parameter %s is empty", name)
	}
	return vs[0], nil
}

// consistency reads how fresh the answer has to be, and bounds the wait.
func (h *handler) consistency(r *http.Request) (dagstore.Consistency, error) {
	said, err := oneOf(r, "Dagstore-Consistency", "consistency")
	if err != nil {
		return dagstore.Any(), err
	}
	c := dagstore.Any()
	if said != "" {
		if c, err = ParseConsistency(said); err != nil {
			return c, err
		}
	}
	wait := h.wait
	if said, err = oneOf(r, "Dagstore-Wait", "wait"); err != nil {
		return c, err
	}
	if said != "" {
		d, err := time.ParseDuration(said)
		if err != nil || d < 0 {
			return c, badRequest("Dagstore-Wait %.40q is not a duration such as 500ms", said)
		}
		wait = min(d, wait)
	}
	if wait == 0 {
		wait = -1 // do not wait: 0 would be the default
	}
	return c.Wait(wait), nil
}

// oneOf reads a header, or a parameter in its place. One that is there must say
// something.
func oneOf(r *http.Request, header, name string) (string, error) {
	vs := r.Header.Values(header)
	inQuery, err := param(r, name)
	switch {
	case err != nil:
		return "", err
	case len(vs) == 0:
		return inQuery, nil
	case len(vs) > 1 || inQuery != "":
		return "", badRequest("%s is given more than once", header)
	case vs[0] == "":
		return "", badRequest("%s is empty: leave it out, or say any", header)
	}
	return vs[0], nil
}

// Pages.

func (h *handler) healthz(w http.ResponseWriter, r *http.Request) error {
	return h.health(w, dagstore.Health.Live)
}

func (h *handler) readyz(w http.ResponseWriter, r *http.Request) error {
	return h.health(w, dagstore.Health.Ready)
}

func (h *handler) health(w http.ResponseWriter, good func(dagstore.Health) bool) error {
	health := h.store.Health()
	code := http.StatusOK
	if !good(health) {
		code = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
	}
	return answer(w, code, health)
}

func (h *handler) freshness(w http.ResponseWriter, r *http.Request) error {
	c, err := h.consistency(r)
	if err != nil {
		return err
	}
	view, err := param(r, "view")
	if err != nil {
		return err
	}
	if view != "" {
		f, err := h.store.WaitFor(r.Context(), view, c)
		if err != nil {
			return err
		}
		shows(w, f)
		return answer(w, http.StatusOK, dagstore.FreshnessAsJSON(f))
	}
	var all struct {
		Views []dagstore.FreshnessJSON `json:"views"`
	}
	for _, f := range h.store.Views() {
		if f, err = h.store.WaitFor(r.Context(), f.View, c); err != nil {
			return err
		}
		if f.View == dagstore.CatalogueView {
			shows(w, f)
		}
		all.Views = append(all.Views, dagstore.FreshnessAsJSON(f))
	}
	if all.Views == nil {
		return dagstore.ErrClosed
	}
	return answer(w, http.StatusOK, all)
}

// retryAfter is when to ask again, in whole seconds.
func retryAfter(d time.Duration) string {
	return strconv.Itoa(max(1, int((d+time.Second-1)/time.Second)))
}

var errNoPage = errors.New("no such page")
