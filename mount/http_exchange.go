package mount

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dagstore/dagstore/internal/planted"
)

var (
	// ErrStalled is returned when a server sends nothing for too long.
	ErrStalled = errors.New("the server has sent nothing for too long")
	// ErrTooSlow is returned when a source delivers less than the least rate.
	ErrTooSlow = errors.New("the source is too slow")
)

// maxRedirects is how many redirects are followed for one request.
const maxRedirects = 3

// HTTPError says what went wrong with an exchange. It names the URL without
// credentials and query, so that it can be logged.
type HTTPError struct {
	// URL is scheme, host and path; "?…" stands for a query.
	URL string
	// Code is the status that the server answered with, 0 if it did not come to that.
	Code int
	// RetryAfter is when the server asks to come again; 0 if it does not.
	RetryAfter time.Duration
	// Err is the cause; for a status that is an error by itself it may be nil.
	Err error
}

func (e *HTTPError) Error() string {
	var b strings.Builder
	b.WriteString("GET " + e.URL)
	if e.Code != 0 {
		fmt.Fprintf(&b, ": status %d %s", e.Code, http.StatusText(e.Code))
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, ", come again in %s", e.RetryAfter)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

func (e *HTTPError) Unwrap() error { return e.Err }

// notReady: the resource exists and the server asks for patience.
func (e *HTTPError) notReady() bool {
	return e.Code == http.StatusAccepted || e.Code == http.StatusServiceUnavailable && e.RetryAfter > 0
}

// fail wraps err as an HTTPError of this mount, dropping what might hold the URL.
func (m *HTTPMount) fail(code int, err error) *HTTPError {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	err = told(err)
	u, perr := url.Parse(m.URL)
	if perr != nil {
		return &HTTPError{URL: "(unparsable URL)", Code: code, Err: err}
	}
	return &HTTPError{URL: cut(redact(u), maxTold), Code: code, Err: err}
}

// redact spells a URL without what may be secret in it.
func redact(u *url.URL) string {
	s := (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
	if u.RawQuery != "" {
		s += "?…"
	}
	return s
}

// byteRange is what a request asks for: the bytes from..to, both included; to < 0
// means to the end. wholeBody asks without a range.
type byteRange struct{ from, to int64 }

var wholeBody = byteRange{-1, -1}

// validator is what a server says of a representation.
type validator struct {
	etag         string // as sent, weak ones included
	lastModified string
}

func (v validator) strong() bool { return v.etag != "" && !strings.HasPrefix(v.etag, "W/") }

// admits returns nil for an answer that may be of the representation. An answer without
// the ETag it was asked for is not proof of anything.
func (v validator) admits(a *answer) error {
	switch {
	case v.etag != "" && a.etag != v.etag && !planted.Bug("http-changed-source-not-noticed"):
		return fmt.Errorf("%w: its ETag is %s now and was %s", ErrSourceChanged, quoted(a.etag, 64), quoted(v.etag, 64))
	case v.etag == "" && v.lastModified != "" && a.lastModified != "" && a.lastModified != v.lastModified:
		return fmt.Errorf("%w: it was modified %s", ErrSourceChanged, quoted(a.lastModified, 64))
	}
	return nil
}

// pin is the representation that answers must belong to. With size -1 and no validators
// it admits any.
type pin struct {
	size int64 // -1 if not known
	// validators are all that were found to stand for it; one, unless nodes of the
	// origin disagree. With none, the size and the bytes are what it is bound to.
	validators []validator
}

func pinOf(a *answer) pin {
	return pin{size: a.total, validators: []validator{a.validator}}
}

// setHeaders asks the server itself to refuse if it has another representation.
func (p pin) setHeaders(h http.Header) {
	var strong []string
	for _, v := range p.validators {
		if v.strong() {
			strong = append(strong, v.etag)
		}
	}
	switch {
	case len(p.validators) == 0 || len(strong) > 0 && len(strong) < len(p.validators):
	case len(strong) > 0:
		h.Set("If-Match", strings.Join(strong, ", "))
	case len(p.validators) == 1 && p.validators[0].lastModified != "":
		h.Set("If-Unmodified-Since", p.validators[0].lastModified)
	}
}

// check compares an answer with the pin, for servers that ignore the conditions.
func (p pin) check(a *answer) error {
	if p.size >= 0 && a.total >= 0 && a.total != p.size {
		return fmt.Errorf("%w: it has %d bytes now and had %d", ErrSourceChanged, a.total, p.size)
	}
	var err error
	for _, v := range p.validators {
		if err = v.admits(a); err == nil {
			return nil
		}
	}
	if err != nil {
		return &otherValidator{err}
	}
	return nil
}

// otherValidator: the size is what it was, the validator is not.
type otherValidator struct{ err error }

func (e *otherValidator) Error() string { return e.err.Error() }
func (e *otherValidator) Unwrap() error { return e.err }

// doubtsValidator tells whether an exchange failed of the validator alone.
func doubtsValidator(err error) bool {
	var ov *otherValidator
	var he *HTTPError
	return errors.As(err, &ov) || errors.As(err, &he) && he.Code == http.StatusPreconditionFailed
}

// answer is a checked response: 200, 206 with the range asked for, or 416.
type answer struct {
	code   int
	total  int64 // size of the representation, -1 if not told
	length int64 // of the body, -1 if not told
	validator
	// delimited: the end of the body can be told from the end of the connection.
	delimited bool
	body      *httpBody
}

// patience says what to do when a source is not ready.
type patience bool

const (
	waitUntilReady   patience = true
	giveUpIfNotReady patience = false
)

// exchange requests a range until it gets an answer that belongs to p, a failure
// that will not pass, or has tried often enough. The body lives until ctx ends or
// it is closed.
//
// mt, if not nil, counts the time that it takes, without the pauses that the server
// asks for.
func (m *HTTPMount) exchange(ctx context.Context, r byteRange, p pin, wait patience, mt *meter) (*answer, error) {
	stored, err := m.storedURL()
	if err != nil {
		return nil, err
	}
	for attempt := 0; ; attempt++ {
		begun := time.Now()
		a, err := m.try(ctx, stored, r, p)
		mt.spend(begun)
		if err == nil {
			return a, nil
		}
		if cerr := ctx.Err(); cerr != nil {
			return nil, m.fail(0, cerr)
		}
		var he *HTTPError
		if !errors.As(err, &he) {
			he = m.fail(0, err)
		}
		pause, again := m.options().pause(he, attempt)
		if !again || !bool(wait) && he.notReady() {
			return nil, he
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, m.fail(0, err)
		}
	}
}

// pause says whether a failure is worth another attempt, and after how long.
func (o *HTTPOptions) pause(e *HTTPError, attempt int) (time.Duration, bool) {
	retries := o.Retries
	if retries == 0 {
		retries = 4
	}
	limit := orDefault(o.MaxRetryAfter, time.Minute)
	if attempt >= retries || !o.mayPass(e) || e.RetryAfter > limit {
		return 0, false
	}
	if e.RetryAfter > 0 {
		return e.RetryAfter, true
	}
	return o.backOff(attempt), true
}

// backOff is the pause after the attempt of this number: doubled each time, bounded,
// and half of it random so that many clients do not come back together.
func (o *HTTPOptions) backOff(attempt int) time.Duration {
	d, most := orDefault(o.BackOff, 200*time.Millisecond), orDefault(o.MaxBackOff, 10*time.Second)
	for range attempt {
		if d *= 2; d >= most {
			break
		}
	}
	d = min(d, most)
	return d/2 + rand.N(d/2+1)
}

// mayPass tells whether a failure may be gone next time.
func (o *HTTPOptions) mayPass(e *HTTPError) bool {
	switch e.Code {
	case 0:
		var pe *policyError
		var ce *tls.CertificateVerificationError
		var fe *finalError
		return !errors.As(e.Err, &pe) && !errors.As(e.Err, &ce) && !errors.As(e.Err, &fe)
	case http.StatusAccepted, http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests,
		http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	case http.StatusUnauthorized, http.StatusForbidden:
		return o.Resolve != nil // the URL may have expired; the next one is fresh
	}
	return false
}

// finalError is an answer that no repetition would improve.
type finalError struct{ err error }

func isFinal(err error) bool {
	var fe *finalError
	return errors.As(err, &fe)
}

func final(err error) error                   { return &finalError{err} }
func finalf(format string, args ...any) error { return final(fmt.Errorf(format, args...)) }
func (e *finalError) Error() string           { return e.err.Error() }
func (e *finalError) Unwrap() error           { return e.err }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// try makes one attempt, redirects included.
func (m *HTTPMount) try(ctx context.Context, stored *url.URL, r byteRange, p pin) (*answer, error) {
	first := stored
	if resolve := m.options().Resolve; resolve != nil {
		clone := *stored
		u, err := resolve(ctx, &clone)
		if err != nil {
			return nil, m.fail(0, fmt.Errorf("resolve: %w", withoutURL(err)))
		}
		if u == nil {
			return nil, m.fail(0, finalf("resolve: neither a URL nor an error"))
		}
		if err := checkURL(u); err != nil {
			return nil, m.fail(0, finalf("resolve: %v", err)) // not the stored URL's fault
		}
		first = u
	}
	at := first
	var j journey
	for hops := 0; ; hops++ {
		resp, body, err := m.roundTrip(ctx, m.request(first, at, r, p), &j)
		if err != nil {
			return nil, m.fail(0, err)
		}
		if !isRedirect(resp.StatusCode) {
			return m.judge(resp, body, r, p)
		}
		location := resp.Header.Get("Location")
		body.discard()
		if hops == maxRedirects {
			return nil, m.fail(0, finalf("more than %d redirects", maxRedirects))
		}
		if at, err = redirected(at, location); err != nil {
			return nil, m.fail(0, final(err))
		}
	}
}

// withoutURL takes the text of a *url.Error's URL out of err.
func withoutURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

func isRedirect(code int) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirected returns where a redirect leads. Its errors do not repeat the location,
// which may hold a signature.
func redirected(from *url.URL, location string) (*url.URL, error) {
	to, err := from.Parse(location)
	if err != nil || location == "" {
		return nil, errors.New("redirect to nowhere")
	}
	if err := checkURL(to); err != nil {
		return nil, errors.New("redirect to something that is not http or https")
	}
	if from.Scheme == "https" && to.Scheme == "http" {
		return nil, errors.New("redirect from https to http")
	}
	if !sameOrigin(from, to) {
		to.User = nil
	}
	to.Fragment, to.RawFragment = "", ""
	return to, nil
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return map[string]string{"http": "80", "https": "443"}[u.Scheme]
}

// request makes the request for a hop; first is where the journey began.
func (m *HTTPMount) request(first, at *url.URL, r byteRange, p pin) *http.Request {
	target := *at
	target.User = nil
	req := &http.Request{
		Method: http.MethodGet, URL: &target, Host: target.Host, Header: make(http.Header),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if sameOrigin(first, at) {
		for name, values := range m.options().Header {
			req.Header[http.CanonicalHeaderKey(name)] = slices.Clone(values)
		}
		if user := first.User; user != nil {
			password, _ := user.Password()
			req.SetBasicAuth(user.Username(), password)
		}
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "dagstore")
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Del("Referer")
	switch {
	case r.from >= 0 && r.to >= 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.from, r.to))
	case r.from >= 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", r.from))
	default:
		req.Header.Del("Range")
	}
	p.setHeaders(req.Header)
	return req
}

// roundTrip sends req and waits for the header of the answer, at most HeaderTimeout.
func (m *HTTPMount) roundTrip(ctx context.Context, req *http.Request, j *journey) (*http.Response, *httpBody, error) {
	o := m.options()
	if o.Transport != nil && (o.Policy != nil || o.TLS != nil) {
		return nil, nil, finalf("HTTPOptions: Policy and TLS work with the built-in transport only")
	}
	transport, err := o.transportFor(j, req)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(orDefault(o.HeaderTimeout, 30*time.Second), func() { cancel(ErrStalled) })
	h := hop{direct: !o.proxied(req)}
	resp, err := transport.RoundTrip(req.WithContext(traced(ctx, &h)))
	timer.Stop()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, nil, err
	}
	j.passed(h, req.URL)
	return resp, &httpBody{resp: resp, ctx: ctx, cancel: cancel, idle: orDefault(o.IdleTimeout, 30*time.Second)}, nil
}

