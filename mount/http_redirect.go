package mount

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
)

// A redirect is a wish of somebody else's. One from an origin of the public internet to
// an address that only this machine or its network reaches would make us ask there for
// it, and tell it by our error whether somebody answers. So hops after a public one are
// dialled with an address policy, [PublicOnly], unless HTTPOptions.PrivateRedirects says
// otherwise. Who is private may point to anybody: he reaches no more through us than he
// does himself.
//
// What counts is the address that answered, not a name, which resolves to anything. An
// origin behind a proxy, or one of a Transport of others that does not tell, is taken
// for public unless its URL has a private address.

// journey is what is known of the hops of a request so far.
type journey struct {
	public bool // some hop was public, or may have been
}

// hop is what one exchange found out.
type hop struct {
	direct bool // no proxy dials for us
	remote netip.Addr
}

// passed notes where an answer came from.
func (j *journey) passed(h hop, at *url.URL) {
	addr := h.remote
	if !h.direct || !addr.IsValid() {
		addr = literal(at)
	}
	if !addr.IsValid() || isPublic(addr) {
		j.public = true
	}
}

// isPublic judges an address; a variable for tests, which have none that is public.
var isPublic = func(a netip.Addr) bool { return PublicOnly(a.Unmap()) == nil }

// publicOnly is the policy of what a public origin redirects to.
func publicOnly(a netip.Addr) error {
	if isPublic(a) {
		return nil
	}
	return fmt.Errorf("%w: %s, to which a public origin redirects; see HTTPOptions.PrivateRedirects", ErrAddressRefused, a)
}

// literal returns the address that a URL names by its digits, or one like it for a name
// that is always this machine's.
func literal(u *url.URL) netip.Addr {
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	a, _ := netip.ParseAddr(host)
	return a
}

// proxied tells whether the environment's proxy makes this request.
func (o *HTTPOptions) proxied(req *http.Request) bool {
	if o.Transport != nil || o.Policy != nil {
		return false
	}
	proxy, err := http.ProxyFromEnvironment(req)
	return err != nil || proxy != nil
}

// transportFor returns what makes the next exchange of a journey.
func (o *HTTPOptions) transportFor(j *journey, req *http.Request) (http.RoundTripper, error) {
	own := o.transport()
	if !j.public || o.PrivateRedirects {
		return own, nil
	}
	// By whoever is dialled: an address in digits is judged here.
	if a := literal(req.URL); a.IsValid() {
		if err := publicOnly(a); err != nil {
			return nil, &policyError{err}
		}
	}
	if o.Transport != nil {
		return own, nil
	}
	return o.redirectTransport(), nil
}

// directKey is where a context says to the dialler that no proxy stands between.
type directKey struct{}

func isDirect(ctx context.Context) bool {
	direct, _ := ctx.Value(directKey{}).(bool)
	return direct
}

// traced returns a context in which the exchange of req notes in h who answered.
func traced(ctx context.Context, h *hop) context.Context {
	ctx = context.WithValue(ctx, directKey{}, h.direct)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if info.Conn == nil {
			return
		}
		h.remote = addrOf(info.Conn.RemoteAddr())
		if g, ok := info.Conn.(*guardedConn); ok {
			g.expect()
		}
	}})
}

func addrOf(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
