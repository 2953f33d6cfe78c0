package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Fetch asks for the resource's first byte, to learn whether the server answers
// ranges, and returns a reader bound to the representation found. A body that Stat
// was answered with a moment ago is used instead. It waits for a source that is not
// ready, within the limits of the options. The reader lives until ctx ends or it is
// closed.
func (m *HTTPMount) Fetch(ctx context.Context) (Reader, error) {
	return m.fetch(ctx, byteRange{0, 0})
}

// fetchWhole is Fetch for who reads all of it from the front: one request is enough, also
// if the server answers ranges.
func (m *HTTPMount) fetchWhole(ctx context.Context) (Reader, error) {
	return m.fetch(ctx, byteRange{0, -1})
}

func (m *HTTPMount) fetch(ctx context.Context, first byteRange) (Reader, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &httpReader{m: m, ctx: ctx, cancel: cancel, meter: m.options().meter()}
	if err := r.open(first); err != nil {
		cancel()
		return nil, err
	}
	return r, nil
}

// open asks for a range that begins with the first byte.
func (r *httpReader) open(first byteRange) error {
	m, any := r.m, pin{size: -1}
	a := m.options().unpark(m)
	if a == nil {
		var err error
		if a, err = m.exchange(r.ctx, first, any, waitUntilReady, nil); err != nil {
			return err
		}
	} else { // it was asked for with another context
		context.AfterFunc(r.ctx, func() { a.body.cancel(context.Cause(r.ctx)) })
	}
	// A probe of an empty resource is answered with "bytes */0", or with all of it.
	if r.ranges = a.total == 0 || a.code != 200 && a.total > 0; r.ranges {
		r.size, r.pin = a.total, pinOf(a)
		if m.Binding == BindContent {
			r.pin.validators = nil
		}
		err := m.checkSize(a.total)
		if err == nil && a.code == 206 && first.to < 0 {
			r.body = a.body
		} else {
			r.keep(0, a)
		}
		return err
	}
	if a.code != 200 { // a range of a resource of unknown size: all of it, then
		a.body.discard()
		var err error
		if a, err = m.exchange(r.ctx, wholeBody, any, waitUntilReady, nil); err != nil {
			return err
		}
	}
	r.body, r.size = a.body, a.total
	err := m.checkSize(a.total)
	if a.total < 0 && m.Size > 0 {
		r.size = m.Size
	}
	if err == nil {
		err = r.checkDelimited(a)
	}
	if err != nil {
		r.dropBody()
	}
	return err
}

func (r *httpReader) checkDelimited(a *answer) error {
	if r.size < 0 && !a.delimited {
		return r.m.fail(0, errors.New("the server tells neither the size nor where the body ends, so that a part could not be told from the whole; set HTTPMount.Size"))
	}
	return nil
}

// httpReader reads a resource: by ranges, or once from the front.
//
//	ranges:   size ≥ 0; body is nil or delivers the bytes [pos, size)
//	stream:   body is nil or delivers [pos, end); size is -1 if the end is not known
type httpReader struct {
	m      *HTTPMount
	ctx    context.Context
	cancel context.CancelFunc
	ranges bool
	size   int64
	closed atomic.Bool

	pinMu sync.Mutex // held while the pin or what is known is looked at
	pin   pin        // of ranges
	known [2]excerpt // the first bytes that were read, and the last

	reconciling sync.Mutex
	reconciled  int // how often

	mu     sync.Mutex // held by Read and Seek
	pos    int64
	body   *httpBody
	err    error        // of the stream; it stays
	sum    maphash.Hash // of the bytes [0, pos) of a stream
	breaks breaks
	meter  *meter
}

// excerpt is bytes of the representation at an offset.
type excerpt struct {
	off   int64
	bytes []byte
}

// excerptSize bounds an excerpt.
const excerptSize = 4 << 10

// keep notes the few bytes of an answer to a probe, and closes it.
func (r *httpReader) keep(off int64, a *answer) {
	var one [1]byte
	if n, _ := a.body.Read(one[:]); n == 1 && a.code == 206 {
		r.know(off, one[:])
	}
	a.body.discard()
}

// know notes bytes that were delivered.
func (r *httpReader) know(off int64, p []byte) {
	r.pinMu.Lock()
	defer r.pinMu.Unlock()
	first, last := &r.known[0], &r.known[1]
	if n := int64(len(first.bytes)); off <= first.off+n && off+int64(len(p)) > first.off+n && n < excerptSize && (n > 0 || off == 0) {
		from := first.off + n - off
		first.bytes = append(first.bytes, p[from:min(int64(len(p)), from+excerptSize-n)]...)
	}
	switch end := last.off + int64(len(last.bytes)); {
	case len(p) >= excerptSize:
		last.off = off + int64(len(p)-excerptSize)
		last.bytes = append(last.bytes[:0], p[len(p)-excerptSize:]...)
	case end == off:
		last.bytes = append(last.bytes, p...)
		if over := len(last.bytes) - excerptSize; over > 0 {
			last.off += int64(over)
			last.bytes = append(last.bytes[:0], last.bytes[over:]...)
		}
	default:
		last.off, last.bytes = off, append(last.bytes[:0], p...)
	}
}

