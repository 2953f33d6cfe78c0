package journal

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/shard"
)

// SeqRange is the events First … Last.
type SeqRange struct{ First, Last uint64 }

// Scavenged is what could be read of a journal that does not open.
type Scavenged struct {
	// Read are the events that were visited, ascending; ranges that touch are one.
	Read []SeqRange
	// End is the position after the last event that was read.
	End Position
	// Head is what HEAD says was durable; the zero Position if it tells nothing.
	Head Position
	// Base is where the events begin: the horizon whose base was visited; the zero Position
	// if there was none to be read.
	Base Position
	// Damage is what was met, file by file.
	Damage []error
}

// Scavenge reads what can be read of the journal in dir, whatever state it is in, and
// changes nothing: first the newest base, whose events have sequence numbers of their own
// at or below its horizon, then every batch above that verifies, in the order of the
// segments, also behind damage; base is the horizon, zero if there is none. Events and their strings are valid only during the visit. Errors are
// the disk's and the visits'; damage is in the report.
//
// A frame is believed if its checksums are right, which are salted by its segment's
// header; in a segment whose header is damaged, if it continues the chain.
func Scavenge(fsys fsio.FS, dir string, visitBase func(events []shard.Event) error, visit func(events []shard.Event, base Position) error) (*Scavenged, error) {
	s := &scavenger{files: files{fsys: fsys, dir: dir}, found: new(Scavenged), visit: visit}
	names, err := s.list()
	if err != nil {
		return nil, err
	}
	if w, err := s.readHead(); err != nil {
		s.met(headName, err)
	} else if w != nil {
		s.found.Head, s.head = w.pos, w
	}
	for _, name := range slices.Backward(names.bases) {
		at, err := s.scavengeBase(name, visitBase)
		if err == nil {
			s.found.Base, s.found.End, s.pos = at, at, at
			break
		}
		if errors.Is(err, errVisit) {
			return s.found, err
		}
		s.met(name, err)
	}
	for _, name := range names.segments {
		if err := s.segment(name); err != nil {
			return s.found, err
		}
	}
	return s.found, nil
}

type scavenger struct {
	files
	found  *Scavenged
	visit  func(events []shard.Event, base Position) error
	head   *watermark
	pos    Position // after the last frame, if known
	events []shard.Event
}

// errVisit marks what a visit returned.
var errVisit = errors.New("journal: scavenge")

func (s *scavenger) met(name string, err error) {
	s.found.Damage = append(s.found.Damage, fmt.Errorf("%s: %w", name, err))
}

// scavengeBase visits a base if all of it verifies.
func (s *scavenger) scavengeBase(name string, visit func(events []shard.Event) error) (at Position, err error) {
	err = s.read(name, func(file fsio.File, size int64) error {
		h := make([]byte, segmentHeaderSize)
		if n, err := readFull(file, h, 0); err != nil || n < len(h) {
			return errors.Join(err, fmt.Errorf("the file ends inside its header"))
		}
		at.Seq = binary.LittleEndian.Uint64(h[16:])
		copy(at.Digest[:], h[24:])
		b, err := readBase(file, at, size)
		if err != nil {
			return err
		}
		// Twice, so that half of a base is never visited.
		if err := b.visitRuns(file, size, func([]shard.Event) error { return nil }); err != nil {
			return err
		}
		return b.visitRuns(file, size, func(events []shard.Event) error {
			if err := visit(events); err != nil {
				return fmt.Errorf("%w: %w", errVisit, err)
			}
			return nil
		})
	})
	return at, err
}

// segment visits what is whole in a segment.
func (s *scavenger) segment(name string) error {
	var data []byte
	err := s.read(name, func(file fsio.File, size int64) (err error) {
		data, err = io.ReadAll(io.NewSectionReader(file, 0, size))
		return err
	})
	if err != nil {
		s.met(name, err) // what could be read before is there
	}
	seg, err := readSegment(bytes.NewReader(data), name)
	salted := err == nil
	switch {
	case err != nil:
		s.met(name, err)
		if s.head != nil && s.head.pos.Seq > s.pos.Seq {
			seg.salt, salted = s.head.salt, s.holdsHead(data)
		}
	case s.pos.Seq == 0 && len(s.found.Read) == 0:
		s.pos = seg.before
	}
	lost := false
	for off := int64(segmentHeaderSize); off+frameHeaderSize <= int64(len(data)); {
		n, err := s.frame(data[off:], off, &seg.salt, salted)
		if err != nil {
			return err
		}
		if n > 0 {
			off, lost = off+int64(n), false
			continue
		}
		if !lost && !allZero(data[off:]) {
			s.met(name, &DamageError{File: name, Offset: off, What: "what is here does not verify"})
		}
		lost = true
		// Frames begin at multiples of 8, unless something was inserted or cut out.
		next := bytes.Index(data[off+1:], []byte(frameMagic))
		if next < 0 {
			break
		}
		off += 1 + int64(next)
	}
	return nil
}

