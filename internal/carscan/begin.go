package carscan

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// What a source is that is no CAR: the words of a server ("403 Forbidden" in HTML or
// JSON), something compressed, an archive. Nearly any byte is a legal length, so that a
// page of words looks like a header that was cut off, and "cut off" reads as "try
// again". So the bytes that are there are held against what a header begins with before
// its length is believed:
//
//	header = length, map of one or two pairs, first key
//
// A file that ends within these is cut off as far as anybody can tell.

// headerBegins are the beginnings of a CARv1 header and of a CARv2's pragma, the longest
// first.
var headerBegins = [...]string{"\xa2\x67version", "\xa1\x67version", "\xa2\x65roots", "\xa1\x65roots"}

// beginsHeader says whether p, the first bytes of a file or all of it, can be those of
// a header, whose length n takes w bytes as uvarint has it.
func beginsHeader(p []byte, n uint64, w, maxHeader int) bool {
	switch {
	case len(p) == 0 || w < 0 || w > 0 && n < uint64(len(pragma)-1): // no header is shorter than the pragma's
		return false
	case w == 0:
		return len(p) < len(binary.AppendUvarint(nil, uint64(maxHeader)))
	}
	for _, b := range headerBegins {
		k := min(len(b), len(p)-w)
		if string(p[w:w+k]) == b[:k] {
			return true
		}
	}
	return false
}

// shown is how much of a source an error shows, enough for "<title>403 Forbidden".
const shown = 64

// quoted shows the beginning of b.
func quoted(b []byte) string {
	if len(b) > shown {
		return fmt.Sprintf("%q…", b[:shown])
	}
	return fmt.Sprintf("%q", b)
}

// notACAR says what a source of which p are the first bytes is, in place of a CAR. What
// cannot be read of the rest is left out: the verdict does not rest on it.
func notACAR(r io.ReaderAt, at, end int64, p []byte) error {
	if end == at {
		return bad(ErrMalformed, at, "the file is empty")
	}
	more := make([]byte, min(tarHeader, end-at))
	if readFull(r, more, at) != nil {
		more = p
	}
	if name := containerOf(more); name != "" {
		return bad(ErrMalformed, at, "this is %s, not a CAR: unpack it first; it begins with %s", name, quoted(more))
	}
	return bad(ErrMalformed, at, "no CAR header: it begins with %s", quoted(more))
}

const (
	tarHeader = 512
	tarMagic  = 257 // where it lies
)

// containers are what a CAR is packed into. The longer of two that begin alike comes first.
var containers = []struct{ magic, name string }{
	{"\x1f\x8b", "gzip"},
	{"\x28\xb5\x2f\xfd", "zstd"},
	{"BZh", "bzip2"},
	{"\xfd7zXZ\x00", "xz"},
	{"\x04\x22\x4d\x18", "lz4"},
	{"\x02\x21\x4c\x18", "lz4"},
	{"\xff\x06\x00\x00sNaPpY", "snappy"},
	{"LZIP", "lzip"},
	{"\x89LZO\x00", "lzop"},
	{"\x1f\x9d", "compress (.Z)"},
	{"PK\x03\x04", "a zip archive"},
	{"PK\x05\x06", "a zip archive"},
	{"PK\x07\x08", "a zip archive"},
	{"7z\xbc\xaf\x27\x1c", "a 7z archive"},
	{"Rar!\x1a\x07", "a rar archive"},
	{"\x5d\x00\x00", "lzma"},
}

// containerOf names the compression or the archive that b begins; "" if it is none.
func containerOf(b []byte) string {
	for _, c := range containers {
		if strings.HasPrefix(string(b), c.magic) {
			return c.name
		}
	}
	switch {
	case len(b) >= 4 && b[0]&0xf0 == 0x50 && string(b[1:4]) == "\x2a\x4d\x18": // a frame to be skipped
		return "zstd or lz4"
	case len(b) >= 2 && b[0] == 0x78 && (uint(b[0])<<8|uint(b[1]))%31 == 0 && b[1]&0x20 == 0:
		return "zlib"
	case len(b) >= tarMagic+5 && string(b[tarMagic:tarMagic+5]) == "ustar":
		return "a tar archive"
	case oldTar(b):
		return "a tar archive"
	}
	return ""
}

// oldTar recognises a tar header without the magic, by its checksum: the sum of its
// bytes with the field of the checksum (148 to 156, octal) taken for spaces.
func oldTar(b []byte) bool {
	if len(b) < tarHeader {
		return false
	}
	want, sum := uint(0), uint(0)
	digits := strings.Trim(string(b[148:156]), " \x00")
	for _, c := range digits {
		if c < '0' || c > '7' {
			return false
		}
		want = want<<3 | uint(c-'0')
	}
	for i, c := range b[:tarHeader] {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += uint(c)
	}
	return digits != "" && sum == want
}

// beginsSection says whether b, what follows a section's length as far as it is there,
// can be the beginning of a CID.
func beginsSection(b []byte) bool {
	switch {
	case len(b) == 0 || b[0] == 1:
		return true
	case b[0] == 0x12: // CIDv0: SHA2-256 of 32 bytes
		return len(b) == 1 || b[1] == 32
	}
	return false
}
