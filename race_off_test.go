//go:build !race

package dagstore_test

const raceEnabled = false
