package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"

	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/shard"
)

// A batch is one value under one key,
//
//	/journal/<first seq, 16 hex digits>  →  frame, as drawn in frame.go, offset 0, salt 0
//
// so the order of the keys is the order of the events, and the chain in the frames
// shows a value that is missing, swapped or changed. A Put of a go-datastore is
// all or nothing: there are no torn values, and one that does not verify is damage.
var datastorePrefix = ds.NewKey("/journal")

// Datastore is a journal in a go-datastore. Nothing locks a datastore against a
// second writer: its owner must see to that.
type Datastore struct {
	ctx context.Context
	d   ds.Datastore

	appending sync.Mutex // held by Append and Close; guards enc
	enc       encoder

	mu struct {
		sync.Mutex
		// firsts holds the first seq of every durable batch. Eight bytes a batch
		// buy order and a start in the middle: many datastores neither sort nor
		// seek, and those would hold all values to sort them.
		firsts []uint64
		head   Position
		broken error
		closed bool
	}
}

var (
	_ Journal    = (*Datastore)(nil)
	_ Positioner = (*Datastore)(nil)
)

// OpenDatastore opens the journal in d, or begins one. It reads and verifies all of
// it. ctx governs the opening only. Keys that are not of the journal's form are
// left alone.
func OpenDatastore(ctx context.Context, d ds.Datastore) (*Datastore, error) {
	j := &Datastore{ctx: context.WithoutCancel(ctx), d: d}
	firsts, err := datastoreKeys(ctx, d)
	if err != nil {
		return nil, err
	}
	var v verifier
	var last []byte
	for _, first := range firsts {
		if last, _, err = j.load(ctx, &v, first); err != nil {
			return nil, err
		}
	}
	j.mu.firsts, j.mu.head = firsts, v.pos
	if len(firsts) == 0 {
		return j, nil
	}
	// A writer that died, or whose Sync failed, may have left its last batch here
	// without its being durable. See File.repair.
	key := datastoreKey(firsts[len(firsts)-1])
	if err := errors.Join(d.Put(ctx, key, last), d.Sync(ctx, datastorePrefix)); err != nil {
		return nil, fmt.Errorf("journal: open datastore: keep %s: %w", key, err)
	}
	return j, nil
}

// datastoreKeys lists the first seq of every batch, in order.
func datastoreKeys(ctx context.Context, d ds.Datastore) (firsts []uint64, err error) {
	res, err := d.Query(ctx, query.Query{Prefix: datastorePrefix.String(), KeysOnly: true})
	if err != nil {
		return nil, fmt.Errorf("journal: open datastore: list keys: %w", err)
	}
	defer func() { err = errors.Join(err, res.Close()) }()
	for r := range res.Next() {
		if r.Error != nil {
			return nil, fmt.Errorf("journal: open datastore: list keys: %w", r.Error)
		}
		if first, ok := parseDatastoreKey(r.Key); ok {
			firsts = append(firsts, first)
		}
	}
	slices.Sort(firsts)
	return slices.Compact(firsts), ctx.Err()
}

func datastoreKey(first uint64) ds.Key {
	return datastorePrefix.ChildString(fmt.Sprintf("%016x", first))
}

func parseDatastoreKey(key string) (first uint64, ok bool) {
	hex, ok := strings.CutPrefix(key, datastorePrefix.String()+"/")
	if !ok {
		return 0, false
	}
	first, err := strconv.ParseUint(hex, 16, 64)
	return first, err == nil && fmt.Sprintf("%016x", first) == hex
}

// load reads and verifies the batch that begins with first and follows v.pos. It
// returns the whole value and the count of events in it.
func (j *Datastore) load(ctx context.Context, v *verifier, first uint64) (value []byte, count int, err error) {
	key := datastoreKey(first)
	damage := func(what string) error {
		return &DamageError{File: key.String(), Offset: -1, What: what}
	}
	if first != v.pos.Seq+1 {
		return nil, 0, damage(fmt.Sprintf("seq %d where %d comes next: a key is missing or does not belong here", first, v.pos.Seq+1))
	}
	value, err = j.d.Get(ctx, key)
	if errors.Is(err, ds.ErrNotFound) {
		return nil, 0, damage("the key is listed but has no value")
	}
	if err != nil {
		return nil, 0, fmt.Errorf("journal: get %s: %w", key, err)
	}
	if len(value) >= frameHeaderSize {
		if h, ok := parseHeader(value, &v.salt); ok && h.version > frameVersion {
			return nil, 0, fmt.Errorf("%w: %s has version %d, this release reads %d; use a newer release", ErrNewerFormat, key, h.version, frameVersion)
		}
	}
	h, size, is := v.next(value, 0, 0)
	switch {
	case is == frameBad:
		return nil, 0, damage(v.what)
	case is != frameOK || size != len(value) || h.kind != frameBatch:
		return nil, 0, damage(fmt.Sprintf("a value of %d bytes is not one batch", len(value)))
	}
	return value, int(h.count), nil
}

