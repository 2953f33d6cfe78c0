package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// limit is how long the test of one bug may take; a test that hangs longer has found
// it. grace is how long the test binary then has to say so itself.
const (
	limit = 45 * time.Second
	grace = 10 * time.Second
)

// runner builds and runs test binaries.
type runner struct {
	root    string
	temp    string
	verbose bool
	mu      sync.Mutex // guards the output
}

func (r *runner) binary(pkg string) string {
	return filepath.Join(r.temp, strings.NewReplacer("/", "_", ".", "root").Replace(pkg)+".test")
}

// build builds the test binaries of all packages with bugs.
func (r *runner) build(ctx context.Context, chosen []bug) error {
	var pkgs []string
	for _, b := range chosen {
		pkgs = append(pkgs, b.pkg)
	}
	slices.Sort(pkgs)
	for _, pkg := range slices.Compact(pkgs) {
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "planted", "-o", r.binary(pkg), "./"+pkg)
		cmd.Dir = r.root
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the tests of %s: %w\n%s", pkg, err, out)
		}
	}
	return nil
}

// setting is what several bugs' tests can be run with in one go.
type setting struct{ pkg, args string }

// withoutBugs runs every test that a bug names, with no bug. All must pass, or their
// failing would prove nothing.
func (r *runner) withoutBugs(ctx context.Context, chosen []bug) error {
	runs := make(map[setting][]string)
	var order []setting
	for _, b := range chosen {
		s := setting{b.pkg, strings.Join(b.args, " ")}
		if runs[s] == nil {
			order = append(order, s)
		}
		if !slices.Contains(runs[s], b.run) {
			runs[s] = append(runs[s], b.run)
		}
	}
	for _, s := range order {
		b := bug{name: "(none)", pkg: s.pkg, run: strings.Join(runs[s], "|"), args: strings.Fields(s.args)}
		res := r.run(ctx, &b, "", limit*2)
		if res.err != nil {
			return fmt.Errorf("without a bug: %s: %s: %w\n%s", s.pkg, b.run, res.err, res.tail())
		}
		if res.began == 0 {
			return fmt.Errorf("%s has no test %s", s.pkg, b.run)
		}
		fmt.Printf("%-34s passes: %d tests of %s, %.1f s\n", b.name, res.began, s.pkg, res.took.Seconds())
	}
	return nil
}

// runAll runs the bugs, as many at a time as there are cores.
func (r *runner) runAll(ctx context.Context, chosen []bug) map[string]finding {
	found := make(map[string]finding)
	work := make(chan *bug)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for b := range work {
				res := r.run(ctx, b, b.name, limit)
				f, ok := res.finding()
				r.mu.Lock()
				if ok {
					found[b.name] = f
				} else {
					f.test = "NOT FOUND"
				}
				fmt.Printf("%-34s %s, %.1f s\n", b.name, f, res.took.Seconds())
				if r.verbose {
					fmt.Println(res.tail())
				}
				r.mu.Unlock()
			}
		})
	}
	for i := range chosen {
		work <- &chosen[i]
	}
	close(work)
	wg.Wait()
	return found
}

// run runs the tests of b with the bug called plant.
func (r *runner) run(ctx context.Context, b *bug, plant string, limit time.Duration) *result {
	ctx, cancel := context.WithTimeout(ctx, limit+grace)
	defer cancel()
	temp, err := os.MkdirTemp(r.temp, "run-")
	if err != nil {
		return &result{err: err}
	}
	defer os.RemoveAll(temp)
	binary, err := filepath.Abs(r.binary(b.pkg))
	if err != nil {
		return &result{err: err}
	}
	args := []string{"-test.v", "-test.failfast", "-test.run", "^(" + b.run + ")$", "-test.timeout", limit.String()}
	cmd := exec.CommandContext(ctx, binary, append(args, b.args...)...)
	cmd.Dir = filepath.Join(r.root, filepath.FromSlash(b.pkg))
	cmd.Env = append(os.Environ(), "DAGSTORE_PLANT="+plant, "TMPDIR="+temp)
	cmd.WaitDelay = time.Second // for what its own children hold open
	res := &result{}
	cmd.Stdout, cmd.Stderr = res, res
	began := time.Now()
	res.err = cmd.Run()
	res.took = time.Since(began)
	res.killed = ctx.Err() != nil
	return res
}

// keptLines is how many of a test's last lines are kept.
const keptLines = 120

// result is what a run of a test binary came to. It reads what the run prints.
type result struct {
	err    error
	took   time.Duration
	killed bool

	rest     []byte
	last     []string
	began    int
	running  string // the test that was begun or went on last
	failed   string // the first that failed
	panicked bool
	hung     bool
}

// Write takes output line by line.
func (r *result) Write(p []byte) (int, error) {
	r.rest = append(r.rest, p...)
	for {
		line, rest, ok := bytes.Cut(r.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		r.line(string(line))
		r.rest = rest
	}
}

var (
	testBegins = regexp.MustCompile(`^=== (RUN|CONT|NAME)\s+(\w+)`)
	testFails  = regexp.MustCompile(`^--- FAIL: (\w+)`)
)

func (r *result) line(s string) {
	if r.last = append(r.last, s); len(r.last) > keptLines {
		r.last = r.last[1:]
	}
	if m := testBegins.FindStringSubmatch(s); m != nil {
		if r.running = m[2]; m[1] == "RUN" && !strings.Contains(s, "/") {
			r.began++
		}
	} else if m := testFails.FindStringSubmatch(s); m != nil && r.failed == "" {
		r.failed = m[1]
	}
	switch {
	case strings.HasPrefix(s, "panic: test timed out"):
		r.hung = true
	case strings.HasPrefix(s, "panic: "), strings.HasPrefix(s, "fatal error: "):
		r.panicked = true
	}
}

func (r *result) tail() string { return strings.Join(r.last, "\n") }

// finding says what the run found; false if all passed, or nothing ran.
func (r *result) finding() (finding, bool) {
	f := finding{test: r.failed}
	if f.test == "" {
		f.test = r.running
	}
	switch {
	case r.err == nil || f.test == "":
		return finding{}, false
	case r.hung || r.killed:
		f.how = "hangs"
	case r.panicked:
		f.how = "panics"
	case r.failed == "":
		return finding{}, false // it could not be run
	default:
		f.how = "fails"
	}
	return f, true
}
