package dagstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// AppendShards appends to dst the available shards that hold a block, in the order of
// their keys, and returns the position of the top-level index that this is the answer
// of. It is [DAGStore.FindShards] for who asks often: it allocates nothing if dst has
// room, finding none is not an error, and with [Any] and [Latest] it takes no lock of
// the views. h is neither kept nor changed.
func (d *DAGStore) AppendShards(ctx context.Context, dst []shard.Key, h mh.Multihash, c Consistency) ([]shard.Key, Position, error) {
	return d.AppendShardsUpTo(ctx, dst, h, c, 0)
}

// AppendShardsUpTo is AppendShards that stops when it has found most shards, for who
// reads a block that very many shards may hold: which ones these are is not said. 0
// means all.
func (d *DAGStore) AppendShardsUpTo(ctx context.Context, dst []shard.Key, h mh.Multihash, c Consistency, most int) ([]shard.Key, Position, error) {
	if err := d.freshFor(TopLevelView, c); err != nil {
		return dst, Position{}, fmt.Errorf("find shards: %w", err)
	}
	t := d.top.Load()
	pos, ok := d.reached(t, c)
	if !ok {
		v, f, err := d.views.Read(ctx, TopLevelView, c)
		if err != nil {
			return dst, f.Applied, fmt.Errorf("find shards: %w", d.told(err))
		}
		t, pos = v.(*topLevel), f.Applied
	}
	if _, own := t.entries.(*runEntries); !own {
		h = slices.Clone(h) // who knows what an index of others does with it
	}
	l := lookups.Get().(*lookup)
	defer l.done()
	l.most, l.seq = most, pos.Seq
	if err := l.find(ctx, t, h); err != nil {
		return dst, pos, err
	}
	for i := range l.found {
		if l.found[i].serves(pos.Seq) {
			dst = append(dst, l.found[i].key)
		}
	}
	return dst, pos, nil
}

// holder is a shard that a multihash is found in.
type holder struct {
	key shard.Key
	rec *projection.Record // nil: an index of others knows it and the catalogue does not
}

// holders returns the shards that h is found in, in the order of their keys, whatever
// their states are. Entries of another life or content do not count.
func (t *topLevel) holders(ctx context.Context, h mh.Multihash) ([]holder, error) {
	l := lookups.Get().(*lookup)
	defer l.done()
	err := l.find(ctx, t, h)
	return slices.Clone(l.found), err
}

// lookup is what a lookup works with. It is used again, with visit, which is see, so
// that a lookup does not allocate.
type lookup struct {
	t     *topLevel
	found []holder
	// most, if it is not 0, ends the lookup when so many are found that serve as of seq.
	most, serving int
	seq           uint64
	visit         func(ingest, bool) bool
}

var lookups = sync.Pool{New: func() any {
	l := new(lookup)
	l.visit = l.see
	return l
}}

func (l *lookup) find(ctx context.Context, t *topLevel, h mh.Multihash) error {
	l.t = t
	err := t.entries.find(ctx, h, l.visit)
	if len(l.found) > 1 { // an ingest may be in several runs
		slices.SortFunc(l.found, func(a, b holder) int { return a.key.Compare(b.key) })
		l.found = slices.CompactFunc(l.found, func(a, b holder) bool { return a.key == b.key })
	}
	return err
}

func (l *lookup) see(in ingest, known bool) bool {
	rec := l.t.d.cat.Get(in.key)
	switch {
	case known && (rec == nil || rec.Gen() != in.gen || rec.Life() == shard.Available && tagOf(rec.Index()) != in.tag):
	case rec == nil:
		l.found = append(l.found, holder{shard.KeyFromString(strings.Clone(in.key.String())), nil})
	default:
		l.found = append(l.found, holder{rec.Key(), rec}) // in.key is not ours to keep
		if l.most > 0 && l.found[len(l.found)-1].serves(l.seq) {
			l.serving++ // one in several runs counts more than once: the caller asked for some
		}
	}
	return l.most == 0 || l.serving < l.most
}

// maxLookup is how many holders a lookup has room for that is kept for another.
const maxLookup = 64

func (l *lookup) done() {
	if cap(l.found) > maxLookup {
		l.found = nil
	}
	clear(l.found) // records keep others in memory
	*l = lookup{found: l.found[:0], visit: l.visit}
	lookups.Put(l)
}

// serves says whether a holder is available, as of event seq: what a view has not seen
// is another state of the shard, perhaps with other blocks.
func (h *holder) serves(seq uint64) bool {
	return h.rec != nil && h.rec.Life() == shard.Available && h.rec.Seq() <= seq
}
