package journal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"testing"

	ds "github.com/ipfs/go-datastore"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
)

// hookOnce has do asked about the next operation that is wanted, and no other.
func hookOnce(sim *fsio.Sim, wanted func(fsio.Op) bool, do func(fsio.Op) error) {
	done := false
	sim.OnOp(func(op fsio.Op) error {
		if done || !wanted(op) {
			return nil
		}
		done = true
		return do(op)
	})
}

// mustKeep fails unless every crash of sim leaves batches.
func mustKeep(t *testing.T, what string, sim *fsio.Sim, batches []journal.Batch) {
	t.Helper()
	for seed := range uint64(40) {
		j := mustOpen(t, sim.Clone(seed).Crash())
		if diff := journaltest.Diff(batches, journaltest.Collect(t, j, 0)); diff != "" {
			t.Fatalf("%s, crash %d (-want +got):\n%s", what, seed, diff)
		}
		must(t, j.Close())
	}
}

// Proves C2, C3: a batch whose sync failed or never came, and that another opening
// finds, is durable before anybody sees it, though the kernel takes it for clean.
func TestAdoptedIsDurable(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		found := 0
		for first := range 12 { // the batch in question stands at many places
			what := fmt.Sprintf("killed %v, behind %d batches", killed, first)
			sim := newCrashSim(1)
			j := mustOpen(t, sim)
			for range first {
				if _, err := j.Append(journaltest.Events(j.Head().Seq+1, 3)); err != nil {
					t.Fatal(err)
				}
			}
			next := sim
			hookOnce(sim, func(op fsio.Op) bool { return op.Kind == fsio.OpSyncData }, func(fsio.Op) error {
				if killed {
					next = sim.Kill()
				}
				return fsio.FaultEIO
			})
			if _, err := j.Append(journaltest.Events(j.Head().Seq+1, 3)); !errors.Is(err, journal.ErrOutcomeUnknown) {
				t.Fatalf("%s: Append = %v", what, err)
			}
			_ = j.Close()
			j = mustOpen(t, next)
			if j.Head().Seq == uint64(first+1)*3 {
				found++ // a failed sync may have lost it already
			}
			mustKeep(t, what, next, journaltest.Collect(t, j, 0))
			if _, err := j.Append(journaltest.Events(j.Head().Seq+1, 3)); err != nil {
				t.Fatal(err)
			}
			mustKeep(t, what+", and another", next, journaltest.Collect(t, j, 0))
			must(t, j.Close())
		}
		if found == 0 || killed && found < 12 {
			t.Errorf("killed %v: the batch was found %d times of 12", killed, found)
		}
	}
}

// Proves C2, C7: a program killed at any operation, not the machine; another one
// opens the journal and appends; then power is lost.
func TestKilledEverywhere(t *testing.T) {
	t.Parallel()
	want := newHistory(t, crashSizes)
	clean := newCrashSim(1)
	want.fresh().runWith(t, clean, "no fault")
	runs := 0
	for _, op := range clean.Ops() {
		if !op.Kind.Mutates() {
			continue
		}
		for seed := range uint64(4) {
			what := fmt.Sprintf("killed at %v", op)
			sim, h := newCrashSim(seed), want.fresh()
			var next *fsio.Sim
			hookOnce(sim, func(o fsio.Op) bool { return o.Index == op.Index }, func(fsio.Op) error {
				next = sim.Kill()
				return nil
			})
			_ = h.play(sim, crashHalf)
			if next == nil {
				_ = h.play(sim, len(h.batches))
			}
			if next == nil {
				continue // an operation of the last opening
			}
			runs++
			judge(t, what, h.recover(next, min(h.attempted+1, len(h.batches))), false)
			judge(t, what+", crashed", h.recover(next.Crash(), len(h.batches)), false)
		}
	}
	if runs < 200 {
		t.Errorf("only %d runs", runs)
	}
	logCrashPoints(t, 2*int64(runs))
}

