//go:build !linux

package fsio

// SyncData is Sync: only Linux has an fdatasync that is worth its name.
func (f osFile) SyncData() error { return f.Sync() }
