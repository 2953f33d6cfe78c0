package mount_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/internal/fsio/fsiotest"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/mount/mounttest"
	"github.com/dagstore/dagstore/throttle"
)

// source is a remote stream of content that a test can break.
type source struct {
	content []byte
	stat    *mount.Stat // nil: the truth
	statErr error
	fetch   func(ctx context.Context) (mount.Reader, error) // nil: all of content
	fetches atomic.Int32
}

func (s *source) Info() mount.Info {
	return mount.Info{Kind: mount.KindRemote, AccessSequential: true}
}
func (s *source) Stat(context.Context) (mount.Stat, error) {
	if s.stat != nil || s.statErr != nil {
		return *cmpOr(s.stat, &mount.Stat{}), s.statErr
	}
	return mount.Stat{Exists: true, Size: int64(len(s.content)), Ready: true}, nil
}
func (s *source) Fetch(ctx context.Context) (mount.Reader, error) {
	s.fetches.Add(1)
	if s.fetch != nil {
		return s.fetch(ctx)
	}
	return stream(bytes.NewReader(s.content)), nil
}
func (s *source) Serialize() *url.URL        { return &url.URL{Host: "source"} }
func (s *source) Deserialize(*url.URL) error { return nil }
func (s *source) Close() error               { return nil }

func cmpOr[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// streamReader is a Reader that can only be read.
type streamReader struct {
	io.Reader
	closed atomic.Int32
	close  func()
}

func stream(r io.Reader) *streamReader { return &streamReader{Reader: r} }

func (r *streamReader) ReadAt([]byte, int64) (int, error) { return 0, mount.ErrRandomAccessUnsupported }
func (r *streamReader) Seek(int64, int) (int64, error)    { return 0, mount.ErrSeekUnsupported }
func (r *streamReader) Close() error {
	if r.closed.Add(1) == 1 && r.close != nil {
		r.close()
	}
	return nil
}

// blocked reads some bytes and then waits for release, the context, or Close.
func blocked(ctx context.Context, content []byte, release <-chan struct{}) *streamReader {
	closed := make(chan struct{})
	r := &streamReader{close: func() { close(closed) }}
	head := bytes.NewReader(content[:len(content)/2])
	tail := bytes.NewReader(content[len(content)/2:])
	r.Reader = readFunc(func(p []byte) (int, error) {
		if head.Len() > 0 {
			return head.Read(p)
		}
		select {
		case <-release:
			return tail.Read(p)
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-closed:
			return 0, fs.ErrClosed
		}
	})
	return r
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

const copyDir = "/store/copies"

// newUpgrader makes one on a simulated disk.
func newUpgrader(t testing.TB, fsys fsio.FS, m mount.Mount, change func(*mount.UpgradeOptions)) *mount.Upgrader {
	t.Helper()
	o := mount.UpgradeOptions{FS: fsys, Dir: copyDir, Name: mount.CopyName(7, "key")}
	if change != nil {
		change(&o)
	}
	u, err := mount.NewUpgrader(m, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u
}

// names lists what is in the copies' directory.
func names(t testing.TB, fsys fsio.FS) (list []string) {
	t.Helper()
	entries, err := fsys.ReadDir(copyDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

var completeName = mount.CopyName(7, "key") + ".complete"

// wantCopy fetches and checks the content.
func wantCopy(t testing.TB, u *mount.Upgrader, content []byte) {
	t.Helper()
	got, err := get(t.Context(), u)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("the copy reads %d bytes, %v; want %d", len(got), err, len(content))
	}
}

// TestUpgraderShares: all who want the copy share one fetch, and one that leaves
// disturbs no other. Proves R3, F23 (fetches).
func TestUpgraderShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := mounttest.Content(1000)
		release := make(chan struct{})
		src := &source{content: content}
		src.fetch = func(ctx context.Context) (mount.Reader, error) { return blocked(ctx, content, release), nil }
		u := newUpgrader(t, fsio.NewSim(1), src, nil)

		first, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() { gone <- u.Ensure(first) }()
		synctest.Wait() // the first caller, whose context must not matter, started it
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { wantCopy(t, u, content) })
		}
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("the one that left got %v", err)
		}
		synctest.Wait()
		close(release)
		wg.Wait()
		if n := src.fetches.Load(); n != 1 || u.TimesFetched() != 1 {
			t.Errorf("%d fetches, TimesFetched %d; want 1", n, u.TimesFetched())
		}
	})
}

// TestUpgraderAbandoned: when the last waiter leaves, the fetch ends at once, also if
// the source does not watch its context, leaves nothing, and the next one starts
// afresh. Proves F1, F14 (readers closed).
func TestUpgraderAbandoned(t *testing.T) {
	for name, watches := range map[string]bool{"watches its context": true, "only notices Close": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				content := mounttest.Content(1000)
				src := &source{content: content}
				var r *streamReader
				src.fetch = func(ctx context.Context) (mount.Reader, error) {
					if !watches {
						ctx = context.Background()
					}
					r = blocked(ctx, content, nil)
					return r, nil
				}
				sim := fsio.NewSim(1)
				u := newUpgrader(t, sim, src, nil)
				ctx, cancel := context.WithCancel(t.Context())
				errs := make(chan error)
				for range 3 {
					go func() { errs <- u.Ensure(ctx) }()
				}
				synctest.Wait()
				cancel()
				for range 3 {
					if err := <-errs; !errors.Is(err, context.Canceled) {
						t.Errorf("got %v", err)
					}
				}
				synctest.Wait()
				if got := names(t, sim); len(got) != 0 || r.closed.Load() != 1 || sim.OpenFiles() != 0 {
					t.Errorf("left behind: %v, reader closed %d times, %d open files", got, r.closed.Load(), sim.OpenFiles())
				}
				src.fetch = nil
				wantCopy(t, u, content)
			})
		})
	}
}

