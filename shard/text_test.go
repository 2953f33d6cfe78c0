package shard_test

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/dagstore/dagstore/shard"
)

// TestCutText: a text of any length becomes one of MaxText bytes at most, which begins
// as it did, says how much is missing, and is valid UTF-8 if it was.
func TestCutText(t *testing.T) {
	for _, text := range []string{"", "short", strings.Repeat("x", shard.MaxText)} {
		if got := shard.CutText(text); got != text {
			t.Errorf("%d bytes were cut to %d", len(text), len(got))
		}
	}
	for _, unit := range []string{"x", "é", "語", "🜁", "a🜁", "\xff", "\x80"} {
		for pad := range 5 {
			text := strings.Repeat("p", pad) + strings.Repeat(unit, 18<<20/len(unit))
			got := shard.CutText(text)
			kept, mark, ok := strings.Cut(got, "… (")
			var missing int
			if _, err := fmt.Sscanf(mark, "%d bytes cut)", &missing); err != nil || !ok {
				t.Fatalf("%q: no mark in %.60q: %v", unit, got[len(got)-60:], err)
			}
			if len(got) > shard.MaxText || len(got) < shard.MaxText-64 || !strings.HasPrefix(text, kept) || len(kept)+missing != len(text) {
				t.Errorf("%q: %d bytes became %d, %d kept and %d missing", unit, len(text), len(got), len(kept), missing)
			}
			if utf8.ValidString(text) != utf8.ValidString(got) {
				t.Errorf("%q: cut within a character: %q", unit, got[len(kept)-8:])
			}
		}
	}
}
