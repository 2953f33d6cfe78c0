//go:build !unix

package fsio

import "math"

// MaxOpen is how many descriptors this process may have.
func MaxOpen() int { return math.MaxInt32 }
