package dagstore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// The predecessor's documented behaviour, as clients rely on it.

// bubble runs a test in which time is fake and settle waits until nothing moves.
// It fails if the test leaves a goroutine behind.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func mapDatastore() ds.Datastore { return dssync.MutexWrap(ds.NewMapDatastore()) }

// traces takes what was traced since the last call.
func traces(ch chan dagstore.Trace) (all []dagstore.Trace) {
	settle()
	for {
		select {
		case tr := <-ch:
			all = append(all, tr)
			settle()
		default:
			return all
		}
	}
}

// story writes traces down: operation>state, with ! where there is an error.
func story(all []dagstore.Trace) string {
	var b strings.Builder
	for i, tr := range all {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(strings.TrimPrefix(tr.Op.String(), "OpShard"))
		b.WriteByte('>')
		b.WriteString(strings.TrimPrefix(tr.After.String(), "ShardState"))
		if tr.After.Error != nil {
			b.WriteByte('!')
		}
	}
	return b.String()
}

func wantStory(t *testing.T, ch chan dagstore.Trace, want string) {
	t.Helper()
	if got := story(traces(ch)); got != want {
		t.Errorf("traced %q\n  want %q", got, want)
	}
}

// TestTraceStories: what is traced of a shard's life, in order and with the state
// after each operation.
func TestTraceStories(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ch := make(chan dagstore.Trace, 128)
		d := start(t, dagstore.Config{TraceCh: ch})
		a, b := key("a"), key("b")
		register(t, d, a, carV2())
		wantStory(t, ch, "Register>New Initialize>Initializing MakeAvailable>Available")
		acc1, acc2 := acquire(t, d, a), acquire(t, d, a)
		wantStory(t, ch, "Acquire>Serving Acquire>Serving")
		closeAll(t, acc1)
		wantStory(t, ch, "Release>Serving")
		closeAll(t, acc2)
		wantStory(t, ch, "Release>Available")

		registerLazily(t, d, b, carV1())
		wantStory(t, ch, "Register>New")
		acc := acquire(t, d, b)
		wantStory(t, ch, "Acquire>New Initialize>Initializing MakeAvailable>Serving")
		closeAll(t, acc)
		wantStory(t, ch, "Release>Available")
		destroy(t, d, b)
		if tr := traces(ch); len(tr) != 1 || tr[0].Op != dagstore.OpShardDestroy || tr[0].Key != b {
			t.Errorf("destroy is traced as %q", story(tr))
		}
	})
}

// TestFailureStories: a shard that cannot be indexed fails, fails again when it is
// recovered, tells the error to those who acquire it, and recovers once the very
// mount object that was registered is pointed at a good file.
func TestFailureStories(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ch := make(chan dagstore.Trace, 128)
		failures := make(chan dagstore.ShardResult, 128)
		d := start(t, dagstore.Config{TraceCh: ch, FailureCh: failures})
		k, m := key("a"), junk()
		_, err := d.RegisterShardSync(background, k, m, dagstore.RegisterOpts{})
		wantErr(t, "register junk", err, dagstore.ErrShardInitializationFailed)
		wantStory(t, ch, "Register>New Initialize>Initializing Fail>Errored!")
		if i, err := d.GetShardInfo(k); err != nil || i.ShardState != dagstore.ShardStateErrored || i.Error == nil {
			t.Errorf("info of a failed shard: %v, %v", i, err)
		}
		_, err = d.RecoverShardSync(background, k, dagstore.RecoverOpts{})
		wantErr(t, "recover junk", err, dagstore.ErrShardInitializationFailed)
		wantStory(t, ch, "Recover>Recovering! Fail>Errored!")

		_, err = d.AcquireShardSync(background, k, dagstore.AcquireOpts{})
		wantErr(t, "acquire a failed shard", err, dagstore.ErrShardInitializationFailed)
		wantStory(t, ch, "Acquire>Errored!")
		settle()
		if n := len(failures); n != 2 {
			t.Errorf("%d failures told, want 2", n)
		}
		for range len(failures) {
			if f := <-failures; f.Key != k || f.Error == nil || f.Accessor != nil {
				t.Errorf("told failure %+v", f)
			}
		}

		m.Path = testdata.FSPathCarV2
		if _, err := d.RecoverShardSync(background, k, dagstore.RecoverOpts{}); err != nil {
			t.Fatalf("recover with a good file: %v", err)
		}
		wantStory(t, ch, "Recover>Recovering! MakeAvailable>Available")
		works(t, d, k)
		if len(failures) != 0 {
			t.Errorf("a failure was told of a recovery that succeeded: %v", (<-failures).Error)
		}
		_, err = d.RecoverShardSync(background, k, dagstore.RecoverOpts{})
		wantErr(t, "recover a healthy shard", err, dagstore.ErrNotErrored)
	})
}

