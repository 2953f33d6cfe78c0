package dagstore_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/testdata"
)

// TestFollowerLost: a follower whose journal was removed, moved away, exchanged for
// another store's or an older copy, or that cannot be read any more, answers nothing as
// the newest, says since when, and goes on when the journal is back. Proves G18, A1
// (followers).
func TestFollowerLost(t *testing.T) {
	other := t.TempDir()
	o := open(t, other)
	for i := range 9 {
		register(t, o, key("other%d", i), carV2())
	}
	closeStore(t, o)
	for _, x := range []struct {
		name string
		lose func(t *testing.T, dir, aside, old string)
		back func(t *testing.T, dir, aside string)
	}{
		{"moved away", func(t *testing.T, dir, aside, _ string) {
			rename(t, filepath.Join(dir, "journal"), aside)
		}, func(t *testing.T, dir, aside string) {
			rename(t, aside, filepath.Join(dir, "journal"))
		}},
		{"removed", func(t *testing.T, dir, _, _ string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}, nil},
		{"another store", func(t *testing.T, dir, aside, _ string) {
			rename(t, dir, aside)
			if err := os.CopyFS(dir, os.DirFS(other)); err != nil {
				t.Fatal(err)
			}
		}, func(t *testing.T, dir, aside string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			rename(t, aside, dir)
		}},
		{"an older copy", func(t *testing.T, dir, aside, old string) {
			rename(t, dir, aside)
			rename(t, old, dir)
		}, nil},
		{"no HEAD and no segment", func(t *testing.T, dir, aside, _ string) {
			for _, name := range names(t, filepath.Join(dir, "journal")) {
				if err := os.Remove(filepath.Join(dir, "journal", name)); err != nil {
					t.Fatal(err)
				}
			}
		}, nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			top := t.TempDir()
			dir, aside, old := filepath.Join(top, "store"), filepath.Join(top, "aside"), filepath.Join(top, "old")
			d := open(t, dir)
			register(t, d, key("a"), carV1())
			if err := os.CopyFS(old, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			register(t, d, key("b"), carV1())
			f := follow(t, dir)
			follows(t, f, d.Position())
			at := d.Position()
			closeStore(t, d)
			if keys, _, err := f.FindShards(background, testdata.RootCID.Hash(), dagstore.Latest()); err != nil || len(keys) != 2 {
				t.Fatalf("before: %v, %v", keys, err)
			}
			x.lose(t, dir, aside, old)
			for f.Health().State != dagstore.HealthStalled { // the last look may have been a moment ago
			}
			lost(t, f, at)
			if x.back == nil {
				return
			}
			x.back(t, dir, aside)
			if _, err := f.WaitFor(background, dagstore.TopLevelView, dagstore.Latest()); err != nil {
				t.Fatalf("the journal is back: %v", err)
			}
			if keys, fresh, err := f.FindShards(background, testdata.RootCID.Hash(), dagstore.Latest()); err != nil || len(keys) != 2 || fresh.LagFor != 0 || fresh.Err != nil {
				t.Errorf("after: %v, %v, %v", keys, fresh, err)
			}
		})
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// lost: a follower that has lost its journal says so to all who ask for more than what
// it shows, which is at.
func lost(t *testing.T, f *dagstore.Follower, at dagstore.Position) {
	t.Helper()
	hash := testdata.RootCID.Hash()
	asks := map[string]func(dagstore.Consistency) (dagstore.Freshness, error){
		"FindShards": func(c dagstore.Consistency) (dagstore.Freshness, error) {
			_, fresh, err := f.FindShards(background, hash, c)
			return fresh, err
		},
		"AppendShards": func(c dagstore.Consistency) (dagstore.Freshness, error) {
			_, _, err := f.AppendShards(background, nil, hash, c)
			return dagstore.Freshness{}, err
		},
		"WaitFor": func(c dagstore.Consistency) (dagstore.Freshness, error) {
			return f.WaitFor(background, dagstore.CatalogueView, c)
		},
		"Catalogue": func(c dagstore.Consistency) (dagstore.Freshness, error) {
			_, fresh, err := f.Catalogue(background, c)
			return fresh, err
		},
		"ReadView": func(c dagstore.Consistency) (dagstore.Freshness, error) {
			_, fresh, err := f.ReadView(background, dagstore.TopLevelView, c)
			return fresh, err
		},
	}
	for what, ask := range asks {
		for _, c := range []dagstore.Consistency{dagstore.Latest(), dagstore.Within(10 * time.Millisecond), dagstore.Within(time.Hour), dagstore.AtLeastSeq(at.Seq + 1)} {
			var stale *dagstore.NotFreshError
			if _, err := ask(c); !errors.As(err, &stale) && !errors.Is(err, dagstore.ErrFuturePosition) {
				t.Errorf("%s, %s: %v", what, c, err)
			} else if stale != nil && (stale.RetryAfter <= 0 || stale.Err == nil || stale.Had != at) {
				t.Errorf("%s, %s: %+v", what, c, stale)
			}
		}
		for _, c := range []dagstore.Consistency{dagstore.Any(), dagstore.AtLeast(at), dagstore.AtLeastSeq(at.Seq)} {
			fresh, err := ask(c)
			if err != nil {
				t.Errorf("%s, %s: %v", what, c, err)
			}
			if what != "AppendShards" && (fresh.LagFor <= 0 || fresh.Err == nil) {
				t.Errorf("%s, %s does not say that the journal is lost: %+v", what, c, fresh)
			}
		}
	}
	var stale *dagstore.NotFreshError
	if _, err := f.ShardsContainingMultihash(background, hash); !errors.As(err, &stale) {
		t.Errorf("ShardsContainingMultihash: %v", err)
	}
	if _, ok := f.LookupPosition(dagstore.Latest()); ok {
		t.Error("LookupPosition of the newest")
	}
	bs, err := indexbs.New(background, &indexbs.IdxBstoreDagstoreFromDagstore{Interface: f}, indexbs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer bs.Close()
	absent := rawCid(testdata.RootCID.Hash()[:])
	if _, err := bs.Has(background, absent); !errors.Is(err, dagstore.ErrNotFresh) {
		t.Errorf("indexbs.Has: %v", err)
	}
	if _, err := bs.Get(background, absent); !errors.Is(err, dagstore.ErrNotFresh) {
		t.Errorf("indexbs.Get: %v", err)
	}
	if h := f.Health(); h.State != dagstore.HealthStalled || h.Ready() {
		t.Errorf("health: %s", h)
	}
}

// TestFollowerWriter: Health of a follower says whether the store is being written, and
// when the writer was last heard. Proves G18 (the writer).
func TestFollowerWriter(t *testing.T) {
	dir := t.TempDir()
	before := time.Now()
	d := open(t, dir)
	register(t, d, key("a"), carV1())
	wrote := time.Now()
	f := follow(t, dir)
	if h := d.Health(); !h.WriterSeen.IsZero() || strings.Contains(h.String(), "writer") {
		t.Errorf("of the writer itself: %s", h)
	}
	h := f.Health()
	if h.Writer != dagstore.WriterRunning && h.Writer != dagstore.WriterUnknown || h.WriterSeen.Before(before) {
		t.Errorf("a writer that runs is %s, heard %s", h.Writer, h.WriterSeen)
	}
	visible := h.Writer == dagstore.WriterRunning
	data, err := json.Marshal(h)
	if err != nil || !strings.Contains(string(data), `"writer":"`+h.Writer.String()+`","writerSeen":"`) || !strings.Contains(h.String(), "last heard at") {
		t.Errorf("%s, %s, %v", data, h, err)
	}
	killed := t.TempDir()
	if err := os.CopyFS(killed, os.DirFS(dir)); err != nil { // as a kill would leave it
		t.Fatal(err)
	}
	k := follow(t, killed)
	if h := k.Health(); visible && h.Writer != dagstore.WriterGone || h.WriterSeen.Before(before) || h.WriterSeen.After(wrote) {
		t.Errorf("a writer that is gone is %s, heard %s", h.Writer, h.WriterSeen)
	}
	closeStore(t, d)
	if _, err := f.WaitFor(background, dagstore.CatalogueView, dagstore.Latest()); err != nil {
		t.Fatal(err)
	}
	if h := f.Health(); h.Writer != dagstore.WriterClosed || h.State != dagstore.HealthReady {
		t.Errorf("a writer that has closed the store: %s", h)
	}
}
