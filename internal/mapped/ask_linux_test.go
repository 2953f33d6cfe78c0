package mapped

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dagstore/dagstore/internal/fsio"
)

// BenchmarkAsk compares ways to find out whether 1 KiB of a file of 100 MiB is in memory,
// or to read it only if it is: what a [Table] remembers, mincore, preadv2 with RWF_NOWAIT;
// and just reading it. Everything is in memory.
func BenchmarkAsk(b *testing.B) {
	const size, n = 100 << 20, 1 << 10
	name := filepath.Join(b.TempDir(), "f")
	if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := fsio.OS().OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	x, err := NewTable(fsio.OS(), f, name)
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	own, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer own.Close()
	fd := int(own.Fd())
	p := make([]byte, n)
	var offs [1 << 14]int64
	for i := range offs {
		offs[i] = rand.Int64N(size - n)
		if _, err := x.ReadAt(p, offs[i]); err != nil {
			b.Fatal(err)
		}
		copy(p, x.Data()[offs[i]:])
	}
	data := x.Data()
	var vec [3]byte
	iov := [][]byte{p}
	for _, how := range []struct {
		name string
		ask  func(off int64) bool
	}{
		{"table", func(off int64) bool { return x.Warm().Holds(uint64(off), uint64(off+n)) }},
		{"table-and-copy", func(off int64) bool {
			return x.Warm().Holds(uint64(off), uint64(off+n)) && copy(p, data[off:]) == n
		}},
		{"mincore", func(off int64) bool {
			from := off &^ (pageSize - 1)
			_, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&data[from])), uintptr(off+n-from), uintptr(unsafe.Pointer(&vec[0])))
			return e == 0 && vec[0]&1 != 0
		}},
		{"preadv2-nowait", func(off int64) bool {
			got, err := unix.Preadv2(fd, iov, off, unix.RWF_NOWAIT)
			return err == nil && got == n
		}},
		{"pread", func(off int64) bool { got, _ := own.ReadAt(p, off); return got == n }},
	} {
		b.Run(how.name, func(b *testing.B) {
			for i := range b.N {
				if !how.ask(offs[i%len(offs)]) && how.name != "preadv2-nowait" {
					b.Fatal("it is not in memory")
				}
			}
		})
	}
}
