package hostile

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/internal/carscan"
)

// Case is one small file and the verdict that it deserves under default options.
type Case struct {
	Name string
	Data []byte
	// Want is the kind of error, nil if the file is good.
	Want error
	// Blocks is how many sections a good file has.
	Blocks int
}

// Corpus returns the cases, the same ones in the same order every time.
func Corpus() []Case {
	var c corpus
	c.good()
	c.lengths()
	c.headers()
	c.roots()
	c.sections()
	c.cids()
	c.hashes()
	c.padding()
	c.v2()
	c.cuts()
	c.flips()
	c.words()
	return c.cases
}

type corpus struct{ cases []Case }

func (c *corpus) ok(name string, blocks int, parts ...[]byte) {
	c.cases = append(c.cases, Case{name, Join(parts...), nil, blocks})
}

func (c *corpus) bad(name string, want error, parts ...[]byte) {
	c.cases = append(c.cases, Case{Name: name, Data: Join(parts...), Want: want})
}

var (
	root   = RawCID([]byte("root"))
	header = Header(root)
	blockA = Raw([]byte("a"))
	blockB = Raw(bytes.Repeat([]byte("b"), 300))
)

const (
	identity    = multihash.IDENTITY
	rawCodec    = 0x55
	veryLong    = 1 << 62
	v2HeaderEnd = 51
)

func (c *corpus) good() {
	c.ok("good/header only", 0, header)
	c.ok("good/no roots", 1, Header(), blockA)
	c.ok("good/many roots", 0, Header(slices.Repeat([][]byte{root}, 100)...))
	c.ok("good/two blocks", 2, header, blockA, blockB)
	c.ok("good/duplicates", 3, header, blockA, blockA, blockA)
	c.ok("good/empty block", 1, header, Raw(nil))
	c.ok("good/CIDv0", 1, header, Section(RawCID([]byte("v0"))[2:], []byte("v0")))
	c.ok("good/identity", 1, header, Section(CIDv1(rawCodec, Mh(identity, []byte("hello"))), []byte("hello")))
	c.ok("good/empty identity", 1, header, Section(CIDv1(rawCodec, Mh(identity, nil)), nil))
	c.ok("good/longest identity", 1, header, Section(CIDv1(rawCodec, Mh(identity, make([]byte, 128))), make([]byte, 128)))
	c.ok("good/zero padding", 1, header, blockA, make([]byte, 1000))
	c.ok("good/one zero", 1, header, blockA, []byte{0})
	c.ok("good/padding after the header", 0, header, make([]byte, 10))
	c.ok("good/large block", 1, header, Raw(make([]byte, 3<<20)))
	c.ok("good/large codec", 1, header, Section(CIDv1(veryLong, RawCID([]byte("x"))[2:]), []byte("x")))
	c.ok("good/keys in the other order", 1, LP(Join([]byte("\xa2\x67version\x01\x65roots\x80"))), blockA)
	c.ok("good/v2", 2, V2(V1(blockA, blockB)))
	c.ok("good/v2 fully indexed bit", 1, V2Header([16]byte{0x80}, v2HeaderEnd, uint64(len(V1(blockA))), 0), V1(blockA))
	c.ok("good/v2 gap before the payload", 1, V2Header([16]byte{}, 100, uint64(len(V1(blockA))), 0), make([]byte, 49), V1(blockA))
	c.ok("good/v2 bytes after the payload", 1, V2Header([16]byte{}, v2HeaderEnd, uint64(len(V1(blockA))), 0), V1(blockA), []byte("junk"))
	c.ok("good/v2 padded payload", 1, V2(Join(V1(blockA), make([]byte, 77))))
	c.ok("good/v2 junk for an index", 1, V2Header([16]byte{}, v2HeaderEnd, uint64(len(V1(blockA))), uint64(v2HeaderEnd+len(V1(blockA)))), V1(blockA), []byte("not an index"))
	for _, f := range []struct {
		name string
		code uint64
		n    int
	}{{"sha1", multihash.SHA1, 20}, {"sha2-256 cut to 20", multihash.SHA2_256, 20}, {"sha2-512", multihash.SHA2_512, 64}, {"sha3-256", multihash.SHA3_256, 32}, {"blake2b-256", multihash.BLAKE2B_MIN + 31, 32}, {"blake2s-256", multihash.BLAKE2S_MIN + 31, 32}, {"blake3", multihash.BLAKE3, 32}, {"keccak-256", multihash.KECCAK_256, 32}, {"dbl-sha2-256", multihash.DBL_SHA2_256, 32}} {
		mh, err := multihash.Sum([]byte("x"), f.code, f.n)
		if err != nil {
			panic(err)
		}
		c.ok("good/"+f.name, 1, header, Section(CIDv1(rawCodec, mh), []byte("x")))
		wrong := bytes.Clone(mh)
		wrong[len(wrong)-1] ^= 1
		c.bad("hash/wrong "+f.name, carscan.ErrHashMismatch, header, Section(CIDv1(rawCodec, wrong), []byte("x")))
	}
}

