package indexbs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/ipld/go-ipld-prime/codec/raw"
	"github.com/ipld/go-ipld-prime/linking"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

func newWith(t testing.TB, d indexbs.IdxBstoreDagstore, o indexbs.Options) *indexbs.IndexBackedBlockstore {
	t.Helper()
	bs, err := indexbs.New(t.Context(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bs.Close() })
	return bs
}

func asOfSomething() dagstore.Consistency { return dagstore.AsOf(dagstore.Position{Seq: 7}) }

// carOf is a CAR of one block, after some of another.
func carOf(c cid.Cid, data []byte) []byte { return carOfMany([]cid.Cid{c}, [][]byte{data}) }

// carOfMany is a CAR of blocks. A first one of 2 KiB, which nobody asks for, keeps them
// apart from the header.
func carOfMany(cids []cid.Cid, data [][]byte) []byte {
	var w bytes.Buffer
	filler := blockOf(1<<60, 2048)
	root := cidOf(filler)
	header := append([]byte("\xa2eroots\x81\xd8\x2a\x58\x25\x00"), root.Bytes()...)
	header = append(header, "gversion\x01"...)
	w.Write(binary.AppendUvarint(nil, uint64(len(header))))
	w.Write(header)
	section := func(c cid.Cid, p []byte) {
		w.Write(binary.AppendUvarint(nil, uint64(c.ByteLen()+len(p))))
		w.Write(c.Bytes())
		w.Write(p)
	}
	section(root, filler)
	for i, c := range cids {
		section(c, data[i])
	}
	return w.Bytes()
}

// TestFailedShardIsRemembered: a shard that cannot be opened is not asked again for
// FailedFor, whatever block of it is wanted; the error is the same; others serve what
// they hold meanwhile, and after it the shard is asked again. Proves F21.
func TestFailedShardIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, data := sharedBlock(t)
		f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared})
		a := f.shard("a")
		down := errors.New("origin is down")
		a.fail = fmt.Errorf("fetch: %w", down)
		var log bytes.Buffer
		bs := newWith(t, f, indexbs.Options{FailedFor: 3 * time.Second, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		var cids []cid.Cid // of a alone
		shared := sampleBlocks(t, testdata.CarShared)
		for k := range sampleBlocks(t, testdata.CarV1) {
			if _, ok := shared[k]; !ok {
				cids = append(cids, k)
			}
		}
		_, first := bs.Get(t.Context(), cids[0])
		for _, k := range cids {
			if _, err := bs.Get(t.Context(), k); !errors.Is(err, down) || isNotFound(err) {
				t.Errorf("%s: %v, after %v", k, err, first)
			}
			if has, err := bs.Has(t.Context(), k); !has || err != nil {
				t.Errorf("Has says %v, %v: a failure is not an absence", has, err)
			}
		}
		if f.count() != 1 {
			t.Errorf("%d acquires within FailedFor, want 1", f.count())
		}
		if n := bytes.Count(log.Bytes(), []byte("\n")); n != 1 || !bytes.Contains(log.Bytes(), []byte("origin is down")) {
			t.Errorf("logged %d lines: %s", n, log.String())
		}
		if _, remembered, err := bs.Explain(t.Context(), cids[0]); err != nil || len(remembered) != 1 || !errors.Is(remembered[0], down) {
			t.Errorf("explained with %v, %v", remembered, err)
		}
		if err := checkBlock(t.Context(), bs, c, data); err != nil { // b has it too
			t.Error(err)
		}
		if got := bs.Stats(); got.Failures != 1 || got.FailedHits != uint64(len(cids)) || got.Fallbacks != 0 || got.Opens != 1 || got.OpenNow != 1 {
			t.Errorf("stats: %+v", got)
		}
		<-time.After(3 * time.Second)
		if _, err := bs.Get(t.Context(), cids[0]); !errors.Is(err, down) || f.count() != 3 {
			t.Errorf("after FailedFor: %v, %d acquires; want 3", err, f.count())
		}
		<-time.After(3 * time.Second)
		a.fail = nil
		for _, k := range cids {
			if _, err := bs.Get(t.Context(), k); err != nil {
				t.Errorf("after it came back: %v", err)
			}
		}
	})
}

