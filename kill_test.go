package dagstore

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

var killCycles = flag.Int("kill.cycles", 25, "how often TestKill kills the process that has the store open")

// killDir names the directory of the store to the process that is killed, killRand
// its seed.
const (
	killDir  = "DAGSTORE_TEST_KILL_DIR"
	killRand = "DAGSTORE_TEST_KILL_RAND"

	killWorkers = 3
	killKeys    = 4 // of each worker
)

// The test binary plays the process that is killed. It must not reach the tests.
func init() {
	if dir := os.Getenv(killDir); dir != "" {
		seed, _ := strconv.ParseUint(os.Getenv(killRand), 10, 64)
		err := killedProcess(dir, seed)
		fmt.Println("failed", err)
		os.Exit(1)
	}
}

// killStore opens the store that is fought over: half of its sources are streams
// that need a copy, half are files that are read in place.
func killStore(dir string) (*DAGStore, error) {
	return Open(context.Background(), filepath.Join(dir, "store"),
		WithMount("fs", &mount.FSMount{FS: os.DirFS(filepath.Join(dir, "sources"))}),
		WithLogger(slog.New(slog.DiscardHandler)), WithJournalOptions(journal.FileOptions{SegmentSize: 16 << 10}))
}

func killMount(dir string, n int) mount.Mount {
	name := fmt.Sprintf("%d.car", n%(len(simContents())-1))
	if n%2 == 0 {
		return &mount.FSMount{FS: os.DirFS(filepath.Join(dir, "sources")), Path: name}
	}
	return &mount.FileMount{Path: filepath.Join(dir, "sources", name)}
}

// killedProcess works on the store until it is killed. It says what it is about to
// do and what it has been told, line by line:
//
//	try <register|destroy> <key>
//	told <register|destroy> <key> <seq>
func killedProcess(dir string, seed uint64) error {
	d, err := killStore(dir)
	if err != nil {
		return err
	}
	fmt.Println("open")
	errs := make(chan error)
	for w := range killWorkers {
		go func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			for {
				key := shard.KeyFromString(fmt.Sprintf("worker/%d/../%d", w, rng.IntN(killKeys)))
				if err := killedStep(d, dir, key, rng); err != nil {
					errs <- fmt.Errorf("%s: %w", key, err)
				}
			}
		}()
	}
	return <-errs
}

func killedStep(d *DAGStore, dir string, key shard.Key, rng *rand.Rand) error {
	ctx := context.Background()
	_, err := d.GetShardInfo(key)
	switch n := rng.IntN(10); {
	case err != nil:
		fmt.Println("try register", key)
		res, err := d.RegisterShardSync(ctx, key, killMount(dir, rng.IntN(1000)), RegisterOpts{LazyInitialization: n < 4})
		if err != nil {
			return err
		}
		fmt.Println("told register", key, res.Seq)
	case n < 2:
		fmt.Println("try destroy", key)
		res, err := d.DestroyShardSync(ctx, key, DestroyOpts{})
		if err != nil {
			return err
		}
		fmt.Println("told destroy", key, res.Seq)
	case n == 2:
		_, err := d.GC(ctx)
		return err
	case n == 3:
		if _, err := d.RecoverShardSync(ctx, key, RecoverOpts{}); !errors.Is(err, ErrNotErrored) {
			return fmt.Errorf("recover: %w", err)
		}
	default:
		return readShard(d, key)
	}
	return nil
}

// readShard reads every block of a shard.
func readShard(d *DAGStore, key shard.Key) error {
	ctx := context.Background()
	acc, err := d.AcquireShardSync(ctx, key, AcquireOpts{})
	if err != nil {
		return err
	}
	defer acc.Close()
	bs, err := acc.Blockstore()
	if err != nil {
		return err
	}
	all, err := bs.AllKeysChan(ctx)
	if err != nil {
		return err
	}
	n := 0
	for c := range all {
		if _, err := bs.Get(ctx, c); err != nil {
			return err
		}
		n++
	}
	if n == 0 {
		return errors.New("a shard without blocks")
	}
	return nil
}

// killModel is what the killed processes said.
type killModel struct {
	told map[string]string // key → last verb told of
	seq  map[string]uint64
	open map[string]bool // keys with a change that nobody was told of
}

func (m *killModel) hear(line string) error {
	f := strings.Fields(line)
	switch {
	case len(f) == 3 && f[0] == "try":
		m.open[f[2]] = true
	case len(f) == 4 && f[0] == "told":
		seq, err := strconv.ParseUint(f[3], 10, 64)
		if err != nil || seq == 0 {
			return fmt.Errorf("%q: no place in the journal", line)
		}
		m.told[f[2]], m.seq[f[2]] = f[1], seq
		delete(m.open, f[2])
	case line == "open":
	default:
		return fmt.Errorf("the other process says %q", line)
	}
	return nil
}

