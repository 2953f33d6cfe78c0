package indexbs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/shard"
)

// reading is what the read of a block works with. It is used again, so that a read does
// not allocate.
type reading struct {
	c    cid.Cid
	keys []shard.Key // the shards that hold the block
	// absent is why there are none, if that was remembered.
	absent *notFoundError
	// pos and err are what the lookup said besides.
	pos dagstore.Position
	err error

	cands  []Candidate // of the shards that are left, those that are worth asking
	failed []failing   // what the others said

	// few: there may be more shards than were looked up.
	few   bool
	again bool // it was looked up anew
}

// failing is a shard that a block could not be read from.
type failing struct {
	key shard.Key
	err error
}

// few is how many shards of a block are looked up first. All are, if these fail.
const few = 8

// most is how many shards a lookup has to find, if n are enough for a policy that takes
// what it is offered; 0: all.
func (bs *IndexBackedBlockstore) most(n int) int {
	if bs.declines {
		return 0
	}
	return n
}

var readings = sync.Pool{New: func() any { return new(reading) }}

// maxReading is how many shards a reading has room for that is kept for another.
const maxReading = 64

func newReading(c cid.Cid) *reading {
	s := readings.Get().(*reading)
	s.c = c
	return s
}

// begin takes up another block.
func (s *reading) begin(c cid.Cid) {
	clear(s.keys)
	clear(s.cands)
	*s = reading{c: c, keys: s.keys[:0], cands: s.cands[:0]}
}

func (s *reading) done() {
	if cap(s.keys) > maxReading || cap(s.cands) > maxReading {
		*s = reading{}
	}
	s.begin(cid.Undef)
	readings.Put(s)
}

// lookup finds the shards that hold the block: most of them, or all if that is 0. That
// there are none is no error.
func (bs *IndexBackedBlockstore) lookup(ctx context.Context, s *reading, most int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !s.c.Defined() {
		return nil
	}
	if s.absent = bs.knownAbsent(s.c); s.absent != nil {
		return nil
	}
	s.keys, s.pos, s.err = bs.finder.find(ctx, s.keys[:0], s.c, most)
	s.few = most > 0 && len(s.keys) >= most
	switch {
	case s.err == nil || isNowhere(s.err):
	case isUnknown(s.err):
		return bs.unknown(s.c, s.err)
	default:
		return fmt.Errorf("look up block %s: %w", s.c, s.err)
	}
	if len(s.keys) == 0 && bs.absences.keep > 0 {
		s.absent = bs.nowhere(s)
		bs.absences.add(s.absent)
	}
	return nil
}

// knownAbsent returns the error of a block that is remembered to be in no shard.
func (bs *IndexBackedBlockstore) knownAbsent(c cid.Cid) *notFoundError {
	if bs.absences.keep == 0 || bs.finder.more == nil {
		return nil
	}
	pos, ok := bs.finder.more.LookupPosition(bs.finder.fresh)
	if !ok {
		return nil
	}
	absent := bs.absences.of(c, pos)
	if absent != nil {
		bs.counts.notFoundHits.Add(1)
	}
	return absent
}

// nowhere is the error of a block that was looked up and is in no shard.
func (bs *IndexBackedBlockstore) nowhere(s *reading) *notFoundError {
	switch {
	case s.absent != nil:
		return s.absent
	case !s.c.Defined():
		return &notFoundError{}
	}
	e := &notFoundError{ErrNotFound: ipld.ErrNotFound{Cid: s.c}}
	e.asOf, _ = bs.finder.asOf(s.pos, s.err)
	return e
}

func selectorError(c cid.Cid, err error) error {
	return fmt.Errorf("select a shard for block %s: %w", c, err)
}

// read runs op on the blocks of one shard after the other until one of them serves.
func (bs *IndexBackedBlockstore) read(ctx context.Context, c cid.Cid, op func(dagstore.ReadBlockstore) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if e := bs.cache.placed(cids.Multihash(c)); e != nil {
		if e.use(op) == nil {
			return nil
		} // or else the shard will be asked again, if the index still says so
	}
	s := newReading(c)
	defer s.done()
	if err := bs.lookup(ctx, s, bs.most(few)); err != nil {
		return err
	}
	if len(s.keys) == 0 {
		return bs.nowhere(s)
	}
	if bs.consider(s, s.keys); len(s.cands) == 0 {
		bs.counts.failedHits.Add(1)
	}
	for len(s.cands) > 0 || bs.further(ctx, s) {
		key, err := bs.choose(c, s.cands)
		switch {
		case err != nil && len(s.failed) > 0:
			return bs.unread(c, append(s.failed, failing{key, asFailure(err)}))
		case errors.Is(err, ErrNoShardSelected):
			return notFound(c, true)
		case err != nil:
			return selectorError(c, err)
		}
		whole, err := bs.readShard(ctx, s, key, op)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case bs.cache.ctx.Err() != nil:
			return bs.cache.closedError()
		case !isAbsent(err):
			bs.failure(key, c, err, whole)
			s.failed = append(s.failed, failing{key, err})
		}
		if !s.drop(key) {
			break // the selector chose what it was not offered, and may do so for ever
		}
		if len(s.cands) > 0 {
			bs.counts.fallbacks.Add(1)
		}
	}
	switch {
	case len(s.failed) > 0:
		return bs.unread(c, s.failed)
	case s.err != nil && !isNowhere(s.err):
		return s.err
	case len(s.keys) == 0: // it was looked up again
		return bs.nowhere(s)
	}
	return notFound(c, false)
}

