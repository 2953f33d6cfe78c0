package compat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/indexbs"
	"github.com/dagstore/dagstore/shard"
)

// wrapper is what a storage provider's daemon puts around the store, in lotus's manner,
// with the names that the predecessor had and no others.
type wrapper struct {
	src      *pieces
	ds       ds.Batching
	dagst    dagstore.Interface
	bs       *indexbs.IndexBackedBlockstore
	cancel   context.CancelFunc
	loops    sync.WaitGroup
	failures chan dagstore.ShardResult
	traces   chan dagstore.Trace

	mu     sync.Mutex
	traced map[dagstore.OpType]int
	gcs    int
	failed int // failures of GCs
}

// maxRecoverAttempts is how often a daemon tries to recover a shard that fails.
const maxRecoverAttempts = 5

func startWrapper(dir root, gcEvery time.Duration) (*wrapper, error) {
	w := &wrapper{
		src: dir.pieces(), failures: make(chan dagstore.ShardResult, 1), traces: make(chan dagstore.Trace, 32),
		traced: make(map[dagstore.OpType]int),
	}
	if err := os.MkdirAll(w.src.dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if w.ds, err = dir.datastore(); err != nil {
		return nil, err
	}
	cfg, err := config(dir, w.src, w.ds)
	if err != nil {
		return nil, err
	}
	cfg.FailureCh, cfg.TraceCh = w.failures, w.traces
	d, err := dagstore.NewDAGStore(cfg)
	if err != nil {
		return nil, err
	}
	w.dagst = d
	if err := w.dagst.Start(context.Background()); err != nil {
		return nil, err
	}
	if w.bs, err = indexbs.New(context.Background(), &indexbs.IdxBstoreDagstoreFromDagstore{Interface: w.dagst}, indexbs.Options{}); err != nil {
		return nil, err
	}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	w.loops.Go(func() { w.gcLoop(ctx, gcEvery) })
	w.loops.Go(func() { w.traceLoop(ctx) })
	w.loops.Go(func() { dagstore.RecoverImmediately(ctx, d, w.failures, maxRecoverAttempts, nil) })
	return w, nil
}

// gcLoop collects garbage on a timer.
func (w *wrapper) gcLoop(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		res, err := w.dagst.GC(ctx)
		w.mu.Lock()
		switch {
		case err == nil:
			w.gcs++
			w.failed += res.ShardFailures()
		case ctx.Err() == nil:
			w.failed++
		}
		w.mu.Unlock()
	}
}

func (w *wrapper) traceLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case tr := <-w.traces:
			w.mu.Lock()
			w.traced[tr.Op]++
			w.mu.Unlock()
		}
	}
}

func (w *wrapper) close() error {
	w.cancel()
	w.loops.Wait()
	return errors.Join(w.bs.Close(), w.dagst.Close(), w.ds.Close())
}

// registerShard registers a piece; the answer comes to resch.
func (w *wrapper) registerShard(ctx context.Context, piece string, eager bool, resch chan dagstore.ShardResult) error {
	return w.dagst.RegisterShard(ctx, shard.KeyFromString(piece), &LotusMount{Pieces: w.src, ID: piece}, resch, dagstore.RegisterOpts{LazyInitialization: !eager})
}

// loadShard acquires a piece, and registers it first if the store does not know it.
func (w *wrapper) loadShard(ctx context.Context, piece string) (*dagstore.ShardAccessor, error) {
	resch := make(chan dagstore.ShardResult, 1)
	err := w.dagst.AcquireShard(ctx, shard.KeyFromString(piece), resch, dagstore.AcquireOpts{})
	if errors.Is(err, dagstore.ErrShardUnknown) {
		if err = w.registerShard(ctx, piece, false, resch); err != nil && !errors.Is(err, dagstore.ErrShardExists) {
			return nil, err
		}
		if err == nil {
			if res := <-resch; res.Error != nil {
				return nil, res.Error
			}
		}
		err = w.dagst.AcquireShard(ctx, shard.KeyFromString(piece), resch, dagstore.AcquireOpts{})
	}
	if err != nil {
		return nil, err
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case res := <-resch:
		return res.Accessor, res.Error
	}
}

