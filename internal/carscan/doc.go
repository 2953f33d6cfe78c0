// Package carscan reads a CAR that somebody else wrote: strictly, within bounds
// that hold whatever the file claims, and as fast as its hashes can be computed.
//
//	CARv1 = header section*  [zero padding]
//	        header  = uvarint length, DAG-CBOR {roots: [CID…], version: 1}
//	        section = uvarint length, CID, data          length = |CID| + |data|
//	CARv2 = pragma (11) header (40) … CARv1 payload … [index]
//
// What is refused, and why (kinds of [Error]):
//
//   - lengths that are not minimal varints, sections that leave the payload, CIDs
//     that leave their section, padding that is not zero to the end: ErrMalformed,
//     or ErrTruncated where the bytes simply end;
//   - what exceeds a bound of [Options]: ErrLimit;
//   - hash functions that go-multihash cannot compute, digests under 20 bytes,
//     digests longer than the function gives, identity over 128 bytes:
//     ErrUnsupportedHash, also when hashes are not being verified, so that an index
//     never holds an entry that could not be verified later;
//   - a block that does not hash to its CID: ErrHashMismatch.
//
// An error of the reader is returned as it is and never taken for damage: "could
// not read" is not "corrupt".
//
// Memory is workers × chunk, plus the header. Nothing is ever allocated from a
// claimed length that the file is not long enough to hold.
package carscan
