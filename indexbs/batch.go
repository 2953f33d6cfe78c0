package indexbs

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/cids"
	"github.com/dagstore/dagstore/internal/mapped"
	"github.com/dagstore/dagstore/shard"
)

// manyViewer is a blockstore that reads many blocks at once, as ViewMany does.
type manyViewer interface {
	ViewMany(ctx context.Context, cids []cid.Cid, fn func(i int, data []byte, err error) error) error
}

var (
	_ manyViewer = (*IndexBackedBlockstore)(nil)
	_ manyViewer = (*dagstore.ShardBlockstore)(nil)
)

// GetMany returns blocks in the order of their CIDs. Of a block that was not served
// there is nil, and the error joins what was wrong with those; it is nil if there are
// none.
func (bs *IndexBackedBlockstore) GetMany(ctx context.Context, cids []cid.Cid) ([]blocks.Block, error) {
	out := make([]blocks.Block, len(cids))
	var wrong []error
	err := bs.ViewMany(ctx, cids, func(i int, data []byte, err error) error {
		if err == nil {
			out[i], err = blocks.NewBlockWithCid(slices.Clone(data), cids[i])
		}
		if err != nil && (ctx.Err() == nil || len(wrong) == 0) { // or else it would be told for each
			wrong = append(wrong, err)
		}
		return nil
	})
	return out, errors.Join(append(wrong, err)...)
}

// ViewMany calls fn once for each of the CIDs, in no particular order and not twice at a
// time, with its index and the bytes of the block, which are valid during the call only
// and must not be changed, or the error that Get would return. An error of fn ends the
// call and is returned as it is; otherwise the result is nil.
//
// Blocks of which it is remembered in which open shard they are come first. The others
// are all looked up. Then each shard is read that the policy chooses, which is told
// how many of the blocks a shard holds, and all of its blocks at once; what it does not
// serve is read from the next. Shards that are not open are opened ahead while others are
// read, a few at a time.
func (bs *IndexBackedBlockstore) ViewMany(ctx context.Context, cids []cid.Cid, fn func(i int, data []byte, err error) error) error {
	b := &batch{bs: bs, ctx: ctx, cids: cids, fn: fn, blocks: make([]wanted, len(cids))}
	b.lookup(b.hot())
	for len(b.todo) > 0 && b.stop == nil {
		b.round()
	}
	return b.stop
}

// batch is the reading of many blocks.
//
//	todo = the indices of which fn was not told yet, once all are looked up
//	every index of todo has a shard left
type batch struct {
	bs     *IndexBackedBlockstore
	ctx    context.Context
	cids   []cid.Cid
	fn     func(i int, data []byte, err error) error
	blocks []wanted    // by index
	keys   []shard.Key // of all of them, one after the other
	todo   []int
	stop   error // of fn: it ended the call
}

// wanted is a block that is wanted.
type wanted struct {
	noted  bool        // it may be remembered in which shard it is
	few    bool        // there may be more shards than were looked up
	again  bool        // it was looked up anew
	keys   []shard.Key // the shards that are left
	asked  []shard.Key // those that are not
	failed []failing   // what they said
}

// tell calls fn.
func (b *batch) tell(i int, data []byte, err error) {
	if b.stop == nil {
		b.stop = b.fn(i, data, err)
	}
}

// ended is why nothing more can be read, if that is so.
func (b *batch) ended() error {
	if err := b.ctx.Err(); err != nil {
		return err
	}
	if b.bs.cache.ctx.Err() != nil {
		return b.bs.cache.closedError()
	}
	return nil
}

// hot tells of the blocks that their CIDs carry, and of those that were found in a shard
// that is open still. The others it returns.
func (b *batch) hot() (others []int) {
	groups := make(map[*entry]*group)
	var held []*entry // one use of each for its group
	defer func() {
		for _, e := range held {
			e.release()
		}
	}()
	for i, c := range b.cids {
		if digest, ok := cids.Identity(c); ok {
			b.tell(i, digest, nil)
			continue
		}
		e := b.bs.cache.places.of(cids.Multihash(c))
		switch {
		case e == nil:
			others = append(others, i)
		case groups[e] != nil:
			e.release()
			groups[e].indices = append(groups[e].indices, i)
		default:
			held, groups[e] = append(held, e), &group{key: e.key, indices: []int{i}}
		}
	}
	for len(held) > 0 && b.stop == nil && b.ctx.Err() == nil {
		e := held[0]
		held = held[1:]
		b.bs.cache.touch(e)
		g := groups[e]
		delete(groups, e)
		b.view(e, g)
		others = append(others, g.indices...) // the index will tell
	}
	for _, g := range groups {
		others = append(others, g.indices...)
	}
	slices.Sort(others)
	return others
}

