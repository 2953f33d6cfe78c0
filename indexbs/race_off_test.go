//go:build !race

package indexbs_test

const raceEnabled = false
