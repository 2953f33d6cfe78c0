package index

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"

	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/mapped"
	"github.com/dagstore/dagstore/shard"
)

// The shard index file, version 1. Integers are little endian.
//
//	header   ┌ 0    8  magic 89 'DSIX' 0d 0a 1a
//	         │ 8    2  version           10  2  flags: 1 sizes unknown, 2 unbound
//	         │ 12   4  header length H   16  8  file length
//	         │ 24   8  records           32  8  payload bytes
//	         │ 40   8  source size       48  8  data offset      56  8  data size
//	         │ 64   4  CARv1 header len  68  4  CAR version
//	         │ 72  32  SHA-256 of the CARv1 header (binds version and roots)
//	         │ 104 32  content digest
//	         │ 136  8  generation        144 4  key length K     148 4  groups G
//	         │ 152  K  key
//	         │      G × 40   group: 8 multihash function, 4 digest length D,
//	         │               4 records per page P, 8 records, 8 offset,
//	         │               4 fan-out bits F, 4 zero
//	         └ H-4  4  CRC32C of the header before it
//	group    ┌ fan-out    2^F × 4  number of the first record whose digest starts
//	         │                     with the F bits b or more; nothing if F = 0
//	         └ pages      P records and a CRC each; the last has what is left
//	page       record × P, 4 CRC32C
//	record     digest (D), 8 section offset << 10 | header length, 4 data size
//
// Invariants, held by [ShardIndex.Verify]:
//
//	groups strictly ascend by (function, digest length)
//	the records of a group ascend by (digest, offset)
//	header, fan-outs and pages fill the file without a gap
//
// A page's CRC starts from a seed made of the header's CRC and the page's offset,
// so that a page is valid in one place of one file only. Every page is checked before
// it is believed (see probe for how often); the fan-out is not, because it is only believed as far as the records
// of checked pages bear it out (see search). Every later version keeps the first 16
// bytes and the CRC at H-4, so that a newer file can be told from a damaged one.
const (
	magic         = "\x89DSIX\r\n\x1a"
	formatVersion = 1

	flagSizesUnknown = 1 << 0
	flagUnbound      = 1 << 1
	knownFlags       = flagSizesUnknown | flagUnbound

	fixedHeaderLen = 152
	groupLen       = 40
	crcLen         = 4
	maxGroups      = 1 << 12
	maxHeaderLen   = fixedHeaderLen + shard.MaxKeyLen + maxGroups*groupLen + crcLen

	recordTail = 12 // of a record after its digest
	locShift   = 10 // header lengths take the low bits
	locMask    = 1<<locShift - 1
	maxOffset  = 1<<(64-locShift) - 1

	// pageTarget is what a page may take: eight records of SHA2-256. A larger page
	// costs more to check on each lookup (1 KiB: 200 ns more), a smaller one spares
	// nothing, because a lookup then reads two.
	pageTarget = 384
	maxDigest  = 128
	maxPage    = pageTarget + maxDigest + recordTail + crcLen

	// fanSpread: this many records share one fan-out entry, or up to twice as many.
	// Interpolation makes up for the rest, and the table of a large index (2,500,000
	// records: 1 MiB) stays in a core's cache.
	fanSpread   = 8
	maxFanBits  = 30
	maxRecords  = 1<<32 - 1
	entrySize   = crcLen // of the fan-out
	unknownSize = -1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Every acceptable section header fits into a record's low bits.
const _ = uint(locMask - carscan.MaxSectionHeader)

// What a probe looks at lies in two pages at most of what is known to be in memory.
const _ = uint(mapped.NearMax - maxReach)

// Binding says which source an index was built from.
type Binding struct {
	SourceSize    uint64
	CARVersion    int
	DataOffset    uint64 // of the CARv1 payload in the source
	DataSize      uint64
	HeaderLen     uint64   // CARv1 header with its length prefix
	HeaderDigest  [32]byte // SHA-256 of it: version and roots
	ContentDigest [32]byte
}

// header is the decoded header of an index file.
type header struct {
	flags   uint16
	length  uint32 // H
	file    uint64 // file length
	records uint64
	payload uint64
	binding Binding
	gen     uint64
	key     string
	groups  []group
	crc     uint32
}

// group describes the records of one multihash function and digest length.
type group struct {
	code      uint64
	digestLen uint32
	perPage   uint32
	records   uint64
	offset    uint64 // of the fan-out
	pages     uint64 // offset of the first page
	fanBits   uint32

	// Of an open index:
	reach    uint32 // records on either side of its guess that a probe looks at
	reachLen uint64 // and the pages that takes, in bytes
	end      uint64 // of the last page
	checked  *checkedPages
}

func newGroup(code uint64, digestLen int, records uint64) group {
	recordLen := digestLen + recordTail
	g := group{
		code:      code,
		digestLen: uint32(digestLen),
		perPage:   uint32(max(1, (pageTarget-crcLen)/recordLen)),
		records:   records,
	}
	if records >= 2*fanSpread {
		g.fanBits = min(uint32(bits.Len64(records/fanSpread)-1), maxFanBits)
	}
	return g
}

// setReach sets how far a probe goes.
func (g *group) setReach() {
	g.reach = maxWalk
	if g.fanBits == 0 {
		g.reach = 2 * fanSpread // all of the group if a draft wrote it
	}
	pages := min((g.reach+g.perPage-1)/g.perPage, (maxReach/uint32(g.pageLen())-1)/2)
	g.reach = min(g.reach, pages*g.perPage)
	g.reachLen = uint64(pages) * g.pageLen()
}

func (g *group) recordLen() uint64 { return uint64(g.digestLen) + recordTail }
func (g *group) pageLen() uint64   { return uint64(g.perPage)*g.recordLen() + crcLen }
func (g *group) numPages() uint64 {
	return (g.records + uint64(g.perPage) - 1) / uint64(g.perPage)
}

func (g *group) fanLen() uint64 {
	if g.fanBits == 0 {
		return 0
	}
	return entrySize << g.fanBits
}

// size is what fan-out and pages take in the file.
func (g *group) size() uint64 {
	return g.fanLen() + g.records*g.recordLen() + g.numPages()*crcLen
}

// page returns where page i lies and how long it is, with its CRC.
func (g *group) page(i uint64) (at, n uint64) {
	at = g.pages + i*g.pageLen()
	left := g.records - i*uint64(g.perPage)
	return at, min(left, uint64(g.perPage))*g.recordLen() + crcLen
}

// prefix returns the first 8 bytes of a digest as a number that sorts like it;
// missing bytes count as zero.
func prefix(digest []byte) uint64 {
	if len(digest) >= 8 {
		return binary.BigEndian.Uint64(digest)
	}
	var b [8]byte
	copy(b[:], digest)
	return binary.BigEndian.Uint64(b[:])
}

// pageSeed is where the CRC of the page at offset at starts.
func pageSeed(headerCRC uint32, at uint64) uint32 {
	return headerCRC ^ uint32(at*0x9e3779b97f4a7c15>>32)
}

func pageCRC(headerCRC uint32, at uint64, records []byte) uint32 {
	return crc32.Update(pageSeed(headerCRC, at), castagnoli, records)
}

// layout sets the offsets of h and its groups, and its lengths.
func (h *header) layout() {
	h.length = uint32(fixedHeaderLen + len(h.key) + len(h.groups)*groupLen + crcLen)
	at := uint64(h.length)
	for i := range h.groups {
		g := &h.groups[i]
		g.offset, g.pages = at, at+g.fanLen()
		at += g.size()
	}
	h.file = at
}

// encode returns the header's bytes and sets its CRC.
func (h *header) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, h.length)
	b = append(b, magic...)
	b = le.AppendUint16(b, formatVersion)
	b = le.AppendUint16(b, h.flags)
	b = le.AppendUint32(b, h.length)
	x := &h.binding
	for _, v := range []uint64{h.file, h.records, h.payload, x.SourceSize, x.DataOffset, x.DataSize} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, uint32(x.HeaderLen))
	b = le.AppendUint32(b, uint32(x.CARVersion))
	b = append(b, x.HeaderDigest[:]...)
	b = append(b, x.ContentDigest[:]...)
	b = le.AppendUint64(b, h.gen)
	b = le.AppendUint32(b, uint32(len(h.key)))
	b = le.AppendUint32(b, uint32(len(h.groups)))
	b = append(b, h.key...)
	for i := range h.groups {
		g := &h.groups[i]
		b = le.AppendUint64(b, g.code)
		b = le.AppendUint32(b, g.digestLen)
		b = le.AppendUint32(b, g.perPage)
		b = le.AppendUint64(b, g.records)
		b = le.AppendUint64(b, g.offset)
		b = le.AppendUint32(b, g.fanBits)
		b = le.AppendUint32(b, 0)
	}
	h.crc = crc32.Checksum(b, castagnoli)
	return le.AppendUint32(b, h.crc)
}

