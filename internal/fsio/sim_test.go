package fsio

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// outcomes crashes clones of s and counts what look says about what is left.
func outcomes(s *Sim, crashes int, look func(after *Sim) string) map[string]int {
	seen := map[string]int{}
	for seed := range uint64(crashes) {
		seen[look(s.Clone(seed).Crash())]++
	}
	return seen
}

func wantOutcomes(t *testing.T, got map[string]int, want ...string) {
	t.Helper()
	for _, w := range want {
		if got[w] == 0 {
			t.Errorf("never seen: %q", w)
		}
	}
	for g, n := range got {
		if !slices.Contains(want, g) {
			t.Errorf("seen %d times: %q", n, g)
		}
	}
}

// look tells what some names of the root lead to: their contents, "-" for none.
func look(names ...string) func(*Sim) string {
	return func(s *Sim) string {
		var all []string
		for _, name := range names {
			got, err := contents(s, name)
			if errors.Is(err, fs.ErrNotExist) {
				got = "-"
			} else if err != nil {
				got = err.Error()
			}
			all = append(all, got)
		}
		return strings.Join(all, " ")
	}
}

// durable writes a file and syncs it and its name.
func durable(t *testing.T, s *Sim, name, contents string) {
	t.Helper()
	f, err := s.OpenFile(name, create|os.O_TRUNC, 0o600)
	must(t, err)
	_, err = f.Write([]byte(contents))
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	must(t, s.SyncDir("/"))
}

// Proves C4 and, of the disk's part, C2: what is synced stays, what is not is there
// or not, in every combination that the package comment allows and in no other.
func TestCrashNames(t *testing.T) {
	const crashes = 400
	t.Run("create", func(t *testing.T) {
		s := NewSim(1)
		durable(t, s, "kept", "k")
		write(t, s, "a", create, "")
		write(t, s, "b", create, "")
		wantOutcomes(t, outcomes(s, crashes, look("kept", "a", "b")), "k - -", "k  -", "k - ", "k  ")
		must(t, s.SyncDir("/"))
		wantOutcomes(t, outcomes(s, crashes, look("a", "b")), " ")
	})
	t.Run("remove", func(t *testing.T) {
		s := NewSim(1)
		durable(t, s, "a", "A")
		must(t, s.Remove("a"))
		wantOutcomes(t, outcomes(s, crashes, look("a")), "A", "-")
		write(t, s, "a", create, "")
		wantOutcomes(t, outcomes(s, crashes, look("a")), "A", "-", "")
		must(t, s.SyncDir("/"))
		wantOutcomes(t, outcomes(s, crashes, look("a")), "")
	})
	t.Run("rename over another", func(t *testing.T) {
		s := NewSim(1)
		durable(t, s, "old", "O")
		durable(t, s, "new", "N")
		must(t, s.Rename("new", "old"))
		wantOutcomes(t, outcomes(s, crashes, look("new", "old")), "N O", "- N")
		write(t, s, "new", create, "") // reusing the name must not lose the file that had it
		wantOutcomes(t, outcomes(s, crashes, look("new", "old")), "N O", "- N", " N")
	})
	t.Run("renamed twice", func(t *testing.T) {
		s := NewSim(1)
		durable(t, s, "a", "A")
		must(t, s.Rename("a", "b"))
		must(t, s.Rename("b", "c"))
		wantOutcomes(t, outcomes(s, crashes, look("a", "b", "c")), "A - -", "- A -", "- - A")
	})
	t.Run("between directories", func(t *testing.T) {
		s := NewSim(1)
		must(t, s.MkdirAll("/d", 0o700))
		durable(t, s, "a", "A")
		must(t, s.Rename("a", "d/a"))
		wantOutcomes(t, outcomes(s, crashes, look("a", "d/a")), "A -", "- A")
		must(t, s.SyncDir("d"))
		wantOutcomes(t, outcomes(s, crashes, look("a", "d/a")), "- A")
	})
	t.Run("replaced, then moved away", func(t *testing.T) {
		s := NewSim(1)
		must(t, s.MkdirAll("/d", 0o700))
		write(t, s, "d/b", create, "")
		durable(t, s, "d/t", "T")
		must(t, s.Rename("d/t", "d/b"))
		must(t, s.Rename("d/b", "b"))
		must(t, s.SyncDir("/"))
		wantOutcomes(t, outcomes(s, crashes, look("d/b", "b")), "- T")
		must(t, s.SyncDir("d")) // must not bring back what was replaced
		wantOutcomes(t, outcomes(s, crashes, look("d/b", "b")), "- T")
	})
	t.Run("reordered", func(t *testing.T) {
		s := NewSim(1, ReorderRenames())
		durable(t, s, "a", "A")
		must(t, s.Rename("a", "b"))
		wantOutcomes(t, outcomes(s, crashes, look("a", "b")), "A -", "- A", "A A", "- -")
		must(t, s.SyncDir("/"))
		wantOutcomes(t, outcomes(s, crashes, look("a", "b")), "- A")
	})
	t.Run("mkdir", func(t *testing.T) {
		s := NewSim(1)
		must(t, s.MkdirAll("/x/y/z", 0o700))
		wantOutcomes(t, outcomes(s, crashes, (*Sim).Tree), "/x/\n/x/y/\n/x/y/z/\n")
	})
}

