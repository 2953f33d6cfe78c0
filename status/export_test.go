package status

import (
	"testing"
	"time"
)

// SetGrace sets how long callers may go on receiving after the end, for one test.
func SetGrace(t *testing.T, d time.Duration) {
	former := grace
	grace = d
	t.Cleanup(func() { grace = former })
}

// Judge is what a caller is told of an error of a lookup.
func Judge(err error) (code int, kind string) {
	p := judge(err)
	return p.code, p.kind
}

// Plain is the text of an error as the page shows it.
var Plain = plain
