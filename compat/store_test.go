package compat

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	olddagstore "github.com/filecoin-project/dagstore"
	oldindex "github.com/filecoin-project/dagstore/index"
	oldmount "github.com/filecoin-project/dagstore/mount"
	oldshard "github.com/filecoin-project/dagstore/shard"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	"github.com/ipfs/go-datastore/query"
	levelds "github.com/ipfs/go-ds-leveldb"
	ldbopts "github.com/syndtr/goleveldb/leveldb/opt"

	"github.com/dagstore/dagstore"
)

// planned is a shard of the predecessor's store, and how it comes to be what it is.
type planned struct {
	key    string
	scheme string              // of its mount: lotus reads in place, stream needs a copy
	form   int                 // of its CAR, in forms
	blocks int                 // of its own
	do     string              // what is done with it
	state  dagstore.ShardState // that the records of a store that was killed say; 0: there is none
}

func (p *planned) texts() []string { return blocksOf(p.key, p.blocks) }

// id is the name of its source, which cannot have all that a key can.
func (p *planned) id() string { return fmt.Sprintf("piece-%x", sha256.Sum256([]byte(p.key))) }

// What is done with a shard.
const (
	doRegister   = "register"   // and it is available
	doLazy       = "lazy"       // registered lazily and never acquired
	doFirst      = "first"      // registered lazily, acquired and closed
	doServe      = "serve"      // acquired and never closed
	doReclaim    = "reclaim"    // its copy is removed, by a GC
	doOwn        = "own"        // registered with a copy of the caller's
	doJunk       = "junk"       // its source is no CAR
	doAbsent     = "absent"     // its source is not there
	doBegin      = "begin"      // its source stalls at its beginning
	doStall      = "stall"      // its source stalls in its middle
	doRecover    = "recover"    // it failed, is being recovered, and its source stalls
	doDestroy    = "destroy"    // and it is gone
	doReregister = "reregister" // destroyed, and registered with other blocks
	doDrop       = "drop"       // its index is lost
	doCut        = "cut"        // its index is cut off
)

// plans are the shards of a store in all states. many of them are available and small.
func plans(many int) (all []*planned) {
	add := func(key, scheme string, form int, do string, state dagstore.ShardState) {
		all = append(all, &planned{key: key, scheme: scheme, form: form % len(forms), blocks: 5 + len(all)%7, do: do, state: state})
	}
	for i, f := range forms {
		for _, scheme := range []string{"lotus", "stream"} {
			name := scheme + "-" + f.name
			add("avail-"+name, scheme, i, doRegister, dagstore.ShardStateAvailable)
			add("serve-"+name, scheme, i, doServe, dagstore.ShardStateServing)
			add("first-"+name, scheme, i, doFirst, dagstore.ShardStateAvailable)
			add("lazy-"+name, scheme, i, doLazy, dagstore.ShardStateNew)
			add("drop-"+name, scheme, i, doDrop, dagstore.ShardStateAvailable)
			add("cut-"+name, scheme, i, doCut, dagstore.ShardStateAvailable)
			add("reregister-"+name, scheme, i, doReregister, dagstore.ShardStateAvailable)
		}
		add("own-"+f.name, "stream", i, doOwn, dagstore.ShardStateAvailable)
		add("reclaim-"+f.name, "stream", i, doReclaim, dagstore.ShardStateAvailable)
	}
	for _, scheme := range []string{"lotus", "stream"} {
		add("junk-"+scheme, scheme, 0, doJunk, dagstore.ShardStateErrored)
		add("absent-"+scheme, scheme, 0, doAbsent, dagstore.ShardStateErrored)
		add("begin-"+scheme, scheme, 0, doBegin, dagstore.ShardStateInitializing)
		add("stall-"+scheme, scheme, 0, doStall, dagstore.ShardStateInitializing)
		add("recover-"+scheme, scheme, 0, doRecover, dagstore.ShardStateRecovering)
		add("destroy-"+scheme, scheme, 0, doDestroy, 0)
	}
	for i, key := range []string{
		"with space", " before", "after ", "ünïcode-日本語-🙂", "per%2Fcent%", "a:b?c#d&e=f", `quo"te'd`, `back\slash`, "tab\tand\nline",
		"Key", "key", ".hidden", "dot.", "a..b", "transient-x.complete", "x.full.idx", "-", strings.Repeat("long", 40), "{\"k\":\"json\"}", "*",
		"baga6ea4seaqao7s73y24kcutaosvacpdjgfe5pw76ooefnyqw4ynr3d2y6x2mpq",
	} {
		add(key, []string{"lotus", "stream"}[i%2], i, doRegister, dagstore.ShardStateAvailable)
	}
	for i := range many {
		add(fmt.Sprintf("many-%d", i), []string{"lotus", "lotus", "stream"}[i%3], i/3, doRegister, dagstore.ShardStateAvailable)
	}
	return all
}

