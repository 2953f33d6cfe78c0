package cids

import (
	"bytes"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"pgregory.net/rapid"
)

// TestAgainstGoCid compares with what go-cid and go-multihash say, for CIDs of both
// versions, of short and long codecs and functions, and of identity. Proves F25, S2.
func TestAgainstGoCid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		code := rapid.SampledFrom([]uint64{multihash.IDENTITY, multihash.SHA2_256, multihash.SHA2_512, 0xb220}).Draw(t, "function")
		digest := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "digest")
		if code == multihash.SHA2_256 && rapid.Bool().Draw(t, "whole") {
			digest = bytes.Repeat([]byte{7}, 32)
		}
		m, err := multihash.Encode(digest, code)
		if err != nil {
			t.Fatal(err)
		}
		c := cid.NewCidV1(rapid.SampledFrom([]uint64{cid.Raw, cid.DagProtobuf, 0x0129, 1 << 40}).Draw(t, "codec"), m)
		if code == multihash.SHA2_256 && len(digest) == 32 && rapid.Bool().Draw(t, "v0") {
			c = cid.NewCidV0(m)
		}
		if got := Multihash(c); got != string(c.Hash()) {
			t.Fatalf("%x, want %x", got, c.Hash())
		}
		gotCode, gotDigest, ok := SplitString(Multihash(c))
		if !ok || gotCode != code || !bytes.Equal(gotDigest, digest) {
			t.Fatalf("%#x %x %t, want %#x %x", gotCode, gotDigest, ok, code, digest)
		}
		data, ok := Identity(c)
		if ok != (code == multihash.IDENTITY) || ok && !bytes.Equal(data, digest) {
			t.Fatalf("identity: %x, %t", data, ok)
		}
		// Every other length is refused, as go-multihash does.
		for _, bad := range [][]byte{m[:len(m)-1], append(bytes.Clone(m), 0)} {
			_, err := multihash.Cast(bad)
			if _, _, ok := Split(bad); ok != (err == nil) {
				t.Fatalf("%x: %t, go-multihash says %v", bad, ok, err)
			}
		}
	})
	if Multihash(cid.Undef) != "" {
		t.Error("an undefined CID has a multihash")
	}
	if _, ok := Identity(cid.Undef); ok {
		t.Error("an undefined CID is an identity")
	}
}
