package journal_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
)

// TestLockRemoved: somebody takes LOCK for stale and removes it. The journal is still
// written, and nobody else gets it, before a rotation and after. Proves C12.
func TestLockRemoved(t *testing.T) {
	dirs := map[string]struct {
		fsys fsio.FS
		dir  string
	}{"simulated": {fsio.NewSim(1), dir}, "os": {fsio.OS(), filepath.Join(t.TempDir(), "journal")}}
	for name, c := range dirs {
		j, err := journal.OpenFile(c.fsys, c.dir, small)
		must(t, err)
		m := newScript()
		for range 20 {
			if err := c.fsys.Remove(filepath.Join(c.dir, "LOCK")); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if _, err := journal.OpenFile(c.fsys, c.dir, small); !errors.Is(err, journal.ErrLocked) {
				t.Fatalf("%s: a second writer at %v: %v", name, j.Head(), err)
			}
			_, err := j.Append(m.batch(3))
			must(t, err)
		}
		if j.Stats().Segments < 3 {
			t.Fatalf("%s: %d segments", name, j.Stats().Segments)
		}
		want := j.Head()
		must(t, j.Close())
		j, err = journal.OpenFile(c.fsys, c.dir, small)
		must(t, err)
		if j.Head() != want {
			t.Errorf("%s: %v, want %v", name, j.Head(), want)
		}
		must(t, j.Close())
	}
}

// TestDirectoryRemoved: what is written to a segment that has lost its name is not
// acknowledged, and the journal says why it is read-only. Proves C4, C11.
func TestDirectoryRemoved(t *testing.T) {
	dirs := map[string]struct {
		fsys fsio.FS
		dir  string
	}{"simulated": {fsio.NewSim(1), dir}, "os": {fsio.OS(), filepath.Join(t.TempDir(), "journal")}}
	for name, c := range dirs {
		j, err := journal.OpenFile(c.fsys, c.dir, journal.FileOptions{})
		must(t, err)
		_, err = j.Append(journaltest.Events(1, 3))
		must(t, err)
		entries, err := c.fsys.ReadDir(c.dir)
		must(t, err)
		for _, e := range entries {
			must(t, c.fsys.Remove(filepath.Join(c.dir, e.Name())))
		}
		must(t, c.fsys.Remove(c.dir))
		if _, err := j.Append(journaltest.Events(4, 3)); !errors.Is(err, journal.ErrOutcomeUnknown) || !strings.Contains(err.Error(), ".seg was removed") {
			t.Errorf("%s: Append = %v", name, err)
		}
		if _, err := j.Append(journaltest.Events(4, 3)); !errors.Is(err, journal.ErrReadOnly) || !strings.Contains(err.Error(), "was removed") {
			t.Errorf("%s: the next Append = %v", name, err)
		}
		if j.Head().Seq != 3 {
			t.Errorf("%s: head %v", name, j.Head())
		}
		must(t, j.Close())
		if has, err := journal.HasFiles(c.fsys, c.dir); has || err != nil {
			t.Errorf("%s: %v, %v", name, has, err)
		}
	}
}
