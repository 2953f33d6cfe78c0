package fsio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// errKind reduces an error to what both implementations must agree on.
func errKind(err error) string {
	if err == nil {
		return "ok"
	}
	if errors.Is(err, io.EOF) {
		return "EOF"
	}
	for _, kind := range []error{fs.ErrClosed, ErrLocked} {
		if errors.Is(err, kind) {
			return kind.Error()
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return "some error"
}

// actor runs one operation after the other on a file system and says what came of
// it, in words that do not depend on the implementation.
type actor struct {
	fsys  FS
	dir   string
	files []File
	locks []io.Closer
}

func (a *actor) open(name string, flag int) string {
	f, err := a.fsys.OpenFile(filepath.Join(a.dir, name), flag, 0o600)
	if err == nil {
		a.files = append(a.files, f)
	}
	return errKind(err)
}

func (a *actor) lock(name string) string {
	l, err := a.fsys.Lock(filepath.Join(a.dir, name))
	if err == nil {
		a.locks = append(a.locks, l)
	}
	return errKind(err)
}

func (a *actor) unlock() string {
	for _, l := range a.locks {
		l.Close()
	}
	a.locks = nil
	return "ok"
}

func (a *actor) readDir(name string) string {
	entries, err := a.fsys.ReadDir(filepath.Join(a.dir, name))
	out := errKind(err)
	for _, e := range entries {
		out += " " + e.Name() + e.Type().String()
	}
	return out
}

func (a *actor) lstat(name string) string {
	info, err := a.fsys.Lstat(filepath.Join(a.dir, name))
	return describe(info, err)
}

func describe(info fs.FileInfo, err error) string {
	if err != nil {
		return errKind(err)
	}
	if info.IsDir() {
		return fmt.Sprint("dir ", info.Mode())
	}
	return fmt.Sprint(info.Mode(), info.Size())
}

func (a *actor) file(i int, do func(f File) string) string {
	if len(a.files) == 0 {
		return "no file"
	}
	return do(a.files[i%len(a.files)])
}

func (a *actor) closeAll() {
	for _, f := range a.files {
		f.Close()
	}
	a.unlock()
}

// drawOp draws an operation for any actor.
func drawOp(t *rapid.T) func(a *actor) string {
	names := rapid.SampledFrom([]string{"a", "b", "d", "d/a", "d/e", "d/e/a", "a/b", "d/../b", "."})
	name, other := names.Draw(t, "name"), names.Draw(t, "other")
	which, off, n := rapid.IntRange(0, 9).Draw(t, "which"), rapid.Int64Range(-1, 9000).Draw(t, "off"), rapid.IntRange(1, 5000).Draw(t, "len")
	flags := rapid.SampledFrom([]int{
		os.O_RDONLY, os.O_RDWR, create, create | os.O_EXCL, create | os.O_TRUNC,
		os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_APPEND | os.O_CREATE,
	}).Draw(t, "flags")
	return rapid.SampledFrom([]func(a *actor) string{
		func(a *actor) string { return a.open(name, flags) },
		func(a *actor) string { return a.open(name, flags) },
		func(a *actor) string {
			return errKind(a.fsys.Rename(filepath.Join(a.dir, name), filepath.Join(a.dir, other)))
		},
		func(a *actor) string { return errKind(a.fsys.Remove(filepath.Join(a.dir, name))) },
		func(a *actor) string { return errKind(a.fsys.MkdirAll(filepath.Join(a.dir, name), 0o700)) },
		func(a *actor) string { return errKind(a.fsys.SyncDir(filepath.Join(a.dir, name))) },
		func(a *actor) string { return a.readDir(name) },
		func(a *actor) string { return a.lstat(name) },
		func(a *actor) string { return a.lock(name) },
		func(a *actor) string { return a.unlock() },
		func(a *actor) string {
			return a.file(which, func(f File) string {
				n, err := f.WriteAt(bytes.Repeat([]byte{byte(n)}, n), off)
				return fmt.Sprint(n, errKind(err))
			})
		},
		func(a *actor) string {
			return a.file(which, func(f File) string {
				n, err := f.Write(bytes.Repeat([]byte{byte(n)}, n))
				return fmt.Sprint(n, errKind(err))
			})
		},
		func(a *actor) string {
			return a.file(which, func(f File) string {
				buf := make([]byte, n)
				n, err := f.ReadAt(buf, off)
				return fmt.Sprint(n, errKind(err), buf[:n])
			})
		},
		func(a *actor) string {
			return a.file(which, func(f File) string {
				buf := make([]byte, n)
				n, err := f.Read(buf)
				return fmt.Sprint(n, errKind(err), buf[:n])
			})
		},
		func(a *actor) string {
			return a.file(which, func(f File) string {
				if _, err := f.Stat(); err == nil { // a directory's size is its own affair
					if info, _ := f.Stat(); info.IsDir() {
						return "dir"
					}
				}
				pos, err := f.Seek(off, n%3)
				return fmt.Sprint(pos, errKind(err))
			})
		},
		func(a *actor) string {
			return a.file(which, func(f File) string { return errKind(f.Truncate(off)) })
		},
		func(a *actor) string { return a.file(which, func(f File) string { return describe(f.Stat()) }) },
		func(a *actor) string { return a.file(which, func(f File) string { return errKind(f.Sync()) }) },
		func(a *actor) string { return a.file(which, func(f File) string { return errKind(f.SyncData()) }) },
		func(a *actor) string { return a.file(which, func(f File) string { return errKind(f.Close()) }) },
	}).Draw(t, "op")
}

// The simulated disk and the operating system answer any sequence of operations
// alike.
func TestSimBehavesLikeOS(t *testing.T) {
	root := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(root, "")
		if err != nil {
			t.Fatal(err)
		}
		real := &actor{fsys: OS(), dir: dir}
		sim := NewSim(rapid.Uint64().Draw(t, "seed"))
		simulated := &actor{fsys: sim, dir: "/dir"}
		if err := sim.MkdirAll("/dir", 0o700); err != nil {
			t.Fatal(err)
		}
		defer real.closeAll()
		for range rapid.IntRange(1, 60).Draw(t, "ops") {
			op := drawOp(t)
			if want, got := op(real), op(simulated); got != want {
				ops := sim.Ops()
				t.Fatalf("%v: Sim says %.200s, OS says %.200s", ops[len(ops)-1], got, want)
			}
		}
		simulated.closeAll()
		if n := sim.OpenFiles() + sim.HeldLocks(); n != 0 {
			t.Fatalf("%d files or locks are left", n)
		}
	})
}

