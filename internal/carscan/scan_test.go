package carscan_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	car "github.com/ipld/go-car/v2"
	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
)

var rewrite = flag.Bool("rewrite", false, "write the golden file anew")

// modes are the ways to scan that must agree in everything but hashes.
var modes = map[string]carscan.Options{
	"one worker": {Workers: 1},
	"workers":    {Workers: 4},
	"unverified": {SkipVerify: true},
}

// section is a record that outlives its scan.
type section struct {
	Offset          uint64
	HeaderLen, Size int
	CID             string
}

func scan(tb testing.TB, b []byte, opts carscan.Options) ([]section, carscan.Summary, error) {
	tb.Helper()
	var out []section
	sum, err := carscan.Scan(tb.Context(), bytes.NewReader(b), int64(len(b)), opts, func(r *carscan.Record) error {
		out = append(out, section{r.Offset, r.HeaderLen, r.Size, string(r.CID)})
		return nil
	})
	return out, sum, err
}

func kind(err error) string {
	if err == nil {
		return "ok"
	}
	for name, k := range map[string]error{
		"malformed": carscan.ErrMalformed, "truncated": carscan.ErrTruncated, "limit": carscan.ErrLimit,
		"mismatch": carscan.ErrHashMismatch, "hash": carscan.ErrUnsupportedHash, "version": carscan.ErrUnsupportedVersion,
	} {
		if errors.Is(err, k) {
			return name
		}
	}
	return err.Error()
}

// TestHostileCorpus gives every file of the corpus its verdict, with few and many
// workers, within a bound of memory and time. Proves S1, S2.
func TestHostileCorpus(t *testing.T) {
	cases := hostile.Corpus()
	bad := 0
	seen := make(map[string]bool)
	for _, c := range cases {
		if c.Want != nil {
			bad++
		}
		if seen[c.Name] {
			t.Errorf("%s: twice", c.Name)
		}
		seen[c.Name] = true
		for mode, opts := range modes {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			reads := &countingAt{r: bytes.NewReader(c.Data)}
			sum, err := carscan.Scan(t.Context(), reads, int64(len(c.Data)), opts, func(*carscan.Record) error { return nil })
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
				t.Errorf("%s, %s: %d bytes allocated for a file of %d", c.Name, mode, n, len(c.Data))
			}
			if most := 2*int64(len(c.Data)) + 1024; reads.n > most {
				t.Errorf("%s, %s: %d bytes read of a file of %d", c.Name, mode, reads.n, len(c.Data))
			}
			if opts.SkipVerify && c.Want == carscan.ErrHashMismatch {
				continue
			}
			if !errors.Is(err, c.Want) || err != nil && c.Want == nil {
				t.Errorf("%s, %s: have %v, want %v", c.Name, mode, err, c.Want)
			}
			if err == nil && sum.Blocks != uint64(c.Blocks) {
				t.Errorf("%s, %s: %d blocks, want %d", c.Name, mode, sum.Blocks, c.Blocks)
			}
			if e := (*carscan.Error)(nil); err != nil && (!errors.As(err, &e) || e.Offset < 0 || e.Offset > int64(len(c.Data))) {
				t.Errorf("%s, %s: error without a place in the file: %v", c.Name, mode, err)
			}
		}
	}
	if bad < 120 {
		t.Errorf("%d bad files, want 120 or more", bad)
	}
	t.Logf("%d files, %d of them bad", len(cases), bad)
}

