package dagstore

import (
	"strings"
	"testing"

	"github.com/dagstore/dagstore/shard"
)

// TestChooseShard: open before local before fetched, ties by key, whatever the order
// in which the index names them; what is not available is never chosen, and every
// shard has a reason. Proves I13 (the policy).
func TestChooseShard(t *testing.T) {
	c := func(key string, life shard.Life, open, local bool) candidate {
		return candidate{key: shard.KeyFromString(key), life: life, open: open, local: local, cause: "why\n"}
	}
	all := []candidate{
		c("far", shard.Available, false, false), c("near", shard.Available, false, true), c("nearer", shard.Available, false, true),
		c("open", shard.Available, true, true), c("errored", shard.Errored, true, true), c("recovering", shard.Recovering, false, true),
		c("registered", shard.Registered, false, true), c("initialising", shard.Initialising, false, true), c("gone", shard.None, true, true),
	}
	without := func(keys ...string) (kept []candidate) {
		for _, x := range all {
			if !strings.Contains(" "+strings.Join(keys, " ")+" ", " "+x.key.String()+" ") {
				kept = append(kept, x)
			}
		}
		return kept
	}
	for want, cs := range map[string][]candidate{
		"open": all, "near": without("open"), "nearer": without("open", "near"), "far": without("open", "near", "nearer"),
		"": without("open", "near", "nearer", "far"),
	} {
		for range cs { // every rotation
			cs = append(cs[1:len(cs):len(cs)], cs[0])
			best, reasons := chooseShard(cs)
			got := ""
			if best >= 0 {
				got = cs[best].key.String()
			}
			if got != want {
				t.Errorf("chose %q, want %q", got, want)
			}
			for i, r := range reasons {
				if r == "" || strings.HasPrefix(r, "chosen: ") != (i == best) || strings.Contains(r, "\n") {
					t.Errorf("%s: %q", cs[i].key, r)
				}
			}
		}
	}
	if best, _ := chooseShard(nil); best != -1 {
		t.Errorf("chose %d of none", best)
	}
	_, reasons := chooseShard([]candidate{c("b", shard.Available, true, true), c("a", shard.Available, true, true)})
	if !strings.HasPrefix(reasons[0], "as good as") {
		t.Error(reasons[0])
	}
}
