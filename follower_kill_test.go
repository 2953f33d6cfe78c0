package dagstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
)

// followDir names the directory of the store to a process that follows it, until it is
// killed.
const followDir = "DAGSTORE_TEST_FOLLOW_DIR"

func init() {
	if dir := os.Getenv(followDir); dir != "" {
		fmt.Println("failed", followingProcess(dir))
		os.Exit(1)
	}
}

func killFollower(dir string) (*Follower, error) {
	return OpenFollower(context.Background(), filepath.Join(dir, "store"), WithLogger(slog.New(slog.DiscardHandler)),
		WithMount("fs", &mount.FSMount{FS: os.DirFS(filepath.Join(dir, "sources"))}))
}

// followingProcess says at which event it is, and reads what it can.
func followingProcess(dir string) error {
	f, err := killFollower(dir)
	if err != nil {
		return err
	}
	last := uint64(0)
	for range time.Tick(2 * time.Millisecond) {
		fresh, err := f.WaitFor(context.Background(), CatalogueView, Latest())
		if err != nil {
			return err
		}
		if last < fresh.Applied.Seq {
			fmt.Println("at", fresh.Applied.Seq)
			last = fresh.Applied.Seq
		}
		if err := readFollowed(f); err != nil {
			return err
		}
	}
	return nil
}

// readFollowed reads some shard that is available as far as the follower knows. What
// the writer does to it meanwhile is no error; a wrong block is.
func readFollowed(f *Follower) error {
	page, err := f.ListShards(ListOptions{States: []ShardState{ShardStateAvailable}, Limit: 3})
	if err != nil {
		return err
	}
	for _, s := range page.Shards {
		if err := readShard(f.DAGStore, s.Key); errors.Is(err, ErrBlockCorrupt) || errors.Is(err, ErrClosed) {
			return fmt.Errorf("%s: %w", s.Key, err)
		}
	}
	return nil
}

// process is another process of this test binary, and what it says.
type process struct {
	cmd   *exec.Cmd
	lines chan string // closed at its end
}

func startProcess(t testing.TB, env ...string) *process {
	t.Helper()
	p := &process{cmd: exec.CommandContext(t.Context(), os.Args[0]), lines: make(chan string, 1<<16)}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	return p
}

// hear returns the next line, or false at the process's end.
func (p *process) hear(t testing.TB) (string, bool) {
	t.Helper()
	select {
	case line, ok := <-p.lines:
		if strings.HasPrefix(line, "failed") {
			t.Fatalf("the other process %s", line)
		}
		return line, ok
	case <-time.After(30 * time.Second):
		t.Fatal("the other process says nothing")
		return "", false
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	for range p.lines {
	}
	_ = p.cmd.Wait() // it was killed
}

// TestFollowerKill: followers in this process and in another go on while writers are
// killed and started again, with small segments, checkpoints and compactions all the
// time; and writers do not notice that followers are killed. What a follower showed is
// what the store recovers, event for event. Proves G18, G3 (followers), C7 (followers),
// C12 (followers), G15 (followers).
func TestFollowerKill(t *testing.T) {
	dir := t.TempDir()
	killSources(t, dir)
	d, err := killStore(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := killFollower(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	follower := startProcess(t, followDir+"="+dir)
	defer func() { follower.kill() }()

	rng := rand.New(rand.NewPCG(7, *killSeed))
	cycles := max(4, *killCycles/3)
	if testing.Short() {
		cycles = 3
	}
	shown := uint64(0)
	for cycle := range cycles {
		writer := startProcess(t, killDir+"="+dir, killRand+"="+strconv.FormatUint(*killSeed<<32+uint64(cycle), 10))
		for range 1 + rng.IntN(150) {
			if _, ok := writer.hear(t); !ok {
				t.Fatal("the writer ended of itself")
			}
		}
		if cycle%2 == 1 { // a follower is killed, and the writer goes on
			follower.kill()
			if _, ok := writer.hear(t); !ok {
				t.Fatal("the writer ended with the follower")
			}
			follower = startProcess(t, followDir+"="+dir)
		}
		seen := f.Position()
		writer.kill()
		at := followedBy(t, dir, f, seen)
		if at < shown {
			t.Fatalf("cycle %d: the follower was at %d and is at %d", cycle, shown, at)
		}
		shown = at
		hearOf(t, follower, shown)
	}
	t.Logf("%d writers and %d followers killed, %d events, overtaken %d times", cycles, cycles/2, shown, Jumps(f))
}

// hearOf waits until a follower says that it has come to event at.
func hearOf(t *testing.T, p *process, at uint64) {
	t.Helper()
	for {
		line, ok := p.hear(t)
		if !ok {
			t.Fatal("the follower ended of itself")
		}
		if n, err := strconv.ParseUint(strings.TrimPrefix(line, "at "), 10, 64); err == nil && n >= at {
			return
		}
	}
}

// followedBy opens the store that was killed, holds what the follower had shown before
// to it, and what it comes to show to what the store recovered.
func followedBy(t *testing.T, dir string, f *Follower, seen Position) uint64 {
	t.Helper()
	d, err := killStore(dir, 1)
	if err != nil {
		t.Fatalf("open after the kill: %v", err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}()
	if head := d.Position(); seen.Seq > head.Seq {
		t.Fatalf("G3: the follower had shown %s, and the journal ends at %s", seen, head)
	}
	if p, err := d.journal.(journal.Positioner).PositionAt(seen.Seq); err == nil && p != seen {
		t.Fatalf("G3: the follower had shown %s, which is %s now", seen, p)
	}
	// Every start resumes what was interrupted; the store comes to rest soon.
	at := d.Position()
	if _, err := f.WaitFor(context.Background(), CatalogueView, AtLeast(at)); err != nil {
		t.Fatal(err)
	}
	mine, fresh, err := f.Catalogue(context.Background(), Any())
	if err != nil {
		t.Fatal(err)
	}
	theirs, _, err := d.Catalogue(context.Background(), AsOf(mine.Position()))
	if errors.Is(err, ErrCompacted) {
		return fresh.Applied.Seq // it went on, and has forgotten
	}
	if err != nil || mine.Digest() != theirs.Digest() {
		t.Fatalf("G15: the follower at %s and the store as of then differ: %v", mine.Position(), err)
	}
	return fresh.Applied.Seq
}
