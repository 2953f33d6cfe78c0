package layering

import (
	"go/ast"
	"go/token"
	"slices"
	"testing"
)

// diskCalls are the functions of package os that reach the disk.
var diskCalls = []string{
	"Chmod", "Chown", "Chtimes", "CopyFS", "Create", "CreateTemp", "Lchown", "Link",
	"Mkdir", "MkdirAll", "MkdirTemp", "NewFile", "Open", "OpenFile", "OpenInRoot", "OpenRoot",
	"ReadDir", "ReadFile", "Remove", "RemoveAll", "Rename", "Symlink", "Truncate", "WriteFile",
}

// readsOfOthers are the functions with which a mount opens files that belong to
// others. Files with these names are read, never written: the store's own files are
// the only ones it changes, and those go through internal/fsio.
var readsOfOthers = []string{"Open", "OpenFile", "OpenInRoot", "OpenRoot"}

// writeFlags make of os.OpenFile a way to write.
var writeFlags = []string{"O_CREATE", "O_WRONLY", "O_RDWR", "O_APPEND", "O_TRUNC"}

// TestDiskGoesThroughFsio: everything that the library writes, and what it reads of
// its own, goes through internal/fsio, or the simulated disk would not see it.
func TestDiskGoesThroughFsio(t *testing.T) {
	for _, f := range sources(t) {
		e := table[f.pkg]
		if f.test || f.pkg == "internal/fsio" || e.kind != library {
			continue
		}
		f.selects("os", func(name string, pos token.Pos) {
			if slices.Contains(diskCalls, name) && !(f.pkg == "mount" && slices.Contains(readsOfOthers, name)) {
				t.Errorf("%s: os.%s: go through an fsio.FS, so that the simulated disk can crash it and fail it", f.at(pos), name)
			}
		})
		for _, scope := range openFileFlags(f) {
			ast.Inspect(scope, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(writeFlags, sel.Sel.Name) {
					t.Errorf("%s: %s: a mount opens files of others for reading only; what the store writes goes through an fsio.FS", f.at(sel.Pos()), sel.Sel.Name)
				}
				return true
			})
		}
		for _, imp := range f.imports {
			if imp.path == "io/ioutil" {
				t.Errorf("%s: io/ioutil: go through an fsio.FS", f.at(imp.pos))
			}
		}
	}
}

// openFileFlags is where the flags of a mount's os.OpenFile can stand: in the call,
// or in a declaration of the package.
func openFileFlags(f source) []ast.Node {
	if f.pkg != "mount" {
		return nil
	}
	var scopes []ast.Node
	for _, d := range f.ast.Decls {
		if g, ok := d.(*ast.GenDecl); ok {
			scopes = append(scopes, g)
		}
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "OpenFile" {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "os" {
					scopes = append(scopes, call)
				}
			}
		}
		return true
	})
	return scopes
}

// TestTestsDoNotSleep: a test that sleeps to wait for something is slow on a fast
// machine and wrong on a slow one. In a synctest bubble time is simulated, and
// sleeping is how one lets it pass.
func TestTestsDoNotSleep(t *testing.T) {
	for _, f := range sources(t) {
		if !f.test && table[f.pkg].kind != suite {
			continue
		}
		bubbles := synctestCalls(f)
		f.selects("time", func(name string, pos token.Pos) {
			if name != "Sleep" {
				return
			}
			for _, b := range bubbles {
				if b.Pos() <= pos && pos < b.End() {
					return
				}
			}
			t.Errorf("%s: time.Sleep: wait on a channel, or put the test into synctest.Test (with the call to Sleep in its function literal)", f.at(pos))
		})
	}
}

func synctestCalls(f source) []*ast.CallExpr {
	var calls []*ast.CallExpr
	for _, imp := range f.imports {
		if imp.path != "testing/synctest" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Test" {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == imp.as {
					calls = append(calls, call)
				}
			}
			return true
		})
	}
	return calls
}

// TestNoTestIsSkipped: a skipped test proves nothing and looks like one that does.
// Long ones may shorten themselves under -short, which is not a skip; fuzz targets and
// rapid's actions may pass over an input.
func TestNoTestIsSkipped(t *testing.T) {
	for _, f := range sources(t) {
		if !f.test && table[f.pkg].kind != suite {
			continue
		}
		for _, call := range skips(f) {
			t.Errorf("%s: make the test run here, put it behind a build constraint of its file, or delete it", f.at(call.Pos()))
		}
	}
}

// skips are the calls of Skip, Skipf and SkipNow on a parameter that is a *testing.T,
// a *testing.B or a testing.TB, outside of what is passed to (*testing.F).Fuzz.
func skips(f source) []*ast.CallExpr {
	var calls []*ast.CallExpr
	ast.Inspect(f.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if sel.Sel.Name == "Fuzz" {
			return false
		}
		x, ok := sel.X.(*ast.Ident)
		if !ok || x.Obj == nil || !slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
			return true
		}
		if field, ok := x.Obj.Decl.(*ast.Field); ok && isTesting(field.Type) {
			calls = append(calls, call)
		}
		return true
	})
	return calls
}

func isTesting(typ ast.Expr) bool {
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	sel, ok := typ.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == "testing"
}
