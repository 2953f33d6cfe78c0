package index

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

// ScratchFile is an empty temporary file that belongs to whoever asked for it. It need
// not survive anything: it is never synced. Close closes and removes it, and is
// idempotent.
type ScratchFile interface {
	io.ReaderAt
	io.WriterAt
	// Name stands for the file in errors.
	Name() string
	Truncate(size int64) error
	io.Closer
}

// defaultMemory, and the least that a build is given: below that it would be busy with
// its files.
const (
	defaultMemory = 128 << 20
	leastMemory   = 1 << 20
)

// memoryOf is an amount of memory as an option gives it.
func memoryOf(bytes int64) int {
	if bytes <= 0 {
		return defaultMemory
	}
	return int(min(bytes, math.MaxInt/4))
}

// spill is where a drafter puts what it cannot hold.
type spill struct {
	budget int // bytes that the drafter holds at most, merges left aside
	share  *share
	runs   *runs
}

// newSpill returns the spill of options; nil if there is no place to spill to.
//
// A merge takes a block of each run and some for what it writes. It may come while the
// slabs are held, so up to a quarter of the memory is set aside for it. Not counted are
// the places of the parts: 32 bytes for each group of each run, which is something only
// for thousands of kinds of multihash (8 MiB at worst).
func newSpill(opts *BuildOptions) *spill {
	if opts.Spill == nil {
		return nil
	}
	memory := max(memoryOf(opts.Memory), leastMemory)
	block := min(memory>>7, 64<<10)
	fanIn := min(memory/4/block-2*writeBlocks, 64)
	return &spill{
		budget: memory - (fanIn+2*writeBlocks)*block,
		share:  &share{pool: opts.Pool},
		runs:   &runs{create: opts.Spill, block: block, fanIn: fanIn},
	}
}

// allows says whether the drafter may take so many bytes.
func (s *spill) allows(need int) bool {
	return need <= s.budget && s.share.fit(need)
}

// runs are the sorted runs of a draft that did not fit its memory. A run has a part
// for each group, sorted as in the index; what lies where is known in memory only, so
// that the files of a build that ended are worth nothing.
//
//	part   block × n, records in index order
//	block  records (as many as fit into runs.block, the last block of a part what is
//	       left), 4 CRC32C, seeded by the run's number and the block's offset
//
// Runs are kept in levels, one file each. When a level has fanIn runs, they are merged
// into one of the next level and the file is emptied. So n records in runs of m take
// log(n/m)/log(fanIn) + 1 files, and each record is written that often; for up to 64
// runs once.
//
//	len(levels[i].runs) < fanIn       between spills
//	Σ len(levels[i].runs) ≤ fanIn     once the draft is made
type runs struct {
	create func() (ScratchFile, error)
	block  int // bytes
	fanIn  int

	levels []*level
	seq    uint32 // number of the last run

	peak   int // the most that drafter and merges were seen to hold
	closed atomic.Bool
	once   sync.Once
	err    error // of close
}

type level struct {
	file ScratchFile
	end  int64
	runs []*run
}

type run struct {
	file  ScratchFile
	seq   uint32
	parts []part // by group
}

// part is where the records of a group lie in a run.
type part struct {
	group     int // id
	digestLen int
	at        int64
	records   uint64
}

func (r *runs) note(held int) { r.peak = max(r.peak, held) }

func (r *runs) empty() bool { return len(r.levels) == 0 }

func (r *runs) close() error {
	r.closed.Store(true)
	r.once.Do(func() {
		var errs []error
		for _, l := range r.levels {
			if l.file != nil {
				errs = append(errs, l.file.Close())
			}
		}
		r.err = errors.Join(errs...)
	})
	return r.err
}

// all returns the runs of all levels.
func (r *runs) all() []*run {
	var all []*run
	for _, l := range r.levels {
		all = append(all, l.runs...)
	}
	return all
}

// settle merges levels that are full. held is what others hold meanwhile.
func (r *runs) settle(ctx context.Context, held int) error {
	for i := 0; i < len(r.levels); i++ {
		if len(r.levels[i].runs) >= r.fanIn {
			if err := r.mergeLevel(ctx, i, held); err != nil {
				return err
			}
		}
	}
	return nil
}

// reduce merges small runs until there are no more than can be merged at once.
func (r *runs) reduce(ctx context.Context) error {
	for len(r.all()) > r.fanIn {
		i := slices.IndexFunc(r.levels, func(l *level) bool { return len(l.runs) > 0 })
		if err := r.mergeLevel(ctx, i, 0); err != nil {
			return err
		}
	}
	return nil
}

