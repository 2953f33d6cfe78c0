package dagstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/index"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/testdata"
)

var rewrite = flag.Bool("rewrite", false, "write the golden explanations anew")

// golden holds an explanation, as text and as JSON, to what was written down.
func golden(t *testing.T, name string, text string, v any) {
	t.Helper()
	js, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for ext, got := range map[string]string{".txt": text, ".json": string(js) + "\n"} {
		path := filepath.Join("testdata", "explain", name+ext)
		if *rewrite {
			writeFile(t, path, []byte(got))
		}
		want, err := os.ReadFile(path)
		if err != nil || string(want) != got {
			t.Errorf("%s is not what is said (%v).\nRun: go test . -run Explain -rewrite\nand read the diff. Now:\n%s", path, err, got)
		}
	}
	plain(t, text)
}

// plain: nothing of what others named reaches a terminal as a control character.
func plain(t *testing.T, text string) {
	t.Helper()
	for _, r := range text {
		if r < ' ' && r != '\n' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			t.Errorf("control character %q in %q", r, text)
		}
	}
}

func explained(t *testing.T, d *dagstore.DAGStore, k shard.Key) dagstore.Explanation {
	t.Helper()
	x, err := d.Explain(k)
	if err != nil {
		t.Fatalf("explain %s: %v", k, err)
	}
	return x
}

func goldenShard(t *testing.T, name string, d *dagstore.DAGStore, k shard.Key) {
	t.Helper()
	x := explained(t, d, k)
	golden(t, name, x.String(), x)
}

func goldenRequests(t *testing.T, name string, rs []dagstore.RequestExplanation) {
	t.Helper()
	var text strings.Builder
	for _, r := range rs {
		text.WriteString(r.String() + "\n")
	}
	golden(t, name, text.String(), rs)
}

// queue is a store with one fetch slot, held by shard a; b and c stand in its queue, b
// with two acquires.
func queue(t *testing.T) (d *dagstore.DAGStore, g *gate, out chan dagstore.ShardResult) {
	g = newGate()
	g.ready = true
	d = start(t, dagstore.Config{MountRegistry: registry(t, g), MaxConcurrentReadyFetches: 1})
	out = make(chan dagstore.ShardResult)
	for _, k := range []string{"a", "b", "c"} {
		registerLazily(t, d, key("%s", k), &gateMount{Mount: carV1(), gate: g})
	}
	for _, k := range []string{"a", "b", "b", "c"} {
		if err := d.AcquireShard(background, key("%s", k), out, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
	}
	pass(1500 * time.Millisecond)
	return d, g, out
}

// TestExplainQueue: of a shard that waits for a slot, who holds it, since when, who
// stands ahead, and the way to the answer; of its requests, the same. Proves N7.
func TestExplainQueue(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d, g, out := queue(t)
		goldenShard(t, "queue-holder", d, key("a"))
		goldenShard(t, "queue-second", d, key("c"))
		rs := d.ExplainRequests(out)
		goldenRequests(t, "queue-requests", rs)
		if len(rs) != 4 {
			t.Fatalf("%d requests", len(rs))
		}
		one, err := d.ExplainRequest(rs[3].ID)
		if err != nil || one.Key != key("c") || one.String() != rs[3].String() {
			t.Errorf("request %d: %v, %s", rs[3].ID, err, one)
		}
		_, err = d.ExplainRequest(1 << 40)
		wantErr(t, "no such request", err, dagstore.ErrRequestUnknown)
		if none := d.ExplainRequests(make(chan dagstore.ShardResult)); len(none) != 0 {
			t.Errorf("%d requests of a channel that nobody gave", len(none))
		}
		// What the way says happens, and the results wait for their channel.
		for range 3 { // one after the other, or which is answered first is a matter of luck
			g.letIn(1)
			settle()
		}
		goldenRequests(t, "undelivered", d.ExplainRequests(out))
		for range 4 {
			res := <-out
			if res.Error != nil {
				t.Fatal(res.Error)
			}
			closeAll(t, res.Accessor)
		}
		settle() // the courier takes note
		if rs := d.ExplainRequests(out); len(rs) != 0 {
			t.Errorf("%d requests are pending after their answers", len(rs))
		}
	})
}

