// Quickstart shows what a store does, on real CAR files and without a network: it
// registers shards from a file, an fs.FS and an HTTP server that it starts on
// loopback, looks up a block across them, reads and verifies every block, explains
// why a shard whose origin is down cannot be had, and closes and reopens the store
// to find everything as it was.
//
//	go run ./examples/quickstart                    in a temporary directory
//	go run ./examples/quickstart -dir /tmp/store    in one that stays
//	go run ./examples/quickstart my.car other.car   with CAR files of yours as well
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, os.Args[1:])
	stop()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	default:
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// The shards of the example. Two of them hold the same blocks in different files,
// and a third has a folder in common with both.
var (
	fromFile = shard.KeyFromString("sample-file")
	fromFS   = shard.KeyFromString("sample-fs")
	fromHTTP = shard.KeyFromString("shared-http")
	offline  = shard.KeyFromString("sample-offline")
)

// tour is one run of the example.
type tour struct {
	out  *printer
	dir  string
	mine []shard.Key // the user's own CAR files, by absolute path

	store  *dagstore.DAGStore
	origin *origin // of fromHTTP
	down   *origin // of offline, which goes down
}

// run does everything and says it to w.
func run(ctx context.Context, w io.Writer, args []string) (err error) {
	began := time.Now()
	t := &tour{out: &printer{w: w}}
	keep, err := t.parse(args, w)
	if err != nil {
		return err
	}
	if !keep {
		if t.dir, err = os.MkdirTemp("", "dagstore-quickstart-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(t.dir)) }()
	}
	t.out.line("A store in %s%s.", t.dir, map[bool]string{false: ", which is removed at the end"}[keep])
	defer func() { err = errors.Join(err, t.cleanUp()) }()
	for i, step := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"Open the store", t.open},
		{"Register shards", t.register},
		{"Look up a block across shards", t.lookUp},
		{"Read every block and verify it", t.readAll},
		{"Ask for a shard whose origin is down", t.askOffline},
		{"Close the store, and reopen it without any origin", t.reopen},
	} {
		t.out.line("\n%d. %s", i+1, step.title)
		start := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.title, err)
		}
		t.out.line("   done in %s", rounded(time.Since(start)))
	}
	t.out.line("\nEverything is as it should be. Total: %s.", rounded(time.Since(began)))
	return t.out.err
}

// parse reads the arguments. It says whether the directory is the user's.
func (t *tour) parse(args []string, w io.Writer) (keep bool, err error) {
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(w)
	flags.Usage = func() {
		fmt.Fprintf(w, "Usage: quickstart [-dir DIR] [CAR file]...\n\nShows what a store does, with CAR files of its own and, if given, of yours.\n\n")
		flags.PrintDefaults()
	}
	flags.StringVar(&t.dir, "dir", "", "keep the store in `DIR`; without it a temporary directory is used and removed")
	var cars []string
	flags.Func("car", "register this CAR `file` too; may be repeated, and files may be given without the flag", func(path string) error {
		cars = append(cars, path)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return false, err
	}
	for _, path := range append(cars, flags.Args()...) {
		// Mounts outlive this process: a store wants paths that mean the same tomorrow.
		abs, err := filepath.Abs(path)
		if err == nil {
			_, err = os.Stat(abs)
		}
		if err != nil {
			return false, fmt.Errorf("your CAR file: %w", err)
		}
		if key := shard.KeyFromString(abs); !slices.Contains(t.mine, key) {
			t.mine = append(t.mine, key)
		}
	}
	if t.dir == "" {
		return false, nil
	}
	if t.dir, err = filepath.Abs(t.dir); err == nil {
		err = os.MkdirAll(t.dir, 0o700)
	}
	return true, err
}

func (t *tour) cleanUp() error {
	var errs []error
	if t.store != nil {
		errs = append(errs, t.store.Close())
	}
	for _, o := range []*origin{t.origin, t.down} {
		if o != nil {
			errs = append(errs, o.stop())
		}
	}
	return errors.Join(errs...)
}

// open opens the store. What a mount needs besides its URL, the fs.FS here, is
// given to the store by a template each time.
func (t *tour) open(ctx context.Context) (err error) {
	t.store, err = dagstore.Open(ctx, filepath.Join(t.dir, "store"),
		dagstore.WithMount("fs", &mount.FSMount{FS: testdata.FS}),
		dagstore.WithLogger(quiet()))
	if err != nil {
		return err
	}
	total := 0
	for _, n := range t.store.Stats() {
		total += n
	}
	if total == 0 {
		t.out.line("   it is new and empty")
		return nil
	}
	t.out.line("   it holds %d shards of an earlier run; those that this run uses are destroyed and made afresh", total)
	for _, key := range append([]shard.Key{fromFile, fromFS, fromHTTP, offline}, t.mine...) {
		if _, err := t.store.DestroyShardSync(ctx, key, dagstore.DestroyOpts{}); err != nil && !errors.Is(err, dagstore.ErrShardUnknown) {
			return err
		}
	}
	return nil
}
