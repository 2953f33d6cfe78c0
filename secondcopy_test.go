package dagstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	carindex "github.com/ipld/go-car/v2/index"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/export"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

func rawOf(data string) cid.Cid {
	c, err := cid.Cast(hostile.RawCID([]byte(data)))
	if err != nil {
		panic(err)
	}
	return c
}

// ways are the ways to read a block of a shard.
var ways = map[string]func(ctx context.Context, bs *dagstore.ShardBlockstore, c cid.Cid) (string, error){
	"Get": func(ctx context.Context, bs *dagstore.ShardBlockstore, c cid.Cid) (string, error) {
		b, err := bs.Get(ctx, c)
		if err != nil {
			return "", err
		}
		return string(b.RawData()), nil
	},
	"View": func(ctx context.Context, bs *dagstore.ShardBlockstore, c cid.Cid) (s string, err error) {
		err = bs.View(ctx, c, func(p []byte) error { s = string(p); return nil })
		return s, err
	},
	"GetMany": func(ctx context.Context, bs *dagstore.ShardBlockstore, c cid.Cid) (string, error) {
		out, err := bs.GetMany(ctx, []cid.Cid{c, c})
		if err != nil {
			return "", err
		}
		return string(out[1].RawData()), nil
	},
	"ViewMany": func(ctx context.Context, bs *dagstore.ShardBlockstore, c cid.Cid) (s string, err error) {
		e := bs.ViewMany(ctx, []cid.Cid{c}, func(_ int, p []byte, e error) error { s, err = string(p), e; return nil })
		return s, errors.Join(err, e)
	},
	"Storage": func(ctx context.Context, bs *dagstore.ShardBlockstore, c cid.Cid) (string, error) {
		p, err := bs.Storage().Get(ctx, c.KeyString())
		return string(p), err
	},
}

// TestSecondCopy: a block that is in a file more than once is served while one copy is
// good, whichever rots, by every way to read it, through the store's own index and through
// another's; when all are rotten it is an error. Proves I13, C10 (source).
func TestSecondCopy(t *testing.T) {
	parts := [][]byte{hostile.Raw([]byte("first")), hostile.Raw([]byte("twice")), hostile.Raw([]byte("between")), hostile.Raw([]byte("twice")), hostile.Raw([]byte("last")), hostile.Raw([]byte("twice"))}
	car := hostile.V1(parts...)
	places := [3]int{}
	for i, at := 0, 0; i < 3; i++ {
		at += bytes.Index(car[at:], []byte("twice"))
		places[i] = at
		at++
	}
	for rotten := range 8 {
		for _, foreign := range []bool{false, true} {
			path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), car)
			cfg := dagstore.Config{}
			if foreign {
				cfg.ShardIndexer = func(ctx context.Context, _ shard.Key, r mount.Reader) (carindex.Index, error) {
					d, err := index.Build(ctx, r, int64(len(car)), index.BuildOptions{})
					if err != nil {
						return nil, err
					}
					var b bytes.Buffer
					if _, err := d.WriteTo(&b); err != nil {
						return nil, err
					}
					return index.OpenIndex(bytes.NewReader(b.Bytes()), int64(b.Len()), "x", nil)
				}
			}
			d := start(t, cfg)
			register(t, d, key("a"), &mount.FileMount{Path: path})
			rot := bytes.Clone(car)
			for i, at := range places {
				if rotten>>i&1 != 0 {
					rot[at] ^= 1
				}
			}
			rewriteFile(t, path, rot)
			for name, read := range ways {
				acc := acquire(t, d, key("a"))
				got, err := read(t.Context(), acc.ShardBlockstore(), rawOf("twice"))
				if rotten == 7 {
					if !errors.Is(err, dagstore.ErrBlockCorrupt) || ipld.IsNotFound(err) {
						t.Errorf("%s: all copies are rotten: %q, %v", name, got, err)
					}
				} else if got != "twice" || err != nil {
					t.Errorf("%s: copies %03b are rotten: %q, %v", name, rotten, got, err)
				}
				if got, err := read(t.Context(), acc.ShardBlockstore(), rawOf("between")); got != "between" || err != nil {
					t.Errorf("%s: another block: %q, %v", name, got, err)
				}
				acc.Close()
			}
			acc := acquire(t, d, key("a"))
			var out bytes.Buffer
			res, err := export.DAG(t.Context(), &out, acc.ShardBlockstore(), []cid.Cid{rawOf("first"), rawOf("twice"), rawOf("last")}, export.Options{})
			if (err == nil) != (rotten != 7) || err == nil && res.Blocks != 3 {
				t.Errorf("export: copies %03b are rotten: %+v, %v", rotten, res, err)
			}
			acc.Close()
		}
	}
}

