package index

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	carbs "github.com/ipld/go-car/v2/blockstore"
	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/carscan/hostile"
)

// goCarFile has go-car write a CARv2 of a few blocks, and finalise it if that is wanted.
func goCarFile(t *testing.T, finalise bool) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.car")
	w, err := carbs.OpenReadWrite(path, []cid.Cid{})
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range []string{"a", "b", "c"} {
		if err := w.Put(context.Background(), blocks.NewBlock([]byte(data))); err != nil {
			t.Fatal(err)
		}
	}
	if finalise {
		err = w.Finalize()
	} else {
		w.Discard()
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func buildOf(t *testing.T, car []byte, opts BuildOptions) (*Draft, error) {
	t.Helper()
	return Build(t.Context(), bytes.NewReader(car), int64(len(car)), opts)
}

// TestGoCarNotFinalised: a CARv2 that go-car began and did not finalise is said to be
// that. Proves S1.
func TestGoCarNotFinalised(t *testing.T) {
	for _, trust := range []bool{false, true} {
		_, err := buildOf(t, goCarFile(t, false), BuildOptions{TrustEmbeddedIndex: trust})
		if !errors.Is(err, ErrNotFinalised) || !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "not finalised") {
			t.Errorf("trust %v: %v", trust, err)
		}
		if d, err := buildOf(t, goCarFile(t, true), BuildOptions{TrustEmbeddedIndex: trust}); err != nil || d.Len() != 3 {
			t.Errorf("trust %v: finalised: %v, %v", trust, d, err)
		}
	}
}

// TestPaddingBehindAnIndex: zeros behind an embedded index are padding, as in a piece;
// anything else there is none. Proves S3.
func TestPaddingBehindAnIndex(t *testing.T) {
	car := goCarFile(t, true)
	want, err := buildOf(t, car, BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 5000, 3 << 20} {
		padded := append(bytes.Clone(car), make([]byte, n)...)
		d, err := buildOf(t, padded, BuildOptions{TrustEmbeddedIndex: true})
		if err != nil || d.Len() != want.Len() || d.Info().Digest != want.Info().Digest {
			t.Errorf("%d zeros: %v", n, err)
		}
	}
	for _, tail := range []string{"x", "\x00\x00x", strings.Repeat("\x00", 5000) + "x"} {
		if _, err := buildOf(t, append(bytes.Clone(car), tail...), BuildOptions{TrustEmbeddedIndex: true}); !errors.Is(err, ErrBadIndex) {
			t.Errorf("%d bytes of junk: %v", len(tail), err)
		}
	}
	boom := errors.New("boom")
	at := &failAfter{bytes.NewReader(append(bytes.Clone(car), make([]byte, 100)...)), int64(len(car)), boom}
	if _, err := Build(t.Context(), at, int64(len(car)+100), BuildOptions{TrustEmbeddedIndex: true}); !errors.Is(err, boom) || errors.Is(err, ErrBadIndex) {
		t.Errorf("padding that cannot be read: %v", err)
	}
}

// failAfter cannot be read from an offset on.
type failAfter struct {
	r   io.ReaderAt
	end int64
	err error
}

func (f *failAfter) ReadAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > f.end {
		return 0, f.err
	}
	return f.r.ReadAt(p, at)
}

// stingy gives at most three bytes a read, and no error.
type stingy struct{ r io.ReaderAt }

func (s stingy) ReadAt(p []byte, at int64) (int, error) { return s.r.ReadAt(p[:min(len(p), 3)], at) }

// idle gives nothing, and no error.
type idle struct{}

func (idle) ReadAt([]byte, int64) (int, error) { return 0, nil }