// Proves C1 and C2 for the disk's part: of unsynced contents any sectors survive.
func TestCrashContents(t *testing.T) {
	const crashes = 600
	sector := func(c string) string { return strings.Repeat(c, sectorSize) }
	// shape shortens runs, so that contents can be listed.
	shape := func(s *Sim) string {
		got := look("f")(s)
		out := ""
		for len(got) > 0 {
			n := min(len(got), sectorSize)
			part := got[:n]
			got = got[n:]
			if strings.Count(part, part[:1]) == n {
				out += strings.ReplaceAll(part[:1], "\x00", "0")
			} else {
				out += "?"
			}
			if n < sectorSize {
				out += "+"
			}
		}
		return out
	}
	t.Run("overwrite", func(t *testing.T) {
		s := NewSim(1)
		durable(t, s, "f", sector("a")+sector("b"))
		write(t, s, "f", os.O_RDWR, sector("A")+sector("B"))
		wantOutcomes(t, outcomes(s, crashes, shape), "ab", "Ab", "aB", "AB")
	})
	t.Run("overwrite torn", func(t *testing.T) {
		s := NewSim(1, TornSectors())
		durable(t, s, "f", sector("a"))
		write(t, s, "f", os.O_RDWR, sector("A"))
		wantOutcomes(t, outcomes(s, crashes, shape), "a", "A", "?")
	})
	t.Run("append", func(t *testing.T) {
		s := NewSim(1)
		durable(t, s, "f", sector("a"))
		write(t, s, "f", os.O_RDWR|os.O_APPEND, sector("B"))
		wantOutcomes(t, outcomes(s, crashes, shape), "a", "aB", "a0", "a?", "aB+", "a0+", "a?+")
	})
	t.Run("append within a sector", func(t *testing.T) {
		s := NewSim(1)
		durable(t, s, "f", "aaa")
		write(t, s, "f", os.O_RDWR|os.O_APPEND, "bb")
		for got := range outcomes(s, crashes, look("f")) {
			if !strings.HasPrefix(got, "aaa") || len(got) > 5 {
				t.Errorf("got %q", got)
			}
		}
	})
	t.Run("truncate", func(t *testing.T) {
		s := NewSim(1)
		durable(t, s, "f", sector("a")+sector("b"))
		f, err := s.OpenFile("f", os.O_RDWR, 0)
		must(t, err)
		must(t, f.Truncate(sectorSize))
		wantOutcomes(t, outcomes(s, crashes, shape), "ab", "a")
		must(t, f.Truncate(2*sectorSize))
		must(t, f.Sync())
		must(t, f.Close())
		wantOutcomes(t, outcomes(s, crashes, shape), "a0")
	})
	t.Run("truncate pages and grow again", func(t *testing.T) {
		s := NewSim(1)
		durable(t, s, "f", strings.Repeat("a", 3*pageSize))
		f, err := s.OpenFile("f", os.O_RDWR, 0)
		must(t, err)
		must(t, f.Truncate(sectorSize+100))
		must(t, f.Truncate(3*pageSize))
		must(t, f.Sync())
		must(t, f.Close())
		want := strings.Repeat("a", sectorSize+100)
		want += strings.Repeat("\x00", 3*pageSize-len(want))
		wantOutcomes(t, outcomes(s, crashes, look("f")), want)
	})
	t.Run("grow after the crash", func(t *testing.T) {
		s := NewSim(1)
		durable(t, s, "f", "a")
		write(t, s, "f", os.O_RDWR|os.O_APPEND, sector("b"))
		for seed := range uint64(100) {
			after := s.Clone(seed).Crash()
			left := len(readAll(t, after, "f"))
			f, err := after.OpenFile("f", os.O_RDWR, 0)
			must(t, err)
			must(t, f.Truncate(pageSize))
			must(t, f.Close())
			if got := readAll(t, after, "f")[left:]; strings.Trim(got, "\x00") != "" {
				t.Fatalf("crash %d: what was cut off came back: %.40q", seed, got)
			}
		}
	})
	t.Run("written twice", func(t *testing.T) {
		seen := map[string]int{}
		for seed := range uint64(crashes) {
			s := NewSim(seed)
			durable(t, s, "f", sector("a"))
			write(t, s, "f", os.O_RDWR, sector("b"))
			write(t, s, "f", os.O_RDWR, sector("c"))
			seen[shape(s.Crash())]++
		}
		wantOutcomes(t, seen, "a", "b", "c")
	})
}

