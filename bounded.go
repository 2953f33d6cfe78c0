package dagstore

import (
	"fmt"

	"github.com/dagstore/dagstore/shard"
)

// cutError stands for an error whose text was longer than [shard.MaxText], so that what
// is kept of each errored shard is bounded. It has the beginning of the text, and those
// of the errors that the long one wrapped whose own texts are short: what errors.Is and
// errors.As look for.
type cutError struct {
	text    string
	wrapped []error
}

func (e *cutError) Error() string   { return e.text }
func (e *cutError) Unwrap() []error { return e.wrapped }

// maxWrapped bounds how many errors a cutError keeps, and how many it looks at.
const maxWrapped = 16

// bounded returns err, or what is kept of it if its text is too long. It runs code of
// others: a text that cannot be had is one as well.
func bounded(err error) error {
	if err == nil {
		return nil
	}
	text, ok := textOf(err)
	if ok && len(text) <= shard.MaxText {
		return err
	}
	e := &cutError{text: shard.CutText(text)}
	looked := 0
	e.keep(err, &looked)
	return e
}

// keep collects what is short below err, which is not.
func (e *cutError) keep(err error, looked *int) {
	var below []error
	switch x := err.(type) {
	case interface{ Unwrap() error }:
		below = []error{x.Unwrap()}
	case interface{ Unwrap() []error }:
		below = x.Unwrap()
	}
	for _, b := range below {
		if *looked++; b == nil || *looked > maxWrapped {
			continue
		}
		if text, ok := textOf(b); ok && len(text) <= shard.MaxText {
			e.wrapped = append(e.wrapped, b)
		} else {
			e.keep(b, looked)
		}
	}
}

// textOf is err.Error(), or what came of it.
func textOf(err error) (text string, ok bool) {
	defer func() {
		if p := recover(); p != nil {
			text = shard.CutText(fmt.Sprintf("an error of type %T whose text cannot be had: panic: %v", err, p))
		}
	}()
	return err.Error(), true
}
