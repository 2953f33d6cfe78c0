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

	"github.com/FastFilter/xorfilter"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// diskRun is a run on disk. It is immutable, and mapped if the file system can; its
// mapping goes when nothing refers to the run any more.
type diskRun struct {
	footer
	name  string
	seq   uint64
	data  []byte
	parts []part
	// ingestsOK: the ingests' checksum was right.
	ingestsOK atomic.Bool
	// big holds the offsets of large buckets that were checked.
	big sync.Map
}

// part is a partition that is open.
type part struct {
	partition
	fuse xorfilter.BinaryFuse[uint8]
	// checked: the checksum of filter and ends was right.
	checked atomic.Bool
}

// openRun opens the run of a file. want is the checksum of its footer if that is known.
func openRun(fsys fsio.FS, name string, id uint64, want *uint32) (_ *diskRun, err error) {
	f, err := fsys.OpenFile(name, 0, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &DamagedError{File: name, What: "the file is missing"}
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // was only read
	r := &diskRun{name: name}
	// Lookups hold the run, not a count: whoever looks something up in a run that was
	// merged meanwhile keeps its mapping. So a mapping goes with the garbage, which other
	// file systems than the operating system's, which may count it, need not put up with.
	if m, ok := f.(fsio.Mapper); ok && fsys == fsio.OS() {
		if data, unmap, err := m.Map(); err == nil {
			r.data = data
			runtime.AddCleanup(r, func(unmap func() error) { _ = unmap() }, unmap)
		}
	}
	if r.data == nil {
		if r.data, err = io.ReadAll(f); err != nil {
			return nil, fmt.Errorf("top-level index: read %s: %w", name, err)
		}
	}
	if err := r.open(id, want); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *diskRun) open(id uint64, want *uint32) (err error) {
	defer r.unguard(r.guard(), &err)
	size := uint64(len(r.data))
	if size < headerLen+footerLen {
		return r.damaged(size, "the file ends here")
	}
	what, newer := decodeHeader(r.data, id)
	switch {
	case newer:
		return fmt.Errorf("%w: %s: %s, this release reads %d", ErrNewerFormat, r.name, what, runVersion)
	case what != "":
		return r.damaged(0, what)
	}
	if what := r.footer.decode(r.data[size-footerLen:], size); what != "" {
		return r.damaged(size-footerLen, what)
	}
	if want != nil && r.footer.crc != *want || r.footer.header != binary.LittleEndian.Uint32(r.data[headerLen-crcLen:]) {
		return r.damaged(size-footerLen, "a footer that is not the one that was written")
	}
	dir := r.data[r.dirAt : size-footerLen]
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
		p.fuse = p.filter(r.data[p.at : p.at+uint64(p.filterLen)])
		at += p.size(int(r.width))
		entries += uint64(p.entries)
	}
	if at != r.ingestsAt || entries != r.entries {
		return r.damaged(r.dirAt, "partitions do not fill the file")
	}
	return nil
}

func (r *diskRun) damaged(at uint64, what string) error {
	return &DamagedError{File: r.name, Offset: int64(at), What: what}
}

// guard and unguard turn a fault on the mapping (a file that shrank underneath, a disk
// that fails) into an error. Use: defer r.unguard(r.guard(), &err).
func (r *diskRun) guard() (old bool) { return debug.SetPanicOnFault(true) }

func (r *diskRun) unguard(old bool, err *error) {
	debug.SetPanicOnFault(old)
	if p := recover(); p != nil {
		*err = r.fault(p)
	}
}

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

// check checks filter and ends, once.
func (r *diskRun) check(p *part) error {
	if crc32.Checksum(r.data[p.at:p.bucketsAt()], castagnoli) != p.crc && !planted.Bug("toplevel-filter-not-checked") {
		return r.damaged(p.at, "checksum of a filter")
	}
	p.checked.Store(true)
	return nil
}

