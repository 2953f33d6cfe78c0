package mount

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// HTTPMount is an HTTP resource. Where the server answers ranges, readers seek and
// read at offsets by further requests, each bound to the representation that the
// first one found: its size, and its strong ETag (If-Match) or else its
// Last-Modified (If-Unmodified-Since). A source that changes meanwhile is detected
// ([ErrSourceChanged]), never mixed. Where it does not, readers stream.
//
// Nothing that a server sends is believed unchecked: content codings are refused,
// Content-Range must answer what was asked, a short or over-long body is an error
// also when the connection's end delimits it, and a body that stalls is given up.
// Failures that may pass are retried with growing, jittered pauses, and a broken
// stream is resumed where it broke.
//
// Redirects are followed at most three times, to http and https only, never from
// https to http, and never from a public address to one that is not; another origin
// gets neither headers of the template nor credentials, nor does it learn where the
// request came from.
type HTTPMount struct {
	// URL is an http or https URL. Credentials in it (user:password@) are refused,
	// for they could not be stored: put them into HTTPOptions. Query parameters
	// are part of the identity and are stored, except the secret ones, see
	// HTTPOptions.SecretQuery.
	URL string
	// Size is the length that the resource must have, if known; else 0.
	Size int64
	// Binding says how a source that changed is told from one that did not. It is not in
	// the URL but comes from the template. The zero value suits all but the oddest.
	Binding Binding
	// Options is environment and comes from the template. All mounts made from one
	// template share it, and with it its connections; mounts without options share
	// DefaultHTTPOptions.
	Options *HTTPOptions
}

// HTTPOptions is what HTTP mounts need besides the URL, secrets included. None of
// it is ever written down. It must not change once it is in use. The zero value is
// the default.
type HTTPOptions struct {
	// Header is sent with every request to the origin of the URL, and to no other.
	Header http.Header
	// Resolve returns the URL to use in place of the stored one: a signed one, say,
	// or one with credentials. It is asked again for each request, so that URLs may
	// expire; it should cache.
	Resolve func(ctx context.Context, stored *url.URL) (*url.URL, error)
	// SecretQuery names the query parameters that Serialize leaves out, without
	// regard to case, with stars as in DefaultSecretQuery, which is what nil means. A mount revived without them
	// needs Resolve or Header to be let in again.
	SecretQuery []string
	// Policy judges each address before it is dialled, after name resolution; an
	// error refuses it. With a policy the proxies that the environment names are
	// not used, since a proxy would dial for us. See PublicOnly.
	Policy func(netip.Addr) error
	// MaxSize bounds the length of a resource; 0 means DefaultMaxSize.
	MaxSize int64
	// Transport makes the exchanges; nil means one with the timeouts below, which
	// all mounts with these options share. It excludes Policy and TLS.
	Transport http.RoundTripper
	// TLS configures the built-in transport.
	TLS *tls.Config

	// Retries is how often a failed exchange is tried again; 0 means 4, negative
	// never. BackOff is the first pause (0 means 200 ms); each further one doubles,
	// up to MaxBackOff (0 means 10 s). A server's Retry-After is honoured up to
	// MaxRetryAfter (0 means 1 min); beyond it the error is returned and says it.
	Retries       int
	BackOff       time.Duration
	MaxBackOff    time.Duration
	MaxRetryAfter time.Duration

	// DialTimeout and TLSTimeout (0 means 10 s), HeaderTimeout (0 means 30 s) for
	// the answer's header, IdleTimeout (0 means 30 s) for each read of its body.
	DialTimeout   time.Duration
	TLSTimeout    time.Duration
	HeaderTimeout time.Duration
	IdleTimeout   time.Duration

	// MinRate is how many bytes a second the body of a transfer must deliver, on average
	// over RateWindow (0 means 1 min); with less it ends with ErrTooSlow. 0 means
	// DefaultMinRate, negative no bound. The time that the reader's user takes between
	// reads does not count.
	MinRate    int64
	RateWindow time.Duration

	// PrivateRedirects lets origins with public addresses redirect to addresses that are
	// not: loopback, private networks, link-local, see PublicOnly. By default only those
	// that have such an address themselves may.
	PrivateRedirects bool

	once           sync.Once
	rt, redirected http.RoundTripper // redirected is for what public origins redirect to

	parkMu sync.Mutex
	parked map[*HTTPMount]*parkedAnswer
}