// TestBadBlockIsRemembered: a block that a shard cannot serve is not read from it again
// for FailedFor, and its other blocks are; if they are elsewhere too, rather there.
// Proves F21, I16 (blocks of one shard).
func TestBadBlockIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, data := sharedBlock(t)
		f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
		a := f.shard("a")
		a.corrupt(t, c, data)
		bs := newWith(t, f, indexbs.Options{})
		for range 5 {
			if _, err := bs.Get(t.Context(), c); !errors.Is(err, dagstore.ErrBlockCorrupt) {
				t.Fatalf("corrupt: %v", err)
			}
		}
		if f.count() != 1 {
			t.Errorf("%d acquires, want 1", f.count())
		}
		for k, want := range sampleBlocks(t, testdata.CarV1) {
			if k != c {
				if err := checkBlock(t.Context(), bs, k, want); err != nil {
					t.Error(err)
				}
			}
		}
		if got := bs.Stats(); got.FailedHits != 4 || got.Failures != 1 {
			t.Errorf("stats: %+v", got)
		}
		<-time.After(4 * time.Second)
		a.car = testdata.CarV1 // mended
		if err := checkBlock(t.Context(), bs, c, data); err == nil {
			t.Log("read from the accessor that was open")
		}
		<-time.After(4 * time.Second)
		if err := checkBlock(t.Context(), bs, c, data); err != nil {
			t.Errorf("after FailedFor: %v", err)
		}
	})
}

// TestErrorsStay: the error of a read says the same when others have failed.
func TestErrorsStay(t *testing.T) {
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared})
	for _, s := range f.shards {
		s.fail = errors.New("failed: " + s.key.String())
	}
	bs := newWith(t, f, indexbs.Options{FailedFor: -1})
	_, one := bs.Get(t.Context(), testdata.RootCID)
	said := one.Error()
	for range 10 {
		if _, err := bs.Get(t.Context(), testdata.SharedRootCID); err == nil {
			t.Error("no error")
		}
	}
	if one.Error() != said || !errors.Is(one, f.shard("a").fail) {
		t.Errorf("it said %q and says %q", said, one)
	}
}

// TestFailuresAreForgottenOneByOne: a failure is over after FailedFor, also if others
// come all the time.
func TestFailuresAreForgottenOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared})
		for _, s := range f.shards {
			s.fail = errors.New("failed")
		}
		bs := newWith(t, f, indexbs.Options{FailedFor: 3 * time.Second})
		asks := func(c cid.Cid, want int) {
			t.Helper()
			before := f.count()
			if _, err := bs.Get(t.Context(), c); err == nil || f.count()-before != want {
				t.Errorf("%d acquires, want %d; %v", f.count()-before, want, err)
			}
		}
		asks(testdata.RootCID, 1)
		<-time.After(2 * time.Second)
		asks(testdata.SharedRootCID, 1)
		<-time.After(time.Second)
		asks(testdata.SharedRootCID, 0)
		asks(testdata.RootCID, 1)
	})
}

// TestNewShardIsAsked: a block whose shards all failed is read from one that comes.
func TestNewShardIsAsked(t *testing.T) {
	c, data := sharedBlock(t)
	f := newFakeStore(t, map[string][]byte{"a": carOf(c, data), "b": carOf(c, data)})
	f.shard("a").fail = errors.New("failed")
	f.shard("b").holds = nil
	bs := newWith(t, f, indexbs.Options{FailedFor: time.Hour})
	for range 2 {
		if _, err := bs.Get(t.Context(), c); !errors.Is(err, f.shard("a").fail) {
			t.Errorf("Get: %v", err)
		}
	}
	f.mu.Lock()
	f.shard("b").holds = map[string]bool{string(c.Hash()): true}
	clear(f.found)
	f.mu.Unlock()
	if err := checkBlock(t.Context(), bs, c, data); err != nil {
		t.Error(err)
	}
	if n := f.count(); n != 2 {
		t.Errorf("%d acquires, want one of each", n)
	}
}