// TestUpgraderPieces: a Filecoin piece may state its padded size and come unpadded.
// What was measured before must be met to the byte. Proves R7.
func TestUpgraderPieces(t *testing.T) {
	piece := mounttest.Content(4 * 127)
	for _, tc := range []struct {
		stated, before int64
		want           error
	}{
		{512, 0, nil},
		{512, 508, nil},
		{508, 508, nil},
		{0, 508, nil},
		{0, 512, mount.ErrSizeMismatch},
		{512, 512, mount.ErrSizeMismatch},
		{512, 500, mount.ErrSourceChanged},
		{1024, 508, mount.ErrSourceChanged},
		{509, 0, mount.ErrSizeMismatch},
		{256, 0, mount.ErrSizeMismatch},
	} {
		src := &source{content: piece, stat: &mount.Stat{Exists: true, Size: tc.stated, Ready: true}}
		u := newUpgrader(t, fsio.NewSim(1), src, func(o *mount.UpgradeOptions) { o.ExpectSize = tc.before })
		if err := u.Ensure(t.Context()); !errors.Is(err, tc.want) {
			t.Errorf("stated %d, measured %d: %v; want %v", tc.stated, tc.before, err, tc.want)
		}
		if tc.want == nil {
			wantCopy(t, u, piece)
		}
	}
}

// TestUpgraderFailures: whatever fails, nobody but those who waited hears of it,
// nothing is left on disk, and the next fetch starts afresh. Proves F1, C11 (source
// side), R7.
func TestUpgraderFailures(t *testing.T) {
	content := mounttest.Content(1000)
	boom := errors.New("boom")
	reads := func(r io.Reader) func(*source) {
		return func(s *source) {
			s.fetch = func(context.Context) (mount.Reader, error) { return stream(r), nil }
		}
	}
	for name, tc := range map[string]struct {
		breakIt func(*source)
		opts    func(*mount.UpgradeOptions)
		want    error
		text    string
	}{
		"stat":    {breakIt: func(s *source) { s.statErr = boom }, want: boom},
		"missing": {breakIt: func(s *source) { s.stat = &mount.Stat{} }, want: mount.ErrNotFound},
		"fetch":   {breakIt: func(s *source) { s.fetch = func(context.Context) (mount.Reader, error) { return nil, boom } }, want: boom},
		"read":    {breakIt: reads(io.MultiReader(bytes.NewReader(content[:500]), iotest.ErrReader(boom))), want: boom},
		"short":   {breakIt: reads(bytes.NewReader(content[:999])), want: mount.ErrSizeMismatch},
		"empty":   {breakIt: reads(bytes.NewReader(nil)), want: mount.ErrSizeMismatch},
		"long":    {breakIt: reads(io.MultiReader(bytes.NewReader(content), strings.NewReader("x"))), want: mount.ErrSizeMismatch},
		"endless": {breakIt: reads(readFunc(func(p []byte) (int, error) { return len(p), nil })), want: mount.ErrSizeMismatch},
		"unpadded of no power of two": {breakIt: func(s *source) {
			s.content = content[:127*3]
			s.stat = &mount.Stat{Exists: true, Size: 128 * 3, Ready: true}
		}, want: mount.ErrSizeMismatch},
		"half a piece": {breakIt: func(s *source) {
			s.content = content[:127*2]
			s.stat = &mount.Stat{Exists: true, Size: 512, Ready: true}
		}, want: mount.ErrSizeMismatch},
		"no news":    {breakIt: reads(readFunc(func([]byte) (int, error) { return 0, nil })), want: io.ErrNoProgress},
		"lies":       {breakIt: reads(readFunc(func(p []byte) (int, error) { return len(p) + 1, nil })), text: "impossible"},
		"panic":      {breakIt: reads(readFunc(func([]byte) (int, error) { panic("boom") })), text: "boom"},
		"panic stat": {breakIt: func(s *source) { s.fetch = func(context.Context) (mount.Reader, error) { panic(boom) } }, text: "boom"},
		"not sealed": {breakIt: func(s *source) { s.stat = &mount.Stat{Exists: true, Size: 900, Ready: true} }, opts: func(o *mount.UpgradeOptions) { o.ExpectSize = 1000 }, want: mount.ErrSourceChanged},
		"unknown size, too long": {breakIt: func(s *source) {
			s.stat = &mount.Stat{Exists: true, Ready: true}
			s.fetch = func(context.Context) (mount.Reader, error) { return stream(bytes.NewReader(make([]byte, 1001))), nil }
		}, opts: func(o *mount.UpgradeOptions) { o.MaxSize = 1000 }, want: mount.ErrSizeMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			sim, src := fsio.NewSim(1), &source{content: content}
			tc.breakIt(src)
			u := newUpgrader(t, sim, src, tc.opts)
			for range 2 {
				err := u.Ensure(t.Context())
				if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
					t.Fatalf("got %v; want %v %s", err, tc.want, tc.text)
				}
			}
			if got := names(t, sim); len(got) != 0 || u.Present() || u.TransientPath() != "" || sim.OpenFiles() != 0 {
				t.Errorf("left behind: %v, %d open files", got, sim.OpenFiles())
			}
			*src = source{content: content}
			wantCopy(t, u, content)
		})
	}
	t.Run("check", func(t *testing.T) {
		sim, src, judge := fsio.NewSim(1), &source{content: content}, boom
		u := newUpgrader(t, sim, src, func(o *mount.UpgradeOptions) {
			o.Check = func(_ context.Context, r io.ReaderAt, size int64) error {
				p := make([]byte, size)
				if _, err := r.ReadAt(p, 0); err != nil || !bytes.Equal(p, content) {
					t.Errorf("Check sees %d bytes, %v", size, err)
				}
				return judge
			}
		})
		if err := u.Ensure(t.Context()); !errors.Is(err, boom) || len(names(t, sim)) != 0 {
			t.Errorf("got %v, left behind %v", err, names(t, sim))
		}
		judge = nil
		wantCopy(t, u, content)
	})
}