// holdsHead reports whether a frame of the segment that HEAD names is in data.
func (s *scavenger) holdsHead(data []byte) bool {
	for off := segmentHeaderSize; off+frameHeaderSize <= len(data); off += frameAlign {
		if _, ok := parseHeader(data[off:], &s.head.salt); ok {
			return true
		}
	}
	return false
}

// frame visits the frame at the front of b and returns its length; 0 if none is there that
// can be believed.
func (s *scavenger) frame(b []byte, off int64, salt *salt, salted bool) (int, error) {
	h, ok := parseHeader(b, salt)
	if !salted {
		ok = string(b[:3]) == frameMagic && h.parse(b) && h.offset == uint64(off)
	}
	size := int64(frameHeaderSize) + int64(h.length)
	if !ok || h.version != frameVersion || h.length > maxPayload || size > int64(len(b)) {
		return 0, nil
	}
	if h.kind != frameBatch {
		if !salted {
			return 0, nil
		}
		return frameHeaderSize, nil
	}
	payload := b[frameHeaderSize:size]
	if crc32.Checksum(payload, castagnoli) != h.payloadCRC || h.count == 0 || uint64(h.count)*minEvent > uint64(h.length) {
		return 0, nil
	}
	var d digester
	if !salted && (h.first != s.pos.Seq+1 || d.next(&s.pos.Digest, h.first, payload) != h.digest) {
		return 0, nil
	}
	end := Position{Seq: h.first + uint64(h.count) - 1, Digest: h.digest}
	whole := min(frameSize(int(h.length)), len(b))
	if end.Seq <= s.found.End.Seq || h.first <= s.found.End.Seq {
		s.pos = end
		return whole, nil // it is in the base, or was met before
	}
	var err error
	if s.events, err = decodeBatch(s.events, string(payload), h.first, int(h.count)); err != nil {
		return 0, nil
	}
	if err := s.visit(s.events, s.found.Base); err != nil {
		return 0, fmt.Errorf("%w: %w", errVisit, err)
	}
	if n := len(s.found.Read); n > 0 && s.found.Read[n-1].Last+1 == h.first {
		s.found.Read[n-1].Last = end.Seq
	} else {
		s.found.Read = append(s.found.Read, SeqRange{h.first, end.Seq})
	}
	s.found.End, s.pos = end, end
	return whole, nil
}

// parse reads a header whose checksum cannot be checked.
func (h *frameHeader) parse(b []byte) bool {
	h.version, h.kind = b[3], frameKind(b[4])
	h.length = binary.LittleEndian.Uint32(b[8:])
	h.count = binary.LittleEndian.Uint32(b[12:])
	h.offset = binary.LittleEndian.Uint64(b[16:])
	h.first = binary.LittleEndian.Uint64(b[24:])
	copy(h.digest[:], b[32:])
	h.payloadCRC = binary.LittleEndian.Uint32(b[64:])
	return true
}

// CreateAt makes a journal in dir, which must hold none, that begins at a position, as one
// does that was compacted there: base emits the newest event of every shard that lives
// there, each once. What a crash leaves of it does not open.
func CreateAt(ctx context.Context, fsys fsio.FS, dir string, at Position, base func(emit func(*shard.Event) error) error) (err error) {
	opts, _ := FileOptions{Preallocate: -1}.withDefaults()
	f := &File{files: files{fsys: fsys, dir: dir}, opts: opts}
	if err := f.takeLock(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.release()) }()
	n, err := f.list()
	if err != nil {
		return err
	}
	if all := slices.Concat(n.segments, n.bases); len(all) > 0 || n.horizon {
		return fmt.Errorf("journal: create: %s holds one already: %s", dir, strings.Join(all, ", "))
	}
	first := segment{number: 1, before: at}
	if _, err := f.create(&first); err != nil || at.Seq == 0 {
		return err
	}
	b := baseFile{at: at}
	rand.Read(b.salt[:]) // never fails
	if _, err := f.writeBase(ctx, &b, base); err != nil {
		return err
	}
	h := horizon{oldest: first, at: at}
	return fsio.WriteFileAtomic(fsys, f.path(horizonName), fileMode, func(w fsio.File) error { return writeAt(w, h.encode(), 0) })
}
