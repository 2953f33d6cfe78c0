package toplevel

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
)

// mappedBelow lists the files below a directory that this process has mapped or open, the
// deleted ones too.
func mappedBelow(t *testing.T, dir string) (names []string) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		if i := strings.Index(line, dir+"/"); i >= 0 {
			names = append(names, "mapped: "+strings.TrimSpace(line[i+len(dir)+1:]))
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, dir+"/") {
			names = append(names, "open: "+to[len(dir)+1:])
		}
	}
	return names
}

// TestRunsAreGivenUp: a run that was merged, or replaced, has its space given back at
// once, or when the last lookup in it ends, and after Close nothing of the directory is
// in use: without the garbage collector, which does not run here. Proves F14, F28 (the
// top-level index), I6 (runs that are looked into).
func TestRunsAreGivenUp(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	dir := t.TempDir()
	x := must(Open(dir, Options{FanIn: 2, MergeShare: 1, RestAfter: -1}, Hooks{}))
	x.Start()
	const each = 200
	add := func(n int) {
		t.Helper()
		if err := errors.Join(x.Add(t.Context(), ingestNo(n), span{uint64(n) * each, uint64(n+1) * each}), x.Flush([]byte{byte(n)})); err != nil {
			t.Fatal(err)
		}
	}
	stale := func() []string {
		return slices.DeleteFunc(mappedBelow(t, dir), func(n string) bool { return !strings.HasSuffix(n, "(deleted)") })
	}
	for n := range 9 {
		add(n)
	}
	x.Settle()
	if st := x.Stats(); st.Merges == 0 || st.Runs == 0 {
		t.Fatalf("%d runs after %d merges", st.Runs, st.Merges)
	}
	if s := stale(); len(s) > 0 {
		t.Errorf("after merges: %v", s)
	}

	// A lookup goes on in what was replaced meanwhile.
	entered, proceed := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		met := 0
		err := x.Lookup(hash(5, nil), func(in Ingest) bool {
			if met++; met == 1 {
				close(entered)
				<-proceed
			}
			if in.Key.String() != ingestNo(0).Key.String() {
				t.Errorf("found %v", in)
			}
			return true
		})
		if err != nil || met == 0 {
			t.Errorf("a lookup under way found %d, %v", met, err)
		}
	})
	<-entered
	f := must(x.Fresh(Hooks{}))
	for n := range 9 {
		if err := f.Add(t.Context(), ingestNo(n), span{uint64(n) * each, uint64(n+1) * each}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Adopt(x, []byte("f")); err != nil {
		t.Fatal(err)
	}
	if s := stale(); len(s) == 0 {
		t.Error("the runs of an index that was replaced are gone under a lookup")
	}
	close(proceed)
	wg.Wait()
	if s := stale(); len(s) > 0 {
		t.Errorf("after the replacement: %v", s)
	}
	for n := range uint64(9) { // who has the former still is answered
		if got := gens(t, x, n*each); !slices.Equal(got, []uint64{n + 1}) {
			t.Errorf("multihash %d of the former index: %v", n*each, got)
		}
	}
	if err := errors.Join(x.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if s := mappedBelow(t, dir); len(s) > 0 {
		t.Errorf("after Close: %v", s)
	}
	for _, x := range []*Index{x, f} {
		if err := x.Lookup(hash(5, nil), func(Ingest) bool { return true }); !errors.Is(err, ErrClosed) {
			t.Errorf("a lookup after Close: %v", err)
		}
	}
}

// TestLookupsWhileRunsGo: lookups find what they should while runs are merged and given
// up under them, and the index is made anew again and again.
func TestLookupsWhileRunsGo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "top")
	x := must(Open(dir, Options{FanIn: 2, MergeShare: 1, RestAfter: -1}, Hooks{}))
	x.Start()
	const each = 100
	add := func(x *Index, n int) {
		if err := errors.Join(x.Add(context.Background(), ingestNo(n), span{uint64(n) * each, uint64(n+1) * each}), x.Flush([]byte{1})); err != nil {
			t.Error(err)
		}
	}
	add(x, 0)
	var mu sync.Mutex
	now := x
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := uint64(0); ; i++ {
				select {
				case <-done:
					return
				default:
				}
				mu.Lock()
				x := now
				mu.Unlock()
				found := false
				err := x.Lookup(hash(i%each, nil), func(in Ingest) bool {
					found = found || in.Key == ingestNo(0).Key
					return true
				})
				if err != nil || !found {
					t.Errorf("multihash %d: %t, %v", i%each, found, err)
					return
				}
			}
		})
	}
	for round := range 3 {
		for n := 1; n < 8; n++ {
			add(now, n)
		}
		f := must(now.Fresh(Hooks{}))
		add(f, 0)
		if err := f.Adopt(now, []byte{byte(round)}); err != nil {
			t.Error(err)
		}
		mu.Lock()
		now = f
		mu.Unlock()
	}
	close(done)
	wg.Wait()
	if err := now.Close(); err != nil {
		t.Error(err)
	}
	if s := mappedBelow(t, dir); len(s) > 0 {
		t.Errorf("after Close: %v", s)
	}
}
