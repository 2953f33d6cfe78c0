package dagstore

import (
	"net/url"
	"slices"
	"strings"

	"github.com/dagstore/dagstore/mount"
)

// redact is what may be shown of a mount's URL: neither user nor password, for either
// may be a token, nor the values of parameters that sign or let in.
func redact(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "unparsable"
	}
	if u.User != nil {
		u.User = url.User(masked)
	}
	u.RawQuery = redactQuery(u.RawQuery)
	shown := u.String() // before it is cut
	if u.Opaque != "" && len(shown) > 128 || len(shown) > 512 {
		return shown[:128] + "…"
	}
	return shown
}

// masked stands for a secret.
const masked = "xxxxx"

// redactQuery masks the values of secret parameters and leaves all else as it is.
func redactQuery(query string) string {
	if query == "" {
		return ""
	}
	params := strings.Split(query, "&")
	for i, p := range params {
		name, _, ok := strings.Cut(p, "=")
		if plain, err := url.QueryUnescape(name); err != nil || ok && slices.ContainsFunc(mount.DefaultSecretQuery, func(s string) bool { return strings.EqualFold(s, plain) }) {
			params[i] = name + "=" + masked
		}
	}
	return strings.Join(params, "&")
}
