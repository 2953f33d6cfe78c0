package dagstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/export"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/mount"
)

// stingyMount is in memory, and its readers give a few bytes a call and no error; after
// some calls nothing at all, if that is set. Its readers can seek from the start only, as
// some daemons' can.
type stingyMount struct {
	mount.BytesMount
	n    int
	fail *bool
}

type stingyReader struct {
	mount.Reader
	m *stingyMount
}

func (m *stingyMount) Fetch(ctx context.Context) (mount.Reader, error) {
	r, err := m.BytesMount.Fetch(ctx)
	return stingyReader{r, m}, err
}

func (r stingyReader) ReadAt(p []byte, off int64) (int, error) {
	if *r.m.fail {
		return 0, nil
	}
	n, err := r.Reader.ReadAt(p[:min(len(p), r.m.n)], off)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (r stingyReader) Seek(off int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		return 0, errors.New("seeks from the start only")
	}
	return r.Reader.Seek(off, whence)
}

// TestStingyReader: a source whose readers give less than they were asked for, and no
// error, is read on wherever it is read: sized, indexed, sampled, read by block, by many,
// in order, exported, and as a file. One that gives nothing any more is an error, and not
// for ever. Proves I13.
func TestStingyReader(t *testing.T) {
	fail := false
	reg := mount.NewRegistry()
	if err := reg.Register("stingy", &stingyMount{n: 1000, fail: &fail}); err != nil {
		t.Fatal(err)
	}
	var parts [][]byte
	var cids []cid.Cid
	for i := range 20 {
		data := strings.Repeat(string(rune('a'+i)), 3000)
		parts, cids = append(parts, hostile.Raw([]byte(data))), append(cids, rawOf(data))
	}
	car := hostile.V1(parts...)
	d := start(t, dagstore.Config{MountRegistry: reg, IdleHandles: -1})
	register(t, d, key("a"), &stingyMount{BytesMount: mount.BytesMount{Bytes: car}, n: 1000, fail: &fail})
	acc := acquire(t, d, key("a"))
	defer acc.Close()
	for name, read := range ways {
		for _, c := range cids {
			if got, err := read(t.Context(), acc.ShardBlockstore(), c); len(got) != 3000 || err != nil {
				t.Fatalf("%s: %d bytes, %v", name, len(got), err)
			}
		}
	}
	out, err := acc.ShardBlockstore().GetMany(t.Context(), cids)
	if err != nil || len(out) != len(cids) {
		t.Errorf("GetMany in order: %v", err)
	}
	if res, err := export.DAG(t.Context(), io.Discard, acc.ShardBlockstore(), cids, export.Options{}); err != nil || res.Blocks != 20 {
		t.Errorf("export: %+v, %v", res, err)
	}
	if b, err := io.ReadAll(acc.Reader()); err != nil || !bytes.Equal(b, car) {
		t.Errorf("the file: %d of %d bytes, %v", len(b), len(car), err)
	}
	if x, err := acc.Extent(t.Context()); err != nil || x.PayloadEnd != int64(len(car)) {
		t.Errorf("extent: %+v, %v", x, err)
	}
	fail = true
	for name, read := range ways {
		if _, err := read(t.Context(), acc.ShardBlockstore(), cids[3]); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("%s of a reader that gives nothing: %v", name, err)
		}
	}
	if _, err := io.ReadAll(acc.Reader()); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("the file: %v", err)
	}
	if _, err := d.RegisterShardSync(background, key("b"), &stingyMount{BytesMount: mount.BytesMount{Bytes: car}, n: 1000, fail: &fail}, dagstore.RegisterOpts{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("registered: %v", err)
	}
	fail = false
	direct, err := dagstore.NewShardAccessor(stingyReader{bytesReader(car), &stingyMount{n: 7, fail: &fail}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	if b, err := direct.ShardBlockstore().Get(t.Context(), cids[5]); err != nil || len(b.RawData()) != 3000 {
		t.Errorf("an accessor without a store: %v", err)
	}
}