// headerLength reads from the first 16 bytes of a file how long its header is.
func headerLength(b []byte, size int64) (n int, what string) {
	if len(b) < 16 || string(b[:8]) != magic {
		return 0, "not a shard index"
	}
	h := binary.LittleEndian.Uint32(b[12:])
	switch {
	case h < fixedHeaderLen+crcLen || h > maxHeaderLen:
		return 0, fmt.Sprintf("header length %d", h)
	case int64(h) > size:
		return 0, fmt.Sprintf("a header of %d bytes in a file of %d", h, size)
	}
	return int(h), ""
}

// decode decodes a whole header. If it is not sound, what says why; newer is set if
// it is sound and of a later version.
func (h *header) decode(b []byte, size int64) (what string, newer bool) {
	le := binary.LittleEndian
	body := b[:len(b)-crcLen]
	h.crc = crc32.Checksum(body, castagnoli)
	if h.crc != le.Uint32(b[len(body):]) {
		return "header checksum", false
	}
	if v := le.Uint16(b[8:]); v != formatVersion {
		return fmt.Sprintf("format version %d", v), v > formatVersion
	}
	h.flags = le.Uint16(b[10:])
	h.length = uint32(len(b))
	h.file, h.records, h.payload = le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:])
	h.binding = Binding{
		SourceSize: le.Uint64(b[40:]),
		DataOffset: le.Uint64(b[48:]),
		DataSize:   le.Uint64(b[56:]),
		HeaderLen:  uint64(le.Uint32(b[64:])),
		CARVersion: int(le.Uint32(b[68:])),
	}
	copy(h.binding.HeaderDigest[:], b[72:])
	copy(h.binding.ContentDigest[:], b[104:])
	h.gen = le.Uint64(b[136:])
	keyLen, groups := uint64(le.Uint32(b[144:])), uint64(le.Uint32(b[148:]))
	switch {
	case h.flags&^knownFlags != 0:
		return fmt.Sprintf("flags %#x", h.flags), false
	case keyLen > shard.MaxKeyLen || groups > maxGroups || fixedHeaderLen+keyLen+groups*groupLen+crcLen != uint64(len(b)):
		return "key and groups do not fill the header", false
	case h.file != uint64(size):
		return fmt.Sprintf("the file has %d bytes, it was written with %d", size, h.file), false
	}
	h.key = string(b[fixedHeaderLen : fixedHeaderLen+keyLen])
	return h.decodeGroups(body[fixedHeaderLen+keyLen:], int(groups)), false
}