// breaks counts how often a transfer broke off without getting anywhere. A part of what
// is to be had counts as getting somewhere, a byte does not: an origin that delivers a
// byte and closes, time and again, would never be done with.
type breaks struct {
	moved int64 // since the last break
	count int
}

// again notes a break and returns the number of this attempt; whole is how much is to
// be transferred.
func (b *breaks) again(whole int64) (attempt int) {
	if b.moved >= max(1, min(64<<10, whole/64)) {
		b.count = 0
	}
	b.moved = 0
	b.count++
	return b.count - 1
}

// meter holds a transfer to the least rate. The time that its consumer takes does not
// count. A nil meter holds nothing to anything.
type meter struct {
	rate   int64 // bytes in a second
	window time.Duration
	spent  time.Duration // of this window
	got    int64         // in this window
}

func (mt *meter) spend(begun time.Time) {
	if mt != nil {
		mt.spent += time.Since(begun)
	}
}

// delivered notes that n bytes came since begun, and judges a window that is over.
func (mt *meter) delivered(begun time.Time, n int) error {
	if mt == nil {
		return nil
	}
	mt.spend(begun)
	mt.got += int64(n)
	if mt.spent < mt.window {
		return nil
	}
	got, spent := mt.got, mt.spent
	mt.got, mt.spent = 0, 0
	return mt.judge(got, spent)
}

func (mt *meter) judge(got int64, spent time.Duration) error {
	if float64(got) >= float64(mt.rate)*spent.Seconds() {
		return nil
	}
	return fmt.Errorf("%w: it delivered %d bytes in %s, at least %d a second are wanted", ErrTooSlow, got, spent.Round(time.Millisecond), mt.rate)
}

