package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"slices"

	"github.com/ipfs/go-cid"
	carindex "github.com/ipld/go-car/v2/index"
	"github.com/multiformats/go-multicodec"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/cids"
)

// What [Build] finds wrong with a file is an [*SourceError] of one of these kinds.
// Errors of the reader are never of these kinds.
var (
	// ErrMalformed: the bytes are not a CAR.
	ErrMalformed = carscan.ErrMalformed
	// ErrNotFinalised: a CARv2 whose writer stopped before the end, or still writes: its
	// header was never filled in. It is ErrMalformed too.
	ErrNotFinalised = carscan.ErrNotFinalised
	// ErrTruncated: the file ends before what it promises.
	ErrTruncated = carscan.ErrTruncated
	// ErrLimit: a bound of BuildOptions was exceeded.
	ErrLimit = carscan.ErrLimit
	// ErrHashMismatch: a block does not hash to its CID.
	ErrHashMismatch = carscan.ErrHashMismatch
	// ErrUnsupportedHash: a hash function or digest length that proves nothing.
	ErrUnsupportedHash = carscan.ErrUnsupportedHash
	// ErrUnsupportedVersion: a CAR version other than 1 and 2.
	ErrUnsupportedVersion = carscan.ErrUnsupportedVersion
)

// SourceError says what is wrong with a CAR and where: fields Offset, What and Err,
// the kind.
type SourceError = carscan.Error

// Skipped are sections that were left out of an index: how many, and the first of them.
type Skipped = carscan.Skipped

// SkippedSection is one of [Skipped].
type SkippedSection = carscan.SkippedSection

// BuildOptions bounds and directs [Build]. The zero value is safe for the files of
// strangers.
type BuildOptions struct {
	// SkipVerify leaves block hashes unchecked.
	SkipVerify bool
	// Workers hash in parallel; 0 means GOMAXPROCS.
	Workers int
	// MaxHeaderBytes, MaxRoots, MaxSectionBytes, MaxRecords; 0 means 1 MiB, 4,096,
	// 32 MiB, 1<<32 - 1. MaxSectionBytes is 1 GiB at most.
	MaxHeaderBytes  int
	MaxRoots        int
	MaxSectionBytes int
	MaxRecords      uint64
	// SkipUnsupported leaves out of the index the blocks whose hashes nothing here can
	// check (functions that are not known, digests under 20 bytes, identity of more than
	// 128), in place of ErrUnsupportedHash. [Draft.Skipped] lists them. They are then in
	// the file and not found.
	SkipUnsupported bool
	// Progress, if set, is told after every chunk how many bytes of the source and
	// how many blocks are done. Calls do not overlap and hold up the work.
	Progress func(bytes, blocks uint64)
	// TrustEmbeddedIndex adopts the index inside a CARv2 after checking every entry
	// against the header of the section that it names, instead of scanning: blocks
	// are then not hashed, and blocks that the index leaves out are not indexed. For
	// sources that are trusted. A file without an embedded MultihashIndexSorted is
	// scanned; one whose index is false is an error. Zeros behind the index are padding,
	// as in a Filecoin piece.
	TrustEmbeddedIndex bool
	// Spill makes temporary files for what does not fit Memory, a few at most for a
	// build; nil keeps everything in memory, at some 70 bytes a block. Repositories
	// that can make them are a [Spiller]. Whoever sets it closes the draft.
	Spill func() (ScratchFile, error)
	// Memory is how many bytes of heap a build with Spill may take, beside what the
	// scan reads into (some MiB); 0 means 128 MiB, the least is 1 MiB. It bounds how
	// much is sorted at once: a draft that spilled takes a few MiB.
	Memory int64
	// Pool, if set, is memory that this build shares with others, up to Memory.
	Pool *MemoryPool
	// WriteProgress, if set, is told while the draft is written as an index how many of
	// its records are. Calls for one file do not overlap.
	WriteProgress func(records, total uint64)
}

func (o BuildOptions) scan() carscan.Options {
	return carscan.Options{
		MaxHeaderBytes:  o.MaxHeaderBytes,
		MaxRoots:        o.MaxRoots,
		MaxSectionBytes: o.MaxSectionBytes,
		MaxRecords:      o.MaxRecords,
		SkipVerify:      o.SkipVerify,
		SkipUnsupported: o.SkipUnsupported,
		Workers:         o.Workers,
		Progress:        o.Progress,
	}
}

