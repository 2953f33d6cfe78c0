// Where address space is short nothing is mapped.

//go:build (darwin || freebsd || linux) && !386 && !arm

package mapped

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
)

// table opens a Table of a file with the content.
func table(t *testing.T, fsys fsio.FS, content []byte) (*Table, string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := fsys.OpenFile(name, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	x, err := NewTable(fsys, f, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x, name
}

// TestTableHolds: what was read by ReadAt is held, nothing else is, and what is held can
// be read through the mapping, which faults everywhere else.
func TestTableHolds(t *testing.T) {
	content := random(70*pageSize + 100)
	x, _ := table(t, fsiotest.NewCold(), content)
	if len(x.Data()) != len(content) || x.Size() != int64(len(content)) {
		t.Fatalf("%d bytes are mapped of %d", len(x.Data()), x.Size())
	}
	p := make([]byte, 10)
	for _, off := range []int64{pageSize + 5, 4*pageSize - 5, 70*pageSize + 90} {
		if n, err := x.ReadAt(p, off); n != len(p) || err != nil || !bytes.Equal(p, content[off:off+10]) {
			t.Fatalf("%d bytes at %d: %v", n, off, err)
		}
	}
	if _, err := x.ReadOnce(p, 10*pageSize); err != nil {
		t.Fatal(err)
	}
	held := map[int]bool{1: true, 3: true, 4: true, 70: true}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		off := rng.IntN(len(content))
		n := 1 + rng.IntN(min(3*pageSize, len(content)-off))
		want := true
		for page := off / pageSize; page <= (off+n-1)/pageSize; page++ {
			want = want && held[page]
		}
		w := x.Warm()
		if got := w.Holds(uint64(off), uint64(off+n)); got != want {
			t.Fatalf("%d bytes at %d are held: %t", n, off, got)
		}
		if n <= NearMax && w.Near(uint64(off), uint64(off+n)) != want {
			t.Fatalf("%d bytes at %d are near: %t", n, off, !want)
		}
		if want && !bytes.Equal(x.Data()[off:off+n], content[off:off+n]) {
			t.Fatalf("%d bytes at %d are others", n, off)
		}
	}
	if all := AllWarm(int64(len(content))); !all.Holds(0, uint64(len(content))) {
		t.Error("not all of what is in memory is held")
	}
}

// TestTableForgets: what was read is held for a while, and that is not asked now and then
// but known.
func TestTableForgets(t *testing.T) {
	x, _ := table(t, fsio.OS(), random(2*pageSize))
	synctest.Test(t, func(t *testing.T) {
		read := func() {
			if _, err := x.ReadAt(make([]byte, 8), 8); err != nil {
				t.Fatal(err)
			}
		}
		read()
		time.Sleep(Memory - 1)
		if !x.Warm().Holds(8, 16) {
			t.Error("forgotten before its time")
		}
		time.Sleep(2 * time.Nanosecond)
		synctest.Wait()
		if x.Warm().Holds(8, 16) {
			t.Error("still taken to be in memory")
		}
		if read(); !x.Warm().Holds(8, 16) {
			t.Error("read again and not held")
		}
	})
}

// shrink leaves mapped Tables so many descriptors.
func shrink(t *testing.T, limit int) {
	pool.once.Do(pool.setLimit)
	pool.Lock()
	former := pool.limit
	pool.limit = limit
	pool.Unlock()
	ReleaseDescriptors()
	t.Cleanup(func() {
		pool.Lock()
		defer pool.Unlock()
		pool.limit = former
	})
}

// TestTableDescriptors: many Tables share few descriptors, whoever reads, and none is
// left open.
func TestTableDescriptors(t *testing.T) {
	const tables, limit = 50, 4
	shrink(t, limit)
	cold := fsiotest.NewCold()
	content := random(3 * pageSize)
	var all []*Table
	for range tables {
		x, _ := table(t, cold, content)
		all = append(all, x)
		if open, _ := cold.Held(); open > limit {
			t.Fatalf("%d files are open, want at most %d", open, limit)
		}
	}
	var wg sync.WaitGroup
	const readers = 4
	for g := range uint64(readers) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 0))
			p := make([]byte, 100)
			for range 2_000 {
				off := rng.IntN(len(content) - len(p))
				if n, err := all[rng.IntN(tables)].ReadAt(p, int64(off)); n != len(p) || err != nil || !bytes.Equal(p, content[off:off+len(p)]) {
					t.Errorf("%d bytes at %d: %v", n, off, err)
					return
				}
				if open, _ := cold.Held(); open > limit+2*readers {
					t.Errorf("%d files are open", open)
				}
			}
		})
	}
	wg.Wait()
	if open, maps := cold.Held(); open > limit || maps != tables {
		t.Errorf("%d files are open and %d mapped, want at most %d and %d", open, maps, limit, tables)
	}
	for _, x := range all {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		x.unmap = nil // for the cleanup
	}
	if open, maps := cold.Held(); open != 0 || maps != 0 {
		t.Errorf("%d files are left open and %d mapped", open, maps)
	}
}

