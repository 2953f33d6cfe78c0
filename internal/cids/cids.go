// Package cids takes CIDs and multihashes apart without copying them, for the packages
// that look blocks up. What comes out shares the CID's bytes: nobody changes it.
package cids

import (
	"encoding/binary"
	"unsafe"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// Multihash returns the binary multihash within a CID; "" if it is undefined or cut off.
func Multihash(c cid.Cid) string {
	s := c.KeyString()
	if len(s) == 34 && s[0] == multihash.SHA2_256 && s[1] == 32 {
		return s // CIDv0
	}
	for range 2 { // version and codec
		i := 0
		for i < len(s) && s[i] >= 0x80 {
			i++
		}
		if i++; i > len(s) {
			return ""
		}
		s = s[i:]
	}
	return s
}

// Split returns the function and the digest of a binary multihash. Like go-multihash it
// wants the digest to fill the rest exactly.
func Split(mh []byte) (code uint64, digest []byte, ok bool) {
	if len(mh) == 34 && mh[0] == multihash.SHA2_256 && mh[1] == 32 {
		return multihash.SHA2_256, mh[2:], true
	}
	code, n := binary.Uvarint(mh)
	if n <= 0 {
		return 0, nil, false
	}
	size, m := binary.Uvarint(mh[n:])
	if m <= 0 || size != uint64(len(mh)-n-m) {
		return 0, nil, false
	}
	return code, mh[n+m:], true
}

// SplitString is Split for a string. The digest must not be changed.
func SplitString(mh string) (code uint64, digest []byte, ok bool) {
	return Split(unsafe.Slice(unsafe.StringData(mh), len(mh)))
}

// Identity returns the bytes that an identity CID carries, which must not be changed.
func Identity(c cid.Cid) (data []byte, ok bool) {
	code, data, ok := SplitString(Multihash(c))
	return data, ok && code == multihash.IDENTITY
}
