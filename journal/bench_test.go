package journal_test

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// registrations returns n events as a daemon's registrations look: about 150 bytes.
func registrations(first uint64, n int) []shard.Event {
	events := make([]shard.Event, n)
	for i := range events {
		seq := first + uint64(i)
		events[i] = shard.Event{
			Seq: seq, Gen: seq, Time: 1_795_000_000_000_000_000 + int64(seq), Kind: shard.EventRegistered,
			Key:   shard.KeyFromString(fmt.Sprintf("baga6ea4seaqao7s73y24kcutaosvacpdjgfe5pw76ooefnyqw4yn%012d", seq)),
			State: shard.State{Life: shard.Registered, Lazy: true, URL: fmt.Sprintf("file:///var/lib/dagstore/pieces/%032d.car", seq)},
		}
	}
	return events
}

func renumber(events []shard.Event, first uint64) {
	for i := range events {
		events[i].Seq, events[i].Gen = first+uint64(i), first+uint64(i)
	}
}

// BenchmarkAppend reports durable events per second, one fsync per batch. The last
// one shows what writing zeros ahead is good for.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct {
		name string
		n    int
		opts journal.FileOptions
	}{
		{"batch=1", 1, journal.FileOptions{}},
		{"batch=64", 64, journal.FileOptions{}},
		{"batch=1000", 1000, journal.FileOptions{}},
		{"batch=1/growing", 1, journal.FileOptions{Preallocate: -1}},
	} {
		b.Run(c.name, func(b *testing.B) {
			n := c.n
			j, err := journal.OpenFile(fsio.OS(), filepath.Join(b.TempDir(), "journal"), c.opts)
			if err != nil {
				b.Fatal(err)
			}
			defer j.Close()
			events := registrations(1, n)
			b.ReportAllocs()
			for b.Loop() {
				renumber(events, j.Head().Seq+1)
				if _, err := j.Append(events); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkOpenReplay reports what it takes to have 1,000,000 registrations back:
// opening, and one replay of everything, from the page cache.
func BenchmarkOpenReplay(b *testing.B) {
	const total = 1_000_000
	for _, n := range []int{1, 64, 1000} {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "journal")
			fill(b, dir, total, n)
			b.ReportAllocs()
			var bytes int64
			for b.Loop() {
				j, err := journal.OpenFile(fsio.OS(), dir, journal.FileOptions{})
				if err != nil {
					b.Fatal(err)
				}
				seen := 0
				if err := j.Replay(0, func(batch *journal.Batch) error { seen += len(batch.Events); return nil }); err != nil {
					b.Fatal(err)
				}
				if seen != total {
					b.Fatalf("%d events replayed", seen)
				}
				bytes = j.Stats().Bytes
				if err := j.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(bytes)
			b.ReportMetric(float64(b.N*total)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// unsynced makes filling a journal fast; what it loses is nobody's.
type unsynced struct{ fsio.FS }

type unsyncedFile struct{ fsio.File }

func (u unsynced) OpenFile(name string, flag int, perm fs.FileMode) (fsio.File, error) {
	f, err := u.FS.OpenFile(name, flag, perm)
	return unsyncedFile{f}, err
}

func (unsyncedFile) SyncData() error { return nil }

func fill(b *testing.B, dir string, total, batch int) {
	b.Helper()
	j, err := journal.OpenFile(unsynced{fsio.OS()}, dir, journal.FileOptions{})
	if err != nil {
		b.Fatal(err)
	}
	for first := 1; first <= total; first += batch {
		if _, err := j.Append(registrations(uint64(first), min(batch, total-first+1))); err != nil {
			b.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
}
