package compat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	ds "github.com/ipfs/go-datastore"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

var ctx = context.Background()

// world is a store of the predecessor's, opened here: lotus's configuration with the
// import paths changed.
type world struct {
	t   *testing.T
	dir root
	src *pieces
	ds  ds.Batching
	d   *dagstore.DAGStore
	bs  *indexbs.IndexBackedBlockstore
}

// config is lotus's configuration.
func config(dir root, src *pieces, store ds.Batching) (dagstore.Config, error) {
	reg := mount.NewRegistry()
	idx, err := index.NewFSRepo(dir.sub("index"))
	err = errors.Join(err, reg.Register("lotus", &LotusMount{Pieces: src}), reg.Register("stream", &StreamMount{LotusMount{Pieces: src}}))
	return dagstore.Config{
		TransientsDir: dir.sub("transients"), IndexRepo: idx, Datastore: store, MountRegistry: reg,
		TopLevelIndex:      index.NewInverted(store),
		MaxConcurrentIndex: 5, MaxConcurrentReadyFetches: 5, RecoverOnStart: dagstore.RecoverOnAcquire,
		Logger: slog.New(slog.DiscardHandler),
	}, err
}

func openHere(t *testing.T, dir root) *world {
	t.Helper()
	w := &world{t: t, dir: dir, src: dir.pieces()}
	store, err := dir.datastore()
	if err != nil {
		t.Fatal(err)
	}
	w.ds = store
	cfg, err := config(dir, w.src, store)
	if err != nil {
		t.Fatal(err)
	}
	d, err := dagstore.NewDAGStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(ctx); err != nil {
		t.Fatal(err)
	}
	w.d = d
	if w.bs, err = indexbs.New(ctx, &indexbs.IdxBstoreDagstoreFromDagstore{Interface: d}, indexbs.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

func (w *world) close() {
	w.t.Helper()
	if w.d == nil {
		return
	}
	if err := errors.Join(w.bs.Close(), w.d.Close(), w.ds.Close()); err != nil {
		w.t.Error(err)
	}
	w.d = nil
}

func key(p *planned) shard.Key { return shard.KeyFromString(p.key) }

func (w *world) state(p *planned) dagstore.ShardState {
	w.t.Helper()
	info, err := w.d.GetShardInfo(key(p))
	if err != nil {
		w.t.Errorf("%s %q: %v", p.do, p.key, err)
	}
	return info.ShardState
}

// reach waits until a shard is in a state.
func (w *world) reach(p *planned, state dagstore.ShardState) {
	w.t.Helper()
	w.until(fmt.Sprintf("%s %q is %s", p.do, p.key, state), func() bool { return w.state(p) == state })
}

// until waits until something is so.
func (w *world) until(what string, so func() bool) {
	w.t.Helper()
	limit := time.After(30 * time.Second)
	for !so() {
		select {
		case <-limit:
			w.t.Fatalf("not within 30 s: %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// find returns the shards in which a block is found, once that is known.
func (w *world) find(text string) []shard.Key {
	w.t.Helper()
	c, _ := block(text)
	var keys []shard.Key
	w.until("it is known where a block is", func() bool {
		var err error
		keys, err = w.d.ShardsContainingMultihash(ctx, c.Hash())
		if err != nil && !errors.As(err, new(*dagstore.NotFreshError)) && !errors.As(err, new(*dagstore.NoShardError)) {
			w.t.Errorf("%q: %v", text, err)
		}
		return !errors.As(err, new(*dagstore.NotFreshError))
	})
	return keys
}

// holds finds each block of a shard's own by its multihash, and reads all through the
// blockstore over all shards and through an accessor.
func (w *world) holds(p *planned) {
	w.t.Helper()
	acc, err := w.d.AcquireShardSync(ctx, key(p), dagstore.AcquireOpts{})
	if err != nil {
		w.t.Errorf("%s %q: acquire: %v", p.do, p.key, err)
		return
	}
	defer acc.Close()
	own, err := acc.Blockstore()
	if err != nil {
		w.t.Errorf("%s %q: %v", p.do, p.key, err)
		return
	}
	for i, text := range p.texts() {
		c, data := block(text)
		keys := w.find(text)
		if !slices.Contains(keys, key(p)) || i >= 2 && len(keys) != 1 {
			w.t.Errorf("%s %q: block %d is found in %q", p.do, p.key, i, keys)
		}
		for name, get := range map[string]func() (blocks.Block, error){
			"indexbs":  func() (blocks.Block, error) { return w.bs.Get(ctx, c) },
			"accessor": func() (blocks.Block, error) { return own.Get(ctx, c) },
		} {
			if b, err := get(); err != nil || !bytes.Equal(b.RawData(), data) {
				w.t.Errorf("%s %q: block %d by %s: %v", p.do, p.key, i, name, err)
			}
		}
	}
}

// wasIndexed says that the predecessor served a shard, so that its blocks are promised.
func (p *planned) wasIndexed() bool {
	return p.state == dagstore.ShardStateAvailable || p.state == dagstore.ShardStateServing
}

// TestUpgrade: a store that the predecessor made, in all states, is opened in the same
// configuration, whether its process was killed or closed it. Every block of every shard
// that was available is found and read; what was under way goes on; what was lazy is
// lazy; what was errored says the same; what was destroyed is gone. It is so after
// another restart too, and nothing that has a copy is fetched. Proves A8 (after an
// adoption), F9 (a store of the predecessor's own making).
func TestUpgrade(t *testing.T) {
	for _, mode := range []string{modeKill, modeClose} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dir := made(t, mode)
			records := dir.records(t)
			if err := dir.pieces().heal(); err != nil {
				t.Fatal(err)
			}
			all := plans(manyShards)
			for round := range 2 {
				w := openHere(t, dir)
				if have, want := len(w.d.AllShardsInfo()), len(records); have != want {
					t.Errorf("round %d: %d shards, the records are %d", round, have, want)
				}
				for _, p := range all {
					w.check(p, records[p.key], round)
				}
				for _, p := range all {
					if p.do == doAbsent && round == 0 {
						w.recovers(p)
					}
				}
				w.close()
			}
		})
	}
}

// check holds a shard to what the predecessor's record says of it.
func (w *world) check(p *planned, rec dagstore.PersistedShard, round int) {
	w.t.Helper()
	state := w.state
	switch {
	case p.do == doDestroy:
		if _, err := w.d.GetShardInfo(key(p)); !errors.Is(err, dagstore.ErrShardUnknown) {
			w.t.Errorf("%q: %v", p.key, err)
		}
		if keys := w.find(p.texts()[3]); len(keys) > 0 {
			w.t.Errorf("a block of the destroyed %q is found in %q", p.key, keys)
		}
	case p.do == doJunk || rec.State == dagstore.ShardStateErrored && round == 0:
		// The predecessor also writes that down of what is under way when it closes.
		info, err := w.d.GetShardInfo(key(p))
		if err != nil || info.ShardState != dagstore.ShardStateErrored || info.Error == nil || round == 0 && info.Error.Error() != rec.Error {
			w.t.Errorf("%s %q: %v, %s: %v; the record says %q", p.do, p.key, err, info.ShardState, info.Error, rec.Error)
		}
	case p.do == doAbsent:
		if round == 1 {
			w.holds(p)
		}
	case rec.State == dagstore.ShardStateNew && round == 0:
		if s := state(p); s != dagstore.ShardStateNew {
			w.t.Errorf("%s %q is %s", p.do, p.key, s)
		}
		if keys := w.find(p.texts()[3]); len(keys) > 0 {
			w.t.Errorf("a block of %q, which was never indexed, is found in %q", p.key, keys)
		}
		w.holds(p)
	default:
		if !p.wasIndexed() && round == 0 { // goes on by itself
			w.reach(p, dagstore.ShardStateAvailable)
		}
		if p.wasIndexed() && round == 0 {
			// Before anything is asked of the shard itself.
			if p.do == doDrop || p.do == doCut { // is indexed anew
				w.reach(p, dagstore.ShardStateAvailable)
			}
			if s := state(p); s != dagstore.ShardStateAvailable && s != dagstore.ShardStateServing {
				w.t.Errorf("%s %q is %s", p.do, p.key, s)
			}
			if keys := w.find(p.texts()[3]); !slices.Equal(keys, []shard.Key{key(p)}) {
				w.t.Errorf("%s %q: a block is found in %q", p.do, p.key, keys)
			}
		}
		w.holds(p)
		copied := p.scheme == "stream" && p.do != doReclaim && (p.wasIndexed() || round == 1)
		if n := w.src.fetchedOf(p.id()); copied && n > 0 {
			w.t.Errorf("%s %q: round %d: fetched %d times, though it has a copy: %+v", p.do, p.key, round, n, rec)
		}
	}
}

// recovers lets a source come, and acquires the shard, which heals on that.
func (w *world) recovers(p *planned) {
	w.t.Helper()
	if err := p.source(w.src, -1); err != nil {
		w.t.Fatal(err)
	}
	w.holds(p)
}

// TestUpgradeUnderWay: a predecessor that is killed while it registers leaves records of
// shards in every moment of that. All of them become available, and what it had told is
// among them.
func TestUpgradeUnderWay(t *testing.T) {
	t.Parallel()
	dir := made(t, modeUnder)
	records := dir.records(t)
	if len(records) < manyShards/2 {
		t.Fatalf("%d records of %d shards that were told of", len(records), manyShards/2)
	}
	for range 2 {
		w := openHere(t, dir)
		n := 0
		for _, p := range plans(manyShards) {
			if _, ok := records[p.key]; ok {
				w.holds(p)
				n++
			}
		}
		if all := w.d.AllShardsInfo(); n != len(records) || len(all) != n {
			t.Errorf("%d records, of which %d were planned; %d shards", len(records), n, len(all))
		}
		w.close()
	}
}

// TestUpgradeWithoutParts: records whose indices or sources are gone are shards all the
// same. Without the indices all is indexed again by itself; a source that is away is nothing
// that is not there. Proves A2 (after an adoption), A6 (without indices, without copies).
func TestUpgradeWithoutParts(t *testing.T) {
	t.Parallel()
	dir := made(t, modeClose)
	records := dir.records(t)
	src := dir.pieces()
	if err := errors.Join(src.heal(), os.Rename(src.dir, src.dir+".away"), os.RemoveAll(dir.sub("transients"))); err != nil {
		t.Fatal(err)
	}
	w := openHere(t, dir)
	some := slices.DeleteFunc(plans(30), func(p *planned) bool { return !p.wasIndexed() || p.do == doDrop || p.do == doCut || p.do == doOwn })
	for _, p := range some {
		text := p.texts()[3]
		c, _ := block(text)
		if keys := w.find(text); !slices.Equal(keys, []shard.Key{key(p)}) {
			t.Errorf("%s %q: a block is found in %q while its source is away", p.do, p.key, keys)
		}
		if _, err := w.bs.Get(ctx, c); !errors.Is(err, dagstore.ErrUnavailable) || ipld.IsNotFound(err) {
			t.Errorf("%s %q: a block whose source is away: %v", p.do, p.key, err)
		}
	}
	w.close()
	indices, err := filepath.Glob(dir.sub("index/*idx"))
	for _, name := range indices {
		err = errors.Join(err, os.Remove(name))
	}
	if err = errors.Join(err, os.Rename(src.dir+".away", src.dir)); err != nil {
		t.Fatal(err)
	}
	w = openHere(t, dir)
	if have, want := len(w.d.AllShardsInfo()), len(records); have != want {
		t.Errorf("%d shards, the records are %d", have, want)
	}
	for _, p := range some {
		w.holds(p)
	}
}