// root is the directory of a store, laid out as lotus lays it out.
type root string

func (r root) sub(name string) string { return filepath.Join(string(r), name) }
func (r root) pieces() *pieces        { return &pieces{dir: r.sub("pieces")} }

// datastore opens the store's leveldb as lotus does.
func (r root) datastore() (ds.Batching, error) {
	return levelds.NewDatastore(r.sub("datastore"), &levelds.Options{Compression: ldbopts.NoCompression, Strict: ldbopts.StrictAll})
}

// source writes the source of a shard, as it is in the end.
func (p *planned) source(from *pieces, stallAt int) error {
	return from.put(p.id(), forms[p.form].of(carV1(p.texts())), stallAt)
}

// TestMain is also the process that makes a store of the predecessor, and the one that
// takes it over and is killed.
func TestMain(m *testing.M) {
	dir := os.Getenv("COMPAT_MAKE")
	if dir == "" {
		os.Exit(m.Run())
	}
	make := func() error { return makeStore(root(dir), os.Getenv("COMPAT_MODE")) }
	if os.Getenv("COMPAT_MODE") == modeLotus {
		make = func() error { return liveAsLotus(root(dir)) }
	}
	if err := make(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// How a store is made.
const (
	modeKill  = "kill"  // and the process waits to be killed
	modeClose = "close" // and closed
	modeUnder = "under" // many shards, each told of on the way
	modeLotus = "lotus" // not at all: a wrapper takes it over
)

const manyShards = 300

// made has a process make a store of the predecessor in every state.
func made(t *testing.T, mode string) root {
	t.Helper()
	dir := root(t.TempDir())
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "COMPAT_MAKE="+string(dir), "COMPAT_MODE="+mode, "GOLOG_LOG_LEVEL=fatal")
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
	told := 0
	for line := range linesOf(stdout) {
		if told++; line == "made" || mode == modeUnder && told == manyShards/2 {
			break
		}
	}
	if mode == modeClose {
		if err := cmd.Wait(); err != nil {
			t.Fatalf("the predecessor: %v", err)
		}
		return dir
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the predecessor ended before it was killed: %v", err)
	}
	return dir
}

// linesOf are the lines that a process writes.
func linesOf(r io.Reader) iter.Seq[string] {
	return func(yield func(string) bool) {
		s := bufio.NewScanner(r)
		for s.Scan() && yield(s.Text()) {
		}
	}
}

// oldStore is the predecessor's store in lotus's configuration.
type oldStore struct {
	dir root
	src *pieces
	ds  ds.Batching
	idx *oldindex.FSIndexRepo
	d   *olddagstore.DAGStore
}

func openOld(dir root) (*oldStore, error) {
	s := &oldStore{dir: dir, src: dir.pieces()}
	if err := os.MkdirAll(s.src.dir, 0o700); err != nil {
		return nil, err
	}
	reg := oldmount.NewRegistry()
	if err := reg.Register("lotus", &OldLotus{Pieces: s.src}); err != nil {
		return nil, err
	}
	if err := reg.Register("stream", &OldStream{OldLotus{Pieces: s.src}}); err != nil {
		return nil, err
	}
	var err error
	if s.ds, err = dir.datastore(); err != nil {
		return nil, err
	}
	if s.idx, err = oldindex.NewFSRepo(dir.sub("index")); err != nil {
		return nil, err
	}
	failures, traces := make(chan olddagstore.ShardResult, 1), make(chan olddagstore.Trace, 32)
	go func() {
		for range failures {
		}
	}()
	go func() {
		for range traces {
		}
	}()
	s.d, err = olddagstore.NewDAGStore(olddagstore.Config{
		TransientsDir: dir.sub("transients"), IndexRepo: s.idx, Datastore: s.ds, MountRegistry: reg,
		FailureCh: failures, TraceCh: traces, TopLevelIndex: oldindex.NewInverted(s.ds),
		MaxConcurrentIndex: 5, MaxConcurrentReadyFetches: 5, RecoverOnStart: olddagstore.RecoverOnAcquire,
	})
	if err != nil {
		return nil, err
	}
	return s, s.d.Start(context.Background())
}

func (s *oldStore) mount(p *planned) oldmount.Mount {
	if p.scheme == "lotus" {
		return &OldLotus{s.src, p.id()}
	}
	return &OldStream{OldLotus{s.src, p.id()}}
}

// ask sends a request to the predecessor and waits for its answer.
func ask(request func(chan olddagstore.ShardResult) error) (*olddagstore.ShardAccessor, error) {
	out := make(chan olddagstore.ShardResult, 1)
	if err := request(out); err != nil {
		return nil, err
	}
	res := <-out
	return res.Accessor, res.Error
}

func (s *oldStore) register(p *planned, opts olddagstore.RegisterOpts) error {
	_, err := ask(func(out chan olddagstore.ShardResult) error {
		return s.d.RegisterShard(context.Background(), oldshard.KeyFromString(p.key), s.mount(p), out, opts)
	})
	return err
}

func (s *oldStore) acquire(p *planned) (*olddagstore.ShardAccessor, error) {
	return ask(func(out chan olddagstore.ShardResult) error {
		return s.d.AcquireShard(context.Background(), oldshard.KeyFromString(p.key), out, olddagstore.AcquireOpts{})
	})
}

// reach waits until a shard is in a state, in the predecessor's words.
func (s *oldStore) reach(p *planned, state olddagstore.ShardState) error {
	for range 10_000 {
		info, err := s.d.GetShardInfo(oldshard.KeyFromString(p.key))
		if err != nil || info.ShardState == state {
			return err
		}
		<-time.After(time.Millisecond)
	}
	return fmt.Errorf("%q does not become %s", p.key, state)
}

// bring makes a shard what it is planned to be.
func (s *oldStore) bring(p *planned) error {
	wantErr := func(err error) error {
		if err == nil {
			return fmt.Errorf("%s succeeded", p.do)
		}
		return nil
	}
	switch p.do {
	case doJunk:
		if err := s.src.put(p.id(), []byte("junk"), -1); err != nil {
			return err
		}
		return wantErr(s.register(p, olddagstore.RegisterOpts{}))
	case doAbsent:
		return wantErr(s.register(p, olddagstore.RegisterOpts{}))
	case doBegin, doStall:
		at := 0
		if p.do == doStall {
			at = 200 // behind the header and a block
		}
		if err := p.source(s.src, at); err != nil {
			return err
		}
		err := s.d.RegisterShard(context.Background(), oldshard.KeyFromString(p.key), s.mount(p), nil, olddagstore.RegisterOpts{})
		if err != nil {
			return err
		}
		return s.reach(p, olddagstore.ShardStateInitializing)
	case doRecover:
		if err := s.src.put(p.id(), []byte("junk"), -1); err != nil { // what cannot be fetched once, it never fetches again
			return err
		}
		if err := wantErr(s.register(p, olddagstore.RegisterOpts{})); err != nil {
			return err
		}
		if err := p.source(s.src, 200); err != nil {
			return err
		}
		if err := s.d.RecoverShard(context.Background(), oldshard.KeyFromString(p.key), nil, olddagstore.RecoverOpts{}); err != nil {
			return err
		}
		return s.reach(p, olddagstore.ShardStateRecovering)
	case doReregister:
		former := *p
		former.blocks += 20
		if err := former.source(s.src, -1); err != nil {
			return err
		}
		if err := s.register(p, olddagstore.RegisterOpts{}); err != nil {
			return err
		}
		if err := s.destroy(p); err != nil {
			return err
		}
		// It keeps index and copy of a shard that was destroyed; a daemon removes them.
		if _, err := s.idx.DropFullIndex(oldshard.KeyFromString(p.key)); err != nil {
			return err
		}
	}
	if err := p.source(s.src, -1); err != nil {
		return err
	}
	opts := olddagstore.RegisterOpts{LazyInitialization: p.do == doLazy || p.do == doFirst}
	if p.do == doOwn {
		opts.ExistingTransient = s.dir.sub("own-" + p.id())
		if err := os.WriteFile(opts.ExistingTransient, forms[p.form].of(carV1(p.texts())), 0o600); err != nil {
			return err
		}
	}
	if err := s.register(p, opts); err != nil {
		return err
	}
	switch p.do {
	case doFirst, doServe:
		acc, err := s.acquire(p)
		if err != nil || p.do == doServe {
			return err
		}
		if err := acc.Close(); err != nil {
			return err
		}
		return s.reach(p, olddagstore.ShardStateAvailable)
	case doDestroy:
		return s.destroy(p)
	}
	return nil
}

func (s *oldStore) destroy(p *planned) error {
	_, err := ask(func(out chan olddagstore.ShardResult) error {
		return s.d.DestroyShard(context.Background(), oldshard.KeyFromString(p.key), out, olddagstore.DestroyOpts{})
	})
	return err
}

// makeStore makes a store of the predecessor's, in a process of its own.
func makeStore(dir root, mode string) error {
	s, err := openOld(dir)
	if err != nil {
		return err
	}
	all := plans(manyShards)
	if mode == modeUnder {
		all = slices.DeleteFunc(all, func(p *planned) bool { return p.do != doRegister })
	}
	// A GC takes the copies of all shards that nobody uses, so what it is for comes first.
	slices.SortStableFunc(all, func(a, b *planned) int { return strings.Compare(reclaimFirst(b), reclaimFirst(a)) })
	reclaimed := false
	for _, p := range all {
		if p.do != doReclaim && !reclaimed {
			reclaimed = true
			if res, err := s.d.GC(context.Background()); err != nil || res.ShardFailures() > 0 {
				return fmt.Errorf("GC: %v, %w", res, err)
			}
		}
		if err := s.bring(p); err != nil {
			return fmt.Errorf("%s %q: %w", p.do, p.key, err)
		}
		fmt.Println("told", p.do)
	}
	for _, p := range all {
		// A state is written after it is told of; until then the shard is locked.
		if _, err := s.d.GetShardInfo(oldshard.KeyFromString(p.key)); err != nil && p.do != doDestroy {
			return err
		}
	}
	for _, p := range all {
		name := dir.sub(filepath.Join("index", p.key+".full.idx"))
		switch p.do {
		case doDrop:
			err = os.Remove(name)
		case doCut:
			err = os.Truncate(name, 40)
		}
		if err != nil {
			return err
		}
	}
	if mode == modeClose {
		if err := s.d.Close(); err != nil {
			return err
		}
		if err := s.ds.Close(); err != nil {
			return err
		}
	}
	fmt.Println("made")
	if mode == modeClose {
		return nil
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return fmt.Errorf("nobody killed the process: %w", err)
}

func reclaimFirst(p *planned) string {
	if p.do == doReclaim {
		return "first"
	}
	return ""
}

// records are what the predecessor wrote of its shards.
func (r root) records(t *testing.T) map[string]dagstore.PersistedShard {
	t.Helper()
	d, err := r.datastore()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	res, err := namespace.Wrap(d, ds.NewKey("dagstore")).Query(context.Background(), query.Query{})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := res.Rest()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]dagstore.PersistedShard)
	for _, e := range entries {
		var p dagstore.PersistedShard
		if err := json.Unmarshal(e.Value, &p); err != nil {
			t.Fatal(err)
		}
		all[p.Key] = p
	}
	return all
}

