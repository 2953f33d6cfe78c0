package dagstore_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	carindex "github.com/ipld/go-car/v2/index"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/mount"
)

type panicIndex struct{ carindex.IterableIndex }

func (panicIndex) ForEach(func(mh.Multihash, uint64) error) error { panic("x") }

// TestListingSurvivesPanic: an index of others that panics while it is listed ends the
// listing, and nothing else.
func TestListingSurvivesPanic(t *testing.T) {
	car, cids, _ := carOf(3, func(int) int { return 10 })
	idx := carindex.NewMultihashSorted()
	if err := idx.Load([]carindex.Record{{Cid: cids[0], Offset: 59}}); err != nil {
		t.Fatal(err)
	}
	acc := must(dagstore.NewShardAccessor(&countingReader{Reader: bytes.NewReader(car)}, panicIndex{idx}, nil))
	defer acc.Close()
	for range must(must(acc.Blockstore()).AllKeysChan(t.Context())) {
		t.Error("a key")
	}
}

// allKeysChanWithErrer is boxo's.
type allKeysChanWithErrer interface {
	AllKeysChanWithErr(ctx context.Context) (<-chan cid.Cid, func() error, error)
}

var _ allKeysChanWithErrer = (*dagstore.ShardBlockstore)(nil)

// TestListingTellsThatItIsCut: a listing that ends before all keys were sent says so:
// for a damaged index, for a context or an accessor that ends. Where there is no room for
// an error it is logged and counted. Proves A7.
func TestListingTellsThatItIsCut(t *testing.T) {
	dir := t.TempDir()
	var logged bytes.Buffer
	d := open(t, dir, dagstore.WithLogger(slog.New(slog.NewTextHandler(&logged, nil))))
	const n = 20_000
	car, _, _ := carOf(n, func(int) int { return 20 })
	k := key("a")
	register(t, d, k, &mount.BytesMount{Bytes: car})
	acc := acquire(t, d, k)
	defer acc.Close()
	bs := blockstore(t, acc).(*dagstore.ShardBlockstore)
	list := func(ctx context.Context, most int) (int, error) {
		t.Helper()
		keys, why, err := bs.AllKeysChanWithErr(ctx)
		if err != nil {
			t.Fatal(err)
		}
		sent := 0
		for range keys {
			if sent++; sent == most {
				return sent, nil
			}
		}
		return sent, why()
	}
	all, err := list(background, 0)
	if err != nil || all < n-1 {
		t.Fatalf("%d keys of a sound index: %v", all, err)
	}
	every := 0
	if err := d.AllMultihashes(background, func(mh.Multihash) error { every++; return nil }); err != nil || every != all {
		t.Errorf("%d multihashes of all shards: %v", every, err)
	}

	ctx, cancel := context.WithCancel(background)
	keys, why, err := bs.AllKeysChanWithErr(ctx)
	if err != nil {
		t.Fatal(err)
	}
	<-keys
	cancel()
	for range keys {
	}
	wantErr(t, "a listing whose context ended", why(), context.Canceled)

	idx, err := filepath.Glob(filepath.Join(dir, "index", "*.idx"))
	if err != nil || len(idx) != 1 {
		t.Fatal(idx, err)
	}
	f, err := os.OpenFile(idx[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, 4096), st.Size()/2&^4095); err != nil { // a page rots
		t.Fatal(err)
	}
	f.Close()
	var damaged *index.DamagedError
	if err := d.AllMultihashes(background, func(mh.Multihash) error { return nil }); !errors.As(err, &damaged) || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("all multihashes with a damaged index: %v", err)
	}
	keys, err = bs.AllKeysChan(background)
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	for range keys {
		sent++
	}
	if sent == all {
		t.Fatal("the damage was not met")
	}
	if n := d.Metrics().ListingsCut; n != 1 {
		t.Errorf("%d listings are counted as cut", n)
	}
	sent, err = list(background, 0)
	if !errors.As(err, &damaged) || sent == all {
		t.Errorf("%d of %d keys of a damaged index: %v", sent, all, err)
	}
	acc.Close()
	if _, _, err := bs.AllKeysChanWithErr(background); !errors.Is(err, dagstore.ErrClosed) {
		t.Errorf("a listing of a closed accessor: %v", err)
	}
	closeStore(t, d)
	if !strings.Contains(logged.String(), "ended early") {
		t.Errorf("not logged: %s", logged.String())
	}
}

// TestAllMultihashesStops: an error of who visits, and the end of a context, end it.
func TestAllMultihashesStops(t *testing.T) {
	d := start(t, dagstore.Config{})
	register(t, d, key("a"), carV1())
	registerLazily(t, d, key("lazy"), carV2())
	mine := errors.New("mine")
	if err := d.AllMultihashes(background, func(mh.Multihash) error { return mine }); err != mine {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(background)
	n := 0
	err := d.AllMultihashes(ctx, func(mh.Multihash) error { n++; cancel(); return nil })
	if err != context.Canceled || n != 1 {
		t.Errorf("%d visits, %v", n, err)
	}
}
