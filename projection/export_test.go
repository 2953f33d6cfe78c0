package projection

import (
	"io"

	"github.com/dagstore/dagstore/journal"
)

// PositionAt is what the runner uses for journals that cannot tell.
var PositionAt = positionAt

// Reasons why a checkpoint is ignored.
var (
	ErrDamagedCheckpoint = errDamagedCheckpoint
	ErrOtherFormat       = errOtherFormat
	ErrOtherView         = errOtherView
)

// RecentPositions is how many positions the runner knows by heart.
const RecentPositions = recentPositions

// RebuildRounds is how often a new view is fed beside the one in use.
const RebuildRounds = rebuildRounds

// CheckpointName is the file of a checkpoint, and ParseCheckpointName the inverse.
var (
	CheckpointName      = checkpointName
	ParseCheckpointName = parseCheckpointName
)

// CheckpointHeaderSize is where the first block begins.
const CheckpointHeaderSize = checkpointHeaderSize

// DecodeCheckpoint reads a whole checkpoint.
func DecodeCheckpoint(src io.Reader, size int64) (view string, version uint32, pos journal.Position, blocks [][]byte, err error) {
	c, err := newCheckpointReader(src, size)
	if err != nil {
		return "", 0, pos, nil, err
	}
	for {
		b, err := c.next()
		if err == io.EOF {
			return c.id.view, c.id.version, c.id.pos, blocks, nil
		}
		if err != nil {
			return "", 0, pos, nil, err
		}
		blocks = append(blocks, append([]byte(nil), b...))
	}
}

// EncodeCheckpoint writes a whole checkpoint.
func EncodeCheckpoint(dst io.Writer, view string, version uint32, pos journal.Position, blocks [][]byte) error {
	w := checkpointWriter{w: dst}
	if err := w.begin(&checkpointID{view, version, pos}); err != nil {
		return err
	}
	for _, b := range blocks {
		if err := w.block(b); err != nil {
			return err
		}
	}
	return w.end()
}
