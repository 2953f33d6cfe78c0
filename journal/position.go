package journal

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
)

// Position names a prefix of a journal: the events 1..Seq, whose batches hash to
// Digest. The zero Position is the empty journal. Two journals that agree in a
// Position agree in everything up to it.
//
//	Digest(0)            = 32 zero bytes
//	Digest(after batch)  = SHA-256(Digest(before) ‖ first Seq ‖ the batch's encoded events)
//
// where first Seq is 8 bytes, little endian. Positions are ends of batches: no
// other sequence number has one.
type Position struct {
	Seq    uint64
	Digest [32]byte
}

// String gives the sequence number and the first bytes of the digest.
func (p Position) String() string {
	return fmt.Sprintf("%d@%s", p.Seq, hex.EncodeToString(p.Digest[:6]))
}

var (
	// ErrFuturePosition: a position beyond the head of the journal. Waiting would
	// not help: whoever was told a position was told after it was durable.
	ErrFuturePosition = errors.New("journal: position beyond the head")
	// ErrForeignPosition: a position of another journal, or of another course that
	// this one might have taken.
	ErrForeignPosition = errors.New("journal: position of another journal")
	// ErrBadToken is wrapped by every error of [ParseToken]. A token that is missing
	// or cannot be read never means "any position".
	ErrBadToken = errors.New("journal: malformed position token")
)

// A token is base64url without padding of
//
//	 0  1  version, 1
//	 1  8  Seq, big endian
//	 9 32  Digest
//	41  4  CRC32C of bytes 0..41, big endian
const (
	tokenVersion = 1
	tokenSize    = 1 + 8 + 32 + 4
)

// Token returns the position as text that other processes can hand back, 60
// characters that need no escaping in URLs, headers and cookies. What is in it is
// nobody's business but [ParseToken]'s.
func (p Position) Token() string {
	b := make([]byte, 0, tokenSize)
	b = append(b, tokenVersion)
	b = binary.BigEndian.AppendUint64(b, p.Seq)
	b = append(b, p.Digest[:]...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken is the inverse of [Position.Token]. Errors wrap [ErrBadToken]. That a
// token can be read says nothing about which journal it is of.
func ParseToken(token string) (Position, error) {
	if token == "" {
		return Position{}, fmt.Errorf("%w: it is empty", ErrBadToken)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	switch {
	case strings.ContainsAny(token, "\r\n"): // which the decoder passes over
		return Position{}, fmt.Errorf("%w: %.80q has more than one line", ErrBadToken, token)
	case err != nil:
		return Position{}, fmt.Errorf("%w: %.80q: %w", ErrBadToken, token, err)
	case len(b) > 0 && b[0] != tokenVersion:
		return Position{}, fmt.Errorf("%w: version %d, this release reads %d", ErrBadToken, b[0], tokenVersion)
	case len(b) != tokenSize:
		return Position{}, fmt.Errorf("%w: %.80q is %d bytes, not %d", ErrBadToken, token, len(b), tokenSize)
	case binary.BigEndian.Uint32(b[tokenSize-4:]) != crc32.Checksum(b[:tokenSize-4], castagnoli):
		return Position{}, fmt.Errorf("%w: %.80q does not match its checksum", ErrBadToken, token)
	}
	p := Position{Seq: binary.BigEndian.Uint64(b[1:])}
	copy(p.Digest[:], b[9:])
	return p, nil
}
