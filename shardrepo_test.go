package dagstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	ds "github.com/ipfs/go-datastore"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/testdata"
)

// tableRepo is a ShardRepo of a daemon's own. One that is narrow has a column for each of
// the predecessor's fields and no more.
type tableRepo struct {
	narrow bool
	mu     sync.Mutex
	rows   map[string]dagstore.PersistedShard
}

func (r *tableRepo) SaveShard(_ context.Context, s *dagstore.PersistedShard) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rows == nil {
		r.rows = make(map[string]dagstore.PersistedShard)
	}
	row := *s
	if r.narrow {
		row = dagstore.PersistedShard{Key: s.Key, URL: s.URL, TransientPath: s.TransientPath, State: s.State, Lazy: s.Lazy, Error: s.Error}
	}
	r.rows[s.Key] = row
	return nil
}

func (r *tableRepo) GetShard(_ context.Context, key string) (*dagstore.PersistedShard, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	row, ok := r.rows[key]
	if !ok {
		return nil, errors.New("no row")
	}
	return &row, nil
}

func (r *tableRepo) ListShards(context.Context) (all []*dagstore.PersistedShard, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, row := range r.rows {
		all = append(all, &row)
	}
	return all, nil
}

func (r *tableRepo) HasShard(_ context.Context, key string) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.rows[key]
	return ok, nil
}

func (r *tableRepo) DeleteShard(_ context.Context, key string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.rows, key)
	return nil
}

// edit changes a row as a person would.
func (r *tableRepo) edit(t *testing.T, key string, change func(*dagstore.PersistedShard)) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	row, ok := r.rows[key]
	if !ok {
		t.Fatalf("no row of %q", key)
	}
	change(&row)
	r.rows[key] = row
}

// repoWorld is what a daemon with a ShardRepo has: the repository, an index repository,
// copies, and remote sources that count what is fetched and what is scanned.
type repoWorld struct {
	t       *testing.T
	dir     string
	idxDir  string
	repo    dagstore.ShardRepo
	base    ds.Datastore // if there is no repo
	change  func(*dagstore.Config)
	fetched atomic.Int32
	d       *dagstore.DAGStore
}

// remoteMount is a source that needs a copy, found again by its URL.
type remoteMount struct {
	mount.FSMount
	world *repoWorld
}

func (m *remoteMount) Fetch(ctx context.Context) (mount.Reader, error) {
	m.world.fetched.Add(1)
	return m.FSMount.Fetch(ctx)
}

func newRepoWorld(t *testing.T, repo dagstore.ShardRepo) *repoWorld {
	return &repoWorld{t: t, dir: t.TempDir(), idxDir: t.TempDir(), repo: repo}
}

func (w *repoWorld) remote() mount.Mount {
	return &remoteMount{mount.FSMount{FS: testdata.FS, Path: testdata.FSPathCarV2}, w}
}

func (w *repoWorld) config() dagstore.Config {
	w.t.Helper()
	r := mount.NewRegistry()
	if err := errors.Join(r.Register("remote", &remoteMount{mount.FSMount{FS: testdata.FS}, w}), r.Register("fs", &mount.FSMount{FS: testdata.FS})); err != nil {
		w.t.Fatal(err)
	}
	idx, err := index.NewFSRepo(w.idxDir)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := dagstore.Config{TransientsDir: w.dir, ShardRepo: w.repo, Datastore: w.base, IndexRepo: idx, MountRegistry: r, Logger: quiet}
	if w.change != nil {
		w.change(&cfg)
	}
	return cfg
}

func (w *repoWorld) start() *dagstore.DAGStore {
	w.t.Helper()
	w.d = start(w.t, w.config())
	return w.d
}

// restart closes the store and opens it again; fetched counts from then on.
func (w *repoWorld) restart() *dagstore.DAGStore {
	w.t.Helper()
	closeStore(w.t, w.d)
	w.fetched.Store(0)
	return w.start()
}