// find appends the numbers of the ingests that have f. The caller guards.
func (r *diskRun) find(f fingerprint, found []uint32) ([]uint32, error) {
	p := &r.parts[partOf(f.hi, r.partBits)]
	if p.entries == 0 {
		return found, nil
	}
	if !p.checked.Load() {
		if err := r.check(p); err != nil {
			return found, err
		}
	}
	if p.segment != 0 && !p.fuse.Contains(f.hi) {
		return found, nil
	}
	b, err := r.bucket(p, bucketOf(f.hi, r.partBits, p.bits))
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
	for b = b[lo*n:]; len(b) > 0; b = b[n:] {
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

// bucket returns the entries of a bucket after checking them.
func (r *diskRun) bucket(p *part, i uint64) ([]byte, error) {
	ends := r.data[p.endsAt():p.bucketsAt()]
	from, to := uint64(0), uint64(binary.LittleEndian.Uint32(ends[4*i:]))
	if i > 0 {
		from = uint64(binary.LittleEndian.Uint32(ends[4*i-4:]))
	}
	if from > to || to > uint64(p.entries) {
		return nil, r.damaged(p.endsAt()+4*i, "the end of a bucket")
	}
	n := uint64(digestPart) + uint64(r.width)
	at := p.bucketsAt() + from*n + i*crcLen
	b := r.data[at : at+(to-from)*n]
	if len(b) > bigBucket {
		if _, ok := r.big.Load(at); ok {
			return b, nil
		}
	}
	if crc32.Update(bucketSeed(at), castagnoli, b) != binary.LittleEndian.Uint32(r.data[at+uint64(len(b)):]) && !planted.Bug("toplevel-bucket-not-checked") {
		return nil, r.damaged(at, "checksum of a bucket")
	}
	if len(b) > bigBucket {
		r.big.Store(at, struct{}{})
	}
	return b, nil
}

// checkIngests checks ingests and keys, once.
func (r *diskRun) checkIngests() error {
	if r.ingestsOK.Load() {
		return nil
	}
	if crc32.Checksum(r.data[r.ingestsAt:r.dirAt], castagnoli) != r.ingestsCRC {
		return r.damaged(r.ingestsAt, "checksum of the ingests")
	}
	r.ingestsOK.Store(true)
	return nil
}

// ingest returns ingest i, its key in buf. The caller guards.
func (r *diskRun) ingest(i uint32, buf *[shard.MaxKeyLen]byte) (record, error) {
	if err := r.checkIngests(); err != nil {
		return record{}, err
	}
	at := r.ingestsAt + uint64(i)*ingestLen
	rec, keyAt, keyLen := decodeIngest(r.data[at:])
	if keyAt > r.keysLen || uint64(keyLen) > r.keysLen-keyAt || keyLen > shard.MaxKeyLen {
		return record{}, r.damaged(at, "the key of an ingest")
	}
	n := copy(buf[:], r.data[r.ingestsAt+r.ingests*ingestLen+keyAt:][:keyLen])
	rec.key = unsafe.String(unsafe.SliceData(buf[:]), n)
	return rec, nil
}

// records implements [source].
func (r *diskRun) records() (recs []record, err error) {
	defer r.unguard(r.guard(), &err)
	if err := r.checkIngests(); err != nil {
		return nil, err
	}
	keys := string(r.data[r.ingestsAt+r.ingests*ingestLen : r.dirAt])
	recs = make([]record, r.ingests)
	for i := range recs {
		at := r.ingestsAt + uint64(i)*ingestLen
		rec, keyAt, keyLen := decodeIngest(r.data[at:])
		if keyAt > uint64(len(keys)) || uint64(keyLen) > uint64(len(keys))-keyAt || keyLen > shard.MaxKeyLen {
			return nil, r.damaged(at, "the key of an ingest")
		}
		rec.key = keys[keyAt:][:keyLen]
		recs[i] = rec
	}
	return recs, nil
}

func (r *diskRun) len() uint64 { return r.entries }

// read implements [source].
func (r *diskRun) read() cursor { return &diskCursor{r: r} }

// diskCursor reads a run bucket by bucket.
type diskCursor struct {
	r      *diskRun
	part   int
	bucket uint64
	rest   []byte // of the bucket before
}

// next implements [cursor].
func (c *diskCursor) next(last uint64, number []uint32, out []entry) (_ []entry, err error) {
	r := c.r
	defer r.unguard(r.guard(), &err)
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
		if c.bucket == 0 && !p.checked.Load() {
			if err := r.check(p); err != nil {
				return out, err
			}
		}
		if c.rest, err = r.bucket(p, c.bucket); err != nil {
			return out, err
		}
		c.bucket++
	}
}

// verify reads all of a run and checks every promise of the format.
func (r *diskRun) verify(stop func() error) (err error) {
	if _, err := r.records(); err != nil {
		return err
	}
	defer r.unguard(r.guard(), &err)
	var last entry
	for i := range r.parts {
		p := &r.parts[i]
		if err := stop(); err != nil {
			return err
		}
		if p.entries == 0 {
			continue
		}
		if err := r.check(p); err != nil {
			return err
		}
		n := digestPart + int(r.width)
		for b := range uint64(1) << p.bits {
			es, err := r.bucket(p, b)
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
				case p.segment != 0 && !p.fuse.Contains(e.hi):
					return r.damaged(p.at, "a filter that denies an entry")
				}
				last = e
			}
		}
	}
	return nil
}
