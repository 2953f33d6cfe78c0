// Package mounttest is the conformance suite for mounts: what a dagstore relies on
// when it registers, revives and reads one. Authors of mounts run it from a test of
// their own:
//
//	func TestMyMount(t *testing.T) {
//		mounttest.Run(t, mounttest.Config{
//			New: func(t testing.TB, content []byte) (mount.Mount, *mount.Registry) { … },
//		})
//	}
package mounttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/dagstore/dagstore/mount"
)

// Config says how to make the mounts under test.
type Config struct {
	// New returns a mount of a source that holds content, and a registry in which
	// its type is registered. It is called once for each subtest and releases what
	// it makes with t.Cleanup. Required.
	New func(t testing.TB, content []byte) (mount.Mount, *mount.Registry)
	// Missing returns a mount of a source that does not exist; nil for types whose
	// sources always do.
	Missing func(t testing.TB) mount.Mount
	// Sizes are the lengths of the contents to try; nil means 0, 1 and 300,000.
	Sizes []int
}

// Run runs the suite.
func Run(t *testing.T, cfg Config) {
	t.Helper()
	if cfg.Sizes == nil {
		cfg.Sizes = []int{0, 1, 300_000}
	}
	for _, size := range cfg.Sizes {
		content := Content(size)
		sub := func(name string, test func(t *testing.T, s *suite)) {
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				m, reg := cfg.New(t, content)
				test(t, &suite{m: m, reg: reg, content: content})
			})
		}
		sub("URL", testURL)
		sub("Stat", testStat)
		sub("Read", testRead)
		sub("Access", testAccess)
		sub("ReadAt", testReadAt)
		sub("Seek", testSeek)
		sub("Close", testClose)
		sub("Context", testContext)
		sub("Concurrent", testConcurrent)
		sub("Descriptors", testDescriptors)
	}
	if cfg.Missing != nil {
		t.Run("Missing", func(t *testing.T) { testMissing(t, cfg.Missing(t)) })
	}
}