func TestCrashEndsTheProgram(t *testing.T) {
	for _, end := range []func(*Sim) *Sim{(*Sim).Crash, (*Sim).Kill} {
		s := NewSim(1)
		durable(t, s, "f", "f")
		f, err := s.OpenFile("f", os.O_RDWR, 0)
		must(t, err)
		l, err := s.Lock("LOCK")
		must(t, err)
		s.FailAt(3, FaultEIO)
		s.OnOp(func(Op) error { return FaultEIO })
		after := end(s)
		_, err = f.Write([]byte("late"))
		wantErr(t, err, ErrCrashed)
		_, err = f.Seek(0, 0)
		wantErr(t, err, ErrCrashed)
		wantErr(t, f.Sync(), ErrCrashed)
		wantErr(t, f.Close(), ErrCrashed)
		wantErr(t, s.Remove("f"), ErrCrashed)
		must(t, l.Close())
		if n := after.OpenFiles() + after.HeldLocks() + int(after.NumOps()); n != 0 {
			t.Errorf("the new machine has files, locks or operations: %d", n)
		}
		if got := readAll(t, after, "f"); got != "f" {
			t.Errorf("got %q", got)
		}
		l2, err := after.Lock("LOCK")
		must(t, err)
		must(t, l2.Close())
	}
}

func TestKillKeepsWhatWasWritten(t *testing.T) {
	s := NewSim(1)
	write(t, s, "f", create, "unsynced")
	killed := s.Kill()
	if got := readAll(t, killed, "f"); got != "unsynced" {
		t.Errorf("got %q", got)
	}
	if seen := outcomes(killed, 50, look("f")); seen["-"] == 0 {
		t.Errorf("the kill made it durable: %v", seen)
	}
}