// TestRecoverImmediately: the handler of the failure channel tries each shard as
// often as it was told to, at once and then with pauses, and no more; its end is told.
func TestRecoverImmediately(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const shards, attempts = 16, 10
		ch := make(chan dagstore.Trace, 1024)
		failures := make(chan dagstore.ShardResult, 128)
		d := start(t, dagstore.Config{TraceCh: ch, FailureCh: failures})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go dagstore.RecoverImmediately(ctx, d, failures, attempts, func() { close(done) })
		out := make(chan dagstore.ShardResult, shards)
		for i := range shards {
			if err := d.RegisterShard(background, key("%d", i), junk(), out, dagstore.RegisterOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		n := make(map[dagstore.OpType]int)
		count := func() {
			for _, tr := range traces(ch) {
				n[tr.Op]++
			}
		}
		if count(); n[dagstore.OpShardRecover] != shards {
			t.Errorf("%d attempts at once, want one for each of %d shards", n[dagstore.OpShardRecover], shards)
		}
		for range 4 { // the pauses before the second and the third, and not before the fifth
			pass(time.Second)
		}
		if count(); n[dagstore.OpShardRecover] < 2*shards || n[dagstore.OpShardRecover] > 3*shards {
			t.Errorf("%d attempts within four seconds of %d shards", n[dagstore.OpShardRecover], shards)
		}
		pass(time.Hour)
		count()
		want := map[dagstore.OpType]int{
			dagstore.OpShardRegister: shards, dagstore.OpShardInitialize: shards,
			dagstore.OpShardFail: shards * (1 + attempts), dagstore.OpShardRecover: shards * attempts,
		}
		if !maps.Equal(n, want) {
			t.Errorf("traced %v, want %v", n, want)
		}
		cancel()
		<-done
	})
}

// TestThrottledFetches: no more fetches than configured run at once, the next
// begins when one has ended, and those of sources that are not ready do not count.
// Proves F22 (fetches).
func TestThrottledFetches(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		g.ready = true
		d := start(t, dagstore.Config{MountRegistry: registry(t, g), MaxConcurrentReadyFetches: 5, MaxConcurrentIndex: 5})
		out := make(chan dagstore.ShardResult, 16)
		for i := range 16 {
			if err := d.RegisterShard(background, key("%d", i), &gateMount{carV2(), g}, out, dagstore.RegisterOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		if n := d.Stats()[dagstore.ShardStateInitializing]; n != 16 || len(out) != 0 {
			t.Errorf("%d shards are initialising and %d are answered, want 16 and 0", n, len(out))
		}
		for done := 5; done <= 15; done += 5 {
			if _, inside, _ := g.count(); inside != 5 {
				t.Errorf("%d fetches run, want 5", inside)
			}
			g.letIn(5)
			settle()
			if n := d.Stats()[dagstore.ShardStateAvailable]; n != done || len(out) != done {
				t.Errorf("%d shards are available and %d answered, want %d", n, len(out), done)
			}
		}
		g.letIn(1)
		settle()
		if begun, _, peak := g.count(); begun != 16 || peak != 5 || len(out) != 16 {
			t.Errorf("%d fetches, at most %d at once, %d answers; want 16, 5, 16", begun, peak, len(out))
		}
	})
	bubble(t, func(t *testing.T) {
		slow := newGate() // not ready: they would idle in the slots
		d := start(t, dagstore.Config{MountRegistry: registry(t, slow), MaxConcurrentReadyFetches: 1})
		for i := range 16 {
			if err := d.RegisterShard(background, key("%d", i), &gateMount{carV2(), slow}, nil, dagstore.RegisterOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		if _, inside, _ := slow.count(); inside != 16 {
			t.Errorf("%d fetches of sources that prepare are under way, want 16", inside)
		}
		register(t, d, key("ready"), carV1()) // is not held up
		slow.letIn(16)
		settle()
	})
}

// TestLazyFetchedOnce: a lazy shard is not touched before its first acquire, and
// 16 first acquires at once fetch it once.
func TestLazyFetchedOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{})
		k := key("foo")
		m := &mount.Counting{Mount: carV2()}
		registerLazily(t, d, k, m)
		wantState(t, d, k, dagstore.ShardStateNew)
		settle()
		if n := m.Count(); n != 0 {
			t.Fatalf("fetched %d times before the first acquire", n)
		}
		out := make(chan dagstore.ShardResult, 16)
		for range 16 {
			if err := d.AcquireShard(background, k, out, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		for range 16 {
			res := <-out
			if res.Error != nil || res.Key != k || res.Accessor.Shard() != k {
				t.Fatalf("acquire: %+v", res)
			}
			if n := readAll(t, res.Accessor); n == 0 {
				t.Fatal("no blocks")
			}
			defer res.Accessor.Close()
		}
		wantState(t, d, k, dagstore.ShardStateServing)
		if n := m.Count(); n != 1 {
			t.Errorf("fetched %d times, want once", n)
		}
	})
}

