package journal_test

import (
	"bufio"
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
)

// victimDir names the directory of the journal that this process, started by
// TestKilledProcess, is to append to until it is killed.
const victimDir = "DAGSTORE_TEST_JOURNAL"

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		fmt.Fprintln(os.Stderr, victim(dir))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// victim appends batches for ever and prints the head after each.
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
	}
}

// Proves C12, C1, C4, F27 with real processes on a real disk: a killed writer's lock
// is free, what it acknowledged is there, and the batches are whole.
func TestKilledProcess(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "journal")
	for round := range 5 {
		acked := killOne(t, dir, 5+7*round)
		j, err := journal.OpenFile(fsio.OS(), dir, small)
		must(t, err)
		if got := j.Head().Seq; got < acked {
			t.Fatalf("Head = %d, acknowledged was %d", got, acked)
		}
		for _, b := range journaltest.Collect(t, j, 0) {
			first := b.Events[0].Seq
			want := []journal.Batch{{Events: journaltest.Events(first, len(b.Events)), End: b.End}}
			if diff := journaltest.Diff(want, []journal.Batch{b}); diff != "" {
				t.Fatalf("batch at %d (-want +got):\n%s", first, diff)
			}
		}
		must(t, j.Close())
	}
}

// killOne starts a victim, kills it after it acknowledged n batches, and returns the
// last sequence number that it did acknowledge.
func killOne(t *testing.T, dir string, n int) (acked uint64) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), victimDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for i := 0; lines.Scan(); i++ {
		seq, err := strconv.ParseUint(lines.Text(), 10, 64)
		if err != nil {
			break // the line that the kill cut
		}
		acked = seq
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
