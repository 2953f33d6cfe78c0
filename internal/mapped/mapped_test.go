//go:build darwin || freebsd || linux

package mapped

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
)

// open returns a file with the content, what maps it, and a File of it.
func open(t *testing.T, content []byte) (*os.File, fsio.Mapper, *File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	own, err := fsio.OS().OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Close() })
	mapper := own.(fsio.Mapper)
	m := NewFile(mapper, int64(len(content)))
	t.Cleanup(m.Close)
	return f, mapper, m
}

// random returns n bytes none of which is zero.
func random(n int) []byte {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(1 + rng.IntN(255))
	}
	return out
}

// warm notes all of a file and has it mapped.
func warm(t *testing.T, m *File) {
	t.Helper()
	for off := int64(0); off < m.size; off += MaxRead {
		m.Note(off, int(min(MaxRead, m.size-off)))
	}
	p := make([]byte, 1)
	for range mapAfter {
		m.Read(p, 0)
	}
	if m.unmap == nil {
		t.Fatal("it is not mapped")
	}
}

// TestRead reads pages that were noted, and no others, whatever lies across them.
func TestRead(t *testing.T) {
	content := random(10*pageSize + 100)
	_, _, m := open(t, content)
	p := make([]byte, 10)
	m.Note(pageSize+5, 1)
	for i := range mapAfter {
		if got := m.Read(p, pageSize); got != (i == mapAfter-1) {
			t.Fatalf("read %d went through a mapping: %t", i, got)
		}
	}
	m.Note(4*pageSize-1, 2) // two pages
	m.Note(int64(len(content))-1, 1)
	noted := []bool{1: true, 3: true, 4: true, 10: true}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		off := rng.IntN(len(content))
		p := make([]byte, 1+rng.IntN(min(2*pageSize, len(content)-off)))
		want := true
		for page := off / pageSize; page <= (off+len(p)-1)/pageSize; page++ {
			want = want && noted[page]
		}
		switch got := m.Read(p, int64(off)); {
		case got != want:
			t.Fatalf("%d bytes at %d are read through the mapping: %t", len(p), off, got)
		case got && !bytes.Equal(p, content[off:off+len(p)]):
			t.Fatalf("%d bytes at %d are others", len(p), off)
		}
	}
}

// TestReadBounds asks for what is not to be read so.
func TestReadBounds(t *testing.T) {
	content := random(MaxRead + 100)
	_, _, m := open(t, content)
	warm(t, m)
	for _, c := range []struct {
		off  int64
		n    int
		want bool
	}{
		{0, MaxRead, true},
		{100, MaxRead, true},
		{0, MaxRead + 1, false},
		{101, MaxRead, false},
		{0, 0, false},
		{-1, 1, false},
		{-1 << 63, 1, false},
		{1<<63 - 1, 1, false},
		{int64(len(content)), 1, false},
		{int64(len(content)) - 1, 1, true},
	} {
		m.Note(c.off, c.n) // takes what it is given
		if got := m.Read(make([]byte, c.n), c.off); got != c.want {
			t.Errorf("%d bytes at %d: %t, want %t", c.n, c.off, got, c.want)
		}
	}
	m.Note(0, -1)
}

// TestNothingIsForeverWarm has pages forgotten after a while, by the first read after it,
// and noted again.
func TestNothingIsForeverWarm(t *testing.T) {
	content := random(2 * pageSize)
	_, _, m := open(t, content)
	synctest.Test(t, func(t *testing.T) {
		warm(t, m)
		read := func() bool { return m.Read(make([]byte, 8), 8) }
		time.Sleep(Memory - 1)
		if !read() {
			t.Error("forgotten before its time")
		}
		time.Sleep(2 * time.Nanosecond)
		synctest.Wait()
		if read() {
			t.Error("still taken to be in memory")
		}
		m.Note(8, 8)
		if !read() {
			t.Error("noted again, and forgotten")
		}
	})
}

