package status_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/status"
	"github.com/dagstore/dagstore/testdata"
)

// stuckWriter is a caller that does not receive.
type stuckWriter struct {
	*httptest.ResponseRecorder
	stuck, proceed chan struct{}
}

func (w stuckWriter) Write(b []byte) (int, error) {
	w.stuck <- struct{}{}
	<-w.proceed
	return len(b), nil
}

// TestSlowCallers: callers that do not receive what they asked for take nothing from
// others, and health is told whatever all slots are taken by.
func TestSlowCallers(t *testing.T) {
	v := &testView{}
	d := open(t, t.TempDir(), dagstore.WithView(v))
	h := status.Handler(d, status.WithLogger(quiet), status.WithConcurrency(4))
	w := stuckWriter{httptest.NewRecorder(), make(chan struct{}), make(chan struct{})}
	var callers sync.WaitGroup
	for range 64 {
		callers.Go(func() {
			r := httptest.NewRequest(http.MethodGet, "/machine", nil)
			h.ServeHTTP(stuckWriter{httptest.NewRecorder(), w.stuck, w.proceed}, r)
		})
		<-w.stuck
	}
	for _, path := range []string{"/machine", "/shards", "/healthz", "/readyz"} {
		if g := get(t, h, path); g.code != 200 {
			t.Errorf("%s beside 64 slow callers: %d %s", path, g.code, g.body)
		}
	}
	close(w.proceed)
	callers.Wait()

	gate := make(chan struct{})
	v.gate.Store(&gate)
	res := register(t, d, "a")
	ctx, cancel := context.WithCancel(t.Context())
	for range 4 { // these take all slots until they are answered
		callers.Go(func() {
			r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/freshness?view=test&consistency=at-least%3D"+res.Position.Token(), nil)
			for ctx.Err() == nil { // again, if all were taken for a moment
				h.ServeHTTP(httptest.NewRecorder(), r)
			}
		})
	}
	for get(t, h, "/machine").code != 503 { // until they have
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if g := get(t, h, path); g.code != 200 {
			t.Errorf("%s with all slots taken: %d %s", path, g.code, g.body)
		}
	}
	cancel()
	callers.Wait()
	close(gate)
}

// TestServeSlow: the end of a server beside a caller that does not receive is no error.
func TestServeSlow(t *testing.T) {
	status.SetGrace(t, 10*time.Millisecond)
	d := open(t, t.TempDir())
	l, err := status.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- status.ServeOn(ctx, l, d, status.WithLogger(quiet)) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := make(chan struct{})
	go func() { // requests until the server takes no more, for it cannot answer
		defer close(sent)
		for {
			_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := io.WriteString(c, strings.Repeat("GET /machine HTTP/1.1\r\nHost: x\r\n\r\n", 100)); errors.Is(err, os.ErrDeadlineExceeded) {
				return
			} else if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	<-sent
	cancel()
	if err := <-served; err != nil {
		t.Errorf("the end beside a slow caller: %v", err)
	}
}

// TestAway: what cannot be served now, and what is not known yet, are 503 with
// Retry-After and never 404. Proves A2, A3 (over HTTP).
func TestAway(t *testing.T) {
	away := &dagstore.UnavailableError{Shards: []shard.Key{shard.KeyFromString("k")}, Reason: errors.New("not mounted"), RetryAfter: 1500 * time.Millisecond}
	if code, kind := status.Judge(fmt.Errorf("find: %w", away)); code != 503 || kind != "unavailable" {
		t.Errorf("away: %d %s", code, kind)
	}
	dir := t.TempDir()
	closed := open(t, dir)
	register(t, closed, "a")
	closed.Close()
	f, err := dagstore.OpenFollower(t.Context(), dir, dagstore.WithLogger(quiet))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	h := status.Handler(f.DAGStore, status.WithLogger(quiet))
	for get(t, h, "/readyz").code != 503 { // until it has noticed
	}
	g := get(t, h, "/find?cid="+testdata.RootCID.String(), "Dagstore-Consistency", "latest")
	if g.code != 503 || g.head.Get("Retry-After") != "1" || g.json["type"] != "/problems/not-fresh" {
		t.Errorf("a lookup of a follower without its journal: %d %v %s", g.code, g.head, g.body)
	}
	g = get(t, h, "/freshness?view=catalogue", "Dagstore-Consistency", "latest")
	if g.code != http.StatusTooEarly {
		t.Errorf("the freshness of it: %d %s", g.code, g.body)
	}
	if g := get(t, h, "/"); !strings.Contains(g.body, "The writer is ") {
		t.Errorf("the page of a follower: %s", g.body)
	}
	if g := get(t, h, "/healthz"); g.json["writer"] == nil {
		t.Errorf("the health of a follower: %s", g.body)
	}
}

// TestPlain: errors bring no control characters into the page. Proves S6 (what a page
// shows).
func TestPlain(t *testing.T) {
	got := status.Plain(errors.New("a\x1b[31mb\x00\u202ec\u009bd é\n"))
	if got != "a\ufffd[31mb\ufffd\ufffdc\ufffdd é\ufffd" {
		t.Errorf("%q", got)
	}
}

// TestHoldersAway: a lookup tells which shards hold the block and cannot serve, beside
// those that can, and is 503 if there are none; the page counts them. Proves A1, A2 (over
// HTTP).
func TestHoldersAway(t *testing.T) {
	d := open(t, t.TempDir())
	file := filepath.Join(t.TempDir(), "x.car")
	if err := os.WriteFile(file, testdata.CarV1, 0o600); err != nil {
		t.Fatal(err)
	}
	gone := shard.KeyFromString("gone")
	if _, err := d.RegisterShardSync(t.Context(), gone, &mount.FileMount{Path: file}, dagstore.RegisterOpts{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, testdata.Junk, 0o600); err != nil {
		t.Fatal(err)
	}
	acc, err := d.AcquireShardSync(t.Context(), gone, dagstore.AcquireOpts{})
	if err == nil { // with evidence that the source has changed, which a recovery finds
		acc.Close()
	}
	if _, err := d.RecoverShardSync(t.Context(), gone, dagstore.RecoverOpts{}); err == nil {
		t.Fatal("recovered from junk")
	}
	if i, err := d.GetShardInfo(gone); err != nil || i.ShardState != dagstore.ShardStateErrored {
		t.Fatalf("%v, %v", i, err)
	}
	h := status.Handler(d, status.WithLogger(quiet))
	find := "/find?cid=" + testdata.RootCID.String()
	if g := get(t, h, find, "Dagstore-Consistency", "latest"); g.code != 503 || g.json["type"] != "/problems/unavailable" || g.head.Get("Retry-After") == "" {
		t.Errorf("the only holder is errored: %d %v %s", g.code, g.head, g.body)
	}
	register(t, d, "a")
	g := get(t, h, find, "Dagstore-Consistency", "latest")
	if g.code != 200 || !strings.Contains(g.body, `"away"`) || !strings.Contains(g.body, `"gone"`) {
		t.Errorf("another holder is errored: %d %s", g.code, g.body)
	}
	if g := get(t, h, "/"); !strings.Contains(g.body, "1 errored, 0 being recovered") {
		t.Errorf("the page: %s", g.body)
	}
}