// wantFiles holds the directories to one copy and one index per shard.
func (w *repoWorld) wantFiles(copies, indices int) {
	w.t.Helper()
	if have := names(w.t, w.dir); len(have) != copies {
		w.t.Errorf("%d copies, want %d: %q", len(have), copies, have)
	}
	if have := names(w.t, w.idxDir); len(have) != indices {
		w.t.Errorf("%d indices, want %d: %q", len(have), indices, have)
	}
}

// TestShardRepoRestarts: over a ShardRepo nothing is fetched or indexed again because of
// restarts, shards destroyed and registered in between or not, and nothing of lives that
// are over stays on the disk. It is so for a repository that has a column for each of the
// predecessor's fields only. Proves F5 (over a ShardRepo), F18.
func TestShardRepoRestarts(t *testing.T) {
	for name, repo := range map[string]dagstore.ShardRepo{
		"JSON in a datastore": dagstore.NewBadgerShardRepo(mapDatastore()),
		"a table":             &tableRepo{},
		"a narrow table":      &tableRepo{narrow: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newRepoWorld(t, repo)
				d := w.start()
				for _, k := range []string{"f", "d", "b", "e", "a", "c"} { // not in the order of the keys
					register(t, d, key("%s", k), w.remote())
				}
				registerLazily(t, d, key("lazy"), w.remote())
				w.wantFiles(6, 6)
				read := func(keys string) {
					t.Helper()
					settle()
					for _, k := range strings.Split(keys, "") {
						wantState(t, d, key("%s", k), dagstore.ShardStateAvailable)
						works(t, d, key("%s", k))
						if shards, err := d.ShardsContainingMultihash(background, testdata.RootCID.Hash()); err != nil || len(shards) < len(keys) {
							t.Errorf("found %v, %v", shards, err)
						}
					}
				}
				for range 2 {
					d = w.restart()
					read("abcdef")
				}
				destroy(t, d, key("b"))
				settle()
				d = w.restart()
				read("acdef")
				w.wantFiles(5, 5)
				if n := w.fetched.Load(); n != 0 {
					t.Errorf("%d were fetched again", n)
				}
				register(t, d, key("b"), w.remote()) // another life of the key
				destroy(t, d, key("f"))
				works(t, d, key("lazy"))
				settle()
				d = w.restart()
				read("abcde")
				works(t, d, key("lazy"))
				w.wantFiles(6, 6)
				if n := w.fetched.Load(); n != 0 {
					t.Errorf("%d were fetched again", n)
				}
			})
		})
	}
}

// TestShardRepoKeepsIndices: a start over a ShardRepo that keeps whole records scans
// nothing, though the sources are gone.
func TestShardRepoKeepsIndices(t *testing.T) {
	repo := &tableRepo{}
	cfg := dagstore.Config{TransientsDir: t.TempDir(), ShardRepo: repo, IndexRepo: index.NewMemoryRepo()}
	d := start(t, cfg)
	src := writeFile(t, filepath.Join(t.TempDir(), "x.car"), testdata.CarV2)
	register(t, d, key("a"), &mount.FileMount{Path: src})
	before := d.Position()
	closeStore(t, d)
	if err := os.Rename(src, src+".away"); err != nil {
		t.Fatal(err)
	}
	d = start(t, cfg)
	wantState(t, d, key("a"), dagstore.ShardStateAvailable)
	if n := len(multihashes(t, d, key("a"))); n == 0 {
		t.Error("the index is empty")
	}
	if at := d.Position(); at.Seq != before.Seq {
		t.Errorf("after the restart the store is at %v, it was at %v", at, before)
	}
	page, err := d.ListShards(dagstore.ListOptions{})
	if err != nil || len(page.Shards) != 1 {
		t.Fatal(page, err)
	}
	sum := page.Shards[0]
	if sum.Seq != before.Seq || sum.Blocks == 0 || sum.SourceSize != uint64(len(testdata.CarV2)) || sum.Changed.UnixNano() != repo.rows["a"].Changed {
		t.Errorf("%+v", sum)
	}
	if err := os.Rename(src+".away", src); err != nil {
		t.Fatal(err)
	}
	works(t, d, key("a"))
}