// TestExplainHolders: of those who hold a slot the one longest at it comes first, and
// of more than are listed there is the number. Proves N7.
func TestExplainHolders(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		g.ready = true
		d := start(t, dagstore.Config{MountRegistry: registry(t, g), MaxConcurrentReadyFetches: 20})
		out := make(chan dagstore.ShardResult, 40)
		for i := range 38 {
			k := key("s%02d", 99-i)
			registerLazily(t, d, k, &gateMount{Mount: carV1(), gate: g})
			if err := d.AcquireShard(background, k, out, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
			pass(time.Second)
		}
		x := explained(t, d, key("s62")) // the last one
		h := x.Machine.Missing[0].Unmet[0].Holders
		if h == nil || h.Count != 20 || len(h.Listed) != 16 || len(h.Ahead) != 16 || h.Ahead[0] != "s79" {
			t.Fatalf("%+v", h)
		}
		for i, l := range h.Listed {
			if l.Shard != key("s%02d", 99-i).String() || l.Job != "fetch" {
				t.Errorf("holder %d: %+v", i, l)
			}
		}
		if !strings.Contains(x.String(), "and by 4 more") || x.Path[0].Times != 18 {
			t.Errorf("%s", x)
		}
		g.letIn(38)
		for range 38 {
			closeAll(t, (<-out).Accessor)
		}
	})
}

// TestExplainRest: of shards that nothing is known of but their record: since is the
// record's time and sequence number. Proves N7.
func TestExplainRest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{IdleHandles: -1})
		registerLazily(t, d, key("lazy"), carV1())
		pass(time.Second)
		register(t, d, key("ready"), carV1())
		pass(time.Second)
		settle()
		goldenShard(t, "lazy", d, key("lazy"))
		goldenShard(t, "available", d, key("ready"))
		_, err := d.Explain(key("nobody"))
		wantErr(t, "explain", err, dagstore.ErrShardUnknown)
	})
}

// TestExplainErrored: a failure is named, and quoted: it may be an attacker's text.
// Proves N7, S10.
func TestExplainErrored(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		g.ready = true
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		g.setFail(changed("no CAR\n\x1b[31many more"))
		g.letIn(1)
		_, err := d.RegisterShardSync(background, key("a"), &gateMount{Mount: carV1(), gate: g}, dagstore.RegisterOpts{})
		wantErr(t, "register", err, dagstore.ErrShardInitializationFailed)
		goldenShard(t, "errored", d, key("a"))
		out := make(chan dagstore.ShardResult)
		if err := d.AcquireShard(background, key("a"), out, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		rs := d.ExplainRequests(out)
		if len(rs) != 1 || rs[0].Stage != dagstore.StageUndelivered {
			t.Fatalf("%+v", rs)
		}
		plain(t, rs[0].String())
		<-out
	})
}

// TestExplainRecording: while the journal is slow, which event a shard waits for and
// in what batch, and the requests in front of it and behind it. Explain itself does
// not wait. Proves N7.
func TestExplainRecording(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := newTestJournal()
		d := start(t, dagstore.Config{Journal: j})
		registerLazily(t, d, key("old"), carV1())
		release := j.hold()
		out := make(chan dagstore.ShardResult, 9)
		lazy := dagstore.RegisterOpts{LazyInitialization: true}
		for _, k := range []string{"first", "second", "third"} { // the latter two share a batch
			if err := d.RegisterShard(background, key("%s", k), carV1(), out, lazy); err != nil {
				t.Fatal(err)
			}
			if k == "first" {
				settle()
			}
		}
		settle()
		if err := d.AcquireShard(background, key("third"), out, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		if err := d.DestroyShard(background, key("old"), out, dagstore.DestroyOpts{}); err != nil {
			t.Fatal(err)
		}
		pass(250 * time.Millisecond)
		goldenShard(t, "recording", d, key("third"))
		goldenRequests(t, "recording-requests", d.ExplainRequests(out))
		release()
		for range 5 {
			if res := <-out; res.Accessor != nil {
				closeAll(t, res.Accessor)
			} else if res.Error != nil {
				t.Error(res.Error)
			}
		}
	})
}

// slowRepo is an index repository that takes its time to remove an index.
type slowRepo struct {
	*index.MemIndexRepo
	gate chan struct{}
}

