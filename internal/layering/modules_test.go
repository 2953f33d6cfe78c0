package layering

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// maxModules is how many modules an importer of the core may have to link, this one
// and those that it wants anyway (go-cid and friends) included.
const maxModules = 30

// heavy are modules that an importer of the core does not pay for. Tests, examples
// and packages beside the core may use them.
var heavy = []string{
	"github.com/ipfs/boxo",
	"github.com/cockroachdb/pebble",
	"github.com/prometheus/client_golang",
	"github.com/urfave/cli",
	"github.com/aws/aws-sdk-go-v2",
}

// light are packages of heavy modules that cost nothing: a file of small functions
// that go-block-format imports.
var light = []string{"github.com/ipfs/boxo/util"}

// TestLinkedModules: the root package, and each of the library below it, links a
// bounded number of modules, and none of the heavy ones. indexbs is beside the core:
// the predecessor's signature there names the archived go-ipfs-blockstore, which
// forwards to boxo.
func TestLinkedModules(t *testing.T) {
	var core []string
	for pkg, e := range table {
		if e.kind != library || e.layer > 4 || e.layer == 4 && pkg != "." {
			continue
		}
		if files, _ := filepath.Glob(filepath.Join(moduleRoot, pkg, "*.go")); len(files) > 0 {
			core = append(core, "./"+pkg)
		}
	}
	slices.Sort(core)
	cmd := exec.Command("go", append([]string{"list", "-deps", "-f", "{{with .Module}}{{.Path}} {{$.ImportPath}}{{end}}"}, core...)...)
	cmd.Dir = moduleRoot
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	var linked []string
	for line := range strings.Lines(string(out)) {
		module, pkg, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue // the standard library
		}
		linked = append(linked, module)
		if slices.Contains(light, pkg) {
			continue
		}
		for _, h := range heavy {
			if module == h || strings.HasPrefix(module, h+"/") {
				t.Errorf("the core links %s: find the import with `go mod why %s`, and move it into tests or a package beside the core", pkg, pkg)
			}
		}
	}
	slices.Sort(linked)
	linked = slices.Compact(linked)
	t.Logf("%d modules linked by the core (at most %d):\n\t%s", len(linked), maxModules, strings.Join(linked, "\n\t"))

	if len(linked) > maxModules {
		t.Errorf("the core links %d modules, at most %d are allowed: find the newcomer with `go mod why -m <module>` and move what needs it into a package of its own", len(linked), maxModules)
	}
}
