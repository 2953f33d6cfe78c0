package journal_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"go.uber.org/goleak"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
	"github.com/dagstore/dagstore/shard"
)

// victimDir names the directory of the journal that this process, started by a test,
// is to append to until it is killed; readerDir the one that it is to follow.
const (
	victimDir = "DAGSTORE_TEST_JOURNAL"
	readerDir = "DAGSTORE_TEST_JOURNAL_READER"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		fmt.Fprintln(os.Stderr, victim(dir))
		os.Exit(1)
	}
	if dir := os.Getenv(readerDir); dir != "" {
		fmt.Fprintln(os.Stderr, follower(dir))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// victim appends batches for ever, compacts now and then, and prints the head after
// each batch.
func victim(dir string) error {
	j, err := journal.OpenFile(fsio.OS(), dir, small)
	if err != nil {
		return err
	}
	for n := 1; ; n = n%9 + 1 {
		end, err := j.Append(journaltest.Events(j.Head().Seq+1, n))
		if err != nil {
			return err
		}
		fmt.Println(end.Seq)
		if n == 4 {
			state := journaltest.State{}
			state.Apply(journaltest.Events(1, int(end.Seq)))
			if err := j.Compact(context.Background(), end, state.Emit); err != nil {
				return err
			}
		}
	}
}

// follower follows for ever, checks what it sees, and prints its head when that moves.
func follower(dir string) error {
	r, err := journal.OpenReader(readOnly{fsio.OS()}, dir)
	if err != nil {
		return err
	}
	state, at, told := journaltest.State{}, uint64(0), uint64(0)
	for {
		if at, err = followOnce(r, state, at); err != nil {
			return err
		}
		if at > told {
			told = at
			fmt.Println(at)
		}
	}
}

// TestKilledProcess: real processes on a real disk. A killed writer's lock is free,
// what it acknowledged is there, and the batches are whole. A reader in this process
// follows all of them, and shows each batch as soon as it is acknowledged. Proves C12,
// C1, C4, C7, F27, G18.
func TestKilledProcess(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "journal")
	var r *journal.Reader
	state, at := journaltest.State{}, uint64(0)
	look := func(acked uint64) {
		if r == nil {
			var err error
			r, err = journal.OpenReader(readOnly{fsio.OS()}, dir)
			must(t, err)
		}
		var err error
		if at, err = followOnce(r, state, at); err != nil {
			t.Fatal(err)
		}
		if got := r.Head().Seq; got < acked {
			t.Fatalf("the reader shows %d, acknowledged was %d", got, acked)
		}
	}
	for round := range 8 {
		acked := killOne(t, dir, 5+7*round, look)
		look(acked)
		j, err := journal.OpenFile(fsio.OS(), dir, small)
		must(t, err)
		if got := j.Head().Seq; got < acked {
			t.Fatalf("Head = %d, acknowledged was %d", got, acked)
		}
		for _, b := range journaltest.Collect(t, j, j.Horizon().Seq) {
			first := b.Events[0].Seq
			want := []journal.Batch{{Events: journaltest.Events(first, len(b.Events)), End: b.End}}
			if diff := journaltest.Diff(want, []journal.Batch{b}); diff != "" {
				t.Fatalf("batch at %d (-want +got):\n%s", first, diff)
			}
		}
		look(j.Head().Seq)
		must(t, j.Close())
	}
	must(t, r.Close())
}

// TestKilledReader: readers are killed while the writer in this process appends and
// compacts. Nothing of it disturbs the writer, and each next reader finds a whole
// journal. Proves G18, C7.
func TestKilledReader(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "journal")
	j, err := journal.OpenFile(fsio.OS(), dir, small)
	must(t, err)
	defer j.Close()
	appendEvents(t, j, 1)
	for round := range 4 {
		cmd, lines := start(t, readerDir, dir)
		heads := make(chan uint64)
		go func() {
			defer close(heads)
			for lines.Scan() {
				if seq, err := strconv.ParseUint(lines.Text(), 10, 64); err == nil {
					heads <- seq
				}
			}
		}()
		seen := uint64(0)
		// What is written is seen, whatever is compacted in between.
		for n := range 10 + 5*round {
			want := appendEvents(t, j, 1+n%7)
			if n%6 == 5 {
				must(t, j.Compact(t.Context(), want, journaltest.StateAt(foldable(t, j), want.Seq).Emit))
			}
			for seen < want.Seq {
				seq, ok := <-heads
				if !ok {
					t.Fatalf("the reader ended by itself at %d", seen)
				}
				seen = seq
			}
			if seen > j.Head().Seq {
				t.Fatalf("the reader shows %d, the journal is at %d", seen, j.Head().Seq)
			}
		}
		must(t, cmd.Process.Kill())
		for range heads {
		}
		_ = cmd.Wait() // it was killed, and says so
	}
	must(t, j.Close())
	j = mustOpenAt(t, dir)
	batches := foldable(t, j)
	base, err := j.Base(func([]shard.Event) error { return nil })
	if err != nil || base != j.Horizon() || batches[0].End != j.Head() {
		t.Errorf("Base = %v, %v", base, err)
	}
	must(t, j.Close())
}

func mustOpenAt(t *testing.T, dir string) *journal.File {
	t.Helper()
	j, err := journal.OpenFile(fsio.OS(), dir, small)
	must(t, err)
	return j
}

// start starts this test binary as the process that env makes of it.
func start(t *testing.T, env, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), env+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	return cmd, bufio.NewScanner(out)
}

// killOne starts a victim, kills it after it acknowledged n batches, and returns the
// last sequence number that it did acknowledge. look is called after each.
func killOne(t *testing.T, dir string, n int, look func(acked uint64)) (acked uint64) {
	t.Helper()
	cmd, lines := start(t, victimDir, dir)
	for i := 0; lines.Scan(); i++ {
		seq, err := strconv.ParseUint(lines.Text(), 10, 64)
		if err != nil {
			break // the line that the kill cut
		}
		acked = seq
		look(acked)
		if i == n {
			if _, err := journal.OpenFile(fsio.OS(), dir, small); !errors.Is(err, journal.ErrLocked) {
				t.Errorf("OpenFile beside the victim = %v, want ErrLocked", err)
			}
			must(t, cmd.Process.Kill())
		}
	}
	if err := cmd.Wait(); err == nil || acked == 0 {
		t.Fatalf("the victim ended by itself, or at once: %v, %d acknowledged", err, acked)
	}
	return acked
}
