package toplevel

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"

	"github.com/dagstore/dagstore/shard"
)

// A run, version 1. Integers are little endian.
//
//	header     ┌ 0   8  magic 89 'DSTX' 0d 0a 1a
//	           │ 8   2  version           10  2  zero
//	           │ 12  4  epoch of the index
//	           │ 16  8  identity of the index
//	           └ 24  4  CRC32C of the header before it
//	partitions   2^P × partition, by the leading P bits of the fingerprint
//	           ┌ filter     binary fuse filter of 8 bits over the first 64 bits of the
//	           │            fingerprints (Graf, Lemire, "Binary Fuse Filters", 2022)
//	           │ ends       2^B × 4  number of the first entry after bucket b
//	           └ buckets    2^B × bucket, by the B bits that follow
//	bucket       entry × n, 4 CRC32C of them, seeded with the bucket's offset
//	entry        8 and 4 fingerprint, W ingest number; ascending
//	ingests      M × 32: 8 generation, 8 tag, 8 offset of the key, 2 its length,
//	             2 flags (1: whole), 4 entries (2³²-1: that many or more); ascending by
//	             generation, tag and key
//	keys         the keys of the shards
//	directory    2^P × 40: 8 offset of the partition, 8 seed of the filter,
//	             4 segment length, 4 segments, 4 length of the filter, 4 entries,
//	             4 B, 4 CRC32C of filter and ends
//	footer     ┌ 0   8  entries           8   8  ingests
//	           │ 16  8  ingests' offset   24  8  length of the keys
//	           │ 32  8  directory's offset
//	           │ 40  4  P                 44  4  W
//	           │ 48  4  CRC32C of ingests and keys
//	           │ 52  4  CRC32C of the directory
//	           │ 56  4  CRC32C of the header
//	           └ 60  4  CRC32C of the footer before it
//
// A partition without entries has neither filter nor ends nor buckets. One without a
// filter (its keys made none in time, or are too few) has segment length 0 and is
// looked into.
const (
	runMagic   = "\x89DSTX\r\n\x1a"
	runVersion = 1

	headerLen  = 28
	footerLen  = 64
	dirLen     = 40
	ingestLen  = 32
	digestPart = 12 // of an entry

	crcLen = 4

	ingestWhole = 1 // a flag

	// partTarget entries or more, up to twice as many, make a partition: few enough
	// that building its filter stays in a core's cache.
	partTarget = 1 << 16
	// bucketTarget entries make a bucket, up to twice as many.
	bucketTarget = 24
	// filterLeast entries are worth a filter.
	filterLeast = 64

	maxPartBits   = 24
	maxBucketBits = 28
	maxIngests    = 1<<32 - 1

	// bigBucket bytes are checked once per process, not on each use. Only a block that
	// very many shards hold makes such a bucket.
	bigBucket = 16 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func partBits(entries uint64) uint32 {
	return uint32(min(max(bits.Len64(entries/partTarget)-1, 0), maxPartBits))
}

func bucketBits(entries int) uint32 {
	return uint32(max(bits.Len(uint(entries/bucketTarget))-1, 0))
}

// width is how many bytes the number of an ingest takes.
func width(ingests uint64) int {
	return max(1, (bits.Len64(max(ingests, 1)-1)+7)/8)
}

func bucketSeed(at uint64) uint32 { return uint32(at * 0x9e3779b97f4a7c15 >> 32) }

// partOf is the partition of a fingerprint.
func partOf(hi uint64, partBits uint32) uint64 { return hi >> 1 >> (63 - partBits) }

// bucketOf is the bucket of a fingerprint in its partition.
func bucketOf(hi uint64, partBits, bucketBits uint32) uint64 {
	return hi << partBits >> 1 >> (63 - bucketBits)
}

// partition is what the directory says of a partition.
type partition struct {
	at        uint64 // of the filter
	seed      uint64
	segment   uint32
	segments  uint32
	filterLen uint32
	entries   uint32
	bits      uint32 // B
	crc       uint32
}

func (p *partition) endsAt() uint64    { return p.at + uint64(p.filterLen) }
func (p *partition) bucketsAt() uint64 { return p.endsAt() + 4<<p.bits }

func (p *partition) size(width int) uint64 {
	if p.entries == 0 {
		return 0
	}
	return uint64(p.filterLen) + 8<<p.bits + uint64(p.entries)*uint64(digestPart+width)
}

func (p *partition) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, p.at)
	b = le.AppendUint64(b, p.seed)
	for _, v := range []uint32{p.segment, p.segments, p.filterLen, p.entries, p.bits, p.crc} {
		b = le.AppendUint32(b, v)
	}
	return b
}

