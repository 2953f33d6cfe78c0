package dagstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/shard"
	"github.com/dagstore/dagstore/status"
	"github.com/dagstore/dagstore/testdata"
)

// origin serves h until the test ends, and returns a mount of it.
func origin(t testing.TB, h http.HandlerFunc) *mount.HTTPMount {
	t.Helper()
	srv := httptest.NewServer(h)
	o := &mount.HTTPOptions{BackOff: time.Microsecond}
	t.Cleanup(func() { o.CloseIdleConnections(); srv.CloseClientConnections(); srv.Close() })
	return &mount.HTTPMount{URL: srv.URL, Options: o}
}

func tryRegister(d *dagstore.DAGStore, k shard.Key, m mount.Mount) error {
	_, err := d.RegisterShardSync(background, k, m, dagstore.RegisterOpts{})
	return err
}

// TestHTTPSources: a store over HTTP origins with peculiarities. Proves S4, F1.
func TestHTTPSources(t *testing.T) {
	car := testdata.CarV1
	// Where the CAR may be cut so that what is before is a CAR too does not matter here:
	// the trailer alone says it.
	t.Run("a trailer says that the stream is not whole", func(t *testing.T) {
		d := open(t, t.TempDir())
		err := tryRegister(d, key("s"), origin(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-Stream-Error")
			w.WriteHeader(200)
			w.Write(car)
			w.(http.Flusher).Flush()
			w.Header().Set("X-Stream-Error", "ipld: could not find a block")
		}))
		if err == nil || !strings.Contains(err.Error(), "ipld: could not find a block") {
			t.Errorf("registered: %v", err)
		}
	})
	t.Run("one request, also of a download that breaks", func(t *testing.T) {
		for name, tc := range map[string]struct {
			breaks int32
			ranges bool
			want   int32
		}{"whole": {0, false, 1}, "breaks": {3, false, 4}, "ranges": {0, true, 2}} {
			var n atomic.Int32
			d := open(t, t.TempDir())
			err := tryRegister(d, key("s"), origin(t, func(w http.ResponseWriter, r *http.Request) {
				k := n.Add(1)
				if tc.ranges {
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(car))
					return
				}
				w.WriteHeader(200)
				w.Write(car[:len(car)/2])
				w.(http.Flusher).Flush()
				if k <= tc.breaks {
					panic(http.ErrAbortHandler)
				}
				w.Write(car[len(car)/2:])
			}))
			if err != nil || n.Load() != tc.want {
				t.Errorf("%s: %v, %d requests, want %d", name, err, n.Load(), tc.want)
			}
		}
	})
	t.Run("nodes of a CDN with ETags of their own", func(t *testing.T) {
		var n atomic.Int32
		d := open(t, t.TempDir())
		m := origin(t, func(w http.ResponseWriter, r *http.Request) {
			k := n.Add(1)
			w.Header().Set("ETag", []string{`"a"`, `"b"`}[k%2])
			if k == 2 { // the download, which goes on elsewhere
				r.Header.Del("If-Match")
				http.ServeContent(&cutWriter{w, 1000}, r, "", time.Time{}, bytes.NewReader(car))
				return
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(car))
		})
		if err := tryRegister(d, key("s"), m); err != nil {
			t.Errorf("%v after %d requests", err, n.Load())
		}
		works(t, d, key("s"))
	})
	t.Run("a copy larger than allowed", func(t *testing.T) {
		d := open(t, t.TempDir(), dagstore.WithConfig(func(c *dagstore.Config) { c.MaxCopySize = 1 << 20 }))
		for name, h := range map[string]http.HandlerFunc{
			"endless": func(w http.ResponseWriter, r *http.Request) {
				w.(http.Flusher).Flush()
				for b := make([]byte, 64<<10); r.Context().Err() == nil; {
					if _, err := w.Write(b); err != nil {
						return
					}
				}
			},
			"told": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", fmt.Sprint(1<<20+1)) },
		} {
			if err := tryRegister(d, key("%s", name), origin(t, h)); !errors.Is(err, mount.ErrTooLarge) || !mount.IsContent(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		register(t, d, key("good"), origin(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(car) }))
	})
	t.Run("a copy for which there is no room", func(t *testing.T) {
		d := open(t, t.TempDir(), dagstore.WithConfig(func(c *dagstore.Config) { c.MinFreeSpace = 1 << 60 }))
		err := tryRegister(d, key("s"), origin(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(car) }))
		if !errors.Is(err, mount.ErrNoRoom) || !mount.IsShortage(err) || mount.IsContent(err) {
			t.Errorf("got %v", err)
		}
	})
}

// cutWriter breaks the connection after some bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		w.ResponseWriter.Write(p[:len(p)+w.left])
		w.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return w.ResponseWriter.Write(p)
}

// TestDrippingOrigins: origins that drip give their slots back, so that others are
// fetched. Proves R20, F23.
func TestDrippingOrigins(t *testing.T) {
	d := open(t, t.TempDir(), dagstore.WithConfig(func(c *dagstore.Config) { c.MaxConcurrentReadyFetches = 2 }))
	begun := make(chan struct{}, 1000)
	for i := range 2 {
		m := origin(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			begun <- struct{}{}
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for r.Context().Err() == nil {
				w.Write([]byte("x"))
				w.(http.Flusher).Flush()
				<-tick.C
			}
		})
		m.Options.RateWindow = 300 * time.Millisecond
		registerLazily(t, d, key("drip %d", i), m)
		ctx, cancel := context.WithCancel(background)
		defer cancel()
		if err := d.AcquireShard(ctx, key("drip %d", i), make(chan dagstore.ShardResult, 1), dagstore.AcquireOpts{}); err != nil {
			t.Fatal(err)
		}
		<-begun
		cancel() // who asked goes away
	}
	register(t, d, key("good"), origin(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(testdata.CarV1) }))
}

