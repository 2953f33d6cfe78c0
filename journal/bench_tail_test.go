package journal_test

import (
	"io/fs"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/dagstore/dagstore/internal/fsio"
	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

// BenchmarkTail is how a view follows: 30 events are appended, and the view replays
// from where it stopped; in this process and by a Reader, in a segment of many
// megabytes.
func BenchmarkTail(b *testing.B) {
	const n = 30
	for _, c := range []struct {
		name   string
		reader bool
	}{{"writer", false}, {"reader", true}} {
		b.Run(c.name, func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "journal")
			fill(b, dir, 300_000, 1000)
			j, err := journal.OpenFile(unsynced{fsio.OS()}, dir, journal.FileOptions{})
			if err != nil {
				b.Fatal(err)
			}
			defer j.Close()
			r, err := journal.OpenReader(fsio.OS(), dir)
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			events := registrations(1, n)
			seen := 0
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				from := j.Head().Seq
				renumber(events, from+1)
				if _, err := j.Append(events); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				var followed journal.Journal = j
				if c.reader {
					if _, err := r.Refresh(); err != nil {
						b.Fatal(err)
					}
					followed = r
				}
				if err := followed.Replay(from, func(batch *journal.Batch) error { seen += len(batch.Events); return nil }); err != nil {
					b.Fatal(err)
				}
			}
			if seen != b.N*n {
				b.Fatalf("%d events seen of %d", seen, b.N*n)
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N), "µs/wake-up")
		})
	}
}

// BenchmarkRefreshIdle is what a Reader pays for looking in vain.
func BenchmarkRefreshIdle(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "journal")
	fill(b, dir, 1000, 10)
	r, err := journal.OpenReader(fsio.OS(), dir)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Refresh(); err != nil {
			b.Fatal(err)
		}
	}
}

// headless is a file system on which HEAD cannot be opened for writing.
type headless struct{ fsio.FS }

func (h headless) OpenFile(name string, flag int, perm fs.FileMode) (fsio.File, error) {
	if filepath.Base(name) == "HEAD" {
		return nil, fs.ErrPermission
	}
	return h.FS.OpenFile(name, flag, perm)
}

// BenchmarkHead is what telling other processes adds to an append, in turns of one
// run: on its own, without syncs, and as part of a durable append.
func BenchmarkHead(b *testing.B) {
	for _, c := range []struct {
		name          string
		with, without fsio.FS
	}{
		{"unsynced", unsynced{fsio.OS()}, unsynced{headless{fsio.OS()}}},
		{"durable", fsio.OS(), headless{fsio.OS()}},
	} {
		b.Run(c.name, func(b *testing.B) {
			var journals [2]*journal.File
			for i, fsys := range []fsio.FS{c.with, c.without} {
				j, err := journal.OpenFile(fsys, filepath.Join(b.TempDir(), "journal"), journal.FileOptions{})
				if err != nil {
					b.Fatal(err)
				}
				defer j.Close()
				journals[i] = j
			}
			events := registrations(1, 10)
			var took [2][]time.Duration
			turn := 0
			for b.Loop() {
				turn++
				for k := range journals {
					i := (k + turn) % 2
					j := journals[i]
					renumber(events, j.Head().Seq+1)
					start := time.Now()
					if _, err := j.Append(events); err != nil {
						b.Fatal(err)
					}
					took[i] = append(took[i], time.Since(start))
				}
			}
			with, without := median(took[0]), median(took[1])
			b.ReportMetric(float64(with)/float64(without), "with/without")
			b.ReportMetric(float64((with-without).Nanoseconds())/1000, "µs/head")
		})
	}
}

// median is not moved by what else the machine does.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkCompact reports what a base of 1,000,000 shards costs to write, durably, and
// to read.
func BenchmarkCompact(b *testing.B) {
	const total = 1_000_000
	dir := filepath.Join(b.TempDir(), "journal")
	fill(b, dir, total, 1000)
	events := registrations(1, total)
	var wrote, read time.Duration
	for b.Loop() {
		b.StopTimer()
		j, err := journal.OpenFile(fsio.OS(), dir, journal.FileOptions{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := j.Append(registrations(j.Head().Seq+1, 1)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		start := time.Now()
		err = j.Compact(b.Context(), j.Head(), func(emit func(*shard.Event) error) error {
			for i := range events {
				if err := emit(&events[i]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		wrote += time.Since(start)
		start = time.Now()
		seen := 0
		if _, err := j.Base(func(run []shard.Event) error { seen += len(run); return nil }); err != nil || seen != total {
			b.Fatal(seen, err)
		}
		read += time.Since(start)
		if err := j.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*total)/wrote.Seconds(), "written/s")
	b.ReportMetric(float64(b.N*total)/read.Seconds(), "read/s")
}
