package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// Fetch asks for the resource's first byte, to learn whether the server answers
// ranges, and returns a reader bound to the representation found. It waits for a
// source that is not ready, within the limits of the options. The reader lives
// until ctx ends or it is closed.
func (m *HTTPMount) Fetch(ctx context.Context) (Reader, error) {
	ctx, cancel := context.WithCancel(ctx)
	r, err := m.open(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	r.ctx, r.cancel = ctx, cancel
	return r, nil
}

func (m *HTTPMount) open(ctx context.Context) (*httpReader, error) {
	a, err := m.exchange(ctx, byteRange{0, 0}, pin{size: -1}, waitUntilReady)
	if err != nil {
		return nil, err
	}
	r := &httpReader{m: m}
	// A probe of an empty resource is answered with "bytes */0", or with all of it.
	if r.ranges = a.total == 0 || a.code != 200 && a.total > 0; r.ranges {
		a.body.discard()
		r.pin = pin{size: a.total, etag: a.etag, lastModified: a.lastModified}
		return r, m.checkSize(a.total)
	}
	if a.code != 200 { // a range of a resource of unknown size: all of it, then
		a.body.discard()
		if a, err = m.exchange(ctx, wholeBody, pin{size: -1}, waitUntilReady); err != nil {
			return nil, err
		}
	}
	r.body, r.pin.size = a.body, a.total
	err = m.checkSize(a.total)
	if a.total < 0 && m.Size > 0 {
		r.pin.size = m.Size
	}
	if err == nil && r.pin.size < 0 && !a.delimited {
		err = m.fail(0, errors.New("the server tells neither the size nor where the body ends, so that a part could not be told from the whole; set HTTPMount.Size"))
	}
	if err != nil {
		a.body.Close()
		return nil, err
	}
	return r, nil
}

// httpReader reads a resource: by ranges, or once from the front.
//
//	ranges:   pin.size ≥ 0; body is nil or delivers the bytes [pos, pin.size)
//	stream:   body delivers [pos, end); pin.size is -1 if the end is not known
type httpReader struct {
	m      *HTTPMount
	ctx    context.Context
	cancel context.CancelFunc
	ranges bool
	pin    pin
	closed atomic.Bool

	mu   sync.Mutex // held by Read and Seek
	pos  int64
	body *httpBody
	err  error // of the stream; it stays
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
	if r.pos >= r.pin.size {
		return 0, io.EOF
	}
	for attempt := 0; ; attempt++ {
		if r.body == nil {
			body, err := r.openRange(byteRange{r.pos, -1})
			if err != nil {
				return 0, r.failed(err)
			}
			r.body = body
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.pin.size-r.pos)])
		r.pos += int64(n)
		if err != nil || r.pos == r.pin.size {
			r.dropBody()
		}
		if n > 0 {
			return n, nil
		}
		if err := r.resume(attempt, err); err != nil {
			return 0, r.failed(err)
		}
	}
}

// resume pauses after a body broke off with err, or gives up.
func (r *httpReader) resume(attempt int, err error) error {
	if err == nil {
		err = io.ErrNoProgress
	} else if err == io.EOF {
		err = fmt.Errorf("%w: %w", ErrSizeMismatch, io.ErrUnexpectedEOF)
	}
	pause, again := r.m.options().pause(r.m.fail(0, err), attempt)
	if !again || r.usable() != nil {
		return err
	}
	return sleep(r.ctx, pause)
}

// openRange requests a range that lies within the resource.
func (r *httpReader) openRange(want byteRange) (*httpBody, error) {
	a, err := r.m.exchange(r.ctx, want, r.pin, waitUntilReady)
	if err != nil {
		return nil, err
	}
	switch {
	case a.code == 206 && a.total == r.pin.size:
		return a.body, nil
	case a.code == 200 && want.from == 0 && a.total == r.pin.size:
		return a.body, nil // all of it will do: what is read is counted
	case a.code == 416:
		err = fmt.Errorf("%w: it ends before byte %d now and had %d bytes", ErrSourceChanged, want.from, r.pin.size)
	default:
		err = fmt.Errorf("%w: the server no longer answers ranges (status %d)", ErrSourceChanged, a.code)
	}
	a.body.Close()
	return nil, err
}

// readStream reads on, and holds the end of the stream to what was promised.
func (r *httpReader) readStream(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	limit := r.m.options().maxSize()
	if r.pin.size >= 0 {
		limit = r.pin.size
	}
	n, err := r.body.Read(p)
	if over := r.pos + int64(n) - limit; over > 0 {
		n -= int(over)
		err = fmt.Errorf("%w: it goes on after %d bytes", ErrSizeMismatch, limit)
		if r.pin.size < 0 {
			err = fmt.Errorf("%w: %w; see HTTPOptions.MaxSize", ErrTooLarge, err)
		}
	}
	r.pos += int64(n)
	if err == io.EOF && r.pin.size >= 0 && r.pos < r.pin.size {
		err = fmt.Errorf("%w: it ended after %d of %d bytes: %w", ErrSizeMismatch, r.pos, r.pin.size, io.ErrUnexpectedEOF)
	}
	if err != nil {
		r.dropBody()
		if err != io.EOF {
			err = r.failed(err)
		}
		r.err = err
	}
	return n, err
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
		if r.pin.size < 0 {
			return 0, ErrSeekUnsupported
		}
		offset += r.pin.size
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
	case off >= r.pin.size:
		return 0, io.EOF
	}
	short := int64(len(p)) > r.pin.size-off
	if short {
		p = p[:r.pin.size-off]
	}
	for attempt := 0; n < len(p); attempt++ {
		at := off + int64(n)
		body, err := r.openRange(byteRange{at, off + int64(len(p)) - 1})
		if err != nil {
			return n, r.failed(err)
		}
		m, err := io.ReadFull(body, p[n:])
		body.Close()
		if n += m; n == len(p) {
			break
		}
		if m > 0 {
			attempt = 0
		}
		if err == io.ErrUnexpectedEOF {
			err = io.EOF
		}
		if err := r.resume(attempt, err); err != nil {
			return n, r.failed(err)
		}
	}
	if short {
		return n, io.EOF
	}
	return n, nil
}

// Size returns the size of the resource, or -1 if the server did not tell.
func (r *httpReader) Size() int64 { return r.pin.size }

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
