package carscan_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
)

// TestWordsForACAR: a page of words, an empty file and a CAR that is packed into
// something are said to be what they are, at once, with their beginning in the error, and
// are never "cut off". Proves S1.
func TestWordsForACAR(t *testing.T) {
	car := hostile.V1(hostile.Raw([]byte("a")))
	packed := func(w io.WriteCloser, b *bytes.Buffer, data []byte) []byte {
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	gz := func(data []byte) []byte { var b bytes.Buffer; return packed(gzip.NewWriter(&b), &b, data) }
	var tarred, zipped bytes.Buffer
	tw := tar.NewWriter(&tarred)
	if err := tw.WriteHeader(&tar.Header{Name: "movies.car", Mode: 0o600, Size: int64(len(car))}); err != nil {
		t.Fatal(err)
	}
	old := bytes.Clone(packed(tw, &tarred, car))
	copy(old[257:265], make([]byte, 8)) // as tar was before it had a magic
	sum := 0
	for i, c := range old[:512] {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int(c)
	}
	copy(old[148:], []byte{byte('0' + sum>>15&7), byte('0' + sum>>12&7), byte('0' + sum>>9&7), byte('0' + sum>>6&7), byte('0' + sum>>3&7), byte('0' + sum&7), 0, ' '})
	zw := zip.NewWriter(&zipped)
	f, err := zw.Create("movies.car")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(car); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"HTML":          {[]byte("<html><head><title>403 Forbidden</title></head>"), `begins with "<html><head><title>403 Forbidden</title></head>"`},
		"JSON":          {[]byte(`{"error":"gone"}`), `begins with "{\"error\":\"gone\"}"`},
		"a long page":   {[]byte("<!DOCTYPE html>" + strings.Repeat("<p>", 10_000)), `"<!DOCTYPE html>` + strings.Repeat("<p>", 16)},
		"control codes": {[]byte("\x1b[2Jcleared"), `\x1b[2Jcleared`},
		"empty":         {nil, "the file is empty"},
		"gzip":          {gz(car), "this is gzip, not a CAR"},
		"HTML in gzip":  {gz([]byte("<html>")), "this is gzip, not a CAR"},
		"zlib":          {packed(zlib.NewWriter(&z), &z, car), "this is zlib, not a CAR"},
		"tar":           {tarred.Bytes(), "this is a tar archive, not a CAR"},
		"tar, old":      {old, "this is a tar archive, not a CAR"},
		"zip":           {zipped.Bytes(), "this is a zip archive, not a CAR"},
		"after a block": {append(bytes.Clone(car), "502 Bad Gateway"...), `begins with "502 Bad Gateway"`},
	} {
		_, _, err := scan(t, c.data, carscan.Options{})
		if !errors.Is(err, carscan.ErrMalformed) || errors.Is(err, carscan.ErrTruncated) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %s", name, err, c.says)
		}
		if n := len(err.Error()); n > 500 {
			t.Errorf("%s: an error of %d bytes", name, n)
		}
	}
}

// TestPackedNames: each kind of compression and archive is named. Proves S1.
func TestPackedNames(t *testing.T) {
	n := 0
	for _, c := range hostile.Corpus() {
		name, ok := strings.CutPrefix(c.Name, "packed/")
		if !ok {
			continue
		}
		n++
		if _, _, err := scan(t, c.Data, carscan.Options{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
	if n < 10 {
		t.Errorf("%d kinds", n)
	}
}

// TestNotFinalised: a CARv2 whose writer stopped before the end says so, and what makes
// it whole is its header alone. Proves S1.
func TestNotFinalised(t *testing.T) {
	payload := hostile.V1(hostile.Raw([]byte("a")))
	n := uint64(len(payload))
	for name, file := range map[string][]byte{
		"blank header":          append(hostile.V2Header([16]byte{}, 0, 0, 0), payload...),
		"no length":             append(hostile.V2Header([16]byte{}, 51, 0, 0), payload...),
		"no length, an index":   append(hostile.V2Header([16]byte{}, 51, 0, 51+n), payload...),
		"header and no payload": hostile.V2Header([16]byte{}, 0, 0, 0),
	} {
		_, _, err := scan(t, file, carscan.Options{})
		if !errors.Is(err, carscan.ErrNotFinalised) || !errors.Is(err, carscan.ErrMalformed) || !strings.Contains(err.Error(), "not finalised") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, file := range map[string][]byte{
		"pragma only":   []byte(hostile.Pragma),
		"index is away": append(hostile.V2Header([16]byte{}, 51, n, 51+n+1), payload...),
	} {
		if _, _, err := scan(t, file, carscan.Options{}); !errors.Is(err, carscan.ErrTruncated) || !strings.Contains(err.Error(), "finalised") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, sum, err := scan(t, append(hostile.V2Header([16]byte{}, 51, n, 0), payload...), carscan.Options{}); err != nil || sum.Blocks != 1 {
		t.Errorf("finalised: %v, %v", sum, err)
	}
}