// Proves C11, C7: the footer cannot be written; the smaller batch that follows would
// fit into the old segment, but its successor has been begun.
func TestRotationIsResumed(t *testing.T) {
	sim := fsio.NewSim(1)
	j := mustOpen(t, sim)
	if _, err := j.Append(journaltest.Events(1, 7)); err != nil {
		t.Fatal(err)
	}
	rotating := func(op fsio.Op) bool { return op.Kind == fsio.OpWrite && op.Len == 72 }
	hookOnce(sim, rotating, func(fsio.Op) error { return fsio.FaultENOSPC })
	if _, err := j.Append(journaltest.Events(8, 7)); err == nil || errors.Is(err, journal.ErrOutcomeUnknown) {
		t.Fatalf("Append without room for the footer = %v, want an error that is not final", err)
	}
	for _, n := range []int{1, 7} {
		if _, err := j.Append(journaltest.Events(j.Head().Seq+1, n)); err != nil {
			t.Fatal(err)
		}
	}
	if got := j.Stats().Segments; got != 2 {
		t.Fatalf("%d segments, want 2", got)
	}
	mustKeep(t, "resumed", sim, journaltest.Collect(t, j, 0))
	must(t, j.Close())
}

// Proves C3: a failed sync of the directory, when nobody knows whether the new
// segment's name is durable, is as final as that of a file.
func TestFailedSyncDirIsFinal(t *testing.T) {
	sim := fsio.NewSim(1)
	j := mustOpen(t, sim)
	if _, err := j.Append(journaltest.Events(1, 7)); err != nil {
		t.Fatal(err)
	}
	hookOnce(sim, func(op fsio.Op) bool { return op.Kind == fsio.OpSyncDir }, func(fsio.Op) error { return fsio.FaultEIO })
	if _, err := j.Append(journaltest.Events(8, 7)); !errors.Is(err, journal.ErrOutcomeUnknown) {
		t.Fatalf("Append = %v, want ErrOutcomeUnknown", err)
	}
	if _, err := j.Append(journaltest.Events(8, 1)); !errors.Is(err, journal.ErrReadOnly) {
		t.Fatalf("Append after that = %v, want ErrReadOnly", err)
	}
	must(t, j.Close())
}

// Proves C7, C9: a successor whose name a failed sync left in the cache only is made
// durable before its predecessor is sealed: wherever the next opening is cut short,
// the journal opens again and has what was told.
func TestSuccessorBeforeSeal(t *testing.T) {
	sim := fsio.NewSim(1)
	j := mustOpen(t, sim)
	if _, err := j.Append(journaltest.Events(1, 7)); err != nil {
		t.Fatal(err)
	}
	told := journaltest.Collect(t, j, 0)
	hookOnce(sim, func(op fsio.Op) bool { return op.Kind == fsio.OpSyncDir }, func(fsio.Op) error { return fsio.FaultEIO })
	if _, err := j.Append(journaltest.Events(8, 7)); !errors.Is(err, journal.ErrOutcomeUnknown) {
		t.Fatalf("Append = %v, want ErrOutcomeUnknown", err)
	}
	must(t, j.Close())
	for k := uint64(0); ; k++ {
		again := sim.Clone(k)
		again.FailAt(k, fsio.FaultCrash)
		j, err := journal.OpenFile(again, dir, small)
		if err == nil && k < 5 {
			t.Fatalf("opening takes %d operations", k)
		}
		if err == nil {
			_ = j.Close() // which is what is cut short
		}
		mustKeep(t, fmt.Sprintf("cut short at operation %d", k), again, told)
		if err == nil {
			return
		}
	}
}

// overeager is a disk whose next write of a frame is done in full and then reported
// as failed.
type overeager struct {
	*fsio.Sim
	next bool
}

type overeagerFile struct {
	fsio.File
	disk *overeager
}

func (o *overeager) OpenFile(name string, flag int, perm fs.FileMode) (fsio.File, error) {
	f, err := o.Sim.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return overeagerFile{f, o}, nil
}

