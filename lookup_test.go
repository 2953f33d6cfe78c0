package dagstore_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// TestAppendShards: AppendShards says what FindShards does, of the same position, over
// registrations, failures, recoveries, destructions and rebuilds; and while
// LookupPosition stays the same, a block that was nowhere still is. Proves G9, G19, I8.
func TestAppendShards(t *testing.T) {
	for name, cfg := range map[string]func() dagstore.Config{
		"own":   func() dagstore.Config { return dagstore.Config{} },
		"given": func() dagstore.Config { return dagstore.Config{TopLevelIndex: index.NewMemoryInverted()} },
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t, cfg())
			r := rand.New(rand.NewPCG(7, 7))
			var cars [][]byte
			var cids []cid.Cid
			for i := range 6 { // neighbours have half of their blocks in common
				bs := slices.Concat(randomBlocks(uint64(i), 4, 50), randomBlocks(uint64(i+1), 4, 50))
				car, cs := makeCAR(bs...)
				cars, cids = append(cars, car), append(cids, cs...)
			}
			settled := func() {
				t.Helper()
				if _, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil {
					t.Fatal(err)
				}
			}
			check := func(what string) {
				t.Helper()
				settled()
				for _, c := range []dagstore.Consistency{dagstore.Any(), dagstore.Latest(), dagstore.Latest().Wait(time.Minute), dagstore.Within(time.Minute), dagstore.AtLeastSeq(1)} {
					for _, id := range cids {
						want, f, werr := d.FindShards(background, id.Hash(), c)
						got, pos, err := d.AppendShards(background, nil, id.Hash(), c)
						var none *dagstore.NoShardError
						if errors.As(werr, &none) {
							werr = nil
						}
						if !slices.Equal(got, want) || pos != f.Applied || (err == nil) != (werr == nil) {
							t.Fatalf("%s, %s: %v at %v, %v; FindShards %v at %v, %v", what, c, got, pos, err, want, f.Applied, werr)
						}
					}
				}
			}
			register(t, d, key("first"), carV1())
			nowhere := make(map[string]dagstore.Position) // by multihash, when it was looked for
			for step := range 60 {
				k := r.IntN(len(cars))
				name := key("%d", k)
				var err error
				switch _, gone := d.GetShardInfo(name); {
				case gone != nil:
					_, err = d.RegisterShardSync(background, name, &mount.BytesMount{Bytes: cars[k]}, dagstore.RegisterOpts{})
				case r.IntN(6) == 0:
					err = d.RebuildView(background, dagstore.TopLevelView)
				default:
					_, err = d.DestroyShardSync(background, name, dagstore.DestroyOpts{})
				}
				if err != nil {
					t.Fatal(err)
				}
				now, ok := d.LookupPosition(dagstore.Any())
				if !ok {
					t.Fatal("the position is not known")
				}
				for _, id := range cids {
					keys, pos, err := d.AppendShards(background, nil, id.Hash(), dagstore.Any())
					if errors.Is(err, dagstore.ErrNotFresh) { // a state that the index has not seen
						delete(nowhere, string(id.Hash()))
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					if at, was := nowhere[string(id.Hash())]; was && at == now && pos == now && len(keys) > 0 {
						t.Fatalf("step %d: %s was nowhere at %v, and is in %v at the same position", step, id, at, keys)
					}
					if delete(nowhere, string(id.Hash())); len(keys) == 0 {
						nowhere[string(id.Hash())] = pos
					}
				}
				check(fmt.Sprint("step ", step))
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if _, _, err := d.AppendShards(background, nil, cids[0].Hash(), dagstore.Any()); !errors.Is(err, dagstore.ErrClosed) {
				t.Errorf("closed: %v", err)
			}
			if _, ok := d.LookupPosition(dagstore.Any()); ok {
				t.Error("closed: a position")
			}
		})
	}
}