// judge turns a response into an answer or an error, in which case it closes body.
func (m *HTTPMount) judge(resp *http.Response, body *httpBody, r byteRange, p pin) (*answer, error) {
	a := &answer{
		code: resp.StatusCode, total: -1, length: resp.ContentLength, body: body,
		validator: validator{resp.Header.Get("ETag"), resp.Header.Get("Last-Modified")},
		delimited: resp.ContentLength >= 0 || resp.ProtoMajor >= 2 || len(resp.TransferEncoding) > 0,
	}
	err := m.judgeStatus(a, resp, r)
	if err == nil {
		if err = p.check(a); err != nil {
			err = m.fail(0, final(err))
		}
	}
	if err != nil {
		body.discard()
		return nil, err
	}
	return a, nil
}

func (m *HTTPMount) judgeStatus(a *answer, resp *http.Response, r byteRange) error {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		if enc := resp.Header.Values("Content-Encoding"); resp.Uncompressed || !identity(enc) {
			return m.fail(0, finalf("the server applied content coding %.32q although it was asked not to", enc))
		}
		if resp.StatusCode == http.StatusOK {
			a.total = resp.ContentLength
			return nil
		}
		return m.judgeRange(a, strings.Join(resp.Header.Values("Content-Range"), ", "), r)
	case http.StatusRequestedRangeNotSatisfiable:
		_, _, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if r == wholeBody || ok && total > r.from {
			return m.fail(resp.StatusCode, final(errors.New("the range exists and is refused")))
		}
		if ok {
			a.total = total
		}
		return nil
	case http.StatusPreconditionFailed:
		return m.fail(resp.StatusCode, ErrSourceChanged)
	case http.StatusNotFound, http.StatusGone:
		return m.fail(resp.StatusCode, ErrNotFound)
	}
	e := m.fail(resp.StatusCode, nil)
	e.RetryAfter = retryAfter(resp.Header.Get("Retry-After"))
	return e
}

