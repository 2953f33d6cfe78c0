package mount

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net/url"
)

// BytesMount is a source in memory, whose URL holds the bytes themselves. It suits
// small shards and tests. The bytes must not change while the mount is in use.
type BytesMount struct {
	Bytes []byte
}

var _ Mount = (*BytesMount)(nil)

// Fetch returns a reader of the bytes, without copying them.
func (b *BytesMount) Fetch(ctx context.Context) (Reader, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r := bytes.NewReader(b.Bytes)
	return &NopCloser{Reader: r, ReaderAt: r, Seeker: r}, nil
}

// Info says local, with every kind of access.
func (b *BytesMount) Info() Info {
	return Info{Kind: KindLocal, AccessSequential: true, AccessSeek: true, AccessRandom: true}
}

// Stat never fails.
func (b *BytesMount) Stat(context.Context) (Stat, error) {
	return Stat{Exists: true, Size: int64(len(b.Bytes)), Ready: true}, nil
}

// Serialize returns bytes:<base64url without padding>.
func (b *BytesMount) Serialize() *url.URL {
	return &url.URL{Opaque: base64.RawURLEncoding.EncodeToString(b.Bytes)}
}

// Deserialize also reads the predecessor's form, padded standard base64 in the
// host's place.
func (b *BytesMount) Deserialize(u *url.URL) error {
	enc, text := base64.RawURLEncoding, u.Opaque
	if u.Host != "" {
		enc, text = base64.StdEncoding, u.Host+u.Path
	}
	data, err := enc.DecodeString(text)
	if err != nil {
		return malformed(fmt.Errorf("bytes mount: content in the URL: %w", err))
	}
	b.Bytes = data
	return nil
}

// Close does nothing: the bytes are the caller's, and the mount's URL.
func (b *BytesMount) Close() error { return nil }
