package dagstore_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

// fetchedMount counts how often a source was opened.
type fetchedMount struct {
	mount.BytesMount
	fetches *atomic.Int64
}

func (m *fetchedMount) Fetch(ctx context.Context) (mount.Reader, error) {
	m.fetches.Add(1)
	return m.BytesMount.Fetch(ctx)
}

// many yields n registrations.
func many(n int, opts dagstore.RegisterOpts) iter.Seq[dagstore.Registration] {
	return func(yield func(dagstore.Registration) bool) {
		for i := range n {
			m := carV1()
			if i%10 == 9 {
				m = junk()
			}
			if !yield(dagstore.Registration{Key: key("%d", i), Mount: m, Opts: opts}) {
				return
			}
		}
	}
}

// TestRegisterMany: each of many registrations is answered once, refused ones too, and
// those that fail stop nobody. Proves N2 (many at once).
func TestRegisterMany(t *testing.T) {
	for _, lazy := range []bool{true, false} {
		t.Run(fmt.Sprint("lazy=", lazy), func(t *testing.T) {
			d := start(t, dagstore.Config{})
			register(t, d, key("5"), carV1()) // taken
			const n = 1000                    // of which a hundred fail, and one more
			told := make(map[shard.Key]error, n)
			last := 0
			rep, err := d.RegisterMany(background, many(n, dagstore.RegisterOpts{LazyInitialization: lazy}), func(p dagstore.Progress) {
				if _, twice := told[p.Result.Key]; twice {
					t.Errorf("%s is answered twice", p.Result.Key)
				}
				told[p.Result.Key] = p.Result.Error
				if last++; p.Done != last {
					t.Errorf("done %d after %d", p.Done, last)
				}
			})
			failed := 1
			if !lazy {
				failed += n / 10
			}
			if err != nil || rep.Done != n || rep.Failed != failed || len(told) != n || len(rep.Failures) != min(failed, 100) {
				t.Fatalf("%d of %d done, %d failed of %d, %d told, %v", rep.Done, n, rep.Failed, failed, len(told), err)
			}
			wantErr(t, "a key that is taken", told[key("5")], dagstore.ErrShardExists)
			for _, k := range []shard.Key{key("0"), key("998")} {
				if told[k] != nil {
					t.Errorf("%s: %v", k, told[k])
				}
				works(t, d, k)
			}
		})
	}
}

// TestRegisterManyCancelled: when its context ends, RegisterMany takes no more, waits for
// nothing that is stuck, and returns the context's error. Proves F14 (many at once).
func TestRegisterManyCancelled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		ctx, cancel := context.WithCancel(background)
		taken := 0
		endless := func(yield func(dagstore.Registration) bool) {
			for ; yield(dagstore.Registration{Key: key("%d", taken), Mount: &gateMount{carV1(), g}}); taken++ {
				if taken == 100 {
					settle() // they have begun
					cancel()
				}
			}
		}
		rep, err := d.RegisterMany(ctx, endless, nil)
		if !errors.Is(err, context.Canceled) || taken > 101 || rep.Done != rep.Failed || rep.Done < 100 {
			t.Errorf("%d taken, %+v, %v", taken, rep, err)
		}
		g.letIn(200)
		settle()
		if n := d.Stats()[dagstore.ShardStateAvailable]; n < 100 {
			t.Errorf("%d of those that had begun are available", n)
		}
		closeStore(t, d)
		if _, err := d.RegisterMany(background, endless, nil); !errors.Is(err, dagstore.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestInitialize: a lazy shard is initialised by one reading of its source, without being
// kept open; who asks while it goes on waits for it, and what has an outcome is told it.
// Proves N2 (Initialize).
func TestInitialize(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		k, bad := key("k"), key("bad")
		registerLazily(t, d, k, &gateMount{carV1(), g})
		registerLazily(t, d, bad, junk())
		results := make(chan error, 3)
		impatient, leave := context.WithCancel(background)
		go func() {
			_, err := d.Initialize(impatient, k)
			results <- err
		}()
		settle()
		for range 2 {
			go func() {
				_, err := d.Initialize(background, k)
				results <- err
			}()
		}
		settle()
		wantState(t, d, k, dagstore.ShardStateInitializing)
		leave()
		settle()
		wantErr(t, "who left", <-results, context.Canceled)
		g.letIn(1) // and no more
		settle()
		for range 2 {
			if err := <-results; err != nil {
				t.Errorf("initialize: %v", err)
			}
		}
		wantState(t, d, k, dagstore.ShardStateAvailable)
		if begun, inside, _ := g.count(); begun != 1 || inside != 0 {
			t.Errorf("the source was opened %d times", begun)
		}
		if n := d.Metrics().OpenHandles; n != 0 {
			t.Errorf("%d handles are open", n)
		}
		if res, err := d.Initialize(background, k); err != nil || res.Seq != 0 {
			t.Errorf("of an available shard: %+v, %v", res, err)
		}
		_, err := d.Initialize(background, bad)
		wantErr(t, "junk", err, dagstore.ErrShardInitializationFailed)
		_, err = d.Initialize(background, bad)
		wantErr(t, "what is errored", err, dagstore.ErrShardInitializationFailed)
		_, err = d.Initialize(background, key("none"))
		wantErr(t, "none", err, dagstore.ErrShardUnknown)
		g.letIn(10)
		works(t, d, k)
	})
}

