package mount

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrAddressRefused is returned by [PublicOnly] for an address that it refuses.
var ErrAddressRefused = errors.New("not a public address")

// notPublic4 lists what the IANA IPv4 Special-Purpose Address Registry holds that
// is not globally reachable, and the former classes D and E.
var notPublic4 = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
	"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
)

// global6 is where all public IPv6 addresses lie; notPublic6 is what is not public
// within. Forms that carry an IPv4 address are refused whole: NAT64 (64:ff9b::/96)
// and mapped (::ffff:0:0/96) by lying outside, 6to4 and Teredo by the list.
var (
	global6    = netip.MustParsePrefix("2000::/3")
	notPublic6 = prefixes("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)

func prefixes(texts ...string) (ps []netip.Prefix) {
	for _, t := range texts {
		ps = append(ps, netip.MustParsePrefix(t))
	}
	return ps
}

// PublicOnly is an address policy that admits addresses of the public internet
// only. It refuses loopback, private, link-local, shared, benchmarking and
// documentation addresses, multicast, and the IPv6 forms that carry an IPv4
// address, with an error that wraps [ErrAddressRefused].
func PublicOnly(a netip.Addr) error {
	refused := notPublic4
	if !a.Is4() {
		refused = notPublic6
		if a = a.WithZone(""); !global6.Contains(a) {
			return fmt.Errorf("%w: %s", ErrAddressRefused, a)
		}
	}
	for _, p := range refused {
		if p.Contains(a) {
			return fmt.Errorf("%w: %s lies in %s", ErrAddressRefused, a, p)
		}
	}
	return nil
}
