package mount

import (
	"net/http"
	"testing"
)

// TestNoProxyWithPolicy: with an address policy no proxy dials for us; without one the
// environment's proxies are used. Proves S4.
func TestNoProxyWithPolicy(t *testing.T) {
	with := (&HTTPOptions{Policy: PublicOnly}).transport().(*http.Transport)
	without := new(HTTPOptions).transport().(*http.Transport)
	if with.Proxy != nil || without.Proxy == nil {
		t.Errorf("proxies with a policy: %v; without: %v", with.Proxy != nil, without.Proxy != nil)
	}
	if !with.DisableCompression || !without.DisableCompression {
		t.Error("the transport asks for compression")
	}
}