// DefaultMinRate, in bytes a second, is what no origin that is of any use falls below.
const DefaultMinRate = 1 << 10

// DefaultMaxSize is 128 GiB, twice the largest sector of Filecoin.
const DefaultMaxSize = 128 << 30

// DefaultSecretQuery lists the query parameters by which object stores and networks of
// caches sign URLs, and those that can hardly be anything but secrets. A star at the
// beginning or the end stands for anything. Parameters that may as well say which
// resource is meant ("key", "expires", "sv" and "se" of Microsoft's) are not among them.
var DefaultSecretQuery = []string{
	"*signature", "*credential", "*credentials", "*token", "*jwt", "*secret", "*password", "*passwd", "*passphrase",
	"*authorization", "*api_key", "*api-key", "*apikey", "*auth_key", "*auth-key", "*authkey", "*access_key", "*access-key", "*accesskey",
	"*AccessKeyId", "*AccessId", "*secret_key", "*secret-key", "*secretkey", "*private_key", "*private-key", "*privatekey", "*session_id", "*sessionid",
	"X-Amz-Algorithm", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders",
	"X-Goog-Algorithm", "X-Goog-Date", "X-Goog-Expires", "X-Goog-SignedHeaders",
	"x-oss-*", "x-cos-*", "q-*", "x-obs-*", "x-tos-*", "X-Bz-*",
	"Policy", "Key-Pair-Id", "KeyName", "hdn*", "__gda__", "ucan", "bearer", "pwd", "oauth_*", "x-auth*", "auth",
	"sig", "sign", "hmac", "SAMLResponse",
}

// SecretQuery tells whether a query parameter of this name, percent-encoded or not, is
// among patterns such as [DefaultSecretQuery], without regard to case. A name that cannot
// be decoded is.
func SecretQuery(patterns []string, name string) bool {
	plain, err := url.QueryUnescape(name)
	if err != nil {
		return true
	}
	plain = strings.ToLower(strings.TrimSpace(plain))
	if secretName(patterns, plain) {
		return true
	}
	// auth[token]=…, token[]=…
	return strings.ContainsAny(plain, "[]") && slices.ContainsFunc(strings.FieldsFunc(plain, func(r rune) bool { return r == '[' || r == ']' }),
		func(part string) bool { return secretName(patterns, part) })
}

func secretName(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		p = strings.ToLower(p)
		rest, anyBefore := strings.CutPrefix(p, "*")
		rest, anyAfter := strings.CutSuffix(rest, "*")
		switch {
		case anyBefore && anyAfter:
			return strings.Contains(name, rest)
		case anyBefore:
			return strings.HasSuffix(name, rest)
		case anyAfter:
			return strings.HasPrefix(name, rest)
		}
		return name == rest
	})
}

var defaultHTTPOptions = new(HTTPOptions)

// DefaultHTTPOptions returns the options of mounts that have none, one for the whole
// process. They must not be changed.
func DefaultHTTPOptions() *HTTPOptions { return defaultHTTPOptions }

var _ Mount = (*HTTPMount)(nil)

func (m *HTTPMount) options() *HTTPOptions {
	if m.Options == nil {
		return defaultHTTPOptions
	}
	return m.Options
}

func (m *HTTPMount) allowedSchemes() []string { return []string{"http", "https"} }

// Info promises sequential access only: whether the server answers ranges is known
// after the first exchange.
func (m *HTTPMount) Info() Info { return Info{Kind: KindRemote, AccessSequential: true} }

