package projection

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"github.com/cespare/xxhash/v2"

	"github.com/dagstore/dagstore/journal"
)

// What a catalogue saves is a block that says how much there is,
//
//	 0  8  "dagcat", zero, 1
//	 8  8  seq of the position
//	16 64  count of records by life, 8 bytes each
//
// and groups of records. A group is all records of some of the root's nodes, one behind
// the other in the order of (hash, key), and one or more blocks of
//
//	0  1  1 if the group goes on in the next block, else 0
//	1     the bytes, cut anywhere
//
// All integers are little endian. So groups can be read on all cores, and no record or
// set of keys is too large for a block.
const (
	saveMagic  = "dagcat\x00\x01"
	saveHeader = len(saveMagic) + 8 + 8*8

	// maxBlock is the longest block, saveGroup about the shortest group but the last.
	maxBlock  = 4 << 20
	saveGroup = 256 << 10
)

// Freeze implements [Saver]. It takes no time, and save delays nobody.
func (c *Catalogue) Freeze() (pos journal.Position, save func(emit func(block []byte) error) error) {
	s := c.shown.Load()
	return s.pos, s.save
}

// save emits s in blocks, whose memory is used again.
func (s *Snapshot) save(emit func(block []byte) error) error {
	block := make([]byte, 0, saveGroup+saveGroup/2)
	block = append(block, saveMagic...)
	block = binary.LittleEndian.AppendUint64(block, s.pos.Seq)
	for _, n := range s.n {
		block = binary.LittleEndian.AppendUint64(block, uint64(n))
	}
	if err := emit(block); err != nil {
		return err
	}
	var err error
	block = append(block[:0], 0)
	for _, n := range s.root {
		n.walk(func(sl *slot) bool {
			block, err = appendBlocks(block, sl.rec.text, emit)
			return err == nil
		})
		if err != nil {
			return err
		}
		if len(block) >= saveGroup {
			if err := emit(block); err != nil {
				return err
			}
			block = append(block[:0], 0)
		}
	}
	if len(block) == 1 {
		return nil
	}
	return emit(block)
}

// appendBlocks appends text to block, and emits that each time it is full.
func appendBlocks(block []byte, text string, emit func(block []byte) error) ([]byte, error) {
	for len(block)+len(text) > maxBlock {
		fit := maxBlock - len(block)
		block = append(block, text[:fit]...)
		text = text[fit:]
		block[0] = 1
		if err := emit(block); err != nil {
			return block, err
		}
		block = append(block[:0], 0)
	}
	return append(block, text...), nil
}

// errBadSave is wrapped by what Restore says of blocks that no save wrote.
var errBadSave = errors.New("catalogue: not what was saved")

// Restore implements [Saver]. Blocks that no save wrote are an error; then the catalogue
// is what it was.
func (c *Catalogue) Restore(pos journal.Position, next func() ([]byte, error)) error {
	if c.Position().Seq != 0 {
		return fmt.Errorf("catalogue at %d is not empty: it cannot be restored to %d", c.Position().Seq, pos.Seq)
	}
	r := restorer{next: c.next(), groups: make(chan []byte), free: make(chan []byte, 16)}
	r.epoch, r.root, r.next.pos = c.epoch, &r.next.root, pos
	for range min(runtime.GOMAXPROCS(0), 8) {
		r.running.Go(r.run)
	}
	err := r.read(next)
	close(r.groups)
	r.running.Wait()
	if err == nil {
		err = r.mu.err
	}
	if err == nil && r.mu.n != r.next.n {
		err = fmt.Errorf("%w: %d records by life where there were %d", errBadSave, r.mu.n, r.next.n)
	}
	if err != nil {
		return err
	}
	c.shown.Store(r.next)
	return nil
}

// restorer makes a trie of groups of records.
type restorer struct {
	writer  // shared: it is only asked for nodes
	next    *Snapshot
	groups  chan []byte
	free    chan []byte
	running sync.WaitGroup
	mu      struct {
		sync.Mutex // guards the root, too
		n          [8]int
		err        error
	}
}

