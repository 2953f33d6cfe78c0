//go:build race

package indexbs_test

// raceEnabled: pools drop what they are given now and then.
const raceEnabled = true
