package mount_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/mount"
	"github.com/dagstore/dagstore/mount/mounttest"
)

// TestHTTPNodesDisagree: validators that differ between the nodes of an origin do not keep
// it from being read, by Read, ReadAt or as a copy, over transfers that break off; unless
// that is asked for. An origin that changed is noticed as before. Proves S4, F30.
func TestHTTPNodesDisagree(t *testing.T) {
	content := mounttest.Content(100_000)
	other := bytes.Clone(content)
	for i := range other {
		other[i] ^= 0x55
	}
	longer := append(bytes.Clone(content), 'x')
	date := time.Unix(1e9, 0)
	type node struct {
		etag string
		date time.Time
		body []byte
	}
	same := func(etag string, date time.Time) node { return node{etag, date, content} }
	for name, tc := range map[string]struct {
		nodes func(n int) node // who answers the n-th request, from 1
		heed  bool             // conditions are heeded; else ignored
		fail  bool
	}{
		"two ETags in turn":            {nodes: func(n int) node { return same(fmt.Sprintf(`"%d"`, n%2), time.Time{}) }},
		"two ETags in turn, heeded":    {nodes: func(n int) node { return same(fmt.Sprintf(`"%d"`, n%2), time.Time{}) }, heed: true},
		"three, heeded":                {nodes: func(n int) node { return same(fmt.Sprintf(`"%d"`, n%3), time.Time{}) }, heed: true},
		"anew each time":               {nodes: func(n int) node { return same(fmt.Sprintf(`"%d"`, n), time.Time{}) }},
		"anew each time, heeded":       {nodes: func(n int) node { return same(fmt.Sprintf(`"%d"`, n), time.Time{}) }, heed: true},
		"weak ones":                    {nodes: func(n int) node { return same(fmt.Sprintf(`W/"%d"`, n%2), time.Time{}) }},
		"one node has none":            {nodes: func(n int) node { return same([]string{"", `"e"`}[n%2], time.Time{}) }},
		"dates in turn":                {nodes: func(n int) node { return same("", date.Add(time.Duration(n%2)*time.Hour)) }, heed: true},
		"another for good, date equal": {nodes: func(n int) node { return same([]string{`"a"`, `"b"`}[min(1, n/2)], date) }, heed: true},
		"changed for good": {nodes: func(n int) node {
			return []node{{`"a"`, time.Time{}, content}, {`"b"`, time.Time{}, other}}[min(1, n/2)]
		}, fail: true},
		"changed for good, heeded": {nodes: func(n int) node {
			return []node{{`"a"`, time.Time{}, content}, {`"b"`, time.Time{}, other}}[min(1, n/2)]
		}, heed: true, fail: true},
		"changed, on some nodes":    {nodes: func(n int) node { return []node{{`"a"`, time.Time{}, content}, {`"b"`, time.Time{}, other}}[n%2] }, heed: true, fail: true},
		"changed, date equal":       {nodes: func(n int) node { return []node{{`"a"`, date, content}, {`"b"`, date, other}}[min(1, n/2)] }, fail: true},
		"changed in length, on one": {nodes: func(n int) node { return []node{{`"a"`, date, content}, {`"b"`, date, longer}}[n%2] }, fail: true},
		"another for good, not the date": {nodes: func(n int) node {
			return same([]string{`"a"`, `"b"`}[min(1, n/2)], date.Add(time.Duration(min(1, n/2))*time.Hour))
		}, fail: true},
	} {
		for _, binding := range []mount.Binding{mount.BindAuto, mount.BindContent, mount.BindValidators} {
			var n atomic.Int32
			url, o := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				k := int(n.Add(1))
				at := tc.nodes(k)
				if !tc.heed {
					r.Header.Del("If-Match")
					r.Header.Del("If-Unmodified-Since")
				}
				if at.etag != "" {
					w.Header().Set("ETag", at.etag)
				}
				http.ServeContent(&breakingWriter{ResponseWriter: w, left: 30_000}, r, "", at.date, bytes.NewReader(at.body))
			}))
			m := &mount.HTTPMount{URL: url, Options: o, Binding: binding}
			fail := tc.fail || binding == mount.BindValidators
			check := func(way string, got, want []byte, err error) {
				t.Helper()
				switch {
				case fail && (!errors.Is(err, mount.ErrSourceChanged) || !mount.IsContent(err)):
					t.Errorf("%s, binding %d, %s: %d bytes, %v", name, binding, way, len(got), err)
				case !fail && (err != nil || !bytes.Equal(got, want)):
					t.Errorf("%s, binding %d, %s: %d of %d bytes, %v after %d requests", name, binding, way, len(got), len(want), err, n.Load())
				}
			}
			if binding == mount.BindContent && tc.fail {
				continue // below
			}
			n.Store(0)
			got, err := get(t.Context(), m)
			check("Read", got, content, err)
			n.Store(0)
			u := newUpgrader(t, fsio.NewSim(1), m, nil)
			got, err = get(t.Context(), u)
			check("copy", got, content, err)
			n.Store(0)
			r, err := m.Fetch(t.Context())
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			p := make([]byte, 50_000)
			k, err := r.ReadAt(p, 1234)
			check("ReadAt", p[:k], content[1234:51_234], err)
			r.Close()
			if name == "two ETags in turn" && binding == mount.BindContent && n.Load() > 4 {
				t.Errorf("%d requests where nothing needs to be asked", n.Load())
			}
		}
	}
	t.Run("bound to content, it changes between two requests", func(t *testing.T) {
		for name, bodies := range map[string][2][]byte{"bytes": {content, other}, "length": {content, longer}} {
			var n atomic.Int32
			url, o := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body := bodies[min(1, n.Add(1)/2)]
				http.ServeContent(&breakingWriter{ResponseWriter: w, left: 30_000}, r, "", time.Time{}, bytes.NewReader(body))
			}))
			u := newUpgrader(t, fsio.NewSim(1), &mount.HTTPMount{URL: url, Options: o, Binding: mount.BindContent}, nil)
			if err := u.Ensure(t.Context()); !errors.Is(err, mount.ErrSourceChanged) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// TestHTTPBindingOfTemplate: how a source is bound comes from the template, not the URL.
