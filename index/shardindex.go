package index

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/mapped"
	"github.com/dagstore/dagstore/shard"
)

// Entry says where a block lies.
type Entry struct {
	// Offset of the section from the start of the CARv1 payload, as in go-car's
	// indices. The block's data begins at Offset + HeaderLen.
	Offset uint64
	// HeaderLen is the length of the section's length prefix and CID; 0 if unknown.
	HeaderLen int
	// Size is the length of the block's data; -1 if unknown.
	Size int
}

// ShardIndex is an open shard index. Methods may be called concurrently. It
// implements go-car's Index and IterableIndex.
//
// It holds the header in memory and nothing else: whatever a lookup needs is read
// from the mapping or the file when it is needed, and checked before it is believed.
type ShardIndex struct {
	core *indexCore
}

// indexCore is what outlives the ShardIndex while a cleanup may still close it.
type indexCore struct {
	header
	name string
	// data is memory: all of the file, or the mapping of table, of which only what the
	// table holds is read. What is not in data is read from src, the table if there is one.
	data  []byte
	table *mapped.Table
	all   mapped.Warm // of data without a table
	src   io.ReaderAt
	close func() error

	// refs = lookups in progress, + closedBias once closed. Whoever brings it to
	// closedBias releases the file.
	refs     atomic.Int64
	closed   atomic.Bool
	release  sync.Once
	closeErr error
}

const closedBias = -1 << 62

// enter begins a use of the file; false means that the index is closed.
func (c *indexCore) enter() bool {
	if c.refs.Add(1) > 0 {
		return true
	}
	c.leave()
	return false
}

// enter is the core's enter. It keeps x reachable until the use has begun: a cleanup
// must not close the index under a caller whose last mention of it is this call.
func (x *ShardIndex) enter() bool {
	ok := x.core.enter()
	runtime.KeepAlive(x)
	return ok
}

func (c *indexCore) leave() {
	if c.refs.Add(-1) == closedBias {
		c.releaseOnce()
	}
}

func (c *indexCore) shut() {
	if c.closed.CompareAndSwap(false, true) && c.refs.Add(closedBias) == closedBias {
		c.releaseOnce()
	}
}

func (c *indexCore) releaseOnce() {
	c.release.Do(func() {
		if c.close != nil {
			c.closeErr = c.close()
		}
	})
}

// OpenIndex opens index bytes that a [Draft] wrote, wherever they are. name stands
// for them in errors; closer, if not nil, is closed with the index.
func OpenIndex(r io.ReaderAt, size int64, name string, closer io.Closer) (*ShardIndex, error) {
	c := &indexCore{name: name, src: r}
	if closer != nil {
		c.close = closer.Close
	}
	return c.open(r, size)
}

// openBytes opens an index in memory that is never changed.
func openBytes(b []byte, name string) (*ShardIndex, error) {
	c := &indexCore{name: name, data: b, all: mapped.AllWarm(int64(len(b))), src: bytesAt(b)}
	return c.open(c.src, int64(len(b)))
}

