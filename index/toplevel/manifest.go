package toplevel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/dagstore/dagstore/internal/fsio"
)

// The manifest, version 1. Integers are little endian.
//
//	┌ 0   8  magic 89 'DSTM' 0d 0a 1a
//	│ 8   2  version              10  2  zero
//	│ 12  4  epoch                16  8  identity
//	│ 24 16  key of the fingerprints
//	│ 40  8  sequence number of the next run
//	│ 48  4  runs R               52  4  length of the mark K
//	│ 56  K  mark
//	│      R × 24: 8 sequence number, 8 entries, 4 checksum of the footer, 4 zero
//	└      4  CRC32C of all before it
const (
	manifestName    = "MANIFEST"
	manifestMagic   = "\x89DSTM\r\n\x1a"
	manifestVersion = 1
	manifestFixed   = 56
	manifestRun     = 24
	maxMark         = 1 << 10
	maxManifest     = 1 << 22
)

type manifest struct {
	epoch uint32
	id    uint64
	key   hashKey
	next  uint64
	mark  []byte
	runs  []runRef
}

// runRef names a run.
type runRef struct {
	seq     uint64
	entries uint64
	crc     uint32
}

func (m *manifest) encode() []byte {
	le := binary.LittleEndian
	b := append([]byte(nil), manifestMagic...)
	b = le.AppendUint16(b, manifestVersion)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, m.epoch)
	for _, v := range []uint64{m.id, m.key[0], m.key[1], m.next} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, uint32(len(m.runs)))
	b = le.AppendUint32(b, uint32(len(m.mark)))
	b = append(b, m.mark...)
	for _, r := range m.runs {
		b = le.AppendUint64(b, r.seq)
		b = le.AppendUint64(b, r.entries)
		b = le.AppendUint32(b, r.crc)
		b = le.AppendUint32(b, 0)
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decode says what is wrong with a manifest; newer is set if it is sound and of a later
// version.
func (m *manifest) decode(b []byte) (what string, newer bool) {
	le := binary.LittleEndian
	if len(b) < manifestFixed+crcLen || string(b[:8]) != manifestMagic {
		return "not a manifest", false
	}
	body := b[:len(b)-crcLen]
	if crc32.Checksum(body, castagnoli) != le.Uint32(b[len(body):]) {
		return "checksum", false
	}
	if v := le.Uint16(b[8:]); v != manifestVersion {
		return fmt.Sprintf("version %d", v), v > manifestVersion
	}
	*m = manifest{
		epoch: le.Uint32(b[12:]), id: le.Uint64(b[16:]),
		key: hashKey{le.Uint64(b[24:]), le.Uint64(b[32:])}, next: le.Uint64(b[40:]),
	}
	runs, mark := uint64(le.Uint32(b[48:])), uint64(le.Uint32(b[52:]))
	if mark > maxMark || manifestFixed+mark+runs*manifestRun != uint64(len(body)) {
		return "its parts do not fill the file", false
	}
	m.mark = append(m.mark, body[manifestFixed:manifestFixed+mark]...)
	for r := body[manifestFixed+mark:]; len(r) > 0; r = r[manifestRun:] {
		m.runs = append(m.runs, runRef{le.Uint64(r), le.Uint64(r[8:]), le.Uint32(r[16:])})
	}
	return "", false
}

// readManifest reads the manifest of a directory, nil if there is none.
func readManifest(fsys fsio.FS, dir string) (*manifest, error) {
	name := filepath.Join(dir, manifestName)
	f, err := fsys.OpenFile(name, 0, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // was only read
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("top-level index: read %s: %w", name, err)
	}
	m := &manifest{}
	what, newer := m.decode(b)
	switch {
	case newer:
		return nil, fmt.Errorf("%w: %s: %s, this release reads %d", ErrNewerFormat, name, what, manifestVersion)
	case what != "":
		return nil, &DamagedError{File: name, What: what}
	}
	return m, nil
}

func writeManifest(fsys fsio.FS, dir string, m *manifest) error {
	return fsio.WriteFileAtomic(fsys, filepath.Join(dir, manifestName), 0o600, func(f fsio.File) error {
		_, err := f.Write(m.encode())
		return err
	})
}

// A run's file is called <epoch, 8 hex digits>-<sequence number, 16 hex digits>.run.
const runSuffix = ".run"

func runName(epoch uint32, seq uint64) string {
	return fmt.Sprintf("%08x-%016x%s", epoch, seq, runSuffix)
}

// parseRunName is the inverse of runName.
func parseRunName(name string) (epoch uint32, seq uint64, ok bool) {
	if len(name) != 8+1+16+len(runSuffix) {
		return 0, 0, false
	}
	e, err := strconv.ParseUint(name[:8], 16, 32)
	if err != nil {
		return 0, 0, false
	}
	if seq, err = strconv.ParseUint(name[9:25], 16, 64); err != nil {
		return 0, 0, false
	}
	return uint32(e), seq, runName(uint32(e), seq) == name
}