// TestSecretsOfSignedURLs: what signs a URL, of whichever store, is in no file, log line,
// error, explanation or page. Proves S6.
func TestSecretsOfSignedURLs(t *testing.T) {
	const secret = "s3cr3tvalue"
	names := strings.Fields(`X-Amz-Signature X-Amz-Credential X-Amz-Security-Token AWSAccessKeyId X-Goog-Signature X-Goog-Credential
		GoogleAccessId Signature sig Key-Pair-Id Policy x-oss-signature x-oss-credential x-oss-security-token OSSAccessKeyId q-signature
		q-ak x-cos-security-token X-Obs-Signature X-Obs-Security-Token X-Tos-Signature X-Tos-Credential hdnts hdnea Authorization auth_token
		jwt id_jwt id_token client_secret X-Auth-Token access_token refresh_token api_key apikey x-api-key wsSecret txSecret auth_key password
		tok%65n TOKEN token[] auth[token] x;token +token`)
	for _, name := range names {
		if shown := dagstore.Redact("http://h/p?a=b&" + name + "=" + secret + "&c=d"); strings.Contains(shown, secret) || !strings.Contains(shown, "a=b&") || !strings.HasSuffix(shown, "&c=d") {
			t.Errorf("%s is shown: %s", name, shown)
		}
	}
	for _, text := range []string{
		"counting:counting:https://me:s3cr3tvalue@h/x?token=s3cr3tvalue", "x://s3cr3tvalue@h", "x:me:s3cr3tvalue@h/p", "http://h/#access_token=s3cr3tvalue&x=y",
		"x:https://h/y?a=b;sig=s3cr3tvalue", "http://h/?%zz=s3cr3tvalue", "http://h/\x7f?token=s3cr3tvalue",
	} {
		if shown := dagstore.Redact(text); strings.Contains(shown, secret) {
			t.Errorf("%s is shown as %s", text, shown)
		}
	}
	for _, name := range []string{"key", "expires", "sv", "se", "sr", "version", "tokens-in-path", "signatures"} {
		if text := "http://h/p?" + name + "=x"; dagstore.Redact(text) != text {
			t.Errorf("%s is hidden: %s", name, dagstore.Redact(text))
		}
	}

	var log lockedBuffer
	dir := t.TempDir()
	d, err := dagstore.Open(background, dir, dagstore.WithLogger(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))))
	if err != nil {
		t.Fatal(err)
	}
	var query []string
	for _, name := range names {
		query = append(query, name+"="+secret)
	}
	good := origin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "" && !strings.Contains(r.URL.RawQuery, secret) {
			t.Error("the origin is not given the secret")
		}
		w.Write(testdata.CarV1)
	})
	bad := origin(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/?"+r.URL.RawQuery, http.StatusFound)
	})
	var seen bytes.Buffer
	for i, m := range []*mount.HTTPMount{good, bad} {
		m.URL += "/?" + strings.Join(query, "&")
		err := tryRegister(d, key("s%d", i), m)
		if i == 0 && err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&seen, err)
		x, err := d.Explain(key("s%d", i))
		fmt.Fprintln(&seen, x, err)
		h, err := d.History(background, key("s%d", i))
		fmt.Fprintf(&seen, "%+v %v\n", h, err)
		for _, path := range []string{"/shards", "/shards/" + url.PathEscape(fmt.Sprintf("s%d", i)), "/explain?key=" + fmt.Sprintf("s%d", i), "/", "/machine"} {
			w := httptest.NewRecorder()
			status.Handler(d).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			seen.Write(w.Body.Bytes())
		}
	}
	page, err := d.ListShards(dagstore.ListOptions{})
	fmt.Fprintf(&seen, "%+v %v\n", page, err)
	closeStore(t, d)
	seen.WriteString(log.String())
	files := 0
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
			}
			files++
			seen.Write(b)
		}
		return nil
	})
	if i := strings.Index(seen.String(), secret); i >= 0 || files < 3 || !strings.Contains(seen.String(), "127.0.0.1") {
		t.Errorf("of %d files and all else: the secret in …%.200q", files, seen.Bytes()[max(0, i-150):])
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestLongNames: neither a key of a megabyte nor what an origin says is spelled out in
// errors. Proves S10.
func TestLongNames(t *testing.T) {
	d := open(t, t.TempDir())
	k := shard.KeyFromString(strings.Repeat("k", 1<<20))
	_, aerr := d.AcquireShardSync(background, k, dagstore.AcquireOpts{})
	_, xerr := d.Explain(k)
	_, herr := d.History(background, k)
	_, ierr := d.GetShardInfo(k)
	_, derr := d.DestroyShardSync(background, k, dagstore.DestroyOpts{})
	_, rerr := d.RecoverShardSync(background, k, dagstore.RecoverOpts{})
	for what, err := range map[string]error{
		"acquire": aerr, "explain": xerr, "history": herr, "info": ierr, "destroy": derr, "recover": rerr, "register": tryRegister(d, k, carV1()),
	} {
		if err == nil || len(err.Error()) > 1000 {
			t.Errorf("%s: %.300v", what, err)
		}
	}
	err := tryRegister(d, key("x"), origin(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n", strings.Repeat("9", 30_000))
		conn.Close()
	}))
	x, xerr := d.Explain(key("x"))
	if err == nil || len(err.Error()) > 1200 || len(x.String()) > 6000 {
		t.Errorf("%.300v (%v); explained with %d bytes", err, xerr, len(x.String()))
	}
}