// further looks a block up once more when no shard is left: there may be more of them
// than were looked up, and if none failed they ended meanwhile. It says whether there
// are others to ask.
func (bs *IndexBackedBlockstore) further(ctx context.Context, s *reading) bool {
	if s.again || !s.few && len(s.failed) > 0 {
		return false
	}
	s.again = true
	asked := slices.Clone(s.keys)
	if err := bs.lookup(ctx, s, 0); err != nil {
		s.err = err
		return false
	}
	others := slices.DeleteFunc(slices.Clone(s.keys), func(k shard.Key) bool { return slices.Contains(asked, k) })
	if len(others) > 0 {
		bs.consider(s, others)
	}
	return len(s.cands) > 0
}

// drop takes a shard out of the candidates, and says whether it was one.
func (s *reading) drop(key shard.Key) bool {
	before := len(s.cands)
	s.cands = slices.DeleteFunc(s.cands, func(c Candidate) bool { return c.Key == key })
	return len(s.cands) < before
}

// consider makes candidates of shards, but for those whose failure is remembered.
func (bs *IndexBackedBlockstore) consider(s *reading, keys []shard.Key) {
	troubled := bs.failures.any()
	for _, key := range keys {
		c := Candidate{Key: key, Blocks: 1}
		if troubled {
			last, why := bs.failures.of(key, cids.Multihash(s.c))
			if why != nil {
				s.failed = append(s.failed, failing{key, why})
				continue
			}
			c.Failure, c.FailedAt = last.err, last.at
		}
		s.cands = append(s.cands, c)
	}
	if len(s.cands) > 1 {
		bs.survey(s.cands)
	}
}

// maxSurvey bounds how many shards the store is asked about.
const maxSurvey = 64

// survey finds out which candidates are open and, if none is, which are local.
func (bs *IndexBackedBlockstore) survey(cs []Candidate) {
	open := false
	for i := range cs {
		cs[i].Open = bs.cache.isOpen(cs[i].Key)
		open = open || cs[i].Open
	}
	if open || bs.locator == nil {
		return
	}
	keys := make([]shard.Key, 0, min(len(cs), maxSurvey))
	for i := range cs[:cap(keys)] {
		keys = append(keys, cs[i].Key)
	}
	local, err := bs.locator.LocalShards(keys)
	if err != nil || len(local) != len(keys) {
		return // the read will tell
	}
	for i := range local {
		if cs[i].Local = Remote; local[i] {
			cs[i].Local = Local
		}
	}
}

// choose asks the policy.
func (bs *IndexBackedBlockstore) choose(c cid.Cid, cs []Candidate) (shard.Key, error) {
	if len(cs) == 1 && !bs.declines {
		return cs[0].Key, nil
	}
	return bs.policy.Choose(c, cs)
}

// failure notes that a block could not be read from a shard; all says that the shard
// could not be opened.
func (bs *IndexBackedBlockstore) failure(key shard.Key, c cid.Cid, err error, all bool) {
	bs.counts.failures.Add(1)
	var news bool
	switch {
	case errors.Is(err, dagstore.ErrUnavailable):
		news = bs.failures.note(key, err)
	case all:
		news = bs.failures.add(key, cids.Multihash(c), err, whole)
	default:
		news = bs.failures.add(key, cids.Multihash(c), err, ofBlock)
	}
	if news {
		bs.log.Warn("a shard cannot be read from", "shard", key.String(), "block", c.String(), "err", err)
	}
}

// readShard runs op on the blocks of one shard. An accessor that fails leaves the
// cache. If it was there before, the shard may have been recovered since, so a new
// one is tried. whole says that none could be had.
func (bs *IndexBackedBlockstore) readShard(ctx context.Context, s *reading, key shard.Key, op func(dagstore.ReadBlockstore) error) (whole bool, err error) {
	for attempt := 0; ; attempt++ {
		e, fresh, err := bs.cache.acquire(ctx, key)
		if err != nil {
			return true, err
		}
		err = e.use(op)
		if err == nil && (len(s.keys) == 1 || bs.sticky) {
			bs.cache.places.note(cids.Multihash(s.c), e)
		}
		if err == nil || ctx.Err() != nil {
			return false, err
		}
		bs.cache.drop(e)
		if fresh || attempt > 0 {
			return false, err
		}
	}
}

// Explain says what a read of a block would choose among now: the shards that may be
// read from, the one that the policy takes first, and why it is not one of the others.
// remembered are the failures for which the rest are not asked. Nothing is opened.
func (bs *IndexBackedBlockstore) Explain(ctx context.Context, c cid.Cid) (candidates []Candidate, remembered []error, err error) {
	s := newReading(c)
	defer s.done()
	if err := bs.lookup(ctx, s, bs.most(few)); err != nil {
		return nil, nil, err
	}
	if len(s.keys) == 0 {
		return nil, nil, bs.nowhere(s)
	}
	bs.consider(s, s.keys)
	for _, f := range s.failed {
		remembered = append(remembered, f.err)
	}
	if len(s.cands) == 0 {
		return nil, remembered, nil
	}
	key, err := bs.choose(c, s.cands)
	if err != nil {
		return slices.Clone(s.cands), remembered, selectorError(c, err)
	}
	slices.SortStableFunc(s.cands, func(a, b Candidate) int {
		switch {
		case a.Key == key:
			return -1
		case b.Key == key:
			return 1
		}
		return 0
	})
	return slices.Clone(s.cands), remembered, nil
}
