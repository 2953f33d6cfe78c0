package dagstore

import (
	"context"
	"errors"
	"sync/atomic"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/index/toplevel"
	"github.com/dagstore/dagstore/internal/planted"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

// runEntries are entries in runs of our own, in memory or on disk. They name the life
// and the content that they are of, so nothing has to be removed: the catalogue says
// what counts.
type runEntries struct {
	d *DAGStore
	x *toplevel.Index
	t *topLevel // the view that they are of
	// mending: damage was met, and the entries are being made anew.
	mending atomic.Bool
}

// openRuns opens the entries in Config.TopLevelDir, or makes some in memory.
func (d *DAGStore) openRuns() (*runEntries, error) {
	r := &runEntries{d: d}
	opts := d.cfg.TopLevel
	opts.Logger = d.log
	opts.Spawn = func(f func()) { d.loop.spawn(f) }
	var err error
	if d.cfg.TopLevelDir == "" {
		r.x, err = toplevel.New(opts, r.hooks())
	} else {
		r.x, err = toplevel.OpenOn(d.cfg.fs, d.cfg.TopLevelDir, opts, r.hooks())
	}
	return r, err
}

func (r *runEntries) hooks() toplevel.Hooks {
	return toplevel.Hooks{
		Alive: func(in toplevel.Ingest) bool {
			return r.t.alive(ingest{key: in.Key, gen: in.Gen, tag: contentTag(in.Tag)})
		},
		Mark:    func() []byte { return r.t.mark() },
		Damaged: r.damaged,
	}
}

// serve makes t the view that the entries are of, and begins where they end: nowhere,
// if that is not a position of the journal from which it can be replayed.
func (r *runEntries) serve(t *topLevel) {
	r.t = t
	pos, err := journal.ParseToken(string(r.x.Mark()))
	if err != nil || pos.Seq == 0 {
		return
	}
	if c, ok := r.d.journal.(journal.Compacted); ok && pos.Seq < c.Horizon().Seq {
		return
	}
	if p, ok := r.d.journal.(journal.Positioner); ok {
		if at, err := p.PositionAt(pos.Seq); err == nil && at == pos {
			t.pos.Store(&pos)
			t.replay.to = r.d.journal.Head().Seq
		}
	}
}

// mark is the position up to which the entries are whole, or nil to leave it where it is:
// while some are lacking it does not pass them, so that a start which lost what was in
// memory of them looks at their shards again.
func (t *topLevel) mark() []byte {
	pos := t.Position() // before what lacks, which may be put right meanwhile
	if pos.Seq == 0 || t.lackingCount() > 0 && !planted.Bug("toplevel-mark-passes-what-lacks") {
		return nil
	}
	return []byte(pos.Token())
}

// damaged has the entries made anew, once: lookups that meet the damage fail meanwhile.
func (r *runEntries) damaged(err error) {
	if r.mending.Swap(true) {
		return
	}
	r.d.log.Error("the top-level index is damaged and is made anew from the shard indices", "err", err)
	r.d.loop.complete(input{ctl: func() {
		if r.d.top.Load() != r.t || r.d.loop.closing {
			return
		}
		r.d.loop.spawn(func() {
			err := r.d.views.Rebuild(r.d.ctx, TopLevelView)
			if err == nil || errors.Is(err, projection.ErrRebuilding) || r.d.ctx.Err() != nil {
				return
			}
			r.mending.Store(false) // whoever meets it next tries again
			r.d.log.Error("the top-level index cannot be made anew", "err", err)
		})
	}})
}

func (r *runEntries) holding(context.Context) (func(*projection.Record) (bool, error), error) {
	have, lives := make(map[ingest]struct{}), make(map[ingest]struct{})
	err := r.x.Ingests(func(in toplevel.Ingest, whole bool) bool {
		if whole {
			have[ingest{key: in.Key, gen: in.Gen, tag: contentTag(in.Tag)}] = struct{}{}
			lives[ingest{key: in.Key, gen: in.Gen}] = struct{}{}
		}
		return true
	})
	return func(rec *projection.Record) (held bool, _ error) {
		if in := ingestOf(rec); rec.Life() == shard.Available {
			_, held = have[in]
		} else {
			_, held = lives[ingest{key: in.key, gen: in.gen}]
		}
		return held, nil
	}, err
}

func (r *runEntries) fresh() (shardEntries, error) {
	f := &runEntries{d: r.d}
	var err error
	f.x, err = r.x.Fresh(f.hooks())
	return f, err
}

func (r *runEntries) succeed(former shardEntries, pos journal.Position) error {
	return r.x.Adopt(former.(*runEntries).x, r.t.mark())
}

func (r *runEntries) add(ctx context.Context, in ingest, current func() bool, it index.MultihashIterator) error {
	if !current() {
		return ErrShardUnknown
	}
	name := toplevel.Ingest{Key: in.key, Gen: in.gen, Tag: uint64(in.tag)}
	if in.part {
		return r.x.AddPart(ctx, name, it)
	}
	return r.x.Add(ctx, name, it)
}

func (r *runEntries) leave(shard.Key, uint64)                        {}
func (r *runEntries) sweep(context.Context, shard.Key, uint64) error { return nil }
func (r *runEntries) forget()                                        { r.x.Died() }

func (r *runEntries) find(_ context.Context, h mh.Multihash, visit func(ingest, bool) bool) error {
	return r.x.Lookup(h, func(in toplevel.Ingest) bool {
		return visit(ingest{key: in.Key, gen: in.Gen, tag: contentTag(in.Tag)}, true)
	})
}

func (r *runEntries) close() error { return r.x.Close() }