// nonMinimal writes v with a needless byte.
func nonMinimal(v uint64) []byte {
	b := Uvarint(v)
	b[len(b)-1] |= 0x80
	return append(b, 0)
}

var (
	tooLongVarint = bytes.Repeat([]byte{0xff}, 12)
	tenBytes      = append(bytes.Repeat([]byte{0x80}, 9), 1)
)

func (c *corpus) lengths() {
	c.bad("length/empty file", carscan.ErrMalformed)
	c.bad("length/zero header", carscan.ErrMalformed, []byte{0})
	c.bad("length/all zero", carscan.ErrMalformed, make([]byte, 100))
	c.bad("length/half a varint", carscan.ErrTruncated, []byte{0x80})
	c.bad("length/header varint not minimal", carscan.ErrMalformed, nonMinimal(uint64(len(header)-1)), header[1:])
	c.bad("length/header varint too long", carscan.ErrMalformed, tooLongVarint)
	c.bad("length/header varint of ten bytes", carscan.ErrMalformed, tenBytes, make([]byte, 20))
	c.bad("length/header claims more than there is", carscan.ErrTruncated, Uvarint(1000), header[1:])
	c.bad("length/header claims 1 MiB and one", carscan.ErrLimit, Uvarint(1<<20+1), header[1:])
	c.bad("length/header claims 2^62", carscan.ErrLimit, Uvarint(veryLong), header[1:])
	c.bad("length/section claims 2^62", carscan.ErrLimit, header, Uvarint(veryLong), root)
	c.bad("length/section claims 2^63-1", carscan.ErrLimit, header, Uvarint(1<<63-1), root)
	c.bad("length/section claims 32 MiB and one", carscan.ErrLimit, header, Uvarint(32<<20+1), root)
	c.bad("length/section claims 32 MiB", carscan.ErrTruncated, header, Uvarint(32<<20), root)
	c.bad("length/section claims one byte more", carscan.ErrTruncated, header, Uvarint(uint64(len(blockA))), blockA[1:])
	c.bad("length/section varint not minimal", carscan.ErrMalformed, header, nonMinimal(37), blockA[1:])
	c.bad("length/section varint too long", carscan.ErrMalformed, header, tooLongVarint)
	c.bad("length/section varint of ten bytes", carscan.ErrMalformed, header, tenBytes, make([]byte, 50))
	c.bad("length/section varint cut", carscan.ErrTruncated, header, []byte{0x80, 0x80})
	c.bad("length/zero as two bytes", carscan.ErrMalformed, header, []byte{0x80, 0}, make([]byte, 20))
}