// migrate registers pieces lazily, all at once, and counts the answers.
func (w *wrapper) migrate(ctx context.Context, pieces []string, told func(piece string)) error {
	resch := make(chan dagstore.ShardResult, 32)
	asked := make(chan int, 1)
	go func() {
		n := 0
		for _, p := range pieces {
			err := w.registerShard(ctx, p, false, resch)
			if errors.Is(err, dagstore.ErrShardExists) { // by an earlier process
				err = nil
				resch <- dagstore.ShardResult{Key: shard.KeyFromString(p)}
			}
			if err == nil {
				n++
			}
		}
		asked <- n
	}()
	for answered, want := 0, -1; want < 0 || answered < want; {
		select {
		case want = <-asked:
		case res := <-resch:
			answered++
			if res.Error != nil {
				return fmt.Errorf("%s: %w", res.Key, res.Error)
			}
			told(res.Key.String())
		}
	}
	return nil
}

// initializeAll initialises what is new, n at a time: it acquires and closes.
func (w *wrapper) initializeAll(ctx context.Context, n int) (initialised int, err error) {
	var fresh []string
	for k, info := range w.dagst.AllShardsInfo() {
		if info.ShardState == dagstore.ShardStateNew {
			fresh = append(fresh, k.String())
		}
	}
	slots := make(chan struct{}, n)
	errs := make(chan error, len(fresh))
	for _, p := range fresh {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			acc, err := w.loadShard(ctx, p)
			if err == nil {
				err = acc.Close()
			}
			errs <- err
		}()
	}
	for range fresh {
		err = errors.Join(err, <-errs)
	}
	return len(fresh), err
}

// pieceCID is the piece CID of a deal.
func pieceCID(i int) string {
	h, err := mh.Sum(fmt.Appendf(nil, "deal %d", i), mh.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	d, err := mh.Decode(h)
	if err == nil {
		h, err = mh.Encode(d.Digest, mh.SHA2_256_TRUNC254_PADDED)
	}
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.FilCommitmentUnsealed, h).String()
}

// deals puts the sources of n pieces and returns them.
func deals(src *pieces, n int) (all []string, err error) {
	for i := range n {
		p := pieceCID(i)
		all = append(all, p)
		err = errors.Join(err, src.put(p, forms[i%len(forms)].of(carV1(dealTexts(p))), -1))
	}
	return all, err
}

func dealTexts(piece string) []string { return blocksOf(piece, 4) }

// serves reads all of a piece, by its key and by the multihashes alone.
func (w *wrapper) serves(ctx context.Context, piece string, texts []string) error {
	acc, err := w.loadShard(ctx, piece)
	if err != nil {
		return fmt.Errorf("%s: %w", piece, err)
	}
	defer acc.Close()
	own, err := acc.Blockstore()
	if err != nil {
		return err
	}
	for _, text := range texts {
		c, data := block(text)
		b, err := own.Get(ctx, c)
		if err != nil || !bytes.Equal(b.RawData(), data) {
			return fmt.Errorf("%s: %q: %w", piece, text, err)
		}
		b, err = w.bs.Get(ctx, c)
		for errors.As(err, new(*dagstore.NotFreshError)) && ctx.Err() == nil {
			b, err = w.bs.Get(ctx, c)
		}
		if err != nil || !bytes.Equal(b.RawData(), data) {
			return fmt.Errorf("%s: %q over all shards: %w", piece, text, err)
		}
	}
	return nil
}

const manyDeals = 120

