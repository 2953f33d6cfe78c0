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

// SetFrameVersion makes the datastore value b one of another format.
func SetFrameVersion(b []byte, version uint8) {
	b[3] = version
	binary.LittleEndian.PutUint32(b[68:], headerCRC(new(salt), b))
}

// MarkTail writes a mark as Close does, even if nothing was appended.
func MarkTail(f *File) {
	f.appending.Lock()
	defer f.appending.Unlock()
	f.mark(f.Head())
}
