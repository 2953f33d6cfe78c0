package dagstore_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	carindex "github.com/ipld/go-car/v2/index"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// TestIndexThatIsNotThere: a shard without an index says why it has none, in one
// sentence, whatever lies in the repository under its key.
func TestIndexThatIsNotThere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		idxDir := t.TempDir()
		for _, k := range []string{"unknown", "lazy", "bad", "begun", "destroyed"} { // the predecessor's left-overs
			writeFile(t, filepath.Join(idxDir, k+".full.idx"), goCarIndex(t, testdata.CarV1))
		}
		repo, err := index.NewFSRepo(idxDir)
		if err != nil {
			t.Fatal(err)
		}
		g := newGate()
		d := start(t, dagstore.Config{IndexRepo: repo, MountRegistry: registry(t, g)})
		registerLazily(t, d, key("lazy"), carV1())
		_, cause := d.RegisterShardSync(background, key("bad"), &mount.BytesMount{Bytes: testdata.Junk}, dagstore.RegisterOpts{})
		if cause == nil {
			t.Fatal("junk was indexed")
		}
		if err := d.RegisterShard(background, key("begun"), &gateMount{carV1(), g}, nil, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		register(t, d, key("destroyed"), carV1())
		destroy(t, d, key("destroyed"))
		settle()
		for _, tc := range []struct {
			key  string
			want error
			text string
		}{
			{"unknown", dagstore.ErrShardUnknown, `index of shard "unknown": shard not found`},
			{"destroyed", dagstore.ErrShardUnknown, `index of shard "destroyed": shard not found`},
			{"lazy", dagstore.ErrNotInitialized, `index of shard "lazy": shard is not initialized`},
			{"begun", dagstore.ErrNotInitialized, `index of shard "begun": shard is not initialized`},
			{"bad", index.ErrNotFound, `index of shard "bad": ` + infoError(t, d, "bad")},
		} {
			idx, err := d.GetIterableIndex(key("%s", tc.key))
			if !errors.Is(err, tc.want) || !errors.Is(err, index.ErrNotFound) || idx != nil || err.Error() != tc.text {
				t.Errorf("%s: %v, %v", tc.key, idx, err)
			}
			if errors.Is(err, dagstore.ErrNotInitialized) != (tc.want == dagstore.ErrNotInitialized) {
				t.Errorf("%s: %v", tc.key, err)
			}
		}
		long := strings.Repeat("k", 1<<20)
		if _, err := d.GetIterableIndex(shard.KeyFromString(long)); !errors.Is(err, dagstore.ErrShardUnknown) || len(err.Error()) > 300 {
			t.Errorf("%.300v", err)
		}
		g.setFail(changed("wire cut"))
		g.letIn(1)
		settle()
		wantState(t, d, key("begun"), dagstore.ShardStateErrored)
		g.setFail(nil)
		if err := d.RecoverShard(background, key("begun"), nil, dagstore.RecoverOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		if _, err := d.GetIterableIndex(key("begun")); !errors.Is(err, dagstore.ErrUnavailable) || errors.Is(err, index.ErrNotFound) {
			t.Errorf("of a shard that is being recovered: %v", err)
		}
		g.letIn(1)
		settle()
		if n := len(multihashes(t, d, key("begun"))); n == 0 {
			t.Error("the index of a shard that was initialised is empty")
		}
	})
}

// infoError is the error that a shard is said to have.
func infoError(t *testing.T, d *dagstore.DAGStore, k string) string {
	t.Helper()
	i, err := d.GetShardInfo(key("%s", k))
	if err != nil || i.Error == nil {
		t.Fatalf("%s has no error: %v, %v", k, i, err)
	}
	return i.Error.Error()
}

// TestIndexOfThisLife: the index that a shard gives is of its life, not of what a daemon
// or a former life left under the key.
func TestIndexOfThisLife(t *testing.T) {
	repo := index.NewMemoryRepo()
	d := start(t, dagstore.Config{IndexRepo: repo})
	data, cids := makeCAR(randomBlocks(4, 20, 50)...)
	register(t, d, key("a"), &mount.BytesMount{Bytes: data})
	old, err := readOrGenerate(bytes.NewReader(testdata.CarV1))
	if err != nil {
		t.Fatal(err)
	}
	for _, gen := range []uint64{0, 1 << 40} {
		draft, err := index.ImportIndex(old.(carindex.IterableIndex))
		if err == nil {
			err = errors.Join(repo.PutIndex(key("a"), gen, draft), draft.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	idx, err := d.GetIterableIndex(key("a"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cids {
		if _, err := carindex.GetFirst(idx, c); err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
}
