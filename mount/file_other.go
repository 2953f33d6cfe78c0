//go:build !unix

package mount

// openNonblock: named pipes do not live among files here.
const openNonblock = 0
