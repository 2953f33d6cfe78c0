//go:build darwin || freebsd || linux

package mapped

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
)

// BenchmarkRead reads 1 KiB of a file of 100 MiB, in any order and of one page over
// and over: through a File, by a system call, and out of memory.
func BenchmarkRead(b *testing.B) {
	const size, n = 100 << 20, 1 << 10
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	path := filepath.Join(b.TempDir(), "f")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := fsio.OS().OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	m := NewFile(f.(fsio.Mapper), size)
	defer m.Close()
	var offs [1 << 16]int64
	for i := range offs {
		offs[i] = rand.Int64N(size/n-1)*n + 100
		m.Note(offs[i], n)
	}
	p := make([]byte, n)
	for _, how := range []struct {
		name string
		read func(off int64)
	}{
		{"file", func(off int64) {
			if !m.Read(p, off) {
				m.Note(off, n)
			}
		}},
		{"system-call", func(off int64) { f.ReadAt(p, off) }},
		{"memory", func(off int64) { copy(p, content[off:]) }},
	} {
		for _, off := range offs {
			how.read(off)
		}
		b.Run(how.name+"/any", func(b *testing.B) {
			for i := range b.N {
				how.read(offs[i%len(offs)])
			}
		})
		b.Run(how.name+"/one", func(b *testing.B) {
			for range b.N {
				how.read(offs[0])
			}
		})
	}
}
