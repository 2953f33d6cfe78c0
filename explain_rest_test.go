package dagstore_test

import (
	"strings"
	"testing"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// TestExplainAtRest: nothing is the matter with a shard that is available and closed, and
// its explanation begins with that, whether its source is read in place or copied. Proves
// N10 (a shard at rest).
func TestExplainAtRest(t *testing.T) {
	r := registry(t, nil)
	if err := r.Register("stream", &streamMount{}); err != nil {
		t.Fatal(err)
	}
	d := start(t, dagstore.Config{MountRegistry: r, IdleHandles: -1})
	copied := key("copied")
	register(t, d, key("direct"), carV1())
	register(t, d, copied, &streamMount{mount.BytesMount{Bytes: testdata.CarV1}})
	for _, k := range []shard.Key{key("direct"), copied} {
		atRest(t, d, k)
	}
	if _, err := d.GC(background); err != nil {
		t.Fatal(err)
	}
	atRest(t, d, copied) // without its copy
	if _, err := d.RegisterShardSync(background, key("bad"), junk(), dagstore.RegisterOpts{}); err == nil {
		t.Fatal("junk")
	}
	x, err := d.Explain(key("bad"))
	if err != nil || strings.Contains(x.String(), "available;") || !strings.Contains(x.String(), "last failure") {
		t.Errorf("of an errored shard: %s, %v", x, err)
	}
}

func atRest(t *testing.T, d *dagstore.DAGStore, k shard.Key) {
	t.Helper()
	for { // until what opened it has closed it
		x, err := d.Explain(k)
		if err != nil {
			t.Fatal(err)
		}
		if x.Machine.Handle != "closed" || x.Machine.Job != "" || x.Machine.Data == "removing" {
			continue
		}
		lines := strings.Split(x.String(), "\n")
		if len(lines) < 3 || lines[2] != "available; an acquire opens it" || strings.Contains(x.String(), "needs") {
			t.Errorf("%s", x)
		}
		return
	}
}
