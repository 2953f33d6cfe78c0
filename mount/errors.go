package mount

import (
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"
)

// What a source is, whether it can be had, and whether this machine has what it takes
// to ask are three questions, and an error of a mount answers one of them:
//
//	IsContent    what the source is: it changed, it is no regular file, it is not as
//	             long as promised, its URL names nothing. Nothing but a change of the
//	             source, or of what is wanted of it, makes that go away.
//	IsShortage   this machine lacks descriptors, memory or space. It tells nothing
//	             about the source.
//	neither      the source could not be had now: it is away, refuses, is busy or
//	             slow, broke off. That passes by itself, or nobody knows better.
//
// An error that nobody here knows, of a mount of others, is of the third kind. A mount
// says that one is of the first by wrapping [ErrSourceChanged] or another of these.

var (
	// ErrMalformedURL is wrapped by errors about a URL or path that names no source of
	// the mount's kind, whoever would answer.
	ErrMalformedURL = errors.New("malformed mount URL")
	// ErrTooLarge is returned for a source that is larger than the options allow.
	ErrTooLarge = errors.New("the source is larger than is allowed")
)

// contentErrors are evidence about what a source is. A source that does not exist is not
// among them (its disk may not be mounted), nor is a scheme without a template.
var contentErrors = []error{ErrSourceChanged, ErrNotRegular, ErrOutsideRoots, ErrMalformedURL, ErrTooLarge}

// IsContent tells whether err is evidence about what a source is. If it joins several
// errors, one that is explicit evidence is enough. A source that is not as long as
// promised ([ErrSizeMismatch]) is evidence unless it broke off ([io.ErrUnexpectedEOF]).
func IsContent(err error) bool {
	if errors.Is(err, ErrSizeMismatch) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	return slices.ContainsFunc(contentErrors, func(c error) bool { return errors.Is(err, c) })
}

// IsShortage tells whether err says that this machine is short of descriptors, memory or
// space, whatever wraps it.
func IsShortage(err error) bool {
	return anyIn(err, func(err error) bool {
		switch err := err.(type) {
		case syscall.Errno:
			return slices.Contains(shortages, err)
		case *net.DNSError: // which keeps the text of its cause only
			return slices.ContainsFunc(shortages, func(s syscall.Errno) bool { return strings.HasSuffix(err.Err, ": "+s.Error()) })
		}
		return false
	})
}

// maxRetryAfter bounds what is believed of when an origin asks to come again.
const maxRetryAfter = time.Hour

// RetryAfter returns in how long the origin asked to come again (Retry-After of a 429 or
// 503, say), at most an hour; false if err does not tell.
func RetryAfter(err error) (after time.Duration, ok bool) {
	anyIn(err, func(err error) bool {
		if he, is := err.(*HTTPError); is && he != nil && he.RetryAfter > 0 {
			after, ok = max(after, min(he.RetryAfter, maxRetryAfter)), true
		}
		return false
	})
	return after, ok
}

// anyIn tells whether is holds for err or for any that it wraps or joins.
func anyIn(err error, is func(error) bool) bool {
	if err == nil {
		return false
	}
	if is(err) {
		return true
	}
	switch err := err.(type) {
	case interface{ Unwrap() error }:
		return anyIn(err.Unwrap(), is)
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(err.Unwrap(), func(err error) bool { return anyIn(err, is) })
	}
	return false
}

// malformedError marks an error as one about the URL itself.
type malformedError struct{ err error }

func malformed(err error) error           { return &malformedError{err} }
func (e *malformedError) Error() string   { return e.err.Error() }
func (e *malformedError) Unwrap() []error { return []error{ErrMalformedURL, e.err} }