// TestUpgraderInitial: the caller's file is used while it is there, and neither
// changed nor removed by anything. Proves F4, F18 (copies).
func TestUpgraderInitial(t *testing.T) {
	content, theirs := mounttest.Content(1000), bytes.Repeat([]byte("i"), 1000)
	dir := t.TempDir()
	initial := writeFile(t, "mine.car", theirs)
	link := filepath.Join(dir, "link")
	for from, to := range map[string]string{link: initial, dir + "/dangling": dir + "/nothing"} {
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	short := writeFile(t, "short.car", theirs[:10])
	for path, used := range map[string]bool{initial: true, link: true, dir + "/dangling": false, dir: false, short: false, dir + "/missing": false} {
		src := &source{content: content}
		u := newUpgrader(t, fsio.OS(), src, func(o *mount.UpgradeOptions) {
			o.Dir, o.Initial, o.ExpectSize = filepath.Join(t.TempDir(), "copies"), path, 1000
		})
		if !used {
			wantCopy(t, u, content)
		} else {
			wantCopy(t, u, theirs)
			if st, err := u.Stat(t.Context()); u.TransientPath() != path || !u.Present() || err != nil || st != (mount.Stat{Exists: true, Size: 1000, Ready: true}) {
				t.Errorf("%s: TransientPath %q, Stat %+v, %v", path, u.TransientPath(), st, err)
			}
			if err := u.DeleteTransient(); err != nil {
				t.Error(err)
			}
			wantCopy(t, u, theirs)
		}
		if err := u.Discard(); err != nil {
			t.Error(err)
		}
		if u.Present() {
			t.Errorf("%s: present after Discard", path)
		}
		wantCopy(t, u, content) // recovery fetches afresh
		if err := errors.Join(u.Discard(), u.DeleteTransient(), u.Close()); err != nil {
			t.Error(err)
		}
	}
	for path, want := range map[string][]byte{initial: theirs, link: theirs, short: theirs[:10]} {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s was changed: %d bytes, %v", path, len(got), err)
		}
	}
}