func (s *slowRepo) DropIndex(k shard.Key, gen uint64) (bool, error) {
	<-s.gate
	return s.MemIndexRepo.DropIndex(k, gen)
}

// TestExplainSweeping: a destroy whose shard is gone and whose files are not. Proves N7.
func TestExplainSweeping(t *testing.T) {
	bubble(t, func(t *testing.T) {
		repo := &slowRepo{index.NewMemoryRepo(), make(chan struct{})}
		d := start(t, dagstore.Config{IndexRepo: repo})
		register(t, d, key("a"), carV1())
		out := make(chan dagstore.ShardResult, 1)
		if err := d.DestroyShard(background, key("a"), out, dagstore.DestroyOpts{}); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		goldenRequests(t, "sweeping", d.ExplainRequests(out))
		_, err := d.Explain(key("a"))
		wantErr(t, "explain", err, dagstore.ErrShardUnknown)
		close(repo.gate)
		if res := <-out; res.Error != nil {
			t.Error(res.Error)
		}
		if rs := d.ExplainRequests(out); len(rs) != 0 {
			t.Errorf("pending after its answer: %v", rs)
		}
	})
}

// TestExplainReadOnly: a store whose journal failed says so, with the error, wherever
// a guard asks for the journal, and that it must be opened anew. Proves N7.
func TestExplainReadOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := newTestJournal()
		d := start(t, dagstore.Config{Journal: j})
		registerLazily(t, d, key("lazy"), carV1())
		pass(time.Second)
		j.failWith(func([]shard.Event) error { return errors.Join(journal.ErrOutcomeUnknown, errors.New("disk \x07gone")) })
		_, err := d.RegisterShardSync(background, key("x"), carV1(), dagstore.RegisterOpts{})
		wantErr(t, "register", err, dagstore.ErrReadOnly)
		pass(time.Second)
		goldenShard(t, "read-only", d, key("lazy"))
	})
}

// TestExplainInUse: an open shard is ready; what keeps it from being destroyed are its
// accessors. Proves N7.
func TestExplainInUse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := start(t, dagstore.Config{})
		register(t, d, key("a"), carV1())
		acc := acquire(t, d, key("a"))
		defer closeAll(t, acc)
		x := explained(t, d, key("a"))
		golden(t, "in-use", x.String(), x)
		if !x.Machine.Ready || len(x.Path) != 1 || x.Path[0].Trigger != "acquire" {
			t.Errorf("%s", x)
		}
	})
}

// TestExplainNoMount: of a shard whose mount cannot be made the way says what the
// operator has to do. Proves N7.
func TestExplainNoMount(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j := journal.NewMemory()
		d, err := dagstore.NewDAGStore(dagstore.Config{Journal: unclosed{j}, TransientsDir: t.TempDir(), MountRegistry: registry(t, newGate()), Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Start(background); err != nil {
			t.Fatal(err)
		}
		registerLazily(t, d, key("a"), &gateMount{Mount: carV1(), gate: newGate()})
		closeStore(t, d)

		again := start(t, dagstore.Config{Journal: unclosed{j}, MountRegistry: withoutGate(t), TransientsDir: t.TempDir()})
		x := explained(t, again, key("a"))
		if len(x.Path) < 2 || x.Path[0].Trigger != "reopen" || x.Path[1].Trigger != "acquire" || !strings.Contains(x.String(), "make the mount") {
			t.Errorf("%s", x)
		}
	})
}

// slowURL is a mount that takes its time to be made from its URL.
type slowURL struct {
	mount.FSMount
	made chan struct{}
}

func (m *slowURL) Deserialize(u *url.URL) error {
	<-m.made
	return m.FSMount.Deserialize(u)
}