func (r *httpReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.usable(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if r.ranges {
		return r.readRange(p)
	}
	return r.readStream(p)
}

// usable returns why the reader cannot be read any more, or nil.
func (r *httpReader) usable() error {
	if r.closed.Load() {
		return ErrClosed
	}
	return r.ctx.Err()
}

// failed makes the error of a read: that of Close or the context, if they caused it.
func (r *httpReader) failed(err error) error {
	if cause := r.usable(); cause != nil {
		return cause
	}
	var he *HTTPError
	if errors.As(err, &he) {
		return err
	}
	return r.m.fail(0, err)
}

// readRange reads from the open range, opening one at pos when there is none, again
// and again while ranges break off.
func (r *httpReader) readRange(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.pos >= r.size {
		if r.body == nil {
			return 0, io.EOF
		}
		err := r.body.finish()
		r.dropBody()
		if err != nil {
			r.err = r.failed(err)
			return 0, r.err
		}
		return 0, io.EOF
	}
	for {
		n, err := 0, error(nil)
		if r.body == nil {
			if r.body, err = r.openAt(r.pos); err != nil && !broke(err) {
				return 0, r.failed(err)
			}
		}
		if r.body != nil {
			n, err = r.readBody(p[:min(int64(len(p)), r.size-r.pos)])
			if n > 0 {
				r.know(r.pos, p[:n])
				r.pos += int64(n)
				r.breaks.moved += int64(n)
			}
		}
		switch {
		case errors.Is(err, ErrTooSlow):
			r.dropBody()
			return n, r.failed(err)
		case r.pos == r.size && (err == nil || err == io.EOF):
			return n, nil
		case err != nil || n == 0:
			r.dropBody()
		}
		if n > 0 {
			if err != nil && isFinal(err) {
				r.err = r.failed(err)
				return n, r.err
			}
			return n, nil
		}
		if err := r.resume(r.breaks.again(r.size), err, r.meter); err != nil {
			return 0, r.failed(err)
		}
	}
}

// readBody reads from the open body, and holds it to the least rate.
func (r *httpReader) readBody(p []byte) (int, error) {
	begun := time.Now()
	n, err := r.body.Read(p)
	if slow := r.meter.delivered(begun, n); slow != nil && err != io.EOF {
		err = final(slow)
	}
	return n, err
}

// brokeError is an exchange that worked and a body that broke off at once.
type brokeError struct{ err error }

func (e *brokeError) Error() string { return e.err.Error() }
func (e *brokeError) Unwrap() error { return e.err }

func broke(err error) bool {
	var be *brokeError
	return errors.As(err, &be)
}

// openAt opens the range from pos to the end. If the representation is known by nothing
// but its size and bytes, it is asked for the last bytes that were delivered once more,
// and they must be the same.
func (r *httpReader) openAt(pos int64) (*httpBody, error) {
	p, known := r.looked()
	overlap := known[1]
	if len(p.validators) > 0 || overlap.off+int64(len(overlap.bytes)) != pos {
		overlap = excerpt{}
	}
	body, err := r.openRange(byteRange{pos - int64(len(overlap.bytes)), -1}, r.meter)
	if err != nil || len(overlap.bytes) == 0 {
		return body, err
	}
	again := make([]byte, len(overlap.bytes))
	switch _, err := io.ReadFull(body, again); {
	case err != nil:
		body.Close()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, &brokeError{err}
	case !bytes.Equal(again, overlap.bytes):
		body.Close()
		return nil, fmt.Errorf("%w: bytes %d to %d are others now", ErrSourceChanged, overlap.off, pos-1)
	}
	return body, nil
}

// looked returns the pin and what is known.
func (r *httpReader) looked() (pin, [2]excerpt) {
	r.pinMu.Lock()
	defer r.pinMu.Unlock()
	known := r.known
	for i := range known {
		known[i].bytes = bytes.Clone(known[i].bytes)
	}
	return r.pin, known
}

// resume pauses after a body broke off with err, or gives up.
func (r *httpReader) resume(attempt int, err error, mt *meter) error {
	if err == nil {
		err = io.ErrNoProgress
	} else if err == io.EOF {
		err = fmt.Errorf("%w: %w", ErrSizeMismatch, io.ErrUnexpectedEOF)
	}
	pause, again := r.m.options().pause(r.m.fail(0, err), attempt)
	if !again || r.usable() != nil {
		return err
	}
	begun := time.Now()
	defer mt.spend(begun)
	return sleep(r.ctx, pause)
}

// openRange requests a range that lies within the resource. An answer with another
// validator is looked into, see reconcile.
func (r *httpReader) openRange(want byteRange, mt *meter) (*httpBody, error) {
	for doubts := 0; ; doubts++ {
		p, _ := r.looked()
		body, err := r.requestRange(want, p, mt)
		if err == nil || !doubtsValidator(err) || doubts == 3 || r.reconcile(p) != nil {
			return body, err
		}
	}
}

func (r *httpReader) requestRange(want byteRange, p pin, mt *meter) (*httpBody, error) {
	a, err := r.m.exchange(r.ctx, want, p, waitUntilReady, mt)
	if err != nil {
		return nil, err
	}
	switch {
	case a.code == 206 && a.total == r.size:
		return a.body, nil
	case a.code == 200 && want.from == 0 && a.total == r.size:
		return a.body, nil // all of it will do: what is read is counted
	case a.code == 416:
		err = fmt.Errorf("%w: it ends before byte %d now and had %d bytes", ErrSourceChanged, want.from, r.size)
	default:
		err = fmt.Errorf("%w: the server no longer answers ranges (status %d)", ErrSourceChanged, a.code)
	}
	a.body.Close()
	return nil, err
}

// readStream reads on, and holds the end of the stream to what was promised. A stream
// that breaks off is begun again as often as an exchange is, and must be the same as
// far as it was read.
func (r *httpReader) readStream(p []byte) (int, error) {
	for {
		if r.err != nil {
			return 0, r.err
		}
		n, err := 0, error(nil)
		if r.body == nil {
			err = r.beginAgain()
		}
		if r.body != nil {
			n, err = r.readBody(p)
			n, err = r.judgeStream(p, n, err)
		}
		switch {
		case err == nil:
			return n, nil
		case err == io.EOF:
			r.dropBody()
			r.err = err
			return n, err
		}
		r.dropBody()
		if err := r.resume(r.breaks.count, err, r.meter); err != nil {
			r.err = r.failed(err)
			return n, r.err
		}
		r.breaks.count++ // whatever came: all of it has to come again
		if n > 0 {
			return n, nil
		}
	}
}

// judgeStream judges what a read of a stream returned, and counts what is good of it.
func (r *httpReader) judgeStream(p []byte, n int, err error) (int, error) {
	limit := r.m.options().maxSize()
	if r.size >= 0 {
		limit = r.size
	}
	if over := r.pos + int64(n) - limit; over > 0 {
		n -= int(over)
		err = fmt.Errorf("%w: it goes on after %d bytes", ErrSizeMismatch, limit)
		if r.size < 0 {
			err = fmt.Errorf("%w: %w; see HTTPOptions.MaxSize", ErrTooLarge, err)
		}
		err = final(err)
	}
	r.sum.Write(p[:n])
	r.pos += int64(n)
	if err == io.EOF && r.size >= 0 && r.pos < r.size {
		err = fmt.Errorf("%w: it ended after %d of %d bytes: %w", ErrSizeMismatch, r.pos, r.size, io.ErrUnexpectedEOF)
	}
	return n, err
}

// beginAgain opens the stream once more and reads up to pos. What is read must be what
// was read before, or else there is another source now; with that it does not matter
// what validators say.
func (r *httpReader) beginAgain() error {
	a, err := r.m.exchange(r.ctx, wholeBody, pin{size: r.size}, waitUntilReady, r.meter)
	if err != nil {
		return final(err) // that was tried often enough
	}
	if err := r.checkDelimited(a); err != nil {
		a.body.Close()
		return final(err)
	}
	r.body = a.body
	var sum maphash.Hash
	sum.SetSeed(r.sum.Seed())
	buf := make([]byte, min(r.pos, 64<<10))
	for at := int64(0); at < r.pos; {
		n, err := r.readBody(buf[:min(int64(len(buf)), r.pos-at)])
		sum.Write(buf[:n])
		if at += int64(n); at == r.pos {
			break
		}
		if err == io.EOF {
			err = final(fmt.Errorf("%w: it ends after %d bytes now and had %d or more", ErrSourceChanged, at, r.pos))
			if r.size >= 0 {
				err = io.ErrUnexpectedEOF
			}
		}
		if err != nil {
			r.dropBody()
			return err
		}
	}
	if sum.Sum64() != r.sum.Sum64() {
		r.dropBody()
		return final(fmt.Errorf("%w: its first %d bytes are others now", ErrSourceChanged, r.pos))
	}
	return nil
}

func (r *httpReader) dropBody() {
	if r.body != nil {
		r.body.Close()
		r.body = nil
	}
}

// Seek costs nothing by itself; the next Read makes a request. A stream can only be
// asked where it is.
func (r *httpReader) Seek(offset int64, whence int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed.Load() {
		return 0, ErrClosed
	}
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		if r.size < 0 {
			return 0, ErrSeekUnsupported
		}
		offset += r.size
	default:
		return 0, fmt.Errorf("seek: whence %d is not one of 0, 1, 2", whence)
	}
	switch {
	case offset < 0:
		return 0, fmt.Errorf("seek to %d: before the beginning", offset)
	case offset == r.pos:
		return r.pos, nil
	case !r.ranges:
		return 0, ErrSeekUnsupported
	}
	r.dropBody()
	r.pos = offset
	return r.pos, nil
}