func TestCloneIsIndependent(t *testing.T) {
	s := NewSim(1, TraceLimit(0))
	durable(t, s, "f", "synced")
	write(t, s, "f", os.O_RDWR, "SYN")
	c := s.Clone(2)
	write(t, s, "f", os.O_RDWR, "parent")
	if got := readAll(t, c, "f"); got != "SYNced" {
		t.Errorf("the clone sees %q", got)
	}
	write(t, c, "f", os.O_RDWR, "child!")
	must(t, c.Rename("f", "g"))
	if got := look("f", "g")(s) + look("f", "g")(c); got != "parent -- child!" {
		t.Errorf("got %q", got)
	}
	if s.Used() != pageSize || c.Used() != pageSize {
		t.Errorf("used %d and %d", s.Used(), c.Used())
	}
}

// Proves C11 for the disk's part: each fault gives its error and leaves the rest
// alone.
func TestFaults(t *testing.T) {
	s := NewSim(1)
	durable(t, s, "f", "contents")
	f, err := s.OpenFile("f", os.O_RDWR, 0)
	must(t, err)
	for fault, want := range map[Fault]error{FaultEIO: syscall.EIO, FaultENOSPC: syscall.ENOSPC} {
		for kind, call := range map[string]func() error{
			"open":     func() error { _, err := s.OpenFile("f", os.O_RDWR, 0); return err },
			"create":   func() error { _, err := s.OpenFile("new", create, 0o600); return err },
			"rename":   func() error { return s.Rename("f", "g") },
			"remove":   func() error { return s.Remove("f") },
			"mkdirall": func() error { return s.MkdirAll("d", 0o700) },
			"readdir":  func() error { _, err := s.ReadDir("/"); return err },
			"lstat":    func() error { _, err := s.Lstat("f"); return err },
			"syncdir":  func() error { return s.SyncDir("/") },
			"lock":     func() error { _, err := s.Lock("LOCK"); return err },
			"read":     func() error { _, err := f.ReadAt(make([]byte, 8), 0); return err },
			"write":    func() error { _, err := f.WriteAt([]byte("X"), 0); return err },
			"truncate": func() error { return f.Truncate(0) },
			"stat":     func() error { _, err := f.Stat(); return err },
			"map":      func() error { _, _, err := f.(Mapper).Map(); return err },
			"sync":     f.Sync,
			"syncdata": f.SyncData,
		} {
			s.FailAt(s.NumOps(), fault)
			err := call()
			wantErr(t, err, want)
			if got := s.Ops()[s.NumOps()-1].Kind.String(); got != kind {
				t.Errorf("%s was recorded as %s", kind, got)
			}
		}
		if got := s.Tree() + look("f")(s); got != "/f 8\ncontents" {
			t.Errorf("%v left %q", fault, got)
		}
	}
	s.FailAt(s.NumOps(), FaultShortWrite)
	n, err := f.WriteAt([]byte("CONTENTS"), 0)
	wantErr(t, err, syscall.ENOSPC)
	if want := "CONTENTS"[:n] + "contents"[n:]; n >= 8 || look("f")(s) != want {
		t.Errorf("wrote %d: %q", n, look("f")(s))
	}
	s.FailAt(s.NumOps(), FaultShortWrite)
	must(t, f.Sync()) // not a write
	s.FailAt(s.NumOps(), FaultEIO)
	wantErr(t, f.Close(), syscall.EIO)
	wantErr(t, f.Close(), fs.ErrClosed)
	if s.OpenFiles() != 0 {
		t.Errorf("open: %v", s.OpenNames())
	}
}

func TestHook(t *testing.T) {
	s := NewSim(1)
	mine := errors.New("mine")
	s.OnOp(func(op Op) error {
		s.NumOps() // the hook may use the Sim
		if op.Kind == OpSync && op.Name == "f" {
			return mine
		}
		return nil
	})
	f, err := s.OpenFile("f", create, 0o600)
	must(t, err)
	wantErr(t, f.Sync(), mine)
	s.OnOp(nil)
	must(t, f.Sync())
	must(t, f.Close())
}

