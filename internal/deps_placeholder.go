//go:build tools

package internal

import (
	_ "github.com/google/go-cmp/cmp"
	_ "github.com/ipfs/boxo/blockstore"
	_ "github.com/ipfs/boxo/ipld/unixfs"
	_ "github.com/ipfs/go-block-format"
	_ "github.com/ipfs/go-datastore"
	_ "github.com/ipfs/go-ipfs-blockstore"
	_ "github.com/ipfs/go-ipld-format"
	_ "github.com/ipld/go-car/v2"
	_ "github.com/ipld/go-ipld-prime"
	_ "github.com/multiformats/go-multihash"
	_ "github.com/tidwall/btree"
	_ "go.uber.org/goleak"
	_ "golang.org/x/sync/semaphore"
	_ "golang.org/x/sys/unix"
	_ "pgregory.net/rapid"
)
