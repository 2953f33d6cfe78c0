package dagstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/mount"
)

// noIdleHandles has every acquire open the source.
var noIdleHandles = dagstore.WithConfig(func(c *dagstore.Config) { c.IdleHandles = -1 })

// wantAway wants an error that says a block is away, and by nothing that it is not there.
func wantAway(t *testing.T, what string, err error) *dagstore.UnavailableError {
	t.Helper()
	var away *dagstore.UnavailableError
	if !errors.As(err, &away) || !errors.Is(err, dagstore.ErrUnavailable) || ipld.IsNotFound(err) || errors.Is(err, dagstore.ErrShardUnknown) {
		t.Fatalf("%s: %v, want an UnavailableError", what, err)
	}
	if len(away.Shards) == 0 || away.Reason == nil || away.Since.IsZero() {
		t.Fatalf("%s does not say which, why or since when: %+v", what, away)
	}
	return away
}

// blocksOf are the blocks of all shards of a store.
func blocksOf(t *testing.T, d *dagstore.DAGStore) *indexbs.IndexBackedBlockstore {
	t.Helper()
	bs, err := indexbs.Of(d)
	noErr(t, err)
	t.Cleanup(func() { bs.Close() })
	return bs
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	noErr(t, err)
	return names
}

func hashOf(t *testing.T, text string) mh.Multihash {
	t.Helper()
	h, err := mh.Sum([]byte(text), mh.SHA2_256, -1)
	noErr(t, err)
	return h
}