// TestUpgraderCompat: the predecessor's constructor, its keys and its observable
// behaviour. Proves F12 (copies), S8 (modes).
func TestUpgraderCompat(t *testing.T) {
	content := mounttest.Content(1000)
	for _, key := range []string{"k", "../../../escape", "a/b", "/abs", ".", "..", "nul\x00", strings.Repeat("k", 512), "C:\\x", "a b"} {
		base := t.TempDir()
		root := filepath.Join(base, "a", "root")
		src := &mount.Counting{Mount: &source{content: content}}
		u, err := mount.Upgrade(src, throttle.Noop(), root, key, "")
		if err != nil {
			t.Fatal(err)
		}
		if u.TransientPath() != "" || u.Underlying() != mount.Mount(src) || src.Count() != 0 {
			t.Error("a new upgrader is not blank")
		}
		wantCopy(t, u, content)
		path := u.TransientPath()
		if filepath.Dir(path) != root {
			t.Errorf("key %.20q: the copy is %q", key, path)
		}
		for p, mode := range map[string]fs.FileMode{path: 0o600, root: 0o700 | fs.ModeDir, filepath.Dir(root): 0o700 | fs.ModeDir} {
			if st, err := os.Stat(p); err != nil || st.Mode() != mode {
				t.Errorf("%s has mode %v, %v; want %v", p, st.Mode(), err, mode)
			}
		}
		if st, err := u.Stat(t.Context()); err != nil || st != (mount.Stat{Exists: true, Size: 1000, Ready: true}) {
			t.Errorf("Stat %+v, %v", st, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		wantCopy(t, u, content)
		if src.Count() != 2 || u.TimesFetched() != 2 {
			t.Errorf("fetched %d times, want 2: at first and when the copy had vanished", src.Count())
		}
		if err := u.DeleteTransient(); err != nil || u.TransientPath() != "" {
			t.Errorf("DeleteTransient: %v", err)
		}
		if err := u.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(filepath.Join(base, "*", "*", "*")); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if u, err := mount.Upgrade(&source{}, throttle.Fixed(1), "", "k", ""); err != nil || u.Info() != (mount.Info{AccessSequential: true, AccessSeek: true, AccessRandom: true}) {
		t.Errorf("without a directory: %v", err)
	}
	if u := upgrade(t, &source{}); u.Serialize().Host != "source" || u.Deserialize(nil) != nil {
		t.Error("the URL is not the underlying mount's")
	}
}

// seekable is a remote mount with full access.
type seekable struct{ mount.BytesMount }

func (*seekable) Info() mount.Info {
	return mount.Info{Kind: mount.KindRemote, AccessSequential: true, AccessSeek: true, AccessRandom: true}
}

// TestUpgraderPassthrough: a mount that can do everything is not copied.
func TestUpgraderPassthrough(t *testing.T) {
	dir := t.TempDir()
	content := mounttest.Content(10)
	for _, m := range []mount.Mount{&mount.BytesMount{Bytes: content}, &seekable{mount.BytesMount{Bytes: content}}} {
		u, err := mount.Upgrade(m, nil, dir, "k", "/initial")
		if err != nil {
			t.Fatal(err)
		}
		wantCopy(t, u, content)
		if err := errors.Join(u.Ensure(t.Context()), u.DeleteTransient(), u.Discard()); err != nil {
			t.Error(err)
		}
		if !u.Present() || u.TransientPath() != "" || u.TimesFetched() != 0 {
			t.Errorf("Present %v, TransientPath %q, TimesFetched %d", u.Present(), u.TransientPath(), u.TimesFetched())
		}
		u.Close()
		if _, err := u.Fetch(t.Context()); !errors.Is(err, mount.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("something was written: %v", entries)
	}
	for name, o := range map[string]mount.UpgradeOptions{
		"raw key": {Dir: "/d", Name: "../x"}, "no dir": {Name: mount.CopyName(1, "k")}, "empty": {}, "upper": {Dir: "/d", Name: strings.ToUpper(mount.CopyName(171, "k"))},
	} {
		if _, err := mount.NewUpgrader(&source{}, o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := mount.NewUpgrader(nil, mount.UpgradeOptions{Dir: "/d", Name: mount.CopyName(1, "k")}); err == nil {
		t.Error("no mount: accepted")
	}
	if _, err := mount.Upgrade(unreadable{}, nil, dir, "k", ""); err == nil {
		t.Error("a mount that cannot be read is accepted")
	}
}

type unreadable struct{ mount.BytesMount }

func (unreadable) Info() mount.Info                            { return mount.Info{} }
func (unreadable) Stat(context.Context) (mount.Stat, error)    { return mount.Stat{}, nil }
func (unreadable) Fetch(context.Context) (mount.Reader, error) { return nil, nil }
func (unreadable) Serialize() *url.URL                         { return nil }
func (unreadable) Deserialize(*url.URL) error                  { return nil }
func (unreadable) Close() error                                { return nil }

// TestUpgraderReadersOutlive: readers stay good after Discard and Close, a copy of the
// wrong size is fetched again, and nothing is kept open. Proves I6 (copies), R7.
func TestUpgraderReadersOutlive(t *testing.T) {
	content := mounttest.Content(300_000)
	sim, src := fsio.NewSim(1), &source{content: content}
	u := newUpgrader(t, sim, src, func(o *mount.UpgradeOptions) { o.ExpectSize = int64(len(content)) })
	r, err := u.Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Discard(); err != nil {
		t.Fatal(err)
	}
	if m, ok := r.(fsio.Mapper); !ok {
		t.Error("a sealed copy cannot be mapped")
	} else if data, unmap, err := m.Map(); err != nil || !bytes.Equal(data, content) {
		t.Errorf("mapping: %d bytes, %v", len(data), err)
	} else {
		unmap()
	}
	if st, err := r.(interface{ Stat() (fs.FileInfo, error) }).Stat(); err != nil || st.Size() != int64(len(content)) {
		t.Errorf("Stat of a reader: %v", err)
	}
	if size := r.(interface{ Size() int64 }).Size(); size != int64(len(content)) {
		t.Errorf("Size %d", size)
	}
	wantCopy(t, u, content)
	f, err := sim.OpenFile(u.TransientPath(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(5), f.Close()); err != nil {
		t.Fatal(err)
	}
	if u.Present() {
		t.Error("a truncated copy is present")
	}
	wantCopy(t, u, content)
	u.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the old reader: %d bytes, %v", len(got), err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil || sim.OpenFiles() != 0 {
		t.Errorf("Close: %v, %d files open", err, sim.OpenFiles())
	}
	if src.fetches.Load() != 3 {
		t.Errorf("%d fetches, want 3", src.fetches.Load())
	}
}

// TestUpgraderDiscardAndClose: both end a fetch under way, tell its waiters why, and
// leave nothing. Proves F28 (copies), F1.
func TestUpgraderDiscardAndClose(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(*mount.Upgrader) error
		want error
	}{
		"Discard": {(*mount.Upgrader).Discard, mount.ErrDiscarded}, "Close": {(*mount.Upgrader).Close, mount.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				content := mounttest.Content(1000)
				src := &source{content: content}
				src.fetch = func(ctx context.Context) (mount.Reader, error) { return blocked(ctx, content, nil), nil }
				sim := fsio.NewSim(1)
				u := newUpgrader(t, sim, src, nil)
				errs := make(chan error)
				for range 3 {
					go func() { errs <- u.Ensure(t.Context()) }()
				}
				synctest.Wait()
				if err := tc.end(u); err != nil {
					t.Error(err)
				}
				for range 3 {
					if err := <-errs; !errors.Is(err, tc.want) {
						t.Errorf("a waiter got %v; want %v", err, tc.want)
					}
				}
				synctest.Wait()
				if got := names(t, sim); len(got) != 0 {
					t.Errorf("left behind: %v", got)
				}
				src.fetch = nil
				if name == "Discard" {
					wantCopy(t, u, content)
				} else if _, err := u.Fetch(t.Context()); !errors.Is(err, mount.ErrClosed) {
					t.Errorf("Fetch after Close: %v", err)
				}
			})
		})
	}
}

// TestUpgraderLateFetch: a fetch that was discarded while its source was deaf to it
// comes to its end later, and cannot bring back the copy that was discarded.
func TestUpgraderLateFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content, stale := mounttest.Content(1000), bytes.Repeat([]byte("s"), 1000)
		late := make(chan struct{})
		src := &source{content: content}
		src.fetch = func(context.Context) (mount.Reader, error) {
			return stream(io.MultiReader(readFunc(func([]byte) (int, error) { <-late; return 0, io.EOF }), bytes.NewReader(stale))), nil
		}
		sim := fsio.NewSim(1)
		u := newUpgrader(t, sim, src, nil)
		first := make(chan error, 1)
		go func() { first <- u.Ensure(t.Context()) }()
		synctest.Wait()
		if err := u.Discard(); err != nil {
			t.Fatal(err)
		}
		src.fetch = nil
		wantCopy(t, u, content) // does not wait for the deaf one
		close(late)
		if err := <-first; !errors.Is(err, mount.ErrDiscarded) {
			t.Errorf("the waiter of the discarded fetch got %v", err)
		}
		u.Close()
		if got := names(t, sim); !slices.Equal(got, []string{completeName}) {
			t.Errorf("left behind: %v", got)
		}
	})
}