// versions are the contents that a file had since it was last synced, oldest first.
type versions [][]byte

// legal says what is wrong with got as the outcome of a crash, or "".
func (v versions) legal(got []byte) string {
	synced, low, high := v[0], len(v[0]), len(v[0])
	for _, c := range v {
		low, high = min(low, len(c)), max(high, len(c))
	}
	if len(got) < low || len(got) > high {
		return fmt.Sprintf("size %d is not within %d..%d", len(got), low, high)
	}
	for from := 0; from < len(got); from += sectorSize {
		to := min(from+sectorSize, len(got))
		if !v.legalSector(got[from:to], from, len(synced)) {
			return fmt.Sprintf("sector at %d is none of the %d it was", from, len(v))
		}
	}
	return ""
}

// legalSector: a sector is one of its versions, cut or filled with zeros to the
// size; what lies beyond the synced size may be anything, if it was ever written.
func (v versions) legalSector(got []byte, from, synced int) bool {
	changed := false
	for _, c := range v {
		changed = changed || !bytes.Equal(c[min(from, len(c)):], v[0][min(from, len(v[0])):])
	}
	for _, c := range v {
		old := got[:max(0, min(len(got), synced-from))]
		if bytes.Equal(sectorOf(c, from, len(got)), got) || changed && bytes.Equal(sectorOf(c, from, len(old)), old) {
			return true
		}
	}
	return false
}

func sectorOf(c []byte, from, n int) []byte {
	s := make([]byte, n)
	if from < len(c) {
		copy(s, c[from:])
	}
	return s
}