// openFile opens an index file, mapped if the file system can.
func openFile(fsys fsio.FS, name string) (*ShardIndex, error) {
	f, err := mapped.Open(fsys, name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !info.Mode().IsRegular() {
		return nil, errors.Join(&DamagedError{File: name, What: "not a regular file"}, f.Close())
	}
	t, err := mapped.NewTable(fsys, f, name)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c := &indexCore{name: name, data: t.Data(), table: t, src: t, close: t.Close}
	x, err := c.open(onceReader{t}, t.Size()) // an index that is only open takes nothing that grows with it
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return x, nil
}

// open reads and checks the header.
func (c *indexCore) open(r io.ReaderAt, size int64) (*ShardIndex, error) {
	if err := c.readHeader(r, size); err != nil {
		return nil, err
	}
	x := &ShardIndex{core: c}
	// go-car's Index has no Close: an index that a client of FullIndexRepo lets go
	// of gives its file back here.
	runtime.AddCleanup(x, (*indexCore).shut, c)
	return x, nil
}

func (c *indexCore) readHeader(r io.ReaderAt, size int64) error {
	buf := pageBuffers.Get().(*pageBuffer)
	defer pageBuffers.Put(buf)
	first := buf[:min(int64(len(buf)), max(size, 0))]
	if err := c.readAt(r, first, 0); err != nil {
		return err
	}
	n, what := headerLength(first, size)
	if what != "" {
		return c.damaged(0, what)
	}
	if n > len(first) {
		all := make([]byte, n) // n ≤ size
		if err := c.readAt(r, all, 0); err != nil {
			return err
		}
		first = all
	}
	what, newer := c.header.decode(first[:n], size)
	switch {
	case newer:
		return fmt.Errorf("%w: %s: %s, this release reads %d", ErrNewerFormat, c.name, what, formatVersion)
	case what != "":
		return c.damaged(0, what)
	}
	return nil
}

// readAt fills b or says why not: a file that ends early is damaged, any other
// failure to read is not.
func (c *indexCore) readAt(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	switch {
	case n == len(b):
		return nil
	case errors.Is(err, io.EOF):
		return c.damaged(uint64(at)+uint64(n), "the file ends here")
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

func (c *indexCore) damaged(at uint64, what string) error {
	return &DamagedError{File: c.name, Offset: int64(at), What: what}
}

// bytesAt reads from memory.
type bytesAt []byte

func (b bytesAt) ReadAt(p []byte, at int64) (int, error) {
	if at >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close releases the index. A lookup in progress ends well; a later one gets
// ErrClosed. Idempotent.
func (x *ShardIndex) Close() error {
	x.core.shut()
	if x.core.refs.Load() == closedBias {
		x.core.releaseOnce() // waits for a release under way, to have its error
		return x.core.closeErr
	}
	return nil
}

// Len counts the records, duplicates included.
func (x *ShardIndex) Len() uint64 { return x.core.records }

// Info sums up the index and its source.
func (x *ShardIndex) Info() shard.IndexInfo { return x.core.info() }

// Binding says which source the index was built from; false if it is unbound
// (imported without a source).
func (x *ShardIndex) Binding() (Binding, bool) {
	return x.core.binding, x.core.flags&flagUnbound == 0
}

// SizesKnown says whether entries carry HeaderLen and Size.
func (x *ShardIndex) SizesKnown() bool { return x.core.flags&flagSizesUnknown == 0 }

// Find returns the entry of a multihash in binary form; of several the one with the
// lowest offset. It does not allocate.
//
// "Not found" rests on records whose checksums were right a moment ago; an entry on
// records whose checksums were right at some time since the index was opened. Who
// believes an entry without checking the block that it leads to, or finds that the
// block is not there, asks [ShardIndex.FindChecked].
func (x *ShardIndex) Find(mh string) (Entry, bool, error) {
	return x.find(unsafe.Slice(unsafe.StringData(mh), len(mh)), false)
}

// FindChecked is Find, and every answer rests on records whose checksums were right a
// moment ago. It takes some 50 ns longer.
func (x *ShardIndex) FindChecked(mh string) (Entry, bool, error) {
	return x.find(unsafe.Slice(unsafe.StringData(mh), len(mh)), true)
}

// FindMultihash is Find for a byte slice.
func (x *ShardIndex) FindMultihash(mh multihash.Multihash) (Entry, bool, error) {
	return x.find(mh, false)
}

func (x *ShardIndex) find(mh []byte, again bool) (Entry, bool, error) {
	c := x.core
	g, digest, err := c.group(mh)
	if err != nil {
		return Entry{}, false, err
	}
	if !x.enter() {
		return Entry{}, false, ErrClosed
	}
	defer c.leave()
	if g == nil {
		return Entry{}, false, nil
	}
	f, err := c.search(g, digest, again)
	if err != nil || !f.match {
		return Entry{}, false, err
	}
	return f.entry, true, nil
}

// FindInMemory is Find of what is known to be in memory. known is false if the answer
// would have to be read from the file: then who has several to find does so in some order,
// or several at a time.
func (x *ShardIndex) FindInMemory(mh string) (e Entry, found, known bool, err error) {
	c := x.core
	g, digest, err := c.group(unsafe.Slice(unsafe.StringData(mh), len(mh)))
	if err != nil {
		return Entry{}, false, false, err
	}
	if !x.enter() {
		return Entry{}, false, false, ErrClosed
	}
	defer c.leave()
	if g == nil || c.data == nil {
		return Entry{}, false, g == nil, nil
	}
	f, known, err := c.probeMemory(g, digest)
	if err != nil || !known || !f.match {
		return Entry{}, false, known && err == nil, err
	}
	return f.entry, true, true, nil
}

// FindAll calls yield for every entry of a multihash in the order of their offsets,
// until yield returns false. No call means not found.
func (x *ShardIndex) FindAll(mh string, yield func(Entry) bool) error {
	c := x.core
	g, digest, err := c.group(unsafe.Slice(unsafe.StringData(mh), len(mh)))
	if err != nil {
		return err
	}
	if !x.enter() {
		return ErrClosed
	}
	defer c.leave()
	if g == nil {
		return nil
	}
	f, err := c.search(g, digest, true)
	if err != nil || !f.match {
		return err
	}
	return c.eachRecord(g, f.index, func(d []byte, e Entry) error {
		if string(d) != string(digest) || !yield(e) {
			return errStop
		}
		return nil
	})
}

// errStop ends an iteration early and is told to nobody.
var errStop = errors.New("stop")

// eachRecord visits the records of g from number first on. The visitor gets a copy, of
// pages that were read and checked together: the first alone, and then more.
func (c *indexCore) eachRecord(g *group, first uint64, visit func(digest []byte, e Entry) error) error {
	buf := recordChunks.Get().(*recordChunk)
	defer recordChunks.Put(buf)
	n := int(g.recordLen())
	skip := int(first % uint64(g.perPage))
	together := uint64(1)
	for page := first / uint64(g.perPage); page < g.numPages(); {
		last := min(page+together, g.numPages()) - 1
		at, _ := g.page(page)
		end, size := g.page(last)
		b := buf[:end+size-at]
		if err := c.readOnce(b, at); err != nil {
			return err
		}
		for ; page <= last; page++ {
			at, size := g.page(page)
			records, err := c.pageIn(b[:size], at)
			if err != nil {
				return err
			}
			b = b[size:]
			for r := records[skip*n:]; len(r) > 0; r = r[n:] {
				switch err := visit(r[:g.digestLen], c.entry(r[g.digestLen:])); {
				case err == errStop:
					return nil
				case err != nil:
					return err
				}
			}
			skip = 0
		}
		together = min(together*8, uint64(len(buf))/g.pageLen())
	}
	return nil
}

// recordChunk is what is read at once of an index that is read in order.
type recordChunk [64 << 10]byte

var recordChunks = sync.Pool{New: func() any { return new(recordChunk) }}

// readOnce is readAt for who reads in order, what the disk has and not what may be mapped.
func (c *indexCore) readOnce(b []byte, at uint64) error {
	if c.table != nil {
		return c.readAt(onceReader{c.table}, b, int64(at))
	}
	return c.readAt(c.src, b, int64(at))
}

// onceReader reads a table without remembering that.
type onceReader struct{ t *mapped.Table }

func (r onceReader) ReadAt(p []byte, off int64) (int, error) { return r.t.ReadOnce(p, off) }

// Entries calls yield for every record in index order. The multihash is valid during
// the call only. An error of yield ends the iteration and is returned as it is.
func (x *ShardIndex) Entries(yield func(multihash.Multihash, Entry) error) error {
	c := x.core
	if !x.enter() {
		return ErrClosed
	}
	defer c.leave()
	for i := range c.groups {
		g := &c.groups[i]
		mh := multihashPrefix(g)
		head := len(mh)
		err := c.eachRecord(g, 0, func(digest []byte, e Entry) error {
			mh = append(mh[:head], digest...)
			return yield(mh, e)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Multihashes iterates over the multihashes in index order, duplicates included.
func (x *ShardIndex) Multihashes() MultihashIterator { return indexMultihashes{x} }

type indexMultihashes struct{ x *ShardIndex }

func (it indexMultihashes) ForEach(visit func(mh multihash.Multihash) error) error {
	return it.x.Entries(func(mh multihash.Multihash, _ Entry) error { return visit(mh) })
}

// group splits a multihash and returns the group that would hold it, nil if there is
// none.
func (c *indexCore) group(mh []byte) (*group, []byte, error) {
	code, digest, ok := cids.Split(mh)
	if !ok {
		return nil, nil, fmt.Errorf("index: %d bytes that are not a multihash: %x", len(mh), mh[:min(len(mh), 64)])
	}
	if len(c.groups) > 8 {
		i, found := slices.BinarySearchFunc(c.groups, 0, func(g group, _ int) int {
			switch {
			case g.before(code, len(digest)):
				return -1
			case g.code == code && int(g.digestLen) == len(digest):
				return 0
			}
			return 1
		})
		if !found {
			return nil, digest, nil
		}
		return &c.groups[i], digest, nil
	}
	for i := range c.groups {
		if g := &c.groups[i]; g.code == code && int(g.digestLen) == len(digest) {
			return g, digest, nil
		}
	}
	return nil, digest, nil
}

// draft drafts a copy of the index.
func (x *ShardIndex) draft() (*Draft, error) {
	var d drafter
	err := x.Entries(func(mh multihash.Multihash, e Entry) error {
		code, digest, _ := cids.Split(mh)
		e.Size = max(e.Size, 0)
		return d.add(code, digest, e)
	})
	if err != nil {
		return nil, err
	}
	c := x.core
	return d.finish(header{flags: c.flags, payload: c.payload, binding: c.binding}), nil
}