// TestAppendShardsLagging: of an index that lags, Any is answered as of where it is, and
// Latest waits; LookupPosition does not claim to be Latest. Proves G19, G10.
func TestAppendShardsLagging(t *testing.T) {
	sick := &sickJournal{Memory: journal.NewMemory()}
	d := start(t, dagstore.Config{TopLevelIndex: index.NewMemoryInverted(), Journal: sick})
	root := testdata.RootCID.Hash()
	register(t, d, key("a"), carV1())
	register(t, d, key("b"), carV1())
	if _, err := d.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil {
		t.Fatal(err)
	}
	before, ok := d.LookupPosition(dagstore.Latest())
	if !ok || before != d.Position() {
		t.Fatalf("%v, %v; the store is at %v", before, ok, d.Position())
	}
	sick.sick.Store(true)
	if _, err := d.DestroyShardSync(background, key("a"), dagstore.DestroyOpts{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []dagstore.Consistency{dagstore.Latest(), dagstore.Within(0)} {
		if pos, ok := d.LookupPosition(c); ok {
			t.Errorf("%s: %v of a store at %v", c, pos, d.Position())
		}
	}
	keys, pos, err := d.AppendShards(background, []shard.Key{key("x")}, root, dagstore.Any())
	if err != nil || !slices.Equal(keys, []shard.Key{key("x"), key("b")}) || pos != before {
		t.Errorf("any: %v at %v, %v; want x and b at %v", keys, pos, err, before)
	}
	// The entries of c are there, and the view has not seen the event.
	register(t, d, key("c"), carV1())
	if keys, pos, err := d.AppendShards(background, nil, root, dagstore.Any()); err != nil || !slices.Equal(keys, []shard.Key{key("b")}) || pos != before {
		t.Errorf("any, with a shard that is too new: %v at %v, %v", keys, pos, err)
	}
	_, _, err = d.AppendShards(background, nil, root, dagstore.Latest().Wait(-1))
	var stale *dagstore.NotFreshError
	if !errors.As(err, &stale) {
		t.Errorf("latest: %v", err)
	}
}

// TestLocalShards: a shard is local if it is read in place or has a local copy.
func TestLocalShards(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		g.ready = true
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		register(t, d, key("in place"), &mount.BytesMount{Bytes: testdata.CarV1})
		for _, k := range []string{"dropped", "copied"} {
			g.letIn(1)
			register(t, d, key("%s", k), &gateMount{Mount: carV1(), gate: g})
			if k == "dropped" {
				settle()
				if _, err := d.GC(background); err != nil {
					t.Fatal(err)
				}
			}
		}
		local, err := d.LocalShards([]shard.Key{key("in place"), key("dropped"), key("copied"), key("nonesuch")})
		if err != nil || !slices.Equal(local, []bool{true, false, true, false}) {
			t.Errorf("%v, %v", local, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.LocalShards(nil); !errors.Is(err, dagstore.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	})
}

func BenchmarkFindShards(b *testing.B) {
	d := start(b, dagstore.Config{})
	register(b, d, key("a"), carV1())
	gone, err := mh.Sum([]byte("gone"), mh.SHA2_256, -1)
	if err != nil {
		b.Fatal(err)
	}
	dst := make([]shard.Key, 0, 4)
	for what, h := range map[string]mh.Multihash{"found": testdata.RootCID.Hash(), "none": gone} {
		b.Run("find-"+what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				d.FindShards(background, h, dagstore.Latest())
			}
		})
		b.Run("append-"+what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				dst, _, _ = d.AppendShards(background, dst[:0], h, dagstore.Latest())
			}
		})
	}
	b.Run("position", func(b *testing.B) {
		for b.Loop() {
			d.LookupPosition(dagstore.Latest())
		}
	})
	b.Run("freshness", func(b *testing.B) {
		for b.Loop() {
			d.Freshness(dagstore.TopLevelView)
		}
	})
}
