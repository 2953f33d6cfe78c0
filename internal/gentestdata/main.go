// Command gentestdata writes the files of package testdata: run
// `go run ./internal/gentestdata` in the root of the module after a change here.
//
// Two directory trees are made up from fixed seeds and imported as UnixFS DAGs:
//
//	sample/                     shared/
//	  readme.txt                  index.html
//	  photos/  ───── equal ─────  photos/
//	    harbour.bin  (96 KiB)       harbour.bin
//	    quay.bin     (10,000 B)     quay.bin
//	  letters/2019/spring/        video.bin  (64 KiB)
//	    april.txt
//	    may.txt
//	  empty.dat
//	  video.bin  (96 KiB)
//
// sample becomes sample-v1.car and, wrapped with an index, sample-wrapped-v2.car;
// shared becomes shared-v1.car. junk.dat is random bytes.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/ipfs/go-cid"
	car "github.com/ipld/go-car/v2"

	"github.com/dagstore/dagstore/testdata"
)

func main() {
	dir := flag.String("dir", "testdata/files", "folder that the files are written to")
	flag.Parse()
	if err := run(*dir, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gentestdata:", err)
		os.Exit(1)
	}
}

// run writes all files to dir and prints their names, sizes and roots.
func run(dir string, out io.Writer) error {
	files, err := generate()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, f := range files {
		// 0644: these are files of the repository, not of a store.
		if err := os.WriteFile(filepath.Join(dir, f.name), f.data, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(out, "%-22s %7d bytes", f.name, len(f.data))
		if f.root.Defined() {
			fmt.Fprintf(out, "  root %s", f.root)
		}
		fmt.Fprintln(out)
	}
	return nil
}

// file is one generated file; root is undefined if it is no CAR.
type file struct {
	name string
	data []byte
	root cid.Cid
}

// generate makes all files in memory.
func generate() ([]file, error) {
	sample, err := carOf("sample-v1.car", sampleTree())
	if err != nil {
		return nil, err
	}
	var wrapped bytes.Buffer
	if err := car.WrapV1(bytes.NewReader(sample.data), &wrapped); err != nil {
		return nil, fmt.Errorf("wrap %s as CARv2: %w", sample.name, err)
	}
	shared, err := carOf("shared-v1.car", sharedTree())
	if err != nil {
		return nil, err
	}
	return []file{
		sample,
		{name: "sample-wrapped-v2.car", data: wrapped.Bytes(), root: sample.root},
		shared,
		{name: "junk.dat", data: random(99, 1<<10)},
	}, nil
}

// tree maps slash-separated paths to contents.
type tree map[string][]byte

func photos() tree {
	return tree{
		"photos/harbour.bin": random(1, 96<<10),
		"photos/quay.bin":    random(2, 10_000),
	}
}

func sampleTree() tree {
	t := photos()
	t["readme.txt"] = text("A sample directory for tests of a CAR store.", 40)
	t["letters/2019/spring/april.txt"] = text("The boats are back in the water.", 200)
	t["letters/2019/spring/may.txt"] = text("Rain all week, and nobody minded.", 10)
	t["empty.dat"] = nil
	t["video.bin"] = random(3, 96<<10)
	return t
}

func sharedTree() tree {
	t := photos()
	t["index.html"] = text("<p>The same photos, published once more.</p>", 20)
	t["video.bin"] = random(4, 64<<10)
	return t
}

// text is n numbered lines, so that no two leaves of a file are equal.
func text(line string, n int) []byte {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%3d  %s\n", i+1, line)
	}
	return []byte(b.String())
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(testdata.Random(seed), b); err != nil {
		panic(err) // a stream without end has no end
	}
	return b
}

// carOf writes a tree to a temporary folder, imports it and returns it as a CARv1.
func carOf(name string, t tree) (file, error) {
	dir, err := os.MkdirTemp("", "gentestdata")
	if err != nil {
		return file{}, err
	}
	defer os.RemoveAll(dir)
	for path, data := range t {
		path = filepath.Join(dir, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return file{}, err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return file{}, err
		}
	}
	dag := testdata.NewDAGService()
	root, err := testdata.WriteUnixfsDAGTo(dir, dag)
	if err != nil {
		return file{}, err
	}
	var b bytes.Buffer
	if err := testdata.WriteCARv1(context.Background(), &b, root, dag); err != nil {
		return file{}, fmt.Errorf("%s: %w", name, err)
	}
	return file{name: name, data: b.Bytes(), root: root}, nil
}
