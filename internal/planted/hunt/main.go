// Command hunt runs the tests against bugs that are planted on purpose. Each bug of
// the registry (bugs.go) must make the test that is named for it fail, within its time;
// without a bug the same tests must pass.
//
//	go run ./internal/planted/hunt                 run all, compare with found.txt
//	go run ./internal/planted/hunt -write          run all, write found.txt and docs/TESTING.md
//	go run ./internal/planted/hunt -only NAME -v   one bug, with the test's output
//	go run ./internal/planted/hunt -page           write docs/TESTING.md only
//
// The test binaries are built once, with the tag "planted"; package internal/planted
// says what that does. They run in their packages' folders and write below a temporary
// directory only, which is removed at the end.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

//go:embed found.txt
var recorded string

const recordFile = "internal/planted/hunt/found.txt"

func main() {
	root := flag.String("root", ".", "root of the module")
	only := flag.String("only", "", "run only the bugs whose names contain this")
	write := flag.Bool("write", false, "write "+recordFile+" and the table in "+page)
	pageOnly := flag.Bool("page", false, "write the table in "+page+" and run nothing")
	verbose := flag.Bool("v", false, "print what the tests printed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	if *pageOnly {
		err = writePage(*root, parseRecord(recorded))
	} else {
		err = hunt(ctx, *root, *only, *write, *verbose)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hunt:", err)
		os.Exit(1)
	}
}

// hunt runs the bugs and judges what came of it.
func hunt(ctx context.Context, root, only string, write, verbose bool) error {
	began := time.Now()
	chosen := make([]bug, 0, len(bugs))
	for _, b := range bugs {
		if strings.Contains(b.name, only) {
			chosen = append(chosen, b)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no bug is called %q", only)
	}
	temp, err := os.MkdirTemp("", "dagstore-hunt-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	r := runner{root: root, temp: temp, verbose: verbose}
	if err := r.build(ctx, chosen); err != nil {
		return err
	}
	built := time.Since(began)
	if err := r.withoutBugs(ctx, chosen); err != nil {
		return err
	}
	found := r.runAll(ctx, chosen)
	if err := ctx.Err(); err != nil {
		return err
	}
	errs := judge(chosen, found, parseRecord(recorded), write)
	fmt.Printf("%d bugs planted, %d found, in %s (%s of it to build)\n", len(chosen), len(found),
		time.Since(began).Round(time.Second), built.Round(time.Second))
	if len(errs) > 0 || !write {
		return errors.Join(errs...)
	}
	merged := parseRecord(recorded)
	for name, f := range found {
		merged[name] = f
	}
	if err := os.WriteFile(filepath.Join(root, filepath.FromSlash(recordFile)), formatRecord(merged), 0o644); err != nil {
		return err
	}
	return writePage(root, merged)
}

// judge says which bugs were not found, and which by another test than the record
// says.
func judge(chosen []bug, found, before map[string]finding, writing bool) (errs []error) {
	for _, b := range chosen {
		f, ok := found[b.name]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("%s is not found by %s of %s: %s. Mend the test, or name one that finds it in bugs.go", b.name, b.run, b.pkg, b.breaks))
		case !writing && before[b.name].test != f.test:
			errs = append(errs, fmt.Errorf("%s is found by %s; %s says %q. Run again with -write", b.name, f.test, recordFile, before[b.name].test))
		}
	}
	return errs
}

func writePage(root string, found map[string]finding) error {
	name := filepath.Join(root, filepath.FromSlash(page))
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	next, err := withTable(text, tableOf(bugs, found))
	if err != nil || bytes.Equal(text, next) {
		return err
	}
	return os.WriteFile(name, next, 0o644)
}