// comesBack reads until it succeeds, for five seconds.
func comesBack(t *testing.T, what string, read func() error) {
	t.Helper()
	err := read()
	for deadline := time.Now().Add(5 * time.Second); err != nil; err = read() {
		if time.Now().After(deadline) {
			t.Fatalf("%s, five seconds after its source was back: %v", what, err)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestSourceAway: files that cannot be had for a while, in every way that a file system
// knows, stay what they were: their blocks are away, not absent, and are served again
// within five seconds of their return, without a request and without a scan. Proves A2, A4.
func TestSourceAway(t *testing.T) {
	car, cids := makeCAR(randomBlocks(1, 4, 100)...)
	for name, away := range map[string]func(t *testing.T, path string) (back func()){
		"moved away": func(t *testing.T, path string) func() {
			noErr(t, os.Rename(path, path+".away"))
			return func() { noErr(t, os.Rename(path+".away", path)) }
		},
		"its folder moved away": func(t *testing.T, path string) func() {
			dir := filepath.Dir(path)
			noErr(t, os.Rename(dir, dir+".away"))
			return func() { noErr(t, os.Rename(dir+".away", dir)) }
		},
		"its folder is a file now": func(t *testing.T, path string) func() {
			dir := filepath.Dir(path)
			noErr(t, os.Rename(dir, dir+".away"))
			noErr(t, os.WriteFile(dir, nil, 0o600))
			return func() { noErr(t, os.Remove(dir)); noErr(t, os.Rename(dir+".away", dir)) }
		},
		"a link that leads in a circle": func(t *testing.T, path string) func() {
			noErr(t, os.Rename(path, path+".away"))
			noErr(t, os.Symlink(path, path))
			return func() { noErr(t, os.Remove(path)); noErr(t, os.Rename(path+".away", path)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cars")
			noErr(t, os.Mkdir(dir, 0o700))
			path := writeFile(t, filepath.Join(dir, "x.car"), car)
			d := open(t, t.TempDir(), noIdleHandles)
			bs := blocksOf(t, d)
			res, err := d.RegisterShardSync(background, key("s"), &mount.FileMount{Path: path}, dagstore.RegisterOpts{})
			if err != nil {
				t.Fatal(err)
			}
			back := away(t, path)
			for i := range 20 {
				_, err := bs.Get(background, cids[i%len(cids)])
				wantAway(t, "Get", err)
			}
			if has, err := bs.Has(background, cids[0]); err == nil && !has {
				t.Error("Has says that there is none")
			}
			wantState(t, d, key("s"), dagstore.ShardStateAvailable)
			if i, err := d.GetShardInfo(key("s")); err != nil || i.Error == nil || i.Since.IsZero() {
				t.Errorf("%+v, %v", i, err)
			}
			if h := d.Health(); h.Shards.Away != 1 || h.State != dagstore.HealthReady {
				t.Errorf("health: %s", h)
			}
			back()
			comesBack(t, "Get", func() error { _, err := bs.Get(background, cids[0]); return err })
			if d.Position() != res.Position {
				t.Errorf("position %v, and was %v: something was recorded", d.Position(), res.Position)
			}
			if h := d.Health(); h.Shards.Away != 0 {
				t.Errorf("health: %s", h)
			}
		})
	}
}

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestFirstSourceAway: a source that cannot be had when its shard is new leaves it new:
// the next acquire after it is back is served, lazy or not, whatever keeps it away; and
// one that is not lazy is initialised without a request. Proves A4.
func TestFirstSourceAway(t *testing.T) {
	car, cids := makeCAR(randomBlocks(1, 4, 100)...)
	var status atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if code := int(status.Load()); code == 0 {
			panic(http.ErrAbortHandler)
		} else if code != http.StatusOK {
			w.WriteHeader(code)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(car))
	}))
	defer srv.Close()
	for _, code := range []int{0, 404, 403, 500, 503} {
		for _, lazy := range []bool{true, false} {
			t.Run(fmt.Sprint(code, " ", lazy), func(t *testing.T) {
				d := open(t, t.TempDir())
				status.Store(int64(code))
				m := &mount.HTTPMount{URL: srv.URL, Options: &mount.HTTPOptions{Retries: -1}}
				_, err := d.RegisterShardSync(background, key("s"), m, dagstore.RegisterOpts{LazyInitialization: lazy})
				if lazy {
					noErr(t, err)
					_, err = d.AcquireShardSync(background, key("s"), dagstore.AcquireOpts{})
				}
				wantAway(t, "the first try", err)
				wantErr(t, "the first try", err, dagstore.ErrShardInitializationFailed)
				wantState(t, d, key("s"), dagstore.ShardStateNew)
				_, err = d.ShardsContainingMultihash(background, cids[0].Hash())
				if !errors.As(err, new(*dagstore.NoShardError)) { // nobody was promised its blocks
					t.Errorf("lookup: %v", err)
				}
				status.Store(http.StatusOK)
				comesBack(t, "the shard", func() error {
					if !lazy {
						if i, err := d.GetShardInfo(key("s")); err != nil || i.ShardState != dagstore.ShardStateAvailable {
							return fmt.Errorf("%+v, %v", i, err)
						}
						return nil
					}
					acc, err := d.AcquireShardSync(background, key("s"), dagstore.AcquireOpts{})
					if err == nil {
						closeAll(t, acc)
					}
					return err
				})
				works(t, d, key("s"))
			})
		}
	}
}

// TestSourceCompleted: a file that was cut and is completed, or grows, goes on serving
// the blocks that it was indexed with as far as they are there, and says of others why
// not; a recovery takes it as it is. Proves A2, F30, I13.
func TestSourceCompleted(t *testing.T) {
	all := randomBlocks(1, 6, 100)
	whole, cids := makeCAR(all...)
	part, _ := makeCAR(all[:4]...)
	other, _ := makeCAR(append(randomBlocks(2, 2, 100), append([][]byte{all[2]}, randomBlocks(3, 1, 100)...)...)...)
	for name, replace := range map[string]func(t *testing.T, path string, b []byte){
		"in place": func(t *testing.T, path string, b []byte) { writeFile(t, path, b) },
		"renamed":  func(t *testing.T, path string, b []byte) { noErr(t, os.Rename(writeFile(t, path+".new", b), path)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), part)
			d := open(t, t.TempDir(), noIdleHandles)
			bs := blocksOf(t, d)
			register(t, d, key("s"), &mount.FileMount{Path: path})
			replace(t, path, whole)
			for range 2 {
				for _, c := range cids[:4] {
					if _, err := bs.Get(background, c); err != nil {
						t.Errorf("a block that is where it was: %v", err)
					}
				}
			}
			if i, _ := d.GetShardInfo(key("s")); !errors.Is(i.Error, mount.ErrSourceChanged) {
				t.Errorf("%+v", i)
			}
			bs.Close()
			bs = blocksOf(t, d)
			replace(t, path, other[:len(other)-1]) // of which one block is where it was, and not the last
			for range 2 {
				for i, c := range cids[:4] {
					_, err := bs.Get(background, c)
					if i == 2 {
						noErr(t, err)
						continue
					}
					wantAway(t, "a block that is no longer there", err)
					wantErr(t, "a block that is no longer there", err, mount.ErrSourceChanged)
				}
			}
			replace(t, path, whole)
			if _, err := d.RecoverShardSync(background, key("s"), dagstore.RecoverOpts{}); err != nil {
				t.Fatal(err)
			}
			bs.Close()
			bs = blocksOf(t, d)
			for _, c := range cids {
				if _, err := bs.Get(background, c); err != nil {
					t.Errorf("after the recovery: %v", err)
				}
			}
		})
	}
}

