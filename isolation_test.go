package dagstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// hangingMount answers nothing until its context ends.
type hangingMount struct{ mount.BytesMount }

func (*hangingMount) Stat(ctx context.Context) (mount.Stat, error) {
	<-ctx.Done()
	return mount.Stat{}, ctx.Err()
}
func (*hangingMount) Info() mount.Info           { return mount.Info{AccessSequential: true} }
func (*hangingMount) Serialize() *url.URL        { return &url.URL{Scheme: "hang", Opaque: "x"} }
func (*hangingMount) Deserialize(*url.URL) error { return nil }

// Proves I16, F22: sources that hang, more than there are slots, hold up no other
// shard for longer than a moment.
func TestHungSourcesHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s, err := dagstore.Open(ctx, t.TempDir(), dagstore.WithMount("hang", &hangingMount{}),
			dagstore.WithConfig(func(c *dagstore.Config) { c.MaxConcurrentOpens = 4; c.IdleHandles = -1 }))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		good := shard.KeyFromString("good")
		if _, err := s.RegisterShardSync(ctx, good, &mount.BytesMount{Bytes: testdata.CarV1}, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			k := shard.KeyFromString(fmt.Sprint("hung-", i))
			if _, err := s.RegisterShardSync(ctx, k, &hangingMount{}, dagstore.RegisterOpts{LazyInitialization: true}); err != nil {
				t.Fatal(err)
			}
			if err := s.AcquireShard(ctx, k, nil, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		began := time.Now()
		acc, err := s.AcquireShardSync(ctx, good, dagstore.AcquireOpts{})
		if err != nil {
			t.Fatal(err)
		}
		acc.Close()
		if waited := time.Since(began); waited > time.Minute {
			t.Errorf("a shard whose source is well waited %v for others", waited)
		}
	})
}

// countingHang hangs, and counts those who are hanging.
type countingHang struct {
	hangingMount
	now, peak *atomic.Int32
}

func (m *countingHang) Stat(ctx context.Context) (mount.Stat, error) {
	n := m.now.Add(1)
	defer m.now.Add(-1)
	for p := m.peak.Load(); n > p && !m.peak.CompareAndSwap(p, n); p = m.peak.Load() {
	}
	return m.hangingMount.Stat(ctx)
}

