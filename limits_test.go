package dagstore_test

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/mount"
)

// served serves bytes over HTTP without ranges, so that a store keeps a local copy.
func served(t *testing.T, data []byte) *mount.HTTPMount {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(srv.Close)
	return &mount.HTTPMount{URL: srv.URL}
}

// TestLimitsOfSources: what a store accepts of sources are options, and hold for files, for
// copies, for copies that are fetched again, and after a restart with lower ones.
// Proves S1.
func TestLimitsOfSources(t *testing.T) {
	var roots [][]byte
	for i := range 30_000 {
		roots = append(roots, hostile.RawCID([]byte{byte(i), byte(i >> 8)}))
	}
	car := hostile.Join(hostile.Header(roots...), hostile.Raw([]byte("a")))
	path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), car)
	for name, m := range map[string]mount.Mount{"file": &mount.FileMount{Path: path}, "copy": served(t, car)} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d := open(t, dir)
			_, err := d.RegisterShardSync(background, key("a"), m, dagstore.RegisterOpts{})
			if !errors.Is(err, index.ErrLimit) {
				t.Errorf("by default: %v", err)
			}
			closeStore(t, d)
			limits := dagstore.WithConfig(func(c *dagstore.Config) { c.MaxRoots, c.MaxHeaderSize = 30_000, 2<<20 })
			d = open(t, dir, limits)
			if _, err := d.RecoverShardSync(background, key("a"), dagstore.RecoverOpts{}); err != nil {
				t.Fatalf("allowed: %v", err)
			}
			acquire(t, d, key("a")).Close()
			closeStore(t, d)
			if name == "copy" {
				removeAll(t, filepath.Join(dir, "copies"))
				d = open(t, dir, limits)
				acquire(t, d, key("a")).Close()
				closeStore(t, d)
			}
			d = open(t, dir)
			acc := acquire(t, d, key("a"))
			defer acc.Close()
			if b, err := acc.ShardBlockstore().Get(t.Context(), rawOf("a")); err != nil || string(b.RawData()) != "a" {
				t.Errorf("indexed under other limits: %v", err)
			}
		})
	}
}

func removeAll(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnsupportedHashesLeftOut: a CAR with some blocks whose hashes nothing here can check
// is refused, or by option indexed without them, which the log says; a copy of it is
// fetched again as well. Proves S2.
func TestUnsupportedHashesLeftOut(t *testing.T) {
	odd := func(code uint64, n int) []byte {
		return hostile.Section(hostile.CIDv1(0x55, hostile.Mh(code, bytes.Repeat([]byte{7}, n))), []byte("odd"))
	}
	car := hostile.V1(hostile.Raw([]byte("a")), odd(multihash.MD5, 16), odd(multihash.SHA2_256, 16), odd(multihash.MURMUR3X64_64, 8), odd(multihash.IDENTITY, 200), hostile.Raw([]byte("b")))
	dir := t.TempDir()
	m := served(t, car)
	d := open(t, dir)
	if _, err := d.RegisterShardSync(background, key("a"), m, dagstore.RegisterOpts{}); !errors.Is(err, index.ErrUnsupportedHash) {
		t.Errorf("by default: %v", err)
	}
	closeStore(t, d)
	var log bytes.Buffer
	opts := []dagstore.Option{
		dagstore.WithConfig(func(c *dagstore.Config) { c.SkipUnsupportedHashes = true }),
		dagstore.WithLogger(slog.New(slog.NewTextHandler(&log, nil))),
	}
	d = open(t, dir, opts...)
	if _, err := d.RecoverShardSync(background, key("a"), dagstore.RecoverOpts{}); err != nil {
		t.Fatal(err)
	}
	closeStore(t, d)
	if s := log.String(); !strings.Contains(s, "left out") || !strings.Contains(s, "blocks=4") || !strings.Contains(s, "function 0xd5 with a digest of 16 bytes") {
		t.Errorf("the log says %s", s)
	}
	removeAll(t, filepath.Join(dir, "copies"))
	d = open(t, dir, opts...)
	acc := acquire(t, d, key("a"))
	defer acc.Close()
	if s, err := acc.Skipped(t.Context()); err != nil || s.Blocks != 4 || s.Bytes != 12 || len(s.First) != 4 || s.First[3].DigestLen != 200 {
		t.Errorf("left out: %+v, %v", s, err)
	}
	bs := acc.ShardBlockstore()
	for _, data := range []string{"a", "b"} {
		if b, err := bs.Get(t.Context(), rawOf(data)); err != nil || string(b.RawData()) != data {
			t.Errorf("%s: %v", data, err)
		}
	}
	if _, err := bs.Get(t.Context(), rawOf("odd")); !ipld.IsNotFound(err) {
		t.Error(err)
	}
}