// identity tells whether codings, a header that may be given several times, leaves the
// content as it is.
func identity(codings []string) bool {
	return !slices.ContainsFunc(codings, func(c string) bool { return c != "" && !strings.EqualFold(c, "identity") })
}

// judgeRange holds a 206 to what was asked for.
func (m *HTTPMount) judgeRange(a *answer, contentRange string, r byteRange) error {
	from, to, total, ok := parseContentRange(contentRange)
	wantTo := r.to
	if total >= 0 && (wantTo < 0 || wantTo >= total) {
		wantTo = total - 1
	}
	switch {
	case r == wholeBody:
		return m.fail(0, finalf("the server sent a part although it was asked for all"))
	case !ok || from != r.from || wantTo >= 0 && to != wantTo || to < from:
		return m.fail(0, finalf("Content-Range %.64q does not answer a request for bytes %d to %d", contentRange, r.from, r.to))
	case a.length >= 0 && a.length != to-from+1:
		return m.fail(0, finalf("Content-Length %d contradicts Content-Range %.64q", a.length, contentRange))
	}
	a.total, a.length = total, to-from+1
	return nil
}

// parseContentRange reads "bytes from-to/total" and "bytes */total", in which from
// and to are -1; total is -1 if given as "*".
func parseContentRange(s string) (from, to, total int64, ok bool) {
	spec, found := strings.CutPrefix(s, "bytes ")
	span, size, slash := strings.Cut(spec, "/")
	if !found || !slash {
		return 0, 0, 0, false
	}
	if total, ok = parseCount(size); !ok {
		if size != "*" {
			return 0, 0, 0, false
		}
		total = -1
	}
	if span == "*" {
		return -1, -1, total, true
	}
	a, b, _ := strings.Cut(span, "-")
	from, ok1 := parseCount(a)
	to, ok2 := parseCount(b)
	return from, to, total, ok1 && ok2 && (total < 0 || to < total)
}

