package projection

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

func blocksOf(tb testing.TB, c *Catalogue) (pos journal.Position, blocks [][]byte) {
	tb.Helper()
	pos, save := c.Freeze()
	if err := save(func(b []byte) error {
		if len(b) > maxBlock {
			tb.Fatalf("a block of %d bytes", len(b))
		}
		blocks = append(blocks, bytes.Clone(b))
		return nil
	}); err != nil {
		tb.Fatal(err)
	}
	return pos, blocks
}

// reader returns the blocks one after the other, each in the same memory.
func reader(blocks [][]byte) func() ([]byte, error) {
	var buf []byte
	return func() ([]byte, error) {
		for i := range buf {
			buf[i] = 0xaa
		}
		if len(blocks) == 0 {
			return nil, io.EOF
		}
		buf = append(buf[:0], blocks[0]...)
		blocks = blocks[1:]
		return buf, nil
	}
}

// TestFreeze saves while further batches are applied, one after each block. Proves G4,
// G6 (a checkpoint holds the state at its position, whatever comes meanwhile).
func TestFreeze(t *testing.T) {
	batches := course(1, 25_000, 60_000, 100)
	c := NewCatalogue()
	for _, b := range batches[:len(batches)/2] {
		mustApply(t, c, b)
	}
	want := c.Snapshot().Digest()
	pos, save := c.Freeze()
	rest := batches[len(batches)/2:]
	var blocks [][]byte
	if err := save(func(b []byte) error {
		for range 40 {
			mustApply(t, c, rest[0])
			rest = rest[1:]
		}
		blocks = append(blocks, bytes.Clone(b))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(blocks) < 3 || c.Position() == pos {
		t.Fatalf("%d blocks", len(blocks))
	}
	back := NewCatalogue()
	if err := back.Restore(pos, reader(blocks)); err != nil {
		t.Fatal(err)
	}
	if back.Position() != pos || back.Snapshot().Digest() != want {
		t.Fatal("another state came back")
	}
	for _, b := range batches[len(batches)/2:] {
		mustApply(t, back, b)
	}
	for _, b := range rest {
		mustApply(t, c, b)
	}
	if back.Snapshot().Digest() != c.Snapshot().Digest() {
		t.Fatal("the restored catalogue went on otherwise")
	}
	full := errors.New("disk full")
	if err := save(func([]byte) error { return full }); !errors.Is(err, full) {
		t.Fatalf("%v", err)
	}
}

// TestLargeRecords saves records that are longer than a block. Proves G6.
func TestLargeRecords(t *testing.T) {
	c := NewCatalogue()
	e := registration(1, 1)
	e.State.URL = strings.Repeat("u", 9<<20)
	mustApply(t, c, []shard.Event{e, registration(2, 2)})
	back := restored(t, c)
	if back.Snapshot().Digest() != c.Snapshot().Digest() || back.Get(e.Key).URL() != e.State.URL {
		t.Fatal("another state came back")
	}
}

// TestRestoreRefuses damages what was saved. Proves G6, C10 (a checkpoint that is
// damaged is refused, and what is shown stays).
func TestRestoreRefuses(t *testing.T) {
	c := NewCatalogue()
	for _, b := range course(2, 30_000, 60_000, 100) {
		mustApply(t, c, b)
	}
	pos, good := blocksOf(t, c)
	if len(good) < 4 {
		t.Fatalf("%d blocks", len(good))
	}
	refused := func(what string, pos journal.Position, blocks [][]byte) {
		t.Helper()
		back := NewCatalogue()
		if err := back.Restore(pos, reader(blocks)); err == nil {
			t.Errorf("%s passes", what)
		}
		if back.Position().Seq != 0 || back.Snapshot().Len() != 0 {
			t.Errorf("%s: something is shown", what)
		}
	}
	for i := range good {
		refused("without a block", pos, slices.Delete(slices.Clone(good), i, i+1))
		refused("a block twice", pos, slices.Insert(slices.Clone(good), i, good[i]))
		refused("an end", pos, good[:i])
		rng := rand.New(rand.NewPCG(uint64(i), 0))
		for range 30 {
			cut := slices.Clone(good)
			cut[i] = cut[i][:rng.IntN(len(cut[i]))]
			refused("a cut block", pos, cut)
		}
		goesOn := slices.Clone(good)
		goesOn[i] = bytes.Clone(good[i])
		goesOn[i][0] ^= 1
		if i != 0 && i != len(good)-1 {
			continue // the next group goes on where this one ends: the same records
		}
		refused("another first byte", pos, goesOn)
	}
	refused("another position", journal.Position{Seq: pos.Seq + 1}, good)
	late := slices.Clone(good)
	late[0] = bytes.Clone(good[0])
	late[0][len(saveMagic)] = 1
	late[0][len(saveMagic)+1] = 0
	refused("records after the position", journal.Position{Seq: 1}, late)

	twice := append([][]byte{bytes.Clone(good[0])}, slices.Concat(good[1:], good[1:])...)
	for life := range 8 {
		n := twice[0][len(saveMagic)+8+8*life:]
		binary.LittleEndian.PutUint64(n, 2*binary.LittleEndian.Uint64(n))
	}
	refused("everything twice, counted twice", pos, twice)

	broken := errors.New("broken")
	back := NewCatalogue()
	if err := back.Restore(pos, func() ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("the reader's error became %v", err)
	}
	if err := c.Restore(pos, reader(good)); err == nil {
		t.Error("a catalogue that is not empty is restored")
	}
}

// TestFlippedBits flips bits of what was saved: an error or a catalogue that is sound,
// which the checksums of the file that it stands in would have told. Proves C10.
func TestFlippedBits(t *testing.T) {
	c := NewCatalogue()
	for _, b := range course(4, 16, 80, 4) {
		mustApply(t, c, b)
	}
	pos, good := blocksOf(t, c)
	passed, all := 0, 0
	for i := range good {
		for bit := range 8 * len(good[i]) {
			good[i][bit/8] ^= 1 << (bit % 8)
			all++
			if holdsRestored(t, pos, good) {
				passed++
			}
			good[i][bit/8] ^= 1 << (bit % 8)
		}
	}
	if passed == all || passed == 0 {
		t.Errorf("%d of %d flipped bits passed", passed, all)
	}
}

// holdsRestored restores and says whether that was possible; then the catalogue has to
// be a sound one, that saves itself as it was.
func holdsRestored(t testing.TB, pos journal.Position, blocks [][]byte) bool {
	t.Helper()
	c := NewCatalogue()
	if c.Restore(pos, reader(blocks)) != nil {
		if c.Position().Seq != 0 || c.Snapshot().Len() != 0 {
			t.Fatal("something is shown")
		}
		return false
	}
	s := c.Snapshot()
	keys, err := sound(&s.root)
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != s.Len() {
		t.Fatalf("%d shards, %d counted", len(keys), s.Len())
	}
	for key := range keys {
		r := c.Get(shard.KeyFromString(key))
		e := r.Event()
		text, err := appendRecord(nil, &e)
		if err != nil || string(text) != r.text || e.State != r.State() {
			t.Fatalf("%q is not what it says: %v", key, err)
		}
	}
	if restored(t, c).Snapshot().Digest() != s.Digest() {
		t.Fatal("it does not come back")
	}
	return true
}

// FuzzCatalogueRestore takes any bytes for blocks: each is the length, 2 bytes, little
// endian, and what follows. Proves C10 (nothing on the disk ends the process).
func FuzzCatalogueRestore(f *testing.F) {
	for _, events := range []int{0, 1, 30, 300} {
		c := NewCatalogue()
		for _, b := range course(7, 40, events, 10) {
			mustApply(f, c, b)
		}
		pos, blocks := blocksOf(f, c)
		var data []byte
		for _, b := range blocks {
			data = append(data, byte(len(b)), byte(len(b)>>8))
			data = append(data, b...)
		}
		f.Add(pos.Seq, data)
	}
	f.Fuzz(func(t *testing.T, seq uint64, data []byte) {
		var blocks [][]byte
		for len(data) >= 2 {
			n := min(int(data[0])|int(data[1])<<8, len(data)-2)
			blocks = append(blocks, data[2:2+n])
			data = data[2+n:]
		}
		holdsRestored(t, journal.Position{Seq: seq}, blocks)
	})
}
