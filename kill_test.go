package dagstore

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

var (
	killCycles = flag.Int("kill.cycles", 25, "how often TestKill kills the process that has the store open")
	killSeed   = flag.Uint64("kill.seed", 0, "where the seeds of TestKill begin")
)

// killDir names the directory of the store to the process that is killed, killRand
// its seed.
const (
	killDir  = "DAGSTORE_TEST_KILL_DIR"
	killRand = "DAGSTORE_TEST_KILL_RAND"

	killWorkers = 4
	killKeys    = 5 // of each worker
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
// that need a copy, half are files that are read in place. Its journal rotates every
// dozen events, is checkpointed every few dozen, and compacted as often as that.
func killStore(dir string, seed uint64) (*DAGStore, error) {
	return Open(context.Background(), filepath.Join(dir, "store"),
		WithMount("fs", &mount.FSMount{FS: os.DirFS(filepath.Join(dir, "sources"))}),
		WithCheckpoints(projection.CheckpointPolicy{Events: 30}), WithRetention(projection.Retention{Bytes: 1, Events: 20}),
		WithLogger(slog.New(slog.DiscardHandler)), WithJournalOptions(journal.FileOptions{SegmentSize: 4 << 10, Preallocate: 4 << 10}),
		WithConfig(func(c *Config) { c.RecoverOnStart = RecoverOnStartPolicy(seed % 3) }))
}

// killSource is the file that a worker's shards come from if it is not one of those
// that are always there.
func killSource(key shard.Key) string {
	return "own-" + strings.NewReplacer("/", "-", ".", "-").Replace(key.String()) + ".car"
}

// killMount is a source: a stream or a file, which is there or, one in five, not yet.
func killMount(dir string, key shard.Key, n int) mount.Mount {
	name := fmt.Sprintf("%d.car", n%(len(simContents())-1))
	if n%5 == 0 {
		name = killSource(key)
		_ = os.Remove(filepath.Join(dir, "sources", name)) // it may not be there
	}
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
	d, err := killStore(dir, seed)
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
	info, err := d.GetShardInfo(key)
	switch n := rng.IntN(12); {
	case err != nil:
		fmt.Println("try register", key)
		res, err := d.RegisterShardSync(ctx, key, killMount(dir, key, rng.IntN(1000)), RegisterOpts{LazyInitialization: n < 5})
		if errors.Is(err, ErrShardInitializationFailed) {
			return nil // the source is not there yet
		}
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
	case n == 3 || info.ShardState == ShardStateErrored:
		return recoverShard(d, dir, key)
	case n < 6:
		if acc, err := d.AcquireShardSync(ctx, key, AcquireOpts{}); err == nil {
			return acc.Close()
		}
	default:
		if err := readShard(d, key); !errors.Is(err, ErrShardInitializationFailed) {
			return err
		}
	}
	return nil
}

// recoverShard puts the source of an errored shard where it belongs and recovers it.
func recoverShard(d *DAGStore, dir string, key shard.Key) error {
	if err := os.WriteFile(filepath.Join(dir, "sources", killSource(key)), simContents()[0].data, 0o600); err != nil {
		return err
	}
	_, err := d.RecoverShardSync(context.Background(), key, RecoverOpts{})
	if errors.Is(err, ErrShardInitializationFailed) {
		// What was interrupted is resumed at a start: it may have been joined after it had
		// missed the source.
		_, err = d.RecoverShardSync(context.Background(), key, RecoverOpts{})
	}
	if err != nil && !errors.Is(err, ErrNotErrored) {
		return fmt.Errorf("recover: %w", err)
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
	head uint64          // the newest event that was seen
	// horizon is the newest event that the journal has forgotten, that was seen.
	horizon uint64
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

// killSources writes the files that are always there.
func killSources(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, "sources"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i, c := range simContents() {
		if err := os.WriteFile(filepath.Join(dir, "sources", fmt.Sprintf("%d.car", i)), c.data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKill kills a process that works on a store on the real disk, time and again, at
// whatever moment it happens to be in, and each time finds all that the process had
// been told and nothing that was destroyed, the catalogue to be what a replay of the
// journal gives, the lock free, nothing left behind, and every shard readable. Proves
// C5 (kill), C8 (kill), C9 (kill), C12, F9, F12, F27, G5 (kill), I2, I3, I4 (kill), I7,
// C6 (kill), C7 (kill), G6 (kill).
func TestKill(t *testing.T) {
	dir := t.TempDir()
	killSources(t, dir)
	m := &killModel{told: make(map[string]string), seq: make(map[string]uint64), open: make(map[string]bool)}
	rng := rand.New(rand.NewPCG(1, *killSeed))
	cycles := *killCycles
	if testing.Short() {
		cycles = min(cycles, 5)
	}
	lines := 0
	for cycle := range cycles {
		// One in four is killed while it opens the store, or soon after.
		after, delay := 1+rng.IntN(80), time.Duration(rng.IntN(2000))*time.Microsecond
		if cycle%4 == 3 {
			after, delay = 0, time.Duration(rng.IntN(25_000))*time.Microsecond
		}
		n, err := m.killOne(t, dir, *killSeed<<32+uint64(cycle), after, delay, cycle == 0)
		if err == nil {
			err = m.check(dir, *killSeed<<32+uint64(cycle))
		}
		if err != nil {
			t.Fatalf("cycle %d: %v", cycle, err)
		}
		lines += n
	}
	t.Logf("%d kills, %d lines heard, %d keys known, at seq %d, horizon %d", cycles, lines, len(m.told), m.head, m.horizon)
	if !testing.Short() && (lines < 10*cycles || m.head < uint64(5*cycles) || m.horizon == 0) {
		t.Errorf("%d lines and %d events, horizon %d, are little for %d kills: the processes hardly work", lines, m.head, m.horizon, cycles)
	}
}

// killOne starts a process, kills it some time after it has said so many lines, and
// hears what it had said by then.
func (m *killModel) killOne(t *testing.T, dir string, seed uint64, after int, delay time.Duration, tryLock bool) (lines int, err error) {
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
	kill := func() { _ = cmd.Process.Kill() }
	defer cmd.Wait() // it was killed
	defer kill()
	if after == 0 {
		defer time.AfterFunc(delay, kill).Stop()
	}
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
			if _, err := killStore(dir, seed); !errors.Is(err, journal.ErrLocked) {
				return lines, fmt.Errorf("C12: a second process opens the store: %w", err)
			}
		}
		if lines == after {
			defer time.AfterFunc(delay, kill).Stop()
		}
	}
}

// check opens the store and holds it to what was heard.
func (m *killModel) check(dir string, seed uint64) (err error) {
	d, err := killStore(dir, seed)
	if err != nil {
		return fmt.Errorf("open after the kill: %w", err)
	}
	defer func() {
		if err = errors.Join(err, d.Close()); err == nil {
			err = killTemps(filepath.Join(dir, "store"))
		}
	}()
	if err := m.checkFiles(d, dir); err != nil {
		return err
	}
	if err := m.checkReplay(d); err != nil {
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
		rec := d.cat.Get(key)
		m.told[key.String()], m.seq[key.String()] = "register", rec.Gen()
		err := readShard(d, key)
		if errors.Is(err, ErrShardInitializationFailed) { // its source was not there yet
			err = errors.Join(recoverShard(d, dir, key), readShard(d, key))
		}
		if err != nil {
			return fmt.Errorf("I7: shard %s: %w", key, err)
		}
	}
	return nil
}

// checkReplay folds the journal anew, from its base if it has one, and compares that
// with the catalogue, and with the checkpoints. The store goes on meanwhile: it resumes
// what was interrupted.
func (m *killModel) checkReplay(d *DAGStore) error {
	rep, err := d.Check(context.Background())
	if err != nil {
		return fmt.Errorf("I3: replay: %w", err)
	}
	if !rep.OK() {
		return fmt.Errorf("I4, G5: the catalogue at %v is not what a replay gives: %v, checkpoints %v", rep.Position, rep.Differences, rep.Checkpoints)
	}
	if c, ok := d.journal.(journal.Compactor); ok {
		m.horizon = c.Horizon().Seq
	}
	at := rep.Position
	if at.Seq < m.head {
		return fmt.Errorf("I2: the journal ends at %d and was at %d", at.Seq, m.head)
	}
	m.head = at.Seq
	return nil
}

// killTemps finds no unfinished file in a store that was closed.
func killTemps(dir string) error {
	return filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err == nil && (fsio.IsTemp(name) || strings.Contains(e.Name(), ".partial-")) {
			err = fmt.Errorf("C5: %s is left behind", name)
		}
		return err
	})
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
