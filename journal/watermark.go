package journal

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
)

// HEAD tells other processes how far the journal is durable. The writer overwrites it
// in place, with one write, after each sync and before anybody is told:
//
//	  0  8  magic "dagsthwm"
//	  8  4  format version, 1
//	 12  4  1 if the writer closed the journal
//	 16  8  the writer's epoch, drawn at random when it opened the journal
//	 24  8  number of the last segment
//	 32  8  salt of that segment
//	 40  8  end of its durable frames, an offset
//	 48  8  seq of the head
//	 56 32  chain digest of the head
//	 88  8  seq of the horizon
//	 96  8  when it was written, nanoseconds since 1970
//	104 20  zero
//	124  4  CRC32C of bytes 0..124
//
// It is never synced and adds nothing to what the journal holds. So a HEAD that is
// missing, torn, of another format or behind costs a follower time. But what a HEAD says
// that can be read is true for ever, because a head is never taken back:
//
//	HEAD says (segment, end, head)  ⇒  [0, end) of segment is durable and ends at head
//
// Whoever opens the journal for writing holds it to that: a log that ends before its
// HEAD is damaged (witness.go).
const (
	headName    = "HEAD"
	headMagic   = "dagsthwm"
	headVersion = 1
	headSize    = 128
	headClosed  = 1
)

type watermark struct {
	closed  bool
	epoch   uint64
	number  uint64 // of the segment
	salt    salt
	end     int64
	pos     Position
	horizon uint64
	time    int64
}

func (w *watermark) put(b *[headSize]byte) {
	clear(b[:])
	copy(b[:], headMagic)
	binary.LittleEndian.PutUint32(b[8:], headVersion)
	if w.closed {
		binary.LittleEndian.PutUint32(b[12:], headClosed)
	}
	binary.LittleEndian.PutUint64(b[16:], w.epoch)
	binary.LittleEndian.PutUint64(b[24:], w.number)
	copy(b[32:], w.salt[:])
	binary.LittleEndian.PutUint64(b[40:], uint64(w.end))
	binary.LittleEndian.PutUint64(b[48:], w.pos.Seq)
	copy(b[56:], w.pos.Digest[:])
	binary.LittleEndian.PutUint64(b[88:], w.horizon)
	binary.LittleEndian.PutUint64(b[96:], uint64(w.time))
	binary.LittleEndian.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
}

// parse reads b. false means that it tells nothing: it is torn, or of a format that
// this release does not know.
func (w *watermark) parse(b *[headSize]byte) bool {
	flags := binary.LittleEndian.Uint32(b[12:])
	if string(b[:8]) != headMagic || binary.LittleEndian.Uint32(b[8:]) != headVersion || flags&^headClosed != 0 ||
		binary.LittleEndian.Uint32(b[124:]) != crc32.Checksum(b[:124], castagnoli) {
		return false
	}
	*w = watermark{
		closed: flags&headClosed != 0,
		epoch:  binary.LittleEndian.Uint64(b[16:]),
		number: binary.LittleEndian.Uint64(b[24:]),
		salt:   salt(b[32:40]),
		end:    int64(binary.LittleEndian.Uint64(b[40:])),
		pos:    Position{Seq: binary.LittleEndian.Uint64(b[48:]), Digest: [32]byte(b[56:88])},

		horizon: binary.LittleEndian.Uint64(b[88:]),
		time:    int64(binary.LittleEndian.Uint64(b[96:])),
	}
	return w.number > 0 && w.end >= segmentHeaderSize && w.horizon <= w.pos.Seq
}

// headFile is the writer's end of HEAD.
type headFile struct {
	file  fsio.File // nil until it could be opened
	epoch uint64
	buf   [headSize]byte
}

// tell writes HEAD: pos is durable, and ends where f.tail does. It fails without a
// word but in the statistics, and the next one tries again: no append fails because a
// follower learns of it late.
func (f *File) tell(pos Position, closed bool) {
	w := watermark{
		closed: closed, epoch: f.told.epoch,
		number: f.tail.number, salt: f.tail.salt, end: f.tail.end,
		pos: pos, horizon: f.horizon().Seq, time: time.Now().UnixNano(),
	}
	w.put(&f.told.buf)
	var err error
	if f.told.file == nil {
		var file fsio.File
		if file, err = f.fsys.OpenFile(f.path(headName), os.O_RDWR|os.O_CREATE, fileMode); err == nil {
			f.told.file = file
		}
	}
	if err == nil {
		err = writeAt(f.told.file, f.told.buf[:], 0)
	}
	if err != nil {
		f.mu.Lock()
		f.mu.stats.HeadErrors++
		f.mu.Unlock()
	}
}