// TestShardRepoBesideFiles: a top-level index and checkpoints on the disk, which outlive
// what the journal of a store over a ShardRepo has of its history, are never taken for what
// they are not. Proves A8 (over a ShardRepo).
func TestShardRepoBesideFiles(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newRepoWorld(t, &tableRepo{})
		top, checkpoints := t.TempDir(), t.TempDir()
		w.change = func(cfg *dagstore.Config) {
			cfg.TopLevelDir, cfg.CheckpointDir = top, checkpoints
			cfg.Checkpoints.Events = 2
		}
		d := w.start()
		want := make(map[string]bool)
		for round := range 6 {
			for _, k := range []string{"a", "b", "c", "d"} {
				switch {
				case !want[k] && (round+len(k)+int(k[0]))%3 != 0:
					register(t, d, key("%s", k), w.remote())
					want[k] = true
				case want[k] && (round+int(k[0]))%3 == 0:
					settle()
					destroy(t, d, key("%s", k))
					delete(want, k)
				}
			}
			settle()
			for range 2 {
				d = w.restart() // once more without a change between
				settle()
				keys, _, err := d.FindShards(background, testdata.RootCID.Hash(), dagstore.Latest())
				if err != nil && len(want) > 0 || len(keys) != len(want) || len(d.AllShardsInfo()) != len(want) {
					t.Fatalf("round %d: %v, %v; want %v", round, keys, err, want)
				}
				for _, k := range keys {
					if !want[k.String()] {
						t.Errorf("round %d: found in %s, want %v", round, k, want)
					}
					works(t, d, k)
				}
				if n := w.fetched.Load(); n != 0 {
					t.Errorf("round %d: %d were fetched again", round, n)
				}
			}
		}
	})
}

// TestShardRepoOfOthers: records that are older than generations, or were changed by
// people, never give a life the files of another, and never stop a start: what cannot
// be believed is made anew.
func TestShardRepoOfOthers(t *testing.T) {
	none := func(p *dagstore.PersistedShard) {
		p.Gen, p.Seq, p.Changed, p.Index, p.TransientPath = 0, 0, 0, dagstore.PersistedIndex{}, ""
	}
	for name, tc := range map[string]struct {
		change func(t *testing.T, r *tableRepo)
		again  int32 // are fetched again
		shards int
	}{
		"as it was":  {func(*testing.T, *tableRepo) {}, 0, 3},
		"older ones": {func(t *testing.T, r *tableRepo) { r.edit(t, "a", none); r.edit(t, "b", none); r.edit(t, "c", none) }, 3, 3},
		"one older":  {func(t *testing.T, r *tableRepo) { r.edit(t, "b", none) }, 1, 3},
		"a lost one": {func(_ *testing.T, r *tableRepo) { delete(r.rows, "c") }, 0, 2},
		"two of one generation": {func(t *testing.T, r *tableRepo) {
			of := r.rows["a"]
			r.edit(t, "b", func(p *dagstore.PersistedShard) { p.Gen, p.Seq, p.TransientPath = of.Gen, of.Seq, of.TransientPath })
		}, 1, 3},
		"generations that cannot be": {func(t *testing.T, r *tableRepo) {
			r.edit(t, "a", func(p *dagstore.PersistedShard) { p.Gen = 1<<64 - 1 })
			r.edit(t, "b", func(p *dagstore.PersistedShard) { p.Seq = 1<<64 - 1 })
			r.edit(t, "c", func(p *dagstore.PersistedShard) { p.Seq = 0 })
		}, 1, 3},
		"a summary that cannot be": {func(t *testing.T, r *tableRepo) {
			for i, k := range []string{"a", "b", "c"} {
				r.edit(t, k, func(p *dagstore.PersistedShard) { p.Index.Digest = []string{"", "ff", strings.Repeat("x", 64)}[i] })
			}
		}, 0, 3},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				repo := &tableRepo{}
				w := newRepoWorld(t, repo)
				d := w.start()
				for _, k := range []string{"c", "b", "a"} {
					register(t, d, key("%s", k), w.remote())
				}
				closeStore(t, d)
				w.fetched.Store(0)
				tc.change(t, repo)
				d = w.start()
				for range 2 {
					settle()
					for _, k := range slices.Collect(maps.Keys(repo.rows)) {
						works(t, d, key("%s", k))
					}
					if n := w.fetched.Load(); n != tc.again {
						t.Errorf("%d were fetched again, want %d", n, tc.again)
					}
					w.wantFiles(tc.shards, tc.shards)
					register(t, d, key("new"), w.remote())
					destroy(t, d, key("new"))
					settle()
					closeStore(t, d)
					w.fetched.Store(0)
					tc.again = 0 // from now on it is known
					d = w.start()
				}
			})
		})
	}
}

