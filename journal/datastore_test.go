package journal_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	"github.com/ipfs/go-datastore/query"
	dssync "github.com/ipfs/go-datastore/sync"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/journal/journaltest"
)

// filled returns a datastore with a journal of batches of 1, 2, 3, 4 events, among
// records of the predecessor.
func filled(t *testing.T) (d ds.Datastore, batches []journal.Batch) {
	t.Helper()
	d = dssync.MutexWrap(ds.NewMapDatastore())
	for _, key := range foreignKeys {
		must(t, d.Put(t.Context(), ds.NewKey(key), []byte(`{"k":"legacy"}`)))
	}
	j, err := journal.OpenDatastore(t.Context(), d)
	must(t, err)
	for n := range 4 {
		if _, err := j.Append(journaltest.Events(j.Head().Seq+1, n+1)); err != nil {
			t.Fatal(err)
		}
	}
	batches = journaltest.Collect(t, j, 0)
	must(t, j.Close())
	return d, batches
}

var foreignKeys = []string{"/baga6ea4seaq", "/journal/some shard", "/journal/1", "/journal/00000000000000FF", "/journal/0000000000000001/x", "/journals/0000000000000099"}

func dkey(first uint64) ds.Key { return ds.NewKey(fmt.Sprintf("/journal/%016x", first)) }

// Proves C10 (journal in a datastore), G1: values that are missing, swapped, cut,
// or changed in one bit are refused with their key.
func TestDatastoreDamage(t *testing.T) {
	d, _ := filled(t)
	get := func(d ds.Datastore, first uint64) []byte {
		value, err := d.Get(t.Context(), dkey(first))
		must(t, err)
		return slices.Clone(value)
	}
	put := func(d ds.Datastore, first uint64, value []byte) { must(t, d.Put(t.Context(), dkey(first), value)) }
	refused := func(name string, wound func(d ds.Datastore)) {
		t.Helper()
		d, _ := filled(t)
		wound(d)
		var damage *journal.DamageError
		if _, err := journal.OpenDatastore(t.Context(), d); !errors.As(err, &damage) || damage.File == "" {
			t.Errorf("%s: OpenDatastore = %v, want a DamageError with its key", name, err)
		}
	}
	refused("first missing", func(d ds.Datastore) { must(t, d.Delete(t.Context(), dkey(1))) })
	refused("hole", func(d ds.Datastore) { must(t, d.Delete(t.Context(), dkey(2))) })
	refused("moved", func(d ds.Datastore) { put(d, 12, get(d, 7)) })
	refused("swapped", func(d ds.Datastore) { put(d, 4, get(d, 2)) })
	refused("empty", func(d ds.Datastore) { put(d, 7, nil) })
	refused("zeros", func(d ds.Datastore) { put(d, 7, make([]byte, 200)) })
	refused("longer", func(d ds.Datastore) { put(d, 7, append(get(d, 7), 0)) })
	for _, first := range []uint64{1, 7} {
		for i, b := range get(d, first) {
			refused(fmt.Sprintf("seq %d byte %d", first, i), func(d ds.Datastore) {
				value := get(d, first)
				value[i] = b ^ 1<<(i%8)
				put(d, first, value)
			})
			refused(fmt.Sprintf("seq %d cut to %d", first, i), func(d ds.Datastore) { put(d, first, get(d, first)[:i]) })
		}
	}
}

// Proves C13 for the journal in a datastore.
func TestDatastoreNewerFormat(t *testing.T) {
	d, _ := filled(t)
	value, err := d.Get(t.Context(), dkey(4))
	must(t, err)
	value = slices.Clone(value)
	journal.SetFrameVersion(value, 2)
	must(t, d.Put(t.Context(), dkey(4), value))
	if _, err := journal.OpenDatastore(t.Context(), d); !errors.Is(err, journal.ErrNewerFormat) {
		t.Errorf("OpenDatastore = %v, want ErrNewerFormat", err)
	}
}

// Keys that are not the journal's stay, whatever they hold, and are not read.
func TestDatastoreForeignKeys(t *testing.T) {
	d, batches := filled(t)
	j, err := journal.OpenDatastore(t.Context(), d)
	must(t, err)
	defer j.Close()
	if diff := journaltest.Diff(batches, journaltest.Collect(t, j, 0)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, key := range foreignKeys {
		if value, err := d.Get(t.Context(), ds.NewKey(key)); err != nil || string(value) != `{"k":"legacy"}` {
			t.Errorf("%s: %q, %v", key, value, err)
		}
	}
}

// backwards lists keys in the wrong order, whatever the query asks for, as do
// datastores that do not sort.
type backwards struct{ ds.Datastore }

func (b backwards) Query(ctx context.Context, q query.Query) (query.Results, error) {
	q.Orders = []query.Order{query.OrderByKeyDescending{}}
	return b.Datastore.Query(ctx, q)
}

// Proves G1 over a datastore that does not sort, behind a namespace.
func TestDatastoreOrder(t *testing.T) {
	d := backwards{namespace.Wrap(dssync.MutexWrap(ds.NewMapDatastore()), ds.NewKey("/dagstore"))}
	for n := range 40 {
		j, err := journal.OpenDatastore(t.Context(), d)
		must(t, err)
		if got := len(journaltest.Collect(t, j, 0)); got != n {
			t.Fatalf("%d batches after %d appends", got, n)
		}
		if _, err := j.Append(journaltest.Events(j.Head().Seq+1, 1)); err != nil {
			t.Fatal(err)
		}
		must(t, j.Close())
	}
}

// unreadable fails every Get.
type unreadable struct{ ds.Datastore }

var errUnreadable = errors.New("timeout")

func (unreadable) Get(context.Context, ds.Key) ([]byte, error) { return nil, errUnreadable }

// Proves C11, R9 (journal): a value that could not be read is not called damaged.
func TestDatastoreReadError(t *testing.T) {
	d, _ := filled(t)
	var damage *journal.DamageError
	if _, err := journal.OpenDatastore(t.Context(), unreadable{d}); !errors.Is(err, errUnreadable) || errors.As(err, &damage) {
		t.Errorf("OpenDatastore = %v, want the datastore's error", err)
	}
}
