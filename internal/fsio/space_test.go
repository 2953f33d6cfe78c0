package fsio

import (
	"path/filepath"
	"runtime"
	"testing"
)

// TestSpace: the operating system tells how much room there is, of a directory that is
// there; who cannot tell says so.
func TestSpace(t *testing.T) {
	switch runtime.GOOS {
	case "darwin", "dragonfly", "freebsd", "linux", "windows":
		if s, ok := SpaceOf(OS(), t.TempDir()); !ok || s.Free <= 0 || s.Free > s.Total {
			t.Errorf("got %+v, %v", s, ok)
		}
	}
	if s, ok := SpaceOf(OS(), filepath.Join(t.TempDir(), "missing")); ok {
		t.Errorf("a directory that is not there has %+v", s)
	}
	if s, ok := SpaceOf(struct{ FS }{OS()}, t.TempDir()); ok {
		t.Errorf("a file system without the power has %+v", s)
	}
}
