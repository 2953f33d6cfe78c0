//go:build unix

package mount

import (
	"path/filepath"
	"syscall"
	"testing"
)

// TestOpenPipe: even if a file becomes a pipe between the look and the opening, opening
// does not wait for a writer. Proves S7.
func TestOpenPipe(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*FileMount{{Path: path}, {Path: path, Roots: []string{dir}}} {
		f, err := m.open()
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}
