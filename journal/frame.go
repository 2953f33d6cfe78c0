package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"

	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// A frame is one record of a segment, or the value of one datastore key. All
// integers are little endian.
//
//	 0  3  magic "djf"
//	 3  1  frame version, 1
//	 4  1  kind: 1 batch, 2 footer, 3 mark
//	 5  3  zero
//	 8  4  payload length n
//	12  4  count of events
//	16  8  offset of this frame in its segment; 0 in a datastore
//	24  8  seq of the first event; for footer and mark: of the event to come
//	32 32  chain digest after this frame (Position.Digest)
//	64  4  CRC32C of the payload
//	68  4  CRC32C of the segment's salt and bytes 0..68
//	72  n  payload: the events, each as shard.AppendEvent writes it
//	       zeros up to a multiple of 8
//
// The header has its own checksum, so that a damaged length is known to be damage
// and never taken for a short file. The offset makes every frame a witness: a frame
// is written only after all before it was synced, hence
//
//	a valid frame stands at offset o  ⇒  bytes [0, o) were durable
//
// and whatever is broken in front of a witness is damage, not a tear. The salt is
// drawn at random per segment: neither frames of a recycled file nor bytes that
// somebody chose as a key can pass for a frame of this segment.
//
// A footer ends a sealed segment. A mark is written by a clean Close and says only
// that all before it is durable; anything may follow it.
const (
	frameMagic      = "djf"
	frameVersion    = 1
	frameHeaderSize = 72
	frameAlign      = 8

	// maxPayload bounds a batch, and with it what a reader ever has to hold.
	maxPayload = 64 << 20
	// minEvent is the size of the smallest encoded event.
	minEvent = 14
)

type frameKind uint8

const (
	frameBatch frameKind = iota + 1
	frameFooter
	frameMark

	numFrameKinds
)

type frameHeader struct {
	kind       frameKind
	version    uint8
	length     uint32
	count      uint32
	offset     uint64
	first      uint64
	digest     [32]byte
	payloadCRC uint32
}

// salt of a segment; the zero salt is that of datastore values.
type salt [8]byte

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameSize is the length of a frame with n bytes of payload, padding included.
func frameSize(n int) int {
	return (frameHeaderSize + n + frameAlign - 1) &^ (frameAlign - 1)
}

// headerCRC covers the salt and the header b up to the checksum itself.
func headerCRC(s *salt, b []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, s[:]), castagnoli, b[:frameHeaderSize-4])
}

// put writes h into the first bytes of b, checksum included.
func (h *frameHeader) put(b []byte, s *salt) {
	copy(b, frameMagic)
	b[3] = frameVersion
	b[4], b[5], b[6], b[7] = byte(h.kind), 0, 0, 0
	binary.LittleEndian.PutUint32(b[8:], h.length)
	binary.LittleEndian.PutUint32(b[12:], h.count)
	binary.LittleEndian.PutUint64(b[16:], h.offset)
	binary.LittleEndian.PutUint64(b[24:], h.first)
	copy(b[32:], h.digest[:])
	binary.LittleEndian.PutUint32(b[64:], h.payloadCRC)
	binary.LittleEndian.PutUint32(b[68:], headerCRC(s, b))
}

// parseHeader reads the header at the front of b, which holds at least
// frameHeaderSize bytes. ok means that these bytes were written as a frame header
// of this segment.
func parseHeader(b []byte, s *salt) (h frameHeader, ok bool) {
	if string(b[:3]) != frameMagic || binary.LittleEndian.Uint32(b[68:]) != headerCRC(s, b) {
		return h, false
	}
	h.version, h.kind = b[3], frameKind(b[4])
	h.length = binary.LittleEndian.Uint32(b[8:])
	h.count = binary.LittleEndian.Uint32(b[12:])
	h.offset = binary.LittleEndian.Uint64(b[16:])
	h.first = binary.LittleEndian.Uint64(b[24:])
	copy(h.digest[:], b[32:])
	h.payloadCRC = binary.LittleEndian.Uint32(b[64:])
	return h, true
}

