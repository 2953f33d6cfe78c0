package projection

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/dagstore/dagstore/journal"
)

// A checkpoint is the state of one view at one position, in one file:
//
//	header     who, which version, where
//	block 0 … block n-1
//	footer     n, and how many bytes the blocks hold
//
// All integers are little endian. The header is
//
//	  0  8  magic "dagckpt\n"
//	  8  4  format, 1
//	 12  4  version of the view
//	 16  8  Position.Seq
//	 24 32  Position.Digest
//	 56  1  length of the view's name
//	 57 71  the name, zeros
//	128  8  XXH64 of bytes 0..128
//
// and a block, or the footer, which is the block of length 0,
//
//	 0  4  length of the data
//	 4  4  number of the block; of the footer: how many blocks there are
//	 8  8  XXH64 of (the header's checksum ‖ bytes 0..8 ‖ the data)
//	16  n  data; of the footer: the sum of all lengths, 8 bytes
//
// after which the file ends. The header's checksum salts those of the blocks, so a
// block of another checkpoint passes for none of this one, and whatever byte is
// changed, cut off or added, reading ends with an error.
const (
	checkpointMagic      = "dagckpt\n"
	checkpointFormat     = 1
	checkpointHeaderSize = 136
	blockHeaderSize      = 16
	footerSize           = 8
	// maxCheckpointBlock is the longest block, and with it what a reader ever has to hold.
	maxCheckpointBlock = 4 << 20
	// maxViewName is the longest name of a view in bytes.
	maxViewName = 64
)

// checkpointID says what a checkpoint is of.
type checkpointID struct {
	view    string
	version uint32
	pos     journal.Position
}

var (
	// errDamagedCheckpoint is what is wrong with bytes that were not written so.
	errDamagedCheckpoint = errors.New("damaged")
	// errOtherFormat: a checkpoint of another release.
	errOtherFormat = errors.New("another format")
	// errOtherView: a checkpoint of another view, or of another version of this one.
	errOtherView = errors.New("another view")
)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDamagedCheckpoint, fmt.Sprintf(format, args...))
}

// header encodes id.
func (id *checkpointID) header() []byte {
	b := make([]byte, checkpointHeaderSize)
	copy(b, checkpointMagic)
	binary.LittleEndian.PutUint32(b[8:], checkpointFormat)
	binary.LittleEndian.PutUint32(b[12:], id.version)
	binary.LittleEndian.PutUint64(b[16:], id.pos.Seq)
	copy(b[24:56], id.pos.Digest[:])
	b[56] = byte(len(id.view))
	copy(b[57:128], id.view)
	binary.LittleEndian.PutUint64(b[128:], xxhash.Sum64(b[:128]))
	return b
}

// parseCheckpointHeader is the inverse of header.
func parseCheckpointHeader(b []byte) (id checkpointID, salt uint64, err error) {
	if string(b[:8]) != checkpointMagic {
		return id, 0, damaged("it does not begin as a checkpoint")
	}
	if format := binary.LittleEndian.Uint32(b[8:]); format != checkpointFormat {
		return id, 0, fmt.Errorf("%w: %d, this release reads %d", errOtherFormat, format, checkpointFormat)
	}
	salt = binary.LittleEndian.Uint64(b[128:])
	n := int(b[56])
	switch {
	case salt != xxhash.Sum64(b[:128]):
		return id, 0, damaged("the header does not match its checksum")
	case n > maxViewName || strings.Trim(string(b[57+n:128]), "\x00") != "":
		return id, 0, damaged("the header names no view")
	}
	id.version = binary.LittleEndian.Uint32(b[12:])
	id.pos.Seq = binary.LittleEndian.Uint64(b[16:])
	copy(id.pos.Digest[:], b[24:56])
	id.view = string(b[57 : 57+n])
	return id, salt, nil
}

// blockSum is the checksum of a block whose header's first 8 bytes are head.
func blockSum(salt uint64, head, data []byte) uint64 {
	var h xxhash.Digest
	h.Reset()
	var s [8]byte
	binary.LittleEndian.PutUint64(s[:], salt)
	// A Digest's Write never fails.
	_, _ = h.Write(s[:])
	_, _ = h.Write(head[:8])
	_, _ = h.Write(data)
	return h.Sum64()
}

// checkpointWriter writes a checkpoint to w. Its errors are w's, or say what a view
// emitted that is no block.
type checkpointWriter struct {
	w      io.Writer
	salt   uint64
	blocks uint32
	data   uint64 // bytes in the blocks so far
	size   int64  // of the file so far
}