// Proves F22, I15: however many sources hang, bounded work waits for them, and all
// are destroyed or closed when asked to.
func TestHungSourcesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		var now, peak atomic.Int32
		template := &countingHang{now: &now, peak: &peak}
		const opens, overdue, hung = 64, 1024, 1500
		s, err := dagstore.Open(ctx, t.TempDir(), dagstore.WithMount("hang", template),
			dagstore.WithConfig(func(c *dagstore.Config) { c.MaxConcurrentOpens = opens }))
		if err != nil {
			t.Fatal(err)
		}
		key := func(i int) shard.Key { return shard.KeyFromString(fmt.Sprint("hung-", i)) }
		for i := range hung {
			if _, err := s.RegisterShardSync(ctx, key(i), template, dagstore.RegisterOpts{LazyInitialization: true}); err != nil {
				t.Fatal(err)
			}
			if err := s.AcquireShard(ctx, key(i), nil, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(time.Hour)
		synctest.Wait()
		if n := now.Load(); n != opens+overdue || peak.Load() != n {
			t.Errorf("%d sources are waited for, %d at the peak, want %d", n, peak.Load(), opens+overdue)
		}
		for i := range hung { // what is taken away makes room for the rest
			if _, err := s.DestroyShardSync(ctx, key(i), dagstore.DestroyOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := now.Load(); n != 0 || peak.Load() > opens+overdue {
			t.Errorf("%d are still waited for, %d at the peak", n, peak.Load())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// firstBlock returns the CID of the first block of a CARv1 and where its last byte is.
func firstBlock(t *testing.T, car []byte) (cid.Cid, int) {
	t.Helper()
	at, n := 0, 0
	uvarint := func() (v int) {
		for shift := 0; ; shift += 7 {
			b := car[at]
			at++
			v |= int(b&0x7f) << shift
			if b < 0x80 {
				return v
			}
		}
	}
	n = uvarint()
	at += n
	n = uvarint()
	_, c, err := cid.CidFromBytes(car[at:])
	if err != nil {
		t.Fatal(err)
	}
	return c, at + n - 1
}

// Proves C10 (copy), F21: rot in a local copy of the store's, or its end cut off, is an
// error once, and the copy is fetched afresh.
func TestRottenCopyIsFetchedAfresh(t *testing.T) {
	t.Run("rotten", func(t *testing.T) {
		testBadCopy(t, dagstore.ErrBlockCorrupt, func(car []byte, last int) []byte { car[last] ^= 1; return car })
	})
	t.Run("cut off", func(t *testing.T) {
		testBadCopy(t, io.ErrUnexpectedEOF, func([]byte, int) []byte { return nil })
	})
}

func testBadCopy(t *testing.T, want error, hurt func(car []byte, last int) []byte) {
	ctx := context.Background()
	dir := t.TempDir()
	open := func() *dagstore.DAGStore {
		s, err := dagstore.Open(ctx, dir, dagstore.WithMount("counting", &mount.Counting{Mount: &mount.FSMount{FS: testdata.FS}}))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	k := shard.KeyFromString("k")
	mnt := &mount.Counting{Mount: &mount.FSMount{FS: testdata.FS, Path: testdata.FSPathCarV1}}
	if _, err := s.RegisterShardSync(ctx, k, mnt, dagstore.RegisterOpts{}); err != nil {
		t.Fatal(err)
	}
	copies, err := filepath.Glob(filepath.Join(dir, "copies", "*.complete"))
	if err != nil || len(copies) != 1 {
		t.Fatalf("copies: %v %v", copies, err)
	}
	held, err := s.AcquireShardSync(ctx, k, dagstore.AcquireOpts{}) // it stays open
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	c, last := firstBlock(t, testdata.CarV1)
	if err := os.WriteFile(copies[0], hurt(bytes.Clone(testdata.CarV1), last), 0o600); err != nil {
		t.Fatal(err)
	}
	read := func() error {
		acc, err := s.AcquireShardSync(ctx, k, dagstore.AcquireOpts{})
		if err != nil {
			t.Fatal(err)
		}
		defer acc.Close()
		return acc.View(ctx, c, func(b []byte) error {
			if sum, err := multihash.Sum(b, multihash.SHA2_256, -1); err != nil || !bytes.Equal(sum, c.Hash()) {
				t.Error("wrong bytes are served")
			}
			return nil
		})
	}
	var bad *dagstore.BlockError
	if err := read(); !errors.As(err, &bad) || !errors.Is(err, want) || bad.Shard != k {
		t.Fatalf("rot was read as: %v", err)
	}
	s.Metrics() // the loop has heard of it
	if err := read(); err != nil {
		t.Fatalf("after the copy was fetched afresh: %v", err)
	}
	if mnt.Count() != 2 {
		t.Errorf("fetched %d times", mnt.Count())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer s.Close()
	if err := read(); err != nil {
		t.Fatal(err)
	}
}

// Proves F30: a copy fetched again is held to what was indexed, also if its size is
// the same; recovery indexes it afresh.
func TestChangedSourceIsNotServed(t *testing.T) {
	ctx := context.Background()
	s, err := dagstore.Open(ctx, t.TempDir(), dagstore.WithMount("fs", &mount.FSMount{FS: testdata.FS}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	file := filepath.Join(t.TempDir(), "a.car")
	if err := os.WriteFile(file, testdata.CarV1, 0o600); err != nil {
		t.Fatal(err)
	}
	k := shard.KeyFromString("k")
	mnt := &mount.FSMount{FS: os.DirFS(filepath.Dir(file)), Path: "a.car"}
	if _, err := s.RegisterShardSync(ctx, k, mnt, dagstore.RegisterOpts{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(ctx); err != nil {
		t.Fatal(err)
	}
	_, last := firstBlock(t, testdata.CarV1)
	changed := bytes.Clone(testdata.CarV1)
	changed[last] ^= 1
	if err := os.WriteFile(file, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	if acc, err := s.AcquireShardSync(ctx, k, dagstore.AcquireOpts{}); err == nil {
		acc.Close()
		t.Fatal("a source that has changed is served")
	}
	if err := os.WriteFile(file, testdata.CarV1, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RecoverShardSync(ctx, k, dagstore.RecoverOpts{}); err != nil {
		t.Fatal(err)
	}
}

// Proves F11: a caller that closes its channel harms nobody.
func TestClosedChannels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		traces, failures := make(chan dagstore.Trace), make(chan dagstore.ShardResult)
		close(traces)
		close(failures)
		s, err := dagstore.Open(ctx, t.TempDir(), dagstore.WithConfig(func(c *dagstore.Config) { c.TraceCh, c.FailureCh = traces, failures }))
		if err != nil {
			t.Fatal(err)
		}
		k := shard.KeyFromString("k")
		if _, err := s.RegisterShardSync(ctx, k, &mount.BytesMount{Bytes: testdata.CarV1}, dagstore.RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.RegisterShardSync(ctx, shard.KeyFromString("junk"), &mount.BytesMount{Bytes: testdata.Junk}, dagstore.RegisterOpts{}); err == nil {
			t.Fatal("junk is a shard")
		}
		shut := make(chan dagstore.ShardResult, 1)
		close(shut)
		later := make(chan dagstore.ShardResult)
		for _, out := range []chan dagstore.ShardResult{shut, later} {
			if err := s.AcquireShard(ctx, k, out, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait() // the second result waits with the courier
		close(later)
		synctest.Wait()
		if i, err := s.GetShardInfo(k); err != nil || i.ShardState != dagstore.ShardStateAvailable {
			t.Errorf("a lost accessor is still counted: %v %v", i, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
