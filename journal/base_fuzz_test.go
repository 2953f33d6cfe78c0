package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/dagstore/dagstore/shard"
)

// memoryBase returns a base of the horizon at as a file would have it.
func memoryBase(tb testing.TB, at Position, events []shard.Event) []byte {
	tb.Helper()
	b := baseFile{at: at, salt: salt{1, 2, 3}}
	out := b.header()
	r := newRuns(context.Background(), at, b.salt, func() bool { return false }, func(frame []byte, off int64) error {
		if off != int64(len(out)) {
			tb.Fatalf("a frame at %d of %d bytes", off, len(out))
		}
		out = append(out, frame...)
		return nil
	})
	for i := range events {
		if err := r.emit(&events[i]); err != nil {
			tb.Fatal(err)
		}
	}
	if err := r.finish(); err != nil {
		tb.Fatal(err)
	}
	return out
}

func visitBase(b []byte, at Position) (events []shard.Event, longest int, err error) {
	file, err := readBase(bytes.NewReader(b), at, int64(len(b)))
	if err != nil {
		return nil, 0, err
	}
	err = file.visitRuns(bytes.NewReader(b), int64(len(b)), func(run []shard.Event) error {
		n := 0
		for i := range run {
			n += len(shard.AppendEvent(nil, &run[i]))
		}
		longest = max(longest, n)
		events = append(events, run...)
		return nil
	})
	return events, longest, err
}

// TestBaseRuns: events come back in the order they were given, in runs of no more than
// a mebibyte, but that a single one may be larger; no event is fine too.
func TestBaseRuns(t *testing.T) {
	at := Position{Seq: 1 << 40, Digest: [32]byte{7}}
	var events []shard.Event
	for i := range 20_000 {
		events = append(events, longEvents(1+uint64(i)*977, 1, 200)...)
	}
	events = append(events, longEvents(5, 1, 3<<20)...)
	events = append(events, longEvents(6, 3, 400_000)...)
	for _, n := range []int{0, 1, 2, len(events)} {
		got, longest, err := visitBase(memoryBase(t, at, events[:n]), at)
		if err != nil || !slices.Equal(got, events[:n]) {
			t.Fatalf("%d of %d events came back: %v", len(got), n, err)
		}
		if longest > 3<<20+100 {
			t.Errorf("a run of %d bytes", longest)
		}
	}
	if _, longest, _ := visitBase(memoryBase(t, at, events[:20_000]), at); longest > runSize {
		t.Errorf("a run of %d bytes", longest)
	}
}

// FuzzBase gives the decoders of bases arbitrary bytes, with the checksum of the header
// put right on demand. They must not panic, and every refusal is damage with a place,
// or a newer format.
func FuzzBase(f *testing.F) {
	at := Position{Seq: 1000, Digest: [32]byte{9}}
	whole := memoryBase(f, at, append(longEvents(3, 2, 10), longEvents(700, 5, 20)...))
	f.Add(bytes.Clone(whole), false)
	f.Add(bytes.Clone(whole), true)
	f.Add(whole[:80], true)
	f.Add(append(bytes.Clone(whole[:80]), whole[len(whole)-72:]...), true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, right bool) {
		if right && len(b) >= segmentHeaderSize {
			copy(b, baseMagic)
			binary.LittleEndian.PutUint64(b[16:], at.Seq)
			copy(b[24:], at.Digest[:])
			binary.LittleEndian.PutUint32(b[76:], crc32.Checksum(b[:76], castagnoli))
		}
		events, _, err := visitBase(b, at)
		var damage *DamageError
		if err != nil && (!errors.As(err, &damage) || damage.Offset < 0 || damage.Offset > int64(len(b))) && !errors.Is(err, ErrNewerFormat) {
			t.Fatalf("refused with %v", err)
		}
		for i := range events {
			if err == nil && (events[i].Seq == 0 || events[i].Seq > at.Seq || events[i].Gen > events[i].Seq) {
				t.Fatalf("accepted %+v", events[i])
			}
		}
	})
}

// FuzzRun gives the decoder of runs arbitrary payloads under a right checksum. What it
// accepts encodes to the same events again.
func FuzzRun(f *testing.F) {
	e := testEvents(3)[0]
	f.Add(shard.AppendEvent([]byte{3}, &e), uint16(1))
	f.Add([]byte("\x80\x80\x80"), uint16(1))
	f.Add([]byte{}, uint16(2))
	f.Fuzz(func(t *testing.T, payload []byte, count uint16) {
		events, err := decodeRun(nil, string(payload), 1000, int(count))
		if err != nil {
			return
		}
		if len(events) != int(count) {
			t.Fatalf("%d events of %d", len(events), count)
		}
		var again []byte
		for i := range events {
			again = shard.AppendEvent(binary.AppendUvarint(again, events[i].Seq), &events[i])
		}
		back, err := decodeRun(nil, string(again), 1000, int(count))
		if err != nil || !slices.Equal(events, back) {
			t.Fatalf("decoded, encoded, decoded: %v, %v", back, err)
		}
	})
}

// FuzzHorizon gives the decoder of HORIZON arbitrary bytes, with checksums put right on
// demand.
func FuzzHorizon(f *testing.F) {
	s := segment{number: 4, before: Position{Seq: 30, Digest: [32]byte{1}}, salt: salt{5}}
	h := horizon{oldest: s, at: Position{Seq: 35, Digest: [32]byte{2}}}
	f.Add(h.encode(), false)
	f.Add(h.encode(), true)
	f.Add(s.header(), false)
	f.Fuzz(func(t *testing.T, b []byte, right bool) {
		if right && len(b) >= horizonSize {
			copy(b, segmentMagic)
			binary.LittleEndian.PutUint32(b[8:], horizonVersion)
			binary.LittleEndian.PutUint32(b[76:], crc32.Checksum(b[:76], castagnoli))
			binary.LittleEndian.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
		}
		h, err := decodeHorizon(bytes.NewReader(b), int64(len(b)))
		var damage *DamageError
		switch {
		case err != nil && !errors.As(err, &damage) && !errors.Is(err, ErrNewerFormat):
			t.Fatalf("refused with %v", err)
		case err == nil && (h.at.Seq == 0 || h.at.Seq < h.oldest.before.Seq):
			t.Fatalf("accepted %+v", h)
		}
	})
}

// FuzzWatermark gives the decoder of HEAD arbitrary bytes, with the checksum put right
// on demand. What it accepts is written the same again.
func FuzzWatermark(f *testing.F) {
	var b [headSize]byte
	w := watermark{closed: true, epoch: 5, number: 2, salt: salt{9}, end: 800, pos: Position{Seq: 7, Digest: [32]byte{3}}, horizon: 6, time: 99}
	w.put(&b)
	f.Add(bytes.Clone(b[:]), false)
	f.Add(bytes.Clone(b[:]), true)
	f.Add(make([]byte, headSize), true)
	f.Fuzz(func(t *testing.T, in []byte, right bool) {
		if len(in) < headSize {
			return
		}
		b := [headSize]byte(in)
		if right {
			copy(b[:], headMagic)
			binary.LittleEndian.PutUint32(b[8:], headVersion)
			binary.LittleEndian.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
		}
		var w, again watermark
		if !w.parse(&b) {
			return
		}
		if w.end < segmentHeaderSize || w.number == 0 || w.horizon > w.pos.Seq {
			t.Fatalf("accepted %+v", w)
		}
		var out [headSize]byte
		w.put(&out)
		if !again.parse(&out) || again != w {
			t.Fatalf("read %+v, written and read %+v", w, again)
		}
	})
}
