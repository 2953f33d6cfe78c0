package dagstore

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/ipld/go-ipld-prime/linking"
	"github.com/ipld/go-ipld-prime/storage"

	"github.com/dagstore/dagstore/internal/links"
)

// LinkSystem returns a go-ipld-prime LinkSystem that loads from the shard and stores
// nothing: storing fails with an error that wraps errors.ErrUnsupported. It decodes the
// codecs that the program has registered with go-ipld-prime's multicodec. Blocks that
// the store has checked are not hashed again. It is good until the accessor is closed.
func (sa *ShardAccessor) LinkSystem() linking.LinkSystem {
	sa.inHand()
	return sa.bs.LinkSystem()
}

// LinkSystem is [ShardAccessor.LinkSystem].
func (b *ShardBlockstore) LinkSystem() linking.LinkSystem {
	return links.System(b.verify, b.bytes)
}

// BlockStorage is the blocks of one shard as go-ipld-prime's storage. Keys are CIDs in
// binary form; under the empty key, an undefined CID's, there is nothing. It is a type of its own because its methods have the names of a
// blockstore's.
type BlockStorage struct{ b *ShardBlockstore }

var (
	_ storage.ReadableStorage          = BlockStorage{}
	_ storage.StreamingReadableStorage = BlockStorage{}
	_ storage.PeekableStorage          = BlockStorage{}
)

// Storage returns the shard's blocks as go-ipld-prime's storage.
func (b *ShardBlockstore) Storage() BlockStorage { return BlockStorage{b} }

func cidOf(key string) (cid.Cid, error) {
	if key == "" {
		return cid.Undef, nil
	}
	c, err := cid.Cast([]byte(key))
	if err != nil {
		return cid.Undef, fmt.Errorf("key %q: %w", key, err)
	}
	return c, nil
}

// Has says whether the shard holds the block.
func (s BlockStorage) Has(ctx context.Context, key string) (bool, error) {
	c, err := cidOf(key)
	if err != nil {
		return false, err
	}
	return s.b.Has(ctx, c)
}

// Get returns the bytes of a block, which are the caller's. A block that is not there
// is an ipld.ErrNotFound, which go-ipld-prime recognises by its NotFound method.
func (s BlockStorage) Get(ctx context.Context, key string) ([]byte, error) {
	c, err := cidOf(key)
	if err != nil {
		return nil, err
	}
	return s.b.bytes(ctx, c)
}

// GetStream is Get with a reader.
func (s BlockStorage) GetStream(ctx context.Context, key string) (io.ReadCloser, error) {
	p, err := s.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(p)), nil
}

// Peek is Get; nothing needs to be closed.
func (s BlockStorage) Peek(ctx context.Context, key string) ([]byte, io.Closer, error) {
	p, err := s.Get(ctx, key)
	return p, io.NopCloser(nil), err
}

var _ interface{ NotFound() bool } = ipld.ErrNotFound{}
