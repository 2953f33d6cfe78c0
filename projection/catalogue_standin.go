package projection

import (
	"context"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"

	"github.com/dagstore/dagstore/journal"
	"github.com/dagstore/dagstore/shard"
)

func (c *Catalogue) Name() string { return "catalogue" }

func (c *Catalogue) Version() uint32 { return 1 }

func (c *Catalogue) Publish() any { return c.Snapshot() }

func (c *Catalogue) Freeze() (journal.Position, func(emit func([]byte) error) error) {
	s := c.Snapshot()
	return s.pos, func(emit func([]byte) error) error {
		var buf []byte
		err := s.Events(func(e *shard.Event) error {
			buf = append(buf, byte(e.Seq), byte(e.Seq>>8), byte(e.Seq>>16), byte(e.Seq>>24))
			buf = shard.AppendEvent(buf, e)
			if len(buf) < 1<<10 {
				return nil
			}
			err := emit(buf)
			buf = buf[:0]
			return err
		})
		if err == nil && len(buf) > 0 {
			err = emit(buf)
		}
		return err
	}
}

func (c *Catalogue) Restore(pos journal.Position, next func() ([]byte, error)) error {
	for {
		b, err := next()
		if err == io.EOF {
			c.mu.pos = pos
			return nil
		}
		if err != nil {
			return err
		}
		s := string(b)
		for s != "" {
			if len(s) < 4 {
				return fmt.Errorf("bad block")
			}
			seq := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24
			var e shard.Event
			if s, err = shard.DecodeEvent(s[4:], seq, &e); err != nil {
				return err
			}
			c.put(&e)
		}
	}
}

func (c *Catalogue) put(e *shard.Event) {
	h := hashOf(e.Key)
	chain := c.chainLocked(h)
	r := newRecord(e, nil)
	c.mu.n[r.life]++
	c.storeLocked(h, replace(chain, nil, r))
}

func (c *Catalogue) ApplyBase(events []shard.Event, end journal.Position, last bool) error {
	for i := range events {
		c.put(&events[i])
	}
	if last {
		c.mu.pos = end
	}
	return nil
}

func (s *Snapshot) Events(emit func(*shard.Event) error) (err error) {
	kinds := [...]shard.Kind{shard.Registered: shard.EventRegistered, shard.Available: shard.EventIndexed, shard.Errored: shard.EventFailed, shard.Recovering: shard.EventRecovering}
	s.All(func(r *Record) bool {
		e := shard.Event{Seq: r.seq, Gen: r.gen, Time: r.time, Kind: kinds[r.life], Key: r.Key(), State: r.State()}
		err = emit(&e)
		return err == nil
	})
	return err
}

func (c *Catalogue) loadFrom(ctx context.Context, j journal.Journal) (n uint64, err error) {
	if comp, ok := j.(journal.Compactor); ok && c.Position() == (journal.Position{}) && comp.Horizon() != (journal.Position{}) {
		end, err := comp.Base(func(events []shard.Event) error { return c.ApplyBase(events, journal.Position{}, false) })
		if err != nil {
			return 0, err
		}
		if err := c.ApplyBase(nil, end, true); err != nil {
			return 0, err
		}
	}
	err = j.Replay(c.Position().Seq, func(b *journal.Batch) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n += uint64(len(b.Events))
		return c.Apply(b)
	})
	return n, err
}

func (c *Catalogue) become(o *Catalogue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.tree, c.mu.pos, c.mu.n = o.mu.tree, o.mu.pos, o.mu.n
}

func hashOf(k shard.Key) uint64 { return xxhash.Sum64String(k.String()) }
