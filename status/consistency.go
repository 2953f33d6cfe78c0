package status

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dagstore/dagstore"
)

// ParseConsistency reads what the header Dagstore-Consistency says. An error never
// comes with a consistency that could be used.
func ParseConsistency(s string) (dagstore.Consistency, error) {
	kind, value, given := strings.Cut(s, "=")
	bad := func(err error) (dagstore.Consistency, error) {
		return dagstore.AtLeast(dagstore.Position{}), &problem{kind: "bad-consistency", code: 400,
			detail: fmt.Sprintf("Dagstore-Consistency %.100q cannot be read; say any, latest, within=DURATION, at-least=TOKEN, at-least-seq=NUMBER or as-of=TOKEN", s), err: err}
	}
	switch {
	case kind == "any" && !given:
		return dagstore.Any(), nil
	case kind == "latest" && !given:
		return dagstore.Latest(), nil
	case kind == "within" && given:
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 {
			return bad(err)
		}
		return dagstore.Within(d), nil
	case kind == "at-least-seq" && given:
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil || n == 0 {
			return bad(err)
		}
		return dagstore.AtLeastSeq(n), nil
	case (kind == "at-least" || kind == "as-of") && given:
		p, err := dagstore.ParsePosition(value)
		if err != nil {
			return bad(err)
		}
		if kind == "as-of" {
			return dagstore.AsOf(p), nil
		}
		return dagstore.AtLeast(p), nil
	}
	return bad(nil)
}
