package projection_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/projection"
	"github.com/dagstore/dagstore/projection/projectiontest"
	"github.com/dagstore/dagstore/shard"
)

// Usage is how much the shards of one mount scheme hold.
type Usage struct {
	Shards int
	Blocks uint64
	Bytes  uint64
}

// usageView is a view: what the shards hold, by the scheme of their mounts. It lives in
// memory, and is everything that a view can be.
type usageView struct {
	pos    journal.Position
	rows   map[string]usageRow // by key
	totals map[string]Usage    // by scheme; never changed once it was published
}

var (
	_ projection.Publisher = (*usageView)(nil)
	_ projection.Saver     = (*usageView)(nil)
	_ projection.Based     = (*usageView)(nil)
	_ projection.Rebuilder = (*usageView)(nil)
)

// usageRow is what one shard adds to the totals. It is kept to take it away again.
type usageRow struct {
	Key    string
	Scheme string
	Usage  Usage
}

func newUsageView() *usageView {
	return &usageView{rows: map[string]usageRow{}, totals: map[string]Usage{}}
}

func (u *usageView) Name() string { return "usage" }

// Version becomes 2 when a row comes to mean something else.
func (u *usageView) Version() uint32 { return 1 }

func (u *usageView) Position() journal.Position { return u.pos }

// Apply cannot fail: everything it is told has happened.
func (u *usageView) Apply(b *journal.Batch) error {
	if b.End.Seq <= u.pos.Seq {
		return nil
	}
	u.set(b.Events)
	u.pos = b.End
	return nil
}

// set takes the rows of the events' shards out of the totals and puts the new ones in.
// Readers have the old totals, so it changes a copy.
func (u *usageView) set(events []shard.Event) {
	u.totals = maps.Clone(u.totals)
	for i := range events {
		e := &events[i]
		key := strings.Clone(e.Key.String()) // the event's strings are lent
		if old, ok := u.rows[key]; ok {
			delete(u.rows, key)
			u.count(old, -1)
		}
		if e.Kind != shard.EventDestroyed {
			scheme, _, _ := strings.Cut(e.State.URL, ":")
			u.put(usageRow{key, strings.Clone(scheme), Usage{1, e.State.Index.Blocks, e.State.Index.PayloadBytes}})
		}
	}
}

func (u *usageView) put(row usageRow) {
	u.rows[row.Key] = row
	u.count(row, 1)
}

func (u *usageView) count(row usageRow, sign int) {
	t := u.totals[row.Scheme]
	t.Shards += sign * row.Usage.Shards
	t.Blocks += uint64(sign) * row.Usage.Blocks
	t.Bytes += uint64(sign) * row.Usage.Bytes
	if u.totals[row.Scheme] = t; t.Shards == 0 {
		delete(u.totals, row.Scheme)
	}
}

// Publish makes the view a Publisher: readers get the totals, which never change.
func (u *usageView) Publish() any { return u.totals }

// ApplyBase makes it Based: the newest event of a shard says all there is to know.
func (u *usageView) ApplyBase(events []shard.Event, end journal.Position, last bool) error {
	u.set(events)
	if last {
		u.pos = end
	}
	return nil
}

// Fresh makes it a Rebuilder.
func (u *usageView) Fresh() (projection.View, error) { return newUsageView(), nil }

// rowsPerBlock keeps a block well below 4 MiB: keys have 512 bytes at most.
const rowsPerBlock = 1000

// Freeze and Restore make it a Saver, so that a start need not replay everything. The
// rows are copied because more is applied while they are saved; a view of millions of
// rows would keep them in something that is copied in no time.
func (u *usageView) Freeze() (journal.Position, func(emit func([]byte) error) error) {
	rows := slices.Collect(maps.Values(u.rows))
	return u.pos, func(emit func([]byte) error) error {
		for block := range slices.Chunk(rows, rowsPerBlock) {
			b, err := json.Marshal(block)
			if err == nil {
				err = emit(b)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}

func (u *usageView) Restore(pos journal.Position, next func() ([]byte, error)) error {
	for {
		b, err := next()
		if errors.Is(err, io.EOF) {
			u.pos = pos
			return nil
		}
		var rows []usageRow
		if err == nil {
			err = json.Unmarshal(b, &rows)
		}
		if err != nil {
			return err
		}
		for _, row := range rows {
			u.put(row)
		}
	}
}

// A view of one's own: what the shards hold, by the scheme of their mounts.
func Example_view() {
	ctx := context.Background()
	j := journal.NewMemory()
	runner := projection.NewRunner(j, projection.NewCatalogue(), projection.Options{})
	defer runner.Close()
	if err := runner.Add(newUsageView()); err != nil {
		fmt.Println(err)
		return
	}
	if _, err := runner.Recover(ctx); err != nil {
		fmt.Println(err)
		return
	}
	runner.Start()

	// What a store does for each change: write it down, then show it.
	key := shard.KeyFromString("a")
	events := []shard.Event{
		{Seq: 1, Gen: 1, Kind: shard.EventRegistered, Key: key, State: shard.State{Life: shard.Registered, URL: "file:///a.car"}},
	}
	indexed := shard.State{Life: shard.Available, URL: "file:///a.car", Index: shard.IndexInfo{Blocks: 3, PayloadBytes: 3000}}
	end, err := j.Append(events)
	if err == nil {
		err = runner.Commit(&journal.Batch{Events: events, End: end})
	}
	if err == nil {
		events = []shard.Event{{Seq: 2, Gen: 1, Kind: shard.EventIndexed, Key: key, State: indexed}}
		if end, err = j.Append(events); err == nil {
			err = runner.Commit(&journal.Batch{Events: events, End: end})
		}
	}
	if err != nil {
		fmt.Println(err)
		return
	}

	// A reader that was told that event 2 has happened waits until the view shows it.
	value, fresh, err := runner.Read(ctx, "usage", projection.AtLeast(end))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(value.(map[string]Usage)["file"], "as of event", fresh.Applied.Seq)
	// Output: {1 3 3000} as of event 2
}

// TestUsageView holds the example to what a view has to keep.
// Proves G4, G5, G8, G14.
func TestUsageView(t *testing.T) {
	projectiontest.Run(t, projectiontest.Subject{
		New:  func(*testing.T) projection.View { return newUsageView() },
		Show: func(value any) string { return fmt.Sprint(value) },
	})
}

// TestSeededView is the same for a view that can begin with the catalogue.
// Proves G4, G14.
func TestSeededView(t *testing.T) {
	projectiontest.Run(t, projectiontest.Subject{
		New:  func(*testing.T) projection.View { return seededUsage{newUsageView()} },
		Show: func(value any) string { return fmt.Sprint(value) },
	})
}

// TestCatalogueIsAView holds the first view to the same.
// Proves G4, G5, G8.
func TestCatalogueIsAView(t *testing.T) {
	projectiontest.Run(t, projectiontest.Subject{
		New: func(*testing.T) projection.View { return renamed{projection.NewCatalogue()} },
		Show: func(value any) string {
			d := value.(*projection.Snapshot).Digest()
			return fmt.Sprintf("%x", d)
		},
	})
}

// renamed is a second catalogue: the first has taken the name.
type renamed struct{ *projection.Catalogue }

func (renamed) Name() string { return "catalogue-2" }

func (renamed) Fresh() (projection.View, error) { return renamed{projection.NewCatalogue()}, nil }