// TestGCLeavesWhatIsUsed: of 100 shards the 75 that nobody uses are collected, and
// work again afterwards; those in use are not mentioned.
func TestGCLeavesWhatIsUsed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		d := start(t, dagstore.Config{TransientsDir: dir})
		keys := make([]shard.Key, 100)
		out := make(chan dagstore.ShardResult, len(keys))
		for i := range keys {
			keys[i] = key("shard-%d", i)
			if err := d.RegisterShard(background, keys[i], carV2(), out, dagstore.RegisterOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		for range keys {
			if res := <-out; res.Error != nil || res.Accessor != nil {
				t.Fatalf("register: %+v", res)
			}
		}
		if n := len(names(t, dir)); n != 100 {
			t.Errorf("%d copies, want 100", n)
		}
		for i, k := range keys[:50] {
			accs := []*dagstore.ShardAccessor{acquire(t, d, k), acquire(t, d, k), acquire(t, d, k)}
			closeAll(t, accs[:2]...)
			if i < 25 {
				defer accs[2].Close()
			} else {
				closeAll(t, accs[2])
			}
		}
		settle()
		res, err := d.GC(background)
		if err != nil || len(res.Shards) != 75 || res.ShardFailures() != 0 {
			t.Fatalf("GC: %d shards, %d failures, %v; want 75, 0", len(res.Shards), res.ShardFailures(), err)
		}
		for _, k := range keys[25:] {
			if err, ok := res.Shards[k]; !ok || err != nil {
				t.Errorf("GC of %s: %t, %v", k, ok, err)
			}
		}
		if n := len(names(t, dir)); n != 25 {
			t.Errorf("%d copies are left, want 25", n)
		}
		for _, k := range []shard.Key{keys[0], keys[30], keys[99]} {
			works(t, d, k)
		}
	})
}

