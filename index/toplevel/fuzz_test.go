package toplevel

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
)

// reseal makes the checksums right at which a reader looks first, so that what is behind
// them is reached.
func reseal(b []byte) {
	le := binary.LittleEndian
	switch {
	case len(b) >= manifestFixed+crcLen && string(b[:8]) == manifestMagic:
		le.PutUint32(b[len(b)-crcLen:], crc32.Checksum(b[:len(b)-crcLen], castagnoli))
	case len(b) >= headerLen+footerLen && string(b[:8]) == runMagic:
		le.PutUint32(b[headerLen-crcLen:], crc32.Checksum(b[:headerLen-crcLen], castagnoli))
		f := b[len(b)-footerLen:]
		copy(f[56:60], b[headerLen-crcLen:headerLen])
		at := le.Uint64(f[32:])
		if at <= uint64(len(b)-footerLen) {
			le.PutUint32(f[52:], crc32.Checksum(b[at:len(b)-footerLen], castagnoli))
		}
		le.PutUint32(f[60:], crc32.Checksum(f[:60], castagnoli))
	}
}

// sampleRun returns a run of an index and the index's identity.
func sampleRun(tb testing.TB, entries uint64) ([]byte, uint64) {
	tb.Helper()
	dir := tb.TempDir()
	x := must(Open(dir, Options{}, Hooks{}))
	x.id = 7
	for n := range 3 {
		if err := x.Add(tb.Context(), ingestNo(n), span{0, entries}); err != nil {
			tb.Fatal(err)
		}
	}
	if err := x.Close(); err != nil {
		tb.Fatal(err)
	}
	name := must(filepath.Glob(filepath.Join(dir, "*"+runSuffix)))[0]
	return must(os.ReadFile(name)), x.id
}

// FuzzRun opens any bytes as a run and uses it: errors, but no panic and no memory that
// the bytes only claim. Proves S1, F20 (the decoder of runs).
func FuzzRun(f *testing.F) {
	for _, n := range []uint64{0, 1, 5, 300} {
		if n == 0 {
			f.Add([]byte{}, uint64(1))
			continue
		}
		b, _ := sampleRun(f, n)
		f.Add(b, n)
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		reseal(b)
		r := &diskRun{name: "fuzz", data: b, filters: new(filters)}
		if err := r.open(7, nil); err != nil {
			return
		}
		for i := range r.parts {
			r.parts[i].crc = crc32.Checksum(b[r.parts[i].at:min(r.parts[i].bucketsAt(), uint64(len(b)))], castagnoli)
		}
		st := &state{diskSet: &diskSet{disk: []*diskRun{r}}}
		for i := range uint64(20) {
			_ = st.lookup(fingerprint{seed * (i + 1) * 0x9e3779b97f4a7c15, uint32(i)}, 0, new(scratch), func(Ingest) bool { return true })
		}
		_ = r.verify(func() error { return nil })
	})
}

// FuzzManifest decodes any bytes as a manifest. Proves S1 (the decoder of manifests).
func FuzzManifest(f *testing.F) {
	m := manifest{epoch: 2, id: 7, key: hashKey{1, 2}, next: 9, mark: []byte("mark"), runs: []runRef{{1, 2, 3}, {4, 5, 6}}}
	f.Add(m.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		reseal(b)
		var m manifest
		if what, _ := m.decode(b); what == "" {
			var again manifest
			if what, _ := again.decode(m.encode()); what != "" {
				t.Fatalf("a manifest that was decoded cannot be encoded: %s", what)
			}
		}
	})
}