func (c *corpus) headers() {
	bad := func(name, body string) { c.bad("header/"+name, carscan.ErrMalformed, LP([]byte(body)), blockA) }
	bad("not CBOR", "hello, world")
	bad("empty map", "\xa0")
	bad("array", "\x82\x01\x02")
	bad("no version", "\xa1\x65roots\x80")
	bad("no roots", "\xa1\x67version\x01")
	bad("version twice", "\xa2\x67version\x01\x67version\x01")
	bad("roots twice", "\xa2\x65roots\x80\x65roots\x80")
	bad("third key", "\xa3\x65roots\x80\x67version\x01\x63foo\x01")
	bad("unknown key", "\xa2\x65roots\x80\x67versiom\x01")
	bad("version is text", "\xa2\x65roots\x80\x67version\x611")
	bad("version is negative", "\xa2\x65roots\x80\x67version\x20")
	bad("version not minimal", "\xa2\x65roots\x80\x67version\x18\x01")
	bad("roots is a map", "\xa2\x65roots\xa0\x67version\x01")
	bad("roots is null", "\xa2\x65roots\xf6\x67version\x01")
	bad("indefinite map", "\xbf\x65roots\x80\x67version\x01\xff")
	bad("indefinite array", "\xa2\x65roots\x9f\xff\x67version\x01")
	bad("bytes as key", "\xa2\x45roots\x80\x67version\x01")
	bad("bytes after its end", "\xa2\x65roots\x80\x67version\x01\x00")
	bad("cut in a key", "\xa2\x65roo")
	bad("cut in a length", "\xa2\x79\x00")
	bad("key of 2^64-1 bytes", "\xa2\x7b\xff\xff\xff\xff\xff\xff\xff\xff")
	bad("map of 2^64-1 pairs", "\xbb\xff\xff\xff\xff\xff\xff\xff\xff")
	bad("reserved length", "\xa2\x65roots\x9c\x67version\x01")
	bad("deep nesting", "\xa2\x65roots"+string(bytes.Repeat([]byte{0x81}, 1000)))
	bad("version 2 with roots", "\xa2\x65roots\x80\x67version\x02")
	for _, v := range []string{"\x00", "\x03", "\x17", "\x18\x2a", "\x1b\xff\xff\xff\xff\xff\xff\xff\xff"} {
		c.bad(fmt.Sprintf("header/version %x", v), carscan.ErrUnsupportedVersion, LP([]byte("\xa2\x65roots\x80\x67version"+v)), blockA)
	}
}

func (c *corpus) roots() {
	in := func(head string, items ...[]byte) []byte {
		return LP(Join([]byte("\xa2\x65roots"+head), Join(items...), []byte("\x67version\x01")))
	}
	item := func(cid []byte) []byte {
		return Join([]byte{0xd8, 0x2a}, cborHead(2, uint64(len(cid)+1)), []byte{0}, cid)
	}
	c.bad("roots/2^64-1 of them", carscan.ErrLimit, in("\x9b\xff\xff\xff\xff\xff\xff\xff\xff", item(root)))
	c.bad("roots/2^32-1 of them", carscan.ErrLimit, in("\x9a\xff\xff\xff\xff", item(root)))
	c.bad("roots/4,097 of them", carscan.ErrLimit, in("\x99\x10\x01", bytes.Repeat(item(root), 4097)))
	c.ok("roots/4,096 of them", 0, in("\x99\x10\x00", bytes.Repeat(item(root), 4096)))
	c.bad("roots/fewer than claimed", carscan.ErrMalformed, in("\x83", item(root)))
	c.bad("roots/more than claimed", carscan.ErrMalformed, in("\x81", item(root), item(root)))
	c.bad("roots/no tag", carscan.ErrMalformed, in("\x81", item(root)[2:]))
	c.bad("roots/tag 43", carscan.ErrMalformed, in("\x81", Join([]byte{0xd8, 0x2b}, item(root)[2:])))
	c.bad("roots/tag not minimal", carscan.ErrMalformed, in("\x81", Join([]byte{0xd9, 0, 0x2a}, item(root)[2:])))
	c.bad("roots/text", carscan.ErrMalformed, in("\x81", []byte("\xd8\x2a\x63abc")))
	c.bad("roots/empty", carscan.ErrMalformed, in("\x81", []byte{0xd8, 0x2a, 0x40}))
	c.bad("roots/no multibase prefix", carscan.ErrMalformed, in("\x81", Join([]byte{0xd8, 0x2a, 0x58, byte(len(root))}, root)))
	c.bad("roots/only a prefix", carscan.ErrMalformed, in("\x81", item(nil)))
	c.bad("roots/cut CID", carscan.ErrMalformed, in("\x81", item(root[:20])))
	c.bad("roots/bytes after the CID", carscan.ErrMalformed, in("\x81", item(append(bytes.Clone(root), 0))))
	c.bad("roots/string of 2^63 bytes", carscan.ErrMalformed, in("\x81", []byte("\xd8\x2a\x5b\x80\x00\x00\x00\x00\x00\x00\x00")))
	c.ok("roots/placeholder of an unknown function", 0, in("\x81", item(CIDv1(rawCodec, Mh(0x999999, []byte{1, 2, 3, 4})))))
}