// Content returns size bytes that differ from each other enough to show a wrong
// offset, the same for every call.
func Content(size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

type suite struct {
	m       mount.Mount
	reg     *mount.Registry
	content []byte
}

// fetch opens m; the test's end closes it.
func fetch(t testing.TB, m mount.Mount) mount.Reader {
	t.Helper()
	r, err := m.Fetch(t.Context())
	if err != nil {
		t.Fatalf("Fetch: %v", err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// testURL: a mount survives its URL, also as text, and two that were revived from
// one URL share nothing.
func testURL(t *testing.T, s *suite) {
	u, err := s.reg.Represent(s.m)
	if err != nil {
		t.Fatalf("Represent: %v", err)
	}
	text := u.String()
	for range 2 {
		parsed, err := mount.ParseURL(text)
		if err != nil {
			t.Fatalf("the URL does not parse: %v", err)
		}
		m, err := s.reg.Instantiate(parsed)
		if err != nil {
			t.Fatalf("Instantiate(Represent(m)): %v", err)
		}
		if m == s.m {
			t.Fatal("Instantiate returned the mount itself")
		}
		again, err := s.reg.Represent(m)
		if err != nil {
			t.Fatalf("Represent of the revived mount: %v", err)
		}
		if again.String() != text {
			t.Fatalf("URL changed from %q to %q", text, again)
		}
		got, err := io.ReadAll(fetch(t, m))
		if err != nil || !bytes.Equal(got, s.content) {
			t.Fatalf("the revived mount reads %d bytes, err %v; want the %d of the source", len(got), err, len(s.content))
		}
		// An upgrader is represented by what it upgrades.
		if a, b := m.Info(), s.m.Info(); a != b && reflect.TypeOf(m) == reflect.TypeOf(s.m) {
			t.Fatalf("Info changed from %+v to %+v", b, a)
		}
	}
}

func testStat(t *testing.T, s *suite) {
	st, err := s.m.Stat(t.Context())
	if err != nil {
		t.Fatalf("Stat: %v", err)
	}
	if !st.Exists {
		t.Error("Stat says that the source does not exist")
	}
	if st.Size != 0 && st.Size != int64(len(s.content)) {
		t.Errorf("Stat says %d bytes; want %d, or 0 if the source does not tell", st.Size, len(s.content))
	}
}

// testRead: the bytes come from front to back in reads of any length.
func testRead(t *testing.T, s *suite) {
	if !s.m.Info().AccessSequential {
		return
	}
	for range 2 {
		if err := iotest.TestReader(onlyReader{fetch(t, s.m)}, s.content); err != nil {
			t.Error(err)
		}
	}
	if n, err := io.Copy(io.Discard, iotest.HalfReader(fetch(t, s.m))); err != nil || n != int64(len(s.content)) {
		t.Errorf("half reads: %d bytes, %v", n, err)
	}
}

// onlyReader hides all methods but Read, so that iotest tests nothing else.
type onlyReader struct{ io.Reader }

// testAccess: what Info promises works, and what it does not promise either works or
// says that it is unsupported.
func testAccess(t *testing.T, s *suite) {
	info, r := s.m.Info(), fetch(t, s.m)
	if _, err := r.Seek(int64(len(s.content)), io.SeekStart); err != nil {
		if info.AccessSeek || !errors.Is(err, mount.ErrSeekUnsupported) {
			t.Errorf("Seek: %v (AccessSeek %v)", err, info.AccessSeek)
		}
	}
	if _, err := r.ReadAt(make([]byte, len(s.content)), 0); err != nil && err != io.EOF {
		if info.AccessRandom || !errors.Is(err, mount.ErrRandomAccessUnsupported) {
			t.Errorf("ReadAt: %v (AccessRandom %v)", err, info.AccessRandom)
		}
	}
}

// testReadAt: any offset, from many goroutines, past the end too, without moving
// where Read is.
func testReadAt(t *testing.T, s *suite) {
	r, size := fetch(t, s.m), int64(len(s.content))
	if _, err := r.ReadAt(nil, 0); errors.Is(err, mount.ErrRandomAccessUnsupported) {
		return
	}
	for _, off := range []int64{size, size + 1, math.MaxInt64 - 1} {
		if n, err := r.ReadAt(make([]byte, 1), off); n != 0 || err != io.EOF {
			t.Errorf("ReadAt(1 byte, %d) of %d = %d, %v; want EOF", off, size, n, err)
		}
	}
	if _, err := r.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("ReadAt(-1) succeeds")
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(g)))
			for range 20 {
				off := rng.Int64N(size + 1)
				p := make([]byte, rng.IntN(5000))
				n, err := r.ReadAt(p, off)
				want := s.content[off:min(size, off+int64(len(p)))]
				if !bytes.Equal(p[:n], want) {
					t.Errorf("ReadAt(%d bytes, %d) of %d read %d wrong or missing bytes", len(p), off, size, n)
				}
				if n < len(p) && err != io.EOF || err != nil && err != io.EOF {
					t.Errorf("ReadAt(%d bytes, %d) of %d = %d, %v", len(p), off, size, n, err)
				}
			}
		})
	}
	wg.Wait()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, s.content) {
		t.Errorf("after ReadAt, Read gives %d of %d bytes, %v", len(got), size, err)
	}
}

// testSeek: to anywhere within; past the end too, or that is an error; an error leaves
// the position.
func testSeek(t *testing.T, s *suite) {
	r, size := fetch(t, s.m), int64(len(s.content))
	if _, err := r.Seek(size, io.SeekStart); errors.Is(err, mount.ErrSeekUnsupported) {
		return
	}
	for _, to := range []struct {
		off, want int64
		whence    int
	}{
		{size, size, io.SeekStart}, {0, 0, io.SeekStart}, {-size, 0, io.SeekEnd},
		{size / 2, size / 2, io.SeekCurrent}, {0, size, io.SeekEnd}, {10, size + 10, io.SeekCurrent},
		{size / 3, size / 3, io.SeekStart},
	} {
		at, err := r.Seek(to.off, to.whence)
		if err != nil && to.want > size {
			continue
		}
		if err != nil || at != to.want {
			t.Fatalf("Seek(%d, %d) = %d, %v; want %d", to.off, to.whence, at, err, to.want)
		}
		want := s.content[min(size, to.want):]
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("after Seek(%d, %d): %d bytes, %v; want %d", to.off, to.whence, len(got), err, len(want))
		}
		if _, err := r.Seek(to.want, io.SeekStart); err != nil {
			t.Fatalf("seek back: %v", err)
		}
	}
	// In the middle of reading, forwards and back.
	for _, to := range []int64{size / 2, size / 4, size / 4 * 3, size / 3} {
		io.CopyN(io.Discard, r, size/8)
		if _, err := r.Seek(to, io.SeekStart); err != nil {
			t.Fatalf("Seek(%d): %v", to, err)
		}
		p := make([]byte, size/8)
		if _, err := io.ReadFull(r, p); err != nil || !bytes.Equal(p, s.content[to:to+size/8]) {
			t.Fatalf("after reading on and Seek(%d): %v, or other bytes", to, err)
		}
	}
	if _, err := r.Seek(size/3, io.SeekStart); err != nil {
		t.Fatalf("Seek(%d): %v", size/3, err)
	}
	for _, bad := range []struct {
		off    int64
		whence int
	}{{-1, io.SeekStart}, {-size - 1, io.SeekEnd}} {
		if at, err := r.Seek(bad.off, bad.whence); err == nil {
			t.Errorf("Seek(%d, %d) = %d, want an error", bad.off, bad.whence, at)
		}
	}
	if at, err := r.Seek(0, io.SeekCurrent); err != nil || at != size/3 {
		t.Errorf("after failed seeks the position is %d, %v; want %d", at, err, size/3)
	}
}