// TestUpgraderLateCheck: so too if the discard comes when the source has been read and
// the copy is being judged: no look at the context stands between that and its name.
func TestUpgraderLateCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := mounttest.Content(1000)
		late := make(chan struct{})
		sim := fsio.NewSim(1)
		u := newUpgrader(t, sim, &source{content: content}, func(o *mount.UpgradeOptions) {
			o.Check = func(context.Context, io.ReaderAt, int64) error { <-late; return nil }
		})
		got := make(chan error, 1)
		go func() { got <- u.Ensure(t.Context()) }()
		synctest.Wait()
		if err := u.Discard(); err != nil {
			t.Fatal(err)
		}
		close(late)
		if err := <-got; !errors.Is(err, mount.ErrDiscarded) || u.Present() || len(names(t, sim)) != 0 {
			t.Errorf("got %v, left behind %v", err, names(t, sim))
		}
		wantCopy(t, u, content)
	})
}

// TestUpgraderAppears: a copy that was completed after a caller had looked for it and
// before it joined is not fetched again. Proves R3.
func TestUpgraderAppears(t *testing.T) {
	content := mounttest.Content(1000)
	sim, src := fsio.NewSim(1), &source{content: content}
	looks := 0
	sim.OnOp(func(op fsio.Op) error {
		if op.Kind != fsio.OpLstat {
			return nil
		}
		if looks++; looks == 2 {
			sim.MkdirAll(copyDir, 0o700)
			f, err := sim.OpenFile(filepath.Join(copyDir, completeName), os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				t.Error(err)
				return nil
			}
			f.Write(content)
			f.Close()
		}
		return nil
	})
	wantCopy(t, newUpgrader(t, sim, src, nil), content)
	if n := src.fetches.Load(); n != 0 {
		t.Errorf("%d fetches, want 0", n)
	}
}

// TestUpgraderThrottle: sources that are ready are throttled, those that are not do
// not take a place away while they get ready. Proves F22 (fetches), R14.
func TestUpgraderThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := mounttest.Content(100)
		release := make(chan struct{})
		var running atomic.Int32
		thr := throttle.Fixed(2)
		start := func(ready bool) {
			src := &source{content: content, stat: &mount.Stat{Exists: true, Size: 100, Ready: ready}}
			src.fetch = func(ctx context.Context) (mount.Reader, error) {
				running.Add(1)
				return blocked(ctx, content, release), nil
			}
			u := newUpgrader(t, fsio.NewSim(1), src, func(o *mount.UpgradeOptions) { o.Throttler = thr })
			go wantCopy(t, u, content)
		}
		for range 10 {
			start(true)
		}
		synctest.Wait()
		if n := running.Load(); n != 2 {
			t.Errorf("%d ready sources are fetched at once, want 2", n)
		}
		for range 10 {
			start(false)
		}
		synctest.Wait()
		if n := running.Load(); n != 12 {
			t.Errorf("%d sources are fetched at once, want 12: the others wait to get ready", n)
		}
		close(release)
		synctest.Wait()
		if n := running.Load(); n != 20 {
			t.Errorf("%d fetches in all, want 20", n)
		}
	})
}

// TestUpgraderCalls: the order of the calls is what makes a copy complete before it is
// visible and durable before it is told. Proves C5 (copies).
func TestUpgraderCalls(t *testing.T) {
	sim := fsio.NewSim(1)
	u := newUpgrader(t, sim, &source{content: mounttest.Content(300_000)}, nil)
	if err := u.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	var calls []string
	for _, op := range sim.Ops() {
		if op.Kind.Mutates() || op.Kind == fsio.OpClose {
			calls = append(calls, op.Kind.String())
		}
	}
	t.Log(strings.Join(calls, " "))
	last := calls[max(0, len(calls)-4):]
	if !cmp.Equal(last, []string{"sync", "close", "rename", "syncdir"}) {
		t.Errorf("the last calls are %v", last)
	}
}

// TestUpgraderDiskFaults: every operation fails in every way; the fetch fails, leaves
// nothing but what was there, and the next one succeeds. Proves C11 (copies).
func TestUpgraderDiskFaults(t *testing.T) {
	content := mounttest.Content(600_000)
	total := countOps(t, content)
	for n := range total {
		for _, fault := range []fsio.Fault{fsio.FaultEIO, fsio.FaultENOSPC, fsio.FaultShortWrite} {
			sim, src := fsio.NewSim(n), &source{content: content}
			sim.FailAt(n, fault)
			u := newUpgrader(t, sim, src, nil)
			err := u.Ensure(t.Context())
			got := names(t, sim)
			if slices.Contains(got, completeName) {
				wantFile(t, sim, content) // the look at it failed, or nothing did
			} else if err == nil {
				t.Errorf("op %d, %v: no error and no copy", n, fault)
			}
			if len(got) > 1 || len(got) == 1 && got[0] != completeName {
				t.Errorf("op %d, %v: left behind %v", n, fault, got)
			}
			if sim.OpenFiles() != 0 {
				t.Errorf("op %d, %v: %v open", n, fault, sim.OpenNames())
			}
			wantCopy(t, u, content)
		}
	}
	fsiotest.Report(t, "mount.TestUpgraderDiskFaults", int(total)*3, false)
	full := fsio.NewSim(1, fsio.Capacity(400_000))
	u := newUpgrader(t, full, &source{content: content}, nil)
	if err := u.Ensure(t.Context()); err == nil || full.Used() > 0 {
		t.Errorf("a full disk: %v, %d bytes still used", err, full.Used())
	}
}