// TestShardRepoLostLife: a number that a lost record had is not given again while its
// files are there, so a new life of the key never gets the former one's copy.
func TestShardRepoLostLife(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repo := &tableRepo{}
		w := newRepoWorld(t, repo)
		d := w.start()
		register(t, d, key("a"), w.remote())
		gen := repo.rows["a"].Gen
		closeStore(t, d)
		kept := filepath.Join(w.dir, mount.CopyName(gen, "a")+".complete")
		b, err := os.ReadFile(kept)
		if err != nil {
			t.Fatal(err)
		}
		repo.rows = nil
		d = w.start()
		writeFile(t, kept, b) // a removal that a power cut took back
		registerLazily(t, d, key("a"), w.remote())
		if now := repo.rows["a"].Gen; now <= gen {
			t.Errorf("generation %d was given again (%d)", gen, now)
		}
		w.fetched.Store(0)
		works(t, d, key("a"))
		if w.fetched.Load() != 1 {
			t.Error("the new life took the copy of the former")
		}
	})
}

// TestShardRepoAway: a start over a repository that has no records, as one whose datastore
// is not there, removes nothing; with the records back nothing is fetched again. What the
// last shard left is removed when there are others again. Proves A6 (a ShardRepo).
func TestShardRepoAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repo := &tableRepo{}
		w := newRepoWorld(t, repo)
		d := w.start()
		for _, k := range []string{"a", "b", "c"} {
			register(t, d, key("%s", k), w.remote())
		}
		closeStore(t, d)
		rows := repo.rows
		repo.rows = nil
		for range 2 {
			d = w.start()
			settle()
			if n := len(d.AllShardsInfo()); n != 0 {
				t.Errorf("%d shards", n)
			}
			w.wantFiles(3, 3)
			closeStore(t, d)
		}
		repo.rows = rows
		w.fetched.Store(0)
		d = w.start()
		settle()
		for _, k := range []string{"a", "b", "c"} {
			works(t, d, key("%s", k))
		}
		if n := w.fetched.Load(); n != 0 {
			t.Errorf("%d were fetched again", n)
		}
		closeStore(t, d)

		repo.rows = nil // all were destroyed, and a crash kept their files
		d = w.start()
		register(t, d, key("b"), w.remote())
		d = w.restart()
		settle()
		works(t, d, key("b"))
		w.wantFiles(1, 1)
		if n := w.fetched.Load(); n != 0 {
			t.Errorf("%d were fetched again", n)
		}
	})
}

// TestShardRepoResumes: what was under way goes on after a restart over a ShardRepo.
func TestShardRepoResumes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const url = "fs://sample-v1.car?path=files/sample-v1.car"
		repo := &tableRepo{rows: map[string]dagstore.PersistedShard{
			"new":          {Key: "new", URL: url, State: dagstore.ShardStateNew},
			"initialising": {Key: "initialising", URL: url, State: dagstore.ShardStateInitializing},
			"recovering":   {Key: "recovering", URL: url, State: dagstore.ShardStateRecovering, Error: "it was"},
			"errored":      {Key: "errored", URL: url, State: dagstore.ShardStateErrored, Error: "it is"},
			"lazy":         {Key: "lazy", URL: url, State: dagstore.ShardStateNew, Lazy: true},
			"serving":      {Key: "serving", URL: url, State: dagstore.ShardStateServing},
		}}
		w := newRepoWorld(t, repo)
		want := map[string]dagstore.ShardState{
			"new": dagstore.ShardStateAvailable, "initialising": dagstore.ShardStateAvailable, "recovering": dagstore.ShardStateAvailable,
			"errored": dagstore.ShardStateErrored, "lazy": dagstore.ShardStateNew, "serving": dagstore.ShardStateAvailable,
		}
		d := w.start()
		for range 2 {
			settle()
			for k, s := range want {
				wantState(t, d, key("%s", k), s)
			}
			if i, err := d.GetShardInfo(key("errored")); err != nil || i.Error == nil || i.Error.Error() != "it is" {
				t.Errorf("%v, %v", i.Error, err)
			}
			d = w.restart()
		}
	})
}

