package journal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/dagstore/dagstore/shard"
)

// FuzzFrame gives the frame decoder arbitrary bytes, with their checksums and digest
// put right on demand. It must not panic, must ask for no more than a frame may
// have, and what it accepts must encode to the same events again.
func FuzzFrame(f *testing.F) {
	var enc encoder
	events := []shard.Event{
		{Seq: 1, Gen: 1, Time: 5, Kind: shard.EventRegistered, Key: shard.KeyFromString("a"), State: shard.State{Life: shard.Registered, URL: "file:///a"}},
		{Seq: 2, Gen: 1, Time: 6, Kind: shard.EventFailed, Key: shard.KeyFromString("a"), State: shard.State{Life: shard.Errored, Reason: "x"}},
	}
	frame, end, err := enc.batch(events, Position{}, 0, new(salt))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Clone(frame), true)
	f.Add(append(bytes.Clone(frame), frame...), false)
	f.Add(frame[:40], false)
	f.Add(bytes.Clone(enc.bare(frameFooter, Position{}, 0, new(salt))), false)
	f.Add(bytes.Clone(enc.bare(frameMark, end, 0, new(salt))), false)
	f.Add(make([]byte, 100), true)
	f.Fuzz(func(t *testing.T, b []byte, right bool) {
		if right {
			putRight(b)
		}
		var v verifier
		h, size, is := v.next(b, 0, 0)
		switch {
		case is == frameShort && (size <= len(b) || size > frameSize(maxPayload)):
			t.Fatalf("of %d bytes, %d are needed", len(b), size)
		case is != frameOK:
			return
		case size > len(b):
			t.Fatalf("a frame of %d in %d bytes", size, len(b))
		case h.kind != frameBatch:
			return
		}
		got, err := decodeBatch(nil, string(b[frameHeaderSize:frameHeaderSize+int(h.length)]), h.first, int(h.count))
		if err != nil {
			return
		}
		frame, _, err := enc.batch(got, Position{}, 0, new(salt))
		if err != nil {
			t.Fatalf("decoded, but refused by the encoder: %v", err)
		}
		h, _ = parseHeader(frame, new(salt))
		again, err := decodeBatch(nil, string(frame[frameHeaderSize:frameHeaderSize+int(h.length)]), h.first, int(h.count))
		if err != nil || !slices.Equal(got, again) {
			t.Fatalf("decoded, encoded, decoded: %v, %v", again, err)
		}
	})
}

// putRight gives b a header whose checksums and digest fit, if it has room for one.
func putRight(b []byte) {
	if len(b) < frameHeaderSize {
		return
	}
	copy(b, frameMagic)
	binary.LittleEndian.PutUint64(b[16:], 0)
	binary.LittleEndian.PutUint64(b[24:], 1)
	if n := uint64(binary.LittleEndian.Uint32(b[8:])); n <= uint64(len(b)-frameHeaderSize) {
		payload := b[frameHeaderSize : frameHeaderSize+n]
		digest := new(digester).next(new([32]byte), 1, payload)
		copy(b[32:], digest[:])
		binary.LittleEndian.PutUint32(b[64:], crc32.Checksum(payload, castagnoli))
	}
	binary.LittleEndian.PutUint32(b[68:], headerCRC(new(salt), b))
}

// FuzzBatch gives the event decoder arbitrary payloads under a right checksum.
func FuzzBatch(f *testing.F) {
	f.Add([]byte("\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01a\x01b"), uint16(1))
	f.Add([]byte{}, uint16(3))
	f.Fuzz(func(t *testing.T, payload []byte, count uint16) {
		events, err := decodeBatch(nil, string(payload), 1, int(count))
		if err == nil && len(events) != int(count) {
			t.Fatalf("%d events of %d", len(events), count)
		}
	})
}
