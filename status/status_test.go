package status_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/status"
	"github.com/dagstore/dagstore/testdata"
)

var quiet = slog.New(slog.DiscardHandler)

// testView fails or blocks when it is told to.
type testView struct {
	pos  atomic.Pointer[journal.Position]
	fail atomic.Bool
	gate atomic.Pointer[chan struct{}]
}

func (v *testView) Name() string    { return "test" }
func (v *testView) Version() uint32 { return 1 }
func (v *testView) Position() journal.Position {
	if p := v.pos.Load(); p != nil {
		return *p
	}
	return journal.Position{}
}

func (v *testView) Apply(b *journal.Batch) error {
	if v.fail.Load() {
		return errors.New("<b>no room</b>")
	}
	if g := v.gate.Load(); g != nil {
		<-*g
	}
	end := b.End
	v.pos.Store(&end)
	return nil
}

func open(t *testing.T, dir string, opts ...dagstore.Option) *dagstore.DAGStore {
	t.Helper()
	d, err := dagstore.Open(context.Background(), dir, append(opts, dagstore.WithLogger(quiet))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func register(t *testing.T, d *dagstore.DAGStore, key string) dagstore.ShardResult {
	t.Helper()
	res, err := d.RegisterShardSync(context.Background(), shard.KeyFromString(key), &mount.BytesMount{Bytes: testdata.CarV1}, dagstore.RegisterOpts{})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// got is an answer.
type got struct {
	code int
	head http.Header
	body string
	json map[string]any
}

func get(t *testing.T, h http.Handler, path string, headers ...string) got {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return do(t, h, r)
}

func do(t *testing.T, h http.Handler, r *http.Request) got {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	g := got{code: w.Code, head: w.Header(), body: w.Body.String()}
	if strings.Contains(g.head.Get("Content-Type"), "json") {
		if err := json.Unmarshal([]byte(g.body), &g.json); err != nil {
			t.Fatalf("%s: %v in %s", r.URL, err, g.body)
		}
	}
	for name, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} {
		if g.head.Get(name) != want {
			t.Errorf("%s: %s is %q", r.URL, name, g.head.Get(name))
		}
	}
	if g.code >= 400 && g.code != http.StatusServiceUnavailable || g.json["type"] != nil {
		if g.head.Get("Content-Type") != "application/problem+json" || g.json["title"] == "" || g.json["status"] != float64(g.code) || !strings.HasPrefix(fmt.Sprint(g.json["type"]), "/problems/") {
			t.Errorf("%s: no problem of RFC 9457: %d %s", r.URL, g.code, g.body)
		}
	}
	return g
}

// TestPages: every page of a store and of its follower. Proves G9, G17, G19 (over HTTP).
func TestPages(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	key := "a <b>/../ключ\x1b[31m"
	res := register(t, d, key)
	f, err := dagstore.OpenFollower(context.Background(), dir, dagstore.WithLogger(quiet))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, view := range []string{dagstore.CatalogueView, dagstore.TopLevelView} {
		if _, err := f.WaitFor(context.Background(), view, dagstore.AtLeast(res.Position)); err != nil {
			t.Fatal(err)
		}
	}
	for name, s := range map[string]*dagstore.DAGStore{"store": d, "follower": f.DAGStore} {
		h := status.Handler(s, status.WithLogger(quiet))
		at := []string{"Dagstore-Consistency", "at-least=" + res.Position.Token()}
		q := "?key=" + url.QueryEscape(key)
		for path, want := range map[string]string{
			"/healthz": `"state": "ready"`, "/readyz": `"ready": true`, "/freshness": `"view": "top-level"`,
			"/freshness?view=catalogue": `"state": "live"`, "/shards": `"blocks"`, "/shards?state=available&prefix=a&limit=1": `"sourceSize"`,
			"/shards?state=errored": `"shards": []`, "/history" + q: `"kind": "indexed"`, "/explain" + q: `"state"`,
			"/explain?cid=" + testdata.RootCID.String(): `"chosen": true`, "/find?cid=" + testdata.RootCID.String(): `"shards"`,
			"/find?multihash=" + testdata.RootCID.Hash().B58String(): `"lag": 0`, "/find?multihash=" + testdata.RootCID.Hash().HexString(): `"freshness"`,
			"/machine": "| transition |", "/machine?diagram=life": "stateDiagram-v2", "/": "<td>catalogue",
		} {
			g := get(t, h, path, at...)
			if g.code != http.StatusOK || !strings.Contains(g.body, want) {
				t.Errorf("%s: %s: %d, want %q in %s", name, path, g.code, want, g.body)
			}
			if strings.Contains(g.body, "\x1b") || strings.Contains(g.body, "<b>") {
				t.Errorf("%s: %s: what came from outside is not escaped", name, path)
			}
		}
		g := get(t, h, "/explain"+q, "Accept", "text/plain")
		if !strings.HasPrefix(g.head.Get("Content-Type"), "text/plain") || strings.Contains(g.body, "\x1b") {
			t.Errorf("%s: %s", g.head, g.body)
		}
		g = get(t, h, "/find?cid="+testdata.RootCID.String(), at...)
		if n, err := strconv.Atoi(g.head.Get("Dagstore-Lag")); err != nil || n != 0 || g.head.Get("Dagstore-State") != "live" || g.head.Get("Dagstore-Head") == "" {
			t.Errorf("%s: headers of freshness: %v", name, g.head)
		}
		if p, err := dagstore.ParsePosition(g.head.Get("Dagstore-Position")); err != nil || p.Seq < res.Seq {
			t.Errorf("%s: position: %v, %v", name, p, err)
		}
	}
	// None is none as of a position.
	nowhere, err := mh.Sum([]byte("no shard holds this"), mh.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	g := get(t, status.Handler(d), "/find?multihash="+nowhere.B58String(), "Dagstore-Consistency", "latest")
	if g.code != http.StatusNotFound || g.json["asOf"] != float64(d.Position().Seq) || g.json["position"] != d.Position().Token() {
		t.Errorf("none: %d %s", g.code, g.body)
	}
}

// TestRefusals: what cannot be read is 400 and never means any; positions that cannot be
// are told apart; nothing but reading is served. Proves G11 (over HTTP), S9.
func TestRefusals(t *testing.T) {
	d := open(t, t.TempDir())
	register(t, d, "a")
	h := status.Handler(d, status.WithLogger(quiet))
	future, foreign := d.Position(), d.Position()
	future.Seq += 10
	foreign.Digest[7]++
	token := d.Position().Token()
	for said, want := range map[string]int{
		"": 400, "none": 400, "any=1": 400, "latest=": 400, "within": 400, "within=-1s": 400, "within=x": 400, "at-least=": 400,
		"at-least=" + token[1:]: 400, "at-least-seq=0": 400, "at-least-seq=-1": 400, "as-of=": 400, " any": 400, "ANY": 400,
		"at-least=" + future.Token(): 409, "at-least-seq=" + strconv.FormatUint(future.Seq, 10): 409, "at-least=" + foreign.Token(): 409,
		"as-of=" + foreign.Token(): 409,
		"any":                      200, "latest": 200, "within=1m": 200, "at-least=" + token: 200, "at-least-seq=1": 200, "as-of=" + token: 200,
	} {
		if g := get(t, h, "/freshness?view=catalogue", "Dagstore-Consistency", said); g.code != want {
			t.Errorf("%q: %d, want %d: %s", said, g.code, want, g.body)
		}
		if said == "" {
			continue
		}
		if g := get(t, h, "/freshness?view=catalogue&consistency="+url.QueryEscape(said)); g.code != want {
			t.Errorf("parameter %q: %d, want %d: %s", said, g.code, want, g.body)
		}
	}
	for path, want := range map[string]int{
		"/nonesuch": 404, "/freshness?view=nonesuch": 404, "/freshness?view=": 400, "/freshness?view=a&view=b": 400, "/shards?limit=0": 400,
		"/shards?limit=1001": 400, "/shards?limit=x": 400, "/shards?state=x": 400, "/shards?cursor=!": 400, "/explain": 400,
		"/explain?key=none": 404, "/explain?cid=x": 400, "/history?key=none": 404, "/history?key=%ff": 400, "/find": 400, "/find?cid=x": 400,
		"/find?multihash=zz!": 400, "/machine?diagram=x": 400, "/shards?prefix=" + strings.Repeat("x", 9000): 414,
		"/freshness?wait=x": 400, "/freshness?wait=-1s": 400,
	} {
		if g := get(t, h, path); g.code != want {
			t.Errorf("%.60s: %d, want %d: %s", path, g.code, want, g.body)
		}
	}
	if g := get(t, h, "/freshness", "Dagstore-Consistency", "any", "Dagstore-Consistency", "latest"); g.code != 400 {
		t.Errorf("two headers: %d", g.code)
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
		if g := do(t, h, httptest.NewRequest(method, "/healthz", strings.NewReader("x"))); g.code != 405 || g.head.Get("Allow") == "" {
			t.Errorf("%s: %d", method, g.code)
		}
	}
	d.Close()
	for path, want := range map[string]int{"/healthz": 503, "/readyz": 503, "/freshness": 503, "/shards": 503, "/find?cid=" + testdata.RootCID.String(): 503} {
		if g := get(t, h, path); g.code != want || g.head.Get("Retry-After") == "" {
			t.Errorf("closed: %s: %d %s", path, g.code, g.body)
		}
	}
}

// TestNotFresh: a view that is not fresh in time is 425 with Retry-After, one that is
// stalled shows in the health, and others go on. Proves G10, G13, G17 (over HTTP).
func TestNotFresh(t *testing.T) {
	v := &testView{}
	d := open(t, t.TempDir(), dagstore.WithView(v))
	h := status.Handler(d, status.WithLogger(quiet))
	register(t, d, "a")
	if g := get(t, h, "/freshness?view=test", "Dagstore-Consistency", "latest"); g.code != 200 {
		t.Fatalf("%d %s", g.code, g.body)
	}
	gate := make(chan struct{})
	v.gate.Store(&gate)
	res := register(t, d, "b")
	at := []string{"Dagstore-Consistency", "at-least=" + res.Position.Token(), "Dagstore-Wait", "20ms"}
	g := get(t, h, "/freshness?view=test", at...)
	after, err := strconv.Atoi(g.head.Get("Retry-After"))
	if g.code != http.StatusTooEarly || err != nil || after < 1 || g.json["wanted"] != float64(res.Position.Seq) || g.json["view"] != "test" {
		t.Errorf("not fresh: %d, %v, %s", g.code, g.head, g.body)
	}
	at[3] = "0s"
	if g := get(t, h, "/freshness?view=test", at...); g.code != http.StatusTooEarly {
		t.Errorf("no wait: %d %s", g.code, g.body)
	}
	at[3] = "5s"
	if g := get(t, h, "/find?cid="+testdata.RootCID.String(), at...); g.code != 200 {
		t.Errorf("another view: %d %s", g.code, g.body)
	}
	v.fail.Store(true)
	close(gate)
	v.gate.Store(nil)
	res = register(t, d, "c")
	for get(t, h, "/readyz").json["state"] != "stalled" { // until it has tried
	}
	at = []string{"Dagstore-Consistency", "at-least=" + res.Position.Token(), "Dagstore-Wait", "0s"}
	if g := get(t, h, "/freshness?view=test", at...); g.code != http.StatusTooEarly || g.json["state"] != "stalled" || g.head.Get("Retry-After") == "" {
		t.Errorf("stalled: %d %s", g.code, g.body)
	}
	g = get(t, h, "/readyz")
	if g.code != 503 || g.json["state"] != "stalled" {
		t.Errorf("readyz: %d %s", g.code, g.body)
	}
	if g := get(t, h, "/healthz"); g.code != 200 {
		t.Errorf("healthz: %d", g.code)
	}
	if g := get(t, h, "/"); g.code != 200 || !strings.Contains(g.body, "stalled") || strings.Contains(g.body, "<b>no room") {
		t.Errorf("index: %d %s", g.code, g.body)
	}
}

// secretMount carries a password in its URL.
type secretMount struct{ mount.BytesMount }

func (m *secretMount) Serialize() *url.URL {
	return &url.URL{Host: "h", User: url.UserPassword("me", "hunter2"), Path: "/x.car"}
}
func (m *secretMount) Deserialize(*url.URL) error { m.Bytes = testdata.Junk; return nil }

// TestSecrets: what is secret in a URL is on no page. Proves S6 (status pages).
func TestSecrets(t *testing.T) {
	d := open(t, t.TempDir(), dagstore.WithMount("secret", &secretMount{}))
	k := shard.KeyFromString("k")
	if _, err := d.RegisterShardSync(context.Background(), k, &secretMount{mount.BytesMount{Bytes: testdata.Junk}}, dagstore.RegisterOpts{}); err == nil {
		t.Fatal("junk is a CAR")
	}
	h := status.Handler(d, status.WithLogger(quiet))
	for _, path := range []string{"/", "/healthz", "/shards", "/history?key=k", "/explain?key=k", "/freshness"} {
		if g := get(t, h, path); g.code != 200 || strings.Contains(g.body, "hunter2") {
			t.Errorf("%s: %d %s", path, g.code, g.body)
		}
	}
}

// TestBusy: no more requests are served at a time than was said; those beyond hear it.
// Proves S9 (limits).
func TestBusy(t *testing.T) {
	v := &testView{}
	gate := make(chan struct{})
	v.gate.Store(&gate)
	d := open(t, t.TempDir(), dagstore.WithView(v))
	register(t, d, "a")
	h := status.Handler(d, status.WithConcurrency(2), status.WithLogger(quiet))
	var wg sync.WaitGroup
	codes := make(chan int, 8)
	for range 8 {
		wg.Go(func() {
			r := httptest.NewRequest(http.MethodGet, "/freshness?view=test", nil)
			r.Header.Set("Dagstore-Consistency", "latest")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			codes <- w.Code
		})
	}
	for range 6 { // two wait for the view
		if code := <-codes; code != http.StatusServiceUnavailable {
			t.Errorf("beyond the limit: %d", code)
		}
	}
	close(gate)
	wg.Wait()
	for range 2 {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("within the limit: %d", code)
		}
	}
}

// TestServe: the server binds to the loopback interface unless told, and ends with its
// context. Proves S9.
func TestServe(t *testing.T) {
	l, err := status.Listen(":0")
	if err != nil {
		t.Fatal(err)
	}
	if !l.Addr().(*net.TCPAddr).IP.IsLoopback() {
		t.Errorf("listens at %s", l.Addr())
	}
	if _, err := status.Listen("nonsense"); err == nil {
		t.Error("listens at nonsense")
	}
	d := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- status.ServeOn(ctx, l, d) }()
	res, err := http.Get("http://" + l.Addr().String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || res.StatusCode != 200 {
		t.Errorf("%d %s %v", res.StatusCode, b, err)
	}
	cancel()
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the server does not end")
	}
}

// FuzzConsistency: what is not one of the forms is an error, and an error never comes
// with a consistency that could be used. Proves G11 (tokens in headers).
func FuzzConsistency(f *testing.F) {
	for _, s := range []string{"", "any", "latest", "within=1s", "at-least-seq=7", "at-least=" + dagstore.Position{Seq: 3}.Token(), "as-of=x", "any=any"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := status.ParseConsistency(s)
		if err != nil && c.String() != dagstore.AtLeast(dagstore.Position{}).String() {
			t.Fatalf("%q: %v with %s", s, err, c)
		}
		if err == nil && c.String() == "any" && s != "any" {
			t.Fatalf("%q means any", s)
		}
	})
}

// A store's health, asked for by a program.
func Example() {
	d, err := dagstore.NewDAGStore(dagstore.Config{TransientsDir: ".", Logger: quiet})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	w := httptest.NewRecorder()
	status.Handler(d).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	fmt.Println(w.Code, strings.Contains(w.Body.String(), `"state": "starting"`))
	// Output: 503 true
}
