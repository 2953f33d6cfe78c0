package dagstore_test

import (
	"errors"
	"sync/atomic"
	"testing"

	ds "github.com/ipfs/go-datastore"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/testdata"
)

// sickJournal can be made to fail those who read it, so that views lag behind the
// catalogue, which is fed by who appends.
type sickJournal struct {
	*journal.Memory
	sick atomic.Bool
}

var errSick = errors.New("the journal's disk is sick")

func (j *sickJournal) Replay(seq uint64, visit func(*journal.Batch) error) error {
	if j.sick.Load() {
		return errSick
	}
	return j.Memory.Replay(seq, visit)
}

// TestF19TopLevel: a top-level index that cannot be fed stops, says at which event and
// why, and catches up when it can be again; one that has lost entries is rebuilt on
// demand, beside everything else. Proves F19, G13, G14 (the top-level index).
func TestF19TopLevel(t *testing.T) {
	own, sick := index.NewMemoryInverted(), &sickJournal{Memory: journal.NewMemory()}
	d := start(t, dagstore.Config{TopLevelIndex: own, Journal: sick})
	root := testdata.RootCID.Hash()
	a, b := key("a"), key("b")
	register(t, d, a, carV1())
	register(t, d, b, carV1())
	if _, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil {
		t.Fatal(err)
	}
	sick.sick.Store(true)
	res, err := d.DestroyShardSync(background, a, dagstore.DestroyOpts{})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = d.FindShards(background, root, dagstore.AtLeast(res.Position).Wait(100_000_000))
	var stale *dagstore.NotFreshError
	if !errors.As(err, &stale) || !errors.Is(err, errSick) || stale.Had.Seq >= res.Seq {
		t.Errorf("find in an index that cannot be fed: %v", err)
	}
	if h := d.Health(); h.State != dagstore.HealthStalled || !errors.Is(h.Cause, errSick) {
		t.Errorf("health: %s", h)
	}
	keys, f, err := d.FindShards(background, root, dagstore.Any())
	if err != nil || len(keys) != 1 || keys[0] != b || f.Lag == 0 || !errors.Is(f.Err, errSick) {
		t.Errorf("what it still shows: %v, %s, %v", keys, f, err)
	}
	closeAll(t, acquire(t, d, b)) // nobody else is held up

	sick.sick.Store(false)
	if keys, _, err := d.FindShards(background, root, dagstore.AtLeast(res.Position)); err != nil || len(keys) != 1 || keys[0] != b {
		t.Errorf("find after it catches up by itself: %v, %v", keys, err)
	}
	if err := own.RemoveShard(background, b); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.FindShards(background, root, dagstore.Latest()); !errors.Is(err, ds.ErrNotFound) {
		t.Fatalf("find what was lost: %v", err)
	}
	if err := d.RebuildView(background, dagstore.TopLevelView); err != nil {
		t.Fatal(err)
	}
	if keys, f, err := d.FindShards(background, root, dagstore.Latest()); err != nil || len(keys) != 1 || keys[0] != b || f.Lag != 0 {
		t.Errorf("find after a rebuild: %v, %s, %v", keys, f, err)
	}
}