// TestInitializeAll: all lazy shards are initialised, so many at a time, each source
// opened once, with progress told for each; RecoverAll does the same for what is errored
// and meant. Proves N2 (many at once).
func TestInitializeAll(t *testing.T) {
	var fetches atomic.Int64
	r := registry(t, nil)
	if err := r.Register("fetched", &fetchedMount{fetches: &fetches}); err != nil {
		t.Fatal(err)
	}
	d := start(t, dagstore.Config{MountRegistry: r})
	const n = 200
	for i := range n {
		data := testdata.CarV1
		if i%4 == 3 {
			data = testdata.Junk
		}
		registerLazily(t, d, key("%d", i), &fetchedMount{mount.BytesMount{Bytes: data}, &fetches})
	}
	register(t, d, key("there"), carV1())
	check := func(what string, total, failed int) func(dagstore.Progress) {
		done := 0
		return func(p dagstore.Progress) {
			if done++; p.Done != done || p.Total != total || p.Result.Key == (shard.Key{}) {
				t.Errorf("%s: progress %+v after %d of %d", what, p, done, total)
			}
			if p.Done == total && p.Failed != failed {
				t.Errorf("%s: %d failed, want %d", what, p.Failed, failed)
			}
		}
	}
	rep, err := d.InitializeAll(background, 8, check("initialize", n, n/4))
	if err != nil || rep.Done != n || rep.Failed != n/4 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if got := fetches.Load(); got != n {
		t.Errorf("%d sources were opened %d times", n, got)
	}
	if s := d.Stats(); s[dagstore.ShardStateAvailable] != n*3/4+1 || s[dagstore.ShardStateErrored] != n/4 {
		t.Errorf("states: %v", s)
	}
	if rep, err := d.InitializeAll(background, 0, nil); err != nil || rep.Done != 0 {
		t.Errorf("nothing is left: %+v, %v", rep, err)
	}
	meant := func(s dagstore.ShardSummary) bool { return strings.HasPrefix(s.Key.String(), "1") && s.Error != "" }
	want := 0
	for i := range n {
		if i%4 == 3 && strings.HasPrefix(fmt.Sprint(i), "1") {
			want++
		}
	}
	rep, err = d.RecoverAll(background, meant, 0, check("recover", want, want))
	if err != nil || rep.Done != want || rep.Failed != want || want == 0 {
		t.Errorf("recover: %+v of %d, %v", rep, want, err)
	}
	if got := fetches.Load(); got != int64(n+want) {
		t.Errorf("%d sources were opened by %d recoveries", got-n, want)
	}
	ctx, cancel := context.WithCancel(background)
	cancel()
	if rep, err := d.RecoverAll(ctx, nil, 0, nil); !errors.Is(err, context.Canceled) || rep.Done != 0 {
		t.Errorf("with a context that has ended: %+v, %v", rep, err)
	}
}

// BenchmarkRegisterMany registers shards lazily, all at once and by 64 callers.
func BenchmarkRegisterMany(b *testing.B) {
	m := &mount.FileMount{Path: "/data/cars/some.car"}
	reg := func(i int) dagstore.Registration {
		return dagstore.Registration{Key: key("%d", i), Mount: m, Opts: dagstore.RegisterOpts{LazyInitialization: true}}
	}
	b.Run("many", func(b *testing.B) {
		d := open(b, b.TempDir())
		regs := func(yield func(dagstore.Registration) bool) {
			for i := range b.N {
				if !yield(reg(i)) {
					return
				}
			}
		}
		b.ResetTimer()
		if rep, err := d.RegisterMany(background, regs, nil); err != nil || rep.Failed > 0 {
			b.Fatalf("%+v, %v", rep, err)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "shards/s")
	})
	b.Run("64-callers", func(b *testing.B) {
		d := open(b, b.TempDir())
		var next atomic.Int64
		b.SetParallelism(32)
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				r := reg(int(next.Add(1)))
				if _, err := d.RegisterShardSync(background, r.Key, r.Mount, r.Opts); err != nil {
					b.Error(err)
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "shards/s")
	})
}
