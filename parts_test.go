package dagstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore/index/toplevel"
	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

const partsRoot = "/store"

// partsWorld has sources of which the store needs copies.
type partsWorld struct {
	w *world
}

func newPartsWorld() *partsWorld {
	return &partsWorld{&world{sources: make(map[string]*carSource), free: true}}
}

func (p *partsWorld) mount(name string, n int) mount.Mount {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	src := &carSource{name: name, exists: true, ready: true}
	src.set(simContents()[n%14])
	p.w.sources[name] = src
	return &streamMount{simMount{w: p.w, Name: name, stream: true}}
}

func (p *partsWorld) open(sim fsio.FS, opts ...Option) (*DAGStore, error) {
	all := append([]Option{withFS(sim), WithLogger(slog.New(slog.DiscardHandler)),
		WithMount("stream", &streamMount{simMount{w: p.w, stream: true}})}, opts...)
	return Open(context.Background(), partsRoot, all...)
}

// partsStore is a store at one time: what is on the disk, and what it has.
type partsStore struct {
	sim    *fsio.Sim
	name   string
	head   uint64
	shards map[string]int // name → contents
	newest uint64         // generation
}

// snapshotStore closes a store, checkpointed, and remembers it.
func (p *partsWorld) snapshot(t *testing.T, d *DAGStore, sim *fsio.Sim, name string, shards map[string]int) *partsStore {
	t.Helper()
	s := &partsStore{name: name, shards: maps.Clone(shards)}
	if _, err := d.WaitFor(t.Context(), TopLevelView, Latest()); err != nil {
		t.Fatal(err)
	}
	if err := d.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.head = d.journal.Head().Seq
	d.cat.Snapshot().All(func(r *projection.Record) bool { s.newest = max(s.newest, r.Gen()); return true })
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	s.sim = sim.Clone(1)
	mark, _, err := toplevel.Peek(sim, filepath.Join(partsRoot, partTopLevel))
	if pos, perr := journal.ParseToken(string(mark)); err != nil || perr != nil || pos.Seq != s.head {
		t.Fatalf("the mark of store %s is %v, want %d: %v, %v", name, pos, s.head, err, perr)
	}
	return s
}

// register registers the shards called prefix0 … and reads each.
func (p *partsWorld) register(t *testing.T, d *DAGStore, prefix string, from, to int, shards map[string]int) {
	t.Helper()
	for n := from; n < to; n++ {
		name := fmt.Sprintf("%s%d", prefix, n)
		if _, err := d.RegisterShardSync(t.Context(), shard.KeyFromString(name), p.mount(name, n), RegisterOpts{}); err != nil {
			t.Fatal(err)
		}
		shards[name] = n
	}
}

// makeStores makes a store a, older as it was before and now, and another one, b.
func (p *partsWorld) makeStores(t *testing.T, others int) (older, now, other *partsStore) {
	t.Helper()
	sim, shards := fsio.NewSim(1), map[string]int{}
	open := func(sim *fsio.Sim) *DAGStore {
		d, err := p.open(sim)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := open(sim)
	p.register(t, d, "a", 0, 3, shards)
	older = p.snapshot(t, d, sim, "a", shards)
	d = open(sim)
	if _, err := d.DestroyShardSync(t.Context(), shard.KeyFromString("a0"), DestroyOpts{}); err != nil {
		t.Fatal(err)
	}
	delete(shards, "a0")
	p.register(t, d, "a", 3, 6, shards)
	now = p.snapshot(t, d, sim, "a", shards)
	sim, shards = fsio.NewSim(2), map[string]int{}
	d = open(sim)
	p.register(t, d, "b", 0, others, shards)
	other = p.snapshot(t, d, sim, "b", shards)
	return older, now, other
}

// serves checks that d has these shards and no others, and serves every block of them.
func (p *partsWorld) serves(d *DAGStore, shards map[string]int) error {
	ctx := context.Background()
	if n := len(d.AllShardsInfo()); n != len(shards) {
		return fmt.Errorf("%d shards, want %d", n, len(shards))
	}
	for name, n := range shards {
		key := shard.KeyFromString(name)
		acc, err := d.AcquireShardSync(ctx, key, AcquireOpts{})
		if err != nil {
			return err
		}
		bs, err := acc.Blockstore()
		if err != nil {
			return errors.Join(err, acc.Close())
		}
		for _, want := range simContents()[n%14].blocks {
			got, err := bs.Get(ctx, want.Cid())
			if err != nil || !bytes.Equal(got.RawData(), want.RawData()) {
				return errors.Join(fmt.Errorf("%s: %v", name, err), acc.Close())
			}
			if err := comesToBeFound(ctx, d, key, want.Cid()); err != nil {
				return errors.Join(err, acc.Close())
			}
		}
		if err := acc.Close(); err != nil {
			return err
		}
	}
	return nil
}

// comesToBeFound waits until a block is found in a shard: one whose index was lost may be made
// again once more after it was acquired.
func comesToBeFound(ctx context.Context, d *DAGStore, key shard.Key, c cid.Cid) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		var keys []shard.Key
		if keys, _, err = d.FindShards(ctx, c.Hash(), Latest()); slices.Contains(keys, key) {
			return nil
		}
		runtime.Gosched()
	}
	return fmt.Errorf("%s is not found: %w", key, err)
}