// rewriteFile changes the bytes of a file in place.
func rewriteFile(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
}

// TestSecondCopyOfAnotherLength: the first of two sections of a block holds something
// else, of another length, and was so when it was indexed without verification.
// Proves I13.
func TestSecondCopyOfAnotherLength(t *testing.T) {
	car := hostile.V1(hostile.Section(hostile.RawCID([]byte("good")), []byte("something longer")), hostile.Raw([]byte("good")))
	d := start(t, dagstore.Config{SkipVerifyOnIndex: true})
	register(t, d, key("a"), &mount.BytesMount{Bytes: car})
	acc := acquire(t, d, key("a"))
	defer acc.Close()
	for name, read := range ways {
		if got, err := read(t.Context(), acc.ShardBlockstore(), rawOf("good")); got != "good" || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestSecondCopyThatCanBeRead: if the first copy's place on the disk cannot be read, the
// second one is. Proves F21.
func TestSecondCopyThatCanBeRead(t *testing.T) {
	car := hostile.V1(hostile.Raw([]byte("twice")), hostile.Raw(make([]byte, 64<<10)), hostile.Raw([]byte("twice")))
	draft, err := index.Build(t.Context(), bytes.NewReader(car), int64(len(car)), index.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := draft.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	idx, err := index.OpenIndex(bytes.NewReader(b.Bytes()), int64(b.Len()), "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	var theirs bytes.Buffer
	if _, err := carindex.WriteTo(idx, &theirs); err != nil {
		t.Fatal(err)
	}
	goCars, err := carindex.ReadFrom(&theirs)
	if err != nil {
		t.Fatal(err)
	}
	for _, idx := range []carindex.Index{idx, goCars} {
		r := &badSector{Reader: bytesReader(car), at: int64(bytes.Index(car, []byte("twice")))}
		acc, err := dagstore.NewShardAccessor(r, idx, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer acc.Close()
		r.bad = true
		for name, read := range ways {
			if got, err := read(t.Context(), acc.ShardBlockstore(), rawOf("twice")); got != "twice" || err != nil {
				t.Errorf("%T, %s: %q, %v", idx, name, got, err)
			}
		}
	}
}

func bytesReader(b []byte) mount.Reader {
	r := bytes.NewReader(b)
	return &mount.NopCloser{Reader: r, ReaderAt: r, Seeker: r}
}

var errSector = errors.New("input/output error")

type badSector struct {
	mount.Reader
	at  int64
	bad bool
}

func (r *badSector) ReadAt(p []byte, off int64) (int, error) {
	if r.bad && off <= r.at && r.at < off+int64(len(p)) {
		return 0, errSector
	}
	return r.Reader.ReadAt(p, off)
}

var _ io.ReaderAt = (*badSector)(nil)

// TestUndefinedCIDs: an undefined CID, and one without a multihash, is of no block: it is
// not found, by every way to ask.
func TestUndefinedCIDs(t *testing.T) {
	d := start(t, dagstore.Config{})
	register(t, d, key("a"), &mount.BytesMount{Bytes: hostile.V1(hostile.Raw([]byte("a")))})
	acc := acquire(t, d, key("a"))
	defer acc.Close()
	bs := acc.ShardBlockstore()
	for _, c := range []cid.Cid{cid.Undef, cid.NewCidV1(cid.Raw, nil), cid.NewCidV1(cid.Raw, mh.Multihash{0x12}), cid.NewCidV1(cid.Raw, mh.Multihash{0x12, 32, 1})} {
		for name, read := range ways {
			if name == "Storage" && c.Defined() {
				continue // its keys are CIDs that can be parsed
			}
			var nf ipld.ErrNotFound
			if got, err := read(t.Context(), bs, c); !ipld.IsNotFound(err) || !errors.As(err, &nf) || nf.Cid != c {
				t.Errorf("%s %x: %q, %v", name, c.Bytes(), got, err)
			}
		}
		if has, err := bs.Has(t.Context(), c); has || err != nil {
			t.Errorf("Has %x: %v, %v", c.Bytes(), has, err)
		}
		if n, err := bs.GetSize(t.Context(), c); n != -1 || !ipld.IsNotFound(err) {
			t.Errorf("GetSize %x: %d, %v", c.Bytes(), n, err)
		}
		if err := acc.View(t.Context(), c, func([]byte) error { return nil }); !ipld.IsNotFound(err) {
			t.Errorf("View %x: %v", c.Bytes(), err)
		}
	}
	if has, err := bs.Storage().Has(t.Context(), ""); has || err != nil {
		t.Errorf("Storage.Has: %v, %v", has, err)
	}
	acc.Close()
	if _, err := bs.Get(t.Context(), cid.Undef); !errors.Is(err, dagstore.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