// TestCancelledReadIsNoFailure: a reader that leaves does not make its shard fail for
// others. Proves F15, F23.
func TestCancelledReadIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
		s := f.shard("a")
		gate := f.gateNext(s)
		s.heeds = true
		bs := newWith(t, f, indexbs.Options{FailedFor: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := bs.Get(ctx, testdata.RootCID); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get: %v", err)
		}
		close(gate)
		if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
			t.Errorf("the next reader got %v", err)
		}
	})
}

// TestNotFoundAsOf: "not found" is an ipld.ErrNotFound by value, and says as of which
// position of the journal it is so. Proves F24, G19.
func TestNotFoundAsOf(t *testing.T) {
	given := dagstore.WithConfig(func(c *dagstore.Config) { c.TopLevelIndex = index.NewMemoryInverted() })
	for name, opts := range map[string][]dagstore.Option{"own": nil, "given": {given}} {
		for _, keep := range []time.Duration{0, time.Hour} {
			t.Run(fmt.Sprint(name, keep), func(t *testing.T) {
				d := openWith(t, opts...)
				bs := newWith(t, over(d), indexbs.Options{NotFoundFor: keep})
				for i := range 3 {
					register(t, d, fmt.Sprint("shard ", i), carOf(cidOf([]byte{byte(i)}), []byte{byte(i)}))
					at := d.Position()
					for range 2 {
						for _, c := range []cid.Cid{missing, cid.NewCidV1(cid.DagCBOR, missing.Hash())} {
							checkAbsent(t, bs, c, ds.ErrNotFound)
							_, err := bs.Get(t.Context(), c)
							var none *dagstore.NoShardError
							if !errors.As(err, &none) || none.AsOf.Applied != at || none.AsOf.View != dagstore.TopLevelView || !bytes.Equal(none.Multihash, c.Hash()) {
								t.Errorf("after event %d: %v, %+v", at.Seq, err, none)
							}
							var many ipld.ErrNotFound
							if _, err := bs.GetMany(t.Context(), []cid.Cid{c}); !errors.As(err, &many) || many.Cid != c || !errors.As(err, &none) || none.AsOf.Applied != at {
								t.Errorf("of a batch: %v", err)
							}
						}
					}
				}
				if n := bs.Stats().NotFoundHits; (n > 0) != (keep > 0) {
					t.Errorf("%d hits of what is remembered for %s", n, keep)
				}
			})
		}
	}
}

// TestAbsenceIsNotBelievedForLong: a block that becomes available is found by the next
// read, however long absences are remembered; without a change the index is not asked
// twice, and after NotFoundFor it is. Proves G19.
func TestAbsenceIsNotBelievedForLong(t *testing.T) {
	d := openWith(t)
	register(t, d, "first", testdata.CarV1)
	bs := newWith(t, over(d), indexbs.Options{NotFoundFor: time.Hour})
	for i := range 50 {
		data := blockOf(uint64(i), 100)
		c := cidOf(data)
		checkAbsent(t, bs, c)
		before := bs.Stats().NotFoundHits
		if checkAbsent(t, bs, c); bs.Stats().NotFoundHits == before {
			t.Fatal("an absence was looked up again")
		}
		register(t, d, fmt.Sprint(i), carOf(c, data))
		if err := checkBlock(t.Context(), bs, c, data); err != nil {
			t.Fatalf("after it became available: %v", err)
		}
		bs.Close()
		bs = newWith(t, over(d), indexbs.Options{NotFoundFor: time.Hour})
		if i%2 == 0 {
			if _, err := d.DestroyShardSync(t.Context(), shard.KeyFromString(fmt.Sprint(i)), dagstore.DestroyOpts{}); err != nil {
				t.Fatal(err)
			}
			checkAbsent(t, bs, c)
		}
	}
}

