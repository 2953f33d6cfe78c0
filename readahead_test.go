package dagstore

import (
	"bytes"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// Proves I13: what is served ahead is what is there.
func TestReadahead(t *testing.T) {
	data := make([]byte, 300<<10)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	rapid.Check(t, func(t *rapid.T) {
		var a readahead
		off := 0
		for range rapid.IntRange(1, 200).Draw(t, "reads") {
			if rapid.IntRange(0, 9).Draw(t, "jump") == 0 {
				off = rapid.IntRange(0, len(data)-1).Draw(t, "to")
			}
			n := rapid.IntRange(0, 5000).Draw(t, "length")
			p := make([]byte, n)
			got, err := a.readAt(bytes.NewReader(data), p, int64(off))
			want := copy(make([]byte, n), data[min(off, len(data)):])
			if got != want || !bytes.Equal(p[:got], data[off:off+got]) || got < n && err != io.EOF {
				t.Fatalf("%d bytes at %d: %d bytes, %v", n, off, got, err)
			}
			off = min(off+n+rapid.IntRange(0, 60).Draw(t, "header"), len(data)-1)
		}
	})
}

// counted counts the reads of a file.
type counted struct {
	io.ReaderAt
	n int
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.n++
	return c.ReaderAt.ReadAt(p, off)
}

// TestReadaheadSavesReads reads blocks in order, and then the same again: they are
// read from the file again.
func TestReadaheadSavesReads(t *testing.T) {
	data := bytes.Repeat([]byte{7}, 1<<20)
	var a readahead
	r := &counted{ReaderAt: bytes.NewReader(data)}
	p := make([]byte, 1000)
	for round := 1; round <= 2; round++ {
		for off := int64(0); off+1000 < int64(len(data)); off += 1040 {
			if _, err := a.readAt(r, p, off); err != nil {
				t.Fatal(err)
			}
		}
		if r.n > 30*round {
			t.Errorf("%d reads of a megabyte, %d times over", r.n, round)
		}
	}
	cut := &counted{ReaderAt: bytes.NewReader(data[:100])}
	if n, err := a.readAt(cut, p, 0); n != 100 || err != io.EOF {
		t.Errorf("of a file that was cut off, what was read before is served: %d %v", n, err)
	}
}

// TestReadaheadTogether is for the race detector, and for wrong bytes.
func TestReadaheadTogether(t *testing.T) {
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i >> 8)
	}
	var a readahead
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			p := make([]byte, 500)
			for off := g * 100; off+500 < len(data); off += 500 + g {
				if _, err := a.readAt(bytes.NewReader(data), p, int64(off)); err != nil || !bytes.Equal(p, data[off:off+500]) {
					t.Errorf("wrong bytes at %d: %v", off, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