// read puts the blocks together to groups.
func (r *restorer) read(next func() ([]byte, error)) error {
	b, err := next()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err != nil || len(b) != saveHeader || string(b[:len(saveMagic)]) != saveMagic {
		return fmt.Errorf("%w: the first block is of %d bytes and begins with %.8q", errBadSave, len(b), b)
	}
	b = b[len(saveMagic):]
	if seq := binary.LittleEndian.Uint64(b); seq != r.next.pos.Seq {
		return fmt.Errorf("%w: it was at %d, not at %d", errBadSave, seq, r.next.pos.Seq)
	}
	for life := range r.next.n {
		r.next.n[life] = int(binary.LittleEndian.Uint64(b[8+8*life:]))
	}
	var group []byte
	goesOn := false
	for {
		b, err := next()
		if errors.Is(err, io.EOF) {
			if goesOn {
				return fmt.Errorf("%w: the last group lacks its end", errBadSave)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if len(b) < 2 || b[0] > 1 {
			return fmt.Errorf("%w: a block of %d bytes", errBadSave, len(b))
		}
		if !goesOn {
			select {
			case group = <-r.free:
			default:
			}
		}
		group = append(group, b[1:]...)
		if goesOn = b[0] == 1; goesOn {
			continue
		}
		if r.failed() {
			return nil // a worker has the error
		}
		r.groups <- group
		group = nil
	}
}

func (r *restorer) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.err != nil
}

func (r *restorer) run() {
	var slots []slot
	for group := range r.groups {
		var err error
		if slots, err = r.restore(group, slots[:0]); err != nil {
			r.mu.Lock()
			r.mu.err = err
			r.mu.Unlock()
		}
		select {
		case r.free <- group[:0]:
		default:
		}
	}
}

// restore adds the records of a group. It returns slots for its memory.
func (r *restorer) restore(group []byte, slots []slot) ([]slot, error) {
	// The group's memory is used again; what stays of it is copied.
	text := unsafe.String(unsafe.SliceData(group), len(group))
	var n [8]int
	for len(text) > 0 {
		size, err := recordLen(text)
		if err != nil {
			return slots, fmt.Errorf("%w: record %d of a group: %w", errBadSave, len(slots), err)
		}
		s := slot{rec: Record{strings.Clone(text[:size])}}
		s.hash = xxhash.Sum64String(s.rec.key())
		text = text[size:]
		if s.rec.Seq() > r.next.pos.Seq {
			return slots, fmt.Errorf("%w: shard %q is of %d, which comes after %d", errBadSave, s.rec.key(), s.rec.Seq(), r.next.pos.Seq)
		}
		if len(slots) > 0 && slots[len(slots)-1].compare(s.hash, s.rec.key()) >= 0 {
			return slots, fmt.Errorf("%w: shard %q does not follow shard %q", errBadSave, s.rec.key(), slots[len(slots)-1].rec.key())
		}
		n[s.rec.Life()]++
		slots = append(slots, s)
	}
	return slots, r.graft(slots, &n)
}

// graft makes the nodes of slots, which are all that those nodes have.
func (r *restorer) graft(slots []slot, n *[8]int) error {
	var nodes root
	for all := slots; len(all) > 0; {
		part := all[0].hash >> (64 - rootBits)
		to := 1
		for to < len(all) && all[to].hash>>(64-rootBits) == part {
			to++
		}
		nodes[part] = r.build(all[:to], firstShift)
		all = all[to:]
	}
	clear(slots)
	r.mu.Lock()
	defer r.mu.Unlock()
	for part, made := range nodes {
		if made == nil {
			continue
		}
		if r.root[part] != nil {
			return fmt.Errorf("%w: two groups have records of node %d", errBadSave, part)
		}
		r.root[part] = made
	}
	for life := range n {
		r.mu.n[life] += n[life]
	}
	return nil
}