func readAllOf(t *testing.T, sim fsio.FS, path string) []byte {
	t.Helper()
	f, err := sim.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// copyPart copies a part of one store into another disk.
func copyPart(t *testing.T, from *fsio.Sim, part string, to *fsio.Sim) {
	t.Helper()
	dir := filepath.Join(partsRoot, part)
	if err := to.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := from.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if err := writeFile(to, name, readAllOf(t, from, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func namesIn(t *testing.T, fsys fsio.FS, dir string) []string {
	t.Helper()
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

var partNames = []string{partJournal, partIndex, partCopies, partTopLevel, partCheckpoints}

const (
	isPresent = iota
	isMissing
	isEmpty
	isOlder
	isForeign
	numStates
)

var stateNames = []string{"present", "missing", "empty", "older", "foreign"}

// partsCase is one combination.
type partsCase struct {
	states [5]int
	of     [5]*partsStore // nil: nothing in it
}

func (c *partsCase) String() string {
	var b strings.Builder
	for i, s := range c.states {
		fmt.Fprintf(&b, "%s/ %s ", partNames[i], stateNames[s])
	}
	return b.String()
}

// opens says whether the store is to open: what the page in parts.go says, by what the
// stores are and not by what is on the disk.
func (c *partsCase) opens() bool {
	j := c.of[0]
	head := uint64(0)
	if j != nil {
		head = j.head
	}
	same := func(s *partsStore) bool { return s != nil && j != nil && s.name == j.name }
	borne, contradicted := false, false
	for i, s := range c.of[1:] {
		if s == nil {
			continue
		}
		switch partNames[i+1] {
		case partIndex, partCopies:
			if s.newest > head {
				return false
			}
			borne = borne || same(s)
		default:
			if s.head > head {
				return false
			}
			borne = borne || same(s)
			contradicted = contradicted || !same(s)
		}
	}
	return borne || !contradicted
}

// TestParts: every combination of the parts of a store that are there, missing, empty, as
// they were earlier, or of another store (a longer and a shorter one): what Open says,
// that a refusal changes nothing, that an opening removes nothing that no record says is
// over, and that all shards of the journal are served in the end. Proves A6, C10, F19.
func TestParts(t *testing.T) {
	t.Parallel()
	for _, others := range []int{8, 2} {
		p := newPartsWorld()
		older, now, other := p.makeStores(t, others)
		opened, refused := 0, 0
		for n := range numStates * numStates * numStates * numStates * numStates {
			c := &partsCase{}
			changed := 0
			for i, m := 0, n; i < 5; i, m = i+1, m/numStates {
				c.states[i] = m % numStates
				if c.states[i] != isPresent {
					changed++
				}
			}
			// All with up to two that are not as they should be, and a choice of the rest.
			if (testing.Short() || others == 2) && changed > 2 && n%11 != 0 {
				continue
			}
			sim := fsio.NewSim(uint64(n))
			if err := sim.MkdirAll(partsRoot, 0o700); err != nil {
				t.Fatal(err)
			}
			for i, s := range c.states {
				switch s {
				case isPresent:
					c.of[i] = now
				case isOlder:
					c.of[i] = older
				case isForeign:
					c.of[i] = other
				case isEmpty:
					if err := sim.MkdirAll(filepath.Join(partsRoot, partNames[i]), 0o700); err != nil {
						t.Fatal(err)
					}
				}
				if c.of[i] != nil {
					copyPart(t, c.of[i].sim, partNames[i], sim)
				}
			}
			if err := p.try(t, sim, c); err != nil {
				t.Fatalf("%s(another store of %d shards): %v", c, others, err)
			}
			if c.opens() {
				opened++
			} else {
				refused++
			}
		}
		t.Logf("another store of %d shards: %d opened, %d refused", others, opened, refused)
		if opened < 50 || refused < 50 {
			t.Error("the table is one-sided")
		}
	}
}

// try opens the store of a case.
func (p *partsWorld) try(t *testing.T, sim *fsio.Sim, c *partsCase) error {
	t.Helper()
	before := sim.Tree()
	d, err := p.open(sim)
	if !c.opens() {
		var damage *journal.DamageError
		var bad *PartsError
		switch after := sim.Tree(); {
		case err == nil:
			return errors.Join(errors.New("opened"), d.Close())
		case !errors.As(err, &damage) || !errors.As(err, &bad) || len(bad.Parts) != 5:
			return fmt.Errorf("it was refused with %T: %w", err, err)
		case after != before:
			return fmt.Errorf("it was refused, and changed:\n%s\nwas\n%s", after, before)
		case sim.OpenFiles() != 0 || sim.HeldLocks() != 0:
			return fmt.Errorf("left open: %v", sim.OpenNames())
		}
		return nil
	}
	if err != nil {
		return err
	}
	var shards map[string]int
	if c.of[0] != nil {
		shards = c.of[0].shards
	}
	if err := p.serves(d, shards); err != nil {
		return errors.Join(err, d.Close())
	}
	if err := d.Close(); err != nil {
		return err
	}
	// What is another store's is still there, and so is all that a shard needs.
	for i, name := range partNames[:3] {
		if name == partJournal || c.of[i] == nil {
			continue
		}
		now := namesIn(t, sim, filepath.Join(partsRoot, name))
		for _, file := range namesIn(t, c.of[i].sim, filepath.Join(partsRoot, name)) {
			foreign := c.of[0] == nil || c.of[i].name != c.of[0].name
			if foreign && !slices.Contains(now, file) {
				return fmt.Errorf("%s/%s of another store was removed", name, file)
			}
		}
	}
	// And again, with nothing lost.
	if d, err = p.open(sim.Crash()); err != nil {
		return fmt.Errorf("opened again: %w", err)
	}
	return errors.Join(p.serves(d, shards), d.Close())
}

// TestLostTails: the newest events of a store are lost, cut off at any place or read as
// zeros, with a HEAD and without: while anything says that they were there, the store is
// refused as it is. Proves C10, A6.
func TestLostTails(t *testing.T) {
	t.Parallel()
	p := newPartsWorld()
	_, now, _ := p.makeStores(t, 1)
	seg := filepath.Join(partsRoot, partJournal, "0000000000000001.seg")
	whole := readAllOf(t, now.sim, seg)
	end := len(bytes.TrimRight(whole, "\x00"))
	for _, head := range []bool{true, false} {
		for at := 0; at < end; at += 8 {
			for _, zeros := range []bool{true, false} {
				if zeros && at < 80 {
					continue
				}
				sim := now.sim.Clone(1)
				b := bytes.Clone(whole[:at])
				if zeros {
					b = append(b, make([]byte, len(whole)-at)...)
				}
				f, err := sim.OpenFile(seg, os.O_RDWR|os.O_TRUNC, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteAt(b, 0); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(f.Sync(), f.Close()); err != nil {
					t.Fatal(err)
				}
				if !head {
					if err := sim.Remove(filepath.Join(partsRoot, partJournal, "HEAD")); err != nil {
						t.Fatal(err)
					}
				}
				before := sim.Tree()
				d, err := p.open(sim)
				what := fmt.Sprintf("cut at %d of %d, zeros %v, HEAD %v", at, end, zeros, head)
				if err == nil {
					// The mark of a clean end may go.
					if n := d.journal.Head().Seq; n != now.head {
						t.Fatalf("%s: opened with %d of %d events", what, n, now.head)
					}
					if err := d.Close(); err != nil {
						t.Fatal(err)
					}
					continue
				}
				var damage *journal.DamageError
				if !errors.As(err, &damage) {
					t.Fatalf("%s: %v", what, err)
				}
				if errors.As(err, new(*journal.LostError)) {
					for _, witness := range []string{"checkpoints/catalogue-", "toplevel/MANIFEST", "in index/", "in copies/"} {
						// Indices and copies are of the last registration, behind which there is more.
						if strings.HasPrefix(witness, "in ") && at > end-300 {
							continue
						}
						if !strings.Contains(err.Error(), witness) {
							t.Fatalf("%s: %s does not speak: %v", what, witness, err)
						}
					}
					if head != strings.Contains(err.Error(), "journal/HEAD says") {
						t.Fatalf("%s: %v", what, err)
					}
				}
				if after := sim.Tree(); after != before {
					t.Fatalf("%s: it was refused, and changed", what)
				}
			}
		}
	}
}

// TestNewJournal: with WithNewJournal a store without its journal begins anew, and all
// that the former left is in a directory beside, whole: put back, it is the former store.
// Proves A6, F19.
func TestNewJournal(t *testing.T) {
	p := newPartsWorld()
	older, now, _ := p.makeStores(t, 1)
	for _, elsewhere := range []bool{false, true} {
		var opts []Option
		parts := partNames
		sim := now.sim.Clone(1)
		if elsewhere { // what is configured to be elsewhere is moved there
			opts = append(opts, WithConfig(func(c *Config) { c.TransientsDir = "/elsewhere" }))
			if err := sim.MkdirAll("/elsewhere", 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range namesIn(t, sim, partsRoot+"/copies") {
				if err := sim.Rename(partsRoot+"/copies/"+name, "/elsewhere/"+name); err != nil {
					t.Fatal(err)
				}
			}
		}
		whole := sim.Clone(1)
		for round := 1; round <= 2; round++ {
			for _, name := range namesIn(t, sim, partsRoot+"/journal") {
				if err := sim.Remove(partsRoot + "/journal/" + name); err != nil {
					t.Fatal(err)
				}
			}
			if round == 2 {
				copyPart(t, older.sim, partIndex, sim)
			}
			if _, err := p.open(sim, opts...); !errors.As(err, new(*PartsError)) || !strings.Contains(err.Error(), "WithNewJournal") {
				t.Fatalf("round %d, without the option: %v", round, err)
			}
			held := map[string][]string{}
			for _, part := range parts {
				held[part] = namesIn(t, sim, filepath.Join(partsRoot, part))
			}
			held["elsewhere"] = namesIn(t, sim, "/elsewhere")
			d, err := p.open(sim, append(opts, WithNewJournal())...)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.serves(d, nil); err != nil {
				t.Fatal(err)
			}
			shards := map[string]int{}
			p.register(t, d, fmt.Sprintf("new%d-", round), 0, 3, shards)
			if err := errors.Join(p.serves(d, shards), d.Close()); err != nil {
				t.Fatal(err)
			}
			for _, part := range parts {
				dir := fmt.Sprintf("%s/set-aside-%04d/%s", partsRoot, round, part)
				if got := namesIn(t, sim, dir); !slices.Equal(got, held[part]) && !elsewhere {
					t.Errorf("round %d: %s has %v, want %v", round, dir, got, held[part])
				}
			}
			if elsewhere {
				if got := namesIn(t, sim, fmt.Sprintf("/elsewhere/set-aside-%04d", round)); len(got) == 0 || len(got) < len(held["elsewhere"])-1 {
					t.Errorf("round %d: moved %v of %v", round, got, held["elsewhere"])
				}
			}
			// The option does nothing to a store that opens.
			if d, err = p.open(sim, append(opts, WithNewJournal())...); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(p.serves(d, shards), d.Close()); err != nil {
				t.Fatal(err)
			}
		}
		if d, err := p.open(whole, opts...); err != nil {
			t.Fatal(err)
		} else if err := errors.Join(p.serves(d, now.shards), d.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNewJournalCrash: power is lost at every operation while the parts are moved aside.
// What is left is refused or opens as a new store, and nothing of the former is lost.
// Proves A6.
func TestNewJournalCrash(t *testing.T) {
	p := newPartsWorld()
	older, now, _ := p.makeStores(t, 1)
	begin := func(seed uint64) *fsio.Sim {
		sim := now.sim.Clone(seed)
		for _, name := range namesIn(t, sim, partsRoot+"/journal") {
			if err := sim.Remove(partsRoot + "/journal/" + name); err != nil {
				t.Fatal(err)
			}
		}
		copyPart(t, older.sim, partJournal, sim) // an old copy
		return sim.Crash()
	}
	clean := begin(1)
	from := clean.NumOps()
	d, err := p.open(clean, WithNewJournal())
	if err != nil {
		t.Fatal(err)
	}
	to := clean.NumOps()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	everything := func(sim *fsio.Sim) (files []string) {
		for _, dir := range []string{partsRoot, partsRoot + "/set-aside-0001", partsRoot + "/set-aside-0002"} {
			for _, part := range []string{partIndex, partCopies} {
				files = append(files, namesIn(t, sim, filepath.Join(dir, part))...)
			}
		}
		slices.Sort(files)
		return slices.Compact(files)
	}
	want := everything(begin(1))
	for n := from; n < to; n++ {
		sim := begin(n)
		sim.FailAt(n, fsio.FaultCrash)
		if d, err := p.open(sim, WithNewJournal()); err == nil {
			_ = d.Close() // the crash came later than it was open
		}
		sim = sim.Crash()
		if d, err = p.open(sim.Clone(n)); err == nil {
			if len(d.AllShardsInfo()) != 0 {
				t.Errorf("operation %d: half of what was moved is taken for a store", n)
			}
			_ = d.Close()
		} else if !errors.As(err, new(*PartsError)) {
			t.Fatalf("operation %d: %v", n, err)
		}
		if d, err = p.open(sim, WithNewJournal()); err != nil {
			t.Fatalf("operation %d: again: %v", n, err)
		}
		if err := errors.Join(p.serves(d, nil), d.Close()); err != nil {
			t.Fatal(err)
		}
		if got := everything(sim); !slices.Equal(got, want) {
			t.Fatalf("operation %d: %v is left of %v", n, got, want)
		}
	}
}

// logLines collects what is logged at WARN.
type logLines struct{ bytes.Buffer }

func (l *logLines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(&l.Buffer, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// TestLeftoversAtStart: what a start removes is told at WARN, with counts and bytes, and
// stays if the store is told to keep it; of a life that the journal has no record of
// nothing goes either way. Proves A6, C5 (swept by the store).
func TestLeftoversAtStart(t *testing.T) {
	p := newPartsWorld()
	_, now, _ := p.makeStores(t, 1)
	for _, keep := range []bool{false, true} {
		sim := now.sim.Clone(1)
		over := mount.CopyName(1, "a0") // registered by event 1, destroyed since
		other := mount.CopyName(1, "somebody else's")
		later := mount.CopyName(2, "a0") // event 2 is no registration
		for _, name := range []string{over, other, later} {
			for _, file := range []string{"copies/" + name + ".complete", "index/" + name + ".idx"} {
				if err := writeFile(sim, filepath.Join(partsRoot, file), []byte("12345")); err != nil {
					t.Fatal(err)
				}
			}
		}
		var logged logLines
		d, err := p.open(sim, WithLogger(logged.logger()), WithConfig(func(c *Config) { c.KeepLeftovers = keep }))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(p.serves(d, now.shards), d.Close()); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"copies", "index"} {
			names := strings.Join(namesIn(t, sim, filepath.Join(partsRoot, dir)), " ")
			if strings.Contains(names, over) != keep {
				t.Errorf("keep %v: %s has %s", keep, dir, names)
			}
			if !strings.Contains(names, other) || !strings.Contains(names, later) {
				t.Errorf("keep %v: removed without a record: %s has %s", keep, dir, names)
			}
		}
		verb := map[bool]string{false: "removed what", true: "kept what"}[keep]
		for _, want := range []string{verb, "copies=1 indices=1 bytes=10", over, "copies=2 indices=2 bytes=20", "no record"} {
			if !strings.Contains(logged.String(), want) {
				t.Errorf("keep %v: the log does not say %q:\n%s", keep, want, logged.String())
			}
		}
	}
}
