package dagstore_test

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/mount"
)

// bigBlocks is how many blocks do not fit the least memory of a build.
const bigBlocks = 40_000

// bigMount is a shard that is too large for the least memory of a build.
func bigMount() *mount.FSMount {
	data, _ := makeCAR(randomBlocks(7, bigBlocks, 12)...)
	return &mount.FSMount{FS: fstest.MapFS{"big.car": {Data: data}}, Path: "big.car"}
}

// leastIndexMemory makes builds spill as early as they can.
var leastIndexMemory = dagstore.WithConfig(func(c *dagstore.Config) { c.IndexMemory = 1 })

// spills counts the temporary files and what is written to them, those apart that become
// an index: they are renamed.
type spills struct {
	mu      sync.Mutex
	written map[string]int // writes by name
	removed int
	renamed int
}

func (s *spills) see(op fsio.Op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !strings.HasPrefix(op.Name, "/store/index/") || !fsio.IsTemp(op.Name) {
		return nil
	}
	switch op.Kind {
	case fsio.OpWrite:
		s.written[op.Name]++
	case fsio.OpRemove:
		s.removed++
	case fsio.OpRename:
		s.renamed++
	}
	return nil
}

func indexTemps(t *testing.T, sim *fsio.Sim) (temps []string) {
	t.Helper()
	entries, err := sim.ReadDir("/store/index")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if fsio.IsTemp(e.Name()) {
			temps = append(temps, e.Name())
		}
	}
	return temps
}

// TestBuildSpills: a shard whose index does not fit Config.IndexMemory is sorted in
// temporary files beside the indices; it is indexed, found and served as any other, and
// the files go with the build. Proves I15, I11 (temps).
func TestBuildSpills(t *testing.T) {
	sim := fsio.NewSim(1)
	seen := &spills{written: make(map[string]int)}
	d := open(t, "/store", dagstore.WithFS(sim), leastIndexMemory, dagstore.WithMount("big", bigMount()))
	sim.OnOp(seen.see)
	register(t, d, key("small"), carV1())
	if seen.removed != 0 || seen.renamed != 1 {
		t.Fatalf("a small shard: %d temporary files were removed, %d became an index", seen.removed, seen.renamed)
	}
	register(t, d, key("big"), bigMount())
	sim.OnOp(nil)
	if seen.removed == 0 || seen.renamed != 2 || len(seen.written) < 2 {
		t.Errorf("%d temporary files were removed, %d became an index, %v were written", seen.removed, seen.renamed, seen.written)
	}
	if temps := indexTemps(t, sim); len(temps) != 0 {
		t.Errorf("left: %q", temps)
	}
	acc := acquire(t, d, key("big"))
	defer acc.Close()
	if n := readAll(t, acc); n != bigBlocks {
		t.Errorf("%d blocks", n)
	}
	for i, h := range multihashes(t, d, key("big")) {
		if i%1000 != 0 {
			continue
		}
		if keys, err := d.ShardsContainingMultihash(background, h); err != nil || len(keys) != 1 {
			t.Fatalf("block %d: %v, %v", i, keys, err)
		}
	}
}

// TestSpillDiskFull: a disk that is full while a build spills is told to who waits, and is
// not the shard's fate; another is indexed meanwhile, nothing is left, and asking for it
// when there is space again works. Proves A5, C11, I16, I17.
func TestSpillDiskFull(t *testing.T) {
	sim := fsio.NewSim(1)
	d := open(t, "/store", dagstore.WithFS(sim), leastIndexMemory, dagstore.WithMount("big", bigMount()))
	entries, err := sim.ReadDir("/store/index")
	if err != nil || len(entries) != 0 {
		t.Fatal(entries, err)
	}
	writes := 0
	sim.OnOp(func(op fsio.Op) error {
		if op.Kind == fsio.OpWrite && fsio.IsTemp(op.Name) && op.Len > 4096 {
			if writes++; writes > 3 {
				return fsio.FaultENOSPC
			}
		}
		return nil
	})
	_, err = d.RegisterShardSync(background, key("big"), bigMount(), dagstore.RegisterOpts{})
	wantErr(t, "register", err, syscall.ENOSPC)
	wantState(t, d, key("big"), dagstore.ShardStateNew)
	register(t, d, key("small"), carV1())
	if temps := indexTemps(t, sim); len(temps) != 0 || writes < 4 {
		t.Errorf("left: %q, after %d writes", temps, writes)
	}
	sim.OnOp(nil)
	if _, err := d.RecoverShardSync(background, key("big"), dagstore.RecoverOpts{}); err != nil {
		t.Fatal(err)
	}
	works(t, d, key("big"))
}

