package testdata

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	chunk "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	unixfsio "github.com/ipfs/boxo/ipld/unixfs/io"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	ipldformat "github.com/ipfs/go-ipld-format"
	car "github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"
	"github.com/multiformats/go-multihash"
)

// The shape of the DAGs: small leaves and few links per node, so that even a file
// of some hundred KiB is a tree of several levels.
const (
	leafBytes    = 4 << 10
	linksPerNode = 8
)

// cidBuilder makes CIDv1 with SHA2-256; leaves are raw blocks, nodes are dag-pb.
var cidBuilder = cid.V1Builder{Codec: cid.DagProtobuf, MhType: multihash.SHA2_256}

// CreateRandomFile makes a new file of size bytes in dir and returns its path. The
// contents follow from rseed alone.
func CreateRandomFile(dir string, rseed, size int) (string, error) {
	f, err := os.CreateTemp(dir, "sourcefile-*.dat")
	if err != nil {
		return "", fmt.Errorf("create random file: %w", err)
	}
	_, err = io.CopyN(f, Random(uint64(rseed)), int64(size))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("create random file %s: %w", f.Name(), err)
	}
	return f.Name(), nil
}

// Random is an endless stream of pseudo-random bytes that follow from seed alone,
// on any machine and with any Go release (ChaCha8).
func Random(seed uint64) io.Reader {
	var s [8]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	return rand.NewChaCha8(sha256.Sum256(s[:]))
}

// CreateDenseCARv2 imports the ordinary file or directory src as a UnixFS DAG and
// writes all its blocks to a new CARv2 with an index in dir. "Dense" means that the
// leaves are in the CAR and not references into src. It returns the root and the
// path of the CAR.
func CreateDenseCARv2(dir, src string) (cid.Cid, string, error) {
	dag := NewDAGService()
	root, err := WriteUnixfsDAGTo(src, dag)
	if err != nil {
		return cid.Undef, "", fmt.Errorf("create dense CARv2 of %s: %w", src, err)
	}
	var v1 bytes.Buffer
	if err := WriteCARv1(context.Background(), &v1, root, dag); err != nil {
		return cid.Undef, "", fmt.Errorf("create dense CARv2 of %s: %w", src, err)
	}
	out, err := os.CreateTemp(dir, "dense-*.car")
	if err != nil {
		return cid.Undef, "", fmt.Errorf("create dense CARv2 of %s: %w", src, err)
	}
	err = car.WrapV1(bytes.NewReader(v1.Bytes()), out, car.StoreIdentityCIDs(true))
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(out.Name())
		return cid.Undef, "", fmt.Errorf("create dense CARv2 %s of %s: %w", out.Name(), src, err)
	}
	return root, out.Name(), nil
}

// NewDAGService returns an empty DAG service in memory.
func NewDAGService() ipldformat.DAGService {
	bs := blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	return merkledag.NewDAGService(blockservice.New(bs, offline.Exchange(bs)))
}

// WriteUnixfsDAGTo imports the ordinary file or directory at path into a DAG service
// and returns the root. The DAG follows from names and contents alone: neither modes
// nor times are recorded.
func WriteUnixfsDAGTo(path string, into ipldformat.DAGService) (cid.Cid, error) {
	nd, err := importPath(context.Background(), path, into)
	if err != nil {
		return cid.Undef, fmt.Errorf("import %s as UnixFS: %w", path, err)
	}
	return nd.Cid(), nil
}

func importPath(ctx context.Context, path string, into ipldformat.DAGService) (ipldformat.Node, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		return importDir(ctx, path, into)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	params := helpers.DagBuilderParams{
		Dagserv:    into,
		CidBuilder: cidBuilder,
		RawLeaves:  true,
		Maxlinks:   linksPerNode,
	}
	db, err := params.New(chunk.NewSizeSplitter(f, leafBytes))
	if err != nil {
		return nil, err
	}
	return balanced.Layout(db)
}

func importDir(ctx context.Context, path string, into ipldformat.DAGService) (ipldformat.Node, error) {
	// Only the basic form: a HAMT's shape depends on thresholds that change with
	// releases of the importer.
	dir, err := unixfsio.NewBasicDirectory(into, unixfsio.WithCidBuilder(cidBuilder))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		child, err := importPath(ctx, filepath.Join(path, e.Name()), into)
		if err != nil {
			return nil, err
		}
		if err := dir.AddChild(ctx, e.Name(), child); err != nil {
			return nil, err
		}
	}
	nd, err := dir.GetNode()
	if err != nil {
		return nil, err
	}
	return nd, into.Add(ctx, nd)
}

// WriteCARv1 writes the DAG below root as a CARv1: depth first, a node before what it
// links to, each block once.
func WriteCARv1(ctx context.Context, w io.Writer, root cid.Cid, from ipldformat.NodeGetter) error {
	out, err := storage.NewWritable(w, []cid.Cid{root}, car.WriteAsCarV1(true), car.StoreIdentityCIDs(true))
	if err != nil {
		return fmt.Errorf("write CARv1 header: %w", err)
	}
	seen := cid.NewSet()
	var visit func(c cid.Cid) error
	visit = func(c cid.Cid) error {
		if !seen.Visit(c) {
			return nil
		}
		nd, err := from.Get(ctx, c)
		if err != nil {
			return fmt.Errorf("write CARv1: read %s: %w", c, err)
		}
		if err := out.Put(ctx, c.KeyString(), nd.RawData()); err != nil {
			return fmt.Errorf("write CARv1: write %s: %w", c, err)
		}
		for _, l := range nd.Links() {
			if err := visit(l.Cid); err != nil {
				return err
			}
		}
		return nil
	}
	if err := visit(root); err != nil {
		return err
	}
	return out.Finalize()
}