func (c *corpus) sections() {
	c.bad("section/one byte", carscan.ErrMalformed, header, []byte{1, 1})
	c.bad("section/shorter than its CID", carscan.ErrMalformed, header, LP(root[:len(root)-1]), blockA)
	c.bad("section/CID runs into the next section", carscan.ErrMalformed, header, Uvarint(10), root, blockA)
	c.bad("section/junk", carscan.ErrMalformed, header, LP([]byte("this is not a CID")))
	c.bad("section/header again", carscan.ErrMalformed, header, header)
	c.bad("section/swapped data", carscan.ErrHashMismatch, header, Section(RawCID([]byte("a")), []byte("b")), Section(RawCID([]byte("b")), []byte("a")))
	c.bad("section/data one byte short", carscan.ErrHashMismatch, header, Section(RawCID([]byte("abc")), []byte("ab")))
	c.bad("section/second is wrong", carscan.ErrHashMismatch, header, blockA, Section(RawCID([]byte("x")), []byte("y")), blockB)
	c.bad("section/wrong, then truncated", carscan.ErrHashMismatch, header, Section(RawCID([]byte("x")), []byte("y")), blockA[:20])
	c.bad("section/truncated, after a good one", carscan.ErrTruncated, header, blockB, blockA[:20])
	c.bad("section/large and wrong", carscan.ErrHashMismatch, header, Section(RawCID([]byte("x")), make([]byte, 2<<20)))
	c.bad("section/large and cut", carscan.ErrTruncated, header, Raw(make([]byte, 2<<20))[:1<<20])
}

func (c *corpus) cids() {
	digest := root[4:]
	bad := func(name string, cid ...byte) {
		c.bad("cid/"+name, carscan.ErrMalformed, header, Section(cid, []byte("data that follows it, long enough for anything")))
	}
	bad("version 0", Join([]byte{0, rawCodec, 0x12, 32}, digest)...)
	bad("version 2", Join([]byte{2, rawCodec, 0x12, 32}, digest)...)
	bad("version 2^62", Join(Uvarint(veryLong), []byte{rawCodec, 0x12, 32}, digest)...)
	bad("version not minimal", Join(nonMinimal(1), []byte{rawCodec, 0x12, 32}, digest)...)
	bad("codec not minimal", Join([]byte{1}, nonMinimal(rawCodec), []byte{0x12, 32}, digest)...)
	bad("codec of ten bytes", Join([]byte{1}, tenBytes, []byte{0x12, 32}, digest)...)
	bad("function not minimal", Join([]byte{1, rawCodec}, nonMinimal(0x12), []byte{32}, digest)...)
	bad("length not minimal", Join([]byte{1, rawCodec, 0x12}, nonMinimal(32), digest)...)
	bad("digest of 2^62 bytes", Join([]byte{1, rawCodec, 0x12}, Uvarint(veryLong), digest)...)
	bad("digest of 2^63-1 bytes", Join([]byte{1, rawCodec, 0x12}, Uvarint(1<<63-1), digest)...)
	bad("CIDv0 of another function", Join([]byte{0x13, 32}, digest)...)
	bad("CIDv0 of another length", Join([]byte{0x12, 31}, digest)...)
	c.bad("cid/cut CIDv0", carscan.ErrMalformed, header, LP(root[2:20]))
	for n := range 4 {
		c.bad(fmt.Sprintf("cid/cut after %d bytes", n+1), carscan.ErrMalformed, header, LP(root[:n+1]))
	}
}

