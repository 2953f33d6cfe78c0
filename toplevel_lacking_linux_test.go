package dagstore_test

import (
	"os"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index/toplevel"
)

// TestCloseGivesUpMappings: after Close nothing of the store's directory is mapped or open,
// without the garbage collector, which does not run here. Proves F14, F28 (mappings).
func TestCloseGivesUpMappings(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	dir := t.TempDir()
	d := open(t, dir, dagstore.WithConfig(func(c *dagstore.Config) {
		c.TopLevel = toplevel.Options{Memory: 2000, FanIn: 2, MergeShare: 1}
	}))
	held := registerSome(t, d, 12)
	if err := d.RebuildView(background, dagstore.TopLevelView); err != nil {
		t.Fatal(err)
	}
	if !findsAll(t, d, held) {
		t.Error("blocks are missing")
	}
	for k := range held {
		works(t, d, k)
	}
	mapped := func() (lines []string) {
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(maps)) {
			if strings.Contains(line, dir+"/") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		return lines
	}
	if len(mapped()) == 0 {
		t.Error("nothing is mapped before Close: the test shows nothing")
	}
	closeStore(t, d)
	if left := mapped(); len(left) > 0 {
		t.Errorf("mapped after Close:\n%s", strings.Join(left, "\n"))
	}
	if files := openFiles(t, dir); len(files) > 0 {
		t.Errorf("open after Close: %v", files)
	}
}