// Proves C3 for the disk's part: after a failed sync, a sync that succeeds proves
// nothing.
func TestFailedSyncLosesSectors(t *testing.T) {
	lost, kept, seen := 0, 0, 0
	for seed := range uint64(200) {
		s := NewSim(seed)
		durable(t, s, "f", "old")
		f, err := s.OpenFile("f", os.O_RDWR, 0)
		must(t, err)
		_, err = f.Write([]byte("new"))
		must(t, err)
		s.FailAt(s.NumOps(), FaultEIO)
		wantErr(t, f.Sync(), syscall.EIO)
		must(t, f.Sync())
		if look("f")(s) == "new" {
			seen++
		}
		switch got := look("f")(s.Crash()); got {
		case "old":
			lost++
		case "new":
			kept++
		default:
			t.Fatalf("seed %d: %q", seed, got)
		}
	}
	if lost == 0 || kept == 0 || seen <= kept {
		t.Errorf("lost %d, kept %d, seen as written before the crash %d", lost, kept, seen)
	}
}

func TestCrashAtOperation(t *testing.T) {
	begun := 0
	for seed := range uint64(50) {
		s := NewSim(seed)
		durable(t, s, "f", "f")
		s.FailAt(s.NumOps(), FaultCrash)
		wantErr(t, s.Remove("f"), ErrCrashed)
		_, err := s.Lstat("f")
		wantErr(t, err, ErrCrashed)
		if look("f")(s.Crash()) == "-" {
			begun++
		}
	}
	if begun == 0 || begun == 50 {
		t.Errorf("the operation that the crash hit took effect in %d of 50 runs", begun)
	}
}

func TestCapacity(t *testing.T) {
	s := NewSim(1, Capacity(3*pageSize))
	f, err := s.OpenFile("f", create, 0o600)
	must(t, err)
	n, err := f.Write(make([]byte, 5*pageSize))
	wantErr(t, err, syscall.ENOSPC)
	if n != 3*pageSize || s.Used() != 3*pageSize {
		t.Errorf("wrote %d, used %d", n, s.Used())
	}
	_, err = f.WriteAt([]byte("in place"), 100)
	must(t, err)
	must(t, f.Truncate(100*pageSize)) // a hole takes no room
	must(t, f.Sync())
	must(t, f.Truncate(pageSize+1))
	if s.Used() != 2*pageSize {
		t.Errorf("after truncation: used %d", s.Used())
	}
	must(t, s.Remove("f"))
	if s.Used() != 2*pageSize {
		t.Errorf("an open file still takes room: used %d", s.Used())
	}
	must(t, f.Close())
	if s.Used() != 0 {
		t.Errorf("used %d", s.Used())
	}
	s.SetCapacity(0)
	write(t, s, "g", create, strings.Repeat("x", 10*pageSize))
}

func TestFlipBit(t *testing.T) {
	s := NewSim(1)
	durable(t, s, "f", "same")
	write(t, s, "g", create, "not synced")
	must(t, s.FlipBit("f", 2))
	must(t, s.FlipBit("g", 2))
	wantErr(t, s.FlipBit("f", 4), syscall.EINVAL)
	wantErr(t, s.FlipBit("missing", 0), fs.ErrNotExist)
	got := readAll(t, s, "f")
	if x := got[2] ^ 'm'; x == 0 || x&(x-1) != 0 || got[:2] != "sa" || got[3:] != "e" {
		t.Errorf("got %q", got)
	}
	if after := readAll(t, s.Crash(), "f"); after != got {
		t.Errorf("before the crash %q, after it %q", got, after)
	}
}

func TestUnmappedIsOverwritten(t *testing.T) {
	s := NewSim(1)
	durable(t, s, "f", "abc")
	f, err := s.OpenFile("f", os.O_RDONLY, 0)
	must(t, err)
	data, unmap, err := f.(Mapper).Map()
	must(t, err)
	must(t, f.Close())
	if s.OpenFiles() != 1 {
		t.Errorf("a mapping does not count as open")
	}
	must(t, unmap())
	if s.OpenFiles() != 0 || !bytes.Equal(data, []byte{unmapped, unmapped, unmapped}) {
		t.Errorf("open %d, data %x", s.OpenFiles(), data)
	}
}

