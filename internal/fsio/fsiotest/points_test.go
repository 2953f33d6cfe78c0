package fsiotest

import "testing"

// TestTotal: the tests' numbers come to the number that is promised.
func TestTotal(t *testing.T) {
	sum := 0
	for _, n := range least {
		sum += n
	}
	if sum < Total {
		t.Errorf("the tests drive at least %d crash points in all, want %d", sum, Total)
	}
}

// recorder is a testing.TB that notes whether it failed.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Logf(string, ...any)   {}
func (r *recorder) Errorf(string, ...any) { r.failed = true }

// TestReport: too few points fail, unless the run is shortened; a test without a
// number fails.
func TestReport(t *testing.T) {
	for name := range least {
		for _, c := range []struct {
			name      string
			points    int
			shortened bool
			fails     bool
		}{
			{name, least[name], false, false},
			{name, least[name] - 1, false, true},
			{name, 1, true, false},
			{"dagstore.TestNothing", 1 << 30, false, true},
		} {
			r := &recorder{TB: t}
			Report(r, c.name, c.points, c.shortened)
			if r.failed != c.fails {
				t.Errorf("%d points of %s, shortened %t: failed %t", c.points, c.name, c.shortened, r.failed)
			}
		}
	}
}