func TestHTTPBindingOfTemplate(t *testing.T) {
	reg := registry(t, map[string]mount.Mount{"http": &mount.HTTPMount{Binding: mount.BindContent}})
	back := roundTrip(t, reg, &mount.HTTPMount{URL: "http://h/a"})
	if m, ok := back.(*mount.HTTPMount); !ok || m.Binding != mount.BindContent || m.URL != "http://h/a" {
		t.Errorf("came back as %+v", back)
	}
}

// TestSecretQuery: what is left out of what is stored, by rules and not only by names.
// Proves S6.
func TestSecretQuery(t *testing.T) {
	m := &mount.HTTPMount{URL: "https://h/p?a=1&x-oss-signature=s3cret&OSSAccessKeyId=s3cret&q-ak=s3cret&jwt=s3cret&Policy=s3cret&x;sig=s3cret" +
		"&token%5B%5D=s3cret&hdnts=s3cret&my_client_secret=s3cret&b=2&%zz=s3cret&+token=s3cret&sv=2024&c"}
	if got := m.Serialize().String(); got != "https://h/p?a=1&b=2&sv=2024&c" {
		t.Errorf("stored as %s", got)
	}
	own := &mount.HTTPMount{URL: "http://h/?pre-x=1&x-post=2&in-x-in=3&x=4&token=5", Options: &mount.HTTPOptions{SecretQuery: []string{"*-x", "x-*", "*-x-*"}}}
	if got := own.Serialize().String(); got != "http://h/?x=4&token=5" {
		t.Errorf("stored as %s", got)
	}
}