// lookup finds the shards of blocks, and tells of those that have none.
func (b *batch) lookup(indices []int) {
	s := newReading(cid.Undef)
	defer s.done()
	waited := false
	for n, i := range indices {
		if b.stop != nil {
			return
		}
		c := b.cids[i]
		s.begin(c)
		var began time.Time
		timed := !waited && n%lookEvery == 0
		if timed {
			began = time.Now()
		}
		err := b.bs.lookup(b.ctx, s, b.bs.most(few))
		if timed && mapped.Waited(time.Since(began), 0) {
			waited = true
			b.lookAhead(indices[n+1:])
		}
		if err != nil {
			b.tell(i, nil, err)
			continue
		}
		if len(s.keys) == 0 {
			b.tell(i, nil, b.bs.nowhere(s))
			continue
		}
		w := &b.blocks[i]
		w.noted, w.few = len(s.keys) == 1 || b.bs.sticky, s.few
		w.keys = b.willing(w, s.c, s.keys)
		if len(w.keys) == 0 {
			b.bs.counts.failedHits.Add(1)
			b.end(i)
			continue
		}
		b.todo = append(b.todo, i)
	}
}

// lookEvery is one of how many lookups is timed: looking at the clock costs a tenth of one.
const lookEvery = 8

// lookAhead looks blocks up, several at a time, and forgets it: the next to do so finds in
// memory what had to be waited for.
func (b *batch) lookAhead(indices []int) {
	mapped.Overlap(len(indices), func(k int) bool {
		defer func() { _ = recover() }() // an index of others panics again where it may
		s := newReading(b.cids[indices[k]])
		defer s.done()
		_ = b.bs.lookup(b.ctx, s, b.bs.most(few))
		return b.ended() == nil
	})
}

// end tells of a block of which no shard is left, unless there are others after all.
func (b *batch) end(i int) {
	w, c := &b.blocks[i], b.cids[i]
	if !w.again && (w.few || len(w.failed) == 0) {
		w.again = true
		s := newReading(c)
		defer s.done()
		if err := b.bs.lookup(b.ctx, s, 0); err != nil && len(w.failed) == 0 {
			b.tell(i, nil, err)
			return
		}
		others := slices.DeleteFunc(s.keys, func(k shard.Key) bool { return slices.Contains(w.asked, k) })
		if w.keys = b.willing(w, c, others); len(w.keys) > 0 {
			b.todo = append(b.todo, i)
			return
		}
		if len(w.failed) == 0 && len(s.keys) == 0 && len(others) == 0 {
			b.tell(i, nil, b.bs.nowhere(s))
			return
		}
	}
	if len(w.failed) > 0 {
		b.tell(i, nil, b.bs.unread(c, w.failed))
		return
	}
	b.tell(i, nil, notFound(c, false))
}

// willing returns the shards of a block but for those whose failure is remembered.
func (b *batch) willing(w *wanted, c cid.Cid, of []shard.Key) []shard.Key {
	from := len(b.keys)
	b.keys = append(b.keys, of...)
	keys := b.keys[from:len(b.keys):len(b.keys)]
	if !b.bs.failures.any() {
		return keys
	}
	return slices.DeleteFunc(keys, func(key shard.Key) bool {
		_, why := b.bs.failures.of(key, cids.Multihash(c))
		if why != nil {
			w.asked, w.failed = append(w.asked, key), append(w.failed, failing{key, why})
		}
		return why != nil
	})
}

// group is the blocks that are read from one shard.
type group struct {
	key     shard.Key
	indices []int
	open    bool
	opening *opening // nil: nobody opens it ahead
}

// round has each block of todo read from one shard. Those that are left failed there and
// have others.
func (b *batch) round() {
	groups := b.groups()
	o := newOpener(b.ctx, b.bs, groups)
	defer o.close()
	b.todo = b.todo[:0]
	for i := range groups {
		if b.stop != nil {
			return
		}
		if over := b.ended(); over != nil {
			for _, i := range groups[i].indices {
				b.tell(i, nil, over)
			}
			continue
		}
		o.openAhead(i)
		b.readGroup(o, &groups[i])
	}
}

