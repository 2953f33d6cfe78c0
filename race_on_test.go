//go:build race

package dagstore_test

// raceEnabled: pools drop what they are given now and then.
const raceEnabled = true
