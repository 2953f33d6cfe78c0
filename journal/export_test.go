package journal

import (
	"encoding/binary"
	"hash/crc32"
)

// SetSegmentVersion makes the segment b one of another format, checksum and all.
func SetSegmentVersion(b []byte, version uint32) {
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[76:], crc32.Checksum(b[:76], castagnoli))
}
