package main

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/dagstore/dagstore/testdata"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// temporary makes the system's directory for temporary files one of the test's, and
// says that it was left empty.
func temporary(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Setenv("TMP", dir) // Windows
	t.Cleanup(func() {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}

// tables splits the output into the tables of shards, each a state by shard.
func tables(out string) (all []map[string]string) {
	var now map[string]string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) == 6 && f[0] == "SHARD":
			now = map[string]string{}
			all = append(all, now)
		case now != nil && len(f) >= 6 && (f[3] == "eager" || f[3] == "lazy"):
			now[f[0]] = strings.Join(f[3:6], " ")
		default:
			now = nil
		}
	}
	return all
}

// TestRun: the example does what it says, and leaves nothing behind.
func TestRun(t *testing.T) {
	temporary(t)
	var out bytes.Buffer
	if err := run(t.Context(), &out, nil); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	text := out.String()
	for _, want := range []string{
		`1\. Open the store\n   it is new and empty\n   done in `,
		`is in sample-file, shared-http \(`,
		`sample-file  71 +220123 .*\n +sample-fs +71 +220123 .*\n +shared-http +54 +177497 `,
		`is in sample-file, sample-fs, shared-http \(`,
		`acquire says: .*sample-offline.*refused`,
		`shard "sample-offline": ShardStateNew since .*\n.*source "http://127\.0\.0\.1:\d+/shard\.car", lazy`,
		`reopened in `,
		`bytes of it from shared-http in `,
		`Everything is as it should be\. Total: [\d.]+m?s\.\n$`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("no %s", want)
		}
	}
	states := tables(text)
	for i, want := range []map[string]string{
		{"sample-fs": "lazy New -", "shared-http": "eager Initializing -", "sample-offline": "lazy New -"},
		{"sample-file": "eager Available 71", "sample-fs": "lazy New -", "shared-http": "eager Available 54", "sample-offline": "lazy New -"},
		{"sample-file": "eager Serving 71", "sample-fs": "lazy Serving 71", "shared-http": "eager Serving 54", "sample-offline": "lazy New -"},
		{"sample-file": "eager Available 71", "sample-fs": "lazy Available 71", "shared-http": "eager Available 54", "sample-offline": "lazy New -"},
		{"sample-file": "eager Available 71", "sample-fs": "lazy Available 71", "shared-http": "eager Available 54", "sample-offline": "lazy New -"},
	} {
		if len(states) != 5 {
			t.Fatalf("%d tables of shards, want 5", len(states))
		}
		for key, state := range want {
			if states[i][key] != state {
				t.Errorf("table %d: shard %s is %q, want %q", i+1, key, states[i][key], state)
			}
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestOwnFiles: files of the user's are shards like the others, untouched, and a
// directory that was named can be used again.
func TestOwnFiles(t *testing.T) {
	temporary(t)
	dir, mine := t.TempDir(), t.TempDir()
	one, two := filepath.Join(mine, "one.car"), filepath.Join(mine, "two.car")
	for path, data := range map[string][]byte{one: testdata.CarV2, two: testdata.CarShared} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for round, began := range []string{"it is new and empty", "it holds 6 shards of an earlier run"} {
		var out bytes.Buffer
		if err := run(t.Context(), &out, []string{"-dir", dir, "-car", one, two, one}); err != nil {
			t.Fatalf("round %d: %v\n%s", round, err, &out)
		}
		states := tables(out.String())
		last := states[len(states)-1]
		if !strings.Contains(out.String(), began) || last[one] != "eager Available 71" || last[two] != "eager Available 54" {
			t.Errorf("round %d:\n%s", round, &out)
		}
	}
	for path, data := range map[string][]byte{one: testdata.CarV2, two: testdata.CarShared} {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s was changed: %v", path, err)
		}
	}
}

// TestFailures: what goes wrong comes back as an error that says what it is about.
func TestFailures(t *testing.T) {
	temporary(t)
	junk := filepath.Join(t.TempDir(), "junk.car")
	if err := os.WriteFile(junk, testdata.Junk, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{junk}, "junk.car"},
		{[]string{"/no/such.car"}, "/no/such.car"},
		{[]string{"-nosuch"}, "-nosuch"},
		{[]string{"-dir", filepath.Join(junk, "sub")}, "junk.car"},
	} {
		var out bytes.Buffer
		err := run(t.Context(), &out, c.args)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(out.String(), "as it should be") {
			t.Errorf("%q: %v\n%s", c.args, err, &out)
		}
	}
	if err := run(t.Context(), new(bytes.Buffer), []string{"-h"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
	if err := run(t.Context(), full{}, nil); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("output that cannot be written: %v", err)
	}
}

// full is an output that takes nothing.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, fs.ErrInvalid }