// TestIndexMadeAgain: while a lost index is made again, reads of its blocks say so, or
// wait, and never that there are none; what is in no shard is not found all the while.
// So with the top-level index lost besides. Proves A1, A2, A3.
func TestIndexMadeAgain(t *testing.T) {
	var blocks [][]byte
	for i := range 20_000 {
		blocks = append(blocks, []byte(fmt.Sprint(i, strings.Repeat("x", 500))))
	}
	car, cids := makeCAR(blocks...)
	absent := cid.NewCidV1(cid.Raw, hashOf(t, "in no shard"))
	for _, topLevelToo := range []bool{false, true} {
		t.Run(fmt.Sprint(topLevelToo), func(t *testing.T) {
			dir := t.TempDir()
			path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), car)
			d := open(t, dir)
			register(t, d, key("s"), &mount.FileMount{Path: path})
			register(t, d, key("other"), carV1())
			closeStore(t, d)
			for _, idx := range glob(t, filepath.Join(dir, "index", "*.idx")) {
				noErr(t, os.Remove(idx))
			}
			if topLevelToo {
				noErr(t, os.RemoveAll(filepath.Join(dir, "toplevel")))
			}
			d = open(t, dir)
			bs := blocksOf(t, d)
			comesBack(t, "the block", func() error {
				_, err := bs.Get(background, cids[7])
				if ipld.IsNotFound(err) || err != nil && !errors.Is(err, dagstore.ErrUnavailable) && !errors.Is(err, dagstore.ErrNotFresh) {
					t.Fatalf("while the index is made again: %v", err)
				}
				if _, err := bs.Get(background, absent); !topLevelToo && !ipld.IsNotFound(err) {
					t.Fatalf("what is in no shard, while one is mended: %v", err)
				} else if !ipld.IsNotFound(err) && !errors.Is(err, dagstore.ErrNotFresh) {
					t.Fatalf("what is in no shard, while the index lacks two: %v", err)
				}
				return err
			})
			comesBack(t, "what is in no shard", func() error {
				if _, err := bs.Get(background, absent); !ipld.IsNotFound(err) {
					return err
				}
				return nil
			})
		})
	}
}

// TestHealOnAcquire: with RecoverOnAcquire a read by CID recovers an errored shard that
// holds the block. Proves A2.
func TestHealOnAcquire(t *testing.T) {
	car, cids := makeCAR(randomBlocks(1, 4, 100)...)
	g := newGate()
	dir := t.TempDir()
	opts := []dagstore.Option{dagstore.WithMount("gate", &gateMount{&mount.BytesMount{}, g}), dagstore.WithConfig(func(c *dagstore.Config) {
		c.IdleHandles, c.RecoverOnStart = -1, dagstore.RecoverOnAcquire
	})}
	d := open(t, dir, opts...)
	g.letIn(1)
	register(t, d, key("s"), &gateMount{&mount.BytesMount{Bytes: car}, g})
	for _, copied := range glob(t, filepath.Join(dir, "copies", "*")) {
		noErr(t, os.Remove(copied))
	}
	for _, idx := range glob(t, filepath.Join(dir, "index", "*.idx")) {
		noErr(t, os.Remove(idx))
	}
	g.setFail(changed("no CAR any more"))
	g.letIn(8)
	bs := blocksOf(t, d)
	comesBack(t, "the failure", func() error {
		_, err := bs.Get(background, cids[0])
		wantAway(t, "Get", err)
		if s := state(t, d, key("s")); s != dagstore.ShardStateErrored {
			return fmt.Errorf("state %s", s)
		}
		return nil
	})
	_, err := bs.Get(background, cids[0])
	if away := wantAway(t, "Get of an errored shard", err); away.RetryAfter != 0 {
		t.Errorf("it is tried again in %s, and nobody does", away.RetryAfter)
	}
	if by, err := d.FindHolders(background, cids[0].Hash(), dagstore.Latest()); err != nil || len(by.Away) != 1 || by.Away[0].State != dagstore.ShardStateErrored {
		t.Errorf("%+v, %v", by, err)
	}
	bs.Close()
	closeStore(t, d)
	g.setFail(nil)
	d = open(t, dir, opts...)
	bs = blocksOf(t, d)
	comesBack(t, "the block", func() error { _, err := bs.Get(background, cids[0]); return err })
}

