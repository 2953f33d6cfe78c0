// Command scale writes the tables of docs/SCALE.md: what the top-level index costs at
// more entries than one can measure here.
//
// The merges are those that package toplevel would make: [toplevel.Plan] and
// [toplevel.Rest] are driven with the sizes of runs, without the runs. Bytes follow from
// the format of a run; a test holds them to a real one. Rates are measured, and stated
// in the page. Run `go run ./internal/scale -write` after a change; a test of this
// package fails while the page is stale.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

const page = "docs/SCALE.md"

const (
	tablesBegin = "<!-- Written by `go run ./internal/scale -write`; do not edit. -->\n"
	tablesEnd   = "<!-- End of what internal/scale writes. -->\n"
)

func main() {
	root := flag.String("root", ".", "root of the module")
	write := flag.Bool("write", false, "write the tables into "+page+" instead of printing them")
	flag.Parse()
	if err := run(*root, *write); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(root string, write bool) error {
	if !write {
		_, err := os.Stdout.Write(tables())
		return err
	}
	name := filepath.Join(root, filepath.FromSlash(page))
	old, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	text, err := replace(old, tables())
	if err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o644)
}

// replace puts the tables between the marks of a page.
func replace(old, tables []byte) ([]byte, error) {
	// A checkout may have changed the ends of lines.
	old = bytes.ReplaceAll(old, []byte("\r\n"), []byte("\n"))
	head, rest, ok := bytes.Cut(old, []byte(tablesBegin))
	_, tail, ok2 := bytes.Cut(rest, []byte(tablesEnd))
	if !ok || !ok2 {
		return nil, fmt.Errorf("%s: the lines %q and %q are not there, in this order", page, tablesBegin, tablesEnd)
	}
	return bytes.Join([][]byte{head, []byte(tablesBegin), tables, []byte(tablesEnd), tail}, nil), nil
}