// syncs counts what a datastore is asked to make durable.
type syncs struct {
	ds.Datastore
	dirty map[ds.Key]bool
}

func (s *syncs) Put(ctx context.Context, k ds.Key, v []byte) error {
	s.dirty[k] = true
	return s.Datastore.Put(ctx, k, v)
}

func (s *syncs) Delete(ctx context.Context, k ds.Key) error {
	s.dirty[k] = true
	return s.Datastore.Delete(ctx, k)
}

func (s *syncs) Sync(ctx context.Context, prefix ds.Key) error {
	maps.DeleteFunc(s.dirty, func(k ds.Key, _ bool) bool { return k == prefix || prefix.IsAncestorOf(k) })
	return s.Datastore.Sync(ctx, prefix)
}

// TestShardRepoIsSynced: a record that was saved or deleted is durable when the
// repository says so. Proves C3 (over a ShardRepo).
func TestShardRepoIsSynced(t *testing.T) {
	s := &syncs{mapDatastore(), make(map[ds.Key]bool)}
	r := dagstore.NewBadgerShardRepo(s)
	for name, do := range map[string]func() error{
		"save":           func() error { return r.SaveShard(background, &dagstore.PersistedShard{Key: "a/b"}) },
		"delete":         func() error { return r.DeleteShard(background, "a/b") },
		"delete nothing": func() error { return r.DeleteShard(background, "c") },
	} {
		if err := do(); err != nil || len(s.dirty) > 0 {
			t.Errorf("%s: %v; not synced: %v", name, err, s.dirty)
		}
	}
	want := dagstore.PersistedShard{Key: "k", Gen: 3, Seq: 5, Changed: 7, Index: dagstore.PersistedIndex{Blocks: 1, Digest: "00"}}
	b, err := json.Marshal(want)
	var have dagstore.PersistedShard
	if err = errors.Join(err, json.Unmarshal(b, &have)); err != nil || have != want {
		t.Errorf("%s: %+v, %v", b, have, err)
	}
}

// TestShardRepoDuplicates: two records of one shard stop a start, with its name.
func TestShardRepoDuplicates(t *testing.T) {
	twice := &listedTwice{tableRepo{rows: map[string]dagstore.PersistedShard{"a": {Key: "a", URL: "fs://x"}}}}
	d, err := dagstore.NewDAGStore(dagstore.Config{TransientsDir: t.TempDir(), ShardRepo: twice, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Start(background); err == nil || !strings.Contains(err.Error(), `two records of shard "a"`) {
		t.Error(err)
	}
}

type listedTwice struct{ tableRepo }

func (r *listedTwice) ListShards(ctx context.Context) ([]*dagstore.PersistedShard, error) {
	all, err := r.tableRepo.ListShards(ctx)
	return append(all, all...), err
}

// TestShardRepoGrows: many restarts with lives that come and go keep to the number of
// shards, on the disk and in what is fetched.
func TestShardRepoGrows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newRepoWorld(t, &tableRepo{})
		d := w.start()
		for i := range 12 {
			register(t, d, key("k%d", i%5), w.remote())
			works(t, d, key("k%d", i%5))
			if i >= 3 {
				destroy(t, d, key("k%d", (i+2)%5))
			}
			settle()
			d = w.restart()
			n := d.Stats()[dagstore.ShardStateAvailable]
			for k := range d.AllShardsInfo() {
				works(t, d, k)
			}
			if have := w.fetched.Load(); have != 0 || n != min(i+1, 3) {
				t.Fatalf("round %d: %d shards, %d were fetched again", i, n, have)
			}
			w.wantFiles(n, n)
		}
	})
}
