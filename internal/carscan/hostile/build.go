// Package hostile makes CARs that mean harm, and the good ones that they are made
// from, for the tests of every package that reads files of strangers.
//
// [Corpus] returns small files with the verdict each deserves. The building blocks
// ([Section], [V1], [V2], …) write whatever they are told, true or not.
package hostile

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/multiformats/go-multihash"
)

// Pragma is the fixed beginning of every CARv2.
const Pragma = "\x0a\xa1\x67version\x02"

// Uvarint returns the minimal varint of v.
func Uvarint(v uint64) []byte { return binary.AppendUvarint(nil, v) }

// Join concatenates.
func Join(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// Mh returns a binary multihash with the given function and digest, true or not.
func Mh(code uint64, digest []byte) []byte {
	return Join(Uvarint(code), Uvarint(uint64(len(digest))), digest)
}

// CIDv1 returns a binary CID.
func CIDv1(codec uint64, mh []byte) []byte { return Join([]byte{1}, Uvarint(codec), mh) }

// RawCID returns the CIDv1 of data as a raw block under SHA2-256.
func RawCID(data []byte) []byte {
	sum := sha256.Sum256(data)
	return CIDv1(0x55, Mh(multihash.SHA2_256, sum[:]))
}

// Section returns a section with the right length.
func Section(cid, data []byte) []byte {
	return Join(Uvarint(uint64(len(cid)+len(data))), cid, data)
}

// Raw returns a valid section with a raw block.
func Raw(data []byte) []byte { return Section(RawCID(data), data) }

// Header returns a CARv1 header with its length prefix.
func Header(roots ...[]byte) []byte {
	body := []byte{0xa2, 0x65}
	body = append(body, "roots"...)
	body = append(body, cborHead(4, uint64(len(roots)))...)
	for _, r := range roots {
		body = append(body, 0xd8, 0x2a)
		body = append(body, cborHead(2, uint64(len(r)+1))...)
		body = append(body, 0)
		body = append(body, r...)
	}
	body = append(body, 0x67)
	body = append(body, "version"...)
	body = append(body, 1)
	return LP(body)
}

// LP prefixes b with its length.
func LP(b []byte) []byte { return Join(Uvarint(uint64(len(b))), b) }

// V1 returns a CARv1 with the first block's CID as its root.
func V1(sections ...[]byte) []byte {
	return Join(Header(RawCID([]byte("root"))), Join(sections...))
}

// V2 wraps a payload in a CARv2 without an index.
func V2(payload []byte) []byte {
	return Join(V2Header([16]byte{}, 51, uint64(len(payload)), 0), payload)
}

// V2Header returns pragma and header with whatever values are given.
func V2Header(characteristics [16]byte, dataOffset, dataSize, indexOffset uint64) []byte {
	b := append([]byte(Pragma), characteristics[:]...)
	b = binary.LittleEndian.AppendUint64(b, dataOffset)
	b = binary.LittleEndian.AppendUint64(b, dataSize)
	return binary.LittleEndian.AppendUint64(b, indexOffset)
}

// Random returns a valid CARv1 of n raw blocks of size bytes each, the same for the
// same arguments.
func Random(n, size int, seed uint64) []byte {
	rng := rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "hostile %d", seed)))
	header := Header(RawCID([]byte("root")))
	out := make([]byte, 0, len(header)+n*(size+40))
	out = append(out, header...)
	data := make([]byte, size)
	for range n {
		rng.Read(data)
		sum := sha256.Sum256(data)
		out = binary.AppendUvarint(out, uint64(36+size))
		out = append(out, 1, 0x55, multihash.SHA2_256, 32)
		out = append(out, sum[:]...)
		out = append(out, data...)
	}
	return out
}

func cborHead(major byte, v uint64) []byte {
	switch {
	case v < 24:
		return []byte{major<<5 | byte(v)}
	case v < 1<<8:
		return []byte{major<<5 | 24, byte(v)}
	case v < 1<<16:
		return binary.BigEndian.AppendUint16([]byte{major<<5 | 25}, uint16(v))
	case v < 1<<32:
		return binary.BigEndian.AppendUint32([]byte{major<<5 | 26}, uint32(v))
	}
	return binary.BigEndian.AppendUint64([]byte{major<<5 | 27}, v)
}