func (f overeagerFile) WriteAt(b []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(b, off)
	if f.disk.next && err == nil && bytes.HasPrefix(b, []byte("djf")) {
		f.disk.next = false
		return n - 1, fsio.FaultEIO
	}
	return n, err
}

// Proves C11: after "nothing was written" no crash brings the batch back, though all
// of it reached the disk's cache.
func TestNothingWasWritten(t *testing.T) {
	t.Parallel()
	disk := &overeager{Sim: newCrashSim(1)}
	j := mustOpen(t, disk)
	for range 2 {
		if _, err := j.Append(journaltest.Events(j.Head().Seq+1, 1)); err != nil {
			t.Fatal(err)
		}
	}
	before := journaltest.Collect(t, j, 0)
	disk.next = true
	disk.ClearOps()
	if _, err := j.Append(journaltest.Events(3, 1)); err == nil || errors.Is(err, journal.ErrOutcomeUnknown) {
		t.Fatalf("Append = %v, want an error that is not final", err)
	}
	// The cache may have reached the disk before it was cut: only a sync of the cut
	// makes it certain. The simulated disk never writes back that early.
	ops := disk.Ops()
	if n := len(ops); n < 2 || ops[n-2].Kind != fsio.OpTruncate || ops[n-1].Kind != fsio.OpSync {
		t.Errorf("the failed append did not end with truncate, sync: %v", ops)
	}
	mustKeep(t, "after the failure", disk.Sim, before)
	if _, err := j.Append(journaltest.Events(3, 1)); err != nil {
		t.Fatal(err)
	}
	mustKeep(t, "after the next append", disk.Sim, journaltest.Collect(t, j, 0))
	must(t, j.Close())
}

// volatile is a datastore that loses what was not synced, and whose failed Sync
// forgets what there was to sync, as a file system's does.
type volatile struct {
	ds.Datastore
	durable, pending map[ds.Key][]byte
	failSync         bool
}

func newVolatile(durable map[ds.Key][]byte) *volatile {
	v := &volatile{Datastore: ds.NewMapDatastore(), durable: maps.Clone(durable), pending: map[ds.Key][]byte{}}
	for key, value := range durable {
		_ = v.Datastore.Put(context.Background(), key, value) // a map does not fail
	}
	return v
}

func (v *volatile) Put(ctx context.Context, key ds.Key, value []byte) error {
	v.pending[key] = value
	return v.Datastore.Put(ctx, key, value)
}

func (v *volatile) Sync(context.Context, ds.Key) error {
	defer clear(v.pending)
	if v.failSync {
		v.failSync = false
		return fsio.FaultEIO
	}
	maps.Copy(v.durable, v.pending)
	return nil
}

// Proves C2, C3, C4, F27 for the journal in a datastore: what is acknowledged or
// found survives the loss of all that was not synced.
func TestDatastoreAdoptedIsDurable(t *testing.T) {
	open := func(v *volatile) *journal.Datastore {
		t.Helper()
		j, err := journal.OpenDatastore(t.Context(), v)
		must(t, err)
		return j
	}
	appendTo := func(j *journal.Datastore) error {
		_, err := j.Append(journaltest.Events(j.Head().Seq+1, 2))
		return err
	}
	v := newVolatile(map[ds.Key][]byte{})
	j := open(v)
	must(t, appendTo(j))
	if got := open(newVolatile(v.durable)).Head(); got != j.Head() {
		t.Fatalf("after a crash Head = %v, acknowledged was %v", got, j.Head())
	}
	v.failSync = true
	if err := appendTo(j); !errors.Is(err, journal.ErrOutcomeUnknown) {
		t.Fatalf("Append with a failing Sync = %v", err)
	}
	j = open(v)
	if j.Head().Seq != 4 {
		t.Fatalf("Head = %v: the batch should be there to be seen", j.Head())
	}
	must(t, appendTo(j))
	if got := open(newVolatile(v.durable)).Head(); got != j.Head() {
		t.Fatalf("after a crash Head = %v, acknowledged was %v", got, j.Head())
	}
}