func (h *header) decodeGroups(b []byte, n int) (what string) {
	le := binary.LittleEndian
	h.groups = make([]group, n)
	at, records := uint64(h.length), uint64(0)
	for i := range h.groups {
		g := &h.groups[i]
		*g = group{
			code:      le.Uint64(b),
			digestLen: le.Uint32(b[8:]),
			perPage:   le.Uint32(b[12:]),
			records:   le.Uint64(b[16:]),
			offset:    le.Uint64(b[24:]),
			fanBits:   le.Uint32(b[32:]),
			checked:   new(checkedPages),
		}
		b = b[groupLen:]
		switch {
		case i > 0 && !h.groups[i-1].before(g.code, int(g.digestLen)):
			return "groups are out of order"
		case g.digestLen > maxDigest || g.records == 0 || g.records > maxRecords || g.fanBits > maxFanBits,
			g.perPage == 0 || g.pageLen() > maxPage || g.offset != at:
			return fmt.Sprintf("group %d", i)
		}
		g.setReach()
		g.pages = at + g.fanLen()
		at += g.size()
		g.end = at
		records += g.records
	}
	if at != h.file || records != h.records {
		return "groups do not fill the file"
	}
	return ""
}

// before reports whether g sorts before the group of a function and digest length.
func (g *group) before(code uint64, digestLen int) bool {
	return g.code < code || g.code == code && int(g.digestLen) < digestLen
}

// entry decodes what follows the digest in a record.
func (h *header) entry(tail []byte) Entry {
	loc := binary.LittleEndian.Uint64(tail)
	e := Entry{Offset: loc >> locShift, HeaderLen: int(loc & locMask), Size: int(binary.LittleEndian.Uint32(tail[8:]))}
	if h.flags&flagSizesUnknown != 0 {
		e.HeaderLen, e.Size = 0, unknownSize
	}
	return e
}

func (h *header) info() shard.IndexInfo {
	return shard.IndexInfo{
		Blocks:       h.records,
		PayloadBytes: h.payload,
		SourceSize:   h.binding.SourceSize,
		Digest:       h.binding.ContentDigest,
	}
}
