// Package compat holds the store to what its predecessor, github.com/filecoin-project/dagstore
// v0.7.0, left on disk and did. It has tests only, and is a module of its own so that the
// predecessor's requirements are nobody else's.
//
//	store_test.go    makes a store with the predecessor's own code, in another process
//	upgrade_test.go  opens it here, whatever ended the process
//	lotus_test.go    a wrapper in lotus's manner over it
package compat
