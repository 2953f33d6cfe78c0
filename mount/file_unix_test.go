//go:build unix

package mount_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/dagstore/dagstore/mount"
)

// TestIrregularFiles: pipes, sockets, devices and directories are refused at once,
// directly and through links, confined or not. Proves S7.
func TestIrregularFiles(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for link, to := range map[string]string{"link": "fifo", "null": os.DevNull} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []*mount.FileMount{
		{Path: filepath.Join(dir, "fifo")}, {Path: filepath.Join(dir, "link")}, {Path: filepath.Join(dir, "socket")},
		{Path: dir}, {Path: os.DevNull}, {Path: filepath.Join(dir, "null")}, {Path: "/dev/zero"},
		{Path: filepath.Join(dir, "fifo"), Roots: []string{dir}}, {Path: filepath.Join(dir, "link"), Roots: []string{dir}}, {Path: dir, Roots: []string{dir}},
	} {
		if _, err := m.Stat(t.Context()); !errors.Is(err, mount.ErrNotRegular) {
			t.Errorf("Stat(%+v): %v", m, err)
		}
		if r, err := m.Fetch(t.Context()); !errors.Is(err, mount.ErrNotRegular) {
			t.Errorf("Fetch(%+v): %v", m, err)
			if err == nil {
				r.Close()
			}
		}
	}
}