// parseCount reads digits only: no sign, no space.
func parseCount(s string) (int64, bool) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// retryAfter reads seconds or a date. It returns 0 for neither, and at least a
// second for a time that has come already.
func retryAfter(s string) time.Duration {
	const most = 365 * 24 * time.Hour
	if n, ok := parseCount(s); ok {
		return max(time.Second, time.Duration(min(n, int64(most/time.Second)))*time.Second)
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(time.Second, min(time.Until(t).Round(time.Second), most))
	}
	return 0
}

// httpBody is a response body that ends the exchange when it stalls, and whose end is an
// error if the server says so behind it.
type httpBody struct {
	resp   *http.Response
	ctx    context.Context // of this exchange
	cancel context.CancelCauseFunc
	idle   time.Duration
	timer  *time.Timer
	// release ends the context that ctx was made from, if nobody else does.
	release func()
}

func (b *httpBody) Read(p []byte) (int, error) {
	if b.timer == nil {
		b.timer = time.AfterFunc(b.idle, func() { b.cancel(ErrStalled) })
	} else {
		b.timer.Reset(b.idle)
	}
	n, err := b.resp.Body.Read(p)
	b.timer.Stop()
	switch {
	case err == io.EOF:
		if terr := trailerError(b.resp.Trailer); terr != nil {
			err = terr
		}
	case err != nil:
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

// finish reads what follows the last byte that was wanted: nothing, and a trailer that
// may say that those before it are not what they should be. A connection that breaks
// here takes nothing away.
func (b *httpBody) finish() error {
	var one [1]byte
	for range 100 {
		n, err := b.Read(one[:])
		switch {
		case n > 0:
			return final(fmt.Errorf("%w: it goes on after the last byte that was asked for", ErrSizeMismatch))
		case err != nil && isFinal(err):
			return err
		case err != nil:
			return nil
		}
	}
	return nil
}

func (b *httpBody) Close() error {
	b.cancel(nil)
	if b.release != nil {
		defer b.release()
	}
	return b.resp.Body.Close()
}

// discard closes the body, reading a short one first so that its connection can be
// used again, unless it takes its time.
func (b *httpBody) discard() {
	if n := b.resp.ContentLength; n >= 0 && n <= 4<<10 {
		t := time.AfterFunc(time.Second, func() { b.cancel(ErrStalled) })
		if m, err := io.CopyN(io.Discard, b, n); m == n && err == nil {
			b.finish()
		}
		t.Stop()
	}
	b.Close()
}

// trailerError returns what a trailer says against the stream before it: a server that
// fails in the middle of an answer whose status it has sent already has no other way to
// say so that looks different from an end.
//
//	X-Stream-Error: …      gateways of IPFS, and any other name with "error" or the like
//	Grpc-Status: 13        not 0
//	X-Status: 502          any name that ends so, with a status of 400 or more
func trailerError(trailer http.Header) error {
	for _, name := range slices.Sorted(maps.Keys(trailer)) {
		for _, value := range trailer[name] {
			if saysError(strings.ToLower(name), strings.TrimSpace(value)) {
				return finalf("the server says that what it sent is not whole: trailer %s: %s", quoted(name, 64), quoted(value, maxTold))
			}
		}
	}
	return nil
}

func saysError(name, value string) bool {
	switch strings.ToLower(value) {
	case "", "0", "ok", "no", "none", "false", "null", "nil", "success":
		return false
	}
	if strings.HasSuffix(name, "status") {
		code, isNumber := parseCount(value)
		return isNumber && (name == "grpc-status" || code >= 400)
	}
	for _, word := range []string{"error", "exception", "failure", "failed", "abort", "incomplete", "truncated"} {
		if strings.Contains(name, word) {
			return true
		}
	}
	return false
}

// maxTold bounds what an error repeats of what an origin sent.
const maxTold = 500

// quoted quotes s, of which at most some bytes are told.
func quoted(s string, most int) string {
	if len(s) <= most {
		return strconv.Quote(s)
	}
	return fmt.Sprintf("%q… (%d bytes)", s[:most], len(s))
}

// cut returns s, or its beginning and how long it is.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return fmt.Sprintf("%s… (%d bytes)", s[:most], len(s))
}

// told wraps an error whose text is long, or would do something to a terminal: an origin
// has a say in what package net/http tells of it.
func told(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	clean := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsPrint(r):
			return r
		case r == '\n':
			return ' '
		}
		return '\uFFFD'
	}, text)
	if clean = cut(clean, maxTold); clean == text {
		return err
	}
	return &toldError{clean, err}
}

// toldError is an error with a text of its own.
type toldError struct {
	text string
	err  error
}

func (e *toldError) Error() string { return e.text }
func (e *toldError) Unwrap() error { return e.err }
