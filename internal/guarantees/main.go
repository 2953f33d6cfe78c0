// Command guarantees writes docs/GUARANTEES.md: every promise of the library as a row,
// with the tests that prove it.
//
// The rows are rows.md in this folder. The tests say themselves what they prove, in a
// sentence of their doc comment:
//
//	// Proves F3, C6.
//	// Proves N1–N10 for two shards that share a slot.
//	// Proves C10 (journal), C1: one bit, at every byte.
//
// What stands in parentheses, or after the rows up to the end of the sentence, limits
// the proof and is printed with it; what follows a colon is explanation and is not. A
// row without a test is open, and the page says so. Run `make docs` after adding a
// test; a test of this package fails while the page is stale.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

const page = "docs/GUARANTEES.md"

func main() {
	root := flag.String("root", ".", "root of the module")
	write := flag.Bool("write", false, "write "+page+" instead of printing it")
	flag.Parse()
	if err := run(*root, *write); err != nil {
		fmt.Fprintln(os.Stderr, "guarantees:", err)
		os.Exit(1)
	}
}

func run(root string, write bool) error {
	text, err := render(root)
	if err != nil {
		return err
	}
	if !write {
		_, err := os.Stdout.Write(text)
		return err
	}
	name := filepath.Join(root, filepath.FromSlash(page))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o644)
}

// render joins the rows with the proofs found below root.
func render(root string) ([]byte, error) {
	sections, err := parseRows(rowsMD)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, s := range sections {
		for _, r := range s.rows {
			known[r.id] = true
		}
	}
	proofs, err := findProofs(root, known)
	if err != nil {
		return nil, err
	}
	return pageOf(sections, proofs), nil
}
