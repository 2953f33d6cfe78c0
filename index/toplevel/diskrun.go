package toplevel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/mapped"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// diskRun is a run on disk. It is immutable. Its filters and ingests are kept in memory;
// its buckets are read through a mapping if they are known to be in memory, and else by
// system calls. The mapping goes with the last state that the run is in: inuse.go.
type diskRun struct {
	footer
	name string
	seq  uint64
	size uint64
	// sets counts the sets of runs that it is in.
	sets atomic.Int64
	// closing closes file, once.
	closing *closing
	// file is read where data need not be in memory; nil: all of data is.
	file    *mapped.Table
	data    []byte
	all     mapped.Warm // of data without a file
	filters *filters
	retired bool // guarded by filters.mu
	parts   []part
	// kept is ingests and keys, once they were read and checked.
	kept struct {
		sync.Mutex
		mem atomic.Pointer[[]byte]
	}
	// big holds the offsets of large buckets that were checked where they are mapped.
	big sync.Map
}

// openRun opens the run of a file. want is the checksum of its footer if that is known.
func openRun(fsys fsio.FS, name string, id uint64, want *uint32, filters *filters) (_ *diskRun, err error) {
	f, err := mapped.Open(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &DamagedError{File: name, What: "the file is missing"}
	}
	if err != nil {
		return nil, err
	}
	r := &diskRun{name: name, filters: filters}
	_, maps := f.(fsio.Mapper)
	if _, memory := f.(fsio.MemoryMapper); memory || !maps {
		defer f.Close() // was only read
		if r.data, err = io.ReadAll(f); err != nil {
			return nil, fmt.Errorf("top-level index: read %s: %w", name, err)
		}
		if err := r.open(id, want); err != nil {
			return nil, err
		}
		return r, nil
	}
	if r.file, err = mapped.NewTable(fsys, f, name); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r.data = r.file.Data()
	if err := r.open(id, want); err != nil {
		return nil, errors.Join(err, r.file.Close())
	}
	// A run that was never shown, of an index that was given up while it was made, goes
	// with the garbage.
	r.closing = &closing{file: r.file}
	runtime.AddCleanup(r, (*closing).close, r.closing)
	return r, nil
}

// closing gives up what a run has of the system.
type closing struct {
	once sync.Once
	file *mapped.Table
}

func (c *closing) close() {
	c.once.Do(func() { _ = c.file.Close() }) // it was only read
}

// close gives up what the run has of the system. Nobody looks into it any more.
func (r *diskRun) close() {
	if r.closing != nil {
		r.closing.close()
	}
}

func (r *diskRun) open(id uint64, want *uint32) error {
	if r.size = uint64(len(r.data)); r.file != nil {
		r.size = uint64(r.file.Size())
	} else {
		r.all = mapped.AllWarm(int64(r.size))
	}
	size := r.size
	if size < headerLen+footerLen {
		return r.damaged(size, "the file ends here")
	}
	header, err := r.readOnce(0, headerLen, nil)
	if err != nil {
		return err
	}
	what, newer := decodeHeader(header, id)
	switch {
	case newer:
		return fmt.Errorf("%w: %s: %s, this release reads %d", ErrNewerFormat, r.name, what, runVersion)
	case what != "":
		return r.damaged(0, what)
	}
	foot, err := r.readOnce(size-footerLen, footerLen, nil)
	if err != nil {
		return err
	}
	if what := r.footer.decode(foot, size); what != "" {
		return r.damaged(size-footerLen, what)
	}
	if want != nil && r.footer.crc != *want || r.footer.header != binary.LittleEndian.Uint32(header[headerLen-crcLen:]) {
		return r.damaged(size-footerLen, "a footer that is not the one that was written")
	}
	dir, err := r.readOnce(r.dirAt, size-footerLen-r.dirAt, nil)
	if err != nil {
		return err
	}
	if crc32.Checksum(dir, castagnoli) != r.dirCRC {
		return r.damaged(r.dirAt, "checksum of the directory")
	}
	r.parts = make([]part, 1<<r.partBits)
	at, entries := uint64(headerLen), uint64(0)
	for i := range r.parts {
		p := &r.parts[i]
		what := p.decode(dir[i*dirLen:])
		if what == "" && (p.at != at || p.size(int(r.width)) > r.ingestsAt-at) {
			what = "its place"
		}
		if what != "" {
			return r.damaged(r.dirAt+uint64(i)*dirLen, fmt.Sprintf("partition %d: %s", i, what))
		}
		at += p.size(int(r.width))
		entries += uint64(p.entries)
	}
	if at != r.ingestsAt || entries != r.entries {
		return r.damaged(r.dirAt, "partitions do not fill the file")
	}
	return nil
}