// TestCutOff reads a file that was cut off underneath: what is left, and no zeros.
func TestCutOff(t *testing.T) {
	content := random(4 * pageSize)
	f, _, m := open(t, content)
	warm(t, m)
	const cut = 2*pageSize + 1000
	if err := f.Truncate(cut); err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(content); off += 10 {
		for _, n := range []int{1, 7, 1024} {
			if off+n > len(content) {
				continue
			}
			p := make([]byte, n)
			switch ok := m.Read(p, int64(off)); {
			case ok != (off+n <= cut):
				t.Fatalf("%d bytes at %d are read: %t", n, off, ok)
			case ok && !bytes.Equal(p, content[off:off+n]):
				t.Fatalf("%d bytes at %d are others", n, off)
			}
		}
	}
}

// TestZeros reads what ends in zeros: only if something follows that shows that the
// file was not cut off there.
func TestZeros(t *testing.T) {
	content := random(2 * pageSize)
	clear(content[100:200])
	clear(content[pageSize-50 : pageSize])
	clear(content[2*pageSize-100:])
	_, _, m := open(t, content)
	warm(t, m)
	for _, c := range []struct {
		off, n int
		want   bool
	}{
		{90, 110, true},                 // and no zero after it
		{90, 50, false},                 // another zero after it
		{pageSize - 60, 60, false},      // the page ends
		{pageSize - 60, 61, true},       // the next page has something
		{2*pageSize - 150, 150, false},  // the file ends
		{2*pageSize - 150, 50, true},    // does not end in a zero
		{2*pageSize - 100, 1, false},    // all zeros
		{pageSize - 60, MaxRead, false}, // beyond the file
	} {
		p := make([]byte, c.n)
		if got := m.Read(p, int64(c.off)); got != c.want || got && !bytes.Equal(p, content[c.off:c.off+c.n]) {
			t.Errorf("%d bytes at %d: %t, want %t, and the file's", c.n, c.off, got, c.want)
		}
	}
}

type noMapper struct{}

func (noMapper) Map() ([]byte, func() error, error) { return nil, nil, fs.ErrInvalid }

// TestMappings counts them, and makes none when there are too many or it cannot be done.
func TestMappings(t *testing.T) {
	before := inUse.Load()
	_, mapper, m := open(t, random(100))
	warm(t, m)
	if n := inUse.Load(); n != before+1 {
		t.Errorf("%d mappings, want one more than %d", n, before)
	}
	neverMaps := func(why string, mapper fsio.Mapper) {
		t.Helper()
		m := NewFile(mapper, 100)
		defer m.Close()
		m.Note(0, 100)
		for range 3 * mapAfter {
			if m.Read(make([]byte, 10), 0) {
				t.Fatalf("mapped, though %s", why)
			}
		}
	}
	inUse.Add(maxMapped)
	neverMaps("there are too many", mapper)
	inUse.Add(-maxMapped)
	neverMaps("it cannot be", noMapper{})
	if n := inUse.Load(); n != before+1 {
		t.Errorf("%d mappings after two that failed, want one more than %d", n, before)
	}
	m.Close()
	if n := inUse.Load(); n != before {
		t.Errorf("%d mappings after Close, want %d", n, before)
	}
	m.unmap = nil // for the cleanup
}

// TestTogether notes and reads from several goroutines, beyond the first leaf.
func TestTogether(t *testing.T) {
	const size = leafSize + 10*pageSize
	content := random(20 * pageSize)
	f, mapper, _ := open(t, nil)
	const from = size - 20*pageSize
	if _, err := f.WriteAt(content, from); err != nil {
		t.Fatal(err)
	}
	m := NewFile(mapper, size)
	t.Cleanup(m.Close)
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 0))
			mapped := 0
			for range 20_000 {
				off := rng.IntN(len(content) - 100)
				p := make([]byte, 100)
				if !m.Read(p, int64(from+off)) {
					f.ReadAt(p, int64(from+off))
					m.Note(int64(from+off), len(p))
				} else {
					mapped++
				}
				if !bytes.Equal(p, content[off:off+100]) {
					t.Errorf("100 bytes at %d are others", off)
				}
			}
			if mapped < 10_000 {
				t.Errorf("%d of 20,000 reads went through the mapping", mapped)
			}
		})
	}
	wg.Wait()
}

// TestOthersPanic has panics that are no faults go on.
func TestOthersPanic(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a panic is gone")
		}
	}()
	copyOut(make([]byte, 1), nil, 10)
}
