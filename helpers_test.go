package dagstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	carindex "github.com/ipld/go-car/v2/index"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

var background = context.Background()

func carV1() mount.Mount { return &mount.FSMount{FS: testdata.FS, Path: testdata.FSPathCarV1} }
func carV2() mount.Mount { return &mount.FSMount{FS: testdata.FS, Path: testdata.FSPathCarV2} }
func junk() *mount.FSMount {
	return &mount.FSMount{FS: testdata.FS, Path: testdata.FSPathJunk}
}

func key(format string, args ...any) shard.Key {
	return shard.KeyFromString(fmt.Sprintf(format, args...))
}

// registry knows the mounts of these tests. gates share g, revived ones included.
func registry(t testing.TB, g *gate) *mount.Registry {
	t.Helper()
	r := mount.NewRegistry()
	for scheme, m := range map[string]mount.Mount{
		"fs": &mount.FSMount{FS: testdata.FS}, "file": &mount.FileMount{}, "bytes": &mount.BytesMount{},
		"counting": new(mount.Counting), "gate": &gateMount{Mount: &mount.FSMount{FS: testdata.FS}, gate: g},
	} {
		if err := r.Register(scheme, m); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

var quiet = slog.New(slog.DiscardHandler)

// start opens a store; what the test leaves out of cfg is filled in. The store is
// closed with the test.
func start(t testing.TB, cfg dagstore.Config) *dagstore.DAGStore {
	t.Helper()
	if cfg.TransientsDir == "" {
		cfg.TransientsDir = t.TempDir()
	}
	if cfg.MountRegistry == nil {
		cfg.MountRegistry = registry(t, nil)
	}
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	d, err := dagstore.NewDAGStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(background); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, d) })
	return d
}

// open opens a store in a directory.
func open(t testing.TB, dir string, opts ...dagstore.Option) *dagstore.DAGStore {
	t.Helper()
	opts = append([]dagstore.Option{dagstore.WithLogger(quiet), dagstore.WithMount("fs", &mount.FSMount{FS: testdata.FS})}, opts...)
	d, err := dagstore.Open(background, dir, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, d) })
	return d
}

func closeStore(t testing.TB, d *dagstore.DAGStore) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func register(t testing.TB, d *dagstore.DAGStore, k shard.Key, m mount.Mount) {
	t.Helper()
	if _, err := d.RegisterShardSync(background, k, m, dagstore.RegisterOpts{}); err != nil {
		t.Fatalf("register %s: %v", k, err)
	}
}

func registerLazily(t testing.TB, d *dagstore.DAGStore, k shard.Key, m mount.Mount) {
	t.Helper()
	if _, err := d.RegisterShardSync(background, k, m, dagstore.RegisterOpts{LazyInitialization: true}); err != nil {
		t.Fatalf("register %s lazily: %v", k, err)
	}
}

func acquire(t testing.TB, d *dagstore.DAGStore, k shard.Key) *dagstore.ShardAccessor {
	t.Helper()
	acc, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{})
	if err != nil {
		t.Fatalf("acquire %s: %v", k, err)
	}
	return acc
}

func destroy(t testing.TB, d *dagstore.DAGStore, k shard.Key) {
	t.Helper()
	if _, err := d.DestroyShardSync(background, k, dagstore.DestroyOpts{}); err != nil {
		t.Fatalf("destroy %s: %v", k, err)
	}
}

func closeAll(t testing.TB, accs ...*dagstore.ShardAccessor) {
	t.Helper()
	for _, a := range accs {
		if err := a.Close(); err != nil {
			t.Errorf("close accessor: %v", err)
		}
	}
}

func blockstore(t testing.TB, acc *dagstore.ShardAccessor) dagstore.ReadBlockstore {
	t.Helper()
	bs, err := acc.Blockstore()
	if err != nil {
		t.Fatal(err)
	}
	return bs
}

// readAll reads every block and holds it to its CID.
func readAll(t testing.TB, acc *dagstore.ShardAccessor) int {
	t.Helper()
	bs := blockstore(t, acc)
	keys, err := bs.AllKeysChan(background)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for c := range keys {
		n++
		b, err := bs.Get(background, c)
		if err != nil {
			t.Fatalf("block %s: %v", c, err)
		}
		checkBlock(t, b)
	}
	return n
}

