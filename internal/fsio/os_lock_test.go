//go:build unix

package fsio

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

const lockEnv = "FSIO_TEST_HOLD_LOCK"

// TestMain lets the test binary play the process that holds a lock until killed.
func TestMain(m *testing.M) {
	name := os.Getenv(lockEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	if _, err := OS().Lock(name); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	runtime.GC() // a lock lasts though nobody keeps its handle
	fmt.Println("locked")
	_, _ = os.Stdin.Read(make([]byte, 1)) // for ever: the test writes nothing and keeps it open
}

// Proves C12, for its part: another process is kept out, and a killed holder's lock
// is free.
func TestKilledHolder(t *testing.T) {
	name := filepath.Join(t.TempDir(), "LOCK")
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), lockEnv+"="+name)
	in, err := cmd.StdinPipe()
	must(t, err)
	defer in.Close()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	said, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || said != "locked\n" {
		t.Fatalf("the other process said %q, %v", said, err)
	}
	_, err = OS().Lock(name)
	wantErr(t, err, ErrLocked)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	l, err := OS().Lock(name)
	must(t, err)
	must(t, l.Close())
}
