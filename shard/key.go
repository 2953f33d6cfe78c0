package shard

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
	"github.com/mr-tron/base58"
)

// MaxKeyLen is the longest key in bytes.
const MaxKeyLen = 512

// ErrInvalidKey is returned, wrapped with the reason, for a key that no shard can
// have: empty, longer than [MaxKeyLen] bytes, or not valid UTF-8.
var ErrInvalidKey = errors.New("invalid shard key")

// Key names a shard. It is comparable; the zero Key is invalid. Any other string
// of 1 to [MaxKeyLen] bytes of valid UTF-8 is a key, slashes and dots included:
// no part of the store uses a raw key as a file name.
type Key struct {
	str string
}

// KeyFromString returns the key spelled str.
func KeyFromString(str string) Key { return Key{str: str} }

// KeyFromBytes returns the key whose spelling is the base58 form of b.
func KeyFromBytes(b []byte) Key { return Key{str: base58.Encode(b)} }

// KeyFromCID returns the key spelled as c's text form.
func KeyFromCID(c cid.Cid) Key { return Key{str: c.String()} }

// String returns the key's spelling.
func (k Key) String() string { return k.str }

// Format writes the key's spelling. Of one that is longer than a key can be, and so is a
// request's and not a shard's, the beginning and the length: it comes from anywhere, and
// goes into errors.
func (k Key) Format(f fmt.State, verb rune) {
	if verb == 'v' && f.Flag('#') {
		fmt.Fprintf(f, "shard.Key{str:%q}", k.str)
		return
	}
	const most = 64
	if len(k.str) <= MaxKeyLen {
		fmt.Fprintf(f, fmt.FormatString(f, verb), k.str)
		return
	}
	fmt.Fprintf(f, fmt.FormatString(f, verb), strings.ToValidUTF8(k.str[:most], "?"))
	fmt.Fprintf(f, "… (%d bytes)", len(k.str))
}

// Validate returns nil, or an error that wraps [ErrInvalidKey] and says why.
func (k Key) Validate() error {
	switch {
	case k.str == "":
		return fmt.Errorf("%w: empty", ErrInvalidKey)
	case len(k.str) > MaxKeyLen:
		return fmt.Errorf("%w: %d bytes, at most %d allowed (starts %.32q)", ErrInvalidKey, len(k.str), MaxKeyLen, k.str)
	case !utf8.ValidString(k.str):
		return fmt.Errorf("%w: %.64q is not valid UTF-8", ErrInvalidKey, k.str)
	}
	return nil
}

// Compare orders keys by their spelling.
func (k Key) Compare(o Key) int { return strings.Compare(k.str, o.str) }

// MarshalJSON encodes the key as a JSON string.
func (k Key) MarshalJSON() ([]byte, error) { return json.Marshal(k.str) }

// UnmarshalJSON decodes a JSON string. It does not validate the key.
func (k *Key) UnmarshalJSON(bz []byte) error {
	if err := json.Unmarshal(bz, &k.str); err != nil {
		return fmt.Errorf("shard key: %w", err)
	}
	return nil
}