// wantFile looks at the copy without an Upgrader.
func wantFile(t testing.TB, fsys fsio.FS, content []byte) {
	t.Helper()
	f, err := fsys.OpenFile(filepath.Join(copyDir, completeName), os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the visible copy has %d bytes, %v; want %d", len(got), err, len(content))
	}
}

// countOps returns how many operations one fetch takes.
func countOps(t *testing.T, content []byte) uint64 {
	sim := fsio.NewSim(0)
	if err := newUpgrader(t, sim, &source{content: content}, nil).Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	return sim.NumOps()
}

// TestUpgraderCrash: power is lost at every operation. Afterwards a visible copy is
// whole; the sweep removes all else; and a copy that was told is there. Proves C5,
// C9 (copies), G2 in spirit: told ⇒ durable (F27).
func TestUpgraderCrash(t *testing.T) {
	content := mounttest.Content(300_000)
	total := countOps(t, content)
	for seed := range uint64(8) {
		for n := range total + 1 {
			sim := fsio.NewSim(seed*1000 + n)
			sim.FailAt(n, fsio.FaultCrash)
			u := newUpgrader(t, sim, &source{content: content}, nil)
			told := u.Ensure(t.Context()) == nil
			u.Close()
			after := sim.Crash()
			if _, err := mount.SweepCopies(after, copyDir, func(string) bool { return true }); err != nil {
				t.Fatal(err)
			}
			got := names(t, after)
			if len(got) > 1 || len(got) == 1 && got[0] != completeName {
				t.Fatalf("seed %d, crash at %d: %v after the sweep", seed, n, got)
			}
			if told && len(got) == 0 {
				t.Fatalf("seed %d, crash at %d: the copy was told and is gone", seed, n)
			}
			src := &source{content: content}
			u = newUpgrader(t, after, src, nil)
			present := u.Present()
			wantCopy(t, u, content)
			if present != (src.fetches.Load() == 0) {
				t.Fatalf("seed %d, crash at %d: present %v, %d fetches", seed, n, present, src.fetches.Load())
			}
		}
	}
	fsiotest.Report(t, "mount.TestUpgraderCrash", int(total)+1, false)
}

