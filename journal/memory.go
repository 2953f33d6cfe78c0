package journal

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/dagstore/dagstore/shard"
)

// Memory is a journal that lives as long as the process. Its batches are kept in
// their encoded form, so that it costs little and exercises the same encoding.
type Memory struct {
	compacting sync.Mutex // held by Compact
	mu         struct {
		sync.Mutex
		batches []memoryBatch
		head    Position
		horizon Position
		base    []memoryRun
		enc     encoder
		closed  bool
	}
}

type memoryBatch struct {
	payload string
	count   int
	end     Position
}

// memoryRun is a run of the base, its events each as a base file has them.
type memoryRun struct {
	payload string
	count   int
}

var (
	_ Journal    = (*Memory)(nil)
	_ Positioner = (*Memory)(nil)
	_ Compactor  = (*Memory)(nil)
)

// NewMemory returns an empty journal in memory.
func NewMemory() *Memory { return new(Memory) }

// Append implements [Journal].
func (m *Memory) Append(events []shard.Event) (Position, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.closed {
		return Position{}, fmt.Errorf("append: %w", ErrClosed)
	}
	if len(events) == 0 {
		return m.mu.head, nil
	}
	frame, end, err := m.mu.enc.batch(events, m.mu.head, 0, new(salt))
	if err != nil {
		return Position{}, err
	}
	h, _ := parseHeader(frame, new(salt))
	payload := string(frame[frameHeaderSize : frameHeaderSize+int(h.length)])
	m.mu.batches = append(m.mu.batches, memoryBatch{payload: payload, count: len(events), end: end})
	m.mu.head = end
	return end, nil
}

// Head implements [Journal].
func (m *Memory) Head() Position {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.head
}

// Replay implements [Journal].
func (m *Memory) Replay(seq uint64, visit func(*Batch) error) error {
	m.mu.Lock()
	batches, horizon := m.mu.batches, m.mu.horizon // batches is appended to and replaced
	m.mu.Unlock()
	if seq < horizon.Seq {
		return fmt.Errorf("%w: replay from seq %d, the oldest kept is %d", ErrCompacted, seq+1, horizon.Seq+1)
	}
	lo := firstAfter(len(batches), seq, func(i int) uint64 { return batches[i].end.Seq })
	var b Batch
	for _, mb := range batches[lo:] {
		if m.isClosed() {
			return fmt.Errorf("replay: %w", ErrClosed)
		}
		events, err := decodeBatch(b.Events, mb.payload, mb.end.Seq-uint64(mb.count)+1, mb.count)
		if err != nil {
			return fmt.Errorf("journal: replay: %w", err)
		}
		b = Batch{Events: events, End: mb.end}
		if err := visit(&b); err != nil {
			return err
		}
	}
	if m.isClosed() {
		return fmt.Errorf("replay: %w", ErrClosed)
	}
	return nil
}

// PositionAt implements [Positioner].
func (m *Memory) PositionAt(seq uint64) (Position, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.closed {
		return Position{}, fmt.Errorf("position at %d: %w", seq, ErrClosed)
	}
	if known, err := knownPosition(seq, m.mu.head, m.mu.horizon); err != nil {
		return Position{}, err
	} else if known != nil {
		return *known, nil
	}
	return m.mu.batches[m.indexLocked(seq-1)].end, nil
}

// indexLocked is the index of the first batch that ends after seq.
func (m *Memory) indexLocked(seq uint64) int {
	return firstAfter(len(m.mu.batches), seq, func(i int) uint64 { return m.mu.batches[i].end.Seq })
}

// Horizon implements [Compactor].
func (m *Memory) Horizon() Position {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.horizon
}

// Base implements [Compactor].
func (m *Memory) Base(visit func(events []shard.Event) error) (Position, error) {
	m.mu.Lock()
	base, at := m.mu.base, m.mu.horizon // base is only ever replaced
	m.mu.Unlock()
	var events []shard.Event
	for _, run := range base {
		if m.isClosed() {
			return Position{}, fmt.Errorf("base: %w", ErrClosed)
		}
		var err error
		if events, err = decodeRun(events, run.payload, at.Seq, run.count); err != nil {
			return Position{}, fmt.Errorf("journal: base: %w", err)
		}
		if err := visit(events); err != nil {
			return Position{}, err
		}
	}
	if m.isClosed() {
		return Position{}, fmt.Errorf("base: %w", ErrClosed)
	}
	return at, nil
}

// Reclaimable implements [Compactor]: the bytes of the batches below at and of the
// base that another would replace.
func (m *Memory) Reclaimable(at Position) (n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at.Seq <= m.mu.horizon.Seq {
		return 0
	}
	for _, run := range m.mu.base {
		n += int64(len(run.payload))
	}
	for _, b := range m.mu.batches[:m.indexLocked(at.Seq)] {
		n += int64(len(b.payload))
	}
	return n
}

// Compact implements [Compactor]. It frees the batches below at.
func (m *Memory) Compact(ctx context.Context, at Position, base func(emit func(*shard.Event) error) error) error {
	m.compacting.Lock()
	defer m.compacting.Unlock()
	now := m.Horizon()
	if err := checkHorizon(m, at, now); err != nil || at == now {
		return err
	}
	kept, err := m.keepRuns(ctx, at, nil, base)
	if err != nil {
		return fmt.Errorf("journal: compact to %v: nothing was removed: %w", at, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.closed {
		return fmt.Errorf("compact: %w", ErrClosed)
	}
	// A copy, so that the batches before it can be collected.
	m.mu.batches = slices.Clone(m.mu.batches[m.indexLocked(at.Seq):])
	m.mu.horizon, m.mu.base = at, kept
	return nil
}

func (m *Memory) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.closed
}

// Close implements [Journal]. What the journal holds is gone.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.closed, m.mu.batches, m.mu.base = true, nil, nil
	return nil
}
