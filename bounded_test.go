package dagstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	carindex "github.com/ipld/go-car/v2/index"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
)

var errUnsealing = errors.New("unsealing failed")

// longError is an error of 18 MiB that wraps a short one, as code of others makes them.
type longError struct{ cause error }

func (e longError) Error() string { return strings.Repeat(e.cause.Error()+": ", 1<<20) }
func (e longError) Unwrap() error { return e.cause }

// panickyError is one whose text cannot be had.
type panickyError struct{ error }

func (panickyError) Error() string { panic("no text") }

// TestLongErrors: what is kept of an error of others is bounded, in the journal, in
// memory and in answers, and is still what errors.Is finds. Proves C11 (texts of others).
func TestLongErrors(t *testing.T) {
	dir := t.TempDir()
	failures := make(chan dagstore.ShardResult, 16)
	indexer := func(_ context.Context, k shard.Key, _ mount.Reader) (carindex.Index, error) {
		switch k {
		case key("0"):
			return nil, longError{errUnsealing}
		case key("1"):
			return nil, fmt.Errorf("%w: %w", errUnsealing, errors.New(strings.Repeat("🜁", 5<<20)))
		}
		return nil, panickyError{errUnsealing}
	}
	configure := dagstore.WithConfig(func(c *dagstore.Config) { c.ShardIndexer, c.FailureCh = indexer, failures })
	d := open(t, dir, configure)
	const most = shard.MaxText + 1024
	check := func(d *dagstore.DAGStore, what string, k shard.Key, err error, same bool) {
		t.Helper()
		if err == nil || len(err.Error()) > most {
			t.Errorf("%s: %s is an error of %d bytes", k, what, len(fmt.Sprint(err)))
		}
		if same && k != key("2") && !errors.Is(err, errUnsealing) {
			t.Errorf("%s: %s is no longer what it was: %.100v", k, what, err)
		}
		if k != key("2") && !strings.Contains(err.Error(), " bytes cut)") {
			t.Errorf("%s: %s does not say that it was cut", k, what)
		}
	}
	for i := range 3 {
		k := key("%d", i)
		_, err := d.RegisterShardSync(background, k, carV1(), dagstore.RegisterOpts{})
		check(d, "the answer", k, err, true)
		wantErr(t, "registration", err, dagstore.ErrShardInitializationFailed)
		info, ierr := d.GetShardInfo(k)
		if ierr != nil {
			t.Fatal(ierr)
		}
		check(d, "the shard's error", k, info.Error, false)
		check(d, "what FailureCh hears", k, (<-failures).Error, true)
		x, xerr := d.Explain(k)
		if xerr != nil || len(x.String()) > 4*most {
			t.Errorf("%s: explained in %d bytes, %v", k, len(x.String()), xerr)
		}
	}
	closeStore(t, d)
	segments, err := filepath.Glob(filepath.Join(dir, "journal", "*.seg"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	for _, s := range segments {
		data, err := os.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(strings.TrimRight(string(data), "\x00")); n > 3*most {
			t.Errorf("%s holds %d bytes of three errors", s, n)
		}
	}
	d = open(t, dir, configure)
	for i := range 2 {
		info, err := d.GetShardInfo(key("%d", i))
		if err != nil {
			t.Fatal(err)
		}
		check(d, "the error after a restart", key("%d", i), info.Error, false)
	}
}

// TestMountTooLarge: a mount whose URL the journal cannot record is refused when it is
// registered, with what to do, and those that are registered beside it are not. Proves
// C11 (others unaffected).
func TestMountTooLarge(t *testing.T) {
	d := open(t, t.TempDir())
	large := &mount.BytesMount{Bytes: make([]byte, 60<<20)}
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 50 {
				_, err := d.RegisterShardSync(background, key("%d/%d", w, i), carV1(), dagstore.RegisterOpts{LazyInitialization: true})
				if err != nil {
					t.Errorf("a small one: %v", err)
				}
			}
		})
	}
	for range 3 {
		_, err := d.RegisterShardSync(background, key("large"), large, dagstore.RegisterOpts{LazyInitialization: true})
		wantErr(t, "register 60 MiB", err, dagstore.ErrMountTooLarge)
		if !strings.Contains(err.Error(), "keep the data in a file") || len(err.Error()) > 300 {
			t.Errorf("the error does not say what to do: %v", err)
		}
	}
	_, err := d.RegisterShardSync(background, key("path"), carV1(), dagstore.RegisterOpts{ExistingTransient: strings.Repeat("x", 49<<20)})
	wantErr(t, "register with a path of 49 MiB", err, dagstore.ErrMountTooLarge)
	wg.Wait()
	if _, err := d.GetShardInfo(key("large")); !errors.Is(err, dagstore.ErrShardUnknown) {
		t.Errorf("what was refused is there: %v", err)
	}
	// The largest that is taken is recorded, beside others.
	c := make(chan dagstore.ShardResult, 1001)
	for i := range 1000 {
		if i == 500 {
			n := (48<<20 - len("bytes://") - 100) / 4 * 3
			if err := d.RegisterShard(background, key("largest"), &mount.BytesMount{Bytes: large.Bytes[:n]}, c, dagstore.RegisterOpts{LazyInitialization: true}); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.RegisterShard(background, key("beside/%d", i), carV1(), c, dagstore.RegisterOpts{LazyInitialization: true}); err != nil {
			t.Fatal(err)
		}
	}
	for range 1001 {
		if res := <-c; res.Error != nil {
			t.Errorf("%s: %v", res.Key, res.Error)
		}
	}
}

// TestLargeEventsGoAlone: a journal over something that takes no large values refuses
// the large registration, and none that was made at the same time. Proves C11 (others
// unaffected).
func TestLargeEventsGoAlone(t *testing.T) {
	j := newTestJournal()
	d := start(t, dagstore.Config{Journal: j})
	j.failWith(func(events []shard.Event) error {
		for i := range events {
			if len(events[i].State.URL) > 1<<20 {
				return journal.ErrTooLarge
			}
		}
		return nil
	})
	release := j.hold() // so that what comes is collected
	results := make(chan dagstore.ShardResult, 100)
	for i := range 100 {
		var m mount.Mount = carV1()
		if i%10 == 5 {
			m = &mount.BytesMount{Bytes: make([]byte, 2<<20)}
		}
		if err := d.RegisterShard(background, key("%d", i), m, results, dagstore.RegisterOpts{LazyInitialization: true}); err != nil {
			t.Fatal(err)
		}
	}
	d.Metrics() // the loop has taken some of them
	release()
	for range 100 {
		res := <-results
		large := strings.HasSuffix(res.Key.String(), "5")
		if large != errors.Is(res.Error, journal.ErrTooLarge) || !large && res.Error != nil {
			t.Errorf("%s: %v", res.Key, res.Error)
		}
	}
}