// Proves C2 and C4 for the disk's part: whatever was written, truncated and synced
// before it, a crash leaves each sector in one of its versions since the last sync.
func TestCrashLeavesVersions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := NewSim(rapid.Uint64().Draw(t, "seed"))
		f, err := s.OpenFile("f", create, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		v := versions{nil}
		for range rapid.IntRange(1, 30).Draw(t, "ops") {
			now := bytes.Clone(v[len(v)-1])
			switch rapid.IntRange(0, 4).Draw(t, "op") {
			case 0:
				if err := f.SyncData(); err != nil {
					t.Fatal(err)
				}
				v = versions{now}
				continue
			case 1:
				size := rapid.IntRange(0, 10_000).Draw(t, "size")
				if err := f.Truncate(int64(size)); err != nil {
					t.Fatal(err)
				}
				now = sectorOf(now, 0, size)
			default:
				off := rapid.IntRange(0, 9000).Draw(t, "off")
				p := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, rapid.IntRange(1, 2000).Draw(t, "len"))
				if _, err := f.WriteAt(p, int64(off)); err != nil {
					t.Fatal(err)
				}
				now = sectorOf(now, 0, max(len(now), off+len(p)))
				copy(now[off:], p)
			}
			v = append(v, now)
		}
		for seed := range uint64(5) {
			got, err := contents(s.Clone(seed).Crash(), "f")
			if err != nil {
				t.Fatal(err)
			}
			if wrong := v.legal([]byte(got)); wrong != "" {
				t.Fatalf("crash %d: %s", seed, wrong)
			}
		}
	})
}

// Proves C5 and C11 for files: WriteFileAtomic, hit by every fault at every one of
// its operations and then by a crash, leaves the old or the new contents, whole;
// what it leaves beside them, SweepTemps removes; and what it said is true.
func TestWriteFileAtomicEveryFault(t *testing.T) {
	const old, new = "the old contents", "the new contents, which are longer"
	big := strings.Repeat(new, 300) // several pages
	clean := NewSim(0)
	durable(t, clean, "f", old)
	start := clean.NumOps()
	must(t, WriteFileAtomic(clean, "f", 0o600, writeString(big)))
	total := clean.NumOps() - start
	seen := map[string]int{}
	for _, fault := range Faults() {
		for at := range total {
			for seed := range uint64(40) {
				s := NewSim(seed, TornSectors())
				durable(t, s, "f", old)
				s.FailAt(s.NumOps()+at, fault)
				err := WriteFileAtomic(s, "f", 0o600, writeString(big))
				if !errors.Is(err, ErrCrashed) && s.OpenFiles() != 0 {
					t.Fatalf("%v at %d: left open %v", fault, at, s.OpenNames())
				}
				after := s.Crash()
				got := readAll(t, after, "f")
				if got != old && got != big || err == nil && got != big {
					t.Fatalf("%v at %d, seed %d: error %v, then %d bytes: %.40q", fault, at, seed, err, len(got), got)
				}
				swept, err := SweepTemps(after, "/")
				must(t, err)
				if left := after.Tree(); swept > 1 || strings.Count(left, "\n") != 1 {
					t.Fatalf("%v at %d: swept %d, left %s", fault, at, swept, left)
				}
				seen[fmt.Sprint(fault, got == big, swept)]++
			}
		}
	}
	for _, want := range []string{"crash true 0", "crash false 0", "crash false 1", "EIO false 0", "EIO true 0", "short write false 0"} {
		if seen[want] == 0 {
			t.Errorf("never seen: %s (seen: %v)", want, seen)
		}
	}
}

// The order of the calls is the guarantee: no rename before the sync, no answer
// before the directory's. Proves C5 and C6, for files.
func TestWriteFileAtomicCalls(t *testing.T) {
	s := NewSim(1)
	must(t, s.MkdirAll("d", 0o700))
	s.ClearOps()
	must(t, WriteFileAtomic(s, "d/f", 0o600, writeString("abc")))
	var got strings.Builder
	for _, op := range s.Ops() {
		fmt.Fprintln(&got, op)
	}
	const want = `create d/f.tmp-00000000
write d/f.tmp-00000000 0+3
sync d/f.tmp-00000000
close d/f.tmp-00000000
rename d/f.tmp-00000000 d/f
syncdir d
`
	if got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}
