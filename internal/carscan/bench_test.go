package carscan_test

import (
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/dagstore/dagstore/internal/carscan"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
)

// BenchmarkScan scans 262,144 blocks of 1 KiB from the page cache. "plain" is the
// yardstick: a sequential read with SHA-256 on one core.
func BenchmarkScan(b *testing.B) {
	name := filepath.Join(b.TempDir(), "bench.car")
	data := hostile.Random(262144, 1024, 1)
	if err := os.WriteFile(name, data, 0o600); err != nil {
		b.Fatal(err)
	}
	size := int64(len(data))
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	scan := func(opts carscan.Options) func(b *testing.B) {
		return func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				sum, err := carscan.Scan(b.Context(), f, size, opts, func(*carscan.Record) error { return nil })
				if err != nil || sum.Blocks != 262144 {
					b.Fatal(sum.Blocks, err)
				}
			}
		}
	}
	b.Run("verified", scan(carscan.Options{}))
	b.Run("unverified", scan(carscan.Options{SkipVerify: true}))
	b.Run("plain", func(b *testing.B) {
		b.SetBytes(size)
		buf := make([]byte, 1<<20)
		for b.Loop() {
			h := sha256.New()
			if _, err := io.CopyBuffer(h, struct{ io.Reader }{io.NewSectionReader(f, 0, size)}, buf); err != nil {
				b.Fatal(err)
			}
			h.Sum(nil)
		}
	})
}
