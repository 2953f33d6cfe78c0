package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	car "github.com/ipld/go-car/v2"
	carindex "github.com/ipld/go-car/v2/index"

	"github.com/dagstore/dagstore/testdata"
)

// TestFilesAreTheGenerators holds the checked-in files to their generator, byte by
// byte.
func TestFilesAreTheGenerators(t *testing.T) {
	const cure = "run `go run ./internal/gentestdata` in the root of the module, put the roots it prints into testdata/testdata.go, and look at the diff"
	files, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, f := range files {
		want[f.name] = true
		got, err := testdata.FS.ReadFile("files/" + f.name)
		if err != nil {
			t.Errorf("%v; %s", err, cure)
			continue
		}
		if !bytes.Equal(got, f.data) {
			t.Errorf("testdata/files/%s differs from what the generator makes (%d bytes, want %d); %s", f.name, len(got), len(f.data), cure)
		}
	}
	entries, err := testdata.FS.ReadDir("files")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !want[e.Name()] {
			t.Errorf("testdata/files/%s comes from no generator; remove it, or teach internal/gentestdata to make it", e.Name())
		}
	}
}

// TestRunWritesTheFiles runs the command itself into a folder that does not exist.
func TestRunWritesTheFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "files")
	var out bytes.Buffer
	if err := run(dir, &out); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "sample-v1.car"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, testdata.CarV1) {
		t.Error("sample-v1.car on disk is not the embedded one")
	}
	if !bytes.Contains(out.Bytes(), []byte(testdata.RootCID.String())) {
		t.Errorf("the root %s is not in the output:\n%s", testdata.RootCID, out.String())
	}
}

// TestCARs reads the files with go-car, which hashes every block: the roots are the
// declared ones and are in the files, the wrapped payload is the plain one, the
// index of the CARv2 has all blocks, and the two samples share what they should.
func TestCARs(t *testing.T) {
	v1 := blocksOf(t, testdata.CarV1, testdata.RootCID)
	v2 := blocksOf(t, testdata.CarV2, testdata.RootCID)
	shared := blocksOf(t, testdata.CarShared, testdata.SharedRootCID)
	if d := cmp.Diff(v1, v2); d != "" {
		t.Errorf("the CARv2 does not hold the CARv1's blocks (-v1 +v2):\n%s", d)
	}
	both := 0
	for c := range shared {
		if _, ok := v1[c]; ok {
			both++
		}
	}
	// photos/, harbour.bin with 24 leaves below 3 nodes and a root, quay.bin with 3
	// leaves and a root.
	if want := 1 + (24 + 3 + 1) + (3 + 1); both != want {
		t.Errorf("the samples share %d blocks, want %d", both, want)
	}
	if both == len(shared) || both == len(v1) {
		t.Errorf("one sample contains the other: %d shared, of %d and %d", both, len(v1), len(shared))
	}

	idx := embeddedIndex(t, testdata.CarV2)
	n := 0
	for c := range v1 {
		if _, err := carindex.GetFirst(idx, cid.MustParse(c)); err != nil {
			t.Errorf("index of the CARv2: %s: %v", c, err)
		}
		n++
	}
	if n < 50 {
		t.Errorf("only %d blocks; a sample should be a DAG worth the name", n)
	}
	if _, err := car.NewBlockReader(bytes.NewReader(testdata.Junk)); err == nil {
		t.Error("go-car reads junk.dat as a CAR")
	}
}

func blocksOf(t *testing.T, data []byte, root cid.Cid) map[string]int {
	t.Helper()
	r, err := car.NewBlockReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Roots) != 1 || r.Roots[0] != root {
		t.Errorf("roots %v, want [%s]", r.Roots, root)
	}
	blocks := map[string]int{}
	for {
		b, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, dup := blocks[b.Cid().String()]; dup {
			t.Errorf("%s twice", b.Cid())
		}
		blocks[b.Cid().String()] = len(b.RawData())
	}
	if _, ok := blocks[root.String()]; !ok {
		t.Errorf("root %s is not in the file", root)
	}
	return blocks
}

func embeddedIndex(t *testing.T, data []byte) carindex.Index {
	t.Helper()
	r, err := car.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	ir, err := r.IndexReader()
	if err != nil {
		t.Fatal(err)
	}
	idx, err := carindex.ReadFrom(ir)
	if err != nil {
		t.Fatal(err)
	}
	return idx
}

// TestMakers: a random file follows from its seed; its dense CARv2 has the root of
// its DAG, and every leaf.
func TestMakers(t *testing.T) {
	dir := t.TempDir()
	const size = 1 << 20
	var contents [3][]byte
	var paths [3]string
	for i, seed := range []int{7, 7, 8} {
		var err error
		if paths[i], err = testdata.CreateRandomFile(dir, seed, size); err != nil {
			t.Fatal(err)
		}
		if contents[i], err = os.ReadFile(paths[i]); err != nil {
			t.Fatal(err)
		}
	}
	if len(contents[0]) != size || !bytes.Equal(contents[0], contents[1]) || bytes.Equal(contents[0], contents[2]) {
		t.Error("the contents do not follow from the seed")
	}

	root, path, err := testdata.CreateDenseCARv2(dir, paths[0])
	if err != nil {
		t.Fatal(err)
	}
	dag := testdata.NewDAGService()
	again, err := testdata.WriteUnixfsDAGTo(paths[1], dag)
	if err != nil {
		t.Fatal(err)
	}
	if root != again {
		t.Errorf("roots of equal files: %s and %s", root, again)
	}
	if _, err := dag.Get(context.Background(), root); err != nil {
		t.Errorf("the root is not in the DAG service: %v", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	payload := 0
	for c, n := range blocksOf(t, data, root) {
		if cid.MustParse(c).Prefix().Codec == cid.Raw {
			payload += n
		}
	}
	if payload != size {
		t.Errorf("the leaves hold %d bytes, want %d", payload, size)
	}
	if _, _, err := testdata.CreateDenseCARv2(dir, filepath.Join(dir, "absent")); err == nil {
		t.Error("a CAR of a file that does not exist")
	}
}
