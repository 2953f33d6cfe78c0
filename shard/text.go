package shard

import (
	"fmt"
	"unicode/utf8"
)

// MaxText is how many bytes of a text that others wrote are kept in an event or in
// memory: the reason why a shard is errored, which an origin, an indexer or a mount may
// make as long as it likes.
const MaxText = 4 << 10

// CutText returns text, cut if it is longer than [MaxText] bytes: at the beginning of a
// character, and with a mark that says how much is missing.
func CutText(text string) string {
	if len(text) <= MaxText {
		return text
	}
	const room = 40 // for the mark, which counts
	kept := MaxText - room
	for kept > MaxText-room-utf8.UTFMax && !utf8.RuneStart(text[kept]) {
		kept--
	}
	return fmt.Sprintf("%s… (%d bytes cut)", text[:kept], len(text)-kept)
}