func checkBlock(t testing.TB, b blocks.Block) {
	t.Helper()
	if sum, err := b.Cid().Prefix().Sum(b.RawData()); err != nil || !bytes.Equal(sum.Hash(), b.Cid().Hash()) {
		t.Fatalf("block %s was served with the bytes of another: %v", b.Cid(), err)
	}
}

// works acquires a shard, reads all of it and closes it.
func works(t testing.TB, d *dagstore.DAGStore, k shard.Key) {
	t.Helper()
	acc := acquire(t, d, k)
	defer acc.Close()
	if n := readAll(t, acc); n == 0 {
		t.Fatalf("shard %s is empty", k)
	}
}

func state(t testing.TB, d *dagstore.DAGStore, k shard.Key) dagstore.ShardState {
	t.Helper()
	i, err := d.GetShardInfo(k)
	if err != nil {
		t.Fatal(err)
	}
	return i.ShardState
}

func wantState(t testing.TB, d *dagstore.DAGStore, k shard.Key, want dagstore.ShardState) {
	t.Helper()
	if s := state(t, d, k); s != want {
		t.Errorf("shard %s is in state %s, want %s", k, s, want)
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// names lists the files below dir.
func names(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(dir, p)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func writeFile(t testing.TB, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// gate controls the fetches of all mounts that share it.
type gate struct {
	mu     sync.Mutex
	begun  int   // fetches ever
	inside int   // waiting or let through and not returned
	peak   int   // largest inside
	fail   error // of the fetches let through

	ready  bool          // what Stat says
	deaf   bool          // fetches ignore their context
	tokens chan struct{} // a fetch takes one
}

func newGate() *gate { return &gate{tokens: make(chan struct{}, 1<<16)} }

func (g *gate) letIn(n int) {
	for range n {
		g.tokens <- struct{}{}
	}
}

func (g *gate) count() (begun, inside, peak int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.begun, g.inside, g.peak
}

func (g *gate) setFail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fail = err
}

// gateMount fetches when its gate lets it.
type gateMount struct {
	mount.Mount
	gate *gate
}

// changed is an error of a mount that is evidence about its source, so that the shard
// becomes errored. Any other only says that the source cannot be had.
func changed(text string) error { return fmt.Errorf("%s: %w", text, mount.ErrSourceChanged) }

func (m *gateMount) Fetch(ctx context.Context) (mount.Reader, error) {
	g := m.gate
	g.mu.Lock()
	g.begun++
	g.inside++
	g.peak = max(g.peak, g.inside)
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.inside--
	}()
	done := ctx.Done()
	if g.deaf {
		done = nil
	}
	select {
	case <-g.tokens:
	case <-done:
		return nil, ctx.Err()
	}
	g.mu.Lock()
	err := g.fail
	g.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return m.Mount.Fetch(ctx)
}

func (m *gateMount) Stat(ctx context.Context) (mount.Stat, error) {
	st, err := m.Mount.Stat(ctx)
	st.Ready = m.gate.ready
	return st, err
}

// openFiles counts the descriptors of this process that show files below dir.
// It tells nothing where there is no /proc.
func openFiles(t testing.TB, dir string) (open []string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		return nil
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, dir) {
			open = append(open, to)
		}
	}
	return open
}

// multihashes lists the multihashes of a shard.
func multihashes(t testing.TB, d *dagstore.DAGStore, k shard.Key) (all []mh.Multihash) {
	t.Helper()
	idx, err := d.GetIterableIndex(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := idx.ForEach(func(h mh.Multihash, _ uint64) error { all = append(all, h); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

var _ carindex.IterableIndex // the type of what multihashes walks

// settle waits until the store, which lives in a synctest bubble, has done all it can.
func settle() { synctest.Wait() }

// pass lets fake time pass.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func rawCid(h mh.Multihash) cid.Cid { return cid.NewCidV1(cid.Raw, h) }
