package dagstore

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/shard"
)

// TestUnreadableAtAStart kills a store, fails each operation on an index in turn at the
// start after it and in what that start has done, then closes the store or kills it
// again, and starts it once more on a disk that is sound. Everything is in the top-level
// index then. Proves F19, I8, A3, A8.
func TestUnreadableAtAStart(t *testing.T) {
	runs := 0
	for _, end := range []string{"close", "kill"} {
		for n, more := uint64(0), true; more; n++ {
			synctest.Test(t, func(t *testing.T) {
				s := scripted(t, 8, 0, 0) // a seed with room in memory for all entries
				s.must0(s.open(openFaults{}))
				for i, c := range []int{4, 7, 2} {
					s.scriptRegister(s.model.keys[i], fmt.Sprint("life", i), simContents()[c], false, false)
				}
				s.killStore()
				failed := false
				at := uint64(0)
				s.hooks.fixed.of = func(op fsio.Op) bool {
					if !strings.Contains(op.Name, "/index/") || !strings.HasSuffix(op.Name, ".idx") {
						return false
					}
					at++
					failed = failed || at == n+1
					return at == n+1
				}
				s.hooks.fixed.on, s.hooks.fixed.fault = true, fsio.FaultEIO
				if err := s.open(openFaults{}); err == nil {
					s.rest()
					if end == "close" {
						s.closeForScript()
					} else {
						s.killStore()
					}
				}
				s.hooks.fixed.on = false
				more = failed
				s.reopenClean()
				s.model.forgive()
				s.model.checkTopLevel()
				s.drain()
			})
			if runs++; t.Failed() {
				t.Fatalf("%s after operation %d on an index failed", end, n)
			}
		}
	}
	if runs < 8 {
		t.Errorf("only %d runs: starts do not read the indices any more", runs)
	}
	t.Logf("%d runs", runs)
}

// killStore ends the process of the store.
func (s *simulator) killStore() {
	s.disk = s.disk.Kill()
	s.dispose()
	s.w.free = true
}

// forgive forgets that the disk failed for shards which are whole again. One that was
// indexed from what a fault made of its source's bytes is not.
func (m *simModel) forgive() {
	known := make(map[[32]byte]bool)
	for _, c := range simContents() {
		known[c.digest] = true
	}
	for key := range m.disked {
		if rec := m.s.d.cat.Get(key); rec == nil || rec.Life() != shard.Available || known[rec.Index().Digest] {
			delete(m.disked, key)
		}
	}
}
