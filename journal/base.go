package journal

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// The base of a compacted journal is a file
//
//	<seq of the horizon, 16 hex digits>.base
//
//	 0  8  magic "dagstbas"
//	 8  4  format version, 1
//	12  4  zero
//	16  8  seq of the horizon
//	24 32  chain digest at the horizon
//	56  8  salt of this file's frames
//	64 12  zero
//	76  4  CRC32C of bytes 0..76
//	80     frames (frame.go): runs of events, then a footer, and nothing behind it
//
// A run is a batch frame whose events are each
//
//	seq uvarint ‖ the event as shard.AppendEvent writes it
//
// because the newest events of the shards that lived at the horizon do not follow
// each other. In place of sequence numbers the frames count events: "first" is the
// number of events before, plus one. Their chain begins with the digest of the
// horizon, so that no frame of another base fits; the footer ends it with the count
// of all events.
//
// A base gets its name when all of it is durable. There is no torn base: one that
// does not verify is damage.
const (
	baseMagic   = "dagstbas"
	baseVersion = 1
	baseSuffix  = ".base"

	// runSize is up to how many bytes of events a run has, unless one is larger.
	runSize = 1 << 20
)

// baseFile is what a base's header says.
type baseFile struct {
	at   Position
	salt salt
}

func baseName(seq uint64) string { return fmt.Sprintf("%016x%s", seq, baseSuffix) }

// parseBaseName returns the seq of the horizon of the base called name.
func parseBaseName(name string) (seq uint64, ok bool) {
	hex, _ := strings.CutSuffix(name, baseSuffix)
	seq, err := strconv.ParseUint(hex, 16, 64)
	return seq, err == nil && seq > 0 && baseName(seq) == name
}

func (b *baseFile) name() string { return baseName(b.at.Seq) }

func (b *baseFile) header() []byte {
	h := make([]byte, segmentHeaderSize)
	copy(h, baseMagic)
	binary.LittleEndian.PutUint32(h[8:], baseVersion)
	binary.LittleEndian.PutUint64(h[16:], b.at.Seq)
	copy(h[24:], b.at.Digest[:])
	copy(h[56:], b.salt[:])
	binary.LittleEndian.PutUint32(h[76:], crc32.Checksum(h[:76], castagnoli))
	return h
}

// readBase reads header and footer of a base of size bytes that should be of the
// horizon at. The frames between them are verified when they are visited.
func readBase(f io.ReaderAt, at Position, size int64) (b baseFile, err error) {
	name := baseName(at.Seq)
	damage := func(off int64, what string) (baseFile, error) {
		return b, &DamageError{File: name, Offset: off, What: what}
	}
	h := make([]byte, segmentHeaderSize)
	n, err := readFull(f, h, 0)
	switch {
	case err != nil:
		return b, fmt.Errorf("journal: %w", err)
	case n < len(h):
		return damage(0, fmt.Sprintf("the file ends after %d bytes, inside its header", n))
	case string(h[:8]) != baseMagic || crc32.Checksum(h[:76], castagnoli) != binary.LittleEndian.Uint32(h[76:]):
		return damage(0, "the header of the base does not match its checksum")
	}
	if version := binary.LittleEndian.Uint32(h[8:]); version != baseVersion {
		return b, fmt.Errorf("%w: %s has version %d, this release reads %d; use a newer release", ErrNewerFormat, name, version, baseVersion)
	}
	b.at.Seq = binary.LittleEndian.Uint64(h[16:])
	copy(b.at.Digest[:], h[24:])
	copy(b.salt[:], h[56:])
	if b.at != at && !planted.Bug("journal-base-of-another-horizon") {
		return damage(0, fmt.Sprintf("a base of %v where HORIZON names %v", b.at, at))
	}
	footer := make([]byte, frameHeaderSize)
	off := size - frameHeaderSize
	if off < segmentHeaderSize {
		return damage(0, fmt.Sprintf("the file ends after %d bytes, without a footer", size))
	}
	if n, err = readFull(f, footer, off); err != nil {
		return b, fmt.Errorf("journal: %w", err)
	}
	if fh, ok := parseHeader(footer, &b.salt); n < len(footer) || !ok || fh.kind != frameFooter || fh.offset != uint64(off) {
		return damage(off, "the footer of the base does not verify")
	}
	return b, nil
}

// visitRuns visits the runs of the base b, a file of size bytes.
func (b *baseFile) visitRuns(f io.ReaderAt, size int64, visit func([]shard.Event) error) error {
	sc := scanner{
		file: f, name: b.name(), limit: size, off: segmentHeaderSize, chunk: firstChunk,
		verifier: verifier{salt: b.salt, pos: Position{Digest: b.at.Digest}},
	}
	var events []shard.Event
	for {
		more, err := sc.next()
		if err != nil {
			return err
		}
		if !more {
			break
		}
		text := string(sc.data)
		for i := range sc.frames {
			fr := &sc.frames[i]
			if fr.kind != frameBatch {
				continue
			}
			if events, err = decodeRun(events, text[fr.lo:fr.hi], b.at.Seq, fr.count); err != nil {
				off := sc.off - int64(sc.used) + int64(fr.lo) - frameHeaderSize
				return &DamageError{File: sc.name, Offset: off, What: err.Error()}
			}
			if err := visit(events); err != nil {
				return err
			}
		}
	}
	if sc.stop != frameOK || sc.off != size {
		return sc.damage()
	}
	return nil
}