// findingStore is a [indexbs.Finder] that a test controls.
type findingStore struct {
	*fakeStore
	pos     dagstore.Position
	unknown bool
	err     error // what Freshness says that it lacks
	lookups int
	later   uint64 // events that come between a lookup and Freshness
}

func (s *findingStore) AppendShardsOfCid(ctx context.Context, dst []shard.Key, c cid.Cid, _ dagstore.Consistency) ([]shard.Key, dagstore.Position, error) {
	s.lookups++
	keys, err := s.ShardsContainingCid(ctx, c)
	if s.lookup == nil && errors.Is(err, ds.ErrNotFound) {
		err = nil
	}
	return append(dst, keys...), s.pos, err
}

func (s *findingStore) LookupPosition(dagstore.Consistency) (dagstore.Position, bool) {
	return s.pos, !s.unknown
}

func (s *findingStore) Freshness(view string) (dagstore.Freshness, error) {
	now := s.pos
	now.Seq += s.later
	return dagstore.Freshness{View: view, Applied: now, Head: now, Err: s.err}, nil
}

// TestAbsencesRemembered: an absence is believed as long as the index is where it was,
// for NotFoundFor, and not at all if the index lacks something or its position is not
// known. Proves G19.
func TestAbsencesRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &findingStore{fakeStore: newFakeStore(t, nil), pos: dagstore.Position{Seq: 7}}
		bs := newWith(t, s, indexbs.Options{NotFoundFor: 3 * time.Second})
		looks := func(want int) {
			t.Helper()
			before := s.lookups
			if _, err := bs.GetSize(t.Context(), missing); !isNotFound(err) {
				t.Errorf("GetSize: %v", err)
			}
			if got := s.lookups - before; got != want {
				t.Errorf("%d lookups, want %d", got, want)
			}
		}
		looks(1)
		looks(0)
		s.pos.Seq++
		looks(1)
		looks(0)
		<-time.After(3*time.Second - 1)
		looks(0)
		<-time.After(1)
		looks(1)
		s.unknown = true
		looks(1)
		looks(1)
		s.unknown = false
		looks(0)
		s.pos.Seq++
		s.err = errors.New("a shard is missing")
		looks(1)
		looks(1)
		s.err, s.later = nil, 5
		s.pos.Seq++
		_, err := bs.Get(t.Context(), missing)
		var none *dagstore.NoShardError
		if !errors.As(err, &none) || none.AsOf.Applied != s.pos || none.AsOf.Head.Seq != s.pos.Seq+5 || none.AsOf.Lag != 5 {
			t.Errorf("the view moved on before it was asked: %+v", none)
		}
		if n := bs.Stats().NotFoundHits; n != 4 {
			t.Errorf("%d hits, want 4", n)
		}
	})
}