// Build scans a CARv1 or CARv2 of size bytes and drafts its index: every section,
// identity CIDs and duplicates included. Errors of r come back as they are; what is
// wrong with the file is a [*SourceError].
func Build(ctx context.Context, r io.ReaderAt, size int64, opts BuildOptions) (*Draft, error) {
	if opts.TrustEmbeddedIndex {
		idx, err := embeddedIndex(r, size, opts)
		if err != nil {
			return nil, err
		}
		if idx != nil {
			return DraftFromIndex(ctx, idx, r, size, opts)
		}
	}
	return drafting(ctx, &opts, func(d *drafter) (header, error) {
		sum, err := carscan.Scan(ctx, r, size, opts.scan(), func(rec *carscan.Record) error {
			return d.add(rec.Code, rec.Digest, Entry{rec.Offset, rec.HeaderLen, rec.Size})
		})
		if err != nil {
			return header{}, err
		}
		d.skipped = sum.Skipped
		return header{payload: sum.PayloadBytes, binding: bindingOf(&sum.Layout, size, sum.Digest)}, nil
	})
}

// drafting makes a draft of what collect adds. What was spilled for a draft that did
// not come about is removed, after a panic too.
func drafting(ctx context.Context, opts *BuildOptions, collect func(*drafter) (header, error)) (out *Draft, err error) {
	d := drafter{ctx: ctx, spill: newSpill(opts), told: opts.WriteProgress}
	defer func() {
		if out == nil {
			d.close()
		}
	}()
	head, err := collect(&d)
	if err != nil {
		return nil, err
	}
	return d.draft(head)
}

func bindingOf(l *carscan.Layout, size int64, content [32]byte) Binding {
	return Binding{
		SourceSize:    uint64(size),
		CARVersion:    l.Version,
		DataOffset:    l.DataOffset,
		DataSize:      l.DataSize,
		HeaderLen:     uint64(len(l.Header)),
		HeaderDigest:  l.HeaderDigest,
		ContentDigest: content,
	}
}

// embeddedIndex reads the index inside a CARv2; nil if there is none of use.
func embeddedIndex(r io.ReaderAt, size int64, opts BuildOptions) (carindex.IterableIndex, error) {
	l, err := carscan.ReadLayout(r, size, opts.scan())
	if err != nil {
		return nil, err
	}
	if l.IndexOffset == 0 || l.IndexOffset == uint64(size) {
		return nil, nil
	}
	at := int64(l.IndexOffset)
	section := io.NewSectionReader(filled{r}, at, size-at)
	if codec, err := foreignCodec(section); err != nil || codec != multicodec.CarMultihashIndexSorted {
		return nil, err
	}
	n, err := foreignLength(section, section.Size())
	if err != nil {
		return nil, fmt.Errorf("embedded index: %w", err)
	}
	if err := checkPadding(section, n, section.Size()); err != nil {
		return nil, fmt.Errorf("embedded index: %w", err)
	}
	idx, err := ReadForeignIndex(section, n)
	if err != nil {
		return nil, fmt.Errorf("embedded index: %w", err)
	}
	return idx.(carindex.IterableIndex), nil
}

// paddingLooked is how much of what follows an embedded index is looked at. The padding
// of a piece is up to half of it; who trusts the index is spared reading that.
const paddingLooked = 1 << 20

// checkPadding says whether from n to size there are zeros.
func checkPadding(r io.ReaderAt, n, size int64) error {
	buf := make([]byte, min(size-n, paddingLooked))
	if got, err := carscan.FillAt(r, buf, n); err != nil && !errors.Is(err, io.EOF) {
		return err
	} else if got < len(buf) {
		return fmt.Errorf("%w: the source ends %d bytes early", ErrBadIndex, len(buf)-got)
	}
	if i := bytes.IndexFunc(buf, func(c rune) bool { return c != 0 }); i >= 0 {
		return fmt.Errorf("%w: bytes after its end that are not zero, at %d of %d", ErrBadIndex, n+int64(i), size)
	}
	return nil
}

// filled reads on where a reader of others gives less than was asked for.
type filled struct{ r io.ReaderAt }

