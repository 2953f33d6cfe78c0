package carscan

// MatchSection says whether b begins with the header of a section whose CID has the
// binary multihash mh, and how long that header and the data after it are. Neither
// the data nor anything behind it needs to be in b. It is for reading sections that
// were scanned before; ok is false for anything else.
func MatchSection(b []byte, mh string) (headerLen, size int, ok bool) {
	n, prefix := uvarint(b)
	if prefix <= 0 {
		return 0, 0, false
	}
	if len(mh) == 34 && len(b) >= prefix+36 && b[prefix] == 1 && b[prefix+1] < 0x80 && string(b[prefix+2:prefix+36]) == mh && n >= 36 && n <= 1<<40 {
		return prefix + 36, int(n) - 36, true // by far the most: CIDv1, SHA2-256
	}
	var c rawCID
	if what := parseCID(b[prefix:], &c); what != "" {
		return 0, 0, false
	}
	if n < uint64(c.len) || n > 1<<40 || string(b[prefix+c.mh:prefix+c.len]) != mh {
		return 0, 0, false
	}
	return prefix + c.len, int(n) - c.len, true
}