// TestKill kills a process that works on a store on the real disk, time and again, at
// whatever moment it happens to be in, and each time finds all that the process had
// been told, the lock free, nothing left behind, and every shard readable. Proves
// C5 (kill), C8 (kill), C9 (kill), C12, F9, F12, F27, I2, I7.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sources"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i, c := range simContents() {
		if err := os.WriteFile(filepath.Join(dir, "sources", fmt.Sprintf("%d.car", i)), c.data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := &killModel{told: make(map[string]string), seq: make(map[string]uint64), open: make(map[string]bool)}
	rng := rand.New(rand.NewPCG(1, 2))
	cycles := *killCycles
	if testing.Short() {
		cycles = min(cycles, 5)
	}
	lines := 0
	for cycle := range cycles {
		n, err := m.killOne(t, dir, uint64(cycle), 1+rng.IntN(60), cycle == 0)
		if err == nil {
			err = m.check(dir)
		}
		if err != nil {
			t.Fatalf("cycle %d: %v", cycle, err)
		}
		lines += n
	}
	t.Logf("%d kills, %d lines heard, %d keys known", cycles, lines, len(m.told))
}

// killOne starts a process, kills it after it has said so many lines, and hears what
// it had said by then.
func (m *killModel) killOne(t *testing.T, dir string, seed uint64, after int, tryLock bool) (lines int, err error) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), killDir+"="+dir, killRand+"="+strconv.FormatUint(seed, 10))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	var once sync.Once
	kill := func() { once.Do(func() { _ = cmd.Process.Kill() }) }
	defer cmd.Wait() // it was killed
	defer kill()
	r := bufio.NewReader(out)
	for {
		line, rerr := r.ReadString('\n')
		if rerr == io.EOF {
			return lines, nil // a line that was cut is no line
		}
		if rerr != nil {
			return lines, rerr
		}
		if err := m.hear(strings.TrimSuffix(line, "\n")); err != nil {
			return lines, err
		}
		if lines++; lines == 1 && tryLock {
			if _, err := killStore(dir); !errors.Is(err, journal.ErrLocked) {
				return lines, fmt.Errorf("C12: a second process opens the store: %w", err)
			}
		}
		if lines == after {
			kill()
		}
	}
}

// check opens the store and holds it to what was heard.
func (m *killModel) check(dir string) (err error) {
	d, err := killStore(dir)
	if err != nil {
		return fmt.Errorf("open after the kill: %w", err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := m.checkFiles(d, dir); err != nil {
		return err
	}
	for key, verb := range m.told {
		rec := d.cat.Get(shard.KeyFromString(key))
		switch {
		case m.open[key]: // either
		case verb == "register" && rec == nil:
			return fmt.Errorf("I2: %s was registered at %d and is gone", key, m.seq[key])
		case verb == "register" && rec.Seq() < m.seq[key]:
			return fmt.Errorf("I2: %s was registered at %d, and %d is the newest event of it", key, m.seq[key], rec.Seq())
		case verb == "destroy" && rec != nil:
			return fmt.Errorf("I2: %s was destroyed at %d and is there", key, m.seq[key])
		}
	}
	// What the next process says about these begins anew.
	clear(m.told)
	clear(m.open)
	for key := range d.AllShardsInfo() {
		m.told[key.String()], m.seq[key.String()] = "register", d.cat.Get(key).Gen()
		if err := readShard(d, key); err != nil {
			return fmt.Errorf("I7: shard %s: %w", key, err)
		}
	}
	return nil
}

// checkFiles finds nothing but files of shards that are there.
func (m *killModel) checkFiles(d *DAGStore, dir string) error {
	var gens []uint64
	d.cat.Snapshot().All(func(r *projection.Record) bool { gens = append(gens, r.Gen()); return true })
	for _, sub := range []string{"copies", "index"} {
		entries, err := os.ReadDir(filepath.Join(dir, "store", sub))
		if err != nil {
			return err
		}
		for _, e := range entries {
			gen, err := strconv.ParseUint(e.Name()[:min(16, len(e.Name()))], 16, 64)
			// The store is running: what it makes now may be unfinished.
			unfinished := fsio.IsTemp(e.Name()) || strings.Contains(e.Name(), ".partial-")
			if err != nil || !unfinished && !slices.Contains(gens, gen) {
				return fmt.Errorf("C8: %s/%s is left behind", sub, e.Name())
			}
		}
	}
	return nil
}