// Serialize returns the URL without credentials, secret parameters and fragment.
func (m *HTTPMount) Serialize() *url.URL {
	u, err := url.Parse(m.URL)
	if err != nil {
		return new(url.URL) // which Deserialize refuses
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	u.RawQuery = m.options().publicQuery(u.RawQuery)
	return u
}

// publicQuery drops the secret parameters and keeps the rest byte by byte.
func (o *HTTPOptions) publicQuery(raw string) string {
	secret := o.SecretQuery
	if secret == nil {
		secret = DefaultSecretQuery
	}
	var kept []string
	for _, param := range strings.Split(raw, "&") {
		if !secretParam(secret, param) {
			kept = append(kept, param)
		}
	}
	return strings.Join(kept, "&")
}

// secretParam tells whether a parameter is secret, or one of those that servers find in it
// which separate them by semicolons.
func secretParam(patterns []string, param string) bool {
	for one := range strings.SplitSeq(param, ";") {
		if name, _, _ := strings.Cut(one, "="); SecretQuery(patterns, name) {
			return true
		}
	}
	return false
}

// Deserialize takes any http or https URL without credentials.
func (m *HTTPMount) Deserialize(u *url.URL) error {
	own := *u
	own.Fragment, own.RawFragment = "", ""
	if err := checkURL(&own); err != nil {
		return err
	}
	if own.User != nil {
		return errCredentials
	}
	m.URL = own.String()
	return nil
}

var errCredentials = malformed(errors.New("http mount: credentials in the URL are refused because they could not be stored; put them into HTTPOptions.Header or let Resolve add them"))

// checkURL returns nil for a URL that can be requested.
func checkURL(u *url.URL) error {
	if u.Scheme != "http" && u.Scheme != "https" {
		return malformed(fmt.Errorf("http mount: scheme %q; want http or https", u.Scheme))
	}
	if u.Hostname() == "" || u.Opaque != "" {
		return malformed(errors.New("http mount: the URL names no host"))
	}
	return nil
}

// storedURL parses the mount's URL.
func (m *HTTPMount) storedURL() (*url.URL, error) {
	u, err := url.Parse(m.URL)
	if err != nil {
		return nil, parseError(err)
	}
	if err := checkURL(u); err != nil {
		return nil, err
	}
	if u.User != nil {
		return nil, errCredentials
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

// Stat asks the server once more what the resource is. Size is 0 if the server does
// not tell. Ready is false if the server asks to come again later.
//
// The unread body of a server that knows no ranges is kept for some seconds, for the
// Fetch that follows.
func (m *HTTPMount) Stat(ctx context.Context) (Stat, error) {
	own, attach, cancel := detached(ctx)
	a, err := m.exchange(own, byteRange{0, 0}, pin{size: -1}, giveUpIfNotReady, nil)
	attach()
	var he *HTTPError
	switch {
	case err != nil && ctx.Err() != nil:
		err = m.fail(0, ctx.Err())
	case errors.As(err, &he) && he.notReady():
		cancel()
		return Stat{Exists: true, Size: m.Size}, nil
	case errors.Is(err, ErrNotFound):
		cancel()
		return Stat{}, nil
	case err == nil:
		err = m.checkSize(a.total)
	}
	switch {
	case err != nil || a.code != http.StatusOK || a.total == 0:
		if a != nil {
			a.body.discard()
		}
		cancel()
	default:
		a.body.release = cancel
		m.options().park(m, a)
	}
	if err != nil {
		return Stat{}, err
	}
	return Stat{Exists: true, Size: max(a.total, 0), Ready: true}, nil
}

// checkSize judges a total, -1 if unknown, by what was expected and allowed.
func (m *HTTPMount) checkSize(total int64) error {
	switch limit := m.options().maxSize(); {
	case total >= 0 && m.Size > 0 && total != m.Size:
		return m.fail(0, fmt.Errorf("%w: it has %d bytes, expected %d", ErrSourceChanged, total, m.Size))
	case total > limit:
		return m.fail(0, fmt.Errorf("%w: it has %d bytes, at most %d are allowed; see HTTPOptions.MaxSize", ErrTooLarge, total, limit))
	}
	return nil
}

// Close lets go of what Stat kept for a Fetch. Connections belong to the options.
func (m *HTTPMount) Close() error {
	if a := m.options().unpark(m); a != nil {
		a.body.Close()
	}
	return nil
}

func (o *HTTPOptions) maxSize() int64 {
	if o.MaxSize > 0 {
		return o.MaxSize
	}
	return DefaultMaxSize
}

// meter returns what holds a transfer to the least rate; nil if nothing does.
func (o *HTTPOptions) meter() *meter { return newMeter(o.MinRate, o.RateWindow) }

func newMeter(rate int64, window time.Duration) *meter {
	switch {
	case rate < 0:
		return nil
	case rate == 0:
		rate = DefaultMinRate
	}
	return &meter{rate: rate, window: orDefault(window, time.Minute)}
}

func orDefault(d, def time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return def
}

// CloseIdleConnections closes the connections that are kept for later use.
func (o *HTTPOptions) CloseIdleConnections() {
	o.dropParked()
	for _, rt := range []http.RoundTripper{o.transport(), o.redirectTransport()} {
		if c, ok := rt.(interface{ CloseIdleConnections() }); ok {
			c.CloseIdleConnections()
		}
	}
}

// transport returns the RoundTripper, made at first use. The mounts use it without
// an http.Client: that would follow redirects with headers and a Referer, and put
// URLs into errors.
func (o *HTTPOptions) transport() http.RoundTripper {
	o.once.Do(func() {
		if o.Transport != nil {
			o.rt = o.Transport
			return
		}
		o.rt, o.redirected = o.newTransport(nil), o.newTransport(publicOnly)
	})
	return o.rt
}

// redirectTransport returns the one for what a public origin redirects to. It has
// connections of its own: one that was made for others may lead to a private address.
func (o *HTTPOptions) redirectTransport() http.RoundTripper {
	o.transport()
	return o.redirected
}

// newTransport makes a transport that asks also and the policy about each address.
func (o *HTTPOptions) newTransport(also func(netip.Addr) error) *http.Transport {
	dialer := &net.Dialer{Timeout: orDefault(o.DialTimeout, 10*time.Second)}
	t := &http.Transport{
		TLSClientConfig:        o.TLS,
		TLSHandshakeTimeout:    orDefault(o.TLSTimeout, 10*time.Second),
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	if o.Policy == nil {
		t.Proxy = http.ProxyFromEnvironment
	}
	// controlDial runs after name resolution, for each address about to be dialled.
	dialer.ControlContext = func(ctx context.Context, _, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err == nil && o.Policy != nil {
			err = o.Policy(ap.Addr())
		}
		if err == nil && also != nil && isDirect(ctx) {
			err = also(ap.Addr())
		}
		if err != nil {
			return &policyError{err}
		}
		return nil
	}
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil || !isDirect(ctx) {
			return conn, err // what a proxy says first is no answer to a request
		}
		return &guardedConn{Conn: conn}, nil
	}
	t.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return o.handshake(ctx, conn, address)
	}
	return t
}

// handshake makes a TLS connection of one that was dialled, guarded if HTTP/1 is spoken.
func (o *HTTPOptions) handshake(ctx context.Context, conn net.Conn, address string) (net.Conn, error) {
	cfg := &tls.Config{}
	if o.TLS != nil {
		cfg = o.TLS.Clone()
	}
	if host, _, err := net.SplitHostPort(address); err == nil && cfg.ServerName == "" {
		cfg.ServerName = host
	}
	direct := isDirect(ctx)
	switch {
	case !direct:
		cfg.NextProtos = nil
	case len(cfg.NextProtos) == 0:
		cfg.NextProtos = []string{"h2", "http/1.1"}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, orDefault(o.TLSTimeout, 10*time.Second), errHandshakeTimeout)
	defer cancel()
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	if !direct || secure.ConnectionState().NegotiatedProtocol == "h2" {
		return secure, nil
	}
	return &guardedConn{Conn: secure}, nil
}

var errHandshakeTimeout = errors.New("TLS handshake timeout")

// policyError: the address policy refused. Trying again changes nothing.
type policyError struct{ err error }

func (e *policyError) Error() string { return "address policy: " + e.err.Error() }
func (e *policyError) Unwrap() error { return e.err }