// groups chooses a shard for each block of todo. They are in the order of their first
// blocks, those of open shards before the others, which are opened meanwhile.
func (b *batch) groups() []group {
	known := b.survey()
	var groups []group
	place := make(map[shard.Key]int)
	var cands []Candidate
	for _, i := range b.todo {
		w := &b.blocks[i]
		cands = cands[:0]
		for _, key := range w.keys {
			cands = append(cands, *known[key])
		}
		key, err := b.bs.choose(b.cids[i], cands)
		if err != nil {
			b.tell(i, nil, b.undecided(i, err))
			continue
		}
		n, ok := place[key]
		if !ok {
			n, place[key] = len(groups), len(groups)
			groups = append(groups, group{key: key})
		}
		groups[n].indices = append(groups[n].indices, i)
	}
	for i := range groups {
		groups[i].open = b.bs.cache.isOpen(groups[i].key)
	}
	slices.SortStableFunc(groups, func(x, y group) int {
		switch {
		case x.open == y.open:
			return 0
		case x.open:
			return -1
		}
		return 1
	})
	return groups
}

// undecided is the error of a block of which the policy takes no shard.
func (b *batch) undecided(i int, err error) error {
	switch w := &b.blocks[i]; {
	case len(w.failed) > 0:
		return b.bs.unread(b.cids[i], append(w.failed, failing{err: asFailure(err)}))
	case errors.Is(err, ErrNoShardSelected):
		return notFound(b.cids[i], true)
	}
	return selectorError(b.cids[i], err)
}

// survey finds out about the shards that blocks of todo may be read from.
func (b *batch) survey() map[shard.Key]*Candidate {
	known := make(map[shard.Key]*Candidate)
	var order []shard.Key
	several := false
	for _, i := range b.todo {
		keys := b.blocks[i].keys
		several = several || len(keys) > 1
		for _, key := range keys {
			if known[key] == nil {
				known[key] = &Candidate{Key: key}
				order = append(order, key)
			}
			known[key].Blocks++
		}
	}
	if !several && !b.bs.declines {
		return known // there is no choice
	}
	cands := make([]Candidate, len(order))
	for i, key := range order {
		cands[i] = *known[key]
		if b.bs.failures.any() {
			last, _ := b.bs.failures.of(key, "")
			cands[i].Failure, cands[i].FailedAt = last.err, last.at
		}
	}
	b.bs.survey(cands)
	for i := range cands {
		known[cands[i].Key] = &cands[i]
	}
	return known
}

// readGroup reads the blocks of a group, like readShard for one: an accessor that fails
// leaves the cache, and if it was there before a new one is tried.
func (b *batch) readGroup(o *opener, g *group) {
	for attempt := 0; len(g.indices) > 0; attempt++ {
		e, fresh, err := o.acquire(g)
		if err != nil {
			if b.ended() == nil && !isAbsent(err) {
				b.bs.failure(g.key, b.cids[g.indices[0]], err, true)
			}
			for _, i := range g.indices {
				b.failed(i, g.key, err)
			}
			return
		}
		errs := b.view(e, g)
		if len(errs) == 0 || b.stop != nil {
			return
		}
		if b.ctx.Err() == nil {
			b.bs.cache.drop(e)
		}
		if fresh || attempt > 0 || b.ctx.Err() != nil {
			for k, i := range g.indices {
				if b.ended() == nil && !isAbsent(errs[k]) {
					b.bs.failure(g.key, b.cids[i], errs[k], false)
				}
				b.failed(i, g.key, errs[k])
			}
			return
		}
	}
}

// view reads the blocks of a group from an accessor, and ends its use. It leaves in the
// group the blocks that were not served, and returns why.
func (b *batch) view(e *entry, g *group) (errs []error) {
	defer e.release()
	mine := make([]cid.Cid, len(g.indices))
	for k, i := range g.indices {
		mine[k] = b.cids[i]
	}
	told := make([]bool, len(mine))
	var left []int
	err := viewMany(b.ctx, e.bs, mine, func(k int, data []byte, err error) error {
		i := g.indices[k]
		told[k] = true
		if err != nil {
			left, errs = append(left, i), append(errs, e.failure(err))
			return nil
		}
		if b.blocks[i].noted {
			b.bs.cache.places.note(cids.Multihash(b.cids[i]), e)
		}
		b.tell(i, data, nil)
		return b.stop
	})
	if err == nil {
		err = errNotTold
	}
	for k, i := range g.indices {
		if !told[k] {
			left, errs = append(left, i), append(errs, e.failure(err))
		}
	}
	g.indices = left
	return errs
}