// TestGoCarTestdata gives every file in go-car's own testdata its verdict, held by a
// golden file (-rewrite), and compares sections with go-car's where both accept.
func TestGoCarTestdata(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/ipld/go-car/v2").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "testdata")
	var got strings.Builder
	agreed := 0
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.Contains(path, "fuzz") {
			b = fuzzCorpusBytes(t, b)
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		sections, sum, err := scan(t, b, carscan.Options{})
		line := kind(err)
		if err == nil {
			line = fmt.Sprintf("ok v%d %d blocks %d bytes", sum.Version, sum.Blocks, sum.PayloadBytes)
			agreed++
			compareWithGoCar(t, name, b, sections)
		}
		fmt.Fprintf(&got, "%-100s %s\n", filepath.ToSlash(name), line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if agreed == 0 {
		t.Error("nothing was compared with go-car")
	}
	golden := filepath.Join("testdata", "gocar-verdicts.txt")
	if *rewrite {
		if err := os.WriteFile(golden, []byte(got.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("verdicts changed (-want +got):\n%s", diff)
	}
}

// fuzzCorpusBytes takes the one []byte out of a Go fuzzing corpus file.
func fuzzCorpusBytes(t *testing.T, b []byte) []byte {
	_, rest, ok := strings.Cut(string(b), "[]byte(")
	if !ok {
		t.Fatalf("not a corpus file: %.60q", b)
	}
	var s string
	if _, err := fmt.Sscanf(strings.TrimSpace(rest), "%q)", &s); err != nil {
		t.Fatal(err)
	}
	return []byte(s)
}

// compareWithGoCar indexes with go-car and wants the same offsets.
func compareWithGoCar(t *testing.T, name string, b []byte, sections []section) {
	t.Helper()
	idx, err := car.GenerateIndex(bytes.NewReader(b), car.ZeroLengthSectionAsEOF(true), car.StoreIdentityCIDs(true), car.MaxAllowedSectionSize(32<<20))
	if err != nil {
		t.Errorf("%s: go-car refuses what is accepted here: %v", name, err)
		return
	}
	n := 0
	err = idx.(carindex.IterableIndex).ForEach(func(multihash.Multihash, uint64) error { n++; return nil })
	if err != nil || n != len(sections) {
		t.Errorf("%s: go-car finds %d sections (%v), here %d", name, n, err, len(sections))
	}
	for _, s := range sections {
		c, err := cid.Cast([]byte(s.CID))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		found := false
		if err := idx.GetAll(c, func(at uint64) bool { found = found || at == s.Offset; return !found }); err != nil || !found {
			t.Errorf("%s: go-car does not find %v at %d: %v", name, c, s.Offset, err)
		}
	}
}

// TestGoodFilesAgreeWithGoCar compares every good file of the corpus with go-car's
// own indexer, where that can read it.
func TestGoodFilesAgreeWithGoCar(t *testing.T) {
	for _, c := range hostile.Corpus() {
		if c.Want != nil || strings.Contains(c.Name, "keys in the other order") {
			continue
		}
		sections, _, err := scan(t, c.Data, carscan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		compareWithGoCar(t, c.Name, c.Data, sections)
	}
}

// TestModesAgree scans files whose sections straddle chunks in every way, with each
// number of workers and without verification: the same sections and the same digest,
// which is the one that the documentation spells out.
func TestModesAgree(t *testing.T) {
	for _, shape := range []struct{ n, size int }{{1, 0}, {40000, 3}, {3000, 1024}, {30, 200 << 10}, {3, 3 << 20}, {2000, 511}} {
		b := hostile.Random(shape.n, shape.size, 7)
		want, sum, err := scan(t, b, carscan.Options{Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		if sum.Blocks != uint64(shape.n) || sum.PayloadBytes != uint64(shape.n*shape.size) {
			t.Fatalf("%+v: %d blocks, %d bytes", shape, sum.Blocks, sum.PayloadBytes)
		}
		doc := append([]byte("dagstore car content 1\n"), sum.Header...)
		for _, s := range want {
			doc = binary.LittleEndian.AppendUint64(doc, s.Offset)
			doc = append(doc, s.CID...)
			doc = binary.LittleEndian.AppendUint64(doc, uint64(s.Size))
		}
		mh, err := multihash.Sum(doc, multihash.SHA2_256, -1)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(mh[2:], sum.Digest[:]) {
			t.Errorf("%+v: the content digest is not the documented one", shape)
		}
		for name, opts := range modes {
			for wrap, b := range map[string][]byte{"v1": b, "v2": hostile.V2(b), "padded": append(bytes.Clone(b), make([]byte, 600<<10)...)} {
				got, s, err := scan(t, b, opts)
				if err != nil {
					t.Errorf("%+v, %s, %s: %v", shape, name, wrap, err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%+v, %s, %s: sections differ:\n%.500s", shape, name, wrap, diff)
				}
				if s.Digest != sum.Digest {
					t.Errorf("%+v, %s, %s: another content digest", shape, name, wrap)
				}
			}
		}
	}
}

// TestFirstErrorWins: of several faults the first in the file is reported, however
// many workers race to report theirs.
func TestFirstErrorWins(t *testing.T) {
	b := hostile.Random(4000, 1024, 5)
	const at = 1062
	header := len(b) - 4000*at
	for _, i := range []int{3990, 2500, 1200, 700} {
		b[header+i*at+38+100] ^= 1 // data
	}
	b[header+3999*at] ^= 1 // a length
	for range 20 {
		_, _, err := scan(t, b, carscan.Options{Workers: 4})
		var e *carscan.Error
		if !errors.As(err, &e) || !errors.Is(err, carscan.ErrHashMismatch) || e.Offset != int64(header+700*at+38) {
			t.Fatalf("have %v, want the mismatch at %d", err, header+700*at+38)
		}
	}
}

// faultyAt fails reads that touch the byte at.
type faultyAt struct {
	r   io.ReaderAt
	at  int64
	err error
}

func (f *faultyAt) ReadAt(p []byte, at int64) (int, error) {
	if at <= f.at && f.at < at+int64(len(p)) {
		n, _ := f.r.ReadAt(p[:f.at-at], at)
		return n, f.err
	}
	return f.r.ReadAt(p, at)
}

// TestReadErrorsPassThrough: an error of the reader comes back as it is, wherever it
// strikes; a source that ends early is truncated. Proves R9, C11.
func TestReadErrorsPassThrough(t *testing.T) {
	b := hostile.V2(hostile.Join(hostile.Random(3, 700<<10, 2), make([]byte, 1<<20)))
	size := int64(len(b))
	boom := errors.New("input/output error")
	for at := int64(0); at < size; at += size / 50 {
		for mode, opts := range modes {
			_, err := carscan.Scan(t.Context(), &faultyAt{bytes.NewReader(b), at, boom}, size, opts, func(*carscan.Record) error { return nil })
			if err != boom && !(err == nil && opts.SkipVerify) {
				t.Errorf("%s, fault at %d: %v", mode, at, err)
			}
			_, err = carscan.Scan(t.Context(), &faultyAt{bytes.NewReader(b), at, io.EOF}, size, opts, func(*carscan.Record) error { return nil })
			if !errors.Is(err, carscan.ErrTruncated) && !(err == nil && opts.SkipVerify) {
				t.Errorf("%s, end at %d: %v", mode, at, err)
			}
		}
	}
}

// TestSinkAndContext: an error of the sink and the end of the context end the scan
// and come back as they are.
func TestSinkAndContext(t *testing.T) {
	b := hostile.Random(5000, 1024, 2)
	if _, err := carscan.Scan(t.Context(), bytes.NewReader(b), -1, carscan.Options{}, nil); !errors.Is(err, carscan.ErrTruncated) {
		t.Errorf("a negative size: %v", err)
	}
	boom := errors.New("boom")
	n := 0
	sink := func(*carscan.Record) error {
		if n++; n == 2000 {
			return boom
		}
		return nil
	}
	if _, err := carscan.Scan(t.Context(), bytes.NewReader(b), int64(len(b)), carscan.Options{}, sink); err != boom || n != 2000 {
		t.Errorf("%v after %d", err, n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n = 0
	_, err := carscan.Scan(ctx, bytes.NewReader(b), int64(len(b)), carscan.Options{}, func(*carscan.Record) error {
		if n++; n == 1 {
			cancel()
		}
		return nil
	})
	if err != context.Canceled || n >= 5000 {
		t.Errorf("%v after %d sections", err, n)
	}
}

// TestLimits: each bound holds exactly.
func TestLimits(t *testing.T) {
	b := hostile.Random(10, 100, 1)
	for name, c := range map[string]struct {
		opts carscan.Options
		ok   bool
	}{
		"records":      {carscan.Options{MaxRecords: 10}, true},
		"records - 1":  {carscan.Options{MaxRecords: 9}, false},
		"section":      {carscan.Options{MaxSectionBytes: 136}, true},
		"section - 1":  {carscan.Options{MaxSectionBytes: 135}, false},
		"header":       {carscan.Options{MaxHeaderBytes: 58}, true},
		"header - 1":   {carscan.Options{MaxHeaderBytes: 57}, false},
		"roots":        {carscan.Options{MaxRoots: 1}, true},
		"huge section": {carscan.Options{MaxSectionBytes: math.MaxInt}, true},
	} {
		_, _, err := scan(t, b, c.opts)
		if c.ok != (err == nil) || err != nil && !errors.Is(err, carscan.ErrLimit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	two := hostile.Header(hostile.RawCID(nil), hostile.RawCID(nil))
	if _, _, err := scan(t, two, carscan.Options{MaxRoots: 1}); !errors.Is(err, carscan.ErrLimit) {
		t.Errorf("roots - 1: %v", err)
	}
}

// TestUnverifiedSkipsPayloads: without verification large blocks are not read.
func TestUnverifiedSkipsPayloads(t *testing.T) {
	b := hostile.Random(40, 1<<20, 4)
	c := &countingAt{r: bytes.NewReader(b)}
	sum, err := carscan.Scan(t.Context(), c, int64(len(b)), carscan.Options{SkipVerify: true}, func(*carscan.Record) error { return nil })
	if err != nil || sum.Blocks != 40 {
		t.Fatal(sum.Blocks, err)
	}
	if c.n > int64(len(b))/10 {
		t.Errorf("%d of %d bytes read", c.n, len(b))
	}
}

type countingAt struct {
	r io.ReaderAt
	n int64
}

func (c *countingAt) ReadAt(p []byte, at int64) (int, error) {
	c.n += int64(len(p))
	return c.r.ReadAt(p, at)
}

// TestProgress: progress never goes back and ends at the end of the payload.
func TestProgress(t *testing.T) {
	b := hostile.Random(3000, 1024, 4)
	var bytesDone, blocksDone uint64
	_, _, err := scan(t, b, carscan.Options{Workers: 4, Progress: func(bytes, blocks uint64) {
		if bytes < bytesDone || blocks < blocksDone {
			t.Errorf("from %d, %d back to %d, %d", bytesDone, blocksDone, bytes, blocks)
		}
		bytesDone, blocksDone = bytes, blocks
	}})
	if err != nil || bytesDone != uint64(len(b)) || blocksDone != 3000 {
		t.Errorf("%d bytes, %d blocks, %v", bytesDone, blocksDone, err)
	}
}

// TestSectionAt reads single section headers, where there are some and where not.
func TestSectionAt(t *testing.T) {
	b := hostile.V2(hostile.Random(50, 300, 3))
	want, sum, err := scan(t, b, carscan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var buf [carscan.MaxSectionHeader]byte
	for _, s := range want {
		var r carscan.Record
		if err := carscan.SectionAt(bytes.NewReader(b), &sum.Layout, s.Offset, carscan.Options{}, buf[:], &r); err != nil {
			t.Fatal(err)
		}
		if got := (section{r.Offset, r.HeaderLen, r.Size, string(r.CID)}); got != s {
			t.Errorf("have %v, want %v", got, s)
		}
	}
	for _, at := range []uint64{0, want[0].Offset - 1, want[0].Offset + 1, sum.DataSize - 1, sum.DataSize, 1 << 62, 1<<64 - 1} {
		var r carscan.Record
		var e *carscan.Error
		if err := carscan.SectionAt(bytes.NewReader(b), &sum.Layout, at, carscan.Options{}, buf[:], &r); !errors.As(err, &e) {
			t.Errorf("a section at %d: %v, %v", at, r, err)
		}
	}
}

// stingyAt gives at most n bytes a read, and no error; after left bytes, if that is set,
// nothing more.
type stingyAt struct {
	r       io.ReaderAt
	n, left int
}

func (s *stingyAt) ReadAt(p []byte, at int64) (int, error) {
	n := min(len(p), s.n)
	if s.left > 0 {
		if n = min(n, s.left-1); n == 0 {
			return 0, nil
		}
		s.left -= n
	}
	n, err := s.r.ReadAt(p[:n], at)
	if n > 0 {
		err = nil
	}
	return n, err
}

// TestShortReads: a reader that gives less than it was asked for and no error is read on;
// one that gives nothing for ever is an error, and one that lies about how much it gave
// too. Proves S1.
func TestShortReads(t *testing.T) {
	b := hostile.V2(hostile.Random(20, 5000, 3))
	want, sum, err := scan(t, b, carscan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, opts := range modes {
		for _, n := range []int{1, 7, 4096} {
			got := 0
			sum2, err := carscan.Scan(t.Context(), &stingyAt{r: bytes.NewReader(b), n: n}, int64(len(b)), opts, func(*carscan.Record) error { got++; return nil })
			if err != nil || got != len(want) || sum2.Digest != sum.Digest {
				t.Errorf("%d bytes a read: %d of %d sections, %v", n, got, len(want), err)
			}
		}
		_, err = carscan.Scan(t.Context(), &stingyAt{r: bytes.NewReader(b), n: 100, left: 5000}, int64(len(b)), opts, func(*carscan.Record) error { return nil })
		if !errors.Is(err, io.ErrNoProgress) && !(err == nil && opts.SkipVerify) {
			t.Errorf("a reader that gives nothing: %v", err)
		}
	}
	for _, n := range []int{-1, 11, math.MaxInt} {
		if got, err := carscan.FillAt(lyingAt(n), make([]byte, 10), 0); err == nil {
			t.Errorf("a reader that gives %d of 10 bytes: %d, %v", n, got, err)
		}
	}
}

// lyingAt says that it read so many bytes.
type lyingAt int

func (l lyingAt) ReadAt([]byte, int64) (int, error) { return int(l), nil }

// TestSkipUnsupported: sections whose hashes nothing here can check are left out by
// option, and listed; all others are as they were. Proves S2.
func TestSkipUnsupported(t *testing.T) {
	odd := func(code uint64, digest int, data string) []byte {
		return hostile.Section(hostile.CIDv1(0x55, hostile.Mh(code, bytes.Repeat([]byte{7}, digest))), []byte(data))
	}
	parts := [][]byte{
		hostile.Raw([]byte("a")),
		odd(multihash.MD5, 16, "md5"), odd(multihash.SHA2_256, 16, "short"), odd(multihash.MURMUR3X64_64, 8, "murmur"), odd(0x999999, 32, "unknown"),
		hostile.Raw(bytes.Repeat([]byte("b"), 700<<10)),
		odd(multihash.MD5, 16, strings.Repeat("large", 300<<10)), odd(multihash.IDENTITY, 129, ""), odd(multihash.IDENTITY, 100_000, "x"), odd(multihash.SHA2_256, 33, ""),
		hostile.Raw([]byte("c")), odd(multihash.MD5, 0, ""), make([]byte, 50),
	}
	b := hostile.V1(parts...)
	for mode, opts := range modes {
		if _, _, err := scan(t, b, opts); !errors.Is(err, carscan.ErrUnsupportedHash) {
			t.Errorf("%s, by default: %v", mode, err)
		}
		opts.SkipUnsupported = true
		got, sum, err := scan(t, b, opts)
		if err != nil || len(got) != 3 || sum.Blocks != 3 || sum.PayloadBytes != 700<<10+2 {
			t.Fatalf("%s: %d sections, %v, %v", mode, len(got), sum, err)
		}
		if s := sum.Skipped; s.Blocks != 9 || len(s.First) != 9 || s.First[0].Code != multihash.MD5 || s.First[0].DigestLen != 16 || s.First[6].DigestLen != 100_000 || s.First[1].Size != 5 {
			t.Errorf("%s: left out: %+v", mode, s)
		}
		whole, _, err := scan(t, hostile.V1(parts[0], parts[5], parts[10]), carscan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range whole {
			if whole[i].CID != got[i].CID || whole[i].Size != got[i].Size {
				t.Errorf("%s: section %d is %+v, want %+v", mode, i, got[i], whole[i])
			}
		}
		opts.MaxRecords = 11
		if _, _, err := scan(t, b, opts); !errors.Is(err, carscan.ErrLimit) {
			t.Errorf("%s: 12 sections of 11: %v", mode, err)
		}
	}
	wrong := hostile.V1(parts[1], hostile.Section(hostile.RawCID([]byte("x")), []byte("y")))
	if _, _, err := scan(t, wrong, carscan.Options{SkipUnsupported: true}); !errors.Is(err, carscan.ErrHashMismatch) {
		t.Errorf("a wrong block beside one that is left out: %v", err)
	}
}

// FuzzScan: whatever the bytes, a scan ends, its modes agree, and what it accepts
// go-car reads in the same way. Proves S1, S2.
func FuzzScan(f *testing.F) {
	for _, c := range hostile.Corpus() {
		if len(c.Data) < 4096 {
			f.Add(c.Data)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want, sum, err := scan(t, b, carscan.Options{Workers: 1})
		got, sum2, err2 := scan(t, b, carscan.Options{Workers: 3})
		if kind(err) != kind(err2) || err == nil && (cmp.Diff(want, got) != "" || sum.Digest != sum2.Digest) {
			t.Fatalf("one worker: %v, three: %v", err, err2)
		}
		some, sum4, err4 := scan(t, b, carscan.Options{Workers: 2, SkipUnsupported: true})
		if err == nil && (err4 != nil || cmp.Diff(want, some) != "" || sum4.Digest != sum.Digest) || errors.Is(err4, carscan.ErrUnsupportedHash) {
			t.Fatalf("without unsupported hashes: %v", err4)
		}
		unverified, _, err3 := scan(t, b, carscan.Options{SkipVerify: true})
		if err == nil && (err3 != nil || cmp.Diff(want, unverified) != "") {
			t.Fatalf("unverified: %v", err3)
		}
		if e := (*carscan.Error)(nil); err != nil && !errors.As(err, &e) {
			t.Fatalf("an error of another type: %v", err)
		}
		if err != nil {
			return
		}
		total := uint64(len(sum.Header))
		for _, s := range want {
			if s.Offset != total {
				t.Fatalf("a section at %d, want %d", s.Offset, total)
			}
			total += uint64(s.HeaderLen + s.Size)
			if _, err := cid.Cast([]byte(s.CID)); err != nil {
				t.Fatalf("go-cid refuses %x: %v", s.CID, err)
			}
		}
	})
}