func (f filled) ReadAt(p []byte, at int64) (int, error) { return carscan.FillAt(f.r, p, at) }

// DraftFromIndex drafts an index from one that somebody else made over the same
// source. Each section header is read at its offset, to learn the sizes and to see
// that the block named is there; blocks are not hashed. The content digest covers the
// sections that idx lists, so it equals that of [Build] if idx lists them all. What
// is wrong with idx wraps [ErrBadIndex].
//
// An idx that is no carindex.IterableIndex (an IndexSorted is not) cannot say what it
// lists: then the source is scanned, as Build does it, and idx is asked about each
// section.
//
// Beside what [Build] takes it takes 8 bytes a record, which BuildOptions.Memory does
// not bound: idx, which is the caller's, takes more.
func DraftFromIndex(ctx context.Context, idx carindex.Index, r io.ReaderAt, size int64, opts BuildOptions) (*Draft, error) {
	it, ok := idx.(carindex.IterableIndex)
	if !ok {
		return draftByAsking(ctx, idx, r, size, opts)
	}
	l, err := carscan.ReadLayout(r, size, opts.scan())
	if err != nil {
		return nil, err
	}
	offsets, claimed, err := claims(it, opts.MaxRecords)
	if err != nil {
		return nil, err
	}
	slices.Sort(offsets)
	sections := sectionReader{r: newWindow(r, size), layout: l, opts: opts.scan(), digest: carscan.NewContentDigest(l.Header), claims: claimed.seeded()}
	return drafting(ctx, &opts, func(d *drafter) (header, error) {
		sections.drafter = d
		if err := sections.readAll(ctx, offsets, opts.Progress); err != nil {
			return header{}, err
		}
		if sections.claims.sum != claimed.sum {
			return header{}, fmt.Errorf("%w: it names blocks that are not at the offsets it gives", ErrBadIndex)
		}
		d.skipped = sections.skipped
		offsets = nil // not wanted while the draft is sorted
		return header{payload: sections.payload, binding: bindingOf(l, size, sections.digest.Sum())}, nil
	})
}

// draftByAsking scans the source and keeps the sections that idx knows.
func draftByAsking(ctx context.Context, idx carindex.Index, r io.ReaderAt, size int64, opts BuildOptions) (*Draft, error) {
	l, err := carscan.ReadLayout(r, size, opts.scan())
	if err != nil {
		return nil, err
	}
	content := carscan.NewContentDigest(l.Header)
	payload := uint64(0)
	keep := func(d *drafter, rec *carscan.Record) error {
		c, err := cid.Cast(bytes.Clone(rec.CID))
		if err != nil {
			return fmt.Errorf("section at %d: %w", rec.Offset, err)
		}
		listed := false
		err = idx.GetAll(c, func(at uint64) bool {
			listed = at == rec.Offset
			return !listed
		})
		if err != nil && !errors.Is(err, carindex.ErrNotFound) {
			return fmt.Errorf("index of type %T: %w", idx, err)
		}
		if !listed {
			return nil
		}
		content.Add(rec)
		payload += uint64(rec.Size)
		return d.add(rec.Code, rec.Digest, Entry{rec.Offset, rec.HeaderLen, rec.Size})
	}
	return drafting(ctx, &opts, func(d *drafter) (header, error) {
		sum, err := carscan.Scan(ctx, r, size, opts.scan(), func(rec *carscan.Record) error { return keep(d, rec) })
		d.skipped = sum.Skipped
		return header{payload: payload, binding: bindingOf(l, size, content.Sum())}, err
	})
}

// claimSet is a fingerprint of a set of (multihash, offset) pairs, whatever their
// order: the sum of their hashes under a secret seed.
type claimSet struct {
	seed maphash.Seed
	sum  uint64
}

func (c *claimSet) seeded() claimSet { return claimSet{seed: c.seed} }

func (c *claimSet) add(code uint64, digest []byte, offset uint64) {
	type pair struct{ code, offset, digest uint64 }
	c.sum += maphash.Comparable(c.seed, pair{code, offset, maphash.Bytes(c.seed, digest)})
}

