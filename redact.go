package dagstore

import (
	"net/url"
	"strings"

	"github.com/dagstore/dagstore/mount"
)

// redact is what may be shown of a mount's URL: neither user nor password, for either
// may be a token, nor the values of parameters that sign or let in. A URL within a URL is
// treated as one.
func redact(text string) string {
	shown := redactURL(text, 4)
	if inner := strings.IndexByte(shown, ':'); len(shown) > 512 || len(shown) > 128 && inner >= 0 && !strings.HasPrefix(shown[inner+1:], "/") {
		return strings.ToValidUTF8(shown[:128], "") + "…"
	}
	return shown
}

func redactURL(text string, depth int) string {
	u, err := url.Parse(text)
	if err != nil || depth == 0 {
		return "unparsable"
	}
	if u.User != nil {
		u.User = url.User(masked)
	}
	if strings.Contains(u.Opaque, "://") {
		u.Opaque = redactURL(u.Opaque, depth-1) // a wrapper's inner mount
	} else if host, _, _ := strings.Cut(u.Opaque, "/"); strings.Contains(host, "@") {
		u.Opaque = masked + u.Opaque[strings.LastIndex(host, "@"):]
	}
	u.RawQuery = redactQuery(u.RawQuery)
	if strings.Contains(u.Fragment, "=") {
		u.Fragment, u.RawFragment = redactQuery(u.Fragment), ""
	}
	return u.String() // before it is cut
}

// masked stands for a secret.
const masked = "xxxxx"

// redactQuery masks the values of secret parameters and leaves all else as it is.
func redactQuery(query string) string {
	if query == "" {
		return ""
	}
	var b strings.Builder
	for more := true; more; {
		param, sep := query, ""
		if i := strings.IndexAny(query, "&;"); i >= 0 {
			param, sep, query = query[:i], query[i:i+1], query[i+1:]
		} else {
			more = false
		}
		name, value, ok := strings.Cut(param, "=")
		switch _, err := url.QueryUnescape(name); {
		case ok && value != "" && mount.SecretQuery(mount.DefaultSecretQuery, name), err != nil:
			b.WriteString(name + "=" + masked)
		default:
			b.WriteString(param)
		}
		b.WriteString(sep)
	}
	return b.String()
}
