package fsio

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLocal: what is on a network, or may be, is not local; nor is a closed file.
func TestLocal(t *testing.T) {
	for magic, want := range map[uint32]bool{
		unix.EXT4_SUPER_MAGIC:  true,
		unix.XFS_SUPER_MAGIC:   true,
		unix.BTRFS_SUPER_MAGIC: true, // its top bit is set
		unix.TMPFS_MAGIC:       true,
		unix.NFS_SUPER_MAGIC:   false,
		unix.CIFS_SUPER_MAGIC:  false,
		unix.SMB2_SUPER_MAGIC:  false,
		unix.FUSE_SUPER_MAGIC:  false,
		unix.CEPH_SUPER_MAGIC:  false,
		unix.V9FS_MAGIC:        false,
		0x2fc12fc1:             false, // ZFS
		0x0bd00bd0:             false, // Lustre
		0:                      false,
	} {
		if got := localType(magic); got != want {
			t.Errorf("%#x: %t, want %t", magic, got, want)
		}
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(f.Name(), &st); err != nil {
		t.Fatal(err)
	}
	if got, want := local(f), localType(uint32(st.Type)); got != want {
		t.Errorf("a file: %t, want %t", got, want)
	}
	m, _ := MapperOf(f)
	if _, unmap, err := m.Map(); (err == nil) != local(f) {
		t.Errorf("local %t, mapped: %v", local(f), err)
	} else if err == nil {
		unmap()
	}
	f.Close()
	if local(f) {
		t.Error("a closed file is local")
	}
	if _, _, err := m.Map(); !errors.Is(err, errNotLocal) {
		t.Errorf("a closed file is mapped: %v", err)
	}
}
