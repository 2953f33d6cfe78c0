// Package testdata is a handful of small, real CAR files, and functions that make
// more: UnixFS directories with a text file, a binary file of many blocks, nested
// folders and an empty file, as an IPFS importer would write them.
//
// The files are reproducible: `go run ./internal/gentestdata` writes the same bytes
// again, and a test of that package holds them to it. The package is for tests and
// examples; nothing of the library imports it, so an importer of the library does
// not pay for the UnixFS code behind those functions.
package testdata

import (
	"embed"
	"fmt"

	"github.com/ipfs/go-cid"
)

// Paths inside [FS].
const (
	// FSPathCarV1 is a CARv1 with one root, [RootCID].
	FSPathCarV1 = "files/sample-v1.car"
	// FSPathCarV2 is the same payload in a CARv2 with a MultihashIndexSorted index.
	FSPathCarV2 = "files/sample-wrapped-v2.car"
	// FSPathJunk is no CAR at all.
	FSPathJunk = "files/junk.dat"
	// FSPathCarShared is a CARv1 with the root [SharedRootCID]. It has one folder in
	// common with the sample and other files beside it, so that the blocks of that
	// folder are in both.
	FSPathCarShared = "files/shared-v1.car"
)

// Paths from the root of the module.
const (
	RootPathCarV1 = "testdata/" + FSPathCarV1
	RootPathCarV2 = "testdata/" + FSPathCarV2
	// RootPathJunk names no file: the predecessor misspelt it, and clients may hold
	// it against that. Use [FSPathJunk].
	RootPathJunk      = "testdata/files/funk.dat"
	RootPathCarShared = "testdata/" + FSPathCarShared
)

// FS holds the files under their FSPath names.
//
//go:embed files/*
var FS embed.FS

// The files' contents. Tests that change bytes must change a copy.
var (
	CarV1     = contents(FSPathCarV1)
	CarV2     = contents(FSPathCarV2)
	CarShared = contents(FSPathCarShared)
	Junk      = contents(FSPathJunk)
)

// Roots of the CARs.
var (
	// RootCID is the one root of CarV1 and of CarV2.
	RootCID = cid.MustParse("bafybeicvdg7m7rykarcfk6zor33wk2iknk3zxi4mvbjx7vme34dra2tdvm")
	// SharedRootCID is the one root of CarShared.
	SharedRootCID = cid.MustParse("bafybeia4kz5pyukjxzdqig23bne7vspejkx5gaqmqrxzr545c6gixqrshu")
)

// contents panics because the files are compiled in: a missing one is a broken
// build, not a condition.
func contents(name string) []byte {
	b, err := FS.ReadFile(name)
	if err != nil {
		panic(fmt.Sprintf("testdata: read embedded %s: %v", name, err))
	}
	return b
}
