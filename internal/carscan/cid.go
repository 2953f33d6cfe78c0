package carscan

import "github.com/multiformats/go-multihash"

const (
	// MinDigest is the shortest digest accepted for a block, in bytes (160 bits).
	MinDigest = 20
	// MaxIdentity is the longest identity "digest" accepted for a block, in bytes.
	MaxIdentity = 128

	// maxVarint is the longest varint of multiformats: 63 bits.
	maxVarint = 9
	// maxCID bounds the CID of an acceptable section: version, codec, function,
	// digest length (two bytes: ≤ 128), digest.
	maxCID = 1 + maxVarint + maxVarint + 2 + MaxIdentity
	// MaxSectionHeader bounds the length prefix and CID of an acceptable section.
	MaxSectionHeader = maxVarint + maxCID
)

// uvarint decodes a minimal multiformats varint from the front of b. n is its
// length; 0 if b ends too early, -1 if it is not minimal or over 63 bits.
func uvarint(b []byte) (v uint64, n int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	for i, c := range b {
		if i == maxVarint {
			return 0, -1
		}
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if c == 0 {
				return 0, -1
			}
			return v, i + 1
		}
	}
	if len(b) >= maxVarint {
		return 0, -1
	}
	return 0, 0
}

// rawCID is a parsed binary CID; digest shares the parsed bytes.
type rawCID struct {
	len    int // of the CID in bytes
	mh     int // where the multihash starts
	code   uint64
	digest []byte
	// digestLen is the digest's length, also if it is cut off; then len is where it starts.
	digestLen uint64
}

const digestCut = "not a CID: its digest is cut off"

// parseCID parses the CID at the front of b; what is "" if there is a well-formed
// one, else says what is wrong.
func parseCID(b []byte, c *rawCID) (what string) {
	if len(b) >= 34 && b[0] == multihash.SHA2_256 && b[1] == 32 { // CIDv0
		*c = rawCID{34, 0, multihash.SHA2_256, b[2:34], 32}
		return ""
	}
	at := 0
	next := func() (v uint64, ok bool) {
		v, n := uvarint(b[at:])
		if n <= 0 {
			return 0, false
		}
		at += n
		return v, true
	}
	version, ok := next()
	if !ok || version != 1 {
		return "not a CID: its version is neither 0 nor 1"
	}
	if _, ok = next(); !ok {
		return "not a CID: bad codec"
	}
	mh := at
	code, ok := next()
	if !ok {
		return "not a CID: bad multihash function"
	}
	n, ok := next()
	if !ok {
		return "not a CID: bad digest length"
	}
	if n > uint64(len(b)-at) {
		*c = rawCID{at, mh, code, nil, n}
		return digestCut
	}
	end := at + int(n)
	*c = rawCID{end, mh, code, b[at:end:end], n}
	return ""
}

// hashPolicy says which multihashes a block may have. It remembers what it was
// asked, so that the common question costs nothing.
type hashPolicy struct {
	asked map[hashKind]bool
}

type hashKind struct {
	code uint64
	len  int
}

// allows reports whether a digest of n bytes made by function code can be verified
// and proves anything.
func (p *hashPolicy) allows(code uint64, n int) bool {
	switch {
	case code == multihash.SHA2_256 && n == 32:
		return true
	case code == multihash.IDENTITY:
		return n <= MaxIdentity
	case n < MinDigest || n > 128:
		return false
	}
	k := hashKind{code, n}
	ok, known := p.asked[k]
	if !known {
		ok = canHash(code, n)
		if p.asked == nil {
			p.asked = make(map[hashKind]bool)
		}
		if len(p.asked) < 1024 { // hostile files ask about many
			p.asked[k] = ok
		}
	}
	return ok
}