// payloadOf cuts the payload from a value that load returned.
func payloadOf(value []byte) string {
	n := binary.LittleEndian.Uint32(value[8:])
	return string(value[frameHeaderSize : frameHeaderSize+n])
}

// Append implements [Journal].
func (j *Datastore) Append(events []shard.Event) (Position, error) {
	j.appending.Lock()
	defer j.appending.Unlock()
	head, err := j.writable()
	if err != nil || len(events) == 0 {
		return head, err
	}
	frame, end, err := j.enc.batch(events, head, 0, new(salt))
	if err != nil {
		return Position{}, err
	}
	key := datastoreKey(head.Seq + 1)
	// The datastore may keep the value it is given: it gets its own copy.
	op := "put"
	err = j.d.Put(j.ctx, key, slices.Clone(frame))
	if err == nil {
		op = "sync"
		err = planted.Unless("journal-datastore-not-synced", func() error { return j.d.Sync(j.ctx, datastorePrefix) })
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.mu.broken = fmt.Errorf("%s %s: %w", op, key, err)
		return Position{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, j.mu.broken)
	}
	j.mu.firsts = append(j.mu.firsts, head.Seq+1)
	j.mu.head = end
	return end, nil
}

// writable returns the head, or why nothing can be appended to it.
func (j *Datastore) writable() (Position, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.mu.closed:
		return Position{}, fmt.Errorf("append: %w", ErrClosed)
	case j.mu.broken != nil:
		return Position{}, fmt.Errorf("%w until it is opened again, since this failed: %w", ErrReadOnly, j.mu.broken)
	}
	return j.mu.head, nil
}

// Head implements [Journal].
func (j *Datastore) Head() Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.head
}

// PositionAt implements [Positioner]. It reads at most one value.
func (j *Datastore) PositionAt(seq uint64) (Position, error) {
	j.mu.Lock()
	firsts, head, closed := j.mu.firsts, j.mu.head, j.mu.closed
	j.mu.Unlock()
	if closed {
		return Position{}, fmt.Errorf("position at %d: %w", seq, ErrClosed)
	}
	if known, err := knownPosition(seq, head, Position{}); err != nil {
		return Position{}, err
	} else if known != nil {
		return *known, nil
	}
	i := j.startOf(firsts, head, seq-1)
	if i == len(firsts)-1 {
		return head, nil
	}
	return j.endOf(firsts, i)
}

// Replay implements [Journal].
func (j *Datastore) Replay(seq uint64, visit func(*Batch) error) error {
	j.mu.Lock()
	firsts, head := j.mu.firsts, j.mu.head // firsts is only ever appended to
	j.mu.Unlock()
	var v verifier
	var b Batch
	for i := j.startOf(firsts, head, seq); i < len(firsts); i++ {
		if j.isClosed() {
			return fmt.Errorf("replay: %w", ErrClosed)
		}
		if v.pos.Seq == 0 && i > 0 {
			before, err := j.endOf(firsts, i-1)
			if err != nil {
				return err
			}
			v.pos = before
		}
		value, count, err := j.load(j.ctx, &v, firsts[i])
		if err != nil {
			return err
		}
		b.End = v.pos
		if b.Events, err = decodeBatch(b.Events, payloadOf(value), firsts[i], count); err != nil {
			return &DamageError{File: datastoreKey(firsts[i]).String(), Offset: -1, What: err.Error()}
		}
		if err := visit(&b); err != nil {
			return err
		}
	}
	if j.isClosed() {
		return fmt.Errorf("replay: %w", ErrClosed)
	}
	return nil
}

// startOf is the index of the first batch that ends after seq.
func (j *Datastore) startOf(firsts []uint64, head Position, seq uint64) int {
	return firstAfter(len(firsts), seq, func(i int) uint64 {
		if i+1 < len(firsts) {
			return firsts[i+1] - 1
		}
		return head.Seq
	})
}

// endOf reads the position after batch i from its header, where the chain that
// goes on behind it will confirm the digest.
func (j *Datastore) endOf(firsts []uint64, i int) (Position, error) {
	v := verifier{pos: Position{Seq: firsts[i] - 1}}
	key := datastoreKey(firsts[i])
	value, err := j.d.Get(j.ctx, key)
	if err != nil {
		return Position{}, fmt.Errorf("journal: get %s: %w", key, err)
	}
	if _, _, is := v.next(value, 0, math.MaxUint64); is != frameOK {
		return Position{}, &DamageError{File: key.String(), Offset: -1, What: "its header does not verify"}
	}
	return v.pos, nil
}

func (j *Datastore) isClosed() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.closed
}

// Close implements [Journal]. It does not close the datastore, which is its
// owner's.
func (j *Datastore) Close() error {
	j.appending.Lock()
	defer j.appending.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.mu.closed = true
	return nil
}

// firstAfter is the index of the first of n batches that ends after seq, where
// end(i) is ascending.
func firstAfter(n int, seq uint64, end func(i int) uint64) int {
	return sort.Search(n, func(i int) bool { return end(i) > seq })
}
