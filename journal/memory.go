package journal

import (
	"fmt"
	"sync"

	"github.com/dagstore/dagstore/shard"
)

// Memory is a journal that lives as long as the process. Its batches are kept in
// their encoded form, so that it costs little and exercises the same encoding.
type Memory struct {
	mu struct {
		sync.Mutex
		batches []memoryBatch
		head    Position
		enc     encoder
		closed  bool
	}
}

type memoryBatch struct {
	payload string
	count   int
	end     Position
}

var _ Journal = (*Memory)(nil)

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
	batches := m.mu.batches // only ever appended to
	m.mu.Unlock()
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

func (m *Memory) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.closed
}

// Close implements [Journal]. What the journal holds is gone.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.closed, m.mu.batches = true, nil
	return nil
}
