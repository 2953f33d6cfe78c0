package dagstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/testdata"
)

// cutShort is a datastore whose process ends at the put that is one too many.
type cutShort struct {
	ds.Datastore
	left int
}

var errCutShort = errors.New("the process ended")

func (c *cutShort) Put(ctx context.Context, k ds.Key, v []byte) error {
	if c.left == 0 {
		return errCutShort
	}
	c.left--
	return c.Datastore.Put(ctx, k, v)
}

// TestAdoptionCutShort: an adoption that ends anywhere goes on with the next start, and
// comes to what it would have come to. Copies and indices that have their new names by then
// are of the store, and nothing is fetched again. Proves F9 (cut short), A6 (an adoption).
func TestAdoptionCutShort(t *testing.T) {
	for cut := range 5 {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				base := mapDatastore()
				w := newRepoWorld(t, nil)
				put := func(k string, s dagstore.ShardState, lazy bool) {
					u := w.remote().Serialize()
					u.Scheme = "remote"
					p := dagstore.PersistedShard{Key: k, URL: u.String(), State: s, Lazy: lazy}
					if s == dagstore.ShardStateErrored {
						p.Error = "it broke"
					}
					if s == dagstore.ShardStateAvailable {
						p.TransientPath = writeFile(t, filepath.Join(w.dir, "transient-"+k+".complete"), testdata.CarV2)
						if k != "unindexed" {
							writeFile(t, filepath.Join(w.idxDir, k+".full.idx"), goCarIndex(t, testdata.CarV2))
						}
					}
					b, err := json.Marshal(p)
					if err == nil {
						err = namespace.Wrap(base, dagstore.StoreNamespace).Put(background, ds.NewKey(k), b)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				put("a", dagstore.ShardStateAvailable, false)
				put("b", dagstore.ShardStateAvailable, true)
				put("unindexed", dagstore.ShardStateAvailable, false)
				put("errored", dagstore.ShardStateErrored, false)
				put("lazy", dagstore.ShardStateNew, true)

				w.base = &cutShort{base, cut}
				d, err := dagstore.NewDAGStore(w.config())
				if err != nil {
					t.Fatal(err)
				}
				err = d.Start(background)
				if wholly := cut >= 3; (err == nil) != wholly || err != nil && !errors.Is(err, errCutShort) {
					t.Fatalf("the start that is cut short: %v", err)
				}
				if err == nil {
					settle()
				}
				closeStore(t, d)

				w.base = base
				d = w.start()
				for range 2 {
					settle()
					want := map[string]dagstore.ShardState{
						"a": dagstore.ShardStateAvailable, "b": dagstore.ShardStateAvailable, "unindexed": dagstore.ShardStateAvailable,
						"errored": dagstore.ShardStateErrored, "lazy": dagstore.ShardStateNew,
					}
					if n := len(d.AllShardsInfo()); n != len(want) {
						t.Errorf("%d shards, want %d", n, len(want))
					}
					for k, s := range want {
						wantState(t, d, key("%s", k), s)
						if s == dagstore.ShardStateAvailable {
							works(t, d, key("%s", k))
						}
					}
					if e := infoError(t, d, "errored"); e != "it broke" {
						t.Errorf("errored: %s", e)
					}
					keys, _, err := d.FindShards(background, testdata.RootCID.Hash(), dagstore.Latest())
					if err != nil || len(keys) != 3 {
						t.Errorf("found in %v, %v", keys, err)
					}
					if n := w.fetched.Load(); n != 0 {
						t.Errorf("%d were fetched, though they have copies", n)
					}
					d = w.restart()
				}
			})
		})
	}
}
