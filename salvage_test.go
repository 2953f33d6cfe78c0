package dagstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/shard"
)

const salvaged = "/salvaged"

// openAt opens the store in a directory.
func (p *partsWorld) openAt(sim fsio.FS, dir string, opts ...Option) (*DAGStore, error) {
	all := append([]Option{withFS(sim), WithLogger(slog.New(slog.DiscardHandler)), WithMount("stream", &streamMount{simMount{w: p.w, stream: true}})}, opts...)
	return Open(context.Background(), dir, all...)
}

// compacted makes a store whose journal has a base and several segments.
func (p *partsWorld) compacted(t *testing.T) (sim *fsio.Sim, shards map[string]int, digest [32]byte, head journal.Position) {
	t.Helper()
	sim, shards = fsio.NewSim(3), map[string]int{}
	d, err := p.openAt(sim, partsRoot, WithJournalOptions(journal.FileOptions{SegmentSize: 1 << 10, Preallocate: -1}), WithRetention(projection.Retention{Bytes: 1}))
	if err != nil {
		t.Fatal(err)
	}
	for n := range 12 {
		p.register(t, d, "c", n, n+1, shards)
		if _, err := d.WaitFor(t.Context(), TopLevelView, Latest()); err != nil {
			t.Fatal(err)
		}
		if n == 3 || n == 8 {
			gone := fmt.Sprintf("c%d", n-1)
			if _, err := d.DestroyShardSync(t.Context(), shard.KeyFromString(gone), DestroyOpts{}); err != nil {
				t.Fatal(err)
			}
			delete(shards, gone)
		}
		if n < 9 {
			if err := d.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	head, digest = d.journal.Head(), d.cat.Snapshot().Digest()
	if h := d.journal.(journal.Compacted).Horizon(); h.Seq == 0 || h.Seq == head.Seq {
		t.Fatalf("the horizon is %v of %v", h, head)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return sim.Clone(1), shards, digest, head
}

// rescue salvages the store on sim and opens what came of it.
func (p *partsWorld) rescue(t *testing.T, sim *fsio.Sim, what string, opts SalvageOpts) (SalvageReport, *DAGStore) {
	t.Helper()
	opts.fs = sim
	tree := func() string {
		var b strings.Builder
		for _, part := range partNames {
			for _, name := range namesIn(t, sim, filepath.Join(partsRoot, part)) {
				fmt.Fprintf(&b, "%s/%s %x\n", part, name, readAllOf(t, sim, filepath.Join(partsRoot, part, name)))
			}
		}
		return b.String()
	}
	before := tree()
	rep, err := Salvage(t.Context(), partsRoot, salvaged, opts)
	if err != nil {
		t.Fatalf("%s: %v; %+v", what, err, rep)
	}
	if tree() != before {
		t.Fatalf("%s: the former store was changed", what)
	}
	if _, err := Salvage(t.Context(), partsRoot, salvaged, opts); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Fatalf("%s: into the same directory again: %v", what, err)
	}
	d, err := p.openAt(sim.Crash(), salvaged)
	if err != nil {
		t.Fatalf("%s: the new store does not open: %v", what, err)
	}
	if n := len(d.AllShardsInfo()); n != rep.Shards || d.journal.(journal.Compacted).Horizon() != rep.End {
		t.Fatalf("%s: %d shards at %v, the report says %s", what, n, d.journal.(journal.Compacted).Horizon(), rep.String())
	}
	return rep, d
}

// TestSalvage: of a store whose journal is damaged, everything that a checkpoint, the base
// and the segments hold is in the new one, the former is left as it was, and the report
// tells what is certain from what was lost. Proves C10, A6 (salvage).
func TestSalvage(t *testing.T) {
	p := newPartsWorld()
	whole, shards, digest, head := p.compacted(t)
	journalFile := func(suffix string) string {
		names := namesIn(t, whole, partsRoot+"/journal")
		i := slices.IndexFunc(names, func(n string) bool { return strings.HasSuffix(n, suffix) })
		return filepath.Join(partsRoot, "journal", names[i])
	}
	segments := slices.DeleteFunc(namesIn(t, whole, partsRoot+"/journal"), func(n string) bool { return !strings.HasSuffix(n, ".seg") })
	last := filepath.Join(partsRoot, "journal", segments[len(segments)-1])
	removeAll := func(sim *fsio.Sim, dir string) {
		for _, name := range namesIn(t, sim, filepath.Join(partsRoot, dir)) {
			if err := sim.Remove(filepath.Join(partsRoot, dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(sim *fsio.Sim, name string, at int64) {
		if err := sim.FlipBit(name, at); err != nil {
			t.Fatal(err)
		}
	}
	for what, c := range map[string]struct {
		wound   func(sim *fsio.Sim)
		certain bool
	}{
		"nothing":                    {func(*fsio.Sim) {}, true},
		"HORIZON":                    {func(sim *fsio.Sim) { flip(sim, partsRoot+"/journal/HORIZON", 90) }, true},
		"the base":                   {func(sim *fsio.Sim) { flip(sim, journalFile(".base"), 100) }, true},
		"the header of the last":     {func(sim *fsio.Sim) { flip(sim, last, 30) }, true},
		"no checkpoints":             {func(sim *fsio.Sim) { removeAll(sim, "checkpoints") }, true},
		"no checkpoints, no HORIZON": {func(sim *fsio.Sim) { removeAll(sim, "checkpoints"); flip(sim, partsRoot+"/journal/HORIZON", 90) }, true},
		"the last, cut":              {func(sim *fsio.Sim) { mustRewrite(t, sim, last, func(b []byte) []byte { return b[:90] }) }, false},
		"the last, gone":             {func(sim *fsio.Sim) { _ = sim.Remove(last) }, false},
		"no journal":                 {func(sim *fsio.Sim) { removeAll(sim, "journal") }, false},
	} {
		sim := whole.Clone(1)
		c.wound(sim)
		for _, files := range []bool{false, true} {
			rep, d := p.rescue(t, sim.Clone(2), what, SalvageOpts{Files: files})
			if rep.Certain() != c.certain {
				t.Errorf("%s: %s; %v", what, rep.String(), rep.Damage)
			}
			// As it was saved: the store has begun to make indices again.
			saved, err := d.CatalogueAt(t.Context(), rep.End.Seq)
			if c.certain && (err != nil || saved.Digest() != digest || rep.End != head) {
				t.Errorf("%s: said to be certain, and another state: %s", what, rep.String())
			}
			if !c.certain && (rep.End.Seq < head.Seq || rep.End == head) {
				t.Errorf("%s: events are lost, and the new store ends at %v", what, rep.End)
			}
			if files != (rep.Files > 0) {
				t.Errorf("%s: %d files", what, rep.Files)
			}
			have := make(map[string]int)
			for key := range d.AllShardsInfo() {
				n, ok := shards[key.String()]
				if !ok && c.certain {
					t.Errorf("%s: shard %s is back", what, key)
				}
				have[key.String()] = n
			}
			if !c.certain && len(have) < 6 {
				t.Errorf("%s: only %d shards", what, len(have))
			}
			if c.certain && !maps.Equal(have, shards) {
				t.Errorf("%s: %v, want %v", what, have, shards)
			}
			if err := errors.Join(p.serves(d, have), d.Close()); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// TestSalvageHoles: one bit anywhere in a journal that has no checkpoint takes one batch,
// which the report names, and never makes up anything. Proves C10 (salvage).
func TestSalvageHoles(t *testing.T) {
	p := newPartsWorld()
	_, now, _ := p.makeStores(t, 1)
	seg := partsRoot + "/journal/0000000000000001.seg"
	end := int64(len(strings.TrimRight(string(readAllOf(t, now.sim, seg)), "\x00")))
	lost, whole := 0, 0
	for at := int64(0); at < end; at += 13 {
		sim := now.sim.Clone(1)
		for _, name := range namesIn(t, sim, partsRoot+"/checkpoints") {
			if err := sim.Remove(filepath.Join(partsRoot, "checkpoints", name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := sim.FlipBit(seg, at); err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprintf("byte %d of %d", at, end)
		rep, d := p.rescue(t, sim, what, SalvageOpts{})
		n := uint64(0)
		for _, l := range rep.Lost {
			n += l.Last - l.First + 1
		}
		if n > 1 || n == 1 && len(rep.Damage) == 0 { // padding is not missed
			t.Errorf("%s: %s, %v", what, rep.String(), rep.Damage)
		}
		if n == 0 {
			whole++
			if got := len(d.AllShardsInfo()); got != len(now.shards) {
				t.Errorf("%s: %d shards", what, got)
			}
		} else {
			lost++
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if lost == 0 || whole == 0 {
		t.Errorf("%d with a loss, %d without", lost, whole)
	}
	sim := fsio.NewSim(1)
	if _, err := Salvage(t.Context(), "/nothing", salvaged, SalvageOpts{fs: sim}); err == nil {
		t.Error("nothing was salvaged of nothing")
	}
}

func mustRewrite(t *testing.T, sim *fsio.Sim, name string, change func([]byte) []byte) {
	t.Helper()
	b := change(readAllOf(t, sim, name))
	if err := errors.Join(sim.Remove(name), writeFile(sim, name, b)); err != nil {
		t.Fatal(err)
	}
}
