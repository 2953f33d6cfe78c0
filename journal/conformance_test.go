package journal_test

import (
	"context"
	"path/filepath"
	"testing"

	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
)

// Proves G1, G2, G4, G5, C7 for the journal in memory.
func TestMemory(t *testing.T) {
	journaltest.Run(t, func(t *testing.T) journaltest.Subject {
		return journaltest.Subject{Open: func() (journal.Journal, error) { return journal.NewMemory(), nil }}
	})
}

// failing is a datastore whose next Put or Sync fails on demand.
type failing struct {
	ds.Batching
	onSync bool
	next   error
}

func (f *failing) take() error {
	err := f.next
	f.next = nil
	return err
}

func (f *failing) Put(ctx context.Context, key ds.Key, value []byte) error {
	if !f.onSync {
		if err := f.take(); err != nil {
			return err
		}
	}
	return f.Batching.Put(ctx, key, value)
}

func (f *failing) Sync(ctx context.Context, prefix ds.Key) error {
	if f.onSync {
		if err := f.take(); err != nil {
			return err
		}
	}
	return f.Batching.Sync(ctx, prefix)
}

// Proves G1, G2, G4, G5, C3, F27 for the journal in a datastore.
func TestDatastore(t *testing.T) {
	for name, onSync := range map[string]bool{"put fails": false, "sync fails": true} {
		t.Run(name, func(t *testing.T) {
			journaltest.Run(t, func(t *testing.T) journaltest.Subject {
				d := &failing{Batching: dssync.MutexWrap(ds.NewMapDatastore()), onSync: onSync}
				return journaltest.Subject{
					Open:     func() (journal.Journal, error) { return journal.OpenDatastore(t.Context(), d) },
					Durable:  true,
					FailNext: func(err error) { d.next = err },
				}
			})
		})
	}
}

// Proves G1, G2, G4, G5, C3, C7, C11, F27 for the journal in files, on a simulated disk
// of which one operation fails.
func TestFileFailures(t *testing.T) {
	for _, kind := range []fsio.OpKind{fsio.OpWrite, fsio.OpSyncData} {
		t.Run(kind.String(), func(t *testing.T) {
			journaltest.Run(t, func(t *testing.T) journaltest.Subject {
				sim := fsio.NewSim(1)
				return journaltest.Subject{
					Open: func() (journal.Journal, error) {
						sim.OnOp(nil)
						return journal.OpenFile(sim, "journal", small)
					},
					Durable: true,
					FailNext: func(err error) {
						sim.OnOp(func(op fsio.Op) error {
							if op.Kind != kind {
								return nil
							}
							sim.OnOp(nil)
							return err
						})
					},
				}
			})
		})
	}
}

// small makes every test a test of many segments.
var small = journal.FileOptions{SegmentSize: 1024, Preallocate: 512}

// Proves G1, G2, G4, G5, C7 for the journal in files of the operating system.
func TestFile(t *testing.T) {
	for name, opts := range map[string]journal.FileOptions{
		"default":             {},
		"small segments":      small,
		"no space in advance": {SegmentSize: 8192, Preallocate: -1},
	} {
		t.Run(name, func(t *testing.T) {
			journaltest.Run(t, func(t *testing.T) journaltest.Subject {
				dir := filepath.Join(t.TempDir(), "journal")
				return journaltest.Subject{
					Open:    func() (journal.Journal, error) { return journal.OpenFile(fsio.OS(), dir, opts) },
					Durable: true,
				}
			})
		})
	}
}