// TestSweepCopies: only files that this package makes are ever removed. Proves F18,
// S8 (no links followed).
func TestSweepCopies(t *testing.T) {
	sim := fsio.NewSim(1)
	if removed, err := mount.SweepCopies(sim, copyDir, nil); err != nil || removed != nil {
		t.Errorf("a missing directory: %v, %v", removed, err)
	}
	if err := sim.MkdirAll(copyDir, 0o700); err != nil {
		t.Fatal(err)
	}
	alive, dead := mount.CopyName(1, "k"), mount.CopyName(2, "k")
	temp := ".partial-0123456789abcdef"
	own := []string{dead + ".complete", dead + temp, alive + temp}
	foreign := []string{
		alive + ".complete", "transient-k.complete", "transient-k.partial", "x.complete", dead, dead + ".complete.bak", dead + ".partial-",
		dead + ".partial-0123456789ABCDEF", strings.ToUpper(mount.CopyName(171, "k")) + ".complete", dead + "0.complete", "-.complete", ".complete", "notes.txt",
		"0" + dead + temp,
	}
	for _, name := range slices.Concat(own, foreign) {
		f, err := sim.OpenFile(filepath.Join(copyDir, name), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	link := mount.CopyName(3, "k") + ".complete"
	if err := sim.Symlink("/elsewhere", filepath.Join(copyDir, link)); err != nil {
		t.Fatal(err)
	}
	removed, err := mount.SweepCopies(sim, copyDir, func(name string) bool { return name == alive })
	slices.Sort(removed)
	slices.Sort(own)
	if err != nil || !slices.Equal(removed, own) {
		t.Errorf("removed %v, %v; want %v", removed, err, own)
	}
	foreign = append(foreign, link)
	slices.Sort(foreign)
	if got := names(t, sim); !slices.Equal(got, foreign) {
		t.Errorf("left are %v; want %v", got, foreign)
	}
	sim.OnOp(func(op fsio.Op) error {
		if op.Kind == fsio.OpRemove {
			return fsio.FaultEIO
		}
		return nil
	})
	if removed, err := mount.SweepCopies(sim, copyDir, func(string) bool { return false }); err == nil || len(removed) != 0 {
		t.Errorf("a sweep that cannot remove: %v, %v", removed, err)
	}
}

// TestCopyNames: names carry the generation and tell keys apart, and nothing else is
// taken for one. Listing and removing keep to complete copies. Proves F12, F18.
func TestCopyNames(t *testing.T) {
	for _, gen := range []uint64{0, 1, 0xabc, 1<<64 - 1} {
		if got, ok := mount.CopyGeneration(mount.CopyName(gen, "../k")); !ok || got != gen {
			t.Errorf("generation %d came back as %d, %v", gen, got, ok)
		}
	}
	if mount.CopyName(1, "a") == mount.CopyName(1, "b") || mount.CopyName(1, "a") == mount.CopyName(2, "a") {
		t.Error("two lives share a name")
	}
	sim := fsio.NewSim(1)
	if list, err := mount.ListCopies(sim, copyDir); err != nil || len(list) != 0 {
		t.Errorf("a missing directory: %v, %v", list, err)
	}
	u := newUpgrader(t, sim, &source{content: []byte("x")}, nil)
	if err := u.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	name := mount.CopyName(7, "key")
	for _, other := range []string{"notes.txt", "x.complete", name + ".partial-0123456789abcdef"} {
		f, err := sim.OpenFile(filepath.Join(copyDir, other), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if list, err := mount.ListCopies(sim, copyDir); err != nil || !slices.Equal(list, []string{name}) {
		t.Errorf("ListCopies = %v, %v", list, err)
	}
	for _, bad := range []string{"", "x", "../" + name, name + "/..", "notes.txt"} {
		if _, ok := mount.CopyGeneration(bad); ok || mount.RemoveCopy(sim, copyDir, bad) == nil {
			t.Errorf("%q is taken for a copy", bad)
		}
	}
	for range 2 { // the second finds nothing, which is as well
		if err := mount.RemoveCopy(sim, copyDir, name); err != nil || u.Present() {
			t.Errorf("RemoveCopy: %v", err)
		}
	}
	if after := sim.Crash(); len(names(t, after)) > 3 || slices.Contains(names(t, after), completeName) {
		t.Errorf("after a crash a removed copy is back: %v", names(t, after))
	}
}

// TestUpgraderPlantedCopy: what is not a regular file is not served as the copy. Proves
// S8.
func TestUpgraderPlantedCopy(t *testing.T) {
	dir := t.TempDir()
	secret := writeFile(t, "secret", []byte("secret"))
	name := mount.CopyName(1, "k")
	if err := os.Symlink(secret, filepath.Join(dir, name+".complete")); err != nil {
		t.Fatal(err)
	}
	u, err := mount.NewUpgrader(&source{content: []byte("x")}, mount.UpgradeOptions{Dir: dir, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if got, err := get(t.Context(), u); !errors.Is(err, mount.ErrNotRegular) {
		t.Errorf("read %q, %v", got, err)
	}
}

// BenchmarkUpgraderFetchPresent opens a copy that is there.
// dripSource delivers a byte after first and then one each interval, until release.
func dripSource(first, every time.Duration, release <-chan struct{}) *streamReader {
	n := 0
	return stream(readFunc(func(p []byte) (int, error) {
		wait := every
		if n++; n == 1 {
			wait = first
		}
		select {
		case <-time.After(wait):
			p[0] = 'x'
			return 1, nil
		case <-release:
			return 0, io.ErrUnexpectedEOF
		}
	}))
}

// TestUpgraderSlowSource: a source of whatever kind that drips, or stops after its first
// byte, is given up after a minute or two, also if it heeds neither its context nor Close,
// and leaves nothing behind; the next fetch starts afresh. One that prepares for hours
// before its first byte, or is not ready and so holds no slot, may take its time. Proves
// R14, R20, F1.
func TestUpgraderSlowSource(t *testing.T) {
	for name, tc := range map[string]struct {
		first, every time.Duration
		notReady     bool
		change       func(*mount.UpgradeOptions)
		want         error
		max          time.Duration
	}{
		"drips":             {every: 200 * time.Millisecond, want: mount.ErrTooSlow, max: 61 * time.Second},
		"stops":             {every: 1000 * time.Hour, want: mount.ErrTooSlow, max: 61 * time.Second},
		"prepares, stops":   {first: 5 * time.Hour, every: 1000 * time.Hour, want: mount.ErrTooSlow, max: 5*time.Hour + 61*time.Second},
		"another rate":      {every: 200 * time.Millisecond, change: func(o *mount.UpgradeOptions) { o.MinRate, o.RateWindow = 10, time.Second }, want: mount.ErrTooSlow, max: 2 * time.Second},
		"slow enough":       {every: 200 * time.Millisecond, change: func(o *mount.UpgradeOptions) { o.MinRate = 4 }, max: 3 * time.Minute},
		"no bound":          {every: time.Minute, change: func(o *mount.UpgradeOptions) { o.MinRate = -1 }, max: 24 * time.Hour},
		"holds no slot":     {every: time.Minute, notReady: true, max: 24 * time.Hour},
		"prepares for long": {first: 5 * time.Hour, every: time.Millisecond, change: func(o *mount.UpgradeOptions) { o.MinRate = 100 }, max: 6 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sim := fsio.NewSim(1)
				release := make(chan struct{})
				src := &source{content: bytes.Repeat([]byte("x"), 500), stat: &mount.Stat{Exists: true, Size: 500, Ready: !tc.notReady}}
				src.fetch = func(context.Context) (mount.Reader, error) {
					r := dripSource(tc.first, tc.every, release)
					n := 0
					return stream(readFunc(func(p []byte) (int, error) {
						if n++; n > 500 {
							return 0, io.EOF
						}
						return r.Read(p[:1])
					})), nil
				}
				u := newUpgrader(t, sim, src, tc.change)
				start := time.Now()
				err := u.Ensure(t.Context())
				if took := time.Since(start); !errors.Is(err, tc.want) || took > tc.max {
					t.Errorf("%v after %s", err, took)
				}
				if tc.want == nil {
					return
				}
				if mount.IsContent(err) || mount.IsShortage(err) {
					t.Errorf("of the wrong kind: %v", err)
				}
				src.fetch = nil // and now it delivers, while the other still hangs
				wantCopy(t, u, src.content)
				close(release)
				u.Close()
				if got := names(t, sim); !cmp.Equal(got, []string{completeName}) {
					t.Errorf("left behind: %v", got)
				}
			})
		})
	}
}

// roomFS is a disk that tells how much room it has.
type roomFS struct {
	fsio.FS
	free  func() int64
	total int64
}

func (f roomFS) Space(string) (fsio.Space, error) {
	return fsio.Space{Free: f.free(), Total: f.total}, nil
}

// TestUpgraderRoom: a copy is not begun, and not gone on with, for which there is no room
// or that is larger than allowed; nothing of it stays. Proves R5, R7.
func TestUpgraderRoom(t *testing.T) {
	const mib = 1 << 20
	content := bytes.Repeat([]byte("0123456789abcdef"), 200*mib/16)
	for name, tc := range map[string]struct {
		free, total, minFree, maxSize int64
		told                          bool
		want                          error
	}{
		"plenty":              {free: 300 << 30, total: 1 << 40, told: true},
		"just enough":         {free: 201*mib + 1<<30, total: 1 << 40, told: true},
		"told, too little":    {free: 199*mib + 1<<30, total: 1 << 40, told: true, want: mount.ErrNoRoom},
		"a hundredth":         {free: 202 * mib, total: 200 * mib, told: true},
		"not told":            {free: 150*mib + 1<<30, total: 1 << 40, want: mount.ErrNoRoom},
		"full before":         {free: 0, total: 1 << 40, want: mount.ErrNoRoom},
		"no bound":            {free: 0, total: 1 << 40, minFree: -1},
		"exact":               {free: 1 << 30, total: 1 << 30, minFree: 1<<30 - 100*mib, told: true, want: mount.ErrNoRoom},
		"disk does not tell":  {},
		"told, too large":     {maxSize: 100 * mib, told: true, want: mount.ErrTooLarge},
		"not told, too large": {maxSize: 100 * mib, want: mount.ErrTooLarge},
		"as large as allowed": {maxSize: 200 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			disk := fsio.NewSim(1)
			src := &source{content: content, stat: &mount.Stat{Exists: true, Ready: true}}
			if tc.told {
				src.stat.Size = int64(len(content))
			}
			var read int64
			src.fetch = func(context.Context) (mount.Reader, error) {
				r := bytes.NewReader(content)
				return stream(readFunc(func(p []byte) (int, error) {
					n, err := r.Read(p)
					read += int64(n)
					return n, err
				})), nil
			}
			u := newUpgrader(t, roomFS{disk, func() int64 { return max(0, tc.free-read) }, tc.total}, src, func(o *mount.UpgradeOptions) {
				o.MinFree, o.MaxSize = tc.minFree, tc.maxSize
			})
			err := u.Ensure(t.Context())
			if !errors.Is(err, tc.want) || mount.IsShortage(err) != (tc.want == mount.ErrNoRoom) || mount.IsContent(err) != (tc.want == mount.ErrTooLarge) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if tc.want == nil {
				return
			}
			if got := names(t, disk); len(got) > 0 {
				t.Errorf("left behind: %v", got)
			}
			if tc.told && read > 0 {
				t.Errorf("%d bytes were fetched of what cannot be kept", read)
			}
		})
	}
}

func BenchmarkUpgraderFetchPresent(b *testing.B) {
	u, err := mount.Upgrade(&source{content: mounttest.Content(1000)}, nil, b.TempDir(), "k", "")
	if err != nil {
		b.Fatal(err)
	}
	defer u.Close()
	b.ReportAllocs()
	for b.Loop() {
		r, err := u.Fetch(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

// BenchmarkUpgraderCopy makes durable copies of 64 MiB.
func BenchmarkUpgraderCopy(b *testing.B) {
	content := mounttest.Content(64 << 20)
	u, err := mount.Upgrade(&source{content: content}, nil, b.TempDir(), "k", "")
	if err != nil {
		b.Fatal(err)
	}
	defer u.Close()
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		if err := errors.Join(u.Ensure(b.Context()), u.DeleteTransient()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHTTP reads 64 MiB from a server on loopback, as a stream and in blocks of
// 64 KiB at offsets.
func BenchmarkHTTP(b *testing.B) {
	content := mounttest.Content(64 << 20)
	url, o := serve(b, serveRanges(content))
	for _, size := range []int{0, 64 << 10} {
		b.Run(fmt.Sprintf("readAt=%d", size), func(b *testing.B) {
			r, err := (&mount.HTTPMount{URL: url, Options: o}).Fetch(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			b.ReportAllocs()
			if size > 0 {
				b.SetBytes(int64(size))
				p, off := make([]byte, size), int64(0)
				for b.Loop() {
					if _, err := r.ReadAt(p, off); err != nil {
						b.Fatal(err)
					}
					off = (off + int64(size)) % int64(len(content))
				}
				return
			}
			b.SetBytes(int64(len(content)))
			for b.Loop() {
				r.Seek(0, io.SeekStart)
				if n, err := io.Copy(io.Discard, onlyReader{r}); err != nil || n != int64(len(content)) {
					b.Fatal(n, err)
				}
			}
		})
	}
}

type onlyReader struct{ io.Reader }

// BenchmarkRegistry represents and revives a file mount.
func BenchmarkRegistry(b *testing.B) {
	reg := registry(b, map[string]mount.Mount{"file": new(mount.FileMount)})
	m := &mount.FileMount{Path: "/data/shards/baga6ea4seaqao7s73y24kcutaosvacpdjgfe5pw76ooefnyqw4ynr3d2y6x2mpq.car"}
	b.ReportAllocs()
	for b.Loop() {
		u, err := reg.Represent(m)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := reg.Instantiate(u); err != nil {
			b.Fatal(err)
		}
	}
}
