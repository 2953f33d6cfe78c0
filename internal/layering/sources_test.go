package layering

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
	"strconv"
	"strings"
	"sync"
	"testing"
)

const (
	modulePath = "github.com/dagstore/dagstore"
	moduleRoot = "../.."
)

// source is one parsed Go file of this module, whatever system it is built for.
type source struct {
	file    string // slash-separated, from the root of the module
	pkg     string // its folder, a key of table
	name    string // its package clause
	test    bool   // a _test.go file
	imports []imported
	ast     *ast.File
	fset    *token.FileSet
}

type imported struct {
	path string
	as   string // the name it goes by in this file
	pos  token.Pos
}

func (s source) at(p token.Pos) string {
	return fmt.Sprintf("%s:%d", s.file, s.fset.Position(p).Line)
}

// selects reports the uses of pkg.Name in the file, for the package imported from
// importPath under whatever name.
func (s source) selects(importPath string, visit func(name string, pos token.Pos)) {
	for _, imp := range s.imports {
		if imp.path != importPath {
			continue
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			// Obj is set for local names, which hide the import.
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == imp.as && x.Obj == nil {
				visit(sel.Sel.Name, sel.Pos())
			}
			return true
		})
	}
}

// inModule turns an import path into a key of table.
func inModule(importPath string) (string, bool) {
	if importPath == modulePath {
		return ".", true
	}
	return strings.CutPrefix(importPath, modulePath+"/")
}

// sources are all Go files of the module. It walks the folders instead of asking the
// go command, so that files for other systems are judged too. Nested modules and the
// fixtures below packages are left out, as are files for tools only.
func sources(t *testing.T) []source {
	t.Helper()
	all, err := parseOnce()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

var parseOnce = sync.OnceValues(func() ([]source, error) {
	var all []source
	err := filepath.WalkDir(moduleRoot, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(moduleRoot, name)
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
		s, ok, err := parse(name, rel)
		if ok {
			all = append(all, s)
		}
		return err
	})
	return all, err
})

func skipDir(name, rel string) error {
	base := path.Base(rel)
	switch {
	case rel == ".":
		return nil
	case strings.HasPrefix(base, "."), strings.HasPrefix(base, "_"):
		return fs.SkipDir
	case base == "testdata" && rel != "testdata":
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

func parse(name, rel string) (source, bool, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
	if err != nil {
		return source{}, false, err
	}
	for _, group := range file.Comments {
		for _, c := range group.List {
			if c.Pos() < file.Package && (c.Text == "//go:build tools" || c.Text == "//go:build ignore") {
				return source{}, false, nil
			}
		}
	}
	s := source{
		file: rel,
		pkg:  path.Dir(rel),
		name: file.Name.Name,
		test: strings.HasSuffix(rel, "_test.go"),
		ast:  file,
		fset: fset,
	}
	for _, spec := range file.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return source{}, false, err
		}
		as := path.Base(p)
		if spec.Name != nil {
			as = spec.Name.Name
		}
		s.imports = append(s.imports, imported{path: p, as: cmp.Or(as, path.Base(p)), pos: spec.Pos()})
	}
	return s, true, nil
}
