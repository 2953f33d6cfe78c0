package dagstore

import (
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

// TestCleanUp: what an upgrade left is listed and goes by the verb, but for what is still
// needed; a shard that is destroyed takes the predecessor's index of it along. Proves A6,
// F19 (clean-up).
func TestCleanUp(t *testing.T) {
	p := newPartsWorld()
	_, now, _ := p.makeStores(t, 1)
	sim := now.sim.Clone(1)
	other := mount.CopyName(1, "somebody else's") + ".idx"
	for _, file := range []string{
		"index/gone.full.idx", "index/a3.full.idx", "index/a4.full.idx", "index/lazy.full.idx", "index/notes.txt",
		"copies/transient-a1.partial", "copies/notes.txt", "index/" + other,
	} {
		if err := writeFile(sim, filepath.Join(partsRoot, file), []byte("\x81\x08345")); err != nil {
			t.Fatal(err)
		}
	}
	// Only the name is the predecessor's.
	if err := writeFile(sim, partsRoot+"/index/text.full.idx", []byte("12345")); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	store := dssync.MutexWrap(ds.NewMapDatastore())
	for _, k := range []string{"/inverted/index/one", "/inverted/index/two", "/inverted/multihash/AB", "/inverted/other", "/mine"} {
		if err := store.Put(ctx, ds.NewKey(k), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	d, err := p.open(sim, WithConfig(func(c *Config) { c.TopLevelIndex = index.NewInverted(store) }))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.RegisterShardSync(ctx, shard.KeyFromString("lazy"), p.mount("lazy", 2), RegisterOpts{LazyInitialization: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.DestroyShardSync(ctx, shard.KeyFromString("a3"), DestroyOpts{}); err != nil {
		t.Fatal(err)
	}
	d.jobs.Wait() // the removal
	text := func(all []Leftover) string {
		var lines []string
		for _, l := range all {
			s := string(l.Kind) + ": " + l.Name
			if l.Needed {
				s += " needed"
			}
			if l.Bytes != 5 && l.Entries != 3 {
				t.Errorf("%+v", l)
			}
			lines = append(lines, s)
		}
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	const rest = `index of the predecessor: index/lazy.full.idx needed
`
	all, err := d.Leftovers(ctx)
	want := `index of the predecessor: index/a4.full.idx
index of the predecessor: index/gone.full.idx
` + rest + `top-level index in the datastore: /inverted
unfinished copy of the predecessor: copies/transient-a1.partial
without a record: index/` + other
	if got := text(all); err != nil || got != want {
		t.Fatalf("%v\n%s\nwant\n%s", err, got, want)
	}
	removed, err := d.CleanUp(ctx, CleanUpOpts{})
	if err != nil || len(removed) != 4 {
		t.Fatalf("removed %v: %v", removed, err)
	}
	if all, err = d.Leftovers(ctx); err != nil || text(all) != rest+"without a record: index/"+other {
		t.Fatalf("left: %s, %v", text(all), err)
	}
	if removed, err = d.CleanUp(ctx, CleanUpOpts{Unrecorded: true}); err != nil || len(removed) != 1 {
		t.Fatalf("removed %v: %v", removed, err)
	}
	for k, want := range map[string]bool{"/inverted/index/one": false, "/inverted/multihash/AB": false, "/inverted/other": true, "/mine": true} {
		if has, err := store.Has(ctx, ds.NewKey(k)); has != want || err != nil {
			t.Errorf("%s: %v, %v", k, has, err)
		}
	}
	for _, name := range []string{"index/notes.txt", "copies/notes.txt", "index/lazy.full.idx", "index/text.full.idx"} {
		if _, err := sim.Lstat(filepath.Join(partsRoot, name)); err != nil {
			t.Errorf("%s is gone", name)
		}
	}
	delete(now.shards, "a3")
	now.shards["lazy"] = 2
	if err := errors.Join(p.serves(d, now.shards), d.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Leftovers(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestCleanUpInMemory: a store whose journal is in memory has no past, and loses nothing of
// what its shards have by a clean-up. Proves A6 (clean-up).
func TestCleanUpInMemory(t *testing.T) {
	p := newPartsWorld()
	sim := fsio.NewSim(1)
	repo, err := index.NewFSRepoOn(sim, partsRoot+"/index")
	if err != nil {
		t.Fatal(err)
	}
	registry := DefaultRegistry()
	if err := registry.Register("stream", &streamMount{simMount{w: p.w, stream: true}}); err != nil {
		t.Fatal(err)
	}
	d, err := NewDAGStore(Config{TransientsDir: partsRoot + "/copies", IndexRepo: repo, MountRegistry: registry, Logger: slog.New(slog.DiscardHandler), fs: sim})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	shards := map[string]int{}
	p.register(t, d, "m", 0, 3, shards)
	before := sim.Tree()
	removed, err := d.CleanUp(t.Context(), CleanUpOpts{Unrecorded: true})
	if err != nil || len(removed) != 0 || sim.Tree() != before {
		t.Errorf("removed %v: %v", removed, err)
	}
	if err := errors.Join(p.serves(d, shards), d.Close()); err != nil {
		t.Fatal(err)
	}
}