// digester computes the links of the chain without allocating.
type digester struct {
	h    hash.Hash
	head [40]byte
	sum  [32]byte
}

// next is Position.Digest after a batch.
func (d *digester) next(before *[32]byte, first uint64, payload []byte) [32]byte {
	if d.h == nil {
		d.h = sha256.New()
	}
	copy(d.head[:32], before[:])
	binary.LittleEndian.PutUint64(d.head[32:], first)
	d.h.Reset()
	d.h.Write(d.head[:])
	d.h.Write(payload)
	d.h.Sum(d.sum[:0])
	return d.sum
}

// encoder turns batches into frames in one buffer that it keeps.
type encoder struct {
	digester
	buf []byte
}

// batch encodes events as the frame that follows pos at offset. The frame is valid
// until the next call. Nothing is changed by an error.
func (e *encoder) batch(events []shard.Event, pos Position, offset int64, s *salt) (frame []byte, end Position, err error) {
	e.reset()
	for i := range events {
		ev := &events[i]
		if err := checkEvent(ev, pos.Seq+1+uint64(i)); err != nil {
			return nil, Position{}, err
		}
		e.buf = shard.AppendEvent(e.buf, ev)
		if e.len() > maxPayload {
			return nil, Position{}, fmt.Errorf("%w: %d events fill more than %d bytes; append them in smaller batches", ErrTooLarge, len(events), maxPayload)
		}
	}
	frame, end = e.frame(len(events), pos, offset, s)
	return frame, end, nil
}

var blankHeader [frameHeaderSize]byte

// reset begins a frame: its payload is appended to e.buf.
func (e *encoder) reset() { e.buf = append(e.buf[:0], blankHeader[:]...) }

// len is the size of the payload so far.
func (e *encoder) len() int { return len(e.buf) - frameHeaderSize }

// frame makes the payload so far, of count events, the frame that follows pos.
func (e *encoder) frame(count int, pos Position, offset int64, s *salt) (frame []byte, end Position) {
	payload := e.buf[frameHeaderSize:]
	end = Position{Seq: pos.Seq + uint64(count), Digest: e.next(&pos.Digest, pos.Seq+1, payload)}
	h := frameHeader{
		kind: frameBatch, length: uint32(len(payload)), count: uint32(count),
		offset: uint64(offset), first: pos.Seq + 1, digest: end.Digest,
		payloadCRC: crc32.Checksum(payload, castagnoli),
	}
	h.put(e.buf, s)
	e.buf = append(e.buf, blankHeader[:frameSize(len(payload))-len(e.buf)]...)
	return e.buf, end
}

// checkEvent refuses what could not be read back as it is.
func checkEvent(ev *shard.Event, seq uint64) error {
	switch {
	case ev.Seq != seq:
		return fmt.Errorf("%w: seq %d where %d comes next", ErrOutOfOrder, ev.Seq, seq)
	case !legal(ev):
		return fmt.Errorf("journal: append: %w: seq %d: gen %d, kind %d, life %d", shard.ErrBadEvent, seq, ev.Gen, ev.Kind, ev.State.Life)
	}
	return nil
}

// legal reports whether ev can be read back as it is.
func legal(ev *shard.Event) bool {
	return ev.Gen > 0 && ev.Gen <= ev.Seq && ev.Kind >= shard.EventRegistered && ev.Kind <= shard.EventDestroyed &&
		ev.State.Life <= shard.Recovering
}

// bare encodes a footer or a mark, a frame without payload.
func (e *encoder) bare(kind frameKind, pos Position, offset int64, s *salt) []byte {
	e.buf = append(e.buf[:0], make([]byte, frameHeaderSize)...)
	h := frameHeader{kind: kind, offset: uint64(offset), first: pos.Seq + 1, digest: pos.Digest}
	h.put(e.buf, s)
	return e.buf
}

// verdict is what a verifier says of the bytes at a place.
type verdict uint8

