package fsio

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// backends are the implementations that the suite holds to one behaviour. Each
// gives a file system and an empty directory on it.
func backends(t *testing.T, test func(t *testing.T, fsys FS, dir string)) {
	t.Run("OS", func(t *testing.T) { test(t, OS(), t.TempDir()) })
	t.Run("Sim", func(t *testing.T) {
		sim := NewSim(1)
		if err := sim.MkdirAll("/tmp/dir", 0o700); err != nil {
			t.Fatal(err)
		}
		test(t, sim, "/tmp/dir")
		if n := sim.OpenFiles(); n != 0 {
			t.Errorf("%d files left open: %v", n, sim.OpenNames())
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, got, want error) {
	t.Helper()
	var pathErr *fs.PathError
	var linkErr *os.LinkError
	if !errors.Is(got, want) {
		t.Errorf("got error %v, want %v", got, want)
	} else if !errors.As(got, &pathErr) && !errors.As(got, &linkErr) {
		t.Errorf("error %v names no path", got)
	}
}

func write(t *testing.T, fsys FS, name string, flag int, contents string) {
	t.Helper()
	f, err := fsys.OpenFile(name, flag, 0o600)
	must(t, err)
	_, err = f.Write([]byte(contents))
	must(t, err)
	must(t, f.Close())
}

const create = os.O_CREATE | os.O_RDWR

func TestOpenFlags(t *testing.T) {
	backends(t, func(t *testing.T, fsys FS, dir string) {
		name := filepath.Join(dir, "f")
		_, err := fsys.OpenFile(name, os.O_RDWR, 0)
		wantErr(t, err, fs.ErrNotExist)
		_, err = fsys.OpenFile(filepath.Join(dir, "missing", "f"), create, 0o600)
		wantErr(t, err, fs.ErrNotExist)
		write(t, fsys, name, create|os.O_EXCL, "abc")
		_, err = fsys.OpenFile(name, create|os.O_EXCL, 0o600)
		wantErr(t, err, fs.ErrExist)
		_, err = fsys.OpenFile(filepath.Join(name, "below"), create, 0o600)
		wantErr(t, err, syscall.ENOTDIR)
		_, err = fsys.OpenFile(dir, os.O_RDWR, 0)
		wantErr(t, err, syscall.EISDIR)
		_, err = fsys.OpenFile(filepath.Join(dir, strings.Repeat("x", 256)), create, 0o600)
		wantErr(t, err, syscall.ENAMETOOLONG)
		_, err = fsys.OpenFile(filepath.Join(dir, "a\x00b"), create, 0o600)
		wantErr(t, err, syscall.EINVAL)
		write(t, fsys, name, os.O_WRONLY, "X")
		if got := readAll(t, fsys, name); got != "Xbc" {
			t.Errorf("overwritten: %q", got)
		}
		write(t, fsys, name, os.O_WRONLY|os.O_APPEND, "def")
		if got := readAll(t, fsys, name); got != "Xbcdef" {
			t.Errorf("appended: %q", got)
		}
		write(t, fsys, name, create|os.O_TRUNC, "new")
		if got := readAll(t, fsys, name); got != "new" {
			t.Errorf("truncated: %q", got)
		}
		info, err := fsys.Lstat(name)
		must(t, err)
		if info.Mode() != 0o600 || info.Size() != 3 || info.Name() != "f" || info.IsDir() {
			t.Errorf("mode %v, size %d, name %s", info.Mode(), info.Size(), info.Name())
		}
	})
}

func TestAccessModes(t *testing.T) {
	backends(t, func(t *testing.T, fsys FS, dir string) {
		name := filepath.Join(dir, "f")
		write(t, fsys, name, create, "abc")
		r, err := fsys.OpenFile(name, os.O_RDONLY, 0)
		must(t, err)
		_, err = r.Write([]byte("x"))
		wantErr(t, err, syscall.EBADF)
		wantErr(t, r.Truncate(0), syscall.EINVAL)
		must(t, r.Close())
		w, err := fsys.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		_, err = w.ReadAt(make([]byte, 1), 0)
		wantErr(t, err, syscall.EBADF)
		if _, err = w.WriteAt([]byte("x"), 0); err == nil {
			t.Error("WriteAt in append mode succeeded")
		}
		must(t, w.Close())
		wantErr(t, w.Close(), fs.ErrClosed)
		_, err = w.Write([]byte("x"))
		wantErr(t, err, fs.ErrClosed)
		wantErr(t, w.Sync(), fs.ErrClosed)
		wantErr(t, w.SyncData(), fs.ErrClosed)
		wantErr(t, w.Truncate(1), fs.ErrClosed)
		_, err = w.Stat()
		wantErr(t, err, fs.ErrClosed)
		_, err = w.Seek(0, io.SeekStart)
		wantErr(t, err, fs.ErrClosed)
		d, err := fsys.OpenFile(dir, os.O_RDONLY, 0)
		must(t, err)
		_, err = d.Read(make([]byte, 1))
		wantErr(t, err, syscall.EISDIR)
		must(t, d.Sync())
		must(t, d.Close())
	})
}

func TestReadAndWriteAt(t *testing.T) {
	backends(t, func(t *testing.T, fsys FS, dir string) {
		f, err := fsys.OpenFile(filepath.Join(dir, "f"), create, 0o600)
		must(t, err)
		defer f.Close()
		_, err = f.WriteAt([]byte("abc"), 5000)
		must(t, err)
		_, err = f.WriteAt(nil, 9000) // of no length: does not grow
		must(t, err)
		buf := make([]byte, 5003)
		n, err := f.ReadAt(buf, 0)
		if n != 5003 || err != nil || string(buf) != strings.Repeat("\x00", 5000)+"abc" {
			t.Errorf("read %d, %v: ends with %q", n, err, buf[4990:])
		}
		for _, c := range []struct {
			off     int64
			len, n  int
			wantErr error
		}{
			{5001, 2, 2, nil}, {5001, 3, 2, io.EOF}, {5003, 1, 0, io.EOF}, {9999, 1, 0, io.EOF}, {9999, 0, 0, nil},
		} {
			if n, err := f.ReadAt(make([]byte, c.len), c.off); n != c.n || err != c.wantErr {
				t.Errorf("ReadAt(%d bytes, %d) = %d, %v", c.len, c.off, n, err)
			}
		}
		_, err = f.ReadAt(buf, -1)
		if err == nil {
			t.Error("negative offset accepted")
		}
		_, err = f.Seek(-1, io.SeekStart)
		wantErr(t, err, syscall.EINVAL)
		pos, err := f.Seek(-3, io.SeekEnd)
		if pos != 5000 || err != nil {
			t.Errorf("Seek = %d, %v", pos, err)
		}
		if n, err := f.Read(buf); n != 3 || err != nil {
			t.Errorf("Read = %d, %v", n, err)
		}
		if n, err := f.Read(buf); n != 0 || err != io.EOF {
			t.Errorf("Read at the end = %d, %v", n, err)
		}
	})
}

func TestTruncate(t *testing.T) {
	backends(t, func(t *testing.T, fsys FS, dir string) {
		name := filepath.Join(dir, "f")
		f, err := fsys.OpenFile(name, create, 0o600)
		must(t, err)
		defer f.Close()
		_, err = f.Write([]byte(strings.Repeat("x", 10_000)))
		must(t, err)
		must(t, f.Truncate(3))
		must(t, f.Truncate(12_000))
		must(t, f.SyncData())
		if got := readAll(t, fsys, name); got != "xxx"+strings.Repeat("\x00", 11_997) {
			t.Errorf("%d bytes, %d of them not zero", len(got), len(got)-strings.Count(got, "\x00"))
		}
		wantErr(t, f.Truncate(-1), syscall.EINVAL)
		info, err := f.Stat()
		if err != nil || info.Size() != 12_000 {
			t.Errorf("size %d, %v", info.Size(), err)
		}
	})
}

func TestNames(t *testing.T) {
	backends(t, func(t *testing.T, fsys FS, dir string) {
		a, b, sub := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "sub")
		deep := filepath.Join(sub, "x", "y")
		must(t, fsys.MkdirAll(deep, 0o700))
		must(t, fsys.MkdirAll(deep, 0o700))
		info, err := fsys.Lstat(deep)
		if err != nil || info.Mode() != fs.ModeDir|0o700 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		write(t, fsys, b, create, "B")
		write(t, fsys, a, create, "A")
		wantErr(t, fsys.MkdirAll(a, 0o700), syscall.ENOTDIR)
		wantErr(t, fsys.MkdirAll(filepath.Join(a, "below"), 0o700), syscall.ENOTDIR)
		wantErr(t, fsys.MkdirAll("", 0o700), fs.ErrNotExist)
		entries, err := fsys.ReadDir(dir)
		must(t, err)
		names := make([]string, len(entries))
		for i, e := range entries {
			names[i] = e.Name() + e.Type().String()
		}
		if want := []string{"a----------", "b----------", "subd---------"}; !slices.Equal(names, want) {
			t.Errorf("got %v, want %v", names, want)
		}
		_, err = fsys.ReadDir(filepath.Join(dir, "missing"))
		wantErr(t, err, fs.ErrNotExist)
		_, err = fsys.ReadDir(a)
		wantErr(t, err, syscall.ENOTDIR)
		_, err = fsys.Lstat(filepath.Join(dir, "missing"))
		wantErr(t, err, fs.ErrNotExist)
		must(t, fsys.SyncDir(dir))
		wantErr(t, fsys.SyncDir(filepath.Join(dir, "missing")), fs.ErrNotExist)
		wantErr(t, fsys.Remove(filepath.Join(dir, "missing")), fs.ErrNotExist)
		wantErr(t, fsys.Remove(sub), syscall.ENOTEMPTY)
		must(t, fsys.Remove(deep))

		must(t, fsys.Rename(a, b))
		if got := readAll(t, fsys, b); got != "A" {
			t.Errorf("after rename: %q", got)
		}
		must(t, fsys.Rename(b, b))
		wantErr(t, fsys.Rename(a, b), fs.ErrNotExist)
		wantErr(t, fsys.Rename(b, sub), fs.ErrExist)
		wantErr(t, fsys.Rename(sub, b), syscall.ENOTDIR)
		wantErr(t, fsys.Rename(sub, filepath.Join(sub, "x", "z")), syscall.EINVAL)
		wantErr(t, fsys.Rename(b, filepath.Join(dir, "missing", "b")), fs.ErrNotExist)
		must(t, fsys.Rename(sub, a))
		_, err = fsys.Lstat(filepath.Join(a, "x"))
		must(t, err)
	})
}

// An open file stays readable and writable when its name goes.
func TestOpenFileWithoutName(t *testing.T) {
	backends(t, func(t *testing.T, fsys FS, dir string) {
		name := filepath.Join(dir, "f")
		f, err := fsys.OpenFile(name, create, 0o600)
		must(t, err)
		defer f.Close()
		must(t, fsys.Remove(name))
		write(t, fsys, name, create, "another")
		_, err = f.Write([]byte("first"))
		must(t, err)
		buf := make([]byte, 5)
		if _, err := f.ReadAt(buf, 0); err != nil || string(buf) != "first" {
			t.Errorf("%q, %v", buf, err)
		}
		if got := readAll(t, fsys, name); got != "another" {
			t.Errorf("the new file has %q", got)
		}
	})
}

// Proves S8: a link that somebody planted is never written through.
func TestPlantedLinks(t *testing.T) {
	backends(t, func(t *testing.T, fsys FS, dir string) {
		victim, link := filepath.Join(dir, "victim"), filepath.Join(dir, "link")
		write(t, fsys, victim, create, "precious")
		symlink := os.Symlink
		if sim, ok := fsys.(*Sim); ok {
			symlink = sim.Symlink
		}
		must(t, symlink(victim, link))
		must(t, symlink("nowhere", filepath.Join(dir, "dangling")))
		must(t, symlink("loop", filepath.Join(dir, "loop")))
		_, err := fsys.OpenFile(link, create|os.O_TRUNC, 0o600)
		wantErr(t, err, syscall.ELOOP)
		_, err = fsys.OpenFile(link, create|os.O_EXCL, 0o600)
		wantErr(t, err, fs.ErrExist)
		_, err = fsys.OpenFile(filepath.Join(dir, "dangling"), create, 0o600)
		wantErr(t, err, syscall.ELOOP)
		_, err = fsys.OpenFile(filepath.Join(dir, "dangling"), os.O_RDONLY, 0o600)
		wantErr(t, err, fs.ErrNotExist)
		_, err = fsys.OpenFile(filepath.Join(dir, "loop"), os.O_RDONLY, 0)
		wantErr(t, err, syscall.ELOOP)
		_, err = fsys.Lock(link)
		wantErr(t, err, syscall.ELOOP)
		wantErr(t, fsys.MkdirAll(filepath.Join(dir, "dangling"), 0o700), fs.ErrNotExist)
		must(t, WriteFileAtomic(fsys, link, 0o600, writeString("replaces the link")))
		if got := readAll(t, fsys, victim); got != "precious" {
			t.Errorf("the victim has %q", got)
		}
		info, err := fsys.Lstat(link)
		if err != nil || !info.Mode().IsRegular() {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		must(t, symlink(dir, filepath.Join(dir, "dirlink")))
		if got := readAll(t, fsys, filepath.Join(dir, "dirlink", "victim")); got != "precious" {
			t.Errorf("through a directory link: %q", got)
		}
	})
}

// Proves C12, for its part: one holder at a time, and a closed lock is free.
func TestLock(t *testing.T) {
	backends(t, func(t *testing.T, fsys FS, dir string) {
		name := filepath.Join(dir, "LOCK")
		l, err := fsys.Lock(name)
		must(t, err)
		_, err = fsys.Lock(name)
		wantErr(t, err, ErrLocked)
		other, err := fsys.Lock(filepath.Join(dir, "other"))
		must(t, err)
		must(t, other.Close())
		must(t, l.Close())
		l2, err := fsys.Lock(name)
		must(t, err)
		must(t, l.Close()) // again: nothing, and above all not l2's
		_, err = fsys.Lock(name)
		wantErr(t, err, ErrLocked)
		must(t, l2.Close())
		if _, err := fsys.Lstat(name); err != nil {
			t.Error(err)
		}
		_, err = fsys.Lock(filepath.Join(dir, "missing", "LOCK"))
		wantErr(t, err, fs.ErrNotExist)
	})
}

func TestMap(t *testing.T) {
	backends(t, func(t *testing.T, fsys FS, dir string) {
		for _, contents := range []string{"", "x", strings.Repeat("0123456789", 1000)} {
			name := filepath.Join(dir, "f")
			write(t, fsys, name, create|os.O_TRUNC, contents)
			f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
			must(t, err)
			data, unmap, err := f.(Mapper).Map()
			must(t, err)
			must(t, f.Close())
			if string(data) != contents {
				t.Errorf("mapped %d bytes, want %d", len(data), len(contents))
			}
			must(t, unmap())
			must(t, unmap())
		}
	})
}

func TestSweepTemps(t *testing.T) {
	backends(t, func(t *testing.T, fsys FS, dir string) {
		must(t, fsys.MkdirAll(filepath.Join(dir, "d.tmp-00000000"), 0o700))
		foreign := []string{"f.tmp", "f.tmp-", "f.tmp-1", "f.tmp-0000000G", "f.tmp-000000000", ".tmp-00000000", "f"}
		for _, name := range append(foreign, "f.tmp-00000000", "f.tmp-0000000a", "x.y.tmp-ffffffff") {
			write(t, fsys, filepath.Join(dir, name), create, "")
		}
		n, err := SweepTemps(fsys, dir)
		if n != 3 || err != nil {
			t.Errorf("swept %d, %v", n, err)
		}
		entries, err := fsys.ReadDir(dir)
		if err != nil || len(entries) != len(foreign)+1 {
			t.Errorf("left: %v, %v", entries, err)
		}
		n, err = SweepTemps(fsys, filepath.Join(dir, "missing"))
		if n != 0 || err != nil {
			t.Errorf("missing directory: %d, %v", n, err)
		}
	})
}

// Two writers of one name do not see each other's temporary files; the name has
// the contents of one of them.
func TestWriteFileAtomicTwoWriters(t *testing.T) {
	backends(t, func(t *testing.T, fsys FS, dir string) {
		name := filepath.Join(dir, "f")
		must(t, WriteFileAtomic(fsys, name, 0o600, func(f File) error {
			must(t, WriteFileAtomic(fsys, name, 0o600, writeString("inner")))
			return writeString("outer")(f)
		}))
		if got := readAll(t, fsys, name); got != "outer" {
			t.Errorf("got %q", got)
		}
	})
}