// testClose: closing a reader twice, during reads, and after the mount, is harmless,
// and the mount goes on serving others.
func testClose(t *testing.T, s *suite) {
	r, other := fetch(t, s.m), fetch(t, s.m)
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(io.Discard, r)
		r.ReadAt(make([]byte, 10), 0)
	}()
	if err := r.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	r.Close()
	<-done
	if got, err := io.ReadAll(other); err != nil || !bytes.Equal(got, s.content) {
		t.Errorf("closing one reader disturbed another: %d bytes, %v", len(got), err)
	}
	third := fetch(t, s.m)
	if err := s.m.Close(); err != nil {
		t.Errorf("Close of the mount: %v", err)
	}
	if got, err := io.ReadAll(third); err != nil || !bytes.Equal(got, s.content) {
		t.Errorf("closing the mount disturbed a reader: %d bytes, %v", len(got), err)
	}
}

// testContext: with a context that has ended, a call returns, with the context's
// error or with its result; and a context that ends later does not hang a reader.
func testContext(t *testing.T, s *suite) {
	ctx, cancel := context.WithCancel(t.Context())
	r, err := s.m.Fetch(ctx)
	if err != nil {
		t.Fatalf("Fetch: %v", err)
	}
	defer r.Close()
	cancel()
	if n, err := io.Copy(io.Discard, r); err == nil && n != int64(len(s.content)) {
		t.Errorf("a read after the context ended stops at %d of %d bytes without an error", n, len(s.content))
	}
	if r, err := s.m.Fetch(ctx); err == nil {
		r.Close()
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("Fetch with an ended context: %v", err)
	}
	if _, err := s.m.Stat(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Stat with an ended context: %v", err)
	}
	// And nothing of it sticks.
	if got, err := io.ReadAll(fetch(t, s.m)); err != nil || !bytes.Equal(got, s.content) {
		t.Errorf("after a cancelled fetch: %d bytes, %v", len(got), err)
	}
}

// testConcurrent: the methods of one mount may be called from many goroutines.
func testConcurrent(t *testing.T, s *suite) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r, err := s.m.Fetch(t.Context())
			if err != nil {
				t.Errorf("Fetch: %v", err)
				return
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, s.content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			s.m.Stat(t.Context())
			s.m.Info()
			s.m.Serialize()
		})
	}
	wg.Wait()
}

// testDescriptors: readers that are read halfway, not at all or to the end give
// everything back when they are closed.
func testDescriptors(t *testing.T, s *suite) {
	use := func() {
		for i := range 3 {
			r, err := s.m.Fetch(t.Context())
			if err != nil {
				t.Fatalf("Fetch: %v", err)
			}
			io.CopyN(io.Discard, r, int64(i*len(s.content)/2))
			if err := r.Close(); err != nil {
				t.Fatalf("Close: %v", err)
			}
		}
	}
	use() // what stays open for later use, like idle connections, opens now
	before := openDescriptors()
	for range 10 {
		use()
	}
	// A few may come and go with the runtime and with connections; 30 cannot.
	if after := openDescriptors(); after > before+10 {
		t.Errorf("%d descriptors before, %d after 30 readers were closed", before, after)
	}
}

// openDescriptors counts the descriptors of this process, or returns 0 where the
// system does not say.
func openDescriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}

// testMissing: that there is no source is an answer of Stat and an error of Fetch.
func testMissing(t *testing.T, m mount.Mount) {
	if st, err := m.Stat(t.Context()); err != nil || st.Exists {
		t.Errorf("Stat of a missing source = %+v, %v; want Exists false and no error", st, err)
	}
	if r, err := m.Fetch(t.Context()); err == nil {
		defer r.Close()
		if _, err := io.ReadAll(r); err == nil {
			t.Error("a missing source can be fetched and read")
		}
	}
}
