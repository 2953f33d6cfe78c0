package dagstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/mount"
)

// TestExtent: the payload without its padding is told, of CARv1 and CARv2, of a whole and
// of a partial index, and of a file without blocks; what is read from there is the CARv1.
func TestExtent(t *testing.T) {
	v1 := hostile.V1(hostile.Raw([]byte("a")), hostile.Raw(make([]byte, 3000)), hostile.Section(hostile.CIDv1(0x55, hostile.Mh(multihash.IDENTITY, []byte("i"))), []byte("i")))
	md5 := hostile.Section(hostile.CIDv1(0x55, hostile.Mh(multihash.MD5, make([]byte, 16))), make([]byte, 100))
	odd := hostile.V1(hostile.Raw([]byte("a")), md5, md5)
	zeros := make([]byte, 10_000)
	none := hostile.Header()
	for i, c := range []struct {
		file, payload []byte
		at            int64
	}{
		{v1, v1, 0},
		{hostile.Join(v1, zeros), v1, 0},
		{hostile.Join(v1, []byte{0}), v1, 0},
		{hostile.V2(v1), v1, 51},
		{hostile.V2(hostile.Join(v1, zeros)), v1, 51},
		{hostile.Join(hostile.V2(v1), zeros), v1, 51},
		{hostile.Join(odd, zeros), odd, 0},
		{none, none, 0},
		{hostile.Join(none, zeros), none, 0},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), c.file)
			d := start(t, dagstore.Config{SkipUnsupportedHashes: true})
			register(t, d, key("a"), &mount.FileMount{Path: path})
			acc := acquire(t, d, key("a"))
			defer acc.Close()
			for range 2 {
				x, err := acc.Extent(t.Context())
				if err != nil || x.PayloadOffset != c.at || x.PayloadEnd != c.at+int64(len(c.payload)) || x.SourceSize != int64(len(c.file)) {
					t.Fatalf("%+v, %v; the payload has %d of %d bytes", x, err, len(c.payload), len(c.file))
				}
			}
			r, err := acc.PayloadReader(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, c.payload) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			acc.Close()
			if _, err := acc.Extent(t.Context()); !errors.Is(err, dagstore.ErrClosed) {
				t.Errorf("closed: %v", err)
			}
		})
	}
	// Through an index that cannot be listed.
	acc, err := dagstore.NewShardAccessor(bytesReader(hostile.Join(v1, zeros)), unlisted{carindex.NewMultihashSorted()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer acc.Close()
	if x, err := acc.Extent(t.Context()); err != nil || x.PayloadEnd != int64(len(v1)) {
		t.Errorf("%+v, %v", x, err)
	}
}

// unlisted hides that an index can be listed.
type unlisted struct{ carindex.Index }