// TestShortReadsWhileIndexing: a reader that gives less than was asked for is read on,
// by each way to an index; one that gives nothing is an error. Proves S1.
func TestShortReadsWhileIndexing(t *testing.T) {
	car := goCarFile(t, true)
	size := int64(len(car))
	want, err := buildOf(t, car, BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	x := openBoth(t, encodeDraft(t, want))[0]
	for name, build := range map[string]func(r io.ReaderAt) (*Draft, error){
		"scan": func(r io.ReaderAt) (*Draft, error) { return Build(t.Context(), r, size, BuildOptions{}) },
		"embedded": func(r io.ReaderAt) (*Draft, error) {
			return Build(t.Context(), r, size, BuildOptions{TrustEmbeddedIndex: true})
		},
		"other's": func(r io.ReaderAt) (*Draft, error) { return DraftFromIndex(t.Context(), x, r, size, BuildOptions{}) },
	} {
		if d, err := build(stingy{bytes.NewReader(car)}); err != nil || d.Info().Digest != want.Info().Digest {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := build(idle{}); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("%s, nothing: %v", name, err)
		}
	}
	if err := x.CheckSource(stingy{bytes.NewReader(car)}, size); err != nil {
		t.Error(err)
	}
	if err := x.CheckSource(idle{}, size); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
	if _, err := ReadForeignIndex(idle{}, 100); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

// TestManyRoots: a file with more roots, or a larger header, than usual is indexed where
// the options allow it, and is still known for what it was afterwards. Proves S1.
func TestManyRoots(t *testing.T) {
	var roots [][]byte
	for i := range 30_000 {
		roots = append(roots, hostile.RawCID([]byte{byte(i), byte(i >> 8)}))
	}
	for _, n := range []int{4097, 30_000} {
		car := hostile.Join(hostile.Header(roots[:n]...), hostile.Raw([]byte("a")))
		if _, err := buildOf(t, car, BuildOptions{}); !errors.Is(err, ErrLimit) {
			t.Errorf("%d roots by default: %v", n, err)
		}
		d, err := buildOf(t, car, BuildOptions{MaxRoots: n, MaxHeaderBytes: 2 << 20})
		if err != nil {
			t.Fatalf("%d roots allowed: %v", n, err)
		}
		if err := openBoth(t, encodeDraft(t, d))[0].CheckSource(bytes.NewReader(car), int64(len(car))); err != nil {
			t.Errorf("%d roots, later: %v", n, err)
		}
	}
}

// TestSkipUnsupported: blocks with hashes that nothing here can check are left out by
// option, by each way to an index, and listed. Proves S2.
func TestSkipUnsupported(t *testing.T) {
	odd := func(code uint64, n int, data string) []byte {
		return hostile.Section(hostile.CIDv1(0x55, hostile.Mh(code, bytes.Repeat([]byte{7}, n))), []byte(data))
	}
	car := hostile.V1(hostile.Raw([]byte("a")), odd(multihash.MD5, 16, "md5"), odd(multihash.SHA2_256, 16, "cut"), odd(multihash.MURMUR3X64_64, 8, "m"), hostile.Raw([]byte("b")))
	if _, err := buildOf(t, car, BuildOptions{}); !errors.Is(err, ErrUnsupportedHash) {
		t.Fatal(err)
	}
	skip := BuildOptions{SkipUnsupported: true}
	d, err := buildOf(t, car, skip)
	if err != nil {
		t.Fatal(err)
	}
	if s := d.Skipped(); d.Len() != 2 || s.Blocks != 3 || len(s.First) != 3 || s.First[0].Code != multihash.MD5 || s.Bytes != 7 {
		t.Errorf("%d records, left out %+v", d.Len(), s)
	}
	var records []carindex.Record
	at := uint64(len(hostile.V1()))
	for _, section := range [][]byte{hostile.Raw([]byte("a")), odd(multihash.MD5, 16, "md5"), odd(multihash.SHA2_256, 16, "cut"), odd(multihash.MURMUR3X64_64, 8, "m"), hostile.Raw([]byte("b"))} {
		_, c, err := cid.CidFromBytes(section[1:])
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, carindex.Record{Cid: c, Offset: at})
		at += uint64(len(section))
	}
	idx := carindex.NewMultihashSorted()
	if err := idx.Load(records); err != nil {
		t.Fatal(err)
	}
	if _, err := DraftFromIndex(t.Context(), idx, bytes.NewReader(car), int64(len(car)), BuildOptions{}); !errors.Is(err, ErrUnsupportedHash) {
		t.Error(err)
	}
	d2, err := DraftFromIndex(t.Context(), idx, bytes.NewReader(car), int64(len(car)), skip)
	if err != nil || d2.Len() != 2 || d2.Skipped().Blocks != 3 || d2.Info().Digest != d.Info().Digest {
		t.Errorf("from another's index: %v, %v", d2, err)
	}
}

// TestWithoutIdentity: an index is listed without identity multihashes, and nothing else
// of it changes.
func TestWithoutIdentity(t *testing.T) {
	id := hostile.Mh(multihash.IDENTITY, []byte("inline"))
	d, err := buildOf(t, hostile.V1(hostile.Raw([]byte("a")), hostile.Section(hostile.CIDv1(0x55, id), []byte("inline")), hostile.Raw([]byte("b"))), BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	x := openBoth(t, encodeDraft(t, d))[0]
	count := func(it carindex.IterableIndex) (all, identity int) {
		if err := it.ForEach(func(mh multihash.Multihash, _ uint64) error {
			all++
			if d, err := multihash.Decode(mh); err != nil || d.Code == multihash.IDENTITY {
				identity++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return all, identity
	}
	if all, identity := count(x); all != 3 || identity != 1 {
		t.Errorf("whole: %d, %d of them identity", all, identity)
	}
	y := WithoutIdentity(x)
	if all, identity := count(y); all != 2 || identity != 0 {
		t.Errorf("without: %d, %d of them identity", all, identity)
	}
	if err := y.GetAll(cid.NewCidV1(cid.Raw, id), func(uint64) bool { return true }); err != nil {
		t.Errorf("asked for one: %v", err)
	}
	boom := errors.New("boom")
	if err := y.ForEach(func(multihash.Multihash, uint64) error { return boom }); err != boom {
		t.Error(err)
	}
}
