//go:build unix

package dagstore_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/internal/carscan/hostile"
	"github.com/dagstore/dagstore/mount"
)

// TestTransientThatIsNoFile: a caller's copy that is a pipe, a socket, a device or a
// directory, or a link to one, and a file mount of such a path, hangs nothing: the source
// is fetched, or the registration fails; and the store closes. Proves S7, F28.
func TestTransientThatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	paths := map[string]string{"pipe": "pipe", "socket": "socket", "directory": ".", "device": os.DevNull, "tape": "/dev/zero", "nothing": "gone"}
	for name, to := range maps.Clone(paths) {
		if !filepath.IsAbs(to) {
			paths[name] = filepath.Join(dir, to)
		}
		link := filepath.Join(dir, "link to "+name)
		if err := os.Symlink(paths[name], link); err != nil {
			t.Fatal(err)
		}
		again := filepath.Join(dir, "link to link to "+name)
		if err := os.Symlink(link, again); err != nil {
			t.Fatal(err)
		}
		paths["link to "+name], paths["link to link to "+name] = link, again
	}
	if err := os.Symlink("circle", filepath.Join(dir, "circle")); err != nil {
		t.Fatal(err)
	}
	paths["circle"] = filepath.Join(dir, "circle")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // for the failing test only
	defer cancel()
	d := open(t, t.TempDir(), dagstore.WithMount("streamed", new(streamed)))
	src := &streamed{mount.BytesMount{Bytes: hostile.V1(hostile.Raw([]byte("a")))}}
	for name, path := range paths {
		if _, err := d.RegisterShardSync(ctx, key("copy of %s", name), src, dagstore.RegisterOpts{ExistingTransient: path}); err != nil {
			t.Errorf("%s as the caller's copy: %v", name, err)
			continue
		}
		acc, err := d.AcquireShardSync(ctx, key("copy of %s", name), dagstore.AcquireOpts{})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := acc.ShardBlockstore().Get(ctx, rawOf("a")); err != nil || string(b.RawData()) != "a" {
			t.Errorf("%s: %v", name, err)
		}
		acc.Close()
		if _, err := d.RegisterShardSync(ctx, key("file %s", name), &mount.FileMount{Path: path}, dagstore.RegisterOpts{}); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s as a file: %v", name, err)
		}
	}
	// One that is a file behind a link is used.
	file := writeFile(t, filepath.Join(dir, "x.car"), src.Bytes)
	if err := os.Symlink(file, filepath.Join(dir, "good")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.RegisterShardSync(ctx, key("good"), src, dagstore.RegisterOpts{ExistingTransient: filepath.Join(dir, "good")}); err != nil {
		t.Fatal(err)
	}
	for _, f := range openFiles(t, dir) {
		t.Errorf("left open: %s", f)
	}
}