// TestRestart: everything is back after a restart, with each kind of journal: the
// shards, their indices, their copies, without fetching or indexing again, and
// shards that were destroyed are not.
func TestRestart(t *testing.T) {
	for _, kind := range []string{"datastore", "directory", "repo"} {
		t.Run(kind, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				dir, base := t.TempDir(), mapDatastore()
				mem := index.NewMemoryRepo()
				again := func() *dagstore.DAGStore {
					cfg := dagstore.Config{TransientsDir: dir, IndexRepo: mem}
					switch kind {
					case "datastore":
						cfg.Datastore = base
					case "directory":
						return open(t, dir, dagstore.WithMount("counting", new(mount.Counting)))
					case "repo":
						cfg.ShardRepo = dagstore.NewBadgerShardRepo(base)
					}
					return start(t, cfg)
				}
				d := again()
				counting := &mount.Counting{Mount: carV2()}
				out := make(chan dagstore.ShardResult, 100)
				for i := range 100 {
					if err := d.RegisterShard(background, key("shard-%d", i), counting, out, dagstore.RegisterOpts{}); err != nil {
						t.Fatal(err)
					}
				}
				for range 100 {
					if res := <-out; res.Error != nil {
						t.Fatal(res.Error)
					}
				}
				for i := range 20 {
					acquire(t, d, key("shard-%d", i)) // left open
				}
				for i := 80; i < 100; i++ {
					destroy(t, d, key("shard-%d", i))
				}
				registerLazily(t, d, key("lazy"), carV1())
				_, err := d.RegisterShardSync(background, key("junk"), junk(), dagstore.RegisterOpts{})
				wantErr(t, "register junk", err, dagstore.ErrShardInitializationFailed)
				closeStore(t, d)

				d = again()
				want := map[dagstore.ShardState]int{dagstore.ShardStateAvailable: 80, dagstore.ShardStateNew: 1, dagstore.ShardStateErrored: 1}
				settle()
				all := d.AllShardsInfo()
				have := make(map[dagstore.ShardState]int)
				for k, i := range all {
					have[i.ShardState]++
					if (i.Error != nil) != (i.ShardState == dagstore.ShardStateErrored) {
						t.Errorf("%s: %s with error %v", k, i, i.Error)
					}
				}
				if !maps.Equal(have, want) || !maps.Equal(d.Stats(), want) {
					t.Fatalf("after the restart %v, by Stats %v, want %v", have, d.Stats(), want)
				}
				for i := range 80 {
					works(t, d, key("shard-%d", i))
				}
				works(t, d, key("lazy"))
				if n := counting.Count(); n != 100 {
					t.Errorf("fetched %d times, want 100: the copies are still there", n)
				}
				for i := range 100 {
					err := d.RegisterShard(background, key("shard-%d", i), counting, nil, dagstore.RegisterOpts{LazyInitialization: true})
					if i < 80 {
						wantErr(t, "register a key that is taken", err, dagstore.ErrShardExists)
					} else if err != nil {
						t.Errorf("register a key that was destroyed: %v", err)
					}
				}
			})
		})
	}
}

// TestRestartResumes: a registration that was interrupted while it fetched goes on
// when the store starts, with the mount revived from its URL.
func TestRestartResumes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir, base, ch := t.TempDir(), mapDatastore(), make(chan dagstore.Trace, 16)
		g := newGate()
		cfg := dagstore.Config{TransientsDir: dir, Datastore: base, TraceCh: ch, MountRegistry: registry(t, g)}
		d := start(t, cfg)
		out := make(chan dagstore.ShardResult, 1)
		k := key("test")
		if err := d.RegisterShard(background, k, &gateMount{carV2(), g}, out, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		wantStory(t, ch, "Register>New Initialize>Initializing")
		wantState(t, d, k, dagstore.ShardStateInitializing)
		closeStore(t, d)
		if res := <-out; !errors.Is(res.Error, dagstore.ErrClosed) {
			t.Errorf("the interrupted registration was answered %v", res.Error)
		}
		if left := names(t, dir); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}

		g.letIn(1)
		d = start(t, cfg)
		wantStory(t, ch, "Register>New Initialize>Initializing MakeAvailable>Available")
		works(t, d, k)
		wantStory(t, ch, "Acquire>Serving Release>Available")
	})
}

// TestRecoverOnStart: what each policy makes of errored shards.
func TestRecoverOnStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const shards = 16
		ch, base := make(chan dagstore.Trace, 256), mapDatastore()
		cfg := dagstore.Config{TransientsDir: t.TempDir(), Datastore: base, TraceCh: ch}
		d := start(t, cfg)
		for i := range shards {
			if err := d.RegisterShard(background, key("%d", i), junk(), nil, dagstore.RegisterOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(traces(ch)); n != 3*shards {
			t.Errorf("%d traces, want %d", n, 3*shards)
		}
		closeStore(t, d)

		count := func() map[dagstore.OpType]int {
			n := make(map[dagstore.OpType]int)
			for _, tr := range traces(ch) {
				n[tr.Op]++
			}
			return n
		}
		check := func(what string, want map[dagstore.OpType]int) {
			t.Helper()
			if n := count(); !maps.Equal(n, want) {
				t.Errorf("%s: traced %v, want %v", what, n, want)
			}
			for k, i := range d.AllShardsInfo() {
				if i.ShardState != dagstore.ShardStateErrored || i.Error == nil {
					t.Errorf("%s: %s is %s, %v", what, k, i, i.Error)
				}
			}
		}
		acquireAll := func() {
			t.Helper()
			for i := range shards {
				_, err := d.AcquireShardSync(background, key("%d", i), dagstore.AcquireOpts{})
				wantErr(t, "acquire", err, dagstore.ErrShardInitializationFailed)
			}
		}
		cfg.RecoverOnStart = dagstore.DoNotRecover
		d = start(t, cfg)
		check("do not recover", map[dagstore.OpType]int{})
		closeStore(t, d)

		cfg.RecoverOnStart = dagstore.RecoverNow
		d = start(t, cfg)
		check("recover now", map[dagstore.OpType]int{dagstore.OpShardRecover: shards, dagstore.OpShardFail: shards})
		closeStore(t, d)

		cfg.RecoverOnStart = dagstore.RecoverOnAcquire
		d = start(t, cfg)
		check("recover on acquire, before", map[dagstore.OpType]int{})
		acquireAll()
		check("recover on acquire, first", map[dagstore.OpType]int{
			dagstore.OpShardAcquire: shards, dagstore.OpShardRecover: shards, dagstore.OpShardFail: shards})
		acquireAll()
		check("recover on acquire, second", map[dagstore.OpType]int{dagstore.OpShardAcquire: shards})
	})
}

