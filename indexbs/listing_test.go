package indexbs_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	boxo "github.com/ipfs/boxo/blockstore"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

var (
	_ boxo.AllKeysChanWithErrer = (*indexbs.IndexBackedBlockstore)(nil)
	_ boxo.AllKeysChanWithErrer = (*dagstore.ShardBlockstore)(nil)
)

// TestAllKeys: the keys of all shards are listed, and a listing that lacks some says so:
// because an index cannot be read, or the context or the blockstore ended. What can be
// listed is. Proves A7.
func TestAllKeys(t *testing.T) {
	dir := t.TempDir()
	quiet := slog.New(slog.DiscardHandler)
	d := must(dagstore.Open(t.Context(), dir, dagstore.WithLogger(quiet)))
	defer d.Close()
	want := map[string]bool{}
	index := map[string]string{} // by shard
	for name, data := range map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared} {
		if _, err := d.RegisterShardSync(t.Context(), shard.KeyFromString(name), &mount.BytesMount{Bytes: data}, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		for c := range sampleBlocks(t, data) {
			want[string(c.Hash())] = true
		}
		for _, path := range must(filepath.Glob(filepath.Join(dir, "index", "*.idx"))) {
			if _, known := index["a"]; !known || index["a"] != path {
				index[name] = path
			}
		}
	}
	if _, err := d.RegisterShardSync(t.Context(), shard.KeyFromString("lazy"), &mount.BytesMount{Bytes: testdata.CarV2}, dagstore.RegisterOpts{LazyInitialization: true}); err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	bs := must(indexbs.Of(d, indexbs.Options{Logger: slog.New(slog.NewTextHandler(&logged, nil))}))
	defer bs.Close()
	list := func() (map[string]bool, error) {
		t.Helper()
		keys, why, err := bs.AllKeysChanWithErr(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for c := range keys {
			got[string(c.Hash())] = true
		}
		return got, why()
	}
	got, err := list()
	if err != nil || len(got) != len(want) {
		t.Errorf("%d keys of %d: %v", len(got), len(want), err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	keys, why, err := bs.AllKeysChanWithErr(ctx)
	if err != nil {
		t.Fatal(err)
	}
	<-keys
	cancel()
	for range keys {
	}
	if err := why(); !errors.Is(err, context.Canceled) {
		t.Errorf("the context ended: %v", err)
	}
	if _, _, err := bs.AllKeysChanWithErr(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("the context had ended: %v", err)
	}

	// An index that is cut off; the other is listed all the same.
	if err := os.Truncate(index["a"], 100); err != nil {
		t.Fatal(err)
	}
	if got, err = list(); err == nil || !strings.Contains(err.Error(), `"a"`) || len(got) == 0 || len(got) >= len(want) {
		t.Errorf("%d keys with an index cut off: %v", len(got), err)
	}
	if keys, err = bs.AllKeysChan(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range keys {
	}
	if n := bs.Stats().CutListings; n != 3 {
		t.Errorf("%d listings counted as cut", n)
	}
	if keys, why, err = bs.AllKeysChanWithErr(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-keys
	bs.Close()
	for range keys {
	}
	if err := why(); !errors.Is(err, dagstore.ErrClosed) {
		t.Errorf("the blockstore was closed: %v", err)
	}
	if _, err := bs.AllKeysChan(t.Context()); !errors.Is(err, dagstore.ErrClosed) {
		t.Errorf("the blockstore had been closed: %v", err)
	}
	if !strings.Contains(logged.String(), "not whole") {
		t.Errorf("not logged: %s", logged.String())
	}
}

// TestBloomFilterStaysOff: boxo's Bloom filter, which says that what it was not told of is
// not there, is used over all shards whose indices can be read, and stays off if one
// cannot. Proves A7, A1.
func TestBloomFilterStaysOff(t *testing.T) {
	dir := t.TempDir()
	d := must(dagstore.Open(t.Context(), dir, dagstore.WithLogger(slog.New(slog.DiscardHandler))))
	defer d.Close()
	if _, err := d.RegisterShardSync(t.Context(), shard.KeyFromString("a"), &mount.BytesMount{Bytes: testdata.CarV1}, dagstore.RegisterOpts{}); err != nil {
		t.Fatal(err)
	}
	bs := must(indexbs.Of(d))
	defer bs.Close()
	opts := boxo.CacheOpts{HasBloomFilterSize: 1 << 10, HasBloomFilterHashes: 4}
	for _, damaged := range []bool{false, true} {
		if damaged {
			if err := os.Truncate(must(filepath.Glob(filepath.Join(dir, "index", "*.idx")))[0], 100); err != nil {
				t.Fatal(err)
			}
		}
		cached := must(boxo.CachedBlockstore(t.Context(), bs, opts))
		filter := cached.(boxo.BloomCacheStatus)
		if err := filter.Wait(t.Context()); (err != nil) != damaged || filter.BloomActive() == damaged {
			t.Errorf("damaged: %t; the filter is on: %t, %v", damaged, filter.BloomActive(), err)
		}
		for c := range sampleBlocks(t, testdata.CarV1) {
			if has, err := cached.Has(t.Context(), c); err != nil || !has {
				t.Fatalf("damaged: %t; Has(%s) = %t, %v", damaged, c, has, err)
			}
		}
	}
}