// TestThePredecessor: the store that the other tests open is in all states that it is
// meant to be in, and its copies and left-overs are there.
func TestThePredecessor(t *testing.T) {
	dir := made(t, modeKill)
	records := dir.records(t)
	counts := make(map[dagstore.ShardState]int)
	for _, p := range plans(manyShards) {
		rec, ok := records[p.key]
		if ok != (p.do != doDestroy) || ok && rec.State != p.state {
			t.Errorf("%q: %s, want %s: %+v", p.key, rec.State, p.state, rec)
		}
		counts[rec.State]++
	}
	want := []dagstore.ShardState{
		dagstore.ShardStateNew, dagstore.ShardStateInitializing, dagstore.ShardStateAvailable, dagstore.ShardStateServing,
		dagstore.ShardStateRecovering, dagstore.ShardStateErrored,
	}
	for _, s := range want {
		if counts[s] == 0 {
			t.Errorf("no shard is %s: %v", s, counts)
		}
	}
	for glob, least := range map[string]int{
		"transients/transient-*.complete": 100, "transients/transient-*.partial": 3, "index/*.full.idx": manyShards, "index/.version": 1,
	} {
		files, err := filepath.Glob(dir.sub(glob))
		if err != nil || len(files) < least {
			t.Errorf("%d of %s, want %d: %v", len(files), glob, least, err)
		}
	}
	t.Log(slices.Sorted(maps.Keys(counts)), counts)
}