// TestExistingTransient: a shard whose origin is out of reach is served from the
// copy that the caller has, also after a restart. The copy stays as it is through
// GC and destruction.
// Proves F4.
func TestExistingTransient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		own := writeFile(t, filepath.Join(t.TempDir(), "mine.car"), testdata.CarV2)
		cfg := dagstore.Config{TransientsDir: t.TempDir(), Datastore: mapDatastore(), IndexRepo: index.NewMemoryRepo()}
		d := start(t, cfg)
		k := key("foo")
		gone := &mount.FSMount{FS: testdata.FS, Path: "gone"}
		_, err := d.RegisterShardSync(background, k, gone, dagstore.RegisterOpts{ExistingTransient: own})
		if err != nil {
			t.Fatal(err)
		}
		works(t, d, k)
		settle()
		if res, err := d.GC(background); err != nil || res.ShardFailures() != 0 {
			t.Errorf("GC: %v, %v", res, err)
		}
		works(t, d, k)
		closeStore(t, d)
		d = start(t, cfg)
		works(t, d, k)
		if left := names(t, cfg.TransientsDir); len(left) != 0 {
			t.Errorf("made %v, though the caller's copy would do", left)
		}
		settle()
		destroy(t, d, k)
		if b, err := os.ReadFile(own); err != nil || string(b) != string(testdata.CarV2) {
			t.Errorf("the caller's copy: %d bytes, %v", len(b), err)
		}
	})
}

// TestRecoverDistrustsExistingTransient: recovery of a shard whose given copy is bad
// fetches from the origin, and leaves the bad file where it is.
// Proves F4 (recovery).
func TestRecoverDistrustsExistingTransient(t *testing.T) {
	own := writeFile(t, filepath.Join(t.TempDir(), "mine.car"), testdata.Junk)
	d := start(t, dagstore.Config{})
	k := key("foo")
	_, err := d.RegisterShardSync(background, k, carV2(), dagstore.RegisterOpts{ExistingTransient: own})
	wantErr(t, "register with a bad copy", err, dagstore.ErrShardInitializationFailed)
	if _, err := d.RecoverShardSync(background, k, dagstore.RecoverOpts{}); err != nil {
		t.Fatal(err)
	}
	works(t, d, k)
	if b, err := os.ReadFile(own); err != nil || string(b) != string(testdata.Junk) {
		t.Errorf("the caller's file: %d bytes, %v", len(b), err)
	}
}

// TestAcquireBeforeRegistered: an acquire may be queued as soon as RegisterShard has
// returned, with channels or without.
func TestAcquireBeforeRegistered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		k := key("foo")
		if err := d.RegisterShard(background, k, &gateMount{carV1(), g}, nil, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		out := make(chan dagstore.ShardResult) // unbuffered
		if err := d.AcquireShard(background, k, out, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		g.letIn(1)
		res := <-out
		if res.Error != nil || res.Accessor == nil {
			t.Fatalf("acquire: %+v", res)
		}
		readAll(t, res.Accessor)
		closeAll(t, res.Accessor)
		wantErr(t, "acquire an unknown shard", d.AcquireShard(background, key("nobody"), out, dagstore.AcquireOpts{}), dagstore.ErrShardUnknown)
		wantErr(t, "recover an unknown shard", d.RecoverShard(background, key("nobody"), out, dagstore.RecoverOpts{}), dagstore.ErrShardUnknown)
		wantErr(t, "destroy an unknown shard", d.DestroyShard(background, key("nobody"), out, dagstore.DestroyOpts{}), dagstore.ErrShardUnknown)
		_, err := d.GetShardInfo(key("nobody"))
		if err != dagstore.ErrShardUnknown { // compared so by clients
			t.Errorf("info of an unknown shard: %v", err)
		}
	})
}