// TestHotBlocks: a block that was read is read again without a lookup, whatever the
// codec, as long as its shard is open; what is remembered wrongly is looked up.
func TestHotBlocks(t *testing.T) {
	c, data := sharedBlock(t)
	s := &findingStore{fakeStore: newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared}), pos: dagstore.Position{Seq: 7}}
	bs := newWith(t, s, indexbs.Options{MaxOpen: 1})
	looks := func(c cid.Cid, want int) {
		t.Helper()
		before := s.lookups
		if _, err := bs.Get(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if got := s.lookups - before; got != want {
			t.Errorf("%s: %d lookups, want %d", c, got, want)
		}
	}
	looks(testdata.RootCID, 1)
	looks(testdata.RootCID, 0)
	looks(cid.NewCidV1(cid.Raw, testdata.RootCID.Hash()), 0)
	looks(testdata.SharedRootCID, 1) // a makes room, and its number goes to b
	looks(testdata.RootCID, 1)
	looks(testdata.SharedRootCID, 1)
	looks(testdata.SharedRootCID, 0)
	looks(c, 1)
	looks(c, 0) // it is in both: the default policy takes the one that is open
	if err := checkBlock(t.Context(), bs, c, data); err != nil {
		t.Error(err)
	}
	// So it is with batches, and what one found the other knows.
	for range 2 {
		before := s.lookups
		both := []cid.Cid{testdata.RootCID, testdata.SharedRootCID, c}
		if _, err := bs.GetMany(t.Context(), both); err != nil {
			t.Error(err)
		}
		if got := s.lookups - before; got != 1 {
			t.Errorf("of %d blocks, of which one is hot and one is in two shards, %d were looked up", len(both), got)
		}
	}
	looks(testdata.RootCID, 1)
	looks(testdata.RootCID, 0)
	// What the hint says of a damaged block is what a lookup would.
	s.shard("b").corrupt(t, testdata.SharedRootCID, sampleBlocks(t, testdata.CarShared)[testdata.SharedRootCID])
	if _, err := bs.Get(t.Context(), testdata.SharedRootCID); !errors.Is(err, dagstore.ErrBlockCorrupt) {
		t.Errorf("damaged: %v", err)
	}
	bs = newWith(t, s, indexbs.Options{})
	if _, err := bs.GetMany(t.Context(), []cid.Cid{testdata.RootCID}); err != nil {
		t.Error(err)
	}
	looks(testdata.RootCID, 0)
	bs = newWith(t, s, indexbs.Options{Policy: indexbs.Prefer(indexbs.OpenFirst)})
	looks(testdata.RootCID, 1)
	looks(testdata.RootCID, 0)
	looks(c, 1)
	looks(c, 1) // another policy is to choose
	off := newWith(t, s, indexbs.Options{HotBlocks: -1})
	bs = off
	looks(testdata.RootCID, 1)
	looks(testdata.RootCID, 1)
}

// TestThinConstructor: the predecessor's constructor remembers nothing but accessors.
func TestThinConstructor(t *testing.T) {
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1})
	bs := newBlockstore(t, f, nil, 0, 0)
	f.shard("a").fail = errors.New("failed")
	for i := range 3 {
		if _, err := bs.Get(t.Context(), testdata.RootCID); !errors.Is(err, f.shard("a").fail) || f.count() != i+1 {
			t.Errorf("Get %d: %v, %d acquires", i, err, f.count())
		}
	}
	f.shard("a").fail = nil
	if _, err := bs.Get(t.Context(), testdata.RootCID); err != nil {
		t.Error(err)
	}
	f.lookup = errors.New("no index")
	if _, err := bs.Get(t.Context(), testdata.RootCID); !errors.Is(err, f.lookup) {
		t.Errorf("not looked up: %v", err)
	}
}

