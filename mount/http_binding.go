package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// Binding says what tells one representation of an HTTP resource from another.
type Binding int

const (
	// BindAuto: the strong ETag, or else Last-Modified, until two of them are seen over
	// equal bytes, as nodes of a CDN have them that number their files each for itself;
	// from then on both will do. If they are made anew for each answer they are not
	// looked at any more: what remains is BindContent.
	BindAuto Binding = iota
	// BindContent: the size, and the last bytes that were delivered when a transfer is
	// resumed. ETag and Last-Modified are not looked at. What is read by offset may be of
	// different representations of the same size: for who checks it, as a store does,
	// which holds each block to its hash.
	BindContent
	// BindValidators: as BindAuto, but another validator is another source, always.
	BindValidators
)

// Bounds of a reconciliation.
const (
	sampleTries   = 4 // requests for each sample
	maxReconciled = 3 // reconciliations of one reader, after which validators are ignored
	maxValidators = 8 // validators of one representation, likewise
)

var errNotReconciled = errors.New("the validators stand for different content")

// reconcile finds out what an answer with another validator than those of the pin means:
// that the source changed, or that validators do not tell. Samples are asked for without
// conditions, several times, so that several nodes answer. The content is taken for the
// same if nothing differs, of the samples from each other and from what was delivered,
// and
//
//	two validators were seen over the same sample, or
//	there is a Last-Modified and it is the same everywhere.
//
// A source that changed has one new validator, and the old one is not seen again. The
// samples are small; what they do not show a store finds when it checks the blocks.
func (r *httpReader) reconcile(before pin) error {
	if r.m.Binding != BindAuto || len(before.validators) == 0 {
		return errNotReconciled
	}
	r.reconciling.Lock()
	defer r.reconciling.Unlock()
	now, known := r.looked()
	if len(now.validators) != len(before.validators) {
		return nil // somebody else has done it
	}
	e := evidence{old: now.validators, seen: make(map[validator]bool)}
	for _, at := range r.sampleRanges(known) {
		if err := r.sample(at, known, &e); err != nil {
			return err
		}
	}
	if !e.two && !e.sameDate() {
		return errNotReconciled
	}
	r.reconciled++
	now.validators = append([]validator(nil), now.validators...)
	for v := range e.seen {
		if !containsValidator(now.validators, v) {
			now.validators = append(now.validators, v)
		}
	}
	if len(now.validators) > maxValidators || r.reconciled > maxReconciled || len(e.seen) >= sampleTries {
		now.validators = nil
	}
	r.pinMu.Lock()
	r.pin = now
	r.pinMu.Unlock()
	return nil
}

// evidence is what samples have shown.
type evidence struct {
	old  []validator
	seen map[validator]bool
	two  bool // two validators, the old ones included, over one sample
}

// sameDate: there is a Last-Modified and it is the same everywhere.
func (e *evidence) sameDate() bool {
	date := e.old[0].lastModified
	for v := range e.seen {
		if v.lastModified != date {
			return false
		}
	}
	return date != "" && len(e.seen) > 0
}

func containsValidator(vs []validator, v validator) bool {
	for _, w := range vs {
		if w == v || w.etag != "" && w.etag == v.etag {
			return true
		}
	}
	return false
}

// sampleRanges returns what to look at: the beginning, the middle, the end, and what is
// known of the old representation.
func (r *httpReader) sampleRanges(known [2]excerpt) (ranges []byteRange) {
	add := func(from int64) {
		from = max(0, min(from, r.size-excerptSize))
		at := byteRange{from, min(from+excerptSize, r.size) - 1}
		for _, have := range ranges {
			if have == at {
				return
			}
		}
		if at.from <= at.to {
			ranges = append(ranges, at)
		}
	}
	add(0)
	if last := known[1]; len(last.bytes) > 0 {
		add(last.off)
	}
	add(r.size / 2)
	add(r.size - excerptSize)
	return ranges
}

// sample asks for one sample until two validators were seen over it, and compares all
// that comes. A node that does not answer is no evidence.
func (r *httpReader) sample(at byteRange, known [2]excerpt, e *evidence) error {
	var first []byte
	here := make(map[validator]bool)
	for range sampleTries {
		v, got, err := r.fetchSample(at)
		if err != nil {
			return err
		}
		if first == nil {
			first = got
		}
		if !bytes.Equal(got, first) || !agrees(at.from, got, known) {
			return fmt.Errorf("%w: bytes %d to %d differ", errNotReconciled, at.from, at.to)
		}
		here[v], e.seen[v] = true, true
		if len(here) > 1 {
			e.two = true
			return nil
		}
	}
	return nil
}

func (r *httpReader) fetchSample(at byteRange) (validator, []byte, error) {
	a, err := r.m.exchange(r.ctx, at, pin{size: r.size}, giveUpIfNotReady, nil)
	if err != nil {
		return validator{}, nil, err
	}
	defer a.body.Close()
	if a.code != http.StatusPartialContent {
		return validator{}, nil, errNotReconciled
	}
	got := make([]byte, at.to-at.from+1)
	_, err = io.ReadFull(a.body, got)
	return a.validator, got, err
}

// agrees tells whether bytes at an offset are those that were delivered, as far as that
// is known.
func agrees(off int64, got []byte, known [2]excerpt) bool {
	for _, k := range known {
		from, to := max(off, k.off), min(off+int64(len(got)), k.off+int64(len(k.bytes)))
		if from < to && !bytes.Equal(got[from-off:to-off], k.bytes[from-k.off:to-k.off]) {
			return false
		}
	}
	return true
}
