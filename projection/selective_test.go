package projection_test

import (
	"testing"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// choosy is a ledger that says which events concern it.
type choosy struct {
	*ledger
	concerns func(*shard.Event) bool
}

func (c choosy) Concerns(e *shard.Event) bool { return c.concerns(e) }

// TestSelective: batches that do not concern a view are passed to it by the goroutine
// that commits; the others, and all while it is behind, are fed beside. Whatever it
// says, and if it panics, it comes to show all of them in order. Proves G4, G10
// (views that are passed by), G13 (a panic in Concerns).
func TestSelective(t *testing.T) {
	destroyed := func(e *shard.Event) bool { return e.Kind == shard.EventDestroyed }
	for name, concerns := range map[string]func(*shard.Event) bool{
		"nothing": func(*shard.Event) bool { return false }, "everything": func(*shard.Event) bool { return true },
		"some": destroyed, "panics": func(*shard.Event) bool { panic("no opinion") },
	} {
		t.Run(name, func(t *testing.T) {
			q := &queue{}
			v := choosy{newLedger("choosy"), concerns}
			w := newWorld(t, journal.NewMemory(), projection.Options{Spawn: q.spawn}, v)
			q.drain()
			passed, fed := 0, 0
			for range 200 {
				head := w.commit(1)
				if q.len() == 0 {
					passed++
				} else {
					fed++
				}
				if q.len() == 0 && v.Position() != head {
					t.Fatalf("nothing is queued, and the view shows %v of %v", v.Position(), head)
				}
				if w.n%3 == 0 { // sometimes it is behind when the next batch comes
					q.drain()
				}
			}
			q.drain()
			value, f, err := w.r.Read(t.Context(), "choosy", projection.Latest())
			if err != nil || f.Lag != 0 || f.State != projection.Live {
				t.Fatalf("%s, %v", f, err)
			}
			wantTally(t, w.history, value, f.Applied)
			switch name {
			case "nothing":
				if fed > 0 {
					t.Errorf("%d batches that concern nobody were fed", fed)
				}
			case "some":
				if passed == 0 || fed == 0 {
					t.Errorf("%d passed, %d fed", passed, fed)
				}
			default:
				if passed > 0 {
					t.Errorf("%d were passed by", passed)
				}
			}
		})
	}
}