// TestStats: what is counted is what happened.
func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, data := sharedBlock(t)
		f := newFakeStore(t, map[string][]byte{"a": carOf(c, data), "b": testdata.CarShared, "c": testdata.CarV1})
		f.shard("a").fail = errors.New("failed")
		bs := newWith(t, f, indexbs.Options{MaxOpen: 1, IdleFor: time.Minute, FailedFor: -1})
		get := func(c cid.Cid) {
			t.Helper()
			if _, err := bs.Get(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		want := func(want indexbs.Stats) {
			t.Helper()
			if got := bs.Stats(); got != want {
				t.Errorf("stats:\n got %+v\nwant %+v", got, want)
			}
		}
		want(indexbs.Stats{})
		get(c) // a fails, b has it
		want(indexbs.Stats{Opens: 1, OpenNow: 1, Failures: 1, Fallbacks: 1})
		get(testdata.SharedRootCID)
		get(testdata.SharedRootCID)
		want(indexbs.Stats{Opens: 1, OpenNow: 1, Failures: 1, Fallbacks: 1, Hits: 2})
		get(testdata.RootCID) // c, for which b has to make room
		want(indexbs.Stats{Opens: 2, OpenNow: 1, Failures: 1, Fallbacks: 1, Hits: 2, Evictions: 1})
		<-time.After(time.Minute)
		synctest.Wait()
		want(indexbs.Stats{Opens: 2, Failures: 1, Fallbacks: 1, Hits: 2, Evictions: 1, Expiries: 1})
		gate := f.gateNext(f.shard("c"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		bs.Get(ctx, testdata.RootCID)
		close(gate)
		synctest.Wait()
		want(indexbs.Stats{Opens: 3, Failures: 1, Fallbacks: 1, Hits: 2, Evictions: 1, Expiries: 1, Late: 1})
	})
}

// TestLinkSystem: nodes are loaded from whichever shard holds them; nothing is stored.
func TestLinkSystem(t *testing.T) {
	f := newFakeStore(t, map[string][]byte{"a": testdata.CarV1, "b": testdata.CarShared})
	bs := newWith(t, f, indexbs.Options{})
	lsys := bs.LinkSystem()
	for _, car := range [][]byte{testdata.CarV1, testdata.CarShared} {
		for c, want := range sampleBlocks(t, car) {
			p, err := lsys.LoadRaw(linking.LinkContext{Ctx: t.Context()}, cidlink.Link{Cid: c})
			if err != nil || !bytes.Equal(p, want) {
				t.Fatalf("%s: %v", c, err)
			}
			if c.Prefix().Codec != cid.Raw {
				continue
			}
			n, err := lsys.Load(linking.LinkContext{}, cidlink.Link{Cid: c}, basicnode.Prototype.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if p, err := n.AsBytes(); err != nil || !bytes.Equal(p, want) {
				t.Fatalf("%s as a node: %v", c, err)
			}
		}
	}
	_, err := lsys.LoadRaw(linking.LinkContext{}, cidlink.Link{Cid: missing})
	if !isNotFound(err) {
		t.Errorf("missing: %v", err)
	}
	lp := cidlink.LinkPrototype{Prefix: cid.Prefix{Version: 1, Codec: cid.Raw, MhType: mh.SHA2_256, MhLength: 32}}
	if _, err := lsys.Store(linking.LinkContext{}, lp, basicnode.NewBytes([]byte("new"))); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("store: %v", err)
	}
	if _, err := lsys.StorageReadOpener(linking.LinkContext{}, nil); err == nil {
		t.Error("a link without a CID: loaded")
	}
	_ = raw.Decode // registers the codec
}

func openWith(t testing.TB, opts ...dagstore.Option) *dagstore.DAGStore {
	t.Helper()
	d, err := dagstore.Open(t.Context(), t.TempDir(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func register(t testing.TB, d *dagstore.DAGStore, name string, car []byte) {
	t.Helper()
	if _, err := d.RegisterShardSync(t.Context(), shard.KeyFromString(name), &mount.BytesMount{Bytes: car}, dagstore.RegisterOpts{}); err != nil {
		t.Fatal(err)
	}
}

// TestIdentityBlocksAreTheCallers: whoever changes the bytes of a block that is in its
// CID does not change the CID.
func TestIdentityBlocksAreTheCallers(t *testing.T) {
	d, _ := openStore(t, nil)
	bs := newWith(t, over(d), indexbs.Options{})
	c := cid.NewCidV1(cid.Raw, must(mh.Encode([]byte("hello"), mh.IDENTITY)))
	was := c.String()
	must(bs.Get(t.Context(), c)).RawData()[0] = 'J'
	must(bs.GetMany(t.Context(), []cid.Cid{c}))[0].RawData()[0] = 'J'
	if c.String() != was {
		t.Errorf("%s is %s now", was, c)
	}
}
