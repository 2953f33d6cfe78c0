package journal

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"github.com/dagstore/dagstore/shard"
)

// NewMemoryAt returns a journal in memory that has forgotten everything up to event
// seq and has base in its place, as after a compaction: the newest event of every shard
// that lives there, each of its own Seq, none of which is beyond seq. The next append
// is event seq + 1. It is for states that are kept elsewhere, where neither the
// history nor its digests are.
//
// The digest at the horizon is made from seq and base alone: two journals that begin
// with the same state, in the same order, agree in their horizon, and no others do.
func NewMemoryAt(seq uint64, base []shard.Event) (*Memory, error) {
	m := NewMemory()
	if seq == 0 && len(base) == 0 {
		return m, nil
	}
	at := Position{Seq: seq}
	h := sha256.New()
	h.Write(binary.LittleEndian.AppendUint64([]byte("base\x00"), seq))
	kept, err := m.keepRuns(context.Background(), at, h, func(emit func(*shard.Event) error) error {
		for i := range base {
			if err := emit(&base[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	h.Sum(at.Digest[:0])
	m.mu.head, m.mu.horizon, m.mu.base = at, at, kept
	return m, nil
}

// keepRuns returns the events that base emits as runs, and writes those to h too, if
// there is one.
func (m *Memory) keepRuns(ctx context.Context, at Position, h hash.Hash, base func(emit func(*shard.Event) error) error) (kept []memoryRun, err error) {
	r := newRuns(ctx, at, salt{}, m.isClosed, func(frame []byte, _ int64) error {
		fh, _ := parseHeader(frame, new(salt))
		if fh.kind != frameBatch {
			return nil
		}
		payload := frame[frameHeaderSize : frameHeaderSize+int(fh.length)]
		if h != nil {
			h.Write(payload)
		}
		kept = append(kept, memoryRun{payload: string(payload), count: int(fh.count)})
		return nil
	})
	if err = base(r.emit); err == nil {
		err = r.finish()
	}
	return kept, err
}
