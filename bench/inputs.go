package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

const (
	digestLen = 32
	mhLen     = 2 + digestLen
	blockLen  = 1024
)

// fill writes pseudo-random bytes, eight at a time.
func fill(rng *rand.PCG, b []byte) {
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, rng.Uint64())
	}
}

// shardHashes are the SHA2-256 multihashes of one made-up shard, one after the other,
// ascending, as a shard's index yields them.
type shardHashes []byte

func (s shardHashes) len() int { return len(s) / mhLen }
func (s shardHashes) at(i int) multihash.Multihash {
	return multihash.Multihash(s[i*mhLen : (i+1)*mhLen])
}

// ForEach implements index.MultihashIterator.
func (s shardHashes) ForEach(f func(multihash.Multihash) error) error {
	for i := range s.len() {
		if err := f(s.at(i)); err != nil {
			return err
		}
	}
	return nil
}

// makeShard makes the multihashes of a shard, which follow from its number.
func makeShard(no, n int) shardHashes {
	rng := rand.NewPCG(uint64(no), 1)
	digests := make([][digestLen]byte, n)
	for i := range digests {
		fill(rng, digests[i][:])
	}
	slices.SortFunc(digests, func(a, b [digestLen]byte) int { return bytes.Compare(a[:], b[:]) })
	out := make(shardHashes, 0, n*mhLen)
	for i := range digests {
		out = append(out, multihash.SHA2_256, digestLen)
		out = append(out, digests[i][:]...)
	}
	return out
}

// pick copies n multihashes at random out of the shards, so that they lie in memory in
// the order of their use.
func pick(shards []shardHashes, n int) shardHashes {
	rng := rand.New(rand.NewPCG(2, 2))
	out := make(shardHashes, 0, n*mhLen)
	for range n {
		s := shards[rng.IntN(len(shards))]
		out = append(out, s.at(rng.IntN(s.len()))...)
	}
	return out
}

// carFile is a CARv1 of raw blocks.
type carFile struct {
	path string
	size int64
	cids []cid.Cid
	sums [][digestLen]byte // of the blocks
	at   []int64           // where a block begins
}

// writeCAR writes a CARv1 of n raw blocks of some length, which follow from a seed.
func writeCAR(path string, n, length int, seed uint64) (c carFile, err error) {
	f, err := os.Create(path)
	if err != nil {
		return c, err
	}
	defer func() {
		if err2 := f.Close(); err == nil {
			err = err2
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	rng := rand.NewPCG(seed, 3)
	c.path = path
	put := func(parts ...[]byte) {
		for _, p := range parts {
			c.size += int64(len(p))
			w.Write(p) // Flush says what went wrong
		}
	}
	block := make([]byte, length)
	for i := range n {
		fill(rng, block)
		sum := sha256.Sum256(block)
		mh, err := multihash.Encode(sum[:], multihash.SHA2_256)
		if err != nil {
			return c, err
		}
		id := cid.NewCidV1(cid.Raw, mh)
		if i == 0 {
			// {"roots": [the first block], "version": 1} in DAG-CBOR.
			header := append([]byte("\xa2eroots\x81\xd8\x2a\x58\x25\x00"), id.Bytes()...)
			header = append(header, "gversion\x01"...)
			put(binary.AppendUvarint(nil, uint64(len(header))), header)
		}
		put(binary.AppendUvarint(nil, uint64(id.ByteLen()+length)), id.Bytes())
		c.cids, c.sums, c.at = append(c.cids, id), append(c.sums, sum), append(c.at, c.size)
		put(block)
	}
	return c, w.Flush()
}

// shuffled are the numbers below n in an order that follows from n.
func shuffled(n int) []int { return rand.New(rand.NewPCG(uint64(n), 4)).Perm(n) }