func TestOpenNames(t *testing.T) {
	s := NewSim(1)
	f, err := s.OpenFile("f", create, 0o600)
	must(t, err)
	l, err := s.Lock("LOCK")
	must(t, err)
	if got := s.OpenNames(); !slices.Equal(got, []string{"f", "lock LOCK"}) {
		t.Errorf("got %v", got)
	}
	must(t, f.Close())
	must(t, l.Close())
	if got := s.OpenNames(); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

// The same seed and calls give the same disk after every crash.
func TestDeterminism(t *testing.T) {
	run := func() string {
		var all strings.Builder
		s := NewSim(7, TornSectors())
		for round := range 20 {
			for i := range 20 {
				name := fmt.Sprint("f", i)
				if err := WriteFileAtomic(s, name, 0o600, writeString(strings.Repeat(name, round*100))); err != nil {
					return err.Error()
				}
				f, _ := s.OpenFile(name, os.O_RDWR|os.O_APPEND, 0)
				f.Write(bytes.Repeat([]byte("x"), 2000))
				f.Close()
				s.Remove(fmt.Sprint("f", (i*7+round)%20))
			}
			s = s.Crash()
			all.WriteString(s.Tree())
			for i := range 20 {
				all.WriteString(look(fmt.Sprint("f", i))(s))
			}
		}
		return all.String()
	}
	if first, second := run(), run(); first != second {
		t.Error("two equal runs differ")
	}
}

func TestConcurrentUse(t *testing.T) {
	s := NewSim(1)
	shared, err := s.OpenFile("shared", create, 0o600)
	must(t, err)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			name := fmt.Sprint("f", g)
			for i := range 100 {
				if err := WriteFileAtomic(s, name, 0o600, writeString(name)); err != nil {
					t.Error(err)
				}
				shared.WriteAt([]byte{byte(g)}, int64(i*4+g))
				shared.ReadAt(make([]byte, 100), 0)
				shared.Sync()
				if i%10 == 0 {
					c := s.Clone(uint64(i))
					c.Remove(name)
					c.Crash()
				}
			}
		})
	}
	wg.Wait()
	must(t, shared.Close())
	if got := s.Tree(); got != "/f0 2\n/f1 2\n/f2 2\n/f3 2\n/shared 400\n" {
		t.Error(got)
	}
}

// Once everything is synced, the platter is what programs see, whatever came before.
func TestSyncOfEverything(t *testing.T) {
	s := NewSim(3)
	must(t, s.MkdirAll("/d", 0o700))
	for i := range 2000 {
		a, b := fmt.Sprint([]string{"", "d/"}[i%2], "f", i%7), fmt.Sprint([]string{"", "d/"}[i/2%2], "f", i*3%7)
		switch i % 5 {
		case 0, 1:
			f, err := s.OpenFile(a, create, 0o600)
			must(t, err)
			_, err = f.Write([]byte(strings.Repeat(a, i)))
			must(t, err)
			must(t, f.Sync())
			must(t, f.Close())
		case 2, 3:
			_ = s.Rename(a, b)
		case 4:
			_ = s.Remove(a)
		}
		if i%11 == 0 {
			must(t, s.SyncDir([]string{"/", "/d"}[i%2]))
		}
		if i%40 != 0 {
			continue
		}
		must(t, s.SyncDir("/"))
		must(t, s.SyncDir("/d"))
		if len(s.pending) != 0 {
			t.Fatalf("%d name operations are still pending", len(s.pending))
		}
		if want, got := s.Tree(), s.Clone(uint64(i)).Crash().Tree(); got != want {
			t.Fatalf("before:\n%safter:\n%s", want, got)
		}
	}
}
