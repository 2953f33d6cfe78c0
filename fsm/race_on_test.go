//go:build race

package fsm

// raceEnabled: the walks are bounded, for the race detector makes them slow.
const raceEnabled = true
