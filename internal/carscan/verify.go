package carscan

import (
	"crypto/sha256"
	"hash"

	"github.com/multiformats/go-multihash"
	mhcore "github.com/multiformats/go-multihash/core"
)

// canHash reports whether function code is registered and gives n bytes or more.
func canHash(code uint64, n int) bool {
	h, err := mhcore.GetVariableHasher(code, n)
	return err == nil && h.Size() >= n
}

// Matches reports whether data hashes to the digest of function code. A function
// that is not known matches nothing.
func Matches(code uint64, digest, data []byte) bool {
	switch {
	case code == multihash.SHA2_256 && len(digest) == sha256.Size:
		sum := sha256.Sum256(data)
		return string(sum[:]) == string(digest)
	case code == multihash.IDENTITY:
		return string(digest) == string(data)
	}
	h := newHash(code, len(digest))
	if h == nil {
		return false
	}
	h.Write(data)
	return h.matches(digest)
}

// streamHash hashes a block that comes in pieces.
type streamHash struct {
	hash.Hash
}

func newHash(code uint64, n int) *streamHash {
	h, err := mhcore.GetVariableHasher(code, n)
	if err != nil || h.Size() < n && code != multihash.IDENTITY {
		return nil
	}
	return &streamHash{Hash: h}
}

func (h *streamHash) matches(digest []byte) bool {
	sum := h.Sum(nil)
	return len(sum) >= len(digest) && string(sum[:len(digest)]) == string(digest)
}