// TestFailedFetchTellsAll: everybody who waits for a first fetch learns why it
// failed, and nobody gets an accessor.
func TestFailedFetchTellsAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		k := key("foo")
		registerLazily(t, d, k, &gateMount{junk(), g})
		out := make(chan dagstore.ShardResult, 5)
		for range 5 {
			if err := d.AcquireShard(background, k, out, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		if len(out) != 0 {
			t.Fatal("answered before the fetch")
		}
		g.letIn(1)
		settle()
		if len(out) != 5 {
			t.Fatalf("%d answers, want 5", len(out))
		}
		for range 5 {
			if res := <-out; !errors.Is(res.Error, dagstore.ErrShardInitializationFailed) || res.Accessor != nil {
				t.Errorf("answered %+v", res)
			}
		}
	})
}

// TestConcurrentUse registers and acquires from many goroutines at once.
func TestConcurrentUse(t *testing.T) {
	d := start(t, dagstore.Config{})
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			k := key("shard-%d", i)
			if _, err := d.RegisterShardSync(background, k, carV2(), dagstore.RegisterOpts{LazyInitialization: i%2 == 0}); err != nil {
				t.Error(err)
				return
			}
			var inner sync.WaitGroup
			for range 8 {
				inner.Go(func() {
					acc, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{})
					if err != nil {
						t.Error(err)
						return
					}
					defer acc.Close()
					if s := state(t, d, k); s != dagstore.ShardStateServing {
						t.Errorf("%s while an accessor is open", s)
					}
					bs, err := acc.Blockstore()
					if err == nil {
						_, err = bs.Get(background, testdata.RootCID)
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			inner.Wait()
		})
	}
	wg.Wait()
	for i := range 32 {
		if err := d.RegisterShard(background, key("shard-%d", i), carV2(), nil, dagstore.RegisterOpts{}); !errors.Is(err, dagstore.ErrShardExists) {
			t.Errorf("registered twice: %v", err)
		}
	}
}

// TestTopLevelLookup: every multihash of a shard leads to it, shared ones to all
// their shards, and none to a shard that is gone.
// Proves F10 (top-level entries).
func TestTopLevelLookup(t *testing.T) {
	for _, kind := range []string{"memory", "datastore"} {
		t.Run(kind, func(t *testing.T) {
			var cfg dagstore.Config
			if kind == "datastore" {
				cfg.TopLevelIndex = index.NewInverted(dssync.MutexWrap(ds.NewMapDatastore()))
			}
			d := start(t, cfg)
			a, b := key("a"), key("b")
			register(t, d, a, carV2())
			register(t, d, b, &mount.FSMount{FS: testdata.FS, Path: testdata.FSPathCarShared})
			inA, inB := multihashes(t, d, a), multihashes(t, d, b)
			has := func(all []mh.Multihash, h mh.Multihash) bool {
				return slices.ContainsFunc(all, func(x mh.Multihash) bool { return string(x) == string(h) })
			}
			shared := 0
			for _, h := range slices.Concat(inA, inB) {
				keys, err := d.ShardsContainingMultihash(background, h)
				if err != nil || slices.Contains(keys, a) != has(inA, h) || slices.Contains(keys, b) != has(inB, h) {
					t.Fatalf("%s is in %v, %v; want a %t, b %t", h, keys, err, has(inA, h), has(inB, h))
				}
				if len(keys) == 2 {
					shared++
				}
			}
			if shared == 0 {
				t.Error("no multihash is in both shards: the test shows nothing")
			}
			destroy(t, d, a)
			for _, h := range inA {
				keys, err := d.ShardsContainingMultihash(background, h)
				if has(inB, h) {
					if err != nil || len(keys) != 1 || keys[0] != b {
						t.Fatalf("%s is in %v, %v, want b", h, keys, err)
					}
					continue
				}
				wantErr(t, "lookup of what was in a destroyed shard", err, ds.ErrNotFound)
			}
			if keys, err := d.TopLevelIndex.GetShardsForMultihash(background, inA[0]); slices.Contains(keys, a) {
				t.Errorf("the index itself still has %v, %v", keys, err)
			}
		})
	}
}

