package dagstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index/toplevel"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// runsOf returns the names of the runs of a store's top-level index.
func runsOf(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "toplevel", "*.run"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestTopLevelSurvives: a start finds the top-level index where it was, and reads no
// shard index for it; what was destroyed is not found, and what was lost or damaged is
// made anew. Proves F19, F20, G7, G14, C10 (the top-level index of a store).
func TestTopLevelSurvives(t *testing.T) {
	for _, how := range []string{"closed", "the manifest is lost", "all is lost", "a run is lost", "a run is damaged", "the manifest is damaged"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			d := open(t, dir)
			type content struct {
				key  shard.Key
				cids []string
			}
			var all []content
			for n := range 5 {
				car, cids := makeCAR(randomBlocks(uint64(n+1), 300, 50)...)
				c := content{key: key("shard %d", n)}
				for _, x := range cids {
					c.cids = append(c.cids, string(x.Hash()))
				}
				register(t, d, c.key, &mount.BytesMount{Bytes: car})
				all = append(all, c)
			}
			if _, err := d.DestroyShardSync(background, all[0].key, dagstore.DestroyOpts{}); err != nil {
				t.Fatal(err)
			}
			if _, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil {
				t.Fatal(err)
			}
			closeStore(t, d)

			runs := runsOf(t, dir)
			if len(runs) != 1 {
				t.Fatalf("runs %v", runs)
			}
			manifest := filepath.Join(dir, "toplevel", "MANIFEST")
			flip := func(name string) {
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				b[40]++ // in a run, of the first filter
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
				writeFile(t, name, b)
			}
			var err error
			switch how {
			case "closed":
				// So it is known that they are not read.
				hidden := filepath.Join(t.TempDir(), "index")
				if err := os.Rename(filepath.Join(dir, "index"), hidden); err != nil {
					t.Fatal(err)
				}
				defer os.Rename(hidden, filepath.Join(dir, "index"))
			case "the manifest is lost":
				err = os.Remove(manifest)
			case "all is lost":
				err = os.RemoveAll(filepath.Join(dir, "toplevel"))
			case "a run is lost":
				err = os.Remove(runs[0])
			case "a run is damaged":
				flip(runs[0])
			case "the manifest is damaged":
				flip(manifest)
			}
			if err != nil {
				t.Fatal(err)
			}

			d = open(t, dir)
			defer closeStore(t, d)
			var damaged *toplevel.DamagedError
			met := 0
			look := func() (failed int) {
				for _, c := range all {
					for _, h := range c.cids {
						keys, _, err := d.FindShards(background, []byte(h), dagstore.Latest())
						var none *dagstore.NoShardError
						switch {
						case errors.As(err, &damaged):
							failed++
						case c.key == all[0].key:
							if !errors.As(err, &none) {
								t.Fatalf("a block of a destroyed shard: %v, %v", keys, err)
							}
						case err != nil || !slices.Equal(keys, []shard.Key{c.key}):
							t.Fatalf("a block of %s: %v, %v", c.key, keys, err)
						}
					}
				}
				return failed
			}
			// It is made anew without being asked for.
			for met = look(); met > 0 && look() > 0; {
				runtime.Gosched()
			}
			if (met > 0) != (how == "a run is damaged") {
				t.Errorf("%d lookups met damage", met)
			}
		})
	}
}

// TestTopLevelRemoval: a shard that is destroyed is not found from the moment that its
// destruction is told, and another life under its key is found by its own blocks only,
// whatever the index still has. Proves F10, I8 (the store's own top-level index).
func TestTopLevelRemoval(t *testing.T) {
	d := open(t, t.TempDir(), dagstore.WithConfig(func(c *dagstore.Config) { c.TopLevel = toplevel.Options{Memory: 1000, FanIn: 2} }))
	k := key("k")
	var before []string
	for life := range 6 {
		car, cids := makeCAR(randomBlocks(uint64(life+100), 40, 50)...)
		register(t, d, k, &mount.BytesMount{Bytes: car})
		for _, c := range cids {
			if keys, err := d.ShardsContainingMultihash(background, c.Hash()); err != nil || len(keys) != 1 {
				t.Fatalf("life %d: %v, %v", life, keys, err)
			}
		}
		for _, h := range before {
			if keys, err := d.ShardsContainingMultihash(background, []byte(h)); err == nil {
				t.Fatalf("life %d has a block of a former one: %v", life, keys)
			}
		}
		if _, err := d.DestroyShardSync(background, k, dagstore.DestroyOpts{}); err != nil {
			t.Fatal(err)
		}
		for _, c := range cids {
			if keys, _, err := d.FindShards(background, c.Hash(), dagstore.Any()); err == nil {
				t.Fatalf("life %d is destroyed and found: %v", life, keys)
			}
			before = append(before, string(c.Hash()))
		}
	}
}

// TestTopLevelOfAnotherJournal: the top-level index of another store, whose generations
// and contents are the same and whose keys are not, is not taken for this one's. Proves
// F19, G11 (the store's own top-level index).
func TestTopLevelOfAnotherJournal(t *testing.T) {
	car, cids := makeCAR(randomBlocks(7, 30, 50)...)
	dirs := []string{t.TempDir(), t.TempDir()}
	for n, dir := range dirs {
		d := open(t, dir)
		register(t, d, key("shard of store %d", n), &mount.BytesMount{Bytes: car})
		closeStore(t, d)
	}
	if err := os.RemoveAll(filepath.Join(dirs[1], "toplevel")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dirs[0], "toplevel"), filepath.Join(dirs[1], "toplevel")); err != nil {
		t.Fatal(err)
	}
	d := open(t, dirs[1])
	defer closeStore(t, d)
	for _, c := range cids {
		if keys, err := d.ShardsContainingMultihash(background, c.Hash()); err != nil || !slices.Equal(keys, []shard.Key{key("shard of store 1")}) {
			t.Fatalf("%v, %v", keys, err)
		}
	}
}

// TestTopLevelInManyShards: a block that very many shards hold is found in each of them
// once, at a cost that does not grow with the square of their number.
func TestTopLevelInManyShards(t *testing.T) {
	d := open(t, t.TempDir(), dagstore.WithConfig(func(c *dagstore.Config) { c.TopLevel = toplevel.Options{Memory: 4000, FanIn: 2} }))
	const shards = 60
	for n := range shards {
		register(t, d, key("shard %02d", n), carV1())
	}
	keys, err := d.ShardsContainingMultihash(background, testdata.RootCID.Hash())
	if err != nil || len(keys) != shards || !slices.IsSortedFunc(keys, shard.Key.Compare) || len(slices.Compact(slices.Clone(keys))) != shards {
		t.Errorf("%d keys, want %d in order: %v, %v", len(keys), shards, keys, err)
	}
}