// TestTableWithoutName: a Table whose file lost its name, or whose name leads to another
// file, goes on reading its own, without the descriptor if it has to.
func TestTableWithoutName(t *testing.T) {
	content := random(3 * pageSize)
	for _, c := range []struct {
		name string
		do   func(name string) error
	}{
		{"removed", os.Remove},
		{"replaced", func(name string) error {
			if err := os.WriteFile(name+"2", make([]byte, len(content)), 0o600); err != nil {
				return err
			}
			return os.Rename(name+"2", name)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x, name := table(t, fsio.OS(), content)
			if err := c.do(name); err != nil {
				t.Fatal(err)
			}
			ReleaseDescriptors()
			p := make([]byte, 100)
			for _, off := range []int64{0, pageSize - 50, int64(len(content)) - 100} {
				if n, err := x.ReadAt(p, off); n != len(p) || err != nil || !bytes.Equal(p, content[off:off+100]) {
					t.Errorf("%d bytes at %d: %v", n, off, err)
				}
			}
			if n, err := x.ReadAt(p, int64(len(content))-10); n != 10 || err != io.EOF {
				t.Errorf("at the end: %d, %v", n, err)
			}
			if n, err := x.ReadAt(p, int64(len(content))); n != 0 || err != io.EOF {
				t.Errorf("behind the end: %d, %v", n, err)
			}
		})
	}
}

// unmappable is a file system whose files cannot be mapped.
type unmappable struct{ fsio.FS }

func (u unmappable) OpenFile(name string, flag int, perm os.FileMode) (fsio.File, error) {
	f, err := u.FS.OpenFile(name, flag, perm)
	return struct{ fsio.File }{f}, err
}

// TestTableWithoutMapping is read by calls, of the descriptor that it keeps.
func TestTableWithoutMapping(t *testing.T) {
	content := random(3 * pageSize)
	x, name := table(t, unmappable{fsio.OS()}, content)
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	ReleaseDescriptors()
	p := make([]byte, 100)
	if n, err := x.ReadAt(p, 50); n != len(p) || err != nil || !bytes.Equal(p, content[50:150]) {
		t.Errorf("%d bytes: %v", n, err)
	}
	if x.Data() != nil || x.Warm().Holds(50, 150) {
		t.Error("something is held of a file that is not mapped")
	}
}

// short is a file system that has few descriptors.
type short struct {
	*fsiotest.Cold
	limit int64
}

func (s *short) OpenFile(name string, flag int, perm os.FileMode) (fsio.File, error) {
	if open, _ := s.Held(); open >= s.limit {
		return nil, &os.PathError{Op: "open", Path: name, Err: syscall.EMFILE}
	}
	return s.Cold.OpenFile(name, flag, perm)
}

// TestTableGivesUpDescriptors: those of Tables go to whoever opens a file and finds none left,
// and who finds none for a Table reads its mapping.
func TestTableGivesUpDescriptors(t *testing.T) {
	ReleaseDescriptors()
	fsys := &short{Cold: fsiotest.NewCold(), limit: 5}
	content := random(pageSize)
	var all []*Table
	for range 5 {
		x, _ := table(t, fsys, content)
		all = append(all, x)
	}
	f, err := Open(fsys, all[0].name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if open, _ := fsys.Held(); open != 1 {
		t.Errorf("%d files are open", open)
	}
	p := make([]byte, 100)
	if n, err := all[1].ReadAt(p, 50); n != len(p) || err != nil || !bytes.Equal(p, content[50:150]) {
		t.Errorf("%d bytes: %v", n, err)
	}
	ReleaseDescriptors()
	fsys.limit = 0
	if n, err := all[1].ReadAt(p, 50); n != len(p) || err != nil || !bytes.Equal(p, content[50:150]) {
		t.Errorf("%d bytes without a descriptor: %v", n, err)
	}
	if _, err := Open(fsys, all[0].name); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("opened without a descriptor: %v", err)
	}
}
