package dagstore_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// TestRefusedAppends: what the journal refuses shows in Health, although the store goes
// on and is ready. Proves C11 (that it shows), G12.
func TestRefusedAppends(t *testing.T) {
	j := newTestJournal()
	d := start(t, dagstore.Config{Journal: j})
	for d.Health().State != dagstore.HealthReady { // the views have begun
		runtime.Gosched()
	}
	if h := d.Health(); h.Refused != (dagstore.RefusedAppends{}) || strings.Contains(h.String(), "refused") {
		t.Fatalf("before: %+v", h.Refused)
	}
	full := errors.New("no space left on device")
	j.failWith(func([]shard.Event) error { return full })
	for i := range 3 {
		if _, err := d.RegisterShardSync(background, key("%d", i), carV1(), dagstore.RegisterOpts{}); !errors.Is(err, full) {
			t.Fatal(err)
		}
	}
	h := d.Health()
	if h.State != dagstore.HealthReady || h.Refused.Count != 3 || h.Refused.Events != 3 || !errors.Is(h.Refused.Err, full) || h.Refused.Last.IsZero() {
		t.Errorf("%s, %+v", h, h.Refused)
	}
	if !strings.Contains(h.String(), "refused 3 appends") || !strings.Contains(h.String(), full.Error()) {
		t.Errorf("for people: %s", h)
	}
	data, err := json.Marshal(h)
	if err != nil || !strings.Contains(string(data), `"refusedAppends":{"count":3,"events":3,"last":"`) || !strings.Contains(string(data), full.Error()) {
		t.Errorf("for programs: %s, %v", data, err)
	}
	j.failWith(nil)
	register(t, d, key("0"), carV1())
	if n := d.Health().Refused.Count; n != 3 {
		t.Errorf("%d appends refused after one that was not", n)
	}
}

// TestUndecided: after a write of unknown outcome no change is refused for what a
// reopening may find otherwise: a key that seems to be taken, a shard that seems not to
// be there or not to be errored. Proves C11 (told only what is so).
func TestUndecided(t *testing.T) {
	j := newTestJournal()
	d := start(t, dagstore.Config{Journal: j})
	register(t, d, key("destroyed"), carV1())
	register(t, d, key("there"), carV1())
	unknown := fmt.Errorf("%w: the cable fell out", journal.ErrOutcomeUnknown)
	j.failWith(func([]shard.Event) error { return unknown })
	release := j.hold()
	results := make(chan dagstore.ShardResult, 2)
	if err := d.RegisterShard(background, key("new"), carV1(), results, dagstore.RegisterOpts{}); err != nil {
		t.Fatal(err)
	}
	if err := d.DestroyShard(background, key("destroyed"), results, dagstore.DestroyOpts{}); err != nil {
		t.Fatal(err)
	}
	// These have passed the door when the outcome becomes unknown.
	late := make(chan dagstore.ShardResult, 2)
	if err := d.DestroyShard(background, key("new"), late, dagstore.DestroyOpts{}); err != nil {
		t.Fatal(err)
	}
	if err := d.RecoverShard(background, key("there"), nil, dagstore.RecoverOpts{}); err != nil {
		t.Fatal(err)
	}
	release()
	for range 2 {
		wantErr(t, "a change of unknown outcome", (<-results).Error, journal.ErrOutcomeUnknown)
	}
	wantErr(t, "destroy of what is being registered", (<-late).Error, dagstore.ErrReadOnly)
	for what, f := range map[string]func() (dagstore.ShardResult, error){
		"register what may be there": func() (dagstore.ShardResult, error) {
			return d.RegisterShardSync(background, key("new"), carV1(), dagstore.RegisterOpts{})
		},
		"register what may be destroyed": func() (dagstore.ShardResult, error) {
			return d.RegisterShardSync(background, key("destroyed"), carV1(), dagstore.RegisterOpts{})
		},
		"destroy what may be there": func() (dagstore.ShardResult, error) {
			return d.DestroyShardSync(background, key("new"), dagstore.DestroyOpts{})
		},
		"recover what may be there": func() (dagstore.ShardResult, error) {
			return d.RecoverShardSync(background, key("new"), dagstore.RecoverOpts{})
		},
		"recover what may be errored": func() (dagstore.ShardResult, error) {
			return d.RecoverShardSync(background, key("there"), dagstore.RecoverOpts{})
		},
	} {
		_, err := f()
		wantErr(t, what, err, dagstore.ErrReadOnly)
		for _, other := range []error{dagstore.ErrShardExists, dagstore.ErrShardUnknown, dagstore.ErrNotErrored} {
			if errors.Is(err, other) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	works(t, d, key("there"))
}