const (
	// frameOK: a frame of this journal that follows what came before it.
	frameOK verdict = iota
	// frameShort: the frame goes on behind the bytes at hand.
	frameShort
	// frameNone: zeros where a header would stand.
	frameNone
	// frameBad: anything else.
	frameBad
)

// verifier follows the chain through the frames of one segment.
type verifier struct {
	digester
	salt salt
	pos  Position // after the last frame that was OK
	what string   // says what was wrong after frameBad
	rot  bool     // and that no tear can have done it
}

var zeros [1 << 20]byte

func allZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// next judges the frame at the front of b, which stands at offset off. size is the
// frame's length, padding included, after frameOK, and how many bytes are needed
// after frameShort. Of batches that end at or before skip only the header is
// verified.
func (v *verifier) next(b []byte, off int64, skip uint64) (h frameHeader, size int, is verdict) {
	if len(b) < frameHeaderSize {
		return h, frameHeaderSize, frameShort
	}
	if allZero(b[:frameHeaderSize]) {
		return h, frameHeaderSize, frameNone
	}
	h, ok := parseHeader(b, &v.salt)
	if !ok {
		return v.bad(h, "the frame header does not match its checksum")
	}
	if what := v.checkHeader(&h, off); what != "" {
		// A header that stands where it belongs was written there.
		v.rot = h.offset == uint64(off)
		return v.bad(h, what)
	}
	size = frameSize(int(h.length))
	if len(b) < size {
		return h, size, frameShort
	}
	payload := b[frameHeaderSize : frameHeaderSize+int(h.length)]
	if !allZero(b[frameHeaderSize+len(payload) : size]) {
		return v.bad(h, "the padding after the frame is not zero")
	}
	end := Position{Seq: v.pos.Seq + uint64(h.count), Digest: h.digest}
	if h.kind == frameBatch && end.Seq > skip {
		if crc32.Checksum(payload, castagnoli) != h.payloadCRC {
			return v.bad(h, "the payload does not match its checksum")
		}
		if v.digester.next(&v.pos.Digest, h.first, payload) != h.digest && !planted.Bug("journal-broken-chain-accepted") {
			v.rot = true
			return v.bad(h, "the digest chain is broken")
		}
	}
	v.pos = end
	return h, size, frameOK
}

func (v *verifier) bad(h frameHeader, what string) (frameHeader, int, verdict) {
	v.what = what
	return h, 0, frameBad
}

// checkHeader says what is wrong with a header whose checksum is right.
func (v *verifier) checkHeader(h *frameHeader, off int64) string {
	switch {
	case h.version != frameVersion:
		return fmt.Sprintf("frame version %d", h.version)
	case h.offset != uint64(off):
		return fmt.Sprintf("the frame belongs at offset %d", h.offset)
	case h.first != v.pos.Seq+1:
		return fmt.Sprintf("seq %d where %d comes next", h.first, v.pos.Seq+1)
	case h.kind == frameBatch:
		if h.length > maxPayload || h.count == 0 || uint64(h.count)*minEvent > uint64(h.length) {
			return fmt.Sprintf("%d events in %d bytes", h.count, h.length)
		}
		return ""
	case h.kind == 0 || h.kind >= numFrameKinds:
		return fmt.Sprintf("frame kind %d", h.kind)
	case h.length != 0 || h.count != 0 || h.digest != v.pos.Digest:
		return "the end mark does not match what it ends"
	}
	return ""
}

// decodeBatch decodes payload, which ends at end, into events, whose capacity it
// reuses.
func decodeBatch(events []shard.Event, payload string, first uint64, count int) ([]shard.Event, error) {
	events = events[:0]
	for i := range count {
		events = append(events, shard.Event{})
		var err error
		if payload, err = shard.DecodeEvent(payload, first+uint64(i), &events[i]); err != nil {
			return events, err
		}
	}
	if payload != "" {
		return events, fmt.Errorf("%w: %d bytes follow the last of %d events", shard.ErrBadEvent, len(payload), count)
	}
	return events, nil
}