// TestCloseBounded: a mount that ignores its context holds Close up for the
// configured time, and everybody who waits is answered before that.
// Proves F28.
func TestCloseBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		g.deaf = true
		d := start(t, dagstore.Config{MountRegistry: registry(t, g), CloseTimeout: 3 * time.Second})
		k := key("foo")
		out := make(chan dagstore.ShardResult, 8)
		if err := d.RegisterShard(background, k, &gateMount{carV1(), g}, out, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		for range 7 {
			if err := d.AcquireShard(background, k, out, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		begun := time.Now()
		answered := make(chan time.Duration)
		go func() {
			for range 8 {
				if res := <-out; !errors.Is(res.Error, dagstore.ErrClosed) || res.Accessor != nil {
					t.Errorf("answered %+v", res)
				}
			}
			answered <- time.Since(begun)
		}()
		go closeStore(t, d)
		if after := <-answered; after > time.Second {
			t.Errorf("those who waited were answered after %v", after)
		}
		closeStore(t, d) // waits for the first
		if took := time.Since(begun); took < 3*time.Second || took > 4*time.Second {
			t.Errorf("Close took %v with a limit of 3 s", took)
		}
		for what, err := range map[string]error{
			"register": d.RegisterShard(background, key("x"), carV1(), nil, dagstore.RegisterOpts{}),
			"acquire":  d.AcquireShard(background, k, nil, dagstore.AcquireOpts{}),
			"recover":  d.RecoverShard(background, k, nil, dagstore.RecoverOpts{}),
			"destroy":  d.DestroyShard(background, k, nil, dagstore.DestroyOpts{}),
		} {
			wantErr(t, what+" after Close", err, dagstore.ErrClosed)
		}
		_, err := d.GC(background)
		wantErr(t, "GC after Close", err, dagstore.ErrClosed)
		g.letIn(1) // so that the bubble may end
	})
}

// TestNoDownload: an acquire that forbids downloads is served from a copy and
// refused without one.
func TestNoDownload(t *testing.T) {
	d := start(t, dagstore.Config{})
	k := key("foo")
	m := &mount.Counting{Mount: carV1()}
	registerLazily(t, d, k, m)
	_, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{NoDownload: true})
	wantErr(t, "acquire without a copy", err, mount.ErrTransientNotFound)
	works(t, d, k)
	acc, err := d.AcquireShardSync(background, k, dagstore.AcquireOpts{NoDownload: true})
	if err != nil {
		t.Fatalf("acquire with a copy: %v", err)
	}
	closeAll(t, acc)
	for range 2 { // the first waits for the release
		if _, err := d.GC(background); err != nil {
			t.Fatal(err)
		}
	}
	_, err = d.AcquireShardSync(background, k, dagstore.AcquireOpts{NoDownload: true})
	wantErr(t, "acquire after GC", err, mount.ErrTransientNotFound)
	if n := m.Count(); n != 1 {
		t.Errorf("fetched %d times, want once", n)
	}
}

