package mount

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// errUnsolicited ends a connection on which a server says more than it was asked.
var errUnsolicited = errors.New("the server sends what nobody asked for")

// guardedConn is an HTTP/1 connection that ends each answer where it ends. Package
// net/http reads on, and what comes unasked, on a connection that is idle or behind an
// answer, it prints to the standard logger, with the server's own words. Here such a
// connection fails instead, and net/http drops it without a word.
//
//	idle ──expect──▶ head ──▶ body or chunks ──▶ idle
//	                  └─────▶ free: to the connection's end, or not understood
//
// Reads come from one goroutine at a time; expect may come from another.
type guardedConn struct {
	net.Conn

	mu     sync.Mutex
	state  guardState
	left   int64        // of the body
	chunks chunkScanner // of chunks
	head   []byte       // the answer's, as far as it has come
	ready  []byte       // read, and of the answer
	held   []byte       // read, and not looked at
	err    error        // of the connection, behind all of them
}

type guardState int

const (
	guardIdle guardState = iota
	guardHead
	guardBody
	guardChunks
	guardFree
)

// maxGuardedHead is more than a transport accepts.
const maxGuardedHead = 128 << 10

// expect says that a request is about to be written.
func (c *guardedConn) expect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == guardIdle {
		c.state = guardHead
	}
}

func (c *guardedConn) Read(p []byte) (int, error) {
	for {
		c.mu.Lock()
		n, err := c.bufferedLocked(p)
		c.mu.Unlock()
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		n, err = c.Conn.Read(p)
		c.mu.Lock()
		c.err = err
		if n == 0 {
			c.endHeadLocked()
		} else if direct := c.directLocked(p[:n]); !direct {
			c.held = append(c.held, p[:n]...)
			n = 0
		}
		c.mu.Unlock()
		if n > 0 {
			return n, nil
		}
	}
}

// directLocked tells whether all of b belongs to the body of the answer, so that it need
// not be copied.
func (c *guardedConn) directLocked(b []byte) bool {
	switch c.state {
	case guardFree:
		return true
	case guardBody:
		if int64(len(b)) > c.left {
			return false
		}
		c.bodyLocked(b)
		return true
	case guardChunks:
		before := c.chunks
		if n, ok := c.chunks.scan(b); ok && n == len(b) {
			c.chunkedLocked()
			return true
		}
		c.chunks = before
	}
	return false
}

// bufferedLocked returns what is there of the answer, or the error behind it.
func (c *guardedConn) bufferedLocked(p []byte) (int, error) {
	for len(c.ready) == 0 && len(c.held) > 0 {
		if c.state == guardIdle {
			return 0, errUnsolicited
		}
		c.lookLocked()
	}
	if len(c.ready) > 0 {
		n := copy(p, c.ready)
		c.ready = c.ready[n:]
		return n, nil
	}
	if c.err != nil && c.state == guardHead && len(c.head) > 0 {
		c.endHeadLocked()
		return c.bufferedLocked(p)
	}
	return 0, c.err
}

// lookLocked takes from held what belongs to the answer.
func (c *guardedConn) lookLocked() {
	n := len(c.held)
	switch c.state {
	case guardHead:
		had := len(c.head)
		c.head = append(c.head, c.held...)
		c.held = nil
		if end := headEnd(c.head, max(0, had-3)); end > 0 {
			c.held = slices.Clone(c.head[end:])
			c.ready, c.head = c.head[:end:end], nil
			c.beginLocked()
		} else if len(c.head) > maxGuardedHead || !strings.HasPrefix("HTTP/", string(c.head[:min(5, len(c.head))])) && !bytes.HasPrefix(c.head, []byte("HTTP/")) {
			c.endHeadLocked()
		}
		return
	case guardBody:
		n = int(min(int64(n), c.left))
		c.bodyLocked(c.held[:n])
	case guardChunks:
		var ok bool
		if n, ok = c.chunks.scan(c.held); !ok {
			c.state, n = guardFree, len(c.held)
		} else {
			c.chunkedLocked()
		}
	}
	c.ready, c.held = c.held[:n:n], c.held[n:]
}

func (c *guardedConn) bodyLocked(b []byte) {
	if c.left -= int64(len(b)); c.left == 0 {
		c.state = guardIdle
	}
}

func (c *guardedConn) chunkedLocked() {
	if c.chunks.ended() {
		c.state = guardIdle
	}
}

// endHeadLocked gives up on a head: it has no end, or is none.
func (c *guardedConn) endHeadLocked() {
	if c.state == guardHead && len(c.head) > 0 {
		c.ready, c.head, c.state = c.head, nil, guardFree
	}
}

// headEnd returns where the empty line behind a head ends, or 0.
func headEnd(b []byte, from int) int {
	for i := from; i < len(b); i++ {
		if b[i] == '\n' {
			switch rest := b[i+1:]; {
			case len(rest) > 0 && rest[0] == '\n':
				return i + 2
			case len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n':
				return i + 3
			}
		}
	}
	return 0
}

// beginLocked finds out what follows the head that is ready, by net/http's own reading.
func (c *guardedConn) beginLocked() {
	resp, err := http.ReadResponse(bufio.NewReaderSize(bytes.NewReader(c.ready), len(c.ready)), nil)
	switch {
	case err != nil:
		c.state = guardFree
	case resp.StatusCode == http.StatusSwitchingProtocols:
		c.state = guardFree
	case resp.StatusCode < 200: // the answer comes behind it
	case slices.Equal(resp.TransferEncoding, []string{"chunked"}):
		c.state, c.chunks = guardChunks, chunkScanner{}
	case resp.ContentLength < 0:
		c.state = guardFree
	case resp.ContentLength == 0:
		c.state = guardIdle
	default:
		c.state, c.left = guardBody, resp.ContentLength
	}
}

// chunkScanner finds the end of a chunked body. Whether the chunks are well-formed is
// not its business.
//
//	size [;extension] CRLF data CRLF … 0 CRLF [trailer CRLF …] CRLF
type chunkScanner struct {
	at   int   // one of the below
	size int64 // of this chunk, then what is left of it with its CRLF
	line int   // bytes of this line of the trailer
}

const (
	chunkSize = iota
	chunkExtension
	chunkData
	chunkTrailer
	chunkEnd
)

func (s *chunkScanner) ended() bool { return s.at == chunkEnd }

// scan returns how many bytes of b belong to the body; false if it does not understand.
func (s *chunkScanner) scan(b []byte) (n int, ok bool) {
	for n < len(b) && s.at != chunkEnd {
		c := b[n]
		switch s.at {
		case chunkData:
			k := min(s.size, int64(len(b)-n))
			n += int(k)
			if s.size -= k; s.size == 0 {
				s.at = chunkSize
			}
			continue
		case chunkSize, chunkExtension:
			digit := strings.IndexByte("0123456789abcdef", c|0x20)
			switch {
			case c == '\n' && s.size == 0:
				s.at, s.line = chunkTrailer, 0
			case c == '\n':
				s.at, s.size = chunkData, s.size+2
			case s.at == chunkExtension:
			case digit < 0 || c < '0':
				s.at = chunkExtension
			case s.size >= 1<<58:
				return n, false
			default:
				s.size = s.size<<4 | int64(digit)
			}
		case chunkTrailer:
			switch {
			case c == '\n' && s.line == 0:
				s.at = chunkEnd
			case c == '\n':
				s.line = 0
			case c != '\r':
				s.line++
			}
		}
		n++
	}
	return n, true
}