var errNotTold = errors.New("the shard's blockstore did not say whether it has the block")

// viewMany is ViewMany of one shard.
func viewMany(ctx context.Context, b dagstore.ReadBlockstore, cids []cid.Cid, fn func(k int, data []byte, err error) error) error {
	if m, ok := b.(manyViewer); ok {
		return m.ViewMany(ctx, cids, fn)
	}
	for k, c := range cids {
		var ofFn error
		err := view(ctx, b, c, func(data []byte) error {
			ofFn = fn(k, data, nil)
			return nil
		})
		if err != nil {
			ofFn = fn(k, nil, err)
		}
		if ofFn != nil {
			return ofFn
		}
	}
	return nil
}

// failed notes that a block could not be read from a shard. It is left for the next
// round, or is told of if that was the last.
func (b *batch) failed(i int, key shard.Key, err error) {
	if over := b.ended(); over != nil {
		b.tell(i, nil, over)
		return
	}
	w := &b.blocks[i]
	w.asked = append(w.asked, key)
	if !isAbsent(err) {
		w.failed = append(w.failed, failing{key, err})
	}
	before := len(w.keys)
	w.keys = slices.DeleteFunc(w.keys, func(k shard.Key) bool { return k == key })
	switch {
	case len(w.keys) > 0 && len(w.keys) < before:
		b.bs.counts.fallbacks.Add(1)
		b.todo = append(b.todo, i)
	default:
		b.end(i)
	}
}

// aheadShards is how many shards are opened at a time before their turn.
const aheadShards = 4

// opener opens the shards of groups before their turn. Those that are open already are
// left for then.
type opener struct {
	bs      *IndexBackedBlockstore
	ctx     context.Context
	cancel  context.CancelFunc
	groups  []group
	next    int // those from here on were not looked at
	waiting int // were opened, or are being opened, and are not taken
}

// opening is a shard that is being opened.
type opening struct {
	done  chan struct{}
	e     atomic.Pointer[entry] // nil also if it was let go of
	fresh bool
	err   error
}

func newOpener(ctx context.Context, bs *IndexBackedBlockstore, groups []group) *opener {
	o := &opener{bs: bs, groups: groups}
	o.ctx, o.cancel = context.WithCancel(ctx)
	return o
}

// openAhead sees to it that shards are opened ahead; it is the turn of group i.
func (o *opener) openAhead(i int) {
	for o.next = max(o.next, i+1); o.waiting < aheadShards && o.next < len(o.groups); o.next++ {
		if g := &o.groups[o.next]; !o.bs.cache.isOpen(g.key) {
			g.opening = o.open(g.key)
			o.waiting++
		}
	}
}

func (o *opener) open(key shard.Key) *opening {
	x := &opening{done: make(chan struct{})}
	go func() {
		defer close(x.done)
		e, fresh, err := o.bs.cache.acquire(o.ctx, key)
		x.fresh, x.err = fresh, err
		if err == nil {
			o.bs.cache.putAhead(x, e)
		}
	}()
	return x
}

// acquire returns the accessor of a group, whose turn it is. The caller releases it.
func (o *opener) acquire(g *group) (e *entry, fresh bool, err error) {
	x := g.opening
	if x == nil {
		return o.bs.cache.acquire(o.ctx, g.key)
	}
	g.opening = nil
	o.waiting--
	<-x.done
	if e := o.bs.cache.takeAhead(x); e != nil || x.err != nil {
		return e, x.fresh, x.err
	}
	return o.bs.cache.acquire(o.ctx, g.key) // it was let go of
}

// close ends what was not taken.
func (o *opener) close() {
	o.cancel()
	for i := range o.groups {
		if x := o.groups[i].opening; x != nil {
			<-x.done
			if e := o.bs.cache.takeAhead(x); e != nil {
				e.release()
			}
		}
	}
}
