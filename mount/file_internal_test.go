package mount

import (
	"net/url"
	"testing"
)

// TestWindowsPaths: paths as Windows spells them come back too. Proves F5.
func TestWindowsPaths(t *testing.T) {
	for path, want := range map[string]string{
		`C:\data\a b.car`:    "file:///C:%5Cdata%5Ca%20b.car",
		`C:/data/a.car`:      "file:///C:/data/a.car",
		`c:relative.car`:     "file:///c:relative.car",
		`dir\a.car`:          "file:dir%5Ca.car",
		`\\server\share\a`:   "file:%5C%5Cserver%5Cshare%5Ca",
		`/rooted`:            "file:///rooted",
		`//server/share/a`:   "file:////server/share/a",
		`\\?\C:\long 100%.x`: "file:%5C%5C%3F%5CC%3A%5Clong%20100%25.x",
	} {
		u := pathToURL(path, true)
		u.Scheme = "file"
		if u.String() != want {
			t.Errorf("%q is written as %q, want %q", path, u, want)
		}
		parsed, err := url.Parse(u.String())
		if err != nil {
			t.Fatal(err)
		}
		if back, err := urlToPath(parsed, true); err != nil || back != path {
			t.Errorf("%q came back as %q, %v", path, back, err)
		}
	}
}
