package journal

import (
	"bytes"
	"testing"

	"github.com/dagstore/dagstore/shard"
)

func testEvents(first uint64) []shard.Event {
	return []shard.Event{{
		Seq: first, Gen: first, Kind: shard.EventRegistered, Key: shard.KeyFromString("a"),
		State: shard.State{Life: shard.Registered, URL: "file:///a"},
	}}
}

// Proves G1: a frame whose checksums are right is refused behind another history, at
// another place, and in another segment; and only the first is beyond a tear.
func TestFrameBelongs(t *testing.T) {
	var enc encoder
	at, own := Position{Seq: 4, Digest: [32]byte{1}}, salt{7}
	frame, end, err := enc.batch(testEvents(5), at, 96, &own)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		pos  Position
		salt salt
		off  int64
		want verdict
		rot  bool
	}{
		"where it belongs":  {at, own, 96, frameOK, false},
		"another history":   {Position{Seq: 4, Digest: [32]byte{2}}, own, 96, frameBad, true},
		"another sequence":  {Position{Seq: 3, Digest: [32]byte{1}}, own, 96, frameBad, true},
		"another place":     {at, own, 104, frameBad, false},
		"another segment":   {at, salt{8}, 96, frameBad, false},
		"no salt, no place": {at, salt{}, 0, frameBad, false},
	} {
		v := verifier{pos: c.pos, salt: c.salt}
		_, size, is := v.next(frame, c.off, 0)
		if is != c.want || v.rot != c.rot {
			t.Errorf("%s: verdict %d (%s), rot %v; want %d, %v", name, is, v.what, v.rot, c.want, c.rot)
		}
		if is == frameOK && (size != len(frame) || v.pos != end) {
			t.Errorf("%s: %d of %d bytes, at %v, want %v", name, size, len(frame), v.pos, end)
		}
	}
}

// A buffer that is used again leaves nothing of the last frame in this one.
func TestEncoderReuse(t *testing.T) {
	var used, fresh encoder
	if _, _, err := used.batch(append(testEvents(1), testEvents(2)...), Position{}, 80, &salt{1}); err != nil {
		t.Fatal(err)
	}
	a, _, err := used.batch(testEvents(3), Position{Seq: 2}, 80, &salt{1})
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := fresh.batch(testEvents(3), Position{Seq: 2}, 80, &salt{1})
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("%x\n%x, %v", a, b, err)
	}
	if n := testing.AllocsPerRun(100, func() { used.batch(testEvents3, Position{Seq: 2}, 80, &testSalt) }); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

var (
	testEvents3 = testEvents(3)
	testSalt    = salt{1}
)
