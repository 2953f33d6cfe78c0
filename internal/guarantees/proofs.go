package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// proof is one test that proves a row, perhaps for a part only.
type proof struct {
	test  string // package.Function
	file  string // slash-separated, from the root of the module
	limit string
}

// claim is what one comment says: a row and the part it is proved for.
type claim struct {
	row   string
	limit string
}

// findProofs reads the comments of all functions in test files below root, and in
// ordinary files that import testing, which are the conformance suites. Nested modules
// and fixtures are left out.
func findProofs(root string, known map[string]bool) (map[string][]proof, error) {
	proofs := map[string][]proof{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			return skipDir(name, rel)
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		return proofsOfFile(name, rel, known, proofs)
	})
	for _, ps := range proofs {
		slices.SortFunc(ps, func(a, b proof) int {
			return cmp.Or(cmp.Compare(a.test, b.test), cmp.Compare(a.file, b.file), cmp.Compare(a.limit, b.limit))
		})
	}
	return proofs, err
}

func skipDir(name, rel string) error {
	base := path.Base(rel)
	switch {
	case rel == ".":
		return nil
	case strings.HasPrefix(base, "."), strings.HasPrefix(base, "_"), base == "testdata":
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

func proofsOfFile(name, rel string, known map[string]bool, into map[string][]proof) error {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	if !strings.HasSuffix(rel, "_test.go") && !importsTesting(file) {
		return nil
	}
	for _, decl := range file.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Doc == nil {
			continue
		}
		claims, err := parseClaims(fn.Doc.Text())
		if err != nil {
			return fmt.Errorf("%s:%d: %s: %w", rel, fset.Position(fn.Pos()).Line, fn.Name.Name, err)
		}
		for _, c := range claims {
			if !known[c.row] {
				return fmt.Errorf("%s:%d: %s: there is no row %s; rows stand in internal/guarantees/rows.md", rel, fset.Position(fn.Pos()).Line, fn.Name.Name, c.row)
			}
			into[c.row] = append(into[c.row], proof{
				test:  strings.TrimSuffix(file.Name.Name, "_test") + "." + fn.Name.Name,
				file:  rel,
				limit: c.limit,
			})
		}
	}
	return nil
}

func importsTesting(file *ast.File) bool {
	return slices.ContainsFunc(file.Imports, func(s *ast.ImportSpec) bool { return s.Path.Value == `"testing"` })
}

// The grammar of a claim, after joining lines:
//
//	claim  = "Proves " group { [","] " and" [","] about [","] group } rest
//	group  = item { sep item }
//	item   = row [ dash row ] [ "(" limit ")" ]
//	dash   = "–" | "-" | " to "
//	sep    = "," | "and" | ", and" | ";"
//	rest   = [ limit ] "."  |  ":" explanation  |  end of the paragraph
//
// The limit of rest is that of the last group; about, some words in lower case, is
// the limit of its group if there is no other.
var (
	claimStart = regexp.MustCompile(`\bProves ([A-Z][0-9])`)
	item       = regexp.MustCompile(`^([A-Z])([0-9]+)(?:(?:\s?[–—-]\s?| to )([A-Z]?)([0-9]+))?(?:\s*\(([^)]*)\))?`)
	separator  = regexp.MustCompile(`^(?:\s*[,;]\s*(?:and\s+)?|\s+and\s+)([A-Z][0-9])`)
	newGroup   = regexp.MustCompile(`^,?\s+and,?\s+([a-z][a-z' ]*),?\s+([A-Z][0-9])`)
	sentence   = regexp.MustCompile(`^(.*?)(?:[.:](?:\s|$)|$)`)
	rowToken   = regexp.MustCompile(`\b[FCINGRS][1-9][0-9]?\b`)
)

// parseClaims finds the claims in a doc comment.
func parseClaims(doc string) ([]claim, error) {
	var all []claim
	for _, paragraph := range strings.Split(doc, "\n\n") {
		text := strings.Join(strings.Fields(paragraph), " ")
		for {
			m := claimStart.FindStringSubmatchIndex(text)
			if m == nil {
				break
			}
			var claims []claim
			var err error
			if claims, text, err = parseClaim(text[m[2]:]); err != nil {
				return nil, err
			}
			all = append(all, claims...)
		}
	}
	return all, nil
}

// parseClaim reads one claim from behind the word "Proves" and returns what follows.
func parseClaim(text string) (claims []claim, follows string, err error) {
	group, about := 0, "" // where the last group begins, and its words
	for {
		m := item.FindStringSubmatch(text)
		if m == nil {
			return nil, "", fmt.Errorf("cannot read the rows in %q; write `Proves F3, N1–N10, C6 (journal).`", text)
		}
		cs, err := expand(m[1], m[2], m[3], m[4], m[5])
		if err != nil {
			return nil, "", err
		}
		claims = append(claims, cs...)
		text = text[len(m[0]):]
		if s := separator.FindStringSubmatchIndex(text); s != nil {
			text = text[s[2]:]
			continue
		}
		s := newGroup.FindStringSubmatchIndex(text)
		if s == nil {
			break
		}
		setLimit(claims[group:], about)
		group, about, text = len(claims), text[s[2]:s[3]], text[s[4]:]
	}
	rest := sentence.FindStringSubmatch(text)
	limit := strings.Trim(rest[1], " ,;")
	if row := rowToken.FindString(limit); row != "" {
		return nil, "", fmt.Errorf("row %s stands behind words and would not count; write the rows first, limits in parentheses: `Proves F3 (files), C6.`", row)
	}
	setLimit(claims[group:], cmp.Or(limit, about))
	return claims, text[len(rest[0]):], nil
}

// setLimit limits the claims that have no limit of their own.
func setLimit(claims []claim, limit string) {
	for i := range claims {
		claims[i].limit = cmp.Or(claims[i].limit, limit)
	}
}

// expand turns "N", "1", "N", "10" into N1 … N10.
func expand(letter, first, letter2, last, limit string) ([]claim, error) {
	from, err := strconv.Atoi(first)
	if err != nil {
		return nil, err
	}
	to := from
	if last != "" {
		if to, err = strconv.Atoi(last); err != nil {
			return nil, err
		}
	}
	if to < from || letter2 != "" && letter2 != letter {
		return nil, fmt.Errorf("%s%s–%s%s is no range of rows", letter, first, letter2, last)
	}
	var claims []claim
	for n := from; n <= to; n++ {
		claims = append(claims, claim{row: letter + strconv.Itoa(n), limit: limit})
	}
	return claims, nil
}
