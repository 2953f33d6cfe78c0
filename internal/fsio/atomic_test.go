package fsio

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func writeString(s string) func(File) error {
	return func(f File) error {
		_, err := f.Write([]byte(s))
		return err
	}
}

func readAll(t *testing.T, fsys FS, name string) string {
	t.Helper()
	s, err := contents(fsys, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func contents(fsys FS, name string) (string, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	buf := make([]byte, info.Size())
	if _, err := f.ReadAt(buf, 0); err != nil && len(buf) > 0 {
		return "", err
	}
	return string(buf), nil
}

func TestWriteFileAtomicOnOS(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "index")
	for _, want := range []string{"old", "the new contents"} {
		if err := WriteFileAtomic(OS(), name, 0o600, writeString(want)); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, OS(), name); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, error %v", info.Mode(), err)
	}
	broken := errors.New("broken")
	err = WriteFileAtomic(OS(), name, 0o600, func(f File) error {
		if !IsTemp(f.Name()) {
			t.Errorf("%s is not a temp name", f.Name())
		}
		return errors.Join(writeString("half")(f), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	if got := readAll(t, OS(), name); got != "the new contents" {
		t.Fatalf("a failed write left %q", got)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Fatalf("left behind: %v", left)
	}
}