// mergeLevel makes one run of the next level of all runs of level i.
func (r *runs) mergeLevel(ctx context.Context, i, held int) error {
	from := r.levels[i]
	w, err := r.newRun(i + 1)
	if err != nil {
		return err
	}
	m := merger{r: r, runs: from.runs}
	for _, p := range m.groups() {
		w.begin(p.group, p.digestLen)
		err := m.each(ctx, p.group, func(rec []byte, _ uint64) error { return w.add(rec) })
		if err != nil {
			return err
		}
		w.end()
		r.note(held + m.bytes() + w.bytes())
	}
	if err := w.finish(); err != nil {
		return err
	}
	from.runs, from.end = nil, 0
	return from.file.Truncate(0)
}

// writeBlocks is how many blocks are written at once.
const writeBlocks = 4

// runWriter writes a run at the end of a level's file. After an error the run does not
// count.
type runWriter struct {
	r     *runs
	level *level
	run   *run
	at    int64  // of buf in the file
	buf   []byte // whole blocks, then a begun one
	stage []byte // records that were gathered

	part      part
	recordLen int
	perBlock  int
	inBlock   int // records in the begun block
}

func (r *runs) newRun(i int) (*runWriter, error) {
	for len(r.levels) <= i {
		r.levels = append(r.levels, new(level))
	}
	l := r.levels[i]
	if l.file == nil {
		var err error
		if l.file, err = r.create(); err != nil {
			return nil, fmt.Errorf("temporary file of an index: %w", err)
		}
	}
	r.seq++
	return &runWriter{
		r: r, level: l, run: &run{file: l.file, seq: r.seq}, at: l.end,
		buf: make([]byte, 0, writeBlocks*r.block),
	}, nil
}

func (w *runWriter) bytes() int { return cap(w.buf) + cap(w.stage) }

// perBlock is how many records fit into a block.
func (r *runs) perBlock(recordLen int) int { return max(1, (r.block-crcLen)/recordLen) }

// begin begins the part of a group. Groups come in the order of their ids.
func (w *runWriter) begin(group, digestLen int) {
	w.part = part{group: group, digestLen: digestLen, at: w.at + int64(len(w.buf))}
	w.recordLen = digestLen + recordTail
	w.perBlock = w.r.perBlock(w.recordLen)
	w.inBlock = 0
}

// add adds the next record of the part.
func (w *runWriter) add(rec []byte) error {
	if w.inBlock == 0 && cap(w.buf)-len(w.buf) < w.perBlock*w.recordLen+crcLen {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.buf = append(w.buf, rec...)
	w.part.records++
	if w.inBlock++; w.inBlock == w.perBlock {
		w.seal()
	}
	return nil
}

// seal ends a block.
func (w *runWriter) seal() {
	n := w.inBlock * w.recordLen
	at := w.at + int64(len(w.buf)-n)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, w.run.crc(at, w.buf[len(w.buf)-n:]))
	w.inBlock = 0
}

// crc is the checksum of the block at an offset: seeded, so that neither a block of
// another run nor one from elsewhere in this one passes for it.
func (r *run) crc(at int64, records []byte) uint32 {
	return pageCRC(r.seq*0x9e3779b1, uint64(at), records)
}

// end ends the part.
func (w *runWriter) end() {
	if w.inBlock > 0 {
		w.seal()
	}
	w.run.parts = append(w.run.parts, w.part)
}

func (w *runWriter) flush() error {
	n, err := w.level.file.WriteAt(w.buf, w.at)
	w.at += int64(n)
	w.buf = w.buf[:0]
	return err
}

// finish shows the run.
func (w *runWriter) finish() error {
	if err := w.flush(); err != nil {
		return err
	}
	w.level.end = w.at
	w.level.runs = append(w.level.runs, w.run)
	return nil
}

// gather writes the part of a group in memory, in the order of keys. All cores copy,
// because records in digest order miss the caches.
func (w *runWriter) gather(ctx context.Context, g *draftGroup, keys []sortKey) error {
	w.begin(g.id, int(g.digestLen))
	n := w.recordLen
	if w.stage == nil {
		w.stage = make([]byte, writeBlocks*w.r.block)
	}
	end := ender{ctx: ctx}
	for len(keys) > 0 {
		k := min(len(keys), max(1, len(w.stage)/n))
		if end.ended(k) {
			return ctx.Err()
		}
		parallel(k, func(from, to int) {
			for i := from; i < to; i++ {
				copy(w.stage[i*n:(i+1)*n], g.record(keys[i].record))
			}
		})
		for i := range k {
			if err := w.add(w.stage[i*n : (i+1)*n]); err != nil {
				return err
			}
		}
		keys = keys[k:]
	}
	w.end()
	return nil
}