// claims lists the offsets of an index and fingerprints its entries.
func claims(it carindex.IterableIndex, limit uint64) (offsets []uint64, set claimSet, err error) {
	if limit == 0 || limit > maxRecords {
		limit = maxRecords
	}
	set.seed = maphash.MakeSeed()
	err = it.ForEach(func(mh multihash.Multihash, offset uint64) error {
		code, digest, ok := cids.Split(mh)
		if !ok {
			return fmt.Errorf("%w: entry %d is not a multihash", ErrBadIndex, len(offsets))
		}
		if uint64(len(offsets)) >= limit {
			return fmt.Errorf("index: %w: more than %d records", ErrLimit, limit)
		}
		set.add(code, digest, offset)
		offsets = append(offsets, offset)
		return nil
	})
	return offsets, set, err
}

// sectionReader reads the section headers that an index names, in file order.
type sectionReader struct {
	r       *window
	layout  *carscan.Layout
	opts    carscan.Options
	digest  *carscan.ContentDigest
	claims  claimSet
	drafter *drafter
	payload uint64
	skipped Skipped
}

func (s *sectionReader) readAll(ctx context.Context, offsets []uint64, progress func(bytes, blocks uint64)) error {
	var (
		buf [carscan.MaxSectionHeader]byte
		rec carscan.Record
		end uint64
	)
	for i, offset := range offsets {
		if i%1024 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if progress != nil {
				progress(s.layout.DataOffset+offset, uint64(i))
			}
		}
		if offset < end {
			return fmt.Errorf("%w: an entry at %d lies inside the section before it, which ends at %d", ErrBadIndex, offset, end)
		}
		err := carscan.SectionAt(s.r, s.layout, offset, s.opts, buf[:], &rec)
		left := s.opts.SkipUnsupported && errors.Is(err, ErrUnsupportedHash)
		if err != nil && !left {
			if e := (*carscan.Error)(nil); errors.As(err, &e) {
				return fmt.Errorf("%w: no section at %d: %w", ErrBadIndex, offset, err)
			}
			return err
		}
		end = offset + uint64(rec.HeaderLen) + uint64(rec.Size)
		s.claims.add(rec.Code, rec.Digest, offset)
		s.digest.Add(&rec)
		if left {
			s.skipped.Note(&rec, len(rec.Digest))
			continue
		}
		s.payload += uint64(rec.Size)
		if err := s.drafter.add(rec.Code, rec.Digest, Entry{offset, rec.HeaderLen, rec.Size}); err != nil {
			return err
		}
	}
	return nil
}

// ImportIndex drafts an index without looking at a source: block sizes are unknown,
// and the index is bound to nothing. The draft is in memory, as idx mostly is.
func ImportIndex(idx carindex.IterableIndex) (*Draft, error) {
	var d drafter
	err := idx.ForEach(func(mh multihash.Multihash, offset uint64) error {
		code, digest, ok := cids.Split(mh)
		if !ok {
			return fmt.Errorf("%w: entry %d is not a multihash", ErrBadIndex, d.n)
		}
		return d.add(code, digest, Entry{Offset: offset})
	})
	if err != nil {
		return nil, err
	}
	return d.finish(header{flags: flagSizesUnknown | flagUnbound}), nil
}

// window makes many small reads in ascending order cheap: it reads ahead, much where
// the reads are dense and little where they are not.
type window struct {
	r    io.ReaderAt
	size int64
	buf  []byte
	at   int64 // of buf[:n] in r
	n    int
	want int
}

const (
	windowMax = 256 << 10
	windowMin = 512
)

func newWindow(r io.ReaderAt, size int64) *window {
	n := int(min(size, windowMax))
	return &window{r: r, size: size, buf: make([]byte, n), want: n}
}

func (w *window) ReadAt(p []byte, at int64) (int, error) {
	if at < w.at || at+int64(len(p)) > w.at+int64(w.n) {
		if at > w.at+2*int64(w.want) {
			w.want = max(w.want/4, windowMin)
		} else {
			w.want *= 2
		}
		n := min(int64(max(w.want, len(p))), int64(len(w.buf)), w.size-at)
		w.want = min(w.want, len(w.buf))
		if n < int64(len(p)) {
			return w.r.ReadAt(p, at)
		}
		var err error
		w.at = at
		if w.n, err = w.r.ReadAt(w.buf[:n], at); w.n < len(p) {
			n := copy(p, w.buf[:w.n])
			w.n = 0
			return n, err
		}
	}
	return copy(p, w.buf[at-w.at:w.n]), nil
}
