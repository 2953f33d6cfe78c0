// Package fsiotest has what the crash tests of several packages share: the account of
// the crash points that they drive.
package fsiotest

import "testing"

// A crash point is one operation of the simulated disk, of a run or of the recovery
// after it, at which one thing is made to happen: the power goes, the process is
// killed, or the operation fails in one of the ways of fsio.Faults; and after which
// what is left was judged. The same operation with another seed, which decides what
// of the unsynced data is left, is the same point and counts once.
//
// least is how many points each test must drive in an ordinary run, by the test's
// package and name. Tests grow: raise a number when it has become much too low. In
// all they are at least Total.
var least = map[string]int{
	"dagstore.TestCrashAtEveryOperation": 12_000,
	"dagstore.TestKillThenCrash":         10_000,
	"dagstore.TestSim":                   4_000,
	"index.TestCrashesAndFaults":         150,
	"index.TestFaultsOfASpilledBuild":    500,
	"journal.TestCompactCrash":           300,
	"journal.TestCrashDuringRecovery":    15_000,
	"journal.TestCrashEveryOperation":    1_100,
	"journal.TestCrashGivingUp":          350,
	"mount.TestUpgraderCrash":            10,
	"mount.TestUpgraderDiskFaults":       30,
	"toplevel.TestFaultAtEveryOperation": 500,
}

// Total is how many crash points an ordinary run of all tests drives at least.
const Total = 30_000

// Report notes that the test called name drove so many crash points. It fails t if
// they are fewer than they should be, unless the run is a shortened one. The line that
// it logs is what `make soak` adds up.
func Report(t testing.TB, name string, points int, shortened bool) {
	t.Helper()
	want, ok := least[name]
	switch {
	case !ok:
		t.Errorf("%s has no number in internal/fsio/fsiotest", name)
	case points < want && !shortened:
		t.Errorf("%s drove %d crash points, want at least %d: see what it no longer reaches", name, points, want)
	}
	t.Logf("crash points: %d of %s", points, name)
}