// TestVeiled: the reason of what is away may be a not-found error of somebody's
// blockstore; what is away is not. Proves A2.
func TestVeiled(t *testing.T) {
	err := error(&dagstore.UnavailableError{Shards: nil, Reason: fmt.Errorf("mount: %w", ipld.ErrNotFound{})})
	if ipld.IsNotFound(err) || !errors.Is(err, dagstore.ErrUnavailable) || !strings.Contains(err.Error(), "not find") {
		t.Error(err)
	}
	err = &dagstore.UnavailableError{Reason: fmt.Errorf("mount: %w", syscall.EIO)}
	if !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
}

// TestRecoverWhatIsAwayAndChanged: a recovery of a shard whose source was away, and which
// is back as another, takes it as it is now. Proves F30.
func TestRecoverWhatIsAwayAndChanged(t *testing.T) {
	car, _ := makeCAR(randomBlocks(1, 4, 100)...)
	other, cids := makeCAR(randomBlocks(2, 5, 100)...)
	path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), car)
	d := open(t, t.TempDir(), noIdleHandles)
	register(t, d, key("s"), &mount.FileMount{Path: path})
	noErr(t, os.Remove(path))
	for range 3 {
		_, err := d.AcquireShardSync(background, key("s"), dagstore.AcquireOpts{})
		wantAway(t, "acquire", err)
	}
	writeFile(t, path, other)
	if _, err := d.RecoverShardSync(background, key("s"), dagstore.RecoverOpts{}); err != nil {
		t.Fatal(err)
	}
	acc := acquire(t, d, key("s"))
	defer closeAll(t, acc)
	for _, c := range cids {
		if _, err := blockstore(t, acc).Get(background, c); err != nil {
			t.Error(err)
		}
	}
}

// TestRottenBlockIsNoted: a file that was replaced by one of the same length which differs
// in one block is not noticed when it is opened, but when that block is read: the shard
// says so, goes on serving the others, and can be recovered. Proves F21, F30, I13.
func TestRottenBlockIsNoted(t *testing.T) {
	all := randomBlocks(1, 400, 100)
	car, cids := makeCAR(all...)
	other := append([][]byte{}, all...)
	other[201] = randomBlocks(2, 1, 100)[0] // none of those that are sampled
	changedCAR, otherCids := makeCAR(other...)
	path := writeFile(t, filepath.Join(t.TempDir(), "x.car"), car)
	d := open(t, t.TempDir(), noIdleHandles)
	register(t, d, key("s"), &mount.FileMount{Path: path})
	noErr(t, os.Rename(writeFile(t, path+".new", changedCAR), path))
	acc := acquire(t, d, key("s"))
	for range 2 {
		err := acc.View(background, cids[201], func([]byte) error { return nil })
		wantErr(t, "the block", err, dagstore.ErrBlockCorrupt)
	}
	noErr(t, acc.View(background, cids[7], func([]byte) error { return nil }))
	comesBack(t, "the note", func() error { // which goes through the event loop
		if i, err := d.GetShardInfo(key("s")); err != nil || i.Error == nil {
			return fmt.Errorf("%+v, %v", i, err)
		}
		return nil
	})
	closeAll(t, acc)
	if _, err := d.RecoverShardSync(background, key("s"), dagstore.RecoverOpts{}); err != nil {
		t.Fatal(err)
	}
	bs := blocksOf(t, d)
	if _, err := bs.Get(background, otherCids[201]); err != nil {
		t.Error(err)
	}
	if _, err := bs.Get(background, cids[201]); !ipld.IsNotFound(err) {
		t.Errorf("the former block: %v", err)
	}
}