// TestLotus: a wrapper in lotus's manner over a store of the predecessor's: under traffic
// and GC it registers pieces in bulk, initialises what is new, destroys, and recovers what
// fails; after a restart all is as it was.
func TestLotus(t *testing.T) {
	t.Parallel()
	dir := made(t, modeKill)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	if err := dir.pieces().heal(); err != nil {
		t.Fatal(err)
	}
	olds := slices.DeleteFunc(plans(manyShards), func(p *planned) bool { return !p.wasIndexed() })

	w, err := startWrapper(dir, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	all, err := deals(w.src, manyDeals)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var traffic sync.WaitGroup
	for i := range 3 {
		traffic.Go(func() {
			for n := i; ; n += 7 {
				select {
				case <-stop:
					return
				default:
				}
				p := olds[n%len(olds)]
				if err := w.serves(ctx, p.key, p.texts()); err != nil {
					t.Errorf("traffic: %v", err)
					return
				}
			}
		})
	}
	keep, gone := all[:manyDeals-20], all[manyDeals-20:]
	if err := w.migrate(ctx, all, func(string) {}); err != nil {
		t.Errorf("migrate: %v", err)
	}
	// A piece whose CAR is not there in time, and comes.
	late := "late"
	if err := w.src.put(late, []byte("not yet a CAR"), -1); err != nil {
		t.Fatal(err)
	}
	resch := make(chan dagstore.ShardResult, 1)
	if err := w.registerShard(ctx, late, true, resch); err != nil {
		t.Fatal(err)
	}
	if res := <-resch; res.Error == nil {
		t.Error("junk was registered")
	}
	if n, err := w.initializeAll(ctx, 5); err != nil || n < manyDeals {
		t.Errorf("initialised %d: %v", n, err)
	}
	for _, p := range gone {
		if err := w.dagst.DestroyShard(ctx, shard.KeyFromString(p), resch, dagstore.DestroyOpts{}); err != nil {
			t.Fatal(err)
		}
		if res := <-resch; res.Error != nil {
			t.Errorf("destroy: %v", res.Error)
		}
	}
	for _, p := range keep {
		if err := w.serves(ctx, p, dealTexts(p)); err != nil {
			t.Error(err)
		}
	}
	if err := w.src.put(late, carV1(dealTexts(late)), -1); err != nil {
		t.Fatal(err)
	}
	// The daemon's attempts are used up at junk; an operator recovers it.
	w.recover(t, ctx, late)
	close(stop)
	traffic.Wait()
	w.mu.Lock()
	if w.gcs == 0 || w.failed > 0 || w.traced[dagstore.OpShardAcquire] == 0 || w.traced[dagstore.OpShardRecover] == 0 {
		t.Errorf("%d GCs, %d failed; traced %v", w.gcs, w.failed, w.traced)
	}
	w.mu.Unlock()
	before := states(w.dagst)
	if err := w.close(); err != nil {
		t.Fatal(err)
	}

	w, err = startWrapper(dir, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if after := states(w.dagst); len(after) != len(before) {
		t.Errorf("%d shards after the restart, %d before", len(after), len(before))
	} else {
		for k, s := range before {
			if after[k] != s {
				t.Errorf("%q is %s after the restart, was %s", k, after[k], s)
			}
		}
	}
	for _, p := range slices.Concat(keep, []string{late}) {
		if err := w.serves(ctx, p, dealTexts(p)); err != nil {
			t.Error(err)
		}
	}
	for _, p := range olds {
		if err := w.serves(ctx, p.key, p.texts()); err != nil {
			t.Error(err)
		}
	}
	for _, p := range gone {
		if _, err := w.dagst.GetShardInfo(shard.KeyFromString(p)); !errors.Is(err, dagstore.ErrShardUnknown) {
			t.Errorf("the destroyed %s: %v", p, err)
		}
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
}

// states are the states of all shards, those in use as available.
func states(d dagstore.Interface) map[string]dagstore.ShardState {
	all := make(map[string]dagstore.ShardState)
	for k, info := range d.AllShardsInfo() {
		if info.ShardState == dagstore.ShardStateServing {
			info.ShardState = dagstore.ShardStateAvailable
		}
		all[k.String()] = info.ShardState
	}
	return all
}

// recover asks for a recovery until nothing is left to recover.
func (w *wrapper) recover(t *testing.T, ctx context.Context, piece string) {
	t.Helper()
	resch := make(chan dagstore.ShardResult, 1)
	for {
		info, err := w.dagst.GetShardInfo(shard.KeyFromString(piece))
		if err != nil {
			t.Fatal(err)
		}
		if info.ShardState == dagstore.ShardStateAvailable {
			return
		}
		if err := w.dagst.RecoverShard(ctx, shard.KeyFromString(piece), resch, dagstore.RecoverOpts{}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-resch:
		case <-ctx.Done():
			t.Fatalf("%s is not recovered: %s, %v", piece, info.ShardState, info.Error)
		}
	}
}

// TestLotusKilled: the process of a wrapper is killed while it takes a store over, and
// again while it registers in bulk. What it was told is there, and all of what the
// predecessor served.
func TestLotusKilled(t *testing.T) {
	t.Parallel()
	dir := made(t, modeKill)
	records := dir.records(t)
	src := dir.pieces()
	if err := src.heal(); err != nil {
		t.Fatal(err)
	}
	if _, err := deals(src, manyDeals); err != nil {
		t.Fatal(err)
	}
	for _, indices := range []int{1, 40, 150} { // in the middle of the adoption
		runKilled(t, dir, func(lines <-chan string) {
			limit := time.After(30 * time.Second)
			for {
				own, err := filepath.Glob(dir.sub("index/0*-*.idx"))
				if err != nil {
					t.Fatal(err)
				}
				if len(own) >= indices {
					return
				}
				select {
				case <-lines: // more than the adoption is done
					return
				case <-limit:
					t.Fatalf("%d indices after 30 s", len(own))
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
	told := make(map[string]bool)
	for _, n := range []int{5, 60} {
		runKilled(t, dir, func(lines <-chan string) {
			limit := time.After(30 * time.Second)
			for range n {
				select {
				case line := <-lines:
					told[strings.TrimPrefix(line, "told ")] = true
				case <-limit:
					t.Fatalf("%d were told of within 30 s, want %d", len(told), n)
				}
			}
		})
	}
	w := openHere(t, dir)
	if n := len(w.d.AllShardsInfo()); n < len(records)+len(told) {
		t.Errorf("%d shards; %d records, %d more were told of", n, len(records), len(told))
	}
	for k := range told {
		w.holds(&planned{key: k, scheme: "lotus", blocks: 4, do: doLazy})
	}
	for _, p := range plans(manyShards) {
		if p.wasIndexed() {
			w.holds(p)
			if n := w.src.fetchedOf(p.id()); p.scheme == "stream" && p.do != doReclaim && n > 0 {
				t.Errorf("%s %q: fetched %d times, though it has a copy", p.do, p.key, n)
			}
		}
	}
}

// runKilled runs a wrapper in a process of its own, and kills it after until.
func runKilled(t *testing.T, dir root, until func(lines <-chan string)) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "COMPAT_MAKE="+string(dir), "COMPAT_MODE="+modeLotus)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // the process ends with this one
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	read := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(read)
		defer close(lines)
		for line := range linesOf(stdout) {
			select {
			case lines <- line:
			case <-done:
			}
		}
	}()
	until(lines)
	close(done)
	err = cmd.Process.Signal(syscall.SIGKILL)
	<-read
	if werr := cmd.Wait(); err != nil || werr == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the wrapper ended before it was killed: %v, %v", err, werr)
	}
}

// liveAsLotus is the process that runKilled kills: it registers in bulk and says so.
func liveAsLotus(dir root) error {
	w, err := startWrapper(dir, time.Hour) // a GC would take the copies that are looked for
	if err != nil {
		return err
	}
	var all []string
	for i := range manyDeals {
		all = append(all, pieceCID(i))
	}
	if err := w.migrate(context.Background(), all, func(p string) { fmt.Println("told " + p) }); err != nil {
		return err
	}
	if _, err := w.initializeAll(context.Background(), 5); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return fmt.Errorf("nobody killed the process: %w", err)
}
