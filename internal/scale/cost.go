package main

import (
	"math/bits"
	"math/rand/v2"
	"sync"

	"github.com/FastFilter/xorfilter"
)

// The sizes that index/toplevel/format.go gives a run.
const (
	digestPart   = 12
	ingestLen    = 32
	dirLen       = 40
	crcLen       = 4
	endLen       = 4
	partTarget   = 1 << 16
	bucketTarget = 24
	maxPartBits  = 24

	// partHeap is what an open partition takes of the heap: its record in the directory
	// and its filter's parameters.
	partHeap = 112
	// shardHeap is what the catalogue keeps of a shard.
	shardHeap = 200
	// mergeIngest is what a merge keeps of an ingest, its key included.
	mergeIngest = 100 + keyLen
)

// layout is a run of n entries of shards of one size.
type layout struct {
	entries    uint64
	ingests    uint64
	width      int // bytes of an ingest's number
	partitions uint64
	buckets    uint64 // of a partition
	filter     uint64 // bytes, of a partition
}

func layoutOf(n, shard uint64) layout {
	l := layout{entries: n, ingests: max(1, n/shard)}
	l.width = max(1, (bits.Len64(l.ingests-1)+7)/8)
	l.partitions = 1 << min(max(bits.Len64(n/partTarget)-1, 0), maxPartBits)
	each := n / l.partitions
	l.buckets = 1 << max(bits.Len64(each/bucketTarget)-1, 0)
	l.filter = filterBytes(each)
	return l
}

// filters is what lookups want in memory: filters, the ends of buckets, the directory.
func (l layout) filters() uint64 {
	return l.partitions * (l.filter + l.buckets*endLen + dirLen)
}

// disk is the file.
func (l layout) disk() uint64 {
	return l.filters() + l.entries*uint64(digestPart+l.width) + l.partitions*l.buckets*crcLen +
		l.ingests*(ingestLen+keyLen)
}

// heap is what an open run takes besides what is mapped.
func (l layout) heap() uint64 { return l.partitions * partHeap }

// mergeHeap is what a merge takes that makes the run.
func (l layout) mergeHeap() uint64 { return l.ingests * mergeIngest }

var filterSizes sync.Map

// filterBytes is the size of the filter of n keys. It builds one: the library shortens
// some while it does.
func filterBytes(n uint64) uint64 {
	if size, ok := filterSizes.Load(n); ok {
		return size.(uint64)
	}
	rng := rand.New(rand.NewPCG(n, 1))
	keys := make([]uint64, n)
	for i := range keys {
		keys[i] = rng.Uint64()
	}
	f, err := xorfilter.BuildBinaryFuse[uint8](new(xorfilter.BinaryFuseBuilder), keys)
	if err != nil {
		panic(err) // random keys make a filter
	}
	size := uint64(len(f.Fingerprints))
	filterSizes.Store(n, size)
	return size
}

// What a lookup reads from the disk if filters and directories are in memory, and the
// ingests' records, of which there are few.
const falseHit = 1. / 256 // of an 8-bit binary fuse filter

// missReads is what a lookup of a multihash that is nowhere reads.
func missReads(runs float64) float64 { return runs * falseHit }

// hitReads is what one reads that is in one run.
func hitReads(runs float64) float64 { return 1 + (runs-1)*falseHit }

// coldReads is what a lookup reads that finds the filters on the disk: three places of
// each, and the bucket's end and the bucket where there is one.
func coldReads(runs float64, hit bool) float64 {
	n := 3*runs + 2*missReads(runs)
	if hit {
		n += 2 * (1 - falseHit)
	}
	return n
}
