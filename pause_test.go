package dagstore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// TestClockGoesBack: a clock that is set back lengthens no pause. Proves A4.
func TestClockGoesBack(t *testing.T) {
	d, err := Open(t.Context(), t.TempDir(), WithConfig(func(c *Config) { c.IdleHandles = -1 }))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var back atomic.Int64
	d.loop.control(func() {
		d.loop.clock = func() int64 { return time.Now().UnixNano() - back.Load() }
	})
	path := filepath.Join(t.TempDir(), "x.car")
	car := bytes.Clone(testdata.CarV1)
	if err := os.WriteFile(path, car, 0o600); err != nil {
		t.Fatal(err)
	}
	k := shard.KeyFromString("s")
	if _, err := d.RegisterShardSync(t.Context(), k, &mount.FileMount{Path: path}, RegisterOpts{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := d.AcquireShardSync(t.Context(), k, AcquireOpts{}); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	back.Store(int64(time.Hour))
	if err := os.WriteFile(path, car, 0o600); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; <-time.After(20 * time.Millisecond) {
		acc, err := d.AcquireShardSync(t.Context(), k, AcquireOpts{})
		if err == nil {
			acc.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