// readMetered fills p from body, or returns why not: io.EOF if it ended.
func readMetered(body *httpBody, p []byte, mt *meter) (n int, err error) {
	for n < len(p) && err == nil {
		begun := time.Now()
		var m int
		m, err = body.Read(p[n:])
		n += m
		if slow := mt.delivered(begun, m); slow != nil && n < len(p) {
			return n, final(slow)
		}
	}
	if n == len(p) {
		err = nil
	}
	return n, err
}

// ReadAt makes a request of its own. Calls run concurrently with each other and
// with Read.
func (r *httpReader) ReadAt(p []byte, off int64) (n int, err error) {
	if err := r.usable(); err != nil {
		return 0, err
	}
	switch {
	case !r.ranges:
		return 0, ErrRandomAccessUnsupported
	case off < 0:
		return 0, fmt.Errorf("read at %d: before the beginning", off)
	case len(p) == 0:
		return 0, nil
	case off >= r.size:
		return 0, io.EOF
	}
	short := int64(len(p)) > r.size-off
	if short {
		p = p[:r.size-off]
	}
	var breaks breaks
	mt := r.m.options().meter()
	for n < len(p) {
		body, err := r.openRange(byteRange{off + int64(n), off + int64(len(p)) - 1}, mt)
		if err != nil {
			return n, r.failed(err)
		}
		m, err := readMetered(body, p[n:], mt)
		breaks.moved += int64(m)
		if n += m; n == len(p) {
			if err = body.finish(); err != nil {
				n = 0
			}
		}
		body.Close()
		switch {
		case err == nil:
		case n == 0 && m > 0, errors.Is(err, ErrTooSlow):
			return n, r.failed(err)
		default:
			if err := r.resume(breaks.again(int64(len(p))), err, mt); err != nil {
				return n, r.failed(err)
			}
		}
	}
	r.know(off, p)
	if short {
		return n, io.EOF
	}
	return n, nil
}

// Size returns the size of the resource, or -1 if the server did not tell.
func (r *httpReader) Size() int64 { return r.size }

// Close ends reads under way.
func (r *httpReader) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	r.cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropBody()
	return nil
}