// decode reads a directory's record and says what is wrong with it, if anything.
func (p *partition) decode(b []byte) (what string) {
	le := binary.LittleEndian
	*p = partition{
		at: le.Uint64(b), seed: le.Uint64(b[8:]), segment: le.Uint32(b[16:]), segments: le.Uint32(b[20:]),
		filterLen: le.Uint32(b[24:]), entries: le.Uint32(b[28:]), bits: le.Uint32(b[32:]), crc: le.Uint32(b[36:]),
	}
	switch {
	case p.bits > maxBucketBits:
		return "bucket bits"
	case p.segment == 0 && (p.filterLen != 0 || p.segments != 0):
		return "a filter without segments"
	case p.segment != 0 && (p.segment&(p.segment-1) != 0 || p.segments == 0 ||
		(uint64(p.segments)+2)*uint64(p.segment) != uint64(p.filterLen)):
		return "segments of a filter"
	}
	return ""
}

// footer is what the end of a run says of it.
type footer struct {
	entries, ingests           uint64
	ingestsAt, keysLen, dirAt  uint64
	partBits, width            uint32
	ingestsCRC, dirCRC, header uint32
	crc                        uint32
}

func (f *footer) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, footerLen)
	for _, v := range []uint64{f.entries, f.ingests, f.ingestsAt, f.keysLen, f.dirAt} {
		b = le.AppendUint64(b, v)
	}
	for _, v := range []uint32{f.partBits, f.width, f.ingestsCRC, f.dirCRC, f.header} {
		b = le.AppendUint32(b, v)
	}
	f.crc = crc32.Checksum(b, castagnoli)
	return le.AppendUint32(b, f.crc)
}

// decode reads a footer of a file of size bytes and says what is wrong with it.
func (f *footer) decode(b []byte, size uint64) (what string) {
	le := binary.LittleEndian
	*f = footer{
		entries: le.Uint64(b), ingests: le.Uint64(b[8:]), ingestsAt: le.Uint64(b[16:]), keysLen: le.Uint64(b[24:]), dirAt: le.Uint64(b[32:]),
		partBits: le.Uint32(b[40:]), width: le.Uint32(b[44:]), ingestsCRC: le.Uint32(b[48:]), dirCRC: le.Uint32(b[52:]), header: le.Uint32(b[56:]),
		crc: le.Uint32(b[60:]),
	}
	switch {
	case crc32.Checksum(b[:footerLen-crcLen], castagnoli) != f.crc:
		return "checksum of the footer"
	case f.partBits > maxPartBits, f.ingests > maxIngests, f.width < 1, f.width > 4, int(f.width) != width(f.ingests):
		return "counts in the footer"
	case f.ingestsAt < headerLen, f.ingestsAt > size, f.keysLen > size, f.ingests*ingestLen > size,
		f.dirAt != f.ingestsAt+f.ingests*ingestLen+f.keysLen, f.dirAt > size,
		f.dirAt+dirLen<<f.partBits+footerLen != size:
		return "its parts do not fill the file"
	}
	return ""
}

func encodeHeader(epoch uint32, id uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, headerLen)
	b = append(b, runMagic...)
	b = le.AppendUint16(b, runVersion)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, epoch)
	b = le.AppendUint64(b, id)
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeHeader says what is wrong with a header; newer is set if it is sound and of a
// later version.
func decodeHeader(b []byte, id uint64) (what string, newer bool) {
	le := binary.LittleEndian
	switch {
	case len(b) < headerLen || string(b[:8]) != runMagic:
		return "not a run", false
	case crc32.Checksum(b[:headerLen-crcLen], castagnoli) != le.Uint32(b[headerLen-crcLen:]):
		return "checksum of the header", false
	case le.Uint16(b[8:]) != runVersion:
		return fmt.Sprintf("version %d", le.Uint16(b[8:])), le.Uint16(b[8:]) > runVersion
	case le.Uint64(b[16:]) != id:
		return "a run of another index", false
	}
	return "", false
}

// record is an ingest as a run has it.
type record struct {
	gen, tag uint64
	key      string
	entries  uint32
	whole    bool // this run has all of its entries
}

func (r *record) ingest() Ingest {
	return Ingest{Key: shard.KeyFromString(r.key), Gen: r.gen, Tag: r.tag}
}

func appendIngest(b []byte, r *record, keyAt uint64) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, r.gen)
	b = le.AppendUint64(b, r.tag)
	b = le.AppendUint64(b, keyAt)
	b = le.AppendUint16(b, uint16(len(r.key)))
	flags := uint16(0)
	if r.whole {
		flags = ingestWhole
	}
	b = le.AppendUint16(b, flags)
	return le.AppendUint32(b, r.entries)
}

// decodeIngest returns a record and where its key is.
func decodeIngest(b []byte) (r record, keyAt uint64, keyLen uint32) {
	le := binary.LittleEndian
	return record{gen: le.Uint64(b), tag: le.Uint64(b[8:]), entries: le.Uint32(b[28:]), whole: le.Uint16(b[26:])&ingestWhole != 0}, le.Uint64(b[16:]), uint32(le.Uint16(b[24:]))
}