func (c *checkpointWriter) begin(id *checkpointID) error {
	h := id.header()
	c.salt = binary.LittleEndian.Uint64(h[128:])
	return c.write(h)
}

func (c *checkpointWriter) write(b []byte) error {
	n, err := c.w.Write(b)
	c.size += int64(n)
	return err
}

// block writes the next block.
func (c *checkpointWriter) block(data []byte) error {
	if len(data) == 0 || len(data) > maxCheckpointBlock {
		return fmt.Errorf("a block of %d bytes; 1 to %d are allowed", len(data), maxCheckpointBlock)
	}
	head := c.frame(len(data), data)
	c.blocks++
	c.data += uint64(len(data))
	if err := c.write(head[:]); err != nil {
		return err
	}
	return c.write(data)
}

// end writes the footer.
func (c *checkpointWriter) end() error {
	var total [footerSize]byte
	binary.LittleEndian.PutUint64(total[:], c.data)
	head := c.frame(0, total[:])
	return c.write(append(head[:], total[:]...))
}

func (c *checkpointWriter) frame(length int, data []byte) (head [blockHeaderSize]byte) {
	binary.LittleEndian.PutUint32(head[0:], uint32(length))
	binary.LittleEndian.PutUint32(head[4:], c.blocks)
	binary.LittleEndian.PutUint64(head[8:], blockSum(c.salt, head[:], data))
	return head
}

// checkpointReader reads a checkpoint of size bytes from the front of src.
type checkpointReader struct {
	id     checkpointID
	src    io.Reader
	left   int64 // bytes of src that were not read yet
	salt   uint64
	blocks uint32
	data   uint64
	buf    []byte
	done   bool // the footer was read and nothing follows it
}

func newCheckpointReader(src io.Reader, size int64) (*checkpointReader, error) {
	c := &checkpointReader{src: src, left: size}
	var h [checkpointHeaderSize]byte
	if err := c.read(h[:]); err != nil {
		return nil, err
	}
	var err error
	c.id, c.salt, err = parseCheckpointHeader(h[:])
	if err != nil {
		return nil, err
	}
	return c, nil
}

// read fills b. Nothing is allocated for what the file does not hold: callers come
// here with lengths that are at most maxCheckpointBlock, and left is the file's.
func (c *checkpointReader) read(b []byte) error {
	if int64(len(b)) > c.left {
		return damaged("it ends %d bytes early", int64(len(b))-c.left)
	}
	_, err := io.ReadFull(c.src, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("it has become shorter")
	}
	c.left -= int64(len(b))
	return err
}

// next returns the next block, valid until the call after, and io.EOF after the
// last, when the footer has said that all were there.
func (c *checkpointReader) next() ([]byte, error) {
	if c.done {
		return nil, io.EOF
	}
	var head [blockHeaderSize]byte
	if err := c.read(head[:]); err != nil {
		return nil, err
	}
	n := int64(binary.LittleEndian.Uint32(head[:]))
	switch {
	case n == 0:
		return nil, c.footer(head[:])
	case n > maxCheckpointBlock || n > c.left:
		return nil, damaged("block %d says that it has %d bytes", c.blocks, n)
	}
	if int64(cap(c.buf)) < n {
		c.buf = make([]byte, n)
	}
	c.buf = c.buf[:n]
	if err := c.read(c.buf); err != nil {
		return nil, err
	}
	if err := c.verify(head[:], c.buf); err != nil {
		return nil, err
	}
	c.blocks++
	c.data += uint64(n)
	return c.buf, nil
}

func (c *checkpointReader) footer(head []byte) error {
	var total [footerSize]byte
	if err := c.read(total[:]); err != nil {
		return err
	}
	if err := c.verify(head, total[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint64(total[:]) != c.data || c.left != 0 {
		return damaged("its end does not match its contents")
	}
	c.done = true
	return io.EOF
}

func (c *checkpointReader) verify(head, data []byte) error {
	if binary.LittleEndian.Uint32(head[4:]) != c.blocks ||
		binary.LittleEndian.Uint64(head[8:]) != blockSum(c.salt, head, data) {
		return damaged("block %d does not match its checksum", c.blocks)
	}
	return nil
}

// finish reads what was not read yet. It is nil if the whole file is as it was
// written, and skipped says how many blocks nobody had asked for.
func (c *checkpointReader) finish() (skipped int, err error) {
	for {
		switch _, err := c.next(); {
		case errors.Is(err, io.EOF):
			return skipped, nil
		case err != nil:
			return skipped, err
		}
		skipped++
	}
}