func (c *corpus) hashes() {
	refuse := func(name string, mh []byte, data []byte) {
		c.bad("hash/"+name, carscan.ErrUnsupportedHash, header, Section(CIDv1(rawCodec, mh), data))
	}
	sha := root[4:]
	refuse("unknown function", Mh(0x999999, sha), nil)
	refuse("function 2^62", Mh(veryLong, sha), nil)
	refuse("poseidon", Mh(0xb401, sha), nil)
	refuse("md5", Mh(multihash.MD5, sha[:16]), nil)
	refuse("murmur3", Mh(multihash.MURMUR3X64_64, sha[:8]), nil)
	refuse("sha2-256 of 19 bytes", Mh(0x12, sha[:19]), nil)
	refuse("sha2-256 of no bytes", Mh(0x12, nil), nil)
	refuse("sha2-256 of 33 bytes", Mh(0x12, append(bytes.Clone(sha), 0)), nil)
	refuse("sha1 of 21 bytes", Mh(multihash.SHA1, sha[:21]), nil)
	sum := sha512.Sum512([]byte("x"))
	refuse("sha2-512 of 65 bytes", Mh(multihash.SHA2_512, append(sum[:], 0)), nil)
	refuse("identity of 129 bytes", Mh(identity, make([]byte, 129)), make([]byte, 129))
	refuse("identity of 10,000 bytes", Mh(identity, make([]byte, 10000)), make([]byte, 10000))
	mismatch := func(name, digest, data string) {
		c.bad("hash/"+name, carscan.ErrHashMismatch, header, Section(CIDv1(rawCodec, Mh(identity, []byte(digest))), []byte(data)))
	}
	mismatch("identity of other data", "hello", "hullo")
	mismatch("identity of more data", "hello", "hello!")
	mismatch("identity of less data", "hello", "hell")
	mismatch("identity of nothing with data", "", "x")
	c.bad("hash/short identity of a large block", carscan.ErrHashMismatch, header, Section(CIDv1(rawCodec, Mh(identity, make([]byte, 100))), make([]byte, 2<<20)))
}

func (c *corpus) padding() {
	pad := func(at int, n int) []byte {
		b := make([]byte, n)
		b[at] = 1
		return b
	}
	c.bad("padding/one at its end", carscan.ErrMalformed, header, blockA, pad(999, 1000))
	c.bad("padding/one at its start", carscan.ErrMalformed, header, blockA, pad(1, 1000))
	c.bad("padding/a section after it", carscan.ErrMalformed, header, blockA, make([]byte, 10), blockB)
	c.bad("padding/far away", carscan.ErrMalformed, header, blockA, pad(2<<20-1, 2<<20))
	c.bad("padding/in the payload of a v2", carscan.ErrMalformed, V2(Join(V1(blockA), pad(9, 10))))
	c.ok("padding/long", 1, header, blockA, make([]byte, 2<<20))
	c.ok("padding/junk after the payload of a v2", 1, V2Header([16]byte{}, v2HeaderEnd, uint64(len(V1(blockA))+10), 0), V1(blockA), make([]byte, 10), []byte("junk"))
}