// warm says what of data is in memory.
func (r *diskRun) warm() mapped.Warm {
	if r.file == nil {
		return r.all
	}
	if planted.Bug("toplevel-mapping-read-cold") {
		return mapped.AllWarm(int64(r.size))
	}
	return r.file.Warm()
}

// readOnce returns n bytes at offset at, which are in the file, for who will not soon
// come back: of data if that is memory, or in buf if they fit, which ends with the next.
func (r *diskRun) readOnce(at, n uint64, buf []byte) ([]byte, error) {
	if r.file == nil {
		return r.data[at : at+n], nil
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	got, err := r.file.ReadOnce(buf[:n], int64(at))
	return buf[:n], r.readError(at, n, got, err)
}

// readError says why not all of n bytes at an offset were read: a file that ends early is
// damaged, any other failure to read is not.
func (r *diskRun) readError(at, n uint64, got int, err error) error {
	switch {
	case got == int(n):
		return nil
	case errors.Is(err, io.EOF):
		return r.damaged(at+uint64(got), "the file ends here")
	case err == nil:
		err = io.ErrNoProgress
	}
	return fmt.Errorf("top-level index: read %s: %w", r.name, err)
}

func (r *diskRun) damaged(at uint64, what string) error {
	return &DamagedError{File: r.name, Offset: int64(at), What: what}
}

// guard has a fault on the mapping (a file that shrank underneath, a disk that fails) be a
// panic. It returns what debug.SetPanicOnFault is to be given back.
func (r *diskRun) guard() (old bool) { return debug.SetPanicOnFault(true) }

// fault returns the error for a recovered fault on the mapping, and panics again with
// anything else.
func (r *diskRun) fault(p any) error {
	if e, ok := p.(interface{ Addr() uintptr }); ok && len(r.data) > 0 {
		if at := e.Addr() - uintptr(unsafe.Pointer(unsafe.SliceData(r.data))); at < uintptr(len(r.data)) {
			return r.damaged(uint64(at), "the file cannot be read here; it was cut short or its disk fails")
		}
	}
	panic(p)
}

// passes says whether the run's filter lets a fingerprint through, or is not in memory.
func (r *diskRun) passes(f fingerprint) bool {
	p := &r.parts[partOf(f.hi, r.partBits)]
	if p.entries == 0 {
		return false
	}
	mem := p.mem.Load()
	if mem == nil {
		return true
	}
	if !p.used.Load() {
		p.used.Store(true)
	}
	return p.segment == 0 || p.has(mem, f.hi)
}

// find appends the numbers of the ingests that have f, the first so many, with the help of
// a buffer for buckets. The caller guards.
func (r *diskRun) find(f fingerprint, found []uint32, buf *[]byte, most int) ([]uint32, error) {
	p := &r.parts[partOf(f.hi, r.partBits)]
	if p.entries == 0 {
		return found, nil
	}
	mem := p.mem.Load()
	if mem == nil {
		var err error
		if mem, err = r.loadHead(p); err != nil {
			return found, err
		}
	} else if !p.used.Load() {
		p.used.Store(true)
	}
	if p.segment != 0 && !p.has(mem, f.hi) {
		return found, nil
	}
	b, err := r.bucket(p, p.ends(mem), bucketOf(f.hi, r.partBits, p.bits), buf)
	if err != nil {
		return found, err
	}
	n := digestPart + int(r.width)
	lo, hi := 0, len(b)/n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if e := b[mid*n:]; binary.LittleEndian.Uint64(e) < f.hi || binary.LittleEndian.Uint64(e) == f.hi && binary.LittleEndian.Uint32(e[8:]) < f.lo {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	for b = b[lo*n:]; len(b) > 0 && len(found) < most; b = b[n:] {
		e := decodeEntry(b, int(r.width))
		if !e.is(f) {
			break
		}
		if uint64(e.ingest) >= r.ingests {
			return found, r.damaged(p.at, "an ingest that does not exist")
		}
		found = append(found, e.ingest)
	}
	return found, nil
}

func decodeEntry(b []byte, width int) entry {
	e := entry{hi: binary.LittleEndian.Uint64(b), lo: binary.LittleEndian.Uint32(b[8:])}
	for i := range width {
		e.ingest |= uint32(b[digestPart+i]) << (8 * i)
	}
	return e
}

// place says where the entries of bucket i are, and how long they are; the checksum
// follows.
func (r *diskRun) place(p *part, ends []byte, i uint64) (at, n uint64, err error) {
	from, to := uint64(0), uint64(binary.LittleEndian.Uint32(ends[4*i:]))
	if i > 0 {
		from = uint64(binary.LittleEndian.Uint32(ends[4*i-4:]))
	}
	if from > to || to > uint64(p.entries) {
		return 0, 0, r.damaged(p.endsAt()+4*i, "the end of a bucket")
	}
	each := uint64(digestPart) + uint64(r.width)
	return p.bucketsAt() + from*each + i*crcLen, (to - from) * each, nil
}

// bucket returns the entries of a bucket after checking them, in buf if they are not known
// to be in memory.
func (r *diskRun) bucket(p *part, ends []byte, i uint64, buf *[]byte) ([]byte, error) {
	at, n, err := r.place(p, ends, i)
	if err != nil {
		return nil, err
	}
	if !r.warm().Holds(at, at+n+crcLen) {
		if uint64(cap(*buf)) < n+crcLen {
			*buf = make([]byte, n+crcLen)
		}
		b := (*buf)[:n+crcLen]
		got, err := r.file.ReadAt(b, int64(at))
		if err := r.readError(at, n+crcLen, got, err); err != nil {
			return nil, err
		}
		return r.checked(b, at)
	}
	b := r.data[at : at+n+crcLen]
	if n <= bigBucket {
		return r.checked(b, at)
	}
	if _, ok := r.big.Load(at); ok {
		return b[:n], nil
	}
	es, err := r.checked(b, at)
	if err == nil {
		r.big.Store(at, struct{}{})
	}
	return es, err
}

// checked returns the entries of the bucket b, which is at offset at, after checking them.
func (r *diskRun) checked(b []byte, at uint64) ([]byte, error) {
	n := len(b) - crcLen
	if crc32.Update(bucketSeed(at), castagnoli, b[:n]) != binary.LittleEndian.Uint32(b[n:]) && !planted.Bug("toplevel-bucket-not-checked") {
		return nil, r.damaged(at, "checksum of a bucket")
	}
	return b[:n], nil
}

// names returns ingests and keys, which are read and checked once, and kept.
func (r *diskRun) names() ([]byte, error) {
	if b := r.kept.mem.Load(); b != nil {
		return *b, nil
	}
	r.kept.Lock()
	defer r.kept.Unlock()
	if b := r.kept.mem.Load(); b != nil {
		return *b, nil
	}
	b, err := r.readOnce(r.ingestsAt, r.dirAt-r.ingestsAt, nil)
	if err != nil {
		return nil, err
	}
	if crc32.Checksum(b, castagnoli) != r.ingestsCRC {
		return nil, r.damaged(r.ingestsAt, "checksum of the ingests")
	}
	r.kept.mem.Store(&b)
	return b, nil
}

// ingest returns ingest i, its key in buf.
func (r *diskRun) ingest(i uint32, buf *[shard.MaxKeyLen]byte) (record, error) {
	names, err := r.names()
	if err != nil {
		return record{}, err
	}
	rec, keyAt, keyLen := decodeIngest(names[uint64(i)*ingestLen:])
	if keyAt > r.keysLen || uint64(keyLen) > r.keysLen-keyAt || keyLen > shard.MaxKeyLen {
		return record{}, r.damaged(r.ingestsAt+uint64(i)*ingestLen, "the key of an ingest")
	}
	n := copy(buf[:], names[r.ingests*ingestLen+keyAt:][:keyLen])
	rec.key = unsafe.String(unsafe.SliceData(buf[:]), n)
	return rec, nil
}

// records implements [source].
func (r *diskRun) records() ([]record, error) {
	names, err := r.names()
	if err != nil {
		return nil, err
	}
	keys := string(names[r.ingests*ingestLen:])
	recs := make([]record, r.ingests)
	for i := range recs {
		rec, keyAt, keyLen := decodeIngest(names[uint64(i)*ingestLen:])
		if keyAt > uint64(len(keys)) || uint64(keyLen) > uint64(len(keys))-keyAt || keyLen > shard.MaxKeyLen {
			return nil, r.damaged(r.ingestsAt+uint64(i)*ingestLen, "the key of an ingest")
		}
		rec.key = keys[keyAt:][:keyLen]
		recs[i] = rec
	}
	return recs, nil
}

func (r *diskRun) len() uint64 { return r.entries }

// read implements [source].
func (r *diskRun) read() cursor { return &diskCursor{r: r} }

// diskCursor reads a run bucket by bucket, by large reads that leave nothing behind.
type diskCursor struct {
	r      *diskRun
	part   int
	bucket uint64
	rest   []byte // of the bucket before
	head   []byte // of the partition, if some of it was read
	// win is what was read of the buckets, from offset at on.
	win []byte
	at  uint64
}

// cursorRead is how much of the buckets of a run is read at once.
const cursorRead = 256 << 10

// next implements [cursor].
func (c *diskCursor) next(last uint64, number []uint32, out []entry) (_ []entry, err error) {
	r := c.r
	n := digestPart + int(r.width)
	for {
		for ; len(c.rest) > 0; c.rest = c.rest[n:] {
			e := decodeEntry(c.rest, int(r.width))
			if e.hi > last {
				return out, nil
			}
			if int(e.ingest) >= len(number) {
				return out, r.damaged(0, "an ingest that does not exist")
			}
			if e.ingest = number[e.ingest]; e.ingest != dropped {
				out = append(out, e)
			}
		}
		for c.part < len(r.parts) && (r.parts[c.part].entries == 0 || c.bucket == 1<<r.parts[c.part].bits) {
			c.part, c.bucket = c.part+1, 0
		}
		if c.part == len(r.parts) {
			return out, nil
		}
		p := &r.parts[c.part]
		if c.bucket == 0 {
			if c.head, err = r.readHead(p, c.head); err != nil {
				return out, err
			}
		}
		if c.rest, err = c.read(p, c.bucket); err != nil {
			return out, err
		}
		c.bucket++
	}
}

// read returns the entries of a bucket of the partition whose head was read.
func (c *diskCursor) read(p *part, i uint64) ([]byte, error) {
	r := c.r
	at, n, err := r.place(p, c.head[p.filterLen:], i)
	if err != nil {
		return nil, err
	}
	n += crcLen
	if at < c.at || at+n > c.at+uint64(len(c.win)) {
		more := max(n, min(cursorRead, p.at+p.size(int(r.width))-at))
		if c.win, err = r.readOnce(at, more, c.win); err != nil {
			c.win = nil
			return nil, err
		}
		c.at = at
	}
	return r.checked(c.win[at-c.at:][:n], at)
}

// verify reads all of a run and checks every promise of the format.
func (r *diskRun) verify(stop func() error) (err error) {
	if _, err := r.records(); err != nil {
		return err
	}
	var last entry
	c := diskCursor{r: r}
	for i := range r.parts {
		p := &r.parts[i]
		if err := stop(); err != nil {
			return err
		}
		if p.entries == 0 {
			continue
		}
		if c.head, err = r.readHead(p, c.head); err != nil {
			return err
		}
		n := digestPart + int(r.width)
		for b := range uint64(1) << p.bits {
			es, err := c.read(p, b)
			if err != nil {
				return err
			}
			for ; len(es) > 0; es = es[n:] {
				e := decodeEntry(es, int(r.width))
				switch {
				case last.compare(e) >= 0 && last != (entry{}):
					return r.damaged(p.at, "entries are out of order")
				case partOf(e.hi, r.partBits) != uint64(i) || bucketOf(e.hi, r.partBits, p.bits) != b:
					return r.damaged(p.at, "an entry in the wrong bucket")
				case uint64(e.ingest) >= r.ingests:
					return r.damaged(p.at, "an ingest that does not exist")
				case p.segment != 0 && !p.has(&c.head[0], e.hi):
					return r.damaged(p.at, "a filter that denies an entry")
				}
				last = e
			}
		}
	}
	return nil
}