// stuckMount serves what it is given up to a place, and then nothing until it is let go.
type stuckMount struct {
	*mount.FSMount
	from    int64
	reached chan struct{} // closed when somebody reads there
	once    *sync.Once
	letGo   chan struct{}
	after   error // of reads that were let go
}

type stuckReader struct {
	mount.Reader
	m *stuckMount
}

// Info promises reading in place, so that no copy is made.
func (m *stuckMount) Info() mount.Info {
	return mount.Info{Kind: mount.KindLocal, AccessSequential: true, AccessSeek: true, AccessRandom: true}
}

func (m *stuckMount) Fetch(ctx context.Context) (mount.Reader, error) {
	r, err := m.FSMount.Fetch(ctx)
	return &stuckReader{r, m}, err
}

func (r *stuckReader) ReadAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > r.m.from {
		r.m.once.Do(func() { close(r.m.reached) })
		<-r.m.letGo
		if r.m.after != nil {
			return 0, r.m.after
		}
	}
	return r.Reader.ReadAt(p, at)
}

// TestCloseRemovesSpills: Close leaves no temporary file and no descriptor of a build
// whose source hangs, before it has spilled or after, and what that build does later
// touches nothing. Proves F28, C5.
func TestCloseRemovesSpills(t *testing.T) {
	big := bigMount()
	info, err := fs.Stat(big.FS, big.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]*stuckMount{
		"after":  {from: info.Size() - 1000, after: errors.New("let go")},
		"before": {from: 600 << 10}, // in the second chunk of the scan, with which it spills
	} {
		t.Run(name, func(t *testing.T) {
			m.FSMount, m.once = big, new(sync.Once)
			m.reached, m.letGo = make(chan struct{}), make(chan struct{})
			closeWhileStuck(t, m, name == "after")
		})
	}
}

func closeWhileStuck(t *testing.T, m *stuckMount, spilled bool) {
	sim := fsio.NewSim(1)
	d := open(t, "/store", dagstore.WithFS(sim), dagstore.WithMount("stuck", m),
		dagstore.WithConfig(func(c *dagstore.Config) { c.CloseTimeout, c.IndexMemory = 50*time.Millisecond, 2<<20 }))
	out := make(chan dagstore.ShardResult, 1)
	if err := d.RegisterShard(background, key("stuck"), m, out, dagstore.RegisterOpts{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.reached:
	case res := <-out:
		t.Fatal("the source did not hang: ", res.Error)
	}
	if temps := indexTemps(t, sim); (len(temps) > 0) != spilled {
		t.Fatalf("before Close: %q", temps)
	}
	closeStore(t, d)
	wantErr(t, "register", (<-out).Error, dagstore.ErrClosed)
	if temps := indexTemps(t, sim); len(temps) != 0 || sim.OpenFiles() != 0 {
		t.Errorf("left: %q, open: %q", temps, sim.OpenNames())
	}
	// The next process has a file of the same name.
	repo, err := index.NewFSRepoOn(sim, "/store/index")
	if err != nil {
		t.Fatal(err)
	}
	f, err := repo.CreateScratch(key("stuck"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := sim.NumOps()
	close(m.letGo)
	dagstore.WaitForJobs(d)
	if ops := sim.NumOps() - before; ops != 0 || len(indexTemps(t, sim)) != 1 {
		t.Errorf("%d operations after Close, files %q", ops, indexTemps(t, sim))
	}
}
