package export

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/ipld/go-ipld-prime/codec"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/linking"
)

// Source is where blocks come from. A store's *ShardBlockstore and an index-backed
// blockstore are sources. View calls fn once with the bytes of a block, which are valid
// during the call only; a block that is not there is an ipld.ErrNotFound; an error of fn
// comes back as it is.
type Source interface {
	View(ctx context.Context, c cid.Cid, fn func(data []byte) error) error
}

// Options directs and bounds an export. Zero stands for the default that the package's
// documentation gives.
type Options struct {
	// MaxDepth bounds the links on the way from a root. In a selector's walk each step
	// into a map or a list counts too.
	MaxDepth int
	// MaxLinks bounds the links met, and in a selector's walk the nodes visited.
	MaxLinks uint64
	// MaxBlockLinks bounds the links of one block.
	MaxBlockLinks int
	// MaxPending bounds the links that were met and wait to be followed.
	MaxPending int
	// MaxBlocks bounds the blocks written.
	MaxBlocks uint64
	// MaxBytes bounds the bytes written, the header included.
	MaxBytes uint64
	// MaxBlockSize bounds one block, in bytes.
	MaxBlockSize int

	// Duplicates writes a block each time that it is met.
	Duplicates bool
	// SkipMissing leaves out blocks that the source does not have, with all below them,
	// and counts them. A root that is missing is an error all the same.
	SkipMissing bool
	// SkipVerify leaves the hashing of blocks to the source. The stores' own blockstores
	// hash unless they are configured not to; others may not.
	SkipVerify bool
	// Decoders decode codecs that are not built in (git-raw, DAG-JOSE, one's own), or in
	// place of those that are, by the codec's number. A decoder must bound what it takes:
	// the blocks are a stranger's.
	Decoders map[uint64]Decoder
	// Reifiers are the ADLs that a selector may ask for, by name: "unixfs" and
	// "unixfs-preload" are go-unixfsnode's Reify and preload variant. What they load is
	// written too. A block that is missing within one is an error, SkipMissing or not.
	Reifiers map[string]linking.NodeReifier
	// UnknownAsLeaf takes a block of an unknown codec for one without links, in place of
	// an error. A block that is its CID (identity) is one anyway: there is nothing to be
	// fetched below it that anybody could find.
	UnknownAsLeaf bool
}

// Decoder decodes the blocks of a codec.
type Decoder struct {
	Decode codec.Decoder
	// Prototype is what Decode fills; nil for any node.
	Prototype datamodel.NodePrototype
}

// Result says what was written. Bytes is 0 as long as the first root's block was not had
// and decoded.
type Result struct {
	Blocks  uint64 // sections
	Bytes   uint64 // header and sections
	Links   uint64 // met
	Missing uint64 // left out, if Options.SkipMissing is set
}

var (
	// ErrLimit is wrapped by every *LimitError.
	ErrLimit = errors.New("limit of the export exceeded")
	// ErrHashMismatch: a block is not what its CID says.
	ErrHashMismatch = errors.New("block does not match its CID")
	// ErrMalformed: a block cannot be decoded with its CID's codec.
	ErrMalformed = errors.New("malformed block")
	// ErrUnknownCodec: nothing here decodes the codec of a CID.
	ErrUnknownCodec = errors.New("unknown codec")
)

// LimitError says which bound of the options a walk passed, and where.
type LimitError struct {
	// What is "links deep", "links", "links of one block", "links waiting", "blocks",
	// "bytes", "bytes of one block" or "nodes".
	What  string
	Limit uint64
	Cid   cid.Cid // the block at which it was passed
	Depth int     // links from a root
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("block %s, %d links from the root: more than %d %s; raise the limit if the DAG is to be trusted", e.Cid, e.Depth, e.Limit, e.What)
}

func (e *LimitError) Unwrap() error { return ErrLimit }

// BlockError says at which block an export ended, and why: an ipld.ErrNotFound, an error
// of the source, ErrHashMismatch, ErrMalformed or ErrUnknownCodec.
type BlockError struct {
	Cid   cid.Cid
	Depth int    // links from a root
	Path  string // from the root, in a selector's walk
	Err   error
}

func (e *BlockError) Error() string {
	at := ""
	if e.Path != "" {
		at = fmt.Sprintf(" at %q", e.Path)
	}
	return fmt.Sprintf("block %s%s, %d links from the root: %v", e.Cid, at, e.Depth, e.Err)
}

func (e *BlockError) Unwrap() error { return e.Err }

const (
	defaultDepth      = 10_000
	defaultLinks      = 100_000_000
	defaultBlockLinks = 1_000_000
	defaultPending    = 4_000_000
	defaultBlocks     = 10_000_000
	defaultBlockSize  = 32 << 20
)

func (o Options) withDefaults() (Options, error) {
	for code, d := range o.Decoders {
		if d.Decode == nil {
			return o, fmt.Errorf("the decoder of codec %#x is nil", code)
		}
	}
	for name, r := range o.Reifiers {
		if r == nil {
			return o, fmt.Errorf("the reifier %q is nil", name)
		}
	}
	if o.MaxDepth < 0 || o.MaxBlockLinks < 0 || o.MaxPending < 0 || o.MaxBlockSize < 0 {
		return o, errors.New("a negative limit")
	}
	orInt := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	orUint := func(v *uint64, def uint64) {
		if *v == 0 {
			*v = def
		}
	}
	orInt(&o.MaxDepth, defaultDepth)
	orUint(&o.MaxLinks, defaultLinks)
	orInt(&o.MaxBlockLinks, defaultBlockLinks)
	orInt(&o.MaxPending, defaultPending)
	orUint(&o.MaxBlocks, defaultBlocks)
	orUint(&o.MaxBytes, 1<<63-1)
	orInt(&o.MaxBlockSize, defaultBlockSize)
	return o, nil
}

// Sources is several sources as one: a block comes from the first that has it and serves
// it. If none does, the error is not-found only if all say so.
func Sources(all ...Source) Source { return sources(all) }

type sources []Source

func (s sources) View(ctx context.Context, c cid.Cid, fn func(data []byte) error) error {
	var failed []error
	for _, src := range s {
		var ofFn error
		seen := false
		err := src.View(ctx, c, func(data []byte) error {
			seen = true
			ofFn = fn(data)
			return ofFn
		})
		switch {
		case ofFn != nil && !errors.Is(ofFn, ErrHashMismatch):
			return ofFn
		case err == nil && ofFn == nil && seen:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && ofFn == nil:
			err = errNoBlock
		case ofFn != nil: // it serves bytes that are not the block's
			err = ofFn
		}
		if !ipld.IsNotFound(err) {
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return errors.Join(failed...)
	}
	return ipld.ErrNotFound{Cid: c}
}
