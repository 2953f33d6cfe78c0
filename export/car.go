package export

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/planted"
)

// carWriter writes a CARv1 within the bounds of an export.
//
//	res.Bytes = what the bufio.Writer was given, whole sections only
//
// The header waits for the first section, or for the end of a walk that needed none: until
// the first root's block is had and decoded nothing is written, and whoever serves others
// can still say that it is not there.
type carWriter struct {
	w    *bufio.Writer
	opts Options
	head []byte // not written yet
	res  Result
	err  error // of w: nothing is written after it
}

func newCARWriter(w io.Writer, opts Options, roots []cid.Cid) (*carWriter, error) {
	head, err := carHeader(roots)
	if err != nil {
		return nil, err
	}
	if uint64(len(head)) > opts.MaxBytes {
		return nil, &LimitError{What: "bytes", Limit: opts.MaxBytes, Cid: roots[0]}
	}
	return &carWriter{w: bufio.NewWriterSize(w, 64<<10), opts: opts, head: head}, nil
}

// begin writes the header, unless that was done.
func (cw *carWriter) begin() error {
	if n := len(cw.head); n > 0 {
		cw.put(cw.head)
		cw.head = nil
		if cw.err == nil {
			cw.res.Bytes = uint64(n)
		}
	}
	return cw.failed()
}

// carHeader is {"roots": [&cid, …], "version": 1} in DAG-CBOR, with its length before it.
func carHeader(roots []cid.Cid) ([]byte, error) {
	if len(roots) == 0 {
		return nil, errors.New("no root")
	}
	body := append([]byte{0xa2}, "\x65roots"...)
	body = appendHead(body, 4, uint64(len(roots)))
	for i, c := range roots {
		if !c.Defined() {
			return nil, fmt.Errorf("root %d is undefined", i)
		}
		body = append(body, 0xd8, 42)
		body = appendHead(body, 2, uint64(c.ByteLen())+1)
		body = append(body, 0) // the identity multibase
		body = append(body, c.KeyString()...)
	}
	body = append(body, "\x67version\x01"...)
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...), nil
}

// appendHead appends the head of a CBOR item in its shortest form.
func appendHead(b []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
}

func (cw *carWriter) put(b []byte) {
	if cw.err == nil {
		_, cw.err = cw.w.Write(b)
	}
}

// failed says why w takes no more.
func (cw *carWriter) failed() error {
	if cw.err != nil {
		return &writeError{cw.res.Blocks, cw.err}
	}
	return nil
}

// writeError says that the receiver takes no more.
type writeError struct {
	blocks uint64
	err    error
}

func (e *writeError) Error() string {
	return fmt.Sprintf("write the CAR, after %d blocks: %v", e.blocks, e.err)
}
func (e *writeError) Unwrap() error { return e.err }

// section writes a block.
func (cw *carWriter) section(c cid.Cid, data []byte, depth int) error {
	n := uint64(c.ByteLen()) + uint64(len(data))
	var prefix [binary.MaxVarintLen64]byte
	k := binary.PutUvarint(prefix[:], n)
	n += uint64(k)
	switch {
	case cw.res.Blocks >= cw.opts.MaxBlocks && !planted.Bug("export-blocks-not-bounded"):
		return &LimitError{"blocks", cw.opts.MaxBlocks, c, depth}
	case n > cw.opts.MaxBytes-cw.res.Bytes-uint64(len(cw.head)):
		return &LimitError{"bytes", cw.opts.MaxBytes, c, depth}
	}
	if err := cw.begin(); err != nil {
		return err
	}
	cw.put(prefix[:k])
	if cw.err == nil {
		_, cw.err = cw.w.WriteString(c.KeyString())
	}
	cw.put(data)
	if err := cw.failed(); err != nil {
		return err
	}
	cw.res.Blocks++
	cw.res.Bytes += n
	return nil
}

// finish flushes what was written, also after an error of the walk.
func (cw *carWriter) finish(err error) (Result, error) {
	if err == nil {
		err = cw.begin() // all was in the CIDs of the roots
	}
	if cw.err == nil {
		cw.err = cw.w.Flush()
	}
	if err == nil {
		err = cw.failed()
	}
	if err != nil {
		err = fmt.Errorf("export: %w", err)
	}
	return cw.res, err
}

// check holds the size and, unless the source does it, the bytes of a block against the
// bounds and its CID.
func (cw *carWriter) check(c cid.Cid, data []byte, depth int) error {
	if len(data) > cw.opts.MaxBlockSize {
		return &LimitError{"bytes of one block", uint64(cw.opts.MaxBlockSize), c, depth}
	}
	if cw.opts.SkipVerify {
		return nil
	}
	d, err := mh.Decode(c.Hash())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !carscan.Matches(d.Code, d.Digest, data) {
		return ErrHashMismatch
	}
	return nil
}