// TestExplainMounting: while the mount of a shard is made from its URL, that is said,
// and what is asked of the shard is deferred. Proves N7.
func TestExplainMounting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		j, made := journal.NewMemory(), make(chan struct{})
		slow := func() *slowURL { return &slowURL{mount.FSMount{FS: testdata.FS, Path: testdata.FSPathCarV1}, made} }
		registry := func() *mount.Registry {
			r := mount.NewRegistry()
			if err := r.Register("slow", slow()); err != nil {
				t.Fatal(err)
			}
			return r
		}
		d, err := dagstore.NewDAGStore(dagstore.Config{Journal: unclosed{j}, TransientsDir: t.TempDir(), MountRegistry: registry(), Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Start(background); err != nil {
			t.Fatal(err)
		}
		registerLazily(t, d, key("a"), slow())
		closeStore(t, d)

		again := start(t, dagstore.Config{Journal: unclosed{j}, MountRegistry: registry()})
		out := make(chan dagstore.ShardResult, 2)
		for range 2 {
			if err := again.AcquireShard(background, key("a"), out, dagstore.AcquireOpts{}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		goldenShard(t, "mounting", again, key("a"))
		for i, r := range again.ExplainRequests(out) {
			if r.Stage != dagstore.StageDeferred || r.Ahead != i || r.Path[0].Trigger != "mounted" {
				t.Errorf("%s", r)
			}
		}
		close(made)
		for range 2 {
			closeAll(t, (<-out).Accessor)
		}
	})
}

// unclosed is a journal that outlives its stores.
type unclosed struct{ journal.Journal }

func (unclosed) Close() error { return nil }

func withoutGate(t *testing.T) *mount.Registry {
	r := mount.NewRegistry()
	if err := r.Register("fs", &mount.FSMount{FS: testdata.FS}); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestExplainEnds: a request that is answered already, one whose caller
// left, and a closed store. Proves I1 (an explanation answers nothing).
func TestExplainEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d, g, out := queue(t)
		ctx, cancel := context.WithCancel(background)
		if err := d.AcquireShard(ctx, key("c"), out, dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		settle()
		if n := len(d.ExplainRequests(out)); n != 5 {
			t.Errorf("%d requests, want 5", n)
		}
		cancel()
		settle()
		if n := len(d.ExplainRequests(out)); n != 4 {
			t.Errorf("%d requests after one left, want 4", n)
		}
		g.letIn(3)
		for range 4 {
			closeAll(t, (<-out).Accessor)
		}
		closeStore(t, d)
		if rs := d.ExplainRequests(out); rs != nil {
			t.Errorf("of a closed store: %v", rs)
		}
		_, err := d.ExplainRequest(1)
		wantErr(t, "a closed store", err, dagstore.ErrClosed)
	})
}

// TestExplainCID: which shards hold a block, available or not, which would be chosen
// and why the others are not; and as of when no shard holds it. Proves I13, N7, G19
// ("none" has a position).
func TestExplainCID(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGate()
		g.ready = true
		d := start(t, dagstore.Config{MountRegistry: registry(t, g)})
		register(t, d, key("open"), carV1())
		acc := acquire(t, d, key("open"))
		defer closeAll(t, acc)
		for _, k := range []string{"remote", "broken"} {
			g.letIn(1)
			register(t, d, key("%s", k), &gateMount{Mount: carV1(), gate: g})
		}
		if _, err := d.GC(background); err != nil { // which leaves no copy of these two
			t.Fatal(err)
		}
		settle()
		g.setFail(errors.New("gone \x1b away"))
		g.letIn(2)
		_, err := d.AcquireShardSync(background, key("broken"), dagstore.AcquireOpts{})
		wantErr(t, "acquire", err, dagstore.ErrUnavailable)
		_, err = d.RecoverShardSync(background, key("broken"), dagstore.RecoverOpts{})
		wantErr(t, "recover", err, dagstore.ErrUnavailable)
		wantState(t, d, key("broken"), dagstore.ShardStateAvailable)
		register(t, d, key("local"), carV1())
		pass(time.Second)
		root, err := cid.Decode(testdata.RootCID.String())
		if err != nil {
			t.Fatal(err)
		}
		x, err := d.ExplainCID(background, root)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "cid", x.String(), x)
		if x.Chosen == nil || *x.Chosen != key("open") {
			t.Errorf("chosen: %v", x.Chosen)
		}
		none, err := d.ExplainCID(background, testdata.SharedRootCID)
		if err != nil || none.Chosen != nil || none.Total != 0 {
			t.Errorf("%v, %s", err, none)
		}
		golden(t, "cid-none", none.String(), none)
		if _, err := d.ExplainCID(background, cid.Undef); err == nil {
			t.Error("an undefined CID was explained")
		}
	})
}
