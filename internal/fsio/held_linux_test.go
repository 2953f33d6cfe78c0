package fsio

import (
	"path/filepath"
	"testing"
)

// TestLockHeld: whether a lock is held is seen, through a read-only file system too, and
// looking takes it from nobody.
func TestLockHeld(t *testing.T) {
	name := filepath.Join(t.TempDir(), "LOCK")
	ro := ReadOnly(OS())
	if held, known := LockHeld(ro, name); held || known {
		t.Errorf("of a file that is not there: %v, %v", held, known)
	}
	l, err := OS().Lock(name)
	must(t, err)
	if held, known := LockHeld(ro, name); !held || !known {
		t.Errorf("of a lock that is held: %v, %v", held, known)
	}
	_, err = OS().Lock(name)
	wantErr(t, err, ErrLocked)
	must(t, l.Close())
	if held, known := LockHeld(ro, name); held || !known {
		t.Errorf("of a lock that was held: %v, %v", held, known)
	}
	l, err = OS().Lock(name)
	must(t, err)
	must(t, l.Close())
	if _, known := LockHeld(readOnly{FS: struct{ FS }{OS()}}, name); known {
		t.Error("a file system that cannot tell does")
	}
}