// decodeRun decodes the events of a run, whose capacity it reuses. None is beyond
// horizon.
func decodeRun(events []shard.Event, payload string, horizon uint64, count int) ([]shard.Event, error) {
	events = events[:0]
	for range count {
		seq, n := uvarint(payload)
		if n <= 0 || seq == 0 || seq > horizon {
			return events, fmt.Errorf("%w: seq %d in a base of %d", shard.ErrBadEvent, seq, horizon)
		}
		events = append(events, shard.Event{})
		var err error
		if payload, err = shard.DecodeEvent(payload[n:], seq, &events[len(events)-1]); err != nil {
			return events, err
		}
	}
	if payload != "" {
		return events, fmt.Errorf("%w: %d bytes follow the last of %d events", shard.ErrBadEvent, len(payload), count)
	}
	return events, nil
}

// uvarint is binary.Uvarint of a string.
func uvarint(s string) (uint64, int) {
	var b [binary.MaxVarintLen64]byte
	return binary.Uvarint(b[:copy(b[:], s)])
}

// runs turns the events of a base into frames.
type runs struct {
	ctx    context.Context
	at     Position
	salt   salt
	closed func() bool
	write  func(frame []byte, off int64) error

	enc   encoder
	event []byte
	count int      // of events in enc
	pos   Position // counts the events of the frames written, and chains them
	off   int64
	err   error // the first one; it stays
}

func newRuns(ctx context.Context, at Position, s salt, closed func() bool, write func([]byte, int64) error) *runs {
	r := &runs{ctx: ctx, at: at, salt: s, closed: closed, write: write, off: segmentHeaderSize, pos: Position{Digest: at.Digest}}
	r.enc.reset()
	return r
}

// emit adds an event.
func (r *runs) emit(ev *shard.Event) error {
	if r.err != nil {
		return r.err
	}
	if ev.Seq == 0 || ev.Seq > r.at.Seq || ev.Kind == shard.EventDestroyed || !legal(ev) {
		r.err = fmt.Errorf("%w: seq %d, gen %d, kind %d, life %d in the base of %v", shard.ErrBadEvent, ev.Seq, ev.Gen, ev.Kind, ev.State.Life, r.at)
		return r.err
	}
	r.event = shard.AppendEvent(binary.AppendUvarint(r.event[:0], ev.Seq), ev)
	if len(r.event) > maxPayload {
		r.err = fmt.Errorf("%w: an event of %d bytes in the base of %v", ErrTooLarge, len(r.event), r.at)
		return r.err
	}
	if r.count > 0 && r.enc.len()+len(r.event) > runSize {
		if err := r.flush(); err != nil {
			return err
		}
	}
	r.enc.buf = append(r.enc.buf, r.event...)
	r.count++
	return nil
}

// flush writes the run so far.
func (r *runs) flush() error {
	if r.err == nil && r.closed() {
		r.err = ErrClosed
	}
	if r.err == nil {
		r.err = r.ctx.Err()
	}
	if r.err != nil || r.count == 0 {
		return r.err
	}
	frame, pos := r.enc.frame(r.count, r.pos, r.off, &r.salt)
	if r.err = r.write(frame, r.off); r.err != nil {
		return r.err
	}
	r.pos, r.off, r.count = pos, r.off+int64(len(frame)), 0
	r.enc.reset()
	return nil
}

// finish writes what is left, and the footer.
func (r *runs) finish() error {
	if err := r.flush(); err != nil {
		return err
	}
	footer := r.enc.bare(frameFooter, r.pos, r.off, &r.salt)
	if r.err = r.write(footer, r.off); r.err == nil {
		r.off += int64(len(footer))
	}
	return r.err
}

// writeBase writes the base b durably and returns its size.
func (f *File) writeBase(ctx context.Context, b *baseFile, base func(emit func(*shard.Event) error) error) (size int64, err error) {
	err = fsio.WriteFileAtomic(f.fsys, f.path(b.name()), fileMode, func(w fsio.File) error {
		if err := writeAt(w, b.header(), 0); err != nil {
			return err
		}
		r := newRuns(ctx, b.at, b.salt, f.isClosed, func(frame []byte, off int64) error { return writeAt(w, frame, off) })
		if err := base(r.emit); err != nil {
			return err
		}
		if err := r.finish(); err != nil {
			return err
		}
		size = r.off
		return nil
	})
	return size, err
}

// base implements [Compactor]: it visits the base of the horizon.
func (f *files) base(visit func([]shard.Event) error) (Position, error) {
	for {
		f.mu.Lock()
		at, size, closed := f.mu.horizon, f.mu.baseSize, f.mu.closed
		f.mu.Unlock()
		if closed {
			return Position{}, fmt.Errorf("base: %w", ErrClosed)
		}
		if at.Seq == 0 {
			return at, nil
		}
		err := f.read(baseName(at.Seq), func(file fsio.File, _ int64) error {
			b, err := readBase(file, at, size)
			if err != nil {
				return err
			}
			return b.visitRuns(file, size, func(events []shard.Event) error {
				if f.isClosed() {
					return fmt.Errorf("base: %w", ErrClosed)
				}
				return visit(events)
			})
		})
		if isNotExist(err) {
			// The next compaction has removed it, or it is damage.
			if f.horizon() != at {
				continue
			}
			err = f.lostBase(at)
		}
		if err != nil {
			return Position{}, err
		}
		return at, nil
	}
}

// lostBase says why the base of at has no file.
func (f *files) lostBase(at Position) error {
	h, err := f.readHorizon()
	if err != nil {
		return err
	}
	if h != nil && h.at.Seq > at.Seq {
		return fmt.Errorf("%w: the base of %v was replaced by that of %v", ErrCompacted, at, h.at)
	}
	return &DamageError{File: baseName(at.Seq), What: "the base of the journal's horizon is missing"}
}