// TestListShards: filters, prefixes and pages.
func TestListShards(t *testing.T) {
	d := start(t, dagstore.Config{})
	for i := range 25 {
		registerLazily(t, d, key("lazy-%02d", i), carV1())
	}
	for i := range 5 {
		register(t, d, key("eager-%d", i), carV1())
	}
	list := func(o dagstore.ListOptions) (all []string) {
		t.Helper()
		for {
			p, err := d.ListShards(o)
			if err != nil {
				t.Fatal(err)
			}
			if o.Limit > 0 && len(p.Shards) > o.Limit {
				t.Fatalf("a page of %d shards, want at most %d", len(p.Shards), o.Limit)
			}
			for _, s := range p.Shards {
				all = append(all, s.Key.String())
			}
			if o.Cursor = p.Next; o.Cursor == "" {
				return all
			}
		}
	}
	for o, want := range map[*dagstore.ListOptions]int{
		{}:                           30,
		{Limit: 7}:                   30,
		{Limit: 30}:                  30,
		{Limit: 1}:                   30,
		{Prefix: "lazy-1"}:           10,
		{Prefix: "lazy-1", Limit: 3}: 10,
		{Prefix: "none"}:             0,
		{States: []dagstore.ShardState{dagstore.ShardStateAvailable}}:                         5,
		{States: []dagstore.ShardState{dagstore.ShardStateNew}, Limit: 4}:                     25,
		{States: []dagstore.ShardState{dagstore.ShardStateNew, dagstore.ShardStateAvailable}}: 30,
		{States: []dagstore.ShardState{dagstore.ShardStateErrored}, Prefix: "lazy", Limit: 1}: 0,
	} {
		got := list(*o)
		slices.Sort(got)
		if n := len(slices.Compact(got)); n != want {
			t.Errorf("%+v lists %d shards, want %d", *o, n, want)
		}
	}
	p, err := d.ListShards(dagstore.ListOptions{Prefix: "eager-3"})
	if err != nil || len(p.Shards) != 1 || p.Shards[0].Blocks == 0 || p.Shards[0].SourceSize != uint64(len(testdata.CarV1)) ||
		p.Shards[0].State != dagstore.ShardStateAvailable || p.Shards[0].Seq == 0 || !strings.HasPrefix(p.Shards[0].URL, "fs:") {
		t.Errorf("summary %+v, %v", p.Shards, err)
	}
	for _, cursor := range []string{"x", "!", "MTo", "bGF6eQ"} {
		if _, err := d.ListShards(dagstore.ListOptions{Cursor: cursor}); !errors.Is(err, dagstore.ErrBadCursor) {
			t.Errorf("cursor %q: %v", cursor, err)
		}
	}
}

// TestListShardsUnderMutation: shards that are there all the time are listed once,
// whatever comes and goes between the pages.
func TestListShardsUnderMutation(t *testing.T) {
	d := start(t, dagstore.Config{})
	for i := range 100 {
		registerLazily(t, d, key("stays-%02d", i), carV1())
		registerLazily(t, d, key("goes-%02d", i), carV1())
	}
	seen := make(map[string]int)
	o := dagstore.ListOptions{Limit: 9}
	for page := 0; ; page++ {
		p, err := d.ListShards(o)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range p.Shards {
			seen[s.Key.String()]++
		}
		for i := range 4 { // the one that the cursor is at among them
			if n := page*4 + i; n < 100 {
				destroy(t, d, key("goes-%02d", n))
				registerLazily(t, d, key("comes-%02d", n), carV1())
			}
		}
		if p.Next == "" {
			break
		}
		o.Cursor = p.Next
	}
	for i := range 100 {
		if n := seen[fmt.Sprintf("stays-%02d", i)]; n != 1 {
			t.Errorf("stays-%02d was listed %d times", i, n)
		}
	}
	for k, n := range seen {
		if n > 1 {
			t.Errorf("%s was listed %d times", k, n)
		}
	}
}

// TestSeq: a mutation's result says at which position it became durable, ascending.
func TestSeq(t *testing.T) {
	d := start(t, dagstore.Config{})
	last := uint64(0)
	next := func(what string, res dagstore.ShardResult, err error) {
		t.Helper()
		if err != nil || res.Seq <= last || d.Metrics().Head < res.Seq {
			t.Errorf("%s: seq %d after %d, head %d, %v", what, res.Seq, last, d.Metrics().Head, err)
		}
		last = res.Seq
	}
	res, err := d.RegisterShardSync(background, key("a"), carV1(), dagstore.RegisterOpts{})
	next("eager", res, err)
	res, err = d.RegisterShardSync(background, key("b"), carV1(), dagstore.RegisterOpts{LazyInitialization: true})
	next("lazy", res, err)
	m := junk()
	res, err = d.RegisterShardSync(background, key("c"), m, dagstore.RegisterOpts{})
	wantErr(t, "register junk", err, dagstore.ErrShardInitializationFailed)
	next("failure", res, nil)
	m.Path = testdata.FSPathCarV1
	res, err = d.RecoverShardSync(background, key("c"), dagstore.RecoverOpts{})
	next("recovery", res, err)
	res, err = d.DestroyShardSync(background, key("a"), dagstore.DestroyOpts{})
	next("destruction", res, err)
}