func (c *corpus) v2() {
	payload := V1(blockA, blockB)
	n := uint64(len(payload))
	bad := func(name string, want error, data, size, index uint64) {
		c.bad("v2/"+name, want, V2Header([16]byte{}, data, size, index), payload)
	}
	c.bad("v2/pragma only", carscan.ErrTruncated, []byte(Pragma))
	c.bad("v2/half a header", carscan.ErrTruncated, V2Header([16]byte{}, 51, n, 0)[:30])
	c.bad("v2/no payload", carscan.ErrTruncated, V2Header([16]byte{}, 51, n, 0))
	c.bad("v2/unfinished", carscan.ErrNotFinalised, V2Header([16]byte{}, 0, 0, 0), payload)
	bad("data offset 0", carscan.ErrMalformed, 0, n, 0)
	bad("data offset 50", carscan.ErrMalformed, 50, n, 0)
	bad("data offset past the end", carscan.ErrTruncated, 52+n, n, 0)
	bad("data offset 2^63", carscan.ErrTruncated, 1<<63, n, 0)
	bad("data offset 2^64-1", carscan.ErrTruncated, 1<<64-1, n, 0)
	bad("data size 0", carscan.ErrNotFinalised, 51, 0, 0)
	bad("data size 0 and an index", carscan.ErrNotFinalised, 51, 0, 51+n)
	bad("data offset past the end, and size 0", carscan.ErrMalformed, 52+n, 0, 0)
	bad("only an index offset", carscan.ErrMalformed, 0, 0, 51+n)
	c.bad("v2/unfinished, after padding", carscan.ErrNotFinalised, V2Header([16]byte{}, 0, 0, 0), make([]byte, 100), payload)
	c.bad("v2/unfinished, nothing written", carscan.ErrNotFinalised, V2Header([16]byte{}, 0, 0, 0))
	c.bad("v2/unfinished, with characteristics", carscan.ErrNotFinalised, V2Header([16]byte{0x80}, 0, 0, 0), payload)
	bad("data size one too many", carscan.ErrTruncated, 51, n+1, 0)
	bad("data size 2^63", carscan.ErrTruncated, 51, 1<<63, 0)
	bad("data offset and size overflow", carscan.ErrTruncated, 51, 1<<64-51, 0)
	bad("data size cuts a section", carscan.ErrTruncated, 51, n-1, 0)
	bad("data size cuts the header", carscan.ErrTruncated, 51, 10, 0)
	bad("data offset one too far", carscan.ErrMalformed, 52, n-1, 0)
	bad("index inside the headers", carscan.ErrMalformed, 51, n, 1)
	bad("index inside the payload", carscan.ErrMalformed, 51, n, 51+n-1)
	bad("index past the end", carscan.ErrTruncated, 51, n, 52+n)
	bad("index at 2^64-1", carscan.ErrTruncated, 51, n, 1<<64-1)
	c.ok("v2/index at the very end", 2, V2Header([16]byte{}, 51, n, 51+n), payload)
	for i := range 16 {
		var ch [16]byte
		ch[i] = 0x01
		c.ok(fmt.Sprintf("v2/unknown characteristic in byte %d", i), 2, V2Header(ch, 51, n, 0), payload)
	}
	c.ok("v2/all characteristics", 2, V2Header([16]byte(bytes.Repeat([]byte{0xff}, 16)), 51, n, 0), payload)
	c.bad("v2/pragma not canonical", carscan.ErrMalformed, LP([]byte("\xa1\x67version\x18\x02")), V2Header([16]byte{}, 51, n, 0)[11:], payload)
	c.bad("v2/in a v2", carscan.ErrMalformed, V2(V2(payload)))
	c.bad("v2/payload of version 3", carscan.ErrUnsupportedVersion, V2(LP([]byte("\xa2\x65roots\x80\x67version\x03"))))
	c.bad("v2/payload is junk", carscan.ErrMalformed, V2([]byte("\x05hello")))
	c.bad("v2/payload is zeros", carscan.ErrMalformed, V2(make([]byte, 100)))
	lying := binary.LittleEndian.AppendUint64(Join([]byte{0x81, 0x08}, []byte{1, 0, 0, 0}, make([]byte, 8), []byte{1, 0, 0, 0, 40, 0, 0, 0}), 1<<62)
	c.ok("v2/index that claims 2^62 bytes", 2, V2Header([16]byte{}, 51, n, 51+n), payload, lying)
}

