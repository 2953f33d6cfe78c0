package journal

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func drawPosition(t *rapid.T) Position {
	p := Position{Seq: rapid.Uint64().Draw(t, "seq")}
	copy(p.Digest[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "digest"))
	return p
}

// TestToken: a token reads back as the position it was made of, is URL-safe, and no
// other text of one changed character reads as any position. Proves G11 (tokens).
func TestToken(t *testing.T) {
	t.Parallel()
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	rapid.Check(t, func(t *rapid.T) {
		p := drawPosition(t)
		token := p.Token()
		if len(token) != 60 || strings.Trim(token, alphabet) != "" {
			t.Fatalf("token %q", token)
		}
		if got, err := ParseToken(token); err != nil || got != p {
			t.Fatalf("ParseToken = %v, %v; want %v", got, err, p)
		}
		i := rapid.IntRange(0, len(token)-1).Draw(t, "i")
		c := rapid.Byte().Draw(t, "c")
		changed := token[:i] + string([]byte{c}) + token[i+1:]
		if changed == token {
			return
		}
		if got, err := ParseToken(changed); !errors.Is(err, ErrBadToken) || got != (Position{}) {
			t.Fatalf("ParseToken of a changed token = %v, %v; want ErrBadToken", got, err)
		}
	})
}

// TestTokenRefusals: what is missing, cut, longer or of another version never means
// "any position". Proves G11 (tokens).
func TestTokenRefusals(t *testing.T) {
	p := Position{Seq: 7, Digest: [32]byte{1, 31: 2}}
	token := p.Token()
	version2 := make([]byte, tokenSize)
	version2[0] = 2
	binary.BigEndian.PutUint32(version2[tokenSize-4:], crc32.Checksum(version2[:tokenSize-4], castagnoli))
	for name, bad := range map[string]string{
		"empty":        "",
		"blank":        " ",
		"padding":      token + "=",
		"space behind": token + " ",
		"line behind":  token + "\n",
		"line inside":  token[:20] + "\n" + token[20:],
		"twice":        token + token,
		"a word":       "latest",
		"zero":         strings.Repeat("A", len(token)),
		"version 2":    base64.RawURLEncoding.EncodeToString(version2),
		"standard":     strings.NewReplacer("-", "+", "_", "/").Replace(Position{Seq: 0xfbfffe << 40}.Token()),
		"huge":         strings.Repeat("A", 1<<20),
	} {
		got, err := ParseToken(bad)
		if !errors.Is(err, ErrBadToken) || got != (Position{}) {
			t.Errorf("%s: ParseToken = %v, %v; want ErrBadToken", name, got, err)
		}
		if err != nil && len(err.Error()) > 500 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
	for n := range len(token) {
		if _, err := ParseToken(token[:n]); !errors.Is(err, ErrBadToken) {
			t.Errorf("ParseToken of %d characters = %v", n, err)
		}
	}
	if got, err := ParseToken(Position{}.Token()); err != nil || got != (Position{}) {
		t.Errorf("the zero Position's token = %v, %v", got, err)
	}
}

// FuzzToken: no text makes the parser panic, and what it accepts is exactly what Token
// writes.
func FuzzToken(f *testing.F) {
	f.Add(Position{Seq: 1}.Token())
	f.Add("")
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, token string) {
		p, err := ParseToken(token)
		if err == nil && p.Token() != token {
			t.Fatalf("%q was accepted as %v, whose token is %q", token, p, p.Token())
		}
		if err != nil && (!errors.Is(err, ErrBadToken) || p != (Position{})) {
			t.Fatalf("ParseToken = %v, %v", p, err)
		}
	})
}
