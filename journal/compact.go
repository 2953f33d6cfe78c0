package journal

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sort"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// HORIZON says from where on a compacted journal is kept:
//
//	 0 80  the header of the oldest segment that is kept, but with version 2
//	80  8  seq of the horizon
//	88 32  chain digest at the horizon
//	120 4  zero
//	124 4  CRC32C of bytes 0..124
//
// The horizon lies in that segment, or where it begins, or at the head. Version 1
// would be a horizon without a base, which there never was.
const (
	horizonVersion = 2
	horizonSize    = 128
)

type horizon struct {
	oldest segment
	at     Position
}

func (h *horizon) encode() []byte {
	b := append(h.oldest.header(), make([]byte, horizonSize-segmentHeaderSize)...)
	binary.LittleEndian.PutUint32(b[8:], horizonVersion)
	binary.LittleEndian.PutUint32(b[76:], crc32.Checksum(b[:76], castagnoli))
	binary.LittleEndian.PutUint64(b[80:], h.at.Seq)
	copy(b[88:], h.at.Digest[:])
	binary.LittleEndian.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	return b
}

// decodeHorizon reads what the file HORIZON has.
func decodeHorizon(f io.ReaderAt, size int64) (*horizon, error) {
	s, err := readHeaderOf(f, horizonName, horizonVersion)
	if err != nil {
		return nil, err
	}
	damage := func(what string) error { return &DamageError{File: horizonName, What: what} }
	b := make([]byte, horizonSize)
	n, err := readFull(f, b, 0)
	switch {
	case err != nil:
		return nil, fmt.Errorf("journal: %w", err)
	case n < len(b) || size != horizonSize || crc32.Checksum(b[:124], castagnoli) != binary.LittleEndian.Uint32(b[124:]):
		return nil, damage("the horizon does not match its checksum")
	}
	h := &horizon{oldest: s, at: Position{Seq: binary.LittleEndian.Uint64(b[80:])}}
	copy(h.at.Digest[:], b[88:])
	if h.at.Seq == 0 || h.at.Seq < s.before.Seq || h.at.Seq == s.before.Seq && h.at != s.before {
		return nil, damage(fmt.Sprintf("a horizon at %v, and a segment that begins after %v", h.at, s.before))
	}
	return h, nil
}

// check fails if the journal, whose last segment ends at end with head, ends before
// its horizon.
func (h *horizon) check(head Position, last *segment, end int64) error {
	if h.at.Seq > head.Seq || h.at.Seq == head.Seq && h.at != head {
		return &DamageError{File: last.name(), Offset: end, What: fmt.Sprintf("the journal ends at %v, its horizon is %v", head, h.at)}
	}
	return nil
}

// readHorizon returns what HORIZON says, nil if there is none.
func (f *files) readHorizon() (h *horizon, err error) {
	err = f.read(horizonName, func(file fsio.File, size int64) error {
		h, err = decodeHorizon(file, size)
		return err
	})
	if isNotExist(err) {
		return nil, nil
	}
	return h, err
}

// Horizon implements [Compactor].
func (f *File) Horizon() Position { return f.horizon() }

// Base implements [Compactor].
func (f *File) Base(visit func(events []shard.Event) error) (Position, error) { return f.base(visit) }

// Reclaimable implements [Compactor]: the bytes of the segments that lie wholly below
// at, and of the base that another would replace.
func (f *File) Reclaimable(at Position) (n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at.Seq <= f.mu.horizon.Seq {
		return 0
	}
	n = f.mu.baseSize
	for i := range f.mu.sealed {
		if f.mu.sealed[i].end.Seq <= at.Seq {
			n += f.mu.sealed[i].size
		}
	}
	return n
}

// Compact implements [Compactor]. Whole segments below at are removed; the one that
// at lies in stays, though nobody replays what it has below at.
//
//	base durable → HORIZON durable → segments removed, oldest first → older bases removed
//
// so a segment that is missing is below the horizon or is damage, and the horizon has
// a base or that is damage. Appends and replays go on meanwhile; Close ends it.
func (f *File) Compact(ctx context.Context, at Position, base func(emit func(*shard.Event) error) error) error {
	f.compacting.Lock()
	defer f.compacting.Unlock()
	if _, err := f.writable("compact"); err != nil {
		return err
	}
	now := f.horizon()
	if err := checkHorizon(f, at, now); err != nil {
		return err
	}
	if at != now {
		if err := f.moveHorizon(ctx, at, base); err != nil {
			return fmt.Errorf("journal: compact to %v: nothing was removed: %w", at, err)
		}
	}
	for len(f.gone) > 0 {
		if err := f.remove(f.gone[:1]); err != nil {
			return fmt.Errorf("journal: compact to %v: %w", at, err)
		}
		f.gone = f.gone[1:]
	}
	f.appending.Lock()
	defer f.appending.Unlock()
	if head, err := f.writable("compact"); err == nil {
		f.tell(head, false)
	}
	return nil
}

// checkHorizon refuses a horizon that is below the present one or that is no position
// of the journal j.
func checkHorizon(j Positioner, at, now Position) error {
	if at.Seq < now.Seq {
		return fmt.Errorf("%w: compact to %v, the horizon is %v", ErrCompacted, at, now)
	}
	have, err := j.PositionAt(at.Seq)
	if err != nil {
		return fmt.Errorf("journal: compact: %w", err)
	}
	if have != at {
		return fmt.Errorf("%w: compact to %v where this one has %v", ErrForeignPosition, at, have)
	}
	return nil
}

// moveHorizon writes base and HORIZON, and has the journal begin at the horizon. What
// is to be removed then is in f.gone. HORIZON may have moved on the disk though this
// returned an error: then nothing is removed, and the new base stays.
func (f *File) moveHorizon(ctx context.Context, at Position, base func(emit func(*shard.Event) error) error) error {
	b := baseFile{at: at}
	rand.Read(b.salt[:]) // never fails
	if name := b.name(); len(f.bases) == 0 || f.bases[len(f.bases)-1] != name {
		f.bases = append(f.bases, name)
	}
	if planted.Bug("journal-horizon-before-base") {
		h := horizon{oldest: f.oldestAfter(at), at: at}
		_ = fsio.WriteFileAtomic(f.fsys, f.path(horizonName), fileMode, func(w fsio.File) error { return writeAt(w, h.encode(), 0) })
	}
	size, err := f.writeBase(ctx, &b, base)
	if err != nil {
		return err
	}
	h := horizon{oldest: f.oldestAfter(at), at: at}
	if planted.Bug("journal-removed-before-horizon") {
		_ = f.remove(f.mu.keepFrom(h.oldest.number))
	}
	err = fsio.WriteFileAtomic(f.fsys, f.path(horizonName), fileMode, func(w fsio.File) error {
		return writeAt(w, h.encode(), 0)
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.horizon, f.mu.baseSize = at, size
	gone := f.mu.keepFrom(h.oldest.number)
	f.mu.stats.Removed += uint64(len(gone))
	f.gone = append(f.gone, gone...)
	for _, name := range f.bases {
		if name != b.name() {
			f.gone = append(f.gone, name)
		}
	}
	f.bases = append(f.bases[:0], b.name())
	return nil
}

// oldestAfter is the oldest segment that holds anything after at; the last one always
// stays.
func (f *File) oldestAfter(at Position) segment {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := sort.Search(len(f.mu.sealed), func(i int) bool { return f.mu.sealed[i].end.Seq > at.Seq })
	if planted.Bug("journal-removed-above-horizon") {
		n++
	}
	if n < len(f.mu.sealed) {
		return f.mu.sealed[n].segment
	}
	return f.mu.last
}