// cuts cuts a small file at every length.
func (c *corpus) cuts() {
	file := V1(blockA, Raw([]byte("bb")))
	ends := map[int]int{len(header): 0, len(header) + len(blockA): 1}
	for n := 1; n < len(file); n++ {
		name := fmt.Sprintf("cut/after %d bytes", n)
		if blocks, whole := ends[n]; whole {
			c.ok(name, blocks, file[:n])
		} else {
			c.bad(name, carscan.ErrTruncated, file[:n])
		}
	}
}

// flips flips bits in the data and digests of a small file: each is a mismatch.
func (c *corpus) flips() {
	data := []byte("some data to be flipped")
	file := V1(Raw(data), blockA)
	for i := len(header) + 5; i < len(header)+37+len(data); i += 3 {
		b := bytes.Clone(file)
		b[i] ^= 1 << (i % 8)
		c.bad(fmt.Sprintf("flip/byte %d", i), carscan.ErrHashMismatch, b)
	}
}

// words are what servers say in place of a CAR or after a part of it, and CARs that are
// packed into something. None is a file that was cut off.
func (c *corpus) words() {
	texts := map[string]string{
		"HTML":               "<html><head><title>403 Forbidden</title></head>",
		"HTML with doctype":  "<!DOCTYPE html>\n<html lang=en><body>" + strings.Repeat("not here ", 100),
		"JSON":               `{"error":"not found"}`,
		"JSON array":         `[{"code":404}]`,
		"XML":                `<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>`,
		"plain":              "404 page not found\n",
		"plain, short":       "no",
		"plain, long":        strings.Repeat("Service unavailable. ", 1000),
		"newlines":           "\r\n\r\n",
		"of a CAR's length":  "\x3a colon",
		"UTF-8 with a mark":  "\xef\xbb\xbf<html>",
		"UTF-8, not ASCII":   "не найдено, попробуйте ещё раз",
		"UTF-16":             "\xff\xfe<\x00h\x00t\x00m\x00l\x00",
		"UTF-16, big endian": "\xfe\xff\x00<\x00h\x00t\x00m\x00l",
		"git LFS pointer":    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
		"YAML":               "roots:\n  - bafy\nversion: 1\n",
		"ones":               strings.Repeat("\xff", 100),
	}
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		text := []byte(texts[name])
		c.bad("words/"+name, carscan.ErrMalformed, text)
		c.bad("words/"+name+" in a v2", carscan.ErrMalformed, V2(text))
		if len(text) > 2 {
			c.bad("words/"+name+" after a block", carscan.ErrMalformed, header, blockA, text)
		}
	}
	file := V1(blockA, blockB)
	tar := make([]byte, 512)
	copy(tar, "movies.car")
	copy(tar[257:], "ustar\x0000")
	for _, name := range slices.Sorted(maps.Keys(packed)) {
		c.bad("packed/"+name, carscan.ErrMalformed, []byte(packed[name]), file)
	}
	c.bad("packed/tar", carscan.ErrMalformed, tar, file, make([]byte, 1024))
}

// packed are the beginnings of what CARs are packed into, by the name that the error has
// for it.
var packed = map[string]string{
	"gzip": "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "zstd": "\x28\xb5\x2f\xfd\x04\x58", "bzip2": "BZh91AY&SY",
	"xz": "\xfd7zXZ\x00\x00\x04", "lz4": "\x04\x22\x4d\x18\x64\x40", "zip": "PK\x03\x04\x14\x00", "7z": "7z\xbc\xaf\x27\x1c\x00\x04",
	"lzip": "LZIP\x01", "snappy": "\xff\x06\x00\x00sNaPpY", "zlib": "\x78\x9c\xab\x56",
}
