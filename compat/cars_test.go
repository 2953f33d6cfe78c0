package compat

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/ipld/go-car/v2"
	carindex "github.com/ipld/go-car/v2/index"
	mh "github.com/multiformats/go-multihash"
)

// block is a raw block.
func block(text string) (cid.Cid, []byte) {
	h, err := mh.Sum([]byte(text), mh.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.Raw, h), []byte(text)
}

// blocksOf are the texts of the blocks of a shard: those of its own, and two that all
// shards have.
func blocksOf(name string, n int) []string {
	texts := []string{"in every shard", "in every shard too"}
	for i := range n {
		texts = append(texts, fmt.Sprintf("block %d of %q", i, name))
	}
	return texts
}

// carV1 is a CARv1 of blocks, the first of which is its root.
func carV1(texts []string) []byte {
	root, _ := block(texts[0])
	out := []byte("\x3a\xa2\x65roots\x81\xd8\x2a\x58\x25\x00" + root.KeyString() + "\x67version\x01")
	for _, text := range texts {
		c, data := block(text)
		out = binary.AppendUvarint(out, uint64(c.ByteLen()+len(data)))
		out = append(out, c.KeyString()...)
		out = append(out, data...)
	}
	return out
}

// carV2 wraps a CARv1 with its index.
func carV2(v1 []byte) []byte {
	idx, err := car.GenerateIndex(bytes.NewReader(v1))
	if err != nil {
		panic(err)
	}
	h := car.NewHeader(uint64(len(v1)))
	var out bytes.Buffer
	out.Write(car.Pragma)
	if _, err = h.WriteTo(&out); err == nil {
		out.Write(v1)
		_, err = carindex.WriteTo(idx, &out)
	}
	if err != nil {
		panic(err)
	}
	return out.Bytes()
}

// padded is a CAR as it stands in a piece: zeros follow.
func padded(data []byte) []byte { return append(data, make([]byte, 5000)...) }

// forms are the forms that a CAR may have.
var forms = []struct {
	name string
	of   func(v1 []byte) []byte
}{
	{"v1", func(v1 []byte) []byte { return v1 }},
	{"v2", carV2},
	{"v1-padded", padded},
	{"v2-padded", func(v1 []byte) []byte { return padded(carV2(v1)) }},
}
